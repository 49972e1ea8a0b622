//! A folder of files (a snapshot) from one member to another, on a connection of its own, so that
//! it never stands before a heartbeat.
//!
//! On the one stream: a frame with the header and how much follows. The receiver says what it has
//! from a transfer that broke: for each file its length and SHA-256. Then for each file a frame
//! with its name, its length and from where on it follows, its chunks, each behind a CRC32C over
//! file, offset and bytes, and a frame with the SHA-256 of the whole file. The sender leaves out
//! only what has the same SHA-256 at its own side, whichever copy it was from. The receiver answers
//! once everything is verified and synced; what is not verified is never called whole.

mod receive;
mod send;

use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;

use super::frame::{FrameError, FrameReader};
use crate::codec::{Wire, wire_enum, wire_struct};
use crate::error::{Error, NotDone, Refusal, StorageFailed, Unknown};
use crate::limits::BULK_STALL;

pub use receive::{BulkConn, BulkIncoming};

/// Longest name of a file, in bytes.
const MAX_FILE_NAME: usize = 255;
/// Bytes read at once where a file is only looked at.
const LOOK_BYTES: usize = 256 * 1024;

/// Why a transfer failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BulkError {
    /// The connection, or what came over it. The folder is not complete; try again.
    #[error(transparent)]
    Transfer(#[from] Error),
    /// This side's disk.
    #[error(transparent)]
    Storage(#[from] StorageFailed),
}

impl BulkError {
    /// Whether what has arrived so far may be gone on from: the connection broke, nothing was wrong.
    pub fn may_go_on(&self) -> bool {
        !matches!(self, Self::Transfer(Error::Refused(_)) | Self::Storage(_))
    }
}

impl From<Refusal> for BulkError {
    fn from(refusal: Refusal) -> Self {
        Self::Transfer(refusal.into())
    }
}

struct Head {
    header: Bytes,
    files: u32,
    bytes: u64,
}
wire_struct!(Head { header, files, bytes });

/// What a receiver has of a file.
struct Part {
    name: String,
    len: u64,
    digest: Bytes,
}
wire_struct!(Part { name, len, digest });

/// What a receiver says.
enum Said {
    /// It has this already.
    Has(Part),
    /// That was all: the files may come.
    Begin,
    /// The transfer is done, or is not wanted.
    Ended(Result<(), Error>),
}
wire_enum!(Said { 0 => Has(part), 1 => Begin, 2 => Ended(result) });

struct FileHead {
    name: String,
    len: u64,
    /// Where its chunks begin: what is before has the receiver.
    from: u64,
}
wire_struct!(FileHead { name, len, from });

/// Behind a file's chunks.
struct FileEnd {
    digest: Bytes,
}
wire_struct!(FileEnd { digest });

fn checksum(file: u32, offset: u64, data: &[u8]) -> u32 {
    let place = crc32c::crc32c_append(crc32c::crc32c(&file.to_le_bytes()), &offset.to_le_bytes());
    crc32c::crc32c_append(place, data)
}

fn malformed(what: impl Into<String>) -> BulkError {
    Refusal::Malformed { what: what.into() }.into()
}

fn lost() -> BulkError {
    Error::Unknown(Unknown::ConnectionLost).into()
}

fn failed(path: &Path, action: &str, error: &std::io::Error) -> StorageFailed {
    StorageFailed::io(path.display().to_string(), action, error)
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("file work does not panic")
}

/// Takes the next `len` bytes of `file` into a digest.
fn look(file: &mut impl std::io::Read, mut len: u64) -> std::io::Result<Context> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; LOOK_BYTES.min(usize::try_from(len).unwrap_or(LOOK_BYTES))];
    while len > 0 {
        let most = buffer.len().min(usize::try_from(len).unwrap_or(usize::MAX));
        file.read_exact(&mut buffer[..most])?;
        context.update(&buffer[..most]);
        len -= most as u64;
    }
    Ok(context)
}

fn digest(context: &Context) -> Bytes {
    Bytes::copy_from_slice(context.clone().finish().as_ref())
}

/// Whether `name` is a plain file's name that can't lead out of its folder.
fn plain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !name.is_empty() && name.len() <= MAX_FILE_NAME && !name.starts_with('.') && name.chars().all(allowed)
}

async fn next(frames: &mut FrameReader) -> Result<Bytes, BulkError> {
    let late = Error::NotDone(NotDone::Deadline);
    match tokio::time::timeout(BULK_STALL, frames.next()).await.map_err(|_| late)? {
        Ok(Some(frame)) => Ok(frame),
        Ok(None) | Err(FrameError::Lost(_)) => Err(lost()),
        Err(FrameError::Cut) => Err(malformed("a frame is cut short")),
        Err(FrameError::TooLarge { .. }) => Err(malformed("a frame is too large")),
    }
}

async fn read<T: Wire>(frames: &mut FrameReader) -> Result<T, BulkError> {
    T::from_bytes(next(frames).await?).map_err(|error| malformed(error.what))
}

/// The frames of a transfer of one small file, for tests that bend them.
#[cfg(test)]
pub(super) fn frames_of(name: &str, from: u64, content: &[u8]) -> Vec<Bytes> {
    let head = Head { header: Bytes::new(), files: 1, bytes: content.len() as u64 };
    let file = FileHead { name: name.into(), len: content.len() as u64, from };
    let sent = &content[usize::try_from(from).unwrap()..];
    let sum = checksum(0, from, sent).to_le_bytes();
    let end = FileEnd { digest: digest(&look(&mut &content[..], content.len() as u64).unwrap()) };
    vec![head.to_bytes(), file.to_bytes(), [&sum, sent].concat().into(), end.to_bytes()]
}
