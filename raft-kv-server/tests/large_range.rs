//! Unary ranges above what one answer may hold in memory, as a client meets them: the same message
//! as any other, or an error; never a wrong one.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use etcd_api::etcdserverpb::kv_client::KvClient;
use etcd_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use etcd_api::etcdserverpb::{DeleteRangeRequest, RangeRequest};
use http_body_util::{BodyExt, Full};
use prost::Message;
use raft_kv::client::{Config, Node, Tuning};
use raft_kv::types::PutRequest;
use raft_kv_server::etcd::{self, Etcd};
use tonic::Code;
use tower::ServiceExt;

const VALUE_BYTES: usize = 900 * 1024;
const KEYS: usize = 90;

/// A member with more under `large/` than an answer may hold in memory.
async fn member(folder: &std::path::Path) -> Node {
    let config = Config {
        data_dir: folder.join("a"),
        name: "a".into(),
        listen_addr: UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
        advertise_addr: None,
        client_addr: None,
        advertise_client_addr: None,
        own_root: None,
        external_signer: None,
        tuning: Tuning::default(),
    };
    let node = Node::init(config).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while node.handle().get("x").await.is_err() {
        assert!(Instant::now() < deadline, "it leads within 20 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for at in 0..KEYS {
        let (key, value) = (key(at).into(), value(at).into());
        node.handle().put(PutRequest { key, value, ..PutRequest::default() }).await.unwrap();
    }
    node
}

fn key(at: usize) -> String {
    format!("large/{at:03}")
}

fn value(at: usize) -> Vec<u8> {
    (0..VALUE_BYTES).map(|byte| (byte * (at + 1)) as u8).collect()
}

fn all() -> RangeRequest {
    RangeRequest { key: "large/".into(), range_end: "large0".into(), ..RangeRequest::default() }
}

#[tokio::test]
async fn an_answer_of_any_size_is_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let node = member(folder.path()).await;
    let routes = etcd::routes(Etcd::new(node.handle(), node.cluster(), node.id()));
    let mut client = KvClient::new(routes.prepare().into_axum_router()).max_decoding_message_size(usize::MAX);
    let mut check = async |request: RangeRequest, keys: usize, more: bool| {
        let found = client.range(request).await.unwrap().into_inner();
        assert_eq!((found.kvs.len(), found.more, found.count), (keys, more, KEYS as i64));
        for (at, kv) in found.kvs.iter().enumerate() {
            assert!(kv.key == key(at) && kv.value == value(at), "{:?} is as it was put", kv.key);
            assert_eq!((kv.create_revision, kv.version), (at as i64 + 2, 1));
        }
        found.header.unwrap()
    };
    let header = check(all(), KEYS, false).await;
    assert_eq!((header.revision, header.member_id), (KEYS as i64 + 1, node.id().0));
    check(RangeRequest { limit: 80, ..all() }, 80, true).await;
    check(RangeRequest { serializable: true, ..all() }, KEYS, false).await;
    // As of an older revision, of which one key is different now.
    let overwrite = PutRequest { key: key(3).into(), value: "x".into(), ..PutRequest::default() };
    node.handle().put(overwrite).await.unwrap();
    let header = check(RangeRequest { revision: KEYS as i64 + 1, ..all() }, KEYS, false).await;
    assert_eq!(header.revision, KEYS as i64 + 2);
    let sorted =
        RangeRequest { sort_order: SortOrder::Descend as i32, sort_target: SortTarget::Mod as i32, ..all() };
    assert_eq!(client.range(sorted).await.unwrap_err().code(), Code::ResourceExhausted);
    node.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_is_compacted_meanwhile_ends_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let node = member(folder.path()).await;
    let routes = etcd::routes(Etcd::new(node.handle(), node.cluster(), node.id()));
    let message = all().encode_to_vec();
    let framed = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    let request = http::Request::post("/etcdserverpb.KV/Range")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(bytes::Bytes::from(framed)))
        .unwrap();
    let router = routes.prepare().into_axum_router();
    let mut body = router.oneshot(request).await.unwrap().into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(u32::from_be_bytes(first[1..5].try_into().unwrap()) as usize > KEYS * VALUE_BYTES);
    let mut client = KvClient::new(
        etcd::routes(Etcd::new(node.handle(), node.cluster(), node.id())).prepare().into_axum_router(),
    );
    let delete = DeleteRangeRequest { key: "large/".into(), range_end: "large0".into(), prev_kv: false };
    let revision = client.delete_range(delete).await.unwrap().into_inner().header.unwrap().revision;
    node.handle().compact(revision, true).await.unwrap();
    let mut sent = 0;
    let ended = loop {
        match body.frame().await {
            Some(Ok(frame)) => sent += frame.into_data().expect("no trailers say that all is well").len(),
            other => break other,
        }
    };
    assert!(matches!(ended, Some(Err(_))), "it ends with an error, not with {ended:?}");
    assert!(sent < KEYS * VALUE_BYTES);
    node.shutdown().await.unwrap();
}
