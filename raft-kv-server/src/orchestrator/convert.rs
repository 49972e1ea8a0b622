//! Between the messages of `worker.proto` and the crate's words.

use etcd_api::raftkv::{
    WorkerEndedWhy, WorkerObject, WorkerRef, WorkerReported, WorkerTask, WorkerTaskStatus, WorkerUpdate,
};
use raft_kv::error::{Error, Refusal};
use raft_kv::orchestration::session::{Assigned, Needed, Update};
use raft_kv::orchestration::{ObjectKey, Reported, TaskState, TaskStatus};

/// What is sent of an update.
pub fn update(update: Update) -> WorkerUpdate {
    WorkerUpdate {
        applies_to: update.applies_to,
        results_in: update.results_in,
        more: update.more,
        tasks: update.tasks.into_iter().map(task).collect(),
        removed: update.removed,
        objects: update.objects.into_iter().map(object).collect(),
        removed_objects: update.removed_objects.into_iter().map(reference).collect(),
    }
}

/// An update as it was sent; `None` for a state or reference that is none.
pub fn to_update(update: WorkerUpdate) -> Option<Update> {
    Some(Update {
        applies_to: update.applies_to,
        results_in: update.results_in,
        more: update.more,
        tasks: update.tasks.into_iter().map(to_task).collect::<Option<_>>()?,
        removed: update.removed,
        objects: update.objects.into_iter().map(to_object).collect::<Option<_>>()?,
        removed_objects: update.removed_objects.into_iter().map(to_reference).collect(),
    })
}

fn reference(key: ObjectKey) -> WorkerRef {
    WorkerRef { kind: key.kind, id: key.id }
}

fn to_reference(key: WorkerRef) -> ObjectKey {
    ObjectKey { kind: key.kind, id: key.id }
}

fn task(task: Assigned) -> WorkerTask {
    WorkerTask {
        id: task.id,
        service: task.service,
        slot: task.slot,
        labels: task.labels.into_iter().collect(),
        spec: task.spec,
        desired: task.desired.number(),
        reported: task.reported.number(),
        refs: task.refs.into_iter().map(reference).collect(),
    }
}

fn to_task(task: WorkerTask) -> Option<Assigned> {
    let mut labels: Vec<_> = task.labels.into_iter().collect();
    labels.sort_unstable();
    Some(Assigned {
        id: task.id,
        service: task.service,
        slot: task.slot,
        labels,
        spec: task.spec,
        desired: TaskState::of_number(task.desired)?,
        reported: TaskState::of_number(task.reported)?,
        refs: task.refs.into_iter().map(to_reference).collect(),
    })
}

fn object(object: Needed) -> WorkerObject {
    WorkerObject { r#ref: Some(reference(object.key)), name: object.name, spec: object.spec }
}

fn to_object(object: WorkerObject) -> Option<Needed> {
    Some(Needed { key: to_reference(object.r#ref?), name: object.name, spec: object.spec })
}

/// A status as a worker says it; `None` for a state that is none or that no worker may say.
pub fn to_status(status: WorkerTaskStatus) -> Option<(String, TaskStatus)> {
    let WorkerTaskStatus { id, state, message, error, exit_code, at } = status;
    let state = TaskState::of_number(state)?;
    let may = state > TaskState::Assigned && state < TaskState::Remove;
    may.then_some((id, TaskStatus { state, message, error, exit_code, at }))
}

/// A status as it is sent.
pub fn status(id: String, status: TaskStatus) -> WorkerTaskStatus {
    let TaskStatus { state, message, error, exit_code, at } = status;
    WorkerTaskStatus { id, state: state.number(), message, error, exit_code, at }
}

/// What became of a status.
pub fn reported(reported: Reported) -> WorkerReported {
    match reported {
        Reported::Taken => WorkerReported::Taken,
        Reported::Old => WorkerReported::Old,
        Reported::NotYours => WorkerReported::NotYours,
    }
}

/// Why a session ends, as far as a worker is told.
pub fn why(error: &Error) -> WorkerEndedWhy {
    match error {
        Error::Refused(Refusal::SessionTaken) => WorkerEndedWhy::WorkerEndedTaken,
        Error::Refused(Refusal::Invalid { .. }) => WorkerEndedWhy::WorkerEndedMistake,
        _ => WorkerEndedWhy::WorkerEndedAgain,
    }
}
