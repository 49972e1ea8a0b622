//! What the state machine is asked through the log, and what it answers.

use bytes::Bytes;

use crate::codec::{wire_enum, wire_struct};
use crate::error::Refusal;
use crate::types::{
    Compare, CompareTarget, DeleteRequest, DeleteResponse, KeyRange, KeyValue, LeaseId, Member, MemberRecord,
    OnceId, PutRequest, PutResponse, RequestId, Revision, Role, Term, TxnOp, TxnRequest, TxnResponse,
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
        /// Its id; positive.
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
    /// Stores a join token (its digest; see `pki`), or removes it with `token` `None`.
    TokenSet {
        /// The token's id.
        id: String,
        /// The token.
        token: Option<TokenRecord>,
    },
    /// Does nothing but take its place in the order.
    Noop,
    /// Makes the revision at least `to`, without events, and forgets all history: see `raise`.
    RaiseRevision {
        /// The least revision after it.
        to: Revision,
    },
}
wire_enum!(Command {
    1 => Put(request), 2 => Delete(request), 3 => Txn(request), 4 => Compact { revision },
    5 => LeaseGrant { id, ttl }, 6 => LeaseRevoke { id }, 7 => LeaseExpire { ids, term },
    8 => MemberUpdate(record), 9 => TokenSet { id, token }, 10 => Noop,
    20 => RaiseRevision { to },
});

/// A join token as the cluster keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenRecord {
    /// What joining with it makes of a node.
    pub role: Role,
    /// The secret part of the token.
    pub secret: String,
}
wire_struct!(TokenRecord { role, secret });

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
}
wire_enum!(Answer {
    1 => Put(response), 2 => Delete(response), 3 => Txn(response), 4 => Lease { id, ttl },
    5 => Members(members), 6 => Done,
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

/// A key and value as they are stored in `Table::Live`: everything of [`KeyValue`] but the key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// See [`KeyValue`].
    pub create_revision: Revision,
    /// See [`KeyValue`].
    pub mod_revision: Revision,
    /// See [`KeyValue`].
    pub version: i64,
    /// See [`KeyValue`].
    pub lease: LeaseId,
    /// See [`KeyValue`].
    pub value: Bytes,
}
wire_struct!(Stored { create_revision, mod_revision, version, lease, value });

impl Stored {
    /// With its key again.
    pub fn with_key(self, key: Bytes) -> KeyValue {
        KeyValue {
            key,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            value: self.value,
            lease: self.lease,
        }
    }
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
                Self::TokenSet { id, token } => {
                    id.len() + token.as_ref().map_or(0, |token| token.secret.len())
                }
                Self::Compact { .. }
                | Self::LeaseGrant { .. }
                | Self::LeaseRevoke { .. }
                | Self::Noop
                | Self::RaiseRevision { .. } => 0,
            }
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
