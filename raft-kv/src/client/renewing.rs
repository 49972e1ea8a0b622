//! A client's certificate, kept current in its files and in the handle that uses it.
//!
//! The cluster tells when what it believes has changed; time tells the rest. A new certificate is used
//! only once it is whole on the disk, and its key is on the disk before the cluster is asked: an answer
//! that is lost is asked for again with the same key, and the files never lag behind the handle.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rand::Rng;
use tokio::sync::watch;
use tokio::time::Instant;

use super::api::{Call, Reply};
use super::handle::RENEW;
use super::remote::{Remote, read_answer};
use super::trust::due;
use crate::error::{Error, Refusal, StorageFailed};
use crate::limits::REQUEST_DEADLINE;
use crate::net::{
    ResponseStream, lock_credentials, read_credentials_in, replace_credentials, root_of, write_private,
};
use crate::pki::{Credentials, NodeKey, validity_of};
use crate::types::{RootDigest, TrustCall, TrustReply};

/// The key of the certificate that is being asked for.
const NEXT_KEY: &str = "next-key.pem";
/// How often the files are looked at: another process may have renewed them.
const LOOK: Duration = Duration::from_secs(10);
/// A certificate is used for at least this long.
const LEAST_LIFE: Duration = Duration::from_secs(1);
/// First pause after a failure; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Clients that are told of a new root at once come within this.
const SPREAD: Duration = Duration::from_millis(200);

/// How a certificate that is kept current is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Renewals {
    /// Certificates since the handle was made.
    pub renewed: u64,
    /// When the one in use ends.
    pub ends: SystemTime,
    /// The root that it rests on, as far as it can be told.
    pub root: Option<RootDigest>,
    /// Roots that are believed.
    pub roots: usize,
    /// What went wrong last, and how often in a row; `None` once it has gone well again.
    pub failed: Option<(Error, u32)>,
}

impl Renewals {
    pub(super) fn of(credentials: &Credentials, renewed: u64) -> Result<Self, Refusal> {
        let leaf = credentials.chain.first().map(Vec::as_slice).unwrap_or_default();
        let (ends, root) = (validity_of(leaf)?.1, root_of(credentials)?);
        Ok(Self { renewed, ends, root, roots: credentials.roots.len(), failed: None })
    }
}

/// Gets a new certificate for the one in `dir` from a member at one of `endpoints`, and puts it there.
///
/// # Errors
/// As [`Handle::connect_renewing`](super::Handle::connect_renewing); [`Error::Stopped`] for files that
/// can't be written.
pub async fn renew_once(endpoints: &[String], dir: &Path) -> Result<Renewals, Error> {
    let credentials = read_credentials_in(dir)?;
    credentials.check_date(SystemTime::now(), RENEW)?;
    let remote = Remote::connect(endpoints, credentials.clone()).await?;
    let new = renewed(&remote, &credentials, dir).await?;
    // With the new one, so that the cluster sees it.
    Remote::connect(endpoints, new.clone()).await?;
    Ok(Renewals::of(&new, 1)?)
}

/// Keeps the certificate of `remote` current, from the files in `dir`, until `remote` is dropped.
pub(super) fn start(remote: &Arc<Remote>, dir: PathBuf) -> Result<(), Refusal> {
    let credentials = remote.credentials();
    let (tell, renewals) = watch::channel(Renewals::of(&credentials, 0)?);
    let (pause, due) = (FIRST_PAUSE, due_of(&credentials)?);
    let mut keeper = Keeper { remote: Arc::downgrade(remote), dir, tell, due, pause };
    let task = tokio::spawn(async move { while keeper.round().await {} });
    remote.kept_by(task.abort_handle(), renewals);
    Ok(())
}

fn due_of(credentials: &Credentials) -> Result<SystemTime, Refusal> {
    let (from, until) = validity_of(credentials.chain.first().map(Vec::as_slice).unwrap_or_default())?;
    Ok(due(from, until))
}

/// A key, roots and a chain that fit together, from the cluster to the files.
async fn renewed(remote: &Remote, old: &Credentials, dir: &Path) -> Result<Credentials, Error> {
    let unwritable = |failed: StorageFailed| Error::Stopped(failed.to_string());
    let key = next_key(dir, old).map_err(unwritable)?;
    let call = Call::Trust(TrustCall::Renew { request: key.request().into() });
    let (chain, roots) = match remote.call(call, REQUEST_DEADLINE).await? {
        (_, Reply::Trust(TrustReply::Certificate { chain, roots, .. })) => (chain, roots),
        (_, other) => return Err(unexpected(&other)),
    };
    let der = |list: Vec<Bytes>| list.iter().map(|one| one.to_vec()).collect();
    let credentials =
        Credentials { chain: der(chain), key: key.der().to_vec(), roots: der(roots), distrusted: Vec::new() };
    let (was, is) = (old.identity()?, credentials.check()?);
    // Of a cluster that was restored from its own, a client's next certificate names that one: the root is the
    // same then.
    let (before, now) = (root_of(old)?, root_of(&credentials)?);
    let same_cluster = was.cluster == is.cluster || before.is_some() && before == now;
    if was.node != is.node || !same_cluster || now.is_none() {
        let why = "the certificate that came is another node's, or does not lead to a root that came with it";
        return Err(Refusal::BadCertificate { why: why.into() }.into());
    }
    replace_credentials(dir, &credentials).map_err(unwritable)?;
    forget_key(dir, key.der()).map_err(unwritable)?;
    Ok(credentials)
}

/// The key to ask with: one that was asked with before and may have been answered, or a new one that is
/// on the disk.
pub(super) fn next_key(dir: &Path, old: &Credentials) -> Result<NodeKey, StorageFailed> {
    let path = dir.join(NEXT_KEY);
    // Processes that share the files ask with the same key: whoever is answered first, both may go on.
    let _alone = lock_credentials(dir)?;
    let left = key_in(&path).filter(|key| *key != old.key);
    if let Some(key) = left.and_then(|key| NodeKey::from_der(&key).ok()) {
        return Ok(key);
    }
    let key = NodeKey::generate();
    let pem = Credentials { key: key.der().to_vec(), ..Credentials::default() }.to_pem().key;
    write_private(&path, pem.as_bytes())?;
    Ok(key)
}

/// The key in the files now is not asked with any more.
pub(super) fn forget_key(dir: &Path, key: &[u8]) -> Result<(), StorageFailed> {
    let path = dir.join(NEXT_KEY);
    let _alone = lock_credentials(dir)?;
    if key_in(&path).is_some_and(|left| left == key) {
        // One that stays is known by the key beside it.
        let _ = fs::remove_file(&path);
    }
    Ok(())
}

fn key_in(path: &Path) -> Option<Vec<u8>> {
    Credentials::key_from_pem(&fs::read_to_string(path).ok()?).ok()
}

fn unexpected(reply: &Reply) -> Error {
    Refusal::Malformed { what: format!("a renewal was answered {reply:?}").chars().take(200).collect() }
        .into()
}

/// At most `time`, so that not all come at once.
fn at_random(time: Duration) -> Duration {
    time.mul_f64(rand::rng().random())
}

struct Keeper {
    remote: Weak<Remote>,
    dir: PathBuf,
    tell: watch::Sender<Renewals>,
    due: SystemTime,
    pause: Duration,
}

impl Keeper {
    /// Follows the cluster on one connection; false once nobody uses the handle any more.
    async fn round(&mut self) -> bool {
        let Err(error) = self.follow().await else { return self.remote.strong_count() > 0 };
        tracing::warn!(%error, "looking after the certificate: tried again");
        self.tell.send_modify(|told| {
            let times = told.failed.as_ref().map_or(0, |(_, times)| *times);
            told.failed = Some((error, times + 1));
        });
        tokio::time::sleep(at_random(self.pause)).await;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        self.remote.strong_count() > 0
    }

    /// Until the certificate was exchanged, or the connection broke.
    async fn follow(&mut self) -> Result<(), Error> {
        let Some(remote) = self.remote.upgrade() else { return Ok(()) };
        if self.take_files(&remote).await? {
            self.went_well();
        }
        let asked = Call::Trust(TrustCall::Follow);
        let opened = remote.open(&asked, Instant::now() + REQUEST_DEADLINE).await?;
        drop(remote);
        self.went_well();
        let (mut told, mut stream) = (opened.first, opened.stream);
        loop {
            let Some(remote) = self.remote.upgrade() else { return Ok(()) };
            if self.heed(&remote, &told).await? || self.take_files(&remote).await? {
                return Ok(());
            }
            drop(remote);
            match self.next(&mut stream, told).await? {
                Some(next) => told = next,
                None => {
                    tokio::time::sleep(FIRST_PAUSE).await;
                    return Ok(());
                }
            }
        }
    }

    /// What the cluster tells next, or `told` once more when it is time to look; `None` where the member
    /// has left or the connection broke.
    async fn next(&self, stream: &mut ResponseStream, told: Reply) -> Result<Option<Reply>, Error> {
        let left = self.due.duration_since(SystemTime::now()).unwrap_or_default();
        match tokio::time::timeout(left.min(LOOK), stream.next()).await {
            Err(_) => Ok(Some(told)),
            Ok(Ok(Some(frame))) => Ok(Some(read_answer(frame)?.1)),
            Ok(_) => Ok(None),
        }
    }

    /// Does what follows from what the cluster tells; whether there is another certificate.
    async fn heed(&mut self, remote: &Arc<Remote>, told: &Reply) -> Result<bool, Error> {
        let Reply::Trust(TrustReply::Certificate { roots, issuing, .. }) = told else {
            return Err(unexpected(told));
        };
        let credentials = remote.credentials();
        let roots: Vec<Vec<u8>> = roots.iter().map(|root| root.to_vec()).collect();
        let moved = root_of(&credentials)? == Some(*issuing);
        if moved && SystemTime::now() < self.due {
            if credentials.roots != roots && !roots.is_empty() {
                let credentials = Credentials { roots, ..credentials };
                replace_credentials(&self.dir, &credentials)
                    .map_err(|failed| Error::Stopped(failed.to_string()))?;
                self.exchange(remote, credentials, 0).await?;
            }
            return Ok(false);
        }
        if !moved {
            tokio::time::sleep(at_random(SPREAD)).await;
        }
        if self.take_files(remote).await? {
            return Ok(true);
        }
        let new = renewed(remote, &remote.credentials(), &self.dir).await?;
        self.exchange(remote, new, 1).await?;
        tracing::info!(root = %issuing, "this client has a new certificate");
        Ok(true)
    }

    /// Goes on with what is in the files where that is another certificate; whether it is.
    async fn take_files(&mut self, remote: &Arc<Remote>) -> Result<bool, Error> {
        let (here, there) = (remote.credentials(), read_credentials_in(&self.dir));
        let Ok(there) = there else { return Ok(false) };
        let same_node = matches!((here.identity(), there.identity()), (Ok(a), Ok(b)) if a.node == b.node);
        if here.chain == there.chain || !same_node {
            return Ok(false);
        }
        self.exchange(remote, there, 1).await?;
        Ok(true)
    }

    async fn exchange(&mut self, remote: &Arc<Remote>, new: Credentials, more: u64) -> Result<(), Error> {
        let renewed = self.tell.borrow().renewed + more;
        let told = Renewals::of(&new, renewed)?;
        if more > 0 {
            // One that is due when it comes must not make this a busy loop.
            self.due = due_of(&new)?.max(SystemTime::now() + LEAST_LIFE);
        }
        remote.adopt(new).await;
        self.tell.send_replace(told);
        Ok(())
    }

    fn went_well(&mut self) {
        self.pause = FIRST_PAUSE;
        self.tell.send_if_modified(|told| told.failed.take().is_some());
    }
}
