//! Room for answers on their way to clients: one budget of bytes for the whole member, from which
//! large answers and batches of watch events are taken until the transport has sent them. A client
//! that does not read costs what it has been given, and all of them together no more than there is.
//!
//! What is waited for here must never hold room of its own: nobody waits for more while it has some.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::{MapOk, TryFutureExt};
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use raft_kv::error::{Error, NotDone};
use raft_kv::limits::{ANSWER_PATIENCE, SMALL_ANSWER_BYTES};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tonic::server::NamedService;

/// What the budget is counted in, in bytes.
const UNIT: usize = 1024;
/// Bytes of an answer that are handed to HTTP/1.1 at once.
const SLICE: usize = 64 * 1024;

/// The budget. Clones share it.
#[derive(Clone, Debug)]
pub struct Room {
    free: Arc<Semaphore>,
    whole: u32,
}

/// A part of the budget, given back when the last clone goes.
#[derive(Clone, Debug, Default)]
pub struct Held(Option<Arc<OwnedSemaphorePermit>>);

impl Room {
    /// Of so many bytes.
    pub fn of(bytes: usize) -> Self {
        let whole = u32::try_from(bytes / UNIT).expect("less than 4 TiB");
        Self { free: Arc::new(Semaphore::new(whole as usize)), whole }
    }

    /// Bytes that nobody holds.
    pub fn free(&self) -> usize {
        self.free.available_permits() * UNIT
    }

    /// Units that an answer takes: small ones none, like the stream that they come on; one larger
    /// than the budget goes alone.
    fn units(&self, bytes: usize) -> u32 {
        if bytes <= SMALL_ANSWER_BYTES {
            return 0;
        }
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.whole)
    }

    fn try_take(&self, bytes: usize) -> Option<Held> {
        match self.units(bytes) {
            0 => Some(Held::default()),
            units => {
                let permit = self.free.clone().try_acquire_many_owned(units).ok()?;
                Some(Held(Some(Arc::new(permit))))
            }
        }
    }

    /// Room for so many bytes, however long it takes; first come, first served.
    pub async fn take(&self, bytes: usize) -> Held {
        match self.units(bytes) {
            0 => Held::default(),
            units => {
                let permit = self.free.clone().acquire_many_owned(units).await.expect("it is never closed");
                Held(Some(Arc::new(permit)))
            }
        }
    }

    /// What `ask` answers, which may be asked again, with room for the bytes that `size` finds in it.
    /// Where there is none, nothing is held while it is waited for.
    ///
    /// # Errors
    /// Those of `ask`, and [`NotDone::Busy`] where there is no room within [`ANSWER_PATIENCE`].
    pub async fn answer<A, F>(
        &self,
        size: impl Fn(&A) -> usize,
        ask: impl Fn() -> F,
    ) -> Result<(A, Held), Error>
    where
        F: Future<Output = Result<A, Error>>,
    {
        let answer = ask().await?;
        let bytes = size(&answer);
        if let Some(held) = self.try_take(bytes) {
            return Ok((answer, held));
        }
        drop(answer);
        let busy = || Error::NotDone(NotDone::Busy);
        let held = tokio::time::timeout(ANSWER_PATIENCE, self.take(bytes)).await.map_err(|_| busy())?;
        let answer = ask().await?;
        // It may have grown meanwhile.
        if self.units(size(&answer)) > self.units(bytes) {
            return Err(busy());
        }
        Ok((answer, held))
    }

    /// Room for an answer of so many bytes that can't be asked for again.
    ///
    /// # Errors
    /// [`NotDone::Busy`] where there is none within [`ANSWER_PATIENCE`].
    pub async fn take_soon(&self, bytes: usize) -> Result<Held, Error> {
        let taken = tokio::time::timeout(ANSWER_PATIENCE, self.take(bytes)).await;
        taken.map_err(|_| Error::NotDone(NotDone::Busy))
    }

    /// As much as `bytes` take of what is held; the rest is given back.
    pub fn shrink(&self, held: Held, bytes: usize) -> Held {
        let Some(mut permit) = held.0.and_then(Arc::into_inner) else { return Held::default() };
        match self.units(bytes) {
            0 => Held::default(),
            units if (units as usize) < permit.num_permits() => {
                Held(permit.split(units as usize).map(Arc::new))
            }
            _ => Held(Some(Arc::new(permit))),
        }
    }
}

impl Held {
    /// Whether it is any room at all.
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }
}

/// The room of an answer, told in a response's extensions to whoever sends its body.
#[derive(Clone, Debug)]
pub enum Sending {
    /// Held until all is sent.
    Whole(Held),
    /// Of the parts that were taken from a stream, until what follows them is asked for.
    Parts(Parts),
}

type Parts = Arc<Mutex<Vec<Held>>>;

/// A stream of answers with their room, without it.
#[derive(Debug)]
pub struct Paced<S> {
    inner: S,
    sent: Parts,
}

impl<S> Paced<S> {
    /// The answers of `inner`.
    pub fn new(inner: S) -> Self {
        Self { inner, sent: Parts::default() }
    }

    /// Where the answers come from.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// For whoever sends them.
    pub fn sending(&self) -> Sending {
        Sending::Parts(self.sent.clone())
    }
}

impl<T, S: Stream<Item = (T, Held)> + Unpin> Stream for Paced<S> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        // Where nobody else looks after it, the question for the next is the proof of the last.
        if Arc::strong_count(&self.sent) == 1 {
            self.sent.lock().clear();
        }
        Pin::new(&mut self.inner).poll_next(context).map(|next| {
            let (answer, held) = next?;
            if held.is_some() {
                self.sent.lock().push(held);
            }
            Some(answer)
        })
    }
}

/// A body that has room. It is asked for more only when what it gave has been sent, but for a small
/// buffer.
struct Roomy<B> {
    inner: B,
    sending: Sending,
}

impl<B: http_body::Body + Unpin> http_body::Body for Roomy<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        if let Sending::Parts(parts) = &self.sending {
            parts.lock().clear();
        }
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A body of slices: it is not over before the last one is taken.
struct Slices(Bytes);

impl http_body::Body for Slices {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.0.is_empty() {
            return Poll::Ready(None);
        }
        let len = self.0.len().min(SLICE);
        Poll::Ready(Some(Ok(Frame::data(self.0.split_to(len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

/// A body that takes its room with it, if it has any.
pub fn body<B>(inner: B, sending: Option<Sending>) -> axum::body::Body
where
    B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    match sending {
        Some(sending) => axum::body::Body::new(Roomy { inner, sending }),
        None => axum::body::Body::new(inner),
    }
}

/// The same of bytes that are there.
pub fn bytes(bytes: Bytes, sending: Option<Sending>) -> axum::body::Body {
    match sending {
        Some(sending) => body(Slices(bytes), Some(sending)),
        None => axum::body::Body::from(bytes),
    }
}

/// A service whose answers keep their room until they are sent.
#[derive(Clone, Debug)]
pub struct Rooms<S>(pub S);

impl<S: NamedService> NamedService for Rooms<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> tower::Service<Request<Body>> for Rooms<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = MapOk<S::Future, fn(Response<Body>) -> Response<Body>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.call(request).map_ok(with_room)
    }
}

fn with_room(mut response: Response<Body>) -> Response<Body> {
    match response.extensions_mut().remove::<Sending>() {
        Some(sending) => response.map(|inner| Body::new(Roomy { inner, sending })),
        None => response,
    }
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
