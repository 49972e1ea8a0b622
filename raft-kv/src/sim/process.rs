//! What a machine's process does between its events: turns of the loop, frames, writes of the log.
//!
//! It takes the place of `node/shell` and has no opinion of its own.

use std::time::Duration;

use bytes::Bytes;
use rand::{Rng, RngCore};

use super::cluster::{Cluster, Event, Happening, HostId};
use super::member::{Feed, Start, Stop, may_repeat, tick};
use super::scheduler::span;
use crate::codec::Wire;
use crate::error::{Error, StorageFailed, Unknown};
use crate::machine::{self, Store};
use crate::node::apply::Work;
use crate::node::ask::{Ticket, Told};
use crate::node::replica::{Effects, Input};
use crate::node::wire::PeerFrame;
use crate::storage::log::{Durable, LogWrite};
use crate::types::NodeId;

/// A member without a leader for this long asks whether it still is a member.
const LEADERLESS: Duration = Duration::from_secs(3);
/// The longest pause between two rounds of the scrub.
const SCRUB: Duration = Duration::from_secs(8);
/// The longest until a process ends whose state was found damaged.
const GUARD: Duration = Duration::from_millis(250);

impl Cluster {
    pub(super) fn handle(&mut self, event: Event) {
        let now = self.now().as_nanos() as u64;
        if let Some((host, life)) = place_of(&event) {
            self.trace.fold(&[now, host as u64, life]);
            let Some(process) = self.hosts[host].process.as_ref().filter(|process| process.life == life)
            else {
                return;
            };
            if process.paused_until > self.now() {
                let until = process.paused_until;
                return self.scheduler.at(until, event);
            }
        }
        match event {
            Event::Tick(host, life) => self.tick(host, life),
            Event::Turn(host, _) => self.turn(host),
            Event::Persist(host, life) => self.persist(host, life),
            Event::Durable(host, _, proof) => self.durable(host, proof),
            Event::Feed(host, _) => self.feed(host),
            Event::Flushed(host, _, meta) => self.input(host, Input::Flushed(*meta)),
            Event::Watch(key) => self.serve_watch(key),
            Event::Frame { from, to, bytes } => self.frame(from, to, bytes),
            Event::Snapshot { from, to, message, store } => self.snapshot(from, to, *message, store),
            Event::SnapshotSent { from, to, ok } => {
                if let Some(host) = self.running(from) {
                    self.input(host, Input::SnapshotSent { to, ok });
                }
            }
            Event::Unreachable { at, peer } => {
                if let Some(host) = self.running(at) {
                    self.input(host, Input::Unreachable(peer));
                }
            }
            Event::Join(host) => self.look_for_door(host),
            Event::Start(host, life) => self.start(host, life),
            Event::Keep(host, _) => self.keep(host),
            Event::Leaf(host, _, leaf) => self.take_leaf(host, leaf),
            Event::Recheck(host, _) => self.recheck(host),
            Event::Scrub(host, life) => {
                // What it finds condemns the state.
                let _ = self.hosts[host].served().scrub();
                self.scrub_later(host, life);
            }
            Event::Guard(host, _) => {
                if let Some(failed) = self.hosts[host].rot.failure() {
                    self.failed(host, failed);
                }
            }
            Event::Timer(token) => self.happened.push(Happening::Timer(token)),
        }
    }

    pub(super) fn running(&self, id: NodeId) -> Option<HostId> {
        self.place.get(&id).copied().filter(|host| self.hosts[*host].runs() && self.hosts[*host].id == id)
    }

    pub(super) fn start(&mut self, host: HostId, life: u64) {
        let stale = self.hosts[host].life != life || self.hosts[host].runs();
        if stale || !self.hosts[host].member {
            return;
        }
        let start = Start {
            cluster: self.id,
            boot: self.chances.ids.next_u64() | 1,
            seed: self.chances.ids.next_u64(),
            now: self.now(),
            log: self.options.log,
            bounds: self.options.bounds,
            ring_bytes: self.options.ring_bytes,
            step_keys: self.options.step_keys,
        };
        match self.hosts[host].start(&start) {
            Ok(()) => {
                let life = self.hosts[host].life;
                self.counts.half_starts += u64::from(self.is_half(host));
                self.trace
                    .line(self.scheduler.now(), || format!("m{host} starts as {}", self.hosts[host].id));
                self.scheduler.after(tick(&self.hosts[host].speed), Event::Tick(host, life));
                self.happened.push(Happening::Started(host));
                self.look_soon(host);
                self.scrub_later(host, life);
            }
            Err(why) => {
                self.hosts[host].rot.restart();
                let damaged = matches!(&why, Stop::Storage(failed) if failed.is_damage());
                self.counts.damaged_starts += u64::from(damaged);
                self.trace.line(self.scheduler.now(), || format!("m{host} can't start: {why:?}"));
                // A disk that is full or fails holds what it held; one that was damaged does not.
                let lost = !matches!(&why, Stop::Storage(failed) if !failed.is_damage());
                if lost {
                    self.lose(host);
                }
                self.happened.push(Happening::Stopped(host, why));
            }
        }
    }

    fn scrub_later(&mut self, host: HostId, life: u64) {
        let delay = span(&mut self.chances.rot, Duration::from_millis(500), SCRUB);
        self.scheduler.after(delay, Event::Scrub(host, life));
    }

    /// Whose state was found damaged ends soon; until then nothing is served.
    pub(super) fn guard(&mut self) {
        for host in 0..self.hosts.len() {
            let member = &mut self.hosts[host];
            if member.noted.is_some() || !member.hurt || member.process.is_none() {
                continue;
            }
            if let Some(damage) = member.rot.failure() {
                member.noted = Some(damage);
                let life = member.life;
                self.counts.condemned += 1;
                self.happened.push(Happening::Condemned(host));
                let delay = span(&mut self.chances.rot, Duration::from_micros(10), GUARD);
                self.scheduler.after(delay, Event::Guard(host, life));
            }
        }
    }

    /// The machine's data can't be used any more: it joins anew under a new id.
    pub(super) fn lose(&mut self, host: HostId) {
        self.hosts[host].member = false;
        self.scheduler.after(Duration::from_millis(200), Event::Join(host));
    }

    pub(super) fn end(&mut self, host: HostId, power: bool, why: Stop) {
        self.trace.line(self.scheduler.now(), || format!("m{host} ends: {why:?}, power {power}"));
        self.trace.fold(&[host as u64, u64::from(power)]);
        self.disconnect(host);
        self.counts.half_ends += u64::from(self.is_half(host));
        let (callers, lost) = self.hosts[host].kill(power, &mut self.chances.crashes);
        self.counts.batches_lost += lost as u64;
        let told = if why == Stop::Clean { Unknown::ShuttingDown } else { Unknown::ConnectionLost };
        for ticket in callers {
            self.answer(host, ticket, Err(Error::Unknown(told.clone())));
        }
        self.happened.push(Happening::Stopped(host, why));
    }

    pub(super) fn failed(&mut self, host: HostId, failed: StorageFailed) {
        let off = self.hosts[host].disk.is_off();
        self.hosts[host].noted =
            self.hosts[host].noted.take().or(Some(failed.clone()).filter(|it| it.is_damage() && !off));
        self.end(host, off, if off { Stop::Crashed } else { Stop::Storage(failed) });
    }

    pub(super) fn answer(&mut self, host: HostId, ticket: Ticket, result: Result<Told, Error>) {
        self.trace.fold(&[ticket, u64::from(result.is_ok())]);
        if !self.join_answered(ticket, &result) && !self.trust_answered(ticket, &result) {
            self.happened.push(Happening::Answer(host, ticket, result));
        }
    }

    pub(super) fn turn_soon(&mut self, host: HostId) {
        let delay = span(&mut self.chances.delays, Duration::from_micros(1), Duration::from_micros(60));
        if let Some(process) = self.hosts[host].process.as_mut().filter(|process| !process.turn_due) {
            process.turn_due = true;
            let life = process.life;
            self.scheduler.after(delay, Event::Turn(host, life));
        }
    }

    pub(super) fn input(&mut self, host: HostId, input: Input<Durable>) {
        if let Some(process) = &mut self.hosts[host].process {
            process.inputs.push(input);
            self.turn_soon(host);
        }
    }

    pub(super) fn tick(&mut self, host: HostId, life: u64) {
        self.scheduler.after(tick(&self.hosts[host].speed), Event::Tick(host, life));
        let now = self.now();
        let Some(process) = &mut self.hosts[host].process else { return };
        process.ticks += 1;
        if process.replica.leadership().leader.is_some() {
            process.leaderless_since = now;
        } else if now - process.leaderless_since > LEADERLESS {
            process.leaderless_since = now;
            self.ask_whether_removed(host);
        }
        self.turn_soon(host);
    }

    /// A member without a leader dials the others, who turn it away if it was removed.
    pub(super) fn ask_whether_removed(&mut self, host: HostId) {
        let id = self.hosts[host].id;
        let turned_away = self.hosts.iter().any(|other| {
            other.runs()
                && other.removed.contains(&id)
                && !self.network.is_cut(id, other.id)
                && !self.network.is_cut(other.id, id)
        });
        if turned_away {
            self.counts.evictions += 1;
            self.hosts[host].member = false;
            self.end(host, false, Stop::Removed);
        }
    }

    pub(super) fn turn(&mut self, host: HostId) {
        let now = self.now();
        let (speed, step) = (self.hosts[host].speed, self.hosts[host].step);
        let Some(process) = &mut self.hosts[host].process else { return };
        process.turn_due = false;
        let inputs = process.gather();
        let received = process.incoming.whole.is_some();
        let durable = inputs.iter().any(|input| matches!(input, Input::Durable(_)));
        match process.replica.turn(process.loop_clock(now, &speed, step), inputs) {
            Ok(effects) => {
                if received {
                    let accepted = effects.apply.iter().any(|work| matches!(work, Work::Install(_)));
                    process.settle_incoming(accepted);
                }
                if durable {
                    self.note_promise(host);
                }
                self.carry_out(host, effects);
            }
            Err(failed) => self.failed(host, failed),
        }
    }

    /// What the member has promised now that another write is on its disk.
    pub(super) fn note_promise(&mut self, host: HostId) {
        use crate::raft::LogView;
        let member = &mut self.hosts[host];
        let Some(process) = &member.process else { return };
        let index = process.replica.status().persisted;
        if let Ok(Some(term)) = process.replica.log().term(index) {
            member.promise = super::member::Promise { term, index };
        }
    }

    pub(super) fn carry_out(&mut self, host: HostId, effects: Effects<LogWrite>) {
        let id = self.hosts[host].id;
        if let Some(members) = &effects.members {
            self.note_removed(host);
            if members.iter().all(|member| member.record.id != id) {
                // It has learnt of its own removal from the log, and ends at once.
                self.counts.evictions += 1;
                self.hosts[host].member = false;
                return self.end(host, false, Stop::Removed);
            }
        }
        if let Some(older) = effects.older {
            self.lose(host);
            return self.end(host, false, Stop::Older(older));
        }
        for (to, frame) in effects.frames {
            self.send(id, to, &frame);
        }
        if !effects.writes.is_empty() {
            self.happened.push(Happening::Wrote(host));
            let process = self.hosts[host].process.as_mut().expect("it took the turn");
            process.writes.extend(effects.writes);
            self.persist_soon(host);
        }
        for work in effects.apply {
            if let Work::Entries(entries) = &work {
                self.happened.push(Happening::Committed(host, entries.clone()));
            }
            self.feed_with(host, Feed::Work(work));
        }
        for (ticket, result) in effects.answers {
            let process = self.hosts[host].process.as_mut().expect("it took the turn");
            if process.callers.remove(&ticket) {
                self.answer(host, ticket, result);
            }
        }
        if let Some(leadership) = effects.leadership {
            self.trace.line(self.scheduler.now(), || format!("m{host} sees {leadership:?}"));
            self.happened.push(Happening::Leadership(host, leadership));
        }
        if effects.make_checkpoint {
            self.feed_with(host, Feed::Checkpoint);
        }
        if effects.flush {
            self.feed_with(host, Feed::Flush);
        }
        for (to, message) in effects.snapshots {
            self.send_snapshot(host, to, message);
        }
        if let Some(index) = effects.cut {
            self.counts.cuts += 1;
            let process = self.hosts[host].process.as_mut().expect("it took the turn");
            process.checkpoint = process.checkpoint.take().filter(|(meta, _)| meta.index >= index);
        }
        if effects.stopped {
            // A clean end flushes the state.
            self.hosts[host].store.flush().expect("memory does not fail");
            self.end(host, false, Stop::Clean);
        }
    }

    pub(super) fn note_removed(&mut self, host: HostId) {
        let known: Vec<NodeId> = self.place.keys().copied().collect();
        let removed = self.hosts[host].store.view(|view| {
            known.into_iter().filter(|id| machine::read::removed(view, *id).unwrap_or(false)).collect()
        });
        self.hosts[host].removed = removed;
    }

    pub(super) fn send(&mut self, from: NodeId, to: NodeId, frame: &PeerFrame) {
        if let PeerFrame::Raft(message) = frame
            && message.grants_vote()
        {
            self.happened.push(Happening::Voted { voter: from, term: message.term(), candidate: to });
        }
        if let PeerFrame::Raft(message) = frame
            && message.promise().is_some()
            && self.runs_old_image(from)
        {
            self.happened.push(Happening::OldPromise(from));
        }
        let bytes = frame.to_bytes();
        self.trace.fold_bytes(&bytes);
        let arrivals = self.network.send(self.scheduler.now(), (from, to), may_repeat(frame));
        if arrivals[0].is_none() && self.chances.delays.random_bool(0.2) {
            let delay = Duration::from_millis(self.chances.delays.random_range(1..500));
            self.scheduler.after(delay, Event::Unreachable { at: from, peer: to });
        }
        for at in arrivals.into_iter().flatten() {
            self.scheduler.at(at, Event::Frame { from, to, bytes: bytes.clone() });
        }
    }

    pub(super) fn frame(&mut self, from: NodeId, to: NodeId, bytes: Bytes) {
        let Some(host) = self.running(to) else { return };
        if self.hosts[host].removed.contains(&from)
            || self.network.is_cut(from, to)
            || !self.connected(from, to)
        {
            return;
        }
        let frame = PeerFrame::from_bytes(bytes).expect("members of one version read each other");
        self.trace.line(self.scheduler.now(), || {
            let from = self.place.get(&from).map_or("?".into(), |host| format!("m{host}"));
            let mut text = format!("{frame:?}");
            text.truncate(160);
            format!("{from} -> m{host}: {text}")
        });
        let process = self.hosts[host].process.as_mut().expect("it runs");
        process.frames.push((from, frame));
        self.turn_soon(host);
    }

    // ---- the log's writer ----

    pub(super) fn persist_soon(&mut self, host: HostId) {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        if !process.persisting && !process.writes.is_empty() {
            process.persisting = true;
            let life = process.life;
            let delay = span(&mut self.chances.delays, Duration::from_micros(5), Duration::from_micros(200));
            self.scheduler.after(delay, Event::Persist(host, life));
        }
    }

    pub(super) fn persist(&mut self, host: HostId, life: u64) {
        let most = self.hosts[host].speed.sync;
        let process = self.hosts[host].process.as_mut().expect("it runs");
        let writes = std::mem::take(&mut process.writes);
        match process.writer.write_all(writes) {
            Ok(proof) => {
                if self.chances.delays.random_bool(0.2)
                    && let Err(failed) = process.writer.prepare()
                {
                    return self.failed(host, failed);
                }
                let delay = span(&mut self.chances.delays, Duration::from_micros(80), most);
                self.scheduler.after(delay, Event::Durable(host, life, proof));
            }
            Err(failed) => self.failed(host, failed),
        }
    }

    pub(super) fn durable(&mut self, host: HostId, proof: Durable) {
        let process = self.hosts[host].process.as_mut().expect("it runs");
        process.persisting = false;
        self.input(host, Input::Durable(proof));
        self.persist_soon(host);
    }
}

/// The process an event is for, if it is for one.
fn place_of(event: &Event) -> Option<(HostId, u64)> {
    match event {
        Event::Tick(host, life)
        | Event::Turn(host, life)
        | Event::Persist(host, life)
        | Event::Durable(host, life, _)
        | Event::Feed(host, life)
        | Event::Keep(host, life)
        | Event::Leaf(host, life, _)
        | Event::Recheck(host, life)
        | Event::Scrub(host, life)
        | Event::Guard(host, life)
        | Event::Flushed(host, life, _) => Some((*host, *life)),
        Event::Watch(key) => Some((key.host, key.life)),
        _ => None,
    }
}
