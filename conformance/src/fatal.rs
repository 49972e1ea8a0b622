//! Requests at which Debian's etcd 3.4 ends its process, or that it takes where etcd of today refuses
//! them, found by these sequences. They go to raft-kv alone, which has to refuse them and live; with
//! which answers, this module says from the request alone, and never from what came.

use etcd_api::authpb::Permission;
use etcd_api::etcdserverpb::request_op::Request;
use etcd_api::etcdserverpb::{RangeRequest, RequestOp, TxnRequest};

use crate::ask::{Answer, Ask};

/// A refusal: gRPC's code and the whole text.
pub type Refusal = (i32, &'static str);

const INVALID_SORT: Refusal = (3, "etcdserver: invalid sort option");
const EMPTY_KEY: Refusal = (3, "etcdserver: key is not provided");
const NO_OPERATION: Refusal = (3, "etcdserver: key not found");
const VALUE_PROVIDED: Refusal = (3, "etcdserver: value is provided");
const LEASE_PROVIDED: Refusal = (3, "etcdserver: lease is provided");
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
    !end.is_empty() && end != b"\0" && end <= permission.key.as_ref()
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
            Some(Request::RequestPut(put)) => {
                let wrong = [
                    (put.key.is_empty(), EMPTY_KEY),
                    (put.ignore_value && !put.value.is_empty(), VALUE_PROVIDED),
                    (put.ignore_lease && put.lease != 0, LEASE_PROVIDED),
                ];
                faults.extend(wrong.into_iter().filter(|(is, _)| *is).map(|(_, refusal)| refusal));
            }
            Some(Request::RequestTxn(inner)) => faults_of(inner, left, faults),
            Some(_) => {}
        }
    }
}

/// What one operation of a path changes.
#[derive(Clone, Debug)]
enum Touch {
    Put(Vec<u8>),
    Delete { key: Vec<u8>, end: Vec<u8> },
}

impl Touch {
    fn meets(&self, other: &Touch) -> bool {
        match (self, other) {
            (Self::Put(one), Self::Put(two)) => one == two,
            (Self::Put(put), Self::Delete { key, end }) | (Self::Delete { key, end }, Self::Put(put)) => {
                match end.as_slice() {
                    b"" => put == key,
                    b"\0" => put >= key,
                    end => put >= key && put.as_slice() < end,
                }
            }
            (Self::Delete { .. }, Self::Delete { .. }) => false,
        }
    }
}

/// Whether some way through the transaction puts a key twice, or puts and removes it: the only
/// reason for which raft-kv may refuse as twice changed what etcd 3.4 takes.
pub fn changes_twice(txn: &TxnRequest) -> bool {
    paths(txn).iter().any(|path| {
        path.iter().enumerate().any(|(at, one)| path[at + 1..].iter().any(|other| one.meets(other)))
    })
}

/// Whether puts stand in nested transactions only, where etcd 3.4 does not see them when it looks
/// for space.
pub fn puts_only_nested(txn: &TxnRequest) -> bool {
    let is_put = |op: &RequestOp| matches!(op.request, Some(Request::RequestPut(_)));
    let nested = |op: &RequestOp| match &op.request {
        Some(Request::RequestTxn(inner)) => ops(inner).any(is_put) || puts_only_nested(inner),
        _ => false,
    };
    !ops(txn).any(is_put) && ops(txn).any(nested)
}

/// Every way through a transaction, as what it changes.
fn paths(txn: &TxnRequest) -> Vec<Vec<Touch>> {
    let mut all = Vec::new();
    for list in [&txn.success, &txn.failure] {
        let mut ways: Vec<Vec<Touch>> = vec![Vec::new()];
        for op in list {
            let next: Vec<Vec<Touch>> = match &op.request {
                Some(Request::RequestPut(put)) => vec![vec![Touch::Put(put.key.to_vec())]],
                Some(Request::RequestDeleteRange(delete)) => {
                    let (key, end) = (delete.key.to_vec(), delete.range_end.to_vec());
                    vec![vec![Touch::Delete { key, end }]]
                }
                Some(Request::RequestTxn(inner)) => paths(inner),
                _ => continue,
            };
            let joined = ways.iter().flat_map(|way| next.iter().map(|more| [&way[..], more].concat()));
            ways = joined.collect();
        }
        all.extend(ways);
    }
    all
}

#[cfg(test)]
mod tests {
    use etcd_api::etcdserverpb::{DeleteRangeRequest, PutRequest};

    use super::*;

    fn op(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    fn put(key: &'static str) -> RequestOp {
        op(Request::RequestPut(PutRequest { key: key.into(), ..Default::default() }))
    }

    fn delete(key: &'static str, end: &'static str) -> RequestOp {
        let (key, range_end) = (key.into(), end.into());
        op(Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, ..Default::default() }))
    }

    fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        op(Request::RequestTxn(TxnRequest { success, failure, ..Default::default() }))
    }

    #[test]
    fn a_key_is_changed_twice_on_one_way_only() {
        let check = |success: Vec<RequestOp>, failure: Vec<RequestOp>, expect: bool| {
            let txn = TxnRequest { success, failure, ..Default::default() };
            assert_eq!(changes_twice(&txn), expect, "{txn:?}");
        };
        check(vec![put("a"), put("b")], vec![], false);
        check(vec![put("a")], vec![put("a")], false);
        check(vec![put("a"), put("a")], vec![], true);
        check(vec![], vec![delete("a", "\0"), put("z")], true);
        check(vec![put("b"), delete("a", "b")], vec![], false);
        check(vec![put("b"), delete("a", "c")], vec![], true);
        check(vec![delete("a", ""), delete("a", "c")], vec![], false);
        check(vec![put("a"), nested(vec![], vec![put("a")])], vec![], true);
        check(vec![nested(vec![put("a")], vec![put("a")])], vec![], false);
        check(vec![nested(vec![put("a")], vec![]), nested(vec![], vec![delete("a", "")])], vec![], true);
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
