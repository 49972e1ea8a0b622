//! The quota against a naive model: a map of keys and values whose bytes are counted anew each time.
//! Random changes, quotas, batches, restarts and crashes; what is used is what a count finds, and what
//! is refused is what would have gone over, before it is proposed and where it is applied.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::*;

/// Cases in a run of the tests.
pub const CASES: u32 = 256;

/// What a machine has noted: bytes and keys.
pub fn noted(bench: &Bench) -> (u64, u64) {
    let usage = bench.machine.usage();
    (usage.bytes, usage.keys)
}

/// The same of keys with their values, counted.
pub fn counted(kvs: &[KeyValue]) -> (u64, u64) {
    (kvs.iter().map(|kv| (kv.key.len() + kv.value.len()) as u64).sum(), kvs.len() as u64)
}

type Verdict = Result<(), TestCaseError>;

fn same<T: PartialEq + std::fmt::Debug>(what: &str, machine: T, model: T) -> Verdict {
    if machine == model {
        return Ok(());
    }
    Err(TestCaseError::fail(format!("{what}: the machine has {machine:?}, the model {model:?}")))
}

#[derive(Clone, Debug)]
enum Step {
    /// Commands of one entry.
    Apply(Vec<Command>),
    Reopen,
    /// What was not flushed is lost, but for so many batches; raft applies it again.
    Crash(u8),
}

fn key() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "a/long/name", "b", "c"])
}

fn put_request() -> impl Strategy<Value = PutRequest> {
    // Some values lie apart from their records.
    let len = prop_oneof![0..12usize, 60..70usize];
    let value = len.prop_map(|len| Bytes::from(vec![b'v'; len]));
    (key(), value, prop_oneof![3 => Just(0i64), 1 => Just(1)], prop_oneof![5 => Just(false), 1 => Just(true)])
        .prop_map(|(key, value, lease, ignore_value)| PutRequest {
            key: bytes(key),
            value: if ignore_value { Bytes::new() } else { value },
            lease,
            ignore_value,
            ..PutRequest::default()
        })
}

fn range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![3 => key().prop_map(KeyRange::key), 1 => Just(KeyRange::prefix("a"))]
}

fn txn_request() -> impl Strategy<Value = TxnRequest> {
    let delete = range().prop_map(|range| TxnOp::Delete(DeleteRequest { range, prev_kv: false }));
    let op = prop_oneof![3 => put_request().prop_map(TxnOp::Put), 2 => delete];
    let nested = prop::collection::vec(op.clone(), 0..3)
        .prop_map(|success| TxnOp::Txn(TxnRequest { success, ..TxnRequest::default() }));
    let list = || prop::collection::vec(prop_oneof![4 => op.clone(), 1 => nested.clone()], 0..4);
    let compare = key().prop_map(|key| Compare {
        range: KeyRange::key(key),
        op: CompareOp::Greater,
        target: CompareTarget::Version(0),
    });
    (prop::collection::vec(compare, 0..2), list(), list())
        .prop_map(|(compares, success, failure)| TxnRequest { compares, success, failure })
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        8 => put_request().prop_map(Command::Put),
        3 => range().prop_map(delete),
        4 => txn_request().prop_map(Command::Txn),
        2 => Just(Command::LeaseGrant { id: 1, ttl: 60 }),
        1 => Just(Command::LeaseRevoke { id: 1 }),
        1 => Just(Command::LeaseExpire { ids: vec![1], term: 1 }),
        3 => prop_oneof![1 => Just(None), 6 => (0..160u64).prop_map(Some)]
            .prop_map(|bytes| Command::Quota { bytes }),
        1 => Just(Command::RaiseRevision { to: 0 }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => prop::collection::vec(command(), 1..5).prop_map(Step::Apply),
        1 => Just(Step::Reopen),
        2 => any::<u8>().prop_map(Step::Crash),
    ];
    prop::collection::vec(step, 1..30)
}

/// Keys with what counts of them, and the quota.
#[derive(Clone)]
struct Naive {
    keys: BTreeMap<Bytes, (Bytes, LeaseId)>,
    lease: bool,
    quota: Option<u64>,
}

impl Naive {
    fn bytes(&self) -> u64 {
        self.keys.iter().map(|(key, (value, _))| (key.len() + value.len()) as u64).sum()
    }

    /// What a command leaves, if nothing but the quota can refuse it. Whether anything else does is
    /// taken from the machine: it has models of its own for that.
    fn after(&self, command: &Command) -> Self {
        let mut after = self.clone();
        match command {
            Command::Put(request) => after.put(request),
            Command::Delete(request) => after.keys.retain(|key, _| !request.range.contains(key)),
            Command::Txn(request) => after.txn(self, request),
            Command::LeaseGrant { .. } => after.lease = true,
            Command::LeaseRevoke { .. } | Command::LeaseExpire { .. } => {
                after.lease = false;
                after.keys.retain(|_, (_, lease)| *lease == 0);
            }
            Command::Quota { bytes } => after.quota = *bytes,
            _ => {}
        }
        after
    }

    fn put(&mut self, request: &PutRequest) {
        let kept = self.keys.get(&request.key).filter(|_| request.ignore_value);
        let value = kept.map_or_else(|| request.value.clone(), |(value, _)| value.clone());
        self.keys.insert(request.key.clone(), (value, request.lease));
    }

    fn txn(&mut self, before: &Self, request: &TxnRequest) {
        let holds = request.compares.iter().all(|compare| before.keys.contains_key(&compare.range.key));
        for op in if holds { &request.success } else { &request.failure } {
            match op {
                TxnOp::Put(request) => self.put(request),
                TxnOp::Delete(request) => self.keys.retain(|key, _| !request.range.contains(key)),
                TxnOp::Txn(nested) => self.txn(before, nested),
                TxnOp::Range(_) => {}
            }
        }
    }

    /// Whether the quota is to refuse a command that would leave `after`.
    fn refuses(&self, command: &Command, after: &Self) -> bool {
        let (before, after) = (self.bytes(), after.bytes());
        match self.quota {
            None => false,
            Some(quota) if matches!(command, Command::LeaseGrant { .. }) => before >= quota,
            Some(quota) => after > quota && after > before,
        }
    }
}

fn check_entry(
    bench: &mut Bench,
    naive: &mut Naive,
    commands: &[Command],
) -> Result<Committed, TestCaseError> {
    let index = bench.machine.applied().index + 1;
    let named: Vec<_> = commands.iter().map(|one| (None, one.clone())).collect();
    let entry = Committed { index, term: 1, payload: bench.proposals(&named) };
    let first = commands.first().map(|first| bench.view(|view| read::room_for(view, first)).unwrap());
    let applied = bench.machine.apply(vec![entry.clone()]).unwrap();
    let told = applied.outcomes.first().map(|outcome| match &outcome.result {
        Err(refusal @ Refusal::QuotaExceeded { .. }) => Err(refusal.clone()),
        _ => Ok(()),
    });
    same("what is said beforehand", first, told)?;
    let mut revision = None;
    for (command, outcome) in commands.iter().zip(applied.outcomes) {
        let after = naive.after(command);
        match outcome.result {
            Err(Refusal::QuotaExceeded { live, quota }) => {
                same(&format!("{command:?} goes over"), naive.refuses(command, &after), true)?;
                same("what is said", (live, Some(quota)), (naive.bytes(), naive.quota))?;
                same("no revision is made", revision.is_none_or(|before| before == outcome.revision), true)?;
            }
            Err(_) => {}
            Ok(_) => {
                same(&format!("{command:?} goes over"), naive.refuses(command, &after), false)?;
                *naive = after;
            }
        }
        revision = Some(outcome.revision);
    }
    Ok(entry)
}

fn check_state(bench: &Bench, naive: &Naive) -> Verdict {
    let usage = Usage { bytes: naive.bytes(), keys: naive.keys.len() as u64, quota: naive.quota };
    same("usage", bench.machine.usage(), usage)?;
    same("usage in the store", bench.view(read::usage).unwrap(), usage)?;
    same("a recount", bench.view(read::recount).unwrap(), usage)?;
    let all = RangeRequest { range: KeyRange::all(), ..Default::default() };
    let found: Vec<_> = bench.range(&all).unwrap().kvs.into_iter().map(|kv| (kv.key, kv.value)).collect();
    let expected = naive.keys.iter().map(|(key, (value, _))| (key.clone(), value.clone()));
    same("keys", found, expected.collect())
}

fn check(steps: &[Step]) -> Verdict {
    let (mut bench, mut other) = (Bench::new(), Bench::new());
    let mut naive = Naive { keys: BTreeMap::new(), lease: false, quota: Some(8 << 30) };
    let mut unflushed: Vec<Committed> = Vec::new();
    for step in steps {
        match step {
            Step::Apply(commands) => {
                let entry = check_entry(&mut bench, &mut naive, commands)?;
                other.machine.apply(vec![entry.clone()]).unwrap();
                unflushed.push(entry);
            }
            Step::Reopen => bench.reopen(),
            Step::Crash(keep) => {
                let store = bench.machine.store().clone();
                store.crash(usize::from(*keep) % (store.unflushed() + 1));
                bench.reopen();
                let applied = bench.machine.applied().index;
                unflushed.retain(|entry| entry.index > applied);
                bench.machine.apply(std::mem::take(&mut unflushed)).unwrap();
                store.flush().unwrap();
            }
        }
        check_state(&bench, &naive)?;
        same("hash", bench.hash(), other.hash())?;
    }
    Ok(())
}

/// Runs so many cases; the smallest failing one is looked for in so many attempts.
pub fn run(cases: u32, max_shrink_iters: u32) -> Result<(), String> {
    let config = Config { cases, failure_persistence: None, max_shrink_iters, ..Config::default() };
    // A fixed seed: the same cases on every machine and every run.
    let rng = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    runner.run(&steps(), |steps| check(&steps)).map_err(|error| error.to_string())
}

#[test]
fn live_bytes_are_what_a_count_finds_and_never_grow_over_the_quota() {
    if let Err(error) = run(CASES, 2000) {
        panic!("{error}");
    }
}

fn set(bench: &mut Bench, bytes: u64) {
    bench.ask(Command::Quota { bytes: Some(bytes) }).unwrap();
}

#[test]
fn what_takes_no_more_than_it_gives_back_is_done_however_far_over() {
    let mut bench = Bench::new();
    let full = |live, quota| Err(Refusal::QuotaExceeded { live, quota });
    assert_eq!(bench.machine.usage(), Usage { bytes: 0, keys: 0, quota: Some(8 << 30) });
    bench.ask(Command::LeaseGrant { id: 1, ttl: 60 }).unwrap();
    bench.ask(put_leased("leased", 1)).unwrap();
    bench.put("k1", "12345678").unwrap();
    bench.put("k2", "12345678").unwrap();
    assert_eq!(bench.machine.usage(), Usage { bytes: 26, keys: 3, quota: Some(8 << 30) });
    set(&mut bench, 10);
    let revision = bench.machine.revision();
    assert_eq!(bench.put("k1", "123456789"), full(26, 10));
    assert_eq!(bench.put("k3", ""), full(26, 10));
    assert_eq!(bench.ask(Command::LeaseGrant { id: 2, ttl: 60 }), full(26, 10));
    assert_eq!(bench.machine.revision(), revision, "nothing was made");
    bench.put("k1", "87654321").unwrap();
    bench.put("k1", "8765432").unwrap();
    let swap = |key: &str, value: &str| {
        let delete = TxnOp::Delete(DeleteRequest { range: KeyRange::key("k2"), prev_kv: false });
        let put = PutRequest { key: bytes(key), value: bytes(value), ..PutRequest::default() };
        Command::Txn(TxnRequest { success: vec![TxnOp::Put(put), delete], ..TxnRequest::default() })
    };
    assert_eq!(bench.ask(swap("k3", "123456789")), full(25, 10));
    assert!(bench.get("k3", 0).is_none() && bench.get("k2", 0).is_some(), "neither half was done");
    bench.ask(swap("k3", "12345678")).unwrap();
    bench.ask(Command::Compact { revision }).unwrap();
    bench.ask(points::create("p", None, 1)).unwrap();
    bench.ask(Command::MemberUpdate(genesis().member)).unwrap();
    bench.ask(Command::LeaseRevoke { id: 1 }).unwrap();
    assert_eq!(noted(&bench), (19, 2));
    bench.ask(delete(KeyRange::key("k1"))).unwrap();
    assert_eq!(noted(&bench), (10, 1));
    assert_eq!(bench.put("k", ""), full(10, 10));
    assert_eq!(bench.ask(Command::LeaseGrant { id: 2, ttl: 60 }), full(10, 10));
    bench.ask(Command::Quota { bytes: None }).unwrap();
    bench.put("k", "").unwrap();
    bench.ask(Command::LeaseGrant { id: 2, ttl: 60 }).unwrap();
    assert!(bench.ask(Command::Quota { bytes: Some(0) }).is_err());
    assert_eq!(bench.machine.usage(), Usage { bytes: 11, keys: 2, quota: None });
}

/// Looks at single records, by table; nothing else is counted.
struct Looks<'a>(&'a dyn Read, RefCell<BTreeMap<Table, usize>>);

impl Read for Looks<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageFailed> {
        *self.1.borrow_mut().entry(table).or_default() += 1;
        self.0.get(table, key)
    }

    fn scan<'a>(&'a self, table: Table, from: &[u8], to: Option<&[u8]>) -> store::Pairs<'a> {
        self.0.scan(table, from, to)
    }
}

/// What is used is kept without a look at anything: a put looks for what was before, and once in a batch
/// for alarms.
#[test]
fn a_put_costs_no_read_for_the_quota() {
    let mut bench = Bench::new();
    set(&mut bench, 1000);
    bench.put("k", "v").unwrap();
    bench.view(|view| {
        let looks = Looks(view, RefCell::default());
        let payload = bench.proposals(&[
            (None, put("k", "new")),
            (None, put("l", "value")),
            (None, delete(KeyRange::key("k"))),
        ]);
        let entry = Committed { index: bench.machine.applied().index + 1, term: 1, payload };
        let (drafted, _) = bench.machine.draft(&looks, &mut [entry].into_iter()).unwrap();
        assert_eq!(drafted.used.usage(Some(1000)), Usage { bytes: 6, keys: 1, quota: Some(1000) });
        let expect = BTreeMap::from([(Table::Live, 2), (Table::Members, 1)]);
        assert_eq!(*looks.1.borrow(), expect);
    });
}

/// In one entry and one batch, each sees what the one before has left.
#[test]
fn many_that_came_at_once_are_let_in_until_the_quota_is_reached() {
    let mut bench = Bench::new();
    set(&mut bench, 10);
    let puts = (0..5).map(|n| (None, put(&format!("k{n}"), "12"))).collect();
    let taken: Vec<bool> =
        bench.entries(&[puts]).outcomes.iter().map(|outcome| outcome.result.is_ok()).collect();
    assert_eq!(taken, [true, true, false, false, false]);
    assert_eq!((noted(&bench), bench.machine.revision()), ((8, 2), 3));
}

#[test]
fn a_request_that_was_done_is_answered_again_though_it_would_not_fit_now() {
    let mut bench = Bench::new();
    let first = bench.once(1, 1, put("k", "value"));
    set(&mut bench, 1);
    assert_eq!(bench.once(1, 1, put("k", "value")), first);
    // What was refused is kept too, as every refusal.
    let refused = bench.once(1, 2, put("k", "longer value"));
    assert_eq!(refused, Err(Refusal::QuotaExceeded { live: 6, quota: 1 }));
    bench.ask(Command::Quota { bytes: None }).unwrap();
    assert_eq!(bench.once(1, 2, put("k", "longer value")), refused);
}

#[test]
fn a_rollback_is_refused_only_where_it_ends_over_the_quota_with_more() {
    let mut bench = Bench::new();
    bench.machine = bench.machine.with_steps(2);
    for n in 0..5 {
        bench.put(&format!("a/{n}"), "12345678").unwrap();
        bench.put(&format!("b/{n}"), "1").unwrap();
    }
    bench.ask(points::create("large", None, 1)).unwrap();
    assert_eq!(noted(&bench), (75, 10));
    bench.ask(delete(KeyRange::prefix("a/"))).unwrap();
    bench.ask(points::create("small", None, 1)).unwrap();
    bench.put("b/0", "12345").unwrap();
    set(&mut bench, 60);
    let (before, revision) = (bench.hash(), bench.machine.revision());
    let refused = Err(Refusal::QuotaExceeded { live: 24, quota: 60 });
    assert_eq!(bench.ask(points::rollback("large", None, 1)), refused);
    assert_eq!(bench.ask(points::rollback("large", Some(bytes("a/")), 1)), refused);
    assert_eq!((noted(&bench), bench.machine.revision()), ((24, 5), revision));
    assert_ne!(bench.hash(), before, "an entry was applied");
    bench.ask(points::rollback("large", Some(bytes("a/0")), 1)).unwrap();
    assert_eq!(noted(&bench), (35, 6));
    bench.ask(points::rollback("large", Some(bytes("b/")), 1)).unwrap();
    assert_eq!(noted(&bench), (31, 6));
    set(&mut bench, 20);
    bench.ask(points::rollback("small", None, 1)).unwrap();
    assert_eq!(noted(&bench), (20, 5));
    set(&mut bench, 75);
    bench.ask(points::rollback("large", None, 1)).unwrap();
    assert_eq!(noted(&bench), (75, 10));
    // History is given up: the most there ever was is what there is.
    bench.ask(delete(KeyRange::prefix("a/"))).unwrap();
    bench.ask(Command::RaiseRevision { to: 1000 }).unwrap();
    assert_eq!(noted(&bench), (20, 5));
    bench.reopen();
    assert_eq!(noted(&bench), (20, 5));
}
