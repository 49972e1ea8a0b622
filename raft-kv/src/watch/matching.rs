//! Which watchers' ranges hold a key: a map for single keys, a tree of intervals for the rest.
//! What one key costs grows with the watchers that it concerns, not with all of them.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::WatcherId;
use crate::types::KeyRange;

/// Ranges and who watches them.
#[derive(Debug, Default)]
pub(super) struct Matching {
    single: BTreeMap<Bytes, BTreeSet<WatcherId>>,
    spans: Option<Box<Node>>,
    /// Spans added so far: where the tree's shape comes from.
    added: u64,
}

/// A span as the tree orders it; `end` `None` is behind every key.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Span {
    start: Bytes,
    end: Option<Bytes>,
}

/// A treap: in order of spans, a heap by `priority`, each node knowing how far the spans below
/// it reach.
#[derive(Debug)]
struct Node {
    span: Span,
    watchers: BTreeSet<WatcherId>,
    priority: u64,
    /// The furthest end of this node's span and of those below it.
    reach: Option<Bytes>,
    left: Option<Box<Node>>,
    right: Option<Box<Node>>,
}

impl Matching {
    /// Adds a watcher of `range`.
    pub(super) fn add(&mut self, range: &KeyRange, id: WatcherId) {
        if range.is_single() {
            self.single.entry(range.key.clone()).or_default().insert(id);
            return;
        }
        let span = Span { start: range.key.clone(), end: range.upper() };
        if let Some(node) = find(&mut self.spans, &span) {
            node.watchers.insert(id);
            return;
        }
        self.added += 1;
        let node = Node {
            reach: span.end.clone(),
            span,
            watchers: BTreeSet::from([id]),
            priority: scatter(self.added),
            left: None,
            right: None,
        };
        let (before, behind) = split(self.spans.take(), &node.span);
        self.spans = merge(merge(before, Some(Box::new(node))), behind);
    }

    /// Takes a watcher of `range` out.
    pub(super) fn remove(&mut self, range: &KeyRange, id: WatcherId) {
        if range.is_single() {
            if let Some(watchers) = self.single.get_mut(&range.key) {
                watchers.remove(&id);
                if watchers.is_empty() {
                    self.single.remove(&range.key);
                }
            }
            return;
        }
        let span = Span { start: range.key.clone(), end: range.upper() };
        let Some(node) = find(&mut self.spans, &span) else { return };
        node.watchers.remove(&id);
        if node.watchers.is_empty() {
            self.spans = without(self.spans.take(), &span);
        }
    }

    /// Calls `found` with each watcher whose range holds `key`, each once.
    pub(super) fn holding(&self, key: &[u8], mut found: impl FnMut(WatcherId)) {
        if let Some(watchers) = self.single.get(key) {
            watchers.iter().copied().for_each(&mut found);
        }
        stab(&self.spans, key, &mut found);
    }
}

impl Ord for Span {
    fn cmp(&self, other: &Self) -> Ordering {
        self.start.cmp(&other.start).then_with(|| compare_ends(&self.end, &other.end))
    }
}

impl PartialOrd for Span {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn compare_ends(a: &Option<Bytes>, b: &Option<Bytes>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.cmp(b),
        (a, b) => b.is_some().cmp(&a.is_some()),
    }
}

fn ends_behind(end: &Option<Bytes>, key: &[u8]) -> bool {
    end.as_ref().is_none_or(|end| end.as_ref() > key)
}

/// Numbers in a row to numbers all over (the finaliser of SplitMix64): the tree stays shallow
/// whatever order spans come in, and is the same in every run.
fn scatter(number: u64) -> u64 {
    let mut bits = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

impl Node {
    /// Sets `reach` again after a change below.
    fn refresh(&mut self) {
        let below = [&self.left, &self.right].into_iter().flatten().map(|node| &node.reach);
        let furthest = below.chain([&self.span.end]).max_by(|a, b| compare_ends(a, b));
        self.reach = furthest.cloned().flatten();
    }
}

fn find<'a>(tree: &'a mut Option<Box<Node>>, span: &Span) -> Option<&'a mut Node> {
    let node = tree.as_mut()?;
    match span.cmp(&node.span) {
        Ordering::Equal => Some(node),
        Ordering::Less => find(&mut node.left, span),
        Ordering::Greater => find(&mut node.right, span),
    }
}

/// The spans below `at`, and the others.
fn split(tree: Option<Box<Node>>, at: &Span) -> (Option<Box<Node>>, Option<Box<Node>>) {
    let Some(mut node) = tree else { return (None, None) };
    if node.span < *at {
        let (before, behind) = split(node.right.take(), at);
        node.right = before;
        node.refresh();
        (Some(node), behind)
    } else {
        let (before, behind) = split(node.left.take(), at);
        node.left = behind;
        node.refresh();
        (before, Some(node))
    }
}

/// Joins two trees, all of `before` being below all of `behind`.
fn merge(before: Option<Box<Node>>, behind: Option<Box<Node>>) -> Option<Box<Node>> {
    match (before, behind) {
        (None, tree) | (tree, None) => tree,
        (Some(mut before), Some(behind)) if before.priority > behind.priority => {
            before.right = merge(before.right.take(), Some(behind));
            before.refresh();
            Some(before)
        }
        (before, Some(mut behind)) => {
            behind.left = merge(before, behind.left.take());
            behind.refresh();
            Some(behind)
        }
    }
}

fn without(tree: Option<Box<Node>>, span: &Span) -> Option<Box<Node>> {
    let mut node = tree?;
    match span.cmp(&node.span) {
        Ordering::Equal => return merge(node.left.take(), node.right.take()),
        Ordering::Less => node.left = without(node.left.take(), span),
        Ordering::Greater => node.right = without(node.right.take(), span),
    }
    node.refresh();
    Some(node)
}

fn stab(tree: &Option<Box<Node>>, key: &[u8], found: &mut impl FnMut(WatcherId)) {
    let Some(node) = tree else { return };
    if !ends_behind(&node.reach, key) {
        return;
    }
    stab(&node.left, key, found);
    if node.span.start.as_ref() <= key {
        if ends_behind(&node.span.end, key) {
            node.watchers.iter().copied().for_each(&mut *found);
        }
        stab(&node.right, key, found);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holding(matching: &Matching, key: &[u8]) -> Vec<WatcherId> {
        let mut ids = Vec::new();
        matching.holding(key, |id| ids.push(id));
        ids.sort_unstable();
        ids
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        let key = || prop::collection::vec(0u8..4, 1..3);
        prop_oneof![
            key().prop_map(KeyRange::key),
            key().prop_map(|key| KeyRange::span(key, &b"\0"[..])),
            key().prop_map(KeyRange::prefix),
            (key(), key()).prop_map(|(a, b)| KeyRange::span(a, b)),
        ]
    }

    proptest! {
        #[test]
        fn equals_asking_every_range(
            steps in prop::collection::vec((range(), any::<bool>()), 0..60),
            keys in prop::collection::vec(prop::collection::vec(0u8..5, 1..4), 1..20),
        ) {
            let mut matching = Matching::default();
            let mut ranges: BTreeMap<WatcherId, KeyRange> = BTreeMap::new();
            for (id, (range, take_out)) in steps.into_iter().enumerate() {
                matching.add(&range, id as u64);
                ranges.insert(id as u64, range);
                if take_out {
                    let (gone, range) = ranges.pop_first().unwrap();
                    matching.remove(&range, gone);
                }
                for key in &keys {
                    let expect: Vec<WatcherId> = ranges.iter()
                        .filter(|(_, range)| range.contains(key)).map(|(id, _)| *id).collect();
                    prop_assert_eq!(holding(&matching, key), expect);
                }
            }
        }
    }

    fn depth(tree: &Option<Box<Node>>) -> usize {
        tree.as_ref().map_or(0, |node| 1 + depth(&node.left).max(depth(&node.right)))
    }

    #[test]
    fn stays_shallow_for_nested_and_ordered_ranges() {
        let mut matching = Matching::default();
        for id in 0..20_000u64 {
            let start = format!("{id:08}");
            matching.add(&KeyRange::span(start, "z"), id);
        }
        assert!(depth(&matching.spans) < 50, "{}", depth(&matching.spans));
        assert_eq!(holding(&matching, b"00000002x"), [0, 1, 2]);
    }
}
