//! What an orchestrator's manager does with the crate: three managers, each linking one member,
//! share their state; each runs its duties while it leads, fenced by the term.
//!
//! `cargo run -p raft-kv --example embedded`: ends by itself and says what it did.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use raft_kv::client::{Config, Handle, Node, Tuning};
use raft_kv::types::{
    Compare, CompareOp, CompareTarget, KeyRange, MemberRole, PutRequest, Role, TxnOp, TxnRequest, WatchBatch,
    WatchRequest,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn config(folder: &Path, name: &str) -> Result<Config, Failure> {
    // A free port of this machine; a real manager is told its address.
    let listen_addr: SocketAddr = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
    let data_dir = folder.join(name);
    Ok(Config {
        data_dir,
        name: name.into(),
        listen_addr,
        advertise_addr: None,
        client_addr: None,
        advertise_client_addr: None,
        own_root: None,
        external_signer: None,
        tuning: Tuning::default(),
    })
}

fn put(key: &str, value: String) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.into(), ..PutRequest::default() }
}

/// Writes a decision of the leader of `term`, unless a later leader has written since: the term is
/// the fencing token.
async fn decide(handle: &Handle, term: u64, decision: &str) -> Result<bool, Failure> {
    let fence = KeyRange::key("leader/term");
    let known = handle.get("leader/term").await?;
    let (newest, at) = match &known {
        Some(kv) => (String::from_utf8_lossy(&kv.value).parse::<u64>()?, kv.mod_revision),
        None => (0, 0),
    };
    if newest > term {
        return Ok(false);
    }
    let unchanged = Compare { range: fence, op: CompareOp::Equal, target: CompareTarget::Mod(at) };
    let writes = [put("leader/term", term.to_string()), put("decision", decision.to_owned())];
    let success = writes.into_iter().map(TxnOp::Put).collect();
    let (_, done) = handle.txn(TxnRequest { compares: vec![unchanged], success, failure: vec![] }).await?;
    Ok(done.succeeded)
}

async fn until_all_vote(handle: &Handle, count: usize) -> Result<(), Failure> {
    for _ in 0..200 {
        let (_, members) = handle.members().await?;
        if members.iter().filter(|member| member.role == MemberRole::Voter).count() == count {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err("the joiners did not become voters within 10 s".into())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;

    // The first manager makes the cluster, the others join it by token.
    let first = Node::init(config(folder.path(), "manager-1")?).await?;
    let token = first.handle().join_token(Role::Manager).await?;
    let endpoints = [first.addr().to_owned()];
    let second = Node::join(config(folder.path(), "manager-2")?, &token, &endpoints).await?;
    let third = Node::join(config(folder.path(), "manager-3")?, &token, &endpoints).await?;
    until_all_vote(&first.handle(), 3).await?;
    println!("three managers form cluster {}", first.cluster());

    // Any manager writes; any other reads it at once, and follows what changes.
    second.handle().put(put("services/web", "replicas=3".into())).await?;
    let found = third.handle().get("services/web").await?.ok_or("a read must see an earlier write")?;
    println!("manager-3 reads services/web = {}", found.value.escape_ascii());
    let range = KeyRange::prefix("services/");
    let mut watch = third.handle().watch(WatchRequest { range, ..WatchRequest::default() }).await?;
    second.handle().put(put("services/web", "replicas=5".into())).await?;
    if let Some(WatchBatch::Changes(changes)) = watch.next().await? {
        println!("manager-3 sees revision {} of services/", changes[0].revision);
    }

    // The leader runs its duties under its term. It stops cleanly; the next one takes over, and
    // what the old one still wants to decide is refused.
    let mut leadership = second.leadership();
    let before = *leadership.borrow();
    println!(
        "term {}: decided = {}",
        before.term,
        decide(&first.handle(), before.term, "scale web to 5").await?
    );
    first.shutdown().await?;
    let after = *leadership.wait_for(|now| now.term > before.term && now.leader.is_some()).await?;
    println!(
        "term {}: decided = {}",
        after.term,
        decide(&second.handle(), after.term, "scale web to 6").await?
    );
    let late = decide(&third.handle(), before.term, "scale web to 1").await?;
    println!("term {}: decided = {late} (a stale leader is refused)", before.term);
    let decision = third.handle().get("decision").await?.ok_or("a decision was written")?;
    if late || decision.value != "scale web to 6" {
        return Err("a stale leader's decision was taken".into());
    }

    third.shutdown().await?;
    second.shutdown().await?;
    println!("stopped cleanly");
    Ok(())
}
