//! The durable raft log: what this member promised, on disk, and proof that it is there.
//!
//! [`Log`] lives with consensus: it keeps the index, a tail in memory, and turns changes into
//! [`LogWrite`]s. [`LogWriter`] lives beside it (or on a thread of its own), writes them and mints a
//! [`Durable`] after the syncs. Between the two nothing is shared but one number.
//!
//! It must never mint a `Durable` for what a crash could lose, never open a log that has lost
//! something acknowledged as if it had not, and never write again after a failed write or sync.
//! `docs/disk.md` has the format and the reasons.

mod format;
mod look;
mod open;
mod replay;
mod segments;
#[cfg(all(test, feature = "sim"))]
mod tests;
#[cfg(feature = "node")]
mod verify;
mod view;
mod writer;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::error::StorageFailed;
use crate::limits;
use crate::storage::files::Files;

pub use format::{Identity, Position};
pub use look::Looked;
#[cfg(feature = "node")]
pub use verify::{LogFound, verify};
pub use view::{Log, LogWrite};
pub use writer::{Durable, LogWriter};

/// Sizes that a test or the simulator makes smaller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Bytes of a segment file, at least 4096; a record that does not fit gets a larger segment.
    pub segment_bytes: u64,
    /// Emptied segments kept for reuse.
    pub spare_segments: usize,
    /// Entries kept in memory, in bytes; entries that are not durable are kept beyond it.
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: limits::LOG_SEGMENT_BYTES,
            spare_segments: limits::LOG_SPARE_SEGMENTS,
            cache_bytes: limits::LOG_CACHE_BYTES,
        }
    }
}

/// What [`Log::open`] found.
#[allow(clippy::large_enum_variant)] // Made once for each run of a process.
pub enum Opened<F: Files> {
    /// All that was acknowledged is there.
    Ready {
        /// For consensus.
        log: Log<F>,
        /// For the thread that writes.
        writer: LogWriter<F>,
        /// Whether the log started anew behind the state, which was ahead of it.
        restarted: bool,
    },
    /// The log ends before what this member acknowledged: it may not vote or acknowledge any more,
    /// and must rejoin under a new id. Nothing was changed.
    Behind {
        /// The last entry it acknowledged.
        marker: Position,
        /// The last entry it still has.
        end: Position,
    },
}

impl<F: Files> std::fmt::Debug for Opened<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready { log, restarted, .. } => {
                f.debug_struct("Ready").field("log", log).field("restarted", restarted).finish()
            }
            Self::Behind { marker, end } => {
                f.debug_struct("Behind").field("marker", marker).field("end", end).finish()
            }
        }
    }
}

/// Work done by a [`LogWriter`] since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Completed `fdatasync`s of segments and the marker.
    pub fsyncs: u64,
    /// Bytes written to segments and the marker.
    pub bytes: u64,
    /// Groups written: each had one sync per segment touched and one of the marker.
    pub batches: u64,
    /// Writes in them.
    pub writes: u64,
    /// Segments made ready, with their own syncs that are not counted above.
    pub prepared: u64,
}

// What the log and its writer share: the files, and the number of the last durable write, which
// tells the log what it may drop from memory.
#[derive(Debug)]
struct Shared<F> {
    files: F,
    durable: AtomicU64,
}

impl<F: Files> Shared<F> {
    fn new(files: F) -> Arc<Self> {
        Arc::new(Self { files, durable: AtomicU64::new(0) })
    }

    fn path(&self, name: &str) -> String {
        path(&self.files, name)
    }

    fn failed(&self, name: &str, action: &str, error: &std::io::Error) -> StorageFailed {
        StorageFailed::io(self.path(name), action, error)
    }
}

fn path<F: Files>(files: &F, name: &str) -> String {
    format!("{}/{name}", files.describe())
}
