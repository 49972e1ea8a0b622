//! What takes more than one batch on the store: a rollback, and a point at an older revision.
//!
//! Both go through keys in a fixed order, so many in a step, and write how far they are with what
//! they did. So a crash goes on where the last batch ended, with the same bytes, and memory is
//! bounded however much differs. A rollback's versions are of the next revision, which is not current
//! before the last step: until then nobody may see them, and every read of the newest state is one at
//! the current revision, see [`half`]. Nothing else may be applied or removed in between.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::diff::{Differing, differing, lease_back};
use super::records::{self, admit, known, pin_exists, pins};
use super::segments::{ChangedSince, changed_key};
use crate::codec::wire_struct;
use crate::error::{Refusal, StorageFailed};
use crate::limits::ROLLBACK_STEP_BYTES;
use crate::machine::command::Answer;
use crate::machine::draft::Draft;
use crate::machine::format::{
    Logged, Stored, Superseded, decode, load, load_meta, log_key, meta, past_key, split_log,
};
use crate::machine::lease;
use crate::machine::quota::Used;
use crate::machine::stop::Stop;
use crate::machine::store::{Read, Table};
use crate::machine::versions::version_at;
use crate::planted;
use crate::types::{
    Index, LeaseId, PointChange, PointOrigin, PointReply, Revision, RollbackPoint, RolledBack, point_range,
    undo_name,
};

/// How far an entry that takes several batches has come.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Begun {
    /// The entry.
    pub index: Index,
    /// A rollback: everything up to this key is done. A point: the key in the log to go on with.
    pub place: Bytes,
    /// Keys compared.
    pub compared: u64,
    /// Events made.
    pub events: u64,
    /// Records of the new revision written.
    pub parts: u32,
    /// What the live keys take after what is done.
    pub used: Used,
}
wire_struct!(Begun { index, place, compared, events, parts, used });

/// What is half done in this state, if anything: only after a crash, or while it is being done.
pub fn begun(view: &dyn Read) -> Result<Option<Begun>, StorageFailed> {
    load(view, Table::Meta, meta::HALF)
}

/// Whether versions may lie here that are not current yet: then the newest state is to be read as of
/// the current revision.
pub fn half(view: &dyn Read) -> Result<bool, StorageFailed> {
    if planted!(ReadHalfRollback) {
        return Ok(false);
    }
    Ok(view.get(Table::Meta, meta::HALF)?.is_some())
}

/// One step of the entry `index`. `None` while more are to follow: what was written then says how
/// far it is. A refusal has changed nothing, and comes from the first step only.
pub fn step(draft: &mut Draft, change: &PointChange, index: Index) -> Result<Option<Answer>, Stop> {
    let begun = begun(draft.view())?;
    assert!(begun.as_ref().is_none_or(|begun| begun.index == index), "another entry is half done");
    let first = begun.is_none();
    let mut begun = begun.unwrap_or(Begun { index, used: draft.used, ..Begun::default() });
    if !planted!(QuotaForgetsSteps) {
        draft.used = begun.used;
    }
    if planted!(RecountRollback) {
        begun.parts = 0;
    }
    let reply = match change {
        PointChange::Rollback { point, .. } => {
            let point = known(draft.view(), point)?;
            put_back(draft, change, &point, &mut begun)?.map(PointReply::RolledBack)
        }
        PointChange::Create { at: Some(at), .. } => {
            if first {
                admit(draft, change)?;
            }
            let done = find_changed(draft, *at, &mut begun)?;
            done.then(|| place_point(draft, change, *at)).transpose()?.map(PointReply::Created)
        }
        _ => unreachable!("any other change fits one batch"),
    };
    begun.used = draft.used;
    match &reply {
        None => draft.overlay.put(Table::Meta, meta::HALF, &begun),
        Some(_) if !first => draft.overlay.remove(Table::Meta, meta::HALF),
        Some(_) => {}
    }
    Ok(reply.map(Answer::Point))
}

/// One step of a rollback.
fn put_back(
    draft: &mut Draft,
    change: &PointChange,
    point: &RollbackPoint,
    begun: &mut Begun,
) -> Result<Option<RolledBack>, Stop> {
    let PointChange::Rollback { prefix, author, now, .. } = change else {
        unreachable!("only a rollback puts back");
    };
    let range = point_range(prefix.as_ref());
    let before = draft.revision;
    // What the rollback changes is what changed since the point that it can be undone with.
    draft.pin(before);
    let after = (!begun.place.is_empty()).then_some(&begun.place[..]);
    let (keys, mut more) =
        next_keys(ChangedSince::new(draft.view(), point.revision, &range, after)?, draft.step_keys)?;
    let (many, mut bytes) = (keys.len(), 0);
    for (at, key) in keys.into_iter().enumerate() {
        begun.place = key.clone();
        begun.compared += 1;
        if let Some(found) = differing(draft.view(), &key, point.revision, None)? {
            bytes += put_back_one(draft, key, found)?;
        }
        if bytes >= ROLLBACK_STEP_BYTES && at + 1 < many {
            more = true;
            break;
        }
    }
    let events = draft.seal_part(begun.parts, more || begun.parts > 0);
    if events > 0 {
        begun.events += events;
        begun.parts += 1;
    }
    if more {
        return Ok(None);
    }
    let mut done = RolledBack {
        to: point.revision,
        revision: before,
        compared: begun.compared,
        events: begun.events,
        undo: None,
    };
    if begun.events == 0 {
        draft.repin(pins(draft.view())?);
        return Ok(Some(done));
    }
    draft.seal_parts();
    if draft.changes.is_empty() {
        draft.large.push(draft.revision);
    }
    done.revision = draft.revision;
    done.undo = Some(undo_name(draft.revision));
    let undo = RollbackPoint {
        name: undo_name(draft.revision),
        revision: before,
        created: *now,
        expires: None,
        author: author.clone(),
        comment: String::new(),
        origin: PointOrigin::Rollback { to: point.name.clone(), revision: draft.revision },
    };
    records::put_undo(draft, undo)?;
    Ok(Some(done))
}

/// As many keys as one step looks at, and whether there are more.
fn next_keys(changed: ChangedSince, most: usize) -> Result<(Vec<Bytes>, bool), StorageFailed> {
    let (mut keys, mut bytes) = (Vec::new(), 0);
    for key in changed {
        if keys.len() >= most || bytes >= ROLLBACK_STEP_BYTES {
            return Ok((keys, true));
        }
        let key = key?;
        bytes += key.len();
        keys.push(key);
    }
    Ok((keys, false))
}

/// Makes a key as it was, and says how many bytes that took.
fn put_back_one(draft: &mut Draft, key: Bytes, found: Differing) -> Result<usize, Stop> {
    let len = |version: &Option<Stored>| version.as_ref().map_or(0, Stored::value_len);
    let bytes = key.len() + len(&found.then) + len(&found.now);
    match (found.then, found.now) {
        (Some(then), now) => {
            let value = then.value(draft.view(), &key)?;
            let mut lease = lease_back(draft.view(), &then)?;
            if lease != 0 && !planted!(ReviveLease) {
                let same = now.as_ref().filter(|now| now.lease == lease).map(Stored::value_len);
                match lease::check_room(draft, lease, &key, value.len(), same) {
                    // The key matters more than its end: it comes back without one.
                    Err(Stop::Refused(_)) => lease = 0,
                    other => other?,
                }
            }
            draft.put(key, value, lease, now)?;
        }
        (None, Some(_)) if planted!(KeepCreatedSince) => {}
        (None, Some(now)) => drop(draft.delete(key, now)?),
        (None, None) => unreachable!("a key that exists nowhere does not differ"),
    }
    Ok(bytes)
}

/// One step of gathering which keys were changed between an older revision and the next point, or
/// now; whether it was the last.
fn find_changed(draft: &mut Draft, at: Revision, begun: &mut Begun) -> Result<bool, Stop> {
    if pin_exists(draft.view(), at)? {
        return Ok(true);
    }
    let newer = pins(draft.view())?.into_iter().find(|pin| *pin > at);
    let end = log_key(newer.unwrap_or(draft.revision) + 1, 0);
    let from = if begun.place.is_empty() { log_key(at + 1, 0) } else { begun.place.clone() };
    let mut found: Vec<Bytes> = Vec::new();
    let mut bytes = 0;
    let mut next = None;
    for pair in draft.view().scan(Table::Log, &from, Some(&end)) {
        let (key, value) = pair?;
        if found.len() >= draft.step_keys || bytes >= ROLLBACK_STEP_BYTES {
            next = Some(key);
            break;
        }
        for change in decode::<Vec<Logged>>(Table::Log, value)? {
            bytes += change.key.len();
            found.push(changed_key(at, &change.key));
        }
    }
    for key in found {
        draft.overlay.put(Table::Changed, key, &());
    }
    let Some(next) = next else { return Ok(true) };
    begun.place = next;
    Ok(false)
}

/// Makes the point whose changes since are gathered.
fn place_point(draft: &mut Draft, change: &PointChange, at: Revision) -> Result<RollbackPoint, Stop> {
    let PointChange::Create { name, expires, author, comment, now, .. } = change else {
        return Err(Refusal::invalid("command", "only a creation makes a point").into());
    };
    let point = RollbackPoint {
        name: name.clone(),
        revision: at,
        created: *now,
        expires: *expires,
        author: author.clone(),
        comment: comment.clone(),
        origin: PointOrigin::Asked,
    };
    records::put(draft, &point);
    Ok(point)
}

/// The keys that end with a lease, as of the current revision, while a rollback is half done: some
/// are taken off their lease already, others put on.
pub fn keys_of_lease(
    view: &dyn Read,
    id: LeaseId,
    attached: Vec<Bytes>,
) -> Result<Vec<Bytes>, StorageFailed> {
    let current: Revision = load_meta(view, meta::REVISION)?;
    let mut keys = BTreeSet::new();
    for key in attached {
        if version_at(view, &key, Some(current))?.is_some_and(|version| version.lease == id) {
            keys.insert(key);
        }
    }
    let from = log_key(current + 1, 0);
    for pair in view.scan(Table::Log, &from, Some(&log_key(current + 2, 0))) {
        let (record, value) = pair?;
        debug_assert!(split_log(&record).is_ok());
        for change in decode::<Vec<Logged>>(Table::Log, value)? {
            let past: Option<Superseded> =
                load(view, Table::Past, &past_key(&change.key, change.superseded))?;
            if past.is_some_and(|past| past.stored.lease == id) {
                keys.insert(change.key);
            }
        }
    }
    Ok(keys.into_iter().collect())
}
