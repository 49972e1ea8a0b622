//! Whether two logs of a stream differ only as the table says: every line in which they do has its
//! entry, whatever the others have.

use std::collections::BTreeSet;

use etcd_api::etcdserverpb::WatchCreateRequest;
use etcd_api::etcdserverpb::watch_request::RequestUnion;
use etcd_api::mvccpb::Event;

use super::{Case, ENDS, NO_KEY, PREVIOUS, PROGRESS, REASON, TOMBSTONE, TWICE};
use crate::overlooked::is_empty;
use crate::watches::{Line, Lines};

/// What both say to whoever may not watch.
pub const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
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
            names.extend(watch(case, id, &left, &right)?);
        }
    }
    Some(names)
}

/// Refusals come one for one; only what they say may differ, and progress may be missing.
fn refusals(case: &Case<'_>, etcd: &[Line], ours: &[Line]) -> Option<BTreeSet<&'static str>> {
    let is_said =
        |line: &Line, text: &str| *line == Line::Canceled { compact_revision: 0, reason: text.to_owned() };
    let mut names = BTreeSet::new();
    let mut rest = ours.iter().peekable();
    for etcd in etcd {
        let ours = rest.peek().copied();
        if ours == Some(etcd) {
            rest.next();
            continue;
        }
        if matches!(etcd, Line::Progress(_)) && waits_for_the_future(case) {
            names.insert(PROGRESS);
            continue;
        }
        let ours = rest.next()?;
        if !is_said(etcd, DENIED) || !case.may_be_denied() {
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
    rest.next().is_none().then_some(names)
}

fn waits_for_the_future(case: &Case<'_>) -> bool {
    creates(case).any(|one| one.start_revision > case.revision)
}

fn watch(case: &Case<'_>, id: i64, etcd: &[Line], ours: &[Line]) -> Option<BTreeSet<&'static str>> {
    if cancels(case).any(|cancelled| cancelled == id) && is_ended_twice(etcd, ours) {
        return Some(BTreeSet::from([TWICE]));
    }
    if case.may_be_denied() && ends_early(etcd, ours) {
        return Some(BTreeSet::from([ENDS]));
    }
    let from = creates(case).any(|one| one.start_revision == case.compacted);
    if from && case.compacted > 0 { at_compaction(etcd, ours, case.compacted) } else { None }
}

/// Whether `ours` has ended by compaction, and `etcd` besides by the client's word.
fn is_ended_twice(etcd: &[Line], ours: &[Line]) -> bool {
    let again = Line::Canceled { compact_revision: 0, reason: String::new() };
    matches!(ours.last(), Some(Line::Canceled { compact_revision: 1.., .. }))
        && etcd.split_last() == Some((&again, ours))
}

/// Whether `ours` is a beginning of `etcd` and then the end of a watch that is not allowed any more.
fn ends_early(etcd: &[Line], ours: &[Line]) -> bool {
    let Some((Line::Canceled { compact_revision: 0, reason }, told)) = ours.split_last() else {
        return false;
    };
    let is_permission = reason == DENIED || OTHERS.contains(&reason.as_str());
    is_permission && matches!(told.first(), Some(Line::Created(_))) && etcd.starts_with(told)
}

/// Whether `ours` is `etcd` but for what raft-kv still has of the compacted revision: deletions made
/// there, which have to be its first events, and what was there before keys were changed.
fn at_compaction(etcd: &[Line], ours: &[Line], compacted: i64) -> Option<BTreeSet<&'static str>> {
    let at = |line: &Line, kind: i32| match line {
        Line::Event(event) => {
            event.r#type == kind && event.kv.as_ref().is_some_and(|kv| kv.mod_revision == compacted)
        }
        _ => false,
    };
    let (created @ Line::Created(_), events) = ours.split_first()? else { return None };
    let (etcd_created, told) = etcd.split_first()?;
    if created != etcd_created {
        return None;
    }
    let mut names = BTreeSet::new();
    let mut told = told.iter().peekable();
    for ours in events {
        if told.peek() == Some(&ours) {
            told.next();
        } else if at(ours, 1) {
            names.insert(TOMBSTONE);
        } else if at(ours, 0) && told.next() == Some(&without_an_older(ours)?) {
            names.insert(PREVIOUS);
        } else {
            return None;
        }
    }
    told.next().is_none().then_some(names)
}

/// The event without what was there before, if that is of the same key and older.
fn without_an_older(line: &Line) -> Option<Line> {
    let Line::Event(event) = line else { return None };
    let (kv, prev) = (event.kv.as_ref()?, event.prev_kv.as_ref()?);
    let is_older = prev.key == kv.key && prev.mod_revision < kv.mod_revision;
    is_older.then(|| Line::Event(Event { prev_kv: None, ..event.clone() }))
}

fn creates<'a>(case: &Case<'a>) -> impl Iterator<Item = &'a WatchCreateRequest> {
    case.requests.iter().filter_map(|request| match &request.request_union {
        Some(RequestUnion::CreateRequest(create)) => Some(create),
        _ => None,
    })
}

fn cancels(case: &Case<'_>) -> impl Iterator<Item = i64> {
    case.requests.iter().filter_map(|request| match &request.request_union {
        Some(RequestUnion::CancelRequest(cancel)) => Some(cancel.watch_id),
        _ => None,
    })
}

/// The empty key is the smallest there can be.
fn key_of(create: &WatchCreateRequest) -> &[u8] {
    if create.key.is_empty() { b"\0" } else { &create.key }
}
