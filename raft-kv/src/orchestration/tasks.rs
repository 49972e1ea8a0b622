//! Tasks, their indexes, and what their nodes say of them.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::draft::Draft;
use super::orchestrator::{CHANGED, Change, Orchestrator};
use super::page::{self, Listed, Page};
use super::store::{Clock, Store};
use super::stored::{task_bytes, task_of};
use super::words::{Task, TaskState, TaskStatus, Time};
use super::{layout, rules};
use crate::codec::Wire;
use crate::error::{Error, NotDone, Refusal};
use crate::limits::{
    MAX_ORCHESTRATION_TRIES, MAX_REPORTED_AT_ONCE, MAX_SLOT_LOOK, MAX_TRIMMED_AT_ONCE, TASK_ID_LEN,
};
use crate::types::{KeyRange, NodeId};

/// Which tasks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TaskBy {
    /// All.
    All,
    /// Those of a node.
    Node(NodeId),
    /// Those of a service.
    Service(String),
    /// Those of one slot of a service.
    Slot(String, u64),
    /// Those that should be so.
    Desired(TaskState),
    /// Those with a label of that name and value.
    Label(String, String),
}

/// What became of a report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reported {
    /// It is committed, or was so already.
    Taken,
    /// Something later is known already.
    Old,
    /// There is no such task on that node; whether there is one elsewhere is not said.
    NotYours,
}

/// What a node says of a task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeReport {
    /// Who says it.
    pub node: NodeId,
    /// The task.
    pub id: String,
    /// What became of it.
    pub status: TaskStatus,
}

impl<S: Store, C: Clock> Orchestrator<S, C> {
    /// Stores a new task; an empty id is drawn. `version`, `created` and `updated` are not looked at.
    ///
    /// # Errors
    /// [`Refusal::Exists`], [`Refusal::TaskRule`], and [`batch`](Self::batch)'s.
    pub async fn create_task(&self, task: Task) -> Result<Task, Error> {
        self.change_task(Change::CreateTask(task, None)).await
    }

    /// Gives a task to a node, once; the same again changes nothing.
    ///
    /// # Errors
    /// [`Refusal::TaskRule`] where it is on another node or has ended, [`Refusal::NotThere`], and
    /// [`batch`](Self::batch)'s.
    pub async fn assign(&self, id: &str, node: NodeId) -> Result<Task, Error> {
        self.change_task(Change::Assign { id: id.into(), node }).await
    }

    /// Says what a task should be; the same again changes nothing.
    ///
    /// # Errors
    /// [`Refusal::TaskRule`] where it should be further already, [`Refusal::NotThere`], and
    /// [`batch`](Self::batch)'s.
    pub async fn set_desired(&self, id: &str, desired: TaskState) -> Result<Task, Error> {
        self.change_task(Change::SetDesired { id: id.into(), desired }).await
    }

    /// Removes a task, in whatever state it is.
    ///
    /// # Errors
    /// [`Refusal::NotThere`], and [`batch`](Self::batch)'s.
    pub async fn delete_task(&self, id: &str) -> Result<(), Error> {
        self.batch(vec![Change::DeleteTask(id.into())]).await.map(drop)
    }

    /// A manager's word on where a task is: up to `Assigned`, or `Orphaned`.
    ///
    /// # Errors
    /// [`Refusal::TaskRule`], [`Refusal::NotThere`], and the store's.
    pub async fn set_task_status(&self, id: &str, status: TaskStatus) -> Result<(), Error> {
        for _ in 0..MAX_ORCHESTRATION_TRIES {
            let mut draft = Draft::new(&self.store);
            draft.fetch(vec![layout::task(id), layout::task_status(id)]).await?;
            let task = needed(&mut draft, id).await?;
            rules::manager_status(&task, &status)?;
            draft.hold_existence(&layout::task(id)).await?;
            draft.hold(&layout::task_status(id)).await?;
            draft.put(layout::task_status(id), status.to_bytes());
            if self.commit(draft).await?.is_some() {
                return Ok(());
            }
        }
        Err(Error::NotDone(NotDone::Busy))
    }

    /// A task.
    ///
    /// # Errors
    /// The store's.
    pub async fn task(&self, id: &str) -> Result<Option<Task>, Error> {
        let mut draft = Draft::new(&self.store);
        draft.fetch(vec![layout::task(id), layout::task_status(id)]).await?;
        read(&mut draft, id).await
    }

    /// Tasks, by their ids (of a service: by slot, then id). The cost is that of those listed.
    ///
    /// # Errors
    /// As [`objects`](Self::objects).
    pub async fn tasks(&self, by: TaskBy, page: Page) -> Result<Listed<Task>, Error> {
        let page::Keys { kvs, revision, next } = page::keys(&self.store, range_of(by), page, true).await?;
        let ids: Vec<String> = kvs.iter().filter_map(|kv| layout::last_part(&kv.key)).collect();
        let wanted: Vec<Bytes> =
            ids.iter().flat_map(|id| [layout::task(id), layout::task_status(id)]).collect();
        let found = page::read_all(&self.store, &wanted, revision).await?;
        let mut items = Vec::with_capacity(ids.len());
        for pair in found.chunks(2) {
            if let [Some(kv), status] = pair {
                items.push(task_of(kv, status.as_ref())?);
            }
        }
        Ok(Listed { items, revision, next })
    }

    /// A node's word on its tasks, one answer each, in their order; committed when this returns. Up to
    /// [`MAX_REPORTED_AT_ONCE`] tasks are one read and one transaction, more are several.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] for what no node can say, with nothing of it done; [`NotDone::Busy`] where others
    /// changed the same again and again; the store's. After an error it is safe to report all again.
    pub async fn report(&self, node: NodeId, all: Vec<(String, TaskStatus)>) -> Result<Vec<Reported>, Error> {
        for (_, status) in &all {
            rules::reported(status)?;
        }
        let of_node = |(id, status)| NodeReport { node, id, status };
        self.report_of_many(&all.into_iter().map(of_node).collect::<Vec<_>>()).await
    }

    /// What several nodes say of their tasks, as [`report`](Self::report) of each; those of different nodes
    /// share transactions. Each status must be one that a node can say.
    pub(super) async fn report_of_many(&self, all: &[NodeReport]) -> Result<Vec<Reported>, Error> {
        let mut answers = Vec::with_capacity(all.len());
        for reports in all.chunks(MAX_REPORTED_AT_ONCE) {
            answers.extend(self.report_some(reports).await?);
        }
        Ok(answers)
    }

    async fn report_some(&self, reports: &[NodeReport]) -> Result<Vec<Reported>, Error> {
        // A name that can't be one is no key: the store would say something else of it.
        let possible = |id: &str| rules::word("task's id", id).is_ok();
        for attempt in 0..MAX_ORCHESTRATION_TRIES {
            // What is old is found when it is committed. What is stored already was committed; only what would be
            // refused is looked at anew.
            let near = attempt == 0;
            let mut draft = if near { Draft::near(&self.store) } else { Draft::new(&self.store) };
            let ids = reports.iter().map(|report| report.id.as_str()).filter(|id| possible(id));
            draft.fetch(ids.flat_map(|id| [layout::task(id), layout::task_status(id)]).collect()).await?;
            let mut answers = Vec::with_capacity(reports.len());
            let mut newest: BTreeMap<&str, TaskStatus> = BTreeMap::new();
            for NodeReport { node, id, status } in reports {
                let task = if possible(id) { read(&mut draft, id).await? } else { None };
                let Some(task) = task.filter(|task| task.node == Some(*node)) else {
                    answers.push(Reported::NotYours);
                    continue;
                };
                let known = newest.entry(id).or_insert(task.status);
                if status.state < TaskState::Accepted || !rules::goes_on(known.state, status.state) {
                    answers.push(Reported::Old);
                    continue;
                }
                answers.push(Reported::Taken);
                if *known != *status {
                    draft.hold_existence(&layout::task(id)).await?;
                    draft.hold(&layout::task_status(id)).await?;
                    draft.put(layout::task_status(id), status.to_bytes());
                    *known = status.clone();
                }
            }
            if near && answers.iter().any(|one| *one != Reported::Taken) {
                continue;
            }
            if self.commit(draft).await?.is_some() {
                return Ok(answers);
            }
        }
        Err(Error::NotDone(NotDone::Busy))
    }

    /// Removes tasks of a slot that have ended, but for the newest `keep`; says how many went.
    ///
    /// # Errors
    /// [`NotDone::Busy`], and the store's.
    pub async fn trim(&self, service: &str, slot: u64, keep: usize) -> Result<usize, Error> {
        let (mut gone, mut tries) = (0, 0);
        while tries < MAX_ORCHESTRATION_TRIES {
            let mut draft = Draft::new(&self.store);
            let went = trim(&mut draft, service, slot, keep).await?;
            match self.commit(draft).await? {
                Some(_) => (gone, tries) = (gone + went, 0),
                None => {
                    tries += 1;
                    continue;
                }
            }
            if went < MAX_TRIMMED_AT_ONCE {
                return Ok(gone);
            }
        }
        Err(Error::NotDone(NotDone::Busy))
    }
}

fn range_of(by: TaskBy) -> KeyRange {
    match by {
        TaskBy::All => layout::tasks(),
        TaskBy::Node(node) => layout::tasks_of_node(node),
        TaskBy::Service(service) => layout::tasks_of_service(&service),
        TaskBy::Slot(service, slot) => layout::tasks_of_slot(&service, slot),
        TaskBy::Desired(desired) => layout::tasks_desired(desired),
        TaskBy::Label(name, value) => layout::tasks_labelled(&(name, value)),
    }
}

/// An id that nobody can guess: letters and digits, [`TASK_ID_LEN`] of them.
pub fn draw_id<C: Clock>(clock: &C) -> String {
    let mut number = (u128::from(clock.random()) << 64) | u128::from(clock.random());
    let mut id = String::with_capacity(TASK_ID_LEN);
    for _ in 0..TASK_ID_LEN {
        id.push(char::from(b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize]));
        number /= 36;
    }
    id
}

pub async fn read<S: Store>(draft: &mut Draft<'_, S>, id: &str) -> Result<Option<Task>, Error> {
    let Some(kv) = draft.get(&layout::task(id)).await? else { return Ok(None) };
    let status = draft.get(&layout::task_status(id)).await?;
    task_of(&kv, status.as_ref()).map(Some)
}

async fn needed<S: Store>(draft: &mut Draft<'_, S>, id: &str) -> Result<Task, Error> {
    rules::word("task's id", id)?;
    read(draft, id).await?.ok_or_else(|| Refusal::NotThere { what: format!("task {id}") }.into())
}

/// Index keys of a task.
fn indexes(task: &Task) -> Vec<Bytes> {
    let id = &task.id;
    let mut keys =
        vec![layout::task_by_slot(&task.service, task.slot, id), layout::task_by_desired(task.desired, id)];
    keys.extend(task.node.map(|node| layout::task_by_node(node, id)));
    keys.extend(task.labels.iter().map(|label| layout::task_by_label(label, id)));
    keys
}

/// Writes a task but its status; of `before` only the indexes that are none any more go.
fn write<S: Store>(draft: &mut Draft<'_, S>, task: &Task, before: Option<&Task>) {
    let after = indexes(task);
    let had = before.map(indexes).unwrap_or_default();
    for key in had.iter().filter(|key| !after.contains(key)) {
        draft.remove(key.clone());
    }
    draft.put(layout::task(&task.id), task_bytes(task));
    let by_node = task.node.map(|node| layout::task_by_node(node, &task.id));
    for key in after {
        // The node's own is written with every change: its session follows it.
        if Some(&key) == by_node.as_ref() || !had.contains(&key) {
            draft.put(key, Bytes::new());
        }
    }
}

pub async fn create<S: Store>(
    draft: &mut Draft<'_, S>,
    mut task: Task,
    history: Option<usize>,
    now: Time,
) -> Result<Task, Error> {
    let key = layout::task(&task.id);
    if draft.get(&key).await?.is_some() {
        return Err(Refusal::Exists { what: format!("task {}", task.id) }.into());
    }
    draft.hold(&key).await?;
    (task.created, task.updated, task.version) = (now, now, CHANGED);
    if let Some(keep) = history {
        trim(draft, &task.service, task.slot, keep).await?;
    }
    write(draft, &task, None);
    draft.put(layout::task_status(&task.id), task.status.to_bytes());
    Ok(task)
}

pub async fn assign<S: Store>(
    draft: &mut Draft<'_, S>,
    id: &str,
    node: NodeId,
    now: Time,
) -> Result<Task, Error> {
    let before = needed(draft, id).await?;
    if !rules::assigned(&before, node)? {
        return Ok(before);
    }
    let mut task = Task { node: Some(node), updated: now, version: CHANGED, ..before.clone() };
    draft.hold(&layout::task(id)).await?;
    if task.status.state < TaskState::Assigned {
        task.status = TaskStatus { state: TaskState::Assigned, at: now, ..task.status };
        draft.hold(&layout::task_status(id)).await?;
        draft.put(layout::task_status(id), task.status.to_bytes());
    }
    write(draft, &task, Some(&before));
    Ok(task)
}

pub async fn set_desired<S: Store>(
    draft: &mut Draft<'_, S>,
    id: &str,
    desired: TaskState,
    now: Time,
) -> Result<Task, Error> {
    let before = needed(draft, id).await?;
    rules::desired(id, before.desired, desired)?;
    if before.desired == desired {
        return Ok(before);
    }
    let task = Task { desired, updated: now, version: CHANGED, ..before.clone() };
    draft.hold(&layout::task(id)).await?;
    write(draft, &task, Some(&before));
    Ok(task)
}

pub async fn delete<S: Store>(draft: &mut Draft<'_, S>, id: &str) -> Result<(), Error> {
    let before = needed(draft, id).await?;
    draft.hold(&layout::task(id)).await?;
    for key in indexes(&before) {
        draft.remove(key);
    }
    draft.remove(layout::task(id));
    draft.remove(layout::task_status(id));
    Ok(())
}

/// Removes what has ended beyond the newest `keep`, the oldest first, at most [`MAX_TRIMMED_AT_ONCE`].
async fn trim<S: Store>(
    draft: &mut Draft<'_, S>,
    service: &str,
    slot: u64,
    keep: usize,
) -> Result<usize, Error> {
    let (keys, _) = draft.look(layout::tasks_of_slot(service, slot), MAX_SLOT_LOOK).await?;
    let ids: Vec<String> = keys.iter().filter_map(|key| layout::last_part(key)).collect();
    draft.fetch(ids.iter().flat_map(|id| [layout::task(id), layout::task_status(id)]).collect()).await?;
    let mut ended = Vec::new();
    for id in ids {
        if let Some(task) = read(draft, &id).await?.filter(|task| task.status.state.is_final()) {
            ended.push((task.created, task.id));
        }
    }
    ended.sort();
    let beyond = ended.len().saturating_sub(keep).min(MAX_TRIMMED_AT_ONCE);
    for (_, id) in &ended[..beyond] {
        delete(draft, id).await?;
    }
    Ok(beyond)
}
