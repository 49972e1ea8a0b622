//! Over HTTP/2, as a client has it, in memory; and what happens without a leader.

use etcd_api::etcdserverpb::watch_client::WatchClient;
use etcd_api::etcdserverpb::watch_server::WatchServer;
use raft_kv::raft::{Leadership, Role};
use raft_kv::types::NodeId;
use tokio::sync::watch as channel;
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request};

use super::*;

async fn connected(service: WatchService) -> WatchClient<Channel> {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(theirs));
    tokio::spawn(Server::builder().add_service(WatchServer::new(service)).serve_with_incoming(incoming));
    let mut ours = Some(hyper_util::rt::TokioIo::new(ours));
    let connector = tower::service_fn(move |_| {
        let ours = ours.take().ok_or_else(|| std::io::Error::other("it is connected once"));
        async move { ours }
    });
    let endpoint = Endpoint::from_static("http://127.0.0.1");
    WatchClient::new(endpoint.connect_with_connector(connector).await.unwrap())
}

fn requests(create: WatchCreateRequest, needs_leader: bool) -> Request<impl Stream<Item = WatchRequest>> {
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let mut request = Request::new(tokio_stream::once(request));
    if needs_leader {
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    }
    request
}

#[tokio::test]
async fn a_grpc_client_follows_keys() {
    let world = World::new().await;
    let mut client = connected(world.service.clone()).await;
    let mut answers = client.watch(requests(watch("a"), true)).await.unwrap().into_inner();
    assert_eq!(kind(&answers.message().await.unwrap().unwrap()), "created 0 at 1");
    world.put("a", "").await;
    // Its requests have ended; its answers go on.
    assert_eq!(kind(&answers.message().await.unwrap().unwrap()), "0: +a@2");
}

#[tokio::test]
async fn streams_that_need_a_leader_end_without_one_and_others_go_on() {
    let world = World::new().await;
    let node = world.node.as_ref().unwrap();
    let leader = |leader| Leadership { term: 1, role: Role::Follower, leader, ready: false };
    let (tell, leadership) = channel::channel(leader(None));
    let etcd = Etcd::new(node.handle(), node.cluster(), node.id()).with_leadership(leadership);
    let mut client = connected(WatchService::new(etcd)).await;
    let refused = client.watch(requests(watch("a"), true)).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "etcdserver: no leader"));
    let mut other = client.watch(requests(watch("a"), false)).await.unwrap().into_inner();
    assert!(other.message().await.unwrap().unwrap().created);

    tell.send_replace(leader(Some(NodeId(1))));
    let mut answers = client.watch(requests(watch("a"), true)).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().unwrap().created);
    // A short gap is nothing.
    tell.send_replace(leader(None));
    tell.send_replace(leader(Some(NodeId(2))));
    world.put("a", "").await;
    assert_eq!(answers.message().await.unwrap().unwrap().events.len(), 1);
    let began = std::time::Instant::now();
    tell.send_replace(leader(None));
    let ended = answers.message().await.unwrap_err();
    assert_eq!((ended.code(), ended.message()), (Code::Unavailable, "etcdserver: no leader"));
    assert!(began.elapsed() >= Duration::from_secs(3), "three election timeouts");
    assert_eq!(other.message().await.unwrap().unwrap().events.len(), 1);
}
