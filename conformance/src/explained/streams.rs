//! Whether two logs of a stream differ only as the table says: every line in which they do has its
//! entry, whatever the others have.

use std::collections::BTreeSet;

use etcd_api::etcdserverpb::WatchCreateRequest;
use etcd_api::etcdserverpb::watch_request::RequestUnion;

use super::answers::is_empty;
use super::{Case, ENDS, NO_KEY, REASON, TOMBSTONE};
use crate::watches::{Line, Lines};

/// What etcd 3.4 says to whoever may not watch.
const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
/// What raft-kv says, besides, to a token that stands for nobody (any more).
const OTHERS: &[&str] = &[
    "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
    "rpc error: code = InvalidArgument desc = etcdserver: user name is empty",
];
const EMPTY: &str = "mvcc: watcher range is empty";

/// The number that refusals have.
const REFUSED: i64 = -1;

/// Whether the logs differ as the entry `name` says, and otherwise at most as other entries do.
pub(super) fn is(case: &Case<'_>, name: &str) -> bool {
    differences(case).and_then(|names| names.first().copied()) == Some(name)
}

/// The entries of all lines that differ; `None` if a line has none.
fn differences(case: &Case<'_>) -> Option<BTreeSet<&'static str>> {
    let (etcd, ours) = case.lines?;
    let of = |lines: &Lines, id: &i64| lines.get(id).cloned().unwrap_or_default();
    let ids: BTreeSet<i64> = etcd.keys().chain(ours.keys()).copied().collect();
    let mut names = BTreeSet::new();
    for id in ids {
        let (left, right) = (of(etcd, &id), of(ours, &id));
        if left == right {
            continue;
        }
        if id == REFUSED {
            names.extend(refusals(case, &left, &right)?);
        } else {
            names.insert(watch(case, &left, &right)?);
        }
    }
    Some(names)
}

/// Refusals come one for one; only what they say may differ.
fn refusals(case: &Case<'_>, etcd: &[Line], ours: &[Line]) -> Option<BTreeSet<&'static str>> {
    if etcd.len() != ours.len() || !case.may_be_denied() {
        return None;
    }
    let is_said =
        |line: &Line, text: &str| *line == Line::Canceled { compact_revision: 0, reason: text.to_owned() };
    let mut names = BTreeSet::new();
    for (etcd, ours) in etcd.iter().zip(ours).filter(|(etcd, ours)| etcd != ours) {
        if !is_said(etcd, DENIED) {
            return None;
        }
        if OTHERS.iter().any(|text| is_said(ours, text)) {
            names.insert(REASON);
        } else if is_said(ours, EMPTY) && creates(case).any(|one| is_empty(key_of(one), &one.range_end)) {
            names.insert(NO_KEY);
        } else {
            return None;
        }
    }
    Some(names)
}

fn watch(case: &Case<'_>, etcd: &[Line], ours: &[Line]) -> Option<&'static str> {
    if case.may_be_denied() && ends_early(etcd, ours) {
        return Some(ENDS);
    }
    let from = creates(case).any(|one| one.start_revision == case.compacted);
    (from && case.compacted > 0 && only_deletions_at(etcd, ours, case.compacted)).then_some(TOMBSTONE)
}

/// Whether `ours` is a beginning of `etcd` and then the end of a watch that is not allowed any more.
fn ends_early(etcd: &[Line], ours: &[Line]) -> bool {
    let Some((Line::Canceled { compact_revision: 0, reason }, told)) = ours.split_last() else {
        return false;
    };
    let is_permission = reason == DENIED || OTHERS.contains(&reason.as_str());
    is_permission && matches!(told.first(), Some(Line::Created(_))) && etcd.starts_with(told)
}

/// Whether `ours` without deletions at `compacted`, which have to be its first events, is `etcd`.
fn only_deletions_at(etcd: &[Line], ours: &[Line], compacted: i64) -> bool {
    let is_one = |line: &&Line| match line {
        Line::Event(event) => {
            event.r#type == 1 && event.kv.as_ref().is_some_and(|kv| kv.mod_revision == compacted)
        }
        _ => false,
    };
    let Some((created @ Line::Created(_), events)) = ours.split_first() else { return false };
    let more = events.iter().take_while(is_one).count();
    more > 0 && etcd.split_first() == Some((created, &events[more..]))
}

fn creates<'a>(case: &Case<'a>) -> impl Iterator<Item = &'a WatchCreateRequest> {
    case.requests.iter().filter_map(|request| match &request.request_union {
        Some(RequestUnion::CreateRequest(create)) => Some(create),
        _ => None,
    })
}

/// The empty key is the smallest there can be.
fn key_of(create: &WatchCreateRequest) -> &[u8] {
    if create.key.is_empty() { b"\0" } else { &create.key }
}
