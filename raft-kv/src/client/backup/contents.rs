//! What is in a backup, read through once: a tar of the files of a checkpoint, and before them, in an encrypted
//! one, the data keys. Everything is checked; names that lead anywhere else are damage.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use bytes::Bytes;

use super::changes::read_changes;
use super::container::{Fault, Opener};
use crate::client::api::BackupInfo;
use crate::client::config::StartError;
use crate::codec::Wire;
use crate::error::{Refusal, StorageFailed};
use crate::pki::BackupKey;
use crate::types::HandedKeys;

/// The file of the data keys.
pub(in crate::client) const KEYS: &str = "keys";
/// The folder of the state's files.
pub(in crate::client) const STATE: &str = "state/";
/// Longer is no list of data keys.
const MAX_KEYS_BYTES: u64 = 64 * 1024;
/// Bytes read from the disk at once.
const READ: usize = 256 * 1024;

/// A backup that is whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupSummary {
    /// What it is of.
    pub info: BackupInfo,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// SHA-256 of the file, without what etcd's clients put behind it: what the next one of an archive names.
    pub digest: Bytes,
}

/// A name that can't lead out of its folder.
fn plain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.chars().all(allowed)
}

/// Reads all of the backup in `file`: each of the state's files, with its name and length, goes to `take`.
/// Gives the data keys too, where they are in it.
///
/// # Errors
/// [`StartError::Refused`] for what is no backup, and for a missing or wrong key; [`StartError::Storage`] for
/// damage, with the offset, and for what `take` could not do.
pub(in crate::client) fn read_all(
    file: &Path,
    key: Option<&BackupKey>,
    mut take: impl FnMut(&str, u64, &mut dyn Read) -> Result<(), StorageFailed>,
) -> Result<(BackupSummary, Option<HandedKeys>), StartError> {
    let shown = file.display().to_string();
    let input = File::open(file).map_err(|error| {
        Refusal::invalid(format!("backup {shown}"), format!("it can't be opened: {error}"))
    })?;
    let mut opener =
        Opener::new(BufReader::with_capacity(READ, input), key).map_err(|fault| fault.about(&shown))?;
    let (info, encrypted) = (opener.info().clone(), opener.encrypted());
    if info.since > 0 {
        let why =
            format!("it has only what was changed since revision {}; give the full backup first", info.since);
        return Err(Refusal::invalid(format!("backup {shown}"), why).into());
    }
    let mut found = Found::default();
    if let Err(failed) = each(&mut opener, &mut found, &mut take) {
        return Err(match (failed, opener.fault()) {
            (Failed::Take(failed), _) => failed.into(),
            (_, Some(fault)) => fault.about(&shown),
            (Failed::Content(why), None) => Fault::Damaged { offset: 0, why }.about(&shown),
        });
    }
    let totals = opener.finish().map_err(|fault| fault.about(&shown))?;
    found.check(&info, totals.content).map_err(|why| Fault::Damaged { offset: 0, why }.about(&shown))?;
    let summary = BackupSummary { info, encrypted, file_bytes: totals.file, digest: totals.digest };
    Ok((summary, found.keys))
}

#[derive(Default)]
struct Found {
    files: u64,
    current: bool,
    manifest: bool,
    keys: Option<HandedKeys>,
}

impl Found {
    fn check(&self, info: &BackupInfo, content: u64) -> Result<(), String> {
        if !self.current || !self.manifest || self.files != info.files || content != info.bytes {
            return Err("its content lacks files that every state has".into());
        }
        if self.keys.is_some() != info.keys {
            return Err("whether it has data keys is not what its head says".into());
        }
        Ok(())
    }
}

enum Failed {
    Content(String),
    Take(StorageFailed),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Content(format!("its content is not the tar that it should be ({error})"))
    }
}

fn each<R: Read>(
    opener: &mut Opener<R>,
    found: &mut Found,
    take: &mut impl FnMut(&str, u64, &mut dyn Read) -> Result<(), StorageFailed>,
) -> Result<(), Failed> {
    let mut tar = tar::Archive::new(&mut *opener);
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_str().unwrap_or_default().to_owned();
        let len = entry.size();
        if !entry.header().entry_type().is_file() {
            return Err(Failed::Content(format!("{path:?} in it is no plain file")));
        }
        if path == KEYS && len <= MAX_KEYS_BYTES {
            let mut bytes = zeroize::Zeroizing::new(Vec::new());
            entry.read_to_end(&mut bytes)?;
            let keys = HandedKeys::from_bytes(Bytes::copy_from_slice(&bytes));
            found.keys = Some(keys.map_err(|_| Failed::Content("its data keys can't be read".into()))?);
            continue;
        }
        let Some(name) = path.strip_prefix(STATE).filter(|name| plain(name)) else {
            return Err(Failed::Content(format!("it has a file {path:?}")));
        };
        found.files += 1;
        found.current |= name == "CURRENT";
        found.manifest |= name.starts_with("MANIFEST-");
        let mut counted = Counted { inner: &mut entry, read: 0, failed: None };
        let taken = take(name, len, &mut counted);
        // What could not be read is the backup's fault, whatever was made of it.
        if let Some(error) = counted.failed {
            return Err(error.into());
        }
        taken.map_err(Failed::Take)?;
        if counted.read != len {
            return Err(Failed::Content(format!("{path:?} in it is cut short")));
        }
    }
    Ok(())
}

struct Counted<'a, R> {
    inner: &'a mut R,
    read: u64,
    failed: Option<io::Error>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(out) {
            Ok(len) => {
                self.read += len as u64;
                Ok(len)
            }
            Err(error) => {
                let said = io::Error::new(error.kind(), error.to_string());
                self.failed = Some(error);
                Err(said)
            }
        }
    }
}

/// What a file says that it is of.
fn info_of(file: &Path, key: Option<&BackupKey>) -> Result<BackupInfo, StartError> {
    let shown = file.display().to_string();
    let input = File::open(file).map_err(|error| {
        Refusal::invalid(format!("backup {shown}"), format!("it can't be opened: {error}"))
    })?;
    let opener = Opener::new(BufReader::new(input), key).map_err(|fault| fault.about(&shown))?;
    Ok(opener.info().clone())
}

/// Reads and checks all of the backup in `file`, in bounded memory, and changes nothing.
///
/// # Errors
/// [`StartError::Refused`] for what is no backup, and for a missing or wrong key; [`StartError::Storage`] for
/// damage, with the offset.
pub fn verify_backup(file: &Path, key: Option<&BackupKey>) -> Result<BackupSummary, StartError> {
    if info_of(file, key)?.since > 0 {
        return read_changes(file, key, |_, _| Ok(()));
    }
    let to_nowhere = |_: &str, _: u64, content: &mut dyn Read| {
        io::copy(content, &mut io::sink())
            .map(drop)
            .map_err(|error| StorageFailed::io(file.display().to_string(), "reading it", &error))
    };
    Ok(read_all(file, key, to_nowhere)?.0)
}
