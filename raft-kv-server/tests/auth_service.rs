//! The service Auth as a client meets it: all of its calls, in the order in which one sets it up.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use base64::Engine;
use etcd_api::authpb::{self, Permission, UserAddOptions};
use etcd_api::etcdserverpb::auth_server::Auth;
use etcd_api::etcdserverpb::*;
use raft_kv::client::{Config, Node, Tuning, hash_password};
use raft_kv::types::PutRequest;
use raft_kv_server::etcd::auth::AuthService;
use raft_kv_server::etcd::{Certificate, Etcd};
use tonic::Request;

async fn member(folder: &std::path::Path) -> Node {
    let listen_addr = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tuning = Tuning { log_segment_bytes: 1024 * 1024, ..Tuning::default() };
    let config = Config {
        data_dir: folder.join("a"),
        name: "a".into(),
        listen_addr,
        advertise_addr: None,
        client_addr: None,
        advertise_client_addr: None,
        own_root: None,
        external_signer: None,
        tuning,
    };
    let node = Node::init(config).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while node.handle().get("x").await.is_err() {
        assert!(Instant::now() < deadline, "it leads within 20 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node
}

/// A request as the listener hands it on.
fn from<T>(message: T, token: &str, certificate: &str) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("token", token.parse().unwrap());
    }
    let role = raft_kv::types::Role::Client;
    request.extensions_mut().insert(Certificate { name: certificate.into(), role });
    request
}

fn plain<T>(message: T) -> Request<T> {
    from(message, "", "somebody")
}

fn add(name: &str) -> AuthUserAddRequest {
    AuthUserAddRequest { name: name.into(), password: "p".into(), ..Default::default() }
}

fn grant(name: &str, key: &'static str, kind: authpb::permission::Type) -> AuthRoleGrantPermissionRequest {
    let perm = Permission { perm_type: kind.into(), key: key.into(), range_end: Default::default() };
    AuthRoleGrantPermissionRequest { name: name.into(), perm: Some(perm) }
}

fn role_of(user: &str, role: &str) -> AuthUserGrantRoleRequest {
    AuthUserGrantRoleRequest { user: user.into(), role: role.into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_roles_and_logins() {
    use authpb::permission::Type::{Read, Readwrite, Write};
    let folder = tempfile::tempdir().unwrap();
    let node = member(folder.path()).await;
    let (header, info) = node.handle().info().await.unwrap();
    let etcd = Etcd::new(node.handle(), header.cluster, info.member);
    let service = AuthService::new(etcd.clone());

    assert!(service.auth_enable(plain(AuthEnableRequest {})).await.is_err(), "there is no root yet");
    let hashed_password =
        base64::engine::general_purpose::STANDARD.encode(hash_password("prepared").unwrap());
    let prepared = AuthUserAddRequest { name: "prepared".into(), hashed_password, ..Default::default() };
    let rubbish = AuthUserAddRequest { hashed_password: "x".into(), ..prepared.clone() };
    assert!(service.user_add(plain(rubbish)).await.is_err());
    let options = Some(UserAddOptions { no_password: true });
    let bob = AuthUserAddRequest { name: "bob".into(), options, ..Default::default() };
    for user in [add("root"), add("alice"), prepared, bob] {
        service.user_add(plain(user)).await.unwrap();
    }
    assert!(service.user_add(plain(add(""))).await.is_err());
    for role in ["root", "r"] {
        service.role_add(plain(AuthRoleAddRequest { name: role.into() })).await.unwrap();
    }
    for (key, kind) in [("k", Read), ("b", Write), ("k", Readwrite)] {
        service.role_grant_permission(plain(grant("r", key, kind))).await.unwrap();
    }
    let nothing = AuthRoleGrantPermissionRequest { name: "r".into(), perm: None };
    assert!(service.role_grant_permission(plain(nothing)).await.is_err());
    for (user, role) in [("root", "root"), ("alice", "r"), ("bob", "r")] {
        service.user_grant_role(plain(role_of(user, role))).await.unwrap();
    }
    let login = |name: &str, password: &str| {
        plain(AuthenticateRequest { name: name.into(), password: password.into() })
    };
    assert!(service.authenticate(login("alice", "p")).await.is_err(), "it is not enabled");
    service.auth_enable(plain(AuthEnableRequest {})).await.unwrap();
    let status = service.auth_status(plain(AuthStatusRequest {})).await.unwrap().into_inner();
    assert!(status.enabled && status.auth_revision > 1);

    assert!(service.authenticate(login("alice", "q")).await.is_err());
    assert!(service.authenticate(login("bob", "")).await.is_err());
    service.authenticate(login("prepared", "prepared")).await.unwrap();
    let root = service.authenticate(login("root", "p")).await.unwrap().into_inner().token;
    let alice = service.authenticate(login("alice", "p")).await.unwrap().into_inner().token;
    let put = |key: &'static str| PutRequest { key: key.into(), ..Default::default() };
    let as_alice = etcd.handle_of(&from((), &alice, "somebody")).unwrap();
    as_alice.put(put("k")).await.unwrap();
    assert!(as_alice.put(put("l")).await.is_err());
    etcd.handle_of(&from((), "", "bob")).unwrap().put(put("b")).await.unwrap();
    assert!(etcd.handle_of(&from((), "rubbish", "bob")).is_err(), "a token comes before a certificate");

    let list = service.user_list(from(AuthUserListRequest {}, &root, "x")).await.unwrap().into_inner();
    assert_eq!(list.users, ["alice", "bob", "prepared", "root"]);
    let list = service.role_list(from(AuthRoleListRequest {}, &root, "x")).await.unwrap().into_inner();
    assert_eq!(list.roles, ["r", "root"]);
    assert!(service.user_list(from(AuthUserListRequest {}, &alice, "x")).await.is_err());
    let get = |name: &str| AuthUserGetRequest { name: name.into() };
    assert_eq!(service.user_get(from(get("alice"), &alice, "x")).await.unwrap().into_inner().roles, ["r"]);
    assert!(service.user_get(from(get("bob"), &alice, "x")).await.is_err());
    let held = service.role_get(from(AuthRoleGetRequest { role: "r".into() }, &alice, "x")).await.unwrap();
    let held: Vec<_> =
        held.into_inner().perm.into_iter().map(|one| (one.key.clone(), one.perm_type())).collect();
    assert_eq!(held, [("b".into(), Write), ("k".into(), Readwrite)]);

    let by_root = |key: &'static str| AuthRoleRevokePermissionRequest {
        role: "r".into(),
        key: key.into(),
        range_end: Default::default(),
    };
    service.role_revoke_permission(from(by_root("k"), &root, "x")).await.unwrap();
    assert!(service.role_revoke_permission(from(by_root("k"), &root, "x")).await.is_err());
    let other =
        AuthUserChangePasswordRequest { name: "alice".into(), password: "new".into(), ..Default::default() };
    service.user_change_password(from(other, &root, "x")).await.unwrap();
    assert!(etcd.handle_of(&from((), &alice, "x")).is_err(), "her token has ended");
    service.authenticate(login("alice", "new")).await.unwrap();
    let revoke = AuthUserRevokeRoleRequest { name: "bob".into(), role: "r".into() };
    service.user_revoke_role(from(revoke, &root, "x")).await.unwrap();
    service.role_delete(from(AuthRoleDeleteRequest { role: "r".into() }, &root, "x")).await.unwrap();
    let delete = |name: &str| AuthUserDeleteRequest { name: name.into() };
    service.user_delete(from(delete("bob"), &root, "x")).await.unwrap();
    assert!(service.user_delete(from(delete("root"), &root, "x")).await.is_err());
    assert!(service.auth_disable(from(AuthDisableRequest {}, "", "x")).await.is_err());
    service.auth_disable(from(AuthDisableRequest {}, &root, "x")).await.unwrap();
    service.user_delete(plain(delete("root"))).await.unwrap();
    node.shutdown().await.unwrap();
}
