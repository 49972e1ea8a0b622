//! An archive: a folder that a running archiver keeps filled with full backups and with files of what was
//! committed since, so that every revision and every moment between its first full backup and its end can be
//! restored. Its files are those of [backups](super), made continuously; there is no other format.
//!
//! What is in the folder is all that an archiver knows: one that is started again goes on where the files end,
//! whatever killed the last one. It must never leave a revision out without saying so in what it writes.

mod catalog;
mod folder;
mod follow;
mod plan;
mod read;

pub use plan::{ArchiveEvent, ArchivePlan, ArchiveStatus, FullReason};
pub(in crate::client::backup) use read::lead;
pub use read::{ArchiveGap, ArchiveSummary, verify_archive};

/// The file that is locked by whoever writes.
const LOCK: &str = "archive.lock";
