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
    let number = |of: &Value, name: &str| of[name].as_u64().unwrap_or_else(|| panic!("{name}: {report:#}"));
    assert_eq!(number(reports, "reports") + number(reports, "not_taken"), 200, "{report:#}");
    assert!(number(reports, "reports") >= 100, "{report:#}");
    assert!(number(&report["memory"]["opened"], "tasks_sent") >= 1000, "{report:#}");
    let change = &report["leader_change"];
    assert_eq!(number(change, "sent_whole"), 0, "{report:#}");
    assert!(number(change, "sessions_opened_again") > 0, "{report:#}");
    // What changed, and not all 1,000.
    let (changed, sent) = (number(change, "tasks_changed_meanwhile"), number(change, "tasks_sent"));
    assert!((changed..500).contains(&sent), "{report:#}");
    assert_eq!(report["one_nodes_tasks"].as_array().unwrap().len(), 2);
    assert_eq!(dir.path().read_dir().unwrap().count(), 0, "data is left");
}
