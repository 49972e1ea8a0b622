//! The ledger of changes: revision by revision, what happened to which keys. Every member that
//! applies a revision must have changed the same.

use std::time::Duration;

use super::{Verdict, violation};
use crate::types::{Change, Revision};

/// The first revision that changes anything.
pub const FIRST: Revision = 2;

/// All changes, and when the first member had made them.
#[derive(Debug)]
pub struct Changes {
    before: Revision,
    all: Vec<(Change, Duration)>,
}

impl Default for Changes {
    fn default() -> Self {
        Self::after(FIRST - 1)
    }
}

impl Changes {
    /// Of a cluster that begins at a revision.
    pub fn after(before: Revision) -> Self {
        Self { before, all: Vec::new() }
    }

    /// A member made this change.
    pub fn made(&mut self, change: &Change, now: Duration) -> Verdict {
        if change.events.is_empty() {
            return violation("revisions", format!("revision {} changed nothing", change.revision));
        }
        if change.revision == self.head() + 1 {
            self.all.push((change.clone(), now));
            return Ok(());
        }
        match self.get(change.revision) {
            Some(known) if known == change => Ok(()),
            Some(known) => violation(
                "equal states",
                format!("revision {} is {known:?} at one member, {change:?} at another", change.revision),
            ),
            None => violation(
                "revisions",
                format!("revision {} follows revision {}", change.revision, self.head()),
            ),
        }
    }

    /// The newest revision.
    pub fn head(&self) -> Revision {
        self.before + self.all.len() as Revision
    }

    /// What a revision changed.
    pub fn get(&self, revision: Revision) -> Option<&Change> {
        self.at(revision).map(|(change, _)| change)
    }

    /// When the first member had made a revision.
    pub fn time(&self, revision: Revision) -> Option<Duration> {
        self.at(revision).map(|(_, time)| *time)
    }

    fn at(&self, revision: Revision) -> Option<&(Change, Duration)> {
        self.all.get(usize::try_from(revision - self.before - 1).ok()?)
    }

    /// All changes, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Change> {
        self.all.iter().map(|(change, _)| change)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::types::{Event, EventKind, KeyValue};

    /// A change that puts the keys.
    pub(crate) fn change(revision: Revision, keys: &[&'static str]) -> Change {
        let kv = |key: &'static str| KeyValue {
            key: key.into(),
            mod_revision: revision,
            create_revision: revision,
            version: 1,
            value: format!("{key}{revision}").into(),
            lease: 0,
        };
        let event = |key: &&'static str| Event { kind: EventKind::Put, kv: kv(key), prev: None };
        Change { revision, events: keys.iter().map(event).collect() }
    }

    #[test]
    fn revisions_follow_each_other_and_are_equal_everywhere() {
        let mut changes = Changes::default();
        let now = Duration::ZERO;
        for revision in [2, 3, 2, 4, 3] {
            changes.made(&change(revision, &["a"]), now).unwrap();
        }
        assert_eq!(changes.head(), 4);
        assert!(changes.made(&change(6, &["a"]), now).is_err(), "a gap");
        assert!(changes.made(&change(3, &["b"]), now).is_err(), "another change");
        assert!(changes.made(&change(5, &[]), now).is_err(), "nothing changed");
    }
}
