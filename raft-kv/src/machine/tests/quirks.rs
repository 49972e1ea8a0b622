//! etcd's quirks and this machine's own promises, one by one.

use super::*;
use crate::limits::{COMPACT_STEP_KEYS, MAX_ONCE_CLIENTS};

fn compare(key: &str, op: CompareOp, target: CompareTarget) -> Compare {
    Compare { range: KeyRange::key(bytes(key)), op, target }
}

fn txn(compares: Vec<Compare>, success: Vec<TxnOp>, failure: Vec<TxnOp>) -> TxnRequest {
    TxnRequest { compares, success, failure }
}

fn op(command: Command) -> TxnOp {
    match command {
        Command::Put(request) => TxnOp::Put(request),
        Command::Delete(request) => TxnOp::Delete(request),
        Command::Txn(request) => TxnOp::Txn(request),
        other => panic!("{other:?} is no operation of a transaction"),
    }
}

fn get(key: &str) -> TxnOp {
    TxnOp::Range(RangeRequest { range: KeyRange::key(bytes(key)), ..Default::default() })
}

fn answer_txn(answer: Result<Answer, Refusal>) -> TxnResponse {
    match answer {
        Ok(Answer::Txn(response)) => response,
        other => panic!("not a transaction's answer: {other:?}"),
    }
}

fn compact(revision: Revision) -> Command {
    Command::Compact { revision }
}

#[test]
fn a_compare_of_a_missing_key() {
    let mut bench = Bench::new();
    let mut holds = |op, target| {
        let request = txn(vec![compare("missing", op, target)], vec![], vec![]);
        answer_txn(bench.ask(Command::Txn(request))).succeeded
    };
    for op in [CompareOp::Equal, CompareOp::NotEqual, CompareOp::Less, CompareOp::Greater] {
        assert!(!holds(op, CompareTarget::Value(bytes(""))), "a missing key's value never compares: {op:?}");
        assert!(!holds(op, CompareTarget::Value(bytes("x"))), "a missing key's value never compares: {op:?}");
    }
    assert!(holds(CompareOp::Equal, CompareTarget::Version(0)));
    assert!(holds(CompareOp::Less, CompareTarget::Mod(5)));
    assert!(holds(CompareOp::Equal, CompareTarget::Create(0)));
    assert!(holds(CompareOp::NotEqual, CompareTarget::Lease(5)));
}

#[test]
fn a_compare_over_a_range_must_hold_for_every_key() {
    let mut bench = Bench::new();
    bench.put("a", "1").unwrap();
    bench.put("b", "2").unwrap();
    let mut holds = |target| {
        let compares = vec![Compare { range: KeyRange::all(), op: CompareOp::Equal, target }];
        answer_txn(bench.ask(Command::Txn(txn(compares, vec![], vec![])))).succeeded
    };
    assert!(holds(CompareTarget::Version(1)));
    assert!(!holds(CompareTarget::Value(bytes("1"))));
}

#[test]
fn revisions_are_made_by_changes_alone() {
    let mut bench = Bench::new();
    assert_eq!(bench.machine.revision(), 1);
    for quiet in [
        delete(KeyRange::all()),
        Command::LeaseGrant { id: 1, ttl: 5 },
        Command::LeaseRevoke { id: 1 },
        Command::Txn(txn(vec![], vec![get("a")], vec![])),
        Command::Noop,
        put_leased("a", 77),
    ] {
        bench.run(quiet.clone());
        assert_eq!(bench.machine.revision(), 1, "{quiet:?}");
    }
    let two = txn(vec![], vec![op(put("a", "")), op(put("b", ""))], vec![]);
    let applied = bench.run(Command::Txn(two));
    assert_eq!((bench.machine.revision(), applied.changes.len(), applied.changes[0].events.len()), (2, 1, 2));
    // A new leader's first entry changes nothing but what is applied.
    let applied = bench.payload(Payload::Proposals(Bytes::new()));
    assert_eq!((applied.outcomes, applied.changes), (vec![], vec![]));
}

#[test]
fn a_deleted_key_starts_over() {
    let mut bench = Bench::new();
    bench.put("k", "1").unwrap();
    bench.put("k", "2").unwrap();
    bench.ask(delete(KeyRange::key(bytes("k")))).unwrap();
    bench.put("k", "3").unwrap();
    let kv = bench.get("k", 0).unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
    assert_eq!(bench.get("k", 4), None, "it was deleted then");
    let kv = bench.get("k", 3).unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
    let events = bench.history(4).unwrap();
    let deleted = &events[0].events[0];
    assert_eq!(deleted.kind, EventKind::Delete);
    assert_eq!(deleted.kv, KeyValue { key: bytes("k"), mod_revision: 4, ..Default::default() });
    assert_eq!(deleted.prev.as_ref().unwrap().value, bytes("2"));
    assert_eq!(events[1].events[0].prev, None, "before it was made again there was nothing");
}

#[test]
fn a_tombstone_at_the_compacted_revision_is_still_watched() {
    let mut bench = Bench::new();
    bench.put("k", "1").unwrap();
    bench.ask(delete(KeyRange::key(bytes("k")))).unwrap();
    bench.put("other", "").unwrap();
    assert_eq!(bench.ask(compact(3)), Ok(Answer::Done));
    for collected in [false, true] {
        let changes = bench.history(3).unwrap();
        assert_eq!(changes.iter().map(|change| change.revision).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(changes[0].events[0].kind, EventKind::Delete);
        assert_eq!(changes[0].events[0].prev, None, "what was before is compacted; collected: {collected}");
        assert_eq!(bench.get("k", 3), None);
        assert_eq!(bench.history(2), Err(Refusal::Compacted { requested: 2, compacted: 3 }));
        let below = RangeRequest { range: KeyRange::all(), revision: 2, ..Default::default() };
        assert_eq!(bench.range(&below), Err(Refusal::Compacted { requested: 2, compacted: 3 }));
        bench.collect_all();
    }
}

#[test]
fn the_bounds_of_compaction() {
    let mut bench = Bench::new();
    assert_eq!(bench.machine.compacted(), -1);
    let compacted = |requested, compacted| Err(Refusal::Compacted { requested, compacted });
    assert_eq!(bench.ask(compact(-1)), compacted(-1, -1));
    assert_eq!(bench.ask(compact(0)), Ok(Answer::Done), "a fresh store accepts 0 once");
    assert_eq!(bench.ask(compact(0)), compacted(0, 0));
    assert_eq!(bench.ask(compact(2)), Err(Refusal::FutureRevision { requested: 2, current: 1 }));
    assert_eq!(bench.ask(compact(1)), Ok(Answer::Done));
    bench.reopen();
    assert_eq!((bench.machine.compacted(), bench.machine.revision()), (1, 1));
}

#[test]
fn a_put_without_a_lease_leaves_the_old_one() {
    let mut bench = Bench::new();
    bench.ask(Command::LeaseGrant { id: 5, ttl: 10 }).unwrap();
    bench.ask(put_leased("k", 5)).unwrap();
    let keep = PutRequest { key: bytes("k"), ignore_lease: true, value: bytes("v"), ..Default::default() };
    bench.ask(Command::Put(keep)).unwrap();
    assert_eq!(bench.get("k", 0).unwrap().lease, 5, "ignore_lease keeps it");
    bench.put("k", "").unwrap();
    assert_eq!(bench.get("k", 0).unwrap().lease, 0);
    bench.ask(Command::LeaseRevoke { id: 5 }).unwrap();
    assert!(bench.get("k", 0).is_some());
    assert_eq!(bench.ask(put_leased("k", 5)), Err(Refusal::LeaseNotFound { id: 5 }));
}

#[test]
fn ignored_parts_must_exist_and_not_be_given() {
    let mut bench = Bench::new();
    let base = PutRequest { key: bytes("k"), ..Default::default() };
    let value = PutRequest { ignore_value: true, ..base.clone() };
    let lease = PutRequest { ignore_lease: true, ..base.clone() };
    assert_eq!(bench.ask(Command::Put(value.clone())), Err(Refusal::KeyNotFound));
    assert_eq!(bench.ask(Command::Put(lease.clone())), Err(Refusal::KeyNotFound));
    bench.put("k", "kept").unwrap();
    let both = PutRequest { value: bytes("x"), ..value.clone() };
    assert_eq!(bench.ask(Command::Put(both)), Err(Refusal::ValueProvided));
    let both = PutRequest { lease: 3, ..lease };
    assert_eq!(bench.ask(Command::Put(both)), Err(Refusal::LeaseProvided));
    let prev = bench.ask(Command::Put(PutRequest { prev_kv: true, ..value })).unwrap();
    let Answer::Put(PutResponse { prev: Some(prev) }) = prev else { panic!("{prev:?}") };
    assert_eq!((prev.value, prev.version), (bytes("kept"), 1));
    let kv = bench.get("k", 0).unwrap();
    assert_eq!((kv.value, kv.version), (bytes("kept"), 2));
}

#[test]
fn a_read_in_a_transaction_sees_what_was_put_before_it() {
    let mut bench = Bench::new();
    bench.put("k", "old").unwrap();
    let at = |revision| {
        TxnOp::Range(RangeRequest { range: KeyRange::key(bytes("k")), revision, ..Default::default() })
    };
    let request = txn(vec![], vec![get("k"), op(put("k", "new")), get("k"), at(2)], vec![]);
    let response = answer_txn(bench.ask(Command::Txn(request)));
    let values: Vec<(Bytes, Revision)> = response
        .responses
        .iter()
        .filter_map(|response| match response {
            TxnOpResponse::Range(range) => Some((range.kvs[0].value.clone(), range.kvs[0].mod_revision)),
            _ => None,
        })
        .collect();
    assert_eq!(values, [(bytes("old"), 2), (bytes("new"), 3), (bytes("old"), 2)]);
}

#[test]
fn nested_compares_look_at_the_state_before() {
    let mut bench = Bench::new();
    let inner = txn(
        vec![compare("k", CompareOp::Equal, CompareTarget::Version(0))],
        vec![op(put("seen", "before"))],
        vec![op(put("seen", "after"))],
    );
    let outer = txn(vec![], vec![op(put("k", "")), TxnOp::Txn(inner)], vec![]);
    bench.ask(Command::Txn(outer)).unwrap();
    assert_eq!(bench.get("seen", 0).unwrap().value, bytes("before"));
}

#[test]
fn revisions_inside_a_transaction_are_checked_before_anything_is_written() {
    let mut bench = Bench::new();
    bench.put("k", "").unwrap();
    let future = RangeRequest { range: KeyRange::all(), revision: 3, ..Default::default() };
    let request = txn(vec![], vec![op(put("k", "new")), TxnOp::Range(future.clone())], vec![]);
    let refused = Err(Refusal::FutureRevision { requested: 3, current: 2 });
    assert_eq!(bench.ask(Command::Txn(request)), refused, "not even the revision it would make");
    assert_eq!(bench.get("k", 0).unwrap().value, bytes(""));
    let untaken = txn(vec![], vec![op(put("k", "new"))], vec![TxnOp::Range(future)]);
    assert!(bench.ask(Command::Txn(untaken)).is_ok(), "the other path is not looked at");
}

/// Outside of one a revision below 0 is the newest, compacted or not.
#[test]
fn a_revision_below_zero_inside_a_transaction_is_an_old_one() {
    let mut bench = Bench::new();
    bench.put("k", "").unwrap();
    bench.put("k", "").unwrap();
    let check = |bench: &mut Bench, revision, compacted: Option<Revision>| {
        let old = RangeRequest { range: KeyRange::all(), revision, ..Default::default() };
        assert!(bench.range(&old).is_ok());
        let expect = || match compacted {
            Some(compacted) => Err(Refusal::Compacted { requested: revision, compacted }),
            None => Ok(()),
        };
        let reads = txn(vec![], vec![TxnOp::Range(old.clone())], vec![]);
        let read = bench.view(|view| read::txn_read_only(view, &reads).unwrap().map(drop));
        assert_eq!(read, expect());
        let writes = txn(vec![], vec![op(put("k", "")), TxnOp::Range(old)], vec![]);
        assert_eq!(bench.ask(Command::Txn(writes)).map(drop), expect());
    };
    check(&mut bench, -1, None);
    check(&mut bench, -2, Some(-1));
    bench.ask(compact(2)).unwrap();
    check(&mut bench, -1, Some(2));
    check(&mut bench, 0, None);
}

#[test]
fn one_path_changes_a_key_at_most_once() {
    let p = |key: &str| op(put(key, ""));
    let d = |key: &str| op(delete(KeyRange::key(bytes(key))));
    let all = || op(delete(KeyRange::all()));
    let both = |then: Vec<TxnOp>, otherwise: Vec<TxnOp>| TxnOp::Txn(txn(vec![], then, otherwise));
    let then = |ops: Vec<TxnOp>| both(ops, vec![]);
    let end_before_key = || op(delete(KeyRange::span(bytes("z"), bytes("a"))));
    let cases: Vec<(&str, Vec<TxnOp>, bool)> = vec![
        ("two keys", vec![p("a"), p("b")], true),
        ("put twice", vec![p("a"), p("a")], false),
        ("put, delete", vec![p("a"), d("a")], false),
        ("delete, put", vec![d("a"), p("a")], false),
        ("range delete over a put", vec![p("q"), all()], false),
        ("put just behind a range", vec![op(delete(KeyRange::span(bytes("a"), bytes("b")))), p("b")], true),
        ("deletes overlap", vec![d("a"), all(), d("a")], true),
        ("an empty range deletes nothing", vec![end_before_key(), p("m")], true),
        ("nested put, outer put", vec![then(vec![p("a")]), p("a")], false),
        ("outer put, nested put", vec![p("a"), then(vec![p("a")])], false),
        ("nested delete, outer put", vec![then(vec![d("a")]), p("a")], false),
        ("outer delete, nested put", vec![d("a"), then(vec![p("a")])], false),
        ("nested put, outer delete", vec![then(vec![p("a")]), all()], false),
        ("siblings: put, put", vec![then(vec![p("a")]), then(vec![p("a")])], false),
        ("siblings: delete, put", vec![then(vec![d("a")]), then(vec![p("a")])], false),
        ("siblings: put, delete (etcd overlooks it)", vec![then(vec![p("a")]), then(vec![d("a")])], false),
        ("branches exclude each other", vec![both(vec![p("a")], vec![p("a")])], true),
        ("branches exclude each other: delete", vec![both(vec![d("a")], vec![p("a")])], true),
        ("either branch against its side", vec![both(vec![], vec![p("a")]), p("a")], false),
        ("deep down", vec![then(vec![then(vec![p("a")])]), d("a")], false),
    ];
    for (name, ops, fine) in cases {
        for request in [txn(vec![], ops.clone(), vec![]), txn(vec![], vec![], ops)] {
            let expect = if fine { Ok(()) } else { Err("twice") };
            let found = validate(&Command::Txn(request)).map_err(|refusal| match refusal {
                Refusal::DuplicateKey { .. } => "twice",
                other => panic!("{name}: {other}"),
            });
            assert_eq!(found, expect, "{name}");
        }
    }
    // The two paths of the whole exclude each other as well.
    assert_eq!(validate(&Command::Txn(txn(vec![], vec![p("a")], vec![d("a")]))), Ok(()));
}

#[test]
fn a_range_whose_end_is_not_behind_its_key_is_empty() {
    let mut bench = Bench::new();
    bench.put("m", "").unwrap();
    for (key, end) in [("z", "a"), ("m", "m")] {
        let range = KeyRange::span(bytes(key), bytes(end));
        let request = RangeRequest { range: range.clone(), ..Default::default() };
        assert_eq!(bench.range(&request), Ok(RangeResponse::default()));
        assert_eq!(bench.range(&RangeRequest { revision: 1, ..request }), Ok(RangeResponse::default()));
        let none = DeleteResponse { deleted: 0, prevs: vec![] };
        assert_eq!(bench.ask(delete(range)), Ok(Answer::Delete(none)));
    }
    let negative = RangeRequest { range: KeyRange::all(), limit: -1, ..Default::default() };
    assert_eq!(bench.range(&negative).map(|found| found.kvs.len()), Ok(1), "a negative limit is none");
}

#[test]
fn leases_end_with_their_keys_in_order() {
    let mut bench = Bench::new();
    let granted = bench.run(Command::LeaseGrant { id: 1, ttl: -3 });
    assert_eq!(granted.outcomes[0].result, Ok(Answer::Lease { id: 1, ttl: 2 }), "raised to the smallest");
    assert_eq!(granted.leases, [LeaseChange::Granted { id: 1, ttl: 2 }]);
    bench.run(Command::LeaseGrant { id: 2, ttl: 9 });
    bench.run(Command::LeaseGrant { id: 3, ttl: 9 });
    assert_eq!(bench.ask(Command::LeaseGrant { id: 3, ttl: 9 }), Err(Refusal::LeaseExists { id: 3 }));
    for (key, lease) in [("c", 1), ("a", 1), ("b", 3)] {
        bench.ask(put_leased(key, lease)).unwrap();
    }
    let before = bench.machine.revision();
    let stale = bench.run(Command::LeaseExpire { ids: vec![1], term: 9 });
    assert_eq!(stale.outcomes[0].result, Err(Refusal::StaleLeader { decided: 9, applied: 1 }));
    assert!(stale.leases.is_empty() && bench.machine.revision() == before);
    let applied = bench.run(Command::LeaseExpire { ids: vec![1, 8, 2, 3, 1], term: 1 });
    let made: Vec<(Revision, Vec<Bytes>)> = applied
        .changes
        .iter()
        .map(|change| (change.revision, change.events.iter().map(|event| event.kv.key.clone()).collect()))
        .collect();
    let expected = vec![(before + 1, vec![bytes("a"), bytes("c")]), (before + 2, vec![bytes("b")])];
    assert_eq!(made, expected, "a revision for each lease with keys, none for others");
    let ended = |id| LeaseChange::Ended { id };
    assert_eq!(applied.leases, [ended(1), ended(2), ended(3)]);
}

#[test]
fn a_repeated_request_is_answered_and_not_done_again() {
    let mut bench = Bench::new();
    let with_prev = |value: &str| {
        let request =
            PutRequest { key: bytes("k"), value: bytes(value), prev_kv: true, ..Default::default() };
        Command::Put(request)
    };
    bench.put("k", "0").unwrap();
    let first = bench.once(9, 1, with_prev("1"));
    let revision = bench.machine.revision();
    bench.reopen();
    assert_eq!(bench.once(9, 1, with_prev("1")), first);
    assert_eq!(bench.machine.revision(), revision);
    // A refusal is kept too: what a caller was told was not done must not be done later.
    let refused = bench.once(9, 2, put_leased("k", 5));
    assert_eq!(refused, Err(Refusal::LeaseNotFound { id: 5 }));
    bench.ask(Command::LeaseGrant { id: 5, ttl: 9 }).unwrap();
    assert_eq!(bench.once(9, 2, put_leased("k", 5)), refused);
    assert_eq!(bench.once(9, 1, with_prev("1")), Err(Refusal::OnceOvertaken { seq: 1, newest: 2 }));
    assert!(bench.once(8, 1, with_prev("1")).is_ok(), "another client's numbers are its own");
    // Within one batch as well.
    let once = Some(OnceId { client: 7, seq: 1 });
    let command = with_prev("x");
    let applied = bench.entries(&[vec![(once, command.clone())], vec![(once, command)]]);
    assert_eq!(applied.outcomes[0], Outcome { ..applied.outcomes[1].clone() });
    assert_eq!(applied.changes.len(), 1);
}

#[cfg(feature = "sim")]
#[test]
fn a_request_that_is_done_again_shows() {
    let ask = || {
        let mut bench = Bench::new();
        let command = Command::Put(PutRequest { key: bytes("k"), prev_kv: true, ..Default::default() });
        bench.once(9, 1, command.clone()) == bench.once(9, 1, command)
    };
    assert!(ask());
    assert!(!crate::planted::with(Some(crate::planted::Bug::RepeatOnce), ask));
}

#[test]
fn the_client_used_the_longest_ago_is_forgotten() {
    let mut bench = Bench::new();
    let named = |client| (Some(OnceId { client, seq: 1 }), put("k", ""));
    let all: Vec<_> = (0..MAX_ONCE_CLIENTS).map(named).collect();
    bench.entries(&[all]);
    bench.once(0, 2, Command::Noop).unwrap();
    bench.once(MAX_ONCE_CLIENTS, 1, Command::Noop).unwrap();
    let revision = bench.machine.revision();
    bench.once(2, 1, put("k", "")).unwrap();
    assert_eq!(bench.machine.revision(), revision, "still known");
    assert_eq!(bench.once(0, 1, Command::Noop), Err(Refusal::OnceOvertaken { seq: 1, newest: 2 }));
    bench.once(1, 1, put("k", "")).unwrap();
    assert_eq!(bench.machine.revision(), revision + 1, "forgotten, so done again");
}

#[test]
fn members_come_and_go_and_never_return() {
    let mut bench = Bench::new();
    let record = |id: u64, name: &str| MemberRecord {
        id: NodeId(id),
        name: name.into(),
        addr: format!("{name}:1"),
        ..Default::default()
    };
    let request = Some(RequestId { origin: VOTER, boot: 1, seq: 1 });
    let conf = |voters: &[u64], learners: &[u64], outgoing: &[u64]| ConfState {
        voters: voters.iter().copied().map(NodeId).collect(),
        learners: learners.iter().copied().map(NodeId).collect(),
        voters_outgoing: outgoing.iter().copied().map(NodeId).collect(),
        ..Default::default()
    };
    let mut change = |change: ConfChange, after: ConfState| {
        let applied = bench.payload(Payload::Config { change, request, after: after.clone() });
        assert!(applied.members_changed);
        assert_eq!(bench.machine.applied().conf, after);
        bench.reopen();
        assert_eq!(bench.machine.applied().conf, after);
        match &applied.outcomes[0].result {
            Ok(Answer::Members(members)) => {
                members.iter().map(|member| (member.record.id.0, member.role)).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    use MemberRole::{Learner, Voter};
    let added = change(ConfChange::AddLearner(record(8, "two")), conf(&[7], &[8], &[]));
    assert_eq!(added, [(7, Voter), (8, Learner)]);
    assert_eq!(change(ConfChange::Promote(NodeId(8)), conf(&[7, 8], &[], &[])), [(7, Voter), (8, Voter)]);
    // While a joint change is under way, who leaves is still there.
    assert_eq!(change(ConfChange::Remove(VOTER), conf(&[8], &[], &[7, 8])), [(7, Voter), (8, Voter)]);
    assert_eq!(change(ConfChange::LeaveJoint, conf(&[8], &[], &[])), [(8, Voter)]);
    assert!(bench.view(|view| read::removed(view, VOTER)).unwrap());
    let admit = |change: ConfChange| bench.view(|view| read::admit_change(view, &change)).unwrap();
    assert!(matches!(admit(ConfChange::AddLearner(record(7, "x"))), Err(Refusal::MemberUnfit { .. })));
    assert!(matches!(admit(ConfChange::AddLearner(record(9, "two"))), Err(Refusal::MemberTaken { .. })));
    assert_eq!(admit(ConfChange::AddLearner(record(9, "x"))), Ok(()));
    assert!(matches!(admit(ConfChange::Remove(NodeId(8))), Err(Refusal::MemberNeeded { .. })));
    assert_eq!(admit(ConfChange::Promote(NodeId(5))), Err(Refusal::MemberNotFound { id: NodeId(5) }));
    let unknown = Command::MemberUpdate(record(7, "x"));
    assert_eq!(bench.ask(unknown), Err(Refusal::MemberNotFound { id: NodeId(7) }));
    assert!(bench.ask(Command::MemberUpdate(record(8, "renamed"))).is_ok());
    let members = bench.view(read::members).unwrap();
    assert_eq!((members.len(), members[0].record.name.as_str()), (1, "renamed"));
}

#[test]
fn tokens_and_the_root() {
    let mut bench = Bench::new();
    let ids = |bench: &Bench| {
        let tokens = bench.view(read::tokens).unwrap();
        tokens.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&bench), ["t1"]);
    let token = token(Role::Worker);
    let create = TrustChange::TokenCreate { id: "t0".into(), token: token.clone(), now: 5 };
    bench.ask(Command::Trust(create)).unwrap();
    assert_eq!(ids(&bench), ["t0", "t1"]);
    assert_eq!(bench.view(|view| read::token(view, "t0")).unwrap(), Some(token));
    bench.ask(Command::Trust(TrustChange::TokenRevoke { id: "t1".into() })).unwrap();
    assert_eq!(ids(&bench), ["t0"]);
    assert!(bench.ask(Command::Trust(TrustChange::TokenRevoke { id: "t1".into() })).is_err());
    let trusted = bench.view(read::trusted).unwrap();
    assert_eq!(trusted.roots, [authority(1)]);
    assert!(!format!("{trusted:?}").contains("key\""), "the key is never shown");
}

#[test]
fn collection_goes_in_bounded_steps_and_only_behind_the_mark() {
    let mut bench = Bench::new();
    let keys = COMPACT_STEP_KEYS as u64 * 5 / 2;
    for _ in 0..2 {
        let all: Vec<_> = (0..keys).map(|at| (None, put(&format!("{at:06}"), "v"))).collect();
        bench.entries(&[all]);
    }
    // One revision with more changes than a step may remove.
    bench.ask(Command::Delete(DeleteRequest { range: KeyRange::all(), prev_kv: false })).unwrap();
    let kept = |bench: &Bench| bench.view(|view| view.scan(Table::Past, b"", None).count());
    assert_eq!(kept(&bench), 2 * keys as usize);
    assert!(!bench.machine.collect().unwrap(), "nothing is compacted yet");
    bench.ask(compact(bench.machine.revision())).unwrap();
    let hash = bench.hash();
    let mut before = kept(&bench);
    let mut steps = 0;
    while bench.machine.collect().unwrap() {
        let now = kept(&bench);
        assert!(before - now <= COMPACT_STEP_KEYS && bench.hash() == hash);
        before = now;
        steps += 1;
        bench.reopen();
    }
    assert!(steps >= 5, "{steps}");
    assert_eq!((kept(&bench), bench.hash()), (0, hash));
    assert_eq!(bench.history(bench.machine.revision()).unwrap()[0].events.len(), keys as usize);
}

#[test]
fn keys_with_many_versions_are_read_at_each_revision() {
    let mut bench = Bench::new();
    for at in 0..120 {
        // Long runs of one key's versions, longer than are passed over one by one.
        let key = ["a", "a\0", "b", "c"][at / 10 % 4];
        bench.put(key, &format!("{at}")).unwrap();
    }
    bench.ask(delete(KeyRange::key(bytes("b")))).unwrap();
    for revision in 1..=bench.machine.revision() {
        let request = RangeRequest { range: KeyRange::all(), revision, ..Default::default() };
        let found = bench.range(&request).unwrap().kvs;
        let one_by_one = ["a", "a\0", "b", "c"].into_iter().filter_map(|key| bench.get(key, revision));
        assert_eq!(found, one_by_one.collect::<Vec<_>>(), "at {revision}");
        let newest = found.iter().map(|kv| kv.mod_revision).max();
        assert!(newest == Some(revision) || revision == 1 || revision == 122, "at {revision}: {newest:?}");
    }
}

#[test]
fn history_comes_in_whole_revisions() {
    let mut bench = Bench::new();
    for at in 0..10 {
        let two = vec![op(put("a", &format!("{at}"))), op(put("b", "0123456789"))];
        bench.ask(Command::Txn(txn(vec![], two, vec![]))).unwrap();
    }
    let page = |from, to, bytes| bench.view(|view| read::history(view, from, to, bytes)).unwrap().unwrap();
    assert_eq!(page(3, 99, 0).len(), 1, "at least one");
    assert_eq!(page(3, 99, 60).iter().map(|change| change.revision).collect::<Vec<_>>(), [3, 4]);
    assert!(page(0, 99, usize::MAX).iter().all(|change| change.events.len() == 2));
    assert_eq!(page(5, 7, usize::MAX).len(), 3);
    assert_eq!((page(12, 99, 9), page(7, 5, 9)), (vec![], vec![]));
}

#[test]
fn a_read_only_transaction_needs_no_entry() {
    let mut bench = Bench::new();
    bench.put("k", "v").unwrap();
    let compares = vec![compare("k", CompareOp::Equal, CompareTarget::Value(bytes("v")))];
    let request = txn(compares, vec![get("k"), get("none")], vec![]);
    let read = bench.view(|view| read::txn_read_only(view, &request)).unwrap();
    let written = answer_txn(bench.ask(Command::Txn(request)));
    assert_eq!(read, Ok((2, written)));
    let writes = txn(vec![], vec![], vec![op(put("k", ""))]);
    assert!(matches!(
        bench.view(|view| read::txn_read_only(view, &writes)).unwrap(),
        Err(Refusal::Invalid { .. })
    ));
}

#[test]
fn opening_what_is_not_ours() {
    assert!(Machine::open(MemoryStore::new()).unwrap().is_none());
    let bench = Bench::new();
    let store = bench.machine.store().clone();
    store.crash(0);
    let machine = Machine::open(store.clone()).unwrap().expect("creation was flushed");
    assert_eq!((machine.applied().index, machine.applied().term, machine.cluster()), (1, 1, ClusterId(99)));
    let set = |key: &'static [u8], value: Option<Bytes>| {
        store.write(Batch { writes: vec![(Table::Meta, Bytes::from_static(key), value)] }).unwrap();
    };
    set(format::meta::REVISION, None);
    let damaged = Machine::open(store.clone()).unwrap_err();
    assert!(damaged.why.contains("\"revision\" is missing"), "{damaged}");
    set(format::meta::FORMAT, Some((FORMAT + 1).to_bytes()));
    let newer = Machine::open(store.clone()).unwrap_err();
    assert!(newer.why.contains(&format!("format {FORMAT}")) && newer.next.contains("newer"), "{newer}");
}

#[test]
#[should_panic(expected = "entries follow directly")]
fn a_gap_in_the_log_is_a_bug() {
    let mut bench = Bench::new();
    let payload = Payload::Proposals(Bytes::new());
    let _ = bench.machine.apply(vec![Committed { index: 3, term: 1, payload }]);
}

#[test]
#[should_panic(expected = "is no list of proposals")]
fn a_malformed_entry_is_a_bug() {
    Bench::new().payload(Payload::Proposals(bytes("?")));
}

#[test]
fn a_raised_revision_has_no_events_and_nothing_is_readable_below_it() {
    let mut bench = Bench::new();
    bench.put("a", "1").unwrap();
    let raised = bench.run(Command::RaiseRevision { to: 1000 });
    assert_eq!((raised.outcomes[0].revision, raised.raised, raised.changes.len()), (1000, true, 0));
    assert_eq!((bench.machine.revision(), bench.machine.compacted()), (1000, 1000));
    assert_eq!(bench.history(1000), Ok(Vec::new()), "the raised revision itself can be watched");
    let gone = |requested| Refusal::Compacted { requested, compacted: 1000 };
    assert_eq!(bench.history(999), Err(gone(999)));
    let old = RangeRequest { range: KeyRange::all(), revision: 999, ..Default::default() };
    assert_eq!(bench.range(&old), Err(gone(999)));
    assert_eq!(bench.get("a", 1000).unwrap().mod_revision, 2, "keys keep the revisions they have");
    // What is there already is not lowered, and its history goes all the same.
    bench.put("a", "2").unwrap();
    let again = bench.run(Command::RaiseRevision { to: 5 });
    assert_eq!((again.outcomes[0].revision, again.raised), (1001, false));
    assert_eq!(bench.machine.compacted(), 1001);
    // The same entry may hold changes on both sides of the gap.
    let both = vec![put("b", "1"), Command::RaiseRevision { to: 2000 }, put("c", "1")];
    let both = bench.entries(&[both.into_iter().map(|command| (None, command)).collect()]);
    let revisions: Vec<_> = both.changes.iter().map(|change| change.revision).collect();
    assert_eq!((both.raised, revisions), (true, vec![1002, 2001]));
    bench.collect_all();
    bench.reopen();
    assert_eq!((bench.machine.revision(), bench.machine.compacted()), (2001, 2000));
    for to in [-1, i64::MAX] {
        assert!(bench.ask(Command::RaiseRevision { to }).is_err());
    }
}
