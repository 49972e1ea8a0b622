//! Answering a range: limit, sort, filters, count, with etcd's meaning of each.
//!
//! It must never hold more than the answer may have: where a sort needs all keys and a limit is
//! given, what can't be in the answer is dropped on the way.

use std::cmp::Ordering;

use super::stop::Stop;
use super::store::Read;
use super::versions::versions;
use crate::error::Refusal;
use crate::limits::{MAX_DELETE_BYTES, MAX_RANGE_BYTES};
use crate::types::{KeyValue, RangeRequest, RangeResponse, Revision, SortOrder, SortTarget};

/// Bytes that an answered key takes besides key and value.
const KEY_OVERHEAD: usize = 64;

/// Bytes that the answer to one request may still have.
#[derive(Debug)]
pub struct Budget {
    answer: usize,
    deletes: usize,
}

impl Budget {
    /// A whole request's.
    pub fn new() -> Self {
        Self { answer: MAX_RANGE_BYTES, deletes: MAX_DELETE_BYTES }
    }

    /// Takes what removing `bytes` of keys and values needs.
    pub fn take_delete(&mut self, bytes: usize) -> Result<(), Refusal> {
        let why = || format!("it holds more than {MAX_DELETE_BYTES} bytes; delete it in parts");
        self.deletes = self.deletes.checked_sub(bytes).ok_or_else(|| Refusal::invalid("range", why()))?;
        Ok(())
    }

    /// Takes what `kv` needs.
    pub fn take(&mut self, kv: &KeyValue) -> Result<(), Refusal> {
        self.answer = self.answer.checked_sub(size(kv)).ok_or_else(too_large)?;
        Ok(())
    }
}

fn too_large() -> Refusal {
    let why = format!("the answer would have more than {MAX_RANGE_BYTES} bytes; ask for it in pages");
    Refusal::invalid("limit", why)
}

fn size(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len() + KEY_OVERHEAD
}

/// Refuses a revision that can't be read at `current` and `compacted`.
pub fn check_revision(revision: Revision, current: Revision, compacted: Revision) -> Result<(), Refusal> {
    if revision <= 0 {
        return Ok(());
    }
    if revision > current {
        return Err(Refusal::FutureRevision { requested: revision, current });
    }
    if revision < compacted {
        return Err(Refusal::Compacted { requested: revision, compacted });
    }
    Ok(())
}

/// Answers `request`, whose revision has been checked. Its answer counts against `budget`.
pub fn range(view: &dyn Read, request: &RangeRequest, budget: &mut Budget) -> Result<RangeResponse, Stop> {
    let at = (request.revision > 0).then_some(request.revision);
    let mut picked = Picked::new(request);
    let mut count = 0;
    for pair in versions(view, &request.range, at) {
        let (key, stored) = pair?;
        count += 1;
        if !request.count_only {
            picked.offer(stored.with_key(key), budget.answer)?;
        }
    }
    let (kvs, more) = picked.finish();
    for kv in &kvs {
        budget.take(kv)?;
    }
    Ok(RangeResponse { kvs, more, count })
}

/// The keys that may still be in the answer.
struct Picked<'a> {
    request: &'a RangeRequest,
    limit: usize,
    kvs: Vec<KeyValue>,
    bytes: usize,
    more: bool,
}

impl<'a> Picked<'a> {
    fn new(request: &'a RangeRequest) -> Self {
        let limit = match usize::try_from(request.limit) {
            Ok(0) | Err(_) => usize::MAX,
            Ok(limit) => limit,
        };
        Self { request, limit, kvs: Vec::new(), bytes: 0, more: false }
    }

    /// Whether keys come in another order than that of the answer.
    fn is_sorted(&self) -> bool {
        self.request.sort_target != SortTarget::Key || self.request.sort_order == SortOrder::Descend
    }

    fn offer(&mut self, mut kv: KeyValue, budget: usize) -> Result<(), Refusal> {
        if !passes(self.request, &kv) {
            return Ok(());
        }
        if !self.is_sorted() && self.kvs.len() == self.limit {
            self.more = true;
            return Ok(());
        }
        if self.request.keys_only && self.request.sort_target != SortTarget::Value {
            kv.value.clear();
        }
        self.bytes += size(&kv);
        self.kvs.push(kv);
        let many = self.limit.saturating_mul(2).max(1024);
        if self.kvs.len() >= many || self.bytes > budget {
            self.cut();
        }
        // Refused here already, so that no more than a budget is ever held.
        if self.bytes > budget { Err(too_large()) } else { Ok(()) }
    }

    /// Brings what was picked in order and within the limit.
    fn cut(&mut self) {
        if self.is_sorted() {
            let descend = self.request.sort_order == SortOrder::Descend;
            let target = self.request.sort_target;
            self.kvs.sort_by(|a, b| {
                let order = compare(target, a, b);
                if descend { order.reverse() } else { order }
            });
        }
        if self.kvs.len() > self.limit {
            self.kvs.truncate(self.limit);
            self.more = true;
        }
        self.bytes = self.kvs.iter().map(size).sum();
    }

    fn finish(mut self) -> (Vec<KeyValue>, bool) {
        self.cut();
        if self.request.keys_only {
            self.kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        (self.kvs, self.more)
    }
}

fn compare(target: SortTarget, a: &KeyValue, b: &KeyValue) -> Ordering {
    match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    }
}

fn passes(request: &RangeRequest, kv: &KeyValue) -> bool {
    let least = |bound: Revision, found: Revision| bound == 0 || found >= bound;
    let most = |bound: Revision, found: Revision| bound == 0 || found <= bound;
    least(request.min_mod_revision, kv.mod_revision)
        && most(request.max_mod_revision, kv.mod_revision)
        && least(request.min_create_revision, kv.create_revision)
        && most(request.max_create_revision, kv.create_revision)
}
