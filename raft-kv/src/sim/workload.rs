//! Clients and watchers: random requests at random members, recorded with what they were told.
//!
//! A request is never sent again behind the record's back: only one that carries the caller's own
//! name is repeated, which is what such names are for.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::checks::changes::Changes;
use super::checks::history::{Asked, Operation, Outcome};
use super::checks::leases::Leases;
use super::checks::watches::Watching;
use super::checks::{Verdict, Violation, violation};
use super::cluster::{Cluster, HostId, WatchKey};
use super::scheduler::{span, stream};
use super::steward::Steward;
use super::surveyor::{PointHabits, Surveyor, Wish};
use crate::error::{Error, Refusal, StorageFailed};
use crate::machine::command::Command;
use crate::machine::{self, Answer, Read};
use crate::node::ask::{Ticket, Told, What};
use crate::types::{
    Compare, CompareOp, CompareTarget, DeleteRequest, KeyRange, KeyValue, LeaseId, OnceId, PointChange,
    PointDiffRequest, PointList, PutRequest, RangeRequest, RangeResponse, Revision, TxnOp, TxnRequest,
    WatchBatch, WatchRequest,
};

/// Keys that clients use.
const KEYS: u64 = 8;
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

struct Client {
    /// Its request under way.
    busy: Option<usize>,
    once: u64,
    leases: Vec<LeaseId>,
    made: i64,
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
    random: ChaCha8Rng,
    habits: Habits,
    clients: Vec<Client>,
    watchers: Vec<Watcher>,
    pending: BTreeMap<Ticket, Pending>,
    known: BTreeMap<Bytes, KeyValue>,
    newest: Revision,
    values: u64,
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

    fn begin(&mut self, cluster: &Cluster, asked: Asked) -> usize {
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

    fn some_lease(&mut self, client: usize) -> Option<LeaseId> {
        let leases = &self.clients[client].leases;
        (!leases.is_empty()).then(|| leases[self.random.random_range(0..leases.len())])
    }

    fn key(&mut self) -> Bytes {
        // Some keys are hot.
        let key = self.random.random_range(0..KEYS).min(self.random.random_range(0..KEYS));
        format!("k{key}").into()
    }

    fn keys(&mut self) -> KeyRange {
        match self.random.random_range(0..4) {
            0 => KeyRange::prefix(Bytes::from_static(b"k")),
            1 => {
                let (a, b) = (self.key(), self.key());
                if a < b { KeyRange::span(a, b) } else { KeyRange::all() }
            }
            _ => KeyRange::key(self.key()),
        }
    }

    fn put(&mut self, key: Bytes, lease: LeaseId) -> PutRequest {
        self.values += 1;
        let prev_kv = self.random.random_bool(0.3);
        let mut value = format!("v{}", self.values);
        if self.habits.padding > 0 && self.random.random_bool(0.3) {
            let padding = self.random.random_range(0..self.habits.padding);
            value.extend(std::iter::repeat_n('.', padding));
        }
        PutRequest { key, value: value.into(), lease, prev_kv, ..PutRequest::default() }
    }

    fn range(&mut self) -> RangeRequest {
        let old = self.random.random_bool(0.25) && self.newest > 2;
        let revision =
            if old { self.random.random_range((self.newest - 40).max(1)..=self.newest) } else { 0 };
        let range = if self.random.random_bool(0.6) { KeyRange::key(self.key()) } else { self.keys() };
        RangeRequest {
            range,
            revision,
            limit: if self.random.random_bool(0.2) { self.random.random_range(1..5) } else { 0 },
            keys_only: self.random.random_bool(0.1),
            count_only: self.random.random_bool(0.1),
            serializable: self.random.random_bool(self.habits.serializable),
            ..RangeRequest::default()
        }
    }

    fn command(&mut self, cluster: &Cluster, client: usize, kind: usize) -> Option<Command> {
        let now = cluster.now();
        Some(match kind {
            4 => {
                let range =
                    if self.random.random_bool(0.9) { KeyRange::key(self.key()) } else { self.keys() };
                Command::Delete(DeleteRequest { range, prev_kv: self.random.random_bool(0.5) })
            }
            5 => Command::Txn(self.txn()),
            6 => {
                self.clients[client].made += 1;
                let id = (client as i64 + 1) << 32 | self.clients[client].made;
                let ttl = self.random.random_range(2..6);
                self.clients[client].leases.push(id);
                let leases = &mut self.clients[client].leases;
                if leases.len() > 3 {
                    leases.remove(0);
                }
                self.leases.asked_for(id, ttl, now);
                Command::LeaseGrant { id, ttl }
            }
            8 => {
                let id = self.some_lease(client)?;
                self.clients[client].leases.retain(|lease| *lease != id);
                self.revoked.push(id);
                Command::LeaseRevoke { id }
            }
            9 => {
                let revision = self.newest - self.random.random_range(0..30);
                if revision < 2 {
                    return None;
                }
                self.compacted = self.compacted.max(revision);
                Command::Compact { revision }
            }
            _ => {
                let lease = if self.random.random_bool(0.2) { self.some_lease(client) } else { None };
                let key = self.key();
                Command::Put(self.put(key, lease.unwrap_or(0)))
            }
        })
    }

    fn compare(&mut self, key: &Bytes) -> Compare {
        let known = self.known.get(key).cloned().unwrap_or_default();
        let target = match self.random.random_range(0..5) {
            0 => CompareTarget::Version(known.version),
            1 => CompareTarget::Create(known.create_revision),
            2 => CompareTarget::Value(known.value),
            3 => CompareTarget::Lease(known.lease),
            _ => CompareTarget::Mod(known.mod_revision),
        };
        let op = match self.random.random_range(0..10) {
            0 => CompareOp::NotEqual,
            1 => CompareOp::Less,
            2 => CompareOp::Greater,
            _ => CompareOp::Equal,
        };
        Compare { range: KeyRange::key(key.clone()), op, target }
    }

    /// Compare and set, sometimes with a transaction inside that looks at what the outer one wrote.
    fn txn(&mut self) -> TxnRequest {
        let (key, other) = (self.key(), self.key());
        let put = self.put(key.clone(), 0);
        let range = |key: &Bytes| {
            TxnOp::Range(RangeRequest { range: KeyRange::key(key.clone()), ..RangeRequest::default() })
        };
        let mut success = vec![TxnOp::Put(put.clone()), range(&key)];
        if key != other && self.random.random_bool(0.4) {
            let target = CompareTarget::Value(put.value.clone());
            let compares = vec![Compare { range: KeyRange::key(key.clone()), op: CompareOp::Equal, target }];
            let inner = self.put(other.clone(), 0);
            success.push(TxnOp::Txn(TxnRequest {
                compares,
                success: vec![TxnOp::Put(inner)],
                failure: vec![range(&other)],
            }));
        }
        let failure = if key != other && self.random.random_bool(0.2) {
            vec![TxnOp::Put(self.put(other, 0))]
        } else {
            vec![range(&key)]
        };
        TxnRequest { compares: vec![self.compare(&key)], success, failure }
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

    fn read(&mut self, cluster: &Cluster, host: HostId, place: usize) -> Verdict {
        let condemned = cluster.hosts()[host].is_condemned();
        let outcome = match self.history[place].asked.clone() {
            Asked::Range(request) => self.read_range(cluster, host, &request)?,
            Asked::Points => self.read_points(cluster, host),
            Asked::Diff(request) => self.read_difference(cluster, host, &request)?,
            Asked::Command(_) | Asked::KeepAlive(_) => unreachable!("it reads"),
        };
        self.settle(cluster, place, outcome);
        if condemned && self.history[place].is_ok() {
            let detail = format!("m{host} knows of damage, and answers {:?}", self.history[place]);
            return violation("damage is never served", detail);
        }
        Ok(())
    }

    fn read_points(&mut self, cluster: &Cluster, host: HostId) -> Outcome {
        let found = whole(cluster, host, |view| {
            let (points, schedules) = (machine::read::points(view)?, machine::read::schedules(view)?);
            let (applied, revision) = (machine::read::applied(view)?, machine::read::current_revision(view)?);
            Ok((revision, applied.index, PointList { points, schedules }))
        });
        let Some((revision, index, list)) = found else { return Outcome::NotDone };
        self.surveyor.listed(&list);
        Outcome::Listed { revision, index, list }
    }

    fn read_difference(
        &mut self,
        cluster: &Cluster,
        host: HostId,
        request: &PointDiffRequest,
    ) -> Result<Outcome, Violation> {
        let found = whole(cluster, host, |view| {
            let (page, named) =
                (machine::read::point_diff(view, request)?, machine::read::point(view, &request.point)?);
            Ok((page, named, machine::read::applied(view)?, machine::read::leases(view)?))
        });
        Ok(match found {
            Some((Ok(page), _, applied, leases)) => {
                self.surveyor.paged(request, &page);
                let living = leases.into_iter().map(|(id, _)| id).collect();
                Outcome::Page { index: applied.index, page, living }
            }
            Some((Err(refusal), Some(point), ..)) if request.revision == 0 => {
                let detail = format!("what differs from {point:?} was refused: {refusal}");
                return Err(Violation::new("rollback points are readable", detail));
            }
            Some((Err(refusal), ..)) => Outcome::Refused(refusal),
            None => Outcome::NotDone,
        })
    }

    fn read_range(
        &mut self,
        cluster: &Cluster,
        host: HostId,
        request: &RangeRequest,
    ) -> Result<Outcome, Violation> {
        let found = cluster.read(host, |view| Ok(machine::read::range(view, request)));
        if let Ok(Ok(read)) = &found {
            self.note_points(cluster, host, request, read)?;
        }
        let outcome = match found {
            Ok(Ok(Ok((revision, response)))) => {
                if request.revision == 0
                    && request.range.is_single()
                    && !request.keys_only
                    && !request.count_only
                {
                    self.note(&request.range.key, response.kvs.first());
                }
                Outcome::Read(revision, response)
            }
            Ok(Ok(Err(refusal))) => Outcome::Refused(refusal),
            Ok(Err(_)) | Err(_) => Outcome::NotDone,
        };
        Ok(outcome)
    }

    /// A point's revision can be read, whatever is compacted.
    fn note_points(
        &mut self,
        cluster: &Cluster,
        host: HostId,
        request: &RangeRequest,
        read: &Result<(Revision, RangeResponse), Refusal>,
    ) -> Verdict {
        let state = whole(cluster, host, |view| {
            let (half, compacted) = (machine::read::half_done(view)?, machine::read::compacted(view)?);
            let below = request.revision > 0 && request.revision < compacted;
            let named =
                below && machine::read::points(view)?.iter().any(|point| point.revision == request.revision);
            Ok((half, compacted, named))
        });
        let Some((half, compacted, named)) = state else { return Ok(()) };
        if half {
            self.surveyor.count("reads while a rollback was half done");
        }
        if request.revision <= 0 || request.revision >= compacted {
            return Ok(());
        }
        match read {
            Ok(_) if named => {
                self.surveyor.count("reads at points below the compaction");
                Ok(())
            }
            Err(Refusal::Compacted { .. }) if !named => Ok(()),
            _ => {
                let detail =
                    format!("{request:?} below {compacted}, a point there: {named}, was told {read:?}");
                violation("rollback points are readable", detail)
            }
        }
    }

    /// Looks at a member that has a rollback half done: it must seem not to have begun.
    pub(super) fn peek(&mut self, cluster: &Cluster, host: HostId) -> Verdict {
        if !self.surveyor.looks() {
            return Ok(());
        }
        let request = RangeRequest { range: KeyRange::all(), serializable: true, ..RangeRequest::default() };
        let place = self.begin(cluster, Asked::Range(request.clone()));
        self.read(cluster, host, place)?;
        let Outcome::Read(revision, response) = &self.history[place].outcome else { return Ok(()) };
        let (revision, kvs) = (*revision, &response.kvs);
        let found = whole(cluster, host, |view| {
            let leases = machine::read::leases(view)?;
            let keys: Result<Vec<_>, StorageFailed> =
                leases.iter().map(|(id, _)| Ok((*id, machine::read::lease_keys(view, *id)?))).collect();
            Ok((keys?, machine::read::history(view, revision + 1, revision + 1, usize::MAX)?))
        });
        let Some((leases, later)) = found else { return Ok(()) };
        for (id, keys) in leases {
            let right: Vec<_> = kvs.iter().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect();
            if keys != right {
                let detail = format!("m{host} at {revision}: lease {id} ends {keys:?}, should end {right:?}");
                return violation("a rollback is whole", detail);
            }
        }
        match later {
            Ok(changes) if changes.is_empty() => Ok(()),
            other => violation("a rollback is whole", format!("m{host} at {revision} tells {other:?}")),
        }
    }

    /// Somebody reads at a member that has found its state damaged.
    pub(super) fn look_at_damage(&mut self, cluster: &Cluster, host: HostId) -> Verdict {
        for key in 0..KEYS {
            let range = KeyRange::key(format!("k{key}"));
            let request = RangeRequest { range, serializable: true, ..RangeRequest::default() };
            let place = self.begin(cluster, Asked::Range(request));
            self.read(cluster, host, place)?;
        }
        Ok(())
    }

    fn note(&mut self, key: &Bytes, kv: Option<&KeyValue>) {
        match kv {
            Some(kv) => self.known.insert(key.clone(), kv.clone()),
            None => self.known.remove(key),
        };
    }

    fn finish(&mut self, cluster: &Cluster, client: usize, place: usize, outcome: Outcome) {
        self.clients[client].busy = None;
        self.settle(cluster, place, outcome);
    }

    fn settle(&mut self, cluster: &Cluster, place: usize, outcome: Outcome) {
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

/// Reads a member's state; `None` where it has none.
fn whole<R>(
    cluster: &Cluster,
    host: HostId,
    read: impl FnOnce(&dyn Read) -> Result<R, StorageFailed>,
) -> Option<R> {
    let read = |view: &dyn Read| read(view).map_err(|failed| Error::Stopped(failed.to_string()));
    cluster.read(host, read).ok()
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
