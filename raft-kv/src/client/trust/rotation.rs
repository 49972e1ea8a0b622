//! Replacing the root: how it is begun and taken back, and what the leader does in between.

use std::time::SystemTime;

use bytes::Bytes;

use super::super::local::Local;
use super::authority::{TOKEN_SECRET, authority_of, now, root_key};
use super::own::authority_of_own;
use crate::error::{Error, Refusal};
use crate::machine::{self, Verdict};
use crate::net::check_chain;
use crate::pki::{self, CROSS_VALIDITY, Credentials, NodeKey, RootKey, Secret, Subject};
use crate::types::{Authority, OwnRoot, Role, TrustChange, Trusted};

/// When a rotation settles without who is late, unless it is told otherwise.
const DEADLINE: u64 = 600;
/// The longest time that can be asked for: nobody's certificate outlives it.
const MAX_DEADLINE: u64 = 30 * 24 * 3600;
/// For so many seconds (by a clock without fractions: one less at least) after it was begun a rotation
/// because of a stolen key does not settle while somebody is late: honest clients that keep their certificates current
/// move in a few hundred milliseconds, and shall not fail because most members were quicker.
const STOLEN_GRACE: i64 = 3;

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
            Some(own) => self.own_authority(&trusted, own).await?,
            None => self.new_authority(&trusted).await?,
        };
        let id = trusted.rotation.as_ref().map_or(trusted.epoch, |rotation| rotation.id) + 1;
        let (id, now) = (id.max(trusted.epoch + 1), now());
        let deadline = now + i64::try_from(deadline).expect("bounded above");
        self.propose_trust(TrustChange::Rotate { id, authority, deadline, stolen, now }).await
    }

    /// A new root of the cluster's own making, certified by the one in force.
    async fn new_authority(&self, trusted: &Trusted) -> Result<Authority, Error> {
        let root = RootKey::generate(self.cluster, SystemTime::now());
        let cross = self.cross(trusted, &root).await?;
        Ok(Authority { cross: Some(cross), ..authority_of(&root, &self.keyring)? })
    }

    /// A certificate of `other` by the root in force, and what leads from there to that root.
    async fn cross(&self, trusted: &Trusted, other: &RootKey) -> Result<Bytes, Error> {
        let (in_force, now) = (trusted.in_force(), SystemTime::now());
        let cross = match root_key(in_force, &self.keyring)? {
            Some(key) => key.cross_sign(other.cert_der(), now, CROSS_VALIDITY)?.into(),
            None => {
                let (hand, request) = (self.signer(), other.cross_request()?);
                let signer = hand.outside()?;
                signer.cross(in_force, &request, other.cert_der(), now + CROSS_VALIDITY).await?
            }
        };
        Ok(pki::vet_cross(&cross, other.cert_der(), in_force, now)?)
    }

    /// A root that its owner brings.
    async fn own_authority(&self, trusted: &Trusted, own: OwnRoot) -> Result<Authority, Error> {
        let authority = authority_of_own(&own, &self.keyring)?;
        let keys = pki::keys_of(&authority.root, &authority.via)?;
        let mut old: Vec<_> = trusted.distrusted.iter().map(|(key, _)| *key).collect();
        for believed in &trusted.roots {
            old.extend(pki::keys_of(&believed.root, &believed.via)?);
        }
        if keys.iter().any(|key| old.contains(key)) {
            let why = "it has a key of a root that is believed now or was given up lately; what that key signs \
                       would stay believed: give a root, and intermediates, with new keys";
            return Err(Refusal::BadCertificate { why: why.into() }.into());
        }
        let signing = authority.via.first().unwrap_or(&authority.root);
        let cross = match (&own.cross, root_key(&authority, &self.keyring)?) {
            (Some(cross), _) => pki::vet_cross(cross, signing, trusted.in_force(), SystemTime::now())?,
            (None, Some(key)) => self.cross(trusted, &key).await?,
            (None, None) => {
                let why = "the new root's key is kept outside; give that key as certified by the root in force \
                           along with it (a cross certificate)";
                return Err(Refusal::invalid("cross certificate", why).into());
            }
        };
        let authority = Authority { cross: Some(cross), ..authority };
        self.try_out(trusted, &authority).await?;
        Ok(authority)
    }

    /// Makes a certificate that nobody is given, and looks whether it is accepted by who believes only
    /// the new root, and by who believes only the one in force.
    async fn try_out(&self, trusted: &Trusted, authority: &Authority) -> Result<(), Error> {
        let hosts = Vec::new();
        let name = String::new();
        let subject = Subject { cluster: self.cluster, node: self.me, role: Role::Manager, name, hosts };
        let key = NodeKey::generate();
        let chain = self.signer().sign(authority, &subject, &key.public(), &key.request()).await?;
        let chain: Vec<Vec<u8>> = chain.iter().map(|cert| cert.to_vec()).collect();
        let roots = vec![trusted.in_force().root.to_vec()];
        check_chain(&Credentials { roots, ..Credentials::default() }, &chain, true).map_err(|refusal| {
            let why = format!("the cross certificate does not lead to the root in force: {refusal}");
            Refusal::BadCertificate { why }
        })?;
        Ok(())
    }

    /// Leads a rotation back to the root in force.
    pub(in crate::client) async fn abort_rotation(&self) -> Result<(), Error> {
        let now = now();
        let deadline = now + i64::try_from(DEADLINE).expect("minutes fit");
        self.propose_trust(TrustChange::Abort { deadline, now }).await
    }

    /// Whether a rotation because of a stolen key was begun a moment ago. A clock that is behind that of
    /// who began it makes nobody wait.
    fn in_stolen_grace(&self, now: i64) -> Result<bool, Error> {
        let rotation = self.read(machine::read::trusted)?.rotation;
        Ok(rotation.is_some_and(|it| it.stolen && (it.started..it.started + STOLEN_GRACE).contains(&now)))
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
            Verdict::Settle { late, .. } if !late.is_empty() && self.in_stolen_grace(now)? => Ok(()),
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
