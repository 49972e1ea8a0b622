//! The events of past revisions, for watchers that catch up.
//!
//! In order and without a gap; below the compacted revision there is nothing. A revision is whole, but
//! for one of a very large rollback where the reader takes it in parts.

use bytes::Bytes;

use super::format::{Logged, Stored, Superseded, damaged, decode, load, log_key, past_key, split_log};
use super::stop::Stop;
use super::store::{Read, Table};
use super::versions::version_made;
use crate::error::{Refusal, StorageFailed};
use crate::types::{Change, Event, EventKind, KeyValue, Revision};

/// A part of history: whole revisions, or the first records of one that is too large to be held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum History {
    /// Whole revisions, ascending.
    Whole(Vec<Change>),
    /// Some of one revision's events, and the part of its record to go on with.
    Part(Change, u32),
}

/// The changes of `from..=to`, as far as they were made, up to `max_bytes` of keys and values but
/// at least one. An event at the compacted revision itself has no `prev`: it is gone.
pub fn history(
    view: &dyn Read,
    compacted: Revision,
    from: Revision,
    to: Revision,
    max_bytes: usize,
) -> Result<Vec<Change>, Stop> {
    match scan(view, compacted, (from, 0), to, max_bytes, false)? {
        History::Whole(changes) => Ok(changes),
        History::Part(..) => unreachable!("no part was asked for"),
    }
}

/// What part `part` of a revision's record says happened to which keys; `None` behind the last.
pub fn keys_changed(
    view: &dyn Read,
    revision: Revision,
    part: u32,
) -> Result<Option<Vec<(EventKind, Bytes)>>, StorageFailed> {
    let logged: Option<Vec<Logged>> = load(view, Table::Log, &log_key(revision, part))?;
    Ok(logged.map(|logged| logged.into_iter().map(|one| (one.kind, one.key)).collect()))
}

/// As [`history`], but of a first revision that has more than `max_bytes` in several records only as many
/// of these as fit, or one. A revision may be gone on with from its record `part`.
pub fn history_in_parts(
    view: &dyn Read,
    compacted: Revision,
    from: (Revision, u32),
    to: Revision,
    max_bytes: usize,
) -> Result<History, Stop> {
    scan(view, compacted, from, to, max_bytes, true)
}

fn scan(
    view: &dyn Read,
    compacted: Revision,
    (from, part): (Revision, u32),
    to: Revision,
    max_bytes: usize,
    in_parts: bool,
) -> Result<History, Stop> {
    if from < compacted {
        return Err(Refusal::Compacted { requested: from, compacted }.into());
    }
    let mut changes: Vec<Change> = Vec::new();
    let mut bytes = 0;
    if to < from || to <= 0 {
        return Ok(History::Whole(changes));
    }
    let end = log_key(to.saturating_add(1), 0);
    for pair in view.scan(Table::Log, &log_key(from.max(0), part), Some(&end)) {
        let (key, value) = pair?;
        let (revision, part) = split_log(&key)?;
        let begun = changes.last().is_some_and(|change| change.revision == revision);
        if in_parts && begun && bytes >= max_bytes && changes.len() == 1 {
            let change = changes.pop().expect("it was just seen");
            return Ok(History::Part(change, part));
        }
        let logged: Vec<Logged> = decode(Table::Log, value)?;
        let mut events = Vec::with_capacity(logged.len());
        for one in logged {
            let event = event(view, compacted, revision, one)?;
            bytes += event.kv.key.len() + event.kv.value.len();
            bytes += event.prev.as_ref().map_or(0, |prev| prev.key.len() + prev.value.len());
            events.push(event);
        }
        if bytes > max_bytes && changes.first().is_some_and(|first| first.revision != revision) {
            // All of it or none.
            changes.retain(|change| change.revision != revision);
            break;
        }
        match changes.last_mut() {
            Some(change) if begun => change.events.extend(events),
            _ => changes.push(Change { revision, events }),
        }
    }
    Ok(History::Whole(changes))
}

fn event(
    view: &dyn Read,
    compacted: Revision,
    revision: Revision,
    logged: Logged,
) -> Result<Event, StorageFailed> {
    let Logged { kind, key, superseded } = logged;
    let prev = if superseded == 0 || revision <= compacted {
        None
    } else {
        let past: Option<Superseded> = load(view, Table::Past, &past_key(&key, superseded))?;
        Some(known(past.map(|past| past.stored))?.load(view, key.clone())?)
    };
    let kv = match kind {
        EventKind::Put => known(version_made(view, &key, revision)?)?.load(view, key)?,
        EventKind::Delete => {
            KeyValue { key, mod_revision: revision, value: Bytes::new(), ..KeyValue::default() }
        }
    };
    Ok(Event { kind, kv, prev })
}

fn known(version: Option<Stored>) -> Result<Stored, StorageFailed> {
    version.ok_or_else(|| damaged(Table::Past, "a version that can still be read is missing"))
}
