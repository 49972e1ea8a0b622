//! Keys over gRPC: Range, RangeStream, Put, DeleteRange, Txn, Compact.
//!
//! Messages are translated and one call of the handle is made; what a request means is the
//! machine's matter alone.

use std::pin::Pin;

use etcd_api::etcdserverpb as pb;
use etcd_api::etcdserverpb::kv_server::Kv;
use futures_util::stream::{self, Stream};
use raft_kv::client::Handle;
use raft_kv::error::Error;
use raft_kv::types::{Header, KeyRange, RangeRequest, RangeResponse, SortOrder, SortTarget};
use tonic::{Request, Response, Status};

use super::status::status;
use super::{Etcd, convert};

/// Keys of the first piece of a streamed range.
const FIRST_CHUNK_KEYS: i64 = 10;
/// What a piece of a streamed range should weigh, in bytes.
const CHUNK_BYTES: usize = 512 * 1024;
/// The most keys in one piece, however small they are.
const MAX_CHUNK_KEYS: i64 = 10_000;

/// The service KV.
#[derive(Clone, Debug)]
pub struct KvService {
    etcd: Etcd,
}

impl KvService {
    /// The service of one member.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd }
    }
}

/// The pieces of a streamed range.
pub type RangeChunks = Pin<Box<dyn Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Kv for KvService {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let handle = if request.get_ref().serializable {
            self.etcd.learners_handle_of(&request)
        } else {
            self.etcd.handle_of(&request)
        };
        let asked = convert::range(request.into_inner())?;
        let (header, found) = handle?.range(asked).await.map_err(status)?;
        Ok(Response::new(convert::range_response(convert::header(header), found)))
    }

    type RangeStreamStream = RangeChunks;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let handle = self.etcd.handle_of(&request);
        let asked = convert::range(request.into_inner())?;
        if !streamable(&asked) {
            return Err(Status::unimplemented(
                "a range is not streamed sorted or filtered by revision; ask for it in one answer",
            ));
        }
        let chunks = open_stream(&handle?, asked).await.map_err(status)?;
        Ok(Response::new(Box::pin(stream::try_unfold(chunks, |mut chunks| async move {
            let chunk = chunks.next().await.map_err(status)?;
            Ok(chunk.map(|chunk| (stream_response(chunk), chunks)))
        }))))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let handle = self.etcd.handle_of(&request);
        let asked = convert::put(request.into_inner())?;
        let (header, done) = handle?.put(asked).await.map_err(status)?;
        Ok(Response::new(convert::put_response(convert::header(header), done)))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let handle = self.etcd.handle_of(&request);
        let asked = convert::delete(request.into_inner())?;
        let (header, done) = handle?.delete(asked).await.map_err(status)?;
        Ok(Response::new(convert::delete_response(convert::header(header), done)))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let handle = self.etcd.handle_of(&request);
        let asked = convert::txn(request.into_inner())?;
        let (header, done) = handle?.txn(asked).await.map_err(status)?;
        Ok(Response::new(convert::txn_response(header, done)))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let handle = self.etcd.handle_of(&request)?;
        let asked = request.into_inner();
        let header = handle.compact(asked.revision, asked.physical).await.map_err(status)?;
        Ok(Response::new(pb::CompactionResponse { header: convert::header(header) }))
    }
}

/// Whether the keys may go out in the order in which they are stored, each as soon as it is read.
fn streamable(request: &RangeRequest) -> bool {
    let filters = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    request.sort_order == SortOrder::None
        && request.sort_target == SortTarget::Key
        && filters.iter().all(|bound| *bound == 0)
}

/// Header, count and `more` are on the last piece alone.
fn stream_response(chunk: Chunk) -> pb::RangeStreamResponse {
    let Chunk { header, response, last } = chunk;
    let mut range_response =
        convert::range_response(last.then(|| convert::header(header)).flatten(), response);
    if !last {
        range_response.more = false;
        range_response.count = 0;
    }
    pb::RangeStreamResponse { range_response: Some(range_response) }
}

/// One piece of a streamed range.
struct Chunk {
    header: Header,
    response: RangeResponse,
    last: bool,
}

/// Begins to read a range in pieces, all of them as of one revision.
async fn open_stream(handle: &Handle, request: RangeRequest) -> Result<Chunks, Error> {
    let mut chunks = Chunks {
        handle: handle.clone(),
        left: (request.limit > 0).then_some(request.limit),
        keys: FIRST_CHUNK_KEYS,
        next: Some(request),
        first: None,
        told: None,
    };
    // A refusal comes before the stream does.
    chunks.first = chunks.read().await?;
    Ok(chunks)
}

/// A range that is read in pieces.
struct Chunks {
    handle: Handle,
    /// How many keys may still come, if there is a limit.
    left: Option<i64>,
    /// How many the next piece asks for.
    keys: i64,
    /// What to ask next.
    next: Option<RangeRequest>,
    /// A piece that is read and not handed out.
    first: Option<Chunk>,
    /// The header and the count of the whole, from the first piece.
    told: Option<(Header, i64)>,
}

impl Chunks {
    async fn next(&mut self) -> Result<Option<Chunk>, Error> {
        match self.first.take() {
            Some(chunk) => Ok(Some(chunk)),
            None => self.read().await,
        }
    }

    async fn read(&mut self) -> Result<Option<Chunk>, Error> {
        let Some(request) = self.next.take() else {
            return Ok(None);
        };
        let limit = self.left.map_or(self.keys, |left| left.min(self.keys));
        let asked = RangeRequest { limit, ..request };
        let (now, mut response) = self.handle.range(asked.clone()).await?;
        let (header, count) = *self.told.get_or_insert((now, response.count));
        response.count = count;
        let found = response.kvs.len() as i64;
        self.left = self.left.map(|left| left - found);
        let last = !response.more || self.left == Some(0);
        if let Some(newest) = response.kvs.last().filter(|_| !last) {
            let mut behind = newest.key.to_vec();
            behind.push(0);
            let range = KeyRange { key: behind.into(), end: asked.range.end.clone() };
            let revision = if asked.revision > 0 { asked.revision } else { header.revision };
            self.next = Some(RangeRequest { range, revision, serializable: true, ..asked });
        }
        let bytes: usize = response.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        if bytes < CHUNK_BYTES / 2 {
            self.keys = (self.keys * 2).min(MAX_CHUNK_KEYS);
        } else if bytes > CHUNK_BYTES {
            self.keys = (self.keys / 2).max(1);
        }
        Ok(Some(Chunk { header, response, last }))
    }
}

#[cfg(test)]
#[path = "kv_tests.rs"]
mod tests;
