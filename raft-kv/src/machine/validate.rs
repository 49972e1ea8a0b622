//! Whether a request is within its bounds, before it is looked at any further: the same check
//! where it is admitted and where it is applied.
//!
//! Total: no request makes it panic or take long. Its bounds decide what an entry does, so a
//! change of one is a change of the log's meaning.

use super::command::Command;
use super::overlap::check_overlaps;
use crate::error::Refusal;
use crate::limits::{
    MAX_ADDR_BYTES, MAX_AUTH_NAME_BYTES, MAX_KEY_BYTES, MAX_LEASE_TTL, MAX_LEASES_PER_EXPIRY, MAX_NAME_BYTES,
    MAX_RAISED_REVISION, MAX_REQUEST_BYTES, MAX_TXN_DEPTH, MAX_TXN_OPS, MAX_VALUE_BYTES, MIN_LEASE_TTL,
};
use crate::types::{
    Caller, CompareTarget, DeleteRequest, KeyRange, LeaseId, MemberRecord, NodeId, PutRequest, RangeRequest,
    TxnOp, TxnRequest,
};

/// Bytes that an operation of a transaction counts besides its keys and values.
const OP_OVERHEAD: usize = 16;

/// Refuses a command that is out of its bounds.
pub fn validate(command: &Command) -> Result<(), Refusal> {
    match command {
        Command::Put(request) => validate_put(request),
        Command::Delete(request) => validate_delete(request),
        Command::Txn(request) => validate_txn(request),
        Command::LeaseGrant { id, ttl } => {
            lease_id(*id)?;
            if *ttl > MAX_LEASE_TTL {
                return Err(out_of_bounds("ttl", *ttl, MIN_LEASE_TTL, MAX_LEASE_TTL));
            }
            Ok(())
        }
        Command::LeaseExpire { ids, .. } if ids.len() > MAX_LEASES_PER_EXPIRY => {
            let why = format!("{} leases in one step, the limit is {MAX_LEASES_PER_EXPIRY}", ids.len());
            Err(Refusal::invalid("ids", why))
        }
        Command::MemberUpdate(record) => member(record),
        Command::Trust(change) => super::trust::validate(change),
        Command::RaiseRevision { to } if !(0..=MAX_RAISED_REVISION).contains(to) => {
            Err(Refusal::invalid("revision", format!("{to} is not in 0 to {MAX_RAISED_REVISION}")))
        }
        Command::Auth(change) => super::auth::validate(change),
        Command::Point(change) => super::points::validate(change),
        Command::From { command, .. } if matches!(**command, Command::From { .. }) => {
            Err(Refusal::invalid("command", "it came from a node for another node"))
        }
        Command::From { command, .. } => validate(command),
        Command::As { caller, command } => caller_bounds(caller, command).and_then(|()| validate(command)),
        Command::Quota { bytes: Some(0) } => {
            Err(Refusal::invalid("quota", "it is 0; give at least 1 byte, or none to have no quota"))
        }
        // Unknown leases and revisions are answered from the state.
        Command::RaiseRevision { .. } => Ok(()),
        Command::Compact { .. }
        | Command::LeaseRevoke { .. }
        | Command::LeaseExpire { .. }
        | Command::Alarm(_)
        | Command::Quota { .. }
        | Command::Seen { .. }
        | Command::Noop => Ok(()),
    }
}

/// Refuses a range that is out of its bounds.
pub fn validate_range(request: &RangeRequest) -> Result<(), Refusal> {
    key_range(&request.range)
}

/// Refuses a put that is out of its bounds.
pub fn validate_put(request: &PutRequest) -> Result<(), Refusal> {
    key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    value(&request.value)
}

/// Refuses a delete that is out of its bounds.
pub fn validate_delete(request: &DeleteRequest) -> Result<(), Refusal> {
    key_range(&request.range)
}

/// Refuses a transaction that is out of its bounds: operations, depth, size, and a key that one
/// path changes twice.
pub fn validate_txn(request: &TxnRequest) -> Result<(), Refusal> {
    let mut bytes = 0;
    txn_level(request, MAX_TXN_OPS, 1, &mut bytes)?;
    if bytes > MAX_REQUEST_BYTES {
        return Err(Refusal::RequestTooLarge { len: bytes as u64, max: MAX_REQUEST_BYTES as u64 });
    }
    check_overlaps(request)
}

/// Refuses a member's record that is out of its bounds.
pub fn member(record: &MemberRecord) -> Result<(), Refusal> {
    if record.id == NodeId(0) {
        return Err(Refusal::invalid("member id", "it is 0, which names nobody"));
    }
    text("member name", &record.name, MAX_NAME_BYTES)?;
    text("member address", &record.addr, MAX_ADDR_BYTES)?;
    match record.client_url.as_str() {
        "" => Ok(()),
        url => text("member client URL", url, MAX_ADDR_BYTES + "https://".len()),
    }
}

/// One level of a transaction: a nested one has the operations that its parents left over.
fn txn_level(request: &TxnRequest, ops: usize, depth: usize, bytes: &mut usize) -> Result<(), Refusal> {
    if depth > MAX_TXN_DEPTH {
        return Err(Refusal::NestedTooDeep { max: MAX_TXN_DEPTH as u64 });
    }
    let lists = [
        ("compare", request.compares.len()),
        ("success", request.success.len()),
        ("failure", request.failure.len()),
    ];
    for (list, len) in lists {
        if len > ops {
            return Err(Refusal::TooManyOps { list: list.into(), len: len as u64, max: ops as u64 });
        }
    }
    let left = ops - lists.into_iter().map(|(_, len)| len).max().unwrap_or(0);
    for compare in &request.compares {
        key_range(&compare.range)?;
        *bytes += range_bytes(&compare.range);
        if let CompareTarget::Value(given) = &compare.target {
            value(given)?;
            *bytes += given.len();
        }
    }
    for op in request.success.iter().chain(&request.failure) {
        match op {
            TxnOp::Range(request) => {
                validate_range(request)?;
                *bytes += range_bytes(&request.range);
            }
            TxnOp::Put(request) => {
                validate_put(request)?;
                *bytes += request.key.len() + request.value.len() + OP_OVERHEAD;
            }
            TxnOp::Delete(request) => {
                validate_delete(request)?;
                *bytes += range_bytes(&request.range);
            }
            TxnOp::Txn(nested) => {
                *bytes += OP_OVERHEAD;
                txn_level(nested, left, depth + 1, bytes)?;
            }
        }
    }
    Ok(())
}

fn range_bytes(range: &KeyRange) -> usize {
    range.key.len() + range.end.len() + OP_OVERHEAD
}

fn key_range(range: &KeyRange) -> Result<(), Refusal> {
    key(&range.key)?;
    // An end at or before the key is etcd's empty answer, not an error.
    key_len(&range.end)
}

fn key(key: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    key_len(key)
}

pub(super) fn key_len(key: &[u8]) -> Result<(), Refusal> {
    if key.len() > MAX_KEY_BYTES {
        return Err(Refusal::KeyTooLarge { len: key.len() as u64, max: MAX_KEY_BYTES as u64 });
    }
    Ok(())
}

fn value(value: &[u8]) -> Result<(), Refusal> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(Refusal::ValueTooLarge { len: value.len() as u64, max: MAX_VALUE_BYTES as u64 });
    }
    Ok(())
}

fn lease_id(id: LeaseId) -> Result<(), Refusal> {
    if id == 0 {
        return Err(out_of_bounds("id", id, 1, LeaseId::MAX));
    }
    Ok(())
}

fn caller_bounds(caller: &Caller, command: &Command) -> Result<(), Refusal> {
    if matches!(command, Command::As { .. } | Command::From { .. }) {
        return Err(Refusal::invalid("command", "it is asked by a caller for another caller"));
    }
    match caller {
        Caller::User { name, .. } if name.len() > MAX_AUTH_NAME_BYTES => {
            Err(Refusal::invalid("caller", format!("its name has more than {MAX_AUTH_NAME_BYTES} bytes")))
        }
        Caller::Bearer { .. } => Err(Refusal::invalid("caller", "its token was not looked at")),
        _ => Ok(()),
    }
}

fn out_of_bounds(field: &str, value: i64, min: i64, max: i64) -> Refusal {
    Refusal::LeaseOutOfBounds { field: field.into(), value, min, max }
}

pub(super) fn text(field: &str, text: &str, max: usize) -> Result<(), Refusal> {
    if text.is_empty() {
        return Err(Refusal::invalid(field, "it is empty; give at least one character"));
    }
    if text.len() > max {
        return Err(Refusal::invalid(field, format!("it has {} bytes, the limit is {max}", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(Refusal::invalid(field, "it has control characters; leave them out"));
    }
    Ok(())
}
