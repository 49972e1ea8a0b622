//! The service KV: keys, transactions, compaction.

use std::pin::Pin;

use etcd_api::etcdserverpb::kv_server::Kv;
use etcd_api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse as RangeAnswer, RangeStreamResponse, TxnRequest, TxnResponse,
};
use futures_util::{Stream, stream};
use raft_kv::client::{RangeChunk, RangeStream};
use raft_kv::error::{Error, Refusal, Unknown};
use raft_kv::limits::RANGE_CHUNK_BYTES;
use raft_kv::types::{self, KeyValue, RangeResponse, TxnOpResponse};
use tonic::{Request, Response, Status};

use super::large;
use super::room::{Held, Room};
use super::status::status;
use super::{Etcd, convert};

/// Bytes that an answered key takes besides key and value.
const KEY_OVERHEAD: usize = 48;

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

    /// Room for the answer to what was done. Where there is none the caller is told nothing of what
    /// became of it.
    async fn done(&self, bytes: usize) -> Result<Held, Status> {
        let unknown = |_| status(Error::Unknown(Unknown::Deadline));
        self.etcd.room().take_soon(bytes).await.map_err(unknown)
    }

    /// A response that keeps its room until it is sent.
    fn roomy<T>(&self, message: T, held: Held) -> Response<T> {
        let mut response = Response::new(message);
        if held.is_some() {
            response.extensions_mut().insert(self.etcd.room().sending(held));
        }
        response
    }
}

/// About the bytes that keys are sent in.
fn kvs_bytes<'a>(kvs: impl IntoIterator<Item = &'a KeyValue>) -> usize {
    kvs.into_iter().map(|kv| kv.key.len() + kv.value.len() + KEY_OVERHEAD).sum()
}

fn txn_bytes(response: &types::TxnResponse) -> usize {
    let bytes = |one: &TxnOpResponse| match one {
        TxnOpResponse::Range(range) => kvs_bytes(&range.kvs),
        TxnOpResponse::Put(put) => kvs_bytes(&put.prev),
        TxnOpResponse::Delete(delete) => kvs_bytes(&delete.prevs),
        TxnOpResponse::Txn(nested) => txn_bytes(nested),
    };
    response.responses.iter().map(bytes).sum()
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeAnswer>, Status> {
        let (who, request) = split(request);
        let request = convert::range_request(request)?;
        self.etcd.learner_may(request.serializable)?;
        let handle = self.etcd.handle_of(&who)?;
        // What has to be sorted or filtered can't be sent while it is read.
        let in_order = large::comes_in_order(&request);
        let size = |(_, response): &(_, RangeResponse)| kvs_bytes(&response.kvs);
        match self.etcd.room().answer(size, || handle.range(request.clone())).await {
            Ok(((header, response), held)) => Ok(self.roomy(convert::range_response(header, response), held)),
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
        let room = self.etcd.room();
        let chunks = room.paced(Box::pin(chunks(range, room.clone())));
        let sending = chunks.sending();
        let mut response: Response<Self::RangeStreamStream> = Response::new(Box::pin(chunks));
        response.extensions_mut().insert(sending);
        Ok(response)
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.etcd.learner_may(false)?;
        let (who, request) = split(request);
        let request = convert::put_request(request)?;
        let handle = self.etcd.handle_of(&who)?;
        let (header, response) = handle.put(request).await.map_err(status)?;
        let held = self.done(kvs_bytes(&response.prev)).await?;
        Ok(self.roomy(convert::put_response(header, response), held))
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
        let held = self.done(kvs_bytes(&response.prevs)).await?;
        Ok(self.roomy(convert::delete_response(header, response), held))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        self.etcd.learner_may(false)?;
        let (who, request) = split(request);
        let request = convert::txn_request(request)?;
        let handle = self.etcd.handle_of(&who)?;
        if request.is_read_only() {
            let size = |(_, response): &(_, types::TxnResponse)| txn_bytes(response);
            let answered = self.etcd.room().answer(size, || handle.txn(request.clone())).await;
            let ((header, response), held) = answered.map_err(status)?;
            return Ok(self.roomy(convert::txn_response(header, response), held));
        }
        let (header, response) = handle.txn(request).await.map_err(status)?;
        let held = self.done(txn_bytes(&response)).await?;
        Ok(self.roomy(convert::txn_response(header, response), held))
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

/// The parts of a range as messages; what says something about the whole is in the last alone. None is
/// read before there is room for it.
fn chunks(
    range: RangeStream,
    room: Room,
) -> impl Stream<Item = (Result<RangeStreamResponse, Status>, Held)> + Send {
    stream::unfold(Some(range), move |range| {
        let room = room.clone();
        async move {
            let mut range = range?;
            let held = room.take(RANGE_CHUNK_BYTES).await;
            match range.next().await {
                Ok(Some(chunk)) => {
                    let held = room.shrink(held, kvs_bytes(&chunk.response.kvs));
                    Some(((Ok(part(chunk)), held), Some(range)))
                }
                Ok(None) => None,
                Err(error) => Some(((Err(status(error)), Held::default()), None)),
            }
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
