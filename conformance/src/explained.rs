//! The differences that stay, each with its reason and a matcher that is as narrow as it can be.
//! `docs/etcd-differences.md` holds the same table; a test compares them.

use crate::ask::{Answer, Ask};
use crate::watches::Lines;

/// What is known when a difference is judged.
#[derive(Debug)]
pub struct Case<'a> {
    /// The request, if it was one.
    pub ask: Option<&'a Ask>,
    /// Who asked.
    pub user: Option<&'a str>,
    /// Whether authorisation is a part of this sequence.
    pub auth: bool,
    /// The lowest revision that is left.
    pub compacted: i64,
    /// Both answers to a request.
    pub answers: Option<(&'a Answer, &'a Answer)>,
    /// Both logs of a stream.
    pub lines: Option<(&'a Lines, &'a Lines)>,
}

/// One difference that stays.
#[derive(Debug)]
pub struct Explained {
    /// Short, as in the document.
    pub name: &'static str,
    /// What is different.
    pub what: &'static str,
    /// Why it stays.
    pub why: &'static str,
    /// Whether this is it.
    pub is: fn(&Case<'_>) -> bool,
}

/// All of them.
pub const EXPLAINED: &[Explained] = &[Explained {
    name: "auth-status",
    what: "etcd 3.4 answers `AuthStatus` with Unimplemented; raft-kv answers it",
    why: "the call is newer than Debian's etcd (3.5); clients of today call it",
    is: |case| {
        matches!(case.ask, Some(Ask::AuthStatus(_)))
            && matches!(case.answers, Some((Answer::Refused { code: 12, .. }, _)))
    },
}];

/// The entry that explains `case`.
pub fn explain(case: &Case<'_>) -> Option<&'static str> {
    EXPLAINED.iter().find(|entry| (entry.is)(case)).map(|entry| entry.name)
}

/// The table as the document holds it.
pub fn table() -> String {
    let rows = EXPLAINED.iter().map(|entry| format!("| {} | {} | {} |\n", entry.name, entry.what, entry.why));
    format!("| name | difference | reason |\n|---|---|---|\n{}", rows.collect::<String>())
}
