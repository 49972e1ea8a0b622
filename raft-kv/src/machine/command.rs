//! What the state machine is asked through the log, and what it answers.

use crate::codec::{wire_enum, wire_struct};
use crate::error::Refusal;
use crate::types::{
    AlarmRequest, AuthChange, Caller, Compare, CompareTarget, DeleteRequest, DeleteResponse, KeyRange,
    LeaseId, Member, MemberRecord, NodeId, OnceId, PasswordHash, PointChange, PointReply, PutRequest,
    PutResponse, RequestId, Revision, Run, Term, TrustChange, TxnOp, TxnRequest, TxnResponse,
};

/// A change asked of the state machine. Applying it is total and gives the same result on every
/// member. Tags are on disk and on the wire: they never change meaning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Writes a key.
    Put(PutRequest),
    /// Removes keys.
    Delete(DeleteRequest),
    /// A transaction.
    Txn(TxnRequest),
    /// Forgets versions that were superseded at or before `revision`.
    Compact {
        /// The oldest revision that stays readable.
        revision: Revision,
    },
    /// Makes a lease; `id` is chosen by the proposer where the caller gave 0.
    LeaseGrant {
        /// Its id; not 0.
        id: LeaseId,
        /// Seconds.
        ttl: i64,
    },
    /// Ends a lease and removes its keys in one revision.
    LeaseRevoke {
        /// Which.
        id: LeaseId,
    },
    /// The leader of `term` found these leases expired; refused if the entry is of another term.
    LeaseExpire {
        /// Which; those that do not exist are passed over. Each ends in a revision of its own.
        ids: Vec<LeaseId>,
        /// The term of the leader that decided.
        term: Term,
    },
    /// Changes a member's name or address.
    MemberUpdate(MemberRecord),
    /// Changes what is believed: roots, nodes, join tokens.
    Trust(TrustChange),
    /// Does nothing but take its place in the order.
    Noop,
    /// Changes users, roles or permissions.
    Auth(AuthChange),
    /// Raises or ends an alarm.
    Alarm(AlarmRequest),
    /// A command of a caller who may not do everything: permissions are asked for where it is
    /// applied. Never one within another.
    As {
        /// Whose.
        caller: Caller,
        /// What it asks.
        command: Box<Command>,
    },
    /// A command that came over the network with a node's certificate: whether that node is still let
    /// in is asked for where it is applied, so that a member which has not heard of a removal can't
    /// carry out anything for who was removed. Around everything else, and never within another.
    From {
        /// Whose certificate it came with.
        node: NodeId,
        /// What is asked.
        command: Box<Command>,
    },
    /// Changes rollback points, or rolls back to one.
    Point(PointChange),
    /// Sets the quota on live bytes; none for `None`.
    Quota {
        /// Bytes of live keys and values; at least 1.
        bytes: Option<u64>,
    },
    /// Makes the revision at least `to`, without events, and forgets all history: see `raise`.
    RaiseRevision {
        /// The least revision after it.
        to: Revision,
    },
    /// The leader has heard that a member runs, and with which run: see `runs`.
    Seen {
        /// Whose.
        id: NodeId,
        /// Which.
        run: Run,
    },
}
wire_enum!(Command {
    1 => Put(request), 2 => Delete(request), 3 => Txn(request), 4 => Compact { revision },
    5 => LeaseGrant { id, ttl }, 6 => LeaseRevoke { id }, 7 => LeaseExpire { ids, term },
    8 => MemberUpdate(record), 10 => Noop,
    11 => Auth(change), 12 => Alarm(request), 13 => As { caller, command },
    14 => Trust(change), 15 => From { node, command }, 16 => Point(change), 19 => Quota { bytes }, 20 => RaiseRevision { to },
    21 => Seen { id, run },
});

/// What the state machine answers to a [`Command`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// To a put.
    Put(PutResponse),
    /// To a delete.
    Delete(DeleteResponse),
    /// To a transaction.
    Txn(TxnResponse),
    /// To a lease grant: what was granted.
    Lease {
        /// The lease.
        id: LeaseId,
        /// Seconds; at least the smallest allowed.
        ttl: i64,
    },
    /// To a membership change: the members after it.
    Members(Vec<Member>),
    /// To anything else.
    Done,
    /// To a change of rollback points, or a rollback.
    Point(PointReply),
}
wire_enum!(Answer {
    1 => Put(response), 2 => Delete(response), 3 => Txn(response), 4 => Lease { id, ttl },
    5 => Members(members), 6 => Done, 7 => Point(reply),
});

/// One caller's command inside a log entry. An entry's data is a list of these.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// Who waits for the answer.
    pub request: RequestId,
    /// The caller's own name for it, if repeats must not be done again.
    pub once: Option<OnceId>,
    /// What is asked.
    pub command: Command,
}
wire_struct!(Proposal { request, once, command });

/// The outcome of one proposal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Whose.
    pub request: RequestId,
    /// The store's revision right after it.
    pub revision: Revision,
    /// The answer, or why nothing was changed.
    pub result: Result<Answer, Refusal>,
}

impl Command {
    /// About how many bytes it takes in a log entry, without encoding it; never far too few.
    pub fn size(&self) -> usize {
        const FIXED: usize = 64;
        FIXED
            + match self {
                Self::Put(request) => put_size(request),
                Self::Delete(request) => range_size(&request.range),
                Self::Txn(request) => txn_size(request),
                Self::LeaseExpire { ids, .. } => ids.len() * size_of::<LeaseId>(),
                Self::MemberUpdate(record) => record.name.len() + record.addr.len(),
                Self::Trust(change) => super::trust::size(change),
                Self::Auth(change) => change_size(change),
                Self::Point(change) => super::points::size(change),
                Self::As { caller, command } => command.size() + caller_size(caller),
                Self::From { command, .. } => command.size() + 9,
                Self::Compact { .. }
                | Self::LeaseGrant { .. }
                | Self::LeaseRevoke { .. }
                | Self::Alarm(_)
                | Self::Quota { .. }
                | Self::Noop
                | Self::Seen { .. }
                | Self::RaiseRevision { .. } => 0,
            }
    }

    /// Whether it must be the only one in its entry: it may take more than one batch on the store, and
    /// nothing else may lie between these.
    pub fn goes_alone(&self) -> bool {
        match self.asked().1 {
            Self::Point(PointChange::Rollback { .. }) => true,
            Self::Point(PointChange::Create { at, .. }) => at.is_some(),
            _ => false,
        }
    }

    /// The node whose certificate it came with, if over the network, and the rest.
    pub fn came_from(&self) -> (Option<NodeId>, &Self) {
        match self {
            Self::From { node, command } => (Some(*node), command),
            command => (None, command),
        }
    }

    /// What is asked, and by whom if not by one who may do everything.
    pub fn asked(&self) -> (Option<&Caller>, &Self) {
        self.came_from().1.on_behalf()
    }

    /// The same for what is within a [`Command::From`].
    pub(super) fn on_behalf(&self) -> (Option<&Caller>, &Self) {
        match self {
            Self::As { caller, command } => (Some(caller), command),
            command => (None, command),
        }
    }
}

fn caller_size(caller: &Caller) -> usize {
    match caller {
        Caller::User { name, .. } => name.len(),
        Caller::Bearer { token } => token.len(),
        Caller::Full | Caller::Anonymous => 0,
    }
}

fn hash_size(hash: &PasswordHash) -> usize {
    match hash {
        PasswordHash::Clear(hash) => hash.len(),
        PasswordHash::Sealed(hash) => hash.0.len(),
    }
}

fn change_size(change: &AuthChange) -> usize {
    match change {
        AuthChange::Enable { token_key } => token_key.0.len(),
        AuthChange::Disable => 0,
        AuthChange::UserAdd { name, password } | AuthChange::UserPassword { name, password } => {
            name.len() + password.as_ref().map_or(0, hash_size)
        }
        AuthChange::UserDelete { name } => name.len(),
        AuthChange::UserGrant { name, role } | AuthChange::UserRevoke { name, role } => {
            name.len() + role.len()
        }
        AuthChange::RoleAdd { role } | AuthChange::RoleDelete { role } => role.len(),
        AuthChange::RoleGrant { role, permission } => role.len() + range_size(&permission.range),
        AuthChange::RoleRevoke { role, range } => role.len() + range_size(range),
    }
}

/// Bytes of lengths and numbers in one operation, at most.
const OPERATION_FIXED: usize = 128;

fn range_size(range: &KeyRange) -> usize {
    range.key.len() + range.end.len()
}

fn put_size(request: &PutRequest) -> usize {
    request.key.len() + request.value.len()
}

fn txn_size(request: &TxnRequest) -> usize {
    let compare = |compare: &Compare| {
        let value = if let CompareTarget::Value(value) = &compare.target { value.len() } else { 0 };
        OPERATION_FIXED + range_size(&compare.range) + value
    };
    let operation = |operation: &TxnOp| {
        OPERATION_FIXED
            + match operation {
                TxnOp::Range(request) => range_size(&request.range),
                TxnOp::Put(request) => put_size(request),
                TxnOp::Delete(request) => range_size(&request.range),
                TxnOp::Txn(request) => txn_size(request),
            }
    };
    let compares: usize = request.compares.iter().map(compare).sum();
    let operations: usize = request.success.iter().chain(&request.failure).map(operation).sum();
    compares + operations
}
