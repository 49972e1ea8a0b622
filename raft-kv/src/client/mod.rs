//! The door that a manager process links: a member in this process ([`Node`]), and one handle
//! ([`Handle`]) for it and for members elsewhere.

pub mod api;
#[cfg(feature = "node")]
mod auth;
#[cfg(feature = "node")]
mod backup;
#[cfg(feature = "node")]
mod check;
#[cfg(feature = "node")]
mod config;
#[cfg(feature = "node")]
mod dates;
#[cfg(feature = "node")]
mod disk;
#[cfg(feature = "node")]
mod enrol;
#[cfg(feature = "node")]
mod handle;
#[cfg(feature = "node")]
mod local;
#[cfg(feature = "node")]
mod maintain;
#[cfg(feature = "node")]
mod node;
#[cfg(all(test, feature = "node"))]
mod nodes_tests;
#[cfg(feature = "node")]
mod points;
#[cfg(all(test, feature = "node"))]
mod points_tests;
#[cfg(feature = "node")]
mod quota;
#[cfg(feature = "node")]
mod ranges;
#[cfg(feature = "node")]
mod recover;
#[cfg(feature = "node")]
mod remote;
#[cfg(feature = "node")]
mod renewing;
#[cfg(feature = "node")]
mod repair;
#[cfg(any(test, feature = "node"))]
mod reserved;
#[cfg(feature = "node")]
mod rollback;
#[cfg(feature = "node")]
mod scrub;
#[cfg(feature = "node")]
mod serve;
#[cfg(feature = "node")]
mod snapshot;
#[cfg(feature = "node")]
mod spare;
#[cfg(feature = "node")]
mod token;
#[cfg(feature = "node")]
mod trust;
#[cfg(feature = "node")]
mod watch;
#[cfg(feature = "node")]
mod watch_set;
#[cfg(feature = "node")]
mod worker;
#[cfg(feature = "node")]
mod world;

#[cfg(feature = "node")]
pub use crate::machine::read::RangeMeasure;
#[cfg(feature = "node")]
pub use crate::node::replica::Bounds;
#[cfg(feature = "node")]
pub use auth::hash_password;
#[cfg(feature = "node")]
pub use backup::{
    ArchiveEvent, ArchiveGap, ArchivePlan, ArchiveStatus, ArchiveSummary, BackupInfo, BackupSummary,
    FullReason, RestorePlan, RestoreTo, RestoredCluster, restore, verify_archive, verify_backup,
};
#[cfg(feature = "node")]
pub use check::{CheckReport, check};
#[cfg(feature = "node")]
pub use config::{Config, Overrides, StartError, Tuning};
#[cfg(feature = "node")]
pub use disk::FreeSpace;
#[cfg(feature = "node")]
pub use enrol::{Readmission, enrol, readmit, readmit_in};
#[cfg(feature = "node")]
pub use handle::Handle;
#[cfg(feature = "node")]
pub use node::{Node, credentials_of, credentials_unlocked};
#[cfg(feature = "node")]
pub use ranges::{RangeChunk, RangeStream};
#[cfg(feature = "node")]
pub use recover::{RecoverOptions, RecoverStatus, Recovery, recover, survey_recovery};
#[cfg(feature = "node")]
pub use renewing::{Renewals, renew_once};
#[cfg(feature = "node")]
pub use rollback::NewPoint;
#[cfg(feature = "node")]
pub use snapshot::Snapshot;
#[cfg(feature = "node")]
pub use trust::own::read_own_root;
#[cfg(feature = "node")]
pub use trust::signer::ExternalSigner;
#[cfg(feature = "node")]
pub use trust::unlock::{Unlocking, is_locked, unlock};
#[cfg(feature = "node")]
pub use watch::Watch;
#[cfg(feature = "node")]
pub use watch_set::{Next, WatchSet};
