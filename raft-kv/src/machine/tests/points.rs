//! Rollback points against a naive model: whole states are kept for every revision, and a rollback is
//! a comparison of two of them. Random histories, points, compactions, rollbacks, prefixes, leases,
//! crashes at every batch; two members that collect and crash apart.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::*;
use crate::limits::MAX_UNDO_POINTS;

/// Cases in a run of the tests.
pub const CASES: u32 = 200;

/// Keys that a step looks at: few, so that small rollbacks take several.
const STEP_KEYS: usize = 3;

const KEYS: [&str; 9] = ["a", "a/1", "a/2", "a/3", "b", "b/1", "b/2", "c", "\u{ff}z"];
const PREFIXES: [&str; 4] = ["", "a", "b/", "nothing"];
const LONG: &str = "3000000000000000000000000000000000000000000000000000000000000000000000003";

/// One thing that happens.
#[derive(Clone, Debug)]
enum Happens {
    Put(usize, u8, LeaseId),
    Delete(usize),
    DeletePrefix(usize),
    Grant(LeaseId),
    Revoke(LeaseId),
    Compact(u8),
    Point(u8, Option<u8>),
    Unpoint(u8),
    Rollback(u8, Option<usize>),
    Undo(u8),
    Raise,
    /// A step of physical removal, at the first or the second member.
    Collect(bool),
    CollectAll,
    Reopen,
    /// What was not flushed is lost, but for so many batches; raft applies it again.
    Crash(u8),
    Flush,
}

fn happens() -> impl Strategy<Value = Happens> {
    let key = || 0..KEYS.len();
    prop_oneof![
        14 => (key(), 0..4u8, prop_oneof![3 => Just(0i64), 2 => 1..3i64])
            .prop_map(|(key, value, lease)| Happens::Put(key, value, lease)),
        5 => key().prop_map(Happens::Delete),
        1 => (0..PREFIXES.len()).prop_map(Happens::DeletePrefix),
        3 => (1..3i64).prop_map(Happens::Grant),
        2 => (1..3i64).prop_map(Happens::Revoke),
        3 => (0..5u8).prop_map(Happens::Compact),
        5 => (0..5u8, prop_oneof![2 => Just(None), 1 => (0..9u8).prop_map(Some)])
            .prop_map(|(name, at)| Happens::Point(name, at)),
        3 => (0..5u8).prop_map(Happens::Unpoint),
        4 => (0..5u8, prop_oneof![1 => Just(None), 1 => (0..PREFIXES.len()).prop_map(Some)])
            .prop_map(|(name, prefix)| Happens::Rollback(name, prefix)),
        2 => (0..3u8).prop_map(Happens::Undo),
        1 => Just(Happens::Raise),
        4 => any::<bool>().prop_map(Happens::Collect),
        1 => Just(Happens::CollectAll),
        1 => Just(Happens::Reopen),
        3 => any::<u8>().prop_map(Happens::Crash),
        1 => Just(Happens::Flush),
    ]
}

fn weighted(happens: impl Strategy<Value = Happens>) -> impl Strategy<Value = Vec<Happens>> {
    prop::collection::vec(happens, 1..70)
}

type State = BTreeMap<Bytes, KeyValue>;
type Verdict = Result<(), TestCaseError>;

/// Everything that there ever was.
struct Naive {
    /// The state at each revision.
    states: BTreeMap<Revision, State>,
    /// The events of each revision.
    events: BTreeMap<Revision, Vec<Event>>,
    leases: Vec<LeaseId>,
    points: BTreeMap<String, Revision>,
    undo: Vec<String>,
    compacted: Revision,
    revision: Revision,
}

impl Naive {
    fn new() -> Self {
        Self {
            states: BTreeMap::from([(1, State::new())]),
            events: BTreeMap::new(),
            leases: Vec::new(),
            points: BTreeMap::new(),
            undo: Vec::new(),
            compacted: -1,
            revision: 1,
        }
    }

    fn now(&self) -> &State {
        &self.states[&self.revision]
    }

    fn readable(&self, revision: Revision) -> bool {
        let kept = revision >= self.compacted || self.points.values().any(|point| *point == revision);
        revision >= 1 && revision <= self.revision && kept && self.states.contains_key(&revision)
    }

    /// Makes a revision of these puts and deletes, if there are any.
    fn make(&mut self, wanted: Vec<(Bytes, Option<(Bytes, LeaseId)>)>) -> u64 {
        let (mut state, next) = (self.now().clone(), self.revision + 1);
        let mut events = Vec::new();
        for (key, value) in wanted {
            let prev = state.remove(&key);
            let mut kv = KeyValue { key: key.clone(), mod_revision: next, ..Default::default() };
            let kind = match value {
                Some((value, lease)) => {
                    kv.create_revision = prev.as_ref().map_or(next, |prev| prev.create_revision);
                    kv.version = prev.as_ref().map_or(1, |prev| prev.version + 1);
                    (kv.value, kv.lease) = (value, lease);
                    state.insert(key, kv.clone());
                    EventKind::Put
                }
                None => EventKind::Delete,
            };
            events.push(Event { kind, kv, prev });
        }
        let many = events.len() as u64;
        if many > 0 {
            self.revision = next;
            self.states.insert(next, state);
            self.events.insert(next, events);
        }
        many
    }

    /// What a rollback to a state does, by key.
    fn differences(&self, then: &State, prefix: &[u8]) -> Vec<(Bytes, Option<(Bytes, LeaseId)>)> {
        let mut keys: Vec<&Bytes> = then.keys().chain(self.now().keys()).collect();
        keys.sort();
        keys.dedup();
        let mut wanted = Vec::new();
        for key in keys.into_iter().filter(|key| key.starts_with(prefix)) {
            let lives = |id: LeaseId| if self.leases.contains(&id) { id } else { 0 };
            match (then.get(key), self.now().get(key)) {
                (None, Some(_)) => wanted.push((key.clone(), None)),
                (Some(then), None) => {
                    wanted.push((key.clone(), Some((then.value.clone(), lives(then.lease)))))
                }
                (Some(then), Some(now)) => {
                    let gone = then.lease != 0 && lives(then.lease) == 0;
                    if then.value != now.value || (then.lease != now.lease && !gone) {
                        wanted.push((key.clone(), Some((then.value.clone(), lives(then.lease)))));
                    }
                }
                (None, None) => unreachable!(),
            }
        }
        wanted
    }

    fn end_lease(&mut self, id: LeaseId) {
        let keys = self.now().values().filter(|kv| kv.lease == id);
        let wanted = keys.map(|kv| (kv.key.clone(), None)).collect();
        self.leases.retain(|lease| *lease != id);
        self.make(wanted);
    }
}

/// The machine, a second member that lives its own life, and the model.
struct World {
    one: Bench,
    two: Bench,
    naive: Naive,
    /// What raft would apply again after a crash.
    unflushed: Vec<Committed>,
    /// Numbers the commands.
    count: i64,
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, machine: T, model: T) -> Verdict {
    if machine == model {
        return Ok(());
    }
    Err(TestCaseError::fail(format!("{what}: the machine has {machine:?}, the model {model:?}")))
}

/// The newest revision, if a rollback just made it.
fn undo_revision(events: u64, naive: &Naive) -> Vec<Revision> {
    if events > 0 { vec![naive.revision] } else { Vec::new() }
}

/// The history from a revision on, read in the smallest parts there are.
fn in_parts(bench: &Bench, from: Revision) -> Result<Vec<Change>, TestCaseError> {
    let (mut place, to) = ((from, 0), bench.machine.revision());
    let mut all: Vec<Change> = Vec::new();
    while place.0 <= to {
        let read = bench.view(|view| read::history_in_parts(view, place, to, 1)).unwrap().unwrap();
        let (changes, rest) = match read {
            read::History::Whole(changes) => (changes, None),
            read::History::Part(change, rest) => (vec![change], Some(rest)),
        };
        same("changes at once", changes.len() <= 1, true)?;
        let Some(change) = changes.into_iter().next() else { break };
        if rest.is_some() || place.1 > 0 {
            same("events of a part", change.events.len() <= STEP_KEYS, true)?;
        }
        let revision = change.revision;
        match all.last_mut() {
            Some(last) if last.revision == revision => last.events.extend(change.events),
            _ => all.push(change),
        }
        place = rest.map_or((revision + 1, 0), |rest| (revision, rest));
    }
    Ok(all)
}

fn small(bench: Bench) -> Bench {
    Bench { machine: bench.machine.with_steps(STEP_KEYS), ..bench }
}

fn reopen(bench: &mut Bench) {
    bench.reopen();
    let machine = std::mem::replace(&mut bench.machine, Bench::new().machine);
    bench.machine = machine.with_steps(STEP_KEYS);
}

impl World {
    fn new() -> Self {
        let (one, two) = (small(Bench::new()), small(Bench::new()));
        Self { one, two, naive: Naive::new(), unflushed: Vec::new(), count: 0 }
    }

    /// Applies a command at both members.
    fn run(&mut self, command: Command) -> Result<(Result<Answer, Refusal>, Applied), TestCaseError> {
        let index = self.one.machine.applied().index + 1;
        let payload = self.one.proposals(&[(None, command)]);
        let entry = Committed { index, term: 1, payload };
        self.unflushed.push(entry.clone());
        let mut applied = self.one.machine.apply(vec![entry.clone()]).unwrap();
        same("what two members did", &self.two.machine.apply(vec![entry]).unwrap(), &applied)?;
        Ok((applied.outcomes.remove(0).result, applied))
    }

    fn put(&mut self, key: usize, value: u8, lease: LeaseId) -> Verdict {
        let value = ["", "1", "2", LONG][value as usize];
        let (key, value) = (bytes(KEYS[key]), bytes(value));
        let request = PutRequest { key: key.clone(), value: value.clone(), lease, ..Default::default() };
        let (result, _) = self.run(Command::Put(request))?;
        let allowed = lease == 0 || self.naive.leases.contains(&lease);
        same("a put is taken", result.is_ok(), allowed)?;
        if allowed {
            self.naive.make(vec![(key, Some((value, lease)))]);
        }
        Ok(())
    }

    fn delete(&mut self, range: KeyRange) -> Verdict {
        self.run(delete(range.clone()))?.0.unwrap();
        let keys = self.naive.now().keys().filter(|key| range.contains(key));
        let wanted = keys.map(|key| (key.clone(), None)).collect();
        self.naive.make(wanted);
        Ok(())
    }

    fn point(&mut self, name: u8, back: Option<u8>) -> Verdict {
        let name = format!("p{name}");
        let at = back.map(|back| self.naive.revision - i64::from(back));
        let (result, _) = self.run(create(&name, at, self.count))?;
        let revision = at.unwrap_or(self.naive.revision);
        let good = self.naive.readable(revision) && !self.naive.points.contains_key(&name);
        same(&format!("point {name} at {at:?} is made"), result.is_ok(), good)?;
        if good {
            self.naive.points.insert(name, revision);
        }
        Ok(())
    }

    fn rollback(&mut self, name: &str, prefix: Option<&str>) -> Verdict {
        let prefix = prefix.map(bytes);
        let Some(&to) = self.naive.points.get(name) else {
            return same("unknown point", self.run(rollback(name, prefix, 0))?.0.is_err(), true);
        };
        let before = self.naive.revision;
        let then = self.naive.states[&to].clone();
        let wanted = self.naive.differences(&then, prefix.as_ref().map_or(b"", |prefix| prefix));
        self.check_diff(name, prefix.clone(), &then, &wanted)?;
        let (result, applied) = self.run(rollback(name, prefix, self.count))?;
        let Ok(Answer::Point(PointReply::RolledBack(done))) = result else {
            return Err(TestCaseError::fail(format!("the rollback was answered {result:?}")));
        };
        let events = self.naive.make(wanted);
        let undo = (events > 0).then(|| undo_name(self.naive.revision));
        let expected = RolledBack {
            to,
            revision: self.naive.revision,
            compared: done.compared,
            events,
            undo: undo.clone(),
        };
        same("the rollback's answer", &done, &expected)?;
        same("compared at least", done.compared >= events, true)?;
        if let Some(undo) = undo {
            self.naive.points.insert(undo.clone(), before);
            self.naive.undo.retain(|name| self.naive.points.contains_key(name));
            self.naive.undo.push(undo);
            if self.naive.undo.len() > MAX_UNDO_POINTS {
                let oldest = self.naive.undo.remove(0);
                self.naive.points.remove(&oldest);
            }
        }
        let published = applied.changes;
        let large: Vec<Revision> =
            if published.is_empty() { undo_revision(events, &self.naive) } else { Vec::new() };
        same("large revisions", (applied.large, applied.raised), (large.clone(), false))?;
        if let Some(change) = published.first() {
            same("published events", &change.events, &self.naive.events[&change.revision])?;
        }
        same("published", published.len() + large.len(), usize::from(events > 0))
    }

    /// What is shown before a rollback is what it does.
    fn check_diff(
        &self,
        name: &str,
        prefix: Option<Bytes>,
        then: &State,
        wanted: &[(Bytes, Option<(Bytes, LeaseId)>)],
    ) -> Verdict {
        let mut found = Vec::new();
        let mut counts = DiffCounts::default();
        let limit = self.count as u64 % 4;
        let mut request = PointDiffRequest { point: name.into(), prefix, limit, ..Default::default() };
        loop {
            let page = self.one.view(|view| read::point_diff(view, &request)).unwrap().unwrap();
            same("a page's limit", limit == 0 || page.differences.len() as u64 <= limit, true)?;
            same("the diff's revision", page.to, self.naive.revision)?;
            counts = counts.plus(page.counts);
            found.extend(page.differences);
            let Some(next) = page.next else { break };
            (request.after, request.revision) = (Some(next), page.to);
        }
        let expected: Vec<Difference> = wanted
            .iter()
            .map(|(key, _)| Difference {
                key: key.clone(),
                then: then.get(key).cloned(),
                now: self.naive.now().get(key).cloned(),
            })
            .collect();
        same("counted", counts.differing(), expected.len() as u64)?;
        let created = expected.iter().filter(|one| one.then.is_none()).count();
        let deleted = expected.iter().filter(|one| one.now.is_none()).count();
        same("kinds", (counts.created, counts.deleted), (created as u64, deleted as u64))?;
        same("the difference", found, expected)
    }

    fn happen(&mut self, what: &Happens) -> Verdict {
        self.count += 1;
        match *what {
            Happens::Put(key, value, lease) => self.put(key, value, lease),
            Happens::Delete(key) => self.delete(KeyRange::key(KEYS[key])),
            Happens::DeletePrefix(prefix) => self.delete(KeyRange::prefix(PREFIXES[prefix])),
            Happens::Grant(id) => {
                let (result, _) = self.run(Command::LeaseGrant { id, ttl: 60 })?;
                same("a lease is granted", result.is_ok(), !self.naive.leases.contains(&id))?;
                if result.is_ok() {
                    self.naive.leases.push(id);
                }
                Ok(())
            }
            Happens::Revoke(id) => {
                let (result, _) = self.run(Command::LeaseRevoke { id })?;
                same("a lease is revoked", result.is_ok(), self.naive.leases.contains(&id))?;
                if result.is_ok() {
                    self.naive.end_lease(id);
                }
                Ok(())
            }
            Happens::Compact(back) => {
                let revision = self.naive.revision - i64::from(back);
                let (result, _) = self.run(Command::Compact { revision })?;
                same("a compaction is taken", result.is_ok(), revision > self.naive.compacted)?;
                self.naive.compacted = self.naive.compacted.max(revision);
                Ok(())
            }
            Happens::Point(name, back) => self.point(name, back),
            Happens::Unpoint(name) => {
                let name = format!("p{name}");
                let (result, _) = self.run(Command::Point(PointChange::Remove { name: name.clone() }))?;
                same("a point is removed", result.is_ok(), self.naive.points.remove(&name).is_some())
            }
            Happens::Rollback(name, prefix) => {
                self.rollback(&format!("p{name}"), prefix.map(|prefix| PREFIXES[prefix]))
            }
            Happens::Undo(back) => {
                let known = self.naive.undo.iter().rev().nth(usize::from(back)).cloned();
                self.rollback(&known.unwrap_or_else(|| "none".into()), None)
            }
            Happens::Raise => {
                let to = self.naive.revision + 1;
                self.run(Command::RaiseRevision { to })?.0.unwrap();
                let state = self.naive.now().clone();
                self.naive.states.insert(to, state);
                (self.naive.revision, self.naive.compacted) = (to, to);
                self.naive.points.clear();
                self.naive.undo.clear();
                Ok(())
            }
            Happens::Collect(first) => {
                if first { &mut self.one } else { &mut self.two }.machine.collect().unwrap();
                Ok(())
            }
            Happens::CollectAll => {
                self.one.collect_all();
                Ok(())
            }
            Happens::Reopen => {
                reopen(&mut self.one);
                Ok(())
            }
            Happens::Crash(keep) => self.crash(keep),
            Happens::Flush => {
                self.one.machine.store().flush().unwrap();
                self.unflushed.clear();
                Ok(())
            }
        }
    }

    /// The first member falls back to some batch, in the midst of an entry perhaps; every read is then
    /// one of a state that there was. Then it is brought level.
    fn crash(&mut self, keep: u8) -> Verdict {
        let store = self.one.machine.store().clone();
        store.crash(usize::from(keep) % (store.unflushed() + 1));
        reopen(&mut self.one);
        let revision = self.one.machine.revision();
        self.check_state(&self.one, revision)?;
        // Another member takes the state as it is now for its own, and goes on from there too.
        let mut third = Bench { machine: Machine::open(store.snapshot()).unwrap().unwrap(), term: 1 };
        third = small(third);
        // Nothing may be removed that a half done entry still needs.
        self.one.machine.collect().unwrap();
        let applied = self.one.machine.applied().index;
        for entry in std::mem::take(&mut self.unflushed) {
            if entry.index > applied {
                third.machine.apply(vec![entry.clone()]).unwrap();
                self.one.machine.apply(vec![entry]).unwrap();
            }
        }
        store.flush().unwrap();
        same("hash after a crash", third.hash(), self.one.hash())
    }

    /// The newest state, however it is asked for, is that of the revision.
    fn check_state(&self, bench: &Bench, revision: Revision) -> Verdict {
        let state = &self.naive.states[&revision];
        let expected: Vec<KeyValue> = state.values().cloned().collect();
        let all = RangeRequest { range: KeyRange::all(), ..Default::default() };
        same("the newest state", &bench.range(&all).unwrap().kvs, &expected)?;
        same("live bytes and keys", quota::noted(bench), quota::counted(&expected))?;
        let txn = TxnRequest {
            compares: expected
                .iter()
                .map(|kv| Compare {
                    range: KeyRange::key(kv.key.clone()),
                    op: CompareOp::Equal,
                    target: CompareTarget::Mod(kv.mod_revision),
                })
                .collect(),
            success: vec![TxnOp::Range(all)],
            failure: Vec::new(),
        };
        let answer = bench.view(|view| read::txn_read_only(view, &txn)).unwrap().unwrap().1;
        let Some(TxnOpResponse::Range(range)) = answer.responses.into_iter().next() else {
            return Err(TestCaseError::fail("a transaction sees another state"));
        };
        same("the newest state in a transaction", range.kvs, expected)?;
        for id in [1, 2] {
            let keys = bench.view(|view| read::lease_keys(view, id)).unwrap();
            let of = state.values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone());
            same(&format!("keys of lease {id}"), keys, of.collect())?;
        }
        let newest = bench.history(bench.machine.compacted().max(1)).unwrap();
        let beyond = newest.iter().any(|change| change.revision > revision);
        same("events beyond the newest revision", beyond, false)
    }

    fn check(&self) -> Verdict {
        let naive = &self.naive;
        for bench in [&self.one, &self.two] {
            same("revision", bench.machine.revision(), naive.revision)?;
            self.check_state(bench, naive.revision)?;
            for revision in 1..=naive.revision {
                let request = RangeRequest { range: KeyRange::all(), revision, ..Default::default() };
                let expected = naive.readable(revision).then(|| naive.states[&revision].values().cloned());
                let found = bench.range(&request).ok().map(|response| response.kvs);
                same(&format!("all keys at {revision}"), found, expected.map(Iterator::collect))?;
                for key in ["a", "b/1"] {
                    let expected =
                        naive.readable(revision).then(|| naive.states[&revision].get(key.as_bytes()));
                    let request = RangeRequest { range: KeyRange::key(key), ..request.clone() };
                    let found = bench.range(&request).ok().map(|response| response.kvs.into_iter().next());
                    same(&format!("{key} at {revision}"), found, expected.map(Option::<&_>::cloned))?;
                }
            }
            let compacted = naive.compacted.max(1);
            let expected: Vec<Change> = naive
                .events
                .range(compacted..)
                .map(|(&revision, events)| {
                    let mut events = events.clone();
                    if revision <= naive.compacted {
                        events.iter_mut().for_each(|event| event.prev = None);
                    }
                    Change { revision, events }
                })
                .collect();
            same("events", &bench.history(compacted).unwrap(), &expected)?;
            same("events in parts", in_parts(bench, compacted)?, expected)?;
            let points: BTreeMap<String, Revision> = bench
                .view(read::points)
                .unwrap()
                .into_iter()
                .map(|point| (point.name, point.revision))
                .collect();
            same("points", &points, &naive.points)?;
        }
        same("hash", self.one.hash(), self.two.hash())?;
        let keys = |bench: &Bench| bench.view(|view| read::hash_kv(view, 0)).unwrap();
        same("hash of keys", keys(&self.one), keys(&self.two))
    }

    /// After collecting everything nothing is left that neither the history nor a point can see.
    fn check_garbage(&mut self) -> Verdict {
        self.one.collect_all();
        self.two.collect_all();
        self.check()?;
        let compacted = self.naive.compacted;
        let pins: Vec<Revision> = self.naive.points.values().copied().collect();
        for bench in [&self.one, &self.two] {
            bench.view(|view| -> Verdict {
                let mut values = 0;
                for pair in view.scan(Table::Past, b"", None) {
                    let past: format::Superseded = format::decode(Table::Past, pair.unwrap().1).unwrap();
                    let seen = pins.iter().any(|pin| past.stored.mod_revision <= *pin && *pin < past.end);
                    same(&format!("{past:?} is kept for something"), past.end > compacted || seen, true)?;
                    values += usize::from(matches!(past.stored.value, format::Held::Apart(_)));
                }
                for pair in view.scan(Table::Live, b"", None) {
                    let live: format::Stored = format::decode(Table::Live, pair.unwrap().1).unwrap();
                    values += usize::from(matches!(live.value, format::Held::Apart(_)));
                }
                same("values", view.scan(Table::Values, b"", None).count(), values)?;
                if pins.is_empty() {
                    same("changed keys", view.scan(Table::Changed, b"", None).count(), 0)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

pub fn create(name: &str, at: Option<Revision>, now: i64) -> Command {
    Command::Point(PointChange::Create {
        name: name.into(),
        at,
        expires: None,
        author: "ann".into(),
        comment: "before the upgrade".into(),
        now,
    })
}

pub fn rollback(point: &str, prefix: Option<Bytes>, now: i64) -> Command {
    Command::Point(PointChange::Rollback { point: point.into(), prefix, author: "ann".into(), now })
}

fn check(steps: &[Happens]) -> Verdict {
    let mut world = World::new();
    for step in steps {
        world.happen(step)?;
        world.check()?;
    }
    // Every point that is left still leads back to exactly its state.
    world.check_garbage()?;
    for name in world.naive.points.clone().into_keys() {
        world.rollback(&name, None)?;
        world.check()?;
    }
    world.check_garbage()
}

/// Runs so many cases; the smallest failing one is looked for in so many attempts.
pub fn run(cases: u32, max_shrink_iters: u32) -> Result<(), String> {
    let config = Config { cases, failure_persistence: None, max_shrink_iters, ..Config::default() };
    // A fixed seed: the same cases on every machine and every run.
    let rng = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    runner.run(&weighted(happens()), |steps| check(&steps)).map_err(|error| error.to_string())
}

#[test]
fn points_keep_what_they_see_and_rollbacks_are_exact() {
    if let Err(error) = run(CASES, 4000) {
        panic!("{error}");
    }
}
