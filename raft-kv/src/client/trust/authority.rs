//! Making certificates: no certificate leaves this file that the log does not know of.

use std::time::SystemTime;

use bytes::Bytes;

use super::super::local::Local;
use crate::error::{Error, Refusal};
use crate::machine;
use crate::machine::command::Command;
use crate::node::ask::What;
use crate::pki::{self, RootKey, Subject, key_of, serial_of};
use crate::types::{Authority, KeyDigest, NodeId, NodeRecord, Role, RootDigest, TrustChange, Trusted};

/// What the key of an authority is sealed as.
pub(in crate::client) const CA_KEY: &str = "ca key";
/// What the secret of a join token is sealed as.
pub(in crate::client) const TOKEN_SECRET: &str = "token secret";
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
        issued: seconds(from + pki::BACK_DATE),
        ends: seconds(until),
        token: wanted.token.clone(),
        ..record
    })
}

/// The roots of a state, in DER.
pub(in crate::client) fn roots_of(trusted: &Trusted) -> Vec<Bytes> {
    trusted.roots.iter().map(|authority| authority.root.clone()).collect()
}

impl Local {
    /// What signs under `authority`.
    fn signer(&self, authority: &Authority) -> Result<RootKey, Error> {
        let Some(key) = &authority.key else {
            let why =
                "the cluster's signing key is kept outside, and this member has no external signer".into();
            return Err(Refusal::BadCertificate { why }.into());
        };
        let key = self.keyring.open(CA_KEY, key)?;
        let cert = authority.via.first().unwrap_or(&authority.root);
        Ok(RootKey::from_parts(cert, &key)?)
    }

    /// A leaf for `subject` under `authority`, and what leads from it to a root. Nothing is told to
    /// anybody.
    pub(in crate::client) async fn sign(
        &self,
        authority: &Authority,
        subject: &Subject,
        public_key: &[u8],
    ) -> Result<Vec<Bytes>, Error> {
        let signer = self.signer(authority)?;
        let leaf = pki::issue(
            &signer,
            subject,
            public_key,
            SystemTime::now(),
            self.leaf_validity,
            &mut rand::rng(),
        )?;
        let behind = authority.via.iter().chain(&authority.cross).cloned();
        Ok(std::iter::once(Bytes::from(leaf)).chain(behind).collect())
    }

    /// Makes a certificate for the key in `public_key` (SPKI in DER) and gives it out once the log
    /// knows of it.
    pub(in crate::client) async fn issue(&self, wanted: &Wanted, public_key: &[u8]) -> Result<Issued, Error> {
        let Wanted { node, role, name, hosts, .. } = wanted.clone();
        let name = if role == Role::Client { name } else { String::new() };
        let subject = Subject { cluster: self.cluster, node, role, name, hosts };
        let mut tries = 0;
        loop {
            let trusted = self.read(machine::read::trusted)?;
            let authority = trusted.issuing();
            let chain = self.sign(authority, &subject, public_key).await?;
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
