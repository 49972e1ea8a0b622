//! Random writes, compactions and watchers against a plain list of all changes: ordered, unique,
//! reliable, atomic, resumable and bookmarkable, with filters and cancels, on one stream.

use std::collections::BTreeMap;

use raft_kv::types::TxnOpResponse;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// A change as the model has it: whether each key was put.
type Log = BTreeMap<Revision, Vec<(String, bool)>>;

struct Watcher {
    prefix: String,
    start: Revision,
    filters: Vec<i32>,
    got: Vec<(Revision, String, bool)>,
    made: bool,
    over: bool,
}

impl Watcher {
    fn owed(&self, log: &Log, to: Revision) -> Vec<(Revision, String, bool)> {
        let changes = log.range(self.start..).take_while(|(revision, _)| **revision <= to);
        let events =
            changes.flat_map(|(revision, keys)| keys.iter().map(|(key, put)| (*revision, key.clone(), *put)));
        let wanted = events.filter(|(_, key, put)| {
            key.starts_with(&self.prefix) && !self.filters.contains(&i32::from(!*put))
        });
        wanted.collect()
    }
}

struct Run {
    world: World,
    client: Client,
    random: StdRng,
    log: Log,
    head: Revision,
    compacted: Revision,
    watchers: BTreeMap<i64, Watcher>,
    bookmarks: usize,
    compactions: usize,
}

impl Run {
    async fn write(&mut self) {
        let number = self.random.random_range(1..4);
        let mut ops = BTreeMap::new();
        for _ in 0..number {
            ops.insert(format!("k{}", self.random.random_range(0..6)), self.random.random_bool(0.7));
        }
        let op = |(key, put): (&String, &bool)| match put {
            true => TxnOp::Put(PutRequest { key: key.clone().into(), ..PutRequest::default() }),
            false => TxnOp::Delete(DeleteRequest { range: KeyRange::key(key.clone()), prev_kv: false }),
        };
        let request = TxnRequest { success: ops.iter().map(op).collect(), ..TxnRequest::default() };
        let (header, response) = self.world.handle.txn(request).await.unwrap();
        let done =
            |answer: &TxnOpResponse| !matches!(answer, TxnOpResponse::Delete(gone) if gone.deleted == 0);
        let kept = response.responses.iter().map(done);
        let events: Vec<_> = ops.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(op, _)| op).collect();
        if !events.is_empty() {
            self.log.insert(header.revision, events);
        }
        self.head = header.revision;
    }

    fn watch(&mut self) {
        let prefix = ["k", "k0", "k1", "k5"][self.random.random_range(0..4)].to_owned();
        let filters = [vec![], vec![], vec![0], vec![1]][self.random.random_range(0..4)].clone();
        let start = match self.random.random_range(0..4) {
            0 => 0,
            1 => self.head + self.random.random_range(1..6),
            _ => (self.head - self.random.random_range(0..30)).max(1),
        };
        let create = WatchCreateRequest {
            start_revision: start,
            filters: filters.clone(),
            fragment: self.random.random_bool(0.5),
            ..watch_prefix(&prefix)
        };
        let id = self.watchers.last_key_value().map_or(0, |(id, _)| id + 1);
        let start = if start == 0 { self.head + 1 } else { start };
        self.watchers
            .insert(id, Watcher { prefix, start, filters, got: Vec::new(), made: false, over: false });
        self.client.create(create);
    }

    fn take(&mut self, answer: &WatchResponse) {
        let told = answer.header.as_ref().unwrap().revision;
        if answer.watch_id == -1 {
            self.bookmarks += 1;
            for (id, watcher) in self.watchers.iter().filter(|(_, watcher)| watcher.made && !watcher.over) {
                let at = watcher.got.last().map_or(0, |last| last.0).max(told);
                assert_eq!(
                    watcher.got,
                    watcher.owed(&self.log, at),
                    "{id}: a bookmark at {told} is not true"
                );
            }
            return;
        }
        let watcher = self.watchers.get_mut(&answer.watch_id).expect("it was made");
        watcher.made |= answer.created;
        if answer.canceled {
            if answer.compact_revision > 0 {
                self.compactions += 1;
                assert!(watcher.got.is_empty() && watcher.start < answer.compact_revision);
                assert!(answer.compact_revision <= self.compacted);
            }
            watcher.over = true;
        }
        for event in &answer.events {
            let key = String::from_utf8(event.kv.as_ref().unwrap().key.to_vec()).unwrap();
            watcher.got.push((revision_of(event), key, event.r#type == 0));
        }
        // Resumable behind any answer: whole revisions, nothing left out before them.
        if let Some((last, ..)) = watcher.got.last() {
            assert_eq!(watcher.got, watcher.owed(&self.log, *last), "watcher {}", answer.watch_id);
        }
    }

    async fn take_all(&mut self) {
        loop {
            let due = self
                .watchers
                .values()
                .any(|watcher| !watcher.over && watcher.got.len() < watcher.owed(&self.log, self.head).len());
            if !due {
                return;
            }
            let answer = self.client.next().await;
            self.take(&answer);
        }
    }
}

#[tokio::test]
async fn random_watchers_get_what_they_are_owed() {
    let world = World::new().await;
    let client = world.open();
    let mut run = Run {
        world,
        client,
        random: StdRng::seed_from_u64(3),
        log: Log::new(),
        head: 1,
        compacted: 0,
        watchers: BTreeMap::new(),
        bookmarks: 0,
        compactions: 0,
    };
    for _ in 0..600 {
        match run.random.random_range(0..20) {
            0..12 => run.write().await,
            12..15 => {
                run.watch();
                // Its start 0 means the revision at which the server reads the request.
                let id = *run.watchers.last_key_value().unwrap().0;
                loop {
                    let answer = run.client.next().await;
                    run.take(&answer);
                    if answer.created && answer.watch_id == id {
                        break;
                    }
                }
            }
            15 => {
                // Whoever is behind is served first: what it is told is then certain.
                run.take_all().await;
                let at = (run.head - run.random.random_range(0..10)).max(run.compacted + 1);
                if at <= run.head {
                    run.world.handle.compact(at, false).await.unwrap();
                    run.compacted = at;
                }
            }
            16 => {
                let living: Vec<i64> =
                    run.watchers.iter().filter(|(_, watcher)| !watcher.over).map(|(id, _)| *id).collect();
                if !living.is_empty() {
                    run.client.cancel(living[run.random.random_range(0..living.len())]);
                }
            }
            _ => run.client.ask_progress(),
        }
    }
    run.take_all().await;
    for (id, watcher) in run.watchers.iter().filter(|(_, watcher)| !watcher.over) {
        assert_eq!(watcher.got, watcher.owed(&run.log, run.head), "watcher {id}");
    }
    let events: usize = run.watchers.values().map(|watcher| watcher.got.len()).sum();
    // A run in which too little happened proves nothing.
    assert!(
        events > 500 && run.bookmarks > 5 && run.compactions > 3,
        "{events} {} {}",
        run.bookmarks,
        run.compactions
    );
}
