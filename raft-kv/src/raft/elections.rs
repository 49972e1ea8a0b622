//! Election timeouts from the member's own seed.
//!
//! raft draws them from the thread's generator on every change of role or term. The value matters
//! in a tick alone, so laying ours over it after every input leaves no run depending on that.

use raft::{RawNode, StateRole, Storage};

use crate::limits::{ELECTION_TICKS, ELECTION_TICKS_MAX};
use crate::types::{NodeId, Term};

/// The current timeout and where the next comes from.
pub(super) struct Elections {
    state: u64,
    timeout: usize,
    seen: (Term, StateRole),
}

impl Elections {
    pub(super) fn new(seed: u64, id: NodeId) -> Self {
        // Members given the same seed must not time out together.
        let mut new = Self { state: seed ^ id.0.rotate_left(32), timeout: 0, seen: (0, StateRole::Follower) };
        new.draw();
        new
    }

    /// Draws anew where the role or term has changed, or an election was just begun, and lays the
    /// timeout over raft's own.
    pub(super) fn settle<S: Storage>(&mut self, raw: &mut RawNode<S>, begun: bool) {
        let now = (raw.raft.term, raw.raft.state);
        if begun || now != self.seen {
            self.seen = now;
            self.draw();
        }
        raw.raft.set_randomized_election_timeout(self.timeout);
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn draw(&mut self) {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let span = (ELECTION_TICKS_MAX - ELECTION_TICKS) as u64;
        self.timeout = ELECTION_TICKS + (z % span) as usize;
    }
}
