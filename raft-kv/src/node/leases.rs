//! The leader's clocks for leases. Granting and ending a lease are log entries; when one is due
//! is the leader's decision alone, and carries its term.
//!
//! A lease never ends earlier than its time after the last renewal that was confirmed by a quorum.
//! A new leader gives every lease its full time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::limits;
use crate::machine::LeaseChange;
use crate::planted;
use crate::types::{LeaseId, LeaseStatus};

/// How long an expiry may stay unapplied before it is proposed again.
const REPEAT_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Clocks {
    /// When each lease is due.
    due: BTreeMap<LeaseId, Duration>,
    /// The same, by time.
    by_time: BTreeSet<(Duration, LeaseId)>,
    /// Found due, expiry proposed at that time and not applied yet.
    expiring: BTreeMap<LeaseId, Duration>,
    /// The same, by time: what is proposed again is found without a look at the others.
    proposed: BTreeSet<(Duration, LeaseId)>,
    /// Leases that were looked at to find those that are due.
    #[cfg(test)]
    looked_at: usize,
}

/// All leases, and their clocks while this member leads.
#[derive(Debug, Default)]
pub struct Leases {
    /// Seconds granted to each.
    granted: BTreeMap<LeaseId, i64>,
    clocks: Option<Clocks>,
}

/// What became of a renewal or a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// The answer.
    Status(LeaseStatus),
    /// There is no such lease.
    Gone,
    /// It is being ended: ask again when that is applied.
    Ending,
}

fn time_of(ttl: i64) -> Duration {
    Duration::from_secs(ttl.max(0).unsigned_abs())
}

impl Leases {
    /// Starts from what the state holds.
    pub fn reset(&mut self, leases: Vec<(LeaseId, i64)>, now: Duration) {
        self.granted = leases.into_iter().collect();
        if self.clocks.is_some() {
            self.lead(now);
        }
    }

    /// Takes in what entries did to leases.
    pub fn applied(&mut self, changes: &[LeaseChange], now: Duration) {
        for change in changes {
            match *change {
                LeaseChange::Granted { id, ttl } => {
                    self.granted.insert(id, ttl);
                    self.set(id, now + time_of(ttl));
                }
                LeaseChange::Ended { id } => {
                    self.granted.remove(&id);
                    if let Some(clocks) = &mut self.clocks {
                        if let Some(proposed) = clocks.expiring.remove(&id) {
                            clocks.proposed.remove(&(proposed, id));
                        }
                        if let Some(due) = clocks.due.remove(&id) {
                            clocks.by_time.remove(&(due, id));
                        }
                    }
                }
            }
        }
    }

    fn set(&mut self, id: LeaseId, due: Duration) {
        if let Some(clocks) = &mut self.clocks {
            if let Some(before) = clocks.due.insert(id, due) {
                clocks.by_time.remove(&(before, id));
            }
            clocks.by_time.insert((due, id));
        }
    }

    /// This member leads from now on: every lease has its full time.
    pub fn lead(&mut self, now: Duration) {
        self.clocks = Some(Clocks::default());
        for (id, ttl) in self.granted.clone() {
            let time = if planted!(ExpireAtOnce) { Duration::ZERO } else { time_of(ttl) };
            self.set(id, now + time);
        }
    }

    /// This member leads no more.
    pub fn follow(&mut self) {
        self.clocks = None;
    }

    /// Renews a lease or says what it has left. To be called by a leader that a quorum confirmed
    /// after the question came.
    pub fn ask(&mut self, id: LeaseId, renew: bool, now: Duration) -> Asked {
        let Some(&ttl) = self.granted.get(&id) else {
            return Asked::Gone;
        };
        let Some(clocks) = &self.clocks else {
            return Asked::Ending;
        };
        if clocks.expiring.contains_key(&id) {
            return Asked::Ending;
        }
        if renew {
            self.set(id, now + time_of(ttl));
        }
        let due = self.clocks.as_ref().and_then(|clocks| clocks.due.get(&id).copied()).unwrap_or(now);
        let left = due.saturating_sub(now).as_secs_f64().ceil() as i64;
        Asked::Status(LeaseStatus { id, ttl: left, granted_ttl: ttl, keys: Vec::new() })
    }

    /// Leases that are due and not yet being ended; at most a log entry's worth. It costs what it
    /// finds, however many leases there are and however many are being ended.
    pub fn expire(&mut self, now: Duration) -> Vec<LeaseId> {
        let Some(clocks) = &mut self.clocks else {
            return Vec::new();
        };
        let mut ids = Vec::new();
        while ids.len() < limits::MAX_LEASES_PER_EXPIRY
            && let Some(id) = clocks.next_due(now)
        {
            clocks.expiring.insert(id, now);
            clocks.proposed.insert((now, id));
            ids.push(id);
        }
        ids
    }
}

impl Clocks {
    /// Takes out a lease whose end is to be proposed again, or else for the first time.
    fn next_due(&mut self, now: Duration) -> Option<LeaseId> {
        #[cfg(test)]
        {
            self.looked_at += 1;
        }
        if let Some(&(proposed, id)) = self.proposed.first()
            && proposed + REPEAT_AFTER <= now
        {
            self.proposed.pop_first();
            return Some(id);
        }
        let &(due, id) = self.by_time.first()?;
        if due > now {
            return None;
        }
        self.by_time.pop_first();
        self.due.remove(&id);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn leading(leases: &[(LeaseId, i64)]) -> Leases {
        let mut all = Leases::default();
        all.reset(leases.to_vec(), s(0));
        all.lead(s(100));
        all
    }

    #[test]
    fn a_new_leader_gives_every_lease_its_full_time() {
        let mut leases = leading(&[(1, 5), (2, 10)]);
        assert_eq!(leases.expire(s(105) - Duration::from_nanos(1)), vec![]);
        assert_eq!(leases.expire(s(105)), vec![1]);
        assert_eq!(leases.expire(s(110)), vec![1, 2], "one not applied yet is proposed again");
        leases.follow();
        assert_eq!(leases.expire(s(1_000)), vec![]);
        leases.lead(s(2_000));
        assert_eq!(leases.expire(s(2_004)), vec![]);
    }

    #[test]
    fn a_follower_ends_nothing() {
        let mut leases = Leases::default();
        leases.reset(vec![(1, 5)], s(0));
        leases.applied(&[LeaseChange::Granted { id: 2, ttl: 2 }], s(1));
        assert_eq!(leases.expire(s(1_000)), vec![]);
        assert_eq!(leases.ask(1, true, s(1)), Asked::Ending);
    }

    #[test]
    fn a_renewal_counts_from_when_it_was_confirmed() {
        let mut leases = leading(&[(1, 5)]);
        let left = |asked: Asked| match asked {
            Asked::Status(status) => (status.ttl, status.granted_ttl),
            other => panic!("{other:?}"),
        };
        assert_eq!(left(leases.ask(1, false, s(103))), (2, 5));
        assert_eq!(left(leases.ask(1, true, s(104))), (5, 5));
        assert_eq!(leases.expire(s(108)), vec![]);
        assert_eq!(leases.expire(s(109)), vec![1]);
        assert_eq!(leases.ask(1, true, s(109)), Asked::Ending, "nothing brings it back");
        leases.applied(&[LeaseChange::Ended { id: 1 }], s(110));
        assert_eq!(leases.ask(1, true, s(110)), Asked::Gone);
        assert_eq!(leases.expire(s(1_000)), vec![]);
    }

    #[test]
    fn a_lease_granted_again_under_its_id_has_a_new_clock() {
        let mut leases = leading(&[(1, 5)]);
        let changes = [LeaseChange::Ended { id: 1 }, LeaseChange::Granted { id: 1, ttl: 50 }];
        leases.applied(&changes, s(104));
        assert_eq!(leases.expire(s(153)), vec![]);
        assert_eq!(leases.expire(s(154)), vec![1]);
    }

    #[test]
    fn many_end_in_pieces() {
        let most = limits::MAX_LEASES_PER_EXPIRY as LeaseId;
        let all: Vec<_> = (1..=2 * most + 1).map(|id| (id, 5)).collect();
        let mut leases = leading(&all);
        let sizes = [(); 4].map(|()| leases.expire(s(105)).len() as LeaseId);
        assert_eq!(sizes, [most, most, 1, 0]);
    }

    /// The leases looked at since the clocks were started.
    fn looked_at(leases: &Leases) -> usize {
        leases.clocks.as_ref().map_or(0, |clocks| clocks.looked_at)
    }

    #[test]
    fn expiry_costs_what_expires_among_100_000_leases() {
        const LEASES: LeaseId = 100_000;
        let all: Vec<_> = (1..=LEASES).map(|id| (id, if id <= 1_000 { 5 } else { 60 })).collect();
        let mut leases = leading(&all);
        // Nothing is due: one look a call, however often it is called and whatever is renewed.
        for round in 0..1_000 {
            assert!(matches!(leases.ask(LEASES - round, true, s(104)), Asked::Status(_)));
            assert_eq!(leases.expire(s(104)), vec![]);
        }
        assert_eq!(looked_at(&leases), 1_000);
        // A thousand are due: they alone are looked at, and one more at the end of a call.
        let before = looked_at(&leases);
        let sizes = [(); 5].map(|()| leases.expire(s(105)).len());
        assert_eq!(sizes, [256, 256, 256, 232, 0]);
        assert_eq!(looked_at(&leases) - before, 1_000 + 2);
        // None of them is applied yet: they cost nothing until they are proposed again.
        let before = looked_at(&leases);
        (0..1_000).for_each(|_| assert_eq!(leases.expire(s(106)), vec![]));
        assert_eq!(looked_at(&leases) - before, 1_000);
        let again: usize = [(); 4].map(|()| leases.expire(s(110)).len()).iter().sum();
        assert_eq!(again, 1_000);
        // Once it is applied, all is over with them.
        let ended: Vec<_> = (1..=1_000).map(|id| LeaseChange::Ended { id }).collect();
        leases.applied(&ended, s(111));
        assert_eq!(leases.expire(s(150)), vec![]);
        assert_eq!(leases.ask(1, true, s(150)), Asked::Gone);
    }

    #[test]
    fn a_new_leader_arms_100_000_leases_and_none_of_them_is_due() {
        let all: Vec<_> = (1..=100_000).map(|id| (id, 5)).collect();
        let mut leases = leading(&all);
        assert_eq!(leases.expire(s(105)).len(), limits::MAX_LEASES_PER_EXPIRY);
        leases.follow();
        leases.lead(s(200));
        assert_eq!(leases.expire(s(205) - Duration::from_nanos(1)), vec![]);
        assert_eq!(looked_at(&leases), 1);
        let calls = 100_000usize.div_ceil(limits::MAX_LEASES_PER_EXPIRY);
        let ended: usize = (0..calls).map(|_| leases.expire(s(205)).len()).sum();
        assert_eq!((ended, leases.expire(s(205)).len()), (100_000, 0));
    }

    #[test]
    fn a_snapshot_starts_the_clocks_anew() {
        let mut leases = leading(&[(1, 5)]);
        leases.reset(vec![(2, 5)], s(104));
        assert_eq!(leases.ask(1, false, s(104)), Asked::Gone);
        assert_eq!((leases.expire(s(108)), leases.expire(s(109))), (vec![], vec![2]));
    }
}
