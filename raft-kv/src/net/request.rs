//! Requests from outside: each on a stream of its own, answered by one frame or by many.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use quinn::SendStream;

use super::endpoint::Held;
use super::frame::{FrameError, FrameReader, write_frames};
use crate::error::{Error, NotDone, Refusal, Unknown};
use crate::limits::{MAX_JOIN_FRAME_BYTES, MAX_REQUEST_FRAME_BYTES, REQUEST_READ_DEADLINE};
use crate::pki::Identity;
use crate::types::KeyDigest;

/// A client's connection, or that of a member that forwards its clients' requests.
#[derive(Debug)]
pub struct ClientConn(Arc<Held>);

impl ClientConn {
    pub(super) fn new(held: Arc<Held>) -> Self {
        Self(held)
    }

    /// Whose it is, from the verified certificate.
    pub fn identity(&self) -> Identity {
        self.0.identity().expect("every purpose but joining is verified")
    }

    /// Where it comes from, for this node's log alone.
    pub fn remote_addr(&self) -> SocketAddr {
        self.0.info.remote
    }

    /// The next request; `None` when the connection has ended. It lives as long as this value or
    /// one of its streams does.
    pub async fn next_stream(&self) -> Option<RequestStream> {
        next_stream(&self.0, MAX_REQUEST_FRAME_BYTES).await
    }

    /// Ends it and says why to the other end.
    pub fn refuse(&self, why: &Refusal) {
        self.0.refuse(why);
    }
}

/// The connection of somebody who asks to join and has proved nothing.
#[derive(Debug)]
pub struct JoinConn(Arc<Held>);

impl JoinConn {
    pub(super) fn new(held: Arc<Held>) -> Self {
        Self(held)
    }

    /// Where it comes from, for this node's log alone.
    pub fn remote_addr(&self) -> SocketAddr {
        self.0.info.remote
    }

    /// The next request; `None` when the connection has ended.
    pub async fn next_stream(&self) -> Option<RequestStream> {
        // Who knocks without a certificate may not keep the door open either.
        let next = next_stream(&self.0, MAX_JOIN_FRAME_BYTES);
        tokio::time::timeout(REQUEST_READ_DEADLINE, next).await.ok()?
    }

    /// Ends it and says why to the other end.
    pub fn refuse(&self, why: &Refusal) {
        self.0.refuse(why);
    }
}

async fn next_stream(held: &Arc<Held>, max: usize) -> Option<RequestStream> {
    let (send, recv) = held.connection.accept_bi().await.ok()?;
    Some(RequestStream {
        identity: held.identity(),
        name: held.info.peer.as_ref().and_then(|peer| peer.name().cloned()),
        send,
        recv: FrameReader::new(recv, max),
        begun: false,
        held: held.clone(),
    })
}

/// One request and the way back for its answers.
pub struct RequestStream {
    /// Who asks; `None` for a joiner.
    pub identity: Option<Identity>,
    /// A client's name.
    pub name: Option<Arc<str>>,
    send: SendStream,
    recv: FrameReader,
    begun: bool,
    held: Arc<Held>,
}

impl RequestStream {
    /// The public key in the asker's verified certificate; `None` for a joiner.
    pub fn key(&self) -> Option<KeyDigest> {
        let peer = self.held.info.peer.as_ref()?;
        crate::pki::key_of(peer.chain().next()?).ok()
    }

    /// The next frame of the request; `None` when the asker has said all. The first must be there
    /// within [`REQUEST_READ_DEADLINE`]; later ones (of a watcher) may take as long as they like.
    ///
    /// # Errors
    /// [`Refusal::RequestTooLarge`], after which an answer can still be sent;
    /// [`NotDone::Deadline`]; [`Unknown::ConnectionLost`].
    pub async fn recv(&mut self) -> Result<Option<Bytes>, Error> {
        let frame = if self.begun {
            self.recv.next().await
        } else {
            let first = tokio::time::timeout(REQUEST_READ_DEADLINE, self.recv.next()).await;
            self.begun = true;
            first.map_err(|_| Error::NotDone(NotDone::Deadline))?
        };
        frame.map_err(|error| match error {
            FrameError::TooLarge { len, max } => {
                self.recv.stop();
                Refusal::RequestTooLarge { len, max }.into()
            }
            FrameError::Cut => Refusal::Malformed { what: "it is cut short".into() }.into(),
            FrameError::Lost(_) => Error::Unknown(Unknown::ConnectionLost),
        })
    }

    /// Sends one answer; waits while the other side does not keep up.
    ///
    /// # Errors
    /// [`Unknown::ConnectionLost`] if nobody listens any more.
    pub async fn send(&mut self, answer: Bytes) -> Result<(), Error> {
        let sent = write_frames(&mut self.send, [answer]).await;
        sent.map_err(|_| Error::Unknown(Unknown::ConnectionLost))
    }

    /// Says that this was the last answer. Dropping the stream says the same.
    pub fn finish(&mut self) {
        let _ = self.send.finish();
    }

    /// Resolves when nobody listens for answers any more.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        let stopped = self.send.stopped();
        async move {
            let _ = stopped.await;
        }
    }
}

impl std::fmt::Debug for RequestStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestStream").field("identity", &self.identity).finish_non_exhaustive()
    }
}
