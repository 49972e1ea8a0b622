//! An old copy of a member's whole directory, put back and started, with real processes: the others notice, the
//! member says what was found, promises nothing under its id, and is back with the newest data under a new one.

mod process;

use std::fs;
use std::path::Path;
use std::process::Command;

use process::{Member, Running, command, raft_kv, until};
use serde_json::Value;

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success());
}

/// Stops the process for as long as `during` takes, as a snapshot of its disk sees it: at one moment.
fn frozen(pid: u32, during: impl FnOnce()) {
    let signal = |name: &str| {
        let sent = Command::new("kill").arg(name).arg(pid.to_string()).status().expect("kill runs");
        assert!(sent.success());
    };
    signal("-STOP");
    during();
    signal("-CONT");
}

fn stop(member: Member) {
    member.running.terminate();
    let ended = member.running.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
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

fn caught_up(member: &Member, with: &Member) {
    until("it has caught up", || {
        let at = |member: &Member| member.ask(&["info"]).json()["applied"].as_u64();
        (at(member) >= at(with)).then_some(())
    });
}

fn write(to: &Member, value: &str) {
    for number in 0..20 {
        to.ask(&["put", &format!("key-{number}"), value]).done();
    }
}

/// Takes a copy of a member as it stopped, or as it runs, lets it go on, and puts the copy in its place.
fn put_back(while_it_runs: bool) {
    let folder = tempfile::tempdir().unwrap();
    let one = Member::first(folder.path());
    let _two = one.joined_by("two", folder.path());
    let third = one.joined_by("three", folder.path());
    all_vote(&one);
    write(&one, "early");
    caught_up(&third, &one);
    let (data_dir, old, image) = (third.data_dir.clone(), third.id.clone(), folder.path().join("image"));
    let third = if while_it_runs {
        frozen(third.running.pid(), || copy(&data_dir, &image));
        third
    } else {
        stop(third);
        copy(&data_dir, &image);
        Member::again(&data_dir)
    };
    assert_eq!(third.id, old);
    write(&one, "late");
    caught_up(&third, &one);
    stop(third);
    fs::remove_dir_all(&data_dir).unwrap();
    copy(&image, &data_dir);

    let mut run = command(&["run", "--json", "--data-dir"]);
    run.arg(&data_dir);
    let mut running = Running::start(run);
    loop {
        let serving = running.next_json().expect("it serves");
        assert_eq!(serving["event"], "serving", "{serving}");
        if serving["id"] != old.as_str() {
            break;
        }
    }
    all_vote(&one);
    assert!(members(&one).iter().all(|member| member["id"] != old.as_str()));
    let ask = ["get", "key-19", "--json", "--data-dir", data_dir.to_str().unwrap()];
    assert_eq!(raft_kv(&ask).json()["kvs"][0]["value"], "late");
    let report = fs::read_to_string(data_dir.join("damaged/report")).unwrap();
    assert!(report.contains("older copy of itself"), "{report}");
    running.terminate();
    let ended = running.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for part in ["this directory is an older copy of itself", "starts anew", "rejoined under a new id"] {
        assert!(ended.stderr.contains(part), "no {part:?} in {}", ended.stderr);
    }
}

#[test]
fn a_copy_of_a_stopped_member_is_refused_and_rejoins() {
    put_back(false);
}

#[test]
fn a_copy_of_a_running_member_is_refused_and_rejoins() {
    put_back(true);
}
