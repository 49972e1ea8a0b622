//! What follows when a cluster has ended: another one restored from a backup of it, or a new epoch that one
//! survivor goes on with alone.
//!
//! Copies are made at drawn times while the run goes on and change nothing in it; what follows runs when the
//! run is over and was judged. It must hold what the copy's revision held, hand out no revision again, let in
//! nobody whom the copy refuses nor any member of before, tell watchers of before *compacted*, and serve.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rand::seq::SliceRandom;
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;

use super::checks::changes::{Changes, FIRST};
use super::checks::elections::Elections;
use super::checks::states::States;
use super::checks::{Verdict, Violation, violation};
use super::cluster::{COMPARE_EVERY, Cluster, ClusterOptions, Happening, HostId};
use super::disk::SimDisk;
use super::member::{Gone, Host, Stop};
use super::scheduler::stream;
use super::trust::{Believed, Leaf, Papers, authority};
use crate::error::{Error, Refusal, StorageFailed};
use crate::limits::{RECOVERY_READ_BYTES, RECOVERY_REVISIONS, RECOVERY_TERMS};
use crate::machine::command::Command;
use crate::machine::{self, Answer, Machine, MemoryStore, NewEpoch, Read, Restore, Store};
use crate::node::ask::{Ticket, Told, What};
use crate::storage::log::{self, Log};
use crate::types::{
    Change, ClusterId, EventKind, HardState, KeyRange, KeyValue, MemberRecord, NodeId, PutRequest,
    RangeRequest, Revision, Role, Sealed, SnapshotMeta, Standing, WatchBatch, WatchRequest,
};

const CHECK: &str = "a cluster goes on after its end";
/// How long the new one is looked at, at most.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long it is disturbed.
const DISTURBED: Duration = Duration::from_secs(12);
/// A root that no run has made.
const FRESH: u64 = 1 << 40;

/// A copy of a member's state.
pub(super) struct Backup {
    store: MemoryStore,
    at: Duration,
}

/// All machines as a moment left them, of which one survives.
pub(super) struct Lost {
    survivor: HostId,
    machines: Vec<Gone>,
    at: Duration,
}

/// What was copied in a run for what comes after it.
pub(super) struct Legacy {
    random: ChaCha8Rng,
    pub(super) backup: Option<Backup>,
    pub(super) lost: Option<Lost>,
    pub(super) counts: BTreeMap<&'static str, u64>,
}

impl Legacy {
    pub(super) fn new(seed: u64) -> Self {
        let random = stream(seed, "afterlife");
        Self { random, backup: None, lost: None, counts: BTreeMap::new() }
    }

    /// When a backup is made and when a quorum is lost, each in two runs of five.
    pub(super) fn draw(&mut self, faults: Duration) -> (Option<Duration>, Option<Duration>) {
        let mut time = || {
            let at = faults.mul_f64(self.random.random::<f64>());
            self.random.random_bool(0.4).then_some(at)
        };
        (time(), time())
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Copies a member's state, where there is a whole and sound one; says whether it did.
    pub(super) fn back_up(&mut self, cluster: &Cluster) -> bool {
        let host = self.random.random_range(0..cluster.hosts().len());
        if !whole(cluster, host) || !cluster.hosts()[host].runs() {
            return false;
        }
        self.backup = Some(Backup { store: cluster.hosts()[host].store().snapshot(), at: cluster.now() });
        self.count("backups made");
        true
    }

    /// Notes what all machines would be left with if they ended now; says whether one could go on.
    pub(super) fn lose(&mut self, cluster: &Cluster) -> bool {
        let survivor = self.random.random_range(0..cluster.hosts().len());
        let member = &cluster.hosts()[survivor];
        let fit = member.is_member() && !member.is_hurt() && !member.disk().is_off();
        if !fit || !whole(cluster, survivor) {
            return false;
        }
        let machines = cluster.hosts().iter().map(|host| host.gone(&mut self.random)).collect();
        self.lost = Some(Lost { survivor, machines, at: cluster.now() });
        true
    }

    /// What follows on the run that has ended; `changes` are all its changes.
    pub(super) fn go_on(&mut self, seed: u64, ended: &Cluster, changes: &Changes) -> Verdict {
        if let Some(backup) = self.backup.take() {
            self.restore(seed, ended, changes, &backup)?;
        }
        match self.lost.take() {
            Some(lost) => self.recover(seed, ended, changes, lost),
            None => Ok(()),
        }
    }

    fn restore(&mut self, seed: u64, ended: &Cluster, changes: &Changes, backup: &Backup) -> Verdict {
        let store = &backup.store;
        let (before, refused) = (look(store, machine::read::current_revision)?, refused(store, ended)?);
        same_keys(store, 0, changes, before)?;
        let members = look(store, machine::read::members)?;
        let record = self.record("r0");
        let fresh = self.random.random_bool(0.3).then(|| authority(FRESH, None));
        let trusted = look(store, machine::read::trusted)?;
        let leaf = Leaf::of(fresh.as_ref().unwrap_or(trusted.issuing()), record.id, self.random.next_u64());
        let cluster = ClusterId(self.random.next_u64() | 1);
        let plan = Restore {
            cluster,
            member: record.clone(),
            node: leaf.record(Role::Manager, &record.name, ended.wall(0)),
            tokens: Vec::new(),
            token_key: Sealed::default(),
            fresh: fresh.map(|authority| (authority, self.random.next_u64())),
            without: Vec::new(),
            raise: RECOVERY_REVISIONS,
        };
        let restored = match Machine::restore(store, &plan).map_err(broken)? {
            Ok(restored) => restored,
            Err(refusal) => return violation(CHECK, format!("a backup can't be restored: {refusal}")),
        };
        self.count("backups restored");
        same_keys(store, 0, changes, before)?;
        let handed = changes.head();
        stays_out(store, refused.into_iter().chain(members.iter().map(|it| it.record.id)))?;
        let papers = self.papers(store, leaf, ended.wall(0))?;
        let first = First { cluster, record, papers, store: store.clone(), boundary: restored.applied };
        let mut life = Life::begin(seed ^ 1, ended, first, backup.at, handed)?;
        life.live(&mut self.random, Vec::new())?;
        *self.counts.entry("requests done after a restore").or_default() += life.done;
        *self.counts.entry("watchers of before told compacted").or_default() += life.told_compacted;
        Ok(())
    }

    fn recover(&mut self, seed: u64, ended: &Cluster, changes: &Changes, lost: Lost) -> Verdict {
        let Lost { survivor, mut machines, at } = lost;
        let one = machines.remove(survivor);
        let log = Log::look(
            one.disk.clone(),
            ended.options().log,
            log::Identity { cluster: ended.id(), node: one.id },
            &look(&one.store, machine::read::applied)?,
        );
        let log = log.map_err(broken)?;
        if log.behind {
            return Ok(());
        }
        let mut machine = Machine::open(one.store.clone()).map_err(broken)?.expect("it holds a state");
        let sure = carry_out(&mut machine, &log).map_err(broken)?;
        if look(&one.store, machine::read::half_done)? {
            // The product says so too: another member, or a backup.
            self.count("survivors with a rollback half done");
            return Ok(());
        }
        self.count("epochs begun");
        let kept = machine.revision();
        *self.counts.entry("revisions kept that may be lost").or_default() += (kept - sure) as u64;
        // What was surely committed is there as it was committed; of the rest some may be another's.
        if look(&one.store, machine::read::compacted)? <= sure {
            same_keys(&one.store, sure, changes, sure)?;
        }
        let (refused, members) = (refused(&one.store, ended)?, look(&one.store, machine::read::members)?);
        let trusted = look(&one.store, machine::read::trusted)?;
        let record = self.record("s0");
        let leaf = Leaf::of(trusted.issuing(), record.id, self.random.next_u64());
        let epoch = NewEpoch {
            member: record.clone(),
            node: leaf.record(Role::Manager, &record.name, ended.wall(0)),
            term: log.hard.term.max(log.last.term) + RECOVERY_TERMS,
            revision: kept + RECOVERY_REVISIONS,
            sure,
        };
        let boundary = machine.begin_epoch(&epoch).map_err(broken)?;
        stays_out(&one.store, refused.into_iter().chain(members.iter().map(|it| it.record.id)))?;
        // Whom the survivor never heard of is let in by nobody, and told nothing: people empty it.
        let all = machines.len();
        let store = one.store.clone();
        let known = |id| store.view(|view| machine::read::standing(view, id)) == Ok(Standing::Removed);
        machines.retain(|machine| !machine.member || known(machine.id));
        *self.counts.entry("members that a survivor never knew").or_default() +=
            (all - machines.len()) as u64;
        let papers = self.papers(&one.store, leaf, ended.wall(0))?;
        let first = First { cluster: ended.id(), record, papers, store: one.store, boundary };
        let mut life = Life::begin(seed ^ 2, ended, first, at, kept.max(changes.head()))?;
        // A part of the old epoch that is no quorum of it comes back as it was, the rest is empty.
        machines.retain(|machine| machine.member && machine.papers.is_some());
        machines.shuffle(&mut self.random);
        machines.truncate((ended.hosts().len() - 1) / 2);
        life.live(&mut self.random, machines)?;
        *self.counts.entry("requests done in a new epoch").or_default() += life.done;
        *self.counts.entry("watchers of before told compacted").or_default() += life.told_compacted;
        *self.counts.entry("members of an old epoch turned away").or_default() += life.turned_away;
        Ok(())
    }

    fn record(&mut self, name: &str) -> MemberRecord {
        let id = NodeId(self.random.next_u64() | 1);
        MemberRecord { id, name: name.into(), addr: format!("{name}:1"), ..MemberRecord::default() }
    }

    fn papers(&self, store: &MemoryStore, leaf: Leaf, now: i64) -> Result<Papers, Violation> {
        Ok(Papers { leaf, believed: Believed::of(&look(store, machine::read::trusted)?, now) })
    }
}

/// Whether a member has a state, and no rollback half done.
fn whole(cluster: &Cluster, host: HostId) -> bool {
    let whole = |view: &dyn Read| {
        Ok::<_, StorageFailed>(machine::read::holds_state(view)? && !machine::read::half_done(view)?)
    };
    cluster.hosts()[host].store().view(whole).unwrap_or(false) && !cluster.hosts()[host].is_rotten()
}

/// Carries out every entry that the log has, as `client/recover` does; the last revision that is sure.
fn carry_out(
    machine: &mut Machine<MemoryStore>,
    log: &log::Looked<SimDisk>,
) -> Result<Revision, StorageFailed> {
    let mut sure = machine.revision();
    loop {
        let applied = machine.applied();
        let mut entries = log.entries(applied.index + 1, RECOVERY_READ_BYTES)?;
        if applied.index < log.hard.commit {
            entries.retain(|entry| entry.index <= log.hard.commit);
        }
        if entries.is_empty() {
            return Ok(sure);
        }
        let mut conf = applied.conf;
        let committed = entries.iter().map(|entry| crate::raft::committed(entry, &mut conf));
        let committed: Result<Vec<_>, _> = committed.collect();
        machine.apply(committed.expect("members of one version read each other"))?;
        if machine.applied().index <= log.hard.commit {
            sure = machine.revision();
        }
    }
}

fn broken(failed: StorageFailed) -> Violation {
    Violation::new(CHECK, failed.to_string())
}

fn look<R>(
    store: &MemoryStore,
    read: impl FnOnce(&dyn Read) -> Result<R, StorageFailed>,
) -> Result<R, Violation> {
    store.view(read).map_err(broken)
}

/// Everybody who was ever a member and of whom the state says that he is refused.
fn refused(store: &MemoryStore, ended: &Cluster) -> Result<Vec<NodeId>, Violation> {
    let mut refused = Vec::new();
    for id in ended.ids() {
        if look(store, |view| machine::read::standing(view, id))? == Standing::Removed {
            refused.push(id);
        }
    }
    Ok(refused)
}

fn stays_out(store: &MemoryStore, ids: impl Iterator<Item = NodeId>) -> Verdict {
    for id in ids {
        let standing = look(store, |view| machine::read::standing(view, id))?;
        if standing != Standing::Removed {
            return violation(CHECK, format!("{id} was refused, or a member, and is {standing:?} now"));
        }
    }
    Ok(())
}

/// The keys of a state at a revision are those that the changes up to `to` have left.
fn same_keys(store: &MemoryStore, revision: Revision, changes: &Changes, to: Revision) -> Verdict {
    let request = RangeRequest { range: KeyRange::all(), revision, ..RangeRequest::default() };
    let found = look(store, |view| machine::read::range(view, &request))?;
    let found = match found {
        Ok((_, response)) => response.kvs,
        Err(refusal) => return violation(CHECK, format!("revision {to} can't be read: {refusal}")),
    };
    let right = replay(changes.iter().take_while(|change| change.revision <= to));
    let right: Vec<KeyValue> = right.into_values().collect();
    if to <= changes.head() && found != right {
        return violation(CHECK, format!("at revision {to} there is {found:?}, should be {right:?}"));
    }
    Ok(())
}

fn replay<'a>(changes: impl Iterator<Item = &'a Change>) -> BTreeMap<Bytes, KeyValue> {
    let mut keys = BTreeMap::new();
    for event in changes.flat_map(|change| &change.events) {
        match event.kind {
            EventKind::Put => keys.insert(event.kv.key.clone(), event.kv.clone()),
            EventKind::Delete => keys.remove(&event.kv.key),
        };
    }
    keys
}

/// The first member of what follows.
pub(super) struct First {
    pub(super) cluster: ClusterId,
    pub(super) record: MemberRecord,
    pub(super) papers: Papers,
    pub(super) store: MemoryStore,
    pub(super) boundary: SnapshotMeta,
}

impl First {
    /// Where its log begins.
    pub(super) fn hard(&self) -> HardState {
        HardState { term: self.boundary.term, vote: NodeId(0), commit: self.boundary.index }
    }
}

/// A cluster that follows on another one, with a few clients and checks of its own.
struct Life {
    cluster: Cluster,
    elections: Elections,
    states: States,
    changes: Changes,
    base: Revision,
    acknowledged: BTreeMap<Ticket, Bytes>,
    told: BTreeMap<Revision, Bytes>,
    told_compacted: u64,
    old: Vec<NodeId>,
    turned_away: u64,
    done: u64,
}

impl Life {
    fn begin(
        seed: u64,
        ended: &Cluster,
        first: First,
        at: Duration,
        handed: Revision,
    ) -> Result<Self, Violation> {
        let base = look(&first.store, machine::read::current_revision)?;
        let compacted = look(&first.store, machine::read::compacted)?;
        if base <= handed || compacted < handed {
            let detail = format!("it begins at {base}, compacted at {compacted}; {handed} was handed out");
            return violation(CHECK, detail).map(|()| unreachable!("it is a violation"));
        }
        let options = ClusterOptions { text: false, ..ended.options().clone() };
        let old = ended.ids().collect();
        Ok(Self {
            cluster: Cluster::reborn(seed, options, first, ended.now().max(at)),
            elections: Elections::default(),
            states: States::default(),
            changes: Changes::after(base),
            base,
            acknowledged: BTreeMap::new(),
            told: BTreeMap::new(),
            told_compacted: 0,
            old,
            turned_away: 0,
            done: 0,
        })
    }

    fn live(&mut self, random: &mut ChaCha8Rng, back: Vec<Gone>) -> Verdict {
        let begun = self.cluster.now();
        for (place, gone) in back.into_iter().enumerate() {
            self.cluster.come_back(place + 1, gone);
        }
        self.run(begun + Duration::from_secs(2))?;
        // A watcher goes on from what it had before.
        let start_revision = random.random_range(FIRST..=self.base);
        let request = WatchRequest { start_revision, ..all_keys() };
        let watched = self.cluster.watch(0, request);
        assert!(watched.is_none_or(|it| it.is_ok()), "nothing is wrong with it");
        let mut number = 0;
        while self.cluster.now() < begun + DISTURBED {
            let host = random.random_range(0..self.cluster.hosts().len());
            number += 1;
            self.put(host, number, random);
            if random.random_bool(0.03) {
                self.cluster.crash(host, random.random_bool(0.5));
            }
            let pause = Duration::from_millis(random.random_range(10..300));
            self.run(self.cluster.now() + pause)?;
        }
        let hosts = self.cluster.hosts().len();
        while self.cluster.now() < begun + PATIENCE {
            if self.cluster.voters() == hosts && self.done > 0 && self.converged() {
                return self.end();
            }
            number += 1;
            if self.cluster.voters() < hosts || self.done == 0 {
                self.put(0, number, random);
            }
            self.run(self.cluster.now() + Duration::from_millis(500))?;
        }
        let at = |member: &Host| (member.id(), member.runs(), member.applied().map(|at| at.index));
        let members: Vec<_> = self.cluster.hosts().iter().map(at).collect();
        let voters = self.cluster.voters();
        let detail = format!("{voters} of {hosts} voters, {} writes done, {members:?}", self.done);
        violation(CHECK, detail)
    }

    fn put(&mut self, host: HostId, number: u64, random: &mut ChaCha8Rng) {
        let key = Bytes::from(format!("k{}", random.random_range(0..8)));
        let value = Bytes::from(format!("after{number}"));
        let put = PutRequest { key, value: value.clone(), ..PutRequest::default() };
        let what = What::Command { command: Command::Put(put), once: None };
        if let Some(ticket) = self.cluster.ask(host, what, Duration::from_secs(3)) {
            self.acknowledged.insert(ticket, value);
        }
    }

    fn converged(&self) -> bool {
        let at = |host: HostId| self.cluster.hosts()[host].applied().map(|at| at.index);
        let hosts = 1..self.cluster.hosts().len();
        at(0).is_some() && hosts.clone().all(|host| at(host) == at(0))
    }

    fn run(&mut self, until: Duration) -> Verdict {
        // Time passes also where nothing else happens any more.
        self.cluster.timer(until.saturating_sub(self.cluster.now()), 0);
        let mut happened = Vec::new();
        while self.cluster.next_at().is_some_and(|at| at <= until) {
            self.cluster.step(&mut happened);
            for happening in happened.drain(..) {
                self.judge(happening)?;
            }
        }
        Ok(())
    }

    fn judge(&mut self, happening: Happening) -> Verdict {
        match happening {
            Happening::Started(host) => self.states.started(host),
            Happening::Stopped(host, why) => return self.stopped(host, &why),
            Happening::Leadership(host, leadership) => {
                let id = self.cluster.hosts()[host].id();
                if leadership.leader == Some(id) {
                    if self.old.contains(&id) {
                        return violation(CHECK, format!("{id} of before leads in {leadership:?}"));
                    }
                    return self.elections.leads(leadership.term, id);
                }
            }
            Happening::Applied { host, at, revision, changes, .. } => {
                if self.old.contains(&self.cluster.hosts()[host].id()) {
                    return Ok(());
                }
                self.states.applied(host, at.index, revision)?;
                if at.index.is_multiple_of(COMPARE_EVERY) {
                    let hash = self.cluster.state_hash(host).map_err(broken)?;
                    self.states.hash(host, at.index, hash)?;
                }
                let now = self.cluster.now();
                return changes.iter().try_for_each(|change| self.changes.made(change, now));
            }
            Happening::Answer(_, ticket, result) => return self.answered(ticket, result),
            Happening::Watched(_, batch) => return self.watched(&batch),
            _ => {}
        }
        Ok(())
    }

    fn stopped(&mut self, host: HostId, why: &Stop) -> Verdict {
        match why {
            Stop::Removed => {
                self.turned_away += 1;
                self.cluster.join(host);
                Ok(())
            }
            Stop::Crashed | Stop::Clean => {
                self.cluster.restart(host, Duration::from_millis(400));
                Ok(())
            }
            Stop::Storage(_) | Stop::Behind | Stop::Older(_) => {
                violation(CHECK, format!("m{host} stopped: {why:?}"))
            }
        }
    }

    fn answered(&mut self, ticket: Ticket, result: Result<Told, Error>) -> Verdict {
        let Some(value) = self.acknowledged.remove(&ticket) else { return Ok(()) };
        match result {
            Ok(Told::Applied { revision, answer: Answer::Put(_), .. }) => {
                self.done += 1;
                self.told.insert(revision, value);
                if revision > self.base {
                    return Ok(());
                }
                violation(CHECK, format!("revision {revision} is told again; it began at {}", self.base))
            }
            Err(Error::Refused(Refusal::QuotaExceeded { .. })) => {
                // The quota came along: nothing is wrong with that.
                let command = Command::Quota { bytes: None };
                self.cluster.ask(0, What::Command { command, once: None }, Duration::from_secs(3));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn watched(&mut self, batch: &WatchBatch) -> Verdict {
        match batch {
            WatchBatch::Compacted(oldest) if *oldest >= self.base => {
                self.told_compacted += 1;
                Ok(())
            }
            batch => violation(CHECK, format!("a watcher of before was told {batch:?}")),
        }
    }

    fn end(&self) -> Verdict {
        let hashes: Result<Vec<u64>, _> =
            (0..self.cluster.hosts().len()).map(|host| self.cluster.state_hash(host)).collect();
        let hashes = hashes.map_err(broken)?;
        if hashes.iter().any(|hash| *hash != hashes[0]) {
            return violation(CHECK, format!("members have {hashes:x?}"));
        }
        for (revision, value) in &self.told {
            let wrote = self.changes.get(*revision).and_then(|change| change.events.first());
            if wrote.is_none_or(|event| event.kv.value != *value) {
                return violation(CHECK, format!("the write of {value:?} at {revision} is lost: {wrote:?}"));
            }
        }
        Ok(())
    }
}

fn all_keys() -> WatchRequest {
    WatchRequest {
        range: KeyRange::all(),
        start_revision: 0,
        no_put: false,
        no_delete: false,
        prev_kv: false,
        progress_notify: false,
    }
}
