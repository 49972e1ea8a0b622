//! What is asked of the authority by its callers.

use std::time::Duration;

use super::super::api::{Answered, Reply};
use super::super::local::Local;
use super::authority::{now, roots_of};
use crate::error::{Error, Refusal};
use crate::machine::{self, Verdict};
use crate::types::{CaStatus, Rotation, TrustCall, TrustReply};

impl Local {
    /// Carries out what is asked of the authority. Renewals and the stream of changes come by their own
    /// ways: they are answered by who asks.
    pub(in crate::client) async fn trust_call(&self, call: TrustCall, patience: Duration) -> Answered {
        self.barrier(patience).await?;
        let reply = match call {
            TrustCall::Status => TrustReply::Status(self.ca_status()?),
            TrustCall::Rotate { new, deadline, stolen } => {
                self.rotate(new, deadline, stolen).await?;
                TrustReply::Done
            }
            TrustCall::Abort => {
                self.abort_rotation().await?;
                TrustReply::Done
            }
            TrustCall::LockStatus => return self.lock_status(false),
            TrustCall::Autolock(on) => return self.autolock(on, patience).await,
            TrustCall::UnlockKey => return self.lock_status(true),
            TrustCall::UnlockKeyRotate => return self.rotate_unlock_key(patience).await,
            TrustCall::Keys => TrustReply::Keys(self.handed_keys()?),
            TrustCall::Tokens => self.token_list()?,
            TrustCall::TokenCreate { role, label, ttl, uses } => {
                self.token_create(role, label, ttl, uses).await?
            }
            TrustCall::TokenRotate(id) => self.token_rotate(id).await?,
            TrustCall::TokenRevoke(id) => self.token_revoke(id).await?,
            TrustCall::Token(id) => self.with_text(id)?,
            TrustCall::NodeRemove(id) => self.node_remove(id, patience).await?,
            TrustCall::NodePromote(id) => self.node_promote(id, patience).await?,
            TrustCall::NodeDemote(id) => self.node_demote(id, patience).await?,
            TrustCall::NodeReadmit(id) => self.node_readmit(id).await?,
            other => {
                let why = format!("{other:?} is not answered here");
                return Err(Refusal::invalid("call", why).into());
            }
        };
        Ok((self.now()?, Reply::Trust(reply)))
    }

    /// The rotation under way as this member knows it, and how many nodes are late.
    pub(in crate::client) fn rotation_here(&self) -> Result<Option<(Rotation, usize)>, Error> {
        // A member that has just joined knows nothing yet.
        self.now()?;
        let now = now();
        self.read(|view| {
            let Some(rotation) = machine::read::trusted(view)?.rotation else { return Ok(None) };
            let late = match machine::read::verdict(view, now)? {
                Verdict::Wait { late, .. } | Verdict::Settle { late, .. } => late.len(),
                Verdict::Stable | Verdict::Reissue { .. } => 0,
            };
            Ok(Some((rotation, late)))
        })
    }

    fn ca_status(&self) -> Result<CaStatus, Error> {
        let now = now();
        let (trusted, nodes, verdict) = self.read(|view| {
            let (trusted, nodes) = (machine::read::trusted(view)?, machine::read::nodes(view)?);
            Ok((trusted, nodes, machine::read::verdict(view, now)?))
        })?;
        let late = match verdict {
            Verdict::Wait { late, .. } | Verdict::Settle { late, .. } => late,
            Verdict::Stable | Verdict::Reissue { .. } => Vec::new(),
        };
        Ok(CaStatus {
            epoch: trusted.epoch,
            roots: roots_of(&trusted),
            digests: trusted.roots.iter().map(|root| root.digest).collect(),
            external: trusted.issuing().key.is_none(),
            rotation: trusted.rotation,
            nodes,
            late,
            now,
        })
    }
}
