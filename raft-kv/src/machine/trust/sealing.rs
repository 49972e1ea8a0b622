//! Which data key seals the cluster's secrets, and how one takes the place of another: next → active
//! → settled.
//!
//! Nothing is sealed with a key that is not on the disks of a quorum, and no key is given up while
//! anything is sealed with it: every secret can be opened at a quorum at every moment. Nothing is
//! opened here; a secret's head says which key it is sealed with.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::super::auth;
use super::super::draft::Draft;
use super::super::format::load;
use super::super::read;
use super::super::stop::Stop;
use super::super::store::{Read, Table};
use super::{token, token_key, tokens, trusted, trusted_key};
use crate::error::{Refusal, StorageFailed};
use crate::limits::{DATA_KEY_PATIENCE, MAX_RESEALED_PER_STEP, MAX_SEALED_BYTES};
use crate::planted;
use crate::types::{
    ConfState, DataKeyId, NextKey, NodeId, Resealed, Sealed, Sealing, SecretPlace, TrustChange,
};

const SEALING: &[u8] = b"sealing";

/// What the leader is to do about the data keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SealStep {
    /// Nothing.
    Settled,
    /// Somebody must still store the next key.
    Wait {
        /// Who.
        late: Vec<NodeId>,
    },
    /// The next key may seal.
    Activate(DataKeyId),
    /// These are to be sealed with the active key.
    Reseal(Vec<(SecretPlace, Sealed)>),
    /// The key before the active one is needed no more.
    Settle(DataKeyId),
    /// Another replacement was asked for.
    Again(DataKeyId),
}

/// Which keys seal, and whether disks are locked.
pub fn sealing(view: &dyn Read) -> Result<Sealing, StorageFailed> {
    Ok(load(view, Table::Trust, SEALING)?.unwrap_or_default())
}

fn put(draft: &mut Draft, sealing: &Sealing) {
    draft.overlay.put(Table::Trust, Bytes::from_static(SEALING), sealing);
}

fn refuse(why: &str) -> Stop {
    Refusal::invalid("data key", why).into()
}

/// Refuses what is sealed with a key that is not in use (any more).
pub fn check_key(draft: &Draft, secret: &Sealed) -> Result<(), Stop> {
    match secret.key() {
        Some(key) if !sealing(draft.view())?.takes(key) => {
            Err(refuse("it was replaced while this was on its way; try again"))
        }
        _ => Ok(()),
    }
}

/// The secrets that a change brings into the state.
pub(super) fn secrets_of(change: &TrustChange) -> Vec<&Sealed> {
    match change {
        TrustChange::Rotate { authority, .. } => authority.key.iter().collect(),
        TrustChange::Settle { tokens, .. } => tokens.iter().map(|(_, secret)| secret).collect(),
        TrustChange::TokenCreate { token, .. } => vec![&token.secret],
        TrustChange::TokenRotate { secret, .. } => vec![secret],
        TrustChange::KeyNext { key, .. } => vec![key],
        TrustChange::Reseal { items } => items.iter().map(|item| &item.new).collect(),
        TrustChange::Unlock { key, .. } => key.iter().collect(),
        TrustChange::Reissue { .. }
        | TrustChange::Abort { .. }
        | TrustChange::Issue { .. }
        | TrustChange::Verified { .. }
        | TrustChange::Failed { .. }
        | TrustChange::TokenRevoke { .. }
        | TrustChange::NodeRemove { .. }
        | TrustChange::NodeRole { .. }
        | TrustChange::Readmit { .. }
        | TrustChange::Tidy { .. }
        | TrustChange::KeyStored { .. }
        | TrustChange::KeyActivate { .. }
        | TrustChange::KeySettle { .. } => Vec::new(),
    }
}

/// Refuses what is out of its bounds, or was never sealed.
pub(super) fn validate(change: &TrustChange) -> Result<(), Refusal> {
    if let TrustChange::Reseal { items } = change
        && items.len() > MAX_RESEALED_PER_STEP
    {
        return Err(Refusal::invalid("secrets", "there are too many for one step"));
    }
    let unfit = |secret: &&Sealed| secret.key().is_none() || secret.0.len() > MAX_SEALED_BYTES;
    match secrets_of(change).iter().find(|secret| unfit(secret)) {
        Some(_) => Err(Refusal::invalid("secret", "it is not sealed, or too long")),
        None => Ok(()),
    }
}

pub(super) fn next(draft: &mut Draft, id: DataKeyId, key: &Sealed, now: i64) -> Result<(), Stop> {
    let mut sealing = sealing(draft.view())?;
    if sealing.next.is_some() || sealing.old.is_some() {
        sealing.again = true;
        put(draft, &sealing);
        return Ok(());
    }
    if id != sealing.active + 1 || key.key() != Some(sealing.active) {
        return Err(refuse("another one was made meanwhile; try again"));
    }
    sealing.again = false;
    sealing.next = Some(NextKey { id, key: key.clone(), stored: Vec::new(), made: now });
    put(draft, &sealing);
    Ok(())
}

pub(super) fn stored(draft: &mut Draft, id: DataKeyId, node: NodeId) -> Result<(), Stop> {
    let mut sealing = sealing(draft.view())?;
    if !super::super::members::is_member(draft.view(), node)? {
        return Ok(());
    }
    let Some(next) = sealing.next.as_mut().filter(|next| next.id == id) else { return Ok(()) };
    if let Err(at) = next.stored.binary_search(&node) {
        next.stored.insert(at, node);
        put(draft, &sealing);
    }
    Ok(())
}

/// Whether a quorum of the voters is among `stored`, of both halves while the group changes.
fn is_quorum(conf: &ConfState, stored: &[NodeId]) -> bool {
    let most = |voters: &[NodeId]| {
        voters.is_empty() || voters.iter().filter(|id| stored.contains(id)).count() > voters.len() / 2
    };
    most(&conf.voters) && most(&conf.voters_outgoing)
}

pub(super) fn activate(draft: &mut Draft, id: DataKeyId) -> Result<(), Stop> {
    let mut sealing = sealing(draft.view())?;
    let Some(next) = sealing.next.take().filter(|next| next.id == id) else {
        return Err(refuse("it is not the next one (any more)"));
    };
    if !is_quorum(&draft.conf, &next.stored) && !planted!(SealWithUnsavedKey) {
        return Err(refuse("it is not on the disks of a quorum yet"));
    }
    sealing.old = Some(sealing.active);
    sealing.active = id;
    put(draft, &sealing);
    Ok(())
}

/// Every secret in the state and where it lies.
pub fn secrets(view: &dyn Read) -> Result<Vec<(SecretPlace, Sealed)>, StorageFailed> {
    let mut all = Vec::new();
    for root in trusted(view)?.roots {
        all.extend(root.key.map(|key| (SecretPlace::Authority(root.digest), key)));
    }
    for (id, record) in tokens(view)? {
        all.push((SecretPlace::Token(id), record.secret));
    }
    for (name, record) in auth::users(view)? {
        all.extend(record.password.map(|hash| (SecretPlace::User(name), hash)));
    }
    let token_key = auth::status(view)?.token_key;
    if !token_key.0.is_empty() {
        all.push((SecretPlace::TokenKey, token_key));
    }
    all.extend(sealing(view)?.unlock.map(|key| (SecretPlace::UnlockKey, key)));
    Ok(all)
}

/// Those that are sealed with another key than the active one.
fn outdated(view: &dyn Read, active: DataKeyId) -> Result<Vec<(SecretPlace, Sealed)>, StorageFailed> {
    let other = |secret: &Sealed| secret.key().is_some_and(|key| key != active);
    Ok(secrets(view)?.into_iter().filter(|(_, secret)| other(secret)).collect())
}

pub(super) fn reseal(draft: &mut Draft, items: &[Resealed]) -> Result<(), Stop> {
    for item in items {
        let swap = |held: &mut Sealed| {
            let fits = *held == item.old;
            if fits {
                held.clone_from(&item.new);
            }
            fits
        };
        match &item.place {
            SecretPlace::Authority(digest) => {
                let mut trusted = trusted(draft.view())?;
                let root = trusted.roots.iter_mut().find(|root| root.digest == *digest);
                if root.and_then(|root| root.key.as_mut()).is_some_and(swap) {
                    draft.overlay.put(Table::Trust, trusted_key(), &trusted);
                }
            }
            SecretPlace::Token(id) => {
                if let Some(mut record) = token(draft.view(), id)?
                    && swap(&mut record.secret)
                {
                    draft.overlay.put(Table::Trust, token_key(id), &record);
                }
            }
            SecretPlace::User(name) => {
                if let Some(mut record) = auth::user(draft.view(), name)?
                    && record.password.as_mut().is_some_and(swap)
                {
                    draft.overlay.put(Table::Trust, auth::user_key(name), &record);
                }
            }
            SecretPlace::TokenKey => {
                let mut status = auth::status(draft.view())?;
                if swap(&mut status.token_key) {
                    draft.overlay.put(Table::Trust, auth::status_key(), &status);
                }
            }
            SecretPlace::UnlockKey => {
                let mut sealing = sealing(draft.view())?;
                if sealing.unlock.as_mut().is_some_and(swap) {
                    put(draft, &sealing);
                }
            }
        }
    }
    Ok(())
}

pub(super) fn settle(draft: &mut Draft, id: DataKeyId) -> Result<(), Stop> {
    let mut sealing = sealing(draft.view())?;
    if sealing.active != id || sealing.old.is_none() {
        return Err(refuse("nothing is to be settled (any more)"));
    }
    if !outdated(draft.view(), id)?.is_empty() && !planted!(DropUsedKey) {
        return Err(refuse("something is still sealed with the one before it"));
    }
    sealing.old = None;
    put(draft, &sealing);
    // The log up to here has secrets sealed with the key that is given up.
    draft.forget_log = true;
    Ok(())
}

pub(super) fn unlock(draft: &mut Draft, key: &Option<Sealed>, version: u64) -> Result<(), Stop> {
    let mut sealing = sealing(draft.view())?;
    if sealing.version != version {
        return Err(Refusal::invalid("unlock key", "it was changed meanwhile; look and try again").into());
    }
    sealing.version += 1;
    sealing.unlock.clone_from(key);
    // The data keys before were on disks that this key does not lock: the leader replaces them.
    sealing.again |= key.is_some();
    put(draft, &sealing);
    Ok(())
}

/// What seals in a cluster that a copy is restored to: the keys of the copy, or another one where nobody has them.
pub(super) fn restore(draft: &mut Draft, fresh: Option<DataKeyId>) -> Result<(), StorageFailed> {
    let mut sealing = sealing(draft.view())?;
    match fresh {
        Some(active) => {
            assert!(active > sealing.active, "a number names one key for ever");
            sealing = Sealing { active, version: sealing.version + 1, ..Sealing::default() };
        }
        // No member of before stores anything.
        None => sealing.next.iter_mut().for_each(|next| next.stored.clear()),
    }
    put(draft, &sealing);
    Ok(())
}

/// What is to be done next. After a while nobody is waited for whom a quorum does not need: who was
/// away asks the others for the key.
pub fn seal_step(view: &dyn Read, now: i64, most: usize) -> Result<SealStep, StorageFailed> {
    let sealing = sealing(view)?;
    if let Some(next) = &sealing.next {
        let conf = read::applied(view)?.conf;
        let members: BTreeSet<NodeId> = read::members(view)?.iter().map(|member| member.record.id).collect();
        let late: Vec<NodeId> = members.into_iter().filter(|id| !next.stored.contains(id)).collect();
        let waited = now.saturating_sub(next.made) >= DATA_KEY_PATIENCE;
        let may = is_quorum(&conf, &next.stored) && (late.is_empty() || waited);
        return Ok(if may { SealStep::Activate(next.id) } else { SealStep::Wait { late } });
    }
    if sealing.old.is_some() {
        let mut outdated = outdated(view, sealing.active)?;
        outdated.truncate(most.min(MAX_RESEALED_PER_STEP));
        return Ok(match outdated.is_empty() {
            true => SealStep::Settle(sealing.active),
            false => SealStep::Reseal(outdated),
        });
    }
    Ok(if sealing.again { SealStep::Again(sealing.active + 1) } else { SealStep::Settled })
}
