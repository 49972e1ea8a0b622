//! The shell round a replica: three threads that carry values between the pure loop and the
//! world. `decide` (raft) never waits for a disk; `persist` writes and syncs the log; `apply`
//! feeds the state and publishes to watchers. Sockets live on tokio, outside.
//!
//! A failing disk or a bug in any of the three ends the node: nothing is answered after it.

mod decide;
mod feed;
mod persist;
mod publish;
mod snapshots;
mod watch_set;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::apply::{Applier, Report};
use super::ask::{Told, What};
use super::replica::{Bounds, Identity, Replica};
use super::wire::PeerFrame;
use crate::error::{Error, NotDone, StorageFailed};
use crate::limits;
use crate::machine::{self, Read, Store};
use crate::raft::{Leadership, PeerMessage, Status};
use crate::storage::files::FolderFiles;
use crate::storage::log::{Log, LogWriter, Stats};
use crate::storage::state::State;
use crate::types::{Member, NodeId, Older, Revision, Room, SnapshotMeta};

pub use publish::{Subscription, Watches};
pub use snapshots::Incoming;
pub use watch_set::{Next, WatchSet};

/// What the decide thread is sent.
enum ToDecide {
    Frame(NodeId, PeerFrame, usize),
    Ask(What, Instant, oneshot::Sender<Result<Told, Error>>),
    Durable(crate::storage::log::Durable),
    Applied(Report),
    Flushed(SnapshotMeta),
    Checkpoint(SnapshotMeta),
    SnapshotSent(NodeId, bool),
    Unreachable(NodeId),
    Status(oneshot::Sender<(Status, usize)>),
    Stop,
    Failed(Error),
}

/// What the world outside does for the loop. Called from the decide thread; must not block.
pub trait World: Send + Sync + 'static {
    /// Sends frames; what can't be queued is dropped and reported as unreachable.
    fn send(&self, frames: Vec<(NodeId, PeerFrame)>);
    /// Sends the checkpoint in `folder` with raft's message; calls [`Shell::snapshot_sent`] after.
    fn send_snapshot(&self, to: NodeId, message: PeerMessage, folder: PathBuf);
    /// The members changed.
    fn members(&self, members: &[Member]);
}

/// Where a shell keeps its files and who it is.
pub struct Parts {
    /// Its id and chance.
    pub identity: Identity,
    /// The opened log.
    pub log: Log<FolderFiles>,
    /// The log's writer.
    pub writer: LogWriter<FolderFiles>,
    /// The opened state.
    pub state: State,
    /// The member's folder; checkpoints and incoming snapshots go below it.
    pub folder: PathBuf,
    /// When the state is flushed and how much of the log is kept.
    pub bounds: Bounds,
}

/// A running loop.
pub struct Shell {
    to_decide: Sender<ToDecide>,
    inbox_bytes: Arc<AtomicUsize>,
    state: State,
    watches: Arc<Watches>,
    leadership: watch::Receiver<Leadership>,
    ended: watch::Receiver<Option<Error>>,
    log_stats: Arc<Mutex<Stats>>,
    collected: watch::Receiver<Revision>,
    auth: watch::Receiver<u64>,
    auth_counts: Arc<AtomicBool>,
    trust: watch::Receiver<u64>,
    room: Arc<Mutex<Room>>,
    older: Arc<OnceLock<Older>>,
    folder: PathBuf,
    incoming: Arc<Incoming>,
    checkpoints: snapshots::Checkpoints,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Shell {
    /// Starts the threads.
    pub fn start(parts: Parts, world: Arc<dyn World>) -> Result<Self, StorageFailed> {
        let Parts { identity, log, writer, state, folder, bounds } = parts;
        let incoming = Arc::new(Incoming::new(&folder)?);
        let checkpoints = snapshots::Checkpoints::new(&folder)?;
        let applier = Applier::open(state.clone(), identity.me, identity.boot)?;
        let start = applier.start()?;
        if let Some(members) = &start.members {
            world.members(members);
        }
        let watches = Arc::new(Watches::new(start.revision));
        let (auth_revision, auth_counts) = start.auth.unwrap_or_default();
        let (auth_sender, auth) = watch::channel(auth_revision);
        let auth_counts = Arc::new(AtomicBool::new(auth_counts));
        let (trust_sender, trust) = watch::channel(0);
        let room = Arc::new(Mutex::new(start.room));
        let replica = Replica::new(&identity, log, start)?.with_bounds(bounds);
        let (to_decide, decide_inbox) = channel();
        let (to_persist, persist_inbox) = channel();
        let (to_apply, apply_inbox) = channel();
        let (leadership_sender, leadership) = watch::channel(*replica.leadership());
        let (ended_sender, ended) = watch::channel(None);
        let (collected_sender, collected) = watch::channel(0);
        let older = Arc::new(OnceLock::new());
        let log_stats = Arc::new(Mutex::new(Stats::default()));
        let inbox_bytes = Arc::new(AtomicUsize::new(0));

        let persist = persist::Persist { writer, back: to_decide.clone(), stats: log_stats.clone() };
        let feed = feed::Feed {
            applier,
            state: state.clone(),
            watches: watches.clone(),
            checkpoints: checkpoints.clone(),
            incoming: incoming.clone(),
            back: to_decide.clone(),
            collected: collected_sender,
            auth: auth_sender,
            auth_counts: auth_counts.clone(),
            trust: trust_sender,
            room: room.clone(),
            rewrite: false,
            ended: ended_sender.clone(),
        };
        let decide = decide::Decide {
            replica,
            clock: Instant::now(),
            inbox: decide_inbox,
            inbox_bytes: inbox_bytes.clone(),
            to_persist,
            to_apply,
            world,
            checkpoints: checkpoints.clone(),
            incoming: incoming.clone(),
            leadership: leadership_sender,
            ended: ended_sender,
            older: older.clone(),
            callers: Default::default(),
            next_ticket: 1,
        };
        let threads = vec![
            spawn("raft-kv persist", move || persist.run(&persist_inbox)),
            spawn("raft-kv apply", move || feed.run(&apply_inbox)),
            spawn("raft-kv decide", move || decide.run()),
        ];
        Ok(Self {
            to_decide,
            inbox_bytes,
            state,
            watches,
            leadership,
            ended,
            log_stats,
            collected,
            auth,
            auth_counts,
            trust,
            room,
            older,
            folder,
            incoming,
            checkpoints,
            threads: Mutex::new(threads),
        })
    }

    /// Hands a request to the loop and waits for what it is told.
    pub async fn ask(&self, what: What, patience: Duration) -> Result<Told, Error> {
        let (answer, told) = oneshot::channel();
        let sent = self.to_decide.send(ToDecide::Ask(what, Instant::now() + patience, answer));
        if sent.is_err() {
            return Err(self.why_ended());
        }
        told.await.unwrap_or_else(|_| Err(self.why_ended()))
    }

    fn why_ended(&self) -> Error {
        self.ended.borrow().clone().unwrap_or(Error::NotDone(NotDone::ShuttingDown))
    }

    /// Reads this member's own state, as it is now.
    ///
    /// # Errors
    /// [`NotDone::NoState`] at a member that has just joined; [`Error::Stopped`] for a failed disk.
    pub fn read<R>(&self, read: impl FnOnce(&dyn Read) -> Result<R, StorageFailed>) -> Result<R, Error> {
        self.state
            .view(|view| if machine::read::holds_state(view)? { read(view).map(Some) } else { Ok(None) })
            .map_err(|failed| Error::Stopped(failed.to_string()))?
            .ok_or(Error::NotDone(NotDone::NoState))
    }

    /// The state's store.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Those who follow keys.
    pub fn watches(&self) -> &Arc<Watches> {
        &self.watches
    }

    /// Role, term and leader, as they change.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Why the loop ended, once it has.
    pub fn ended(&self) -> watch::Receiver<Option<Error>> {
        self.ended.clone()
    }

    /// Up to which revision old versions were physically removed.
    pub fn collected(&self) -> watch::Receiver<Revision> {
        self.collected.clone()
    }

    /// The revision of users and roles, each time that they changed.
    pub fn auth_changes(&self) -> watch::Receiver<u64> {
        self.auth.clone()
    }

    /// Counts up each time that what is believed changed: roots, nodes, tokens.
    pub fn trust_changes(&self) -> watch::Receiver<u64> {
        self.trust.clone()
    }

    /// Whether users and roles count, by all that this member has applied and reported: what spares
    /// a look at the state while they do not.
    pub fn auth_counts(&self) -> bool {
        self.auth_counts.load(Ordering::Acquire)
    }

    /// Whether there is room for what takes space, by all that this member has applied and reported:
    /// what spares a look at the state while there is plenty.
    pub fn room(&self) -> Room {
        *self.room.lock()
    }

    /// What shows that this member's directory is an older copy of itself, once the others have said so; the
    /// loop has ended then.
    pub fn older(&self) -> Option<StorageFailed> {
        let older = self.older.get()?;
        Some(StorageFailed::damaged(self.folder.display().to_string(), older.to_string()))
    }

    /// Syncs and bytes of the log so far.
    pub fn log_stats(&self) -> Stats {
        *self.log_stats.lock()
    }

    /// Where a snapshot may be received.
    pub fn incoming(&self) -> &Arc<Incoming> {
        &self.incoming
    }

    /// How many checkpoints were made to be sent since the start.
    pub fn checkpoints_made(&self) -> u64 {
        self.checkpoints.count()
    }

    /// Raft's view of itself, and how many callers wait.
    pub async fn status(&self) -> Result<(Status, usize), Error> {
        let (answer, status) = oneshot::channel();
        if self.to_decide.send(ToDecide::Status(answer)).is_err() {
            return Err(self.why_ended());
        }
        status.await.map_err(|_| self.why_ended())
    }

    /// A frame of a verified member. Waits while too much is queued already.
    pub async fn frame(&self, from: NodeId, frame: PeerFrame, bytes: usize) {
        while self.inbox_bytes.load(Ordering::Relaxed) > limits::MAX_INBOX_BYTES {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.inbox_bytes.fetch_add(bytes, Ordering::Relaxed);
        // A loop that has ended drops it.
        let _ = self.to_decide.send(ToDecide::Frame(from, frame, bytes));
    }

    /// A snapshot has arrived whole in `folder`, which came from [`Incoming::start`].
    pub fn snapshot_arrived(&self, from: NodeId, message: PeerMessage, folder: PathBuf) {
        let Some(meta) = message.snapshot_meta() else {
            self.incoming.broken(false);
            return;
        };
        self.incoming.whole(meta, folder);
        let _ = self.to_decide.send(ToDecide::Frame(from, PeerFrame::Raft(message), 0));
    }

    /// The connection to a member broke.
    pub fn unreachable(&self, id: NodeId) {
        let _ = self.to_decide.send(ToDecide::Unreachable(id));
    }

    /// A snapshot's transfer ended.
    pub fn snapshot_sent(&self, to: NodeId, ok: bool) {
        let _ = self.to_decide.send(ToDecide::SnapshotSent(to, ok));
    }

    /// The node must end: it was removed, or something outside the loop failed.
    pub fn fail(&self, error: Error) {
        let _ = self.to_decide.send(ToDecide::Failed(error));
    }

    /// Hands leadership over, answers who waits, and ends the threads; the state is flushed.
    pub async fn stop(&self) -> Result<(), Error> {
        let _ = self.to_decide.send(ToDecide::Stop);
        let threads = std::mem::take(&mut *self.threads.lock());
        tokio::task::spawn_blocking(move || {
            for thread in threads {
                thread.join().expect("a panic in the loop aborts the process");
            }
        })
        .await
        .expect("joining threads does not panic");
        match &*self.ended.borrow() {
            Some(error @ Error::Stopped(_)) => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

/// Starts a thread whose panic ends the process: a loop with a bug must not go on half alive.
fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    struct AbortOnPanic;
    impl Drop for AbortOnPanic {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!(
                    "raft-kv: a bug was found in the node's loop; the process stops (see the panic above)"
                );
                std::process::abort();
            }
        }
    }
    let body = move || {
        let _guard = AbortOnPanic;
        run();
    };
    std::thread::Builder::new().name(name.into()).spawn(body).expect("the system can start a thread")
}

/// All that has arrived: waits for the first until `until`, then takes what is there, at most
/// `most`. `None` when every sender is gone.
fn drain<T>(inbox: &Receiver<T>, until: Instant, most: usize) -> Option<Vec<T>> {
    let mut all = Vec::new();
    match inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
        Ok(first) => all.push(first),
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => return Some(all),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return None,
    }
    while all.len() < most {
        match inbox.try_recv() {
            Ok(next) => all.push(next),
            Err(_) => break,
        }
    }
    Some(all)
}
