//! One number for the whole logical state, or for its keys up to a revision, so that members can be
//! held against each other.
//!
//! It must not depend on what a member keeps for itself: how far it has removed compacted
//! versions, or in which batches it applied.

use super::format::{
    Held, Stored, Superseded, decode, load_meta, log_key, meta, past_key, split_past, unescape,
};
use super::points::{pinned, pins};
use super::store::{Read, Table};
use super::values::ValueReader;
use crate::error::StorageFailed;
use crate::planted;
use crate::types::{ClusterId, Revision, SnapshotMeta};

/// The hash of the state after the last applied entry. The high half covers the key space, the
/// low half all else. Not to be held against others while an entry is [half done](super::read::half_done). Equal on two members that have applied the same index. Reads everything:
/// its cost is that of the whole store.
pub fn hash(view: &dyn Read) -> Result<u64, StorageFailed> {
    let revision: Revision = load_meta(view, meta::REVISION)?;
    let compacted: Revision = load_meta(view, meta::COMPACTED)?;
    let cluster: ClusterId = load_meta(view, meta::CLUSTER)?;
    let applied: SnapshotMeta = load_meta(view, meta::APPLIED)?;
    let pins = pins(view)?;
    let mut keys = 0;
    add(&mut keys, &revision.to_le_bytes());
    add(&mut keys, &compacted.to_le_bytes());
    for pair in view.scan(Table::Live, b"", None) {
        let (key, value) = pair?;
        add(&mut keys, &key);
        add(&mut keys, &value);
        add_value(view, &key, &decode(Table::Live, value)?, &mut keys)?;
    }
    for pair in view.scan(Table::Past, b"", None) {
        let (key, value) = pair?;
        let past: Superseded = decode(Table::Past, value.clone())?;
        if past.end > compacted || pinned(&pins, past.stored.mod_revision, past.end) {
            add(&mut keys, &key);
            add(&mut keys, &value);
            add_value(view, &unescape(&split_past(&key)?.0)?, &past.stored, &mut keys)?;
        }
    }
    table(view, Table::Log, &log_key(compacted.max(0), 0), &mut keys)?;
    let mut rest = 0;
    add(&mut rest, &cluster.0.to_le_bytes());
    add(&mut rest, &applied.index.to_le_bytes());
    add(&mut rest, &applied.term.to_le_bytes());
    for key in [meta::USED, meta::QUOTA] {
        add(&mut rest, &view.get(Table::Meta, key)?.unwrap_or_default());
    }
    for one in [Table::Lease, Table::Attached, Table::Members, Table::Trust, Table::Once, Table::Points] {
        table(view, one, b"", &mut rest)?;
    }
    Ok(u64::from(keys) << 32 | u64::from(rest))
}

/// CRC-32C over every version that can be read at some revision from `compacted` to `revision`,
/// by key and from the newest on, with the revision that ended it if it ended by then.
///
/// Which table a version is in depends on how far a member is, so both are read as one; what
/// ended at or before `compacted` may be gone and does not count.
pub fn keys(view: &dyn Read, revision: Revision, compacted: Revision) -> Result<u32, StorageFailed> {
    let live = view.scan(Table::Live, b"", None).map(|pair| {
        let (key, value) = pair?;
        let stored: Stored = decode(Table::Live, value)?;
        Ok::<_, StorageFailed>((past_key(&key, stored.mod_revision), 0, stored))
    });
    let past = view.scan(Table::Past, b"", None).map(|pair| {
        let (key, value) = pair?;
        let past: Superseded = decode(Table::Past, value)?;
        Ok::<_, StorageFailed>((key, past.end, past.stored))
    });
    let (mut live, mut past) = (live.peekable(), past.peekable());
    let mut values = ValueReader::new(view);
    let mut crc = 0;
    loop {
        let first = match (live.peek(), past.peek()) {
            (Some(Ok((newest, ..))), Some(Ok((older, ..)))) if newest < older => live.next(),
            (Some(Err(_)), _) | (_, None) => live.next(),
            _ => past.next(),
        };
        let Some(first) = first else { return Ok(crc) };
        let (key, end, stored) = first?;
        let gone = end != 0 && end <= compacted && !planted!(HashCollected);
        if gone || stored.mod_revision > revision {
            continue;
        }
        let end = if end <= revision { end } else { 0 };
        add(&mut crc, &key);
        for number in [stored.create_revision, stored.mod_revision, stored.version, stored.lease, end] {
            add(&mut crc, &number.to_le_bytes());
        }
        add(&mut crc, &values.value(&unescape(&split_past(&key)?.0)?, &stored)?);
    }
}

/// Adds a value that lies apart from its record.
fn add_value(view: &dyn Read, key: &[u8], stored: &Stored, crc: &mut u32) -> Result<(), StorageFailed> {
    if let Held::Apart(_) = stored.value {
        add(crc, &stored.value(view, key)?);
    }
    Ok(())
}

fn table(view: &dyn Read, table: Table, from: &[u8], crc: &mut u32) -> Result<(), StorageFailed> {
    for pair in view.scan(table, from, None) {
        let (key, value) = pair?;
        add(crc, &key);
        add(crc, &value);
    }
    Ok(())
}

/// Adds a part with its length, so that parts can't run into each other.
fn add(crc: &mut u32, part: &[u8]) {
    *crc = crc32c::crc32c_append(*crc, &(part.len() as u64).to_le_bytes());
    *crc = crc32c::crc32c_append(*crc, part);
}
