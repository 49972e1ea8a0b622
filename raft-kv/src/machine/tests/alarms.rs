//! What each alarm forbids, and what always works.

use super::*;

fn raise(kind: AlarmKind) -> Command {
    Command::Alarm(AlarmRequest::Raise(VOTER, kind))
}

fn end(kind: AlarmKind) -> Command {
    Command::Alarm(AlarmRequest::End(VOTER, kind))
}

fn nested_put() -> Command {
    let put = PutRequest { key: bytes("k"), ..PutRequest::default() };
    let inner = TxnRequest { failure: vec![TxnOp::Put(put)], ..TxnRequest::default() };
    Command::Txn(TxnRequest { success: vec![TxnOp::Txn(inner)], ..TxnRequest::default() })
}

pub fn no_space() {
    let mut bench = Bench::new();
    bench.ask(Command::LeaseGrant { id: 1, ttl: 60 }).unwrap();
    bench.put("k", "v").unwrap();
    bench.ask(points::create("early", None, 1)).unwrap();
    bench.ask(raise(AlarmKind::NoSpace)).unwrap();
    let refused = Err(Refusal::Alarmed { kind: AlarmKind::NoSpace });
    let point = points::create("late", None, 1);
    for command in [put("k", "w"), Command::LeaseGrant { id: 2, ttl: 60 }, nested_put(), point] {
        assert_eq!(bench.ask(command), refused);
    }
    // In the batch that raises it, too.
    bench.ask(end(AlarmKind::NoSpace)).unwrap();
    let batch = [raise(AlarmKind::NoSpace), put("k", "x"), end(AlarmKind::NoSpace), put("k", "y")];
    let applied = bench.entries(&[batch.into_iter().map(|command| (None, command)).collect()]);
    let results: Vec<_> = applied.outcomes.iter().map(|outcome| outcome.result.is_ok()).collect();
    assert_eq!(results, [true, false, true, true]);
    bench.ask(raise(AlarmKind::NoSpace)).unwrap();
    for command in [
        delete(KeyRange::key("k")),
        Command::Compact { revision: 2 },
        Command::LeaseRevoke { id: 1 },
        points::rollback("early", None, 1),
    ] {
        assert!(bench.ask(command.clone()).is_ok(), "{command:?}");
    }
    assert_eq!(bench.view(read::check_read).unwrap(), Ok(()));
}

#[test]
fn short_space_stops_what_needs_more_of_it() {
    no_space();
}

/// Which members vote, which only learn.
fn config(bench: &mut Bench, change: ConfChange, voters: &[NodeId], learners: &[NodeId]) {
    let after = ConfState { voters: voters.into(), learners: learners.into(), ..ConfState::default() };
    bench.payload(Payload::Config { change, request: None, after });
}

pub fn disk_short() {
    let mut bench = Bench::new();
    let other = NodeId(8);
    let record = MemberRecord { id: other, name: "two".into(), addr: "two:1".into(), ..Default::default() };
    config(&mut bench, ConfChange::AddLearner(record), &[VOTER], &[other]);
    let say = |bench: &mut Bench, kind, raised: bool| {
        let request = if raised { AlarmRequest::Raise(other, kind) } else { AlarmRequest::End(other, kind) };
        bench.ask(Command::Alarm(request)).unwrap();
    };
    let refused = Err(Refusal::Alarmed { kind: AlarmKind::DiskShort });
    say(&mut bench, AlarmKind::DiskShort, true);
    bench.put("k", "of a learner's disk nobody hears").unwrap();
    bench.ask(points::create("small", None, 1)).unwrap();
    bench.put("k", "of a learner's disk nobody hears at all").unwrap();
    bench.ask(points::create("large", None, 1)).unwrap();
    config(&mut bench, ConfChange::Promote(other), &[VOTER, other], &[]);
    assert_eq!(bench.put("k", ""), refused);
    assert_eq!(bench.ask(nested_put()), refused);
    assert_eq!(bench.view(|view| read::room_for(view, &put("k", "v"))).unwrap(), refused.map(drop));
    bench.reopen();
    let refused = Err(Refusal::Alarmed { kind: AlarmKind::DiskShort });
    assert_eq!(bench.put("k", ""), refused);
    // What makes room, or takes none, is done.
    bench.ask(points::rollback("small", None, 1)).unwrap();
    assert_eq!(bench.ask(points::rollback("large", None, 1)), refused);
    bench.ask(Command::Compact { revision: 2 }).unwrap();
    bench.ask(delete(KeyRange::all())).unwrap();
    bench.ask(Command::Quota { bytes: None }).unwrap();
    // The one kind is not ended with the other.
    say(&mut bench, AlarmKind::NoSpace, true);
    say(&mut bench, AlarmKind::DiskShort, false);
    assert_eq!(bench.put("k", ""), Err(Refusal::Alarmed { kind: AlarmKind::NoSpace }));
    say(&mut bench, AlarmKind::DiskShort, true);
    say(&mut bench, AlarmKind::NoSpace, false);
    assert_eq!(bench.put("k", ""), refused);
    // Who is no member any more keeps nobody from anything.
    config(&mut bench, ConfChange::Remove(other), &[VOTER], &[]);
    assert_eq!(bench.view(read::alarms).unwrap(), []);
    bench.put("k", "v").unwrap();
}

#[test]
fn a_voters_short_disk_stops_what_takes_space_and_nothing_else() {
    disk_short();
}

#[test]
fn a_corrupt_state_is_neither_written_nor_read() {
    let mut bench = Bench::new();
    bench.put("k", "v").unwrap();
    bench.ask(raise(AlarmKind::Corrupt)).unwrap();
    let refused = Refusal::Alarmed { kind: AlarmKind::Corrupt };
    let commands = [
        put("k", "w"),
        delete(KeyRange::key("k")),
        nested_put(),
        Command::Compact { revision: 2 },
        Command::LeaseGrant { id: 2, ttl: 60 },
        Command::LeaseRevoke { id: 2 },
        Command::LeaseExpire { ids: vec![], term: 1 },
    ];
    for command in commands {
        assert_eq!(bench.ask(command), Err(refused.clone()));
    }
    assert_eq!(bench.view(read::check_read).unwrap(), Err(refused));
    assert_eq!(bench.view(read::alarms).unwrap(), [(VOTER, AlarmKind::Corrupt)]);
    bench.ask(Command::MemberUpdate(genesis().member)).unwrap();
    bench.ask(raise(AlarmKind::NoSpace)).unwrap();
    bench.reopen();
    assert_eq!(bench.view(read::alarms).unwrap().len(), 2);
    bench.ask(end(AlarmKind::Corrupt)).unwrap();
    bench.ask(end(AlarmKind::Corrupt)).unwrap();
    assert_eq!(bench.view(read::alarms).unwrap(), [(VOTER, AlarmKind::NoSpace)]);
    bench.ask(delete(KeyRange::key("k"))).unwrap();
    assert!(bench.ask(Command::Alarm(AlarmRequest::List(None))).is_err());
    let stranger = Command::Alarm(AlarmRequest::Raise(NodeId(1), AlarmKind::NoSpace));
    assert_eq!(bench.ask(stranger), Err(Refusal::MemberNotFound { id: NodeId(1) }));
}
