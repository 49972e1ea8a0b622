//! A new epoch: one member goes on alone with what it has, for most of the others are gone for good.
//!
//! Like a genesis it is written beside the log, by no entry: nobody is there to agree. What is kept is
//! everything but the members: keys, leases, users, tokens, roots, clients' and workers' records.
//! It must never leave a node that could speak as a manager but the one that goes on, never hand out a
//! revision or a term that the epoch before may have handed out, and never leave a revision readable of which
//! the epoch before may have another version.

use super::draft::Draft;
use super::format::{load, member_key, meta};
use super::stop::settle;
use super::store::{Read, Store, Table};
use super::{Applied, Drafted, Machine, alarm, members, points, read, runs, trust};
use crate::error::StorageFailed;
use crate::planted;
use crate::types::{ConfState, MemberRecord, NodeRecord, Revision, SnapshotMeta, Term};

/// What a new epoch begins with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewEpoch {
    /// The one member, under an id that was never used.
    pub member: MemberRecord,
    /// Its certificate.
    pub node: NodeRecord,
    /// The term of the last entry before it; above every term of the epoch before.
    pub term: Term,
    /// The revision that it begins at; above every one of the epoch before.
    pub revision: Revision,
    /// The last revision that was surely committed in the epoch before: of later ones that epoch may
    /// have another version, and no rollback point may show them.
    pub sure: Revision,
}

/// The cluster's epoch: 1, and one more with each recovery.
pub fn epoch(view: &dyn Read) -> Result<u64, StorageFailed> {
    Ok(load(view, Table::Meta, meta::EPOCH)?.unwrap_or(1))
}

impl<S: Store> Machine<S> {
    /// Begins a new epoch behind what is applied, and flushes it; the raft log begins anew behind what is
    /// returned.
    ///
    /// # Panics
    /// If the member's id is known here, the revision or term is none that is new, or an entry is half
    /// done: whoever asks has to look.
    pub fn begin_epoch(&mut self, new: &NewEpoch) -> Result<SnapshotMeta, StorageFailed> {
        let store_half = self.store.view(read::half_done)?;
        assert!(!store_half, "an entry that was begun is ended first");
        let known = self.store.view(|view| trust::standing(view, new.member.id))?;
        assert_eq!(known, crate::types::Standing::Unknown, "the id of a new epoch's member is new");
        let applied = self.applied();
        assert!(new.term > applied.term && new.revision > self.revision, "a new epoch goes on above the old");
        let drafted = self.store.view(|view| -> Result<_, StorageFailed> {
            let mut draft = self.new_draft(view);
            leave_behind(&mut draft)?;
            go_on(&mut draft, new)?;
            Ok(Drafted::of(draft, applied.index + 1, new.term, Vec::new()))
        })?;
        self.take_on(drafted, &mut Applied::default())?;
        self.store.flush()?;
        Ok(self.applied())
    }
}

/// Takes out every member, and every other node that was let in as a manager: one that was about to join.
fn leave_behind(draft: &mut Draft) -> Result<(), StorageFailed> {
    draft.members_changed = true;
    if planted!(RecoverKeepsOldMembers) {
        return Ok(());
    }
    for record in members::records(draft.view())? {
        draft.overlay.remove(Table::Members, member_key(record.id));
        trust::member_left(draft, record.id, &record.name)?;
        alarm::forget(draft, record.id)?;
        runs::forget(draft, record.id)?;
    }
    trust::managers_left(draft)
}

fn go_on(draft: &mut Draft, new: &NewEpoch) -> Result<(), StorageFailed> {
    let epoch = epoch(draft.view())? + 1;
    draft.overlay.put(Table::Meta, bytes::Bytes::from_static(meta::EPOCH), &epoch);
    draft.overlay.put(Table::Members, member_key(new.member.id), &new.member);
    trust::goes_on(draft, &new.node)?;
    draft.conf = ConfState { voters: vec![new.member.id], ..ConfState::default() };
    let forgotten = settle(points::forget_after(draft, new.sure))?;
    forgotten.expect("a point that is listed is there");
    if !planted!(RecoverReusesRevisions) {
        draft.revision = new.revision;
    }
    draft.compacted = draft.revision;
    draft.overlay.put(Table::Meta, bytes::Bytes::from_static(meta::COMPACTED), &draft.compacted);
    Ok(())
}
