//! The typed layer on the real machine: random calls of several callers whose reads and transactions interleave,
//! against naive rules and naive listings; and one by one what a caller relies on.

mod exact;
mod history;
mod one_by_one;
mod world;

use bytes::Bytes;

use super::words::{Object, ObjectKey, Task, TaskState, TaskStatus};
use super::{Orchestrator, words};
use crate::types::NodeId;
use world::{Counter, World};

type Orch = Orchestrator<World, Counter>;

fn orchestrator() -> (World, Orch) {
    let world = World::new();
    (world.clone(), Orchestrator::new(world, Counter::default()))
}

fn key(kind: &str, id: &str) -> ObjectKey {
    ObjectKey { kind: kind.into(), id: id.into() }
}

fn object(id: &str, name: &str) -> Object {
    Object {
        key: key("service", id),
        name: name.into(),
        labels: Vec::new(),
        refs: Vec::new(),
        spec: Bytes::from_static(b"spec"),
        status: Bytes::new(),
        version: 0,
        created: 0,
        updated: 0,
    }
}

fn status(state: TaskState) -> TaskStatus {
    TaskStatus { state, message: String::new(), error: String::new(), exit_code: None, at: 1 }
}

fn task(id: &str, service: &str, slot: u64, node: Option<u64>) -> Task {
    Task {
        id: id.into(),
        service: service.into(),
        slot,
        node: node.map(NodeId),
        labels: Vec::new(),
        refs: Vec::new(),
        spec: Bytes::from_static(b"run"),
        desired: TaskState::Running,
        status: status(if node.is_some() { TaskState::Assigned } else { TaskState::New }),
        version: 0,
        created: 0,
        updated: 0,
    }
}

fn labels(pairs: &[(&str, &str)]) -> words::Labels {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
