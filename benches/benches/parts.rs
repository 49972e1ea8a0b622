//! The parts that do no I/O of their own: codec, consensus, watch; and the state machine on the
//! simulator's store (feature `memory`).

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use raft_kv::codec::Wire;
use raft_kv::machine::Proposal;
use raft_kv::raft::{Core, Input, Options, PeerMessage};
use raft_kv::types::{
    Change, ConfState, Event, EventKind, Index, KeyRange, KeyValue, NodeId, Revision, SnapshotMeta,
    WatchRequest,
};
use raft_kv::watch::{Hub, HubOptions, Poll};
use raft_kv_benches::data;
use raft_kv_benches::memory_log::{MemoryLog, Written};

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec of a put");
    let encoded = data::proposals(0, 1);
    let decoded = Vec::<Proposal>::from_bytes(encoded.clone()).unwrap();
    group.throughput(Throughput::Bytes(encoded.len() as u64));
    group.bench_function("encode", |bencher| bencher.iter(|| black_box(&decoded).to_bytes()));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| Vec::<Proposal>::from_bytes(black_box(encoded.clone())).unwrap());
    });
    group.finish();
}

/// Two members whose messages and writes arrive at once.
struct Pair([Core<MemoryLog>; 2]);

impl Pair {
    /// The first leads.
    fn new() -> Self {
        let conf = ConfState { voters: vec![NodeId(1), NodeId(2)], ..ConfState::default() };
        let boundary = SnapshotMeta { index: 1, term: 1, conf: conf.clone() };
        let core = |id| {
            let options = Options { id: NodeId(id), seed: id, applied: 1, conf: conf.clone() };
            Core::new(options, MemoryLog::new(boundary.clone())).unwrap()
        };
        let mut pair = Self([core(1), core(2)]);
        pair.settle(vec![(0, Input::Campaign)]);
        assert!(pair.0[0].leadership().ready);
        pair
    }

    /// Until nothing is on its way any more; the messages that were.
    fn settle(&mut self, mut inputs: Vec<(usize, Input<Written>)>) -> Vec<PeerMessage> {
        let mut seen = Vec::new();
        while let Some((at, input)) = inputs.pop() {
            let out = self.0[at].step(input).unwrap();
            if let Some(last) = out.committed.last() {
                inputs.push((at, Input::Applied(last.index)));
            }
            inputs.extend(out.writes.last().map(|&number| (at, Input::Durable(Written(number)))));
            for (to, message) in out.messages {
                seen.push(message.clone());
                inputs.push((to.0 as usize - 1, Input::Messages(vec![(NodeId(at as u64 + 1), message)])));
            }
        }
        seen
    }

    fn propose(&mut self, entry: Bytes) -> Vec<PeerMessage> {
        self.settle(vec![(0, Input::Propose { entries: vec![entry] })])
    }

    fn committed(&self) -> Index {
        self.0[0].status().commit
    }
}

fn consensus(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("consensus");
    let entry = data::proposals(0, 16);
    let messages = Pair::new().propose(entry.clone());
    let append = messages.into_iter().find(|message| message.entry_count() > 0).expect("an append went out");
    let encoded = append.to_bytes();
    group.bench_function("encode an append of 16 puts", |bencher| bencher.iter(|| append.to_bytes()));
    group.bench_function("decode an append of 16 puts", |bencher| {
        bencher.iter(|| PeerMessage::from_bytes(black_box(encoded.clone())).unwrap());
    });
    group.bench_function("an entry of 16 puts through two members, vetted and committed", |bencher| {
        let mut pair = Pair::new();
        let before = pair.committed();
        bencher.iter(|| pair.propose(entry.clone()));
        assert!(pair.committed() > before);
    });
    group.finish();
}

fn change(revision: Revision) -> Change {
    let key = Bytes::from(format!("key/{:04}", revision % 1000));
    let kv = KeyValue {
        key,
        mod_revision: revision,
        create_revision: revision,
        version: 1,
        value: data::value(),
        lease: 0,
    };
    Change { revision, events: vec![Event { kind: EventKind::Put, kv, prev: None }] }
}

fn watch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("watch: publish and deliver a put");
    for (name, watchers, range) in [
        ("1 watcher of all", 1, KeyRange::all()),
        ("1000 watchers of all", 1000, KeyRange::all()),
        ("1000 watchers elsewhere", 1000, KeyRange::prefix("other/")),
    ] {
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            let mut hub = Hub::new(HubOptions::default(), 1);
            for _ in 0..watchers {
                let id = hub.add(WatchRequest { range: range.clone(), ..WatchRequest::default() }).unwrap();
                assert_eq!(hub.poll(id, usize::MAX), Poll::Idle);
            }
            let mut revision = 1;
            bencher.iter(|| {
                revision += 1;
                for id in hub.publish(vec![change(revision)]) {
                    while hub.poll(id, usize::MAX) != Poll::Idle {}
                }
            });
        });
    }
    group.finish();
}

#[cfg(feature = "memory")]
fn machine(criterion: &mut Criterion) {
    use raft_kv::machine::{Machine, MemoryStore};
    let mut group = criterion.benchmark_group("machine on memory: apply an entry");
    for puts in [1, 64, 256] {
        group.throughput(Throughput::Elements(puts));
        group.bench_function(BenchmarkId::from_parameter(puts), |bencher| {
            let store = MemoryStore::new();
            Machine::create(&store, &data::genesis()).unwrap();
            let mut machine = Machine::open(store).unwrap().unwrap();
            let mut index = 1;
            bencher.iter_batched(
                || {
                    index += 1;
                    data::committed(index, index * puts, puts)
                },
                |entry| machine.apply(vec![entry]).unwrap(),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

#[cfg(not(feature = "memory"))]
fn machine(_: &mut Criterion) {
    // Keeps the imports of both forms alike.
    let _ = BatchSize::PerIteration;
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .without_plots()
}

criterion_group! { name = parts; config = settings(); targets = codec, consensus, watch, machine }
criterion_main!(parts);
