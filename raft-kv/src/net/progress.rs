//! How far snapshots under way are, and how fast they may go: counted where the bytes pass, read
//! by whoever asks, said in the log now and then. Nothing here waits but [`Pace`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::limits::{BULK_CHUNK_BYTES, MIN_BULK_CHUNK_BYTES};
use crate::types::{NodeId, TransferCounts, TransferStatus};

/// A transfer says how far it is after so long,
const SAY_AFTER: Duration = Duration::from_secs(10);
/// or after so many percent.
const SAY_PERCENT: u64 = 10;

/// How fast all snapshots of one member may leave it together: bytes are paid for before they
/// go, so that never more have gone than the time since the start allows.
#[derive(Debug)]
pub struct Pace {
    /// Bytes per second; 0 for as fast as it goes.
    rate: u64,
    paid_until: Mutex<Option<Instant>>,
}

impl Pace {
    /// At no more than `rate` bytes per second; 0 for no bound.
    pub fn new(rate: u64) -> Self {
        Self { rate, paid_until: Mutex::new(None) }
    }

    /// Bytes of one chunk: small where the rate is, so that the flow is smooth and nobody thinks
    /// that it stalls.
    pub(super) fn chunk(&self) -> usize {
        let eighth = usize::try_from(self.rate / 8).unwrap_or(usize::MAX);
        if self.rate == 0 { BULK_CHUNK_BYTES } else { eighth.clamp(MIN_BULK_CHUNK_BYTES, BULK_CHUNK_BYTES) }
    }

    /// Waits until `bytes` more may go.
    pub(super) async fn pay(&self, bytes: usize) {
        if self.rate == 0 {
            return;
        }
        let until = {
            let mut paid_until = self.paid_until.lock();
            let begin = paid_until.unwrap_or_else(Instant::now).max(Instant::now());
            let until = begin + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
            *paid_until = Some(until);
            until
        };
        tokio::time::sleep_until(until).await;
    }
}

/// All snapshots of one member that are under way, and what passed since its start.
#[derive(Debug, Default)]
pub struct Transfers {
    sent: AtomicU64,
    received: AtomicU64,
    spared: AtomicU64,
    next: AtomicU64,
    under_way: Mutex<BTreeMap<u64, (Direction, Arc<Counts>)>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    Out,
    In,
}

impl Transfers {
    /// A snapshot begins to be sent to `member`.
    pub fn send(self: &Arc<Self>, member: NodeId) -> Transfer {
        self.begin(Direction::Out, member)
    }

    /// A snapshot begins to arrive from `member`.
    pub fn receive(self: &Arc<Self>, member: NodeId) -> Transfer {
        self.begin(Direction::In, member)
    }

    fn begin(self: &Arc<Self>, direction: Direction, member: NodeId) -> Transfer {
        let id = self.next.fetch_add(1, Relaxed);
        let counts = Arc::new(Counts {
            member,
            begun: Instant::now(),
            bytes: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            spared: AtomicU64::new(0),
        });
        self.under_way.lock().insert(id, (direction, counts.clone()));
        let said = Mutex::new((Instant::now(), 0));
        Transfer { all: self.clone(), id, direction, counts, said }
    }

    /// What passed, and what is under way. Who makes checkpoints counts them.
    pub fn counts(&self) -> TransferCounts {
        let under_way = self.under_way.lock();
        let list = |wanted| {
            let of = under_way.values().filter(|(direction, _)| *direction == wanted);
            of.map(|(_, counts)| counts.status()).collect()
        };
        TransferCounts {
            made: 0,
            sent: self.sent.load(Relaxed),
            received: self.received.load(Relaxed),
            spared: self.spared.load(Relaxed),
            sending: list(Direction::Out),
            receiving: list(Direction::In),
        }
    }
}

#[derive(Debug)]
struct Counts {
    member: NodeId,
    begun: Instant,
    bytes: AtomicU64,
    passed: AtomicU64,
    spared: AtomicU64,
}

impl Counts {
    fn status(&self) -> TransferStatus {
        let (passed, seconds) = (self.passed.load(Relaxed), self.begun.elapsed().as_secs_f64());
        TransferStatus {
            member: self.member,
            bytes: self.bytes.load(Relaxed),
            done: passed + self.spared.load(Relaxed),
            rate: (passed as f64 / seconds.max(0.001)) as u64,
        }
    }
}

/// One snapshot under way, for as long as this lives.
#[derive(Debug)]
pub struct Transfer {
    all: Arc<Transfers>,
    id: u64,
    direction: Direction,
    counts: Arc<Counts>,
    /// When it last said how far it is, and how far that was, in percent.
    said: Mutex<(Instant, u64)>,
}

impl Transfer {
    /// How large the whole is.
    pub(super) fn is_of(&self, bytes: u64) {
        self.counts.bytes.store(bytes, Relaxed);
    }

    /// The receiver has these already.
    pub(super) fn spare(&self, bytes: u64) {
        self.counts.spared.fetch_add(bytes, Relaxed);
        if self.direction == Direction::Out {
            self.all.spared.fetch_add(bytes, Relaxed);
        }
        self.say();
    }

    /// These have passed.
    pub(super) fn pass(&self, bytes: u64) {
        self.counts.passed.fetch_add(bytes, Relaxed);
        match self.direction {
            Direction::Out => self.all.sent.fetch_add(bytes, Relaxed),
            Direction::In => self.all.received.fetch_add(bytes, Relaxed),
        };
        self.say();
    }

    /// Bytes that passed, bytes that were there already, and how long it has taken.
    pub fn so_far(&self) -> (u64, u64, Duration) {
        let counts = &self.counts;
        (counts.passed.load(Relaxed), counts.spared.load(Relaxed), counts.begun.elapsed())
    }

    fn say(&self) {
        let status = self.counts.status();
        let (percent, now) = (status.percent(), Instant::now());
        let mut said = self.said.lock();
        if percent < 100 && (percent >= said.1 + SAY_PERCENT || now - said.0 >= SAY_AFTER) {
            *said = (now, percent);
            let TransferStatus { member, bytes, done, rate } = status;
            let what = match self.direction {
                Direction::Out => "a snapshot is being sent",
                Direction::In => "a snapshot is arriving",
            };
            tracing::info!(%member, done, bytes, percent, rate, "{what}");
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.all.under_way.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_seen_and_what_passed_stays() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let all = Arc::new(Transfers::default());
            let (out, arriving) = (all.send(NodeId(2)), all.receive(NodeId(3)));
            out.is_of(1000);
            out.spare(200);
            out.pass(300);
            arriving.is_of(0);
            arriving.pass(7);
            let counts = all.counts();
            let status = &counts.sending[0];
            assert_eq!(
                (status.member, status.bytes, status.done, status.percent()),
                (NodeId(2), 1000, 500, 50)
            );
            assert_eq!(counts.receiving[0].percent(), 100);
            assert_eq!((counts.sent, counts.spared, counts.received), (300, 200, 7));
            assert_eq!((out.so_far().0, out.so_far().1), (300, 200));
            drop((out, arriving));
            let counts = all.counts();
            assert!(counts.sending.is_empty() && counts.receiving.is_empty());
            assert_eq!((counts.sent, counts.spared, counts.received), (300, 200, 7));
        });
    }

    #[test]
    fn a_chunk_suits_its_rate() {
        for (rate, chunk) in [(0, 256 << 10), (1, 16 << 10), (1 << 20, 128 << 10), (u64::MAX, 256 << 10)] {
            assert_eq!(Pace::new(rate).chunk(), chunk, "{rate}");
        }
    }
}
