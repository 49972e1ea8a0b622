//! Publish: watchers are woken after a batch is in the store, and fetch what they are owed
//! themselves: from the ring of recent changes, or from the store where they are far behind.
//! A watcher that does not fetch costs nothing but its place.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, Semaphore};

use super::watch_set::{SetBell, WatchSet};
use crate::error::{Error, Refusal};
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
    pub(super) changes: Result<Vec<Change>, Compacted>,
    /// How far it goes, included.
    pub(super) read_to: Revision,
}

/// Reads history, as much as fits one batch. Blocks on the disk.
pub(super) fn read_history(state: &State, from: Revision, to: Revision) -> Result<History, Error> {
    let read = |view: &dyn machine::Read| machine::read::history(view, from, to, limits::WATCH_BATCH_BYTES);
    let history = state.view(read).map_err(|failed| Error::Stopped(failed.to_string()))?;
    match history {
        // Every revision has its record, so the last one read says how far it went.
        Ok(changes) => {
            let read_to = changes.last().map_or(to, |change| change.revision);
            Ok(History { from, changes: Ok(changes), read_to })
        }
        Err(Refusal::Compacted { compacted, .. }) => {
            Ok(History { from, changes: Err(Compacted(compacted)), read_to: to })
        }
        Err(refusal) => Err(refusal.into()),
    }
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
                    let History { changes, read_to, .. } = read_history(&self.state, from, to)?;
                    if let Some(batch) = self.watches.lock().hub.supply(self.id, changes, read_to) {
                        return Ok(Some(batch));
                    }
                }
            }
        }
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
