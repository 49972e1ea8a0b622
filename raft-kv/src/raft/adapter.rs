//! raft's `Storage` over our [`LogView`], and the conversions between raft's types and ours.
//!
//! raft panics on a storage error it does not expect. A failing log is kept here, raft is given
//! something harmless, and the core throws away all that came of it and reports the failure.

use std::cell::RefCell;
use std::collections::BTreeSet;

use raft::eraftpb;
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::LogView;
use crate::error::StorageFailed;
use crate::types::{ConfState, Entry, EntryKind, HardState, Index, NodeId, SnapshotMeta, Term};

pub(super) struct Adapter<L> {
    pub(super) log: L,
    start: (HardState, ConfState),
    /// The snapshot that followers may be sent.
    offered: Option<SnapshotMeta>,
    failed: RefCell<Option<StorageFailed>>,
    wanted: RefCell<BTreeSet<NodeId>>,
}

impl<L: LogView> Adapter<L> {
    pub(super) fn new(log: L, hard: HardState, conf: ConfState) -> Self {
        Self {
            log,
            start: (hard, conf),
            offered: None,
            failed: RefCell::new(None),
            wanted: RefCell::default(),
        }
    }

    /// Offers a snapshot; an older one than is on offer already is ignored.
    pub(super) fn offer(&mut self, meta: SnapshotMeta) {
        if self.offered.as_ref().is_none_or(|offered| offered.index <= meta.index) {
            self.offered = Some(meta);
        }
    }

    /// The failure met since the start, if any.
    pub(super) fn failure(&self) -> Option<StorageFailed> {
        self.failed.borrow().clone()
    }

    /// Followers that could not be given a snapshot since the last call, ascending.
    pub(super) fn take_wanted(&self) -> Vec<NodeId> {
        std::mem::take(&mut *self.wanted.borrow_mut()).into_iter().collect()
    }

    /// Keeps the first failure and hands it back.
    pub(super) fn keep(&self, failure: StorageFailed) -> StorageFailed {
        self.failed.borrow_mut().get_or_insert(failure).clone()
    }
}

impl<L: LogView> Storage for Adapter<L> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: hard_to_raft(&self.start.0), conf_state: conf_to_raft(&self.start.1) })
    }

    fn entries(
        &self,
        low: Index,
        high: Index,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low < self.log.first_index() {
            return Err(StorageError::Compacted.into());
        }
        match self.log.entries(low, high, max_size.into().unwrap_or(u64::MAX)) {
            Ok(entries) => Ok(entries.into_iter().map(entry_to_raft).collect()),
            Err(failure) => {
                self.keep(failure);
                Ok(Vec::new())
            }
        }
    }

    fn term(&self, index: Index) -> raft::Result<Term> {
        match self.log.term(index) {
            Ok(Some(term)) => Ok(term),
            Ok(None) if index < self.log.first_index() => Err(StorageError::Compacted.into()),
            Ok(None) => Err(StorageError::Unavailable.into()),
            Err(failure) => {
                self.keep(failure);
                Ok(0)
            }
        }
    }

    fn first_index(&self) -> raft::Result<Index> {
        Ok(self.log.first_index())
    }

    fn last_index(&self) -> raft::Result<Index> {
        Ok(self.log.last_index())
    }

    fn snapshot(&self, request_index: Index, to: u64) -> raft::Result<eraftpb::Snapshot> {
        // It must reach the log's first entry, else what follows it is gone; and it must know the
        // receiver, else the receiver throws it away.
        let suits = |meta: &&SnapshotMeta| {
            meta.index >= request_index
                && meta.index + 1 >= self.log.first_index()
                && is_in(&meta.conf, NodeId(to))
        };
        match self.offered.as_ref().filter(suits) {
            Some(meta) => Ok(snapshot_to_raft(meta)),
            None => {
                self.wanted.borrow_mut().insert(NodeId(to));
                Err(StorageError::SnapshotTemporarilyUnavailable.into())
            }
        }
    }
}

/// Whether `id` has any place in `conf`.
pub(super) fn is_in(conf: &ConfState, id: NodeId) -> bool {
    conf.voters.contains(&id) || conf.learners.contains(&id) || conf.voters_outgoing.contains(&id)
}

fn to_ids(nodes: &[NodeId]) -> Vec<u64> {
    nodes.iter().map(|id| id.0).collect()
}

fn to_nodes(ids: &[u64]) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> = ids.iter().map(|id| NodeId(*id)).collect();
    nodes.sort_unstable();
    nodes
}

pub(super) fn conf_to_raft(conf: &ConfState) -> eraftpb::ConfState {
    let mut raw = eraftpb::ConfState::default();
    raw.set_voters(to_ids(&conf.voters));
    raw.set_learners(to_ids(&conf.learners));
    raw.set_voters_outgoing(to_ids(&conf.voters_outgoing));
    raw.set_learners_next(to_ids(&conf.learners_next));
    raw.set_auto_leave(conf.auto_leave);
    raw
}

pub(super) fn conf_from_raft(raw: &eraftpb::ConfState) -> ConfState {
    ConfState {
        voters: to_nodes(raw.get_voters()),
        learners: to_nodes(raw.get_learners()),
        voters_outgoing: to_nodes(raw.get_voters_outgoing()),
        learners_next: to_nodes(raw.get_learners_next()),
        auto_leave: raw.get_auto_leave(),
    }
}

pub(super) fn hard_to_raft(hard: &HardState) -> eraftpb::HardState {
    let mut raw = eraftpb::HardState::default();
    raw.set_term(hard.term);
    raw.set_vote(hard.vote.0);
    raw.set_commit(hard.commit);
    raw
}

pub(super) fn hard_from_raft(raw: &eraftpb::HardState) -> HardState {
    HardState { term: raw.get_term(), vote: NodeId(raw.get_vote()), commit: raw.get_commit() }
}

pub(super) fn snapshot_to_raft(meta: &SnapshotMeta) -> eraftpb::Snapshot {
    let mut raw = eraftpb::Snapshot::default();
    let metadata = raw.mut_metadata();
    metadata.set_index(meta.index);
    metadata.set_term(meta.term);
    metadata.set_conf_state(conf_to_raft(&meta.conf));
    raw
}

pub(super) fn snapshot_from_raft(raw: &eraftpb::Snapshot) -> SnapshotMeta {
    let metadata = raw.get_metadata();
    SnapshotMeta {
        index: metadata.get_index(),
        term: metadata.get_term(),
        conf: conf_from_raft(metadata.get_conf_state()),
    }
}

pub(super) fn entry_to_raft(entry: Entry) -> eraftpb::Entry {
    let mut raw = eraftpb::Entry::default();
    raw.set_entry_type(match entry.kind {
        EntryKind::Normal => eraftpb::EntryType::EntryNormal,
        EntryKind::Config => eraftpb::EntryType::EntryConfChangeV2,
    });
    raw.set_index(entry.index);
    raw.set_term(entry.term);
    raw.set_data(entry.data);
    raw.set_context(entry.context);
    raw
}

pub(super) fn entry_from_raft(raw: &eraftpb::Entry) -> Entry {
    Entry {
        index: raw.get_index(),
        term: raw.get_term(),
        kind: match raw.get_entry_type() {
            eraftpb::EntryType::EntryNormal => EntryKind::Normal,
            _ => EntryKind::Config,
        },
        // Bytes share their buffer: no copy is made.
        data: raw.data.clone(),
        context: raw.context.clone(),
    }
}
