//! Replicas driven by hand: values in, values out, a log in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::apply::{Applier, Work};
use super::ask::{Ask, Ticket, Told, What};
use super::replica::{Bounds, Effects, Identity, Input, Replica};
use super::wire::PeerFrame;
use crate::error::{Error, NotDone, Refusal, Unknown};
use crate::limits;
use crate::machine::command::{Answer, Command};
use crate::machine::{Genesis, Machine, MemoryStore, Proposal};
use crate::raft::tests::log::{Done, Image, MemLog, Write};
use crate::raft::{LogView, PeerMessage, ReadContext};
use crate::types::{
    Authority, ClusterId, Committed, ConfChange, ConfProposal, ConfState, HardState, LeaseId, MemberRecord,
    NodeId, NodeRecord, Payload, PutRequest, RequestId, Role, RootDigest, Sealed, SnapshotMeta, TrustChange,
};

type Answers = Vec<(Ticket, Result<Told, Error>)>;

/// One member; its disk and its state answer at once, unless `held`.
struct Member {
    replica: Replica<MemLog>,
    applier: Applier<MemoryStore>,
    /// Work that apply has not begun.
    held: Option<Vec<Work>>,
}

/// Members whose frames arrive when they are carried.
struct Group {
    now: Duration,
    members: BTreeMap<NodeId, Member>,
    frames: Vec<(NodeId, NodeId, PeerFrame)>,
    answers: BTreeMap<NodeId, Answers>,
    entries: Vec<usize>,
    next_ticket: Ticket,
}

fn put(key: &str, len: usize) -> What {
    let request =
        PutRequest { key: key.to_owned().into(), value: Bytes::from(vec![7; len]), ..PutRequest::default() };
    What::Command { command: Command::Put(request), once: None }
}

impl Group {
    /// So many voters, all from the same first state.
    fn new(size: u64) -> Self {
        let voters: Vec<_> = (1..=size).map(NodeId).collect();
        let conf = ConfState { voters: voters.clone(), ..ConfState::default() };
        let meta = SnapshotMeta { index: size.max(1), term: 1, conf };
        let members = voters.iter().map(|id| (*id, Member::new(*id, &meta))).collect();
        let answers = voters.iter().map(|id| (*id, Vec::new())).collect();
        let (frames, entries) = (Vec::new(), Vec::new());
        let mut group = Self { now: Duration::ZERO, members, frames, answers, entries, next_ticket: 1 };
        group.until(|group| group.leader().is_some());
        group
    }

    fn leader(&self) -> Option<NodeId> {
        let ready = |member: &Member| member.replica.leadership().ready;
        self.members.iter().find(|(_, member)| ready(member)).map(|(id, _)| *id)
    }

    fn follower(&self) -> NodeId {
        let leader = self.leader().expect("somebody leads");
        *self.members.keys().find(|id| **id != leader).unwrap()
    }

    fn turn(&mut self, id: NodeId, inputs: Vec<Input<Done>>) {
        let mut inputs = inputs;
        while !inputs.is_empty() {
            let member = self.members.get_mut(&id).unwrap();
            let effects = member.replica.turn(self.now, std::mem::take(&mut inputs)).unwrap();
            self.frames.extend(effects.frames.iter().map(|(to, frame)| (id, *to, frame.clone())));
            self.answers.get_mut(&id).unwrap().extend(effects.answers.clone());
            for write in &effects.writes {
                self.entries.extend(write.entries().iter().map(|entry| entry.data.len()));
            }
            inputs = member.carry_out(effects);
        }
    }

    /// Carries every frame there is, and those they cause.
    fn carry(&mut self) {
        while !self.frames.is_empty() {
            for (from, to, frame) in std::mem::take(&mut self.frames) {
                if self.members.contains_key(&to) {
                    self.turn(to, vec![Input::Frames(vec![(from, frame)])]);
                }
            }
        }
    }

    fn tick(&mut self) {
        self.now += limits::TICK;
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.turn(id, vec![Input::Tick]);
        }
        self.carry();
    }

    /// A tick in which entries sent to `late` are lost; it answers heartbeats.
    fn tick_without(&mut self, late: NodeId) {
        self.now += limits::TICK;
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.turn(id, vec![Input::Tick]);
        }
        let entries =
            |frame: &PeerFrame| matches!(frame, PeerFrame::Raft(message) if message.kind() == "append");
        while !self.frames.is_empty() {
            for (from, to, frame) in std::mem::take(&mut self.frames) {
                if self.members.contains_key(&to) && !(to == late && entries(&frame)) {
                    self.turn(to, vec![Input::Frames(vec![(from, frame)])]);
                }
            }
        }
    }

    fn until(&mut self, done: impl Fn(&Self) -> bool) {
        for _ in 0..400 {
            if done(self) {
                return;
            }
            self.tick();
        }
        panic!("not within 400 ticks");
    }

    fn ask(&mut self, id: NodeId, whats: Vec<What>) -> Vec<Ticket> {
        let first = self.next_ticket;
        self.next_ticket += whats.len() as Ticket;
        let deadline = self.now + Duration::from_secs(7);
        let asks = whats.into_iter().zip(first..).map(|(what, ticket)| Ask { ticket, deadline, what });
        self.turn(id, vec![Input::Asks(asks.collect())]);
        (first..self.next_ticket).collect()
    }

    /// What a caller was told, at most once.
    fn told(&self, id: NodeId, ticket: Ticket) -> Option<Result<Told, Error>> {
        let mut all = self.answers[&id].iter().filter(|(other, _)| *other == ticket);
        let told = all.next().map(|(_, told)| told.clone());
        assert!(all.next().is_none(), "{ticket} is answered twice");
        told
    }

    fn revision(&self, id: NodeId) -> i64 {
        self.members[&id].replica.revision
    }
}

impl Member {
    fn new(id: NodeId, meta: &SnapshotMeta) -> Self {
        let record = |id: NodeId| MemberRecord {
            id,
            name: format!("m{id}"),
            addr: format!("h{id}:1"),
            ..Default::default()
        };
        let genesis = Genesis {
            cluster: ClusterId(5),
            member: record(NodeId(1)),
            authority: Authority::default(),
            node: NodeRecord::new(NodeId(1), Role::Manager, "m1", RootDigest::default()),
            tokens: Vec::new(),
        };
        let store = MemoryStore::default();
        Machine::create(&store, &genesis).unwrap();
        let mut applier = Applier::open(store, id, 70 + id.0).unwrap();
        let joined = (2..=meta.index).map(|index| {
            let change = ConfChange::AddLearner(record(NodeId(index)));
            let payload = Payload::Config { change, request: None, after: meta.conf.clone() };
            Committed { index, term: 1, payload }
        });
        applier.entries(joined.collect()).unwrap();
        let start = applier.start().unwrap();
        assert_eq!(start.applied, *meta);
        let hard = HardState { term: 1, vote: NodeId(0), commit: meta.index };
        let log = MemLog::new(Image { hard, boundary: meta.clone(), entries: Vec::new() });
        let identity = Identity { me: id, boot: 70 + id.0, run: 0, seed: id.0 };
        Self { replica: Replica::new(&identity, log, start).unwrap(), applier, held: None }
    }

    fn carry_out(&mut self, effects: Effects<Write>) -> Vec<Input<Done>> {
        let mut inputs: Vec<_> =
            effects.writes.iter().map(|write| Input::Durable(Done(write.number))).collect();
        if let Some(held) = &mut self.held {
            held.extend(effects.apply);
        } else {
            inputs.extend(effects.apply.into_iter().map(|work| self.apply(work)));
        }
        if effects.flush {
            inputs.push(Input::Flushed(self.applier.applied()));
        }
        inputs
    }

    fn apply(&mut self, work: Work) -> Input<Done> {
        match work {
            Work::Entries(entries) => Input::Applied(self.applier.entries(entries).unwrap().0),
            Work::Install(_) => panic!("no snapshots here"),
        }
    }
}

#[test]
fn callers_of_every_member_are_served() {
    let mut group = Group::new(3);
    for id in [1, 2, 3].map(NodeId) {
        let before = group.revision(id);
        let tickets = group.ask(id, vec![put("k", 10), What::Barrier]);
        group.carry();
        group.until(|group| tickets.iter().all(|ticket| group.told(id, *ticket).is_some()));
        let Some(Ok(Told::Applied { revision, answer: Answer::Put(_), .. })) = group.told(id, tickets[0])
        else {
            panic!("{:?}", group.told(id, tickets[0]));
        };
        assert_eq!(revision, before + 1);
        assert_eq!(group.told(id, tickets[1]), Some(Ok(Told::MayRead)));
        group.tick();
        group.tick();
    }
}

#[test]
fn requests_are_gathered_into_entries_within_their_bounds() {
    let check = |sizes: Vec<usize>, expect: usize| {
        for from_leader in [true, false] {
            let mut group = Group::new(3);
            let id = if from_leader { group.leader().unwrap() } else { group.follower() };
            group.entries.clear();
            let count = sizes.len();
            let whats = sizes.iter().enumerate().map(|(at, size)| put(&format!("k{at}"), *size)).collect();
            let tickets = group.ask(id, whats);
            group.carry();
            group.until(|group| tickets.iter().all(|ticket| group.told(id, *ticket).is_some()));
            let ok = tickets.iter().filter(|ticket| matches!(group.told(id, **ticket), Some(Ok(_)))).count();
            assert_eq!(ok, count);
            assert_eq!(group.entries.len(), 3 * expect, "{count} requests, from the leader {from_leader}");
            assert!(group.entries.iter().all(|len| *len <= limits::MAX_ENTRY_BYTES));
            assert_eq!(group.revision(id), 1 + count as i64);
        }
    };
    check(vec![10], 1);
    check(vec![10; limits::MAX_ENTRY_BATCH_REQUESTS], 1);
    check(vec![10; limits::MAX_ENTRY_BATCH_REQUESTS + 1], 2);
    check(vec![40 * 1024; 2], 2);
    check(vec![10, 1024 * 1024, 10], 3);
}

#[test]
fn a_forged_or_oversized_request_changes_nothing_and_stops_nobody() {
    let mut group = Group::new(3);
    let (leader, follower) = (group.leader().unwrap(), group.follower());
    let term = group.members[&leader].replica.leadership().term;
    let before = group.revision(leader);
    let request = RequestId { origin: follower, boot: 70 + follower.0, seq: 1 << 40 };
    let expire = Command::LeaseExpire { ids: vec![1], term };
    let huge = PutRequest {
        key: "k".into(),
        value: Bytes::from(vec![0; limits::MAX_REQUEST_BYTES]),
        ..PutRequest::default()
    };
    let other = RequestId { origin: leader, ..request };
    let proposal = |request, command| Proposal { request, once: None, command };
    let leave = ConfProposal { change: ConfChange::LeaveJoint, request: Some(request) };
    let context = ReadContext { node: leader, boot: 70 + leader.0, counter: 1 };
    let frames = vec![
        PeerFrame::Forward { term, proposals: vec![proposal(request, expire)] },
        PeerFrame::Forward { term, proposals: vec![proposal(request, Command::Put(huge))] },
        PeerFrame::Forward { term, proposals: vec![proposal(other, Command::Noop)] },
        PeerFrame::Forward { term: term + 1, proposals: vec![proposal(request, Command::Noop)] },
        PeerFrame::ForwardConf { term, proposal: leave },
        PeerFrame::ForwardConf {
            term,
            proposal: ConfProposal { change: ConfChange::LeaveJoint, request: None },
        },
        PeerFrame::Declined { requests: vec![request, other], why: Error::Unknown(Unknown::Deadline) },
        PeerFrame::ReadConfirmed { context, index: Some(u64::MAX) },
        PeerFrame::ReadConfirmed { context, index: None },
        PeerFrame::LeaseReply { request: other, result: Err(Error::NotDone(NotDone::NotLeader)) },
        PeerFrame::LeaseCall { request: other, id: -1, renew: true },
        PeerFrame::Transfer { to: Some(NodeId(99)) },
    ];
    for frame in frames {
        let inputs = vec![Input::Frames(vec![(follower, frame.clone()), (leader, frame)])];
        group.turn(leader, inputs);
        group.carry();
    }
    group.tick();
    assert_eq!((group.revision(leader), group.leader()), (before, Some(leader)));
    let ticket = group.ask(follower, vec![put("k", 1)])[0];
    group.carry();
    group.until(|group| group.told(follower, ticket).is_some());
    assert!(group.told(follower, ticket).unwrap().is_ok());
}

#[test]
fn a_clean_stop_of_the_leader_answers_every_caller() {
    let mut group = Group::new(3);
    let (leader, follower) = (group.leader().unwrap(), group.follower());
    let tickets = group.ask(leader, vec![put("a", 1), put("b", 1), What::Barrier]);
    group.turn(leader, vec![Input::Stop]);
    let late = group.ask(leader, vec![put("c", 1)])[0];
    assert_eq!(group.told(leader, late), Some(Err(Error::NotDone(NotDone::ShuttingDown))));
    let other = group.ask(follower, vec![put("d", 1)])[0];
    group.carry();
    group.until(|group| {
        group.told(follower, other).is_some() && group.leader().is_some_and(|now| now != leader)
    });
    assert!(group.told(follower, other).unwrap().is_ok());
    for ticket in tickets {
        assert!(matches!(group.told(leader, ticket), Some(Ok(_))), "{:?}", group.told(leader, ticket));
    }
}

/// A write of a follower whose frame is kept back for longer than its sender is patient, and arrives after
/// all. How many revisions it took, once everybody is answered.
fn revisions_of_a_late_frame() -> i64 {
    let mut group = Group::new(3);
    let (leader, follower) = (group.leader().unwrap(), group.follower());
    let before = group.revision(leader);
    let ticket = group.ask(follower, vec![put("k", 1)])[0];
    let late = std::mem::take(&mut group.frames);
    assert!(matches!(late[..], [(_, _, PeerFrame::Forward { .. })]), "{late:?}");
    let began = group.now;
    group.until(|group| group.told(follower, ticket).is_some());
    assert!(group.told(follower, ticket).unwrap().is_ok());
    assert!(group.now - began < Duration::from_secs(2), "long before its deadline");
    group.frames.extend(late);
    group.carry();
    (0..20).for_each(|_| group.tick());
    assert_eq!(group.leader(), Some(leader));
    group.revision(leader) - before
}

#[test]
fn a_request_that_is_lost_on_its_way_is_tried_again_and_done_once() {
    assert_eq!(revisions_of_a_late_frame(), 1);
    #[cfg(feature = "sim")]
    {
        use crate::planted::{self, Bug};
        assert_eq!(planted::with(Some(Bug::ProposeClosed), revisions_of_a_late_frame), 2);
    }
}

#[test]
fn a_request_that_is_slow_and_not_lost_is_done_once() {
    let mut group = Group::new(3);
    let (leader, follower) = (group.leader().unwrap(), group.follower());
    let before = group.revision(leader);
    // The leader proposes it at once; the follower applies nothing for three seconds.
    group.members.get_mut(&follower).unwrap().held = Some(Vec::new());
    let ticket = group.ask(follower, vec![put("k", 1)])[0];
    group.carry();
    let end = group.now + Duration::from_secs(3);
    group.until(|group| group.now >= end);
    assert_eq!((group.told(follower, ticket), group.revision(leader)), (None, before + 1));
    let member = group.members.get_mut(&follower).unwrap();
    let held = member.held.take().unwrap();
    let reports = held.into_iter().map(|work| member.apply(work)).collect();
    group.turn(follower, reports);
    group.carry();
    group.until(|group| group.told(follower, ticket).is_some());
    assert!(group.told(follower, ticket).unwrap().is_ok());
    (0..20).for_each(|_| group.tick());
    assert_eq!(group.revision(leader), before + 1);
}

#[test]
fn a_lease_call_that_is_lost_is_asked_again() {
    let mut group = Group::new(3);
    let (leader, follower) = (group.leader().unwrap(), group.follower());
    let id: LeaseId = 9;
    let grant = What::Command { command: Command::LeaseGrant { id, ttl: 100 }, once: None };
    let ticket = group.ask(leader, vec![grant])[0];
    group.carry();
    group.until(|group| group.told(leader, ticket).is_some());
    let ticket = group.ask(follower, vec![What::Lease { id, renew: true }])[0];
    assert!(matches!(group.frames[..], [(_, _, PeerFrame::LeaseCall { .. })]), "{:?}", group.frames);
    group.frames.clear();
    let lost_at = group.now;
    group.until(|group| group.told(follower, ticket).is_some());
    assert!(matches!(group.told(follower, ticket), Some(Ok(Told::Lease(status))) if status.ttl == 100));
    assert!(group.now - lost_at < Duration::from_secs(1));
}

#[test]
fn transfers_say_who_leads() {
    let mut group = Group::new(3);
    let (leader, follower) = (group.leader().unwrap(), group.follower());
    let check = |group: &mut Group, at: NodeId, to: NodeId| {
        let ticket = group.ask(at, vec![What::Transfer { to: Some(to) }])[0];
        group.carry();
        group.until(|group| group.told(at, ticket).is_some());
        assert_eq!(group.told(at, ticket), Some(Ok(Told::Done)));
        group.until(|group| group.leader() == Some(to));
    };
    check(&mut group, leader, follower);
    check(&mut group, leader, leader);
    check(&mut group, leader, leader);
    let unfit = group.ask(leader, vec![What::Transfer { to: Some(NodeId(8)) }])[0];
    assert!(matches!(group.told(leader, unfit), Some(Err(Error::Refused(Refusal::MemberUnfit { .. })))));
    // The frame is lost and nobody moves: whether it came is not known here.
    let at = group.follower();
    let lost = group.ask(at, vec![What::Transfer { to: Some(at) }])[0];
    group.frames.clear();
    group.until(|group| group.told(at, lost).is_some());
    assert_eq!(group.told(at, lost), Some(Err(Error::Unknown(Unknown::Deadline))));
}

#[test]
fn two_snapshots_before_the_first_is_installed() {
    let conf = ConfState { voters: vec![NodeId(1), NodeId(2)], ..ConfState::default() };
    let meta = |index| SnapshotMeta { index, term: 2, conf: conf.clone() };
    let mut member = Member::new(NodeId(2), &SnapshotMeta { index: 2, term: 1, conf: conf.clone() });
    let snapshot = |index| {
        let message = PeerMessage::snapshot(NodeId(1), NodeId(2), 2, &meta(index));
        Input::Frames(vec![(NodeId(1), PeerFrame::Raft(message))])
    };
    let mut turn = |input| member.replica.turn(Duration::ZERO, vec![input]).unwrap();
    let installed = |index| {
        let applied = meta(index);
        Input::Applied(super::apply::Report { applied, installed: true, ..Default::default() })
    };
    for index in [100, 200] {
        let effects = turn(snapshot(index));
        assert_eq!(effects.apply, vec![Work::Install(meta(index))]);
        assert!(effects.writes.is_empty(), "the log goes on only behind the state");
    }
    for _ in [100, 200] {
        assert!(turn(Input::Tick).writes.is_empty());
    }
    for index in [100, 200] {
        assert_eq!(turn(installed(index)).writes.len(), 1);
    }
}

#[test]
fn the_log_forgets_what_was_sealed_with_a_key_that_was_given_up() {
    let mut group = Group::new(3);
    let sealed = |key| Sealed([&Sealed::head(key)[..], b"a data key"].concat().into());
    let stored = |node| TrustChange::KeyStored { id: 2, node: NodeId(node) };
    let changes = [
        TrustChange::KeyNext { id: 2, key: sealed(1), now: 1 },
        stored(1),
        stored(2),
        TrustChange::KeyActivate { id: 2 },
        TrustChange::KeySettle { id: 2 },
    ];
    let leader = group.leader().unwrap();
    for change in changes {
        let settles = matches!(change, TrustChange::KeySettle { .. });
        let what = What::Command { command: Command::Trust(change), once: None };
        let ticket = group.ask(leader, vec![what])[0];
        group.until(|group| group.told(leader, ticket).is_some());
        assert!(matches!(group.told(leader, ticket), Some(Ok(Told::Applied { .. }))));
        let cut = |member: &Member| member.replica.core.log().first_index() > 4;
        assert!(settles || !group.members.values().any(cut), "what is before is kept for followers");
    }
    let settled = group.members[&leader].applier.applied().index;
    group.ask(leader, vec![put("k", 1)]);
    group.until(|group| {
        group.members.values().all(|member| member.replica.core.log().first_index() > settled)
    });
}

#[test]
fn the_log_waits_for_who_answers_within_its_bounds_and_for_nobody_else() {
    let mut group = Group::new(3);
    let (leader, late) = (group.leader().unwrap(), group.follower());
    let bounds = Bounds { flush_bytes: 1, keep_for_followers: 5, keep_at_most: 60, ..Bounds::default() };
    group.members.get_mut(&leader).unwrap().replica.bounds = bounds;
    let write = |group: &mut Group, count: usize, len: usize| {
        for _ in 0..count {
            group.ask(leader, vec![put("k", len)]);
            group.tick_without(late);
        }
        // What was flushed last is behind what was written last.
        (0..3).for_each(|_| group.tick_without(late));
    };
    let kept = |group: &Group| {
        let (member, log) = (&group.members[&leader], group.members[&leader].replica.core.log());
        (log.first_index(), member.applier.applied().index + 1 - log.first_index())
    };
    let has = group.members[&late].replica.core.log().last_index();
    write(&mut group, 30, 1);
    assert!(kept(&group).0 <= has + 1, "it is behind and answers: {:?} {has}", kept(&group));
    write(&mut group, 60, 1);
    assert!((60..64).contains(&kept(&group).1), "it is too far behind: {:?}", kept(&group));
    // The bound in bytes holds for large entries.
    group.members.get_mut(&leader).unwrap().replica.bounds.keep_at_most_bytes = 100_000;
    write(&mut group, 30, 10_000);
    assert!((8..=10).contains(&kept(&group).1), "ten of them fit: {:?}", kept(&group));
    // It is gone: others are kept no more than what is kept for whoever comes.
    group.members.get_mut(&leader).unwrap().replica.bounds = bounds;
    group.members.remove(&late);
    // Tens of seconds later nobody counts on it.
    (0..300).for_each(|_| group.tick());
    write(&mut group, 30, 1);
    assert!((5..9).contains(&kept(&group).1), "nobody waits: {:?}", kept(&group));
}
