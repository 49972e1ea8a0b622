//! The format of a backup file, as a stream that is written and read: a head, parts of bounded size, each
//! compressed, checksummed and, with a key, encrypted; a last part with the checksum of it all; zeros up to a
//! multiple of 512. `docs/backup.md` draws it byte by byte.
//!
//! Memory is bounded by a part, whatever a file says of itself. A reader that has come to the end has seen
//! every byte: it must never give out a byte whose part was not checked, nor take a file for whole that is not.

use std::io::{self, Read, Write};

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use bytes::{Bytes, BytesMut};
use rand::RngCore;

use crate::codec::{Wire, wire_struct};
use crate::error::{Refusal, StorageFailed};
use crate::pki::{BACKUP_CHECK_BYTES, BACKUP_SALT_BYTES, BackupCipher, BackupKey};

use super::super::api::BackupInfo;
use super::super::config::StartError;

const MAGIC: &[u8; 8] = b"RKVBACKU";
const VERSION: u32 = 1;
/// Bytes of content in a part; the last may have fewer.
const PART: usize = 256 * 1024;
/// A part's head.
const FRAME: usize = 16;
/// What a cipher adds to a part.
const TAG: usize = 16;
/// A file's length is a multiple of this, but for what etcd's clients put behind it.
pub(in crate::client) const UNIT: u64 = 512;
/// A head that says it is longer is damaged.
const MAX_HEAD: usize = 64 * 1024;

const CONTENT: u8 = 1;
const END: u8 = 2;
const PLAIN: u8 = 0;
const LZ4: u8 = 1;

/// The head of a file.
struct Head {
    info: BackupInfo,
    /// Salt and check value of the key; empty where it is not encrypted.
    salt: Bytes,
    check: Bytes,
}
wire_struct!(Head { info, salt, check });

/// What the last part has.
struct End {
    content: u64,
    parts: u64,
    digest: Bytes,
}
wire_struct!(End { content, parts, digest });

fn head_bytes(head: &Head) -> Vec<u8> {
    let head = head.to_bytes();
    let len = u32::try_from(head.len()).expect("a head is short");
    let mut bytes = [MAGIC, &VERSION.to_le_bytes()[..], &len.to_le_bytes(), &head].concat();
    let sum = crc32c::crc32c(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

/// A part's head without its checksum.
fn frame_of(stored: usize, plain: usize, kind: u8, form: u8) -> [u8; FRAME - 4] {
    let mut frame = [0; FRAME - 4];
    frame[..4].copy_from_slice(&u32::try_from(stored).expect("parts are bounded").to_le_bytes());
    frame[4..8].copy_from_slice(&u32::try_from(plain).expect("parts are bounded").to_le_bytes());
    frame[8] = kind;
    frame[9] = form;
    frame
}

fn checksum(number: u64, frame: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), frame), body)
}

/// What a cipher binds a part to: the file's head, its place, and all that its own head says but the length.
fn about(head: &[u8], number: u64, frame: &[u8]) -> Vec<u8> {
    [head, &number.to_le_bytes(), &frame[4..]].concat()
}

/// How a file's parts are written.
#[derive(Clone, Copy, Debug)]
pub(in crate::client) enum Form<'a> {
    /// As they are: its length is known before.
    Plain,
    /// Compressed.
    Small,
    /// Compressed and encrypted.
    Secret(&'a BackupKey),
}

/// The length of a [`Form::Plain`] file with that content.
pub(in crate::client) fn plain_len(info: &BackupInfo) -> u64 {
    let head = Head { info: info.clone(), salt: Bytes::new(), check: Bytes::new() };
    let end = End { content: 0, parts: 0, digest: vec![0; SHA256_OUTPUT_LEN].into() };
    let frames = info.bytes.div_ceil(PART as u64) + 1;
    let len =
        head_bytes(&head).len() as u64 + frames * FRAME as u64 + info.bytes + end.to_bytes().len() as u64;
    len.next_multiple_of(UNIT)
}

/// Writes a file.
pub(in crate::client) struct Sealer<W: Write> {
    out: W,
    part: Vec<u8>,
    number: u64,
    small: bool,
    cipher: Option<BackupCipher>,
    /// The digest of the head.
    head: Vec<u8>,
    digest: Context,
    content: u64,
    written: u64,
}

impl<W: Write> Sealer<W> {
    pub(in crate::client) fn new(mut out: W, info: &BackupInfo, form: Form<'_>) -> io::Result<Self> {
        let mut head = Head { info: info.clone(), salt: Bytes::new(), check: Bytes::new() };
        let cipher = match form {
            Form::Secret(key) => {
                let mut salt = [0; BACKUP_SALT_BYTES];
                rand::rng().fill_bytes(&mut salt);
                let cipher = key.cipher(&salt);
                head.salt = Bytes::copy_from_slice(&salt);
                head.check = Bytes::copy_from_slice(&cipher.check());
                Some(cipher)
            }
            Form::Plain | Form::Small => None,
        };
        let head = head_bytes(&head);
        out.write_all(&head)?;
        let mut digest = Context::new(&SHA256);
        digest.update(&head);
        let small = !matches!(form, Form::Plain);
        let (part, number, content, written) = (Vec::with_capacity(PART), 0, 0, head.len() as u64);
        let head = digest_of(&head);
        Ok(Self { out, part, number, small, cipher, head, digest, content, written })
    }

    fn put(&mut self, kind: u8, plain: &[u8]) -> io::Result<()> {
        let (mut form, mut body) = (PLAIN, Vec::new());
        if self.small && kind == CONTENT {
            body = lz4_flex::block::compress(plain);
            form = LZ4;
        }
        if form == PLAIN || body.len() >= plain.len() {
            body.clear();
            body.extend_from_slice(plain);
            form = PLAIN;
        }
        let stored = body.len() + if self.cipher.is_some() { TAG } else { 0 };
        let frame = frame_of(stored, plain.len(), kind, form);
        if let Some(cipher) = &self.cipher {
            cipher.seal(self.number, &about(&self.head, self.number, &frame), &mut body);
        }
        let sum = checksum(self.number, &frame, &body);
        self.out.write_all(&frame)?;
        self.out.write_all(&sum.to_le_bytes())?;
        self.out.write_all(&body)?;
        self.number += 1;
        self.written += (FRAME + body.len()) as u64;
        Ok(())
    }

    fn put_part(&mut self) -> io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        let part = std::mem::take(&mut self.part);
        self.digest.update(&part);
        self.content += part.len() as u64;
        self.put(CONTENT, &part)?;
        self.part = part;
        self.part.clear();
        Ok(())
    }

    /// Writes the end; gives back what it wrote to, and how many bytes that got.
    pub(in crate::client) fn finish(mut self) -> io::Result<(W, u64)> {
        self.put_part()?;
        let digest = Bytes::copy_from_slice(self.digest.clone().finish().as_ref());
        let end = End { content: self.content, parts: self.number, digest };
        self.put(END, &end.to_bytes())?;
        let zeros = self.written.next_multiple_of(UNIT) - self.written;
        self.out.write_all(&vec![0; usize::try_from(zeros).expect("below 512")])?;
        self.out.flush()?;
        Ok((self.out, self.written + zeros))
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PART - self.part.len());
        self.part.extend_from_slice(&bytes[..taken]);
        if self.part.len() == PART {
            self.put_part()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn digest_of(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&SHA256, bytes).as_ref().to_vec()
}

/// Why a file can't be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::client) enum Fault {
    /// It is not as it was written: where, and what.
    Damaged { offset: u64, why: String },
    /// It is whole as far as was read, and not for this reader.
    Refused(Refusal),
    /// The disk says so.
    Io(String),
}

impl Fault {
    fn damaged(offset: u64, why: impl Into<String>) -> Self {
        Self::Damaged { offset, why: why.into() }
    }

    /// As who asked for `file` is told.
    pub(in crate::client) fn about(self, file: &str) -> StartError {
        match self {
            Self::Refused(refusal) => StartError::Refused(refusal),
            Self::Damaged { offset, why } => StartError::Storage(StorageFailed {
                file: file.into(),
                why: format!("the backup is damaged at byte {offset}: {why}"),
                next: "nothing of it was used; take another copy of it, or another backup".into(),
            }),
            Self::Io(why) => StartError::Storage(StorageFailed {
                file: file.into(),
                why,
                next: "nothing of it was used; look after the disk, and try again".into(),
            }),
        }
    }
}

/// What was in a file that was read to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::client) struct Totals {
    /// Bytes of the file.
    pub(in crate::client) file: u64,
    /// Bytes of content.
    pub(in crate::client) content: u64,
    /// SHA-256 of the file, without what etcd's clients put behind it.
    pub(in crate::client) digest: Bytes,
}

/// Counts and hashes what is read.
struct Source<R> {
    input: R,
    offset: u64,
    digest: Context,
}

impl<R: Read> Source<R> {
    fn exact(&mut self, out: &mut [u8], what: &str) -> Result<(), Fault> {
        match self.input.read_exact(out) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Fault::damaged(self.offset, format!("the file ends within {what}")));
            }
            Err(error) => return Err(Fault::Io(format!("reading it failed: {error}"))),
        }
        self.offset += out.len() as u64;
        self.digest.update(out);
        Ok(())
    }

    fn word(&mut self, what: &str) -> Result<u32, Fault> {
        let mut bytes = [0; 4];
        self.exact(&mut bytes, what)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// Reads a file; gives out its content.
pub(in crate::client) struct Opener<R: Read> {
    source: Source<R>,
    info: BackupInfo,
    encrypted: bool,
    cipher: Option<BackupCipher>,
    head: Vec<u8>,
    digest: Context,
    number: u64,
    content: u64,
    part: Vec<u8>,
    at: usize,
    ended: bool,
    /// The digest of the file, once it has ended.
    whole: Bytes,
    fault: Option<Fault>,
}

impl<R: Read> Opener<R> {
    pub(in crate::client) fn new(input: R, key: Option<&BackupKey>) -> Result<Self, Fault> {
        let mut source = Source { input, offset: 0, digest: Context::new(&SHA256) };
        let foreign = |why: &str| Fault::Refused(Refusal::invalid("backup", why));
        let mut start = [0; 16];
        source.exact(&mut start, "its head").map_err(|_| foreign("it is too short to be one of raft-kv"))?;
        let word = |at: usize| u32::from_le_bytes(start[at..at + 4].try_into().expect("four bytes"));
        if &start[..8] != MAGIC {
            return Err(foreign("it does not begin as one of raft-kv does"));
        }
        let len = word(12) as usize;
        if len > MAX_HEAD {
            return Err(Fault::damaged(12, "its head is longer than it can be"));
        }
        let mut head = vec![0; len];
        source.exact(&mut head, "its head")?;
        let raw = [&start[..], &head].concat();
        if source.word("its head")? != crc32c::crc32c(&raw) {
            return Err(Fault::damaged(0, "the checksum of its head is wrong"));
        }
        if word(8) != VERSION {
            let why =
                format!("it has version {}, of a newer raft-kv; this one reads version {VERSION}", word(8));
            return Err(foreign(&why));
        }
        let Head { info, salt, check } = Head::from_bytes(head.into())
            .map_err(|error| Fault::damaged(16, format!("its head can't be read: {}", error.what)))?;
        let encrypted = !salt.is_empty();
        let cipher = if encrypted { Some(cipher_of(&salt, &check, key)?) } else { None };
        let raw = [&raw[..], &crc32c::crc32c(&raw).to_le_bytes()].concat();
        let mut digest = Context::new(&SHA256);
        digest.update(&raw);
        let head = digest_of(&raw);
        let (part, at, number, content, ended) = (Vec::new(), 0, 0, 0, false);
        Ok(Self {
            source,
            info,
            encrypted,
            cipher,
            head,
            digest,
            number,
            content,
            part,
            at,
            ended,
            whole: Bytes::new(),
            fault: None,
        })
    }

    pub(in crate::client) fn info(&self) -> &BackupInfo {
        &self.info
    }

    pub(in crate::client) fn encrypted(&self) -> bool {
        self.encrypted
    }

    /// What went wrong in a read, once.
    pub(in crate::client) fn fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    fn next_part(&mut self) -> Result<(), Fault> {
        let start = self.source.offset;
        let bad = |why: &str| Fault::damaged(start, why);
        let mut frame = [0; FRAME];
        self.source.exact(&mut frame, "the head of a part")?;
        let (frame, sum) = frame.split_at(FRAME - 4);
        let word = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().expect("four bytes")) as usize;
        let (stored, plain, kind, form) = (word(0), word(4), frame[8], frame[9]);
        if stored > PART + TAG || plain > PART {
            return Err(bad("a part is longer than it can be"));
        }
        let mut body = vec![0; stored];
        // Where the file ends too soon it may be the length before it that is damaged.
        self.source.exact(&mut body, "a part").map_err(|fault| match fault {
            Fault::Damaged { why, .. } => Fault::damaged(start, why),
            other => other,
        })?;
        if checksum(self.number, frame, &body).to_le_bytes() != *sum {
            return Err(bad("a part's checksum is wrong"));
        }
        if let Some(cipher) = &self.cipher
            && !cipher.open(self.number, &about(&self.head, self.number, frame), &mut body)
        {
            return Err(bad("a part is not what was encrypted there"));
        }
        let body = match form {
            PLAIN => body,
            LZ4 => {
                lz4_flex::block::decompress(&body, plain).map_err(|_| bad("a part can't be decompressed"))?
            }
            _ => return Err(bad("a part is stored in a form that is not known")),
        };
        if body.len() != plain {
            return Err(bad("a part is not as long as it says"));
        }
        match kind {
            CONTENT if plain > 0 => {
                self.number += 1;
                self.digest.update(&body);
                self.content += plain as u64;
                (self.part, self.at) = (body, 0);
                Ok(())
            }
            END => self.end(body.into(), start),
            _ => Err(bad("a part is of a kind that is not known")),
        }
    }

    fn end(&mut self, body: Bytes, start: u64) -> Result<(), Fault> {
        let bad = |why: &str| Fault::damaged(start, why);
        let end = End::from_bytes(body).map_err(|_| bad("its last part can't be read"))?;
        let digest = self.digest.clone().finish();
        // How much has changed is not known before.
        let foreseen = self.info.since > 0 || self.content == self.info.bytes;
        if (end.content, end.parts) != (self.content, self.number) || !foreseen {
            return Err(bad("it has not as many parts or bytes as its end says"));
        }
        if end.digest.as_ref() != digest.as_ref() {
            return Err(bad("the checksum of it all is wrong"));
        }
        self.behind()?;
        self.ended = true;
        Ok(())
    }

    /// Zeros, and perhaps the SHA-256 that etcd's clients put behind a snapshot.
    fn behind(&mut self) -> Result<(), Fault> {
        let start = self.source.offset;
        let zeros = start.next_multiple_of(UNIT) - start;
        let mut padding = vec![0; usize::try_from(zeros).expect("below 512")];
        self.source.exact(&mut padding, "the zeros at its end")?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(Fault::damaged(start, "there is something in the place of the zeros at its end"));
        }
        let expect = self.source.digest.clone().finish();
        self.whole = Bytes::copy_from_slice(expect.as_ref());
        let (at, mut rest) = (self.source.offset, Vec::new());
        (&mut self.source.input)
            .take(SHA256_OUTPUT_LEN as u64 + 1)
            .read_to_end(&mut rest)
            .map_err(|error| Fault::Io(format!("reading it failed: {error}")))?;
        self.source.offset += rest.len() as u64;
        match rest.len() {
            0 => Ok(()),
            SHA256_OUTPUT_LEN if rest == expect.as_ref() => Ok(()),
            SHA256_OUTPUT_LEN => Err(Fault::damaged(at, "the SHA-256 behind it is wrong")),
            _ => Err(Fault::damaged(at, "there is something behind its end")),
        }
    }

    /// Reads on to the end, which has to be there.
    pub(in crate::client) fn finish(mut self) -> Result<Totals, Fault> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        while !self.ended {
            self.next_part()?;
        }
        let digest = self.whole;
        Ok(Totals { file: self.source.offset, content: self.content, digest })
    }
}

fn cipher_of(salt: &[u8], check: &[u8], key: Option<&BackupKey>) -> Result<BackupCipher, Fault> {
    let (Ok(salt), Ok(check)) =
        (<[u8; BACKUP_SALT_BYTES]>::try_from(salt), <[u8; BACKUP_CHECK_BYTES]>::try_from(check))
    else {
        return Err(Fault::damaged(16, "its salt is of another size"));
    };
    let refused = |why: &str| Fault::Refused(Refusal::invalid("backup key", why));
    let key = key.ok_or_else(|| refused("the backup is encrypted; give the key that it was made with"))?;
    let cipher = key.cipher(&salt);
    if cipher.check() != check {
        return Err(refused("the backup was made with another key"));
    }
    Ok(cipher)
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.part.len() && !self.ended {
            if let Err(fault) = self.next_part() {
                self.fault = Some(fault);
                return Err(io::Error::other("the backup can't be read"));
            }
        }
        let taken = out.len().min(self.part.len() - self.at);
        out[..taken].copy_from_slice(&self.part[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}

/// Gathers what is written into blocks of one size, each handed on.
pub(in crate::client) struct Blocks<F: FnMut(Bytes) -> io::Result<()>> {
    pub(in crate::client) block: BytesMut,
    pub(in crate::client) size: usize,
    pub(in crate::client) hand_on: F,
}

impl<F: FnMut(Bytes) -> io::Result<()>> Write for Blocks<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.size - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == self.size {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = std::mem::replace(&mut self.block, BytesMut::with_capacity(self.size)).freeze();
        (self.hand_on)(block)
    }
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
