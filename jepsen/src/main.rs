//! `jepsen`: one run against a built `raft-kv`, a summary, and the exit code 1 if a claim is broken.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use raft_kv_jepsen::checker::{self, Verdict};
use raft_kv_jepsen::history::parse;
use raft_kv_jepsen::nemesis::Fault;
use raft_kv_jepsen::network;
use raft_kv_jepsen::run::{Options, Workload, run};
use tokio::signal::unix::{SignalKind, signal};

/// Breaches of one claim that are printed.
const SHOWN: usize = 10;

/// Runs real members under real faults and checks what their clients saw.
#[derive(Parser, Debug)]
#[command(name = "jepsen", version)]
struct Args {
    /// The binary raft-kv to run
    #[arg(long, value_name = "PATH", required_unless_present = "check")]
    bin: Option<PathBuf>,
    /// Run nothing: check a history that an earlier run kept
    #[arg(long, value_name = "HISTORY", conflicts_with = "bin")]
    check: Option<PathBuf>,
    /// Seconds of faults, at least; every fault comes once
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Members
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Faults, separated by commas; `all` but damage to disks (bit-flip, old-image), or `none`
    #[arg(long, default_value = "all")]
    nemesis: String,
    /// Workloads that run at the same time, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["register", "append", "set", "watch"])]
    workload: Vec<Workload>,
    /// Of all choices made here (the processes make their own)
    #[arg(long)]
    seed: Option<u64>,
    /// For data, logs and the history; must be empty. Kept. Otherwise a new folder for temporary
    /// files, which is kept only if the run fails
    #[arg(long)]
    dir: Option<PathBuf>,
}

fn faults(list: &str) -> Result<Vec<Fault>, String> {
    use clap::ValueEnum;
    if list == "none" {
        return Ok(Vec::new());
    }
    if list == "all" {
        // Damage may show only when it is read, in the middle of another fault: it is asked for by name.
        return Ok(Fault::ALL.into_iter().filter(|fault| !fault.costs_an_id()).collect());
    }
    list.split(',').map(|word| Fault::from_str(word, false)).collect()
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(path) = &args.check {
        return check(path);
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = args.seed.unwrap_or(since.as_secs());
    let fresh = || std::env::temp_dir().join(format!("jepsen-{}-{}", since.as_secs(), std::process::id()));
    let dir = args.dir.clone().unwrap_or_else(fresh);
    let faults = match faults(&args.nemesis) {
        Ok(faults) => faults,
        Err(why) => {
            let known: Vec<&str> = Fault::ALL.iter().map(|fault| fault.name()).collect();
            eprintln!("jepsen: --nemesis: {why}; take from {}, or all, or none", known.join(", "));
            return ExitCode::from(2);
        }
    };
    if faults.iter().any(|fault| fault.needs_network())
        && let Err(why) = network::enter()
    {
        eprintln!("jepsen: {why}");
        return ExitCode::from(2);
    }
    if dir.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        eprintln!("jepsen: {} is not empty; choose another --dir", dir.display());
        return ExitCode::from(2);
    }
    let options = Options {
        binary: args.bin.unwrap_or_default(),
        dir: dir.clone(),
        nodes: usize::from(args.nodes),
        duration: Duration::from_secs(args.seconds),
        faults,
        workloads: args.workload,
        seed,
    };
    let began = Instant::now();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let ended = runtime.block_on(async { until_told(run(&options)).await });
    println!("jepsen: {} members, seed {seed}, {:.0} s", options.nodes, began.elapsed().as_secs_f64());
    let good = match &ended {
        Ok(verdicts) => verdicts.iter().filter(|verdict| !show(verdict)).count() == 0,
        Err(why) => {
            println!("  FAILED  {why}");
            false
        }
    };
    if good && args.dir.is_none() {
        let _ = std::fs::remove_dir_all(&dir);
    } else {
        println!("  the history, logs and data are in {}", dir.display());
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every claim but activity, whose measure is what a run had planned.
fn check(path: &Path) -> ExitCode {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
    match text.and_then(|text| parse(&text)) {
        Ok(history) if checker::all(&history).iter().filter(|verdict| !show(verdict)).count() == 0 => {
            ExitCode::SUCCESS
        }
        Ok(_) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("jepsen: {}: {why}", path.display());
            ExitCode::from(2)
        }
    }
}

/// Ends the run early on Ctrl-C and SIGTERM, so that its guards end the members.
async fn until_told<T>(run: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    tokio::select! {
        ended = run => ended,
        _ = terminate.recv() => Err("told to end".to_owned()),
        _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
    }
}

/// Prints it; returns whether the claim holds.
fn show(verdict: &Verdict) -> bool {
    let good = verdict.breaches.is_empty();
    println!("  {}  {}: {}", if good { "ok    " } else { "FAILED" }, verdict.claim, verdict.checked);
    for breach in verdict.breaches.iter().take(SHOWN) {
        println!("          {breach}");
    }
    if verdict.breaches.len() > SHOWN {
        println!("          … and {} more", verdict.breaches.len() - SHOWN);
    }
    good
}
