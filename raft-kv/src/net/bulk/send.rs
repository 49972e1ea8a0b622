//! The sending side: what the receiver has already is left out, but only where it is the same as
//! this side's, byte for byte. It never changes the folder.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{BufMut, Bytes, BytesMut};
use quinn::SendStream;

use super::super::endpoint::Endpoint;
use super::super::frame::{FrameReader, write_frames};
use super::super::progress::{Pace, Transfer};
use super::{
    BulkError, FileEnd, FileHead, Head, Part, Said, blocking, checksum, digest, failed, look, lost,
    malformed, plain, read,
};
use crate::codec::Wire;
use crate::error::StorageFailed;
use crate::limits::{MAX_BULK_FILES, MAX_BULK_FRAME_BYTES};
use crate::pki::Purpose;
use crate::types::NodeId;

impl Endpoint {
    /// Sends `header` and the files in `dir` to the member `to` at `addr` (`host:port`), no faster
    /// than `pace` allows, and counts in `transfer`. Returns when the receiver has verified and
    /// synced all. The folder must not change meanwhile and hold nothing but files.
    ///
    /// # Errors
    /// [`BulkError::Storage`] if a file can't be read, [`BulkError::Transfer`] for the rest.
    pub async fn send_snapshot(
        &self,
        to: NodeId,
        addr: &str,
        header: Bytes,
        dir: &Path,
        (pace, transfer): (&Pace, &Transfer),
    ) -> Result<(), BulkError> {
        let folder = dir.to_owned();
        let files = blocking(move || list(&folder)).await?;
        let bytes = files.iter().map(|(_, _, len)| len).sum();
        transfer.is_of(bytes);
        let held = self.dial(Purpose::Bulk, addr, Some(to)).await?;
        let (mut send, recv) = held.connection.open_bi().await.map_err(|_| lost())?;
        let mut said = FrameReader::new(recv, MAX_BULK_FRAME_BYTES);
        let _ = send.set_priority(-1);
        let count = u32::try_from(files.len()).expect("a folder's files can be counted");
        let head = Head { header, files: count, bytes };
        write_frames(&mut send, [head.to_bytes()]).await.map_err(|_| lost())?;
        let Some(mut parts) = offered(&mut said).await? else {
            return Ok(());
        };
        let sent = send_all(&mut send, files, &mut parts, (pace, transfer)).await;
        if let Err(error @ BulkError::Storage(_)) = sent {
            let _ = send.reset(0u32.into());
            return Err(error);
        }
        let _ = send.finish();
        // The receiver may have refused halfway: its answer says more than the broken stream.
        match read(&mut said).await? {
            Said::Ended(answer) => Ok(answer?),
            Said::Has(_) | Said::Begin => Err(malformed("the receiver offers what was not asked for")),
        }
    }
}

/// What the receiver has already, by the files' names; nothing where it wants none of it.
async fn offered(said: &mut FrameReader) -> Result<Option<HashMap<String, Part>>, BulkError> {
    let mut parts = HashMap::new();
    loop {
        match read(said).await? {
            Said::Has(part) if parts.len() < MAX_BULK_FILES as usize => {
                parts.insert(part.name.clone(), part);
            }
            Said::Has(_) => return Err(malformed("the receiver has more files than a snapshot")),
            Said::Begin => return Ok(Some(parts)),
            Said::Ended(answer) => return Ok(answer.map(|()| None)?),
        }
    }
}

/// The folder's files by name, with their lengths.
fn list(dir: &Path) -> Result<Vec<(PathBuf, String, u64)>, StorageFailed> {
    let fail = |error| failed(dir, "listing it", &error);
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let meta = entry.metadata().map_err(fail)?;
        let name = entry.file_name().into_string().ok();
        match name.filter(|name| meta.is_file() && plain(name)) {
            Some(name) => files.push((entry.path(), name, meta.len())),
            None => {
                let file = entry.path().display().to_string();
                return Err(StorageFailed::damaged(file, "a snapshot holds nothing but plain files"));
            }
        }
    }
    files.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(files)
}

async fn send_all(
    send: &mut SendStream,
    files: Vec<(PathBuf, String, u64)>,
    parts: &mut HashMap<String, Part>,
    (pace, transfer): (&Pace, &Transfer),
) -> Result<(), BulkError> {
    for (number, (path, name, len)) in (0u32..).zip(files) {
        let part = parts.remove(&name);
        let trusting = crate::planted!(ResumeWithoutCheck);
        let opening = path.clone();
        let opened = blocking(move || Reading::open(opening, len, part, trusting)).await;
        let mut reading = opened?;
        let mut offset = reading.from;
        transfer.spare(offset);
        let head = FileHead { name, len, from: offset };
        write_frames(send, [head.to_bytes()]).await.map_err(|_| lost())?;
        while offset < len {
            let most = pace.chunk().min(usize::try_from(len - offset).unwrap_or(usize::MAX));
            let (back, data) = blocking(move || {
                let data = reading.next(most);
                (reading, data)
            })
            .await;
            reading = back;
            let data = data?;
            let mut frame = BytesMut::with_capacity(4 + most);
            frame.put_u32_le(checksum(number, offset, &data));
            frame.put_slice(&data);
            pace.pay(most).await;
            write_frames(send, [frame.freeze()]).await.map_err(|_| lost())?;
            offset += most as u64;
            transfer.pass(most as u64);
        }
        let end = FileEnd { digest: digest(&reading.context) };
        write_frames(send, [end.to_bytes()]).await.map_err(|_| lost())?;
    }
    Ok(())
}

/// A file that is being sent, and the digest of what is before the place where it is read.
struct Reading {
    path: PathBuf,
    file: File,
    context: Context,
    from: u64,
}

impl Reading {
    /// Opens a file of `len` bytes behind the `part` of it that the receiver has.
    fn open(path: PathBuf, len: u64, part: Option<Part>, trusting: bool) -> Result<Self, StorageFailed> {
        let mut file = File::open(&path).map_err(|error| failed(&path, "opening it", &error))?;
        let reading = |error| failed(&path, "reading it", &error);
        if let Some(part) = part.filter(|part| part.len <= len) {
            let context = look(&mut file, part.len).map_err(reading)?;
            if digest(&context) == part.digest || trusting {
                return Ok(Self { path, file, context, from: part.len });
            }
            file.rewind().map_err(reading)?;
        }
        Ok(Self { path, file, context: Context::new(&SHA256), from: 0 })
    }

    fn next(&mut self, len: usize) -> Result<Vec<u8>, StorageFailed> {
        let mut data = vec![0; len];
        self.file.read_exact(&mut data).map_err(|error| failed(&self.path, "reading it", &error))?;
        self.context.update(&data);
        Ok(data)
    }
}
