//! Tests of consensus: a log in memory that forgets what was not synced, a cluster under a seeded
//! network, stories as transcripts, and foreign messages without reason.

mod cluster;
mod foreign;
pub(crate) mod log;
#[cfg(feature = "sim")]
mod planted;
mod random;
mod stories;
mod words;

use log::{Image, MemLog};

use crate::types::{ConfState, NodeId};

/// SplitMix64, so that a seed is all there is to a run.
pub(super) struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True `percent` times in a hundred.
    fn hits(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

fn voters(ids: &[u64]) -> ConfState {
    ConfState { voters: ids.iter().map(|id| NodeId(*id)).collect(), ..Default::default() }
}
