//! A whole copy of a member's state: the content of a backup, and, for etcd's clients, a backup that is neither
//! compressed nor encrypted, then the SHA-256 of it. Its length is a multiple of 512 and 32 more, as they ask of
//! a snapshot.
//!
//! The bytes come from the files of a checkpoint, which are hard links: memory is bounded by a few
//! blocks, and the copy is of one moment however slow the reader is. The files go when the reader
//! does.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use zeroize::Zeroizing;

use super::api::BackupInfo;
use super::backup::container::{Blocks, Form, Sealer, plain_len};
use super::backup::{KEYS, STATE};
use super::local::Local;
use crate::codec::Wire;
use crate::error::{Error, NotDone, StorageFailed};
use crate::machine;
use crate::storage::checkpoint::look_into;
use crate::storage::state::State;
use crate::types::{Caller, ClusterId, HandedKeys, Header, NodeId};

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
/// How long a rollback of several steps is waited for.
const HALF_PATIENCE: Duration = Duration::from_secs(60);
/// How long until it is looked again whether a rollback of several steps is done.
const HALF_PAUSE: Duration = Duration::from_millis(50);

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

/// A copy whose files are there.
pub(super) struct Copied {
    /// What it is of.
    pub(super) info: BackupInfo,
    folder: Folder,
    /// The data keys, where they were asked for.
    keys: Option<Zeroizing<Vec<u8>>>,
    /// Its files with their lengths, by name.
    files: Vec<(String, u64)>,
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
        let copied = self.copied(false).await?;
        let len = plain_len(&copied.info) + SHA256_OUTPUT_LEN as u64;
        let (blocks, received) = mpsc::channel(AHEAD);
        tokio::task::spawn_blocking(move || send(&copied, &blocks));
        Ok((header, Snapshot { len, blocks: received, rest: BytesMut::new() }))
    }

    /// The files of a copy, in its turn; with the data keys for who may have them.
    pub(super) async fn copied(&self, keys: bool) -> Result<Copied, Error> {
        let until = Instant::now() + HALF_PATIENCE;
        loop {
            let turn = self.copies.turns.clone().try_acquire_owned();
            let turn = turn.map_err(|_| Error::NotDone(NotDone::Busy))?;
            let number = self.copies.counter.fetch_add(1, Ordering::Relaxed);
            let folder = Folder { path: self.copies.folder.join(number.to_string()), _turn: turn };
            let (state, cluster, member) = (self.shell.state().clone(), self.cluster, self.me);
            // Those of before it and those of after it: a key may be replaced meanwhile.
            let before = self.keyring.handed();
            // Folder and turn go along: a caller who leaves now must not free either while files are made.
            let made = tokio::task::spawn_blocking(move || make(folder, &state, cluster, member)).await;
            let made: Option<Copied> = made
                .expect("making a checkpoint does not panic")
                .map_err(|failed| Error::Stopped(failed.to_string()))?;
            match made {
                Some(mut copied) => {
                    if keys {
                        copied.add_keys(before, self.keyring.handed());
                    }
                    return Ok(copied);
                }
                // What it has done so far is in it and does not count yet, and nothing would end it.
                None if Instant::now() < until => tokio::time::sleep(HALF_PAUSE).await,
                None => return Err(Error::NotDone(NotDone::Busy)),
            }
        }
    }
}

/// Makes the files of a copy; `None` in the midst of a rollback of several steps.
fn make(
    folder: Folder,
    state: &State,
    cluster: ClusterId,
    member: NodeId,
) -> Result<Option<Copied>, StorageFailed> {
    state.checkpoint(&folder.path)?;
    let look = |view: &dyn machine::Read| {
        let (applied, half) = (machine::read::applied(view)?, machine::read::half_done(view)?);
        Ok((applied.index, applied.term, machine::read::current_revision(view)?, half))
    };
    let (index, term, revision, half) = look_into(&folder.path, look).and_then(|looked| looked)?;
    if half {
        return Ok(None);
    }
    let failed = |error: io::Error| StorageFailed::io(folder.path.display().to_string(), "reading", &error);
    let files = files(&folder.path).map_err(failed)?;
    let room: u64 = files.iter().map(|(_, len)| room_of(*len)).sum();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let (bytes, count) = (room + TAR_END, files.len() as u64);
    let made = super::trust::authority::now();
    let info = BackupInfo {
        cluster,
        member,
        revision,
        index,
        term,
        made,
        version,
        bytes,
        files: count,
        since: 0,
        keys: false,
        follows: Bytes::new(),
    };
    Ok(Some(Copied { info, folder, keys: None, files }))
}

/// What a file takes in a tar.
fn room_of(len: u64) -> u64 {
    TAR_UNIT + len.next_multiple_of(TAR_UNIT)
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

impl Copied {
    fn add_keys(&mut self, before: HandedKeys, after: HandedKeys) {
        let mut all = before.keys;
        all.extend(after.keys);
        all.sort_by_key(|key| key.id);
        all.dedup_by_key(|key| key.id);
        let keys = HandedKeys { keys: all, active: after.active, unlock: None };
        let keys = Zeroizing::new(keys.to_bytes().to_vec());
        self.info.bytes += room_of(keys.len() as u64);
        self.info.keys = true;
        self.keys = Some(keys);
    }

    /// Writes its content: exactly as many bytes as it says.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut tar = tar::Builder::new(out);
        let mut add = |name: &str, len: u64, content: &mut dyn io::Read| {
            let mut header = tar::Header::new_gnu();
            header.set_size(len);
            header.set_mode(0o600);
            tar.append_data(&mut header, name, content)
        };
        if let Some(keys) = &self.keys {
            add(KEYS, keys.len() as u64, &mut keys.as_slice())?;
        }
        for (name, len) in &self.files {
            // No more than was announced, should a file have grown.
            let mut content = io::Read::take(File::open(self.folder.path.join(name))?, *len);
            add(&format!("{STATE}{name}"), *len, &mut content)?;
        }
        tar.finish()
    }
}

fn send(copied: &Copied, blocks: &mpsc::Sender<io::Result<Bytes>>) {
    let hand_on = |block| {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads it any more");
        blocks.blocking_send(Ok(block)).map_err(gone)
    };
    let mut digest = Context::new(&SHA256);
    let sent = (|| {
        let hash_and_hand_on = |block: Bytes| {
            digest.update(&block);
            hand_on(block)
        };
        let out = Blocks { block: BytesMut::with_capacity(BLOCK), size: BLOCK, hand_on: hash_and_hand_on };
        let mut sealer = Sealer::new(out, &copied.info, Form::Plain)?;
        copied.write(&mut sealer)?;
        sealer.finish().map(drop)
    })();
    let sent = sent.and_then(|()| hand_on(Bytes::copy_from_slice(digest.finish().as_ref())));
    if let Err(error) = sent {
        // The reader may have gone, which ends the copy as well.
        let _ = blocks.blocking_send(Err(error));
    }
}
