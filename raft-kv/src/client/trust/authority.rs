//! Making certificates: no certificate leaves this file that the log does not know of.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::super::local::Local;
use super::signer::{LeafRequest, Signer};
use crate::error::{Error, Refusal};
use crate::machine;
use crate::machine::command::Command;
use crate::net::check_chain;
use crate::node::ask::What;
use crate::pki::{self, Credentials, RootKey, Subject, key_of, serial_of};
use crate::types::{Authority, KeyDigest, NodeId, NodeRecord, Role, RootDigest, TrustChange, Trusted};

/// What the key of an authority is sealed as.
pub(in crate::client) const CA_KEY: &str = "ca key";
/// What the secret of a join token is sealed as.
pub(in crate::client) const TOKEN_SECRET: &str = "token secret";
/// A leaf that would be valid for less, since what is above it ends, is not made.
const MIN_LEFT: Duration = Duration::from_secs(60);
/// How often a certificate is made again because the root was replaced meanwhile.
const TRIES: usize = 3;

/// A certificate that is to be made.
#[derive(Clone, Debug)]
pub(in crate::client) struct Wanted {
    /// For whom.
    pub node: NodeId,
    /// What it lets the node do.
    pub role: Role,
    /// A client's or worker's name, or a member's.
    pub name: String,
    /// Names and addresses in it.
    pub hosts: Vec<String>,
    /// The id of the token that it is made for; empty for none.
    pub token: String,
    /// Whether the node has one already.
    pub renewal: bool,
}

/// A certificate that was made.
#[derive(Clone, Debug)]
pub(in crate::client) struct Issued {
    /// Leaf first (DER).
    pub chain: Vec<Bytes>,
    /// What to believe (DER).
    pub roots: Vec<Bytes>,
    /// The root that it rests on.
    pub root: RootDigest,
}

/// Seconds since 1970 by this machine's clock.
pub(in crate::client) fn now() -> i64 {
    seconds(SystemTime::now())
}

pub(in crate::client) fn seconds(at: SystemTime) -> i64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// An authority as the state has it, from a root whose key is in the cluster.
pub(in crate::client) fn authority_of(root: &RootKey, keyring: &pki::Keyring) -> Result<Authority, Refusal> {
    Ok(Authority {
        digest: root.digest(),
        signer: key_of(root.cert_der())?,
        root: Bytes::copy_from_slice(root.cert_der()),
        via: Vec::new(),
        key: Some(keyring.seal(CA_KEY, root.key_der())),
        cross: None,
    })
}

/// What the log is told of a leaf.
pub(in crate::client) fn record_of(
    leaf: &[u8],
    public_key: &[u8],
    wanted: &Wanted,
    issuer: RootDigest,
) -> Result<NodeRecord, Refusal> {
    let (from, until) = pki::validity_of(leaf)?;
    let record = NodeRecord::new(wanted.node, wanted.role, wanted.name.as_str(), issuer);
    Ok(NodeRecord {
        key: KeyDigest::of(public_key),
        serial: serial_of(leaf)?.into(),
        // An external signer need not date it back.
        issued: seconds(from + pki::BACK_DATE).min(now()),
        ends: seconds(until),
        token: wanted.token.clone(),
        ..record
    })
}

/// The roots of a state, in DER.
pub(in crate::client) fn roots_of(trusted: &Trusted) -> Vec<Bytes> {
    trusted.roots.iter().map(|authority| authority.root.clone()).collect()
}

/// The key that signs under `authority`, where it is in the cluster.
pub(in crate::client) fn root_key(
    authority: &Authority,
    keyring: &pki::Keyring,
) -> Result<Option<RootKey>, Refusal> {
    let Some(key) = &authority.key else { return Ok(None) };
    let cert = authority.via.first().unwrap_or(&authority.root);
    RootKey::from_parts(cert, &keyring.open(CA_KEY, key)?).map(Some)
}

/// What makes certificates: the key that is in the cluster, or this member's external signer.
pub(in crate::client) struct Hand<'a> {
    pub(in crate::client) keyring: &'a pki::Keyring,
    pub(in crate::client) external: Option<&'a Signer>,
    /// How long certificates made here are valid.
    pub(in crate::client) validity: Duration,
}

impl Hand<'_> {
    /// A leaf under `authority`, and what leads from it to a root; `request` (a CSR in DER) is that of
    /// whoever holds the key. Whoever believes the authority's root accepts it.
    pub(in crate::client) async fn sign(
        &self,
        authority: &Authority,
        subject: &Subject,
        public_key: &[u8],
        request: &[u8],
    ) -> Result<Vec<Bytes>, Error> {
        let now = SystemTime::now();
        // What is above it may end before it would.
        let end = pki::end_of(authority)?;
        let left = end.duration_since(now).unwrap_or_default().min(self.validity);
        if left < MIN_LEFT.min(self.validity) {
            let why = "the signing certificate or its root has ended, or is about to; replace the root with \
                       `raft-kv ca rotate`";
            return Err(Refusal::BadCertificate { why: why.into() }.into());
        }
        let leaf = match root_key(authority, self.keyring)? {
            Some(root) => pki::issue(&root, subject, public_key, now, left, &mut rand::rng())?.into(),
            None => {
                let (from, until) = (now.checked_sub(pki::BACK_DATE).unwrap_or(now), now + left);
                let wanted = LeafRequest { subject, public_key, request, from, until };
                self.outside()?.leaf(authority, &wanted).await?
            }
        };
        let believed = Credentials { roots: vec![authority.root.to_vec()], ..Credentials::default() };
        let chain: Vec<Vec<u8>> =
            [&leaf].into_iter().chain(&authority.via).map(|cert| cert.to_vec()).collect();
        check_chain(&believed, &chain, subject.role == Role::Manager).map_err(|refusal| {
            let why = format!("what the cluster's authority signed is not used: {refusal}");
            Refusal::BadCertificate { why }
        })?;
        let cross = authority.cross.as_ref().map(pki::split_certificates).transpose()?.unwrap_or_default();
        Ok(std::iter::once(leaf).chain(authority.via.iter().cloned()).chain(cross).collect())
    }

    /// The external signer.
    pub(in crate::client) fn outside(&self) -> Result<&Signer, Refusal> {
        self.external.ok_or_else(|| Refusal::BadCertificate {
            why:
                "the cluster's signing key is kept outside, and this member has no external signer; start it \
                  with --external-signer, or ask a member that has one"
                    .into(),
        })
    }
}

impl Local {
    /// What makes certificates at this member.
    pub(in crate::client) fn signer(&self) -> Hand<'_> {
        let external = self.external_signer.as_ref();
        Hand { keyring: &self.keyring, external, validity: self.leaf_validity }
    }

    /// Makes a certificate for the key in `request` (a CSR in DER) and gives it out once the log knows of
    /// it. Only the key counts; an external signer is shown the whole request.
    pub(in crate::client) async fn issue_request(
        &self,
        wanted: &Wanted,
        request: &[u8],
    ) -> Result<Issued, Error> {
        let public_key = &pki::request_key(request)?;
        let Wanted { node, role, name, mut hosts, .. } = wanted.clone();
        if role == Role::Manager {
            hosts.extend(self.read(machine::read::predecessors)?.into_iter().map(pki::successor_name));
        }
        let name = if role == Role::Client { name } else { String::new() };
        let subject = Subject { cluster: self.cluster, node, role, name, hosts };
        let mut tries = 0;
        loop {
            let trusted = self.read(machine::read::trusted)?;
            let authority = trusted.issuing();
            let chain = self.signer().sign(authority, &subject, public_key, request).await?;
            let record = record_of(&chain[0], public_key, wanted, authority.digest)?;
            let change = TrustChange::Issue { node: record, renewal: wanted.renewal, now: now() };
            let done = self.propose_trust(change).await;
            tries += 1;
            match done {
                Ok(()) => return Ok(Issued { chain, roots: roots_of(&trusted), root: authority.digest }),
                Err(error) if tries < TRIES => {
                    // Only where the root has changed meanwhile is there anything to do better.
                    let newer = self.read(machine::read::trusted)?;
                    if newer.issuing().digest == authority.digest {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Has a change of trust applied; this member's state has it then.
    pub(in crate::client) async fn propose_trust(&self, change: TrustChange) -> Result<(), Error> {
        let what = What::Command { command: Command::Trust(change), once: None };
        self.apply(what, super::super::node::OWN_PATIENCE).await.map(drop)
    }
}
