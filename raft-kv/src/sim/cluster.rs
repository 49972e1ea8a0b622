//! A cluster in one thread: machines, the network between them and the clock above them, moved
//! one event at a time.
//!
//! It carries values between the parts as the product's shell does and has no opinion of its own:
//! what is right is judged by [`super::checks`], what goes wrong is chosen by [`super::faults`].

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rand::RngCore;
use rand_chacha::ChaCha8Rng;

use super::afterlife::First;
use super::disk::DiskImage;
use super::member::{Gone, Host, Speed, Stop};
use super::network::{Network, NetworkOptions};
use super::rot::SimStore;
use super::scheduler::{Scheduler, Trace, stream};
use super::trust::{Believed, Leaf, Papers, Trusts, authority};
use crate::error::{Error, Refusal, StorageFailed};
use crate::machine::{self, Genesis, LeaseChange, Read, Store};
use crate::node::ask::{Ask, Ticket, Told, What};
use crate::node::replica::{Bounds, Input};
use crate::raft::{Leadership, PeerMessage};
use crate::storage::log::{self, Durable};
use crate::types::{
    Change, ClusterId, Committed, Index, LeaseId, MemberRecord, NodeId, Revision, Role, Sealed, SnapshotMeta,
    Term, TokenRecord, Trusted, WatchBatch, WatchRequest,
};
use crate::watch::WatcherId;

/// A machine's place in the cluster, from 0.
pub type HostId = usize;

/// States are compared at multiples of this index.
pub const COMPARE_EVERY: Index = 32;

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
    /// Damage was found in a member's state: it ends soon.
    Condemned(HostId),
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
    Snapshot { from: NodeId, to: NodeId, message: Box<PeerMessage>, store: SimStore },
    SnapshotSent { from: NodeId, to: NodeId, ok: bool },
    Unreachable { at: NodeId, peer: NodeId },
    Join(HostId),
    Start(HostId, u64),
    Keep(HostId, u64),
    Leaf(HostId, u64, Leaf),
    Recheck(HostId, u64),
    Scrub(HostId, u64),
    Guard(HostId, u64),
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
    pub(super) rot: ChaCha8Rng,
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
    /// Processes that ended because their state was found damaged.
    pub condemned: u64,
    /// Starts that damage ended.
    pub damaged_starts: u64,
    /// Snapshots that were not taken because they were damaged.
    pub damaged_snapshots: u64,
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
        let mut cluster = Self::empty(seed, options);
        cluster.found();
        cluster
    }

    /// Machines with nobody on them.
    fn empty(seed: u64, options: ClusterOptions) -> Self {
        let mut chances = Chances {
            delays: stream(seed, "delays"),
            ids: stream(seed, "ids"),
            crashes: stream(seed, "crashes"),
            transfers: stream(seed, "transfers"),
            joins: stream(seed, "joins"),
            trust: stream(seed, "trust"),
            rot: stream(seed, "rot"),
        };
        let id = ClusterId(chances.ids.next_u64() | 1);
        let network = Network::new(stream(seed, "network"), options.network);
        let hosts = (0..options.hosts)
            .map(|host| Host::new(format!("m{host}"), stream(seed, &format!("disk {host}"))))
            .collect();
        Self {
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
        }
    }

    /// A cluster that follows on another one, from that time on; all machines but the first are empty.
    pub(super) fn reborn(seed: u64, options: ClusterOptions, first: First, now: Duration) -> Self {
        let mut cluster = Self::empty(seed, options);
        cluster.id = first.cluster;
        cluster.scheduler.advance_to(now);
        cluster.hosts[0].go_on(&first, cluster.options.log);
        cluster.place.insert(first.record.id, 0);
        cluster.settle();
        cluster
    }

    /// A machine of before is back, in the place of one on which nobody runs yet.
    pub(super) fn come_back(&mut self, host: HostId, gone: Gone) {
        if self.hosts[host].runs() {
            self.end(host, true, Stop::Crashed);
        }
        self.place.insert(gone.id, host);
        self.hosts[host].come_back(gone);
        for other in 0..self.hosts.len() {
            self.note_removed(other);
        }
        self.restart(host, Duration::ZERO);
    }

    /// All ids that members have had.
    pub(super) fn ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.place.keys().copied()
    }

    /// The cluster's id.
    pub(super) fn id(&self) -> ClusterId {
        self.id
    }

    /// How it was set up.
    pub(super) fn options(&self) -> &ClusterOptions {
        &self.options
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
        self.settle();
    }

    /// The first machine starts, the others ask to join.
    fn settle(&mut self) {
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
            self.guard();
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
        let (now, speed, step) = (self.now(), self.hosts[host].speed, self.hosts[host].step);
        let process = self.hosts[host].process.as_mut()?;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        process.callers.insert(ticket);
        let deadline = process.loop_clock(now, &speed, step) + patience;
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
        self.hosts[host].served().view(|view| {
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

    /// Sets a machine's wall clock so many seconds ahead of what it should show, or behind.
    pub fn step_clock(&mut self, host: HostId, seconds: i64) {
        self.hosts[host].step = seconds;
    }

    /// Damages a block of a machine's state, or loses a file of it; says whether there was anything.
    pub fn rot(&mut self, host: HostId, file: bool) -> bool {
        let Host { rot, store, .. } = &self.hosts[host];
        let struck = rot.strike(store, file, &mut self.chances.rot);
        self.hosts[host].hurt |= struck;
        struck
    }

    /// Leaves the log of a machine so many bytes; `u64::MAX` for as many as it wants.
    pub fn set_room(&mut self, host: HostId, room: u64) {
        self.hosts[host].room = room;
        self.hosts[host].disk.set_space(room);
    }

    /// Below so many free bytes a member's disk is short.
    pub fn disk_reserve(&self) -> u64 {
        self.options.log.segment_bytes * 2
    }

    /// Lets a machine without a member join under a new id, at the others' next convenience.
    pub fn join(&mut self, host: HostId) {
        self.scheduler.after(Duration::ZERO, Event::Join(host));
    }

    /// A hash of a member's state, to be compared at the same applied index.
    pub fn state_hash(&self, host: HostId) -> Result<u64, StorageFailed> {
        self.hosts[host].store.view(machine::read::hash)
    }
}

/// A token, which nobody uses here.
fn token(role: Role) -> TokenRecord {
    let (secret, label) = (Sealed::default(), String::new());
    TokenRecord { role, secret, label, created: 0, expires: i64::MAX, uses: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Answer;
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
