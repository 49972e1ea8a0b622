//! The service Cluster: the members. A member comes in by its token (`raft-kv join`), so adding
//! one here is refused with the way to do it.

use etcd_api::etcdserverpb::cluster_server::Cluster;
use etcd_api::etcdserverpb::{
    self as pb, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse,
};
use raft_kv::client::Handle;
use raft_kv::error::{Error, Refusal};
use raft_kv::types::{Member, MemberRecord, MemberRole, NodeId};
use tonic::{Request, Response, Status};

use super::status::{status, text};
use super::{Etcd, convert};

const HOW_TO_ADD: &str = "members join by themselves, with a token: `raft-kv join-token manager` prints it, \
                          `raft-kv join --token TOKEN …` on the new machine uses it";

/// Carries Cluster's calls out.
#[derive(Clone, Debug)]
pub struct ClusterService {
    etcd: Etcd,
}

impl ClusterService {
    /// The service of a member.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd }
    }

    /// The handle of whoever asks, who may change the members: asked before anything is looked up,
    /// so that nobody else learns which members there are.
    async fn manager<T>(&self, request: &Request<T>) -> Result<Handle, Status> {
        let handle = self.etcd.handle_of(request)?;
        handle.may_manage().await.map_err(status)?;
        Ok(handle)
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        self.manager(&request).await?;
        address(&request.get_ref().peer_ur_ls)?;
        Err(Status::failed_precondition(HOW_TO_ADD))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let handle = self.manager(&request).await?;
        let id = NodeId(request.into_inner().id);
        let (header, members) = handle.member_remove(id).await.map_err(status)?;
        let members = members.into_iter().map(member).collect();
        Ok(Response::new(MemberRemoveResponse { header: convert::header_without_revision(header), members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let handle = self.manager(&request).await?;
        let request = request.into_inner();
        let (_, members) = handle.members().await.map_err(status)?;
        let id = NodeId(request.id);
        let known = members.into_iter().find(|member| member.record.id == id);
        let known = known.ok_or_else(|| status(Refusal::MemberNotFound { id }.into()))?;
        let addr = address(&request.peer_ur_ls)?;
        let record = MemberRecord { addr, ..known.record };
        let (header, members) = handle.member_update(record).await.map_err(status)?;
        let members = members.into_iter().map(member).collect();
        Ok(Response::new(MemberUpdateResponse { header: convert::header_without_revision(header), members }))
    }

    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        // Without a quorum this is how one finds out whom to bring back.
        let listed =
            if request.get_ref().linearizable { handle.members().await } else { handle.members_here().await };
        let (header, members) = listed.map_err(status)?;
        let members = members.into_iter().map(member).collect();
        Ok(Response::new(MemberListResponse { header: convert::header_without_revision(header), members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let handle = self.manager(&request).await?;
        let id = NodeId(request.into_inner().id);
        let (_, members) = handle.members().await.map_err(status)?;
        let voter = |member: &Member| member.record.id == id && member.role != MemberRole::Learner;
        if members.iter().any(voter) {
            return Err(Status::failed_precondition(text::NOT_LEARNER));
        }
        let (header, members) = handle.member_promote(id).await.map_err(|error| match error {
            Error::Refused(Refusal::MemberUnfit { .. }) => {
                Status::failed_precondition(text::LEARNER_NOT_READY)
            }
            other => status(other),
        })?;
        let members = members.into_iter().map(member).collect();
        Ok(Response::new(MemberPromoteResponse { header: convert::header_without_revision(header), members }))
    }
}

/// A member as etcd shows it.
fn member(member: Member) -> pb::Member {
    let MemberRecord { id, name, addr, client_url } = member.record;
    pb::Member {
        id: id.0,
        name,
        peer_ur_ls: vec![format!("https://{addr}")],
        client_ur_ls: if client_url.is_empty() { Vec::new() } else { vec![client_url] },
        is_learner: member.role == MemberRole::Learner,
    }
}

/// The one address in a list of URLs.
#[allow(clippy::result_large_err)]
fn address(urls: &[String]) -> Result<String, Status> {
    let bad = || Status::invalid_argument(text::BAD_URLS);
    let [url] = urls else { return Err(bad()) };
    let url: http::Uri = url.parse().map_err(|_| bad())?;
    let known = matches!(url.scheme_str(), Some("http" | "https"));
    let plain = matches!(url.path(), "" | "/") && url.query().is_none();
    match (url.host(), url.port_u16()) {
        (Some(host), Some(port)) if known && plain && !host.is_empty() => Ok(format!("{host}:{port}")),
        _ => Err(bad()),
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
