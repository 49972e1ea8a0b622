//! Unary ranges whose answer is too large to be held: measured first, then sent piece by piece
//! while it is read, so that a list of any size costs a bounded amount of memory.
//!
//! A gRPC message says its length before its content, so the range is read twice: once without
//! the values, to know the length, and once to send it. Both times at the same revision. What the
//! first reading promised and the second one can't keep (history was compacted meanwhile) ends the
//! stream with an error, never with a wrong message.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use etcd_api::etcdserverpb as pb;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use prost::Message;
use raft_kv::client::{Handle, RangeMeasure, RangeStream};
use raft_kv::limits::{MAX_REQUEST_BYTES, RANGE_CHUNK_BYTES};
use raft_kv::types::{Header, KeyValue, RangeRequest, SortOrder, SortTarget};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

use super::room::{Held, Room};
use super::{Etcd, convert, status};

/// The one path that is looked at.
const PATH: &str = "/etcdserverpb.KV/Range";
/// What the KV service adds to a status that means: too large to be answered in one piece.
pub const MARK: &str = "raft-kv-large-answer";
/// Compression flag and length before each gRPC message.
const PREFIX_BYTES: usize = 5;

/// The KV service with large ranges taken care of.
#[derive(Clone, Debug)]
pub struct LargeRanges<S> {
    inner: S,
    etcd: Etcd,
}

impl<S> LargeRanges<S> {
    /// Stands before the KV service.
    pub fn new(inner: S, etcd: Etcd) -> Self {
        Self { inner, etcd }
    }
}

impl<S: NamedService> NamedService for LargeRanges<S> {
    const NAME: &'static str = S::NAME;
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> tower::Service<Request<Body>> for LargeRanges<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        if request.uri().path() != PATH {
            return Box::pin(async move { inner.call(request).await.map(in_go_words) });
        }
        let etcd = self.etcd.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            // Above this the service itself refuses; what is cut off here it would not have read.
            let limited = Limited::new(body, MAX_REQUEST_BYTES + 1024 * 1024);
            let collected = match limited.collect().await {
                Ok(collected) => collected,
                Err(error) if error.is::<LengthLimitError>() => {
                    return Ok(Status::resource_exhausted(status::text::TOO_LARGE).into_http());
                }
                // It broke off or came too slowly.
                Err(error) => return Ok(Status::from_error(error).into_http()),
            };
            let bytes = collected.to_bytes();
            let again = Request::from_parts(parts.clone(), Body::new(Full::new(bytes.clone())));
            let response = inner.call(again).await?;
            if !response.headers().contains_key(MARK) {
                return Ok(in_go_words(response));
            }
            let request = Request::from_parts(parts, bytes);
            Ok(answer(&etcd, request).await.unwrap_or_else(Status::into_http))
        })
    }
}

/// A message above what is decoded, refused with the code and text of Go's gRPC, which etcd's
/// clients know: the library here has its own.
fn in_go_words(response: Response<Body>) -> Response<Body> {
    if !response.headers().contains_key("grpc-status") {
        return response;
    }
    let status = Status::from_header_map(response.headers());
    status.and_then(|status| too_long(&status)).map_or(response, Status::into_http)
}

fn too_long(status: &Status) -> Option<Status> {
    let numbers = status.message().strip_prefix("Error, decoded message length too large: found ")?;
    let (found, limit) = numbers.strip_suffix(" bytes")?.split_once(" bytes, the limit is: ")?;
    let text = format!("grpc: received message larger than max ({found} vs. {limit})");
    Some(Status::resource_exhausted(text))
}

/// Whether a range's answer is in the order in which keys are read, all of them.
pub fn comes_in_order(request: &RangeRequest) -> bool {
    let bounds = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    request.sort_order == SortOrder::None && request.sort_target == SortTarget::Key && bounds == [0; 4]
}

/// The bytes that `kv` takes in the message, its value being `value` bytes long.
fn measure(kv: &KeyValue, value: u64) -> u64 {
    let varint = |number: u64| prost::encoding::encoded_len_varint(number) as u64;
    let mut len = convert::key_value(kv.clone()).encoded_len() as u64;
    if value > 0 {
        len += 1 + varint(value) + value;
    }
    1 + varint(len) + len
}

async fn answer(etcd: &Etcd, request: Request<Bytes>) -> Result<Response<Body>, Status> {
    let (parts, bytes) = request.into_parts();
    let message = bytes.get(PREFIX_BYTES..).unwrap_or_default();
    let message = pb::RangeRequest::decode(message)
        .map_err(|error| Status::internal(format!("the message can't be read: {error}")))?;
    let mut asker = tonic::Request::new(());
    *asker.metadata_mut() = tonic::metadata::MetadataMap::from_headers(parts.headers);
    *asker.extensions_mut() = parts.extensions;
    let handle = etcd.handle_of(&asker)?;
    let request = convert::range_request(message)?;
    let (header, measured) = handle.range_measure(request.clone(), measure).await.map_err(status::status)?;
    let whole = head(header, &measured);
    let len = u32::try_from(whole.len() as u64 + measured.sum).map_err(|_| {
        Status::resource_exhausted("the answer would have more than 4 GiB; ask for it in pages")
    })?;
    let mut first = BytesMut::with_capacity(PREFIX_BYTES + whole.len());
    first.put_u8(0);
    first.put_u32(len);
    first.put_slice(&whole);
    let rest = open(&handle, request, header).await?;
    let frames = stream::iter([Ok(Frame::data(first.freeze()))]).chain(pieces(
        rest,
        measured.sum,
        etcd.room().clone(),
    ));
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// Everything of the answer but the keys.
fn head(header: Header, measured: &RangeMeasure) -> Vec<u8> {
    let head = pb::RangeResponse {
        header: convert::header(header),
        kvs: Vec::new(),
        more: measured.more,
        count: measured.count,
    };
    head.encode_to_vec()
}

/// The range again, at the revision at which it was measured.
async fn open(handle: &Handle, request: RangeRequest, measured: Header) -> Result<RangeStream, Status> {
    let revision = if request.revision > 0 { request.revision } else { measured.revision };
    let pinned = RangeRequest { revision, serializable: true, ..request };
    handle.range_stream(pinned).await.map_err(status::status)
}

/// The keys as pieces of the message, `left` bytes in all, and the trailers. Each is read when there is
/// room for it, which it keeps until the next one is asked for.
fn pieces(
    range: RangeStream,
    left: u64,
    room: Room,
) -> impl Stream<Item = Result<Frame<Bytes>, Status>> + Send {
    stream::unfold(Some((range, left, room, Held::default())), |state| async move {
        let (mut range, left, room, sent) = state?;
        drop(sent);
        let held = room.take(RANGE_CHUNK_BYTES).await;
        let chunk = match range.next().await {
            Ok(chunk) => chunk,
            Err(error) => return Some((Err(status::status(error)), None)),
        };
        let Some(chunk) = chunk else {
            if left != 0 {
                return Some((Err(Status::internal("the range changed while it was sent")), None));
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            return Some((Ok(Frame::trailers(trailers)), None));
        };
        let kvs = chunk.response.kvs.into_iter().map(convert::key_value).collect();
        let bytes = Bytes::from(pb::RangeResponse { kvs, ..Default::default() }.encode_to_vec());
        match left.checked_sub(bytes.len() as u64) {
            Some(left) => Some((Ok(Frame::data(bytes)), Some((range, left, room, held)))),
            None => Some((Err(Status::internal("the range changed while it was sent")), None)),
        }
    })
}

#[cfg(test)]
mod tests {
    use tonic::body::Body;
    use tonic::{Code, Status};

    use super::in_go_words;

    #[test]
    fn a_message_too_long_is_refused_in_the_words_of_go() {
        let check = |status: Status, code: Code, text: &str| {
            let response = in_go_words(status.into_http::<Body>());
            let status = Status::from_header_map(response.headers()).expect("a refusal");
            assert_eq!((status.code(), status.message()), (code, text));
        };
        let found =
            "Error, decoded message length too large: found 3000009 bytes, the limit is: 2097152 bytes";
        let said = "grpc: received message larger than max (3000009 vs. 2097152)";
        check(Status::out_of_range(found), Code::ResourceExhausted, said);
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        check(Status::out_of_range(compacted), Code::OutOfRange, compacted);
        let answered = in_go_words(http::Response::new(Body::empty()));
        assert!(answered.headers().is_empty());
    }
}
