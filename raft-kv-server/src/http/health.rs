//! `/health`, `/livez` and `/readyz`, in etcd's words: probes are written against them.
//!
//! `/livez` fails where a restart helps, `/readyz` where requests should go elsewhere, `/health` is
//! the older one of etcd 3.4, for the whole cluster unless told `serializable=true`. None of them
//! waits longer than [`PATIENCE`].

use std::time::Duration;

use axum::Router;
use axum::extract::RawQuery;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use raft_kv::error::Error;
use raft_kv::types::{AlarmKind, KeyRange, RangeRequest};

use crate::etcd::Etcd;

/// The longest that a check may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// One thing that a probe looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

/// What `/livez` looks at.
const LIVE: &[Check] = &[Check::SerializableRead];
/// What `/readyz` looks at.
const READY: &[Check] =
    &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

pub(super) fn router(etcd: Etcd) -> Router {
    let old = etcd.clone();
    let mut router = Router::new()
        .route("/health", get(async move |RawQuery(query): RawQuery| health(&old, &Query::new(query)).await));
    for (path, checks) in [("/livez", LIVE), ("/readyz", READY)] {
        router = probe(router, path.to_owned(), checks, &etcd);
        for (place, check) in checks.iter().enumerate() {
            router = probe(router, format!("{path}/{}", check.name()), &checks[place..=place], &etcd);
        }
    }
    router
}

fn probe(router: Router, path: String, checks: &'static [Check], etcd: &Etcd) -> Router {
    let etcd = etcd.clone();
    let answer = async move |RawQuery(query): RawQuery| run(&etcd, checks, &Query::new(query)).await;
    router.route(&path, get(answer))
}

/// The words after the question mark. Those that mean something here need no decoding.
struct Query(String);

impl Query {
    fn new(query: Option<String>) -> Self {
        Self(query.unwrap_or_default())
    }

    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let pairs = self.0.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.filter(move |(found, _)| *found == name).map(|(_, value)| value)
    }

    fn has(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }
}

async fn health(etcd: &Etcd, query: &Query) -> Response {
    let serializable = query.values("serializable").next() == Some("true");
    let reason = why_unhealthy(etcd, query, serializable).await;
    let body = serde_json::json!({
        "health": if reason.is_none() { "true" } else { "false" },
        "reason": reason.as_deref().unwrap_or_default(),
    });
    if let Some(reason) = &reason {
        tracing::warn!(%reason, "/health was answered false");
    }
    let code = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    super::json(code, body.to_string())
}

async fn why_unhealthy(etcd: &Etcd, query: &Query, serializable: bool) -> Option<String> {
    let excluded = |kind: AlarmKind| query.values("exclude").any(|name| name == alarm_name(kind));
    let raised = alarms(etcd).into_iter().find(|kind| !excluded(*kind));
    if let Some(kind) = raised {
        return Some(format!("ALARM {}", alarm_name(kind)));
    }
    if !serializable && !has_leader(etcd) {
        return Some("RAFT NO LEADER".into());
    }
    read(etcd, serializable).await.err().map(|error| format!("RANGE ERROR:{error}"))
}

async fn run(etcd: &Etcd, checks: &[Check], query: &Query) -> Response {
    let mut text = String::new();
    let mut passed = true;
    for check in checks {
        if query.values("exclude").any(|name| name == check.name()) {
            continue;
        }
        match check.look(etcd).await {
            Ok(()) => text.push_str(&format!("[+]{} ok\n", check.name())),
            Err(why) => {
                passed = false;
                text.push_str(&format!("[-]{} failed: {why}\n", check.name()));
            }
        }
    }
    let code = if passed { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match (passed, query.has("verbose")) {
        (true, false) => text = "ok\n".into(),
        (true, true) => text.push_str("ok\n"),
        (false, _) => tracing::warn!(checks = text.trim_end(), "a probe failed"),
    }
    (code, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }

    async fn look(self, etcd: &Etcd) -> Result<(), String> {
        match self {
            Self::DataCorruption if alarms(etcd).contains(&AlarmKind::Corrupt) => {
                Err("alarm activated: CORRUPT".into())
            }
            Self::LinearizableRead if !has_leader(etcd) => Err("RAFT NO LEADER".into()),
            Self::NonLearner => match etcd.own_handle().clone().with_patience(PATIENCE).info().await {
                Ok((_, info)) if info.learner => Err("not ready: the member is a learner".into()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            },
            Self::DataCorruption => Ok(()),
            Self::SerializableRead => read(etcd, true).await.map_err(|error| error.to_string()),
            Self::LinearizableRead => read(etcd, false).await.map_err(|error| error.to_string()),
        }
    }
}

/// Whether the member knows a leader.
fn has_leader(etcd: &Etcd) -> bool {
    etcd.own_handle().leadership().is_some_and(|leadership| leadership.borrow().leader.is_some())
}

/// The smallest read there is.
async fn read(etcd: &Etcd, serializable: bool) -> Result<(), Error> {
    let range = KeyRange::prefix("");
    let request = RangeRequest { range, limit: 1, keys_only: true, serializable, ..RangeRequest::default() };
    etcd.own_handle().clone().with_patience(PATIENCE).range(request).await.map(drop)
}

/// The alarms that this member knows of: nobody is waited for, so that a probe that asks for no
/// quorum needs none. Where they can't be looked up, the reads tell.
fn alarms(etcd: &Etcd) -> Vec<AlarmKind> {
    let listed = etcd.own_handle().alarms_here();
    listed.map(|alarms| alarms.into_iter().map(|(_, kind)| kind).collect()).unwrap_or_default()
}

fn alarm_name(kind: AlarmKind) -> &'static str {
    match kind {
        AlarmKind::NoSpace | AlarmKind::DiskShort => "NOSPACE",
        AlarmKind::Corrupt => "CORRUPT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_by_name() {
        let query = Query::new(Some("verbose&exclude=NOSPACE&exclude=a&serializable=true".into()));
        assert!(query.has("verbose") && !query.has("verb") && !query.has(""));
        assert_eq!(query.values("exclude").collect::<Vec<_>>(), ["NOSPACE", "a"]);
        assert_eq!(query.values("serializable").next(), Some("true"));
        assert!(!Query::new(None).has("verbose"));
    }
}
