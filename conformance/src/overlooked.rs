//! Transactions of which etcd 3.4 does not see a part: a key that changes twice, a key that its user
//! may not touch, a put for which there is no space. What raft-kv refuses for such a part must not be
//! sent to etcd, which would carry it out. Looks at requests alone.

use etcd_api::etcdserverpb::request_op::Request;
use etcd_api::etcdserverpb::{PutRequest, RequestOp, TxnRequest};

fn ops(txn: &TxnRequest) -> impl Iterator<Item = &RequestOp> {
    txn.success.iter().chain(&txn.failure)
}

/// Whether some operation is, in the transaction or in one within it.
fn any_op(txn: &TxnRequest, is: &dyn Fn(&Request) -> bool) -> bool {
    ops(txn).filter_map(|op| op.request.as_ref()).any(|request| match request {
        Request::RequestTxn(inner) => is(request) || any_op(inner, is),
        _ => is(request),
    })
}

/// Whether the user may be denied more than etcd 3.4 denies: it looks at no transaction within another
/// one (CVE-2026-33343), and in none at the old value that a put asks for or at the lease that it
/// attaches (CVE-2026-44283).
pub fn hides_keys(txn: &TxnRequest) -> bool {
    let asks = |put: &PutRequest| put.prev_kv || put.lease != 0;
    any_op(txn, &|request| match request {
        Request::RequestTxn(_) => true,
        Request::RequestPut(put) => asks(put),
        _ => false,
    })
}

/// Whether the transaction names a range that holds no key: etcd looks for a permission on it.
pub fn names_no_key(txn: &TxnRequest) -> bool {
    let compares = |txn: &TxnRequest| txn.compare.iter().any(|one| is_empty(&one.key, &one.range_end));
    compares(txn)
        || any_op(txn, &|request| match request {
            Request::RequestRange(range) => is_empty(&range.key, &range.range_end),
            Request::RequestDeleteRange(delete) => is_empty(&delete.key, &delete.range_end),
            Request::RequestTxn(inner) => compares(inner),
            Request::RequestPut(_) => false,
        })
}

/// Whether a range holds no key by its form.
pub fn is_empty(key: &[u8], end: &[u8]) -> bool {
    !end.is_empty() && end != b"\0" && end <= key
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
    use etcd_api::etcdserverpb::{Compare, DeleteRangeRequest, RangeRequest};

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

    fn txn(success: Vec<RequestOp>) -> TxnRequest {
        TxnRequest { success, ..Default::default() }
    }

    #[test]
    fn puts_within_are_seen_by_nobody_but_puts_without_are() {
        let check = |ops: Vec<RequestOp>, expect: bool| assert_eq!(puts_only_nested(&txn(ops)), expect);
        check(vec![put("a")], false);
        check(vec![nested(vec![put("a")], vec![])], true);
        check(vec![nested(vec![nested(vec![], vec![put("a")])], vec![])], true);
        check(vec![put("b"), nested(vec![put("a")], vec![])], false);
        check(vec![nested(vec![delete("a", "")], vec![])], false);
    }

    #[test]
    fn keys_are_hidden_in_nested_transactions_and_behind_puts() {
        let check = |op: RequestOp, expect: bool| assert_eq!(hides_keys(&txn(vec![op])), expect);
        check(put("a"), false);
        check(delete("a", "\0"), false);
        check(nested(vec![], vec![]), true);
        check(op(Request::RequestPut(PutRequest { prev_kv: true, ..Default::default() })), true);
        check(op(Request::RequestPut(PutRequest { lease: 1, ..Default::default() })), true);
    }

    #[test]
    fn ranges_without_keys_are_found_everywhere() {
        let check = |txn: TxnRequest, expect: bool| assert_eq!(names_no_key(&txn), expect);
        let compare = |key: &'static str, end: &'static str| TxnRequest {
            compare: vec![Compare { key: key.into(), range_end: end.into(), ..Default::default() }],
            ..Default::default()
        };
        let range = RangeRequest { key: "b".into(), range_end: "b".into(), ..Default::default() };
        check(txn(vec![put("a"), delete("a", "b")]), false);
        check(txn(vec![delete("b", "a")]), true);
        check(txn(vec![op(Request::RequestRange(range))]), true);
        check(compare("k", "\0"), false);
        check(compare("k1", "a"), true);
        check(txn(vec![op(Request::RequestTxn(compare("k1", "a")))]), true);
    }
}
