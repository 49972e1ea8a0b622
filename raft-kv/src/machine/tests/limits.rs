//! Every bound: at it a request passes, one above it is refused and changes nothing.

use super::*;
use crate::limits::*;

/// `command` is refused as `expect` says, at admission and when applied, and leaves no trace.
fn refused(bench: &mut Bench, command: Command, expect: impl Fn(&Refusal) -> bool) {
    let admitted = validate(&command).expect_err("admission refuses it");
    assert!(expect(&admitted), "{admitted:?}");
    let (keys, revision) = (bench.hash() >> 32, bench.machine.revision());
    assert_eq!(bench.ask(command), Err(admitted));
    assert_eq!((bench.hash() >> 32, bench.machine.revision()), (keys, revision));
}

fn accepted(bench: &mut Bench, command: Command) {
    assert_eq!(validate(&command), Ok(()));
    bench.ask(command).expect("it is within its bounds");
}

fn put_sized(key: usize, value: usize) -> PutRequest {
    PutRequest { key: vec![b'k'; key].into(), value: vec![b'v'; value].into(), ..Default::default() }
}

fn txn(success: Vec<TxnOp>) -> Command {
    Command::Txn(TxnRequest { success, ..Default::default() })
}

fn nested(depth: usize) -> TxnRequest {
    let success = if depth == 1 { vec![] } else { vec![TxnOp::Txn(nested(depth - 1))] };
    TxnRequest { success, ..Default::default() }
}

fn get(key: &str) -> TxnOp {
    TxnOp::Range(RangeRequest { range: KeyRange::key(bytes(key)), ..Default::default() })
}

#[test]
fn keys_values_and_requests() {
    let bench = &mut Bench::new();
    accepted(bench, Command::Put(put_sized(MAX_KEY_BYTES, MAX_VALUE_BYTES)));
    refused(bench, Command::Put(put_sized(MAX_KEY_BYTES + 1, 0)), |why| {
        matches!(why, Refusal::KeyTooLarge { .. })
    });
    refused(bench, Command::Put(put_sized(1, MAX_VALUE_BYTES + 1)), |why| {
        matches!(why, Refusal::ValueTooLarge { .. })
    });
    refused(bench, Command::Put(put_sized(0, 1)), |why| *why == Refusal::EmptyKey);
    let end = KeyRange::span(bytes("a"), vec![b'z'; MAX_KEY_BYTES + 1]);
    refused(bench, delete(end), |why| matches!(why, Refusal::KeyTooLarge { .. }));
    let two = vec![TxnOp::Put(put_sized(1, MAX_VALUE_BYTES)), TxnOp::Put(put_sized(2, MAX_VALUE_BYTES))];
    refused(bench, txn(two), |why| matches!(why, Refusal::RequestTooLarge { .. }));
}

#[test]
fn operations_and_depth() {
    let bench = &mut Bench::new();
    accepted(bench, txn(vec![get("a"); MAX_TXN_OPS]));
    refused(
        bench,
        txn(vec![get("a"); MAX_TXN_OPS + 1]),
        |why| matches!(why, Refusal::TooManyOps { list, len: 129, max: 128 } if list == "success"),
    );
    // A nested transaction has what its parent left over.
    let inner = |len| TxnOp::Txn(TxnRequest { failure: vec![get("a"); len], ..Default::default() });
    accepted(bench, txn(vec![inner(MAX_TXN_OPS - 1)]));
    refused(
        bench,
        txn(vec![inner(MAX_TXN_OPS)]),
        |why| matches!(why, Refusal::TooManyOps { list, max: 127, .. } if list == "failure"),
    );
    accepted(bench, Command::Txn(nested(MAX_TXN_DEPTH)));
    refused(bench, Command::Txn(nested(MAX_TXN_DEPTH + 1)), |why| {
        matches!(why, Refusal::NestedTooDeep { .. })
    });
    // The largest that is allowed can also be written down and read again.
    let deepest = Command::Txn(nested(MAX_TXN_DEPTH));
    let proposal = Proposal { request: RequestId::default(), once: None, command: deepest };
    let written = vec![proposal].to_bytes();
    assert_eq!(Vec::<Proposal>::from_bytes(written.clone()).unwrap().to_bytes(), written);
}

#[test]
fn leases_tokens_and_members() {
    let bench = &mut Bench::new();
    let out = |why: &Refusal| matches!(why, Refusal::LeaseOutOfBounds { .. });
    accepted(bench, Command::LeaseGrant { id: 1, ttl: MAX_LEASE_TTL });
    refused(bench, Command::LeaseGrant { id: 2, ttl: MAX_LEASE_TTL + 1 }, out);
    refused(bench, Command::LeaseGrant { id: 0, ttl: 9 }, out);
    // etcd's own clients may choose any other number, and any short time.
    accepted(bench, Command::LeaseGrant { id: -5, ttl: 9 });
    accepted(bench, Command::LeaseGrant { id: i64::MIN, ttl: -9 });
    let ids = |len: usize| Command::LeaseExpire { ids: vec![5; len], term: 1 };
    accepted(bench, ids(MAX_LEASES_PER_EXPIRY));
    let invalid = |why: &Refusal| matches!(why, Refusal::Invalid { .. });
    refused(bench, ids(MAX_LEASES_PER_EXPIRY + 1), invalid);
    let token = |id: String, secret: String| {
        let token = TokenRecord { secret: Sealed(secret.into()), ..token(Role::Client) };
        Command::Trust(TrustChange::TokenCreate { id, token, now: 5 })
    };
    accepted(bench, token("i".repeat(MAX_NAME_BYTES), "s".repeat(MAX_SECRET_BYTES)));
    refused(bench, token("i".repeat(MAX_NAME_BYTES + 1), "s".into()), invalid);
    refused(bench, token("i".into(), "s".repeat(MAX_SECRET_BYTES + 1)), invalid);
    refused(bench, token(String::new(), "s".into()), invalid);
    let record = |name: &str, addr: &str| {
        Command::MemberUpdate(MemberRecord {
            id: VOTER,
            name: name.into(),
            addr: addr.into(),
            ..Default::default()
        })
    };
    accepted(bench, record(&"n".repeat(MAX_NAME_BYTES), &"a".repeat(MAX_ADDR_BYTES)));
    refused(bench, record("", "a:1"), invalid);
    refused(bench, record("n", ""), invalid);
    refused(bench, record("line\nbreak", "a:1"), invalid);
    refused(bench, record("n", &"a".repeat(MAX_ADDR_BYTES + 1)), invalid);
}

#[test]
fn a_large_answer_is_asked_for_in_pages() {
    let mut bench = Bench::new();
    let keys = MAX_RANGE_BYTES / MAX_VALUE_BYTES + 2;
    let value = Bytes::from(vec![1; MAX_VALUE_BYTES]);
    for at in 0..keys {
        let key = bytes(&format!("{at:04}"));
        bench.ask(Command::Put(PutRequest { key, value: value.clone(), ..Default::default() })).unwrap();
    }
    let all = RangeRequest { range: KeyRange::all(), ..Default::default() };
    let too_large =
        |result: Result<RangeResponse, Refusal>| matches!(result, Err(Refusal::AnswerTooLarge { .. }));
    assert!(too_large(bench.range(&all)));
    let backwards = RangeRequest { sort_order: SortOrder::Descend, ..all.clone() };
    assert!(too_large(bench.range(&backwards)));
    // A page, keys alone and a count are small, even where all must be looked at for the order.
    let page = bench.range(&RangeRequest { limit: 2, ..backwards }).unwrap();
    assert_eq!((page.kvs.len(), page.more, page.count), (2, true, keys as i64));
    assert_eq!(page.kvs[0].key, bytes(&format!("{:04}", keys - 1)));
    assert_eq!(bench.range(&RangeRequest { keys_only: true, ..all.clone() }).unwrap().kvs.len(), keys);
    assert_eq!(bench.range(&RangeRequest { count_only: true, ..all.clone() }).unwrap().count, keys as i64);
    // Inside a transaction such a read refuses all of it, what it wrote before included.
    let before = bench.machine.revision();
    let writes = vec![TxnOp::Put(PutRequest { key: bytes("new"), ..Default::default() }), TxnOp::Range(all)];
    assert!(matches!(bench.ask(txn(writes)), Err(Refusal::AnswerTooLarge { .. })));
    assert_eq!((bench.machine.revision(), bench.get("new", 0)), (before, None));
    // So does a delete that would answer all it removed.
    assert!(bench.ask(delete(KeyRange::all())).is_err());
    let silent = Command::Delete(DeleteRequest { range: KeyRange::all(), prev_kv: false });
    assert_eq!(bench.ask(silent), Ok(Answer::Delete(DeleteResponse { deleted: keys as i64, prevs: vec![] })));
}

/// Removing small keys costs more than their bytes: the bound counts each.
#[test]
fn one_delete_removes_no_more_than_fits_in_memory() {
    let bench = &mut Bench::new();
    let most = MAX_DELETE_BYTES / (DELETE_KEY_BYTES + 6);
    let ops = |from: usize, to: usize| {
        let op = |at: usize| TxnOp::Put(PutRequest { key: bytes(&format!("{at:06}")), ..Default::default() });
        txn((from..to).map(op).collect())
    };
    let mut at = 0;
    while at <= most {
        let entries: Vec<_> = (at..=most)
            .step_by(MAX_TXN_OPS)
            .take(256)
            .map(|from| vec![(None, ops(from, (from + MAX_TXN_OPS).min(most + 1)))])
            .collect();
        at += entries.len() * MAX_TXN_OPS;
        assert!(bench.entries(&entries).outcomes.iter().all(|outcome| outcome.result.is_ok()));
    }
    let revision = bench.machine.revision();
    let all = || Command::Delete(DeleteRequest { range: KeyRange::all(), prev_kv: false });
    let refused = bench.ask(all()).unwrap_err();
    assert!(matches!(&refused, Refusal::Invalid { field, .. } if field == "range"), "{refused:?}");
    assert_eq!(bench.machine.revision(), revision);
    bench.ask(delete(KeyRange::key(bytes("000000")))).unwrap();
    let Ok(Answer::Delete(deleted)) = bench.ask(all()) else { panic!("it is at the bound") };
    assert_eq!(deleted.deleted as usize, most);
}

fn held(bench: &Bench, lease: LeaseId) -> usize {
    let record = bench.view(|view| super::super::lease::held(view, lease)).unwrap();
    usize::try_from(record).unwrap()
}

/// Every way in which a key comes to a lease, changes there, and leaves it.
#[test]
fn a_lease_knows_what_its_end_takes() {
    let bench = &mut Bench::new();
    for id in [1, 2] {
        bench.ask(Command::LeaseGrant { id, ttl: 9 }).unwrap();
    }
    let on = |key: &str, value: &str, lease| {
        Command::Put(PutRequest { key: bytes(key), value: bytes(value), lease, ..Default::default() })
    };
    let kept = |key: &str, value: &str| {
        let (key, value) = (bytes(key), bytes(value));
        Command::Put(PutRequest { key, value, ignore_lease: true, ..Default::default() })
    };
    let key = |bytes: usize| DELETE_KEY_BYTES + bytes;
    let steps = [
        (on("a", "123", 1), key(4), 0),
        (on("a", "1", 1), key(2), 0),
        (on("b", "", 1), key(2) + key(1), 0),
        (kept("b", "1234"), key(2) + key(5), 0),
        (on("a", "12", 2), key(5), key(3)),
        (on("b", "12", 0), 0, key(3)),
        (on("b", "12", 2), 0, key(3) + key(3)),
        (delete(KeyRange::key(bytes("a"))), 0, key(3)),
        (
            txn(vec![TxnOp::Put(PutRequest { key: bytes("c"), lease: 1, ..Default::default() })]),
            key(1),
            key(3),
        ),
        (
            txn(vec![TxnOp::Put(PutRequest { key: bytes("c"), lease: 7, ..Default::default() })]),
            key(1),
            key(3),
        ),
    ];
    for (at, (command, first, second)) in steps.into_iter().enumerate() {
        let _ = bench.ask(command);
        assert_eq!((held(bench, 1), held(bench, 2)), (first, second), "step {at}");
    }
    bench.ask(Command::LeaseRevoke { id: 2 }).unwrap();
    assert_eq!((bench.get("b", 0), held(bench, 1)), (None, key(1)));
}

/// All keys of a lease end in one revision, so none has more than can be removed in one; several that
/// end at once do so in several entries.
#[test]
fn the_end_of_a_lease_fits_in_memory() {
    let bench = &mut Bench::new();
    for id in 1..=3 {
        bench.ask(Command::LeaseGrant { id, ttl: 9 }).unwrap();
    }
    let value = Bytes::from(vec![b'v'; MAX_VALUE_BYTES]);
    let on = |lease: LeaseId, at: usize, value: &Bytes| {
        let key = bytes(&format!("{lease}/{at:03}"));
        Command::Put(PutRequest { key, value: value.clone(), lease, ..Default::default() })
    };
    let most = MAX_DELETE_BYTES / (MAX_VALUE_BYTES + DELETE_KEY_BYTES + 5);
    for lease in [1, 2] {
        for at in 0..most {
            bench.ask(on(lease, at, &value)).unwrap();
        }
    }
    bench.ask(on(3, 0, &Bytes::new())).unwrap();
    let refused = bench.ask(on(1, most, &value)).unwrap_err();
    assert!(matches!(&refused, Refusal::Invalid { field, .. } if field == "lease"), "{refused:?}");
    bench.ask(on(1, most - 1, &value)).expect("what is there already may change");
    let expire = |ids: Vec<LeaseId>| Command::LeaseExpire { ids, term: 1 };
    let ended = |applied: Applied| -> Vec<LeaseId> {
        let id = |change: LeaseChange| match change {
            LeaseChange::Ended { id } => id,
            other => panic!("{other:?}"),
        };
        applied.leases.into_iter().map(id).collect()
    };
    assert_eq!(ended(bench.run(expire(vec![1, 2, 3]))), [1]);
    assert_eq!(ended(bench.run(expire(vec![1, 2, 3]))), [2, 3]);
    assert_eq!(bench.get("2/000", 0), None);
}
