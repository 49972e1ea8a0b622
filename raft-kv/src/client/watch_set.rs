//! Many watches of one caller with one consumer, at the member in this process. What it costs to
//! wait grows with the watchers that have something, not with all of them; a consumer that does
//! not ask for the next batch costs no memory for what happens meanwhile.

use std::sync::Arc;

use super::handle::Handle;
use super::local::Local;
use super::watch::{Ended, over};
use crate::error::Error;
use crate::node::shell;
pub use crate::node::shell::Next;
use crate::types::{Caller, Header, KeyRange, Revision, WatchBatch, WatchRequest};

/// Follows many ranges of keys; dropping it ends all.
pub struct WatchSet {
    set: shell::WatchSet,
    local: Arc<Local>,
    caller: Caller,
    ended: Ended,
}

impl WatchSet {
    pub(super) fn new(set: shell::WatchSet, local: Arc<Local>, caller: Caller) -> Self {
        let ended = local.shell.ended();
        Self { set, local, caller, ended }
    }

    /// How many watchers there are.
    pub fn len(&self) -> usize {
        self.set.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Whether a watcher has this number.
    pub fn contains(&self, id: i64) -> bool {
        self.set.contains(id)
    }

    /// The header of an answer given now; its revision is never behind one handed out before.
    pub fn header(&self) -> Header {
        self.local.header(self.set.revision())
    }

    /// Adds a watcher under a number of the caller's choice that no other watcher of the set has.
    /// Answers the newest revision before the watcher: with start 0, its events are all behind it.
    ///
    /// # Errors
    /// [`Refusal::EmptyRange`](crate::error::Refusal::EmptyRange),
    /// [`Refusal::NegativeRevision`](crate::error::Refusal::NegativeRevision), no permission, too
    /// many watchers, and see [`Error`].
    ///
    /// # Panics
    /// If the number is taken.
    pub fn add(&mut self, id: i64, request: WatchRequest) -> Result<Header, Error> {
        self.may_watch(&request.range)?;
        let revision = self.set.add(id, request)?;
        Ok(self.local.header(revision))
    }

    /// From now on the set's caller is the one that `handle` acts for.
    pub fn act_as(&mut self, handle: &Handle) {
        self.caller = handle.acts_for().clone();
    }

    /// Whether the set's caller may follow these keys, as users and roles are now.
    ///
    /// # Errors
    /// [`Refusal::Auth`](crate::error::Refusal::Auth).
    pub fn may_watch(&self, range: &KeyRange) -> Result<(), Error> {
        self.local.may_watch(&self.caller, range)
    }

    /// Ends a watcher; says whether there was one.
    pub fn remove(&mut self, id: i64) -> bool {
        self.set.remove(id)
    }

    /// The next batch of whichever watcher has one; they take turns. Each gets its own whole
    /// revisions in order, none missing, none twice. A watcher that was handed
    /// [`WatchBatch::Compacted`] is gone from the set. May be dropped and called again.
    ///
    /// # Errors
    /// The node stopped, or its disk failed.
    pub async fn next(&mut self) -> Result<(i64, WatchBatch), Error> {
        match self.step(false).await? {
            Next::Batch(id, batch) => Ok((id, batch)),
            Next::Progress(_) => unreachable!("no bookmark was asked for"),
        }
    }

    /// The same, or that no watcher has anything any more and all are synced up to a revision.
    /// May be dropped and called again.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn next_or_progress(&mut self) -> Result<Next, Error> {
        self.step(true).await
    }

    /// Waits until [`try_next`](Self::try_next) may have something; nothing is taken from the
    /// watchers, so it costs no memory to have waited. May be dropped and called again.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn ready(&mut self) -> Result<(), Error> {
        tokio::select! {
            ready = self.set.ready() => ready,
            why = over(&mut self.ended) => Err(why),
        }
    }

    /// Whether a watcher may have something now.
    pub fn is_ready(&self) -> bool {
        self.set.is_ready()
    }

    /// The same as [`next`](Self::next), if there is a batch at once.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub fn try_next(&mut self) -> Result<Option<(i64, WatchBatch)>, Error> {
        self.set.try_next()
    }

    /// Gives up what was read for watchers and not handed out. For a consumer that will not take it
    /// soon; nothing is lost, it is read again.
    pub fn let_go(&mut self) {
        self.set.let_go();
    }

    async fn step(&mut self, bookmark: bool) -> Result<Next, Error> {
        tokio::select! {
            next = self.set.next(bookmark) => next,
            why = over(&mut self.ended) => Err(why),
        }
    }

    /// The revision up to which every watcher of the set was handed everything, to be sent behind
    /// all that was handed out. `None` while one is behind or waits for a revision in the future,
    /// and where there are no watchers.
    pub fn progress(&mut self) -> Option<Revision> {
        self.set.progress()
    }

    /// Whether all that the watchers are owed is in memory, and none waits for the future: their
    /// [`progress`](Self::progress) is a matter of fetching what is there.
    pub fn nearly_synced(&self) -> bool {
        self.set.nearly_synced()
    }

    /// The same as [`progress`](Self::progress) for one watcher.
    pub fn progress_of(&self, id: i64) -> Option<Revision> {
        self.set.progress_of(id)
    }
}

impl std::fmt::Debug for WatchSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchSet").field("watchers", &self.len()).finish_non_exhaustive()
    }
}
