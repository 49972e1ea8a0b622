//! Publish: watchers are woken after a batch is in the store, and fetch what they are owed
//! themselves: from the ring of recent changes, or from the store where they are far behind.
//! A watcher that does not fetch costs nothing but its place.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::{Error, Refusal};
use crate::limits;
use crate::machine::{self, Store};
use crate::storage::state::State;
use crate::types::{Change, Revision, WatchBatch, WatchRequest};
use crate::watch::{Compacted, Hub, HubOptions, Poll, WatcherId};

struct Inner {
    hub: Hub,
    bells: HashMap<WatcherId, Arc<Notify>>,
}

/// All watchers of a node.
pub struct Watches {
    inner: Mutex<Inner>,
}

impl Watches {
    pub(super) fn new(head: Revision) -> Self {
        let hub = Hub::new(HubOptions { ring_bytes: limits::WATCH_RING_BYTES }, head);
        Self { inner: Mutex::new(Inner { hub, bells: HashMap::new() }) }
    }

    pub(super) fn publish(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let mut inner = self.inner.lock();
        for id in inner.hub.publish(changes) {
            inner.bells[&id].notify_one();
        }
    }

    /// The whole state was replaced: everybody looks again.
    pub(super) fn replaced(&self, head: Revision) {
        let mut inner = self.inner.lock();
        inner.hub.advance(head);
        for bell in inner.bells.values() {
            bell.notify_one();
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

    /// Starts to follow keys.
    pub fn subscribe(self: &Arc<Self>, request: WatchRequest, state: State) -> Result<Subscription, Refusal> {
        let mut inner = self.inner.lock();
        let id = inner.hub.add(request)?;
        let bell = Arc::new(Notify::new());
        bell.notify_one();
        inner.bells.insert(id, bell.clone());
        Ok(Subscription { id, bell, watches: self.clone(), state, ended: false })
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
            let poll = self.watches.inner.lock().hub.poll(self.id, limits::WATCH_BATCH_BYTES);
            match poll {
                Poll::Idle => return Ok(None),
                Poll::Batch(batch) => return Ok(Some(batch)),
                Poll::Read { from, to } => {
                    let read = |view: &dyn machine::Read| {
                        machine::read::history(view, from, to, limits::WATCH_BATCH_BYTES)
                    };
                    let history =
                        self.state.view(read).map_err(|failed| Error::Stopped(failed.to_string()))?;
                    // Every revision has its record, so the last one read says how far it went.
                    let (history, read_to) = match history {
                        Ok(changes) => {
                            let read_to = changes.last().map_or(to, |change| change.revision);
                            (Ok(changes), read_to)
                        }
                        Err(Refusal::Compacted { compacted, .. }) => (Err(Compacted(compacted)), to),
                        Err(refusal) => return Err(refusal.into()),
                    };
                    if let Some(batch) = self.watches.inner.lock().hub.supply(self.id, history, read_to) {
                        return Ok(Some(batch));
                    }
                }
            }
        }
    }

    /// The revision up to which everything was handed to this watcher, if it is synced.
    pub fn progress(&self) -> Option<Revision> {
        self.watches.inner.lock().hub.progress(self.id)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut inner = self.watches.inner.lock();
        inner.hub.remove(self.id);
        inner.bells.remove(&self.id);
    }
}
