//! Calls on a member somewhere else, over QUIC. A request goes to another endpoint only where it
//! was certainly not done, or where doing it twice is the same as once (reads).

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use super::api::{Answered, Call, Reply};
use super::watch::Watch;
use crate::codec::Wire;
use crate::error::{Error, NotDone, Refusal, Unknown};
use crate::net::Dialer;
use crate::pki::{Credentials, Purpose};
use crate::types::{TrustCall, WatchRequest};
use std::sync::Arc;

/// Pause before the endpoints are tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// A door over QUIC.
pub(super) struct Remote {
    endpoints: Vec<String>,
    credentials: Credentials,
    current: Mutex<Option<Arc<Dialer>>>,
    /// Where the next connection is tried first.
    turn: Mutex<usize>,
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
        let remote = Self { endpoints, credentials, current: Mutex::new(None), turn: Mutex::new(0) };
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
        let dialer = Arc::new(Dialer::connect(&order, &self.credentials, Purpose::Client).await?);
        *self.current.lock() = Some(dialer.clone());
        Ok(dialer)
    }

    /// The connection is of no use: the next request tries the next endpoint.
    fn give_up(&self, dialer: &Arc<Dialer>) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|now| Arc::ptr_eq(now, dialer)) {
            *current = None;
            *self.turn.lock() += 1;
        }
    }

    pub(super) async fn call(&self, call: Call, patience: Duration) -> Answered {
        let deadline = Instant::now() + patience;
        let repeatable = reads_only(&call);
        let request = call.to_bytes();
        loop {
            let dialer = match timeout_at(deadline, self.dialer()).await {
                Ok(Ok(dialer)) => dialer,
                Ok(Err(error @ Error::NotDone(_))) => {
                    self.pause(deadline, error).await?;
                    continue;
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(Error::NotDone(NotDone::Deadline)),
            };
            let answer = timeout_at(deadline, dialer.call(request.clone())).await;
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

    pub(super) async fn watch(&self, request: WatchRequest, patience: Duration) -> Result<Watch, Error> {
        let deadline = Instant::now() + patience;
        let late = |_| Error::NotDone(NotDone::Deadline);
        let dialer = timeout_at(deadline, self.dialer()).await.map_err(late)??;
        let opened = timeout_at(deadline, dialer.open_stream(Call::Watch(request).to_bytes())).await;
        let mut stream = opened.map_err(late)??;
        let created = timeout_at(deadline, stream.next()).await.map_err(late)??;
        let created = created.ok_or(Error::Unknown(Unknown::ConnectionLost))?;
        match read_answer(created)? {
            (_, Reply::Done) => Ok(Watch::remote(stream)),
            (_, other) => Err(Refusal::Malformed { what: format!("a watch was answered {other:?}") }.into()),
        }
    }
}

fn read_answer(bytes: bytes::Bytes) -> Answered {
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
