//! A naive model of the key space: one map, no history, as little code as can be. The product's
//! answers and events are held against it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::machine::Answer;
use crate::machine::command::Command;
use crate::types::{
    Compare, CompareOp, CompareTarget, DeleteRequest, DeleteResponse, Difference, Event, EventKind, KeyRange,
    KeyValue, LeaseId, PutRequest, PutResponse, RangeRequest, RangeResponse, Revision, TxnOp, TxnOpResponse,
    TxnRequest, TxnResponse,
};

/// The keys at one revision.
#[derive(Clone, Debug, Default)]
pub struct Model {
    keys: BTreeMap<Bytes, KeyValue>,
}

impl Model {
    fn within<'a>(&'a self, range: &'a KeyRange) -> impl Iterator<Item = &'a KeyValue> + 'a {
        self.keys.values().filter(move |kv| range.contains(&kv.key))
    }

    /// A key.
    pub fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)
    }

    /// The keys that end with a lease.
    pub fn of_lease(&self, lease: LeaseId) -> Vec<&KeyValue> {
        self.keys.values().filter(|kv| kv.lease == lease).collect()
    }

    /// What a range finds.
    pub fn range(&self, request: &RangeRequest) -> RangeResponse {
        let mut kvs: Vec<KeyValue> = self.within(&request.range).cloned().collect();
        let count = kvs.len() as i64;
        if request.count_only {
            return RangeResponse { kvs: Vec::new(), more: false, count };
        }
        let more = request.limit > 0 && count > request.limit;
        if more {
            kvs.truncate(request.limit as usize);
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        RangeResponse { kvs, more, count }
    }

    fn put(&mut self, request: &PutRequest, revision: Revision, events: &mut Vec<Event>) -> PutResponse {
        let prev = self.keys.get(&request.key).cloned();
        let kv = KeyValue {
            key: request.key.clone(),
            create_revision: prev.as_ref().map_or(revision, |prev| prev.create_revision),
            mod_revision: revision,
            version: prev.as_ref().map_or(1, |prev| prev.version + 1),
            value: request.value.clone(),
            lease: request.lease,
        };
        self.keys.insert(kv.key.clone(), kv.clone());
        events.push(Event { kind: EventKind::Put, kv, prev: prev.clone() });
        PutResponse { prev: prev.filter(|_| request.prev_kv) }
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &[u8], revision: Revision) -> Option<Event> {
        let prev = self.keys.remove(key)?;
        let kv = KeyValue { key: prev.key.clone(), mod_revision: revision, ..KeyValue::default() };
        Some(Event { kind: EventKind::Delete, kv, prev: Some(prev) })
    }

    fn delete(
        &mut self,
        request: &DeleteRequest,
        revision: Revision,
        events: &mut Vec<Event>,
    ) -> DeleteResponse {
        let prevs: Vec<KeyValue> = self.within(&request.range).cloned().collect();
        events.extend(prevs.iter().filter_map(|prev| self.remove(&prev.key, revision)));
        let deleted = prevs.len() as i64;
        DeleteResponse { deleted, prevs: if request.prev_kv { prevs } else { Vec::new() } }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let one = |kv: Option<&KeyValue>| {
            let none = KeyValue::default();
            let order = match (&compare.target, kv) {
                (CompareTarget::Value(_), None) => return false,
                (CompareTarget::Value(value), Some(kv)) => kv.value.cmp(value),
                (CompareTarget::Version(given), kv) => kv.unwrap_or(&none).version.cmp(given),
                (CompareTarget::Create(given), kv) => kv.unwrap_or(&none).create_revision.cmp(given),
                (CompareTarget::Mod(given), kv) => kv.unwrap_or(&none).mod_revision.cmp(given),
                (CompareTarget::Lease(given), kv) => kv.unwrap_or(&none).lease.cmp(given),
            };
            match compare.op {
                CompareOp::Equal => order.is_eq(),
                CompareOp::NotEqual => order.is_ne(),
                CompareOp::Greater => order.is_gt(),
                CompareOp::Less => order.is_lt(),
            }
        };
        if compare.range.is_single() {
            one(self.keys.get(&compare.range.key))
        } else {
            self.within(&compare.range).all(|kv| one(Some(kv)))
        }
    }

    fn txn(
        &mut self,
        before: &Model,
        request: &TxnRequest,
        revision: Revision,
        events: &mut Vec<Event>,
    ) -> TxnResponse {
        let succeeded = request.compares.iter().all(|compare| before.holds(compare));
        let operations = if succeeded { &request.success } else { &request.failure };
        let mut responses = Vec::new();
        for operation in operations {
            responses.push(match operation {
                TxnOp::Range(request) => TxnOpResponse::Range(self.range(request)),
                TxnOp::Put(request) => TxnOpResponse::Put(self.put(request, revision, events)),
                TxnOp::Delete(request) => TxnOpResponse::Delete(self.delete(request, revision, events)),
                TxnOp::Txn(request) => TxnOpResponse::Txn(self.txn(before, request, revision, events)),
            });
        }
        TxnResponse { succeeded, responses }
    }

    /// Carries out a command on keys as the one that makes `revision`; `None` where the command is
    /// not about keys. A change of nothing gives no events.
    pub fn command(&mut self, command: &Command, revision: Revision) -> Option<(Vec<Event>, Answer)> {
        let mut events = Vec::new();
        let answer = match command {
            Command::Put(request) => Answer::Put(self.put(request, revision, &mut events)),
            Command::Delete(request) => Answer::Delete(self.delete(request, revision, &mut events)),
            Command::Txn(request) => {
                let before = self.clone();
                Answer::Txn(self.txn(&before, request, revision, &mut events))
            }
            Command::LeaseRevoke { id } => {
                let keys: Vec<Bytes> = self.of_lease(*id).into_iter().map(|kv| kv.key.clone()).collect();
                events.extend(keys.iter().filter_map(|key| self.remove(key, revision)));
                Answer::Done
            }
            _ => return None,
        };
        Some((events, answer))
    }
}

/// What differs between an older state and a later one, by key, as long as these leases live.
pub fn difference(
    then: &Model,
    now: &Model,
    range: &KeyRange,
    living: &BTreeSet<LeaseId>,
) -> Vec<Difference> {
    let keys: BTreeSet<&Bytes> = then.within(range).chain(now.within(range)).map(|kv| &kv.key).collect();
    let differs = |key: &&Bytes| match (then.get(key), now.get(key)) {
        (Some(then), Some(now)) => {
            let ended = then.lease != 0 && !living.contains(&then.lease);
            then.mod_revision != now.mod_revision
                && (then.value != now.value || (then.lease != now.lease && !ended))
        }
        _ => true,
    };
    let pair = |key: &Bytes| Difference {
        key: key.clone(),
        then: then.get(key).cloned(),
        now: now.get(key).cloned(),
    };
    keys.into_iter().filter(differs).map(pair).collect()
}

impl Model {
    /// Makes the keys of a range as they were, in one revision.
    pub fn roll_back(
        &mut self,
        then: &Model,
        range: &KeyRange,
        living: &BTreeSet<LeaseId>,
        revision: Revision,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        for Difference { key, then, .. } in difference(then, self, range, living) {
            match then {
                Some(then) => {
                    let lease = if living.contains(&then.lease) { then.lease } else { 0 };
                    let request = PutRequest { key, value: then.value, lease, ..PutRequest::default() };
                    self.put(&request, revision, &mut events);
                }
                None => events.extend(self.remove(&key, revision)),
            }
        }
        events
    }
}

/// Values that a command may write.
pub fn values(command: &Command) -> Vec<Bytes> {
    fn of_txn(request: &TxnRequest, values: &mut Vec<Bytes>) {
        for operation in request.success.iter().chain(&request.failure) {
            match operation {
                TxnOp::Put(request) => values.push(request.value.clone()),
                TxnOp::Txn(request) => of_txn(request, values),
                TxnOp::Range(_) | TxnOp::Delete(_) => {}
            }
        }
    }
    let mut values = Vec::new();
    match command {
        Command::Put(request) => values.push(request.value.clone()),
        Command::Txn(request) => of_txn(request, &mut values),
        _ => {}
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str, value: &'static str) -> PutRequest {
        PutRequest { key: key.into(), value: value.into(), prev_kv: true, ..PutRequest::default() }
    }

    #[test]
    fn it_counts_versions_and_finds_ranges() {
        let mut model = Model::default();
        for (revision, value) in [(2, "a"), (3, "b")] {
            model.command(&Command::Put(put("k", value)), revision).unwrap();
        }
        let kv = model.get(b"k").unwrap();
        assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
        let request = RangeRequest { range: KeyRange::all(), ..RangeRequest::default() };
        assert_eq!(model.range(&request).count, 1);
        let delete = DeleteRequest { range: KeyRange::all(), prev_kv: true };
        let (events, answer) = model.command(&Command::Delete(delete), 4).unwrap();
        assert_eq!(events.len(), 1);
        assert!(matches!(answer, Answer::Delete(DeleteResponse { deleted: 1, .. })));
    }

    #[test]
    fn a_rollback_changes_what_differs_and_nothing_else() {
        let mut model = Model::default();
        let on_lease = |key, value| PutRequest { lease: 7, ..put(key, value) };
        for (revision, request) in
            [(2, put("a", "1")), (3, put("b", "1")), (4, on_lease("c", "1")), (5, put("d", "1"))]
        {
            model.command(&Command::Put(request), revision).unwrap();
        }
        let then = model.clone();
        let gone = DeleteRequest { range: KeyRange::key("b"), prev_kv: false };
        model.command(&Command::Put(put("a", "2")), 6).unwrap();
        model.command(&Command::Delete(gone), 7).unwrap();
        model.command(&Command::Put(put("c", "1")), 8).unwrap();
        model.command(&Command::Put(put("d", "1")), 9).unwrap();
        model.command(&Command::Put(put("e", "1")), 10).unwrap();
        let check = |range: KeyRange, living: &[LeaseId], expect: &[&str]| {
            let mut after = model.clone();
            let living = living.iter().copied().collect();
            let events = after.roll_back(&then, &range, &living, 11);
            let told: Vec<String> = events
                .iter()
                .map(|event| format!("{:?} {} {}", event.kind, event.kv.key.escape_ascii(), event.kv.lease))
                .collect();
            assert_eq!(told, expect);
            assert_eq!(difference(&then, &after, &range, &living), Vec::new(), "nothing differs after it");
        };
        check(KeyRange::all(), &[7], &["Put a 0", "Put b 0", "Put c 7", "Delete e 0"]);
        check(KeyRange::all(), &[], &["Put a 0", "Put b 0", "Delete e 0"]);
        check(KeyRange::prefix("b"), &[], &["Put b 0"]);
    }

    #[test]
    fn compares_look_at_the_state_before() {
        let mut model = Model::default();
        let absent =
            Compare { range: KeyRange::key("k"), op: CompareOp::Equal, target: CompareTarget::Version(0) };
        let inner = TxnRequest { compares: vec![absent.clone()], ..TxnRequest::default() };
        let request = TxnRequest {
            compares: vec![absent],
            success: vec![TxnOp::Put(put("k", "v")), TxnOp::Txn(inner)],
            failure: Vec::new(),
        };
        assert_eq!(values(&Command::Txn(request.clone())), [Bytes::from("v")]);
        let (events, answer) = model.command(&Command::Txn(request.clone()), 2).unwrap();
        let Answer::Txn(response) = answer else { panic!() };
        assert!(events.len() == 1 && response.succeeded);
        let TxnOpResponse::Txn(inner) = &response.responses[1] else { panic!() };
        assert!(inner.succeeded, "the inner compare looks at the state before the outer put");
        let (events, answer) = model.command(&Command::Txn(request), 3).unwrap();
        assert!(events.is_empty() && matches!(answer, Answer::Txn(TxnResponse { succeeded: false, .. })));
    }
}
