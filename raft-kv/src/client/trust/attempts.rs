//! Failed joins: counted by reason, and slowed down, for each address and in all.
//!
//! Whoever guesses at tokens waits; who has not failed lately is always looked at, so that nobody can
//! lock others out. Memory is bounded, however many addresses fail. It must never keep a token.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, NotDone};
use crate::limits::{
    JOIN_FAILURE, JOIN_FAILURE_PER_SOURCE, MAX_FAILING_SOURCES, MAX_JOIN_FAILURES,
    MAX_JOIN_FAILURES_PER_SOURCE,
};

/// Why somebody who came with a token was not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub(in crate::client) enum Failure {
    /// What came is no token, or no request.
    Malformed,
    /// No token has that secret.
    Unknown,
    /// The token was good until a while ago.
    Expired,
    /// The token was used as often as it may be.
    UsedUp,
    /// The token is for another role.
    Role,
    /// Who comes back does not prove who it is.
    Proof,
    /// Too many failed before; the token was not looked at.
    Limited,
}

/// The word for each, in the order of [`Failure`].
const REASONS: [&str; 7] = ["malformed", "unknown", "expired", "used_up", "role", "proof", "limited"];

/// When nothing is owed any more: each failure puts it further away.
#[derive(Clone, Copy)]
struct Debt(Instant);

impl Debt {
    fn add(&mut self, now: Instant, one: Duration, max: u32) {
        // Not beyond what is looked at: how long somebody waits is bounded.
        self.0 = (self.0.max(now) + one).min(now + one * max);
    }

    /// How long until another is looked at, if not now.
    fn wait(&self, now: Instant, one: Duration, max: u32) -> Option<Duration> {
        let owed = self.0.saturating_duration_since(now);
        let free = one * (max - 1);
        owed.checked_sub(free).filter(|wait| !wait.is_zero())
    }
}

#[derive(Default)]
struct Debts {
    sources: HashMap<IpAddr, Debt>,
    all: Option<Debt>,
}

/// The failed joins of one node, since it was started.
#[derive(Default)]
pub(in crate::client) struct Attempts {
    debts: Mutex<Debts>,
    counts: [AtomicU64; REASONS.len()],
}

/// The address that counts: who has one IPv6 address has the rest of its /64 too.
fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !0 << 64)),
        v4 => v4,
    }
}

impl Attempts {
    /// Whether a token that comes from there is looked at now.
    ///
    /// # Errors
    /// [`NotDone::TooManyFailures`], which is counted.
    pub(in crate::client) fn admit(&self, from: IpAddr, now: Instant) -> Result<(), Error> {
        let debts = self.debts.lock();
        let own = debts.sources.get(&source(from)).filter(|debt| debt.0 > now);
        let Some(own) = own else { return Ok(()) };
        let by_source = own.wait(now, JOIN_FAILURE_PER_SOURCE, MAX_JOIN_FAILURES_PER_SOURCE);
        let in_all = debts.all.and_then(|all| all.wait(now, JOIN_FAILURE, MAX_JOIN_FAILURES));
        let Some(wait) = by_source.max(in_all) else { return Ok(()) };
        self.count(Failure::Limited);
        let seconds = wait.as_millis().div_ceil(1000);
        Err(Error::NotDone(NotDone::TooManyFailures { seconds: u64::try_from(seconds).unwrap_or(u64::MAX) }))
    }

    /// Notes a failure.
    pub(in crate::client) fn failed(&self, from: IpAddr, why: Failure, now: Instant) {
        self.count(why);
        let mut debts = self.debts.lock();
        let debts = &mut *debts;
        debts.all.get_or_insert(Debt(now)).add(now, JOIN_FAILURE, MAX_JOIN_FAILURES);
        let source = source(from);
        if !debts.sources.contains_key(&source) && debts.sources.len() >= MAX_FAILING_SOURCES {
            debts.sources.retain(|_, debt| debt.0 > now);
            if debts.sources.len() >= MAX_FAILING_SOURCES {
                // Whose last failure is forgiven first anyway.
                let least = debts.sources.iter().min_by_key(|(_, debt)| debt.0).map(|(from, _)| *from);
                least.map(|least| debts.sources.remove(&least));
            }
        }
        let own = debts.sources.entry(source).or_insert(Debt(now));
        own.add(now, JOIN_FAILURE_PER_SOURCE, MAX_JOIN_FAILURES_PER_SOURCE);
    }

    fn count(&self, why: Failure) {
        self.counts[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were, by reason; every reason is there.
    pub(in crate::client) fn counts(&self) -> Vec<(&'static str, u64)> {
        REASONS.iter().zip(&self.counts).map(|(why, count)| (*why, count.load(Ordering::Relaxed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + last).into())
    }

    fn fail(attempts: &Attempts, from: IpAddr, times: u32, now: Instant) {
        (0..times).for_each(|_| attempts.failed(from, Failure::Unknown, now));
    }

    #[track_caller]
    fn check(attempts: &Attempts, from: IpAddr, now: Instant, expect: Option<u64>) {
        let seconds = expect.map(|seconds| Error::NotDone(NotDone::TooManyFailures { seconds }));
        assert_eq!(attempts.admit(from, now).err(), seconds);
    }

    #[test]
    fn one_address_waits_and_is_told_for_how_long_and_others_do_not() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let one = JOIN_FAILURE_PER_SOURCE;
        fail(&attempts, v4(1), MAX_JOIN_FAILURES_PER_SOURCE - 1, now);
        check(&attempts, v4(1), now, None);
        fail(&attempts, v4(1), 1, now);
        check(&attempts, v4(1), now, Some(one.as_secs()));
        check(&attempts, v4(2), now, None);
        check(&attempts, v4(1), now + one - Duration::from_millis(1), Some(1));
        check(&attempts, v4(1), now + one, None);
        // However often it comes meanwhile, it waits no longer.
        fail(&attempts, v4(1), 1000, now);
        check(&attempts, v4(1), now, Some(one.as_secs()));
        assert_eq!(attempts.counts()[1], ("unknown", u64::from(MAX_JOIN_FAILURES_PER_SOURCE) + 1000));
        assert_eq!(attempts.counts()[6], ("limited", 3));
    }

    #[test]
    fn many_addresses_wait_together_and_one_that_has_not_failed_does_not() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        (0..MAX_JOIN_FAILURES).for_each(|from| fail(&attempts, v4(from), 1, now));
        check(&attempts, v4(0), now, Some(1));
        check(&attempts, v4(MAX_JOIN_FAILURES), now, None);
        check(&attempts, v4(0), now + JOIN_FAILURE, None);
    }

    #[test]
    fn memory_is_bounded_and_the_worst_are_remembered() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        fail(&attempts, v4(0), MAX_JOIN_FAILURES_PER_SOURCE, now);
        (1..3 * MAX_FAILING_SOURCES as u32).for_each(|from| fail(&attempts, v4(from), 1, now));
        assert_eq!(attempts.debts.lock().sources.len(), MAX_FAILING_SOURCES);
        assert!(attempts.admit(v4(0), now).is_err());
        // Those that are forgiven make room at once.
        let later = now + JOIN_FAILURE_PER_SOURCE * 2 * MAX_JOIN_FAILURES_PER_SOURCE;
        fail(&attempts, v4(u32::from(u16::MAX)), 1, later);
        assert_eq!(attempts.debts.lock().sources.len(), 1);
    }

    #[test]
    fn a_whole_network_of_ipv6_is_one_source() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let v6 = |text: &str| text.parse::<IpAddr>().unwrap();
        for host in 0..MAX_JOIN_FAILURES_PER_SOURCE {
            fail(&attempts, v6(&format!("2001:db8::{host:x}")), 1, now);
        }
        assert!(attempts.admit(v6("2001:db8::ffff:0:0:1"), now).is_err());
        check(&attempts, v6("2001:db8:0:1::1"), now, None);
        // An IPv4 address is the same in either form.
        fail(&attempts, v6("::ffff:10.0.0.1"), MAX_JOIN_FAILURES_PER_SOURCE, now);
        assert!(attempts.admit(v4(1), now).is_err());
    }
}
