//! Workers at members' doors: sessions that go on after a leader's death, nodes that come and go, and a
//! worker with a good certificate that wants more than its own.

mod process;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use etcd_api::raftkv::manager_says::Says as Answer;
use etcd_api::raftkv::worker_client::WorkerClient as Stub;
use etcd_api::raftkv::worker_says::Says;
use etcd_api::raftkv::{
    ManagerSays, WorkerEndedWhy, WorkerHeartbeat, WorkerOpen, WorkerReport, WorkerReported, WorkerSays,
    WorkerTaskStatus, WorkerUpdate,
};
use process::{Member, free_address, raft_kv};
use raft_kv::client::{Config, Handle, Node, Tuning};
use raft_kv::net::read_credentials_in;
use raft_kv::orchestration::session::Settings;
use raft_kv::orchestration::{
    NodeState, Object, ObjectKey, Orchestrator, SystemClock, Task, TaskState, TaskStatus,
};
use raft_kv::pki::{Credentials, Identity};
use raft_kv::types::{KeyRange, MemberRole, NodeId, PutRequest, RangeRequest, Role, WatchRequest};
use raft_kv_server::door::Door;
use raft_kv_server::worker_client::{WorkerClient, channel};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tower::{Service, ServiceExt};

const DEADLINE: Duration = Duration::from_secs(60);

type Orch = Orchestrator<Handle, SystemClock>;

/// A cluster's first member, in this process.
struct First {
    node: Node,
    door: Door,
    orch: Orch,
    folder: tempfile::TempDir,
}

impl First {
    async fn new(settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            data_dir: folder.path().join("one"),
            name: "one".into(),
            listen_addr: free_address().parse().unwrap(),
            advertise_addr: None,
            client_addr: Some("127.0.0.1:0".parse().unwrap()),
            advertise_client_addr: None,
            own_root: None,
            external_signer: None,
            tuning: Tuning::default(),
        };
        let node = Node::init(config).await.unwrap();
        let door = Door::open_with(node.client_listener().unwrap(), &node, settings).unwrap();
        node.leadership().wait_for(|leadership| leadership.ready).await.unwrap();
        let orch = Orchestrator::new(node.handle(), SystemClock);
        Self { node, door, orch, folder }
    }

    fn entry(&self) -> String {
        self.door.addr().to_string()
    }

    /// A worker's certificate, and its id.
    async fn worker(&self, name: &str) -> (Credentials, NodeId) {
        let token = self.node.handle().join_token(Role::Worker).await.unwrap();
        let out = self.folder.path().join(name);
        let addr = self.node.addr().to_owned();
        let words = ["enrol", "--token", &token, "--endpoints", &addr, "--name", name, "--json", "--out"];
        let words: Vec<String> =
            words.iter().map(|word| (*word).to_owned()).chain([out.to_str().unwrap().to_owned()]).collect();
        tokio::task::spawn_blocking(move || raft_kv(&words).done()).await.unwrap();
        let own = read_credentials_in(&out).unwrap();
        let id = Identity::from_cert(&own.chain[0]).unwrap().node;
        (own, id)
    }

    async fn give(&self, id: &str, node: NodeId, refs: Vec<ObjectKey>) -> Task {
        let status = TaskStatus {
            state: TaskState::New,
            message: String::new(),
            error: String::new(),
            exit_code: None,
            at: 1,
        };
        let task = Task {
            id: id.into(),
            service: "web".into(),
            slot: 1,
            node: None,
            labels: Vec::new(),
            refs,
            spec: Bytes::from_static(b"run"),
            desired: TaskState::Running,
            status,
            version: 0,
            created: 0,
            updated: 0,
        };
        self.orch.create_task(task).await.unwrap();
        self.orch.assign(id, node).await.unwrap()
    }

    async fn end(self) {
        drop(self.orch);
        self.door.close().await;
        self.node.shutdown().await.unwrap();
        drop(self.folder);
    }
}

fn client(entries: &[String], own: &Credentials) -> WorkerClient {
    WorkerClient::new(entries.to_vec(), own, "rack7", Bytes::from_static(b"linux")).unwrap()
}

fn status(state: TaskState) -> TaskStatus {
    TaskStatus { state, message: "so".into(), error: String::new(), exit_code: None, at: 7 }
}

async fn within<T>(what: &str, done: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, done).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// Drives the worker until `done`.
async fn until(what: &str, worker: &mut WorkerClient, done: impl Fn(&WorkerClient) -> bool) -> bool {
    let mut whole = false;
    within(what, async {
        while !done(worker) {
            whole |= worker.next().await.unwrap().complete;
        }
    })
    .await;
    whole
}

async fn joined(first: &First, name: &'static str) -> Member {
    let token = first.node.handle().join_token(Role::Manager).await.unwrap();
    let (addr, data_dir) = (first.node.addr().to_owned(), first.folder.path().join(name));
    let join = move || {
        let listen = free_address();
        let words = [
            "join",
            "--name",
            name,
            "--listen-addr",
            &listen,
            "--etcd-addr",
            "127.0.0.1:0",
            "--token",
            &token,
            &addr,
        ];
        Member::start(&words, &data_dir).unwrap_or_else(|ended| panic!("{ended:?}"))
    };
    tokio::task::spawn_blocking(join).await.unwrap()
}

fn entry(member: &Member) -> String {
    member.etcd_url.strip_prefix("https://").unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_elsewhere_when_the_leader_that_served_it_is_killed() {
    let first = First::new(Settings::default()).await;
    let (mut two, three) = (joined(&first, "two").await, joined(&first, "three").await);
    let (own, node) = first.worker("w").await;
    for number in 0..30 {
        first.give(&format!("t{number:02}"), node, Vec::new()).await;
    }
    let leader = NodeId(u64::from_str_radix(&two.id, 16).unwrap());
    within("leadership moves", async {
        while first.node.leadership().borrow().leader != Some(leader) {
            let _ = first.node.handle().transfer(Some(leader)).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    within("all vote", async {
        while first
            .node
            .handle()
            .members()
            .await
            .unwrap()
            .1
            .iter()
            .filter(|member| member.role == MemberRole::Voter)
            .count()
            < 3
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    // Only the one that is to be killed at first; then the others too.
    let mut worker = client(&[entry(&two)], &own);
    until("all tasks", &mut worker, |worker| worker.tasks().len() == 30).await;
    worker.set_entries(vec![entry(&two), entry(&three), first.entry()]);
    let reporter = worker.reporter();
    two.running.kill();
    reporter.report("t00", status(TaskState::Running));
    let change = async {
        // The cluster may need a moment for its next leader.
        while first.orch.set_desired("t07", TaskState::Shutdown).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let seen = |worker: &WorkerClient| worker.tasks()["t07"].desired == TaskState::Shutdown;
    let (whole, ()) = tokio::join!(until("the change is seen", &mut worker, seen), change);
    assert!(!whole, "everything was sent again");
    assert_eq!(worker.tasks().len(), 30);
    within("the report is stored", async {
        while reporter.waiting() > 0
            || first.orch.task("t00").await.unwrap().unwrap().status.state != TaskState::Running
        {
            let _ = tokio::time::timeout(Duration::from_millis(200), worker.next()).await;
        }
    })
    .await;
    drop((worker, two, three));
    first.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_gone_is_down_and_what_it_had_is_given_up() {
    let settings = Settings {
        heartbeat: Duration::from_secs(1),
        orphan_after: Duration::from_secs(1),
        tick: Duration::from_millis(200),
        ..Settings::default()
    };
    let first = First::new(settings).await;
    let (own, node) = first.worker("w").await;
    first.give("a", node, Vec::new()).await;
    let is = async |state| {
        let orch = &first.orch;
        within("the node's state", async {
            while orch.node(node).await.unwrap().is_none_or(|record| record.state != state) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    };
    let mut worker = client(&[first.entry()], &own);
    until("its task", &mut worker, |worker| worker.tasks().len() == 1).await;
    is(NodeState::Ready).await;
    assert_eq!(first.orch.node(node).await.unwrap().unwrap().name, "rack7");
    drop(worker);
    is(NodeState::Down).await;
    within("its task is given up", async {
        while first.orch.task("a").await.unwrap().unwrap().status.state != TaskState::Orphaned {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let mut worker = client(&[first.entry()], &own);
    until("it is told", &mut worker, |worker| {
        worker.tasks().get("a").is_some_and(|task| task.desired == TaskState::Shutdown)
    })
    .await;
    is(NodeState::Ready).await;
    drop(worker);
    first.end().await;
}

/// What a worker says by hand.
struct Raw {
    says: mpsc::Sender<WorkerSays>,
    hears: Streaming<ManagerSays>,
}

impl Raw {
    async fn new(entry: &str, own: &Credentials) -> Self {
        let (says, said) = mpsc::channel(300);
        let mut stub = Stub::new(channel(entry, own).await.unwrap());
        let hears = stub.session(ReceiverStream::new(said)).await.unwrap().into_inner();
        Self { says, hears }
    }

    async fn say(&self, says: Says) {
        let _ = self.says.send(WorkerSays { says: Some(says) }).await;
    }

    async fn opened(entry: &str, own: &Credentials, resume: Bytes) -> (Self, WorkerUpdate) {
        let mut raw = Self::new(entry, own).await;
        raw.say(Says::Open(WorkerOpen { resume, description: None })).await;
        loop {
            if let Answer::Update(update) = raw.hear().await.expect("an update") {
                return (raw, update);
            }
        }
    }

    /// `None` at the end, also at one by an error.
    async fn hear(&mut self) -> Option<Answer> {
        within("an answer", self.hears.message()).await.ok().flatten().and_then(|says| says.says)
    }

    async fn ends(mut self, why: WorkerEndedWhy) {
        loop {
            match self.hear().await {
                Some(Answer::Ended(ended)) => return assert_eq!(ended.why(), why),
                Some(_) => {}
                None => panic!("it ends without a word"),
            }
        }
    }
}

fn ids(update: &WorkerUpdate) -> Vec<&str> {
    update.tasks.iter().map(|task| task.id.as_str()).collect()
}

/// Every method of every service that there is a description of.
fn methods() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../etcd-api/proto");
    let mut all = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let (mut package, mut service) = ("", "");
        for line in text.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("package ") {
                package = rest.trim_end_matches(';');
            } else if let Some(rest) = line.strip_prefix("service ") {
                service = rest.split([' ', '{']).next().unwrap();
            } else if let Some(rest) = line.strip_prefix("rpc ") {
                all.push(format!("/{package}.{service}/{}", rest.split(['(', ' ']).next().unwrap()));
            }
        }
    }
    all.extend(
        [
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            "/raftkv.Worker/Nothing",
            "/no.Service/Nothing",
        ]
        .map(str::to_owned),
    );
    all
}

/// What is answered: the HTTP status, gRPC's code and text, and the body's length as far as it is told.
async fn asked(entry: &str, own: &Credentials, path: &str, content: &str) -> (u16, String, String) {
    let mut channel = channel(entry, own).await.unwrap();
    let request = http::Request::post(path).header("content-type", content);
    let request = request.body(tonic::body::Body::empty()).unwrap();
    let answer = within(path, channel.ready().await.unwrap().call(request)).await.unwrap();
    let header = |name| answer.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    (answer.status().as_u16(), header("grpc-status"), header("grpc-message"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_worker_gets_refusals_that_say_nothing() {
    let first = First::new(Settings::default()).await;
    let secret = ObjectKey { kind: "secret".into(), id: "s1".into() };
    let object = Object {
        key: secret.clone(),
        name: "password".into(),
        labels: Vec::new(),
        refs: Vec::new(),
        spec: Bytes::from_static(b"hidden"),
        status: Bytes::new(),
        version: 0,
        created: 0,
        updated: 0,
    };
    first.orch.create(object).await.unwrap();
    let ((own, node), (other, other_node)) = (first.worker("w").await, first.worker("v").await);
    first.give("mine", node, Vec::new()).await;
    first.give("theirs", other_node, vec![secret.clone()]).await;
    let entry = first.entry();

    // Every path but its own, and what is not there, is refused alike.
    let all = methods();
    assert!(all.len() > 50, "{all:?}");
    for path in all.iter().filter(|path| *path != "/raftkv.Worker/Session") {
        let told = asked(&entry, &own, path, "application/grpc").await;
        assert_eq!(told, (200, "7".into(), "not%20for%20this%20certificate".into()), "{path}");
    }
    for path in [
        "/v3/kv/range",
        "/v3/kv/put",
        "/v3/kv/deleterange",
        "/v3/kv/txn",
        "/v3/watch",
        "/v3/lease/grant",
        "/v3/cluster/member/list",
        "/v3/maintenance/status",
        "/v3/auth/enable",
        "/v3/lock/lock",
        "/metrics",
        "/health",
        "/version",
        "/",
        "/nothing",
        "/raftkv.Worker/Session",
    ] {
        assert_eq!(
            asked(&entry, &own, path, "application/json").await,
            (403, String::new(), String::new()),
            "{path}"
        );
    }
    quic(&first, &own).await;

    // Tokens of others, forged ones and none: its own tasks, complete.
    let (_keep, theirs) = Raw::opened(&entry, &other, Bytes::new()).await;
    assert_eq!((ids(&theirs), theirs.objects.len()), (vec!["theirs"], 1));
    let forged =
        [Bytes::from(vec![0; 44]), Bytes::from(vec![9; 44]), Bytes::from(vec![1; 100_000]), "x".into()];
    let mut lengths = std::collections::BTreeSet::new();
    for token in forged.into_iter().chain([theirs.results_in.clone()]) {
        let (_, update) = Raw::opened(&entry, &own, token).await;
        assert!(update.applies_to.is_empty() && update.objects.is_empty());
        assert_eq!(ids(&update), ["mine"]);
        lengths.insert(update.results_in.len());
    }
    assert_eq!(lengths.len(), 1);

    // A token of its own that is used again does no harm.
    let (raw, update) = Raw::opened(&entry, &own, Bytes::new()).await;
    drop(raw);
    for _ in 0..2 {
        let (_, again) = Raw::opened(&entry, &own, update.results_in.clone()).await;
        assert_eq!((again.applies_to.clone(), again.tasks.len()), (update.results_in.clone(), 0));
    }

    reports(&entry, &own).await;
    assert_eq!(first.orch.task("theirs").await.unwrap().unwrap().status.state, TaskState::Assigned);
    against_the_protocol(&entry, &own).await;

    // A newer session ends the older one, with a word; nobody but a worker opens one.
    let (older, _) = Raw::opened(&entry, &own, Bytes::new()).await;
    let (_newer, _) = Raw::opened(&entry, &own, Bytes::new()).await;
    older.ends(WorkerEndedWhy::WorkerEndedTaken).await;
    let manager = raft_kv::client::credentials_of(first.node.data_dir());
    if let Ok((manager, _)) = manager {
        let told = asked(&entry, &manager, "/raftkv.Worker/Session", "application/grpc").await;
        assert_eq!(told.1, "7");
    }
    first.end().await;
}

/// What no worker may say of tasks that are not its own, whether there are such or not.
async fn reports(entry: &str, own: &Credentials) {
    let (mut raw, _) = Raw::opened(entry, own, Bytes::new()).await;
    let of = |id: &str, state: u32| WorkerTaskStatus { id: id.into(), state, ..Default::default() };
    let ids = ["theirs", "nobodys", "", "../mine", "mine/", "%2F", "mine"];
    let statuses = ids.iter().map(|id| of(id, 512)).collect();
    raw.say(Says::Report(WorkerReport { number: 5, statuses })).await;
    loop {
        if let Some(Answer::Acknowledged(told)) = raw.hear().await {
            let mut expect = vec![WorkerReported::NotYours as i32; ids.len() - 1];
            expect.push(WorkerReported::Taken as i32);
            assert_eq!((told.number, told.reported), (5, expect));
            break;
        }
    }
    for statuses in
        [vec![of("mine", 800)], vec![of("mine", 1)], vec![of("mine", 192)], vec![of("x", 512); 101]]
    {
        let (raw, _) = Raw::opened(entry, own, Bytes::new()).await;
        raw.say(Says::Report(WorkerReport { number: 1, statuses })).await;
        raw.ends(WorkerEndedWhy::WorkerEndedMistake).await;
    }
}

async fn against_the_protocol(entry: &str, own: &Credentials) {
    let heartbeat = || Says::Heartbeat(WorkerHeartbeat {});
    let raw = Raw::new(entry, own).await;
    raw.say(heartbeat()).await;
    raw.ends(WorkerEndedWhy::WorkerEndedMistake).await;
    let (raw, _) = Raw::opened(entry, own, Bytes::new()).await;
    raw.say(Says::Open(WorkerOpen::default())).await;
    raw.ends(WorkerEndedWhy::WorkerEndedMistake).await;
    // Larger than any message may be.
    let raw = Raw::new(entry, own).await;
    raw.say(Says::Open(WorkerOpen { resume: vec![0; 2 * 1024 * 1024].into(), description: None })).await;
    raw.ends(WorkerEndedWhy::WorkerEndedMistake).await;
    // More than it is asked for: they wait, and nothing breaks.
    let (mut raw, _) = Raw::opened(entry, own, Bytes::new()).await;
    for _ in 0..200 {
        raw.say(heartbeat()).await;
    }
    for _ in 0..200 {
        assert!(matches!(raw.hear().await, Some(Answer::Beat(_) | Answer::Update(_))));
    }
}

/// The calls between members and of clients.
async fn quic(first: &First, own: &Credentials) {
    let handle = match Handle::connect(&[first.node.addr().to_owned()], own.clone()).await {
        Ok(handle) => handle.with_patience(Duration::from_secs(5)),
        Err(_) => return,
    };
    let range = KeyRange::prefix("_rk/");
    let put = PutRequest { key: "_rk/t/mine".into(), value: "x".into(), ..Default::default() };
    let watch = WatchRequest { range: range.clone(), ..Default::default() };
    assert!(handle.range(RangeRequest { range, ..Default::default() }).await.is_err());
    assert!(handle.put(put).await.is_err());
    assert!(handle.watch(watch).await.is_err());
    assert!(handle.lease_grant(0, 10).await.is_err());
    assert!(handle.leases().await.is_err());
    assert!(handle.members().await.is_err());
    assert!(handle.join_token(Role::Manager).await.is_err());
}
