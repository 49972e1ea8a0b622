//! The rule that one path through a transaction changes a key at most once: the same key put
//! twice, or put and deleted, in whatever order and across nesting, is refused. Two deletes may
//! overlap; the two branches of one transaction exclude each other.
//!
//! etcd overlooks one case, a nested put followed by a delete in a later nested transaction of
//! the same list; here it is refused like the other order.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;

use crate::error::Refusal;
use crate::types::{KeyRange, TxnOp, TxnRequest, readable};

/// Refuses a transaction of which one path would change a key twice. Takes time linear in the
/// request's operations, but for logarithms and its depth.
pub fn check_overlaps(request: &TxnRequest) -> Result<(), Refusal> {
    changes(&request.success)?;
    changes(&request.failure)?;
    Ok(())
}

/// What a list of operations may change.
#[derive(Default)]
struct Changes {
    puts: BTreeSet<Bytes>,
    /// Disjoint spans, by their start; no end means all keys from there on.
    deletes: BTreeMap<Bytes, Option<Bytes>>,
}

fn changes(ops: &[TxnOp]) -> Result<Changes, Refusal> {
    let mut all = Changes::default();
    for op in ops {
        match op {
            TxnOp::Range(_) => {}
            TxnOp::Put(request) => all.check_put(&request.key)?,
            TxnOp::Delete(request) => all.check_delete(&request.range.key, request.range.upper().as_ref())?,
            TxnOp::Txn(nested) => {
                let branches = [changes(&nested.success)?, changes(&nested.failure)?];
                // Each branch is held against what stands beside it, not against the other.
                for branch in &branches {
                    branch.puts.iter().try_for_each(|key| all.check_put(key))?;
                    branch.deletes.iter().try_for_each(|(from, to)| all.check_delete(from, to.as_ref()))?;
                }
                branches.into_iter().for_each(|branch| all.add(branch));
                continue;
            }
        }
        match op {
            TxnOp::Put(request) => drop(all.puts.insert(request.key.clone())),
            TxnOp::Delete(request) => all.add_delete(&request.range),
            TxnOp::Range(_) | TxnOp::Txn(_) => {}
        }
    }
    Ok(all)
}

impl Changes {
    fn check_put(&self, key: &Bytes) -> Result<(), Refusal> {
        let before = self.deletes.range::<Bytes, _>(..=key).next_back();
        let deleted = before.is_some_and(|(_, to)| to.as_ref().is_none_or(|to| key < to));
        if deleted || self.puts.contains(key) {
            return Err(Refusal::DuplicateKey { key: readable(key) });
        }
        Ok(())
    }

    fn check_delete(&self, from: &Bytes, to: Option<&Bytes>) -> Result<(), Refusal> {
        if to.is_some_and(|to| to <= from) {
            return Ok(());
        }
        let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
        match self.puts.range::<Bytes, _>((Bound::Included(from), upper)).next() {
            Some(key) => Err(Refusal::DuplicateKey { key: readable(key) }),
            None => Ok(()),
        }
    }

    fn add_delete(&mut self, range: &KeyRange) {
        self.add_span(range.key.clone(), range.upper());
    }

    fn add(&mut self, other: Changes) {
        self.puts.extend(other.puts);
        for (from, to) in other.deletes {
            self.add_span(from, to);
        }
    }

    /// Adds a span and joins it with those it meets, so that spans stay disjoint.
    fn add_span(&mut self, mut from: Bytes, mut to: Option<Bytes>) {
        if to.as_ref().is_some_and(|to| *to <= from) {
            return;
        }
        if let Some((start, end)) = self.deletes.range::<Bytes, _>(..=&from).next_back()
            && end.as_ref().is_none_or(|end| *end >= from)
        {
            from = start.clone();
        }
        while let Some((start, end)) = self.deletes.range::<Bytes, _>(&from..).next() {
            if to.as_ref().is_some_and(|to| start > to) {
                break;
            }
            let (start, end) = (start.clone(), end.clone());
            to = match (to, end) {
                (Some(a), Some(b)) => Some(a.max(b)),
                _ => None,
            };
            self.deletes.remove(&start);
        }
        self.deletes.insert(from, to);
    }
}
