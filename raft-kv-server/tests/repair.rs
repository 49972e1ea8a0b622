//! Damage on a member's disk, with real processes: it is said where it is, and the member comes back with the
//! same data by itself, with nobody doing more than starting it, or not even that.

mod process;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use process::{Member, Running, command, raft_kv, until};
use serde_json::Value;

/// The largest file below `dir` whose path has `part` in it.
fn named(dir: &Path, part: &str) -> PathBuf {
    fn below(dir: &Path, found: &mut Vec<PathBuf>) {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() { below(&path, found) } else { found.push(path) }
        }
    }
    let mut found = Vec::new();
    below(dir, &mut found);
    found.retain(|path| path.to_str().unwrap().contains(part));
    found.into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).expect("there is one")
}

/// Changes a bit in the middle of a file.
fn rot(path: &Path) -> u64 {
    let at = fs::metadata(path).unwrap().len() / 2;
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    at
}

fn stop(member: Member) {
    member.running.terminate();
    let ended = member.running.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

fn check(data_dir: &Path) -> (Option<i32>, Value) {
    let ended = raft_kv(&["check", "--json", "--data-dir", data_dir.to_str().unwrap()]);
    (ended.code, serde_json::from_str(ended.stdout.trim()).unwrap_or_default())
}

fn members(of: &Member) -> Vec<Value> {
    of.ask(&["member", "ls"]).json()["members"].as_array().expect("a list").clone()
}

fn all_vote(of: &Member) {
    until("all vote", || {
        let members = members(of);
        (members.len() == 3 && members.iter().all(|member| member["role"] == "voter")).then_some(())
    });
}

/// Three members with the same data, all of it in files of `three`, which is stopped.
fn three(folder: &Path) -> (Member, Member, PathBuf) {
    let one = Member::first(folder);
    let two = one.joined_by("two", folder);
    let third = one.joined_by("three", folder);
    for number in 0..40 {
        one.ask(&["put", &format!("key-{number}"), &"v".repeat(500)]).done();
    }
    all_vote(&one);
    let data_dir = third.data_dir.clone();
    until("it has caught up", || {
        let at = |member: &Member| member.ask(&["info"]).json()["applied"].as_u64();
        (at(&third) >= at(&one)).then_some(())
    });
    stop(third);
    (one, two, data_dir)
}

#[test]
fn a_damaged_member_is_started_and_comes_back_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (one, _two, data_dir) = three(folder.path());
    let (code, clean) = check(&data_dir);
    assert_eq!((code, &clean["damaged"]), (Some(0), &Value::Bool(false)), "{clean}");
    assert_eq!(check(&one.data_dir).0, Some(1), "it runs");

    let table = named(&data_dir, "MANIFEST");
    let at = rot(&table);
    let (code, report) = check(&data_dir);
    assert_eq!(code, Some(5), "{report}");
    let problem = &report["problems"][0];
    assert_eq!((&problem["file"], &problem["harm"]), (&table.to_str().into(), &"damage".into()), "{report}");
    assert!(problem["offset"].as_u64().unwrap() <= at, "{report}");

    let old = clean["log"]["member"].as_str().unwrap().to_owned();
    let back = Member::again(&data_dir);
    assert_ne!(back.id, old);
    all_vote(&one);
    assert_eq!(back.ask(&["get", "key-39"]).json()["kvs"][0]["value"], "v".repeat(500));
    assert!(members(&one).iter().all(|member| member["id"] != old.as_str()));
    // Both stopped at the same entry: the same checksum over the whole state.
    until("it has caught up", || {
        let at = |member: &Member| member.ask(&["info"]).json()["applied"].as_u64();
        (at(&back) >= at(&one)).then_some(())
    });
    let one_dir = one.data_dir.clone();
    stop(back);
    stop(one);
    let (mine, theirs) = (check(&data_dir).1["state"].clone(), check(&one_dir).1["state"].clone());
    assert_eq!((&mine["revision"], &mine["members"]), (&theirs["revision"], &3.into()), "{mine} {theirs}");
    if mine["applied"] == theirs["applied"] {
        assert_eq!(mine["checksum"], theirs["checksum"]);
    }
}

#[test]
fn a_member_whose_disk_rots_says_so_and_comes_back_in_the_same_process() {
    let folder = tempfile::tempdir().unwrap();
    let (one, _two, data_dir) = three(folder.path());
    let mut run = command(&["run", "--json", "--scrub-every", "1s", "--data-dir"]);
    run.arg(&data_dir);
    let mut running = Running::start(run);
    let serving = running.next_json().expect("it serves");
    let (pid, old) = (running.pid(), serving["id"].clone());
    rot(&named(&data_dir, ".sst"));
    let again = running.next_json().expect("it serves again");
    assert_eq!((&again["event"], running.pid()), (&"serving".into(), pid));
    assert_ne!(again["id"], old);
    all_vote(&one);
    assert!(members(&one).iter().any(|member| member["id"] == again["id"]));
    let ask = ["get", "key-39", "--json", "--data-dir", data_dir.to_str().unwrap()];
    assert_eq!(raft_kv(&ask).json()["kvs"][0]["value"], "v".repeat(500));
    assert!(data_dir.join("damaged/report").exists());
    running.terminate();
    let ended = running.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for part in ["ERROR", ".sst", "offset", "starts anew", "rejoined under a new id"] {
        assert!(ended.stderr.contains(part), "no {part:?} in {}", ended.stderr);
    }
}
