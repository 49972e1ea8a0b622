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
