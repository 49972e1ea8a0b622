//! Workers, as the orchestrator sees them.

use bytes::Bytes;

use super::draft::Draft;
use super::orchestrator::Orchestrator;
use super::page::{self, Listed, Page};
use super::store::{Clock, Store};
use super::stored::{node_bytes, node_of};
use super::words::{Availability, NodeRecord, NodeState};
use super::{layout, rules, tasks};
use crate::error::{Error, NotDone, Refusal};
use crate::limits::{MAX_NODE_TASKS_LOOK, MAX_ORCHESTRATION_TRIES};
use crate::types::NodeId;

impl<S: Store, C: Clock> Orchestrator<S, C> {
    /// A node's record.
    ///
    /// # Errors
    /// The store's.
    pub async fn node(&self, id: NodeId) -> Result<Option<NodeRecord>, Error> {
        Draft::new(&self.store).get(&layout::node(id)).await?.as_ref().map(node_of).transpose()
    }

    /// All nodes' records, by their ids.
    ///
    /// # Errors
    /// As [`objects`](Self::objects).
    pub async fn nodes(&self, page: Page) -> Result<Listed<NodeRecord>, Error> {
        let found = page::keys(&self.store, layout::nodes(), page, false).await?;
        let items = found.kvs.iter().map(node_of).collect::<Result<_, _>>()?;
        Ok(Listed { items, revision: found.revision, next: found.next })
    }

    /// A manager's change of labels and availability; the record's `version` must be the stored one.
    ///
    /// # Errors
    /// [`Refusal::VersionConflict`], [`Refusal::NotThere`], [`Refusal::Invalid`], and the store's.
    pub async fn update_node(&self, mut record: NodeRecord) -> Result<NodeRecord, Error> {
        rules::labels(&mut record.labels)?;
        self.change_node(record.id, |before| {
            let before = before.ok_or_else(|| not_there(record.id))?;
            rules::version(|| what(record.id), record.version, before.version)?;
            Ok(NodeRecord { labels: record.labels.clone(), availability: record.availability, ..before })
        })
        .await
    }

    /// A node's word on itself; makes its record.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], and the store's.
    pub async fn describe_node(
        &self,
        id: NodeId,
        name: String,
        description: Bytes,
    ) -> Result<NodeRecord, Error> {
        rules::description(&name, &description)?;
        self.change_node(id, |before| {
            let before = before.unwrap_or_else(|| NodeRecord {
                id,
                name: String::new(),
                labels: Vec::new(),
                availability: Availability::Active,
                description: Bytes::new(),
                state: NodeState::Unknown,
                since: self.clock.now(),
                version: 0,
            });
            Ok(NodeRecord { name: name.clone(), description: description.clone(), ..before })
        })
        .await
    }

    /// Whether a node is there, as its leader sees it; the same again changes nothing.
    ///
    /// # Errors
    /// [`Refusal::NotThere`], and the store's.
    pub async fn set_node_state(&self, id: NodeId, state: NodeState) -> Result<NodeRecord, Error> {
        self.change_node(id, |before| {
            let before = before.ok_or_else(|| not_there(id))?;
            let since = if before.state == state { before.since } else { self.clock.now() };
            Ok(NodeRecord { state, since, ..before })
        })
        .await
    }

    /// Removes a node's record.
    ///
    /// # Errors
    /// [`Refusal::InUse`] while it has tasks that have not ended, [`Refusal::NotThere`], and the store's.
    pub async fn delete_node(&self, id: NodeId) -> Result<(), Error> {
        for _ in 0..MAX_ORCHESTRATION_TRIES {
            let mut draft = Draft::new(&self.store);
            let key = layout::node(id);
            if draft.get(&key).await?.is_none() {
                return Err(not_there(id).into());
            }
            draft.hold(&key).await?;
            let (keys, more) = draft.scan(layout::tasks_of_node(id), MAX_NODE_TASKS_LOOK).await?;
            let tasks: Vec<String> = keys.iter().filter_map(|key| layout::last_part(key)).collect();
            draft
                .fetch(tasks.iter().flat_map(|id| [layout::task(id), layout::task_status(id)]).collect())
                .await?;
            for task in &tasks {
                let task = tasks::read(&mut draft, task).await?;
                if let Some(task) = task.filter(|task| !task.status.state.is_final()) {
                    return Err(Refusal::InUse { what: what(id), by: format!("task {}", task.id) }.into());
                }
            }
            if more {
                let by = format!("more than {MAX_NODE_TASKS_LOOK} tasks");
                return Err(Refusal::InUse { what: what(id), by }.into());
            }
            draft.remove(key);
            if self.commit(draft).await?.is_some() {
                return Ok(());
            }
        }
        Err(Error::NotDone(NotDone::Busy))
    }

    async fn change_node(
        &self,
        id: NodeId,
        change: impl Fn(Option<NodeRecord>) -> Result<NodeRecord, Refusal> + Send,
    ) -> Result<NodeRecord, Error> {
        if id == NodeId(0) {
            return Err(Refusal::invalid("node", "it is 0, which names nobody").into());
        }
        let key = layout::node(id);
        for _ in 0..MAX_ORCHESTRATION_TRIES {
            let mut draft = Draft::new(&self.store);
            let before = draft.get(&key).await?.as_ref().map(node_of).transpose()?;
            let after = change(before.clone())?;
            if before.as_ref() != Some(&after) {
                draft.hold(&key).await?;
                draft.put(key.clone(), node_bytes(&after));
            }
            let changed = !draft.is_empty();
            if let Some(revision) = self.commit(draft).await? {
                return Ok(NodeRecord { version: if changed { revision } else { after.version }, ..after });
            }
        }
        Err(Error::NotDone(NotDone::Busy))
    }
}

fn what(id: NodeId) -> String {
    format!("node {id}")
}

fn not_there(id: NodeId) -> Refusal {
    Refusal::NotThere { what: what(id) }
}
