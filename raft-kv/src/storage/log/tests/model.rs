//! The naive model and the runner that drives log and model side by side.

use bytes::Bytes;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::super::*;
use crate::raft::{LogView, Proof};
use crate::sim::disk::SimDisk;
use crate::types::*;

pub const OPTIONS: Options = Options { segment_bytes: 4096, spare_segments: 2, cache_bytes: 1500 };
pub const IDENTITY: Identity = Identity { cluster: ClusterId(0xc1), node: NodeId(0xa1) };

/// One thing to do with a log. Numbers are taken modulo what is possible.
#[derive(Clone, Debug)]
pub enum Op {
    /// Entries at the end, each of so many bytes.
    Append(Vec<u16>),
    /// The last `back` entries are replaced by those of a new term.
    Overwrite {
        back: u8,
        sizes: Vec<u16>,
    },
    /// A new term and a vote in it.
    Vote(u8),
    /// The commit index rises by so much.
    Commit(u8),
    /// Forgets so many entries.
    Cut(u8),
    /// A snapshot so far behind the end.
    Snapshot(u8),
    /// Everything staged goes to disk, in groups of so many writes.
    Write(u8),
    Prepare,
    /// The process ends and comes back; what is staged is lost.
    Reopen,
    /// The machine crashes.
    Crash,
}

pub fn op() -> impl Strategy<Value = Op> {
    let sizes = || proptest::collection::vec(prop_oneof![9 => 0_u16..300, 1 => 3000_u16..6000], 1..6);
    prop_oneof![
        8 => sizes().prop_map(Op::Append),
        2 => (any::<u8>(), sizes()).prop_map(|(back, sizes)| Op::Overwrite { back, sizes }),
        2 => any::<u8>().prop_map(Op::Vote),
        2 => any::<u8>().prop_map(Op::Commit),
        3 => any::<u8>().prop_map(Op::Cut),
        1 => any::<u8>().prop_map(Op::Snapshot),
        8 => (1_u8..5).prop_map(Op::Write),
        2 => Just(Op::Prepare),
        1 => Just(Op::Reopen),
        2 => Just(Op::Crash),
    ]
}

#[derive(Clone, PartialEq, Debug)]
pub struct Model {
    pub boundary: SnapshotMeta,
    pub entries: Vec<Entry>,
    pub hard: HardState,
}

impl Model {
    pub fn last(&self) -> Index {
        self.boundary.index + self.entries.len() as u64
    }
    pub fn last_term(&self) -> Term {
        self.entries.last().map_or(self.boundary.term, |entry| entry.term)
    }
    pub fn term(&self, index: Index) -> Term {
        match index - self.boundary.index {
            0 => self.boundary.term,
            at => self.entries[at as usize - 1].term,
        }
    }
    // What is comparable after a crash: the commit index is not promised, and an entry's term
    // raises the member's.
    fn promised(&self) -> (SnapshotMeta, Vec<Entry>, Term, NodeId) {
        let (term, vote) = match self.last_term() > self.hard.term {
            true => (self.last_term(), NodeId(0)),
            false => (self.hard.term, self.hard.vote),
        };
        (self.boundary.clone(), self.entries.clone(), term, vote)
    }
}

/// What the log says, as a model.
pub fn view<F: crate::storage::files::Files>(log: &Log<F>) -> Model {
    let (hard, boundary) = log.start();
    let mut entries = Vec::new();
    while log.first_index() + (entries.len() as u64) <= log.last_index() {
        let from = log.first_index() + entries.len() as u64;
        let more = log.entries(from, log.last_index() + 1, 700).expect("reads");
        assert!(!more.is_empty());
        entries.extend(more);
    }
    for (place, entry) in entries.iter().enumerate() {
        assert_eq!(entry.index, boundary.index + 1 + place as u64);
        assert_eq!(log.term(entry.index).expect("known"), Some(entry.term));
    }
    assert_eq!(log.term(boundary.index).expect("known"), Some(boundary.term));
    assert_eq!(log.term(log.last_index() + 1).expect("known"), None);
    Model { boundary, entries, hard }
}

pub struct Runner {
    pub disk: SimDisk,
    pub log: Log<SimDisk>,
    pub writer: LogWriter<SimDisk>,
    pub model: Model,
    pub state: SnapshotMeta,
    pub staged: Vec<LogWrite>,
    number: u64,
    // Every state since the last durable one, record by record: what a crash may leave. The first
    // is durable.
    may: Vec<(u64, Model)>,
    pub crashes: u64,
}

pub type Check = Result<(), String>;

pub fn disk(seed: u64) -> SimDisk {
    SimDisk::new(ChaCha8Rng::seed_from_u64(seed))
}

pub fn boundary(index: Index, term: Term) -> SnapshotMeta {
    let conf = ConfState { voters: vec![NodeId(0xa1)], ..ConfState::default() };
    SnapshotMeta { index, term, conf }
}

impl Runner {
    pub fn new(disk: SimDisk) -> Result<Self, crate::error::StorageFailed> {
        let state = boundary(1, 1);
        let hard = HardState { term: 1, vote: NodeId(0), commit: 1 };
        let (log, writer) = Log::create(disk.clone(), OPTIONS, IDENTITY, state.clone(), hard)?;
        let model = Model { boundary: state.clone(), entries: Vec::new(), hard };
        let may = vec![(0, model.clone())];
        Ok(Self { disk, log, writer, model, state, staged: Vec::new(), number: 0, may, crashes: 0 })
    }

    fn note(&mut self) {
        self.may.push((self.number, self.model.clone()));
    }

    fn entries(&mut self, from: Index, term: Term, sizes: &[u16]) -> Vec<Entry> {
        let entries: Vec<Entry> = sizes
            .iter()
            .enumerate()
            .map(|(place, size)| Entry {
                index: from + place as u64,
                term,
                kind: if size % 7 == 3 { EntryKind::Config } else { EntryKind::Normal },
                data: Bytes::from(vec![(from + place as u64) as u8 ^ term as u8; *size as usize]),
                context: Bytes::from(vec![9; if size % 7 == 3 { 11 } else { 0 }]),
            })
            .collect();
        for entry in &entries {
            self.model.entries.truncate((entry.index - self.model.boundary.index - 1) as usize);
            self.model.entries.push(entry.clone());
            self.note();
        }
        entries
    }

    /// Does `op`. Errors of the disk come back as they are; a broken property as text.
    pub fn run(&mut self, op: &Op) -> Result<Check, crate::error::StorageFailed> {
        self.number += 1;
        let number = self.number;
        match op {
            Op::Append(sizes) => {
                let entries = self.entries(self.model.last() + 1, self.model.hard.term, sizes);
                let write = self.log.stage(number, None, &entries);
                self.staged.push(write);
            }
            Op::Overwrite { back, sizes } => {
                let room = self.model.last() - self.model.hard.commit.max(self.model.boundary.index);
                let from = self.model.last() + 1 - *back as u64 % (room + 1);
                let term = self.model.hard.term + 1;
                let entries = self.entries(from, term, sizes);
                let commit = self.model.hard.commit;
                self.model.hard = HardState { term, vote: NodeId(0), commit };
                self.note();
                let write = self.log.stage(number, Some(self.model.hard), &entries);
                self.staged.push(write);
            }
            Op::Vote(whom) => {
                self.model.hard.term += 1;
                self.model.hard.vote = NodeId(*whom as u64);
                self.note();
                let write = self.log.stage(number, Some(self.model.hard), &[]);
                assert!(write.bytes() > 0);
                self.staged.push(write);
            }
            Op::Commit(by) => {
                let room = self.model.last() - self.model.hard.commit;
                self.model.hard.commit += *by as u64 % (room + 1);
                self.note();
                let write = self.log.stage(number, Some(self.model.hard), &[]);
                assert_eq!(write.bytes(), 0, "a commit index alone needs no sync");
                self.staged.push(write);
            }
            Op::Cut(by) => {
                // Only what is durable and committed is applied, and only that is flushed and cut.
                self.write(9)?;
                let room = self.model.hard.commit.saturating_sub(self.model.boundary.index);
                let index = self.model.boundary.index + *by as u64 % (room + 1);
                let meta = boundary(index, self.model.term(index));
                if index > self.state.index {
                    self.state = meta.clone();
                }
                self.number += 1;
                if index > self.model.boundary.index {
                    self.model.entries.drain(..(index - self.model.boundary.index) as usize);
                    self.model.boundary = meta.clone();
                    self.note();
                }
                let write = match by % 2 {
                    0 => self.log.stage_cut(self.number, &meta),
                    _ => self.log.stage_forget(self.number, &meta),
                };
                self.staged.push(write);
            }
            Op::Snapshot(ahead) => {
                self.write(9)?;
                let index = self.model.last() + 1 + *ahead as u64 % 20;
                let term = self.model.hard.term;
                self.state = boundary(index, term);
                self.number += 1;
                let hard = HardState { commit: index, ..self.model.hard };
                self.model = Model { boundary: self.state.clone(), entries: Vec::new(), hard };
                self.note();
                let write = self.log.stage_snapshot(self.number, hard, &self.state);
                self.staged.push(write);
            }
            Op::Write(groups) => self.write(*groups as usize)?,
            Op::Prepare => self.writer.prepare()?,
            Op::Reopen => {
                let disk = self.disk.restart();
                return self.recover(disk);
            }
            Op::Crash => return self.crash(),
        }
        // Without power nothing can be read, but staging goes on.
        Ok(if self.disk.is_off() { Ok(()) } else { self.compare() })
    }

    fn write(&mut self, group: usize) -> Result<(), crate::error::StorageFailed> {
        while !self.staged.is_empty() {
            let rest = self.staged.split_off(group.min(self.staged.len()));
            let number = self.staged.last().expect("not empty").number;
            let proof = self.writer.write_all(std::mem::replace(&mut self.staged, rest))?;
            assert_eq!(proof.number(), number);
            let durable = self.may.iter().rposition(|(at, _)| *at <= proof.number());
            self.may.drain(..durable.expect("the first is durable"));
        }
        Ok(())
    }

    pub fn compare(&self) -> Check {
        let seen = view(&self.log);
        if seen == self.model { Ok(()) } else { Err(format!("log {seen:?}\nmodel {:?}", self.model)) }
    }

    pub fn crash(&mut self) -> Result<Check, crate::error::StorageFailed> {
        self.crashes += 1;
        let disk = self.disk.crash();
        self.recover(disk)
    }

    fn recover(&mut self, disk: SimDisk) -> Result<Check, crate::error::StorageFailed> {
        self.disk = disk.clone();
        let opened = Log::open(disk.clone(), OPTIONS, IDENTITY, Some(self.state.clone()))?;
        let (log, writer, restarted) = match opened {
            Opened::Ready { log, writer, restarted } => (log, writer, restarted),
            Opened::Behind { marker, end } => return Ok(Err(format!("behind: {marker:?} {end:?}"))),
        };
        let seen = view(&log);
        let found = self.may.iter().any(|(_, may)| {
            let expected = if restarted { self.restarted(may) } else { may.clone() };
            expected.promised() == seen.promised()
        });
        if !found {
            return Ok(Err(format!("recovered {seen:?}\n{restarted} none of {:#?}", self.may)));
        }
        let known = self.model.hard.commit.max(self.state.index);
        if seen.hard.commit > known || seen.hard.commit < self.state.index {
            return Ok(Err(format!("commit {} is none of ours", seen.hard.commit)));
        }
        self.model = seen.clone();
        (self.log, self.writer) = (log, writer);
        self.number = 0;
        self.may = vec![(0, seen)];
        self.staged.clear();
        Ok(self.compare())
    }

    fn restarted(&self, may: &Model) -> Model {
        let mut hard = may.hard;
        if self.state.term > hard.term {
            (hard.term, hard.vote) = (self.state.term, NodeId(0));
        }
        Model { boundary: self.state.clone(), entries: Vec::new(), hard }
    }
}
