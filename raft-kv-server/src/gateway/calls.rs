//! The three shapes of a call: one answer, a stream of answers, and streams both ways. Each asks the
//! service itself, in this process. A stream must never be read ahead of its client, nor outlive it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use axum::routing::{MethodRouter, post};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use http::StatusCode;
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message;
use raft_kv::limits::{MAX_JSON_REQUEST_BYTES, REQUEST_READ_DEADLINE};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstDecoder;

use super::failure;
use super::json::{self, Refused};
use super::request::{FromJson, Head, Messages, message};
use crate::etcd::deadline::too_late;
use crate::etcd::room::{self, Sending};

/// What a service answers with.
pub type Answer<T> = Result<tonic::Response<T>, Status>;

/// What happens to the service's stream of requests when the request's body has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AtBodyEnd {
    /// It ends too.
    End,
    /// It stays open until the client is gone: what was asked for goes on.
    Stay,
}

/// A call with one request and one answer.
pub fn unary<S, Q, A, F, U>(service: &Arc<S>, call: F) -> MethodRouter
where
    S: Send + Sync + 'static,
    Q: FromJson,
    A: Serialize + Send + 'static,
    F: Fn(Arc<S>, Request<Q>) -> U + Clone + Send + Sync + 'static,
    U: Future<Output = Answer<A>> + Send + 'static,
{
    let service = service.clone();
    post(move |request: axum::extract::Request| async move {
        let (parts, body) = request.into_parts();
        let answered = async {
            let head = Head::of(parts)?;
            let deadline = deadline(&head);
            let answer =
                async { call(service, head.with(message(body, REQUEST_READ_DEADLINE).await?)).await };
            let mut answer = before(deadline, answer).await.unwrap_or_else(|| Err(too_late()))?;
            let sending = answer.extensions_mut().remove::<Sending>();
            Ok((json::encode(answer.get_ref()).map_err(unwritable)?, sending))
        };
        match answered.await {
            Ok((bytes, sending)) => failure::json(StatusCode::OK, room::bytes(bytes, sending)),
            Err(status) => failure::plain(&status),
        }
    })
}

/// A call with one request and a stream of answers.
pub fn server_stream<S, Q, A, F, U, T>(service: &Arc<S>, call: F) -> MethodRouter
where
    S: Send + Sync + 'static,
    Q: FromJson,
    A: Serialize + Send + 'static,
    F: Fn(Arc<S>, Request<Q>) -> U + Clone + Send + Sync + 'static,
    U: Future<Output = Answer<T>> + Send + 'static,
    T: Stream<Item = Result<A, Status>> + Send + 'static,
{
    let service = service.clone();
    post(move |request: axum::extract::Request| async move {
        let (parts, body) = request.into_parts();
        let asked = async {
            let head = Head::of(parts)?;
            let deadline = deadline(&head);
            let message = before(deadline, message(body, REQUEST_READ_DEADLINE))
                .await
                .unwrap_or_else(|| Err(too_late()))?;
            Ok((deadline, head.with(message)))
        };
        match asked.await {
            Ok((deadline, request)) => streamed(deadline, call(service, request), None).await,
            Err(status) => failure::plain(&status),
        }
    })
}

/// A call with streams both ways.
pub fn both_stream<S, Q, A, F, U, T>(service: &Arc<S>, at_end: AtBodyEnd, call: F) -> MethodRouter
where
    S: Send + Sync + 'static,
    Q: FromJson,
    A: Serialize + Send + 'static,
    F: Fn(Arc<S>, Request<Streaming<Q>>) -> U + Clone + Send + Sync + 'static,
    U: Future<Output = Answer<T>> + Send + 'static,
    T: Stream<Item = Result<A, Status>> + Send + 'static,
{
    let service = service.clone();
    post(move |request: axum::extract::Request| async move {
        let (parts, body) = request.into_parts();
        let head = match Head::of(parts) {
            Ok(head) => head,
            Err(status) => return failure::plain(&status),
        };
        let deadline = deadline(&head);
        let mut messages = Messages::of(body, REQUEST_READ_DEADLINE);
        // As in etcd, a body that does not even begin as it should is told by the HTTP status.
        let arrives = Instant::now() + REQUEST_READ_DEADLINE;
        let arrives = deadline.map_or(arrives, |deadline| deadline.min(arrives));
        let first = match before(Some(arrives), messages.next::<Q>()).await {
            None => return failure::plain(&too_late()),
            Some(None) => None,
            Some(Some(Ok(first))) => Some(first),
            Some(Some(Err(Refused::Wrong(text)))) => return failure::plain(&Status::unknown(text)),
            Some(Some(Err(why))) => return failure::plain(&super::request::refused(why)),
        };
        let (here, gone) = oneshot::channel();
        let requests = requests(first, messages, at_end, gone);
        streamed(deadline, call(service, head.with(requests)), Some(here)).await
    })
}

/// The messages as the stream that a service takes. It ends when its client is gone, whatever the
/// body does.
fn requests<Q: FromJson>(
    first: Option<Q>,
    messages: Messages,
    at_end: AtBodyEnd,
    gone: oneshot::Receiver<Infallible>,
) -> Streaming<Q> {
    let frames =
        stream::unfold((first, messages, Some(gone)), move |(first, mut messages, gone)| async move {
            let mut gone = gone?;
            let next = match first {
                Some(first) => Some(first),
                None => tokio::select! {
                    biased;
                    _ = &mut gone => return None,
                    // A refused one ends the stream, as in etcd: what came before it was taken.
                    next = messages.next::<Q>() => next.and_then(Result::ok),
                },
            };
            if let Some(message) = next {
                let frame = Ok::<_, Infallible>(Frame::data(grpc_frame(&message)));
                return Some((frame, (None, messages, Some(gone))));
            }
            if at_end == AtBodyEnd::Stay {
                let _ = gone.await;
            }
            None
        });
    let limit = Some(MAX_JSON_REQUEST_BYTES);
    Streaming::new_request(ProstDecoder::<Q>::default(), StreamBody::new(frames), None, limit)
}

/// A message as gRPC frames it: not compressed, its length, itself.
fn grpc_frame<Q: Message>(message: &Q) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("bounded as JSON, and JSON is longer"));
    message.encode(&mut frame).expect("the buffer grows");
    frame.freeze()
}

/// The answers, one line each, as fast as the client takes them. The HTTP status is that of the
/// first one, so it waits for it, as etcd does.
async fn streamed<A, T>(
    deadline: Option<Instant>,
    call: impl Future<Output = Answer<T>>,
    here: Option<oneshot::Sender<Infallible>>,
) -> Response
where
    A: Serialize + Send + 'static,
    T: Stream<Item = Result<A, Status>> + Send + 'static,
{
    let failed = |status: &Status| {
        failure::json(failure::http_status(status.code()), Body::from(failure::in_stream(status)))
    };
    let (mut answers, sending) = match before(deadline, call).await {
        Some(Ok(mut answer)) => {
            let sending = answer.extensions_mut().remove::<Sending>();
            (Lines { answers: Some(Box::pin(answer.into_inner())), deadline, _here: here }, sending)
        }
        Some(Err(status)) => return failed(&status),
        None => return failed(&too_late()),
    };
    match answers.next().await {
        None => failure::json(StatusCode::OK, Body::empty()),
        Some(Err(status)) => failed(&status),
        Some(Ok(first)) => {
            let rest = stream::unfold(answers, |mut answers| async move {
                let line = answers.next().await?.unwrap_or_else(|status| failure::in_stream(&status).into());
                Some((line, answers))
            });
            let lines = stream::once(async { first }).chain(rest).map(Ok::<_, Infallible>);
            failure::json(StatusCode::OK, room::body(Body::from_stream(lines), sending))
        }
    }
}

struct Lines<T> {
    /// None after the last one.
    answers: Option<Pin<Box<T>>>,
    deadline: Option<Instant>,
    /// Dropped with the answer's body, which tells the stream of requests.
    _here: Option<oneshot::Sender<Infallible>>,
}

impl<A: Serialize, T: Stream<Item = Result<A, Status>>> Lines<T> {
    async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        let answers = self.answers.as_mut()?;
        let next = before(self.deadline, answers.next()).await.unwrap_or_else(|| Some(Err(too_late())));
        let line = next.map(|answer| answer.and_then(|answer| line(&answer)));
        if !matches!(line, Some(Ok(_))) {
            self.answers = None;
        }
        line
    }
}

#[derive(Serialize)]
struct Line<'a, A> {
    result: &'a A,
}

#[allow(clippy::result_large_err)]
fn line<A: Serialize>(answer: &A) -> Result<Bytes, Status> {
    let mut line = serde_json::to_vec(&Line { result: answer }).map_err(unwritable)?;
    line.push(b'\n');
    Ok(line.into())
}

fn unwritable(error: serde_json::Error) -> Status {
    Status::internal(format!("the answer has no JSON form: {error}"))
}

fn deadline(head: &Head) -> Option<Instant> {
    head.timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// What comes of `work`, or None when the deadline was first.
async fn before<W: Future>(deadline: Option<Instant>, work: W) -> Option<W::Output> {
    match deadline {
        Some(deadline) => timeout_at(deadline, work).await.ok(),
        None => Some(work.await),
    }
}
