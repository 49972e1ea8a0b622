//! The watch guarantees against a plain log, and etcd's historical bugs by name.

use super::*;
use crate::types::{KeyRange, KeyValue};

fn kv(key: &str, revision: Revision) -> KeyValue {
    KeyValue {
        key: Bytes::copy_from_slice(key.as_bytes()),
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        value: Bytes::from(revision.to_string()),
        lease: 0,
    }
}

fn put(key: &str, revision: Revision) -> Event {
    Event { kind: EventKind::Put, kv: kv(key, revision), prev: Some(kv(key, revision - 1)) }
}

fn delete(key: &str, revision: Revision) -> Event {
    let gone = KeyValue {
        key: Bytes::copy_from_slice(key.as_bytes()),
        mod_revision: revision,
        ..KeyValue::default()
    };
    Event { kind: EventKind::Delete, kv: gone, prev: Some(kv(key, revision - 1)) }
}

fn change(revision: Revision, keys: &str) -> Change {
    Change { revision, events: keys.split(' ').map(|key| put(key, revision)).collect() }
}

/// A hub and the store's history behind it.
struct World {
    hub: Hub,
    log: BTreeMap<Revision, Change>,
    /// The store may be ahead of the hub in this.
    compacted: Revision,
}

const EVERYTHING: usize = usize::MAX;

impl World {
    /// At revision 1, as an empty store is.
    fn new(ring_bytes: usize) -> Self {
        Self { hub: Hub::new(HubOptions { ring_bytes }, 1), log: BTreeMap::new(), compacted: 0 }
    }

    fn publish(&mut self, change: Change) -> Vec<WatcherId> {
        self.log.insert(change.revision, change.clone());
        self.hub.publish(vec![change])
    }

    /// Puts the same keys at each of the revisions.
    fn fill(&mut self, revisions: std::ops::RangeInclusive<Revision>, keys: &str) -> Vec<WatcherId> {
        revisions.flat_map(|revision| self.publish(change(revision, keys))).collect()
    }

    /// Publishes a revision by its keys alone, two at a time; says who has to read it.
    fn publish_large(&mut self, change: &Change) -> Vec<WatcherId> {
        self.hub.begin_large();
        for some in change.events.chunks(2) {
            let keys: Vec<_> = some.iter().map(|event| (event.kind, event.kv.key.clone())).collect();
            self.hub.note_large(change.revision, &keys);
        }
        self.hub.publish_large(change.revision)
    }

    fn watch(&mut self, range: KeyRange, start_revision: Revision) -> WatcherId {
        self.hub.add(WatchRequest { range, start_revision, ..WatchRequest::default() }).unwrap()
    }

    fn read(&self, from: Revision, to: Revision) -> Result<Vec<Change>, Compacted> {
        if from < self.compacted {
            return Err(Compacted(self.compacted));
        }
        Ok(self.log.range(from..=to).map(|(_, change)| change.clone()).collect())
    }

    /// Polls until idle; reads at most `slice` revisions of history at a time.
    fn drain(&mut self, id: WatcherId, max_bytes: usize, slice: Revision) -> Vec<WatchBatch> {
        let mut batches = Vec::new();
        loop {
            match self.hub.poll(id, max_bytes) {
                Poll::Idle => return batches,
                Poll::Again => {}
                Poll::Batch(batch) => batches.push(batch),
                Poll::ReadPart { .. } => panic!("no part was supplied"),
                Poll::Read { from, to } => {
                    assert!(from <= to && to <= self.hub.head());
                    let read_to = to.min(from + slice - 1);
                    batches.extend(self.hub.supply(id, self.read(from, read_to), read_to));
                }
            }
        }
    }

    /// The revisions that a watcher gets now.
    fn revisions(&mut self, id: WatcherId) -> Vec<Revision> {
        let batches = self.drain(id, EVERYTHING, 3);
        batches.iter().flat_map(changes_of).map(|change| change.revision).collect()
    }
}

fn changes_of(batch: &WatchBatch) -> &[Change] {
    match batch {
        WatchBatch::Changes(changes) => changes,
        other => panic!("events were expected, not {other:?}"),
    }
}

#[test]
fn only_the_watchers_concerned_wake_and_once() {
    let mut world = World::new(1 << 20);
    let key = world.watch(KeyRange::key("a"), 0);
    let prefix = world.watch(KeyRange::prefix("b"), 0);
    let all = world.watch(KeyRange::all(), 0);
    assert_eq!(world.publish(change(2, "a")), [key, all]);
    assert_eq!(world.publish(change(3, "a b1 b2")), [prefix]);
    assert_eq!(world.revisions(key), [2, 3]);
    assert_eq!(world.revisions(prefix), [3]);
    assert_eq!(world.revisions(all), [2, 3]);
    assert_eq!(world.hub.poll(all, EVERYTHING), Poll::Idle);
    world.hub.remove(key);
    world.hub.remove(key);
    assert_eq!(world.publish(change(4, "a")), [all]);
    assert_eq!(world.hub.poll(key, EVERYTHING), Poll::Idle);
}

#[test]
fn what_does_not_concern_an_idle_watcher_makes_it_read_nothing() {
    let mut world = World::new(300);
    let id = world.watch(KeyRange::key("a"), 0);
    assert!(world.fill(2..=100, "b").is_empty());
    world.compacted = 90;
    world.hub.compacted(90);
    assert_eq!(world.publish(change(101, "a")), [id]);
    assert_eq!(
        world.hub.poll(id, EVERYTHING),
        Poll::Batch(WatchBatch::Changes(vec![Change {
            revision: 101,
            events: vec![Event { prev: None, ..put("a", 101) }],
        }]))
    );
}

#[test]
fn filters_and_previous_values_are_as_asked() {
    let mut world = World::new(1 << 20);
    let ask = |no_put, no_delete, prev_kv| WatchRequest {
        range: KeyRange::all(),
        no_put,
        no_delete,
        prev_kv,
        ..WatchRequest::default()
    };
    let [puts, deletes, prev] = [ask(false, true, false), ask(true, false, false), ask(false, false, true)]
        .map(|request| world.hub.add(request).unwrap());
    let both = Change { revision: 2, events: vec![put("a", 2), delete("b", 2)] };
    world.publish(both.clone());
    assert!(world.publish(change(3, "c")).is_empty());
    let mut events = |id| {
        let batches = world.drain(id, EVERYTHING, 1);
        batches.iter().flat_map(changes_of).flat_map(|change| change.events.clone()).collect::<Vec<_>>()
    };
    let bare = |event: Event| Event { prev: None, ..event };
    assert_eq!(events(puts), [bare(put("a", 2)), bare(put("c", 3))]);
    assert_eq!(events(deletes), [bare(delete("b", 2))]);
    assert_eq!(events(prev), [put("a", 2), delete("b", 2), put("c", 3)]);
}

#[test]
fn a_revision_is_never_split() {
    let mut world = World::new(1 << 20);
    let id = world.watch(KeyRange::all(), 0);
    world.fill(2..=3, "a b c d e f");
    world.publish(change(4, "a"));
    let batches = world.drain(id, 1, 1);
    let sizes: Vec<usize> = batches.iter().map(|batch| changes_of(batch)[0].events.len()).collect();
    assert_eq!(sizes, [6, 6, 1]);
}

fn check_refusal(range: KeyRange, start_revision: Revision, expect: &Refusal) {
    let mut world = World::new(1 << 20);
    let request = WatchRequest { range, start_revision, ..WatchRequest::default() };
    assert_eq!(world.hub.add(request).as_ref(), Err(expect));
    assert!(world.hub.is_empty());
}

#[test]
fn bad_requests_are_refused() {
    check_refusal(KeyRange::span("b", "a"), 0, &Refusal::EmptyRange);
    check_refusal(KeyRange::span("a", "a"), 0, &Refusal::EmptyRange);
    check_refusal(KeyRange::key("a"), -1, &Refusal::NegativeRevision { revision: -1 });
    let long = vec![b'x'; limits::MAX_KEY_BYTES + 1];
    let refusal = Refusal::KeyTooLarge { len: long.len() as u64, max: limits::MAX_KEY_BYTES as u64 };
    check_refusal(KeyRange::key(long.clone()), 0, &refusal);
    check_refusal(KeyRange::span("a", long), 0, &refusal);
}

#[test]
fn an_empty_key_is_the_smallest_key_as_in_etcd() {
    let mut world = World::new(1 << 20);
    let all = world.watch(KeyRange::span("", "\0"), 0);
    let one = world.watch(KeyRange::key(""), 0);
    assert_eq!(world.publish(change(2, "a")), [all]);
    assert_eq!(world.publish(change(3, "\0")), [one]);
    assert_eq!(world.revisions(all), [2, 3]);
}

#[test]
fn compacted_history_is_told_once_and_ends_the_watch() {
    let mut world = World::new(300);
    world.fill(2..=20, "a");
    world.compacted = 10;
    world.hub.compacted(10);
    let below = world.watch(KeyRange::key("a"), 9);
    assert_eq!(world.drain(below, EVERYTHING, 3), [WatchBatch::Compacted(10)]);
    assert!(world.drain(below, EVERYTHING, 3).is_empty());
    assert_eq!(world.hub.progress(below), None);
    assert!(world.publish(change(21, "a")).is_empty());
    let at = world.watch(KeyRange::key("a"), 10);
    assert_eq!(world.revisions(at), (10..=21).collect::<Vec<_>>());
}

#[test]
fn compaction_takes_nothing_that_is_still_in_memory() {
    let mut world = World::new(1 << 20);
    let id = world.watch(KeyRange::key("a"), 0);
    world.fill(2..=20, "a");
    world.compacted = 15;
    world.hub.compacted(15);
    assert_eq!(world.revisions(id), (2..=20).collect::<Vec<_>>());
}

/// etcd #17529: a watcher that was too slow for its channel ("victim") lost events.
#[test]
fn etcd_17529_a_starved_watcher_loses_nothing() {
    let mut world = World::new(500);
    let slow = world.watch(KeyRange::prefix("a"), 0);
    let mut got = Vec::new();
    for round in 0..50 {
        let first = 2 + round * 10;
        world.fill(first..=first + 9, "a1 b a2");
        // One small poll a round, or one slice of history, while ten revisions come in.
        match world.hub.poll(slow, 1) {
            Poll::Batch(batch) => got.extend(changes_of(&batch).iter().map(|change| change.revision)),
            Poll::Read { from, .. } => {
                let batch = world.hub.supply(slow, world.read(from, from), from);
                got.extend(batch.iter().flat_map(changes_of).map(|change| change.revision));
            }
            Poll::Idle | Poll::Again | Poll::ReadPart { .. } => panic!("it is owed events"),
        }
    }
    assert_eq!(got, (2..=51).collect::<Vec<_>>());
    got.extend(world.revisions(slow));
    assert_eq!(got, (2..=501).collect::<Vec<_>>());
}

/// etcd #18089: compaction overtook an unsynced watcher, whose events were lost silently.
#[test]
fn etcd_18089_compaction_that_overtakes_a_watcher_is_told() {
    // The store compacts between the hub's question and the read.
    let mut world = World::new(300);
    let id = world.watch(KeyRange::key("a"), 0);
    world.fill(2..=50, "a");
    let Poll::Read { from, to } = world.hub.poll(id, EVERYTHING) else { panic!("it is behind the ring") };
    world.compacted = 30;
    let history = world.read(from, to);
    assert_eq!(world.hub.supply(id, history, to), Some(WatchBatch::Compacted(30)));
    assert!(world.drain(id, EVERYTHING, 3).is_empty());
    // The hub hears of it while the watcher is half way through.
    let mut world = World::new(300);
    let id = world.watch(KeyRange::key("a"), 0);
    world.fill(2..=50, "a");
    let Poll::Read { from, .. } = world.hub.poll(id, EVERYTHING) else { panic!("it is behind the ring") };
    assert!(world.hub.supply(id, world.read(from, 10), 10).is_some());
    world.hub.compacted(30);
    assert_eq!(world.drain(id, EVERYTHING, 3), [WatchBatch::Compacted(30)]);
    // A read that was made before the compaction is whole, and counts.
    let mut world = World::new(300);
    let id = world.watch(KeyRange::key("a"), 0);
    world.fill(2..=50, "a");
    let Poll::Read { from, to } = world.hub.poll(id, EVERYTHING) else { panic!("it is behind the ring") };
    let history = world.read(from, to);
    world.hub.compacted(30);
    assert!(matches!(world.hub.supply(id, history, to), Some(WatchBatch::Changes(_))));
    assert_eq!(world.revisions(id).last(), Some(&50));
}

/// etcd #15271: after a snapshot was restored, watchers got events a second time.
#[test]
fn etcd_15271_a_snapshot_repeats_and_skips_nothing() {
    let mut world = World::new(1 << 20);
    let idle = world.watch(KeyRange::key("a"), 0);
    let behind = world.watch(KeyRange::key("a"), 0);
    let other = world.watch(KeyRange::key("b"), 0);
    let future = world.watch(KeyRange::key("a"), 40);
    world.fill(2..=10, "a");
    assert_eq!(world.revisions(idle), (2..=10).collect::<Vec<_>>());
    for revision in 11..=30 {
        world.log.insert(revision, change(revision, "a"));
    }
    assert_eq!(world.hub.advance(30), [idle, other]);
    assert_eq!(world.hub.progress(idle), None);
    world.publish(change(31, "a"));
    assert_eq!(world.revisions(idle), (11..=31).collect::<Vec<_>>());
    assert_eq!(world.revisions(behind), (2..=31).collect::<Vec<_>>());
    assert!(world.revisions(other).is_empty());
    assert_eq!(world.hub.progress(other), Some(31));
    // A jump over the start of a future watcher: from its start on.
    for revision in 32..=45 {
        world.log.insert(revision, change(revision, "a"));
    }
    assert!(world.hub.advance(45).contains(&future));
    assert_eq!(world.revisions(future), (40..=45).collect::<Vec<_>>());
    assert!(world.hub.advance(45).is_empty());
}

/// etcd #20221: a watcher with a future start got older events and progress notices.
#[test]
fn etcd_20221_a_future_watcher_gets_nothing_older() {
    let mut world = World::new(300);
    let id = world.watch(KeyRange::key("a"), 10);
    assert!(world.fill(2..=8, "a").is_empty());
    assert_eq!(world.hub.progress(id), None);
    assert!(world.hub.advance(9).is_empty());
    assert_eq!(world.hub.progress(id), None);
    assert_eq!(world.hub.poll(id, EVERYTHING), Poll::Idle);
    assert_eq!(world.fill(10..=10, "a"), [id]);
    assert_eq!(world.revisions(id), [10]);
    assert_eq!(world.hub.progress(id), Some(10));
    // Its start passes without an event of its own.
    let quiet = world.watch(KeyRange::key("q"), 12);
    world.fill(11..=11, "a");
    assert_eq!(world.hub.progress(quiet), None);
    world.fill(12..=12, "a");
    assert_eq!(world.hub.progress(quiet), Some(12));
}

/// etcd #15220: a progress notice overtook events that were still on their way.
#[test]
fn etcd_15220_progress_never_overtakes_events() {
    let mut world = World::new(300);
    let id = world.watch(KeyRange::key("a"), 0);
    assert_eq!(world.hub.progress(id), Some(1));
    world.fill(2..=20, "a");
    assert_eq!(world.hub.progress(id), None);
    while let Poll::Read { from, .. } = world.hub.poll(id, EVERYTHING) {
        assert_eq!(world.hub.progress(id), None);
        world.hub.supply(id, world.read(from, from), from);
    }
    // That last poll took the rest out of the ring.
    assert_eq!(world.hub.progress(id), Some(20));
    let late = world.watch(KeyRange::key("a"), 2);
    assert_eq!(world.hub.progress(late), None);
}

#[test]
fn an_answer_given_twice_moves_nothing() {
    let mut world = World::new(300);
    let id = world.watch(KeyRange::key("a"), 0);
    world.fill(2..=30, "a");
    let Poll::Read { from, .. } = world.hub.poll(id, EVERYTHING) else { panic!("it is behind the ring") };
    assert!(world.hub.supply(id, world.read(from, 10), 10).is_some());
    assert_eq!(world.hub.supply(id, world.read(from, 10), 10), None);
    assert!(matches!(world.hub.poll(id, EVERYTHING), Poll::Read { from: 11, .. }));
    assert_eq!(world.hub.supply(id, world.read(from, 10), 10), None);
    assert_eq!(world.revisions(id), (11..=30).collect::<Vec<_>>());
    world.hub.remove(id);
    assert_eq!(world.hub.supply(id, world.read(2, 10), 10), None);
}

#[path = "guarantee_tests.rs"]
mod guarantees;

/// What a watcher of `range` is handed of a revision that is read in parts of `size` events, and of
/// the one behind it; the events of each batch, with what kind of batch it is.
fn in_parts(range: KeyRange, size: usize) -> Vec<String> {
    let told = batches_in_parts(range, size);
    let keys = |change: &Change| {
        let keys = change.events.iter().map(|event| String::from_utf8_lossy(&event.kv.key).into_owned());
        format!("{}:{}", change.revision, keys.collect::<String>())
    };
    told.iter()
        .map(|batch| match batch {
            WatchBatch::Part(change) => format!("part {}", keys(change)),
            WatchBatch::Changes(changes) => changes.iter().map(keys).collect::<Vec<_>>().join(" "),
            WatchBatch::Progress(revision) => format!("progress {revision}"),
            WatchBatch::Compacted(revision) => format!("compacted {revision}"),
        })
        .collect()
}

fn batches_in_parts(range: KeyRange, size: usize) -> Vec<WatchBatch> {
    let mut world = World::new(1 << 20);
    let id = world.watch(range, 0);
    let large = change(2, "a b c d e f g");
    // Nothing of it is in memory.
    world.publish_large(&large);
    world.publish(change(3, "a"));
    let records: Vec<Change> =
        large.events.chunks(size).map(|events| Change { revision: 2, events: events.to_vec() }).collect();
    let mut told = Vec::new();
    for _ in 0..20 {
        let part = match world.hub.poll(id, EVERYTHING) {
            Poll::Idle => return told,
            Poll::Batch(batch) => {
                told.push(batch);
                continue;
            }
            Poll::Read { from: 2, .. } => 0,
            Poll::ReadPart { revision: 2, part } => part,
            other => panic!("{other:?}"),
        };
        let rest = (records.len() > part as usize + 1).then_some(part + 1);
        let record = &records[part as usize];
        told.extend(world.hub.supply_part(id, part, record, rest));
        assert_eq!(world.hub.supply_part(id, part, record, rest), None, "an answer given twice");
    }
    panic!("it never ends: {told:?}")
}

pub fn parts() {
    let all = KeyRange::all;
    assert_eq!(in_parts(all(), 7), ["2:abcdefg", "3:a"]);
    assert_eq!(in_parts(all(), 3), ["part 2:abc", "part 2:def", "2:g", "3:a"]);
    // Who was handed a part hears of the end; who was handed none hears nothing.
    assert_eq!(in_parts(KeyRange::key("b"), 3), ["part 2:b", "progress 2"]);
    assert_eq!(in_parts(KeyRange::key("g"), 3), ["2:g"]);
    assert_eq!(in_parts(KeyRange::key("x"), 3), Vec::<String>::new());
    assert_eq!(in_parts(KeyRange::span("c", "e"), 2), ["part 2:cd", "progress 2"]);
}

#[test]
fn a_revision_too_large_to_be_held_comes_in_parts() {
    parts();
}

#[test]
fn a_large_revision_wakes_those_alone_that_it_concerns() {
    let mut world = World::new(1 << 20);
    let one = world.watch(KeyRange::key("c"), 0);
    let other = world.watch(KeyRange::prefix("x"), 0);
    let later = world.watch(KeyRange::all(), 3);
    let deletes = WatchRequest { range: KeyRange::all(), no_put: true, ..WatchRequest::default() };
    let deletes = world.hub.add(deletes).unwrap();
    assert_eq!(world.publish_large(&change(2, "a b c d")), [one]);
    assert_eq!(world.hub.poll(other, EVERYTHING), Poll::Idle);
    assert_eq!(world.hub.poll(one, EVERYTHING), Poll::Read { from: 2, to: 2 });
    assert_eq!((world.hub.head(), world.hub.progress(deletes)), (2, Some(2)));
    assert_eq!(world.publish(change(3, "x")).len(), 2);
    // One that comes, and one that goes, in the midst of it.
    world.hub.begin_large();
    world.hub.note_large(4, &[(EventKind::Put, Bytes::from_static(b"x"))]);
    world.hub.remove(later);
    let new = world.watch(KeyRange::key("x"), 0);
    world.drain(other, EVERYTHING, 1);
    assert_eq!(world.hub.publish_large(4), [other, new]);
    assert_eq!(world.publish(change(5, "x")), []);
}

#[cfg(feature = "sim")]
#[test]
fn a_dropped_part_is_noticed() {
    let found =
        crate::planted::with(Some(crate::planted::Bug::DropParts), || std::panic::catch_unwind(parts));
    assert!(found.is_err(), "DropParts was not found");
}
