//! What monitors and simple clients ask over plain HTTP on the client port: version, health,
//! metrics, and etcd's JSON gateway under `/v3`. Nothing here changes the store.

mod health;
mod metrics_page;

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};

use crate::etcd::Etcd;
use crate::metrics::Metrics;

/// The version that this server says it is where etcd's clients ask. They switch features on by
/// it (Kubernetes needs 3.5.13 for consistent lists from its cache), so it names the release whose
/// behaviour the services follow; this program's own version is in `raft-kv info`.
pub const ETCD_VERSION: &str = "3.7.1";
/// The version that the whole cluster keeps to.
pub const ETCD_CLUSTER_VERSION: &str = "3.7.0";

/// The pages. `json_api` answers everything below `/v3`.
pub fn router(etcd: Etcd, metrics: Arc<Metrics>, json_api: Router) -> Router {
    let health = health::router(etcd.clone());
    let page = move || metrics_page::page(etcd.clone(), metrics.clone());
    Router::new()
        .route("/version", get(version))
        .route("/metrics", get(page))
        .merge(health)
        .merge(json_api)
        .fallback(async || (StatusCode::NOT_FOUND, "404 page not found\n"))
}

async fn version() -> Response {
    json(
        StatusCode::OK,
        format!(r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{ETCD_CLUSTER_VERSION}"}}"#),
    )
}

fn json(code: StatusCode, body: String) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
