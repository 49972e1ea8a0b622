//! The table of errors, row by row.

use std::collections::BTreeSet;

use raft_kv::codec::Wire;
use raft_kv::types::NodeId;

use super::*;

const ADDRESS: &str = "10.1.2.3:2380";

/// Every error with the code and text expected for it; a text in brackets is our own and has no
/// more than that beginning in common.
fn table() -> Vec<(Error, Code, &'static str)> {
    use Code::*;
    let (len, max, why) = (9, 5, String::from("why"));
    let refusals = vec![
        (Refusal::EmptyKey, InvalidArgument, "etcdserver: key is not provided"),
        (Refusal::KeyTooLarge { len, max }, InvalidArgument, "etcdserver: request is too large"),
        (Refusal::ValueTooLarge { len, max }, InvalidArgument, "etcdserver: request is too large"),
        (Refusal::RequestTooLarge { len, max }, InvalidArgument, "etcdserver: request is too large"),
        (
            Refusal::TooManyOps { list: "success".into(), len, max },
            InvalidArgument,
            "etcdserver: too many operations in txn request",
        ),
        (Refusal::NestedTooDeep { max }, InvalidArgument, "etcdserver: too many operations in txn request"),
        (
            Refusal::DuplicateKey { key: "k".into() },
            InvalidArgument,
            "etcdserver: duplicate key given in txn request",
        ),
        (Refusal::EmptyRange, InvalidArgument, "mvcc: watcher range is empty"),
        (Refusal::NegativeLimit { limit: -1 }, InvalidArgument, "[the limit is -1"),
        (Refusal::NegativeRevision { revision: -1 }, InvalidArgument, "[the revision is -1"),
        (
            Refusal::Compacted { requested: 1, compacted: 2 },
            OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        ),
        (
            Refusal::FutureRevision { requested: 3, current: 2 },
            OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        ),
        (Refusal::KeyNotFound, InvalidArgument, "etcdserver: key not found"),
        (Refusal::ValueProvided, InvalidArgument, "etcdserver: value is provided"),
        (Refusal::LeaseProvided, InvalidArgument, "etcdserver: lease is provided"),
        (Refusal::LeaseNotFound { id: 7 }, NotFound, "etcdserver: requested lease not found"),
        (Refusal::LeaseExists { id: 7 }, FailedPrecondition, "etcdserver: lease already exists"),
        (
            Refusal::LeaseOutOfBounds { field: "ttl".into(), value: 10, min: 1, max: 9 },
            OutOfRange,
            "etcdserver: too large lease TTL",
        ),
        (
            Refusal::LeaseOutOfBounds { field: "id".into(), value: -1, min: 1, max: 9 },
            InvalidArgument,
            "[the lease's id is -1",
        ),
        (Refusal::OnceOvertaken { seq: 1, newest: 2 }, FailedPrecondition, "[request 1 of this client"),
        (Refusal::StaleLeader { decided: 1, applied: 2 }, Unavailable, "etcdserver: leader changed"),
        (Refusal::SessionTaken, Aborted, "[another session of this node"),
        (Refusal::TooManySessions, ResourceExhausted, "[this member has as many sessions"),
        (Refusal::ReservedPrefix, PermissionDenied, "[keys below \"_rk/\""),
        (Refusal::VersionConflict { what: "a".into(), given: 1, stored: 2 }, Aborted, "[a was changed"),
        (Refusal::Fenced { term: 1, held: 2 }, Aborted, "[this is a write of the leader of term 1"),
        (Refusal::Exists { what: "a".into() }, AlreadyExists, "[a exists already"),
        (Refusal::NotThere { what: "a".into() }, NotFound, "[a does not exist"),
        (Refusal::NameTaken { kind: "service".into(), name: "a".into() }, AlreadyExists, "[another service"),
        (Refusal::InUse { what: "a".into(), by: "b".into() }, FailedPrecondition, "[a is in use by b"),
        (Refusal::TaskRule { task: "a".into(), why: "no".into() }, FailedPrecondition, "[task a: no"),
        (Refusal::BatchTooLarge { what: "keys".into(), len: 2, max: 1 }, InvalidArgument, "[the batch has 2"),
        (Refusal::NoRoom { needed: 2, free: 1 }, ResourceExhausted, "[the snapshot needs 2 bytes"),
        (Refusal::AnswerTooLarge { max }, ResourceExhausted, "[the answer would have"),
        (Refusal::MemberNotFound { id: NodeId(1) }, NotFound, "etcdserver: member not found"),
        (
            Refusal::MemberTaken { field: "address".into(), value: ADDRESS.into(), owner: NodeId(1) },
            FailedPrecondition,
            "etcdserver: Peer URLs already exists",
        ),
        (
            Refusal::MemberTaken { field: "name".into(), value: "n".into(), owner: NodeId(1) },
            FailedPrecondition,
            "[another member has that name",
        ),
        (
            Refusal::MemberNeeded { id: NodeId(1), why: why.clone() },
            FailedPrecondition,
            "etcdserver: re-configuration failed due to not enough started members",
        ),
        (Refusal::MemberUnfit { id: NodeId(1), why: why.clone() }, FailedPrecondition, "[member 0000"),
        (
            Refusal::TooManyMembers { max },
            FailedPrecondition,
            "etcdserver: too many learner members in cluster",
        ),
        (Refusal::BadToken { why: why.clone() }, Unauthenticated, "[the join token"),
        (Refusal::BadCertificate { why: why.clone() }, Unauthenticated, "[the certificate"),
        (Refusal::NotAllowed { role: "worker".into() }, PermissionDenied, "etcdserver: permission denied"),
        (Refusal::invalid("field", "why"), InvalidArgument, "[field is not valid"),
        (Refusal::Malformed { what: why.clone() }, InvalidArgument, "[the request can't be read"),
        (
            Refusal::QuotaExceeded { live: 1, quota: 2 },
            ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
        ),
        (
            Refusal::Alarmed { kind: AlarmKind::DiskShort },
            ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
        ),
        (
            Refusal::Alarmed { kind: AlarmKind::NoSpace },
            ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
        ),
        (Refusal::Alarmed { kind: AlarmKind::Corrupt }, DataLoss, "etcdserver: corrupt cluster"),
    ];
    let auth = [
        (AuthRefusal::Denied, PermissionDenied, "etcdserver: permission denied"),
        (AuthRefusal::NoUser, InvalidArgument, "etcdserver: user name is empty"),
        (AuthRefusal::InvalidToken, Unauthenticated, "etcdserver: invalid auth token"),
        (AuthRefusal::OldRevision, InvalidArgument, "etcdserver: revision of auth store is old"),
        (
            AuthRefusal::Failed,
            InvalidArgument,
            "etcdserver: authentication failed, invalid user ID or password",
        ),
        (AuthRefusal::NotEnabled, FailedPrecondition, "etcdserver: authentication is not enabled"),
        (AuthRefusal::RootMissing, FailedPrecondition, "etcdserver: root user does not exist"),
        (AuthRefusal::RootRoleMissing, FailedPrecondition, "etcdserver: root user does not have root role"),
        (AuthRefusal::RootNeeded, InvalidArgument, "etcdserver: invalid auth management"),
        (AuthRefusal::UserExists, FailedPrecondition, "etcdserver: user name already exists"),
        (AuthRefusal::UserNotFound, FailedPrecondition, "etcdserver: user name not found"),
        (AuthRefusal::UserEmpty, InvalidArgument, "etcdserver: user name is empty"),
        (AuthRefusal::RoleExists, FailedPrecondition, "etcdserver: role name already exists"),
        (AuthRefusal::RoleNotFound, FailedPrecondition, "etcdserver: role name not found"),
        (AuthRefusal::RoleEmpty, InvalidArgument, "etcdserver: role name is empty"),
        (AuthRefusal::RoleNotGranted, FailedPrecondition, "etcdserver: role is not granted to the user"),
        (
            AuthRefusal::PermissionNotGranted,
            FailedPrecondition,
            "etcdserver: permission is not granted to the role",
        ),
        (AuthRefusal::PermissionMissing, InvalidArgument, "etcdserver: permission not given"),
        (
            AuthRefusal::NoPassword,
            InvalidArgument,
            "etcdserver: authentication failed, invalid user ID or password",
        ),
    ];
    let not_done = [
        (NotDone::NoLeader, Unavailable, "etcdserver: no leader"),
        (NotDone::NotLeader, Unavailable, "etcdserver: leader changed"),
        (NotDone::Busy, ResourceExhausted, "etcdserver: too many requests"),
        (NotDone::ShuttingDown, Unavailable, "etcdserver: server stopped"),
        (NotDone::Deadline, Unavailable, "etcdserver: request timed out"),
        (NotDone::ChangeUnderWay, Unavailable, "etcdserver: unhealthy cluster"),
        (
            NotDone::Unreachable(format!("{ADDRESS} does not answer")),
            Unavailable,
            "etcdserver: unhealthy cluster",
        ),
        (NotDone::NoState, Unavailable, "etcdserver: no leader"),
    ];
    let lost = "etcdserver: request timed out, possibly due to connection lost";
    let failed = "etcdserver: request timed out, possibly due to previous leader failure";
    use raft_kv::error::Unknown as U;
    let unknown = [
        (U::Deadline, Unavailable, "etcdserver: request timed out"),
        (U::LeaderChanged, Unavailable, failed),
        (U::ConnectionLost, Unavailable, lost),
        (U::ShuttingDown, Unavailable, "etcdserver: server stopped"),
        (U::Overtaken, Unavailable, "etcdserver: request timed out"),
    ];
    let stopped = (Error::Stopped("/data: no space".into()), Unavailable, "etcdserver: server stopped");
    refusals
        .into_iter()
        .chain(auth.map(|(why, code, text)| (why.into(), code, text)))
        .map(|(why, code, text)| (Error::Refused(why), code, text))
        .chain(not_done.map(|(why, code, text)| (Error::NotDone(why), code, text)))
        .chain(unknown.map(|(why, code, text)| (Error::Unknown(why), code, text)))
        .chain([stopped])
        .collect()
}

#[test]
fn every_error_has_etcds_code_and_text() {
    for (error, code, expect) in table() {
        let got = status(error.clone());
        assert_eq!(got.code(), code, "{error:?}");
        match expect.strip_prefix('[') {
            Some(own) => assert!(got.message().starts_with(own), "{error:?}: {}", got.message()),
            None => assert_eq!(got.message(), expect, "{error:?}"),
        }
        assert!(!got.message().contains(ADDRESS), "{error:?} names an address");
    }
}

/// A variant is known by the tags it has on the wire.
#[test]
fn no_error_is_missing_in_the_table() {
    let tags: BTreeSet<Vec<u8>> = table()
        .into_iter()
        .map(|(error, ..)| {
            let depth = match error {
                Error::Refused(Refusal::Auth(_)) => 3,
                Error::Stopped(_) => 1,
                _ => 2,
            };
            error.to_bytes()[..depth].to_vec()
        })
        .collect();
    // A variant that is missing here has no row above; a new one has no arm in `status`.
    let auth = 31;
    let refusals = (1..=33)
        .chain([40, 41])
        .chain(45..=53)
        .chain([55, 56])
        .filter(|tag| *tag != auth)
        .map(|tag| vec![1, tag]);
    let all = refusals
        .chain((1..=19).map(|tag| vec![1, auth, tag]))
        .chain((1..=8).map(|tag| vec![2, tag]))
        .chain((1..=5).map(|tag| vec![3, tag]))
        .chain([vec![4]]);
    assert_eq!(tags, all.collect());
}
