//! How RocksDB is set up here, and what its errors mean to us. It decides no order of writes.

use std::collections::BTreeMap;
use std::path::Path;

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ChecksumType, ColumnFamilyDescriptor, DB,
    DBCompressionType, Error as RocksError, ErrorKind, LogLevel, Options, WriteBufferManager,
};

use crate::error::StorageFailed;
use crate::machine::store::Table;

/// Bytes of memory and threads that the state may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StateOptions {
    /// Cache of uncompressed blocks, their indexes and filters included, in bytes.
    pub block_cache_bytes: usize,
    /// Writes kept in memory before they go to disk, all tables together, in bytes. It also
    /// bounds how much of the raft log is replayed after a crash.
    pub write_buffer_bytes: usize,
    /// Threads for flushes and compactions.
    pub background_jobs: i32,
}

impl Default for StateOptions {
    fn default() -> Self {
        Self { block_cache_bytes: 64 << 20, write_buffer_bytes: 64 << 20, background_jobs: 2 }
    }
}

/// What all databases of one `State` share: the old one and its replacement included, so that
/// an exchange does not double the memory.
pub(super) struct Setup {
    options: StateOptions,
    pub(super) cache: Cache,
    buffers: WriteBufferManager,
}

impl Setup {
    pub(super) fn new(options: StateOptions) -> Self {
        Self {
            options,
            cache: Cache::new_lru_cache(options.block_cache_bytes),
            buffers: WriteBufferManager::new_write_buffer_manager(options.write_buffer_bytes, false),
        }
    }

    /// Opens the database in `folder`; makes one there only if `create`.
    pub(super) fn open(&self, folder: &Path, create: bool) -> Result<DB, StorageFailed> {
        let mut options = self.database();
        options.create_if_missing(create);
        if !create {
            refuse_unknown_tables(&options, folder)?;
        }
        DB::open_cf_descriptors(&options, folder, self.tables()).map_err(|error| open_failed(folder, &error))
    }

    /// Opens the database in `folder` to look at it, changing nothing.
    pub(super) fn open_to_read(&self, folder: &Path) -> Result<DB, StorageFailed> {
        let options = self.database();
        refuse_unknown_tables(&options, folder)?;
        DB::open_cf_descriptors_read_only(&options, folder, self.tables(), false)
            .map_err(|error| open_failed(folder, &error))
    }

    fn database(&self) -> Options {
        let mut options = Options::default();
        // A table that a later version added is empty in an older version's folder.
        options.create_missing_column_families(true);
        // All tables reach the disk together, so a crash leaves them at one and the same batch.
        options.set_atomic_flush(true);
        options.set_write_buffer_manager(&self.buffers);
        options.set_max_background_jobs(self.options.background_jobs);
        options.set_paranoid_checks(true);
        // Enough for 30 GiB; each open one costs memory outside the cache.
        options.set_max_open_files(512);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        options.set_log_level(LogLevel::Warn);
        options.set_bytes_per_sync(1 << 20);
        options
    }

    fn tables(&self) -> impl Iterator<Item = ColumnFamilyDescriptor> {
        Table::ALL.into_iter().map(|table| ColumnFamilyDescriptor::new(table.name(), self.table(table)))
    }

    fn table(&self, table: Table) -> Options {
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&self.cache);
        // Indexes and filters count against the cache: memory does not grow with the keys.
        blocks.set_cache_index_and_filter_blocks(true);
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
        // In pieces: a file of a million keys has a filter of more than a megabyte, which fits no shard
        // of the cache and would be read anew for every key that is looked up.
        blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        blocks.set_partition_filters(true);
        blocks.set_metadata_block_size(16 * 1024);
        blocks.set_pin_top_level_index_and_filter(true);
        // Checksums that depend on a block's place, and one for the footer; of a kind that is known for
        // each beginning of a block: `check` finds damage in every byte of a file so.
        blocks.set_format_version(super::check::TABLE_FORMAT);
        blocks.set_checksum_type(ChecksumType::CRC32c);
        if matches!(table, Table::Live | Table::Past | Table::Once | Table::Lease | Table::Values) {
            blocks.set_bloom_filter(10.0, false);
            blocks.set_whole_key_filtering(true);
            blocks.set_optimize_filters_for_memory(true);
        }
        let mut options = Options::default();
        options.set_block_based_table_factory(&blocks);
        // Level 0 and the one that it goes to first are rewritten soon: speed counts there.
        let mut levels = [DBCompressionType::Zstd; 7];
        levels[..2].fill(DBCompressionType::None);
        options.set_compression_per_level(&levels);
        options.set_compression_options(-14, 1, 0, 0);
        options.set_bottommost_compression_type(DBCompressionType::Zstd);
        options.set_bottommost_compression_options(-14, 1, 0, 0, true);
        options.set_write_buffer_size(self.options.write_buffer_bytes / 4);
        options.set_max_write_buffer_number(3);
        options.set_level_compaction_dynamic_level_bytes(true);
        // Compaction of history removes long runs at the front of a table; without this every
        // scan from the front would step over what was removed.
        options.add_compact_on_deletion_collector_factory(4096, 2048, 0.5);
        options
    }
}

/// A table this version does not know must not be dropped silently.
fn refuse_unknown_tables(options: &Options, folder: &Path) -> Result<(), StorageFailed> {
    let names = DB::list_cf(options, folder).map_err(|error| open_failed(folder, &error))?;
    let known = |name: &String| name == "default" || Table::ALL.iter().any(|table| table.name() == name);
    match names.iter().find(|name| !known(name)) {
        None => Ok(()),
        Some(name) => Err(StorageFailed {
            file: folder.display().to_string(),
            why: format!("it holds a table {name:?} that this version does not know"),
            next: "it was written by a newer version: start that version, or a later one".into(),
        }),
    }
}

/// The tables that the database in `folder` consists of, and their lengths; looked at, not changed.
pub(super) fn live_tables(folder: &Path) -> Result<BTreeMap<String, u64>, StorageFailed> {
    let options = StateOptions { block_cache_bytes: 1 << 20, ..StateOptions::default() };
    let db = Setup::new(options).open_to_read(folder)?;
    tables_of(&db, folder)
}

/// The same of an open one.
pub(super) fn tables_of(db: &DB, folder: &Path) -> Result<BTreeMap<String, u64>, StorageFailed> {
    let files = db.live_files().map_err(|error| failed(folder, "listing its tables", &error))?;
    let name = |name: &str| name.trim_start_matches('/').to_owned();
    Ok(files.iter().map(|file| (name(&file.name), file.size as u64)).collect())
}

/// The file and the offset that a message of RocksDB names.
pub(super) fn place_in(why: &str) -> Option<(String, Option<u64>)> {
    let path = why.split_whitespace().find(|word| word.starts_with('/') && word.contains(".sst"))?;
    let offset = why.split_once(" offset ").and_then(|(_, rest)| rest.split_whitespace().next());
    Some((path.trim_end_matches([',', ';', ':']).to_owned(), offset.and_then(|offset| offset.parse().ok())))
}

/// What a failure to open means and what to do about it.
fn open_failed(folder: &Path, error: &RocksError) -> StorageFailed {
    let text = error.to_string();
    if error.kind() == ErrorKind::IOError && text.contains("LOCK") && !text.contains("ermission denied") {
        return StorageFailed {
            file: folder.join("LOCK").display().to_string(),
            why: "the data directory is in use: another process holds this lock".into(),
            next: "stop the other process, or give this one a data directory of its own".into(),
        };
    }
    let missing_part = error.kind() == ErrorKind::IOError && text.contains("No such file");
    if missing_part {
        return StorageFailed::damaged(folder.display().to_string(), format!("a file is missing: {text}"));
    }
    failed(folder, "opening", error)
}

/// What a failure during `action` means.
pub(super) fn failed(folder: &Path, action: &str, error: &RocksError) -> StorageFailed {
    let file = folder.display().to_string();
    match error.kind() {
        ErrorKind::Corruption
        | ErrorKind::NotFound
        | ErrorKind::InvalidArgument
        | ErrorKind::NotSupported => StorageFailed::damaged(file, format!("{action} failed: {error}")),
        _ => {
            let text = error.to_string();
            let full = text.contains("No space left on device");
            let kind = if full { std::io::ErrorKind::StorageFull } else { std::io::ErrorKind::Other };
            StorageFailed::io(file, action, &std::io::Error::new(kind, text))
        }
    }
}
