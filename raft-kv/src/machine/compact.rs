//! Compaction in two parts: the mark moves at once, by an entry, and with it what can be read;
//! what became unreadable is removed in small steps, by each member for itself.
//!
//! A step must never change what can be read or hashed; what a rollback point can see stays. Its
//! cost is that of the garbage it removes: it walks the revisions since the last one, not the keys.

use bytes::Bytes;

use super::command::Answer;
use super::draft::Draft;
use super::format::{
    Held, Logged, Superseded, damaged, decode, load, load_meta, log_key, meta, past_key, split_log,
};
use super::points::{half, pinned, pins, sweep, sweep_waits};
use super::stop::Stop;
use super::store::{Batch, Read, Table};
use crate::codec::{Wire, wire_struct};
use crate::error::{Refusal, StorageFailed};
use crate::limits::COMPACT_STEP_KEYS;
use crate::planted;
use crate::types::Revision;

/// Before the first compaction. etcd's own value: revision 0 can still be compacted, once.
pub const NEVER: Revision = -1;

/// Everything behind this place is gone: the revisions below `revision` with their records, and
/// of that revision itself the versions that its changes before this place superseded; but what a
/// point can see stays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    /// The revision to go on with.
    pub revision: Revision,
    /// The record of it to go on with.
    pub part: u32,
    /// That record's changes that are dealt with.
    pub done: u32,
}
wire_struct!(Collected { revision, part, done });

/// Moves the mark.
pub fn compact(draft: &mut Draft, revision: Revision) -> Result<Answer, Stop> {
    if revision <= draft.compacted {
        return Err(Refusal::Compacted { requested: revision, compacted: draft.compacted }.into());
    }
    if revision > draft.revision {
        return Err(Refusal::FutureRevision { requested: revision, current: draft.revision }.into());
    }
    draft.compacted = revision;
    draft.overlay.put(Table::Meta, meta::COMPACTED, &revision);
    Ok(Answer::Done)
}

/// What the next step removes, and whether there is more after it. `None` where nothing is left.
pub fn step(view: &dyn Read, compacted: Revision) -> Result<Option<(Batch, bool)>, StorageFailed> {
    // An entry that is half done must find again what it has seen.
    if half(view)? {
        return Ok(None);
    }
    let mut pinned_revisions = None;
    if compacted > 0
        && let Some((batch, more)) = behind_the_mark(view, compacted, &mut pinned_revisions)?
    {
        return Ok(Some((batch, more || sweep_waits(view)?)));
    }
    let pins = pinned_revisions.map_or_else(|| pins(view), Ok)?;
    sweep(view, compacted, &pins)
}

/// The next step along the revisions up to the mark.
fn behind_the_mark(
    view: &dyn Read,
    compacted: Revision,
    pinned_revisions: &mut Option<Vec<Revision>>,
) -> Result<Option<(Batch, bool)>, StorageFailed> {
    let start: Collected = load_meta(view, meta::COLLECTED)?;
    let mut mark = start.clone();
    let mut writes: Vec<(Table, Bytes, Option<Bytes>)> = Vec::new();
    let mut more = false;
    let (from, to) = (log_key(start.revision, start.part), log_key(compacted + 1, 0));
    for pair in view.scan(Table::Log, &from, Some(&to)) {
        if writes.len() >= COMPACT_STEP_KEYS {
            more = true;
            break;
        }
        let (key, value) = pair?;
        let (revision, part) = split_log(&key)?;
        let done = if (revision, part) == (start.revision, start.part) { start.done as usize } else { 0 };
        let logged: Vec<Logged> = decode(Table::Log, value)?;
        if done > logged.len() {
            return Err(damaged(Table::Meta, "more changes of a revision are collected than it has"));
        }
        let mut at = done;
        for change in &logged[done..] {
            if writes.len() >= COMPACT_STEP_KEYS {
                break;
            }
            at += 1;
            if change.superseded != 0 {
                if pinned_revisions.is_none() {
                    *pinned_revisions = Some(pins(view)?);
                }
                let pins = pinned_revisions.as_deref().unwrap_or_default();
                if !pinned(pins, change.superseded, revision) {
                    remove_version(view, past_key(&change.key, change.superseded), &mut writes)?;
                }
            }
            if planted!(CollectLiveValue) {
                writes.push((Table::Values, past_key(&change.key, revision), None));
            }
            if planted!(CompactNewestVersion) {
                writes.push((Table::Past, past_key(&change.key, revision), None));
            }
        }
        if at < logged.len() {
            mark = Collected { revision, part, done: at as u32 };
            more = true;
            break;
        }
        // The records of the mark's own revision stay: it can still be watched.
        if revision < compacted {
            writes.push((Table::Log, key, None));
            mark = Collected { revision, part: part + 1, done: 0 };
        } else {
            mark = Collected { revision, part, done: at as u32 };
        }
    }
    if mark.revision < compacted && !more {
        mark = Collected { revision: compacted, part: 0, done: 0 };
    }
    if mark == start {
        return Ok(None);
    }
    writes.push((Table::Meta, Bytes::from_static(meta::COLLECTED), Some(mark.to_bytes())));
    Ok(Some((Batch { writes }, more)))
}

/// Removes a superseded version, and its value with it where that lies apart.
fn remove_version(
    view: &dyn Read,
    key: Bytes,
    writes: &mut Vec<(Table, Bytes, Option<Bytes>)>,
) -> Result<(), StorageFailed> {
    let past: Option<Superseded> = load(view, Table::Past, &key)?;
    if past.is_some_and(|past| matches!(past.stored.value, Held::Apart(_))) {
        writes.push((Table::Values, key.clone(), None));
    }
    writes.push((Table::Past, key, None));
    Ok(())
}
