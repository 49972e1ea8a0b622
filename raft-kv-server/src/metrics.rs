//! What is counted at the door, and the page on which Prometheus reads it.
//!
//! Names that monitoring of etcd knows are used only where they mean the same. Labels come from
//! fixed sets: nobody outside can make them grow.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Frame, SizeHint};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The gRPC codes by number, as etcd's monitoring spells them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Call {
    grpc_type: &'static str,
    grpc_service: String,
    grpc_method: String,
    grpc_code: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// The door's counters.
#[derive(Debug)]
pub struct Metrics {
    handled: Family<Call, Counter>,
    refused: Family<Reason, Counter>,
    cut: Family<Reason, Counter>,
    connections: Gauge,
    leaders: Counter,
    registry: Registry,
}

impl Metrics {
    /// All at zero.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let (handled, refused, cut, connections) =
            (Family::default(), Family::default(), Family::default(), Gauge::default());
        registry.register(
            "grpc_server_handled",
            "RPCs completed, by service, method and code",
            Family::clone(&handled),
        );
        registry.register(
            "raft_kv_door_handshakes_refused",
            "TLS handshakes refused at the client port, by reason",
            Family::clone(&refused),
        );
        registry.register(
            "raft_kv_door_connections_cut",
            "Open connections ended because their certificate is not believed any more",
            Family::clone(&cut),
        );
        registry.register(
            "raft_kv_door_connections",
            "Connections open at the client port",
            Gauge::clone(&connections),
        );
        let leaders = Counter::default();
        let help = "Leaders that this member has seen come";
        registry.register("etcd_server_leader_changes_seen", help, Counter::clone(&leaders));
        Self { handled, refused, cut, connections, leaders, registry }
    }

    /// Counts a handshake that was refused.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// Counts an open connection that was ended.
    pub fn cut(&self, reason: &'static str) {
        self.cut.get_or_create(&Reason { reason }).inc();
    }

    /// Counts a leader that has come.
    pub fn leader_seen(&self) {
        self.leaders.inc();
    }

    /// Counts a connection for as long as what it gives lives.
    pub fn connected(&self) -> Connected {
        self.connections.inc();
        Connected(self.connections.clone())
    }

    /// The door's own part of the page, in OpenMetrics without the end mark.
    pub fn render(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("a string takes it");
        text.trim_end_matches("# EOF\n").to_owned()
    }

    /// `response` to a gRPC request for `path`, counted when its status is known.
    pub fn counted(self: &Arc<Self>, path: &str, response: Response<Body>) -> Response<Body> {
        let mut count = Count { metrics: self.clone(), path: path.to_owned(), done: false };
        if let Some(code) = code_in(response.headers()) {
            count.note(code);
            return response;
        }
        response.map(|inner| Body::new(Counting { inner, count }))
    }

    fn handled(&self, path: &str, code: usize) {
        let name = CODES.get(code).copied().unwrap_or("Unknown");
        let (service, method) =
            path.trim_start_matches('/').split_once('/').unwrap_or(("unknown", "unknown"));
        // What is not implemented may be any name that a client thinks of.
        let (service, method) = if code == 12 { ("unknown", "unknown") } else { (service, method) };
        let streams = matches!(
            method,
            "Watch" | "LeaseKeepAlive" | "Snapshot" | "RangeStream" | "Observe" | "ServerReflectionInfo"
        );
        let call = Call {
            grpc_type: if streams { "stream" } else { "unary" },
            grpc_service: service.to_owned(),
            grpc_method: method.to_owned(),
            grpc_code: name,
        };
        self.handled.get_or_create(&call).inc();
    }
}

/// An open connection, counted.
#[derive(Debug)]
pub struct Connected(Gauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn code_in(headers: &HeaderMap) -> Option<usize> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// One RPC that is counted once.
struct Count {
    metrics: Arc<Metrics>,
    path: String,
    done: bool,
}

impl Count {
    fn note(&mut self, code: usize) {
        if !std::mem::replace(&mut self.done, true) {
            self.metrics.handled(&self.path, code);
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        // Whoever asked did not wait for the status.
        self.note(1);
    }
}

/// A body whose trailers are looked at on their way.
struct Counting {
    inner: Body,
    count: Count,
}

impl http_body::Body for Counting {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(code) = frame.trailers_ref().and_then(code_in)
        {
            self.count.note(code);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
