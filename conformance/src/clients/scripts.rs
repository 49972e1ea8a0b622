//! Clients in other languages: their packages are fetched by their own tools as those are configured,
//! at the versions this folder names, and kept between runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Setting, scripts_dir, told};
use crate::server::Server;

/// A script that has not ended by itself after this is killed.
const SCRIPT_LIMIT: Duration = Duration::from_secs(180);

/// etcd3, from Python's registry.
///
/// # Errors
/// What the script says, or that its packages can't be had.
pub async fn python(setting: &Setting) -> Result<(), String> {
    let python = venv(&setting.tools, "python")?;
    let server = setting.cluster().await?;
    script(Command::new(python).arg(scripts_dir().join("python/scenario.py")), &server, None)
}

/// etcd3, from Node's registry.
///
/// # Errors
/// See [`python`].
pub async fn node(setting: &Setting) -> Result<(), String> {
    let dir = setting.tools.join("node");
    let from = scripts_dir().join("node");
    let lock = fs::read_to_string(from.join("package-lock.json")).map_err(|error| error.to_string())?;
    kept(&dir, &lock, || {
        for name in ["package.json", "package-lock.json"] {
            fs::copy(from.join(name), dir.join(name)).map_err(|error| format!("{name}: {error}"))?;
        }
        done(
            Command::new("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&dir),
        )
    })?;
    let server = setting.cluster().await?;
    let mut command = Command::new("node");
    command.arg(from.join("scenario.js")).env("NODE_PATH", dir.join("node_modules"));
    script(&mut command, &server, None)
}

/// Patroni's own store class, through a lock and failover loop; the member that it talks to is
/// killed under it.
///
/// # Errors
/// See [`python`].
pub async fn patroni(setting: &Setting) -> Result<(), String> {
    let python = venv(&setting.tools, "patroni")?;
    let server = setting.cluster().await?;
    let victim = match &server {
        Server::RaftKv(cluster) => cluster.cluster.members()[0].pid(),
        Server::Etcd(_) => None,
    };
    script(Command::new(python).arg(scripts_dir().join("patroni/scenario.py")), &server, victim)
}

/// The Python of a virtual environment with the packages that `name` needs.
fn venv(tools: &Path, name: &str) -> Result<PathBuf, String> {
    let dir = tools.join(name);
    let requirements = scripts_dir().join(name).join("requirements.txt");
    let wanted = fs::read_to_string(&requirements).map_err(|error| error.to_string())?;
    kept(&dir, &wanted, || {
        done(Command::new("python3").args(["-m", "venv", "--clear"]).arg(dir.join("venv")))?;
        let mut pip = Command::new(dir.join("venv/bin/python"));
        done(
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
                .arg(&requirements),
        )
    })?;
    Ok(dir.join("venv/bin/python"))
}

/// Makes what is in `dir` unless it was made for the same `wanted` before.
fn kept(dir: &Path, wanted: &str, make: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let stamp = dir.join("made-for");
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(());
    }
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    make()?;
    fs::write(&stamp, wanted).map_err(|error| format!("{}: {error}", stamp.display()))
}

fn done(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// Runs a script to its end; its own process is all that is ever killed.
fn script(command: &mut Command, server: &Server, victim: Option<u32>) -> Result<(), String> {
    told(command, server.place());
    if let Some(pid) = victim {
        command.env("KILL", pid.to_string());
    }
    let mut child = command.stdin(Stdio::null()).spawn().map_err(|error| format!("{command:?}: {error}"))?;
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("the script ended with {status}; its words are above")),
            Ok(None) if began.elapsed() < SCRIPT_LIMIT => std::thread::sleep(Duration::from_millis(20)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("the script did not end in {} s", SCRIPT_LIMIT.as_secs()));
            }
        }
    }
}
