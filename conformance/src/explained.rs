//! The differences that stay, each with its reason and a matcher that is as narrow as it can be.
//! `docs/etcd-differences.md` holds the same table; a test compares them.

use crate::ask::{Answer, Ask};
use crate::differential::{FATAL, LOST};
use crate::watches::{Line, Lines};

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
pub const EXPLAINED: &[Explained] = &[
    Explained {
        name: FATAL,
        what: "a sort target, an alarm action or a missing permission that there is not ends the process of etcd 3.4; \
               raft-kv refuses it",
        why: "nothing that a client sends may end a member; these go to raft-kv alone (`conformance/src/fatal.rs`)",
        is: |_| false,
    },
    Explained {
        name: LOST,
        what: "a watch from the past on etcd 3.4 that is not told events of it, and is when it is opened again",
        why: "etcd's own race, seen between two etcds as well; a difference that stays on four more tries counts",
        is: |_| false,
    },
    Explained {
        name: "auth-status",
        what: "etcd 3.4 answers `AuthStatus` with Unimplemented; raft-kv answers it",
        why: "the call is newer (3.5) than Debian's etcd; clients of today use it",
        is: |case| {
            matches!(case.ask, Some(Ask::AuthStatus(_)))
                && matches!(case.answers, Some((Answer::Refused { code: 12, .. }, _)))
        },
    },
    Explained {
        name: "tombstone-at-compaction",
        what: "a watch opened at the compacted revision C is told a deletion made at C by raft-kv, not by etcd 3.4",
        why: "etcd #19179: fixed in 3.4.36; Debian's is older",
        is: |case| case.lines.is_some_and(|(etcd, ours)| only_deletions_at(etcd, ours, case.compacted)),
    },
];

/// Whether `ours` without deletions at `compacted` is `etcd`.
fn only_deletions_at(etcd: &Lines, ours: &Lines, compacted: i64) -> bool {
    let kept = |lines: &Lines| -> Lines {
        let is_kept = |line: &&Line| match line {
            Line::Event(event) => {
                event.r#type != 1 || event.kv.as_ref().is_none_or(|kv| kv.mod_revision != compacted)
            }
            _ => true,
        };
        lines.iter().map(|(id, lines)| (*id, lines.iter().filter(is_kept).cloned().collect())).collect()
    };
    kept(ours) == *etcd
}

/// The entry that explains `case`.
pub fn explain(case: &Case<'_>) -> Option<&'static str> {
    EXPLAINED.iter().find(|entry| (entry.is)(case)).map(|entry| entry.name)
}

/// The table as the document holds it.
pub fn table() -> String {
    let rows = EXPLAINED.iter().map(|entry| format!("| {} | {} | {} |\n", entry.name, entry.what, entry.why));
    format!("| name | difference | reason |\n|---|---|---|\n{}", rows.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn the_document_holds_the_same_table() {
        let document = include_str!("../../docs/etcd-differences.md");
        assert!(document.contains(&table()), "docs/etcd-differences.md has to hold:\n{}", table());
    }
}
