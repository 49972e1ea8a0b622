//! Certificates, join tokens and chains: what the cluster's own authority makes, and what is
//! asked of whatever others present.
//!
//! Nothing here opens a socket or a file or reads a clock: time is an argument, and so is chance,
//! except that keys are drawn by the crypto library's own generator. A certificate's content is
//! decided by the authority alone; nothing but the public key is ever taken from a request.

mod backup;
mod identity;
mod key_text;
mod leaf;
mod own;
mod proof;
mod root;
mod seal;
mod token;
mod verify;

pub use crate::types::{OwnRoot, RootDigest};
pub use backup::{BACKUP_CHECK_BYTES, BACKUP_SALT_BYTES, BackupCipher, BackupKey};
pub use identity::{Credentials, Identity, PemFiles, name_of};
pub use leaf::{
    LEAF_VALIDITY, NodeKey, Subject, check_signed, ends_soon, has_name, issue, names_of, request_key,
    validity_of,
};
pub use own::{
    MIN_INTERMEDIATE_LEFT, MIN_ROOT_LEFT, end_of, keys_of, own_root_from_pem, split_certificates, vet,
    vet_cross,
};
pub use proof::{prove, proven_key};
pub use root::{CROSS_VALIDITY, RootKey, key_of, serial_of};
pub use seal::{Keyring, UnlockKey};
pub use token::{JoinToken, Secret};
pub use verify::{Purpose, TLS_NAME, admit, check_dialled, pinned_root, successor_name};

use std::time::{Duration, SystemTime};

/// Certificates begin this long before they are made: clocks differ.
pub const BACK_DATE: Duration = Duration::from_secs(3600);

/// A moment as certificates carry it: whole seconds, and never before 1970.
fn moment(at: SystemTime) -> time::OffsetDateTime {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // Certificates can't say more than the year 9999.
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX).min(253_402_300_799);
    time::OffsetDateTime::from_unix_timestamp(seconds).expect("bounded to years that exist")
}
