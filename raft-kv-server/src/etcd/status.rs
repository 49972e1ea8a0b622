//! Every error of the crate as etcd's gRPC code and text: clients match both.
//!
//! Total: an error without an equivalent in etcd gets the nearest code and its own plain text. No
//! text may name a member's address.

use raft_kv::error::{AuthRefusal, Error, NotDone, Refusal, Unknown};
use raft_kv::types::AlarmKind;
use tonic::{Code, Status};

/// Texts that services use without an error of the crate.
pub mod text {
    /// A range, put or delete without a key.
    pub const EMPTY_KEY: &str = "etcdserver: key is not provided";
    /// An operation that is none, or `ignore_value` on a missing key.
    pub const KEY_NOT_FOUND: &str = "etcdserver: key not found";
    /// A sort order or target that does not exist.
    pub const INVALID_SORT: &str = "etcdserver: invalid sort option";
    /// More than 128 operations in a list.
    pub const TOO_MANY_OPS: &str = "etcdserver: too many operations in txn request";
    /// An address that is none.
    pub const BAD_URLS: &str = "etcdserver: given member URLs are invalid";
    /// A promotion of a voter.
    pub const NOT_LEARNER: &str = "etcdserver: can only promote a learner member";
    /// A promotion of a learner that is behind.
    pub const LEARNER_NOT_READY: &str =
        "etcdserver: can only promote a learner member which is in sync with leader";
    /// A leader that can't be.
    pub const BAD_TRANSFEREE: &str = "etcdserver: bad leader transferee";
    /// What only the leader does.
    pub const NOT_LEADER: &str = "etcdserver: not leader";
    /// Nobody leads.
    pub const NO_LEADER: &str = "etcdserver: no leader";
    /// What a learner does not answer.
    pub const LEARNER: &str = "etcdserver: rpc not supported for learner";
    /// A request above its bounds.
    pub const TOO_LARGE: &str = "etcdserver: request is too large";
}

/// The status that an etcd client expects for `error`.
pub fn status(error: Error) -> Status {
    match error {
        Error::Refused(refusal) => refused(refusal),
        Error::NotDone(why) => not_done(&why),
        Error::Unknown(why) => unknown(&why),
        // The disk's own words stay in the log.
        Error::Stopped(_) => Status::unavailable("etcdserver: server stopped"),
    }
}

fn refused(refusal: Refusal) -> Status {
    use Code::{DataLoss, FailedPrecondition, InvalidArgument, NotFound, OutOfRange, ResourceExhausted};
    let (code, text) = match &refusal {
        Refusal::EmptyKey => (InvalidArgument, text::EMPTY_KEY),
        Refusal::KeyTooLarge { .. } | Refusal::ValueTooLarge { .. } | Refusal::RequestTooLarge { .. } => {
            (InvalidArgument, text::TOO_LARGE)
        }
        Refusal::TooManyOps { .. } | Refusal::NestedTooDeep { .. } => (InvalidArgument, text::TOO_MANY_OPS),
        Refusal::DuplicateKey { .. } => (InvalidArgument, "etcdserver: duplicate key given in txn request"),
        Refusal::EmptyRange => (InvalidArgument, "mvcc: watcher range is empty"),
        Refusal::Compacted { .. } => (OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
        Refusal::FutureRevision { .. } => {
            (OutOfRange, "etcdserver: mvcc: required revision is a future revision")
        }
        Refusal::KeyNotFound => (InvalidArgument, text::KEY_NOT_FOUND),
        Refusal::ValueProvided => (InvalidArgument, "etcdserver: value is provided"),
        Refusal::LeaseProvided => (InvalidArgument, "etcdserver: lease is provided"),
        Refusal::LeaseNotFound { .. } => (NotFound, "etcdserver: requested lease not found"),
        Refusal::LeaseExists { .. } => (FailedPrecondition, "etcdserver: lease already exists"),
        Refusal::LeaseOutOfBounds { field, .. } if field == "ttl" => {
            (OutOfRange, "etcdserver: too large lease TTL")
        }
        Refusal::StaleLeader { .. } => return Status::unavailable("etcdserver: leader changed"),
        Refusal::MemberNotFound { .. } => (NotFound, "etcdserver: member not found"),
        Refusal::MemberTaken { field, .. } if field == "name" => {
            return Status::failed_precondition("another member has that name; choose another");
        }
        Refusal::MemberTaken { .. } => (FailedPrecondition, "etcdserver: Peer URLs already exists"),
        Refusal::MemberNeeded { .. } => {
            (FailedPrecondition, "etcdserver: re-configuration failed due to not enough started members")
        }
        Refusal::TooManyMembers { .. } => {
            (FailedPrecondition, "etcdserver: too many learner members in cluster")
        }
        Refusal::QuotaExceeded { .. }
        | Refusal::Alarmed { kind: AlarmKind::NoSpace | AlarmKind::DiskShort } => {
            (ResourceExhausted, "etcdserver: mvcc: database space exceeded")
        }
        Refusal::Alarmed { kind: AlarmKind::Corrupt } => (DataLoss, "etcdserver: corrupt cluster"),
        Refusal::Auth(why) => return auth(why),
        Refusal::NotAllowed { .. } => (Code::PermissionDenied, "etcdserver: permission denied"),
        Refusal::OnceOvertaken { .. } | Refusal::MemberUnfit { .. } => {
            return Status::failed_precondition(refusal.to_string());
        }
        Refusal::BadToken { .. } | Refusal::BadCertificate { .. } => {
            return Status::unauthenticated(refusal.to_string());
        }
        Refusal::AnswerTooLarge { .. } | Refusal::NoRoom { .. } | Refusal::TooManySessions => {
            return Status::resource_exhausted(refusal.to_string());
        }
        Refusal::ReservedPrefix => return Status::permission_denied(refusal.to_string()),
        Refusal::VersionConflict { .. } | Refusal::Fenced { .. } => {
            return Status::aborted(refusal.to_string());
        }
        Refusal::Exists { .. } | Refusal::NameTaken { .. } => {
            return Status::already_exists(refusal.to_string());
        }
        Refusal::NotThere { .. } => return Status::not_found(refusal.to_string()),
        Refusal::InUse { .. } | Refusal::TaskRule { .. } => {
            return Status::failed_precondition(refusal.to_string());
        }
        Refusal::BatchTooLarge { .. } => return Status::invalid_argument(refusal.to_string()),
        Refusal::SessionTaken => return Status::aborted(refusal.to_string()),
        Refusal::LeaseOutOfBounds { .. }
        | Refusal::NegativeLimit { .. }
        | Refusal::NegativeRevision { .. }
        | Refusal::Invalid { .. }
        | Refusal::Malformed { .. } => return Status::invalid_argument(refusal.to_string()),
    };
    Status::new(code, text)
}

fn auth(why: &AuthRefusal) -> Status {
    use Code::{FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated};
    let (code, text) = match why {
        AuthRefusal::Denied => (PermissionDenied, "etcdserver: permission denied"),
        AuthRefusal::NoUser | AuthRefusal::UserEmpty => (InvalidArgument, "etcdserver: user name is empty"),
        AuthRefusal::InvalidToken => (Unauthenticated, "etcdserver: invalid auth token"),
        AuthRefusal::OldRevision => (InvalidArgument, "etcdserver: revision of auth store is old"),
        AuthRefusal::Failed | AuthRefusal::NoPassword => {
            (InvalidArgument, "etcdserver: authentication failed, invalid user ID or password")
        }
        AuthRefusal::NotEnabled => (FailedPrecondition, "etcdserver: authentication is not enabled"),
        AuthRefusal::RootMissing => (FailedPrecondition, "etcdserver: root user does not exist"),
        AuthRefusal::RootRoleMissing => (FailedPrecondition, "etcdserver: root user does not have root role"),
        AuthRefusal::RootNeeded => (InvalidArgument, "etcdserver: invalid auth management"),
        AuthRefusal::UserExists => (FailedPrecondition, "etcdserver: user name already exists"),
        AuthRefusal::UserNotFound => (FailedPrecondition, "etcdserver: user name not found"),
        AuthRefusal::RoleExists => (FailedPrecondition, "etcdserver: role name already exists"),
        AuthRefusal::RoleNotFound => (FailedPrecondition, "etcdserver: role name not found"),
        AuthRefusal::RoleEmpty => (InvalidArgument, "etcdserver: role name is empty"),
        AuthRefusal::RoleNotGranted => (FailedPrecondition, "etcdserver: role is not granted to the user"),
        AuthRefusal::PermissionNotGranted => {
            (FailedPrecondition, "etcdserver: permission is not granted to the role")
        }
        AuthRefusal::PermissionMissing => (InvalidArgument, "etcdserver: permission not given"),
    };
    Status::new(code, text)
}

fn not_done(why: &NotDone) -> Status {
    match why {
        NotDone::NoLeader | NotDone::NoState => Status::unavailable(text::NO_LEADER),
        NotDone::NotLeader => Status::unavailable("etcdserver: leader changed"),
        NotDone::Busy | NotDone::TooManyFailures { .. } => {
            Status::resource_exhausted("etcdserver: too many requests")
        }
        NotDone::ShuttingDown => Status::unavailable("etcdserver: server stopped"),
        NotDone::Deadline => Status::unavailable("etcdserver: request timed out"),
        NotDone::ChangeUnderWay | NotDone::Unreachable(_) => {
            Status::unavailable("etcdserver: unhealthy cluster")
        }
    }
}

/// It may have been done. The code is etcd's own for it; its Go client sends a write again only
/// where it was surely not sent, whatever the code.
fn unknown(why: &Unknown) -> Status {
    Status::unavailable(match why {
        Unknown::Deadline | Unknown::Overtaken => "etcdserver: request timed out",
        Unknown::LeaderChanged => "etcdserver: request timed out, possibly due to previous leader failure",
        Unknown::ConnectionLost => "etcdserver: request timed out, possibly due to connection lost",
        Unknown::ShuttingDown => "etcdserver: server stopped",
    })
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
