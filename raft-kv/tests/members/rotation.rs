//! The root is replaced while members serve: nobody is turned away, nothing is lost, and nothing of
//! the old root counts after.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use raft_kv::client::api::{Call, Reply};
use raft_kv::client::{Handle, Node, Overrides, Tuning};
use raft_kv::error::Error;
use raft_kv::pki::Credentials;
use raft_kv::types::{CaStatus, KeyRange, Role, TrustCall, TrustReply, WatchBatch, WatchRequest};

use crate::support::{cluster, config, eventually, logs, put, tuning, value, voters};

async fn ask(handle: &Handle, call: TrustCall) -> Result<TrustReply, Error> {
    match handle.call(Call::Trust(call)).await? {
        (_, Reply::Trust(reply)) => Ok(reply),
        (_, other) => panic!("answered {other:?}"),
    }
}

async fn status(handle: &Handle) -> CaStatus {
    match ask(handle, TrustCall::Status).await {
        Ok(TrustReply::Status(status)) => status,
        other => panic!("answered {other:?}"),
    }
}

async fn rotate(handle: &Handle, deadline: u64, stolen: bool) {
    ask(handle, TrustCall::Rotate { new: None, deadline, stolen }).await.unwrap();
}

async fn settled(handle: &Handle, old: &CaStatus) -> CaStatus {
    eventually("the rotation settles", || async {
        let now = status(handle).await;
        (now.rotation.is_none() && now.digests != old.digests).then_some(now)
    })
    .await
}

async fn shut_down(nodes: Vec<Node>) {
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

/// Writers and watchers that go on until they are told to end.
struct Load {
    end: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    writers: Vec<tokio::task::JoinHandle<u64>>,
    watchers: Vec<tokio::task::JoinHandle<u64>>,
}

impl Load {
    async fn start(nodes: &[Node]) -> Self {
        let (end, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut watchers = Vec::new();
        for node in nodes.iter().cycle().take(9) {
            let range = KeyRange::prefix("load/");
            let request = WatchRequest { range, start_revision: 0, ..WatchRequest::default() };
            let mut watch = node.handle().watch(request).await.unwrap();
            watchers.push(tokio::spawn(async move {
                let mut seen = 0;
                loop {
                    match watch.next().await.unwrap() {
                        Some(WatchBatch::Changes(changes)) => {
                            for change in changes {
                                if change.events.iter().any(|event| event.kv.key == "load/end") {
                                    return seen;
                                }
                                seen += change.events.len() as u64;
                            }
                        }
                        Some(_) => {}
                        None => panic!("a watch ended"),
                    }
                }
            }));
        }
        let mut writers = Vec::new();
        for (number, node) in nodes.iter().enumerate() {
            let (handle, end, written) = (node.handle(), end.clone(), written.clone());
            writers.push(tokio::spawn(async move {
                let mut done = 0;
                while !end.load(Ordering::Relaxed) {
                    handle.put(put(&format!("load/{number}"), "v")).await.expect("no write fails");
                    done += 1;
                    written.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                done
            }));
        }
        Self { end, written, writers, watchers }
    }

    async fn stop(self, nodes: &[Node]) {
        self.end.store(true, Ordering::Relaxed);
        let mut written = 0;
        for writer in self.writers {
            written += writer.await.unwrap();
        }
        nodes[0].handle().put(put("load/end", "")).await.unwrap();
        for watcher in self.watchers {
            assert_eq!(watcher.await.unwrap(), written, "events are lost or seen twice");
        }
        assert!(written > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_is_replaced_under_load_and_nothing_fails() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a", "b", "c"]).await;
    let handle = nodes[0].handle();
    let token = handle.join_token(Role::Manager).await.unwrap();
    let load = Load::start(&nodes).await;
    let mut old = status(&handle).await;
    let old_credentials: Vec<Credentials> = nodes.iter().map(|node| node.trust().credentials()).collect();
    let mut longest = Duration::ZERO;
    for round in 0..3 {
        let began = Instant::now();
        rotate(&handle, 0, false).await;
        let new = settled(&handle, &old).await;
        longest = longest.max(began.elapsed());
        assert_eq!(new.digests.len(), 1, "round {round}: only the new root is believed");
        assert!(new.nodes.iter().all(|node| node.issuer == new.digests[0]), "{:?}", new.nodes);
        old = new;
    }
    eprintln!("the longest rotation took {longest:?}");
    let before = load.written.load(Ordering::Relaxed);
    eventually("writes go on", || async {
        (load.written.load(Ordering::Relaxed) > before + 20).then_some(())
    })
    .await;
    load.stop(&nodes).await;
    // What was a member's own certificate opens nothing any more.
    for credentials in old_credentials {
        let refused = Handle::connect(&[nodes[1].addr().to_owned()], credentials).await;
        let refused = refused.map(drop).unwrap_err().to_string();
        assert!(refused.contains("root"), "{refused}");
    }
    // Nor does a token that pins the old root, and there is a new one.
    let endpoints = [nodes[0].addr().to_owned()];
    let refused = Node::join(config(dir.path(), "d"), &token, &endpoints).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("token"), "{refused}");
    let token = handle.join_token(Role::Manager).await.unwrap();
    let joined = Node::join(config(dir.path(), "d"), &token, &endpoints).await.unwrap();
    joined.shutdown().await.unwrap();
    shut_down(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(dir.path(), &["a", "b", "c"]).await;
    let handle = nodes[0].handle();
    let old = status(&handle).await;
    // One is off, so that it can't settle.
    let off = nodes.pop().unwrap();
    off.shutdown().await.unwrap();
    let load = Load::start(&nodes).await;
    rotate(&handle, 0, false).await;
    eventually("two have moved", || async { (status(&handle).await.late.len() == 1).then_some(()) }).await;
    let refused = ask(&handle, TrustCall::Rotate { new: None, deadline: u64::MAX, stolen: false }).await;
    assert!(refused.is_err());
    ask(&handle, TrustCall::Abort).await.unwrap();
    eventually("it is taken back", || async { status(&handle).await.rotation.is_none().then_some(()) }).await;
    let now = status(&handle).await;
    assert_eq!(now.digests, old.digests);
    load.stop(&nodes).await;
    let back = Node::open(&dir.path().join("c"), Overrides::default(), tuning()).await.unwrap();
    eventually("it is back", || async { value(&back.handle(), "load/end").await }).await;
    nodes.push(back);
    shut_down(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_stolen_key_a_quorum_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(dir.path(), &["a", "b", "c"]).await;
    let handle = nodes[0].handle();
    let old = status(&handle).await;
    let off = nodes.pop().unwrap();
    let id = off.id();
    off.shutdown().await.unwrap();
    rotate(&handle, 0, true).await;
    let now = settled(&handle, &old).await;
    let late: Vec<_> =
        now.nodes.iter().filter(|node| node.issuer != now.digests[0]).map(|node| node.id).collect();
    assert_eq!(late, [id]);
    handle.put(put("k", "v")).await.unwrap();
    shut_down(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_and_a_cluster_that_was_off_too_long_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    logs();
    let short = Tuning { leaf_validity: Duration::from_secs(6), ..tuning() };
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        let config = raft_kv::client::Config { tuning: short.clone(), ..config(dir.path(), name) };
        let node = match nodes.first() {
            None => Node::init(config).await.unwrap(),
            Some(first) => {
                let first: &Node = first;
                let token = first.handle().join_token(Role::Manager).await.unwrap();
                Node::join(config, &token, &[first.addr().to_owned()]).await.unwrap()
            }
        };
        nodes.push(node);
    }
    let own = nodes[0].handle();
    eventually("all vote", || async { (voters(&own).await == 3).then_some(()) }).await;
    drop(own);
    let first: Vec<Credentials> = nodes.iter().map(|node| node.trust().credentials()).collect();
    let load = Load::start(&nodes).await;
    eventually("all are renewed", || async {
        let renewed =
            nodes.iter().zip(&first).all(|(node, old)| node.trust().credentials().chain != old.chain);
        renewed.then_some(())
    })
    .await;
    load.stop(&nodes).await;
    let last: Vec<Credentials> = nodes.iter().map(|node| node.trust().credentials()).collect();
    shut_down(nodes).await;
    eventually("all have expired", || async {
        let now = std::time::SystemTime::now();
        let ended = |it: &Credentials| now > raft_kv::pki::validity_of(&it.chain[0]).unwrap().1;
        last.iter().all(ended).then_some(())
    })
    .await;
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(Node::open(&dir.path().join(name), Overrides::default(), short.clone()).await.unwrap());
    }
    eventually("it serves again", || async { nodes[2].handle().put(put("k", "v")).await.ok() }).await;
    shut_down(nodes).await;
}
