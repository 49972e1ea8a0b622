//! `catchup`: an empty fourth member joins three that hold many keys, while clients go on writing: how long until
//! it is level, and what becomes of the writers meanwhile. The same program is the client of Debian's etcd and of
//! ours, one after the other in one run: the same load, certificates of the same kind, the same disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use etcd_api::etcdserverpb::kv_client::KvClient;
use etcd_api::etcdserverpb::request_op::Request as Op;
use etcd_api::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};
use raft_kv_benches::compare::clusters::{Cluster, Etcd, RaftKv};
use raft_kv_benches::compare::work::{connections, ready};
use raft_kv_benches::{data, host};
use raft_kv_server::foreign::channel;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// Keys that one transaction of the load puts.
const BATCH: u64 = 100;
/// Transactions of the load under way at a time.
const LOADERS: u64 = 16;
/// A member that is not level by then has failed.
const LEVEL_LIMIT: Duration = Duration::from_secs(600);
/// etcd takes no new member while its own have been connected for less than five seconds.
const SETTLED: Duration = Duration::from_secs(8);
/// How often it is asked how far it is.
const LOOK: Duration = Duration::from_millis(20);

/// Measures how an empty member catches up beside writers, etcd's and ours
#[derive(Parser)]
struct Args {
    /// The binary raft-kv
    #[arg(long)]
    bin: PathBuf,
    /// For the members' data, on the disk that is meant; removed at the end
    #[arg(long)]
    dir: PathBuf,
    /// Keys, of 256 bytes
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Clients that write, each its next as soon as the last was answered
    #[arg(long, default_value_t = 16)]
    writers: u64,
    /// Seconds that they are measured before the member joins, and behind it
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Measure ours alone
    #[arg(long)]
    without_etcd: bool,
}

#[tokio::main]
async fn main() -> Result<(), String> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.dir).map_err(|error| format!("{}: {error}", args.dir.display()))?;
    let dir = tempfile::Builder::new().prefix("catchup-").tempdir_in(&args.dir).map_err(|e| e.to_string())?;
    let before = host::describe();
    let syncs = host::syncs_per_second(dir.path(), Duration::from_secs(1)).map_err(|e| e.to_string())?;
    let etcd = if args.without_etcd {
        None
    } else {
        Some(measure(&args, Etcd::start("etcd", &dir.path().join("etcd"))?).await?)
    };
    let ours = measure(&args, RaftKv::start(&args.bin, &dir.path().join("raft-kv")).await?).await?;
    let ratio = etcd.as_ref().map(|etcd| ours.level.as_secs_f64() / etcd.level.as_secs_f64());
    println!(
        "{:#}",
        json!({
            "keys": args.keys,
            "value_bytes": data::VALUE_BYTES,
            "members": 3,
            "writers": args.writers,
            "host": before,
            "fdatasyncs_per_second": syncs.round(),
            "etcd": etcd.as_ref().map(Row::shown),
            "raft_kv": ours.shown(),
            "level_seconds_ratio_to_etcd": ratio,
            "asked": { "raft_kv.writes_kept": 0.8 },
        })
    );
    Ok(())
}

/// What one server did.
struct Row {
    load: Duration,
    before: f64,
    during: f64,
    after: f64,
    level: Duration,
    writes: u64,
    longest: Duration,
    errors: u64,
}

impl Row {
    fn shown(&self) -> Value {
        json!({
            "load_seconds": self.load.as_secs_f64(),
            "writes_per_second_before": self.before.round(),
            "writes_per_second_during": self.during.round(),
            "writes_per_second_after": self.after.round(),
            "writes_kept": self.during / self.before.max(1e-9),
            "writes_during": self.writes,
            "longest_write_during_ms": self.longest.as_millis() as u64,
            "errors": self.errors,
            "level_seconds": self.level.as_secs_f64(),
        })
    }
}

/// Counts of the writers.
#[derive(Default)]
struct Counts {
    done: AtomicU64,
    errors: AtomicU64,
    longest_micros: AtomicU64,
    over: AtomicBool,
}

async fn measure(args: &Args, mut cluster: impl Cluster) -> Result<Row, String> {
    ready(&cluster).await?;
    let settled = Instant::now() + SETTLED;
    let name = cluster.name();
    eprintln!("catchup: {name}: loading {} keys", args.keys);
    let load = load(&cluster, args.keys).await?;
    eprintln!("catchup: {name}: loaded in {:.0} s", load.as_secs_f64());
    let counts = Arc::new(Counts::default());
    let channels = connections(&cluster, args.writers.max(1));
    let mut writers = JoinSet::new();
    for (number, channel) in (0..).zip(&channels) {
        writers.spawn(write(channel.clone(), number, args.keys, counts.clone()));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    tokio::time::sleep_until(settled.into()).await;
    let calm = Duration::from_secs(args.seconds.max(1));
    let before = rate(&counts, tokio::time::sleep(calm)).await.1;
    counts.longest_micros.store(0, Ordering::Relaxed);
    let (from, began) = (counts.done.load(Ordering::Relaxed), Instant::now());
    let (level, during) = rate(&counts, async {
        let place = cluster.join().await?;
        let new = channel(&[place], 0, Some(cluster.tls()));
        level(channels[0].clone(), new).await.map(|()| began.elapsed())
    })
    .await;
    let (level, writes) = (level?, counts.done.load(Ordering::Relaxed) - from);
    let longest = Duration::from_micros(counts.longest_micros.load(Ordering::Relaxed));
    eprintln!("catchup: {name}: level after {:.2} s", level.as_secs_f64());
    let after = rate(&counts, tokio::time::sleep(calm)).await.1;
    counts.over.store(true, Ordering::Relaxed);
    while let Some(ended) = writers.join_next().await {
        ended.map_err(|error| error.to_string())?;
    }
    let errors = counts.errors.load(Ordering::Relaxed);
    Ok(Row { load, before, during, after, level, writes, longest, errors })
}

/// What `meanwhile` gives, and the writes in a second until then.
async fn rate<R>(counts: &Counts, meanwhile: impl Future<Output = R>) -> (R, f64) {
    let (from, began) = (counts.done.load(Ordering::Relaxed), Instant::now());
    let result = meanwhile.await;
    let done = counts.done.load(Ordering::Relaxed) - from;
    (result, done as f64 / began.elapsed().as_secs_f64().max(1e-9))
}

fn put(number: u64) -> PutRequest {
    let key = format!("key/{number:012}").into();
    PutRequest { key, value: data::value(), ..PutRequest::default() }
}

async fn load(cluster: &impl Cluster, keys: u64) -> Result<Duration, String> {
    let began = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut loaders: JoinSet<Result<(), String>> = JoinSet::new();
    for channel in connections(cluster, LOADERS) {
        let next = next.clone();
        loaders.spawn(async move {
            let mut client = KvClient::new(channel);
            loop {
                let first = next.fetch_add(BATCH, Ordering::Relaxed);
                if first >= keys {
                    return Ok(());
                }
                let op = |number| RequestOp { request: Some(Op::RequestPut(put(number))) };
                let success = (first..keys.min(first + BATCH)).map(op).collect();
                let sent = client.txn(TxnRequest { success, ..TxnRequest::default() }).await;
                sent.map_err(|status| format!("loading: {status}"))?;
            }
        });
    }
    while let Some(ended) = loaders.join_next().await {
        ended.map_err(|error| error.to_string())??;
    }
    Ok(began.elapsed())
}

/// One writer: keys that are there, spread over all.
async fn write(channel: Channel, writer: u64, keys: u64, counts: Arc<Counts>) {
    let mut client = KvClient::new(channel);
    let mut number = writer;
    while !counts.over.load(Ordering::Relaxed) {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let began = Instant::now();
        match client.put(put((number >> 16) % keys.max(1))).await {
            Ok(_) => {
                counts.done.fetch_add(1, Ordering::Relaxed);
                let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                counts.longest_micros.fetch_max(took, Ordering::Relaxed);
            }
            Err(_) => {
                counts.errors.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn revision(channel: &Channel, serializable: bool) -> Result<i64, String> {
    let request = RangeRequest {
        key: "key/000000000000".into(),
        count_only: true,
        serializable,
        ..RangeRequest::default()
    };
    let found = KvClient::new(channel.clone()).range(request).await.map_err(|status| status.to_string())?;
    let found = found.into_inner();
    if found.count != 1 {
        return Err("the first key is not there yet".into());
    }
    found.header.map(|header| header.revision).ok_or_else(|| "there is no header".into())
}

/// Until the new member itself has what the cluster had a moment before, keys and all.
async fn level(cluster: Channel, new: Channel) -> Result<(), String> {
    let began = Instant::now();
    let mut why = String::new();
    while began.elapsed() < LEVEL_LIMIT {
        let aim = revision(&cluster, false).await;
        match (aim, revision(&new, true).await) {
            (Ok(aim), Ok(has)) if has >= aim => return Ok(()),
            (Ok(aim), Ok(has)) => why = format!("it has revision {has} of {aim}"),
            (Err(error), _) | (_, Err(error)) => why = error,
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(format!("the new member is not level in {} s: {why}", LEVEL_LIMIT.as_secs()))
}
