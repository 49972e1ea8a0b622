//! `backup_speed`: how fast a backup is made, checked and restored, beside what the disk does with a plain file of the
//! same size in the same run. One member in this process; values do not compress.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use raft_kv::client::{BackupSummary, Config, RestorePlan, Tuning, restore, verify_backup};
use raft_kv::pki::BackupKey;
use raft_kv_benches::load::put_keys;
use raft_kv_benches::members::{leader, start};
use raft_kv_benches::{data, host};
use rand::RngCore;
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Callers that load the keys.
const CALLERS: u64 = 256;
/// Bytes written to the plain file, or read from it, at once.
const BLOCK: usize = 256 * 1024;

/// Measures backups beside the disk
#[derive(Parser)]
struct Args {
    /// For the member's data and the backups; must be on the disk that is to be measured. Otherwise a folder for
    /// temporary files
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Keys stored, of 256 bytes
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// How often each is measured; all rounds are shown
    #[arg(long, default_value_t = 3)]
    rounds: u64,
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    let root = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    fs::create_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
    let dir =
        tempfile::Builder::new().prefix("backup-speed-").tempdir_in(&root).map_err(|e| e.to_string())?;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    println!("{:#}", runtime.block_on(measure(&args, dir.path()))?);
    Ok(())
}

async fn measure(args: &Args, dir: &Path) -> Result<Value, String> {
    let before = host::describe();
    let nodes = start(dir, 1).await?;
    let handle = nodes[leader(&nodes).await?].handle();
    let loaded = put_keys(&handle, CALLERS, args.keys).await;
    let key = BackupKey::generate();
    let mut rounds = Vec::new();
    for round in 0..args.rounds.max(1) {
        for (form, key) in [("plain", None), ("encrypted", Some(&key))] {
            eprintln!("backup_speed: round {round}, {form}");
            let file = dir.join("backup");
            let (summary, created) = timed(handle.backup(&file, key, true)).await;
            let summary = summary.map_err(|error| error.to_string())?;
            let (checked, verified) = timed(async { verify_backup(&file, key) }).await;
            checked.map_err(|error| error.to_string())?;
            let new = dir.join("new");
            let plan = RestorePlan { key: key.cloned(), ..RestorePlan::default() };
            let (restored, took) = timed(restore(place(&new)?, &file, &plan)).await;
            restored.map_err(|error| error.to_string())?;
            fs::remove_dir_all(&new).map_err(|error| error.to_string())?;
            // Of the size that all of this moves.
            let disk = disk(&dir.join("plain"), summary.info.bytes).map_err(|error| error.to_string())?;
            rounds.push(row(form, &summary, (created, verified, took), disk));
        }
    }
    for node in nodes {
        node.shutdown().await.map_err(|error| error.to_string())?;
    }
    Ok(json!({
        "keys": args.keys,
        "value_bytes": data::VALUE_BYTES,
        "host": before,
        "load_errors": loaded.errors,
        "rounds": rounds,
        "asked": { "ratio": 0.5 },
    }))
}

async fn timed<R>(work: impl Future<Output = R>) -> (R, Duration) {
    let began = Instant::now();
    let result = work.await;
    (result, began.elapsed())
}

fn place(dir: &Path) -> Result<Config, String> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    Ok(Config {
        data_dir: dir.to_owned(),
        name: "new".into(),
        listen_addr: socket.local_addr().map_err(|error| error.to_string())?,
        advertise_addr: None,
        client_addr: None,
        advertise_client_addr: None,
        own_root: None,
        external_signer: None,
        tuning: Tuning::default(),
    })
}

fn row(
    form: &str,
    summary: &BackupSummary,
    (created, verified, restored): (Duration, Duration, Duration),
    (write, read): (Duration, Duration),
) -> Value {
    let bytes = summary.info.bytes as f64;
    let speed = |took: Duration| bytes / 1e6 / took.as_secs_f64().max(1e-9);
    let beside = |took: Duration, disk: Duration| {
        json!({
            "seconds": took.as_secs_f64(),
            "megabytes_per_second": speed(took),
            "ratio": disk.as_secs_f64() / took.as_secs_f64().max(1e-9),
        })
    };
    json!({
        "form": form,
        "content_bytes": summary.info.bytes,
        "file_bytes": summary.file_bytes,
        "disk_write_megabytes_per_second": speed(write),
        "disk_read_megabytes_per_second": speed(read),
        // A backup and a restore end with syncs, as the disk's own file did; a check reads.
        "create": beside(created, write),
        "verify": beside(verified, read),
        "restore": beside(restored, write),
    })
}

/// How long a plain file of so many bytes takes: written one block after the other and synced; then read. What the
/// system has kept of it in memory is kept, as for the backup.
fn disk(path: &Path, bytes: u64) -> std::io::Result<(Duration, Duration)> {
    let mut block = vec![0; BLOCK];
    rand::rng().fill_bytes(&mut block);
    let began = Instant::now();
    let mut file = File::create(path)?;
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        file.write_all(&block[..part])?;
        left -= part as u64;
    }
    file.sync_all()?;
    let written = began.elapsed();
    let began = Instant::now();
    let mut file = File::open(path)?;
    while file.read(&mut block)? > 0 {}
    let read = began.elapsed();
    fs::remove_file(path)?;
    Ok((written, read))
}
