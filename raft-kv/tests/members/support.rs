//! Clusters of members in this process, each with its own folder and port.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use raft_kv::client::{Config, Handle, Node, Tuning};
use raft_kv::types::{MemberRole, PutRequest, Role};

pub fn free_addr() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub fn tuning() -> Tuning {
    Tuning { log_segment_bytes: 1024 * 1024, ..Tuning::default() }
}

pub fn config(dir: &Path, name: &str) -> Config {
    Config {
        data_dir: dir.join(name),
        name: name.into(),
        listen_addr: free_addr(),
        advertise_addr: None,
        client_addr: None,
        advertise_client_addr: None,
        own_root: None,
        external_signer: None,
        tuning: tuning(),
    }
}

pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn voters(handle: &Handle) -> usize {
    let members = handle.members().await.map(|(_, members)| members).unwrap_or_default();
    members.iter().filter(|member| member.role == MemberRole::Voter).count()
}

pub fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() }
}

pub async fn value(handle: &Handle, key: &str) -> Option<String> {
    let found = handle.get(key.to_owned()).await.unwrap();
    found.map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

/// RUST_LOG=debug shows what a failing run did.
pub fn logs() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

pub async fn cluster(dir: &Path, names: &[&str]) -> Vec<Node> {
    logs();
    let first = Node::init(config(dir, names[0])).await.unwrap();
    let token = first.handle().join_token(Role::Manager).await.unwrap();
    let mut nodes = vec![first];
    for name in &names[1..] {
        let endpoints = vec![nodes[0].addr().to_owned()];
        nodes.push(Node::join(config(dir, name), &token, &endpoints).await.unwrap());
    }
    let count = names.len();
    eventually("all vote", || async { (voters(&nodes[0].handle()).await == count).then_some(()) }).await;
    nodes
}
