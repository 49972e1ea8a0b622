//! Two of three members are gone for good; the third goes on alone, the old ones are shut out for ever,
//! and a new quorum of three grows from it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use raft_kv::client::{
    Handle, Node, Overrides, RecoverOptions, RecoverStatus, Recovery, credentials_of, recover,
};
use raft_kv::error::{Error, Refusal};
use raft_kv::net::{Dialer, Purpose};
use raft_kv::pki::{Credentials, NodeKey};
use raft_kv::types::{KeyRange, RangeRequest, Revision, Role, WatchBatch, WatchRequest};

use crate::support::{cluster, config, eventually, put, tuning, value, voters};

const PATIENCE: Duration = Duration::from_secs(60);

async fn client(node: &Node, name: &str) -> Credentials {
    let key = NodeKey::generate();
    let issued = node.handle().issue_certificate(name, Role::Client, key.request().into()).await;
    let (chain, roots) = issued.unwrap();
    let der = |list: Vec<bytes::Bytes>| list.iter().map(|one| one.to_vec()).collect();
    Credentials { chain: der(chain), key: key.der().to_vec(), roots: der(roots), ..Default::default() }
}

/// Recovers the member in `dir`, as soon as it has let go of it.
async fn recovered(dir: &Path) -> Recovery {
    let options = RecoverOptions { tuning: tuning(), ..RecoverOptions::default() };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match recover(dir, &options).await {
            Ok(RecoverStatus::Done(recovery)) => return recovery,
            // What has hold of it ends with the last task that was dropped.
            Err(error)
                if ["another process", "in use"].iter().any(|part| error.to_string().contains(part)) => {}
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < deadline, "the directory stays in use");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Starts a member again, as soon as its address and directory are free.
async fn opened(dir: &Path) -> Node {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Node::open(dir, Overrides::default(), tuning()).await {
            Ok(node) => return node,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Writes until told to stop or refused; what was acknowledged, each with its revision.
async fn write(handle: Handle, name: &'static str, stop: Arc<AtomicBool>) -> Vec<(String, Revision)> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        let key = format!("{name}/{number}");
        match handle.put(put(&key, "v")).await {
            Ok((header, _)) => acknowledged.push((key, header.revision)),
            Err(_) => break,
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    acknowledged
}

/// That whoever shows `credentials` is let in for nothing.
async fn refused(endpoint: &str, credentials: Credentials, part: &str) {
    for purpose in [Purpose::Peer, Purpose::Bulk, Purpose::Client] {
        match Dialer::connect(&[endpoint.to_owned()], &credentials, purpose).await {
            Err(Error::Refused(refusal)) => assert!(refusal.to_string().contains(part), "{refusal}"),
            other => panic!("{purpose:?}, {part}: {other:?}"),
        }
    }
}

async fn compacted(handle: &Handle, revision: Revision) {
    let range = KeyRange::prefix("");
    let request = RangeRequest { range: range.clone(), revision, ..RangeRequest::default() };
    let read = handle.range(request).await.unwrap_err();
    assert!(matches!(read, Error::Refused(Refusal::Compacted { .. })), "{revision}: {read}");
    let request = WatchRequest { range, start_revision: revision, ..WatchRequest::default() };
    let told = match handle.watch(request).await {
        Ok(mut watch) => watch.next().await,
        Err(error) => Err(error),
    };
    let ended =
        matches!(told, Ok(Some(WatchBatch::Compacted(_))) | Err(Error::Refused(Refusal::Compacted { .. })));
    assert!(ended, "{revision}: {told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_three_goes_on_alone_and_a_new_quorum_grows() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut nodes = cluster(dir.path(), &["a", "b", "c"]).await;
    let stranger = client(&nodes[1], "tool").await;
    let token = nodes[0].handle().join_token(Role::Manager).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = ["x", "y"]
        .into_iter()
        .map(|name| tokio::spawn(write(nodes[0].handle().with_patience(PATIENCE), name, stop.clone())))
        .collect();
    eventually("writes are under way", || async {
        let found = nodes[0].handle().get("x/20").await.ok().flatten();
        found.map(drop)
    })
    .await;
    // Nobody gets word of it: as if their machines burnt.
    drop((nodes.pop(), nodes.pop()));
    let survivor = nodes.pop().unwrap();
    let (old_id, addr) = (survivor.id(), survivor.addr().to_owned());
    drop(survivor);
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    stop.store(true, Ordering::Relaxed);
    let recovery = recovered(&at("a")).await;
    assert_eq!((recovery.others.len(), recovery.epoch, recovery.old_id), (2, 1, old_id));
    let survivor = opened(&at("a")).await;
    assert_eq!(survivor.id(), recovery.new_id);
    let handle = survivor.handle().with_patience(PATIENCE);
    let last = acknowledged.iter().map(|(_, revision)| *revision).max().unwrap();
    assert!(acknowledged.len() > 20 && recovery.kept_revision >= last);
    for (key, _) in &acknowledged {
        assert_eq!(value(&handle, key).await.as_deref(), Some("v"), "{key} was acknowledged");
    }
    let (header, _) = handle.put(put("new", "epoch")).await.unwrap();
    assert!(header.revision > recovery.kept_revision + 999_999_999, "{header:?}");
    for revision in [last, recovery.kept_revision + 1, recovery.kept_revision + 5000] {
        compacted(&handle, revision).await;
    }
    // A client's certificate is as good as before.
    let outside = Handle::connect(std::slice::from_ref(&addr), stranger).await.unwrap();
    assert_eq!(value(&outside, "new").await.as_deref(), Some("epoch"));

    the_old_ones_come_back(&handle, &addr, [&at("b"), &at("c")]).await;

    // One of them alone has no quorum, hears that it is over, and ends.
    let alone = opened(&at("b")).await;
    let ended = tokio::time::timeout(PATIENCE, alone.stopped()).await.expect("it hears of the new epoch");
    assert!(matches!(&ended, Error::Stopped(why) if why.contains("join anew")), "{ended}");
    let _ = alone.shutdown().await;

    // With empty directories they are welcome, by the token of before.
    let mut joined = Vec::new();
    for name in ["b", "c"] {
        let fresh = config(&dir.path().join("again"), name);
        joined.push(Node::join(fresh, &token, std::slice::from_ref(&addr)).await.unwrap());
    }
    eventually("three vote again", || async { (voters(&handle).await == 3).then_some(()) }).await;
    for (key, _) in &acknowledged {
        assert_eq!(value(&joined[1].handle(), key).await.as_deref(), Some("v"), "{key}");
    }
    survivor.shutdown().await.unwrap();
    let two = joined[0].handle().with_patience(PATIENCE);
    let (header, _) = two.put(put("after", "it")).await.unwrap();
    assert!(header.revision > recovery.new_revision);
    for node in joined {
        let _ = node.shutdown().await;
    }
}

/// The two that were lost run again: a majority of their epoch. They serve what they have, neither side
/// takes in or hears anything of the other, and nothing of one is in the other.
async fn the_old_ones_come_back(handle: &Handle, addr: &str, dirs: [&Path; 2]) {
    let old = [opened(dirs[0]).await, opened(dirs[1]).await];
    let theirs = old[0].handle().with_patience(PATIENCE);
    let (header, _) = theirs.put(put("theirs", "alone")).await.unwrap();
    assert!(header.revision < handle.info().await.unwrap().0.revision);
    let (members, mine) = (theirs.members().await.unwrap().1, handle.members().await.unwrap().1);
    assert_eq!((members.len(), mine.len()), (3, 1));
    for member in &mine {
        assert!(members.iter().all(|other| other.record.id != member.record.id), "no id is in both epochs");
    }
    for (node, dir) in old.iter().zip(dirs) {
        refused(addr, credentials_of(dir).unwrap().0, "removed").await;
        let new = credentials_of(&dirs[0].with_file_name("a")).unwrap().0;
        refused(node.addr(), new, "does not know this node").await;
    }
    assert_eq!(value(handle, "theirs").await, None);
    assert_eq!(value(&theirs, "new").await, None);
    handle.put(put("ours", "alone")).await.unwrap();
    assert_eq!(value(&theirs, "ours").await, None);
    for node in old {
        let _ = node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_follows_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(dir.path(), &["a", "b"]).await;
    nodes[0].handle().put(put("k", "1")).await.unwrap();
    let token = nodes[0].handle().join_token(Role::Manager).await.unwrap();
    drop((nodes.pop(), nodes.pop()));
    let first = recovered(&dir.path().join("a")).await;
    let one = opened(&dir.path().join("a")).await;
    let endpoints = [one.addr().to_owned()];
    let two = Node::join(config(dir.path(), "c"), &token, &endpoints).await.unwrap();
    eventually("two vote", || async { (voters(&one.handle()).await == 2).then_some(()) }).await;
    one.handle().put(put("k", "2")).await.unwrap();
    eventually("it has it", || async {
        (value(&two.handle(), "k").await.as_deref() == Some("2")).then_some(())
    })
    .await;
    drop((one, two));
    // The member that joined the second epoch begins the third.
    let second = recovered(&dir.path().join("c")).await;
    assert_eq!((second.epoch, second.others.len()), (2, 1));
    assert_eq!(second.others[0].record.id, first.new_id);
    let last = opened(&dir.path().join("c")).await;
    let handle = last.handle().with_patience(PATIENCE);
    assert_eq!(value(&handle, "k").await.as_deref(), Some("2"));
    for gone in ["a", "a/epoch-1", "b"] {
        refused(last.addr(), credentials_of(&dir.path().join(gone)).unwrap().0, "removed").await;
    }
    last.shutdown().await.unwrap();
}
