//! What goes into the core and what comes out. Values only.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::PeerMessage;
use crate::codec::{Wire, wire_struct};
use crate::error::Error;
use crate::types::{Committed, ConfProposal, ConfState, Index, NodeId, SnapshotMeta, Term};

/// What a core starts from, besides its log.
#[derive(Clone, Debug)]
pub struct Options {
    /// This member; not 0.
    pub id: NodeId,
    /// Where its election timeouts come from. The same seed and inputs give the same outputs.
    pub seed: u64,
    /// Up to where the state machine has applied (what its store says after a restart).
    pub applied: Index,
    /// The configuration at `applied`; empty for a member that waits for its first snapshot.
    pub conf: ConfState,
}

/// One thing that happens to a member.
#[derive(Debug)]
pub enum Input<P> {
    /// [`crate::limits::TICK`] has passed.
    Tick,
    /// Messages, each with the peer that the transport has verified as its sender. One that
    /// [`is_snapshot`](PeerMessage::is_snapshot) is given only once its files are in place.
    Messages(Vec<(NodeId, PeerMessage)>),
    /// Each becomes one normal entry, all in one append; refused as a whole.
    Propose {
        /// Encoded proposals, each at most [`crate::limits::MAX_ENTRY_BYTES`].
        entries: Vec<Bytes>,
    },
    /// A membership change; at most one is under way.
    ProposeConf {
        /// What is asked, and by whom.
        proposal: ConfProposal,
    },
    /// Asks for an index that a linearizable read may be answered at.
    Read {
        /// Unique for ever: never given twice, not even for a retry.
        context: ReadContext,
    },
    /// The write with the proof's number, and all before it, are on disk.
    Durable(P),
    /// The state machine has applied everything up to here.
    Applied(Index),
    /// Hands leadership over; ignored unless leader.
    Transfer {
        /// To this voter, or to the most caught-up live one.
        to: Option<NodeId>,
    },
    /// Stands for election now instead of after a timeout: for a cluster of one at its start.
    Campaign,
    /// A message to this peer was lost.
    Unreachable(NodeId),
    /// A snapshot's files have reached the peer, or never will.
    SnapshotSent {
        /// The peer.
        to: NodeId,
        /// Whether it has them all.
        ok: bool,
    },
    /// A checkpoint exists that followers may be offered.
    SnapshotMade(SnapshotMeta),
    /// Entries up to here are covered by flushed state and may be forgotten. Ignored beyond
    /// what is applied.
    Cut(SnapshotMeta),
    /// As `Cut`, where their bytes are to go from the disk.
    Forget(SnapshotMeta),
}

/// Everything one input caused, to be carried out in any order save that `writes` stay in order.
#[derive(Debug)]
pub struct Output<W> {
    /// May go out at once.
    pub messages: Vec<(NodeId, PeerMessage)>,
    /// For the log's writer, in this order; each comes back as [`Input::Durable`].
    pub writes: Vec<W>,
    /// For the state machine, in order; configurations are already in force in raft.
    pub committed: Vec<Committed>,
    /// Reads that may be answered once the index is applied.
    pub reads: Vec<(ReadContext, Index)>,
    /// A received snapshot was accepted: its files become the state before `committed` goes on.
    pub install: Option<SnapshotMeta>,
    /// Followers that need a snapshot while none that suits them is on offer.
    pub want_snapshot: Vec<NodeId>,
    /// Proposals certainly not taken in.
    pub refused: Vec<Bytes>,
    /// A membership change certainly not taken in, and why.
    pub conf_refused: Option<ConfRefused>,
    /// Reads that will never be confirmed: try again with a new context, or elsewhere.
    pub reads_refused: Vec<ReadContext>,
    /// Messages that were not let in, for counting and logging.
    pub vetted: Vec<(NodeId, super::Refused)>,
    /// Set when any part of it has changed.
    pub leadership: Option<Leadership>,
}

impl<W> Default for Output<W> {
    fn default() -> Self {
        Self {
            messages: Vec::new(),
            writes: Vec::new(),
            committed: Vec::new(),
            reads: Vec::new(),
            install: None,
            want_snapshot: Vec::new(),
            refused: Vec::new(),
            conf_refused: None,
            reads_refused: Vec::new(),
            vetted: Vec::new(),
            leadership: None,
        }
    }
}

/// A membership change that was not taken in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfRefused {
    /// What was asked.
    pub proposal: ConfProposal,
    /// Why: [`Error::Refused`] or [`Error::NotDone`].
    pub reason: Error,
}

/// Names one attempt at a linearizable read, for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReadContext {
    /// The node that reads.
    pub node: NodeId,
    /// Drawn at random by each process run of it.
    pub boot: u64,
    /// Counts up within that run, with each attempt.
    pub counter: u64,
}
wire_struct!(ReadContext { node, boot, counter });

impl ReadContext {
    pub(super) fn encoded(&self) -> Vec<u8> {
        self.to_bytes().to_vec()
    }

    pub(super) fn decoded(raw: &[u8]) -> Option<Self> {
        Self::from_bytes(Bytes::copy_from_slice(raw)).ok()
    }
}

/// What a member is in the raft group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Takes proposals.
    Leader,
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Asks whether it would get votes.
    PreCandidate,
    /// Follows and has no vote: a learner, or not (or no longer) in the group.
    Learner,
}

/// Who leads, as this member knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leadership {
    /// The current term.
    pub term: Term,
    /// This member's role.
    pub role: Role,
    /// The leader, where known.
    pub leader: Option<NodeId>,
    /// This member leads, and its term's first entry is committed and handed out: only now is
    /// everything earlier leaders have promised in `committed`.
    pub ready: bool,
}

/// A snapshot of the core's state for people, metrics and decisions of the leader.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// This member.
    pub id: NodeId,
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader, where known.
    pub leader: Option<NodeId>,
    /// The highest index known to be committed.
    pub commit: Index,
    /// The highest index in [`Output::committed`] or [`Output::install`] so far.
    pub handed: Index,
    /// The highest index the state machine has confirmed.
    pub applied: Index,
    /// The log's first entry.
    pub first_index: Index,
    /// The log's last entry, staged ones included.
    pub last_index: Index,
    /// The log's last entry known to be on disk.
    pub persisted: Index,
    /// Whom leadership is being handed to.
    pub transfer_to: Option<NodeId>,
    /// The configuration in force.
    pub conf: ConfState,
    /// The others, where this member leads.
    pub progress: BTreeMap<NodeId, Progress>,
}

/// What a leader knows of another member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// It has everything up to here on disk.
    pub matched: Index,
    /// It has answered within the last election timeout.
    pub recent_active: bool,
    /// How entries are being sent to it.
    pub sending: Sending,
}

/// How a leader sends to a follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sending {
    /// One append at a time, to find where the logs part.
    Probe,
    /// Many appends at once.
    Replicate,
    /// Waiting for it to install a snapshot.
    Snapshot,
}
