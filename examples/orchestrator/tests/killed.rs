//! Real managers and workers under SIGKILL: every task runs or is replaced, none is started twice, and
//! what became of each is known at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest wait for anything; a busy machine is no failure.
const PATIENCE: Duration = Duration::from_secs(90);
/// Three of these without a word are a worker's end: more than a busy machine stops anybody for.
const HEARTBEAT_MS: &str = "3000";
const LOOK: Duration = Duration::from_millis(50);

/// A process that is ended with the test, also after a failure.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Fleet {
    dir: tempfile::TempDir,
    managers: Vec<(Vec<String>, Option<Running>)>,
    workers: Vec<(Vec<String>, Option<Running>)>,
    authority: Vec<String>,
    entries: Vec<String>,
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(LOOK);
    }
}

fn free_port() -> u16 {
    wait_for("a free port", || {
        let port = UdpSocket::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        TcpListener::bind(("127.0.0.1", port)).ok().map(|_| port)
    })
}

fn orchestrator(words: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orchestrator"));
    command.args(words).stdin(Stdio::null());
    command
}

fn start(words: &[String], dir: &Path, name: &str) -> Running {
    let open = |kind: &str| {
        File::options().create(true).append(true).open(dir.join(format!("{name}.{kind}"))).unwrap()
    };
    // What has been said before is no answer of this process.
    fs::write(dir.join(format!("{name}.out")), "").unwrap();
    Running(orchestrator(words).stdout(open("out")).stderr(open("log")).spawn().unwrap())
}

impl Fleet {
    /// Three managers, all serving, and two workers.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (managers, workers) = (vec![], vec![]);
        let mut fleet = Self { dir, managers, workers, authority: vec![], entries: vec![] };
        for number in 0..3 {
            let (listen, etcd) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
            let mut words = vec!["manager".to_owned(), "--heartbeat".into(), HEARTBEAT_MS.into()];
            words.extend(["--data-dir".into(), fleet.path(&format!("m{number}")).display().to_string()]);
            words.extend(["--listen".into(), listen.clone(), "--etcd".into(), etcd.clone()]);
            if number > 0 {
                let token =
                    fleet.ask(0, &["token", "manager"]).unwrap()[0]["token"].as_str().unwrap().to_owned();
                words.extend(["--join".into(), token, fleet.authority[0].clone()]);
            }
            fleet.managers.push((words, None));
            fleet.authority.push(listen);
            fleet.entries.push(etcd);
            fleet.start_manager(number);
        }
        let token = fleet.ask(0, &["token", "worker"]).unwrap()[0]["token"].as_str().unwrap().to_owned();
        for number in 0..2 {
            let words = ["worker", "--data-dir", &fleet.path(&format!("w{number}")).display().to_string()];
            let mut words: Vec<String> = words.map(str::to_owned).into();
            words.extend(["--join".into(), token.clone(), "--authority".into(), fleet.authority.join(",")]);
            words.extend(["--entry".into(), fleet.entries.join(",")]);
            fleet.workers.push((words, None));
            fleet.start_worker(number);
        }
        // Otherwise one of them may get all tasks.
        wait_for("both workers are ready", || {
            let nodes = fleet.ask(0, &["nodes"]).ok()?;
            (nodes.iter().filter(|node| node["state"] == "ready").count() == 2).then_some(())
        });
        fleet
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start_manager(&mut self, number: usize) {
        let name = format!("m{number}");
        let mut running = start(&self.managers[number].0, self.dir.path(), &name);
        wait_for("a manager serves", || {
            assert!(running.0.try_wait().unwrap().is_none(), "{}", self.log(&name));
            fs::read_to_string(self.path(&format!("{name}.out"))).unwrap().contains("serving").then_some(())
        });
        self.managers[number].1 = Some(running);
    }

    fn start_worker(&mut self, number: usize) {
        let name = format!("w{number}");
        self.workers[number].1 = Some(start(&self.workers[number].0, self.dir.path(), &name));
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// What a manager answers, a line a value.
    fn ask(&self, manager: usize, words: &[&str]) -> Result<Vec<Value>, String> {
        let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        words.extend(["--data-dir".into(), self.path(&format!("m{manager}")).display().to_string()]);
        let out = orchestrator(&words).output().map_err(|error| error.to_string())?;
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned());
        }
        let lines = String::from_utf8_lossy(&out.stdout).into_owned();
        lines.lines().map(|line| serde_json::from_str(line).map_err(|error| error.to_string())).collect()
    }

    /// Waits until `count` tasks of `web` run, as `manager` sees it; returns their ids and nodes.
    fn running(&self, manager: usize, count: usize) -> BTreeMap<String, String> {
        let mut last = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("the tasks run", || {
                let rows = self.ask(manager, &["ps"]);
                last = format!("{rows:?}");
                let is = |row: &Value, name: &str, value: &str| row[name] == value;
                let runs = |row: &&Value| {
                    is(row, "service", "web") && is(row, "state", "running") && is(row, "desired", "running")
                };
                let word = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
                let tasks = |rows: Vec<Value>| -> BTreeMap<String, String> {
                    rows.iter().filter(runs).map(|row| (word(row, "id"), word(row, "node"))).collect()
                };
                rows.ok().map(tasks).filter(|tasks| tasks.len() == count)
            })
        }));
        found.unwrap_or_else(|_| {
            panic!("{count} tasks do not run; {last}; {}", self.log("w0") + &self.log("m0"))
        })
    }
}

#[test]
fn tasks_outlive_killed_managers_and_workers_and_none_is_started_twice() {
    let mut fleet = Fleet::new();
    let starts = fleet.path("starts");
    let compose = fleet.path("compose.yaml");
    let yaml = format!(
        "services:
  web:
    command: echo $$TASK_ID >> {0}; exec sleep 1000
    deploy: {{replicas: 4, restart_policy: {{delay: 0s}}}}
  once:
    command: echo $$TASK_ID >> {0}; exit 0
    deploy: {{restart_policy: {{condition: on-failure}}}}
",
        starts.display()
    );
    fs::write(&compose, yaml.replace("$$", "$")).unwrap();
    fleet.ask(1, &["deploy", &compose.display().to_string()]).unwrap();
    let first = fleet.running(2, 4);

    // A worker: its tasks move, and when it is back nothing of them runs there.
    fleet.workers[0].1 = None;
    let moved = wait_for("the tasks of the killed worker moved", || {
        let now = fleet.running(1, 4);
        now.values().all(|node| node == "w1").then_some(now)
    });
    assert_ne!(first, moved);
    fleet.start_worker(0);

    // Each manager, so the leader too: what runs goes on.
    for manager in 0..3 {
        fleet.managers[manager].1 = None;
        assert_eq!(fleet.running((manager + 1) % 3, 4), moved, "nothing is restarted for a manager's end");
        fleet.start_manager(manager);
    }

    // Both workers at once, a manager too: all tasks are replaced in the end.
    fleet.workers.iter_mut().for_each(|(_, running)| *running = None);
    fleet.managers[0].1 = None;
    (0..2).for_each(|number| fleet.start_worker(number));
    let last = wait_for("all tasks are replaced", || {
        let now = fleet.running(1, 4);
        now.keys().all(|id| !moved.contains_key(id)).then_some(now)
    });

    // A task is said to run as soon as it was started; its first line comes when it comes.
    wait_for("all that run have said so", || {
        let told = fs::read_to_string(&starts).unwrap();
        last.keys().all(|id| told.lines().any(|line| line == id)).then_some(())
    });
    let told: Vec<String> = fs::read_to_string(&starts).unwrap().lines().map(str::to_owned).collect();
    let unique: BTreeSet<String> = told.iter().cloned().collect();
    assert_eq!(told.len(), unique.len(), "a task was started twice: {told:?}");
    let rows = fleet.ask(2, &["ps"]).unwrap();
    let once: Vec<&Value> = rows.iter().filter(|row| row["service"] == "once").collect();
    assert!(once.iter().any(|row| row["state"] == "complete" && row["exit_code"] == 0), "{once:?}");
}
