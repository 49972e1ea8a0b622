//! Raft frames between members: to each peer one dialled connection, from each peer one accepted.
//!
//! Whom a frame is from is what the certificate of its connection says, never what the frame
//! says. Sending never waits; what can't be sent is dropped and reported, and raft sends anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::endpoint::{Endpoint, Held};
use super::frame::{FrameError, FrameReader, write_frames};
use super::outbox::Outbox;
pub use super::outbox::Priority;
use crate::error::{Error, Refusal};
use crate::limits::{MAX_DIAL_PAUSE, MAX_FRAME_BYTES, MIN_DIAL_PAUSE};
use crate::pki::{Identity, Purpose};
use crate::types::NodeId;

/// How long what is being written may take when a connection is made anew.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(1);
/// How long a peer takes to read what it has.
const READ_OUT: Duration = Duration::from_millis(20);
/// Members that got new certificates at one moment do not dial in step.
const MAX_RENEWAL_JITTER: Duration = Duration::from_millis(100);
/// Members may turn each other away for less than this while one hears of the other's new certificate.
const TURNED_AWAY: Duration = Duration::from_secs(3);
/// How often it is said that a peer turns this member away.
const SAY_AGAIN: Duration = Duration::from_secs(600);

/// What a node learns from its peers' connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerEvent {
    /// A frame arrived. `from` is the verified certificate's id, and is a manager of our cluster;
    /// whether it is a member is for raft's vetting to say.
    Frame {
        /// Whose certificate the connection has.
        from: NodeId,
        /// The frame, at most [`MAX_FRAME_BYTES`] long.
        frame: Bytes,
    },
    /// Frames to this peer go out from now on.
    Connected(NodeId),
    /// The connection to this peer broke, or was closed by it.
    Disconnected(NodeId),
    /// Frames to this peer were dropped.
    Unreachable(NodeId),
}

/// A member's connection to us, verified.
#[derive(Debug)]
pub struct PeerConn(Arc<Held>);

impl PeerConn {
    pub(super) fn new(held: Arc<Held>) -> Self {
        Self(held)
    }

    /// Whose it is, from the verified certificate.
    pub fn identity(&self) -> Identity {
        self.0.identity().expect("every purpose but joining is verified")
    }

    /// Ends it and says why to the other end.
    pub fn refuse(&self, why: &Refusal) {
        self.0.refuse(why);
    }
}

struct Link {
    addr: String,
    outbox: Arc<Outbox>,
    /// The peer showed signs of life: dial now.
    awake: Arc<Notify>,
    task: JoinHandle<()>,
}

/// Each peer's newest connection to us; older ones are not listened to any more.
#[derive(Default)]
struct Epochs {
    newest: Mutex<BTreeMap<NodeId, (u64, std::sync::Weak<Held>)>>,
}

#[derive(Default)]
struct Reports {
    unreachable: Mutex<BTreeSet<NodeId>>,
    filled: Notify,
}

impl Reports {
    fn unreachable(&self, node: NodeId) {
        self.unreachable.lock().insert(node);
        self.filled.notify_one();
    }
}

struct Inner {
    endpoint: Endpoint,
    events: mpsc::Sender<PeerEvent>,
    links: Mutex<BTreeMap<NodeId, Link>>,
    reports: Arc<Reports>,
    reporter: JoinHandle<()>,
    epochs: Arc<Epochs>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reporter.abort();
        self.links.lock().values().for_each(|link| link.task.abort());
    }
}

/// The connections to all peers. Clones are the same; they close with the last.
#[derive(Clone)]
pub struct PeerNet {
    inner: Arc<Inner>,
}

impl PeerNet {
    /// Starts without peers, on `endpoint`. What happens goes to `events`: its capacity bounds how
    /// many frames wait for the node, and a full one slows the senders down. Call it within a
    /// tokio runtime.
    pub fn new(endpoint: Endpoint, events: mpsc::Sender<PeerEvent>) -> Self {
        let reports = Arc::new(Reports::default());
        let reporter = tokio::spawn(report(reports.clone(), events.clone()));
        let links = Mutex::default();
        let inner = Inner { endpoint, events, links, reports, reporter, epochs: Arc::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Keeps connections to exactly these peers (id and `host:port`) from now on. A peer that is
    /// left out, or whose address changed, is disconnected without an event; what waited for it
    /// is dropped. Call it within a tokio runtime.
    pub fn set_peers(&self, peers: Vec<(NodeId, String)>) {
        let own = self.inner.endpoint.live().identity().node;
        let wanted: BTreeMap<NodeId, String> = peers.into_iter().filter(|(node, _)| *node != own).collect();
        let mut links = self.inner.links.lock();
        links.retain(|node, link| {
            let keep = wanted.get(node) == Some(&link.addr);
            if !keep {
                link.task.abort();
            }
            keep
        });
        for (node, addr) in wanted {
            links.entry(node).or_insert_with(|| self.link(node, addr));
        }
    }

    fn link(&self, node: NodeId, addr: String) -> Link {
        let (outbox, awake) = (Arc::new(Outbox::default()), Arc::new(Notify::new()));
        let task = tokio::spawn(keep_link(Outgoing {
            node,
            addr: addr.clone(),
            endpoint: self.inner.endpoint.clone(),
            events: self.inner.events.clone(),
            reports: self.inner.reports.clone(),
            outbox: outbox.clone(),
            awake: awake.clone(),
        }));
        Link { addr, outbox, awake, task }
    }

    /// Sends `frames` to `to`, in order within each priority, as soon as it can. Never waits: if
    /// there is no connection or no room, the rest is dropped and [`PeerEvent::Unreachable`]
    /// follows.
    ///
    /// # Panics
    /// If a frame is longer than [`MAX_FRAME_BYTES`].
    pub fn send(&self, to: NodeId, frames: Vec<(Priority, Bytes)>) {
        assert!(frames.iter().all(|(_, frame)| frame.len() <= MAX_FRAME_BYTES), "a frame too long");
        let sent = self.inner.links.lock().get(&to).is_some_and(|link| link.outbox.push(frames));
        if !sent {
            self.inner.reports.unreachable(to);
        }
    }

    /// Reads the frames of a peer's connection until it ends. An older connection of the same peer
    /// is closed, and no frame of it is delivered any more. Call it within a tokio runtime.
    pub fn receive(&self, connection: PeerConn) {
        let from = connection.identity().node;
        let held = connection.0;
        // It lives: no need to wait out the pause before dialling it.
        if let Some(link) = self.inner.links.lock().get(&from) {
            link.awake.notify_one();
        }
        let epoch = self.inner.epochs.begin(from, &held);
        let incoming = Incoming {
            from,
            epoch,
            held,
            events: self.inner.events.clone(),
            epochs: self.inner.epochs.clone(),
        };
        tokio::spawn(incoming.run());
    }
}

impl std::fmt::Debug for PeerNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerNet").field("endpoint", &self.inner.endpoint).finish_non_exhaustive()
    }
}

/// Reports wait here when the node does not keep up; each peer at most once.
async fn report(reports: Arc<Reports>, events: mpsc::Sender<PeerEvent>) {
    loop {
        let next = reports.unreachable.lock().pop_first();
        match next {
            Some(node) => {
                if events.send(PeerEvent::Unreachable(node)).await.is_err() {
                    return;
                }
            }
            None => reports.filled.notified().await,
        }
    }
}

struct Outgoing {
    node: NodeId,
    addr: String,
    endpoint: Endpoint,
    events: mpsc::Sender<PeerEvent>,
    reports: Arc<Reports>,
    outbox: Arc<Outbox>,
    awake: Arc<Notify>,
}

/// Says, once in a while, that a peer has turned this member away for longer than a change of
/// certificates explains: it may have slept while the root was replaced, and then nothing else tells.
#[derive(Default)]
struct TurnedAway {
    since: Option<Instant>,
    said: Option<Instant>,
}

impl TurnedAway {
    fn note(&mut self, peer: NodeId, error: &Error) {
        if !matches!(error, Error::Refused(Refusal::BadCertificate { .. })) {
            self.since = None;
            return;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= TURNED_AWAY && self.said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
            self.said = Some(Instant::now());
            tracing::warn!(%peer, %error, "this member and another do not accept each other");
        }
    }
}

async fn keep_link(link: Outgoing) {
    let mut pause = MIN_DIAL_PAUSE;
    let mut turned_away = TurnedAway::default();
    loop {
        let since = Instant::now();
        let mut connected = false;
        loop {
            match link.endpoint.dial(Purpose::Peer, &link.addr, Some(link.node)).await {
                Ok(held) => {
                    turned_away = TurnedAway::default();
                    link.outbox.open();
                    if !connected && link.events.send(PeerEvent::Connected(link.node)).await.is_err() {
                        return;
                    }
                    connected = true;
                    let Some(why) = link.serve(&held).await else {
                        tracing::debug!(peer = %link.node, "dialled anew: one side has another certificate");
                        continue;
                    };
                    tracing::debug!(peer = %link.node, %why, "the connection to a peer ended");
                }
                Err(error) => {
                    tracing::debug!(peer = %link.node, %error, "a peer can't be reached");
                    turned_away.note(link.node, &error);
                }
            }
            break;
        }
        if connected {
            if link.outbox.shut() {
                link.reports.unreachable(link.node);
            }
            if link.events.send(PeerEvent::Disconnected(link.node)).await.is_err() {
                return;
            }
            if since.elapsed() > MAX_DIAL_PAUSE {
                pause = MIN_DIAL_PAUSE;
            }
        }
        // Members that lost each other at one moment shall not dial in step.
        let jitter = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        let _ = tokio::time::timeout(jitter, link.awake.notified()).await;
        pause = (pause * 2).min(MAX_DIAL_PAUSE);
    }
}

impl Outgoing {
    /// Writes both lanes until the connection ends, and returns why it did; `None` where one side's
    /// certificate is another one now: nothing that was taken from the outbox is lost then.
    async fn serve(&self, held: &Held) -> Option<String> {
        let renewed = Renewed::default();
        let lanes = async {
            tokio::join!(
                self.lane(held, Priority::Urgent, &renewed),
                self.lane(held, Priority::Append, &renewed)
            )
        };
        tokio::pin!(lanes);
        let mut ended = tokio::select! {
            (urgent, append) = &mut lanes => return urgent.or(append),
            why = held.connection.closed() => Some(why.to_string()),
            () = self.renewal(held) => None,
        };
        if ended.is_none() {
            // What is being written goes out; what waits, over the next connection.
            renewed.tell();
            let written = tokio::time::timeout(RENEWAL_PATIENCE, lanes).await;
            ended = written.ok().and_then(|(urgent, append)| urgent.or(append));
        }
        ended
    }

    /// Resolves when this connection should be made anew: it rests on a certificate that was replaced
    /// here, or on one of the peer's that is not what it would show now.
    async fn renewal(&self, held: &Held) {
        let mut changes = self.endpoint.live().changed();
        let leaf = held.leaf.clone();
        let live = self.endpoint.live();
        let believed = || held.info.peer.as_ref().is_none_or(|peer| peer.still_believed(live, true).is_ok());
        // The sender lives as long as the endpoint does.
        let _ = changes.wait_for(|_| live.leaf() != leaf || !believed()).await;
        if !believed() {
            return;
        }
        // Not all members shall dial in step.
        let jitter = rand::rng().random_range(0..MAX_RENEWAL_JITTER.as_millis() as u64);
        tokio::time::sleep(Duration::from_millis(jitter)).await;
    }

    async fn lane(&self, held: &Held, priority: Priority, renewed: &Renewed) -> Option<String> {
        let mut stream = match held.connection.open_uni().await {
            Ok(stream) => stream,
            Err(error) => return Some(error.to_string()),
        };
        let _ = stream.set_priority(if priority == Priority::Urgent { 1 } else { 0 });
        loop {
            let frames = tokio::select! {
                biased;
                () = renewed.told() => break,
                frames = self.outbox.take(priority) => frames,
            };
            if let Err(error) = write_frames(&mut stream, frames).await {
                self.reports.unreachable(self.node);
                return Some(error.to_string());
            }
        }
        // The peer has it all then; it is given the time to read it before a newer connection takes over.
        let _ = stream.finish();
        let _ = stream.stopped().await;
        tokio::time::sleep(READ_OUT).await;
        None
    }
}

/// Tells both lanes of a connection to end.
#[derive(Default)]
struct Renewed(tokio::sync::watch::Sender<bool>);

impl Renewed {
    fn tell(&self) {
        self.0.send_replace(true);
    }

    async fn told(&self) {
        // The sender is `self`.
        let _ = self.0.subscribe().wait_for(|told| *told).await;
    }
}

impl Epochs {
    fn begin(&self, from: NodeId, held: &Arc<Held>) -> u64 {
        let mut newest = self.newest.lock();
        let epoch = newest.get(&from).map_or(0, |(epoch, _)| epoch + 1);
        let before = newest.insert(from, (epoch, Arc::downgrade(held)));
        drop(newest);
        if let Some(before) = before.and_then(|(_, before)| before.upgrade())
            && !crate::planted!(DeliverStaleFrames)
        {
            before.connection.close(0u32.into(), b"a newer connection took over");
        }
        epoch
    }
}

struct Incoming {
    from: NodeId,
    epoch: u64,
    held: Arc<Held>,
    events: mpsc::Sender<PeerEvent>,
    epochs: Arc<Epochs>,
}

impl Incoming {
    async fn run(self) {
        let this = Arc::new(self);
        // At most as many at once as the connection's stream limit allows.
        while let Ok(stream) = this.held.connection.accept_uni().await {
            let this = this.clone();
            tokio::spawn(async move { this.read(FrameReader::new(stream, MAX_FRAME_BYTES)).await });
        }
    }

    async fn read(&self, mut frames: FrameReader) {
        loop {
            match frames.next().await {
                Ok(Some(frame)) => {
                    if !self.deliver(frame).await {
                        return;
                    }
                }
                Ok(None) | Err(FrameError::Lost(_)) => return,
                Err(FrameError::Cut) => {
                    return self.held.refuse(&Refusal::Malformed { what: "a frame is cut short".into() });
                }
                Err(FrameError::TooLarge { len, max }) => {
                    let why = format!("it has {len} bytes, the limit is {max}");
                    return self.held.refuse(&Refusal::invalid("frame", why));
                }
            }
        }
    }

    /// Hands one frame to the node; whether to go on.
    async fn deliver(&self, frame: Bytes) -> bool {
        // Room first: between the look at the epoch and the delivery nothing may wait.
        let Ok(room) = self.events.reserve().await else { return false };
        let newest = self.epochs.newest.lock();
        let stale = newest.get(&self.from).is_none_or(|(newest, _)| *newest != self.epoch);
        if stale && !crate::planted!(DeliverStaleFrames) {
            return false;
        }
        let mut from = self.from;
        if crate::planted!(TrustFrameSender)
            && let Some(claim) = frame.first_chunk::<8>()
        {
            from = NodeId(u64::from_le_bytes(*claim));
        }
        room.send(PeerEvent::Frame { from, frame });
        true
    }
}
