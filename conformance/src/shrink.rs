//! A difference in few steps: parts of the sequence are left out, on fresh servers each time, as
//! long as a difference of the same kind stays. Steps keep the revisions they were made with, so a
//! part that is needed only for those can't go; what is left is small enough to read.

use std::time::{Duration, Instant};

use crate::ask::Step;
use crate::differential::{Difference, Other, replay};

/// The smallest sequence found within `limit`, with the difference that it shows.
///
/// # Errors
/// A server does not start.
pub async fn shrink(
    other: &Other,
    steps: &[Step],
    difference: &Difference,
    limit: Duration,
) -> Result<(Vec<Step>, Difference), String> {
    let began = Instant::now();
    let mut best: Vec<Step> = steps[..=difference.at.min(steps.len() - 1)].to_vec();
    let mut found = difference.clone();
    let mut part = best.len().div_ceil(2);
    while part > 0 {
        let mut from = 0;
        let mut changed = false;
        while from < best.len() && began.elapsed() < limit {
            let to = (from + part).min(best.len());
            let mut tried = best[..from].to_vec();
            tried.extend_from_slice(&best[to..]);
            let story = replay(other, &tried).await?;
            match story.differences.into_iter().find(|one| one.kind == difference.kind) {
                Some(one) => {
                    tried.truncate(one.at + 1);
                    (best, found, changed) = (tried, one, true);
                }
                None => from = to,
            }
        }
        if began.elapsed() >= limit {
            break;
        }
        part = if part == 1 && changed { 1 } else { part / 2 };
    }
    Ok((best, found))
}
