//! What members send each other: raft's messages, and requests handed on to the leader.
//!
//! Every frame comes from a verified member; whatever it claims beyond that is checked where it
//! is used. Tags are on the wire between versions: they never change meaning.

use crate::codec::wire_enum;
use crate::error::Error;
use crate::machine::Proposal;
use crate::raft::{self, PeerMessage, ReadContext};
use crate::types::{ConfProposal, Index, LeaseId, LeaseStatus, NodeId, RequestId, Term};

/// One frame from member to member.
#[derive(Clone, Debug)]
pub enum PeerFrame {
    /// Raft's own.
    Raft(PeerMessage),
    /// Requests of the sender's callers, to be proposed in `term` or not at all: so the sender
    /// knows that none of them can come later once it applied an entry of a newer term.
    Forward {
        /// The receiver's term as leader.
        term: Term,
        /// All with the sender as origin.
        proposals: Vec<Proposal>,
    },
    /// A membership change of the sender's caller, under the same rule.
    ForwardConf {
        /// The receiver's term as leader.
        term: Term,
        /// With the sender as origin.
        proposal: ConfProposal,
    },
    /// These forwarded requests were not proposed.
    Declined {
        /// Which.
        requests: Vec<RequestId>,
        /// Why.
        why: Error,
    },
    /// Asks the leader which index a linearizable read has to wait for.
    ReadIndex {
        /// Never used before.
        context: ReadContext,
    },
    /// The answer; `None` if the receiver must ask anew.
    ReadConfirmed {
        /// As asked.
        context: ReadContext,
        /// Reads may be served once this is applied.
        index: Option<Index>,
    },
    /// Renews a lease, or asks what it has left.
    LeaseCall {
        /// Who waits.
        request: RequestId,
        /// Which lease.
        id: LeaseId,
        /// Give it its full time again.
        renew: bool,
    },
    /// The answer.
    LeaseReply {
        /// As asked.
        request: RequestId,
        /// What the lease has left.
        result: Result<LeaseStatus, Error>,
    },
    /// Asks the leader to hand over.
    Transfer {
        /// To whom; the most caught-up voter otherwise.
        to: Option<NodeId>,
    },
}
wire_enum!(PeerFrame {
    1 => Raft(message), 2 => Forward { term, proposals }, 3 => ForwardConf { term, proposal },
    4 => Declined { requests, why }, 5 => ReadIndex { context }, 6 => ReadConfirmed { context, index },
    7 => LeaseCall { request, id, renew }, 8 => LeaseReply { request, result }, 9 => Transfer { to },
});

impl PeerFrame {
    /// Whether it must not wait behind bulk: everything but entries.
    pub fn urgent(&self) -> bool {
        match self {
            Self::Raft(message) => message.priority() == raft::Priority::Urgent,
            Self::Forward { .. } | Self::ForwardConf { .. } => false,
            _ => true,
        }
    }
}
