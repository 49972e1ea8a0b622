//! Table files of RocksDB, byte by byte: data, indexes, filters, properties and the footer.
//!
//! A file is a row of blocks and a footer. Behind each block lie its kind of compression, in one byte, and a
//! checksum of both in four; nothing says in front how long a block is. So its end is found as the place
//! where the checksum is right. By chance that is so once in 2^39 places, hence a second look behind each
//! failure: the block before may have been longer. In this format (6) checksums depend on the place in the
//! file and the footer has one too: every byte counts, and a block in another's place is noticed.

use std::path::Path;

use super::{Bytes, Cut, Pace, Problem, masked};

/// Bytes behind a block: kind of compression, checksum.
const TRAILER: u64 = 5;
const FOOTER: u64 = 53;
/// The last eight bytes of each table file.
const MAGIC: u64 = 0x88e2_41b7_85f4_cff7;
/// The front of a footer's second part from format 6 on.
const EXTENDED_MAGIC: [u8; 4] = [0x3e, 0x00, 0x7a, 0x00];
/// The only format that is written here: `rocks` sets it.
pub const FORMAT: u32 = 6;
/// How the checksum that is written here, CRC-32C, is numbered.
const CRC32C: u8 = 1;
/// Kinds of compression that are written here: none, and Zstandard.
const COMPRESSIONS: [u8; 2] = [0, 7];

/// The problems of the file at `path`: at most one, since nothing behind a damaged block can be told from it.
pub fn check(path: &Path, mut pace: Pace<'_>) -> Result<Option<Problem>, Cut> {
    let mut bytes = Bytes::open(path, &mut pace)?;
    let (blocks, base) = match end(path, &mut bytes)? {
        Ok(found) => found,
        Err(problem) => return Ok(Some(problem)),
    };
    // Where the block before begins: for a second look.
    let (mut before, mut start) = (None, 0);
    while start < blocks {
        match end_of(&mut bytes, start, start, blocks, base)? {
            Some(end) => {
                before = Some(start);
                start = end;
            }
            None => {
                let longer = match before {
                    Some(begin) => end_of(&mut bytes, begin, start, blocks, base)?,
                    None => None,
                };
                let Some(end) = longer else {
                    return Ok(Some(Problem::damage(path, start, "the block that begins here is damaged")));
                };
                start = end;
            }
        }
    }
    Ok(None)
}

/// The problem of the file's end alone: a look that costs next to nothing, and tells what was cut short.
pub fn check_end(path: &Path) -> Result<Option<Problem>, Cut> {
    let mut pace: Pace<'_> = &mut |_| true;
    let mut bytes = Bytes::open(path, &mut pace)?;
    Ok(end(path, &mut bytes)?.err())
}

/// Where the blocks end, and the number that all checksums of the file contain.
fn end(path: &Path, bytes: &mut Bytes<'_, '_>) -> Result<Result<(u64, u32), Problem>, Cut> {
    let Some(blocks) = bytes.len.checked_sub(FOOTER).filter(|blocks| *blocks > 0) else {
        return Ok(Err(Problem::damage(path, 0, format!("it has {} bytes, less than a table", bytes.len))));
    };
    let base = footer(bytes.from(blocks, FOOTER as usize)?, blocks);
    Ok(base.map(|base| (blocks, base)).map_err(|what| Problem::damage(path, blocks, what)))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// What checksums at `offset` are raised by.
fn modifier(base: u32, offset: u64) -> u32 {
    base ^ (offset as u32).wrapping_add((offset >> 32) as u32)
}

/// The number that all checksums of the file contain, from its last bytes.
fn footer(bytes: &[u8], offset: u64) -> Result<u32, String> {
    let magic = u64::from_le_bytes(bytes[45..53].try_into().expect("eight bytes"));
    let (format, kind) = (word(bytes, 41), bytes[0]);
    if magic != MAGIC || bytes[1..5] != EXTENDED_MAGIC || kind != CRC32C || format != FORMAT {
        return Err("the footer, which begins here, is damaged".into());
    }
    let (stored, base) = (word(bytes, 5), word(bytes, 9));
    let mut covered = bytes[..FOOTER as usize].to_vec();
    covered[5..9].fill(0);
    if masked(crc32c::crc32c(&covered)).wrapping_add(modifier(base, offset)) != stored {
        return Err("the footer, which begins here, is damaged".into());
    }
    Ok(base)
}

/// Where the block that begins at `start` ends with its trailer: behind `after` and not behind `limit`.
fn end_of(
    bytes: &mut Bytes<'_, '_>,
    start: u64,
    after: u64,
    limit: u64,
    base: u32,
) -> Result<Option<u64>, Cut> {
    let raise = modifier(base, start);
    let mut crc = !0_u32;
    let mut at = start;
    while at + TRAILER <= limit {
        let piece = bytes.from(at, TRAILER as usize)?;
        let steps = piece.len().min((limit - at) as usize) - (TRAILER as usize - 1);
        for step in 0..steps {
            let byte = piece[step];
            // The byte at hand may be the one that tells the compression: it is covered as the last.
            crc = TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
            if COMPRESSIONS.contains(&byte)
                && masked(!crc).wrapping_add(raise) == word(piece, step + 1)
                && at + step as u64 > start
            {
                let end = at + step as u64 + TRAILER;
                if end > after {
                    return Ok(Some(end));
                }
            }
        }
        at += steps as u64;
    }
    Ok(None)
}

/// CRC-32C by bytes: the checksum of every beginning of a block is needed, one after the other.
static TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}
