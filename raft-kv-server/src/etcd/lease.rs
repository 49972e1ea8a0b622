//! The service Lease: keys that end by themselves.

use std::pin::Pin;
use std::time::{Duration, Instant};

use etcd_api::etcdserverpb::lease_server::Lease;
use etcd_api::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};
use futures_util::{Stream, StreamExt};
use raft_kv::client::Handle;
use raft_kv::error::{Error, NotDone, Refusal};
use raft_kv::limits::REQUEST_DEADLINE;
use tonic::{Request, Response, Status, Streaming};

use super::status::status;
use super::{Etcd, convert};

/// Renewals of one stream that are under way at once; their answers keep the order of the requests.
const RENEWALS: usize = 64;
/// How long a renewal waits where the member had too much to do.
const PAUSE: Duration = Duration::from_millis(20);

/// Carries Lease's calls out.
#[derive(Clone, Debug)]
pub struct LeaseService {
    etcd: Etcd,
}

impl LeaseService {
    /// The service of a member.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd }
    }
}

#[tonic::async_trait]
impl Lease for LeaseService {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        self.etcd.learner_may(false)?;
        let request = request.into_inner();
        let (header, id, ttl) = handle.lease_grant(request.id, request.ttl).await.map_err(status)?;
        let error = String::new();
        Ok(Response::new(LeaseGrantResponse { header: convert::header(header), id, ttl, error }))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        self.etcd.learner_may(false)?;
        let header = handle.lease_revoke(request.into_inner().id).await.map_err(status)?;
        Ok(Response::new(LeaseRevokeResponse { header: convert::header(header) }))
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        self.etcd.learner_may(false)?;
        Ok(Response::new(Box::pin(renewals(handle, request.into_inner()))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        self.etcd.learner_may(false)?;
        let request = request.into_inner();
        let (header, lease) = handle.lease_time_to_live(request.id, request.keys).await.map_err(status)?;
        Ok(Response::new(LeaseTimeToLiveResponse {
            header: convert::header(header),
            id: request.id,
            ttl: lease.ttl,
            granted_ttl: lease.granted_ttl,
            keys: lease.keys,
        }))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        self.etcd.learner_may(false)?;
        let (header, leases) = handle.leases().await.map_err(status)?;
        let leases = leases.into_iter().map(|(id, _)| LeaseStatus { id }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: convert::header(header), leases }))
    }
}

/// Renews what `requests` name, until one fails or they end.
pub(crate) fn renewals<S>(
    handle: Handle,
    requests: S,
) -> impl Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send
where
    S: Stream<Item = Result<LeaseKeepAliveRequest, Status>> + Send,
{
    requests
        .map(move |request| {
            let handle = handle.clone();
            async move { renew(&handle, request?.id).await }
        })
        .buffered(RENEWALS)
}

/// A lease that does not exist (any more) has no time left; that is no error. Where the member has
/// too much to do the renewal waits, and with it what the stream asks next: to renew again is safe.
async fn renew(handle: &Handle, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
    let started = Instant::now();
    loop {
        // Of before the renewal, so that it says no revision at which the lease had ended.
        let before = handle.header_here().map_err(status)?;
        match handle.lease_keep_alive(id).await {
            Ok((header, lease)) => {
                let header = convert::header(header);
                return Ok(LeaseKeepAliveResponse { header, id, ttl: lease.ttl.max(0) });
            }
            Err(Error::Refused(Refusal::LeaseNotFound { .. })) => {
                return Ok(LeaseKeepAliveResponse { header: convert::header(before), id, ttl: 0 });
            }
            Err(Error::NotDone(NotDone::Busy)) if started.elapsed() < REQUEST_DEADLINE => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(status(error)),
        }
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
