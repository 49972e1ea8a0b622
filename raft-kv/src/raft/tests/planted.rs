//! Bugs planted on purpose: each must be caught by the check that guards against it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use raft::eraftpb::{Message, MessageType};

use super::cluster::Cluster;
use super::{foreign, voters};
use crate::planted::{self, Bug};
use crate::raft::{Input, PeerMessage};
use crate::types::{HardState, NodeId};

const ONE: NodeId = NodeId(1);

fn caught(bug: Bug, check: impl Fn()) {
    check();
    let bitten = planted::with(Some(bug), || catch_unwind(AssertUnwindSafe(&check))).is_err();
    assert!(bitten, "{bug:?} was not caught");
}

fn vote_request(from: u64, term: u64) -> (NodeId, PeerMessage) {
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgRequestVote);
    message.set_from(from);
    message.set_to(1);
    message.set_term(term);
    message.set_index(1);
    message.set_log_term(1);
    message.set_commit(1);
    message.set_commit_term(1);
    (NodeId(from), PeerMessage(message))
}

/// Nothing is said before the disk has the vote it rests on.
fn a_vote_waits_for_the_disk() {
    let mut cluster = Cluster::new(1, &voters(&[1, 2, 3]));
    cluster.step(ONE, Input::Messages(vec![vote_request(2, 7)]));
    assert!(cluster.post.is_empty(), "a vote was given before it was on disk");
    cluster.sync(ONE, usize::MAX);
    assert_eq!(cluster.post.len(), 1);
    assert!(!cluster.post[0].message.0.get_reject());
}

/// A vote once given is given to nobody else in that term, whatever happens in between.
fn a_vote_outlives_a_crash() {
    let mut cluster = Cluster::new(1, &voters(&[1, 2, 3]));
    cluster.step(ONE, Input::Messages(vec![vote_request(2, 7)]));
    cluster.sync(ONE, usize::MAX);
    cluster.crash(ONE, 1);
    assert_eq!(cluster.members[&ONE].disk.hard, HardState { term: 7, vote: NodeId(2), commit: 1 });
    cluster.start(ONE);
    cluster.post.clear();
    cluster.step(ONE, Input::Messages(vec![vote_request(3, 7)]));
    cluster.sync(ONE, usize::MAX);
    assert!(cluster.post.iter().all(|letter| letter.message.0.get_reject()));
}

#[test]
fn promises_before_the_disk() {
    caught(Bug::SendBeforeDurable, a_vote_waits_for_the_disk);
}

#[test]
fn a_forgotten_vote() {
    caught(Bug::ForgetVote, a_vote_outlives_a_crash);
}

#[test]
fn messages_unseen() {
    caught(Bug::SkipVetting, || {
        foreign::storm(11, 2_000);
    });
}
