//! Users, tokens and permissions on real members: what one member was told, all know.

use std::time::Duration;

use raft_kv::client::{Handle, Node, hash_password};
use raft_kv::error::{AuthRefusal, Error, Refusal};
use raft_kv::pki::{Credentials, NodeKey};
use raft_kv::types::{
    AlarmKind, AlarmRequest, AuthChange, AuthQuery, AuthView, Caller, KeyRange, MemberRecord, Permission,
    PermissionKind, Role, WatchRequest,
};

use crate::support::{cluster, config, eventually, put, value};

fn refused<T: std::fmt::Debug>(result: Result<T, Error>, expect: AuthRefusal) {
    assert_eq!(result.unwrap_err(), Error::from(expect));
}

fn user(name: &str, password: Option<&str>) -> AuthChange {
    AuthChange::UserAdd {
        name: name.into(),
        password: password.map(|text| hash_password(text).unwrap().into()),
    }
}

fn grant(name: &str, role: &str) -> AuthChange {
    AuthChange::UserGrant { name: name.into(), role: role.into() }
}

/// The users root, alice (with a password) and bob (by certificate), who have the keys below
/// `a/` and `b/`. Permissions count.
async fn enable(handle: &Handle) {
    let role = |name: &str, prefix: &str| {
        let range = KeyRange::prefix(prefix.to_owned());
        let permission = Permission { kind: PermissionKind::ReadWrite, range };
        [AuthChange::RoleAdd { role: name.into() }, AuthChange::RoleGrant { role: name.into(), permission }]
    };
    let users = [user("root", Some("r")), grant("root", "root"), user("alice", Some("a")), user("bob", None)];
    let roles = [role("ra", "a/"), role("rb", "b/")].into_iter().flatten();
    let grants =
        [grant("alice", "ra"), grant("bob", "rb"), AuthChange::Enable { token_key: Default::default() }];
    for change in users.into_iter().chain(roles).chain(grants) {
        handle.auth_change(change).await.unwrap();
    }
}

/// A handle that acts for whoever shows the token and the certificate's name.
fn acting(node: &Node, token: Option<&str>, certificate: Option<&str>) -> Handle {
    let handle = node.handle();
    let caller = handle.caller(token, certificate).unwrap();
    handle.acting_as(caller)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_counts_on_every_member_at_once_and_ends_with_its_password() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a", "b", "c"]).await;
    let own = nodes[0].handle();
    refused(own.authenticate("alice", "a").await, AuthRefusal::NotEnabled);
    assert_eq!(own.caller(Some("rubbish"), None).unwrap(), Caller::Anonymous, "tokens do not count yet");
    acting(&nodes[0], None, Some("bob")).put(put("a/x", "0")).await.unwrap();
    enable(&own).await;
    for (name, password) in [("alice", "b"), ("alice", ""), ("bob", ""), ("nobody", "a")] {
        refused(own.authenticate(name, password).await, AuthRefusal::Failed);
    }
    for round in 0..3 {
        let (_, token) = nodes[round].handle().authenticate("alice", "a").await.unwrap();
        for node in &nodes {
            // At once: no wait for the others to hear of it.
            let alice = acting(node, Some(&token), None);
            alice.put(put("a/x", "1")).await.unwrap();
            assert_eq!(value(&alice, "a/x").await.as_deref(), Some("1"));
            refused(alice.put(put("b/x", "1")).await, AuthRefusal::Denied);
            refused(alice.get("b/x").await, AuthRefusal::Denied);
            refused(alice.auth_query(AuthQuery::Users).await, AuthRefusal::Denied);
            refused(alice.member_remove(nodes[2].id()).await, AuthRefusal::Denied);
            refused(alice.join_token(Role::Manager).await, AuthRefusal::Denied);
            refused(alice.may_manage().await, AuthRefusal::Denied);
            refused(alice.may_watch(&KeyRange::key("b/x")), AuthRefusal::Denied);
            alice.may_watch(&KeyRange::prefix("a/")).unwrap();
            node.handle().may_manage().await.unwrap();
            alice.members().await.unwrap();
        }
        // Each round the password changes, and with it every token.
        let (name, password) = ("alice".into(), Some(hash_password("a").unwrap().into()));
        nodes[(round + 1) % 3]
            .handle()
            .auth_change(AuthChange::UserPassword { name, password })
            .await
            .unwrap();
        for node in &nodes {
            // Whoever has not heard of it yet lets nothing through either.
            let used = match node.handle().caller(Some(&token), None) {
                Ok(caller) => node.handle().acting_as(caller).put(put("a/x", "2")).await.map(drop),
                Err(error) => Err(error),
            };
            let why = used.unwrap_err();
            let expect = [AuthRefusal::InvalidToken, AuthRefusal::OldRevision].map(Error::from);
            assert!(expect.contains(&why), "{why}");
        }
    }
    for node in &nodes {
        let name = |name| acting(node, None, Some(name));
        name("bob").put(put("b/x", "1")).await.unwrap();
        refused(name("bob").put(put("a/x", "1")).await, AuthRefusal::Denied);
        refused(name("stranger").put(put("a/x", "1")).await, AuthRefusal::NoUser);
        refused(name("stranger").get("a/x").await, AuthRefusal::NoUser);
        refused(name("stranger").members().await, AuthRefusal::NoUser);
        let (_, status) = name("stranger").auth_query(AuthQuery::Status).await.unwrap();
        assert!(matches!(status, AuthView::Status { enabled: true, .. }));
    }
    let forged = own.caller(Some("raftkv1.AAAA.AAAA"), None);
    refused(forged, AuthRefusal::InvalidToken);
    own.auth_change(AuthChange::Disable).await.unwrap();
    acting(&nodes[0], None, Some("stranger")).put(put("a/x", "1")).await.unwrap();
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

async fn by_certificate(node: &Node, name: &str) -> Handle {
    let key = NodeKey::generate();
    let (chain, roots) =
        node.handle().issue_certificate(name, Role::Client, key.request().into()).await.unwrap();
    let der = |list: Vec<bytes::Bytes>| list.iter().map(|one| one.to_vec()).collect();
    let credentials =
        Credentials { chain: der(chain), key: key.der().to_vec(), roots: der(roots), ..Default::default() };
    Handle::connect(&[node.addr().to_owned()], credentials).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_over_quic_obeys_its_names_permissions() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::init(config(dir.path(), "a")).await.unwrap();
    let own = node.handle();
    eventually("it leads", || async { own.get("x").await.ok() }).await;
    let (bob, stranger) = (by_certificate(&node, "bob").await, by_certificate(&node, "stranger").await);
    stranger.put(put("a/x", "0")).await.unwrap();
    let watch =
        |prefix: &str| WatchRequest { range: KeyRange::prefix(prefix.to_owned()), ..Default::default() };
    let mut early = stranger.watch(watch("a/")).await.unwrap();
    let mut allowed = bob.watch(watch("b/")).await.unwrap();
    let mut changes = own.auth_changes();
    changes.mark_unchanged();
    enable(&own).await;
    assert!(changes.has_changed().unwrap());
    // It was let in before permissions counted; now it is not owed anything any more.
    own.put(put("a/x", "1")).await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(10), early.next()).await.unwrap();
    refused(told, AuthRefusal::NoUser);
    bob.put(put("b/x", "1")).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(10), allowed.next()).await.unwrap().unwrap().is_some());
    refused(bob.put(put("a/x", "2")).await, AuthRefusal::Denied);
    refused(bob.get("a/x").await, AuthRefusal::Denied);
    refused(stranger.put(put("a/x", "2")).await, AuthRefusal::NoUser);
    refused(bob.watch(watch("a/")).await.map(drop), AuthRefusal::Denied);
    refused(
        bob.issue_certificate("root", Role::Client, NodeKey::generate().request().into()).await,
        AuthRefusal::Denied,
    );
    assert_eq!(value(&own, "a/x").await.as_deref(), Some("1"), "a member may do everything");
    let root = by_certificate(&node, "root").await;
    root.auth_change(AuthChange::Disable).await.unwrap();
    stranger.put(put("a/x", "2")).await.unwrap();
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alarms_and_members_records_are_changed_through_any_member() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a", "b"]).await;
    let (one, two) = (nodes[0].handle(), nodes[1].handle());
    let alarm = (nodes[0].id(), AlarmKind::NoSpace);
    let (_, raised) = two.alarm(AlarmRequest::Raise(alarm.0, alarm.1)).await.unwrap();
    assert_eq!(raised, [alarm]);
    let full = Error::from(Refusal::Alarmed { kind: AlarmKind::NoSpace });
    assert_eq!(one.put(put("k", "v")).await.unwrap_err(), full);
    assert_eq!(one.alarm(AlarmRequest::List(Some(AlarmKind::Corrupt))).await.unwrap().1, []);
    assert_eq!(one.alarm(AlarmRequest::End(alarm.0, alarm.1)).await.unwrap().1, []);
    one.put(put("k", "v")).await.unwrap();
    two.alarm(AlarmRequest::Raise(alarm.0, AlarmKind::Corrupt)).await.unwrap();
    let corrupt = Error::from(Refusal::Alarmed { kind: AlarmKind::Corrupt });
    assert_eq!(one.get("k").await.unwrap_err(), corrupt);
    let record = MemberRecord {
        id: nodes[1].id(),
        name: "renamed".into(),
        addr: nodes[1].addr().into(),
        client_url: String::new(),
    };
    let (_, members) = one.member_update(record.clone()).await.unwrap();
    assert!(members.iter().any(|member| member.record == record), "{members:?}");
    two.alarm(AlarmRequest::End(alarm.0, AlarmKind::Corrupt)).await.unwrap();
    assert_eq!(value(&one, "k").await.as_deref(), Some("v"));
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_let_in_for_long_goes_on_when_users_change() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a"]).await;
    let own = nodes[0].handle();
    enable(&own).await;
    let (_, lease, _) = own.lease_grant(0, 60).await.unwrap();
    let bob = acting(&nodes[0], None, Some("bob"));
    own.auth_change(AuthChange::RoleAdd { role: "later".into() }).await.unwrap();
    refused(bob.put(put("b/x", "1")).await, AuthRefusal::OldRevision);
    bob.lease_keep_alive(lease).await.unwrap();
    bob.renewed().unwrap().put(put("b/x", "1")).await.unwrap();
    refused(bob.renewed().unwrap().put(put("a/x", "1")).await, AuthRefusal::Denied);
    own.auth_change(AuthChange::UserDelete { name: "bob".into() }).await.unwrap();
    refused(bob.lease_keep_alive(lease).await, AuthRefusal::Denied);
    refused(bob.renewed().unwrap().put(put("b/x", "1")).await, AuthRefusal::Denied);
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}
