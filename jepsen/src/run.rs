//! The order of a run: cluster, clients, faults, healing, final reads, verdicts.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::checker::{self, Verdict, activity};
use crate::cluster::{Cluster, Directory, Place};
use crate::history::{Function, Recorder};
use crate::nemesis::{self, Fault, Schedule};
use crate::workload::{Stage, append, register, set, watch};

/// Without faults, before the first and after each.
const CALM: Duration = Duration::from_millis(1500);
/// How long the cluster may take to serve and to tell watchers everything, once all is healed.
const RECOVERY: Duration = Duration::from_secs(30);
/// Operations that are done in each fault that leaves a quorum, and after each.
const LEAST: u64 = 3;
/// How often it is looked whether they were.
const LOOK: Duration = Duration::from_millis(20);
/// Watchers of a run.
const WATCHERS: usize = 2;

/// What the clients do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, clap::ValueEnum)]
pub enum Workload {
    /// Reads, writes and compare-and-sets on few keys.
    Register,
    /// Transactions read lists and append to them.
    Append,
    /// Elements are added, and must be there at the end.
    Set,
    /// Watchers must be told every revision once.
    Watch,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary `raft-kv`.
    pub binary: PathBuf,
    /// For data, logs and the history; empty or absent.
    pub dir: PathBuf,
    /// Members.
    pub nodes: usize,
    /// How long faults come, at least; every fault comes once, however long that takes.
    pub duration: Duration,
    /// The faults.
    pub faults: Vec<Fault>,
    /// The workloads, all at the same time.
    pub workloads: Vec<Workload>,
    /// Of all choices that are ours; the processes make their own.
    pub seed: u64,
}

/// Runs it; the verdicts say whether it went well.
///
/// # Errors
/// The run could not be carried through: a member did not start, fell by itself, or did not recover.
pub async fn run(options: &Options) -> Result<Vec<Verdict>, String> {
    let nodes = options.dir.join("nodes");
    let place = Place {
        disks: options.faults.iter().any(|fault| fault.needs_disks()),
        network: options.faults.iter().any(|fault| fault.needs_network()),
    };
    let mut cluster = Cluster::start_in(&options.binary, &nodes, options.nodes, place).await?;
    let directory = cluster.directory()?;
    let recorder = Recorder::new(&options.dir.join("history.jsonl"))?;
    let stage = Stage::new(directory, recorder, options.seed);
    let goal = Arc::new(AtomicI64::new(0));
    let mut clients = JoinSet::new();
    let mut watchers = JoinSet::new();
    let has = |workload| options.workloads.contains(&workload);
    // Watchers need somebody who writes.
    for number in 0..options.nodes * 2 {
        // Every other client knows one member and no other.
        let client = || stage.client(number % options.nodes, number % 2 == 1);
        if has(Workload::Register) {
            clients.spawn(register::run(client()));
        }
        if has(Workload::Append) {
            clients.spawn(append::run(client()));
        }
        if has(Workload::Set) || !has(Workload::Register) {
            clients.spawn(set::run(client()));
        }
    }
    for home in (0..WATCHERS).filter(|_| has(Workload::Watch)) {
        watchers.spawn(watch::run(stage.clone(), home, goal.clone()));
    }
    let broken = break_things(options, &mut cluster, &stage).await;
    stage.over.store(true, Ordering::Relaxed);
    while clients.join_next().await.transpose().map_err(|error| format!("a client: {error}"))?.is_some() {}
    broken?;
    set::read_everywhere(&stage, RECOVERY).await?;
    let last = stage.recorder.events().iter().filter_map(|event| event.revision).max().unwrap_or(1);
    goal.store(last, Ordering::Relaxed);
    let told = async { while watchers.join_next().await.is_some() {} };
    timeout(RECOVERY, told)
        .await
        .map_err(|_| format!("a watcher was not told revision {last} within {} s", RECOVERY.as_secs()))?;
    let fallen = cluster.fallen();
    if !fallen.is_empty() {
        return Err(fallen.join("\n"));
    }
    let history = stage.recorder.events();
    let mut verdicts = checker::all(&history);
    verdicts.push(activity::check(&history, &plan(options)));
    Ok(verdicts)
}

async fn break_things(options: &Options, cluster: &mut Cluster, stage: &Stage) -> Result<(), String> {
    let began = Instant::now();
    sleep(CALM).await;
    if options.faults.is_empty() {
        sleep(options.duration.saturating_sub(CALM)).await;
        return Ok(());
    }
    let mut schedule = Schedule::new(&options.faults, ChaCha8Rng::seed_from_u64(options.seed));
    let mut count = 0;
    while began.elapsed() < options.duration || count < options.faults.len() {
        let (fault, lasts) = schedule.next_fault();
        let leader = leader(cluster, &stage.directory).await;
        let victims = schedule.bring(fault, cluster, leader, &stage.recorder)?;
        let names: Vec<&str> = victims.iter().map(|&index| stage.directory.name(index)).collect();
        eprintln!("jepsen: {:5.1} s  {} {}", began.elapsed().as_secs_f64(), fault.name(), names.join(" "));
        let begun = stage.recorder.operations();
        sleep(lasts).await;
        if fault.leaves_quorum() {
            // A quorum elects somebody while it lasts, however long that takes on a busy machine.
            served(stage, begun + LEAST).await;
        }
        // Waiting for processes blocks; the clients go on.
        tokio::task::block_in_place(|| nemesis::heal(fault, cluster, &victims, &stage.recorder))?;
        if fault.costs_an_id() {
            // Before it votes again nobody else may lose what it has promised.
            let handle = stage.directory.connect(&stage.directory.all_from(0)).await?;
            cluster.await_voters(&handle).await?;
        }
        let healed = stage.recorder.operations();
        sleep(CALM).await;
        served(stage, healed + LEAST).await;
        count += 1;
    }
    Ok(())
}

/// Until so many operations were done, or nothing has come of them for too long: the verdict says so then.
async fn served(stage: &Stage, operations: u64) {
    let began = Instant::now();
    while stage.recorder.operations() < operations && began.elapsed() < RECOVERY {
        sleep(LOOK).await;
    }
}

/// By the members' ids as they are now: who was taken in again has another one.
async fn leader(cluster: &Cluster, directory: &Directory) -> Option<usize> {
    let asked = async {
        let handle = directory.connect(&directory.all_from(0)).await.ok()?;
        let (_, info) = handle.info().await.ok()?;
        let id = info.leader?.to_string();
        cluster.members().iter().position(|member| member.id == id)
    };
    timeout(Duration::from_secs(2), asked).await.ok().flatten()
}

/// Far below what happens on a slow machine, far above nothing.
fn plan(options: &Options) -> activity::Plan {
    let each = options.duration.as_secs() as usize * 3;
    let mut done = vec![(Function::FinalRead, options.nodes)];
    for workload in &options.workloads {
        match workload {
            Workload::Register => {
                done.extend([(Function::Read, each), (Function::Write, each / 2), (Function::Cas, each / 2)]);
            }
            Workload::Append => done.push((Function::Txn, each / 2)),
            Workload::Set => done.push((Function::Add, each)),
            Workload::Watch => done.push((Function::Watch, each)),
        }
    }
    let least = usize::try_from(LEAST).expect("a small number");
    activity::Plan { done, during: least, after: least, faults: options.faults.clone() }
}
