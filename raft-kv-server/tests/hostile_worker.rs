//! A worker with a good certificate that tries everything there is: every method of every service that a
//! description was generated of, every path of the JSON gateway, every call over QUIC, and its own method with what
//! is other nodes'. It gets refusals that are the same for all, whatever there is, and changes nothing.
//!
//! Methods come from the generated descriptors, calls from their tags: what is new is tried without being named here.

mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::TcpListener;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use etcd_api::raftkv::manager_says::Says as Answer;
use etcd_api::raftkv::worker_says::Says;
use etcd_api::raftkv::{
    ManagerSays, WorkerDescription, WorkerHeartbeat, WorkerOpen, WorkerReport, WorkerSays, WorkerTaskStatus,
};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use process::free_address;
use prost::Message;
use raft_kv::client::api::{Call, JoinRequest};
use raft_kv::client::{Config, Handle, Node, Tuning, enrol};
use raft_kv::codec::Wire;
use raft_kv::error::{Error, Refusal};
use raft_kv::machine::Command;
use raft_kv::orchestration::session::{Dispatcher, Settings};
use raft_kv::orchestration::{Orchestrator, SystemClock, Task, TaskState, TaskStatus};
use raft_kv::pki::{Credentials, Identity, NodeKey};
use raft_kv::types::{
    AlarmRequest, AuthChange, AuthQuery, EnrolRequest, KeyRange, MemberRecord, NodeId, PointCall,
    PointDiffRequest, PutRequest, QuotaCall, RangeRequest, ReadmitRequest, Role, TrustCall, TxnRequest,
    WatchRequest,
};
use raft_kv_server::door::Door;
use raft_kv_server::worker_client::channel;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

const DEADLINE: Duration = Duration::from_secs(60);
const SESSION: &str = "/raftkv.Worker/Session";

type Orch = Orchestrator<Handle, SystemClock>;

async fn within<T>(what: &str, done: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, done).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// A member with its door, two workers' tasks, a user's key; one of the workers is the hostile one.
struct Scene {
    node: Node,
    door: Door,
    orch: Orch,
    own: Credentials,
    id: NodeId,
    other: NodeId,
    /// The other worker's token.
    token: Bytes,
    _folder: tempfile::TempDir,
}

fn id_of(own: &Credentials) -> NodeId {
    Identity::from_cert(&own.chain[0]).unwrap().node
}

fn task(id: &str, node: NodeId) -> Task {
    let (message, error) = (String::new(), String::new());
    Task {
        id: id.into(),
        service: format!("service-of-{id}"),
        slot: 1,
        node: Some(node),
        labels: vec![("rack".into(), format!("label-of-{id}"))],
        refs: Vec::new(),
        spec: format!("spec-of-{id}").into(),
        desired: TaskState::Running,
        status: TaskStatus { state: TaskState::Assigned, message, error, exit_code: None, at: 1 },
        version: 0,
        created: 0,
        updated: 0,
    }
}

impl Scene {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            data_dir: folder.path().join("one"),
            name: "member-of-secrets".into(),
            listen_addr: free_address().parse().unwrap(),
            advertise_addr: None,
            client_addr: None,
            advertise_client_addr: None,
            own_root: None,
            external_signer: None,
            tuning: Tuning::default(),
        };
        let node = Node::init(config).await.unwrap();
        let door = Door::open(TcpListener::bind("127.0.0.1:0").unwrap(), &node).unwrap();
        within("it leads", node.leadership().wait_for(|leadership| leadership.ready)).await.unwrap();
        let orch = Orchestrator::new(node.handle(), SystemClock);
        let token = node.handle().join_token(Role::Worker).await.unwrap();
        let members = [node.addr().to_owned()];
        let own = enrol(&token, &members, "hostile").await.unwrap();
        let other = id_of(&enrol(&token, &members, "victim-of-it").await.unwrap());
        let id = id_of(&own);
        orch.create_task(task("mine", id)).await.unwrap();
        orch.create_task(task("theirs", other)).await.unwrap();
        orch.describe_node(other, "victim-of-it".into(), Bytes::from_static(b"kept")).await.unwrap();
        let put = PutRequest { key: "user/key".into(), value: "user-value".into(), ..Default::default() };
        node.handle().put(put).await.unwrap();
        let dispatcher = Dispatcher::new(orch.clone(), Settings::default());
        let token = dispatcher.open(other, None).await.unwrap().next().await.unwrap().results_in;
        Self { node, door, orch, own, id, other, token, _folder: folder }
    }

    async fn channel(&self) -> Channel {
        channel(&self.door.addr().to_string(), &self.own).await.unwrap()
    }

    /// Everything that is stored but what is the hostile worker's, what the leader's duty on nodes writes, and keys
    /// that end by themselves.
    async fn others(&self) -> BTreeMap<Bytes, Bytes> {
        let all = RangeRequest { range: KeyRange::prefix(""), ..Default::default() };
        let (_, found) = self.node.handle().range(all).await.unwrap();
        let (own, other) = (self.id.to_string(), self.other.to_string());
        let is_others = |key: &[u8]| {
            let key = String::from_utf8_lossy(key);
            let duty = ["_rk/f".to_owned(), "_rk/k".to_owned(), format!("_rk/w/{other}")];
            !key.contains(&own)
                && !key.contains("mine")
                && !key.starts_with("_rk/a/")
                && !duty.iter().any(|duty| *duty == key)
        };
        let kvs = found.kvs.into_iter().filter(|kv| is_others(&kv.key));
        kvs.map(|kv| (kv.key, [kv.value.as_ref(), &kv.mod_revision.to_le_bytes()].concat().into())).collect()
    }

    /// What must not be in anything that it hears.
    fn secrets(&self) -> Vec<Vec<u8>> {
        let (node, other) = (&self.node, self.other);
        let port = |addr: &str| format!(":{}", addr.rsplit_once(':').unwrap().1).into_bytes();
        let mut all = vec![
            node.addr().as_bytes().to_vec(),
            port(node.addr()),
            node.name().as_bytes().to_vec(),
            node.id().to_string().into_bytes(),
            node.id().0.to_string().into_bytes(),
            node.id().0.to_le_bytes().to_vec(),
            node.id().0.to_be_bytes().to_vec(),
            node.cluster().0.to_string().into_bytes(),
        ];
        all.extend(self.secrets_of_others());
        all.extend([other.0.to_le_bytes().to_vec(), other.0.to_be_bytes().to_vec()]);
        all
    }

    /// What is another worker's or a user's.
    fn secrets_of_others(&self) -> Vec<Vec<u8>> {
        let other = self.other;
        let words = ["theirs", "victim-of-it", "user/key", "user-value", "default-manager"];
        let ids = [other.to_string(), other.0.to_string()];
        words.iter().map(|word| word.as_bytes().to_vec()).chain(ids.map(String::into_bytes)).collect()
    }

    async fn end(self) {
        drop(self.orch);
        self.door.close().await;
        self.node.shutdown().await.unwrap();
    }
}

fn says_nothing(what: &str, heard: &[u8], secrets: &[Vec<u8>]) {
    for secret in secrets {
        let there = heard.windows(secret.len()).any(|part| part == secret.as_slice());
        assert!(
            !there,
            "{what} tells {}: {}",
            String::from_utf8_lossy(secret),
            String::from_utf8_lossy(heard)
        );
    }
}

/// As much of a descriptor set as is looked at.
mod described {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Set {
        #[prost(message, repeated, tag = "1")]
        pub file: Vec<File>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct File {
        #[prost(string, tag = "2")]
        pub package: String,
        #[prost(message, repeated, tag = "6")]
        pub service: Vec<Named>,
    }
    /// A service with its methods.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Named {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, repeated, tag = "2")]
        pub method: Vec<Method>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Method {
        #[prost(string, tag = "1")]
        pub name: String,
    }
}

/// The path of every method that was generated.
fn generated() -> BTreeSet<String> {
    let set = described::Set::decode(etcd_api::DESCRIPTORS).unwrap();
    let mut all = BTreeSet::new();
    for file in &set.file {
        for service in &file.service {
            let path =
                |method: &described::Method| format!("/{}.{}/{}", file.package, service.name, method.name);
            all.extend(service.method.iter().map(path));
        }
    }
    all
}

/// Every method written in the protos that are there: one that is not generated would not be tried.
fn written() -> BTreeSet<String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../etcd-api/proto");
    let mut all = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let (mut package, mut service) = ("", "");
        for line in text.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("package ") {
                package = rest.trim_end_matches(';');
            } else if let Some(rest) = line.strip_prefix("service ") {
                service = rest.split([' ', '{']).next().unwrap();
            } else if let Some(rest) = line.strip_prefix("rpc ") {
                all.insert(format!("/{package}.{service}/{}", rest.split(['(', ' ']).next().unwrap()));
            }
        }
    }
    all
}

fn frame(flag: u8, length: u32, message: &[u8]) -> Vec<u8> {
    let mut frame = BytesMut::new();
    frame.put_u8(flag);
    frame.put_u32(length);
    frame.put_slice(message);
    frame.to_vec()
}

fn framed(message: &[u8]) -> Vec<u8> {
    frame(0, u32::try_from(message.len()).unwrap(), message)
}

/// What is sent to every method: nothing, nothing in a frame, all keys or a name that is another's, another's id, and
/// what is no message.
fn bodies(scene: &Scene) -> Vec<Vec<u8>> {
    // The first two fields as bytes: a range of all keys, a key and a value, a name and a password.
    let all_keys = [0x0a, 1, 0, 0x12, 1, 0];
    let name = [&[0x0a, 6][..], b"theirs"].concat();
    let mut id = vec![0x08];
    let mut rest = scene.other.0;
    while rest >= 0x80 {
        id.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    id.push(rest as u8);
    vec![
        Vec::new(),
        framed(&[]),
        framed(&all_keys),
        framed(&name),
        framed(&id),
        framed(&[0xff; 40]),
        frame(0, u32::MAX, &[0; 40]),
        frame(1, 5, &[9; 5]),
        vec![7; 100_000],
    ]
}

/// All that comes back but the date: status, headers, body, trailers.
async fn answer(channel: &mut Channel, path: &str, content: Option<&str>, body: Vec<u8>) -> Vec<u8> {
    let mut request = http::Request::post(path).header("authorization", "root");
    if let Some(content) = content {
        request = request.header("content-type", content);
    }
    let request = request.body(tonic::body::Body::new(Full::new(Bytes::from(body)))).unwrap();
    let ready = within(path, channel.ready()).await.unwrap();
    let response = within(path, ready.call(request)).await.unwrap();
    let (head, body) = response.into_parts();
    let mut heard = format!("{}\n", head.status.as_u16()).into_bytes();
    let mut note = |headers: &http::HeaderMap| {
        for (name, value) in headers.iter().filter(|(name, _)| *name != http::header::DATE) {
            heard.extend_from_slice(format!("{name}: ").as_bytes());
            heard.extend_from_slice(value.as_bytes());
            heard.push(b'\n');
        }
    };
    note(&head.headers);
    // A stream that breaks says no more.
    let Ok(all) = within(path, body.collect()).await else { return heard };
    if let Some(trailers) = all.trailers() {
        note(trailers);
    }
    heard.extend_from_slice(&all.to_bytes());
    heard
}

/// The paths of the gateway: by etcd's names, with every method's own beside them.
const GATEWAY: &[&str] = &[
    "kv/range",
    "kv/put",
    "kv/deleterange",
    "kv/txn",
    "kv/compaction",
    "watch",
    "lease/grant",
    "lease/keepalive",
    "lease/revoke",
    "lease/timetolive",
    "lease/leases",
    "kv/lease/revoke",
    "kv/lease/timetolive",
    "kv/lease/leases",
    "cluster/member/add",
    "cluster/member/remove",
    "cluster/member/update",
    "cluster/member/list",
    "cluster/member/promote",
    "maintenance/alarm",
    "maintenance/status",
    "maintenance/defragment",
    "maintenance/hash",
    "maintenance/hashkv",
    "maintenance/snapshot",
    "maintenance/transfer-leadership",
    "maintenance/downgrade",
    "auth/enable",
    "auth/disable",
    "auth/status",
    "auth/authenticate",
    "auth/user/add",
    "auth/user/get",
    "auth/user/list",
    "auth/user/delete",
    "auth/user/changepw",
    "auth/user/grant",
    "auth/user/revoke",
    "auth/role/add",
    "auth/role/get",
    "auth/role/list",
    "auth/role/delete",
    "auth/role/grant",
    "auth/role/revoke",
    "lock/lock",
    "lock/unlock",
    "election/campaign",
    "election/proclaim",
    "election/leader",
    "election/observe",
    "election/resign",
];

/// How many routes the gateway's source has: one that is added there must be added above.
fn gateway_routes() -> usize {
    let source = include_str!("../src/gateway/mod.rs");
    source.matches("\", answer!(").count()
        + source.matches("\", answers!(").count()
        + source.matches("\", route)").count()
        + source.matches("\", keep_alive)").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_and_path_is_refused_alike_whatever_there_is() {
    assert_eq!(generated(), written());
    assert_eq!(gateway_routes(), GATEWAY.len(), "the gateway has other paths than are tried");
    let scene = Scene::new().await;
    let before = scene.others().await;
    let mut grpc = generated();
    assert!(grpc.remove(SESSION) && grpc.len() > 50);
    let more = [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/raftkv.Worker/Nothing",
        "/raftkv.Worker/Session/",
        "/raftkv.Worker/session",
        "//raftkv.Worker/Session",
        "/no.Service/Nothing",
    ];
    grpc.extend(more.map(str::to_owned));
    let (secrets, bodies) = (scene.secrets(), bodies(&scene));
    let mut channel = scene.channel().await;
    let mut told = BTreeSet::new();
    for path in &grpc {
        for body in &bodies {
            let heard = answer(&mut channel, path, Some("application/grpc"), body.clone()).await;
            says_nothing(path, &heard, &secrets);
            told.insert(heard);
        }
    }
    assert_eq!(
        told.len(),
        1,
        "{:?}",
        told.iter().map(|one| String::from_utf8_lossy(one)).collect::<Vec<_>>()
    );
    let refusal = told.pop_first().unwrap();
    let text = String::from_utf8_lossy(&refusal).into_owned();
    assert!(text.starts_with("200\n") && text.contains("grpc-status: 7\n"), "{text}");

    let pages =
        ["/", "/metrics", "/health", "/version", "/debug/pprof/", "/nothing", "/v3/", "/v3/nothing", SESSION];
    let mut paths: Vec<String> = pages.map(str::to_owned).into();
    paths.extend(
        ["/v3", "/v3beta"].iter().flat_map(|pre| GATEWAY.iter().map(move |path| format!("{pre}/{path}"))),
    );
    paths.extend(grpc.iter().cloned());
    for path in &paths {
        for (content, body) in [
            (Some("application/json"), &b"{\"key\":\"AA==\",\"range_end\":\"AA==\"}"[..]),
            (Some("text/plain"), &b"["[..]),
            (None, &b""[..]),
        ] {
            let heard = answer(&mut channel, path, content, body.to_vec()).await;
            says_nothing(path, &heard, &secrets);
            told.insert(heard);
        }
    }
    assert_eq!(
        told.len(),
        1,
        "{:?}",
        told.iter().map(|one| String::from_utf8_lossy(one)).collect::<Vec<_>>()
    );
    assert!(told.first().unwrap().starts_with(b"403\n"));

    // More of everything changes no answer: none of them counts.
    for number in 0..20 {
        scene.orch.create_task(task(&format!("theirs-{number}"), scene.other)).await.unwrap();
    }
    let again =
        answer(&mut channel, "/etcdserverpb.Cluster/MemberList", Some("application/grpc"), framed(&[]));
    assert_eq!(again.await, refusal);
    let after = scene.others().await;
    assert!(before.iter().all(|(key, value)| after.get(key) == Some(value)), "something was changed");
    scene.end().await;
}

/// Whether a whole update is among these frames of the answer.
fn has_update(mut data: &[u8]) -> bool {
    while let Some((head, rest)) = data.split_at_checked(5) {
        let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
        let Some((message, rest)) = rest.split_at_checked(length) else { return false };
        let says = ManagerSays::decode(message).unwrap().says;
        if matches!(says, Some(Answer::Update(update)) if !update.more) {
            return true;
        }
        data = rest;
    }
    false
}

/// All that comes back of one conversation. One that `stays` is ended by a mistake once its tasks were sent, if it
/// does not end before; any other ends with what is said.
async fn converse(channel: &mut Channel, what: &str, said: Vec<u8>, stays: bool) -> Vec<u8> {
    let (more, rest) = mpsc::channel(2);
    more.send(said).await.unwrap();
    let mut more = Some(more).filter(|_| stays);
    let body = ReceiverStream::new(rest).map(|said| Ok::<_, Infallible>(Frame::data(Bytes::from(said))));
    let request = http::Request::post(SESSION).header("content-type", "application/grpc");
    let request = request.body(tonic::body::Body::new(StreamBody::new(body))).unwrap();
    let ready = within(what, channel.ready()).await.unwrap();
    let response = within(what, ready.call(request)).await.unwrap();
    let mut heard = format!("{:?}", response.headers()).into_bytes();
    let (mut body, mut data) = (response.into_body(), Vec::new());
    // A stream that breaks says no more.
    while let Some(Ok(frame)) = within(what, body.frame()).await {
        match frame.into_data() {
            Ok(part) => data.extend_from_slice(&part),
            Err(frame) => heard.extend_from_slice(format!("{:?}", frame.trailers_ref()).as_bytes()),
        }
        if has_update(&data)
            && let Some(more) = more.take()
        {
            let _ = more.send(say(Says::Open(WorkerOpen::default()))).await;
        }
    }
    heard.extend_from_slice(&data);
    heard
}

fn say(says: Says) -> Vec<u8> {
    framed(&WorkerSays { says: Some(says) }.encode_to_vec())
}

/// Whole conversations on its own method. What is cut short ends there.
fn conversations(scene: &Scene) -> Vec<(&'static str, Vec<u8>)> {
    let open = |resume: Bytes| say(Says::Open(WorkerOpen { resume, description: None }));
    let description = |name: &str, bytes: usize| WorkerDescription {
        name: name.into(),
        description: vec![1; bytes].into(),
    };
    let status = |id: &str, state| WorkerTaskStatus {
        id: id.into(),
        state,
        message: "x".into(),
        ..Default::default()
    };
    let report = |statuses| say(Says::Report(WorkerReport { number: 1, statuses }));
    let opened = || open(Bytes::new());
    let then = |more: Vec<u8>| [opened(), more].concat();
    let mut forged = scene.token.to_vec();
    forged[20] ^= 1;
    let as_other = WorkerOpen { resume: Bytes::new(), description: Some(description("victim-of-it", 5)) };
    let ids = ["theirs", "nobodys", "", "%2F", "../t/theirs", "theirs/", "t\0h", "_rk/t/theirs"];
    let states = [0, 64, 192, 800, 832, 1, u32::MAX];
    let mut all = vec![
        ("another's token", open(scene.token.clone())),
        ("a forged token", open(forged.into())),
        ("a cut token", open(scene.token.slice(..43))),
        ("no token", open(vec![0; 44].into())),
        ("a long token", open(vec![1; 500_000].into())),
        ("another's name", say(Says::Open(as_other))),
        ("a heartbeat first", say(Says::Heartbeat(WorkerHeartbeat {}))),
        ("a report first", report(vec![status("theirs", 512)])),
        ("a description first", say(Says::Describe(description("x", 1)))),
        ("opened twice", then(opened())),
        ("nothing said", then(framed(&[]))),
        ("others' tasks", then(report(ids.iter().map(|id| status(id, 512)).collect()))),
        ("too many statuses", then(report(vec![status("theirs", 512); 101]))),
        ("too long an id", then(report(vec![status(&"i".repeat(5000), 512)]))),
        ("too long a name", then(say(Says::Describe(description(&"n".repeat(5000), 1))))),
        ("too long a description", then(say(Says::Describe(description("x", 65 * 1024))))),
        ("no message", then(framed(&[0xff; 64]))),
        ("no message at first", framed(&[0xff; 64])),
        ("a frame without an end", frame(0, 1000, &[8; 10])),
        ("a frame beyond all bounds", frame(0, u32::MAX, &[8; 10])),
        ("a compressed frame", frame(1, 3, &[8; 3])),
        ("an unknown flag", frame(9, 0, &[])),
        ("nothing", Vec::new()),
    ];
    all.extend(states.map(|state| ("no worker's state", then(report(vec![status("theirs", state)])))));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_own_method_gives_it_nothing_of_others_whatever_it_says() {
    let scene = Scene::new().await;
    let before = scene.others().await;
    let (secrets, mut channel) = (scene.secrets(), scene.channel().await);
    let mut served = 0;
    for (what, said) in conversations(&scene) {
        let cut = ["nothing", "a frame without an end"].contains(&what);
        let heard = converse(&mut channel, what, said, !cut).await;
        says_nothing(what, &heard, &secrets);
        served += usize::from(heard.windows(12).any(|part| part == b"spec-of-mine"));
    }
    assert!(served > 5, "{served} conversations got as far as its own tasks");
    assert_eq!(scene.others().await, before, "something of others was changed");
    let stored = scene.orch.task("theirs").await.unwrap().unwrap();
    assert_eq!((stored.status.state, stored.node), (TaskState::Assigned, Some(scene.other)));
    let record = scene.orch.node(scene.other).await.unwrap().unwrap();
    assert_eq!((record.name.as_str(), record.description.as_ref()), ("victim-of-it", &b"kept"[..]));
    scene.end().await;
}

/// Every call over QUIC: each tag that is one must be here.
fn every_call(scene: &Scene) -> Vec<Call> {
    let request = Bytes::from(NodeKey::generate().request());
    let (member, other, own) = (scene.node.id(), scene.other, scene.id);
    let (name, addr, client_url) = (String::from("w"), String::from("127.0.0.1:9"), String::new());
    let (all, secret) = (KeyRange::prefix(""), String::from("x"));
    let range = RangeRequest { range: all.clone(), ..Default::default() };
    let put = PutRequest { key: "_rk/t/theirs".into(), value: "x".into(), ..Default::default() };
    let record = MemberRecord { id: member, name: name.clone(), addr: addr.clone(), ..Default::default() };
    let join = JoinRequest {
        secret: secret.clone().into(),
        request: request.clone(),
        name: name.clone(),
        addr: addr.clone(),
        client_url: client_url.clone(),
    };
    let enrol = EnrolRequest { secret: secret.clone().into(), request: request.clone(), name: name.clone() };
    let (old, proof) = (Bytes::new(), Bytes::new());
    let readmit = ReadmitRequest { secret: secret.into(), request: request.clone(), old, proof };
    let trust = [
        TrustCall::Status,
        TrustCall::Rotate { new: None, deadline: 0, stolen: true },
        TrustCall::Abort,
        TrustCall::Tokens,
        TrustCall::TokenCreate { role: Role::Manager, label: name.clone(), ttl: 0, uses: 0 },
        TrustCall::TokenRotate("default-manager".into()),
        TrustCall::TokenRevoke("default-manager".into()),
        TrustCall::Token("default-manager".into()),
        TrustCall::NodeRemove(other),
        TrustCall::NodePromote(own),
        TrustCall::NodeDemote(member),
        TrustCall::NodeReadmit(other),
        TrustCall::Renew { request: request.clone() },
        TrustCall::Follow,
        TrustCall::LockStatus,
        TrustCall::Autolock(true),
        TrustCall::UnlockKey,
        TrustCall::UnlockKeyRotate,
        TrustCall::Keys,
        TrustCall::Vouch(other),
    ];
    let calls = vec![
        Call::Range(range),
        Call::Command { command: Command::Put(put), once: None },
        Call::ReadTxn(TxnRequest::default()),
        Call::Compact { revision: 1, physical: true },
        Call::LeaseKeepAlive(1),
        Call::LeaseTimeToLive { id: 1, keys: true },
        Call::Leases,
        Call::Members,
        Call::MemberPromote(own),
        Call::MemberRemove(member),
        Call::Info,
        Call::JoinToken(Role::Manager),
        Call::IssueCertificate { name: name.clone(), role: Role::Client, request: request.clone() },
        Call::Transfer(None),
        Call::Watch(WatchRequest { range: all, start_revision: 1, ..Default::default() }),
        Call::Join(join),
        Call::Rejoin { request, name: name.clone(), addr, client_url },
        Call::Auth(AuthChange::Disable),
        Call::AuthQuery(AuthQuery::Users),
        Call::Authenticate { name, password: String::new() },
        Call::Alarm(AlarmRequest::List(None)),
        Call::HashKv(0),
        Call::MemberUpdate(record),
        Call::RaiseRevision(9),
        Call::Enrol(enrol),
        Call::Readmit(readmit),
        Call::Points(PointCall::List),
        Call::Points(PointCall::Diff(PointDiffRequest::default())),
        Call::Quota(QuotaCall::Show),
        Call::Quota(QuotaCall::Set(None)),
        Call::Backup { keys: true },
        Call::Dates { since: 0 },
    ];
    let all: Vec<Call> = calls.into_iter().chain(trust.map(Call::Trust)).collect();
    let asked: Vec<Bytes> = all.iter().map(Wire::to_bytes).collect();
    let missing = |prefix: &[u8], kind: &str| {
        (1..=u8::MAX).find(|tag| {
            let begun = [prefix, &[*tag]].concat();
            let parsed = Call::from_bytes(begun.clone().into());
            let known = !parsed.is_err_and(|error| error.what == format!("unknown kind of {kind}"));
            known && !asked.iter().any(|call| call.starts_with(&begun))
        })
    };
    assert_eq!(missing(&[], "Call"), None, "a call that is not tried here");
    assert_eq!(missing(&[25], "TrustCall"), None, "a call that is not tried here");
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_over_quic_but_those_of_its_own_certificate_is_refused() {
    let scene = Scene::new().await;
    let before = scene.others().await;
    let members = [scene.node.addr().to_owned()];
    let handle = within("a connection", Handle::connect(&members, scene.own.clone())).await.unwrap();
    let handle = handle.with_patience(Duration::from_secs(20));
    let secrets = scene.secrets_of_others();
    for call in every_call(&scene) {
        let answered = within("an answer", handle.call(call.clone())).await;
        says_nothing(&format!("{call:?}"), format!("{answered:?}").as_bytes(), &secrets);
        let own =
            matches!(call, Call::Trust(TrustCall::Status | TrustCall::Renew { .. } | TrustCall::Follow));
        let refused = matches!(answered, Err(Error::Refused(_)));
        assert!(own || refused, "{call:?}: {answered:?}");
        assert!(call != Call::Trust(TrustCall::Status) || answered.is_ok(), "{answered:?}");
        if !own && !matches!(call, Call::Join(_) | Call::Enrol(_) | Call::Readmit(_) | Call::Rejoin { .. }) {
            let not_allowed = matches!(answered, Err(Error::Refused(Refusal::NotAllowed { .. })));
            assert!(not_allowed, "{call:?}: {answered:?}");
        }
    }
    assert_eq!(scene.others().await, before, "something of others was changed");
    drop(handle);
    scene.end().await;
}
