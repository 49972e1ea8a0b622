//! The files by which RocksDB finds its tables: `CURRENT` names the manifest, which lists them.
//!
//! A manifest is a row of records in blocks of 32 KiB, each with a checksum. A record that is cut short at
//! the very end is what a power cut leaves of a change that never counted; its length may as well be
//! damaged, so it is named too.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Bytes, Cut, Pace, Problem, masked};

const BLOCK: u64 = 32 * 1024;
/// Checksum, length, kind.
const HEADER: u64 = 7;
/// The highest kind of record that a manifest has: a whole one, and the pieces of one.
const LAST_KIND: u8 = 4;

/// The manifest that `folder/CURRENT` names.
pub fn current(folder: &Path) -> Result<PathBuf, Problem> {
    let file = folder.join("CURRENT");
    let text = fs::read(&file).map_err(|error| Problem::unreadable(&file, &error))?;
    let name = std::str::from_utf8(&text).ok().and_then(|text| text.strip_suffix('\n'));
    let number = name.and_then(|name| name.strip_prefix("MANIFEST-")).unwrap_or_default();
    if number.len() < 6 || !number.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(Problem::damage(&file, 0, "it names no manifest"));
    }
    let manifest = folder.join(format!("MANIFEST-{number}"));
    if !manifest.exists() {
        let what = format!("it names MANIFEST-{number}, which is not there");
        return Err(Problem::damage(&file, 0, what));
    }
    Ok(manifest)
}

/// The first problem of the manifest at `path`.
pub fn check(path: &Path, mut pace: Pace<'_>) -> Result<Option<Problem>, Cut> {
    let mut bytes = Bytes::open(path, &mut pace)?;
    let (len, mut at) = (bytes.len, 0);
    if len == 0 {
        return Ok(Some(Problem::damage(path, 0, "it is empty")));
    }
    while at < len {
        let damaged = |what: &str| Ok(Some(Problem::damage(path, at, what)));
        let left = BLOCK - at % BLOCK;
        if left < HEADER {
            let rest = left.min(len - at) as usize;
            if bytes.from(at, rest)?[..rest].iter().any(|byte| *byte != 0) {
                return damaged("what fills up the block is not empty");
            }
            at += rest as u64;
            continue;
        }
        let header = bytes.from(at, HEADER as usize)?;
        if header.len() < HEADER as usize {
            return damaged("the record that begins here is cut short");
        }
        let stored = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
        let size = u64::from(u16::from_le_bytes([header[4], header[5]]));
        let kind = header[6];
        if kind == 0 || kind > LAST_KIND || HEADER + size > left {
            return damaged("the record that begins here is damaged");
        }
        if at + HEADER + size > len {
            return damaged("the record that begins here is cut short, or its length is damaged");
        }
        let record = &bytes.from(at, (HEADER + size) as usize)?[..(HEADER + size) as usize];
        if masked(crc32c::crc32c(&record[6..])) != stored {
            return damaged("the record that begins here is damaged");
        }
        at += HEADER + size;
    }
    Ok(None)
}
