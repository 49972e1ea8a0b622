//! A large rollback on real members: watchers near and far get exactly the differences, in parts;
//! readers see the keys before it or after it; nobody loses the leader meanwhile.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::{Config, Handle, Node, Tuning, Watch, enrol};
use crate::error::Error;
use crate::machine::{self, Answer, Command};
use crate::node::ask::What;
use crate::types::*;

/// Keys: more than one step of a rollback takes.
const KEYS: usize = 5000;
const PATIENCE: Duration = Duration::from_secs(60);

type State = BTreeMap<Bytes, Bytes>;

fn config(dir: &Path, name: &str) -> Config {
    let listen_addr = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    Config {
        data_dir: dir.join(name),
        name: name.into(),
        listen_addr,
        advertise_addr: None,
        client_addr: None,
        advertise_client_addr: None,
        own_root: None,
        external_signer: None,
        tuning: Tuning { log_segment_bytes: 1024 * 1024, ..Tuning::default() },
    }
}

async fn cluster(dir: &Path) -> Vec<Node> {
    let first = Node::init(config(dir, "one")).await.unwrap();
    let token = first.handle().join_token(Role::Manager).await.unwrap();
    let mut nodes = vec![first];
    for name in ["two", "three"] {
        let endpoints = vec![nodes[0].addr().to_owned()];
        nodes.push(Node::join(config(dir, name), &token, &endpoints).await.unwrap());
    }
    nodes
}

fn key(number: usize) -> Bytes {
    format!("key/{number:06}").into()
}

fn put(number: usize, version: u8) -> TxnOp {
    TxnOp::Put(PutRequest { key: key(number), value: vec![version; 300].into(), ..PutRequest::default() })
}

async fn write(handle: &Handle, ops: Vec<TxnOp>) {
    for some in ops.chunks(crate::limits::MAX_TXN_OPS) {
        handle.txn(TxnRequest { success: some.to_vec(), ..TxnRequest::default() }).await.unwrap();
    }
}

async fn change(node: &Node, change: PointChange) -> Result<PointReply, Error> {
    let what = What::Command { command: Command::Point(change), once: None };
    match node.inside().apply(what, PATIENCE).await? {
        (_, _, Answer::Point(reply)) => Ok(reply),
        other => panic!("a change of points is told {other:?}"),
    }
}

async fn state(handle: &Handle) -> State {
    let request = RangeRequest { range: KeyRange::prefix("key/"), ..RangeRequest::default() };
    let (_, response) = handle.range(request).await.unwrap();
    response.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect()
}

/// Follows a watch to the end of the revision `last`; the state after it, the parts that came, and the
/// events of that revision.
async fn follow(mut watch: Watch, mut state: State, last: Revision) -> (State, usize, usize) {
    let (mut parts, mut events) = (0, 0);
    let mut take = |change: Change| {
        for event in change.events {
            assert_eq!(event.kv.mod_revision, change.revision);
            let before = match event.kind {
                EventKind::Put => state.insert(event.kv.key, event.kv.value),
                EventKind::Delete => state.remove(&event.kv.key),
            };
            assert_eq!(event.prev.map(|prev| prev.value), before, "what was before");
            events += usize::from(change.revision == last);
        }
    };
    loop {
        let batch = tokio::time::timeout(PATIENCE, watch.next()).await.expect("it comes in time").unwrap();
        let done = match batch.expect("the watch goes on") {
            WatchBatch::Part(change) => {
                parts += 1;
                take(change);
                false
            }
            WatchBatch::Changes(changes) => {
                let done = changes.iter().any(|change| change.revision >= last);
                changes.into_iter().for_each(&mut take);
                done
            }
            WatchBatch::Progress(revision) => revision >= last,
            WatchBatch::Compacted(_) => panic!("nothing was compacted"),
        };
        if done {
            return (state, parts, events);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_rollback_is_whole_to_readers_and_watchers_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path()).await;
    let near = nodes[0].handle().with_patience(PATIENCE);
    write(&near, (0..KEYS).map(|number| put(number, 1)).collect()).await;
    let before = state(&near).await;
    let name = || "p".to_owned();
    let created = PointChange::Create {
        name: name(),
        at: None,
        expires: None,
        author: "ann".into(),
        comment: String::new(),
        now: 1,
    };
    change(&nodes[0], created).await.unwrap();
    // Some changed, some gone, some new.
    write(&near, (0..KEYS).filter(|number| number % 3 > 0).map(|number| put(number, 2)).collect()).await;
    let third = KeyRange::span(key(0), key(KEYS / 3));
    near.delete(DeleteRequest { range: third, prev_kv: false }).await.unwrap();
    write(&near, (KEYS..KEYS + 1000).map(|number| put(number, 3)).collect()).await;
    let after = state(&near).await;
    let revision = nodes[0].inside().read(machine::read::current_revision).unwrap();

    let (_, token) = near.token_create(Role::Client, "watcher", 0, 1).await.unwrap();
    let credentials = enrol(&token, &[nodes[2].addr().to_owned()], "watcher").await.unwrap();
    let far = Handle::connect(&[nodes[2].addr().to_owned()], credentials).await.unwrap();
    let request = WatchRequest {
        range: KeyRange::all(),
        start_revision: revision + 1,
        prev_kv: true,
        ..Default::default()
    };
    let mut following = Vec::new();
    for handle in [nodes[1].handle(), far] {
        let watch = handle.watch(request.clone()).await.unwrap();
        following.push(tokio::spawn(follow(watch, after.clone(), revision + 1)));
    }
    let over = Arc::new(AtomicBool::new(false));
    let reading = nodes.iter().map(|node| {
        let (handle, over) = (node.handle().with_patience(PATIENCE), over.clone());
        let (before, after) = (before.clone(), after.clone());
        tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let seen = state(&handle).await;
                assert!(seen == before || seen == after, "a reader sees a rollback half done");
            }
        })
    });
    let reading: Vec<_> = reading.collect();

    let rollback =
        |point: String| PointChange::Rollback { point, prefix: None, author: "ann".into(), now: 2 };
    let reply = change(&nodes[0], rollback(name())).await.unwrap();
    let PointReply::RolledBack(done) = reply else { panic!("{reply:?}") };
    let differ = before.iter().filter(|(key, value)| after.get(*key) != Some(value)).count() + 1000;
    assert_eq!((done.revision, done.events), (revision + 1, differ as u64));
    for handle in nodes.iter().map(|node| node.handle().with_patience(PATIENCE)) {
        assert!(state(&handle).await == before, "after it all is as it was");
    }
    for one in following {
        let (seen, parts, events) = one.await.unwrap();
        assert!(seen == before, "a watcher has what is there");
        assert!(parts > 0 && events == differ, "{events} events came, {parts} times in parts");
    }
    over.store(true, Ordering::Relaxed);
    for one in reading {
        one.await.unwrap();
    }
    // Another member undoes it.
    let reply = change(&nodes[1], rollback(done.undo.unwrap())).await.unwrap();
    assert!(matches!(reply, PointReply::RolledBack(undone) if undone.events == differ as u64), "{differ}");
    assert!(state(&near).await == after, "undone");
    for node in nodes {
        let _ = node.shutdown().await;
    }
}
