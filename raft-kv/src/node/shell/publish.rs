//! Publish: watchers are woken after a batch is in the store, and fetch what they are owed
//! themselves: from the ring of recent changes, or from the store where they are far behind.
//! A watcher that does not fetch costs nothing but its place.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, Semaphore};

use super::watch_set::{SetBell, WatchSet};
use crate::error::{Error, Refusal, StorageFailed};
use crate::limits;
use crate::machine::{self, Store};
use crate::storage::state::State;
use crate::types::{Change, Revision, WatchBatch, WatchRequest};
use crate::watch::{Compacted, Hub, HubOptions, Poll, WatcherId};

/// How somebody hears that a watcher has something.
pub(super) enum Bell {
    One(Arc<Notify>),
    Set(Arc<SetBell>, i64),
}

impl Bell {
    fn ring(&self) {
        match self {
            Self::One(bell) => bell.notify_one(),
            Self::Set(bell, id) => bell.ring(*id),
        }
    }
}

pub(super) struct Inner {
    pub(super) hub: Hub,
    pub(super) bells: HashMap<WatcherId, Bell>,
}

impl Inner {
    pub(super) fn remove(&mut self, id: WatcherId) {
        self.hub.remove(id);
        self.bells.remove(&id);
    }
}

/// All watchers of a node.
pub struct Watches {
    inner: Mutex<Inner>,
    /// One permit for each reading of history.
    pub(super) reads: Arc<Semaphore>,
}

/// A part of history as it was read.
pub(super) struct History {
    pub(super) from: Revision,
    /// The part of the record of `from` that it begins with.
    pub(super) part: u32,
    pub(super) changes: Result<Vec<Change>, Compacted>,
    /// How far it goes, included.
    pub(super) read_to: Revision,
    /// What it has is the only change, and goes on with this part of its record.
    pub(super) rest: Option<u32>,
}

impl History {
    /// Whether it is a part of one revision.
    fn is_part(&self) -> bool {
        self.part > 0 || self.rest.is_some()
    }

    /// Whether somebody who needs this has something of it.
    pub(super) fn serves(&self, from: Revision, part: u32) -> bool {
        match &self.changes {
            Ok(_) if self.part > 0 || part > 0 => (from, part) == (self.from, self.part),
            Ok(_) => self.from <= from && from <= self.read_to,
            Err(Compacted(oldest)) => from < *oldest,
        }
    }

    /// Hands a watcher its part of it.
    pub(super) fn supply(&self, hub: &mut Hub, id: WatcherId) -> Option<WatchBatch> {
        match &self.changes {
            Ok(changes) if self.is_part() => {
                // None where it was compacted to that very place meanwhile.
                hub.supply_part(id, self.part, changes.first()?, self.rest)
            }
            Ok(changes) => hub.supply_shared(id, changes, self.read_to),
            Err(Compacted(oldest)) => hub.supply_nothing(id, *oldest),
        }
    }
}

/// Reads history from a part of a revision on, as much as fits one batch. Blocks on the disk.
pub(super) fn read_history(
    state: &State,
    (from, part): (Revision, u32),
    to: Revision,
) -> Result<History, Error> {
    let max = limits::WATCH_BATCH_BYTES;
    let read = |view: &dyn machine::Read| machine::read::history_in_parts(view, (from, part), to, max);
    let history = state.view(read).map_err(|failed| Error::Stopped(failed.to_string()))?;
    let (changes, rest) = match history {
        Ok(machine::read::History::Whole(changes)) => (changes, None),
        Ok(machine::read::History::Part(change, rest)) => (vec![change], Some(rest)),
        Err(Refusal::Compacted { compacted, .. }) => {
            let changes = Err(Compacted(compacted));
            return Ok(History { from, part, changes, read_to: to, rest: None });
        }
        Err(refusal) => return Err(refusal.into()),
    };
    // Every revision has its record, so the last one read says how far it went.
    let read_to = changes.last().map_or(to, |change| change.revision);
    Ok(History { from, part, changes: Ok(changes), read_to, rest })
}

impl Watches {
    pub(super) fn new(head: Revision) -> Self {
        let hub = Hub::new(HubOptions { ring_bytes: limits::WATCH_RING_BYTES }, head);
        Self {
            inner: Mutex::new(Inner { hub, bells: HashMap::new() }),
            reads: Arc::new(Semaphore::new(limits::MAX_WATCH_READS)),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    pub(super) fn publish(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let mut inner = self.inner.lock();
        for id in inner.hub.publish(changes) {
            inner.bells[&id].ring();
        }
    }

    /// Publishes a revision whose events are too many to be held: those that it concerns read it from
    /// the store. Its keys are gone through in parts, so that others get at the hub in between.
    pub(super) fn publish_large(&self, state: &State, revision: Revision) -> Result<(), StorageFailed> {
        self.lock().hub.begin_large();
        for part in 0.. {
            let keys = state.view(|view| machine::read::keys_changed(view, revision, part))?;
            let Some(keys) = keys else { break };
            self.lock().hub.note_large(revision, &keys);
        }
        let mut inner = self.lock();
        for id in inner.hub.publish_large(revision) {
            inner.bells[&id].ring();
        }
        Ok(())
    }

    /// The whole state was replaced: everybody looks again.
    pub(super) fn replaced(&self, head: Revision) {
        let mut inner = self.inner.lock();
        for id in inner.hub.advance(head) {
            inner.bells[&id].ring();
        }
    }

    /// How many watchers there are.
    pub fn len(&self) -> usize {
        self.inner.lock().bells.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The oldest readable revision, where it matters for a new watcher: what is compacted is
    /// refused even where the ring still holds it.
    pub(super) fn compacted(&self, request: &WatchRequest, state: &State) -> Result<Revision, Error> {
        if request.start_revision <= 0 {
            return Ok(0);
        }
        let compacted = state.view(machine::read::compacted);
        compacted.map_err(|failed| Error::Stopped(failed.to_string()))
    }

    /// Starts to follow keys.
    pub fn subscribe(self: &Arc<Self>, request: WatchRequest, state: State) -> Result<Subscription, Error> {
        let compacted = self.compacted(&request, &state)?;
        let mut inner = self.inner.lock();
        inner.hub.compacted(compacted);
        let id = inner.hub.add(request)?;
        let bell = Arc::new(Notify::new());
        bell.notify_one();
        inner.bells.insert(id, Bell::One(bell.clone()));
        Ok(Subscription { id, bell, watches: self.clone(), state, ended: false })
    }

    /// A set of watchers, empty at first.
    pub fn set(self: &Arc<Self>, state: State) -> WatchSet {
        WatchSet::new(self.clone(), state)
    }

    pub(super) fn remove(&self, id: WatcherId) {
        self.inner.lock().remove(id);
    }
}

/// One watcher; dropping it ends the watch.
pub struct Subscription {
    id: WatcherId,
    bell: Arc<Notify>,
    watches: Arc<Watches>,
    state: State,
    ended: bool,
}

impl Subscription {
    /// The next batch; `None` after the watch has ended with [`WatchBatch::Compacted`].
    pub async fn next(&mut self) -> Result<Option<WatchBatch>, Error> {
        while !self.ended {
            if let Some(batch) = self.try_next()? {
                self.ended = matches!(batch, WatchBatch::Compacted(_));
                return Ok(Some(batch));
            }
            self.bell.notified().await;
        }
        Ok(None)
    }

    /// What is owed now, if anything.
    pub fn try_next(&mut self) -> Result<Option<WatchBatch>, Error> {
        loop {
            let poll = self.watches.lock().hub.poll(self.id, limits::WATCH_BATCH_BYTES);
            match poll {
                Poll::Idle => return Ok(None),
                Poll::Again => {}
                Poll::Batch(batch) => return Ok(Some(batch)),
                Poll::Read { from, to } => {
                    if let Some(batch) = self.read((from, 0), to)? {
                        return Ok(Some(batch));
                    }
                }
                Poll::ReadPart { revision, part } => {
                    if let Some(batch) = self.read((revision, part), revision)? {
                        return Ok(Some(batch));
                    }
                }
            }
        }
    }

    fn read(&self, from: (Revision, u32), to: Revision) -> Result<Option<WatchBatch>, Error> {
        let history = read_history(&self.state, from, to)?;
        Ok(history.supply(&mut self.watches.lock().hub, self.id))
    }

    /// The revision up to which everything was handed to this watcher, if it is synced.
    pub fn progress(&self) -> Option<Revision> {
        self.watches.lock().hub.progress(self.id)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.watches.remove(self.id);
    }
}
