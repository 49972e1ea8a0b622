//! `cargo xtask up` and `down`: a cluster of real processes on loopback, and a tour that a person can
//! follow. Drives the binary `raft-kv` from outside, as a user would; links nothing of it.

mod cluster;
mod command;
mod fleet;
mod process;
mod record;
mod tour;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::arguments::Arguments;
use crate::setup;
use crate::workspace::Workspace;
use cluster::Cluster;
use record::Record;

/// Members that `--nodes` may ask for.
const NODES: std::ops::RangeInclusive<u64> = 1..=9;
/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(10);
/// A member that has not stopped by itself after this is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// `up`, in its three forms.
pub fn up(place: &Workspace, words: &[String]) -> Result<(), String> {
    let arguments = Arguments::parse(words, &["--check", "--detach"], &["--dir", "--nodes", "--bin"])?;
    let (check, detach) = (arguments.flag("--check"), arguments.flag("--detach"));
    let nodes = arguments.number("--nodes", 3)?;
    if check && detach {
        return Err("--check and --detach exclude each other".to_owned());
    }
    if detach && arguments.value("--dir").is_none() {
        return Err("--detach needs --dir D: `down --dir D` finds the members there".to_owned());
    }
    if !NODES.contains(&nodes) {
        return Err(format!("--nodes takes {} to {}", NODES.start(), NODES.end()));
    }
    if !detach && nodes != 3 {
        return Err("the tour is for three members; --nodes goes with --detach".to_owned());
    }
    watch_for_interrupts()?;
    let binary = match arguments.value("--bin") {
        Some(path) => absolute(path)?,
        None => build(place)?,
    };
    let dir = match arguments.value("--dir") {
        Some(dir) => absolute(dir)?,
        None => fresh_dir(place, check)?,
    };
    if detach {
        return start_and_leave(&binary, &dir, nodes);
    }
    let verdict = tour::run(&binary, &dir, check);
    let kept = arguments.value("--dir").is_some() || !check || verdict.is_err();
    if kept {
        println!("the data is in {}", dir.display());
        println!(
            "  start it again:  cargo xtask up --dir {0}\n  remove it:       cargo xtask down --dir {0} --wipe",
            dir.display()
        );
    } else {
        record::wipe(&dir)?;
    }
    verdict
}

/// `down`: ends the processes that are recorded in the directory, and no others.
pub fn down(words: &[String]) -> Result<(), String> {
    let arguments = Arguments::parse(words, &["--wipe"], &["--dir"])?;
    let dir = absolute(arguments.value("--dir").ok_or("say which cluster: --dir D")?)?;
    if !dir.exists() {
        println!("down: {} does not exist; nothing to end", dir.display());
        return Ok(());
    }
    let ended = match Record::read(&dir)? {
        Some(record) => process::end_all(&record.processes(), STOP_PATIENCE)?,
        None => 0,
    };
    println!("down: {ended} processes ended");
    if arguments.flag("--wipe") {
        record::wipe(&dir)?;
        println!("down: {} removed", dir.display());
    }
    Ok(())
}

fn start_and_leave(binary: &Path, dir: &Path, nodes: u64) -> Result<(), String> {
    let mut cluster = Cluster::prepare(binary, dir, true)?;
    cluster.start(nodes)?;
    let answer = cluster.describe();
    cluster.leave();
    println!("{answer}");
    Ok(())
}

/// Compiles the server in the release profile; cargo shows the progress.
pub fn build(place: &Workspace) -> Result<PathBuf, String> {
    setup::ensure(place)?;
    eprintln!(
        "up: building raft-kv (the first time compiles RocksDB, 13 minutes on two cores; later seconds)"
    );
    let started = Instant::now();
    let status = place
        .cargo()
        .args(["build", "--release", "-p", "raft-kv-server", "--bin", "raft-kv"])
        .args(["-p", "raft-kv-orchestrator-example", "--bin", "orchestrator"])
        .stdout(std::io::stderr())
        .status()
        .map_err(|error| format!("cargo: {error}"))?;
    if !status.success() {
        return Err("raft-kv does not build; cargo's own words are above".to_owned());
    }
    eprintln!("up: built in {:.0} s", started.elapsed().as_secs_f64());
    Ok(place.server_binary())
}

fn fresh_dir(place: &Workspace, check: bool) -> Result<PathBuf, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
    let kind = if check { "check" } else { "up" };
    Ok(place.cache.join("clusters").join(format!("{kind}-{}-{}", now.as_secs(), std::process::id())))
}

fn absolute(path: &str) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("{path}: {error}"))
}

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From here on Ctrl-C and SIGTERM are a flag that every wait looks at, so that guards still run.
fn watch_for_interrupts() -> Result<(), String> {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, flag.clone()).map_err(|error| format!("signals: {error}"))?;
    }
    Ok(())
}

fn interrupted() -> bool {
    INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Looks until `look` has something, for at most `limit`. Ctrl-C ends it early.
fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>, String>,
) -> Result<T, String> {
    let started = Instant::now();
    loop {
        if interrupted() {
            return Err("interrupted".to_owned());
        }
        if let Some(found) = look()? {
            return Ok(found);
        }
        if started.elapsed() > limit {
            return Err(format!("{what}: not within {} s", limit.as_secs()));
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str, part: &str) {
        let place = Workspace { root: "r".into(), cache: "c".into(), target: "t".into() };
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let why = up(&place, &words).unwrap_err();
        assert!(why.contains(part), "{line}: {why}");
    }

    #[test]
    fn forms_that_make_no_sense_are_refused_before_anything_starts() {
        refused("--check --detach --dir d", "exclude");
        refused("--detach", "--dir");
        refused("--detach --dir d --nodes 0", "1 to 9");
        refused("--nodes 5", "--detach");
        refused("--nodes three", "number");
    }

    #[test]
    fn down_is_calm_about_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let words = |dir: &Path| ["--dir".to_owned(), dir.display().to_string(), "--wipe".to_owned()];
        assert_eq!(down(&words(&dir.path().join("absent"))), Ok(()));
        std::fs::write(dir.path().join("precious"), "x").unwrap();
        assert!(down(&words(dir.path())).unwrap_err().contains("not made by"));
        assert!(dir.path().join("precious").exists());
    }
}
