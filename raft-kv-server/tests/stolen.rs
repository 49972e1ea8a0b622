//! The root's key is stolen. This process is the attacker: it has the key, makes itself whatever certificate it
//! likes, and talks to real members over the network. What it can't have, and that it has nothing left once the
//! root was replaced with `--stolen`.

mod process;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use process::{Member, free_address, raft_kv, until};
use raft_kv::client::api::Call;
use raft_kv::client::{Handle, Watch, readmit, renew_once};
use raft_kv::error::Error;
use raft_kv::net::{Dialer, Purpose, read_credentials_in, write_credentials};
use raft_kv::pki::{Credentials, Identity, LEAF_VALIDITY, NodeKey, RootKey, Subject, issue};
use raft_kv::types::{ClusterId, KeyRange, NodeId, PutRequest, Role, TrustCall, WatchRequest};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A second is promised; a loaded machine is given more.
const SOON: Duration = Duration::from_secs(10);

/// Who has the root's key, and knows the cluster's id.
struct Thief {
    root: RootKey,
    cluster: ClusterId,
}

impl Thief {
    /// A certificate that the cluster has not made.
    fn mint(&self, node: NodeId, role: Role, name: &str) -> Credentials {
        let key = NodeKey::generate();
        let hosts = vec!["localhost".into(), "127.0.0.1".into()];
        let subject = Subject { cluster: self.cluster, node, role, name: name.into(), hosts };
        let now = SystemTime::now();
        let leaf = issue(&self.root, &subject, &key.public(), now, LEAF_VALIDITY, &mut rand::rng()).unwrap();
        let (chain, roots) = (vec![leaf], vec![self.root.cert_der().to_vec()]);
        Credentials { chain, key: key.der().to_vec(), roots, ..Credentials::default() }
    }
}

/// A cluster of three on a root whose key the thief has.
fn cluster(folder: &Path) -> (Vec<Member>, Thief) {
    let root = RootKey::generate(ClusterId(7), SystemTime::now());
    let (key, own) = (root.key_der().to_vec(), vec![root.cert_der().to_vec()]);
    let files = Credentials { chain: own, key, ..Credentials::default() }.to_pem();
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (cert, key) = (file("root.pem", &files.cert), file("root.key", &files.key));
    let mut words = vec!["init", "--name", "one", "--ca-cert", &cert, "--ca-key", &key];
    let listen = free_address();
    words.extend(["--listen-addr", &listen, "--etcd-addr", "127.0.0.1:0"]);
    let first = Member::start(&words, &folder.join("one")).unwrap_or_else(|ended| panic!("{ended:?}"));
    let mut members = vec![first];
    members.push(members[0].joined_by("two", folder));
    members.push(members[0].joined_by("three", folder));
    until("all vote", || {
        let listed = members[0].ask(&["member", "ls"]).json();
        let all = listed["members"].as_array().unwrap().clone();
        (all.len() == 3 && all.iter().all(|member| member["role"] == "voter")).then_some(())
    });
    let cluster = ClusterId(u64::from_str_radix(&members[0].cluster, 16).unwrap());
    (members, Thief { root, cluster })
}

fn node(id: &str) -> NodeId {
    NodeId(u64::from_str_radix(id, 16).unwrap())
}

async fn connect(member: &Member, credentials: &Credentials) -> Result<Handle, Error> {
    let handle = Handle::connect(std::slice::from_ref(&member.addr), credentials.clone()).await?;
    Ok(handle.with_patience(Duration::from_secs(2)))
}

#[track_caller]
fn refused<T>(result: Result<T, Error>, part: &str) {
    match result.map(drop) {
        Err(Error::Refused(refusal)) => assert!(refusal.to_string().contains(part), "{refusal}"),
        other => panic!("{other:?} instead of a refusal with {part:?}"),
    }
}

/// A connection to the door of etcd's clients on which a request has been answered; `None` where it was not.
async fn etcd_door(member: &Member, own: &Credentials, thief: &Thief) -> Option<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(thief.root.cert_der().to_vec().into()).unwrap();
    let chain = own.chain.iter().cloned().map(CertificateDer::from).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.key.clone()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.unwrap().with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
    let asking = async {
        let socket = TcpStream::connect(member.etcd_url.strip_prefix("https://").unwrap()).await.ok()?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.ok()?;
        stream.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n").await.ok()?;
        let mut answer = [0; 4096];
        let length = stream.read(&mut answer).await.ok()?;
        answer[..length].starts_with(b"HTTP/1.1 200").then_some(stream)
    };
    tokio::time::timeout(SOON, asking).await.ok().flatten()
}

/// Waits until the other end has closed the connection.
async fn is_closed(mut stream: TlsStream<TcpStream>) {
    let mut rest = [0; 4096];
    while matches!(stream.read(&mut rest).await, Ok(length) if length > 0) {}
}

/// Waits until a watch has ended.
async fn has_ended(mut watch: Watch) {
    while let Ok(Some(_)) = watch.next().await {}
}

/// What would outlive the root in the thief's hands.
fn coveted(name: &str) -> Vec<Call> {
    let request = NodeKey::generate().request().into();
    vec![
        Call::JoinToken(Role::Manager),
        Call::IssueCertificate { name: name.into(), role: Role::Client, request },
        Call::Trust(TrustCall::Keys),
        Call::Trust(TrustCall::UnlockKey),
        Call::Trust(TrustCall::Token("default-manager".into())),
        Call::Trust(TrustCall::TokenCreate { role: Role::Manager, label: name.into(), ttl: 0, uses: 0 }),
        Call::Trust(TrustCall::NodeReadmit(NodeId(1))),
    ]
}

/// Somebody honest, who writes all the time by a certificate that keeps itself current.
struct Honest {
    end: Arc<AtomicBool>,
    writer: tokio::task::JoinHandle<u64>,
}

impl Honest {
    async fn start(members: &[Member], files: &Path) -> Self {
        let endpoints: Vec<String> = members.iter().map(|member| member.addr.clone()).collect();
        let handle = Handle::connect_renewing(&endpoints, files).await.unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let ends = end.clone();
        let writer = tokio::spawn(async move {
            let mut written = 0;
            while !ends.load(Ordering::Relaxed) {
                let put =
                    PutRequest { key: "k".into(), value: written.to_string().into(), ..Default::default() };
                handle.put(put).await.expect("no honest write fails");
                written += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            written
        });
        Self { end, writer }
    }

    async fn stop(self) -> u64 {
        self.end.store(true, Ordering::Relaxed);
        self.writer.await.unwrap()
    }
}

/// Nothing that the thief tries with this certificate works on any door of any member.
async fn opens_nothing(members: &[Member], own: &Credentials, thief: &Thief, part: &str) {
    for member in members {
        refused(connect(member, own).await, part);
        assert!(etcd_door(member, own, thief).await.is_none(), "{} lets it in", member.addr);
    }
}

/// What is shown of a certificate with a node's id is taken by the store as long as its root is; what would
/// outlive the root is not given to it.
async fn gets_nothing_that_lasts(member: &Member, handle: &Handle) {
    for call in coveted("thief") {
        let what = format!("{call:?}");
        let deadline = Instant::now() + Duration::from_secs(40);
        loop {
            match handle.call(call.clone()).await {
                // The newest certificate of that node may have been made a moment ago.
                Err(Error::NotDone(_)) if Instant::now() < deadline => {}
                Err(Error::Refused(refusal)) => {
                    let text = refusal.to_string();
                    assert!(text.contains("newest") || text.contains("client certificate"), "{what}: {text}");
                    break;
                }
                other => panic!("{what} from {}: {other:?}", member.addr),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_root_key_opens_nothing_to_strangers_and_nothing_at_all_once_it_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (mut members, thief) = cluster(folder.path());
    let files = folder.path().join("alice");
    members[0].ask(&["cert", "issue", "alice", "--out", files.to_str().unwrap()]).json();
    let alice = Identity::from_cert(&read_credentials_in(&files).unwrap().chain[0]).unwrap().node;
    let old_token = members[0].token();
    let honest = Honest::start(&members, &files).await;

    // Under an id of its own it is nobody, whatever the certificate says, root replaced or not.
    for role in [Role::Manager, Role::Client, Role::Worker] {
        let stranger = thief.mint(NodeId(0xbad), role, if role == Role::Manager { "" } else { "stranger" });
        opens_nothing(&members[..1], &stranger, &thief, "does not know this node").await;
    }

    // With an id that it has learned it passes for that node, until the root is replaced.
    let as_alice = thief.mint(alice, Role::Client, "alice");
    let as_member = thief.mint(node(&members[1].id), Role::Manager, "");
    let (mut watches, mut streams) = (Vec::new(), Vec::new());
    for (member, own) in members.iter().zip([&as_alice, &as_member].into_iter().cycle()) {
        let handle = connect(member, own).await.unwrap();
        gets_nothing_that_lasts(member, &handle).await;
        let range = KeyRange::prefix("");
        watches.push(handle.watch(WatchRequest { range, ..WatchRequest::default() }).await.unwrap());
        streams.push(etcd_door(member, own, &thief).await.expect("the control: it was let in before"));
    }

    let began = Instant::now();
    members[0].ask(&["ca", "rotate", "--stolen"]).done();
    let settled = Instant::now();
    let all_closed = async {
        for stream in streams {
            is_closed(stream).await;
        }
        for watch in watches {
            has_ended(watch).await;
        }
    };
    tokio::time::timeout(SOON, all_closed).await.expect("all that the thief had is closed");
    eprintln!("settled after {:?}, all closed {:?} later", settled - began, settled.elapsed());
    for own in [&as_alice, &as_member] {
        opens_nothing(&members, own, &thief, "root").await;
    }

    // Nor after a restart, nor with a token of before.
    members[2].running.kill();
    let data_dir = members[2].data_dir.clone();
    members[2] = Member::again(&data_dir);
    opens_nothing(&members[2..], &as_member, &thief, "root").await;
    let (listen, data_dir) = (free_address(), folder.path().join("four").to_str().unwrap().to_owned());
    let mut words = vec!["join", "--name", "four", "--data-dir", &data_dir, "--token", &old_token];
    words.extend(["--listen-addr", &listen, "--etcd-addr", "127.0.0.1:0", &members[0].addr]);
    let ended = raft_kv(&words);
    assert_eq!(ended.code, Some(1), "{ended:?}");

    assert!(honest.stop().await > 0);
    members[1].ask(&["get", "k"]).json();
}

/// Asks again and again to be given a certificate of the new root; how often, and whether it ever was.
struct Renewing {
    end: Arc<AtomicBool>,
    asking: tokio::task::JoinHandle<(u64, bool)>,
}

impl Renewing {
    /// With the files in `dir`.
    fn start(endpoints: Vec<String>, dir: std::path::PathBuf) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let ends = end.clone();
        let asking = tokio::spawn(async move {
            let (mut times, mut given) = (0, false);
            while !ends.load(Ordering::Relaxed) {
                given |= renew_once(&endpoints, &dir).await.is_ok();
                times += 1;
            }
            (times, given)
        });
        Self { end, asking }
    }

    async fn stop(self) -> (u64, bool) {
        self.end.store(true, Ordering::Relaxed);
        self.asking.await.unwrap()
    }
}

async fn dial(member: &Member, own: &Credentials, purpose: Purpose) -> Result<Dialer, Error> {
    Dialer::connect(std::slice::from_ref(&member.addr), own, purpose).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_member_off_a_stolen_key_is_replaced_and_the_thief_does_not_move_over() {
    let folder = tempfile::tempdir().unwrap();
    let (mut members, thief) = cluster(folder.path());
    let endpoints: Vec<String> = members.iter().map(|member| member.addr.clone()).collect();
    let mut honest = Vec::new();
    for name in ["alice", "bob", "carol"] {
        let files = folder.path().join(name);
        members[0].ask(&["cert", "issue", name, "--out", files.to_str().unwrap()]).json();
        honest.push(Honest::start(&members, &files).await);
    }
    let alice = read_credentials_in(&folder.path().join("alice")).unwrap();
    let token = members[0].ask(&["token", "create", "client"]).json()["token"].as_str().unwrap().to_owned();
    let mut off = members.pop().unwrap();
    off.running.kill();

    let written = |name: &str, own: &Credentials| {
        let dir = folder.path().join(name);
        fs::create_dir(&dir).unwrap();
        write_credentials(&dir, own).unwrap();
        dir
    };
    let as_stranger = thief.mint(NodeId(0xbad), Role::Manager, "");
    let as_off = thief.mint(node(&off.id), Role::Manager, "");
    let as_alice = thief.mint(Identity::from_cert(&alice.chain[0]).unwrap().node, Role::Client, "alice");
    let (stranger_files, alice_files) = (written("stranger", &as_stranger), written("as-alice", &as_alice));
    let command = |files: &Path| {
        let at = ["--json", "--endpoints", &members[0].addr, "--cert-dir", files.to_str().unwrap()];
        raft_kv(&[&["get", "k"][..], &at].concat())
    };
    command(&stranger_files).refused(1, &["does not know this node"]);
    let mut held = Vec::new();
    for purpose in [Purpose::Peer, Purpose::Bulk] {
        refused(dial(&members[0], &as_stranger, purpose).await, "does not know this node");
        refused(dial(&members[0], &as_alice, purpose).await, "client certificate");
        held.push(dial(&members[0], &as_off, purpose).await.expect("the control: a member's id opens it"));
    }
    // Neither a renewal nor a token brings it a certificate that the cluster made.
    refused(renew_once(&endpoints, &alice_files).await, "newer certificate");
    refused(readmit(&as_alice, &token, &endpoints[..2]).await, "newer certificate, with another key");
    let as_member = connect(&members[1], &as_off).await.unwrap();
    let request = NodeKey::generate().request().into();
    refused(as_member.trust(TrustCall::Renew { request }).await, "member looks after its own");

    let renewing = Renewing::start(endpoints[..2].to_vec(), alice_files.clone());
    assert!(!held.iter().any(Dialer::is_closed), "the control: it holds them until then");
    members[1].ask(&["ca", "rotate", "--stolen"]).done();
    let closed = Instant::now();
    while !held.iter().all(Dialer::is_closed) {
        assert!(closed.elapsed() < SOON, "a peer's door is still open to it");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    eprintln!("doors for members closed {:?} after it had settled", closed.elapsed());
    let (times, given) = renewing.stop().await;
    assert!(times > 0 && !given, "it was given a certificate of the new root, at one of {times} times");
    refused(readmit(&as_alice, &token, &endpoints[..2]).await, "token");

    // On all members and doors, and after a restart.
    let data_dir = members[1].data_dir.clone();
    for restarted in [false, true] {
        if restarted {
            members[1].running.kill();
            members[1] = Member::again(&data_dir);
        }
        for own in [&as_alice, &as_off, &as_stranger] {
            opens_nothing(&members, own, &thief, "root").await;
            for purpose in [Purpose::Peer, Purpose::Bulk] {
                refused(dial(&members[1], own, purpose).await, "root");
            }
        }
    }
    let status = members[0].ask(&["ca", "status"]).json();
    assert!(status["rotation"].is_null(), "{status}");
    for writer in honest {
        assert!(writer.stop().await > 0);
    }
}
