//! Members that lost something, were removed, or lag behind.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use raft_kv::client::{Node, Overrides};
use raft_kv::error::Error;
use raft_kv::types::{MemberRole, Role};

use crate::support::{cluster, config, eventually, put, tuning, value, voters};

fn copy(from: &Path, to: &Path) {
    // As `cp -a` does: others than the owner may look into none of them.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_stops_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(dir.path(), &["a", "b", "c"]).await;
    let gone = nodes.pop().unwrap();
    let (_, members) = nodes[1].handle().member_remove(gone.id()).await.unwrap();
    assert_eq!(members.len(), 2);
    let Error::Stopped(why) = gone.stopped().await else { panic!("it stops") };
    assert!(why.contains("removed"), "{why}");
    assert!(gone.shutdown().await.is_err());
    nodes[0].handle().put(put("k", "v")).await.unwrap();
    // Its certificate opens nothing any more, also not after a restart.
    match Node::open(&dir.path().join("c"), Overrides::default(), tuning()).await {
        Err(_) => {}
        Ok(back) => {
            let Error::Stopped(why) = back.stopped().await else { panic!("it stops again") };
            assert!(why.contains("removed"), "{why}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_can_be_removed_and_the_last_voter_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a", "b"]).await;
    let leader = nodes[0].leadership().borrow().leader.unwrap();
    let other = nodes.iter().find(|node| node.id() != leader).unwrap();
    let (_, members) = other.handle().member_remove(leader).await.unwrap();
    assert_eq!(members.len(), 1);
    other.handle().put(put("k", "v")).await.unwrap();
    let refused = other.handle().member_remove(other.id()).await.unwrap_err().to_string();
    assert!(refused.contains("only voter"), "{refused}");
}

/// It can hear of its leader from nobody but its leader, whom it does not know: the others vouch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_off_follows_a_leader_that_joined_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(dir.path(), &["a", "b", "c"]).await;
    nodes.pop().unwrap().shutdown().await.unwrap();
    let token = nodes[0].handle().join_token(Role::Manager).await.unwrap();
    let endpoints = [nodes[0].addr().to_owned()];
    let new = Node::join(config(dir.path(), "d"), &token, &endpoints).await.unwrap();
    eventually("it leads", || async {
        let _ = nodes[0].handle().transfer(Some(new.id())).await;
        (new.leadership().borrow().leader == Some(new.id())).then_some(())
    })
    .await;
    new.handle().put(put("k", "v")).await.unwrap();
    let back = Node::open(&dir.path().join("c"), Overrides::default(), tuning()).await.unwrap();
    // Whoever refused it for good would hear of nothing as long as it leads.
    eventually("it has caught up", || async {
        let found = back.handle().get("k").await.ok().flatten();
        found.map(|kv| assert_eq!(kv.value, "v"))
    })
    .await;
    assert_eq!(back.leadership().borrow().leader, Some(new.id()), "the same one leads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_log_lost_its_end_rejoins_under_a_new_id() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(dir.path(), &["a", "b", "c"]).await;
    let old = nodes.pop().unwrap();
    let (old_id, folder, image) = (old.id(), dir.path().join("c"), dir.path().join("image"));
    old.shutdown().await.unwrap();
    copy(&folder, &image);
    let back = Node::open(&folder, Overrides::default(), tuning()).await.unwrap();
    for number in 0..50 {
        back.handle().put(put(&format!("k{number}"), "v")).await.unwrap();
    }
    back.shutdown().await.unwrap();
    // All but the marker falls back to what it was before: the acknowledged end is gone.
    fs::copy(folder.join("log/marker"), image.join("log/marker")).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    fs::rename(&image, &folder).unwrap();
    let new = Node::open(&folder, Overrides::default(), tuning()).await.unwrap();
    assert_ne!(new.id(), old_id, "it must not vote or acknowledge under its old id");
    eventually("it votes again", || async { (voters(&nodes[0].handle()).await == 3).then_some(()) }).await;
    assert_eq!(value(&new.handle(), "k49").await.as_deref(), Some("v"));
    let (_, members) = nodes[0].handle().members().await.unwrap();
    assert!(members.iter().all(|member| member.record.id != old_id && member.role == MemberRole::Voter));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_was_cut_short_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a"]).await;
    let token = nodes[0].handle().join_token(Role::Manager).await.unwrap();
    let endpoints = [nodes[0].addr().to_owned()];
    let first = config(dir.path(), "b");
    let joined = Node::join(first.clone(), &token, &endpoints).await.unwrap();
    let id = joined.id();
    // Its folder is lost before it ever voted, or after: either way the name is not lost for ever.
    drop(joined);
    eventually("its address is free", || async { std::net::UdpSocket::bind(first.listen_addr).ok() }).await;
    let (_, members) = nodes[0].handle().members().await.unwrap_or_default();
    if members.iter().any(|member| member.record.id == id && member.role == MemberRole::Learner) {
        fs::remove_dir_all(&first.data_dir).unwrap();
        let again = Node::join(first, &token, &endpoints).await.unwrap();
        assert_ne!(again.id(), id);
    }
}
