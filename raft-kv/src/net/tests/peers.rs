//! Frames between members: order, identity, reconnection, and what happens when it is too much.

use tokio::sync::mpsc;

use super::*;

struct Member {
    endpoint: Endpoint,
    net: PeerNet,
    events: mpsc::Receiver<PeerEvent>,
}

fn member(endpoint: Endpoint, room: usize) -> Member {
    let (sender, events) = mpsc::channel(room);
    let net = PeerNet::new(endpoint.clone(), sender);
    let (accepting, receiving) = (endpoint.clone(), net.clone());
    tokio::spawn(async move {
        while let Some(accepted) = accepting.accept().await {
            if let Accepted::Peer(peer) = accepted {
                receiving.receive(peer);
            }
        }
    });
    Member { endpoint, net, events }
}

impl Member {
    async fn until(&mut self, expect: PeerEvent) {
        while self.events.recv().await.expect("open") != expect {}
    }

    async fn frame(&mut self) -> (NodeId, Bytes) {
        loop {
            if let PeerEvent::Frame { from, frame } = self.events.recv().await.expect("open") {
                return (from, frame);
            }
        }
    }
}

/// Member 1 connected to member 2.
async fn pair(ours: &Authority, room: usize) -> (Member, Member) {
    let (mut one, two) = (member(ours.manager(1), 1024), member(ours.manager(2), room));
    one.net.set_peers(vec![(NodeId(1), addr(&one.endpoint)), (NodeId(2), addr(&two.endpoint))]);
    one.until(PeerEvent::Connected(NodeId(2))).await;
    (one, two)
}

fn append(frame: impl Into<Bytes>) -> Vec<(Priority, Bytes)> {
    vec![(Priority::Append, frame.into())]
}

#[test]
fn frames_arrive_whole_and_in_order() {
    run(async {
        let (one, mut two) = pair(&Authority::new(CLUSTER), 16).await;
        let frame = |n: u32| Bytes::from(vec![n as u8; (n as usize * 37) % 3000]);
        for n in 0..3000 {
            one.net.send(NodeId(2), append(frame(n)));
            if n % 500 == 499 {
                one.net.send(NodeId(2), vec![(Priority::Urgent, "vote".into())]);
                for m in n - 499..=n {
                    let mut got = two.frame().await;
                    if got.1 == "vote" {
                        got = two.frame().await;
                    }
                    assert_eq!(got, (NodeId(1), frame(m)));
                }
            }
        }
    });
}

#[test]
fn a_largest_frame_passes_and_a_longer_one_ends_the_connection() {
    run(async {
        let ours = Authority::new(CLUSTER);
        let (one, mut two) = pair(&ours, 16).await;
        let largest = Bytes::from(vec![1; limits::MAX_FRAME_BYTES]);
        one.net.send(NodeId(2), append(largest.clone()));
        assert_eq!(two.frame().await.1, largest);
        let rogue = ours.manager(3);
        let held = rogue.dial(Purpose::Peer, &addr(&two.endpoint), Some(NodeId(2))).await.unwrap();
        let mut stream = held.connection.open_uni().await.unwrap();
        stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        let closed = held.connection.closed().await;
        let refusal = super::super::dial::refusal_in(&closed).unwrap().to_string();
        assert!(refusal.contains("the limit is"), "{refusal}");
        one.net.send(NodeId(2), append("others go on"));
        assert_eq!(&two.frame().await.1[..], b"others go on");
    });
}

#[test]
fn a_peer_that_restarts_is_found_again() {
    run(async {
        let ours = Authority::new(CLUSTER);
        let credentials = ours.node(2, Role::Manager);
        let (mut one, two) = pair(&ours, 16).await;
        let port = two.endpoint.local_addr().port();
        two.endpoint.close().await;
        drop(two);
        one.until(PeerEvent::Disconnected(NodeId(2))).await;
        one.net.send(NodeId(2), append("lost"));
        one.until(PeerEvent::Unreachable(NodeId(2))).await;
        // The old socket is let go of by its tasks, not by us.
        let listen = SocketAddr::from(([127, 0, 0, 1], port));
        let endpoint = loop {
            match Endpoint::bind(listen, LiveTrust::new(credentials.clone()).unwrap()) {
                Ok(endpoint) => break endpoint,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let mut two = member(endpoint, 16);
        one.until(PeerEvent::Connected(NodeId(2))).await;
        one.net.send(NodeId(2), append("again"));
        assert_eq!(two.frame().await, (NodeId(1), "again".into()));
    });
}

#[test]
fn a_killed_peer_is_noticed_as_soon_as_it_is_back() {
    let ours = Authority::new(CLUSTER);
    let credentials = ours.node(2, Role::Manager);
    // The victim lives in a runtime of its own, which is ended without a word to anybody.
    let victim = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let two = victim.block_on(async { member(bind(credentials.clone(), 0), 16) });
    run(async {
        let mut one = member(ours.manager(1), 1024);
        let listen = two.endpoint.local_addr();
        one.net.set_peers(vec![(NodeId(2), listen.to_string())]);
        one.until(PeerEvent::Connected(NodeId(2))).await;
        victim.shutdown_background();
        drop(two);
        let endpoint = loop {
            match Endpoint::bind(listen, LiveTrust::new(credentials.clone()).unwrap()) {
                Ok(endpoint) => break endpoint,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let since = std::time::Instant::now();
        let _two = member(endpoint, 16);
        one.until(PeerEvent::Disconnected(NodeId(2))).await;
        one.until(PeerEvent::Connected(NodeId(2))).await;
        assert!(since.elapsed() < limits::IDLE_TIMEOUT / 2, "{:?}", since.elapsed());
    });
}

#[test]
fn too_much_is_dropped_and_reported_and_never_waits() {
    run(async {
        // Room for one event, and nobody who takes it.
        let (mut one, _two) = pair(&Authority::new(CLUSTER), 1).await;
        let frame = Bytes::from(vec![0; 1024 * 1024]);
        for _ in 0..64 {
            one.net.send(NodeId(2), append(frame.clone()));
            tokio::task::yield_now().await;
        }
        one.until(PeerEvent::Unreachable(NodeId(2))).await;
        one.net.send(NodeId(9), append("nobody"));
        one.until(PeerEvent::Unreachable(NodeId(9))).await;
    });
}

/// Whom a frame of member 1 that claims to be of member 7 is taken to be from.
async fn claimed() -> NodeId {
    let (one, mut two) = pair(&Authority::new(CLUSTER), 16).await;
    one.net.send(NodeId(2), append(Bytes::copy_from_slice(&7u64.to_le_bytes())));
    two.frame().await.0
}

#[test]
fn a_peer_speaks_for_itself_alone() {
    assert_eq!(run(claimed()), NodeId(1));
}

/// The frames that arrive when an older connection goes on after a newer one has begun.
async fn overtaken() -> Vec<Bytes> {
    let ours = Authority::new(CLUSTER);
    let (one, mut two) = (ours.manager(1), member(ours.manager(2), 16));
    let mut streams = Vec::new();
    for _ in 0..2 {
        let held = one.dial(Purpose::Peer, &addr(&two.endpoint), Some(NodeId(2))).await.unwrap();
        let stream = held.connection.open_uni().await.unwrap();
        streams.push((held, stream));
    }
    let send =
        async |at: usize, streams: &mut Vec<(std::sync::Arc<_>, quinn::SendStream)>, text: &'static str| {
            let _ = super::super::frame::write_frames(&mut streams[at].1, [Bytes::from(text)]).await;
        };
    send(1, &mut streams, "new").await;
    let mut got = vec![two.frame().await.1];
    send(0, &mut streams, "old").await;
    let late = tokio::time::timeout(Duration::from_millis(200), two.frame()).await;
    got.extend(late.ok().map(|(_, frame)| frame));
    got
}

#[test]
fn an_older_connection_is_not_heard_after_a_newer_one() {
    assert_eq!(run(overtaken()), ["new"]);
}

#[test]
fn peers_that_are_left_out_are_let_go() {
    run(async {
        let (one, two) = pair(&Authority::new(CLUSTER), 16).await;
        assert_eq!(one.endpoint.connections().len(), 1);
        one.net.set_peers(vec![]);
        while !(one.endpoint.connections().is_empty() && two.endpoint.connections().is_empty()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
}

#[cfg(feature = "sim")]
mod planted {
    use super::*;
    use crate::planted::{Bug, with};

    #[test]
    fn trusting_a_frames_own_words_is_noticed() {
        assert_ne!(with(Some(Bug::TrustFrameSender), || run(claimed())), NodeId(1));
    }

    #[test]
    fn hearing_an_older_connection_is_noticed() {
        assert_eq!(with(Some(Bug::DeliverStaleFrames), || run(overtaken())), ["new", "old"]);
    }
}
