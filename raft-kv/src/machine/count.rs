//! How many keys a range has, without going through them again for every page: counts that were
//! answered are remembered and brought to other revisions by the changes in between.
//!
//! A remembered count must equal what a scan would find, or not be used. [`Counts`] is a memory
//! of its owner's, outside the replicated state: what it holds may never decide what an entry does.

use super::format::{Logged, decode, ordered};
pub use super::range::{has_filters, in_key_order};
use super::store::{Read, Table};
use crate::error::StorageFailed;
use crate::limits::{MAX_COUNT_STEPS, MAX_REMEMBERED_COUNTS, MAX_REMEMBERED_RANGE_BYTES};
use crate::planted;
use crate::types::{EventKind, KeyRange, RangeRequest, RangeResponse, Revision};

/// Counts below this are scanned for as fast as they are remembered.
const WORTH: i64 = 64;

/// How many keys a range had at a revision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remembered {
    /// The revision.
    pub revision: Revision,
    /// Keys in the range there.
    pub count: i64,
}

/// Revisions at which the count of one range is remembered.
const REVISIONS: usize = 4;

/// Counts that were answered lately, at most [`MAX_REMEMBERED_COUNTS`], half of them of what later
/// pages have left: a reader that goes through many pages does not make others count. Of each half
/// the one that was used the longest ago goes first.
#[derive(Debug)]
pub struct Counts {
    /// In the order of their use, the oldest first; no range twice at one revision.
    entries: Vec<Entry>,
    worth: i64,
}

#[derive(Debug)]
struct Entry {
    range: KeyRange,
    one: Remembered,
    /// Whether it was learned for a later page.
    page: bool,
}

impl Default for Counts {
    fn default() -> Self {
        Self::worth(WORTH)
    }
}

impl Counts {
    /// Remembers counts from `least` on.
    pub fn worth(least: i64) -> Self {
        Self { entries: Vec::new(), worth: least }
    }

    /// What is remembered of exactly this range, at the revision nearest to `revision`; at the
    /// newest for 0 or below.
    pub fn recall(&mut self, range: &KeyRange, revision: Revision) -> Option<Remembered> {
        if range.is_single() {
            return None;
        }
        let wanted = if revision > 0 { revision } else { Revision::MAX };
        let known = self.entries.iter().enumerate().filter(|(_, known)| known.range == *range);
        let (at, _) = known.min_by_key(|(_, known)| known.one.revision.abs_diff(wanted))?;
        let entry = self.entries.remove(at);
        let found = entry.one;
        self.entries.push(entry);
        Some(found)
    }

    /// Takes from an answer given at revision `at` how many keys its range has, and how many are
    /// left for the next page.
    pub fn learn(&mut self, request: &RangeRequest, at: Revision, response: &RangeResponse) {
        if request.range.is_single() {
            return;
        }
        self.remember(request.range.clone(), Remembered { revision: at, count: response.count }, false);
        if !response.more || has_filters(request) || !in_key_order(request) {
            return;
        }
        if let Some(last) = response.kvs.last() {
            let count = response.count - response.kvs.len() as i64;
            self.remember(behind(&request.range, &last.key), Remembered { revision: at, count }, true);
        }
    }

    fn remember(&mut self, range: KeyRange, one: Remembered, page: bool) {
        if one.count < self.worth || range.key.len() + range.end.len() > MAX_REMEMBERED_RANGE_BYTES {
            return;
        }
        let page = page || self.entries.iter().any(|known| known.page && known.range == range);
        self.entries.retain(|known| known.range != range || known.one.revision != one.revision);
        self.forget(REVISIONS, |known| known.range == range);
        self.forget(MAX_REMEMBERED_COUNTS / 2, |known| known.page == page);
        self.entries.push(Entry { range, one, page });
    }

    /// Makes room for one more of a kind of which there may be `most`.
    fn forget(&mut self, most: usize, kind: impl Fn(&Entry) -> bool) {
        if self.entries.iter().filter(|known| kind(known)).count() >= most
            && let Some(oldest) = self.entries.iter().position(kind)
        {
            self.entries.remove(oldest);
        }
    }
}

/// What of `range` lies behind `key`.
pub fn behind(range: &KeyRange, key: &[u8]) -> KeyRange {
    let mut next = key.to_vec();
    next.push(0);
    KeyRange::span(next, range.end.clone())
}

/// The count at `to`, from one at another revision, by what changed between the two. `None` where
/// that history is gone or longer than a scan. `current` is the view's own revision.
pub fn bring(
    view: &dyn Read,
    range: &KeyRange,
    known: Remembered,
    to: Revision,
    (current, compacted): (Revision, Revision),
) -> Result<Option<i64>, StorageFailed> {
    if known.revision == to {
        return Ok(Some(known.count));
    }
    let (low, high) = (known.revision.min(to), known.revision.max(to));
    let mut left = MAX_COUNT_STEPS.min(known.count.max(WORTH));
    if high > current || low + 1 < compacted || high - low > left {
        return Ok(None);
    }
    let mut added = 0;
    for pair in view.scan(Table::Log, &ordered(low + 1), Some(&ordered(high + 1))) {
        let logged: Vec<Logged> = decode(Table::Log, pair?.1)?;
        left -= logged.len() as i64;
        if left < 0 {
            return Ok(None);
        }
        for change in logged.iter().filter(|change| range.contains(&change.key)) {
            match change.kind {
                EventKind::Put if change.superseded == 0 || planted!(CountOverwrites) => added += 1,
                EventKind::Put => {}
                EventKind::Delete => added -= 1,
            }
        }
    }
    Ok(Some(if to > known.revision { known.count + added } else { known.count - added }))
}
