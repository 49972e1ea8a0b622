//! Callers that put values as fast as they are answered, and what they saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use raft_kv::client::Handle;
use tokio::task::JoinSet;

use crate::data;

/// Keys of each caller, written in turn.
const KEYS: u64 = 1000;

/// What callers saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Microseconds of each put that was done, ascending.
    pub latencies: Vec<u32>,
    /// Puts that were not done, or of unknown outcome.
    pub errors: u64,
    /// The time all of it took.
    pub took: Duration,
}

impl Seen {
    /// Puts done.
    pub fn done(&self) -> u64 {
        self.latencies.len() as u64
    }

    /// Puts done in a second.
    pub fn rate(&self) -> f64 {
        self.done() as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// The latency in milliseconds that this share of the puts (0 to 1) did not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = (self.latencies.len() as f64 * share).ceil() as usize;
        let micros = self.latencies.get(at.saturating_sub(1).min(last));
        f64::from(micros.copied().unwrap_or(0)) / 1000.0
    }
}

/// `callers` at a time put values for `during`.
///
/// # Panics
/// If a caller panics.
pub async fn put_for(handle: &Handle, callers: u64, during: Duration) -> Seen {
    let over = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for caller in 0..callers {
        let (handle, over) = (handle.clone(), over.clone());
        tasks.spawn(async move {
            let mut seen = Seen::default();
            for number in 0.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                put(&handle, format!("load/{caller:05}/{:05}", number % KEYS), &mut seen).await;
            }
            seen
        });
    }
    tokio::time::sleep(during).await;
    over.store(true, Ordering::Relaxed);
    gather(tasks, began).await
}

/// `callers` at a time put `keys` keys, each once; what fails is tried again.
///
/// # Panics
/// If a caller panics.
pub async fn put_keys(handle: &Handle, callers: u64, keys: u64) -> Seen {
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (handle, next) = (handle.clone(), next.clone());
        tasks.spawn(async move {
            let mut seen = Seen::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= keys {
                    return seen;
                }
                while !put(&handle, format!("key/{number:012}"), &mut seen).await {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        });
    }
    gather(tasks, began).await
}

async fn put(handle: &Handle, key: String, seen: &mut Seen) -> bool {
    let began = Instant::now();
    let done = handle.put(data::put(key)).await.is_ok();
    if done {
        seen.latencies.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
    } else {
        seen.errors += 1;
    }
    done
}

async fn gather(mut tasks: JoinSet<Seen>, began: Instant) -> Seen {
    let mut all = Seen::default();
    while let Some(seen) = tasks.join_next().await {
        let seen = seen.expect("a caller does not panic");
        all.latencies.extend(seen.latencies);
        all.errors += seen.errors;
    }
    all.took = began.elapsed();
    all.latencies.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let seen = Seen { latencies: (1..=100).map(|n| n * 1000).collect(), ..Seen::default() };
        let check = |share: f64, expect: f64| assert_eq!(seen.quantile(share), expect);
        check(0.5, 50.0);
        check(0.99, 99.0);
        check(1.0, 100.0);
        check(0.0, 1.0);
        assert_eq!(Seen::default().quantile(0.5), 0.0);
    }
}
