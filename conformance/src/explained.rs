//! The differences that stay, each with its reason and a matcher that is as narrow as it can be.
//! `docs/etcd-differences.md` holds the same table; a test compares them.

mod answers;
pub mod streams;

use etcd_api::etcdserverpb::WatchRequest;

use crate::ask::{Answer, Ask};
use crate::differential::{FATAL, LARGE, LOST, NESTED, OPEN, SPACE};
use crate::watches::Lines;

/// The name under which the document speaks of ranges that hold no key.
pub const NO_KEY: &str = "no-key";
const ENDS: &str = "watch-ends-with-permission";
const REASON: &str = "watch-reason";
const TOMBSTONE: &str = "tombstone-at-compaction";
const PREVIOUS: &str = "previous-at-compaction";
const TWICE: &str = "cancel-after-compaction";
const PROGRESS: &str = "progress-request";

/// Alarms that are raised.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Alarms {
    /// `NOSPACE`.
    pub no_space: bool,
    /// `CORRUPT`.
    pub corrupt: bool,
}

/// What is known when a difference is judged.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// The request, if it was one.
    pub ask: Option<&'a Ask>,
    /// Who asked.
    pub user: Option<&'a str>,
    /// Whether authorisation is a part of this sequence.
    pub auth: bool,
    /// The store's revision; of a stream, when it was opened.
    pub revision: i64,
    /// The lowest revision that is left; of a stream, when it was opened.
    pub compacted: i64,
    /// Alarms that are raised.
    pub alarms: Alarms,
    /// What was sent on a stream.
    pub requests: &'a [WatchRequest],
    /// Both answers to a request.
    pub answers: Option<(&'a Answer, &'a Answer)>,
    /// Both logs of a stream.
    pub lines: Option<(&'a Lines, &'a Lines)>,
}

impl Case<'_> {
    /// Whether the user is one that may not do everything. Nobody is who the certificate says: root.
    fn may_be_denied(&self) -> bool {
        self.auth && self.user.is_some_and(|user| user != "root")
    }
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
        is: answers::auth_status,
    },
    Explained {
        name: NESTED,
        what: "a key that is put and removed in one transaction, by a nested one or by a range without end; a key in a \
               nested transaction, an old value or a lease's other keys that the user may not touch: etcd 3.4 overlooks \
               them, raft-kv refuses them",
        why: "a key changes at most once in a revision; CVE-2026-33343, CVE-2026-44283. What raft-kv refuses so is not \
              sent to etcd, which would leave the two with different keys",
        is: |_| false,
    },
    Explained {
        name: SPACE,
        what: "a put in a nested transaction while the alarm NOSPACE is raised: etcd does it, raft-kv refuses it",
        why: "etcd counts only the outermost puts, so that its alarm can be passed by; what raft-kv refuses so is not sent \
              to etcd",
        is: |_| false,
    },
    Explained {
        name: LARGE,
        what: "a put with a value of more than 1.5 MiB less 32 KiB, and less than 1.5 MiB: etcd takes it unless the whole \
               request is larger than 1.5 MiB, raft-kv refuses it as too large",
        why: "key and value have bounds of their own, so that the largest of both are one request; such a put is not sent \
              to etcd",
        is: |_| false,
    },
    Explained {
        name: "bad-token",
        what: "a transaction that changes a key twice, with a token that is not valid: etcd names the key, raft-kv the token",
        why: "who is nobody is told nothing else",
        is: answers::bad_token,
    },
    Explained {
        name: "role-root",
        what: "`RoleGet` of root: raft-kv shows the permission on everything, etcd 3.4 those that were granted to \
               it",
        why: "as etcd of today",
        is: answers::role_root,
    },
    Explained {
        name: "alarm-first",
        what: "a lease with too long a time while an alarm is raised: etcd names the alarm, raft-kv the time",
        why: "both refuse; what can never be granted is told first",
        is: answers::alarm_first,
    },
    Explained {
        name: "corrupt-reads",
        what: "while the alarm CORRUPT is raised raft-kv refuses linearizable reads, in transactions as well, etcd serves them",
        why: "what a cluster that is known to be corrupt says can't be relied upon; serializable reads look at one member",
        is: answers::corrupt_reads,
    },
    Explained {
        name: "ties",
        what: "the order of keys that are equal in what a range is sorted by",
        why: "etcd's sort is not stable; raft-kv's leaves them in the order of keys",
        is: answers::ties,
    },
    Explained {
        name: NO_KEY,
        what: "a range that holds no key, as a user: etcd looks for a permission on it, raft-kv needs none, and says of a \
               watch that its range is empty",
        why: "nothing is read or written. A transaction that etcd refuses so is not sent to raft-kv",
        is: |case| answers::no_key(case) || streams::is(case, NO_KEY),
    },
    Explained {
        name: "permission-order",
        what: "the order of a role's permissions that begin at the same key",
        why: "etcd's is that of a sort which is not stable",
        is: answers::permission_order,
    },
    Explained {
        name: "seconds",
        what: "the seconds that a lease has left, by one or two",
        why: "the two clocks were read one after the other",
        is: answers::seconds,
    },
    Explained {
        name: ENDS,
        what: "a watch whose user may not read any more, or whose token has ended, ends on raft-kv; on etcd it goes on",
        why: "who may not read a key is not told of it either",
        is: |case| streams::is(case, ENDS),
    },
    Explained {
        name: "alarm-header",
        what: "etcd 3.4 leaves the header of some answers to `Alarm` out; raft-kv never does",
        why: "etcd of today has it",
        is: answers::alarm_header,
    },
    Explained {
        name: "no-password",
        what: "logging in as a user without a password: etcd says so (code Unknown), raft-kv answers as to a wrong password",
        why: "who can't log in is not told which users there are",
        is: answers::no_password,
    },
    Explained {
        name: OPEN,
        what: "a watch from a key on without end, as a user who may read that key: etcd 3.4 lets it see all of them, raft-kv \
               refuses it",
        why: "GHSA-xg4h-6gfc-h4m8. What raft-kv refuses so is not opened on etcd",
        is: |_| false,
    },
    Explained {
        name: REASON,
        what: "the reason of a watch that is not allowed: etcd 3.4 always says permission denied, raft-kv also that \
               the token is not valid or that no user was named",
        why: "as etcd since 3.5; its Go client logs in again for these",
        is: |case| streams::is(case, REASON),
    },
    Explained {
        name: TOMBSTONE,
        what: "a watch opened at the compacted revision C is told a deletion made at C by raft-kv, not by etcd 3.4",
        why: "etcd #19179: fixed in 3.4.36; Debian's is older",
        is: |case| streams::is(case, TOMBSTONE),
    },
    Explained {
        name: PREVIOUS,
        what: "a watch with `prev_kv` opened at the compacted revision C is told what a key changed at C was before, by \
               raft-kv where it still has it, never by etcd",
        why: "it is true; after that the two tell the same",
        is: |case| streams::is(case, PREVIOUS),
    },
    Explained {
        name: TWICE,
        what: "a watch that has ended because its start was compacted, and is cancelled by the client: etcd tells a second \
               time that it has ended, raft-kv once",
        why: "its number is free again; a number that nobody has is cancelled in silence by both",
        is: |case| streams::is(case, TWICE),
    },
    Explained {
        name: PROGRESS,
        what: "a `progress_request` on a stream with a watch that begins in the future: etcd 3.4 answers at once, raft-kv \
               once all watches have begun",
        why: "as etcd since 3.5.8 (#15220): what is told holds for every watch",
        is: |case| streams::is(case, PROGRESS),
    },
];

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
mod tests;
