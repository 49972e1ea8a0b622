//! What is asked of a certificate beyond its signatures: pure decisions that the TLS verifiers in
//! `net` call and add nothing to.
//!
//! Every rule is a refusal whose text names no other node.

use super::{Identity, RootDigest};
use crate::error::Refusal;
use crate::types::{ClusterId, NodeId, Role};

/// The name in every certificate of a cluster and asked for by every dialler: nodes are told
/// apart by their ids, never by host names.
pub const TLS_NAME: &str = "raft-kv";

/// What a connection is for. Each has a protocol name of its own, so that the two ends agree on
/// it within the handshake.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Purpose {
    /// Raft between members.
    Peer,
    /// Snapshots between members.
    Bulk,
    /// Requests of clients and of members that forward them.
    Client,
    /// A node that has no certificate asks for one.
    Join,
}

impl Purpose {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Peer, Self::Bulk, Self::Client, Self::Join];

    /// The protocol name (ALPN).
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Peer => b"raftkv-peer/1",
            Self::Bulk => b"raftkv-bulk/1",
            Self::Client => b"raftkv-client/1",
            Self::Join => b"raftkv-join/1",
        }
    }

    /// The purpose that a protocol name stands for.
    pub fn from_alpn(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.alpn() == name)
    }

    fn allows(self, role: Role) -> bool {
        match self {
            Self::Peer | Self::Bulk => role == Role::Manager,
            // What a worker may ask for there is looked at with each request: to renew, and little else.
            Self::Client | Self::Join => true,
        }
    }
}

/// Whether a listener of `cluster` serves `identity` (from a certificate whose chain is verified)
/// on a connection for `purpose`. `succeeds` says which clusters this one was restored from: their clients and
/// workers keep their certificates, their members never.
///
/// # Errors
/// [`Refusal::BadCertificate`] for another cluster, [`Refusal::NotAllowed`] for the role.
pub fn admit(
    identity: &Identity,
    purpose: Purpose,
    cluster: ClusterId,
    succeeds: impl FnOnce(ClusterId) -> bool,
) -> Result<(), Refusal> {
    let kept = identity.role != Role::Manager || crate::planted!(AdmitPredecessorManager);
    if identity.cluster != cluster && !(kept && succeeds(identity.cluster)) {
        return Err(Refusal::BadCertificate { why: "it belongs to another cluster".into() });
    }
    if !purpose.allows(identity.role) && !crate::planted!(SkipRoleCheck) {
        return Err(Refusal::NotAllowed { role: identity.role.to_string() });
    }
    Ok(())
}

/// Whether a dialler takes `identity` for the member it wants to reach: a manager, of `cluster`
/// where that is known, and `node` where one is meant.
///
/// # Errors
/// [`Refusal::BadCertificate`] saying which rule.
pub fn check_dialled(
    identity: &Identity,
    cluster: Option<ClusterId>,
    node: Option<NodeId>,
) -> Result<(), Refusal> {
    let bad = |why: String| Err(Refusal::BadCertificate { why });
    if cluster.is_some_and(|cluster| cluster != identity.cluster) {
        return bad("the node that answers belongs to another cluster".into());
    }
    if identity.role != Role::Manager {
        return bad(format!("the node that answers has a {} certificate", identity.role));
    }
    match node {
        Some(node) if node != identity.node && !crate::planted!(SkipNodeCheck) => {
            bad(format!("the node that answers is {}, not {node}; is the address right?", identity.node))
        }
        _ => Ok(()),
    }
}

/// The name that the certificates of members have for a cluster that theirs was restored from: by it a client
/// of that one knows them for its successors, on the word of the root that both believe.
pub fn successor_name(predecessor: ClusterId) -> String {
    format!("{predecessor}.predecessor.{TLS_NAME}")
}

/// The certificate of a presented chain that a join token pins. Only this one may be believed.
pub fn pinned_root<'a>(mut chain: impl Iterator<Item = &'a [u8]>, digest: &RootDigest) -> Option<&'a [u8]> {
    if crate::planted!(AcceptAnyRoot) {
        return chain.last();
    }
    chain.find(|cert| RootDigest::of(cert) == *digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: ClusterId = ClusterId(1);
    const BEFORE: ClusterId = ClusterId(2);

    /// Whether that is let in by a cluster that was restored from [`BEFORE`].
    fn let_in(cluster: ClusterId, role: Role, purpose: Purpose) -> bool {
        let identity = Identity { cluster, node: NodeId(3), role };
        admit(&identity, purpose, HERE, |cluster| cluster == BEFORE).is_ok()
    }

    fn members_of_before_are_let_in_nowhere() {
        for purpose in Purpose::ALL {
            assert!(!let_in(BEFORE, Role::Manager, purpose), "{purpose:?}");
            assert!(let_in(HERE, Role::Manager, purpose), "{purpose:?}");
        }
    }

    #[test]
    fn clients_and_workers_of_before_are_let_in_where_they_are_served_and_members_nowhere() {
        members_of_before_are_let_in_nowhere();
        for role in [Role::Client, Role::Worker] {
            for purpose in Purpose::ALL {
                assert_eq!(let_in(BEFORE, role, purpose), let_in(HERE, role, purpose), "{role} {purpose:?}");
                assert!(!let_in(ClusterId(4), role, purpose), "{role} {purpose:?}");
            }
            assert!(let_in(BEFORE, role, Purpose::Client) && !let_in(BEFORE, role, Purpose::Peer));
        }
    }

    #[cfg(feature = "sim")]
    #[test]
    fn letting_members_of_before_in_is_noticed() {
        let bug = crate::planted::Bug::AdmitPredecessorManager;
        let found = crate::planted::with(Some(bug), || {
            std::panic::catch_unwind(members_of_before_are_let_in_nowhere)
        });
        assert!(found.is_err());
    }
}
