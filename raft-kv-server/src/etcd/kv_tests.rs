//! The service against a real member in this process, called without a socket.

use std::net::UdpSocket;

use bytes::Bytes;
use etcd_api::etcdserverpb as pb;
use etcd_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_api::etcdserverpb::request_op::Request as PbOp;
use futures_util::StreamExt;
use raft_kv::client::{Config, Node, Tuning};
use raft_kv::raft::{Leadership, Role};
use raft_kv::types::{AuthChange, KeyRange, Permission, PermissionKind, Sealed};
use tempfile::TempDir;
use tonic::Code;

use super::*;
use crate::etcd::Certificate;

/// A cluster of one, for tests of services.
pub(in crate::etcd) struct One {
    pub(in crate::etcd) etcd: Etcd,
    pub(in crate::etcd) node: Node,
    pub(in crate::etcd) dir: TempDir,
}

impl One {
    pub(in crate::etcd) async fn start() -> Self {
        Self::start_with(Tuning::default()).await
    }

    pub(in crate::etcd) async fn start_with(tuning: Tuning) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = Config {
            data_dir: dir.path().join("data"),
            name: "one".into(),
            listen_addr: ([127, 0, 0, 1], port).into(),
            advertise_addr: None,
            client_addr: None,
            advertise_client_addr: None,
            own_root: None,
            external_signer: None,
            tuning,
        };
        let node = Node::init(config).await.unwrap();
        node.leadership().wait_for(|now| now.ready).await.unwrap();
        let etcd = Etcd::new(node.handle(), node.cluster(), node.id()).with_leadership(node.leadership());
        Self { etcd, node, dir }
    }

    /// A service of a member whose leadership is as given.
    pub(in crate::etcd) fn seen_as(&self, leader: bool, role: Role) -> Etcd {
        let leader = leader.then(|| self.node.id());
        let (_, receiver) = tokio::sync::watch::channel(Leadership { term: 1, role, leader, ready: false });
        self.etcd.clone().with_leadership(receiver)
    }
}

impl One {
    /// Users count from now on: `root`, and `bob`, who may read and write the keys from `b` to `c`.
    pub(in crate::etcd) async fn enable_auth(&self) {
        let (kind, range) = (PermissionKind::ReadWrite, KeyRange::span("b", "c"));
        let user = |name: &str| AuthChange::UserAdd { name: name.into(), password: None };
        let role = |name: &str| AuthChange::RoleAdd { role: name.into() };
        let grant = |user: &str, role: &str| AuthChange::UserGrant { name: user.into(), role: role.into() };
        for change in [
            user("root"),
            role("root"),
            grant("root", "root"),
            user("bob"),
            role("b"),
            AuthChange::RoleGrant { role: "b".into(), permission: Permission { kind, range } },
            grant("bob", "b"),
            AuthChange::Enable { token_key: Sealed::default() },
        ] {
            self.auth(change).await;
        }
    }

    /// Changes users, roles or permissions.
    pub(in crate::etcd) async fn auth(&self, change: AuthChange) {
        self.node.handle().auth_change(change).await.unwrap();
    }
}

/// A request from the client whose certificate says `name`.
pub(in crate::etcd) fn named<T>(message: T, name: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Certificate { name: name.into(), role: raft_kv::types::Role::Client });
    request
}

/// What a client is told, as a code and a text.
pub(in crate::etcd) fn told<T: std::fmt::Debug>(answer: Result<Response<T>, Status>) -> (Code, String) {
    let status = answer.expect_err("it is refused");
    (status.code(), status.message().to_owned())
}

/// What etcd says in the same place.
pub(in crate::etcd) fn says(code: Code, text: &str) -> (Code, String) {
    (code, format!("etcdserver: {text}"))
}

fn put(key: &str, value: &str) -> Request<pb::PutRequest> {
    Request::new(pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    })
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn prefix(key: &str) -> pb::RangeRequest {
    let range = KeyRange::prefix(key.to_owned());
    pb::RangeRequest { key: range.key, range_end: range.end, ..Default::default() }
}

fn op(request: PbOp) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

#[tokio::test]
async fn a_key_is_put_read_deleted_and_compacted() {
    let one = One::start().await;
    let kv = KvService::new(one.etcd.clone());
    let first = kv.put(put("k", "1")).await.unwrap().into_inner();
    let header = first.header.unwrap();
    assert_eq!((header.cluster_id, header.member_id), (one.node.cluster().0, one.node.id().0));
    assert_eq!((header.revision, first.prev_kv), (2, None));
    assert!(header.raft_term > 0);

    let mut again = put("k", "2");
    again.get_mut().prev_kv = true;
    let second = kv.put(again).await.unwrap().into_inner();
    assert_eq!(second.prev_kv.unwrap().value, "1");

    let old = pb::RangeRequest { revision: 2, ..get("k") };
    let read = kv.range(Request::new(old.clone())).await.unwrap().into_inner();
    assert_eq!((read.header.unwrap().revision, read.count, read.more), (3, 1, false));
    let found = &read.kvs[0];
    assert_eq!((found.value.as_ref(), found.version), (&b"1"[..], 1));

    let future = pb::RangeRequest { revision: 9, ..get("k") };
    let refused = told(kv.range(Request::new(future)).await);
    assert_eq!(refused, says(Code::OutOfRange, "mvcc: required revision is a future revision"));

    let compaction = |revision| Request::new(pb::CompactionRequest { revision, physical: true });
    kv.compact(compaction(3)).await.unwrap();
    assert_eq!(
        told(kv.compact(compaction(3)).await),
        says(Code::OutOfRange, "mvcc: required revision has been compacted")
    );
    assert_eq!(
        told(kv.compact(compaction(99)).await),
        says(Code::OutOfRange, "mvcc: required revision is a future revision")
    );
    assert_eq!(
        told(kv.range(Request::new(old)).await),
        says(Code::OutOfRange, "mvcc: required revision has been compacted")
    );

    let delete =
        || Request::new(pb::DeleteRangeRequest { key: "k".into(), range_end: Bytes::new(), prev_kv: true });
    let deleted = kv.delete_range(delete()).await.unwrap().into_inner();
    assert_eq!((deleted.deleted, deleted.header.unwrap().revision), (1, 4));
    assert_eq!(deleted.prev_kvs[0].value, "2");
    let nothing = kv.delete_range(delete()).await.unwrap().into_inner();
    assert_eq!((nothing.deleted, nothing.header.unwrap().revision), (0, 4), "nothing changed");
}

#[tokio::test]
async fn what_is_refused_has_etcds_words() {
    let one = One::start().await;
    let kv = KvService::new(one.etcd.clone());
    assert_eq!(told(kv.put(put("", "1")).await), says(Code::InvalidArgument, "key is not provided"));
    assert_eq!(
        told(kv.range(Request::new(get(""))).await),
        says(Code::InvalidArgument, "key is not provided")
    );
    let mut leased = put("k", "1");
    leased.get_mut().lease = 77;
    assert_eq!(told(kv.put(leased).await), says(Code::NotFound, "requested lease not found"));
    let mut kept = put("k", "");
    kept.get_mut().ignore_value = true;
    assert_eq!(told(kv.put(kept).await), says(Code::InvalidArgument, "key not found"));
    let large = "x".repeat(2 << 20);
    assert_eq!(told(kv.put(put("k", &large)).await), says(Code::InvalidArgument, "request is too large"));
    let twice = pb::TxnRequest {
        success: vec![op(PbOp::RequestPut(put("k", "1").into_inner())); 2],
        ..Default::default()
    };
    assert_eq!(
        told(kv.txn(Request::new(twice)).await),
        says(Code::InvalidArgument, "duplicate key given in txn request")
    );
    let header = kv.range(Request::new(get("k"))).await.unwrap().into_inner().header.unwrap();
    assert_eq!(header.revision, 1, "nothing of it changed the store");
}

#[tokio::test]
async fn a_transaction_as_kubernetes_sends_it() {
    let one = One::start().await;
    let kv = KvService::new(one.etcd.clone());
    let txn = |revision: i64| {
        Request::new(pb::TxnRequest {
            compare: vec![pb::Compare {
                result: CompareResult::Equal as i32,
                target: CompareTarget::Mod as i32,
                key: "k".into(),
                target_union: Some(TargetUnion::ModRevision(revision)),
                range_end: Bytes::new(),
            }],
            success: vec![op(PbOp::RequestPut(put("k", "new").into_inner()))],
            failure: vec![op(PbOp::RequestRange(get("k")))],
        })
    };
    let made = kv.txn(txn(0)).await.unwrap().into_inner();
    assert!(made.succeeded);
    assert_eq!(made.header.unwrap().revision, 2);
    let late = kv.txn(txn(0)).await.unwrap().into_inner();
    assert!(!late.succeeded);
    assert_eq!(late.header.unwrap().revision, 2);
    let again = kv.txn(txn(2)).await.unwrap().into_inner();
    assert_eq!((again.succeeded, again.header.unwrap().revision), (true, 3));
    let nothing = kv.txn(Request::new(pb::TxnRequest::default())).await.unwrap().into_inner();
    assert_eq!((nothing.succeeded, nothing.header.unwrap().revision), (true, 3));
}

async fn streamed(kv: &KvService, request: pb::RangeRequest) -> Vec<pb::RangeResponse> {
    let stream = kv.range_stream(Request::new(request)).await.unwrap().into_inner();
    stream.map(|piece| piece.unwrap().range_response.unwrap()).collect().await
}

#[tokio::test]
async fn a_streamed_range_is_the_range_in_pieces() {
    let one = One::start().await;
    let kv = KvService::new(one.etcd.clone());
    for n in 0..100 {
        kv.put(put(&format!("k/{n:03}"), "v")).await.unwrap();
    }
    for (request, expect) in [
        (prefix("k/"), 100),
        (pb::RangeRequest { limit: 37, ..prefix("k/") }, 37),
        (pb::RangeRequest { limit: 10, ..prefix("k/") }, 10),
        (pb::RangeRequest { limit: 100, ..prefix("k/") }, 100),
        (pb::RangeRequest { revision: 50, keys_only: true, ..prefix("k/") }, 49),
        (pb::RangeRequest { count_only: true, ..prefix("k/") }, 0),
        (get("k/005"), 1),
        (get("none"), 0),
    ] {
        let whole = kv.range(Request::new(request.clone())).await.unwrap().into_inner();
        let pieces = streamed(&kv, request.clone()).await;
        let (last, others) = pieces.split_last().unwrap();
        for piece in others {
            assert_eq!((&piece.header, piece.count, piece.more), (&None, 0, false));
        }
        assert_eq!((last.count, last.more), (whole.count, whole.more), "{request:?}");
        assert!(last.header.is_some());
        let kvs: Vec<_> = pieces.iter().flat_map(|piece| piece.kvs.clone()).collect();
        assert_eq!(kvs.len(), expect, "{request:?}");
        assert_eq!(kvs, whole.kvs);
    }
    let sorted = pb::RangeRequest { sort_order: 2, ..prefix("k/") };
    let refused = kv.range_stream(Request::new(sorted)).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let compacted = pb::RangeRequest { revision: 500, ..prefix("k/") };
    let refused = kv.range_stream(Request::new(compacted)).await.map(|_| ()).unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "before the stream begins");
}

#[tokio::test]
async fn a_stream_shows_one_revision_whatever_is_written_meanwhile() {
    let one = One::start().await;
    let kv = KvService::new(one.etcd.clone());
    for n in 0..40 {
        kv.put(put(&format!("k/{n:03}"), "old")).await.unwrap();
    }
    let mut stream = kv.range_stream(Request::new(prefix("k/"))).await.unwrap().into_inner();
    let first = stream.next().await.unwrap().unwrap().range_response.unwrap();
    for n in 0..40 {
        kv.put(put(&format!("k/{n:03}"), "new")).await.unwrap();
    }
    kv.put(put("k/999", "new")).await.unwrap();
    let rest: Vec<_> = stream.map(|piece| piece.unwrap().range_response.unwrap()).collect().await;
    let kvs: Vec<_> = first.kvs.iter().chain(rest.iter().flat_map(|piece| &piece.kvs)).collect();
    assert_eq!(kvs.len(), 40);
    assert!(kvs.iter().all(|kv| kv.value == "old"));
    let last = rest.last().unwrap();
    assert_eq!((last.count, last.header.as_ref().unwrap().revision), (40, 41));
}

/// A slow reader may not go on reading what it may not read any more.
#[tokio::test]
async fn a_stream_ends_where_its_reader_may_not_read_any_more() {
    let one = One::start().await;
    let kv = KvService::new(one.etcd.clone());
    for n in 0..40 {
        kv.put(put(&format!("b{n:03}"), "v")).await.unwrap();
    }
    one.enable_auth().await;
    let mut stream = kv.range_stream(named(prefix("b"), "bob")).await.unwrap().into_inner();
    stream.next().await.unwrap().unwrap();
    one.auth(AuthChange::RoleAdd { role: "other".into() }).await;
    stream.next().await.unwrap().unwrap();
    one.auth(AuthChange::UserRevoke { name: "bob".into(), role: "b".into() }).await;
    let refused = stream.next().await.unwrap().unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::PermissionDenied, "etcdserver: permission denied")
    );
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn without_a_leader_who_asks_for_one_is_refused() {
    let one = One::start().await;
    let asking = || {
        let mut request = Request::new(pb::RangeRequest { serializable: true, ..get("k") });
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        request
    };
    KvService::new(one.etcd.clone()).range(asking()).await.unwrap();
    let leaderless = KvService::new(one.seen_as(false, Role::Follower));
    assert_eq!(told(leaderless.range(asking()).await), says(Code::Unavailable, "no leader"));
    let quiet = Request::new(pb::RangeRequest { serializable: true, ..get("k") });
    leaderless.range(quiet).await.unwrap();
}

#[tokio::test]
async fn a_learner_answers_serializable_ranges_alone() {
    let one = One::start().await;
    let learner = KvService::new(one.seen_as(true, Role::Learner));
    let serializable = Request::new(pb::RangeRequest { serializable: true, ..get("k") });
    learner.range(serializable).await.unwrap();
    assert_eq!(
        told(learner.range(Request::new(get("k"))).await),
        says(Code::FailedPrecondition, "rpc not supported for learner")
    );
    assert_eq!(
        told(learner.put(put("k", "1")).await),
        says(Code::FailedPrecondition, "rpc not supported for learner")
    );
    let txn = learner.txn(Request::new(pb::TxnRequest::default())).await;
    assert_eq!(told(txn), says(Code::FailedPrecondition, "rpc not supported for learner"));
}

/// What Debian's etcd (3.4.23) answers to the same: relations and targets that there are not.
#[tokio::test]
async fn compares_that_etcd_does_not_know_hold_as_they_do_there() {
    let one = One::start().await;
    let kv = KvService::new(one.etcd.clone());
    kv.put(put("k", "v")).await.unwrap();
    let check = async |key: &str, result: i32, target: i32, given: Option<TargetUnion>, expect: bool| {
        let key: Bytes = key.to_owned().into();
        let compare = pb::Compare { result, target, key, target_union: given, range_end: Bytes::new() };
        let request = pb::TxnRequest { compare: vec![compare.clone()], ..Default::default() };
        let answer = kv.txn(Request::new(request)).await.unwrap().into_inner();
        assert_eq!(answer.succeeded, expect, "{compare:?}");
    };
    let value = |value: &'static str| Some(TargetUnion::Value(value.into()));
    check("k", 7, 0, Some(TargetUnion::Version(99)), true).await;
    check("none", 7, 3, value("v"), false).await;
    check("k", 7, 3, value("x"), true).await;
    check("k", 0, 7, None, true).await;
    check("k", 1, 7, None, false).await;
    check("k", 3, 7, None, false).await;
    check("none", 0, 7, None, true).await;
}
