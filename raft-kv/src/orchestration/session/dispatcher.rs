//! The sessions of one member: opening them, and waking those whose tasks or objects change.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::super::Orchestrator;
use super::super::store::{Clock, Events, Store};
use super::hub::{Hub, SessionId};
use super::opened::Session;
use super::place::{Place, Sealer};
use super::reports::Reports;
use super::stored;
use super::view::Held;
use super::words::Settings;
use crate::error::{Error, Refusal};
use crate::types::{
    Compare, CompareOp, CompareTarget, EventKind, KeyRange, LeaseId, NodeId, PutRequest, RangeRequest, TxnOp,
    TxnRequest, WatchBatch, WatchRequest,
};

/// Opens sessions of workers at one member. Clones are the same.
#[derive(Debug)]
pub struct Dispatcher<S, C>(Arc<Inner<S, C>>);

#[derive(Debug)]
pub(super) struct Inner<S, C> {
    pub orchestrator: Orchestrator<S, C>,
    pub settings: Settings,
    pub hub: Hub,
    pub reports: Reports,
    sealer: Mutex<Option<Arc<Sealer>>>,
}

impl<S, C> Clone for Dispatcher<S, C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: Store, C: Clock> Dispatcher<S, C> {
    /// Sessions on `orchestrator`, which needs no fence. [`run`](Self::run) must be driven for them to see
    /// changes at once.
    pub fn new(orchestrator: Orchestrator<S, C>, settings: Settings) -> Self {
        let (hub, reports, sealer) = (Hub::default(), Reports::default(), Mutex::new(None));
        Self(Arc::new(Inner { orchestrator, settings, hub, reports, sealer }))
    }

    /// The bounds.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// How many sessions are open here.
    pub fn sessions(&self) -> usize {
        self.0.hub.len()
    }

    /// Opens a session of `node`, whose identity the caller has proven. `resume` is the token of what the
    /// worker has: the session goes on from there, or begins with everything where that is not known any
    /// more or is no token of this node. A session of the same node ends, wherever it is.
    ///
    /// # Errors
    /// [`Refusal::TooManySessions`], and the store's.
    pub async fn open(&self, node: NodeId, resume: Option<Bytes>) -> Result<Session<S, C>, Error> {
        let inner = &self.0;
        let clock = inner.orchestrator.clock();
        let id: SessionId = [clock.random(), clock.random()];
        let sealer = inner.sealer().await?;
        let signal = inner.hub.add(node, id, inner.settings.max_sessions)?;
        // From here on its end, also one by an error, takes it off the hub.
        let mut session = Session::new(inner.clone(), sealer.clone(), node, id, signal);
        if inner.orchestrator.node(node).await?.is_none() {
            inner.orchestrator.describe_node(node, String::new(), Bytes::new()).await?;
        }
        let lease = inner.appear(node, id, true).await?.expect("whoever takes over is not refused");
        session.holds(lease);
        let place = resume.and_then(|token| Some((sealer.open(node, &token)?, token)));
        if let Some((place, token)) = place.filter(|(place, _)| place.base > 0) {
            match Held::at(inner.orchestrator.store(), node, place).await {
                Ok(held) => session.has(place, token, held),
                Err(Error::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(session)
    }

    /// Wakes sessions as their tasks and objects change, for as long as it is driven.
    pub async fn run(&self) -> Infallible {
        loop {
            // An error leaves nothing undone: whatever was missed is looked for when the watches are back.
            let _ = self.follow().await;
            self.0.orchestrator.clock().sleep(self.0.settings.again).await;
        }
    }

    async fn follow(&self) -> Result<(), Error> {
        let store = self.0.orchestrator.store();
        let watch = |prefix| WatchRequest { range: KeyRange::prefix(prefix), ..Default::default() };
        let mut tasks = store.watch(watch(stored::tasks_by_node())).await?;
        let mut objects = store.watch(watch(stored::objects())).await?;
        let mut alive = store.watch(watch(stored::all_alive())).await?;
        self.0.hub.all_changed();
        loop {
            let batch = tokio::select! {
                batch = tasks.next() => batch?,
                batch = objects.next() => batch?,
                batch = alive.next() => batch?,
            };
            let changes = match batch {
                Some(WatchBatch::Changes(changes)) => changes,
                Some(WatchBatch::Part(change)) => vec![change],
                Some(WatchBatch::Progress(_)) => continue,
                Some(WatchBatch::Compacted(_)) | None => return Ok(()),
            };
            for event in changes.into_iter().flat_map(|change| change.events) {
                let key = &event.kv.key;
                if let Some(node) = stored::node_of(key) {
                    self.0.hub.tasks_changed(node);
                } else if let Some(object) = stored::object_key_of(key) {
                    self.0.hub.object_changed(&object);
                } else if let Some(node) = stored::alive_node_of(key)
                    && event.kind == EventKind::Put
                    && let Some(id) = from_name(&event.kv.value)
                {
                    self.0.hub.newest_is(node, id);
                }
            }
        }
    }
}

impl<S: Store, C: Clock> Inner<S, C> {
    /// Says that the node is there, by a key that ends with its lease. Unless it `takes_over`, `None`
    /// where another session of the node says so.
    pub async fn appear(
        &self,
        node: NodeId,
        id: SessionId,
        takes_over: bool,
    ) -> Result<Option<LeaseId>, Error> {
        let store = self.orchestrator.store();
        let lease = store.lease_grant(self.settings.ttl()).await?;
        let key = stored::alive(node);
        let put = |key| PutRequest { key, value: to_name(id), lease, ..Default::default() };
        let mine = vec![value_is(&key, to_name(id))];
        let again = TxnRequest {
            compares: vec![created_at(&key, 0)],
            success: vec![TxnOp::Put(put(key.clone()))],
            ..Default::default()
        };
        let request = if takes_over {
            TxnRequest { success: vec![TxnOp::Put(put(key))], ..Default::default() }
        } else {
            TxnRequest {
                compares: mine,
                success: vec![TxnOp::Put(put(key))],
                failure: vec![TxnOp::Txn(again)],
            }
        };
        let (_, answer) = store.txn(request).await?;
        let nested = answer
            .responses
            .iter()
            .any(|response| matches!(response, crate::types::TxnOpResponse::Txn(nested) if nested.succeeded));
        if answer.succeeded || nested {
            return Ok(Some(lease));
        }
        store.lease_revoke(lease).await?;
        Ok(None)
    }

    /// The cluster's key for tokens; made by whoever needs it first.
    async fn sealer(&self) -> Result<Arc<Sealer>, Error> {
        if let Some(sealer) = self.sealer.lock().clone() {
            return Ok(sealer);
        }
        let clock = self.orchestrator.clock();
        let mut fresh = [0; 32];
        for part in fresh.chunks_mut(8) {
            part.copy_from_slice(&clock.random().to_le_bytes());
        }
        let key = stored::token_key();
        let put = PutRequest { key: key.clone(), value: fresh.to_vec().into(), ..Default::default() };
        let request = TxnRequest {
            compares: vec![created_at(&key, 0)],
            success: vec![TxnOp::Put(put)],
            ..Default::default()
        };
        self.orchestrator.store().txn(request).await?;
        let request = RangeRequest { range: KeyRange::key(key), ..Default::default() };
        let (_, found) = self.orchestrator.store().range(request).await?;
        let broken = || Refusal::Malformed { what: "the key of the tokens of sessions".into() };
        let sealer = found.kvs.first().and_then(|kv| Sealer::of(&kv.value)).ok_or_else(broken)?;
        Ok(self.sealer.lock().get_or_insert_with(|| Arc::new(sealer)).clone())
    }
}

fn created_at(key: &Bytes, revision: i64) -> Compare {
    let target = CompareTarget::Create(revision);
    Compare { range: KeyRange::key(key.clone()), op: CompareOp::Equal, target }
}

fn value_is(key: &Bytes, value: Bytes) -> Compare {
    Compare { range: KeyRange::key(key.clone()), op: CompareOp::Equal, target: CompareTarget::Value(value) }
}

fn to_name(id: SessionId) -> Bytes {
    [id[0].to_le_bytes(), id[1].to_le_bytes()].concat().into()
}

fn from_name(name: &[u8]) -> Option<SessionId> {
    let (one, two) = name.split_at_checked(8)?;
    Some([u64::from_le_bytes(one.try_into().ok()?), u64::from_le_bytes(two.try_into().ok()?)])
}

/// The first place of all.
pub(super) const NOTHING: Place = Place { base: 0, seen: 0 };
