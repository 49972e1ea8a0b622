//! One watch stream on each side: what is sent, everything that comes, and when both have come to
//! rest. How events are packed into responses is the server's own affair; what is compared is each
//! watch's lines in their order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_api::etcdserverpb::watch_request::RequestUnion;
use etcd_api::etcdserverpb::{WatchRequest, WatchResponse};
use etcd_api::mvccpb::Event;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::side::Side;

/// Longer than the pass in which etcd brings watchers level, 100 ms.
const QUIET: Duration = Duration::from_millis(230);
/// Streams that have not come to the same lines after this differ.
const REST_LIMIT: Duration = Duration::from_secs(6);
/// An id that is not there is cancelled without an answer.
const ACKNOWLEDGE_LIMIT: Duration = Duration::from_millis(400);
const CREATE_LIMIT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(5);

/// One thing that a watch was told.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// It stands, at this revision.
    Created(i64),
    /// It has ended.
    Canceled {
        /// What is gone, if that was the reason.
        compact_revision: i64,
        /// In words.
        reason: String,
    },
    /// A change.
    Event(Event),
    /// A response without anything in it.
    Progress(i64),
}

/// Every watch's lines, by its id.
pub type Lines = BTreeMap<i64, Vec<Line>>;

#[derive(Debug, Default)]
struct Log {
    lines: Lines,
    responses: usize,
    acknowledged: usize,
    ended: Option<(i32, String)>,
    /// A revision whose events came in two responses that were not fragments.
    split: Option<String>,
    fragment: bool,
}

impl Log {
    fn take(&mut self, response: WatchResponse) {
        self.responses += 1;
        let revision = response.header.as_ref().map_or(-1, |header| header.revision);
        let progress = !response.created && !response.canceled && response.events.is_empty();
        self.acknowledged += usize::from(response.created || response.canceled || progress);
        // A watch that asked for the id -1 shares it with every refusal; their order is free.
        let shared = response.watch_id == -1 && !response.events.is_empty();
        let id = if shared { i64::MIN } else { response.watch_id };
        let lines = self.lines.entry(id).or_default();
        if response.created {
            lines.push(Line::Created(revision));
        }
        if progress {
            lines.push(Line::Progress(revision));
        }
        if let (Some(Line::Event(last)), Some(first), false) =
            (lines.last(), response.events.first(), self.fragment)
        {
            let at = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            if at(last) == at(first) {
                self.split = Some(format!(
                    "watch {}: revision {} came in two responses",
                    response.watch_id,
                    at(first)
                ));
            }
        }
        self.fragment = response.fragment;
        lines.extend(response.events.into_iter().map(Line::Event));
        if response.canceled {
            let (compact_revision, reason) = (response.compact_revision, response.cancel_reason);
            lines.push(Line::Canceled { compact_revision, reason });
        }
    }
}

/// One open stream.
#[derive(Debug)]
pub struct Stream {
    log: Arc<Mutex<Log>>,
    sender: mpsc::Sender<WatchRequest>,
    task: JoinHandle<()>,
}

impl Stream {
    /// Opens it; nothing was sent yet.
    pub fn open(side: &Side, user: Option<&str>) -> Self {
        let (sender, receiver) = mpsc::channel(64);
        let request = side.request(ReceiverStream::new(receiver), user);
        let mut client = side.watch.clone();
        let log = Arc::new(Mutex::new(Log::default()));
        let kept = Arc::clone(&log);
        let task = tokio::spawn(async move {
            let end = match client.watch(request).await {
                Err(status) => status,
                Ok(answer) => {
                    let mut stream = answer.into_inner();
                    loop {
                        match stream.message().await {
                            Ok(Some(response)) => kept.lock().take(response),
                            Ok(None) => break tonic::Status::ok(""),
                            Err(status) => break status,
                        }
                    }
                }
            };
            kept.lock().ended = Some((end.code() as i32, end.message().to_owned()));
        });
        Self { log, sender, task }
    }

    /// Sends one request and waits for its acknowledgement.
    pub async fn send(&self, request: WatchRequest) {
        let creates = matches!(request.request_union, Some(RequestUnion::CreateRequest(_)));
        let limit = if creates { CREATE_LIMIT } else { ACKNOWLEDGE_LIMIT };
        let before = self.log.lock().acknowledged;
        if self.sender.send(request).await.is_err() {
            return;
        }
        let began = Instant::now();
        while began.elapsed() < limit {
            if self.acknowledged_since(before) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn acknowledged_since(&self, before: usize) -> bool {
        let log = self.log.lock();
        log.acknowledged > before || log.ended.is_some()
    }

    /// What came so far.
    pub fn lines(&self) -> (Lines, Option<(i32, String)>) {
        let log = self.log.lock();
        (log.lines.clone(), log.ended.clone())
    }

    /// A revision that came in two pieces which did not say so.
    pub fn split(&self) -> Option<String> {
        self.log.lock().split.clone()
    }

    fn state(&self) -> usize {
        self.log.lock().responses
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits until all pairs are `settled` and nothing more has come for a while, or until it is clear
/// that they differ.
pub async fn rest<T: AsRef<(Stream, Stream)>>(pairs: &[T], settled: impl Fn(&T) -> bool) {
    let began = Instant::now();
    let mut settled_since: Option<(Instant, usize)> = None;
    while began.elapsed() < REST_LIMIT {
        let count: usize = pairs.iter().map(|one| one.as_ref().0.state() + one.as_ref().1.state()).sum();
        match settled_since {
            Some((since, then)) if then == count => {
                if since.elapsed() >= QUIET {
                    return;
                }
            }
            _ => {
                let all = pairs.iter().all(&settled);
                settled_since = all.then(|| (Instant::now(), count));
            }
        }
        tokio::time::sleep(LOOK * 4).await;
    }
}
