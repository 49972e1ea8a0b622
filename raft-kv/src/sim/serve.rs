//! What watchers of a simulated member are handed.

use std::time::Duration;

use super::cluster::{Cluster, Event, Happening, WatchKey};
use super::scheduler::span;
use crate::error::Refusal;
use crate::machine::read::History;
use crate::machine::{self, Read, Store};
use crate::types::WatchBatch;
use crate::watch::Poll;

/// Bytes of one answer to a watcher.
const WATCH_BATCH_BYTES: usize = 512;

impl Cluster {
    pub(super) fn serve_watch(&mut self, key: WatchKey) {
        let host = key.host;
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let poll = process.hub.poll(key.id, WATCH_BATCH_BYTES);
        let batch = match poll {
            Poll::Idle => return,
            Poll::Again => return self.serve_watch(key),
            Poll::Batch(batch) => Some(batch),
            Poll::Read { .. } | Poll::ReadPart { .. } => {
                self.counts.watch_reads += 1;
                let (from, part, to) = match poll {
                    Poll::ReadPart { revision, part } => (revision, part, revision),
                    Poll::Read { from, to } => (from, 0, to),
                    _ => unreachable!("it was just seen"),
                };
                let read = |view: &dyn Read| {
                    machine::read::history_in_parts(view, (from, part), to, WATCH_BATCH_BYTES)
                };
                let history = match self.hosts[host].served().view(read) {
                    Ok(history) => history,
                    Err(failed) => return self.failed(host, failed),
                };
                let hub = &mut self.hosts[host].process.as_mut().expect("it runs").hub;
                match history {
                    Ok(History::Part(change, rest)) => hub.supply_part(key.id, part, &change, Some(rest)),
                    Ok(History::Whole(changes)) if part > 0 => {
                        changes.first().and_then(|change| hub.supply_part(key.id, part, change, None))
                    }
                    Ok(History::Whole(changes)) => {
                        let read_to = changes.last().map_or(to, |change| change.revision);
                        hub.supply(key.id, Ok(changes), read_to)
                    }
                    Err(Refusal::Compacted { compacted, .. }) => hub.supply_nothing(key.id, compacted),
                    Err(refusal) => panic!("history was refused: {refusal}"),
                }
            }
        };
        if let Some(batch) = batch {
            let ended = matches!(batch, WatchBatch::Compacted(_));
            self.happened.push(Happening::Watched(key, batch));
            if ended {
                return;
            }
        }
        let delay = span(&mut self.chances.delays, Duration::from_micros(10), Duration::from_micros(500));
        self.scheduler.after(delay, Event::Watch(key));
    }
}
