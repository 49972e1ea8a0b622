//! Relays that stand between members, and between clients and members, and keep every byte that goes
//! through, both ways. They change nothing, and they end with the test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket, tcp};
use tokio::runtime::Runtime;

/// What a relay carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Tcp,
    Udp,
}

/// Which way a piece went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From who has dialled.
    There,
    /// To who has dialled.
    Back,
}

/// One TCP connection, or all datagrams of one UDP address, in the order in which they came.
#[derive(Clone, Debug)]
pub struct Flow {
    pub kind: Kind,
    /// The relay's name.
    pub relay: &'static str,
    pub pieces: Vec<(Way, Vec<u8>)>,
}

impl Flow {
    /// All that went one way.
    pub fn stream(&self, way: Way) -> Vec<u8> {
        let pieces = self.pieces.iter().filter(|(is, _)| *is == way);
        pieces.flat_map(|(_, bytes)| bytes).copied().collect()
    }
}

/// Where flows are kept.
#[derive(Clone, Default)]
struct Book(Arc<Mutex<Vec<Flow>>>);

impl Book {
    fn begin(&self, kind: Kind, relay: &'static str) -> usize {
        let mut flows = self.0.lock();
        flows.push(Flow { kind, relay, pieces: Vec::new() });
        flows.len() - 1
    }

    fn note(&self, flow: usize, way: Way, bytes: &[u8]) {
        self.0.lock()[flow].pieces.push((way, bytes.to_vec()));
    }
}

/// Relays with one book. Dropping it ends them.
pub struct Capture {
    runtime: Option<Runtime>,
    book: Book,
}

/// One relay.
pub struct Relay {
    /// Where it listens.
    pub addr: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
}

impl Relay {
    /// Where it leads.
    pub fn leads_to(&self) -> SocketAddr {
        *self.target.lock()
    }

    /// Leads elsewhere from now on.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.target.lock() = target;
    }
}

impl Capture {
    pub fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { runtime: Some(runtime), book: Book::default() }
    }

    /// A relay on a free port of loopback.
    pub fn relay(&self, kind: Kind, name: &'static str, target: SocketAddr) -> Relay {
        let runtime = self.runtime.as_ref().expect("until it is dropped");
        let to = Arc::new(Mutex::new(target));
        let (book, target) = (self.book.clone(), to.clone());
        let addr = runtime.block_on(async {
            if kind == Kind::Udp {
                let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                let addr = front.local_addr().unwrap();
                tokio::spawn(carry_udp(Arc::new(front), name, target, book));
                addr
            } else {
                let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let addr = front.local_addr().unwrap();
                tokio::spawn(carry_tcp(front, name, target, book));
                addr
            }
        });
        Relay { addr, target: to }
    }

    /// What has gone through until now.
    pub fn flows(&self) -> Vec<Flow> {
        self.book.0.lock().clone()
    }

    /// How many bytes have gone through one relay, both ways.
    pub fn volume(&self, relay: &str) -> usize {
        let flows = self.book.0.lock();
        let pieces = flows.iter().filter(|flow| flow.relay == relay).flat_map(|flow| &flow.pieces);
        pieces.map(|(_, bytes)| bytes.len()).sum()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

async fn carry_udp(front: Arc<UdpSocket>, name: &'static str, target: Arc<Mutex<SocketAddr>>, book: Book) {
    let mut known: Vec<(SocketAddr, Arc<UdpSocket>, usize)> = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        // The system tells of an end that is not there (any more); that is the two ends' affair.
        let Ok((count, from)) = front.recv_from(&mut buffer).await else { continue };
        if !known.iter().any(|(addr, ..)| *addr == from) {
            let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
            let flow = book.begin(Kind::Udp, name);
            known.push((from, back.clone(), flow));
            let (front, book) = (front.clone(), book.clone());
            tokio::spawn(async move {
                let mut buffer = vec![0; 65_536];
                loop {
                    let Ok((count, _)) = back.recv_from(&mut buffer).await else { continue };
                    book.note(flow, Way::Back, &buffer[..count]);
                    let _ = front.send_to(&buffer[..count], from).await;
                }
            });
        }
        let (_, back, flow) = known.iter().find(|(addr, ..)| *addr == from).expect("just added");
        book.note(*flow, Way::There, &buffer[..count]);
        let to = *target.lock();
        let _ = back.send_to(&buffer[..count], to).await;
    }
}

async fn carry_tcp(front: TcpListener, name: &'static str, target: Arc<Mutex<SocketAddr>>, book: Book) {
    loop {
        let Ok((near, _)) = front.accept().await else { continue };
        let to = *target.lock();
        let Ok(far) = TcpStream::connect(to).await else { continue };
        let flow = book.begin(Kind::Tcp, name);
        let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
        tokio::spawn(carry(near_read, far_write, flow, Way::There, book.clone()));
        tokio::spawn(carry(far_read, near_write, flow, Way::Back, book.clone()));
    }
}

async fn carry(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, flow: usize, way: Way, book: Book) {
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        book.note(flow, way, &buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
