//! The JSON gateway: every call of the etcd v3 API but RangeStream as a POST under `/v3/`, for
//! Patroni and everything else that has no gRPC. It asks the services in this process and must never
//! dial, nor know more of a call than its shape.

mod calls;
mod failure;
pub mod json;
mod request;

use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodRouter, any};
use etcd_api::etcdserverpb::auth_server::Auth;
use etcd_api::etcdserverpb::cluster_server::Cluster;
use etcd_api::etcdserverpb::kv_server::Kv;
use etcd_api::etcdserverpb::lease_server::Lease;
use etcd_api::etcdserverpb::maintenance_server::Maintenance;
use etcd_api::etcdserverpb::watch_server::Watch;
use etcd_api::v3electionpb::election_server::Election;
use etcd_api::v3lockpb::lock_server::Lock;

use calls::{AtBodyEnd, both_stream, server_stream, unary};

/// Where the calls stand: etcd 3.4 serves the older prefix as well.
const PREFIXES: [&str; 2] = ["/v3", "/v3beta"];

/// The services that the gateway asks.
#[derive(Debug)]
pub struct Services<K, W, L, C, M, A, O, E> {
    /// Keys.
    pub kv: Arc<K>,
    /// Watches.
    pub watch: Arc<W>,
    /// Leases.
    pub lease: Arc<L>,
    /// Members.
    pub cluster: Arc<C>,
    /// One member's state.
    pub maintenance: Arc<M>,
    /// Users and roles.
    pub auth: Arc<A>,
    /// Locks.
    pub lock: Arc<O>,
    /// Elections.
    pub election: Arc<E>,
}

/// One call: paths below a prefix, and what answers there.
type Route = (&'static str, MethodRouter);

/// A call with one answer.
macro_rules! answer {
    ($service:ident.$method:ident) => {
        unary($service, |service, request| async move { service.$method(request).await })
    };
}

/// A call with a stream of answers.
macro_rules! answers {
    ($service:ident.$method:ident) => {
        server_stream($service, |service, request| async move { service.$method(request).await })
    };
}

/// Everything under `/v3/` and `/v3beta/`. What the listener put into a request's extensions reaches
/// the service, as do `Authorization` and `Grpc-Metadata-*` in the metadata.
pub fn router<K, W, L, C, M, A, O, E>(services: &Services<K, W, L, C, M, A, O, E>) -> Router
where
    K: Kv,
    W: Watch,
    L: Lease,
    C: Cluster,
    M: Maintenance,
    A: Auth,
    O: Lock,
    E: Election,
{
    let routes = [
        kv(&services.kv),
        watch(&services.watch),
        lease(&services.lease),
        cluster(&services.cluster),
        maintenance(&services.maintenance),
        users(&services.auth),
        roles(&services.auth),
        lock(&services.lock),
        election(&services.election),
    ];
    let routes: Vec<Route> = routes.into_iter().flatten().collect();
    let mut router = Router::new();
    for prefix in PREFIXES {
        for (path, method) in &routes {
            router =
                router.route(&format!("{prefix}/{path}"), method.clone().fallback(failure::wrong_method));
        }
        router = router.route(&format!("{prefix}/"), any(failure::not_found));
        router = router.route(&format!("{prefix}/{{*rest}}"), any(failure::not_found));
    }
    router
}

fn kv<K: Kv>(kv: &Arc<K>) -> Vec<Route> {
    vec![
        ("kv/range", answer!(kv.range)),
        ("kv/put", answer!(kv.put)),
        ("kv/deleterange", answer!(kv.delete_range)),
        ("kv/txn", answer!(kv.txn)),
        ("kv/compaction", answer!(kv.compact)),
    ]
}

fn watch<W: Watch>(watch: &Arc<W>) -> Vec<Route> {
    // A body with one create request has ended long before its events come.
    let route =
        both_stream(watch, AtBodyEnd::Stay, |service, request| async move { service.watch(request).await });
    vec![("watch", route)]
}

fn lease<L: Lease>(lease: &Arc<L>) -> Vec<Route> {
    let keep_alive = both_stream(lease, AtBodyEnd::End, |service, request| async move {
        service.lease_keep_alive(request).await
    });
    vec![
        ("lease/grant", answer!(lease.lease_grant)),
        ("lease/keepalive", keep_alive),
        ("lease/revoke", answer!(lease.lease_revoke)),
        ("lease/timetolive", answer!(lease.lease_time_to_live)),
        ("lease/leases", answer!(lease.lease_leases)),
        // Where they were first.
        ("kv/lease/revoke", answer!(lease.lease_revoke)),
        ("kv/lease/timetolive", answer!(lease.lease_time_to_live)),
        ("kv/lease/leases", answer!(lease.lease_leases)),
    ]
}

fn cluster<C: Cluster>(cluster: &Arc<C>) -> Vec<Route> {
    vec![
        ("cluster/member/add", answer!(cluster.member_add)),
        ("cluster/member/remove", answer!(cluster.member_remove)),
        ("cluster/member/update", answer!(cluster.member_update)),
        ("cluster/member/list", answer!(cluster.member_list)),
        ("cluster/member/promote", answer!(cluster.member_promote)),
    ]
}

fn maintenance<M: Maintenance>(maintenance: &Arc<M>) -> Vec<Route> {
    vec![
        ("maintenance/alarm", answer!(maintenance.alarm)),
        ("maintenance/status", answer!(maintenance.status)),
        ("maintenance/defragment", answer!(maintenance.defragment)),
        ("maintenance/hash", answer!(maintenance.hash)),
        ("maintenance/hashkv", answer!(maintenance.hash_kv)),
        ("maintenance/snapshot", answers!(maintenance.snapshot)),
        ("maintenance/transfer-leadership", answer!(maintenance.move_leader)),
        ("maintenance/downgrade", answer!(maintenance.downgrade)),
    ]
}

fn users<A: Auth>(auth: &Arc<A>) -> Vec<Route> {
    vec![
        ("auth/enable", answer!(auth.auth_enable)),
        ("auth/disable", answer!(auth.auth_disable)),
        ("auth/status", answer!(auth.auth_status)),
        ("auth/authenticate", answer!(auth.authenticate)),
        ("auth/user/add", answer!(auth.user_add)),
        ("auth/user/get", answer!(auth.user_get)),
        ("auth/user/list", answer!(auth.user_list)),
        ("auth/user/delete", answer!(auth.user_delete)),
        ("auth/user/changepw", answer!(auth.user_change_password)),
        ("auth/user/grant", answer!(auth.user_grant_role)),
        ("auth/user/revoke", answer!(auth.user_revoke_role)),
    ]
}

fn roles<A: Auth>(auth: &Arc<A>) -> Vec<Route> {
    vec![
        ("auth/role/add", answer!(auth.role_add)),
        ("auth/role/get", answer!(auth.role_get)),
        ("auth/role/list", answer!(auth.role_list)),
        ("auth/role/delete", answer!(auth.role_delete)),
        ("auth/role/grant", answer!(auth.role_grant_permission)),
        ("auth/role/revoke", answer!(auth.role_revoke_permission)),
    ]
}

fn lock<O: Lock>(lock: &Arc<O>) -> Vec<Route> {
    vec![("lock/lock", answer!(lock.lock)), ("lock/unlock", answer!(lock.unlock))]
}

fn election<E: Election>(election: &Arc<E>) -> Vec<Route> {
    vec![
        ("election/campaign", answer!(election.campaign)),
        ("election/proclaim", answer!(election.proclaim)),
        ("election/leader", answer!(election.leader)),
        ("election/observe", answers!(election.observe)),
        ("election/resign", answer!(election.resign)),
    ]
}
