//! What the typed layer of tasks and state makes of bytes that it did not write: stored values, keys, the cursors of
//! pages and the tokens of sessions. It refuses or reads them; it never panics, never leaves its prefix or
//! a listing's range, and what it writes back reads as it said.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use raft_kv::error::{Error, Refusal};
use raft_kv::limits::ORCHESTRATION_PREFIX;
use raft_kv::orchestration::session::{Dispatcher, Settings};
use raft_kv::orchestration::{
    AlertKind, Alerts, Change, Clock, Events, Fence, NodeState, Object, ObjectBy, ObjectKey, Orchestrator,
    Page, Queue, Reported, Store, Task, TaskBy, TaskState, TaskStatus, Time,
};
use raft_kv::types::{
    ClusterId, Header, KeyRange, KeyValue, LeaseId, NodeId, RangeRequest, RangeResponse, Revision, TxnOp,
    TxnOpResponse, TxnRequest, TxnResponse, WatchBatch, WatchRequest,
};

const NODE: NodeId = NodeId(5);

/// A store that answers at once, where every comparison holds.
#[derive(Clone, Default)]
struct Keys(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    kvs: BTreeMap<Bytes, KeyValue>,
    revision: Revision,
    /// Where reads of ranges must stay, if anywhere.
    within: Option<KeyRange>,
}

impl State {
    fn header(&self) -> Header {
        Header { cluster: ClusterId(1), member: NodeId(1), revision: self.revision, term: 1 }
    }

    fn put(&mut self, key: &Bytes, value: Bytes, revision: Revision) {
        assert!(key.starts_with(ORCHESTRATION_PREFIX.as_bytes()), "{key:?} is written");
        let kv = self.kvs.entry(key.clone()).or_insert_with(|| KeyValue {
            key: key.clone(),
            create_revision: revision,
            ..KeyValue::default()
        });
        (kv.value, kv.mod_revision, kv.version) = (value, revision, kv.version + 1);
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        let (range, requested, current) = (&request.range, request.revision, self.revision);
        if requested > current {
            return Err(Refusal::FutureRevision { requested, current }.into());
        }
        let prefix = KeyRange::prefix(ORCHESTRATION_PREFIX);
        assert!(prefix.contains(&range.key), "{range:?} is read");
        if let Some(within) = self.within.as_ref().filter(|_| !range.is_single()) {
            assert!(range.key >= within.key && range.end == within.end, "{range:?} is not in {within:?}");
        }
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let mut kvs: Vec<KeyValue> =
            self.kvs.values().filter(|kv| range.contains(&kv.key)).cloned().collect();
        let count = kvs.len();
        kvs.truncate(limit);
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(RangeResponse { more: kvs.len() < count, count: count as i64, kvs })
    }

    fn txn(&mut self, ops: &[TxnOp], revision: Revision) -> Result<TxnResponse, Error> {
        let mut responses = Vec::new();
        for op in ops {
            responses.push(match op {
                TxnOp::Range(request) => TxnOpResponse::Range(self.range(request)?),
                TxnOp::Put(put) => {
                    self.put(&put.key, put.value.clone(), revision);
                    TxnOpResponse::Put(Default::default())
                }
                TxnOp::Delete(delete) => {
                    self.kvs.retain(|key, _| !delete.range.contains(key));
                    TxnOpResponse::Delete(Default::default())
                }
                TxnOp::Txn(nested) => TxnOpResponse::Txn(self.txn(&nested.success, revision)?),
            });
        }
        Ok(TxnResponse { responses, succeeded: true })
    }
}

impl Keys {
    fn set(&self, key: impl Into<Bytes>, value: &[u8]) {
        let mut state = self.0.lock().unwrap();
        state.revision += 1;
        let revision = state.revision;
        state.put(&key.into(), Bytes::copy_from_slice(value), revision);
    }

    fn within(&self, prefix: &'static str) {
        self.0.lock().unwrap().within = Some(KeyRange::prefix(prefix));
    }
}

impl Store for Keys {
    type Watch = Silent;

    async fn range(&self, request: RangeRequest) -> Result<(Header, RangeResponse), Error> {
        let state = self.0.lock().unwrap();
        Ok((state.header(), state.range(&request)?))
    }

    async fn txn(&self, request: TxnRequest) -> Result<(Header, TxnResponse), Error> {
        let mut state = self.0.lock().unwrap();
        let revision = state.revision + 1;
        let answer = state.txn(&request.success, revision)?;
        state.revision = revision;
        Ok((state.header(), answer))
    }

    async fn watch(&self, _: WatchRequest) -> Result<Silent, Error> {
        Ok(Silent)
    }

    async fn lease_grant(&self, _: i64) -> Result<LeaseId, Error> {
        Ok(1)
    }

    async fn lease_keep_alive(&self, _: LeaseId) -> Result<(), Error> {
        Ok(())
    }

    async fn lease_revoke(&self, _: LeaseId) -> Result<(), Error> {
        Ok(())
    }
}

struct Silent;

impl Events for Silent {
    async fn next(&mut self) -> Result<Option<WatchBatch>, Error> {
        std::future::pending().await
    }
}

/// It stands still: whoever waits does not come back.
#[derive(Clone)]
struct Still;

impl Clock for Still {
    fn now(&self) -> Time {
        1
    }

    async fn sleep(&self, _: Duration) {
        std::future::pending().await
    }

    fn random(&self) -> u64 {
        7
    }
}

/// `None` where it would wait.
fn run<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

fn done<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    run(future).expect("the store answers at once")
}

type Orch = Orchestrator<Keys, Still>;

fn object(id: &str) -> Object {
    Object {
        key: ObjectKey { kind: "secret".into(), id: id.into() },
        name: "s".into(),
        labels: vec![("a".into(), "b".into())],
        refs: Vec::new(),
        spec: "hidden".into(),
        status: Bytes::new(),
        version: 0,
        created: 0,
        updated: 0,
    }
}

fn status(state: TaskState) -> TaskStatus {
    TaskStatus { state, message: "m".into(), error: "e".into(), exit_code: Some(1), at: 9 }
}

fn task(id: &str) -> Task {
    Task {
        id: id.into(),
        service: "web".into(),
        slot: 1,
        node: Some(NODE),
        labels: vec![("a".into(), "b".into())],
        refs: vec![object("o").key],
        spec: "run".into(),
        desired: TaskState::Running,
        status: status(TaskState::Assigned),
        version: 0,
        created: 0,
        updated: 0,
    }
}

/// One of each, written by the layer itself.
fn filled() -> (Keys, Orch) {
    let keys = Keys::default();
    let orch = Orchestrator::new(keys.clone(), Still);
    keys.set("_rk/k", &[7; 32]);
    done(orch.create(object("o"))).expect("nothing is in its way");
    done(orch.create_task(task("t"))).expect("nothing is in its way");
    done(orch.describe_node(NODE, "n".into(), "d".into())).expect("nothing is in its way");
    done(Alerts::new(keys.clone(), Still).raise(AlertKind::NoRoom, "s", "t")).expect("nothing is in its way");
    (keys, orch)
}

/// Where bytes are put; the first byte of an input chooses.
const PLACES: &[&str] = &[
    "_rk/o/secret/o",
    "_rk/x/secret/o",
    "_rk/oi/n/secret/s",
    "_rk/t/t",
    "_rk/s/t",
    "_rk/tn/0000000000000005/t",
    "_rk/w/0000000000000005",
    "_rk/a/0000000000000005",
    "_rk/e/no-room/s",
    "_rk/f",
    "_rk/k",
    "_rk/q/work",
];

/// Everything that is stored, read and changed while one key holds `bytes`.
fn stored(place: &'static str, bytes: &[u8]) {
    let (keys, orch) = filled();
    keys.set(place, bytes);
    exercise(&keys, &orch);
}

fn exercise(keys: &Keys, orch: &Orch) {
    let _ = done(orch.object(&object("o").key));
    let _ = done(orch.object_named("secret", "s"));
    let _ = done(orch.objects("secret", ObjectBy::All, Page::all()));
    let _ = done(orch.set_status(&object("o").key, "status".into()));
    if let Ok(Some(task)) = done(orch.task("t")) {
        let mine = task.node == Some(NODE);
        let told = done(orch.report(NODE, vec![("t".into(), status(TaskState::Running))]));
        let told = told.expect("what can be read can be reported of");
        assert_eq!(told == [Reported::NotYours], !mine, "{told:?} of {task:?}");
        if let Ok(changed) = done(orch.set_desired("t", TaskState::Remove)) {
            let read = done(orch.task("t")).expect("it was written").expect("it was written");
            assert_eq!(Task { version: read.version, ..changed }, read);
        }
    }
    for by in [TaskBy::All, TaskBy::Node(NODE), TaskBy::Service("web".into())] {
        let _ = done(orch.tasks(by, Page::first(3)));
    }
    let _ = done(orch.set_node_state(NODE, NodeState::Down));
    let _ = done(orch.nodes(Page::all()));
    let alerts = Alerts::new(keys.clone(), Still);
    let _ = (done(alerts.all()), done(alerts.raise(AlertKind::NoRoom, "s", "again")));
    let _ = run(Queue::new(keys.clone(), "work", "_rk/t/").next());
    // A session waits where it can't read; what it can, it sends.
    let opened = done(Dispatcher::new(orch.clone(), Settings::default()).open(NODE, None));
    if let Ok(mut session) = opened {
        let _ = run(session.next());
    }
    if let Ok(fence) = done(Fence::take(keys, 3)) {
        let _ = done(orch.fenced(fence).delete_task("t"));
    }
    let _ = done(orch.batch(vec![Change::Update(object("o")), Change::Delete(object("o").key, 1)]));
}

/// Keys below the prefix that nobody made: those of `bytes` behind each kind of key.
fn keys(bytes: &[u8]) {
    let (keys, orch) = filled();
    for place in
        ["_rk/", "_rk/o/", "_rk/oi/l/", "_rk/t/", "_rk/tn/0000000000000005/", "_rk/a/", "_rk/w/", "_rk/e/"]
    {
        let key = [place.as_bytes(), bytes].concat();
        if !["_rk/k", "_rk/f"].iter().any(|own| key == own.as_bytes()) {
            keys.set(key, b"");
        }
    }
    exercise(&keys, &orch);
}

/// A cursor that somebody says was given to him: it never leads out of its listing.
fn cursor(bytes: &[u8]) {
    let (keys, orch) = filled();
    let page = || Page { after: Some(Bytes::copy_from_slice(bytes)), limit: 2 };
    let within = |prefix, what: &dyn Fn()| {
        keys.within(prefix);
        what();
    };
    within("_rk/t/", &|| drop(done(orch.tasks(TaskBy::All, page()))));
    within("_rk/tn/0000000000000005/", &|| drop(done(orch.tasks(TaskBy::Node(NODE), page()))));
    within("_rk/o/secret/", &|| drop(done(orch.objects("secret", ObjectBy::All, page()))));
    within("_rk/w/", &|| drop(done(orch.nodes(page()))));
}

/// A session's token from a worker: its own place, or everything anew, and never another node's.
fn token(bytes: &[u8]) {
    let (_, orch) = filled();
    let dispatcher = Dispatcher::new(orch, Settings::default());
    for node in [NODE, NodeId(6)] {
        let opened = done(dispatcher.open(node, Some(Bytes::copy_from_slice(bytes))));
        let mut session = opened.expect("whatever the token is, a session opens");
        let update = run(session.next()).expect("the first comes at once").expect("the store answers");
        assert!(update.applies_to.is_empty() || update.applies_to == bytes);
        assert!(node == NODE || update.tasks.is_empty(), "{update:?}");
        assert!(node == NODE || update.applies_to.is_empty(), "another node's token was taken");
    }
}

/// See the module.
pub fn typed(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match usize::from(*kind) {
        0 => keys(bytes),
        1 => cursor(bytes),
        2 => token(bytes),
        place => stored(PLACES[(place - 3) % PLACES.len()], bytes),
    }
}

/// What the layer writes and gives itself, in each place.
pub fn seeds() -> Vec<Vec<u8>> {
    let (keys, orch) = filled();
    let mut seeds: Vec<Vec<u8>> =
        ["secret/x", "x", "%2F/%zz", "a=b/c"].iter().map(|key| [&[0][..], key.as_bytes()].concat()).collect();
    done(orch.create_task(task("u"))).expect("nothing is in its way");
    let listed = done(orch.tasks(TaskBy::All, Page::first(1))).expect("the store answers");
    seeds.push([&[1][..], &listed.next.expect("there is another")].concat());
    let listed = done(orch.tasks(TaskBy::Node(NODE), Page::first(1))).expect("the store answers");
    seeds.push([&[1][..], &listed.next.expect("there is another")].concat());
    let opened = done(Dispatcher::new(orch, Settings::default()).open(NODE, None));
    let update = run(opened.expect("the store answers").next()).expect("the first comes at once");
    seeds.push([&[2][..], &update.expect("the store answers").results_in].concat());
    let state = keys.0.lock().unwrap();
    for (number, place) in PLACES.iter().enumerate() {
        let value = state.kvs.get(place.as_bytes()).map(|kv| kv.value.clone()).unwrap_or_default();
        seeds.push([&[number as u8 + 3][..], &value].concat());
    }
    seeds
}
