//! The program `workers`, small: that it runs to its end, and that what it measures was done.

use std::process::Command;

use serde_json::Value;

#[test]
fn reports_are_taken_and_nothing_is_sent_whole_after_a_change_of_leader() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_workers"));
    command.args(["--tasks", "1000", "--nodes", "50", "--rate", "100", "--seconds", "2", "--found", "10,50"]);
    let ended = command.arg("--dir").arg(dir.path()).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let reports = &report["reports"];
    assert_eq!(
        (reports["reports"].as_u64(), reports["not_taken"].as_u64()),
        (Some(200), Some(0)),
        "{report:#}"
    );
    let change = &report["leader_change"];
    assert_eq!(change["sent_whole"], 0, "{change:#}");
    assert!(change["sessions_opened_again"].as_u64() > Some(0), "{change:#}");
    assert_eq!(change["tasks_sent"], change["tasks_changed_meanwhile"], "{change:#}");
    assert_eq!(report["memory"]["opened"]["tasks_sent"], 1000);
    assert_eq!(report["one_nodes_tasks"].as_array().unwrap().len(), 2);
    assert_eq!(dir.path().read_dir().unwrap().count(), 0, "data is left");
}
