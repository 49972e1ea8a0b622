//! A copy of a state as the first of another cluster: what stays, what goes, and who is let in.

use super::*;

const NEW: NodeId = NodeId(70);

fn plan(fresh: bool) -> Restore {
    let node = NodeRecord { ends: 9000, ..NodeRecord::new(NEW, Role::Manager, "new", RootDigest([1; 32])) };
    Restore {
        cluster: ClusterId(100),
        member: MemberRecord { id: NEW, name: "new".into(), addr: "new:1".into(), ..Default::default() },
        node,
        tokens: vec![("t2".into(), token(Role::Worker))],
        token_key: Sealed(bytes("token key")),
        fresh: fresh.then(|| (authority(9), 5)),
        without: vec![NodeId(4), NodeId(5)],
        raise: 1000,
    }
}

fn issue(bench: &mut Bench, id: u64, role: Role) {
    let record = NodeRecord::new(NodeId(id), role, format!("n{id}"), RootDigest([1; 32]));
    let node = NodeRecord { ends: 5000, issued: 10, ..record };
    bench.ask(Command::Trust(TrustChange::Issue { node, renewal: false, now: 10 })).unwrap();
}

/// A cluster with clients 2 to 4, of which 3 was removed, a worker, a point, an alarm and some keys.
fn before() -> Bench {
    let mut bench = Bench::new();
    for (id, role) in [(2, Role::Client), (3, Role::Client), (4, Role::Client), (6, Role::Worker)] {
        issue(&mut bench, id, role);
    }
    bench.ask(Command::Trust(TrustChange::NodeRemove { id: NodeId(3), now: 11 })).unwrap();
    for number in 0..5 {
        let put = PutRequest { key: bytes("k"), value: bytes(&number.to_string()), ..PutRequest::default() };
        bench.ask(Command::Put(put)).unwrap();
    }
    bench.ask(Command::Alarm(AlarmRequest::Raise(VOTER, AlarmKind::Corrupt))).unwrap();
    bench
}

fn restored(bench: Bench, plan: &Restore) -> (Bench, Restored) {
    let store = bench.machine.store().clone();
    let restored = Machine::restore(&store, plan).unwrap().unwrap();
    let machine = Machine::open(store).unwrap().unwrap();
    assert_eq!(machine.applied(), restored.applied);
    (Bench { machine, term: restored.applied.term }, restored)
}

fn standing(bench: &Bench, id: NodeId) -> Standing {
    bench.view(|view| read::standing(view, id)).unwrap()
}

/// Who the copy refuses is refused, and so are its members and who was removed since.
pub fn who_is_let_in() {
    let (bench, _) = restored(before(), &plan(false));
    for (id, expect) in [
        (NodeId(2), Standing::Known(Role::Client)),
        (NodeId(3), Standing::Removed),
        (NodeId(4), Standing::Removed),
        (NodeId(5), Standing::Removed),
        (NodeId(6), Standing::Known(Role::Worker)),
        (VOTER, Standing::Removed),
        (NEW, Standing::Known(Role::Manager)),
    ] {
        assert_eq!(standing(&bench, id), expect, "{id}");
    }
    let (predecessors, members, tokens) = bench.view(|view| {
        (read::predecessors(view).unwrap(), read::members(view).unwrap(), read::tokens(view).unwrap())
    });
    assert_eq!(predecessors, [ClusterId(99)]);
    assert_eq!(members.iter().map(|it| it.record.id).collect::<Vec<_>>(), [NEW]);
    assert_eq!(tokens.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["t2"]);
}

/// The revision and the term go up, and nothing of before can be read.
pub fn what_is_readable() {
    let (mut bench, restored) = restored(before(), &plan(false));
    let revision = restored.before + 1000;
    assert_eq!(
        (restored.revision, bench.machine.revision(), bench.machine.compacted()),
        (revision, revision, revision)
    );
    assert!(restored.applied.term > 1 << 20 && restored.applied.conf.voters == [NEW]);
    let get = |revision| RangeRequest { range: KeyRange::key("k"), revision, ..RangeRequest::default() };
    let (_, found) = bench.view(|view| read::range(view, &get(0))).unwrap().unwrap();
    assert_eq!((&found.kvs[0].value[..], found.kvs[0].version), (&b"4"[..], 5));
    let old = bench.view(|view| read::range(view, &get(restored.before))).unwrap();
    assert!(matches!(old, Err(Refusal::Compacted { .. })), "{old:?}");
    assert_eq!(bench.view(read::alarms).unwrap(), []);
    // It goes on like any other: entries, and collection of what is compacted.
    let put = PutRequest { key: bytes("k"), value: bytes("new"), ..PutRequest::default() };
    bench.ask(Command::Put(put)).unwrap();
    assert_eq!(bench.machine.revision(), revision + 1);
    while bench.machine.collect().unwrap() {}
    let (_, found) = bench.view(|view| read::range(view, &get(0))).unwrap().unwrap();
    assert_eq!(&found.kvs[0].value[..], b"new");
}

/// Every revision done again from its events makes the keys what they were, deletes and several keys at once too.
#[test]
fn changes_done_again_give_the_same_keys() {
    let (mut one, mut other) = (Bench::new(), Bench::new());
    let key = |number: u64| KeyRange::key(format!("k{}", number % 7));
    let put = |number: u64, lease| {
        let (key, value) = (key(number).key, bytes(&"v".repeat(usize::try_from(number % 90).unwrap())));
        PutRequest { key, value, lease, ..PutRequest::default() }
    };
    one.ask(Command::LeaseGrant { id: 5, ttl: 60 }).unwrap();
    let delete = |range| DeleteRequest { range, prev_kv: false };
    let mut changes = Vec::new();
    for number in 0..200 {
        let command = match number % 9 {
            3 => Command::Delete(delete(key(number * 5))),
            5 => Command::Delete(delete(KeyRange::prefix("k"))),
            7 => Command::Put(put(number, 5)),
            8 => Command::Txn(TxnRequest {
                success: vec![TxnOp::Put(put(number, 0)), TxnOp::Delete(delete(key(number + 1)))],
                ..TxnRequest::default()
            }),
            _ => Command::Put(put(number * 3, 0)),
        };
        changes.extend(one.entries(&[vec![(None, command)]]).changes);
    }
    for change in &changes {
        other.machine.replay(change).unwrap();
    }
    assert_eq!(one.machine.revision(), other.machine.revision());
    let all = |bench: &Bench| {
        let request = RangeRequest { range: KeyRange::all(), ..RangeRequest::default() };
        let mut found = bench.view(|view| read::range(view, &request)).unwrap().unwrap().1.kvs;
        // There is no such lease where it is done again.
        found.iter_mut().for_each(|kv| kv.lease = 0);
        found
    };
    assert_eq!(all(&one), all(&other));
    // None twice, none left out, and none that never was.
    let last = changes.last().unwrap().clone();
    let skipped = Change { revision: last.revision + 2, ..last.clone() };
    let foreign = Change { revision: last.revision + 1, ..last.clone() };
    for wrong in [last, skipped, foreign] {
        assert!(other.machine.replay(&wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn who_was_refused_stays_refused() {
    who_is_let_in();
}

#[test]
fn the_revision_goes_up_and_history_is_gone() {
    what_is_readable();
}

#[test]
fn without_the_data_keys_nothing_of_the_old_trust_is_left() {
    let (bench, _) = restored(before(), &plan(true));
    assert_eq!([2, 6].map(|id| standing(&bench, NodeId(id))), [Standing::Unknown, Standing::Unknown]);
    assert_eq!([3, 4].map(|id| standing(&bench, NodeId(id))), [Standing::Removed, Standing::Removed]);
    let (trusted, sealing, predecessors) = bench.view(|view| {
        (read::trusted(view).unwrap(), read::sealing(view).unwrap(), read::predecessors(view).unwrap())
    });
    assert_eq!((trusted.roots, sealing.active, sealing.unlock), (vec![authority(9)], 5, None));
    assert_eq!(predecessors, []);
}

#[test]
fn a_raise_has_bounds() {
    for (revision, raise, expect) in [
        (5, 0, None),
        (5, -1, None),
        (5, 1, Some(6)),
        (5, i64::MAX, None),
        (5, crate::limits::MAX_RAISED_REVISION - 5, Some(crate::limits::MAX_RAISED_REVISION)),
        (5, crate::limits::MAX_RAISED_REVISION - 4, None),
    ] {
        assert_eq!(check_raise(revision, raise).ok(), expect, "{revision} {raise}");
    }
}

#[test]
fn a_cluster_remembers_only_so_many_it_was_restored_from() {
    let mut bench = before();
    for number in 0..20u64 {
        let id = NodeId(70 + number);
        let mut next = Restore { cluster: ClusterId(200 + number), ..plan(false) };
        (next.member.id, next.node.id) = (id, id);
        bench = restored(bench, &next).0;
    }
    let known = bench.view(|view| read::predecessors(view)).unwrap();
    assert_eq!((known.len(), known.last()), (crate::limits::MAX_PREDECESSORS, Some(&ClusterId(218))));
}
