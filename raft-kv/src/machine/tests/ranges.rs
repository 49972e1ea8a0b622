//! What ranges cost and that it changes no answer: remembered counts against scans, values that
//! are read against those that are answered, checksums of members that collected differently.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRng, TestRunner};

use super::count::Counts;
use super::*;
#[cfg(feature = "sim")]
use crate::planted::{Bug, with};

/// A view that counts what is read through it: by key, and pairs of scans.
#[derive(Default)]
struct Cost {
    gets: BTreeMap<Table, usize>,
    pairs: BTreeMap<Table, usize>,
}

struct Counting<'a>(&'a dyn Read, RefCell<Cost>);

impl Read for Counting<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageFailed> {
        *self.1.borrow_mut().gets.entry(table).or_default() += 1;
        self.0.get(table, key)
    }

    fn scan<'a>(&'a self, table: Table, from: &[u8], to: Option<&[u8]>) -> store::Pairs<'a> {
        let pairs = self.0.scan(table, from, to);
        Box::new(pairs.inspect(move |_| *self.1.borrow_mut().pairs.entry(table).or_default() += 1))
    }
}

/// Long enough to lie apart.
fn long(of: &str) -> String {
    of.repeat(format::MAX_INLINE_BYTES + 1)
}

fn key_of(number: usize) -> String {
    format!("k{number:03}")
}

/// A hundred keys with long values, each put twice.
fn hundred() -> Bench {
    let mut bench = Bench::new();
    for text in ["x", "y"] {
        for number in 0..100 {
            bench.put(&key_of(number), &long(text)).unwrap();
        }
    }
    bench
}

fn all() -> RangeRequest {
    RangeRequest { range: KeyRange::prefix("k"), ..Default::default() }
}

impl Cost {
    /// How many reads by key, and how many pairs of scans.
    fn of(&self, table: Table) -> (usize, usize) {
        let of = |map: &BTreeMap<Table, usize>| map.get(&table).copied().unwrap_or(0);
        (of(&self.gets), of(&self.pairs))
    }

    /// Whether the values of so many keys were read and hardly more: a scan passes over the one
    /// older value that each key of [`hundred`] has.
    fn reads_values_of(&self, keys: usize) -> bool {
        let (gets, pairs) = self.of(Table::Values);
        (keys..=2 * keys).contains(&(gets + pairs))
    }
}

fn cost<R>(bench: &Bench, read: impl FnOnce(&dyn Read) -> R) -> (R, Cost) {
    bench.view(|view| {
        let counting = Counting(view, RefCell::default());
        let answer = read(&counting);
        (answer, counting.1.into_inner())
    })
}

#[test]
fn values_are_read_only_where_they_are_answered() {
    let bench = hundred();
    let base = all();
    let compare = |target| Compare { range: KeyRange::prefix("k"), op: CompareOp::Greater, target };
    let cases: Vec<(&str, RangeRequest, usize)> = vec![
        ("count_only", RangeRequest { count_only: true, ..base.clone() }, 0),
        ("keys_only", RangeRequest { keys_only: true, ..base.clone() }, 0),
        ("keys_only of old", RangeRequest { keys_only: true, revision: 50, ..base.clone() }, 0),
        ("a page", RangeRequest { limit: 7, ..base.clone() }, 7),
        ("a page of old", RangeRequest { limit: 7, revision: 50, ..base.clone() }, 7),
        (
            "the newest three",
            RangeRequest {
                limit: 3,
                sort_target: SortTarget::Mod,
                sort_order: SortOrder::Descend,
                ..base.clone()
            },
            3,
        ),
        ("filtered", RangeRequest { min_mod_revision: 200, ..base.clone() }, 2),
        ("all", base.clone(), 100),
        ("keys_only by value", RangeRequest { keys_only: true, sort_target: SortTarget::Value, ..base }, 100),
    ];
    for (what, request, expect) in cases {
        let (answer, cost) = cost(&bench, |view| read::range(view, &request).unwrap().unwrap());
        assert!(cost.reads_values_of(expect), "{what}: {:?}", cost.of(Table::Values));
        if request.keys_only {
            assert!(answer.1.kvs.iter().all(|kv| kv.value.is_empty() && kv.version > 0), "{what}");
        }
    }
    let txn = |target| TxnRequest { compares: vec![compare(target)], ..Default::default() };
    for (target, expect) in [(CompareTarget::Version(0), 0), (CompareTarget::Value(bytes("a")), 100)] {
        let request = txn(target);
        let ((_, answer), cost) = cost(&bench, |view| read::txn_read_only(view, &request).unwrap().unwrap());
        assert!(answer.succeeded);
        assert!(cost.reads_values_of(expect), "{request:?}: {:?}", cost.of(Table::Values));
    }
}

/// Neighbours, gaps, keys with many older values, and values in their records, read in order.
#[test]
fn values_read_in_order_are_those_looked_up() {
    let mut bench = Bench::new();
    for number in 0..200 {
        let puts = if number % 50 == 17 { 9 } else { 1 + number % 2 };
        for put in 0..puts {
            let text = format!("{number}/{put}/");
            let value = if number % 7 == 3 { text } else { long(&text) };
            bench.put(&key_of(number), &value).unwrap();
        }
    }
    for step in [1, 2, 3, 6, 20] {
        bench.view(|view| {
            let mut values = values::ValueReader::new(view);
            for number in (0..200).step_by(step) {
                let key = key_of(number);
                let stored: format::Stored =
                    format::load(view, Table::Live, key.as_bytes()).unwrap().unwrap();
                let one = stored.value(view, key.as_bytes()).unwrap();
                assert_eq!(values.value(key.as_bytes(), &stored).unwrap(), one, "{number} by {step}");
            }
        });
    }
}

/// As etcd: where no order is named, one key more than the limit is read, and these are sorted.
#[test]
fn without_an_order_only_the_first_keys_are_sorted() {
    let mut bench = Bench::new();
    for (key, value) in [("ka", "4"), ("kb", "3"), ("kc", "2"), ("kd", "1")] {
        bench.put(key, value).unwrap();
    }
    let check = |request: RangeRequest, expect: &[&str], more: bool| {
        let request = RangeRequest { sort_target: SortTarget::Value, ..request };
        let answer = bench.range(&request).unwrap();
        let keys: Vec<_> = answer.kvs.iter().map(|kv| std::str::from_utf8(&kv.key).unwrap()).collect();
        assert_eq!((&keys[..], answer.more, answer.count), (expect, more, 4), "{request:?}");
    };
    let limited = |limit| RangeRequest { limit, ..all() };
    check(limited(1), &["kb"], true);
    check(limited(2), &["kc", "kb"], true);
    check(limited(3), &["kd", "kc", "kb"], true);
    check(limited(4), &["kd", "kc", "kb", "ka"], false);
    check(limited(i64::MAX), &["kd", "kc", "kb", "ka"], false);
    check(all(), &["kd", "kc", "kb", "ka"], false);
    check(RangeRequest { sort_order: SortOrder::Ascend, ..limited(1) }, &["kd"], true);
    check(RangeRequest { sort_order: SortOrder::Descend, ..limited(1) }, &["ka"], true);
    check(RangeRequest { min_mod_revision: 1, ..limited(1) }, &["kd"], true);
    check(RangeRequest { max_create_revision: 99, ..limited(1) }, &["kd"], true);
}

#[test]
fn keys_only_keeps_all_but_the_value() {
    let mut bench = Bench::new();
    bench.ask(Command::LeaseGrant { id: -7, ttl: 60 }).unwrap();
    let value = bytes(&long("v"));
    let put = PutRequest { key: bytes("k"), value: value.clone(), lease: -7, ..Default::default() };
    bench.ask(Command::Put(put)).unwrap();
    let whole = bench.get("k", 0).unwrap();
    assert_eq!((whole.value.clone(), whole.lease), (value, -7));
    for sort_target in [SortTarget::Key, SortTarget::Value] {
        let request = RangeRequest { keys_only: true, sort_target, ..all() };
        let blank = KeyValue { value: Bytes::new(), ..whole.clone() };
        assert_eq!(bench.range(&request).unwrap().kvs, [blank]);
    }
    assert_eq!(bench.view(|view| read::lease_keys(view, -7)).unwrap(), [bytes("k")]);
}

#[test]
fn a_later_page_reads_no_further_than_it_goes() {
    let bench = hundred();
    let mut counts = Counts::worth(1);
    let mut request = RangeRequest { limit: 10, ..all() };
    let mut left = 100;
    while left > 0 {
        let remembered = counts.recall(&request.range, request.revision);
        let ((revision, page), cost) =
            cost(&bench, |view| read::range_counted(view, &request, remembered).unwrap().unwrap());
        assert_eq!((page.kvs.len(), page.count), (10, left));
        // The first page has nothing to go by.
        assert!(cost.of(Table::Live).1 <= if left == 100 { 101 } else { 11 }, "{:?}", cost.of(Table::Live));
        assert!(cost.reads_values_of(10), "{:?}", cost.of(Table::Values));
        counts.learn(&request, revision, &page);
        request.revision = revision;
        request.range = count::behind(&request.range, &page.kvs[9].key);
        left -= 10;
    }
}

#[test]
fn an_overwrite_leaves_the_value_where_it_is() {
    let mut bench = Bench::new();
    let values = |bench: &Bench| bench.view(|view| view.scan(Table::Values, b"", None).count());
    for value in [long("a"), long("b"), "short".into(), long("c")] {
        bench.put("k", &value).unwrap();
    }
    assert_eq!(values(&bench), 3);
    let keep = PutRequest { key: bytes("k"), ignore_value: true, ..Default::default() };
    bench.ask(Command::Put(keep)).unwrap();
    assert_eq!((bench.get("k", 0).unwrap().value, values(&bench)), (bytes(&long("c")), 4));
    bench.ask(delete(KeyRange::key("k"))).unwrap();
    assert_eq!((bench.get("k", 2).unwrap().value, values(&bench)), (bytes(&long("a")), 4));
    for (compact, left) in [(3, 3), (6, 1), (7, 0)] {
        bench.ask(Command::Compact { revision: compact }).unwrap();
        bench.collect_all();
        assert_eq!(values(&bench), left, "compacted at {compact}");
    }
}

/// What the memory of counts is asked, one after the other.
#[derive(Clone, Debug)]
enum Ask {
    Step(random::Step),
    /// The pages of a range, so many keys each, at a revision, and how many of them.
    Pages(RangeRequest, usize),
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let pages = (random::range_request(), 1..4i64, 1..4usize);
    prop::collection::vec(
        prop_oneof![
            1 => random::steps().prop_map(|steps| steps.into_iter().take(3).map(Ask::Step).collect::<Vec<_>>()),
            3 => pages.prop_map(|(request, limit, pages)| {
                vec![Ask::Pages(RangeRequest { limit, ..request }, pages)]
            }),
        ],
        1..25,
    )
    .prop_map(|lists| lists.concat())
}

/// With and without the memory every answer is the same.
fn check_counts(asks: &[Ask]) -> Result<(), TestCaseError> {
    let mut bench = Bench::new();
    let mut counts = Counts::worth(1);
    for ask in asks {
        match ask {
            Ask::Step(random::Step::Apply(entries)) => {
                let named = |list: &Vec<Command>| list.iter().map(|one| (None, one.clone())).collect();
                bench.entries(&entries.iter().map(named).collect::<Vec<_>>());
            }
            Ask::Step(random::Step::Collect) => drop(bench.machine.collect().unwrap()),
            Ask::Step(_) => {}
            Ask::Pages(request, pages) => {
                let mut request = request.clone();
                for _ in 0..*pages {
                    let remembered = counts.recall(&request.range, request.revision);
                    let with = bench.view(|view| read::range_counted(view, &request, remembered).unwrap());
                    let without = bench.view(|view| read::range(view, &request).unwrap());
                    prop_assert_eq!(&with, &without, "{:?} with {:?}", &request, remembered);
                    let Ok((revision, response)) = with else { break };
                    let at = if request.revision > 0 { request.revision } else { revision };
                    counts.learn(&request, at, &response);
                    let Some(last) = response.kvs.last() else { break };
                    if request.range.is_single() {
                        break;
                    }
                    request = RangeRequest {
                        range: count::behind(&request.range, &last.key),
                        revision: at,
                        ..request
                    };
                }
            }
        }
    }
    Ok(())
}

fn run_counts(cases: u32, max_shrink_iters: u32) -> Result<(), String> {
    let config = Config { cases, failure_persistence: None, max_shrink_iters, ..Config::default() };
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    runner.run(&asks(), |asks| check_counts(&asks)).map_err(|error| error.to_string())
}

#[test]
fn remembered_counts_are_those_of_a_scan() {
    if let Err(error) = run_counts(random::CASES, 2000) {
        panic!("{error}");
    }
}

#[cfg(feature = "sim")]
#[test]
fn a_count_that_takes_overwrites_for_new_keys_is_found() {
    assert!(with(Some(Bug::CountOverwrites), || run_counts(random::CASES, 0)).is_err());
}

#[test]
fn the_memory_of_counts_is_bounded() {
    let mut counts = Counts::default();
    let of =
        |number: usize| RangeRequest { range: KeyRange::prefix(format!("{number}/")), ..Default::default() };
    let answer = RangeResponse { count: 1000, ..Default::default() };
    let most = crate::limits::MAX_REMEMBERED_COUNTS / 2;
    for number in 0..most {
        counts.learn(&of(number), 5, &answer);
    }
    // Used again, so it outlives those that were not.
    assert!(counts.recall(&of(0).range, 5).is_some());
    counts.learn(&of(most), 5, &answer);
    assert!(counts.recall(&of(0).range, 9).is_some());
    assert_eq!(counts.recall(&of(1).range, 5), None);
    // Pages push out one another, not the ranges that begin anew.
    for number in 0..1000 {
        let kvs = vec![KeyValue { key: bytes(&key_of(number)), ..Default::default() }];
        counts.learn(&all(), 5, &RangeResponse { kvs, more: true, count: 1000 });
    }
    assert!(counts.recall(&of(0).range, 5).is_some());
    let page = |number: usize| count::behind(&all().range, key_of(number).as_bytes());
    assert_eq!(counts.recall(&page(1), 5), None);
    assert_eq!(counts.recall(&page(999), 5).map(|known| known.count), Some(999));
    for revision in 6..20 {
        counts.learn(&of(0), revision, &answer);
    }
    assert_eq!(counts.recall(&of(0).range, 1).map(|known| known.revision), Some(16));
    assert!(counts.recall(&of(most).range, 5).is_some());
    let long = RangeRequest { range: KeyRange::prefix(vec![b'k'; 10_000]), ..Default::default() };
    counts.learn(&long, 5, &answer);
    counts.learn(&RangeRequest { range: KeyRange::key("k"), ..Default::default() }, 5, &answer);
    let few = RangeResponse { count: 3, ..Default::default() };
    counts.learn(&of(most + 1), 5, &few);
    for range in [long.range, KeyRange::key("k"), of(most + 1).range] {
        assert_eq!(counts.recall(&range, 5), None);
    }
}

/// The checksums of two members at every revision they can be asked for: one collects and has
/// applied more, the other lags.
fn members_agree(collect: bool) -> bool {
    let mut bench = hundred();
    bench.ask(delete(KeyRange::span("k010", "k020"))).unwrap();
    bench.put("k015", &long("z")).unwrap();
    bench.put("short", "s").unwrap();
    bench.ask(Command::Compact { revision: 150 }).unwrap();
    let store = bench.machine.store().snapshot();
    let mut ahead = Bench { machine: Machine::open(store).unwrap().unwrap(), term: 1 };
    if collect {
        ahead.collect_all();
    }
    for number in 0..30 {
        ahead.put(&key_of(number), "more").unwrap();
    }
    let hash = |bench: &Bench, revision| bench.view(|view| read::hash_kv(view, revision)).unwrap().unwrap();
    assert_eq!(hash(&bench, 0), hash(&bench, bench.machine.revision()));
    let mut found = Vec::new();
    for revision in 150..=bench.machine.revision() {
        let (mine, other) = (hash(&bench, revision), hash(&ahead, revision));
        assert_eq!((mine.revision, mine.compacted), (revision, 150));
        if mine != other {
            return false;
        }
        found.push(mine.hash);
    }
    found.sort_unstable();
    found.dedup();
    assert_eq!(found.len() as i64, bench.machine.revision() - 149, "no two revisions look alike");
    true
}

#[test]
fn checksums_agree_however_much_was_collected() {
    assert!(members_agree(false));
    assert!(members_agree(true));
    let bench = hundred();
    let hash = |revision| bench.view(|view| read::hash_kv(view, revision)).unwrap();
    assert_eq!(hash(202), Err(Refusal::FutureRevision { requested: 202, current: 201 }));
    let mut bench = hundred();
    bench.ask(Command::Compact { revision: 9 }).unwrap();
    let hash = |revision| bench.view(|view| read::hash_kv(view, revision)).unwrap();
    assert_eq!(hash(8), Err(Refusal::Compacted { requested: 8, compacted: 9 }));
    assert!(hash(9).is_ok());
}

#[cfg(feature = "sim")]
#[test]
fn a_checksum_over_what_others_removed_is_found() {
    assert!(!with(Some(Bug::HashCollected), || members_agree(true)));
}

#[test]
fn a_changed_value_shows_in_the_checksum() {
    let bench = hundred();
    let hash = || bench.view(|view| read::hash_kv(view, 0)).unwrap().unwrap().hash;
    let before = hash();
    let key = format::past_key(b"k050", 152);
    let write = |value: &str| Batch { writes: vec![(Table::Values, key.clone(), Some(bytes(value)))] };
    bench.machine.store().write(write(&long("q"))).unwrap();
    assert_ne!(hash(), before);
    // And a value that is not as long as its record says is damage.
    bench.machine.store().write(write("q")).unwrap();
    assert!(bench.view(|view| read::hash_kv(view, 0)).is_err());
}

#[test]
fn parts_of_a_range_are_bounded_by_keys_and_bytes() {
    let bench = hundred();
    let page = |revision, keys, most| {
        let request = RangeRequest { revision, ..all() };
        let (_, kvs, more) = bench.view(|view| read::page(view, &request, keys, most)).unwrap().unwrap();
        (kvs.len(), more)
    };
    assert_eq!(page(0, 10, usize::MAX), (10, true));
    assert_eq!(page(0, 100, usize::MAX), (100, false));
    assert_eq!(page(50, 100, usize::MAX), (49, false));
    assert_eq!(page(0, 100, 1), (1, true));
    assert_eq!(page(0, 100, 300), (3, true));
}
