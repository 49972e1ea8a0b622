//! raft-kv's own service at etcd's door: rollback points, what differs from one, and going back. What a point is
//! and what a rollback does is the crate's; here are only its messages.

use bytes::Bytes;
use etcd_api::raftkv::rollback_server::Rollback;
use etcd_api::raftkv::{
    CreatePointRequest, CreatePointResponse, DiffRequest, DiffResponse, Difference, ListPointsRequest,
    ListPointsResponse, Point, RemovePointRequest, RemovePointResponse, RemoveScheduleRequest,
    RemoveScheduleResponse, RollBackRequest, RollBackResponse, Schedule, SetScheduleRequest,
    SetScheduleResponse,
};
use raft_kv::client::{Handle, NewPoint};
use raft_kv::types::{
    Header, PointDiffPage, PointDiffRequest, PointOrigin, PointSchedule, RollbackPoint, ScheduleStatus,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::status::status;
use super::{Etcd, convert};

/// The service.
#[derive(Clone, Debug)]
pub struct RollbackService {
    etcd: Etcd,
}

impl RollbackService {
    /// The service over `etcd`.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd }
    }
}

fn point(point: RollbackPoint) -> Point {
    let (schedule, rollback_to) = match point.origin {
        PointOrigin::Asked => (String::new(), String::new()),
        PointOrigin::Schedule { name } => (name, String::new()),
        PointOrigin::Rollback { to, .. } => (String::new(), to),
    };
    Point {
        name: point.name,
        revision: point.revision,
        created: point.created,
        expires: point.expires.unwrap_or(0),
        author: point.author,
        comment: point.comment,
        schedule,
        rollback_to,
    }
}

fn schedule(status: ScheduleStatus) -> Schedule {
    let PointSchedule { name, every, keep } = status.schedule;
    Schedule { name, every, keep, last: status.last.unwrap_or(0) }
}

fn part(header: Header, page: PointDiffPage) -> DiffResponse {
    let differences = page.differences.into_iter().map(|difference| Difference {
        key: difference.key,
        then: difference.then.map(convert::key_value),
        now: difference.now.map(convert::key_value),
    });
    DiffResponse {
        header: convert::header(header),
        from: page.from,
        to: page.to,
        differences: differences.collect(),
        created: page.counts.created,
        changed: page.counts.changed,
        deleted: page.counts.deleted,
        compared: page.counts.compared,
    }
}

/// No prefix is given as an empty one.
fn given(prefix: Bytes) -> Option<Bytes> {
    Some(prefix).filter(|prefix| !prefix.is_empty())
}

/// Sends a difference part by part, the next one read when the last was taken.
async fn send_all(
    handle: Handle,
    mut request: PointDiffRequest,
    parts: mpsc::Sender<Result<DiffResponse, Status>>,
) {
    loop {
        let page = match handle.point_diff(request.clone()).await {
            Ok((header, page)) => (header, page),
            Err(error) => return drop(parts.send(Err(status(error))).await),
        };
        let (next, to) = (page.1.next.clone(), page.1.to);
        if parts.send(Ok(part(page.0, page.1))).await.is_err() {
            return;
        }
        let Some(after) = next else { return };
        (request.after, request.revision) = (Some(after), to);
    }
}

#[tonic::async_trait]
impl Rollback for RollbackService {
    async fn create_point(
        &self,
        request: Request<CreatePointRequest>,
    ) -> Result<Response<CreatePointResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        let CreatePointRequest { name, revision, expires, comment } = request.into_inner();
        let set = |number: i64| Some(number).filter(|number| *number != 0);
        let new = NewPoint { at: set(revision), expires: set(expires), comment };
        let (header, made) = handle.point_create(&name, new).await.map_err(status)?;
        Ok(Response::new(CreatePointResponse { header: convert::header(header), point: Some(point(made)) }))
    }

    async fn list_points(
        &self,
        request: Request<ListPointsRequest>,
    ) -> Result<Response<ListPointsResponse>, Status> {
        let (header, list) = self.etcd.handle_of(&request)?.points().await.map_err(status)?;
        let points = list.points.into_iter().map(point).collect();
        let schedules = list.schedules.into_iter().map(schedule).collect();
        Ok(Response::new(ListPointsResponse { header: convert::header(header), points, schedules }))
    }

    async fn remove_point(
        &self,
        request: Request<RemovePointRequest>,
    ) -> Result<Response<RemovePointResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        let (header, gone) = handle.point_remove(&request.into_inner().name).await.map_err(status)?;
        Ok(Response::new(RemovePointResponse { header: convert::header(header), point: Some(point(gone)) }))
    }

    async fn set_schedule(
        &self,
        request: Request<SetScheduleRequest>,
    ) -> Result<Response<SetScheduleResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        let Schedule { name, every, keep, .. } = request.into_inner().schedule.unwrap_or_default();
        let header = handle.point_schedule(PointSchedule { name, every, keep }).await.map_err(status)?;
        Ok(Response::new(SetScheduleResponse { header: convert::header(header) }))
    }

    async fn remove_schedule(
        &self,
        request: Request<RemoveScheduleRequest>,
    ) -> Result<Response<RemoveScheduleResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        let header = handle.point_unschedule(&request.into_inner().name).await.map_err(status)?;
        Ok(Response::new(RemoveScheduleResponse { header: convert::header(header) }))
    }

    type DiffStream = ReceiverStream<Result<DiffResponse, Status>>;

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<Self::DiffStream>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        let DiffRequest { point, prefix, count_only } = request.into_inner();
        let request = PointDiffRequest { point, prefix: given(prefix), count_only, ..Default::default() };
        let (parts, taken) = mpsc::channel(1);
        tokio::spawn(send_all(handle, request, parts));
        Ok(Response::new(ReceiverStream::new(taken)))
    }

    async fn roll_back(
        &self,
        request: Request<RollBackRequest>,
    ) -> Result<Response<RollBackResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        let RollBackRequest { point, prefix } = request.into_inner();
        let (header, done) = handle.rollback(&point, given(prefix)).await.map_err(status)?;
        Ok(Response::new(RollBackResponse {
            header: convert::header(header),
            to: done.to,
            revision: done.revision,
            compared: done.compared,
            events: done.events,
            undo: done.undo.unwrap_or_default(),
        }))
    }
}

#[cfg(test)]
#[path = "rollback_tests.rs"]
mod tests;
