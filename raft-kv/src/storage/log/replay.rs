//! Reading a log back: follows the chain of records from the oldest segment to where it ends.
//!
//! It never writes. A chain that breaks before the marker with right records behind the break is
//! damage; one that simply ends is a log that is behind its marker. Past the marker anything may be
//! torn, and is left out.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::format::{
    BadHeader, Identity, Kind, MARKER_COPY_OFFSET, MARKER_SLOT_BYTES, MARKER_USED_BYTES, Marker, Position,
    RECORD_ALIGN, Record, SEGMENT_HEADER_BYTES, SegmentHeader, Start, VERSION, entry, take_record,
};
use super::segments::{MARKER, segment_name, segment_sequence};
use super::view::{Slot, Tail, detach};
use super::{Options, path};
use crate::codec::{Malformed, Wire};
use crate::error::StorageFailed;
use crate::planted;
use crate::storage::files::{File, Files};
use crate::types::{Entry, HardState, Index, SnapshotMeta};

/// What the chain of records says.
pub struct Replayed {
    pub hard: HardState,
    /// As the last record in the chain has it.
    pub recorded: HardState,
    pub boundary: SnapshotMeta,
    /// Entries from `boundary.index + 1` on.
    pub slots: VecDeque<Slot>,
    /// The newest of them.
    pub entries: VecDeque<Entry>,
    /// Where the next record goes; `None` where no segment was there.
    pub tail: Option<Tail>,
    /// Whether the chain goes as far as the marker.
    pub reached: bool,
    pub end: Position,
}

/// Reads the marker: the newest of its two slots' two copies that is whole.
pub fn read_marker<F: Files>(files: &F) -> Result<(F::File, Marker), StorageFailed> {
    let file = files.open(MARKER).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => StorageFailed::damaged(path(files, MARKER), "it is missing"),
        _ => StorageFailed::io(path(files, MARKER), "opening it", &e),
    })?;
    let len = file.len().map_err(|e| StorageFailed::io(path(files, MARKER), "reading it", &e))?;
    let mut best: Option<Marker> = None;
    for offset in [0, MARKER_COPY_OFFSET, MARKER_SLOT_BYTES, MARKER_SLOT_BYTES + MARKER_COPY_OFFSET] {
        if offset + MARKER_USED_BYTES as u64 > len {
            continue;
        }
        let mut bytes = [0; MARKER_USED_BYTES];
        file.read_at(offset, &mut bytes)
            .map_err(|e| StorageFailed::io(path(files, MARKER), "reading it", &e))?;
        match Marker::decode(&bytes) {
            Ok(marker) if best.is_none_or(|best| best.counter < marker.counter) => best = Some(marker),
            Ok(_) | Err(BadHeader::Damaged) => {}
            Err(BadHeader::Newer(version)) => return Err(newer(files, MARKER, version)),
        }
    }
    match best {
        Some(marker) => Ok((file, marker)),
        None => Err(StorageFailed::damaged(path(files, MARKER), "no copy in its two slots is whole")),
    }
}

fn newer<F: Files>(files: &F, name: &str, version: u32) -> StorageFailed {
    StorageFailed {
        file: path(files, name),
        why: format!("it has format {version}, this software knows {VERSION}"),
        next: "run the newer version that wrote it".into(),
    }
}

/// Fails unless the log belongs to `expected`.
pub fn check_identity<F: Files>(
    files: &F,
    name: &str,
    found: Identity,
    expected: Identity,
) -> Result<(), StorageFailed> {
    if found == expected {
        return Ok(());
    }
    Err(StorageFailed {
        file: path(files, name),
        why: format!(
            "it belongs to node {} of cluster {}, this is node {} of cluster {}",
            found.node, found.cluster, expected.node, expected.cluster
        ),
        next: "start this node with its own data directory".into(),
    })
}

/// The header of segment `sequence` from its first bytes, checked.
pub fn header<F: Files>(
    files: &F,
    sequence: u64,
    bytes: &[u8],
    identity: Option<Identity>,
) -> Result<SegmentHeader, StorageFailed> {
    let name = segment_name(sequence);
    let header = match SegmentHeader::decode(bytes) {
        Ok(header) => header,
        Err(BadHeader::Newer(version)) => return Err(newer(files, &name, version)),
        Err(BadHeader::Damaged) => {
            return Err(StorageFailed::damaged(path(files, &name), "its header at offset 0 is damaged"));
        }
    };
    if let Some(identity) = identity {
        check_identity(files, &name, header.identity, identity)?;
    }
    if header.sequence != sequence {
        let why = format!("its header at offset 0 is that of segment {}", header.sequence);
        return Err(StorageFailed::damaged(path(files, &name), why));
    }
    Ok(header)
}

struct Segment {
    sequence: u64,
    salt: u64,
    bytes: Bytes,
}

fn read_segment<F: Files>(files: &F, sequence: u64, identity: Identity) -> Result<Segment, StorageFailed> {
    let name = segment_name(sequence);
    let failed = |e: std::io::Error| StorageFailed::io(path(files, &name), "reading it", &e);
    let file = files.open(&name).map_err(failed)?;
    let len = file.len().map_err(failed)?;
    let mut bytes = BytesMut::zeroed(len as usize);
    file.read_at(0, &mut bytes).map_err(failed)?;
    let header = header(files, sequence, &bytes, Some(identity))?;
    if header.length != len {
        let why = format!("it has {len} bytes, its header says {}", header.length);
        return Err(StorageFailed::damaged(path(files, &name), why));
    }
    Ok(Segment { sequence, salt: header.salt, bytes: bytes.freeze() })
}

/// Follows the chain.
pub fn replay<F: Files>(
    files: &F,
    options: &Options,
    marker: &Marker,
    names: &[String],
) -> Result<Replayed, StorageFailed> {
    let present: Vec<u64> = names.iter().filter_map(|name| segment_sequence(name)).collect();
    let mut sequence = marker.sequence;
    // Older segments with a hole before the marker's were given up when a crash came.
    while sequence > 0 && present.contains(&(sequence - 1)) {
        sequence -= 1;
    }
    let mut state = State::new(options.cache_bytes);
    let mut reached = false;
    let mut stop = (sequence, SEGMENT_HEADER_BYTES);
    while present.contains(&sequence) {
        let segment = match read_segment(files, sequence, marker.identity) {
            Ok(segment) => segment,
            // Made ready and never used, or used by nothing acknowledged.
            Err(_) if reached => break,
            Err(failed) => return Err(failed),
        };
        let (at, hit) = state.follow(files, &segment, marker, reached)?;
        reached |= hit;
        stop = (sequence, at);
        if at == SEGMENT_HEADER_BYTES || (sequence == marker.sequence && !reached) {
            break;
        }
        sequence += 1;
    }
    if !reached {
        refuse_damage(files, marker, &present, stop)?;
    }
    let finished = state.finish(reached);
    finished.map_err(|why| StorageFailed::damaged(path(files, &segment_name(stop.0)), why))
}

// The chain broke before the marker: fails where right records are found behind the break.
fn refuse_damage<F: Files>(
    files: &F,
    marker: &Marker,
    present: &[u64],
    (sequence, at): (u64, usize),
) -> Result<(), StorageFailed> {
    for later in (sequence..=marker.sequence).filter(|later| present.contains(later)) {
        let segment = read_segment(files, later, marker.identity)?;
        let end = if later == marker.sequence { marker.offset as usize } else { segment.bytes.len() };
        let from = if later == sequence { at } else { SEGMENT_HEADER_BYTES };
        let mut place = from;
        while place < end.min(segment.bytes.len()) {
            if take_record(&segment.bytes, place, segment.salt).is_some() {
                let why = format!(
                    "the record at offset {from} is damaged or missing, the one at offset {place} behind it is whole"
                );
                return Err(StorageFailed::damaged(path(files, &segment_name(later)), why));
            }
            place += RECORD_ALIGN;
        }
    }
    Ok(())
}

struct State {
    started: bool,
    hard: HardState,
    boundary: SnapshotMeta,
    // The index of the first slot, and what the chain says the last entry is. Entries between the
    // boundary and the first slot are in segments that were given up.
    first: Index,
    last: Position,
    slots: VecDeque<Slot>,
    entries: VecDeque<Entry>,
    entries_bytes: usize,
    cache_bytes: usize,
    chain: u32,
    tail: Option<Tail>,
}

impl State {
    fn new(cache_bytes: usize) -> Self {
        Self {
            started: false,
            hard: HardState::default(),
            boundary: SnapshotMeta::default(),
            first: 1,
            last: Position::default(),
            slots: VecDeque::new(),
            entries: VecDeque::new(),
            entries_bytes: 0,
            cache_bytes,
            chain: 0,
            tail: None,
        }
    }

    // Follows the chain through one segment: gives the offset where it ends there, and whether it
    // passed the marker's place.
    fn follow<F: Files>(
        &mut self,
        files: &F,
        segment: &Segment,
        marker: &Marker,
        reached: bool,
    ) -> Result<(usize, bool), StorageFailed> {
        let mut at = SEGMENT_HEADER_BYTES;
        let mut hit = false;
        while let Some(record) = take_record(&segment.bytes, at, segment.salt) {
            let first = at == SEGMENT_HEADER_BYTES;
            if self.started && record.previous != self.chain && !planted!(SkipChainCheck) {
                break;
            }
            if let Err(why) = self.apply(&record, segment.sequence, at, first) {
                // Right records that make no sense: what wrote them was not this software.
                let why = format!("the record at offset {at}: {why}");
                return Err(StorageFailed::damaged(path(files, &segment_name(segment.sequence)), why));
            }
            at += record.size();
            self.chain = record.checksum;
            self.tail = Some(Tail {
                sequence: segment.sequence,
                offset: at as u64,
                length: segment.bytes.len() as u64,
                salt: segment.salt,
                chain: self.chain,
            });
            if !reached && segment.sequence == marker.sequence && at as u64 >= marker.offset && !hit {
                hit = true;
                if (at as u64, self.chain) != (marker.offset, marker.chain) && !planted!(SkipChainCheck) {
                    let why = format!("the chain at offset {at} is not the one that was acknowledged");
                    return Err(StorageFailed::damaged(path(files, &segment_name(segment.sequence)), why));
                }
            }
        }
        Ok((at, hit))
    }

    fn apply(&mut self, record: &Record, sequence: u64, at: usize, first: bool) -> Result<(), &'static str> {
        let bad = |malformed: Malformed| malformed.what;
        let payload = record.payload.clone();
        if first != (record.kind == Kind::Start) {
            return Err("a segment's first record, and no other, says what it starts from");
        }
        match record.kind {
            Kind::Start => self.start(Start::from_bytes(payload).map_err(bad)?)?,
            Kind::Entry => {
                let slot = Slot {
                    term: record.term,
                    sequence,
                    offset: at as u32,
                    len: u32::try_from(payload.len()).map_err(|_| "too long")?,
                };
                self.entry(detach(entry(record).map_err(bad)?), slot)?;
            }
            Kind::Hard => self.hard = HardState::from_bytes(payload).map_err(bad)?,
            Kind::Cut => {
                let meta = SnapshotMeta::from_bytes(payload).map_err(bad)?;
                if meta.index < self.boundary.index || meta.index > self.last.index {
                    return Err("a cut outside the log");
                }
                self.cut(meta);
            }
            Kind::Snapshot => {
                let (hard, meta) = <(HardState, SnapshotMeta)>::from_bytes(payload).map_err(bad)?;
                self.hard = hard;
                self.last = Position { term: meta.term, index: meta.index };
                self.first = meta.index + 1;
                self.boundary = meta;
                self.slots.clear();
                self.entries.clear();
                self.entries_bytes = 0;
            }
            Kind::Opened => {}
        }
        Ok(())
    }

    fn start(&mut self, start: Start) -> Result<(), &'static str> {
        let last = Position { term: start.last_term, index: start.last_index };
        if self.started {
            if (self.hard, &self.boundary, self.last) != (start.hard, &start.boundary, last) {
                return Err("a segment starts from another state than the one before ends with");
            }
            return Ok(());
        }
        if last.index < start.boundary.index {
            return Err("a segment starts with its last entry behind its boundary");
        }
        self.started = true;
        self.hard = start.hard;
        self.boundary = start.boundary;
        self.last = last;
        self.first = last.index + 1;
        Ok(())
    }

    fn entry(&mut self, entry: Entry, slot: Slot) -> Result<(), &'static str> {
        if entry.index <= self.boundary.index || entry.index > self.last.index + 1 {
            return Err("an entry's index does not follow");
        }
        self.last = Position { term: entry.term, index: entry.index };
        let kept = entry.index.saturating_sub(self.first) as usize;
        self.slots.truncate(kept);
        self.first = self.first.min(entry.index);
        while self.entries.back().is_some_and(|last| last.index >= entry.index) {
            self.entries_bytes -= self.entries.pop_back().expect("not empty").size();
        }
        self.slots.push_back(slot);
        self.entries_bytes += entry.size();
        self.entries.push_back(entry);
        while self.entries_bytes > self.cache_bytes {
            self.entries_bytes -= self.entries.pop_front().expect("bytes are in entries").size();
        }
        Ok(())
    }

    fn cut(&mut self, meta: SnapshotMeta) {
        while self.first <= meta.index && !self.slots.is_empty() {
            self.slots.pop_front();
            self.first += 1;
        }
        while self.entries.front().is_some_and(|first| first.index <= meta.index) {
            self.entries_bytes -= self.entries.pop_front().expect("not empty").size();
        }
        self.boundary = meta;
    }

    fn finish(mut self, reached: bool) -> Result<Replayed, &'static str> {
        let last = self.slots.back().map_or(self.last, |slot| Position { term: slot.term, ..self.last });
        // Where the log is behind its marker the cut that explains a gap may be what is lost.
        let expected = self.boundary.index + 1;
        let gap = if self.slots.is_empty() { last.index >= expected } else { self.first != expected };
        if gap && reached && self.tail.is_some() {
            return Err("entries between the boundary and the first one are missing");
        }
        let recorded = self.hard;
        self.hard.commit = self.hard.commit.clamp(self.boundary.index, last.index.max(self.boundary.index));
        Ok(Replayed {
            hard: self.hard,
            recorded,
            boundary: self.boundary,
            slots: self.slots,
            entries: self.entries,
            tail: self.tail,
            reached,
            end: last,
        })
    }
}
