//! The quota and short disks over a running cluster: refused before anything is proposed, and over by
//! itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use raft_kv::client::{Config, FreeSpace, Handle, Node, Overrides, Tuning};
use raft_kv::error::{Error, Refusal};
use raft_kv::machine::command::Command;
use raft_kv::types::{
    AlarmKind, AlarmRequest, DeleteRequest, KeyRange, OnceId, PutRequest, Role, TxnOp, TxnRequest, Usage,
};

use crate::support::{cluster, config, eventually, logs, put, tuning, value, voters};

async fn usage(handle: &Handle) -> Usage {
    handle.quota().await.unwrap().1
}

async fn committed(handle: &Handle) -> u64 {
    handle.info().await.unwrap().1.committed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_over_the_quota_is_refused_at_every_door_before_it_is_proposed() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a", "b"]).await;
    let (one, two) = (nodes[0].handle(), nodes[1].handle());
    assert_eq!(usage(&one).await, Usage { bytes: 0, keys: 0, quota: Some(8 << 30) });
    one.put(put("key", "12345")).await.unwrap();
    let set = two.quota_set(Some(10)).await.unwrap().1;
    assert_eq!(set, Usage { bytes: 8, keys: 1, quota: Some(10) });
    // Level with that, so that nothing else is under way when entries are counted.
    assert_eq!(usage(&one).await, set);
    let before = (committed(&one).await, one.info().await.unwrap().0.revision);
    let full = Error::from(Refusal::QuotaExceeded { live: 8, quota: 10 });
    let larger = PutRequest { value: "12345678".into(), ..put("key", "") };
    let txn = TxnRequest { failure: vec![], success: vec![TxnOp::Put(larger.clone())], ..Default::default() };
    for handle in [&one, &two] {
        for _ in 0..10 {
            assert_eq!(handle.put(put("k2", "12")).await.unwrap_err(), full);
            assert_eq!(handle.put(larger.clone()).await.unwrap_err(), full);
            assert_eq!(handle.txn(txn.clone()).await.unwrap_err(), full);
        }
    }
    let after = (committed(&one).await, one.info().await.unwrap().0.revision);
    // Sixty refusals; a few entries of the cluster's own may have come meanwhile.
    assert!(after.0 - before.0 < 30 && after.1 == before.1, "{before:?} {after:?}");
    one.put(put("key", "54321")).await.unwrap();
    // Nobody is refused for a key that is gone already, wherever it was removed.
    for _ in 0..20 {
        two.put(put("key", "1234567")).await.unwrap();
        two.delete(DeleteRequest { range: KeyRange::key("key"), prev_kv: false }).await.unwrap();
        one.put(put("key", "7654321")).await.unwrap();
        one.delete(DeleteRequest { range: KeyRange::key("key"), prev_kv: false }).await.unwrap();
    }
    two.quota_set(None).await.unwrap();
    one.put(put("key", &"x".repeat(100))).await.unwrap();
    assert_eq!(usage(&two).await, Usage { bytes: 103, keys: 1, quota: None });
    let (_, info) = two.info().await.unwrap();
    assert_eq!((info.usage.bytes, info.usage.quota, info.disk_short), (103, None, vec![]));
    let refused = one.quota_set(Some(0)).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(Refusal::Invalid { .. })), "{refused}");
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

/// Whoever comes at once is let in as long as there is room, and no further.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_never_take_more_than_the_quota() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a", "b"]).await;
    nodes[0].handle().quota_set(Some(500)).await.unwrap();
    let ask = |n: usize| {
        let handle = nodes[n % 2].handle().with_patience(Duration::from_secs(60));
        tokio::spawn(async move { handle.put(put(&format!("k{n:02}"), "1234567")).await })
    };
    let mut taken = 0;
    for asked in (0..100).map(ask).collect::<Vec<_>>() {
        match asked.await.unwrap() {
            Ok(_) => taken += 1,
            Err(Error::Refused(Refusal::QuotaExceeded { quota: 500, .. })) => {}
            Err(other) => panic!("{other}"),
        }
    }
    let used = usage(&nodes[1].handle()).await;
    assert_eq!((taken, used), (50, Usage { bytes: 500, keys: 50, quota: Some(500) }));
    // A repeat of what was done is no new request.
    nodes[1].handle().quota_set(Some(510)).await.unwrap();
    let once = OnceId { client: 7, seq: 1 };
    let handle = nodes[0].handle();
    let again = || handle.once(once, Command::Put(put("new", "7654321")));
    let done = again().await.unwrap();
    nodes[1].handle().quota_set(Some(1)).await.unwrap();
    assert_eq!(again().await.unwrap().0.revision, done.0.revision);
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

/// A configuration whose disk has as much room as `free` says.
fn told(config: Config, free: &Arc<AtomicU64>) -> Config {
    let free = free.clone();
    let free_space = FreeSpace::Told(Arc::new(move || free.load(Ordering::Relaxed)));
    Config { tuning: Tuning { free_space, disk_reserve_bytes: 8 << 20, ..tuning() }, ..config }
}

async fn short(handle: &Handle, expect: usize) {
    let look = || async { (handle.info().await.ok()?.1.disk_short.len() == expect).then_some(()) };
    eventually("as many disks are short", look).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_disk_stops_what_takes_space_until_there_is_room_again() {
    logs();
    let dir = tempfile::tempdir().unwrap();
    let plenty = 1 << 40;
    let free = [Arc::new(AtomicU64::new(plenty)), Arc::new(AtomicU64::new(plenty))];
    let first = Node::init(told(config(dir.path(), "a"), &free[0])).await.unwrap();
    let token = first.handle().join_token(Role::Manager).await.unwrap();
    let endpoints = vec![first.addr().to_owned()];
    let second = Node::join(told(config(dir.path(), "b"), &free[1]), &token, &endpoints).await.unwrap();
    let (one, two) = (first.handle(), second.handle());
    eventually("both vote", || async { (voters(&one).await == 2).then_some(()) }).await;
    one.put(put("k", "v")).await.unwrap();
    let (ids, refused) =
        ([first.id(), second.id()], Error::from(Refusal::Alarmed { kind: AlarmKind::DiskShort }));

    free[1].store(1 << 20, Ordering::Relaxed);
    short(&one, 1).await;
    short(&two, 1).await;
    assert_eq!(two.info().await.unwrap().1.disk_free, 1 << 20);
    for handle in [&one, &two] {
        assert_eq!(handle.alarm(AlarmRequest::List(None)).await.unwrap().1, [(ids[1], AlarmKind::DiskShort)]);
        assert_eq!(handle.put(put("k", "w")).await.unwrap_err(), refused);
        assert_eq!(handle.lease_grant(0, 60).await.unwrap_err(), refused);
    }
    // What makes room, or is only read, works.
    assert_eq!(value(&two, "k").await.as_deref(), Some("v"));
    let gone = two.delete(DeleteRequest { range: KeyRange::key("k"), prev_kv: false }).await.unwrap();
    one.compact(gone.0.revision, true).await.unwrap();

    // Each speaks for itself, and one raised by hand is nobody's but the hand's.
    free[0].store(0, Ordering::Relaxed);
    short(&one, 2).await;
    one.alarm(AlarmRequest::Raise(ids[0], AlarmKind::NoSpace)).await.unwrap();
    // Just enough not to be raised is not enough to be ended.
    free[1].store(9 << 20, Ordering::Relaxed);
    free[0].store(plenty, Ordering::Relaxed);
    short(&one, 1).await;
    assert_eq!(one.info().await.unwrap().1.disk_short, [ids[1]]);
    free[1].store(plenty, Ordering::Relaxed);
    short(&one, 0).await;
    assert_eq!(one.alarm(AlarmRequest::List(None)).await.unwrap().1, [(ids[0], AlarmKind::NoSpace)]);
    let by_hand = Error::from(Refusal::Alarmed { kind: AlarmKind::NoSpace });
    assert_eq!(two.put(put("k", "w")).await.unwrap_err(), by_hand);
    one.alarm(AlarmRequest::End(ids[0], AlarmKind::NoSpace)).await.unwrap();
    two.put(put("k", "w")).await.unwrap();
    for node in [first, second] {
        node.shutdown().await.unwrap();
    }
}

/// Who is off fills no disk, and must not keep the others from writing for as long as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_alarm_of_a_member_that_is_off_is_ended_by_the_leader() {
    logs();
    let dir = tempfile::tempdir().unwrap();
    let free = [Arc::new(AtomicU64::new(1 << 40)), Arc::new(AtomicU64::new(1 << 40))];
    let first = Node::init(told(config(dir.path(), "a"), &free[0])).await.unwrap();
    let token = first.handle().join_token(Role::Manager).await.unwrap();
    let endpoints = vec![first.addr().to_owned()];
    let others = ["b", "c"].map(|name| told(config(dir.path(), name), &free[usize::from(name == "c")]));
    let [second, third] = others;
    let second = Node::join(second, &token, &endpoints).await.unwrap();
    let place = third.data_dir.clone();
    let third = Node::join(third, &token, &endpoints).await.unwrap();
    let one = first.handle().with_patience(Duration::from_secs(60));
    eventually("all vote", || async { (voters(&one).await == 3).then_some(()) }).await;
    free[1].store(0, Ordering::Relaxed);
    short(&one, 1).await;
    third.shutdown().await.unwrap();
    let refused = Error::from(Refusal::Alarmed { kind: AlarmKind::DiskShort });
    let goes_on = async {
        while let Err(error) = one.put(put("k", "v")).await {
            assert_eq!(error, refused);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), goes_on).await.expect("writes go on without it");
    // Back, and still short, it says so again.
    let tuning = Tuning { disk_reserve_bytes: u64::MAX, ..tuning() };
    let none = FreeSpace::Told(Arc::new(|| 0));
    let third =
        Node::open(&place, Overrides::default(), Tuning { free_space: none, ..tuning }).await.unwrap();
    short(&one, 1).await;
    assert_eq!(one.put(put("k", "w")).await.unwrap_err(), refused);
    for node in [third, second, first] {
        node.shutdown().await.unwrap();
    }
}
