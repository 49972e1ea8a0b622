//! Requests at which Debian's etcd 3.4 ends its process, or that it takes where etcd of today refuses
//! them, found by these sequences. They go to raft-kv alone, which has to refuse them and live; with
//! which answers, this module says from the request alone, and never from what came.

use etcd_api::authpb::Permission;
use etcd_api::etcdserverpb::request_op::Request;
use etcd_api::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};

use raft_kv::limits::{MAX_REQUEST_BYTES, MAX_VALUE_BYTES};

use crate::ask::{Answer, Ask};

/// A refusal: gRPC's code and the whole text.
pub type Refusal = (i32, &'static str);

const INVALID_SORT: Refusal = (3, "etcdserver: invalid sort option");
const EMPTY_KEY: Refusal = (3, "etcdserver: key is not provided");
const NO_OPERATION: Refusal = (3, "etcdserver: key not found");
const VALUE_PROVIDED: Refusal = (3, "etcdserver: value is provided");
const LEASE_PROVIDED: Refusal = (3, "etcdserver: lease is provided");
const TOO_LARGE: Refusal = (3, "etcdserver: request is too large");
const TOO_MANY_OPS: Refusal = (3, "etcdserver: too many operations in txn request");
const NO_PERMISSION: Refusal = (3, "etcdserver: permission not given");
const NO_RANGE: Refusal = (3, "etcdserver: invalid auth management");
const NO_ACTION: Refusal = (3, "the alarm's action is not one of the three");
/// A key that one transaction changes twice.
pub const DUPLICATE: Refusal = (3, "etcdserver: duplicate key given in txn request");
/// What the user may not.
pub const DENIED: Refusal = (7, "etcdserver: permission denied");
/// Too much is stored.
pub const NO_SPACE: Refusal = (8, "etcdserver: mvcc: database space exceeded");
/// A token that stands for nobody.
pub const INVALID_TOKEN: Refusal = (16, "etcdserver: invalid auth token");

/// Operations that a transaction may have in a list.
const MOST_OPS: usize = 128;

/// Whether `answer` is exactly this refusal.
pub fn is(answer: &Answer, refusal: Refusal) -> bool {
    matches!(answer, Answer::Refused { code, text } if (*code, text.as_str()) == refusal)
}

/// A put that etcd takes and raft-kv refuses for its size, as the refusals of which it has to answer
/// one.
pub fn too_large(ask: &Ask) -> Option<Vec<Refusal>> {
    let Ask::Put(put) = ask else { return None };
    if !(MAX_VALUE_BYTES + 1..MAX_REQUEST_BYTES).contains(&put.value.len()) {
        return None;
    }
    let mut refusals = faults_of_put(put);
    // What else is wrong is looked at first.
    if refusals.is_empty() {
        refusals.push(TOO_LARGE);
    }
    Some(refusals)
}

/// Why etcd must not be sent this, as the refusals of which raft-kv has to answer one; nothing if etcd
/// may be sent it. More than one only where the request has more than one fault.
pub fn fatal(ask: &Ask) -> Option<Vec<Refusal>> {
    match ask {
        Ask::Range(range) if sorts_by_nothing(range) => {
            Some(vec![if range.key.is_empty() { EMPTY_KEY } else { INVALID_SORT }])
        }
        Ask::Txn(txn) if any_range(txn, sorts_by_nothing) => {
            let mut faults = vec![INVALID_SORT];
            faults_of(txn, MOST_OPS, &mut faults);
            Some(faults)
        }
        Ask::RoleGrantPermission(grant) => match &grant.perm {
            None => Some(vec![NO_PERMISSION]),
            Some(permission) if is_on_no_key(permission) => Some(vec![NO_RANGE]),
            Some(_) => None,
        },
        Ask::Alarm(alarm) if !(0..=2).contains(&alarm.action) => Some(vec![NO_ACTION]),
        _ => None,
    }
}

fn sorts_by_nothing(range: &RangeRequest) -> bool {
    !(0..=4).contains(&range.sort_target) || !(0..=2).contains(&range.sort_order)
}

fn is_on_no_key(permission: &Permission) -> bool {
    let end = permission.range_end.as_ref();
    permission.key.is_empty() || !end.is_empty() && end != b"\0" && end <= permission.key.as_ref()
}

fn ops(txn: &TxnRequest) -> impl Iterator<Item = &RequestOp> {
    txn.success.iter().chain(&txn.failure)
}

fn any_range(txn: &TxnRequest, is: fn(&RangeRequest) -> bool) -> bool {
    ops(txn).any(|op| match &op.request {
        Some(Request::RequestRange(range)) => is(range),
        Some(Request::RequestTxn(inner)) => any_range(inner, is),
        _ => false,
    })
}

/// What else is wrong with the form of a transaction.
fn faults_of(txn: &TxnRequest, most: usize, faults: &mut Vec<Refusal>) {
    let longest = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    let left = most.saturating_sub(longest);
    if longest > most {
        faults.push(TOO_MANY_OPS);
    }
    if txn.compare.iter().any(|compare| compare.key.is_empty()) {
        faults.push(EMPTY_KEY);
    }
    for op in ops(txn) {
        match &op.request {
            None => faults.push(NO_OPERATION),
            Some(Request::RequestRange(range)) if range.key.is_empty() => faults.push(EMPTY_KEY),
            Some(Request::RequestDeleteRange(delete)) if delete.key.is_empty() => faults.push(EMPTY_KEY),
            Some(Request::RequestPut(put)) => faults.extend(faults_of_put(put)),
            Some(Request::RequestTxn(inner)) => faults_of(inner, left, faults),
            Some(_) => {}
        }
    }
}

fn faults_of_put(put: &PutRequest) -> Vec<Refusal> {
    let wrong = [
        (put.key.is_empty(), EMPTY_KEY),
        (put.ignore_value && !put.value.is_empty(), VALUE_PROVIDED),
        (put.ignore_lease && put.lease != 0, LEASE_PROVIDED),
    ];
    wrong.into_iter().filter(|(is, _)| *is).map(|(_, refusal)| refusal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    fn put(key: &'static str) -> RequestOp {
        op(Request::RequestPut(PutRequest { key: key.into(), ..Default::default() }))
    }

    fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        op(Request::RequestTxn(TxnRequest { success, failure, ..Default::default() }))
    }

    #[test]
    fn what_has_to_be_answered_is_told_by_the_request() {
        let check = |ask: Ask, expect: Option<&[Refusal]>| assert_eq!(fatal(&ask).as_deref(), expect);
        let range = |key: &'static str, sort_target, sort_order| RangeRequest {
            key: key.into(),
            sort_target,
            sort_order,
            ..Default::default()
        };
        check(Ask::Range(range("a", 4, 2)), None);
        check(Ask::Range(range("a", 5, 0)), Some(&[INVALID_SORT]));
        check(Ask::Range(range("", 0, -1)), Some(&[EMPTY_KEY]));
        let txn = |ops: Vec<RequestOp>| Ask::Txn(TxnRequest { success: ops, ..Default::default() });
        let bad = || op(Request::RequestRange(range("a", 0, 3)));
        check(txn(vec![put("a")]), None);
        check(txn(vec![put("a"), bad()]), Some(&[INVALID_SORT]));
        check(txn(vec![put(""), bad()]), Some(&[INVALID_SORT, EMPTY_KEY]));
        check(txn(vec![nested(vec![bad()], vec![])]), Some(&[INVALID_SORT]));
        check(txn((0..129).map(|_| bad()).collect()), Some(&[INVALID_SORT, TOO_MANY_OPS]));
    }
}
