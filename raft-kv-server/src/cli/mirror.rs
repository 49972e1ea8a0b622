//! `mirror`: the same copy, then each revision of the source as one transaction here, in order and
//! once, until it is told to stop. It goes on through lost connections; where the source has
//! compacted what is missing here, it compares everything again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use etcd_api::etcdserverpb::watch_request::RequestUnion;
use etcd_api::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use etcd_api::mvccpb::Event;
use etcd_api::mvccpb::event::EventType;
use raft_kv::types::Revision;
use raft_kv_server::foreign::{Following, is_passing};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use crate::args::MirrorArgs;
use crate::failure::{Failure, Kind};
use crate::moving::reader::{Item, source_failure};
use crate::moving::target::Write;
use crate::moving::{MARKER, Moving, head};
use crate::output::Output;

/// How often the source is asked how far the watch has come.
const ASK: Duration = Duration::from_millis(250);
/// How often leases are compared and the lag is looked up.
const LEVEL: Duration = Duration::from_secs(2);
/// Without an event for this long, a note of progress is believed: some versions of etcd let it
/// overtake events.
const QUIET: Duration = Duration::from_secs(1);
/// A watch that has said nothing for this long is begun again.
const SILENCE: Duration = Duration::from_secs(30);

/// `raft-kv mirror`.
pub async fn run(args: &MirrorArgs, output: &mut Output) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let mut moving = Moving::begin(&args.moving, output).await?;
    let mut stop_at = None;
    loop {
        let revision = tokio::select! {
            copied = moving.copy() => copied?,
            () = signals.next() => {
                let why = "stopped while copying; the same command goes on with the move";
                return Err(Failure::new(Kind::NotDone, why));
            }
        };
        if args.until_level && stop_at.is_none() {
            stop_at = Some(head(&moving.source).await?.0);
        }
        let mut mirror = Mirror { applied: revision, told: revision, stop_at, ..Mirror::default() };
        match mirror.follow(&mut moving, &mut signals).await? {
            End::Level(revision) => {
                moving.leases.level().await?;
                if let Some(verified) = moving.verify(revision).await? {
                    return moving.finish(revision, &verified, output).await;
                }
                // Compared at another revision, then.
                stop_at = Some(head(&moving.source).await?.0);
            }
            End::Behind(why) => {
                moving.progress.say("mirror", why);
                if mirror.stop_at.is_some() {
                    stop_at = Some(head(&moving.source).await?.0);
                }
            }
        }
    }
}

/// Why following ended.
enum End {
    /// Ours is what the source was at this revision, where it was to stop.
    Level(Revision),
    /// Events are missing: everything has to be compared again.
    Behind(&'static str),
}

/// Where following is.
#[derive(Default)]
struct Mirror {
    /// Ours is what the source was at this revision.
    applied: Revision,
    /// The source has said that the watch has nothing more up to here.
    told: Revision,
    /// The newest revision that the source is known to have.
    newest: Revision,
    /// Where to end.
    stop_at: Option<Revision>,
    /// Events that have come and are not applied.
    waiting: VecDeque<Event>,
}

impl Mirror {
    /// Follows the source from behind what is applied.
    async fn follow(&mut self, moving: &mut Moving, signals: &mut Signals) -> Result<End, Failure> {
        loop {
            self.waiting.clear();
            let following = match moving.source.watch(create(self.applied + 1)).await {
                Ok(following) => following,
                Err(status) => return Err(source_failure(&status)),
            };
            if let Some(end) = self.stream(following, moving, signals).await? {
                return Ok(end);
            }
            tracing::debug!("the watch broke, going on from the source's revision {}", self.applied + 1);
            tokio::time::sleep(ASK).await;
        }
    }

    /// One watch; `None` where it broke.
    async fn stream(
        &mut self,
        mut following: Following,
        moving: &mut Moving,
        signals: &mut Signals,
    ) -> Result<Option<End>, Failure> {
        let mut ask = ticks(ASK);
        let mut level = ticks(LEVEL);
        let (mut heard, mut last_event) = (Instant::now(), Instant::now());
        loop {
            if let Some(stop_at) = self.stop_at {
                let quiet = self.told >= stop_at && last_event.elapsed() >= QUIET;
                if self.applied >= stop_at || quiet {
                    return Ok(Some(End::Level(stop_at)));
                }
            }
            tokio::select! {
                message = following.stream.message() => {
                    let response = match message {
                        Ok(Some(response)) => response,
                        Ok(None) => return Ok(None),
                        Err(status) if is_passing(&status) => return Ok(None),
                        Err(status) => return Err(source_failure(&status)),
                    };
                    heard = Instant::now();
                    if !response.events.is_empty() {
                        last_event = heard;
                    }
                    if let Some(end) = self.take(response, moving).await? {
                        return Ok(Some(end));
                    }
                    moving.progress.lag(self.applied, (self.newest - self.applied).max(0));
                }
                _ = ask.tick() => {
                    let request = RequestUnion::ProgressRequest(WatchProgressRequest {});
                    // The stream itself says when it is broken.
                    let _ = following.ask.try_send(WatchRequest { request_union: Some(request) });
                    if heard.elapsed() > SILENCE {
                        return Ok(None);
                    }
                }
                _ = level.tick() => {
                    moving.leases.level().await?;
                    if moving.leases.take_lost() {
                        return Ok(Some(End::Behind("a lease ended here too early, comparing everything again")));
                    }
                    self.newest = self.newest.max(head(&moving.source).await?.0);
                    moving.progress.lag(self.applied.max(self.told), (self.newest - self.applied.max(self.told)).max(0));
                }
                () = signals.next() => {
                    if self.stop_at.is_some() {
                        return Err(Failure::new(Kind::NotDone, "stopped at once; the same command goes on with the move"));
                    }
                    let (revision, _) = head(&moving.source).await?;
                    moving.progress.say("mirror", &format!("stopping at the source's revision {revision}; a second signal stops at once"));
                    self.stop_at = Some(revision);
                }
            }
        }
    }

    /// Takes in what the source said, and applies every revision that is complete.
    async fn take(&mut self, response: WatchResponse, moving: &mut Moving) -> Result<Option<End>, Failure> {
        if response.compact_revision != 0 {
            return Ok(Some(End::Behind(
                "the source has compacted what is missing here, comparing everything again",
            )));
        }
        if response.canceled {
            let why = format!("the source ended the watch: {}", response.cancel_reason);
            return Err(Failure::new(Kind::Refused, why));
        }
        let seen = response.header.map_or(0, |header| header.revision);
        self.newest = self.newest.max(seen);
        if response.events.is_empty() && !response.created && self.waiting.is_empty() {
            self.told = self.told.max(seen);
        }
        // Behind a fragment the last revision may go on in the next one.
        let complete = |rest: &VecDeque<Event>, revision| {
            !response.fragment || rest.back().is_some_and(|last| revision_of(last) != revision)
        };
        self.waiting.extend(response.events);
        while let Some(first) = self.waiting.front() {
            let revision = revision_of(first);
            if self.stop_at.is_some_and(|stop_at| revision > stop_at) {
                return Ok(Some(End::Level(self.stop_at.expect("just looked"))));
            }
            if !complete(&self.waiting, revision) {
                break;
            }
            let count = self.waiting.iter().take_while(|event| revision_of(event) == revision).count();
            let writes: Vec<Write> = self.waiting.drain(..count).filter_map(write_of).collect();
            if revision > self.applied {
                moving.target.follow(revision, &writes, &moving.leases).await?;
                self.applied = revision;
                moving.progress.lag(self.applied, (self.newest - self.applied).max(0));
            }
        }
        Ok(None)
    }
}

fn create(start_revision: Revision) -> WatchRequest {
    let create = WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision,
        progress_notify: true,
        fragment: true,
        ..WatchCreateRequest::default()
    };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

fn revision_of(event: &Event) -> Revision {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

fn write_of(event: Event) -> Option<Write> {
    let is_put = event.r#type() == EventType::Put;
    let kv = event.kv.filter(|kv| kv.key != MARKER)?;
    Some(if is_put {
        Write::Put(Item { key: kv.key, value: kv.value, lease: kv.lease })
    } else {
        Write::Delete(kv.key)
    })
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let watch = |kind| {
            signal(kind)
                .map_err(|error| Failure::new(Kind::Stopped, format!("can't watch for signals: {error}")))
        };
        Ok(Self { interrupt: watch(SignalKind::interrupt())?, terminate: watch(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
