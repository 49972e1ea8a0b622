//! Which key holds what: the one place that knows the names below the reserved prefix (docs/orchestration.md).
//!
//! Parts are escaped, so that `/` separates them and `=` a label's name from its value: two different lists of
//! parts must never give one key, nor one that another's prefix covers.

use bytes::Bytes;

use super::words::{ObjectKey, TaskState};
use crate::limits::ORCHESTRATION_PREFIX;
use crate::types::{KeyRange, NodeId};

/// The key of these parts.
pub fn key(parts: &[&str]) -> Bytes {
    let mut out = String::from(ORCHESTRATION_PREFIX);
    for (at, part) in parts.iter().enumerate() {
        if at > 0 {
            out.push('/');
        }
        escape(part, &mut out);
    }
    out.into()
}

/// All keys that have these parts and further ones.
pub fn below(parts: &[&str]) -> KeyRange {
    let mut start = key(parts).to_vec();
    start.push(b'/');
    KeyRange::prefix(start)
}

/// The parts of a key that [`key`] made; `None` for any other.
pub fn parts(key: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(key).ok()?.strip_prefix(ORCHESTRATION_PREFIX)?;
    text.split('/').map(unescape).collect()
}

/// The last part of a key.
pub fn last_part(key: &[u8]) -> Option<String> {
    parts(key)?.pop()
}

fn escape(part: &str, out: &mut String) {
    for symbol in part.chars() {
        match symbol {
            '%' | '/' | '=' | '\0'..='\x1f' | '\x7f' => out.push_str(&format!("%{:02X}", u32::from(symbol))),
            symbol => out.push(symbol),
        }
    }
}

fn unescape(part: &str) -> Option<String> {
    let mut pieces = part.split('%');
    let mut out = pieces.next()?.to_owned();
    for piece in pieces {
        let code = u8::from_str_radix(piece.get(..2)?, 16).ok().filter(u8::is_ascii)?;
        out.push(char::from(code));
        out.push_str(piece.get(2..)?);
    }
    Some(out)
}

/// A label as one part: escaped already, so it is put together by hand.
fn labelled(parts: &[&str], label: &(String, String)) -> String {
    let mut out = String::from_utf8_lossy(&key(parts)).into_owned();
    out.push('/');
    escape(&label.0, &mut out);
    out.push('=');
    escape(&label.1, &mut out);
    out.push('/');
    out
}

fn with_last(mut start: String, last: &str) -> Bytes {
    escape(last, &mut start);
    start.into()
}

/// An object.
pub fn object(of: &ObjectKey) -> Bytes {
    key(&["o", &of.kind, &of.id])
}
/// All objects of a kind.
pub fn objects(kind: &str) -> KeyRange {
    below(&["o", kind])
}
/// An object's status.
pub fn object_status(of: &ObjectKey) -> Bytes {
    key(&["x", &of.kind, &of.id])
}
/// Whose name it is.
pub fn object_name(kind: &str, name: &str) -> Bytes {
    key(&["oi", "n", kind, name])
}
/// An object by one of its labels.
pub fn object_label(of: &ObjectKey, label: &(String, String)) -> Bytes {
    with_last(labelled(&["oi", "l", &of.kind], label), &of.id)
}
/// All objects of a kind with a label.
pub fn objects_labelled(kind: &str, label: &(String, String)) -> KeyRange {
    KeyRange::prefix(labelled(&["oi", "l", kind], label))
}
/// An object by what it refers to.
pub fn object_ref(of: &ObjectKey, to: &ObjectKey) -> Bytes {
    key(&["oi", "r", &to.kind, &to.id, &of.kind, &of.id])
}
/// All objects that refer to one.
pub fn referring(to: &ObjectKey) -> KeyRange {
    below(&["oi", "r", &to.kind, &to.id])
}
/// Those of them of one kind.
pub fn referring_of_kind(to: &ObjectKey, kind: &str) -> KeyRange {
    below(&["oi", "r", &to.kind, &to.id, kind])
}

/// A task.
pub fn task(id: &str) -> Bytes {
    key(&["t", id])
}
/// All tasks.
pub fn tasks() -> KeyRange {
    below(&["t"])
}
/// A task's status.
pub fn task_status(id: &str) -> Bytes {
    key(&["s", id])
}
/// A task by its node.
pub fn task_by_node(node: NodeId, id: &str) -> Bytes {
    key(&["tn", &node.to_string(), id])
}
/// All tasks of a node.
pub fn tasks_of_node(node: NodeId) -> KeyRange {
    below(&["tn", &node.to_string()])
}
/// A task by its service and slot.
pub fn task_by_slot(service: &str, slot: u64, id: &str) -> Bytes {
    key(&["ts", service, &format!("{slot:016x}"), id])
}
/// All tasks of a slot.
pub fn tasks_of_slot(service: &str, slot: u64) -> KeyRange {
    below(&["ts", service, &format!("{slot:016x}")])
}
/// All tasks of a service.
pub fn tasks_of_service(service: &str) -> KeyRange {
    below(&["ts", service])
}
/// A task by what it should be.
pub fn task_by_desired(desired: TaskState, id: &str) -> Bytes {
    key(&["td", &format!("{:03}", desired.number()), id])
}
/// All tasks that should be so.
pub fn tasks_desired(desired: TaskState) -> KeyRange {
    below(&["td", &format!("{:03}", desired.number())])
}
/// A task by one of its labels.
pub fn task_by_label(label: &(String, String), id: &str) -> Bytes {
    with_last(labelled(&["tl"], label), id)
}
/// All tasks with a label.
pub fn tasks_labelled(label: &(String, String)) -> KeyRange {
    KeyRange::prefix(labelled(&["tl"], label))
}

/// A node's record.
pub fn node(node: NodeId) -> Bytes {
    key(&["w", &node.to_string()])
}
/// All nodes' records.
pub fn nodes() -> KeyRange {
    below(&["w"])
}
/// Who leads.
pub fn fence() -> Bytes {
    key(&["f"])
}
