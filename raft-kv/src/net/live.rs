//! What a running node proves itself with and believes in, exchangeable while it serves.
//!
//! Every handshake reads the newest; nothing keeps an older one. Open connections are not touched
//! by a change: [`Endpoint::close_where`](super::Endpoint::close_where) ends those it concerns.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::tls::Trust;
use crate::error::Refusal;
use crate::pki::{Credentials, Identity};
use crate::types::NodeId;

type Refused = Box<dyn Fn(NodeId) -> bool + Send + Sync>;

/// A node's credentials, the roots it believes, and whom it refuses. Clones share one content.
#[derive(Clone)]
pub struct LiveTrust {
    trust: Arc<ArcSwap<Trust>>,
    refused: Arc<ArcSwap<Refused>>,
    changes: watch::Sender<u64>,
}

impl LiveTrust {
    /// Starts with `credentials` and refuses nobody.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] if they can't be used.
    pub fn new(credentials: Credentials) -> Result<Self, Refusal> {
        let refused: Refused = Box::new(|_| false);
        Ok(Self {
            trust: Arc::new(ArcSwap::from_pointee(Trust::new(credentials)?)),
            refused: Arc::new(ArcSwap::from_pointee(refused)),
            changes: watch::Sender::new(0),
        })
    }

    /// Every handshake from now on uses `credentials`, their roots included.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] if they can't be used or name another node or cluster; the old
    /// ones stay.
    pub fn swap(&self, credentials: Credentials) -> Result<(), Refusal> {
        let (old, new) = (self.identity(), Trust::new(credentials)?);
        if (new.identity.cluster, new.identity.node) != (old.cluster, old.node) {
            return Err(Refusal::BadCertificate { why: "it names another node or cluster".into() });
        }
        self.trust.store(Arc::new(new));
        self.note_change();
        Ok(())
    }

    /// From now on a node for which `refused` is true is turned away after its handshake, and not
    /// dialled. It is asked in every handshake: it must be quick.
    pub fn set_refused(&self, refused: impl Fn(NodeId) -> bool + Send + Sync + 'static) {
        self.refused.store(Arc::new(Box::new(refused)));
        self.note_change();
    }

    /// Counts up whenever somebody who was let in may not be welcome any more: other credentials,
    /// other roots, a node removed. Whoever keeps connections open looks through them then.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Says that whom [`refuses`](Self::refuses) turns away may have changed.
    pub fn note_change(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Whether `node` is turned away.
    pub fn refuses(&self, node: NodeId) -> bool {
        (self.refused.load())(node)
    }

    /// Who this node is.
    pub fn identity(&self) -> Identity {
        self.trust.load().identity
    }

    /// What is in use now.
    pub fn credentials(&self) -> Credentials {
        self.trust.load().credentials.clone()
    }

    pub(super) fn current(&self) -> Arc<Trust> {
        self.trust.load_full()
    }
}

impl std::fmt::Debug for LiveTrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LiveTrust").field(&self.identity()).finish()
    }
}
