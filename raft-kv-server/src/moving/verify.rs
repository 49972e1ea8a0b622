//! Whether two stores hold the same: every key, value and lease of both, in order, counted and
//! hashed. It must never be content with less than a full comparison.

use aws_lc_rs::digest::{Context, SHA256};

use super::reader::{Item, ReadError, Reader};
use crate::bytes_arg::escape;

/// What a full comparison found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified {
    /// Keys of the source.
    pub source_keys: u64,
    /// Keys of the target.
    pub target_keys: u64,
    /// SHA-256 over the source's keys, values and leases, hexadecimal.
    pub source_hash: String,
    /// The same of the target.
    pub target_hash: String,
    /// The first key that is not the same in both, and how it differs.
    pub first_difference: Option<String>,
}

impl Verified {
    /// Whether both are the same.
    pub fn is_same(&self) -> bool {
        self.first_difference.is_none()
            && self.source_keys == self.target_keys
            && self.source_hash == self.target_hash
    }
}

/// One side's count and hash.
struct Side {
    keys: u64,
    context: Context,
}

impl Side {
    fn new() -> Self {
        Self { keys: 0, context: Context::new(&SHA256) }
    }

    /// Each part goes in behind its length, so that no two lists of keys look the same.
    fn add(&mut self, item: &Item) {
        self.keys += 1;
        for part in [&item.key, &item.value] {
            self.context.update(&(part.len() as u64).to_be_bytes());
            self.context.update(part);
        }
        self.context.update(&item.lease.to_be_bytes());
    }

    fn finish(self) -> (u64, String) {
        let hash = self.context.finish();
        (self.keys, hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Reads both to the end. `seen` is told how many keys of the source have been looked at.
pub async fn verify(
    source: &mut Reader,
    target: &mut Reader,
    mut seen: impl FnMut(u64),
) -> Result<Verified, ReadError> {
    let (mut left, mut right) = (Side::new(), Side::new());
    let mut first_difference = None;
    loop {
        let theirs = source.peek().await?.cloned();
        let ours = target.peek().await?.cloned();
        let found = difference(theirs.as_ref(), ours.as_ref());
        // The smaller key is passed alone: the other side does not have it.
        let (pass_source, pass_target) = match (&theirs, &ours) {
            (None, None) => break,
            (Some(_), None) => (true, false),
            (None, Some(_)) => (false, true),
            (Some(theirs), Some(ours)) => (theirs.key <= ours.key, ours.key <= theirs.key),
        };
        if let Some(item) = theirs.filter(|_| pass_source) {
            left.add(&item);
            source.take();
            seen(left.keys);
        }
        if let Some(item) = ours.filter(|_| pass_target) {
            right.add(&item);
            target.take();
        }
        first_difference = first_difference.or(found);
    }
    let ((source_keys, source_hash), (target_keys, target_hash)) = (left.finish(), right.finish());
    Ok(Verified { source_keys, target_keys, source_hash, target_hash, first_difference })
}

/// How the next keys of both sides differ.
fn difference(source: Option<&Item>, target: Option<&Item>) -> Option<String> {
    let missing = |item: &Item| Some(format!("key {} is in the source only", escape(&item.key)));
    let extra = |item: &Item| Some(format!("key {} is in this cluster only", escape(&item.key)));
    match (source, target) {
        (None, None) => None,
        (Some(source), None) => missing(source),
        (None, Some(target)) => extra(target),
        (Some(source), Some(target)) if source.key < target.key => missing(source),
        (Some(source), Some(target)) if source.key > target.key => extra(target),
        (Some(source), Some(target)) => {
            let what = match (source.value == target.value, source.lease == target.lease) {
                (true, true) => return None,
                (false, true) => "another value",
                (true, false) => "another lease",
                (false, false) => "another value and another lease",
            };
            Some(format!("key {} has {what} in this cluster", escape(&source.key)))
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn item(key: &'static str, value: &'static str, lease: i64) -> Item {
        Item { key: Bytes::from_static(key.as_bytes()), value: Bytes::from_static(value.as_bytes()), lease }
    }

    fn check(source: Option<Item>, target: Option<Item>, expect: Option<&str>) {
        assert_eq!(difference(source.as_ref(), target.as_ref()).as_deref(), expect);
    }

    #[test]
    fn a_difference_is_named() {
        check(None, None, None);
        check(Some(item("a", "1", 2)), Some(item("a", "1", 2)), None);
        check(
            Some(item("a", "1", 2)),
            Some(item("a", "2", 2)),
            Some("key a has another value in this cluster"),
        );
        check(
            Some(item("a", "1", 2)),
            Some(item("a", "1", 0)),
            Some("key a has another lease in this cluster"),
        );
        check(Some(item("a", "1", 2)), Some(item("b", "1", 2)), Some("key a is in the source only"));
        check(Some(item("b", "1", 2)), Some(item("a", "1", 2)), Some("key a is in this cluster only"));
        check(None, Some(item("a", "1", 2)), Some("key a is in this cluster only"));
        check(Some(item("a", "1", 2)), None, Some("key a is in the source only"));
    }

    #[test]
    fn where_a_key_ends_counts() {
        let hash = |items: &[Item]| {
            let mut side = Side::new();
            items.iter().for_each(|item| side.add(item));
            side.finish().1
        };
        assert_eq!(hash(&[item("a", "b", 0)]), hash(&[item("a", "b", 0)]));
        assert_ne!(hash(&[item("a", "b", 0)]), hash(&[item("ab", "", 0)]));
        assert_ne!(hash(&[item("a", "b", 0)]), hash(&[item("a", "b", 1)]));
    }
}
