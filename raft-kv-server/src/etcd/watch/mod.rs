//! The Watch service: many watchers on one stream, over one set of subscriptions. It must never
//! hold more for a client that does not read than one batch and a few small answers.

mod fragment;
mod stream;
mod words;

#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use etcd_api::etcdserverpb::WatchRequest;
use etcd_api::etcdserverpb::watch_server::Watch;
use raft_kv::limits;
use raft_kv::raft::Leadership;
use raft_kv::types::Caller;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::room::Paced;
use super::{Etcd, Who, status};

/// How often a watcher that asked for it hears how far it is when nothing happens.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(600);
/// Without a leader for this long, streams that need one end: three election timeouts.
const LEADERLESS: Duration = limits::TICK.saturating_mul(3 * limits::ELECTION_TICKS as u32);
/// Answers of one stream on their way to its connection; then it waits for the client.
const QUEUED_ANSWERS: usize = 1;

/// The answers of one stream.
pub type Answers = Paced<Asking>;

/// The answers as they are made: it is told when one is asked for that there is not yet.
#[derive(Debug)]
pub struct Asking {
    answers: mpsc::Receiver<stream::Queued>,
    hungry: watch::Sender<bool>,
}

impl Asking {
    fn new(answers: mpsc::Receiver<stream::Queued>) -> (Self, watch::Receiver<bool>) {
        let (hungry, told) = watch::channel(false);
        (Self { answers, hungry }, told)
    }

    /// How many are made and not taken.
    #[cfg(test)]
    fn queued(&self) -> usize {
        self.answers.len()
    }
}

impl Stream for Asking {
    type Item = stream::Queued;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<stream::Queued>> {
        let polled = self.answers.poll_recv(context);
        let hungry = polled.is_pending();
        self.hungry.send_if_modified(|told| std::mem::replace(told, hungry) != hungry);
        polled
    }
}

/// The service.
#[derive(Clone, Debug)]
pub struct WatchService {
    etcd: Etcd,
    progress_interval: Duration,
}

impl WatchService {
    /// The service over `etcd`.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd, progress_interval: PROGRESS_INTERVAL }
    }

    /// The same, telling idle watchers how far they are this often (and up to a tenth longer).
    #[must_use]
    pub fn with_progress_interval(mut self, interval: Duration) -> Self {
        self.progress_interval = interval.max(Duration::from_millis(100));
        self
    }

    /// Serves one stream of requests in the name of `who`, from whatever transport they come;
    /// `needs_leader` ends it when the cluster has no leader. The end of the requests does not end
    /// the answers: dropping them does.
    ///
    /// # Errors
    /// `Unavailable` without a leader where one is needed, or when the member has stopped. A token
    /// that is not valid is told in the answer to each watcher that is to begin, as etcd does.
    #[allow(clippy::result_large_err)]
    pub fn follow<S>(&self, who: Who, needs_leader: bool, requests: S) -> Result<Answers, Status>
    where
        S: Stream<Item = Result<WatchRequest, Status>> + Send + 'static,
    {
        let leadership = self.etcd.leadership().filter(|_| needs_leader);
        if leadership.as_ref().is_some_and(|leadership| leadership.borrow().leader.is_none()) {
            return Err(no_leader());
        }
        // From before the first check on, so that no change is missed.
        let auth_changes = Some(self.etcd.own_handle().auth_changes());
        let nobody = || self.etcd.own_handle().clone().acting_as(Caller::Anonymous);
        let handle = match self.etcd.handle_for(&who) {
            Err(status) if status.code() == Code::Unauthenticated => nobody(),
            found => found?,
        };
        let set = handle.watch_set().map_err(status::status)?;
        let (out, answers) = mpsc::channel(QUEUED_ANSWERS);
        let etcd = self.etcd.clone();
        let (answers, hungry) = Asking::new(answers);
        let out = stream::Out { answers: out, hungry };
        let stream =
            stream::Stream::new(set, out, self.etcd.room().clone(), Box::new(move || etcd.handle_for(&who)));
        let ends = stream::Ends { leaderless: leaderless(leadership), auth_changes };
        tokio::spawn(stream.run(Box::pin(requests), ends, self.progress_interval));
        Ok(self.etcd.room().paced(answers))
    }
}

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = Answers;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let needs_leader = request.metadata().get("hasleader").is_some_and(|value| value == "true");
        let who = Who::asks(&request);
        let answers = self.follow(who, needs_leader, request.into_inner())?;
        let sending = answers.sending();
        let mut response = Response::new(answers);
        response.extensions_mut().insert(sending);
        Ok(response)
    }
}

fn no_leader() -> Status {
    Status::unavailable("etcdserver: no leader")
}

/// Ends when there has been no leader for too long; never without a receiver.
async fn leaderless(leadership: Option<watch::Receiver<Leadership>>) -> Status {
    let Some(mut leadership) = leadership else { return std::future::pending().await };
    loop {
        let lost = leadership.wait_for(|leadership| leadership.leader.is_none()).await.map(drop);
        let found = async { leadership.wait_for(|leadership| leadership.leader.is_some()).await.map(drop) };
        match lost {
            // The member has stopped: the set says so.
            Err(_) => return std::future::pending().await,
            Ok(()) if tokio::time::timeout(LEADERLESS, found).await.is_err() => return no_leader(),
            Ok(()) => {}
        }
    }
}
