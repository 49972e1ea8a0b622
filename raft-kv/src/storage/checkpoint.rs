//! Whole copies of the state: what raft sends a member that is behind, made by hard links, and
//! how such a copy takes the place of the state.
//!
//! At every moment, a crash included, the data directory holds the old state or the new one,
//! complete; never a mixture and never neither.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::rocks::{Setup, StateOptions, failed};
use super::state::{
    Database, State, View, generation_folder, generations, install, io_failed, make_private_dir, sync,
    sync_tree,
};
use crate::error::StorageFailed;
use crate::machine::store::Read;

impl State {
    /// Writes a copy of the state as one flat folder of files at `folder`, which must not exist
    /// and must be on the file system of the data directory. It holds everything written before
    /// the call; its files never change and survive a crash. Costs a flush and a hard link a file.
    pub fn checkpoint(&self, folder: &Path) -> Result<(), StorageFailed> {
        let database = self.shared.current.load_full();
        self.shared.flush(&database)?;
        let made = rocksdb::checkpoint::Checkpoint::new(database.db())
            .and_then(|checkpoint| checkpoint.create_checkpoint(folder));
        made.map_err(|error| failed(folder, "making a checkpoint", &error))?;
        make_private_dir(folder)?;
        sync_tree(folder)?;
        folder.parent().map_or(Ok(()), sync)
    }

    /// Writes a copy of the state into the new directory `dir`, on the same file system, such that
    /// [`open`](Self::open) finds it there. Costs what [`checkpoint`](Self::checkpoint) does.
    pub fn copy_to(&self, dir: &Path) -> Result<(), StorageFailed> {
        make_private_dir(dir)?;
        self.checkpoint(&generation_folder(dir, 1))?;
        dir.parent().map_or(Ok(()), sync)
    }

    /// Puts the checkpoint in the folder `with` in the place of the state and takes the folder
    /// away. It must be complete and on the file system of the data directory. Views that are
    /// open finish on the old state, whose files go when the last of them ends.
    ///
    /// # Errors
    /// Where `with` cannot be opened, the state stays as it was and this handle stays usable.
    pub fn replace(&self, with: &Path) -> Result<(), StorageFailed> {
        let shared = &self.shared;
        let _writing = shared.writing.lock();
        let old = shared.current.load_full();
        shared.check(&old)?;
        // Opened once before it counts: a damaged copy must not displace a sound state.
        drop(shared.setup.open(with, false)?);
        make_private_dir(with)?;
        let generation = old.generation + 1;
        // From here on a failure leaves it open which of the two the next open finds.
        let installed = install(with, &shared.dir, generation).and_then(|folder| {
            let db = shared.setup.open(&folder, false)?;
            Ok(Database::new(db, folder, generation))
        });
        let new = installed.map_err(|failure| shared.fail(failure))?;
        shared.current.store(Arc::new(new));
        old.replaced.store(true, Ordering::Release);
        Ok(())
    }
}

/// Runs `read` on the checkpoint in `folder`, changing nothing there: to see what it holds before
/// it is installed.
pub fn look_into<R>(folder: &Path, read: impl FnOnce(&dyn Read) -> R) -> Result<R, StorageFailed> {
    fs::metadata(folder).map_err(|error| io_failed(folder, "opening", &error))?;
    let options = StateOptions { block_cache_bytes: 1 << 20, ..StateOptions::default() };
    let db = Setup::new(options).open_to_read(folder)?;
    let report = |error| failed(folder, "reading", &error);
    Ok(read(&View { db: &db, snapshot: db.snapshot(), report: &report, broken: None }))
}

/// Runs `read` on the state in `dir`, which nobody has open, changing nothing there; `None` where there is none.
pub fn look<R>(dir: &Path, read: impl FnOnce(&dyn Read) -> R) -> Result<Option<R>, StorageFailed> {
    if !dir.exists() {
        return Ok(None);
    }
    let newest = generations(dir)?.pop();
    newest.map(|newest| look_into(&generation_folder(dir, newest), read)).transpose()
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
