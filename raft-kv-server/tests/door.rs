//! The client port over real sockets: who gets in, who does not, what it costs to knock, and what
//! is told over plain HTTP.

mod process;

use std::net::{SocketAddr, TcpStream as StdStream};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use raft_kv::client::{Config, Node, Tuning};
use raft_kv::limits;
use raft_kv::net::LiveTrust;
use raft_kv::pki::{Credentials, LEAF_VALIDITY, NodeKey, RootKey, Subject, TLS_NAME, issue};
use raft_kv::types::{ClusterId, NodeId, Role, Standing};
use raft_kv_server::door::Door;
use raft_kv_server::etcd::Etcd;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const CLUSTER: ClusterId = ClusterId(0xc1);
const DAY: Duration = Duration::from_secs(86400);

/// An authority whose key the test holds, so that it can make every certificate.
struct Authority {
    root: RootKey,
    cluster: ClusterId,
}

impl Authority {
    fn new() -> Self {
        Self { root: RootKey::generate(CLUSTER, SystemTime::now()), cluster: CLUSTER }
    }

    fn node(&self, node: u64, role: Role) -> Credentials {
        self.node_at(node, role, SystemTime::now())
    }

    fn node_at(&self, node: u64, role: Role, now: SystemTime) -> Credentials {
        let key = NodeKey::generate();
        let name = if role == Role::Client { "alice".to_owned() } else { String::new() };
        let subject = Subject { cluster: self.cluster, node: NodeId(node), role, name, hosts: vec![] };
        let leaf = issue(&self.root, &subject, &key.public(), now, LEAF_VALIDITY, &mut rand::rng());
        Credentials {
            chain: vec![leaf.unwrap()],
            key: key.der().to_vec(),
            roots: vec![self.root.cert_der().to_vec()],
            ..Default::default()
        }
    }
}

/// A member with a door whose trust is the test's.
struct Bench {
    authority: Authority,
    trust: LiveTrust,
    door: Door,
    node: Node,
    folder: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            data_dir: folder.path().join("one"),
            name: "one".into(),
            listen_addr: process::free_address().parse().unwrap(),
            advertise_addr: None,
            client_addr: Some("127.0.0.1:0".parse().unwrap()),
            advertise_client_addr: None,
            own_root: None,
            external_signer: None,
            tuning: Tuning { log_segment_bytes: 1024 * 1024, ..Tuning::default() },
        };
        let node = Node::init(config).await.unwrap();
        let authority = Authority::new();
        let trust = LiveTrust::new(authority.node(1, Role::Manager)).unwrap();
        let listener = node.client_listener().unwrap();
        let etcd = Etcd::new(node.handle(), node.cluster(), node.id());
        let door = Door::open_for(listener, etcd, trust.clone()).unwrap();
        assert_eq!(node.client_url(), format!("https://{}", door.addr()));
        node.leadership().wait_for(|leadership| leadership.ready).await.unwrap();
        Self { authority, trust, door, node, folder }
    }

    fn client(&self) -> Credentials {
        self.authority.node(7, Role::Client)
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let stream = knock(self.door.addr(), Some(&self.client()), &["http/1.1"]).await.unwrap();
        ask_http1(stream, path, &[]).await.unwrap()
    }

    async fn end(self) {
        self.door.close().await;
        self.node.shutdown().await.unwrap();
        drop(self.folder);
    }
}

/// Runs `test` with a bench of its own, and not for long.
fn run(test: impl AsyncFnOnce(&Bench)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let bench = Bench::new().await;
        tokio::time::timeout(process::DEADLINE, test(&bench)).await.unwrap();
        bench.end().await;
    });
}

/// A TLS connection to the door, as `own` and believing its roots.
async fn knock(
    addr: SocketAddr,
    own: Option<&Credentials>,
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let der = |all: &[Vec<u8>]| all.iter().cloned().map(CertificateDer::from).collect::<Vec<_>>();
    let mut roots = rustls::RootCertStore::empty();
    for root in own.map(|own| der(&own.roots)).unwrap_or_default() {
        roots.add(root).unwrap();
    }
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let mut config = match own {
        Some(own) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.key.clone()));
            builder.with_root_certificates(roots).with_client_auth_cert(der(&own.chain), key).unwrap()
        }
        None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous(provider)))
            .with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(addr).await?;
    let name = ServerName::try_from(TLS_NAME).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// For one who has no certificate and so nothing to lose.
#[derive(Debug)]
struct Credulous(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 alone")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

type Told = Result<(StatusCode, String), hyper::Error>;

fn request(path: &str, headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Empty::new()).unwrap()
}

async fn ask_http1(stream: TlsStream<TcpStream>, path: &str, headers: &[(&str, &str)]) -> Told {
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut headers = headers.to_vec();
    headers.push(("host", "raft-kv"));
    let response = send.send_request(request(path, &headers)).await?;
    let code = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((code, String::from_utf8_lossy(&body).into_owned()))
}

async fn ask_http2(stream: TlsStream<TcpStream>, path: &str, headers: &[(&str, &str)]) -> Told {
    let io = TokioIo::new(stream);
    let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    let path = format!("https://raft-kv{path}");
    let response = send.send_request(request(&path, headers)).await?;
    let code = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((code, String::from_utf8_lossy(&body).into_owned()))
}

/// One line of a metrics page.
fn metric(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[test]
fn the_version_is_told_over_both_protocols() {
    run(async |bench| {
        let expect = r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0"}"#;
        // A client that names no protocol is understood by what it sends.
        for (alpn, two) in [(&["http/1.1"][..], false), (&["h2"], true), (&[], false), (&[], true)] {
            for role in [Role::Client, Role::Manager] {
                let own = bench.authority.node(7, role);
                let stream = knock(bench.door.addr(), Some(&own), alpn).await.unwrap();
                let told = if two {
                    ask_http2(stream, "/version", &[]).await
                } else {
                    ask_http1(stream, "/version", &[]).await
                };
                assert_eq!(told.unwrap(), (StatusCode::OK, expect.into()), "{alpn:?} {two} {role}");
            }
        }
        assert_eq!(bench.get("/nowhere").await.0, StatusCode::NOT_FOUND);
    });
}

#[test]
fn who_has_no_business_here_is_refused_in_the_handshake() {
    run(async |bench| {
        let ours = &bench.authority;
        let renamed = Authority {
            root: RootKey::from_parts(ours.root.cert_der(), ours.root.key_der()).unwrap(),
            cluster: ClusterId(0xc2),
        };
        let mut stranger = Authority::new().node(7, Role::Client);
        stranger.roots = vec![ours.root.cert_der().to_vec()];
        bench.trust.set_standing(|who| {
            if who.node == NodeId(66) { Standing::Removed } else { Standing::Known(who.role) }
        });
        let cases = [
            ("no_certificate", None),
            ("other_cluster", Some(renamed.node(7, Role::Client))),
            ("unknown_root", Some(stranger)),
            ("expired", Some(ours.node_at(7, Role::Client, SystemTime::now() - 100 * DAY))),
            ("removed", Some(ours.node(66, Role::Manager))),
        ];
        for (reason, own) in cases {
            // With TLS 1.3 a client hears of it with the first answer.
            if let Ok(stream) = knock(bench.door.addr(), own.as_ref(), &["http/1.1"]).await {
                let told = ask_http1(stream, "/version", &[]).await;
                assert!(told.is_err(), "{reason}: {told:?}");
            }
            let page = bench.get("/metrics").await.1;
            let name = format!("raft_kv_door_handshakes_refused_total{{reason=\"{reason}\"}}");
            assert_eq!(metric(&page, &name), Some(1.0), "{name} in {page}");
        }
    });
}

#[test]
fn stalled_handshakes_keep_nobody_out() {
    run(async |bench| {
        let addr = bench.door.addr();
        let silent: Vec<_> =
            (0..limits::MAX_DOOR_HANDSHAKES + 40).map(|_| StdStream::connect(addr).unwrap()).collect();
        let begun = Instant::now();
        assert_eq!(bench.get("/version").await.0, StatusCode::OK);
        assert!(begun.elapsed() < limits::DOOR_HANDSHAKE_DEADLINE, "the door waited for stalled handshakes");
        let page = bench.get("/metrics").await.1;
        let crowded = metric(&page, "raft_kv_door_handshakes_refused_total{reason=\"crowded_out\"}");
        assert!(crowded.is_some_and(|count| count >= 40.0), "{crowded:?}");
        drop(silent);
    });
}

#[test]
fn headers_are_bounded() {
    run(async |bench| {
        let own = bench.client();
        let large = "x".repeat(2 * limits::MAX_DOOR_HEADER_BYTES as usize);
        let headers = [("x-large", large.as_str())];
        let stream = knock(bench.door.addr(), Some(&own), &["http/1.1"]).await.unwrap();
        // The connection may be gone before the answer is read.
        if let Ok((code, _)) = ask_http1(stream, "/version", &headers).await {
            assert_eq!(code, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        let stream = knock(bench.door.addr(), Some(&own), &["h2"]).await.unwrap();
        if let Ok((code, _)) = ask_http2(stream, "/version", &headers).await {
            assert_eq!(code, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        }
        assert_eq!(bench.get("/version").await.0, StatusCode::OK);
    });
}

#[test]
fn probes_are_answered_in_etcds_words() {
    run(async |bench| {
        let healthy = r#"{"health":"true","reason":""}"#;
        let checks = "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n\
                      [+]non_learner ok\nok\n";
        for (path, body) in [
            ("/health", healthy),
            ("/health?serializable=true", healthy),
            ("/health?exclude=NOSPACE", healthy),
            ("/livez", "ok\n"),
            ("/livez?verbose", "[+]serializable_read ok\nok\n"),
            ("/livez/serializable_read", "ok\n"),
            ("/readyz", "ok\n"),
            ("/readyz?verbose=true", checks),
            (
                "/readyz?verbose&exclude=data_corruption&exclude=non_learner&exclude=linearizable_read",
                "[+]serializable_read ok\nok\n",
            ),
            ("/readyz/linearizable_read?verbose", "[+]linearizable_read ok\nok\n"),
        ] {
            assert_eq!(bench.get(path).await, (StatusCode::OK, body.into()), "{path}");
        }
        assert_eq!(bench.get("/livez/linearizable_read").await.0, StatusCode::NOT_FOUND);
        let page = bench.get("/metrics").await.1;
        for (name, expect) in [
            ("etcd_server_has_leader", 1.0),
            ("etcd_server_is_leader", 1.0),
            ("etcd_server_is_learner", 0.0),
            ("etcd_server_leader_changes_seen_total", 1.0),
            ("etcd_debugging_mvcc_current_revision", 1.0),
            ("etcd_server_version{server_version=\"3.7.1\"}", 1.0),
            ("raft_kv_door_connections", 1.0),
        ] {
            assert_eq!(metric(&page, name), Some(expect), "{name} in {page}");
        }
        for name in ["process_resident_memory_bytes", "raft_kv_certificate_expires_seconds"] {
            assert!(metric(&page, name).is_some_and(|value| value > 0.0), "{name} in {page}");
        }
        assert!(page.ends_with("# EOF\n") && page.matches("# EOF").count() == 1, "{page}");
    });
}

#[test]
fn grpc_shares_the_port() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    run(async |bench| {
        let (addr, own) = (bench.door.addr(), bench.client());
        let connect = tower::service_fn(move |_: http::Uri| {
            let own = own.clone();
            async move { knock(addr, Some(&own), &["h2"]).await.map(TokioIo::new) }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://raft-kv");
        let channel = endpoint.connect_with_connector(connect).await.unwrap();
        let mut health = HealthClient::new(channel);
        let served = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
        assert_eq!(served.status(), ServingStatus::Serving);
        let unknown = health.check(HealthCheckRequest { service: "none".into() }).await.unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound);
        let page = bench.get("/metrics").await.1;
        for (code, expect) in [("OK", 1.0), ("NotFound", 1.0)] {
            let name = format!(
                "grpc_server_handled_total{{grpc_type=\"unary\",grpc_service=\"grpc.health.v1.Health\",\
                 grpc_method=\"Check\",grpc_code=\"{code}\"}}"
            );
            assert_eq!(metric(&page, &name), Some(expect), "{name} in {page}");
        }
    });
}

/// Reads until the other side ends it.
async fn ended(mut stream: TlsStream<TcpStream>) {
    let mut buffer = [0; 1024];
    while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}

#[test]
fn an_open_connection_ends_when_its_certificate_is_not_believed_any_more() {
    run(async |bench| {
        let knock_as = async |node| {
            let own = bench.authority.node(node, Role::Client);
            let mut stream = knock(bench.door.addr(), Some(&own), &["http/1.1"]).await.unwrap();
            // Answered: so it is in.
            stream.write_all(b"GET /version HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
            assert!(stream.read(&mut [0; 8]).await.unwrap() > 0);
            stream
        };
        let (removed, stays) = (knock_as(8).await, knock_as(9).await);
        bench.trust.set_standing(|who| {
            if who.node == NodeId(8) { Standing::Removed } else { Standing::Known(who.role) }
        });
        ended(removed).await;
        assert_eq!(ask_http1_after(stays, "/version").await, "200");
        // Another root: who was let in by the old one has to go.
        let left = knock_as(9).await;
        let other = Authority::new();
        bench.trust.swap(other.node(1, Role::Manager)).unwrap();
        ended(left).await;
        let own = other.node(7, Role::Client);
        let stream = knock(bench.door.addr(), Some(&own), &["http/1.1"]).await.unwrap();
        let page = ask_http1(stream, "/metrics", &[]).await.unwrap().1;
        for reason in ["removed", "unknown_root"] {
            let name = format!("raft_kv_door_connections_cut_total{{reason=\"{reason}\"}}");
            assert!(metric(&page, &name).is_some_and(|count| count >= 1.0), "{name} in {page}");
        }
    });
}

/// One more request on a connection whose last answer was read in part only; the code of its answer.
async fn ask_http1_after(mut stream: TlsStream<TcpStream>, path: &str) -> String {
    let mut text = Vec::new();
    let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let _ = stream.read_to_end(&mut text).await;
    let text = String::from_utf8_lossy(&text).into_owned();
    text.rsplit("HTTP/1.1 ").next().unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn whatever_is_sent_after_the_handshake_the_door_serves_on() {
    run(async |bench| {
        let handle = tokio::runtime::Handle::current();
        let (addr, own) = (bench.door.addr(), bench.client());
        let check = move |(preface, bytes): (u8, Vec<u8>)| {
            let head: &[u8] = match preface {
                0 => b"",
                1 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                2 => b"POST /v3/kv/put HTTP/1.1\r\nhost: h\r\n",
                _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            };
            handle.block_on(async {
                let mut stream = knock(addr, Some(&own), &[]).await.unwrap();
                // It may end the connection while it is sent.
                let _ = stream.write_all(&[head, &bytes].concat()).await;
                let _ = stream.shutdown().await;
                ended(stream).await;
            });
            Ok(())
        };
        let cases = ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() };
        let input = (0..4u8, prop::collection::vec(any::<u8>(), 0..2000));
        let all = move || TestRunner::new(cases).run(&input, check);
        tokio::task::spawn_blocking(all).await.unwrap().unwrap();
        assert_eq!(bench.get("/version").await.0, StatusCode::OK);
    });
}

#[test]
fn a_busy_port_is_named_before_anything_is_made() {
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = busy.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("one");
    let words = ["init", "--listen-addr", &process::free_address(), "--etcd-addr", &addr, "--data-dir"];
    let mut command = process::command(&words);
    command.arg(&data);
    process::run(command, &[]).refused(1, &[&format!("etcd address {addr}"), "in use", "--etcd-addr"]);
    assert!(!data.exists());
}

#[test]
fn the_door_is_remembered_moved_and_turned_off() {
    let folder = tempfile::tempdir().unwrap();
    let one = process::Member::first(folder.path());
    let url = one.etcd_url.clone();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let out = folder.path().join("client");
    one.ask(&["cert", "issue", "tester", "--out", out.to_str().unwrap()]).json();
    let files = ["cacert", "cert", "key"].map(|name| out.join(format!("{name}.pem")));
    let own = raft_kv::net::read_credentials(&files[0], &files[1], &files[2]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let version = |url: &str| {
        let addr = url.strip_prefix("https://").unwrap().parse().unwrap();
        runtime.block_on(async {
            let stream = knock(addr, Some(&own), &["h2"]).await.unwrap();
            ask_http2(stream, "/version", &[]).await.unwrap().0
        })
    };
    assert_eq!(version(&url), StatusCode::OK);
    let data_dir = one.data_dir.clone();
    stop(one);
    let again = process::Member::again(&data_dir);
    assert_eq!(again.etcd_url, url);
    assert_eq!(version(&url), StatusCode::OK);
    stop(again);
    let words = ["run", "--advertise-etcd-addr", "kv.example:2379"];
    let moved = process::Member::start(&words, &data_dir).unwrap();
    assert_eq!(moved.etcd_url, "https://kv.example:2379");
    let two = moved.joined_by("two", folder.path());
    let told = process::until("both members' addresses are known", || {
        let members = two.ask(&["member", "ls"]).json()["members"].take();
        let urls = members.as_array().unwrap().iter().map(|member| member["etcd_url"].clone());
        let urls: std::collections::BTreeSet<_> = urls.map(|url| url.as_str().unwrap().to_owned()).collect();
        urls.contains(&moved.etcd_url).then_some(urls)
    });
    assert_eq!(told, [moved.etcd_url.clone(), two.etcd_url.clone()].into());
    moved.ask(&["member", "rm", "two"]).json();
    stop(moved);
    let off = process::Member::start(&["run", "--etcd-addr", "off"], &data_dir).unwrap();
    assert_eq!(off.etcd_url, "");
    assert!(StdStream::connect(url.strip_prefix("https://").unwrap()).is_err());
}

#[test]
fn who_removes_a_member_through_itself_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let one = process::Member::first(folder.path());
    let out = folder.path().join("client");
    one.ask(&["cert", "issue", "tester", "--out", out.to_str().unwrap()]).json();
    let files = ["cacert", "cert", "key"].map(|name| out.join(format!("{name}.pem")));
    let own = raft_kv::net::read_credentials(&files[0], &files[1], &files[2]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for name in ["two", "three", "four"] {
        let member = one.joined_by(name, folder.path());
        let id = process::until("it votes", || {
            let members = one.ask(&["member", "ls"]).json()["members"].take();
            let found = members.as_array().unwrap().iter().find(|member| member["name"] == name)?.clone();
            (found["role"] == "voter").then(|| found["id"].as_str().unwrap().to_owned())
        });
        let id = u64::from_str_radix(&id, 16).unwrap();
        let addr = member.etcd_url.strip_prefix("https://").unwrap().parse().unwrap();
        let answer = runtime.block_on(async {
            let mut stream = knock(addr, Some(&own), &["http/1.1"]).await.unwrap();
            let body = format!("{{\"ID\":\"{id}\"}}");
            let request = format!(
                "POST /v3/cluster/member/remove HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = Vec::new();
            let _ = stream.read_to_end(&mut text).await;
            String::from_utf8_lossy(&text).into_owned()
        });
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer:?}");
        assert_ne!(member.running.ended().code, Some(0));
    }
    stop(one);
}

fn stop(member: process::Member) {
    member.running.terminate();
    assert_eq!(member.running.ended().code, Some(0));
}

#[test]
fn a_connection_under_a_root_that_was_given_up_is_told_to_go_and_then_cut() {
    run(async |bench| {
        let old = bench.client();
        let stream = knock(bench.door.addr(), Some(&old), &["h2"]).await.unwrap();
        let io = TokioIo::new(stream);
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let connection = tokio::spawn(connection);
        let told = send.send_request(request("https://raft-kv/version", &[])).await.unwrap();
        assert_eq!(told.status(), StatusCode::OK);
        drop(told.into_body().collect().await.unwrap());
        let new = Authority::new();
        bench.trust.swap(new.node(1, Role::Manager)).unwrap();
        // Told (GOAWAY), not broken: nothing was under way.
        let ended = tokio::time::timeout(Duration::from_secs(5), connection).await.unwrap().unwrap();
        assert!(ended.is_ok(), "{ended:?}");
        let mut left = old;
        left.roots = vec![new.root.cert_der().to_vec()];
        let refused = async {
            let stream = knock(bench.door.addr(), Some(&left), &["http/1.1"]).await.map_err(drop)?;
            ask_http1(stream, "/version", &[]).await.map_err(drop)
        };
        assert!(refused.await.is_err());
        let stream = knock(bench.door.addr(), Some(&new.node(7, Role::Client)), &["http/1.1"]).await.unwrap();
        assert_eq!(ask_http1(stream, "/version", &[]).await.unwrap().0, StatusCode::OK);
    });
}
