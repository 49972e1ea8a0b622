//! Moving house from Debian's etcd, both as real processes. The property: when a move says that it
//! is done, our cluster holds exactly what etcd held at the revision it names; every revision that
//! etcd ever gave is compacted here; and neither kill -9 nor changes meanwhile alter that.

mod process;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use etcd_api::etcdserverpb::auth_client::AuthClient;
use etcd_api::etcdserverpb::kv_client::KvClient;
use etcd_api::etcdserverpb::lease_client::LeaseClient;
use etcd_api::etcdserverpb::request_op::Request as Op;
use etcd_api::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, CompactionRequest,
    DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest,
};
use process::{DEADLINE, Member, Running, command, until};
use raft_kv_server::foreign::{Place, channel, tls_config};
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

const MARGIN: i64 = 1_000_000_000;

/// Key to value and lease.
type State = BTreeMap<Vec<u8>, (Vec<u8>, i64)>;

/// A real etcd of one member; ended with the test.
struct Etcd {
    child: Child,
    url: String,
    runtime: Runtime,
    channel: Channel,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The certificates of a source that wants some: its own and a client's, from one root.
fn certificates(folder: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "root of the old cluster");
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(folder.join("ca.pem"), root.pem()).unwrap();
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let cert = params.signed_by(&key, &root).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), cert.pem()).unwrap();
        std::fs::write(folder.join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
    }
}

impl Etcd {
    fn start(folder: &Path, tls: bool) -> Self {
        let scheme = if tls { "https" } else { "http" };
        let url = format!("{scheme}://127.0.0.1:{}", free_port());
        let peer = format!("http://127.0.0.1:{}", free_port());
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let mut process = Command::new("etcd");
        process.args(["--name", "old", "--data-dir", &path("etcd"), "--log-level", "error"]);
        process.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        process.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        process.args(["--initial-cluster", &format!("old={peer}")]);
        let mut config = None;
        if tls {
            certificates(folder);
            process.args(["--client-cert-auth", "--trusted-ca-file", &path("ca.pem")]);
            process.args(["--cert-file", &path("server.pem"), "--key-file", &path("server-key.pem")]);
            let identity = (folder.join("client.pem"), folder.join("client-key.pem"));
            config = Some(tls_config(&folder.join("ca.pem"), Some((&identity.0, &identity.1))).unwrap());
        }
        let child = process.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("etcd is installed");
        let runtime = Runtime::new().unwrap();
        let places = [Place::parse(&url, false).unwrap()];
        let channel = runtime.block_on(async { channel(&places, 0, config) });
        let etcd = Self { child, url, runtime, channel };
        until("etcd answers", || etcd.try_revision());
        etcd
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(1 << 30)
    }

    fn leases(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    fn try_revision(&self) -> Option<i64> {
        let request = RangeRequest { key: "x".into(), ..RangeRequest::default() };
        let answer = self.runtime.block_on(self.kv().range(request)).ok()?;
        Some(answer.into_inner().header?.revision)
    }

    fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>, lease: i64) {
        let request = PutRequest { key: key.into(), value: value.into(), lease, ..PutRequest::default() };
        self.runtime.block_on(self.kv().put(request)).unwrap();
    }

    fn put_op(key: String, value: &str, lease: i64) -> RequestOp {
        let value = Bytes::copy_from_slice(value.as_bytes());
        let put = PutRequest { key: key.into(), value, lease, ..PutRequest::default() };
        RequestOp { request: Some(Op::RequestPut(put)) }
    }

    fn txn(&self, success: Vec<RequestOp>) {
        self.runtime.block_on(self.kv().txn(TxnRequest { success, ..TxnRequest::default() })).unwrap();
    }

    fn delete(&self, from: impl Into<Bytes>, to: impl Into<Bytes>) {
        let request =
            DeleteRangeRequest { key: from.into(), range_end: to.into(), ..DeleteRangeRequest::default() };
        self.runtime.block_on(self.kv().delete_range(request)).unwrap();
    }

    fn grant(&self, id: i64, ttl: i64) {
        self.runtime.block_on(self.leases().lease_grant(LeaseGrantRequest { id, ttl })).unwrap();
    }

    fn revoke(&self, id: i64) {
        self.runtime.block_on(self.leases().lease_revoke(LeaseRevokeRequest { id })).unwrap();
    }

    fn compact(&self) {
        let revision = self.try_revision().unwrap();
        self.runtime.block_on(self.kv().compact(CompactionRequest { revision, physical: true })).unwrap();
    }

    fn state(&self, revision: i64) -> State {
        let request =
            RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..RangeRequest::default() };
        let answer = self.runtime.block_on(self.kv().range(request)).unwrap().into_inner();
        answer.kvs.into_iter().map(|kv| (kv.key.to_vec(), (kv.value.to_vec(), kv.lease))).collect()
    }

    /// Many small keys, some that are no text, some large, some on leases.
    fn fill(&self, keys: usize, large: usize) {
        self.grant(77, 3600);
        self.grant(78, 60);
        self.grant(79, 1000);
        let ops = (0..keys).map(|n| {
            Self::put_op(format!("key/{n:05}"), &format!("value {n}"), if n % 10 == 0 { 77 } else { 0 })
        });
        let ops: Vec<RequestOp> = ops.collect();
        ops.chunks(100).for_each(|ops| self.txn(ops.to_vec()));
        for n in 0u8..=255 {
            self.put(vec![b'b', n, 0, 0xff], vec![n; 3], if n % 2 == 0 { 78 } else { 0 });
        }
        for n in 0..large {
            let large: Vec<u8> = (0..1_300_000).map(|at| (at * 31 + n) as u8).collect();
            self.put(format!("big/{n:02}"), large, 0);
        }
        self.put("empty", "", 0);
        self.put("gone", "x", 0);
        self.delete("gone", "");
    }
}

fn bytes_of(object: &Value, name: &str) -> Vec<u8> {
    match &object[name] {
        Value::String(text) => text.clone().into_bytes(),
        _ => STANDARD.decode(object[format!("{name}_base64")].as_str().unwrap()).unwrap(),
    }
}

/// All keys of our cluster.
fn state_of(member: &Member) -> State {
    let answer = member.ask(&["get", "", "--prefix"]).json();
    let entry = |kv: &Value| {
        let lease = kv["lease"].as_str().map_or(0, |id| i64::from_str_radix(id, 16).unwrap());
        (bytes_of(kv, "key"), (bytes_of(kv, "value"), lease))
    };
    answer["kvs"].as_array().unwrap_or_else(|| panic!("no keys in {answer}")).iter().map(entry).collect()
}

fn lease_ids(member: &Member) -> Vec<String> {
    let answer = member.ask(&["lease", "ls"]).json();
    let mut ids: Vec<String> = answer["leases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|lease| lease["id"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids
}

fn count(member: &Member) -> i64 {
    member.ask(&["get", "", "--prefix", "--count-only"]).json()["count"].as_i64().unwrap()
}

/// The one door for a move that is done.
#[track_caller]
fn check_done(answer: &Value, etcd: &Etcd, member: &Member) {
    assert_eq!(answer["verified"], true, "{answer}");
    let at = answer["source_revision"].as_i64().unwrap();
    let (theirs, ours) = (etcd.state(at), state_of(member));
    assert_eq!(theirs.keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());
    assert!(theirs == ours, "values or leases differ");
    assert_eq!(answer["keys"].as_u64(), Some(ours.len() as u64));
    // No informer of the old cluster can go on with its revisions here.
    let seen = etcd.try_revision().unwrap();
    assert!(member.revision() >= seen + MARGIN, "{} is not far above {seen}", member.revision());
    let old = seen.to_string();
    member.ask(&["watch", "", "--prefix", "--from-revision", &old]).refused(1, &["compacted"]);
    member.ask(&["get", "", "--prefix", "--rev", &old]).refused(1, &["compacted"]);
}

fn mirror(member: &Member, etcd: &Etcd, more: &[&str]) -> Running {
    let mut mirror = command(&["mirror", "--from", &etcd.url, "--json"]);
    mirror.args(more).arg("--data-dir").arg(&member.data_dir);
    Running::start(mirror)
}

#[test]
fn an_import_that_is_killed_goes_on_and_the_copy_is_exact() {
    let folder = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(folder.path(), false);
    // The large ones come between the few first and the many last.
    etcd.fill(5000, 40);
    let member = Member::first(folder.path());
    let mut import = command(&["import", "--from", &etcd.url, "--json"]);
    import.arg("--data-dir").arg(&member.data_dir);
    let mut killed = Running::start(import);
    until("a part is copied", || (count(&member) > 200).then_some(()));
    assert!(killed.runs(), "it was done before it could be killed");
    killed.kill();
    assert!(count(&member) < 5300, "it was killed before the end");
    // Meanwhile the source goes on.
    etcd.put("key/00001", "changed", 0);
    etcd.delete("key/00002", "");
    let dead = format!("http://127.0.0.1:{},{}", free_port(), etcd.url);
    let answer = member.ask(&["import", "--from", &dead]).json();
    check_done(&answer, &etcd, &member);
    assert_eq!(answer["leases"], 3);
    assert_eq!(lease_ids(&member), ["4d", "4e", "4f"]);
    let lease = member.ask(&["lease", "ttl", "4d"]).json();
    assert_eq!(lease["granted_ttl"], 3600);
    // It is no empty cluster any more.
    member.ask(&["import", "--from", &etcd.url]).refused(1, &["already holds", "--overwrite"]);
    member.ask(&["put", "only here", "x"]).json();
    let again = member.ask(&["import", "--from", &etcd.url, "--overwrite"]).json();
    check_done(&again, &etcd, &member);
}

#[test]
fn a_mirror_follows_a_source_that_keeps_changing() {
    let folder = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(folder.path(), false);
    etcd.fill(400, 4);
    etcd.grant(500, 2);
    etcd.put("short", "lived here", 500);
    let member = Member::first(folder.path());
    let mut first = mirror(&member, &etcd, &[]);
    let has = |key: &str| member.ask(&["get", key]).code == Some(0);
    until("the copy is there", || has("key/00399").then_some(()));
    let change = |round: usize| {
        for n in 0..20 {
            etcd.put(format!("key/{:05}", (n * 7 + round) % 400), format!("round {round}"), 0);
        }
        etcd.txn((0..128).map(|n| Etcd::put_op(format!("txn/{n}"), &format!("{round}"), 0)).collect());
        etcd.txn((0..3).map(|n| Etcd::put_op(format!("three/{n}"), &format!("{round}"), 0)).collect());
        let lease = 600 + round as i64;
        etcd.grant(lease, 300);
        etcd.put(format!("leased/{round}"), "x", lease);
        etcd.put("three/9", "x", 0);
        etcd.delete("three/9", "");
        if round.is_multiple_of(2) {
            etcd.revoke(lease);
            etcd.delete("key/00100", "key/00300");
            etcd.compact();
        }
    };
    for round in 0..4 {
        change(round);
    }
    until("a change is there", || has("leased/3").then_some(()));
    first.kill();
    for round in 4..8 {
        change(round);
    }
    let second = mirror(&member, &etcd, &[]);
    for round in 8..12 {
        change(round);
    }
    until("a later change is there", || has("leased/11").then_some(()));
    second.terminate();
    let ended = second.ended();
    check_done(&ended.json(), &etcd, &member);
    let three = member.ask(&["get", "three/", "--prefix"]).json();
    let made: Vec<&Value> = three["kvs"].as_array().unwrap().iter().map(|kv| &kv["mod_revision"]).collect();
    assert!(made.len() == 3 && made.iter().all(|one| *one == made[0]), "not one step: {three}");
    let ids = lease_ids(&member);
    assert!(ids.contains(&format!("{:x}", 611)) && !ids.contains(&format!("{:x}", 610)), "{ids:?}");
}

#[test]
fn a_difference_is_found_and_the_next_run_puts_it_right() {
    let folder = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(folder.path(), false);
    etcd.put("a", "1", 0);
    etcd.put("b", "1", 0);
    let member = Member::first(folder.path());
    let running = mirror(&member, &etcd, &[]);
    until("b is there", || (member.ask(&["get", "b"]).code == Some(0)).then_some(()));
    etcd.put("c", "1", 0);
    until("c is there", || (member.ask(&["get", "c"]).code == Some(0)).then_some(()));
    member.ask(&["put", "b", "planted"]).json();
    member.ask(&["put", "z", "planted"]).json();
    running.terminate();
    running.ended().refused(1, &["key b has another value", "run the same command again"]);
    // Somebody watches the new cluster meanwhile.
    let next = (member.revision() + 1).to_string();
    let mut words = command(&["watch", "", "--prefix", "--json", "--from-revision", &next]);
    words.arg("--data-dir").arg(&member.data_dir);
    let mut watch = Running::start(words);
    member.ask(&["put", "z", "again"]).json();
    until("the watch has begun", || watch.next_json().filter(|event| event["key"] == "z"));
    let ended = mirror(&member, &etcd, &["--until-level"]).ended();
    check_done(&ended.json(), &etcd, &member);
    // What it would miss between the revisions it knows and the raised one does not go unsaid.
    until("the watch is told", || watch.next_json().filter(|event| event["type"] == "compacted"));
    watch.ended().refused(1, &["compacted"]);
}

#[test]
fn a_source_with_certificates_and_users_is_read_as_a_user() {
    let folder = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(folder.path(), true);
    etcd.put("a", "1", 0);
    let revision = etcd.try_revision().unwrap();
    let mut auth = AuthClient::new(etcd.channel.clone());
    etcd.runtime.block_on(async {
        let (name, password) = (String::from("root"), String::from("pass:word"));
        auth.user_add(AuthUserAddRequest { name, password, ..Default::default() }).await.unwrap();
        auth.role_add(AuthRoleAddRequest { name: "root".into() }).await.unwrap();
        let grant = AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
        auth.user_grant_role(grant).await.unwrap();
        auth.auth_enable(AuthEnableRequest {}).await.unwrap();
    });
    let member = Member::first(folder.path());
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (ca, cert, key) = (file("ca.pem"), file("client.pem"), file("client-key.pem"));
    let from =
        ["import", "--from", &etcd.url, "--from-cacert", &ca, "--from-cert", &cert, "--from-key", &key];
    member.ask(&from).refused(1, &["permission denied"]);
    member.ask(&[&from[..], &["--from-user", "root:wrong"]].concat()).refused(1, &["authentication failed"]);
    let answer = member.ask(&[&from[..], &["--from-user", "root:pass:word"]].concat()).json();
    assert_eq!((&answer["verified"], &answer["keys"]), (&true.into(), &1.into()));
    assert!(answer["source_revision"].as_i64() >= Some(revision));
    assert_eq!(state_of(&member), State::from([(b"a".to_vec(), (b"1".to_vec(), 0))]));
}

#[test]
fn mistakes_are_named() {
    for (words, part) in [
        (&["import"][..], "--from"),
        (&["import", "--from", ""], "--from is empty"),
        (&["import", "--from", "h"], "no port"),
        (&["import", "--from", "https://h:1"], "--from-cacert"),
        (&["import", "--from", "h:1", "--from-user", "name"], "NAME:PASSWORD"),
        (&["mirror", "--from", "h:1", "--margin", "-1"], "--margin"),
        (&["mirror", "--from", "h:1", "--from-cacert", "no/such/file"], "no/such/file"),
    ] {
        process::raft_kv(words).refused(2, &[part]);
    }
    assert!(DEADLINE.as_secs() > 30, "longer than the source is asked again");
}
