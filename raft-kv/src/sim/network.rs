//! The network between members: for each directed link a delay, loss, duplicates, reordering and
//! cuts. It decides when a frame arrives, and whether; it never looks into one.
//!
//! A link is in order unless reordering is on. It may lose what the product's transport would
//! only lose with a broken connection: whoever bears this bears that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::scheduler::span;
use crate::types::NodeId;

/// The longest way of a slow frame.
const SLOWEST: Duration = Duration::from_secs(2);

/// How links behave.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct NetworkOptions {
    /// The shortest way.
    pub least_delay: Duration,
    /// The longest usual way.
    pub most_delay: Duration,
    /// Chance that a frame takes up to two seconds.
    pub slow: f64,
    /// Chance that a frame is lost.
    pub loss: f64,
    /// Chance that a frame which may come twice does.
    pub duplicates: f64,
    /// Chance that a frame does not wait for those before it.
    pub reorder: f64,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            least_delay: Duration::from_micros(100),
            most_delay: Duration::from_millis(2),
            slow: 0.0,
            loss: 0.0,
            duplicates: 0.0,
            reorder: 0.0,
        }
    }
}

/// What the network did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NetworkCounts {
    /// Frames handed in.
    pub sent: u64,
    /// Frames lost by chance.
    pub lost: u64,
    /// Frames lost at a cut.
    pub cut: u64,
    /// Frames that came twice.
    pub duplicated: u64,
    /// Frames that overtook others.
    pub reordered: u64,
}

/// The links between all members.
#[derive(Debug)]
pub struct Network {
    random: ChaCha8Rng,
    options: NetworkOptions,
    /// When the last frame of a link arrives.
    last: BTreeMap<(NodeId, NodeId), Duration>,
    cuts: BTreeSet<(NodeId, NodeId)>,
    counts: NetworkCounts,
}

impl Network {
    /// All links whole; chance comes from `random`.
    pub fn new(random: ChaCha8Rng, options: NetworkOptions) -> Self {
        let counts = NetworkCounts::default();
        Self { random, options, last: BTreeMap::new(), cuts: BTreeSet::new(), counts }
    }

    /// How links behave from now on.
    pub fn set_options(&mut self, options: NetworkOptions) {
        self.options = options;
    }

    /// Cuts the link in this direction alone.
    pub fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cuts.insert((from, to));
    }

    /// Cuts all links between the two sides, both ways.
    pub fn split(&mut self, one: &[NodeId], other: &[NodeId]) {
        for a in one {
            for b in other.iter().filter(|b| *b != a) {
                self.cut(*a, *b);
                self.cut(*b, *a);
            }
        }
    }

    /// Makes all links whole.
    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    /// Whether a frame in this direction would be lost at a cut.
    pub fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cuts.contains(&(from, to))
    }

    /// What happened so far.
    pub fn counts(&self) -> NetworkCounts {
        self.counts
    }

    /// When a frame handed in now arrives: never, once, or twice where it `may_repeat`.
    pub fn send(
        &mut self,
        now: Duration,
        (from, to): (NodeId, NodeId),
        may_repeat: bool,
    ) -> [Option<Duration>; 2] {
        self.counts.sent += 1;
        if self.is_cut(from, to) {
            self.counts.cut += 1;
            return [None, None];
        }
        if self.chance(self.options.loss) {
            self.counts.lost += 1;
            return [None, None];
        }
        let first = self.arrival(now, (from, to));
        if may_repeat && self.chance(self.options.duplicates) {
            self.counts.duplicated += 1;
            return [Some(first), Some(self.arrival(now, (from, to)))];
        }
        [Some(first), None]
    }

    fn chance(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.random.random_bool(chance)
    }

    fn arrival(&mut self, now: Duration, link: (NodeId, NodeId)) -> Duration {
        let options = self.options;
        let most = if self.chance(options.slow) { SLOWEST } else { options.most_delay };
        let at = now + span(&mut self.random, options.least_delay, most);
        let overtakes = self.chance(options.reorder);
        let last = self.last.entry(link).or_default();
        if at < *last {
            if overtakes {
                self.counts.reordered += 1;
                return at;
            }
            return *last;
        }
        *last = at;
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::scheduler::stream;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn arrivals(options: NetworkOptions, frames: u64) -> (Vec<Duration>, NetworkCounts) {
        let mut network = Network::new(stream(7, "test"), options);
        let mut all = Vec::new();
        for frame in 0..frames {
            let now = Duration::from_micros(frame * 10);
            all.extend(network.send(now, (A, B), true).into_iter().flatten());
        }
        (all, network.counts())
    }

    #[test]
    fn a_whole_link_keeps_the_order_and_loses_nothing() {
        let (all, counts) = arrivals(NetworkOptions { slow: 0.1, ..NetworkOptions::default() }, 1000);
        assert!(all.is_sorted() && all.len() == 1000);
        assert_eq!((counts.lost, counts.duplicated, counts.reordered), (0, 0, 0));
    }

    #[test]
    fn each_fault_happens_when_it_is_on() {
        let calm = NetworkOptions::default();
        let (_, counts) = arrivals(NetworkOptions { loss: 0.1, ..calm }, 1000);
        assert!(counts.lost > 50, "{counts:?}");
        let (_, counts) = arrivals(NetworkOptions { duplicates: 0.1, ..calm }, 1000);
        assert!(counts.duplicated > 50, "{counts:?}");
        let (all, counts) = arrivals(NetworkOptions { reorder: 0.5, ..calm }, 1000);
        assert!(counts.reordered > 50 && !all.is_sorted(), "{counts:?}");
    }

    #[test]
    fn a_cut_has_a_direction_and_heals() {
        let mut network = Network::new(stream(7, "test"), NetworkOptions::default());
        let now = Duration::ZERO;
        network.cut(A, B);
        assert_eq!(network.send(now, (A, B), true), [None, None]);
        assert!(network.send(now, (B, A), true)[0].is_some());
        network.split(&[A], &[A, B]);
        assert!(network.is_cut(B, A) && !network.is_cut(A, A));
        network.heal();
        assert!(network.send(now, (A, B), true)[0].is_some());
    }
}
