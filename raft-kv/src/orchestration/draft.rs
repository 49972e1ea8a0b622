//! One transaction of the typed layer: what it has read, what it will write, and what must not have changed in
//! between.
//!
//! All its reads are of one revision. Nothing may rest on a key that is not compared when it is committed.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::store::Store;
use crate::error::{Error, Refusal};
use crate::limits::{
    MAX_BATCH_COMPARES, MAX_BATCH_WRITES, MAX_ORCHESTRATION_READ_KEYS, MAX_TXN_OPS, ORCHESTRATION_NESTED_OPS,
};
use crate::planted;
use crate::types::{
    Compare, CompareOp, CompareTarget, DeleteRequest, KeyRange, KeyValue, PutRequest, RangeRequest, Revision,
    TxnOp, TxnOpResponse, TxnRequest,
};

/// See the module.
pub struct Draft<'a, S> {
    store: &'a S,
    /// Reads are of what this member knows already, which may be old.
    serializable: bool,
    revision: Revision,
    read: BTreeMap<Bytes, Option<KeyValue>>,
    writes: BTreeMap<Bytes, Option<Bytes>>,
    same: BTreeMap<Bytes, CompareTarget>,
    quiet: BTreeMap<Bytes, KeyRange>,
}

impl<'a, S: Store> Draft<'a, S> {
    pub fn new(store: &'a S) -> Self {
        let (read, writes) = (BTreeMap::new(), BTreeMap::new());
        let (same, quiet) = (BTreeMap::new(), BTreeMap::new());
        Self { store, serializable: false, revision: 0, read, writes, same, quiet }
    }

    /// One that reads what this member has, without asking the leader whether that is all: whatever rests on it must
    /// be compared when it is committed, and nothing may be refused by it.
    pub fn near(store: &'a S) -> Self {
        Self { serializable: true, ..Self::new(store) }
    }

    /// The revision of its reads; 0 before the first.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Reads keys that will be asked for, in as few requests as can be.
    pub async fn fetch(&mut self, keys: Vec<Bytes>) -> Result<(), Error> {
        let mut keys: Vec<Bytes> = keys.into_iter().filter(|key| !self.read.contains_key(key)).collect();
        keys.sort();
        keys.dedup();
        for keys in keys.chunks(MAX_ORCHESTRATION_READ_KEYS) {
            let (revision, found) = read_keys(self.store, keys, self.revision, self.serializable).await?;
            self.revision = revision;
            self.read.extend(keys.iter().cloned().zip(found));
        }
        Ok(())
    }

    /// A key as it was read: its value as this transaction leaves it is not looked at.
    pub async fn stored(&mut self, key: &Bytes) -> Result<Option<KeyValue>, Error> {
        if !self.read.contains_key(key) {
            self.fetch(vec![key.clone()]).await?;
        }
        Ok(self.read[key].clone())
    }

    /// A key as this transaction leaves it; what it wrote itself keeps the revisions of before.
    pub async fn get(&mut self, key: &Bytes) -> Result<Option<KeyValue>, Error> {
        let stored = self.stored(key).await?;
        Ok(match self.writes.get(key) {
            None => stored,
            Some(None) => None,
            Some(Some(value)) => {
                let before = stored.unwrap_or_default();
                Some(KeyValue { key: key.clone(), value: value.clone(), ..before })
            }
        })
    }

    /// As [`look`](Self::look); and nobody may add to the range or change one of its keys before this is
    /// committed.
    pub async fn scan(&mut self, range: KeyRange, limit: usize) -> Result<(Vec<Bytes>, bool), Error> {
        self.quiet.insert(range.key.clone(), range.clone());
        self.look(range, limit).await
    }

    /// Keys of a range as this transaction leaves them, without values. At most `limit`, then `true` where
    /// there are more.
    pub async fn look(&mut self, range: KeyRange, limit: usize) -> Result<(Vec<Bytes>, bool), Error> {
        let ours = self.writes.range(range.key.clone()..).take_while(|(key, _)| range.contains(key)).count();
        let request = RangeRequest {
            range: range.clone(),
            limit: i64::try_from(limit + ours + 1).unwrap_or(i64::MAX),
            revision: self.revision,
            keys_only: true,
            ..Default::default()
        };
        let (header, found) = self.store.range(request).await?;
        if self.revision == 0 {
            self.revision = header.revision;
        }
        let mut keys: Vec<Bytes> = found.kvs.into_iter().map(|kv| kv.key).collect();
        keys.retain(|key| !matches!(self.writes.get(key), Some(None)));
        let added = self.writes.iter().filter(|(key, value)| value.is_some() && range.contains(key));
        keys.extend(added.map(|(key, _)| key.clone()));
        keys.sort();
        keys.dedup();
        let more = keys.len() > limit;
        keys.truncate(limit);
        Ok((keys, more))
    }

    /// A key that was read must be the same when this is committed.
    pub async fn hold(&mut self, key: &Bytes) -> Result<(), Error> {
        let revision = self.stored(key).await?.map_or(0, |kv| kv.mod_revision);
        self.same.insert(key.clone(), CompareTarget::Mod(revision));
        Ok(())
    }

    /// A key that was read must be there, or not, as it was: its value may change.
    pub async fn hold_existence(&mut self, key: &Bytes) -> Result<(), Error> {
        let revision = self.stored(key).await?.map_or(0, |kv| kv.create_revision);
        self.same.entry(key.clone()).or_insert(CompareTarget::Create(revision));
        Ok(())
    }

    pub fn put(&mut self, key: Bytes, value: Bytes) {
        self.writes.insert(key, Some(value));
    }

    pub fn remove(&mut self, key: Bytes) {
        self.writes.insert(key, None);
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// The transaction. Where a compare fails, nothing of it is done.
    ///
    /// # Errors
    /// [`Refusal::BatchTooLarge`].
    pub fn request(self, further: Option<Compare>) -> Result<TxnRequest, Error> {
        let next = self.revision + 1;
        let same = self.same.into_iter().map(|(key, target)| Compare {
            range: KeyRange::key(key),
            op: CompareOp::Equal,
            target,
        });
        let quiet = self.quiet.into_values().map(|range| Compare {
            range,
            op: CompareOp::Less,
            target: CompareTarget::Mod(next),
        });
        let own = same.chain(quiet).filter(|_| !planted!(CommitBlind));
        let compares: Vec<Compare> = own.chain(further).collect();
        bound("conditions", compares.len(), MAX_BATCH_COMPARES)?;
        bound("keys", self.writes.len(), MAX_BATCH_WRITES)?;
        let mut ops: Vec<TxnOp> = self.writes.into_iter().map(|(key, value)| op_of(key, value)).collect();
        if ops.len() > MAX_TXN_OPS {
            let mut groups = Vec::new();
            while !ops.is_empty() {
                let rest = ops.split_off(ORCHESTRATION_NESTED_OPS.min(ops.len()));
                groups.push(TxnOp::Txn(TxnRequest { success: ops, ..Default::default() }));
                ops = rest;
            }
            ops = groups;
        }
        Ok(TxnRequest { compares, success: ops, failure: Vec::new() })
    }
}

fn bound(what: &str, len: usize, max: usize) -> Result<(), Error> {
    if len <= max {
        return Ok(());
    }
    Err(Refusal::BatchTooLarge { what: what.into(), len: len as u64, max: max as u64 }.into())
}

fn op_of(key: Bytes, value: Option<Bytes>) -> TxnOp {
    match value {
        Some(value) => TxnOp::Put(PutRequest { key, value, ..Default::default() }),
        None => TxnOp::Delete(DeleteRequest { range: KeyRange::key(key), prev_kv: false }),
    }
}

/// Keys as of a revision (0: now), in their order, and the revision. At most
/// [`MAX_ORCHESTRATION_READ_KEYS`].
pub async fn read_keys<S: Store>(
    store: &S,
    keys: &[Bytes],
    revision: Revision,
    serializable: bool,
) -> Result<(Revision, Vec<Option<KeyValue>>), Error> {
    let range = |key: &Bytes| RangeRequest {
        range: KeyRange::key(key.clone()),
        revision,
        serializable,
        ..Default::default()
    };
    if let [key] = keys {
        let (header, mut found) = store.range(range(key)).await?;
        let at = if revision == 0 { header.revision } else { revision };
        return Ok((at, vec![found.kvs.pop()]));
    }
    let success = keys.iter().map(|key| TxnOp::Range(range(key))).collect();
    let (header, answer) = store.txn(TxnRequest { success, ..Default::default() }).await?;
    let found = answer.responses.into_iter().map(|response| match response {
        TxnOpResponse::Range(mut found) => found.kvs.pop(),
        _ => None,
    });
    Ok((if revision == 0 { header.revision } else { revision }, found.collect()))
}
