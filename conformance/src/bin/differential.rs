//! `differential`: random requests to etcd and to raft-kv. Ends with one line of counts, and with
//! failure if there was a difference that nothing explains.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use parking_lot::Mutex;
use raft_kv_conformance::differential::{Other, Plan, Story, sequence};
use raft_kv_conformance::shrink::shrink;

/// The same random requests to etcd and to raft-kv.
#[derive(Debug, Parser)]
struct Arguments {
    /// Requests in all.
    #[arg(long, default_value_t = 20_000)]
    requests: usize,
    /// The first sequence's seed; the following ones count on.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Requests in one sequence, which has servers of its own.
    #[arg(long, default_value_t = 1_000)]
    length: usize,
    /// Sequences at the same time.
    #[arg(long, default_value_t = 12)]
    pairs: usize,
    /// The raft-kv binary; without it another etcd, which must show no difference.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Falsify the other side's answer to this step of each sequence: must be found.
    #[arg(long)]
    planted: Option<usize>,
    /// Only sequences with (true) or without (false) users.
    #[arg(long)]
    auth: Option<bool>,
    /// Seconds spent on making each kind of difference small.
    #[arg(long, default_value_t = 0)]
    shrink: u64,
    /// Show one of each kind of the differences that are explained.
    #[arg(long)]
    show_explained: bool,
}

/// How often the run says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Total {
    requests: usize,
    sequences: usize,
    calls: BTreeMap<&'static str, (usize, usize)>,
    refusals: BTreeMap<String, usize>,
    explained: BTreeMap<&'static str, usize>,
    explained_kinds: BTreeMap<(&'static str, String), (usize, String)>,
    spent: BTreeMap<&'static str, Duration>,
    differences: usize,
    kinds: BTreeMap<String, (u64, usize, usize)>,
    shown: BTreeSet<String>,
    errors: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let other = arguments.bin.clone().map_or(Other::Etcd, Other::RaftKv);
    let asked = Arc::new(AtomicUsize::default());
    let plan = Plan { other, planted: arguments.planted, asked: Arc::clone(&asked) };
    let began = Instant::now();
    let total = Arc::new(Mutex::new(Total::default()));
    let sequences = arguments.requests.div_ceil(arguments.length) as u64;
    let next = Arc::new(Mutex::new(arguments.seed));
    let end = arguments.seed + sequences;
    let mut tasks = Vec::new();
    for _ in 0..arguments.pairs.max(1) {
        let (plan, total, next) = (plan.clone(), Arc::clone(&total), Arc::clone(&next));
        let (length, auth, limit) = (arguments.length, arguments.auth, arguments.shrink);
        tasks.push(tokio::spawn(async move {
            loop {
                let seed = {
                    let mut next = next.lock();
                    if *next >= end {
                        return;
                    }
                    *next += 1;
                    *next - 1
                };
                let auth = auth.unwrap_or(seed % 5 == 4);
                match sequence(&plan, seed, auth, length).await {
                    Ok(story) => take(&plan, &total, seed, story, limit).await,
                    Err(why) => total.lock().errors.push(format!("seed {seed}: {why}")),
                }
            }
        }));
    }
    let progress = tokio::spawn(tell(Arc::clone(&total), asked, arguments.requests, began));
    for task in tasks {
        if let Err(error) = task.await {
            total.lock().errors.push(error.to_string());
        }
    }
    progress.abort();
    report(&total.lock(), began.elapsed(), arguments.show_explained)
}

/// Says now and then how far the run is.
async fn tell(total: Arc<Mutex<Total>>, asked: Arc<AtomicUsize>, requests: usize, began: Instant) {
    loop {
        tokio::time::sleep(PROGRESS).await;
        let (asked, seconds) = (asked.load(Ordering::Relaxed), began.elapsed().as_secs_f64());
        let total = total.lock();
        println!(
            "{seconds:5.0} s: {asked} of {requests} requests ({:.0}/s), {} sequences done, {} explained, {} differences, \
             {} errors",
            asked as f64 / seconds,
            total.sequences,
            total.explained.values().sum::<usize>(),
            total.differences,
            total.errors.len()
        );
    }
}

async fn take(plan: &Plan, total: &Mutex<Total>, seed: u64, story: Story, limit: u64) {
    let mut fresh = Vec::new();
    {
        let mut total = total.lock();
        total.requests += story.requests;
        total.sequences += 1;
        for (name, (count, refused)) in &story.calls {
            let sum = total.calls.entry(name).or_default();
            *sum = (sum.0 + count, sum.1 + refused);
        }
        for (text, count) in &story.refusals {
            *total.refusals.entry(text.clone()).or_default() += count;
        }
        for (name, count) in &story.explained {
            *total.explained.entry(name).or_default() += count;
        }
        for (kind, (count, text)) in &story.kinds {
            total.explained_kinds.entry(kind.clone()).or_insert_with(|| (0, text.clone())).0 += count;
        }
        for (phase, spent) in &story.spent {
            *total.spent.entry(phase).or_default() += *spent;
        }
        total.differences += story.differences.len();
        for one in &story.differences {
            let kind = total.kinds.entry(one.kind.clone()).or_insert((seed, one.at, 0));
            kind.2 += 1;
            if total.shown.insert(one.kind.clone()) {
                println!("DIFFERENCE seed {seed} step {} [{}]\n  {}", one.at, one.kind, one.text);
                fresh.push(one.clone());
            }
        }
    }
    for one in fresh.iter().filter(|_| limit > 0) {
        match shrink(&plan.other, &story.steps, one, Duration::from_secs(limit)).await {
            Ok((steps, found)) => {
                println!("SHRUNK seed {seed} [{}] to {} steps:", one.kind, steps.len());
                for step in &steps {
                    println!("  {step:?}");
                }
                println!("  {}", found.text);
            }
            Err(why) => println!("seed {seed}: could not be made smaller: {why}"),
        }
    }
}

fn report(total: &Total, took: Duration, show_explained: bool) -> ExitCode {
    println!("\ncalls (sent, refused by etcd):");
    for (name, (count, refused)) in &total.calls {
        println!("  {name:22} {count:7} {refused:7}");
    }
    println!("etcd's refusals:");
    for (text, count) in &total.refusals {
        println!("  {count:7} {text}");
    }
    for (name, count) in &total.explained {
        println!("explained: {name} {count}");
        let kinds = total.explained_kinds.iter().filter(|((of, _), _)| show_explained && of == name);
        for ((_, kind), (count, text)) in kinds {
            println!("  {count:7} {kind}\n    {text}");
        }
    }
    for (phase, spent) in &total.spent {
        println!("time in all sequences: {phase} {:.0} s", spent.as_secs_f64());
    }
    for (kind, (seed, at, count)) in &total.kinds {
        println!("UNEXPLAINED {count:5} first at seed {seed} step {at}: {kind}");
    }
    for error in &total.errors {
        println!("ERROR {error}");
    }
    let seconds = took.as_secs_f64();
    println!(
        "{} requests in {} sequences, {:.0} s ({:.0}/s), {} explained, {} differences",
        total.requests,
        total.sequences,
        seconds,
        total.requests as f64 / seconds,
        total.explained.values().sum::<usize>(),
        total.differences
    );
    if total.differences == 0 && total.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
