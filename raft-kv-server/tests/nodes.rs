//! Nodes that are taken out, with real processes: what they have open ends on every member, and no
//! listener of any takes them again, whatever happens to the members.

mod process;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use etcd_api::etcdserverpb::watch_request::RequestUnion;
use etcd_api::etcdserverpb::{WatchCreateRequest, WatchRequest as EtcdWatch};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use process::{Ended, Member, command, raft_kv, run};
use prost::Message;
use raft_kv::client::{Handle, Watch};
use raft_kv::net::read_credentials;
use raft_kv::pki::{Credentials, TLS_NAME};
use raft_kv::types::{KeyRange, WatchRequest};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

/// A second is promised; a loaded machine is given more.
const SOON: Duration = Duration::from_secs(5);

/// A client's three files.
struct Client {
    folder: PathBuf,
    name: &'static str,
}

impl Client {
    fn of(member: &Member, folder: &Path, name: &'static str) -> Self {
        let folder = folder.join(name);
        member.ask(&["cert", "issue", name, "--out", folder.to_str().unwrap()]).json();
        Self { folder, name }
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    fn credentials(&self) -> Credentials {
        let [cacert, cert, key] = ["cacert.pem", "cert.pem", "key.pem"].map(|name| self.folder.join(name));
        read_credentials(&cacert, &cert, &key).unwrap()
    }

    /// Runs a command against one member.
    fn ask(&self, member: &Member, words: &[&str]) -> Ended {
        let (cacert, cert, key) = (self.file("cacert.pem"), self.file("cert.pem"), self.file("key.pem"));
        let at = ["--json", "--endpoints", &member.addr, "--cacert", &cacert, "--cert", &cert, "--key", &key];
        raft_kv(&[words, &at[..]].concat())
    }

    fn id(&self, member: &Member) -> String {
        let nodes = member.ask(&["node", "inspect", self.name]).json();
        nodes["id"].as_str().unwrap().to_owned()
    }
}

fn door_of(member: &Member) -> String {
    member.etcd_url.strip_prefix("https://").unwrap().to_owned()
}

/// A TLS connection to a member's door.
async fn knock(member: &Member, own: &Credentials, alpn: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let der = |all: &[Vec<u8>]| all.iter().cloned().map(CertificateDer::from).collect::<Vec<_>>();
    let mut roots = rustls::RootCertStore::empty();
    for root in der(&own.roots) {
        roots.add(root).unwrap();
    }
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.key.clone()));
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(der(&own.chain), key)
        .unwrap();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let stream = TcpStream::connect(door_of(member)).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(TLS_NAME).unwrap(), stream).await
}

/// Whether a member's door serves anything: in TLS 1.3 a client hears of its refusal only then.
async fn served(member: &Member, own: &Credentials) -> bool {
    let Ok(stream) = knock(member, own, "http/1.1").await else { return false };
    let io = TokioIo::new(stream);
    let Ok((mut send, connection)) = hyper::client::conn::http1::handshake(io).await else { return false };
    tokio::spawn(connection);
    let request = Request::get("/version").header("host", "raft-kv").body(Full::<Bytes>::default()).unwrap();
    send.send_request(request).await.is_ok_and(|response| response.status() == StatusCode::OK)
}

/// A gRPC watch over the door that has begun.
struct Followed {
    answers: Incoming,
    _requests: tokio::sync::mpsc::Sender<Result<Frame<Bytes>, std::convert::Infallible>>,
}

async fn follow(member: &Member, own: &Credentials) -> Followed {
    let stream = knock(member, own, "h2").await.unwrap();
    let io = TokioIo::new(stream);
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let create = WatchCreateRequest { key: b"k".to_vec().into(), ..Default::default() };
    let message = EtcdWatch { request_union: Some(RequestUnion::CreateRequest(create)) }.encode_to_vec();
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap());
    framed.put_slice(&message);
    let (requests, sent) = tokio::sync::mpsc::channel(1);
    requests.send(Ok(Frame::data(framed.freeze()))).await.unwrap();
    let request = Request::post("https://raft-kv/etcdserverpb.Watch/Watch")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(ReceiverStream::new(sent)))
        .unwrap();
    let response = send.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut answers = response.into_body();
    let created = answers.frame().await.expect("it is created").unwrap();
    assert!(created.is_data(), "{created:?}");
    Followed { answers, _requests: requests }
}

/// What a client has open at one member.
struct Open {
    watch: Watch,
    followed: Followed,
    idle: TlsStream<TcpStream>,
}

impl Open {
    async fn at(member: &Member, own: &Credentials) -> Self {
        let handle = Handle::connect(std::slice::from_ref(&member.addr), own.clone()).await.unwrap();
        let range = KeyRange::key("k");
        let watch = handle.watch(WatchRequest { range, ..WatchRequest::default() }).await.unwrap();
        let followed = follow(member, own).await;
        let idle = knock(member, own, "http/1.1").await.unwrap();
        Self { watch, followed, idle }
    }

    /// Waits until all of it has ended.
    async fn ended(mut self) {
        while self.watch.next().await.is_ok_and(|batch| batch.is_some()) {}
        while let Some(Ok(frame)) = self.followed.answers.frame().await {
            assert!(!frame.is_trailers(), "cut, not answered: {frame:?}");
        }
        let mut rest = Vec::new();
        let _ = self.idle.read_to_end(&mut rest).await;
    }
}

fn within<T>(runtime: &tokio::runtime::Runtime, what: &str, work: impl Future<Output = T>) -> T {
    runtime.block_on(async {
        tokio::time::timeout(process::DEADLINE, work).await.unwrap_or_else(|_| panic!("{what}: too late"))
    })
}

/// Refused at a member's two listeners.
fn refused_at(runtime: &tokio::runtime::Runtime, member: &Member, gone: &Client) {
    // A loaded machine may not answer in time; what it answers is what counts.
    let answered = process::until("it answers", || {
        let ended = gone.ask(member, &["get", "k"]);
        (!ended.stderr.contains("nobody answers")).then_some(ended)
    });
    answered.refused(1, &["certificate", "removed"]);
    let own = gone.credentials();
    assert!(
        !within(runtime, "the door answers", served(member, &own)),
        "the door of {} serves it",
        member.id
    );
}

#[test]
fn who_is_taken_out_is_out_on_every_member_and_stays_out() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let first = Member::first(folder.path());
    let mut members = vec![first];
    for name in ["two", "three"] {
        let joined = members[0].joined_by(name, folder.path());
        members.push(joined);
    }
    process::until("all vote", || {
        let list = members[0].ask(&["member", "ls"]).json();
        let list = list["members"].as_array().unwrap().clone();
        (list.len() == 3 && list.iter().all(|member| member["role"] == "voter")).then_some(())
    });
    let (gone, stays) =
        (Client::of(&members[0], folder.path(), "gone"), Client::of(&members[0], folder.path(), "stays"));
    let (id, nodes) = (gone.id(&members[1]), members[2].ask(&["node", "ls"]).json());
    assert_eq!(nodes["nodes"].as_array().unwrap().len(), 5, "{nodes}");
    members[0].ask(&["node", "inspect", "nobody"]).refused(6, &["node ls"]);
    members[0].ask(&["node", "promote", &id[..8]]).refused(1, &["becomes a manager by joining"]);
    members[0].ask(&["node", "demote", &id]).refused(1, &["is no manager"]);
    members[0].ask(&["node", "promote", "two"]).refused(1, &["votes already"]);
    gone.ask(&members[0], &["node", "rm", "stays"]).refused(1, &["does not allow"]);

    let open = within(&runtime, "everything is open", async {
        let own = gone.credentials();
        let mut open = Vec::new();
        for member in &members {
            assert!(served(member, &own).await);
            open.push(Open::at(member, &own).await);
        }
        open
    });
    let kept = within(&runtime, "the other is served", Open::at(&members[1], &stays.credentials()));
    members[1].ask(&["node", "rm", &id[..8]]).json();
    let began = Instant::now();
    within(&runtime, "what it has open ends", async {
        for open in open {
            open.ended().await;
        }
    });
    assert!(began.elapsed() < SOON, "after {:?}", began.elapsed());
    eprintln!("everything of a removed client ended {:?} after the command had", began.elapsed());
    for member in &members {
        refused_at(&runtime, member, &gone);
        assert_eq!(stays.ask(member, &["put", "k", "v"]).code, Some(0));
    }
    drop(kept);

    // No member forgets it, whichever way it ended.
    let folders: Vec<PathBuf> = members.iter().map(|member| member.data_dir.clone()).collect();
    for mut member in members.drain(..) {
        member.running.kill();
    }
    // By itself, before it has heard of anybody.
    let alone = Member::again(&folders[1]);
    refused_at(&runtime, &alone, &gone);
    members = vec![Member::again(&folders[0]), alone, Member::again(&folders[2])];
    for member in &members {
        process::until("it serves others", || {
            (stays.ask(member, &["get", "k"]).code == Some(0)).then_some(())
        });
        refused_at(&runtime, member, &gone);
    }
    members[0].ask(&["node", "inspect", &id]).refused(6, &["node ls"]);

    // A manager that is demoted.
    let out = members.pop().unwrap();
    let demoted = members[0].ask(&["node", "demote", "three"]).json();
    assert_eq!((demoted["id"].as_str(), &demoted["demoted"]), (Some(&*out.id), &true.into()));
    let ended = out.running.ended();
    assert!(ended.code == Some(5) && ended.stderr.contains("removed"), "{ended:?}");
    for member in &members {
        let mut words = command(&["get", "k", "--json", "--endpoints", &member.addr]);
        words.arg("--data-dir").arg(&folders[2]);
        run(words, &[]).refused(1, &["certificate", "removed"]);
    }
    members[1].ask(&["node", "readmit", &out.id]).refused(6, &["node ls"]);
}
