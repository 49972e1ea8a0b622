//! The same for what two streams were told.

use etcd_api::etcdserverpb::watch_request::RequestUnion;
use etcd_api::etcdserverpb::{WatchCancelRequest, WatchCreateRequest, WatchRequest};
use etcd_api::mvccpb::{Event, KeyValue};

use super::{Alarms, Case, explain};
use crate::watches::{Line, Lines};

const COMPACTED: i64 = 10;
const REVISION: i64 = 20;
const DENIED: &str = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
const TOKEN: &str = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
const EMPTY: &str = "mvcc: watcher range is empty";

/// What was told of watches 0 and -1 (which is refused ones), of a stream of user `user`.
#[derive(Clone)]
struct Told {
    user: Option<&'static str>,
    requests: Vec<WatchRequest>,
    etcd: Lines,
    ours: Lines,
}

impl Told {
    fn new(id: i64, etcd: Vec<Line>, ours: Vec<Line>) -> Self {
        let of = |lines| Lines::from([(id, lines), (5, vec![Line::Created(REVISION)])]);
        Self { user: Some("u0"), requests: vec![create("a", "", 3)], etcd: of(etcd), ours: of(ours) }
    }

    fn name(&self) -> Option<&'static str> {
        explain(&Case {
            ask: None,
            user: self.user,
            auth: self.user.is_some(),
            revision: REVISION,
            compacted: COMPACTED,
            alarms: Alarms::default(),
            requests: &self.requests,
            answers: None,
            lines: Some((&self.etcd, &self.ours)),
        })
    }
}

fn check(name: &str, real: &Told, misses: &[fn(&mut Told)]) {
    assert_eq!(real.name(), Some(name));
    for (at, miss) in misses.iter().enumerate() {
        let mut missed = real.clone();
        miss(&mut missed);
        assert_eq!(missed.name(), None, "{name}, miss {at}: {:?} {:?}", missed.etcd, missed.ours);
    }
}

fn lines(lines: &mut Lines, id: i64) -> &mut Vec<Line> {
    lines.get_mut(&id).expect("the watch is there")
}

fn create(key: &'static str, range_end: &'static str, start_revision: i64) -> WatchRequest {
    let (key, range_end) = (key.into(), range_end.into());
    let create = WatchCreateRequest { key, range_end, start_revision, ..Default::default() };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

fn created() -> Line {
    Line::Created(REVISION)
}

fn ended(reason: &str) -> Line {
    Line::Canceled { compact_revision: 0, reason: reason.to_owned() }
}

fn event(r#type: i32, mod_revision: i64, prev: Option<i64>) -> Line {
    let kv = |mod_revision| KeyValue { key: "a".into(), mod_revision, ..Default::default() };
    Line::Event(Event { r#type, kv: Some(kv(mod_revision)), prev_kv: prev.map(kv) })
}

fn put(revision: i64) -> Line {
    event(0, revision, None)
}

#[test]
fn a_watch_ends_with_its_permission() {
    let etcd = vec![created(), put(21), put(22), put(23)];
    let real = Told::new(0, etcd, vec![created(), put(21), put(22), ended(DENIED)]);
    check(
        "watch-ends-with-permission",
        &real,
        &[
            // Lost in the middle, another value, one too many, told in another order.
            |told| drop(lines(&mut told.ours, 0).remove(1)),
            |told| lines(&mut told.ours, 0)[2] = event(1, 22, None),
            |told| lines(&mut told.ours, 0).insert(3, put(29)),
            |told| lines(&mut told.ours, 0).swap(1, 2),
            // It just stops, or ends for another reason.
            |told| drop(lines(&mut told.ours, 0).pop()),
            |told| lines(&mut told.ours, 0)[3] = ended(""),
            |told| lines(&mut told.ours, 0)[3] = ended("etcdserver: permission denied"),
            |told| {
                let reason = DENIED.to_owned();
                lines(&mut told.ours, 0)[3] = Line::Canceled { compact_revision: 10, reason };
            },
            // Told after its end, nothing told at all, never made.
            |told| lines(&mut told.ours, 0).push(put(23)),
            |told| lines(&mut told.ours, 0).clear(),
            |told| *lines(&mut told.ours, 0) = vec![ended(DENIED)],
            // Nobody was to be denied anything.
            |told| told.user = None,
            |told| told.user = Some("root"),
            // Another watch of the stream differs.
            |told| lines(&mut told.etcd, 5).push(put(21)),
            |told| drop(told.ours.remove(&5)),
        ],
    );
    let mut token = real;
    lines(&mut token.ours, 0)[3] = ended(TOKEN);
    assert_eq!(token.name(), Some("watch-ends-with-permission"));
}

#[test]
fn a_refusal_has_its_reason() {
    let real =
        Told::new(-1, vec![created(), ended(DENIED), created()], vec![created(), ended(TOKEN), created()]);
    check(
        "watch-reason",
        &real,
        &[
            |told| lines(&mut told.ours, -1)[1] = ended("etcdserver: invalid auth token"),
            |told| lines(&mut told.ours, -1)[1] = ended(EMPTY),
            |told| lines(&mut told.etcd, -1)[1] = ended(EMPTY),
            |told| drop(lines(&mut told.ours, -1).pop()),
            |told| lines(&mut told.ours, -1).push(created()),
            |told| lines(&mut told.ours, -1)[2] = Line::Created(REVISION + 1),
            |told| told.user = None,
            |told| drop(told.ours.remove(&-1)),
        ],
    );
    // An empty range is looked at before the permission on it.
    let mut empty = real;
    empty.requests.push(create("b", "a", 0));
    lines(&mut empty.ours, -1)[1] = ended(EMPTY);
    check(
        "no-key",
        &empty,
        &[
            |told| told.requests = vec![create("a", "b", 0)],
            |told| {
                lines(&mut told.ours, -1)[1] = ended("mvcc: duplicate watch ID provided on the WatchStream")
            },
            |told| told.user = Some("root"),
        ],
    );
}

#[test]
fn what_is_still_there_at_the_compacted_revision() {
    let gone = || event(1, COMPACTED, None);
    let etcd = vec![created(), put(11), put(12)];
    let mut real = Told::new(0, etcd, vec![created(), gone(), put(11), put(12)]);
    (real.user, real.requests) = (None, vec![create("a", "", COMPACTED)]);
    check(
        "tombstone-at-compaction",
        &real,
        &[
            |told| lines(&mut told.ours, 0)[1] = event(1, COMPACTED + 1, None),
            |told| lines(&mut told.ours, 0)[1] = event(1, COMPACTED - 1, None),
            |told| lines(&mut told.ours, 0)[1] = put(COMPACTED),
            |told| drop(lines(&mut told.ours, 0).remove(2)),
            |told| lines(&mut told.ours, 0).swap(0, 1),
            |told| lines(&mut told.ours, 0)[0] = Line::Created(REVISION + 1),
            |told| lines(&mut told.ours, 0).push(put(13)),
            |told| lines(&mut told.etcd, 0).push(put(13)),
            |told| told.requests = vec![create("a", "", COMPACTED + 1)],
        ],
    );
    let mut before = real;
    *lines(&mut before.etcd, 0) = vec![created(), put(COMPACTED), put(11)];
    *lines(&mut before.ours, 0) = vec![created(), event(0, COMPACTED, Some(9)), put(11)];
    check(
        "previous-at-compaction",
        &before,
        &[
            |told| lines(&mut told.ours, 0)[1] = event(0, COMPACTED, Some(COMPACTED)),
            |told| lines(&mut told.ours, 0)[2] = event(0, 11, Some(COMPACTED)),
            |told| lines(&mut told.etcd, 0)[1] = event(0, COMPACTED, Some(8)),
            |told| drop(lines(&mut told.ours, 0).pop()),
            |told| told.requests.clear(),
        ],
    );
}

#[test]
fn progress_waits_for_watches_of_the_future() {
    let mut real = Told::new(-1, vec![created(), Line::Progress(REVISION)], vec![created()]);
    (real.user, real.requests) = (None, vec![create("a", "", REVISION + 1)]);
    check(
        "progress-request",
        &real,
        &[
            |told| told.requests = vec![create("a", "", REVISION)],
            |told| lines(&mut told.ours, -1).clear(),
            |told| lines(&mut told.ours, -1).push(Line::Progress(REVISION - 1)),
            |told| std::mem::swap(&mut told.etcd, &mut told.ours),
            |told| lines(&mut told.etcd, -1).push(created()),
            |told| lines(&mut told.etcd, 5).push(Line::Progress(REVISION)),
        ],
    );
}

#[test]
fn a_watch_that_ended_by_compaction_is_cancelled_once() {
    let compacted = Line::Canceled { compact_revision: COMPACTED, reason: String::new() };
    let etcd = vec![created(), compacted.clone(), ended("")];
    let mut real = Told::new(0, etcd, vec![created(), compacted]);
    let cancel =
        WatchRequest { request_union: Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 0 })) };
    (real.user, real.requests) = (None, vec![create("a", "", 3), cancel]);
    check(
        "cancel-after-compaction",
        &real,
        &[
            |told| drop(told.requests.pop()),
            |told| drop(lines(&mut told.ours, 0).pop()),
            |told| lines(&mut told.ours, 0)[1] = ended(""),
            |told| lines(&mut told.etcd, 0)[2] = ended(DENIED),
            |told| lines(&mut told.etcd, 0).push(put(21)),
            |told| std::mem::swap(&mut told.etcd, &mut told.ours),
        ],
    );
}
