//! Puts and deletes, alone or inside a transaction.
//!
//! They change the revision being made and never seal it: the command that holds them does.

use super::draft::Draft;
use super::format::Stored;
use super::lease;
use super::range::Budget;
use super::stop::Stop;
use super::versions::versions;
use crate::error::Refusal;
use crate::planted;
use crate::types::{DeleteRequest, DeleteResponse, PutRequest, PutResponse};

/// Refuses a put that the state does not allow.
pub fn check_put(draft: &Draft, request: &PutRequest) -> Result<(), Stop> {
    check_lease(draft, request)?;
    check_key(draft, request)
}

/// The same within a transaction, where etcd looks at the key first.
pub fn check_put_in_txn(draft: &Draft, request: &PutRequest) -> Result<(), Stop> {
    check_key(draft, request)?;
    check_lease(draft, request)
}

fn check_lease(draft: &Draft, request: &PutRequest) -> Result<(), Stop> {
    if request.lease != 0 && !lease::exists(draft.view(), request.lease)? {
        return Err(Refusal::LeaseNotFound { id: request.lease }.into());
    }
    Ok(())
}

fn check_key(draft: &Draft, request: &PutRequest) -> Result<(), Stop> {
    if (request.ignore_value || request.ignore_lease) && draft.live(&request.key)?.is_none() {
        return Err(Refusal::KeyNotFound.into());
    }
    Ok(())
}

/// Writes a key. [`check_put`] has passed.
pub fn put(draft: &mut Draft, request: &PutRequest, budget: &mut Budget) -> Result<PutResponse, Stop> {
    let before = draft.live(&request.key)?;
    let mut value = request.value.clone();
    let mut lease = request.lease;
    if let Some(before) = &before {
        if request.ignore_value {
            value = before.value(draft.view(), &request.key)?;
        }
        if request.ignore_lease || (planted!(KeepLeaseOnPut) && lease == 0) {
            lease = before.lease;
        }
    }
    if lease != 0 {
        let same = before.as_ref().filter(|before| before.lease == lease);
        lease::check_room(draft, lease, &request.key, value.len(), same.map(Stored::value_len))?;
    }
    let prev = draft.put(request.key.clone(), value, lease, before)?.filter(|_| request.prev_kv);
    if let Some(prev) = &prev {
        budget.take(prev)?;
    }
    Ok(PutResponse { prev })
}

/// Removes every key of the range. Refused where one step would remove more than fits in memory.
pub fn delete(
    draft: &mut Draft,
    request: &DeleteRequest,
    budget: &mut Budget,
) -> Result<DeleteResponse, Stop> {
    let mut found = Vec::new();
    for pair in versions(draft.view(), &request.range, None) {
        let (key, stored) = pair?;
        budget.take_delete(key.len().saturating_add(stored.value_len()))?;
        found.push((key, stored));
    }
    let mut response = DeleteResponse { deleted: found.len() as i64, prevs: Vec::new() };
    for (key, stored) in found {
        let prev = draft.delete(key, stored)?;
        if request.prev_kv {
            budget.take(&prev)?;
            response.prevs.push(prev);
        }
    }
    Ok(response)
}
