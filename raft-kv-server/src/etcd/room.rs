//! Room for answers on their way to clients: one budget of bytes for the whole member, from which
//! large answers and batches of watch events are taken until the transport has sent them. A client
//! that does not read costs what it has been given, and all of them together no more than there is.
//! Where others wait for room, answers that nobody reads are ended, so that a client who stalls
//! delays nobody for long.
//!
//! What is waited for here must never hold room of its own: nobody waits for more while it has some.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::{MapOk, TryFutureExt};
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use http_body_util::Full;
use parking_lot::Mutex;
use raft_kv::error::{Error, NotDone};
use raft_kv::limits::{ANSWER_PATIENCE, ANSWER_STALL, SMALL_ANSWER_BYTES};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tonic::server::NamedService;

use super::status::status;

/// What the budget is counted in, in bytes.
const UNIT: usize = 1024;
/// Bytes of an answer with room that are handed to the transport at once.
const SLICE: usize = 64 * 1024;

/// The budget. Clones share it.
#[derive(Clone, Debug)]
pub struct Room {
    free: Arc<Semaphore>,
    whole: u32,
    stall: Duration,
    flights: Arc<Mutex<Flights>>,
}

/// The answers that are being sent.
#[derive(Debug, Default)]
struct Flights {
    next: u64,
    all: HashMap<u64, Weak<Mutex<Flight>>>,
}

/// One answer, or stream of answers, that is being sent.
#[derive(Debug)]
struct Flight {
    held: Vec<Held>,
    /// What was made and not handed on yet.
    rest: Bytes,
    /// When the transport last asked for more.
    asked: Instant,
    /// Nobody read it, and others wanted its room.
    ended: bool,
}

/// A part of the budget, given back when the last clone goes.
#[derive(Clone, Debug, Default)]
pub struct Held(Option<Arc<OwnedSemaphorePermit>>);

impl Room {
    /// Of so many bytes.
    pub fn of(bytes: usize) -> Self {
        let whole = u32::try_from(bytes / UNIT).expect("less than 4 TiB");
        let free = Arc::new(Semaphore::new(whole as usize));
        Self { free, whole, stall: ANSWER_STALL, flights: Arc::default() }
    }

    /// The same, ending what nobody has read from for this long.
    #[must_use]
    pub fn with_stall(mut self, stall: Duration) -> Self {
        self.stall = stall;
        self
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
                let turn = self.free.clone().acquire_many_owned(units);
                tokio::pin!(turn);
                let mut again = tokio::time::interval(self.stall.min(ANSWER_PATIENCE) / 4);
                loop {
                    tokio::select! {
                        biased;
                        permit = &mut turn => {
                            return Held(Some(Arc::new(permit.expect("it is never closed"))));
                        }
                        // At once, and then as time passes.
                        _ = again.tick() => self.end_stalled(),
                    }
                }
            }
        }
    }

    /// Ends what nobody has read from for too long, and takes its room back.
    fn end_stalled(&self) {
        let all: Vec<_> = self.flights.lock().all.values().filter_map(Weak::upgrade).collect();
        for flight in all {
            let mut flight = flight.lock();
            if !flight.held.is_empty() && flight.asked.elapsed() >= self.stall {
                flight.ended = true;
                flight.held.clear();
                flight.rest = Bytes::new();
            }
        }
    }

    /// What an answer that holds this tells whoever sends it.
    pub fn sending(&self, held: Held) -> Sending {
        Sending { whole: true, ..self.parts(vec![held]) }
    }

    fn parts(&self, held: Vec<Held>) -> Sending {
        let flight = Flight { held, rest: Bytes::new(), asked: Instant::now(), ended: false };
        Sending { whole: false, room: self.clone(), flight: Arc::new(Mutex::new(flight)) }
    }

    /// The stream of `answers` without the room that each has.
    pub fn paced<S>(&self, answers: S) -> Paced<S> {
        Paced { inner: answers, sent: self.parts(Vec::new()) }
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
pub struct Sending {
    /// Held until all is sent; else of each part until what follows it is asked for.
    whole: bool,
    room: Room,
    flight: Arc<Mutex<Flight>>,
}

/// A stream of answers with their room, without it.
#[derive(Debug)]
pub struct Paced<S> {
    inner: S,
    sent: Sending,
}

impl<S> Paced<S> {
    /// Where the answers come from.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// For whoever sends them.
    pub fn sending(&self) -> Sending {
        self.sent.clone()
    }
}

impl<T, S: Stream<Item = (T, Held)> + Unpin> Stream for Paced<S> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        // Where nobody else looks after it, the question for the next is the proof of the last.
        if Arc::strong_count(&self.sent.flight) == 1 {
            self.sent.flight.lock().held.clear();
        }
        Pin::new(&mut self.inner).poll_next(context).map(|next| {
            let (answer, held) = next?;
            if held.is_some() {
                self.sent.flight.lock().held.push(held);
            }
            Some(answer)
        })
    }
}

/// A body that has room. It is asked for more only when what it gave has been sent, but for a small
/// buffer, so it gives little at once: what it gave can't be taken back.
struct Roomy<B> {
    inner: B,
    sending: Sending,
    number: u64,
}

impl<B> Roomy<B> {
    fn new(inner: B, sending: Sending) -> Self {
        let mut flights = sending.room.flights.lock();
        flights.next += 1;
        let number = flights.next;
        flights.all.insert(number, Arc::downgrade(&sending.flight));
        drop(flights);
        Self { inner, sending, number }
    }

    /// The next slice of what was made, without what it was cut from: that goes with the rest.
    fn slice(flight: &mut Flight) -> Option<Frame<Bytes>> {
        let len = flight.rest.len().min(SLICE);
        (len > 0).then(|| Frame::data(Bytes::copy_from_slice(&flight.rest.split_to(len))))
    }
}

impl<B> Drop for Roomy<B> {
    fn drop(&mut self) {
        self.sending.room.flights.lock().all.remove(&self.number);
        let mut flight = self.sending.flight.lock();
        flight.held.clear();
        flight.rest = Bytes::new();
    }
}

impl<B> http_body::Body for Roomy<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<axum::BoxError>,
{
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let sending = self.sending.clone();
        {
            let mut flight = sending.flight.lock();
            if flight.ended {
                return Poll::Ready(Some(Err(status(Error::NotDone(NotDone::Busy)).into())));
            }
            flight.asked = Instant::now();
            if let Some(slice) = Self::slice(&mut flight) {
                return Poll::Ready(Some(Ok(slice)));
            }
            if !sending.whole {
                flight.held.clear();
            }
        }
        // Not under the lock: it puts its own room into the flight.
        let frame = match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            Some(Ok(frame)) => frame,
        };
        Poll::Ready(Some(Ok(match frame.into_data() {
            Ok(data) if data.len() > SLICE => {
                let mut flight = sending.flight.lock();
                flight.rest = data;
                Self::slice(&mut flight).expect("it is not empty")
            }
            Ok(data) => Frame::data(data),
            Err(frame) => frame,
        })))
    }

    fn is_end_stream(&self) -> bool {
        let flight = self.sending.flight.lock();
        !flight.ended && flight.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.sending.flight.lock().rest.len() as u64;
        let inner = self.inner.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest + inner.lower());
        if let Some(upper) = inner.upper() {
            hint.set_upper(rest + upper);
        }
        hint
    }
}

/// A body that takes its room with it, if it has any.
pub fn body<B>(inner: B, sending: Option<Sending>) -> axum::body::Body
where
    B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    match sending {
        Some(sending) => axum::body::Body::new(Roomy::new(inner, sending)),
        None => axum::body::Body::new(inner),
    }
}

/// The same of bytes that are there.
pub fn bytes(bytes: Bytes, sending: Option<Sending>) -> axum::body::Body {
    match sending {
        Some(sending) => body(Full::new(bytes), Some(sending)),
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
        Some(sending) => response.map(|inner| Body::new(Roomy::new(inner, sending))),
        None => response,
    }
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
