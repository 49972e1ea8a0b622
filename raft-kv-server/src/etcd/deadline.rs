//! How long a call may take: the answer no longer than its caller waits (`grpc-timeout`), and the
//! request no longer to arrive than the member waits. What a call does is bounded by the handle's
//! own patience. It must never cut a stream of requests that goes on for long by its nature.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use raft_kv::limits::REQUEST_READ_DEADLINE;
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

/// Calls whose requests are a stream.
const STREAMS: [&str; 2] = ["/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"];

/// The answer that comes too late.
pub fn too_late() -> Status {
    Status::deadline_exceeded("context deadline exceeded")
}

/// How long the caller waits, by `grpc-timeout`: a number of at most 8 digits and its unit.
///
/// # Errors
/// The text of the header, where it is nothing of the kind.
pub fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, String> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let parsed = text.char_indices().last().and_then(|(end, unit)| {
        let digits = &text[..end];
        let amount = (digits.len() <= 8).then(|| digits.parse::<u32>().ok()).flatten()?;
        let amount = u64::from(amount);
        Some(match unit {
            'H' => Duration::from_secs(amount * 3600),
            'M' => Duration::from_secs(amount * 60),
            'S' => Duration::from_secs(amount),
            'm' => Duration::from_millis(amount),
            'u' => Duration::from_micros(amount),
            'n' => Duration::from_nanos(amount),
            _ => return None,
        })
    });
    parsed.map(Some).ok_or_else(|| text.into_owned())
}

/// A service whose calls have deadlines.
#[derive(Clone, Debug)]
pub struct Deadlines<S> {
    inner: S,
    read: Duration,
}

impl<S> Deadlines<S> {
    /// Stands before a service.
    pub fn new(inner: S) -> Self {
        Self { inner, read: REQUEST_READ_DEADLINE }
    }
}

impl<S: NamedService> NamedService for Deadlines<S> {
    const NAME: &'static str = S::NAME;
}

type Timed = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> tower::Service<Request<Body>> for Deadlines<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Timed>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // A header that can't be read is no deadline.
        let patience = timeout(request.headers()).ok().flatten();
        let streams = STREAMS.contains(&request.uri().path());
        let request =
            if streams { request } else { request.map(|body| Body::new(Arriving::new(body, self.read))) };
        let answer = self.inner.call(request);
        let Some(patience) = patience else { return Either::Left(answer) };
        Either::Right(Box::pin(async move {
            let answered = tokio::time::timeout(patience, answer).await;
            answered.unwrap_or_else(|_| Ok(too_late().into_http()))
        }))
    }
}

/// A request's body that must have arrived whole within a time of when it is first waited for.
#[derive(Debug)]
pub struct Arriving<B> {
    inner: B,
    within: Duration,
    /// Most bodies are there at once: no clock is set for them.
    over: Option<Pin<Box<Sleep>>>,
}

impl<B> Arriving<B> {
    /// `inner`, within that time.
    pub fn new(inner: B, within: Duration) -> Self {
        Self { inner, within, over: None }
    }
}

impl<B> http_body::Body for Arriving<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) {
            let late = self.over.as_ref().is_some_and(|over| over.is_elapsed());
            return Poll::Ready(match frame {
                // Bytes that come one by one end as well.
                Some(Ok(_)) if late => Some(Err(too_late().into())),
                frame => frame.map(|frame| frame.map_err(Into::into)),
            });
        }
        let within = self.within;
        let over = self.over.get_or_insert_with(|| Box::pin(sleep(within)));
        ready!(over.as_mut().poll(context));
        Poll::Ready(Some(Err(too_late().into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use etcd_api::etcdserverpb::PutRequest;
    use etcd_api::etcdserverpb::kv_server::KvServer;
    use etcd_api::v3lockpb::LockRequest;
    use etcd_api::v3lockpb::lock_client::LockClient;
    use futures_util::{StreamExt, stream};
    use http_body_util::{BodyExt, StreamBody};
    use prost::Message;
    use tonic::Code;
    use tower::{Service, ServiceExt};

    use super::*;
    use crate::etcd::kv::KvService;
    use crate::etcd::kv::tests::One;

    #[tokio::test]
    async fn a_call_ends_when_its_caller_waits_no_longer() {
        let one = One::start().await;
        let mut client = LockClient::new(crate::etcd::routes(one.etcd.clone()).prepare().into_axum_router());
        let lock = || LockRequest { name: "l".into(), lease: 0 };
        client.lock(lock()).await.unwrap();
        // The second one waits for the first, who stays.
        let mut waits = tonic::Request::new(lock());
        waits.metadata_mut().insert("grpc-timeout", "30m".parse().unwrap());
        let ended = tokio::time::timeout(Duration::from_secs(20), client.lock(waits)).await;
        let status = ended.expect("the member ends it").unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "context deadline exceeded"));
    }

    /// Part of a message, and then nothing or a byte now and then.
    #[tokio::test]
    async fn a_request_that_does_not_arrive_gives_its_place_up() {
        let one = One::start().await;
        let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
        let message = put.encode_to_vec();
        let part = Bytes::from([&[0][..], &(message.len() as u32).to_be_bytes(), &message[..2]].concat());
        for drips in [false, true] {
            let first = Ok::<_, Infallible>(Frame::data(part.clone()));
            let rest = stream::unfold((), move |()| async move {
                if !drips {
                    std::future::pending::<()>().await;
                }
                sleep(Duration::from_millis(1)).await;
                Some((Ok(Frame::data(Bytes::new())), ()))
            });
            let body = StreamBody::new(Box::pin(stream::iter([first]).chain(rest)));
            let request = Request::post("/etcdserverpb.KV/Put")
                .header("content-type", "application/grpc")
                .body(Body::new(body))
                .unwrap();
            let kv = KvServer::new(KvService::new(one.etcd.clone()));
            let mut kv = Deadlines { inner: kv, read: Duration::from_millis(30) };
            let answer = kv.ready().await.unwrap().call(request);
            let answer = tokio::time::timeout(Duration::from_secs(20), answer).await.expect("it ends");
            assert_eq!(answer.unwrap().headers()["grpc-status"], "4");
        }
    }

    #[tokio::test]
    async fn a_request_in_time_is_as_it_was() {
        let body = Arriving::new(http_body_util::Full::new(Bytes::from("all")), Duration::from_secs(60));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "all");
    }
}
