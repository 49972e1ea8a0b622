//! The client port: TCP connections under TLS 1.3, and on each of them gRPC, JSON and plain HTTP.
//!
//! Whoever knocks proves itself with a certificate before a byte of HTTP is read. What an
//! unproven connection costs is bounded in number and time; what a proven one costs is bounded by
//! `limits`. A connection whose certificate is not believed any more is ended, not only refused
//! the next time. Nothing is decided here about what a caller may do with keys.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use raft_kv::client::Node;
use raft_kv::limits;
use raft_kv::net::{HandshakeFault, HttpsPeer, LiveTrust, UNKNOWN_ROOT};
use raft_kv::orchestration::session::Settings;
use raft_kv::raft::Leadership;
use raft_kv::types::Role;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::service::Routes;
use tower::ServiceExt;

use crate::etcd::auth::AuthService;
use crate::etcd::cluster::ClusterService;
use crate::etcd::election::ElectionService;
use crate::etcd::kv::KvService;
use crate::etcd::lease::LeaseService;
use crate::etcd::lock::LockService;
use crate::etcd::maintenance::MaintenanceService;
use crate::etcd::watch::WatchService;
use crate::etcd::{self, Certificate, Etcd, Via};
use crate::gateway;
use crate::http as pages;
use crate::metrics::Metrics;
use crate::orchestrator::keeper;
use crate::orchestrator::worker::{WorkerService, refused};

/// How long answers under way may take once the door closes, or the root behind a client's certificate
/// was given up.
const DRAIN: Duration = Duration::from_millis(500);
/// An open connection's certificate is looked at again after this, changes or not: clocks jump.
const RECHECK: Duration = Duration::from_secs(3600);
/// The pause after a failed accept: out of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A quiet HTTP/2 connection is asked for a sign of life after this.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// What is kept of one stream's unread data, in bytes.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// What is kept of one connection's unread data, in bytes.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// What is kept of one stream's unsent data, in bytes.
const SEND_BUFFER: usize = 128 * 1024;

/// An open door. Dropping it without [`close`](Self::close) cuts every connection.
#[derive(Debug)]
pub struct Door {
    addr: SocketAddr,
    stage: watch::Sender<Stage>,
    connections: Arc<Semaphore>,
    listening: JoinHandle<()>,
    duties: Duties,
}

/// What is done for as long as the door is open.
#[derive(Debug)]
struct Duties(Vec<AbortHandle>);

impl Drop for Duties {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Open,
    Draining,
    Closed,
}

/// The services as the gateway asks them.
fn services(
    etcd: &Etcd,
) -> gateway::Services<
    KvService,
    WatchService,
    LeaseService,
    ClusterService,
    MaintenanceService,
    AuthService,
    LockService,
    ElectionService,
> {
    gateway::Services {
        kv: Arc::new(KvService::new(etcd.clone())),
        watch: Arc::new(WatchService::new(etcd.clone())),
        lease: Arc::new(LeaseService::new(etcd.clone())),
        cluster: Arc::new(ClusterService::new(etcd.clone())),
        maintenance: Arc::new(MaintenanceService::new(etcd.clone())),
        auth: Arc::new(AuthService::new(etcd.clone())),
        lock: Arc::new(LockService::new(etcd.clone())),
        election: Arc::new(ElectionService::new(etcd.clone())),
    }
}

impl Door {
    /// Serves `node`'s clients on `listener`. Call it within a tokio runtime.
    ///
    /// # Errors
    /// The system's, if the socket can't be used.
    pub fn open(listener: std::net::TcpListener, node: &Node) -> io::Result<Self> {
        Self::open_with(listener, node, Settings::default())
    }

    /// The same with other bounds for sessions of workers.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(listener: std::net::TcpListener, node: &Node, workers: Settings) -> io::Result<Self> {
        let etcd = Etcd::new(node.handle(), node.cluster(), node.id()).with_leadership(node.leadership());
        Self::open_all(listener, etcd, node.trust(), workers)
    }

    /// The same for whom `trust` lets in.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_for(listener: std::net::TcpListener, etcd: Etcd, trust: LiveTrust) -> io::Result<Self> {
        Self::open_all(listener, etcd, trust, Settings::default())
    }

    fn open_all(
        listener: std::net::TcpListener,
        etcd: Etcd,
        trust: LiveTrust,
        workers: Settings,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let addr = listener.local_addr()?;
        let metrics = Arc::new(Metrics::new());
        if let Some(leadership) = etcd.own_handle().leadership() {
            tokio::spawn(count_leaders(metrics.clone(), leadership));
        }
        let json_api = gateway::router(&services(&etcd));
        let (stage, _) = watch::channel(Stage::Open);
        let connections = Arc::new(Semaphore::new(limits::MAX_DOOR_CONNECTIONS));
        let mut duties = Vec::new();
        if let Some(leadership) = etcd.own_handle().leadership() {
            let keeping = keeper::keep(etcd.own_handle().clone(), workers.clone(), leadership);
            duties.push(tokio::spawn(keeping).abort_handle());
        }
        let worker = WorkerService::new(etcd.own_handle().clone(), workers);
        duties.push(tokio::spawn(worker.clone().run()).abort_handle());
        let shared = Arc::new(Shared {
            workers: Routes::new(worker.server()).prepare().into_axum_router(),
            acceptor: TlsAcceptor::from(trust.https_config(&[b"h2", b"http/1.1"])),
            trust,
            http: http_builder(),
            grpc: etcd::routes(etcd.clone()).prepare().into_axum_router(),
            pages: pages::router(etcd, metrics.clone(), json_api),
            metrics,
            stage: stage.subscribe(),
        });
        let listening = tokio::spawn(accept(shared, listener, connections.clone()));
        Ok(Self { addr, stage, connections, listening, duties: Duties(duties) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Lets nobody in any more, tells who is connected to go elsewhere, gives answers under way
    /// a moment, and cuts what is left.
    pub async fn close(self) {
        self.listening.abort();
        self.duties.0.iter().for_each(AbortHandle::abort);
        self.stage.send_replace(Stage::Draining);
        let all = u32::try_from(limits::MAX_DOOR_CONNECTIONS).expect("a small number");
        // Permits return as connections end.
        let _ = tokio::time::timeout(DRAIN, self.connections.acquire_many(all)).await;
        self.stage.send_replace(Stage::Closed);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.listening.abort();
        self.stage.send_replace(Stage::Closed);
    }
}

struct Shared {
    trust: LiveTrust,
    acceptor: TlsAcceptor,
    http: auto::Builder<TokioExecutor>,
    grpc: axum::Router,
    workers: axum::Router,
    pages: axum::Router,
    metrics: Arc<Metrics>,
    stage: watch::Receiver<Stage>,
}

/// Counts until the member ends.
async fn count_leaders(metrics: Arc<Metrics>, mut leadership: watch::Receiver<Leadership>) {
    let mut last = None;
    loop {
        let leader = leadership.borrow_and_update().leader;
        if leader.is_some() && leader != last {
            metrics.leader_seen();
            last = leader;
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

fn http_builder() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::DOOR_HEADER_DEADLINE)
        .max_buf_size(limits::MAX_DOOR_HEADER_BYTES as usize)
        .keep_alive(true);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::MAX_DOOR_STREAMS)
        .max_header_list_size(limits::MAX_DOOR_HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .adaptive_window(false)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(limits::DOOR_HEADER_DEADLINE);
    http
}

/// Takes connections for as long as it is let.
async fn accept(shared: Arc<Shared>, listener: TcpListener, connections: Arc<Semaphore>) {
    let mut handshakes = Handshakes::default();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the etcd door can't take connections at the moment");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else {
            shared.metrics.refused("too_many_connections");
            continue;
        };
        if handshakes.make_room() {
            shared.metrics.refused("crowded_out");
        }
        handshakes.add(tokio::spawn(greet(shared.clone(), stream, from, permit)).abort_handle());
    }
}

/// The handshakes under way, oldest first. An honest one is over in milliseconds: where there are
/// too many, the oldest is one that stalls.
#[derive(Default)]
struct Handshakes(VecDeque<AbortHandle>);

impl Handshakes {
    /// Makes room for one more; whether one had to go for it.
    fn make_room(&mut self) -> bool {
        while self.0.front().is_some_and(AbortHandle::is_finished) {
            self.0.pop_front();
        }
        if self.0.len() < limits::MAX_DOOR_HANDSHAKES {
            return false;
        }
        self.0.retain(|handshake| !handshake.is_finished());
        if self.0.len() < limits::MAX_DOOR_HANDSHAKES {
            return false;
        }
        if let Some(oldest) = self.0.pop_front() {
            oldest.abort();
        }
        true
    }

    fn add(&mut self, handshake: AbortHandle) {
        self.0.push_back(handshake);
    }
}

/// One handshake; what comes of it is a task of its own.
async fn greet(shared: Arc<Shared>, stream: TcpStream, from: SocketAddr, permit: OwnedSemaphorePermit) {
    // Only latency is lost where it can't be set.
    let _ = stream.set_nodelay(true);
    // From here on, so that nothing goes by unseen while the handshake lasts.
    let changed = shared.trust.changed();
    let handshake = shared.acceptor.accept(stream);
    let shaken = match tokio::time::timeout(limits::DOOR_HANDSHAKE_DEADLINE, handshake).await {
        Ok(Ok(stream)) => match shared.trust.https_peer(stream.get_ref().1) {
            // Its chain is good; before it is known too, nothing is served.
            Ok(peer) => shared.trust.https_admitted(&peer).await.map(|()| (stream, peer)),
            Err(fault) => Err(fault),
        },
        Ok(Err(error)) => Err(HandshakeFault::of_error(&error)),
        Err(_) => {
            let why = format!("it was not done within {:?}", limits::DOOR_HANDSHAKE_DEADLINE);
            Err(HandshakeFault { reason: "deadline", why })
        }
    };
    match shaken {
        Ok((stream, peer)) => drop(tokio::spawn(serve(shared, stream, peer, changed, permit))),
        Err(fault) => {
            shared.metrics.refused(fault.reason);
            tracing::warn!(%from, reason = fault.reason, why = %fault, "refused a client's TLS handshake");
        }
    }
}

/// One connection, until its end. `changed` has seen what was believed before its handshake.
async fn serve(
    shared: Arc<Shared>,
    stream: TlsStream<TcpStream>,
    peer: HttpsPeer,
    mut changed: watch::Receiver<u64>,
    _permit: OwnedSemaphorePermit,
) {
    let _counted = shared.metrics.connected();
    let certificate = Certificate { name: name_of(&peer), role: peer.identity().role };
    let via = Via(peer.identity().node);
    let role = certificate.role;
    let (grpc, pages, metrics) = (shared.grpc.clone(), shared.pages.clone(), shared.metrics.clone());
    let workers = shared.workers.clone();
    let answer = move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(certificate.clone());
        request.extensions_mut().insert(via);
        let is_grpc = is_grpc(request.headers().get(header::CONTENT_TYPE));
        let place = place_of(role, is_grpc, request.uri().path());
        let router = match place {
            Place::Grpc | Place::Refused => grpc.clone(),
            Place::Workers => workers.clone(),
            Place::Pages => pages.clone(),
        };
        let metrics = metrics.clone();
        async move {
            if place == Place::Refused {
                return Ok(refusal(is_grpc));
            }
            let path = is_grpc.then(|| request.uri().path().to_owned());
            let answered: Result<Response<axum::body::Body>, Infallible> = router.oneshot(request).await;
            answered.map(|response| match path {
                Some(path) => metrics.counted(&path, response),
                None => response,
            })
        }
    };
    let mut stage = shared.stage.clone();
    let service = hyper::service::service_fn(answer);
    let mut connection = pin!(shared.http.serve_connection(TokioIo::new(stream), service));
    let mut cut_at = None;
    loop {
        let until_end = peer.ends().duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
        let recheck = tokio::time::sleep(until_end.clamp(Duration::from_secs(1), RECHECK));
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a client's connection broke");
                }
                return;
            }
            _ = stage.changed() => match *stage.borrow_and_update() {
                Stage::Open => {}
                Stage::Draining => connection.as_mut().graceful_shutdown(),
                Stage::Closed => return,
            },
            _ = changed.changed() => {}
            () = recheck => {}
            () = at(cut_at) => return,
        }
        let Err(fault) = shared.trust.still_admits(&peer, SystemTime::now()) else { continue };
        // A client that has renewed comes back at once: what it has under way may end here.
        let may_end = fault.reason == UNKNOWN_ROOT;
        if cut_at.is_none() {
            shared.metrics.cut(fault.reason);
            tracing::warn!(reason = fault.reason, why = %fault, "ended a client's connection");
        }
        if !may_end {
            return;
        }
        if cut_at.is_none() {
            connection.as_mut().graceful_shutdown();
            cut_at = Some(tokio::time::Instant::now() + DRAIN);
        }
    }
}

/// Where a request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Grpc,
    Workers,
    Pages,
    Refused,
}

/// A worker has one path, and nobody else has it: it is refused for all others alike, whether there is
/// something or not.
fn place_of(role: Role, is_grpc: bool, path: &str) -> Place {
    let for_workers = path.starts_with("/raftkv.Worker/");
    match role {
        Role::Worker if is_grpc && path == "/raftkv.Worker/Session" => Place::Workers,
        Role::Worker => Place::Refused,
        Role::Manager | Role::Client if for_workers => Place::Refused,
        Role::Manager | Role::Client if is_grpc => Place::Grpc,
        Role::Manager | Role::Client => Place::Pages,
    }
}

fn refusal(is_grpc: bool) -> Response<axum::body::Body> {
    if is_grpc {
        return refused().into_http();
    }
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = StatusCode::FORBIDDEN;
    response
}

/// Waits for that time, or for ever.
async fn at(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn is_grpc(content_type: Option<&HeaderValue>) -> bool {
    content_type.is_some_and(|found| found.as_bytes().starts_with(b"application/grpc"))
}

/// The user that a certificate stands for; a member is none.
fn name_of(peer: &HttpsPeer) -> String {
    match peer.identity().role {
        Role::Manager => String::new(),
        Role::Client | Role::Worker => raft_kv::pki::name_of(peer.leaf()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_choose_the_router() {
        for (given, expect) in [
            (Some("application/grpc"), true),
            (Some("application/grpc+proto"), true),
            (Some("application/json"), false),
            (Some(""), false),
            (None, false),
        ] {
            let value = given.map(HeaderValue::from_static);
            assert_eq!(is_grpc(value.as_ref()), expect, "{given:?}");
        }
    }

    #[test]
    fn a_worker_has_one_path_and_nobody_else_has_it() {
        let session = "/raftkv.Worker/Session";
        for (role, is_grpc, path, expect) in [
            (Role::Worker, true, session, Place::Workers),
            (Role::Worker, false, session, Place::Refused),
            (Role::Worker, true, "/raftkv.Worker/Other", Place::Refused),
            (Role::Worker, true, "/etcdserverpb.KV/Range", Place::Refused),
            (Role::Worker, true, "/grpc.health.v1.Health/Check", Place::Refused),
            (Role::Worker, false, "/v3/kv/range", Place::Refused),
            (Role::Worker, false, "/metrics", Place::Refused),
            (Role::Client, true, session, Place::Refused),
            (Role::Manager, true, session, Place::Refused),
            (Role::Manager, false, session, Place::Refused),
            (Role::Client, true, "/etcdserverpb.KV/Range", Place::Grpc),
            (Role::Client, false, "/v3/kv/range", Place::Pages),
        ] {
            assert_eq!(place_of(role, is_grpc, path), expect, "{role} {path}");
        }
    }

    #[tokio::test]
    async fn the_oldest_stalled_handshake_makes_room() {
        let mut all = Handshakes::default();
        let stalled = || tokio::spawn(std::future::pending::<()>());
        let oldest = stalled();
        assert!(!all.make_room());
        all.add(oldest.abort_handle());
        for _ in 1..limits::MAX_DOOR_HANDSHAKES {
            assert!(!all.make_room());
            all.add(stalled().abort_handle());
        }
        assert!(all.make_room());
        assert!(oldest.await.unwrap_err().is_cancelled());
        all.add(stalled().abort_handle());
        assert_eq!(all.0.len(), limits::MAX_DOOR_HANDSHAKES);
        all.0.iter().for_each(AbortHandle::abort);
    }
}
