//! Data directories that a member must not start on: in use, of another cluster, of a newer
//! version, unreadable, missing. Each is told with what to do, and is as it was before.

mod process;

use std::fs;
use std::path::Path;

use process::{Ended, Member, free_address, raft_kv};

/// The file in which a member remembers who it is.
const NODE_FILE: &str = "node";

fn start(words: &[&str], data_dir: &Path) -> Ended {
    let mut words = words.to_vec();
    if words[0] != "run" {
        words.extend(["--etcd-addr", "127.0.0.1:0"]);
    }
    match Member::start(&words, data_dir) {
        Ok(member) => panic!("member {} started", member.id),
        Err(ended) => ended,
    }
}

fn stop(member: Member) {
    member.running.terminate();
    let ended = member.running.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[test]
fn a_directory_in_use_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let one = Member::first(folder.path());
    start(&["run"], &one.data_dir).refused(1, &["another process uses it", "stop that one first"]);
    let listen = free_address();
    start(&["init", "--listen-addr", &listen], &one.data_dir).refused(1, &["another process uses it"]);
    one.ask(&["put", "k", "v"]).json();
}

#[test]
fn a_directory_that_holds_a_member_is_not_taken_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Member::first(&folder.path().join("ours"));
    let theirs = Member::first(&folder.path().join("theirs"));
    let (cluster, data_dir) = (theirs.cluster.clone(), theirs.data_dir.clone());
    stop(theirs);
    let (token, listen) = (ours.token(), free_address());
    let join = ["join", "--name", "two", "--listen-addr", &listen, "--token", &token, &ours.addr];
    start(&join, &data_dir).refused(1, &["it holds member", &cluster, "choose an empty folder"]);
    start(&["init", "--listen-addr", &listen], &data_dir).refused(1, &["it holds member", "raft-kv run"]);
    // It is as it was.
    assert_eq!(Member::again(&data_dir).cluster, cluster);
    assert_eq!(ours.ask(&["member", "ls"]).json()["members"].as_array().unwrap().len(), 1);
}

#[test]
fn a_member_with_the_state_of_another_cluster_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Member::first(&folder.path().join("ours"));
    let theirs = Member::first(&folder.path().join("theirs"));
    let (ours_at, theirs_at) = (ours.data_dir.clone(), theirs.data_dir.clone());
    stop(ours);
    stop(theirs);
    for part in ["log", "state"] {
        fs::remove_dir_all(ours_at.join(part)).unwrap();
        fs::rename(theirs_at.join(part), ours_at.join(part)).unwrap();
    }
    let ended = start(&["run"], &ours_at);
    assert!(matches!(ended.code, Some(1 | 5)), "{ended:?}");
    assert!(ended.stderr.contains("cluster"), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
}

#[test]
fn a_directory_of_a_newer_version_or_damaged_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let one = Member::first(folder.path());
    let data_dir = one.data_dir.clone();
    stop(one);
    let file = data_dir.join(NODE_FILE);
    let good = fs::read_to_string(&file).unwrap();
    let body = &good[..good.rfind("checksum").unwrap()];
    fs::write(&file, body.replace("format = 1", "format = 9")).unwrap();
    start(&["run"], &data_dir).refused(1, &["format 9", "newer version", "start it with that version"]);
    fs::write(&file, b"\xff\x00garbage").unwrap();
    fs::rename(data_dir.join("spare"), data_dir.join("kept")).unwrap();
    start(&["run"], &data_dir).refused(1, &["node"]);
    // With its second copy it is made good.
    fs::rename(data_dir.join("kept"), data_dir.join("spare")).unwrap();
    stop(Member::again(&data_dir));
    assert_eq!(fs::read_to_string(&file).unwrap(), good);
}

#[test]
fn a_directory_that_can_not_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let listen = free_address();
    start(&["run"], &folder.path().join("missing")).refused(1, &["missing", "raft-kv init"]);
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    start(&["run"], &empty).refused(1, &["holds no member", "raft-kv init"]);
    // A file where the directory should be: unreadable for every user, root too.
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    start(&["init", "--listen-addr", &listen], &file.join("below")).refused(1, &["can't be made"]);
    // The file that says who it is can't be read: a directory stands in its place.
    let one = Member::first(folder.path());
    let data_dir = one.data_dir.clone();
    stop(one);
    fs::rename(data_dir.join(NODE_FILE), data_dir.join("kept")).unwrap();
    fs::create_dir(data_dir.join(NODE_FILE)).unwrap();
    start(&["run"], &data_dir).refused(1, &["can't be read", "check its owner and mode"]);
    fs::remove_dir(data_dir.join(NODE_FILE)).unwrap();
    fs::rename(data_dir.join("kept"), data_dir.join(NODE_FILE)).unwrap();
    Member::again(&data_dir);
}

#[test]
fn an_address_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let one = Member::first(folder.path());
    let ended = start(&["init", "--listen-addr", &one.addr], &folder.path().join("two"));
    assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
    assert!(ended.stderr.contains(&one.addr) && ended.stderr.contains("in use"), "{ended:?}");
    // A member on the machine that was never started is no way to the cluster.
    let nowhere = folder.path().join("nowhere");
    let ended = raft_kv(&["get", "k", "--data-dir", nowhere.to_str().unwrap()]);
    ended.refused(1, &["nowhere"]);
}
