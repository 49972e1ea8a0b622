//! What etcd's protocol says, sentence by sentence.

use super::*;

const DUPLICATE: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// One stream on a fresh member: each create and the answer it must have.
async fn check(creates: &[(WatchCreateRequest, &str)]) {
    let world = World::new().await;
    let mut client = world.open();
    for (create, expect) in creates {
        client.create(create.clone());
        assert_eq!(kind(&client.next().await), *expect, "{create:?}");
    }
}

#[tokio::test]
async fn numbers_and_refusals_are_etcds() {
    let numbered = |id| WatchCreateRequest { watch_id: id, ..watch("a") };
    let ranged = |key: &str, end: &str| WatchCreateRequest { range_end: end.to_owned().into(), ..watch(key) };
    let from = |start_revision| WatchCreateRequest { start_revision, ..watch("a") };
    let duplicate = format!("refused -1: {DUPLICATE}");
    check(&[
        (watch("a"), "created 0 at 1"),
        (numbered(7), "created 7 at 1"),
        (numbered(7), &duplicate),
        (watch("a"), "created 1 at 1"),
        (numbered(2), "created 2 at 1"),
        (watch("a"), "created 3 at 1"),
        (ranged("b", "b"), "refused -1: mvcc: watcher range is empty"),
        (ranged("b", "a"), "refused -1: mvcc: watcher range is empty"),
        (WatchCreateRequest { watch_id: 7, ..ranged("b", "a") }, "refused -1: mvcc: watcher range is empty"),
        (from(-1), "refused -1: etcdserver: mvcc: required revision has been compacted"),
        (ranged("b", "\0"), "created 4 at 1"),
        (ranged("", ""), "created 5 at 1"),
        (ranged("", "\0"), "created 6 at 1"),
        (from(100), "created 8 at 1"),
    ])
    .await;
}

#[tokio::test]
async fn events_follow_their_creation_and_a_revision_stays_whole() {
    let world = World::new().await;
    world.put("a", "1").await;
    world.put_all([("a".into(), vec![2]), ("b".into(), vec![2])]).await;
    world.delete("a").await;
    let mut client = world.open();
    let past = WatchCreateRequest { start_revision: 2, ..watch_prefix("") };
    let past = WatchCreateRequest { prev_kv: true, range_end: "\0".into(), ..past };
    let id = client.created(past).await;
    assert_eq!(kind(&client.next().await), format!("{id}: +a@2 +a@3<2 +b@3 -a@4<3"));
    world.put("c", "1").await;
    assert_eq!(kind(&client.next().await), format!("{id}: +c@5"));
}

#[tokio::test]
async fn ranges_and_filters_choose() {
    let world = World::new().await;
    let mut client = world.open();
    let all = WatchCreateRequest { range_end: "\0".into(), ..watch("") };
    let behind = WatchCreateRequest { range_end: "\0".into(), ..watch("b") };
    client.created(all.clone()).await;
    client.created(behind).await;
    client.created(watch_prefix("a")).await;
    client.created(WatchCreateRequest { filters: vec![0], ..all.clone() }).await;
    client.created(WatchCreateRequest { filters: vec![1], ..all.clone() }).await;
    client.created(WatchCreateRequest { filters: vec![0, 1, 9], ..all }).await;
    world.put("aa", "").await;
    world.put("b", "").await;
    world.delete("aa").await;
    world.put("end", "").await;
    let mut by_watcher = vec![Vec::new(); 6];
    while by_watcher.iter().map(Vec::len).sum::<usize>() < 4 + 2 + 2 + 1 + 3 {
        let answer = client.next().await;
        by_watcher[answer.watch_id as usize].extend(answer.events.iter().map(event_text));
    }
    let expect: [&[&str]; 6] = [
        &["+aa@2", "+b@3", "-aa@4", "+end@5"],
        &["+b@3", "+end@5"],
        &["+aa@2", "-aa@4"],
        &["-aa@4"],
        &["+aa@2", "+b@3", "+end@5"],
        &[],
    ];
    assert_eq!(by_watcher, expect);
    client.silent_until_progress(5).await;
}

#[tokio::test]
async fn cancelling_is_acknowledged_and_unknown_numbers_are_passed_over() {
    let world = World::new().await;
    let mut client = world.open();
    client.created(watch("a")).await;
    client.created(watch("b")).await;
    client.cancel(99);
    client.cancel(0);
    client.cancel(0);
    assert_eq!(kind(&client.next().await), "canceled 0, compacted 0");
    world.put("a", "").await;
    world.put("b", "").await;
    assert_eq!(kind(&client.next().await), "1: +b@3");
    // The number is not given again by itself, but may be asked for.
    assert_eq!(client.created(watch("a")).await, 2);
    assert_eq!(client.created(WatchCreateRequest { watch_id: 9, ..watch("a") }).await, 9);
}

#[tokio::test]
async fn a_start_that_is_compacted_is_told_where_history_begins() {
    let mut world = World::new().await;
    for number in 2..=9 {
        world.put("a", &number.to_string()).await;
    }
    world.handle.compact(6, true).await.unwrap();
    for restarted in [false, true] {
        if restarted {
            world = world.restarted().await;
        }
        let mut client = world.open();
        let id = client.created(WatchCreateRequest { start_revision: 5, ..watch("a") }).await;
        let answer = client.next().await;
        assert_eq!(kind(&answer), format!("canceled {id}, compacted 6"));
        assert_eq!(answer.cancel_reason, "");
        assert_eq!(answer.header.unwrap().revision, 9);
        // Its number is free again.
        let again = WatchCreateRequest { watch_id: 4, start_revision: 6, prev_kv: true, ..watch("a") };
        assert_eq!(client.created(again).await, 4);
        let answer = client.next().await;
        let revisions: Vec<_> = answer.events.iter().map(revision_of).collect();
        assert_eq!(revisions, [6, 7, 8, 9], "after a restart: {restarted}");
        if restarted {
            assert!(answer.events[0].prev_kv.is_none(), "what was before 6 is compacted away");
        }
    }
}

#[tokio::test]
async fn large_revisions_come_in_parts_to_those_who_ask() {
    let world = World::new().await;
    let mut client = world.open();
    let whole = client.created(watch_prefix("large/")).await;
    let parts = client.created(WatchCreateRequest { fragment: true, ..watch_prefix("large/") }).await;
    let asked =
        WatchCreateRequest { prev_kv: true, fragment: true, filters: vec![0], ..watch_prefix("large/") };
    let before = client.created(asked).await;
    let keys: Vec<String> = (0..100).map(|number| format!("large/{number:03}")).collect();
    for (start, fill) in [(0, 1u8), (50, 2)] {
        // Two requests below the limit; one delete of all makes a revision above it.
        world.put_all(keys[start..start + 50].iter().map(|key| (key.clone(), vec![fill; 28_000]))).await;
    }
    let range = KeyRange::prefix("large/");
    world.handle.delete(DeleteRequest { range, prev_kv: false }).await.unwrap();
    let mut revisions = vec![Vec::new(); 3];
    let mut marked = 0;
    while revisions[before as usize].len() < 100
        || revisions[whole as usize].len() < 200
        || revisions[parts as usize].len() < 200
    {
        let answer = client.next().await;
        if answer.fragment {
            assert_eq!(answer.watch_id, before, "only the large one is in parts");
            marked += 1;
        }
        revisions[answer.watch_id as usize].extend(answer.events.iter().map(revision_of));
    }
    assert_eq!(marked, 1, "2.8 MB are two parts");
    assert_eq!(revisions[before as usize], [4; 100]);
}

#[tokio::test]
async fn progress_is_told_for_all_or_not_at_all() {
    let world = World::new().await;
    let mut client = world.open();
    // Without a watcher there is nothing to tell.
    client.ask_progress();
    client.created(watch("a")).await;
    client.silent_until_progress(1).await;
    world.put("other", "").await;
    client.silent_until_progress(2).await;
    // One that waits for the future keeps the stream from being synced.
    let future = client.created(WatchCreateRequest { start_revision: 5, ..watch("b") }).await;
    client.ask_progress();
    client.cancel(future);
    assert_eq!(kind(&client.next().await), format!("canceled {future}, compacted 0"));
    client.silent_until_progress(2).await;
    let future = client.created(WatchCreateRequest { start_revision: 4, ..watch("b") }).await;
    world.put("b", "too early").await;
    world.put("b", "").await;
    assert_eq!(kind(&client.next().await), format!("{future}: +b@4"));
    client.silent_until_progress(4).await;
}

#[tokio::test]
async fn idle_watchers_hear_how_far_they_are() {
    let mut world = World::new().await;
    world.service = world.service.clone().with_progress_interval(Duration::from_millis(1));
    let mut client = world.open();
    client.created(watch("silent")).await;
    let id = client.created(WatchCreateRequest { progress_notify: true, ..watch("a") }).await;
    let future = WatchCreateRequest { progress_notify: true, start_revision: 50, ..watch("a") };
    client.created(future).await;
    world.put("b", "").await;
    for _ in 0..2 {
        assert_eq!(kind(&client.next().await), format!("progress of {id} at 2"));
    }
    world.put("a", "").await;
    let answers = client.until(|answer| kind(answer) == format!("progress of {id} at 3")).await;
    let answers: Vec<String> = answers.iter().map(kind).collect();
    assert!(answers.contains(&format!("{id}: +a@3")), "events come before the progress: {answers:?}");
}

#[tokio::test]
async fn the_end_of_the_requests_is_not_the_end_of_the_answers() {
    let world = World::new().await;
    let mut client = world.open();
    client.create(watch("a"));
    client.requests = None;
    assert_eq!(kind(&client.next().await), "created 0 at 1");
    world.put("a", "").await;
    assert_eq!(kind(&client.next().await), "0: +a@2");
    assert_eq!(watchers(&world).await, 1);
    drop(client);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while watchers(&world).await > 0 {
        assert!(tokio::time::Instant::now() < deadline, "a watcher outlives its stream");
        tokio::task::yield_now().await;
    }
}

async fn watchers(world: &World) -> u64 {
    world.handle.info().await.unwrap().1.watchers
}

#[tokio::test]
async fn a_failing_request_stream_ends_with_its_error() {
    let world = World::new().await;
    let mut client = world.open();
    client.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    let requests = client.requests.take().unwrap();
    requests.send(Ok(WatchRequest { request_union: None })).unwrap();
    requests.send(Err(Status::data_loss("torn"))).unwrap();
    let status = client.next_or_end().await.unwrap().unwrap_err();
    assert_eq!(status.message(), "torn");
    assert!(client.next_or_end().await.is_none());
}

#[tokio::test]
async fn a_stopping_member_ends_its_streams() {
    let mut world = World::new().await;
    let mut client = world.open();
    client.created(watch("a")).await;
    world.node.take().unwrap().shutdown().await.unwrap();
    assert!(client.next_or_end().await.unwrap().is_err());
    assert!(client.next_or_end().await.is_none());
}
