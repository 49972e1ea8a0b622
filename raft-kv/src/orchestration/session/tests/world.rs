//! A store of keys with history in memory, and a clock that tests move.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::super::super::store::{Clock, Events, Store};
use super::super::super::words::Time;
use crate::error::{Error, NotDone, Refusal};
use crate::types::{
    Change, ClusterId, Compare, CompareOp, CompareTarget, Event, EventKind, Header, KeyRange, KeyValue,
    LeaseId, NodeId, PutRequest, RangeRequest, RangeResponse, Revision, TxnOp, TxnOpResponse, TxnRequest,
    TxnResponse, WatchBatch, WatchRequest,
};

#[derive(Clone)]
pub struct World(Arc<Mutex<State>>, Arc<watch::Sender<Revision>>);

#[derive(Default)]
struct State {
    changes: Vec<Change>,
    revision: Revision,
    compacted: Revision,
    leases: BTreeMap<LeaseId, i64>,
    /// Calls that fail before the next that does not.
    failing: usize,
    /// Reads of keys, by how many.
    pub read: usize,
    /// How long a read or a transaction takes.
    takes: Duration,
    /// How far serializable reads are; 0 for all the way.
    behind_at: Revision,
}

impl World {
    pub fn new() -> Self {
        let state = State { revision: 1, ..Default::default() };
        Self(Arc::new(Mutex::new(state)), Arc::new(watch::channel(1).0))
    }

    pub fn compact(&self) {
        let mut state = self.0.lock();
        state.compacted = state.revision;
    }

    pub fn fail(&self, calls: usize) {
        self.0.lock().failing = calls;
    }

    /// From here on each read and transaction takes so long; others come meanwhile.
    pub fn take_time(&self, takes: Duration) {
        self.0.lock().takes = takes;
    }

    pub fn revision(&self) -> Revision {
        self.0.lock().revision
    }

    /// From here on serializable reads see nothing newer; 0 for an end of that.
    pub fn fall_behind(&self, at: Revision) {
        self.0.lock().behind_at = at;
    }

    async fn on_the_way(&self) {
        let takes = self.0.lock().takes;
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
    }

    pub fn read(&self) -> usize {
        std::mem::take(&mut self.0.lock().read)
    }

    /// The session's lease ends, as if its time were over.
    pub fn expire_leases(&self) {
        let ids: Vec<LeaseId> = self.0.lock().leases.keys().copied().collect();
        for id in ids {
            self.end_lease(id);
        }
    }

    fn end_lease(&self, id: LeaseId) {
        let mut state = self.0.lock();
        state.leases.remove(&id);
        let keys: Vec<Bytes> =
            state.all(0).into_values().filter(|kv| kv.lease == id).map(|kv| kv.key).collect();
        let events: Vec<Event> = keys.into_iter().map(|key| delete(key, state.revision + 1)).collect();
        state.push(events);
        self.1.send_replace(state.revision);
    }
}

fn delete(key: Bytes, revision: Revision) -> Event {
    let kv = KeyValue { key, mod_revision: revision, ..Default::default() };
    Event { kind: EventKind::Delete, kv, prev: None }
}

impl State {
    fn push(&mut self, events: Vec<Event>) {
        if !events.is_empty() {
            self.revision += 1;
            self.changes.push(Change { revision: self.revision, events });
        }
    }

    fn all(&self, at: Revision) -> BTreeMap<Bytes, KeyValue> {
        let mut all = BTreeMap::new();
        let until = |change: &&Change| at == 0 || change.revision <= at;
        for event in self.changes.iter().take_while(until).flat_map(|change| &change.events) {
            match event.kind {
                EventKind::Put => drop(all.insert(event.kv.key.clone(), event.kv.clone())),
                EventKind::Delete => drop(all.remove(&event.kv.key)),
            }
        }
        all
    }

    fn range(&mut self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        if request.revision > self.revision {
            return Err(
                Refusal::FutureRevision { requested: request.revision, current: self.revision }.into()
            );
        }
        if request.revision != 0 && request.revision < self.compacted {
            let (requested, compacted) = (request.revision, self.compacted);
            return Err(Refusal::Compacted { requested, compacted }.into());
        }
        let found = self.all(request.revision).into_values().filter(|kv| request.range.contains(&kv.key));
        let kvs: Vec<KeyValue> = found.collect();
        self.read += kvs.len();
        Ok(RangeResponse { count: kvs.len() as i64, kvs, more: false })
    }

    fn holds(&self, compare: &Compare) -> bool {
        if let (CompareOp::Less, CompareTarget::Mod(than)) = (compare.op, &compare.target) {
            return self
                .all(0)
                .values()
                .all(|kv| !compare.range.contains(&kv.key) || kv.mod_revision < *than);
        }
        assert!(compare.range.is_single() && compare.op == CompareOp::Equal);
        let kv = self.all(0).remove(&compare.range.key);
        match &compare.target {
            CompareTarget::Create(revision) => kv.map_or(0, |kv| kv.create_revision) == *revision,
            CompareTarget::Mod(revision) => kv.map_or(0, |kv| kv.mod_revision) == *revision,
            CompareTarget::Value(value) => kv.is_some_and(|kv| kv.value == *value),
            other => panic!("no session compares {other:?}"),
        }
    }

    fn txn(&mut self, request: &TxnRequest, events: &mut Vec<Event>) -> Result<TxnResponse, Error> {
        let succeeded = request.compares.iter().all(|compare| self.holds(compare));
        let mut responses = Vec::new();
        for op in if succeeded { &request.success } else { &request.failure } {
            responses.push(match op {
                TxnOp::Range(request) => TxnOpResponse::Range(self.range(request)?),
                TxnOp::Put(put) => {
                    events.push(self.put(put)?);
                    TxnOpResponse::Put(Default::default())
                }
                TxnOp::Delete(request) => {
                    let there = self.all(0).into_keys().filter(|key| request.range.contains(key));
                    events.extend(there.map(|key| delete(key, self.revision + 1)));
                    TxnOpResponse::Delete(Default::default())
                }
                TxnOp::Txn(request) => TxnOpResponse::Txn(self.txn(request, events)?),
            });
        }
        Ok(TxnResponse { succeeded, responses })
    }

    fn put(&self, put: &PutRequest) -> Result<Event, Error> {
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Err(Refusal::LeaseNotFound { id: put.lease }.into());
        }
        let revision = self.revision + 1;
        let before = self.all(0).remove(&put.key);
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision: before.map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: 1,
            value: put.value.clone(),
            lease: put.lease,
        };
        Ok(Event { kind: EventKind::Put, kv, prev: None })
    }

    fn header(&mut self) -> Result<Header, Error> {
        if self.failing > 0 {
            self.failing -= 1;
            return Err(Error::NotDone(NotDone::NoLeader));
        }
        Ok(Header { cluster: ClusterId(1), member: NodeId(1), revision: self.revision, term: 1 })
    }
}

impl Store for World {
    type Watch = Following;

    async fn range(&self, mut request: RangeRequest) -> Result<(Header, RangeResponse), Error> {
        self.on_the_way().await;
        let mut state = self.0.lock();
        let mut header = state.header()?;
        if request.serializable && request.revision == 0 && state.behind_at != 0 {
            (request.revision, header.revision) = (state.behind_at, state.behind_at);
        }
        Ok((header, state.range(&request)?))
    }

    async fn txn(&self, mut request: TxnRequest) -> Result<(Header, TxnResponse), Error> {
        self.on_the_way().await;
        let mut state = self.0.lock();
        state.header()?;
        let behind_at = state.behind_at;
        for op in &mut request.success {
            if let TxnOp::Range(read) = op
                && read.serializable
                && read.revision == 0
            {
                read.revision = behind_at;
            }
        }
        let mut events = Vec::new();
        let answer = state.txn(&request, &mut events)?;
        state.push(events);
        self.1.send_replace(state.revision);
        Ok((state.header()?, answer))
    }

    async fn watch(&self, request: WatchRequest) -> Result<Following, Error> {
        let next = match request.start_revision {
            0 => self.0.lock().revision + 1,
            from => from,
        };
        Ok(Following { world: self.clone(), range: request.range, next, changed: self.1.subscribe() })
    }

    async fn lease_grant(&self, ttl: i64) -> Result<LeaseId, Error> {
        let mut state = self.0.lock();
        state.header()?;
        let id = state.leases.keys().last().map_or(1, |last| last + 1);
        state.leases.insert(id, ttl);
        Ok(id)
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), Error> {
        let mut state = self.0.lock();
        state.header()?;
        if state.leases.contains_key(&id) { Ok(()) } else { Err(Refusal::LeaseNotFound { id }.into()) }
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        self.end_lease(id);
        Ok(())
    }
}

pub struct Following {
    world: World,
    range: KeyRange,
    next: Revision,
    changed: watch::Receiver<Revision>,
}

impl Events for Following {
    async fn next(&mut self) -> Result<Option<WatchBatch>, Error> {
        loop {
            self.changed.borrow_and_update();
            {
                let state = self.world.0.lock();
                if self.next <= state.compacted
                    && state.changes.iter().any(|change| change.revision >= self.next)
                    && self.next < state.compacted
                {
                    return Ok(Some(WatchBatch::Compacted(state.compacted)));
                }
                let mut changes = Vec::new();
                for change in state.changes.iter().filter(|change| change.revision >= self.next) {
                    let events: Vec<Event> = change
                        .events
                        .iter()
                        .filter(|event| self.range.contains(&event.kv.key))
                        .cloned()
                        .collect();
                    if !events.is_empty() {
                        changes.push(Change { revision: change.revision, events });
                    }
                }
                self.next = state.revision + 1;
                if !changes.is_empty() {
                    return Ok(Some(WatchBatch::Changes(changes)));
                }
            }
            if self.changed.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}

#[derive(Clone)]
pub struct TestClock {
    start: tokio::time::Instant,
    chance: Arc<Mutex<u64>>,
}

impl TestClock {
    pub fn new() -> Self {
        Self { start: tokio::time::Instant::now(), chance: Arc::default() }
    }
}

impl Clock for TestClock {
    fn now(&self) -> Time {
        1_000_000 + u64::try_from(self.start.elapsed().as_millis()).unwrap()
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn random(&self) -> u64 {
        let mut chance = self.chance.lock();
        *chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *chance
    }
}
