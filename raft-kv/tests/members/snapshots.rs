//! Members that are behind the log: they get a snapshot, which goes on where it broke; and the log,
//! which waits for nobody beyond its bound.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use raft_kv::client::{Bounds, FreeSpace, Handle, Node, Overrides, StartError, Tuning};
use raft_kv::types::{NodeId, PutRequest, Role, TransferStatus};

use crate::support::{config, eventually, put, tuning, value, voters};

/// Bytes of each value, which can't be compressed.
const VALUE: usize = 64 * 1024;

/// As the tests' other clusters, with a log that is cut soon.
fn short_log(snapshot_rate: u64) -> Tuning {
    let bounds = Bounds {
        flush_bytes: 1,
        flush_after: Duration::from_millis(100),
        keep_for_followers: 50,
        keep_at_most: 150,
        ..Bounds::default()
    };
    Tuning { bounds, snapshot_rate, ..tuning() }
}

async fn grown(dir: &Path, names: &[&str], tuning: &Tuning) -> Vec<Node> {
    crate::support::logs();
    let with = |name| raft_kv::client::Config { tuning: tuning.clone(), ..config(dir, name) };
    let first = Node::init(with(names[0])).await.unwrap();
    let token = first.handle().join_token(Role::Manager).await.unwrap();
    let mut nodes = vec![first];
    for name in &names[1..] {
        let endpoints = vec![nodes[0].addr().to_owned()];
        nodes.push(Node::join(with(name), &token, &endpoints).await.unwrap());
    }
    let count = names.len();
    eventually("all vote", || async { (voters(&nodes[0].handle()).await == count).then_some(()) }).await;
    nodes
}

async fn fill(handle: &Handle, count: usize) {
    let mut seed = 88172645463325252u64;
    for number in 0..count {
        let mut bytes = Vec::with_capacity(VALUE);
        while bytes.len() < VALUE {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            bytes.extend(seed.to_le_bytes());
        }
        let key = format!("large{number:04}");
        let request = PutRequest { key: key.into(), value: bytes.into(), ..PutRequest::default() };
        handle.put(request).await.unwrap();
    }
}

/// Starts a member again; what its last run held may take a moment to be free.
async fn again(folder: &Path, tuning: &Tuning) -> Node {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match Node::open(folder, Overrides::default(), tuning.clone()).await {
            Ok(node) => return node,
            Err(error @ (StartError::DataDir { .. } | StartError::Storage(_) | StartError::Refused(_))) => {
                assert!(Instant::now() < deadline, "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn sending(leader: &Node, to: NodeId) -> Option<TransferStatus> {
    let counts = leader.handle().snapshots_here().unwrap();
    counts.sending.into_iter().find(|transfer| transfer.member == to && transfer.bytes > 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_goes_on_where_it_broke() {
    let dir = tempfile::tempdir().unwrap();
    let slow = Tuning { snapshot_rate: 512 * 1024, ..tuning() };
    let nodes = grown(dir.path(), &["a"], &slow).await;
    fill(&nodes[0].handle(), 64).await;
    let token = nodes[0].handle().join_token(Role::Manager).await.unwrap();
    let endpoints = [nodes[0].addr().to_owned()];
    let new = Node::join(config(dir.path(), "b"), &token, &endpoints).await.unwrap();
    let id = new.id();
    // The state is 4 MiB: a quarter is there after two seconds, the rest would take six more.
    let broken = eventually("a quarter has arrived", || async {
        sending(&nodes[0], id).await.filter(|transfer| transfer.percent() >= 25)
    })
    .await;
    assert!(broken.bytes >= 4 * 1024 * 1024, "{broken:?}");
    drop(new);
    let new = again(&dir.path().join("b"), &tuning()).await;
    eventually("it votes", || async { (voters(&nodes[0].handle()).await == 2).then_some(()) }).await;
    assert_eq!(value(&new.handle(), "nothing").await, None);
    assert!(new.handle().get("large0063".to_owned()).await.unwrap().is_some());
    let counts = nodes[0].handle().snapshots_here().unwrap();
    assert!(counts.spared > 0, "what arrived is not sent again: {counts:?}");
    // What was on its way when it broke may come twice, and the few small files of the database.
    assert!(counts.sent <= broken.bytes + 1024 * 1024, "{counts:?} of {broken:?}");
    assert!(counts.sending.is_empty() && counts.receiving.is_empty(), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_waits_within_bounds_and_one_checkpoint_is_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let tuning = short_log(1024 * 1024);
    let mut nodes = grown(dir.path(), &["a", "b", "c", "d", "e"], &tuning).await;
    let handle = nodes[0].handle();
    eventually("a leads", || async {
        let _ = handle.transfer(Some(nodes[0].id())).await;
        (nodes[0].leadership().borrow().leader == Some(nodes[0].id())).then_some(())
    })
    .await;
    let made = || handle.snapshots_here().unwrap().made;
    // A little behind: the log is kept for it, though it does not answer.
    let before = made();
    let late = nodes.pop().unwrap();
    late.shutdown().await.unwrap();
    for number in 0..10 {
        handle.put(put(&format!("little{number}"), "v")).await.unwrap();
    }
    nodes.push(again(&dir.path().join("e"), &tuning).await);
    let back = nodes[4].handle();
    eventually("it has caught up", || async { back.get("little9".to_owned()).await.ok().flatten() }).await;
    drop(back);
    assert_eq!(made(), before, "the log was enough");
    // Far behind: the log waits for nobody who does not answer.
    for _ in 0..2 {
        nodes.pop().unwrap().shutdown().await.unwrap();
    }
    fill(&handle, 24).await;
    for number in 0..300 {
        handle.put(put(&format!("far{number}"), "v")).await.unwrap();
    }
    // They are waited for a while, but not beyond the bound.
    eventually("the log is cut", || async {
        handle.put(put("after", "v")).await.unwrap();
        let (_, info) = handle.info().await.unwrap();
        (info.log_first + 200 > info.applied).then_some(())
    })
    .await;
    let (before, term) = (made(), nodes[0].leadership().borrow().term);
    nodes.push(again(&dir.path().join("d"), &tuning).await);
    nodes.push(again(&dir.path().join("e"), &tuning).await);
    for node in &nodes[3..] {
        let handle = node.handle();
        eventually("it has caught up", || async { handle.get("far299".to_owned()).await.ok().flatten() })
            .await;
        assert!(node.handle().snapshots_here().unwrap().received > VALUE as u64 * 24, "by a snapshot");
    }
    // Another leader, on a machine that is busy, makes its own.
    if nodes[0].leadership().borrow().term == term {
        assert_eq!(made(), before + 1, "both were sent the same checkpoint");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_that_nobody_can_keep_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tuning = Tuning { snapshot_rate: 1000, ..tuning() };
    let refused = Node::init(raft_kv::client::Config { tuning, ..config(dir.path(), "a") }).await;
    assert!(refused.unwrap_err().to_string().contains("too few"));
    assert!(!dir.path().join("a").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_waits_for_room_on_its_receivers_disk() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = grown(dir.path(), &["a"], &tuning()).await;
    fill(&nodes[0].handle(), 64).await;
    let token = nodes[0].handle().join_token(Role::Manager).await.unwrap();
    let endpoints = [nodes[0].addr().to_owned()];
    let free = Arc::new(AtomicU64::new(3 << 20));
    let told = free.clone();
    let free_space = FreeSpace::Told(Arc::new(move || told.load(Ordering::Relaxed)));
    let narrow =
        raft_kv::client::Config { tuning: Tuning { free_space, ..tuning() }, ..config(dir.path(), "b") };
    let new = Node::join(narrow, &token, &endpoints).await.unwrap();
    // The state is 4 MiB.
    eventually("it was offered and refused", || async {
        let counts = nodes[0].handle().snapshots_here()?;
        (counts.made > 0 && counts.sending.is_empty()).then_some(())
    })
    .await;
    assert_eq!(voters(&nodes[0].handle()).await, 1);
    assert!(nodes[0].handle().snapshots_here().unwrap().sent < 1 << 20, "nothing of it was taken");
    free.store(1 << 40, Ordering::Relaxed);
    eventually("it votes", || async { (voters(&nodes[0].handle()).await == 2).then_some(()) }).await;
    assert!(new.handle().get("large0063".to_owned()).await.unwrap().is_some());
}
