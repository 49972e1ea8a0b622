//! A backup of a cluster that serves, made another cluster: what is in it, and who is let in there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use raft_kv::client::{Handle, Node, Overrides, RestorePlan, RestoreTo, StartError, restore, verify_backup};
use raft_kv::error::Error;
use raft_kv::pki::{BackupKey, Credentials, NodeKey};
use raft_kv::types::{
    DeleteRequest, EventKind, KeyRange, KeyValue, RangeRequest, Revision, Role, WatchBatch, WatchRequest,
};

use crate::support::{cluster, config, eventually, put, tuning, value};

pub async fn open(dir: &Path) -> Node {
    Node::open(dir, Overrides::default(), tuning()).await.unwrap()
}

fn plan(key: Option<&BackupKey>) -> RestorePlan {
    RestorePlan { key: key.cloned(), ..RestorePlan::default() }
}

async fn client(node: &Node, name: &str) -> Credentials {
    let key = NodeKey::generate();
    let issued = node.handle().issue_certificate(name, Role::Client, key.request().into()).await.unwrap();
    let der = |all: &[Bytes]| all.iter().map(|one| one.to_vec()).collect();
    Credentials {
        chain: der(&issued.0),
        key: key.der().to_vec(),
        roots: der(&issued.1),
        ..Credentials::default()
    }
}

async fn connect(node: &Node, credentials: &Credentials) -> Result<Handle, Error> {
    Handle::connect(&[node.addr().to_owned()], credentials.clone()).await
}

/// All keys, with everything that is known of each.
pub async fn all(handle: &Handle) -> BTreeMap<Bytes, KeyValue> {
    let request = RangeRequest { range: KeyRange::all(), ..RangeRequest::default() };
    let mut stream = handle.range_stream(request).await.unwrap();
    let mut found = BTreeMap::new();
    while let Some(chunk) = stream.next().await.unwrap() {
        found.extend(chunk.response.kvs.into_iter().map(|kv| (kv.key.clone(), kv)));
    }
    found
}

/// The keys at `to`, from the events of all revisions.
pub async fn replayed(handle: &Handle, to: Revision) -> BTreeMap<Bytes, KeyValue> {
    let request = WatchRequest { range: KeyRange::all(), start_revision: 1, ..WatchRequest::default() };
    let mut watch = handle.watch(request).await.unwrap();
    let (mut keys, mut at) = (BTreeMap::new(), 1);
    while at < to {
        let changes = match watch.next().await.unwrap().unwrap() {
            WatchBatch::Changes(changes) => changes,
            WatchBatch::Part(change) => vec![change],
            other => panic!("{other:?}"),
        };
        for change in changes.into_iter().filter(|change| change.revision <= to) {
            at = change.revision;
            for event in change.events {
                match event.kind {
                    EventKind::Put => keys.insert(event.kv.key.clone(), event.kv),
                    EventKind::Delete => keys.remove(&event.kv.key),
                };
            }
        }
    }
    keys
}

/// Writes and deletes, until told to stop.
pub fn writer(handle: Handle, number: u64, stop: Arc<AtomicBool>) -> tokio::task::JoinHandle<u64> {
    tokio::spawn(async move {
        let mut done = 0u64;
        while !stop.load(Ordering::Relaxed) {
            let key = format!("{number}/{}", done * 7919 % 61);
            if done % 5 == 4 {
                let range = KeyRange::key(key);
                handle.delete(DeleteRequest { range, prev_kv: false }).await.unwrap();
            } else {
                let text = format!("{done} ").repeat(usize::try_from(done % 40).unwrap());
                handle.put(put(&key, &text)).await.unwrap();
            }
            done += 1;
        }
        done
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_is_the_replay_to_its_revision() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a", "b", "c"]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..3u64).map(|number| writer(nodes[number as usize].handle(), number, stop.clone())).collect();
    let asking = client(&nodes[1], "backup").await;
    let mut made = Vec::new();
    // Of a member in this process, and of one over QUIC.
    for (at, node) in nodes.iter().enumerate() {
        let before = nodes[0].handle().put(put("mark", &at.to_string())).await.unwrap().0.revision;
        let file = dir.path().join(format!("{at}.backup"));
        let handle = if at == 1 { connect(node, &asking).await.unwrap() } else { node.handle() };
        let summary = handle.backup(&file, None, false).await.unwrap();
        assert!(summary.info.revision >= before, "it has what was answered before");
        assert_eq!(verify_backup(&file, None).unwrap(), summary);
        made.push((file, summary));
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 0);
    }
    for (at, (file, summary)) in made.into_iter().enumerate() {
        let expect = replayed(&nodes[0].handle(), summary.info.revision).await;
        let place = config(dir.path(), &format!("new-{at}"));
        let restored = restore(place.clone(), &file, &plan(None)).await.unwrap();
        assert_eq!(restored.revision, summary.info.revision + 1_000_000_000);
        assert!(restored.cluster != nodes[0].cluster() && !restored.kept_root);
        let node = open(&place.data_dir).await;
        assert_eq!((node.id(), node.cluster()), (restored.node, restored.cluster));
        let found = all(&node.handle()).await;
        assert_eq!(found, expect);
        let (header, _) = node.handle().put(put("after", "it")).await.unwrap();
        assert_eq!(header.revision, restored.revision + 1, "above all that was handed out");
        assert!(header.term > 1 << 20, "a fencing token too");
        // Who goes on from a revision of before is told so.
        for start_revision in [1, summary.info.revision, restored.revision - 1] {
            let request = WatchRequest { range: KeyRange::all(), start_revision, ..WatchRequest::default() };
            let mut watch = node.handle().watch(request).await.unwrap();
            let batch = watch.next().await.unwrap().unwrap();
            assert_eq!(batch, WatchBatch::Compacted(restored.revision), "from {start_revision}");
        }
        node.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_backup_keeps_the_root_and_whom_it_knows() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(dir.path(), &["a", "b"]).await;
    let (kept, removed, late) = (
        client(&nodes[0], "kept").await,
        client(&nodes[0], "removed").await,
        client(&nodes[0], "late").await,
    );
    let handle = nodes[0].handle();
    let token = handle.join_token(Role::Manager).await.unwrap();
    let id = |credentials: &Credentials| credentials.identity().unwrap().node;
    handle.trust(raft_kv::types::TrustCall::NodeRemove(id(&removed))).await.unwrap();
    handle.put(put("k", "v")).await.unwrap();
    let (file, key) = (dir.path().join("backup"), BackupKey::generate());
    // A client may manage the store, and not have what opens its secrets.
    let asking = connect(&nodes[0], &kept).await.unwrap();
    let refused = asking.backup(&file, Some(&key), false).await.unwrap_err();
    assert!(matches!(refused, StartError::Refused(_)), "{refused}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left of it");
    let summary = handle.backup(&file, Some(&key), false).await.unwrap();
    assert!(summary.encrypted && summary.info.keys);
    let unknown = client(&nodes[0], "unknown").await;
    let old_member = raft_kv::client::credentials_of(nodes[1].data_dir()).unwrap().0;

    let place = config(dir.path(), "new");
    let wrong = restore(place.clone(), &file, &plan(Some(&BackupKey::generate()))).await.unwrap_err();
    assert!(wrong.to_string().contains("another key"), "{wrong}");
    let without = RestorePlan { without: vec![id(&late)], ..plan(Some(&key)) };
    let restored = restore(place.clone(), &file, &without).await.unwrap();
    assert!(restored.kept_root && !restored.locked);
    // While the old cluster still runs: neither takes the other's members.
    let node = open(&place.data_dir).await;
    let again = connect(&node, &kept).await.unwrap();
    assert_eq!(value(&again, "k").await.as_deref(), Some("v"));
    again.put(put("k", "w")).await.unwrap();
    for (who, credentials) in
        [("removed", &removed), ("late", &late), ("unknown", &unknown), ("member", &old_member)]
    {
        let found = match connect(&node, credentials).await {
            Ok(handle) => handle.get("k").await.map(drop),
            Err(error) => Err(error),
        };
        assert!(matches!(found, Err(Error::Refused(_))), "{who}: {found:?}");
    }
    assert_eq!(value(&nodes[0].handle(), "k").await.as_deref(), Some("v"), "the old one is as it was");
    // Tokens of before join nobody.
    let endpoints = [node.addr().to_owned()];
    let joiner = config(dir.path(), "joiner");
    assert!(Node::join(joiner.clone(), &token, &endpoints).await.is_err());
    let token = node.handle().join_token(Role::Manager).await.unwrap();
    let second = Node::join(joiner, &token, &endpoints).await.unwrap();
    eventually("it has the state", || async {
        (second.handle().get("k").await.ok().flatten()?.value == "w").then_some(())
    })
    .await;
    // The one that joined is known to a client of before too, and lets it in.
    assert_eq!(value(&connect(&second, &kept).await.unwrap(), "k").await.as_deref(), Some("w"));
    // A certificate of before is renewed: the new one is of the new cluster.
    let files = dir.path().join("files");
    fs::create_dir(&files).unwrap();
    raft_kv::net::write_credentials(&files, &kept).unwrap();
    raft_kv::client::renew_once(&endpoints, &files).await.unwrap();
    let renewed = raft_kv::net::read_credentials_in(&files).unwrap();
    let (old, new) = (kept.identity().unwrap(), renewed.identity().unwrap());
    assert_eq!((new.cluster, new.node), (restored.cluster, old.node));
    connect(&second, &renewed).await.unwrap();
    for node in nodes.drain(..).chain([second, node]) {
        let _ = node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_is_not_restored_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a"]).await;
    for number in 0..40 {
        nodes[0].handle().put(put(&format!("k{number}"), &"x".repeat(2000))).await.unwrap();
    }
    let file = dir.path().join("backup");
    let handle = nodes[0].handle();
    handle.backup(&file, None, false).await.unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let there = handle.backup(&file, None, false).await.unwrap_err().to_string();
    assert!(there.contains("--force"), "{there}");
    handle.backup(&file, None, true).await.unwrap();
    let whole = fs::read(&file).unwrap();
    let bent = dir.path().join("bent");
    for at in [40, whole.len() / 3, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 16;
        for bytes in [&bytes[..], &whole[..at]] {
            fs::write(&bent, bytes).unwrap();
            let found = verify_backup(&bent, None).unwrap_err();
            assert!(
                matches!(&found, StartError::Storage(failed) if failed.why.contains("at byte")),
                "{found}"
            );
            let place = config(dir.path(), "new");
            let refused = restore(place.clone(), &bent, &plan(None)).await.unwrap_err();
            assert_eq!(refused.to_string(), found.to_string());
            let left: Vec<_> =
                fs::read_dir(&place.data_dir).unwrap().map(|it| it.unwrap().file_name()).collect();
            assert_eq!(left, ["lock"]);
        }
    }
    // Nor into a directory that holds a member.
    let taken = restore(config(dir.path(), "a"), &file, &plan(None)).await.unwrap_err().to_string();
    assert!(taken.contains("another process uses it"), "{taken}");
    let place = config(dir.path(), "new");
    restore(place.clone(), &file, &plan(None)).await.unwrap();
    let taken = restore(place, &file, &plan(None)).await.unwrap_err().to_string();
    assert!(taken.contains("holds member"), "{taken}");
    let raise = RestorePlan { raise: 0, ..plan(None) };
    let refused = restore(config(dir.path(), "other"), &file, &raise).await.unwrap_err().to_string();
    assert!(refused.contains("raise"), "{refused}");
}

/// Users and passwords come along where the secrets can be opened; a locked cluster stays locked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_cluster_stays_locked_and_users_keep_their_passwords() {
    use raft_kv::client::{Unlocking, hash_password};
    use raft_kv::types::AuthChange;
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a"]).await;
    let handle = nodes[0].handle();
    let hash = hash_password("secret").unwrap();
    for (name, role) in [("root", "root")] {
        let add = AuthChange::UserAdd { name: name.into(), password: Some(hash.clone().into()) };
        handle.auth_change(add).await.unwrap();
        let _ = handle.auth_change(AuthChange::RoleAdd { role: role.into() }).await;
        handle.auth_change(AuthChange::UserGrant { name: name.into(), role: role.into() }).await.unwrap();
    }
    handle.auth_change(AuthChange::Enable { token_key: Default::default() }).await.unwrap();
    let (_, old_token) = handle.authenticate("root", "secret").await.unwrap();
    let unlock = handle.autolock(true).await.unwrap().key.unwrap();
    let unlock: raft_kv::pki::UnlockKey = std::str::from_utf8(&unlock).unwrap().parse().unwrap();
    eventually("the keys are replaced", || async {
        let status = handle.lock_status().await.ok()?;
        (status.settled && status.locked).then_some(())
    })
    .await;
    let key = BackupKey::generate();
    let files = [dir.path().join("encrypted"), dir.path().join("plain")];
    handle.backup(&files[0], Some(&key), false).await.unwrap();
    handle.backup(&files[1], None, false).await.unwrap();
    for (file, key) in [(&files[0], Some(&key)), (&files[1], None)] {
        let place = config(dir.path(), if key.is_some() { "locked" } else { "open" });
        let restored = restore(place.clone(), file, &plan(key)).await.unwrap();
        assert_eq!((restored.locked, restored.kept_root), (key.is_some(), key.is_some()));
        if key.is_some() {
            let locked = Node::open(&place.data_dir, Overrides::default(), tuning()).await;
            assert!(matches!(locked, Err(StartError::Locked { .. })));
        }
        let unlocking = Unlocking::With(unlock.clone());
        let overrides = Overrides { unlocking, ..Overrides::default() };
        let node = Node::open(&place.data_dir, overrides, tuning()).await.unwrap();
        let handle = node.handle();
        eventually("it leads", || async { handle.put(put("k", "v")).await.ok() }).await;
        assert_eq!(handle.authenticate("root", "secret").await.is_ok(), key.is_some());
        let asked = handle.caller(Some(&old_token), None);
        let acting = asked.map(|caller| handle.clone().acting_as(caller));
        let found = match acting {
            Ok(acting) => acting.get("k").await.map(drop),
            Err(error) => Err(error),
        };
        assert!(matches!(found, Err(Error::Refused(_))), "a token of before: {found:?}");
        node.shutdown().await.unwrap();
    }
    tokio::time::timeout(Duration::from_secs(30), nodes.into_iter().next().unwrap().shutdown())
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_since_a_backup_lead_to_every_revision_in_between() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a"]).await;
    let handle = nodes[0].handle();
    let at = |name: &str| dir.path().join(name);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..2).map(|number| writer(handle.clone(), number, stop.clone())).collect();
    let key = BackupKey::generate();
    let full = handle.backup(&at("full"), Some(&key), false).await.unwrap();
    let mut files = vec![at("full")];
    for number in 1..4 {
        handle.put(put("mark", &number.to_string())).await.unwrap();
        let file = at(&format!("part-{number}"));
        let made = handle.backup_since(files.last().unwrap(), &file, Some(&key), false).await.unwrap();
        let before = verify_backup(files.last().unwrap(), Some(&key)).unwrap();
        assert_eq!(
            (made.info.since, verify_backup(&file, Some(&key)).unwrap()),
            (before.info.revision, made)
        );
        files.push(file);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let last = verify_backup(&files[3], Some(&key)).unwrap().info.revision;
    let middle = (full.info.revision + last) / 2;
    let changes = files[1..].to_vec();
    for (name, to, expect) in [
        ("end", RestoreTo::End, last),
        ("middle", RestoreTo::Revision(middle), middle),
        ("base", RestoreTo::Revision(full.info.revision), full.info.revision),
        ("late", RestoreTo::Time(i64::MAX), last),
    ] {
        let place = config(dir.path(), name);
        let plan = RestorePlan { changes: changes.clone(), to, ..plan(Some(&key)) };
        let restored = restore(place.clone(), &files[0], &plan).await.unwrap();
        assert_eq!((restored.from, restored.revision), (expect, expect + 1_000_000_000), "{name}");
        let node = open(&place.data_dir).await;
        assert_eq!(all(&node.handle()).await, replayed(&handle, expect).await, "{name}");
        node.shutdown().await.unwrap();
    }
    // Gaps, wrong orders, foreign files, and what is out of reach.
    let other = config(dir.path(), "other");
    for (changes, to, part) in [
        (vec![files[2].clone()], RestoreTo::End, "is missing"),
        (vec![files[0].clone()], RestoreTo::End, "full backup"),
        (changes.clone(), RestoreTo::Revision(last + 1), "go to revision"),
        (changes.clone(), RestoreTo::Revision(1), "newer than"),
        (changes.clone(), RestoreTo::Time(1), "newer than"),
    ] {
        let plan = RestorePlan { changes, to, ..plan(Some(&key)) };
        let refused = restore(other.clone(), &files[0], &plan).await.unwrap_err().to_string();
        assert!(refused.contains(part), "{refused}");
    }
    let refused = restore(other.clone(), &files[1], &plan(Some(&key))).await.unwrap_err().to_string();
    assert!(refused.contains("give the full backup first"), "{refused}");
    let mut bent = fs::read(&files[2]).unwrap();
    let middle = bent.len() / 2;
    bent[middle] ^= 4;
    fs::write(at("bent"), bent).unwrap();
    let changes = vec![files[1].clone(), at("bent")];
    let refused = restore(other, &files[0], &RestorePlan { changes, ..plan(Some(&key)) }).await.unwrap_err();
    assert!(refused.to_string().contains("damaged"), "{refused}");
    // What was compacted since can't be had any more.
    handle.compact(last, true).await.unwrap();
    let refused =
        handle.backup_since(&files[0], &at("compacted"), Some(&key), false).await.unwrap_err().to_string();
    assert!(refused.contains("full backup"), "{refused}");
    assert!(!at("compacted").exists() && !at("compacted.part").exists());
    nodes.into_iter().next().unwrap().shutdown().await.unwrap();
}
