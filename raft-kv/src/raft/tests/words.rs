//! Single rules: vetting, messages' form, failures of the log, refusals.

use bytes::Bytes;
use raft::eraftpb::{Entry as RawEntry, Message, MessageType};

use super::cluster::Cluster;
use super::log::Done;
use super::{Image, MemLog, voters};
use crate::codec::Wire;
use crate::limits::{MAX_APPEND_BYTES, MAX_FRAME_BYTES};
use crate::raft::message::split;
use crate::raft::vet::is_sound;
use crate::raft::{Core, Input, LogView, Options, PeerMessage, Proof, ReadContext, Refused};
use crate::types::{ConfChange, ConfProposal, ConfState, MemberRecord, NodeId, SnapshotMeta};

const ONE: NodeId = NodeId(1);

fn fresh() -> Core<MemLog> {
    let conf = voters(&[1, 2, 3]);
    let boundary = SnapshotMeta { index: 5, term: 2, conf: conf.clone() };
    let mut image = Image { boundary, ..Image::default() };
    image.hard.term = 2;
    image.hard.commit = 5;
    Core::new(Options { id: ONE, seed: 1, applied: 5, conf }, MemLog::new(image)).unwrap()
}

fn base(kind: MessageType) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    message.set_from(2);
    message.set_to(1);
    message.set_term(3);
    message
}

/// The message from member 2 at term 3, as `shape` makes it, at a follower of term 2 whose log
/// ends at (5, 2), all committed.
fn check(kind: MessageType, shape: impl Fn(&mut Message), expect: Result<(), Refused>) {
    let mut message = base(kind);
    shape(&mut message);
    let out = fresh().step(Input::Messages(vec![(NodeId(2), PeerMessage(message))])).unwrap();
    let got = out.vetted.first().map_or(Ok(()), |(_, refused)| Err(*refused));
    assert_eq!(got, expect, "{kind:?}");
}

fn raw(index: u64, term: u64) -> RawEntry {
    RawEntry { index, term, ..Default::default() }
}

#[test]
fn each_rule_has_its_reason() {
    use MessageType::*;
    use Refused::*;
    let at_end = |message: &mut Message| {
        message.set_index(5);
        message.set_log_term(2);
    };
    check(MsgHeartbeat, |_| (), Ok(()));
    check(MsgHeartbeat, |m| m.set_commit(5), Ok(()));
    check(MsgHeartbeat, |m| m.set_commit(6), Err(BeyondLog));
    check(MsgHeartbeat, |m| m.set_from(3), Err(FalseSender));
    check(MsgHeartbeat, |m| m.set_to(3), Err(WrongReceiver));
    check(MsgHeartbeat, |m| m.set_term(0), Err(OutOfRange));
    check(MsgHeartbeat, |m| m.set_term(u64::MAX), Err(OutOfRange));
    check(MsgHeartbeat, |m| m.set_context(vec![0; 65].into()), Err(Inconsistent));
    for kind in [MsgHup, MsgBeat, MsgPropose, MsgUnreachable, MsgSnapStatus, MsgCheckQuorum] {
        check(kind, |_| (), Err(NotForPeers));
    }
    for kind in [MsgTransferLeader, MsgReadIndex, MsgReadIndexResp] {
        check(kind, |_| (), Err(NotForPeers));
    }
    check(MsgTimeoutNow, |_| (), Err(NotNow));
    check(MsgHeartbeatResponse, |_| (), Ok(()));
    check(MsgAppend, at_end, Ok(()));
    check(MsgAppend, |m| m.set_index(5), Err(Inconsistent));
    check(MsgAppend, |m| m.set_log_term(2), Err(Inconsistent));
    let with = |entries: &'static [(u64, u64)]| {
        move |m: &mut Message| {
            at_end(m);
            m.set_entries(entries.iter().map(|(index, term)| raw(*index, *term)).collect::<Vec<_>>().into());
        }
    };
    check(MsgAppend, with(&[(6, 2), (7, 3)]), Ok(()));
    check(MsgAppend, with(&[(7, 3)]), Err(BadEntries));
    check(MsgAppend, with(&[(6, 3), (8, 3)]), Err(BadEntries));
    check(MsgAppend, with(&[(6, 4)]), Err(BadEntries));
    check(MsgAppend, with(&[(6, 1)]), Err(BadEntries));
    check(MsgAppend, with(&[(6, 3), (7, 2)]), Err(BadEntries));
    let contradicting = |m: &mut Message| {
        m.set_index(4);
        m.set_log_term(1);
        m.set_entries(vec![raw(5, 3)].into());
    };
    check(MsgAppend, contradicting, Err(BadEntries));
    check(MsgRequestVote, at_end, Ok(()));
    check(MsgRequestVote, |m| m.set_priority(-1), Err(Inconsistent));
    check(MsgRequestVote, |m| m.set_context(Bytes::from_static(b"odd")), Err(Inconsistent));
    check(MsgRequestPreVote, |m| m.set_commit(1), Err(Inconsistent));
    let snapshot = |index, term, conf: ConfState| {
        move |m: &mut Message| {
            let meta = SnapshotMeta { index, term, conf: conf.clone() };
            m.set_snapshot(crate::raft::adapter::snapshot_to_raft(&meta));
        }
    };
    check(MsgSnapshot, snapshot(9, 3, voters(&[1, 2])), Ok(()));
    check(MsgSnapshot, snapshot(9, 4, voters(&[1, 2])), Err(BadSnapshot));
    check(MsgSnapshot, snapshot(0, 1, voters(&[1, 2])), Err(BadSnapshot));
    check(MsgSnapshot, snapshot(9, 3, voters(&[2, 3])), Err(BadSnapshot));
    check(MsgSnapshot, snapshot(5, 3, voters(&[1, 2])), Err(BadSnapshot));
    check(MsgSnapshot, snapshot(9, 3, ConfState::default()), Err(BadSnapshot));
}

#[test]
fn odd_configurations_are_told() {
    let ids = |list: &[u64]| list.iter().map(|id| NodeId(*id)).collect::<Vec<_>>();
    let conf = |incoming: &[u64], learners: &[u64], outgoing: &[u64], next: &[u64], auto_leave| ConfState {
        voters: ids(incoming),
        learners: ids(learners),
        voters_outgoing: ids(outgoing),
        learners_next: ids(next),
        auto_leave,
    };
    assert!(is_sound(&conf(&[1, 2], &[3], &[], &[], false)));
    assert!(is_sound(&conf(&[1, 2], &[4], &[1, 3], &[3], true)));
    for odd in [
        conf(&[], &[3], &[], &[], false),
        conf(&[0, 1], &[], &[], &[], false),
        conf(&[2, 1], &[], &[], &[], false),
        conf(&[1, 1], &[], &[], &[], false),
        conf(&[1], &[1], &[], &[], false),
        conf(&[1], &[2], &[2], &[], true),
        conf(&[1], &[], &[], &[], true),
        conf(&[1], &[], &[], &[2], false),
        conf(&[1], &[], &[1], &[2], true),
        conf(&[1], &[2], &[1, 2], &[2], true),
    ] {
        assert!(!is_sound(&odd), "{odd:?}");
    }
}

#[test]
fn a_merged_append_is_split_without_a_gap() {
    let mut message = base(MessageType::MsgAppend);
    message.set_index(5);
    message.set_log_term(2);
    message.set_commit(6);
    for index in 6..206 {
        let mut entry = raw(index, 2 + index / 100);
        entry.set_data(vec![7; 100_000].into());
        message.mut_entries().push(entry);
    }
    let parts = split(message.clone());
    let (mut index, mut term) = (5, 2);
    for part in &parts {
        assert_eq!((part.get_index(), part.get_log_term(), part.get_commit()), (index, term, 6));
        for entry in part.get_entries() {
            assert_eq!(entry.get_index(), index + 1);
            (index, term) = (entry.get_index(), entry.get_term());
        }
        let frame = PeerMessage(part.clone()).to_bytes();
        assert!(frame.len() < MAX_FRAME_BYTES && frame.len() as u64 <= MAX_APPEND_BYTES + 4096);
        assert_eq!(PeerMessage::from_bytes(frame).unwrap().0, *part);
    }
    assert_eq!(index, 205);
    assert_eq!(split(base(MessageType::MsgAppend)).len(), 1);
}

#[test]
fn a_log_that_fails_at_any_read_is_reported_and_never_a_panic() {
    let mut met = 0;
    for reads in 0..120 {
        let conf = voters(&[1]);
        let boundary = SnapshotMeta { index: 1, term: 1, conf: conf.clone() };
        let image = Image { boundary, ..Image::default() };
        let log = MemLog::new(image);
        log.reads_left.set(reads);
        let Ok(mut core) = Core::new(Options { id: ONE, seed: 1, applied: 1, conf }, log) else {
            met += 1;
            continue;
        };
        let mut run = || -> Result<(), crate::error::StorageFailed> {
            let mut writes = Vec::new();
            for turn in 0..30 {
                let input = match turn % 6 {
                    0 if turn == 0 => Input::Campaign,
                    1 => Input::Propose { entries: vec![Bytes::from_static(b"x")] },
                    2 => Input::Read { context: ReadContext { node: ONE, boot: 1, counter: turn } },
                    3 => {
                        let record = MemberRecord { id: NodeId(2), ..Default::default() };
                        let change = ConfChange::AddLearner(record);
                        Input::ProposeConf { proposal: ConfProposal { change, request: None } }
                    }
                    4 if !writes.is_empty() => Input::Durable(Done(writes.drain(..).next_back().unwrap())),
                    _ => Input::Tick,
                };
                let out = core.step(input)?;
                writes.extend(out.writes.iter().map(|write| write.number));
            }
            Ok(())
        };
        if let Err(first) = run() {
            met += 1;
            assert_eq!(core.step(Input::Tick).unwrap_err(), first, "it stays failed");
        }
    }
    assert!(met > 20, "{met}");
}

#[test]
fn state_and_log_must_belong_together() {
    let open = |applied, commit| {
        let conf = voters(&[1, 2, 3]);
        let boundary = SnapshotMeta { index: 5, term: 2, conf: conf.clone() };
        let mut image = Image { boundary, ..Image::default() };
        image.hard.commit = commit;
        Core::new(Options { id: ONE, seed: 1, applied, conf }, MemLog::new(image)).map(|core| core.status())
    };
    assert!(open(4, 5).is_err() && open(6, 5).is_err() && open(5, 6).is_err());
    // The commit index may lag, and a term never lies below the log's.
    let status = open(5, 0).unwrap();
    assert_eq!((status.commit, status.term, status.applied), (5, 2, 5));
}

#[test]
fn only_a_leader_takes_requests() {
    let mut core = fresh();
    let data = Bytes::from_static(b"x");
    let out = core.step(Input::Propose { entries: vec![data.clone()] }).unwrap();
    assert_eq!(out.refused, [data]);
    let context = ReadContext { node: ONE, boot: 1, counter: 1 };
    assert_eq!(core.step(Input::Read { context }).unwrap().reads_refused, [context]);
    let proposal = ConfProposal { change: ConfChange::Remove(NodeId(2)), request: None };
    let out = core.step(Input::ProposeConf { proposal: proposal.clone() }).unwrap();
    assert_eq!(out.conf_refused.unwrap().proposal, proposal);
}

#[test]
fn changes_that_do_not_fit_are_refused() {
    let mut cluster = Cluster::new(1, &voters(&[1]));
    cluster.step(ONE, Input::Campaign);
    cluster.settle(&|_| false);
    for change in [
        ConfChange::AddLearner(MemberRecord::default()),
        ConfChange::AddLearner(MemberRecord { id: ONE, ..Default::default() }),
        ConfChange::Promote(ONE),
        ConfChange::Promote(NodeId(9)),
        ConfChange::Remove(ONE),
        ConfChange::Remove(NodeId(9)),
        ConfChange::LeaveJoint,
    ] {
        let before = cluster.conf_refused;
        cluster.step(ONE, Input::ProposeConf { proposal: ConfProposal { change, request: None } });
        assert_eq!(cluster.conf_refused, before + 1);
    }
    let _: u64 = Done(3).number();
    assert_eq!(cluster.core(ONE).log().last_index(), 2);
}
