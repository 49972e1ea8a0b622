//! Crashes at every operation, chance runs against the model, and the bugs that these must find.

use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

use super::super::*;
use super::model::*;
use crate::planted::{self, Bug};

/// A run that touches everything: several segments, oversized records, cuts, a snapshot.
fn script() -> Vec<Op> {
    use Op::*;
    let mut script = vec![Append(vec![10, 200, 3]), Write(1), Vote(2), Write(1)];
    for round in 0..6_u8 {
        script.extend([
            Append(vec![300, 250, 17, 100]),
            Append(vec![90]),
            Vote(round),
            Write(3),
            Append(vec![900, 900]),
            Write(1),
            Overwrite { back: 3, sizes: vec![40, 50] },
            Append(vec![700]),
            Write(2),
            Prepare,
            Commit(200),
            Append(vec![1200]),
            Write(2),
            Cut(5 + round),
            Write(2),
        ]);
    }
    script.extend([
        Append(vec![5000]),
        Append(vec![20]),
        Write(2),
        Snapshot(3),
        Write(1),
        Append(vec![10, 3500]),
        Write(1),
        Reopen,
        Append(vec![30]),
        Write(1),
    ]);
    script
}

// Runs `ops` until the power goes, crashes, recovers (with a second crash on the way), goes on.
fn crash_at(seed: u64, at: u64, again: u64) -> Result<u64, String> {
    let sim = disk(seed);
    sim.cut_power_after(at);
    let mut runner = match Runner::new(sim.clone()) {
        Ok(runner) => runner,
        Err(_) => {
            let sim = sim.crash();
            // The log is there whole, or not at all.
            if Log::find(&sim).map_err(|failed| failed.to_string())?.is_none() {
                Runner::new(sim).map_err(|failed| failed.to_string())?;
            } else {
                Log::open(sim, OPTIONS, IDENTITY, Some(boundary(1, 1)))
                    .map_err(|failed| failed.to_string())?;
            }
            return Ok(1);
        }
    };
    for op in script() {
        let done = runner.run(&op);
        match done {
            Ok(check) => check?,
            Err(_) if runner.disk.is_off() => break,
            Err(failed) => return Err(failed.to_string()),
        }
    }
    let mut states = 1;
    let disk = runner.disk.crash();
    disk.cut_power_after(again);
    runner.disk = disk.clone();
    match Log::open(disk.clone(), OPTIONS, IDENTITY, Some(runner.state.clone())) {
        Err(failed) if !disk.is_off() => return Err(failed.to_string()),
        Ok(Opened::Behind { marker, end }) => return Err(format!("behind {marker:?} {end:?}")),
        _ => states += 1,
    }
    runner.crash().map_err(|failed| failed.to_string())??;
    for op in [Op::Append(vec![60, 70]), Op::Write(1), Op::Append(vec![80]), Op::Crash, Op::Append(vec![5])] {
        runner.run(&op).map_err(|failed| failed.to_string())??;
    }
    Ok(states + 1)
}

fn all_crash_points(seeds: u64) -> Result<u64, String> {
    let sim = disk(0);
    let mut runner = Runner::new(sim).expect("a healthy disk");
    for op in script() {
        runner.run(&op).expect("a healthy disk").expect("the same as the model");
    }
    let operations = runner.disk.counts().operations;
    let mut states = 0;
    for at in 0..=operations {
        for seed in 0..seeds {
            let again = (at * 7 + seed * 3) % 14;
            states += crash_at(at * 1000 + seed, at, again)
                .map_err(|why| format!("operation {at}, seed {seed}: {why}"))?;
        }
    }
    Ok(states)
}

#[test]
fn a_crash_at_any_operation_loses_nothing_durable() {
    let states = all_crash_points(6).expect("every crash is recovered from");
    println!("{states} states after a crash");
    assert!(states >= 2000, "{states} states");
}

fn chance_run(ops: &[Op], seed: u64) -> Result<(), TestCaseError> {
    let mut runner = Runner::new(disk(seed)).expect("a healthy disk");
    for op in ops {
        let check = runner.run(op).map_err(|failed| TestCaseError::fail(failed.to_string()))?;
        check.map_err(TestCaseError::fail)?;
    }
    let last = runner.crash().map_err(|failed| TestCaseError::fail(failed.to_string()))?;
    last.map_err(TestCaseError::fail)
}

fn chance(cases: u32) -> Result<(), String> {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(
        config.clone(),
        proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm),
    );
    runner
        .run(&(proptest::collection::vec(op(), 1..80), any::<u64>()), |(ops, seed)| chance_run(&ops, seed))
        .map_err(|error| error.to_string())
}

#[test]
fn chance_runs_equal_the_model() {
    chance(1000).unwrap_or_else(|why| panic!("{why}"));
}

#[test]
fn planted_bugs_are_found_by_crashes() {
    for bug in
        [Bug::SkipFsync, Bug::MarkerBeforeLog, Bug::RecycleUnstamped, Bug::SkipFolderSync, Bug::RecycleEarly]
    {
        let found = planted::with(Some(bug), || {
            std::panic::catch_unwind(|| all_crash_points(2)).map_or(true, |result| result.is_err())
        });
        assert!(found, "{bug:?} is not found");
    }
}
