//! When this member's disk is read again, and what happens when something on it has rotted: the state is
//! condemned, so that nothing more is served from it, and the guard in `repair` ends the node.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::api::ScrubStatus;
use super::config::Tuning;
use super::local::Local;
use super::trust::authority::now;
use crate::error::StorageFailed;
use crate::storage::check::Problem;
use crate::storage::scrub::{Round, Shared};

/// The longest wait for the first round.
const FIRST: Duration = Duration::from_secs(60);
/// The shortest between two.
const SHORTEST: Duration = Duration::from_millis(100);

/// What is known of the rounds, shared with who shows it.
#[derive(Default)]
pub(super) struct Scrubs(Mutex<ScrubStatus>);

impl Scrubs {
    pub(super) fn status(&self) -> ScrubStatus {
        *self.0.lock()
    }
}

/// Ends a round that nobody waits for any more.
struct StopOnDrop(Arc<Shared>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Release);
    }
}

/// Reads the whole disk again and again. Runs until the node ends, or damage is found.
pub(super) async fn keep(local: Arc<Local>, dir: PathBuf, tuning: Tuning) {
    if tuning.scrub_bytes_per_second == 0 {
        return;
    }
    let mut pause = FIRST.min(tuning.scrub_every);
    loop {
        tokio::time::sleep(pause.max(SHORTEST)).await;
        let began = Instant::now();
        match round(&local, &dir, &tuning).await {
            Ok(None) => {}
            Ok(Some(damage)) | Err(damage) => return local.shell.state().condemn(damage),
        }
        pause = tuning.scrub_every.saturating_sub(began.elapsed());
    }
}

/// One round. Gives the first damage, where there is any.
async fn round(local: &Local, dir: &Path, tuning: &Tuning) -> Result<Option<StorageFailed>, StorageFailed> {
    let (state, tables) = local.shell.state().tables()?;
    let log = dir.join("log");
    // A large disk is read as fast as it takes to come round in time, and a little faster.
    let total = local.shell.state().stats().disk + local.shell.log_stats().bytes;
    let needed = total / tuning.scrub_every.as_secs().max(1) * 5 / 4;
    let rate = tuning.scrub_bytes_per_second.max(needed);
    let shared = Arc::new(Shared::default());
    let stop = StopOnDrop(shared.clone());
    let round = Round { state, tables, log, rate };
    let running = shared.clone();
    let Ok(Some(mut found)) = tokio::task::spawn_blocking(move || round.run(&running)).await else {
        return Ok(None);
    };
    drop(stop);
    // What was given up while it was read is nothing to go by.
    let (_, tables) = local.shell.state().tables()?;
    let is_table = |path: &Path| path.extension().is_some_and(|extension| extension == "sst");
    found.retain(|problem| {
        let path = Path::new(&problem.file);
        !is_table(path) || tables.iter().any(|table| table == path)
    });
    let mut status = local.scrubs.0.lock();
    status.rounds += 1;
    status.ended = now();
    status.bytes = shared.bytes.load(Ordering::Relaxed);
    status.problems += found.len() as u64;
    for Problem { file, offset, what, .. } in &found {
        tracing::error!(file, offset, what, "damaged");
    }
    Ok(found.into_iter().next().map(StorageFailed::from))
}
