//! Who gets in: on each port that a member listens on, nothing that is plain, and no certificate but those
//! that the cluster made, for what it made them; and nobody is taken for a member without one.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, SystemTime};

use raft_kv::net::{Dialer, Endpoint, LiveTrust};
use raft_kv::pki::{Credentials, Identity, LEAF_VALIDITY, NodeKey, Purpose, RootKey, Subject, issue};
use raft_kv::types::{ClusterId, NodeId, Role};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SubjectPublicKeyInfo,
};

use super::capture::Kind;
use super::knocks::{self, Shown};
use super::story::{Story, VALUE, blocking, gather};
use crate::process::{Member, command, free_address, raft_kv, run, until};

/// What process `pid` listens on, by the system's own account: `tcp ADDR`, `udp ADDR`, `unix PATH`.
fn listening(pid: u32) -> BTreeSet<String> {
    let mut own = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        let inode = target.to_str().and_then(|name| name.strip_prefix("socket:[")?.strip_suffix(']'));
        own.extend(inode.map(str::to_owned));
    }
    let mut found = BTreeSet::new();
    for kind in ["tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "unix"] {
        let Ok(table) = std::fs::read_to_string(format!("/proc/{pid}/net/{kind}")) else { continue };
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (inode, listens, at) = if kind == "unix" {
                // The mark of one that accepts.
                (fields[6], fields[3] == "00010000", fields.get(7).copied().unwrap_or_default().to_owned())
            } else {
                (fields[9], !kind.starts_with("tcp") || fields[3] == "0A", address(fields[1]))
            };
            if listens && own.contains(inode) {
                found.insert(format!("{kind} {at}"));
            }
        }
    }
    found
}

/// An IPv4 address as the kernel writes it; others stay as they are.
fn address(hex: &str) -> String {
    let (ip, port) = hex.split_once(':').expect("address and port");
    let port = u16::from_str_radix(port, 16).expect("a port");
    match (ip.len(), u32::from_str_radix(ip, 16)) {
        (8, Ok(ip)) => format!("{}:{port}", std::net::Ipv4Addr::from(ip.swap_bytes())),
        _ => format!("{ip}:{port}"),
    }
}

/// The two ports of a member, and that there is no other.
fn ports(story: &Story, member: usize) -> (SocketAddr, SocketAddr) {
    let hidden = &story.members[member];
    let (quic, door) = (hidden.quic.leads_to(), hidden.door.leads_to());
    let expect = BTreeSet::from([format!("tcp {door}"), format!("udp {quic}")]);
    until("it listens on those two alone; a new port needs tests here", || {
        (listening(hidden.member.running.pid()) == expect).then_some(())
    });
    (quic, door)
}

/// A hello of TLS 1.2: no list of versions.
fn hello_of_tls_1_2() -> Vec<u8> {
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 23][..],
        &[0, 13, 0, 8, 0, 6, 4, 3, 8, 4, 4, 1],
        &[0, 11, 0, 2, 1, 0],
        &[0, 23, 0, 0],
    ]
    .concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 6, 0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x2c, 1, 0, 0]);
    body.push(u8::try_from(extensions.len()).unwrap());
    body.extend(&extensions);
    let len = u8::try_from(body.len()).unwrap();
    [&[22, 3, 1, 0, len + 4, 1, 0, 0, len][..], &body].concat()
}

/// What somebody may send who does not speak TLS, or not the one that is spoken here.
fn plain() -> Vec<(&'static str, Vec<u8>)> {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    // HEADERS of a gRPC call, as HPACK's plain literals.
    let mut headers = vec![0x83, 0x86];
    for (name, value) in [
        (":path", "/etcdserverpb.KV/Range"),
        (":authority", "raft-kv"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        headers.push(0);
        for text in [name, value] {
            headers.push(u8::try_from(text.len()).unwrap());
            headers.extend(text.as_bytes());
        }
    }
    let len = u8::try_from(headers.len()).unwrap();
    let grpc =
        [&preface[..], &[0, 0, len, 1, 4, 0, 0, 0, 1], &headers, &[0, 0, 5, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0]];
    vec![
        ("HTTP/1.1", b"GET /metrics HTTP/1.1\r\nHost: raft-kv\r\n\r\n".to_vec()),
        ("JSON", b"POST /v3/kv/range HTTP/1.1\r\nHost: k\r\nContent-Length: 14\r\n\r\n{\"key\":\"AA==\"}".to_vec()),
        ("HTTP/2", preface.to_vec()),
        ("gRPC", grpc.concat()),
        ("upgrade", b"GET / HTTP/1.1\r\nHost: k\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n".to_vec()),
        ("TLS 1.2", hello_of_tls_1_2()),
        ("SSL 2", [&[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10][..], &[1; 37]].concat()),
        ("a plain record", b"\x17\x03\x03\x00\x20GET /version HTTP/1.1\r\n\r\n        ".to_vec()),
        ("DTLS 1.2", [&[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 40][..], &[1; 40]].concat()),
        ("nothing known", vec![0; 1200]),
        ("a long text", b"get everything\n".repeat(80)),
    ]
}

/// Sends `bytes` to the TCP port: an alert is all there is to hear.
fn check_tcp(door: SocketAddr, what: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(door).unwrap();
    stream.set_read_timeout(Some(crate::process::DEADLINE)).unwrap();
    // It may have been cut by then.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard);
    let alert = heard.len() == 7 && heard[..2] == [21, 3] && heard[3..6] == [0, 2, 2];
    assert!(heard.is_empty() || alert, "{what}: {heard:x?}");
    if what == "TLS 1.2" {
        // Protocol version.
        assert_eq!(heard.last(), Some(&70), "{heard:x?}");
    }
}

/// Sends all of it to the UDP port: silence, a reset or the list of versions is all there is to hear.
fn check_udp(quic: SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(crate::process::DEADLINE)).unwrap();
    socket.connect(quic).unwrap();
    for (_, bytes) in plain() {
        socket.send(&bytes).unwrap();
        let mut padded = bytes;
        padded.resize(1200, 0);
        socket.send(&padded).unwrap();
    }
    // Of a version that nobody speaks: its answer comes after all others.
    let mut probe = vec![0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 7, 6, 5, 4, 3, 2, 1];
    probe.resize(1200, 0);
    until("the versions are told", || {
        socket.send(&probe).unwrap();
        let mut heard = [0; 2048];
        loop {
            let count = socket.recv(&mut heard).unwrap();
            let heard = &heard[..count];
            let versions = heard[0] & 0x80 != 0 && heard.get(1..5) == Some(&[0; 4]);
            if versions && heard[6..14] == [8, 7, 6, 5, 4, 3, 2, 1] {
                return Some(());
            }
            assert!(versions || (heard[0] & 0x80 == 0 && count < 1200), "{heard:x?}");
            assert!(!heard.windows(4).any(|part| part == b"HTTP"), "{heard:x?}");
        }
    });
}

/// What an authority makes, whoever has its key.
struct Maker<'a> {
    root: &'a RootKey,
    now: SystemTime,
}

impl Maker<'_> {
    fn usual(&self, subject: &Subject, from: SystemTime) -> Shown {
        let key = NodeKey::generate();
        let leaf = issue(self.root, subject, &key.public(), from, LEAF_VALIDITY, &mut rand::rng()).unwrap();
        Shown { chain: vec![leaf], key: key.der().to_vec() }
    }

    fn plain(&self, subject: &Subject) -> Shown {
        self.usual(subject, self.now)
    }

    /// One with something changed that `issue` never would.
    fn changed(&self, subject: &Subject, change: impl FnOnce(&mut CertificateParams)) -> Shown {
        let key = KeyPair::try_from(self.root.key_der()).unwrap();
        let der = self.root.cert_der().into();
        let issuer = Issuer::from_ca_cert_der(&der, key).unwrap();
        let (params, own) = (params(subject, change), NodeKey::generate());
        let public = SubjectPublicKeyInfo::from_der(&own.public()).unwrap();
        let leaf = params.signed_by(&public, &issuer).unwrap();
        Shown { chain: vec![leaf.der().to_vec()], key: own.der().to_vec() }
    }
}

fn params(subject: &Subject, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["raft-kv".into(), "localhost".into()]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    let name = &mut params.distinguished_name;
    if subject.role == Role::Client {
        name.push(DnType::CommonName, subject.name.as_str());
        name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), subject.node.to_string());
    } else {
        name.push(DnType::CommonName, subject.node.to_string());
    }
    name.push(DnType::OrganizationalUnitName, subject.role.as_str());
    name.push(DnType::OrganizationName, subject.cluster.to_string());
    let now = time::OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - time::Duration::hours(1), now + time::Duration::days(1));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if subject.role == Role::Manager {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    change(&mut params);
    params
}

/// The ports and protocols at which one may be let in.
const NOWHERE: [bool; 5] = [false; 5];
/// Who asks to join need not prove anything; it is told nothing there but what a token is good for.
const JOIN: [bool; 5] = [false, false, false, false, true];
const CLIENT: [bool; 5] = [true, true, false, false, true];
const WORKER: [bool; 5] = [false, true, false, false, true];
const MEMBER: [bool; 5] = [true; 5];

/// Everything that somebody may show, and where it is to be let in.
fn certificates(story: &Story, removed: &Shown) -> Vec<(&'static str, Option<Shown>, [bool; 5])> {
    let root = story.root.as_ref().unwrap();
    let of = |own: &Credentials| own.identity().unwrap();
    let files = |name: &str| raft_kv::net::read_credentials_in(&story.at(name)).unwrap();
    let (member, tester, worker) = (story.credentials(0), files("tester"), files("worker"));
    let subject = |identity: Identity, name: &str| Subject {
        cluster: identity.cluster,
        node: identity.node,
        role: identity.role,
        name: name.into(),
        hosts: vec!["127.0.0.1".into()],
    };
    let one = subject(of(&member), "");
    let alice = subject(of(&tester), "tester");
    let unknown = Subject { node: NodeId(0x77), ..one.clone() };
    let now = SystemTime::now();
    let ours = Maker { root, now };
    let same_names = RootKey::generate(ClusterId(0xc1), now);
    let foreign = Maker { root: &same_names, now };
    let with = |shown: &Shown, more: &[u8]| Shown {
        chain: [&shown.chain[..], &[more.to_vec()]].concat(),
        ..shown.clone()
    };
    // A client that takes its own certificate for an authority's.
    let below = {
        let signer = KeyPair::try_from(&tester.key[..]).unwrap();
        let der = tester.chain[0].as_slice().into();
        let own = NodeKey::generate();
        let public = SubjectPublicKeyInfo::from_der(&own.public()).unwrap();
        let leaf = params(&one, |_| {}).signed_by(&public, &Issuer::from_ca_cert_der(&der, signer).unwrap());
        Shown { chain: vec![leaf.unwrap().der().to_vec(), tester.chain[0].clone()], key: own.der().to_vec() }
    };
    let self_signed = {
        let key = KeyPair::generate().unwrap();
        let cert = params(&one, |_| {}).self_signed(&key).unwrap();
        Shown { chain: vec![cert.der().to_vec()], key: key.serialize_der() }
    };
    let as_root = Shown { chain: vec![root.cert_der().to_vec()], key: NodeKey::generate().der().to_vec() };
    let long_ago = now - Duration::from_secs(100 * 86_400);
    use ExtendedKeyUsagePurpose::{CodeSigning, ServerAuth};
    vec![
        ("a member's own", Some(Shown::from(&member)), MEMBER),
        ("a client's own", Some(Shown::from(&tester)), CLIENT),
        ("a worker's own", Some(Shown::from(&worker)), WORKER),
        // What follows is refused for what differs from this.
        ("what the root's key makes for a client", Some(ours.changed(&alice, |_| {})), CLIENT),
        ("none", None, JOIN),
        ("a foreign root's with a member's names", Some(foreign.plain(&one)), NOWHERE),
        ("a foreign root's with a client's names", Some(foreign.plain(&alice)), NOWHERE),
        (
            "a foreign root's, the true root behind it",
            Some(with(&foreign.plain(&one), root.cert_der())),
            NOWHERE,
        ),
        (
            "a foreign root's, that root behind it",
            Some(with(&foreign.plain(&one), same_names.cert_der())),
            NOWHERE,
        ),
        ("a self-signed one", Some(self_signed), NOWHERE),
        ("a client's, as if it were an authority's", Some(below), NOWHERE),
        (
            "a member's, with another key",
            Some(Shown { key: tester.key.clone(), ..Shown::from(&member) }),
            NOWHERE,
        ),
        ("the root itself, with another key", Some(as_root), NOWHERE),
        ("an expired one", Some(ours.usual(&alice, long_ago)), NOWHERE),
        ("one of tomorrow", Some(ours.usual(&alice, now + Duration::from_secs(86_400))), NOWHERE),
        (
            "one for servers",
            Some(ours.changed(&alice, |it| it.extended_key_usages = vec![ServerAuth])),
            NOWHERE,
        ),
        ("one for code", Some(ours.changed(&one, |it| it.extended_key_usages = vec![CodeSigning])), NOWHERE),
        (
            "an authority's",
            Some(ours.changed(&one, |it| it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
            NOWHERE,
        ),
        ("a stolen key's, unknown id", Some(ours.plain(&unknown)), JOIN),
        (
            "a stolen key's, a client as a manager",
            Some(ours.plain(&Subject { role: Role::Manager, ..alice.clone() })),
            JOIN,
        ),
        ("another cluster's", Some(ours.plain(&Subject { cluster: ClusterId(0xc2), ..one.clone() })), JOIN),
        (
            "one without a role",
            Some(ours.changed(&one, |it| {
                let _ = it.distinguished_name.remove(DnType::OrganizationalUnitName);
            })),
            JOIN,
        ),
        ("a removed client's", Some(removed.clone()), JOIN),
    ]
}

/// Shows each certificate at each port, in every protocol.
fn check_certificates(
    quic: SocketAddr,
    door: SocketAddr,
    cases: Vec<(&'static str, Option<Shown>, [bool; 5])>,
) {
    blocking(async {
        // All at once: who is not known is waited for a moment.
        let mut all = Vec::new();
        for (what, shown, expect) in cases {
            let at_door = shown.clone();
            let told = async move {
                knocks::door_serves(door, at_door.as_ref()).await.then_some(()).ok_or_else(String::new)
            };
            all.push((what, "the etcd door", expect[0], tokio::spawn(told)));
            for (purpose, name, expect) in [
                (Purpose::Client, "client", expect[1]),
                (Purpose::Peer, "peer", expect[2]),
                (Purpose::Bulk, "bulk", expect[3]),
                (Purpose::Join, "join", expect[4]),
            ] {
                let shown = shown.clone();
                let told = async move { knocks::quic_admits(quic, shown.as_ref(), purpose).await };
                all.push((what, name, expect, tokio::spawn(told)));
            }
        }
        assert!(all.len() > 100);
        for (what, place, expect, told) in all {
            let told = told.await.unwrap();
            assert_eq!(told.is_ok(), expect, "{what} at {place}: {told:?}");
        }
    });
}

#[test]
fn each_port_takes_tls_1_3_with_a_certificate_of_the_cluster_and_nothing_else() {
    let mut story = Story::new();
    gather(&mut story);
    story.ask(0, &["put", "k", VALUE], false);
    let out = story.at("gone").to_str().unwrap().to_owned();
    story.ask(0, &["cert", "issue", "gone", "--out", &out], false);
    let removed = raft_kv::net::read_credentials_in(&story.at("gone")).unwrap();
    story.ask(0, &["node", "rm", "gone"], false);
    for member in [0, 1] {
        let (quic, door) = ports(&story, member);
        for (what, bytes) in plain() {
            check_tcp(door, what, &bytes);
        }
        check_udp(quic);
        check_certificates(quic, door, certificates(&story, &Shown::from(&removed)));
        let got = story.with_files(member, "tester", &["get", "k"], &[]);
        assert_eq!(got["count"], 1, "it serves on: {got}");
        assert_eq!(ports(&story, member), (quic, door));
    }
    impostor(&mut story);
}

/// Somebody else's listener with a member's names, where clients, joiners and members expect the member.
fn impostor(story: &mut Story) {
    let now = SystemTime::now();
    let theirs = RootKey::generate(ClusterId(0xc1), now);
    let is = story.credentials(1).identity().unwrap();
    let subject = |node, role, name: &str| Subject {
        cluster: is.cluster,
        node,
        role,
        name: name.into(),
        hosts: vec![],
    };
    let true_root = story.root.as_ref().unwrap().cert_der().to_vec();
    let made = |node, role, name: &str| {
        let shown = Maker { root: &theirs, now }.plain(&subject(node, role, name));
        // It would take anybody: only who dials it can refuse.
        let roots = vec![true_root.clone(), theirs.cert_der().to_vec()];
        Credentials { chain: shown.chain, key: shown.key, roots, ..Default::default() }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let guard = runtime.enter();
    let trust = LiveTrust::new(made(is.node, Role::Manager, "")).unwrap();
    let fake = Endpoint::bind(free_address().parse().unwrap(), trust).unwrap();
    drop(guard);
    let relay = story.capture.relay(Kind::Udp, "impostor", fake.local_addr());
    let at = relay.addr.to_string();

    // Clients, and those with a token.
    let token = super::story::word(&story.ask(0, &["join-token", "manager"], true), "token");
    let worker = super::story::word(&story.ask(0, &["join-token", "worker"], true), "token");
    let files = ["cacert.pem", "cert.pem", "key.pem"].map(|name| story.at("tester").join(name));
    let [cacert, cert, key] = files.map(|path| path.to_str().unwrap().to_owned());
    let out = story.at("none").to_str().unwrap().to_owned();
    let get = ["get", "k", "--json", "--endpoints", &at, "--cacert", &cacert, "--cert", &cert, "--key", &key];
    let put = [&["put", "k", VALUE], &get[2..]].concat();
    let enrol = ["enrol", "--token", &worker, "--endpoints", &at, "--name", "w", "--out", &out, "--json"];
    for words in [&get[..], &put, &enrol] {
        let before = story.capture.volume("impostor");
        let ended = raft_kv(words);
        assert!(ended.code != Some(0) && ended.stderr.contains("certificate"), "{ended:?}");
        assert!(story.capture.volume("impostor") > before + 1200, "it has dialled");
    }
    let mut join =
        command(&["join", "--name", "three", "--listen-addr", &free_address(), "--etcd-addr", "off"]);
    join.args(["--token", &token, &at, "--json", "--data-dir", story.at("three").to_str().unwrap()]);
    let ended = run(join, &[]);
    assert!(ended.code != Some(0) && ended.stderr.contains("certificate"), "{ended:?}");

    // The other member, which looks for the one that it lost.
    let mut lost = story.members.remove(1);
    lost.member.running.kill();
    let before = story.capture.volume("quic of two");
    let real = lost.quic.leads_to();
    lost.quic.lead_to(fake.local_addr());
    until("the other member has dialled it", || {
        (story.capture.volume("quic of two") > before + 10_000).then_some(())
    });
    assert!(fake.connections().is_empty(), "{:?}", fake.connections());
    let came = runtime.block_on(async { tokio::time::timeout(Duration::ZERO, fake.accept()).await.is_ok() });
    assert!(!came, "somebody has believed it");
    // Who believes its root is let in: so nobody else was.
    let own = made(NodeId(5), Role::Client, "friend");
    let friend = runtime.block_on(Dialer::connect(std::slice::from_ref(&at), &own, Purpose::Client));
    assert!(friend.is_ok() && fake.connections().len() == 1, "{friend:?}");
    runtime.block_on(fake.close());
    lost.quic.lead_to(real);
    lost.member = Member::again(&lost.member.data_dir);
    story.members.push(lost);
    story.ask(1, &["put", "k", "after"], false);
}
