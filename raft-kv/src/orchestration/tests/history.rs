//! Random histories: a round is one call, or several whose reads come before the others' writes. After every step the
//! stored keys are exact; a call alone does what naive rules say; every listing is what a filter finds.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::super::words::{Object, ObjectKey, Task, TaskState};
use super::super::{Change, ObjectBy, Page, Reported, TaskBy};
use super::exact::{Seen, follows, look};
use super::world::{World, interleave, run as alone};
use super::{Orch, key, labels, object, orchestrator, status, task};
use crate::error::{Error, Refusal};
use crate::machine::command::Command;
use crate::planted::{Bug, with};
use crate::types::{NodeId, PointChange};

/// Ids that a careless key would mix up.
const IDS: [&str; 4] = ["a", "a/b", "a%2Fb", "a=b"];
const NAMES: [&str; 3] = ["web", "w/eb", "w"];
const LABELS: [(&str, &str); 4] = [("x", "1="), ("x=1", ""), ("x", "1"), ("y/", "z")];

#[derive(Clone, Debug)]
enum Call {
    Create { id: usize, name: usize, label: usize, to: Option<usize> },
    Update { id: usize, name: usize, label: usize, to: Option<usize>, stale: bool },
    Delete { id: usize, stale: bool },
    SetStatus { id: usize },
    CreateTask { id: usize, slot: u64, node: Option<u64>, label: usize, history: Option<usize> },
    Assign { id: usize, node: u64 },
    Desired { id: usize, state: TaskState },
    TaskStatus { id: usize, state: TaskState },
    Report { node: u64, ids: [usize; 2], states: [TaskState; 2] },
    DeleteTask { id: usize },
    Trim { slot: u64, keep: usize },
    Batch { id: usize, name: usize, to: usize },
    Describe { node: u64 },
    DeleteNode { node: u64 },
}

fn state() -> impl Strategy<Value = TaskState> {
    prop::sample::select(&TaskState::ALL[..])
}

fn call() -> impl Strategy<Value = Call> {
    let id = || 0..IDS.len();
    let name = || 0..NAMES.len();
    let to = || prop::option::of(0..IDS.len());
    let label = || 0..LABELS.len();
    prop_oneof![
        4 => (id(), name(), label(), to()).prop_map(|(id, name, label, to)| Call::Create { id, name, label, to }),
        3 => (id(), name(), label(), to(), prop::bool::weighted(0.2))
            .prop_map(|(id, name, label, to, stale)| Call::Update { id, name, label, to, stale }),
        2 => (id(), prop::bool::weighted(0.2)).prop_map(|(id, stale)| Call::Delete { id, stale }),
        1 => id().prop_map(|id| Call::SetStatus { id }),
        4 => (id(), 0..2u64, prop::option::of(1..3u64), label(), prop::option::of(0..2usize))
            .prop_map(|(id, slot, node, label, history)| Call::CreateTask { id, slot, node, label, history }),
        3 => (id(), 1..3u64).prop_map(|(id, node)| Call::Assign { id, node }),
        3 => (id(), state()).prop_map(|(id, state)| Call::Desired { id, state }),
        2 => (id(), state()).prop_map(|(id, state)| Call::TaskStatus { id, state }),
        5 => (1..3u64, [id(), id()], [state(), state()])
            .prop_map(|(node, ids, states)| Call::Report { node, ids, states }),
        1 => id().prop_map(|id| Call::DeleteTask { id }),
        1 => (0..2u64, 0..2usize).prop_map(|(slot, keep)| Call::Trim { slot, keep }),
        2 => (id(), name(), id()).prop_map(|(id, name, to)| Call::Batch { id, name, to }),
        1 => (1..3u64).prop_map(|node| Call::Describe { node }),
        1 => (1..3u64).prop_map(|node| Call::DeleteNode { node }),
    ]
}

#[derive(Clone, Debug)]
enum Round {
    Alone(Call),
    Together(Vec<Call>, Vec<u8>),
    /// Rolls the objects back to where they were so many rounds ago, at most.
    Rollback,
    Point,
}

fn round() -> impl Strategy<Value = Round> {
    let turns = prop::collection::vec(any::<u8>(), 0..12);
    prop_oneof![
        10 => call().prop_map(Round::Alone),
        8 => (prop::collection::vec(call(), 2..4), turns).prop_map(|(calls, turns)| Round::Together(calls, turns)),
        1 => Just(Round::Rollback),
        1 => Just(Round::Point),
    ]
}

fn service(id: usize) -> ObjectKey {
    key("service", IDS[id])
}

fn given(id: usize, name: usize, label: usize, to: Option<usize>) -> Object {
    Object {
        labels: labels(&[LABELS[label]]),
        refs: to.map(service).into_iter().collect(),
        ..object(IDS[id], NAMES[name])
    }
}

fn new_task(id: usize, slot: u64, node: Option<u64>, label: usize) -> Task {
    Task { labels: labels(&[LABELS[label]]), ..task(IDS[id], "w/eb", slot, node) }
}

/// A swap of names and of a reference in one revision: all or nothing.
fn batch(before: &Seen, id: usize, name: usize, to: usize) -> Vec<Change> {
    let version = |id| before.objects.get(&service(id)).map_or(0, |object| object.version);
    vec![
        Change::Delete(service(id), version(id)),
        Change::Create(given(id, name, 0, Some(to))),
        Change::CreateTask(new_task(id, 0, None, 1), None),
        Change::Assign { id: IDS[id].into(), node: NodeId(1) },
        Change::SetDesired { id: IDS[id].into(), desired: TaskState::Shutdown },
    ]
}

type Outcome = Result<Vec<Reported>, Error>;

/// Versions are those of before the round.
async fn make(orch: &Orch, call: &Call, before: &Seen) -> Outcome {
    let none = Vec::new();
    let version = |id: usize, stale: bool| {
        before.objects.get(&service(id)).map_or(1, |object| object.version) - i64::from(stale)
    };
    match call.clone() {
        Call::Create { id, name, label, to } => orch.create(given(id, name, label, to)).await.map(|_| none),
        Call::Update { id, name, label, to, stale } => {
            let object = Object { version: version(id, stale), ..given(id, name, label, to) };
            orch.update(object).await.map(|_| none)
        }
        Call::Delete { id, stale } => orch.delete(&service(id), version(id, stale)).await.map(|()| none),
        Call::SetStatus { id } => {
            orch.set_status(&service(id), Bytes::from_static(b"up")).await.map(|()| none)
        }
        Call::CreateTask { id, slot, node, label, history } => {
            let change = Change::CreateTask(new_task(id, slot, node, label), history);
            orch.batch(vec![change]).await.map(|_| none)
        }
        Call::Assign { id, node } => orch.assign(IDS[id], NodeId(node)).await.map(|_| none),
        Call::Desired { id, state } => orch.set_desired(IDS[id], state).await.map(|_| none),
        Call::TaskStatus { id, state } => orch.set_task_status(IDS[id], status(state)).await.map(|()| none),
        Call::Report { node, ids, states } => {
            let reports = ids.into_iter().zip(states).map(|(id, state)| (IDS[id].to_owned(), status(state)));
            orch.report(NodeId(node), reports.collect()).await
        }
        Call::DeleteTask { id } => orch.delete_task(IDS[id]).await.map(|()| none),
        Call::Trim { slot, keep } => orch.trim("w/eb", slot, keep).await.map(|_| none),
        Call::Batch { id, name, to } => orch.batch(batch(before, id, name, to)).await.map(|_| none),
        Call::Describe { node } => {
            orch.describe_node(NodeId(node), "n".into(), Bytes::new()).await.map(|_| none)
        }
        Call::DeleteNode { node } => orch.delete_node(NodeId(node)).await.map(|()| none),
    }
}

/// What a call alone ends with, by naive rules: a word for the refusal, or the answers of a report.
fn naive(before: &Seen, call: &Call) -> Result<Vec<Reported>, &'static str> {
    let has = |id: usize| before.objects.get(&service(id));
    let named = |name: usize, not: usize| {
        before.objects.values().any(|object| object.name == NAMES[name] && object.key != service(not))
    };
    let dangling = |id: usize, to: &Option<usize>| to.is_some_and(|to| to != id && has(to).is_none());
    let used = |id: usize| {
        before.objects.values().any(|object| object.key != service(id) && object.refs.contains(&service(id)))
    };
    let task = |id: usize| before.tasks.get(IDS[id]).ok_or("not there");
    let check = |bad: bool, word: &'static str| if bad { Err(word) } else { Ok(()) };
    match call {
        Call::Create { id, name, to, .. } => {
            check(has(*id).is_some(), "exists")?;
            check(named(*name, *id), "name")?;
            check(dangling(*id, to), "not there")?;
        }
        Call::Update { id, name, to, stale, .. } => {
            check(has(*id).is_none(), "not there")?;
            check(*stale, "version")?;
            check(named(*name, *id), "name")?;
            check(dangling(*id, to), "not there")?;
        }
        Call::Delete { id, stale } => {
            check(has(*id).is_none(), "not there")?;
            check(*stale, "version")?;
            check(used(*id), "in use")?;
        }
        Call::SetStatus { id } => check(has(*id).is_none(), "not there")?,
        Call::CreateTask { id, .. } => check(task(*id).is_ok(), "exists")?,
        Call::Assign { id, node } => {
            let task = task(*id)?;
            check(task.node.is_some_and(|has| has != NodeId(*node)), "rule")?;
            check(task.node.is_none() && task.status.state.is_final(), "rule")?;
        }
        Call::Desired { id, state } => {
            use TaskState::{Failed, Orphaned, Rejected};
            let task = task(*id)?;
            check([Failed, Rejected, Orphaned].contains(state) || *state < task.desired, "rule")?;
        }
        Call::TaskStatus { id, state } => {
            let task = task(*id)?;
            let was = task.status.state;
            let orphaned = *state == TaskState::Orphaned && task.node.is_some() && was < TaskState::Complete;
            let early = *state <= TaskState::Assigned
                && was <= *state
                && (task.node.is_some() || *state < TaskState::Assigned);
            check(!orphaned && !early, "rule")?;
        }
        Call::Report { node, ids, states } => return naive_report(before, *node, ids, states),
        Call::DeleteTask { id } => drop(task(*id)?),
        Call::Trim { .. } | Call::Describe { .. } => {}
        Call::Batch { id, name, to } => {
            check(has(*id).is_none(), "not there")?;
            check(used(*id), "in use")?;
            check(named(*name, *id), "name")?;
            check(*to != *id && has(*to).is_none(), "not there")?;
            check(task(*id).is_ok(), "exists")?;
        }
        Call::DeleteNode { node } => {
            let node = NodeId(*node);
            check(!before.nodes.contains(format!("_rk/w/{node}").as_bytes()), "not there")?;
            let busy = |task: &Task| task.node == Some(node) && !task.status.state.is_final();
            check(before.tasks.values().any(busy), "in use")?;
        }
    }
    Ok(Vec::new())
}

fn naive_report(
    before: &Seen,
    node: u64,
    ids: &[usize],
    states: &[TaskState],
) -> Result<Vec<Reported>, &'static str> {
    if states.iter().any(|state| matches!(state, TaskState::Remove | TaskState::Orphaned)) {
        return Err("invalid");
    }
    let mut now = before.clone();
    let mut answers = Vec::new();
    for (id, state) in ids.iter().zip(states) {
        let found = now.tasks.get_mut(IDS[*id]).filter(|task| task.node == Some(NodeId(node)));
        answers.push(match found {
            None => Reported::NotYours,
            Some(task) if *state < TaskState::Accepted || *state < task.status.state => Reported::Old,
            Some(task) => {
                task.status.state = *state;
                Reported::Taken
            }
        });
    }
    Ok(answers)
}

fn word(outcome: &Outcome) -> Result<Vec<Reported>, &'static str> {
    let refusal = match outcome {
        Ok(answers) => return Ok(answers.clone()),
        Err(Error::Refused(refusal)) => refusal,
        Err(_) => return Err("not refused"),
    };
    Err(match refusal {
        Refusal::Exists { .. } => "exists",
        Refusal::NotThere { .. } => "not there",
        Refusal::NameTaken { .. } => "name",
        Refusal::VersionConflict { .. } => "version",
        Refusal::InUse { .. } => "in use",
        Refusal::TaskRule { .. } => "rule",
        Refusal::Invalid { .. } => "invalid",
        _ => "another refusal",
    })
}

/// What a call that was done must have left.
fn done(call: &Call, before: &Seen, after: &Seen) -> bool {
    let task = |id: &usize| after.tasks.get(IDS[*id]);
    match call {
        Call::Create { id, name, label, to } | Call::Update { id, name, label, to, .. } => {
            let expect = given(*id, *name, *label, *to);
            after.objects.get(&expect.key).is_some_and(|is| {
                (&is.name, &is.labels, &is.refs) == (&expect.name, &expect.labels, &expect.refs)
            })
        }
        Call::Delete { id, .. } => !after.objects.contains_key(&service(*id)),
        Call::SetStatus { id } => after.objects[&service(*id)].status == "up",
        Call::CreateTask { id, slot, node, history, .. } => {
            let made = task(id).is_some_and(|is| is.slot == *slot && is.node == node.map(NodeId));
            made && history.is_none_or(|keep| ended(after, *slot) <= keep)
        }
        Call::Assign { id, node } => task(id).is_some_and(|is| is.node == Some(NodeId(*node))),
        Call::Desired { id, state } => task(id).is_some_and(|is| is.desired == *state),
        Call::TaskStatus { id, state } => task(id).is_some_and(|is| is.status.state == *state),
        Call::DeleteTask { id } => task(id).is_none(),
        Call::Trim { slot, keep } => ended(after, *slot) == ended(before, *slot).min(*keep),
        Call::Report { .. } => before.tasks.keys().eq(after.tasks.keys()),
        Call::Batch { id, .. } => task(id).is_some_and(|is| is.desired == TaskState::Shutdown),
        Call::Describe { .. } => !after.nodes.is_empty(),
        Call::DeleteNode { .. } => after.nodes.len() + 1 == before.nodes.len(),
    }
}

fn ended(seen: &Seen, slot: u64) -> usize {
    seen.tasks.values().filter(|task| task.slot == slot && task.status.state.is_final()).count()
}

fn fail(why: impl std::fmt::Display) -> TestCaseError {
    TestCaseError::fail(why.to_string())
}

/// Every listing is what a filter of all finds, page by page.
fn check_listings(orch: &Orch, seen: &Seen) -> Result<(), TestCaseError> {
    for limit in [1, 3, usize::MAX] {
        let mut queries = vec![TaskBy::All, TaskBy::Service("w/eb".into()), TaskBy::Service("w".into())];
        queries.extend([0, 1, 2].map(|node| TaskBy::Node(NodeId(node))));
        queries.extend([0, 1, 2].map(|slot| TaskBy::Slot("w/eb".into(), slot)));
        queries.extend(TaskState::ALL.map(TaskBy::Desired));
        queries.extend(LABELS.map(|(name, value)| TaskBy::Label(name.into(), value.into())));
        for by in queries {
            let mut expect: Vec<&Task> = seen.tasks.values().filter(|task| fits(task, &by)).collect();
            expect.sort_by_key(|task| if matches!(by, TaskBy::Service(_)) { task.slot } else { 0 });
            let mut found = Vec::new();
            let mut page = Page::first(limit);
            loop {
                let listed = alone(orch.tasks(by.clone(), page)).map_err(fail)?;
                found.extend(listed.items);
                let Some(next) = listed.next else { break };
                page = Page { after: Some(next), limit };
            }
            found.sort_by(|one, two| one.id.cmp(&two.id));
            expect.sort_by(|one, two| one.id.cmp(&two.id));
            prop_assert!(found.iter().eq(expect), "{by:?} found {found:?}");
        }
        let mut queries = vec![ObjectBy::All];
        queries.extend(LABELS.map(|(name, value)| ObjectBy::Label(name.into(), value.into())));
        queries.extend((0..IDS.len()).map(|id| ObjectBy::Ref(service(id))));
        for by in queries {
            let expect = seen.objects.values().filter(|object| match &by {
                ObjectBy::All => true,
                ObjectBy::Label(name, value) => object.labels.contains(&(name.clone(), value.clone())),
                ObjectBy::Ref(to) => object.refs.contains(to),
            });
            let mut found = Vec::new();
            let mut page = Page::first(limit);
            loop {
                let listed = alone(orch.objects("service", by.clone(), page)).map_err(fail)?;
                found.extend(listed.items);
                let Some(next) = listed.next else { break };
                page = Page { after: Some(next), limit };
            }
            found.sort_by(|one, two| one.key.cmp(&two.key));
            prop_assert!(found.iter().eq(expect), "{by:?} found {found:?}");
        }
    }
    for name in NAMES {
        let expect = seen.objects.values().find(|object| object.name == name);
        let found = alone(orch.object_named("service", name)).map_err(fail)?;
        prop_assert_eq!(found.as_ref(), expect);
    }
    Ok(())
}

fn fits(task: &Task, by: &TaskBy) -> bool {
    match by {
        TaskBy::All => true,
        TaskBy::Node(node) => task.node == Some(*node),
        TaskBy::Service(service) => task.service == *service,
        TaskBy::Slot(service, slot) => task.service == *service && task.slot == *slot,
        TaskBy::Desired(desired) => task.desired == *desired,
        TaskBy::Label(name, value) => task.labels.contains(&(name.clone(), value.clone())),
    }
}

fn point(world: &World, change: PointChange) -> Result<(), Refusal> {
    world.bench.lock().ask(Command::Point(change)).map(drop)
}

fn check(rounds: &[Round]) -> Result<(), TestCaseError> {
    let (world, orch) = orchestrator();
    let mut seen = look(&world).map_err(fail)?;
    let mut at_point = None;
    for round in rounds {
        let before = seen.clone();
        match round {
            Round::Alone(call) => {
                let outcome = alone(make(&orch, call, &before));
                let after = look(&world).map_err(fail)?;
                prop_assert_eq!(word(&outcome), naive(&before, call), "{:?} of {:?}", call, before);
                if outcome.is_ok() {
                    prop_assert!(done(call, &before, &after), "{call:?} of {before:?} left {after:?}");
                }
                follows(&before, &after).map_err(fail)?;
            }
            Round::Together(calls, turns) => {
                let mut last = before.clone();
                let made = calls.iter().map(|call| {
                    Box::pin(make(&orch, call, &before)) as Pin<Box<dyn Future<Output = Outcome> + '_>>
                });
                let outcomes = interleave(made.collect(), turns, || {
                    let now = look(&world).map_err(fail)?;
                    follows(&last, &now).map_err(fail)?;
                    last = now;
                    Ok::<(), TestCaseError>(())
                })?;
                for outcome in outcomes {
                    let settled = matches!(outcome, Ok(_) | Err(Error::Refused(_)));
                    prop_assert!(settled, "{outcome:?}");
                }
            }
            Round::Point => {
                let _ = point(&world, PointChange::Remove { name: "p".into() });
                let (name, author, comment) = ("p".to_owned(), String::new(), String::new());
                let change = PointChange::Create { name, at: None, expires: None, author, comment, now: 1 };
                point(&world, change).map_err(fail)?;
                at_point = Some(before.clone());
            }
            Round::Rollback => {
                let prefix = Some(Bytes::from_static(b"_rk/o"));
                let change =
                    PointChange::Rollback { point: "p".into(), prefix, author: String::new(), now: 1 };
                let rolled = point(&world, change);
                prop_assert_eq!(rolled.is_ok(), at_point.is_some());
                let now = look(&world).map_err(fail)?;
                if let Some(then) = &at_point {
                    let spec =
                        |object: &Object| (object.name.clone(), object.labels.clone(), object.refs.clone());
                    prop_assert!(now.objects.values().map(spec).eq(then.objects.values().map(spec)));
                    prop_assert_eq!(&now.tasks, &before.tasks);
                }
            }
        }
        seen = look(&world).map_err(fail)?;
    }
    check_listings(&orch, &seen)
}

fn run(cases: u32, max_shrink_iters: u32) -> Result<(), String> {
    let config = Config { cases, max_shrink_iters, failure_persistence: None, ..Config::default() };
    let rounds = prop::collection::vec(round(), 1..40);
    TestRunner::new(config).run(&rounds, |rounds| check(&rounds)).map_err(|error| error.to_string())
}

#[test]
fn whatever_callers_do_beside_each_other_rules_and_indexes_hold() {
    if let Err(error) = run(150, 2000) {
        panic!("{error}");
    }
}

#[test]
fn each_planted_bug_is_found() {
    for bug in
        [Bug::StatusGoesBack, Bug::TaskMoves, Bug::IndexForgotten, Bug::IgnoreVersion, Bug::CommitBlind]
    {
        let found = with(Some(bug), || {
            std::panic::catch_unwind(|| run(5000, 0)).unwrap_or_else(|_| Err("it panicked".into()))
        });
        assert!(found.is_err(), "{bug:?} was not found");
    }
}
