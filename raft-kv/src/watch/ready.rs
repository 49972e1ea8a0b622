//! Who of many has something now: each once, in the order in which they got it. What it costs
//! grows with those that have something, never with all.

use std::collections::BTreeMap;

use crate::planted;

/// Those of one stream's watchers that have something, by the stream's own numbers.
///
/// Whoever takes a turn and still has something goes to the back: a busy one delays each other
/// by one turn at most.
#[derive(Debug, Default)]
pub struct Ready {
    turns: BTreeMap<u64, i64>,
    waiting: BTreeMap<i64, u64>,
    next: u64,
}

impl Ready {
    /// Queues one at the back; one that waits already keeps its place.
    pub fn wake(&mut self, id: i64) {
        if self.waiting.contains_key(&id) || (!self.waiting.is_empty() && planted!(ForgetWaking)) {
            return;
        }
        self.waiting.insert(id, self.next);
        self.turns.insert(self.next, id);
        self.next += 1;
    }

    /// Whose turn it is; it waits no more.
    pub fn take(&mut self) -> Option<i64> {
        let (_, id) = self.turns.pop_first()?;
        self.waiting.remove(&id);
        Some(id)
    }

    /// Takes one out, wherever it waits.
    pub fn forget(&mut self, id: i64) {
        if let Some(turn) = self.waiting.remove(&id) {
            self.turns.remove(&turn);
        }
    }

    /// Whether nobody has anything.
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// How many have something.
    pub fn len(&self) -> usize {
        self.turns.len()
    }
}

#[cfg(test)]
#[path = "ready_tests.rs"]
mod tests;
