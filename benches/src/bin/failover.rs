//! `failover`: how long nobody can write after SIGKILL of the leader, and what a writer notices of
//! a clean stop of the leader.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use raft_kv::client::Handle;
use raft_kv_benches::{data, host};
use raft_kv_jepsen::cluster::Cluster;
use serde_json::json;
use tokio::task::JoinSet;

/// Writers beside a clean stop, spread over all members.
const WRITERS: usize = 12;
/// Load before and after a clean stop.
const AROUND: Duration = Duration::from_secs(2);
/// So long a try to write may take while nobody leads.
const TRY: Duration = Duration::from_millis(250);
const LIMIT: Duration = Duration::from_secs(30);

/// Measures the time without a leader after a crash, and the gap round a clean stop
#[derive(Parser)]
struct Args {
    /// The binary raft-kv
    #[arg(long)]
    bin: PathBuf,
    /// Times the leader is killed, and times it is stopped
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// For the members' data; otherwise a folder for temporary files. Removed at the end
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<(), String> {
    let args = Args::parse();
    let root = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
    let dir = tempfile::Builder::new().prefix("failover-").tempdir_in(&root).map_err(|e| e.to_string())?;
    let before = host::describe();
    let mut cluster = Cluster::start(&args.bin, dir.path(), 3).await?;
    let mut killed = Vec::new();
    for round in 1..=args.rounds {
        killed.push(kill_leader(&mut cluster).await?.as_secs_f64());
        eprintln!("failover: kill {round}: {:.3} s", killed[round - 1]);
    }
    let (mut gaps, mut failed, mut done) = (Vec::new(), Vec::new(), 0);
    for round in 1..=args.rounds {
        let stop = stop_leader(&mut cluster).await?;
        gaps.push(stop.gap.as_secs_f64());
        done += stop.done;
        eprintln!(
            "failover: stop {round}: gap {:.3} s, {} writes failed",
            gaps[round - 1],
            stop.failed.len()
        );
        failed.extend(stop.failed);
    }
    killed.sort_by(f64::total_cmp);
    gaps.sort_by(f64::total_cmp);
    println!(
        "{:#}",
        json!({
            "host": before,
            "kill_to_next_write_seconds": { "median": median(&killed), "all": killed },
            "clean_stop": {
                "writes": done,
                "failed_writes": failed.len(),
                "errors": failed,
                "longest_gap_seconds": { "median": median(&gaps), "worst": gaps.last(), "all": gaps },
            },
        })
    );
    Ok(())
}

fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

async fn leader(cluster: &Cluster) -> Result<usize, String> {
    let directory = cluster.directory()?;
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        if let Ok(handle) = cluster.connect(&directory.all_from(0)).await
            && let Ok((_, info)) = handle.info().await
            && let Some(leader) = info.leader.and_then(|id| directory.find(id))
        {
            return Ok(leader);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err("no leader is known".to_owned())
}

/// From SIGKILL of the leader to the end of the first write that was begun after it.
async fn kill_leader(cluster: &mut Cluster) -> Result<Duration, String> {
    let leader = leader(cluster).await?;
    let others: Vec<usize> = (0..cluster.members().len()).filter(|&index| index != leader).collect();
    let handle = cluster.connect(&others).await?.with_patience(TRY);
    handle.put(data::put("failover")).await.map_err(|error| error.to_string())?;
    let began = Instant::now();
    cluster.kill(leader)?;
    while let Err(error) = handle.put(data::put("failover")).await {
        if began.elapsed() > LIMIT {
            return Err(error.to_string());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = began.elapsed();
    restart(cluster, leader).await?;
    Ok(took)
}

struct Stop {
    done: u64,
    failed: Vec<String>,
    /// The longest time in which no write of anybody ended well.
    gap: Duration,
}

/// Stops the leader cleanly beside writers on all members.
async fn stop_leader(cluster: &mut Cluster) -> Result<Stop, String> {
    let directory = cluster.directory()?;
    let leader = leader(cluster).await?;
    let over = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let handle = cluster.connect(&directory.all_from(writer % directory.len())).await?;
        writers.spawn(write(handle, writer, over.clone()));
    }
    tokio::time::sleep(AROUND).await;
    // Waiting for the process blocks; the writers go on.
    let stopped = tokio::task::block_in_place(|| cluster.stop(leader));
    tokio::time::sleep(AROUND).await;
    over.store(true, Ordering::Relaxed);
    let (mut ends, mut failed) = (Vec::new(), Vec::new());
    while let Some(wrote) = writers.join_next().await {
        let (done, errors) = wrote.map_err(|error| error.to_string())?;
        ends.extend(done);
        failed.extend(errors);
    }
    stopped?;
    ends.sort_unstable();
    let gap = ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
    restart(cluster, leader).await?;
    Ok(Stop { done: ends.len() as u64, failed, gap })
}

/// Writes until it is over; when each write ended, and what those that failed said.
async fn write(handle: Handle, writer: usize, over: Arc<AtomicBool>) -> (Vec<Instant>, Vec<String>) {
    let (mut ends, mut failed) = (Vec::new(), Vec::new());
    while !over.load(Ordering::Relaxed) {
        match handle.put(data::put(format!("writer/{writer}"))).await {
            Ok(_) => ends.push(Instant::now()),
            Err(error) => failed.push(error.to_string()),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (ends, failed)
}

async fn restart(cluster: &mut Cluster, index: usize) -> Result<(), String> {
    cluster.restart(&[index])?;
    // It shall have caught up before the next round.
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(())
}
