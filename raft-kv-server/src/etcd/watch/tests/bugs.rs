//! What went wrong with watches in etcd and in those that followed it, by the number under which
//! it was reported.

use super::*;

/// Every revision of `events`, in order, each once.
fn in_order(answers: &[WatchResponse], id: i64) -> Vec<Revision> {
    let mine = answers.iter().filter(|answer| answer.watch_id == id);
    mine.flat_map(|answer| answer.events.iter().map(revision_of)).collect()
}

fn from(start_revision: Revision) -> WatchCreateRequest {
    WatchCreateRequest { start_revision, range_end: "\0".into(), ..watch("") }
}

/// etcd #15220: a progress response overtook events that were still to be sent.
#[tokio::test]
async fn etcd_15220_progress_is_sent_behind_the_events_it_covers() {
    let world = World::new().await;
    let mut client = world.open();
    for _ in 0..3 {
        client.created(from(0)).await;
    }
    let mut seen = [1; 3];
    for round in 0..200 {
        let revision = world.put("a", &round.to_string()).await;
        client.ask_progress();
        for answer in client.until(|answer| answer.watch_id == -1).await {
            let told = answer.header.as_ref().unwrap().revision;
            match answer.watch_id {
                -1 => assert!(seen.iter().all(|seen| *seen >= told), "{told} overtook one of {seen:?}"),
                id => seen[id as usize] = revision_of(answer.events.last().unwrap()),
            }
        }
        assert_eq!(seen, [revision; 3]);
    }
}

/// etcd #15271: after a member had been caught up, watchers were sent events twice. Here: what a
/// restarted member reads from the disk meets what it applies meanwhile.
#[tokio::test]
async fn etcd_15271_what_is_read_from_disk_and_what_comes_in_meet_without_a_repeat() {
    let world = World::new().await;
    for number in 0..300 {
        world.put("a", &number.to_string()).await;
    }
    let world = world.restarted().await;
    let mut client = world.open();
    client.create(from(2));
    client.create(from(200));
    let ids = [0, 1];
    let mut last = 0;
    for number in 0..50 {
        last = world.put("b", &number.to_string()).await;
    }
    let mut answers = Vec::new();
    while ids.iter().any(|id| in_order(&answers, *id).last() != Some(&last)) {
        answers.push(client.next().await);
    }
    assert_eq!(in_order(&answers, ids[0]), (2..=last).collect::<Vec<_>>());
    assert_eq!(in_order(&answers, ids[1]), (200..=last).collect::<Vec<_>>());
}

/// etcd #17529: a slow watcher's events were lost, and others starved, while one was busy.
#[tokio::test]
async fn etcd_17529_a_busy_watcher_starves_no_other_on_its_stream() {
    let world = World::new().await;
    for number in 0..200 {
        // A history of a dozen batches.
        world.put("busy", &format!("{number:0>60000}")).await;
    }
    let world = world.restarted().await;
    let mut client = world.open();
    let (busy, quiet, late) = (0, 1, 2);
    client.create(from(2));
    client.create(watch("quiet"));
    client.create(WatchCreateRequest { start_revision: 190, ..watch("busy") });
    let mut all = client.until(|answer| answer.created && answer.watch_id == late).await;
    let revision = world.put("quiet", "").await;
    let before = client.until(|answer| answer.watch_id == quiet).await;
    assert!(before.len() <= 6, "{} answers to others came before its one event", before.len());
    all.extend(before);
    while in_order(&all, busy).last() != Some(&revision) || in_order(&all, late).last() != Some(&201) {
        all.push(client.next().await);
    }
    assert_eq!(in_order(&all, busy), (2..=revision).collect::<Vec<_>>());
    assert_eq!(in_order(&all, late), (190..=201).collect::<Vec<_>>());
}

/// etcd #18089: compaction overtook a watcher that was behind, and its events were lost unseen.
#[tokio::test]
async fn etcd_18089_compaction_that_overtakes_a_watcher_is_told() {
    let world = World::new().await;
    for number in 0..100 {
        world.put("a", &format!("{number:0>60000}")).await;
    }
    let world = world.restarted().await;
    let mut client = world.open();
    let id = client.created(from(2)).await;
    world.handle.compact(101, true).await.unwrap();
    let answers = client.until(|answer| answer.canceled || answer.watch_id != id).await;
    // Whatever it was sent is without a gap, and the end of it is told.
    let seen = in_order(&answers, id);
    assert_eq!(seen, (2..2 + seen.len() as Revision).collect::<Vec<_>>());
    assert_eq!(kind(answers.last().unwrap()), format!("canceled {id}, compacted 101"));
}

/// etcd #19179: a watch opened at the revision of a compaction missed the delete made there.
#[tokio::test]
async fn etcd_19179_a_delete_at_the_compacted_revision_is_seen_by_a_watch_from_there() {
    let mut world = World::new().await;
    world.put("a", "").await;
    let deleted = world.delete("a").await;
    world.put("b", "").await;
    world.handle.compact(deleted, true).await.unwrap();
    for _ in 0..2 {
        let mut client = world.open();
        client.created(from(deleted)).await;
        assert_eq!(kind(&client.next().await), "0: -a@3 +b@4");
        drop(client);
        world = world.restarted().await;
    }
}

/// etcd #20221: a watcher whose start lay in the future was sent older events.
#[tokio::test]
async fn etcd_20221_a_future_watcher_is_sent_nothing_older() {
    let world = World::new().await;
    let mut client = world.open();
    let future = client.created(WatchCreateRequest { progress_notify: true, ..from(10) }).await;
    for number in 2..=12 {
        assert_eq!(world.put("a", "").await, number);
        client.ask_progress();
    }
    let mut answers = vec![client.next().await];
    while in_order(&answers, future).last() != Some(&12) {
        answers.push(client.next().await);
    }
    let events = answers.iter().find(|answer| answer.watch_id == future).unwrap();
    assert_eq!(revision_of(&events.events[0]), 10);
    assert_eq!(in_order(&answers, future), [10, 11, 12]);
    let older = answers.iter().any(|answer| answer.header.as_ref().unwrap().revision < 10);
    assert!(!older, "a progress response came before the start: {answers:?}");
}

/// t4db #163: the boundary between what can be watched and what is compacted was off by one.
#[tokio::test]
async fn t4db_163_the_compacted_revision_itself_can_be_watched_and_the_one_before_not() {
    let world = World::new().await;
    for _ in 2..=6 {
        world.put("a", "").await;
    }
    world.handle.compact(4, true).await.unwrap();
    let mut client = world.open();
    client.created(from(4)).await;
    assert_eq!(kind(&client.next().await), "0: +a@4 +a@5 +a@6");
    client.created(from(3)).await;
    assert_eq!(kind(&client.next().await), "canceled 1, compacted 4");
    client.created(from(1)).await;
    assert_eq!(kind(&client.next().await), "canceled 2, compacted 4");
}

/// xline #677: events made between the creation of a watcher and its first answer were lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn xline_677_no_event_is_lost_while_watchers_are_being_made() {
    let world = World::new().await;
    let mut client = world.open();
    let writer = tokio::spawn({
        let handle = world.handle.clone();
        async move {
            for _ in 0..200 {
                let request = PutRequest { key: "a".into(), ..PutRequest::default() };
                handle.put(request).await.unwrap();
            }
        }
    });
    let mut answers = Vec::new();
    let mut made = Vec::new();
    while !writer.is_finished() && made.len() < 40 {
        client.create(watch("a"));
        loop {
            let answer = client.next().await;
            if answer.created {
                made.push((answer.watch_id, answer.header.as_ref().unwrap().revision));
                break;
            }
            answers.push(answer);
        }
    }
    writer.await.unwrap();
    let last = world.put("a", "").await;
    while made.iter().any(|(id, at)| {
        let mine = answers.iter().rev().find(|answer: &&WatchResponse| answer.watch_id == *id);
        *at < last && mine.is_none_or(|answer| revision_of(answer.events.last().unwrap()) < last)
    }) {
        answers.push(client.next().await);
    }
    for (id, at) in made {
        assert_eq!(in_order(&answers, id), (at + 1..=last).collect::<Vec<_>>(), "made at {at}");
    }
}
