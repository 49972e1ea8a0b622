//! Looking into a log without changing anything in it: no run is begun, nothing is synced, recycled or
//! repaired. For who must say what a member has before its operator decides what becomes of it.
//!
//! What was read may come from the page cache alone: it must never be the reason for a promise to a peer.

use super::format::{Identity, Position};
use super::open::{Plan, decide, list, merge_promises};
use super::replay::{check_identity, read_marker, replay};
use super::{Log, Options, Shared};
use crate::error::StorageFailed;
use crate::raft::LogView;
use crate::storage::files::Files;
use crate::types::{Entry, HardState, Index, SnapshotMeta};

/// What a log holds, by the same rules as [`Log::open`].
pub struct Looked<F: Files> {
    /// Absent where the state is ahead of the log.
    log: Option<Log<F>>,
    state: Index,
    /// Term, vote, and the last index that is known to be committed.
    pub hard: HardState,
    /// The last entry that was acknowledged as durable.
    pub acknowledged: Position,
    /// The last entry that is there, in log or state.
    pub last: Position,
    /// Whether the log ends before what was acknowledged, and so does the state.
    pub behind: bool,
}

impl<F: Files> std::fmt::Debug for Looked<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Looked")
            .field("last", &self.last)
            .field("behind", &self.behind)
            .finish_non_exhaustive()
    }
}

impl<F: Files> Log<F> {
    /// Looks into a log; `state` is what the flushed state holds, as for [`open`](Self::open).
    ///
    /// # Errors
    /// As there: the log is damaged, of another member, unreadable.
    pub fn look(
        files: F,
        options: Options,
        identity: Identity,
        state: &SnapshotMeta,
    ) -> Result<Looked<F>, StorageFailed> {
        let shared = Shared::new(files);
        let names = list(&shared)?;
        let (_, marker) = read_marker(&shared.files)?;
        check_identity(&shared.files, super::segments::MARKER, marker.identity, identity)?;
        let mut found = replay(&shared.files, &options, &marker, &names)?;
        merge_promises(&shared, &marker, &mut found)?;
        let plan = decide(&shared, &marker, &found, state)?;
        let at_state = Position { term: state.term, index: state.index };
        let mut hard = found.hard;
        hard.commit = hard.commit.max(state.index);
        hard.term = hard.term.max(state.term);
        let whole = matches!(plan, Plan::Keep | Plan::Behind)
            && found.slots.len() as u64 + found.boundary.index >= state.index;
        let last = if whole { found.end } else { at_state };
        let log = found
            .tail
            .filter(|_| whole)
            .map(|tail| Self::found(shared.clone(), options, identity, marker.counter + 1, found, tail));
        let (acknowledged, behind) = (marker.acked, plan == Plan::Behind);
        Ok(Looked { log, state: state.index, hard, acknowledged, last, behind })
    }
}

impl<F: Files> Looked<F> {
    /// In the place of a log that can't be read: nothing behind the state.
    pub fn given_up(state: &SnapshotMeta) -> Self {
        let last = Position { term: state.term, index: state.index };
        let hard = HardState { term: state.term, commit: state.index, ..HardState::default() };
        Self { log: None, state: state.index, hard, acknowledged: last, last, behind: false }
    }

    /// Entries behind the state from `from` on, ascending, at least one and then as many as fit into
    /// `max_bytes`; none at the end.
    ///
    /// # Errors
    /// An entry is damaged or can't be read.
    pub fn entries(&self, from: Index, max_bytes: u64) -> Result<Vec<Entry>, StorageFailed> {
        assert!(from > self.state, "what the state holds is not asked of the log");
        match &self.log {
            Some(log) if from <= self.last.index => log.entries(from, self.last.index + 1, max_bytes),
            _ => Ok(Vec::new()),
        }
    }
}
