//! The crate's types as etcd's messages, and back. Total: what a message can say and the crate
//! can't is one of etcd's own refusals, found in etcd's own order.

use etcd_api::etcdserverpb::compare::{CompareResult, CompareTarget as PbTarget, TargetUnion};
use etcd_api::etcdserverpb::range_request;
use etcd_api::etcdserverpb::request_op::Request as PbOp;
use etcd_api::etcdserverpb::response_op::Response as PbAnswer;
use etcd_api::etcdserverpb::{self as pb, ResponseHeader};
use etcd_api::mvccpb;
use raft_kv::limits::MAX_TXN_OPS;
use raft_kv::types::{
    Compare, CompareOp, CompareTarget, DeleteRequest, DeleteResponse, Header, KeyRange, KeyValue, PutRequest,
    PutResponse, RangeRequest, RangeResponse, Revision, SortOrder, SortTarget, TxnOp, TxnOpResponse,
    TxnRequest, TxnResponse,
};

use super::status::{self, Known};

/// The header of an answer.
pub fn header(header: Header) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        cluster_id: header.cluster.0,
        member_id: header.member.0,
        revision: header.revision,
        raft_term: header.term,
    })
}

/// The header of an answer inside a transaction's: the revision and nothing else.
fn inner_header(revision: Revision) -> Option<ResponseHeader> {
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

/// A range as the crate asks it. A negative limit is none.
///
/// # Errors
/// No key, or a sort that etcd does not know.
pub fn range(request: pb::RangeRequest) -> Result<RangeRequest, Known> {
    if request.key.is_empty() {
        return Err(status::EMPTY_KEY);
    }
    let unknown = |_| status::INVALID_SORT_OPTION;
    let sort_order = match range_request::SortOrder::try_from(request.sort_order).map_err(unknown)? {
        range_request::SortOrder::None => SortOrder::None,
        range_request::SortOrder::Ascend => SortOrder::Ascend,
        range_request::SortOrder::Descend => SortOrder::Descend,
    };
    let sort_target = match range_request::SortTarget::try_from(request.sort_target).map_err(unknown)? {
        range_request::SortTarget::Key => SortTarget::Key,
        range_request::SortTarget::Version => SortTarget::Version,
        range_request::SortTarget::Create => SortTarget::Create,
        range_request::SortTarget::Mod => SortTarget::Mod,
        range_request::SortTarget::Value => SortTarget::Value,
    };
    Ok(RangeRequest {
        range: KeyRange { key: request.key, end: request.range_end },
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
    })
}

/// A put as the crate asks it.
///
/// # Errors
/// No key, or a value or lease together with the wish to keep the old one.
pub fn put(request: pb::PutRequest) -> Result<PutRequest, Known> {
    if request.key.is_empty() {
        return Err(status::EMPTY_KEY);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(status::VALUE_PROVIDED);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(status::LEASE_PROVIDED);
    }
    Ok(PutRequest {
        key: request.key,
        value: request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    })
}

/// A delete as the crate asks it.
///
/// # Errors
/// No key.
pub fn delete(request: pb::DeleteRangeRequest) -> Result<DeleteRequest, Known> {
    if request.key.is_empty() {
        return Err(status::EMPTY_KEY);
    }
    Ok(DeleteRequest {
        range: KeyRange { key: request.key, end: request.range_end },
        prev_kv: request.prev_kv,
    })
}

/// A transaction as the crate asks it.
///
/// # Errors
/// Too many operations, a key that is missing somewhere, an operation that is empty, and those of
/// [`range`] and [`put`]; the first in etcd's order. Sizes, depth and keys that are changed twice
/// are the crate's to refuse.
pub fn txn(request: pb::TxnRequest) -> Result<TxnRequest, Known> {
    txn_level(request, MAX_TXN_OPS)
}

/// A nested transaction has the operations that its parent left over.
fn txn_level(request: pb::TxnRequest, ops: usize) -> Result<TxnRequest, Known> {
    let most = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = ops.checked_sub(most).ok_or(status::TOO_MANY_OPS)?;
    let compares = request.compare.into_iter().map(compare).collect::<Result<_, _>>()?;
    let list = |ops: Vec<pb::RequestOp>| ops.into_iter().map(|op| txn_op(op, left)).collect::<Result<_, _>>();
    let success = list(request.success)?;
    let failure = list(request.failure)?;
    Ok(TxnRequest { compares, success, failure })
}

fn txn_op(op: pb::RequestOp, ops_left: usize) -> Result<TxnOp, Known> {
    Ok(match op.request.ok_or(status::KEY_NOT_FOUND)? {
        PbOp::RequestRange(request) => TxnOp::Range(range(request)?),
        PbOp::RequestPut(request) => TxnOp::Put(put(request)?),
        PbOp::RequestDeleteRange(request) => TxnOp::Delete(delete(request)?),
        PbOp::RequestTxn(request) => TxnOp::Txn(txn_level(request, ops_left)?),
    })
}

/// A compare whose value is of another kind than its target, or missing, compares with zero.
///
/// etcd takes relations and targets that it does not know: an unknown relation always holds, and
/// an unknown target is equal to everything. Both are said here in terms of the version, which is
/// never negative, and 0 where there is no key.
fn compare(compare: pb::Compare) -> Result<Compare, Known> {
    if compare.key.is_empty() {
        return Err(status::EMPTY_KEY);
    }
    let range = KeyRange { key: compare.key, end: compare.range_end };
    let relation = CompareResult::try_from(compare.result).ok();
    let target = PbTarget::try_from(compare.target).ok();
    let given = compare.target_union;
    let (op, target) = match (relation, target) {
        (Some(relation), Some(target)) => (operator(relation), compare_target(target, given)),
        // A value is only ever looked at where there is a key.
        (None, Some(PbTarget::Value)) => (CompareOp::Greater, CompareTarget::Version(0)),
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

fn compare_target(target: PbTarget, given: Option<TargetUnion>) -> CompareTarget {
    match (target, given) {
        (PbTarget::Version, Some(TargetUnion::Version(version))) => CompareTarget::Version(version),
        (PbTarget::Version, _) => CompareTarget::Version(0),
        (PbTarget::Create, Some(TargetUnion::CreateRevision(revision))) => CompareTarget::Create(revision),
        (PbTarget::Create, _) => CompareTarget::Create(0),
        (PbTarget::Mod, Some(TargetUnion::ModRevision(revision))) => CompareTarget::Mod(revision),
        (PbTarget::Mod, _) => CompareTarget::Mod(0),
        (PbTarget::Value, Some(TargetUnion::Value(value))) => CompareTarget::Value(value),
        (PbTarget::Value, _) => CompareTarget::Value(Default::default()),
        (PbTarget::Lease, Some(TargetUnion::Lease(lease))) => CompareTarget::Lease(lease),
        (PbTarget::Lease, _) => CompareTarget::Lease(0),
    }
}

/// The answer to a range, with any header.
pub fn range_response(header: Option<ResponseHeader>, response: RangeResponse) -> pb::RangeResponse {
    pb::RangeResponse {
        header,
        kvs: response.kvs.into_iter().map(key_value).collect(),
        more: response.more,
        count: response.count,
    }
}

/// The answer to a put, with any header.
pub fn put_response(header: Option<ResponseHeader>, response: PutResponse) -> pb::PutResponse {
    pb::PutResponse { header, prev_kv: response.prev.map(key_value) }
}

/// The answer to a delete, with any header.
pub fn delete_response(header: Option<ResponseHeader>, response: DeleteResponse) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header,
        deleted: response.deleted,
        prev_kvs: response.prevs.into_iter().map(key_value).collect(),
    }
}

/// The answer to a transaction. The answers in it say the revision as of their own operation: the
/// one before the transaction until something has changed.
pub fn txn_response(outer: Header, response: TxnResponse) -> pb::TxnResponse {
    let before = outer.revision - Revision::from(changes(&response));
    let mut seen = Seen { before, changed: false };
    pb::TxnResponse { header: header(outer), ..seen.txn(response) }
}

/// Whether any operation of the path taken changed the store.
fn changes(response: &TxnResponse) -> bool {
    response.responses.iter().any(|answer| match answer {
        TxnOpResponse::Range(_) => false,
        TxnOpResponse::Put(_) => true,
        TxnOpResponse::Delete(response) => response.deleted > 0,
        TxnOpResponse::Txn(nested) => changes(nested),
    })
}

/// What a transaction's operations have done so far.
struct Seen {
    before: Revision,
    changed: bool,
}

impl Seen {
    fn header(&self) -> Option<ResponseHeader> {
        inner_header(self.before + Revision::from(self.changed))
    }

    fn txn(&mut self, response: TxnResponse) -> pb::TxnResponse {
        pb::TxnResponse {
            // A nested one's is there and empty.
            header: Some(ResponseHeader::default()),
            succeeded: response.succeeded,
            responses: response.responses.into_iter().map(|answer| self.answer(answer)).collect(),
        }
    }

    fn answer(&mut self, answer: TxnOpResponse) -> pb::ResponseOp {
        let response = match answer {
            TxnOpResponse::Range(response) => {
                PbAnswer::ResponseRange(range_response(self.header(), response))
            }
            TxnOpResponse::Put(response) => {
                self.changed = true;
                PbAnswer::ResponsePut(put_response(self.header(), response))
            }
            TxnOpResponse::Delete(response) => {
                self.changed |= response.deleted > 0;
                PbAnswer::ResponseDeleteRange(delete_response(self.header(), response))
            }
            TxnOpResponse::Txn(response) => PbAnswer::ResponseTxn(self.txn(response)),
        };
        pb::ResponseOp { response: Some(response) }
    }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
