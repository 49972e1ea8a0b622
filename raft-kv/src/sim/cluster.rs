//! A cluster in one thread: machines, the network between them and the clock above them, moved
//! one event at a time.
//!
//! It carries values between the parts as the product's shell does and has no opinion of its own:
//! what is right is judged by [`super::checks`], what goes wrong is chosen by [`super::faults`].

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;

use super::disk::DiskImage;
use super::member::{Feed, Host, Speed, Start, Stop, may_repeat, tick};
use super::network::{Network, NetworkOptions};
use super::scheduler::{Scheduler, Trace, span, stream};
use super::trust::{Believed, Leaf, Papers, Trusts, authority};
use crate::codec::Wire;
use crate::error::{Error, Refusal, StorageFailed, Unknown};
use crate::machine::read::History;
use crate::machine::{self, Answer, Genesis, LeaseChange, MemoryStore, Read, Store};
use crate::node::apply::{Under, Work};
use crate::node::ask::{Ask, Ticket, Told, What};
use crate::node::replica::{Bounds, Effects, Input};
use crate::node::wire::PeerFrame;
use crate::raft::{Leadership, PeerMessage};
use crate::storage::log::{self, Durable, LogWrite};
use crate::types::{
    Change, ClusterId, Committed, Index, LeaseId, MemberRecord, NodeId, PointReply, Revision, Role, Sealed,
    SnapshotMeta, Term, TokenRecord, Trusted, WatchBatch, WatchRequest,
};
use crate::watch::{Hub, Poll, WatcherId};

/// A machine's place in the cluster, from 0.
pub type HostId = usize;

/// States are compared at multiples of this index.
pub const COMPARE_EVERY: Index = 32;
/// A member without a leader for this long asks whether it still is a member.
const LEADERLESS: Duration = Duration::from_secs(3);
/// The longest installation of a received snapshot.
const INSTALL: Duration = Duration::from_millis(600);
/// Bytes of one answer to a watcher.
const WATCH_BATCH_BYTES: usize = 512;

/// How a cluster is set up.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Machines; the first starts the cluster, the others join it.
    pub hosts: usize,
    /// How links behave.
    pub network: NetworkOptions,
    /// Sizes of the raft log.
    pub log: log::Options,
    /// When state is flushed and how much log is kept.
    pub bounds: Bounds,
    /// Recent changes kept for watchers, in bytes.
    pub ring_bytes: usize,
    /// Keys that one step of a rollback looks at, at every member.
    pub step_keys: usize,
    /// Keep the trace as text too.
    pub text: bool,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            hosts: 3,
            network: NetworkOptions::default(),
            log: log::Options { segment_bytes: 16 * 1024, spare_segments: 2, cache_bytes: 16 * 1024 },
            bounds: Bounds::default(),
            ring_bytes: 4096,
            step_keys: crate::limits::ROLLBACK_STEP_KEYS,
            text: false,
        }
    }
}

/// Names a watch of one run of a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct WatchKey {
    /// Where.
    pub host: HostId,
    /// Of which run.
    pub life: u64,
    /// Which.
    pub id: WatcherId,
}

/// What an event brought about.
#[derive(Clone, Debug)]
pub enum Happening {
    /// A process started.
    Started(HostId),
    /// A process ended, or could not start.
    Stopped(HostId, Stop),
    /// A machine got a new member.
    Joined(HostId),
    /// A member that runs on an old copy of its disk has promised something.
    OldPromise(NodeId),
    /// Who leads, as the member sees it, changed.
    Leadership(HostId, Leadership),
    /// A member granted its vote in a term.
    Voted {
        /// Who votes.
        voter: NodeId,
        /// In which term.
        term: Term,
        /// For whom.
        candidate: NodeId,
    },
    /// A member's log changed.
    Wrote(HostId),
    /// A member learnt that entries are committed.
    Committed(HostId, Vec<Committed>),
    /// A member's state moved.
    Applied {
        /// Whose.
        host: HostId,
        /// Where it is.
        at: SnapshotMeta,
        /// The revision there.
        revision: Revision,
        /// What changed; empty where a snapshot was installed.
        changes: Vec<Change>,
        /// What happened to leases.
        leases: Vec<LeaseChange>,
        /// What came of each request, in order.
        outcomes: Vec<machine::Outcome>,
        /// After an entry that went alone: the leases that live.
        living: Option<Vec<LeaseId>>,
        /// Whether a snapshot was installed.
        installed: bool,
    },
    /// A member has done a part of an entry that takes several batches.
    Half(HostId),
    /// A caller was answered.
    Answer(HostId, Ticket, Result<Told, Error>),
    /// A watcher was handed something.
    Watched(WatchKey, WatchBatch),
    /// What is believed, or who is known, changed in a member's state.
    Trusted(HostId),
    /// A timer of the caller's rang.
    Timer(u64),
}

pub(super) enum Event {
    Tick(HostId, u64),
    Turn(HostId, u64),
    Persist(HostId, u64),
    Durable(HostId, u64, Durable),
    Feed(HostId, u64),
    Flushed(HostId, u64, Box<SnapshotMeta>),
    Watch(WatchKey),
    Frame { from: NodeId, to: NodeId, bytes: Bytes },
    Snapshot { from: NodeId, to: NodeId, message: Box<PeerMessage>, store: MemoryStore },
    SnapshotSent { from: NodeId, to: NodeId, ok: bool },
    Unreachable { at: NodeId, peer: NodeId },
    Join(HostId),
    Start(HostId, u64),
    Keep(HostId, u64),
    Leaf(HostId, u64, Leaf),
    Recheck(HostId, u64),
    Timer(u64),
}

/// Chance for each concern of the cluster.
pub(super) struct Chances {
    pub(super) delays: ChaCha8Rng,
    pub(super) ids: ChaCha8Rng,
    pub(super) crashes: ChaCha8Rng,
    pub(super) transfers: ChaCha8Rng,
    pub(super) joins: ChaCha8Rng,
    pub(super) trust: ChaCha8Rng,
}

/// What happened to snapshots, joins and states.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClusterCounts {
    /// Snapshots sent.
    pub snapshots_sent: u64,
    /// Snapshots that did not arrive.
    pub snapshots_lost: u64,
    /// Snapshots installed.
    pub snapshots_installed: u64,
    /// Times a log was cut.
    pub cuts: u64,
    /// Members that joined.
    pub joins: u64,
    /// Members turned away after their removal.
    pub evictions: u64,
    /// Times a member was seen with an entry half done.
    pub half: u64,
    /// Ends of processes while an entry was half done in their state.
    pub half_ends: u64,
    /// Starts that found an entry half done.
    pub half_starts: u64,
    /// Checkpoints with an entry half done.
    pub half_checkpoints: u64,
    /// Snapshots that took the place of a state with an entry half done.
    pub half_installs: u64,
    /// Batches of the state that a crash took back.
    pub batches_lost: u64,
    /// History read for watchers that had fallen behind.
    pub watch_reads: u64,
    /// Handshakes that failed.
    pub refused: u64,
    /// Connections ended because their other end is not believed any more.
    pub closed: u64,
    /// Certificates that members took.
    pub issued: u64,
    /// Members readmitted after they had been shut out.
    pub readmitted: u64,
}

/// A cluster in one thread from one seed. Nothing moves but by [`step`](Self::step).
///
/// ```
/// use std::time::Duration;
/// use raft_kv::sim::{Cluster, ClusterOptions};
///
/// let mut cluster = Cluster::new(7, ClusterOptions::default());
/// let mut happened = Vec::new();
/// cluster.run_for(Duration::from_secs(20), &mut happened);
/// assert!(cluster.leader().is_some());
/// assert_eq!(cluster.voters(), 3);
/// ```
pub struct Cluster {
    pub(super) seed: u64,
    pub(super) options: ClusterOptions,
    pub(super) id: ClusterId,
    pub(super) scheduler: Scheduler<Event>,
    pub(super) trace: Trace,
    pub(super) chances: Chances,
    pub(super) network: Network,
    pub(super) hosts: Vec<Host>,
    pub(super) place: BTreeMap<NodeId, HostId>,
    pub(super) next_ticket: Ticket,
    pub(super) joining: BTreeMap<HostId, super::join::Join>,
    pub(super) trusts: Trusts,
    pub(super) happened: Vec<Happening>,
    pub(super) counts: ClusterCounts,
}

impl Cluster {
    /// A cluster of one that the other machines begin to join at once.
    pub fn new(seed: u64, options: ClusterOptions) -> Self {
        let mut chances = Chances {
            delays: stream(seed, "delays"),
            ids: stream(seed, "ids"),
            crashes: stream(seed, "crashes"),
            transfers: stream(seed, "transfers"),
            joins: stream(seed, "joins"),
            trust: stream(seed, "trust"),
        };
        let id = ClusterId(chances.ids.next_u64() | 1);
        let network = Network::new(stream(seed, "network"), options.network);
        let hosts = (0..options.hosts)
            .map(|host| Host::new(format!("m{host}"), stream(seed, &format!("disk {host}"))))
            .collect();
        let mut cluster = Self {
            seed,
            trace: Trace::new(options.text),
            id,
            scheduler: Scheduler::default(),
            chances,
            network,
            hosts,
            place: BTreeMap::new(),
            next_ticket: 1,
            joining: BTreeMap::new(),
            trusts: Trusts::default(),
            happened: Vec::new(),
            counts: ClusterCounts::default(),
            options,
        };
        cluster.found();
        cluster
    }

    fn found(&mut self) {
        let member = self.record(0);
        let first = authority(1, None);
        let leaf = Leaf::of(&first, member.id, self.chances.trust.next_u64());
        let trusted = Trusted { epoch: 1, roots: vec![first.clone()], ..Trusted::default() };
        let genesis = Genesis {
            cluster: self.id,
            member: member.clone(),
            authority: first,
            node: leaf.record(Role::Manager, &member.name, self.wall(0)),
            tokens: ["manager", "worker"].map(|name| (name.to_owned(), token(Role::Manager))).into(),
        };
        self.hosts[0].create(&genesis, self.options.log);
        self.hosts[0].papers = Some(Papers { leaf, believed: Believed::of(&trusted, 0) });
        self.place.insert(member.id, 0);
        self.scheduler.after(Duration::ZERO, Event::Start(0, 0));
        for host in 1..self.hosts.len() {
            self.scheduler.after(Duration::from_millis(500), Event::Join(host));
        }
    }

    /// A record with a new id for the member of a machine.
    pub(super) fn record(&mut self, host: HostId) -> MemberRecord {
        let id = NodeId(self.chances.ids.next_u64() | 1);
        let name = self.hosts[host].name.clone();
        MemberRecord { id, addr: format!("{name}:1"), name, ..Default::default() }
    }

    /// The simulated time.
    pub fn now(&self) -> Duration {
        self.scheduler.now()
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.scheduler.taken()
    }

    /// All that happened, as a number.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// The machines.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The network, to be cut and healed.
    pub fn network(&mut self) -> &mut Network {
        &mut self.network
    }

    /// What happened to snapshots, joins and states.
    pub fn counts(&self) -> ClusterCounts {
        let Trusts { refused, closed, issued, readmitted, .. } = self.trusts;
        ClusterCounts { refused, closed, issued, readmitted, ..self.counts }
    }

    /// What the network did.
    pub fn network_counts(&self) -> super::network::NetworkCounts {
        self.network.counts()
    }

    /// The machine whose member leads and is ready, that with the highest term if there are two.
    pub fn leader(&self) -> Option<HostId> {
        let leads = |host: &HostId| {
            let leadership = self.hosts[*host].replica()?.leadership();
            (leadership.leader == Some(self.hosts[*host].id) && leadership.ready).then_some(leadership.term)
        };
        (0..self.hosts.len()).filter(|host| leads(host).is_some()).max_by_key(leads)
    }

    /// Voters as the leader has them; 0 without one.
    pub fn voters(&self) -> usize {
        let conf = self.leader().and_then(|host| self.hosts[host].applied()).map(|at| at.conf);
        conf.map_or(0, |conf| if conf.voters_outgoing.is_empty() { conf.voters.len() } else { 0 })
    }

    /// Takes one event and adds what it brought about.
    pub fn step(&mut self, happened: &mut Vec<Happening>) {
        if let Some(event) = self.scheduler.take() {
            self.handle(event);
        }
        happened.append(&mut self.happened);
    }

    /// When the next event is due.
    pub fn next_at(&self) -> Option<Duration> {
        self.scheduler.next_at()
    }

    /// Takes all events of a span of time.
    pub fn run_for(&mut self, time: Duration, happened: &mut Vec<Happening>) {
        let until = self.now() + time;
        while self.scheduler.next_at().is_some_and(|at| at <= until) {
            self.step(happened);
        }
        self.scheduler.advance_to(until);
    }

    /// Rings [`Happening::Timer`] with `token` after `delay`.
    pub fn timer(&mut self, delay: Duration, token: u64) {
        self.scheduler.after(delay, Event::Timer(token));
    }

    /// Asks a member for something; `None` where its process does not run.
    pub fn ask(&mut self, host: HostId, what: What, patience: Duration) -> Option<Ticket> {
        let (now, speed) = (self.now(), self.hosts[host].speed);
        let process = self.hosts[host].process.as_mut()?;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        process.callers.insert(ticket);
        let deadline = process.clock(now, &speed) + patience;
        process.asks.push(Ask { ticket, deadline, what });
        self.turn_soon(host);
        Some(ticket)
    }

    /// Reads a member's own state as it is now.
    ///
    /// # Errors
    /// [`Error::NotDone`] where the member has no state yet.
    pub fn read<R>(
        &self,
        host: HostId,
        read: impl FnOnce(&dyn Read) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.hosts[host].store.view(|view| {
            let holds =
                machine::read::holds_state(view).map_err(|failed| Error::Stopped(failed.to_string()))?;
            if holds { read(view) } else { Err(Error::NotDone(crate::error::NotDone::NoState)) }
        })
    }

    /// Starts to follow keys at a member; `None` where its process does not run.
    pub fn watch(&mut self, host: HostId, request: WatchRequest) -> Option<Result<WatchKey, Refusal>> {
        let process = self.hosts[host].process.as_mut()?;
        let life = process.life;
        let added = process.hub.add(request);
        Some(added.map(|id| {
            let key = WatchKey { host, life, id };
            self.scheduler.after(Duration::from_micros(50), Event::Watch(key));
            key
        }))
    }

    /// A true bookmark of a watch, where it is not behind.
    pub fn progress(&self, key: WatchKey) -> Option<Revision> {
        let process = self.hosts[key.host].process.as_ref().filter(|process| process.life == key.life)?;
        process.hub.progress(key.id)
    }

    /// Ends a process at once; with `power` the machine loses its power too.
    pub fn crash(&mut self, host: HostId, power: bool) {
        if self.hosts[host].runs() {
            self.end(host, power, Stop::Crashed);
        }
    }

    /// A machine whose process does not run loses its power and gets it back.
    pub fn power_cycle(&mut self, host: HostId) {
        if !self.hosts[host].runs() {
            self.hosts[host].disk = self.hosts[host].disk.crash();
        }
    }

    pub(super) fn hosts_mut(&mut self) -> &mut [Host] {
        &mut self.hosts
    }

    /// Ends a process at once and puts the log's files back from an old image of its disk, but not
    /// the marker beside them.
    pub fn restore_log(&mut self, host: HostId, image: &DiskImage) {
        self.crash(host, true);
        self.hosts[host].disk =
            self.hosts[host].disk.restore_files(image, |name| name.starts_with("segment"));
    }

    /// Starts a process that does not run, after a while.
    pub fn restart(&mut self, host: HostId, delay: Duration) {
        let life = self.hosts[host].life;
        self.scheduler.after(delay, Event::Start(host, life));
    }

    /// Stops a process cleanly, as SIGTERM does.
    pub fn stop(&mut self, host: HostId) {
        if let Some(process) = &mut self.hosts[host].process {
            process.stopping = true;
            process.inputs.push(Input::Stop);
            self.turn_soon(host);
        }
    }

    /// Freezes a process: nothing of it runs until `time` has passed, while its clock goes on.
    pub fn pause(&mut self, host: HostId, time: Duration) {
        let until = self.now() + time;
        if let Some(process) = &mut self.hosts[host].process {
            process.paused_until = process.paused_until.max(until);
        }
    }

    /// How fast a machine is from now on. Its clock's rate must not change while it runs.
    pub fn set_speed(&mut self, host: HostId, speed: Speed) {
        let clock = if self.hosts[host].runs() { self.hosts[host].speed.clock } else { speed.clock };
        self.hosts[host].speed = Speed { clock, ..speed };
    }

    /// Says that the disk of a machine was damaged on purpose: it may fail from now on.
    pub fn hurt(&mut self, host: HostId) {
        self.hosts[host].hurt = true;
    }

    /// Lets a machine without a member join under a new id, at the others' next convenience.
    pub fn join(&mut self, host: HostId) {
        self.scheduler.after(Duration::ZERO, Event::Join(host));
    }

    /// A hash of a member's state, to be compared at the same applied index.
    pub fn state_hash(&self, host: HostId) -> Result<u64, StorageFailed> {
        self.hosts[host].store.view(machine::read::hash)
    }

    // ---- events ----

    fn handle(&mut self, event: Event) {
        let now = self.now().as_nanos() as u64;
        if let Some((host, life)) = place_of(&event) {
            self.trace.fold(&[now, host as u64, life]);
            let Some(process) = self.hosts[host].process.as_ref().filter(|process| process.life == life)
            else {
                return;
            };
            if process.paused_until > self.now() {
                let until = process.paused_until;
                return self.scheduler.at(until, event);
            }
        }
        match event {
            Event::Tick(host, life) => self.tick(host, life),
            Event::Turn(host, _) => self.turn(host),
            Event::Persist(host, life) => self.persist(host, life),
            Event::Durable(host, _, proof) => self.durable(host, proof),
            Event::Feed(host, _) => self.feed(host),
            Event::Flushed(host, _, meta) => self.input(host, Input::Flushed(*meta)),
            Event::Watch(key) => self.serve_watch(key),
            Event::Frame { from, to, bytes } => self.frame(from, to, bytes),
            Event::Snapshot { from, to, message, store } => self.snapshot(from, to, *message, store),
            Event::SnapshotSent { from, to, ok } => {
                if let Some(host) = self.running(from) {
                    self.input(host, Input::SnapshotSent { to, ok });
                }
            }
            Event::Unreachable { at, peer } => {
                if let Some(host) = self.running(at) {
                    self.input(host, Input::Unreachable(peer));
                }
            }
            Event::Join(host) => self.look_for_door(host),
            Event::Start(host, life) => self.start(host, life),
            Event::Keep(host, _) => self.keep(host),
            Event::Leaf(host, _, leaf) => self.take_leaf(host, leaf),
            Event::Recheck(host, _) => self.recheck(host),
            Event::Timer(token) => self.happened.push(Happening::Timer(token)),
        }
    }

    pub(super) fn running(&self, id: NodeId) -> Option<HostId> {
        self.place.get(&id).copied().filter(|host| self.hosts[*host].runs() && self.hosts[*host].id == id)
    }

    pub(super) fn start(&mut self, host: HostId, life: u64) {
        let stale = self.hosts[host].life != life || self.hosts[host].runs();
        if stale || !self.hosts[host].member {
            return;
        }
        let start = Start {
            cluster: self.id,
            boot: self.chances.ids.next_u64() | 1,
            seed: self.chances.ids.next_u64(),
            now: self.now(),
            log: self.options.log,
            bounds: self.options.bounds,
            ring_bytes: self.options.ring_bytes,
            step_keys: self.options.step_keys,
        };
        match self.hosts[host].start(&start) {
            Ok(()) => {
                let life = self.hosts[host].life;
                self.counts.half_starts += u64::from(self.is_half(host));
                self.trace
                    .line(self.scheduler.now(), || format!("m{host} starts as {}", self.hosts[host].id));
                self.scheduler.after(tick(&self.hosts[host].speed), Event::Tick(host, life));
                self.happened.push(Happening::Started(host));
                self.look_soon(host);
            }
            Err(why) => {
                self.trace.line(self.scheduler.now(), || format!("m{host} can't start: {why:?}"));
                self.lose(host);
                self.happened.push(Happening::Stopped(host, why));
            }
        }
    }

    /// The machine's data can't be used any more: it joins anew under a new id.
    fn lose(&mut self, host: HostId) {
        self.hosts[host].member = false;
        self.scheduler.after(Duration::from_millis(200), Event::Join(host));
    }

    pub(super) fn end(&mut self, host: HostId, power: bool, why: Stop) {
        self.trace.line(self.scheduler.now(), || format!("m{host} ends: {why:?}, power {power}"));
        self.trace.fold(&[host as u64, u64::from(power)]);
        self.disconnect(host);
        self.counts.half_ends += u64::from(self.is_half(host));
        let (callers, lost) = self.hosts[host].kill(power, &mut self.chances.crashes);
        self.counts.batches_lost += lost as u64;
        let told = if why == Stop::Clean { Unknown::ShuttingDown } else { Unknown::ConnectionLost };
        for ticket in callers {
            self.answer(host, ticket, Err(Error::Unknown(told.clone())));
        }
        self.happened.push(Happening::Stopped(host, why));
    }

    fn failed(&mut self, host: HostId, failed: StorageFailed) {
        let off = self.hosts[host].disk.is_off();
        self.end(host, off, if off { Stop::Crashed } else { Stop::Storage(failed) });
    }

    pub(super) fn answer(&mut self, host: HostId, ticket: Ticket, result: Result<Told, Error>) {
        self.trace.fold(&[ticket, u64::from(result.is_ok())]);
        if !self.join_answered(ticket, &result) && !self.trust_answered(ticket, &result) {
            self.happened.push(Happening::Answer(host, ticket, result));
        }
    }

    fn turn_soon(&mut self, host: HostId) {
        let delay = span(&mut self.chances.delays, Duration::from_micros(1), Duration::from_micros(60));
        if let Some(process) = self.hosts[host].process.as_mut().filter(|process| !process.turn_due) {
            process.turn_due = true;
            let life = process.life;
            self.scheduler.after(delay, Event::Turn(host, life));
        }
    }

    fn input(&mut self, host: HostId, input: Input<Durable>) {
        if let Some(process) = &mut self.hosts[host].process {
            process.inputs.push(input);
            self.turn_soon(host);
        }
    }

    fn tick(&mut self, host: HostId, life: u64) {
        self.scheduler.after(tick(&self.hosts[host].speed), Event::Tick(host, life));
        let now = self.now();
        let Some(process) = &mut self.hosts[host].process else { return };
        process.ticks += 1;
        if process.replica.leadership().leader.is_some() {
            process.leaderless_since = now;
        } else if now - process.leaderless_since > LEADERLESS {
            process.leaderless_since = now;
            self.ask_whether_removed(host);
        }
        self.turn_soon(host);
    }

    /// A member without a leader dials the others, who turn it away if it was removed.
    fn ask_whether_removed(&mut self, host: HostId) {
        let id = self.hosts[host].id;
        let turned_away = self.hosts.iter().any(|other| {
            other.runs()
                && other.removed.contains(&id)
                && !self.network.is_cut(id, other.id)
                && !self.network.is_cut(other.id, id)
        });
        if turned_away {
            self.counts.evictions += 1;
            self.hosts[host].member = false;
            self.end(host, false, Stop::Removed);
        }
    }

    fn turn(&mut self, host: HostId) {
        let now = self.now();
        let speed = self.hosts[host].speed;
        let Some(process) = &mut self.hosts[host].process else { return };
        process.turn_due = false;
        let inputs = process.gather();
        let received = process.incoming.whole.is_some();
        let durable = inputs.iter().any(|input| matches!(input, Input::Durable(_)));
        match process.replica.turn(process.clock(now, &speed), inputs) {
            Ok(effects) => {
                if received {
                    let accepted = effects.apply.iter().any(|work| matches!(work, Work::Install(_)));
                    process.settle_incoming(accepted);
                }
                if durable {
                    self.note_promise(host);
                }
                self.carry_out(host, effects);
            }
            Err(failed) => self.failed(host, failed),
        }
    }

    /// What the member has promised now that another write is on its disk.
    fn note_promise(&mut self, host: HostId) {
        use crate::raft::LogView;
        let member = &mut self.hosts[host];
        let Some(process) = &member.process else { return };
        let index = process.replica.status().persisted;
        if let Ok(Some(term)) = process.replica.log().term(index) {
            member.promise = super::member::Promise { term, index };
        }
    }

    fn carry_out(&mut self, host: HostId, effects: Effects<LogWrite>) {
        let id = self.hosts[host].id;
        if let Some(members) = &effects.members {
            self.note_removed(host);
            if members.iter().all(|member| member.record.id != id) {
                // It has learnt of its own removal from the log, and ends at once.
                self.counts.evictions += 1;
                self.hosts[host].member = false;
                return self.end(host, false, Stop::Removed);
            }
        }
        if let Some(older) = effects.older {
            self.lose(host);
            return self.end(host, false, Stop::Older(older));
        }
        for (to, frame) in effects.frames {
            self.send(id, to, &frame);
        }
        if !effects.writes.is_empty() {
            self.happened.push(Happening::Wrote(host));
            let process = self.hosts[host].process.as_mut().expect("it took the turn");
            process.writes.extend(effects.writes);
            self.persist_soon(host);
        }
        for work in effects.apply {
            if let Work::Entries(entries) = &work {
                self.happened.push(Happening::Committed(host, entries.clone()));
            }
            self.feed_with(host, Feed::Work(work));
        }
        for (ticket, result) in effects.answers {
            let process = self.hosts[host].process.as_mut().expect("it took the turn");
            if process.callers.remove(&ticket) {
                self.answer(host, ticket, result);
            }
        }
        if let Some(leadership) = effects.leadership {
            self.trace.line(self.scheduler.now(), || format!("m{host} sees {leadership:?}"));
            self.happened.push(Happening::Leadership(host, leadership));
        }
        if effects.make_checkpoint {
            self.feed_with(host, Feed::Checkpoint);
        }
        if effects.flush {
            self.feed_with(host, Feed::Flush);
        }
        for (to, message) in effects.snapshots {
            self.send_snapshot(host, to, message);
        }
        if let Some(index) = effects.cut {
            self.counts.cuts += 1;
            let process = self.hosts[host].process.as_mut().expect("it took the turn");
            process.checkpoint = process.checkpoint.take().filter(|(meta, _)| meta.index >= index);
        }
        if effects.stopped {
            // A clean end flushes the state.
            self.hosts[host].store.flush().expect("memory does not fail");
            self.end(host, false, Stop::Clean);
        }
    }

    fn note_removed(&mut self, host: HostId) {
        let known: Vec<NodeId> = self.place.keys().copied().collect();
        let removed = self.hosts[host].store.view(|view| {
            known.into_iter().filter(|id| machine::read::removed(view, *id).unwrap_or(false)).collect()
        });
        self.hosts[host].removed = removed;
    }

    fn send(&mut self, from: NodeId, to: NodeId, frame: &PeerFrame) {
        if let PeerFrame::Raft(message) = frame
            && message.grants_vote()
        {
            self.happened.push(Happening::Voted { voter: from, term: message.term(), candidate: to });
        }
        if let PeerFrame::Raft(message) = frame
            && message.promise().is_some()
            && self.runs_old_image(from)
        {
            self.happened.push(Happening::OldPromise(from));
        }
        let bytes = frame.to_bytes();
        self.trace.fold_bytes(&bytes);
        let arrivals = self.network.send(self.scheduler.now(), (from, to), may_repeat(frame));
        if arrivals[0].is_none() && self.chances.delays.random_bool(0.2) {
            let delay = Duration::from_millis(self.chances.delays.random_range(1..500));
            self.scheduler.after(delay, Event::Unreachable { at: from, peer: to });
        }
        for at in arrivals.into_iter().flatten() {
            self.scheduler.at(at, Event::Frame { from, to, bytes: bytes.clone() });
        }
    }

    fn frame(&mut self, from: NodeId, to: NodeId, bytes: Bytes) {
        let Some(host) = self.running(to) else { return };
        if self.hosts[host].removed.contains(&from)
            || self.network.is_cut(from, to)
            || !self.connected(from, to)
        {
            return;
        }
        let frame = PeerFrame::from_bytes(bytes).expect("members of one version read each other");
        self.trace.line(self.scheduler.now(), || {
            let from = self.place.get(&from).map_or("?".into(), |host| format!("m{host}"));
            let mut text = format!("{frame:?}");
            text.truncate(160);
            format!("{from} -> m{host}: {text}")
        });
        let process = self.hosts[host].process.as_mut().expect("it runs");
        process.frames.push((from, frame));
        self.turn_soon(host);
    }

    // ---- the log's writer ----

    fn persist_soon(&mut self, host: HostId) {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        if !process.persisting && !process.writes.is_empty() {
            process.persisting = true;
            let life = process.life;
            let delay = span(&mut self.chances.delays, Duration::from_micros(5), Duration::from_micros(200));
            self.scheduler.after(delay, Event::Persist(host, life));
        }
    }

    fn persist(&mut self, host: HostId, life: u64) {
        let most = self.hosts[host].speed.sync;
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let writes = std::mem::take(&mut process.writes);
        match process.writer.write_all(writes) {
            Ok(proof) => {
                if self.chances.delays.random_bool(0.2)
                    && let Err(failed) = process.writer.prepare()
                {
                    return self.failed(host, failed);
                }
                let delay = span(&mut self.chances.delays, Duration::from_micros(80), most);
                self.scheduler.after(delay, Event::Durable(host, life, proof));
            }
            Err(failed) => self.failed(host, failed),
        }
    }

    fn durable(&mut self, host: HostId, proof: Durable) {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        process.persisting = false;
        self.input(host, Input::Durable(proof));
        self.persist_soon(host);
    }

    // ---- the state machine ----

    fn feed_with(&mut self, host: HostId, item: Feed) {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        process.feed.push_back(item);
        self.feed_soon(host);
    }

    fn feed_soon(&mut self, host: HostId) {
        let most = self.hosts[host].speed.apply;
        let process = self.hosts[host].process.as_mut().expect("it runs");
        if !process.feeding && !process.feed.is_empty() {
            process.feeding = true;
            let life = process.life;
            // To put a whole state in the place of another takes its time.
            let installs = matches!(process.feed.front(), Some(Feed::Work(Work::Install(_))));
            let most = if installs { most.max(INSTALL) } else { most };
            let delay = span(&mut self.chances.delays, Duration::from_micros(10), most);
            self.scheduler.after(delay, Event::Feed(host, life));
        }
    }

    fn feed(&mut self, host: HostId) {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        process.feeding = false;
        if process.under.is_some() {
            return match self.advance(host) {
                Ok(()) => self.feed_soon(host),
                Err(failed) => self.failed(host, failed),
            };
        }
        let Some(item) = process.next_feed(COMPARE_EVERY) else { return };
        let done = match item {
            Feed::Work(Work::Entries(entries)) => self.apply(host, entries),
            Feed::Work(Work::Install(meta)) => self.install(host, &meta),
            Feed::Checkpoint => {
                self.checkpoint(host);
                Ok(())
            }
            Feed::Flush => {
                self.flush(host);
                Ok(())
            }
        };
        match done {
            Ok(()) => self.feed_soon(host),
            Err(failed) => self.failed(host, failed),
        }
    }

    fn apply(&mut self, host: HostId, entries: Vec<Committed>) -> Result<(), StorageFailed> {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        process.under = Some(process.applier.begin(entries));
        self.advance(host)
    }

    /// Whether a member's state has an entry half done.
    fn is_half(&self, host: HostId) -> bool {
        self.hosts[host].store.view(machine::read::half_done).expect("memory does not fail")
    }

    /// Writes the next batches of what is applied. Where an entry is half done then, everything else
    /// may happen before it goes on, but for what the feed does.
    fn advance(&mut self, host: HostId) -> Result<(), StorageFailed> {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let mut under = process.under.take().expect("something was begun");
        while process.applier.advance(&mut under)? {
            if process.applier.store().view(machine::read::half_done)? {
                process.under = Some(under);
                process.feeding = true;
                let life = process.life;
                let longest =
                    Duration::from_millis(if self.chances.delays.random_bool(0.2) { 40 } else { 4 });
                let delay = span(&mut self.chances.delays, Duration::from_micros(10), longest);
                self.scheduler.after(delay, Event::Feed(host, life));
                self.counts.half += 1;
                self.happened.push(Happening::Half(host));
                if self.chances.delays.random_bool(0.05) {
                    self.hosts[host].store.flush()?;
                }
                return Ok(());
            }
        }
        self.applied(host, under)
    }

    /// The last batch is written: everyone is told.
    fn applied(&mut self, host: HostId, under: Under) -> Result<(), StorageFailed> {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let outcomes = under.done().outcomes.clone();
        let (report, mut changes) = process.applier.finish(under)?;
        let life = process.life;
        let rolled = |outcome: &machine::Outcome| {
            matches!(outcome.result, Ok(Answer::Point(PointReply::RolledBack(_))))
        };
        let living = if outcomes.iter().any(rolled) {
            let leases = process.applier.store().view(machine::read::leases)?;
            Some(leases.into_iter().map(|(id, _)| id).collect())
        } else {
            None
        };
        let mut woken = Vec::new();
        let mut done = 0;
        for &revision in &report.large {
            let at = changes.partition_point(|change| change.revision < revision);
            woken.extend(process.hub.publish(changes[done..at].to_vec()));
            let (change, ids) =
                process.applier.store().view(|view| publish_large(&mut process.hub, view, revision))?;
            woken.extend(ids);
            changes.insert(at, change);
            done = at + 1;
        }
        woken.extend(process.hub.publish(changes[done..].to_vec()));
        for id in woken {
            let delay = span(&mut self.chances.delays, Duration::from_micros(10), Duration::from_millis(2));
            self.scheduler.after(delay, Event::Watch(WatchKey { host, life, id }));
        }
        self.trace.fold(&[report.applied.index, report.revision as u64]);
        self.happened.push(Happening::Applied {
            host,
            at: report.applied.clone(),
            revision: report.revision,
            changes,
            leases: report.leases.clone(),
            outcomes,
            living,
            installed: false,
        });
        if report.trust {
            self.trust_changed(host);
        }
        self.input(host, Input::Applied(report));
        // The store flushes by itself too, whenever its memory is full; and compacts.
        if self.chances.delays.random_bool(0.02) {
            self.hosts[host].store.flush()?;
        }
        if self.chances.delays.random_bool(0.2) {
            self.hosts[host].process.as_mut().expect("it runs").applier.collect()?;
        }
        Ok(())
    }

    fn install(&mut self, host: HostId, meta: &SnapshotMeta) -> Result<(), StorageFailed> {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let accepted = process.incoming.accepted.take();
        let Some((_, store)) = accepted.filter(|(at, _)| at.index == meta.index && at.term == meta.term)
        else {
            let why = format!("the snapshot up to entry {} that raft accepted is not here", meta.index);
            return Err(StorageFailed::damaged("incoming", why));
        };
        self.counts.half_installs += u64::from(self.is_half(host));
        self.hosts[host].store.replace(&store);
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let report = process.applier.installed(meta)?;
        let life = process.life;
        for id in process.hub.advance(report.revision) {
            self.scheduler.after(Duration::from_micros(100), Event::Watch(WatchKey { host, life, id }));
        }
        self.counts.snapshots_installed += 1;
        self.trace.line(self.scheduler.now(), || format!("m{host} installs {meta:?}"));
        self.happened.push(Happening::Applied {
            host,
            at: report.applied.clone(),
            revision: report.revision,
            changes: Vec::new(),
            leases: Vec::new(),
            outcomes: Vec::new(),
            living: None,
            installed: true,
        });
        self.trust_changed(host);
        self.input(host, Input::Applied(report));
        Ok(())
    }

    fn checkpoint(&mut self, host: HostId) {
        self.counts.half_checkpoints += u64::from(self.is_half(host));
        let store = self.hosts[host].store.snapshot();
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let meta = process.applier.applied();
        process.checkpoint = Some((meta.clone(), store));
        self.input(host, Input::CheckpointMade(meta));
    }

    fn flush(&mut self, host: HostId) {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let (life, meta) = (process.life, process.applier.applied());
        self.hosts[host].store.flush().expect("memory does not fail");
        let delay = span(&mut self.chances.delays, Duration::from_millis(1), Duration::from_millis(100));
        self.scheduler.after(delay, Event::Flushed(host, life, Box::new(meta)));
    }

    // ---- snapshots ----

    fn send_snapshot(&mut self, host: HostId, to: NodeId, message: PeerMessage) {
        let from = self.hosts[host].id;
        self.counts.snapshots_sent += 1;
        let process = self.hosts[host].process.as_ref().expect("it took the turn");
        let meta = message.snapshot_meta().expect("a snapshot's message says which");
        let time = span(&mut self.chances.transfers, Duration::from_millis(2), Duration::from_millis(400));
        let lost = self.chances.transfers.random_bool(0.1);
        let store = process.checkpoint.as_ref().filter(|(at, _)| at.index == meta.index);
        match store {
            Some((_, store)) if !lost && !self.network.is_cut(from, to) => {
                let store = store.snapshot();
                let message = Box::new(message);
                self.scheduler.after(time, Event::Snapshot { from, to, message, store });
            }
            _ => {
                self.counts.snapshots_lost += 1;
                self.scheduler.after(time, Event::SnapshotSent { from, to, ok: false });
            }
        }
    }

    fn snapshot(&mut self, from: NodeId, to: NodeId, message: PeerMessage, store: MemoryStore) {
        let cut = self.network.is_cut(from, to) || self.network.is_cut(to, from);
        let cut = cut || !self.connected(from, to);
        let taker = self.running(to).filter(|host| !cut && !self.hosts[*host].removed.contains(&from));
        let busy = |process: &super::member::Process| {
            process.incoming.whole.is_some() || process.incoming.accepted.is_some()
        };
        let taker = taker.filter(|host| self.hosts[*host].process.as_ref().is_some_and(|it| !busy(it)));
        let ok = taker.is_some();
        self.counts.snapshots_lost += u64::from(!ok);
        if let Some(host) = taker {
            let meta = message.snapshot_meta().expect("a snapshot's message says which");
            let process = self.hosts[host].process.as_mut().expect("it runs");
            process.incoming.whole = Some((meta, store));
            process.frames.push((from, PeerFrame::Raft(message)));
            self.turn_soon(host);
        }
        self.scheduler.after(Duration::from_millis(1), Event::SnapshotSent { from, to, ok });
    }

    // ---- watchers ----

    fn serve_watch(&mut self, key: WatchKey) {
        let host = key.host;
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let poll = process.hub.poll(key.id, WATCH_BATCH_BYTES);
        let batch = match poll {
            Poll::Idle => return,
            Poll::Again => return self.serve_watch(key),
            Poll::Batch(batch) => Some(batch),
            Poll::Read { .. } | Poll::ReadPart { .. } => {
                self.counts.watch_reads += 1;
                let (from, part, to) = match poll {
                    Poll::ReadPart { revision, part } => (revision, part, revision),
                    Poll::Read { from, to } => (from, 0, to),
                    _ => unreachable!("it was just seen"),
                };
                let read = |view: &dyn Read| {
                    machine::read::history_in_parts(view, (from, part), to, WATCH_BATCH_BYTES)
                };
                let history = match self.hosts[host].store.view(read) {
                    Ok(history) => history,
                    Err(failed) => return self.failed(host, failed),
                };
                let hub = &mut self.hosts[host].process.as_mut().expect("it runs").hub;
                match history {
                    Ok(History::Part(change, rest)) => hub.supply_part(key.id, part, &change, Some(rest)),
                    Ok(History::Whole(changes)) if part > 0 => {
                        changes.first().and_then(|change| hub.supply_part(key.id, part, change, None))
                    }
                    Ok(History::Whole(changes)) => {
                        let read_to = changes.last().map_or(to, |change| change.revision);
                        hub.supply(key.id, Ok(changes), read_to)
                    }
                    Err(Refusal::Compacted { compacted, .. }) => hub.supply_nothing(key.id, compacted),
                    Err(refusal) => panic!("history was refused: {refusal}"),
                }
            }
        };
        if let Some(batch) = batch {
            let ended = matches!(batch, WatchBatch::Compacted(_));
            self.happened.push(Happening::Watched(key, batch));
            if ended {
                return;
            }
        }
        let delay = span(&mut self.chances.delays, Duration::from_micros(10), Duration::from_micros(500));
        self.scheduler.after(delay, Event::Watch(key));
    }
}

/// Publishes a revision that the machine did not hold, as the shell does; with its events, for checks.
fn publish_large(
    hub: &mut Hub,
    view: &dyn Read,
    revision: Revision,
) -> Result<(Change, Vec<WatcherId>), StorageFailed> {
    hub.begin_large();
    for part in 0.. {
        let Some(keys) = machine::read::keys_changed(view, revision, part)? else { break };
        hub.note_large(revision, &keys);
    }
    let woken = hub.publish_large(revision);
    let changes = machine::read::history(view, revision, revision, usize::MAX)?.expect("it was just made");
    let change = changes.into_iter().next().expect("it was just made");
    Ok((change, woken))
}

/// A token, which nobody uses here.
fn token(role: Role) -> TokenRecord {
    let (secret, label) = (Sealed::default(), String::new());
    TokenRecord { role, secret, label, created: 0, expires: i64::MAX, uses: None }
}

/// The process an event is for, if it is for one.
fn place_of(event: &Event) -> Option<(HostId, u64)> {
    match event {
        Event::Tick(host, life)
        | Event::Turn(host, life)
        | Event::Persist(host, life)
        | Event::Durable(host, life, _)
        | Event::Feed(host, life)
        | Event::Keep(host, life)
        | Event::Leaf(host, life, _)
        | Event::Recheck(host, life)
        | Event::Flushed(host, life, _) => Some((*host, *life)),
        Event::Watch(key) => Some((key.host, key.life)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::command::Command;
    use crate::types::PutRequest;

    fn formed(seed: u64) -> (Cluster, Vec<Happening>) {
        let mut cluster = Cluster::new(seed, ClusterOptions { text: true, ..ClusterOptions::default() });
        let mut happened = Vec::new();
        cluster.run_for(Duration::from_secs(20), &mut happened);
        (cluster, happened)
    }

    #[test]
    fn three_machines_form_a_cluster_and_serve() {
        let (mut cluster, mut happened) = formed(3);
        assert_eq!(cluster.voters(), 3, "{:#?}", cluster.trace().lines());
        happened.clear();
        let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
        let what = What::Command { command: Command::Put(put), once: None };
        let ticket = cluster.ask(2, what, Duration::from_secs(5)).unwrap();
        cluster.run_for(Duration::from_secs(1), &mut happened);
        let answer = happened.iter().find_map(|happening| match happening {
            Happening::Answer(2, answered, result) if *answered == ticket => Some(result.clone()),
            _ => None,
        });
        let told = answer.expect("it was answered").expect("it was done");
        assert!(matches!(told, Told::Applied { revision: 2, answer: Answer::Put(_), .. }));
        let hashes: Vec<_> = (0..3).map(|host| cluster.state_hash(host).unwrap()).collect();
        assert!(hashes.iter().all(|hash| *hash == hashes[0]));
    }

    #[test]
    fn a_seed_gives_one_trace() {
        let lines = |seed| formed(seed).0.trace().lines().to_vec();
        assert_eq!(lines(11), lines(11));
        assert_ne!(formed(11).0.trace().hash(), formed(12).0.trace().hash());
    }

    #[test]
    fn a_learner_that_was_removed_while_cut_off_hears_of_it() {
        use crate::raft::Role;
        use crate::types::ConfChange;
        let mut cluster = Cluster::new(4, ClusterOptions { text: true, ..ClusterOptions::default() });
        let mut happened = Vec::new();
        let follows = |happening: &Happening| matches!(happening, Happening::Leadership(2, it) if it.role == Role::Learner && it.leader.is_some());
        while !happened.iter().any(follows) {
            cluster.step(&mut happened);
        }
        let (learner, others) = (cluster.hosts()[2].id(), [cluster.hosts()[0].id(), cluster.hosts()[1].id()]);
        cluster.network().split(&[learner], &others);
        cluster.ask(0, What::Conf(ConfChange::Remove(learner)), Duration::from_secs(5)).unwrap();
        cluster.run_for(Duration::from_secs(10), &mut happened);
        cluster.network().heal();
        cluster.run_for(Duration::from_secs(15), &mut happened);
        let told = |happening: &Happening| matches!(happening, Happening::Stopped(2, Stop::Removed));
        assert!(happened.iter().any(told), "{:#?}", cluster.trace().lines());
    }
}
