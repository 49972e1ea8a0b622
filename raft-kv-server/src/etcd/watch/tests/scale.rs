//! Many watchers, many streams, and clients that do not read.

use std::time::Instant;

use super::*;

async fn info_watchers(world: &World) -> u64 {
    world.handle.info().await.unwrap().1.watchers
}

#[tokio::test]
async fn ten_thousand_watchers_share_one_stream() {
    let world = World::new().await;
    let mut client = world.open();
    for number in 0..10_000 {
        client.create(watch(&format!("key/{number}")));
    }
    for number in 0..10_000 {
        assert_eq!(kind(&client.next().await), format!("created {number} at 1"));
    }
    assert_eq!(info_watchers(&world).await, 10_000);
    // One write concerns one watcher and is sent to it alone.
    for (round, number) in [17, 9_999, 0, 5_000].into_iter().enumerate() {
        let key = format!("key/{number}");
        world.put(&key, "").await;
        assert_eq!(kind(&client.next().await), format!("{number}: +{key}@{}", round + 2));
    }
    client.silent_until_progress(5).await;
    let began = Instant::now();
    for number in 0..10_000 {
        client.cancel(number);
    }
    for number in 0..10_000 {
        assert_eq!(kind(&client.next().await), format!("canceled {number}, compacted 0"));
    }
    assert!(began.elapsed() < Duration::from_secs(10), "cancelling costs more than its own watcher");
    assert_eq!(info_watchers(&world).await, 0);
}

#[tokio::test]
async fn a_thousand_streams_of_many_watchers() {
    let world = World::new().await;
    let mut clients: Vec<Client> = (0..1000).map(|_| world.open()).collect();
    for client in &clients {
        for number in 0..20 {
            client.create(watch(&format!("key/{number}")));
        }
    }
    for client in &mut clients {
        for number in 0..20 {
            assert_eq!(kind(&client.next().await), format!("created {number} at 1"));
        }
    }
    assert_eq!(info_watchers(&world).await, 20_000);
    world.put("key/7", "").await;
    for client in &mut clients {
        assert_eq!(kind(&client.next().await), "7: +key/7@2");
    }
}

#[tokio::test]
async fn who_does_not_read_costs_a_bounded_amount_and_delays_nobody() {
    let world = World::new().await;
    let mut stalled = world.open();
    let mut other = world.open();
    for number in 0..100 {
        stalled.created(watch_prefix("a")).await;
        assert_eq!(other.created(watch_prefix("a")).await, number);
    }
    let value = "x".repeat(10_000);
    for round in 2..=101 {
        assert_eq!(world.put("a", &value).await, round);
        let mut left = 100;
        while left > 0 {
            left -= other.next().await.events.len();
        }
    }
    // 100 MB were sent to the one that reads. For the other one nothing but what its connection
    // may have on its way is made: the queue and the answer that waits for room in it.
    let queued = stalled.answers.as_ref().len();
    assert!(queued <= crate::etcd::watch::QUEUED_ANSWERS, "{queued} answers wait for it");
    // When it reads again nothing is missing.
    let mut answers = Vec::new();
    let mut last = [0; 100];
    while last.iter().any(|last| *last < 101) {
        let answer = stalled.next().await;
        last[answer.watch_id as usize] = revision_of(answer.events.last().unwrap());
        answers.push((answer.watch_id, answer.events.len()));
    }
    let most = answers.iter().map(|(_, events)| *events).max().unwrap();
    assert!(most > 50, "what waited is gathered in few answers, not in one for each event: {most}");
}
