//! The calls of an orchestrator: each reads at one revision, decides by the rules, and commits one transaction
//! that compares what it read. What changed in between is read again, a bounded number of times.

use super::draft::Draft;
use super::fence::Fence;
use super::store::{Clock, Store};
use super::words::{Object, ObjectKey, Task, TaskState};
use super::{layout, objects, tasks};
use crate::error::{Error, NotDone};
use crate::limits::MAX_ORCHESTRATION_TRIES;
use crate::types::{NodeId, Revision};

/// Tasks and state in a store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Orchestrator<S, C> {
    pub(super) store: S,
    pub(super) clock: C,
    pub(super) fence: Option<Fence>,
}

/// One change of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// See [`Orchestrator::create`].
    Create(Object),
    /// See [`Orchestrator::update`].
    Update(Object),
    /// See [`Orchestrator::delete`].
    Delete(ObjectKey, Revision),
    /// See [`Orchestrator::create_task`]; with a number, tasks of its slot that have ended go beyond the newest so
    /// many.
    CreateTask(Task, Option<usize>),
    /// See [`Orchestrator::assign`].
    Assign {
        /// The task.
        id: String,
        /// Where it is to run.
        node: NodeId,
    },
    /// See [`Orchestrator::set_desired`].
    SetDesired {
        /// The task.
        id: String,
        /// What it should be.
        desired: TaskState,
    },
    /// See [`Orchestrator::delete_task`].
    DeleteTask(String),
}

/// What a change of a batch made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Changed {
    /// The object as it is now.
    Object(Object),
    /// The task as it is now.
    Task(Task),
    /// It is gone.
    Gone,
}

impl<S: Store, C: Clock> Orchestrator<S, C> {
    /// Tasks and state in `store`, with times and ids of `clock`.
    pub fn new(store: S, clock: C) -> Self {
        Self { store, clock, fence: None }
    }

    /// The same for a leader: once a later leader took its fence, every change is refused with
    /// [`Refusal::Fenced`](crate::error::Refusal::Fenced).
    #[must_use]
    pub fn fenced(&self, fence: Fence) -> Self {
        Self { fence: Some(fence), ..self.clone() }
    }

    /// The store below.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The clock in use.
    pub fn clock(&self) -> &C {
        &self.clock
    }

    /// All changes at one revision, in their order, or none; later ones see earlier ones. The revision is that of
    /// the batch, or of its reads where nothing had to be changed.
    ///
    /// # Errors
    /// The first change's that is refused; [`BatchTooLarge`](crate::error::Refusal::BatchTooLarge);
    /// [`NotDone::Busy`] where others changed the same again and again; the store's.
    pub async fn batch(&self, mut changes: Vec<Change>) -> Result<(Revision, Vec<Changed>), Error> {
        let now = self.clock.now();
        for change in &mut changes {
            self.prepare(change)?;
        }
        for _ in 0..MAX_ORCHESTRATION_TRIES {
            let mut draft = Draft::new(&self.store);
            let keys = changes.iter().flat_map(needed).collect();
            draft.fetch(keys).await?;
            let mut changed = Vec::with_capacity(changes.len());
            for change in &changes {
                changed.push(apply(&mut draft, change, now).await?);
            }
            let Some(revision) = self.commit(draft).await? else { continue };
            let stamp =
                |version: &mut Revision| *version = if *version == CHANGED { revision } else { *version };
            for changed in &mut changed {
                match changed {
                    Changed::Object(object) => stamp(&mut object.version),
                    Changed::Task(task) => stamp(&mut task.version),
                    Changed::Gone => {}
                }
            }
            return Ok((revision, changed));
        }
        Err(Error::NotDone(NotDone::Busy))
    }

    /// Checks what can be without the store, and draws ids.
    fn prepare(&self, change: &mut Change) -> Result<(), Error> {
        match change {
            Change::Create(object) | Change::Update(object) => super::rules::object(object)?,
            Change::CreateTask(task, _) => {
                if task.id.is_empty() {
                    task.id = tasks::draw_id(&self.clock);
                }
                super::rules::new_task(task)?;
            }
            Change::Delete(..)
            | Change::Assign { .. }
            | Change::SetDesired { .. }
            | Change::DeleteTask(_) => {}
        }
        Ok(())
    }

    /// The revision of the transaction; `None` where a compare failed and nothing was done.
    pub(super) async fn commit(&self, draft: Draft<'_, S>) -> Result<Option<Revision>, Error> {
        let revision = draft.revision();
        if draft.is_empty() {
            if let Some(fence) = self.fence {
                fence.check(&self.store).await?;
            }
            return Ok(Some(revision));
        }
        let fence = self.fence.filter(|_| !crate::planted!(IgnoreFence));
        let request = draft.request(fence.map(Fence::compare))?;
        let (header, answer) = self.store.txn(request).await?;
        if answer.succeeded {
            return Ok(Some(header.revision));
        }
        if let Some(fence) = fence {
            fence.check(&self.store).await?;
        }
        Ok(None)
    }

    /// One change of an object.
    pub(super) async fn change_object(&self, change: Change) -> Result<Object, Error> {
        match self.batch(vec![change]).await?.1.pop() {
            Some(Changed::Object(object)) => Ok(object),
            other => unreachable!("a change of an object made {other:?}"),
        }
    }

    /// One change of a task.
    pub(super) async fn change_task(&self, change: Change) -> Result<Task, Error> {
        match self.batch(vec![change]).await?.1.pop() {
            Some(Changed::Task(task)) => Ok(task),
            other => unreachable!("a change of a task made {other:?}"),
        }
    }
}

/// The version of what a draft changed: the transaction's revision, once there is one.
pub(super) const CHANGED: Revision = -1;

/// Keys that a change reads for certain.
fn needed(change: &Change) -> Vec<bytes::Bytes> {
    match change {
        Change::Create(object) | Change::Update(object) => {
            let mut keys: Vec<_> = object.refs.iter().map(layout::object).collect();
            keys.push(layout::object(&object.key));
            keys.push(layout::object_status(&object.key));
            keys.push(layout::object_name(&object.key.kind, &object.name));
            keys
        }
        Change::Delete(key, _) => vec![layout::object(key), layout::object_status(key)],
        Change::CreateTask(task, _) => vec![layout::task(&task.id)],
        Change::Assign { id, .. } | Change::SetDesired { id, .. } | Change::DeleteTask(id) => {
            vec![layout::task(id), layout::task_status(id)]
        }
    }
}

async fn apply<S: Store>(draft: &mut Draft<'_, S>, change: &Change, now: u64) -> Result<Changed, Error> {
    Ok(match change {
        Change::Create(object) => Changed::Object(objects::create(draft, object.clone(), now).await?),
        Change::Update(object) => Changed::Object(objects::update(draft, object.clone(), now).await?),
        Change::Delete(key, version) => {
            objects::delete(draft, key, *version).await?;
            Changed::Gone
        }
        Change::CreateTask(task, history) => {
            Changed::Task(tasks::create(draft, task.clone(), *history, now).await?)
        }
        Change::Assign { id, node } => Changed::Task(tasks::assign(draft, id, *node, now).await?),
        Change::SetDesired { id, desired } => {
            Changed::Task(tasks::set_desired(draft, id, *desired, now).await?)
        }
        Change::DeleteTask(id) => {
            tasks::delete(draft, id).await?;
            Changed::Gone
        }
    })
}
