//! Eviction, strangers and workers on real members: who is turned away where, how fast, and what may
//! be seen by whom.

use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use super::api::{Answered, Call, JoinRequest};
use super::trust::Wanted;
use super::{Config, Handle, Node, Overrides, Tuning};
use crate::codec::Wire;
use crate::error::{Error, Refusal};
use crate::machine::Command;
use crate::net::Dialer;
use crate::pki::{self, Credentials, Identity, NodeKey, Purpose, Subject};
use crate::types::*;

/// A second is promised; a loaded machine is given more.
const SOON: Duration = Duration::from_secs(5);

fn tuning() -> Tuning {
    Tuning { log_segment_bytes: 1024 * 1024, ..Tuning::default() }
}

fn config(dir: &Path, name: &str) -> Config {
    let listen_addr = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    Config {
        data_dir: dir.join(name),
        name: name.into(),
        listen_addr,
        advertise_addr: None,
        client_addr: None,
        advertise_client_addr: None,
        own_root: None,
        external_signer: None,
        tuning: tuning(),
    }
}

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn voters(handle: &Handle) -> usize {
    let members = handle.members().await.map(|(_, members)| members).unwrap_or_default();
    members.iter().filter(|member| member.role == MemberRole::Voter).count()
}

async fn cluster(dir: &Path) -> Vec<Node> {
    let first = Node::init(config(dir, "manager-alpha")).await.unwrap();
    let token = first.handle().join_token(Role::Manager).await.unwrap();
    let mut nodes = vec![first];
    for name in ["manager-bravo", "manager-charlie"] {
        let endpoints = vec![nodes[0].addr().to_owned()];
        nodes.push(Node::join(config(dir, name), &token, &endpoints).await.unwrap());
    }
    eventually("all vote", || async { (voters(&nodes[0].handle()).await == 3).then_some(()) }).await;
    nodes
}

async fn end(nodes: Vec<Node>) {
    for node in nodes {
        let _ = node.shutdown().await;
    }
}

fn der(all: &[Bytes]) -> Vec<Vec<u8>> {
    all.iter().map(|one| one.to_vec()).collect()
}

/// A node that the cluster knows.
async fn known(by: &Node, role: Role, name: &str) -> Credentials {
    let (key, id) = (NodeKey::generate(), NodeId(rand::random()));
    let (name, hosts, token) = (name.to_owned(), Vec::new(), String::new());
    let wanted = Wanted { node: id, role, name, hosts, token, renewal: false };
    let issued = by.inside().issue_request(&wanted, &key.request()).await.unwrap();
    Credentials {
        chain: der(&issued.chain),
        key: key.der().to_vec(),
        roots: der(&issued.roots),
        ..Credentials::default()
    }
}

/// What somebody with the root's key makes for itself.
async fn minted(by: &Node, role: Role, node: NodeId) -> Credentials {
    let key = NodeKey::generate();
    let trusted = by.inside().read(crate::machine::read::trusted).unwrap();
    let (cluster, name) = (by.cluster(), if role == Role::Client { "thief".into() } else { String::new() });
    let subject = Subject { cluster, node, role, name, hosts: Vec::new() };
    let chain =
        by.inside().signer().sign(trusted.in_force(), &subject, &key.public(), &key.request()).await.unwrap();
    let roots = vec![trusted.in_force().root.to_vec()];
    Credentials { chain: der(&chain), key: key.der().to_vec(), roots, ..Credentials::default() }
}

/// That the cluster would give its tokens away to a minted certificate is noticed by `tests/stolen.rs` of the
/// server; this shows that the bug is what it looks for.
#[cfg(feature = "sim")]
#[test]
fn trust_given_to_any_certificate_is_noticed() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let given = || {
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let node = Node::init(config(dir.path(), "manager-alpha")).await.unwrap();
            let forged = minted(&node, Role::Manager, node.id()).await;
            let handle = Handle::connect(&[node.addr().to_owned()], forged).await.unwrap();
            let handle = handle.with_patience(Duration::from_millis(300));
            let given = handle.join_token(Role::Manager).await.map(drop);
            end(vec![node]).await;
            given
        })
    };
    // The member's own certificate is new: who asks with another one is told to come again.
    assert!(matches!(given(), Err(Error::NotDone(_))));
    crate::planted::with(Some(crate::planted::Bug::GiveToAnyKey), given).unwrap();
}

fn id_of(credentials: &Credentials) -> NodeId {
    Identity::from_cert(&credentials.chain[0]).unwrap().node
}

async fn dial(to: &Node, own: &Credentials, purpose: Purpose) -> Result<Dialer, Error> {
    Dialer::connect(&[to.addr().to_owned()], own, purpose).await
}

#[track_caller]
fn turned_away<T>(result: Result<T, Error>, part: &str) {
    match result.map(drop) {
        Err(Error::Refused(refusal)) => assert!(refusal.to_string().contains(part), "{refusal}"),
        other => panic!("{other:?} instead of a refusal with {part:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_can_be_followed_at_a_member_that_has_just_joined() {
    let dir = tempfile::tempdir().unwrap();
    let first = Node::init(config(dir.path(), "manager-alpha")).await.unwrap();
    let put = PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
    let (header, _) = first.handle().put(put).await.unwrap();
    let token = first.handle().join_token(Role::Manager).await.unwrap();
    let endpoints = vec![first.addr().to_owned()];
    let second = Node::join(config(dir.path(), "manager-bravo"), &token, &endpoints).await.unwrap();
    // Its state is still on its way: that is waited for.
    let request =
        WatchRequest { range: KeyRange::key("k"), start_revision: header.revision, ..Default::default() };
    let mut watch = second.handle().with_patience(Duration::from_secs(30)).watch(request).await.unwrap();
    let batch = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.expect("it comes").unwrap();
    assert!(matches!(batch, Some(WatchBatch::Changes(changes)) if changes[0].events[0].kv.value == "v"));
    end(vec![second, first]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_client_is_out_on_all_members_within_a_moment_and_stays_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(dir.path()).await;
    let gone = known(&nodes[0], Role::Client, "gone").await;
    let stays = known(&nodes[0], Role::Client, "stays").await;
    let mut open = Vec::new();
    for node in &nodes {
        let handle = Handle::connect(&[node.addr().to_owned()], gone.clone()).await.unwrap();
        let watch = handle.watch(WatchRequest { range: KeyRange::prefix("k"), ..Default::default() });
        let (watch, idle) = (watch.await.unwrap(), dial(node, &gone, Purpose::Client).await.unwrap());
        let put = PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
        handle.put(put).await.unwrap();
        let other = dial(node, &stays, Purpose::Client).await.unwrap();
        open.push((watch, idle, other));
    }
    let began = Instant::now();
    nodes[1].handle().node_remove(id_of(&gone)).await.unwrap();
    for (watch, idle, other) in &mut open {
        let ended = async {
            while watch.next().await.is_ok_and(|batch| batch.is_some()) {}
            while !idle.is_closed() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SOON, ended).await.expect("its streams end");
        assert!(!other.is_closed(), "nobody else is turned away");
    }
    eprintln!("a removed client's streams ended on all members after {:?}", began.elapsed());
    for node in &nodes {
        turned_away(dial(node, &gone, Purpose::Client).await, "was removed");
        turned_away(dial(node, &gone, Purpose::Peer).await, "does not allow");
    }
    turned_away(nodes[2].handle().node_remove(id_of(&gone)).await, "was removed");
    // After a restart too.
    let (node, data) = (nodes.remove(0), dir.path().join("manager-alpha"));
    node.shutdown().await.unwrap();
    let again = Node::open(&data, Overrides::default(), tuning()).await.unwrap();
    turned_away(dial(&again, &gone, Purpose::Client).await, "was removed");
    eventually("the other is let in", || async { dial(&again, &stays, Purpose::Client).await.ok() }).await;
    nodes.insert(0, again);
    end(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_manager_is_out_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(dir.path()).await;
    let (out, id) = (nodes[2].inside().trust.credentials(), nodes[2].id());
    let client = known(&nodes[0], Role::Client, "tool").await;
    let own = nodes[0].handle();
    turned_away(own.node_demote(id_of(&client)).await, "is no manager but a client");
    turned_away(own.node_promote(id_of(&client)).await, "becomes a manager by joining");
    turned_away(own.node_promote(id).await, "votes already");
    turned_away(own.node_readmit(NodeId(77)).await, "no node has the id");
    own.node_readmit(id_of(&client)).await.unwrap();
    let (_, status) = own.nodes().await.unwrap();
    let record = status.nodes.iter().find(|node| node.id == id_of(&client)).unwrap();
    assert!((status.now + 86_000..status.now + 87_000).contains(&record.readmit), "{record:?}");
    let streams = [
        dial(&nodes[0], &out, Purpose::Client).await.unwrap(),
        dial(&nodes[1], &out, Purpose::Client).await.unwrap(),
    ];
    own.node_demote(id).await.unwrap();
    for stream in streams {
        let ended = async {
            while !stream.is_closed() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SOON, ended).await.expect("its connections end");
    }
    let stopped = tokio::time::timeout(Duration::from_secs(30), nodes[2].stopped()).await.unwrap();
    assert!(stopped.to_string().contains("removed"), "{stopped}");
    for node in &nodes[..2] {
        for purpose in [Purpose::Peer, Purpose::Bulk, Purpose::Client] {
            turned_away(dial(node, &out, purpose).await, "was removed");
        }
    }
    turned_away(own.node_readmit(id).await, "joins anew");
    drop(nodes.pop());
    end(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_the_roots_key_and_no_record_is_not_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path()).await;
    let mut tries = tokio::task::JoinSet::new();
    for (number, node) in nodes.iter().enumerate() {
        for (role, purposes) in [
            (Role::Manager, &[Purpose::Peer, Purpose::Bulk, Purpose::Client][..]),
            (Role::Client, &[Purpose::Client]),
            (Role::Worker, &[Purpose::Client]),
        ] {
            for purpose in purposes {
                let thief = minted(node, role, NodeId(0xbad + number as u64)).await;
                let (to, purpose) = (vec![node.addr().to_owned()], *purpose);
                tries.spawn(async move { Dialer::connect(&to, &thief, purpose).await.map(drop) });
            }
        }
    }
    while let Some(tried) = tries.join_next().await {
        turned_away(tried.unwrap(), "does not know this node");
    }
    // One that is known may not take more than it was given either.
    let client = known(&nodes[0], Role::Client, "climber").await;
    let climbed = minted(&nodes[0], Role::Manager, id_of(&client)).await;
    for purpose in [Purpose::Peer, Purpose::Bulk, Purpose::Client] {
        turned_away(dial(&nodes[1], &climbed, purpose).await, "was not given that role");
    }
    end(nodes).await;
}

/// Every call, and that none is missing: the place of each in the list.
fn every_call(worker: NodeId, manager: NodeId, secret: &str) -> Vec<Call> {
    let request = Bytes::from(NodeKey::generate().request());
    let (name, addr, client_url) = (String::from("w"), String::from("127.0.0.1:9"), String::new());
    let range = RangeRequest { range: KeyRange::prefix(""), ..RangeRequest::default() };
    let watch = WatchRequest { range: KeyRange::prefix(""), start_revision: 1, ..WatchRequest::default() };
    let record =
        MemberRecord { id: manager, name: name.clone(), addr: addr.clone(), client_url: String::new() };
    let join = JoinRequest {
        secret: secret.into(),
        request: request.clone(),
        name: name.clone(),
        addr: addr.clone(),
        client_url: String::new(),
    };
    let enrol = EnrolRequest { secret: secret.into(), request: request.clone(), name: name.clone() };
    let nothing = Bytes::new();
    let readmit = ReadmitRequest {
        secret: secret.into(),
        request: request.clone(),
        old: nothing.clone(),
        proof: nothing,
    };
    let trust = [
        TrustCall::Status,
        TrustCall::Rotate { new: None, deadline: 0, stolen: false },
        TrustCall::Abort,
        TrustCall::Tokens,
        TrustCall::TokenCreate { role: Role::Manager, label: name.clone(), ttl: 0, uses: 0 },
        TrustCall::TokenRotate("default-manager".into()),
        TrustCall::TokenRevoke("default-manager".into()),
        TrustCall::Token("default-manager".into()),
        TrustCall::NodeRemove(manager),
        TrustCall::NodePromote(worker),
        TrustCall::NodeDemote(manager),
        TrustCall::NodeReadmit(manager),
        TrustCall::Renew { request: request.clone() },
        TrustCall::Follow,
        TrustCall::LockStatus,
        TrustCall::Autolock(true),
        TrustCall::UnlockKey,
        TrustCall::UnlockKeyRotate,
        TrustCall::Keys,
        TrustCall::Vouch(manager),
    ];
    let calls = vec![
        Call::Range(range),
        Call::Command { command: Command::Noop, once: None },
        Call::ReadTxn(TxnRequest::default()),
        Call::Compact { revision: 1, physical: true },
        Call::LeaseKeepAlive(1),
        Call::LeaseTimeToLive { id: 1, keys: true },
        Call::Leases,
        Call::Members,
        Call::MemberPromote(manager),
        Call::MemberRemove(manager),
        Call::Info,
        Call::JoinToken(Role::Manager),
        Call::IssueCertificate { name: name.clone(), role: Role::Client, request: request.clone() },
        Call::Transfer(None),
        Call::Watch(watch),
        Call::Join(join),
        Call::Rejoin { request, name: name.clone(), addr, client_url },
        Call::Auth(AuthChange::Disable),
        Call::AuthQuery(AuthQuery::Users),
        Call::Points(PointCall::List),
        Call::Quota(QuotaCall::Show),
        Call::Quota(QuotaCall::Set(None)),
        Call::Points(PointCall::Diff(PointDiffRequest::default())),
        Call::Backup { keys: false },
        Call::Backup { keys: true },
        Call::Dates { since: 0 },
        Call::Authenticate { name, password: String::new() },
        Call::Alarm(AlarmRequest::List(None)),
        Call::HashKv(0),
        Call::MemberUpdate(record),
        Call::RaiseRevision(9),
        Call::Enrol(enrol),
        Call::Readmit(readmit),
    ];
    // A new call has a tag of its own: it must be asked here too.
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
    assert_eq!(missing(&[], "Call"), None, "a call that is not asked here");
    assert_eq!(missing(&[25], "TrustCall"), None, "a call that is not asked here");
    all
}

/// Everything that comes on a stream, until it ends or nothing comes any more.
async fn all_bytes(dialer: &Dialer, call: &Call, heard: &mut Vec<u8>) {
    let mut note = |error: &Error| {
        heard.extend_from_slice(format!("{error} {error:?}").as_bytes());
        heard.extend_from_slice(&Err::<(Header, super::api::Reply), _>(error.clone()).to_bytes());
    };
    let mut stream = match dialer.open_stream(call.to_bytes()).await {
        Ok(stream) => stream,
        Err(error) => return note(&error),
    };
    stream.finish();
    let mut frames = Vec::new();
    // A stream that goes on is heard for a while.
    while let Ok(next) = tokio::time::timeout(Duration::from_millis(1500), stream.next()).await {
        match next {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => break,
            Err(error) => {
                note(&error);
                break;
            }
        }
    }
    for frame in frames {
        heard.extend_from_slice(format!("{:?}", Answered::from_bytes(frame.clone())).as_bytes());
        heard.extend_from_slice(&frame);
    }
}

/// What would tell where a manager is, or which there are.
fn secrets(node: &Node) -> Vec<Vec<u8>> {
    let (id, port) = (node.id(), node.addr().rsplit_once(':').unwrap().1.to_owned());
    vec![
        node.addr().as_bytes().to_vec(),
        format!(":{port}").into_bytes(),
        node.name().as_bytes().to_vec(),
        id.to_string().into_bytes(),
        id.0.to_string().into_bytes(),
        id.0.to_be_bytes().to_vec(),
        id.0.to_le_bytes().to_vec(),
        id.to_bytes().to_vec(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_worker_can_get_names_a_manager_beyond_the_one_it_dialled() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(dir.path()).await;
    let worker = known(&nodes[0], Role::Worker, "rack-7").await;
    let token = nodes[0].handle().join_token(Role::Worker).await.unwrap();
    let token: pki::JoinToken = token.parse().unwrap();
    // What is hidden: the managers that it does not dial.
    let hidden: Vec<(String, Vec<u8>)> = nodes[1..]
        .iter()
        .flat_map(|node| secrets(node).into_iter().map(|secret| (node.name().to_owned(), secret)))
        .collect();
    let dialled = secrets(&nodes[0]);
    let mut heard = Vec::new();
    let first = nodes[0].inside().clone();
    // What every listener shows in the handshake, to joiners too.
    let shown = first.trust.credentials();
    shown.chain.iter().chain(&shown.roots).for_each(|cert| heard.extend_from_slice(cert));
    let calls = every_call(id_of(&worker), nodes[1].id(), &token.secret.to_text());
    for purpose in [Purpose::Peer, Purpose::Bulk] {
        let refused = dial(&nodes[0], &worker, purpose).await.unwrap_err();
        heard.extend_from_slice(format!("{refused} {refused:?}").as_bytes());
    }
    let dialer = dial(&nodes[0], &worker, Purpose::Client).await.unwrap();
    let mut own = Vec::new();
    all_bytes(&dialer, &Call::Trust(TrustCall::Status), &mut own).await;
    let own = String::from_utf8_lossy(&own).into_owned();
    assert!(own.contains("rack-7") && own.contains("nodes: ["), "its own record is told: {own}");
    for call in &calls {
        all_bytes(&dialer, call, &mut heard).await;
        let joiner = Dialer::join(&[nodes[0].addr().to_owned()], &token).await.unwrap();
        all_bytes(&joiner, call, &mut heard).await;
    }
    all_bytes(&dialer, &Call::Members, &mut heard).await;
    assert!(voters(&nodes[0].handle()).await == 3, "a worker has changed the group");
    // Without a leader, and when the member goes.
    while nodes.len() > 1 {
        nodes.pop().unwrap().shutdown().await.unwrap();
    }
    for call in [TrustCall::Status, TrustCall::Follow] {
        all_bytes(&dialer, &Call::Trust(call), &mut heard).await;
    }
    nodes.pop().unwrap().shutdown().await.unwrap();
    all_bytes(&dialer, &Call::Info, &mut heard).await;
    assert!(heard.len() > 5_000, "{} bytes", heard.len());
    let seen = |secret: &Vec<u8>| heard.windows(secret.len()).any(|part| part == secret);
    assert!(dialled.iter().any(seen), "the manager that it dialled says who it is: the search works");
    for (name, secret) in &hidden {
        let found = heard.windows(secret.len()).position(|part| part == secret);
        let around = found.map(|at| {
            String::from_utf8_lossy(&heard[at.saturating_sub(200)..][..400.min(heard.len() - at)])
                .into_owned()
        });
        assert_eq!(around, None, "{:?} of {name}", String::from_utf8_lossy(secret));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_worker_is_told_and_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::init(config(dir.path(), "manager-alpha")).await.unwrap();
    node.leadership().wait_for(|leadership| leadership.ready).await.unwrap();
    let worker = known(&node, Role::Worker, "rack-7").await;
    let dialer = dial(&node, &worker, Purpose::Client).await.unwrap();
    node.handle().node_remove(id_of(&worker)).await.unwrap();
    let ended = async {
        while !dialer.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, ended).await.expect("its connection ends");
    turned_away(dialer.call(Call::Info.to_bytes()).await, "was removed");
    turned_away(dial(&node, &worker, Purpose::Client).await, "was removed");
    let now = SystemTime::now();
    assert!(worker.check_date(now, "").is_ok(), "its certificate is valid all the same");
    let refusal = Refusal::BadCertificate { why: String::new() };
    assert!(!refusal.to_string().contains(node.addr()));
    node.shutdown().await.unwrap();
}
