//! The parts that use the disk: the raft log with its syncs, and the state machine on RocksDB. The
//! folder is `$BENCH_DIR`, or one for temporary files: it must be on the disk that is to be measured.

use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use raft_kv::machine::{Machine, Store, read};
use raft_kv::raft::LogView;
use raft_kv::storage::files::FolderFiles;
use raft_kv::storage::log::{Identity, Log, Options};
use raft_kv::storage::rocks::StateOptions;
use raft_kv::storage::state::State;
use raft_kv::types::{ClusterId, Committed, HardState, KeyRange, NodeId, RangeRequest, SnapshotMeta};
use raft_kv_benches::data;
use tempfile::TempDir;

/// Bytes of an entry in the log.
const ENTRY_BYTES: usize = 300;
/// Keys below a range that is read.
const KEYS: u64 = 10_000;
/// Entries after which the log is cut, so that segments are used again.
const CUT: u64 = 20_000;

fn folder() -> TempDir {
    let root = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    tempfile::Builder::new().prefix("bench-").tempdir_in(root).expect("the folder can be made")
}

fn log(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("log: append entries of 300 B and sync");
    for batch in [1, 16, 128] {
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
            let dir = folder();
            let files = FolderFiles::open(dir.path()).unwrap();
            let identity = Identity { cluster: ClusterId(1), node: NodeId(1) };
            let boundary = SnapshotMeta { index: 1, term: 1, ..SnapshotMeta::default() };
            let hard = HardState { term: 1, commit: 1, ..HardState::default() };
            let (mut log, mut writer) =
                Log::create(files, Options::default(), identity, boundary, hard).unwrap();
            let (mut number, mut cut) = (0, 1);
            let mut next = || {
                number += 1;
                number
            };
            bencher.iter_batched(
                || (),
                |()| {
                    let from = log.last_index() + 1;
                    let entries: Vec<_> =
                        (from..from + batch).map(|index| data::entry(index, ENTRY_BYTES)).collect();
                    let write = log.stage(next(), None, &entries);
                    writer.write(write).unwrap();
                    if log.last_index() > cut + CUT {
                        cut = log.last_index();
                        let meta = SnapshotMeta { index: cut, term: 1, ..SnapshotMeta::default() };
                        let write = log.stage_cut(next(), &meta);
                        writer.write(write).unwrap();
                    }
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn machine(dir: &TempDir) -> Machine<State> {
    let state = State::open(&dir.path().join("state"), StateOptions::default()).unwrap();
    Machine::create(&state, &data::genesis()).unwrap();
    Machine::open(state).unwrap().unwrap()
}

fn apply(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("machine on RocksDB: apply an entry");
    for puts in [1, 64, 256] {
        group.throughput(Throughput::Elements(puts));
        group.bench_function(BenchmarkId::from_parameter(puts), |bencher| {
            let dir = folder();
            let mut machine = machine(&dir);
            let mut index = 1;
            let entry = || {
                index += 1;
                data::committed(index, index * puts, puts)
            };
            bencher.iter_batched(
                entry,
                |entry: Committed| machine.apply(vec![entry]).unwrap(),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn range(criterion: &mut Criterion) {
    let dir = folder();
    let mut machine = machine(&dir);
    for index in 0..KEYS / 100 {
        machine.apply(vec![data::committed(index + 2, index * 100, 100)]).unwrap();
    }
    let request = RangeRequest {
        range: KeyRange::span(format!("key/{:012}", KEYS / 2), "key0"),
        limit: 100,
        ..RangeRequest::default()
    };
    criterion.bench_function("machine on RocksDB: read 100 of 10000 keys", |bencher| {
        bencher.iter(|| {
            let (_, found) = machine.store().view(|view| read::range(view, &request)).unwrap().unwrap();
            assert_eq!(found.kvs.len(), 100);
        });
    });
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .without_plots()
}

criterion_group! { name = disk; config = settings(); targets = log, apply, range }
criterion_main!(disk);
