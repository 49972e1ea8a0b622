//! The service Maintenance: one member's state, checksums, alarms, a whole copy.

use std::collections::BTreeSet;
use std::pin::Pin;

use bytes::Bytes;
use etcd_api::etcdserverpb::maintenance_server::Maintenance;
use etcd_api::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DowngradeInfo, DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest,
    HashResponse, MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest,
    StatusResponse, alarm_request,
};
use futures_util::{Stream, stream};
use raft_kv::client::Snapshot;
use raft_kv::error::{Error, Refusal};
use raft_kv::types::{AlarmKind, Header, NodeId, StateHash};
use tonic::{Request, Response, Status};

use super::status::{status, text};
use super::{Etcd, convert};
use crate::http::{ETCD_CLUSTER_VERSION, ETCD_VERSION};

/// Bytes of a snapshot in one message, as etcd sends them.
const BLOB_BYTES: usize = 32 * 1024;

/// Carries Maintenance's calls out.
#[derive(Clone, Debug)]
pub struct MaintenanceService {
    etcd: Etcd,
}

impl MaintenanceService {
    /// The service of a member.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd }
    }

    async fn hash<T>(&self, request: &Request<T>, revision: i64) -> Result<(Header, StateHash), Status> {
        self.etcd.handle_of(request)?.hash_kv(revision).await.map_err(status)
    }
}

/// The kind that is named, none for every kind. A number that is no alarm's is refused: as none it
/// would end all alarms.
#[allow(clippy::result_large_err)]
fn kind(alarm: i32) -> Result<Option<AlarmKind>, Status> {
    match AlarmType::try_from(alarm) {
        Ok(AlarmType::Nospace) => Ok(Some(AlarmKind::NoSpace)),
        Ok(AlarmType::Corrupt) => Ok(Some(AlarmKind::Corrupt)),
        Ok(AlarmType::None) => Ok(None),
        Err(_) => Err(Status::invalid_argument(format!("there is no alarm with the number {alarm}"))),
    }
}

/// An alarm's kind as etcd knows it: that of a short disk, which members raise and end themselves, is
/// not another one there.
fn shown(kind: AlarmKind) -> AlarmKind {
    if kind == AlarmKind::DiskShort { AlarmKind::NoSpace } else { kind }
}

/// The alarms as etcd tells them, each once.
fn alarms(raised: impl IntoIterator<Item = (NodeId, AlarmKind)>) -> Vec<AlarmMember> {
    let raised: BTreeSet<_> = raised.into_iter().map(|(member, kind)| (member, shown(kind))).collect();
    let alarm = |(member, kind): (NodeId, AlarmKind)| {
        let alarm = if kind == AlarmKind::Corrupt { AlarmType::Corrupt } else { AlarmType::Nospace };
        AlarmMember { member_id: member.0, alarm: alarm as i32 }
    };
    raised.into_iter().map(alarm).collect()
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        use alarm_request::AlarmAction as Action;
        use raft_kv::types::AlarmRequest as Asked;
        let handle = self.etcd.handle_of(&request)?;
        let request = request.into_inner();
        let (member, kind) = (NodeId(request.member_id), kind(request.alarm)?);
        let answer = |header, raised: Vec<_>| {
            let alarms = alarms(raised);
            Ok(Response::new(AlarmResponse { header: convert::header(header), alarms }))
        };
        let (header, before) = handle.alarm(Asked::List(None)).await.map_err(status)?;
        match (Action::try_from(request.action), kind) {
            (Ok(Action::Get), kind) => answer(
                header,
                before.into_iter().filter(|(_, one)| kind.is_none_or(|kind| kind == shown(*one))).collect(),
            ),
            (Ok(Action::Activate), Some(kind)) => {
                let (header, _) = handle.alarm(Asked::Raise(member, kind)).await.map_err(status)?;
                answer(header, vec![(member, kind)])
            }
            (Ok(Action::Deactivate), kind) => {
                // Which of them go away; none named means all, as `etcdctl alarm disarm` asks.
                let meant = |one: &(NodeId, AlarmKind)| {
                    (member.0 == 0 || one.0 == member) && kind.is_none_or(|kind| kind == shown(one.1))
                };
                let ended: Vec<_> = before.into_iter().filter(meant).collect();
                let mut last = header;
                for (member, kind) in &ended {
                    last = handle.alarm(Asked::End(*member, *kind)).await.map_err(status)?.0;
                }
                answer(last, ended)
            }
            (Ok(Action::Activate), None) => answer(header, Vec::new()),
            (Err(_), _) => Err(Status::invalid_argument("the alarm's action is not one of the three")),
        }
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        let (header, info) = handle.info().await.map_err(status)?;
        let alarms = alarms(handle.alarms_here().map_err(status)?);
        let mut errors: Vec<String> = Vec::new();
        if info.leader.is_none() {
            errors.push(text::NO_LEADER.into());
        }
        errors.extend(alarms.into_iter().map(|raised| {
            let kind = raised.alarm().as_str_name();
            format!("memberID:{} alarm:{kind} ", raised.member_id)
        }));
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        // What is not on disk yet takes space all the same.
        let size = info.state_bytes.max(info.usage.bytes);
        Ok(Response::new(StatusResponse {
            header: convert::header(header),
            version: ETCD_VERSION.into(),
            db_size: signed(size),
            leader: info.leader.map_or(0, |leader| leader.0),
            raft_index: info.committed,
            raft_term: info.term,
            raft_applied_index: info.applied,
            errors,
            db_size_in_use: signed(info.usage.bytes),
            is_learner: info.learner,
            storage_version: ETCD_CLUSTER_VERSION.into(),
            // As etcd has it, 0 is none.
            db_size_quota: signed(info.usage.quota.unwrap_or(0)),
            downgrade_info: Some(DowngradeInfo::default()),
        }))
    }

    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        self.etcd.handle_of(&request)?.may_manage().await.map_err(status)?;
        // There is nothing to defragment: space comes back by itself.
        Ok(Response::new(DefragmentResponse::default()))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let (header, hash) = self.hash(&request, 0).await?;
        Ok(Response::new(HashResponse { header: convert::header(header), hash: hash.hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        let (header, hash) = self.hash(&request, request.get_ref().revision).await?;
        Ok(Response::new(HashKvResponse {
            header: convert::header(header),
            hash: hash.hash,
            compact_revision: hash.compacted,
            hash_revision: hash.revision,
        }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        let (header, snapshot) = handle.snapshot().await.map_err(status)?;
        // The checksum behind it does not count, as in etcd.
        let left = snapshot.len().saturating_sub(Snapshot::CHECKSUM_BYTES);
        let parts = stream::unfold(Some((snapshot, left)), move |state| async move {
            let (mut snapshot, left) = state?;
            let blob = match snapshot.next(BLOB_BYTES).await {
                Ok(Some(blob)) => blob,
                Ok(None) => return None,
                Err(error) => return Some((Err(status(error)), None)),
            };
            let left = left.saturating_sub(blob.len() as u64);
            Some((Ok(blob_message(header, blob, left)), Some((snapshot, left))))
        });
        Ok(Response::new(Box::pin(parts)))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        // Who may not has no business with who leads.
        handle.may_manage().await.map_err(status)?;
        let (_, info) = handle.info().await.map_err(status)?;
        if info.leader != Some(info.member) {
            return Err(Status::failed_precondition(text::NOT_LEADER));
        }
        let to = NodeId(request.into_inner().target_id);
        handle.transfer(Some(to)).await.map_err(|error| match error {
            Error::Refused(Refusal::MemberUnfit { .. } | Refusal::MemberNotFound { .. }) => {
                Status::failed_precondition(text::BAD_TRANSFEREE)
            }
            other => status(other),
        })?;
        Ok(Response::new(MoveLeaderResponse::default()))
    }

    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        self.etcd.handle_of(&request)?.may_manage().await.map_err(status)?;
        Err(Status::failed_precondition(
            "raft-kv is not etcd and has no version to go down to; nothing was changed",
        ))
    }
}

fn blob_message(header: Header, blob: Bytes, remaining_bytes: u64) -> SnapshotResponse {
    SnapshotResponse {
        header: convert::header(header),
        remaining_bytes,
        blob,
        version: ETCD_CLUSTER_VERSION.into(),
    }
}

#[cfg(test)]
#[path = "maintenance_tests.rs"]
mod tests;
