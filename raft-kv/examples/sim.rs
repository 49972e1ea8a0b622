//! The simulator's door: many seeds on all cores, or one seed with its trace.
//!
//! `cargo xtask sim --seeds N` calls it. Every failure comes with the line that replays it.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use raft_kv::sim::{FOUND_BY_SIMULATION, Options, Report, bug_named, is_about_roots, quiet_panics, run};

const USAGE: &str =
    "usage: sim --seeds N [--start S] [--bug NAME] [--threads T] [--seconds S] [--intensity F]
           [--rotate] [--check-determinism PERCENT] [--keep-going] [--json] [--verbose]
       sim --seed X [--trace] [--bug NAME] [--seconds S] [--intensity F] [--rotate]
       sim --planted [--seeds N] [--start S]     every planted bug must be found within N seeds (2000)";

/// Seeds tried for a planted bug before it counts as not found.
const SEEDS_FOR_A_BUG: u64 = 2000;

struct Arguments {
    seeds: u64,
    start: u64,
    seed: Option<u64>,
    threads: usize,
    determinism: u64,
    options: Options,
    planted: bool,
    keep_going: bool,
    json: bool,
    verbose: bool,
}

fn parse() -> Result<Arguments, String> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let mut parsed = Arguments {
        seeds: 0,
        start: 0,
        seed: None,
        threads: cores,
        determinism: 5,
        options: Options::default(),
        planted: false,
        keep_going: false,
        json: false,
        verbose: false,
    };
    let split = |word: String| match word.split_once('=') {
        Some((name, value)) => vec![name.to_owned(), value.to_owned()],
        None => vec![word],
    };
    let mut words = std::env::args().skip(1).flat_map(split);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text:?} is no number"));
        match word.as_str() {
            "--seeds" => parsed.seeds = number(value()?)?,
            "--start" => parsed.start = number(value()?)?,
            "--seed" => parsed.seed = Some(number(value()?)?),
            "--threads" => parsed.threads = number(value()?)?.max(1) as usize,
            "--seconds" => parsed.options.faults = Duration::from_secs(number(value()?)?),
            "--intensity" => {
                let text = value()?;
                parsed.options.intensity = text.parse().map_err(|_| format!("{text:?} is no number"))?;
            }
            "--check-determinism" => parsed.determinism = number(value()?)?,
            "--bug" => {
                let name = value()?;
                let unknown = || format!("no bug is called {name}; there are: {FOUND_BY_SIMULATION:?}");
                parsed.options.bug = Some(bug_named(&name).ok_or_else(unknown)?);
            }
            "--trace" => parsed.options.text = true,
            "--rotate" => parsed.options.rotate = true,
            "--planted" => parsed.planted = true,
            "--keep-going" => parsed.keep_going = true,
            "--json" => parsed.json = true,
            "--verbose" => parsed.verbose = true,
            _ => return Err(format!("unknown word {word}")),
        }
    }
    if parsed.seed.is_none() && parsed.seeds == 0 && !parsed.planted {
        return Err("say how much".to_owned());
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("sim: {why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    quiet_panics();
    let good = match arguments.seed {
        Some(seed) => one(seed, &arguments),
        None if arguments.planted => planted(&arguments),
        None => many(&arguments),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay_line(report: &Report, options: &Options) -> String {
    let bug = options.bug.map(|bug| format!(" --bug {bug:?}")).unwrap_or_default();
    let rotate = if options.rotate { " --rotate" } else { "" };
    format!("cargo xtask sim --seed {}{bug}{rotate}", report.seed)
}

fn one(seed: u64, arguments: &Arguments) -> bool {
    let began = Instant::now();
    let report = run(seed, &arguments.options);
    let took = began.elapsed();
    report.trace.iter().for_each(|line| println!("{line}"));
    print_one(&report);
    let ratio = report.simulated.as_secs_f64() / took.as_secs_f64();
    println!("  took {took:.2?}, {ratio:.0} times real time, trace {:016x}", report.trace_hash);
    report.failure.is_none()
}

fn print_one(report: &Report) {
    println!(
        "seed {}: {:.1} s of cluster time, {} events, {} of {} requests done, {} unknown, {} terms, {} batches watched",
        report.seed,
        report.simulated.as_secs_f64(),
        report.events,
        report.ok,
        report.requests,
        report.unknown,
        report.elections,
        report.watched
    );
    for (what, count) in &report.counts {
        println!("  {count:>8}  {what}");
    }
    if let Some(failure) = &report.failure {
        println!("  FAILED after {:.3} s: {}: {}", failure.at.as_secs_f64(), failure.check, failure.detail);
    }
}

#[derive(Default)]
struct Total {
    seeds: u64,
    simulated: Duration,
    events: u64,
    ok: u64,
    unknown: u64,
    elections: u64,
    counts: BTreeMap<String, u64>,
    /// In how many runs it happened.
    runs: BTreeMap<String, u64>,
    failed: Vec<Report>,
}

impl Total {
    fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.simulated += report.simulated;
        self.events += report.events;
        self.ok += report.ok;
        self.unknown += report.unknown;
        self.elections += report.elections;
        for (what, count) in &report.counts {
            *self.counts.entry(what.clone()).or_default() += count;
            *self.runs.entry(what.clone()).or_default() += 1;
        }
        if report.failure.is_some() {
            self.failed.push(report);
        }
    }
}

fn many(arguments: &Arguments) -> bool {
    let began = Instant::now();
    let total = sweep(arguments, arguments.options, arguments.start, arguments.seeds, arguments.keep_going);
    let took = began.elapsed();
    let vacuous = too_little(&total, arguments);
    if arguments.json {
        print_json(&total, took);
    } else {
        print_total(&total, took, arguments);
    }
    for report in total.failed.iter().take(20) {
        let failure = report.failure.as_ref().expect("it failed");
        println!("FAILED seed {}: {}: {}", report.seed, failure.check, failure.detail);
        println!("  replay: {}", replay_line(report, &arguments.options));
    }
    if let Some(what) = &vacuous {
        println!("FAILED: in {} seeds too little happened: {what}", total.seeds);
    }
    total.failed.is_empty() && vacuous.is_none()
}

/// What must happen in a batch of seeds that is large enough: else the green is empty.
fn too_little(total: &Total, arguments: &Arguments) -> Option<String> {
    if total.seeds < 200 || arguments.options.bug.is_some() || arguments.options.intensity < 1.0 {
        return None;
    }
    const MUST: [&str; 38] = [
        "stopped: crashed",
        "stopped: cleanly",
        "stopped: its disk failed",
        "stopped: it had lost a part of its log",
        "stopped: it was removed",
        "frames lost at a cut",
        "frames that came twice",
        "frames that overtook",
        "sectors lost in a crash",
        "files torn in a crash",
        "batches of state lost in a crash",
        "snapshots installed",
        "logs cut",
        "history read for watchers",
        "leases expired",
        "bits flipped",
        "roots introduced on top of others",
        "rotations led back",
        "rotations settled",
        "rotations settled without who was late",
        "members readmitted",
        "leaders that crashed at a step of a rotation",
        "rollback points made of older revisions",
        "rollback points looked after",
        "lists of rollback points",
        "pages of differences after the first",
        "reads at points below the compaction",
        "reads while a rollback was half done",
        "rollbacks done",
        "rollbacks undone",
        "rollbacks interrupted by a crash",
        "starts with a rollback half done",
        "quotas set below what there was",
        "refused by the quota",
        "refused while a disk was short",
        "changes done above the quota",
        "alarms ended for a disk",
        "members that found their state damaged",
    ];
    // While a root is replaced nothing is damaged or removed that could not be missed too.
    const SELDOM: [&str; 4] = [
        "stopped: it was removed",
        "stopped: it had lost a part of its log",
        "bits flipped",
        "members that found their state damaged",
    ];
    let seldom = |what: &&&str| arguments.options.rotate && SELDOM.contains(*what);
    let too_few = |what: &&&str| total.counts.get(**what).is_none_or(|count| *count < total.seeds / 100);
    let missing = MUST.iter().filter(|what| !seldom(what)).find(too_few);
    let elections = (total.elections < total.seeds * 3).then(|| "elections".to_owned());
    // A kind of fault that never shows is none.
    let faults = total.counts.iter().filter_map(|(what, count)| Some((what.strip_prefix("fault: ")?, count)));
    let vain = faults.filter(|(_, count)| **count >= 50).find(|(fault, _)| mattered(total, fault) == 0);
    let vain = vain.map(|(fault, _)| format!("{fault} never mattered"));
    // One in a hundred may have met faults that left no leader in office.
    let idle =
        total.counts.get("runs in which too little happened").is_some_and(|idle| *idle > total.seeds / 100);
    let idle = idle.then(|| "runs in which enough happened".to_owned());
    missing.map(|what| (*what).to_owned()).or(elections).or(vain).or(idle)
}

fn sweep(arguments: &Arguments, options: Options, start: u64, seeds: u64, keep_going: bool) -> Total {
    let total = Mutex::new(Total::default());
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    if place >= seeds {
                        return;
                    }
                    let report = judged(start + place, &options, arguments);
                    let failed = report.failure.is_some();
                    if failed && options.bug.is_none() {
                        eprintln!("failed: {}", replay_line(&report, &options));
                    }
                    let mut total = total.lock().expect("no thread panics with it");
                    total.add(report);
                    if failed && !keep_going {
                        stop.store(true, Ordering::Relaxed);
                    }
                    if options.bug.is_none() && !arguments.json && total.seeds % 100 == 0 {
                        progress(&total, seeds, began.elapsed());
                    }
                }
            });
        }
    });
    total.into_inner().expect("no thread panics with it")
}

/// Runs a seed, and for some of them once more: the traces must be equal.
fn judged(seed: u64, options: &Options, arguments: &Arguments) -> Report {
    let mut report = run(seed, options);
    let again = options.bug.is_none()
        && (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % 100 < arguments.determinism;
    if again && report.failure.is_none() {
        let hash = run(seed, options).trace_hash;
        *report.counts.entry("run twice".to_owned()).or_default() += 1;
        if hash != report.trace_hash {
            report.failure = Some(raft_kv::sim::Failure {
                check: "one seed, one trace".to_owned(),
                detail: format!("{:016x}, then {hash:016x}", report.trace_hash),
                at: report.simulated,
            });
        }
    }
    if arguments.verbose {
        print_one(&report);
    }
    report
}

fn progress(total: &Total, seeds: u64, took: Duration) {
    eprintln!(
        "{} of {seeds} seeds, {:.1} seeds/s, {:.1} h of cluster time, {} failed",
        total.seeds,
        total.seeds as f64 / took.as_secs_f64(),
        total.simulated.as_secs_f64() / 3600.0,
        total.failed.len()
    );
}

fn print_total(total: &Total, took: Duration, arguments: &Arguments) {
    for (what, count) in &total.counts {
        let runs = total.runs[what];
        if let Some(fault) = what.strip_prefix("fault: ") {
            println!("{count:>12}  {what} (in {runs} runs), {} of them mattered", mattered(total, fault));
        } else if !what.starts_with("mattered: ") {
            println!("{count:>12}  {what} (in {runs} runs)");
        }
    }
    let kinds = total.counts.keys().filter(|what| what.starts_with("fault: ")).count();
    let mattered = total.counts.keys().filter(|what| what.starts_with("mattered: ")).count();
    println!("{mattered} of {kinds} kinds of fault changed or delayed what came of a request");
    let ratio = total.simulated.as_secs_f64() / took.as_secs_f64();
    println!(
        "{} seeds, {:.2} h of cluster time in {:.1} s: {ratio:.0} times real time on {} threads, {:.0} a thread; \
         {} events, {} requests done, {} unknown, {} terms, {} failed",
        total.seeds,
        total.simulated.as_secs_f64() / 3600.0,
        took.as_secs_f64(),
        arguments.threads,
        ratio / arguments.threads as f64,
        total.events,
        total.ok,
        total.unknown,
        total.elections,
        total.failed.len()
    );
}

/// How many faults of a kind changed or delayed what came of a request.
fn mattered(total: &Total, fault: &str) -> u64 {
    total.counts.get(&format!("mattered: {fault}")).copied().unwrap_or(0)
}

fn print_json(total: &Total, took: Duration) {
    let counts: Vec<String> = total.counts.iter().map(|(what, count)| format!("{what:?}: {count}")).collect();
    println!(
        "{{\"seeds\": {}, \"failed\": {}, \"simulated_seconds\": {}, \"seconds\": {}, \"events\": {}, \"ok\": {}, \
         \"unknown\": {}, \"terms\": {}, \"counts\": {{{}}}}}",
        total.seeds,
        total.failed.len(),
        total.simulated.as_secs(),
        took.as_secs_f64(),
        total.events,
        total.ok,
        total.unknown,
        total.elections,
        counts.join(", ")
    );
}

/// Every planted bug must be found.
fn planted(arguments: &Arguments) -> bool {
    let seeds = if arguments.seeds == 0 { SEEDS_FOR_A_BUG } else { arguments.seeds };
    let mut missed = Vec::new();
    for bug in FOUND_BY_SIMULATION {
        let began = Instant::now();
        let rotate = arguments.options.rotate || is_about_roots(*bug);
        let options = Options { bug: Some(*bug), rotate, ..arguments.options };
        let total = sweep(arguments, options, arguments.start, seeds, false);
        let first = total.failed.iter().min_by_key(|report| report.seed);
        match first.and_then(|report| Some((report, report.failure.as_ref()?))) {
            Some((report, failure)) => println!(
                "{bug:?}: found after {} seeds in {:.1?} by \"{}\"; replay: {}",
                total.seeds,
                began.elapsed(),
                failure.check,
                replay_line(report, &options)
            ),
            None => {
                println!("{bug:?}: NOT FOUND in {} seeds, {:.1?}", total.seeds, began.elapsed());
                missed.push(*bug);
            }
        }
    }
    println!(
        "{} of {} planted bugs found",
        FOUND_BY_SIMULATION.len() - missed.len(),
        FOUND_BY_SIMULATION.len()
    );
    missed.is_empty()
}
