//! Sets of keys as merged spans: what several permissions allow together. A range that lies across
//! two of them is allowed where they meet.

use bytes::Bytes;

use crate::types::KeyRange;

/// Disjoint, ascending, none touching the next. `None` has no end.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Spans(Vec<(Bytes, Option<Bytes>)>);

/// First key and first key behind; no key is empty, so the smallest is one zero byte.
fn bounds(range: &KeyRange) -> (Bytes, Option<Bytes>) {
    if range.key.is_empty() {
        // A watch of the empty key is one of the smallest there can be.
        let smallest = KeyRange::span(&b"\0"[..], range.end.clone());
        let upper = smallest.upper();
        return (smallest.key, upper);
    }
    (range.key.clone(), range.upper())
}

fn is_empty(lower: &Bytes, upper: Option<&Bytes>) -> bool {
    upper.is_some_and(|upper| upper <= lower)
}

impl Spans {
    /// What the ranges hold together.
    pub fn of<'a>(ranges: impl Iterator<Item = &'a KeyRange>) -> Self {
        let mut all: Vec<_> =
            ranges.map(bounds).filter(|(lower, upper)| !is_empty(lower, upper.as_ref())).collect();
        all.sort_by(|one, other| one.0.cmp(&other.0));
        let mut merged: Vec<(Bytes, Option<Bytes>)> = Vec::with_capacity(all.len());
        for (lower, upper) in all {
            match merged.last_mut() {
                Some((_, None)) => break,
                Some((_, Some(end))) if lower <= *end => match upper {
                    Some(upper) if upper <= *end => {}
                    upper => merged.last_mut().expect("just seen").1 = upper,
                },
                _ => merged.push((lower, upper)),
            }
        }
        Self(merged)
    }

    /// Whether every key of the range is in the set. A range without an end needs a span without
    /// one; an empty range is in every set.
    pub fn cover(&self, range: &KeyRange) -> bool {
        let (lower, upper) = bounds(range);
        if is_empty(&lower, upper.as_ref()) {
            return true;
        }
        let after = self.0.partition_point(|(start, _)| *start <= lower);
        let Some((_, end)) = after.checked_sub(1).map(|at| &self.0[at]) else { return false };
        match (end, upper) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(end), Some(upper)) => upper <= *end,
        }
    }

    /// Whether it holds every key there can be.
    pub fn is_everything(&self) -> bool {
        self.cover(&KeyRange::all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::span(key, end)
    }

    fn check(held: &[KeyRange], asked: KeyRange, expect: bool) {
        assert_eq!(Spans::of(held.iter()).cover(&asked), expect, "{held:?} cover {asked:?}");
    }

    #[test]
    fn spans_are_merged_where_they_meet() {
        let split = [span("a", "c"), span("c", "e"), span("f", "g")];
        check(&split, span("a", "e"), true);
        check(&split, span("a", "f"), false);
        check(&split, span("b", "d"), true);
        check(&split, span("f", "f\u{1}"), true);
        check(&split, span("x", "b"), true);
        check(&[KeyRange::key("k")], KeyRange::key("k"), true);
        check(&[KeyRange::key("k")], KeyRange::key("k\0"), false);
        check(&[KeyRange::key("k"), KeyRange::key("k\0")], span("k", "k\0\0"), true);
        check(&[KeyRange::key("k")], span("k", "l"), false);
    }

    #[test]
    fn what_has_no_end_needs_what_has_none() {
        let open = [span("m", "\0"), span("a", "n")];
        check(&open, span("a", "\0"), true);
        check(&open, KeyRange::all(), false);
        check(&[span("\0", "\u{7f}")], KeyRange::all(), false);
        check(&[KeyRange::all()], KeyRange::all(), true);
        check(&[KeyRange::all()], span("", "\0"), true);
        check(&[], KeyRange::all(), false);
        check(&[], KeyRange::key("k"), false);
        check(&[], span("", ""), false);
        check(&[KeyRange::key("\0")], span("", ""), true);
        check(&[span("z", "a")], KeyRange::key("z"), false);
    }
}
