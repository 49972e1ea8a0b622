//! The thread that applies: committed entries in order, everything that waits in one batch; then
//! watchers are woken, then the loop is told. Between batches it collects what compaction gave
//! up, and makes checkpoints.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::decide::stopped;
use super::publish::Watches;
use super::snapshots::{Checkpoints, Incoming};
use super::{ToDecide, drain};
use crate::error::{Error, NotDone, StorageFailed};
use crate::machine::{Store, Table};
use crate::node::apply::{Applier, Report, Work};
use crate::storage::state::State;
use crate::types::{Change, Committed, Revision, Room, SnapshotMeta};

/// Pieces of work taken at once, at most.
const MOST_WORK: usize = 256;
/// Entries in one batch of the store, at most.
const MOST_ENTRIES: usize = 1024;
/// How long the thread sleeps when nothing comes.
const IDLE: Duration = Duration::from_secs(1);

/// What the apply thread is sent.
pub(super) enum ToFeed {
    Work(Work),
    Checkpoint,
    Flush,
    FlushAndEnd,
}

pub(super) struct Feed {
    pub(super) applier: Applier<State>,
    pub(super) state: State,
    pub(super) watches: Arc<Watches>,
    pub(super) checkpoints: Checkpoints,
    pub(super) incoming: Arc<Incoming>,
    pub(super) back: Sender<ToDecide>,
    pub(super) collected: watch::Sender<Revision>,
    pub(super) auth: watch::Sender<u64>,
    pub(super) auth_counts: Arc<AtomicBool>,
    pub(super) trust: watch::Sender<u64>,
    pub(super) room: Arc<Mutex<Room>>,
    pub(super) rewrite: bool,
    /// Why the loop ended, once it has.
    pub(super) ended: watch::Sender<Option<Error>>,
}

impl Feed {
    pub(super) fn run(mut self, inbox: &Receiver<ToFeed>) {
        if let Err(failed) = self.feed(inbox) {
            let failed = stopped(&failed);
            // A stop that was clean so far is none: what was to be flushed last is not.
            self.ended.send_if_modified(|ended| {
                let clean = *ended == Some(Error::NotDone(NotDone::ShuttingDown));
                if clean {
                    *ended = Some(failed.clone());
                }
                clean
            });
            // The loop may have ended by itself meanwhile.
            let _ = self.back.send(ToDecide::Failed(failed));
        }
    }

    fn feed(&mut self, inbox: &Receiver<ToFeed>) -> Result<(), StorageFailed> {
        let mut more_to_collect = true;
        loop {
            let until = Instant::now() + if more_to_collect { Duration::ZERO } else { IDLE };
            let Some(arrived) = drain(inbox, until, MOST_WORK) else {
                return Ok(());
            };
            if arrived.is_empty() {
                more_to_collect = self.collect()?;
                continue;
            }
            let mut entries: Vec<Committed> = Vec::new();
            for item in arrived {
                match item {
                    ToFeed::Work(Work::Entries(more)) => {
                        entries.extend(more);
                        if entries.len() >= MOST_ENTRIES {
                            self.apply(std::mem::take(&mut entries))?;
                        }
                    }
                    other => {
                        self.apply(std::mem::take(&mut entries))?;
                        if self.special(other)? {
                            return Ok(());
                        }
                    }
                }
            }
            self.apply(entries)?;
            more_to_collect = true;
        }
    }

    /// Everything but entries; says whether the thread is to end.
    fn special(&mut self, item: ToFeed) -> Result<bool, StorageFailed> {
        match item {
            ToFeed::Work(Work::Entries(_)) => unreachable!("entries are gathered by the caller"),
            ToFeed::Work(Work::Install(meta)) => self.install(&meta)?,
            ToFeed::Checkpoint => {
                let meta = self.applier.applied();
                self.checkpoints.make(&self.state, &meta)?;
                let _ = self.back.send(ToDecide::Checkpoint(meta));
            }
            ToFeed::Flush => self.flush_aside(),
            ToFeed::FlushAndEnd => {
                self.state.flush()?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn apply(&mut self, entries: Vec<Committed>) -> Result<(), StorageFailed> {
        if entries.is_empty() {
            return Ok(());
        }
        let (report, changes) = self.applier.entries(entries)?;
        self.rewrite |= report.forget_log;
        if report.raised {
            // Watchers find in the store what they are owed, or that it is gone.
            self.watches.replaced(report.revision);
        } else {
            self.publish(changes, &report.large)?;
            if !report.large.is_empty() {
                crate::crash_point!(RollbackPublished);
            }
        }
        self.announce(&report);
        // A loop that has ended needs no report.
        let _ = self.back.send(ToDecide::Applied(report));
        Ok(())
    }

    /// Publishes revisions in order, those that are not held among them.
    fn publish(&self, changes: Vec<Change>, large: &[Revision]) -> Result<(), StorageFailed> {
        let mut changes = changes.into_iter().peekable();
        for revision in large {
            let before = std::iter::from_fn(|| changes.next_if(|change| change.revision < *revision));
            self.watches.publish(before.collect());
            self.watches.publish_large(&self.state, *revision)?;
        }
        self.watches.publish(changes.collect());
        Ok(())
    }

    fn install(&mut self, meta: &SnapshotMeta) -> Result<(), StorageFailed> {
        let folder = self.incoming.take(meta)?;
        tracing::info!(index = meta.index, "installing a snapshot");
        self.state.replace(&folder)?;
        let report = self.applier.installed(meta)?;
        tracing::info!(index = meta.index, revision = report.revision, "installed a snapshot");
        self.watches.replaced(report.revision);
        self.announce(&report);
        let _ = self.back.send(ToDecide::Applied(report));
        self.incoming.installed();
        Ok(())
    }

    /// Tells callers' door how much room there is, who serves watches that users or roles are others now, and who looks after
    /// certificates that what is believed is.
    fn announce(&self, report: &Report) {
        *self.room.lock() = report.room;
        if let Some((revision, enabled)) = report.auth {
            self.auth_counts.store(enabled, Ordering::Release);
            self.auth.send_replace(revision);
        }
        if report.trust {
            self.trust.send_modify(|count| *count += 1);
        }
    }

    /// Flushes on a thread of its own: it may take seconds, and applying goes on.
    fn flush_aside(&mut self) {
        let (state, back, meta) = (self.state.clone(), self.back.clone(), self.applier.applied());
        // What was sealed with a key that is given up goes from the disk too.
        let rewrite = std::mem::take(&mut self.rewrite);
        super::spawn("raft-kv flush", move || {
            let flushed = if rewrite { state.rewrite(Table::Trust) } else { state.flush() };
            let told = match flushed {
                Ok(()) => ToDecide::Flushed(meta),
                Err(failed) => ToDecide::Failed(stopped(&failed)),
            };
            let _ = back.send(told);
        });
    }

    fn collect(&mut self) -> Result<bool, StorageFailed> {
        let more = self.applier.collect()?;
        if let Some(compacted) = self.applier.compacted().filter(|_| !more) {
            self.collected.send_if_modified(|known| std::mem::replace(known, compacted) != compacted);
        }
        Ok(more)
    }
}
