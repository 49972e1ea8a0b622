//! The keys that secrets are sealed with, at this member: it stores those that are to come, gives up
//! those that are not needed, keeps its disk locked as the cluster says, and, where it leads, carries
//! their replacement on. What may be done when is decided in `machine/trust/sealing`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::super::api::{Answered, Call, Reply};
use super::super::handle::Handle;
use super::super::local::Local;
use super::authority::{CA_KEY, TOKEN_SECRET, now};
use crate::error::{Error, Refusal, StorageFailed};
use crate::limits::MAX_RESEALED_PER_STEP;
use crate::machine::{self, SealStep};
use crate::pki::UnlockKey;
use crate::types::{
    DataKey, DataKeyId, HandedKeys, LockStatus, NextKey, Resealed, Sealing, SecretPlace, TrustChange,
    TrustReply,
};

/// What a data key is sealed as, by the one before it.
const DATA_KEY: &str = "data key";
/// What the unlock key is sealed as.
pub(in crate::client) const UNLOCK_KEY: &str = "unlock key";
/// What the key that signs users' tokens is sealed as.
pub(in crate::client) const TOKEN_KEY: &str = "token key";
/// How often it is looked while something is under way.
const BUSY: Duration = Duration::from_millis(100);
/// How often it is looked otherwise.
const QUIET: Duration = Duration::from_secs(5);
/// How long another member may take to hand keys over.
const HAND_OVER: Duration = Duration::from_secs(5);

/// What a user's password hash is sealed as.
pub(in crate::client) fn password_of(user: &str) -> String {
    format!("password of {user}")
}

fn about(place: &SecretPlace) -> String {
    match place {
        SecretPlace::Authority(_) => CA_KEY.into(),
        SecretPlace::Token(_) => TOKEN_SECRET.into(),
        SecretPlace::User(name) => password_of(name),
        SecretPlace::TokenKey => TOKEN_KEY.into(),
        SecretPlace::UnlockKey => UNLOCK_KEY.into(),
    }
}

/// Looks after the keys until the node ends.
pub(in crate::client) async fn keep_sealed(local: Arc<Local>) {
    let mut changes = local.shell.trust_changes();
    loop {
        changes.mark_unchanged();
        let busy = match local.look_after_keys().await {
            Ok(busy) => busy,
            Err(Error::Stopped(_)) => return,
            Err(error) => {
                tracing::debug!(%error, "looking after the keys of secrets: tried again");
                true
            }
        };
        let pause = if busy { BUSY } else { QUIET };
        if let Ok(Err(_)) = tokio::time::timeout(pause, changes.changed()).await {
            return;
        }
    }
}

impl Local {
    /// Does whatever is to be done now; whether something is under way.
    async fn look_after_keys(&self) -> Result<bool, Error> {
        let sealing = self.read(machine::read::sealing)?;
        let missing = |id: DataKeyId| !self.keyring.holds(id);
        if missing(sealing.active) || sealing.old.is_some_and(missing) {
            self.fetch_keys(&sealing).await?;
        }
        if self.keyring.active() < sealing.active {
            self.on_disk(|vault| vault.activate(sealing.active))?;
            tracing::info!(key = sealing.active, "secrets are sealed with a new data key");
        }
        // Before the next key is stored: it shall never lie unlocked on a disk that is to be locked.
        if self.vault.version() < sealing.version {
            let unlock = self.unlock_key(&sealing)?;
            let credentials = self.trust.credentials();
            self.on_disk(|vault| vault.relock(sealing.version, unlock.as_ref(), &credentials))?;
            tracing::info!(locked = unlock.is_some(), "the lock on this member's disk has changed");
        }
        if let Some(next) = &sealing.next {
            self.store_next(next).await?;
        }
        let oldest = sealing.old.unwrap_or(sealing.active);
        if self.keyring.handed().keys.iter().any(|key| key.id < oldest) {
            self.on_disk(|vault| vault.forget_before(oldest))?;
        }
        if self.leads() {
            self.drive_sealing().await?;
        }
        Ok(!sealing.is_settled())
    }

    fn on_disk(
        &self,
        change: impl FnOnce(&super::vault::Vault) -> Result<(), StorageFailed>,
    ) -> Result<(), Error> {
        // A small file, and seldom.
        change(&self.vault).map_err(|failed| {
            let error = Error::Stopped(failed.to_string());
            self.shell.fail(error.clone());
            error
        })
    }

    /// Stores the key that is to be the next, and says so once it is on disk.
    async fn store_next(&self, next: &NextKey) -> Result<(), Error> {
        if !self.keyring.holds(next.id) {
            let key = Zeroizing::new(self.keyring.open(DATA_KEY, &next.key)?);
            let unfit = |_| Refusal::invalid(DATA_KEY, "it has not 32 bytes");
            let key = Zeroizing::new(<[u8; 32]>::try_from(key.as_slice()).map_err(unfit)?);
            self.on_disk(|vault| vault.add(&[DataKey { id: next.id, key }]))?;
        }
        if !next.stored.contains(&self.me) {
            self.propose_trust(TrustChange::KeyStored { id: next.id, node: self.me }).await?;
        }
        Ok(())
    }

    /// Asks the other members for the keys that this one has missed.
    async fn fetch_keys(&self, sealing: &Sealing) -> Result<(), Error> {
        let members = self.read(machine::read::members)?;
        let mut last = Refusal::invalid(DATA_KEY, "no other member has it").into();
        for member in members.into_iter().filter(|member| member.record.id != self.me) {
            match self.ask_for_keys(member.record.addr).await {
                Ok(keys) if keys.keys.iter().any(|key| key.id == sealing.active) => {
                    self.on_disk(|vault| vault.add(&keys.keys))?;
                    tracing::info!(from = %member.record.id, "took over the data keys that were missed");
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask_for_keys(&self, addr: String) -> Result<HandedKeys, Error> {
        let handle = Handle::connect(&[addr], self.trust.credentials()).await?.with_patience(HAND_OVER);
        match handle.call(Call::Trust(crate::types::TrustCall::Keys)).await? {
            (_, Reply::Trust(TrustReply::Keys(keys))) => Ok(keys),
            (_, other) => Err(Refusal::Malformed { what: format!("{other:?} for keys") }.into()),
        }
    }

    /// What a leader does for the replacement of a data key.
    async fn drive_sealing(&self) -> Result<(), Error> {
        let now = now();
        match self.read(|view| machine::read::seal_step(view, now, MAX_RESEALED_PER_STEP))? {
            SealStep::Settled | SealStep::Wait { .. } => Ok(()),
            SealStep::Activate(id) => self.propose_trust(TrustChange::KeyActivate { id }).await,
            SealStep::Reseal(secrets) => {
                let active = self.read(machine::read::sealing)?.active;
                if self.keyring.active() != active {
                    // It is about to be taken into use here too.
                    return Ok(());
                }
                let mut items = Vec::with_capacity(secrets.len());
                for (place, old) in secrets {
                    let what = about(&place);
                    let plain = Zeroizing::new(self.keyring.open(&what, &old)?);
                    items.push(Resealed { place, new: self.keyring.seal(&what, &plain), old });
                }
                self.propose_trust(TrustChange::Reseal { items }).await
            }
            SealStep::Settle(id) => {
                self.propose_trust(TrustChange::KeySettle { id }).await?;
                tracing::info!(key = id, "every secret is sealed with the new data key");
                Ok(())
            }
            SealStep::Again(_) => self.replace_data_key().await,
        }
    }

    /// Begins to replace the data key, or asks for it where that is under way.
    async fn replace_data_key(&self) -> Result<(), Error> {
        let sealing = self.read(machine::read::sealing)?;
        if self.keyring.active() != sealing.active {
            return Err(Refusal::invalid(DATA_KEY, "this member has not the newest yet; try again").into());
        }
        let key = DataKey::generate(sealing.active + 1);
        let sealed = self.keyring.seal(DATA_KEY, key.key.as_ref());
        self.propose_trust(TrustChange::KeyNext { id: key.id, key: sealed, now: now() }).await
    }

    /// The unlock key that the state has.
    fn unlock_key(&self, sealing: &Sealing) -> Result<Option<UnlockKey>, Error> {
        let Some(sealed) = &sealing.unlock else { return Ok(None) };
        let bytes = Zeroizing::new(self.keyring.open(UNLOCK_KEY, sealed)?);
        let damaged = || Refusal::invalid(UNLOCK_KEY, "it is stored damaged; rotate it");
        Ok(Some(UnlockKey::from_bytes(&bytes).ok_or_else(damaged)?))
    }

    /// What a new member is given.
    pub(in crate::client) fn handed_keys(&self) -> Result<HandedKeys, Error> {
        let sealing = self.read(machine::read::sealing)?;
        let unlock = self.unlock_key(&sealing)?;
        let key = |unlock: UnlockKey| {
            let bytes = unlock.as_bytes().try_into().expect("an unlock key has 32 bytes");
            (sealing.version, DataKey { id: sealing.version, key: Zeroizing::new(bytes) })
        };
        Ok(HandedKeys { unlock: unlock.map(key), ..self.keyring.handed() })
    }

    /// Turns autolock on or off; what is so already stays.
    pub(super) async fn autolock(&self, on: bool, patience: Duration) -> Answered {
        let sealing = self.read(machine::read::sealing)?;
        if on == sealing.unlock.is_some() {
            return self.lock_status(on);
        }
        if on {
            return self.lock_anew(&sealing, patience).await;
        }
        self.propose_trust(TrustChange::Unlock { key: None, version: sealing.version }).await?;
        self.lock_status(false)
    }

    /// Gives the cluster another unlock key.
    pub(super) async fn rotate_unlock_key(&self, patience: Duration) -> Answered {
        let sealing = self.read(machine::read::sealing)?;
        if sealing.unlock.is_none() {
            let why = "autolock is off, so there is none; `raft-kv autolock on` makes one";
            return Err(Refusal::invalid(UNLOCK_KEY, why).into());
        }
        self.lock_anew(&sealing, patience).await
    }

    async fn lock_anew(&self, sealing: &Sealing, patience: Duration) -> Answered {
        let key = UnlockKey::generate();
        let sealed = self.keyring.seal(UNLOCK_KEY, key.as_bytes());
        let change = TrustChange::Unlock { key: Some(sealed), version: sealing.version };
        let mut changes = self.shell.trust_changes();
        // With it the data key is replaced too; the leader sees to that, whoever fails meanwhile.
        self.propose_trust(change).await?;
        let settled = async {
            while !self.read(machine::read::sealing)?.is_settled() {
                if changes.changed().await.is_err() {
                    break;
                }
            }
            Ok::<_, Error>(())
        };
        // Should it last longer, who asks is told that it is not settled, and the key all the same.
        if let Ok(ended) = tokio::time::timeout(patience.mul_f64(0.8), settled).await {
            ended?;
        }
        self.lock_status(true)
    }

    /// How it stands; with the unlock key where it is asked for.
    pub(super) fn lock_status(&self, with_key: bool) -> Answered {
        let (sealing, step) =
            self.read(|view| Ok((machine::read::sealing(view)?, machine::read::seal_step(view, now(), 1)?)))?;
        let key = if with_key { self.unlock_key(&sealing)? } else { None };
        let late = if let SealStep::Wait { late } = step { late } else { Vec::new() };
        let status = LockStatus {
            locked: sealing.unlock.is_some(),
            version: sealing.version,
            active: sealing.active,
            settled: sealing.is_settled(),
            late,
            key: key.map(|key| Bytes::from(key.to_text())),
        };
        Ok((self.now()?, Reply::Trust(TrustReply::Lock(status))))
    }
}
