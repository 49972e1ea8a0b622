//! A watch as its caller holds it: local or over QUIC.
//!
//! One over QUIC goes on by itself on another connection, behind what it handed out last, where its
//! connection breaks, its member leaves or the certificate is exchanged. It must never hand out an event
//! twice nor leave one out: where the history in between is gone, it says so.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::api::{Call, Reply};
use super::remote::{Opened, Remote, read_answer};
use crate::error::{Error, NotDone, Refusal, Unknown};
use crate::net::Dialer;
use crate::node::shell::Subscription;
use crate::types::{Change, Revision, WatchBatch, WatchRequest};

/// How long a watch that broke looks for a member that serves it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause after a member that took the watch up and let it down again at once.
const PAUSE: Duration = Duration::from_millis(50);

/// Why the node ended, once it has.
pub(super) type Ended = watch::Receiver<Option<Error>>;

enum Source {
    Local(Box<Subscription>, Ended, Option<Duration>),
    Remote(Box<Distant>),
}

/// Follows keys until it is dropped.
pub struct Watch {
    source: Source,
    ended: bool,
}

impl Watch {
    pub(super) fn local(subscription: Subscription, ended: Ended, notify: Option<Duration>) -> Self {
        Self { source: Source::Local(Box::new(subscription), ended, notify), ended: false }
    }

    /// Begins a watch at whichever member takes it, within `patience`.
    pub(super) async fn remote(
        remote: Arc<Remote>,
        request: WatchRequest,
        patience: Duration,
    ) -> Result<Self, Error> {
        let certificates = remote.certificates();
        let mut distant = Distant {
            remote,
            request,
            stream: None,
            certificates,
            broken: None,
            tries: 0,
            handed: (0, 0),
            again: 0,
        };
        distant.begin(Instant::now() + patience).await?;
        Ok(Self { source: Source::Remote(Box::new(distant)), ended: false })
    }

    /// The next batch: whole revisions in order, none missing, none twice; a revision that is too
    /// large to be held comes in [parts](WatchBatch::Part). `None` after a [`WatchBatch::Compacted`]. May be dropped and called again.
    ///
    /// # Errors
    /// The node in this process stopped; or for 30 seconds no member elsewhere took the watch up again
    /// (the next call looks for another 30), or those that did refuse it.
    pub async fn next(&mut self) -> Result<Option<WatchBatch>, Error> {
        if self.ended {
            return Ok(None);
        }
        let batch = match &mut self.source {
            Source::Local(subscription, ended, notify) => tokio::select! {
                batch = next_local(subscription, *notify) => batch?,
                why = over(ended) => return Err(why),
            },
            Source::Remote(stream) => stream.next().await?,
        };
        self.ended = matches!(batch, None | Some(WatchBatch::Compacted(_)));
        Ok(batch)
    }
}

/// Waits until the node has ended; says why.
pub(super) async fn over(ended: &mut Ended) -> Error {
    let why = ended.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
    why.unwrap_or(Error::NotDone(NotDone::ShuttingDown))
}

async fn next_local(
    subscription: &mut Subscription,
    notify: Option<Duration>,
) -> Result<Option<WatchBatch>, Error> {
    let Some(every) = notify else {
        return subscription.next().await;
    };
    loop {
        match tokio::time::timeout(every, subscription.next()).await {
            Ok(batch) => return batch,
            Err(_) => {
                if let Some(revision) = subscription.progress() {
                    return Ok(Some(WatchBatch::Progress(revision)));
                }
            }
        }
    }
}

/// A watch at a member elsewhere.
struct Distant {
    remote: Arc<Remote>,
    /// Its start is the first revision that has not been handed out.
    request: WatchRequest,
    /// `None` between two connections.
    stream: Option<Opened>,
    certificates: watch::Receiver<u64>,
    /// Since when nothing has come because there is no connection.
    broken: Option<Instant>,
    /// Connections since the last answer.
    tries: u32,
    /// The revision of which some was handed out, and how many of its events.
    handed: (Revision, usize),
    /// How many events of that revision come a second time on this connection.
    again: usize,
}

impl Distant {
    async fn begin(&mut self, deadline: Instant) -> Result<(), Error> {
        self.certificates.mark_unchanged();
        let opened = self.remote.open(&Call::Watch(self.request.clone()), deadline).await?;
        if !matches!(opened.first, Reply::Done) {
            let what = format!("a watch was answered {:?}", opened.first);
            return Err(Refusal::Malformed { what }.into());
        }
        if self.request.start_revision == 0 {
            // From now on is from a revision on, should this connection break before the first event.
            self.request.start_revision = opened.header.revision + 1;
        }
        self.again = if self.handed.0 == self.request.start_revision { self.handed.1 } else { 0 };
        self.stream = Some(opened);
        Ok(())
    }

    /// Takes the watch up again. May be dropped and called again.
    async fn resume(&mut self) -> Result<(), Error> {
        let since = *self.broken.get_or_insert_with(Instant::now);
        if self.tries > 1 {
            tokio::time::sleep(PAUSE).await;
        }
        self.tries += 1;
        let begun = self.begin(since + PATIENCE).await;
        if begun.is_err() {
            self.broken = None;
        }
        begun
    }

    /// May be dropped and called again.
    async fn next(&mut self) -> Result<Option<WatchBatch>, Error> {
        loop {
            let Some(opened) = &mut self.stream else {
                self.resume().await?;
                continue;
            };
            let frame = tokio::select! {
                // The cluster waits until nothing rests on the old certificate any more.
                _ = self.certificates.changed() => {
                    self.stream = None;
                    continue;
                }
                frame = opened.stream.next() => frame,
            };
            let answered = match frame {
                Ok(Some(frame)) => read_answer(frame),
                // It says so where it ends a watch; the rest is a connection that broke, whatever with.
                Ok(None) | Err(_) => Err(Error::Unknown(Unknown::ConnectionLost)),
            };
            match answered {
                Ok((_, Reply::Watch(batch))) => {
                    (self.broken, self.tries) = (None, 0);
                    let Some(batch) = leave_out(batch, self.handed.0, &mut self.again) else { continue };
                    self.note(&batch);
                    return Ok(Some(batch));
                }
                Ok((_, other)) => {
                    let what = format!("a watch was answered {other:?}");
                    return Err(Refusal::Malformed { what }.into());
                }
                Err(Error::NotDone(_) | Error::Unknown(_) | Error::Stopped(_)) => {
                    let dialer: Arc<Dialer> = opened.dialer.clone();
                    self.remote.give_up(&dialer);
                    self.stream = None;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Remembers what is handed out.
    fn note(&mut self, batch: &WatchBatch) {
        let last = match batch {
            WatchBatch::Changes(changes) => changes.last().map_or(0, |change| change.revision),
            WatchBatch::Progress(revision) => *revision,
            WatchBatch::Compacted(_) => 0,
            WatchBatch::Part(change) => {
                // Taken up again, the revision comes from its start.
                if self.handed.0 != change.revision {
                    self.handed = (change.revision, 0);
                }
                self.handed.1 += change.events.len();
                self.request.start_revision = self.request.start_revision.max(change.revision);
                return;
            }
        };
        let next = if crate::planted!(ResumeWithLast) { last } else { last + 1 };
        self.request.start_revision = self.request.start_revision.max(next);
    }
}

/// What of a batch was not handed out before, where `again` events of a revision were.
fn leave_out(batch: WatchBatch, revision: Revision, again: &mut usize) -> Option<WatchBatch> {
    let mut fresh = |change: &mut Change| {
        let known = if change.revision == revision { (*again).min(change.events.len()) } else { 0 };
        change.events.drain(..known);
        *again -= known;
        !change.events.is_empty()
    };
    match batch {
        WatchBatch::Part(mut change) => fresh(&mut change).then_some(WatchBatch::Part(change)),
        WatchBatch::Changes(mut changes) => {
            changes.retain_mut(&mut fresh);
            // Who was handed a part must hear that there is no more of it.
            Some(if changes.is_empty() {
                WatchBatch::Progress(revision)
            } else {
                WatchBatch::Changes(changes)
            })
        }
        WatchBatch::Progress(_) | WatchBatch::Compacted(_) => Some(batch),
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("ended", &self.ended).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Event, EventKind, KeyValue};

    fn change(revision: Revision, keys: &str) -> Change {
        let event = |key: char| Event {
            kind: EventKind::Put,
            kv: KeyValue { key: key.to_string().into(), ..KeyValue::default() },
            prev: None,
        };
        Change { revision, events: keys.chars().map(event).collect() }
    }

    /// Of revision 5 so many events were handed out: what is left of the batches of a new connection.
    fn check(mut again: usize, batches: Vec<WatchBatch>, expect: &[WatchBatch]) {
        let left: Vec<_> = batches.into_iter().filter_map(|batch| leave_out(batch, 5, &mut again)).collect();
        assert_eq!(left, expect);
    }

    #[test]
    fn a_watch_taken_up_in_the_midst_of_a_revision_hands_nothing_out_twice() {
        use WatchBatch::{Changes, Part, Progress};
        check(0, vec![Part(change(5, "ab"))], &[Part(change(5, "ab"))]);
        check(
            3,
            vec![Part(change(5, "ab")), Part(change(5, "cd")), Changes(vec![change(5, "e"), change(6, "a")])],
            &[Part(change(5, "d")), Changes(vec![change(5, "e"), change(6, "a")])],
        );
        // All of it was handed out, but not that there is no more.
        check(2, vec![Changes(vec![change(5, "ab")])], &[Progress(5)]);
        check(2, vec![Changes(vec![change(5, "ab"), change(6, "a")])], &[Changes(vec![change(6, "a")])]);
        check(2, vec![Part(change(5, "ab")), Progress(5)], &[Progress(5)]);
    }
}
