//! Messages without reason, plausible and absurd, at members in every state: none may panic.

use bytes::Bytes;
use raft::eraftpb::{ConfState as RawConf, Entry as RawEntry, EntryType, Message, MessageType};

use super::cluster::Cluster;
use super::log::Done;
use super::{Chance, Image, MemLog, voters};
use crate::codec::Wire;
use crate::raft::{Core, Input, Options, PeerMessage, Role};
use crate::types::{
    ConfChange, ConfProposal, ConfState, Entry, EntryKind, MemberRecord, NodeId, SnapshotMeta,
};

const KINDS: [MessageType; 19] = [
    MessageType::MsgHup,
    MessageType::MsgBeat,
    MessageType::MsgPropose,
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgUnreachable,
    MessageType::MsgSnapStatus,
    MessageType::MsgCheckQuorum,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

/// A number near `centre`, and now and then an absurd one.
fn near(chance: &mut Chance, centre: u64) -> u64 {
    match chance.below(40) {
        0 => u64::MAX,
        1 => u64::MAX - 1,
        2 => 1 << 60,
        3 => 0,
        _ => centre.saturating_add(chance.below(5)).saturating_sub(2),
    }
}

fn raw_entry(chance: &mut Chance, index: u64, term: u64) -> RawEntry {
    let mut entry = RawEntry::default();
    entry.set_index(if chance.hits(3) { near(chance, index) } else { index });
    entry.set_term(if chance.hits(10) { near(chance, term) } else { term });
    if chance.hits(20) {
        let id = NodeId(chance.below(6));
        let change = match chance.below(5) {
            0 => ConfChange::AddLearner(MemberRecord { id, ..Default::default() }),
            1 => ConfChange::Promote(id),
            2 => ConfChange::LeaveJoint,
            _ => ConfChange::Remove(id),
        };
        entry.set_entry_type(*chance.pick(&[
            EntryType::EntryConfChangeV2,
            EntryType::EntryConfChangeV2,
            EntryType::EntryConfChange,
        ]));
        let context = ConfProposal { change, request: None }.to_bytes();
        let context = if chance.hits(10) { Bytes::from_static(b"odd") } else { context };
        entry.set_context(context);
    } else {
        entry.set_data(Bytes::from_static(b"data"));
    }
    entry
}

fn raw_conf(chance: &mut Chance) -> RawConf {
    let mut list = |most: u64| (0..chance.below(most)).map(|_| chance.below(6)).collect::<Vec<_>>();
    let mut lists = [list(4), list(2), list(2), list(2)];
    if chance.hits(70) {
        lists[0].push(1);
        for list in &mut lists {
            list.sort_unstable();
            list.dedup();
        }
    }
    let [incoming, learners, outgoing, next] = lists;
    let mut conf = RawConf::default();
    conf.set_voters(incoming);
    conf.set_learners(learners);
    conf.set_voters_outgoing(outgoing);
    if chance.hits(30) {
        conf.set_learners_next(next);
    }
    conf.set_auto_leave(chance.hits(20));
    conf
}

/// A message to member 1, shaped by what it would take for plausible.
fn message(chance: &mut Chance, core: &Core<MemLog>) -> (NodeId, PeerMessage) {
    let status = core.status();
    let mut message = Message::default();
    let useful = [3, 3, 3, 4, 4, 5, 6, 6, 7, 8, 9, 14, 17, 18, 18];
    let kind = match chance.below(10) {
        0 => *chance.pick(&KINDS),
        _ => KINDS[*chance.pick(&useful)],
    };
    message.set_msg_type(kind);
    let leader = status.leader.map_or(2, |id| id.0);
    let from = if chance.hits(70) { leader } else { chance.below(7) };
    let from = if from == 1 { 2 + chance.below(3) } else { from };
    message.set_from(if chance.hits(2) { chance.below(7) } else { from });
    message.set_to(if chance.hits(2) { chance.below(7) } else { 1 });
    message.set_term(if chance.hits(60) { status.term } else { near(chance, status.term) });
    if kind == MessageType::MsgRequestPreVoteResponse && chance.hits(60) {
        message.set_term(status.term + 1);
    }
    let spans = [status.commit, status.last_index, status.applied, status.first_index];
    let centre = *chance.pick(&spans);
    let index = near(chance, centre);
    let term_at = |index: u64| core.log().image.term(index).unwrap_or(status.term);
    let votes = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
    if matches!(kind, MessageType::MsgAppend | MessageType::MsgAppendResponse) || votes || chance.hits(3) {
        message.set_index(index);
        let log_term = if chance.hits(70) { term_at(index) } else { near(chance, status.term) };
        message.set_log_term(log_term);
    }
    if chance.hits(70) {
        let centre = *chance.pick(&spans);
        let commit = near(chance, centre);
        message.set_commit(commit);
        if votes || chance.hits(3) {
            message.set_commit_term(if chance.hits(80) { term_at(commit) } else { near(chance, 2) });
        }
    }
    message.set_reject(chance.hits(25) && kind != MessageType::MsgAppend);
    if kind == MessageType::MsgAppendResponse || chance.hits(2) {
        message.set_reject_hint(near(chance, index));
    }
    if chance.hits(1) {
        message.set_request_snapshot(near(chance, 3));
        message.set_priority(-1);
    }
    if kind == MessageType::MsgAppend || chance.hits(2) {
        let mut term = message.get_log_term();
        for i in 0..chance.below(5) {
            if chance.hits(40) {
                term = term.max(message.get_term());
            }
            let entry = raw_entry(chance, message.get_index().wrapping_add(1 + i), term);
            message.mut_entries().push(entry);
        }
    }
    if kind == MessageType::MsgSnapshot || chance.hits(1) {
        let meta = message.mut_snapshot().mut_metadata();
        meta.set_index(near(chance, status.last_index));
        meta.set_term(near(chance, status.term));
        meta.set_conf_state(raw_conf(chance));
    }
    if chance.hits(3) {
        message.set_context(Bytes::from_static(raft::CAMPAIGN_TRANSFER));
    }
    (NodeId(from), PeerMessage(message))
}

/// A member 1 with some log, configuration and applied state.
fn some_core(chance: &mut Chance) -> Core<MemLog> {
    let confs: [ConfState; 6] = [
        voters(&[1]),
        voters(&[1, 2, 3]),
        ConfState { learners: vec![NodeId(4)], ..voters(&[1]) },
        ConfState { learners: vec![NodeId(1)], ..voters(&[2, 3]) },
        ConfState { voters_outgoing: vec![NodeId(1), NodeId(2)], auto_leave: true, ..voters(&[1, 3]) },
        ConfState::default(),
    ];
    let conf = chance.pick(&confs).clone();
    let seed = chance.next();
    let mut image = Image::default();
    if conf != ConfState::default() {
        let start = 1 + chance.below(5);
        image.boundary = SnapshotMeta { index: start, term: 1, conf: conf.clone() };
        let mut term = 1;
        for i in 0..chance.below(8) {
            term += u64::from(chance.hits(30));
            let index = start + 1 + i;
            let (kind, data, context) = (EntryKind::Normal, Bytes::from_static(b"x"), Bytes::new());
            image.entries.push(Entry { index, term, kind, data, context });
        }
        image.hard.term = term + chance.below(2);
        image.hard.commit = start + chance.below(image.entries.len() as u64 + 1);
    }
    let applied = image.boundary.index;
    Core::new(Options { id: NodeId(1), seed, applied, conf }, MemLog::new(image)).expect("sound")
}

struct Drive {
    core: Core<MemLog>,
    writes: Vec<u64>,
    handed: u64,
    installed: Option<u64>,
    roles: [u64; 5],
    let_in: u64,
    kept_out: u64,
}

impl Drive {
    fn step(&mut self, input: Input<Done>) {
        let messages = match &input {
            Input::Messages(messages) => messages.len() as u64,
            _ => 0,
        };
        let out = self.core.step(input).expect("the log can be read");
        self.writes.extend(out.writes.iter().map(|write| write.number));
        self.handed = out.install.as_ref().map_or(self.handed, |meta| meta.index);
        self.installed = out.install.map(|meta| meta.index).or(self.installed);
        self.handed = out.committed.last().map_or(self.handed, |entry| entry.index);
        self.kept_out += out.vetted.len() as u64;
        self.let_in += messages - out.vetted.len() as u64;
    }
}

/// `count` messages at fresh members, 60 or so to each; what came of it.
pub(super) fn storm(seed: u64, count: u64) -> ([u64; 5], u64, u64) {
    let mut chance = Chance::new(seed);
    let (mut roles, mut let_in, mut kept_out) = ([0; 5], 0, 0);
    let mut sent = 0;
    while sent < count {
        let core = some_core(&mut chance);
        let handed = core.status().applied;
        let mut drive = Drive { core, writes: Vec::new(), handed, installed: None, roles, let_in, kept_out };
        for _ in 0..90 {
            match chance.below(30) {
                0..20 => {
                    let count = 1 + chance.below(2);
                    let batch = (0..count).map(|_| message(&mut chance, &drive.core)).collect();
                    sent += count;
                    drive.step(Input::Messages(batch));
                }
                20 => (0..chance.below(40)).for_each(|_| drive.step(Input::Tick)),
                21 => drive.step(Input::Campaign),
                22..25 if !drive.writes.is_empty() => {
                    let last = drive
                        .writes
                        .drain(..1 + chance.below(drive.writes.len() as u64) as usize)
                        .next_back();
                    drive.step(Input::Durable(Done(last.expect("at least one"))));
                }
                25 | 26 => {
                    let handed = drive.handed;
                    drive.step(Input::Applied(handed));
                }
                27 => drive.step(Input::Propose { entries: vec![Bytes::from_static(b"mine")] }),
                28 => drive.step(Input::Transfer { to: Some(NodeId(chance.below(5))) }),
                29 => {
                    let change = if chance.hits(50) {
                        ConfChange::Remove(NodeId(chance.below(5)))
                    } else {
                        ConfChange::Promote(NodeId(chance.below(5)))
                    };
                    let proposal = ConfProposal { change, request: None };
                    drive.step(Input::ProposeConf { proposal });
                }
                _ => {}
            }
            let role = drive.core.status().role;
            let at = [Role::Leader, Role::Follower, Role::Candidate, Role::PreCandidate, Role::Learner];
            drive.roles[at.iter().position(|other| *other == role).expect("all listed")] += 1;
        }
        (roles, let_in, kept_out) = (drive.roles, drive.let_in, drive.kept_out);
    }
    (roles, let_in, kept_out)
}

#[test]
fn no_message_stops_a_member() {
    let (roles, let_in, kept_out) = storm(1, 300_000);
    println!("roles {roles:?}, let in {let_in}, kept out {kept_out}");
    assert!(roles.iter().all(|count| *count > 1_000), "{roles:?}");
    assert!(let_in > 50_000 && kept_out > 50_000, "{let_in} {kept_out}");
}

#[test]
fn foreign_bytes_are_read_or_refused() {
    let mut cluster = Cluster::new(3, &voters(&[1, 2, 3]));
    let mut frames = Vec::new();
    for _ in 0..60 {
        for id in cluster.alive() {
            cluster.step(id, Input::Tick);
            cluster.sync(id, usize::MAX);
        }
        frames.extend(cluster.post.iter().map(|letter| letter.message.to_bytes()));
        for letter in std::mem::take(&mut cluster.post) {
            cluster.deliver(letter);
        }
    }
    assert!(frames.len() > 50);
    let mut chance = Chance::new(5);
    for _ in 0..20_000 {
        let mut frame = chance.pick(&frames).to_vec();
        for _ in 0..1 + chance.below(3) {
            let at = chance.below(frame.len() as u64) as usize;
            frame[at] = chance.next() as u8;
        }
        frame.truncate(frame.len() - chance.below(3) as usize);
        let _ = PeerMessage::from_bytes(frame.into());
    }
}
