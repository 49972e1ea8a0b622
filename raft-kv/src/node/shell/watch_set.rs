//! The watchers of one stream: one place to wait at, whoever of them has something. It must never
//! hold more than one reading of history, and one busy watcher must never keep the others waiting.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::publish::{Bell, History, Watches, read_history};
use crate::error::{Error, Refusal};
use crate::limits;
use crate::storage::state::State;
use crate::types::{Revision, WatchBatch, WatchRequest};
use crate::watch::{Poll, Ready, WatcherId};

/// Rung by the thread that publishes, waited for by the stream.
#[derive(Default)]
pub(super) struct SetBell {
    pub(super) ready: Mutex<Ready>,
    pub(super) rung: Notify,
}

impl SetBell {
    pub(super) fn ring(&self, id: i64) {
        self.ready.lock().wake(id);
        self.rung.notify_one();
    }
}

/// Many watchers with one consumer; dropping it ends them all.
pub struct WatchSet {
    watches: Arc<Watches>,
    state: State,
    bell: Arc<SetBell>,
    watchers: HashMap<i64, Member>,
    /// Watchers whose start lies in the future, by it.
    future: BTreeSet<(Revision, i64)>,
    disk: Disk,
}

#[derive(Clone, Copy)]
struct Member {
    id: WatcherId,
    quiet_until: Revision,
}

/// Watchers whose next revision is no longer in memory.
#[derive(Default)]
struct Disk {
    /// Who waits for a reading, in the order of their turns, and which revisions each needs.
    turns: Ready,
    wanted: BTreeMap<i64, Wanted>,
    /// The reading under way.
    reading: Option<oneshot::Receiver<Result<History, Error>>>,
    /// The last reading and who has not been given its part yet.
    read: Option<(History, VecDeque<i64>)>,
    /// Whether the disk's watchers are next: they and the others take turns.
    turn: bool,
}

/// What a watcher needs of history: from a part of a revision's record on, up to a revision.
#[derive(Clone, Copy)]
struct Wanted {
    from: Revision,
    part: u32,
    to: Revision,
}

/// What a set hands out.
#[derive(Debug)]
pub enum Next {
    /// A watcher's next batch.
    Batch(i64, WatchBatch),
    /// Every watcher was handed everything up to this revision.
    Progress(Revision),
}

/// What one look for something to hand out came to.
enum Look {
    Found(i64, WatchBatch),
    /// Much was looked through in vain: let other tasks have a turn.
    Pause,
    Nothing,
}

impl WatchSet {
    pub(super) fn new(watches: Arc<Watches>, state: State) -> Self {
        Self {
            watches,
            state,
            bell: Arc::default(),
            watchers: HashMap::new(),
            future: BTreeSet::new(),
            disk: Disk::default(),
        }
    }

    /// How many watchers there are.
    pub fn len(&self) -> usize {
        self.watchers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.watchers.is_empty()
    }

    /// Whether a watcher has this number.
    pub fn contains(&self, id: i64) -> bool {
        self.watchers.contains_key(&id)
    }

    /// The newest revision that watchers were told of.
    pub fn revision(&self) -> Revision {
        self.watches.lock().hub.head()
    }

    /// Adds a watcher under a number that is free; answers the newest revision before it.
    ///
    /// # Errors
    /// Everything that [`Hub::add`](crate::watch::Hub::add) refuses, too many watchers of this
    /// stream, and a failed disk.
    pub fn add(&mut self, id: i64, request: WatchRequest) -> Result<Revision, Error> {
        assert!(!self.contains(id), "the caller chose a number that is taken");
        if self.watchers.len() >= limits::MAX_WATCHERS_PER_STREAM {
            let why = format!(
                "this stream has {} watchers, which is the limit; open another",
                limits::MAX_WATCHERS_PER_STREAM
            );
            return Err(Refusal::invalid("watch", why).into());
        }
        let compacted = self.watches.compacted(&request, &self.state)?;
        let mut inner = self.watches.lock();
        inner.hub.compacted(compacted);
        let watcher = inner.hub.add(request)?;
        inner.bells.insert(watcher, Bell::Set(self.bell.clone(), id));
        if !inner.hub.is_idle(watcher) {
            self.bell.ring(id);
        }
        let quiet_until = inner.hub.quiet_until(watcher);
        if quiet_until > 0 {
            self.future.insert((quiet_until, id));
        }
        self.watchers.insert(id, Member { id: watcher, quiet_until });
        Ok(inner.hub.head())
    }

    /// Ends a watcher; says whether there was one.
    pub fn remove(&mut self, id: i64) -> bool {
        let Some(member) = self.watchers.remove(&id) else { return false };
        self.future.remove(&(member.quiet_until, id));
        self.watches.remove(member.id);
        self.bell.ready.lock().forget(id);
        self.disk.turns.forget(id);
        self.disk.wanted.remove(&id);
        if let Some((_, left)) = &mut self.disk.read {
            left.retain(|waiting| *waiting != id);
        }
        true
    }

    /// The next batch of whichever watcher has one; a watcher that was handed
    /// [`WatchBatch::Compacted`] is gone. With `bookmark`, also that nobody has one any more and
    /// all are synced. May be dropped and called again.
    pub async fn next(&mut self, bookmark: bool) -> Result<Next, Error> {
        loop {
            match self.look()? {
                Look::Found(id, batch) => {
                    if matches!(batch, WatchBatch::Compacted(_)) {
                        self.remove(id);
                    }
                    return Ok(Next::Batch(id, batch));
                }
                Look::Pause => tokio::task::yield_now().await,
                Look::Nothing => {
                    if bookmark && let Some(revision) = self.progress() {
                        return Ok(Next::Progress(revision));
                    }
                    match &mut self.disk.reading {
                        None => self.bell.rung.notified().await,
                        Some(reading) => tokio::select! {
                            history = reading => self.disk.arrived(history.ok()),
                            () = self.bell.rung.notified() => Ok(()),
                        }?,
                    }
                }
            }
        }
    }

    /// Whether it is worth a [`try_next`](Self::try_next).
    pub fn is_ready(&self) -> bool {
        let wants_reading = self.disk.reading.is_none() && !self.disk.turns.is_empty();
        self.disk.read.is_some() || wants_reading || !self.bell.ready.lock().is_empty()
    }

    /// Waits until a watcher may have something, and takes nothing. May be dropped and called again.
    pub async fn ready(&mut self) -> Result<(), Error> {
        while !self.is_ready() {
            match &mut self.disk.reading {
                None => self.bell.rung.notified().await,
                Some(reading) => tokio::select! {
                    history = reading => self.disk.arrived(history.ok()),
                    () = self.bell.rung.notified() => Ok(()),
                }?,
            }
        }
        Ok(())
    }

    /// The next batch of whichever watcher has one, if there is one at once.
    pub fn try_next(&mut self) -> Result<Option<(i64, WatchBatch)>, Error> {
        let Look::Found(id, batch) = self.look()? else { return Ok(None) };
        if matches!(batch, WatchBatch::Compacted(_)) {
            self.remove(id);
        }
        Ok(Some((id, batch)))
    }

    /// Keeps no history for a consumer that does not take it: it is read again when it does.
    pub fn let_go(&mut self) {
        self.disk.reading = None;
        if let Some((_, left)) = self.disk.read.take() {
            let mut ready = self.bell.ready.lock();
            left.into_iter().for_each(|id| ready.wake(id));
        }
    }

    /// The revision up to which EVERY watcher was handed everything: a true bookmark for all, to
    /// be sent behind all that was handed out. `None` while one is behind or waits for a revision
    /// in the future, and where there are no watchers.
    pub fn progress(&mut self) -> Option<Revision> {
        let inner = self.watches.lock();
        let head = inner.hub.head();
        while self.future.first().is_some_and(|(quiet_until, _)| *quiet_until <= head) {
            self.future.pop_first();
        }
        // Whoever is behind is in one of the queues: names are called under this lock.
        let synced = self.bell.ready.lock().is_empty() && self.disk.is_idle() && self.future.is_empty();
        (synced && !self.watchers.is_empty()).then_some(head)
    }

    /// Whether the watchers that are behind are only a moment behind: all they need is in memory.
    pub fn nearly_synced(&self) -> bool {
        self.disk.is_idle() && self.future.is_empty() && !self.watchers.is_empty()
    }

    /// The same bookmark for one watcher.
    pub fn progress_of(&self, id: i64) -> Option<Revision> {
        self.watches.lock().hub.progress(self.watchers.get(&id)?.id)
    }

    fn look(&mut self) -> Result<Look, Error> {
        if let Some(reading) = &mut self.disk.reading {
            match reading.try_recv() {
                Ok(history) => self.disk.arrived(Some(history))?,
                Err(oneshot::error::TryRecvError::Closed) => self.disk.arrived(None)?,
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
        }
        self.disk.turn = !self.disk.turn;
        let found = match self.disk.turn {
            true => self.supply().or_else(|| self.poll()),
            false => self.poll().or_else(|| self.supply()),
        };
        // Whoever needs the disk must not wait until nobody else has anything.
        self.start_reading();
        Ok(found.unwrap_or(Look::Nothing))
    }

    /// Hands one watcher its part of the last reading.
    fn supply(&mut self) -> Option<Look> {
        let (history, left) = self.disk.read.as_mut()?;
        let Some(id) = left.pop_front() else {
            self.disk.read = None;
            return None;
        };
        let watcher = self.watchers[&id].id;
        let mut inner = self.watches.lock();
        let batch = history.supply(&mut inner.hub, watcher);
        if !inner.hub.is_idle(watcher) {
            self.bell.ready.lock().wake(id);
        }
        drop(inner);
        Some(batch.map_or(Look::Pause, |batch| Look::Found(id, batch)))
    }

    /// Polls whoever is ready.
    fn poll(&mut self) -> Option<Look> {
        loop {
            let id = self.bell.ready.lock().take()?;
            // One that was removed while it was being woken.
            let Some(member) = self.watchers.get(&id) else { continue };
            let mut inner = self.watches.lock();
            let poll = inner.hub.poll(member.id, limits::WATCH_BATCH_BYTES);
            if !matches!(poll, Poll::Read { .. } | Poll::ReadPart { .. }) && !inner.hub.is_idle(member.id) {
                self.bell.ready.lock().wake(id);
            }
            match poll {
                Poll::Idle => {}
                Poll::Again => return Some(Look::Pause),
                Poll::Batch(batch) => return Some(Look::Found(id, batch)),
                Poll::Read { from, to } => {
                    self.disk.turns.wake(id);
                    self.disk.wanted.insert(id, Wanted { from, part: 0, to });
                }
                Poll::ReadPart { revision, part } => {
                    self.disk.turns.wake(id);
                    self.disk.wanted.insert(id, Wanted { from: revision, part, to: revision });
                }
            }
        }
    }

    /// Starts the next reading, if somebody waits for one: from where the one whose turn it is
    /// needs it.
    fn start_reading(&mut self) {
        if self.disk.reading.is_some() || self.disk.read.is_some() {
            return;
        }
        let Some(first) = self.disk.turns.take() else { return };
        let Wanted { from, part, to } = self.disk.wanted[&first];
        self.disk.turns.wake(first);
        let (told, reading) = oneshot::channel();
        self.disk.reading = Some(reading);
        let (reads, state) = (self.watches.reads.clone(), self.state.clone());
        tokio::spawn(async move {
            let Ok(_permit) = reads.acquire_owned().await else { return };
            if told.is_closed() {
                return;
            }
            let history = tokio::task::spawn_blocking(move || read_history(&state, (from, part), to)).await;
            // The stream may have gone.
            let _ = told.send(history.expect("reading does not panic"));
        });
    }
}

impl Disk {
    fn is_idle(&self) -> bool {
        self.wanted.is_empty() && self.read.as_ref().is_none_or(|(_, left)| left.is_empty())
    }

    /// A reading has ended: whoever it is for is given its part, one after the other.
    fn arrived(&mut self, history: Option<Result<History, Error>>) -> Result<(), Error> {
        self.reading = None;
        // A runtime that is shutting down ends tasks.
        let Some(history) = history else { return Ok(()) };
        let history = history?;
        let serves = |(_, wanted): &(&i64, &Wanted)| history.serves(wanted.from, wanted.part);
        let served: VecDeque<i64> = self.wanted.iter().filter(serves).map(|(id, _)| *id).collect();
        for id in &served {
            self.wanted.remove(id);
            self.turns.forget(*id);
        }
        self.read = Some((history, served));
        Ok(())
    }
}

impl Drop for WatchSet {
    fn drop(&mut self) {
        // A few at a time: writes are published under the same lock.
        let ids: Vec<WatcherId> = self.watchers.values().map(|member| member.id).collect();
        for some in ids.chunks(256) {
            let mut inner = self.watches.lock();
            some.iter().for_each(|id| inner.remove(*id));
        }
    }
}
