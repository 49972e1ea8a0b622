//! A snapshot on its way between processes that are killed: at every step the receiver starts again
//! as it was or with the whole, and what had arrived is not sent again.

mod process;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use process::{DEADLINE, Member, command, free_address, raft_kv, until};
use serde_json::Value;

/// Bytes of one value, and how many there are: they can't be compressed.
const VALUE: usize = 300_000;
const VALUES: usize = 6;

/// A process that is killed, by its own id, at a line of its log.
struct Doomed {
    child: Child,
    lines: Receiver<String>,
}

impl Doomed {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary is built");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (send, lines) = channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines }
    }

    /// Waits for so many lines with `part` in them.
    fn reaches(&self, part: &str, times: usize) {
        let mut seen = Vec::new();
        for _ in 0..times {
            loop {
                let Ok(line) = self.lines.recv_timeout(DEADLINE) else {
                    panic!("no {part:?} ({times}): {seen:#?}");
                };
                seen.push(line);
                if seen.last().is_some_and(|line| line.contains(part)) {
                    break;
                }
            }
        }
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn joining(first: &Member, name: &str, folder: &Path) -> Command {
    let (token, listen, data_dir) = (first.token(), free_address(), folder.join(name));
    let words = ["join", "--name", name, "--listen-addr", &listen, "--etcd-addr", "off", "--token", &token];
    let mut command = command(&words);
    command.arg("--data-dir").arg(data_dir).arg(&first.addr);
    command
}

fn everything(member: &Member) -> Option<Value> {
    let ended = member.ask(&["get", "", "--prefix"]);
    (ended.code == Some(0)).then(|| ended.json()["kvs"].clone())
}

fn fill(member: &Member) {
    let mut seed = 88172645463325252u64;
    for number in 0..VALUES {
        let mut value = Vec::with_capacity(VALUE);
        while value.len() < VALUE {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            value.extend(seed.to_le_bytes());
        }
        member.ask_reading(&["put", &format!("large{number}"), "-"], &value).done();
    }
}

#[test]
fn a_member_that_is_killed_while_a_snapshot_comes_starts_as_it_was_or_with_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let listen = free_address();
    let words = ["init", "--name", "one", "--listen-addr", &listen, "--etcd-addr", "127.0.0.1:0"];
    let slow = [&words[..], &["--snapshot-rate", "131072"]].concat();
    let mut one = Member::start(&slow, &folder.join("one")).unwrap();
    fill(&one);
    let wanted = everything(&one).unwrap();
    assert_eq!(wanted.as_array().unwrap().len(), VALUES);

    // The sender is killed: it has the same files again, and sends what is missing.
    let two = Doomed::start(joining(&one, "two", folder));
    two.reaches("a snapshot is arriving", 3);
    let list = one.ask(&["member", "ls"]).json();
    let two_listed =
        list["members"].as_array().unwrap().iter().find(|member| member["name"] == "two").unwrap();
    assert!(two_listed["snapshot"]["percent"].as_u64().unwrap() >= 20, "{list}");
    one.running.kill();
    one = Member::start(&["run", "--snapshot-rate", "1048576"], &folder.join("one")).unwrap();
    two.reaches("installed a snapshot", 1);
    let spared = |one: &Member| one.ask(&["info"]).json()["snapshots"]["spared_bytes"].as_u64().unwrap();
    assert!(spared(&one) > VALUE as u64, "it began anew");
    let page = one.metrics();
    assert!(page.contains("raft_kv_snapshot_sent_bytes_total"), "{page}");
    drop(two);
    // It may be a voter by now: it goes before its process does.
    let again = compared(folder, "two", &wanted);
    one.ask(&["member", "rm", "two"]).done();
    drop(again);

    for (name, at, times) in [
        ("three", "receiving a snapshot", 1),
        ("four", "a snapshot is arriving", 1),
        ("five", "a snapshot is arriving", 4),
        ("six", "received a snapshot", 1),
        ("seven", "installing a snapshot", 1),
        ("eight", "installed a snapshot", 1),
    ] {
        let before = spared(&one);
        let doomed = Doomed::start(joining(&one, name, folder));
        doomed.reaches(at, times);
        drop(doomed);
        let again = compared(folder, name, &wanted);
        if times > 1 {
            assert!(spared(&one) > before, "{name}: what had arrived was sent again");
        }
        one.ask(&["member", "rm", name]).done();
        drop(again);
    }
    let refused =
        raft_kv(&["run", "--data-dir", folder.join("one").to_str().unwrap(), "--snapshot-rate", "9"]);
    refused.refused(1, &["snapshot rate", "at least 65536"]);
}

/// Starts the member again and waits until it holds what the first one does.
fn compared(folder: &Path, name: &str, wanted: &Value) -> Member {
    let member = Member::again(&folder.join(name));
    let held = until(&format!("{name} has caught up"), || everything(&member));
    assert!(held == *wanted, "{name} holds something else");
    member
}
