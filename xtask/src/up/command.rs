//! One call of the `raft-kv` command line, or of another program that reaches a member: with a
//! deadline, its JSON answer as a value, its refusal as an error.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{LOOK, interrupted};

/// Longest that one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// The files with which a client shows who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The cluster's root certificate.
    pub cacert: PathBuf,
    /// The client's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The binary, and how to call it.
#[derive(Debug, Clone)]
pub struct Binary {
    /// Where it is.
    pub path: PathBuf,
}

impl Binary {
    /// A command of the binary, free of the caller's own settings for it.
    pub fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.path);
        command.args(words);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("RAFT_KV_") {
                command.env_remove(name);
            }
        }
        command
    }

    /// A command that speaks to `endpoints` as the bearer of `credentials`.
    pub fn as_client(&self, credentials: &Credentials, endpoints: &[&str], words: &[&str]) -> Command {
        let mut command = self.command(words);
        command.arg("--endpoints").arg(endpoints.join(","));
        command.arg("--cacert").arg(&credentials.cacert);
        command.arg("--cert").arg(&credentials.cert);
        command.arg("--key").arg(&credentials.key);
        command.arg("--json");
        command
    }

    /// A command that uses the certificate of the node whose data is in `data_dir`.
    pub fn as_node(&self, data_dir: &Path, words: &[&str]) -> Command {
        let mut command = self.command(words);
        command.arg("--data-dir").arg(data_dir).arg("--json");
        command
    }
}

/// Runs `command` to its end and reads the JSON it prints.
pub fn call(command: &mut Command) -> Result<Value, String> {
    let out = text(command)?;
    let wrong = |error| format!("{}: {error} in its answer {out:?}", shown(command));
    serde_json::from_str(out.trim()).map_err(wrong)
}

/// Runs `command` to its end and gives what it prints.
pub fn text(command: &mut Command) -> Result<String, String> {
    let shown = shown(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{shown}: {error}"))?;
    // Both pipes are drained by threads of their own: a full one would stop the child.
    let out = drain(child.stdout.take());
    let err = drain(child.stderr.take());
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if began.elapsed() < CALL_LIMIT && !interrupted() => thread::sleep(LOOK / 5),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
        }
    };
    let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
    match status {
        None if interrupted() => Err("interrupted".to_owned()),
        None => Err(format!("{shown}: no answer in {} s", CALL_LIMIT.as_secs())),
        Some(status) if status.success() => Ok(out),
        Some(status) => Err(format!("{shown}: {status}: {} {}", err.trim(), out.trim())),
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = vec![];
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The first words of a command, for messages.
fn shown(command: &Command) -> String {
    let words = command.get_args().map(OsStr::to_string_lossy);
    let words: Vec<_> = words.take_while(|word| !word.starts_with("--")).collect();
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    [program.to_string_lossy().into_owned(), words.join(" ")].join(" ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(script: &str, expect: Result<i64, &str>) {
        let got = call(Command::new("sh").args(["-c", script])).map(|value| value["n"].as_i64().unwrap());
        match expect {
            Ok(number) => assert_eq!(got, Ok(number)),
            Err(part) => assert!(got.clone().unwrap_err().contains(part), "{got:?}"),
        }
    }

    #[test]
    fn an_answer_is_json_and_a_refusal_is_told() {
        check("echo '{\"n\": 3}'", Ok(3));
        check("echo no such key >&2; exit 4", Err("no such key"));
        check("echo plain", Err("in its answer"));
        check("head -c 300000 /dev/zero >&2; echo '{\"n\": 1}'", Ok(1));
    }

    #[test]
    fn a_clients_command_carries_its_certificate() {
        let credentials = Credentials { cacert: "a".into(), cert: "b".into(), key: "c".into() };
        let binary = Binary { path: "raft-kv".into() };
        let command = binary.as_client(&credentials, &["u1", "u2"], &["put", "k", "v"]);
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        assert_eq!(words.join(" "), "put k v --endpoints u1,u2 --cacert a --cert b --key c --json");
        assert_eq!(shown(&command), "raft-kv put k v");
    }
}
