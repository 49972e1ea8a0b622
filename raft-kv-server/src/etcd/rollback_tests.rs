//! The service against a real member in this process, called without a socket.

use futures_util::StreamExt;
use raft_kv::types::PutRequest;
use tonic::Code;

use super::super::kv::tests::{One, told};
use super::*;

async fn put(one: &One, key: &'static str, value: &'static str) {
    let put = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
    one.etcd.own_handle().put(put).await.unwrap();
}

fn create(name: &str) -> Request<CreatePointRequest> {
    Request::new(CreatePointRequest { name: name.into(), comment: "c".into(), ..Default::default() })
}

#[tokio::test]
async fn a_point_is_made_looked_at_and_gone_back_to() {
    let one = One::start().await;
    let service = RollbackService::new(one.etcd.clone());
    put(&one, "a", "1").await;
    let made = service.create_point(create("p")).await.unwrap().into_inner().point.unwrap();
    assert_eq!((made.name.as_str(), made.revision, made.expires, made.comment.as_str()), ("p", 2, 0, "c"));
    put(&one, "a", "2").await;
    put(&one, "b", "2").await;

    let asked = DiffRequest { point: "p".into(), ..Default::default() };
    let mut parts = service.diff(Request::new(asked)).await.unwrap().into_inner();
    let (mut keys, mut counts) = (Vec::new(), (0, 0, 0));
    while let Some(part) = parts.next().await.map(Result::unwrap) {
        assert_eq!((part.from, part.to), (2, 4));
        counts = (counts.0 + part.created, counts.1 + part.changed, counts.2 + part.deleted);
        keys.extend(part.differences.into_iter().map(|it| (it.key, it.then.is_some(), it.now.is_some())));
    }
    assert_eq!(keys, [("a".into(), true, true), ("b".into(), false, true)]);
    assert_eq!(counts, (1, 1, 0));

    let back = RollBackRequest { point: "p".into(), prefix: "a".into() };
    let done = service.roll_back(Request::new(back)).await.unwrap().into_inner();
    assert_eq!((done.to, done.revision, done.events, done.undo.as_str()), (2, 5, 1, "before-rollback-5"));
    assert_eq!(one.etcd.own_handle().get("a").await.unwrap().unwrap().value, "1");

    let schedule = Schedule { name: "hourly".into(), every: 3600, keep: 3, last: 0 };
    let set = SetScheduleRequest { schedule: Some(schedule) };
    service.set_schedule(Request::new(set)).await.unwrap();
    let list = service.list_points(Request::new(ListPointsRequest {})).await.unwrap().into_inner();
    let undo = list.points.iter().find(|point| point.name == done.undo).unwrap();
    assert_eq!(undo.rollback_to, "p");
    assert_eq!((list.schedules[0].every, list.schedules[0].keep), (3600, 3));
    let end = RemoveScheduleRequest { name: "hourly".into() };
    service.remove_schedule(Request::new(end)).await.unwrap();
    let gone = RemovePointRequest { name: "p".into() };
    let gone = service.remove_point(Request::new(gone)).await.unwrap().into_inner().point.unwrap();
    assert_eq!(gone.name, "p");
}

#[tokio::test]
async fn what_is_wrong_is_refused_and_nothing_is_made() {
    let one = One::start().await;
    let service = RollbackService::new(one.etcd.clone());
    put(&one, "a", "1").await;
    let spaces = told(service.create_point(create("two words")).await);
    assert_eq!(spaces.0, Code::InvalidArgument);
    let unknown = RollBackRequest { point: "never".into(), prefix: Default::default() };
    let unknown = told(service.roll_back(Request::new(unknown)).await);
    assert!(unknown.1.contains("never"), "{unknown:?}");
    let asked = DiffRequest { point: "never".into(), ..Default::default() };
    let mut parts = service.diff(Request::new(asked)).await.unwrap().into_inner();
    assert!(parts.next().await.unwrap().unwrap_err().message().contains("never"));
    let list = service.list_points(Request::new(ListPointsRequest {})).await.unwrap().into_inner();
    assert_eq!((list.points.len(), list.schedules.len()), (0, 0));
}
