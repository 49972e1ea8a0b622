//! What a manager has to look at: every key below a prefix that exists, then every one that changes.
//!
//! A queue says *that* a key may have changed, never how: whoever takes a key reads it anew, so that
//! several changes of one key are looked at once. A stored [cursor](Queue::save) lets the next leader go
//! on where this one was. It must never lose the last change of a key: one that changes while it is
//! looked at comes again.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use super::Fence;
use super::store::{Events, Store};
use crate::error::{Error, Refusal};
use crate::planted;
use crate::types::{
    Change, KeyRange, PutRequest, RangeRequest, Revision, TxnOp, TxnRequest, WatchBatch, WatchRequest,
};

/// Keys that one read gives.
const PAGE: i64 = 1_000;

/// Batches of changes that are taken in before the next key is handed out.
const BATCHES: usize = 64;

/// What to look at next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Look {
    /// Everything: each key that exists follows. What is remembered of other keys is out of date: they
    /// may have gone unseen, with history that was compacted.
    Anew,
    /// This key; it may have been deleted.
    Key(Bytes),
}

/// Keys that wait to be looked at. Memory: one key each, once, however often it changes.
#[derive(Debug)]
pub struct Queue<S: Store> {
    store: S,
    fence: Option<Fence>,
    prefix: Bytes,
    cursor_key: Bytes,
    /// The cursor as it is stored; `None` before it was read or where there is none.
    saved: Option<Revision>,
    /// Every change up to here waits, is in hand or was looked at; `None` before the first listing.
    seen: Option<Revision>,
    events: Option<S::Watch>,
    anew: bool,
    /// History that was not seen is gone: everything is to be listed.
    gap: bool,
    /// Keys with the revision that they began to wait at, ascending; 0 for what was listed.
    waiting: VecDeque<(Bytes, Revision)>,
    /// The keys of `waiting`.
    queued: BTreeSet<Bytes>,
    /// What was handed out last.
    in_hand: Option<(Bytes, Revision)>,
}

impl<S: Store> Queue<S> {
    /// The keys below `prefix`. `name` is the cursor's: no two queues that are stored may share it.
    pub fn new(store: S, name: &str, prefix: impl Into<Bytes>) -> Self {
        let name = name.replace('%', "%25").replace('/', "%2F");
        Self {
            store,
            fence: None,
            prefix: prefix.into(),
            cursor_key: format!("_rk/q/{name}").into(),
            saved: None,
            seen: None,
            events: None,
            anew: false,
            gap: false,
            waiting: VecDeque::new(),
            queued: BTreeSet::new(),
            in_hand: None,
        }
    }

    /// Its cursor is written under `fence`: a stale leader's is refused.
    #[must_use]
    pub fn fenced(mut self, fence: Fence) -> Self {
        self.fence = Some(fence);
        self
    }

    /// The next to look at; waits for one. Asking says that what was handed out last has been looked at.
    /// Cancelling the wait loses nothing.
    ///
    /// # Errors
    /// The store's. Ask again: it goes on where it was.
    pub async fn next(&mut self) -> Result<Look, Error> {
        loop {
            if self.events.is_none() {
                self.follow().await?;
                continue;
            }
            self.take_in_what_is_there().await?;
            if self.events.is_none() {
                continue;
            }
            self.in_hand = None;
            if std::mem::take(&mut self.anew) {
                return Ok(Look::Anew);
            }
            if let Some((key, since)) = self.waiting.pop_front() {
                self.queued.remove(&key);
                self.in_hand = Some((key.clone(), since));
                return Ok(Look::Key(key));
            }
            let Some(events) = &mut self.events else { continue };
            let batch = events.next().await;
            self.take_in(batch)?;
        }
    }

    /// Stores how far everything has been looked at, without what was handed out last. Call it now and
    /// then: what was looked at since comes again at the next leader.
    ///
    /// # Errors
    /// The store's; [`Refusal::StaleLeader`] where a later leader has taken the fence.
    pub async fn save(&mut self) -> Result<(), Error> {
        let Some(cursor) = self.cursor() else { return Ok(()) };
        if self.saved == Some(cursor) {
            return Ok(());
        }
        let value = Bytes::copy_from_slice(&cursor.to_be_bytes());
        let put = PutRequest { key: self.cursor_key.clone(), value, ..Default::default() };
        let request = TxnRequest {
            compares: self.fence.iter().map(Fence::compare).collect(),
            success: vec![TxnOp::Put(put)],
            ..Default::default()
        };
        let (_, done) = self.store.txn(request).await?;
        if !done.succeeded {
            let decided = self.fence.map_or(0, |fence| fence.term);
            return Err(Refusal::StaleLeader { decided, applied: decided }.into());
        }
        self.saved = Some(cursor);
        Ok(())
    }

    /// Every change up to here has been looked at; `None` while a listing is not.
    fn cursor(&self) -> Option<Revision> {
        let oldest = self.in_hand.iter().chain(self.waiting.front()).map(|(_, since)| *since).min();
        match oldest {
            _ if self.anew || self.gap => None,
            Some(since) => (since > 0).then_some(since - 1),
            None => self.seen,
        }
    }

    /// Begins to follow: behind what was seen, else behind the stored cursor, else behind a listing.
    async fn follow(&mut self) -> Result<(), Error> {
        if self.seen.is_none() {
            self.seen = self.stored_cursor().await?;
            self.saved = self.seen;
        }
        if self.seen.is_none() || self.gap {
            self.list().await?;
        }
        let start_revision = self.seen.unwrap_or(0) + 1;
        let range = KeyRange::prefix(self.prefix.clone());
        let request = WatchRequest { range, start_revision, progress_notify: true, ..Default::default() };
        match self.store.watch(request).await {
            Ok(events) => self.events = Some(events),
            Err(Error::Refused(Refusal::Compacted { .. })) => self.gap = true,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn stored_cursor(&self) -> Result<Option<Revision>, Error> {
        let request = RangeRequest { range: KeyRange::key(self.cursor_key.clone()), ..Default::default() };
        let (header, found) = self.store.range(request).await?;
        let stored = found.kvs.first().and_then(|kv| kv.value.as_ref().try_into().ok());
        // One that is not of this history is none.
        Ok(stored.map(Revision::from_be_bytes).filter(|at| (1..=header.revision).contains(at)))
    }

    /// All keys that exist at one revision. Nothing is changed before the last page.
    async fn list(&mut self) -> Result<(), Error> {
        let whole = KeyRange::prefix(self.prefix.clone());
        let end = whole.upper().unwrap_or_else(|| Bytes::from_static(&[0]));
        let (mut from, mut at, mut keys) = (whole.key, 0, Vec::new());
        loop {
            let request = RangeRequest {
                range: KeyRange::span(from, end.clone()),
                limit: PAGE,
                revision: at,
                keys_only: true,
                ..Default::default()
            };
            let (header, found) = self.store.range(request).await?;
            if at == 0 {
                at = header.revision;
            }
            let last = found.kvs.last().map(|kv| kv.key.clone());
            keys.extend(found.kvs.into_iter().map(|kv| kv.key));
            match last {
                Some(last) if found.more => from = [&last[..], &[0]].concat().into(),
                _ => break,
            }
        }
        self.waiting.clear();
        self.queued.clear();
        for key in keys {
            self.note(key, 0);
        }
        self.anew = true;
        self.gap = false;
        self.seen = Some(at);
        Ok(())
    }

    async fn take_in_what_is_there(&mut self) -> Result<(), Error> {
        for _ in 0..BATCHES {
            let Some(events) = &mut self.events else { return Ok(()) };
            let batch = tokio::select! {
                biased;
                batch = events.next() => batch,
                () = std::future::ready(()) => return Ok(()),
            };
            self.take_in(batch)?;
        }
        Ok(())
    }

    fn take_in(&mut self, batch: Result<Option<WatchBatch>, Error>) -> Result<(), Error> {
        match batch {
            Ok(Some(WatchBatch::Changes(changes))) => {
                for change in changes {
                    let revision = change.revision;
                    self.note_all(change);
                    self.seen = self.seen.max(Some(revision));
                }
            }
            // The rest of the revision is still to come: it was not seen.
            Ok(Some(WatchBatch::Part(change))) => self.note_all(change),
            Ok(Some(WatchBatch::Progress(revision))) => self.seen = self.seen.max(Some(revision)),
            Ok(Some(WatchBatch::Compacted(_))) => self.forget(),
            Ok(None) => self.events = None,
            Err(Error::Refused(Refusal::Compacted { .. })) => self.forget(),
            Err(error) => {
                self.events = None;
                return Err(error);
            }
        }
        Ok(())
    }

    /// History has a gap: what waits stays, and everything is listed anew. The stored cursor is of no use.
    fn forget(&mut self) {
        self.events = None;
        self.gap = true;
    }

    fn note_all(&mut self, change: Change) {
        for event in change.events {
            self.note(event.kv.key, change.revision);
        }
    }

    fn note(&mut self, key: Bytes, since: Revision) {
        if planted!(QueueDropsChange) && self.in_hand.as_ref().is_some_and(|(held, _)| *held == key) {
            return;
        }
        if self.queued.insert(key.clone()) {
            self.waiting.push_back((key, since));
        }
    }
}

#[cfg(test)]
mod tests;
