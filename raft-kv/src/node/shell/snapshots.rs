//! Folders of snapshots: checkpoints to send, and one being received.
//!
//! A checkpoint that is being sent stays; others go as soon as the log no longer reaches back to
//! them. A received folder is installed only if raft accepted exactly that snapshot.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::StorageFailed;
use crate::storage::state::State;
use crate::types::{Index, SnapshotMeta};

#[derive(Default)]
struct Made {
    newest: Option<(Index, PathBuf)>,
    older: Vec<(Index, PathBuf)>,
    sending: usize,
}

/// Checkpoints of this member's state.
#[derive(Clone)]
pub(super) struct Checkpoints {
    folder: PathBuf,
    made: Arc<Mutex<Made>>,
}

fn fresh(folder: &Path) -> Result<(), StorageFailed> {
    let describe = || folder.display().to_string();
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(StorageFailed::io(describe(), "removing left-over files", &error));
        }
        _ => {}
    }
    std::fs::create_dir_all(folder)
        .map_err(|error| StorageFailed::io(describe(), "making the folder", &error))
}

impl Checkpoints {
    pub(super) fn new(member: &Path) -> Result<Self, StorageFailed> {
        let folder = member.join("checkpoints");
        fresh(&folder)?;
        Ok(Self { folder, made: Arc::default() })
    }

    pub(super) fn make(&self, state: &State, meta: &SnapshotMeta) -> Result<(), StorageFailed> {
        let path = self.folder.join(format!("{:020}", meta.index));
        let mut made = self.made.lock();
        if made.newest.as_ref().is_some_and(|(index, _)| *index == meta.index) {
            return Ok(());
        }
        state.checkpoint(&path)?;
        let before = made.newest.replace((meta.index, path));
        made.older.extend(before);
        self.clean(&mut made);
        Ok(())
    }

    /// The newest checkpoint, which stays until [`release`](Self::release).
    pub(super) fn take(&self) -> PathBuf {
        let mut made = self.made.lock();
        made.sending += 1;
        made.newest.as_ref().map(|(_, path)| path.clone()).unwrap_or_else(|| self.folder.join("none"))
    }

    pub(super) fn release(&self) {
        let mut made = self.made.lock();
        made.sending = made.sending.saturating_sub(1);
        self.clean(&mut made);
    }

    pub(super) fn forget_before(&self, index: Index) {
        let mut made = self.made.lock();
        if let Some(newest) = made.newest.take_if(|(at, _)| *at < index) {
            made.older.push(newest);
        }
        self.clean(&mut made);
    }

    fn clean(&self, made: &mut Made) {
        if made.sending == 0 {
            for (_, path) in made.older.drain(..) {
                remove(&path);
            }
        }
    }
}

#[derive(Default)]
struct Receiving {
    /// From the start of a transfer until raft has accepted or ignored it.
    busy: bool,
    whole: Option<(SnapshotMeta, PathBuf)>,
    accepted: Option<(SnapshotMeta, PathBuf)>,
    counter: u64,
}

/// The snapshot being received, at most one.
pub struct Incoming {
    folder: PathBuf,
    receiving: Mutex<Receiving>,
}

impl Incoming {
    pub(super) fn new(member: &Path) -> Result<Self, StorageFailed> {
        let folder = member.join("incoming");
        fresh(&folder)?;
        Ok(Self { folder, receiving: Mutex::default() })
    }

    /// A folder to receive into; `None` while another snapshot is under way.
    pub fn start(&self) -> Option<PathBuf> {
        let mut receiving = self.receiving.lock();
        if receiving.busy {
            return None;
        }
        receiving.busy = true;
        receiving.counter += 1;
        Some(self.folder.join(receiving.counter.to_string()))
    }

    /// The transfer broke: nothing of it stays.
    pub fn broken(&self, folder: &Path) {
        self.receiving.lock().busy = false;
        remove(folder);
    }

    /// All files are there; raft decides next.
    pub(super) fn whole(&self, meta: SnapshotMeta, folder: PathBuf) {
        self.receiving.lock().whole = Some((meta, folder));
    }

    /// Raft has accepted or ignored what was received.
    pub(super) fn settle(&self, accepted: bool) {
        let mut receiving = self.receiving.lock();
        receiving.busy = false;
        let whole = receiving.whole.take();
        let useless = if accepted { std::mem::replace(&mut receiving.accepted, whole) } else { whole };
        if let Some((_, folder)) = useless {
            remove(&folder);
        }
    }

    pub(super) fn take(&self, meta: &SnapshotMeta) -> Result<PathBuf, StorageFailed> {
        match self.receiving.lock().accepted.take() {
            Some((at, path)) if at.index == meta.index && at.term == meta.term => Ok(path),
            _ => Err(StorageFailed::damaged(
                self.folder.display().to_string(),
                format!("the snapshot up to entry {} that raft accepted is not here", meta.index),
            )),
        }
    }
}

fn remove(folder: &Path) {
    // What can't be removed now goes at the next start.
    if let Err(error) = std::fs::remove_dir_all(folder) {
        tracing::warn!(%error, folder = %folder.display(), "could not remove a folder");
    }
}
