//! Every error of the crate as etcd's gRPC code and text: clients match both.
//!
//! The mapping is total: a new variant of an error does not compile until it has its place here.
//! Where etcd has no such error, the nearest code is taken with our own words. No text may name a
//! member's address.
//!
//! **Unknown outcomes.** A write that may have been done is answered as etcd answers it:
//! `Unavailable` with "request timed out…" or "server stopped". The official Go client sends a
//! write again only if it certainly never left, so for it these codes are safe; clients that send
//! again whatever is `Unavailable` need a transaction with a guard here just as with etcd. A write
//! that was certainly *not* done has other texts ("no leader", "leader changed", "too many
//! requests"), except where time ran out before it was proposed.

use raft_kv::error::{AuthRefusal, Error, NotDone, Refusal, Unknown};
use raft_kv::types::AlarmKind;
use tonic::{Code, Status};

/// An error that etcd has, too: its code and its whole text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known(pub Code, pub &'static str);

impl From<Known> for Status {
    fn from(Known(code, text): Known) -> Self {
        Self::new(code, text)
    }
}

macro_rules! known {
    ($($name:ident = $code:ident $text:literal;)*) => {
        $(
            #[doc = concat!("`", $text, "`")]
            pub const $name: Known = Known(Code::$code, concat!("etcdserver: ", $text));
        )*
    };
}

known! {
    EMPTY_KEY = InvalidArgument "key is not provided";
    KEY_NOT_FOUND = InvalidArgument "key not found";
    VALUE_PROVIDED = InvalidArgument "value is provided";
    LEASE_PROVIDED = InvalidArgument "lease is provided";
    TOO_MANY_OPS = InvalidArgument "too many operations in txn request";
    DUPLICATE_KEY = InvalidArgument "duplicate key given in txn request";
    INVALID_SORT_OPTION = InvalidArgument "invalid sort option";
    REQUEST_TOO_LARGE = InvalidArgument "request is too large";
    BAD_MEMBER_URLS = InvalidArgument "given member URLs are invalid";
    COMPACTED = OutOfRange "mvcc: required revision has been compacted";
    FUTURE_REVISION = OutOfRange "mvcc: required revision is a future revision";
    NO_SPACE = ResourceExhausted "mvcc: database space exceeded";
    LEASE_NOT_FOUND = NotFound "requested lease not found";
    LEASE_EXISTS = FailedPrecondition "lease already exists";
    LEASE_TTL_TOO_LARGE = OutOfRange "too large lease TTL";
    TOO_MANY_REQUESTS = ResourceExhausted "too many requests";
    MEMBER_NOT_FOUND = NotFound "member not found";
    PEER_URL_EXISTS = FailedPrecondition "Peer URLs already exists";
    NOT_ENOUGH_STARTED = FailedPrecondition "re-configuration failed due to not enough started members";
    NOT_A_LEARNER = FailedPrecondition "can only promote a learner member";
    LEARNER_NOT_READY = FailedPrecondition "can only promote a learner member which is in sync with leader";
    TOO_MANY_LEARNERS = FailedPrecondition "too many learner members in cluster";
    NOT_FOR_LEARNERS = FailedPrecondition "rpc not supported for learner";
    NOT_LEADER = FailedPrecondition "not leader";
    BAD_TRANSFEREE = FailedPrecondition "bad leader transferee";
    WRONG_DOWNGRADE_FORMAT = InvalidArgument "wrong downgrade target version format";
    INVALID_DOWNGRADE_TARGET = InvalidArgument "invalid downgrade target version";
    NO_DOWNGRADE = FailedPrecondition "no inflight downgrade job";
    NO_LEADER = Unavailable "no leader";
    LEADER_CHANGED = Unavailable "leader changed";
    STOPPED = Unavailable "server stopped";
    TIMED_OUT = Unavailable "request timed out";
    TIMED_OUT_LEADER_FAILED = Unavailable "request timed out, possibly due to previous leader failure";
    TIMED_OUT_CONNECTION_LOST = Unavailable "request timed out, possibly due to connection lost";
    TIMED_OUT_APPLYING = Unavailable "request timed out, waiting for the applied index took too long";
    UNHEALTHY = Unavailable "unhealthy cluster";
    CORRUPT = DataLoss "corrupt cluster";
    PERMISSION_DENIED = PermissionDenied "permission denied";
    USER_EMPTY = InvalidArgument "user name is empty";
    ROLE_EMPTY = InvalidArgument "role name is empty";
    AUTH_FAILED = InvalidArgument "authentication failed, invalid user ID or password";
    PERMISSION_NOT_GIVEN = InvalidArgument "permission not given";
    INVALID_AUTH_MANAGEMENT = InvalidArgument "invalid auth management";
    AUTH_OLD_REVISION = InvalidArgument "revision of auth store is old";
    INVALID_AUTH_TOKEN = Unauthenticated "invalid auth token";
    AUTH_NOT_ENABLED = FailedPrecondition "authentication is not enabled";
    ROOT_MISSING = FailedPrecondition "root user does not exist";
    ROOT_ROLE_MISSING = FailedPrecondition "root user does not have root role";
    USER_EXISTS = FailedPrecondition "user name already exists";
    USER_NOT_FOUND = FailedPrecondition "user name not found";
    ROLE_EXISTS = FailedPrecondition "role name already exists";
    ROLE_NOT_FOUND = FailedPrecondition "role name not found";
    ROLE_NOT_GRANTED = FailedPrecondition "role is not granted to the user";
    PERMISSION_NOT_GRANTED = FailedPrecondition "permission is not granted to the role";
}

/// A watch whose range has no keys. etcd puts this text into the watch's answer, not into a status.
pub const EMPTY_WATCH: Known = Known(Code::InvalidArgument, "mvcc: watcher range is empty");

/// A password for a user who has none: etcd lets its own error through, code `Unknown` and all.
pub const NO_PASSWORD_USER: Known =
    Known(Code::Unknown, "auth: authentication failed, password was given for no password user");

/// The status that an etcd client expects for `error`.
pub fn status(error: Error) -> Status {
    match error {
        Error::Refused(refusal) => refused(refusal),
        Error::NotDone(why) => not_done(&why).into(),
        Error::Unknown(why) => unknown(why).into(),
        // Why it stopped may name files; the member's own log has it.
        Error::Stopped(_) => STOPPED.into(),
    }
}

/// Certainly not done: it is safe to send it again.
fn not_done(why: &NotDone) -> Known {
    match why {
        NotDone::NoLeader => NO_LEADER,
        NotDone::NotLeader => LEADER_CHANGED,
        NotDone::Busy => TOO_MANY_REQUESTS,
        NotDone::ShuttingDown => STOPPED,
        NotDone::Deadline => TIMED_OUT,
        NotDone::ChangeUnderWay | NotDone::NoState => UNHEALTHY,
        // Its text names addresses.
        NotDone::Unreachable(_) => TIMED_OUT_CONNECTION_LOST,
    }
}

/// It may have been done; see the head of this file.
fn unknown(why: Unknown) -> Known {
    match why {
        Unknown::Deadline => TIMED_OUT,
        Unknown::LeaderChanged => TIMED_OUT_LEADER_FAILED,
        Unknown::ConnectionLost => TIMED_OUT_CONNECTION_LOST,
        Unknown::Overtaken => TIMED_OUT_APPLYING,
        Unknown::ShuttingDown => STOPPED,
    }
}

fn refused(refusal: Refusal) -> Status {
    let own = |code: Code| Status::new(code, refusal.to_string());
    let known = match &refusal {
        Refusal::EmptyKey => EMPTY_KEY,
        Refusal::KeyTooLarge { .. } | Refusal::ValueTooLarge { .. } | Refusal::RequestTooLarge { .. } => {
            REQUEST_TOO_LARGE
        }
        Refusal::TooManyOps { .. } | Refusal::NestedTooDeep { .. } => TOO_MANY_OPS,
        Refusal::DuplicateKey { .. } => DUPLICATE_KEY,
        Refusal::EmptyRange => EMPTY_WATCH,
        Refusal::NegativeLimit { .. } | Refusal::NegativeRevision { .. } => {
            return own(Code::InvalidArgument);
        }
        Refusal::Compacted { .. } => COMPACTED,
        Refusal::FutureRevision { .. } => FUTURE_REVISION,
        Refusal::KeyNotFound => KEY_NOT_FOUND,
        Refusal::ValueProvided => VALUE_PROVIDED,
        Refusal::LeaseProvided => LEASE_PROVIDED,
        Refusal::LeaseNotFound { .. } => LEASE_NOT_FOUND,
        Refusal::LeaseExists { .. } => LEASE_EXISTS,
        Refusal::LeaseOutOfBounds { field, .. } if field == "ttl" => LEASE_TTL_TOO_LARGE,
        Refusal::LeaseOutOfBounds { .. } => return own(Code::InvalidArgument),
        Refusal::OnceOvertaken { .. } | Refusal::StaleLeader { .. } => return own(Code::FailedPrecondition),
        Refusal::MemberNotFound { .. } => MEMBER_NOT_FOUND,
        Refusal::MemberTaken { field, .. } if field == "name" => {
            return Status::failed_precondition("another member has that name; choose another");
        }
        Refusal::MemberTaken { .. } => PEER_URL_EXISTS,
        Refusal::MemberNeeded { .. } => NOT_ENOUGH_STARTED,
        // Which of etcd's texts fits depends on what was asked: the services that ask say it.
        Refusal::MemberUnfit { .. } => return own(Code::FailedPrecondition),
        Refusal::TooManyMembers { .. } => TOO_MANY_LEARNERS,
        Refusal::BadToken { .. } => return own(Code::InvalidArgument),
        Refusal::BadCertificate { .. } => return own(Code::Unauthenticated),
        Refusal::NotAllowed { .. } => PERMISSION_DENIED,
        Refusal::Invalid { .. } | Refusal::Malformed { .. } => return own(Code::InvalidArgument),
        Refusal::Auth(why) => auth(why),
        Refusal::Alarmed { kind: AlarmKind::NoSpace } => NO_SPACE,
        Refusal::Alarmed { kind: AlarmKind::Corrupt } => CORRUPT,
    };
    known.into()
}

fn auth(why: &AuthRefusal) -> Known {
    match why {
        AuthRefusal::Denied => PERMISSION_DENIED,
        AuthRefusal::NoUser | AuthRefusal::UserEmpty => USER_EMPTY,
        AuthRefusal::InvalidToken => INVALID_AUTH_TOKEN,
        AuthRefusal::OldRevision => AUTH_OLD_REVISION,
        AuthRefusal::Failed => AUTH_FAILED,
        AuthRefusal::NotEnabled => AUTH_NOT_ENABLED,
        AuthRefusal::RootMissing => ROOT_MISSING,
        AuthRefusal::RootRoleMissing => ROOT_ROLE_MISSING,
        AuthRefusal::RootNeeded => INVALID_AUTH_MANAGEMENT,
        AuthRefusal::UserExists => USER_EXISTS,
        AuthRefusal::UserNotFound => USER_NOT_FOUND,
        AuthRefusal::RoleExists => ROLE_EXISTS,
        AuthRefusal::RoleNotFound => ROLE_NOT_FOUND,
        AuthRefusal::RoleEmpty => ROLE_EMPTY,
        AuthRefusal::RoleNotGranted => ROLE_NOT_GRANTED,
        AuthRefusal::PermissionNotGranted => PERMISSION_NOT_GRANTED,
        AuthRefusal::PermissionMissing => PERMISSION_NOT_GIVEN,
        AuthRefusal::NoPassword => NO_PASSWORD_USER,
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
