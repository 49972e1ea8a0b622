//! A member looks after its own certificate and what it believes, and the leader drives rotations.
//!
//! What is believed is what the state says, never what a peer says. A change is in force for new
//! handshakes at once; open connections that it does not cover are ended right after.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::Rng;

use super::super::config::{Remembered, StartError, Tuning};
use super::super::local::Local;
use super::super::node::{OWN_PATIENCE, hosts_of};
use super::authority::{Hand, Wanted, now};
use super::signer::Signer;
use super::vault::Vault;
use crate::error::{Error, Refusal};
use crate::limits::{MAX_NODE_ERROR_BYTES, MAX_VERIFIED_PER_STEP};
use crate::machine::{self, Store};
use crate::net::{ConnectionInfo, Endpoint, VerifiedPeer};
use crate::pki::{self, Credentials, NodeKey, Subject};
use crate::storage::state::State;
use crate::types::{NodeId, Phase, Role, RootDigest, Standing, TrustChange, Trusted};

/// How often it is looked while a rotation is under way.
const ROTATING: Duration = Duration::from_millis(50);
/// How often it is looked otherwise: for certificates that end.
const QUIET: Duration = Duration::from_secs(5);
/// How much longer connections live that rest on a root that is not believed any more.
const GRACE: Duration = Duration::from_millis(400);
/// First pause after a failed renewal; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// How often a certificate that ends soon is warned of.
const WARN_PAUSE: Duration = Duration::from_secs(3600);

/// When a certificate is renewed: at a random point between 50 and 80 % of its life, which begins when
/// it is made; it is valid from a little before.
pub(in crate::client) fn due(from: SystemTime, until: SystemTime) -> SystemTime {
    // Its life begins when it is made, which is later than it says.
    let from = (from + pki::BACK_DATE).min(until);
    let life = until.duration_since(from).unwrap_or_default();
    from + life.mul_f64(rand::rng().random_range(0.5..0.8))
}

struct Keeper {
    local: Arc<Local>,
    endpoint: Endpoint,
    /// The leaf that `due` was drawn for, and when it is to be renewed.
    due: (Vec<u8>, SystemTime),
    /// How long to wait after the next failure, and until when after the last one.
    pause: Duration,
    not_before: tokio::time::Instant,
    /// When it was last said that the certificate ends soon.
    warned: Option<tokio::time::Instant>,
    /// Why the last renewal failed; empty once one has gone well.
    failure: String,
}

/// Runs until the node ends.
pub(in crate::client) async fn keep(local: Arc<Local>, endpoint: Endpoint) {
    // A state of before the last stop says what was believed then.
    if caught_up(&local).await.is_err() {
        return;
    }
    let mut changes = local.shell.trust_changes();
    let (pause, not_before) = (FIRST_PAUSE, tokio::time::Instant::now());
    let due = (Vec::new(), SystemTime::UNIX_EPOCH);
    let mut keeper = Keeper { local, endpoint, due, pause, not_before, warned: None, failure: String::new() };
    loop {
        changes.mark_unchanged();
        let rotating = match keeper.look().await {
            Ok(rotating) => rotating,
            Err(Error::Stopped(_)) => return,
            Err(error) => {
                tracing::warn!(%error, "looking after certificates: tried again");
                true
            }
        };
        let pause = if rotating { ROTATING } else { QUIET };
        if let Ok(Err(_)) = tokio::time::timeout(pause, changes.changed()).await {
            return;
        }
    }
}

async fn caught_up(local: &Local) -> Result<(), Error> {
    loop {
        match local.barrier(OWN_PATIENCE).await {
            Ok(()) if local.now().is_ok() => return Ok(()),
            Err(error @ Error::Stopped(_)) => return Err(error),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

impl Keeper {
    /// Does whatever is to be done now; whether a rotation is under way.
    async fn look(&mut self) -> Result<bool, Error> {
        let trusted = self.local.read(machine::read::trusted)?;
        self.believe(&trusted)?;
        self.renew(&trusted).await?;
        if trusted.rotation.is_some() {
            self.report(&trusted).await?;
        }
        if self.local.leads() {
            self.local.drive().await?;
        }
        Ok(trusted.rotation.is_some())
    }

    /// Puts in force what the state says is believed.
    fn believe(&self, trusted: &Trusted) -> Result<(), Error> {
        let now = now();
        let old = self.local.trust.credentials();
        let roots: Vec<Vec<u8>> = trusted.roots.iter().map(|root| root.root.to_vec()).collect();
        let distrusted: Vec<_> =
            trusted.distrusted.iter().filter(|(_, until)| *until > now).map(|(key, _)| *key).collect();
        if old.roots == roots && old.distrusted == distrusted {
            // Certificates end too, and nodes are removed.
            self.local.recheck(&self.endpoint);
            return Ok(());
        }
        let credentials = Credentials { roots, distrusted, ..old };
        self.put_in_force(credentials)?;
        tracing::info!(epoch = trusted.epoch, roots = trusted.roots.len(), "what is believed has changed");
        Ok(())
    }

    fn put_in_force(&self, credentials: Credentials) -> Result<(), Error> {
        let saved = self.local.vault.save(&credentials);
        saved.map_err(|failed| Error::Stopped(failed.to_string()))?;
        self.local.trust.swap(credentials)?;
        self.local.recheck(&self.endpoint);
        Ok(())
    }

    /// Renews this member's certificate where it is due, or rests on another root than it should.
    async fn renew(&mut self, trusted: &Trusted) -> Result<(), Error> {
        let credentials = self.local.trust.credentials();
        let leaf = credentials.chain.first().cloned().unwrap_or_default();
        if self.due.0 != leaf {
            let (from, until) = pki::validity_of(&leaf)?;
            self.due = (leaf.clone(), due(from, until));
        }
        let introducing = trusted.rotation.as_ref().is_some_and(|it| it.phase == Phase::Introduce);
        let record = self.local.read(|view| machine::read::node(view, self.local.me))?;
        let wanted = trusted.issuing().digest;
        // The newest issue may never have got here: what counts is the leaf that is shown.
        let issuer = record.as_ref().map(|record| (record.issuer, record.serial.to_vec()));
        let moved = issuer == Some((wanted, pki::serial_of(&leaf)?));
        let due = SystemTime::now() >= self.due.1;
        if due && !self.failure.is_empty() {
            self.warn_of_end(&leaf)?;
        }
        if (moved || introducing) && !due || tokio::time::Instant::now() < self.not_before {
            return Ok(());
        }
        tracing::debug!(?moved, ?introducing, ?due, "renewing");
        match self.renewed(credentials).await {
            Ok(()) => {
                self.pause = FIRST_PAUSE;
                self.failure.clear();
                tracing::info!(root = %wanted, "this member has a new certificate");
                Ok(())
            }
            Err(error) => {
                self.not_before = tokio::time::Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(MAX_PAUSE);
                // No character has more than four bytes.
                let text: String = error.to_string().chars().take(MAX_NODE_ERROR_BYTES / 4).collect();
                self.failure.clone_from(&text);
                // Told so that whoever waits for it can see why.
                let _ =
                    self.local.propose_trust(TrustChange::Failed { id: self.local.me, error: text }).await;
                Err(error)
            }
        }
    }

    /// Says, now and then, that the certificate ends soon and that renewing it has not gone well.
    fn warn_of_end(&mut self, leaf: &[u8]) -> Result<(), Error> {
        let (now, (from, until)) = (SystemTime::now(), pki::validity_of(leaf)?);
        let lately = self.warned.is_some_and(|at| at.elapsed() < WARN_PAUSE);
        if pki::ends_soon(from, until, now) && !lately {
            self.warned = Some(tokio::time::Instant::now());
            let left = until.duration_since(now).unwrap_or_default().as_secs();
            tracing::warn!(
                minutes_left = left / 60,
                why = self.failure,
                "this member's certificate ends soon and could not be renewed yet"
            );
        }
        Ok(())
    }

    async fn renewed(&self, old: Credentials) -> Result<(), Error> {
        let local = &self.local;
        let key = NodeKey::generate();
        let wanted = Wanted {
            node: local.me,
            role: Role::Manager,
            name: local.name.clone(),
            hosts: hosts_of(&local.addr, &local.client_url),
            token: String::new(),
            renewal: true,
        };
        let issued = local.issue_request(&wanted, &key.request()).await?;
        let chain = issued.chain.iter().map(|cert| cert.to_vec()).collect();
        self.put_in_force(Credentials { chain, key: key.der().to_vec(), ..old })
    }

    /// Tells the log whose new certificates were verified here.
    async fn report(&self, trusted: &Trusted) -> Result<(), Error> {
        self.endpoint.note_seen();
        let mut seen = self.local.trust.take_seen();
        // A cluster of one has nobody else to be seen by.
        let members = self.local.read(machine::read::members)?;
        if members.len() == 1 {
            let record = self.local.read(|view| machine::read::node(view, self.local.me))?;
            let leaf = self.local.trust.credentials().chain.first().cloned().unwrap_or_default();
            if let Some(record) =
                record.filter(|record| pki::serial_of(&leaf).is_ok_and(|own| own == record.serial))
            {
                seen.insert(self.local.me, record.issuer);
            }
        }
        let believed = |root: &RootDigest| trusted.roots.iter().any(|known| known.digest == *root);
        let news: Vec<(NodeId, RootDigest)> = self.local.read(|view| {
            let mut news = Vec::new();
            for (id, root) in seen.iter().filter(|(_, root)| believed(root)) {
                let record = machine::read::node(view, *id)?;
                if record.is_some_and(|record| record.verified != Some(*root) && record.issuer == *root) {
                    news.push((*id, *root));
                }
            }
            Ok(news)
        })?;
        for nodes in news.chunks(MAX_VERIFIED_PER_STEP) {
            self.local.propose_trust(TrustChange::Verified { nodes: nodes.to_vec() }).await?;
        }
        Ok(())
    }
}

impl Local {
    /// Whether this member leads and has taken on its duties.
    pub(in crate::client) fn leads(&self) -> bool {
        let leadership = *self.shell.leadership().borrow();
        leadership.leader == Some(self.me) && leadership.ready
    }

    /// Ends connections whose other end is not let in any more, now; and those that are not believed
    /// any more a moment later, so that who has a better certificate opens another one first.
    pub(in crate::client) fn recheck(self: &Arc<Self>, endpoint: &Endpoint) {
        self.end_unbelieved(endpoint, false);
        // A node that has ended meanwhile shall not be kept.
        let (local, endpoint) = (Arc::downgrade(self), endpoint.downgrade());
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            if let (Some(local), Some(endpoint)) = (local.upgrade(), endpoint.upgrade()) {
                local.end_unbelieved(&endpoint, true);
            }
        });
    }

    fn end_unbelieved(&self, endpoint: &Endpoint, chains: bool) {
        let spared = self.spared.lock().clone();
        let live = endpoint.live();
        let spare = |info: &ConnectionInfo| {
            let Some(identity) = info.peer.as_ref().map(VerifiedPeer::identity) else { return true };
            spared.contains_key(&identity.node) || !chains && live.standing(&identity) != Standing::Removed
        };
        let ended = endpoint.recheck(spare);
        if ended > 0 {
            tracing::info!(ended, "connections ended that are not believed any more");
        }
    }
}

/// A member whose certificate ended while it was off makes itself another: it has the authority's key, or
/// its external signer, and the others know it. The log hears of it as soon as there is a quorum, so that a
/// cluster comes back that was off as a whole for longer than its certificates last.
///
/// # Errors
/// [`Refusal::BadCertificate`] where it can't: its root was replaced, or the key is kept outside and there
/// is no external signer; what an external signer was refused for.
pub(in crate::client) async fn renew_expired(
    credentials: Credentials,
    (vault, external): (&Vault, Option<&Signer>),
    state: &State,
    node: &Remembered,
    tuning: &Tuning,
) -> Result<Credentials, StartError> {
    let now = SystemTime::now();
    let leaf = credentials.chain.first().cloned().unwrap_or_default();
    let held = |view: &dyn machine::Read| {
        if machine::read::holds_state(view)? { machine::read::trusted(view).map(Some) } else { Ok(None) }
    };
    let ended = now >= pki::validity_of(&leaf)?.1;
    let trusted = if ended { state.view(held)? } else { None };
    let authority = trusted.as_ref().map(Trusted::issuing);
    let outside = authority.is_some_and(|authority| authority.key.is_none());
    let Some(authority) = authority.filter(|_| !outside || external.is_some()) else {
        let bring_back = match outside {
            true => {
                "start it with the --external-signer that has the cluster's signing key, or bring it back with a \
                 token: `raft-kv run --token TOKEN`"
            }
            false => "bring it back with a token: `raft-kv run --token TOKEN`",
        };
        credentials.check_date(now, bring_back)?;
        return Ok(credentials);
    };
    let url = node.client.as_ref().map_or(String::new(), |(_, told)| format!("https://{told}"));
    let mut hosts = hosts_of(&node.advertise_addr, &url);
    hosts.extend(state.view(machine::read::predecessors)?.into_iter().map(pki::successor_name));
    // The key stays: by it the others know the member, should it need a token to come back.
    let (cluster, own) = (node.cluster, NodeKey::from_der(&credentials.key)?);
    let subject = Subject { cluster, node: node.node, role: Role::Manager, name: String::new(), hosts };
    let hand = Hand { keyring: &vault.keyring(), external, validity: tuning.leaf_validity };
    let signed = hand.sign(authority, &subject, &own.public(), &own.request()).await;
    let chain = signed.map_err(|error| match error {
        Error::Refused(refusal) => refusal,
        other => Refusal::BadCertificate { why: other.to_string() },
    })?;
    let chain = chain.iter().map(|cert| cert.to_vec()).collect();
    let renewed = Credentials { chain, key: own.der().to_vec(), ..credentials };
    vault.save(&renewed)?;
    tracing::warn!("this member's certificate had expired; it has a new one");
    Ok(renewed)
}
