//! The side of the log that consensus sees: index, tail in memory, and changes on their way.
//!
//! It never writes. Entries that are not durable are always in memory; older ones are read back
//! from their segment with their checksum.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::format::{
    ENTRY_PREFIX_BYTES, Identity, Kind, Marker, Position, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, Start,
    entry, entry_prefix, put_record, record_size, salt, take_record,
};
use super::segments::segment_name;
use super::{Durable, Options, Shared};
use crate::codec::Wire;
use crate::error::StorageFailed;
use crate::raft::LogView;
use crate::storage::files::{File, Files};
use crate::types::{Entry, HardState, Index, SnapshotMeta, Term};

/// Bytes read from a segment at once, at most, unless one entry is larger.
const READ_BYTES: u64 = 1024 * 1024;

/// Bytes on their way to a segment.
#[derive(Debug)]
pub(super) struct Chunk {
    pub sequence: u64,
    pub length: u64,
    pub offset: u64,
    pub bytes: BytesMut,
}

/// A staged change on its way to [`LogWriter`](super::LogWriter).
#[derive(Debug)]
pub struct LogWrite {
    pub(super) number: u64,
    pub(super) chunks: Vec<Chunk>,
    // Counter and identity are the writer's.
    pub(super) mark: Option<Marker>,
    // Segments that nothing needs once this is on disk.
    pub(super) free: Range<u64>,
    // Whether those are removed and not used again.
    pub(super) wipe: bool,
}

impl LogWrite {
    /// Bytes that it writes to segments; 0 where nothing needs a sync.
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes.len()).sum()
    }
}

/// Where an entry is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub term: Term,
    pub sequence: u64,
    pub offset: u32,
    /// Of the payload.
    pub len: u32,
}

impl Slot {
    fn end(&self) -> u64 {
        self.offset as u64 + record_size(self.len as usize) as u64
    }

    // What `Entry::size` gives.
    fn entry_size(&self) -> u64 {
        (self.len as usize - ENTRY_PREFIX_BYTES + 32) as u64
    }
}

/// Where the next record goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    pub sequence: u64,
    pub offset: u64,
    pub length: u64,
    pub salt: u64,
    /// Checksum of the last record.
    pub chain: u32,
}

/// An entry in memory and the write it came with.
pub(super) type Cached = (u64, Entry);

/// The raft log as consensus sees it: see [`LogView`].
pub struct Log<F: Files> {
    pub(super) shared: Arc<Shared<F>>,
    pub(super) options: Options,
    pub(super) identity: Identity,
    pub(super) epoch: u64,
    pub(super) hard: HardState,
    /// As the last record in the chain has it; behind `hard` by the commit index alone.
    pub(super) recorded: HardState,
    pub(super) boundary: SnapshotMeta,
    /// Entries from `boundary.index + 1` on.
    pub(super) slots: VecDeque<Slot>,
    /// The newest of them in memory, without a gap to the last one.
    pub(super) cache: VecDeque<Cached>,
    pub(super) cache_bytes: usize,
    pub(super) tail: Tail,
    /// The oldest segment that is not given up.
    pub(super) oldest: u64,
    pub(super) readers: Mutex<BTreeMap<u64, Arc<Reader<F::File>>>>,
}

pub(super) struct Reader<T> {
    file: T,
    salt: u64,
}

impl<F: Files> std::fmt::Debug for Log<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("hard", &self.hard)
            .field("boundary", &self.boundary)
            .field("last", &self.last())
            .field("tail", &self.tail)
            .finish()
    }
}

impl<F: Files> Log<F> {
    /// Whose log it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The number of this run, from this opening to the next: above that of each run before.
    pub fn run(&self) -> u64 {
        self.epoch
    }

    /// Bytes of entries in memory.
    pub fn cached_bytes(&self) -> usize {
        self.cache_bytes
    }

    /// Bytes on disk behind the boundary, roughly: whole segments that are in use.
    pub fn disk_bytes(&self) -> u64 {
        (self.tail.sequence - self.oldest) * self.options.segment_bytes + self.tail.offset
    }

    pub(super) fn last(&self) -> Position {
        let index = self.boundary.index + self.slots.len() as u64;
        Position { term: self.slots.back().map_or(self.boundary.term, |slot| slot.term), index }
    }

    // Appends a record to `chunks`, in a new segment where this one is full. Whatever the record
    // changes in `self` is changed after this, so that a new segment starts with what held before.
    pub(super) fn append(
        &mut self,
        chunks: &mut Vec<Chunk>,
        kind: Kind,
        key: (Term, Index),
        payload: &[&[u8]],
    ) -> Slot {
        let len: usize = payload.iter().map(|part| part.len()).sum();
        let size = record_size(len) as u64;
        if self.tail.offset + size > self.tail.length {
            self.rotate(chunks, size);
        }
        let sequence = self.tail.sequence;
        let offset = self.tail.offset;
        if chunks.last().is_none_or(|chunk| chunk.sequence != sequence) {
            chunks.push(Chunk { sequence, length: self.tail.length, offset, bytes: BytesMut::new() });
        }
        let chunk = chunks.last_mut().expect("just pushed");
        self.tail.chain = put_record(&mut chunk.bytes, self.tail.salt, self.tail.chain, kind, key, payload);
        self.tail.offset += size;
        Slot { term: key.0, sequence, offset: offset as u32, len: len as u32 }
    }

    fn rotate(&mut self, chunks: &mut Vec<Chunk>, size: u64) {
        let last = self.last();
        let start = Start {
            hard: self.recorded,
            boundary: self.boundary.clone(),
            last_term: last.term,
            last_index: last.index,
        };
        let payload = start.to_bytes();
        let needed = SEGMENT_HEADER_BYTES as u64 + record_size(payload.len()) as u64 + size;
        let sequence = self.tail.sequence + 1;
        self.tail = Tail {
            sequence,
            offset: SEGMENT_HEADER_BYTES as u64,
            length: self.options.segment_bytes.max(needed.next_multiple_of(4096)),
            salt: salt(self.identity, sequence, self.epoch),
            chain: self.tail.chain,
        };
        assert!(self.tail.length < u32::MAX as u64, "offsets within a segment have 32 bits");
        self.append(chunks, Kind::Start, (last.term, last.index), &[&payload]);
    }

    pub(super) fn append_hard(&mut self, chunks: &mut Vec<Chunk>) {
        let hard = self.hard;
        self.append(chunks, Kind::Hard, (hard.term, hard.commit), &[&hard.to_bytes()]);
        self.recorded = hard;
    }

    pub(super) fn finish(&self, number: u64, chunks: Vec<Chunk>, free: Range<u64>) -> LogWrite {
        let mark = (!chunks.is_empty()).then(|| Marker {
            counter: 0,
            identity: self.identity,
            term: self.recorded.term,
            vote: self.recorded.vote,
            acked: self.last(),
            sequence: self.tail.sequence,
            offset: self.tail.offset,
            chain: self.tail.chain,
        });
        LogWrite { number, chunks, mark, free, wipe: false }
    }

    fn take_hard(&mut self, hard: HardState) {
        let same_term = hard.term == self.hard.term;
        assert!(hard.term >= self.hard.term, "the term never falls: {:?} to {hard:?}", self.hard);
        assert!(
            !same_term || self.hard.vote.0 == 0 || self.hard.vote == hard.vote,
            "one vote a term: {:?} to {hard:?}",
            self.hard
        );
        self.hard = hard;
    }

    fn first_cached(&self) -> Index {
        self.last().index + 1 - self.cache.len() as u64
    }

    fn forget_cache_from(&mut self, index: Index) {
        while !self.cache.is_empty() && self.last().index >= index {
            // `last` follows the slots, so both go together.
            let (_, entry) = self.cache.pop_back().expect("not empty");
            self.cache_bytes -= entry.size();
            self.slots.pop_back();
        }
    }

    fn truncate_from(&mut self, index: Index) {
        self.forget_cache_from(index);
        self.slots.truncate((index - self.boundary.index - 1) as usize);
    }

    fn evict(&mut self) {
        let durable = self.shared.durable.load(Ordering::Acquire);
        while self.cache_bytes > self.options.cache_bytes {
            match self.cache.front() {
                Some((number, _)) if *number <= durable => {
                    let (_, entry) = self.cache.pop_front().expect("not empty");
                    self.cache_bytes -= entry.size();
                }
                _ => break,
            }
        }
    }

    fn slot(&self, index: Index) -> &Slot {
        &self.slots[(index - self.boundary.index - 1) as usize]
    }

    fn reader(&self, slot: &Slot) -> Result<Arc<Reader<F::File>>, StorageFailed> {
        let mut readers = self.readers.lock();
        if let Some(reader) = readers.get(&slot.sequence) {
            return Ok(Arc::clone(reader));
        }
        let name = segment_name(slot.sequence);
        let failed = |action: &str, e: &std::io::Error| self.shared.failed(&name, action, e);
        let file = self.shared.files.open(&name).map_err(|e| failed("opening it", &e))?;
        let mut header = [0; SEGMENT_HEADER_BYTES];
        file.read_at(0, &mut header).map_err(|e| failed("reading it", &e))?;
        let header = super::replay::header(&self.shared.files, slot.sequence, &header, Some(self.identity))?;
        let reader = Arc::new(Reader { file, salt: header.salt });
        readers.insert(slot.sequence, Arc::clone(&reader));
        Ok(reader)
    }

    // Reads entries from `from` on that lie together in one segment, below `to`.
    fn read_run(&self, from: Index, to: Index, out: &mut Vec<Entry>) -> Result<(), StorageFailed> {
        let first = *self.slot(from);
        let mut next = from + 1;
        while next < to
            && self.slot(next).sequence == first.sequence
            && self.slot(next).end() - first.offset as u64 <= READ_BYTES
        {
            next += 1;
        }
        let reader = self.reader(&first)?;
        let name = segment_name(first.sequence);
        let mut bytes = BytesMut::zeroed((self.slot(next - 1).end() - first.offset as u64) as usize);
        reader
            .file
            .read_at(first.offset as u64, &mut bytes)
            .map_err(|e| self.shared.failed(&name, "reading it", &e))?;
        let bytes = bytes.freeze();
        for index in from..next {
            let slot = self.slot(index);
            let found = take_record(&bytes, (slot.offset - first.offset) as usize, reader.salt)
                .filter(|record| (record.kind, record.term, record.index) == (Kind::Entry, slot.term, index))
                .and_then(|record| entry(&record).ok());
            let Some(entry) = found else {
                let why = format!("the entry {index} at offset {} is damaged", slot.offset);
                return Err(StorageFailed::damaged(self.shared.path(&name), why));
            };
            out.push(entry);
        }
        Ok(())
    }
}

impl<F: Files> LogView for Log<F> {
    type Write = LogWrite;
    type Proof = Durable;

    fn first_within(&self, bytes: u64) -> Index {
        let mut left = bytes;
        let fits = |slot: &&Slot| {
            let fits = left.checked_sub(slot.entry_size());
            left = fits.unwrap_or(0);
            fits.is_some()
        };
        self.last().index + 1 - self.slots.iter().rev().take_while(fits).count() as u64
    }

    fn start(&self) -> (HardState, SnapshotMeta) {
        (self.hard, self.boundary.clone())
    }

    fn first_index(&self) -> Index {
        self.boundary.index + 1
    }

    fn last_index(&self) -> Index {
        self.last().index
    }

    fn term(&self, index: Index) -> Result<Option<Term>, StorageFailed> {
        if index == self.boundary.index {
            return Ok(Some(self.boundary.term));
        }
        if index < self.boundary.index || index > self.last().index {
            return Ok(None);
        }
        Ok(Some(self.slot(index).term))
    }

    fn entries(&self, from: Index, to: Index, max_bytes: u64) -> Result<Vec<Entry>, StorageFailed> {
        assert!(
            self.first_index() <= from && from < to && to <= self.last().index + 1,
            "entries {from}..{to} of a log from {} to {}",
            self.first_index(),
            self.last().index
        );
        let mut end = from;
        let mut bytes = 0;
        while end < to && (end == from || bytes + self.slot(end).entry_size() <= max_bytes) {
            bytes += self.slot(end).entry_size();
            end += 1;
        }
        let mut out = Vec::with_capacity((end - from) as usize);
        let cached = self.first_cached();
        while from + (out.len() as u64) < end.min(cached) {
            self.read_run(from + out.len() as u64, end.min(cached), &mut out)?;
        }
        if end > cached {
            let from = (from.max(cached) - cached) as usize;
            out.extend(self.cache.range(from..(end - cached) as usize).map(|(_, entry)| entry.clone()));
        }
        Ok(out)
    }

    /// A hard state that differs in the commit index alone is not worth a sync: it is written with
    /// the next write that has one, and after a crash the commit index is learnt again.
    fn stage(&mut self, number: u64, hard: Option<HardState>, entries: &[Entry]) -> LogWrite {
        let mut chunks = Vec::new();
        for entry in entries {
            let last = self.last();
            assert!(
                entry.index > self.boundary.index && entry.index <= last.index + 1 && entry.term > 0,
                "entry {} behind a log from {} to {}",
                entry.index,
                self.first_index(),
                last.index
            );
            let slot = self.append(
                &mut chunks,
                Kind::Entry,
                (entry.term, entry.index),
                &[&entry_prefix(entry), &entry.context, &entry.data],
            );
            debug_assert_eq!(record_size(slot.len as usize) % 8, RECORD_HEADER_BYTES % 8);
            self.truncate_from(entry.index);
            self.slots.push_back(slot);
            self.cache_bytes += entry.size();
            self.cache.push_back((number, entry.clone()));
        }
        if let Some(hard) = hard {
            self.take_hard(hard);
        }
        // Behind the entries: a commit index must never be on disk without what it commits.
        let promise = (self.hard.term, self.hard.vote) != (self.recorded.term, self.recorded.vote);
        if promise || (!chunks.is_empty() && self.hard != self.recorded) {
            self.append_hard(&mut chunks);
        }
        self.evict();
        self.finish(number, chunks, 0..0)
    }

    /// The state must hold the snapshot, durably, before this is written.
    fn stage_snapshot(&mut self, number: u64, hard: HardState, meta: &SnapshotMeta) -> LogWrite {
        assert!(meta.index >= self.boundary.index, "a snapshot never goes back");
        let mut chunks = Vec::new();
        self.append(
            &mut chunks,
            Kind::Snapshot,
            (meta.term, meta.index),
            &[&hard.to_bytes(), &meta.to_bytes()],
        );
        self.take_hard(hard);
        self.recorded = hard;
        self.boundary = meta.clone();
        self.slots.clear();
        self.cache.clear();
        self.cache_bytes = 0;
        let free = self.release();
        self.finish(number, chunks, free)
    }

    /// The state must hold everything up to `meta`, durably, before this is written. An index at or
    /// below the boundary changes nothing.
    fn stage_cut(&mut self, number: u64, meta: &SnapshotMeta) -> LogWrite {
        if meta.index <= self.boundary.index {
            return self.finish(number, Vec::new(), 0..0);
        }
        self.cut(number, meta, Vec::new())
    }

    fn stage_forget(&mut self, number: u64, meta: &SnapshotMeta) -> LogWrite {
        if meta.index <= self.boundary.index {
            return self.finish(number, Vec::new(), 0..0);
        }
        let mut chunks = Vec::new();
        self.rotate(&mut chunks, record_size(meta.to_bytes().len()) as u64);
        LogWrite { wipe: true, ..self.cut(number, meta, chunks) }
    }
}

impl<F: Files> Log<F> {
    fn cut(&mut self, number: u64, meta: &SnapshotMeta, mut chunks: Vec<Chunk>) -> LogWrite {
        assert!(meta.index <= self.last().index, "a cut behind the end is a snapshot");
        assert_eq!(self.slot(meta.index).term, meta.term, "a cut at an entry of another term");
        self.append(&mut chunks, Kind::Cut, (meta.term, meta.index), &[&meta.to_bytes()]);
        let cached = self.first_cached();
        if meta.index >= cached {
            for (_, entry) in self.cache.drain(..(meta.index + 1 - cached) as usize) {
                self.cache_bytes -= entry.size();
            }
        }
        self.slots.drain(..(meta.index - self.boundary.index) as usize);
        self.boundary = meta.clone();
        let free = self.release();
        self.finish(number, chunks, free)
    }

    /// The oldest segment that is still needed.
    pub(super) fn needed(&self) -> u64 {
        self.slots.front().map_or(self.tail.sequence, |slot| slot.sequence)
    }

    fn release(&mut self) -> Range<u64> {
        let free = self.oldest..self.needed();
        self.oldest = free.end;
        self.readers.lock().retain(|sequence, _| *sequence >= free.end);
        free
    }

    // What replay found becomes a log: used when it is opened.
    pub(super) fn keep(&mut self, entries: impl Iterator<Item = Entry>) {
        for entry in entries {
            self.cache_bytes += entry.size();
            self.cache.push_back((0, entry));
        }
        self.evict();
    }
}

/// A copy that shares nothing, so that a small entry does not keep a whole segment in memory.
pub(super) fn detach(entry: Entry) -> Entry {
    let own = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
    Entry { data: own(&entry.data), context: own(&entry.context), ..entry }
}
