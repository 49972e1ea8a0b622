//! Keys, values and the requests on them, with etcd v3's semantics.

use bytes::Bytes;

use super::{LeaseId, Revision};
use crate::codec::{wire_enum, wire_struct};

/// One key at one revision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The revision that made the key, counted anew after a delete.
    pub create_revision: Revision,
    /// The revision that last changed it.
    pub mod_revision: Revision,
    /// How often it was put since it was made; 1 for a new key.
    pub version: i64,
    /// The value.
    pub value: Bytes,
    /// The lease that the key ends with, or 0.
    pub lease: LeaseId,
}
wire_struct!(KeyValue { key, create_revision, mod_revision, version, value, lease });

/// A set of keys in etcd's terms: `end` empty means just `key`; `end` = `"\0"` means every key
/// from `key` on; else keys in `[key, end)`. Both `"\0"`: all keys.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct KeyRange {
    /// The first key.
    pub key: Bytes,
    /// See the type.
    pub end: Bytes,
}
wire_struct!(KeyRange { key, end });

impl KeyRange {
    /// Just `key`.
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self { key: key.into(), end: Bytes::new() }
    }

    /// Keys from `key` up to, not including, `end`.
    pub fn span(key: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self { key: key.into(), end: end.into() }
    }

    /// Every key.
    pub fn all() -> Self {
        Self::span(&b"\0"[..], &b"\0"[..])
    }

    /// Every key that starts with `prefix`; all keys for an empty one.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let key: Bytes = prefix.into();
        if key.is_empty() {
            return Self::all();
        }
        let mut end = key.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return Self { key, end: end.into() };
            }
        }
        Self { key, end: Bytes::from_static(b"\0") }
    }

    /// Whether the range names one key.
    pub fn is_single(&self) -> bool {
        self.end.is_empty()
    }

    /// The first key not in the range any more; `None` where there is no end. A single key's
    /// range ends just behind itself.
    pub fn upper(&self) -> Option<Bytes> {
        if self.is_single() {
            let mut end = self.key.to_vec();
            end.push(0);
            Some(end.into())
        } else if self.end.as_ref() == b"\0" {
            None
        } else {
            Some(self.end.clone())
        }
    }

    /// Whether `key` is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        if self.is_single() {
            return key == self.key.as_ref();
        }
        key >= self.key.as_ref() && (self.end.as_ref() == b"\0" || key < self.end.as_ref())
    }
}

/// What happened to a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// It was made or changed.
    Put,
    /// It was removed.
    Delete,
}
wire_enum!(EventKind { 0 => Put, 1 => Delete });

/// One change of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key after a put; for a delete only `key` and `mod_revision` (of the delete).
    pub kv: KeyValue,
    /// The key before, where there was one and it is still known.
    pub prev: Option<KeyValue>,
}
wire_struct!(Event { kind, kv, prev });

/// All events of one revision, in the order of the request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The revision they made.
    pub revision: Revision,
    /// At least one; no key twice.
    pub events: Vec<Event>,
}
wire_struct!(Change { revision, events });

/// What a range is sorted by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SortTarget {
    /// The key.
    #[default]
    Key,
    /// The version.
    Version,
    /// The create revision.
    Create,
    /// The mod revision.
    Mod,
    /// The value.
    Value,
}
wire_enum!(SortTarget { 0 => Key, 1 => Version, 2 => Create, 3 => Mod, 4 => Value });

/// Which way a range is sorted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SortOrder {
    /// As stored (by key), or ascending where the target is not the key.
    #[default]
    None,
    /// Smallest first.
    Ascend,
    /// Largest first.
    Descend,
}
wire_enum!(SortOrder { 0 => None, 1 => Ascend, 2 => Descend });

/// Reads keys.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RangeRequest {
    /// Which keys.
    pub range: KeyRange,
    /// At most so many; 0 or below for all.
    pub limit: i64,
    /// As of this revision; 0 or below for the newest.
    pub revision: Revision,
    /// Which way to sort.
    pub sort_order: SortOrder,
    /// By what.
    pub sort_target: SortTarget,
    /// Answer from this member's own state, which may be old.
    pub serializable: bool,
    /// Leave the values out.
    pub keys_only: bool,
    /// Answer the count alone.
    pub count_only: bool,
    /// Keep keys whose mod revision is at least this; 0 for no bound.
    pub min_mod_revision: Revision,
    /// Keep keys whose mod revision is at most this; 0 for no bound.
    pub max_mod_revision: Revision,
    /// Keep keys whose create revision is at least this; 0 for no bound.
    pub min_create_revision: Revision,
    /// Keep keys whose create revision is at most this; 0 for no bound.
    pub max_create_revision: Revision,
}
wire_struct!(RangeRequest {
    range,
    limit,
    revision,
    sort_order,
    sort_target,
    serializable,
    keys_only,
    count_only,
    min_mod_revision,
    max_mod_revision,
    min_create_revision,
    max_create_revision,
});

/// What a range found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RangeResponse {
    /// The keys, sorted and cut as asked.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit cut some off.
    pub more: bool,
    /// Keys in the range, limit and filters ignored.
    pub count: i64,
}
wire_struct!(RangeResponse { kvs, more, count });

/// Writes one key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PutRequest {
    /// The key; not empty.
    pub key: Bytes,
    /// The value; must be empty with `ignore_value`.
    pub value: Bytes,
    /// The lease that the key ends with, or 0 for none.
    pub lease: LeaseId,
    /// Answer what the key was before.
    pub prev_kv: bool,
    /// Keep the value the key has; it must exist.
    pub ignore_value: bool,
    /// Keep the lease the key has; it must exist.
    pub ignore_lease: bool,
}
wire_struct!(PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease });

/// What a put did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PutResponse {
    /// The key before, where asked for and there was one.
    pub prev: Option<KeyValue>,
}
wire_struct!(PutResponse { prev });

/// Removes keys.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeleteRequest {
    /// Which keys.
    pub range: KeyRange,
    /// Answer what the keys were before.
    pub prev_kv: bool,
}
wire_struct!(DeleteRequest { range, prev_kv });

/// What a delete did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeleteResponse {
    /// How many keys it removed.
    pub deleted: i64,
    /// The keys before, where asked for.
    pub prevs: Vec<KeyValue>,
}
wire_struct!(DeleteResponse { deleted, prevs });

/// How a compare relates what is stored (left) to what is given (right).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CompareOp {
    /// Same.
    #[default]
    Equal,
    /// Stored is larger.
    Greater,
    /// Stored is smaller.
    Less,
    /// Different.
    NotEqual,
}
wire_enum!(CompareOp { 0 => Equal, 1 => Greater, 2 => Less, 3 => NotEqual });

/// What a compare looks at, and the value to compare it with. A missing key is all zeros, but
/// a compare of its value is always false.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CompareTarget {
    /// The version.
    Version(i64),
    /// The create revision.
    Create(Revision),
    /// The mod revision.
    Mod(Revision),
    /// The value.
    Value(Bytes),
    /// The lease.
    Lease(LeaseId),
}
wire_enum!(CompareTarget { 0 => Version(v), 1 => Create(v), 2 => Mod(v), 3 => Value(v), 4 => Lease(v) });

/// One condition of a transaction; every key of the range must satisfy it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compare {
    /// Which keys.
    pub range: KeyRange,
    /// The relation.
    pub op: CompareOp,
    /// What is compared with what.
    pub target: CompareTarget,
}
wire_struct!(Compare { range, op, target });

/// One operation of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TxnOp {
    /// Reads; sees what earlier operations of the same transaction wrote.
    Range(RangeRequest),
    /// Writes.
    Put(PutRequest),
    /// Removes.
    Delete(DeleteRequest),
    /// A transaction within.
    Txn(TxnRequest),
}
wire_enum!(TxnOp { 1 => Range(request), 2 => Put(request), 3 => Delete(request), 4 => Txn(request) });

/// Compares, then one of two lists of operations, as one step and at most one revision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TxnRequest {
    /// All must hold for `success`; nested ones too look at the state before the transaction.
    pub compares: Vec<Compare>,
    /// Done if they hold.
    pub success: Vec<TxnOp>,
    /// Done if not.
    pub failure: Vec<TxnOp>,
}
wire_struct!(TxnRequest { compares, success, failure });

impl TxnRequest {
    /// Whether nothing in it can change the store, on either path.
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| matches!(op, TxnOp::Range(_)))
    }
}

/// What one operation of a transaction answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TxnOpResponse {
    /// To a range.
    Range(RangeResponse),
    /// To a put.
    Put(PutResponse),
    /// To a delete.
    Delete(DeleteResponse),
    /// To a nested transaction.
    Txn(TxnResponse),
}
wire_enum!(TxnOpResponse { 1 => Range(response), 2 => Put(response), 3 => Delete(response), 4 => Txn(response) });

/// What a transaction did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TxnResponse {
    /// Whether the compares held.
    pub succeeded: bool,
    /// One for each operation of the path taken.
    pub responses: Vec<TxnOpResponse>,
}
wire_struct!(TxnResponse { succeeded, responses });

/// What a lease has left.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LeaseStatus {
    /// The lease.
    pub id: LeaseId,
    /// Whole seconds left; -1 where the lease does not exist.
    pub ttl: i64,
    /// Seconds it was granted for.
    pub granted_ttl: i64,
    /// The keys that end with it, where asked for.
    pub keys: Vec<Bytes>,
}
wire_struct!(LeaseStatus { id, ttl, granted_ttl, keys });

/// Follows keys.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WatchRequest {
    /// Which keys.
    pub range: KeyRange,
    /// From this revision on, it included; 0 for what comes after now. Negative is refused.
    pub start_revision: Revision,
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletes out.
    pub no_delete: bool,
    /// Say what keys were before.
    pub prev_kv: bool,
    /// Say now and then up to which revision all was sent, when nothing happens.
    pub progress_notify: bool,
}
wire_struct!(WatchRequest { range, start_revision, no_put, no_delete, prev_kv, progress_notify });

/// What a watcher is handed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WatchBatch {
    /// Whole revisions, ascending, each with the events the watcher asked for.
    Changes(Vec<Change>),
    /// Nothing new for this watcher up to and including this revision: resume behind it.
    Progress(Revision),
    /// History from the asked revision on is gone; the watch has ended. The oldest revision that
    /// can still be watched.
    Compacted(Revision),
    /// Some events of one revision, in order: one of a rollback that is too large to be held whole.
    /// The rest of them follow before anything else: further parts, and at last
    /// [`Changes`](Self::Changes) that begin with the same revision, or [`Progress`](Self::Progress)
    /// up to it where nothing of it is left for this watcher.
    Part(Change),
}
wire_enum!(WatchBatch {
    1 => Changes(changes), 2 => Progress(revision), 3 => Compacted(revision), 4 => Part(change),
});
