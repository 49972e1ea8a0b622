//! Whether two answers to one request differ as an entry of the table says, and in nothing else. Each
//! function looks at the request and at every field of both answers.

use std::collections::BTreeMap;

use etcd_api::authpb::Permission;
use etcd_api::etcdserverpb::request_op::Request;
use etcd_api::etcdserverpb::response_op::Response;
use etcd_api::etcdserverpb::{
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
};
use etcd_api::mvccpb::KeyValue;

use super::Case;
use crate::ask::{Answer, Ask};
use crate::fatal::{DENIED, DUPLICATE, INVALID_TOKEN, NO_SPACE, Refusal, is};
use crate::overlooked::{changes_twice, is_empty};

const COMPACTED: Refusal = (11, "etcdserver: mvcc: required revision has been compacted");
const FUTURE: Refusal = (11, "etcdserver: mvcc: required revision is a future revision");
const CORRUPT: Refusal = (15, "etcdserver: corrupt cluster");
const LONG_TTL: Refusal = (11, "etcdserver: too large lease TTL");
const MOST_TTL: i64 = 9_000_000_000;
const NO_METHOD: Refusal = (12, "unknown method AuthStatus for service etcdserverpb.Auth");
const NO_PASSWORD: Refusal = (2, "auth: authentication failed, password was given for no password user");
const WRONG_PASSWORD: Refusal = (3, "etcdserver: authentication failed, invalid user ID or password");

/// The header that every answer has to have: who answers is there, and the store's revision.
fn is_whole(header: &Option<ResponseHeader>, revision: i64) -> bool {
    let whole = ResponseHeader { cluster_id: 1, member_id: 1, revision, raft_term: 1 };
    header.as_ref() == Some(&whole)
}

pub(super) fn auth_status(case: &Case<'_>) -> bool {
    let (Some(Ask::AuthStatus(_)), Some((etcd, ours))) = (case.ask, case.answers) else { return false };
    let answered = match ours {
        Answer::AuthStatus(status) => {
            is_whole(&status.header, case.revision) && status.enabled == case.auth && status.auth_revision > 0
        }
        refused => case.may_be_denied() && is(refused, INVALID_TOKEN),
    };
    is(etcd, NO_METHOD) && answered
}

/// The form of a transaction is judged as a whole, after the token.
pub(super) fn bad_token(case: &Case<'_>) -> bool {
    let (Some(Ask::Txn(txn)), Some((etcd, ours))) = (case.ask, case.answers) else { return false };
    case.may_be_denied() && changes_twice(txn) && is(etcd, DUPLICATE) && is(ours, INVALID_TOKEN)
}

pub(super) fn role_root(case: &Case<'_>) -> bool {
    match (case.ask, case.answers) {
        (Some(Ask::RoleGet(asked)), Some((Answer::RoleGet(etcd), Answer::RoleGet(ours)))) => {
            let everything = Permission { perm_type: 2, key: "".into(), range_end: "\0".into() };
            asked.role == "root"
                && etcd.perm != ours.perm
                && ours.perm == [everything]
                && etcd.header == ours.header
        }
        _ => false,
    }
}

pub(super) fn alarm_first(case: &Case<'_>) -> bool {
    let (Some(Ask::Grant(asked)), Some((etcd, ours))) = (case.ask, case.answers) else { return false };
    let named = case.alarms.no_space && is(etcd, NO_SPACE) || case.alarms.corrupt && is(etcd, CORRUPT);
    asked.ttl > MOST_TTL && named && is(ours, LONG_TTL)
}

pub(super) fn corrupt_reads(case: &Case<'_>) -> bool {
    let (Some(ask), Some((etcd, ours))) = (case.ask, case.answers) else { return false };
    let linearizable = match ask {
        Ask::Range(asked) => !asked.serializable,
        Ask::Txn(asked) => reads_only(asked),
        _ => false,
    };
    let served = match (ask, etcd) {
        (Ask::Range(_), Answer::Range(range)) => is_whole(&range.header, case.revision),
        (Ask::Txn(_), Answer::Txn(txn)) => is_whole(&txn.header, case.revision),
        (_, refused) => is(refused, COMPACTED) || is(refused, FUTURE),
    };
    case.alarms.corrupt && linearizable && served && is(ours, CORRUPT)
}

/// What etcd carries out as a read.
fn reads_only(txn: &TxnRequest) -> bool {
    let is_read = |op: &RequestOp| match &op.request {
        Some(Request::RequestRange(_)) => true,
        Some(Request::RequestTxn(inner)) => reads_only(inner),
        _ => false,
    };
    txn.success.iter().chain(&txn.failure).all(is_read)
}

pub(super) fn ties(case: &Case<'_>) -> bool {
    match (case.ask, case.answers) {
        (Some(Ask::Range(asked)), Some((Answer::Range(etcd), Answer::Range(ours)))) => {
            same_but_for_ties(asked, etcd, ours)
        }
        (Some(Ask::Txn(asked)), Some((Answer::Txn(etcd), Answer::Txn(ours)))) => {
            txn_same_but_for_ties(asked, etcd, ours)
        }
        _ => false,
    }
}

fn txn_same_but_for_ties(asked: &TxnRequest, etcd: &TxnResponse, ours: &TxnResponse) -> bool {
    let ops = if etcd.succeeded { &asked.success } else { &asked.failure };
    let shell = |one: &TxnResponse| (one.header, one.succeeded, one.responses.len());
    if shell(etcd) != shell(ours) || ops.len() != etcd.responses.len() {
        return false;
    }
    ops.iter().zip(etcd.responses.iter().zip(&ours.responses)).all(|(op, (etcd, ours))| {
        match (&op.request, &etcd.response, &ours.response) {
            _ if etcd == ours => true,
            (
                Some(Request::RequestRange(asked)),
                Some(Response::ResponseRange(etcd)),
                Some(Response::ResponseRange(ours)),
            ) => same_but_for_ties(asked, etcd, ours),
            (
                Some(Request::RequestTxn(asked)),
                Some(Response::ResponseTxn(etcd)),
                Some(Response::ResponseTxn(ours)),
            ) => txn_same_but_for_ties(asked, etcd, ours),
            _ => false,
        }
    })
}

/// Whether the answers hold the same, but for the order of keys that are equal in what is sorted by.
/// Where the limit cuts, it may cut through such keys: of the last ones there only as many as on the
/// other side have to be there.
fn same_but_for_ties(asked: &RangeRequest, etcd: &RangeResponse, ours: &RangeResponse) -> bool {
    let shell = |one: &RangeResponse| (one.header, one.count, one.more, one.kvs.len());
    if asked.sort_target == 0 || shell(etcd) != shell(ours) {
        return false;
    }
    let by = |kv: &KeyValue| match asked.sort_target {
        1 => (kv.version, Default::default()),
        2 => (kv.create_revision, Default::default()),
        3 => (kv.mod_revision, Default::default()),
        // Blank if only keys were asked for.
        _ => (0, kv.value.clone()),
    };
    let order = |one: &RangeResponse| one.kvs.iter().map(by).collect::<Vec<_>>();
    let cut = etcd.kvs.last().map(by).filter(|_| etcd.more);
    let sets = |one: &RangeResponse| {
        let mut kept: Vec<KeyValue> =
            one.kvs.iter().filter(|kv| cut.as_ref() != Some(&by(kv))).cloned().collect();
        kept.sort_by(|a, b| a.key.cmp(&b.key));
        kept
    };
    let distinct = |one: &RangeResponse| {
        let keys: BTreeMap<_, _> = one.kvs.iter().map(|kv| (&kv.key, ())).collect();
        keys.len() == one.kvs.len() && keys.keys().all(|key| holds(asked, key))
    };
    order(etcd) == order(ours) && sets(etcd) == sets(ours) && distinct(etcd) && distinct(ours)
}

fn holds(asked: &RangeRequest, key: &[u8]) -> bool {
    match asked.range_end.as_ref() {
        b"" => key == asked.key,
        b"\0" => key >= asked.key.as_ref(),
        end => key >= asked.key.as_ref() && key < end,
    }
}

pub(super) fn no_key(case: &Case<'_>) -> bool {
    let Some((etcd, ours)) = case.answers else { return false };
    let nothing = match (case.ask, ours) {
        (Some(Ask::Range(asked)), answer) if is_empty(&asked.key, &asked.range_end) => match answer {
            Answer::Range(range) => {
                is_whole(&range.header, case.revision)
                    && (range.kvs.is_empty(), range.count, range.more) == (true, 0, false)
            }
            refused => is(refused, COMPACTED) || is(refused, FUTURE),
        },
        (Some(Ask::Delete(asked)), Answer::Delete(deleted)) if is_empty(&asked.key, &asked.range_end) => {
            is_whole(&deleted.header, case.revision)
                && (deleted.deleted, deleted.prev_kvs.is_empty()) == (0, true)
        }
        _ => false,
    };
    nothing && case.may_be_denied() && is(etcd, DENIED)
}

pub(super) fn permission_order(case: &Case<'_>) -> bool {
    match case.answers {
        Some((Answer::RoleGet(etcd), Answer::RoleGet(ours))) => {
            let keys = |perms: &[Permission]| perms.iter().map(|one| one.key.clone()).collect::<Vec<_>>();
            let sorted = |perms: &[Permission]| {
                let mut perms = perms.to_vec();
                perms.sort_by(|a, b| {
                    (&a.key, &a.range_end, a.perm_type).cmp(&(&b.key, &b.range_end, b.perm_type))
                });
                perms
            };
            etcd.header == ours.header
                && keys(&etcd.perm) == keys(&ours.perm)
                && sorted(&etcd.perm) == sorted(&ours.perm)
        }
        _ => false,
    }
}

pub(super) fn seconds(case: &Case<'_>) -> bool {
    match case.answers {
        Some((Answer::TimeToLive(etcd), Answer::TimeToLive(ours))) => {
            let mut levelled = ours.clone();
            levelled.ttl = etcd.ttl;
            etcd.ttl > 0 && ours.ttl > 0 && (etcd.ttl - ours.ttl).abs() <= 2 && levelled == *etcd
        }
        _ => false,
    }
}

pub(super) fn alarm_header(case: &Case<'_>) -> bool {
    match case.answers {
        Some((Answer::Alarm(etcd), Answer::Alarm(ours))) => {
            etcd.header.is_none() && is_whole(&ours.header, case.revision) && etcd.alarms == ours.alarms
        }
        _ => false,
    }
}

pub(super) fn no_password(case: &Case<'_>) -> bool {
    let (Some(Ask::Authenticate(_)), Some((etcd, ours))) = (case.ask, case.answers) else { return false };
    is(etcd, NO_PASSWORD) && is(ours, WRONG_PASSWORD)
}
