//! Credentials as files: `cacert`, `cert` and `key`, the key for its owner's eyes alone.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Refusal, StorageFailed};
use crate::pki::{Credentials, PemFiles};

/// A PEM file is not read beyond this.
const MAX_PEM_BYTES: u64 = 1024 * 1024;

/// Reads credentials from three PEM files.
///
/// # Errors
/// [`Refusal::Invalid`] for a file that can't be read, [`Refusal::BadCertificate`] for what is
/// wrong inside.
pub fn read_credentials(cacert: &Path, cert: &Path, key: &Path) -> Result<Credentials, Refusal> {
    let read = |field: &str, path: &Path| {
        let why = |why: String| Refusal::invalid(format!("{field} file {}", path.display()), why);
        match fs::metadata(path) {
            Ok(meta) if meta.len() > MAX_PEM_BYTES => Err(why("it is too large".into())),
            _ => fs::read_to_string(path).map_err(|error| why(error.to_string())),
        }
    };
    let files =
        PemFiles { cacert: read("cacert", cacert)?, cert: read("cert", cert)?, key: read("key", key)? };
    Credentials::from_pem(&files)
}

/// Writes `cacert.pem`, `cert.pem` and `key.pem` into `dir`, each whole or not at all, readable
/// for their owner alone.
///
/// # Errors
/// [`StorageFailed`] naming the file.
pub fn write_credentials(dir: &Path, credentials: &Credentials) -> Result<(), StorageFailed> {
    let files = credentials.to_pem();
    // The key last: with it there, the others are there.
    write_private(&dir.join("cacert.pem"), files.cacert.as_bytes())?;
    write_private(&dir.join("cert.pem"), files.cert.as_bytes())?;
    write_private(&dir.join("key.pem"), files.key.as_bytes())
}

/// Replaces the file at `path` by `content`, durably, whole or not at all, with mode 0600.
///
/// # Errors
/// [`StorageFailed`] naming the file.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), StorageFailed> {
    let fail = |action: &'static str| {
        move |error: std::io::Error| StorageFailed::io(path.display().to_string(), action, &error)
    };
    let fresh = path.with_extension("new");
    // A file left by a crash may have another mode.
    let _ = fs::remove_file(&fresh);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .map_err(fail("creating it"))?;
    file.write_all(content).map_err(fail("writing it"))?;
    file.sync_all().map_err(fail("syncing it"))?;
    fs::rename(&fresh, path).map_err(fail("renaming it into place"))?;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(fail("opening its folder"))?;
    folder.sync_all().map_err(fail("syncing its folder"))
}
