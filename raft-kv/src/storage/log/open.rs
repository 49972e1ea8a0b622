//! Making a log, and opening one: the only place that decides whether this member may go on.
//!
//! What is decided, with `end` the last entry that the chain of records holds, `marker` the last
//! acknowledged one and `state` the last entry that the flushed state holds (a missing state counts
//! as index 0):
//!
//! | the chain | the state | answer |
//! |---|---|---|
//! | reaches the marker | before the boundary | damaged: entries between state and log are gone |
//! | reaches the marker | within the log, same term | ready |
//! | reaches the marker | within the log, higher term than the log's entry there | ready, restarted behind the state: a snapshot was installed and a crash came before the log knew |
//! | reaches the marker | within the log, lower term | damaged: a committed entry can't be replaced by one of a higher term |
//! | reaches the marker | behind the log's end | ready, restarted: same reason |
//! | ends before the marker | at or past the marker, by (term, index) | ready, restarted: the state holds all that was acknowledged and could count, the marker has vote and term |
//! | ends before the marker | before the marker | [`Opened::Behind`] |
//! | breaks before the marker, right records behind the break | any | damaged |
//! | no whole marker | any | damaged |
//!
//! Why a state past the marker is enough: with (term, index) of the state at or past the marker's,
//! every acknowledged entry either has an index within the state, or a term below one that the
//! committed log has at an earlier index, and so can never be committed. Vote and term are in the
//! marker itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::format::{Identity, Kind, MARKER_BYTES, Marker, Position};
use super::replay::{Replayed, check_identity, read_marker, replay};
use super::segments::{MARKER, MARKER_NEW, Pool, Segment, segment_name, segment_sequence};
use super::view::{Log, Tail};
use super::writer::LogWriter;
use super::{Opened, Options, Shared};
use crate::codec::Wire;
use crate::error::StorageFailed;
use crate::planted;
use crate::storage::files::{File, Files};
use crate::types::{HardState, NodeId, SnapshotMeta};

impl<F: Files> Log<F> {
    /// Whose log is in `files`; `None` where none was made, or making it was interrupted.
    pub fn find(files: &F) -> Result<Option<Identity>, StorageFailed> {
        let names = files.list().map_err(|e| StorageFailed::io(files.describe(), "listing it", &e))?;
        if !names.iter().any(|name| name == MARKER) {
            return Ok(None);
        }
        read_marker(files).map(|(_, marker)| Some(marker.identity))
    }

    /// Makes a log that begins behind `boundary` (index 1, term 1 where a cluster begins; index 0
    /// where a member joins and waits for a snapshot) and is durable when this returns. What an
    /// interrupted attempt left is removed. Panics where a log exists: [`find`](Self::find) tells.
    pub fn create(
        files: F,
        options: Options,
        identity: Identity,
        boundary: SnapshotMeta,
        hard: HardState,
    ) -> Result<(Self, LogWriter<F>), StorageFailed> {
        let shared = Shared::new(files);
        let names = list(&shared)?;
        assert!(!names.iter().any(|name| name == MARKER), "a log is never made over another");
        for name in names.iter().filter(|name| *name == MARKER_NEW || segment_sequence(name).is_some()) {
            shared.files.remove(name).map_err(|e| shared.failed(name, "removing it", &e))?;
        }
        // Synced before the names are used again: else a removed one could come back in their place.
        shared.files.sync_folder().map_err(|e| shared.failed("", "syncing the folder", &e))?;
        let failed = |action: &str, e: &std::io::Error| shared.failed(MARKER_NEW, action, e);
        let marker = shared.files.create(MARKER_NEW, MARKER_BYTES).map_err(|e| failed("making it", &e))?;
        marker.sync().map_err(|e| failed("syncing it", &e))?;
        let pool = Pool::new(Arc::clone(&shared), options, identity, 1, &names)?;
        let mut writer = LogWriter::new(Arc::clone(&shared), options, identity, pool, None, (marker, 0));
        let mut log = Self::fresh(Arc::clone(&shared), options, identity, 1, 0, hard, boundary);
        log.begin(&mut writer, None)?;
        // The marker's name makes it a log: last.
        shared.files.rename(MARKER_NEW, MARKER).map_err(|e| failed("renaming it", &e))?;
        shared.files.sync_folder().map_err(|e| shared.failed("", "syncing the folder", &e))?;
        Ok((log, writer))
    }

    /// Opens a log that [`create`](Self::create) made. `state` is what the flushed state holds, for
    /// the table at the head of this file's source (`docs/disk.md` has it too); no state counts as
    /// one at index 0. Writes to the log, unless the answer is [`Opened::Behind`] or an error.
    pub fn open(
        files: F,
        options: Options,
        identity: Identity,
        state: Option<SnapshotMeta>,
    ) -> Result<Opened<F>, StorageFailed> {
        let shared = Shared::new(files);
        let names = list(&shared)?;
        let (marker_file, marker) = read_marker(&shared.files)?;
        check_identity(&shared.files, MARKER, marker.identity, identity)?;
        let mut found = replay(&shared.files, &options, &marker, &names)?;
        if planted!(IgnoreMarker) && found.tail.is_some() {
            found.reached = true;
        }
        merge_promises(&shared, &marker, &mut found)?;
        let state = state.unwrap_or_default();
        let plan = decide(&shared, &marker, &found, &state)?;
        if plan == Plan::Behind {
            return Ok(Opened::Behind { marker: marker.acked, end: found.end });
        }
        // What the state holds is committed, whether or not the commit index had reached the disk.
        found.hard.commit = found.hard.commit.max(state.index);
        let epoch = marker.counter + 1;
        let present: Vec<u64> = names.iter().filter_map(|name| segment_sequence(name)).collect();
        let tail = found.tail;
        let pool = Pool::new(Arc::clone(&shared), options, identity, epoch, &names)?;
        let writer = |pool, current| {
            let marker = (marker_file, marker.counter);
            LogWriter::new(Arc::clone(&shared), options, identity, pool, current, marker)
        };
        let restart = raised(found.hard, &state);
        let (mut log, mut writer) = match (plan, tail) {
            (Plan::Replace, _) | (_, None) => {
                let last = present.iter().copied().max().unwrap_or(0).max(marker.sequence);
                let log =
                    Self::fresh(Arc::clone(&shared), options, identity, epoch, last, restart, state.clone());
                let mut pool = pool;
                pool.recycle(present.into_iter())?;
                (log, writer(pool, None))
            }
            (_, Some(tail)) => {
                let log = Self::found(Arc::clone(&shared), options, identity, epoch, found, tail);
                let current = log.settle(&marker, pool, &present)?;
                (log, writer(current.1, Some(current.0)))
            }
        };
        log.begin(&mut writer, (plan == Plan::Restart).then_some((restart, state)))?;
        Ok(Opened::Ready { log, writer, restarted: plan != Plan::Keep })
    }

    fn fresh(
        shared: Arc<Shared<F>>,
        options: Options,
        identity: Identity,
        epoch: u64,
        last_sequence: u64,
        hard: HardState,
        boundary: SnapshotMeta,
    ) -> Self {
        assert!(options.segment_bytes >= 4096, "a segment has room for its start");
        Self {
            shared,
            options,
            identity,
            epoch,
            hard,
            recorded: hard,
            boundary,
            slots: VecDeque::new(),
            cache: VecDeque::new(),
            cache_bytes: 0,
            // Full, so that the first record begins a segment.
            tail: Tail { sequence: last_sequence, offset: 0, length: 0, salt: 0, chain: 0 },
            oldest: last_sequence + 1,
            readers: Mutex::new(BTreeMap::new()),
        }
    }

    pub(super) fn found(
        shared: Arc<Shared<F>>,
        options: Options,
        identity: Identity,
        epoch: u64,
        found: Replayed,
        tail: Tail,
    ) -> Self {
        let mut log = Self::fresh(shared, options, identity, epoch, 0, found.hard, found.boundary);
        log.recorded = found.recorded;
        log.slots = found.slots;
        log.tail = tail;
        log.oldest = log.needed();
        log.keep(found.entries.into_iter());
        log
    }

    // Syncs what may have been read from the page cache alone, then gives up segments that nothing
    // needs. Returns the segment that is written next.
    fn settle(
        &self,
        marker: &Marker,
        mut pool: Pool<F>,
        present: &[u64],
    ) -> Result<(Segment<F::File>, Pool<F>), StorageFailed> {
        let mut current = None;
        for sequence in marker.sequence..=self.tail.sequence {
            let name = segment_name(sequence);
            let file =
                self.shared.files.open(&name).map_err(|e| self.shared.failed(&name, "opening it", &e))?;
            file.sync().map_err(|e| self.shared.failed(&name, "syncing it", &e))?;
            current = Some(file);
        }
        let kept = self.oldest..=self.tail.sequence;
        pool.recycle(present.iter().copied().filter(|sequence| !kept.contains(sequence)))?;
        let file = current.expect("the chain ends at or behind the marker");
        Ok((Segment { sequence: self.tail.sequence, length: self.tail.length, file }, pool))
    }

    // The first write of each run: from here on the chain differs from any that was cut off.
    fn begin(
        &mut self,
        writer: &mut LogWriter<F>,
        restart: Option<(HardState, SnapshotMeta)>,
    ) -> Result<(), StorageFailed> {
        let mut chunks = Vec::new();
        let last = self.last();
        let epoch = self.epoch.to_bytes();
        self.append(&mut chunks, Kind::Opened, (last.term, last.index), &[&epoch]);
        if self.hard != self.recorded {
            self.append_hard(&mut chunks);
        }
        let mut write = self.finish(0, chunks, 0..0);
        if let Some((hard, meta)) = restart {
            use crate::raft::LogView;
            let more = self.stage_snapshot(0, hard, &meta);
            write.chunks.extend(more.chunks);
            write.mark = more.mark;
            write.free = more.free;
        }
        writer.write(write).map(|_| ())
    }
}

pub(super) fn list<F: Files>(shared: &Shared<F>) -> Result<Vec<String>, StorageFailed> {
    let mut names = shared.files.list().map_err(|e| shared.failed("", "listing the folder", &e))?;
    names.sort();
    Ok(names)
}

// Vote and term: the higher of what the log and the marker say. The log of a healthy member is
// never behind the marker here; that of a member which restarts behind its state may be.
pub(super) fn merge_promises<F: Files>(
    shared: &Shared<F>,
    marker: &Marker,
    found: &mut Replayed,
) -> Result<(), StorageFailed> {
    let hard = &mut found.hard;
    if marker.term > hard.term {
        (hard.term, hard.vote) = (marker.term, marker.vote);
    } else if marker.term == hard.term && marker.vote.0 != 0 {
        if hard.vote.0 != 0 && hard.vote != marker.vote {
            let why = format!("it says vote {} in term {}, the log {}", marker.vote, hard.term, hard.vote);
            return Err(StorageFailed::damaged(shared.path(MARKER), why));
        }
        hard.vote = marker.vote;
    }
    // The crash came between an entry and the hard state of its term: as if only heard of.
    if found.end.term > hard.term {
        (hard.term, hard.vote) = (found.end.term, NodeId(0));
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Plan {
    Keep,
    // A snapshot record behind the chain.
    Restart,
    // A new chain, the old one is of no use.
    Replace,
    Behind,
}

pub(super) fn decide<F: Files>(
    shared: &Shared<F>,
    marker: &Marker,
    found: &Replayed,
    state: &SnapshotMeta,
) -> Result<Plan, StorageFailed> {
    let boundary = &found.boundary;
    if !found.reached {
        let covered = state.index > 0 && Position { term: state.term, index: state.index } >= marker.acked;
        return Ok(if covered { Plan::Replace } else { Plan::Behind });
    }
    let damaged = |why: String| Err(StorageFailed::damaged(shared.files.describe(), why));
    if state.index < boundary.index {
        return damaged(format!(
            "the state ends with entry {}, the log begins with {}: those between are gone",
            state.index,
            boundary.index + 1
        ));
    }
    if state.index > found.end.index {
        return Ok(Plan::Restart);
    }
    let term = match state.index - boundary.index {
        0 => boundary.term,
        place => found.slots[place as usize - 1].term,
    };
    if state.term > term {
        return Ok(Plan::Restart);
    }
    if state.term < term {
        return damaged(format!(
            "entry {} has term {} in the state and term {term} in the log, which came later",
            state.index, state.term
        ));
    }
    Ok(Plan::Keep)
}

// The hard state of a log that restarts behind `state`.
fn raised(hard: HardState, state: &SnapshotMeta) -> HardState {
    let mut hard = HardState { commit: state.index, ..hard };
    if state.term > hard.term {
        (hard.term, hard.vote) = (state.term, NodeId(0));
    }
    hard
}
