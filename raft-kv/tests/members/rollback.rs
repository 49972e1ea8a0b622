//! Rollback points on real members: made by one, seen by all, gone back to while watchers follow.

use bytes::Bytes;
use raft_kv::client::{Handle, NewPoint};
use raft_kv::error::{Error, Refusal};
use raft_kv::types::{
    Change, DeleteRequest, Difference, EventKind, KeyRange, PointDiffRequest, PointSchedule, RangeRequest,
    WatchBatch, WatchRequest,
};

use crate::support::{cluster, eventually, put, value};

async fn delete(handle: &Handle, key: &str) {
    let range = KeyRange::key(key.to_owned());
    handle.delete(DeleteRequest { range, prev_kv: false }).await.unwrap();
}

/// The whole difference, a key a page.
async fn difference(handle: &Handle, point: &str, prefix: Option<Bytes>) -> Vec<Difference> {
    let mut all = Vec::new();
    let mut request = PointDiffRequest { point: point.into(), prefix, limit: 1, ..Default::default() };
    loop {
        let (_, page) = handle.point_diff(request.clone()).await.unwrap();
        all.extend(page.differences);
        let Some(after) = page.next else { return all };
        request = PointDiffRequest { after: Some(after), revision: page.to, ..request };
    }
}

fn keys(differences: &[Difference]) -> Vec<(&str, Option<&str>, Option<&str>)> {
    let text = |bytes: &Bytes| std::str::from_utf8(bytes).unwrap().to_owned().leak() as &str;
    differences
        .iter()
        .map(|it| {
            (
                text(&it.key),
                it.then.as_ref().map(|kv| text(&kv.value)),
                it.now.as_ref().map(|kv| text(&kv.value)),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_go_back_on_all_members_at_once_and_forth_again() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a", "b", "c"]).await;
    let [one, two, three] = [0, 1, 2].map(|at| nodes[at].handle());
    for (key, text) in [("k/changed", "old"), ("k/deleted", "old"), ("k/same", "same"), ("other", "old")] {
        one.put(put(key, text)).await.unwrap();
    }
    let new = NewPoint { comment: "before the mistake".into(), ..NewPoint::default() };
    let (_, point) = two.point_create("good", new).await.unwrap();
    assert_eq!((point.name.as_str(), point.author.as_str()), ("good", "b"));
    let listed = three.points().await.unwrap().1;
    assert_eq!(listed.points, std::slice::from_ref(&point));

    one.put(put("k/changed", "new")).await.unwrap();
    one.put(put("k/created", "new")).await.unwrap();
    one.put(put("other", "new")).await.unwrap();
    delete(&one, "k/deleted").await;
    // Compaction keeps what the point sees, and nothing else of its time.
    let current = one.put(put("k/same", "same")).await.unwrap().0.revision;
    one.compact(current, true).await.unwrap();
    let at =
        |revision| RangeRequest { range: KeyRange::key("k/deleted"), revision, ..RangeRequest::default() };
    for handle in [&one, &two, &three] {
        let read = handle.range(at(point.revision)).await.unwrap().1;
        assert_eq!(read.kvs[0].value, "old");
        let refused = handle.range(at(point.revision + 1)).await.unwrap_err();
        assert!(matches!(refused, Error::Refused(Refusal::Compacted { .. })), "{refused}");
    }

    let expected = [
        ("k/changed", Some("old"), Some("new")),
        ("k/created", None, Some("new")),
        ("k/deleted", Some("old"), None),
    ];
    let prefix = Some(Bytes::from_static(b"k/"));
    assert_eq!(keys(&difference(&three, "good", prefix.clone()).await), expected);
    assert_eq!(difference(&three, "good", None).await.len(), 4);

    let range = KeyRange::prefix("");
    let mut watch = three.watch(WatchRequest { range, ..WatchRequest::default() }).await.unwrap();
    let (header, done) = two.rollback("good", prefix).await.unwrap();
    assert_eq!((done.events, done.revision), (3, current + 1));
    assert_eq!(header.revision, done.revision);
    let Change { revision, events } = next(&mut watch).await;
    let seen: Vec<_> = events.iter().map(|event| (event.kind, event.kv.key.clone())).collect();
    let told =
        [(EventKind::Put, "k/changed"), (EventKind::Delete, "k/created"), (EventKind::Put, "k/deleted")];
    assert_eq!(revision, done.revision);
    assert_eq!(seen, told.map(|(kind, key)| (kind, Bytes::from(key))));
    for handle in [&one, &two, &three] {
        assert_eq!(value(handle, "k/changed").await.as_deref(), Some("old"));
        assert_eq!(value(handle, "k/deleted").await.as_deref(), Some("old"));
        assert_eq!(value(handle, "k/created").await, None);
        assert_eq!(value(handle, "other").await.as_deref(), Some("new"), "another prefix");
    }
    // Nothing to do is nothing done.
    let again = one.rollback("good", Some(Bytes::from_static(b"k/"))).await.unwrap().1;
    assert_eq!((again.events, again.revision, again.undo), (0, done.revision, None));

    let undone = one.rollback(&done.undo.unwrap(), None).await.unwrap().1;
    assert_eq!(undone.events, 3);
    assert_eq!(value(&two, "k/created").await.as_deref(), Some("new"));
    assert_eq!(next(&mut watch).await.events.len(), 3);

    one.point_remove("good").await.unwrap();
    let gone = two.rollback("good", None).await.unwrap_err().to_string();
    assert!(gone.contains("good"), "{gone}");
}

async fn next(watch: &mut raft_kv::client::Watch) -> Change {
    loop {
        if let Some(WatchBatch::Changes(mut changes)) = watch.next().await.unwrap() {
            assert_eq!(changes.len(), 1, "one revision");
            return changes.remove(0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_makes_points_by_schedule_and_ends_those_that_expire() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a", "b"]).await;
    let handle = nodes[1].handle();
    handle.put(put("k", "v")).await.unwrap();
    let schedule = PointSchedule { name: "hourly".into(), every: 3600, keep: 2 };
    handle.point_schedule(schedule).await.unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let soon = i64::try_from(now.as_millis()).unwrap() + 1500;
    handle.point_create("short", NewPoint { expires: Some(soon), ..NewPoint::default() }).await.unwrap();
    let names = || async {
        let list = handle.points().await.unwrap().1;
        list.points.into_iter().map(|point| point.name).collect::<Vec<_>>()
    };
    eventually("the first of the schedule is there, and the other one has expired", || async {
        let names = names().await;
        (names.len() == 1 && names[0].starts_with("hourly-")).then_some(())
    })
    .await;
    handle.point_unschedule("hourly").await.unwrap();
    assert_eq!(names().await.len(), 1, "its points stay");
    assert_eq!(handle.points().await.unwrap().1.schedules, []);
}
