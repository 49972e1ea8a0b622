//! The crate's types as etcd's messages, and back. Total: what a message can say and the crate
//! can't is refused with etcd's code and text, in the order in which etcd looks.

use etcd_api::etcdserverpb::compare::{CompareResult, CompareTarget as Target, TargetUnion};
use etcd_api::etcdserverpb::{self as pb, ResponseHeader, request_op, response_op};
use etcd_api::mvccpb;
use raft_kv::limits::MAX_TXN_OPS;
use raft_kv::machine::validate;
use raft_kv::types::{
    Compare, CompareOp, CompareTarget, DeleteRequest, DeleteResponse, Header, KeyRange, KeyValue, PutRequest,
    PutResponse, RangeRequest, RangeResponse, Revision, SortOrder, SortTarget, TxnOp, TxnOpResponse,
    TxnRequest, TxnResponse,
};
use tonic::Status;

use super::status::{status, text};

type Converted<T> = Result<T, Status>;

/// The header of an answer.
pub fn header(header: Header) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        cluster_id: header.cluster.0,
        member_id: header.member.0,
        revision: header.revision,
        raft_term: header.term,
    })
}

/// The header of answers about members, which have no revision.
pub fn header_without_revision(from: Header) -> Option<ResponseHeader> {
    header(Header { revision: 0, ..from })
}

/// The header of an answer within a transaction.
fn revision_only(revision: Revision) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}

/// A key at a revision.
pub fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

/// A range.
pub fn range_request(request: pb::RangeRequest) -> Converted<RangeRequest> {
    use pb::range_request::{SortOrder as Order, SortTarget as Target};
    if request.key.is_empty() {
        return Err(Status::invalid_argument(text::EMPTY_KEY));
    }
    let invalid = |_| Status::invalid_argument(text::INVALID_SORT);
    let sort_order = match Order::try_from(request.sort_order).map_err(invalid)? {
        Order::None => SortOrder::None,
        Order::Ascend => SortOrder::Ascend,
        Order::Descend => SortOrder::Descend,
    };
    let sort_target = match Target::try_from(request.sort_target).map_err(invalid)? {
        Target::Key => SortTarget::Key,
        Target::Version => SortTarget::Version,
        Target::Create => SortTarget::Create,
        Target::Mod => SortTarget::Mod,
        Target::Value => SortTarget::Value,
    };
    let request = RangeRequest {
        range: KeyRange { key: request.key, end: request.range_end },
        // Below 0 is no limit, as in etcd.
        limit: request.limit.max(0),
        revision: request.revision,
        sort_order,
        sort_target,
        serializable: request.serializable,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
    };
    validate::validate_range(&request).map_err(|refusal| status(refusal.into()))?;
    Ok(request)
}

/// A put.
pub fn put_request(request: pb::PutRequest) -> Converted<PutRequest> {
    let request = PutRequest {
        key: request.key,
        value: request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    };
    validate::validate_put(&request).map_err(|refusal| status(refusal.into()))?;
    Ok(request)
}

/// A delete.
pub fn delete_request(request: pb::DeleteRangeRequest) -> Converted<DeleteRequest> {
    let range = KeyRange { key: request.key, end: request.range_end };
    let request = DeleteRequest { range, prev_kv: request.prev_kv };
    validate::validate_delete(&request).map_err(|refusal| status(refusal.into()))?;
    Ok(request)
}

/// A transaction.
pub fn txn_request(request: pb::TxnRequest) -> Converted<TxnRequest> {
    txn_within(request, MAX_TXN_OPS)
}

/// A transaction that may have so many operations: a nested one gets what its parents left over.
fn txn_within(request: pb::TxnRequest, most: usize) -> Converted<TxnRequest> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    let Some(left) = most.checked_sub(ops) else {
        return Err(Status::invalid_argument(text::TOO_MANY_OPS));
    };
    let list = |ops: Vec<pb::RequestOp>| -> Converted<Vec<TxnOp>> {
        ops.into_iter().map(|one| op(one, left)).collect()
    };
    Ok(TxnRequest {
        compares: request.compare.into_iter().map(compare).collect::<Converted<_>>()?,
        success: list(request.success)?,
        failure: list(request.failure)?,
    })
}

fn op(op: pb::RequestOp, left: usize) -> Converted<TxnOp> {
    match op.request {
        Some(request_op::Request::RequestRange(request)) => range_request(request).map(TxnOp::Range),
        Some(request_op::Request::RequestPut(request)) => put_request(request).map(TxnOp::Put),
        Some(request_op::Request::RequestDeleteRange(request)) => delete_request(request).map(TxnOp::Delete),
        Some(request_op::Request::RequestTxn(request)) => txn_within(request, left).map(TxnOp::Txn),
        None => Err(Status::invalid_argument(text::KEY_NOT_FOUND)),
    }
}

/// A compare whose value is of another kind than its target, or missing, compares with zero.
///
/// etcd takes relations and targets that it does not know: an unknown relation always holds, and
/// an unknown target is equal to everything. Both are said here in terms of the version, which is
/// never negative, and 0 where there is no key.
fn compare(compare: pb::Compare) -> Converted<Compare> {
    if compare.key.is_empty() {
        return Err(Status::invalid_argument(text::EMPTY_KEY));
    }
    let range = KeyRange { key: compare.key, end: compare.range_end };
    let relation = CompareResult::try_from(compare.result).ok();
    let target = Target::try_from(compare.target).ok();
    let given = compare.target_union;
    let (op, target) = match (relation, target) {
        (Some(relation), Some(target)) => (operator(relation), compare_target(target, given)),
        // A value is only ever looked at where there is a key.
        (None, Some(Target::Value)) => (CompareOp::Greater, CompareTarget::Version(0)),
        (None, _) | (Some(CompareResult::Equal), None) => (CompareOp::Greater, CompareTarget::Version(-1)),
        (Some(_), None) => (CompareOp::Less, CompareTarget::Version(0)),
    };
    Ok(Compare { range, op, target })
}

fn operator(relation: CompareResult) -> CompareOp {
    match relation {
        CompareResult::Equal => CompareOp::Equal,
        CompareResult::Greater => CompareOp::Greater,
        CompareResult::Less => CompareOp::Less,
        CompareResult::NotEqual => CompareOp::NotEqual,
    }
}

fn compare_target(target: Target, given: Option<TargetUnion>) -> CompareTarget {
    match (target, given) {
        (Target::Version, Some(TargetUnion::Version(version))) => CompareTarget::Version(version),
        (Target::Version, _) => CompareTarget::Version(0),
        (Target::Create, Some(TargetUnion::CreateRevision(revision))) => CompareTarget::Create(revision),
        (Target::Create, _) => CompareTarget::Create(0),
        (Target::Mod, Some(TargetUnion::ModRevision(revision))) => CompareTarget::Mod(revision),
        (Target::Mod, _) => CompareTarget::Mod(0),
        (Target::Value, Some(TargetUnion::Value(value))) => CompareTarget::Value(value),
        (Target::Value, _) => CompareTarget::Value(Default::default()),
        (Target::Lease, Some(TargetUnion::Lease(lease))) => CompareTarget::Lease(lease),
        (Target::Lease, _) => CompareTarget::Lease(0),
    }
}

/// The answer to a range.
pub fn range_response(from: Header, response: RangeResponse) -> pb::RangeResponse {
    ranged(header(from), response)
}

fn ranged(header: Option<ResponseHeader>, response: RangeResponse) -> pb::RangeResponse {
    let kvs = response.kvs.into_iter().map(key_value).collect();
    pb::RangeResponse { header, kvs, more: response.more, count: response.count }
}

/// The answer to a put.
pub fn put_response(from: Header, response: PutResponse) -> pb::PutResponse {
    pb::PutResponse { header: header(from), prev_kv: response.prev.map(key_value) }
}

/// The answer to a delete.
pub fn delete_response(from: Header, response: DeleteResponse) -> pb::DeleteRangeResponse {
    let prev_kvs = response.prevs.into_iter().map(key_value).collect();
    pb::DeleteRangeResponse { header: header(from), deleted: response.deleted, prev_kvs }
}

/// The answer to a transaction. The answers within carry the revision that the store had, for the
/// transaction itself, when they were made.
pub fn txn_response(from: Header, response: TxnResponse) -> pb::TxnResponse {
    let changed = changes(&response);
    let mut at = from.revision - Revision::from(changed);
    let after = from.revision;
    pb::TxnResponse {
        header: header(from),
        succeeded: response.succeeded,
        responses: within(response.responses, &mut at, after),
    }
}

fn changes(response: &TxnResponse) -> bool {
    response.responses.iter().any(|one| match one {
        TxnOpResponse::Range(_) => false,
        TxnOpResponse::Put(_) => true,
        TxnOpResponse::Delete(deleted) => deleted.deleted > 0,
        TxnOpResponse::Txn(nested) => changes(nested),
    })
}

fn within(responses: Vec<TxnOpResponse>, at: &mut Revision, after: Revision) -> Vec<pb::ResponseOp> {
    let mut one = |response: TxnOpResponse| match response {
        TxnOpResponse::Range(response) => {
            response_op::Response::ResponseRange(ranged(revision_only(*at), response))
        }
        TxnOpResponse::Put(response) => {
            *at = after;
            let prev_kv = response.prev.map(key_value);
            response_op::Response::ResponsePut(pb::PutResponse { header: revision_only(*at), prev_kv })
        }
        TxnOpResponse::Delete(response) => {
            if response.deleted > 0 {
                *at = after;
            }
            response_op::Response::ResponseDeleteRange(pb::DeleteRangeResponse {
                header: revision_only(*at),
                deleted: response.deleted,
                prev_kvs: response.prevs.into_iter().map(key_value).collect(),
            })
        }
        TxnOpResponse::Txn(nested) => response_op::Response::ResponseTxn(pb::TxnResponse {
            header: Some(ResponseHeader::default()),
            succeeded: nested.succeeded,
            responses: within(nested.responses, at, after),
        }),
    };
    responses.into_iter().map(|response| pb::ResponseOp { response: Some(one(response)) }).collect()
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
