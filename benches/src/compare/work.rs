//! The load: clients that send their next request as soon as the last was answered, over gRPC and
//! TLS, spread over the members. The same program for every server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcd_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_api::etcdserverpb::kv_client::KvClient;
use etcd_api::etcdserverpb::lease_client::LeaseClient;
use etcd_api::etcdserverpb::request_op::Request as Op;
use etcd_api::etcdserverpb::watch_client::WatchClient;
use etcd_api::etcdserverpb::watch_request::RequestUnion;
use etcd_api::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    WatchCreateRequest, WatchRequest,
};
use raft_kv_server::foreign::channel;
use rand::Rng;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use super::clusters::Cluster;
use crate::data;

/// Keys that are there before anything is measured.
pub const KEYS: u64 = 10_000;
/// Clients that share a connection.
const CLIENTS_PER_CONNECTION: u64 = 16;
/// Keys of the range that is read.
const RANGE: u64 = 100;
/// Clients that write while watchers listen.
const WRITERS: u64 = 16;
/// So long a cluster may take until it serves.
const LIMIT: Duration = Duration::from_secs(60);
/// Streams that many watchers or leases share.
const STREAMS: u64 = 16;

/// What the clients of a cell do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Put one key.
    Put,
    /// Get one key, linearizable.
    Get,
    /// Get one key, serializable.
    GetSerializable,
    /// One put to four linearizable gets.
    Mixed,
    /// Compare, then put and get.
    Txn,
    /// Read a hundred keys, linearizable.
    Range,
    /// Watch a prefix that sixteen clients write to; counted are events delivered.
    Watch,
}

/// All of them, in the order of the table.
pub const WORKS: [Work; 7] =
    [Work::Put, Work::Get, Work::GetSerializable, Work::Mixed, Work::Txn, Work::Range, Work::Watch];

impl Work {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get, linearizable",
            Self::GetSerializable => "get, serializable",
            Self::Mixed => "mixed, 1 put to 4 gets",
            Self::Txn => "transaction",
            Self::Range => "range of 100",
            Self::Watch => "watch, events delivered",
        }
    }
}

/// What a cell saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Requests answered, or events delivered.
    pub done: u64,
    /// Requests that failed, and the first reason.
    pub errors: u64,
    /// The first error.
    pub first_error: Option<String>,
    /// Microseconds of each answer, ascending; empty for watches.
    pub latencies: Vec<u32>,
    /// How long it was measured.
    pub took: Duration,
    /// Processor time of all members in it.
    pub processor: Duration,
}

impl Seen {
    /// Done in a second.
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// Processor time of the members for each, in microseconds.
    pub fn cost(&self) -> f64 {
        self.processor.as_secs_f64() * 1e6 / (self.done.max(1)) as f64
    }

    /// The latency in milliseconds that this share of the answers (0 to 1) did not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let at = (self.latencies.len() as f64 * share).ceil() as usize;
        let micros = self.latencies.get(at.saturating_sub(1).min(self.latencies.len().saturating_sub(1)));
        f64::from(micros.copied().unwrap_or(0)) / 1000.0
    }

    /// Two measurements of the same as one.
    pub fn join(&mut self, other: Self) {
        self.done += other.done;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latencies.extend(other.latencies);
        self.latencies.sort_unstable();
        self.took += other.took;
        self.processor += other.processor;
    }
}

/// Connections to a cluster, spread over its members.
pub fn connections(cluster: &dyn Cluster, count: u64) -> Vec<Channel> {
    let places = cluster.endpoints();
    let place = |n: u64| std::slice::from_ref(&places[n as usize % places.len()]);
    (0..count).map(|n| channel(place(n), 0, Some(cluster.tls()))).collect()
}

fn key(number: u64) -> Bytes {
    format!("key{number:09}").into()
}

fn put_request(key: Bytes) -> PutRequest {
    PutRequest { key, value: data::value(), ..PutRequest::default() }
}

/// Waits until each member serves, and writes the keys that are read.
///
/// # Errors
/// What the cluster last said, after a minute.
pub async fn prepare(cluster: &dyn Cluster) -> Result<(), String> {
    ready(cluster).await?;
    let mut client = KvClient::new(connections(cluster, 1).remove(0));
    for first in (0..KEYS).step_by(100) {
        let op = |n| RequestOp { request: Some(Op::RequestPut(put_request(key(n)))) };
        let success = (first..first + 100).map(op).collect();
        let sent = client.txn(TxnRequest { success, ..TxnRequest::default() }).await;
        sent.map_err(|status| format!("{}: {status}", cluster.name()))?;
    }
    Ok(())
}

/// Waits until each member takes a write.
///
/// # Errors
/// What the cluster last said, after a minute.
pub async fn ready(cluster: &dyn Cluster) -> Result<(), String> {
    let began = Instant::now();
    for channel in connections(cluster, cluster.endpoints().len() as u64) {
        while let Err(status) = KvClient::new(channel.clone()).put(put_request("ready".into())).await {
            if began.elapsed() > LIMIT {
                return Err(format!("{} does not serve: {status}", cluster.name()));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

/// Counts of what is under way.
#[derive(Default)]
struct Counts {
    measuring: AtomicBool,
    over: AtomicBool,
    events: AtomicU64,
}

/// One cell: `clients` at a time, `warm_up` unmeasured, then `during`.
pub async fn cell(
    cluster: &dyn Cluster,
    work: Work,
    clients: u64,
    warm_up: Duration,
    during: Duration,
) -> Seen {
    let counts = Arc::new(Counts::default());
    let channels = connections(cluster, clients.div_ceil(CLIENTS_PER_CONNECTION).max(1));
    let mut tasks = JoinSet::new();
    let of = |n: u64| channels[n as usize % channels.len()].clone();
    if work == Work::Watch {
        for n in 0..clients {
            tasks.spawn(watcher(of(n), counts.clone()));
        }
        for n in 0..WRITERS {
            tasks.spawn(client(of(n), Work::Watch, counts.clone()));
        }
    } else {
        for n in 0..clients {
            tasks.spawn(client(of(n), work, counts.clone()));
        }
    }
    tokio::time::sleep(warm_up).await;
    let (processor, began, events) =
        (cluster.processor_time(), Instant::now(), counts.events.load(Ordering::Relaxed));
    counts.measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(during).await;
    counts.measuring.store(false, Ordering::Relaxed);
    let mut all = Seen { took: began.elapsed(), ..Seen::default() };
    let events = counts.events.load(Ordering::Relaxed) - events;
    all.processor = cluster.processor_time().saturating_sub(processor);
    counts.over.store(true, Ordering::Relaxed);
    let (took, processor) = (all.took, all.processor);
    while let Some(seen) = tasks.join_next().await {
        all.join(seen.expect("a client does not panic"));
    }
    if work == Work::Watch {
        (all.done, all.latencies) = (events, Vec::new());
    }
    (all.took, all.processor) = (took, processor);
    all
}

async fn client(channel: Channel, work: Work, counts: Arc<Counts>) -> Seen {
    let mut client = KvClient::new(channel);
    let mut seen = Seen::default();
    while !counts.over.load(Ordering::Relaxed) {
        let began = Instant::now();
        let asked = ask(&mut client, work).await;
        match asked {
            Ok(()) if counts.measuring.load(Ordering::Relaxed) => {
                seen.done += 1;
                seen.latencies.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
            }
            Ok(()) => {}
            Err(status) => {
                seen.errors += u64::from(counts.measuring.load(Ordering::Relaxed));
                seen.first_error.get_or_insert_with(|| status.to_string());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    seen
}

async fn ask(client: &mut KvClient<Channel>, work: Work) -> Result<(), Status> {
    let (number, one_in_five) = {
        let mut random = rand::rng();
        (random.random_range(0..KEYS), random.random_range(0..5) == 0)
    };
    let get = |serializable| RangeRequest { key: key(number), serializable, ..RangeRequest::default() };
    match work {
        Work::Put => drop(client.put(put_request(key(number))).await?),
        Work::Get => drop(client.range(get(false)).await?),
        Work::GetSerializable => drop(client.range(get(true)).await?),
        Work::Mixed if one_in_five => drop(client.put(put_request(key(number))).await?),
        Work::Mixed => drop(client.range(get(false)).await?),
        Work::Txn => {
            let compare = Compare {
                result: CompareResult::Greater as i32,
                target: CompareTarget::Version as i32,
                key: key(number),
                target_union: Some(TargetUnion::Version(0)),
                ..Compare::default()
            };
            let ops = [Op::RequestPut(put_request(key(number))), Op::RequestRange(get(false))];
            let success = ops.into_iter().map(|op| RequestOp { request: Some(op) }).collect();
            let txn = TxnRequest { compare: vec![compare], success, ..TxnRequest::default() };
            drop(client.txn(txn).await?);
        }
        Work::Range => {
            let from = number.min(KEYS - RANGE);
            let request =
                RangeRequest { key: key(from), range_end: key(from + RANGE), ..RangeRequest::default() };
            drop(client.range(request).await?);
        }
        Work::Watch => drop(client.put(put_request(format!("watch{:06}", number % 1000).into())).await?),
    }
    Ok(())
}

fn create(key: Bytes, range_end: Bytes) -> WatchRequest {
    let create = WatchCreateRequest { key, range_end, ..WatchCreateRequest::default() };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

async fn watcher(channel: Channel, counts: Arc<Counts>) -> Seen {
    let mut seen = Seen::default();
    let (ask, asked) = mpsc::channel(1);
    let _ = ask.send(create("watch".into(), "watci".into())).await;
    let mut stream = match WatchClient::new(channel).watch(ReceiverStream::new(asked)).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => {
            seen.errors = 1;
            seen.first_error = Some(status.to_string());
            return seen;
        }
    };
    while !counts.over.load(Ordering::Relaxed) {
        match tokio::time::timeout(Duration::from_millis(500), stream.message()).await {
            Ok(Ok(Some(response))) => {
                counts.events.fetch_add(response.events.len() as u64, Ordering::Relaxed);
            }
            Ok(ended) => {
                seen.errors = 1;
                seen.first_error = Some(format!("a watch ended: {ended:?}"));
                return seen;
            }
            Err(_) => {}
        }
    }
    seen
}

/// What many leases or watchers cost.
#[derive(Clone, Debug, Default)]
pub struct Many {
    /// Made in a second.
    pub made_rate: f64,
    /// Keep-alives answered, or events delivered, in a second.
    pub rate: f64,
    /// Processor time of the members for each of these, in microseconds.
    pub cost: f64,
    /// Resident bytes of each member before.
    pub before: Vec<u64>,
    /// And with all of them.
    pub after: Vec<u64>,
}

/// Grants `count` leases, then keeps them alive in turn for `during`.
///
/// # Errors
/// The first that failed.
pub async fn leases(cluster: &dyn Cluster, count: u64, during: Duration) -> Result<Many, String> {
    let channels = connections(cluster, STREAMS);
    let mut many = Many { before: cluster.resident(), ..Many::default() };
    let began = Instant::now();
    let mut granting = JoinSet::new();
    for n in 0..STREAMS * 16 {
        let mut client = LeaseClient::new(channels[(n % STREAMS) as usize].clone());
        let share = count / (STREAMS * 16) + u64::from(n < count % (STREAMS * 16));
        granting.spawn(async move {
            let mut ids = Vec::new();
            for _ in 0..share {
                let granted = client.lease_grant(LeaseGrantRequest { id: 0, ttl: 600 }).await?;
                ids.push(granted.into_inner().id);
            }
            Ok::<_, Status>(ids)
        });
    }
    let mut ids = Vec::new();
    while let Some(granted) = granting.join_next().await {
        ids.extend(granted.expect("no panic").map_err(|status| status.to_string())?);
    }
    many.made_rate = ids.len() as f64 / began.elapsed().as_secs_f64();
    many.after = cluster.resident();
    let (processor, began) = (cluster.processor_time(), Instant::now());
    let mut keeping = JoinSet::new();
    for (channel, ids) in channels.into_iter().zip(ids.chunks(ids.len().div_ceil(STREAMS as usize).max(1))) {
        let ids = ids.to_vec();
        keeping.spawn(async move {
            let (ask, asked) = mpsc::channel(64);
            let sender = tokio::spawn(async move {
                for id in ids.into_iter().cycle() {
                    if ask.send(LeaseKeepAliveRequest { id }).await.is_err() {
                        break;
                    }
                }
            });
            let mut answered = 0u64;
            if let Ok(stream) = LeaseClient::new(channel).lease_keep_alive(ReceiverStream::new(asked)).await {
                let mut stream = stream.into_inner();
                let until = tokio::time::Instant::now() + during;
                while let Ok(Ok(Some(_))) = tokio::time::timeout_at(until, stream.message()).await {
                    answered += 1;
                }
            }
            sender.abort();
            answered
        });
    }
    let answered: u64 = keeping.join_all().await.into_iter().sum();
    many.rate = answered as f64 / began.elapsed().as_secs_f64();
    many.cost =
        cluster.processor_time().saturating_sub(processor).as_secs_f64() * 1e6 / answered.max(1) as f64;
    Ok(many)
}

/// Makes `count` watchers of one key each, then puts these keys for `during`.
///
/// # Errors
/// The first that failed.
pub async fn watchers(cluster: &dyn Cluster, count: u64, during: Duration) -> Result<Many, String> {
    let channels = connections(cluster, STREAMS);
    let mut many = Many { before: cluster.resident(), ..Many::default() };
    let (counts, made) = (Arc::new(Counts::default()), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for n in 0..STREAMS {
        let (channel, counts, made) = (channels[n as usize].clone(), counts.clone(), made.clone());
        tasks.spawn(async move {
            let (ask, asked) = mpsc::channel(64);
            let sender = tokio::spawn(async move {
                for number in (n..count).step_by(STREAMS as usize) {
                    let key = format!("many{number:08}").into();
                    if ask.send(create(key, Bytes::new())).await.is_err() {
                        break;
                    }
                }
                // The stream lives as long as its requests.
                std::future::pending::<()>().await;
                drop(ask);
            });
            if let Ok(stream) = WatchClient::new(channel).watch(ReceiverStream::new(asked)).await {
                let mut stream = stream.into_inner();
                while let Ok(Some(response)) = stream.message().await {
                    made.fetch_add(u64::from(response.created), Ordering::Relaxed);
                    counts.events.fetch_add(response.events.len() as u64, Ordering::Relaxed);
                }
            }
            sender.abort();
        });
    }
    while made.load(Ordering::Relaxed) < count {
        if began.elapsed() > LIMIT * 2 {
            return Err(format!(
                "{} of {count} watchers after {LIMIT:?} twice",
                made.load(Ordering::Relaxed)
            ));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    many.made_rate = count as f64 / began.elapsed().as_secs_f64();
    many.after = cluster.resident();
    let (processor, began) = (cluster.processor_time(), Instant::now());
    let mut writing = JoinSet::new();
    for n in 0..WRITERS {
        let mut client = KvClient::new(channels[(n % STREAMS) as usize].clone());
        writing.spawn(async move {
            while began.elapsed() < during {
                let number = rand::rng().random_range(0..count);
                let _ = client.put(put_request(format!("many{number:08}").into())).await;
            }
        });
    }
    writing.join_all().await;
    let events = counts.events.load(Ordering::Relaxed);
    many.rate = events as f64 / began.elapsed().as_secs_f64();
    many.cost = cluster.processor_time().saturating_sub(processor).as_secs_f64() * 1e6 / events.max(1) as f64;
    tasks.shutdown().await;
    Ok(many)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_of_the_same_are_one() {
        let seen = |latencies: Vec<u32>, seconds| Seen {
            done: latencies.len() as u64,
            latencies,
            took: Duration::from_secs(seconds),
            processor: Duration::from_millis(seconds),
            ..Seen::default()
        };
        let mut one = seen(vec![3000, 4000], 1);
        one.join(seen(vec![1000, 2000], 3));
        assert_eq!((one.rate(), one.cost(), one.quantile(0.5), one.quantile(1.0)), (1.0, 1000.0, 2.0, 4.0));
        assert_eq!((Seen::default().rate(), Seen::default().quantile(0.5)), (0.0, 0.0));
    }
}
