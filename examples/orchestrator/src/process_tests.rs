//! Real processes under a worker that is told things twice and loses its memory.

use super::*;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

fn spec(line: &str) -> Vec<u8> {
    let command = vec!["sh".into(), "-c".into(), line.into()];
    serde_json::to_vec(&Run { command, environment: BTreeMap::new() }).unwrap()
}

/// The next report; the test's own deadline is that of the test run.
fn next(reports: &mut UnboundedReceiver<Report>) -> (String, TaskState, Option<u32>) {
    let (id, status) = reports.blocking_recv().unwrap();
    (id, status.state, status.exit_code)
}

#[test]
fn each_end_is_told_as_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (says, mut reports) = unbounded_channel();
    let mut processes = Processes::open(&dir.path().join("tasks"), says).unwrap();
    for (id, line, state, code) in [
        ("a", "exit 0", TaskState::Complete, Some(0)),
        ("b", "exit 7", TaskState::Failed, Some(7)),
        ("c", "kill -9 $$", TaskState::Failed, None),
    ] {
        processes.told(id, 1, &spec(line), TaskState::Running);
        assert_eq!(next(&mut reports), (id.into(), TaskState::Running, None));
        assert_eq!(next(&mut reports), (id.into(), state, code));
    }
    processes.told("d", 1, b"no spec", TaskState::Running);
    assert_eq!(next(&mut reports).1, TaskState::Rejected);
    processes.told("e", 1, &spec("sleep 1000 & wait"), TaskState::Running);
    assert_eq!(next(&mut reports).1, TaskState::Running);
    processes.told("e", 1, b"", TaskState::Shutdown);
    assert_eq!(next(&mut reports), ("e".into(), TaskState::Shutdown, None));
    // Never started here, and not now either.
    processes.told("f", 1, b"", TaskState::Remove);
    assert_eq!(next(&mut reports).1, TaskState::Shutdown);
}

#[test]
fn nothing_is_started_twice_and_nothing_outlives_its_worker() {
    let dir = tempfile::tempdir().unwrap();
    let (says, mut reports) = unbounded_channel();
    let starts = dir.path().join("starts");
    let line = format!("echo $TASK_ID $TASK_SLOT >> {}; sleep 1000", starts.display());
    let tasks = dir.path().join("tasks");
    let mut processes = Processes::open(&tasks, says.clone()).unwrap();
    for _ in 0..2 {
        processes.told("a", 3, &spec(&line), TaskState::Running);
    }
    processes.told("b", 1, &spec("exit 4"), TaskState::Running);
    while next(&mut reports) != ("b".into(), TaskState::Failed, Some(4)) {}
    while fs::read_to_string(&starts).unwrap_or_default().is_empty() {
        thread::sleep(LOOK);
    }
    // As after SIGKILL: nobody was told, and what runs is left to the next worker.
    processes.running.values().for_each(|stop| std::mem::forget(stop.clone()));
    std::mem::forget(processes);
    let mut again = Processes::open(&tasks, says).unwrap();
    assert!(!sweep(&again.dir).unwrap(), "what was left behind is ended before anything is started");
    for (id, code) in [("a", None), ("b", Some(4))] {
        again.told(id, 1, &spec(&line), TaskState::Running);
        while next(&mut reports) != (id.into(), TaskState::Failed, code) {}
    }
    assert_eq!(fs::read_to_string(&starts).unwrap(), "a 3\n");
    let mut known = again.known_ids().unwrap();
    known.sort();
    assert_eq!(known, ["a", "b"]);
    again.forget("a");
    assert_eq!(again.known_ids().unwrap(), ["b"]);
}
