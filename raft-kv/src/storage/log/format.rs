//! The bytes of segments, records and the marker: `docs/disk.md` draws them.
//!
//! It must never panic on bytes from a disk, and never take a record whose checksum, salt or
//! bounds are wrong.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::codec::{Malformed, Reader, Wire, malformed, wire_struct};
use crate::types::{ClusterId, Entry, EntryKind, HardState, Index, NodeId, SnapshotMeta, Term};

/// Version of the whole format; a higher one is refused.
pub const VERSION: u32 = 1;
/// Bytes before the first record of a segment.
pub const SEGMENT_HEADER_BYTES: usize = 64;
/// Bytes before a record's payload.
pub const RECORD_HEADER_BYTES: usize = 32;
/// Records start at multiples of this.
pub const RECORD_ALIGN: usize = 8;
/// Length of the marker's file: two slots, each in a page of its own.
pub const MARKER_BYTES: u64 = 8192;
/// Distance of the marker's slots.
pub const MARKER_SLOT_BYTES: u64 = 4096;
/// Where the second copy of a marker lies in its slot: in another sector than the first.
pub const MARKER_COPY_OFFSET: u64 = 2048;
/// Bytes of a slot that are used.
pub const MARKER_USED_BYTES: usize = 112;

const SEGMENT_MAGIC: &[u8; 8] = b"RKVSEGMT";
const MARKER_MAGIC: &[u8; 8] = b"RKVMARKR";

/// Whose log it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The member.
    pub node: NodeId,
}

/// A place in the order of all entries ever acknowledged: compared by term, then index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Position {
    /// The entry's term.
    pub term: Term,
    /// The entry's index.
    pub index: Index,
}

/// A segment's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    pub identity: Identity,
    pub sequence: u64,
    pub salt: u64,
    pub length: u64,
}

/// Why a header or slot is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadHeader {
    /// Magic or checksum is wrong.
    Damaged,
    /// A newer version wrote it.
    Newer(u32),
}

/// A salt for a segment: different for each use of a file, so that what the file held before
/// never parses.
pub fn salt(identity: Identity, sequence: u64, epoch: u64) -> u64 {
    let mut state = 0_u64;
    for word in [identity.cluster.0, identity.node.0, sequence, epoch] {
        state = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 31;
    }
    state
}

impl SegmentHeader {
    pub fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(SEGMENT_HEADER_BYTES);
        out.put_slice(SEGMENT_MAGIC);
        out.put_u32_le(VERSION);
        out.put_u32_le(0);
        out.put_u64_le(self.identity.cluster.0);
        out.put_u64_le(self.identity.node.0);
        out.put_u64_le(self.sequence);
        out.put_u64_le(self.salt);
        out.put_u64_le(self.length);
        out.put_u32_le(0);
        let checksum = crc32c::crc32c(&out);
        out.put_u32_le(checksum);
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let mut input = checked(bytes, SEGMENT_HEADER_BYTES, SEGMENT_MAGIC)?;
        input.advance(4);
        Ok(Self {
            identity: Identity { cluster: ClusterId(input.get_u64_le()), node: NodeId(input.get_u64_le()) },
            sequence: input.get_u64_le(),
            salt: input.get_u64_le(),
            length: input.get_u64_le(),
        })
    }
}

// Magic, version and the checksum in the last four bytes; what is between them remains.
fn checked<'a>(bytes: &'a [u8], len: usize, magic: &[u8; 8]) -> Result<&'a [u8], BadHeader> {
    let Some(bytes) = bytes.get(..len) else { return Err(BadHeader::Damaged) };
    let (body, mut checksum) = bytes.split_at(len - 4);
    if !body.starts_with(magic) || crc32c::crc32c(body) != checksum.get_u32_le() {
        return Err(BadHeader::Damaged);
    }
    let mut rest = &body[magic.len()..];
    match rest.get_u32_le() {
        VERSION => Ok(rest),
        newer => Err(BadHeader::Newer(newer)),
    }
}

/// What the marker says: everything acknowledged up to its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marker {
    pub counter: u64,
    pub identity: Identity,
    pub term: Term,
    pub vote: NodeId,
    /// The last entry, or the boundary of a log without entries.
    pub acked: Position,
    /// Where the last acknowledged record ends.
    pub sequence: u64,
    pub offset: u64,
    /// Its checksum.
    pub chain: u32,
}

impl Marker {
    /// Where the slot of this counter lies.
    pub fn slot(counter: u64) -> u64 {
        (counter % 2) * MARKER_SLOT_BYTES
    }

    /// What is written into a slot: the marker twice, so that damage in one place does not make the
    /// older slot count, which would let a damaged end of the log pass for one that was cut off.
    pub fn twice(&self) -> BytesMut {
        let one = self.encode();
        let mut out = one.clone();
        out.put_bytes(0, MARKER_COPY_OFFSET as usize - one.len());
        out.put_slice(&one);
        out
    }

    pub fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(MARKER_USED_BYTES);
        out.put_slice(MARKER_MAGIC);
        out.put_u32_le(VERSION);
        out.put_u32_le(self.chain);
        for word in [
            self.counter,
            self.identity.cluster.0,
            self.identity.node.0,
            self.term,
            self.vote.0,
            self.acked.term,
            self.acked.index,
            self.sequence,
            self.offset,
        ] {
            out.put_u64_le(word);
        }
        out.put_bytes(0, MARKER_USED_BYTES - 4 - out.len());
        let checksum = crc32c::crc32c(&out);
        out.put_u32_le(checksum);
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let mut input = checked(bytes, MARKER_USED_BYTES, MARKER_MAGIC)?;
        let chain = input.get_u32_le();
        Ok(Self {
            counter: input.get_u64_le(),
            identity: Identity { cluster: ClusterId(input.get_u64_le()), node: NodeId(input.get_u64_le()) },
            term: input.get_u64_le(),
            vote: NodeId(input.get_u64_le()),
            acked: Position { term: input.get_u64_le(), index: input.get_u64_le() },
            sequence: input.get_u64_le(),
            offset: input.get_u64_le(),
            chain,
        })
    }
}

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// First in each segment: what holds before it ([`Start`]).
    Start = 1,
    /// An entry; replaces all from its index on.
    Entry = 2,
    /// A [`HardState`].
    Hard = 3,
    /// Entries up to an index are forgotten: a [`SnapshotMeta`].
    Cut = 4,
    /// All entries are replaced by a snapshot: ([`HardState`], [`SnapshotMeta`]).
    Snapshot = 5,
    /// The log was opened: the marker's counter at that time.
    Opened = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Start,
            2 => Self::Entry,
            3 => Self::Hard,
            4 => Self::Cut,
            5 => Self::Snapshot,
            6 => Self::Opened,
            _ => return None,
        })
    }
}

/// What holds at the start of a segment, so that those before it can go.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Start {
    pub hard: HardState,
    pub boundary: SnapshotMeta,
    pub last_term: Term,
    pub last_index: Index,
}
wire_struct!(Start { hard, boundary, last_term, last_index });

/// A record that passed its checks, except that against the record before it.
#[derive(Clone, Debug)]
pub struct Record {
    pub kind: Kind,
    pub term: Term,
    pub index: Index,
    pub payload: Bytes,
    pub checksum: u32,
    /// The checksum of the record before.
    pub previous: u32,
}

impl Record {
    /// Bytes that it takes, padding included.
    pub fn size(&self) -> usize {
        record_size(self.payload.len())
    }
}

/// Bytes that a record with such a payload takes.
pub fn record_size(payload: usize) -> usize {
    (RECORD_HEADER_BYTES + payload).next_multiple_of(RECORD_ALIGN)
}

/// Appends a record; returns its checksum.
pub fn put_record(
    out: &mut BytesMut,
    salt: u64,
    previous: u32,
    kind: Kind,
    (term, index): (Term, Index),
    payload: &[&[u8]],
) -> u32 {
    let len: usize = payload.iter().map(|part| part.len()).sum();
    let start = out.len();
    out.reserve(record_size(len));
    out.put_u32_le(0);
    out.put_u32_le(previous);
    out.put_u32_le(u32::try_from(len).expect("records are bounded far below 4 GiB"));
    out.put_u8(kind as u8);
    out.put_bytes(0, 3);
    out.put_u64_le(term);
    out.put_u64_le(index);
    for part in payload {
        out.put_slice(part);
    }
    out.put_bytes(0, record_size(len) - (out.len() - start));
    let checksum = checksum(salt, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
    checksum
}

fn checksum(salt: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), bytes)
}

/// The record at the front of `bytes`, if a whole and right one is there.
pub fn take_record(bytes: &Bytes, at: usize, salt: u64) -> Option<Record> {
    let mut header = bytes.get(at..at.checked_add(RECORD_HEADER_BYTES)?)?;
    let stored = header.get_u32_le();
    let previous = header.get_u32_le();
    let len = header.get_u32_le() as usize;
    let kind = Kind::from_byte(header.get_u8())?;
    header.advance(3);
    let (term, index) = (header.get_u64_le(), header.get_u64_le());
    let end = at.checked_add(record_size(len))?;
    let whole = bytes.get(at..end)?;
    if checksum(salt, &whole[4..]) != stored {
        return None;
    }
    let payload = bytes.slice(at + RECORD_HEADER_BYTES..at + RECORD_HEADER_BYTES + len);
    Some(Record { kind, term, index, payload, checksum: stored, previous })
}

/// Bytes before an entry's context and data in its payload: kind and length of the context.
pub const ENTRY_PREFIX_BYTES: usize = 5;

/// The front of an entry's payload; context and data follow.
pub fn entry_prefix(entry: &Entry) -> [u8; ENTRY_PREFIX_BYTES] {
    let len = u32::try_from(entry.context.len()).expect("entries are bounded far below 4 GiB").to_le_bytes();
    let kind = match entry.kind {
        EntryKind::Normal => 0,
        EntryKind::Config => 1,
    };
    [kind, len[0], len[1], len[2], len[3]]
}

/// The entry that a record of [`Kind::Entry`] holds; it shares the record's bytes.
pub fn entry(record: &Record) -> Result<Entry, Malformed> {
    let mut input = Reader::new(record.payload.clone());
    let kind = EntryKind::decode(&mut input)?;
    let context = Bytes::decode(&mut input)?;
    let rest = input.remaining();
    let data = input.take(rest, "an entry is cut short")?;
    if record.index == 0 || record.term == 0 {
        return malformed("an entry has index or term 0");
    }
    Ok(Entry { index: record.index, term: record.term, kind, data, context })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity() -> Identity {
        Identity { cluster: ClusterId(7), node: NodeId(9) }
    }

    #[test]
    fn headers_and_markers_come_back_and_every_flip_is_seen() {
        let header = SegmentHeader { identity: identity(), sequence: 3, salt: 4, length: 5 };
        let marker = Marker {
            counter: 1,
            identity: identity(),
            term: 2,
            vote: NodeId(3),
            acked: Position { term: 4, index: 5 },
            sequence: 6,
            offset: 7,
            chain: 8,
        };
        assert_eq!(header.encode().len(), SEGMENT_HEADER_BYTES);
        assert_eq!(marker.encode().len(), MARKER_USED_BYTES);
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        assert_eq!(Marker::decode(&marker.encode()), Ok(marker));
        for bit in 0..MARKER_USED_BYTES * 8 {
            let mut bytes = marker.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Marker::decode(&bytes), Err(BadHeader::Damaged));
        }
        for bit in 0..SEGMENT_HEADER_BYTES * 8 {
            let mut bytes = header.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bytes), Err(BadHeader::Damaged));
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut bytes = SegmentHeader { identity: identity(), sequence: 3, salt: 4, length: 5 }.encode();
        bytes[8] = 2;
        let checksum = crc32c::crc32c(&bytes[..60]).to_le_bytes();
        bytes[60..].copy_from_slice(&checksum);
        assert_eq!(SegmentHeader::decode(&bytes), Err(BadHeader::Newer(2)));
    }

    proptest! {
        #[test]
        fn records_come_back_and_foreign_bytes_never_panic(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            garbage in proptest::collection::vec(any::<u8>(), 0..300),
            at in 0_usize..400,
            bit in any::<proptest::sample::Index>(),
        ) {
            let mut out = BytesMut::new();
            let checksum = put_record(&mut out, 5, 6, Kind::Entry, (7, 8), &[&payload]);
            prop_assert_eq!(out.len(), record_size(payload.len()));
            let whole = out.clone().freeze();
            let record = take_record(&whole, 0, 5).expect("parses");
            prop_assert_eq!((record.term, record.index, record.previous, record.checksum), (7, 8, 6, checksum));
            prop_assert_eq!(&record.payload[..], &payload[..]);
            prop_assert!(take_record(&whole, 0, 4).is_none(), "another salt");
            let bit = bit.index(out.len() * 8);
            out[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(take_record(&out.freeze(), 0, 5).is_none(), "a flipped bit");
            prop_assert!(take_record(&Bytes::from(garbage), at, 5).is_none());
            let _ = entry(&record);
        }
    }
}
