//! Follows everything from the first revision; when the watch breaks, goes on behind the last
//! revision it was told, at the next member.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use raft_kv::client::Handle;
use raft_kv::types::{Change, KeyRange, WatchBatch, WatchRequest};
use tokio::time::{sleep, timeout};

use super::Stage;
use crate::history::{Event, Function, Kind};

/// A watcher that is told nothing for this long starts anew: its member may stand still.
const SILENCE: Duration = Duration::from_secs(2);
/// The first revision that a key can have.
const FIRST: i64 = 1;

/// Watches until the run is over and everything up to `goal` (once that is not 0) was told.
pub async fn run(stage: Stage, home: usize, goal: Arc<AtomicI64>) {
    let process = stage.process();
    let (mut next, mut turn) = (FIRST, home);
    loop {
        let member = turn % stage.directory.len();
        turn += 1;
        let node = Some(stage.directory.name(member).to_owned());
        let event = Event { process, f: Function::Watch, node, ..Event::default() };
        let connected = timeout(SILENCE, stage.directory.connect(&[member])).await;
        if let Ok(Ok(handle)) = connected {
            stage.recorder.record(Event { revision: Some(next), ..event.clone() });
            let error = follow(&stage, &handle, &event, &mut next, &goal).await;
            stage.recorder.record(Event { kind: Kind::Info, error: Some(error), ..event });
        }
        if reached(&goal, next) {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn reached(goal: &AtomicI64, next: i64) -> bool {
    let goal = goal.load(Ordering::Relaxed);
    goal != 0 && next > goal
}

/// One watch until it breaks, falls silent or has reached the goal; says which.
async fn follow(stage: &Stage, handle: &Handle, event: &Event, next: &mut i64, goal: &AtomicI64) -> String {
    let request = WatchRequest { range: KeyRange::all(), start_revision: *next, ..WatchRequest::default() };
    let handle = handle.clone().with_patience(SILENCE);
    let mut watch = match handle.watch(request).await {
        Ok(watch) => watch,
        Err(error) => return error.to_string(),
    };
    loop {
        if reached(goal, *next) {
            return "the end".to_owned();
        }
        match timeout(SILENCE, watch.next()).await {
            Ok(Ok(Some(WatchBatch::Changes(changes)))) => {
                for change in changes {
                    *next = change.revision + 1;
                    tell(stage, event, &change);
                }
            }
            Ok(Ok(Some(WatchBatch::Part(change)))) => tell(stage, event, &change),
            Ok(Ok(Some(WatchBatch::Progress(_)))) => {}
            Ok(Ok(Some(WatchBatch::Compacted(revision)))) => return format!("compacted at {revision}"),
            Ok(Ok(None)) => return "ended".to_owned(),
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "silence".to_owned(),
        }
    }
}

fn tell(stage: &Stage, event: &Event, change: &Change) {
    for one in &change.events {
        stage.recorder.record(Event {
            kind: Kind::Ok,
            key: Some(String::from_utf8_lossy(&one.kv.key).into_owned()),
            value: Some(String::from_utf8_lossy(&one.kv.value).into_owned()),
            found_at: Some(one.kv.mod_revision),
            revision: Some(change.revision),
            ..event.clone()
        });
    }
}
