//! The naive model: the whole state is kept for every revision, and every question is answered
//! by going through all of it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::{Answer, Command};
use crate::error::Refusal;
use crate::limits::{
    MAX_KEY_BYTES, MAX_LEASE_TTL, MAX_RAISED_REVISION, MAX_TXN_DEPTH, MAX_TXN_OPS, MIN_LEASE_TTL,
};
use crate::types::*;

type State = BTreeMap<Bytes, KeyValue>;

#[derive(Clone)]
pub struct Model {
    /// The state at each revision; the last is the newest.
    pub states: Vec<State>,
    pub changes: Vec<Change>,
    pub compacted: Revision,
    pub leases: BTreeMap<LeaseId, i64>,
}

/// Changes of a revision being made.
struct Making {
    state: State,
    events: Vec<Event>,
    next: Revision,
}

impl Model {
    pub fn new() -> Self {
        // Revision 0 never was; revision 1 is empty.
        let states = vec![State::new(), State::new()];
        Self { states, changes: Vec::new(), compacted: -1, leases: BTreeMap::new() }
    }

    pub fn revision(&self) -> Revision {
        self.states.len() as i64 - 1
    }

    fn newest(&self) -> &State {
        self.states.last().unwrap()
    }

    fn making(&self) -> Making {
        Making { state: self.newest().clone(), events: Vec::new(), next: self.revision() + 1 }
    }

    fn made(&mut self, making: Making) {
        if !making.events.is_empty() {
            self.changes.push(Change { revision: making.next, events: making.events });
            self.states.push(making.state);
        }
    }

    pub fn apply(&mut self, command: &Command, entry_term: Term) -> Result<Answer, Refusal> {
        match command {
            Command::Put(request) => {
                valid_put(request)?;
                self.check_put(request)?;
                let mut making = self.making();
                let answer = making.put(request);
                self.made(making);
                Ok(Answer::Put(answer))
            }
            Command::Delete(request) => {
                valid_range(&request.range)?;
                let mut making = self.making();
                let answer = making.delete(request);
                self.made(making);
                Ok(Answer::Delete(answer))
            }
            Command::Txn(request) => {
                valid_txn(request, MAX_TXN_OPS, 1)?;
                check_twice(request)?;
                let before = self.newest().clone();
                self.check_path(&before, request)?;
                let mut making = self.making();
                let answer = self.run(&before, &mut making, request);
                self.made(making);
                Ok(Answer::Txn(answer))
            }
            Command::Compact { revision } => {
                if *revision <= self.compacted {
                    return Err(Refusal::Compacted { requested: *revision, compacted: self.compacted });
                }
                if *revision > self.revision() {
                    return Err(Refusal::FutureRevision { requested: *revision, current: self.revision() });
                }
                self.compacted = *revision;
                Ok(Answer::Done)
            }
            Command::LeaseGrant { id, ttl } => {
                if *id == 0 || *ttl > MAX_LEASE_TTL {
                    let (field, value, min, max) = if *id == 0 {
                        ("id", *id, 1, i64::MAX)
                    } else {
                        ("ttl", *ttl, MIN_LEASE_TTL, MAX_LEASE_TTL)
                    };
                    return Err(Refusal::LeaseOutOfBounds { field: field.into(), value, min, max });
                }
                if self.leases.contains_key(id) {
                    return Err(Refusal::LeaseExists { id: *id });
                }
                let ttl = if *ttl < MIN_LEASE_TTL { MIN_LEASE_TTL } else { *ttl };
                self.leases.insert(*id, ttl);
                Ok(Answer::Lease { id: *id, ttl })
            }
            Command::LeaseRevoke { id } => {
                if !self.leases.contains_key(id) {
                    return Err(Refusal::LeaseNotFound { id: *id });
                }
                self.end(*id);
                Ok(Answer::Done)
            }
            Command::LeaseExpire { ids, term } => {
                if *term != entry_term {
                    return Err(Refusal::StaleLeader { decided: *term, applied: entry_term });
                }
                for id in ids {
                    self.end(*id);
                }
                Ok(Answer::Done)
            }
            Command::Point(_) => unreachable!("points have a model of their own"),
            Command::Auth(_) | Command::Alarm(_) | Command::As { .. } | Command::From { .. } => {
                unreachable!("users, roles and alarms have tests of their own")
            }
            Command::Noop => Ok(Answer::Done),
            Command::Seen { .. } => Err(Refusal::Malformed { what: "the model has no members".into() }),
            Command::RaiseRevision { to } => {
                if *to < 0 || *to > MAX_RAISED_REVISION {
                    let why = format!("{to} is not in 0 to {MAX_RAISED_REVISION}");
                    return Err(Refusal::invalid("revision", why));
                }
                while self.revision() < *to {
                    self.states.push(self.newest().clone());
                }
                self.compacted = self.revision();
                Ok(Answer::Done)
            }
            Command::MemberUpdate(_) | Command::Trust(_) | Command::Quota { .. } => unreachable!("not drawn"),
        }
    }

    fn end(&mut self, id: LeaseId) {
        if self.leases.remove(&id).is_none() {
            return;
        }
        let mut making = self.making();
        for key in self.lease_keys(id) {
            making.remove(&key);
        }
        self.made(making);
    }

    pub fn lease_keys(&self, id: LeaseId) -> Vec<Bytes> {
        self.newest().values().filter(|kv| kv.lease == id && id != 0).map(|kv| kv.key.clone()).collect()
    }

    fn check_put(&self, request: &PutRequest) -> Result<(), Refusal> {
        if request.lease != 0 && !self.leases.contains_key(&request.lease) {
            return Err(Refusal::LeaseNotFound { id: request.lease });
        }
        if (request.ignore_value || request.ignore_lease) && !self.newest().contains_key(&request.key) {
            return Err(Refusal::KeyNotFound);
        }
        Ok(())
    }

    pub fn check_revision(&self, revision: Revision) -> Result<(), Refusal> {
        if revision > self.revision() {
            return Err(Refusal::FutureRevision { requested: revision, current: self.revision() });
        }
        if revision > 0 && revision < self.compacted {
            return Err(Refusal::Compacted { requested: revision, compacted: self.compacted });
        }
        Ok(())
    }

    /// Within a transaction etcd takes only 0 for the newest, and what is below 0 for old.
    fn check_txn_revision(&self, revision: Revision) -> Result<(), Refusal> {
        if revision != 0 && revision < self.compacted {
            return Err(Refusal::Compacted { requested: revision, compacted: self.compacted });
        }
        self.check_revision(revision)
    }

    /// Within a transaction etcd looks at the key before the lease.
    fn check_put_in_txn(&self, request: &PutRequest) -> Result<(), Refusal> {
        match self.check_put(&PutRequest { lease: 0, ..request.clone() }) {
            Ok(()) => self.check_put(request),
            refused => refused,
        }
    }

    /// All puts of the path, then all ranges.
    fn check_path(&self, before: &State, request: &TxnRequest) -> Result<(), Refusal> {
        self.check_each(before, request, true)?;
        self.check_each(before, request, false)
    }

    fn check_each(&self, before: &State, request: &TxnRequest, puts: bool) -> Result<(), Refusal> {
        let ops = if request.compares.iter().all(|c| holds(before, c)) {
            &request.success
        } else {
            &request.failure
        };
        for op in ops {
            match op {
                TxnOp::Range(request) if !puts => self.check_txn_revision(request.revision)?,
                TxnOp::Put(request) if puts => self.check_put_in_txn(request)?,
                TxnOp::Range(_) | TxnOp::Put(_) | TxnOp::Delete(_) => {}
                TxnOp::Txn(request) => self.check_each(before, request, puts)?,
            }
        }
        Ok(())
    }

    fn run(&self, before: &State, making: &mut Making, request: &TxnRequest) -> TxnResponse {
        let succeeded = request.compares.iter().all(|compare| holds(before, compare));
        let ops = if succeeded { &request.success } else { &request.failure };
        let mut responses = Vec::new();
        for op in ops {
            responses.push(match op {
                TxnOp::Range(request) => {
                    let state = if request.revision > 0 {
                        &self.states[request.revision as usize]
                    } else {
                        &making.state
                    };
                    TxnOpResponse::Range(range(state, request))
                }
                TxnOp::Put(request) => TxnOpResponse::Put(making.put(request)),
                TxnOp::Delete(request) => TxnOpResponse::Delete(making.delete(request)),
                TxnOp::Txn(request) => TxnOpResponse::Txn(self.run(before, making, request)),
            });
        }
        TxnResponse { succeeded, responses }
    }

    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        valid_read(request)?;
        self.check_revision(request.revision)?;
        let at = if request.revision > 0 { request.revision } else { self.revision() };
        Ok(range(&self.states[at as usize], request))
    }

    pub fn history(&self, from: Revision) -> Result<Vec<Change>, Refusal> {
        if from < self.compacted {
            return Err(Refusal::Compacted { requested: from, compacted: self.compacted });
        }
        let mut changes: Vec<Change> =
            self.changes.iter().filter(|change| change.revision >= from).cloned().collect();
        for change in changes.iter_mut().filter(|change| change.revision <= self.compacted) {
            change.events.iter_mut().for_each(|event| event.prev = None);
        }
        Ok(changes)
    }
}

impl Making {
    fn put(&mut self, request: &PutRequest) -> PutResponse {
        let prev = self.state.get(&request.key).cloned();
        let old = prev.clone().unwrap_or_default();
        let kv = KeyValue {
            key: request.key.clone(),
            create_revision: if prev.is_some() { old.create_revision } else { self.next },
            mod_revision: self.next,
            version: old.version + 1,
            value: if request.ignore_value { old.value } else { request.value.clone() },
            lease: if request.ignore_lease { old.lease } else { request.lease },
        };
        self.state.insert(request.key.clone(), kv.clone());
        self.events.push(Event { kind: EventKind::Put, kv, prev: prev.clone() });
        PutResponse { prev: prev.filter(|_| request.prev_kv) }
    }

    fn remove(&mut self, key: &Bytes) -> KeyValue {
        let prev = self.state.remove(key).unwrap();
        let kv = KeyValue { key: key.clone(), mod_revision: self.next, ..Default::default() };
        self.events.push(Event { kind: EventKind::Delete, kv, prev: Some(prev.clone()) });
        prev
    }

    fn delete(&mut self, request: &DeleteRequest) -> DeleteResponse {
        let keys: Vec<Bytes> = self.state.keys().filter(|key| request.range.contains(key)).cloned().collect();
        let prevs: Vec<KeyValue> = keys.iter().map(|key| self.remove(key)).collect();
        DeleteResponse { deleted: keys.len() as i64, prevs: if request.prev_kv { prevs } else { Vec::new() } }
    }
}

fn holds(state: &State, compare: &Compare) -> bool {
    let found: Vec<&KeyValue> = state.values().filter(|kv| compare.range.contains(&kv.key)).collect();
    let zero = KeyValue::default();
    if found.is_empty() {
        return !matches!(compare.target, CompareTarget::Value(_)) && one_holds(&zero, compare);
    }
    found.into_iter().all(|kv| one_holds(kv, compare))
}

fn one_holds(kv: &KeyValue, compare: &Compare) -> bool {
    fn test<T: PartialOrd>(op: CompareOp, left: &T, right: &T) -> bool {
        match op {
            CompareOp::Equal => left == right,
            CompareOp::NotEqual => left != right,
            CompareOp::Greater => left > right,
            CompareOp::Less => left < right,
        }
    }
    match &compare.target {
        CompareTarget::Version(right) => test(compare.op, &kv.version, right),
        CompareTarget::Create(right) => test(compare.op, &kv.create_revision, right),
        CompareTarget::Mod(right) => test(compare.op, &kv.mod_revision, right),
        CompareTarget::Lease(right) => test(compare.op, &kv.lease, right),
        CompareTarget::Value(right) => test(compare.op, &kv.value, right),
    }
}

fn range(state: &State, request: &RangeRequest) -> RangeResponse {
    let all: Vec<KeyValue> = state.values().filter(|kv| request.range.contains(&kv.key)).cloned().collect();
    let count = all.len() as i64;
    if request.count_only {
        return RangeResponse { count, ..Default::default() };
    }
    let mut kvs: Vec<KeyValue> = all
        .into_iter()
        .filter(|kv| request.min_mod_revision == 0 || kv.mod_revision >= request.min_mod_revision)
        .filter(|kv| request.max_mod_revision == 0 || kv.mod_revision <= request.max_mod_revision)
        .filter(|kv| request.min_create_revision == 0 || kv.create_revision >= request.min_create_revision)
        .filter(|kv| request.max_create_revision == 0 || kv.create_revision <= request.max_create_revision)
        .collect();
    // etcd reads one key more than it is to answer, unless it knows that it has to sort or to filter.
    let bounds = [request.min_mod_revision, request.max_mod_revision];
    let bounds = [bounds, [request.min_create_revision, request.max_create_revision]];
    if request.limit > 0 && request.sort_order == SortOrder::None && bounds == [[0; 2]; 2] {
        kvs.truncate((request.limit as usize).saturating_add(1));
    }
    let down = request.sort_order == SortOrder::Descend;
    // Bubbles: equal ones stay in the order of their keys.
    for _ in 0..kvs.len() {
        for at in 1..kvs.len() {
            let (a, b) = (&kvs[at - 1], &kvs[at]);
            let order = match request.sort_target {
                SortTarget::Key => a.key.cmp(&b.key),
                SortTarget::Version => a.version.cmp(&b.version),
                SortTarget::Create => a.create_revision.cmp(&b.create_revision),
                SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
                SortTarget::Value => a.value.cmp(&b.value),
            };
            if if down { order.is_lt() } else { order.is_gt() } {
                kvs.swap(at - 1, at);
            }
        }
    }
    let more = request.limit > 0 && kvs.len() as i64 > request.limit;
    if more {
        kvs.truncate(request.limit as usize);
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    RangeResponse { kvs, more, count }
}

fn valid_range(range: &KeyRange) -> Result<(), Refusal> {
    if range.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    for key in [&range.key, &range.end] {
        if key.len() > MAX_KEY_BYTES {
            return Err(Refusal::KeyTooLarge { len: key.len() as u64, max: MAX_KEY_BYTES as u64 });
        }
    }
    Ok(())
}

fn valid_read(request: &RangeRequest) -> Result<(), Refusal> {
    valid_range(&request.range)
}

fn valid_put(request: &PutRequest) -> Result<(), Refusal> {
    valid_range(&KeyRange::key(request.key.clone()))?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(())
}

fn valid_txn(request: &TxnRequest, budget: usize, depth: usize) -> Result<(), Refusal> {
    if depth > MAX_TXN_DEPTH {
        return Err(Refusal::NestedTooDeep { max: MAX_TXN_DEPTH as u64 });
    }
    let lens = [request.compares.len(), request.success.len(), request.failure.len()];
    for (list, len) in ["compare", "success", "failure"].into_iter().zip(lens) {
        if len > budget {
            return Err(Refusal::TooManyOps { list: list.into(), len: len as u64, max: budget as u64 });
        }
    }
    for compare in &request.compares {
        valid_range(&compare.range)?;
    }
    for op in request.success.iter().chain(&request.failure) {
        match op {
            TxnOp::Range(request) => valid_read(request)?,
            TxnOp::Put(request) => valid_put(request)?,
            TxnOp::Delete(request) => valid_range(&request.range)?,
            TxnOp::Txn(nested) => valid_txn(nested, budget - lens.into_iter().max().unwrap(), depth + 1)?,
        }
    }
    Ok(())
}

/// A write with the way to it: the place in each list, and the branch taken into the next.
type Leaf<'a> = (Vec<(usize, bool)>, &'a TxnOp);

fn leaves<'a>(ops: &'a [TxnOp], way: &[(usize, bool)], into: &mut Vec<Leaf<'a>>) {
    for (at, op) in ops.iter().enumerate() {
        let mut way = way.to_vec();
        match op {
            TxnOp::Txn(nested) => {
                for (branch, ops) in [(true, &nested.success), (false, &nested.failure)] {
                    way.push((at, branch));
                    leaves(ops, &way, into);
                    way.pop();
                }
            }
            op => {
                way.push((at, true));
                into.push((way, op));
            }
        }
    }
}

/// Every pair of writes that one path can hold; the duplicate key is not compared.
fn check_twice(request: &TxnRequest) -> Result<(), Refusal> {
    for ops in [&request.success, &request.failure] {
        let mut all = Vec::new();
        leaves(ops, &[], &mut all);
        for (i, (way, op)) in all.iter().enumerate() {
            for (other_way, other) in &all[..i] {
                let apart = way.iter().zip(other_way).find(|(a, b)| a != b);
                let excluded = apart.is_some_and(|(a, b)| a.0 == b.0);
                let clash = match (op, other) {
                    (TxnOp::Put(a), TxnOp::Put(b)) => a.key == b.key,
                    (TxnOp::Put(a), TxnOp::Delete(b)) | (TxnOp::Delete(b), TxnOp::Put(a)) => {
                        b.range.contains(&a.key)
                    }
                    _ => false,
                };
                if clash && !excluded {
                    return Err(Refusal::DuplicateKey { key: String::new() });
                }
            }
        }
    }
    Ok(())
}
