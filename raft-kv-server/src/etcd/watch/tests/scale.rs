//! Many watchers, many streams, and clients that do not read.

use std::time::Instant;

use raft_kv::limits;

use super::*;
use crate::etcd::room::Room;

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
    let queued = stalled.answers.get_ref().as_ref().len();
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

/// However many clients do not read, they hold no more than the room there is; the others are handed
/// what they missed as soon as it is theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_streams_hold_the_room_there_is_and_no_more() {
    const STREAMS: usize = 60;
    const VALUE: usize = 600 * 1024;
    const REVISIONS: i64 = 5;
    let world = World::new().await;
    let room = Room::of(4 * 1024 * 1024);
    let service = WatchService::new(etcd(world.node.as_ref().unwrap()).with_room(room.clone()));
    let mut clients: Vec<Client> = (0..STREAMS).map(|_| open_at(&service)).collect();
    for client in &mut clients {
        client.created(watch_prefix("k")).await;
    }
    for _ in 0..REVISIONS {
        let value = vec![b'v'; VALUE];
        world.put_all([("k".to_owned(), value)]).await;
    }
    let queued = |clients: &[Client]| {
        clients.iter().filter(|client| client.answers.get_ref().as_ref().len() > 0).count()
    };
    // Nobody reads: of what is owed to all, what fits is on its way.
    let fits = room_of(&room, VALUE);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while queued(&clients) < fits {
        assert!(tokio::time::Instant::now() < deadline, "{} are queued", queued(&clients));
        tokio::task::yield_now().await;
    }
    for _ in 0..1_000 {
        assert_eq!(queued(&clients), fits);
        tokio::task::yield_now().await;
    }
    // Once they read they are served, one after the other, and get every event once.
    let reads = clients.into_iter().map(|mut client| {
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            while (revisions.len() as i64) < REVISIONS {
                revisions.extend(client.next().await.events.iter().map(revision_of));
            }
            assert!(revisions.is_sorted_by(|a, b| a + 1 == *b), "{revisions:?}");
        })
    });
    for read in reads.collect::<Vec<_>>() {
        read.await.unwrap();
    }
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while room.free() < 4 * 1024 * 1024 {
        assert!(tokio::time::Instant::now() < deadline, "{} bytes are free", room.free());
        tokio::task::yield_now().await;
    }
}

/// How many batches with one value of that size there is room for, while one that is fetched needs a
/// whole batch's room.
fn room_of(room: &Room, value: usize) -> usize {
    let whole = 4 * 1024 * 1024;
    assert!(room.free() <= whole);
    (1..).take_while(|taken| (taken - 1) * value + limits::WATCH_BATCH_BYTES <= whole).count()
}
