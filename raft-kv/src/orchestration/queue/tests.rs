//! What a queue hands out against what is stored: whoever reads each key that it names knows the last
//! state of every key, through compaction, failing calls and new leaders.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::session::tests::world::World;
use super::*;
use crate::types::DeleteRequest;

const PREFIX: &str = "_rk/o/";

#[derive(Clone, Copy, Debug)]
enum Step {
    Put(u8),
    Delete(u8),
    /// Something outside of the prefix.
    Elsewhere,
    Take,
    Save,
    Compact,
    Fail,
    /// Another leader goes on from the stored cursor.
    NewLeader,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6_u8).prop_map(Step::Put),
        2 => (0..6_u8).prop_map(Step::Delete),
        1 => Just(Step::Elsewhere),
        6 => Just(Step::Take),
        2 => Just(Step::Save),
        1 => Just(Step::Compact),
        1 => Just(Step::Fail),
        1 => Just(Step::NewLeader),
    ]
}

/// A manager that knows of each key what it read when the queue named it.
struct Manager {
    store: World,
    queue: Queue<World>,
    known: BTreeMap<Bytes, Bytes>,
    wrote: u64,
    /// Keys that were named.
    looked: usize,
}

impl Manager {
    fn new() -> Self {
        let store = World::new();
        let queue = Queue::new(store.clone(), "test", PREFIX);
        Self { store, queue, known: BTreeMap::new(), wrote: 0, looked: 0 }
    }

    async fn write(&self, op: TxnOp) {
        let request = TxnRequest { success: vec![op], ..Default::default() };
        // The store may have been told to fail.
        while self.store.txn(request.clone()).await.is_err() {}
    }

    async fn put(&mut self, key: String) {
        self.wrote += 1;
        let value = Bytes::copy_from_slice(&self.wrote.to_be_bytes());
        self.write(TxnOp::Put(PutRequest { key: key.into(), value, ..Default::default() })).await;
    }

    async fn stored(&self, range: KeyRange) -> BTreeMap<Bytes, Bytes> {
        loop {
            let request = RangeRequest { range: range.clone(), ..Default::default() };
            if let Ok((_, found)) = self.store.range(request).await {
                return found.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect();
            }
        }
    }

    /// Whether there was anything to look at.
    async fn take(&mut self) -> bool {
        let look = tokio::select! {
            biased;
            look = self.queue.next() => look,
            () = std::future::ready(()) => return false,
        };
        match look {
            Ok(Look::Anew) => self.known.clear(),
            Ok(Look::Key(key)) => {
                self.looked += 1;
                match self.stored(KeyRange::key(key.clone())).await.remove(&key) {
                    Some(value) => drop(self.known.insert(key, value)),
                    None => drop(self.known.remove(&key)),
                }
            }
            Err(_) => {}
        }
        true
    }

    async fn drain(&mut self) {
        while self.take().await {
            tokio::task::yield_now().await;
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Put(key) => self.put(format!("{PREFIX}{key}")).await,
            Step::Delete(key) => {
                let range = KeyRange::key(format!("{PREFIX}{key}"));
                self.write(TxnOp::Delete(DeleteRequest { range, prev_kv: false })).await;
            }
            Step::Elsewhere => self.put("_rk/other".into()).await,
            Step::Take => drop(self.take().await),
            Step::Save => drop(self.queue.save().await),
            Step::Compact => self.store.compact(),
            Step::Fail => self.store.fail(1),
            Step::NewLeader => self.queue = Queue::new(self.store.clone(), "test", PREFIX),
        }
        tokio::task::yield_now().await;
    }

    async fn knows_all(&self) -> bool {
        self.known == self.stored(KeyRange::prefix(PREFIX)).await
    }
}

fn in_one_thread<R>(run: impl Future<Output = R>) -> R {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run)
}

/// Whether the manager knows everything at the end.
fn check(steps: &[Step]) -> bool {
    in_one_thread(async {
        let mut manager = Manager::new();
        for step in steps {
            manager.step(*step).await;
        }
        manager.drain().await;
        manager.knows_all().await
    })
}

proptest! {
    #[test]
    fn no_last_change_of_a_key_is_missed(steps in prop::collection::vec(step(), 0..120)) {
        prop_assert!(check(&steps));
    }
}

#[test]
fn a_planted_queue_that_drops_a_change_is_caught() {
    // The key changes while it is in hand.
    let steps = [Step::Put(1), Step::Take, Step::Take, Step::Put(1), Step::Take];
    assert!(check(&steps));
    #[cfg(feature = "sim")]
    assert!(!planted::with(Some(planted::Bug::QueueDropsChange), || check(&steps)));
}

#[test]
fn changes_of_one_key_are_looked_at_once() {
    in_one_thread(async {
        let mut manager = Manager::new();
        manager.drain().await;
        for _ in 0..50 {
            manager.step(Step::Put(1)).await;
        }
        manager.drain().await;
        assert_eq!(manager.looked, 1);
        assert!(manager.knows_all().await);
    });
}

#[test]
fn a_new_leader_looks_at_what_was_not_saved_and_at_nothing_else() {
    in_one_thread(async {
        let mut manager = Manager::new();
        for key in 0..6 {
            manager.step(Step::Put(key)).await;
        }
        manager.drain().await;
        manager.step(Step::Save).await;
        manager.step(Step::Put(3)).await;
        manager.looked = 0;
        manager.step(Step::NewLeader).await;
        manager.drain().await;
        assert_eq!(manager.looked, 1);
        assert!(manager.knows_all().await);
    });
}

#[test]
fn a_stale_leaders_cursor_is_refused() {
    in_one_thread(async {
        let mut manager = Manager::new();
        let old = Fence::take(&manager.store, 1).await.unwrap();
        manager.queue = Queue::new(manager.store.clone(), "test", PREFIX).fenced(old);
        manager.drain().await;
        manager.queue.save().await.unwrap();
        let stored = KeyRange::key("_rk/q/test");
        let before = manager.stored(stored.clone()).await;
        assert_eq!(before.len(), 1);
        Fence::take(&manager.store, 2).await.unwrap();
        manager.step(Step::Put(1)).await;
        manager.drain().await;
        let refused = manager.queue.save().await;
        assert!(matches!(refused, Err(Error::Refused(Refusal::StaleLeader { .. }))), "{refused:?}");
        assert_eq!(manager.stored(stored).await, before);
    });
}
