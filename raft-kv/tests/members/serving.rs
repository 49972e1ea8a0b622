//! What a cluster serves: from every member, through a clean stop, with leases.

use std::time::{Duration, Instant};

use raft_kv::client::{Node, Overrides};
use raft_kv::error::{Error, NotDone};
use raft_kv::types::{KeyRange, PutRequest, RangeRequest, WatchBatch, WatchRequest};

use crate::support::{cluster, config, eventually, put, tuning, value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_by_token_serves_from_every_member() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a", "b", "c"]).await;
    for (number, node) in nodes.iter().enumerate() {
        let (header, _) = node.handle().put(put(&format!("k{number}"), "v")).await.unwrap();
        assert_eq!(header.revision, 2 + number as i64);
        for other in &nodes {
            assert_eq!(value(&other.handle(), &format!("k{number}")).await.as_deref(), Some("v"));
        }
    }
    let mut watch = nodes[2]
        .handle()
        .watch(WatchRequest { range: KeyRange::prefix("k"), start_revision: 2, ..WatchRequest::default() })
        .await
        .unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let Some(WatchBatch::Changes(changes)) = watch.next().await.unwrap() else {
            panic!("events expected")
        };
        seen.extend(changes.iter().map(|change| change.revision));
    }
    assert_eq!(seen, [2, 3, 4]);
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_stop_of_the_leader_loses_no_write_and_a_restart_catches_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(dir.path(), &["a", "b", "c"]).await;
    let handle = nodes[1].handle();
    let writer = tokio::spawn(async move {
        let (mut failed, mut longest) = (0, Duration::ZERO);
        for number in 0..200 {
            let began = Instant::now();
            failed += usize::from(handle.put(put(&format!("w{number}"), "v")).await.is_err());
            longest = longest.max(began.elapsed());
        }
        (failed, longest)
    });
    let leader = nodes[0].id();
    let gone = nodes.remove(0);
    assert_eq!(gone.leadership().borrow().leader, Some(leader));
    gone.shutdown().await.unwrap();
    let (failed, longest) = writer.await.unwrap();
    assert_eq!(failed, 0, "no write fails when the leader stops cleanly (longest {longest:?})");
    let back = Node::open(&dir.path().join("a"), Overrides::default(), tuning()).await.unwrap();
    eventually("it is back", || async { (value(&back.handle(), "w199").await.is_some()).then_some(()) })
        .await;
    let request =
        RangeRequest { range: KeyRange::prefix("w"), serializable: true, ..RangeRequest::default() };
    assert_eq!(back.handle().range(request).await.unwrap().1.count, 200);
    back.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_ends_with_its_keys_and_lives_while_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::init(config(dir.path(), "a")).await.unwrap();
    let handle = node.handle();
    eventually("it leads", || async { handle.get("x").await.ok() }).await;
    let (_, id, ttl) = handle.lease_grant(0, 1).await.unwrap();
    assert_eq!(ttl, 2);
    handle.put(PutRequest { lease: id, ..put("leased", "v") }).await.unwrap();
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        handle.lease_keep_alive(id).await.unwrap();
    }
    assert!(value(&handle, "leased").await.is_some());
    let (_, status) = handle.lease_time_to_live(id, true).await.unwrap();
    assert_eq!(status.keys, ["leased"]);
    eventually("the key is gone", || async { value(&handle, "leased").await.is_none().then_some(()) }).await;
    assert!(handle.lease_keep_alive(id).await.is_err());
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_in_the_process_ends_with_its_node() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::init(config(dir.path(), "a")).await.unwrap();
    let handle = node.handle().with_patience(Duration::MAX);
    let request = WatchRequest { range: KeyRange::prefix("k"), ..WatchRequest::default() };
    let mut watch = handle.watch(request).await.unwrap();
    handle.put(put("k", "v")).await.unwrap();
    assert!(matches!(watch.next().await, Ok(Some(WatchBatch::Changes(_)))));
    let follow = tokio::spawn(async move { watch.next().await });
    node.shutdown().await.unwrap();
    let told =
        tokio::time::timeout(Duration::from_secs(5), follow).await.expect("it does not wait on").unwrap();
    assert_eq!(told.unwrap_err(), Error::NotDone(NotDone::ShuttingDown));
    assert_eq!(handle.put(put("k", "w")).await.unwrap_err(), Error::NotDone(NotDone::ShuttingDown));
}
