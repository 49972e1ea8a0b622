//! `workers`: three members in one process with their doors, a fleet of workers in another, each with a certificate
//! and a session of its own. What reports cost in time, sessions in memory, a node's list of tasks, and
//! what is sent again after a change of leader.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use raft_kv::client::{Handle, Node};
use raft_kv::orchestration::session::{Dispatcher, Settings};
use raft_kv::orchestration::{Change, Orchestrator, Page, SystemClock, Task, TaskBy, TaskState, TaskStatus};
use raft_kv::types::{NodeId, Role};
use raft_kv_benches::members::{leader, start};
use raft_kv_benches::{fleet, host};
use raft_kv_server::door::Door;
use serde_json::{Value, json};
use tokio::task::{JoinSet, block_in_place};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Tasks that are made in one transaction.
const BATCH: u64 = 48;
/// Such transactions at a time.
const BATCHES: usize = 8;
/// Times that one node's tasks are asked for.
const ROUNDS: usize = 20;
/// Memory settles before it is looked at.
const SETTLE: Duration = Duration::from_secs(2);
/// How long what changed may take to its worker.
const LATE: Duration = Duration::from_secs(30);
const PROBE: Duration = Duration::from_secs(1);
/// Bytes of a task's spec.
const SPEC_BYTES: usize = 200;

type Orch = Orchestrator<Handle, SystemClock>;

/// Measures tasks and sessions of workers: reports, lists, memory, a change of leader
#[derive(Parser)]
struct Args {
    /// Tasks, spread evenly over the nodes
    #[arg(long, default_value_t = 100_000)]
    tasks: u64,
    /// Workers, each with a session
    #[arg(long, default_value_t = 5000)]
    nodes: u64,
    /// Status reports in a second
    #[arg(long, default_value_t = 2000)]
    rate: u64,
    /// Seconds of reports
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Further nodes with so many tasks each, whose lists are timed
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1000])]
    found: Vec<u64>,
    /// For the members' data; must be on the disk that is meant. Otherwise a folder for temporary files
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Be the workers: used by the program itself
    #[arg(long, hide = true)]
    fleet: bool,
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    if args.fleet {
        return runtime.block_on(fleet::run());
    }
    if args.nodes == 0 || args.tasks < args.nodes {
        return Err("give at least one node, and at least as many tasks as nodes".to_owned());
    }
    let root = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
    let dir = tempfile::Builder::new().prefix("workers-").tempdir_in(&root).map_err(|e| e.to_string())?;
    let report = runtime.block_on(measure(&args, dir.path()))?;
    println!("{report:#}");
    Ok(())
}

/// The process that is the workers. It is ended with this value.
struct Fleet {
    process: Child,
    says: ChildStdin,
    hears: BufReader<ChildStdout>,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Fleet {
    fn start() -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.arg("--fleet").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().map_err(|error| error.to_string())?;
        let (says, hears) = (process.stdin.take(), process.stdout.take());
        let (Some(says), Some(hears)) = (says, hears) else { unreachable!("both are pipes") };
        Ok(Self { process, says, hears: BufReader::new(hears) })
    }

    /// Has it done, and waits until it is.
    fn ask(&mut self, what: &Value) -> Result<Value, String> {
        block_in_place(|| {
            writeln!(self.says, "{what}").map_err(|error| error.to_string())?;
            let mut line = String::new();
            self.hears.read_line(&mut line).map_err(|error| error.to_string())?;
            let answer: Value = serde_json::from_str(&line).map_err(|_| "the workers ended".to_owned())?;
            match answer["error"].as_str() {
                Some(error) => Err(error.to_owned()),
                None => Ok(answer),
            }
        })
    }
}

async fn measure(args: &Args, dir: &Path) -> Result<Value, String> {
    let before = host::describe();
    let syncs = host::syncs_per_second(dir, PROBE).map_err(|error| error.to_string())?;
    let mut nodes = start(dir, 3).await?;
    let mut doors = Vec::new();
    for node in &nodes {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        doors.push(Door::open(listener, node).map_err(|error| error.to_string())?);
    }
    let first = leader(&nodes).await?;
    let handle = nodes[first].handle();
    let orch = Orchestrator::new(handle.clone(), SystemClock);
    let mut fleet = Fleet::start()?;
    eprintln!("workers: {} nodes enrol", args.nodes);
    let token = handle.join_token(Role::Worker).await.map_err(|error| error.to_string())?;
    let enrolled = fleet.ask(&json!({
        "do": "enrol", "token": token, "member": nodes[first].addr(), "count": args.nodes,
    }))?;
    let workers: Vec<NodeId> =
        enrolled["nodes"].as_array().into_iter().flatten().filter_map(Value::as_u64).map(NodeId).collect();
    eprintln!("workers: {} tasks", args.tasks);
    let made = make_tasks(args, &orch, &workers).await?;
    let found = find(args, &orch).await?;
    let addresses: Vec<String> = doors.iter().map(|door| door.addr().to_string()).collect();
    let memory = sessions_memory(args, &mut fleet, &addresses[first]).await?;
    let spread = fleet.ask(&json!({ "do": "open", "doors": addresses }))?;
    let reports = reports(args, &mut fleet, &nodes, &orch).await?;
    let change = change_leader(args, &mut fleet, &mut nodes, &mut doors).await?;
    drop(fleet);
    for door in doors {
        door.close().await;
    }
    for node in nodes {
        node.shutdown().await.map_err(|error| error.to_string())?;
    }
    Ok(json!({
        "members": 3,
        "tasks": args.tasks,
        "nodes": args.nodes,
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "host": before,
        "load_after": host::describe()["load"],
        "disk_syncs_per_second": syncs.round(),
        "tasks_made_per_second": made,
        "one_nodes_tasks": found,
        "memory": memory,
        "opened_at_all_members": spread,
        "reports": reports,
        "leader_change": change,
    }))
}

fn task(id: String, node: NodeId, slot: u64) -> Task {
    let status = TaskStatus {
        state: TaskState::Assigned,
        message: String::new(),
        error: String::new(),
        exit_code: None,
        at: 1,
    };
    Task {
        id,
        service: format!("service-{:03}", slot % 100),
        slot,
        node: Some(node),
        labels: vec![("tier".into(), format!("{}", slot % 3))],
        refs: Vec::new(),
        spec: Bytes::from(vec![b'x'; SPEC_BYTES]),
        desired: TaskState::Running,
        status,
        version: 0,
        created: 0,
        updated: 0,
    }
}

fn task_id(number: u64) -> String {
    format!("task-{number:08}")
}

/// The nodes that nobody connects as.
fn further(at: usize) -> NodeId {
    NodeId(0x00fe_0000_0000_0000 + at as u64)
}

/// Tasks in a second.
async fn make_tasks(args: &Args, orch: &Orch, workers: &[NodeId]) -> Result<f64, String> {
    let spread = (0..args.tasks).map(|number| (number, workers[number as usize % workers.len()]));
    let mut all: Vec<(u64, NodeId)> = spread.collect();
    for (at, count) in args.found.iter().enumerate() {
        let from = all.len() as u64;
        all.extend((from..from + count).map(|number| (number, further(at))));
    }
    let began = Instant::now();
    let mut making = JoinSet::new();
    for batch in all.chunks(BATCH as usize) {
        if making.len() >= BATCHES {
            made(making.join_next().await)?;
        }
        let change =
            |(number, node): &(u64, NodeId)| Change::CreateTask(task(task_id(*number), *node, *number), None);
        let (orch, changes) = (orch.clone(), batch.iter().map(change).collect());
        making.spawn(async move { orch.batch(changes).await.map(drop) });
    }
    while !making.is_empty() {
        made(making.join_next().await)?;
    }
    Ok((all.len() as f64 / began.elapsed().as_secs_f64()).round())
}

type Made = Option<Result<Result<(), raft_kv::error::Error>, tokio::task::JoinError>>;

fn made(one: Made) -> Result<(), String> {
    one.map_or(Ok(()), |one| one.map_err(|error| error.to_string())?.map_err(|error| error.to_string()))
}

/// One node's tasks, as a manager lists them and as its session sends them, beside all others.
async fn find(args: &Args, orch: &Orch) -> Result<Vec<Value>, String> {
    let dispatcher = Dispatcher::new(orch.clone(), Settings::default());
    let mut rows = Vec::new();
    for (at, &count) in args.found.iter().enumerate() {
        let (mut listed, mut sent) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let tasks = orch.tasks(TaskBy::Node(further(at)), Page::all()).await;
            listed.push(began.elapsed());
            let tasks = tasks.map_err(|error| error.to_string())?.items.len() as u64;
            let mut session = dispatcher.open(further(at), None).await.map_err(|error| error.to_string())?;
            let (began, mut told) = (Instant::now(), 0);
            loop {
                let update = session.next().await.map_err(|error| error.to_string())?;
                told += update.tasks.len() as u64;
                if !update.more {
                    break;
                }
            }
            sent.push(began.elapsed());
            if (tasks, told) != (count, count) {
                return Err(format!("{count} tasks were made, {tasks} listed, {told} sent"));
            }
        }
        let (listed, sent) = (median_ms(listed), median_ms(sent));
        let each = |ms: f64| (ms * 1000.0 / count as f64).round();
        rows.push(json!({
            "tasks": count,
            "listed_ms": listed, "listed_us_each": each(listed),
            "sent_ms": sent, "sent_us_each": each(sent),
        }));
    }
    Ok(rows)
}

fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    (median.as_secs_f64() * 100_000.0).round() / 100.0
}

/// All sessions at one member. The other two are in this process too; they have no session.
async fn sessions_memory(args: &Args, fleet: &mut Fleet, door: &str) -> Result<Value, String> {
    let resident = || host::resident_bytes(std::process::id()).unwrap_or_default() as f64 / 1e6;
    tokio::time::sleep(SETTLE).await;
    let without = resident();
    eprintln!("workers: {} sessions open at one member", args.nodes);
    let opened = fleet.ask(&json!({ "do": "open", "doors": [door] }))?;
    let at_once = resident();
    tokio::time::sleep(SETTLE).await;
    let with = resident();
    fleet.ask(&json!({ "do": "close" }))?;
    Ok(json!({
        "sessions": args.nodes,
        "opened": opened,
        "mb_without": without.round(),
        "mb_just_opened": at_once.round(),
        "mb_with": with.round(),
        "mb_more": (with - without).round(),
        "kb_each": ((with - without) * 1000.0 / args.nodes as f64 * 10.0).round() / 10.0,
    }))
}

async fn reports(args: &Args, fleet: &mut Fleet, nodes: &[Node], orch: &Orch) -> Result<Value, String> {
    eprintln!("workers: {} reports a second for {} s", args.rate, args.seconds);
    // Each worker's first report is a second's: connections warm up.
    fleet.ask(&json!({ "do": "report", "rate": args.rate, "seconds": 1 }))?;
    let revision = async || {
        let fence = orch.tasks(TaskBy::Node(NodeId(1)), Page::first(1)).await;
        fence.map(|listed| listed.revision).map_err(|error| error.to_string())
    };
    let syncs = || nodes.iter().map(|node| node.log_stats().fsyncs).sum::<u64>();
    let (before, synced, processor) = (revision().await?, syncs(), host::processor_time());
    let mut seen = fleet.ask(&json!({ "do": "report", "rate": args.rate, "seconds": args.seconds }))?;
    let processor = host::processor_time() - processor;
    let done = seen["reports"].as_u64().unwrap_or_default().max(1) as f64;
    let revisions = revision().await? - before;
    let round = |value: f64| (value * 1000.0).round() / 1000.0;
    seen["asked_per_second"] = json!(args.rate);
    seen["transactions"] = json!(revisions);
    seen["reports_per_transaction"] = json!(round(done / revisions.max(1) as f64));
    seen["fsyncs_per_report_and_member"] =
        json!(round((syncs() - synced) as f64 / done / nodes.len() as f64));
    seen["processor_us_per_report"] = json!((processor.as_secs_f64() * 1e6 / done).round());
    Ok(seen)
}

/// The leader stops, with its door; meanwhile one task of some nodes changes.
async fn change_leader(
    args: &Args,
    fleet: &mut Fleet,
    nodes: &mut Vec<Node>,
    doors: &mut Vec<Door>,
) -> Result<Value, String> {
    eprintln!("workers: the leader stops");
    let gone = leader(nodes).await?;
    fleet.ask(&json!({ "do": "all open" }))?;
    let (node, door) = (nodes.remove(gone), doors.remove(gone));
    let began = Instant::now();
    door.close().await;
    node.shutdown().await.map_err(|error| error.to_string())?;
    let next = leader(nodes).await?;
    let led = began.elapsed();
    let orch = Orchestrator::new(nodes[next].handle(), SystemClock);
    let changed = args.nodes.min(100);
    for number in 0..changed {
        let done = orch.set_desired(&task_id(number), TaskState::Shutdown).await;
        done.map_err(|error| error.to_string())?;
    }
    let mut resumed = fleet.ask(&json!({ "do": "all open" }))?;
    let all = began.elapsed();
    // What changed is sent a moment later.
    while resumed["tasks_sent"].as_u64() < Some(changed) && began.elapsed() < all + LATE {
        tokio::time::sleep(SETTLE).await;
        let late = fleet.ask(&json!({ "do": "all open" }))?;
        for count in ["opened", "sent_whole", "tasks_sent", "bytes_sent"] {
            let sum = [&resumed, &late].map(|seen| seen[count].as_u64().unwrap_or_default());
            resumed[count] = json!(sum.iter().sum::<u64>());
        }
    }
    Ok(json!({
        "next_leader_seconds": led.as_secs_f64(),
        "all_sessions_back_seconds": all.as_secs_f64(),
        "sessions_opened_again": resumed["opened"],
        "sent_whole": resumed["sent_whole"],
        "tasks_changed_meanwhile": changed,
        "tasks_sent": resumed["tasks_sent"],
        "bytes_sent": resumed["bytes_sent"],
    }))
}
