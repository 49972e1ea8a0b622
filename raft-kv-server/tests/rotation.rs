//! The root is replaced under load, with members and clients in processes of their own: no request
//! fails, no event is lost, and nothing of the old root is taken after.

mod process;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use process::{Member, raft_kv, until};
use raft_kv::client::Handle;
use raft_kv::net::read_credentials_in;
use raft_kv::types::{KeyRange, PutRequest, WatchBatch, WatchRequest};
use serde_json::Value;

const CLIENTS: usize = 5;
const WATCHERS: usize = 50;
/// Together the clients write some 200 times a second.
const PAUSE: Duration = Duration::from_millis(1000 * CLIENTS as u64 / 200);

fn voters(member: &Member) -> usize {
    let ended = member.ask(&["member", "ls"]);
    let Ok(answer) = serde_json::from_str::<Value>(&ended.stdout) else { return 0 };
    let list = answer["members"].as_array().cloned().unwrap_or_default();
    list.iter().filter(|member| member["role"] == "voter").count()
}

fn cluster(folder: &Path, size: usize) -> Vec<Member> {
    let mut members = vec![Member::first(folder)];
    for number in 2..=size {
        members.push(members[0].joined_by(&format!("m{number}"), folder));
    }
    until("all vote", || (voters(&members[0]) == size).then_some(()));
    members
}

fn status(member: &Member) -> Value {
    member.ask(&["ca", "status"]).json()
}

/// Clients that write and watch by certificates that keep themselves current.
struct Load {
    end: Arc<AtomicBool>,
    writers: Vec<tokio::task::JoinHandle<u64>>,
    watchers: Vec<tokio::task::JoinHandle<u64>>,
    written: Arc<AtomicU64>,
}

impl Load {
    async fn start(folder: &Path, members: &[Member]) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(0));
        let (mut handles, mut writers, mut watchers) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..CLIENTS {
            let out = folder.join(format!("client-{number}"));
            members[0]
                .ask(&["cert", "issue", &format!("client-{number}"), "--out", out.to_str().unwrap()])
                .json();
            let mut endpoints: Vec<String> = members.iter().map(|member| member.addr.clone()).collect();
            endpoints.rotate_left(number % members.len());
            let handle = Handle::connect_renewing(&endpoints, &out).await.unwrap();
            for _ in 0..WATCHERS / CLIENTS {
                let range = KeyRange::prefix("load/");
                let mut watch =
                    handle.watch(WatchRequest { range, ..WatchRequest::default() }).await.unwrap();
                watchers.push(tokio::spawn(async move {
                    let (mut seen, mut last) = (0, 0);
                    loop {
                        match watch.next().await.expect("a watch goes on") {
                            Some(WatchBatch::Changes(changes)) => {
                                for change in changes {
                                    assert!(change.revision > last, "an event is seen twice");
                                    last = change.revision;
                                    if change.events.iter().any(|event| event.kv.key == "load/end") {
                                        return seen;
                                    }
                                    seen += change.events.len() as u64;
                                }
                            }
                            Some(WatchBatch::Compacted(_)) | None => panic!("a watch has ended"),
                            Some(_) => {}
                        }
                    }
                }));
            }
            handles.push(handle);
        }
        // Every watch is there before the first write.
        for (number, handle) in handles.into_iter().enumerate() {
            let (end, written) = (end.clone(), written.clone());
            writers.push(tokio::spawn(async move {
                let mut done = 0;
                while !end.load(Ordering::Relaxed) {
                    let key = format!("load/{number}").into();
                    let put = PutRequest { key, value: done.to_string().into(), ..PutRequest::default() };
                    handle.put(put).await.expect("no write fails");
                    done += 1;
                    written.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(PAUSE).await;
                }
                done
            }));
        }
        Self { end, writers, watchers, written }
    }

    /// Waits until the writers have made some more progress.
    async fn go_on(&self, writes: u64) {
        let until = self.written.load(Ordering::Relaxed) + writes;
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.written.load(Ordering::Relaxed) < until {
            assert!(Instant::now() < deadline, "the writers stand still");
            assert!(self.writers.iter().all(|writer| !writer.is_finished()), "a writer has failed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn stop(self, member: &Member) {
        self.end.store(true, Ordering::Relaxed);
        let mut written = 0;
        for writer in self.writers {
            written += writer.await.unwrap();
        }
        member.ask(&["put", "load/end", ""]).json();
        for watcher in self.watchers {
            let seen = tokio::time::timeout(Duration::from_secs(30), watcher).await.expect("it sees the end");
            assert_eq!(seen.unwrap(), written, "an event is lost");
        }
    }
}

/// Some rotations in a row under load; the time of the longest.
async fn check_rotations(size: usize, rounds: usize) -> Duration {
    let folder = tempfile::tempdir().unwrap();
    let members = cluster(folder.path(), size);
    let load = Load::start(folder.path(), &members).await;
    load.go_on(100).await;
    let old = read_credentials_in(&folder.path().join("client-0")).unwrap();
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        let before = status(&members[0])["roots"].clone();
        let (member, began) = (&members[round % size], Instant::now());
        member.ask(&["ca", "rotate"]).done();
        longest = longest.max(began.elapsed());
        let after = status(member);
        assert_ne!(after["roots"], before, "the root is another one");
        load.go_on(40).await;
    }
    load.stop(&members[0]).await;
    // What a client proved itself with before opens nothing any more, and it is told what to do.
    let refused =
        Handle::connect(std::slice::from_ref(&members[1].addr), old).await.map(drop).unwrap_err().to_string();
    assert!(refused.contains("replaced") && refused.contains("raft-kv"), "{refused}");
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_rotations_in_a_row_fail_no_request_and_lose_no_event() {
    let longest = check_rotations(3, 10).await;
    eprintln!("the longest of ten rotations took {longest:?}, command and all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_members_rotate_as_three_do() {
    check_rotations(5, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_off_is_named_shut_out_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = cluster(folder.path(), 3);
    members[0].ask(&["put", "before", "x"]).json();
    let mut off = members.pop().unwrap();
    off.running.kill();
    members[0].ask(&["ca", "rotate", "--deadline", "5s", "--detach"]).done();
    let late = until("it is named", || {
        let answer = status(&members[0]);
        let late = answer["late"].as_array().cloned().unwrap_or_default();
        (late.len() == 1).then(|| late[0].clone())
    });
    assert!(late.to_string().contains(&off.id), "{late}");
    until("it settles without it", || status(&members[0])["rotation"].is_null().then_some(()));
    // Its certificate opens nothing.
    let words =
        ["get", "before", "--data-dir", off.data_dir.to_str().unwrap(), "--endpoints", &members[0].addr];
    let refused = raft_kv(&words);
    assert_ne!(refused.code, Some(0), "{refused:?}");
}
