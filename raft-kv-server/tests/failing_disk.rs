//! A disk that takes no more: the member stops at the first write that fails, says which file, why
//! and what to do, exits with 5, and has lost nothing that it acknowledged.

mod process;

use std::process::Command;

use process::{Member, Running};

/// Bytes beyond which no file may be written; a stand-in for a disk that fails. RocksDB's small files
/// and the front of the log fit below it.
const LARGEST_FILE: usize = 1024 * 1024;

/// `run` on `data_dir` by a process whose writes beyond [`LARGEST_FILE`] fail with an error.
fn start_limited(data_dir: &std::path::Path) -> Running {
    // The shell counts in blocks of 512 bytes; ignored, the signal becomes an error of the write.
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", LARGEST_FILE / 512);
    let mut command = Command::new("sh");
    command
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_raft-kv"), "run", "--json", "--data-dir"])
        .arg(data_dir);
    Running::start(command)
}

#[test]
fn the_first_write_that_fails_ends_the_process_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let one = Member::first(folder.path());
    let data_dir = one.data_dir.clone();
    one.ask(&["put", "before", "v"]).json();
    one.running.terminate();
    assert_eq!(one.running.ended().code, Some(0));

    let mut running = start_limited(&data_dir);
    assert_eq!(running.next_json().expect("it serves")["event"], "serving");
    let limited = Member {
        running,
        data_dir: data_dir.clone(),
        id: String::new(),
        addr: String::new(),
        etcd_url: String::new(),
        cluster: String::new(),
    };
    let value = "x".repeat(300_000);
    let mut acknowledged = vec!["before".to_owned()];
    let failed = (0..8).find_map(|number| {
        let key = format!("key-{number}");
        let ended = limited.ask_reading(&["put", &key, "-"], value.as_bytes());
        if ended.code == Some(0) {
            acknowledged.push(key);
            return None;
        }
        Some(ended)
    });
    let failed = failed.expect("eight large values do not fit below the limit");
    // Nobody may be told that it was certainly not done: the write may have reached the disk.
    assert!(matches!(failed.code, Some(4 | 5)), "{failed:?}");
    let ended = limited.running.ended();
    ended.refused(5, &["log", "failed", "check the disk"]);

    let again = Member::again(&data_dir);
    for key in acknowledged {
        assert_eq!(again.ask(&["get", &key, "--count-only"]).json()["count"], 1, "{key}");
    }
}
