//! The state machine's tables on RocksDB, without a log of its own: the raft log is its log.
//!
//! What is written survives a crash only once it is flushed; a crash falls back to one earlier
//! batch, the same in all tables. The first failure is final: every later read, write and flush
//! returns it, nothing is retried.
//!
//! The data directory holds one folder `db-<generation>`; [`checkpoint`](super::checkpoint)
//! installs a new one by a single rename. A directory without any is a new, empty store: whether
//! it should have been there, only the raft log knows.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use rocksdb::{
    BottommostLevelCompaction, ColumnFamily, CompactOptions, DB, Direction, FlushOptions, IteratorMode,
    ReadOptions, Snapshot, WriteBatch, WriteOptions, properties,
};

pub use super::rocks::StateOptions;
use super::rocks::{Setup, failed, tables_of};
use crate::error::StorageFailed;
use crate::machine::store::{Batch, Pairs, Read, Store, Table};
use crate::planted;

/// The store of one member. Clones are handles of the same store; one of them writes.
#[derive(Clone)]
pub struct State {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    /// The data directory.
    pub(super) dir: PathBuf,
    pub(super) setup: Setup,
    /// The database in use; readers keep the one they started with.
    pub(super) current: ArcSwap<Database>,
    /// Held while writing and while the database is exchanged, so that no write goes to a
    /// database that has been replaced.
    pub(super) writing: Mutex<()>,
    /// The first failure.
    failure: OnceLock<StorageFailed>,
}

/// One open generation. It closes when its last user lets go, and takes its folder along if
/// another generation has replaced it.
pub(super) struct Database {
    // An option only so that dropping can close it before its folder goes.
    db: Option<DB>,
    pub(super) folder: PathBuf,
    pub(super) generation: u64,
    pub(super) replaced: AtomicBool,
}

impl Database {
    pub(super) fn new(db: DB, folder: PathBuf, generation: u64) -> Self {
        Self { db: Some(db), folder, generation, replaced: AtomicBool::new(false) }
    }

    pub(super) fn db(&self) -> &DB {
        self.db.as_ref().expect("it is open until it is dropped")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.db = None;
        if self.replaced.load(Ordering::Acquire) {
            // What is left over is removed by the next open.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Sizes, in bytes unless said otherwise. Estimates of RocksDB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StateStats {
    /// Keys in [`Table::Live`] (a count).
    pub live_keys: u64,
    /// Data that is not superseded, compressed.
    pub live_data: u64,
    /// Files on disk.
    pub disk: u64,
    /// Written and not yet flushed, in memory.
    pub write_buffers: u64,
    /// The block cache.
    pub block_cache: u64,
    /// Memory of open tables outside the cache.
    pub table_readers: u64,
    /// Work that compaction is behind.
    pub pending_compaction: u64,
}

impl State {
    /// Opens the store in `dir`, making the directory (mode 0700) and an empty store where there
    /// is none. Removes what an interrupted exchange left behind.
    ///
    /// # Errors
    /// The directory is in use by another process, unreadable, damaged, or of a newer version.
    pub fn open(dir: &Path, options: StateOptions) -> Result<Self, StorageFailed> {
        make_private_dir(dir)?;
        let setup = Setup::new(options);
        let generations = generations(dir)?;
        let generation = match generations.last() {
            Some(newest) => *newest,
            None => create_first(dir, &setup)?,
        };
        let folder = generation_folder(dir, generation);
        let db = setup.open(&folder, false)?;
        refuse_cut_tables(&db, &folder)?;
        // Only now, with its lock held, is it certain that nobody else uses the directory.
        for older in generations.into_iter().filter(|other| *other != generation) {
            let folder = generation_folder(dir, older);
            fs::remove_dir_all(&folder).map_err(|error| io_failed(&folder, "removing", &error))?;
        }
        let current = ArcSwap::from_pointee(Database::new(db, folder, generation));
        let shared =
            Shared { dir: dir.into(), setup, current, writing: Mutex::new(()), failure: OnceLock::new() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The first failure, which every later call answers.
    pub fn failure(&self) -> Option<StorageFailed> {
        self.shared.failure.get().cloned()
    }

    /// Nothing is read from it or written to it any more: `failure` is the answer.
    pub fn condemn(&self, failure: StorageFailed) {
        self.shared.fail(failure);
    }

    /// The folder of the database in use, and the tables that it consists of.
    pub fn tables(&self) -> Result<(PathBuf, Vec<PathBuf>), StorageFailed> {
        let database = self.shared.current.load_full();
        let tables = tables_of(database.db(), &database.folder)?;
        let tables = tables.keys().map(|name| database.folder.join(name)).collect();
        Ok((database.folder.clone(), tables))
    }

    /// Makes the folder of the first generation in `dir`, which holds no store, for files that come from
    /// elsewhere: the store is there once they are, and [`open`](Self::open) finds it.
    pub fn empty_generation(dir: &Path) -> Result<PathBuf, StorageFailed> {
        let folder = generation_folder(dir, 1);
        make_private_dir(dir)?;
        make_private_dir(&folder)?;
        Ok(folder)
    }

    /// Sizes now.
    pub fn stats(&self) -> StateStats {
        let database = self.shared.current.load_full();
        let sum = |name| {
            let of = |table| database.db().property_int_value_cf(family(database.db(), table), name);
            Table::ALL.into_iter().map(|table| of(table).ok().flatten().unwrap_or(0)).sum()
        };
        let live = family(database.db(), Table::Live);
        let live_keys = database.db().property_int_value_cf(live, properties::ESTIMATE_NUM_KEYS);
        StateStats {
            live_keys: live_keys.ok().flatten().unwrap_or(0),
            live_data: sum(properties::ESTIMATE_LIVE_DATA_SIZE),
            disk: sum(properties::TOTAL_SST_FILES_SIZE),
            write_buffers: sum(properties::SIZE_ALL_MEM_TABLES),
            block_cache: self.shared.setup.cache.get_usage() as u64,
            table_readers: sum(properties::ESTIMATE_TABLE_READERS_MEM),
            pending_compaction: sum(properties::ESTIMATE_PENDING_COMPACTION_BYTES),
        }
    }
}

impl State {
    /// Writes all that there is of `table` anew, so that no file has what was overwritten or removed.
    /// For small tables: it takes as long as the table is large.
    pub fn rewrite(&self, table: Table) -> Result<(), StorageFailed> {
        let database = self.shared.current.load_full();
        self.shared.flush(&database)?;
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        let all = None::<&[u8]>;
        database.db().compact_range_cf_opt(family(database.db(), table), all, all, &options);
        self.shared.check(&database)
    }
}

impl Store for State {
    fn view<R>(&self, read: impl FnOnce(&dyn Read) -> R) -> R {
        let database = self.shared.current.load_full();
        let broken = self.shared.check(&database).err().filter(|_| !planted!(ServeDamaged));
        read(&View {
            db: database.db(),
            snapshot: database.db().snapshot(),
            report: &|error| self.shared.fail(failed(&database.folder, "reading", &error)),
            broken,
        })
    }

    fn write(&self, batch: Batch) -> Result<(), StorageFailed> {
        let _writing = self.shared.writing.lock();
        let database = self.shared.current.load_full();
        self.shared.check(&database)?;
        let mut writes = WriteBatch::default();
        for (table, key, value) in &batch.writes {
            let family = family(database.db(), *table);
            match value {
                Some(value) => writes.put_cf(family, key, value),
                None => writes.delete_cf(family, key),
            }
        }
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        let written = database.db().write_opt(writes, &options);
        written.map_err(|error| self.shared.fail(failed(&database.folder, "writing", &error)))
    }

    /// Blocks for as long as the disk takes; meanwhile others read and write. The node reads the
    /// applied index first and calls this from a blocking thread: the index is durable after it.
    fn flush(&self) -> Result<(), StorageFailed> {
        let database = self.shared.current.load_full();
        self.shared.flush(&database)
    }
}

impl Shared {
    /// Flushes all tables of `database` as one.
    pub(super) fn flush(&self, database: &Database) -> Result<(), StorageFailed> {
        self.check(database)?;
        let families: Vec<&ColumnFamily> =
            Table::ALL.into_iter().map(|table| family(database.db(), table)).collect();
        let families: Vec<&&ColumnFamily> = families.iter().collect();
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let flushed = database.db().flush_cfs_opt(&families, &options);
        flushed.map_err(|error| self.fail(failed(&database.folder, "flushing", &error)))
    }

    /// Fails if anything failed before, in the background too.
    pub(super) fn check(&self, database: &Database) -> Result<(), StorageFailed> {
        if let Some(failure) = self.failure.get() {
            return Err(failure.clone());
        }
        match database.db().property_int_value(properties::BACKGROUND_ERRORS) {
            Ok(Some(0)) => Ok(()),
            Ok(_) => {
                let why = background_failed(&database.folder);
                Err(self.fail(io_failed(&database.folder, "flushing or compacting", &why)))
            }
            Err(error) => Err(self.fail(failed(&database.folder, "asking for errors", &error))),
        }
    }

    /// Keeps the first failure; it is the answer from now on.
    pub(super) fn fail(&self, failure: StorageFailed) -> StorageFailed {
        self.failure.get_or_init(|| failure).clone()
    }
}

/// A frozen view of one database.
pub(super) struct View<'a> {
    pub(super) db: &'a DB,
    pub(super) snapshot: Snapshot<'a>,
    /// Makes of an error what the caller gets.
    pub(super) report: &'a dyn Fn(rocksdb::Error) -> StorageFailed,
    /// What had failed before.
    pub(super) broken: Option<StorageFailed>,
}

impl Read for View<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageFailed> {
        if let Some(failure) = &self.broken {
            return Err(failure.clone());
        }
        let found = if planted!(SkipBlockChecksums) {
            let mut options = ReadOptions::default();
            options.set_verify_checksums(false);
            self.snapshot.get_pinned_cf_opt(family(self.db, table), key, options)
        } else {
            self.snapshot.get_pinned_cf(family(self.db, table), key)
        };
        let found = found.map_err(self.report)?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan<'a>(&'a self, table: Table, from: &[u8], to: Option<&[u8]>) -> Pairs<'a> {
        if let Some(failure) = &self.broken {
            return Box::new(std::iter::once(Err(failure.clone())));
        }
        let mut options = ReadOptions::default();
        options.set_total_order_seek(true);
        options.set_verify_checksums(!planted!(SkipBlockChecksums));
        if let Some(to) = to {
            if to <= from {
                return Box::new(std::iter::empty());
            }
            options.set_iterate_upper_bound(to);
        }
        let mode = IteratorMode::From(from, Direction::Forward);
        let pairs = self.snapshot.iterator_cf_opt(family(self.db, table), options, mode);
        Box::new(pairs.map(|pair| match pair {
            Ok((key, value)) => Ok((Bytes::from(key), Bytes::from(value))),
            Err(error) => Err((self.report)(error)),
        }))
    }
}

pub(super) fn family(db: &DB, table: Table) -> &ColumnFamily {
    db.cf_handle(table.name()).expect("every table is opened with the database")
}

pub(super) fn generation_folder(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("db-{generation:08}"))
}

/// RocksDB looks at a table when it first reads it; what can be seen at once is seen now.
fn refuse_cut_tables(db: &DB, folder: &Path) -> Result<(), StorageFailed> {
    let tables: Vec<PathBuf> = tables_of(db, folder)?.keys().map(|name| folder.join(name)).collect();
    match super::check::check_ends(&tables).into_iter().next() {
        None => Ok(()),
        Some(problem) => Err(problem.into()),
    }
}

/// The complete generations in `dir`, ascending.
pub(super) fn generations(dir: &Path) -> Result<Vec<u64>, StorageFailed> {
    let failed = |error: io::Error| io_failed(dir, "listing", &error);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("db-"));
        found.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// Makes the first, empty generation. It gets its name once it is whole, so that a generation
/// that lacks a part is always damage and never a beginning.
fn create_first(dir: &Path, setup: &Setup) -> Result<u64, StorageFailed> {
    let unfinished = dir.join("unfinished");
    if unfinished.exists() {
        // Of a first start that was cut off: nothing was ever kept there.
        fs::remove_dir_all(&unfinished).map_err(|error| io_failed(&unfinished, "removing", &error))?;
    }
    make_private_dir(&unfinished)?;
    drop(setup.open(&unfinished, true)?);
    install(&unfinished, dir, 1)?;
    Ok(1)
}

/// Gives the complete database folder `from` its name as `generation`: the one step that decides
/// which state the next open finds.
pub(super) fn install(from: &Path, dir: &Path, generation: u64) -> Result<PathBuf, StorageFailed> {
    sync_tree(from)?;
    let folder = generation_folder(dir, generation);
    fs::rename(from, &folder).map_err(|error| io_failed(from, "moving into the data directory", &error))?;
    sync(dir)?;
    Ok(folder)
}

/// Makes the files in `folder`, their names and their contents, survive a crash.
pub(super) fn sync_tree(folder: &Path) -> Result<(), StorageFailed> {
    let failed = |error: io::Error| io_failed(folder, "listing", &error);
    for entry in fs::read_dir(folder).map_err(failed)? {
        sync(&entry.map_err(failed)?.path())?;
    }
    sync(folder)
}

/// Syncs one file or folder.
pub(super) fn sync(path: &Path) -> Result<(), StorageFailed> {
    let synced = fs::File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|error| io_failed(path, "syncing", &error))
}

/// Makes `dir` with its parents, for its owner only.
pub(super) fn make_private_dir(dir: &Path) -> Result<(), StorageFailed> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    let closed = made.and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o700)));
    closed.map_err(|error| io_failed(dir, "making the directory", &error))
}

/// Less than this free, in bytes, and a write in the background has most likely failed for want of space:
/// what it had written is gone again by the time that it is looked at.
const HARDLY_ANY_ROOM: u64 = 64 << 20;

/// RocksDB does not say why; how much is free does.
fn background_failed(folder: &Path) -> io::Error {
    let why = "RocksDB reports that a write in the background failed";
    let free = rustix::fs::statvfs(folder).map(|found| found.f_bavail.saturating_mul(found.f_frsize));
    match free {
        Ok(free) if free < HARDLY_ANY_ROOM => {
            io::Error::new(io::ErrorKind::StorageFull, format!("{why}; {free} bytes are free"))
        }
        _ => io::Error::other(why),
    }
}

pub(super) fn io_failed(path: &Path, action: &str, error: &io::Error) -> StorageFailed {
    StorageFailed::io(path.display().to_string(), action, error)
}

#[cfg(test)]
#[path = "state_tests.rs"]
pub(super) mod tests;
