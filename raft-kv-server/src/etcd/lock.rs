//! The Lock service: whoever has the oldest key under a name holds the lock. It must never say
//! that a lock is held whose key has gone with its lease.

use bytes::Bytes;
use etcd_api::v3lockpb::lock_server::Lock;
use etcd_api::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use raft_kv::types::{DeleteRequest, KeyRange};
use tonic::{Request, Response, Status};

use super::recipe::{self, Place, Waiting, failed};
use super::{Etcd, convert};

/// The service.
#[derive(Clone, Debug)]
pub struct LockService {
    etcd: Etcd,
}

impl LockService {
    /// The service over `etcd`.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd }
    }
}

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let waiting = Waiting::of(&self.etcd, &request);
        let handle = self.etcd.handle_of(&request)?;
        let LockRequest { name, lease } = request.into_inner();
        let lease = recipe::lease(&handle, lease).await?;
        let prefix = recipe::prefix(&name);
        let place = Place::take(&handle, &prefix, lease, Bytes::new()).await?;
        let (header, held) =
            waiting.for_as_long_as_allowed(&prefix, Some(&place.key), place.first(&prefix)).await?;
        if !held {
            return Err(Status::unknown("mutex: session is expired"));
        }
        let key = place.key.clone();
        place.keep();
        Ok(Response::new(LockResponse { header: convert::header(header), key }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        let key = request.into_inner().key;
        if key.is_empty() {
            return Err(Status::unknown("etcdserver: key is not provided"));
        }
        let delete = DeleteRequest { range: KeyRange::key(key), prev_kv: false };
        let (header, _) = handle.delete(delete).await.map_err(failed)?;
        Ok(Response::new(UnlockResponse { header: convert::header(header) }))
    }
}
