//! The six guarantees (ordered, unique, reliable, atomic, resumable, bookmarkable) for random
//! watchers over random histories, against a plain list of all changes.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// One revision: key, and whether it is deleted.
    Publish(Vec<(u8, bool)>),
    /// Revisions that arrive by a snapshot.
    Jump(Vec<Vec<(u8, bool)>>),
    Watch {
        range: KeyRange,
        start: i64,
        no_put: bool,
        no_delete: bool,
        prev_kv: bool,
    },
    /// Polls the watcher once: which, bytes, how much history is read, how the store compacts
    /// between question and read.
    Poll {
        who: usize,
        max_bytes: usize,
        slice: i64,
        compact_between: bool,
    },
    /// Compacts this many revisions behind the head.
    Compact(i64),
    Progress(usize),
    Remove(usize),
}

fn keys() -> impl Strategy<Value = Vec<(u8, bool)>> {
    prop::collection::btree_map(0u8..8, any::<bool>(), 1..4).prop_map(|keys| keys.into_iter().collect())
}

fn range() -> impl Strategy<Value = KeyRange> {
    let key = |number: u8| vec![b'k', number];
    prop_oneof![
        (0u8..8).prop_map(move |number| KeyRange::key(key(number))),
        (0u8..7, 1u8..4).prop_map(move |(from, len)| KeyRange::span(key(from), key(from + len))),
        (0u8..8).prop_map(move |from| KeyRange::span(key(from), &b"\0"[..])),
        Just(KeyRange::all()),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let watch = (range(), -12i64..8, any::<[bool; 3]>());
    let poll = (any::<usize>(), prop_oneof![Just(1usize), Just(600), Just(usize::MAX)], 1i64..6, 0u8..8);
    prop_oneof![
        8 => keys().prop_map(Step::Publish),
        1 => prop::collection::vec(keys(), 1..5).prop_map(Step::Jump),
        3 => watch.prop_map(|(range, start, [no_put, no_delete, prev_kv])| {
            Step::Watch { range, start, no_put: no_put && !no_delete, no_delete, prev_kv }
        }),
        10 => poll.prop_map(|(who, max_bytes, slice, compact)| {
            Step::Poll { who, max_bytes, slice, compact_between: compact == 0 }
        }),
        1 => (0i64..10).prop_map(Step::Compact),
        4 => any::<usize>().prop_map(Step::Progress),
        1 => any::<usize>().prop_map(Step::Remove),
    ]
}

/// What one watcher asked for and what it was given.
struct Witness {
    id: WatcherId,
    request: WatchRequest,
    start: Revision,
    future: bool,
    got: Vec<Change>,
    compacted: bool,
}

impl Witness {
    /// What it is owed of `[start, to]`: the list, filtered. Names what differs.
    fn check(&self, log: &BTreeMap<Revision, Change>, to: Revision) -> Result<(), String> {
        let mut owed = Vec::new();
        for change in log.values().filter(|change| change.revision >= self.start && change.revision <= to) {
            let mut events = change.events.clone();
            events.retain(|event| {
                let kind =
                    if event.kind == EventKind::Put { !self.request.no_put } else { !self.request.no_delete };
                kind && self.request.range.contains(&event.kv.key)
            });
            if !self.request.prev_kv {
                events.iter_mut().for_each(|event| event.prev = None);
            }
            if !events.is_empty() {
                owed.push(Change { revision: change.revision, events });
            }
        }
        // One comparison holds it all: order, no repeat, no gap, whole revisions, right filters.
        if owed == self.got {
            return Ok(());
        }
        let revisions = |changes: &[Change]| changes.iter().map(|change| change.revision).collect::<Vec<_>>();
        Err(format!(
            "watcher {} up to {to}: owed {:?}, got {:?}",
            self.id,
            revisions(&owed),
            revisions(&self.got)
        ))
    }

    fn last(&self) -> Revision {
        self.got.last().map_or(self.start - 1, |change| change.revision)
    }

    fn take(
        &mut self,
        batch: WatchBatch,
        log: &BTreeMap<Revision, Change>,
        compacted: Revision,
    ) -> Result<(), String> {
        if self.compacted {
            return Err(format!("watcher {} got {batch:?} after its end", self.id));
        }
        match batch {
            WatchBatch::Changes(changes) => {
                self.got.extend(changes);
                // Resumable: behind any batch nothing older is missing.
                self.check(log, self.last())
            }
            WatchBatch::Compacted(at) => {
                self.compacted = true;
                // The hub may not have heard of the store's newest compaction yet.
                if at > compacted || self.last() + 1 >= at {
                    return Err(format!("watcher {} was told {at}, the store says {compacted}", self.id));
                }
                Ok(())
            }
            WatchBatch::Progress(_) | WatchBatch::Part(_) => {
                Err("a poll never makes progress notes, nor parts of what was supplied whole".into())
            }
        }
    }
}

struct Run {
    world: World,
    witnesses: Vec<Witness>,
    /// How much happened: batches, reads, compactions told, bookmarks.
    counts: [usize; 4],
}

impl Run {
    fn change(&self, revision: Revision, keys: &[(u8, bool)]) -> Change {
        let events = keys.iter().map(|(number, gone)| {
            let key = format!("k{}", *number as char);
            if *gone { delete(&key, revision) } else { put(&key, revision) }
        });
        Change { revision, events: events.collect() }
    }

    fn poll(
        &mut self,
        who: usize,
        max_bytes: usize,
        slice: i64,
        compact_between: bool,
    ) -> Result<bool, String> {
        let world = &mut self.world;
        let witness = &mut self.witnesses[who];
        let batch = match world.hub.poll(witness.id, max_bytes) {
            Poll::Idle => return Ok(false),
            Poll::Again => None,
            Poll::Batch(batch) => Some(batch),
            Poll::ReadPart { .. } => unreachable!("no part was supplied"),
            Poll::Read { from, to } => {
                self.counts[1] += 1;
                if compact_between {
                    world.compacted = world.compacted.max(world.hub.head() - 2);
                }
                let read_to = to.min(from + slice - 1);
                let history = world.read(from, read_to);
                world.hub.supply(witness.id, history, read_to)
            }
        };
        if let Some(batch) = batch {
            self.counts[0] += 1;
            self.counts[2] += usize::from(matches!(batch, WatchBatch::Compacted(_)));
            witness.take(batch, &world.log, world.compacted)?;
        }
        Ok(true)
    }

    fn watch(&mut self, request: WatchRequest) {
        let head = self.world.hub.head();
        let start = if request.start_revision == 0 { head + 1 } else { request.start_revision };
        let id = self.world.hub.add(request.clone()).unwrap();
        let witness =
            Witness { id, request, start, future: start > head + 1, got: Vec::new(), compacted: false };
        self.witnesses.push(witness);
    }

    fn progress(&mut self, who: usize) -> Result<(), String> {
        let witness = &self.witnesses[who];
        let Some(revision) = self.world.hub.progress(witness.id) else { return Ok(()) };
        self.counts[3] += 1;
        if witness.future && revision < witness.start {
            return Err(format!("progress {revision} before the start {}", witness.start));
        }
        // Bookmarkable: everything up to it was handed out, nothing behind it.
        witness.check(&self.world.log, revision)
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        let who = |number: usize, of: &[Witness]| (!of.is_empty()).then(|| number % of.len());
        match step {
            Step::Publish(keys) => {
                let change = self.change(self.world.hub.head() + 1, keys);
                self.world.publish(change);
            }
            Step::Jump(revisions) => {
                for keys in revisions {
                    let revision = self.world.log.last_key_value().map_or(2, |(last, _)| last + 1);
                    self.world.log.insert(revision, self.change(revision, keys));
                }
                self.world.hub.advance(*self.world.log.last_key_value().unwrap().0);
            }
            Step::Watch { range, start, no_put, no_delete, prev_kv } => {
                let start_revision = if *start == 0 { 0 } else { (self.world.hub.head() + start).max(1) };
                let (range, no_put, no_delete, prev_kv) = (range.clone(), *no_put, *no_delete, *prev_kv);
                self.watch(WatchRequest {
                    range,
                    start_revision,
                    no_put,
                    no_delete,
                    prev_kv,
                    ..Default::default()
                });
            }
            Step::Poll { who: number, max_bytes, slice, compact_between } => {
                if let Some(who) = who(*number, &self.witnesses) {
                    self.poll(who, *max_bytes, *slice, *compact_between)?;
                }
            }
            Step::Compact(behind) => {
                self.world.compacted = self.world.compacted.max(self.world.hub.head() - behind);
                self.world.hub.compacted(self.world.compacted);
            }
            Step::Progress(number) => {
                if let Some(who) = who(*number, &self.witnesses) {
                    self.progress(who)?;
                }
            }
            Step::Remove(number) => {
                if let Some(who) = who(*number, &self.witnesses) {
                    let witness = self.witnesses.remove(who);
                    self.world.hub.remove(witness.id);
                }
            }
        }
        Ok(())
    }

    /// Everyone is polled to the end: each has all it is owed, or was told of the compaction.
    fn finish(&mut self) -> Result<(), String> {
        let head = self.world.hub.head();
        for who in 0..self.witnesses.len() {
            while self.poll(who, 600, 4, false)? {}
            if !self.witnesses[who].compacted {
                self.witnesses[who].check(&self.world.log, head)?;
            }
            self.progress(who)?;
        }
        Ok(())
    }
}

fn run(steps: &[Step], ring_bytes: usize) -> Result<[usize; 4], String> {
    let mut run = Run { world: World::new(ring_bytes), witnesses: Vec::new(), counts: [0; 4] };
    for step in steps {
        run.step(step)?;
    }
    run.finish()?;
    Ok(run.counts)
}

/// Runs `cases` random histories from a fixed seed; the first failure, or how much happened.
fn search(cases: u32) -> Result<[usize; 4], String> {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let total = std::cell::Cell::new([0; 4]);
    let steps = (
        prop::collection::vec(step(), 1..120),
        prop_oneof![Just(0usize), Just(700), Just(2500), Just(1 << 20)],
    );
    let outcome = runner.run(&steps, |(steps, ring_bytes)| {
        let counts = run(&steps, ring_bytes).map_err(TestCaseError::fail)?;
        let before = total.get();
        total.set(std::array::from_fn(|at| before[at] + counts[at]));
        Ok(())
    });
    outcome.map(|()| total.get()).map_err(|failure| failure.to_string())
}

#[test]
fn every_watcher_gets_what_it_is_owed() {
    let counts = search(500).unwrap_or_else(|failure| panic!("{failure}"));
    // A search in which too little happened proves nothing.
    assert!(counts.into_iter().all(|count| count > 200), "{counts:?}");
}

#[cfg(feature = "sim")]
#[test]
fn planted_bugs_are_found() {
    use crate::planted::{Bug, with};
    for bug in [Bug::DropEvent, Bug::ForgetEvicted, Bug::ProgressOvertakes] {
        let found = with(Some(bug), || search(300));
        assert!(found.is_err(), "{bug:?} was not found");
    }
}
