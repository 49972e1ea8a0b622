//! Who is let in, who was removed, and what that leaves behind.

use super::*;

const LIFE: i64 = 1000;

fn issue_of(id: u64, role: Role, root: u8, now: i64, renewal: bool) -> Command {
    let record = NodeRecord::new(NodeId(id), role, format!("n{id}"), RootDigest([root; 32]));
    let node = NodeRecord { ends: now + LIFE, issued: now, ..record };
    Command::Trust(TrustChange::Issue { node, renewal, now })
}

fn issue(id: u64, now: i64) -> Command {
    issue_of(id, Role::Client, 1, now, false)
}

fn remove(id: u64, now: i64) -> Command {
    Command::Trust(TrustChange::NodeRemove { id: NodeId(id), now })
}

fn from(id: u64, command: Command) -> Command {
    Command::From { node: NodeId(id), command: Box::new(command) }
}

fn standing(bench: &Bench, id: u64) -> Standing {
    bench.view(|view| read::standing(view, NodeId(id))).unwrap()
}

#[track_caller]
fn refused(result: Result<Answer, Refusal>, part: &str) {
    let refusal = result.expect_err("it is refused");
    assert!(
        matches!(refusal, Refusal::BadCertificate { .. }) && refusal.to_string().contains(part),
        "{refusal}"
    );
}

/// A removed node is refused until its certificate has ended, and is unknown from then on.
pub fn removal() {
    let mut bench = Bench::new();
    assert_eq!(standing(&bench, 2), Standing::Unknown);
    bench.ask(issue(2, 10)).unwrap();
    assert_eq!(standing(&bench, 2), Standing::Known(Role::Client));
    bench.ask(remove(2, 20)).unwrap();
    for now in [20, 10 + LIFE] {
        bench.ask(Command::Trust(TrustChange::Tidy { now })).unwrap();
        assert_eq!(standing(&bench, 2), Standing::Removed, "at {now}");
        refused(bench.ask(issue_of(2, Role::Client, 1, now, true)), "was removed");
        refused(bench.ask(issue(2, now)), "was removed");
    }
    bench.reopen();
    assert_eq!(standing(&bench, 2), Standing::Removed);
    bench.ask(Command::Trust(TrustChange::Tidy { now: 11 + LIFE })).unwrap();
    assert_eq!(standing(&bench, 2), Standing::Unknown);
    assert!(bench.ask(remove(2, 20)).is_err());
}

#[test]
fn a_revocation_is_kept_until_the_certificate_ends() {
    removal();
}

/// What was accepted before a removal is not applied after it.
pub fn late_commands() {
    let mut bench = Bench::new();
    bench.ask(issue(2, 10)).unwrap();
    bench.ask(issue(3, 10)).unwrap();
    let (by, other) = (|key| (None, from(2, put(key, "v"))), |key| (None, from(3, put(key, "v"))));
    // One entry, so that what is known of the node is known when it is removed.
    let all = vec![vec![by("a"), other("b"), (None, remove(2, 20)), by("c"), other("d")], vec![by("e")]];
    let results: Vec<_> = bench.entries(&all).outcomes.into_iter().map(|one| one.result.is_ok()).collect();
    assert_eq!(results, [true, true, true, false, true, false]);
    assert_eq!(["a", "c", "e"].map(|key| bench.get(key, 0).is_some()), [true, false, false]);
    // A member that was removed neither, though it has a record of its own.
    bench.ask(from(VOTER.0, put("m", "v"))).unwrap();
    let record =
        MemberRecord { id: NodeId(9), name: "nine".into(), addr: "nine:1".into(), ..Default::default() };
    bench.ask(issue_of(9, Role::Manager, 1, 10, false)).unwrap();
    let learners = |learners| ConfState { voters: vec![VOTER], learners, ..ConfState::default() };
    let config = |change, after| Payload::Config { change, request: None, after };
    bench.payload(config(ConfChange::AddLearner(record), learners(vec![NodeId(9)])));
    bench.ask(from(9, put("n", "v"))).unwrap();
    bench.payload(config(ConfChange::Remove(NodeId(9)), learners(vec![])));
    refused(bench.ask(from(9, put("n", "w"))), "was removed");
    assert_eq!(standing(&bench, 9), Standing::Removed);
    refused(bench.ask(from(77, put("k", "v"))), "never in it");
}

#[test]
fn a_command_of_a_removed_node_is_refused_where_it_is_applied() {
    late_commands();
}

#[test]
fn a_command_of_a_node_that_did_not_move_is_refused_after_the_root_settled() {
    let mut bench = Bench::new();
    bench.ask(issue(2, 10)).unwrap();
    bench.ask(issue(3, 10)).unwrap();
    let (authority, now) = (authority(2), 20);
    let rotate = TrustChange::Rotate { id: 5, authority, deadline: 30, stolen: false, now };
    bench.ask(Command::Trust(rotate)).unwrap();
    bench.ask(Command::Trust(TrustChange::Reissue { id: 5 })).unwrap();
    for (id, role) in [(VOTER.0, Role::Manager), (2, Role::Client)] {
        bench.ask(issue_of(id, role, 2, 21, true)).unwrap();
        let nodes = vec![(NodeId(id), RootDigest([2; 32]))];
        bench.ask(Command::Trust(TrustChange::Verified { nodes })).unwrap();
    }
    bench.ask(from(3, put("k", "1"))).unwrap();
    bench.ask(Command::Trust(TrustChange::Settle { id: 5, tokens: vec![], now: 31 })).unwrap();
    bench.ask(from(2, put("k", "2"))).unwrap();
    refused(bench.ask(from(3, put("k", "3"))), "was replaced");
}

#[test]
fn a_kept_answer_is_not_told_to_a_removed_node() {
    let mut bench = Bench::new();
    bench.ask(issue(2, 10)).unwrap();
    bench.once(1, 1, from(2, put("k", "v"))).unwrap();
    bench.once(1, 1, from(2, put("k", "v"))).unwrap();
    bench.ask(remove(2, 20)).unwrap();
    refused(bench.once(1, 1, from(2, put("k", "v"))), "was removed");
}

#[test]
fn where_a_command_came_from_is_said_once_and_outermost() {
    let mut bench = Bench::new();
    bench.ask(issue(2, 10)).unwrap();
    let as_anyone = |command| Command::As { caller: Caller::Anonymous, command: Box::new(command) };
    bench.ask(from(2, as_anyone(put("k", "v")))).unwrap();
    for wrong in [from(2, from(2, put("k", "v"))), as_anyone(from(2, put("k", "v")))] {
        assert!(validate(&wrong).is_err(), "{wrong:?}");
        assert!(bench.ask(wrong).is_err());
    }
    // An alarm sees what is within.
    bench.ask(Command::Alarm(AlarmRequest::Raise(VOTER, AlarmKind::NoSpace))).unwrap();
    assert_eq!(bench.ask(from(2, put("k", "v"))), Err(Refusal::Alarmed { kind: AlarmKind::NoSpace }));
    let plain = put("k", "v").to_bytes().len();
    assert_eq!(from(2, put("k", "v")).to_bytes().len(), plain + 9);
}

#[test]
fn a_hundred_thousand_joins_and_removals_leave_a_bounded_state() {
    let mut bench = Bench::new();
    let size = |bench: &Bench| bench.view(|view| view.scan(Table::Trust, b"", None).count());
    let before = size(&bench);
    let mut most = 0;
    for round in 0..1000u64 {
        let commands = (0..100).flat_map(|at| {
            let number = round * 100 + at;
            let (id, now) = (100 + number, number as i64);
            let join = (None, issue(id, now));
            // Some just stay away until their certificates end.
            if number % 5 == 0 { vec![join] } else { vec![join, (None, remove(id, now))] }
        });
        let commands: Vec<_> = commands.collect();
        let outcomes = bench.entries(&[commands]).outcomes;
        assert!(outcomes.iter().all(|outcome| outcome.result.is_ok()), "{:?}", outcomes[0]);
        most = most.max(size(&bench));
    }
    // Each of those whose certificates are valid has a record or a revocation, and when that ends.
    let bound = before + 2 * (LIFE as usize + 200) + 1;
    assert!(most <= bound, "{most} keys, more than {bound}");
    bench.ask(issue(1, 300_000)).unwrap();
    for _ in 0..LIFE {
        bench.ask(Command::Trust(TrustChange::Tidy { now: 300_000 })).unwrap();
    }
    assert!(size(&bench) <= before + 3, "{} keys", size(&bench));
}

#[test]
fn a_node_may_come_back_only_while_it_was_let() {
    let mut bench = Bench::new();
    bench.ask(issue(2, 10)).unwrap();
    let readmit = |id, until| Command::Trust(TrustChange::Readmit { id: NodeId(id), until });
    assert!(bench.ask(readmit(3, 50)).is_err());
    bench.ask(readmit(2, 50)).unwrap();
    let record = |bench: &Bench| bench.view(|view| read::node(view, NodeId(2))).unwrap().unwrap();
    assert_eq!(record(&bench).readmit, 50);
    bench.ask(issue_of(2, Role::Client, 1, 20, true)).unwrap();
    assert_eq!(record(&bench).readmit, 0, "once");
    bench.ask(remove(2, 30)).unwrap();
    assert!(bench.ask(readmit(2, 50)).is_err());
}
