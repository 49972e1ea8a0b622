//! A backup into a file. The file has its name only once all of it is on the disk; until then it is called
//! `NAME.part`, whatever kills the process.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::container::{Form, Sealer};
use super::contents::BackupSummary;
use crate::client::api::BackupInfo;
use crate::client::config::StartError;
use crate::client::handle::Handle;
use crate::error::{Error, NotDone, Refusal, StorageFailed};
use crate::pki::BackupKey;

/// Blocks that wait to be written.
const WAITING: usize = 4;
/// Bytes written to the disk at once.
const WRITE: usize = 256 * 1024;

fn refused(file: &Path, why: impl Into<String>) -> StartError {
    Refusal::invalid(format!("file {}", file.display()), why).into()
}

fn failed(file: &Path, action: &'static str) -> impl FnOnce(io::Error) -> StorageFailed {
    let file = file.display().to_string();
    move |error| StorageFailed {
        file,
        why: format!("{action} failed: {error}"),
        next: "look whether the disk has room, then make the backup again".into(),
    }
}

impl Handle {
    /// Writes a backup of the cluster into `file`, mode 0600, by way of the member that answers: consistent at
    /// a revision that has everything answered before the call. With a key it is encrypted, and has what opens
    /// the cluster's secrets, so that a restored cluster keeps its root; that is for who may give out
    /// certificates alone. Without one it is for who may manage the cluster. A file that is there is replaced
    /// only with `force`.
    ///
    /// # Errors
    /// [`StartError::Refused`] where it may not be made or the file is there; [`StartError::Cluster`] where no
    /// member could give it to its end; [`StartError::Storage`] where it can't be written. No file is left.
    pub async fn backup(
        &self,
        file: &Path,
        key: Option<&BackupKey>,
        force: bool,
    ) -> Result<BackupSummary, StartError> {
        let (part, summary) = self.backup_into(Part::take(file, force)?, key, |_| {}).await?;
        part.finish(force)?;
        Ok(summary)
    }

    /// The same into a file that has its name afterwards; `note` may change what its head says.
    pub(super) async fn backup_into(
        &self,
        part: Part,
        key: Option<&BackupKey>,
        note: impl FnOnce(&mut BackupInfo) + Send,
    ) -> Result<(Part, BackupSummary), StartError> {
        let mut arriving = self.backup_stream(key.is_some()).await?;
        note(&mut arriving.info);
        let (blocks, mut waiting) = mpsc::channel(WAITING);
        let (info, owned) = (arriving.info.clone(), key.cloned());
        let writer = tokio::task::spawn_blocking(move || {
            part.write(&info, owned.as_ref(), std::iter::from_fn(|| waiting.blocking_recv()))
        });
        let sent = async {
            while let Some(block) = arriving.next().await? {
                if blocks.send(block).await.is_err() {
                    // It says itself why it ended.
                    break;
                }
            }
            let _ = blocks.send(Bytes::new()).await;
            Ok::<_, Error>(())
        };
        let sent = sent.await;
        drop(blocks);
        let written = writer.await.expect("writing a file does not panic");
        match (sent, written) {
            (Err(error), _) => Err(error.into()),
            (_, Err(error)) => Err(error),
            (Ok(()), Ok(written)) => {
                let (part, written) = written;
                Ok((part, summary_of(arriving.info, key, written)))
            }
        }
    }
}

/// A file that is whole on the disk.
pub(super) struct Written {
    /// Its bytes.
    file: u64,
    /// Their SHA-256.
    digest: Bytes,
}

/// Hashes what goes by.
struct Hashed<W> {
    out: W,
    digest: Context,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

pub(super) fn summary_of(info: BackupInfo, key: Option<&BackupKey>, written: Written) -> BackupSummary {
    let Written { file: file_bytes, digest } = written;
    BackupSummary { info, encrypted: key.is_some(), file_bytes, digest }
}

/// A file that has not its name yet. Dropped before that, it goes.
pub(super) struct Part {
    file: PathBuf,
    path: PathBuf,
    open: Option<File>,
    done: bool,
}

impl Part {
    pub(super) fn take(file: &Path, force: bool) -> Result<Self, StartError> {
        if file.is_dir() {
            return Err(refused(file, "it is a folder; give the name of a file"));
        }
        if fs::symlink_metadata(file).is_ok() && !force {
            return Err(refused(file, "it exists; choose another name, or replace it with --force"));
        }
        let mut path = file.as_os_str().to_owned();
        path.push(".part");
        let path = PathBuf::from(path);
        let open = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let open = open.map_err(|error| refused(&path, format!("it can't be made: {error}")))?;
        match open.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(refused(&path, "another process is writing it")),
            Err(TryLockError::Error(error)) => {
                return Err(refused(&path, format!("it can't be locked: {error}")));
            }
        }
        // One that a killed process left may have another mode, and has something in it.
        let blank = open.set_permissions(Permissions::from_mode(0o600)).and_then(|()| open.set_len(0));
        blank.map_err(failed(&path, "emptying it"))?;
        Ok(Self { file: file.into(), path, open: Some(open), done: false })
    }

    /// It will have another name: that of what is in it.
    pub(super) fn named(mut self, file: PathBuf) -> Self {
        self.file = file;
        self
    }

    /// Writes what comes up to an empty block; gives itself back, and what was written.
    pub(super) fn write(
        self,
        info: &BackupInfo,
        key: Option<&BackupKey>,
        blocks: impl IntoIterator<Item = Bytes>,
    ) -> Result<(Self, Written), StartError> {
        // Its lock is held on.
        let open = self.open.as_ref().expect("it is open until it has its name");
        let written = seal(open, &self.path, info, key.map_or(Form::Small, Form::Secret), blocks)?;
        Ok((self, written))
    }

    /// Gives it its name.
    pub(super) fn finish(mut self, force: bool) -> Result<(), StartError> {
        if fs::symlink_metadata(&self.file).is_ok() && !force {
            return Err(refused(&self.file, "somebody made it meanwhile; choose another name"));
        }
        fs::rename(&self.path, &self.file).map_err(failed(&self.file, "giving it its name"))?;
        self.done = true;
        let folder = self.file.parent().filter(|parent| !parent.as_os_str().is_empty());
        let synced = File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all());
        Ok(synced.map_err(failed(&self.file, "syncing its folder"))?)
    }
}

fn seal(
    open: &File,
    path: &Path,
    info: &BackupInfo,
    form: Form<'_>,
    blocks: impl IntoIterator<Item = Bytes>,
) -> Result<Written, StartError> {
    let fail = |error| failed(path, "writing it")(error);
    let out = Hashed { out: BufWriter::with_capacity(WRITE, open), digest: Context::new(&SHA256) };
    let mut sealer = Sealer::new(out, info, form).map_err(fail)?;
    let mut whole = false;
    for block in blocks {
        whole = block.is_empty();
        sealer.write_all(&block).map_err(fail)?;
    }
    if !whole {
        let why = "the backup did not come to its end; make another".into();
        return Err(Error::NotDone(NotDone::Unreachable(why)).into());
    }
    let (Hashed { out, digest }, file) = sealer.finish().map_err(fail)?;
    let synced = out.into_inner().map_err(io::IntoInnerError::into_error).and_then(File::sync_all);
    synced.map_err(failed(path, "syncing it"))?;
    Ok(Written { file, digest: Bytes::copy_from_slice(digest.finish().as_ref()) })
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(&self.path);
        }
    }
}
