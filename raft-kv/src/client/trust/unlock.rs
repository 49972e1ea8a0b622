//! Unlocking a member that starts: it waits, serving nothing, until somebody on its machine hands it
//! the cluster's unlock key over a socket in its data directory. Only whoever may read the directory
//! reaches it. And the calls about the lock, for programs.

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::super::api::{Call, Reply};
use super::super::config::StartError;
use super::super::handle::Handle;
use super::vault::Vault;
use crate::error::{Error, Refusal};
use crate::pki::UnlockKey;
use crate::types::{LockStatus, TrustCall, TrustReply};

/// The socket's name in the data directory.
pub(in crate::client) const SOCKET: &str = "unlock";
/// The longest text that is read from it.
const MAX_TEXT: u64 = 256;
/// How long one who has connected may take.
const PATIENCE: Duration = Duration::from_secs(5);
const OPENED: &str = "opened";

/// What a member that finds itself locked does.
#[derive(Clone, Debug, Default)]
pub enum Unlocking {
    /// It does not start: [`StartError::Locked`].
    #[default]
    Refuse,
    /// It tries this key.
    With(UnlockKey),
    /// It waits until [`unlock`] hands it the key.
    Wait,
}

/// The socket by a path that is short whatever the directory's is: those of sockets are bounded.
struct Place {
    _folder: std::fs::File,
    path: PathBuf,
}

impl Place {
    fn of(dir: &Path) -> std::io::Result<Self> {
        let folder = std::fs::File::open(dir)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()));
        Ok(Self { _folder: folder, path })
    }
}

fn failed(dir: &Path, error: &std::io::Error) -> StartError {
    let why = format!("its socket `{SOCKET}` can't be used: {error}");
    StartError::DataDir { dir: dir.display().to_string(), why }
}

/// Opens what the member in `dir` keeps, as `unlocking` says. The directory must be this process's.
pub(in crate::client) async fn opened(dir: &Path, unlocking: &Unlocking) -> Result<Vault, StartError> {
    match unlocking {
        Unlocking::Refuse => Vault::open(dir, None),
        Unlocking::With(key) => Vault::open(dir, Some(key)),
        Unlocking::Wait if !Vault::is_locked(dir)? => Vault::open(dir, None),
        Unlocking::Wait => {
            let place = Place::of(dir).map_err(|error| failed(dir, &error))?;
            // One that a killed process left: the directory is ours alone.
            let _ = std::fs::remove_file(&place.path);
            let waited = wait(dir, &place).await;
            let _ = std::fs::remove_file(&place.path);
            waited
        }
    }
}

async fn wait(dir: &Path, place: &Place) -> Result<Vault, StartError> {
    let listener = UnixListener::bind(&place.path).map_err(|error| failed(dir, &error))?;
    std::fs::set_permissions(&place.path, std::fs::Permissions::from_mode(0o600))
        .map_err(|error| failed(dir, &error))?;
    tracing::warn!(
        "locked: this member serves nothing until it has the unlock key; run `raft-kv unlock --data-dir {}`",
        dir.display()
    );
    loop {
        let (mut stream, _) = listener.accept().await.map_err(|error| failed(dir, &error))?;
        let handed = async {
            let mut text = zeroize::Zeroizing::new(String::new());
            (&mut stream).take(MAX_TEXT).read_to_string(&mut text).await.ok()?;
            let vault = text
                .parse::<UnlockKey>()
                .map_err(StartError::from)
                .and_then(|key| Vault::open(dir, Some(&key)));
            let answer = match &vault {
                Ok(_) => OPENED.to_owned(),
                Err(error) => error.to_string(),
            };
            // Who has gone does not hear it.
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
            Some(vault)
        };
        match tokio::time::timeout(PATIENCE, handed).await {
            Ok(Some(Ok(vault))) => return Ok(vault),
            Ok(Some(Err(error @ StartError::Storage(_)))) => return Err(error),
            Ok(Some(Err(error))) => tracing::warn!(%error, "still locked"),
            Ok(None) | Err(_) => {}
        }
    }
}

/// Hands the unlock key to the member in `data_dir`, which waits for it.
///
/// # Errors
/// [`StartError`]: nobody waits there, or it is another key.
pub async fn unlock(data_dir: &Path, key: &UnlockKey) -> Result<(), StartError> {
    let wrong = |why: String| StartError::DataDir { dir: data_dir.display().to_string(), why };
    let nobody = |error: std::io::Error| {
        wrong(format!(
            "no member waits there to be unlocked ({error}); is it running already, or not at all?"
        ))
    };
    let place = Place::of(data_dir).map_err(nobody)?;
    let mut stream = UnixStream::connect(&place.path).await.map_err(nobody)?;
    let mut answer = String::new();
    let asked = async {
        stream.write_all(key.to_text().as_bytes()).await?;
        stream.shutdown().await?;
        (&mut stream).take(4096).read_to_string(&mut answer).await
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(_)) if answer == OPENED => Ok(()),
        Ok(Ok(_)) if !answer.is_empty() => Err(Refusal::invalid("unlock key", answer).into()),
        _ => Err(wrong("the member there does not answer".into())),
    }
}

/// Whether the member in `data_dir` needs the unlock key to start.
///
/// # Errors
/// [`StartError`]: the directory holds no member, or is damaged.
pub fn is_locked(data_dir: &Path) -> Result<bool, StartError> {
    Vault::is_locked(data_dir)
}

impl Handle {
    async fn lock_call(&self, call: TrustCall) -> Result<LockStatus, Error> {
        match self.call(Call::Trust(call)).await? {
            (_, Reply::Trust(TrustReply::Lock(status))) => Ok(status),
            (_, other) => Err(Refusal::Malformed { what: format!("{other:?} for the lock's status") }.into()),
        }
    }

    /// Whether members' disks are locked, and how far a replacement of keys is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lock_status(&self) -> Result<LockStatus, Error> {
        self.lock_call(TrustCall::LockStatus).await
    }

    /// Locks members' disks with a new unlock key, which is in the answer, or unlocks them. What is
    /// so already stays.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn autolock(&self, on: bool) -> Result<LockStatus, Error> {
        self.lock_call(TrustCall::Autolock(on)).await
    }

    /// The unlock key, in the answer; none while autolock is off.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn unlock_key(&self) -> Result<LockStatus, Error> {
        self.lock_call(TrustCall::UnlockKey).await
    }

    /// Gives the cluster another unlock key, which is in the answer.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] while autolock is off, and see [`Error`].
    pub async fn rotate_unlock_key(&self) -> Result<LockStatus, Error> {
        self.lock_call(TrustCall::UnlockKeyRotate).await
    }
}
