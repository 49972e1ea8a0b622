//! Election safety: a term has at most one leader, and a member votes for at most one candidate
//! in a term, crashes or not.

use std::collections::BTreeMap;

use super::{Verdict, violation};
use crate::types::{NodeId, Term};

/// Leaders and votes seen.
#[derive(Debug, Default)]
pub struct Elections {
    leaders: BTreeMap<Term, NodeId>,
    votes: BTreeMap<(NodeId, Term), NodeId>,
}

impl Elections {
    /// A member says that it leads.
    pub fn leads(&mut self, term: Term, id: NodeId) -> Verdict {
        match *self.leaders.entry(term).or_insert(id) {
            known if known == id => Ok(()),
            known => violation("election safety", format!("term {term} has two leaders: {known} and {id}")),
        }
    }

    /// A member grants its vote.
    pub fn voted(&mut self, voter: NodeId, term: Term, candidate: NodeId) -> Verdict {
        match *self.votes.entry((voter, term)).or_insert(candidate) {
            known if known == candidate => Ok(()),
            known => violation(
                "election safety",
                format!("{voter} votes twice in term {term}: for {known} and for {candidate}"),
            ),
        }
    }

    /// Terms that had a leader.
    pub fn count(&self) -> u64 {
        self.leaders.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_leader_and_one_vote_a_term() {
        let (a, b) = (NodeId(1), NodeId(2));
        let mut good = Elections::default();
        assert!([good.leads(2, a), good.leads(2, a), good.leads(3, b)].iter().all(Result::is_ok));
        assert!([good.voted(a, 2, a), good.voted(a, 2, a), good.voted(a, 3, b)].iter().all(Result::is_ok));
        assert_eq!(good.count(), 2);
        assert!(good.leads(3, a).is_err());
        assert!(good.voted(a, 3, a).is_err());
    }
}
