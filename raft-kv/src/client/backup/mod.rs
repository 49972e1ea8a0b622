//! Backups: a copy of one member's state, consistent at one revision, made while the cluster serves; looked
//! through offline; and made the first state of another cluster.
//!
//! A file holds the files of a checkpoint, and the cluster's secrets sealed as the state has them. The data keys
//! that open them are in it only where it is encrypted itself: no backup has a secret in clear. Nothing
//! is restored from a file before all of it was checked.

mod archive;
mod changes;
pub(super) mod container;
mod contents;
mod create;
mod restore;
mod stream;

pub use super::api::BackupInfo;
pub use archive::{
    ArchiveEvent, ArchiveGap, ArchivePlan, ArchiveStatus, ArchiveSummary, FullReason, verify_archive,
};
pub use changes::RestoreTo;
pub use contents::{BackupSummary, verify_backup};
pub(super) use contents::{KEYS, STATE};
pub use restore::{RestorePlan, RestoredCluster, restore};
pub(super) use stream::serve;
