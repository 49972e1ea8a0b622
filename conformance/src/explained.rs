//! The differences that stay, each with its reason and a matcher that is as narrow as it can be.
//! `docs/etcd-differences.md` holds the same table; a test compares them.

use etcd_api::etcdserverpb::RangeResponse;
use etcd_api::mvccpb::KeyValue;

use crate::ask::{Answer, Ask};
use crate::differential::{FATAL, LOST, NESTED};
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
               a sort order that there is not and a permission on no key it takes; raft-kv refuses them all",
        why: "as etcd of today does, and nothing that a client sends may end a member; these go to raft-kv alone \
              (`conformance/src/fatal.rs`)",
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
        name: NESTED,
        what: "a key that is put and removed in one transaction, by a nested one or by a range without end; a key in a \
               nested transaction that the user may not touch: etcd 3.4 overlooks both, raft-kv refuses them",
        why: "a key changes at most once in a revision; CVE-2026-33343. What raft-kv refuses so is not sent to etcd, \
              which would leave the two with different keys",
        is: |_| false,
    },
    Explained {
        name: "bad-token",
        what: "a token that is not valid: raft-kv refuses every call with it, etcd 3.4 only those that need a user, and \
               some with other words",
        why: "as etcd of today for the calls that it guards",
        is: |case| {
            let on_keys =
                matches!(case.ask, Some(Ask::Range(_) | Ask::Put(_) | Ask::Delete(_) | Ask::Txn(_)));
            match case.answers {
                // The form of a transaction is judged as a whole, after the token.
                Some((Answer::Refused { code: 3, .. }, Answer::Refused { code: 16, .. })) => true,
                Some((_, Answer::Refused { code: 16, .. })) => !on_keys,
                _ => false,
            }
        },
    },
    Explained {
        name: "role-root",
        what: "`RoleGet` of root: raft-kv shows the permission on everything, etcd 3.4 none",
        why: "as etcd of today",
        is: |case| matches!(case.ask, Some(Ask::RoleGet(asked)) if asked.role == "root"),
    },
    Explained {
        name: "alarm-first",
        what: "a lease with too long a time while the alarm NOSPACE is raised: etcd names the alarm, raft-kv the time",
        why: "both refuse; what can never be granted is told first",
        is: |case| {
            matches!(case.ask, Some(Ask::Grant(_)))
                && matches!(
                    case.answers,
                    Some((Answer::Refused { code: 8, .. }, Answer::Refused { code: 11, .. }))
                )
        },
    },
    Explained {
        name: "corrupt-reads",
        what: "while the alarm CORRUPT is raised raft-kv refuses linearizable reads, etcd serves them",
        why: "what a cluster that is known to be corrupt says can't be relied upon; serializable reads look at one member",
        is: |case| matches!(case.answers, Some((_, Answer::Refused { code: 15, .. }))),
    },
    Explained {
        name: "ties",
        what: "the order of keys that are equal in what a range is sorted by",
        why: "etcd's sort is not stable; raft-kv's leaves them in the order of keys",
        is: |case| match (case.ask, case.answers) {
            (Some(Ask::Range(asked)), Some((Answer::Range(etcd), Answer::Range(ours)))) => {
                asked.sort_target != 0 && same_but_for_ties(asked.sort_target, etcd, ours)
            }
            _ => false,
        },
    },
    Explained {
        name: "sort-and-limit",
        what: "a range with a limit, a sort target and no order: etcd takes the first keys and sorts these, raft-kv sorts \
               all and takes the first",
        why: "the first by what it is sorted by is what is asked for",
        is: |case| matches!(case.ask, Some(Ask::Range(asked)) if asked.sort_order == 0 && asked.sort_target != 0 && asked.limit > 0),
    },
    Explained {
        name: "no-key",
        what: "a range that holds no key, as a user: etcd looks for a permission on it, raft-kv needs none",
        why: "nothing is read or written",
        is: |case| {
            let is_empty = |key: &[u8], end: &[u8]| !end.is_empty() && end != b"\0" && end <= key;
            matches!(case.answers, Some((Answer::Refused { code: 7, .. }, _)))
                && match case.ask {
                    Some(Ask::Range(asked)) => is_empty(&asked.key, &asked.range_end),
                    Some(Ask::Delete(asked)) => is_empty(&asked.key, &asked.range_end),
                    _ => false,
                }
        },
    },
    Explained {
        name: "permission-order",
        what: "the order of a role's permissions that begin at the same key",
        why: "etcd's is that of a sort which is not stable",
        is: |case| match case.answers {
            Some((Answer::RoleGet(etcd), Answer::RoleGet(ours))) => {
                etcd.perm.len() == ours.perm.len() && etcd.perm.iter().all(|one| ours.perm.contains(one))
            }
            _ => false,
        },
    },
    Explained {
        name: "seconds",
        what: "the seconds that a lease has left, by one or two",
        why: "the two clocks were read one after the other",
        is: |case| match case.answers {
            Some((Answer::TimeToLive(etcd), Answer::TimeToLive(ours))) => {
                (etcd.ttl - ours.ttl).abs() <= 2
                    && etcd.granted_ttl == ours.granted_ttl
                    && etcd.keys == ours.keys
            }
            _ => false,
        },
    },
    Explained {
        name: "watch-ends-with-permission",
        what: "a watch whose user may not read any more, or whose token has ended, ends on raft-kv; on etcd it goes on",
        why: "who may not read a key is not told of it either",
        is: |case| {
            case.auth
                && case
                    .lines
                    .is_some_and(|(etcd, ours)| ends_before(&said_plainly(etcd), &said_plainly(ours)))
        },
    },
    Explained {
        name: "alarm-header",
        what: "etcd 3.4 leaves the header of some answers to `Alarm` out; raft-kv never does",
        why: "etcd of today has it",
        is: |case| match case.answers {
            Some((Answer::Alarm(etcd), Answer::Alarm(ours))) => {
                etcd.header.is_none() && ours.header.is_some() && etcd.alarms == ours.alarms
            }
            _ => false,
        },
    },
    Explained {
        name: "no-password",
        what: "logging in as a user without a password: etcd says so (code Unknown), raft-kv answers as to a wrong password",
        why: "who can't log in is not told which users there are",
        is: |case| {
            matches!(case.ask, Some(Ask::Authenticate(_)))
                && matches!(
                    case.answers,
                    Some((Answer::Refused { code: 2, .. }, Answer::Refused { code: 3, .. }))
                )
        },
    },
    Explained {
        name: "watch-reason",
        what: "the reason of a watch that is not allowed: etcd 3.4 always says permission denied, raft-kv also that \
               the token is not valid or that no user was named",
        why: "as etcd since 3.5; its Go client logs in again for these",
        is: |case| case.lines.is_some_and(|(etcd, ours)| said_plainly(ours) == said_plainly(etcd)),
    },
    Explained {
        name: "tombstone-at-compaction",
        what: "a watch opened at the compacted revision C is told a deletion made at C by raft-kv, not by etcd 3.4",
        why: "etcd #19179: fixed in 3.4.36; Debian's is older",
        is: |case| case.lines.is_some_and(|(etcd, ours)| only_deletions_at(etcd, ours, case.compacted)),
    },
];

/// Whether the answers hold the same, but for the order of keys that are equal in `target`.
fn same_but_for_ties(target: i32, etcd: &RangeResponse, ours: &RangeResponse) -> bool {
    let by = |kv: &KeyValue| match target {
        1 => (kv.version, Default::default()),
        2 => (kv.create_revision, Default::default()),
        3 => (kv.mod_revision, Default::default()),
        _ => (0, kv.value.clone()),
    };
    let order = |response: &RangeResponse| response.kvs.iter().map(by).collect::<Vec<_>>();
    (etcd.count, etcd.more, &etcd.header) == (ours.count, ours.more, &ours.header)
        && order(etcd) == order(ours)
}

/// Whether every watch of `ours` is told a beginning of what it is told on `etcd`, ends aside.
fn ends_before(etcd: &Lines, ours: &Lines) -> bool {
    let told = |lines: &Lines, id: &i64| -> Vec<Line> {
        let is_told = |line: &&Line| !matches!(line, Line::Canceled { .. });
        lines.get(id).into_iter().flatten().filter(is_told).cloned().collect()
    };
    // Answers to what was refused all have the number -1.
    ours.keys().filter(|id| **id != -1).all(|id| told(etcd, id).starts_with(&told(ours, id)))
}

/// The lines with every reason of users and permissions as etcd 3.4 says it.
fn said_plainly(lines: &Lines) -> Lines {
    const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    let plain = |line: &Line| match line {
        Line::Canceled { compact_revision, reason } if reason.contains("desc = etcdserver: ") => {
            Line::Canceled { compact_revision: *compact_revision, reason: DENIED.into() }
        }
        other => other.clone(),
    };
    lines.iter().map(|(id, lines)| (*id, lines.iter().map(plain).collect())).collect()
}

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
