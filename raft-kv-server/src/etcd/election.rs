//! The Election service: whoever has the oldest key under a name leads, and its value is what it
//! proclaims. It must never call a leader one whose key has gone.

use bytes::Bytes;
use etcd_api::v3electionpb::election_server::Election;
use etcd_api::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use raft_kv::client::Handle;
use raft_kv::types::{
    DeleteRequest, EventKind, Header, KeyRange, KeyValue, PutRequest, RangeRequest, SortOrder, SortTarget,
    TxnOp, TxnRequest, WatchBatch, WatchRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::recipe::{self, Place, Waiting, at_present, created_at, failed};
use super::{Etcd, convert};

/// The service.
#[derive(Clone, Debug)]
pub struct ElectionService {
    etcd: Etcd,
}

impl ElectionService {
    /// The service over `etcd`.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd }
    }
}

fn not_leader() -> Status {
    Status::unknown("election: not leader")
}

fn leader_missing() -> Status {
    Status::unknown("\"leader\" field must be provided")
}

#[tonic::async_trait]
impl Election for ElectionService {
    type ObserveStream = ReceiverStream<Result<LeaderResponse, Status>>;

    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let waiting = Waiting::of(&self.etcd, &request);
        let handle = self.etcd.handle_of(&request)?;
        let CampaignRequest { name, lease, value } = request.into_inner();
        let lease = recipe::lease(&handle, lease).await?;
        let prefix = recipe::prefix(&name);
        let place = Place::take(&handle, &prefix, lease, value.clone()).await?;
        let key = LeaderKey { name: name.clone(), key: place.key.clone(), rev: place.created, lease };
        if place.before.as_ref().is_some_and(|before| before.value != value) {
            proclaim(&handle, &key, value).await?;
        }
        let first = place.first(&prefix);
        let (_, elected) = waiting.for_as_long_as_allowed(&prefix, Some(&place.key), first).await?;
        if !elected {
            return Err(not_leader());
        }
        // As etcd: the header is that of the candidacy.
        let header = convert::header(place.header);
        place.keep();
        Ok(Response::new(CampaignResponse { header, leader: Some(key) }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        let ProclaimRequest { leader, value } = request.into_inner();
        let header = proclaim(&handle, &leader.ok_or_else(leader_missing)?, value).await?;
        Ok(Response::new(ProclaimResponse { header: convert::header(header) }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        let prefix = recipe::prefix(&request.into_inner().name);
        match oldest(&handle, &prefix).await? {
            (header, Some(kv)) => Ok(Response::new(answer(header, kv))),
            (_, None) => Err(Status::unknown("election: no leader")),
        }
    }

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let waiting = Waiting::of(&self.etcd, &request);
        let handle = self.etcd.handle_of(&request)?;
        let prefix = recipe::prefix(&request.into_inner().name);
        let (out, answers) = mpsc::channel(2);
        tokio::spawn(async move {
            let observed = tokio::select! {
                observed = waiting.for_as_long_as_allowed(&prefix, None, observe(&handle, &prefix, &out)) => observed,
                () = out.closed() => return,
            };
            if let Err(status) = observed {
                let _ = out.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        let leader = request.into_inner().leader.ok_or_else(leader_missing)?;
        let delete = DeleteRequest { range: KeyRange::key(leader.key.clone()), prev_kv: false };
        let request = TxnRequest {
            compares: vec![created_at(&leader.key, leader.rev)],
            success: vec![TxnOp::Delete(delete)],
            failure: Vec::new(),
        };
        // Whoever does not lead (any more) has resigned already.
        let (header, _) = handle.txn(request).await.map_err(failed)?;
        Ok(Response::new(ResignResponse { header: convert::header(header) }))
    }
}

fn answer(header: Header, kv: KeyValue) -> LeaderResponse {
    LeaderResponse { header: convert::header(header), kv: Some(convert::key_value(kv)) }
}

/// Says another value, if the key is still the leader's.
async fn proclaim(handle: &Handle, leader: &LeaderKey, value: Bytes) -> Result<Header, Status> {
    let put = PutRequest { key: leader.key.clone(), value, lease: leader.lease, ..PutRequest::default() };
    let request = TxnRequest {
        compares: vec![created_at(&leader.key, leader.rev)],
        success: vec![TxnOp::Put(put)],
        failure: Vec::new(),
    };
    match handle.txn(request).await.map_err(failed)? {
        (header, response) if response.succeeded => Ok(header),
        _ => Err(not_leader()),
    }
}

/// The leader's key, if there is one.
async fn oldest(handle: &Handle, prefix: &Bytes) -> Result<(Header, Option<KeyValue>), Status> {
    let request = RangeRequest {
        range: KeyRange::prefix(prefix.clone()),
        limit: 1,
        sort_order: SortOrder::Ascend,
        sort_target: SortTarget::Create,
        ..RangeRequest::default()
    };
    let (header, response) =
        at_present(handle, request, |now, request| async move { now.range(request).await }).await?;
    Ok((header, response.kvs.into_iter().next()))
}

/// Tells every leader and what it proclaims, the newest at the latest.
async fn observe(
    handle: &Handle,
    prefix: &Bytes,
    out: &mpsc::Sender<Result<LeaderResponse, Status>>,
) -> Result<(), Status> {
    loop {
        let (header, leader) = oldest(handle, prefix).await?;
        // Without a leader the first key that comes is one; it is looked up again then.
        let range = match &leader {
            Some(kv) => KeyRange::key(kv.key.clone()),
            None => KeyRange::prefix(prefix.clone()),
        };
        let led = leader.is_some();
        if let Some(kv) = leader
            && out.send(Ok(answer(header, kv))).await.is_err()
        {
            return Ok(());
        }
        let start_revision = header.revision + 1;
        let request = WatchRequest { range, start_revision, ..WatchRequest::default() };
        let mut watch =
            at_present(handle, request, |now, request| async move { now.watch(request).await }).await?;
        'led: while let Some(batch) = watch.next().await.map_err(failed)? {
            let changes = match batch {
                WatchBatch::Changes(changes) => changes,
                WatchBatch::Part(change) => vec![change],
                WatchBatch::Progress(_) | WatchBatch::Compacted(_) => continue,
            };
            for change in changes {
                let header = Header { revision: change.revision, ..header };
                for event in change.events {
                    if event.kind == EventKind::Delete || !led {
                        break 'led;
                    }
                    if out.send(Ok(answer(header, event.kv))).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
}
