//! The files below the raft log. Two implementations: the real folder ([`FolderFiles`]), and the
//! simulator's disk that loses what was not synced, tears writes, fails, fills up and flips bits.
//! One conformance suite (`files_conformance`) runs on both.

use std::io;

#[cfg(any(test, feature = "sim"))]
mod conformance;
mod folder;

#[cfg(any(test, feature = "sim"))]
pub use conformance::files_conformance;
pub use folder::{FolderFile, FolderFiles};

/// A flat folder of files.
pub trait Files: Send + Sync + 'static {
    /// An open file.
    type File: File + 'static;

    /// Names of all files, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Makes a new file of `len` zero bytes that are allocated and written, not sparse. Fails if
    /// it exists. Content and name are safe after [`File::sync`] and [`sync_folder`](Self::sync_folder).
    fn create(&self, name: &str, len: u64) -> io::Result<Self::File>;
    /// Renames, replacing the target.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creates, renames and removes so far survive a crash.
    fn sync_folder(&self) -> io::Result<()>;
    /// The folder's name in messages.
    fn describe(&self) -> String;
}

/// An open file. Several handles of one file may be open; one of them writes.
#[allow(clippy::len_without_is_empty)] // Nobody asks whether a file is empty.
pub trait File: Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Reads exactly `buf.len()` bytes at `offset`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes writes so far survive a crash (`fdatasync`). After an error nobody may write here
    /// again: the caller stops the process.
    fn sync(&self) -> io::Result<()>;
}
