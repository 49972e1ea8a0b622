//! What the keys hold. Versions and statuses are not in it: the store knows the one, the other has a key of
//! its own. Reading never panics, whatever the bytes are, nor takes one
//! key's value for another's. Fields are only ever added at the end.

use bytes::Bytes;

use super::layout;
use super::words::{
    Availability, Labels, NodeRecord, NodeState, Object, ObjectKey, Task, TaskState, TaskStatus, Time,
};
use crate::codec::{Wire, wire_struct};
use crate::error::{Error, Refusal};
use crate::types::{KeyValue, NodeId, readable};

struct StoredObject {
    key: ObjectKey,
    name: String,
    labels: Labels,
    refs: Vec<ObjectKey>,
    spec: Bytes,
    created: Time,
    updated: Time,
}
wire_struct!(StoredObject { key, name, labels, refs, spec, created, updated });

struct StoredTask {
    id: String,
    service: String,
    slot: u64,
    node: Option<NodeId>,
    labels: Labels,
    refs: Vec<ObjectKey>,
    spec: Bytes,
    desired: TaskState,
    created: Time,
    updated: Time,
}
wire_struct!(StoredTask { id, service, slot, node, labels, refs, spec, desired, created, updated });

struct StoredNode {
    id: NodeId,
    name: String,
    labels: Labels,
    availability: Availability,
    description: Bytes,
    state: NodeState,
    since: Time,
}
wire_struct!(StoredNode { id, name, labels, availability, description, state, since });

fn read<T: Wire>(kv: &KeyValue) -> Result<T, Error> {
    T::from_bytes(kv.value.clone()).map_err(|error| {
        let what = format!("{} ({})", readable(&kv.key), error.what);
        Refusal::Malformed { what }.into()
    })
}

/// Refuses a value that says to be another key's: whatever is decided on it would be written there.
fn at(kv: &KeyValue, key: &Bytes) -> Result<(), Error> {
    if kv.key == key {
        return Ok(());
    }
    let what = format!("{} (it holds what is of {})", readable(&kv.key), readable(key));
    Err(Refusal::Malformed { what }.into())
}

/// The object of a key and its status' key.
///
/// # Errors
/// [`Refusal::Malformed`] where this software did not write it.
pub fn object_of(kv: &KeyValue, status: Option<&KeyValue>) -> Result<Object, Error> {
    let StoredObject { key, name, labels, refs, spec, created, updated } = read(kv)?;
    at(kv, &layout::object(&key))?;
    let status = status.map(|kv| kv.value.clone()).unwrap_or_default();
    Ok(Object { key, name, labels, refs, spec, status, version: kv.mod_revision, created, updated })
}

/// What an object's key holds.
pub fn object_bytes(object: &Object) -> Bytes {
    let Object { key, name, labels, refs, spec, created, updated, .. } = object.clone();
    StoredObject { key, name, labels, refs, spec, created, updated }.to_bytes()
}

/// The task of a key and its status' key.
///
/// # Errors
/// [`Refusal::Malformed`] where this software did not write it.
pub fn task_of(kv: &KeyValue, status: Option<&KeyValue>) -> Result<Task, Error> {
    let StoredTask { id, service, slot, node, labels, refs, spec, desired, created, updated } = read(kv)?;
    at(kv, &layout::task(&id))?;
    let status = match status {
        Some(kv) => read(kv)?,
        None => TaskStatus {
            state: TaskState::New,
            message: String::new(),
            error: String::new(),
            exit_code: None,
            at: created,
        },
    };
    let version = kv.mod_revision;
    Ok(Task { id, service, slot, node, labels, refs, spec, desired, status, version, created, updated })
}

/// What a task's key holds.
pub fn task_bytes(task: &Task) -> Bytes {
    let Task { id, service, slot, node, labels, refs, spec, desired, created, updated, .. } = task.clone();
    StoredTask { id, service, slot, node, labels, refs, spec, desired, created, updated }.to_bytes()
}

/// The record of a node's key.
///
/// # Errors
/// [`Refusal::Malformed`] where this software did not write it.
pub fn node_of(kv: &KeyValue) -> Result<NodeRecord, Error> {
    let StoredNode { id, name, labels, availability, description, state, since } = read(kv)?;
    at(kv, &layout::node(id))?;
    Ok(NodeRecord { id, name, labels, availability, description, state, since, version: kv.mod_revision })
}

/// What a node's key holds.
pub fn node_bytes(record: &NodeRecord) -> Bytes {
    let NodeRecord { id, name, labels, availability, description, state, since, .. } = record.clone();
    StoredNode { id, name, labels, availability, description, state, since }.to_bytes()
}
