//! Dialling: from a node's own socket to another member, or from a process that only asks.
//!
//! A dialled connection is given out only after the listener has said that it let us in, so that
//! a refusal is told as one and not as a broken stream later.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::{ConnectionError, SendStream};

use super::endpoint::{ADMITTED, CLOSE_REFUSED, Endpoint, Held, Registry, dialling, hold};
use super::frame::{FrameError, FrameReader, write_frames};
use super::tls::{DialVerifier, Expect, VerifiedPeer, alert_refusal, client_config};
use crate::codec::Wire;
use crate::error::{Error, NotDone, Refusal, Unknown};
use crate::limits;
use crate::pki::{Credentials, Identity, JoinToken, Purpose, TLS_NAME};
use crate::types::NodeId;

/// QUIC's codes for TLS alerts begin here.
const CRYPTO_ERROR: u64 = 0x100;

fn unreachable(why: impl Into<String>) -> Error {
    Error::NotDone(NotDone::Unreachable(why.into()))
}

/// The refusal that a broken connection stands for, if any.
pub(super) fn refusal_in(error: &ConnectionError) -> Option<Refusal> {
    match error {
        ConnectionError::ApplicationClosed(close)
            if close.error_code.into_inner() == u64::from(CLOSE_REFUSED) =>
        {
            let unclear = || Refusal::BadCertificate { why: "the other side gives no reason".into() };
            Some(Refusal::from_bytes(close.reason.clone()).unwrap_or_else(|_| unclear()))
        }
        ConnectionError::ConnectionClosed(close) => {
            u64::from(close.error_code).checked_sub(CRYPTO_ERROR).and_then(alert_refusal)
        }
        ConnectionError::TransportError(error) => {
            u64::from(error.code).checked_sub(CRYPTO_ERROR).and_then(alert_refusal)
        }
        _ => None,
    }
}

fn failed(error: &ConnectionError, verifier: &DialVerifier) -> Error {
    if let Some(refusal) = verifier.refusal().or_else(|| refusal_in(error)) {
        return Error::Refused(refusal);
    }
    match error {
        ConnectionError::TimedOut => unreachable("nobody answers"),
        ConnectionError::ConnectionClosed(close)
            if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED =>
        {
            Error::NotDone(NotDone::Busy)
        }
        other => unreachable(other.to_string()),
    }
}

/// One dial: whom to expect, what to prove, and what for.
struct Dial<'a> {
    purpose: Purpose,
    credentials: Option<&'a Credentials>,
    verifier: Arc<DialVerifier>,
    registry: &'a Arc<Mutex<Registry>>,
}

impl Dial<'_> {
    async fn to(&self, quinn: &quinn::Endpoint, addr: SocketAddr) -> Result<Arc<Held>, Error> {
        let mut config = client_config(self.purpose, self.credentials, self.verifier.clone())?;
        config.transport_config(Arc::new(dialling()));
        let all = async {
            let connecting =
                quinn.connect_with(config, addr, TLS_NAME).map_err(|error| unreachable(error.to_string()))?;
            let lost = |error: ConnectionError| failed(&error, &self.verifier);
            let connection = connecting.await.map_err(lost)?;
            let mut word = connection.accept_uni().await.map_err(lost)?;
            match word.read_to_end(1).await {
                Ok(word) if word == [ADMITTED] => {}
                Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(error))) => {
                    return Err(lost(error));
                }
                _ => return Err(unreachable("the node that answers speaks another version")),
            }
            let peer = VerifiedPeer::dialled(&connection)?;
            let leaf = self.credentials.and_then(|own| own.chain.first()).cloned().unwrap_or_default();
            Ok(hold(self.registry, connection, Some(peer), self.purpose, true, leaf))
        };
        let deadline = tokio::time::timeout(limits::HANDSHAKE_DEADLINE, all);
        deadline.await.unwrap_or_else(|_| Err(unreachable("nobody answers")))
    }
}

/// The addresses of `addr`, IPv4 first; never empty.
async fn resolve(addr: &str) -> Result<Vec<SocketAddr>, Error> {
    if addr.len() > limits::MAX_ADDR_BYTES {
        return Err(Refusal::invalid("address", "it is too long; give host:port").into());
    }
    let found = tokio::net::lookup_host(addr).await.map_err(|error| {
        let why = format!("it can't be resolved ({error}); give host:port");
        Error::Refused(Refusal::invalid(format!("address {addr:?}"), why))
    })?;
    let mut found: Vec<SocketAddr> = found.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    if found.is_empty() { Err(unreachable("the name has no address")) } else { Ok(found) }
}

impl Endpoint {
    /// Opens a connection to the member at `addr` (`host:port`), which must be `node` if given.
    pub(super) async fn dial(
        &self,
        purpose: Purpose,
        addr: &str,
        node: Option<NodeId>,
    ) -> Result<Arc<Held>, Error> {
        let trust = self.live().current();
        if node.is_some_and(|node| self.live().refuses(node)) {
            return Err(unreachable("that node was removed from the cluster"));
        }
        let verifier = DialVerifier::new(Expect::member_of(&trust, node));
        let dial =
            Dial { purpose, credentials: Some(&trust.credentials), verifier, registry: self.registry() };
        let mut last = unreachable("the name has no address that the listening socket can reach");
        for found in resolve(addr).await? {
            if self.local_addr().is_ipv4() && found.is_ipv6() {
                continue;
            }
            match dial.to(self.quinn(), found).await {
                // Whoever was removed is not asked anything either, whichever address it has.
                Ok(held)
                    if held.identity().is_some_and(|peer| self.live().refuses(peer.node))
                        && !crate::planted!(AskRemoved) =>
                {
                    last = unreachable("the node that answers was removed from the cluster");
                }
                Ok(held) => return Ok(held),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Opens a connection for requests to the member at `addr` (`host:port`), which must be
    /// `node` if given, with this node's own certificate.
    ///
    /// # Errors
    /// [`Error::Refused`] if one side does not accept the other, [`Error::NotDone`] if nobody
    /// answers.
    pub async fn dialer(&self, addr: &str, node: Option<NodeId>) -> Result<Dialer, Error> {
        let held = self.dial(Purpose::Client, addr, node).await?;
        Ok(Dialer { held, root: None, _registry: self.registry().clone() })
    }
}

/// A connection to one member on which requests are made. It closes when dropped.
#[derive(Debug)]
pub struct Dialer {
    held: Arc<Held>,
    root: Option<Vec<u8>>,
    _registry: Arc<Mutex<Registry>>,
}

impl Dialer {
    /// Connects to the first of `endpoints` (`host:port`) that lets us in, without listening.
    ///
    /// # Errors
    /// [`Error::Refused`] if the credentials are not accepted or the answering node is not
    /// believed; [`NotDone::Unreachable`] with each endpoint's reason if none answers.
    pub async fn connect(
        endpoints: &[String],
        credentials: &Credentials,
        purpose: Purpose,
    ) -> Result<Self, Error> {
        let expect = || Expect::member(credentials, None);
        Self::first(endpoints, purpose, Some(credentials), expect).await
    }

    /// Connects to the first of `endpoints` that proves to belong to the cluster of `token`, as
    /// somebody without a certificate. Nothing of the token is sent.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub async fn join(endpoints: &[String], token: &JoinToken) -> Result<Self, Error> {
        let expect = || Ok(Expect::Pinned(token.root));
        Self::first(endpoints, Purpose::Join, None, expect).await
    }

    async fn first(
        endpoints: &[String],
        purpose: Purpose,
        credentials: Option<&Credentials>,
        expect: impl Fn() -> Result<Expect, Refusal>,
    ) -> Result<Self, Error> {
        let registry = Arc::new(Mutex::new(Registry::default()));
        let (mut reasons, mut refused) = (Vec::new(), None);
        for endpoint in endpoints {
            let tried = async {
                let mut last = unreachable("the name has no address");
                for addr in resolve(endpoint).await? {
                    let verifier = DialVerifier::new(expect()?);
                    let dial = Dial { purpose, credentials, verifier, registry: &registry };
                    let quinn = quinn::Endpoint::client(any_port(addr))
                        .map_err(|error| unreachable(error.to_string()))?;
                    match dial.to(&quinn, addr).await {
                        Ok(held) => {
                            let root = dial.verifier.pinned();
                            return Ok(Self { held, root, _registry: registry.clone() });
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            };
            match tried.await {
                Ok(dialer) => return Ok(dialer),
                Err(error) => {
                    reasons.push(format!("{endpoint}: {error}"));
                    refused = refused.or(matches!(error, Error::Refused(_)).then_some(error));
                }
            }
        }
        if reasons.is_empty() {
            return Err(Refusal::invalid("endpoints", "there is none; give at least one host:port").into());
        }
        let why = format!("no endpoint could be reached ({})", reasons.join("; "));
        Err(refused.unwrap_or_else(|| unreachable(why)))
    }

    /// The member that answers.
    pub fn server(&self) -> Identity {
        self.held.identity().expect("a dialled node is always verified")
    }

    /// The root certificate (DER) that the join token pins; `None` unless made by
    /// [`join`](Self::join).
    pub fn root(&self) -> Option<&[u8]> {
        self.root.as_deref()
    }

    /// Whether it has ended: the next call would fail.
    pub fn is_closed(&self) -> bool {
        self.held.connection.close_reason().is_some()
    }

    /// Sends one request and waits for its one answer. There is no deadline: drop it to give up,
    /// and treat that as unknown.
    ///
    /// # Errors
    /// [`Error::NotDone`] if it was never sent, [`Error::Unknown`] if it was and no answer came.
    pub async fn call(&self, request: Bytes) -> Result<Bytes, Error> {
        let mut stream = self.open_stream(request).await?;
        stream.finish();
        stream.next().await?.ok_or(Error::Unknown(Unknown::ConnectionLost))
    }

    /// Sends a request on a stream of its own and leaves it open in both directions.
    ///
    /// # Errors
    /// [`Error::NotDone`] if the request was not sent whole, [`Error::Refused`] if it is too large
    /// or the connection was ended with a refusal.
    pub async fn open_stream(&self, request: Bytes) -> Result<ResponseStream, Error> {
        if request.len() > limits::MAX_REQUEST_FRAME_BYTES {
            let (len, max) = (request.len() as u64, limits::MAX_REQUEST_FRAME_BYTES as u64);
            return Err(Refusal::RequestTooLarge { len, max }.into());
        }
        let not_sent = |error: &ConnectionError| match refusal_in(error) {
            Some(refusal) => Error::Refused(refusal),
            None => unreachable(format!("the connection broke before the request was sent ({error})")),
        };
        let (send, recv) = self.held.connection.open_bi().await.map_err(|error| not_sent(&error))?;
        let recv = FrameReader::new(recv, limits::MAX_ANSWER_FRAME_BYTES);
        let mut stream = ResponseStream { send, recv, _held: self.held.clone() };
        // A frame cut short is never acted on, so a failure here means that nothing was done.
        match write_frames(&mut stream.send, [request]).await {
            Ok(()) => Ok(stream),
            Err(quinn::WriteError::ConnectionLost(error)) => Err(not_sent(&error)),
            // The other side answers early and reads no more: the answer says why.
            Err(quinn::WriteError::Stopped(_)) => Ok(stream),
            Err(error) => Err(unreachable(error.to_string())),
        }
    }

    /// Closes it now, without waiting for answers.
    pub fn close(&self) {
        self.held.connection.close(0u32.into(), b"");
    }
}

fn any_port(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// The answers to one request. Dropping it tells the other side to stop.
pub struct ResponseStream {
    send: SendStream,
    recv: FrameReader,
    _held: Arc<Held>,
}

impl ResponseStream {
    /// Sends one more frame of the request (a watcher's change of mind).
    ///
    /// # Errors
    /// [`Error::Unknown`] if the connection broke.
    pub async fn send(&mut self, frame: Bytes) -> Result<(), Error> {
        let sent = write_frames(&mut self.send, [frame]).await;
        sent.map_err(|_| Error::Unknown(Unknown::ConnectionLost))
    }

    /// Says that no more of the request follows.
    pub fn finish(&mut self) {
        let _ = self.send.finish();
    }

    /// The next answer; `None` when the other side has said all. May be dropped and called again.
    ///
    /// # Errors
    /// [`Error::Unknown`] if the connection broke or the other side gave up, [`Error::Refused`] if
    /// it ended the connection with a refusal.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        self.recv.next().await.map_err(|error| match error {
            FrameError::Lost(quinn::ReadError::ConnectionLost(error)) => match refusal_in(&error) {
                Some(refusal) => Error::Refused(refusal),
                None => Error::Unknown(Unknown::ConnectionLost),
            },
            _ => Error::Unknown(Unknown::ConnectionLost),
        })
    }
}

impl std::fmt::Debug for ResponseStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResponseStream(..)")
    }
}

/// A dial that believes what `believes` does and proves nothing, for tests: no door but the
/// joiners' opens to it.
#[cfg(test)]
pub(super) async fn without_certificate(
    addr: &str,
    believes: &Credentials,
    purpose: Purpose,
) -> Result<Dialer, Error> {
    Dialer::first(&[addr.to_owned()], purpose, None, || Expect::member(believes, None)).await
}
