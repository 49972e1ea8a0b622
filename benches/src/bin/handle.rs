//! `handle`: three members in one process on loopback, and callers that put 256-byte values through
//! the leader's handle. Every acknowledged put is synced by a quorum.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use raft_kv::client::Node;
use raft_kv_benches::load::{Seen, put_for};
use raft_kv_benches::members::{leader, start};
use raft_kv_benches::{data, host};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Before each measurement.
const WARM_UP: Duration = Duration::from_secs(1);
const PROBE: Duration = Duration::from_secs(2);

/// Measures puts through the handle of three members in one process
#[derive(Parser)]
struct Args {
    /// For the members' data; must be on the disk that is to be measured. Otherwise a folder for
    /// temporary files
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Callers at a time, one measurement for each number
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 512])]
    callers: Vec<u64>,
    /// Members
    #[arg(long, default_value_t = 3)]
    nodes: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    let root = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
    let dir = tempfile::Builder::new().prefix("handle-").tempdir_in(&root).map_err(|e| e.to_string())?;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let report = runtime.block_on(measure(&args, dir.path()))?;
    if args.json {
        println!("{report:#}");
    } else {
        print(&report);
    }
    Ok(())
}

async fn measure(args: &Args, dir: &Path) -> Result<Value, String> {
    let before = host::describe();
    let syncs = host::syncs_per_second(dir, PROBE).map_err(|error| error.to_string())?;
    let nodes = start(dir, args.nodes).await?;
    let mut rows = Vec::new();
    for &callers in &args.callers {
        let leader = leader(&nodes).await?;
        let handle = nodes[leader].handle();
        put_for(&handle, callers, WARM_UP).await;
        let stats = || nodes.iter().map(Node::log_stats).collect::<Vec<_>>();
        let (stats_before, processor) = (stats(), host::processor_time());
        let seen = put_for(&handle, callers, Duration::from_secs(args.seconds)).await;
        let (stats_after, processor) = (stats(), host::processor_time() - processor);
        let deltas = stats_before.iter().zip(&stats_after);
        let (fsyncs, bytes) = deltas.fold((0, 0), |(fsyncs, bytes), (before, after)| {
            (fsyncs + after.fsyncs - before.fsyncs, bytes + after.bytes - before.bytes)
        });
        rows.push(row(callers, &seen, nodes.len() as f64, (fsyncs, bytes), processor));
    }
    let syncs_after = host::syncs_per_second(dir, PROBE).map_err(|error| error.to_string())?;
    for node in nodes {
        node.shutdown().await.map_err(|error| error.to_string())?;
    }
    Ok(json!({
        "members": args.nodes,
        "value_bytes": data::VALUE_BYTES,
        "seconds": args.seconds,
        "host": before,
        "load_after": host::describe()["load"],
        "disk_syncs_per_second": { "before": syncs.round(), "after": syncs_after.round() },
        "rows": rows,
    }))
}

fn row(callers: u64, seen: &Seen, members: f64, log: (u64, u64), processor: Duration) -> Value {
    let puts = (seen.done() as f64).max(1.0);
    let round = |value: f64, places: i32| (value * 10f64.powi(places)).round() / 10f64.powi(places);
    json!({
        "callers": callers,
        "puts_per_second": seen.rate().round(),
        "p50_ms": round(seen.quantile(0.5), 2),
        "p99_ms": round(seen.quantile(0.99), 2),
        "max_ms": round(seen.quantile(1.0), 2),
        "errors": seen.errors,
        "fsyncs_per_put_and_member": round(log.0 as f64 / puts / members, 4),
        "bytes_per_fsync": (log.1 as f64 / (log.0 as f64).max(1.0)).round(),
        "processor_us_per_put": round(processor.as_secs_f64() * 1e6 / puts, 1),
    })
}

fn print(report: &Value) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    println!(
        "{} members in one process, {}-byte values, {} s each; kernel {}, {} processors",
        report["members"],
        report["value_bytes"],
        report["seconds"],
        text(&report["host"]["kernel"]),
        report["host"]["processors"],
    );
    println!("load before {}, after {}", text(&report["host"]["load"]), text(&report["load_after"]));
    let floor = &report["disk_syncs_per_second"];
    println!("this disk alone: {} fdatasync/s before, {} after\n", floor["before"], floor["after"]);
    let columns = [
        ("callers", "callers"),
        ("puts/s", "puts_per_second"),
        ("p50 ms", "p50_ms"),
        ("p99 ms", "p99_ms"),
        ("max ms", "max_ms"),
        ("errors", "errors"),
        ("fsyncs/put/member", "fsyncs_per_put_and_member"),
        ("bytes/fsync", "bytes_per_fsync"),
        ("cpu µs/put", "processor_us_per_put"),
    ];
    let heads: Vec<&str> = columns.iter().map(|(head, _)| *head).collect();
    println!("| {} |\n|{}", heads.join(" | "), "---:|".repeat(columns.len()));
    for row in report["rows"].as_array().into_iter().flatten() {
        let cells: Vec<String> = columns.iter().map(|(_, name)| row[*name].to_string()).collect();
        println!("| {} |", cells.join(" | "));
    }
}
