//! A client that keeps its certificate current goes through rotations, restarts and its certificate's
//! end without a failed call, a lost event or one that comes twice.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use raft_kv::client::{Config, Handle, Node, Tuning, renew_once};
use raft_kv::error::Error;
use raft_kv::net::{read_credentials_in, write_credentials};
use raft_kv::pki::{Credentials, NodeKey};
use raft_kv::types::{KeyRange, Role, TrustCall, WatchBatch, WatchRequest};
use tokio::task::JoinHandle;

use crate::support::{cluster, config, eventually, put, tuning};

/// A client's certificate in a folder of its own.
async fn client(node: &Node, dir: &Path, name: &str) -> PathBuf {
    let key = NodeKey::generate();
    let issued = node.handle().issue_certificate(name, Role::Client, key.request().into()).await;
    let (chain, roots) = issued.unwrap();
    let der = |list: Vec<bytes::Bytes>| list.iter().map(|one| one.to_vec()).collect();
    let credentials =
        Credentials { chain: der(chain), key: key.der().to_vec(), roots: der(roots), ..Default::default() };
    let dir = dir.join(name);
    std::fs::create_dir(&dir).unwrap();
    write_credentials(&dir, &credentials).unwrap();
    dir
}

fn addresses(nodes: &[Node]) -> Vec<String> {
    nodes.iter().map(|node| node.addr().to_owned()).collect()
}

async fn rotated(handle: &Handle, deadline: u64) {
    let old = handle.ca_status().await.unwrap();
    handle.trust(TrustCall::Rotate { new: None, deadline, stolen: false }).await.unwrap();
    eventually("the rotation settles", || async {
        let now = handle.ca_status().await.ok()?;
        (now.rotation.is_none() && now.digests != old.digests).then_some(())
    })
    .await;
}

/// Writers and watchers on one handle; each write has a number of its own.
struct Load {
    end: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    writers: Vec<JoinHandle<Result<u64, Error>>>,
    watchers: Vec<JoinHandle<Result<Vec<String>, Error>>>,
}

impl Load {
    async fn start(handle: &Handle, writers: usize, watchers: usize) -> Self {
        let (end, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut watching = Vec::new();
        for _ in 0..watchers {
            let range = KeyRange::prefix("load/");
            let mut watch = handle.watch(WatchRequest { range, ..WatchRequest::default() }).await.unwrap();
            watching.push(tokio::spawn(async move {
                let mut seen = Vec::new();
                while let Some(batch) = watch.next().await? {
                    let WatchBatch::Changes(changes) = batch else { continue };
                    for event in changes.iter().flat_map(|change| &change.events) {
                        if event.kv.key == "load/end" {
                            return Ok(seen);
                        }
                        seen.push(String::from_utf8(event.kv.value.to_vec()).unwrap());
                    }
                }
                Ok(seen)
            }));
        }
        let write = |number: usize| {
            let (handle, end, written) = (handle.clone(), end.clone(), written.clone());
            tokio::spawn(async move {
                let mut done = 0;
                while !end.load(Ordering::Relaxed) {
                    handle.put(put("load/n", &format!("{number} {done}"))).await?;
                    done += 1;
                    written.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(done)
            })
        };
        let writers = (0..writers).map(write).collect();
        Self { end: end.clone(), written: written.clone(), writers, watchers: watching }
    }

    /// Waits for that many more writes, or for a failed one.
    async fn go_on(&self, writes: u64) {
        let until = self.written.load(Ordering::Relaxed) + writes;
        eventually("writes go on", || async {
            let failed = self.writers.iter().any(JoinHandle::is_finished);
            (failed || self.written.load(Ordering::Relaxed) >= until).then_some(())
        })
        .await;
    }

    /// What went wrong, if anything did.
    async fn stop(self, own: &Handle) -> Result<(), String> {
        self.end.store(true, Ordering::Relaxed);
        let mut written = Vec::new();
        for (number, writer) in self.writers.into_iter().enumerate() {
            let done = writer.await.unwrap().map_err(|error| format!("a write: {error}"))?;
            written.extend((0..done).map(|at| format!("{number} {at}")));
        }
        written.sort();
        own.put(put("load/end", "")).await.map_err(|error| error.to_string())?;
        for watcher in self.watchers {
            let mut seen = watcher.await.unwrap().map_err(|error| format!("a watch: {error}"))?;
            seen.sort();
            if seen != written {
                return Err(format!("{} events of {} writes", seen.len(), written.len()));
            }
        }
        if written.is_empty() { Err("nothing was written".into()) } else { Ok(()) }
    }
}

async fn through_rotations(names: &[&str], rotations: u64, deadline: u64) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), names).await;
    let files = client(&nodes[0], dir.path(), "kept").await;
    let handle = Handle::connect_renewing(&addresses(&nodes), &files).await.unwrap();
    let load = Load::start(&handle, 3, 5).await;
    for _ in 0..rotations {
        rotated(&nodes[0].handle(), deadline).await;
    }
    // What rests on the old root is cut a moment later.
    load.go_on(400).await;
    let own = nodes[0].handle();
    let result = load.stop(&own).await;
    let renewals = handle.renewals().unwrap().borrow().clone();
    if result.is_ok() {
        assert!(renewals.renewed >= rotations, "{renewals:?}");
        // What is in the files opens the door by itself.
        let again = Handle::connect(&addresses(&nodes), read_credentials_in(&files).unwrap()).await.unwrap();
        again.put(put("k", "v")).await.unwrap();
    }
    drop(handle);
    for node in nodes {
        node.shutdown().await.unwrap();
    }
    result
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_kept_current_loses_nothing_by_new_roots() {
    through_rotations(&["a", "b", "c"], 3, 60).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_at_another_member() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(dir.path(), &["a", "b", "c"]).await;
    let files = client(&nodes[0], dir.path(), "kept").await;
    // The first endpoint is the one it is on.
    let handle = Handle::connect_renewing(&addresses(&nodes), &files).await.unwrap();
    let watching = Load::start(&handle, 0, 5).await;
    let load = Load::start(&nodes[1].handle(), 2, 0).await;
    tokio::time::timeout(Duration::from_secs(30), nodes.remove(0).shutdown()).await.unwrap().unwrap();
    eventually("writes go on", || async { nodes[0].handle().put(put("other", "v")).await.ok() }).await;
    let both =
        Load { end: load.end, written: load.written, writers: load.writers, watchers: watching.watchers };
    both.stop(&nodes[0].handle()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let tuning = Tuning { leaf_validity: Duration::from_secs(6), ..tuning() };
    let node = Node::init(Config { tuning, ..config(dir.path(), "a") }).await.unwrap();
    let files = client(&node, dir.path(), "kept").await;
    let handle = Handle::connect_renewing(&[node.addr().to_owned()], &files).await.unwrap();
    let load = Load::start(&handle, 1, 1).await;
    let mut renewals = handle.renewals().unwrap();
    let done = tokio::time::timeout(Duration::from_secs(30), renewals.wait_for(|now| now.renewed >= 2));
    done.await.expect("it renews in time").unwrap();
    load.stop(&node.handle()).await.unwrap();
    node.shutdown().await.unwrap();
}

/// Whether somebody with a certificate of the node that is not the newest gets another: one that a
/// thief of the root's key made is no different.
async fn an_older_certificate_is_renewed() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a"]).await;
    let files = client(&nodes[0], dir.path(), "kept").await;
    let old = read_credentials_in(&files).unwrap();
    renew_once(&addresses(&nodes), &files).await.unwrap();
    let thief = dir.path().join("thief");
    std::fs::create_dir(&thief).unwrap();
    write_credentials(&thief, &old).unwrap();
    let renewed = renew_once(&addresses(&nodes), &thief).await;
    // The one that was given the newest goes on.
    if renewed.is_err() {
        renew_once(&addresses(&nodes), &files).await.unwrap();
        let status = nodes[0].handle().ca_status().await.unwrap();
        let record = status.nodes.iter().find(|node| node.name == "kept").unwrap();
        assert_eq!(record.error, "", "its last renewal went well");
    }
    renewed.is_ok()
}

#[tokio::test]
async fn a_certificate_that_is_not_the_newest_is_not_renewed() {
    assert!(!an_older_certificate_is_renewed().await);
}

/// An answer that was lost is asked for again with the same key, by who has only the old certificate.
#[tokio::test]
async fn a_lost_answer_is_no_loss() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a"]).await;
    let files = client(&nodes[0], dir.path(), "kept").await;
    let old = read_credentials_in(&files).unwrap();
    let key = NodeKey::generate();
    let pem = Credentials { key: key.der().to_vec(), ..Default::default() }.to_pem().key;
    std::fs::write(files.join("next-key.pem"), pem).unwrap();
    let handle = Handle::connect(&addresses(&nodes), old).await.unwrap();
    let lost = handle.trust(TrustCall::Renew { request: key.request().into() }).await;
    lost.unwrap();
    renew_once(&addresses(&nodes), &files).await.unwrap();
    assert_eq!(read_credentials_in(&files).unwrap().key, key.der());
    assert!(!files.join("next-key.pem").exists());
}

#[cfg(feature = "sim")]
mod planted {
    use raft_kv::planted::{Bug, with};

    use super::*;

    /// In one thread: what is planted there counts for the client and for what serves it.
    fn run<R>(bug: Bug, test: impl Future<Output = R>) -> R {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        with(Some(bug), || runtime.block_on(test))
    }

    #[test]
    fn going_on_with_the_old_certificate_is_noticed() {
        let result = run(Bug::KeepOldCredentials, through_rotations(&["a"], 1, 3));
        assert!(result.is_err(), "the load above would not see it");
    }

    #[test]
    fn a_watch_that_repeats_its_last_event_is_noticed() {
        let result = run(Bug::ResumeWithLast, through_rotations(&["a"], 1, 60));
        assert!(result.is_err(), "the load above would not see it");
    }

    #[test]
    fn renewing_any_certificate_is_noticed() {
        assert!(run(Bug::RenewAnyKey, an_older_certificate_is_renewed()));
    }
}
