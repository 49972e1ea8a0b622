//! Log matching: two logs that hold an entry of the same index and term hold the same entry there,
//! and the same before it.
//!
//! It is enough that index and term name one entry and one term before it: the rest follows step
//! by step.

use std::collections::BTreeMap;

use super::{Verdict, violation};
use crate::error::StorageFailed;
use crate::raft::LogView;
use crate::types::{Entry, Index, Term};

/// Entries seen in any log, and what each log held when it was last looked at.
#[derive(Debug, Default)]
pub struct Logs {
    known: BTreeMap<(Index, Term), (Term, u32)>,
    seen: BTreeMap<usize, Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    first: Index,
    terms: Vec<Term>,
}

impl Seen {
    fn term(&self, index: Index) -> Option<Term> {
        self.terms.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }
}

/// A number for an entry's content.
pub fn content(entry: &Entry) -> u32 {
    let sum = crc32c::crc32c(&entry.data);
    crc32c::crc32c_append(crc32c::crc32c_append(sum, &entry.context), &[entry.kind as u8])
}

impl Logs {
    /// The log of a machine will be looked at as a whole next time.
    pub fn forget(&mut self, host: usize) {
        self.seen.remove(&host);
    }

    /// An entry of some log, and the term before it.
    pub fn entry(&mut self, index: Index, term: Term, before: Term, content: u32) -> Verdict {
        if before > term {
            return violation("log matching", format!("terms fall at entry {index}: {before}, then {term}"));
        }
        match *self.known.entry((index, term)).or_insert((before, content)) {
            known if known == (before, content) => Ok(()),
            known => violation(
                "log matching",
                format!(
                    "entry {index} of term {term} is {known:?} in one log, {:?} in another",
                    (before, content)
                ),
            ),
        }
    }

    /// Looks at what is new in a log since it was last looked at.
    pub fn scan(&mut self, host: usize, log: &impl LogView) -> Result<Verdict, StorageFailed> {
        let (first, last) = (log.first_index(), log.last_index());
        let mut from = last + 1;
        let seen = self.seen.remove(&host).unwrap_or_default();
        while from > first && (seen.term(from - 1).is_none() || seen.term(from - 1) != log.term(from - 1)?) {
            from -= 1;
        }
        let mut terms: Vec<Term> = (first..from).map(|index| seen.term(index).unwrap_or_default()).collect();
        let mut before = log.term(from - 1)?.unwrap_or_default();
        let mut verdict = Ok(());
        let mut next = from;
        while next <= last {
            for entry in log.entries(next, last + 1, u64::MAX)? {
                verdict = verdict.and(self.entry(entry.index, entry.term, before, content(&entry)));
                before = entry.term;
                terms.push(entry.term);
                next = entry.index + 1;
            }
        }
        self.seen.insert(host, Seen { first, terms });
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_and_term_name_one_entry_and_one_before() {
        let mut logs = Logs::default();
        assert!(logs.entry(5, 2, 1, 77).is_ok());
        assert!(logs.entry(5, 2, 1, 77).is_ok());
        assert!(logs.entry(5, 3, 1, 78).is_ok(), "another term, another entry");
        assert!(logs.entry(5, 2, 1, 78).is_err(), "other content");
        assert!(logs.entry(5, 2, 2, 77).is_err(), "another history");
        assert!(logs.entry(6, 1, 2, 0).is_err(), "terms fall");
    }
}
