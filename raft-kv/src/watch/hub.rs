//! The hub: what was published lately, and each watcher's place.
//!
//! The caller's loop: [`Hub::publish`] names the watchers that have something now; each is
//! [polled](Hub::poll) until it is idle; where a poll asks to read, the caller reads the
//! machine's history, outside of any lock, and [supplies](Hub::supply) it. What a poll or a
//! supply returns must be sent before anything that a later call returns: batches in order, and
//! [progress](Hub::progress) behind them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::matching::Matching;
use super::ring::{Ring, change_bytes};
use crate::error::Refusal;
use crate::limits;
use crate::planted;
use crate::types::{Change, Event, EventKind, Revision, WatchBatch, WatchRequest};

/// A watcher of one hub; never used twice.
pub type WatcherId = u64;

/// Bounds of a hub.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HubOptions {
    /// Recent changes kept in memory, in bytes.
    pub ring_bytes: usize,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self { ring_bytes: limits::WATCH_RING_BYTES }
    }
}

/// The history asked for is gone; holds the oldest revision that can still be watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compacted(pub Revision);

/// What a watcher gets next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Poll {
    /// Nothing now; [`Hub::publish`] or [`Hub::advance`] will name the watcher when there is.
    Idle,
    /// Send this, then poll again.
    Batch(WatchBatch),
    /// Nothing among the [`limits::MAX_POLL_SCAN`] changes looked at; let others have their turn,
    /// then poll again.
    Again,
    /// It is not in memory: read the machine's history of these revisions, as far as is
    /// convenient, and [supply](Hub::supply) it.
    Read {
        /// The first revision to read.
        from: Revision,
        /// The last, included.
        to: Revision,
    },
    /// It was handed a part of a revision: read the rest of it, as far as is convenient, and
    /// [supply](Hub::supply_part) it.
    ReadPart {
        /// The revision.
        revision: Revision,
        /// The part of its record to go on with.
        part: u32,
    },
}

/// Hands each watcher its events.
#[derive(Debug)]
pub struct Hub {
    ring: Ring,
    /// The oldest revision whose history can be read.
    compacted: Revision,
    watchers: BTreeMap<WatcherId, Watcher>,
    matching: Matching,
    /// Whom a large revision concerns that is about to be published, while there is one.
    large: Option<BTreeSet<WatcherId>>,
    next: WatcherId,
}

#[derive(Debug)]
struct Watcher {
    request: WatchRequest,
    /// Nothing older is for it.
    start: Revision,
    /// Its start lay in the future: no progress is told before that revision exists.
    quiet_until: Revision,
    place: Place,
    /// Of the revision that it is handed next the part to go on with; 0 for all of it.
    part: u32,
    /// It was handed some of that revision, and must hear when there is no more.
    parted: bool,
}

/// How far a watcher is. Idle is its own state, without a revision: an idle watcher must not
/// fall behind by what does not concern it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// It was handed everything up to the head.
    Idle,
    /// It was handed everything below `next`; a read for it may be under way.
    Behind { next: Revision, reading: bool },
    /// It asked for history that was gone by then; to be told at the next poll, whether the ring
    /// still holds it or not: what is compacted is nowhere readable.
    Late,
    /// It was told that its history is gone.
    Ended,
}

impl Hub {
    /// A hub for a store at revision `head`.
    pub fn new(options: HubOptions, head: Revision) -> Self {
        Self {
            ring: Ring::new(options.ring_bytes, head),
            compacted: 0,
            watchers: BTreeMap::new(),
            matching: Matching::default(),
            large: None,
            next: 1,
        }
    }

    /// The newest revision published.
    pub fn head(&self) -> Revision {
        self.ring.head()
    }

    /// How many watchers there are.
    pub fn len(&self) -> usize {
        self.watchers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.watchers.is_empty()
    }

    /// What the recent changes take, in bytes.
    pub fn ring_bytes(&self) -> usize {
        self.ring.bytes()
    }

    /// Takes in the next revisions, each following the one before. Returns the watchers that
    /// were idle and have something now, each once; those behind already are not named again.
    pub fn publish(&mut self, changes: Vec<Change>) -> Vec<WatcherId> {
        let mut woken = Vec::new();
        for change in changes {
            for event in &change.events {
                self.matching.holding(&event.kv.key, |id| {
                    let watcher = self.watchers.get_mut(&id).expect("who is matched is a watcher");
                    if watcher.place == Place::Idle && watcher.wants(change.revision, event) {
                        watcher.place = Place::Behind { next: change.revision, reading: false };
                        woken.push(id);
                    }
                });
            }
            self.ring.push(change);
        }
        woken
    }

    /// The next revision has more events than are to be held. [Note](Self::note_large) its keys, then
    /// [publish](Self::publish_large) it; anything but publishing may happen in between.
    pub fn begin_large(&mut self) {
        let before = self.large.replace(BTreeSet::new());
        assert!(before.is_none(), "one revision after the other");
    }

    /// Notes whom some events of that revision concern.
    pub fn note_large(&mut self, revision: Revision, keys: &[(EventKind, Bytes)]) {
        let concerned = self.large.as_mut().expect("a large revision was begun");
        for (kind, key) in keys {
            self.matching.holding(key, |id| {
                if self.watchers[&id].wants_key(revision, *kind, key) {
                    concerned.insert(id);
                }
            });
        }
    }

    /// Publishes that revision. Returns the watchers that were idle and have to read it now.
    pub fn publish_large(&mut self, revision: Revision) -> Vec<WatcherId> {
        assert_eq!(revision, self.head() + 1, "a revision was left out or published twice");
        let mut concerned = self.large.take().expect("a large revision was begun");
        concerned.retain(|id| {
            let Some(watcher) = self.watchers.get_mut(id) else { return false };
            let wakes = watcher.place == Place::Idle && watcher.start <= revision;
            if wakes {
                watcher.place = Place::Behind { next: revision, reading: false };
            }
            wakes
        });
        self.ring.restart(revision);
        concerned.into_iter().collect()
    }

    /// The store jumped to `head` by a snapshot: what lies between was not published and is to
    /// be read. Returns the watchers that were idle and must look there now.
    pub fn advance(&mut self, head: Revision) -> Vec<WatcherId> {
        let before = self.head();
        assert!(head >= before, "a store's revision never goes back");
        if head == before {
            return Vec::new();
        }
        self.ring.restart(head);
        let mut woken = Vec::new();
        for (id, watcher) in &mut self.watchers {
            let next = watcher.start.max(before + 1);
            if watcher.place == Place::Idle && next <= head {
                watcher.place = Place::Behind { next, reading: false };
                woken.push(*id);
            }
        }
        woken
    }

    /// History before `revision` is gone from the store. A watcher that still needs some of it,
    /// and not from memory, is told so when it is polled.
    pub fn compacted(&mut self, revision: Revision) {
        self.compacted = self.compacted.max(revision);
    }

    /// Adds a watcher; poll it then. Start 0 means what comes after now; a start in the future
    /// gets nothing older.
    ///
    /// # Errors
    /// A range that is empty, a key too long, a negative start, or too many watchers.
    pub fn add(&mut self, mut request: WatchRequest) -> Result<WatcherId, Refusal> {
        if request.range.key.is_empty() {
            // etcd's reading: the smallest key there can be.
            request.range.key = Bytes::from_static(b"\0");
        }
        self.vet(&request)?;
        let head = self.head();
        let start = if request.start_revision == 0 { head + 1 } else { request.start_revision };
        let watcher = Watcher {
            start,
            quiet_until: if start > head + 1 { start } else { 0 },
            place: match start {
                start if start > head => Place::Idle,
                start if start < self.compacted => Place::Late,
                next => Place::Behind { next, reading: false },
            },
            part: 0,
            parted: false,
            request,
        };
        let id = self.next;
        self.next += 1;
        self.matching.add(&watcher.request.range, id);
        self.watchers.insert(id, watcher);
        if let Some(concerned) = &mut self.large {
            // Some of its keys may have been noted already.
            concerned.insert(id);
        }
        Ok(id)
    }

    fn vet(&self, request: &WatchRequest) -> Result<(), Refusal> {
        let range = &request.range;
        for bytes in [&range.key, &range.end] {
            if bytes.len() > limits::MAX_KEY_BYTES {
                return Err(Refusal::KeyTooLarge {
                    len: bytes.len() as u64,
                    max: limits::MAX_KEY_BYTES as u64,
                });
            }
        }
        if range.upper().is_some_and(|end| end <= range.key) {
            return Err(Refusal::EmptyRange);
        }
        if request.start_revision < 0 {
            return Err(Refusal::NegativeRevision { revision: request.start_revision });
        }
        if self.watchers.len() >= limits::MAX_WATCHERS {
            let why = format!(
                "this node has {} watchers, which is the limit; ask another node",
                limits::MAX_WATCHERS
            );
            return Err(Refusal::invalid("watch", why));
        }
        Ok(())
    }

    /// Ends a watcher; unknown ones are passed over.
    pub fn remove(&mut self, id: WatcherId) {
        if let Some(watcher) = self.watchers.remove(&id) {
            self.matching.remove(&watcher.request.range, id);
        }
    }

    /// What a watcher gets next: whole revisions, as many as `max_bytes` hold, or a single one
    /// that is larger; of one that is too large to be held, a part. [`Poll::Idle`] for a watcher that ended or was removed.
    pub fn poll(&mut self, id: WatcherId, max_bytes: usize) -> Poll {
        let Some(watcher) = self.watchers.get_mut(&id) else { return Poll::Idle };
        if watcher.place == Place::Late {
            watcher.place = Place::Ended;
            return Poll::Batch(WatchBatch::Compacted(self.compacted));
        }
        let Place::Behind { mut next, .. } = watcher.place else { return Poll::Idle };
        let floor = self.ring.floor();
        if next <= floor && planted!(ForgetEvicted) {
            next = floor + 1;
        }
        if next <= floor {
            if next < self.compacted {
                watcher.place = Place::Ended;
                return Poll::Batch(WatchBatch::Compacted(self.compacted));
            }
            watcher.place = Place::Behind { next, reading: true };
            return match watcher.part {
                0 => Poll::Read { from: next, to: floor },
                part => Poll::ReadPart { revision: next, part },
            };
        }
        let mut picked = Vec::new();
        let mut bytes = 0;
        watcher.place = Place::Idle;
        for (looked_at, change) in self.ring.from(next).enumerate() {
            if looked_at == limits::MAX_POLL_SCAN {
                watcher.place = Place::Behind { next: change.revision, reading: false };
                break;
            }
            let Some(change) = watcher.pick(change) else { continue };
            bytes += change_bytes(&change);
            if bytes > max_bytes && !picked.is_empty() {
                watcher.place = Place::Behind { next: change.revision, reading: false };
                break;
            }
            picked.push(change);
        }
        match watcher.place {
            _ if !picked.is_empty() => Poll::Batch(WatchBatch::Changes(picked)),
            Place::Idle => Poll::Idle,
            _ => Poll::Again,
        }
    }

    /// Whether a poll has nothing for this watcher before somebody names it again.
    pub fn is_idle(&self, id: WatcherId) -> bool {
        self.watchers.get(&id).is_none_or(|watcher| matches!(watcher.place, Place::Idle | Place::Ended))
    }

    /// No progress may be told to this watcher before this revision exists; 0 for no bound.
    pub fn quiet_until(&self, id: WatcherId) -> Revision {
        self.watchers.get(&id).map_or(0, |watcher| watcher.quiet_until)
    }

    /// Hands over what a [`Poll::Read`] asked for: every change from its `from` up to `read_to`
    /// included, unfiltered and ascending, or that it is gone. `read_to` may be less than asked.
    /// Returns what to send, if any of it concerns the watcher; poll again in any case.
    pub fn supply(
        &mut self,
        id: WatcherId,
        history: Result<Vec<Change>, Compacted>,
        read_to: Revision,
    ) -> Option<WatchBatch> {
        match history {
            Ok(changes) => self.supply_shared(id, &changes, read_to),
            Err(Compacted(oldest)) => self.supply_nothing(id, oldest),
        }
    }

    /// [`supply`](Self::supply) from a reading that serves several watchers.
    pub fn supply_shared(
        &mut self,
        id: WatcherId,
        changes: &[Change],
        read_to: Revision,
    ) -> Option<WatchBatch> {
        let head = self.head();
        let watcher = self.watchers.get_mut(&id)?;
        let Place::Behind { next, reading: true } = watcher.place else { return None };
        assert!(changes.is_sorted_by(|a, b| a.revision < b.revision), "history is read in order");
        assert!(read_to <= head, "only what was published is read");
        if read_to < next || watcher.part != 0 {
            // An answer to an older read, given twice.
            return None;
        }
        let skip = changes.partition_point(|change| change.revision < next);
        let wanted = changes[skip..].iter().take_while(|change| change.revision <= read_to);
        let picked: Vec<Change> = wanted.filter_map(|change| watcher.pick(change)).collect();
        watcher.place = Place::Behind { next: read_to + 1, reading: false };
        if read_to == head {
            watcher.place = Place::Idle;
        }
        (!picked.is_empty()).then_some(WatchBatch::Changes(picked))
    }

    /// Hands over a part of the revision that the watcher is handed next, which a read found too large
    /// to be held whole: its events from record `part` on, up to record `rest`, or all that are left.
    /// Returns what to send, if any of it concerns the watcher; poll again in any case.
    pub fn supply_part(
        &mut self,
        id: WatcherId,
        part: u32,
        change: &Change,
        rest: Option<u32>,
    ) -> Option<WatchBatch> {
        let head = self.head();
        let watcher = self.watchers.get_mut(&id)?;
        let Place::Behind { next, reading: true } = watcher.place else { return None };
        assert!(change.revision <= head, "only what was published is read");
        if change.revision < next || part != watcher.part {
            // An answer to an older read, given twice.
            return None;
        }
        let rest = rest.filter(|_| !planted!(DropParts));
        let picked = watcher.pick(change);
        watcher.part = rest.unwrap_or(0);
        if rest.is_some() {
            watcher.place = Place::Behind { next: change.revision, reading: false };
            watcher.parted |= picked.is_some();
            return picked.map(WatchBatch::Part);
        }
        watcher.place = Place::Behind { next: change.revision + 1, reading: false };
        if change.revision == head {
            watcher.place = Place::Idle;
        }
        let parted = std::mem::take(&mut watcher.parted);
        match picked {
            Some(change) => Some(WatchBatch::Changes(vec![change])),
            None => parted.then_some(WatchBatch::Progress(change.revision)),
        }
    }

    /// Answers a read: history before `oldest` is gone.
    pub fn supply_nothing(&mut self, id: WatcherId, oldest: Revision) -> Option<WatchBatch> {
        let watcher = self.watchers.get_mut(&id)?;
        let Place::Behind { reading: true, .. } = watcher.place else { return None };
        watcher.place = Place::Ended;
        self.compacted = self.compacted.max(oldest);
        Some(WatchBatch::Compacted(oldest))
    }

    /// The revision up to which this watcher was handed everything, where it is not behind: a
    /// true bookmark, to be sent behind all that was handed out. `None` for a watcher that is
    /// behind, that ended, or whose start lies in the future.
    pub fn progress(&self, id: WatcherId) -> Option<Revision> {
        let watcher = self.watchers.get(&id)?;
        let told = watcher.place == Place::Idle || planted!(ProgressOvertakes);
        (told && self.head() >= watcher.quiet_until).then(|| self.head())
    }
}

impl Watcher {
    fn wants(&self, revision: Revision, event: &Event) -> bool {
        self.wants_key(revision, event.kind, &event.kv.key)
    }

    fn wants_key(&self, revision: Revision, kind: EventKind, key: &[u8]) -> bool {
        let filtered = match kind {
            EventKind::Put => self.request.no_put,
            EventKind::Delete => self.request.no_delete,
        };
        revision >= self.start && !filtered && self.request.range.contains(key)
    }

    /// The part of a change that is for this watcher, if any.
    fn pick(&self, change: &Change) -> Option<Change> {
        if planted!(DropEvent) && change.revision % 5 == 0 {
            return None;
        }
        let wanted = change.events.iter().filter(|event| self.wants(change.revision, event));
        let events: Vec<Event> = wanted
            .map(|event| Event {
                kind: event.kind,
                kv: event.kv.clone(),
                prev: event.prev.as_ref().filter(|_| self.request.prev_kv).cloned(),
            })
            .collect();
        (!events.is_empty()).then_some(Change { revision: change.revision, events })
    }
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
