//! The rules of `schedule` in a small world of their own: what it says is done at once, nodes do as they are
//! told, time is a number.

use raft_kv::orchestration::Labels;

use super::*;
use crate::compose;

struct World {
    services: BTreeMap<String, Service>,
    tasks: Vec<Task>,
    nodes: Vec<NodeRecord>,
    now: Time,
    made: usize,
    rolled_back: Option<String>,
    /// Commands whose tasks fail as soon as they run.
    bad: Vec<&'static str>,
    /// The fewest and the most tasks that ran at the same time since these were set.
    fewest: usize,
    most: usize,
}

fn node(number: u8, labels: &[(&str, &str)]) -> NodeRecord {
    let labels: Labels = labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    NodeRecord {
        id: NodeId(number.into()),
        name: format!("node-{number}"),
        labels,
        availability: Availability::Active,
        description: Bytes::new(),
        state: NodeState::Ready,
        since: 0,
        version: 1,
    }
}

impl World {
    fn new() -> Self {
        let nodes = vec![node(1, &[("disk", "ssd")]), node(2, &[]), node(3, &[("disk", "ssd")])];
        let (services, tasks, bad) = (BTreeMap::new(), vec![], vec!["bad"]);
        Self { services, tasks, nodes, now: 1_000, made: 0, rolled_back: None, bad, fewest: 0, most: 0 }
    }

    fn deploy(&mut self, yaml: &str) -> &mut Self {
        self.services = compose::parse(&format!("services: {yaml}"), "before").unwrap();
        self.settle()
    }

    /// Manager and nodes take turns until neither has anything to do.
    fn settle(&mut self) -> &mut Self {
        for _ in 0..200 {
            let changes = reconcile(&self.services, &self.tasks, &self.nodes, self.now);
            let said = !changes.is_empty();
            changes.into_iter().for_each(|change| self.apply(change));
            if !self.work() && !said {
                return self;
            }
            let running = self.running().len();
            (self.fewest, self.most) = (self.fewest.min(running), self.most.max(running));
        }
        panic!("it never settles: {:?}", self.tasks);
    }

    fn apply(&mut self, change: Change) {
        let find = |tasks: &[Task], id: &str| tasks.iter().position(|task| task.id == id).unwrap();
        match change {
            Change::Create(task) => {
                self.made += 1;
                self.tasks.push(Task { id: format!("t{:03}", self.made), ..task });
            }
            Change::Assign { id, node } => {
                let at = find(&self.tasks, &id);
                assert_eq!(self.tasks[at].node, None, "a task never changes its node");
                self.tasks[at].node = Some(node);
                self.tasks[at].status.state = TaskState::Assigned;
            }
            Change::SetDesired { id, desired } => {
                let at = find(&self.tasks, &id);
                assert!(self.tasks[at].desired < desired, "desired goes forward");
                self.tasks[at].desired = desired;
            }
            Change::Delete(id) => {
                let at = find(&self.tasks, &id);
                let task = self.tasks.remove(at);
                assert!(
                    task.node.is_none() || task.status.state.is_final(),
                    "nothing that may run is forgotten"
                );
            }
            Change::RollBack { point, .. } => {
                self.rolled_back = Some(point);
                self.services
                    .values_mut()
                    .for_each(|service| service.update.failure_action = FailureAction::Pause);
            }
        }
    }

    /// Each node that is there does one step of each of its tasks.
    fn work(&mut self) -> bool {
        let mut did = false;
        for task in &mut self.tasks {
            let here = |node: &NodeRecord| Some(node.id) == task.node && node.state == NodeState::Ready;
            if task.status.state.is_final() || !self.nodes.iter().any(here) {
                continue;
            }
            let bad = self.bad.iter().any(|word| String::from_utf8_lossy(&task.spec).contains(word));
            let next = match task.status.state {
                _ if task.desired > TaskState::Running => TaskState::Shutdown,
                TaskState::Running if bad => TaskState::Failed,
                TaskState::Running => continue,
                _ => TaskState::Running,
            };
            task.status = TaskStatus { state: next, at: self.now, ..task.status.clone() };
            did = true;
        }
        did
    }

    fn fail(&mut self, id: &str, state: TaskState) -> &mut Self {
        let now = self.now;
        let task = self.tasks.iter_mut().find(|task| task.id == id).unwrap();
        task.status = TaskStatus { state, at: now, ..task.status.clone() };
        self
    }

    fn after(&mut self, time: Time) -> &mut Self {
        self.now += time;
        self.settle()
    }

    /// The ids of all that runs on nodes that are there.
    fn running(&self) -> Vec<&str> {
        let there = |id| self.nodes.iter().any(|node| Some(node.id) == id && node.state == NodeState::Ready);
        let runs = |task: &&Task| task.status.state == TaskState::Running && there(task.node);
        self.tasks.iter().filter(runs).map(|task| task.id.as_str()).collect()
    }

    /// What runs where, as `slot@node` in the order of slots.
    fn places(&self) -> String {
        let running = self.running();
        let mut rows: Vec<_> = self.tasks.iter().filter(|task| running.contains(&task.id.as_str())).collect();
        rows.sort_by_key(|task| (task.service.clone(), task.slot));
        let row = |task: &&Task| format!("{}@{}", task.slot, task.node.unwrap().0);
        rows.iter().map(row).collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn tasks_are_spread_over_the_nodes_that_fit() {
    for (placement, expect) in [
        ("[]", "1@1 2@2 3@3 4@1"),
        ("[node.labels.disk == ssd]", "1@1 2@3 3@1 4@3"),
        ("[node.labels.disk != ssd]", "1@2 2@2 3@2 4@2"),
        ("[node.role == worker, node.hostname == node-3]", "1@3 2@3 3@3 4@3"),
        ("[node.role == manager]", ""),
    ] {
        let mut world = World::new();
        world.deploy(&format!(
            "{{a: {{command: x, deploy: {{replicas: 4, placement: {{constraints: {placement}}}}}}}}}"
        ));
        assert_eq!(world.places(), expect, "{placement}");
    }
}

#[test]
fn a_node_that_goes_down_or_is_drained_loses_its_tasks_to_others() {
    let mut world = World::new();
    world.deploy("{a: {command: x, deploy: {replicas: 3}}}");
    world.nodes[1].state = NodeState::Down;
    assert_eq!(world.settle().places(), "1@1 2@1 3@3");
    // Back again, it is told to end what others do now.
    world.nodes[1].state = NodeState::Ready;
    assert_eq!(world.settle().places(), "1@1 2@1 3@3");
    world.nodes[0].availability = Availability::Drain;
    assert_eq!(world.settle().places(), "1@2 2@2 3@3");
    world.nodes[1].availability = Availability::Pause;
    assert_eq!(world.settle().places(), "1@2 2@2 3@3");
}

#[test]
fn scaling_and_removal_leave_nothing_behind() {
    let mut world = World::new();
    world.deploy("{a: {command: x, deploy: {replicas: 3}}, b: {command: y}}");
    world.deploy("{a: {command: x, deploy: {replicas: 1}}, b: {command: y}}");
    assert_eq!((world.running().len(), world.tasks.len()), (2, 2));
    world.deploy("{a: {command: x, deploy: {replicas: 5}}, b: {command: y}}");
    assert_eq!((world.running().len(), world.made), (6, 8));
    world.deploy("{}");
    assert_eq!(world.tasks, []);
}

#[test]
fn what_ends_by_itself_is_restarted_as_the_policy_says() {
    use TaskState::{Complete, Failed, Orphaned, Rejected};
    for (policy, end, before, after) in [
        ("{}", Failed, 0, 1),
        ("{}", Complete, 0, 1),
        ("{condition: any, delay: 0s}", Complete, 1, 1),
        ("{condition: on-failure}", Complete, 0, 0),
        ("{condition: on-failure}", Rejected, 0, 1),
        ("{condition: none}", Failed, 0, 0),
        ("{condition: none}", Orphaned, 1, 1),
    ] {
        let mut world = World::new();
        world.deploy(&format!("{{a: {{command: x, deploy: {{restart_policy: {policy}}}}}}}"));
        world.fail("t001", end).after(4_999);
        assert_eq!(world.running().len(), before, "{policy} {end:?} before its delay");
        assert_eq!(world.after(1).running().len(), after, "{policy} {end:?}");
    }
}

#[test]
fn a_slot_is_given_up_after_its_attempts_and_tried_anew_with_another_spec() {
    let mut world = World::new();
    let policy = "restart_policy: {delay: 1s, max_attempts: 2}";
    world.deploy(&format!("{{a: {{command: bad, deploy: {{{policy}}}}}}}"));
    for _ in 0..10 {
        world.after(1_000);
    }
    assert_eq!((world.made, world.running().len()), (3, 0));
    world.deploy(&format!("{{a: {{command: good, deploy: {{{policy}}}}}}}"));
    assert_eq!((world.made, world.running().len()), (4, 1));
}

#[test]
fn an_update_changes_a_few_at_a_time_in_its_order() {
    for (config, fewest, most) in [
        ("{order: stop-first}", 3, 4),
        ("{order: stop-first, parallelism: 2}", 2, 4),
        ("{order: stop-first, parallelism: 0}", 0, 4),
        ("{order: start-first}", 4, 5),
        ("{order: start-first, parallelism: 3}", 4, 7),
    ] {
        let mut world = World::new();
        let yaml =
            |word| format!("{{a: {{command: {word}, deploy: {{replicas: 4, update_config: {config}}}}}}}");
        world.deploy(&yaml("one"));
        (world.fewest, world.most) = (usize::MAX, 0);
        world.deploy(&yaml("two"));
        for _ in 0..8 {
            world.after(5_000);
        }
        assert_eq!((world.fewest, world.most), (fewest, most), "{config}");
        assert!(
            world
                .tasks
                .iter()
                .filter(|task| world.running().contains(&task.id.as_str()))
                .all(|task| { String::from_utf8_lossy(&task.spec).contains("two") })
        );
        assert_eq!((world.running().len(), world.made), (4, 8), "{config}");
    }
}

#[test]
fn a_bad_update_stops_goes_on_or_goes_back() {
    for (config, old_left, rolled_back) in [
        ("{order: start-first}", 4, None),
        ("{order: stop-first}", 3, None),
        ("{order: stop-first, parallelism: 2}", 2, None),
        ("{order: stop-first, failure_action: continue}", 0, None),
        ("{order: start-first, failure_action: rollback}", 4, Some("before")),
        ("{order: stop-first, failure_action: rollback}", 3, Some("before")),
    ] {
        let mut world = World::new();
        let yaml = |word| {
            format!(
                "{{a: {{command: {word}, deploy: {{replicas: 4, update_config: {config}, restart_policy: {{max_attempts: 1}}}}}}}}"
            )
        };
        world.deploy(&yaml("good"));
        world.deploy(&yaml("bad"));
        for _ in 0..20 {
            world.after(5_000);
        }
        assert_eq!(world.running().len(), old_left, "{config}");
        assert_eq!(world.rolled_back.as_deref(), rolled_back, "{config}");
        // The way back: the spec of before, the places that still have it untouched.
        let made = world.made;
        world.deploy(&yaml("good"));
        for _ in 0..20 {
            world.after(5_000);
        }
        assert_eq!((world.running().len(), world.made), (4, made + 4 - old_left), "{config}");
    }
}

#[test]
fn a_late_failure_is_no_failed_update() {
    let mut world = World::new();
    let yaml =
        |word| format!("{{a: {{command: {word}, deploy: {{update_config: {{failure_action: rollback}}}}}}}}");
    world.deploy(&yaml("one")).deploy(&yaml("two")).after(5_000);
    let id = world.running()[0].to_owned();
    world.after(5_001).fail(&id, TaskState::Failed).after(5_000);
    assert_eq!((world.running().len(), world.rolled_back.as_deref()), (1, None));
}
