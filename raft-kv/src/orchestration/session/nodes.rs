//! The leader's duty: which nodes are there, and what is given up of those that are not. Both are
//! entries of the log, written under the leader's fence.
//!
//! A node is there for as long as its alive key is, which ends with the lease of its session. A new
//! leader gives every lease its time anew, so that a change of leader takes no node down.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use super::super::store::{Clock, Events, Store};
use super::super::words::{NodeState, Task, TaskState, TaskStatus, Time};
use super::super::{Orchestrator, Page, TaskBy};
use super::stored;
use super::words::Settings;
use crate::error::{Error, Refusal};
use crate::types::{EventKind, KeyRange, NodeId, RangeRequest, Revision, WatchBatch, WatchRequest};

/// Nodes or tasks that one read gives.
const PAGE: usize = 500;

/// Writes which nodes are [`Ready`](NodeState::Ready) and [`Down`](NodeState::Down), and gives up the
/// tasks of nodes that are down for longer than [`Settings::orphan_after`]: they are
/// [`Orphaned`](TaskState::Orphaned), and told to be shut down should the node come back.
///
/// # Errors
/// The store's; that of a stale fence where another leads. It is run anew with the next fence.
pub async fn keep_nodes<S: Store, C: Clock>(
    orchestrator: Orchestrator<S, C>,
    settings: Settings,
) -> Result<Infallible, Error> {
    loop {
        let mut keeper = Keeper::look(&orchestrator, &settings).await?;
        keeper.follow().await?;
    }
}

struct Keeper<'a, S: Store, C> {
    orchestrator: &'a Orchestrator<S, C>,
    settings: &'a Settings,
    /// What is stored of each node that is down: since when.
    down: BTreeMap<NodeId, Time>,
    ready: BTreeSet<NodeId>,
    /// Those down for so long that their tasks were given up.
    given_up: BTreeSet<NodeId>,
    from: Revision,
}

impl<'a, S: Store, C: Clock> Keeper<'a, S, C> {
    /// What is stored, put right by who is there.
    async fn look(orchestrator: &'a Orchestrator<S, C>, settings: &'a Settings) -> Result<Self, Error> {
        let range = KeyRange::prefix(stored::all_alive());
        let request = RangeRequest { range, keys_only: true, ..Default::default() };
        let (header, found) = orchestrator.store().range(request).await?;
        let there: BTreeSet<NodeId> =
            found.kvs.iter().filter_map(|kv| stored::alive_node_of(&kv.key)).collect();
        let mut keeper = Self {
            orchestrator,
            settings,
            down: BTreeMap::new(),
            ready: BTreeSet::new(),
            given_up: BTreeSet::new(),
            from: header.revision + 1,
        };
        let mut page = Page::first(PAGE);
        loop {
            let listed = orchestrator.nodes(page).await?;
            for record in listed.items {
                match record.state {
                    NodeState::Ready => drop(keeper.ready.insert(record.id)),
                    NodeState::Down => drop(keeper.down.insert(record.id, record.since)),
                    NodeState::Unknown => {}
                }
            }
            let Some(next) = listed.next else { break };
            page = Page { after: Some(next), limit: PAGE };
        }
        for node in &there {
            keeper.is_there(*node).await?;
        }
        let gone: Vec<NodeId> = keeper.ready.difference(&there).copied().collect();
        for node in gone {
            keeper.is_gone(node).await?;
        }
        Ok(keeper)
    }

    /// Until its watch ends, which compaction can make it do.
    async fn follow(&mut self) -> Result<(), Error> {
        let range = KeyRange::prefix(stored::all_alive());
        let request = WatchRequest { range, start_revision: self.from, ..Default::default() };
        let mut alive = self.orchestrator.store().watch(request).await?;
        loop {
            let tick = self.orchestrator.clock().sleep(self.settings.tick);
            let batch = tokio::select! {
                batch = alive.next() => batch?,
                () = tick => {
                    self.give_up().await?;
                    continue;
                }
            };
            let changes = match batch {
                Some(WatchBatch::Changes(changes)) => changes,
                Some(WatchBatch::Part(change)) => vec![change],
                Some(WatchBatch::Progress(_)) => continue,
                Some(WatchBatch::Compacted(_)) | None => return Ok(()),
            };
            for event in changes.into_iter().flat_map(|change| change.events) {
                let Some(node) = stored::alive_node_of(&event.kv.key) else { continue };
                match event.kind {
                    EventKind::Put => self.is_there(node).await?,
                    EventKind::Delete => self.is_gone(node).await?,
                }
            }
            self.give_up().await?;
        }
    }

    async fn is_there(&mut self, node: NodeId) -> Result<(), Error> {
        self.given_up.remove(&node);
        self.down.remove(&node);
        if !self.ready.contains(&node) && self.write(node, NodeState::Ready).await?.is_some() {
            self.ready.insert(node);
        }
        Ok(())
    }

    async fn is_gone(&mut self, node: NodeId) -> Result<(), Error> {
        self.ready.remove(&node);
        if let Some(since) = self.write(node, NodeState::Down).await? {
            self.down.insert(node, since);
        }
        Ok(())
    }

    /// Since when the record says so; `None` where there is no record.
    async fn write(&self, node: NodeId, state: NodeState) -> Result<Option<Time>, Error> {
        match self.orchestrator.set_node_state(node, state).await {
            Ok(record) => Ok(Some(record.since)),
            Err(error) => gone(error).map(|()| None),
        }
    }

    /// Gives up the tasks of nodes that are down for too long.
    async fn give_up(&mut self) -> Result<(), Error> {
        let now = self.orchestrator.clock().now();
        let late =
            |since: Time| Duration::from_millis(now.saturating_sub(since)) >= self.settings.orphan_after;
        let late: Vec<NodeId> = self
            .down
            .iter()
            .filter(|(node, since)| late(**since) && !self.given_up.contains(*node))
            .map(|(node, _)| *node)
            .collect();
        for node in late {
            let mut page = Page::first(PAGE);
            loop {
                let listed = self.orchestrator.tasks(TaskBy::Node(node), page).await?;
                for task in &listed.items {
                    self.orphan(task, now).await?;
                }
                let Some(next) = listed.next else { break };
                page = Page { after: Some(next), limit: PAGE };
            }
            self.given_up.insert(node);
        }
        Ok(())
    }

    async fn orphan(&self, task: &Task, now: Time) -> Result<(), Error> {
        if task.status.state.is_final() {
            return Ok(());
        }
        if task.desired < TaskState::Shutdown
            && let Err(error) = self.orchestrator.set_desired(&task.id, TaskState::Shutdown).await
        {
            return gone(error);
        }
        let status = TaskStatus {
            state: TaskState::Orphaned,
            message: "its node is down for too long".into(),
            error: String::new(),
            exit_code: None,
            at: now,
        };
        match self.orchestrator.set_task_status(&task.id, status).await {
            Ok(()) => Ok(()),
            Err(error) => gone(error),
        }
    }
}

/// What is not there any more needs nothing; everything else is the caller's error.
fn gone(error: Error) -> Result<(), Error> {
    match error {
        Error::Refused(Refusal::NotThere { .. } | Refusal::TaskRule { .. }) => Ok(()),
        error => Err(error),
    }
}
