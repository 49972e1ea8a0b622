//! Leases as the log knows them: granted, revoked, expired. Time is not here: the leader watches
//! it and proposes the end.
//!
//! An end decided by a leader of another term than its entry's must never be carried out: that
//! leader did not know of renewals since.

use bytes::Bytes;

use super::command::Answer;
use super::draft::{Draft, LeaseChange};
use super::format::{LeaseRecord, attached_key, decode, from_lease_key, lease_key, load};
use super::stop::Stop;
use super::store::{Read, Table};
use crate::error::{Refusal, StorageFailed};
use crate::limits::MIN_LEASE_TTL;
use crate::planted;
use crate::types::{LeaseId, Term};

/// Whether the lease exists.
pub fn exists(view: &dyn Read, id: LeaseId) -> Result<bool, StorageFailed> {
    Ok(id != 0 && view.get(Table::Lease, &lease_key(id))?.is_some())
}

/// The keys that end with the lease, ascending.
pub fn keys(view: &dyn Read, id: LeaseId) -> Result<Vec<Bytes>, StorageFailed> {
    let from = attached_key(id, b"");
    let to = id.checked_add(1).map(lease_key);
    view.scan(Table::Attached, &from, to.as_deref()).map(|pair| Ok(pair?.0.slice(8..))).collect()
}

/// Makes a lease.
pub fn grant(draft: &mut Draft, id: LeaseId, ttl: i64) -> Result<Answer, Stop> {
    if exists(draft.view(), id)? {
        return Err(Refusal::LeaseExists { id }.into());
    }
    let ttl = ttl.max(MIN_LEASE_TTL);
    draft.overlay.put(Table::Lease, lease_key(id), &LeaseRecord { ttl });
    draft.leases.push(LeaseChange::Granted { id, ttl });
    Ok(Answer::Lease { id, ttl })
}

/// Ends a lease and removes its keys.
pub fn revoke(draft: &mut Draft, id: LeaseId) -> Result<Answer, Stop> {
    if !exists(draft.view(), id)? {
        return Err(Refusal::LeaseNotFound { id }.into());
    }
    end(draft, id)?;
    Ok(Answer::Done)
}

/// Ends the leases that the leader of `decided` found expired; the entry is of `applied`.
pub fn expire(draft: &mut Draft, ids: &[LeaseId], decided: Term, applied: Term) -> Result<Answer, Stop> {
    if decided != applied && !planted!(AcceptStaleExpiry) {
        return Err(Refusal::StaleLeader { decided, applied }.into());
    }
    for &id in ids {
        if exists(draft.view(), id)? {
            end(draft, id)?;
            draft.seal();
        }
    }
    Ok(Answer::Done)
}

fn end(draft: &mut Draft, id: LeaseId) -> Result<(), Stop> {
    for key in keys(draft.view(), id)? {
        let stored = draft.live(&key)?.ok_or_else(|| {
            super::format::damaged(Table::Attached, "a key that ends with a lease does not exist")
        })?;
        draft.delete(key, stored)?;
    }
    draft.overlay.remove(Table::Lease, lease_key(id));
    draft.leases.push(LeaseChange::Ended { id });
    Ok(())
}

/// Every lease with the seconds it was granted for, by id.
pub fn all(view: &dyn Read) -> Result<Vec<(LeaseId, i64)>, StorageFailed> {
    view.scan(Table::Lease, b"", None)
        .map(|pair| {
            let (key, value) = pair?;
            let record: LeaseRecord = decode(Table::Lease, value)?;
            Ok((from_lease_key(&key)?, record.ttl))
        })
        .collect()
}

/// The seconds that a lease was granted for, if it exists.
pub fn granted(view: &dyn Read, id: LeaseId) -> Result<Option<i64>, StorageFailed> {
    Ok(load::<LeaseRecord>(view, Table::Lease, &lease_key(id))?.map(|record| record.ttl))
}
