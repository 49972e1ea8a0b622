//! Leases: none ends before its time after the last renewal that was acknowledged, and none
//! outlives its time for long once the cluster is healthy.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Verdict, violation};
use crate::types::LeaseId;

#[derive(Debug, Default)]
struct Lease {
    ttl: Duration,
    /// Nobody may end it by its clock before this.
    safe_until: Duration,
    expired: Option<Duration>,
    /// When it was last heard of: it must be gone a while after.
    last: Duration,
    ended: bool,
}

/// All leases.
#[derive(Debug)]
pub struct Leases {
    all: BTreeMap<LeaseId, Lease>,
    /// The fastest clock of any member, in seconds per second.
    fastest: f64,
    renewals: u64,
    expiries: u64,
}

impl Leases {
    /// No leases; no member's clock runs faster than `fastest`.
    pub fn new(fastest: f64) -> Self {
        Self { all: BTreeMap::new(), fastest, renewals: 0, expiries: 0 }
    }

    /// A lease may exist from now on.
    pub fn asked_for(&mut self, id: LeaseId, ttl: i64, now: Duration) {
        let ttl = Duration::from_secs(ttl.max(crate::limits::MIN_LEASE_TTL).unsigned_abs());
        self.all.insert(id, Lease { ttl, last: now, ..Lease::default() });
    }

    /// A grant or renewal that was asked for at `invoked` was acknowledged at `now`.
    pub fn acknowledged(&mut self, id: LeaseId, invoked: Duration, now: Duration) -> Verdict {
        let fastest = self.fastest;
        let Some(lease) = self.all.get_mut(&id) else { return Ok(()) };
        self.renewals += 1;
        lease.last = now;
        lease.safe_until = lease.safe_until.max(invoked + lease.ttl.div_f64(fastest));
        Self::judge(id, lease)
    }

    /// A leader's decision that it is over was applied for the first time.
    pub fn expired(&mut self, id: LeaseId, now: Duration) -> Verdict {
        let Some(lease) = self.all.get_mut(&id) else { return Ok(()) };
        if lease.expired.is_none() {
            self.expiries += 1;
            lease.expired = Some(now);
        }
        lease.ended = true;
        Self::judge(id, lease)
    }

    /// It was revoked.
    pub fn ended(&mut self, id: LeaseId) {
        if let Some(lease) = self.all.get_mut(&id) {
            lease.ended = true;
        }
    }

    fn judge(id: LeaseId, lease: &Lease) -> Verdict {
        match lease.expired {
            Some(at) if at < lease.safe_until => violation(
                "leases live their time",
                format!("lease {id} ended at {at:?} and was renewed until {:?}", lease.safe_until),
            ),
            _ => Ok(()),
        }
    }

    /// Leases that live; the cluster has been healthy since `healthy`, and `slack` is what a
    /// change of leader may add.
    pub fn at_end(&self, living: &[LeaseId], healthy: Duration, slack: Duration, now: Duration) -> Verdict {
        for id in living {
            let Some(lease) = self.all.get(id) else { continue };
            let due = lease.last.max(healthy) + lease.ttl.mul_f64(1.1) + slack;
            if due < now {
                return violation(
                    "leases end",
                    format!(
                        "lease {id} of {:?} was last heard of at {:?} and lives at {now:?}",
                        lease.ttl, lease.last
                    ),
                );
            }
            if lease.ended {
                return violation("leases end", format!("lease {id} ended and lives again"));
            }
        }
        Ok(())
    }

    /// Acknowledged grants and renewals, and ends by the clock.
    pub fn counts(&self) -> (u64, u64) {
        (self.renewals, self.expiries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn lease() -> Leases {
        let mut leases = Leases::new(1.0);
        leases.asked_for(7, 5, S(10));
        leases.acknowledged(7, S(10), S(11)).unwrap();
        leases
    }

    #[test]
    fn a_lease_lives_its_time() {
        assert!(lease().expired(7, S(15)).is_ok());
        assert!(lease().expired(7, S(14)).is_err(), "early");
        let mut renewed = lease();
        renewed.expired(7, S(16)).unwrap();
        assert!(renewed.acknowledged(7, S(12), S(17)).is_err(), "renewed before it ended");
    }

    #[test]
    fn a_lease_ends() {
        assert!(lease().at_end(&[7], S(0), S(3), S(15)).is_ok());
        assert!(lease().at_end(&[7], S(0), S(3), S(30)).is_err(), "late");
        assert!(lease().at_end(&[7], S(25), S(3), S(30)).is_ok(), "it was unwell for long");
        let mut revoked = lease();
        revoked.ended(7);
        assert!(revoked.at_end(&[7], S(0), S(3), S(12)).is_err(), "lives again");
    }
}
