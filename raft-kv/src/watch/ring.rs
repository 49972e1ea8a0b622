//! The recent past, shared by all watchers and bounded in bytes.

use std::collections::VecDeque;

use crate::types::{Change, Event, KeyValue, Revision};

/// The changes of every revision above `floor`, without a gap.
#[derive(Debug)]
pub(super) struct Ring {
    changes: VecDeque<Change>,
    /// What `changes` counts, in bytes.
    bytes: usize,
    limit: usize,
    /// The newest revision that is not in the ring.
    floor: Revision,
}

impl Ring {
    pub(super) fn new(limit: usize, head: Revision) -> Self {
        Self { changes: VecDeque::new(), bytes: 0, limit, floor: head }
    }

    pub(super) fn floor(&self) -> Revision {
        self.floor
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The newest revision.
    pub(super) fn head(&self) -> Revision {
        self.floor + self.changes.len() as Revision
    }

    /// Appends the next revision; the oldest go where there is no room.
    pub(super) fn push(&mut self, change: Change) {
        assert_eq!(change.revision, self.head() + 1, "a revision was left out or published twice");
        self.bytes += change_bytes(&change);
        self.changes.push_back(change);
        while self.bytes > self.limit {
            let Some(oldest) = self.changes.pop_front() else { break };
            self.bytes -= change_bytes(&oldest);
            self.floor = oldest.revision;
        }
    }

    /// Empties it; the next revision follows `head`.
    pub(super) fn restart(&mut self, head: Revision) {
        *self = Self::new(self.limit, head);
    }

    /// The changes from `revision` on, which must be above the floor.
    pub(super) fn from(&self, revision: Revision) -> impl Iterator<Item = &Change> {
        let skip = usize::try_from(revision - self.floor - 1).expect("the caller looked at the floor");
        self.changes.range(skip.min(self.changes.len())..)
    }
}

/// What a change counts, in bytes.
pub(super) fn change_bytes(change: &Change) -> usize {
    64 + change.events.iter().map(event_bytes).sum::<usize>()
}

fn event_bytes(event: &Event) -> usize {
    let of = |kv: &KeyValue| kv.key.len() + kv.value.len() + 96;
    of(&event.kv) + event.prev.as_ref().map_or(0, of)
}
