//! One worker of a fleet: it keeps its token, says that it is there, and reports when it is told to. Of its tasks it
//! keeps the names.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcd_api::raftkv::manager_says::Says as Answer;
use etcd_api::raftkv::worker_client::WorkerClient as Stub;
use etcd_api::raftkv::worker_says::Says;
use etcd_api::raftkv::{
    WorkerHeartbeat, WorkerOpen, WorkerReport, WorkerReported, WorkerSays, WorkerTaskStatus, WorkerUpdate,
};
use prost::Message;
use raft_kv::pki::Credentials;
use raft_kv_server::worker_client::channel;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Running, as SwarmKit numbers it.
const RUNNING: u32 = 512;
/// How long a door may take to let a worker in.
const CONNECT: Duration = Duration::from_secs(30);
/// Largest update that is taken, in bytes.
const MAX_UPDATE: usize = 64 * 1024 * 1024;

/// What all workers of a fleet saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Sessions that have all their tasks now.
    pub open: AtomicU64,
    /// Sessions that were opened.
    pub opened: AtomicU64,
    /// Times that a worker was sent everything anew.
    pub whole: AtomicU64,
    /// Tasks sent.
    pub tasks: AtomicU64,
    /// Bytes of updates.
    pub bytes: AtomicU64,
    /// Reports that were not taken, or whose session ended before the answer.
    pub lost: AtomicU64,
    /// Microseconds from when each report was due until it was acknowledged.
    pub latencies: Mutex<Vec<u32>>,
}

fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

struct Worker {
    own: Credentials,
    doors: Vec<String>,
    door: usize,
    asks: mpsc::UnboundedReceiver<Instant>,
    seen: Arc<Seen>,
    token: Bytes,
    ids: Vec<String>,
    reports: u64,
}

/// What has an end however the session ends.
struct Open<'a> {
    seen: &'a Seen,
    counted: bool,
    flying: VecDeque<(u64, Instant)>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if self.counted {
            self.seen.open.fetch_sub(1, Ordering::Relaxed);
        }
        add(&self.seen.lost, self.flying.len() as u64);
    }
}

/// Keeps a session of one worker, at the doors in turn from the `first` on, until it is dropped. Each of `asks` is
/// when a report is due.
pub async fn work(
    own: Credentials,
    doors: Vec<String>,
    first: usize,
    asks: mpsc::UnboundedReceiver<Instant>,
    seen: Arc<Seen>,
) {
    let (token, ids) = (Bytes::new(), Vec::new());
    let mut worker = Worker { own, doors, door: first, asks, seen, token, ids, reports: 0 };
    loop {
        // Why it ended changes nothing: it is opened again.
        let _ = worker.session().await;
        worker.door += 1;
        tokio::time::sleep(Duration::from_millis(rand::random_range(100..400))).await;
    }
}

impl Worker {
    async fn session(&mut self) -> Result<(), String> {
        let door = &self.doors[self.door % self.doors.len()];
        let channel = tokio::time::timeout(CONNECT, channel(door, &self.own));
        let channel = channel.await.map_err(|_| "nobody answers".to_owned())??;
        let (says, said) = mpsc::channel(256);
        let say = |says: &mpsc::Sender<WorkerSays>, what| {
            says.try_send(WorkerSays { says: Some(what) }).map_err(|error| error.to_string())
        };
        say(&says, Says::Open(WorkerOpen { resume: self.token.clone(), description: None }))?;
        let mut stub = Stub::new(channel).max_decoding_message_size(MAX_UPDATE);
        let hears = stub.session(ReceiverStream::new(said)).await.map_err(|status| status.to_string())?;
        let mut hears = hears.into_inner();
        let seen = self.seen.clone();
        add(&seen.opened, 1);
        let mut open = Open { seen: &seen, counted: false, flying: VecDeque::new() };
        let mut beat = Duration::from_secs(5);
        let mut beat_at = tokio::time::Instant::now() + beat;
        loop {
            tokio::select! {
                message = hears.message() => {
                    let message = message.map_err(|status| status.to_string())?.ok_or("it ended")?;
                    match message.says {
                        Some(Answer::Update(update)) => self.take(update, &mut open),
                        Some(Answer::Beat(told)) => beat = Duration::from_millis(told.milliseconds.into()),
                        Some(Answer::Acknowledged(told)) => acknowledged(&mut open, &told.reported),
                        Some(Answer::Ended(ended)) => return Err(format!("{:?}", ended.why())),
                        None => {}
                    }
                }
                () = tokio::time::sleep_until(beat_at) => {
                    beat_at = tokio::time::Instant::now() + beat;
                    say(&says, Says::Heartbeat(WorkerHeartbeat {}))?;
                }
                due = self.asks.recv(), if !self.ids.is_empty() => {
                    let due = due.ok_or("it is told to end")?;
                    let report = self.report();
                    open.flying.push_back((report.number, due));
                    say(&says, Says::Report(report))?;
                }
            }
        }
    }

    /// The next of its tasks runs still, as of another time.
    fn report(&mut self) -> WorkerReport {
        let id = self.ids[self.reports as usize % self.ids.len()].clone();
        self.reports += 1;
        let at = self.reports;
        let status =
            WorkerTaskStatus { id, state: RUNNING, message: "started".into(), at, ..Default::default() };
        WorkerReport { number: self.reports, statuses: vec![status] }
    }

    fn take(&mut self, update: WorkerUpdate, open: &mut Open<'_>) {
        add(&self.seen.tasks, update.tasks.len() as u64);
        add(&self.seen.bytes, update.encoded_len() as u64);
        if update.applies_to.is_empty() {
            add(&self.seen.whole, 1);
            self.ids.clear();
        }
        for task in update.tasks {
            if !self.ids.contains(&task.id) {
                self.ids.push(task.id);
            }
        }
        self.ids.retain(|id| !update.removed.contains(id));
        self.token = update.results_in;
        if !update.more && !open.counted {
            open.counted = true;
            add(&self.seen.open, 1);
        }
    }
}

fn acknowledged(open: &mut Open<'_>, reported: &[i32]) {
    let Some((_, due)) = open.flying.pop_front() else { return };
    if reported.iter().any(|one| *one != WorkerReported::Taken as i32) {
        add(&open.seen.lost, 1);
        return;
    }
    let took = u32::try_from(due.elapsed().as_micros()).unwrap_or(u32::MAX);
    open.seen.latencies.lock().expect("nobody panics with it").push(took);
}
