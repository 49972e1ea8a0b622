//! The leases of a move: granted here with the ids and the full times they have in the source, and
//! kept alive here for as long as they live there. Time runs in both clusters, and a key must not
//! end here because the move took long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use raft_kv::client::Handle;
use raft_kv::error::{Error, Refusal};
use raft_kv::limits::MIN_LEASE_TTL;
use raft_kv_server::foreign::Foreign;
use tokio::task::JoinHandle;

use super::patiently;
use super::progress::Progress;
use super::reader::source_failure;
use crate::failure::{Failure, Kind};

/// Questions under way at once.
const AT_ONCE: usize = 32;
/// What a lease gets that has ended in the source while its keys are still to come, in seconds,
/// from the end of the move on: the source's own delete follows, or the keys end here by themselves.
const ENDED_TTL: i64 = 60;
/// How often it is looked which leases are due.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Clone, Copy)]
struct Kept {
    ttl: i64,
    due: Instant,
}

/// The leases that this run keeps.
pub struct Leases {
    source: Foreign,
    target: Handle,
    kept: Arc<Mutex<BTreeMap<i64, Kept>>>,
    lost: Arc<AtomicBool>,
    keeper: JoinHandle<()>,
}

impl Leases {
    /// None yet; those that come are kept alive from then on.
    pub fn new(source: Foreign, target: Handle) -> Self {
        let kept: Arc<Mutex<BTreeMap<i64, Kept>>> = Arc::default();
        let lost = Arc::new(AtomicBool::new(false));
        let keeper = tokio::spawn(keep(target.clone(), kept.clone(), lost.clone()));
        Self { source, target, kept, lost, keeper }
    }

    /// Whether a lease ended here before its time since the last call: its keys may be gone.
    pub fn take_lost(&self) -> bool {
        self.lost.swap(false, Ordering::Relaxed)
    }

    /// Grants what the source has and ours has not.
    pub async fn copy_all(&self, progress: &mut Progress) -> Result<(), Failure> {
        let ids = self.source.leases().await.map_err(|status| source_failure(&status))?;
        let total = ids.len() as u64;
        let mut done = 0;
        let mut granting = stream::iter(ids.into_iter().map(|id| self.ensure(id))).buffer_unordered(AT_ONCE);
        while granting.try_next().await?.is_some() {
            done += 1;
            progress.count("leases", done, Some(total));
        }
        Ok(())
    }

    /// Grants a lease here as the source has it, where ours has not.
    pub async fn ensure(&self, id: i64) -> Result<(), Failure> {
        let found = self.source.time_to_live(id).await.map_err(|status| source_failure(&status))?;
        let ttl = if found.ttl < 0 { ENDED_TTL } else { found.granted_ttl.max(MIN_LEASE_TTL) };
        if id < 1 {
            let why = format!("the source has a lease with the id {id}; ids here are positive");
            return Err(Failure::new(Kind::Refused, why));
        }
        match patiently(|| self.target.lease_grant(id, ttl)).await {
            Ok(_) | Err(Error::Refused(Refusal::LeaseExists { .. })) => {}
            Err(error) => return Err(error.into()),
        }
        // One that has ended there is kept as well: its keys are part of the copied revision and
        // must be here when that is compared, however long copying takes.
        self.kept.lock().insert(id, Kept { ttl, due: Instant::now() });
        Ok(())
    }

    /// Grants what began in the source, and ends what ended there once no key here hangs on it.
    pub async fn level(&self) -> Result<(), Failure> {
        let theirs = self.source.leases().await.map_err(|status| source_failure(&status))?;
        let (_, ours) = patiently(|| self.target.leases()).await?;
        let ours: BTreeMap<i64, i64> = ours.into_iter().collect();
        let new: Vec<i64> = theirs.iter().copied().filter(|id| !ours.contains_key(id)).collect();
        for id in new {
            self.ensure(id).await?;
        }
        let theirs: std::collections::BTreeSet<i64> = theirs.into_iter().collect();
        for id in ours.into_keys().filter(|id| !theirs.contains(id)) {
            // The asked member's list may be behind.
            let found = self.source.time_to_live(id).await.map_err(|status| source_failure(&status))?;
            let (_, held) = patiently(|| self.target.lease_time_to_live(id, true)).await?;
            if found.ttl < 0 && held.keys.is_empty() {
                self.kept.lock().remove(&id);
                match patiently(|| self.target.lease_revoke(id)).await {
                    Ok(_) | Err(Error::Refused(Refusal::LeaseNotFound { .. })) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Keeps nothing alive any more. Answers how many leases were kept.
    pub fn stop(&self) -> usize {
        self.keeper.abort();
        self.kept.lock().len()
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Renews each lease three times in its time.
async fn keep(target: Handle, kept: Arc<Mutex<BTreeMap<i64, Kept>>>, lost: Arc<AtomicBool>) {
    loop {
        let now = Instant::now();
        let due: Vec<(i64, i64)> = kept
            .lock()
            .iter()
            .filter(|(_, kept)| kept.due <= now)
            .map(|(id, kept)| (*id, kept.ttl))
            .collect();
        let renew = |(id, ttl): (i64, i64)| {
            let (target, kept, lost) = (&target, &kept, &lost);
            async move {
                match target.lease_keep_alive(id).await {
                    Ok((_, status)) if status.ttl >= 0 => {
                        let third = Duration::from_millis(ttl.unsigned_abs().saturating_mul(1000) / 3);
                        let third = third.min(Duration::from_secs(3600));
                        if let Some(kept) = kept.lock().get_mut(&id) {
                            kept.due = Instant::now() + third;
                        }
                    }
                    Ok(_) | Err(Error::Refused(_)) => {
                        if kept.lock().remove(&id).is_some() {
                            tracing::warn!("lease {id:x} ended here before its time");
                            lost.store(true, Ordering::Relaxed);
                        }
                    }
                    // It stays due.
                    Err(_) => {}
                }
            }
        };
        stream::iter(due.into_iter().map(renew)).buffer_unordered(AT_ONCE).collect::<()>().await;
        tokio::time::sleep(LOOK).await;
    }
}
