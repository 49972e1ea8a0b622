//! The processes of a worker's tasks: each task is started at most once, ever, and ended when told. What
//! was started and how it ended is on the disk before anybody hears of it. It must never start a task
//! whose file is there.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use raft_kv::orchestration::{TaskState, TaskStatus};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedSender;

use crate::compose::Run;

/// The variable by which a worker knows its processes, also those of processes of theirs.
const MARK: &str = "ORCHESTRATOR_WORKER";
/// From the request to end to the end by force.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a process is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A task and what became of it.
pub type Report = (String, TaskStatus);

/// How a task ended, as its file keeps it.
#[derive(Clone, Serialize, Deserialize)]
struct End {
    state: u32,
    error: String,
    exit_code: Option<u32>,
    at: u64,
}

/// All processes of one worker.
pub struct Processes {
    /// Absolute; one file for each task that was ever started and is not forgotten, and its output.
    dir: PathBuf,
    /// Dropping one of these asks the process to end.
    running: BTreeMap<String, Sender<()>>,
    reports: UnboundedSender<Report>,
}

impl Processes {
    /// Ends what an earlier worker of this directory has left behind, so that nothing runs that nobody knows.
    pub fn open(dir: &Path, reports: UnboundedSender<Report>) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let dir = fs::canonicalize(dir)?;
        while sweep(&dir)? {
            thread::sleep(LOOK);
        }
        Ok(Self { dir, running: BTreeMap::new(), reports })
    }

    /// What a manager wants of a task; may be said any number of times.
    pub fn told(&mut self, id: &str, slot: u64, spec: &[u8], desired: TaskState) {
        if desired > TaskState::Running {
            self.end(id);
        } else if !self.running.contains_key(id) {
            match self.known(id) {
                Some(end) => self.say(id, end),
                None => self.start(id, slot, spec),
            }
        }
    }

    /// A task is this worker's no more.
    pub fn forget(&mut self, id: &str) {
        self.running.remove(id);
        let _ = fs::remove_file(self.file(id));
    }

    /// The tasks that this worker knows of.
    pub fn known_ids(&self) -> io::Result<Vec<String>> {
        let names =
            fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names: io::Result<Vec<String>> = names.collect();
        Ok(names?.into_iter().filter(|name| !name.ends_with(".log")).collect())
    }

    fn end(&mut self, id: &str) {
        if self.running.remove(id).is_none() {
            // It never ran here, or no more: how it ended is what counts, and otherwise that it will not run.
            let shutdown =
                End { state: TaskState::Shutdown.number(), error: String::new(), exit_code: None, at: now() };
            let end = self.known(id).unwrap_or(shutdown);
            self.say(id, end);
        }
    }

    /// How a task ended that was started; one without an end lost its worker.
    fn known(&self, id: &str) -> Option<End> {
        let text = fs::read(self.file(id)).ok()?;
        let lost = || End {
            state: TaskState::Failed.number(),
            error: "its worker ended".into(),
            exit_code: None,
            at: now(),
        };
        Some(serde_json::from_slice(&text).unwrap_or_else(|_| lost()))
    }

    fn start(&mut self, id: &str, slot: u64, spec: &[u8]) {
        match self.spawn(id, slot, spec) {
            Ok(child) => {
                let (stop, stopped) = channel();
                self.running.insert(id.to_owned(), stop);
                self.say_state(id, TaskState::Running, String::new(), None);
                let (id, file, reports) = (id.to_owned(), self.file(id), self.reports.clone());
                thread::spawn(move || {
                    let end = watch(child, &stopped);
                    let kept = serde_json::to_vec(&end).map_err(io::Error::other);
                    if let Err(error) = kept.and_then(|text| fs::write(&file, text)) {
                        tracing::warn!(%error, task = id, "how it ended can't be kept");
                    }
                    let _ = reports.send((id, end.status()));
                });
            }
            Err(error) => self.say_state(id, TaskState::Rejected, error.to_string(), None),
        }
    }

    fn spawn(&self, id: &str, slot: u64, spec: &[u8]) -> io::Result<Child> {
        let run: Run = serde_json::from_slice(spec).map_err(io::Error::other)?;
        // The file first: a worker that is killed between the two has started it never rather than twice.
        OpenOptions::new().write(true).create_new(true).open(self.file(id))?.sync_all()?;
        File::open(&self.dir)?.sync_all()?;
        let log = OpenOptions::new().append(true).create(true).open(self.dir.join(format!("{id}.log")))?;
        // It ends with its worker, also where that is killed; the kernel sees to it.
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(&run.command)
            .envs(&run.environment)
            .env(MARK, &self.dir)
            .env("TASK_ID", id)
            .env("TASK_SLOT", slot.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
    }

    fn say(&self, id: &str, end: End) {
        let _ = self.reports.send((id.to_owned(), end.status()));
    }

    fn say_state(&self, id: &str, state: TaskState, error: String, exit_code: Option<u32>) {
        let end = End { state: state.number(), error, exit_code, at: now() };
        self.say(id, end);
    }

    fn file(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.running.clear();
        while matches!(sweep(&self.dir), Ok(true)) {
            thread::sleep(LOOK);
        }
    }
}

impl End {
    fn status(self) -> TaskStatus {
        TaskStatus {
            state: TaskState::of_number(self.state).unwrap_or(TaskState::Failed),
            message: String::new(),
            error: self.error,
            exit_code: self.exit_code,
            at: self.at,
        }
    }
}

/// Waits for the end of a process, its own or the one that is asked for.
fn watch(mut child: Child, stopped: &Receiver<()>) -> End {
    let group = Pid::from_child(&child);
    let mut asked: Option<std::time::Instant> = None;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Ok(status),
            Ok(None) => {}
            Err(error) => break Err(error),
        }
        match asked {
            None => {
                if let Err(RecvTimeoutError::Disconnected) | Ok(()) = stopped.recv_timeout(LOOK) {
                    let _ = kill_process_group(group, Signal::TERM);
                    asked = Some(std::time::Instant::now());
                }
            }
            Some(since) => {
                if since.elapsed() > PATIENCE {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                thread::sleep(LOOK);
            }
        }
    };
    // Whatever it has started goes with it.
    let _ = kill_process_group(group, Signal::KILL);
    ended(status, asked.is_some())
}

fn ended(status: io::Result<ExitStatus>, asked: bool) -> End {
    let code = status.as_ref().ok().and_then(ExitStatus::code).and_then(|code| u32::try_from(code).ok());
    let (state, error) = match status {
        _ if asked => (TaskState::Shutdown, String::new()),
        Ok(status) if status.success() => (TaskState::Complete, String::new()),
        Ok(status) => match status.signal() {
            Some(signal) => (TaskState::Failed, format!("ended by signal {signal}")),
            None => (TaskState::Failed, format!("exit code {}", code.unwrap_or_default())),
        },
        Err(error) => (TaskState::Failed, error.to_string()),
    };
    End { state: state.number(), error, exit_code: code, at: now() }
}

/// Kills every process with the mark of this directory; whether there was one.
fn sweep(dir: &Path) -> io::Result<bool> {
    let mark = format!("{MARK}={}", dir.display()).into_bytes();
    let mut found = false;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|pair| pair == mark) {
            let _ = kill_process(pid, Signal::KILL);
            found = true;
        }
    }
    Ok(found)
}

pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
