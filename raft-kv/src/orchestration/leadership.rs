//! A manager's loops run at the member that leads, and nowhere else.
//!
//! Two members can both believe that they lead, for as long as the older one has not heard of the
//! newer. So a duty begins with a [`Fence`] taken in its term, and what it writes with that fence is
//! refused as soon as a later leader has taken one. It must never go on after its member has heard
//! that it does not lead, and must never rest on that for what is written.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;

use super::Fence;
use super::store::{Clock, Store};
use crate::planted;
use crate::raft::Leadership;
use crate::types::Term;

/// Between attempts to take a fence, and between a duty's end and its next run in the same term.
const PAUSE: Duration = Duration::from_millis(200);

/// What a leading member's loops are started with.
#[derive(Clone, Copy, Debug)]
pub struct Duty {
    /// The term that this member leads in.
    pub term: Term,
    /// What its writes are to be fenced with: [`Orchestrator::fenced`](super::Orchestrator::fenced).
    pub fence: Fence,
}

/// Runs `duties` for as long as this member leads and is ready, with the term and a fence taken in it;
/// drops what it gave as soon as `leadership` says otherwise, and only then begins anew. Returns when
/// the sender of `leadership` is gone, as it is once the node stops.
///
/// Dropping is the end: what `duties` gives must not spawn what outlives it. Writes that were already
/// handed over are decided by the fence. A duty that ends by itself, well or not, is run again in the
/// same term after a pause; one that has nothing left to do waits for ever.
pub async fn on_leadership<S, C, F, Fut>(
    mut leadership: watch::Receiver<Leadership>,
    store: S,
    clock: C,
    duties: F,
) where
    S: Store,
    C: Clock,
    F: Fn(Duty) -> Fut,
    Fut: Future,
{
    loop {
        let term = match leadership.wait_for(|now| now.ready).await {
            Ok(now) => now.term,
            Err(_) => return,
        };
        let over = async {
            let ended = |now: &Leadership| {
                let led = now.ready || planted!(DutyOutlivesTerm);
                !led || now.term != term && now.ready
            };
            leadership.wait_for(ended).await.is_err()
        };
        let stopped = tokio::select! {
            biased;
            stopped = over => stopped,
            never = lead(&store, &clock, term, &duties) => match never {},
        };
        if stopped {
            return;
        }
    }
}

/// Takes the fence and does the duties. Whoever cannot take it asks again: either this member will
/// hear that it does not lead, or it will get it.
async fn lead<S, C, F, Fut>(store: &S, clock: &C, term: Term, duties: &F) -> Infallible
where
    S: Store,
    C: Clock,
    F: Fn(Duty) -> Fut,
    Fut: Future,
{
    loop {
        if let Ok(fence) = Fence::take(store, term).await {
            duties(Duty { term, fence }).await;
        }
        clock.sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;

    use super::super::session::tests::world::{TestClock, World};
    use super::*;
    use crate::raft::Role;
    use crate::types::{KeyRange, PutRequest, RangeRequest, TxnOp, TxnRequest};

    fn says(term: Term, ready: bool) -> Leadership {
        let role = if ready { Role::Leader } else { Role::Follower };
        Leadership { term, role, leader: None, ready }
    }

    /// How many duties run at a member.
    #[derive(Clone, Default)]
    struct Running(Arc<AtomicUsize>);

    struct Run(Running);

    impl Running {
        fn begin(&self) -> Run {
            self.0.fetch_add(1, Ordering::SeqCst);
            Run(self.clone())
        }

        fn count(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    impl Drop for Run {
        fn drop(&mut self) {
            self.0.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    fn in_test_time<R>(run: impl Future<Output = R>) -> R {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().unwrap().block_on(run)
    }

    /// What runs after each word about the leadership.
    async fn running_after(words: &[Leadership]) -> Vec<usize> {
        let (sender, receiver) = watch::channel(says(0, false));
        let running = Running::default();
        let begin = running.clone();
        let duties = on_leadership(receiver, World::new(), TestClock::new(), move |_| {
            let run = begin.begin();
            async move {
                std::future::pending::<()>().await;
                drop(run);
            }
        });
        let task = tokio::spawn(duties);
        let mut seen = Vec::new();
        for word in words {
            sender.send_replace(*word);
            settle().await;
            seen.push(running.count());
        }
        drop(sender);
        task.await.unwrap();
        assert_eq!(running.count(), 0, "a duty is left behind a node that has stopped");
        seen
    }

    #[test]
    fn a_duty_runs_while_its_member_leads_and_is_ready() {
        let words =
            [says(1, false), says(2, true), says(3, false), says(4, true), says(5, true), says(5, false)];
        assert_eq!(in_test_time(running_after(&words)), [0, 1, 0, 1, 1, 0]);
    }

    #[test]
    #[cfg(feature = "sim")]
    fn a_planted_duty_that_outlives_its_term_is_caught() {
        let words = [says(2, true), says(3, false)];
        let bug = Some(planted::Bug::DutyOutlivesTerm);
        assert_eq!(planted::with(bug, || in_test_time(running_after(&words))), [1, 1]);
    }

    #[test]
    fn a_duty_that_ends_is_run_again_in_its_term() {
        in_test_time(async {
            let (sender, receiver) = watch::channel(says(3, true));
            let (runs, count) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let (begun, counted) = (runs.clone(), count.clone());
            let task = tokio::spawn(on_leadership(receiver, World::new(), TestClock::new(), move |duty| {
                assert_eq!((duty.term, duty.fence.term), (3, 3));
                begun.fetch_add(1, Ordering::SeqCst);
                counted.fetch_add(1, Ordering::SeqCst);
                std::future::ready(())
            }));
            while runs.load(Ordering::SeqCst) < 3 {
                tokio::time::sleep(PAUSE).await;
            }
            drop(sender);
            task.await.unwrap();
        });
    }

    #[test]
    fn a_store_that_fails_is_asked_again_for_the_fence() {
        in_test_time(async {
            let world = World::new();
            world.fail(3);
            let (sender, receiver) = watch::channel(says(3, true));
            let running = Running::default();
            let begin = running.clone();
            let task = tokio::spawn(on_leadership(receiver, world, TestClock::new(), move |_| {
                let run = begin.begin();
                async move {
                    std::future::pending::<()>().await;
                    drop(run);
                }
            }));
            while running.count() == 0 {
                tokio::time::sleep(PAUSE).await;
            }
            drop(sender);
            task.await.unwrap();
        });
    }

    const COUNTER: &str = "counter";

    /// One fenced write of the term; whether it was taken.
    async fn write(store: &World, duty: &Duty) -> bool {
        let put = PutRequest {
            key: COUNTER.into(),
            value: Bytes::copy_from_slice(&duty.term.to_be_bytes()),
            ..Default::default()
        };
        let request = TxnRequest {
            compares: vec![duty.fence.compare()],
            success: vec![TxnOp::Put(put)],
            ..Default::default()
        };
        store.txn(request).await.unwrap().1.succeeded
    }

    async fn last_term(store: &World) -> Term {
        let request = RangeRequest { range: KeyRange::key(COUNTER), ..Default::default() };
        let kvs = store.range(request).await.unwrap().1.kvs;
        kvs.first().map_or(0, |kv| Term::from_be_bytes(kv.value.as_ref().try_into().unwrap()))
    }

    #[test]
    fn a_stale_leader_writes_nothing_even_where_it_has_not_heard() {
        in_test_time(async {
            let store = World::new();
            // Each leader keeps its duty for ever, as one that hears nothing does.
            let mut duties: Vec<Duty> = Vec::new();
            for term in 1..=20 {
                let fence = Fence::take(&store, term).await.unwrap();
                duties.push(Duty { term, fence });
                for duty in &duties {
                    let taken = write(&store, duty).await;
                    assert_eq!(taken, duty.term == term, "term {} wrote in {term}", duty.term);
                    assert!(last_term(&store).await == term || !taken);
                }
                assert_eq!(last_term(&store).await, term);
                for old in 0..term {
                    assert!(Fence::take(&store, old).await.is_err(), "term {old} took {term}'s fence");
                }
            }
        });
    }
}
