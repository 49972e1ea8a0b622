//! A new epoch: who is left, what stays, and what is never handed out twice.

use super::*;

const NEW: NodeId = NodeId(70);
const MARGIN: Revision = 1000;

fn learner(id: u64) -> MemberRecord {
    MemberRecord { id: NodeId(id), name: format!("m{id}"), addr: format!("m{id}:1"), ..Default::default() }
}

fn certificate(id: u64, role: Role) -> Command {
    let record = NodeRecord::new(NodeId(id), role, format!("n{id}"), RootDigest([1; 32]));
    let node = NodeRecord { ends: 5000, issued: 10, ..record };
    Command::Trust(TrustChange::Issue { node, renewal: false, now: 10 })
}

/// Two more members, a client, a worker, a manager that never came, keys and points.
fn before() -> Bench {
    let mut bench = Bench::new();
    for id in [8, 9] {
        bench.ask(certificate(id, Role::Manager)).unwrap();
        let mut conf = bench.machine.applied().conf;
        conf.learners.push(NodeId(id));
        let change = ConfChange::AddLearner(learner(id));
        bench.payload(Payload::Config { change, request: None, after: conf.clone() });
        conf.learners.clear();
        conf.voters.push(NodeId(id));
        bench.payload(Payload::Config {
            change: ConfChange::Promote(NodeId(id)),
            request: None,
            after: conf,
        });
    }
    bench.ask(certificate(20, Role::Client)).unwrap();
    bench.ask(certificate(21, Role::Worker)).unwrap();
    bench.ask(certificate(22, Role::Manager)).unwrap();
    bench.ask(Command::Alarm(AlarmRequest::Raise(NodeId(8), AlarmKind::Corrupt))).unwrap();
    bench
}

fn new_epoch(bench: &Bench, sure: Revision) -> NewEpoch {
    NewEpoch {
        member: MemberRecord { id: NEW, ..genesis().member },
        node: NodeRecord { ends: 5000, ..NodeRecord::new(NEW, Role::Manager, "one", RootDigest([1; 32])) },
        term: bench.machine.applied().term + 5,
        revision: bench.machine.revision() + MARGIN,
        sure,
    }
}

/// Whoever could speak as a manager before can't any more; everybody else is as before.
pub fn members() {
    let mut bench = before();
    let applied = bench.machine.applied();
    let new = new_epoch(&bench, bench.machine.revision());
    let boundary = bench.machine.begin_epoch(&new).unwrap();
    assert_eq!((boundary.index, boundary.term), (applied.index + 1, new.term));
    assert_eq!(boundary.conf, ConfState { voters: vec![NEW], ..ConfState::default() });
    // Flushed: a crash right after it changes nothing.
    bench.machine.store().crash(0);
    bench.reopen();
    assert_eq!(bench.machine.applied(), boundary);
    let ids: Vec<_> = bench.view(read::members).unwrap().iter().map(|member| member.record.id).collect();
    assert_eq!(ids, [NEW]);
    let check = |id, expect| {
        assert_eq!(bench.view(|view| read::standing(view, NodeId(id))).unwrap(), expect, "{id}");
    };
    [VOTER.0, 8, 9, 22].into_iter().for_each(|id| check(id, Standing::Removed));
    check(NEW.0, Standing::Known(Role::Manager));
    check(20, Standing::Known(Role::Client));
    check(21, Standing::Known(Role::Worker));
    check(23, Standing::Unknown);
    assert_eq!(bench.view(read::alarms).unwrap(), []);
    assert_eq!(bench.view(read::tokens).unwrap().len(), 1);
    assert_eq!(bench.view(read::epoch).unwrap(), 2);
}

/// No revision that may have been handed out is handed out again or readable, and keys stay.
pub fn revisions() {
    let mut bench = Bench::new();
    bench.put("a", "1").unwrap();
    bench.put("a", "2").unwrap();
    let point = |name: &str| {
        let (author, comment) = (String::new(), String::new());
        Command::Point(PointChange::Create {
            name: name.into(),
            at: None,
            expires: None,
            author,
            comment,
            now: 1,
        })
    };
    bench.ask(point("sure")).unwrap();
    let sure = bench.machine.revision();
    bench.put("b", "3").unwrap();
    bench.ask(point("doubtful")).unwrap();
    let last = bench.machine.revision();
    let new = new_epoch(&bench, sure);
    bench.machine.begin_epoch(&new).unwrap();
    bench.reopen();
    assert_eq!(bench.machine.revision(), last + MARGIN);
    for revision in [sure - 1, last, last + 1, last + MARGIN - 1] {
        let compacted = |refused: Option<Refusal>| matches!(refused, Some(Refusal::Compacted { .. }));
        assert!(compacted(bench.history(revision).err()), "{revision}");
        let request = RangeRequest { range: KeyRange::key(bytes("a")), revision, ..Default::default() };
        assert!(compacted(bench.range(&request).err()), "{revision}");
    }
    let points: Vec<_> = bench.view(read::points).unwrap().into_iter().map(|point| point.name).collect();
    assert_eq!(points, ["sure"], "what it shows may be told otherwise elsewhere");
    assert_eq!(bench.get("a", sure).unwrap().value, "2");
    assert_eq!(bench.get("b", 0).unwrap().value, "3");
    bench.collect_all();
    assert_eq!(bench.get("a", sure).unwrap().value, "2");
    bench.term = new.term;
    bench.put("c", "4").unwrap();
    assert_eq!(bench.get("c", 0).unwrap().mod_revision, last + MARGIN + 1);
    assert_eq!(bench.history(last + MARGIN + 1).unwrap().len(), 1);
}

#[test]
fn a_new_epoch_has_one_member_and_lets_no_other_in() {
    members();
}

#[test]
fn a_new_epoch_hands_no_revision_out_twice() {
    revisions();
}

#[test]
fn epochs_are_counted() {
    let mut bench = before();
    for (epoch, id) in [(1, 70), (2, 71), (3, 72)] {
        assert_eq!(bench.view(read::epoch).unwrap(), epoch);
        let mut new = new_epoch(&bench, bench.machine.revision());
        (new.member.id, new.node.id) = (NodeId(id), NodeId(id));
        bench.machine.begin_epoch(&new).unwrap();
    }
    assert_eq!(bench.view(|view| read::standing(view, NodeId(71))).unwrap(), Standing::Removed);
}
