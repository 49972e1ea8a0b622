//! Real sockets on loopback: who gets in, who does not, and what the other side is told.

mod bulk;
mod chains;
mod https;
mod peers;
mod trust;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::*;
use crate::error::{Error, Refusal};
use crate::limits;
use crate::pki::{Credentials, JoinToken, LEAF_VALIDITY, NodeKey, RootKey, Secret, Subject, issue};
use crate::types::{ClusterId, NodeId, Role};

const CLUSTER: ClusterId = ClusterId(0xc1);
const DAY: Duration = Duration::from_secs(86400);

/// A cluster's authority, and what it hands out.
struct Authority {
    root: RootKey,
    cluster: ClusterId,
}

impl Authority {
    fn new(cluster: ClusterId) -> Self {
        Self { root: RootKey::generate(cluster, SystemTime::now()), cluster }
    }

    fn node(&self, node: u64, role: Role) -> Credentials {
        self.node_at(node, role, SystemTime::now())
    }

    fn node_at(&self, node: u64, role: Role, now: SystemTime) -> Credentials {
        let key = NodeKey::generate();
        let subject =
            Subject { cluster: self.cluster, node: NodeId(node), role, name: "tester".into(), hosts: vec![] };
        let leaf = issue(&self.root, &subject, &key.public(), now, LEAF_VALIDITY, &mut rand::rng());
        Credentials {
            chain: vec![leaf.unwrap()],
            key: key.der().to_vec(),
            roots: vec![self.root.cert_der().to_vec()],
            ..Default::default()
        }
    }

    fn manager(&self, node: u64) -> Endpoint {
        bind(self.node(node, Role::Manager), 0)
    }

    fn token(&self) -> JoinToken {
        JoinToken { root: self.root.digest(), secret: Secret::generate(&mut rand::rng()) }
    }
}

fn bind(credentials: Credentials, port: u16) -> Endpoint {
    let listen = SocketAddr::from(([127, 0, 0, 1], port));
    Endpoint::bind(listen, LiveTrust::new(credentials).unwrap()).unwrap()
}

fn addr(endpoint: &Endpoint) -> String {
    endpoint.local_addr().to_string()
}

/// Runs `test` in one thread, so that a planted bug reaches all of it, and not for long.
fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(8), test).await.unwrap() })
}

/// Answers every request of every client and joiner with its own bytes and who asked.
fn serve_echo(endpoint: Endpoint) {
    tokio::spawn(async move {
        while let Some(accepted) = endpoint.accept().await {
            tokio::spawn(async move {
                match accepted {
                    Accepted::Client(client) => {
                        while let Some(stream) = client.next_stream().await {
                            tokio::spawn(echo(stream));
                        }
                    }
                    Accepted::Join(joiner) => {
                        while let Some(stream) = joiner.next_stream().await {
                            tokio::spawn(echo(stream));
                        }
                    }
                    // Held open until the other end is done.
                    Accepted::Peer(peer) => {
                        tokio::time::sleep(Duration::from_secs(5)).await;
                        drop(peer);
                    }
                    Accepted::Bulk(bulk) => drop(bulk.incoming().await),
                }
            });
        }
    });
}

async fn echo(mut stream: RequestStream) {
    loop {
        let answer = match stream.recv().await {
            Ok(Some(request)) => {
                let who = stream.identity.map_or("nobody".into(), |who| who.node.to_string());
                [who.as_bytes(), b":", &request].concat().into()
            }
            Ok(None) => return,
            Err(error) => {
                let _ = stream.send(Bytes::from(error.to_string())).await;
                return;
            }
        };
        if stream.send(answer).await.is_err() {
            return;
        }
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, expect: &str) {
    match result {
        Err(Error::Refused(refusal)) => {
            let text = refusal.to_string();
            assert!(text.contains(expect), "{text:?} does not say {expect:?}");
            assert!(!text.contains("127.0.0.1"), "{text:?} names an address");
        }
        other => panic!("not refused for {expect:?}: {other:?}"),
    }
}
