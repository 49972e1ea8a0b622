//! `stall`: how long other requests wait while a rollback is done, in a cluster of three members in one process:
//! callers that put keys of their own and callers that read linearizably, before it and meanwhile. And what the
//! process takes: memory at its peak, elections, timers that were late.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use futures_util::{StreamExt, stream};
use raft_kv::client::{Handle, NewPoint, Node};
use raft_kv::types::{KeyRange, RangeRequest};
use raft_kv_benches::load::put_keys;
use raft_kv_benches::members::{leader, start};
use raft_kv_benches::{data, host};
use serde_json::{Value, json};
use tokio::task::JoinSet;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Callers of each kind.
const CALLERS: usize = 4;
/// How long they are watched before the rollback, and behind it.
const CALM: Duration = Duration::from_secs(3);

/// Measures how long other requests wait while a rollback is done
#[derive(Parser)]
struct Args {
    /// For the members' data; must be on the disk that is to be measured. Otherwise a folder for
    /// temporary files
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Keys stored, of 256 bytes
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Keys changed before each rollback, spread over all
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 10_000])]
    changed: Vec<u64>,
    /// One rollback of every key, to its end, in place of those
    #[arg(long, conflicts_with = "changed")]
    all: bool,
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    let root = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
    let dir = tempfile::Builder::new().prefix("stall-").tempdir_in(&root).map_err(|e| e.to_string())?;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    println!("{:#}", runtime.block_on(measure(&args, dir.path()))?);
    Ok(())
}

async fn measure(args: &Args, dir: &Path) -> Result<Value, String> {
    let told = |error: raft_kv::error::Error| error.to_string();
    let before = host::describe();
    let nodes = start(dir, 3).await?;
    let handle = nodes[leader(&nodes).await?].handle();
    put_keys(&handle, 512, args.keys).await;
    let mut rows = Vec::new();
    let changed = if args.all { vec![args.keys] } else { args.changed.clone() };
    for changed in changed {
        let point = format!("p{changed}");
        handle.point_create(&point, NewPoint::default()).await.map_err(told)?;
        let step = (args.keys / changed.max(1)).max(1);
        let puts = stream::iter(0..changed).map(|at| handle.put(data::put(format!("key/{:012}", at * step))));
        puts.buffer_unordered(256)
            .collect::<Vec<_>>()
            .await
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map_err(told)?;
        let calm = watched(&handle, async { tokio::time::sleep(CALM).await }).await;
        let mut took = Duration::ZERO;
        let rollback = async {
            let began = Instant::now();
            let done = handle.rollback(&point, None).await;
            took = began.elapsed();
            tokio::time::sleep(CALM).await;
            done
        };
        let resident = host::resident_bytes(std::process::id());
        let taken = Taken::begin(&nodes);
        let (done, longest) = watched(&handle, rollback).await;
        let (peak, elections, late) = taken.end().await;
        let (_, done) = done.map_err(told)?;
        // No election may hide behind a retry.
        let leaders = nodes.iter().map(|node| node.leadership().borrow().term).collect::<Vec<_>>();
        rows.push(json!({
            "changed": changed,
            "events": done.events,
            "rollback_ms": took.as_millis() as u64,
            "resident_bytes_before": resident,
            "resident_bytes_peak": peak,
            "leadership_changes": elections,
            "terms": leaders,
            "timer_latest_ms": late.as_millis() as u64,
            "longest_ms": longest.shown(),
            "longest_without_rollback_ms": calm.1.shown(),
        }));
    }
    for node in nodes {
        node.shutdown().await.map_err(told)?;
    }
    Ok(json!({ "keys": args.keys, "members": 3, "callers": 2 * CALLERS, "host": before, "rounds": rows }))
}

/// How often memory is looked at, and how long the timer is whose lateness is told: a heartbeat's.
const LOOK: Duration = Duration::from_millis(100);

/// What the process takes meanwhile.
struct Taken {
    over: Arc<AtomicBool>,
    memory: JoinSet<(u64, Duration)>,
    elections: JoinSet<u64>,
}

impl Taken {
    fn begin(nodes: &[Node]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (mut memory, mut elections) = (JoinSet::new(), JoinSet::new());
        let told = over.clone();
        // A thread of its own, as those of the members are: what it is late by, a heartbeat may be.
        memory.spawn_blocking(move || {
            let (mut peak, mut late) = (0, Duration::ZERO);
            while !told.load(Ordering::Relaxed) {
                let began = Instant::now();
                std::thread::sleep(LOOK);
                late = late.max(began.elapsed().saturating_sub(LOOK));
                peak = peak.max(host::resident_bytes(std::process::id()).unwrap_or(0));
            }
            (peak, late)
        });
        for node in nodes {
            let (mut leadership, told) = (node.leadership(), over.clone());
            leadership.mark_unchanged();
            elections.spawn(async move {
                let mut changes = 0;
                while !told.load(Ordering::Relaxed) {
                    let changed = tokio::time::timeout(LOOK, leadership.changed()).await;
                    changes += u64::from(matches!(changed, Ok(Ok(()))));
                    if matches!(changed, Ok(Err(_))) {
                        break;
                    }
                }
                changes
            });
        }
        Self { over, memory, elections }
    }

    /// Resident bytes at their peak, changes of leadership at all members, and how late the timer was at worst.
    async fn end(mut self) -> (u64, u64, Duration) {
        self.over.store(true, Ordering::Relaxed);
        let (mut peak, mut late, mut changes) = (0, Duration::ZERO, 0);
        while let Some(Ok((bytes, by))) = self.memory.join_next().await {
            (peak, late) = (bytes.max(peak), by.max(late));
        }
        while let Some(Ok(seen)) = self.elections.join_next().await {
            changes += seen;
        }
        (peak, changes, late)
    }
}

/// The longest that anybody waited.
#[derive(Default)]
struct Longest {
    put: Duration,
    get: Duration,
    errors: u64,
}

impl Longest {
    fn shown(&self) -> Value {
        json!({ "put": self.put.as_millis() as u64, "get": self.get.as_millis() as u64, "errors": self.errors })
    }
}

/// Does `work` while callers put and read, and tells how long the longest of them waited.
async fn watched<R>(handle: &Handle, work: impl Future<Output = R>) -> (R, Longest) {
    let over = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        for puts in [true, false] {
            callers.spawn(call(handle.clone(), over.clone(), caller, puts));
        }
    }
    let result = work.await;
    over.store(true, Ordering::Relaxed);
    let mut all = Longest::default();
    while let Some(one) = callers.join_next().await {
        let one = one.expect("a caller does not panic");
        all.put = all.put.max(one.put);
        all.get = all.get.max(one.get);
        all.errors += one.errors;
    }
    (result, all)
}

/// One caller. It asks every few milliseconds: what is measured is waiting, not load.
async fn call(handle: Handle, over: Arc<AtomicBool>, caller: usize, puts: bool) -> Longest {
    let mut longest = Longest::default();
    let key = format!("other/{caller}");
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        let done = if puts {
            handle.put(data::put(key.clone())).await.is_ok()
        } else {
            let range = KeyRange::key(key.clone());
            handle.range(RangeRequest { range, ..RangeRequest::default() }).await.is_ok()
        };
        let waited = if puts { &mut longest.put } else { &mut longest.get };
        *waited = (*waited).max(began.elapsed());
        longest.errors += u64::from(!done);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    longest
}
