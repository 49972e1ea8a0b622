//! A raft log in memory with a modelled disk.

use std::cell::Cell;

use crate::error::StorageFailed;
use crate::raft::{LogView, Proof};
use crate::types::{Entry, HardState, Index, SnapshotMeta, Term};

/// What a disk holds, or what reads see.
#[derive(Clone, Default, Debug)]
pub(crate) struct Image {
    pub(crate) hard: HardState,
    pub(crate) boundary: SnapshotMeta,
    pub(crate) entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
enum Kind {
    Stage(Option<HardState>, Vec<Entry>),
    Snapshot(HardState, SnapshotMeta),
    Cut(SnapshotMeta),
}

/// A write on its way.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) number: u64,
    kind: Kind,
}

impl Write {
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.kind {
            Kind::Stage(_, entries) => entries,
            _ => &[],
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Done(pub(crate) u64);

impl Proof for Done {
    fn number(&self) -> u64 {
        self.0
    }
}

impl Image {
    pub(crate) fn last(&self) -> Index {
        self.boundary.index + self.entries.len() as u64
    }

    pub(crate) fn term(&self, index: Index) -> Option<Term> {
        if index == self.boundary.index {
            return Some(self.boundary.term);
        }
        let at = index.checked_sub(self.boundary.index + 1)?;
        self.entries.get(at as usize).map(|entry| entry.term)
    }

    pub(crate) fn apply(&mut self, write: &Write) {
        match &write.kind {
            Kind::Stage(hard, entries) => {
                self.hard = hard.unwrap_or(self.hard);
                if let Some(first) = entries.first() {
                    assert!(first.index > self.boundary.index && first.index <= self.last() + 1);
                    self.entries.truncate((first.index - self.boundary.index - 1) as usize);
                    self.entries.extend_from_slice(entries);
                }
            }
            Kind::Snapshot(hard, meta) => {
                *self = Self { hard: *hard, boundary: meta.clone(), entries: Vec::new() };
            }
            Kind::Cut(meta) => {
                assert_eq!(self.term(meta.index), Some(meta.term), "cut at another entry's term");
                self.entries.drain(..(meta.index - self.boundary.index) as usize);
                self.boundary = meta.clone();
            }
        }
    }
}

/// The log that a core reads.
#[derive(Debug)]
pub(crate) struct MemLog {
    pub(crate) image: Image,
    next: u64,
    /// After so many more reads, all fail.
    pub(crate) reads_left: Cell<u64>,
}

impl MemLog {
    pub(crate) fn new(image: Image) -> Self {
        Self { image, next: 1, reads_left: Cell::new(u64::MAX) }
    }

    fn write(&mut self, number: u64, kind: Kind) -> Write {
        assert_eq!(number, self.next, "write numbers go up by one");
        self.next += 1;
        let write = Write { number, kind };
        self.image.apply(&write);
        write
    }

    fn read(&self) -> Result<(), StorageFailed> {
        match self.reads_left.get().checked_sub(1) {
            Some(left) => {
                self.reads_left.set(left);
                Ok(())
            }
            None => Err(StorageFailed::damaged("raft log", "planned failure")),
        }
    }
}

impl LogView for MemLog {
    type Write = Write;
    type Proof = Done;

    fn first_within(&self, bytes: u64) -> Index {
        let mut left = bytes;
        let fits = |entry: &&Entry| {
            let fits = left.checked_sub(entry.size() as u64);
            left = fits.unwrap_or(0);
            fits.is_some()
        };
        self.last_index() + 1 - self.image.entries.iter().rev().take_while(fits).count() as u64
    }

    fn start(&self) -> (HardState, SnapshotMeta) {
        (self.image.hard, self.image.boundary.clone())
    }

    fn first_index(&self) -> Index {
        self.image.boundary.index + 1
    }

    fn last_index(&self) -> Index {
        self.image.last()
    }

    fn term(&self, index: Index) -> Result<Option<Term>, StorageFailed> {
        self.read()?;
        Ok(self.image.term(index))
    }

    fn entries(&self, from: Index, to: Index, max_bytes: u64) -> Result<Vec<Entry>, StorageFailed> {
        self.read()?;
        assert!(from >= self.first_index() && from <= to && to <= self.last_index() + 1);
        let mut bytes = 0;
        let at = |index: Index| (index - self.first_index()) as usize;
        let all = self.image.entries[at(from)..at(to)].iter();
        let fits = |entry: &&Entry| {
            let first = bytes == 0;
            bytes += entry.size() as u64;
            first || bytes <= max_bytes
        };
        Ok(all.take_while(fits).cloned().collect())
    }

    fn stage(&mut self, number: u64, hard: Option<HardState>, entries: &[Entry]) -> Write {
        self.write(number, Kind::Stage(hard, entries.to_vec()))
    }

    fn stage_snapshot(&mut self, number: u64, hard: HardState, meta: &SnapshotMeta) -> Write {
        self.write(number, Kind::Snapshot(hard, meta.clone()))
    }

    fn stage_cut(&mut self, number: u64, meta: &SnapshotMeta) -> Write {
        self.write(number, Kind::Cut(meta.clone()))
    }
}
