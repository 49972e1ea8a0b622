//! Replacing the root: how it is begun and taken back, and what the leader does in between.

use std::time::SystemTime;

use bytes::Bytes;

use super::super::local::Local;
use super::authority::{CA_KEY, TOKEN_SECRET, authority_of, now};
use crate::error::{Error, Refusal};
use crate::machine::{self, Verdict};
use crate::pki::{CROSS_VALIDITY, RootKey, Secret};
use crate::types::{Authority, OwnRoot, TrustChange, Trusted};

/// When a rotation settles without who is late, unless it is told otherwise.
const DEADLINE: u64 = 600;
/// The longest time that can be asked for: nobody's certificate outlives it.
const MAX_DEADLINE: u64 = 30 * 24 * 3600;

impl Local {
    /// Begins to replace the root.
    pub(in crate::client) async fn rotate(
        &self,
        new: Option<OwnRoot>,
        deadline: u64,
        stolen: bool,
    ) -> Result<(), Error> {
        let deadline = if deadline == 0 { DEADLINE } else { deadline };
        if deadline > MAX_DEADLINE {
            let why = format!("{deadline} s is longer than {MAX_DEADLINE} s");
            return Err(Refusal::invalid("deadline", why).into());
        }
        let trusted = self.read(machine::read::trusted)?;
        let authority = match new {
            Some(own) => self.own_authority(&trusted, own)?,
            None => self.new_authority(&trusted)?,
        };
        let id = trusted.rotation.as_ref().map_or(trusted.epoch, |rotation| rotation.id) + 1;
        let (id, now) = (id.max(trusted.epoch + 1), now());
        let deadline = now + i64::try_from(deadline).expect("bounded above");
        self.propose_trust(TrustChange::Rotate { id, authority, deadline, stolen, now }).await
    }

    /// A new root of the cluster's own making, certified by the one in force.
    fn new_authority(&self, trusted: &Trusted) -> Result<Authority, Error> {
        let root = RootKey::generate(self.cluster, SystemTime::now());
        let cross = self.cross(trusted, root.cert_der())?;
        Ok(Authority { cross: Some(cross), ..authority_of(&root, &self.keyring)? })
    }

    /// A certificate of `other` by the root in force.
    fn cross(&self, trusted: &Trusted, other: &[u8]) -> Result<Bytes, Error> {
        let in_force = trusted.in_force();
        let Some(key) = &in_force.key else {
            let why = "the key of the root in force is kept outside; give the new root's key as certified by it \
                       along with the new root";
            return Err(Refusal::invalid("cross certificate", why).into());
        };
        let signer = in_force.via.first().unwrap_or(&in_force.root);
        let signer = RootKey::from_parts(signer, &self.keyring.open(CA_KEY, key)?)?;
        Ok(signer.cross_sign(other, SystemTime::now(), CROSS_VALIDITY)?.into())
    }

    /// A root that its owner brings.
    fn own_authority(&self, trusted: &Trusted, own: OwnRoot) -> Result<Authority, Error> {
        let signing = own.via.first().unwrap_or(&own.root);
        let Some(key) = &own.key else {
            return Err(Refusal::invalid("key", "give the key that belongs to the certificate").into());
        };
        let root = RootKey::from_parts(signing, key)?;
        let cross = match own.cross.clone() {
            Some(cross) => cross,
            None => self.cross(trusted, signing)?,
        };
        let own_digest = crate::pki::RootDigest::of(&own.root);
        let made = authority_of(&root, &self.keyring)?;
        Ok(Authority { digest: own_digest, root: own.root, via: own.via, cross: Some(cross), ..made })
    }

    /// Leads a rotation back to the root in force.
    pub(in crate::client) async fn abort_rotation(&self) -> Result<(), Error> {
        let now = now();
        let deadline = now + i64::try_from(DEADLINE).expect("minutes fit");
        self.propose_trust(TrustChange::Abort { deadline, now }).await
    }

    /// What the leader does for a rotation that is under way.
    pub(in crate::client) async fn drive(&self) -> Result<(), Error> {
        let now = now();
        match self.read(|view| machine::read::verdict(view, now))? {
            Verdict::Stable | Verdict::Wait { stuck: false, .. } => Ok(()),
            Verdict::Wait { late, stuck: true } => {
                tracing::debug!(?late, "the rotation is stuck: too few members have moved");
                Ok(())
            }
            Verdict::Reissue { id } => self.propose_trust(TrustChange::Reissue { id }).await,
            Verdict::Settle { id, late } => {
                let tokens = self.read(machine::read::tokens)?;
                let fresh = |_: &_| {
                    let secret = Secret::generate(&mut rand::rng()).to_text();
                    self.keyring.seal(TOKEN_SECRET, secret.as_bytes())
                };
                let tokens = tokens.iter().map(|(id, record)| (id.clone(), fresh(record))).collect();
                self.propose_trust(TrustChange::Settle { id, tokens, now }).await?;
                tracing::info!(?late, "the root was replaced");
                Ok(())
            }
        }
    }
}
