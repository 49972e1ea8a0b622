//! The records of points, and the one rule of what they keep.
//!
//! Made and removed in constant time. A removed point's versions are not looked for here: its
//! segment is marked, and [swept](super::sweep) by each member in steps.

use bytes::Bytes;

use super::segments;
use crate::error::{Refusal, StorageFailed};
use crate::limits::{MAX_POINTS, MAX_UNDO_POINTS};
use crate::machine::draft::Draft;
use crate::machine::format::{damaged, decode, from_ordered, load, ordered};
use crate::machine::range::check_revision;
use crate::machine::stop::Stop;
use crate::machine::store::{Read, Table};
use crate::planted;
use crate::types::{PointChange, PointOrigin, Revision, RollbackPoint, ScheduleStatus};

const NAMED: &[u8] = b"name/";
const PINS: &[u8] = b"pin/";
const SCHEDULES: &[u8] = b"schedule/";

fn named_key(name: &str) -> Bytes {
    [NAMED, name.as_bytes()].concat().into()
}

/// The key that says that a point of this name is at this revision.
fn pin_key(revision: Revision, name: &str) -> Bytes {
    [PINS, &ordered(revision), name.as_bytes()].concat().into()
}

pub(super) fn schedule_key(name: &str) -> Bytes {
    [SCHEDULES, name.as_bytes()].concat().into()
}

/// Just behind every key that begins with `prefix`, which ends in a slash.
fn behind(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    *end.last_mut().expect("no prefix is empty") += 1;
    end
}

/// The point with that name.
pub fn point(view: &dyn Read, name: &str) -> Result<Option<RollbackPoint>, StorageFailed> {
    load(view, Table::Points, &named_key(name))
}

/// As [`point`], refused where there is none.
pub(super) fn known(view: &dyn Read, name: &str) -> Result<RollbackPoint, Stop> {
    point(view, name)?.ok_or_else(|| {
        let why = format!("no point has the name {name:?}; `raft-kv rollback-point ls` lists them");
        Refusal::invalid("rollback point", why).into()
    })
}

/// Every point, by name.
pub fn list(view: &dyn Read) -> Result<Vec<RollbackPoint>, StorageFailed> {
    view.scan(Table::Points, NAMED, Some(&behind(NAMED))).map(|pair| decode(Table::Points, pair?.1)).collect()
}

/// Every schedule, by name.
pub fn schedules(view: &dyn Read) -> Result<Vec<ScheduleStatus>, StorageFailed> {
    view.scan(Table::Points, SCHEDULES, Some(&behind(SCHEDULES)))
        .map(|pair| decode(Table::Points, pair?.1))
        .collect()
}

/// The revisions that points name, ascending, each once.
pub fn pins(view: &dyn Read) -> Result<Vec<Revision>, StorageFailed> {
    let mut pins = Vec::new();
    for pair in view.scan(Table::Points, PINS, Some(&behind(PINS))) {
        let (key, _) = pair?;
        let revision = key
            .get(PINS.len()..PINS.len() + 8)
            .ok_or_else(|| damaged(Table::Points, "a key is too short"))?;
        let revision = from_ordered(Table::Points, revision)?;
        if pins.last() != Some(&revision) {
            pins.push(revision);
        }
    }
    Ok(pins)
}

/// Whether a point names this revision.
pub fn pin_exists(view: &dyn Read, revision: Revision) -> Result<bool, StorageFailed> {
    if revision <= 0 {
        return Ok(false);
    }
    let (from, to) = (pin_key(revision, ""), pin_key(revision + 1, ""));
    Ok(view.scan(Table::Points, &from, Some(&to)).next().transpose()?.is_some())
}

/// Whether any of `pins` sees the version that was made at `made` and ended at `end`: then it stays,
/// however far the history is compacted.
pub fn pinned(pins: &[Revision], made: Revision, end: Revision) -> bool {
    if planted!(CompactIgnoresPoints) {
        return false;
    }
    let after = if planted!(PinOffByOne) {
        pins.partition_point(|pin| *pin <= made)
    } else {
        pins.partition_point(|pin| *pin < made)
    };
    pins.get(after).is_some_and(|pin| *pin < end)
}

/// Makes a point as asked for. What was changed since its revision is indexed already.
pub(super) fn create(draft: &mut Draft, change: &PointChange) -> Result<RollbackPoint, Stop> {
    let PointChange::Create { name, at, expires, author, comment, now } = change else {
        unreachable!("only a creation creates");
    };
    if at.is_some() && at != &Some(draft.revision) && !pin_exists(draft.view(), at.unwrap_or(0))? {
        // Its change index takes steps of its own.
        let why = "a point at an older revision stands with other commands in one entry; it must go alone";
        return Err(Refusal::invalid("command", why).into());
    }
    admit(draft, change)?;
    let point = RollbackPoint {
        name: name.clone(),
        revision: at.unwrap_or(draft.revision),
        created: *now,
        expires: *expires,
        author: author.clone(),
        comment: comment.clone(),
        origin: PointOrigin::Asked,
    };
    put(draft, &point);
    Ok(point)
}

/// Refuses a creation that the state does not allow.
pub(super) fn admit(draft: &Draft, change: &PointChange) -> Result<(), Stop> {
    let PointChange::Create { name, at, .. } = change else {
        unreachable!("only a creation creates");
    };
    if let Some(at) = *at {
        check_revision(draft.view(), at, draft.revision, draft.compacted)?;
    }
    if point(draft.view(), name)?.is_some() {
        let why = format!("a point has the name {name:?} already; remove that first, or choose another");
        return Err(Refusal::invalid("point name", why).into());
    }
    if !has_room(draft.view())? {
        let why = format!("there are {MAX_POINTS}, which is the limit; remove some first");
        return Err(Refusal::invalid("rollback points", why).into());
    }
    Ok(())
}

/// Whether one more point may be made, those not counted that rollbacks make.
pub(super) fn has_room(view: &dyn Read) -> Result<bool, StorageFailed> {
    let counted = |point: &&RollbackPoint| !matches!(point.origin, PointOrigin::Rollback { .. });
    Ok(list(view)?.iter().filter(counted).count() < MAX_POINTS)
}

/// Writes a point's records.
pub(super) fn put(draft: &mut Draft, point: &RollbackPoint) {
    draft.overlay.put(Table::Points, named_key(&point.name), point);
    draft.overlay.put(Table::Points, pin_key(point.revision, &point.name), &());
    segments::revive(draft, point.revision);
    draft.pin(point.revision);
}

/// Removes a point.
pub(super) fn remove(draft: &mut Draft, name: &str) -> Result<RollbackPoint, Stop> {
    let point = known(draft.view(), name)?;
    draft.overlay.remove(Table::Points, named_key(name));
    draft.overlay.remove(Table::Points, pin_key(point.revision, name));
    if !pin_exists(draft.view(), point.revision)? {
        segments::give_up(draft, point.revision);
        draft.unpin(point.revision);
    }
    Ok(point)
}

/// Makes the point that a rollback which made `revision` can be undone with, of the state before it;
/// of too many the oldest goes.
pub(super) fn put_undo(draft: &mut Draft, point: RollbackPoint) -> Result<(), Stop> {
    let undone = |point: &RollbackPoint| match point.origin {
        PointOrigin::Rollback { revision, .. } => Some(revision),
        PointOrigin::Asked | PointOrigin::Schedule { .. } => None,
    };
    let mut older: Vec<(Revision, String)> =
        list(draft.view())?.into_iter().filter_map(|point| Some((undone(&point)?, point.name))).collect();
    older.sort();
    let too_many = (older.len() + 1).saturating_sub(MAX_UNDO_POINTS);
    for (_, name) in older.into_iter().take(too_many) {
        remove(draft, &name)?;
    }
    put(draft, &point);
    Ok(())
}
