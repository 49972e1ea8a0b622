//! Segment files by name: made ready ahead of use, recycled, and given up.
//!
//! A segment gets its final name only with a synced header, and is written only once that name is
//! synced. It must never be recycled before the cut that frees it is on disk: the caller's duty.

use std::sync::Arc;

use super::format::{Identity, SegmentHeader, salt};
use super::{Options, Shared};
use crate::error::StorageFailed;
use crate::planted;
use crate::storage::files::{File, Files};

/// The marker's name.
pub const MARKER: &str = "marker";
/// The marker's name until the log is made.
pub const MARKER_NEW: &str = "marker-new";

/// The name of the segment `sequence`.
pub fn segment_name(sequence: u64) -> String {
    format!("segment-{sequence:016x}")
}

fn spare_name(number: u64) -> String {
    format!("spare-{number:016x}")
}

/// The sequence in a segment's name.
pub fn segment_sequence(name: &str) -> Option<u64> {
    parse(name, "segment-")
}

fn parse(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?;
    if digits.len() != 16 {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// A segment that is being written.
pub struct Segment<T> {
    pub sequence: u64,
    pub length: u64,
    pub file: T,
}

/// Makes segments ready and takes them back.
pub struct Pool<F: Files> {
    shared: Arc<Shared<F>>,
    options: Options,
    identity: Identity,
    epoch: u64,
    spares: Vec<String>,
    next_spare: u64,
}

impl<F: Files> Pool<F> {
    /// Takes stock of spare files among `names`; those of a wrong size are removed.
    pub fn new(
        shared: Arc<Shared<F>>,
        options: Options,
        identity: Identity,
        epoch: u64,
        names: &[String],
    ) -> Result<Self, StorageFailed> {
        let mut found: Vec<u64> = names.iter().filter_map(|name| parse(name, "spare-")).collect();
        found.sort_unstable();
        let next_spare = found.last().map_or(1, |last| last + 1);
        let mut pool = Self { shared, options, identity, epoch, spares: Vec::new(), next_spare };
        for number in found {
            let name = spare_name(number);
            if pool.spares.len() < options.spare_segments && pool.len(&name)? == options.segment_bytes {
                pool.spares.push(name);
            } else {
                pool.remove(&name)?;
            }
        }
        Ok(pool)
    }

    /// A file named for `sequence`, with a synced header and `length` bytes, ready to be written.
    pub fn prepare(&mut self, sequence: u64, length: u64) -> Result<Segment<F::File>, StorageFailed> {
        let files = &self.shared.files;
        let recycled = if length == self.options.segment_bytes { self.spares.pop() } else { None };
        let stamped = recycled.is_some() && planted!(RecycleUnstamped);
        let (spare, file) = match recycled {
            Some(spare) => {
                let file = files.open(&spare).map_err(|e| self.shared.failed(&spare, "opening it", &e))?;
                (spare, file)
            }
            None => {
                let spare = spare_name(self.next_spare);
                self.next_spare += 1;
                let file =
                    files.create(&spare, length).map_err(|e| self.shared.failed(&spare, "making it", &e))?;
                (spare, file)
            }
        };
        let salt = salt(self.identity, sequence, self.epoch);
        let header = SegmentHeader { identity: self.identity, sequence, salt, length }.encode();
        if !stamped {
            file.write_at(0, &header).map_err(|e| self.shared.failed(&spare, "writing its header", &e))?;
        }
        file.sync().map_err(|e| self.shared.failed(&spare, "syncing it", &e))?;
        let name = segment_name(sequence);
        files.rename(&spare, &name).map_err(|e| self.shared.failed(&spare, "renaming it", &e))?;
        if !planted!(SkipFolderSync) {
            self.sync_folder()?;
        }
        Ok(Segment { sequence, length, file })
    }

    /// Takes back the segments `sequences`, which nothing needs any more.
    pub fn recycle(&mut self, sequences: impl Iterator<Item = u64>) -> Result<(), StorageFailed> {
        let mut changed = false;
        for sequence in sequences {
            changed = true;
            let name = segment_name(sequence);
            if self.spares.len() < self.options.spare_segments
                && self.len(&name)? == self.options.segment_bytes
            {
                let spare = spare_name(self.next_spare);
                self.next_spare += 1;
                self.shared
                    .files
                    .rename(&name, &spare)
                    .map_err(|e| self.shared.failed(&name, "renaming it", &e))?;
                self.spares.push(spare);
            } else {
                self.remove(&name)?;
            }
        }
        // Synced before a spare is written: else its old name could come back with a new header.
        if changed { self.sync_folder() } else { Ok(()) }
    }

    /// Removes the segments `sequences`, which nothing needs any more, and what was kept to be used again:
    /// of what any of them holds nothing stays.
    pub fn wipe(&mut self, sequences: &[u64]) -> Result<(), StorageFailed> {
        if sequences.is_empty() {
            return Ok(());
        }
        let kept = std::mem::take(&mut self.spares);
        for name in kept.into_iter().chain(sequences.iter().map(|sequence| segment_name(*sequence))) {
            self.remove(&name)?;
        }
        self.sync_folder()
    }

    /// See [`Files::sync_folder`].
    pub fn sync_folder(&self) -> Result<(), StorageFailed> {
        self.shared.files.sync_folder().map_err(|e| self.shared.failed("", "syncing the folder", &e))
    }

    fn len(&self, name: &str) -> Result<u64, StorageFailed> {
        let open = self.shared.files.open(name).and_then(|file| file.len());
        open.map_err(|e| self.shared.failed(name, "opening it", &e))
    }

    fn remove(&self, name: &str) -> Result<(), StorageFailed> {
        self.shared.files.remove(name).map_err(|e| self.shared.failed(name, "removing it", &e))
    }
}
