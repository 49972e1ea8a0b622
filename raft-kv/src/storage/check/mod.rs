//! Whether files on disk are what was written: every byte of them that anything rests on, with the place
//! of what is not.
//!
//! It reads and never writes. It must never call a sound file damaged: a member acts on what is said here.

mod manifest;
mod sst;
mod state;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(in crate::storage) use state::check_manifest;
pub use state::{StateFound, check_ends, check_files, check_state, locate};

use crate::error::StorageFailed;
use crate::storage::log::{LogFound, verify};

/// The format of table files that is understood here, and so the one that is written.
pub(super) const TABLE_FORMAT: i32 = sst::FORMAT as i32;

/// Bytes read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// What a problem means for the member.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Harm {
    /// Nothing is lost: it is left over, or not as it should be.
    Note,
    /// Another copy on this disk has it; the next start makes it good.
    Spare,
    /// It was lost on this disk.
    Damage,
}

/// One thing that is not as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The file or folder.
    pub file: String,
    /// Where in it, in bytes, where that is known.
    pub offset: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// What it means.
    pub harm: Harm,
}

impl Problem {
    /// Something that is lost.
    pub fn damage(file: &Path, offset: impl Into<Option<u64>>, what: impl Into<String>) -> Self {
        let file = file.display().to_string();
        Self { file, offset: offset.into(), what: what.into(), harm: Harm::Damage }
    }

    /// Something that is only worth a word.
    pub fn note(file: &Path, what: impl Into<String>) -> Self {
        Self { harm: Harm::Note, ..Self::damage(file, None, what) }
    }

    /// Something that another copy has.
    pub fn spare(file: &Path, offset: impl Into<Option<u64>>, what: impl Into<String>) -> Self {
        Self { harm: Harm::Spare, ..Self::damage(file, offset, what) }
    }

    /// A file that can't be read.
    pub fn unreadable(file: &Path, error: &io::Error) -> Self {
        let what = match error.kind() {
            io::ErrorKind::NotFound => "it is missing".to_owned(),
            _ => format!("it can't be read: {error}"),
        };
        Self::damage(file, None, what)
    }
}

impl From<Problem> for StorageFailed {
    fn from(problem: Problem) -> Self {
        let what = match problem.offset {
            Some(offset) => format!("at offset {offset}: {}", problem.what),
            None => problem.what,
        };
        Self::damaged(problem.file, what)
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.offset {
            Some(offset) => write!(f, "{}: at offset {offset}: {}", self.file, self.what),
            None => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

/// Told of each read before it is made. The answer `false` ends the whole check: nothing more is read
/// and nothing said of what was not read to its end.
pub type Pace<'a> = &'a mut dyn FnMut(u64) -> bool;

/// Why a file was not read to its end.
#[derive(Debug)]
pub enum Cut {
    /// The pace said so.
    Stopped,
    /// The disk did.
    Failed(io::Error),
}

impl From<io::Error> for Cut {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// A file read in order, in bounded memory, with a look ahead.
struct Bytes<'a, 'b> {
    file: File,
    len: u64,
    at: u64,
    chunk: Vec<u8>,
    pace: &'a mut Pace<'b>,
}

impl<'a, 'b> Bytes<'a, 'b> {
    fn open(path: &Path, pace: &'a mut Pace<'b>) -> Result<Self, Cut> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, len, at: 0, chunk: Vec::new(), pace })
    }

    /// What lies from `offset` on: at least `least` bytes, or all that there are up to the file's end.
    fn from(&mut self, offset: u64, least: usize) -> Result<&[u8], Cut> {
        let end = self.at + self.chunk.len() as u64;
        let least = (least as u64).min(self.len.saturating_sub(offset));
        if offset < self.at || offset + least > end || (offset == end && end < self.len) {
            let bytes = (self.len.saturating_sub(offset)).min(CHUNK_BYTES.max(least as usize) as u64);
            if !(self.pace)(bytes) {
                return Err(Cut::Stopped);
            }
            self.chunk.resize(bytes as usize, 0);
            self.file.read_exact_at(&mut self.chunk, offset)?;
            self.at = offset;
        }
        Ok(&self.chunk[(offset - self.at) as usize..])
    }
}

/// RocksDB's way to store a checksum beside what it covers.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Checks the raft log in the folder `dir`. `live` where a member is writing it: what may be written at this
/// moment is left out.
pub fn check_log(dir: &Path, live: bool, pace: Pace<'_>) -> Result<(Vec<Problem>, Option<LogFound>), Cut> {
    verify(dir, live, pace)
}

#[cfg(test)]
mod tests;
