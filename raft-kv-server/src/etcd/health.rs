//! gRPC's own health service: whether this member serves.

use raft_kv::client::Handle;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};

/// The service. The whole server (the empty name) serves while this member knows a leader. Call it
/// within a tokio runtime.
pub fn service(handle: &Handle) -> HealthServer<impl Health> {
    let (reporter, service) = tonic_health::server::health_reporter();
    if let Some(mut leadership) = handle.leadership() {
        // Ends with the member.
        tokio::spawn(async move {
            loop {
                let serves = leadership.borrow_and_update().leader.is_some();
                let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
                reporter.set_service_status("", status).await;
                if leadership.changed().await.is_err() {
                    return reporter.set_service_status("", ServingStatus::NotServing).await;
                }
            }
        });
    }
    service
}
