//! Locks and elections over a real member.

use etcd_api::v3electionpb::election_server::Election;
use etcd_api::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest};
use etcd_api::v3lockpb::lock_server::Lock;
use etcd_api::v3lockpb::{LockRequest, UnlockRequest};
use raft_kv::types::{AuthChange, Permission, PermissionKind};
use tonic::{Code, Request};

use super::*;
use crate::etcd::Certificate;
use crate::etcd::election::ElectionService;
use crate::etcd::lock::LockService;

fn failure<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (Code, String) {
    let status = outcome.unwrap_err();
    (status.code(), status.message().to_owned())
}

async fn keys(world: &World, prefix: &str) -> usize {
    let range =
        raft_kv::types::RangeRequest { range: KeyRange::prefix(prefix.to_owned()), ..Default::default() };
    world.handle.range(range).await.unwrap().1.kvs.len()
}

async fn until_keys(world: &World, prefix: &str, count: usize) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while keys(world, prefix).await != count {
        assert!(tokio::time::Instant::now() < deadline, "not {count} keys under {prefix}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_lock_is_held_by_one_and_passed_on() {
    let world = World::new().await;
    let service = LockService::new(etcd(world.node.as_ref().unwrap()));
    let lock = |lease| {
        let service = service.clone();
        async move { service.lock(Request::new(LockRequest { name: "l".into(), lease })).await }
    };
    for lease in [1, 2, 3, 4] {
        world.handle.lease_grant(lease, 60).await.unwrap();
    }
    let first = lock(1).await.unwrap().into_inner();
    assert_eq!(first.key, "l/1");
    // The same session has it already.
    assert_eq!(lock(1).await.unwrap().into_inner().key, "l/1");
    let second = tokio::spawn(lock(2));
    until_keys(&world, "l/", 2).await;
    let third = tokio::spawn(lock(3));
    until_keys(&world, "l/", 3).await;
    // One who goes away while waiting leaves no key.
    let gone = tokio::spawn(lock(4));
    until_keys(&world, "l/", 4).await;
    gone.abort();
    until_keys(&world, "l/", 3).await;
    // One whose lease ends while it waits does not get the lock.
    world.handle.lease_revoke(2).await.unwrap();
    assert!(!third.is_finished() && !second.is_finished());
    service.unlock(Request::new(UnlockRequest { key: first.key })).await.unwrap();
    assert_eq!(failure(second.await.unwrap()), (Code::Unknown, "mutex: session is expired".into()));
    assert_eq!(third.await.unwrap().unwrap().into_inner().key, "l/3");
    let unlocked = service.unlock(Request::new(UnlockRequest { key: Default::default() })).await;
    assert_eq!(failure(unlocked), (Code::Unknown, "etcdserver: key is not provided".into()));
    // Without a lease one is granted.
    let own = service.lock(Request::new(LockRequest { name: "m".into(), lease: 0 })).await.unwrap();
    assert!(own.into_inner().key.starts_with(b"m/"));
    assert_eq!(failure(lock(99).await).0, Code::Unknown);
}

#[tokio::test]
async fn an_election_has_one_leader_that_observers_follow() {
    let world = World::new().await;
    let service = ElectionService::new(etcd(world.node.as_ref().unwrap()));
    let campaign = |lease, value: &'static str| {
        let service = service.clone();
        let request = CampaignRequest { name: "e".into(), lease, value: value.into() };
        async move { service.campaign(Request::new(request)).await }
    };
    let name = || Request::new(LeaderRequest { name: "e".into() });
    for lease in [1, 2] {
        world.handle.lease_grant(lease, 60).await.unwrap();
    }
    assert_eq!(failure(service.leader(name()).await), (Code::Unknown, "election: no leader".into()));
    let mut seen = service.observe(name()).await.unwrap().into_inner();
    let leader = campaign(1, "a").await.unwrap().into_inner().leader.unwrap();
    assert_eq!((leader.key.as_ref(), leader.lease), (&b"e/1"[..], 1));
    let other = tokio::spawn(campaign(2, "c"));
    until_keys(&world, "e/", 2).await;
    let proclaim = |leader: &LeaderKey, value: &'static str| {
        let request = ProclaimRequest { leader: Some(leader.clone()), value: value.into() };
        service.proclaim(Request::new(request))
    };
    let mut values = Vec::new();
    values.push(seen.next().await.unwrap().unwrap().kv.unwrap().value);
    proclaim(&leader, "b").await.unwrap();
    values.push(seen.next().await.unwrap().unwrap().kv.unwrap().value);
    assert!(!other.is_finished());
    service.resign(Request::new(ResignRequest { leader: Some(leader.clone()) })).await.unwrap();
    values.push(seen.next().await.unwrap().unwrap().kv.unwrap().value);
    assert_eq!(values, ["a", "b", "c"]);
    assert_eq!(other.await.unwrap().unwrap().into_inner().leader.unwrap().lease, 2);
    assert_eq!(failure(proclaim(&leader, "x").await), (Code::Unknown, "election: not leader".into()));
    // Resigning twice is nothing.
    service.resign(Request::new(ResignRequest { leader: Some(leader) })).await.unwrap();
    let missing = (Code::Unknown, "\"leader\" field must be provided".to_owned());
    assert_eq!(failure(service.resign(Request::new(ResignRequest { leader: None })).await), missing);
    let request = ProclaimRequest { leader: None, value: "x".into() };
    assert_eq!(failure(service.proclaim(Request::new(request)).await), missing);
    let now = service.leader(name()).await.unwrap().into_inner().kv.unwrap();
    assert_eq!(now.value, "c");
}

/// Users count from now on: `bob` may read and write the keys under `l/`.
async fn with_bob(world: &World) {
    let (kind, range) = (PermissionKind::ReadWrite, KeyRange::prefix("l/"));
    let user = |name: &str| AuthChange::UserAdd { name: name.into(), password: None };
    let grant = |name: &str, role: &str| AuthChange::UserGrant { name: name.into(), role: role.into() };
    for change in [
        user("root"),
        AuthChange::RoleAdd { role: "root".into() },
        grant("root", "root"),
        user("bob"),
        AuthChange::RoleAdd { role: "r".into() },
        AuthChange::RoleGrant { role: "r".into(), permission: Permission { kind, range } },
        grant("bob", "r"),
        AuthChange::Enable { token_key: Default::default() },
    ] {
        world.handle.auth_change(change).await.unwrap();
    }
}

fn by_bob<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let role = raft_kv::types::Role::Client;
    request.extensions_mut().insert(Certificate { name: "bob".into(), role });
    request
}

/// Who waits for hours is not let in on what it was allowed when it came.
#[tokio::test]
async fn whoever_waits_is_asked_again_when_permissions_change() {
    let world = World::new().await;
    with_bob(&world).await;
    let etcd = etcd(world.node.as_ref().unwrap());
    let (locks, elections) = (LockService::new(etcd.clone()), ElectionService::new(etcd));
    for lease in [1, 2, 3] {
        world.handle.lease_grant(lease, 60).await.unwrap();
    }
    locks.lock(by_bob(LockRequest { name: "l".into(), lease: 1 })).await.unwrap();
    let lock = {
        let locks = locks.clone();
        async move { locks.lock(by_bob(LockRequest { name: "l".into(), lease: 2 })).await.map(drop) }
    };
    let campaign = {
        let elections = elections.clone();
        let request = CampaignRequest { name: "l".into(), lease: 3, value: "v".into() };
        async move { elections.campaign(by_bob(request)).await.map(drop) }
    };
    let (lock, campaign) = (tokio::spawn(lock), tokio::spawn(campaign));
    let name = LeaderRequest { name: "l".into() };
    let mut observed = elections.observe(by_bob(name)).await.unwrap().into_inner();
    assert_eq!(observed.next().await.unwrap().unwrap().kv.unwrap().key, "l/1");
    // Changes that take nothing from bob end nobody's wait, wherever in it they meet one.
    for number in 0..30 {
        world.handle.auth_change(AuthChange::RoleAdd { role: format!("other{number}") }).await.unwrap();
    }
    until_keys(&world, "l/", 3).await;
    assert!(!lock.is_finished() && !campaign.is_finished());
    let revoke = AuthChange::UserRevoke { name: "bob".into(), role: "r".into() };
    world.handle.auth_change(revoke).await.unwrap();
    let denied = (Code::PermissionDenied, "etcdserver: permission denied".to_owned());
    let ended = async |waits: tokio::task::JoinHandle<Result<(), Status>>| {
        tokio::time::timeout(PATIENCE, waits).await.expect("it ends").unwrap()
    };
    assert_eq!(failure(ended(lock).await), denied);
    assert_eq!(failure(ended(campaign).await), denied);
    let last = tokio::time::timeout(PATIENCE, observed.next()).await.expect("it ends").unwrap();
    assert_eq!(failure(last), denied);
}
