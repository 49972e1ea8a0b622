//! Frames that wait for one peer, in two lanes. Never waits: what does not fit is refused.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::limits::{MAX_PEER_OUTBOX_BYTES, MAX_PEER_OUTBOX_FRAMES};

/// Which of a peer's two streams a frame takes. Order holds within each, not between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Priority {
    /// Votes, heartbeats, read index: overtakes appends.
    Urgent,
    /// Everything that carries entries.
    Append,
}

impl Priority {
    /// Bytes that may wait in this lane.
    fn max_bytes(self) -> usize {
        match self {
            // Urgent frames are small; they have their own room, so appends can't crowd them out.
            Self::Urgent => MAX_PEER_OUTBOX_BYTES / 16,
            Self::Append => MAX_PEER_OUTBOX_BYTES,
        }
    }
}

/// Bytes and frames that are written in one go.
const BATCH_BYTES: usize = 1024 * 1024;
const BATCH_FRAMES: usize = 256;

#[derive(Default)]
struct Lane {
    frames: VecDeque<Bytes>,
    bytes: usize,
}

#[derive(Default)]
struct State {
    lanes: [Lane; 2],
    open: bool,
}

/// One peer's waiting frames.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    filled: [Notify; 2],
}

impl Outbox {
    /// Takes frames from now on.
    pub(super) fn open(&self) {
        self.state.lock().open = true;
    }

    /// Takes no more and drops what waits; whether there was any.
    pub(super) fn shut(&self) -> bool {
        let mut state = self.state.lock();
        let waiting = state.lanes.iter().any(|lane| !lane.frames.is_empty());
        *state = State::default();
        waiting
    }

    /// Queues `frames`; whether all found room. Those behind the first of a lane that did not fit
    /// are dropped too: raft fills a gap faster than it sorts out a reordering.
    pub(super) fn push(&self, frames: Vec<(Priority, Bytes)>) -> bool {
        let mut state = self.state.lock();
        if !state.open {
            return frames.is_empty();
        }
        let (mut added, mut full) = ([false; 2], [false; 2]);
        for (priority, frame) in frames {
            let at = priority as usize;
            let lane = &mut state.lanes[at];
            let fits = lane.frames.len() < MAX_PEER_OUTBOX_FRAMES
                && lane.bytes + frame.len() <= priority.max_bytes();
            if full[at] || !fits {
                full[at] = true;
                continue;
            }
            lane.bytes += frame.len();
            lane.frames.push_back(frame);
            added[at] = true;
        }
        drop(state);
        added.iter().zip(&self.filled).filter(|(added, _)| **added).for_each(|(_, filled)| {
            filled.notify_one();
        });
        full == [false; 2]
    }

    /// The next frames of a lane to write in one go; waits until there is one.
    pub(super) async fn take(&self, priority: Priority) -> Vec<Bytes> {
        let at = priority as usize;
        loop {
            let batch = self.take_now(priority);
            if !batch.is_empty() {
                return batch;
            }
            self.filled[at].notified().await;
        }
    }

    fn take_now(&self, priority: Priority) -> Vec<Bytes> {
        let mut state = self.state.lock();
        let lane = &mut state.lanes[priority as usize];
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < BATCH_FRAMES && bytes < BATCH_BYTES {
            let Some(frame) = lane.frames.pop_front() else { break };
            bytes += frame.len();
            batch.push(frame);
        }
        lane.bytes -= bytes;
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(priority: Priority, count: usize, len: usize) -> Vec<(Priority, Bytes)> {
        vec![(priority, Bytes::from(vec![0; len])); count]
    }

    #[test]
    fn what_does_not_fit_is_refused_and_lanes_do_not_crowd_each_other() {
        let outbox = Outbox::default();
        assert!(!outbox.push(frames(Priority::Append, 1, 1)), "shut at first");
        outbox.open();
        let max = Priority::Append.max_bytes();
        assert!(outbox.push(frames(Priority::Append, 16, max / 16)));
        assert!(!outbox.push(frames(Priority::Append, 1, 1)));
        assert!(outbox.push(frames(Priority::Urgent, MAX_PEER_OUTBOX_FRAMES, 100)));
        assert!(!outbox.push(frames(Priority::Urgent, 1, 0)));
        assert_eq!(outbox.take_now(Priority::Append).len(), 1);
        assert!(outbox.push(frames(Priority::Append, 1, max / 16)));
        assert_eq!(outbox.take_now(Priority::Urgent).len(), BATCH_FRAMES);
        assert!(outbox.shut());
        assert!(!outbox.shut());
        assert!(!outbox.push(frames(Priority::Urgent, 1, 1)), "shut again");
    }

    #[test]
    fn nothing_follows_a_frame_that_was_dropped() {
        let outbox = Outbox::default();
        outbox.open();
        let mut all = frames(Priority::Append, 1, Priority::Append.max_bytes());
        all.extend(frames(Priority::Append, 1, 2));
        all.extend(frames(Priority::Append, 1, 0));
        assert!(!outbox.push(all));
        assert_eq!(outbox.take_now(Priority::Append).len(), 1);
        assert_eq!(outbox.take_now(Priority::Append).len(), 0);
    }
}
