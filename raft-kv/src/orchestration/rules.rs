//! What an object, a task, a node's record and a change of one may be. Pure: the same whoever asks.

use super::words::{Labels, Object, ObjectKey, Task, TaskState, TaskStatus};
use crate::error::Refusal;
use crate::limits::{
    MAX_DESCRIPTION_BYTES, MAX_LABEL_NAME_BYTES, MAX_LABEL_VALUE_BYTES, MAX_LABELS, MAX_OBJECT_STATUS_BYTES,
    MAX_ORCHESTRATION_NAME_BYTES, MAX_REFS, MAX_SPEC_BYTES, MAX_STATUS_TEXT_BYTES,
};
use crate::planted;
use crate::types::{NodeId, Revision};

fn bytes(field: &str, len: usize, max: usize) -> Result<(), Refusal> {
    if len > max {
        return Err(Refusal::invalid(
            field,
            format!("it has {len} bytes, the limit is {max}; use a shorter one"),
        ));
    }
    Ok(())
}

/// Refuses a word that is to be part of a key.
pub fn word(field: &str, word: &str) -> Result<(), Refusal> {
    if word.is_empty() {
        return Err(Refusal::invalid(field, "it is empty; give at least one character"));
    }
    bytes(field, word.len(), MAX_ORCHESTRATION_NAME_BYTES)
}

/// Refuses what names no object.
pub fn object_key(key: &ObjectKey) -> Result<(), Refusal> {
    word("kind", &key.kind)?;
    word("id", &key.id)
}

/// Sorts labels and refuses what is out of bounds, and names that are given twice.
pub fn labels(labels: &mut Labels) -> Result<(), Refusal> {
    labels.sort();
    if labels.len() > MAX_LABELS {
        let why = format!("there are {}, the limit is {MAX_LABELS}; give fewer", labels.len());
        return Err(Refusal::invalid("labels", why));
    }
    for (name, value) in &*labels {
        if name.is_empty() {
            return Err(Refusal::invalid("labels", "one has an empty name; name it"));
        }
        bytes("label's name", name.len(), MAX_LABEL_NAME_BYTES)?;
        bytes("label's value", value.len(), MAX_LABEL_VALUE_BYTES)?;
    }
    match labels.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => {
            Err(Refusal::invalid("labels", format!("{:?} is given twice; give each name once", pair[0].0)))
        }
        None => Ok(()),
    }
}

fn refs(refs: &mut Vec<ObjectKey>) -> Result<(), Refusal> {
    refs.sort();
    refs.dedup();
    if refs.len() > MAX_REFS {
        let why = format!("there are {}, the limit is {MAX_REFS}; give fewer", refs.len());
        return Err(Refusal::invalid("refs", why));
    }
    refs.iter().try_for_each(object_key)
}

/// Brings an object that is given into the form in which it is stored, or refuses it.
pub fn object(object: &mut Object) -> Result<(), Refusal> {
    object_key(&object.key)?;
    word("name", &object.name)?;
    labels(&mut object.labels)?;
    refs(&mut object.refs)?;
    bytes("spec", object.spec.len(), MAX_SPEC_BYTES)?;
    bytes("status", object.status.len(), MAX_OBJECT_STATUS_BYTES)
}

/// Refuses a version that is not the stored one.
pub fn version(what: impl Fn() -> String, given: Revision, stored: Revision) -> Result<(), Refusal> {
    if given == stored || planted!(IgnoreVersion) {
        return Ok(());
    }
    Err(Refusal::VersionConflict { what: what(), given, stored })
}

/// Brings a task that is given into the form in which it is stored, or refuses it.
pub fn new_task(task: &mut Task) -> Result<(), Refusal> {
    word("task's id", &task.id)?;
    word("service", &task.service)?;
    labels(&mut task.labels)?;
    refs(&mut task.refs)?;
    bytes("spec", task.spec.len(), MAX_SPEC_BYTES)?;
    status(&task.status)?;
    desired(&task.id, TaskState::New, task.desired)?;
    if task.node == Some(NodeId(0)) {
        return Err(Refusal::invalid("node", "it is 0, which names nobody"));
    }
    if task.status.state > TaskState::Assigned {
        return Err(task_rule(&task.id, "a new task is new, pending or assigned: its node says the rest"));
    }
    if task.status.state == TaskState::Assigned && task.node.is_none() {
        return Err(task_rule(&task.id, "it can't be assigned without a node; name the node"));
    }
    Ok(())
}

/// Refuses a status that is out of bounds.
pub fn status(status: &TaskStatus) -> Result<(), Refusal> {
    bytes("status' message", status.message.len(), MAX_STATUS_TEXT_BYTES)?;
    bytes("status' error", status.error.len(), MAX_STATUS_TEXT_BYTES)
}

/// A refusal of a change of a task.
pub fn task_rule(id: &str, why: impl Into<String>) -> Refusal {
    Refusal::TaskRule { task: id.into(), why: why.into() }
}

/// Whether a manager may want that of a task of which it wanted `before`.
pub fn desired(id: &str, before: TaskState, after: TaskState) -> Result<(), Refusal> {
    if matches!(after, TaskState::Failed | TaskState::Rejected | TaskState::Orphaned) {
        return Err(task_rule(id, "nobody can want that of it; choose another desired state"));
    }
    if after < before {
        let why = format!("it should be {} and that is never taken back; make another task", before.as_str());
        return Err(task_rule(id, why));
    }
    Ok(())
}

/// Whether a manager may set that status: only up to `Assigned`, and `Orphaned`.
pub fn manager_status(task: &Task, given: &TaskStatus) -> Result<(), Refusal> {
    status(given)?;
    let (before, after) = (task.status.state, given.state);
    if after == TaskState::Orphaned {
        return match task.node {
            _ if before.is_final() => Err(task_rule(&task.id, "it has ended already; leave it")),
            None => Err(task_rule(&task.id, "it has no node that could be gone; delete it")),
            Some(_) => Ok(()),
        };
    }
    if after > TaskState::Assigned || before > TaskState::Assigned {
        return Err(task_rule(&task.id, "from assigned on only its node says where it is"));
    }
    if after == TaskState::Assigned && task.node.is_none() {
        return Err(task_rule(&task.id, "it has no node; assign it to one"));
    }
    if !goes_on(before, after) {
        return Err(task_rule(&task.id, format!("it is {} and never goes back", before.as_str())));
    }
    Ok(())
}

/// Whether an observed state may follow another.
pub fn goes_on(before: TaskState, after: TaskState) -> bool {
    after >= before || planted!(StatusGoesBack)
}

/// Refuses a report that no node may make, whatever the task is.
pub fn reported(given: &TaskStatus) -> Result<(), Refusal> {
    status(given)?;
    if matches!(given.state, TaskState::Remove | TaskState::Orphaned) {
        return Err(Refusal::invalid("state", "no node can report that of a task"));
    }
    Ok(())
}

/// Whether a task may be given to that node: once. `false` where it has it already.
pub fn assigned(task: &Task, node: NodeId) -> Result<bool, Refusal> {
    match task.node {
        _ if node == NodeId(0) => Err(Refusal::invalid("node", "it is 0, which names nobody")),
        Some(has) if has == node => Ok(task.status.state < TaskState::Assigned),
        Some(has) if !planted!(TaskMoves) => {
            Err(task_rule(&task.id, format!("it is on node {has} and never moves; make another task")))
        }
        _ if task.status.state.is_final() => Err(task_rule(&task.id, "it has ended; make another task")),
        _ => Ok(true),
    }
}

/// Refuses what a node says of itself where it is too long.
pub fn description(name: &str, description: &[u8]) -> Result<(), Refusal> {
    bytes("name", name.len(), MAX_ORCHESTRATION_NAME_BYTES)?;
    bytes("description", description.len(), MAX_DESCRIPTION_BYTES)
}
