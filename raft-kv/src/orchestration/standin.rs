//! A stand-in for the typed layer, to be replaced by branch `typed`: it compares no versions and keeps few
//! indexes. It must never be shipped.
use bytes::{Bytes, BytesMut};
use super::store::{Clock, Store};
use super::words::{Availability, Labels, NodeRecord, NodeState, Object, ObjectKey, Task, TaskState, TaskStatus, Time};
use crate::codec::{Malformed, Wire, wire_struct};
use crate::error::{Error, Refusal};
use crate::types::{Compare, CompareOp, CompareTarget, DeleteRequest, KeyRange, KeyValue, NodeId, PutRequest, RangeRequest, Revision, TxnOp, TxnRequest};

pub fn key(parts: &[&str]) -> Bytes {
    let parts: Vec<String> = parts.iter().map(|p| p.replace('%', "%25").replace('/', "%2F")).collect();
    format!("_rk/{}", parts.join("/")).into()
}
pub fn parts(key: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(key).ok()?.strip_prefix("_rk/")?;
    Some(text.split('/').map(|p| p.replace("%2F", "/").replace("%25", "%")).collect())
}
#[derive(Clone)]
struct T { id: String, service: String, slot: u64, node: u64, labels: Labels, refs: Vec<ObjectKey>, spec: Bytes, desired: TaskState, created: Time, updated: Time }
wire_struct!(T { id, service, slot, node, labels, refs, spec, desired, created, updated });
struct O { key: ObjectKey, name: String, labels: Labels, refs: Vec<ObjectKey>, spec: Bytes, created: Time, updated: Time }
wire_struct!(O { key, name, labels, refs, spec, created, updated });
struct N { id: u64, name: String, labels: Labels, availability: Availability, description: Bytes, state: NodeState, since: Time }
wire_struct!(N { id, name, labels, availability, description, state, since });

pub fn task_of(kv: &KeyValue, status: Option<&KeyValue>) -> Result<Task, Malformed> {
    let t = T::from_bytes(kv.value.clone())?;
    let status = match status { Some(kv) => TaskStatus::from_bytes(kv.value.clone())?, None => TaskStatus { state: TaskState::New, message: String::new(), error: String::new(), exit_code: None, at: 0 } };
    Ok(Task { id: t.id, service: t.service, slot: t.slot, node: (t.node != 0).then_some(NodeId(t.node)), labels: t.labels, refs: t.refs, spec: t.spec, desired: t.desired, status, version: kv.mod_revision, created: t.created, updated: t.updated })
}
fn to_t(t: &Task) -> Bytes {
    T { id: t.id.clone(), service: t.service.clone(), slot: t.slot, node: t.node.map_or(0, |n| n.0), labels: t.labels.clone(), refs: t.refs.clone(), spec: t.spec.clone(), desired: t.desired, created: t.created, updated: t.updated }.to_bytes()
}
pub fn object_of(kv: &KeyValue) -> Result<Object, Malformed> {
    let o = O::from_bytes(kv.value.clone())?;
    Ok(Object { key: o.key, name: o.name, labels: o.labels, refs: o.refs, spec: o.spec, status: Bytes::new(), version: kv.mod_revision, created: o.created, updated: o.updated })
}
fn node_rec(kv: &KeyValue) -> Result<NodeRecord, Malformed> {
    let n = N::from_bytes(kv.value.clone())?;
    Ok(NodeRecord { id: NodeId(n.id), name: n.name, labels: n.labels, availability: n.availability, description: n.description, state: n.state, since: n.since, version: kv.mod_revision })
}
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reported { Taken, Old, NotYours }
#[derive(Clone, Debug)]
pub struct Page { pub after: Option<Bytes>, pub limit: usize }
impl Page { pub fn first(limit: usize) -> Self { Self { after: None, limit } } pub fn all() -> Self { Self { after: None, limit: usize::MAX } } }
#[derive(Debug)]
pub struct Listed<X> { pub items: Vec<X>, pub revision: Revision, pub next: Option<Bytes> }
#[derive(Clone, Debug)]
pub enum TaskBy { Node(NodeId) }
#[derive(Clone, Debug)]
pub struct Orchestrator<S, C> { store: S, clock: C, fence: Option<Fence> }
fn b(m: Malformed) -> Error { Refusal::Malformed { what: m.to_string() }.into() }
impl<S: Store, C: Clock> Orchestrator<S, C> {
    pub fn new(store: S, clock: C) -> Self { Self { store, clock, fence: None } }
    pub fn fenced(&self, fence: Fence) -> Self { Self { fence: Some(fence), ..self.clone() } }
    pub fn store(&self) -> &S { &self.store }
    pub fn clock(&self) -> &C { &self.clock }
    async fn get(&self, k: Bytes) -> Result<Option<KeyValue>, Error> {
        Ok(self.store.range(RangeRequest { range: KeyRange::key(k), ..Default::default() }).await?.1.kvs.pop())
    }
    async fn write(&self, puts: Vec<(Bytes, Bytes)>, dels: Vec<Bytes>) -> Result<(), Error> {
        let mut success: Vec<TxnOp> = puts.into_iter().map(|(key, value)| TxnOp::Put(PutRequest { key, value, ..Default::default() })).collect();
        success.extend(dels.into_iter().map(|k| TxnOp::Delete(DeleteRequest { range: KeyRange::key(k), prev_kv: false })));
        let compares = self.fence.map(|fence| Compare { range: KeyRange::key(key(&["f"])), op: CompareOp::Equal, target: CompareTarget::Mod(fence.revision) }).into_iter().collect();
        let (_, done) = self.store.txn(TxnRequest { compares, success, ..Default::default() }).await?;
        if done.succeeded { Ok(()) } else { Err(Refusal::StaleLeader { decided: 0, applied: 0 }.into()) }
    }
    pub async fn create(&self, o: Object) -> Result<Object, Error> {
        let v = O { key: o.key.clone(), name: o.name.clone(), labels: o.labels.clone(), refs: o.refs.clone(), spec: o.spec.clone(), created: 0, updated: 0 }.to_bytes();
        self.write(vec![(key(&["o", &o.key.kind, &o.key.id]), v)], vec![]).await?; Ok(o)
    }
    pub async fn delete(&self, k: &ObjectKey, _v: Revision) -> Result<(), Error> { self.write(vec![], vec![key(&["o", &k.kind, &k.id])]).await }
    pub async fn create_task(&self, t: Task) -> Result<Task, Error> {
        let mut puts = vec![(key(&["t", &t.id]), to_t(&t)), (key(&["s", &t.id]), t.status.to_bytes())];
        if let Some(n) = t.node { puts.push((key(&["tn", &format!("{:016x}", n.0), &t.id]), Bytes::new())); }
        self.write(puts, vec![]).await?; Ok(t)
    }
    pub async fn task(&self, id: &str) -> Result<Option<Task>, Error> {
        let s = self.get(key(&["s", id])).await?;
        self.get(key(&["t", id])).await?.map(|kv| task_of(&kv, s.as_ref()).map_err(b)).transpose()
    }
    async fn need(&self, id: &str) -> Result<Task, Error> { self.task(id).await?.ok_or_else(|| Refusal::KeyNotFound.into()) }
    pub async fn assign(&self, id: &str, node: NodeId) -> Result<Task, Error> {
        let mut t = self.need(id).await?; t.node = Some(node); t.status.state = TaskState::Assigned; self.create_task(t).await
    }
    pub async fn set_desired(&self, id: &str, d: TaskState) -> Result<Task, Error> { let mut t = self.need(id).await?; t.desired = d; self.create_task(t).await }
    pub async fn set_task_status(&self, id: &str, s: TaskStatus) -> Result<(), Error> { self.need(id).await?; self.write(vec![(key(&["s", id]), s.to_bytes())], vec![]).await }
    pub async fn delete_task(&self, id: &str) -> Result<(), Error> {
        let t = self.need(id).await?;
        let mut dels = vec![key(&["t", id]), key(&["s", id])];
        if let Some(n) = t.node { dels.push(key(&["tn", &format!("{:016x}", n.0), id])); }
        self.write(vec![], dels).await
    }
    pub async fn tasks(&self, by: TaskBy, _p: Page) -> Result<Listed<Task>, Error> {
        let TaskBy::Node(n) = by;
        let r = self.store.range(RangeRequest { range: KeyRange::prefix(format!("_rk/tn/{:016x}/", n.0)), ..Default::default() }).await?;
        let mut items = vec![];
        for kv in r.1.kvs { let p = parts(&kv.key).unwrap(); if let Some(t) = self.task(&p[2]).await? { items.push(t); } }
        Ok(Listed { items, revision: r.0.revision, next: None })
    }
    pub async fn report(&self, node: NodeId, all: Vec<(String, TaskStatus)>) -> Result<Vec<Reported>, Error> {
        let mut out = vec![]; let mut puts = vec![];
        for (id, s) in all {
            match self.task(&id).await? {
                Some(t) if t.node == Some(node) => if s.state < t.status.state { out.push(Reported::Old) } else { puts.push((key(&["s", &id]), s.to_bytes())); out.push(Reported::Taken) },
                _ => out.push(Reported::NotYours),
            }
        }
        if !puts.is_empty() { self.write(puts, vec![]).await?; }
        Ok(out)
    }
    pub async fn node(&self, n: NodeId) -> Result<Option<NodeRecord>, Error> {
        self.get(key(&["w", &format!("{:016x}", n.0)])).await?.map(|kv| node_rec(&kv).map_err(b)).transpose()
    }
    async fn put_node(&self, n: &NodeRecord) -> Result<NodeRecord, Error> {
        let v = N { id: n.id.0, name: n.name.clone(), labels: n.labels.clone(), availability: n.availability, description: n.description.clone(), state: n.state, since: n.since }.to_bytes();
        self.write(vec![(key(&["w", &format!("{:016x}", n.id.0)]), v)], vec![]).await?; Ok(n.clone())
    }
    pub async fn nodes(&self, _p: Page) -> Result<Listed<NodeRecord>, Error> {
        let r = self.store.range(RangeRequest { range: KeyRange::prefix("_rk/w/"), ..Default::default() }).await?;
        Ok(Listed { items: r.1.kvs.iter().map(node_rec).collect::<Result<_, _>>().map_err(b)?, revision: r.0.revision, next: None })
    }
    pub async fn describe_node(&self, id: NodeId, name: String, description: Bytes) -> Result<NodeRecord, Error> {
        let old = self.node(id).await?;
        let mut n = old.unwrap_or(NodeRecord { id, name: String::new(), labels: vec![], availability: Availability::Active, description: Bytes::new(), state: NodeState::Unknown, since: 0, version: 0 });
        n.name = name; n.description = description; self.put_node(&n).await
    }
    pub async fn set_node_state(&self, id: NodeId, state: NodeState) -> Result<NodeRecord, Error> {
        let mut n = self.node(id).await?.ok_or(Refusal::KeyNotFound)?; n.state = state; n.since = self.clock.now(); self.put_node(&n).await
    }
}
impl<S: Store, C: Clock> Orchestrator<S, C> {
    pub async fn object(&self, k: &ObjectKey) -> Result<Option<Object>, Error> { self.get(key(&["o", &k.kind, &k.id])).await?.map(|kv| object_of(&kv).map_err(b)).transpose() }
    pub async fn update(&self, o: Object) -> Result<Object, Error> { self.create(o).await }
}
/// A leader's right to write.
#[derive(Clone, Copy, Debug)]
pub struct Fence { /** the term */ pub term: u64, revision: Revision }
impl Fence {
    /// takes it
    pub async fn take(store: &impl Store, term: u64) -> Result<Self, Error> {
        let k = key(&["f"]);
        let (_, found) = store.range(RangeRequest { range: KeyRange::key(k.clone()), ..Default::default() }).await?;
        let old = found.kvs.first();
        let held = old.and_then(|kv| kv.value.as_ref().try_into().ok()).map_or(0, u64::from_le_bytes);
        if held == term { return Ok(Self { term, revision: old.map_or(0, |kv| kv.mod_revision) }); }
        if held > term { return Err(Refusal::StaleLeader { decided: term, applied: held }.into()); }
        let put = PutRequest { key: k.clone(), value: term.to_le_bytes().to_vec().into(), ..Default::default() };
        let compare = Compare { range: KeyRange::key(k), op: CompareOp::Equal, target: CompareTarget::Mod(old.map_or(0, |kv| kv.mod_revision)) };
        let (header, done) = store.txn(TxnRequest { compares: vec![compare], success: vec![TxnOp::Put(put)], ..Default::default() }).await?;
        if done.succeeded { Ok(Self { term, revision: header.revision }) } else { Err(Refusal::StaleLeader { decided: term, applied: term }.into()) }
    }
}
