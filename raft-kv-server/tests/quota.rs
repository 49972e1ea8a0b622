//! The quota from the command line, and a real disk that fills up: a small one of its own, made in name
//! spaces of its own by this test, which runs itself there. A machine that can't make one fails the test
//! and is named.

mod process;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use process::{Ended, Member, run, until};

/// Debian's etcdctl with a client's files of its own.
struct Etcdctl {
    files: PathBuf,
    url: String,
}

impl Etcdctl {
    fn of(member: &Member, folder: &Path) -> Self {
        let files = folder.join("client");
        member.ask(&["cert", "issue", "client", "--out", files.to_str().unwrap()]).done();
        Self { files, url: member.etcd_url.clone() }
    }

    fn ask(&self, words: &[&str]) -> Ended {
        let mut command = Command::new("etcdctl");
        command.env_clear().env("ETCDCTL_API", "3").env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.arg("--endpoints").arg(&self.url).args(["--dial-timeout=30s", "--command-timeout=30s"]);
        for (option, name) in [("--cacert", "cacert.pem"), ("--cert", "cert.pem"), ("--key", "key.pem")] {
            command.arg(option).arg(self.files.join(name));
        }
        command.args(words);
        run(command, &[])
    }
}

#[test]
fn the_quota_is_shown_and_set_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let member = Member::first(folder.path());
    let shown = member.ask(&["quota", "show"]).json();
    assert_eq!((&shown["live_bytes"], &shown["quota"]), (&0.into(), &(8u64 << 30).into()), "{shown}");
    member.ask(&["put", "key", "12345"]).done();
    let set = member.ask(&["quota", "set", "10"]).json();
    assert_eq!((&set["live_bytes"], &set["live_keys"], &set["quota"]), (&8.into(), &1.into(), &10.into()));
    let refused = member.ask(&["put", "other", "value"]);
    refused.refused(1, &["8 bytes", "the quota of 10", "delete keys", "raft-kv quota set"]);
    let etcdctl = Etcdctl::of(&member, folder.path());
    let full = "etcdserver: mvcc: database space exceeded";
    etcdctl.ask(&["put", "other", "value"]).refused(1, &[full]);
    etcdctl.ask(&["put", "key", "abcde"]).done();
    let alarms = etcdctl.ask(&["alarm", "list"]);
    assert_eq!((alarms.code, alarms.stdout.as_str()), (Some(0), ""), "the quota raises none: {alarms:?}");
    member.ask(&["put", "key", "54321"]).done();
    member.ask(&["quota", "set", "0"]).refused(1, &["quota"]);
    member.ask(&["quota", "set", "lots"]).refused(2, &["16GiB"]);
    let page = member.metrics();
    for line in [
        "etcd_server_quota_backend_bytes 10",
        "etcd_mvcc_db_total_size_in_use_in_bytes 8",
        "raft_kv_live_keys 1",
    ] {
        assert!(page.lines().any(|found| found == line), "no {line:?} in {page}");
    }
    let info = member.ask(&["info"]).json();
    assert_eq!((&info["live_bytes"], &info["quota"]), (&8.into(), &10.into()), "{info}");
    assert!(info["disk_free"].as_u64().unwrap() > 0, "{info}");
    let off = member.ask(&["quota", "set", "off"]).json();
    assert_eq!(off["quota"], serde_json::Value::Null);
    member.ask(&["put", "other", "value"]).done();
}

/// Says to the test that runs in name spaces of its own where its small disk is to be.
const PLACE: &str = "RAFT_KV_TEST_SMALL_DISK";
/// The small disk's size, in MiB. A fifth of it is the least that a member keeps free: two segments of its log.
const DISK_MIB: usize = 160;

/// Runs the test `name` of this program again, with a small disk of its own, and says how that ended.
fn on_a_small_disk(name: &str) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size={DISK_MIB}m,mode=0700 none \"${PLACE}\" && exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
    command.env(PLACE, folder.path());
    run(command, &[])
}

/// The small disk, in the test that runs there.
fn small_disk() -> Option<PathBuf> {
    std::env::var_os(PLACE).map(PathBuf::from)
}

/// A file that takes what else would be free.
struct Filler(PathBuf);

impl Filler {
    /// Leaves so many MiB free, or as few as there are.
    fn leaving(disk: &Path, mib: u64) -> Self {
        let path = disk.join("filler");
        let free = |line: &str| line.split_whitespace().next_back()?.parse::<u64>().ok();
        let mut df = Command::new("df");
        df.args(["--block-size=1", "--output=avail"]).arg(disk);
        let shown = run(df, &[]);
        shown.done();
        let free = shown.stdout.lines().last().and_then(free).expect("what df says");
        let bytes = free.saturating_sub(mib << 20);
        let mut dd = Command::new("dd");
        dd.arg("if=/dev/zero").arg(format!("of={}", path.display()));
        dd.args([format!("count={bytes}"), "iflag=count_bytes".into(), "bs=64K".into()]);
        let done = run(dd, &[]);
        // What was free has changed meanwhile: then it is full, as was asked for.
        assert!(done.code == Some(0) || mib == 0, "{done:?}");
        Self(path)
    }

    fn remove(self) {
        fs::remove_file(self.0).unwrap();
    }
}

fn short(member: &Member) -> bool {
    let info = member.ask(&["info"]).json();
    let found = info["disk_short"].as_array().unwrap();
    assert!(found.is_empty() || *found == [member.id.clone()], "{info}");
    !found.is_empty()
}

#[test]
fn a_disk_that_fills_up_stops_writes_and_they_go_on_when_there_is_room() {
    let Some(disk) = small_disk() else {
        let ended = on_a_small_disk("a_disk_that_fills_up_stops_writes_and_they_go_on_when_there_is_room");
        assert_eq!(
            ended.code,
            Some(0),
            "this needs name spaces for users and mounts with a tmpfs (`unshare --user --map-root-user --mount`, \
             of util-linux): {ended:?}"
        );
        assert!(ended.stdout.contains("1 passed"), "{ended:?}");
        return;
    };
    let member = Member::first(&disk);
    member.ask(&["put", "before", "v"]).done();
    assert!(!short(&member));
    let filler = Filler::leaving(&disk, 16);
    until("the disk is short", || short(&member).then_some(()));
    member.ask(&["put", "k", "v"]).refused(1, &["disk", "nearly full", "free space", "by itself"]);
    assert!(member.metrics().lines().any(|line| line == "raft_kv_disk_short 1"));
    let folder = tempfile::tempdir().unwrap();
    let etcdctl = Etcdctl::of(&member, folder.path());
    etcdctl.ask(&["put", "k", "v"]).refused(1, &["etcdserver: mvcc: database space exceeded"]);
    // Ended by hand, it is raised again for as long as there is no room.
    let alarm = "alarm:NOSPACE";
    assert!(etcdctl.ask(&["alarm", "disarm"]).stdout.contains(alarm));
    until("it is short again", || short(&member).then_some(()));
    assert!(etcdctl.ask(&["alarm", "list"]).stdout.contains(alarm));
    member.ask(&["del", "before"]).done();
    let revision = member.revision().to_string();
    member.ask(&["compact", &revision, "--physical"]).done();
    filler.remove();
    until("writes go on", || (!short(&member)).then_some(()));
    member.ask(&["put", "k", "v"]).done();
    assert!(member.metrics().lines().any(|line| line == "raft_kv_disk_short 0"));

    // Nothing at all is free: what must be written at the end can't be. Nothing is lost by it.
    let filler = Filler::leaving(&disk, 0);
    until("the disk is short", || short(&member).then_some(()));
    let data_dir = member.data_dir.clone();
    member.running.terminate();
    member.running.ended().refused(5, &["state", "No space left on device", "make room"]);
    let ended = Member::start(&["run"], &data_dir).err().expect("nothing can be written");
    ended.refused(5, &["No space left on device", "make room"]);
    filler.remove();
    let member = Member::again(&data_dir);
    until("writes go on", || (!short(&member)).then_some(()));
    member.ask(&["put", "after", "v"]).done();
    for (key, count) in [("before", 0), ("k", 1), ("after", 1)] {
        assert_eq!(member.ask(&["get", key, "--count-only"]).json()["count"], count, "{key}");
    }
}
