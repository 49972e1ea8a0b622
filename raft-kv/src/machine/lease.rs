//! Leases as the log knows them: granted, revoked, expired. Time is not here: the leader watches
//! it and proposes the end.
//!
//! An end decided by a leader of another term than its entry's must never be carried out: that
//! leader did not know of renewals since.

use bytes::Bytes;

use super::command::Answer;
use super::draft::{Draft, LeaseChange};
use super::format::{LeaseRecord, attached_key, decode, from_lease_key, lease_key, load};
use super::points;
use super::stop::Stop;
use super::store::{Read, Table};
use crate::error::{Refusal, StorageFailed};
use crate::limits::{DELETE_KEY_BYTES, MAX_DELETE_BYTES, MIN_LEASE_TTL};
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
    let attached = view.scan(Table::Attached, &from, to.as_deref());
    let attached = attached.map(|pair| Ok(pair?.0.slice(8..))).collect::<Result<_, StorageFailed>>()?;
    if points::half(view)? { points::keys_of_lease(view, id, attached) } else { Ok(attached) }
}

/// What removing a key takes whose value is `value` bytes long, in bytes.
fn weight(key: &[u8], value: usize) -> u64 {
    key.len().saturating_add(value).saturating_add(DELETE_KEY_BYTES) as u64
}

/// Counts a key that is put on a lease. One whose lease is being ended counts no more.
pub fn hold(draft: &mut Draft, id: LeaseId, key: &[u8], value: usize) -> Result<(), StorageFailed> {
    counted(draft, id, |held| held.saturating_add(weight(key, value)))
}

/// Counts a key that is taken off its lease, or removed.
pub fn release(draft: &mut Draft, id: LeaseId, key: &[u8], value: usize) -> Result<(), StorageFailed> {
    counted(draft, id, |held| held.saturating_sub(weight(key, value)))
}

fn counted(draft: &mut Draft, id: LeaseId, count: impl Fn(u64) -> u64) -> Result<(), StorageFailed> {
    let record: Option<LeaseRecord> = load(draft.view(), Table::Lease, &lease_key(id))?;
    if let Some(record) = record {
        let held = count(record.held);
        draft.overlay.put(Table::Lease, lease_key(id), &LeaseRecord { held, ..record });
    }
    Ok(())
}

/// Refuses a key on a lease that could not be ended in one step with it: all keys of a lease end
/// in one revision. `before` is the length of the key's value, where it is on this lease already.
pub fn check_room(
    draft: &Draft,
    id: LeaseId,
    key: &[u8],
    value: usize,
    before: Option<usize>,
) -> Result<(), Stop> {
    let Some(record) = load::<LeaseRecord>(draft.view(), Table::Lease, &lease_key(id))? else {
        return Ok(());
    };
    let others = record.held.saturating_sub(before.map_or(0, |before| weight(key, before)));
    if others.saturating_add(weight(key, value)) > MAX_DELETE_BYTES as u64 {
        let why = format!(
            "its keys would have more than {MAX_DELETE_BYTES} bytes, counting {DELETE_KEY_BYTES} for each, \
             and could not end together; put the key on another lease"
        );
        return Err(Refusal::invalid("lease", why).into());
    }
    Ok(())
}

/// Makes a lease.
pub fn grant(draft: &mut Draft, id: LeaseId, ttl: i64) -> Result<Answer, Stop> {
    if exists(draft.view(), id)? {
        return Err(Refusal::LeaseExists { id }.into());
    }
    let ttl = ttl.max(MIN_LEASE_TTL);
    draft.overlay.put(Table::Lease, lease_key(id), &LeaseRecord { ttl, held: 0 });
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

/// Ends the leases that the leader of `decided` found expired; the entry is of `applied`. Together
/// they hold no more than one delete may remove, or are one: the leader names the others again.
pub fn expire(draft: &mut Draft, ids: &[LeaseId], decided: Term, applied: Term) -> Result<Answer, Stop> {
    if decided != applied && !planted!(AcceptStaleExpiry) {
        return Err(Refusal::StaleLeader { decided, applied }.into());
    }
    let mut left = MAX_DELETE_BYTES as u64;
    for (at, &id) in ids.iter().enumerate() {
        let Some(record) = load::<LeaseRecord>(draft.view(), Table::Lease, &lease_key(id))? else { continue };
        match left.checked_sub(record.held) {
            None if at > 0 => break,
            rest => left = rest.unwrap_or(0),
        }
        end(draft, id)?;
        draft.seal();
    }
    Ok(Answer::Done)
}

fn end(draft: &mut Draft, id: LeaseId) -> Result<(), Stop> {
    let keys = keys(draft.view(), id)?;
    draft.overlay.remove(Table::Lease, lease_key(id));
    for key in keys {
        let stored = draft.live(&key)?.ok_or_else(|| {
            super::format::damaged(Table::Attached, "a key that ends with a lease does not exist")
        })?;
        draft.delete(key, stored)?;
    }
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

/// What removing the keys of a lease takes, in bytes; nothing for an unknown one.
#[cfg(test)]
pub fn held(view: &dyn Read, id: LeaseId) -> Result<u64, StorageFailed> {
    Ok(load::<LeaseRecord>(view, Table::Lease, &lease_key(id))?.map_or(0, |record| record.held))
}

/// The seconds that a lease was granted for, if it exists.
pub fn granted(view: &dyn Read, id: LeaseId) -> Result<Option<i64>, StorageFailed> {
    Ok(load::<LeaseRecord>(view, Table::Lease, &lease_key(id))?.map(|record| record.ttl))
}
