//! How an archive is kept, and what its archiver says that it does: words, and nothing else.

use std::path::PathBuf;
use std::time::Duration;

use crate::client::backup::contents::BackupSummary;
use crate::pki::BackupKey;
use crate::types::Revision;

/// How an archive is kept.
#[derive(Clone, Debug)]
pub struct ArchivePlan {
    /// The key that everything is encrypted with, if with one.
    pub key: Option<BackupKey>,
    /// A revision is in a file at the latest so long after it was committed. Also how often it says how far it is.
    pub every: Duration,
    /// A file is closed when it has so many bytes, before compression: what is lost at most with the cluster, and
    /// held in memory.
    pub every_bytes: u64,
    /// A full backup is made so long after the last one, if anything has changed.
    pub full_every: Duration,
    /// What is older is removed, from one full backup to the next; `None` keeps everything.
    pub keep: Option<Duration>,
}

impl Default for ArchivePlan {
    fn default() -> Self {
        Self {
            key: None,
            every: Duration::from_secs(10),
            every_bytes: 16 * 1024 * 1024,
            full_every: Duration::from_secs(24 * 60 * 60),
            keep: None,
        }
    }
}

/// Why a full backup was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FullReason {
    /// The archive begins.
    First,
    /// It was time.
    Due,
    /// What came before it can't be had any more: [`ArchiveEvent::Gap`] said so.
    Gap,
}

/// How far an archive is behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArchiveStatus {
    /// The last revision that is in a file.
    pub archived: Revision,
    /// The cluster's.
    pub revision: Revision,
    /// For how long the oldest revision that is in none has waited here; zero where there is none.
    pub behind: Duration,
}

/// What an archiver has done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ArchiveEvent {
    /// A full backup is there.
    Full {
        /// Where.
        file: PathBuf,
        /// What of.
        backup: BackupSummary,
        /// Why.
        reason: FullReason,
    },
    /// A file of changes is there.
    Changes {
        /// Where.
        file: PathBuf,
        /// What of.
        backup: BackupSummary,
    },
    /// What comes next can't be had any more: the archive has a gap here, and goes on with a full backup behind it.
    Gap {
        /// The last revision before it.
        after: Revision,
        /// Why.
        why: String,
    },
    /// Files that were older than what is kept are gone.
    Removed {
        /// How many.
        files: usize,
        /// The revision that the archive begins with now.
        from: Revision,
    },
    /// How far it is, as often as files are closed.
    Status(ArchiveStatus),
    /// Something failed; it is tried again by itself.
    Failed {
        /// What, and why.
        why: String,
    },
}
