//! The receiving side: it says what it has, takes the rest, and calls a folder whole only when
//! every file is what its sender read, to the last byte. It writes nowhere else than in the
//! folder, and nothing beyond what was announced.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Buf, Bytes};
use quinn::SendStream;

use super::super::endpoint::Held;
use super::super::frame::{FrameReader, write_frames};
use super::super::progress::Transfer;
use super::{
    BulkError, FileEnd, FileHead, Head, Part, Said, blocking, checksum, digest, failed, look, lost,
    malformed, next, plain, read,
};
use crate::codec::Wire;
use crate::error::{Error, NotDone, Refusal, StorageFailed};
use crate::limits::{MAX_BULK_FILES, MAX_BULK_FRAME_BYTES, REQUEST_READ_DEADLINE};
use crate::pki::Identity;
use crate::types::NodeId;

/// A member's connection that brings one snapshot.
#[derive(Debug)]
pub struct BulkConn(Arc<Held>);

impl BulkConn {
    pub(in super::super) fn new(held: Arc<Held>) -> Self {
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
    /// Receives the files into `dir`, which is made if it does not exist. What it holds from a
    /// transfer that broke is offered to the sender and stays where it fits; the rest of it goes.
    /// Verifies and syncs the files and the folder, and tells the sender. The files have no more
    /// than `max_bytes` together.
    ///
    /// # Errors
    /// [`BulkError::Storage`] if a file can't be written, [`BulkError::Transfer`] for the rest.
    /// The folder is then not whole; whether another try may go on from it says
    /// [`BulkError::may_go_on`].
    pub async fn receive_into(
        mut self,
        dir: &Path,
        max_bytes: u64,
        transfer: &Transfer,
    ) -> Result<(), BulkError> {
        let received = self.receive(dir, max_bytes, transfer).await;
        let answer: Result<(), Error> = match &received {
            Ok(()) => Ok(()),
            Err(BulkError::Transfer(error)) => Err(error.clone()),
            Err(BulkError::Storage(_)) => Err(Error::Stopped("the receiver's disk failed".into())),
        };
        self.answer(answer).await;
        received
    }

    /// Tells the sender that it is not wanted, and why.
    pub async fn refuse(mut self, why: Error) {
        self.answer(Err(why)).await;
    }

    async fn answer(&mut self, answer: Result<(), Error>) {
        if answer.is_err() {
            self.frames.stop();
        }
        let told = async {
            write_frames(&mut self.send, [Said::Ended(answer).to_bytes()]).await.ok()?;
            self.send.finish().ok()?;
            // The connection ends with this value: not before the sender has the answer.
            self.held.connection.closed().await;
            Some(())
        };
        let _ = tokio::time::timeout(REQUEST_READ_DEADLINE, told).await;
    }

    async fn receive(&mut self, dir: &Path, max_bytes: u64, transfer: &Transfer) -> Result<(), BulkError> {
        if self.bytes > max_bytes || self.files > MAX_BULK_FILES {
            let why = format!("{} bytes in {} files are more than fit here", self.bytes, self.files);
            return Err(Refusal::invalid("snapshot", why).into());
        }
        transfer.is_of(self.bytes);
        let mut here = self.offer(dir).await?;
        let mut names = HashSet::new();
        let mut left = self.bytes;
        for number in 0..self.files {
            let head: FileHead = read(&mut self.frames).await?;
            if !plain(&head.name) {
                return Err(malformed("a file's name is not plain"));
            }
            if !names.insert(head.name.clone()) {
                return Err(malformed("a file comes twice"));
            }
            left = left.checked_sub(head.len).ok_or_else(|| malformed("more bytes than announced"))?;
            let part = here.remove(&head.name);
            self.receive_file(number, dir, head, part, transfer).await?;
        }
        if left != 0 {
            return Err(malformed("fewer bytes than announced"));
        }
        let at = dir.to_owned();
        Ok(blocking(move || close(&at, &names)).await?)
    }

    /// Says what is in `dir` already; returns the digests of it.
    async fn offer(&mut self, dir: &Path) -> Result<HashMap<String, (u64, Context)>, BulkError> {
        let at = dir.to_owned();
        let mut here = HashMap::new();
        for (name, len) in blocking(move || list(&at)).await? {
            let path = dir.join(&name);
            // What can't be read is not offered, and is written anew.
            let looked = blocking(move || look(&mut File::open(path)?, len)).await;
            let Ok(context) = looked else { continue };
            let part = Part { name: name.clone(), len, digest: digest(&context) };
            write_frames(&mut self.send, [Said::Has(part).to_bytes()]).await.map_err(|_| lost())?;
            here.insert(name, (len, context));
        }
        write_frames(&mut self.send, [Said::Begin.to_bytes()]).await.map_err(|_| lost())?;
        Ok(here)
    }

    async fn receive_file(
        &mut self,
        number: u32,
        dir: &Path,
        head: FileHead,
        part: Option<(u64, Context)>,
        transfer: &Transfer,
    ) -> Result<(), BulkError> {
        let FileHead { name, len, from } = head;
        let mut context = match part {
            _ if from == 0 => Context::new(&SHA256),
            Some((have, context)) if have == from && from <= len => context,
            _ => return Err(malformed("a file goes on where nothing was offered")),
        };
        transfer.spare(from);
        let path = dir.join(name);
        let opening = path.clone();
        let opened = blocking(move || open(&opening, from)).await;
        let mut file = opened?;
        let mut offset = from;
        while offset < len {
            let mut chunk = next(&mut self.frames).await?;
            if chunk.len() < 5 || (chunk.len() - 4) as u64 > len - offset {
                return Err(malformed("a chunk's length does not fit its file"));
            }
            let sum = chunk.get_u32_le();
            if sum != checksum(number, offset, &chunk) && !crate::planted!(SkipChunkChecksum) {
                return Err(malformed("a chunk's checksum does not fit"));
            }
            let taken = chunk.len() as u64;
            offset += taken;
            context.update(&chunk);
            let (back, written) = blocking(move || {
                let written = file.write_all(&chunk);
                (file, written)
            })
            .await;
            file = back;
            written.map_err(|error| failed(&path, "writing it", &error))?;
            transfer.pass(taken);
        }
        let end: FileEnd = read(&mut self.frames).await?;
        if end.digest != digest(&context) && !crate::planted!(InstallUnverified) {
            return Err(malformed("a file's checksum does not fit"));
        }
        let synced = blocking(move || file.sync_all()).await;
        Ok(synced.map_err(|error| failed(&path, "syncing it", &error))?)
    }
}

/// Opens a file to be written from `from` on; what is behind goes.
fn open(path: &Path, from: u64) -> Result<File, StorageFailed> {
    let opened = OpenOptions::new().write(true).create(true).truncate(from == 0).open(path);
    let opened = opened.and_then(|mut file| {
        file.set_len(from)?;
        file.seek(SeekFrom::Start(from))?;
        Ok(file)
    });
    opened.map_err(|error| failed(path, "creating it", &error))
}

/// Makes the folder, and says which files with a snapshot's names are in it, with their lengths.
fn list(dir: &Path) -> Result<Vec<(String, u64)>, StorageFailed> {
    fs::create_dir_all(dir).map_err(|error| failed(dir, "making it", &error))?;
    let mut files = Vec::new();
    for (name, meta) in entries(dir)? {
        if meta.is_file() && plain(&name) && meta.len() > 0 && files.len() < MAX_BULK_FILES as usize {
            files.push((name, meta.len()));
        }
    }
    files.sort();
    Ok(files)
}

fn entries(dir: &Path) -> Result<Vec<(String, fs::Metadata)>, StorageFailed> {
    let listed = fs::read_dir(dir).and_then(|all| {
        all.map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), fs::symlink_metadata(entry.path())?))
        })
        .collect()
    });
    listed.map_err(|error| failed(dir, "listing it", &error))
}

/// Takes away what is not one of the files, and makes the rest survive a crash.
fn close(dir: &Path, names: &HashSet<String>) -> Result<(), StorageFailed> {
    for (name, _) in entries(dir)? {
        if !names.contains(&name) {
            let path = dir.join(&name);
            fs::remove_file(&path).map_err(|error| failed(&path, "removing it", &error))?;
        }
    }
    let synced = File::open(dir).and_then(|folder| folder.sync_all());
    synced.map_err(|error| failed(dir, "syncing it", &error))
}
