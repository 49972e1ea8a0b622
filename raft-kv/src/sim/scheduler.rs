//! The virtual clock: a queue of (time, sequence, event), chance from one seed, and the trace.
//!
//! Two runs from one seed must take the same events in the same order; the trace's hash says
//! whether they did. Nothing here may look at a real clock or at chance from outside.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Chance for one concern. Concerns draw from streams of their own, so that a further draw in one
/// place does not reshuffle all others.
pub fn stream(seed: u64, concern: &str) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(u64::from(crc32c::crc32c(concern.as_bytes())));
    random
}

/// A span of time between two bounds, short ones likelier than long ones.
pub fn span(random: &mut ChaCha8Rng, least: Duration, most: Duration) -> Duration {
    let part: f64 = random.random::<f64>();
    least + most.saturating_sub(least).mul_f64(part * part)
}

struct Item<E> {
    at: Duration,
    sequence: u64,
    event: E,
}

impl<E> PartialEq for Item<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl<E> Eq for Item<E> {}

impl<E> PartialOrd for Item<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Item<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// What happens when. Events of one moment come in the order they were given.
pub struct Scheduler<E> {
    now: Duration,
    sequence: u64,
    taken: u64,
    queue: BinaryHeap<Reverse<Item<E>>>,
}

impl<E> Default for Scheduler<E> {
    fn default() -> Self {
        Self { now: Duration::ZERO, sequence: 0, taken: 0, queue: BinaryHeap::new() }
    }
}

impl<E> Scheduler<E> {
    /// The simulated time.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// How many events have been taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Puts an event `delay` from now.
    pub fn after(&mut self, delay: Duration, event: E) {
        self.at(self.now + delay, event);
    }

    /// Puts an event at a time, which is raised to now where it has passed.
    pub fn at(&mut self, at: Duration, event: E) {
        let at = at.max(self.now);
        self.sequence += 1;
        self.queue.push(Reverse(Item { at, sequence: self.sequence, event }));
    }

    /// When the next event is due.
    pub fn next_at(&self) -> Option<Duration> {
        self.queue.peek().map(|item| item.0.at)
    }

    /// Takes the next event and moves the clock to it.
    pub fn take(&mut self) -> Option<E> {
        let Reverse(item) = self.queue.pop()?;
        self.now = item.at;
        self.taken += 1;
        Some(item.event)
    }

    /// Moves the clock, which must not jump over an event.
    pub fn advance_to(&mut self, at: Duration) {
        assert!(self.next_at().is_none_or(|next| next >= at), "time must not jump over an event");
        self.now = self.now.max(at);
    }
}

/// All that happened as one number, and as lines of text for those who ask for them.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// An empty trace; with `text` it keeps lines too.
    pub fn new(text: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, lines: text.then(Vec::new) }
    }

    /// Folds numbers in.
    pub fn fold(&mut self, numbers: &[u64]) {
        for number in numbers {
            let mixed = (self.hash ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.hash = mixed ^ (mixed >> 29);
        }
    }

    /// Folds bytes in.
    pub fn fold_bytes(&mut self, bytes: &[u8]) {
        self.fold(&[u64::from(crc32c::crc32c(bytes)), bytes.len() as u64]);
    }

    /// Keeps a line, if lines are kept.
    pub fn line(&mut self, now: Duration, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>12.6} {}", now.as_secs_f64(), line()));
        }
    }

    /// The number so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The lines so far.
    pub fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_then_in_the_order_given() {
        let mut scheduler = Scheduler::default();
        let ms = Duration::from_millis;
        for (at, event) in [(5, 'c'), (1, 'a'), (5, 'd'), (3, 'b')] {
            scheduler.at(ms(at), event);
        }
        let mut seen = Vec::new();
        while let Some(event) = scheduler.take() {
            seen.push((scheduler.now(), event));
        }
        assert_eq!(seen, [(ms(1), 'a'), (ms(3), 'b'), (ms(5), 'c'), (ms(5), 'd')]);
        scheduler.at(ms(1), 'e');
        assert_eq!(scheduler.next_at(), Some(ms(5)), "the past is raised to now");
        assert_eq!(scheduler.taken(), 4);
    }

    #[test]
    fn chance_is_the_same_for_a_seed_and_differs_between_concerns() {
        let draw = |seed, concern| stream(seed, concern).random::<u64>();
        assert_eq!(draw(1, "network"), draw(1, "network"));
        assert_ne!(draw(1, "network"), draw(1, "faults"));
        assert_ne!(draw(1, "network"), draw(2, "network"));
    }

    #[test]
    fn the_hash_tells_orders_apart() {
        let hash = |parts: &[&[u64]]| {
            let mut trace = Trace::new(false);
            parts.iter().for_each(|part| trace.fold(part));
            trace.hash()
        };
        assert_eq!(hash(&[&[1, 2], &[3]]), hash(&[&[1], &[2, 3]]));
        assert_ne!(hash(&[&[1, 2]]), hash(&[&[2, 1]]));
    }
}
