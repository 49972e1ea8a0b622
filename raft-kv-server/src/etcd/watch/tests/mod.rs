//! The Watch service over a real member of its own, in this process.

mod bugs;
mod model;
mod protocol;
mod recipes;
mod scale;
mod tokens;
mod transport;

use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use etcd_api::etcdserverpb::watch_request::RequestUnion;
use etcd_api::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use raft_kv::client::{Config, Handle, Node, Overrides, Tuning};
use raft_kv::types::{DeleteRequest, KeyRange, PutRequest, Revision, TxnOp, TxnRequest};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use super::{Answers, WatchService};
use crate::etcd::Etcd;
use crate::etcd::Who;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A member and the service on it.
pub(crate) struct World {
    pub(crate) node: Option<Node>,
    pub(crate) handle: Handle,
    pub(crate) service: WatchService,
    folder: tempfile::TempDir,
}

fn tuning() -> Tuning {
    Tuning { log_segment_bytes: 4 * 1024 * 1024, ..Tuning::default() }
}

pub(crate) fn etcd(node: &Node) -> Etcd {
    Etcd::new(node.handle(), node.cluster(), node.id()).with_leadership(node.leadership())
}

pub(crate) fn config(folder: &Path) -> Config {
    let listen_addr = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    Config {
        data_dir: folder.join("one"),
        name: "one".into(),
        listen_addr,
        advertise_addr: None,
        client_addr: None,
        advertise_client_addr: None,
        own_root: None,
        external_signer: None,
        tuning: tuning(),
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let node = Node::init(config(folder.path())).await.unwrap();
        let service = WatchService::new(etcd(&node));
        let world = Self { handle: node.handle(), node: Some(node), service, folder };
        // The first write waits for the first leader.
        world.delete("nothing").await;
        world
    }

    /// Stops the member and starts it again: nothing is in memory any more, and what was is to be
    /// read from the disk.
    async fn restarted(self) -> Self {
        let Self { node, folder, handle, service } = self;
        drop((handle, service));
        node.unwrap().shutdown().await.unwrap();
        let dir = folder.path().join("one");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let node = loop {
            // The tasks of its streams may hold it a moment longer.
            match Node::open(&dir, Overrides::default(), tuning()).await {
                Ok(node) => break node,
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
            }
            tokio::task::yield_now().await;
        };
        let (handle, service) = (node.handle(), WatchService::new(etcd(&node)));
        let world = Self { node: Some(node), handle, service, folder };
        world.delete("nothing").await;
        world
    }

    pub(crate) async fn put(&self, key: &str, value: &str) -> Revision {
        let request = PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..PutRequest::default()
        };
        self.handle.put(request).await.unwrap().0.revision
    }

    pub(crate) async fn delete(&self, key: &str) -> Revision {
        let range = KeyRange::key(key.to_owned());
        self.handle.delete(DeleteRequest { range, prev_kv: false }).await.unwrap().0.revision
    }

    /// Puts several keys in one revision.
    async fn put_all(&self, keys: impl IntoIterator<Item = (String, Vec<u8>)>) -> Revision {
        let op = |(key, value): (String, Vec<u8>)| {
            TxnOp::Put(PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() })
        };
        let success = keys.into_iter().map(op).collect();
        self.handle.txn(TxnRequest { success, ..TxnRequest::default() }).await.unwrap().0.revision
    }

    fn open(&self) -> Client {
        self.open_as(Who::default())
    }

    fn open_as(&self, who: Who) -> Client {
        let (requests, received) = mpsc::unbounded_channel();
        let received = UnboundedReceiverStream::new(received);
        let answers = self.service.follow(who, true, received).unwrap();
        Client { requests: Some(requests), answers }
    }
}

/// One stream as its client has it.
struct Client {
    requests: Option<mpsc::UnboundedSender<Result<WatchRequest, Status>>>,
    answers: Answers,
}

/// A watcher of one key from now on, whose number the server picks.
fn watch(key: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.to_owned().into(), ..WatchCreateRequest::default() }
}

/// A watcher of all keys with this prefix.
fn watch_prefix(prefix: &str) -> WatchCreateRequest {
    WatchCreateRequest { range_end: KeyRange::prefix(prefix.to_owned()).end, ..watch(prefix) }
}

impl Client {
    fn send(&self, union: RequestUnion) {
        let request = WatchRequest { request_union: Some(union) };
        self.requests.as_ref().expect("it has not ended").send(Ok(request)).unwrap();
    }

    fn create(&self, create: WatchCreateRequest) {
        self.send(RequestUnion::CreateRequest(create));
    }

    fn cancel(&self, watch_id: i64) {
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }));
    }

    fn ask_progress(&self) {
        self.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    }

    async fn next(&mut self) -> WatchResponse {
        self.next_or_end().await.expect("the stream goes on").expect("no error")
    }

    async fn next_or_end(&mut self) -> Option<Result<WatchResponse, Status>> {
        tokio::time::timeout(PATIENCE, self.answers.next()).await.expect("an answer in time")
    }

    /// Creates a watcher that must be possible; its number.
    async fn created(&mut self, create: WatchCreateRequest) -> i64 {
        self.create(create);
        let answer = self.next().await;
        assert!(answer.created && !answer.canceled && answer.events.is_empty(), "{answer:?}");
        answer.watch_id
    }

    /// Answers up to and including one that `last` is true for.
    async fn until(&mut self, last: impl Fn(&WatchResponse) -> bool) -> Vec<WatchResponse> {
        let mut all = Vec::new();
        loop {
            let answer = self.next().await;
            let done = last(&answer);
            all.push(answer);
            if done {
                return all;
            }
        }
    }

    /// What comes next is about this: nothing was sent before it.
    async fn silent_until_progress(&mut self, revision: Revision) {
        self.ask_progress();
        let answer = self.next().await;
        assert_eq!(kind(&answer), format!("progress of -1 at {revision}"));
    }
}

/// What an answer says, in one line.
fn kind(answer: &WatchResponse) -> String {
    let revision = answer.header.as_ref().expect("every answer has a header").revision;
    let id = answer.watch_id;
    match answer {
        WatchResponse { created: true, canceled: true, cancel_reason, .. } => {
            format!("refused {id}: {cancel_reason}")
        }
        WatchResponse { created: true, .. } => format!("created {id} at {revision}"),
        WatchResponse { canceled: true, compact_revision, cancel_reason, .. } => {
            format!("canceled {id}, compacted {compact_revision} {cancel_reason}").trim_end().to_owned()
        }
        WatchResponse { events, .. } if events.is_empty() => format!("progress of {id} at {revision}"),
        WatchResponse { events, fragment, .. } => {
            let last = events.iter().map(revision_of).max().unwrap();
            assert!(last <= revision, "the header is behind the events");
            let more = if *fragment { " and more" } else { "" };
            format!("{id}: {}{more}", events.iter().map(event_text).collect::<Vec<_>>().join(" "))
        }
    }
}

fn revision_of(event: &etcd_api::mvccpb::Event) -> Revision {
    event.kv.as_ref().expect("every event has its key").mod_revision
}

fn event_text(event: &etcd_api::mvccpb::Event) -> String {
    let kv = event.kv.as_ref().expect("every event has its key");
    let sign = if event.r#type == 0 { "+" } else { "-" };
    let key = String::from_utf8_lossy(&kv.key);
    let before = event.prev_kv.as_ref().map_or(String::new(), |before| format!("<{}", before.mod_revision));
    format!("{sign}{key}@{}{before}", kv.mod_revision)
}
