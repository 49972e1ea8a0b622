//! One open session: what its worker is to be told next, and what it says.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::super::Reported;
use super::super::store::{Clock, Store};
use super::super::words::{TaskStatus, Time};
use super::dispatcher::{Inner, NOTHING};
use super::hub::{SessionId, Signal};
use super::place::{Place, Sealer};
use super::view::Held;
use super::words::{Settings, Update};
use crate::error::{Error, NotDone, Refusal};
use crate::types::{LeaseId, NodeId};

/// A session of a worker. Dropping it ends it; the node counts as there until its heartbeats are missed.
#[derive(Debug)]
pub struct Session<S: Store, C: Clock> {
    voice: Voice<S, C>,
    sealer: Arc<Sealer>,
    signal: watch::Receiver<Signal>,
    place: Place,
    token: Bytes,
    held: Held,
    looked: u64,
    more: bool,
    begun: bool,
    sent: Time,
}

/// What a session's worker says. Clones are of the same session.
#[derive(Debug)]
pub struct Voice<S: Store, C: Clock>(Arc<Speaker<S, C>>);

impl<S: Store, C: Clock> Clone for Voice<S, C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct Speaker<S: Store, C: Clock> {
    inner: Arc<Inner<S, C>>,
    node: NodeId,
    id: SessionId,
    signal: watch::Receiver<Signal>,
    lease: Mutex<Alive>,
}

#[derive(Debug, Default)]
struct Alive {
    lease: LeaseId,
    renewed: Time,
}

impl<S: Store, C: Clock> Drop for Session<S, C> {
    fn drop(&mut self) {
        let speaker = &self.voice.0;
        speaker.inner.hub.remove(speaker.node, speaker.id);
    }
}

impl<S: Store, C: Clock> Session<S, C> {
    pub(super) fn new(
        inner: Arc<Inner<S, C>>,
        sealer: Arc<Sealer>,
        node: NodeId,
        id: SessionId,
        signal: watch::Receiver<Signal>,
    ) -> Self {
        let lease = Mutex::default();
        let speaker = Speaker { inner, node, id, signal: signal.clone(), lease };
        Self {
            voice: Voice(Arc::new(speaker)),
            sealer,
            signal,
            place: NOTHING,
            token: Bytes::new(),
            held: Held::default(),
            looked: 0,
            more: false,
            begun: false,
            sent: 0,
        }
    }

    pub(super) fn holds(&mut self, lease: LeaseId) {
        *self.voice.0.lease.lock() = Alive { lease, renewed: self.clock().now() };
    }

    pub(super) fn has(&mut self, place: Place, token: Bytes, held: Held) {
        (self.place, self.token, self.held) = (place, token, held);
        self.tell_needs();
    }

    /// What its worker says.
    pub fn voice(&self) -> Voice<S, C> {
        self.voice.clone()
    }

    /// Waits for what the worker is to be told next. The first comes at once, also where nothing is new.
    /// A wait that is dropped loses nothing; a read that fails is tried again.
    ///
    /// # Errors
    /// [`Refusal::SessionTaken`] once a newer session of the node took over, and [`Error::Stopped`].
    pub async fn next(&mut self) -> Result<Update, Error> {
        loop {
            self.voice.still_newest()?;
            let settings = self.settings();
            let signalled = self.signal.borrow().looks != self.looked;
            if self.begun && !self.more {
                let left = self.until_refresh();
                if signalled {
                    self.clock().sleep(settings.gather).await;
                } else if !left.is_zero() {
                    let clock = self.clock().clone();
                    tokio::select! {
                        // The sender is with the hub, and gone only once a newer session is there.
                        changed = self.signal.changed() => if changed.is_err() {
                            return Err(Refusal::SessionTaken.into());
                        },
                        () = clock.sleep(left) => {}
                    }
                    continue;
                }
            }
            let looks = self.signal.borrow_and_update().looks;
            match self.step(looks).await {
                Ok(Some(update)) => return Ok(update),
                Ok(None) => {}
                Err(Error::Stopped(why)) => return Err(Error::Stopped(why)),
                Err(_) => self.clock().sleep(settings.again).await,
            }
        }
    }

    async fn step(&mut self, looks: u64) -> Result<Option<Update>, Error> {
        let speaker = self.voice.0.clone();
        let store = speaker.inner.orchestrator.store();
        let step = self.held.step(store, speaker.node, &speaker.inner.settings).await?;
        if step.revision < self.place.seen {
            // Another member answered that is behind: a worker's state never goes back.
            return Err(Error::NotDone(NotDone::NoState));
        }
        let place =
            Place { base: if step.more { self.place.base } else { step.revision }, seen: step.revision };
        let clock = self.clock();
        let results_in = self.sealer.seal(speaker.node, place, [clock.random(), clock.random()]);
        let update = Update {
            applies_to: self.token.clone(),
            results_in: results_in.clone(),
            more: step.more,
            tasks: step.tasks,
            removed: step.removed,
            objects: step.objects,
            removed_objects: step.removed_objects,
        };
        let now = clock.now();
        self.looked = looks;
        if self.begun && !self.more && update.is_empty() && !step.more && !self.until_refresh().is_zero() {
            return Ok(None);
        }
        (self.place, self.token, self.held) = (place, results_in, step.held);
        (self.more, self.begun, self.sent) = (step.more, true, now);
        self.tell_needs();
        Ok(Some(update))
    }

    fn tell_needs(&self) {
        let speaker = &self.voice.0;
        speaker.inner.hub.needs(speaker.node, speaker.id, self.held.objects());
    }

    fn until_refresh(&self) -> Duration {
        let since = Duration::from_millis(self.clock().now().saturating_sub(self.sent));
        self.settings().refresh.saturating_sub(since)
    }

    fn clock(&self) -> &C {
        self.voice.0.inner.orchestrator.clock()
    }

    fn settings(&self) -> Settings {
        self.voice.0.inner.settings.clone()
    }

    /// See [`Voice::heartbeat`].
    ///
    /// # Errors
    /// As there.
    pub async fn heartbeat(&self) -> Result<Duration, Error> {
        self.voice.heartbeat().await
    }

    /// See [`Voice::report`].
    ///
    /// # Errors
    /// As there.
    pub async fn report(&self, reports: Vec<(String, TaskStatus)>) -> Result<Vec<Reported>, Error> {
        self.voice.report(reports).await
    }

    /// See [`Voice::describe`].
    ///
    /// # Errors
    /// As there.
    pub async fn describe(&self, name: String, description: Bytes) -> Result<(), Error> {
        self.voice.describe(name, description).await
    }

    /// Ends it. The node counts as there until its heartbeats are missed: a worker that goes to another
    /// member is not down in between.
    pub fn close(self) {}
}

impl<S: Store, C: Clock> Voice<S, C> {
    fn still_newest(&self) -> Result<(), Error> {
        if self.0.signal.borrow().taken { Err(Refusal::SessionTaken.into()) } else { Ok(()) }
    }

    /// The node is there; when it is to say so again. More of them than are asked for do nothing.
    ///
    /// # Errors
    /// [`Refusal::SessionTaken`] once a newer session of the node took over, and the store's.
    pub async fn heartbeat(&self) -> Result<Duration, Error> {
        self.still_newest()?;
        let Speaker { inner, node, id, lease, .. } = &*self.0;
        let (orchestrator, settings) = (&inner.orchestrator, &inner.settings);
        let now = orchestrator.clock().now();
        let (held, renewed) = {
            let alive = lease.lock();
            (alive.lease, alive.renewed)
        };
        let beat = settings.beat(orchestrator.clock().random());
        if Duration::from_millis(now.saturating_sub(renewed)) < settings.heartbeat / 3 {
            return Ok(beat);
        }
        let held = match orchestrator.store().lease_keep_alive(held).await {
            Ok(()) => held,
            Err(Error::Refused(Refusal::LeaseNotFound { .. })) => {
                inner.appear(*node, *id, false).await?.ok_or(Refusal::SessionTaken)?
            }
            Err(error) => return Err(error),
        };
        *lease.lock() = Alive { lease: held, renewed: now };
        Ok(beat)
    }

    /// What became of the node's tasks; committed when it returns. One answer for each: what is not there
    /// and what is not the node's are the same. It shares its transaction with what other sessions of this
    /// member report meanwhile.
    ///
    /// # Errors
    /// [`Refusal::SessionTaken`], [`Refusal::Invalid`] for more than the [bounds](Settings) allow, and the
    /// store's.
    pub async fn report(&self, reports: Vec<(String, TaskStatus)>) -> Result<Vec<Reported>, Error> {
        self.still_newest()?;
        let Settings { max_reports, max_text, .. } = self.0.inner.settings;
        if reports.len() > max_reports {
            return Err(Refusal::invalid("report", format!("it has more than {max_reports} statuses")).into());
        }
        let too_long = |(id, status): &(String, TaskStatus)| {
            id.len() > max_text || status.message.len() > max_text || status.error.len() > max_text
        };
        if reports.iter().any(too_long) {
            return Err(Refusal::invalid("report", format!("a text has more than {max_text} bytes")).into());
        }
        if reports.is_empty() {
            return Ok(Vec::new());
        }
        let Inner { orchestrator, reports: gathered, .. } = &*self.0.inner;
        gathered.report(orchestrator, self.0.node, reports).await
    }

    /// What the node says of itself.
    ///
    /// # Errors
    /// As [`report`](Self::report).
    pub async fn describe(&self, name: String, description: Bytes) -> Result<(), Error> {
        self.still_newest()?;
        let Settings { max_text, max_description, .. } = self.0.inner.settings;
        if name.len() > max_text || description.len() > max_description {
            let why = format!("a name has at most {max_text} bytes, a description {max_description}");
            return Err(Refusal::invalid("description", why).into());
        }
        self.0.inner.orchestrator.describe_node(self.0.node, name, description).await.map(drop)
    }
}
