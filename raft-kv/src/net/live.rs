//! What a running node proves itself with and believes in, exchangeable while it serves.
//!
//! Every handshake reads the newest; nothing keeps an older one. Open connections are not touched
//! by a change: [`Endpoint::close_where`](super::Endpoint::close_where) ends those it concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::tls::Trust;
use crate::error::Refusal;
use crate::pki::{Credentials, Identity, RootDigest};
use crate::types::{ClusterId, NodeId, Role, Standing};

type Asked = Box<dyn Fn(&Identity) -> Standing + Send + Sync>;
type Succeeds = Box<dyn Fn(ClusterId) -> bool + Send + Sync>;

/// How long a node that nothing is known of is given: what it was let in by may be on its way here.
pub(super) const NEWS_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked for meanwhile.
const NEWS_PAUSE: Duration = Duration::from_millis(20);
/// Nodes whose verified root is remembered until somebody asks for it.
const MAX_SEEN: usize = 4096;
/// For how long another member's word for a manager holds: it will have been heard of by then.
const WORD_HOLDS: Duration = Duration::from_secs(600);
/// Managers at a time that nobody here knows and that are asked about.
const MAX_STRANGERS: usize = 16;

/// A node's credentials, the roots it believes, and whom it refuses. Clones share one content.
#[derive(Clone)]
pub struct LiveTrust {
    trust: Arc<ArcSwap<Trust>>,
    standing: Arc<ArcSwap<Asked>>,
    succeeds: Arc<ArcSwap<Succeeds>>,
    /// The root that each node's certificate rested on when it was verified last, while there is more
    /// than one.
    seen: Arc<Mutex<BTreeMap<NodeId, RootDigest>>>,
    strangers: Arc<Strangers>,
    changes: watch::Sender<u64>,
}

/// Managers with a good chain that the state of this node does not know: it may be behind.
#[derive(Default)]
struct Strangers {
    /// Those that are to be asked about.
    waiting: Mutex<BTreeSet<NodeId>>,
    came: Notify,
    /// Those that another member has vouched for, and until when that holds.
    vouched: Mutex<BTreeMap<NodeId, Instant>>,
}

impl LiveTrust {
    /// Starts with `credentials` and refuses nobody whose chain is good.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] if they can't be used.
    pub fn new(credentials: Credentials) -> Result<Self, Refusal> {
        let standing: Asked = Box::new(|identity| Standing::Known(identity.role));
        let succeeds: Succeeds = Box::new(|_| false);
        Ok(Self {
            trust: Arc::new(ArcSwap::from_pointee(Trust::new(credentials)?)),
            standing: Arc::new(ArcSwap::from_pointee(standing)),
            succeeds: Arc::new(ArcSwap::from_pointee(succeeds)),
            seen: Arc::default(),
            strangers: Arc::default(),
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

    /// From now on `standing` says who is let in once its chain is verified. It is asked in every
    /// handshake: it must be quick.
    pub fn set_standing(&self, standing: impl Fn(&Identity) -> Standing + Send + Sync + 'static) {
        self.standing.store(Arc::new(Box::new(standing)));
        self.note_change();
    }

    /// From now on `succeeds` says which clusters this one was restored from. It is asked only where a
    /// certificate names another cluster.
    pub fn set_predecessors(&self, succeeds: impl Fn(ClusterId) -> bool + Send + Sync + 'static) {
        self.succeeds.store(Arc::new(Box::new(succeeds)));
    }

    /// Whether this cluster was restored from that one.
    pub(super) fn succeeds(&self, cluster: ClusterId) -> bool {
        (self.succeeds.load())(cluster)
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

    /// What is known of a node whose chain is good: by the state, else by another member's word.
    pub fn standing(&self, identity: &Identity) -> Standing {
        match (self.standing.load())(identity) {
            Standing::Unknown if identity.role == Role::Manager && self.is_vouched(identity.node) => {
                if crate::planted!(IgnoreWord) { Standing::Unknown } else { Standing::Known(Role::Manager) }
            }
            standing => standing,
        }
    }

    /// Managers that wait to be let in and that nothing is known of; waits until there are some. Whoever asks
    /// another member about one tells by [`vouch`](Self::vouch).
    pub async fn strangers(&self) -> BTreeSet<NodeId> {
        loop {
            let came = self.strangers.came.notified();
            let waiting = std::mem::take(&mut *self.strangers.waiting.lock());
            if !waiting.is_empty() {
                return waiting;
            }
            came.await;
        }
    }

    /// Lets a manager in for a while that the state does not know, on another member's word. What the state
    /// says goes before.
    pub fn vouch(&self, node: NodeId) {
        let now = Instant::now();
        let mut vouched = self.strangers.vouched.lock();
        vouched.retain(|_, until| *until > now);
        vouched.insert(node, now + WORD_HOLDS);
    }

    /// Whether another member has vouched for it not long ago.
    pub fn is_vouched(&self, node: NodeId) -> bool {
        self.strangers.vouched.lock().get(&node).is_some_and(|until| *until > Instant::now())
    }

    fn note_stranger(&self, identity: &Identity) {
        let mut waiting = self.strangers.waiting.lock();
        if identity.role == Role::Manager && waiting.len() < MAX_STRANGERS && waiting.insert(identity.node) {
            self.strangers.came.notify_one();
        }
    }

    /// Whether a member with that id was removed.
    pub fn refuses(&self, node: NodeId) -> bool {
        let identity = Identity { node, role: Role::Manager, ..self.identity() };
        self.standing(&identity) == Standing::Removed
    }

    /// Whether a node whose chain is good may be let in now; `None` while nothing is known of it.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] for one that was removed or shows a role that it was not given.
    pub(super) fn admitted(&self, identity: &Identity) -> Result<Option<()>, Refusal> {
        let bad = |why: &str| Err(Refusal::BadCertificate { why: why.into() });
        match self.standing(identity) {
            Standing::Removed if crate::planted!(AdmitRemoved) => Ok(Some(())),
            Standing::Removed => bad("this node was removed from the cluster; let it join anew"),
            Standing::Known(role) if role.covers(identity.role) => Ok(Some(())),
            Standing::Known(_) => bad("this node was not given that role; let it ask for a new certificate"),
            Standing::Unknown if crate::planted!(AdmitUnknown) => Ok(Some(())),
            Standing::Unknown => Ok(None),
        }
    }

    /// As [`admitted`](Self::admitted), with some patience for what is not known yet: it may be on its way,
    /// and other members are asked about a manager.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] with the reason.
    pub async fn wait_admitted(&self, identity: &Identity) -> Result<(), Refusal> {
        let deadline = Instant::now() + NEWS_PATIENCE;
        let mut asked = false;
        while self.admitted(identity)?.is_none() {
            if !std::mem::replace(&mut asked, true) {
                self.note_stranger(identity);
            }
            if Instant::now() >= deadline {
                let why = "the cluster does not know this node; let it join".into();
                return Err(Refusal::BadCertificate { why });
            }
            tokio::time::sleep(NEWS_PAUSE).await;
        }
        Ok(())
    }

    /// Notes on which root a verified chain rests, while there is more than one.
    pub(super) fn note_seen(&self, identity: &Identity, chain: &[CertificateDer<'_>]) {
        let trust = self.current();
        if trust.credentials.roots.len() < 2 {
            return;
        }
        if let Some(root) = trust.believed.rests_on(chain) {
            let mut seen = self.seen.lock();
            if seen.len() < MAX_SEEN || seen.contains_key(&identity.node) {
                seen.insert(identity.node, root);
            }
        }
    }

    /// On which roots the nodes' certificates rested that were verified since the last call.
    pub fn take_seen(&self) -> BTreeMap<NodeId, RootDigest> {
        std::mem::take(&mut self.seen.lock())
    }

    /// Who this node is.
    pub fn identity(&self) -> Identity {
        self.trust.load().identity
    }

    /// The certificate that is shown now, in DER.
    pub(super) fn leaf(&self) -> Vec<u8> {
        self.trust.load().credentials.chain.first().cloned().unwrap_or_default()
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
