//! Second copies of the small files without which a member can't even ask the others for help: who it is,
//! its keyring, its certificate. They lie in one file with a checksum; the certificate's key is in the
//! keyring already.
//!
//! A copy is used only where the first one can't be right. It must never outlive what it copies: whoever
//! gives a file up, or locks it, does the same here first.

use std::fs;
use std::path::Path;

use bytes::Bytes;

use super::config::{NODE_FILE, node_is_whole};
use super::trust::vault::{KEYRING_FILE, Vault};
use crate::codec::{Wire, wire_struct};
use crate::error::StorageFailed;
use crate::net::{check_chain, write_private};
use crate::pki::Credentials;

/// The file's name in the data directory.
pub(super) const SPARE_FILE: &str = "spare";
const FORMAT: u32 = 1;
pub(super) const CACERT: &str = "cert/cacert.pem";
pub(super) const CERT: &str = "cert/cert.pem";
/// What is copied, by its path in the data directory.
const COPIED: [&str; 4] = [NODE_FILE, KEYRING_FILE, CACERT, CERT];
/// None of them is read beyond this.
const MAX_BYTES: u64 = 4 << 20;

struct Spare {
    format: u32,
    files: Vec<(String, Bytes)>,
}
wire_struct!(Spare { format, files });

/// Copies the files as they are now, but none that can't be right over a copy that is; does nothing where
/// the copies are equal.
pub(super) fn refresh(dir: &Path) -> Result<(), StorageFailed> {
    let before = read(dir);
    let copies = before.as_deref().unwrap_or_default();
    let wrong = wrong(dir, copies);
    let mut files = Vec::new();
    for name in COPIED {
        let copy = || copies.iter().find(|(of, _)| of == name).map(|(_, bytes)| bytes.clone());
        let taken = if wrong.contains(&name) { copy() } else { first(dir, name) };
        files.extend(taken.map(|bytes| (name.to_owned(), bytes)));
    }
    if before.as_ref() == Some(&files) {
        return Ok(());
    }
    let body = Spare { format: FORMAT, files }.to_bytes();
    write_private(&dir.join(SPARE_FILE), &sealed(&body))
}

/// `body` with its checksum behind it.
pub(super) fn sealed(body: &[u8]) -> Vec<u8> {
    [body, &crc32c::crc32c(body).to_le_bytes()].concat()
}

/// What [`sealed`] was given; nothing where it was changed since.
pub(super) fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let (body, checksum) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    (crc32c::crc32c(body).to_le_bytes() == checksum).then_some(body)
}

/// The copies, by name; nothing where the file is missing or damaged.
pub(super) fn read(dir: &Path) -> Option<Vec<(String, Bytes)>> {
    let bytes = first(dir, SPARE_FILE)?;
    let spare = Spare::from_bytes(Bytes::copy_from_slice(unsealed(&bytes)?)).ok()?;
    (spare.format == FORMAT).then_some(spare.files)
}

/// A file as it lies there.
pub(super) fn first(dir: &Path, name: &str) -> Option<Bytes> {
    let path = dir.join(name);
    let small = fs::metadata(&path).ok()?.len() <= MAX_BYTES;
    small.then(|| fs::read(&path).ok()).flatten().map(Bytes::from)
}

/// Puts copies in the place of files that can't be right.
pub(super) fn mend(dir: &Path) {
    let Some(copies) = read(dir) else { return };
    for name in wrong(dir, &copies) {
        let Some((_, copy)) = copies.iter().find(|(of, _)| of == name) else { continue };
        let file = dir.join(name).display().to_string();
        match write_private(&dir.join(name), copy) {
            Ok(()) => tracing::error!(file, "it was missing or damaged; its second copy has taken its place"),
            // Whoever needs it says what is wrong.
            Err(error) => tracing::error!(file, %error, "it is missing or damaged, and can't be mended"),
        }
    }
}

/// Which of the files can't be right while their copy can.
pub(super) fn wrong(dir: &Path, copies: &[(String, Bytes)]) -> Vec<&'static str> {
    let mut wrong = Vec::new();
    let copy = |name: &str| copies.iter().find(|(of, _)| of == name).map(|(_, bytes)| bytes.clone());
    for (name, whole) in [(NODE_FILE, node_is_whole as fn(&[u8]) -> bool), (KEYRING_FILE, Vault::is_whole)] {
        let damaged = !first(dir, name).is_some_and(|bytes| whole(&bytes));
        if damaged && copy(name).is_some_and(|copy| whole(&copy)) {
            wrong.push(name);
        }
    }
    // The two belong together: whichever is damaged, together they are not believed.
    let (cacert, cert) = (first(dir, CACERT), first(dir, CERT));
    let (spare_cacert, spare_cert) = (copy(CACERT), copy(CERT));
    let believed = |cacert: &Option<Bytes>, cert: &Option<Bytes>| believed(cacert.as_ref(), cert.as_ref());
    if !believed(&cacert, &cert) && believed(&spare_cacert, &spare_cert) {
        wrong.extend((cacert != spare_cacert).then_some(CACERT));
        wrong.extend((cert != spare_cert).then_some(CERT));
    }
    wrong
}

/// Whether the roots in one file believe the certificate in the other.
pub(super) fn believed(cacert: Option<&Bytes>, cert: Option<&Bytes>) -> bool {
    let blocks = |bytes: Option<&Bytes>| {
        let blocks = pem::parse_many(bytes?).ok()?;
        Some(blocks.into_iter().map(pem::Pem::into_contents).collect::<Vec<_>>())
    };
    let (Some(roots), Some(chain)) = (blocks(cacert), blocks(cert)) else { return false };
    check_chain(&Credentials { roots, ..Credentials::default() }, &chain, true).is_ok()
}
