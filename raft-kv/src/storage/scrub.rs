//! Reading everything again while a member runs, slowly, to find what has rotted before somebody needs it.
//!
//! It knows files alone and keeps nothing open but the one it reads. What it calls damaged it has looked at
//! twice, with what is needed now in view: files come and go under a running member.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::check::{Cut, Harm, Problem, check_files, check_log, check_manifest};

/// The longest sleep without a look at whether it is to end.
const NAP: Duration = Duration::from_millis(50);
/// Between two looks at what seems damaged.
const SECOND_LOOK: Duration = Duration::from_millis(200);
/// Looks that must agree.
const LOOKS: usize = 3;

/// What is to be read, and how fast.
#[derive(Clone, Debug)]
pub struct Round {
    /// The folder of the database in use.
    pub state: PathBuf,
    /// Its tables.
    pub tables: Vec<PathBuf>,
    /// The raft log's folder.
    pub log: PathBuf,
    /// Bytes a second.
    pub rate: u64,
}

/// What a round has in common with who watches it.
#[derive(Debug, Default)]
pub struct Shared {
    /// Whether the round is to end now.
    pub stop: AtomicBool,
    /// Bytes read so far.
    pub bytes: AtomicU64,
}

impl Round {
    /// Reads all of it. Blocks for as long as the rate says. Gives what was damaged at the first and at
    /// later looks, at most one problem a table; nothing where it was stopped.
    pub fn run(&self, shared: &Shared) -> Option<Vec<Problem>> {
        let mut found = Vec::new();
        for table in &self.tables {
            found.extend(self.sure(shared, |pace| check_files(std::slice::from_ref(table), pace))?);
        }
        found.extend(self.sure(shared, |pace| Ok(check_manifest(&self.state, pace)?.into_iter().collect()))?);
        found.extend(self.sure(shared, |pace| Ok(check_log(&self.log, true, pace)?.0))?);
        found.retain(|problem| problem.harm == Harm::Damage);
        Some(found)
    }

    /// What several looks find alike.
    fn sure(
        &self,
        shared: &Shared,
        mut look: impl FnMut(&mut dyn FnMut(u64) -> bool) -> Result<Vec<Problem>, Cut>,
    ) -> Option<Vec<Problem>> {
        let mut agreed: Option<Vec<Problem>> = None;
        for turn in 0..LOOKS {
            let mut pace = |bytes| self.pace(shared, bytes);
            let found = match look(&mut pace) {
                Ok(found) => found,
                Err(Cut::Stopped) => return None,
                // A folder that is replaced at this moment.
                Err(Cut::Failed(_)) => Vec::new(),
            };
            let both = match agreed {
                None => found,
                Some(before) => before.into_iter().filter(|problem| found.contains(problem)).collect(),
            };
            if both.is_empty() {
                return Some(both);
            }
            agreed = Some(both);
            if turn + 1 < LOOKS && !nap(shared, SECOND_LOOK) {
                return None;
            }
        }
        agreed
    }

    fn pace(&self, shared: &Shared, bytes: u64) -> bool {
        shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        nap(shared, Duration::from_secs_f64(bytes as f64 / self.rate.max(1) as f64))
    }
}

/// Sleeps; says whether it is to go on.
fn nap(shared: &Shared, pause: Duration) -> bool {
    let end = Instant::now() + pause;
    loop {
        if shared.stop.load(Ordering::Acquire) {
            return false;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(NAP));
    }
}
