//! The orchestrator's state in the cluster's store: services as objects, and the changes of `schedule` as
//! one transaction. The only file that knows how they are stored.

use std::collections::BTreeMap;

use raft_kv::client::{Handle, NewPoint};
use raft_kv::error::{Error, Refusal};
use raft_kv::orchestration::{
    Change as Stored, Clock, NodeRecord, Object, ObjectBy, ObjectKey, Orchestrator, Page, SystemClock, Task,
    TaskBy,
};
use raft_kv::types::NodeId;

use crate::compose::{self, Service};
use crate::schedule::Change;

/// The typed layer over this manager's own member.
pub type Layer = Orchestrator<Handle, SystemClock>;

const KIND: &str = "service";
/// All state objects with their indexes, and no task: what a rollback puts back.
const OBJECTS: &str = "_rk/o";
/// Tasks that have ended and are kept in each slot, for people and for counting attempts.
const HISTORY: usize = 8;
/// Changes of one transaction.
const BATCH: usize = 32;

/// The services with their objects, by id.
pub async fn services(layer: &Layer) -> Result<BTreeMap<String, (Object, Service)>, Error> {
    let objects = layer.objects(KIND, ObjectBy::All, Page::all()).await?.items;
    let parsed = objects.into_iter().map(|object| match serde_json::from_slice(&object.spec) {
        Ok(service) => Ok((object.key.id.clone(), (object, service))),
        Err(error) => Err(Refusal::invalid(format!("service {}", object.name), error.to_string()).into()),
    });
    parsed.collect()
}

/// Every task.
pub async fn tasks(layer: &Layer) -> Result<Vec<Task>, Error> {
    Ok(layer.tasks(TaskBy::All, Page::all()).await?.items)
}

/// Every worker that was ever there and not removed.
pub async fn nodes(layer: &Layer) -> Result<Vec<NodeRecord>, Error> {
    Ok(layer.nodes(Page::all()).await?.items)
}

/// Makes the services those of a Compose file: one rollback point, then one transaction, one revision.
/// Returns the point's name.
pub async fn deploy(layer: &Layer, text: &str) -> Result<String, Error> {
    let point = format!("deploy-{:013}-{:04x}", layer.clock().now(), layer.clock().random() & 0xffff);
    let invalid = |why: String| Error::from(Refusal::invalid("Compose file", why));
    let mut wanted = compose::parse(text, &point).map_err(invalid)?;
    let mut changes = Vec::new();
    for (object, service) in services(layer).await?.into_values() {
        match wanted.remove(&object.name) {
            None => changes.push(Stored::Delete(object.key, object.version)),
            // What did not change keeps the point that it would go back to.
            Some(new) if Service { point: service.point.clone(), ..new.clone() } == service => {}
            Some(new) => changes.push(Stored::Update(with(object, &new))),
        }
    }
    for (name, service) in wanted {
        let id = format!("{:016x}", layer.clock().random());
        let object = Object {
            key: ObjectKey { kind: KIND.into(), id },
            name,
            labels: vec![],
            refs: vec![],
            spec: bytes::Bytes::new(),
            status: bytes::Bytes::new(),
            version: 0,
            created: 0,
            updated: 0,
        };
        changes.push(Stored::Create(with(object, &service)));
    }
    let comment = "before a deployment of the example orchestrator".to_owned();
    layer.store().point_create(&point, NewPoint { comment, ..NewPoint::default() }).await?;
    if !changes.is_empty() {
        layer.batch(changes).await?;
    }
    Ok(point)
}

/// Another number of tasks for the service of that name.
pub async fn scale(layer: &Layer, name: &str, replicas: u64) -> Result<(), Error> {
    let found = services(layer).await?.into_values().find(|(object, _)| object.name == name);
    let (object, service) =
        found.ok_or_else(|| Refusal::invalid("service", format!("there is no {name:?}")))?;
    layer.update(with(object, &Service { replicas, ..service })).await.map(drop)
}

/// Puts all services back as they were at a point, that before the newest deployment where none is named.
/// Returns the point, and how many keys that was.
pub async fn roll_back(handle: &Handle, point: Option<String>) -> Result<(String, u64), Error> {
    let newest = handle.points().await?.1.points.into_iter().map(|point| point.name);
    let newest = newest.filter(|name| name.starts_with("deploy-")).max();
    let none = || Refusal::invalid("rollback", "there was no deployment");
    let point = point.or(newest).ok_or_else(none)?;
    let (_, done) = handle.rollback(&point, Some(OBJECTS.into())).await?;
    Ok((point, done.events))
}

/// Does what `schedule` says, in order. Ends early where the store has changed meanwhile: it is asked again.
pub async fn apply(layer: &Layer, changes: Vec<Change>) -> Result<(), Error> {
    let mut stored = Vec::new();
    for change in changes {
        stored.push(match change {
            Change::Create(task) => Stored::CreateTask(task, Some(HISTORY)),
            Change::Assign { id, node } => Stored::Assign { id, node },
            Change::SetDesired { id, desired } => Stored::SetDesired { id, desired },
            Change::Delete(id) => Stored::DeleteTask(id),
            Change::RollBack { service, point } => {
                tracing::warn!(service, point, "the deployment failed; going back");
                roll_back(layer.store(), Some(point)).await?;
                return Ok(());
            }
        });
    }
    while !stored.is_empty() {
        let rest = stored.split_off(stored.len().min(BATCH));
        layer.batch(std::mem::replace(&mut stored, rest)).await?;
    }
    Ok(())
}

/// The node of that id, or its beginning, or of that name.
pub async fn node_named(layer: &Layer, given: &str) -> Result<NodeRecord, Error> {
    let is = |id: NodeId, name: &str| name == given || id.to_string().starts_with(given);
    let found = nodes(layer).await?.into_iter().find(|node| is(node.id, &node.name));
    found.ok_or_else(|| Refusal::invalid("node", format!("there is no {given:?}")).into())
}

fn with(object: Object, service: &Service) -> Object {
    Object { spec: serde_json::to_vec(service).expect("text as JSON").into(), ..object }
}
