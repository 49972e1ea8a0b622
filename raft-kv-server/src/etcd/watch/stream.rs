//! One stream: one task that takes its requests, fetches what its watchers are owed, and hands
//! answers to the connection one at a time. Everything a client is sent comes from here in order,
//! so nothing can overtake: created stands before any event, progress behind all events it covers.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use etcd_api::etcdserverpb::watch_request::RequestUnion;
use etcd_api::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use raft_kv::client::{Handle, WatchSet};
use raft_kv::error::Error;
use raft_kv::limits;
use raft_kv::types::{Header, KeyRange, Revision, WatchBatch};
use rand::Rng;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::{Stream as Requests, StreamExt};
use tonic::{Code, Status};

use super::fragment;
use super::words::{self, NO_WATCHER};
use crate::etcd::room::{Held, Room};
use crate::etcd::status;

/// An answer on its way to the connection, with its room.
pub type Queued = (Result<WatchResponse, Status>, Held);

/// Where answers go.
pub(super) struct Out {
    pub(super) answers: mpsc::Sender<Queued>,
    /// Whether one is asked for. No batch is fetched before: what was fetched for a client that does
    /// not read could not be taken back.
    pub(super) hungry: watch::Receiver<bool>,
}

/// Why a stream ends.
enum Over {
    /// The client has gone.
    Gone,
    /// It is told why.
    Failed(Status),
}

impl From<Status> for Over {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

/// What, besides requests and events, a stream listens to.
pub(super) struct Ends<L> {
    /// Ends with the status that ends the stream, if ever.
    pub(super) leaderless: L,
    /// Changes when users, roles or permissions do.
    pub(super) auth_changes: Option<watch::Receiver<u64>>,
}

/// The handle of whoever asks, by the users and roles as they are when it is called.
pub(super) type CallerNow = Box<dyn Fn() -> Result<Handle, Status> + Send + Sync>;

/// A stream's state.
pub(super) struct Stream {
    set: WatchSet,
    out: Out,
    room: Room,
    caller_now: CallerNow,
    watchers: BTreeMap<i64, Watcher>,
    /// Watchers that want to hear when nothing happens; whether nothing has since the last time.
    notified: BTreeMap<i64, bool>,
    /// Where the search for a free number starts.
    next_id: i64,
    /// The client asked for progress, and some events were still to be sent first.
    asked: bool,
}

struct Watcher {
    range: KeyRange,
    fragment: bool,
}

impl Stream {
    pub(super) fn new(set: WatchSet, out: Out, room: Room, caller_now: CallerNow) -> Self {
        let (watchers, notified) = (BTreeMap::new(), BTreeMap::new());
        Self { set, out, room, caller_now, watchers, notified, next_id: 0, asked: false }
    }

    /// Serves until the client goes or the stream can't go on.
    pub(super) async fn run<S, L>(mut self, requests: Pin<Box<S>>, ends: Ends<L>, interval: Duration)
    where
        S: Requests<Item = Result<WatchRequest, Status>> + Send,
        L: Future<Output = Status> + Send,
    {
        if let Err(Over::Failed(status)) = self.serve(requests, ends, interval).await {
            // The client may have gone meanwhile.
            let _ = self.out.answers.send((Err(status), Held::default())).await;
        }
    }

    async fn serve<S, L>(
        &mut self,
        mut requests: Pin<Box<S>>,
        ends: Ends<L>,
        interval: Duration,
    ) -> Result<(), Over>
    where
        S: Requests<Item = Result<WatchRequest, Status>> + Send,
        L: Future<Output = Status> + Send,
    {
        let mut auth_changes = ends.auth_changes;
        let leaderless = ends.leaderless;
        tokio::pin!(leaderless);
        // Not all streams of a restarted member are to tell their progress at once.
        let interval = interval + interval.mul_f64(rand::rng().random_range(0.0..0.1));
        let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = true;
        loop {
            tokio::select! {
                request = requests.next(), if open => match request {
                    Some(request) => self.request(request?).await?,
                    // Its watchers go on: what a client has to say may be said at once.
                    None => open = false,
                },
                owed = owed(&mut self.set, &self.out.answers, &mut self.out.hungry, &self.room, self.asked) => match owed? {
                    Owed::Batch(id, batch, held) => self.batch(id, batch, held).await?,
                    Owed::Progress(revision) => self.progress(revision).await?,
                },
                _ = ticks.tick() => self.notify().await?,
                () = changed(&mut auth_changes) => self.recheck().await?,
                status = &mut leaderless => return Err(status.into()),
                () = self.out.answers.closed() => return Ok(()),
            }
        }
    }

    /// Waits until the connection has room: here a client that does not read holds its stream up.
    async fn send(&self, answer: WatchResponse) -> Result<(), Over> {
        self.send_with(answer, Held::default()).await
    }

    /// The same for an answer that takes room until it is sent.
    async fn send_with(&self, answer: WatchResponse, held: Held) -> Result<(), Over> {
        self.out.answers.send((Ok(answer), held)).await.map_err(|_| Over::Gone)
    }

    fn header_at(&self, revision: Revision) -> Header {
        Header { revision, ..self.set.header() }
    }

    async fn request(&mut self, request: WatchRequest) -> Result<(), Over> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                let answer = self.create(create).await?;
                self.send(answer).await
            }
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id, String::new()).await,
            Some(RequestUnion::ProgressRequest(_)) => match self.set.progress() {
                Some(revision) => self.progress(revision).await,
                None => {
                    self.asked = self.set.nearly_synced();
                    Ok(())
                }
            },
            // A client of a newer version; what it says is nothing to end a stream for.
            None => Ok(()),
        }
    }

    async fn create(&mut self, create: WatchCreateRequest) -> Result<WatchResponse, Over> {
        if create.start_revision < 0 {
            return Ok(words::refused(self.set.header(), words::NEGATIVE.into()));
        }
        // The token is looked at for each watcher: it may have ended, or users may have changed.
        if let Some(why) = self.renew_caller().await? {
            return Ok(words::refused(self.set.header(), why));
        }
        let request = words::request(&create);
        let range = request.range.clone();
        if let Err(error) = self.set.may_watch(&range) {
            return Ok(words::refused(self.set.header(), refusal(error)?));
        }
        let id = match create.watch_id {
            0 => self.free_id(),
            id => id,
        };
        if self.set.contains(id) {
            let empty = range.upper().is_some_and(|end| end <= range.key);
            let why = if empty { words::EMPTY } else { words::DUPLICATE };
            return Ok(words::refused(self.set.header(), why.into()));
        }
        match self.set.add(id, request) {
            Ok(header) => {
                if create.watch_id == 0 {
                    self.next_id = id.wrapping_add(1);
                }
                if create.progress_notify {
                    self.notified.insert(id, true);
                }
                self.watchers.insert(id, Watcher { range, fragment: create.fragment });
                Ok(WatchResponse { created: true, ..words::answer(header, id) })
            }
            Err(error) => Ok(words::refused(self.set.header(), refusal(error)?)),
        }
    }

    fn free_id(&self) -> i64 {
        let mut id = self.next_id;
        while self.set.contains(id) {
            id = id.wrapping_add(1);
        }
        id
    }

    /// Ends a watcher; one that is not there is passed over in silence.
    async fn cancel(&mut self, id: i64, cancel_reason: String) -> Result<(), Over> {
        if !self.set.remove(id) {
            return Ok(());
        }
        self.forget(id);
        let answer = words::answer(self.set.header(), id);
        self.send(WatchResponse { canceled: true, cancel_reason, ..answer }).await
    }

    fn forget(&mut self, id: i64) -> Option<Watcher> {
        self.notified.remove(&id);
        self.watchers.remove(&id)
    }

    async fn batch(&mut self, id: i64, batch: WatchBatch, held: Held) -> Result<(), Over> {
        let answer = words::answer(self.set.header(), id);
        let bytes = words::bytes(&batch);
        match batch {
            WatchBatch::Changes(_) | WatchBatch::Part(_) => {
                let held = self.enough(held, bytes).await?;
                let (changes, more) = match batch {
                    WatchBatch::Part(change) => (vec![change], true),
                    WatchBatch::Changes(changes) => (changes, false),
                    _ => unreachable!("it was just seen"),
                };
                let answer = WatchResponse { events: words::events(changes), ..answer };
                if let Some(idle) = self.notified.get_mut(&id) {
                    *idle = false;
                }
                if !self.watchers.get(&id).is_some_and(|watcher| watcher.fragment) {
                    return self.send_with(answer, held).await;
                }
                for mut part in fragment::parts(answer, fragment::WHOLE_BELOW) {
                    part.fragment |= more;
                    self.send_with(part, held.clone()).await?;
                }
                Ok(())
            }
            WatchBatch::Compacted(compact_revision) => {
                self.forget(id);
                self.send(WatchResponse { canceled: true, compact_revision, ..answer }).await
            }
            WatchBatch::Progress(revision) => self.send(words::answer(self.header_at(revision), id)).await,
        }
    }

    /// Room for a batch. One large revision needs more than was waited for: all of it is given back
    /// before more is asked for.
    async fn enough(&self, held: Held, bytes: usize) -> Result<Held, Over> {
        if bytes <= limits::WATCH_BATCH_BYTES {
            return Ok(held);
        }
        drop(held);
        tokio::select! {
            held = self.room.take(bytes) => Ok(held),
            () = self.out.answers.closed() => Err(Over::Gone),
        }
    }

    /// Answers the client's question how far all its watchers are.
    async fn progress(&mut self, revision: Revision) -> Result<(), Over> {
        self.asked = false;
        self.send(words::answer(self.header_at(revision), NO_WATCHER)).await
    }

    /// Tells watchers to which nothing has happened for an interval how far they are.
    async fn notify(&mut self) -> Result<(), Over> {
        let ids: Vec<(i64, bool)> = self.notified.iter().map(|(id, idle)| (*id, *idle)).collect();
        for (id, idle) in ids {
            self.notified.insert(id, true);
            let revision = if idle { self.set.progress_of(id) } else { None };
            if let Some(revision) = revision {
                self.send(words::answer(self.header_at(revision), id)).await?;
            }
        }
        Ok(())
    }

    /// From now on the set acts for the caller as users and roles are now; why it can't where the
    /// token is not valid any more. Whatever else goes wrong says nothing of the token, so it ends
    /// the stream, which a client opens again with all its watchers.
    async fn renew_caller(&mut self) -> Result<Option<String>, Over> {
        let handle = match (self.caller_now)() {
            Ok(handle) => handle.settled().await.map_err(status::status),
            Err(status) => Err(status),
        };
        match handle {
            Ok(handle) => {
                self.set.act_as(&handle);
                Ok(None)
            }
            Err(status) if status.code() == Code::Unauthenticated => Ok(Some(words::reason_of(&status))),
            Err(status) => Err(status.into()),
        }
    }

    /// Users, roles or permissions changed: ends the watchers that are not allowed any more.
    async fn recheck(&mut self) -> Result<(), Over> {
        // Whoever was nobody before may be a user now, and the other way round.
        let bad_token = self.renew_caller().await?;
        let mut refused = Vec::new();
        for (id, watcher) in &self.watchers {
            match &bad_token {
                Some(why) => refused.push((*id, why.clone())),
                None => {
                    if let Err(error) = self.set.may_watch(&watcher.range) {
                        refused.push((*id, refusal(error)?));
                    }
                }
            }
        }
        for (id, reason) in refused {
            self.cancel(id, reason).await?;
        }
        Ok(())
    }
}

/// Why one watcher is refused; what is not about it ends the stream.
fn refusal(error: Error) -> Result<String, Over> {
    match error {
        refused @ Error::Refused(_) => Ok(words::reason(refused)),
        other => Err(status::status(other).into()),
    }
}

/// Waits until the connection asks for an answer and all that were made are taken.
async fn asked_for(out: &mpsc::Sender<Queued>, hungry: &mut watch::Receiver<bool>) -> Result<(), Over> {
    hungry.wait_for(|hungry| *hungry).await.map_err(|_| Over::Gone)?;
    out.reserve().await.map(drop).map_err(|_| Over::Gone)
}

/// What is to be sent next.
enum Owed {
    Batch(i64, WatchBatch, Held),
    /// Every watcher was handed everything up to this revision.
    Progress(Revision),
}

/// Waits until the client has taken what it was given, a watcher has something, and there is room for
/// it, in this order: who waits for one of them holds nothing. What happens meanwhile is in the ring
/// or on disk. May be dropped and called again.
async fn owed(
    set: &mut WatchSet,
    out: &mpsc::Sender<Queued>,
    hungry: &mut watch::Receiver<bool>,
    room: &Room,
    asked: bool,
) -> Result<Owed, Over> {
    match tokio::time::timeout(limits::STALLED_AFTER, asked_for(out, hungry)).await {
        Ok(asked_for) => asked_for?,
        Err(_) => {
            set.let_go();
            asked_for(out, hungry).await?;
        }
    }
    let failed = |error| Over::Failed(status::status(error));
    loop {
        if asked
            && !set.is_ready()
            && let Some(revision) = set.progress()
        {
            return Ok(Owed::Progress(revision));
        }
        set.ready().await.map_err(failed)?;
        let held = room.take(limits::WATCH_BATCH_BYTES).await;
        if let Some((id, batch)) = set.try_next().map_err(failed)? {
            let held = room.shrink(held, words::bytes(&batch));
            return Ok(Owed::Batch(id, batch, held));
        }
        // Much was looked through in vain: let other tasks have a turn.
        tokio::task::yield_now().await;
    }
}

/// Ends at the next change; never where there will be none.
async fn changed(changes: &mut Option<watch::Receiver<u64>>) {
    if let Some(receiver) = changes {
        if receiver.changed().await.is_ok() {
            return;
        }
        *changes = None;
    }
    std::future::pending().await
}
