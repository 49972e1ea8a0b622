//! What must hold of the stored keys at every revision: the indexes are exactly what objects and tasks say, and no
//! task goes back or moves. Made from the keys alone, by other code than the typed layer's.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::super::stored::{object_of, task_of};
use super::super::words::{Object, ObjectKey, Task, TaskState};
use super::world::World;
use crate::types::{KeyRange, KeyValue, NodeId, RangeRequest, readable};

/// All that is there.
#[derive(Clone, Default, Debug)]
pub struct Seen {
    pub objects: BTreeMap<ObjectKey, Object>,
    pub tasks: BTreeMap<String, Task>,
    pub nodes: BTreeSet<Bytes>,
}

fn escaped(part: &str) -> String {
    part.replace('%', "%25").replace('/', "%2F").replace('=', "%3D")
}

fn key(parts: &[&str]) -> Bytes {
    format!("_rk/{}", parts.join("/")).into()
}

/// The state, where its indexes are exact.
pub fn look(world: &World) -> Result<Seen, String> {
    let request = RangeRequest { range: KeyRange::prefix("_rk/"), ..Default::default() };
    let all: BTreeMap<Bytes, KeyValue> =
        world.bench.lock().range(&request).unwrap().kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
    let status = |key: &Bytes, from: &str, to: &str| {
        let name = std::str::from_utf8(key).unwrap().replacen(from, to, 1);
        all.get(name.as_bytes())
    };
    let mut seen = Seen::default();
    let mut expect = BTreeSet::new();
    for (at, kv) in &all {
        let (text, status) = if at.starts_with(b"_rk/o/") {
            let object = object_of(kv, status(at, "_rk/o/", "_rk/x/")).unwrap();
            expect.extend(object_keys(&object));
            seen.objects.insert(object.key.clone(), object);
            continue;
        } else if at.starts_with(b"_rk/t/") {
            (at, status(at, "_rk/t/", "_rk/s/"))
        } else if at.starts_with(b"_rk/w/") {
            seen.nodes.insert(at.clone());
            continue;
        } else {
            continue;
        };
        if status.is_none() {
            return Err(format!("{} has no status", readable(text)));
        }
        let task = task_of(kv, status).unwrap();
        expect.extend(task_keys(&task));
        seen.tasks.insert(task.id.clone(), task);
    }
    let derived = |key: &&Bytes| {
        ["_rk/oi/", "_rk/tn/", "_rk/ts/", "_rk/td/", "_rk/tl/", "_rk/s/"]
            .iter()
            .any(|prefix| key.starts_with(prefix.as_bytes()))
    };
    let stored: BTreeSet<Bytes> = all.keys().filter(derived).cloned().collect();
    if let Some(key) = stored.symmetric_difference(&expect).next() {
        let what = if stored.contains(key) { "is there and should not be" } else { "is not there" };
        return Err(format!("{} {what}", readable(key)));
    }
    check_objects(&seen, &all)?;
    check_task_versions(&seen, &all)?;
    Ok(seen)
}

fn check_objects(seen: &Seen, all: &BTreeMap<Bytes, KeyValue>) -> Result<(), String> {
    for object in seen.objects.values() {
        let name = key(&["oi/n", &escaped(&object.key.kind), &escaped(&object.name)]);
        if all[&name].value != object.key.id {
            return Err(format!("the name of {object:?} is another's"));
        }
        if let Some(to) = object.refs.iter().find(|to| !seen.objects.contains_key(to)) {
            return Err(format!("{object:?} refers to {to:?}, which is gone"));
        }
    }
    Ok(())
}

/// The key by node is as new as the task: its session follows it.
fn check_task_versions(seen: &Seen, all: &BTreeMap<Bytes, KeyValue>) -> Result<(), String> {
    for task in seen.tasks.values() {
        let Some(node) = task.node else { continue };
        let by_node = &all[&key(&["tn", &node.to_string(), &escaped(&task.id)])];
        if by_node.mod_revision != task.version {
            return Err(format!("{task:?} changed unseen by its node"));
        }
    }
    Ok(())
}

fn object_keys(object: &Object) -> Vec<Bytes> {
    let (kind, id) = (&escaped(&object.key.kind), &escaped(&object.key.id));
    let mut keys = vec![key(&["oi/n", kind, &escaped(&object.name)])];
    for (name, value) in &object.labels {
        keys.push(key(&["oi/l", kind, &format!("{}={}", escaped(name), escaped(value)), id]));
    }
    for to in &object.refs {
        keys.push(key(&["oi/r", &escaped(&to.kind), &escaped(&to.id), kind, id]));
    }
    keys
}

fn task_keys(task: &Task) -> Vec<Bytes> {
    let id = &escaped(&task.id);
    let mut keys = vec![
        key(&["s", id]),
        key(&["ts", &escaped(&task.service), &format!("{:016x}", task.slot), id]),
        key(&["td", &format!("{:03}", task.desired.number()), id]),
    ];
    keys.extend(task.node.map(|NodeId(node)| key(&["tn", &format!("{node:016x}"), id])));
    for (name, value) in &task.labels {
        keys.push(key(&["tl", &format!("{}={}", escaped(name), escaped(value)), id]));
    }
    keys
}

/// What no step may do to a task.
pub fn follows(before: &Seen, after: &Seen) -> Result<(), String> {
    for (id, was) in &before.tasks {
        let Some(is) = after.tasks.get(id).filter(|is| is.created == was.created) else { continue };
        if is.status.state < was.status.state || is.desired < was.desired {
            return Err(format!("{was:?} went back to {is:?}"));
        }
        if was.node.is_some() && was.node != is.node {
            return Err(format!("{was:?} moved to {:?}", is.node));
        }
        if is.status.state > TaskState::New && is.status.state != TaskState::Pending && is.node.is_none() {
            return Err(format!("{is:?} has no node"));
        }
    }
    Ok(())
}
