//! One number for the whole logical state, so that members can be held against each other.
//!
//! It must not depend on what a member keeps for itself: how far it has removed compacted
//! versions, or in which batches it applied.

use super::format::{Superseded, decode, from_ordered, load_meta, meta, ordered};
use super::store::{Read, Table};
use crate::error::StorageFailed;
use crate::types::{ClusterId, Revision, SnapshotMeta};

/// The hash of the state after the last applied entry. The high half covers the key space, the
/// low half all else. Equal on two members that have applied the same index. Reads everything:
/// its cost is that of the whole store.
pub fn hash(view: &dyn Read) -> Result<u64, StorageFailed> {
    let revision: Revision = load_meta(view, meta::REVISION)?;
    let compacted: Revision = load_meta(view, meta::COMPACTED)?;
    let cluster: ClusterId = load_meta(view, meta::CLUSTER)?;
    let applied: SnapshotMeta = load_meta(view, meta::APPLIED)?;
    let mut keys = 0;
    add(&mut keys, &revision.to_le_bytes());
    add(&mut keys, &compacted.to_le_bytes());
    table(view, Table::Live, b"", &mut keys)?;
    for pair in view.scan(Table::Past, b"", None) {
        let (key, value) = pair?;
        let past: Superseded = decode(Table::Past, value.clone())?;
        if past.end > compacted {
            add(&mut keys, &key);
            add(&mut keys, &value);
        }
    }
    let first = ordered(compacted.max(0));
    debug_assert!(from_ordered(Table::Log, &first).is_ok());
    table(view, Table::Log, &first, &mut keys)?;
    let mut rest = 0;
    add(&mut rest, &cluster.0.to_le_bytes());
    add(&mut rest, &applied.index.to_le_bytes());
    add(&mut rest, &applied.term.to_le_bytes());
    for one in [Table::Lease, Table::Attached, Table::Members, Table::Trust, Table::Once] {
        table(view, one, b"", &mut rest)?;
    }
    Ok(u64::from(keys) << 32 | u64::from(rest))
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
