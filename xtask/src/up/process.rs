//! Processes that are known by their id *and* the time they began, so that an id that the system has
//! given to another is never signalled; and the guard that ends what this process started.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{LOOK, STOP_PATIENCE};

/// Who a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its id.
    pub pid: u32,
    /// When it began, in clock ticks since the machine did.
    pub start: u64,
}

impl Identity {
    /// The identity of a process that runs now.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start) = state_and_start(&stat)?;
        (!matches!(state, 'Z' | 'X')).then_some(Self { pid, start })
    }

    /// Whether this very process still runs.
    pub fn lives(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Sends it a signal, if it still runs.
    pub fn signal(&self, name: &str) -> Result<(), String> {
        if !self.lives() {
            return Ok(());
        }
        // The shell's own kill: the standard library has none, and /bin/kill may be missing.
        let line = format!("kill -s {name} {}", self.pid);
        let status = Command::new("sh").args(["-c", &line]).stderr(Stdio::null()).status();
        match status {
            Ok(status) if status.success() || !self.lives() => Ok(()),
            Ok(status) => Err(format!("{line}: {status}")),
            Err(error) => Err(format!("{line}: {error}")),
        }
    }
}

/// The state (third field) and the start time (field 22) of a line of `/proc/PID/stat`. The name of the
/// program, the second field, may hold anything.
fn state_and_start(stat: &str) -> Option<(char, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    Some((fields.first()?.chars().next()?, fields.get(19)?.parse().ok()?))
}

/// Asks all of them to stop, waits, and kills what is left. Returns how many were running.
pub fn end_all(processes: &[Identity], patience: Duration) -> Result<usize, String> {
    let living: Vec<Identity> = processes.iter().copied().filter(Identity::lives).collect();
    for process in &living {
        process.signal("TERM")?;
    }
    let began = Instant::now();
    while living.iter().any(Identity::lives) && began.elapsed() < patience {
        thread::sleep(LOOK);
    }
    for process in living.iter().filter(|process| process.lives()) {
        eprintln!("process {} did not stop in {} s; killing it", process.pid, patience.as_secs());
        process.signal("KILL")?;
    }
    let began = Instant::now();
    while living.iter().any(Identity::lives) {
        if began.elapsed() > patience {
            return Err("a process does not even end when killed; its disk may hang".to_owned());
        }
        thread::sleep(LOOK);
    }
    Ok(living.len())
}

/// A child that is ended when this value goes, unless it was told to stay.
#[derive(Debug)]
pub struct Running {
    child: Child,
    identity: Identity,
    stays: bool,
}

impl Running {
    /// Starts `command`, its output appended to `out` and its messages to `log`. With `detached` it has
    /// a session of its own; otherwise it also ends when this process is killed. Either way Ctrl-C in
    /// the terminal reaches this process alone, which then stops its children in order.
    pub fn spawn(command: &Command, out: &Path, log: &Path, detached: bool) -> Result<Self, String> {
        let open = |path: &Path| {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|error| format!("{}: {error}", path.display()))
        };
        let mut words = vec![command.get_program()];
        words.extend(command.get_args());
        let mut wrapped = if detached {
            let mut wrapped = Command::new("setsid");
            wrapped.args(&words);
            wrapped
        } else {
            use std::os::unix::process::CommandExt;
            let mut wrapped = Command::new("setpriv");
            wrapped.args(["--pdeathsig", "TERM", "--"]).args(&words).process_group(0);
            wrapped
        };
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        let shown = command.get_program().to_string_lossy().into_owned();
        let mut child = wrapped
            .stdin(Stdio::null())
            .stdout(open(out)?)
            .stderr(open(log)?)
            .spawn()
            .map_err(|error| format!("{shown} could not be started: {error}"))?;
        let Some(identity) = Identity::of(child.id()) else {
            let status = child.wait().map_err(|error| error.to_string())?;
            return Err(format!("{shown} ended at once ({status}); see {}", log.display()));
        };
        Ok(Self { child, identity, stays: false })
    }

    /// Who it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap_or_else(|_| Some(ExitStatus::from_raw(0)))
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(&mut self) -> Result<(), String> {
        self.child.kill().and_then(|()| self.child.wait()).map(drop).map_err(|error| format!("kill: {error}"))
    }

    /// Asks it to stop, without waiting.
    pub fn ask_to_stop(&mut self) -> Result<(), String> {
        if self.ended().is_some() { Ok(()) } else { self.identity.signal("TERM") }
    }

    /// Waits until it has stopped; kills it after `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus, String> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if began.elapsed() > patience {
                self.kill()?;
                return Err(format!(
                    "process {} did not stop in {} s and was killed",
                    self.identity.pid,
                    patience.as_secs()
                ));
            }
            thread::sleep(LOOK);
        }
    }

    /// Lets it go on after this process.
    pub fn stay(&mut self) {
        self.stays = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.stays || self.ended().is_some() {
            return;
        }
        let _ = self.identity.signal("TERM");
        if let Err(why) = self.wait(STOP_PATIENCE) {
            eprintln!("{why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(dir: &Path, script: &str, detached: bool) -> Running {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Running::spawn(&command, &dir.join("out"), &dir.join("log"), detached).unwrap()
    }

    #[test]
    fn a_line_of_stat_is_read_whatever_the_program_is_called() {
        let line = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(state_and_start(line), Some(('S', 4711)));
        assert_eq!(state_and_start("7 (a"), None);
        assert_eq!(state_and_start("7 (a) Z 1"), None);
    }

    #[test]
    fn a_process_with_another_start_is_another() {
        let me = Identity::of(std::process::id()).unwrap();
        let other = Identity { start: me.start + 1, ..me };
        assert!(me.lives() && !other.lives());
        // Would end the test if the start were not looked at.
        assert_eq!(other.signal("KILL"), Ok(()));
        assert_eq!(end_all(&[other], Duration::from_secs(1)), Ok(0));
    }

    #[test]
    fn the_guard_ends_its_child_also_when_it_panics() {
        let dir = tempfile::tempdir().unwrap();
        let running = sleeper(dir.path(), "exec sleep 60", false);
        let identity = running.identity();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _running = running;
            std::panic::resume_unwind(Box::new("planted"));
        }));
        assert!(panicked.is_err() && !identity.lives());
    }

    #[test]
    fn a_child_told_to_stay_is_ended_by_its_identity_even_if_it_does_not_listen() {
        let dir = tempfile::tempdir().unwrap();
        let mut running = sleeper(dir.path(), "trap '' TERM; echo ready; while :; do sleep 0.05; done", true);
        super::super::wait_for("trap", Duration::from_secs(10), || {
            Ok(fs::read_to_string(dir.path().join("out")).ok().filter(|text| text.contains("ready")))
        })
        .unwrap();
        running.stay();
        let identity = running.identity();
        drop(running);
        assert!(identity.lives());
        assert_eq!(end_all(&[identity, identity], Duration::from_millis(200)), Ok(2));
        assert!(!identity.lives());
        assert_eq!(end_all(&[identity], Duration::from_millis(200)), Ok(0));
    }

    #[test]
    fn a_program_that_is_not_there_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let command = Command::new("no-such-program-here");
        let spawned = Running::spawn(&command, &dir.path().join("out"), &dir.path().join("log"), false);
        if let Ok(mut running) = spawned {
            assert!(!running.wait(Duration::from_secs(5)).unwrap().success());
        }
    }
}
