//! Folders of snapshots: checkpoints to send, and one being received.
//!
//! A checkpoint is shared by all to whom it is sent, and stays for them; others go as soon as the
//! log no longer reaches back to them. What has arrived of a snapshot whose transfer broke stays
//! for another try, across a start too, and goes after a while. A received folder is installed
//! only if raft accepted exactly that snapshot.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::error::StorageFailed;
use crate::storage::state::State;
use crate::types::{Index, SnapshotMeta};

#[derive(Default)]
struct Made {
    newest: Option<(Index, PathBuf)>,
    older: Vec<(Index, PathBuf)>,
    sending: usize,
    count: u64,
}

/// Checkpoints of this member's state.
#[derive(Clone)]
pub(super) struct Checkpoints {
    folder: PathBuf,
    made: Arc<Mutex<Made>>,
}

/// Makes a folder, and takes everything in it away but what has the name `keep`.
fn fresh(folder: &Path, keep: &str) -> Result<(), StorageFailed> {
    let fail =
        |action: &'static str| move |error| StorageFailed::io(folder.display().to_string(), action, &error);
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(fail("making the folder"))?;
    for entry in std::fs::read_dir(folder).map_err(fail("listing it"))? {
        let entry = entry.map_err(fail("listing it"))?;
        if entry.file_name() != keep {
            std::fs::remove_dir_all(entry.path()).map_err(fail("removing left-over files"))?;
        }
    }
    Ok(())
}

impl Checkpoints {
    pub(super) fn new(member: &Path) -> Result<Self, StorageFailed> {
        let folder = member.join("checkpoints");
        fresh(&folder, "")?;
        Ok(Self { folder, made: Arc::default() })
    }

    /// How many were made since the start.
    pub(super) fn count(&self) -> u64 {
        self.made.lock().count
    }

    /// Makes one of the state as it is at `meta`. Called by one thread alone; the others are not
    /// kept waiting while it lasts.
    pub(super) fn make(&self, state: &State, meta: &SnapshotMeta) -> Result<(), StorageFailed> {
        self.add(meta.index, |path| state.checkpoint(path))
    }

    fn add(
        &self,
        index: Index,
        write: impl FnOnce(&Path) -> Result<(), StorageFailed>,
    ) -> Result<(), StorageFailed> {
        if self.made.lock().newest.as_ref().is_some_and(|(newest, _)| *newest == index) {
            return Ok(());
        }
        let path = self.folder.join(format!("{index:020}"));
        // One of that index may be left over, put aside and not cleaned yet.
        let taken_up = |made: &mut Made| {
            let at = made.older.iter().position(|(older, _)| *older == index)?;
            Some(made.older.remove(at))
        };
        let again = taken_up(&mut self.made.lock());
        if again.is_none() {
            write(&path)?;
            self.made.lock().count += 1;
        }
        let mut made = self.made.lock();
        let before = made.newest.replace((index, path));
        made.older.extend(before);
        self.clean(&mut made);
        Ok(())
    }

    /// The checkpoint that was announced with `index`, which stays until
    /// [`release`](Self::release); a newer one may have been made meanwhile. A folder that does
    /// not exist where it is gone: sending it fails and raft asks for another.
    pub(super) fn take(&self, index: Index) -> PathBuf {
        let mut made = self.made.lock();
        made.sending += 1;
        let mut all = made.newest.iter().chain(&made.older);
        all.find(|(at, _)| *at == index).map_or_else(|| self.folder.join("none"), |(_, path)| path.clone())
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
                put_away(path);
            }
        }
    }
}

#[derive(Default)]
struct Receiving {
    /// From the start of a transfer until raft has ignored it or it is installed.
    busy: bool,
    whole: Option<(SnapshotMeta, PathBuf)>,
    accepted: Option<(SnapshotMeta, PathBuf)>,
    counter: u64,
}

/// The snapshot being received, at most one, and always in the same folder.
pub struct Incoming {
    folder: PathBuf,
    receiving: Mutex<Receiving>,
}

/// The folder of what is being received. It holds nothing that counts before it is verified whole.
const PARTIAL: &str = "partial";

impl Incoming {
    pub(super) fn new(member: &Path) -> Result<Self, StorageFailed> {
        let folder = member.join("incoming");
        fresh(&folder, PARTIAL)?;
        Ok(Self { folder, receiving: Mutex::default() })
    }

    /// The folder to receive into, with what a transfer that broke has left there; `None` while
    /// another snapshot is under way.
    pub fn start(&self) -> Option<PathBuf> {
        let mut receiving = self.receiving.lock();
        if receiving.busy {
            return None;
        }
        receiving.busy = true;
        receiving.counter += 1;
        Some(self.folder.join(PARTIAL))
    }

    /// The transfer broke. What has arrived stays for another try where `keep` says so, until
    /// [`forget`](Self::forget) is called with what this returns.
    pub fn broken(&self, keep: bool) -> u64 {
        if !keep {
            put_away(self.folder.join(PARTIAL));
        }
        let mut receiving = self.receiving.lock();
        receiving.busy = false;
        receiving.counter
    }

    /// Takes away what a transfer left that broke, unless another one has begun since the one
    /// with that number; 0 is for what was there at the start.
    pub fn forget(&self, counter: u64) {
        let receiving = self.receiving.lock();
        if !receiving.busy && receiving.counter == counter {
            put_away(self.folder.join(PARTIAL));
        }
    }

    /// All files are there; raft decides next.
    pub(super) fn whole(&self, meta: SnapshotMeta, folder: PathBuf) {
        self.receiving.lock().whole = Some((meta, folder));
    }

    /// Raft has accepted or ignored what was received.
    pub(super) fn settle(&self, accepted: bool) {
        let mut receiving = self.receiving.lock();
        let Some((meta, folder)) = receiving.whole.take() else {
            return;
        };
        if accepted {
            receiving.accepted = Some((meta, folder));
        } else {
            receiving.busy = false;
            put_away(folder);
        }
    }

    /// What raft accepted is the state now, and the loop was told.
    pub(super) fn installed(&self) {
        self.receiving.lock().busy = false;
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

/// Removes a folder; what can't be removed now goes at the next start. The files may be many and
/// large, and the callers carry the loop: a thread of its own does it. Its name is free at once.
fn put_away(folder: PathBuf) {
    // One of that name may be on its way out still.
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let aside = folder.with_extension(format!("gone{}", COUNTER.fetch_add(1, Ordering::Relaxed)));
    if let Err(error) = std::fs::rename(&folder, &aside) {
        if error.kind() != std::io::ErrorKind::NotFound {
            tracing::warn!(%error, folder = %folder.display(), "could not put a folder away");
        }
        return;
    }
    super::spawn("raft-kv remove", move || {
        if let Err(error) = std::fs::remove_dir_all(&aside) {
            tracing::warn!(%error, folder = %aside.display(), "could not remove a folder");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(index: Index) -> SnapshotMeta {
        SnapshotMeta { index, term: 1, ..SnapshotMeta::default() }
    }

    fn write(path: &Path) -> Result<(), StorageFailed> {
        std::fs::create_dir(path).map_err(|error| StorageFailed::io("test", "making", &error))
    }

    #[test]
    fn the_checkpoint_that_was_announced_is_sent_though_a_newer_one_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let all = Checkpoints::new(dir.path()).unwrap();
        all.add(5, write).unwrap();
        let first = all.take(5);
        all.add(9, write).unwrap();
        all.add(9, |_| panic!("it is there already")).unwrap();
        assert_eq!(all.count(), 2);
        assert!(first.ends_with(format!("{:020}", 5)) && first.exists(), "kept while it is sent");
        assert_eq!(all.take(5), first);
        assert!(all.take(9).exists());
        assert!(!all.take(7).exists(), "never made");
        (0..3).for_each(|_| all.release());
        assert!(first.exists());
        all.release();
        assert!(!first.exists() && all.take(9).exists());
        all.release();
        all.forget_before(9);
        assert!(all.take(9).exists());
        all.release();
        all.forget_before(10);
        assert!(!all.take(9).exists());
    }

    #[test]
    fn a_checkpoint_put_aside_while_it_is_sent_is_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let all = Checkpoints::new(dir.path()).unwrap();
        all.add(5, write).unwrap();
        all.take(5);
        all.forget_before(6);
        all.add(5, |_| panic!("it is there already")).unwrap();
        all.release();
        assert!(all.take(5).exists());
    }

    #[test]
    fn making_one_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let all = Checkpoints::new(dir.path()).unwrap();
        let other = all.clone();
        all.add(5, |path| {
            other.take(4);
            other.release();
            other.forget_before(2);
            write(path)
        })
        .unwrap();
    }

    #[test]
    fn left_overs_go_at_the_start_but_what_has_arrived() {
        let dir = tempfile::tempdir().unwrap();
        let partial = Incoming::new(dir.path()).unwrap().start().unwrap();
        let old = partial.with_extension("gone7");
        std::fs::create_dir(&partial).unwrap();
        std::fs::create_dir(&old).unwrap();
        let incoming = Incoming::new(dir.path()).unwrap();
        assert!(partial.exists() && !old.exists());
        incoming.forget(0);
        assert!(!partial.exists());
    }

    #[test]
    fn what_has_arrived_goes_after_a_while_but_not_from_under_another_try() {
        let dir = tempfile::tempdir().unwrap();
        let incoming = Incoming::new(dir.path()).unwrap();
        let folder = incoming.start().unwrap();
        std::fs::create_dir(&folder).unwrap();
        let first = incoming.broken(true);
        assert_eq!(incoming.start().as_ref(), Some(&folder), "where the first try was");
        incoming.forget(first);
        assert!(folder.exists(), "it is being received");
        let second = incoming.broken(true);
        incoming.forget(first);
        assert!(folder.exists(), "another try has been since");
        incoming.forget(second);
        assert!(!folder.exists());
    }

    #[test]
    fn one_snapshot_is_received_at_a_time_until_it_is_installed() {
        let dir = tempfile::tempdir().unwrap();
        let incoming = Incoming::new(dir.path()).unwrap();
        let begin = || {
            let folder = incoming.start().unwrap();
            std::fs::create_dir(&folder).unwrap();
            folder
        };
        let busy = || assert_eq!(incoming.start(), None);
        // Broken on the way.
        let folder = begin();
        busy();
        incoming.broken(false);
        assert!(!folder.exists());
        // Whole, and ignored by raft.
        let folder = begin();
        incoming.whole(meta(3), folder.clone());
        busy();
        incoming.settle(false);
        assert!(!folder.exists());
        // Whole and accepted: its folder is there until it is installed.
        let folder = begin();
        incoming.whole(meta(4), folder.clone());
        incoming.settle(true);
        busy();
        assert_eq!(incoming.take(&meta(4)).unwrap(), folder);
        busy();
        // To install it moves it.
        std::fs::remove_dir(&folder).unwrap();
        incoming.installed();
        begin();
    }

    #[test]
    fn another_snapshot_than_the_accepted_one_is_never_installed() {
        let dir = tempfile::tempdir().unwrap();
        let incoming = Incoming::new(dir.path()).unwrap();
        assert!(incoming.take(&meta(1)).is_err());
        incoming.whole(meta(4), incoming.start().unwrap());
        incoming.settle(true);
        assert!(incoming.take(&meta(5)).is_err());
    }
}
