//! `million`: three members as real processes hold many keys. How much memory each takes, how soon
//! one serves again after a crash and after a clean stop, and how soon an empty new member has
//! caught up.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use raft_kv::types::Role;
use raft_kv_benches::{data, host, load};
use raft_kv_jepsen::cluster::Cluster;
use serde_json::json;

/// Callers that load the keys.
const CALLERS: u64 = 256;
/// Keys that are read to see whether a member serves.
const PROBED: &str = "key/000000000000";
const SERVE_LIMIT: Duration = Duration::from_secs(120);
/// After the load, so that memory is measured at rest.
const REST: Duration = Duration::from_secs(5);

/// Loads keys into three members and measures memory, restart and catching up
#[derive(Parser)]
struct Args {
    /// The binary raft-kv
    #[arg(long)]
    bin: PathBuf,
    /// Keys
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// For the members' data; otherwise a folder for temporary files. Removed at the end
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<(), String> {
    let args = Args::parse();
    let root = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
    let dir = tempfile::Builder::new().prefix("million-").tempdir_in(&root).map_err(|e| e.to_string())?;
    let before = host::describe();
    let mut cluster = Cluster::start(&args.bin, dir.path(), 3).await?;
    let handle = cluster.connect(&[0]).await?;
    eprintln!("million: loading {} keys", args.keys);
    let seen = load::put_keys(&handle, CALLERS, args.keys).await;
    eprintln!("million: loaded in {:.0} s", seen.took.as_secs_f64());
    tokio::time::sleep(REST).await;
    let resident = residents(&cluster);
    cluster.kill(2)?;
    let crashed = serve_again(&mut cluster, 2).await?;
    cluster.stop(1)?;
    let stopped = serve_again(&mut cluster, 1).await?;
    let token = handle.join_token(Role::Manager).await.map_err(|error| error.to_string())?;
    let began = Instant::now();
    let new = cluster.join(&token)?;
    cluster.await_voters(&handle).await?;
    probe(&cluster, new).await?;
    let caught_up = began.elapsed();
    println!(
        "{:#}",
        json!({
            "keys": args.keys,
            "value_bytes": data::VALUE_BYTES,
            "host": before,
            "load_seconds": seen.took.as_secs_f64(),
            "load_puts_per_second": seen.rate().round(),
            "load_errors": seen.errors,
            "resident_bytes": resident,
            "resident_bytes_at_the_end": residents(&cluster),
            "restart_after_kill_seconds": crashed.as_secs_f64(),
            "restart_after_clean_stop_seconds": stopped.as_secs_f64(),
            "empty_member_caught_up_seconds": caught_up.as_secs_f64(),
        })
    );
    Ok(())
}

fn residents(cluster: &Cluster) -> Vec<Option<u64>> {
    cluster.members().iter().map(|member| host::resident_bytes(member.pid()?)).collect()
}

/// From the start of the process to its first linearizable read.
async fn serve_again(cluster: &mut Cluster, index: usize) -> Result<Duration, String> {
    let began = Instant::now();
    cluster.restart(&[index])?;
    probe(cluster, index).await?;
    Ok(began.elapsed())
}

/// Waits until this member answers a linearizable read.
async fn probe(cluster: &Cluster, index: usize) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let read = async {
            let handle = cluster.connect(&[index]).await?;
            let found = handle.get(PROBED).await.map_err(|error| error.to_string())?;
            found.map(drop).ok_or_else(|| format!("{PROBED} is not there"))
        };
        match read.await {
            Ok(()) => return Ok(()),
            Err(why) if began.elapsed() > SERVE_LIMIT => return Err(why),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
