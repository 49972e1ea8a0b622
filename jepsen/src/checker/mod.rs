//! What a history must keep: one file a claim. A checker takes the whole history and returns every
//! breach it finds, as sentences that name the events.

pub mod activity;
pub mod cycles;
pub mod durability;
pub mod linear;
pub mod watches;
pub mod witness;

use crate::history::Event;

/// What one checker found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The claim.
    pub claim: &'static str,
    /// How much it looked at, in words.
    pub checked: String,
    /// Where the claim is broken; empty if it holds.
    pub breaches: Vec<String>,
}

/// Every claim but activity, which depends on what was planned.
pub fn all(history: &[Event]) -> Vec<Verdict> {
    vec![
        witness::check(history),
        linear::check(history),
        cycles::check(history),
        durability::check(history),
        watches::check(history),
    ]
}

/// A history from lines without the braces, for tests.
#[cfg(test)]
pub(crate) fn history(lines: &[&str]) -> Vec<Event> {
    crate::history::parse(&lines.iter().map(|line| format!("{{{line}}}\n")).collect::<String>()).unwrap()
}

/// Checks that `check` finds what `expect` says, or nothing.
#[cfg(test)]
pub(crate) fn expect(check: fn(&[Event]) -> Verdict, lines: &[&str], expect: Option<&str>) {
    let breaches = check(&history(lines)).breaches;
    match expect {
        None => assert!(breaches.is_empty(), "{breaches:?}"),
        Some(part) => assert!(breaches.iter().any(|breach| breach.contains(part)), "{part}: {breaches:?}"),
    }
}
