//! Random commands, batches, restarts, crashes and collection steps; after each batch the
//! machine must answer every question as the model does.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::model::Model;
use super::*;

/// Cases in a run of the tests.
pub const CASES: u32 = 256;

/// Values that lie apart from their records.
const LONG: &str = "10000000000000000000000000000000000000000000000000000000000000001";
const LONGER: &str = "2000000000000000000000000000000000000000000000000000000000000000000000";

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Step {
    /// Entries, each with commands, applied as one batch.
    Apply(Vec<Vec<Command>>),
    /// A new leader.
    Term,
    /// A step of physical removal.
    Collect,
    /// The process ends and starts.
    Reopen,
    /// What was not flushed is lost; raft applies it again.
    Crash,
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["a", "a", "ab", "a\0", "b", "b", "c", "\0", "d\u{7f}", "e"]).prop_map(bytes)
}

fn rarely_empty_key() -> impl Strategy<Value = Bytes> {
    prop_oneof![60 => key(), 1 => Just(Bytes::new())]
}

fn key_range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        6 => rarely_empty_key().prop_map(KeyRange::key),
        3 => (rarely_empty_key(), key()).prop_map(|(a, b)| KeyRange::span(a.clone().min(b.clone()), a.max(b))),
        1 => (key(), key()).prop_map(|(a, b)| KeyRange::span(a, b)),
        1 => Just(KeyRange::all()),
        1 => key().prop_map(|key| KeyRange::span(key, bytes("\0"))),
    ]
}

fn revision() -> impl Strategy<Value = Revision> {
    prop_oneof![6 => Just(0i64), 1 => Just(-1), 9 => 1..40i64, 1 => Just(i64::MAX)]
}

pub fn range_request() -> impl Strategy<Value = RangeRequest> {
    let bound = || prop_oneof![5 => Just(0i64), 1 => 1..30i64, 1 => -2..0i64];
    let order = prop::sample::select(vec![SortOrder::None, SortOrder::Ascend, SortOrder::Descend]);
    let target = prop::sample::select(vec![
        SortTarget::Key,
        SortTarget::Key,
        SortTarget::Version,
        SortTarget::Create,
        SortTarget::Mod,
        SortTarget::Value,
    ]);
    let limit = prop_oneof![4 => Just(0i64), 4 => 1..5i64, 1 => Just(i64::MAX), 1 => -3..0i64];
    (
        (key_range(), limit, revision(), order, target),
        (prop::bool::weighted(0.2), prop::bool::weighted(0.1), prop::bool::ANY),
        (bound(), bound(), bound(), bound()),
    )
        .prop_map(|((range, limit, revision, sort_order, sort_target), flags, bounds)| RangeRequest {
            range,
            limit,
            revision,
            sort_order,
            sort_target,
            keys_only: flags.0,
            count_only: flags.1,
            serializable: flags.2,
            min_mod_revision: bounds.0,
            max_mod_revision: bounds.1,
            min_create_revision: bounds.2,
            max_create_revision: bounds.3,
        })
}

fn lease() -> impl Strategy<Value = LeaseId> {
    prop_oneof![8 => 1..4i64, 1 => Just(i64::MAX), 1 => Just(-1i64)]
}

fn put_request() -> impl Strategy<Value = PutRequest> {
    let value = prop::sample::select(vec!["", "1", "2", "22", LONG, LONGER]).prop_map(bytes);
    let lease = prop_oneof![3 => Just(0), 2 => lease()];
    let flag = || prop::bool::weighted(0.1);
    (rarely_empty_key(), value, lease, prop::bool::ANY, flag(), flag()).prop_map(
        |(key, value, lease, prev_kv, ignore_value, ignore_lease)| PutRequest {
            key,
            value: if ignore_value && lease != 2 { Bytes::new() } else { value },
            lease: if ignore_lease && lease != 3 { 0 } else { lease },
            prev_kv,
            ignore_value,
            ignore_lease,
        },
    )
}

fn delete_request() -> impl Strategy<Value = DeleteRequest> {
    (key_range(), prop::bool::ANY).prop_map(|(range, prev_kv)| DeleteRequest { range, prev_kv })
}

fn compare() -> impl Strategy<Value = Compare> {
    let op = prop::sample::select(vec![
        CompareOp::Equal,
        CompareOp::NotEqual,
        CompareOp::Greater,
        CompareOp::Less,
    ]);
    let target = prop_oneof![
        (0..4i64).prop_map(CompareTarget::Version),
        (0..20i64).prop_map(CompareTarget::Create),
        (0..20i64).prop_map(CompareTarget::Mod),
        prop::sample::select(vec!["", "1", "2"]).prop_map(|value| CompareTarget::Value(bytes(value))),
        (0..4i64).prop_map(CompareTarget::Lease),
    ];
    (key_range(), op, target).prop_map(|(range, op, target)| Compare { range, op, target })
}

fn txn_of(op: impl Strategy<Value = TxnOp> + Clone) -> impl Strategy<Value = TxnRequest> {
    let list = || prop::collection::vec(op.clone(), 0..4);
    (prop::collection::vec(compare(), 0..3), list(), list())
        .prop_map(|(compares, success, failure)| TxnRequest { compares, success, failure })
}

fn txn_request() -> impl Strategy<Value = TxnRequest> {
    let leaf = prop_oneof![
        3 => put_request().prop_map(TxnOp::Put),
        2 => range_request().prop_map(|mut request| {
            // Ranges out of bounds refuse the whole transaction: keep most of them in.
            request.limit = request.limit.max(0);
            request.revision = if request.revision > 9 { 0 } else { request.revision };
            TxnOp::Range(request)
        }),
        1 => key().prop_map(|key| TxnOp::Delete(DeleteRequest { range: KeyRange::key(key), prev_kv: true })),
        1 => delete_request().prop_map(TxnOp::Delete),
    ];
    let op = leaf.prop_recursive(3, 12, 3, |inner| txn_of(inner.boxed()).prop_map(TxnOp::Txn).boxed());
    txn_of(op)
}

/// Writes a key and then looks at it, within one transaction.
fn look_back() -> impl Strategy<Value = TxnRequest> {
    (put_request(), compare(), range_request()).prop_map(|(put, mut compare, mut read)| {
        compare.range = KeyRange::key(put.key.clone());
        read.range = KeyRange::key(put.key.clone());
        (read.revision, read.limit) = (0, read.limit.max(0));
        let nested =
            TxnRequest { compares: vec![compare], success: vec![TxnOp::Range(read)], failure: Vec::new() };
        let success = vec![TxnOp::Put(put), TxnOp::Txn(nested)];
        TxnRequest { success, ..Default::default() }
    })
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        12 => put_request().prop_map(Command::Put),
        5 => delete_request().prop_map(Command::Delete),
        8 => txn_request().prop_map(Command::Txn),
        2 => look_back().prop_map(Command::Txn),
        2 => prop_oneof![8 => 0..40i64, 1 => Just(i64::MAX), 1 => -2..0i64]
            .prop_map(|revision| Command::Compact { revision }),
        4 => (prop_oneof![1..4i64, lease()], prop_oneof![1..9i64, Just(-1), Just(i64::MAX)])
            .prop_map(|(id, ttl)| Command::LeaseGrant { id, ttl }),
        1 => lease().prop_map(|id| Command::LeaseRevoke { id }),
        2 => (prop::collection::vec(lease(), 0..4), 1..4u64)
            .prop_map(|(ids, term)| Command::LeaseExpire { ids, term }),
        1 => Just(Command::Noop),
        1 => prop_oneof![8 => 0..60i64, 1 => Just(i64::MAX), 1 => Just(-1)]
            .prop_map(|to| Command::RaiseRevision { to }),
    ]
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let entry = prop::collection::vec(command(), 1..4);
    let step = prop_oneof![
        20 => prop::collection::vec(entry, 1..3).prop_map(Step::Apply),
        1 => Just(Step::Term),
        4 => Just(Step::Collect),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..30)
}

type Verdict = Result<(), TestCaseError>;

fn same<T: PartialEq + std::fmt::Debug>(what: &str, machine: T, model: T) -> Verdict {
    if machine == model {
        return Ok(());
    }
    Err(TestCaseError::fail(format!("{what}: the machine has {machine:?}, the model {model:?}")))
}

/// Which of the duplicates is named is the machine's choice.
fn unnamed<T>(result: Result<T, Refusal>) -> Result<T, Refusal> {
    result.map_err(|refusal| match refusal {
        Refusal::DuplicateKey { .. } => Refusal::DuplicateKey { key: String::new() },
        refusal => refusal,
    })
}

pub fn check(steps: &[Step], reads: &[RangeRequest]) -> Verdict {
    let mut bench = Bench::new();
    let mut model = Model::new();
    // A second member that gets every entry alone and never collects.
    let mut other = Bench::new();
    // What raft would apply again after a crash.
    let mut unflushed: Vec<Vec<Committed>> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Apply(entries) => {
                let first = bench.machine.applied().index + 1;
                let committed: Vec<Committed> = entries
                    .iter()
                    .enumerate()
                    .map(|(at, commands)| {
                        let named: Vec<_> = commands.iter().map(|one| (None, one.clone())).collect();
                        Committed {
                            index: first + at as u64,
                            term: bench.term,
                            payload: bench.proposals(&named),
                        }
                    })
                    .collect();
                apply(&mut bench, &mut model, entries, committed.clone())?;
                for entry in &committed {
                    other.machine.apply(vec![entry.clone()]).unwrap();
                }
                unflushed.push(committed);
            }
            Step::Term => bench.term += 1,
            Step::Collect => drop(bench.machine.collect().unwrap()),
            Step::Reopen => bench.reopen(),
            Step::Crash => {
                let store = bench.machine.store().clone();
                store.crash(number % (store.unflushed() + 1));
                bench.reopen();
                let applied = bench.machine.applied().index;
                for mut batch in std::mem::take(&mut unflushed) {
                    batch.retain(|entry| entry.index > applied);
                    bench.machine.apply(batch).unwrap();
                }
                store.flush().unwrap();
            }
        }
        compare_all(&bench, &model, reads)?;
        same("hash", bench.hash(), other.hash())?;
    }
    bench.collect_all();
    compare_all(&bench, &model, reads)?;
    same("hash", bench.hash(), other.hash())?;
    garbage_is_gone(&bench)
}

fn apply(
    bench: &mut Bench,
    model: &mut Model,
    entries: &[Vec<Command>],
    committed: Vec<Committed>,
) -> Verdict {
    let (changes_before, leases_before) = (model.changes.len(), model.leases.clone());
    let applied = bench.machine.apply(committed).unwrap();
    let mut outcomes = applied.outcomes.into_iter();
    for command in entries.iter().flatten() {
        let expected = model.apply(command, bench.term);
        let outcome = outcomes.next().ok_or_else(|| TestCaseError::fail("an outcome is missing"))?;
        same(&format!("answer to {command:?}"), unnamed(outcome.result), unnamed(expected))?;
        same(&format!("revision after {command:?}"), outcome.revision, model.revision())?;
    }
    same("further outcomes", outcomes.next(), None)?;
    same("changes", applied.changes, model.changes[changes_before..].to_vec())?;
    let mut leases = leases_before;
    for change in applied.leases {
        match change {
            LeaseChange::Granted { id, ttl } => drop(leases.insert(id, ttl)),
            LeaseChange::Ended { id } => drop(leases.remove(&id)),
        }
    }
    same("leases by their changes", &leases, &model.leases)?;
    same("last", applied.last, bench.machine.applied().index)
}

fn compare_all(bench: &Bench, model: &Model, reads: &[RangeRequest]) -> Verdict {
    same("revision", bench.machine.revision(), model.revision())?;
    same("compacted", bench.machine.compacted(), model.compacted)?;
    // The whole state at every revision, and just outside of them.
    for revision in -1..=model.revision() + 1 {
        let all = RangeRequest { range: KeyRange::all(), revision, ..Default::default() };
        same(&format!("all keys at {revision}"), bench.range(&all), model.range(&all))?;
        let one = RangeRequest { range: KeyRange::key(bytes("a")), revision, ..Default::default() };
        same(&format!("one key at {revision}"), bench.range(&one), model.range(&one))?;
    }
    let newest = model.range(&RangeRequest { range: KeyRange::all(), ..Default::default() });
    same("live bytes and keys", quota::noted(bench), quota::counted(&newest.unwrap().kvs))?;
    for request in reads {
        same(&format!("answer to {request:?}"), bench.range(request), model.range(request))?;
    }
    for from in -1..=model.revision() + 1 {
        same(&format!("history from {from}"), bench.history(from), model.history(from))?;
    }
    let leases: Vec<(LeaseId, i64)> = model.leases.iter().map(|(id, ttl)| (*id, *ttl)).collect();
    same("leases", bench.view(read::leases).unwrap(), leases)?;
    for id in [-1, 0, 1, 2, 3, i64::MAX] {
        let keys = bench.view(|view| read::lease_keys(view, id)).unwrap();
        same(&format!("keys of lease {id}"), keys, model.lease_keys(id))?;
    }
    Ok(())
}

/// After collecting everything no version is left that ended at or before the compacted revision,
/// and no record of a revision below it.
fn garbage_is_gone(bench: &Bench) -> Verdict {
    let compacted = bench.machine.compacted();
    bench.view(|view| {
        for pair in view.scan(Table::Past, b"", None) {
            let past: format::Superseded = format::decode(Table::Past, pair.unwrap().1).unwrap();
            if past.end <= compacted {
                return Err(TestCaseError::fail(format!("left behind at {compacted}: {past:?}")));
            }
        }
        match view.scan(Table::Log, b"", None).next() {
            Some(pair) => {
                let first = format::from_ordered(Table::Log, &pair.unwrap().0).unwrap();
                same("the oldest record is kept rightly", first >= compacted, true)
            }
            None => Ok(()),
        }
    })
}

/// Runs so many cases; the smallest failing one is looked for in so many attempts.
pub fn run(cases: u32, max_shrink_iters: u32) -> Result<(), String> {
    let config = Config { cases, failure_persistence: None, max_shrink_iters, ..Config::default() };
    let inputs = (steps(), prop::collection::vec(range_request(), 0..8));
    // A fixed seed: the same cases on every machine and every run.
    let rng = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    runner.run(&inputs, |(steps, reads)| check(&steps, &reads)).map_err(|error| error.to_string())
}

#[test]
fn the_machine_answers_as_the_model_does() {
    if let Err(error) = run(CASES, 2000) {
        panic!("{error}");
    }
}
