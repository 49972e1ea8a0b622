//! Linearizable reads by ReadIndex: the leader lets a quorum confirm that it still leads, then a
//! read may be served from any state that has applied the index it had when asked.
//!
//! One round is under way at a time and every read that came before it started shares it. A
//! context is used once in the life of the cluster: a retry gets a new one, else a late answer to
//! the old round would confirm the new one (etcd #20418).

use std::collections::BTreeMap;
use std::time::Duration;

use super::ask::Ticket;
use crate::planted;
use crate::raft::ReadContext;
use crate::types::{Index, LeaseId, NodeId, RequestId};

/// A round that takes longer is asked anew: its messages may be lost.
const ROUND_PATIENCE: Duration = Duration::from_millis(500);

/// Who waits for a confirmed index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reader {
    /// A local caller.
    Local(Ticket),
    /// Another member, for its own readers.
    Remote {
        /// Who asked.
        from: NodeId,
        /// Under which context.
        context: ReadContext,
    },
    /// A renewal of a lease or a question about it.
    Lease {
        /// Where the answer goes.
        to: LeaseCaller,
        /// Which lease.
        id: LeaseId,
        /// Give it its full time again.
        renew: bool,
    },
}

/// Who asked about a lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseCaller {
    /// A local caller.
    Local(Ticket),
    /// Another member's caller.
    Remote(NodeId, RequestId),
}

#[derive(Debug)]
struct Round {
    context: ReadContext,
    /// Whom it was asked of.
    leader: NodeId,
    started: Duration,
    readers: Vec<Reader>,
}

/// The readers of one member.
#[derive(Debug)]
pub struct Reads {
    me: NodeId,
    boot: u64,
    counter: u64,
    waiting: Vec<Reader>,
    round: Option<Round>,
    confirmed: BTreeMap<Index, Vec<Reader>>,
}

impl Reads {
    /// No readers. `boot` is unique to this run of the process.
    pub fn new(me: NodeId, boot: u64) -> Self {
        Self { me, boot, counter: 0, waiting: Vec::new(), round: None, confirmed: BTreeMap::new() }
    }

    /// How many wait for a round, for its end or for its index.
    pub fn len(&self) -> usize {
        let confirmed: usize = self.confirmed.values().map(Vec::len).sum();
        self.waiting.len() + self.round.as_ref().map_or(0, |round| round.readers.len()) + confirmed
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a reader in. Of another member's rounds only the newest counts.
    pub fn add(&mut self, reader: Reader) {
        if let Reader::Remote { from, .. } = &reader {
            self.waiting
                .retain(|other| !matches!(other, Reader::Remote { from: theirs, .. } if theirs == from));
        }
        self.waiting.push(reader);
    }

    /// Starts a round with all that wait, if none is under way; returns its context.
    pub fn start(&mut self, leader: NodeId, now: Duration) -> Option<ReadContext> {
        if self.round.is_some() || self.waiting.is_empty() {
            return None;
        }
        if !(planted!(ReuseReadContext) && self.counter > 0) {
            self.counter += 1;
        }
        let context = ReadContext { node: self.me, boot: self.boot, counter: self.counter };
        let readers = std::mem::take(&mut self.waiting);
        self.round = Some(Round { context, leader, started: now, readers });
        Some(context)
    }

    /// A quorum confirmed the round: its readers wait for `index` now. Other members' readers wait
    /// for it at their own; they are returned.
    ///
    /// `by` is who says so: only the leader that was asked may, for the context of a leader's own
    /// round is in its heartbeats and known to all.
    pub fn confirm(&mut self, by: NodeId, context: ReadContext, index: Index) -> Vec<(NodeId, ReadContext)> {
        let asked = |round: &Round| round.leader == by && round.context == context;
        if !self.round.as_ref().is_some_and(asked) {
            return Vec::new();
        }
        let round = self.round.take().expect("checked above");
        let mut remote = Vec::new();
        let mut local = Vec::new();
        for reader in round.readers {
            match reader {
                Reader::Remote { from, context } => remote.push((from, context)),
                reader => local.push(reader),
            }
        }
        if !local.is_empty() {
            self.confirmed.entry(index).or_default().extend(local);
        }
        remote
    }

    /// The round will not be confirmed: its readers wait for the next one.
    pub fn refused(&mut self, context: ReadContext) {
        if self.round.as_ref().is_some_and(|round| round.context == context) {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        if let Some(round) = self.round.take() {
            self.waiting.extend(round.readers);
        }
    }

    /// The leader or the term changed: nothing of the round under way counts any more. Other
    /// members' readers are returned: they ask the new leader.
    pub fn leader_changed(&mut self) -> Vec<(NodeId, ReadContext)> {
        self.give_up();
        // A lease is asked of the leader's clocks: what an earlier leadership confirmed says
        // nothing of those. Reads are asked of the state, and an index once confirmed is good.
        for readers in self.confirmed.values_mut() {
            self.waiting.extend(readers.extract_if(.., |reader| matches!(reader, Reader::Lease { .. })));
        }
        self.confirmed.retain(|_, readers| !readers.is_empty());
        let mut remote = Vec::new();
        self.waiting.retain(|reader| match reader {
            Reader::Remote { from, context } => {
                remote.push((*from, *context));
                false
            }
            _ => true,
        });
        remote
    }

    /// A tick passed: a round whose messages may be lost is asked anew.
    pub fn tick(&mut self, now: Duration, leader: Option<NodeId>) {
        let stale = |round: &Round| {
            Some(round.leader) != leader || now.saturating_sub(round.started) >= ROUND_PATIENCE
        };
        if self.round.as_ref().is_some_and(stale) {
            self.give_up();
        }
    }

    /// Readers that may be served at `applied`.
    pub fn ready(&mut self, applied: Index) -> Vec<Reader> {
        let applied = if planted!(ReadBeforeApplied) { Index::MAX - 1 } else { applied };
        if self.confirmed.first_key_value().is_none_or(|(index, _)| *index > applied) {
            return Vec::new();
        }
        let later = self.confirmed.split_off(&(applied + 1));
        std::mem::replace(&mut self.confirmed, later).into_values().flatten().collect()
    }

    /// Takes local callers out for whom `gone` holds.
    pub fn forget(&mut self, gone: impl Fn(Ticket) -> bool) {
        let keep = |reader: &Reader| match reader {
            Reader::Local(ticket) | Reader::Lease { to: LeaseCaller::Local(ticket), .. } => !gone(*ticket),
            _ => true,
        };
        self.waiting.retain(keep);
        if let Some(round) = &mut self.round {
            round.readers.retain(keep);
        }
        for readers in self.confirmed.values_mut() {
            readers.retain(keep);
        }
        self.confirmed.retain(|_, readers| !readers.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);
    const ZERO: Duration = Duration::ZERO;

    fn with(readers: &[Ticket]) -> Reads {
        let mut reads = Reads::new(ME, 7);
        readers.iter().for_each(|ticket| reads.add(Reader::Local(*ticket)));
        reads
    }

    fn remote(counter: u64) -> Reader {
        Reader::Remote { from: OTHER, context: ReadContext { node: OTHER, boot: 1, counter } }
    }

    #[test]
    fn only_the_leader_asked_confirms_the_round_under_way() {
        let check = |by: NodeId, wrong: u64, expect: usize| {
            let mut reads = with(&[1, 2]);
            let mut context = reads.start(OTHER, ZERO).unwrap();
            context.counter += wrong;
            reads.confirm(by, context, 5);
            assert_eq!(reads.ready(5).len(), expect, "by {by}, context off by {wrong}");
        };
        check(OTHER, 0, 2);
        check(OTHER, 1, 0);
        check(NodeId(3), 0, 0);
        check(ME, 0, 0);
    }

    #[test]
    fn a_heartbeats_context_in_a_followers_frame_confirms_nothing_at_the_leader() {
        let mut reads = with(&[1]);
        reads.add(remote(9));
        let context = reads.start(ME, ZERO).unwrap();
        assert_eq!(reads.confirm(OTHER, context, 0), vec![]);
        assert_eq!(reads.confirm(ME, context, 4).len(), 1);
        assert_eq!(reads.ready(3), vec![]);
        assert_eq!(reads.ready(4), vec![Reader::Local(1)]);
    }

    #[test]
    fn every_try_has_a_context_of_its_own() {
        let mut reads = with(&[1]);
        let mut seen = Vec::new();
        for round in 0..4u32 {
            let now = ROUND_PATIENCE * round;
            let context = reads.start(ME, now).unwrap();
            assert!(!seen.contains(&context), "{context:?} again");
            assert_eq!(reads.start(ME, now), None, "one round at a time");
            seen.push(context);
            match round {
                0 => reads.refused(context),
                1 => drop(reads.leader_changed()),
                _ => reads.tick(now + ROUND_PATIENCE, Some(ME)),
            }
            reads.confirm(ME, context, 1);
            assert_eq!(reads.ready(9), vec![], "a round that was given up confirms nothing");
        }
    }

    #[test]
    fn a_reader_that_comes_during_a_round_waits_for_the_next() {
        let mut reads = with(&[1]);
        let first = reads.start(ME, ZERO).unwrap();
        reads.add(Reader::Local(2));
        reads.confirm(ME, first, 5);
        assert_eq!(reads.ready(5), vec![Reader::Local(1)]);
        let second = reads.start(ME, ZERO).unwrap();
        reads.confirm(ME, second, 6);
        assert_eq!((reads.ready(5), reads.ready(6)), (vec![], vec![Reader::Local(2)]));
    }

    #[test]
    fn a_change_of_leader_sends_other_members_away_and_keeps_ours() {
        let mut reads = with(&[1]);
        reads.add(remote(1));
        reads.add(remote(2));
        assert_eq!(reads.len(), 2, "of another member's rounds the newest counts");
        reads.start(ME, ZERO).unwrap();
        reads.add(remote(3));
        let away: Vec<_> = reads.leader_changed().into_iter().map(|(_, context)| context.counter).collect();
        assert_eq!((away.len(), reads.len()), (2, 1), "{away:?}");
        assert!(away.contains(&2) && away.contains(&3));
    }

    #[test]
    fn callers_who_are_gone_are_forgotten_wherever_they_wait() {
        let mut reads = with(&[1, 2]);
        let context = reads.start(ME, ZERO).unwrap();
        reads.confirm(ME, context, 5);
        [3, 4].into_iter().for_each(|ticket| reads.add(Reader::Local(ticket)));
        reads.start(ME, ZERO).unwrap();
        [5, 6].into_iter().for_each(|ticket| reads.add(Reader::Local(ticket)));
        reads.forget(|ticket| ticket % 2 == 0);
        assert_eq!(reads.len(), 3);
        reads.forget(|_| true);
        assert!(reads.is_empty() && reads.ready(u64::MAX - 1).is_empty());
    }
}
