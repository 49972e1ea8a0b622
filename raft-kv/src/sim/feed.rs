//! What a member does with committed entries: batches, flushes, checkpoints and snapshots on their way.
//!
//! What may take several batches takes an event for each, so that anything may happen in between.

use std::time::Duration;

use rand::Rng;

use super::cluster::{COMPARE_EVERY, Cluster, Event, Happening, HostId, WatchKey};
use super::member::Feed;
use super::rot::SimStore;
use super::scheduler::span;
use crate::error::StorageFailed;
use crate::machine::{self, Answer, Read, Store};
use crate::node::apply::{Under, Work};
use crate::node::replica::Input;
use crate::node::wire::PeerFrame;
use crate::raft::PeerMessage;
use crate::types::{Change, Committed, NodeId, PointReply, Revision, SnapshotMeta};
use crate::watch::{Hub, WatcherId};

/// The longest installation of a received snapshot.
const INSTALL: Duration = Duration::from_millis(600);

impl Cluster {
    pub(super) fn feed_with(&mut self, host: HostId, item: Feed) {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        process.feed.push_back(item);
        self.feed_soon(host);
    }

    pub(super) fn feed_soon(&mut self, host: HostId) {
        let most = self.hosts[host].speed.apply;
        let process = self.hosts[host].process.as_mut().expect("it runs");
        if !process.feeding && !process.feed.is_empty() {
            process.feeding = true;
            let life = process.life;
            // To put a whole state in the place of another takes its time.
            let installs = matches!(process.feed.front(), Some(Feed::Work(Work::Install(_))));
            let most = if installs { most.max(INSTALL) } else { most };
            let delay = span(&mut self.chances.delays, Duration::from_micros(10), most);
            self.scheduler.after(delay, Event::Feed(host, life));
        }
    }

    pub(super) fn feed(&mut self, host: HostId) {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        process.feeding = false;
        if process.under.is_some() {
            return match self.advance(host) {
                Ok(()) => self.feed_soon(host),
                Err(failed) => self.failed(host, failed),
            };
        }
        let Some(item) = process.next_feed(COMPARE_EVERY) else { return };
        let done = match item {
            Feed::Work(Work::Entries(entries)) => self.apply(host, entries),
            Feed::Work(Work::Install(meta)) => self.install(host, &meta),
            Feed::Checkpoint => {
                self.checkpoint(host);
                Ok(())
            }
            Feed::Flush => {
                self.flush(host);
                Ok(())
            }
        };
        match done {
            Ok(()) => self.feed_soon(host),
            Err(failed) => self.failed(host, failed),
        }
    }

    pub(super) fn apply(&mut self, host: HostId, entries: Vec<Committed>) -> Result<(), StorageFailed> {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        process.under = Some(process.applier.begin(entries));
        self.advance(host)
    }

    /// Whether a member's state has an entry half done.
    pub(super) fn is_half(&self, host: HostId) -> bool {
        self.hosts[host].store.view(machine::read::half_done).expect("memory does not fail")
    }

    /// Writes the next batches of what is applied. Where an entry is half done then, everything else
    /// may happen before it goes on, but for what the feed does.
    pub(super) fn advance(&mut self, host: HostId) -> Result<(), StorageFailed> {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let mut under = process.under.take().expect("something was begun");
        while process.applier.advance(&mut under)? {
            if process.applier.store().view(machine::read::half_done)? {
                process.under = Some(under);
                process.feeding = true;
                let life = process.life;
                let longest =
                    Duration::from_millis(if self.chances.delays.random_bool(0.2) { 40 } else { 4 });
                let delay = span(&mut self.chances.delays, Duration::from_micros(10), longest);
                self.scheduler.after(delay, Event::Feed(host, life));
                self.counts.half += 1;
                self.happened.push(Happening::Half(host));
                if self.chances.delays.random_bool(0.05) {
                    self.hosts[host].served().flush()?;
                }
                return Ok(());
            }
        }
        self.applied(host, under)
    }

    /// The last batch is written: everyone is told.
    pub(super) fn applied(&mut self, host: HostId, under: Under) -> Result<(), StorageFailed> {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let outcomes = under.done().outcomes.clone();
        let (report, mut changes) = process.applier.finish(under)?;
        let life = process.life;
        let rolled = |outcome: &machine::Outcome| {
            matches!(outcome.result, Ok(Answer::Point(PointReply::RolledBack(_))))
        };
        let living = if outcomes.iter().any(rolled) {
            let leases = process.applier.store().view(machine::read::leases)?;
            Some(leases.into_iter().map(|(id, _)| id).collect())
        } else {
            None
        };
        let mut woken = Vec::new();
        let mut done = 0;
        for &revision in &report.large {
            let at = changes.partition_point(|change| change.revision < revision);
            woken.extend(process.hub.publish(changes[done..at].to_vec()));
            let (change, ids) =
                process.applier.store().view(|view| publish_large(&mut process.hub, view, revision))?;
            woken.extend(ids);
            changes.insert(at, change);
            done = at + 1;
        }
        woken.extend(process.hub.publish(changes[done..].to_vec()));
        for id in woken {
            let delay = span(&mut self.chances.delays, Duration::from_micros(10), Duration::from_millis(2));
            self.scheduler.after(delay, Event::Watch(WatchKey { host, life, id }));
        }
        self.trace.fold(&[report.applied.index, report.revision as u64]);
        self.happened.push(Happening::Applied {
            host,
            at: report.applied.clone(),
            revision: report.revision,
            changes,
            leases: report.leases.clone(),
            outcomes,
            living,
            installed: false,
        });
        if report.trust {
            self.trust_changed(host);
        }
        self.input(host, Input::Applied(report));
        // The store flushes by itself too, whenever its memory is full; and compacts.
        if self.chances.delays.random_bool(0.02) {
            self.hosts[host].served().flush()?;
        }
        if self.chances.delays.random_bool(0.2) {
            self.hosts[host].process.as_mut().expect("it runs").applier.collect()?;
        }
        Ok(())
    }

    pub(super) fn install(&mut self, host: HostId, meta: &SnapshotMeta) -> Result<(), StorageFailed> {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let accepted = process.incoming.accepted.take();
        let Some((_, store)) = accepted.filter(|(at, _)| at.index == meta.index && at.term == meta.term)
        else {
            let why = format!("the snapshot up to entry {} that raft accepted is not here", meta.index);
            return Err(StorageFailed::damaged("incoming", why));
        };
        self.counts.half_installs += u64::from(self.is_half(host));
        self.hosts[host].store.replace(&store.sound);
        self.hosts[host].rot.replace(&store.rot);
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let report = process.applier.installed(meta)?;
        let life = process.life;
        for id in process.hub.advance(report.revision) {
            self.scheduler.after(Duration::from_micros(100), Event::Watch(WatchKey { host, life, id }));
        }
        self.counts.snapshots_installed += 1;
        self.trace.line(self.scheduler.now(), || format!("m{host} installs {meta:?}"));
        self.happened.push(Happening::Applied {
            host,
            at: report.applied.clone(),
            revision: report.revision,
            changes: Vec::new(),
            leases: Vec::new(),
            outcomes: Vec::new(),
            living: None,
            installed: true,
        });
        self.trust_changed(host);
        self.input(host, Input::Applied(report));
        Ok(())
    }

    pub(super) fn checkpoint(&mut self, host: HostId) {
        self.counts.half_checkpoints += u64::from(self.is_half(host));
        let store = self.hosts[host].served().snapshot();
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let meta = process.applier.applied();
        process.checkpoint = Some((meta.clone(), store));
        self.input(host, Input::CheckpointMade(meta));
    }

    pub(super) fn flush(&mut self, host: HostId) {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let (life, meta) = (process.life, process.applier.applied());
        if self.hosts[host].served().flush().is_err() {
            // Its state is condemned: it ends soon.
            return;
        }
        let delay = span(&mut self.chances.delays, Duration::from_millis(1), Duration::from_millis(100));
        self.scheduler.after(delay, Event::Flushed(host, life, Box::new(meta)));
    }

    // ---- snapshots ----

    pub(super) fn send_snapshot(&mut self, host: HostId, to: NodeId, message: PeerMessage) {
        let from = self.hosts[host].id;
        self.counts.snapshots_sent += 1;
        let process = self.hosts[host].process.as_ref().expect("it took the turn");
        let meta = message.snapshot_meta().expect("a snapshot's message says which");
        let time = span(&mut self.chances.transfers, Duration::from_millis(2), Duration::from_millis(400));
        let lost = self.chances.transfers.random_bool(0.1);
        let store = process.checkpoint.as_ref().filter(|(at, _)| at.index == meta.index);
        match store {
            Some((_, store)) if !lost && !self.network.is_cut(from, to) => {
                let store = store.snapshot();
                let message = Box::new(message);
                self.scheduler.after(time, Event::Snapshot { from, to, message, store });
            }
            _ => {
                self.counts.snapshots_lost += 1;
                self.scheduler.after(time, Event::SnapshotSent { from, to, ok: false });
            }
        }
    }

    pub(super) fn snapshot(&mut self, from: NodeId, to: NodeId, message: PeerMessage, store: SimStore) {
        let cut = self.network.is_cut(from, to) || self.network.is_cut(to, from);
        let cut = cut || !self.connected(from, to);
        let taker = self.running(to).filter(|host| !cut && !self.hosts[*host].removed.contains(&from));
        let busy = |process: &super::member::Process| {
            process.incoming.whole.is_some() || process.incoming.accepted.is_some()
        };
        let taker = taker.filter(|host| self.hosts[*host].process.as_ref().is_some_and(|it| !busy(it)));
        // It reads all of what it was sent before that may take the place of its state.
        let damaged = store.rot.is_there(&store.sound) && !crate::planted!(InstallDamaged);
        self.counts.damaged_snapshots += u64::from(taker.is_some() && damaged);
        let taker = taker.filter(|_| !damaged);
        let ok = taker.is_some();
        self.counts.snapshots_lost += u64::from(!ok);
        if let Some(host) = taker {
            let meta = message.snapshot_meta().expect("a snapshot's message says which");
            let process = self.hosts[host].process.as_mut().expect("it runs");
            process.incoming.whole = Some((meta, store));
            process.frames.push((from, PeerFrame::Raft(message)));
            self.turn_soon(host);
        }
        self.scheduler.after(Duration::from_millis(1), Event::SnapshotSent { from, to, ok });
    }
}

/// Publishes a revision that the machine did not hold, as the shell does; with its events, for checks.
fn publish_large(
    hub: &mut Hub,
    view: &dyn Read,
    revision: Revision,
) -> Result<(Change, Vec<WatcherId>), StorageFailed> {
    hub.begin_large();
    for part in 0.. {
        let Some(keys) = machine::read::keys_changed(view, revision, part)? else { break };
        hub.note_large(revision, &keys);
    }
    let woken = hub.publish_large(revision);
    let changes = machine::read::history(view, revision, revision, usize::MAX)?.expect("it was just made");
    let change = changes.into_iter().next().expect("it was just made");
    Ok((change, woken))
}
