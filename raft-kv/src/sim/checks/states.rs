//! Equal state at equal index, and a state that only moves forward: members that have applied the
//! same entries are at the same revision and have the same hash.

use std::collections::BTreeMap;

use super::{Verdict, violation};
use crate::types::{Index, Revision};

/// Revisions and hashes by index, and where each run of a member is.
#[derive(Debug, Default)]
pub struct States {
    revisions: BTreeMap<Index, Revision>,
    hashes: BTreeMap<Index, u64>,
    places: BTreeMap<usize, (Index, Revision)>,
    sums: BTreeMap<(Revision, Revision), u32>,
}

impl States {
    /// A process started: its state may have fallen back.
    pub fn started(&mut self, host: usize) {
        self.places.remove(&host);
    }

    /// A member's state moved.
    pub fn applied(&mut self, host: usize, index: Index, revision: Revision) -> Verdict {
        let before = self.places.insert(host, (index, revision)).unwrap_or_default();
        if index <= before.0 || revision < before.1 {
            return violation(
                "applied moves forward",
                format!("m{host} went from {before:?} to {:?}", (index, revision)),
            );
        }
        match *self.revisions.entry(index).or_insert(revision) {
            known if known == revision => Ok(()),
            known => violation(
                "equal states",
                format!("after entry {index} one member is at revision {known}, m{host} at {revision}"),
            ),
        }
    }

    /// The checksum over the keys of a member at a revision and a compaction.
    pub fn sum(&mut self, host: usize, at: (Revision, Revision), sum: u32) -> Verdict {
        match *self.sums.entry(at).or_insert(sum) {
            known if known == sum => Ok(()),
            known => violation(
                "equal states",
                format!(
                    "at revision and compaction {at:?} the keys' sum is {known:08x}, {sum:08x} at m{host}"
                ),
            ),
        }
    }

    /// The hash of a member's state.
    pub fn hash(&mut self, host: usize, index: Index, hash: u64) -> Verdict {
        match *self.hashes.entry(index).or_insert(hash) {
            known if known == hash => Ok(()),
            known => violation(
                "equal states",
                format!("after entry {index} the hash is {known:016x} at one member, {hash:016x} at m{host}"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_agree_and_move_forward() {
        let mut states = States::default();
        assert!(states.applied(0, 5, 3).is_ok() && states.applied(1, 5, 3).is_ok());
        assert!(states.hash(0, 5, 9).is_ok() && states.hash(1, 5, 9).is_ok());
        assert!(states.hash(2, 5, 8).is_err());
        assert!(states.sum(0, (3, -1), 9).is_ok() && states.sum(1, (3, 2), 8).is_ok());
        assert!(states.sum(1, (3, -1), 8).is_err());
        assert!(states.applied(2, 5, 4).is_err(), "another revision");
        assert!(states.applied(0, 5, 3).is_err(), "twice");
        assert!(states.applied(0, 6, 2).is_err(), "the revision falls");
        states.started(1);
        assert!(states.applied(1, 5, 3).is_ok(), "replayed after a crash");
    }
}
