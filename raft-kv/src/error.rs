//! What can go wrong, by what the caller does next.
//!
//! Three kinds of wrong have three answers: a bug stops the process, input from outside gets a
//! [`Refusal`], a failing disk is [`StorageFailed`] and stops the process. A message never names
//! a manager's address.

use crate::codec::{wire_enum, wire_struct};
use crate::types::{AlarmKind, LeaseId, NodeId, Revision};

/// What a request ended with, when not with an answer. Each variant says what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request itself is at fault: nothing was changed; send it again only if altered.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// Certainly not done; it is safe to send it again, after a pause.
    #[error("not done: {0}")]
    NotDone(NotDone),
    /// It may have been done, may still be done, or never: look before you send it again.
    #[error("outcome unknown: {0}")]
    Unknown(Unknown),
    /// This node has stopped for good; the process should end.
    #[error("stopped: {0}")]
    Stopped(String),
}
wire_enum!(Error { 1 => Refused(refusal), 2 => NotDone(why), 3 => Unknown(why), 4 => Stopped(why) });

impl Error {
    /// The same for a worker, who is told of no manager: nothing is left in it that could name one, nor
    /// what other people wrote.
    #[must_use]
    pub fn for_worker(self) -> Self {
        match self {
            Self::Refused(refusal) => Self::Refused(refusal.for_worker()),
            Self::NotDone(why) => Self::NotDone(match why {
                NotDone::Unreachable(_) => {
                    NotDone::Unreachable("it can't be done at the moment; try again after a pause".into())
                }
                NotDone::NoLeader
                | NotDone::NotLeader
                | NotDone::Busy
                | NotDone::ShuttingDown
                | NotDone::Deadline
                | NotDone::ChangeUnderWay
                | NotDone::NoState
                | NotDone::TooManyFailures { .. } => why,
            }),
            Self::Unknown(why) => Self::Unknown(why),
            Self::Stopped(_) => Self::Stopped("the node that was asked has ended; ask another".into()),
        }
    }
}

/// Why a request was certainly not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// No leader is known now.
    #[error("the cluster has no leader now; try again in a second")]
    NoLeader,
    /// The member asked was not the leader any more.
    #[error("leadership moved; try again")]
    NotLeader,
    /// A queue is full.
    #[error("too many requests; try again after a pause")]
    Busy,
    /// The node is shutting down.
    #[error("this node is shutting down; ask another")]
    ShuttingDown,
    /// Time ran out before anything was sent.
    #[error("the deadline passed before the request was proposed")]
    Deadline,
    /// Another membership change is under way, or the leader has not yet taken on its duties.
    #[error("another membership change is under way; try again when it has ended")]
    ChangeUnderWay,
    /// No endpoint could be reached.
    #[error("{0}")]
    Unreachable(String),
    /// The member has just joined.
    #[error("this member has just joined and has no state yet; try again in a second, or ask another")]
    NoState,
    /// Too many tokens were wrong lately. Nothing was looked at.
    #[error("too many wrong tokens came, from this address or in all; try again in {seconds} s")]
    TooManyFailures {
        /// When a token is looked at again.
        seconds: u64,
    },
}
wire_enum!(NotDone {
    1 => NoLeader, 2 => NotLeader, 3 => Busy, 4 => ShuttingDown, 5 => Deadline, 6 => ChangeUnderWay,
    7 => Unreachable(why), 8 => NoState, 20 => TooManyFailures { seconds },
});

/// Why an outcome is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// Time ran out after the request was handed on.
    #[error("the deadline passed while the cluster was working on it")]
    Deadline,
    /// The leader changed after the request was handed on.
    #[error("the leader changed while the cluster was working on it")]
    LeaderChanged,
    /// The connection broke after the request was sent.
    #[error("the connection broke after the request was sent")]
    ConnectionLost,
    /// This member was caught up by a snapshot, which skipped the answer.
    #[error("this member fell behind and was caught up by a snapshot, which skipped the answer")]
    Overtaken,
    /// The node stopped after the request was handed on.
    #[error("this node stopped while the cluster was working on it")]
    ShuttingDown,
}
wire_enum!(Unknown { 1 => Deadline, 2 => LeaderChanged, 3 => ConnectionLost, 4 => ShuttingDown, 5 => Overtaken });

/// Why a request was refused: what, why, and what to do. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A key must have at least one byte.
    #[error("the key is empty; give a key of at least one byte")]
    EmptyKey,
    /// A key is too long.
    #[error("the key has {len} bytes, the limit is {max}; use a shorter key")]
    KeyTooLarge {
        /// Bytes given.
        len: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// A value is too large.
    #[error("the value has {len} bytes, the limit is {max}; split it or store a reference")]
    ValueTooLarge {
        /// Bytes given.
        len: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// A request is too large as a whole.
    #[error("the request has {len} bytes, the limit is {max}; split it")]
    RequestTooLarge {
        /// Bytes given.
        len: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// A transaction has too many operations.
    #[error("the transaction has {len} {list} entries, the limit is {max}; split it")]
    TooManyOps {
        /// Which list.
        list: String,
        /// Entries given.
        len: u64,
        /// Entries allowed.
        max: u64,
    },
    /// Transactions nest too deep.
    #[error("transactions nest deeper than {max}; flatten the request")]
    NestedTooDeep {
        /// Levels allowed.
        max: u64,
    },
    /// A transaction changes one key twice.
    #[error("the transaction changes the key \"{key}\" twice; let it change each key once")]
    DuplicateKey {
        /// The key, readable.
        key: String,
    },
    /// A range ends before it starts.
    #[error("the range is empty: its end is not behind its start; give an end that is")]
    EmptyRange,
    /// A limit is negative.
    #[error("the limit is {limit}; give 0 for no limit, or a positive number")]
    NegativeLimit {
        /// The limit given.
        limit: i64,
    },
    /// A revision is negative where that means nothing.
    #[error("the revision is {revision}; give 0 or a positive number")]
    NegativeRevision {
        /// The revision given.
        revision: Revision,
    },
    /// History at that revision is gone.
    #[error("revision {requested} has been compacted, the oldest kept is {compacted}; read a newer one")]
    Compacted {
        /// Asked for.
        requested: Revision,
        /// The oldest that can be read.
        compacted: Revision,
    },
    /// That revision has not been made.
    #[error("revision {requested} is in the future, the newest is {current}")]
    FutureRevision {
        /// Asked for.
        requested: Revision,
        /// The newest.
        current: Revision,
    },
    /// `ignore_value` or `ignore_lease` on a key that does not exist.
    #[error(
        "the key does not exist, so there is no value or lease of it to keep; put it without ignore_value and ignore_lease"
    )]
    KeyNotFound,
    /// A value was given together with `ignore_value`.
    #[error("a value is given together with ignore_value; give one of the two")]
    ValueProvided,
    /// A lease was given together with `ignore_lease`.
    #[error("a lease is given together with ignore_lease; give one of the two")]
    LeaseProvided,
    /// The lease does not exist (any more).
    #[error("lease {id:x} does not exist or has ended; grant a new one")]
    LeaseNotFound {
        /// The lease asked for.
        id: LeaseId,
    },
    /// A lease with that id exists.
    #[error("lease {id:x} exists already; choose another id, or 0 to have one chosen")]
    LeaseExists {
        /// The lease asked for.
        id: LeaseId,
    },
    /// A lease id or time to live is out of bounds.
    #[error("the lease's {field} is {value}; it must be from {min} to {max}")]
    LeaseOutOfBounds {
        /// `id` or `ttl`.
        field: String,
        /// Given.
        value: i64,
        /// Smallest allowed.
        min: i64,
        /// Largest allowed.
        max: i64,
    },
    /// A repeated request is older than the last one answered for that client.
    #[error("request {seq} of this client was overtaken by {newest}; its answer is not kept any more")]
    OnceOvertaken {
        /// The number repeated.
        seq: u64,
        /// The newest answered.
        newest: u64,
    },
    /// A decision of a leader that had been deposed when it was applied.
    #[error("the deciding leader was of term {decided}, the entry is of term {applied}")]
    StaleLeader {
        /// The term of the decision.
        decided: u64,
        /// The term of the entry.
        applied: u64,
    },
    /// No such member.
    #[error("no member has the id {id}; `raft-kv member ls` lists them")]
    MemberNotFound {
        /// Asked for.
        id: NodeId,
    },
    /// A name or address that another member has.
    #[error("the {field} {value:?} belongs to member {owner}; choose another, or remove that member first")]
    MemberTaken {
        /// `name` or `address`.
        field: String,
        /// Given.
        value: String,
        /// Whose it is.
        owner: NodeId,
    },
    /// A change that the group would not survive.
    #[error("member {id} can't be removed: {why}")]
    MemberNeeded {
        /// The member.
        id: NodeId,
        /// Which rule, and the way out.
        why: String,
    },
    /// A change of role that does not fit.
    #[error("member {id} {why}")]
    MemberUnfit {
        /// The member.
        id: NodeId,
        /// What does not fit, and the way out.
        why: String,
    },
    /// The group is full.
    #[error("the group has {max} members, which is the limit; remove one first")]
    TooManyMembers {
        /// Allowed.
        max: u64,
    },
    /// A join token is not one.
    #[error("the join token is not valid: {why}")]
    BadToken {
        /// Which part, and the way out.
        why: String,
    },
    /// A certificate is not accepted.
    #[error("the certificate is not accepted: {why}")]
    BadCertificate {
        /// Which rule, and the way out.
        why: String,
    },
    /// The role may not do this.
    #[error("a {role} certificate does not allow this request; use one that does")]
    NotAllowed {
        /// The caller's role.
        role: String,
    },
    /// Any other input out of its bounds.
    #[error("{field} is not valid: {why}")]
    Invalid {
        /// Which part of the request.
        field: String,
        /// What is wrong, and the way out.
        why: String,
    },
    /// The bytes are not a request.
    #[error("the request can't be read: {what}; is the client of a newer version?")]
    Malformed {
        /// The first part that was wrong.
        what: String,
    },
    /// Users, roles and permissions.
    #[error("{0}")]
    Auth(AuthRefusal),
    /// An alarm is raised that forbids this.
    #[error("{}", alarmed(*.kind))]
    Alarmed {
        /// Which.
        kind: AlarmKind,
    },
    /// The answer would be larger than one answer may be.
    #[error("the answer would have more than {max} bytes; ask for it in pages, or as a stream")]
    AnswerTooLarge {
        /// Bytes allowed.
        max: u64,
    },
    /// A raw write below the prefix of tasks and state.
    #[error(
        "keys below \"_rk/\" hold tasks and state and can't be written by raw requests; use the typed layer \
         (raft_kv::orchestration) in a manager's process"
    )]
    ReservedPrefix,
    /// It was changed since it was read.
    #[error(
        "{what} was changed: you read version {given}, stored is {stored}; read it again and decide anew"
    )]
    VersionConflict {
        /// Which.
        what: String,
        /// The version given.
        given: Revision,
        /// The version stored.
        stored: Revision,
    },
    /// It exists.
    #[error("{what} exists already; choose another id, or change the one there is")]
    Exists {
        /// Which.
        what: String,
    },
    /// It does not exist.
    #[error("{what} does not exist (any more)")]
    NotThere {
        /// Which.
        what: String,
    },
    /// Another object of the kind has the name.
    #[error("another {kind} has the name {name:?}; choose another name")]
    NameTaken {
        /// The kind.
        kind: String,
        /// The name.
        name: String,
    },
    /// Something else needs it.
    #[error("{what} is in use by {by}; remove that first")]
    InUse {
        /// Which.
        what: String,
        /// By what.
        by: String,
    },
    /// A change of a task that no task can go through.
    #[error("task {task}: {why}")]
    TaskRule {
        /// Which.
        task: String,
        /// Which rule, and the way out.
        why: String,
    },
    /// A write of a leader that another has followed.
    #[error("this is a write of the leader of term {term}, and term {held} has taken over; stop its duties")]
    Fenced {
        /// The term of the write.
        term: u64,
        /// The newest.
        held: u64,
    },
    /// A batch of changes is too large for one transaction.
    #[error("the batch has {len} {what}, the limit is {max}; split it")]
    BatchTooLarge {
        /// What there are too many of.
        what: String,
        /// So many.
        len: u64,
        /// Allowed.
        max: u64,
    },
    /// A newer session of the node took over.
    #[error(
        "another session of this node was opened, this one is over; two workers may be using one certificate"
    )]
    SessionTaken,
    /// A member has as many sessions of workers as it may.
    #[error("this member has as many sessions as it may; open one at another member")]
    TooManySessions,
    /// It would take the live keys and values over the quota.
    #[error(
        "the live keys and values have {live} bytes, and this would take them over the quota of {quota}; delete keys, or \
         raise the quota with `raft-kv quota set`"
    )]
    QuotaExceeded {
        /// Bytes of all live keys and values before it.
        live: u64,
        /// Bytes allowed.
        quota: u64,
    },
    /// A snapshot is larger than the room on its receiver's disk.
    #[error(
        "the snapshot needs {needed} bytes on the receiver's disk and {free} are free there; make room on it: the snapshot \
         is sent again by itself"
    )]
    NoRoom {
        /// Bytes that are still to come, and what is kept free.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
}
wire_enum!(Refusal {
    1 => EmptyKey, 2 => KeyTooLarge { len, max }, 3 => ValueTooLarge { len, max },
    4 => RequestTooLarge { len, max }, 5 => TooManyOps { list, len, max }, 6 => NestedTooDeep { max },
    7 => DuplicateKey { key }, 8 => EmptyRange, 9 => NegativeLimit { limit },
    10 => NegativeRevision { revision }, 11 => Compacted { requested, compacted },
    12 => FutureRevision { requested, current }, 13 => KeyNotFound, 14 => ValueProvided,
    15 => LeaseProvided, 16 => LeaseNotFound { id }, 17 => LeaseExists { id },
    18 => LeaseOutOfBounds { field, value, min, max }, 19 => OnceOvertaken { seq, newest },
    20 => StaleLeader { decided, applied }, 21 => MemberNotFound { id },
    22 => MemberTaken { field, value, owner }, 23 => MemberNeeded { id, why },
    24 => MemberUnfit { id, why }, 25 => TooManyMembers { max }, 26 => BadToken { why },
    27 => BadCertificate { why }, 28 => NotAllowed { role }, 29 => Invalid { field, why },
    30 => Malformed { what }, 31 => Auth(why), 32 => Alarmed { kind },
    33 => AnswerTooLarge { max }, 40 => QuotaExceeded { live, quota },
    41 => NoRoom { needed, free },
    45 => ReservedPrefix, 46 => VersionConflict { what, given, stored }, 47 => Exists { what },
    48 => NotThere { what }, 49 => NameTaken { kind, name }, 50 => InUse { what, by },
    51 => TaskRule { task, why }, 52 => Fenced { term, held }, 53 => BatchTooLarge { what, len, max },
    55 => SessionTaken, 56 => TooManySessions,
});

/// What an alarm that is raised asks for.
fn alarmed(kind: AlarmKind) -> String {
    match kind {
        AlarmKind::NoSpace | AlarmKind::Corrupt => format!(
            "the alarm {kind:?} is raised; see `etcdctl alarm list`, remove its cause, then end it with `etcdctl alarm disarm`"
        ),
        AlarmKind::DiskShort => "the disk of a member is nearly full, and nothing that takes space is done meanwhile; free \
                                 space there (the log of that member names its data directory), or delete keys and \
                                 compact: this ends by itself when there is room"
            .into(),
    }
}

impl Refusal {
    /// The same for a worker: see [`Error::for_worker`].
    fn for_worker(self) -> Self {
        match self {
            // Numbers alone, and what the worker itself sent.
            Self::EmptyKey
            | Self::KeyTooLarge { .. }
            | Self::ValueTooLarge { .. }
            | Self::RequestTooLarge { .. }
            | Self::NestedTooDeep { .. }
            | Self::EmptyRange
            | Self::NegativeLimit { .. }
            | Self::NegativeRevision { .. }
            | Self::Compacted { .. }
            | Self::FutureRevision { .. }
            | Self::KeyNotFound
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::LeaseNotFound { .. }
            | Self::LeaseExists { .. }
            | Self::OnceOvertaken { .. }
            | Self::StaleLeader { .. }
            | Self::TooManyMembers { .. }
            | Self::Auth(_)
            | Self::Alarmed { .. }
            | Self::QuotaExceeded { .. }
            | Self::NoRoom { .. }
            | Self::SessionTaken
            | Self::TooManySessions
            | Self::AnswerTooLarge { .. } => self,
            Self::BadToken { .. } => Self::BadToken { why: "ask for another".into() },
            Self::BadCertificate { .. } => Self::BadCertificate {
                why:
                    "it is not believed (any more), or none could be made now; try again after a pause, and \
                      if that does not help let this node join anew"
                        .into(),
            },
            Self::TooManyOps { .. }
            | Self::DuplicateKey { .. }
            | Self::LeaseOutOfBounds { .. }
            | Self::Invalid { .. } => Self::invalid("request", "a part of it is out of its bounds"),
            Self::Malformed { .. } => Self::Malformed { what: "some part of it".into() },
            Self::ReservedPrefix
            | Self::VersionConflict { .. }
            | Self::Exists { .. }
            | Self::NotThere { .. }
            | Self::NameTaken { .. }
            | Self::InUse { .. }
            | Self::TaskRule { .. }
            | Self::Fenced { .. }
            | Self::BatchTooLarge { .. }
            | Self::NotAllowed { .. }
            | Self::MemberNotFound { .. }
            | Self::MemberTaken { .. }
            | Self::MemberNeeded { .. }
            | Self::MemberUnfit { .. } => Self::NotAllowed { role: "worker".into() },
        }
    }

    /// A refusal of `field`, saying `why`.
    pub fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), why: why.into() }
    }
}

/// What users, roles and permissions forbid or lack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthRefusal {
    /// The caller may not touch a key, or do this at all.
    #[error("permission denied; ask somebody with the role root for it")]
    Denied,
    /// Authentication is on and the caller named no user.
    #[error("authentication is on and no user is named; log in, or use a certificate with a user's name")]
    NoUser,
    /// The token is unknown, has ended, or belongs to a user that changed.
    #[error("the token is not valid (any more); log in again")]
    InvalidToken,
    /// Users or roles changed since the caller was checked.
    #[error("users or roles changed since this request was checked; send it again")]
    OldRevision,
    /// Wrong name or password; which of them is not said.
    #[error("the user's name or password is wrong")]
    Failed,
    /// Authentication is off.
    #[error("authentication is off; turn it on with `etcdctl auth enable`")]
    NotEnabled,
    /// There is no user root.
    #[error("there is no user root; make it first")]
    RootMissing,
    /// The user root lacks the role root.
    #[error("the user root does not have the role root; grant it first")]
    RootRoleMissing,
    /// What root needs while authentication is on may not be removed; or a permission on no key.
    #[error(
        "it can't be managed so: while authentication is on, the user root keeps the role root; and a permission is on at least one key"
    )]
    RootNeeded,
    /// A user of that name exists.
    #[error("a user of that name exists")]
    UserExists,
    /// No user of that name.
    #[error("there is no user of that name")]
    UserNotFound,
    /// The user's name is empty.
    #[error("the user's name is empty")]
    UserEmpty,
    /// A role of that name exists.
    #[error("a role of that name exists")]
    RoleExists,
    /// No role of that name.
    #[error("there is no role of that name")]
    RoleNotFound,
    /// The role's name is empty.
    #[error("the role's name is empty")]
    RoleEmpty,
    /// The user does not have that role.
    #[error("the user does not have that role")]
    RoleNotGranted,
    /// The role has no permission on exactly that range.
    #[error("the role has no permission on exactly that range")]
    PermissionNotGranted,
    /// A grant without a permission.
    #[error("no permission is given")]
    PermissionMissing,
    /// The user has no password.
    #[error("the user has no password; it proves itself by certificate")]
    NoPassword,
}
wire_enum!(AuthRefusal {
    1 => Denied, 2 => NoUser, 3 => InvalidToken, 4 => OldRevision, 5 => Failed, 6 => NotEnabled,
    7 => RootMissing, 8 => RootRoleMissing, 9 => RootNeeded, 10 => UserExists, 11 => UserNotFound,
    12 => UserEmpty, 13 => RoleExists, 14 => RoleNotFound, 15 => RoleEmpty, 16 => RoleNotGranted,
    17 => PermissionNotGranted, 18 => PermissionMissing, 19 => NoPassword,
});

impl From<AuthRefusal> for Refusal {
    fn from(why: AuthRefusal) -> Self {
        Self::Auth(why)
    }
}

impl From<AuthRefusal> for Error {
    fn from(why: AuthRefusal) -> Self {
        Self::Refused(why.into())
    }
}

/// The disk under a node failed, or holds what this software never wrote. The process stops and
/// nothing is retried: after a failed sync nobody knows what is on disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {why}; {next}")]
pub struct StorageFailed {
    /// The file or folder concerned.
    pub file: String,
    /// What happened.
    pub why: String,
    /// What to do.
    pub next: String,
}
wire_struct!(StorageFailed { file, why, next });

impl StorageFailed {
    /// An I/O error on `file` during `action`.
    pub fn io(file: impl Into<String>, action: &str, error: &std::io::Error) -> Self {
        let next = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                "the disk is full: make room on it, then start this member again"
            }
            _ => {
                "check the disk, then start this member again; if it can't be trusted, remove \
                 the member and let it join anew"
            }
        };
        Self { file: file.into(), why: format!("{action} failed: {error}"), next: next.into() }
    }

    /// `file` holds something that was never written by a healthy member.
    pub fn damaged(file: impl Into<String>, why: impl Into<String>) -> Self {
        Self { file: file.into(), why: why.into(), next: DAMAGED.into() }
    }

    /// Whether it was [damage](Self::damaged): what is on the disk can't be used, the disk itself may be.
    pub fn is_damage(&self) -> bool {
        self.next == DAMAGED
    }

    /// Whether `text` is what damage is shown as.
    pub fn tells_damage(text: &str) -> bool {
        text.ends_with(DAMAGED)
    }
}

/// What is to be done about damage.
const DAMAGED: &str = "this member's data can't be trusted: start it again, and it gets its data from the others by \
                       itself; if they do not take it in, remove it from the cluster (`raft-kv member rm`), empty \
                       its data directory and let it join anew";
