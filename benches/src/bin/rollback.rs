//! `rollback`: what a rollback point, its difference and a rollback take in one member's state on
//! disk, by how many keys are stored and how many changed since: without a network and a log, so that
//! nothing but the state machine and its store is measured.

use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use raft_kv::codec::Wire;
use raft_kv::machine::{Answer, Command, Machine, Proposal, Store, read};
use raft_kv::storage::state::{State, StateOptions};
use raft_kv::types::{
    Committed, Payload, PointChange, PointDiffRequest, PointReply, PutRequest, RequestId, RolledBack,
};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde_json::json;

/// Puts in one entry, as a busy leader gathers them.
const BATCH: usize = 256;

/// Measures rollbacks of several sizes in a store of so many keys
#[derive(Parser)]
struct Args {
    /// Keys stored
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Bytes of each value
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// Keys changed before each rollback
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000")]
    changed: Vec<u64>,
}

struct Member {
    machine: Machine<State>,
    /// What values are made of: they must not compress better than real ones.
    chance: StdRng,
    value: Vec<u8>,
}

fn main() -> Result<(), String> {
    let args = Args::parse();
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let state = State::open(dir.path(), StateOptions::default()).map_err(|error| error.to_string())?;
    Machine::create(&state, &raft_kv_benches::data::genesis()).map_err(|error| error.to_string())?;
    let machine = Machine::open(state).map_err(|error| error.to_string())?.ok_or("there is no state")?;
    let mut member = Member { machine, chance: StdRng::seed_from_u64(1), value: vec![0; args.value_bytes] };
    let took = member.put(0..args.keys)?;
    let load = took.as_secs_f64();
    let mut rows = Vec::new();
    for (round, changed) in args.changed.into_iter().enumerate() {
        let name = format!("p{round}");
        let (_, created) = member.point(PointChange::Create {
            name: name.clone(),
            at: None,
            expires: None,
            author: String::new(),
            comment: String::new(),
            now: 1,
        })?;
        // Spread over all keys.
        let step = (args.keys / changed.max(1)).max(1);
        let put = member.put((0..changed).map(|at| at * step))?;
        let (differing, diff) = member.diff(&name)?;
        let back = |point: &str| PointChange::Rollback {
            point: point.into(),
            prefix: None,
            author: String::new(),
            now: 2,
        };
        let (done, rolled_back) = member.rollback(back(&name))?;
        let undo = done.undo.ok_or("nothing differed")?;
        let (undone, undoing) = member.rollback(back(&undo))?;
        if (differing, done.events, undone.events) != (changed, changed, changed) {
            return Err(format!("{differing} differ, {} and {} events", done.events, undone.events));
        }
        rows.push(json!({
            "changed": changed,
            "create_point_ms": millis(created),
            "put_changes_ms": millis(put),
            "diff_counts_ms": millis(diff),
            "rollback_ms": millis(rolled_back),
            "undo_ms": millis(undoing),
            "resident_bytes": raft_kv_benches::host::resident_bytes(std::process::id()),
        }));
    }
    println!(
        "{:#}",
        json!({ "keys": args.keys, "value_bytes": args.value_bytes, "load_seconds": load, "rounds": rows })
    );
    Ok(())
}

fn millis(took: Duration) -> f64 {
    (took.as_secs_f64() * 100_000.0).round() / 100.0
}

impl Member {
    fn apply(&mut self, commands: Vec<Command>) -> Result<Vec<Answer>, String> {
        let request = RequestId::default();
        let proposals: Vec<Proposal> =
            commands.into_iter().map(|command| Proposal { request, once: None, command }).collect();
        let index = self.machine.applied().index + 1;
        let entry = Committed { index, term: 1, payload: Payload::Proposals(proposals.to_bytes()) };
        let applied = self.machine.apply(vec![entry]).map_err(|error| error.to_string())?;
        applied
            .outcomes
            .into_iter()
            .map(|outcome| outcome.result.map_err(|error| error.to_string()))
            .collect()
    }

    /// Puts new values; with how long it took.
    fn put(&mut self, keys: impl Iterator<Item = u64>) -> Result<Duration, String> {
        let began = Instant::now();
        let mut commands = Vec::with_capacity(BATCH);
        for key in keys {
            self.chance.fill_bytes(&mut self.value);
            commands.push(Command::Put(PutRequest {
                key: format!("key/{key:012}").into(),
                value: Bytes::copy_from_slice(&self.value),
                ..PutRequest::default()
            }));
            if commands.len() == BATCH {
                self.apply(std::mem::take(&mut commands))?;
            }
        }
        if !commands.is_empty() {
            self.apply(commands)?;
        }
        Ok(began.elapsed())
    }

    fn point(&mut self, change: PointChange) -> Result<(PointReply, Duration), String> {
        let began = Instant::now();
        match self.apply(vec![Command::Point(change)])?.pop() {
            Some(Answer::Point(reply)) => Ok((reply, began.elapsed())),
            other => Err(format!("a change of points was answered {other:?}")),
        }
    }

    fn rollback(&mut self, change: PointChange) -> Result<(RolledBack, Duration), String> {
        match self.point(change)? {
            (PointReply::RolledBack(done), took) => Ok((done, took)),
            (other, _) => Err(format!("a rollback was answered {other:?}")),
        }
    }

    fn diff(&self, point: &str) -> Result<(u64, Duration), String> {
        let began = Instant::now();
        let mut request =
            PointDiffRequest { point: point.into(), count_only: true, ..PointDiffRequest::default() };
        let mut differing = 0;
        loop {
            let page = self.machine.store().view(|view| read::point_diff(view, &request));
            let page = page.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            differing += page.counts.differing();
            let Some(next) = page.next else { return Ok((differing, began.elapsed())) };
            (request.after, request.revision) = (Some(next), page.to);
        }
    }
}
