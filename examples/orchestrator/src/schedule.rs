//! What follows from what should be and what is: pure, so that every rule of the orchestrator is tested
//! without a cluster. It is asked again after every change and until it has nothing to say. It must never
//! read a clock or the store.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft_kv::orchestration::{Availability, NodeRecord, NodeState, Task, TaskState, TaskStatus, Time};
use raft_kv::types::NodeId;

use crate::compose::{Condition, Constraint, FailureAction, Order, Restart, Service};

/// One change of the store that brings what is nearer to what should be.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(clippy::large_enum_variant, reason = "a handful at a time, each used up at once")]
pub enum Change {
    /// A task is made, without an id and a node.
    Create(Task),
    /// A task gets its node.
    Assign { id: String, node: NodeId },
    /// A task is to come to an end, or to go.
    SetDesired { id: String, desired: TaskState },
    /// Nothing of a task is needed any more.
    Delete(String),
    /// A deployment has failed: all goes back to the point before it.
    RollBack { service: String, point: String },
}

/// All changes that are due at `now`. `services` are by the id of their object.
pub fn reconcile(
    services: &BTreeMap<String, Service>,
    tasks: &[Task],
    nodes: &[NodeRecord],
    now: Time,
) -> Vec<Change> {
    let nodes: BTreeMap<NodeId, &NodeRecord> = nodes.iter().map(|node| (node.id, node)).collect();
    let mut changes = Vec::new();
    let mut slots: BTreeMap<(&str, u64), Vec<&Task>> = BTreeMap::new();
    for task in tasks {
        match services.get(&task.service) {
            Some(service) if (1..=service.replicas).contains(&task.slot) => {
                slots.entry((&task.service, task.slot)).or_default().push(task);
            }
            _ => changes.extend(retire(task)),
        }
    }
    for (id, service) in services {
        let rows = (1..=service.replicas).map(|number| {
            Slot::of(number, slots.remove(&(id.as_str(), number)).unwrap_or_default(), service, &nodes)
        });
        changes.extend(keep(id, service, rows.collect(), now));
    }
    changes.extend(place(services, tasks, &nodes));
    changes
}

/// A task that no service has a place for.
fn retire(task: &Task) -> Option<Change> {
    let id = task.id.clone();
    if task.status.state.is_final() || task.node.is_none() {
        return Some(Change::Delete(id));
    }
    (task.desired != TaskState::Remove).then_some(Change::SetDesired { id, desired: TaskState::Remove })
}

/// The tasks of one place of a service, by what they mean to it now.
struct Slot<'a> {
    number: u64,
    all: Vec<&'a Task>,
    /// Run what should run, or will; the furthest first.
    current: Vec<&'a Task>,
    /// Run what should not run any more.
    old: Vec<&'a Task>,
    /// Were told to end, and somebody is there to end them.
    ending: usize,
    /// Are on a node that is not there or not to be used.
    lost: Vec<&'a Task>,
}

impl<'a> Slot<'a> {
    fn of(number: u64, all: Vec<&'a Task>, service: &Service, nodes: &BTreeMap<NodeId, &NodeRecord>) -> Self {
        let run = spec(service);
        let mut slot = Self { number, all, current: vec![], old: vec![], ending: 0, lost: vec![] };
        for task in &slot.all {
            let node = task.node.map(|id| nodes.get(&id).copied());
            let here = node.is_none_or(|node| node.is_some_and(|node| node.state != NodeState::Down));
            let drained = node.flatten().is_some_and(|node| node.availability == Availability::Drain);
            match task {
                task if task.status.state.is_final() => {}
                task if task.desired > TaskState::Running => slot.ending += usize::from(here),
                task if !here || drained => {
                    slot.lost.push(task);
                    slot.ending += usize::from(here);
                }
                task if task.spec == run => slot.current.push(task),
                task => slot.old.push(task),
            }
        }
        slot.current.sort_by_key(|task| (std::cmp::Reverse(task.status.state), task.id.clone()));
        slot
    }

    /// Whether its task has run for as long as an update is watched: only then is the place changed, and
    /// what ran there before not needed any more.
    fn proven(&self, monitor: Time, now: Time) -> bool {
        let runs = |task: &&Task| task.status.state == TaskState::Running;
        self.current.first().filter(|task| runs(task)).is_some_and(|task| now >= task.status.at + monitor)
    }

    /// The tasks of this spec that failed here.
    fn failed(&self, run: &Bytes) -> impl Iterator<Item = &&'a Task> {
        let failed = |task: &&&Task| matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
        let run = run.clone();
        self.all.iter().filter(failed).filter(move |task| task.spec == run)
    }

    /// Whether a new task may fill the empty place now.
    fn may_start(&self, run: &Bytes, restart: &Restart, now: Time) -> bool {
        let ended = self.all.iter().filter(|task| task.spec == *run && task.status.state.is_final());
        let Some(last) = ended.max_by_key(|task| (task.status.at, task.created)) else { return true };
        let due = now >= last.status.at.saturating_add(restart.delay_ms);
        let tries_left = restart.max_attempts.is_none_or(|most| self.failed(run).count() <= most);
        match (last.status.state, restart.condition) {
            // A manager ended it, or its node is gone: that is no failure.
            (TaskState::Shutdown | TaskState::Remove | TaskState::Orphaned, _) => true,
            (_, Condition::None) | (TaskState::Complete, Condition::OnFailure) => false,
            (TaskState::Complete, Condition::Any) => due,
            (_, Condition::OnFailure | Condition::Any) => due && tries_left,
        }
    }
}

/// Keeps one service: fills its places, replaces what runs another spec, a few at a time.
fn keep(id: &str, service: &Service, slots: Vec<Slot>, now: Time) -> Vec<Change> {
    let run = spec(service);
    let mut changes = Vec::new();
    let desired = |task: &Task, desired| Change::SetDesired { id: task.id.clone(), desired };
    if service.update.failure_action == FailureAction::Rollback
        && slots.iter().any(|slot| update_failed(slot, service, &run))
    {
        return vec![Change::RollBack { service: id.to_owned(), point: service.point.clone() }];
    }
    // Places that are being changed now; one that only fails counts too, so that a bad update stops by itself.
    let monitor = service.update.monitor_ms;
    let goes_on = service.update.failure_action == FailureAction::Continue;
    let under_way = |slot: &Slot| {
        let failed = slot.failed(&run).next().is_some();
        !slot.proven(monitor, now)
            && (slot.old.is_empty() || !slot.current.is_empty() || failed)
            && !(goes_on && failed)
    };
    let mut changing = slots.iter().filter(|slot| under_way(slot)).count();
    for slot in slots {
        changes.extend(slot.lost.iter().map(|task| desired(task, TaskState::Shutdown)));
        changes.extend(slot.current.iter().skip(1).map(|task| desired(task, TaskState::Shutdown)));
        if slot.proven(monitor, now) {
            changes.extend(slot.old.iter().map(|task| desired(task, TaskState::Shutdown)));
        } else if slot.current.is_empty() && !slot.old.is_empty() {
            let counted = usize::from(under_way(&slot));
            let room = service.update.parallelism == 0 || changing - counted < service.update.parallelism;
            if room && slot.may_start(&run, &service.restart, now) {
                changing += 1 - counted;
                match service.update.order {
                    Order::StopFirst => {
                        changes.extend(slot.old.iter().map(|task| desired(task, TaskState::Shutdown)));
                    }
                    Order::StartFirst => changes.push(Change::Create(task(id, slot.number, &run, now))),
                }
            }
        } else if slot.current.is_empty() && slot.ending == 0 && slot.may_start(&run, &service.restart, now) {
            changes.push(Change::Create(task(id, slot.number, &run, now)));
        }
    }
    changes
}

/// Whether a place that ran another spec before had a task of the new one fail soon after it was made.
fn update_failed(slot: &Slot, service: &Service, run: &Bytes) -> bool {
    let soon = |task: &&&Task| task.status.at <= task.created.saturating_add(service.update.monitor_ms);
    slot.failed(run).any(|task| soon(&task)) && slot.all.iter().any(|task| task.spec != *run)
}

/// Gives tasks without a node the fitting one with the least of their service, then the least of all.
fn place(
    services: &BTreeMap<String, Service>,
    tasks: &[Task],
    nodes: &BTreeMap<NodeId, &NodeRecord>,
) -> Vec<Change> {
    let mut load: BTreeMap<(NodeId, &str), usize> = BTreeMap::new();
    let mut total: BTreeMap<NodeId, usize> = BTreeMap::new();
    let lives = |task: &&Task| !task.status.state.is_final() && task.desired <= TaskState::Running;
    for task in tasks.iter().filter(lives) {
        if let Some(node) = task.node {
            *load.entry((node, &task.service)).or_default() += 1;
            *total.entry(node).or_default() += 1;
        }
    }
    let mut changes = Vec::new();
    for task in tasks.iter().filter(lives).filter(|task| task.node.is_none()) {
        let Some(service) = services.get(&task.service).filter(|service| task.slot <= service.replicas)
        else {
            continue;
        };
        let fits = |node: &&&NodeRecord| {
            node.state == NodeState::Ready
                && node.availability == Availability::Active
                && service.constraints.iter().all(|constraint| holds(constraint, node))
        };
        let weight = |node: &&&NodeRecord| {
            let of = load.get(&(node.id, task.service.as_str())).copied().unwrap_or_default();
            (of, total.get(&node.id).copied().unwrap_or_default(), node.id)
        };
        let Some(node) = nodes.values().filter(fits).min_by_key(weight).map(|node| node.id) else { continue };
        *load.entry((node, &task.service)).or_default() += 1;
        *total.entry(node).or_default() += 1;
        changes.push(Change::Assign { id: task.id.clone(), node });
    }
    changes
}

fn holds(constraint: &Constraint, node: &NodeRecord) -> bool {
    let id = node.id.to_string();
    let is = match constraint.subject.as_str() {
        "node.role" => Some("worker"),
        "node.hostname" => Some(node.name.as_str()),
        "node.id" => Some(id.as_str()),
        subject => {
            let name = subject.strip_prefix("node.labels.").unwrap_or_default();
            node.labels.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
        }
    };
    (is == Some(constraint.value.as_str())) == constraint.equal
}

/// The spec of a service's tasks, in their stored form.
pub fn spec(service: &Service) -> Bytes {
    serde_json::to_vec(&service.run).expect("text as JSON").into()
}

fn task(service: &str, slot: u64, run: &Bytes, now: Time) -> Task {
    let status = TaskStatus {
        state: TaskState::Pending,
        message: String::new(),
        error: String::new(),
        exit_code: None,
        at: now,
    };
    Task {
        id: String::new(),
        service: service.to_owned(),
        slot,
        node: None,
        labels: vec![],
        refs: vec![],
        spec: run.clone(),
        desired: TaskState::Running,
        status,
        version: 0,
        created: now,
        updated: now,
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
