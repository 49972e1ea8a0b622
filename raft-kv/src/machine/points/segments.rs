//! Which keys changed since a point, in their order, whatever was compacted since.
//!
//! Each point's revision has a segment of [`Table::Changed`]: the keys that were changed after it, as
//! long as it was the newest. What changed since a point is in its segment and all later ones. A
//! removed point's segment is swept: versions that only it could see are removed, and its keys go to
//! the segment of the point before it, or nowhere. So a segment must hold every key that was
//! changed between its point and the next, and none that was not changed since its point.
//!
//! What is here is local: members sweep when they have time. It must never decide what an entry does
//! but through keys that really differ, which every member finds alike.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bytes::Bytes;

use crate::codec::Wire;
use crate::error::StorageFailed;
use crate::limits::COMPACT_STEP_KEYS;
use crate::machine::draft::Draft;
use crate::machine::format::{Held, damaged, decode, from_ordered, ordered};
use crate::machine::store::{Batch, Pairs, Read, Table};
use crate::machine::versions::superseded_at;
use crate::types::{KeyRange, Revision};

use super::records::pinned;

/// Keys of segments: behind it the revision and the changed key.
const KEYS: u8 = b'k';
/// Segments to be swept: behind it the revision; the value is the key to go on behind, so that no
/// step passes over what earlier ones removed.
const GIVEN_UP: u8 = b'g';

/// The key that says that a user key was changed after `pin`.
pub fn changed_key(pin: Revision, key: &[u8]) -> Bytes {
    [&[KEYS], &ordered(pin)[..], key].concat().into()
}

fn given_up_key(pin: Revision) -> Bytes {
    [&[GIVEN_UP], &ordered(pin)[..]].concat().into()
}

/// The revision of a segment, from one of its keys.
fn segment_of(key: &[u8]) -> Result<Revision, StorageFailed> {
    from_ordered(Table::Changed, key.get(1..9).ok_or_else(|| damaged(Table::Changed, "a key is too short"))?)
}

/// No point is at this revision any more: what only it could see is to be removed.
pub(super) fn give_up(draft: &mut Draft, pin: Revision) {
    draft.overlay.put(Table::Changed, given_up_key(pin), &None::<Bytes>);
}

/// A point is at this revision (again).
pub(super) fn revive(draft: &mut Draft, pin: Revision) {
    draft.overlay.remove(Table::Changed, given_up_key(pin));
}

/// The keys of a range that were changed since a revision that has a segment, ascending, each once.
pub struct ChangedSince<'a> {
    segments: Vec<Pairs<'a>>,
    /// The next key of each segment that has one.
    heads: BinaryHeap<Reverse<(Bytes, usize)>>,
    last: Option<Bytes>,
}

impl<'a> ChangedSince<'a> {
    /// Starts behind `after`, or at the front.
    pub fn new(
        view: &'a dyn Read,
        pin: Revision,
        range: &KeyRange,
        after: Option<&[u8]>,
    ) -> Result<Self, StorageFailed> {
        let from = match after {
            Some(after) if after >= &range.key[..] => [after, b"\0"].concat(),
            _ => range.key.to_vec(),
        };
        let upper = range.upper();
        let mut all = Self { segments: Vec::new(), heads: BinaryHeap::new(), last: None };
        let mut next = pin;
        loop {
            let first = view.scan(Table::Changed, &changed_key(next, b""), Some(&[KEYS + 1])).next();
            let Some((key, _)) = first.transpose()? else { return Ok(all) };
            let segment = segment_of(&key)?;
            next = segment + 1;
            let to =
                upper.as_ref().map_or_else(|| changed_key(next, b""), |upper| changed_key(segment, upper));
            all.segments.push(view.scan(Table::Changed, &changed_key(segment, &from), Some(&to)));
            all.advance(all.segments.len() - 1)?;
        }
    }

    fn advance(&mut self, segment: usize) -> Result<(), StorageFailed> {
        if let Some(pair) = self.segments[segment].next() {
            self.heads.push(Reverse((pair?.0.slice(9..), segment)));
        }
        Ok(())
    }
}

impl Iterator for ChangedSince<'_> {
    type Item = Result<Bytes, StorageFailed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Reverse((key, segment)) = self.heads.pop()?;
            if let Err(failed) = self.advance(segment) {
                return Some(Err(failed));
            }
            if self.last.as_ref() != Some(&key) {
                self.last = Some(key.clone());
                return Some(Ok(key));
            }
        }
    }
}

/// Whether there is anything to sweep.
pub fn sweep_waits(view: &dyn Read) -> Result<bool, StorageFailed> {
    Ok(view.scan(Table::Changed, &[GIVEN_UP], Some(&[GIVEN_UP + 1])).next().transpose()?.is_some())
}

/// The next step of sweeping segments whose points were removed, and whether there are more. `None`
/// where nothing is left.
pub fn sweep(
    view: &dyn Read,
    compacted: Revision,
    pins: &[Revision],
) -> Result<Option<(Batch, bool)>, StorageFailed> {
    let marks = view.scan(Table::Changed, &[GIVEN_UP], Some(&[GIVEN_UP + 1])).next();
    let Some((mark, swept)) = marks.transpose()? else { return Ok(None) };
    let segment = segment_of(&mark)?;
    debug_assert!(!pins.contains(&segment), "a point that came back has no mark");
    // The newest point before it takes its keys over.
    let heir = pins.partition_point(|pin| *pin < segment).checked_sub(1).map(|at| pins[at]);
    let mut swept: Option<Bytes> = decode(Table::Changed, swept)?;
    let mut writes = Vec::new();
    let from = swept.as_ref().map_or_else(Vec::new, |swept| [&swept[..], b"\0"].concat());
    let (from, to) = (changed_key(segment, &from), changed_key(segment + 1, b""));
    for pair in view.scan(Table::Changed, &from, Some(&to)) {
        if writes.len() >= COMPACT_STEP_KEYS {
            writes.push((Table::Changed, mark, Some(swept.to_bytes())));
            return Ok(Some((Batch { writes }, true)));
        }
        let (changed, _) = pair?;
        let key = changed.slice(9..);
        if let Some((past, superseded)) = superseded_at(view, &key, segment)?
            && superseded.end <= compacted
            && !pinned(pins, superseded.stored.mod_revision, superseded.end)
        {
            if matches!(superseded.stored.value, Held::Apart(_)) {
                writes.push((Table::Values, past.clone(), None));
            }
            writes.push((Table::Past, past, None));
        }
        if let Some(heir) = heir.filter(|_| !crate::planted!(DropSegment)) {
            writes.push((Table::Changed, changed_key(heir, &key), Some(().to_bytes())));
        }
        writes.push((Table::Changed, changed, None));
        swept = Some(key);
    }
    writes.push((Table::Changed, mark.clone(), None));
    let another = view.scan(Table::Changed, &[&mark[..], b"\0"].concat(), Some(&[GIVEN_UP + 1])).next();
    Ok(Some((Batch { writes }, another.transpose()?.is_some())))
}
