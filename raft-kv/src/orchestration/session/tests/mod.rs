//! What a worker holds is what it should, whatever happens to its connection and to history; and the
//! leader's duty on nodes. Time is paused: it goes on when nothing else can.

mod reports;
pub(in crate::orchestration) mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use world::{TestClock, World};

use super::super::words::{NodeState, Object, ObjectKey, Task, TaskState, TaskStatus};
use super::super::{Orchestrator, Reported};
use super::{Assigned, Dispatcher, Needed, Session, Settings, Update, keep_nodes};
use crate::error::{Error, Refusal};
use crate::types::NodeId;

type Orch = Orchestrator<World, TestClock>;
type Opened = Session<World, TestClock>;

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(test)
}

fn small() -> Settings {
    Settings { max_items: 2, max_bytes: 1000, ..Default::default() }
}

fn secret(id: u8) -> ObjectKey {
    ObjectKey { kind: "secret".into(), id: format!("s/{id}%") }
}

fn object(id: u8, spec: u64) -> Object {
    Object {
        key: secret(id),
        name: format!("secret-{id}"),
        labels: Vec::new(),
        refs: Vec::new(),
        spec: spec.to_string().into(),
        status: Bytes::new(),
        version: 0,
        created: 0,
        updated: 0,
    }
}

fn status(state: TaskState) -> TaskStatus {
    TaskStatus { state, message: String::new(), error: String::new(), exit_code: None, at: 1 }
}

fn task(id: &str, refs: &[u8]) -> Task {
    Task {
        id: id.into(),
        service: "web".into(),
        slot: 1,
        node: None,
        labels: vec![("a".into(), "b".into())],
        refs: refs.iter().map(|id| secret(*id)).collect(),
        spec: Bytes::from_static(b"run"),
        desired: TaskState::Running,
        status: status(TaskState::New),
        version: 0,
        created: 0,
        updated: 0,
    }
}

/// What a worker has.
#[derive(Clone, Default, Debug)]
struct Worker {
    tasks: BTreeMap<String, Assigned>,
    objects: BTreeMap<ObjectKey, Needed>,
    token: Bytes,
    whole: usize,
    sent: usize,
}

impl Worker {
    fn take(&mut self, update: Update) -> Result<(), String> {
        if update.applies_to.is_empty() {
            self.tasks.clear();
            self.objects.clear();
            self.whole += 1;
        } else if update.applies_to != self.token {
            return Err("a gap".into());
        }
        self.token = update.results_in;
        for id in update.removed {
            self.tasks.remove(&id);
        }
        for key in update.removed_objects {
            self.objects.remove(&key);
        }
        self.sent += update.tasks.len() + update.objects.len();
        self.tasks.extend(update.tasks.into_iter().map(|task| (task.id.clone(), task)));
        self.objects.extend(update.objects.into_iter().map(|object| (object.key.clone(), object)));
        Ok(())
    }

    fn resume(&self) -> Option<Bytes> {
        (!self.token.is_empty()).then(|| self.token.clone())
    }

    /// All that is there now.
    async fn catch_up(&mut self, session: &mut Opened) -> Result<(), String> {
        loop {
            let update = session.next().await.map_err(|error| error.to_string())?;
            let more = update.more;
            self.take(update)?;
            if !more {
                return Ok(());
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Task {
        id: u8,
        node: u8,
        refs: Vec<u8>,
    },
    Desired {
        id: u8,
    },
    Gone {
        id: u8,
    },
    Object {
        id: u8,
    },
    ObjectGone {
        id: u8,
    },
    Compact,
    /// The worker takes so many updates.
    Take(u8),
    /// An update is lost with the connection.
    Lose,
    /// The connection breaks; the worker goes to another member.
    Break,
    /// The worker has lost its memory.
    Forget,
    /// The store fails so often.
    Fail(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let refs = prop::collection::vec(0u8..4, 0..3);
    prop_oneof![
        4 => (0u8..12, 0u8..3, refs).prop_map(|(id, node, refs)| Step::Task { id, node, refs }),
        3 => (0u8..12).prop_map(|id| Step::Desired { id }),
        2 => (0u8..12).prop_map(|id| Step::Gone { id }),
        3 => (0u8..4).prop_map(|id| Step::Object { id }),
        1 => (0u8..4).prop_map(|id| Step::ObjectGone { id }),
        1 => Just(Step::Compact),
        4 => (1u8..4).prop_map(Step::Take),
        1 => Just(Step::Lose),
        2 => Just(Step::Break),
        1 => Just(Step::Forget),
        1 => (1u8..3).prop_map(Step::Fail),
    ]
}

const NODE: NodeId = NodeId(0x10);
/// Of these one is the worker's; another's id begins alike.
const NODES: [NodeId; 3] = [NODE, NodeId(0x11), NodeId(0x20)];

/// What should be there.
#[derive(Default)]
struct Model {
    tasks: BTreeMap<String, (NodeId, TaskState, Vec<ObjectKey>)>,
    objects: BTreeMap<ObjectKey, Bytes>,
    made: u64,
}

async fn history(steps: &[Step]) -> Result<(), String> {
    let world = World::new();
    let orch = Orchestrator::new(world.clone(), TestClock::new());
    let mut model = Model::default();
    let mut worker = Worker::default();
    let mut session: Option<Opened> = None;
    for step in steps {
        world.fail(0);
        act(&orch, &world, &mut model, step).await.map_err(|error| format!("{step:?}: {error}"))?;
        match step {
            Step::Take(count) => {
                for _ in 0..*count {
                    let mut open = match session.take() {
                        Some(open) => open,
                        None => reopen(&orch, &worker).await?,
                    };
                    let waited = tokio::time::timeout(Duration::from_secs(100), open.next()).await;
                    let update =
                        waited.map_err(|_| "it waits for ever")?.map_err(|error| error.to_string())?;
                    worker.take(update)?;
                    session = Some(open);
                }
            }
            Step::Lose => {
                if let Some(mut open) = session.take() {
                    open.next().await.map_err(|error| error.to_string())?;
                }
            }
            Step::Break => session = None,
            Step::Forget => (session, worker.token) = (None, Bytes::new()),
            _ => {}
        }
        check_foreign(&worker, &model)?;
    }
    world.fail(0);
    let mut open = reopen(&orch, &worker).await?;
    worker.catch_up(&mut open).await?;
    check_foreign(&worker, &model)?;
    let own: BTreeMap<&String, _> = model.tasks.iter().filter(|(_, task)| task.0 == NODE).collect();
    let has: BTreeMap<&String, _> = worker.tasks.iter().collect();
    if own.keys().ne(has.keys()) {
        return Err(format!("tasks {:?}, expected {:?}", has.keys(), own.keys()));
    }
    for (id, task) in &own {
        if has[id].desired != task.1 || has[id].refs != task.2 {
            return Err(format!("task {id} is old"));
        }
    }
    let expect: BTreeMap<ObjectKey, Bytes> = (own.values().flat_map(|task| &task.2))
        .filter_map(|key| Some((key.clone(), model.objects.get(key)?.clone())))
        .collect();
    let objects = worker.objects.iter().map(|(key, object)| (key.clone(), object.spec.clone()));
    let objects: BTreeMap<_, _> = objects.collect();
    if objects != expect {
        return Err(format!("objects {objects:?}, expected {expect:?}"));
    }
    Ok(())
}

async fn reopen(orch: &Orch, worker: &Worker) -> Result<Opened, String> {
    let dispatcher = Dispatcher::new(orch.clone(), small());
    // A store that fails is asked again.
    for _ in 0..100 {
        match dispatcher.open(NODE, worker.resume()).await {
            Ok(open) => return Ok(open),
            Err(Error::NotDone(_)) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("it can't be opened".into())
}

fn check_foreign(worker: &Worker, model: &Model) -> Result<(), String> {
    for id in worker.tasks.keys() {
        if model.tasks.get(id).is_some_and(|task| task.0 != NODE) {
            return Err(format!("task {id} is another node's"));
        }
    }
    Ok(())
}

async fn act(orch: &Orch, world: &World, model: &mut Model, step: &Step) -> Result<(), Error> {
    model.made += 1;
    // Ids are never given again.
    let newest = |id: u8, model: &Model| {
        model.tasks.keys().rev().find(|have| have.starts_with(&format!("t{id}-"))).cloned()
    };
    match step {
        Step::Task { id, node, refs } => {
            let node = NODES[usize::from(*node)];
            let name = format!("t{id}-{:06}", model.made);
            let task = Task { node: Some(node), status: status(TaskState::Assigned), ..task(&name, refs) };
            let made = orch.create_task(task).await?;
            model.tasks.insert(name, (node, made.desired, made.refs));
        }
        Step::Desired { id } => {
            if let Some(name) = newest(*id, model) {
                let task = model.tasks.get_mut(&name).unwrap();
                let next = if task.1 == TaskState::Running { TaskState::Shutdown } else { TaskState::Remove };
                if task.1 < next {
                    orch.set_desired(&name, next).await?;
                    task.1 = next;
                }
            }
        }
        Step::Gone { id } => {
            if let Some(name) = newest(*id, model) {
                orch.delete_task(&name).await?;
                model.tasks.remove(&name);
            }
        }
        Step::Object { id } => {
            put_object(orch, *id, model.made).await?;
            model.objects.insert(secret(*id), model.made.to_string().into());
        }
        Step::ObjectGone { id } => {
            if model.objects.remove(&secret(*id)).is_some() {
                let stored = orch.object(&secret(*id)).await?.expect("it is there");
                orch.delete(&secret(*id), stored.version).await?;
            }
        }
        Step::Compact => world.compact(),
        Step::Fail(count) => world.fail(usize::from(*count)),
        Step::Take(_) | Step::Lose | Step::Break | Step::Forget => {}
    }
    Ok(())
}

async fn put_object(orch: &Orch, id: u8, spec: u64) -> Result<(), Error> {
    match orch.object(&secret(id)).await? {
        Some(stored) => orch.update(Object { version: stored.version, ..object(id, spec) }).await.map(drop),
        None => orch.create(object(id, spec)).await.map(drop),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_worker_holds_what_it_should(steps in prop::collection::vec(step(), 1..60)) {
        prop_assert_eq!(run(history(&steps)), Ok(()));
    }
}

/// A history with what each planted bug needs.
#[cfg(feature = "sim")]
fn telling() -> Vec<Step> {
    let task = |id, node| Step::Task { id, node, refs: vec![id % 4] };
    vec![
        task(0, 0),
        Step::Object { id: 0 },
        Step::Take(3),
        task(1, 1),
        task(2, 0),
        task(3, 0),
        Step::Take(2),
        Step::Break,
    ]
}

#[cfg(feature = "sim")]
#[test]
fn planted_bugs_are_caught() {
    use crate::planted::{Bug, with};
    for bug in [Bug::SessionSkipsChange, Bug::SessionLeaksOthers] {
        assert_eq!(run(history(&telling())), Ok(()));
        assert!(with(Some(bug), || run(history(&telling()))).is_err(), "{bug:?} was not seen");
    }
}

async fn orchestrator() -> (World, Orch) {
    let world = World::new();
    (world.clone(), Orchestrator::new(world, TestClock::new()))
}

async fn give(orch: &Orch, id: &str, node: NodeId, refs: &[u8]) {
    let made = Task { node: Some(node), status: status(TaskState::Assigned), ..task(id, refs) };
    orch.create_task(made).await.unwrap();
}

#[test]
fn a_resumed_session_sends_only_what_changed_at_any_member() {
    run(async {
        let (world, orch) = orchestrator().await;
        for number in 0..50 {
            give(&orch, &format!("t{number:02}"), NODE, &[]).await;
        }
        let mut worker = Worker::default();
        let mut session = Dispatcher::new(orch.clone(), Settings::default()).open(NODE, None).await.unwrap();
        worker.catch_up(&mut session).await.unwrap();
        assert_eq!((worker.whole, worker.sent), (1, 50));
        drop(session);
        orch.set_desired("t07", TaskState::Shutdown).await.unwrap();
        let other = Dispatcher::new(orch.clone(), Settings::default());
        let mut session = other.open(NODE, worker.resume()).await.unwrap();
        worker.catch_up(&mut session).await.unwrap();
        assert_eq!((worker.whole, worker.sent), (1, 51));
        drop(session);
        world.compact();
        orch.delete_task("t08").await.unwrap();
        world.compact();
        let mut session = other.open(NODE, worker.resume()).await.unwrap();
        worker.catch_up(&mut session).await.unwrap();
        assert_eq!((worker.whole, worker.tasks.len()), (2, 49), "what is compacted is sent whole");
    });
}

#[test]
fn tokens_of_others_begin_anew_and_say_nothing() {
    run(async {
        let (_, orch) = orchestrator().await;
        give(&orch, "mine", NODE, &[]).await;
        give(&orch, "theirs", NODES[1], &[]).await;
        let dispatcher = Dispatcher::new(orch.clone(), Settings::default());
        let foreign = dispatcher.open(NODES[1], None).await.unwrap().next().await.unwrap().results_in;
        for token in [foreign, Bytes::from_static(b"x"), Bytes::from(vec![0; 5000]), Bytes::from(vec![7; 44])]
        {
            let update = dispatcher.open(NODE, Some(token)).await.unwrap().next().await.unwrap();
            assert!(update.applies_to.is_empty());
            assert_eq!(update.tasks.iter().map(|task| &task.id).collect::<Vec<_>>(), ["mine"]);
        }
    });
}

#[test]
fn changes_arrive_gathered_and_an_idle_session_gets_a_newer_token() {
    run(async {
        let (_, orch) = orchestrator().await;
        orch.create(object(1, 1)).await.unwrap();
        give(&orch, "a", NODE, &[1]).await;
        let dispatcher = Dispatcher::new(orch.clone(), Settings::default());
        let running = dispatcher.clone();
        let task = tokio::spawn(async move { running.run().await });
        let mut worker = Worker::default();
        let mut session = dispatcher.open(NODE, None).await.unwrap();
        worker.catch_up(&mut session).await.unwrap();
        assert_eq!(worker.objects.len(), 1);
        let change = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            give(&orch, "b", NODE, &[1]).await;
            give(&orch, "c", NODE, &[1]).await;
            put_object(&orch, 1, 2).await.unwrap();
            give(&orch, "d", NODES[1], &[1]).await;
        };
        let (update, ()) = tokio::join!(session.next(), change);
        let update = update.unwrap();
        assert_eq!((update.tasks.len(), update.objects.len()), (2, 1), "{update:?}");
        worker.take(update).unwrap();
        let before = orch.clock().clone();
        let began = super::super::store::Clock::now(&before);
        let update = session.next().await.unwrap();
        assert!(update.is_empty() && !update.results_in.is_empty());
        assert!(super::super::store::Clock::now(&before) - began >= 59_000, "nothing woke it before");
        worker.take(update).unwrap();
        task.abort();
    });
}

#[test]
fn a_newer_session_takes_over_also_from_another_member() {
    run(async {
        let (world, orch) = orchestrator().await;
        let (one, two) = (
            Dispatcher::new(orch.clone(), Settings::default()),
            Dispatcher::new(orch.clone(), Settings::default()),
        );
        let running = one.clone();
        let task = tokio::spawn(async move { running.run().await });
        let mut old = one.open(NODE, None).await.unwrap();
        old.next().await.unwrap();
        let (ended, new) = tokio::join!(old.next(), async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            two.open(NODE, None).await.unwrap()
        });
        assert_eq!(ended.map(drop), Err(Refusal::SessionTaken.into()));
        assert_eq!(old.report(vec![]).await.map(drop), Err(Refusal::SessionTaken.into()));
        assert!(new.heartbeat().await.is_ok());
        // Its lease was gone for a moment: the next heartbeat puts that right.
        world.expire_leases();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(new.heartbeat().await.is_ok());
        task.abort();
    });
}

#[test]
fn reports_are_the_nodes_own() {
    run(async {
        let (_, orch) = orchestrator().await;
        give(&orch, "mine", NODE, &[]).await;
        give(&orch, "theirs", NODES[1], &[]).await;
        let session = Dispatcher::new(orch.clone(), Settings::default()).open(NODE, None).await.unwrap();
        let report =
            |ids: &[&str]| ids.iter().map(|id| ((*id).to_owned(), status(TaskState::Running))).collect();
        let answers = session.report(report(&["mine", "theirs", "nobodys"])).await.unwrap();
        assert_eq!(answers, [Reported::Taken, Reported::NotYours, Reported::NotYours]);
        assert_eq!(orch.task("theirs").await.unwrap().unwrap().status.state, TaskState::Assigned);
        assert!(session.report(report(&["x"; 101])).await.is_err());
        let long = TaskStatus { message: "x".repeat(5000), ..status(TaskState::Running) };
        assert!(session.report(vec![("mine".into(), long)]).await.is_err());
        assert!(session.describe(String::new(), vec![0; 70_000].into()).await.is_err());
        session.describe("rack7".into(), "linux".into()).await.unwrap();
        assert_eq!(orch.node(NODE).await.unwrap().unwrap().name, "rack7");
    });
}

#[test]
fn a_nodes_assignments_are_found_in_time_of_their_number() {
    run(async {
        let (world, orch) = orchestrator().await;
        for number in 0..300 {
            give(&orch, &format!("t{number:03}"), if number < 10 { NODE } else { NODES[2] }, &[]).await;
        }
        let mut session = Dispatcher::new(orch.clone(), Settings::default()).open(NODE, None).await.unwrap();
        world.read();
        assert_eq!(session.next().await.unwrap().tasks.len(), 10);
        assert!(world.read() <= 40, "only its own are read");
    });
}

#[test]
fn nodes_come_and_go_and_what_is_lost_is_given_up() {
    run(async {
        let (world, orch) = orchestrator().await;
        give(&orch, "a", NODE, &[]).await;
        let settings = Settings { orphan_after: Duration::from_secs(30), ..Default::default() };
        let session = Dispatcher::new(orch.clone(), settings.clone()).open(NODE, None).await.unwrap();
        let duty = tokio::spawn(keep_nodes(orch.clone(), settings));
        let until = async |state| {
            for _ in 0..1000 {
                if orch.node(NODE).await.unwrap().unwrap().state == state {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            panic!("it does not become {state:?}");
        };
        until(NodeState::Ready).await;
        world.expire_leases();
        until(NodeState::Down).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(orch.task("a").await.unwrap().unwrap().status.state, TaskState::Assigned);
        tokio::time::sleep(Duration::from_secs(20)).await;
        let task = orch.task("a").await.unwrap().unwrap();
        assert_eq!((task.status.state, task.desired), (TaskState::Orphaned, TaskState::Shutdown));
        session.heartbeat().await.unwrap();
        until(NodeState::Ready).await;
        duty.abort();
    });
}
