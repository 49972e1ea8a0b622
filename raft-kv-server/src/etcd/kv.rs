//! The service KV: keys, transactions, compaction.

use std::pin::Pin;

use etcd_api::etcdserverpb::kv_server::Kv;
use etcd_api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};
use futures_util::{Stream, stream};
use raft_kv::client::{RangeChunk, RangeStream};
use raft_kv::error::{Error, Refusal};
use tonic::{Request, Response, Status};

use super::large;
use super::status::status;
use super::{Etcd, convert};

/// Carries KV's calls out.
#[derive(Clone, Debug)]
pub struct KvService {
    etcd: Etcd,
}

impl KvService {
    /// The service of a member.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd }
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let (who, request) = split(request);
        let request = convert::range_request(request)?;
        self.etcd.learner_may(request.serializable)?;
        let handle = self.etcd.handle_of(&who)?;
        // What has to be sorted or filtered can't be sent while it is read.
        let in_order = large::comes_in_order(&request);
        match handle.range(request).await {
            Ok((header, response)) => Ok(Response::new(convert::range_response(header, response))),
            Err(Error::Refused(Refusal::AnswerTooLarge { max })) if in_order => {
                let mut refused = status(Refusal::AnswerTooLarge { max }.into());
                refused.metadata_mut().insert(large::MARK, tonic::metadata::MetadataValue::from_static("1"));
                Err(refused)
            }
            Err(error) => Err(status(error)),
        }
    }

    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let (who, request) = split(request);
        let request = convert::range_request(request)?;
        self.etcd.learner_may(request.serializable)?;
        let handle = self.etcd.handle_of(&who)?;
        let range = handle.range_stream(request).await.map_err(|error| match error {
            Error::Refused(Refusal::Invalid { field, why }) => {
                Status::unimplemented(format!("{field}: {why}"))
            }
            other => status(other),
        })?;
        Ok(Response::new(Box::pin(chunks(range))))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.etcd.learner_may(false)?;
        let (who, request) = split(request);
        let request = convert::put_request(request)?;
        let handle = self.etcd.handle_of(&who)?;
        let (header, response) = handle.put(request).await.map_err(status)?;
        Ok(Response::new(convert::put_response(header, response)))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        self.etcd.learner_may(false)?;
        let (who, request) = split(request);
        let request = convert::delete_request(request)?;
        let handle = self.etcd.handle_of(&who)?;
        let (header, response) = handle.delete(request).await.map_err(status)?;
        Ok(Response::new(convert::delete_response(header, response)))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        self.etcd.learner_may(false)?;
        let (who, request) = split(request);
        let request = convert::txn_request(request)?;
        let handle = self.etcd.handle_of(&who)?;
        let (header, response) = handle.txn(request).await.map_err(status)?;
        Ok(Response::new(convert::txn_response(header, response)))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        self.etcd.learner_may(false)?;
        let CompactionRequest { revision, physical } = request.into_inner();
        let header = handle.compact(revision, physical).await.map_err(status)?;
        Ok(Response::new(CompactionResponse { header: convert::header(header) }))
    }
}

/// Who asks, and what: the form of a request is looked at before its token, as in etcd.
fn split<T>(request: Request<T>) -> (Request<()>, T) {
    let (metadata, extensions, message) = request.into_parts();
    (Request::from_parts(metadata, extensions, ()), message)
}

/// The parts of a range as messages; what says something about the whole is in the last alone.
fn chunks(range: RangeStream) -> impl Stream<Item = Result<RangeStreamResponse, Status>> + Send {
    stream::unfold(Some(range), |range| async move {
        let mut range = range?;
        match range.next().await {
            Ok(Some(chunk)) => Some((Ok(part(chunk)), Some(range))),
            Ok(None) => None,
            Err(error) => Some((Err(status(error)), None)),
        }
    })
}

fn part(chunk: RangeChunk) -> RangeStreamResponse {
    let mut response = convert::range_response(chunk.header, chunk.response);
    if !chunk.last {
        response.header = None;
    }
    RangeStreamResponse { range_response: Some(response) }
}

#[cfg(test)]
#[path = "kv_tests.rs"]
pub(in crate::etcd) mod tests;
