//! The events of past revisions, for watchers that catch up.
//!
//! Whole revisions only, in order and without a gap; below the compacted one there is nothing.

use bytes::Bytes;

use super::format::{Logged, Stored, Superseded, damaged, decode, load, log_key, past_key, split_log};
use super::stop::Stop;
use super::store::{Read, Table};
use super::versions::version_made;
use crate::error::{Refusal, StorageFailed};
use crate::types::{Change, Event, EventKind, KeyValue, Revision};

/// The changes of `from..=to`, as far as they were made, up to `max_bytes` of keys and values but
/// at least one. An event at the compacted revision itself has no `prev`: it is gone.
pub fn history(
    view: &dyn Read,
    compacted: Revision,
    from: Revision,
    to: Revision,
    max_bytes: usize,
) -> Result<Vec<Change>, Stop> {
    if from < compacted {
        return Err(Refusal::Compacted { requested: from, compacted }.into());
    }
    let mut changes: Vec<Change> = Vec::new();
    let mut bytes = 0;
    if to < from || to <= 0 {
        return Ok(changes);
    }
    let end = log_key(to.saturating_add(1), 0);
    for pair in view.scan(Table::Log, &log_key(from.max(0), 0), Some(&end)) {
        let (key, value) = pair?;
        let (revision, _) = split_log(&key)?;
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
            Some(change) if change.revision == revision => change.events.extend(events),
            _ => changes.push(Change { revision, events }),
        }
    }
    Ok(changes)
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
