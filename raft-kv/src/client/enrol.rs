//! Asking with a token: for a first certificate, or for another one under the same id.
//!
//! The token pins the cluster's root, so that nobody is trusted on first use, and its secret is sent only
//! to a member that has proved that root. It must never be part of an error or a log.

use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::api::{Answered, Call, Reply};
use super::config::{Remembered, StartError};
use super::renewing::{Renewals, forget_key, next_key};
use super::trust::vault::Vault;
use crate::codec::Wire;
use crate::error::{Error, Refusal, StorageFailed, Unknown};
use crate::net::{Dialer, read_credentials_in, replace_credentials};
use crate::pki::{self, Credentials, JoinToken, NodeKey, Purpose};
use crate::types::{EnrolRequest, ReadmitRequest, TrustReply};

/// How long somebody with a token waits for the cluster's answer.
pub(super) const JOIN_PATIENCE: Duration = Duration::from_secs(20);

/// With what a member comes back whose certificate is not believed any more.
#[derive(Clone, Default)]
pub struct Readmission {
    /// A join token for managers.
    pub token: String,
    /// Members to ask, as `host:port`; empty: those that it knew when it ran last.
    pub endpoints: Vec<String>,
}

impl std::fmt::Debug for Readmission {
    /// Shows nothing of the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readmission").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

/// Makes a call to the cluster of `token`, as somebody without a certificate.
pub(super) async fn ask(token: &JoinToken, endpoints: &[String], call: Call) -> Result<Reply, Error> {
    let asked = async {
        let dialer = Dialer::join(endpoints, token).await?;
        let answer = dialer.call(call.to_bytes()).await?;
        let answered =
            Answered::from_bytes(answer).map_err(|error| Refusal::Malformed { what: error.to_string() });
        Ok::<_, Error>(answered??.1)
    };
    tokio::time::timeout(JOIN_PATIENCE, asked).await.map_err(|_| Error::Unknown(Unknown::Deadline))?
}

/// What is written for a node that was answered with a certificate for `key`.
fn taken(reply: Reply, key: &NodeKey) -> Result<Credentials, Error> {
    let Reply::Trust(TrustReply::Certificate { chain, roots, .. }) = reply else {
        return Err(Refusal::Malformed { what: "the answer is no certificate".into() }.into());
    };
    let der = |list: Vec<Bytes>| list.iter().map(|one| one.to_vec()).collect();
    let credentials =
        Credentials { chain: der(chain), key: key.der().to_vec(), roots: der(roots), distrusted: Vec::new() };
    credentials.check()?;
    Ok(credentials)
}

/// Gets a client or worker its first certificate, by a token of that role, from a member at one of
/// `endpoints` (`host:port`). The key is made here. The answer names no member.
///
/// ```no_run
/// # async fn example(token: &str) -> Result<(), raft_kv::error::Error> {
/// use raft_kv::client::{Handle, enrol};
///
/// let endpoints = ["192.0.2.1:2380".to_owned()];
/// let credentials = enrol(token, &endpoints, "billing").await?;
/// let handle = Handle::connect(&endpoints, credentials).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Refusal::BadToken`]; [`Refusal::Invalid`] for a name that is none or a user's;
/// [`NotDone::TooManyFailures`](crate::error::NotDone::TooManyFailures). After [`Error::Unknown`] the token
/// may have been used once.
pub async fn enrol(token: &str, endpoints: &[String], name: &str) -> Result<Credentials, Error> {
    let (token, key) = (token.parse::<JoinToken>()?, NodeKey::generate());
    let secret = token.secret.to_text().into();
    let request = EnrolRequest { secret, request: key.request().into(), name: name.into() };
    taken(ask(&token, endpoints, Call::Enrol(request)).await?, &key)
}

/// Gets a node whose certificate is not believed any more another one under its id, by a token of its
/// role. Use [`readmit_in`] for certificates in files: there a lost answer does no harm.
///
/// # Errors
/// [`Refusal::BadToken`]; [`Refusal::BadCertificate`] for a node that was removed, has a newer
/// certificate, or was late when the root was replaced and was not let back in;
/// [`NotDone::TooManyFailures`](crate::error::NotDone::TooManyFailures). After [`Error::Unknown`] the
/// cluster may know the node by a key that is lost.
pub async fn readmit(
    credentials: &Credentials,
    token: &str,
    endpoints: &[String],
) -> Result<Credentials, Error> {
    readmitted(credentials, &NodeKey::generate(), token, endpoints).await
}

/// As [`readmit`], for a client's or worker's files in `dir`. The new key is on the disk before the cluster
/// is asked: what is asked again after a lost answer is answered again.
///
/// # Errors
/// As [`readmit`]; [`Error::Stopped`] for files that can't be written.
pub async fn readmit_in(dir: &Path, token: &str, endpoints: &[String]) -> Result<Renewals, Error> {
    let unwritable = |failed: StorageFailed| Error::Stopped(failed.to_string());
    let old = read_credentials_in(dir)?;
    let key = next_key(dir, &old).map_err(unwritable)?;
    let credentials = readmitted(&old, &key, token, endpoints).await?;
    replace_credentials(dir, &credentials).map_err(unwritable)?;
    forget_key(dir, key.der()).map_err(unwritable)?;
    Ok(Renewals::of(&credentials, 1)?)
}

async fn readmitted(
    old: &Credentials,
    key: &NodeKey,
    token: &str,
    endpoints: &[String],
) -> Result<Credentials, Error> {
    let token = token.parse::<JoinToken>()?;
    let was = old.identity()?;
    let request = key.request();
    let readmission = ReadmitRequest {
        secret: token.secret.to_text().into(),
        proof: pki::prove(&old.key, &request)?.into(),
        old: old.chain.first().cloned().unwrap_or_default().into(),
        request: request.into(),
    };
    let new = taken(ask(&token, endpoints, Call::Readmit(readmission)).await?, key)?;
    let is = new.identity()?;
    if (was.cluster, was.node) != (is.cluster, is.node) {
        let why = "the certificate that came is another node's";
        return Err(Refusal::BadCertificate { why: why.into() }.into());
    }
    Ok(new)
}

/// Brings a member back before it starts: its id and data stay. Where it is let in as it is, nothing is
/// asked and the token is not used.
pub(super) async fn bring_back(
    vault: &Vault,
    node: &Remembered,
    readmission: &Readmission,
) -> Result<(), StartError> {
    let Readmission { token, endpoints } = readmission;
    let known = || node.members.iter().filter(|(id, _)| *id != node.node).map(|(_, addr)| addr.clone());
    let endpoints = if endpoints.is_empty() { known().collect() } else { endpoints.clone() };
    let old = vault.load()?;
    let leaf = old.chain.first().map(Vec::as_slice).unwrap_or_default();
    let ended = SystemTime::now() >= pki::validity_of(leaf)?.1;
    if !ended && Dialer::connect(&endpoints, &old, Purpose::Client).await.is_ok() {
        tracing::info!("the cluster lets this member in as it is; the token is not used");
        return Ok(());
    }
    let key = vault.next_key(&old.key)?;
    let credentials = readmitted(&old, &key, token, &endpoints).await?;
    vault.save(&credentials)?;
    tracing::info!(id = %node.node, "this member has come back: the cluster gave it another certificate");
    Ok(())
}
