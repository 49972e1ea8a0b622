//! A whole copy of a member's state as a stream of bytes: a tar of a checkpoint, then the SHA-256
//! of it. Its length is a multiple of 512 and 32 more, as etcd's clients ask of a snapshot.
//!
//! The bytes come from the files of a checkpoint, which are hard links: memory is bounded by a few
//! blocks, and the copy is of one moment however slow the reader is. The files go when the reader
//! does.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::local::Local;
use crate::error::{Error, NotDone, StorageFailed};
use crate::machine;
use crate::storage::checkpoint::look_into;
use crate::storage::state::State;
use crate::types::{Caller, ClusterId, Header, NodeId};

/// Copies that are sent at once, at most: each keeps files from being removed.
const AT_ONCE: usize = 2;
/// Bytes that are read ahead of the reader, in blocks of [`BLOCK`].
const AHEAD: usize = 8;
/// Bytes handed on at once.
const BLOCK: usize = 64 * 1024;
/// A tar's unit: a file has a header of this and is filled up to a multiple of it.
const TAR_UNIT: u64 = 512;
/// What a tar ends with.
const TAR_END: u64 = 2 * TAR_UNIT;
/// The file that says what the others are; the first in the tar.
const ABOUT: &str = "about";

/// The folder of copies that are being sent.
pub(super) struct Copies {
    folder: PathBuf,
    turns: Arc<Semaphore>,
    counter: AtomicU64,
}

impl Copies {
    /// An empty folder: what was left by a process that ended is removed.
    pub(super) fn new(folder: PathBuf) -> Result<Self, StorageFailed> {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StorageFailed::io(
                    folder.display().to_string(),
                    "removing left-over files",
                    &error,
                ));
            }
            _ => {}
        }
        let mut private = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(private.recursive(true), 0o700)
            .create(&folder)
            .map_err(|error| StorageFailed::io(folder.display().to_string(), "making the folder", &error))?;
        Ok(Self { folder, turns: Arc::new(Semaphore::new(AT_ONCE)), counter: AtomicU64::new(0) })
    }
}

/// A folder that goes with its owner, and the turn it was made in.
struct Folder {
    path: PathBuf,
    _turn: OwnedSemaphorePermit,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(folder = %self.path.display(), %error, "a copy's files could not be removed");
        }
    }
}

/// A copy being read. Dropping it ends it and removes its files.
pub struct Snapshot {
    len: u64,
    blocks: mpsc::Receiver<io::Result<Bytes>>,
    rest: BytesMut,
}

impl Snapshot {
    /// Bytes of the checksum at the end, which comes by itself.
    pub const CHECKSUM_BYTES: u64 = SHA256_OUTPUT_LEN as u64;

    /// Bytes in all, checksum included.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: even an empty state takes room.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The next `bytes` of it; fewer at the end of the tar, and the checksum by itself; `None` after
    /// that. May be dropped and called again.
    ///
    /// # Errors
    /// [`Error::NotDone`] where the files could not be read to their end.
    pub async fn next(&mut self, bytes: usize) -> Result<Option<Bytes>, Error> {
        while self.rest.len() < bytes {
            match self.blocks.recv().await {
                // The checksum stays a block of its own.
                Some(Ok(block)) if block.len() == SHA256_OUTPUT_LEN && !self.rest.is_empty() => {
                    let before = self.rest.split().freeze();
                    self.rest.extend_from_slice(&block);
                    return Ok(Some(before));
                }
                Some(Ok(block)) => self.rest.extend_from_slice(&block),
                Some(Err(error)) => {
                    let why = format!("the copy could not be read to its end: {error}; ask for another");
                    return Err(Error::NotDone(NotDone::Unreachable(why)));
                }
                None if self.rest.is_empty() => return Ok(None),
                None => return Ok(Some(self.rest.split().freeze())),
            }
        }
        Ok(Some(self.rest.split_to(bytes).freeze()))
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Local {
    /// Starts to send a copy to `caller`, if it may manage the cluster.
    pub(super) async fn snapshot_as(
        &self,
        caller: &Caller,
        patience: Duration,
    ) -> Result<(Header, Snapshot), Error> {
        self.may_manage(caller, patience).await?;
        let header = self.now()?;
        let turn = self.copies.turns.clone().try_acquire_owned();
        let turn = turn.map_err(|_| Error::NotDone(NotDone::Busy))?;
        let number = self.copies.counter.fetch_add(1, Ordering::Relaxed);
        let folder = Folder { path: self.copies.folder.join(number.to_string()), _turn: turn };
        let (state, cluster, member) = (self.shell.state().clone(), self.cluster, self.me);
        // Folder and turn go along: a caller who leaves now must not free either while files are made.
        let made = tokio::task::spawn_blocking(move || make(folder, &state, cluster, member)).await;
        let Made { folder, about, files } = made
            .expect("making a checkpoint does not panic")
            .map_err(|failed| Error::Stopped(failed.to_string()))?;
        let room = |len: u64| TAR_UNIT + len.next_multiple_of(TAR_UNIT);
        let len = room(about.len() as u64) + files.iter().map(|(_, len)| room(*len)).sum::<u64>() + TAR_END;
        let (blocks, received) = mpsc::channel(AHEAD);
        tokio::task::spawn_blocking(move || send(&folder, &about, &files, blocks));
        let len = len + SHA256_OUTPUT_LEN as u64;
        Ok((header, Snapshot { len, blocks: received, rest: BytesMut::new() }))
    }
}

/// A copy whose files are there.
struct Made {
    folder: Folder,
    /// What the file about it says.
    about: String,
    /// Its files with their lengths, by name.
    files: Vec<(String, u64)>,
}

/// Makes the files of a copy.
fn make(folder: Folder, state: &State, cluster: ClusterId, member: NodeId) -> Result<Made, StorageFailed> {
    state.checkpoint(&folder.path)?;
    let look = |view: &dyn machine::Read| {
        let applied = machine::read::applied(view)?;
        Ok((applied.index, applied.term, machine::read::current_revision(view)?))
    };
    let (index, term, revision) = look_into(&folder.path, look).and_then(|looked| looked)?;
    let version = env!("CARGO_PKG_VERSION");
    let about = format!(
        "raft-kv copy 1\nversion {version}\ncluster {cluster}\nmember {member}\nrevision {revision}\n\
         index {index}\nterm {term}\n"
    );
    let failed = |error: io::Error| StorageFailed::io(folder.path.display().to_string(), "reading", &error);
    let files = files(&folder.path).map_err(failed)?;
    Ok(Made { folder, about, files })
}

/// The files of a checkpoint with their lengths, by name.
fn files(folder: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()));
        }
    }
    files.sort();
    Ok(files)
}

fn send(folder: &Folder, about: &str, files: &[(String, u64)], blocks: mpsc::Sender<io::Result<Bytes>>) {
    let mut out = Blocks { blocks, block: BytesMut::with_capacity(BLOCK), digest: Context::new(&SHA256) };
    if let Err(error) = write(folder, about, files, &mut out) {
        // The reader may have gone, which ends the copy as well.
        let _ = out.blocks.blocking_send(Err(error));
    }
}

fn write(folder: &Folder, about: &str, files: &[(String, u64)], out: &mut Blocks) -> io::Result<()> {
    let mut tar = tar::Builder::new(&mut *out);
    let mut add = |name: &str, len: u64, content: &mut dyn io::Read| {
        let mut header = tar::Header::new_gnu();
        header.set_size(len);
        header.set_mode(0o600);
        tar.append_data(&mut header, name, content)
    };
    add(ABOUT, about.len() as u64, &mut about.as_bytes())?;
    for (name, len) in files {
        // No more than was announced, should a file have grown.
        let mut content = io::Read::take(File::open(folder.path.join(name))?, *len);
        add(&format!("state/{name}"), *len, &mut content)?;
    }
    tar.finish()?;
    drop(tar);
    out.end()
}

/// Gathers what is written into blocks for the reader, and waits where it is slow.
struct Blocks {
    blocks: mpsc::Sender<io::Result<Bytes>>,
    block: BytesMut,
    digest: Context,
}

impl Blocks {
    fn hand_on(&mut self, block: Bytes) -> io::Result<()> {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads it any more");
        self.blocks.blocking_send(Ok(block)).map_err(gone)
    }

    /// The rest, and the checksum of it all.
    fn end(&mut self) -> io::Result<()> {
        self.flush()?;
        let digest = self.digest.clone().finish();
        self.hand_on(Bytes::copy_from_slice(digest.as_ref()))
    }
}

impl Write for Blocks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        self.digest.update(&bytes[..taken]);
        if self.block.len() == BLOCK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = std::mem::replace(&mut self.block, BytesMut::with_capacity(BLOCK)).freeze();
        self.hand_on(block)
    }
}
