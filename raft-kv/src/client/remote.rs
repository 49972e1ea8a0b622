//! Calls on a member somewhere else, over QUIC. A request goes to another endpoint only where it
//! was certainly not done, or where doing it twice is the same as once (reads).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{RwLock, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::api::{Answered, Call, Reply};
use super::renewing::Renewals;
use crate::codec::Wire;
use crate::error::{Error, NotDone, Refusal, Unknown};
use crate::net::{Dialer, ResponseStream};
use crate::pki::{Credentials, Purpose};
use crate::types::{Header, TrustCall};

/// Pause before the endpoints are tried again.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a new certificate waits for calls that are under way on the old one's connection.
const DRAIN: Duration = Duration::from_secs(1);
/// How long all calls wait for the new certificate's connection, before each tries by itself.
const FIRST_DIAL: Duration = Duration::from_secs(1);
/// How long a certificate that is refused may be the fault of one that is on its way.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(3);

/// A door over QUIC.
///
/// Its certificate can be exchanged while it is used: calls that are under way end on the connection
/// that they were made on, which lives as long as one of them does; later ones dial anew.
pub(super) struct Remote {
    endpoints: Vec<String>,
    credentials: Mutex<Credentials>,
    /// Counts the certificates.
    certificates: watch::Sender<u64>,
    current: Mutex<Option<Arc<Dialer>>>,
    /// Where the next connection is tried first.
    turn: Mutex<usize>,
    /// Held by each call that is under way, and alone by whoever exchanges the certificate: the cluster
    /// ends the old one's connection soon after it has seen the new one.
    under_way: RwLock<()>,
    /// What keeps the certificate current, where something does.
    keeper: Mutex<Option<(AbortHandle, watch::Receiver<Renewals>)>>,
}

/// A stream of answers that has begun.
pub(super) struct Opened {
    pub(super) stream: ResponseStream,
    pub(super) header: Header,
    pub(super) first: Reply,
    /// The connection, to be given up where it proves to be of no use.
    pub(super) dialer: Arc<Dialer>,
}

/// `https://host:port` or `host:port` as `host:port`.
fn host_port(endpoint: &str) -> Result<String, Refusal> {
    let plain = endpoint.strip_prefix("https://").unwrap_or(endpoint).trim_end_matches('/');
    if plain.contains("://") || plain.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        return Err(Refusal::invalid(
            "endpoint",
            format!("{endpoint:?} is not https://HOST:PORT or HOST:PORT"),
        ));
    }
    Ok(plain.to_owned())
}

fn reads_only(call: &Call) -> bool {
    !matches!(
        call,
        Call::Command { .. }
            | Call::Compact { .. }
            | Call::MemberPromote(_)
            | Call::MemberRemove(_)
            | Call::IssueCertificate { .. }
            | Call::Trust(
                TrustCall::Rotate { .. }
                    | TrustCall::TokenCreate { .. }
                    | TrustCall::TokenRotate(_)
                    | TrustCall::NodeRemove(_)
                    | TrustCall::NodePromote(_)
                    | TrustCall::NodeDemote(_)
            )
            | Call::Transfer(_)
            | Call::RaiseRevision(_)
            | Call::Join(_)
    )
}

impl Remote {
    pub(super) async fn connect(endpoints: &[String], credentials: Credentials) -> Result<Self, Error> {
        let endpoints =
            endpoints.iter().map(|endpoint| host_port(endpoint)).collect::<Result<Vec<_>, _>>()?;
        let remote = Self {
            endpoints,
            credentials: Mutex::new(credentials),
            certificates: watch::Sender::new(0),
            current: Mutex::new(None),
            turn: Mutex::new(0),
            under_way: RwLock::new(()),
            keeper: Mutex::new(None),
        };
        remote.dialer().await?;
        Ok(remote)
    }

    async fn dialer(&self) -> Result<Arc<Dialer>, Error> {
        if let Some(dialer) = self.current.lock().clone().filter(|dialer| !dialer.is_closed()) {
            return Ok(dialer);
        }
        let mut order = self.endpoints.clone();
        let turn = *self.turn.lock();
        order.rotate_left(turn % self.endpoints.len().max(1));
        let credentials = self.credentials();
        let dialer = Arc::new(Dialer::connect(&order, &credentials, Purpose::Client).await?);
        // Unless the certificate was exchanged meanwhile: then it is good for one call.
        if self.credentials.lock().chain == credentials.chain {
            *self.current.lock() = Some(dialer.clone());
        }
        Ok(dialer)
    }

    /// The connection is of no use: the next request tries the next endpoint.
    pub(super) fn give_up(&self, dialer: &Arc<Dialer>) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|now| Arc::ptr_eq(now, dialer)) {
            *current = None;
            *self.turn.lock() += 1;
        }
    }

    /// What it proves itself with now.
    pub(super) fn credentials(&self) -> Credentials {
        self.credentials.lock().clone()
    }

    /// Changes each time that there is another certificate.
    pub(super) fn certificates(&self) -> watch::Receiver<u64> {
        self.certificates.subscribe()
    }

    /// Goes on with `credentials`. Calls that are under way are waited for, a little: those that come
    /// meanwhile wait too, and are made on the new certificate's connection.
    pub(super) async fn adopt(&self, credentials: Credentials) {
        if crate::planted!(KeepOldCredentials) {
            return;
        }
        let same_leaf = self.credentials.lock().chain == credentials.chain;
        if same_leaf {
            *self.credentials.lock() = credentials;
            return;
        }
        let alone = timeout(DRAIN, self.under_way.write()).await;
        *self.credentials.lock() = credentials;
        *self.current.lock() = None;
        // Even where nobody calls: the cluster waits until it has seen the new one.
        let _ = timeout(FIRST_DIAL, self.dialer()).await;
        self.certificates.send_modify(|count| *count += 1);
        drop(alone);
    }

    /// From now on `keeper` looks after the certificate, until this is dropped.
    pub(super) fn kept_by(&self, keeper: AbortHandle, renewals: watch::Receiver<Renewals>) {
        *self.keeper.lock() = Some((keeper, renewals));
    }

    pub(super) fn renewals(&self) -> Option<watch::Receiver<Renewals>> {
        self.keeper.lock().as_ref().map(|(_, renewals)| renewals.clone())
    }

    /// Whether a dial that ended with `error`, `since` when dials are refused, is worth another: nobody
    /// answered, or a new certificate is on its way.
    fn worth_another(&self, error: &Error, since: &mut Option<Instant>) -> bool {
        match error {
            Error::NotDone(_) => true,
            Error::Refused(Refusal::BadCertificate { .. }) if self.keeper.lock().is_some() => {
                since.get_or_insert_with(Instant::now).elapsed() < RENEWAL_PATIENCE
            }
            _ => false,
        }
    }

    pub(super) async fn call(&self, call: Call, patience: Duration) -> Answered {
        let deadline = Instant::now() + patience;
        let repeatable = reads_only(&call);
        let request = call.to_bytes();
        let mut refused = None;
        loop {
            let late = |_| Error::NotDone(NotDone::Deadline);
            let under_way = timeout_at(deadline, self.under_way.read()).await.map_err(late)?;
            let dialer = match timeout_at(deadline, self.dialer()).await.map_err(late)? {
                Ok(dialer) => dialer,
                Err(error) if self.worth_another(&error, &mut refused) => {
                    drop(under_way);
                    self.pause(deadline, error).await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let answer = timeout_at(deadline, ask(&dialer, &request)).await;
            drop(under_way);
            let error = match answer {
                Ok(Ok(bytes)) => match read_answer(bytes) {
                    // That member is leaving: another one does it.
                    Err(error @ Error::NotDone(NotDone::ShuttingDown)) => error,
                    Err(error @ (Error::Stopped(_) | Error::Unknown(Unknown::ShuttingDown)))
                        if repeatable =>
                    {
                        error
                    }
                    answered => return answered,
                },
                Ok(Err(error @ Error::NotDone(_))) => error,
                Ok(Err(error @ Error::Unknown(_))) if repeatable => error,
                Ok(Err(error)) => return Err(error),
                Err(_) if repeatable => return Err(Error::NotDone(NotDone::Deadline)),
                Err(_) => return Err(Error::Unknown(Unknown::Deadline)),
            };
            self.give_up(&dialer);
            self.pause(deadline, error).await?;
        }
    }

    /// Waits a little before the next try, or ends with `error` when time is up.
    async fn pause(&self, deadline: Instant, error: Error) -> Result<(), Error> {
        if Instant::now() + PAUSE >= deadline {
            return Err(error);
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }

    /// Makes a call that changes nothing and is answered by a stream; waits for the first answer.
    pub(super) async fn open(&self, call: &Call, deadline: Instant) -> Result<Opened, Error> {
        let request = call.to_bytes();
        let mut refused = None;
        loop {
            let late = |_| Error::NotDone(NotDone::Deadline);
            let error = match timeout_at(deadline, self.dialer()).await.map_err(late)? {
                Ok(dialer) => match timeout_at(deadline, begin(&dialer, &request)).await.map_err(late)? {
                    Ok((stream, header, first)) => return Ok(Opened { stream, header, first, dialer }),
                    Err(error @ (Error::NotDone(_) | Error::Unknown(_) | Error::Stopped(_))) => {
                        self.give_up(&dialer);
                        error
                    }
                    Err(error) => return Err(error),
                },
                Err(error) if self.worth_another(&error, &mut refused) => error,
                Err(error) => return Err(error),
            };
            self.pause(deadline, error).await?;
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some((keeper, _)) = self.keeper.lock().take() {
            keeper.abort();
        }
    }
}

/// Sends `request` and waits for its one answer. [`Error::NotDone`] if it was certainly not sent whole,
/// [`Error::Unknown`] if it was and no answer came, whatever the connection ended with.
async fn ask(dialer: &Dialer, request: &bytes::Bytes) -> Result<bytes::Bytes, Error> {
    let mut stream = send(dialer, request).await?;
    stream.finish();
    let answer = stream.next().await;
    answer.ok().flatten().ok_or(Error::Unknown(Unknown::ConnectionLost))
}

async fn begin(dialer: &Dialer, request: &bytes::Bytes) -> Result<(ResponseStream, Header, Reply), Error> {
    let mut stream = send(dialer, request).await?;
    let first = stream.next().await.ok().flatten().ok_or(Error::Unknown(Unknown::ConnectionLost))?;
    let (header, reply) = read_answer(first)?;
    Ok((stream, header, reply))
}

async fn send(dialer: &Dialer, request: &bytes::Bytes) -> Result<ResponseStream, Error> {
    dialer.open_stream(request.clone()).await.map_err(|error| match error {
        // The connection was ended because its certificate is not believed any more: nothing was done,
        // and the next dial says whether this side has a better one.
        Error::Refused(refusal) if dialer.is_closed() => {
            Error::NotDone(NotDone::Unreachable(refusal.to_string()))
        }
        error => error,
    })
}

pub(super) fn read_answer(bytes: bytes::Bytes) -> Answered {
    Answered::from_bytes(bytes)
        .unwrap_or_else(|error| Err(Refusal::Malformed { what: error.to_string() }.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let check = |text: &str, expect: Option<&str>| assert_eq!(host_port(text).ok().as_deref(), expect);
        check("https://127.0.0.1:2380", Some("127.0.0.1:2380"));
        check("https://a.example:1/", Some("a.example:1"));
        check("[::1]:7", Some("[::1]:7"));
        check("http://a:1", None);
        check("a", None);
        check("", None);
        check("a:99999", None);
    }
}
