//! Streams of many watchers over one hub: whoever has something gets its turn, and soon.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::types::{Change, Event, EventKind, KeyRange, KeyValue, Revision, WatchBatch, WatchRequest};
use crate::watch::{Hub, HubOptions, Poll, Ready, WatcherId};

#[derive(Clone, Debug)]
enum Step {
    /// One revision of these keys.
    Publish(Vec<u8>),
    /// Stream `0` takes so many turns.
    Turns(usize, usize),
}

fn change(revision: Revision, keys: &[u8]) -> Change {
    let event = |key: &u8| Event {
        kind: EventKind::Put,
        kv: KeyValue { key: vec![*key].into(), mod_revision: revision, ..KeyValue::default() },
        prev: None,
    };
    Change { revision, events: keys.iter().map(event).collect() }
}

/// One stream: a watcher on each of the keys 0 to 7, and one on all.
struct Stream {
    ids: Vec<WatcherId>,
    ready: Ready,
    got: Vec<Vec<Revision>>,
}

impl Stream {
    fn turn(&mut self, hub: &mut Hub) -> Result<bool, String> {
        let Some(number) = self.ready.take() else { return Ok(false) };
        let watcher = self.ids[number as usize];
        match hub.poll(watcher, 1) {
            Poll::Batch(WatchBatch::Changes(changes)) => {
                self.got[number as usize].extend(changes.iter().map(|change| change.revision));
            }
            Poll::Idle | Poll::Again => {}
            other => return Err(format!("everything is in memory, but a poll said {other:?}")),
        }
        if !hub.is_idle(watcher) {
            self.ready.wake(number);
        }
        Ok(true)
    }
}

fn run(steps: &[Step]) -> Result<(), String> {
    let mut hub = Hub::new(HubOptions::default(), 1);
    let mut owed: Vec<Vec<Revision>> = vec![Vec::new(); 9];
    let mut streams: Vec<Stream> = Vec::new();
    for _ in 0..3 {
        let ranges = (0u8..8).map(|key| KeyRange::key(vec![key])).chain([KeyRange::all()]);
        let request = |range| WatchRequest { range, ..WatchRequest::default() };
        let ids = ranges.map(|range| hub.add(request(range)).expect("it is valid")).collect();
        streams.push(Stream { ids, ready: Ready::default(), got: vec![Vec::new(); 9] });
    }
    for step in steps {
        match step {
            Step::Publish(keys) => {
                let revision = hub.head() + 1;
                keys.iter().for_each(|key| owed[*key as usize].push(revision));
                owed[8].push(revision);
                for woken in hub.publish(vec![change(revision, keys)]) {
                    for stream in &mut streams {
                        if let Some(number) = stream.ids.iter().position(|id| *id == woken) {
                            stream.ready.wake(number as i64);
                        }
                    }
                }
            }
            Step::Turns(stream, turns) => {
                for _ in 0..*turns {
                    streams[*stream].turn(&mut hub)?;
                }
            }
        }
    }
    for stream in &mut streams {
        while stream.turn(&mut hub)? {}
        if stream.got != owed {
            return Err(format!("owed {owed:?}, got {:?}", stream.got));
        }
        if stream.ids.iter().any(|id| hub.progress(*id) != Some(hub.head())) {
            return Err("nobody has anything, and yet not all are synced".into());
        }
    }
    Ok(())
}

fn search(cases: u32) -> Result<(), String> {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let keys = prop::collection::btree_set(0u8..8, 1..4).prop_map(|keys| keys.into_iter().collect());
    let step = prop_oneof![
        keys.prop_map(Step::Publish),
        (0usize..3, 1usize..6).prop_map(|(stream, turns)| Step::Turns(stream, turns)),
    ];
    let outcome =
        runner.run(&prop::collection::vec(step, 1..60), |steps| run(&steps).map_err(TestCaseError::fail));
    outcome.map_err(|failure| failure.to_string())
}

#[test]
fn every_stream_hears_of_each_of_its_watchers() {
    search(300).unwrap_or_else(|failure| panic!("{failure}"));
}

#[cfg(feature = "sim")]
#[test]
fn a_forgotten_waking_is_found() {
    use crate::planted::{Bug, with};
    assert!(with(Some(Bug::ForgetWaking), || search(100)).is_err());
}

#[test]
fn turns_are_taken_in_order_and_a_busy_one_goes_to_the_back() {
    let mut ready = Ready::default();
    for id in [3, 1, 2, 3, 1] {
        ready.wake(id);
    }
    assert_eq!(ready.take(), Some(3));
    ready.wake(3);
    ready.forget(2);
    ready.forget(9);
    assert_eq!((ready.len(), ready.take(), ready.take(), ready.take()), (2, Some(1), Some(3), None));
    assert!(ready.is_empty());
}
