//! Conversions, request by request; and that no bytes from outside make them panic.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use raft_kv::types::{ClusterId, NodeId};

use etcd_api::etcdserverpb::request_op::Request as PbOp;
use etcd_api::etcdserverpb::response_op::Response as PbAnswer;

use super::*;

/// What is refused, by its text: the code is the same for all of them.
fn said<T>(converted: Converted<T>) -> Result<(), String> {
    converted.map(drop).map_err(|status| {
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        status.message().to_owned()
    })
}

const VALUE_PROVIDED: &str = "etcdserver: value is provided";
const LEASE_PROVIDED: &str = "etcdserver: lease is provided";

fn key(key: &'static str) -> Bytes {
    Bytes::from_static(key.as_bytes())
}

fn op(request: PbOp) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn get(of: &'static str) -> pb::RequestOp {
    op(PbOp::RequestRange(pb::RangeRequest { key: key(of), ..Default::default() }))
}

fn set(of: &'static str) -> pb::RequestOp {
    op(PbOp::RequestPut(pb::PutRequest { key: key(of), ..Default::default() }))
}

fn nested(inner: pb::TxnRequest) -> pb::RequestOp {
    op(PbOp::RequestTxn(inner))
}

fn if_then(compare: Vec<pb::Compare>, success: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { compare, success, failure: Vec::new() }
}

#[test]
fn ranges_are_refused_in_etcds_order() {
    let check = |request: pb::RangeRequest, expect: Result<(), &str>| {
        assert_eq!(said(range_request(request.clone())), expect.map_err(str::to_owned), "{request:?}");
    };
    let good = pb::RangeRequest { key: key("k"), ..Default::default() };
    check(good.clone(), Ok(()));
    check(pb::RangeRequest { sort_order: 3, key: Bytes::new(), ..good.clone() }, Err(text::EMPTY_KEY));
    check(pb::RangeRequest { sort_order: 3, ..good.clone() }, Err(text::INVALID_SORT));
    check(pb::RangeRequest { sort_order: -1, ..good.clone() }, Err(text::INVALID_SORT));
    check(pb::RangeRequest { sort_target: 5, ..good.clone() }, Err(text::INVALID_SORT));
    assert_eq!(range_request(pb::RangeRequest { limit: -7, ..good }).unwrap().limit, 0);
}

#[test]
fn puts_are_refused_in_etcds_order() {
    let check = |request: pb::PutRequest, expect: Result<(), &str>| {
        assert_eq!(said(put_request(request.clone())), expect.map_err(str::to_owned), "{request:?}");
    };
    let bad = pb::PutRequest {
        key: Bytes::new(),
        value: key("v"),
        lease: 1,
        ignore_value: true,
        ignore_lease: true,
        ..Default::default()
    };
    check(bad.clone(), Err(text::EMPTY_KEY));
    let bad = pb::PutRequest { key: key("k"), ..bad };
    check(bad.clone(), Err(VALUE_PROVIDED));
    let bad = pb::PutRequest { value: Bytes::new(), ..bad };
    check(bad.clone(), Err(LEASE_PROVIDED));
    check(pb::PutRequest { lease: 0, ..bad }, Ok(()));
}

#[test]
fn transactions_are_refused_in_etcds_order() {
    let check = |request: pb::TxnRequest, expect: Result<(), &str>| {
        assert_eq!(said(txn_request(request)), expect.map_err(str::to_owned));
    };
    let empty = || pb::RequestOp { request: None };
    let no_key = || set("");
    let no_sort = || {
        let request = pb::RangeRequest { key: key("k"), sort_order: 9, ..Default::default() };
        op(PbOp::RequestRange(request))
    };
    let nameless = pb::Compare::default();
    let many = |n: usize| (0..n).map(|_| get("k")).collect::<Vec<_>>();
    check(pb::TxnRequest::default(), Ok(()));
    check(if_then(vec![], many(128)), Ok(()));
    check(if_then(vec![nameless.clone()], many(129)), Err(text::TOO_MANY_OPS));
    check(if_then(vec![nameless.clone()], vec![empty()]), Err(text::EMPTY_KEY));
    check(if_then(vec![], vec![empty(), no_key()]), Err(text::KEY_NOT_FOUND));
    check(if_then(vec![], vec![no_key(), empty()]), Err(text::EMPTY_KEY));
    check(if_then(vec![], vec![no_sort(), no_key()]), Err(text::INVALID_SORT));
    let both = pb::TxnRequest { compare: vec![], success: vec![no_key()], failure: vec![empty()] };
    check(both, Err(text::EMPTY_KEY));
    // A nested one has what its parent left over.
    let inner = |n: usize| nested(if_then(vec![], many(n)));
    check(if_then(vec![], vec![inner(127)]), Ok(()));
    check(if_then(vec![], vec![inner(128)]), Err(text::TOO_MANY_OPS));
    check(if_then(vec![], [many(100), vec![inner(28)]].concat()), Err(text::TOO_MANY_OPS));
    check(if_then(vec![], [many(100), vec![inner(27)]].concat()), Ok(()));
    let deep =
        (0..200).fold(if_then(vec![], vec![set("k")]), |inner, _| if_then(vec![], vec![nested(inner)]));
    check(deep, Err(text::TOO_MANY_OPS));
}

#[test]
fn compares_with_missing_or_unknown_parts() {
    let check =
        |result: i32, target: i32, given: Option<TargetUnion>, op: CompareOp, expect: CompareTarget| {
            let given =
                pb::Compare { result, target, key: key("k"), target_union: given, range_end: key("") };
            let got = compare(given).unwrap();
            assert_eq!((got.op, got.target), (op, expect), "relation {result}, target {target}");
        };
    use CompareOp::*;
    check(0, 0, None, Equal, CompareTarget::Version(0));
    check(1, 1, Some(TargetUnion::Version(5)), Greater, CompareTarget::Create(0));
    check(2, 2, Some(TargetUnion::ModRevision(5)), Less, CompareTarget::Mod(5));
    check(3, 3, None, NotEqual, CompareTarget::Value(Bytes::new()));
    check(0, 4, Some(TargetUnion::Lease(5)), Equal, CompareTarget::Lease(5));
    // Always, where there is a key, always, never.
    check(7, 0, None, Greater, CompareTarget::Version(-1));
    check(7, 3, None, Greater, CompareTarget::Version(0));
    check(0, 7, None, Greater, CompareTarget::Version(-1));
    check(1, 7, None, Less, CompareTarget::Version(0));
    check(3, 7, None, Less, CompareTarget::Version(0));
}

#[test]
fn inside_a_transaction_each_answer_says_its_own_revision() {
    let range = || TxnOpResponse::Range(RangeResponse::default());
    let put = || TxnOpResponse::Put(PutResponse::default());
    let delete = |deleted| TxnOpResponse::Delete(DeleteResponse { deleted, prevs: vec![] });
    let inner = |responses| TxnOpResponse::Txn(TxnResponse { succeeded: true, responses });
    let check = |responses: Vec<TxnOpResponse>, expect: &[i64]| {
        let outer = Header { cluster: ClusterId(1), member: NodeId(2), revision: 9, term: 4 };
        let answer = txn_response(outer, TxnResponse { succeeded: true, responses });
        assert_eq!(answer.header, header(outer));
        let mut revisions = Vec::new();
        collect(&answer, &mut revisions);
        assert_eq!(revisions, expect);
    };
    check(vec![range(), delete(0), range()], &[9, 9, 9]);
    check(vec![range(), put(), range(), delete(0)], &[8, 9, 9, 9]);
    check(vec![delete(0), delete(2), range()], &[8, 9, 9]);
    // A nested transaction's own header is empty.
    check(vec![range(), inner(vec![range(), put()]), range()], &[8, 0, 8, 9, 9]);
}

fn collect(answer: &pb::TxnResponse, revisions: &mut Vec<i64>) {
    for op in &answer.responses {
        let header = match op.response.as_ref().unwrap() {
            PbAnswer::ResponseRange(response) => response.header.as_ref(),
            PbAnswer::ResponsePut(response) => response.header.as_ref(),
            PbAnswer::ResponseDeleteRange(response) => response.header.as_ref(),
            PbAnswer::ResponseTxn(response) => response.header.as_ref(),
        };
        let header = header.unwrap();
        let rest = (header.cluster_id, header.member_id, header.raft_term);
        assert_eq!(rest, (0, 0, 0), "the revision alone");
        revisions.push(header.revision);
        if let PbAnswer::ResponseTxn(response) = op.response.as_ref().unwrap() {
            collect(response, revisions);
        }
    }
}

/// What comes from outside: decoded, converted, validated, and all of it without a panic.
fn check_bytes(bytes: &[u8]) {
    let _ = pb::RangeRequest::decode(bytes).map(|request| {
        let _ = range_request(request).map(|request| raft_kv::machine::validate_range(&request));
    });
    let _ = pb::PutRequest::decode(bytes).map(put_request);
    let _ = pb::DeleteRangeRequest::decode(bytes).map(delete_request);
    let _ = pb::TxnRequest::decode(bytes).map(|request| {
        let _ = txn_request(request).map(|request| raft_kv::machine::validate::validate_txn(&request));
    });
    let _ = (pb::CompactionRequest::decode(bytes), pb::RangeResponse::decode(bytes));
}

/// Transactions of any shape, good and bad.
fn any_txn() -> impl Strategy<Value = pb::TxnRequest> {
    let short = || prop::collection::vec(any::<u8>(), 0..3).prop_map(Bytes::from);
    let number = || prop_oneof![-2i64..6, any::<i64>()];
    let compare = (-1i32..6, -1i32..7, short(), short(), 0..6u8, number()).prop_map(
        |(result, target, key, range_end, kind, number)| {
            let target_union = match kind {
                0 => None,
                1 => Some(TargetUnion::Version(number)),
                2 => Some(TargetUnion::CreateRevision(number)),
                3 => Some(TargetUnion::ModRevision(number)),
                4 => Some(TargetUnion::Value(range_end.clone())),
                _ => Some(TargetUnion::Lease(number)),
            };
            pb::Compare { result, target, key, target_union, range_end }
        },
    );
    let range = (short(), short(), number(), -1i32..4, -1i32..6).prop_map(
        |(key, range_end, limit, sort_order, sort_target)| {
            PbOp::RequestRange(pb::RangeRequest {
                key,
                range_end,
                limit,
                sort_order,
                sort_target,
                ..Default::default()
            })
        },
    );
    let put = (short(), short(), number(), any::<[bool; 3]>()).prop_map(
        |(key, value, lease, [prev_kv, ignore_value, ignore_lease])| {
            PbOp::RequestPut(pb::PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease })
        },
    );
    let delete = (short(), short()).prop_map(|(key, range_end)| {
        PbOp::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: true })
    });
    let op = prop::option::weighted(0.95, prop_oneof![range, put, delete])
        .prop_map(|request| pb::RequestOp { request })
        .boxed();
    let compares = prop::collection::vec(compare, 0..3).boxed();
    let flat =
        (compares.clone(), prop::collection::vec(op.clone(), 0..4), prop::collection::vec(op.clone(), 0..4))
            .prop_map(|(compare, success, failure)| pb::TxnRequest { compare, success, failure });
    flat.prop_recursive(4, 40, 4, move |inner| {
        let op = prop_oneof![3 => op.clone(), 1 => inner.prop_map(nested)];
        let list = prop::collection::vec(op, 0..4).boxed();
        (compares.clone(), list.clone(), list).prop_map(|(compare, success, failure)| pb::TxnRequest {
            compare,
            success,
            failure,
        })
    })
}

proptest! {
    #[test]
    fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        check_bytes(&bytes);
    }

    #[test]
    fn damaged_requests_never_panic(request in any_txn(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = request.encode_to_vec();
        check_bytes(&bytes);
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            check_bytes(&bytes);
            check_bytes(&bytes[..at]);
        }
    }

    /// What passes here and the crate's own check has no error of the request's form left.
    #[test]
    fn a_refusal_of_the_form_is_never_left_to_the_crate(request in any_txn()) {
        use raft_kv::error::Refusal;
        if let Ok(request) = txn_request(request) {
            match raft_kv::machine::validate::validate_txn(&request) {
                Ok(()) | Err(Refusal::DuplicateKey { .. }) => {}
                Err(other) => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
