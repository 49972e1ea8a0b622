//! What a node is to have at a revision, read from the store, against what its worker holds.
//!
//! It reads the node's own tasks and the objects that they name, and must never read another node's:
//! the cost is that of the node's own tasks, whatever the others have.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::store::Store;
use super::super::words::ObjectKey;
use super::place::Place;
use super::stored;
use super::words::{Assigned, Needed, Settings};
use crate::error::{Error, Refusal};
use crate::planted;
use crate::types::{KeyRange, KeyValue, NodeId, RangeRequest, Revision, TxnOp, TxnOpResponse, TxnRequest};

/// Keys that one transaction reads whole.
const READ_AT_ONCE: usize = 16;
/// Keys that one transaction looks at.
const LOOK_AT_ONCE: usize = 100;

/// A task as the worker has it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct HeldTask {
    /// The revision that last changed it; 0 where what the worker has is not known.
    changed: Revision,
    refs: Vec<ObjectKey>,
}

/// What a worker has, by revisions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Held {
    tasks: BTreeMap<String, HeldTask>,
    /// The revision that last changed each; 0 where what the worker has is not known.
    objects: BTreeMap<ObjectKey, Revision>,
}

/// What changed, as far as it fits one update.
#[derive(Debug)]
pub struct Step {
    /// As of which revision.
    pub revision: Revision,
    /// Something did not fit.
    pub more: bool,
    /// New or changed.
    pub tasks: Vec<Assigned>,
    /// Gone.
    pub removed: Vec<String>,
    /// New or changed.
    pub objects: Vec<Needed>,
    /// Gone.
    pub removed_objects: Vec<ObjectKey>,
    /// What the worker has then.
    pub held: Held,
}

impl Held {
    /// The objects it has.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectKey> {
        self.objects.keys()
    }

    /// What a worker has that is at `place`.
    ///
    /// # Errors
    /// [`Refusal::Compacted`] where that is not known any more, and the store's.
    pub async fn at<S: Store>(store: &S, node: NodeId, place: Place) -> Result<Self, Error> {
        let (_, index) = node_index(store, node, place.seen).await?;
        let ids: Vec<&String> = index.keys().collect();
        let mut held = Self::default();
        for ids in ids.chunks(READ_AT_ONCE) {
            for (id, read) in ids.iter().zip(read_tasks(store, ids, place.seen).await?) {
                let changed = index[*id];
                let changed = if changed <= place.base { changed } else { 0 };
                let refs = read.map(|task| task.refs).unwrap_or_default();
                held.tasks.insert((*id).clone(), HeldTask { changed, refs });
            }
        }
        let sent = |task: &&HeldTask| task.changed != 0;
        let certain: Vec<ObjectKey> =
            held.tasks.values().filter(sent).flat_map(|task| task.refs.clone()).collect();
        for key in held.tasks.values().flat_map(|task| task.refs.clone()) {
            held.objects.insert(key, 0);
        }
        for (key, changed) in look_at(store, &certain, place.seen).await? {
            held.objects.insert(key, if changed <= place.base { changed } else { 0 });
        }
        Ok(held)
    }

    /// What is to be sent next. What goes is all in the first step.
    ///
    /// # Errors
    /// The store's.
    pub async fn step<S: Store>(&self, store: &S, node: NodeId, settings: &Settings) -> Result<Step, Error> {
        let (revision, index) = node_index(store, node, 0).await?;
        let mut held = self.clone();
        let gone = |id: &&String| !index.contains_key(*id);
        let removed: Vec<String> = self.tasks.keys().filter(gone).cloned().collect();
        for id in &removed {
            held.tasks.remove(id);
        }
        let changed =
            |(id, at): &(&String, &Revision)| self.tasks.get(*id).is_none_or(|had| had.changed != **at);
        let mut changed: Vec<&String> = index.iter().filter(changed).map(|(id, _)| id).collect();
        if planted!(SessionSkipsChange) && changed.len() > 1 {
            let skipped = changed.pop().expect("more than one");
            held.tasks.entry(skipped.clone()).or_default().changed = index[skipped];
        }
        let mut budget = Budget::of(settings);
        let mut tasks = Vec::new();
        let mut rest = changed.chunks(READ_AT_ONCE);
        while budget.left()
            && let Some(ids) = rest.next()
        {
            for (id, read) in ids.iter().zip(read_tasks(store, ids, revision).await?) {
                let Some(task) = read else { continue };
                budget.take(task.weight());
                held.tasks.insert((*id).clone(), HeldTask { changed: index[*id], refs: task.refs.clone() });
                tasks.push(task);
            }
        }
        let mut more = rest.next().is_some();
        let (objects, removed_objects) = held.step_objects(store, revision, &mut budget, &mut more).await?;
        Ok(Step { revision, more, tasks, removed, objects, removed_objects, held })
    }

    /// The objects that the held tasks need.
    async fn step_objects<S: Store>(
        &mut self,
        store: &S,
        revision: Revision,
        budget: &mut Budget,
        more: &mut bool,
    ) -> Result<(Vec<Needed>, Vec<ObjectKey>), Error> {
        let mut needed: Vec<ObjectKey> = self.tasks.values().flat_map(|task| task.refs.clone()).collect();
        needed.sort_unstable();
        needed.dedup();
        let now: BTreeMap<ObjectKey, Revision> =
            look_at(store, &needed, revision).await?.into_iter().collect();
        let gone: Vec<ObjectKey> =
            self.objects.keys().filter(|key| !now.contains_key(*key)).cloned().collect();
        self.objects.retain(|key, _| now.contains_key(key));
        let changed: Vec<ObjectKey> = now
            .iter()
            .filter(|(key, at)| self.objects.get(*key) != Some(*at))
            .map(|(key, _)| key.clone())
            .collect();
        let mut objects = Vec::new();
        let mut rest = changed.chunks(READ_AT_ONCE);
        while budget.left()
            && let Some(keys) = rest.next()
        {
            for (key, object) in keys.iter().zip(read_objects(store, keys, revision).await?) {
                let Some(object) = object else { continue };
                budget.take(object.weight());
                self.objects.insert(key.clone(), now[key]);
                objects.push(object);
            }
        }
        *more |= rest.next().is_some();
        Ok((objects, gone))
    }
}

/// What still fits an update. The first of it always does.
struct Budget {
    items: usize,
    bytes: usize,
}

impl Budget {
    fn of(settings: &Settings) -> Self {
        Self { items: settings.max_items.max(1), bytes: settings.max_bytes.max(1) }
    }

    fn left(&self) -> bool {
        self.items > 0 && self.bytes > 0
    }

    fn take(&mut self, bytes: usize) {
        self.items = self.items.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// The node's tasks and when each was last changed, at `revision` or, for 0, now, and which that is.
async fn node_index<S: Store>(
    store: &S,
    node: NodeId,
    revision: Revision,
) -> Result<(Revision, BTreeMap<String, Revision>), Error> {
    let prefix = stored::tasks_of(node);
    let range = if planted!(SessionLeaksOthers) {
        KeyRange::prefix(prefix.slice(..prefix.len() - 2))
    } else {
        KeyRange::prefix(prefix)
    };
    let request = RangeRequest { range, revision, keys_only: true, ..Default::default() };
    let (header, found) = store.range(request).await?;
    let index = found.kvs.iter().filter_map(|kv| Some((stored::id_of(&kv.key)?, kv.mod_revision))).collect();
    Ok((if revision == 0 { header.revision } else { revision }, index))
}

/// The tasks of `ids`, in their order.
async fn read_tasks<S: Store>(
    store: &S,
    ids: &[&String],
    revision: Revision,
) -> Result<Vec<Option<Assigned>>, Error> {
    let keys = ids.iter().flat_map(|id| [stored::task(id), stored::status(id)]);
    let found = read(store, keys, revision, false).await?;
    let mut tasks = Vec::with_capacity(ids.len());
    for pair in found.chunks(2) {
        let task = match &pair[0] {
            Some(kv) => Some(Assigned::of(stored::task_of(kv, pair[1].as_ref())?)),
            None => None,
        };
        tasks.push(task);
    }
    Ok(tasks)
}

/// The objects of `keys`, in their order.
async fn read_objects<S: Store>(
    store: &S,
    keys: &[ObjectKey],
    revision: Revision,
) -> Result<Vec<Option<Needed>>, Error> {
    let found = read(store, keys.iter().map(stored::object), revision, false).await?;
    found.iter().map(|kv| kv.as_ref().map(|kv| stored::object_of(kv).map(Needed::of)).transpose()).collect()
}

/// Which of `keys` there are, and when each was last changed.
async fn look_at<S: Store>(
    store: &S,
    keys: &[ObjectKey],
    revision: Revision,
) -> Result<Vec<(ObjectKey, Revision)>, Error> {
    let mut there = Vec::new();
    for keys in keys.chunks(LOOK_AT_ONCE) {
        let found = read(store, keys.iter().map(stored::object), revision, true).await?;
        let found = keys.iter().zip(found).filter_map(|(key, kv)| Some((key.clone(), kv?.mod_revision)));
        there.extend(found);
    }
    Ok(there)
}

/// Reads single keys in one transaction.
async fn read<S: Store>(
    store: &S,
    keys: impl Iterator<Item = Bytes>,
    revision: Revision,
    keys_only: bool,
) -> Result<Vec<Option<KeyValue>>, Error> {
    let request = |key| RangeRequest { range: KeyRange::key(key), revision, keys_only, ..Default::default() };
    let success: Vec<TxnOp> = keys.map(|key| TxnOp::Range(request(key))).collect();
    if success.is_empty() {
        return Ok(Vec::new());
    }
    let (_, answer) = store.txn(TxnRequest { success, ..Default::default() }).await?;
    let kvs = answer.responses.into_iter().map(|response| match response {
        TxnOpResponse::Range(mut found) => Ok(found.kvs.pop()),
        _ => Err(Refusal::Malformed { what: "what a read answered".into() }.into()),
    });
    kvs.collect()
}
