//! One UDP socket, on which a node listens and from which it dials.
//!
//! Whoever knocks is unknown until [`VerifiedPeer::accept`] says otherwise: until then a
//! connection may open no stream, costs a bounded amount of memory, and counts against a cap and
//! a deadline.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use quinn::{IdleTimeout, TransportConfig, VarInt};
use tokio::sync::{Semaphore, mpsc, watch};

use super::bulk::BulkConn;
use super::live::LiveTrust;
use super::peers::PeerConn;
use super::request::{ClientConn, JoinConn};
use super::tls::{self, VerifiedPeer};
use crate::codec::Wire;
use crate::error::{Error, Refusal};
use crate::limits;
use crate::pki::{Identity, Purpose};

/// Application close code: nothing is wrong, the connection is not needed any more.
const CLOSE_DONE: u32 = 0;
/// Application close code: the reason is an encoded [`Refusal`].
pub(super) const CLOSE_REFUSED: u32 = 1;
/// What a listener sends on the first stream once a dialler is let in.
pub(super) const ADMITTED: u8 = 1;

/// A verified connection that somebody opened to this node.
#[derive(Debug)]
pub enum Accepted {
    /// Raft frames of a member: give it to [`PeerNet::receive`](super::PeerNet::receive).
    Peer(PeerConn),
    /// A snapshot of a member.
    Bulk(BulkConn),
    /// Requests of a client or of a member that forwards them.
    Client(ClientConn),
    /// A request for a certificate, of somebody unknown.
    Join(JoinConn),
}

/// An open connection, as [`Endpoint::connections`] lists it.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Who is at the other end; `None` for a joiner.
    pub peer: Option<VerifiedPeer>,
    /// What it is for.
    pub purpose: Purpose,
    /// Whether this node opened it.
    pub dialled: bool,
    /// The other end's address, for this node's log alone.
    pub remote: SocketAddr,
}

/// A registered connection. It is closed when the last user lets go of it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) connection: quinn::Connection,
    pub(super) info: ConnectionInfo,
    /// The certificate that this side showed; empty where it is not known or there was none.
    pub(super) leaf: Vec<u8>,
    registry: Weak<Mutex<Registry>>,
    number: u64,
}

impl Held {
    pub(super) fn identity(&self) -> Option<Identity> {
        self.info.peer.as_ref().map(VerifiedPeer::identity)
    }

    /// Ends it and says why to the other end.
    pub(super) fn refuse(&self, refusal: &Refusal) {
        refuse(&self.connection, refusal);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.connection.close(VarInt::from_u32(CLOSE_DONE), b"");
        if let Some(registry) = self.registry.upgrade() {
            registry.lock().open.remove(&self.number);
        }
    }
}

fn refuse(connection: &quinn::Connection, refusal: &Refusal) {
    connection.close(VarInt::from_u32(CLOSE_REFUSED), &refusal.to_bytes());
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    open: BTreeMap<u64, Weak<Held>>,
    next: u64,
}

/// Registers an open connection, so that it can be listed and closed.
pub(super) fn hold(
    registry: &Arc<Mutex<Registry>>,
    connection: quinn::Connection,
    peer: Option<VerifiedPeer>,
    purpose: Purpose,
    dialled: bool,
    leaf: Vec<u8>,
) -> Arc<Held> {
    let remote = connection.remote_address();
    let info = ConnectionInfo { peer, purpose, dialled, remote };
    let mut all = registry.lock();
    let number = all.next;
    all.next += 1;
    let held = Arc::new(Held { connection, info, leaf, registry: Arc::downgrade(registry), number });
    all.open.insert(number, Arc::downgrade(&held));
    held
}

struct Inner {
    quinn: quinn::Endpoint,
    live: LiveTrust,
    registry: Arc<Mutex<Registry>>,
    accepted: tokio::sync::Mutex<mpsc::Receiver<Accepted>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.quinn.close(VarInt::from_u32(CLOSE_DONE), b"");
    }
}

/// A node's one socket. Clones are the same endpoint; it closes with the last.
#[derive(Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

/// An endpoint that closes when nobody else needs it.
#[derive(Clone)]
pub struct WeakEndpoint(Weak<Inner>);

impl WeakEndpoint {
    /// The endpoint, while it is open.
    pub fn upgrade(&self) -> Option<Endpoint> {
        self.0.upgrade().map(|inner| Endpoint { inner })
    }
}

impl Endpoint {
    /// Listens on `listen` (UDP; port 0 takes a free one) with what `live` holds, now and later.
    /// Call it within a tokio runtime.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if the address is in use or not of this machine.
    pub fn bind(listen: SocketAddr, live: LiveTrust) -> Result<Self, Error> {
        let mut server = tls::server_config(live.clone());
        server.transport_config(Arc::new(listening()));
        server.max_incoming(limits::MAX_HANDSHAKES);
        server.incoming_buffer_size(u64::from(limits::UNVERIFIED_WINDOW_BYTES));
        server.incoming_buffer_size_total(u64::from(limits::UNVERIFIED_WINDOW_BYTES) * 64);
        let runtime = Arc::new(quinn::TokioRuntime);
        let open = |socket| quinn::Endpoint::new(after_restart(&live), Some(server), socket, runtime);
        let quinn = std::net::UdpSocket::bind(listen).and_then(open).map_err(|error| {
            let why = match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    "it is in use: another process listens there; stop that one, or choose another port"
                        .into()
                }
                std::io::ErrorKind::AddrNotAvailable => {
                    "this machine does not have that address; choose one of its own, or 0.0.0.0 for all"
                        .into()
                }
                _ => error.to_string(),
            };
            Refusal::invalid(format!("listen address {listen}"), why)
        })?;
        let (sender, accepted) = mpsc::channel(limits::ACCEPT_QUEUE);
        let registry = Arc::new(Mutex::new(Registry::default()));
        let listener = Listener {
            live: live.clone(),
            registry: registry.clone(),
            accepted: sender,
            handshakes: Arc::new(Semaphore::new(limits::MAX_HANDSHAKES)),
        };
        tokio::spawn(listen_on(quinn.clone(), Arc::new(listener)));
        let accepted = tokio::sync::Mutex::new(accepted);
        Ok(Self { inner: Arc::new(Inner { quinn, live, registry, accepted }) })
    }

    /// The same, without keeping it open.
    pub fn downgrade(&self) -> WeakEndpoint {
        WeakEndpoint(Arc::downgrade(&self.inner))
    }

    /// The next connection that was let in; `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<Accepted> {
        self.inner.accepted.lock().await.recv().await
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.quinn.local_addr().expect("a bound socket has an address")
    }

    /// What it proves itself with and believes.
    pub fn live(&self) -> &LiveTrust {
        &self.inner.live
    }

    /// Every open connection, in no order that means anything.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.held().iter().map(|held| held.info.clone()).collect()
    }

    /// Ends each connection whose other end is not believed any more, or not let in, but those for
    /// which `spare` is true. Returns how many.
    pub fn recheck(&self, spare: impl Fn(&ConnectionInfo) -> bool) -> usize {
        let mut ended = 0;
        for held in self.held() {
            let Some(peer) = held.info.peer.as_ref().filter(|_| !spare(&held.info)) else { continue };
            if let Err(refusal) = peer.still_believed(&self.inner.live, held.info.dialled) {
                held.refuse(&refusal);
                ended += 1;
            }
        }
        ended
    }

    /// Notes again on which roots the open connections rest.
    pub fn note_seen(&self) {
        self.held().iter().filter_map(|held| held.info.peer.as_ref()).for_each(|peer| {
            peer.note_seen(&self.inner.live);
        });
    }

    /// Ends each connection for which `which` is true, telling the other end `why`. Returns how
    /// many.
    pub fn close_where(&self, which: impl Fn(&ConnectionInfo) -> bool, why: &Refusal) -> usize {
        let chosen: Vec<_> = self.held().into_iter().filter(|held| which(&held.info)).collect();
        chosen.iter().for_each(|held| held.refuse(why));
        chosen.len()
    }

    fn held(&self) -> Vec<Arc<Held>> {
        self.inner.registry.lock().open.values().filter_map(Weak::upgrade).collect()
    }

    /// Ends every connection and the listener, and waits (at most four seconds; where a handshake was
    /// under way it takes three) until the other ends
    /// have been told.
    pub async fn close(&self) {
        self.inner.quinn.close(VarInt::from_u32(CLOSE_DONE), b"");
        let _ = tokio::time::timeout(Duration::from_secs(4), self.inner.quinn.wait_idle()).await;
    }

    pub(super) fn quinn(&self) -> &quinn::Endpoint {
        &self.inner.quinn
    }

    pub(super) fn registry(&self) -> &Arc<Mutex<Registry>> {
        &self.inner.registry
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("live", &self.inner.live).finish_non_exhaustive()
    }
}

/// What a restarted node needs to tell others that their old connections to it are gone: without
/// it they would wait for the idle timeout. Derived from the node's own key, so that nobody else
/// can end its connections.
fn after_restart(live: &LiveTrust) -> quinn::EndpointConfig {
    use aws_lc_rs::hmac;
    let own = hmac::Key::new(hmac::HMAC_SHA256, &live.credentials().key);
    let reset = hmac::sign(&own, b"raft-kv stateless reset");
    let reset = hmac::Key::new(hmac::HMAC_SHA256, reset.as_ref());
    let mut config = quinn::EndpointConfig::new(Arc::new(reset));
    // The default generator knows its own ids by a key drawn at each start, and would not answer
    // for those of the run before.
    config.cid_generator(|| Box::new(RandomIds));
    config
}

struct RandomIds;

impl quinn::ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        quinn::ConnectionId::new(&rand::random::<[u8; 8]>())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(limits::IDLE_TIMEOUT).expect("a few seconds fit");
    transport
        .max_idle_timeout(Some(idle))
        .stream_receive_window(VarInt::from_u32(limits::STREAM_WINDOW_BYTES))
        .send_window(u64::from(limits::VERIFIED_WINDOW_BYTES))
        .datagram_receive_buffer_size(None)
        .max_concurrent_bidi_streams(VarInt::from_u32(0));
    transport
}

/// A listener's side: nothing may be opened before the other end is verified.
fn listening() -> TransportConfig {
    let mut transport = transport();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(limits::UNVERIFIED_WINDOW_BYTES));
    transport
}

/// A dialler's side: the one stream on which the listener says that it was let in.
pub(super) fn dialling() -> TransportConfig {
    let mut transport = transport();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .receive_window(VarInt::from_u32(limits::VERIFIED_WINDOW_BYTES))
        .keep_alive_interval(Some(limits::KEEP_ALIVE));
    transport
}

struct Listener {
    live: LiveTrust,
    registry: Arc<Mutex<Registry>>,
    accepted: mpsc::Sender<Accepted>,
    handshakes: Arc<Semaphore>,
}

async fn listen_on(quinn: quinn::Endpoint, listener: Arc<Listener>) {
    while let Some(incoming) = quinn.accept().await {
        let Ok(permit) = listener.handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        if quinn.open_connections() >= limits::MAX_CONNECTIONS {
            incoming.refuse();
            continue;
        }
        // When it gets busy an address must prove that it is one before it costs a handshake.
        let busy = listener.handshakes.available_permits() < limits::MAX_HANDSHAKES / 2;
        if busy && incoming.may_retry() && !incoming.remote_address_validated() {
            let _ = incoming.retry();
            continue;
        }
        let Ok(connecting) = incoming.accept() else { continue };
        let listener = listener.clone();
        // From here on, so that nothing goes by unseen while the handshake lasts.
        let changed = listener.live.changed();
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(limits::HANDSHAKE_DEADLINE, connecting).await;
            if let Ok(Ok(connection)) = handshake {
                listener.admit(connection, changed).await;
            }
            drop(permit);
        });
    }
}

impl Listener {
    /// `changed` has seen what was believed before the handshake.
    async fn admit(&self, connection: quinn::Connection, changed: watch::Receiver<u64>) {
        let (purpose, peer) = match VerifiedPeer::accept(&connection, &self.live) {
            Ok(verified) => verified,
            Err(refusal) => {
                tracing::debug!(remote = %connection.remote_address(), %refusal, "a connection was refused");
                return refuse(&connection, &refusal);
            }
        };
        let held = hold(&self.registry, connection, peer, purpose, false, Vec::new());
        // Now that it can be found and closed: it may have been refused meanwhile.
        if let Some(peer) = &held.info.peer {
            let admitted = self.live.wait_admitted(&peer.identity()).await;
            // The handshake has verified the chain: that is done anew only if something else is believed.
            let again = || match changed.has_changed() {
                Ok(false) => self.live.admitted(&peer.identity()).map(drop),
                _ => peer.still_believed(&self.live, false),
            };
            if let Err(refusal) = admitted.and_then(|()| again()) {
                tracing::debug!(remote = %held.info.remote, %refusal, "a connection was refused");
                return held.refuse(&refusal);
            }
            peer.note_seen(&self.live);
        }
        open_limits(&held.connection, purpose);
        let say = async {
            let mut stream = held.connection.open_uni().await.ok()?;
            stream.write_all(&[ADMITTED]).await.ok()?;
            stream.finish().ok()
        };
        if !matches!(tokio::time::timeout(limits::HANDSHAKE_DEADLINE, say).await, Ok(Some(()))) {
            return;
        }
        let accepted = match purpose {
            Purpose::Peer => Accepted::Peer(PeerConn::new(held)),
            Purpose::Bulk => Accepted::Bulk(BulkConn::new(held)),
            Purpose::Client => Accepted::Client(ClientConn::new(held)),
            Purpose::Join => Accepted::Join(JoinConn::new(held)),
        };
        // Where the node does not keep up, the handshake's permit is held and the cap is felt.
        let _ = self.accepted.send(accepted).await;
    }
}

fn open_limits(connection: &quinn::Connection, purpose: Purpose) {
    let (uni, bi, window) = match purpose {
        Purpose::Peer => (2, 0, limits::VERIFIED_WINDOW_BYTES),
        Purpose::Bulk => (0, 1, limits::VERIFIED_WINDOW_BYTES),
        Purpose::Client => (0, limits::MAX_STREAMS_PER_CONNECTION, limits::VERIFIED_WINDOW_BYTES),
        Purpose::Join => (0, 1, limits::UNVERIFIED_WINDOW_BYTES),
    };
    connection.set_receive_window(VarInt::from_u32(window));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(uni));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(bi));
}
