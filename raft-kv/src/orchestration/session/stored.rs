//! Where a session finds what it reads. The keys and their form are the typed layer's.

use bytes::Bytes;

use super::super::layout as keys;
pub use super::super::stored::task_of;
use super::super::words::{Object, ObjectKey};
use crate::error::Error;
use crate::types::{KeyValue, NodeId};

pub fn tasks_by_node() -> Bytes {
    Bytes::from_static(b"_rk/tn/")
}
pub fn tasks_of(node: NodeId) -> Bytes {
    format!("_rk/tn/{:016x}/", node.0).into()
}
pub fn objects() -> Bytes {
    Bytes::from_static(b"_rk/o/")
}
pub fn all_alive() -> Bytes {
    Bytes::from_static(b"_rk/a/")
}
pub fn alive(node: NodeId) -> Bytes {
    format!("_rk/a/{:016x}", node.0).into()
}
pub fn token_key() -> Bytes {
    Bytes::from_static(b"_rk/k")
}
pub fn task(id: &str) -> Bytes {
    keys::key(&["t", id])
}
pub fn status(id: &str) -> Bytes {
    keys::key(&["s", id])
}
pub fn object(key: &ObjectKey) -> Bytes {
    keys::key(&["o", &key.kind, &key.id])
}

fn parts(key: &[u8]) -> Option<Vec<String>> {
    keys::parts(key)
}

/// The id in a key by node.
pub fn id_of(key: &[u8]) -> Option<String> {
    parts(key).filter(|parts| parts.len() == 3 && parts[0] == "tn").and_then(|mut parts| parts.pop())
}

/// The node in a key by node.
pub fn node_of(key: &[u8]) -> Option<NodeId> {
    let parts = parts(key).filter(|parts| parts.len() == 3 && parts[0] == "tn")?;
    u64::from_str_radix(&parts[1], 16).ok().map(NodeId)
}

pub fn alive_node_of(key: &[u8]) -> Option<NodeId> {
    let parts = parts(key).filter(|parts| parts.len() == 2 && parts[0] == "a")?;
    u64::from_str_radix(&parts[1], 16).ok().map(NodeId)
}

pub fn object_key_of(key: &[u8]) -> Option<ObjectKey> {
    let mut parts = parts(key).filter(|parts| parts.len() == 3 && parts[0] == "o")?;
    let id = parts.pop()?;
    Some(ObjectKey { kind: parts.pop()?, id })
}

pub fn object_of(kv: &KeyValue) -> Result<Object, Error> {
    super::super::stored::object_of(kv, None)
}
