//! A raft log in memory, durable at once: to measure consensus without a disk.

use raft_kv::error::StorageFailed;
use raft_kv::raft::{LogView, Proof};
use raft_kv::types::{Entry, HardState, Index, SnapshotMeta, Term};

/// The number of a write that is as good as on disk.
#[derive(Clone, Copy, Debug)]
pub struct Written(pub u64);

impl Proof for Written {
    fn number(&self) -> u64 {
        self.0
    }
}

/// The log.
#[derive(Debug)]
pub struct MemoryLog {
    hard: HardState,
    boundary: SnapshotMeta,
    entries: Vec<Entry>,
}

impl MemoryLog {
    /// An empty log behind the boundary.
    pub fn new(boundary: SnapshotMeta) -> Self {
        let hard = HardState { term: boundary.term, commit: boundary.index, ..HardState::default() };
        Self { hard, boundary, entries: Vec::new() }
    }

    fn at(&self, index: Index) -> usize {
        (index - self.boundary.index - 1) as usize
    }
}

impl LogView for MemoryLog {
    type Write = u64;
    type Proof = Written;

    fn start(&self) -> (HardState, SnapshotMeta) {
        (self.hard, self.boundary.clone())
    }

    fn first_index(&self) -> Index {
        self.boundary.index + 1
    }

    fn last_index(&self) -> Index {
        self.boundary.index + self.entries.len() as u64
    }

    fn term(&self, index: Index) -> Result<Option<Term>, StorageFailed> {
        if index == self.boundary.index {
            return Ok(Some(self.boundary.term));
        }
        let known = index > self.boundary.index && index <= self.last_index();
        Ok(known.then(|| self.entries[self.at(index)].term))
    }

    fn entries(&self, from: Index, to: Index, max_bytes: u64) -> Result<Vec<Entry>, StorageFailed> {
        let mut bytes = 0;
        let wanted = self.entries[self.at(from)..self.at(to)].iter();
        let fit = wanted.enumerate().take_while(|(number, entry)| {
            bytes += entry.size() as u64;
            *number == 0 || bytes <= max_bytes
        });
        Ok(fit.map(|(_, entry)| entry.clone()).collect())
    }

    fn first_within(&self, bytes: u64) -> Index {
        let mut held = 0;
        let fits = self.entries.iter().rev().take_while(|entry| {
            held += entry.size() as u64;
            held <= bytes
        });
        self.last_index() + 1 - fits.count() as u64
    }

    fn stage(&mut self, number: u64, hard: Option<HardState>, entries: &[Entry]) -> u64 {
        if let Some(first) = entries.first() {
            let keep = self.at(first.index);
            self.entries.truncate(keep);
            self.entries.extend_from_slice(entries);
        }
        self.hard = hard.unwrap_or(self.hard);
        number
    }

    fn stage_snapshot(&mut self, number: u64, hard: HardState, meta: &SnapshotMeta) -> u64 {
        (self.hard, self.boundary) = (hard, meta.clone());
        self.entries.clear();
        number
    }

    fn stage_cut(&mut self, number: u64, meta: &SnapshotMeta) -> u64 {
        let keep = self.at(meta.index + 1);
        self.entries.drain(..keep);
        self.boundary = meta.clone();
        number
    }
}
