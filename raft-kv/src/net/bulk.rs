//! A folder of files (a snapshot) from one member to another, on a connection of its own, so that
//! it never stands before a heartbeat.
//!
//! On the one stream: a frame with the header and how much follows, for each file a frame with
//! its name and length and then its chunks, each behind a CRC32C over file, offset and bytes. The
//! receiver answers once everything is verified and synced. The receiving folder is the caller's
//! to remove when anything fails.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quinn::SendStream;
use tokio::time::Instant;

use super::endpoint::{Endpoint, Held};
use super::frame::{FrameError, FrameReader, write_frames};
use crate::codec::{Wire, wire_struct};
use crate::error::{Error, NotDone, Refusal, StorageFailed, Unknown};
use crate::limits::{
    BULK_CHUNK_BYTES, BULK_STALL, MAX_BULK_FILES, MAX_BULK_FRAME_BYTES, REQUEST_READ_DEADLINE,
};
use crate::pki::{Identity, Purpose};
use crate::types::NodeId;

/// Longest name of a file, in bytes.
const MAX_FILE_NAME: usize = 255;

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

struct FileHead {
    name: String,
    len: u64,
}
wire_struct!(FileHead { name, len });

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

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("file work does not panic")
}

impl Endpoint {
    /// Sends `header` and the files in `dir` to the member `to` at `addr` (`host:port`), at no
    /// more than `rate` bytes per second. Returns when the receiver has verified and synced all.
    /// The folder must not change meanwhile and hold nothing but files.
    ///
    /// # Errors
    /// [`BulkError::Storage`] if a file can't be read, [`BulkError::Transfer`] for the rest.
    pub async fn send_snapshot(
        &self,
        to: NodeId,
        addr: &str,
        header: Bytes,
        dir: &Path,
        rate: Option<u64>,
    ) -> Result<(), BulkError> {
        let folder = dir.to_owned();
        let files = blocking(move || list(&folder)).await?;
        let held = self.dial(Purpose::Bulk, addr, Some(to)).await?;
        let (mut send, recv) = held.connection.open_bi().await.map_err(|_| lost())?;
        let mut answers = FrameReader::new(recv, MAX_BULK_FRAME_BYTES);
        let _ = send.set_priority(-1);
        let pace = Pace { since: Instant::now(), rate, sent: 0 };
        let sent = send_all(&mut send, header, files, pace).await;
        if let Err(error @ BulkError::Storage(_)) = sent {
            let _ = send.reset(0u32.into());
            return Err(error);
        }
        let _ = send.finish();
        // The receiver may have refused halfway: its answer says more than the broken stream.
        match answers.next().await {
            Ok(Some(answer)) => match Result::<(), Error>::from_bytes(answer) {
                Ok(answer) => Ok(answer?),
                Err(error) => Err(malformed(error.what)),
            },
            _ => Err(lost()),
        }
    }
}

struct Pace {
    since: Instant,
    rate: Option<u64>,
    sent: u64,
}

impl Pace {
    async fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(self.sent as f64 / rate.max(1) as f64);
            tokio::time::sleep_until(self.since + due).await;
        }
    }
}

/// The folder's files with their lengths, by name.
fn list(dir: &Path) -> Result<Vec<(PathBuf, FileHead)>, StorageFailed> {
    let fail = |error| StorageFailed::io(dir.display().to_string(), "listing it", &error);
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let meta = entry.metadata().map_err(fail)?;
        let name = entry.file_name().into_string().ok();
        match name.filter(|name| meta.is_file() && plain(name)) {
            Some(name) => files.push((entry.path(), FileHead { name, len: meta.len() })),
            None => {
                let file = entry.path().display().to_string();
                return Err(StorageFailed::damaged(file, "a snapshot holds nothing but plain files"));
            }
        }
    }
    files.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    Ok(files)
}

/// Whether `name` is a plain file's name that can't lead out of its folder.
fn plain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !name.is_empty() && name.len() <= MAX_FILE_NAME && !name.starts_with('.') && name.chars().all(allowed)
}

async fn send_all(
    send: &mut SendStream,
    header: Bytes,
    files: Vec<(PathBuf, FileHead)>,
    mut pace: Pace,
) -> Result<(), BulkError> {
    let bytes = files.iter().map(|(_, head)| head.len).sum();
    let count = u32::try_from(files.len()).expect("a folder's files can be counted");
    let head = Head { header, files: count, bytes };
    write_frames(send, [head.to_bytes()]).await.map_err(|_| lost())?;
    for (number, (path, head)) in (0u32..).zip(files) {
        let fail = |action: &str, error: std::io::Error| {
            BulkError::from(StorageFailed::io(path.display().to_string(), action, &error))
        };
        let opening = path.clone();
        let opened = blocking(move || File::open(opening)).await;
        let mut file = opened.map_err(|error| fail("opening it", error))?;
        write_frames(send, [head.to_bytes()]).await.map_err(|_| lost())?;
        let mut offset = 0;
        while offset < head.len {
            let len = BULK_CHUNK_BYTES.min(usize::try_from(head.len - offset).unwrap_or(usize::MAX));
            let (back, read) = blocking(move || {
                let mut data = vec![0; len];
                let read = file.read_exact(&mut data).map(|()| data);
                (file, read)
            })
            .await;
            file = back;
            let data = read.map_err(|error| fail("reading it", error))?;
            let mut frame = BytesMut::with_capacity(4 + len);
            frame.put_u32_le(checksum(number, offset, &data));
            frame.put_slice(&data);
            write_frames(send, [frame.freeze()]).await.map_err(|_| lost())?;
            offset += len as u64;
            pace.sent(len).await;
        }
    }
    Ok(())
}

/// A member's connection that brings one snapshot.
#[derive(Debug)]
pub struct BulkConn(Arc<Held>);

impl BulkConn {
    pub(super) fn new(held: Arc<Held>) -> Self {
        Self(held)
    }

    /// Whose it is, from the verified certificate.
    pub fn identity(&self) -> Identity {
        self.0.identity().expect("every purpose but joining is verified")
    }

    /// Waits for the header.
    ///
    /// # Errors
    /// [`BulkError::Transfer`] if none comes in time or it can't be read.
    pub async fn incoming(self) -> Result<BulkIncoming, BulkError> {
        let from = self.identity().node;
        let begin = async {
            let (send, recv) = self.0.connection.accept_bi().await.map_err(|_| lost())?;
            let mut frames = FrameReader::new(recv, MAX_BULK_FRAME_BYTES);
            let head: Head = read(&mut frames).await?;
            Ok::<_, BulkError>((send, frames, head))
        };
        let late = Error::NotDone(NotDone::Deadline);
        let (send, frames, head) =
            tokio::time::timeout(REQUEST_READ_DEADLINE, begin).await.map_err(|_| BulkError::from(late))??;
        let Head { header, files, bytes } = head;
        Ok(BulkIncoming { from, header, bytes, files, send, frames, held: self.0 })
    }
}

/// A snapshot on its way to us: decide by its header, then receive or [`refuse`](Self::refuse) it.
pub struct BulkIncoming {
    /// Whose certificate the connection has.
    pub from: NodeId,
    /// What the sender says the files are.
    pub header: Bytes,
    /// What the sender says the files have, in bytes, together.
    pub bytes: u64,
    files: u32,
    send: SendStream,
    frames: FrameReader,
    held: Arc<Held>,
}

impl std::fmt::Debug for BulkIncoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { from, bytes, files, .. } = self;
        write!(f, "BulkIncoming({bytes} bytes in {files} files from {from})")
    }
}

impl BulkIncoming {
    /// Receives the files into `dir`, which is made and must hold none of them, verifies and syncs
    /// them and the folder, and tells the sender. No more than `max_bytes` are written.
    ///
    /// # Errors
    /// [`BulkError::Storage`] if a file can't be written, [`BulkError::Transfer`] for the rest;
    /// the folder is then of no use.
    pub async fn receive_into(mut self, dir: &Path, max_bytes: u64) -> Result<(), BulkError> {
        let received = self.receive(dir, max_bytes).await;
        let answer: Result<(), Error> = match &received {
            Ok(()) => Ok(()),
            Err(BulkError::Transfer(error)) => Err(error.clone()),
            Err(BulkError::Storage(_)) => Err(Error::Stopped("the receiver's disk failed".into())),
        };
        self.answer(&answer).await;
        received
    }

    /// Tells the sender that it is not wanted, and why.
    pub async fn refuse(mut self, why: Error) {
        self.answer(&Err(why)).await;
    }

    async fn answer(&mut self, answer: &Result<(), Error>) {
        if answer.is_err() {
            self.frames.stop();
        }
        let told = async {
            write_frames(&mut self.send, [answer.to_bytes()]).await.ok()?;
            self.send.finish().ok()?;
            // The connection ends with this value: not before the sender has the answer.
            self.held.connection.closed().await;
            Some(())
        };
        let _ = tokio::time::timeout(REQUEST_READ_DEADLINE, told).await;
    }

    async fn receive(&mut self, dir: &Path, max_bytes: u64) -> Result<(), BulkError> {
        if self.bytes > max_bytes || self.files > MAX_BULK_FILES {
            let why = format!("{} bytes in {} files are more than fit here", self.bytes, self.files);
            return Err(Refusal::invalid("snapshot", why).into());
        }
        let at = dir.to_owned();
        let fail = |dir: &Path, action: &str, error: std::io::Error| {
            StorageFailed::io(dir.display().to_string(), action, &error)
        };
        blocking(move || fs::create_dir_all(&at).map_err(|error| fail(&at, "making it", error))).await?;
        let mut left = self.bytes;
        for number in 0..self.files {
            let head: FileHead = read(&mut self.frames).await?;
            if !plain(&head.name) {
                return Err(malformed("a file's name is not plain"));
            }
            left = left.checked_sub(head.len).ok_or_else(|| malformed("more bytes than announced"))?;
            self.receive_file(number, dir.join(&head.name), head.len).await?;
        }
        if left != 0 {
            return Err(malformed("fewer bytes than announced"));
        }
        let at = dir.to_owned();
        let sync = move || {
            let synced = File::open(&at).and_then(|folder| folder.sync_all());
            synced.map_err(|error| fail(&at, "syncing it", error))
        };
        Ok(blocking(sync).await?)
    }

    async fn receive_file(&mut self, number: u32, path: PathBuf, len: u64) -> Result<(), BulkError> {
        let shown = path.display().to_string();
        let fail = |action: &str, error| StorageFailed::io(shown.clone(), action, &error);
        let open = move || OpenOptions::new().write(true).create_new(true).open(path);
        let mut file = blocking(open).await.map_err(|error| fail("creating it", error))?;
        let mut offset = 0;
        while offset < len {
            let mut chunk = next(&mut self.frames).await?;
            if chunk.len() < 5 || (chunk.len() - 4) as u64 > len - offset {
                return Err(malformed("a chunk's length does not fit its file"));
            }
            let sum = chunk.get_u32_le();
            if sum != checksum(number, offset, &chunk) && !crate::planted!(SkipChunkChecksum) {
                return Err(malformed("a chunk's checksum does not fit"));
            }
            offset += chunk.len() as u64;
            let (back, written) = blocking(move || {
                let written = file.write_all(&chunk);
                (file, written)
            })
            .await;
            file = back;
            written.map_err(|error| fail("writing it", error))?;
        }
        blocking(move || file.sync_all()).await.map_err(|error| fail("syncing it", error))?;
        Ok(())
    }
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
pub(super) fn frames_of(name: &str, content: &[u8]) -> Vec<Bytes> {
    let head = Head { header: Bytes::new(), files: 1, bytes: content.len() as u64 };
    let file = FileHead { name: name.into(), len: content.len() as u64 };
    let sum = checksum(0, 0, content).to_le_bytes();
    vec![head.to_bytes(), file.to_bytes(), [&sum, content].concat().into()]
}
