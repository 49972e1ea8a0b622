//! The raft log as consensus sees it. The one implementation is `storage::log`; it is a trait
//! because consensus lies below storage and must not know of files.

use crate::error::StorageFailed;
use crate::types::{Entry, HardState, Index, SnapshotMeta, Term};

/// That a write is on disk for good. Only the log can make one, after a completed sync, and only
/// with one does consensus promise anything to a peer.
pub trait Proof: Send + std::fmt::Debug {
    /// The number of the write, as given to [`LogView::stage`].
    fn number(&self) -> u64;
}

/// A write on its way to the disk, made by [`LogView::stage`] and turned into a [`Proof`] by the
/// log's writer.
pub trait LogView {
    /// Staged bytes for the writer.
    type Write: Send;
    /// See [`Proof`].
    type Proof: Proof;

    /// What to start from: vote and term, and the boundary before the first entry (index 0 for an
    /// empty log).
    fn start(&self) -> (HardState, SnapshotMeta);

    /// The first entry kept; one behind the boundary where the log is empty.
    fn first_index(&self) -> Index;

    /// The last entry, staged ones included; the boundary where the log is empty.
    fn last_index(&self) -> Index;

    /// The term at `index`, from the boundary (`first_index() - 1`) to `last_index()`; `None`
    /// outside.
    fn term(&self, index: Index) -> Result<Option<Term>, StorageFailed>;

    /// Entries `from..to` (within `first_index()..=last_index() + 1`), ascending, at least one and then as many as fit
    /// into `max_bytes`.
    fn entries(&self, from: Index, to: Index, max_bytes: u64) -> Result<Vec<Entry>, StorageFailed>;

    /// The lowest index from which on the entries have no more than `bytes` together; one behind the last
    /// where even that one has more.
    fn first_within(&self, bytes: u64) -> Index;

    /// Takes in a write: from now on reads see it, though the disk does not have it. Entries
    /// replace all from the first one's index on. `number` goes up by one each time.
    fn stage(&mut self, number: u64, hard: Option<HardState>, entries: &[Entry]) -> Self::Write;

    /// Takes in that a snapshot was installed: the log is empty behind it.
    fn stage_snapshot(&mut self, number: u64, hard: HardState, meta: &SnapshotMeta) -> Self::Write;

    /// Forgets entries up to and including `index`, which a flushed state or a snapshot covers.
    /// `conf` and the term belong to `index`: they become the boundary.
    fn stage_cut(&mut self, number: u64, meta: &SnapshotMeta) -> Self::Write;

    /// As [`stage_cut`](Self::stage_cut), where bytes must go too: what comes goes into other files than
    /// those there are, and files that are not needed any more are removed and not used again. An
    /// entry behind the cut keeps its file: once more, later, takes that too.
    fn stage_forget(&mut self, number: u64, meta: &SnapshotMeta) -> Self::Write {
        self.stage_cut(number, meta)
    }
}
