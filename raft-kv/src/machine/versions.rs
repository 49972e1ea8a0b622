//! Versions of keys at a revision: the newest from `Live`, older ones from `Past`. They are
//! records: a value that lies apart is not read here.
//!
//! A version is current at R iff it was made at or before R and superseded after R. A deleted
//! key needs no tombstone: its last version says when it ended.

use std::iter::Peekable;

use bytes::Bytes;

use super::format::{Stored, Superseded, damaged, decode, escape, load, past_key, split_past, unescape};
use super::store::{Pairs, Read, Table};
use crate::error::StorageFailed;
use crate::planted;
use crate::types::{KeyRange, Revision};

/// Versions of one key that are passed over one by one before a seek is cheaper.
const STEPS_BEFORE_SEEK: u32 = 16;

/// Keys and their versions, ascending by key.
pub type Versions<'a> = Box<dyn Iterator<Item = Result<(Bytes, Stored), StorageFailed>> + 'a>;

/// The version of `key` at `at`; the newest for `None`.
pub fn version_at(
    view: &dyn Read,
    key: &[u8],
    at: Option<Revision>,
) -> Result<Option<Stored>, StorageFailed> {
    let live: Option<Stored> = load(view, Table::Live, key)?;
    let Some(at) = at else { return Ok(live) };
    if live.as_ref().is_some_and(|live| live.mod_revision <= at) {
        return Ok(live);
    }
    Ok(superseded_at(view, key, at)?.map(|(_, past)| past.stored))
}

/// The superseded version of `key` that was current at `at`, with its key in [`Table::Past`].
pub fn superseded_at(
    view: &dyn Read,
    key: &[u8],
    at: Revision,
) -> Result<Option<(Bytes, Superseded)>, StorageFailed> {
    let (from, to) = (past_key(key, at), past_key(key, 0));
    let Some(pair) = view.scan(Table::Past, &from, Some(&to)).next() else { return Ok(None) };
    let (past_key, value) = pair?;
    let past: Superseded = decode(Table::Past, value)?;
    Ok((past.end > at || planted!(IgnoreVersionEnd)).then_some((past_key, past)))
}

/// The version of `key` that `revision` made, if it is still kept.
pub fn version_made(
    view: &dyn Read,
    key: &[u8],
    revision: Revision,
) -> Result<Option<Stored>, StorageFailed> {
    let live: Option<Stored> = load(view, Table::Live, key)?;
    if live.as_ref().is_some_and(|live| live.mod_revision == revision) {
        return Ok(live);
    }
    let past: Option<Superseded> = load(view, Table::Past, &past_key(key, revision))?;
    Ok(past.map(|past| past.stored))
}

/// All keys of `range` with their versions at `at`; the newest for `None`.
pub fn versions<'a>(view: &'a dyn Read, range: &KeyRange, at: Option<Revision>) -> Versions<'a> {
    if range.is_single() {
        let key = range.key.clone();
        let found = version_at(view, &key, at).transpose();
        return Box::new(found.map(|found| found.map(|stored| (key, stored))).into_iter());
    }
    let upper = range.upper();
    if upper.as_ref().is_some_and(|upper| *upper <= range.key) {
        return Box::new(std::iter::empty());
    }
    let live = view.scan(Table::Live, &range.key, upper.as_deref()).map(|pair| {
        let (key, value) = pair?;
        Ok((key, decode::<Stored>(Table::Live, value)?))
    });
    let Some(at) = at else { return Box::new(live) };
    // A key's live version hides its past ones or is hidden by them, never both.
    let live: Versions = Box::new(
        live.filter(move |pair| pair.as_ref().map_or(true, |(_, stored)| stored.mod_revision <= at)),
    );
    let past: Versions = Box::new(PastAt::new(view, &range.key, upper.as_deref(), at));
    Box::new(Merged { left: live.peekable(), right: past.peekable() })
}

/// How many keys `range` has at `at`; now for `None`. No value is read.
pub fn count(view: &dyn Read, range: &KeyRange, at: Option<Revision>) -> Result<i64, StorageFailed> {
    let mut count = 0;
    if at.is_none() {
        let upper = range.upper();
        for pair in view.scan(Table::Live, &range.key, upper.as_deref()) {
            pair?;
            count += 1;
        }
        return Ok(count);
    }
    for pair in versions(view, range, at) {
        pair?;
        count += 1;
    }
    Ok(count)
}

/// Two ascending sources without a key in common.
struct Merged<'a> {
    left: Peekable<Versions<'a>>,
    right: Peekable<Versions<'a>>,
}

impl Iterator for Merged<'_> {
    type Item = Result<(Bytes, Stored), StorageFailed>;

    fn next(&mut self) -> Option<Self::Item> {
        match (self.left.peek(), self.right.peek()) {
            (Some(Ok((left, _))), Some(Ok((right, _)))) if right < left => self.right.next(),
            (Some(_), _) => self.left.next(),
            (None, _) => self.right.next(),
        }
    }
}

/// The superseded versions that were current at a revision.
struct PastAt<'a> {
    view: &'a dyn Read,
    pairs: Pairs<'a>,
    to: Option<Vec<u8>>,
    at: Revision,
    /// The escaped key whose newest version at or before `at` has been seen.
    done: Bytes,
    steps: u32,
}

impl<'a> PastAt<'a> {
    fn new(view: &'a dyn Read, from: &[u8], to: Option<&[u8]>, at: Revision) -> Self {
        let to = to.map(escape);
        let pairs = view.scan(Table::Past, &escape(from), to.as_deref());
        Self { view, pairs, to, at, done: Bytes::new(), steps: 0 }
    }

    /// Counts a version passed over; after several goes straight to `target`.
    fn pass(&mut self, target: impl FnOnce() -> Result<Vec<u8>, StorageFailed>) -> Result<(), StorageFailed> {
        self.steps += 1;
        if self.steps > STEPS_BEFORE_SEEK {
            self.pairs = self.view.scan(Table::Past, &target()?, self.to.as_deref());
            self.steps = 0;
        }
        Ok(())
    }

    fn step(&mut self, key: &Bytes, value: Bytes) -> Result<Option<(Bytes, Stored)>, StorageFailed> {
        let (escaped, made) = split_past(key)?;
        let at = self.at;
        if escaped == self.done {
            self.pass(|| {
                let mut behind = escaped.to_vec();
                match behind.last_mut() {
                    Some(last) => *last += 1,
                    None => return Err(damaged(Table::Past, "a key is too short")),
                }
                Ok(behind)
            })?;
            return Ok(None);
        }
        if made > at {
            self.pass(|| Ok(past_key(&unescape(&escaped)?, at).to_vec()))?;
            return Ok(None);
        }
        self.steps = 0;
        self.done = escaped.clone();
        let past: Superseded = decode(Table::Past, value)?;
        if past.end > at || planted!(IgnoreVersionEnd) {
            return Ok(Some((unescape(&escaped)?, past.stored)));
        }
        Ok(None)
    }
}

impl Iterator for PastAt<'_> {
    type Item = Result<(Bytes, Stored), StorageFailed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let pair = match self.pairs.next()? {
                Ok(pair) => pair,
                Err(failed) => return Some(Err(failed)),
            };
            if let Some(found) = self.step(&pair.0, pair.1).transpose() {
                return Some(found);
            }
        }
    }
}
