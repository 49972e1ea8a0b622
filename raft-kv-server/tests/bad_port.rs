//! Garbage on the port, in both directions: a member that is sent garbage serves on, and a client
//! that is sent garbage says that nobody answers.

mod process;

use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use process::{Member, raft_kv};

/// Datagrams that no client sends: noise, and heads of QUIC packets with noise behind them.
fn garbage() -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut all = vec![vec![], b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 1200], vec![0xff; 1472]];
    for size in [1, 7, 20, 100, 1200, 1400] {
        for _ in 0..50 {
            let noise: Vec<u8> = (0..size).map(|_| byte()).collect();
            let mut initial = noise.clone();
            // A long header of version 1 with two connection ids of eight bytes.
            for (place, head) in initial.iter_mut().zip([0xc3, 0, 0, 0, 1, 8]) {
                *place = head;
            }
            all.extend([noise, initial]);
        }
    }
    all
}

#[test]
fn a_member_that_is_sent_garbage_serves_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut one = Member::first(folder.path());
    one.ask(&["put", "k", "v"]).json();
    let before = one.revision();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for datagram in garbage() {
        socket.send_to(&datagram, &one.addr).unwrap();
    }
    let address = one.addr.parse().unwrap();
    assert!(
        TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err(),
        "nothing speaks TCP there"
    );
    assert!(one.running.runs());
    assert_eq!(one.revision(), before);
    assert_eq!(one.ask(&["get", "k"]).json()["kvs"][0]["value"], "v");
}

#[test]
fn a_client_that_is_sent_garbage_says_that_nobody_answers() {
    let folder = tempfile::tempdir().unwrap();
    let one = Member::first(folder.path());
    let out = folder.path().join("client");
    let files = one.ask(&["cert", "issue", "tester", "--out", out.to_str().unwrap()]).json();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let place = socket.local_addr().unwrap().to_string();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let babbler = std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        // Ends when the test drops its side.
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                for datagram in garbage().into_iter().take(20) {
                    let _ = socket.send_to(&datagram, from);
                }
            }
        }
    });
    let file = |name: &str| files[name].as_str().unwrap();
    let ended = raft_kv(&[
        "get",
        "k",
        "--json",
        "--endpoints",
        &place,
        "--cacert",
        file("cacert"),
        "--cert",
        file("cert"),
        "--key",
        file("key"),
    ]);
    drop(stop);
    babbler.join().unwrap();
    ended.refused(3, &["not_done"]);
}
