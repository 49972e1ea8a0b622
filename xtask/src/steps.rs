//! `cargo xtask test`: the table of steps, and the loop that runs them one after the other with their
//! names, times and counts. All steps run even when one fails, so one run tells everything.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::arguments::Arguments;
use crate::tally::Tally;
use crate::workspace::Workspace;
use crate::{check, setup, up};

/// What a step does.
enum Work {
    /// A cargo command; `test result:` lines in its output are counted.
    Cargo(&'static [&'static str]),
    /// A cargo command in the workspace of the fuzz targets.
    Fuzz(&'static [&'static str]),
    /// The rules of the source.
    Rules,
    /// Every example of the crate but the simulator; each must end by itself with success.
    Examples,
    /// The simulator over so many seeds.
    Sim(&'static str),
    /// Real processes of the release build under faults, and the checkers of what clients saw.
    Jepsen(&'static [&'static str]),
    /// A program of the crate conformance against the release build of the server.
    Conformance(&'static [&'static str]),
    /// Licences and advisories, where cargo-deny is installed.
    Deny,
}

/// One line of the table.
struct Step {
    name: &'static str,
    work: Work,
    /// Also part of `--fast`.
    fast: bool,
}

const fn step(name: &'static str, fast: bool, work: Work) -> Step {
    Step { name, work, fast }
}

/// Everything that is tested, cheapest first.
const STEPS: &[Step] = &[
    step("format", true, Work::Cargo(&["fmt", "--all", "--check"])),
    step("layers, names and words of the source", true, Work::Rules),
    step(
        "lints",
        true,
        Work::Cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--features",
            "raft-kv/sim",
            "--",
            "-D",
            "warnings",
        ]),
    ),
    step(
        "the pure core builds without RocksDB or sockets",
        true,
        Work::Cargo(&["check", "-p", "raft-kv", "--no-default-features", "--features", "sim"]),
    ),
    step(
        "all tests of the workspace, planted bugs and fuzz corpora included",
        true,
        Work::Cargo(&["test", "--no-fail-fast", "--workspace", "--features", "raft-kv/sim"]),
    ),
    step("the examples run", true, Work::Examples),
    step("fuzz targets compile", false, Work::Fuzz(&["check", "--quiet"])),
    step("simulator, 500 seeds", false, Work::Sim("500")),
    step("real processes under faults, 30 s", false, Work::Jepsen(&["--seconds", "18", "--nodes", "3"])),
    step(
        "the same 10,000 requests to etcd and to raft-kv",
        false,
        Work::Conformance(&["differential", "--requests", "10000"]),
    ),
    step("etcdctl, every sub-command", false, Work::Conformance(&["clients", "etcdctl"])),
    step("etcd-client for Rust", false, Work::Conformance(&["clients", "rust"])),
    step("etcd clients for Python and Node", false, Work::Conformance(&["clients", "python", "node"])),
    step("Patroni's lock and failover loop", false, Work::Conformance(&["clients", "patroni"])),
    step("etcd's historical bugs on real members", false, Work::Conformance(&["clients", "bugs"])),
    step("licences and advisories", false, Work::Deny),
];

/// How one step ended.
enum Outcome {
    Passed(Tally),
    Failed(Tally, String),
    Skipped(String),
}

/// Runs the table; with `fast` only its quicker part.
pub fn test(place: &Workspace, fast: bool) -> Result<(), String> {
    let began = Instant::now();
    setup::ensure(place)?;
    let steps: Vec<&Step> = STEPS.iter().filter(|step| !fast || step.fast).collect();
    eprintln!("build cache: {}", place.target.display());
    let mut total = Tally::default();
    let mut story = vec![];
    for (number, step) in steps.iter().enumerate() {
        eprintln!("\n== [{}/{}] {}", number + 1, steps.len(), step.name);
        let started = Instant::now();
        let outcome = carry_out(place, &step.work);
        let seconds = started.elapsed().as_secs_f64();
        let line = match &outcome {
            // A step without tests of its own counts as one.
            Outcome::Passed(tally) => {
                let tally = if *tally == Tally::default() { Tally { passed: 1, failed: 0 } } else { *tally };
                total.add(tally);
                format!("ok       {seconds:7.1} s  {} ({})", step.name, tally.line())
            }
            Outcome::Failed(tally, why) => {
                total.add(Tally { failed: tally.failed.max(1), ..*tally });
                format!("FAILED   {seconds:7.1} s  {}: {why}", step.name)
            }
            Outcome::Skipped(why) => format!("skipped  {seconds:7.1} s  {}: {why}", step.name),
        };
        eprintln!("== {line}");
        story.push(line);
    }
    println!("\nsteps, {:.0} s in all:", began.elapsed().as_secs_f64());
    story.iter().for_each(|line| println!("  {line}"));
    println!("\n{}", total.line());
    if total.failed > 0 { Err(String::new()) } else { Ok(()) }
}

/// Runs the simulator with the caller's words, after checking them.
pub fn sim(place: &Workspace, words: &[String]) -> Result<(), String> {
    let arguments = Arguments::parse(
        words,
        &["--verbose", "--trace", "--planted", "--keep-going", "--json"],
        &[
            "--seeds",
            "--start",
            "--seed",
            "--bug",
            "--seconds",
            "--intensity",
            "--threads",
            "--check-determinism",
        ],
    )?;
    arguments.number("--seeds", 0)?;
    arguments.number("--start", 0)?;
    arguments.number("--seed", 0)?;
    let much = arguments.value("--seeds").is_some() || arguments.value("--seed").is_some();
    if !much && !arguments.flag("--planted") {
        return Err("say how much: --seeds N, or --seed X for one, or --planted".to_owned());
    }
    let status = sim_command(place).args(words).status().map_err(|error| format!("cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err(String::new()) }
}

fn sim_command(place: &Workspace) -> Command {
    let mut command = place.cargo();
    command.args([
        "run",
        "--quiet",
        "--release",
        "-p",
        "raft-kv",
        "--no-default-features",
        "--features",
        "sim",
    ]);
    command.args(["--example", "sim", "--"]);
    command
}

fn carry_out(place: &Workspace, work: &Work) -> Outcome {
    match work {
        Work::Cargo(words) => counted(place.cargo().args(*words)),
        Work::Fuzz(words) => {
            let mut command = place.cargo();
            command.current_dir(place.root.join("fuzz")).args(*words);
            counted(&mut command)
        }
        Work::Rules => match check::run(place) {
            Ok(()) => Outcome::Passed(Tally::default()),
            Err(why) => Outcome::Failed(Tally::default(), why),
        },
        Work::Sim(seeds) => counted(sim_command(place).args(["--seeds", seeds])),
        Work::Examples => examples(place),
        Work::Jepsen(words) => match up::build(place) {
            Ok(binary) => {
                let run = ["run", "--quiet", "--release", "-p", "raft-kv-jepsen", "--bin", "jepsen", "--"];
                counted(place.cargo().args(run).arg("--bin").arg(binary).args(*words))
            }
            Err(why) => Outcome::Failed(Tally::default(), why),
        },
        Work::Conformance(words) => match up::build(place) {
            Ok(binary) => conformance(place, &binary, words),
            Err(why) => Outcome::Failed(Tally::default(), why),
        },
        Work::Deny => {
            let installed = place.cargo().args(["deny", "--version"]).output();
            if !installed.is_ok_and(|output| output.status.success()) {
                return Outcome::Skipped(
                    "cargo-deny is not installed (`cargo install cargo-deny`)".to_owned(),
                );
            }
            counted(place.cargo().args(["deny", "check"]))
        }
    }
}

/// The clients' own packages are kept beside the builds.
fn conformance(place: &Workspace, binary: &Path, words: &[&str]) -> Outcome {
    let (program, rest) = words.split_first().expect("a program is named");
    let mut command = place.cargo();
    command.args(["run", "--quiet", "--release", "-p", "raft-kv-conformance", "--bin", program, "--"]);
    command.arg("--bin").arg(binary);
    if *program == "clients" {
        command.arg("--tools").arg(place.target.join("clients"));
    }
    counted(command.args(rest))
}

fn examples(place: &Workspace) -> Outcome {
    let names = match example_names(&place.root.join("raft-kv/examples")) {
        Ok(names) => names,
        Err(why) => return Outcome::Failed(Tally::default(), why),
    };
    if names.is_empty() {
        return Outcome::Failed(Tally::default(), "raft-kv/examples has no example".to_owned());
    }
    let mut tally = Tally::default();
    for name in &names {
        eprintln!("-- example {name}");
        let status = place.cargo().args(["run", "--quiet", "-p", "raft-kv", "--example", name]).status();
        match status {
            Ok(status) if status.success() => tally.passed += 1,
            _ => tally.failed += 1,
        }
    }
    if tally.failed == 0 {
        Outcome::Passed(tally)
    } else {
        Outcome::Failed(tally, "an example failed".to_owned())
    }
}

/// The examples that show the handle: all but the simulator's door.
fn example_names(dir: &PathBuf) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(dir).map_err(|error| format!("raft-kv/examples: {error}"))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".rs").map(str::to_owned))
        .filter(|name| name != "sim")
        .collect();
    names.sort();
    Ok(names)
}

/// Runs a command, passing its output on as it comes, and counts the tests it tells of.
fn counted(command: &mut Command) -> Outcome {
    let mut tally = Tally::default();
    let mut child = match command.stdout(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) => return Outcome::Failed(tally, format!("cargo could not be started: {error}")),
    };
    let output = child.stdout.take().expect("stdout is piped");
    for line in BufReader::new(output).split(b'\n') {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line);
        tally.read(&line);
        println!("{line}");
    }
    match child.wait() {
        Ok(status) if status.success() => Outcome::Passed(tally),
        Ok(status) => Outcome::Failed(tally, format!("its output is above ({status})")),
        Err(error) => Outcome::Failed(tally, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runners_output_is_counted_and_its_failure_kept() {
        let lines = "echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored'; exit 3";
        match counted(Command::new("sh").args(["-c", lines])) {
            Outcome::Failed(tally, _) => assert_eq!(tally, Tally { passed: 2, failed: 1 }),
            _ => panic!("a failing command must fail its step"),
        }
        match counted(Command::new("sh").args(["-c", "echo 'test result: ok. 4 passed; 0 failed'"])) {
            Outcome::Passed(tally) => assert_eq!(tally.passed, 4),
            _ => panic!("a command that succeeds passes its step"),
        }
        assert!(matches!(counted(&mut Command::new("no-such-command-here")), Outcome::Failed(..)));
    }

    #[test]
    fn the_simulator_is_no_example() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["sim.rs", "manager.rs", "notes.md"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(example_names(&dir.path().to_owned()).unwrap(), ["manager"]);
    }

    #[test]
    fn the_fast_run_is_a_part_of_the_whole() {
        assert!(STEPS.iter().any(|step| step.fast) && STEPS.iter().any(|step| !step.fast));
    }
}
