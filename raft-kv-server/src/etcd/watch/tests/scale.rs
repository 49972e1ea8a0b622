//! Many watchers, many streams, and clients that do not read.

use std::time::Instant;

use etcd_api::etcdserverpb::watch_server::WatchServer;
use http_body_util::BodyExt;
use prost::Message;
use tower::Service;

use super::*;
use crate::etcd::room::{Room, Rooms};

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
    let queued = stalled.answers.get_ref().queued();
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

/// The frames of one stream's answer, as a connection takes them.
struct Wire {
    body: tonic::body::Body,
    _requests: mpsc::UnboundedSender<Result<http_body::Frame<bytes::Bytes>, std::convert::Infallible>>,
}

impl Wire {
    /// Watches all keys under `k`, through the layers that a connection goes through.
    async fn open(service: &WatchService) -> Self {
        let create = RequestUnion::CreateRequest(watch_prefix("k"));
        let message = WatchRequest { request_union: Some(create) }.encode_to_vec();
        let frame = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
        let (requests, received) = mpsc::unbounded_channel();
        requests.send(Ok(http_body::Frame::data(frame.into()))).unwrap();
        let body = http_body_util::StreamBody::new(UnboundedReceiverStream::new(received));
        let request = http::Request::post("/etcdserverpb.Watch/Watch")
            .header("content-type", "application/grpc")
            .body(tonic::body::Body::new(body))
            .unwrap();
        let mut server = Rooms(WatchServer::new(service.clone()));
        let mut body = server.call(request).await.unwrap().into_body();
        // That it was created.
        body.frame().await.unwrap().unwrap();
        Self { body, _requests: requests }
    }

    async fn frame(&mut self) -> Result<usize, tonic::Status> {
        let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("in time");
        Ok(frame.expect("it goes on")?.into_data().expect("no trailers").len())
    }
}

/// However many clients do not read, they hold no more than the room there is, and they don't keep it
/// from those who do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_streams_hold_the_room_there_is_and_delay_nobody() {
    const STREAMS: usize = 40;
    const VALUE: usize = 600 * 1024;
    const WHOLE: usize = 4 * 1024 * 1024;
    let world = World::new().await;
    let room = Room::of(WHOLE).with_stall(Duration::from_millis(300));
    let service = WatchService::new(etcd(world.node.as_ref().unwrap()).with_room(room.clone()));
    let mut stalled = Vec::new();
    for _ in 0..STREAMS {
        stalled.push(Wire::open(&service).await);
    }
    let mut reader = Wire::open(&service).await;
    world.put_all([("k".to_owned(), vec![b'v'; VALUE])]).await;
    // Each takes what its connection has in its buffer, and then nothing for ever.
    let begun = stalled.into_iter().map(|mut wire| {
        tokio::spawn(async move {
            let first = wire.frame().await;
            (wire, first)
        })
    });
    let begun: Vec<_> = begun.collect();
    // All the while somebody reads, and is not kept from it.
    let mut bytes = 0;
    while bytes < VALUE {
        bytes += reader.frame().await.unwrap();
    }
    // Nobody goes: only because some are ended all the others can begin.
    let mut stalled = Vec::new();
    for begun in begun {
        let (wire, first) = tokio::time::timeout(PATIENCE, begun).await.expect("in time").unwrap();
        assert!(first.unwrap() <= 64 * 1024);
        stalled.push(wire);
    }
    let mut ended = 0;
    for wire in &mut stalled {
        if let Err(status) = wire.frame().await {
            assert_eq!(status.message(), "etcdserver: too many requests");
            ended += 1;
        }
    }
    // There is room for fewer than all, so that most had to give theirs up.
    let fit = WHOLE / VALUE;
    assert!(ended >= STREAMS - fit, "{ended} of {STREAMS} were ended");
    drop((reader, stalled));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while room.free() < WHOLE {
        assert!(tokio::time::Instant::now() < deadline, "{} bytes are free", room.free());
        tokio::task::yield_now().await;
    }
}
