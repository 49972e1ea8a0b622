//! The side of the log that touches the disk.
//!
//! One group: one write and one sync for each segment it touches (nearly always one), then one
//! write and one sync of the marker, then the proof. It must never mint the proof earlier, and after
//! the first error it refuses everything: nobody knows what is on disk then.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;

use super::format::{Identity, Marker};
use super::segments::{MARKER, Pool, Segment, segment_name};
use super::view::{Chunk, LogWrite};
use super::{Options, Shared, Stats};
use crate::error::StorageFailed;
use crate::planted;
use crate::raft::Proof;
use crate::storage::files::{File, Files};

/// That a write and all before it are on disk for good. Only [`LogWriter`] makes one, after the
/// syncs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Durable {
    number: u64,
}

impl Proof for Durable {
    fn number(&self) -> u64 {
        self.number
    }
}

/// Writes what a [`Log`](super::Log) staged, in the order it was staged.
pub struct LogWriter<F: Files> {
    shared: Arc<Shared<F>>,
    options: Options,
    identity: Identity,
    pool: Pool<F>,
    current: Option<Segment<F::File>>,
    prepared: Option<Segment<F::File>>,
    marker: F::File,
    counter: u64,
    last_number: u64,
    failed: Option<StorageFailed>,
    stats: Stats,
}

impl<F: Files> std::fmt::Debug for LogWriter<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWriter").field("failed", &self.failed).field("stats", &self.stats).finish()
    }
}

impl<F: Files> LogWriter<F> {
    pub(super) fn new(
        shared: Arc<Shared<F>>,
        options: Options,
        identity: Identity,
        pool: Pool<F>,
        current: Option<Segment<F::File>>,
        (marker, counter): (F::File, u64),
    ) -> Self {
        Self {
            shared,
            options,
            identity,
            pool,
            current,
            prepared: None,
            marker,
            counter,
            last_number: 0,
            failed: None,
            stats: Stats::default(),
        }
    }

    /// Writes one staged write; see [`write_all`](Self::write_all).
    pub fn write(&mut self, write: LogWrite) -> Result<Durable, StorageFailed> {
        self.write_all(vec![write])
    }

    /// Writes all of `writes`, which must follow each other and those before in the order they were
    /// staged, as one group. The proof is for the last and so for all. After an error the writer
    /// refuses everything with that error. Panics where `writes` is empty or out of order.
    pub fn write_all(&mut self, writes: Vec<LogWrite>) -> Result<Durable, StorageFailed> {
        self.guarded(|writer| writer.persist(writes))
    }

    /// Makes the next segment ready, if it is not. For idle moments: a write that finds no segment
    /// ready makes it itself and is slow.
    pub fn prepare(&mut self) -> Result<(), StorageFailed> {
        self.guarded(|writer| {
            if let (None, Some(current)) = (&writer.prepared, &writer.current) {
                let next = current.sequence + 1;
                writer.prepared = Some(writer.pool.prepare(next, writer.options.segment_bytes)?);
                writer.stats.prepared += 1;
            }
            Ok(())
        })
    }

    /// Whether [`prepare`](Self::prepare) has something to do.
    pub fn wants_prepare(&self) -> bool {
        self.prepared.is_none() && self.failed.is_none()
    }

    /// Work done so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    fn guarded<R>(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<R, StorageFailed>,
    ) -> Result<R, StorageFailed> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        run(self).inspect_err(|failed| self.failed = Some(failed.clone()))
    }

    fn persist(&mut self, writes: Vec<LogWrite>) -> Result<Durable, StorageFailed> {
        assert!(!writes.is_empty(), "a group has at least one write");
        let count = writes.len() as u64;
        let mut chunks: Vec<Chunk> = Vec::new();
        let (mut free, mut wiped) = (Vec::new(), Vec::new());
        let mut marker = None;
        for write in writes {
            assert!(
                write.number > self.last_number || write.number == 0,
                "writes arrive in the order they were staged"
            );
            self.last_number = write.number;
            marker = write.mark.or(marker);
            if write.wipe {
                wiped.extend(write.free)
            } else {
                free.extend(write.free)
            }
            write.chunks.into_iter().for_each(|chunk| merge(&mut chunks, chunk));
        }
        if planted!(RecycleEarly) {
            self.pool.recycle(std::mem::take(&mut free).into_iter())?;
        }
        let marker = marker.map(|mut marker| {
            self.counter += 1;
            marker.counter = self.counter;
            marker.identity = self.identity;
            marker
        });
        if let (Some(marker), true) = (marker, planted!(MarkerBeforeLog)) {
            self.put_marker(marker)?;
        }
        for chunk in &chunks {
            self.put_chunk(chunk)?;
        }
        if let (Some(marker), false) = (marker, planted!(MarkerBeforeLog)) {
            self.put_marker(marker)?;
        }
        self.stats.writes += count;
        self.stats.batches += u64::from(!chunks.is_empty());
        let durable = Durable { number: self.last_number };
        self.shared.durable.store(durable.number, Ordering::Release);
        // Only now: what these segments held is replaced by what was just synced.
        self.pool.recycle(free.into_iter())?;
        self.pool.wipe(&wiped)?;
        Ok(durable)
    }

    fn put_chunk(&mut self, chunk: &Chunk) -> Result<(), StorageFailed> {
        if self.current.as_ref().is_none_or(|current| current.sequence != chunk.sequence) {
            self.advance(chunk.sequence, chunk.length)?;
        }
        let current = self.current.as_ref().expect("a segment was just opened");
        assert!(
            chunk.offset + chunk.bytes.len() as u64 <= current.length && chunk.length == current.length,
            "records stay within their segment"
        );
        let failed =
            |action: &str, e: &std::io::Error| self.shared.failed(&segment_name(current.sequence), action, e);
        current.file.write_at(chunk.offset, &chunk.bytes).map_err(|e| failed("writing it", &e))?;
        if !planted!(SkipFsync) {
            let mut synced = current.file.sync();
            if synced.is_err() && planted!(RetrySync) {
                synced = current.file.sync();
            }
            synced.map_err(|e| failed("syncing it", &e))?;
        }
        self.stats.fsyncs += 1;
        self.stats.bytes += chunk.bytes.len() as u64;
        Ok(())
    }

    fn advance(&mut self, sequence: u64, length: u64) -> Result<(), StorageFailed> {
        let ready = match self.prepared.take() {
            Some(ready) if ready.sequence == sequence && ready.length == length => ready,
            Some(unfit) => {
                assert_eq!(unfit.sequence, sequence, "segments follow each other");
                drop(unfit);
                self.pool.recycle(std::iter::once(sequence))?;
                self.pool.prepare(sequence, length)?
            }
            None => self.pool.prepare(sequence, length)?,
        };
        self.current = Some(ready);
        Ok(())
    }

    fn put_marker(&mut self, marker: Marker) -> Result<(), StorageFailed> {
        let bytes = marker.twice();
        let failed = |action: &str, e: &std::io::Error| self.shared.failed(MARKER, action, e);
        self.marker.write_at(Marker::slot(marker.counter), &bytes).map_err(|e| failed("writing it", &e))?;
        self.marker.sync().map_err(|e| failed("syncing it", &e))?;
        self.stats.fsyncs += 1;
        self.stats.bytes += bytes.len() as u64;
        Ok(())
    }
}

// Chunks of one segment follow each other without a gap, so they become one write.
fn merge(chunks: &mut Vec<Chunk>, chunk: Chunk) {
    match chunks.last_mut() {
        Some(last) if last.sequence == chunk.sequence => {
            assert_eq!(last.offset + last.bytes.len() as u64, chunk.offset, "no gap between writes");
            let mut bytes = BytesMut::with_capacity(0);
            std::mem::swap(&mut bytes, &mut last.bytes);
            bytes.extend_from_slice(&chunk.bytes);
            last.bytes = bytes;
        }
        _ => chunks.push(chunk),
    }
}
