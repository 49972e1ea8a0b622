//! One machine and the member that runs on it: the real replica, log writer, state machine and
//! watch hub, over a modelled disk and a store that forgets what was not flushed.
//!
//! What the product does on three threads are separate events here, so that any order of them
//! that threads can show comes up. Nothing in this file decides anything that the product's own
//! code decides.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::afterlife::First;
use super::disk::SimDisk;
use super::image::Later;
use super::rot::{Rot, SimStore};
use super::scheduler::stream;
use super::trust::Papers;
use crate::codec::Wire;
use crate::error::StorageFailed;
use crate::limits;
use crate::machine::{Genesis, Machine, MemoryStore, Proposal};
use crate::node::apply::{Applier, Under, Work};
use crate::node::ask::{Ask, Ticket};
use crate::node::replica::{Bounds, Identity, Input, Replica};
use crate::node::wire::PeerFrame;
use crate::raft::LogView;
use crate::storage::log::{self, Durable, Log, LogWrite, LogWriter, Opened};
use crate::types::{
    ClusterId, Committed, ConfState, HardState, Index, NodeId, Older, Payload, SnapshotMeta, Term,
};
use crate::watch::{Hub, HubOptions};

/// How fast a machine is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Speed {
    /// The longest usual sync.
    pub sync: Duration,
    /// The longest usual batch of the state machine.
    pub apply: Duration,
    /// Seconds that its clock shows in a second.
    pub clock: f64,
}

impl Default for Speed {
    fn default() -> Self {
        Self { sync: Duration::from_millis(2), apply: Duration::from_micros(500), clock: 1.0 }
    }
}

/// Why a process ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It was killed, or the power went.
    Crashed,
    /// It was asked to end and has handed over.
    Clean,
    /// Its disk failed.
    Storage(StorageFailed),
    /// It found at its start that its log had lost something it had promised.
    Behind,
    /// The others found that its disk is an older copy of itself.
    Older(Older),
    /// The others turned it away: it is no member any more.
    Removed,
}

/// What waits for the state machine.
pub(super) enum Feed {
    Work(Work),
    Checkpoint,
    Flush,
}

/// A snapshot that arrives: at most one at a time.
#[derive(Default)]
pub(super) struct Incoming {
    pub(super) whole: Option<(SnapshotMeta, SimStore)>,
    pub(super) accepted: Option<(SnapshotMeta, SimStore)>,
}

/// One run of the product's process.
pub(super) struct Process {
    pub(super) life: u64,
    pub(super) born: Duration,
    pub(super) replica: Replica<Log<SimDisk>>,
    pub(super) writer: LogWriter<SimDisk>,
    pub(super) applier: Applier<SimStore>,
    pub(super) hub: Hub,
    pub(super) inputs: Vec<Input<Durable>>,
    pub(super) frames: Vec<(NodeId, PeerFrame)>,
    pub(super) asks: Vec<Ask>,
    pub(super) ticks: u32,
    pub(super) turn_due: bool,
    pub(super) writes: Vec<LogWrite>,
    pub(super) persisting: bool,
    pub(super) feed: VecDeque<Feed>,
    pub(super) feeding: bool,
    /// Entries of which some batches are written and others are to follow.
    pub(super) under: Option<Under>,
    pub(super) checkpoint: Option<(SnapshotMeta, SimStore)>,
    pub(super) incoming: Incoming,
    pub(super) callers: BTreeSet<Ticket>,
    pub(super) paused_until: Duration,
    pub(super) leaderless_since: Duration,
    pub(super) stopping: bool,
}

/// What a member has on disk for certain: its promises to the others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Promise {
    /// The term of the last durable entry.
    pub term: Term,
    /// Its index.
    pub index: Index,
}

/// A machine: a disk, a store, and the process if one runs.
pub struct Host {
    pub(super) name: String,
    pub(super) id: NodeId,
    pub(super) disk: SimDisk,
    pub(super) store: MemoryStore,
    /// Seconds by which its wall clock is ahead of what it should show.
    pub(super) step: i64,
    /// What of its store is damaged.
    pub(super) rot: Rot,
    /// Damage that was found while a process ran: the next one does not trust what is here.
    pub(super) noted: Option<StorageFailed>,
    pub(super) process: Option<Process>,
    pub(super) life: u64,
    pub(super) speed: Speed,
    pub(super) hurt: bool,
    /// Its disk was put back as it was earlier: what the others know of it that came later.
    pub(super) later: Option<Later>,
    /// Bytes that the log may take; what else is on the disk leaves it no more.
    pub(super) room: u64,
    pub(super) member: bool,
    pub(super) promise: Promise,
    pub(super) removed: BTreeSet<NodeId>,
    /// Its certificate and what it believes: files of their own, which a crash leaves as they are.
    pub(super) papers: Option<Papers>,
}

/// A machine that ended for good, with what was on it then.
pub(super) struct Gone {
    pub(super) id: NodeId,
    pub(super) member: bool,
    pub(super) disk: SimDisk,
    pub(super) store: MemoryStore,
    pub(super) papers: Option<Papers>,
}

/// What a start needs to know.
pub(super) struct Start {
    pub(super) cluster: ClusterId,
    pub(super) boot: u64,
    pub(super) seed: u64,
    pub(super) now: Duration,
    pub(super) log: log::Options,
    pub(super) bounds: Bounds,
    pub(super) ring_bytes: usize,
    pub(super) step_keys: usize,
}

impl Host {
    /// A machine with an empty disk and nobody on it.
    pub(super) fn new(name: String, random: ChaCha8Rng) -> Self {
        Self {
            name,
            id: NodeId(0),
            disk: SimDisk::new(random),
            store: MemoryStore::new(),
            step: 0,
            rot: Rot::default(),
            noted: None,
            process: None,
            life: 0,
            speed: Speed::default(),
            hurt: false,
            later: None,
            room: u64::MAX,
            member: false,
            promise: Promise::default(),
            removed: BTreeSet::new(),
            papers: None,
        }
    }

    /// The member that lives here, or lived here last; 0 before the first.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Whether its process runs.
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// Whether a member lives here: it may be down, but it has its data.
    pub fn is_member(&self) -> bool {
        self.member
    }

    /// Whether its disk was damaged on purpose and it has not been replaced since.
    pub fn is_hurt(&self) -> bool {
        self.hurt
    }

    /// Whether something else has filled its disk, or nearly.
    pub fn is_short(&self) -> bool {
        self.room != u64::MAX
    }

    /// Bytes that are free on its disk.
    pub fn free(&self) -> u64 {
        self.room.saturating_sub(self.disk.used())
    }

    /// Its disk, for faults.
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// Its state as its process sees it.
    pub(super) fn served(&self) -> SimStore {
        SimStore { sound: self.store.clone(), rot: self.rot.clone() }
    }

    /// Whether damage was found in its state, so that nothing of it may be served any more.
    pub fn is_condemned(&self) -> bool {
        self.rot.failure().is_some()
    }

    /// Whether its state is damaged.
    pub fn is_rotten(&self) -> bool {
        self.rot.is_there(&self.store)
    }

    /// Its state as it was written, for those who judge.
    pub fn store(&self) -> &MemoryStore {
        &self.store
    }

    /// The replica, while the process runs.
    pub fn replica(&self) -> Option<&Replica<Log<SimDisk>>> {
        self.process.as_ref().map(|process| &process.replica)
    }

    /// Where the state is, while the process runs.
    pub fn applied(&self) -> Option<SnapshotMeta> {
        self.process.as_ref().map(|process| process.applier.applied())
    }

    /// Its certificate and what it believes.
    pub fn papers(&self) -> Option<&Papers> {
        self.papers.as_ref()
    }

    /// Whether its process is frozen at that time.
    pub fn is_paused(&self, now: Duration) -> bool {
        self.process.as_ref().is_some_and(|process| process.paused_until > now)
    }

    /// What the member had on disk for certain when that was last looked at.
    pub fn promise(&self) -> Promise {
        self.promise
    }

    /// Puts a new cluster's first member on this machine.
    pub(super) fn create(&mut self, genesis: &Genesis, options: log::Options) {
        let id = genesis.member.id;
        Machine::create(&self.store, genesis).expect("a new store takes its first state");
        let conf = ConfState { voters: vec![id], ..ConfState::default() };
        let boundary = SnapshotMeta { index: 1, term: 1, conf };
        let hard = HardState { term: 1, vote: NodeId(0), commit: 1 };
        self.settle_in(genesis.cluster, id, boundary, hard, options);
    }

    /// Puts a joining member on this machine: it waits for its first snapshot.
    pub(super) fn join(&mut self, cluster: ClusterId, id: NodeId, random: ChaCha8Rng, options: log::Options) {
        self.disk = SimDisk::new(random);
        self.room = u64::MAX;
        self.store = MemoryStore::new();
        (self.rot, self.noted) = (Rot::default(), None);
        self.settle_in(cluster, id, SnapshotMeta::default(), HardState::default(), options);
    }

    fn settle_in(
        &mut self,
        cluster: ClusterId,
        id: NodeId,
        boundary: SnapshotMeta,
        hard: HardState,
        options: log::Options,
    ) {
        let identity = log::Identity { cluster, node: id };
        let made = Log::create(self.disk.clone(), options, identity, boundary, hard);
        drop(made.expect("a new disk takes a log"));
        self.id = id;
        self.member = true;
        self.hurt = false;
        self.later = None;
        self.promise = Promise::default();
        self.removed = BTreeSet::new();
    }

    /// What would be left of this machine if its process ended now; it goes on.
    pub(super) fn gone(&self, random: &mut ChaCha8Rng) -> Gone {
        let keep = random.random_range(0..=self.store.unflushed());
        let mut own = ChaCha8Rng::from_seed(random.random());
        own.set_stream(1);
        Gone {
            id: self.id,
            member: self.member && !self.hurt,
            disk: SimDisk::new(own).restore(&self.disk.image()),
            store: self.store.after_crash(keep),
            papers: self.papers.clone(),
        }
    }

    /// Puts the first member of what follows on another cluster on this machine.
    pub(super) fn go_on(&mut self, first: &First, options: log::Options) {
        self.store = first.store.clone();
        self.papers = Some(first.papers.clone());
        self.settle_in(first.cluster, first.record.id, first.boundary.clone(), first.hard(), options);
    }

    /// A machine is back with what was on it, one step behind of all that happened since.
    pub(super) fn come_back(&mut self, gone: Gone) {
        let Gone { id, member, disk, store, papers } = gone;
        let name = std::mem::take(&mut self.name);
        let life = self.life + 1;
        *self =
            Self { name, id, member, disk, store, papers, life, ..Self::new(String::new(), stream(0, "")) };
    }

    /// Opens what is on the disk, as the product's start does.
    pub(super) fn start(&mut self, start: &Start) -> Result<(), Stop> {
        if let Some(damage) = self.noted.clone() {
            return Err(Stop::Storage(damage));
        }
        let state = Machine::open(self.served()).map_err(Stop::Storage)?;
        let applied = state.map(|machine| machine.applied());
        let identity = log::Identity { cluster: start.cluster, node: self.id };
        let opened = Log::open(self.disk.clone(), start.log, identity, applied).map_err(Stop::Storage)?;
        let (log, writer) = match opened {
            Opened::Ready { log, writer, .. } => (log, writer),
            Opened::Behind { .. } => return Err(Stop::Behind),
        };
        let applier = Applier::open(self.served(), self.id, start.boot).map_err(Stop::Storage)?;
        let applier = applier.with_steps(start.step_keys);
        let report = applier.start().map_err(Stop::Storage)?;
        let hub = Hub::new(HubOptions { ring_bytes: start.ring_bytes }, report.revision);
        let identity = Identity { me: self.id, boot: start.boot, run: log.run(), seed: start.seed };
        let replica = Replica::new(&identity, log, report).map_err(Stop::Storage)?;
        self.life += 1;
        self.process = Some(Process {
            life: self.life,
            born: start.now,
            replica: replica.with_bounds(start.bounds),
            writer,
            applier,
            hub,
            inputs: Vec::new(),
            frames: Vec::new(),
            asks: Vec::new(),
            ticks: 0,
            turn_due: false,
            writes: Vec::new(),
            persisting: false,
            feed: VecDeque::new(),
            feeding: false,
            under: None,
            checkpoint: None,
            incoming: Incoming::default(),
            callers: BTreeSet::new(),
            paused_until: Duration::ZERO,
            leaderless_since: start.now,
            stopping: false,
        });
        Ok(())
    }

    /// The process is gone; returns whom it had not answered and how many batches of the state a
    /// crash took back. With `power` the machine lost its
    /// power too. The store keeps what was flushed and a part of what came after.
    pub(super) fn kill(&mut self, power: bool, random: &mut ChaCha8Rng) -> (Vec<Ticket>, usize) {
        let callers = self.process.take().map(|process| process.callers).unwrap_or_default();
        self.disk = if power { self.disk.crash() } else { self.disk.restart() };
        self.disk.set_space(self.room);
        self.disk.fail_syncs(0);
        self.disk.fail_writes(0);
        self.rot.restart();
        let unflushed = self.store.unflushed();
        let keep = random.random_range(0..=unflushed);
        self.store.crash(keep);
        (callers.into_iter().collect(), unflushed - keep)
    }

    /// The last entry of the log, staged ones included.
    pub fn log_end(&self) -> Option<Promise> {
        let log = self.replica()?.log();
        let index = log.last_index();
        let term = log.term(index).ok()??;
        Some(Promise { term, index })
    }
}

impl Process {
    /// The time on the loop's clock.
    pub(super) fn clock(&self, now: Duration, speed: &Speed) -> Duration {
        now.saturating_sub(self.born).mul_f64(speed.clock)
    }

    /// What the loop goes by: time that never steps.
    pub(super) fn loop_clock(&self, now: Duration, speed: &Speed, step: i64) -> Duration {
        let clock = self.clock(now, speed);
        if crate::planted!(StepLoopClock) {
            let step_by = Duration::from_secs(step.unsigned_abs());
            return if step < 0 { clock.saturating_sub(step_by) } else { clock + step_by };
        }
        clock
    }

    /// The inputs of a turn in the order in which the product's loop sorts them.
    pub(super) fn gather(&mut self) -> Vec<Input<Durable>> {
        let mut inputs = std::mem::take(&mut self.inputs);
        if !self.frames.is_empty() {
            inputs.push(Input::Frames(std::mem::take(&mut self.frames)));
        }
        if !self.asks.is_empty() {
            inputs.push(Input::Asks(std::mem::take(&mut self.asks)));
        }
        // A pause is not made up for tick by tick.
        for _ in 0..std::mem::take(&mut self.ticks).min(2) {
            inputs.push(Input::Tick);
        }
        inputs
    }

    /// Raft has accepted or ignored the snapshot that arrived.
    pub(super) fn settle_incoming(&mut self, accepted: bool) {
        let whole = self.incoming.whole.take();
        if accepted {
            self.incoming.accepted = whole;
        }
    }

    /// The next piece for the state machine: entries of several pieces in one, up to a multiple
    /// of `stop_at`, so that members can be compared there. What may take several batches comes alone:
    /// a crash between two of them must not take with it that what stood before was seen to happen.
    pub(super) fn next_feed(&mut self, stop_at: Index) -> Option<Feed> {
        let mut entries: Vec<Committed> = Vec::new();
        while let Some(item) = self.feed.pop_front() {
            match item {
                Feed::Work(Work::Entries(mut more)) => {
                    let ends = |entry: &Committed| entry.index.is_multiple_of(stop_at);
                    let alone = more.iter().position(goes_alone);
                    let first = entries.is_empty();
                    let take = match (more.iter().position(ends), alone) {
                        (Some(end), Some(alone)) if end < alone => Some(end + 1),
                        (_, Some(0)) if first => Some(1),
                        (_, Some(alone)) => Some(alone),
                        (end, None) => end.map(|end| end + 1),
                    };
                    if let Some(take) = take {
                        let rest = more.split_off(take);
                        if !rest.is_empty() {
                            self.feed.push_front(Feed::Work(Work::Entries(rest)));
                        }
                    }
                    entries.extend(more);
                    if take.is_some() {
                        break;
                    }
                }
                other if entries.is_empty() => return Some(other),
                other => {
                    self.feed.push_front(other);
                    break;
                }
            }
        }
        (!entries.is_empty()).then_some(Feed::Work(Work::Entries(entries)))
    }
}

/// Whether the entry may take batches of its own.
fn goes_alone(entry: &Committed) -> bool {
    let Payload::Proposals(bytes) = &entry.payload else { return false };
    // What goes alone is small.
    bytes.len() < 4096
        && Vec::<Proposal>::from_bytes(bytes.clone())
            .is_ok_and(|proposals| proposals.len() == 1 && proposals[0].command.goes_alone())
}

/// Whether the frame may come twice: the transport never repeats, but raft's own must bear it.
pub(super) fn may_repeat(frame: &PeerFrame) -> bool {
    matches!(frame, PeerFrame::Raft(_))
}

/// How long a machine's tick takes in true time.
pub(super) fn tick(speed: &Speed) -> Duration {
    limits::TICK.div_f64(speed.clock)
}
