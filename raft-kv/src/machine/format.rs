//! How the state machine's records lie in the store's tables: keys in an order that reads need,
//! values in the one binary format.
//!
//! All of this is on disk: a change needs a new [`FORMAT`]. It must never panic on stored bytes;
//! what can't be read is a damaged store.

use bytes::{BufMut, Bytes, BytesMut};

use super::store::{Read, Table};
use crate::codec::{Wire, wire_enum, wire_struct};
use crate::error::StorageFailed;
use crate::types::{EventKind, KeyValue, LeaseId, NodeId, Revision};

/// The version of this layout. A store of another one is not opened.
pub const FORMAT: u32 = 5;

/// Longest value, in bytes, that lies in its version's record; a longer one lies apart from it in
/// [`Table::Values`]. Part of the layout: members write the same records.
pub const MAX_INLINE_BYTES: usize = 64;

/// What an error calls the store.
pub const STORE: &str = "state";

/// Keys of [`Table::Meta`].
pub mod meta {
    /// The layout's version.
    pub const FORMAT: &[u8] = b"format";
    /// Last applied index, its term, the configuration there.
    pub const APPLIED: &[u8] = b"applied";
    /// The current revision.
    pub const REVISION: &[u8] = b"revision";
    /// The oldest readable revision; -1 before the first compaction.
    pub const COMPACTED: &[u8] = b"compacted";
    /// How far this member has removed what compaction made unreadable. Local: members differ.
    pub const COLLECTED: &[u8] = b"collected";
    /// The cluster's id.
    pub const CLUSTER: &[u8] = b"cluster";
    /// Clients in [`super::Table::Once`] and the clock of their use.
    pub const ONCE: &[u8] = b"once";
    /// What the live keys take: see [`super::super::quota::Used`].
    pub const USED: &[u8] = b"used";
    /// The quota on live bytes.
    pub const QUOTA: &[u8] = b"quota";
    /// The cluster's epoch; absent in the first one.
    pub const EPOCH: &[u8] = b"epoch";
    /// How far an entry that takes several batches has come; absent between entries.
    pub const HALF: &[u8] = b"half";
}

/// A version of a key as its record in [`Table::Live`] has it: all of [`KeyValue`] but the key and
/// a long value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// See [`KeyValue`].
    pub create_revision: Revision,
    /// See [`KeyValue`].
    pub mod_revision: Revision,
    /// See [`KeyValue`].
    pub version: i64,
    /// See [`KeyValue`].
    pub lease: LeaseId,
    /// Where the value is.
    pub value: Held,
}
wire_struct!(Stored { create_revision, mod_revision, version, lease, value });

/// Where a version's value is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Held {
    /// Here.
    Inline(Bytes),
    /// In [`Table::Values`], with so many bytes. It is written with its version, removed with it,
    /// and never moves in between.
    Apart(u64),
}
wire_enum!(Held { 1 => Inline(value), 2 => Apart(bytes) });

impl Held {
    /// Where a value goes.
    pub fn place(value: &Bytes) -> Self {
        if value.len() <= MAX_INLINE_BYTES {
            Self::Inline(value.clone())
        } else {
            Self::Apart(value.len() as u64)
        }
    }
}

impl Stored {
    /// The value's length, in bytes, without reading it.
    pub fn value_len(&self) -> usize {
        match &self.value {
            Held::Inline(value) => value.len(),
            Held::Apart(bytes) => usize::try_from(*bytes).unwrap_or(usize::MAX),
        }
    }

    /// The value, which is read if it lies apart.
    pub fn value(&self, view: &dyn Read, key: &[u8]) -> Result<Bytes, StorageFailed> {
        let bytes = match &self.value {
            Held::Inline(value) => return Ok(value.clone()),
            Held::Apart(bytes) => *bytes,
        };
        check_value(view.get(Table::Values, &past_key(key, self.mod_revision))?, bytes)
    }

    /// With its key again, and a blank value: nothing is read.
    pub fn without_value(&self, key: Bytes) -> KeyValue {
        KeyValue {
            key,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            value: Bytes::new(),
            lease: self.lease,
        }
    }

    /// With its key and value again.
    pub fn load(&self, view: &dyn Read, key: Bytes) -> Result<KeyValue, StorageFailed> {
        let value = self.value(view, &key)?;
        Ok(KeyValue { value, ..self.without_value(key) })
    }
}

/// A value that was found apart, if it is there and as long as its record says.
pub fn check_value(found: Option<Bytes>, bytes: u64) -> Result<Bytes, StorageFailed> {
    match found {
        Some(value) if value.len() as u64 == bytes => Ok(value),
        Some(_) => Err(damaged(Table::Values, "a value is not as long as its record says")),
        None => Err(damaged(Table::Values, "a value that can still be read is missing")),
    }
}

/// A version that is not the newest any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superseded {
    /// The revision that replaced or removed it: it was current at revisions below this.
    pub end: Revision,
    /// The version.
    pub stored: Stored,
}
wire_struct!(Superseded { end, stored });

/// One change in a revision's record in [`Table::Log`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Logged {
    /// What happened.
    pub kind: EventKind,
    /// To which key.
    pub key: Bytes,
    /// The mod revision of the version that it superseded; 0 where there was none.
    pub superseded: Revision,
}
wire_struct!(Logged { kind, key, superseded });

/// A lease as it is stored. How much time is left only the leader knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseRecord {
    /// Seconds granted.
    pub ttl: i64,
    /// What removing its keys takes, in bytes, as a delete counts.
    pub held: u64,
}
wire_struct!(LeaseRecord { ttl, held });

/// The key of a revision's record in [`Table::Log`], or of the record that goes on where the one
/// before had enough.
pub fn log_key(revision: Revision, part: u32) -> Bytes {
    let first = ordered(revision);
    if part == 0 { first } else { [&first[..], &part.to_be_bytes()].concat().into() }
}

/// The revision and the part that [`log_key`] was given.
pub fn split_log(key: &[u8]) -> Result<(Revision, u32), StorageFailed> {
    let (first, part) = key.split_at_checked(8).unwrap_or((key, b""));
    let part = match part {
        [] => 0,
        part => u32::from_be_bytes(
            part.try_into().map_err(|_| damaged(Table::Log, "a key is neither 8 nor 12 bytes long"))?,
        ),
    };
    Ok((from_ordered(Table::Log, first)?, part))
}

/// A revision, which is never negative, as key bytes in its own order.
pub fn ordered(number: i64) -> Bytes {
    debug_assert!(number >= 0);
    Bytes::copy_from_slice(&(number as u64).to_be_bytes())
}

/// The number that [`ordered`] wrote.
pub fn from_ordered(table: Table, key: &[u8]) -> Result<i64, StorageFailed> {
    let raw: [u8; 8] = key.try_into().map_err(|_| damaged(table, "a key is not 8 bytes long"))?;
    i64::try_from(u64::from_be_bytes(raw)).map_err(|_| damaged(table, "a key is above the largest number"))
}

/// `key` so that no escaped key is the front of another, in the keys' own order: a zero byte
/// becomes `00 ff`, and `00 01` ends the key.
pub fn escape(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 10);
    for &byte in key {
        out.push(byte);
        if byte == 0 {
            out.push(0xff);
        }
    }
    out.extend([0, 1]);
    out
}

/// The key in [`Table::Past`] and [`Table::Values`] of the version of `key` made at `revision`. Newer versions come
/// first, so one seek to (key, R) finds the newest version made at or before R.
pub fn past_key(key: &[u8], revision: Revision) -> Bytes {
    let mut out = escape(key);
    out.extend((!(revision as u64)).to_be_bytes());
    out.into()
}

/// The escaped key and the revision in a key of [`Table::Past`].
pub fn split_past(key: &Bytes) -> Result<(Bytes, Revision), StorageFailed> {
    let Some(at) = key.len().checked_sub(8) else {
        return Err(damaged(Table::Past, "a key is too short"));
    };
    let raw: [u8; 8] = key[at..].try_into().expect("eight bytes were cut off");
    Ok((key.slice(..at), !u64::from_be_bytes(raw) as Revision))
}

/// The key that [`escape`] was given.
pub fn unescape(escaped: &[u8]) -> Result<Bytes, StorageFailed> {
    let mut out = BytesMut::with_capacity(escaped.len());
    let mut rest = escaped;
    loop {
        match rest {
            [0, 1] => return Ok(out.freeze()),
            [0, 0xff, after @ ..] => {
                out.put_u8(0);
                rest = after;
            }
            [byte, after @ ..] if *byte != 0 => {
                out.put_u8(*byte);
                rest = after;
            }
            _ => return Err(damaged(Table::Past, "a key is not escaped as it should be")),
        }
    }
}

/// A lease's id, which may be any number, as key bytes in its own order.
pub fn lease_key(id: LeaseId) -> Bytes {
    Bytes::copy_from_slice(&((id as u64) ^ SIGN).to_be_bytes())
}

/// The id that [`lease_key`] wrote.
pub fn from_lease_key(key: &[u8]) -> Result<LeaseId, StorageFailed> {
    let raw: [u8; 8] = key.try_into().map_err(|_| damaged(Table::Lease, "a key is not 8 bytes long"))?;
    Ok((u64::from_be_bytes(raw) ^ SIGN) as LeaseId)
}

const SIGN: u64 = 1 << 63;

/// The key in [`Table::Attached`] that binds `key` to a lease; with an empty key the front of
/// all that lease's keys.
pub fn attached_key(lease: LeaseId, key: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(8 + key.len());
    out.extend(lease_key(lease));
    out.extend(key);
    out.into()
}

/// The key of a member's record in [`Table::Members`].
pub fn member_key(id: NodeId) -> Bytes {
    tagged(0, id.0)
}

/// Just behind every member's key.
pub fn members_end() -> Bytes {
    tagged(1, 0)
}

/// A tag and a number, in the order of the number within the tag.
pub fn tagged(tag: u8, number: u64) -> Bytes {
    let mut out = Vec::with_capacity(9);
    out.push(tag);
    out.extend(number.to_be_bytes());
    out.into()
}

/// A stored value, or an error that names its table.
pub fn decode<T: Wire>(table: Table, bytes: Bytes) -> Result<T, StorageFailed> {
    T::from_bytes(bytes).map_err(|error| damaged(table, error.what))
}

/// The value of `key` in `table`, if there is one.
pub fn load<T: Wire>(view: &dyn Read, table: Table, key: &[u8]) -> Result<Option<T>, StorageFailed> {
    view.get(table, key)?.map(|bytes| decode(table, bytes)).transpose()
}

/// A single record that every store of a cluster has.
pub fn load_meta<T: Wire>(view: &dyn Read, key: &[u8]) -> Result<T, StorageFailed> {
    load(view, Table::Meta, key)?
        .ok_or_else(|| damaged(Table::Meta, &format!("the record \"{}\" is missing", key.escape_ascii())))
}

/// The store holds what was never written.
pub fn damaged(table: Table, why: &str) -> StorageFailed {
    StorageFailed::damaged(STORE, format!("table {}: {why}", table.name()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()], 0..6)
    }

    proptest! {
        #[test]
        fn leases_keep_their_order_and_come_back(a: i64, b: i64) {
            prop_assert_eq!(lease_key(a).cmp(&lease_key(b)), a.cmp(&b));
            prop_assert_eq!(from_lease_key(&lease_key(a)).unwrap(), a);
        }

        #[test]
        fn escaped_keys_keep_their_order_and_come_back(a in keys(), b in keys(), r in 1i64..9, s in 1i64..9) {
            prop_assert_eq!(unescape(&escape(&a)).unwrap(), a.clone());
            prop_assert_eq!(past_key(&a, r).cmp(&past_key(&b, s)), a.cmp(&b).then(s.cmp(&r)));
            let (escaped, revision) = split_past(&past_key(&a, r)).unwrap();
            prop_assert_eq!((escaped.to_vec(), revision), (escape(&a), r));
        }

        #[test]
        fn any_bytes_are_a_key_or_a_damaged_store(bytes in keys()) {
            let _ = unescape(&bytes);
            let _ = split_past(&bytes.clone().into());
            let _ = from_ordered(Table::Log, &bytes);
            let _ = split_log(&bytes);
            let _ = from_lease_key(&bytes);
        }
    }
}
