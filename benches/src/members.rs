//! Members of one cluster in this process, on loopback.

use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use raft_kv::client::{Config, Node, Tuning};
use raft_kv::raft::Role as Office;
use raft_kv::types::{MemberRole, Role};

const START_LIMIT: Duration = Duration::from_secs(60);

/// Starts `count` of them with their data below `dir`, and waits until all vote.
///
/// # Errors
/// What a member said, or that not all vote in time.
pub async fn start(dir: &Path, count: u64) -> Result<Vec<Node>, String> {
    let config = |number: u64| {
        let socket = UdpSocket::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        Ok::<_, String>(Config {
            data_dir: dir.join(format!("n{number}")),
            name: format!("n{number}"),
            listen_addr: socket.local_addr().map_err(|error| error.to_string())?,
            advertise_addr: None,
            client_addr: None,
            advertise_client_addr: None,
            own_root: None,
            external_signer: None,
            tuning: Tuning::default(),
        })
    };
    let first = Node::init(config(1)?).await.map_err(|error| error.to_string())?;
    let (handle, seed) = (first.handle(), vec![first.addr().to_owned()]);
    let token = handle.join_token(Role::Manager).await.map_err(|error| error.to_string())?;
    let mut nodes = vec![first];
    for number in 2..=count {
        nodes.push(Node::join(config(number)?, &token, &seed).await.map_err(|error| error.to_string())?);
    }
    let began = Instant::now();
    loop {
        let members = handle.members().await.map(|(_, members)| members).unwrap_or_default();
        if members.iter().filter(|member| member.role == MemberRole::Voter).count() as u64 == count {
            return Ok(nodes);
        }
        if began.elapsed() > START_LIMIT {
            return Err(format!("not all members vote: {members:?}"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The place in `nodes` of the one that leads and is ready.
///
/// # Errors
/// If there is none for a minute.
pub async fn leader(nodes: &[Node]) -> Result<usize, String> {
    let began = Instant::now();
    loop {
        let leads = nodes.iter().position(|node| {
            let told = *node.leadership().borrow();
            told.role == Office::Leader && told.ready
        });
        if let Some(leader) = leads {
            return Ok(leader);
        }
        if began.elapsed() > START_LIMIT {
            return Err("no member leads".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
