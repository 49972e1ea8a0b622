//! Answering a range: limit, sort, filters, count, with etcd's meaning of each.
//!
//! It must never hold more than the answer may have: where a sort needs all keys and a limit is
//! given, what can't be in the answer is dropped on the way. Values are read for keys that are in
//! the answer, never to count or to leave them out.

use std::cmp::Ordering;

use bytes::Bytes;

use super::count::behind;
use super::format::Stored;
use super::points::pin_exists;
use super::stop::Stop;
use super::store::Read;
use super::values::ValueReader;
use super::versions::{count, versions};
use crate::error::{Refusal, StorageFailed};
use crate::limits::{DELETE_KEY_BYTES, MAX_DELETE_BYTES, MAX_RANGE_BYTES};
use crate::types::{KeyValue, RangeRequest, RangeResponse, Revision, SortOrder, SortTarget};

/// Bytes that an answered key takes besides key and value.
const KEY_OVERHEAD: usize = 64;

/// What [`measure`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RangeMeasure {
    /// The sum over the keys of the answer.
    pub sum: u64,
    /// Keys in the range, the limit ignored.
    pub count: i64,
    /// Whether the limit cuts some off.
    pub more: bool,
}

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

    /// Takes what removing a key needs whose key and value are `bytes` long together.
    pub fn take_delete(&mut self, bytes: usize) -> Result<(), Refusal> {
        let bytes = bytes.saturating_add(DELETE_KEY_BYTES);
        let why = || {
            format!(
                "it holds more than {MAX_DELETE_BYTES} bytes, counting {DELETE_KEY_BYTES} for each key; delete it in parts"
            )
        };
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
    Refusal::AnswerTooLarge { max: MAX_RANGE_BYTES as u64 }
}

fn size(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len() + KEY_OVERHEAD
}

/// Refuses a revision that can't be read at `current` and `compacted`: a rollback point's can.
pub fn check_revision(
    view: &dyn Read,
    revision: Revision,
    current: Revision,
    compacted: Revision,
) -> Result<(), Stop> {
    if revision <= 0 {
        return Ok(());
    }
    if revision > current {
        return Err(Refusal::FutureRevision { requested: revision, current }.into());
    }
    if revision < compacted && !pin_exists(view, revision)? {
        return Err(Refusal::Compacted { requested: revision, compacted }.into());
    }
    Ok(())
}

/// The same of a range within a transaction: there a revision below 0 is not the newest, but one
/// before all that can be read, as in etcd (before the first compaction `compacted` is -1).
pub fn check_txn_revision(
    view: &dyn Read,
    revision: Revision,
    current: Revision,
    compacted: Revision,
) -> Result<(), Stop> {
    if revision < 0 && revision < compacted {
        return Err(Refusal::Compacted { requested: revision, compacted }.into());
    }
    check_revision(view, revision, current, compacted)
}

/// Answers `request`, whose revision has been checked. Its answer counts against `budget`. Where
/// the number of keys in the range is `known`, no more is read than is answered.
pub fn range(
    view: &dyn Read,
    request: &RangeRequest,
    known: Option<i64>,
    budget: &mut Budget,
) -> Result<RangeResponse, Stop> {
    let at = (request.revision > 0).then_some(request.revision);
    if request.count_only {
        let count = known.map_or_else(|| count(view, &request.range, at), Ok)?;
        return Ok(RangeResponse { count, ..RangeResponse::default() });
    }
    let mut picked = Picked::new(request);
    let mut seen = 0;
    let mut rest = 0;
    for pair in versions(view, &request.range, at) {
        let (key, stored) = pair?;
        seen += 1;
        picked.offer(view, &key, stored, budget.answer)?;
        if picked.is_complete() {
            if known.is_none() {
                rest = count(view, &behind(&request.range, &key), at)?;
            }
            break;
        }
    }
    let (kvs, more) = picked.finish(view)?;
    for kv in &kvs {
        budget.take(kv)?;
    }
    Ok(RangeResponse { kvs, more, count: known.unwrap_or(seen + rest) })
}

/// Keys of `range` at `at` in their order, the newest for `None`: at most `keys`, and not many
/// more than `bytes` but at least one; whether there are more. Nothing is counted.
pub fn page(
    view: &dyn Read,
    request: &RangeRequest,
    at: Option<Revision>,
    keys: usize,
    bytes: usize,
) -> Result<(Vec<KeyValue>, bool), StorageFailed> {
    let mut kvs: Vec<KeyValue> = Vec::new();
    let mut taken = 0;
    let mut values = ValueReader::new(view);
    for pair in versions(view, &request.range, at) {
        let (key, stored) = pair?;
        if kvs.len() >= keys || taken >= bytes {
            return Ok((kvs, true));
        }
        let value = if request.keys_only { Bytes::new() } else { values.value(&key, &stored)? };
        let kv = KeyValue { value, ..stored.without_value(key) };
        taken += size(&kv);
        kvs.push(kv);
    }
    Ok((kvs, false))
}

/// Sums what `weigh` says of each key that the answer has, given the key with a blank value and the
/// length of the value that the answer has, in bytes. Reads no value.
pub fn measure(
    view: &dyn Read,
    request: &RangeRequest,
    at: Option<Revision>,
    weigh: fn(&KeyValue, u64) -> u64,
) -> Result<RangeMeasure, StorageFailed> {
    let limit = if request.limit > 0 { request.limit } else { i64::MAX };
    let mut measured = RangeMeasure::default();
    for pair in versions(view, &request.range, at) {
        let (key, stored) = pair?;
        measured.count += 1;
        if measured.count > limit {
            measured.more = true;
        } else {
            let value = if request.keys_only { 0 } else { stored.value_len() as u64 };
            measured.sum += weigh(&stored.without_value(key), value);
        }
    }
    Ok(measured)
}

/// Whether the answer's order is the one in which keys are read.
pub fn in_key_order(request: &RangeRequest) -> bool {
    request.sort_target == SortTarget::Key && request.sort_order != SortOrder::Descend
}

/// Whether only the first keys of the range are sorted, one more than the limit: so etcd answers
/// where something other than the key is sorted by and no order is named.
fn sorts_first(request: &RangeRequest) -> bool {
    request.sort_target != SortTarget::Key
        && request.sort_order == SortOrder::None
        && request.limit > 0
        && !has_filters(request)
}

/// Whether keys of the range may be left out for their revisions.
pub fn has_filters(request: &RangeRequest) -> bool {
    let bounds = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    bounds.into_iter().any(|bound| bound != 0)
}

/// A key that may be in the answer.
struct Candidate {
    key: Bytes,
    stored: Stored,
    /// Its value, where it is sorted by.
    value: Bytes,
}

/// The keys that may still be in the answer.
struct Picked<'a> {
    request: &'a RangeRequest,
    limit: usize,
    found: Vec<Candidate>,
    bytes: usize,
    more: bool,
}

impl<'a> Picked<'a> {
    fn new(request: &'a RangeRequest) -> Self {
        let limit = match usize::try_from(request.limit) {
            Ok(0) | Err(_) => usize::MAX,
            Ok(limit) => limit,
        };
        Self { request, limit, found: Vec::new(), bytes: 0, more: false }
    }

    /// Whether no further key can change the answer.
    fn is_complete(&self) -> bool {
        self.more && (in_key_order(self.request) || sorts_first(self.request))
    }

    /// Bytes that a candidate holds, or will once it is answered.
    fn size(&self, one: &Candidate) -> usize {
        let valued = !self.request.keys_only || self.request.sort_target == SortTarget::Value;
        let value = if valued { one.stored.value_len() } else { 0 };
        one.key.len().saturating_add(value).saturating_add(KEY_OVERHEAD)
    }

    fn offer(&mut self, view: &dyn Read, key: &Bytes, stored: Stored, budget: usize) -> Result<(), Stop> {
        if !passes(self.request, &stored) {
            return Ok(());
        }
        if in_key_order(self.request) && self.found.len() == self.limit {
            self.more = true;
            return Ok(());
        }
        let value = match self.request.sort_target {
            SortTarget::Value => stored.value(view, key)?,
            _ => Bytes::new(),
        };
        let one = Candidate { key: key.clone(), stored, value };
        self.bytes = self.bytes.saturating_add(self.size(&one));
        self.found.push(one);
        let many = self.limit.saturating_mul(2).max(1024);
        let first = sorts_first(self.request) && self.found.len() > self.limit;
        if first || self.found.len() >= many || self.bytes > budget {
            self.cut();
        }
        // Refused here already, so that no more than a budget is ever held.
        if self.bytes > budget { Err(too_large().into()) } else { Ok(()) }
    }

    /// Brings what was picked in order and within the limit.
    fn cut(&mut self) {
        if !in_key_order(self.request) {
            let descend = self.request.sort_order == SortOrder::Descend;
            let target = self.request.sort_target;
            self.found.sort_by(|a, b| {
                let order = compare(target, a, b);
                if descend { order.reverse() } else { order }
            });
        }
        if self.found.len() > self.limit {
            self.found.truncate(self.limit);
            self.more = true;
        }
        self.bytes = self.found.iter().map(|one| self.size(one)).fold(0, usize::saturating_add);
    }

    /// The answer: only now values are read, of those alone that are in it.
    fn finish(mut self, view: &dyn Read) -> Result<(Vec<KeyValue>, bool), StorageFailed> {
        self.cut();
        let mut values = ValueReader::new(view);
        let answer = |one: Candidate| match self.request {
            RangeRequest { keys_only: true, .. } => Ok(one.stored.without_value(one.key)),
            RangeRequest { sort_target: SortTarget::Value, .. } => {
                Ok(KeyValue { value: one.value, ..one.stored.without_value(one.key) })
            }
            _ => {
                let value = values.value(&one.key, &one.stored)?;
                Ok(KeyValue { value, ..one.stored.without_value(one.key) })
            }
        };
        let kvs = self.found.into_iter().map(answer).collect::<Result<_, StorageFailed>>()?;
        Ok((kvs, self.more))
    }
}

fn compare(target: SortTarget, a: &Candidate, b: &Candidate) -> Ordering {
    match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.stored.version.cmp(&b.stored.version),
        SortTarget::Create => a.stored.create_revision.cmp(&b.stored.create_revision),
        SortTarget::Mod => a.stored.mod_revision.cmp(&b.stored.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    }
}

fn passes(request: &RangeRequest, stored: &Stored) -> bool {
    let least = |bound: Revision, found: Revision| bound == 0 || found >= bound;
    let most = |bound: Revision, found: Revision| bound == 0 || found <= bound;
    least(request.min_mod_revision, stored.mod_revision)
        && most(request.max_mod_revision, stored.mod_revision)
        && least(request.min_create_revision, stored.create_revision)
        && most(request.max_create_revision, stored.create_revision)
}
