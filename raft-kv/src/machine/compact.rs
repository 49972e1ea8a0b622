//! Compaction in two parts: the mark moves at once, by an entry, and with it what can be read;
//! what became unreadable is removed in small steps, by each member for itself.
//!
//! A step must never change what can be read or hashed. Its cost is that of the garbage it
//! removes: it walks the revisions since the last one, not the keys.

use bytes::Bytes;

use super::command::Answer;
use super::draft::Draft;
use super::format::{
    Held, Logged, Superseded, damaged, decode, from_ordered, load, load_meta, meta, ordered, past_key,
};
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
/// of that revision itself the versions that its first `done` changes superseded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    /// The revision to go on with.
    pub revision: Revision,
    /// Its changes that are dealt with.
    pub done: u32,
}
wire_struct!(Collected { revision, done });

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
    let start: Collected = load_meta(view, meta::COLLECTED)?;
    if compacted <= 0 {
        return Ok(None);
    }
    let mut mark = start.clone();
    let mut writes: Vec<(Table, Bytes, Option<Bytes>)> = Vec::new();
    let mut more = false;
    let to = ordered(compacted + 1);
    for pair in view.scan(Table::Log, &ordered(start.revision), Some(&to)) {
        if writes.len() >= COMPACT_STEP_KEYS {
            more = true;
            break;
        }
        let (key, value) = pair?;
        let revision = from_ordered(Table::Log, &key)?;
        let done = if revision == start.revision { start.done as usize } else { 0 };
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
                let key = past_key(&change.key, change.superseded);
                let past: Option<Superseded> = load(view, Table::Past, &key)?;
                // The value goes with its version, where it lies apart.
                if past.is_some_and(|past| matches!(past.stored.value, Held::Apart(_))) {
                    writes.push((Table::Values, key.clone(), None));
                }
                writes.push((Table::Past, key, None));
            }
            if planted!(CollectLiveValue) {
                writes.push((Table::Values, past_key(&change.key, revision), None));
            }
            if planted!(CompactNewestVersion) {
                writes.push((Table::Past, past_key(&change.key, revision), None));
            }
        }
        if at < logged.len() {
            mark = Collected { revision, done: at as u32 };
            more = true;
            break;
        }
        // The record of the mark's own revision stays: it can still be watched.
        if revision < compacted {
            writes.push((Table::Log, key, None));
            mark = Collected { revision: revision + 1, done: 0 };
        } else {
            mark = Collected { revision, done: at as u32 };
        }
    }
    if mark == start {
        return Ok(None);
    }
    writes.push((Table::Meta, Bytes::from_static(meta::COLLECTED), Some(mark.to_bytes())));
    Ok(Some((Batch { writes }, more)))
}
