//! A member looks after its own certificate and what it believes, and the leader drives rotations.
//!
//! What is believed is what the state says, never what a peer says. A change is in force for new
//! handshakes at once; open connections that it does not cover are ended right after.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::Rng;

use super::super::local::Local;
use super::super::node::{OWN_PATIENCE, hosts_of};
use super::authority::{Wanted, now};
use crate::error::{Error, Refusal};
use crate::limits::{MAX_NODE_ERROR_BYTES, MAX_VERIFIED_PER_STEP};
use crate::machine;
use crate::net::{Endpoint, write_credentials};
use crate::pki::{self, Credentials, NodeKey};
use crate::types::{NodeId, Phase, Role, RootDigest, TrustChange, Trusted};

/// How often it is looked while a rotation is under way.
const ROTATING: Duration = Duration::from_millis(50);
/// How often it is looked otherwise: for certificates that end.
const QUIET: Duration = Duration::from_secs(5);
/// First pause after a failed renewal; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// When a certificate is renewed: at a random point between 50 and 80 % of its life.
pub(in crate::client) fn due(from: SystemTime, until: SystemTime) -> SystemTime {
    let life = until.duration_since(from).unwrap_or_default();
    from + life.mul_f64(rand::rng().random_range(0.5..0.8))
}

struct Keeper {
    local: Arc<Local>,
    endpoint: Endpoint,
    /// The leaf that `due` was drawn for, and when it is to be renewed.
    due: (Vec<u8>, SystemTime),
    /// The root that this member's leaf rests on, as far as is known: that of the newest issue.
    pause: Duration,
    not_before: tokio::time::Instant,
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
    let mut keeper = Keeper { local, endpoint, due, pause, not_before };
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
        save(&self.local.cert_dir, &credentials)?;
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
        if (moved || introducing) && !due || tokio::time::Instant::now() < self.not_before {
            return Ok(());
        }
        match self.renewed(credentials).await {
            Ok(()) => {
                self.pause = FIRST_PAUSE;
                tracing::info!(root = %wanted, "this member has a new certificate");
                Ok(())
            }
            Err(error) => {
                self.not_before = tokio::time::Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(MAX_PAUSE);
                let mut text = error.to_string();
                text.truncate(text.floor_char_boundary(MAX_NODE_ERROR_BYTES));
                // Told so that whoever waits for it can see why.
                let _ =
                    self.local.propose_trust(TrustChange::Failed { id: self.local.me, error: text }).await;
                Err(error)
            }
        }
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

fn save(dir: &Path, credentials: &Credentials) -> Result<(), Error> {
    write_credentials(dir, credentials).map_err(|failed| Error::Stopped(failed.to_string()))
}

impl Local {
    /// Whether this member leads and has taken on its duties.
    pub(in crate::client) fn leads(&self) -> bool {
        let leadership = *self.shell.leadership().borrow();
        leadership.leader == Some(self.me) && leadership.ready
    }

    /// Ends connections that are not believed any more.
    pub(in crate::client) fn recheck(&self, endpoint: &Endpoint) {
        let spared = self.spared.lock().clone();
        let spare = |node: NodeId| spared.contains(&node);
        let ended =
            endpoint.recheck(|info| info.peer.as_ref().is_some_and(|peer| spare(peer.identity().node)));
        if ended > 0 {
            tracing::info!(ended, "connections ended that are not believed any more");
        }
    }
}

/// A member whose certificate ended while it was off makes itself another: it has the authority's key,
/// and the others know it. The log hears of it as soon as there is a quorum.
pub(in crate::client) fn expired(credentials: &Credentials, now: SystemTime) -> Result<bool, Refusal> {
    let leaf =
        credentials.chain.first().ok_or_else(|| Refusal::BadCertificate { why: "there is none".into() })?;
    Ok(now >= pki::validity_of(leaf)?.1)
}
