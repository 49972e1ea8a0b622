//! The ordered store below the state machine: tables of byte keys in order, written in atomic
//! batches, read newest or as one frozen view.
//!
//! Two implementations: RocksDB (`storage::state`) and the simulator's map that falls back to
//! its last flush on a crash (`sim`). One conformance suite runs on both.

use bytes::Bytes;

use crate::error::StorageFailed;

/// The tables, each with keys of its own. The numbers and names are on disk: they never change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Table {
    /// user key → its newest version's record.
    Live,
    /// (user key, revision) → a version that was superseded.
    Past,
    /// revision → what it changed.
    Log,
    /// lease id → the lease.
    Lease,
    /// (lease id, user key) → nothing: the keys that end with a lease.
    Attached,
    /// Single records: applied index, revision, compaction, identity of the cluster.
    Meta,
    /// node id → member record.
    Members,
    /// Trust: the root, tokens, revocations; a key of its own for each.
    Trust,
    /// client id → the answer to its last request.
    Once,
    /// (user key, mod revision) → a value that is too long for its version's record, whichever of
    /// `Live` and `Past` that is in.
    Values,
    /// Rollback points and their schedules; a key of its own for each.
    Points,
    /// (point's revision, user key) → nothing: keys that were changed since. Local: members differ
    /// in what of it they have tidied up.
    Changed,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 12] = [
        Self::Live,
        Self::Past,
        Self::Log,
        Self::Lease,
        Self::Attached,
        Self::Meta,
        Self::Members,
        Self::Trust,
        Self::Once,
        Self::Values,
        Self::Points,
        Self::Changed,
    ];

    /// Its name on disk.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Past => "past",
            Self::Log => "log",
            Self::Lease => "lease",
            Self::Attached => "attached",
            Self::Meta => "meta",
            Self::Members => "members",
            Self::Trust => "trust",
            Self::Once => "once",
            Self::Values => "values",
            Self::Points => "points",
            Self::Changed => "changed",
        }
    }
}

/// Pairs of a table in order, as they are read.
pub type Pairs<'a> = Box<dyn Iterator<Item = Result<(Bytes, Bytes), StorageFailed>> + 'a>;

/// Reading. Several reads through one `Read` see one state where it came from [`Store::view`].
pub trait Read {
    /// The value at `key`.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageFailed>;

    /// Pairs with `from <= key` and, where given, `key < to`, ascending. Lazy: reads on only as
    /// far as the iterator is driven.
    fn scan<'a>(&'a self, table: Table, from: &[u8], to: Option<&[u8]>) -> Pairs<'a>;
}

/// Changes that happen together or not at all, in order: a later one for the same key wins.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// (table, key, new value or `None` to remove).
    pub writes: Vec<(Table, Bytes, Option<Bytes>)>,
}

/// An ordered store. Handles are cheap clones of one store; one of them writes.
pub trait Store: Clone + Send + Sync + 'static {
    /// Runs `read` on a frozen view: nothing written meanwhile is seen.
    fn view<R>(&self, read: impl FnOnce(&dyn Read) -> R) -> R;

    /// Applies the batch atomically. After a crash the store holds all batches up to some point
    /// at or after the last [`flush`](Self::flush), and none later: no gap, no half batch.
    fn write(&self, batch: Batch) -> Result<(), StorageFailed>;

    /// Returns when all that was written before the call survives a crash.
    fn flush(&self) -> Result<(), StorageFailed>;
}
