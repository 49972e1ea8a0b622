//! Whole protocol stories as transcripts. Each line is one event at one member.

use super::cluster::{Cluster, Letter};
use super::voters;
use crate::raft::{Input, Role};
use crate::types::{ConfChange, ConfProposal, ConfState, MemberRecord, NodeId};

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);
const THREE: NodeId = NodeId(3);
const FOUR: NodeId = NodeId(4);

fn none(_: &Letter) -> bool {
    false
}

/// A settled group of three that member 1 leads at term 2, its first entry at index 2.
fn led_by_one() -> Cluster {
    let mut cluster = Cluster::new(1, &voters(&[1, 2, 3]));
    cluster.step(ONE, Input::Campaign);
    cluster.settle(&none);
    assert_eq!(cluster.leader(), Some(ONE));
    cluster.told.clear();
    cluster
}

fn ask(cluster: &mut Cluster, change: ConfChange) {
    let leader = cluster.leader().expect("a leader");
    cluster.step(leader, Input::ProposeConf { proposal: ConfProposal { change, request: None } });
    cluster.settle(&none);
    cluster.ticks(3, &none);
}

fn check(cluster: &Cluster, expect: &str) {
    let expect: Vec<&str> = expect.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(cluster.told, expect, "\n{}", cluster.told.join("\n"));
}

fn learner(id: NodeId) -> ConfChange {
    ConfChange::AddLearner(MemberRecord { id, ..Default::default() })
}

#[test]
fn election() {
    let mut cluster = Cluster::new(1, &voters(&[1, 2, 3]));
    cluster.step(ONE, Input::Campaign);
    cluster.settle(&none);
    check(
        &cluster,
        r#"
        1 starts at 1
        2 starts at 1
        3 starts at 1
        1 PreCandidate term 1 of nobody
        1 Candidate term 2 of nobody
        2 Follower term 2 of nobody
        3 Follower term 2 of nobody
        1 Leader term 2 of 1
        2 Follower term 2 of 1
        3 Follower term 2 of 1
        1 commits 2: ""
        1 Leader term 2 of 1, ready
        2 commits 2: ""
        3 commits 2: ""
        "#,
    );
}

#[test]
fn a_lone_voter_leads_at_once() {
    let mut cluster = Cluster::new(1, &voters(&[1]));
    cluster.step(ONE, Input::Campaign);
    cluster.settle(&none);
    cluster.read(ONE);
    cluster.settle(&none);
    check(
        &cluster,
        r#"
        1 starts at 1
        1 Leader term 2 of 1
        1 commits 2: ""
        1 Leader term 2 of 1, ready
        1 read at 2
        "#,
    );
}

#[test]
fn replication() {
    let mut cluster = led_by_one();
    cluster.propose(ONE, "a");
    cluster.settle(&none);
    check(
        &cluster,
        r#"
        1 commits 3: "a"
        2 commits 3: "a"
        3 commits 3: "a"
        "#,
    );
}

#[test]
fn a_leader_that_is_cut_off_is_replaced() {
    let mut cluster = led_by_one();
    let cut = |letter: &Letter| letter.from == ONE || letter.to == ONE;
    cluster.propose(ONE, "lost");
    cluster.ticks(70, &cut);
    let leader = cluster.leader().expect("another leader");
    assert_ne!(leader, ONE);
    cluster.propose(leader, "kept");
    cluster.settle(&cut);
    cluster.ticks(5, &none);
    assert!(cluster.told.iter().all(|line| !line.contains("lost")), "{:?}", cluster.told);
    for id in [ONE, TWO, THREE] {
        assert!(cluster.told.contains(&format!("{} commits 4: \"kept\"", id.0)), "{:?}", cluster.told);
    }
}

#[test]
fn a_read_is_confirmed_by_a_quorum() {
    let mut cluster = led_by_one();
    cluster.read(ONE);
    assert!(cluster.reads.is_empty(), "nobody has confirmed it yet");
    cluster.settle(&none);
    check(
        &cluster,
        r#"
        1 read at 2
        "#,
    );
}

#[test]
fn a_leader_deposed_while_a_read_waits_refuses_it() {
    let mut cluster = led_by_one();
    cluster.read(ONE);
    // The heartbeats that would confirm it stay on the way until another leads.
    let late: Vec<Letter> = std::mem::take(&mut cluster.post);
    let cut = |letter: &Letter| letter.from == ONE || letter.to == ONE;
    cluster.ticks(70, &cut);
    let leader = cluster.leader().expect("another leader");
    cluster.propose(leader, "newer");
    cluster.settle(&cut);
    late.into_iter().for_each(|letter| cluster.deliver(letter));
    cluster.settle(&none);
    assert_eq!((cluster.reads.len(), cluster.reads_refused.len()), (0, 1));
}

#[test]
fn a_read_before_the_first_entry_of_the_term_is_refused() {
    let mut cluster = Cluster::new(1, &voters(&[1, 2, 3]));
    cluster.step(ONE, Input::Campaign);
    let no_appends = |letter: &Letter| letter.message.entry_count() > 0;
    cluster.settle(&no_appends);
    assert_eq!(cluster.leader(), Some(ONE));
    assert!(!cluster.core(ONE).leadership().ready);
    cluster.read(ONE);
    assert_eq!(cluster.reads_refused.len(), 1);
}

#[test]
fn a_learner_joins_by_snapshot_and_becomes_a_voter() {
    let mut cluster = led_by_one();
    cluster.propose(ONE, "a");
    cluster.settle(&none);
    cluster.told.clear();
    cluster.add_blank(FOUR);
    ask(&mut cluster, learner(FOUR));
    assert_eq!(cluster.core(FOUR).status().role, Role::Learner);
    ask(&mut cluster, ConfChange::Promote(FOUR));
    assert_eq!(cluster.core(FOUR).status().role, Role::Follower);
    assert_eq!(cluster.core(ONE).status().conf, voters(&[1, 2, 3, 4]));
    check(
        &cluster,
        r#"
        4 starts at 0
        1 commits 4: add learner 4
        2 commits 4: add learner 4
        3 commits 4: add learner 4
        4 Learner term 2 of 1
        4 installs 4
        1 commits 5: promote 4
        2 commits 5: promote 4
        4 commits 5: promote 4
        4 Follower term 2 of 1
        3 commits 5: promote 4
        "#,
    );
}

#[test]
fn a_joint_change_is_ended_by_the_leader() {
    let conf = ConfState {
        voters_outgoing: vec![ONE, TWO],
        learners_next: vec![TWO],
        auto_leave: true,
        ..voters(&[1, 3])
    };
    let mut cluster = Cluster::new(1, &conf);
    cluster.step(ONE, Input::Campaign);
    cluster.settle(&none);
    cluster.ticks(3, &none);
    let after = ConfState { learners: vec![TWO], ..voters(&[1, 3]) };
    for id in [ONE, TWO, THREE] {
        assert_eq!(cluster.core(id).status().conf, after);
    }
    check(
        &cluster,
        r#"
        1 starts at 1
        3 starts at 1
        2 starts at 1
        1 PreCandidate term 1 of nobody
        1 Candidate term 2 of nobody
        3 Follower term 2 of nobody
        2 Follower term 2 of nobody
        1 Leader term 2 of 1
        2 Follower term 2 of 1
        3 Follower term 2 of 1
        1 commits 2: ""
        1 Leader term 2 of 1, ready
        2 commits 2: ""
        3 commits 2: ""
        1 commits 3: leave joint
        2 commits 3: leave joint
        2 Learner term 2 of 1
        3 commits 3: leave joint
        "#,
    );
}

#[test]
fn leadership_is_handed_over_before_a_stop() {
    let mut cluster = led_by_one();
    cluster.propose(ONE, "a");
    cluster.step(ONE, Input::Transfer { to: None });
    cluster.settle(&none);
    check(
        &cluster,
        r#"
        1 commits 3: "a"
        2 commits 3: "a"
        3 commits 3: "a"
        3 Candidate term 3 of nobody
        1 Follower term 3 of nobody
        2 Follower term 3 of nobody
        3 Leader term 3 of 3
        1 Follower term 3 of 3
        2 Follower term 3 of 3
        3 commits 4: ""
        3 Leader term 3 of 3, ready
        1 commits 4: ""
        2 commits 4: ""
        "#,
    );
}

#[test]
fn a_follower_behind_the_log_gets_a_snapshot() {
    let mut cluster = led_by_one();
    cluster.crash(THREE, 2);
    for text in ["a", "b", "c"] {
        cluster.propose(ONE, text);
        cluster.settle(&none);
    }
    let meta = cluster.meta(5);
    cluster.step(ONE, Input::SnapshotMade(meta.clone()));
    cluster.step(ONE, Input::Cut(meta));
    cluster.told.clear();
    cluster.start(THREE);
    cluster.ticks(6, &none);
    cluster.propose(ONE, "d");
    cluster.settle(&none);
    check(
        &cluster,
        r#"
        3 starts at 2
        3 Follower term 2 of 1
        3 installs 5
        1 commits 6: "d"
        2 commits 6: "d"
        3 commits 6: "d"
        "#,
    );
}

#[test]
fn a_leader_that_is_removed_steps_down() {
    let mut cluster = led_by_one();
    ask(&mut cluster, ConfChange::Remove(ONE));
    assert_eq!(cluster.core(ONE).status().role, Role::Learner);
    cluster.ticks(70, &none);
    let leader = cluster.leader().expect("another leader");
    assert!(cluster.core(leader).status().conf == voters(&[2, 3]));
}

#[test]
fn one_change_at_a_time() {
    let mut cluster = led_by_one();
    cluster.add_blank(FOUR);
    for change in [learner(FOUR), ConfChange::Remove(TWO)] {
        cluster.step(ONE, Input::ProposeConf { proposal: ConfProposal { change, request: None } });
    }
    assert_eq!(
        cluster.told.last().unwrap(),
        "1 refuses: not done: another membership change is under way; try again when it has ended"
    );
}

/// A leader's entries may overtake its own disk, its term may not: a lone voter that crashed here
/// would lead term 2 again, with other entries at the same places.
#[test]
fn a_lone_voter_says_nothing_before_its_term_is_on_disk() {
    let mut cluster = Cluster::new(1, &ConfState { learners: vec![TWO], ..voters(&[1]) });
    cluster.step(ONE, Input::Campaign);
    cluster.propose(ONE, "a");
    assert_eq!(cluster.core(ONE).status().role, Role::Leader);
    assert!(cluster.post.is_empty(), "{:?}", cluster.post);
    cluster.sync(ONE, 1);
    assert!(!cluster.post.is_empty());
    // From here on entries go out before they are on disk.
    cluster.settle(&none);
    cluster.propose(ONE, "b");
    assert_eq!(cluster.post.len(), 1);
}
