//! Reading the state from any thread, on a frozen view of the store.
//!
//! Everything here is a function of the view alone and changes nothing. Whether a view is new
//! enough for its reader is decided before, by whoever takes it.

use bytes::Bytes;

use super::compact::Collected;
use super::count::{self, Remembered};
use super::format::{FORMAT, STORE, load, load_meta, meta};
use super::range::{self, Budget, check_revision};
use super::stop::{Settled, Stop, settle};
use super::store::{Read, Table};
use super::trust::{SealStep, Verdict};
use super::validate::{validate_range, validate_txn};
use super::{history, lease, members, points, trust, txn};
use crate::error::{Refusal, StorageFailed};
use crate::types::{
    Change, ClusterId, ConfChange, EventKind, KeyValue, LeaseId, Member, NodeId, NodeRecord, PointDiffPage,
    PointDiffRequest, RangeRequest, RangeResponse, Revision, Revocation, RollbackPoint, Run, ScheduleStatus,
    Sealing, SnapshotMeta, Standing, StateHash, TokenRecord, Trusted, TxnRequest, TxnResponse,
};

pub use super::alarm::{alarms, check_read, needs_space, short};
pub use super::epoch::epoch;
pub use super::history::History;
pub use super::quota::{recount, room_for, usage};
pub use super::range::RangeMeasure;

pub use super::hash::hash;

/// Reads keys; with the store's current revision, for the header.
pub fn range(view: &dyn Read, request: &RangeRequest) -> Settled<(Revision, RangeResponse)> {
    range_counted(view, request, None)
}

/// As [`range`], where something is remembered of how many keys the range has: with it, a page
/// reads no further than it goes.
pub fn range_counted(
    view: &dyn Read,
    request: &RangeRequest,
    remembered: Option<Remembered>,
) -> Settled<(Revision, RangeResponse)> {
    settle((|| {
        validate_range(request)?;
        let bounds @ (current, compacted) = (current_revision(view)?, compacted(view)?);
        check_revision(view, request.revision, current, compacted)?;
        let at = read_at(view, request.revision, current)?;
        let known = match remembered {
            Some(known) => count::bring(view, &request.range, known, at.unwrap_or(current), bounds)?,
            None => None,
        };
        let request = RangeRequest { revision: at.unwrap_or(0), ..request.clone() };
        Ok((current, range::range(view, &request, known, &mut Budget::new())?))
    })())
}

/// One part of a range that is read part by part: at most `keys` keys in their order, and little
/// more than `bytes` but at least one key; whether there are more; the current revision. Of the
/// request only range, revision and `keys_only` count.
pub fn page(
    view: &dyn Read,
    request: &RangeRequest,
    keys: usize,
    bytes: usize,
) -> Settled<(Revision, Vec<KeyValue>, bool)> {
    settle((|| {
        validate_range(request)?;
        let current = current_revision(view)?;
        check_revision(view, request.revision, current, compacted(view)?)?;
        let (kvs, more) = range::page(view, request, read_at(view, request.revision, current)?, keys, bytes)?;
        Ok((current, kvs, more))
    })())
}

/// Sums what `weigh` says of each key that the answer to `request` has: see [`RangeMeasure`]. Reads
/// no value. With the current revision.
pub fn measure(
    view: &dyn Read,
    request: &RangeRequest,
    weigh: fn(&KeyValue, u64) -> u64,
) -> Settled<(Revision, RangeMeasure)> {
    settle((|| {
        validate_range(request)?;
        let current = current_revision(view)?;
        check_revision(view, request.revision, current, compacted(view)?)?;
        let at = read_at(view, request.revision, current)?;
        Ok((current, range::measure(view, request, at, weigh)?))
    })())
}

/// The revision that a read of `revision` is of: the current one for 0 or below.
pub fn pin(view: &dyn Read, revision: Revision) -> Settled<Revision> {
    settle((|| {
        let current = current_revision(view)?;
        check_revision(view, revision, current, compacted(view)?)?;
        Ok(if revision > 0 { revision } else { current })
    })())
}

/// Which versions a read looks for: the newest state needs no look at older ones, unless some lie
/// there that are not current yet.
fn read_at(
    view: &dyn Read,
    revision: Revision,
    current: Revision,
) -> Result<Option<Revision>, StorageFailed> {
    if revision > 0 && revision != current {
        return Ok(Some(revision));
    }
    Ok(points::half(view)?.then_some(current))
}

/// This member's checksum over its key space up to `revision`; up to now for 0 or below. Equal on
/// all members at the same revision and the same compaction, whatever each has removed since.
/// Reads everything: its cost is that of the whole store.
pub fn hash_kv(view: &dyn Read, revision: Revision) -> Settled<StateHash> {
    settle((|| {
        let (current, compacted) = (current_revision(view)?, compacted(view)?);
        if revision > 0 && revision < compacted {
            // A point's revision can be read, but members differ in what else they have of its time.
            return Err(Refusal::Compacted { requested: revision, compacted }.into());
        }
        check_revision(view, revision, current, compacted)?;
        let revision = if revision > 0 { revision } else { current };
        Ok(StateHash { hash: super::hash::keys(view, revision, compacted)?, revision, compacted })
    })())
}

/// Runs a transaction that changes nothing on either path; with the current revision. One that
/// may write is refused: it goes through the log.
pub fn txn_read_only(view: &dyn Read, request: &TxnRequest) -> Settled<(Revision, TxnResponse)> {
    settle((|| {
        validate_txn(request)?;
        if !request.is_read_only() {
            let refusal = Refusal::invalid("transaction", "it may write, so it can't be run as a read");
            return Err(Stop::Refused(refusal));
        }
        let current = current_revision(view)?;
        let at = read_at(view, 0, current)?;
        let response = txn::read_only(view, request, at, (current, compacted(view)?))?;
        Ok((current, response))
    })())
}

/// The changes of the revisions `from..=to_inclusive`, as far as they were made: whole revisions,
/// at least one where there is one, and no more than `max_bytes` of keys and values if that is
/// more than one. Refused below the compacted revision; at it, events come without `prev`.
pub fn history(
    view: &dyn Read,
    from: Revision,
    to_inclusive: Revision,
    max_bytes: usize,
) -> Settled<Vec<Change>> {
    settle((|| {
        // What is not current yet is nobody's business.
        let to = to_inclusive.min(current_revision(view)?);
        history::history(view, compacted(view)?, from, to, max_bytes)
    })())
}

/// As [`history`], in parts: where the first revision has more than `max_bytes` in several records,
/// as many of these as fit, or one. Begins with record `part` of the revision `from`, 0 for its first.
pub fn history_in_parts(
    view: &dyn Read,
    (from, part): (Revision, u32),
    to_inclusive: Revision,
    max_bytes: usize,
) -> Settled<History> {
    settle((|| {
        let to = to_inclusive.min(current_revision(view)?);
        history::history_in_parts(view, compacted(view)?, (from, part), to, max_bytes)
    })())
}

/// What happened to which keys in a part of a revision's record, without their values; `None` behind
/// the last part. For a revision that was just applied: whether it can be read is not asked.
pub fn keys_changed(
    view: &dyn Read,
    revision: Revision,
    part: u32,
) -> Result<Option<Vec<(EventKind, Bytes)>>, StorageFailed> {
    history::keys_changed(view, revision, part)
}

/// The keys that end with a lease, ascending; none for an unknown one.
pub fn lease_keys(view: &dyn Read, id: LeaseId) -> Result<Vec<Bytes>, StorageFailed> {
    lease::keys(view, id)
}

/// Every lease with the seconds it was granted for, by id.
pub fn leases(view: &dyn Read) -> Result<Vec<(LeaseId, i64)>, StorageFailed> {
    lease::all(view)
}

/// The seconds that a lease was granted for, if it exists.
pub fn lease(view: &dyn Read, id: LeaseId) -> Result<Option<i64>, StorageFailed> {
    lease::granted(view, id)
}

/// The members with their place in the group, by id.
pub fn members(view: &dyn Read) -> Result<Vec<Member>, StorageFailed> {
    members::list(view, &applied(view)?.conf)
}

/// The newest run seen of each member, by id.
pub fn runs(view: &dyn Read) -> Result<Vec<(NodeId, Run)>, StorageFailed> {
    super::runs::runs(view)
}

/// Whether the id belonged to a member that was removed; it may never come back.
pub fn removed(view: &dyn Read, id: NodeId) -> Result<bool, StorageFailed> {
    members::removed(view, id)
}

/// Refuses a membership change that the members' records do not allow. Ask before proposing: a
/// committed change can't be refused any more.
pub fn admit_change(view: &dyn Read, change: &ConfChange) -> Settled<()> {
    settle(members::admit(view, change))
}

/// What is believed: the roots, and how far their replacement is.
pub fn trusted(view: &dyn Read) -> Result<Trusted, StorageFailed> {
    trust::trusted(view)
}

/// The clusters that this one was restored from, the newest last.
pub fn predecessors(view: &dyn Read) -> Result<Vec<ClusterId>, StorageFailed> {
    trust::predecessors(view)
}

/// What the authority knows of a node.
pub fn node(view: &dyn Read, id: NodeId) -> Result<Option<NodeRecord>, StorageFailed> {
    trust::node(view, id)
}

/// Every node that has a certificate, by id.
pub fn nodes(view: &dyn Read) -> Result<Vec<NodeRecord>, StorageFailed> {
    trust::nodes(view)
}

/// Whether a node whose chain is good may be let in, and as what.
pub fn standing(view: &dyn Read, id: NodeId) -> Result<Standing, StorageFailed> {
    trust::standing(view, id)
}

/// Whether what a node asks for may be done: it is known, under a root that is believed.
pub fn let_in(view: &dyn Read, id: NodeId) -> Settled<()> {
    settle(trust::let_in(view, id))
}

/// Why and until when a node is refused, if it is.
pub fn revocation(view: &dyn Read, id: NodeId) -> Result<Option<Revocation>, StorageFailed> {
    trust::revocation(view, id)
}

/// What the leader should do about a rotation, by its clock.
pub fn verdict(view: &dyn Read, now: i64) -> Result<Verdict, StorageFailed> {
    trust::verdict(view, now)
}

/// Which keys seal secrets, and whether members' disks are locked.
pub fn sealing(view: &dyn Read) -> Result<Sealing, StorageFailed> {
    trust::sealing(view)
}

/// What is to be done next about the replacement of a data key, by the leader's clock; at most so many
/// secrets are looked at for it.
pub fn seal_step(view: &dyn Read, now: i64, most: usize) -> Result<SealStep, StorageFailed> {
    trust::seal_step(view, now, most)
}

/// The join token with that id.
pub fn token(view: &dyn Read, id: &str) -> Result<Option<TokenRecord>, StorageFailed> {
    trust::token(view, id)
}

/// Every join token, by id.
pub fn tokens(view: &dyn Read) -> Result<Vec<(String, TokenRecord)>, StorageFailed> {
    trust::tokens(view)
}

/// The rollback point with that name.
pub fn point(view: &dyn Read, name: &str) -> Result<Option<RollbackPoint>, StorageFailed> {
    points::point(view, name)
}

/// Every rollback point, by name.
pub fn points(view: &dyn Read) -> Result<Vec<RollbackPoint>, StorageFailed> {
    points::list(view)
}

/// The schedules that make rollback points, by name.
pub fn schedules(view: &dyn Read) -> Result<Vec<ScheduleStatus>, StorageFailed> {
    points::schedules(view)
}

/// Whether a [`PointChange::Tidy`](crate::types::PointChange::Tidy) at this time, in milliseconds
/// since 1970, would change anything. For the leader, every second or so.
pub fn points_due(view: &dyn Read, now: i64) -> Result<bool, StorageFailed> {
    points::due(view, now)
}

/// One page of what differs between a rollback point and a later revision, ascending by key: what a
/// rollback would put back. Holds no more than a page: as many differences as asked for, and little
/// more than [`MAX_DIFF_PAGE_BYTES`](crate::limits::MAX_DIFF_PAGE_BYTES) of keys and values. A page
/// looks at no more than [`MAX_DIFF_STEPS`](crate::limits::MAX_DIFF_STEPS) keys, so it may be empty
/// and not the last. Refused for an unknown point, and for a revision that can't be read.
pub fn point_diff(view: &dyn Read, request: &PointDiffRequest) -> Settled<PointDiffPage> {
    settle(points::diff(view, request))
}

/// Whether an entry is half done in this state: it was interrupted by a crash, and goes on as soon as
/// it is known committed again. Reads show nothing of it; [`hash`] does.
pub fn half_done(view: &dyn Read) -> Result<bool, StorageFailed> {
    Ok(points::begun(view)?.is_some())
}

/// Whether there is a state at all: a member that has just joined waits for its first.
pub fn holds_state(view: &dyn Read) -> Result<bool, StorageFailed> {
    Ok(view.get(Table::Meta, meta::FORMAT)?.is_some())
}

/// As [`holds_state`], refused where the state is of another format than this version's.
pub fn holds_known(view: &dyn Read) -> Result<bool, StorageFailed> {
    match load::<u32>(view, Table::Meta, meta::FORMAT)? {
        None => Ok(false),
        Some(FORMAT) => Ok(true),
        Some(found) => Err(StorageFailed {
            file: STORE.into(),
            why: format!("it has format {found}, this version knows format {FORMAT}"),
            next: "run the version of raft-kv that wrote it, or a newer one".into(),
        }),
    }
}

/// The last applied entry and the configuration there.
pub fn applied(view: &dyn Read) -> Result<SnapshotMeta, StorageFailed> {
    load_meta(view, meta::APPLIED)
}

/// The store's current revision; 1 for an empty one.
pub fn current_revision(view: &dyn Read) -> Result<Revision, StorageFailed> {
    load_meta(view, meta::REVISION)
}

/// The oldest revision that can be read and watched; -1 before the first compaction.
pub fn compacted(view: &dyn Read) -> Result<Revision, StorageFailed> {
    load_meta(view, meta::COMPACTED)
}

/// How far this member has removed what compaction made unreadable: every version that ended
/// below this revision is gone from disk, but for what a rollback point can see.
pub fn collected(view: &dyn Read) -> Result<Revision, StorageFailed> {
    Ok(load_meta::<Collected>(view, meta::COLLECTED)?.revision)
}

/// The cluster's id.
pub fn cluster(view: &dyn Read) -> Result<ClusterId, StorageFailed> {
    load_meta(view, meta::CLUSTER)
}
