//! The crate `etcd-client`, as its registry has it.

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, Identity, LockOptions,
    PutOptions, TlsOptions, Txn, TxnOp, WatchOptions,
};

use super::Setting;
use crate::server::Place;

/// Keys, transactions, watches, leases, locks, elections, members.
///
/// # Errors
/// What was not as expected.
pub async fn run(setting: &Setting) -> Result<(), String> {
    let server = setting.cluster().await?;
    scenario(server.place()).await.map_err(|error| error.to_string())
}

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn connect(place: &Place) -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
    let mut options = ConnectOptions::new();
    let mut scheme = "http";
    if let Some(files) = &place.files {
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(std::fs::read(&files.ca)?))
            .identity(Identity::from_pem(std::fs::read(&files.cert)?, std::fs::read(&files.key)?));
        options = options.with_tls(tls);
        scheme = "https";
    }
    let endpoints: Vec<String> = place.addrs.iter().map(|addr| format!("{scheme}://{addr}")).collect();
    Ok(Client::connect(endpoints, Some(options)).await?)
}

async fn scenario(place: &Place) -> Outcome {
    let mut client = connect(place).await?;
    keys(&mut client).await?;
    eprintln!("ok keys");
    transaction(&mut client).await?;
    eprintln!("ok transaction");
    watch(&mut client).await?;
    eprintln!("ok watch");
    lease(&mut client).await?;
    eprintln!("ok lease");
    lock_and_election(&mut client).await?;
    eprintln!("ok lock_and_election");
    let members = client.member_list().await?;
    let leader = client.status().await?.leader();
    expect(members.members().iter().any(|member| member.id() == leader), "the leader is a member")?;
    let (first, second) = (client.hash_kv(0).await?, client.hash_kv(0).await?);
    expect(first.hash() == second.hash() || place.addrs.len() > 1, "a hash stays the same")?;
    Ok(())
}

fn expect(holds: bool, what: &str) -> Outcome {
    if holds { Ok(()) } else { Err(format!("not so: {what}").into()) }
}

async fn keys(client: &mut Client) -> Outcome {
    client.put("rs/a", "1", None).await?;
    client.put("rs/b", "2", None).await?;
    let put = client.put("rs/a", "3", Some(PutOptions::new().with_prev_key())).await?;
    expect(put.prev_key().is_some_and(|kv| kv.value() == b"1"), "the previous value")?;
    let got = client.get("rs/", Some(GetOptions::new().with_prefix().with_keys_only())).await?;
    expect(got.count() == 2 && got.kvs().iter().all(|kv| kv.value().is_empty()), "keys without values")?;
    let got = client.get("rs/", Some(GetOptions::new().with_prefix().with_limit(1))).await?;
    expect(got.more() && got.count() == 2 && got.kvs().len() == 1, "a limited range")?;
    let deleted = client.delete("rs/b", None).await?;
    expect(deleted.deleted() == 1, "one key is deleted")
}

async fn transaction(client: &mut Client) -> Outcome {
    let txn = Txn::new()
        .when([
            Compare::value("rs/a", CompareOp::Equal, "3"),
            Compare::version("rs/none", CompareOp::Equal, 0),
        ])
        .and_then([TxnOp::put("rs/t", "yes", None), TxnOp::get("rs/a", None)])
        .or_else([TxnOp::put("rs/t", "no", None)]);
    let answer = client.txn(txn).await?;
    expect(answer.succeeded() && answer.op_responses().len() == 2, "both compares hold")?;
    let got = client.get("rs/t", None).await?;
    expect(got.kvs().first().is_some_and(|kv| kv.value() == b"yes"), "the branch was carried out")
}

async fn watch(client: &mut Client) -> Outcome {
    let options = WatchOptions::new().with_prefix().with_prev_key();
    let mut stream = client.watch("rs/w/", Some(options)).await?;
    client.put("rs/w/1", "x", None).await?;
    client.put("rs/w/1", "y", None).await?;
    client.delete("rs/w/1", None).await?;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let response = stream.message().await?.ok_or("the stream has ended")?;
        for event in response.events() {
            let previous = event.prev_kv().map(|kv| kv.value().to_vec());
            seen.push((event.event_type() == EventType::Put, previous));
        }
    }
    let expected = [(true, None), (true, Some(b"x".to_vec())), (false, Some(b"y".to_vec()))];
    expect(seen == expected, "three events with what was before")
}

async fn lease(client: &mut Client) -> Outcome {
    let granted = client.lease_grant(600, None).await?;
    client.put("rs/l", "x", Some(PutOptions::new().with_lease(granted.id()))).await?;
    let (mut keeper, mut answers) = client.lease_keep_alive(granted.id()).await?;
    keeper.keep_alive().await?;
    let kept = answers.message().await?.ok_or("no answer to the keep-alive")?;
    expect(kept.ttl() == 600, "the lease is renewed")?;
    let left = client
        .lease_time_to_live(granted.id(), Some(etcd_client::LeaseTimeToLiveOptions::new().with_keys()))
        .await?;
    expect(left.keys() == [b"rs/l".to_vec()], "the lease's key")?;
    client.lease_revoke(granted.id()).await?;
    expect(client.get("rs/l", None).await?.kvs().is_empty(), "the key is gone with its lease")
}

async fn lock_and_election(client: &mut Client) -> Outcome {
    let lease = client.lease_grant(600, None).await?.id();
    let lock = client.lock("rs-lock", Some(LockOptions::new().with_lease(lease))).await?;
    client.unlock(lock.key()).await?;
    let won = client.campaign("rs-election", "me", lease).await?;
    let key = won.leader().ok_or("no leader key")?.clone();
    let leader = client.leader("rs-election").await?;
    expect(leader.kv().is_some_and(|kv| kv.value() == b"me"), "the winner leads")?;
    client.resign(Some(etcd_client::ResignOptions::new().with_leader(key))).await?;
    expect(client.leader("rs-election").await.is_err(), "nobody leads")
}
