//! Who slept while the root was replaced, with real processes: what it hears when it wakes, and that the cure it is
//! told works and leaves it its id. And that the end of a certificate is seen long before it comes.

mod process;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use process::{Ended, Member, command, free_address, raft_kv, run, until};
use serde_json::Value;

/// A client's or worker's three files, and the member that it asks.
struct Sleeper {
    folder: PathBuf,
    id: String,
}

impl Sleeper {
    fn enrolled(member: &Member, role: &str, name: &str, folder: &Path) -> Self {
        let token = text(&member.ask(&["token", "create", role]).json(), "token");
        let folder = folder.join(name);
        let out = folder.to_str().unwrap();
        let words = ["enrol", "--token", &token, "--endpoints", &member.addr, "--name", name, "--out", out];
        raft_kv(&words).done();
        // A worker has no name in the cluster's list.
        let id = until("it is listed", || {
            let nodes = member.ask(&["node", "ls"]).json();
            let found = nodes["nodes"].as_array()?.iter().find(|node| node["name"] == name)?;
            Some(text(found, "id"))
        });
        Self { folder, id }
    }

    fn ask(&self, member: &Member, words: &[&str]) -> Ended {
        let at = ["--json", "--endpoints", &member.addr, "--cert-dir", self.folder.to_str().unwrap()];
        raft_kv(&[words, &at[..]].concat())
    }
}

/// A member whose log is read while it runs; it is killed at the end.
struct Logged {
    child: Child,
    lines: Receiver<String>,
}

impl Logged {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary is built");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (send, lines) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines }
    }

    /// Waits for a line with `what` in it; it has all of `parts`.
    fn says(&mut self, what: &str, parts: &[&str]) -> String {
        let end = Instant::now() + process::DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("it does not say {what:?}"));
            if line.contains(what) {
                parts.iter().for_each(|part| assert!(line.contains(part), "no {part:?} in {line}"));
                return line;
            }
        }
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}")).to_owned()
}

fn cluster(folder: &Path) -> Vec<Member> {
    let one = Member::first(folder);
    let (two, three) = (one.joined_by("two", folder), one.joined_by("three", folder));
    until("all vote", || {
        let listed = one.ask(&["member", "ls"]).json();
        let voters = listed["members"].as_array()?.iter().filter(|member| member["role"] == "voter").count();
        (voters == 3).then_some(())
    });
    vec![one, two, three]
}

fn gauge(member: &Member, name: &str) -> i64 {
    let page = member.metrics();
    let found = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {name} in {page}")).trim().parse().unwrap()
}

fn rotating(member: &Member) -> (i64, i64) {
    (gauge(member, "raft_kv_ca_rotation_phase"), gauge(member, "raft_kv_ca_late_nodes"))
}

/// Whether a member has a key itself.
fn has(member: &Member, key: &str) -> Option<()> {
    (member.ask(&["get", key, "--serializable"]).code == Some(0)).then_some(())
}

/// Does what it is told, step by step, until it is served again, under the id that it had.
fn comes_back(sleeper: &Sleeper, member: &Member, role: &str) {
    let token = text(&member.ask(&["token", "create", role, "--uses", "1"]).json(), "token");
    let renew = ["cert", "renew", "--token", &token];
    let readmit = format!("raft-kv node readmit {}", sleeper.id);
    assert_eq!(member.ask(&["node", "inspect", &sleeper.id]).json()["shut_out"], true);
    sleeper.ask(member, &renew).refused(1, &["replaced without this node", &readmit]);
    member.ask(&["node", "readmit", &sleeper.id]).json();
    assert_eq!(sleeper.ask(member, &renew).json()["renewed"], 1);
    let node = member.ask(&["node", "inspect", &sleeper.id]).json();
    assert_eq!((text(&node, "id"), &node["late"]), (sleeper.id.clone(), &Value::Bool(false)), "{node}");
    // By itself from here on.
    assert_eq!(sleeper.ask(member, &["cert", "renew"]).json()["renewed"], 1);
}

#[test]
fn who_sleeps_through_new_roots_is_named_then_told_what_to_run_and_comes_back_by_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = cluster(folder.path());
    let sleeper = |role: &str, name: &str| Sleeper::enrolled(&members[0], role, name, folder.path());
    let (napper, client) = (sleeper("client", "napper"), sleeper("client", "client"));
    let worker = sleeper("worker", "worker");
    members[0].ask(&["put", "k", "v"]).json();
    let mut third = members.pop().unwrap();
    until("it is there too", || has(&third, "k"));
    third.running.kill();

    // Whoever looks sees that it waits, and for how many.
    assert_eq!(rotating(&members[0]), (0, 0));
    members[0].ask(&["ca", "rotate", "--detach"]).done();
    for member in &members {
        until("the metrics tell", || (rotating(member) == (2, 4)).then_some(()));
    }
    members[1].ask(&["ca", "abort"]).done();
    until("the metrics tell its end", || (rotating(&members[0]) == (0, 0)).then_some(()));

    let rotated = |late: &[&Sleeper]| {
        let progress = members[0].ask(&["ca", "rotate", "--deadline", "1s"]);
        progress.done();
        assert!(progress.stdout.contains(&third.id), "it names who is late: {progress:?}");
        late.iter().for_each(|sleeper| assert!(progress.stdout.contains(&sleeper.id), "{progress:?}"));
    };
    let told = ["root was replaced", "raft-kv cert renew --token TOKEN"];
    rotated(&[&napper, &client, &worker]);
    // Its certificate would be good for months.
    for words in [&["get", "k"][..], &["cert", "renew"]] {
        napper.ask(&members[0], words).refused(1, &told);
    }
    comes_back(&napper, &members[0], "client");
    napper.ask(&members[1], &["put", "napper", "1"]).json();

    rotated(&[&napper, &client, &worker]);
    for sleeper in [&client, &worker] {
        for words in [&["get", "k"][..], &["cert", "renew"], &["cert", "renew", "--watch"]] {
            sleeper.ask(&members[1], words).refused(1, &told);
        }
    }
    comes_back(&client, &members[1], "client");
    client.ask(&members[0], &["put", "client", "1"]).json();
    comes_back(&worker, &members[0], "worker");
    worker.ask(&members[0], &["get", "k"]).refused(1, &["worker"]);

    // A member that starts says that it is shut out, and its cure works too.
    let mut words = command(&["get", "k", "--json", "--endpoints", &members[0].addr]);
    words.arg("--data-dir").arg(&third.data_dir);
    run(words, &[]).refused(1, &["root was replaced", "raft-kv run --token TOKEN"]);
    let dir = third.data_dir.clone();
    let mut run = command(&["run", "--json", "--data-dir", dir.to_str().unwrap()]);
    run.env("RUST_LOG", "warn");
    let mut woken = Logged::start(run);
    woken.says("do not accept each other", &["root was replaced", "raft-kv run --token TOKEN"]);
    drop(woken);
    let token = members[0].token();
    let back = |token: &str| Member::start(&["run", "--token", token], &dir);
    let ended = back(&token).map(|member| member.id).unwrap_err();
    ended.refused(1, &[&format!("raft-kv node readmit {}", third.id)]);
    members[1].ask(&["node", "readmit", "three"]).json();
    let again = back(&token).unwrap_or_else(|ended| panic!("{ended:?}"));
    assert_eq!(again.id, third.id);
    for key in ["k", "napper", "client"] {
        until("it has what was written", || has(&again, key));
    }
    again.ask(&["put", "after", "1"]).json();
}

#[test]
fn the_end_of_a_certificate_is_in_metrics_info_and_warnings() {
    let folder = tempfile::tempdir().unwrap();
    let (listen, validity) = (free_address(), 30);
    let lasting = format!("{validity}s");
    let words = ["init", "--name", "one", "--cert-validity", &lasting, "--listen-addr", &listen];
    let words = [&words[..], &["--etcd-addr", "127.0.0.1:0"]].concat();
    let member =
        Member::start(&words, &folder.path().join("one")).unwrap_or_else(|ended| panic!("{ended:?}"));
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;

    // A member renews its own in time: the end in metrics and info moves on.
    let first = gauge(&member, "raft_kv_certificate_expires_seconds");
    assert!((now() - 5..=now() + validity + 5).contains(&first), "{first}");
    let out = folder.path().join("client");
    member.ask(&["cert", "issue", "client", "--out", out.to_str().unwrap()]).json();
    let unattended = Sleeper { folder: out, id: String::new() };
    member.ask(&["put", "k", "v"]).json();
    let renewed = until("it is renewed", || {
        let ends = gauge(&member, "raft_kv_certificate_expires_seconds");
        (ends > first).then_some(ends)
    });
    let info = member.ask(&["info"]).json();
    assert!(info["certificate_ends"].as_i64().unwrap() >= renewed, "{info}");

    // Nobody looks after this client's: it is warned while it still works, and told when it does not any more.
    let warned = until("it is warned", || {
        let ended = unattended.ask(&member, &["get", "k"]);
        (ended.code == Some(0) && ended.stderr.contains("certificate ends in")).then_some(ended)
    });
    assert!(warned.stderr.contains("raft-kv cert renew"), "{warned:?}");
    let told = until("it has ended", || {
        let ended = unattended.ask(&member, &["get", "k"]);
        (ended.code != Some(0)).then_some(ended)
    });
    told.refused(1, &["raft-kv cert"]);
}
