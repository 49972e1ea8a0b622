//! What the raft log holds and what comes out of it.

use bytes::Bytes;

use super::{Index, MemberRecord, NodeId, RequestId, Term};
use crate::codec::{wire_enum, wire_struct};

/// What an entry's `data` is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// Encoded proposals for the state machine; empty for a new leader's first entry.
    Normal,
    /// A membership change: `data` is for raft alone, `context` holds our [`ConfChange`].
    Config,
}
wire_enum!(EntryKind { 0 => Normal, 1 => Config });

/// One entry of the raft log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its place; places have no gaps.
    pub index: Index,
    /// The term of the leader that proposed it.
    pub term: Term,
    /// What `data` is.
    pub kind: EntryKind,
    /// The proposal.
    pub data: Bytes,
    /// Our side of a membership change; empty otherwise.
    pub context: Bytes,
}
wire_struct!(Entry { index, term, kind, data, context });

impl Entry {
    /// Bytes that count against limits: the payload and a fixed allowance for the rest.
    pub fn size(&self) -> usize {
        self.data.len() + self.context.len() + 32
    }
}

/// What raft must never forget besides entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HardState {
    /// The highest term seen.
    pub term: Term,
    /// Whom this member voted for in that term; `NodeId(0)` for nobody.
    pub vote: NodeId,
    /// The highest index known to be committed; may lag.
    pub commit: Index,
}
wire_struct!(HardState { term, vote, commit });

/// The raft group's configuration, as raft needs it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConfState {
    /// Members that vote, ascending.
    pub voters: Vec<NodeId>,
    /// Members that only receive, ascending.
    pub learners: Vec<NodeId>,
    /// The voters being replaced, while a joint change is under way.
    pub voters_outgoing: Vec<NodeId>,
    /// Voters that become learners when the joint change ends.
    pub learners_next: Vec<NodeId>,
    /// Whether raft ends the joint change by itself.
    pub auto_leave: bool,
}
wire_struct!(ConfState { voters, learners, voters_outgoing, learners_next, auto_leave });

/// A position in the log with what raft needs to start from it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SnapshotMeta {
    /// The last entry that the snapshot contains.
    pub index: Index,
    /// That entry's term.
    pub term: Term,
    /// The configuration at that entry.
    pub conf: ConfState,
}
wire_struct!(SnapshotMeta { index, term, conf });

/// One membership change as an operator or the leader asks for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConfChange {
    /// Adds a member that receives but does not vote yet, or changes a learner's record.
    AddLearner(MemberRecord),
    /// Makes a learner a voter.
    Promote(NodeId),
    /// Takes a member out for good; its id is never used again.
    Remove(NodeId),
    /// Ends a joint change; raft proposes it by itself.
    LeaveJoint,
}
wire_enum!(ConfChange { 1 => AddLearner(record), 2 => Promote(id), 3 => Remove(id), 4 => LeaveJoint });

/// What a [`EntryKind::Config`] entry's `context` holds; empty where raft ends a joint change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfProposal {
    /// What is asked.
    pub change: ConfChange,
    /// Who waits for it.
    pub request: Option<RequestId>,
}
wire_struct!(ConfProposal { change, request });

/// A committed entry on its way to the state machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Committed {
    /// Its place in the log.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// What it asks.
    pub payload: Payload,
}

/// What a committed entry asks of the state machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload {
    /// Encoded proposals; empty for a new leader's first entry.
    Proposals(Bytes),
    /// A membership change and the configuration after it.
    Config {
        /// What was asked, decoded from the entry's context.
        change: ConfChange,
        /// Who waits for it.
        request: Option<RequestId>,
        /// The configuration that raft took on.
        after: ConfState,
    },
}
