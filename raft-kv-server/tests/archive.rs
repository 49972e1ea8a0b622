//! An archive by the real binary: kept, looked through, and gone back to; with the archiver and members killed
//! wherever it hurts, and a disk that is full.

mod process;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use process::{DEADLINE, Ended, Member, Running, command, free_address, raft_kv, run};
use raft_kv::planted::crash::VARIABLE;
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `backup archive` by way of a member's data directory.
fn archive(folder: &Path, member: &Member, more: &[&str]) -> Command {
    let words =
        ["backup", "archive", text(folder), "--json", "--data-dir", text(&member.data_dir), "--every", "1s"];
    command(&[&words[..], more].concat())
}

/// Waits for an event of an archiver.
fn event(running: &mut Running, look: impl Fn(&Value) -> bool) -> Value {
    let end = std::time::Instant::now() + DEADLINE;
    loop {
        let found = running.next_json().expect("the archiver runs");
        if look(&found) {
            return found;
        }
        assert!(std::time::Instant::now() < end, "not within {DEADLINE:?}");
    }
}

fn archived(running: &mut Running, revision: i64) {
    event(running, |event| {
        event["archived"].as_i64().or(event["backup"]["revision"].as_i64()).is_some_and(|at| at >= revision)
    });
}

fn put(member: &Member, key: &str, value: &str) -> i64 {
    member.ask(&["put", key, value]).json()["revision"].as_i64().unwrap()
}

fn verified(folder: &Path) -> Value {
    raft_kv(&["backup", "verify", text(folder), "--json"]).json()
}

fn restore(folder: &Path, dir: &Path, more: &[&str]) -> Ended {
    let listen = free_address();
    let words = ["backup", "restore", text(folder), "--data-dir", text(dir), "--json", "--name", "new"];
    let place = ["--listen-addr", &listen, "--etcd-addr", "127.0.0.1:0"];
    raft_kv(&[&words[..], &place, more].concat())
}

/// The keys of a member, each with its value.
fn keys(member: &Member) -> BTreeMap<String, String> {
    let found = member.ask(&["get", "", "--prefix"]).json();
    let word = |kv: &Value, name: &str| kv[name].as_str().unwrap().to_owned();
    found["kvs"].as_array().unwrap().iter().map(|kv| (word(kv, "key"), word(kv, "value"))).collect()
}

/// What was written at each revision: one key a revision.
struct Written(Vec<(i64, String, String)>);

impl Written {
    fn put(&mut self, member: &Member, key: &str, value: &str) -> i64 {
        let revision = put(member, key, value);
        self.0.push((revision, key.into(), value.into()));
        revision
    }

    /// The keys at a revision.
    fn at(&self, revision: i64) -> BTreeMap<String, String> {
        let until = self.0.iter().take_while(|(at, ..)| *at <= revision);
        until.map(|(_, key, value)| (key.clone(), value.clone())).collect()
    }
}

/// The cluster restored from the archive is what was there at that revision.
fn check(folder: &Path, at: &Path, revision: i64, written: &Written) {
    let _ = fs::remove_dir_all(at);
    let made = restore(folder, at, &["--to-revision", &revision.to_string()]).json();
    assert_eq!(made["from_revision"], revision);
    assert_eq!(keys(&Member::again(at)), written.at(revision), "revision {revision}");
}

#[test]
fn an_archive_is_kept_while_members_and_the_archiver_are_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, new) = (folder.path().join("archive"), folder.path().join("new"));
    let first = Member::first(folder.path());
    let second = first.joined_by("two", folder.path());
    let mut third = first.joined_by("three", folder.path());
    let mut written = Written(Vec::new());
    let page = folder.path().join("archive.prom");
    written.put(&first, "a", "0");
    // By way of a member that is killed, and of another one that knows the rest.
    let endpoints = [&third.addr[..], &second.addr].join(",");
    let more = ["--endpoints", &endpoints, "--metrics-file", text(&page)];
    let mut running = Running::start(archive(&dir, &second, &more));
    let begun = event(&mut running, |event| event["event"] == "full");
    let from = begun["backup"]["revision"].as_i64().unwrap();
    let one = written.put(&first, "a", "1");
    archived(&mut running, one);
    third.running.kill();
    let two = written.put(&first, "b", "2");
    archived(&mut running, two);
    running.kill();
    let three = written.put(&first, "a", "3");
    let mut running = Running::start(archive(&dir, &second, &more));
    archived(&mut running, three);
    let text_of_page = fs::read_to_string(&page).unwrap();
    assert!(text_of_page.contains("raft_kv_archive_archived_revision"), "{text_of_page}");
    // Told to stop, it closes what it has.
    let four = written.put(&first, "c", "4");
    event(&mut running, |event| event["event"] == "status" && event["revision"].as_i64() >= Some(four));
    running.terminate();
    assert_eq!(running.ended().code, Some(0));
    let found = verified(&dir);
    assert_eq!((&found["revision"], &found["full_backups"]), (&four.into(), &1.into()), "{found}");
    assert_eq!(found["gaps"], Value::Array(Vec::new()));
    for revision in [from, one, two, three, four] {
        check(&dir, &new, revision, &written);
    }
    restore(&dir, &folder.path().join("late"), &["--to", "2999-01-01"]).done();
    restore(&dir, &folder.path().join("none"), &["--to", "1999-01-01"]).refused(1, &["older"]);
    restore(&dir, &folder.path().join("none"), &["--to-revision", "999"]).refused(1, &["999 is not in it"]);
    let then = ["--then", text(&page)];
    restore(&dir, &folder.path().join("none"), &then).refused(1, &["its own changes"]);
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    raft_kv(&["backup", "verify", text(&empty)]).refused(1, &["no file of an archive"]);
    let mut again = Running::start(archive(&dir, &second, &[]));
    event(&mut again, |event| event["event"] == "status");
    run(archive(&dir, &second, &[]), &[]).refused(1, &["another process archives"]);
    again.kill();
}

#[test]
fn an_archiver_that_is_killed_anywhere_is_gone_on_with_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, new) = (folder.path().join("archive"), folder.path().join("new"));
    let first = Member::first(folder.path());
    let mut written = Written(Vec::new());
    let mut last = written.put(&first, "a", "0");
    let often = ["--full-every", "1s", "--keep", "1s"];
    for place in [
        "archive-full-written",
        "archive-full-named",
        "archive-changes-begun",
        "archive-changes-written",
        "archive-changes-named",
        "archive-changes-named:1",
        "archive-pruning",
        "archive-pruning:1",
    ] {
        // What is older goes only where that is the point: else every revision stays.
        let more = match place {
            "archive-pruning" | "archive-pruning:1" => &often[..],
            "archive-full-written" | "archive-full-named" => &often[..2],
            _ => &[],
        };
        let mut doomed = archive(&dir, &first, more);
        doomed.env(VARIABLE, place);
        let mut running = Running::start(doomed);
        let mut number = 0;
        // Until it has died: it must really come there.
        while running.runs() {
            last = written.put(&first, "a", &format!("{place}-{number}"));
            number += 1;
            assert!(number < 2_000, "{place} is never reached");
        }
        assert_eq!(running.ended().code, None, "{place}");
        let mut next = Running::start(archive(&dir, &first, &[]));
        archived(&mut next, last);
        next.terminate();
        assert_eq!(next.ended().code, Some(0), "{place}");
        let found = verified(&dir);
        assert_eq!(
            (&found["revision"], &found["gaps"]),
            (&last.into(), &Value::Array(Vec::new())),
            "{place}"
        );
        let from = found["from_revision"].as_i64().unwrap();
        for revision in [from, (from + last) / 2, last] {
            check(&dir, &new, revision, &written);
        }
    }
}

/// Says to the test that runs in name spaces of its own where its small disk is to be.
const PLACE: &str = "RAFT_KV_TEST_SMALL_DISK";

/// Runs the test `name` of this program again, with a small disk of its own.
fn on_a_small_disk(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size=4m,mode=0700 none \"${PLACE}\" && exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
    command.env(PLACE, folder.path());
    let ended = run(command, &[]);
    assert!(
        ended.code == Some(0) && ended.stdout.contains("1 passed"),
        "this needs `unshare` and tmpfs: {ended:?}"
    );
}

#[test]
fn an_archive_on_a_full_disk_goes_on_when_there_is_room() {
    let Some(disk) = std::env::var_os(PLACE).map(PathBuf::from) else {
        return on_a_small_disk("an_archive_on_a_full_disk_goes_on_when_there_is_room");
    };
    let folder = tempfile::tempdir().unwrap();
    let dir = disk.join("archive");
    let first = Member::first(folder.path());
    let mut written = Written(Vec::new());
    let one = written.put(&first, "a", "1");
    let mut running = Running::start(archive(&dir, &first, &[]));
    archived(&mut running, one);
    let filler = disk.join("filler");
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "bs=4K"]).arg(format!("of={}", filler.display()));
    run(dd, &[]);
    let two = written.put(&first, "a", "2");
    let failed = event(&mut running, |event| event["event"] == "failed");
    assert!(failed["why"].as_str().unwrap().contains("space"), "{failed}");
    // The cluster does not care.
    let three = written.put(&first, "b", "3");
    fs::remove_file(&filler).unwrap();
    archived(&mut running, three);
    running.terminate();
    assert_eq!(running.ended().code, Some(0));
    let found = verified(&dir);
    assert_eq!((&found["revision"], &found["gaps"]), (&three.into(), &Value::Array(Vec::new())));
    for revision in [one, two, three] {
        check(&dir, &folder.path().join("new"), revision, &written);
    }
}
