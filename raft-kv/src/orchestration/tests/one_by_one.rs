//! One by one: what a call costs, fences, ids, pages, bounds, and bytes that nobody wrote.

use bytes::Bytes;
use proptest::prelude::*;

use super::super::layout;
use super::super::stored::{node_of, object_of, task_of};
use super::super::words::{Availability, NodeState, Object, TaskState};
use super::super::{Change, Changed, Fence, ObjectBy, Page, Reported, TaskBy};
use super::exact::look;
use super::world::{World, run};
use super::{Orch, key, labels, object, orchestrator, status, task};
use crate::error::{Error, Refusal};
use crate::limits::{MAX_LABELS, MAX_REFS, MAX_SPEC_BYTES, MAX_STATUS_TEXT_BYTES, TASK_ID_LEN};
use crate::planted::{Bug, with};
use crate::types::{KeyValue, NodeId};

fn calls<T>(world: &World, call: impl Future<Output = T>) -> (T, (usize, usize)) {
    *world.calls.lock() = (0, 0);
    let done = run(call);
    (done, *world.calls.lock())
}

#[test]
fn a_report_is_one_read_and_one_transaction_of_one_put_for_each_task() {
    let (world, orch) = orchestrator();
    for id in 0..32 {
        run(orch.create_task(task(&format!("t{id:02}"), "web", id, Some(5)))).unwrap();
    }
    let reports: Vec<_> = (0..32).map(|id| (format!("t{id:02}"), status(TaskState::Running))).collect();
    let before = world.revision();
    let (answers, cost) = calls(&world, orch.report(NodeId(5), reports.clone()));
    assert_eq!((answers.unwrap(), cost), (vec![Reported::Taken; 32], (1, 1)));
    let changes = world.bench.lock().history(before + 1).unwrap();
    assert_eq!((changes.len(), changes[0].events.len()), (1, 32));
    let (answers, cost) = calls(&world, orch.report(NodeId(5), reports));
    assert_eq!((answers.unwrap(), cost), (vec![Reported::Taken; 32], (1, 0)));
}

#[test]
fn an_assignment_costs_one_read_and_one_transaction() {
    let (world, orch) = orchestrator();
    run(orch.create_task(task("t", "web", 1, None))).unwrap();
    let (made, cost) = calls(&world, orch.assign("t", NodeId(5)));
    let made = made.unwrap();
    assert_eq!((cost, made.status.state, made.version), ((1, 1), TaskState::Assigned, world.revision()));
    assert_eq!(run(orch.task("t")).unwrap().unwrap(), made);
    let (again, cost) = calls(&world, orch.assign("t", NodeId(5)));
    assert_eq!((again.unwrap(), cost), (made, (1, 0)));
}

#[test]
fn ids_are_drawn_and_different() {
    let (_, orch) = orchestrator();
    let one = run(orch.create_task(task("", "web", 1, None))).unwrap().id;
    let two = run(orch.create_task(task("", "web", 1, None))).unwrap().id;
    assert_ne!(one, two);
    for id in [one, two] {
        assert_eq!(id.len(), TASK_ID_LEN);
        assert!(id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()), "{id}");
    }
}

fn a_stale_leader_changes_nothing() {
    let (world, orch) = orchestrator();
    run(orch.describe_node(NodeId(1), "n".into(), Bytes::new())).unwrap();
    let old = run(Fence::take(&world, 3)).unwrap();
    assert_eq!(run(Fence::take(&world, 3)).unwrap(), old);
    let stale = orch.fenced(old);
    run(stale.create(object("a", "a"))).unwrap();
    let new = run(Fence::take(&world, 4)).unwrap();
    let fenced = Error::Refused(Refusal::Fenced { term: 3, held: 4 });
    assert_eq!(run(Fence::take(&world, 3)), Err(fenced.clone()));
    let before = world.revision();
    assert_eq!(run(stale.create(object("b", "b"))).unwrap_err(), fenced);
    assert_eq!(run(stale.create_task(task("t", "a", 1, None))).unwrap_err(), fenced);
    assert_eq!(run(stale.set_status(&key("service", "a"), "x".into())).unwrap_err(), fenced);
    assert_eq!(run(stale.set_node_state(NodeId(1), NodeState::Down)).unwrap_err(), fenced);
    assert_eq!(world.revision(), before);
    run(orch.fenced(new).create(object("b", "b"))).unwrap();
}

#[test]
fn fences_hold() {
    a_stale_leader_changes_nothing();
    let found = with(Some(Bug::IgnoreFence), || std::panic::catch_unwind(a_stale_leader_changes_nothing));
    assert!(found.is_err(), "IgnoreFence was not found");
}

#[test]
fn a_listing_is_of_one_revision_however_long_it_takes() {
    let (world, orch) = orchestrator();
    for id in ["a", "b", "c", "d", "e"] {
        run(orch.create_task(task(id, "web", 1, None))).unwrap();
    }
    let first = run(orch.tasks(TaskBy::Service("web".into()), Page::first(2))).unwrap();
    run(orch.delete_task("c")).unwrap();
    run(orch.set_desired("d", TaskState::Shutdown)).unwrap();
    run(orch.create_task(task("f", "web", 1, None))).unwrap();
    let rest = Page { after: first.next.clone(), limit: 9 };
    let rest = run(orch.tasks(TaskBy::Service("web".into()), rest)).unwrap();
    let ids: Vec<&str> = rest.items.iter().map(|task| task.id.as_str()).collect();
    assert_eq!((ids, rest.revision, rest.next), (vec!["c", "d", "e"], first.revision, None));
    assert_eq!(rest.items[1].desired, TaskState::Running);
    assert!(world.revision() > first.revision);
    let other = run(orch.tasks(TaskBy::All, Page { after: first.next.clone(), limit: 9 }));
    assert!(matches!(other, Err(Error::Refused(Refusal::Invalid { .. }))), "{other:?}");
    world.ask(crate::machine::command::Command::Compact { revision: world.revision() });
    let late = run(orch.tasks(TaskBy::Service("web".into()), Page { after: first.next, limit: 9 }));
    assert!(matches!(late, Err(Error::Refused(Refusal::Compacted { .. }))), "{late:?}");
    let none = run(orch.tasks(TaskBy::All, Page::first(0)));
    assert!(matches!(none, Err(Error::Refused(Refusal::Invalid { .. }))), "{none:?}");
}

#[test]
fn a_batch_is_one_revision_and_later_changes_see_earlier_ones() {
    let (world, orch) = orchestrator();
    let made = run(orch.create(object("a", "old"))).unwrap();
    let before = world.revision();
    let b = Object { refs: vec![key("service", "a")], ..object("b", "old") };
    let (revision, changed) = run(orch.batch(vec![
        Change::Update(Object { name: "new".into(), ..made.clone() }),
        Change::Create(b),
        Change::CreateTask(task("t", "b", 1, None), None),
        Change::Assign { id: "t".into(), node: NodeId(9) },
    ]))
    .unwrap();
    assert_eq!(revision, before + 1);
    let Changed::Object(object) = &changed[0] else { panic!("{changed:?}") };
    assert_eq!((object.name.as_str(), object.version), ("new", revision));
    assert_eq!(run(orch.object(&made.key)).unwrap().as_ref(), Some(object));
    let Changed::Task(task) = &changed[3] else { panic!("{changed:?}") };
    assert_eq!(run(orch.task("t")).unwrap().as_ref(), Some(task));
    look(&world).unwrap();
    let failing = vec![Change::DeleteTask("t".into()), Change::Delete(key("service", "a"), object.version)];
    assert!(matches!(run(orch.batch(failing)), Err(Error::Refused(Refusal::InUse { .. }))));
    assert_eq!(world.revision(), revision);
    let b = run(orch.object(&key("service", "b"))).unwrap().unwrap();
    let both = vec![Change::Delete(b.key, b.version), Change::Delete(key("service", "a"), object.version)];
    run(orch.batch(both)).unwrap();
    assert!(run(orch.objects("service", ObjectBy::All, Page::all())).unwrap().items.is_empty());
    look(&world).unwrap();
}

#[test]
fn what_is_at_the_bounds_fits_and_what_is_above_is_refused() {
    let (world, orch) = orchestrator();
    let refs: Vec<_> = (0..MAX_REFS).map(|at| key("service", &format!("{at}"))).collect();
    for to in &refs {
        run(orch.create(object(&to.id, &to.id))).unwrap();
    }
    let many = |value: char| -> Vec<(String, String)> {
        (0..MAX_LABELS).map(|at| (format!("{at:/>128}"), value.to_string().repeat(512))).collect()
    };
    let largest = Object {
        labels: many('/'),
        refs: refs.clone(),
        spec: Bytes::from(vec![0; MAX_SPEC_BYTES]),
        ..object(&"/".repeat(256), &"%".repeat(256))
    };
    let made = run(orch.create(largest.clone())).unwrap();
    let made = run(orch.update(Object { labels: many('='), ..made })).unwrap();
    look(&world).unwrap();
    run(orch.delete(&made.key, made.version)).unwrap();
    look(&world).unwrap();
    let refused = |object: Object| assert!(matches!(run(orch.create(object)), Err(Error::Refused(_))));
    refused(Object { labels: [many('x'), labels(&[("y", "")])].concat(), ..largest.clone() });
    refused(Object { labels: labels(&[("y", "1"), ("y", "2")]), ..largest.clone() });
    refused(Object { refs: [refs, vec![key("service", "more")]].concat(), ..largest.clone() });
    refused(Object { spec: Bytes::from(vec![0; MAX_SPEC_BYTES + 1]), ..largest.clone() });
    refused(object("", "name"));
    refused(object("id", ""));
    refused(object(&"x".repeat(257), "name"));

    let tasks = |count: u64| -> Vec<Change> {
        (0..count).map(|slot| Change::CreateTask(task("", "web", slot, None), None)).collect()
    };
    run(orch.batch(tasks(90))).unwrap();
    look(&world).unwrap();
    let large = run(orch.batch(tasks(97)));
    assert!(matches!(large, Err(Error::Refused(Refusal::BatchTooLarge { .. }))), "{large:?}");

    let mut long = status(TaskState::Running);
    long.message = "x".repeat(MAX_STATUS_TEXT_BYTES + 1);
    let report = run(orch.report(NodeId(5), vec![("t".into(), long)]));
    assert!(matches!(report, Err(Error::Refused(Refusal::Invalid { .. }))), "{report:?}");
    let strange: Vec<_> =
        ["", "\0", "/", &"x".repeat(70_000)].map(|id| (id.to_owned(), status(TaskState::Running))).into();
    assert_eq!(run(orch.report(NodeId(5), strange)).unwrap(), [Reported::NotYours; 4]);
}

#[test]
fn a_node_is_described_by_itself_and_managed_by_managers() {
    let (_, orch) = orchestrator();
    let id = NodeId(5);
    let made = run(orch.describe_node(id, "w5".into(), "linux".into())).unwrap();
    assert_eq!((made.state, made.availability), (NodeState::Unknown, Availability::Active));
    let drained = super::super::NodeRecord {
        availability: Availability::Drain,
        labels: labels(&[("disk", "ssd")]),
        name: "not by managers".into(),
        ..made.clone()
    };
    let drained = run(orch.update_node(drained)).unwrap();
    assert_eq!((drained.name.as_str(), drained.availability), ("w5", Availability::Drain));
    assert!(matches!(run(orch.update_node(made)), Err(Error::Refused(Refusal::VersionConflict { .. }))));
    let ready = run(orch.set_node_state(id, NodeState::Ready)).unwrap();
    assert_eq!(run(orch.set_node_state(id, NodeState::Ready)).unwrap(), ready);
    assert_eq!(run(orch.nodes(Page::all())).unwrap().items, [ready]);
    run(orch.create_task(task("t", "web", 1, Some(5)))).unwrap();
    assert!(matches!(run(orch.delete_node(id)), Err(Error::Refused(Refusal::InUse { .. }))));
    run(orch.report(id, vec![("t".into(), status(TaskState::Failed))])).unwrap();
    run(orch.delete_node(id)).unwrap();
    assert_eq!(run(orch.node(id)).unwrap(), None);
    assert!(matches!(run(orch.delete_node(id)), Err(Error::Refused(Refusal::NotThere { .. }))));
}

fn bulk(orch: &Orch, count: u64) {
    for slot in 0..count {
        let id = format!("t{slot:03}");
        run(orch.create_task(task(&id, "web", 0, Some(5)))).unwrap();
        run(orch.report(NodeId(5), vec![(id, status(TaskState::Complete))])).unwrap();
    }
}

#[test]
fn a_slots_history_is_bounded_and_what_runs_stays() {
    let (world, orch) = orchestrator();
    bulk(&orch, 20);
    run(orch.create_task(task("runs", "web", 0, Some(5)))).unwrap();
    assert_eq!(run(orch.trim("web", 0, 5)).unwrap(), 15);
    let left = run(orch.tasks(TaskBy::Slot("web".into(), 0), Page::all())).unwrap().items;
    let ids: Vec<&str> = left.iter().map(|task| task.id.as_str()).collect();
    assert_eq!(ids, ["runs", "t015", "t016", "t017", "t018", "t019"]);
    assert_eq!(run(orch.trim("web", 0, 5)).unwrap(), 0);
    look(&world).unwrap();
}

proptest! {
    #[test]
    fn keys_are_read_back_and_no_two_are_one(
        one in prop::collection::vec(".{0,4}", 1..4),
        two in prop::collection::vec("[a/%=]{0,3}", 1..4),
    ) {
        let made = |parts: &[String]| layout::key(&parts.iter().map(String::as_str).collect::<Vec<_>>());
        for parts in [&one, &two] {
            prop_assert_eq!(layout::parts(&made(parts)), Some(parts.clone()));
        }
        prop_assert_eq!(made(&one) == made(&two), one == two);
    }

    #[test]
    fn bytes_that_nobody_wrote_are_refused_and_nothing_panics(
        key in prop::collection::vec(any::<u8>(), 0..20),
        value in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let _ = layout::parts(&[b"_rk/".as_slice(), &key].concat());
        let kv = KeyValue { key: key.into(), value: value.clone().into(), ..Default::default() };
        let _ = (object_of(&kv, None).is_ok(), task_of(&kv, Some(&kv)).is_ok(), node_of(&kv).is_ok());
        let (_, orch) = orchestrator();
        let listed = run(orch.tasks(TaskBy::All, Page { after: Some(value.into()), limit: 1 }));
        prop_assert!(matches!(listed, Err(Error::Refused(_))));
    }
}
