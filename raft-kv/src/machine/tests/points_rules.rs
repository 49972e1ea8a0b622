//! The rules of rollback points one by one: what is refused, what expires, what schedules make, what
//! a rollback may stand beside, and what it costs.

use super::*;
use crate::limits::*;

use super::points::{create, rollback};

fn point(bench: &Bench, name: &str) -> Option<RollbackPoint> {
    bench.view(|view| read::point(view, name)).unwrap()
}

fn names(bench: &Bench) -> Vec<String> {
    bench.view(read::points).unwrap().into_iter().map(|point| point.name).collect()
}

fn change(bench: &mut Bench, change: PointChange) -> Result<PointReply, Refusal> {
    match bench.ask(Command::Point(change))? {
        Answer::Point(reply) => Ok(reply),
        other => panic!("a change of points is told {other:?}"),
    }
}

/// Rolls back and says what that did.
fn back(bench: &mut Bench, name: &str, prefix: Option<&str>) -> RolledBack {
    match bench.ask(rollback(name, prefix.map(bytes), 5)) {
        Ok(Answer::Point(PointReply::RolledBack(done))) => done,
        other => panic!("a rollback is told {other:?}"),
    }
}

/// The one door: whether it is refused, and what the refusal names.
#[track_caller]
fn check(bench: &mut Bench, asked: PointChange, expect: Result<(), &str>) {
    let before = bench.view(read::points).unwrap();
    match (change(bench, asked), expect) {
        (Ok(_), Ok(())) => {}
        (Err(refusal), Err(part)) => {
            assert!(refusal.to_string().contains(part), "{refusal}");
            assert_eq!(bench.view(read::points).unwrap(), before, "what is refused changes nothing");
        }
        (got, expect) => panic!("{got:?}, not {expect:?}"),
    }
}

fn named(name: &str) -> PointChange {
    PointChange::Create {
        name: name.into(),
        at: None,
        expires: None,
        author: String::new(),
        comment: String::new(),
        now: 1,
    }
}

fn at(name: &str, revision: Revision) -> PointChange {
    let Command::Point(change) = create(name, Some(revision), 1) else { unreachable!() };
    change
}

#[test]
fn a_point_is_told_as_it_was_made() {
    let mut bench = Bench::new();
    bench.put("k", "v").unwrap();
    let asked = PointChange::Create {
        name: "before-upgrade".into(),
        at: None,
        expires: Some(900),
        author: "ann".into(),
        comment: "who knows".into(),
        now: 100,
    };
    let made = RollbackPoint {
        name: "before-upgrade".into(),
        revision: 2,
        created: 100,
        expires: Some(900),
        author: "ann".into(),
        comment: "who knows".into(),
        origin: PointOrigin::Asked,
    };
    assert_eq!(change(&mut bench, asked), Ok(PointReply::Created(made.clone())));
    bench.reopen();
    assert_eq!(point(&bench, "before-upgrade"), Some(made.clone()));
    let removal = PointChange::Remove { name: "before-upgrade".into() };
    assert_eq!(change(&mut bench, removal), Ok(PointReply::Removed(made)));
    assert!(names(&bench).is_empty());
}

#[test]
fn bad_points_are_refused() {
    let bench = &mut Bench::new();
    for number in 0..9 {
        bench.put("k", &number.to_string()).unwrap();
    }
    bench.ask(Command::Compact { revision: 5 }).unwrap();
    check(bench, named("one"), Ok(()));
    check(bench, named("one"), Err("already"));
    check(bench, named(""), Err("empty"));
    check(bench, named("two words"), Err("spaces"));
    check(bench, named("tab\t"), Err("control"));
    check(bench, named("before-rollback-7"), Err("given by rollbacks"));
    check(bench, named(&"n".repeat(MAX_POINT_NAME_BYTES + 1)), Err("the limit is 128"));
    check(bench, at("old", 4), Err("has been compacted"));
    check(bench, at("future", 11), Err("in the future"));
    check(bench, at("none", 0), Err("not positive"));
    check(bench, at("oldest", 5), Ok(()));
    check(bench, at("newest", 10), Ok(()));
    let with = |expires, now, author: &str, comment: &str| PointChange::Create {
        name: "n".into(),
        at: None,
        expires,
        author: author.into(),
        comment: comment.into(),
        now,
    };
    check(bench, with(Some(5), 5, "", ""), Err("not in the future"));
    check(bench, with(None, -1, "", ""), Err("1970"));
    check(bench, with(Some(i64::MAX), 5, "", ""), Err("2500"));
    check(bench, with(None, 5, "a\nb", ""), Err("author"));
    check(bench, with(None, 5, "", "a\u{1b}b"), Err("comment"));
    check(bench, with(None, 5, "", &"c".repeat(MAX_POINT_COMMENT_BYTES + 1)), Err("comment"));
    check(bench, PointChange::Remove { name: "none".into() }, Err("rollback-point ls"));
    check(bench, PointChange::RemoveSchedule { name: "none".into() }, Err("schedule ls"));
    check(bench, PointChange::Tidy { now: -1 }, Err("1970"));
    let unknown = bench.ask(rollback("none", None, 1)).unwrap_err();
    assert!(unknown.to_string().contains("no point has the name"), "{unknown}");
    let prefix = Some(Bytes::from(vec![b'x'; MAX_KEY_BYTES + 1]));
    assert!(matches!(bench.ask(rollback("one", prefix, 1)), Err(Refusal::KeyTooLarge { .. })));
    for (every, keep) in [(MIN_SCHEDULE_SECONDS - 1, 1), (MAX_SCHEDULE_SECONDS + 1, 1), (60, 0), (60, 257)] {
        let schedule = PointSchedule { name: "s".into(), every, keep };
        check(bench, PointChange::SetSchedule(schedule), Err("not"));
    }
}

#[test]
fn there_are_only_so_many_and_a_rollback_finds_room() {
    let bench = &mut Bench::new();
    for number in 0..MAX_POINTS {
        check(bench, named(&format!("p{number}")), Ok(()));
    }
    check(bench, named("more"), Err("which is the limit"));
    for number in 0..MAX_UNDO_POINTS + 3 {
        bench.put("k", &number.to_string()).unwrap();
        assert_eq!(back(bench, "p0", None).events, 1);
    }
    assert_eq!(names(bench).len(), MAX_POINTS + MAX_UNDO_POINTS);
    // Each made two revisions, from revision 1 on: the newest are left.
    assert!(point(bench, "before-rollback-7").is_none() && point(bench, "before-rollback-9").is_some());
    check(bench, PointChange::Remove { name: "p7".into() }, Ok(()));
    check(bench, named("more"), Ok(()));
}

#[test]
fn a_point_expires_and_schedules_make_new_ones() {
    let bench = &mut Bench::new();
    let due = |bench: &Bench, now| bench.view(|view| read::points_due(view, now)).unwrap();
    let tidy = |bench: &mut Bench, now| change(bench, PointChange::Tidy { now }).unwrap();
    let short = PointChange::Create {
        name: "short".into(),
        at: None,
        expires: Some(5_000),
        author: String::new(),
        comment: String::new(),
        now: 1,
    };
    check(bench, short, Ok(()));
    assert!(!due(bench, 4_999) && due(bench, 5_000));
    tidy(bench, 4_999);
    assert_eq!(names(bench), ["short"]);
    tidy(bench, 5_000);
    assert!(names(bench).is_empty() && !due(bench, 9_000));

    let schedule = PointSchedule { name: "hourly".into(), every: 3600, keep: 2 };
    check(bench, PointChange::SetSchedule(schedule.clone()), Ok(()));
    // 2026-11-22T10:00:00Z
    let start = 1_795_341_600_000;
    assert!(due(bench, start));
    tidy(bench, start);
    assert_eq!(names(bench), ["hourly-20261122T100000Z"]);
    let origin = PointOrigin::Schedule { name: "hourly".into() };
    assert_eq!(point(bench, "hourly-20261122T100000Z").unwrap().origin, origin);
    // Two leaders say the same: once. A little earlier by another clock: not again.
    tidy(bench, start);
    assert!(!due(bench, start + 3_599_999) && !due(bench, start - 5_000));
    for hour in 1..4 {
        bench.put("k", &hour.to_string()).unwrap();
        tidy(bench, start + hour * 3_600_000);
    }
    assert_eq!(names(bench), ["hourly-20261122T120000Z", "hourly-20261122T130000Z"]);
    // A clock that was far ahead must not stop it.
    tidy(bench, start + 365 * 24 * 3_600_000);
    assert!(due(bench, start + 4 * 3_600_000));
    let status = bench.view(read::schedules).unwrap();
    assert_eq!((status.len(), &status[0].schedule), (1, &schedule));
    check(bench, PointChange::RemoveSchedule { name: "hourly".into() }, Ok(()));
    assert!(!due(bench, start + 99 * 3_600_000));
    assert_eq!(names(bench).len(), 2, "what it made stays");
    for number in 0..MAX_SCHEDULES {
        let schedule = PointSchedule { name: number.to_string(), ..schedule.clone() };
        check(bench, PointChange::SetSchedule(schedule), Ok(()));
    }
    check(bench, PointChange::SetSchedule(schedule), Err("which is the limit"));
}

#[test]
fn an_empty_difference_makes_nothing() {
    let bench = &mut Bench::new();
    bench.put("a", "1").unwrap();
    check(bench, named("p"), Ok(()));
    for value in ["2", "1"] {
        bench.put("a", value).unwrap();
    }
    let done = back(bench, "p", None);
    assert_eq!(done, RolledBack { to: 2, revision: 4, compared: 1, events: 0, undo: None });
    assert_eq!((bench.machine.revision(), names(bench)), (4, vec!["p".to_owned()]));
    bench.put("a", "3").unwrap();
    bench.put("b", "1").unwrap();
    let done = back(bench, "p", Some("b"));
    let undo = Some("before-rollback-7".to_owned());
    assert_eq!(done, RolledBack { to: 2, revision: 7, compared: 1, events: 1, undo });
    let expected = PointOrigin::Rollback { to: "p".into(), revision: 7 };
    let made = point(bench, "before-rollback-7").unwrap();
    assert_eq!((made.revision, made.origin, made.author.as_str()), (6, expected, "ann"));
    assert_eq!((bench.get("a", 0).unwrap().value, bench.get("b", 0)), (bytes("3"), None));
}

#[test]
fn create_revision_and_version_are_those_of_a_put() {
    let bench = &mut Bench::new();
    bench.put("kept", "1").unwrap();
    bench.put("gone", "1").unwrap();
    check(bench, named("p"), Ok(()));
    bench.put("kept", "2").unwrap();
    bench.ask(delete(KeyRange::key("gone"))).unwrap();
    assert_eq!(back(bench, "p", None).revision, 6);
    let of = |key| {
        let kv = bench.get(key, 0).unwrap();
        (kv.create_revision, kv.mod_revision, kv.version)
    };
    assert_eq!((of("kept"), of("gone")), ((2, 6, 3), (6, 6, 1)));
}

#[test]
fn a_rollback_goes_alone_and_is_done_once() {
    let bench = &mut Bench::new();
    bench.put("a", "1").unwrap();
    check(bench, named("p"), Ok(()));
    bench.put("a", "2").unwrap();
    let both = bench.entries(&[vec![(None, rollback("p", None, 1)), (None, put("b", "1"))]]);
    let refused = both.outcomes[0].result.clone().unwrap_err().to_string();
    assert!(refused.contains("must go alone") && both.outcomes[1].result.is_ok(), "{refused}");
    let older = bench.entries(&[vec![(None, create("q", Some(3), 1)), (None, put("b", "2"))]]);
    assert!(older.outcomes[0].result.is_err());
    // Beside other entries it is in their order.
    let entries =
        [vec![(None, put("a", "3"))], vec![(None, rollback("p", None, 1))], vec![(None, put("a", "4"))]];
    let applied = bench.entries(&entries);
    let revisions: Vec<_> = applied.outcomes.iter().map(|outcome| outcome.revision).collect();
    assert_eq!((revisions, applied.raised, applied.changes.len()), (vec![6, 7, 8], false, 3));
    assert_eq!((applied.last, bench.machine.applied().index), (9, 9));
    assert_eq!([5, 6, 7, 8].map(|at| bench.get("a", at).unwrap().value), ["2", "3", "1", "4"].map(bytes));
    // Named by its caller it is not done again.
    let first = bench.once(1, 1, rollback("p", None, 1));
    bench.put("a", "5").unwrap();
    assert_eq!(bench.once(1, 1, rollback("p", None, 1)), first);
    assert_eq!(bench.get("a", 0).unwrap().value, "5");
    assert!(bench.once(1, 2, rollback("none", None, 1)).is_err());
    // Over the network, by who was removed or never known: not at all.
    let stranger = Command::From { node: NodeId(77), command: Box::new(rollback("p", None, 1)) };
    assert!(bench.ask(stranger).is_err());
    assert_eq!(bench.get("a", 0).unwrap().value, "5");
}

/// A key comes back on its lease if that lives and has room, else without one.
#[test]
fn a_lease_that_has_no_room_is_left_out() {
    let bench = &mut Bench::new();
    bench.ask(Command::LeaseGrant { id: 1, ttl: 60 }).unwrap();
    bench.ask(put_leased("k", 1)).unwrap();
    check(bench, named("p"), Ok(()));
    bench.ask(delete(KeyRange::key("k"))).unwrap();
    let big = "x".repeat(MAX_VALUE_BYTES);
    let mut number = 0;
    while bench
        .ask(Command::Put(PutRequest {
            key: bytes(&format!("big{number}")),
            value: bytes(&big),
            lease: 1,
            ..Default::default()
        }))
        .is_ok()
    {
        number += 1;
    }
    let room = MAX_DELETE_BYTES as u64 - bench.view(|view| lease::held(view, 1)).unwrap();
    let filler = "y".repeat(usize::try_from(room).unwrap() - DELETE_KEY_BYTES - 6);
    bench
        .ask(Command::Put(PutRequest {
            key: bytes("filler"),
            value: bytes(&filler),
            lease: 1,
            ..Default::default()
        }))
        .unwrap();
    back(bench, "p", Some("k"));
    assert_eq!(bench.get("k", 0).unwrap().lease, 0);
}

/// Removing versions below the mark must not depend on when a point came: one at an older revision
/// sees what it must, one at a compacted revision can't be made.
#[test]
fn a_watch_below_the_mark_stays_refused_at_a_point() {
    let bench = &mut Bench::new();
    for number in 0..5 {
        bench.put("k", &number.to_string()).unwrap();
    }
    check(bench, at("p", 3), Ok(()));
    bench.ask(Command::Compact { revision: 6 }).unwrap();
    bench.collect_all();
    assert_eq!(bench.get("k", 3).unwrap().value, "1");
    assert_eq!(bench.history(3), Err(Refusal::Compacted { requested: 3, compacted: 6 }));
    let hash = bench.view(|view| read::hash_kv(view, 3)).unwrap();
    assert_eq!(hash, Err(Refusal::Compacted { requested: 3, compacted: 6 }));
    // Another point there is as good as the first.
    check(bench, at("q", 3), Ok(()));
    check(bench, PointChange::Remove { name: "p".into() }, Ok(()));
    bench.collect_all();
    assert_eq!(back(bench, "q", None).events, 1);
    check(bench, PointChange::Remove { name: "q".into() }, Ok(()));
    let gone = RangeRequest { range: KeyRange::all(), revision: 3, ..Default::default() };
    assert!(bench.range(&gone).is_err());
}

/// What a removed point kept goes in steps, whatever happens between them.
#[test]
fn many_pinned_versions_go_in_steps() {
    let bench = &mut Bench::new();
    let many = COMPACT_STEP_KEYS * 2 + 7;
    let fill = |bench: &mut Bench, value: &str| {
        let puts: Vec<_> = (0..many).map(|number| (None, put(&format!("k{number:05}"), value))).collect();
        bench.entries(&puts.chunks(100).map(<[_]>::to_vec).collect::<Vec<_>>());
    };
    let past = |bench: &Bench| bench.view(|view| view.scan(Table::Past, b"", None).count());
    let changed = |bench: &Bench| bench.view(|view| view.scan(Table::Changed, b"", None).count());
    fill(bench, "1");
    check(bench, named("older"), Ok(()));
    bench.put("k00000", "older").unwrap();
    check(bench, named("newer"), Ok(()));
    fill(bench, "2");
    let revision = bench.machine.revision();
    bench.ask(Command::Compact { revision }).unwrap();
    bench.collect_all();
    assert_eq!((past(bench), changed(bench)), (many + 1, many + 1));
    // Of the newer point's versions the older one sees all but one.
    check(bench, PointChange::Remove { name: "newer".into() }, Ok(()));
    let mut steps = 0;
    while bench.machine.collect().unwrap() {
        steps += 1;
        bench.reopen();
    }
    assert!(steps > 3, "{steps} steps");
    assert_eq!((past(bench), changed(bench)), (many, many));
    check(bench, PointChange::Remove { name: "older".into() }, Ok(()));
    assert!(bench.machine.collect().unwrap());
    // A point at the same revision can't come back once it is gone.
    check(bench, at("again", 2), Err("compacted"));
    bench.collect_all();
    assert_eq!((past(bench), changed(bench)), (0, 0));
}
