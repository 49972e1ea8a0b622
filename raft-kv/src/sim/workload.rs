//! Clients and watchers: random requests at random members, recorded with what they were told.
//!
//! A request is never sent again behind the record's back: only one that carries the caller's own
//! name is repeated, which is what such names are for.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::checks::Verdict;
use super::checks::changes::Changes;
use super::checks::history::{Asked, Operation, Outcome};
use super::checks::leases::Leases;
use super::checks::watches::Watching;
use super::cluster::{Cluster, HostId, WatchKey};
use super::scheduler::{span, stream};
use super::steward::Steward;
use super::surveyor::{PointHabits, Surveyor, Wish};
use crate::error::Error;
use crate::machine::command::Command;
use crate::machine::{self, Answer, Read};
use crate::node::ask::{Ticket, Told, What};
use crate::types::{KeyRange, KeyValue, LeaseId, OnceId, PointChange, Revision, WatchBatch, WatchRequest};

/// How often a leader looks whether something is due about rollback points.
const KEEP: Duration = Duration::from_secs(1);
/// Times a named request is sent again at most.
const REPEATS: u32 = 4;

/// What clients do, and how often.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Habits {
    /// Clients.
    pub clients: usize,
    /// Watchers.
    pub watchers: usize,
    /// The longest pause between two requests of a client.
    pub think: Duration,
    /// The most bytes that a value is padded with.
    pub padding: usize,
    /// Weights: put, get, old read, range, delete, transaction, lease, renewal, revocation, compaction.
    pub weights: [u32; 10],
    /// Part of the changes that carry the caller's own name.
    pub named: f64,
    /// Part of the reads that may be old.
    pub serializable: f64,
}

/// Whose timer rings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bell {
    Client(usize),
    Watcher(usize),
    /// A member that looks, where it leads, whether something is due about rollback points.
    Keeper(HostId),
    /// A member that looks at its disk.
    Steward(HostId),
}

pub(super) struct Client {
    /// Its request under way.
    busy: Option<usize>,
    once: u64,
    pub(super) leases: Vec<LeaseId>,
    pub(super) made: i64,
}

struct Pending {
    client: usize,
    place: usize,
    once: Option<OnceId>,
    repeats: u32,
    lease: Option<LeaseId>,
}

struct Watcher {
    key: Option<WatchKey>,
    request: WatchRequest,
    watching: Watching,
}

/// All clients and watchers.
pub(super) struct Workload {
    pub(super) random: ChaCha8Rng,
    pub(super) habits: Habits,
    pub(super) clients: Vec<Client>,
    watchers: Vec<Watcher>,
    pending: BTreeMap<Ticket, Pending>,
    pub(super) known: BTreeMap<Bytes, KeyValue>,
    pub(super) newest: Revision,
    pub(super) values: u64,
    pub(super) history: Vec<Operation>,
    pub(super) leases: Leases,
    pub(super) revoked: Vec<LeaseId>,
    /// The highest revision that anybody asked to compact at.
    pub(super) compacted: Revision,
    pub(super) handed: u64,
    pub(super) resumed: u64,
    pub(super) surveyor: Surveyor,
    steward: Steward,
    hosts: usize,
    quiet: bool,
}

impl Workload {
    pub(super) fn new(seed: u64, habits: Habits, points: PointHabits, hosts: usize, fastest: f64) -> Self {
        let mut random = stream(seed, "workload");
        let client = |_| Client { busy: None, once: 0, leases: Vec::new(), made: 0 };
        let clients = (0..habits.clients).map(client).collect();
        let watchers = (0..habits.watchers).map(|_| watcher(&mut random)).collect();
        Self {
            random,
            habits,
            clients,
            watchers,
            pending: BTreeMap::new(),
            known: BTreeMap::new(),
            newest: 1,
            values: 0,
            history: Vec::new(),
            leases: Leases::new(fastest),
            revoked: Vec::new(),
            compacted: -1,
            handed: 0,
            resumed: 0,
            surveyor: Surveyor::new(seed, points),
            steward: Steward::new(seed),
            hosts,
            quiet: false,
        }
    }

    /// Everybody who is to be woken at the start.
    pub(super) fn bells(&self) -> Vec<Bell> {
        let clients = (0..self.clients.len()).map(Bell::Client);
        let keepers = if self.surveyor.is_busy() { self.hosts } else { 0 };
        let watchers = (0..self.watchers.len()).map(Bell::Watcher);
        let stewards = (0..self.hosts).map(Bell::Steward);
        clients.chain(watchers).chain((0..keepers).map(Bell::Keeper)).chain(stewards).collect()
    }

    /// No new requests from now on.
    pub(super) fn be_quiet(&mut self) {
        self.quiet = true;
    }

    /// How many requests wait for an answer.
    pub(super) fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// A timer rang; says when it is to ring again.
    pub(super) fn ring(
        &mut self,
        cluster: &mut Cluster,
        bell: Bell,
        changes: &Changes,
    ) -> Result<Option<Duration>, super::checks::Violation> {
        match bell {
            Bell::Client(client) => {
                if self.quiet {
                    return Ok(None);
                }
                if self.clients[client].busy.is_none() {
                    self.request(cluster, client)?;
                }
                Ok(Some(span(&mut self.random, Duration::from_millis(1), self.habits.think)))
            }
            Bell::Keeper(host) => {
                if self.quiet {
                    return Ok(None);
                }
                self.keep_schedules(cluster, host);
                Ok(Some(KEEP))
            }
            // It goes on when clients are quiet: alarms end by themselves.
            Bell::Steward(host) => Ok(Some(self.steward.look(cluster, host))),
            Bell::Watcher(place) => {
                self.tend_watcher(cluster, place, changes)?;
                Ok(Some(Duration::from_millis(self.random.random_range(100..700))))
            }
        }
    }

    fn host(&mut self, cluster: &Cluster) -> HostId {
        self.random.random_range(0..cluster.hosts().len())
    }

    // ---- requests ----

    fn request(&mut self, cluster: &mut Cluster, client: usize) -> Verdict {
        let host = self.host(cluster);
        if !cluster.hosts()[host].runs() {
            return Ok(());
        }
        if let Some(command) = self.steward.quota(cluster, host) {
            self.change(cluster, client, host, command);
            return Ok(());
        }
        if self.surveyor.wants() {
            return self.survey(cluster, client, host);
        }
        match self.pick() {
            1..=3 => {}
            7 => {
                self.renew(cluster, client, host);
                return Ok(());
            }
            kind => {
                if let Some(command) = self.command(cluster, client, kind) {
                    self.change(cluster, client, host, command);
                }
                return Ok(());
            }
        }
        let request = self.range();
        self.look(cluster, client, host, Asked::Range(request))
    }

    /// Asks for something that is read.
    fn look(&mut self, cluster: &mut Cluster, client: usize, host: HostId, asked: Asked) -> Verdict {
        let old = matches!(&asked, Asked::Range(request) if request.serializable);
        let place = self.begin(cluster, asked);
        if old {
            return self.read(cluster, host, place);
        }
        let pending = Pending { client, place, once: None, repeats: 0, lease: None };
        self.send(cluster, host, What::Barrier, pending);
        Ok(())
    }

    /// Something about rollback points.
    fn survey(&mut self, cluster: &mut Cluster, client: usize, host: HostId) -> Verdict {
        match self.surveyor.draw(self.newest, cluster.millis(host)) {
            None => {}
            Some(Wish::Change(change)) => self.change(cluster, client, host, Command::Point(change)),
            Some(Wish::List) => self.look(cluster, client, host, Asked::Points)?,
            Some(Wish::Diff(request)) => self.look(cluster, client, host, Asked::Diff(request))?,
            Some(Wish::Read(request)) => self.look(cluster, client, host, Asked::Range(request))?,
        }
        Ok(())
    }

    /// As the product's leader does once a second: `client/points`.
    fn keep_schedules(&mut self, cluster: &mut Cluster, host: HostId) {
        let member = &cluster.hosts()[host];
        let leads = member.replica().is_some_and(|it| it.leadership().leader == Some(member.id()));
        let now = cluster.millis(host);
        let due = |view: &dyn Read| {
            machine::read::points_due(view, now).map_err(|failed| Error::Stopped(failed.to_string()))
        };
        if leads && cluster.read(host, due).unwrap_or(false) {
            let command = Command::Point(PointChange::Tidy { now });
            cluster.ask(host, What::Command { command, once: None }, Duration::from_secs(5));
            self.surveyor.count("rollback points looked after");
        }
    }

    fn pick(&mut self) -> usize {
        let total: u32 = self.habits.weights.iter().sum();
        let mut at = self.random.random_range(0..total.max(1));
        for (kind, weight) in self.habits.weights.iter().enumerate() {
            if at < *weight {
                return kind;
            }
            at -= weight;
        }
        0
    }

    pub(super) fn begin(&mut self, cluster: &Cluster, asked: Asked) -> usize {
        self.history.push(Operation::new(asked, cluster.now()));
        self.history.len() - 1
    }

    fn send(&mut self, cluster: &mut Cluster, host: HostId, what: What, pending: Pending) {
        let patience = Duration::from_millis(self.random.random_range(1500..7000));
        let (client, place) = (pending.client, pending.place);
        match cluster.ask(host, what, patience) {
            Some(ticket) => {
                self.clients[client].busy = Some(place);
                self.pending.insert(ticket, pending);
            }
            None if pending.repeats == 0 => self.finish(cluster, client, place, Outcome::NotDone),
            None => self.finish(cluster, client, place, Outcome::Unknown),
        }
    }

    fn change(&mut self, cluster: &mut Cluster, client: usize, host: HostId, command: Command) {
        let named = self.random.random_bool(self.habits.named);
        let once = named.then(|| {
            self.clients[client].once += 1;
            OnceId { client: client as u64 + 1, seq: self.clients[client].once }
        });
        let place = self.begin(cluster, Asked::Command(command.clone()));
        let lease = match command {
            Command::LeaseGrant { id, .. } => Some(id),
            _ => None,
        };
        let pending = Pending { client, place, once, repeats: 0, lease };
        self.send(cluster, host, What::Command { command, once }, pending);
    }

    fn renew(&mut self, cluster: &mut Cluster, client: usize, host: HostId) {
        let Some(id) = self.some_lease(client) else { return };
        let place = self.begin(cluster, Asked::KeepAlive(id));
        let pending = Pending { client, place, once: None, repeats: 0, lease: Some(id) };
        self.send(cluster, host, What::Lease { id, renew: true }, pending);
    }

    // ---- answers ----

    /// A caller was answered.
    pub(super) fn answered(
        &mut self,
        cluster: &mut Cluster,
        host: HostId,
        ticket: Ticket,
        result: Result<Told, Error>,
    ) -> Verdict {
        let Some(pending) = self.pending.remove(&ticket) else { return Ok(()) };
        let (client, place) = (pending.client, pending.place);
        let now = cluster.now();
        let outcome = match result {
            Ok(Told::MayRead) => {
                self.clients[client].busy = None;
                return self.read(cluster, host, place);
            }
            Ok(Told::Applied { revision, answer, .. }) => {
                if let (Answer::Lease { id, .. }, Some(_)) = (&answer, pending.lease) {
                    self.leases.acknowledged(*id, self.history[place].invoked, now)?;
                }
                if let (Asked::Command(Command::Point(change)), Answer::Point(reply)) =
                    (&self.history[place].asked, &answer)
                {
                    self.surveyor.told(change, reply);
                }
                Outcome::Done(revision, answer)
            }
            Ok(Told::Lease(status)) => {
                self.leases.acknowledged(status.id, self.history[place].invoked, now)?;
                Outcome::Renewed
            }
            Ok(Told::Done) => Outcome::Unknown,
            Err(_) if pending.once.is_some() => return self.repeat(cluster, pending, result.unwrap_err()),
            Err(Error::Refused(refusal)) => Outcome::Refused(refusal),
            Err(Error::NotDone(_)) => Outcome::NotDone,
            Err(Error::Unknown(_) | Error::Stopped(_)) => Outcome::Unknown,
        };
        self.finish(cluster, client, place, outcome);
        Ok(())
    }

    /// A named request that got no answer is sent again, under its name.
    fn repeat(&mut self, cluster: &mut Cluster, pending: Pending, error: Error) -> Verdict {
        let Pending { client, place, once, repeats, lease } = pending;
        match error {
            Error::Refused(refusal) if repeats == 0 => {
                self.finish(cluster, client, place, Outcome::Refused(refusal));
            }
            Error::NotDone(_) if repeats == 0 => self.finish(cluster, client, place, Outcome::NotDone),
            Error::Refused(_) => self.finish(cluster, client, place, Outcome::Unknown),
            _ if repeats >= REPEATS || self.quiet => self.finish(cluster, client, place, Outcome::Unknown),
            _ => {
                let Asked::Command(command) = self.history[place].asked.clone() else {
                    unreachable!("only changes have names")
                };
                let running: Vec<HostId> =
                    (0..cluster.hosts().len()).filter(|host| cluster.hosts()[*host].runs()).collect();
                if running.is_empty() {
                    self.finish(cluster, client, place, Outcome::Unknown);
                    return Ok(());
                }
                let host = running[self.random.random_range(0..running.len())];
                let pending = Pending { client, place, once, repeats: repeats + 1, lease };
                self.send(cluster, host, What::Command { command, once }, pending);
            }
        }
        Ok(())
    }

    fn finish(&mut self, cluster: &Cluster, client: usize, place: usize, outcome: Outcome) {
        self.clients[client].busy = None;
        self.settle(cluster, place, outcome);
    }

    pub(super) fn settle(&mut self, cluster: &Cluster, place: usize, outcome: Outcome) {
        if let Outcome::Done(revision, _) | Outcome::Read(revision, _) | Outcome::Listed { revision, .. } =
            &outcome
        {
            self.newest = self.newest.max(*revision);
        }
        let operation = &mut self.history[place];
        operation.returned = Some(cluster.now());
        operation.outcome = outcome;
    }

    // ---- watchers ----

    fn tend_watcher(&mut self, cluster: &mut Cluster, place: usize, changes: &Changes) -> Verdict {
        let watcher = &mut self.watchers[place];
        if let Some(key) = watcher.key {
            if let Some(revision) = cluster.progress(key) {
                watcher.watching.handed(changes, &WatchBatch::Progress(revision), self.compacted)?;
            }
            if self.random.random_bool(0.02) {
                // It moves to another member of its own accord.
                self.watchers[place].key = None;
            }
            return Ok(());
        }
        let host = self.host(cluster);
        let start_revision = self.watchers[place].watching.done() + 1;
        let request = WatchRequest { start_revision, ..self.watchers[place].request.clone() };
        if let Some(Ok(key)) = cluster.watch(host, request) {
            self.watchers[place].key = Some(key);
            self.watchers[place].watching.resumed();
            self.resumed += 1;
        }
        Ok(())
    }

    /// A watcher was handed something.
    pub(super) fn watched(&mut self, key: WatchKey, batch: &WatchBatch, changes: &Changes) -> Verdict {
        let compacted = self.compacted;
        let found = self.watchers.iter_mut().find(|watcher| watcher.key == Some(key));
        let Some(watcher) = found else { return Ok(()) };
        watcher.watching.handed(changes, batch, compacted)?;
        self.handed += 1;
        if let WatchBatch::Compacted(oldest) = batch {
            watcher.key = None;
            watcher.watching = Watching::new(watcher.request.clone(), oldest - 1);
        }
        Ok(())
    }

    /// A process ended: its watchers go elsewhere.
    pub(super) fn stopped(&mut self, host: HostId) {
        for watcher in &mut self.watchers {
            watcher.key = watcher.key.filter(|key| key.host != host);
        }
    }

    /// How far each watcher is.
    pub(super) fn ends(&self) -> Vec<Revision> {
        self.watchers.iter().map(|watcher| watcher.watching.done()).collect()
    }

    /// How far the slowest watcher is.
    pub(super) fn slowest_watcher(&self) -> Revision {
        self.ends().into_iter().min().unwrap_or(Revision::MAX)
    }
}

fn watcher(random: &mut ChaCha8Rng) -> Watcher {
    let range = match random.random_range(0..4) {
        0 => KeyRange::all(),
        1 => KeyRange::prefix(Bytes::from_static(b"k")),
        2 => KeyRange::span(&b"k2"[..], &b"k6"[..]),
        _ => KeyRange::key(format!("k{}", random.random_range(0..4))),
    };
    let request = WatchRequest {
        range,
        start_revision: 0,
        no_put: random.random_bool(0.1),
        no_delete: random.random_bool(0.1),
        prev_kv: random.random_bool(0.5),
        progress_notify: false,
    };
    let watching = Watching::new(request.clone(), 1);
    Watcher { key: None, request, watching }
}
