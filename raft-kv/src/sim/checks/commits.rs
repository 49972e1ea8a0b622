//! State machine safety and leader completeness: what one member learnt to be committed at an
//! index, no other learns differently, and every later leader has it.

use super::{Verdict, violation};
use crate::types::{Committed, Index, Payload, Term};

/// The first entry that raft commits; the one before it is the cluster's beginning.
const FIRST: Index = 2;

#[derive(Clone, Copy, Debug)]
struct Known {
    term: Term,
    content: u32,
    /// The term in which it was first known to be committed, at the latest.
    by: Term,
}

/// All that any member learnt to be committed.
#[derive(Debug, Default)]
pub struct Commits {
    ledger: Vec<Known>,
}

fn content(entry: &Committed) -> u32 {
    match &entry.payload {
        Payload::Proposals(bytes) => crc32c::crc32c(bytes),
        Payload::Config { change, .. } => crc32c::crc32c(format!("{change:?}").as_bytes()),
    }
}

impl Commits {
    /// The last committed index.
    pub fn last(&self) -> Index {
        FIRST - 1 + self.ledger.len() as Index
    }

    /// A member whose term is `by` learnt that an entry is committed. Says whether it is news.
    pub fn committed(&mut self, entry: &Committed, by: Term) -> Result<bool, super::Violation> {
        let now = Known { term: entry.term, content: content(entry), by };
        let place = entry.index.checked_sub(FIRST).map(|place| place as usize);
        match place.and_then(|place| self.ledger.get(place)) {
            Some(known) if (known.term, known.content) == (now.term, now.content) => Ok(false),
            Some(known) => Err(super::Violation::new(
                "state machine safety",
                format!("entry {} was committed as {known:?} and is committed as {now:?}", entry.index),
            )),
            None if place == Some(self.ledger.len()) => {
                self.ledger.push(now);
                Ok(true)
            }
            None => Err(super::Violation::new(
                "state machine safety",
                format!("entry {} is committed, but the last known is {}", entry.index, self.last()),
            )),
        }
    }

    /// A leader of `term` must have all that was committed before its term; `has` says which term
    /// its log has at an index (`None` before its first entry).
    pub fn leader(&self, term: Term, last: Index, has: impl Fn(Index) -> Option<Term>) -> Verdict {
        let Some(place) = self.ledger.iter().rposition(|known| known.by < term) else { return Ok(()) };
        let (index, known) = (FIRST + place as Index, self.ledger[place]);
        let found = has(index);
        if index > last || found.is_some_and(|found| found != known.term) {
            return violation(
                "leader completeness",
                format!(
                    "the leader of term {term} lacks entry {index} of term {}: it has {found:?}",
                    known.term
                ),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: Index, term: Term, text: &'static str) -> Committed {
        Committed { index, term, payload: Payload::Proposals(text.into()) }
    }

    fn filled() -> Commits {
        let mut commits = Commits::default();
        for (index, text) in [(2, "a"), (3, "b")] {
            assert!(commits.committed(&entry(index, 2, text), 2).unwrap());
        }
        commits
    }

    #[test]
    fn members_commit_the_same_in_the_same_order() {
        let mut commits = filled();
        assert!(!commits.committed(&entry(3, 2, "b"), 4).unwrap());
        assert!(commits.committed(&entry(3, 2, "c"), 2).is_err(), "other content");
        assert!(commits.committed(&entry(3, 3, "b"), 3).is_err(), "another term");
        assert!(commits.committed(&entry(5, 3, "d"), 3).is_err(), "a gap");
    }

    #[test]
    fn later_leaders_have_what_was_committed() {
        let commits = filled();
        assert!(commits.leader(3, 9, |_| Some(2)).is_ok());
        assert!(commits.leader(3, 9, |_| None).is_ok(), "it is behind a snapshot");
        assert!(commits.leader(3, 2, |_| Some(2)).is_err(), "too short");
        assert!(commits.leader(3, 9, |_| Some(1)).is_err(), "another entry");
        assert!(commits.leader(2, 1, |_| None).is_ok(), "a leader that came late in an old term");
    }
}
