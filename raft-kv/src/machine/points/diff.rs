//! What differs between a point and a later revision. What a rollback does and what is shown before
//! it come from one function: a key that differs here is one event there, and no other is.

use bytes::Bytes;

use super::records::known;
use super::rollback::half;
use super::segments::ChangedSince;
use crate::error::StorageFailed;
use crate::limits::{MAX_DIFF_PAGE_BYTES, MAX_DIFF_STEPS};
use crate::machine::format::{Stored, load_meta, meta};
use crate::machine::lease;
use crate::machine::range::check_revision;
use crate::machine::stop::Stop;
use crate::machine::store::Read;
use crate::machine::validate::key_len;
use crate::machine::versions::{superseded_at, version_at};
use crate::types::{Difference, KeyValue, LeaseId, PointDiffPage, PointDiffRequest, Revision, point_range};

/// A key that differs: its version at the point, and the later one.
pub struct Differing {
    /// At the point.
    pub then: Option<Stored>,
    /// At the later revision.
    pub now: Option<Stored>,
}

/// Looks whether `key` at `now` is not as it was at `pin`; the newest for `None`. What counts is
/// whether it exists, its value, and its lease; of the point's leases those that still live.
pub fn differing(
    view: &dyn Read,
    key: &[u8],
    pin: Revision,
    now: Option<Revision>,
) -> Result<Option<Differing>, StorageFailed> {
    let now = version_at(view, key, now)?;
    if now.as_ref().is_some_and(|now| now.mod_revision <= pin) {
        return Ok(None);
    }
    // What is current now came later, so the one of then was superseded.
    let then = superseded_at(view, key, pin)?.map(|(_, past)| past.stored);
    let same = match (&then, &now) {
        (None, None) => true,
        (Some(then), Some(now)) => same_lease(view, then, now)? && same_value(view, key, then, now)?,
        _ => false,
    };
    Ok((!same).then_some(Differing { then, now }))
}

/// The lease that a version comes back on: its own if that still lives, else none.
pub fn lease_back(view: &dyn Read, then: &Stored) -> Result<LeaseId, StorageFailed> {
    let lives = lease::exists(view, then.lease)? || (crate::planted!(ReviveLease) && then.lease != 0);
    Ok(if lives { then.lease } else { 0 })
}

/// A lease that has ended since is no difference by itself: there is nothing to go back to.
fn same_lease(view: &dyn Read, then: &Stored, now: &Stored) -> Result<bool, StorageFailed> {
    Ok(then.lease == now.lease || (then.lease != 0 && lease_back(view, then)? == 0))
}

fn same_value(view: &dyn Read, key: &[u8], then: &Stored, now: &Stored) -> Result<bool, StorageFailed> {
    Ok(then.value_len() == now.value_len() && then.value(view, key)? == now.value(view, key)?)
}

/// One page of the difference.
pub fn diff(view: &dyn Read, request: &PointDiffRequest) -> Result<PointDiffPage, Stop> {
    for key in [&request.prefix, &request.after].into_iter().flatten() {
        key_len(key)?;
    }
    let point = known(view, &request.point)?;
    let current: Revision = load_meta(view, meta::REVISION)?;
    check_revision(view, request.revision, current, load_meta(view, meta::COMPACTED)?)?;
    let to = if request.revision > 0 { request.revision } else { current };
    let at = (to != current || half(view)?).then_some(to);
    let limit = if request.limit == 0 { u64::MAX } else { request.limit };
    let range = point_range(request.prefix.as_ref());
    let mut page = PointDiffPage { from: point.revision, to, ..PointDiffPage::default() };
    let mut bytes = 0;
    let mut last: Option<Bytes> = None;
    for key in ChangedSince::new(view, point.revision, &range, request.after.as_deref())? {
        let key = key?;
        let full = bytes >= MAX_DIFF_PAGE_BYTES || page.counts.differing() >= limit;
        if full || page.counts.compared >= MAX_DIFF_STEPS {
            page.next = last;
            break;
        }
        page.counts.compared += 1;
        last = Some(key.clone());
        let Some(found) = differing(view, &key, point.revision, at)? else { continue };
        match (&found.then, &found.now) {
            (None, _) => page.counts.created += 1,
            (_, None) => page.counts.deleted += 1,
            _ => page.counts.changed += 1,
        }
        if request.count_only {
            continue;
        }
        let whole =
            |version: Option<Stored>| version.map(|version| version.load(view, key.clone())).transpose();
        let (then, now) = (whole(found.then)?, whole(found.now)?);
        let size = |kv: &Option<KeyValue>| kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len() + 64);
        bytes += key.len() + size(&then) + size(&now);
        page.differences.push(Difference { key, then, now });
    }
    Ok(page)
}
