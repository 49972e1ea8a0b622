//! The thread that decides: drains its inbox, lets the replica take one turn, and carries out the
//! effects: frames first, so that the network works while the disk does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::sync::{oneshot, watch};

use super::feed::ToFeed;
use super::snapshots::{Checkpoints, Incoming};
use super::{ToDecide, World, drain};
use crate::error::{Error, NotDone, StorageFailed, Unknown};
use crate::limits;
use crate::node::apply::Work;
use crate::node::ask::{Ask, Ticket, Told};
use crate::node::replica::{Effects, Input, Replica};
use crate::node::wire::PeerFrame;
use crate::raft::Leadership;
use crate::storage::files::FolderFiles;
use crate::storage::log::{Durable, Log, LogWrite};
use crate::types::Older;

/// Inputs of one turn, at most.
const MOST_INPUTS: usize = 4096;
/// Ticks made up for after a pause, at most: a process that was stopped must not hold an election
/// before it has heard what came meanwhile.
const MOST_TICKS: u32 = 2;

pub(super) struct Decide {
    pub(super) replica: Replica<Log<FolderFiles>>,
    pub(super) clock: Instant,
    pub(super) inbox: Receiver<ToDecide>,
    pub(super) inbox_bytes: Arc<AtomicUsize>,
    pub(super) to_persist: Sender<Vec<LogWrite>>,
    pub(super) to_apply: Sender<ToFeed>,
    pub(super) world: Arc<dyn World>,
    pub(super) checkpoints: Checkpoints,
    pub(super) incoming: Arc<Incoming>,
    pub(super) leadership: watch::Sender<Leadership>,
    pub(super) ended: watch::Sender<Option<Error>>,
    pub(super) older: Arc<OnceLock<Older>>,
    pub(super) callers: HashMap<Ticket, oneshot::Sender<Result<Told, Error>>>,
    pub(super) next_ticket: Ticket,
}

impl Decide {
    pub(super) fn run(mut self) {
        let mut next_tick = Instant::now() + limits::TICK;
        loop {
            let Some(arrived) = drain(&self.inbox, next_tick, MOST_INPUTS) else {
                return;
            };
            let mut inputs = Vec::with_capacity(arrived.len() + 1);
            // What arrived goes first: a leader's heartbeat that waited counts before the clock does.
            if let Err(error) = self.sort(arrived, &mut inputs) {
                return self.end(error);
            }
            let received = inputs.iter().any(has_snapshot);
            let now = Instant::now();
            for _ in 0..MOST_TICKS {
                if now >= next_tick {
                    inputs.push(Input::Tick);
                    next_tick += limits::TICK;
                }
            }
            if now >= next_tick {
                next_tick = now + limits::TICK;
            }
            match self.replica.turn(now - self.clock, inputs) {
                Ok(effects) => {
                    if received {
                        self.incoming
                            .settle(effects.apply.iter().any(|work| matches!(work, Work::Install(_))));
                    }
                    if let Some(older) = effects.older {
                        // Nothing of this turn goes out.
                        self.older.get_or_init(|| older);
                        return self.end(Error::Stopped(older.to_string()));
                    }
                    if self.carry_out(effects) {
                        return self.end(Error::NotDone(NotDone::ShuttingDown));
                    }
                }
                Err(failed) => return self.end(stopped(&failed)),
            }
        }
    }

    fn sort(&mut self, arrived: Vec<ToDecide>, inputs: &mut Vec<Input<Durable>>) -> Result<(), Error> {
        let (mut frames, mut asks, mut bytes) = (Vec::new(), Vec::new(), 0);
        for item in arrived {
            match item {
                ToDecide::Frame(from, frame, size) => {
                    bytes += size;
                    frames.push((from, frame));
                }
                ToDecide::Ask(what, deadline, answer) => {
                    let ticket = self.next_ticket;
                    self.next_ticket += 1;
                    self.callers.insert(ticket, answer);
                    asks.push(Ask { ticket, deadline: deadline.saturating_duration_since(self.clock), what });
                }
                ToDecide::Durable(proof) => inputs.push(Input::Durable(proof)),
                ToDecide::Applied(report) => inputs.push(Input::Applied(report)),
                ToDecide::Flushed(meta) => inputs.push(Input::Flushed(meta)),
                ToDecide::Checkpoint(meta) => inputs.push(Input::CheckpointMade(meta)),
                ToDecide::SnapshotSent(to, ok) => {
                    self.checkpoints.release();
                    inputs.push(Input::SnapshotSent { to, ok });
                }
                ToDecide::Unreachable(id) => inputs.push(Input::Unreachable(id)),
                // Whoever asked may have gone meanwhile.
                ToDecide::Status(answer) => drop(answer.send((self.replica.status(), self.callers.len()))),
                ToDecide::Stop => inputs.push(Input::Stop),
                ToDecide::Failed(error) => return Err(error),
            }
        }
        self.inbox_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if !frames.is_empty() {
            inputs.push(Input::Frames(frames));
        }
        if !asks.is_empty() {
            inputs.push(Input::Asks(asks));
        }
        Ok(())
    }

    /// Carries the effects out in their order; says whether the loop may end.
    fn carry_out(&mut self, effects: Effects<LogWrite>) -> bool {
        if let Some(members) = &effects.members {
            self.world.members(members);
        }
        if !effects.frames.is_empty() {
            self.world.send(effects.frames);
        }
        // The other threads end only after this one has told them to, so sending can't fail.
        if !effects.writes.is_empty() {
            let _ = self.to_persist.send(effects.writes);
        }
        for work in effects.apply {
            let _ = self.to_apply.send(ToFeed::Work(work));
        }
        for (ticket, result) in effects.answers {
            if let Some(caller) = self.callers.remove(&ticket) {
                // A caller that gave up does not hear it.
                let _ = caller.send(result);
            }
        }
        if let Some(leadership) = effects.leadership {
            self.leadership.send_replace(leadership);
        }
        if effects.make_checkpoint {
            let _ = self.to_apply.send(ToFeed::Checkpoint);
        }
        if effects.flush {
            let _ = self.to_apply.send(ToFeed::Flush);
        }
        for (to, message) in effects.snapshots {
            let index = message.snapshot_meta().map_or(0, |meta| meta.index);
            let folder = self.checkpoints.take(index);
            self.world.send_snapshot(to, message, folder);
        }
        if let Some(index) = effects.cut {
            self.checkpoints.forget_before(index);
        }
        effects.stopped
    }

    fn end(mut self, error: Error) {
        let clean = matches!(error, Error::NotDone(NotDone::ShuttingDown));
        if !clean {
            tracing::error!(%error, "the node has stopped");
        }
        self.ended.send_replace(Some(error));
        for (_, caller) in self.callers.drain() {
            // The others may have what they asked for, or get it yet.
            let _ = caller.send(Err(Error::Unknown(Unknown::ShuttingDown)));
        }
        if clean {
            let _ = self.to_apply.send(ToFeed::FlushAndEnd);
        }
    }
}

/// Whether a received snapshot is among the input.
fn has_snapshot(input: &Input<Durable>) -> bool {
    let is_snapshot = |frame: &PeerFrame| matches!(frame, PeerFrame::Raft(message) if message.is_snapshot());
    matches!(input, Input::Frames(frames) if frames.iter().any(|(_, frame)| is_snapshot(frame)))
}

/// A failed disk as callers hear of it.
pub(super) fn stopped(failed: &StorageFailed) -> Error {
    Error::Stopped(failed.to_string())
}
