//! Messages between members and their binary form.
//!
//! raft's own parser never sees foreign bytes: a frame is read with our bounded codec, and what
//! it says is judged by [`super::vet`] before raft sees it.

use bytes::{Bytes, BytesMut};
use raft::eraftpb::{Message, MessageType};

use super::adapter::{entry_from_raft, entry_to_raft, snapshot_from_raft, snapshot_to_raft};
use crate::codec::{Malformed, Reader, Wire, malformed};
use crate::limits::MAX_APPEND_BYTES;
use crate::types::{Entry, Index, NodeId, SnapshotMeta, Term};

/// A message from one member to another. What is inside is raft's affair.
#[derive(Clone, PartialEq, Debug)]
pub struct PeerMessage(pub(super) Message);

/// How a message should travel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Priority {
    /// Heartbeats, votes and their answers: small, and late ones cost an election.
    Urgent,
    /// Entries and their acknowledgements, in order.
    Entries,
    /// Announces a snapshot, whose files travel beside it.
    Snapshot,
}

#[cfg(test)]
impl PeerMessage {
    /// A leader's snapshot message.
    pub(crate) fn snapshot(from: NodeId, to: NodeId, term: Term, meta: &SnapshotMeta) -> Self {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        message.set_from(from.0);
        message.set_to(to.0);
        message.set_term(term);
        message.set_snapshot(snapshot_to_raft(meta));
        Self(message)
    }
}

impl PeerMessage {
    /// Whom it is for.
    pub fn to(&self) -> NodeId {
        NodeId(self.0.get_to())
    }

    /// Who says it comes from them; the transport's word counts, not this.
    pub fn from(&self) -> NodeId {
        NodeId(self.0.get_from())
    }

    /// The sender's term (the one asked for, in a pre-vote).
    pub fn term(&self) -> Term {
        self.0.get_term()
    }

    /// Whether it stands for a snapshot: to be stepped only when its files are in place.
    pub fn is_snapshot(&self) -> bool {
        self.0.get_msg_type() == MessageType::MsgSnapshot
    }

    /// Which snapshot it stands for.
    pub fn snapshot_meta(&self) -> Option<SnapshotMeta> {
        self.is_snapshot().then(|| snapshot_from_raft(self.0.get_snapshot()))
    }

    /// How it should travel.
    pub fn priority(&self) -> Priority {
        match self.0.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgAppendResponse => Priority::Entries,
            MessageType::MsgSnapshot => Priority::Snapshot,
            _ => Priority::Urgent,
        }
    }

    /// Whether it is a heartbeat or the answer to one: losing it costs nothing but time.
    pub fn is_heartbeat(&self) -> bool {
        matches!(self.0.get_msg_type(), MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse)
    }

    /// Whether it grants the receiver the sender's vote in the message's term.
    pub fn grants_vote(&self) -> bool {
        self.0.get_msg_type() == MessageType::MsgRequestVoteResponse && !self.0.get_reject()
    }

    /// What it says that its sender has on its disk: a term, and how much of the log was acknowledged in it
    /// (0 for a vote); `None` for what rests on no disk.
    pub fn promise(&self) -> Option<(Term, Index)> {
        match self.0.get_msg_type() {
            MessageType::MsgAppendResponse if !self.0.get_reject() => {
                Some((self.0.get_term(), self.0.get_index()))
            }
            MessageType::MsgRequestVoteResponse if !self.0.get_reject() => Some((self.0.get_term(), 0)),
            _ => None,
        }
    }

    /// How many entries it carries.
    pub fn entry_count(&self) -> usize {
        self.0.get_entries().len()
    }

    /// The kind in one word, for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self.0.get_msg_type() {
            MessageType::MsgAppend => "append",
            MessageType::MsgAppendResponse => "append_response",
            MessageType::MsgRequestVote => "vote",
            MessageType::MsgRequestVoteResponse => "vote_response",
            MessageType::MsgRequestPreVote => "pre_vote",
            MessageType::MsgRequestPreVoteResponse => "pre_vote_response",
            MessageType::MsgHeartbeat => "heartbeat",
            MessageType::MsgHeartbeatResponse => "heartbeat_response",
            MessageType::MsgSnapshot => "snapshot",
            MessageType::MsgTimeoutNow => "timeout_now",
            _ => "local",
        }
    }
}

/// A message as one or more that each fit a frame: raft merges appends to a peer without bound.
pub(super) fn split(mut message: Message) -> Vec<Message> {
    if message.get_msg_type() != MessageType::MsgAppend {
        return vec![message];
    }
    let mut parts = Vec::new();
    let entries: Vec<_> = message.take_entries().into();
    let mut part = message.clone();
    let mut bytes = 0;
    for entry in entries {
        let size = (entry.data.len() + entry.context.len() + 32) as u64;
        if !part.get_entries().is_empty() && bytes + size > MAX_APPEND_BYTES {
            let last = &part.get_entries()[part.get_entries().len() - 1];
            let mut next = message.clone();
            next.set_index(last.get_index());
            next.set_log_term(last.get_term());
            parts.push(std::mem::replace(&mut part, next));
            bytes = 0;
        }
        bytes += size;
        part.mut_entries().push(entry);
    }
    parts.push(part);
    parts
}

/// The kinds that members send each other. A tag keeps its meaning for ever.
const KINDS: [(u8, MessageType); 10] = [
    (1, MessageType::MsgAppend),
    (2, MessageType::MsgAppendResponse),
    (3, MessageType::MsgRequestVote),
    (4, MessageType::MsgRequestVoteResponse),
    (5, MessageType::MsgRequestPreVote),
    (6, MessageType::MsgRequestPreVoteResponse),
    (7, MessageType::MsgHeartbeat),
    (8, MessageType::MsgHeartbeatResponse),
    (9, MessageType::MsgSnapshot),
    (10, MessageType::MsgTimeoutNow),
];

impl Wire for PeerMessage {
    fn encode(&self, out: &mut BytesMut) {
        let message = &self.0;
        let (tag, _) = KINDS
            .iter()
            .find(|(_, kind)| *kind == message.get_msg_type())
            .expect("raft hands out only messages of kinds that travel");
        tag.encode(out);
        for number in [
            message.get_from(),
            message.get_to(),
            message.get_term(),
            message.get_index(),
            message.get_log_term(),
            message.get_commit(),
            message.get_commit_term(),
            message.get_reject_hint(),
        ] {
            number.encode(out);
        }
        message.get_reject().encode(out);
        message.context.encode(out);
        let entries = message.get_entries();
        (entries.len() as u32).encode(out);
        for entry in entries {
            entry_from_raft(entry).encode(out);
        }
        self.snapshot_meta().encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, Malformed> {
        let tag = u8::decode(input)?;
        let Some((_, kind)) = KINDS.iter().find(|(known, _)| *known == tag) else {
            return malformed("unknown kind of peer message");
        };
        let mut message = Message::default();
        message.set_msg_type(*kind);
        message.set_from(u64::decode(input)?);
        message.set_to(u64::decode(input)?);
        message.set_term(u64::decode(input)?);
        message.set_index(u64::decode(input)?);
        message.set_log_term(u64::decode(input)?);
        message.set_commit(u64::decode(input)?);
        message.set_commit_term(u64::decode(input)?);
        message.set_reject_hint(u64::decode(input)?);
        message.set_reject(bool::decode(input)?);
        message.set_context(Bytes::decode(input)?);
        let entries = Vec::<Entry>::decode(input)?;
        message.set_entries(entries.into_iter().map(entry_to_raft).collect::<Vec<_>>().into());
        match Option::<SnapshotMeta>::decode(input)? {
            Some(meta) if *kind == MessageType::MsgSnapshot => {
                message.set_snapshot(snapshot_to_raft(&meta));
            }
            None if *kind != MessageType::MsgSnapshot => {}
            _ => return malformed("a snapshot is missing or out of place"),
        }
        Ok(Self(message))
    }
}
