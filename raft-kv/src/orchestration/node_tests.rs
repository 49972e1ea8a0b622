//! The typed layer on a real member: objects, tasks, a bad deployment taken back; and the same member's door for others,
//! which lets them read all of it and write none of it by raw keys.

use std::net::UdpSocket;

use bytes::Bytes;

use super::words::{Object, ObjectKey, Task, TaskState, TaskStatus};
use super::{Change, Fence, ObjectBy, Orchestrator, Page, Reported, SystemClock, TaskBy};
use crate::client::{Config, Handle, NewPoint, Node, Tuning};
use crate::error::{Error, Refusal};
use crate::limits::ORCHESTRATION_PREFIX;
use crate::types::{
    DeleteRequest, KeyRange, NodeId, PutRequest, RangeRequest, TxnOp, TxnRequest, WatchRequest,
};

fn config(dir: &std::path::Path) -> Config {
    Config {
        data_dir: dir.join("one"),
        name: "one".into(),
        listen_addr: UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
        advertise_addr: None,
        client_addr: None,
        advertise_client_addr: None,
        own_root: None,
        external_signer: None,
        tuning: Tuning { log_segment_bytes: 1024 * 1024, ..Tuning::default() },
    }
}

fn service(spec: &'static str) -> Object {
    Object {
        key: ObjectKey { kind: "service".into(), id: "web".into() },
        name: "web".into(),
        labels: vec![("tier".into(), spec.into())],
        refs: Vec::new(),
        spec: Bytes::from_static(spec.as_bytes()),
        status: Bytes::new(),
        version: 0,
        created: 0,
        updated: 0,
    }
}

fn status(state: TaskState) -> TaskStatus {
    TaskStatus { state, message: String::new(), error: String::new(), exit_code: None, at: 1 }
}

fn task(slot: u64) -> Task {
    Task {
        id: String::new(),
        service: "web".into(),
        slot,
        node: None,
        labels: Vec::new(),
        refs: Vec::new(),
        spec: Bytes::new(),
        desired: TaskState::Running,
        status: status(TaskState::New),
        version: 0,
        created: 0,
        updated: 0,
    }
}

async fn a_bad_deployment_is_taken_back(handle: &Handle) {
    let fence = Fence::take(handle, 1).await.unwrap();
    let orchestrator = Orchestrator::new(handle.clone(), SystemClock).fenced(fence);
    let good = orchestrator.create(service("v1")).await.unwrap();
    assert_eq!(orchestrator.object(&good.key).await.unwrap().unwrap(), good);
    handle.point_create("v1", NewPoint::default()).await.unwrap();
    let bad = Object { version: good.version, ..service("v2") };
    let stale = bad.clone();
    let bad = orchestrator.update(bad).await.unwrap();
    let refused = orchestrator.update(stale).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(Refusal::VersionConflict { .. })), "{refused}");
    let made = (0..3).map(|slot| Change::CreateTask(task(slot), Some(2))).collect();
    let (revision, _) = orchestrator.batch(made).await.unwrap();
    let tasks = orchestrator.tasks(TaskBy::Service("web".into()), Page::all()).await.unwrap().items;
    assert!(tasks.len() == 3 && tasks.iter().all(|task| task.version == revision));
    let id = &tasks[0].id;
    orchestrator.assign(id, NodeId(5)).await.unwrap();
    let report = vec![(id.clone(), status(TaskState::Failed)), ("other".into(), status(TaskState::Failed))];
    assert_eq!(orchestrator.report(NodeId(5), report).await.unwrap(), [Reported::Taken, Reported::NotYours]);

    handle.rollback("v1", Some(Bytes::from_static(b"_rk/o"))).await.unwrap();
    let back = orchestrator.object_named("service", "web").await.unwrap().unwrap();
    assert_eq!((back.spec.as_ref(), back.labels), (b"v1".as_slice(), service("v1").labels));
    assert!(back.version > bad.version);
    let by = |value: &str| ObjectBy::Label("tier".into(), value.into());
    assert_eq!(orchestrator.objects("service", by("v1"), Page::all()).await.unwrap().items.len(), 1);
    assert!(orchestrator.objects("service", by("v2"), Page::all()).await.unwrap().items.is_empty());
    let failed = orchestrator.task(id).await.unwrap().unwrap();
    assert_eq!((failed.status.state, failed.node), (TaskState::Failed, Some(NodeId(5))));
}

async fn others_write_nothing_there(handle: &Handle, caller: NodeId) {
    let other = handle.clone().on_node(caller);
    let all = RangeRequest { range: KeyRange::prefix(ORCHESTRATION_PREFIX), ..RangeRequest::default() };
    let before = other.range(all.clone()).await.unwrap().1;
    assert!(before.kvs.len() > 10);
    other.watch(WatchRequest { range: all.range.clone(), ..WatchRequest::default() }).await.unwrap();
    let key = before.kvs[0].key.clone();
    let put = PutRequest { key: key.clone(), value: "x".into(), ..PutRequest::default() };
    let reserved = Error::Refused(Refusal::ReservedPrefix);
    assert_eq!(other.put(put.clone()).await.unwrap_err(), reserved);
    let delete = DeleteRequest { range: KeyRange::key(key), prev_kv: false };
    assert_eq!(other.delete(delete.clone()).await.unwrap_err(), reserved);
    let inner = TxnRequest { failure: vec![TxnOp::Put(put)], ..TxnRequest::default() };
    let nested = TxnRequest { success: vec![TxnOp::Txn(inner)], ..TxnRequest::default() };
    assert_eq!(other.txn(nested).await.unwrap_err(), reserved);
    let part = DeleteRequest { range: KeyRange::prefix("_rk/t"), prev_kv: false };
    assert_eq!(other.delete(part).await.unwrap_err(), reserved);
    assert_eq!(other.range(all).await.unwrap().1, before);
    let all = DeleteRequest { range: KeyRange::all(), prev_kv: false };
    assert_eq!(other.delete(all).await.unwrap().1.deleted, before.count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_member_and_at_its_door() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::init(config(dir.path())).await.unwrap();
    a_bad_deployment_is_taken_back(&node.handle()).await;
    others_write_nothing_there(&node.handle(), node.id()).await;
    node.shutdown().await.unwrap();
}
