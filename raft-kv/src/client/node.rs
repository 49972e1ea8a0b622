//! A member in this process: made by `init` or `join`, started again by `open`.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use super::api::{Call, JoinRequest, Joined, Reply, ScrubStatus};
use super::config::{
    Config, DataDir, Overrides, Remembered, StartError, Tuning, advertised, advertised_client, check_name,
};
use super::disk::Disk;
use super::enrol::{ask, bring_back};
use super::handle::Handle;
use super::local::{Local, random, token_id};
use super::repair;
use super::scrub::Scrubs;
use super::serve;
use super::snapshot::Copies;
use super::spare;
use super::trust::attempts::Attempts;
use super::trust::authority::{Hand, TOKEN_SECRET, authority_of, now, record_of};
use super::trust::own::authority_of_own;
use super::trust::signer::Signer;
use super::trust::unlock::opened;
use super::trust::vault::Vault;
use super::trust::{self, Wanted};
use super::world::Outside;
use crate::error::{Error, NotDone, Refusal, StorageFailed};
use crate::limits;
use crate::machine::{self, Genesis, Machine, Store};
use crate::net::{Endpoint, LiveTrust, PeerNet};
use crate::node::replica::Identity;
use crate::node::shell::{Parts, Shell};
use crate::pki::{self, Credentials, JoinToken, Keyring, NodeKey, RootKey, Secret, Subject, UnlockKey};
use crate::raft::Leadership;
use crate::storage::files::FolderFiles;
use crate::storage::log::{self, Log, Opened};
use crate::storage::state::{State, StateOptions};
use crate::types::{
    Authority, ClusterId, ConfState, HardState, Member, MemberRecord, NodeId, Role, SnapshotMeta, Standing,
    TokenRecord,
};

/// How long a clean stop waits for answers to reach their callers.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);

/// A running member. Dropping it without [`shutdown`](Self::shutdown) is like pulling the plug:
/// safe, but others notice only by its silence.
pub struct Node {
    local: Arc<Local>,
    endpoint: Endpoint,
    /// One permit for each request from outside that is being served.
    served: Arc<Semaphore>,
    tasks: Vec<JoinHandle<()>>,
    dir: DataDir,
    client_listener: Mutex<Option<TcpListener>>,
}

impl Node {
    /// Makes a new cluster with this member alone, and runs it. Call it within a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind that a second try would stumble over.
    pub async fn init(config: Config) -> Result<Self, StartError> {
        let addr = checked(&config)?;
        let door = Door::of(&config, &addr)?;
        let dir = DataDir::take(&config.data_dir, true)?;
        dir.expect_vacant()?;
        let (cluster, node) = (ClusterId(random()), NodeId(random()));
        let signer = config.external_signer.as_ref().map(Signer::new).transpose()?;
        let (keyring, key) = (Keyring::generate(), NodeKey::generate());
        let authority = founding(&config, cluster, &keyring)?;
        let hosts = hosts_of(&addr, &door.url());
        let subject = Subject { cluster, node, role: Role::Manager, name: String::new(), hosts };
        let hand =
            Hand { keyring: &keyring, external: signer.as_ref(), validity: config.tuning.leaf_validity };
        let chain = hand.sign(&authority, &subject, &key.public(), &key.request()).await?;
        let chain = chain.iter().map(|cert| cert.to_vec()).collect();
        let roots = vec![authority.root.to_vec()];
        let credentials = Credentials { chain, key: key.der().to_vec(), roots, ..Credentials::default() };
        let record =
            MemberRecord { id: node, name: config.name.clone(), addr: addr.clone(), client_url: door.url() };
        make_first(&dir, &config.tuning, cluster, &record, (authority, &keyring), &credentials)?;
        let vault = Vault::create(dir.path(), keyring.handed(), &credentials.key)?;
        save_credentials(&dir, &vault, &credentials)?;
        let remembered = Remembered {
            cluster,
            node,
            name: config.name,
            listen_addr: config.listen_addr,
            advertise_addr: addr.clone(),
            client: door.place.clone(),
            members: vec![(node, addr)],
        };
        dir.remember(&remembered)?;
        Self::run(dir, remembered, config.tuning, door, (vault, signer)).await
    }

    /// Joins the cluster that `token` belongs to, by way of any of `endpoints` (`host:port`), and
    /// runs the new member. It votes as soon as it has caught up.
    ///
    /// # Errors
    /// [`StartError`]: a token that is damaged or of another cluster, a name or address that
    /// another member has, no member that answers.
    pub async fn join(config: Config, token: &str, endpoints: &[String]) -> Result<Self, StartError> {
        let token: JoinToken = token.parse()?;
        let signer = config.external_signer.as_ref().map(Signer::new).transpose()?;
        let addr = checked(&config)?;
        let door = Door::of(&config, &addr)?;
        let dir = DataDir::take(&config.data_dir, true)?;
        dir.expect_vacant()?;
        // Found out before the cluster counts on this member.
        drop(
            std::net::UdpSocket::bind(config.listen_addr)
                .map_err(|error| in_use(config.listen_addr, &error))?,
        );
        let key = NodeKey::generate();
        let request = JoinRequest {
            secret: token.secret.to_text().into(),
            request: key.request().into(),
            name: config.name.clone(),
            addr: addr.clone(),
            client_url: door.url(),
        };
        let joined = ask_to_join(&token, endpoints, request).await?;
        let place = Place {
            name: config.name,
            listen_addr: config.listen_addr,
            advertise_addr: addr,
            client: door.place.clone(),
        };
        let (remembered, vault) = take_in(&dir, &config.tuning, &key, joined, place)?;
        Self::run(dir, remembered, config.tuning, door, (vault, signer)).await
    }

    /// Starts a member again from its data directory.
    ///
    /// # Errors
    /// [`StartError`]: the directory holds no member, is in use, unreadable, damaged or of a newer
    /// version; the certificate has expired; the address is taken.
    pub async fn open(data_dir: &Path, overrides: Overrides, tuning: Tuning) -> Result<Self, StartError> {
        tuning.check()?;
        let signer = overrides.external_signer.as_ref().map(Signer::new).transpose()?;
        let dir = DataDir::take(data_dir, false)?;
        spare::mend(dir.path());
        let mut remembered = dir.recall()?;
        dir.check_modes()?;
        spare::refresh(dir.path())?;
        let vault = opened(dir.path(), &overrides.unlocking).await?;
        vault.mend_key(&vault.load()?)?;
        if let Some(readmission) = &overrides.readmission {
            bring_back(&vault, &remembered, readmission).await?;
        }
        let before = remembered.advertise_addr.clone();
        let moved = overrides.listen_addr.is_some_and(|addr| addr != remembered.listen_addr);
        if let Some(listen) = overrides.listen_addr {
            remembered.listen_addr = listen;
        }
        if moved || overrides.advertise_addr.is_some() {
            remembered.advertise_addr =
                advertised(remembered.listen_addr, overrides.advertise_addr.as_deref())?;
        }
        let door = Door::again(&remembered, &before, &overrides)?;
        remembered.client = door.place.clone();
        dir.remember(&remembered)?;
        Self::run(dir, remembered, tuning, door, (vault, signer)).await
    }

    async fn run(
        dir: DataDir,
        node: Remembered,
        tuning: Tuning,
        door: Door,
        (vault, external_signer): (Vault, Option<Signer>),
    ) -> Result<Self, StartError> {
        let credentials = vault.load()?;
        let identity = credentials.check()?;
        if (identity.cluster, identity.node) != (node.cluster, node.node) {
            let why = format!(
                "its certificate belongs to member {} of cluster {}, its file `node` to member {} of cluster {}; \
                 one of them was copied from elsewhere: restore the right one",
                identity.node, identity.cluster, node.node, node.cluster
            );
            return Err(StartError::DataDir { dir: dir.path().display().to_string(), why });
        }
        let (parts, node, vault) = open_parts(&dir, node, &tuning, credentials, vault).await?;
        // Rejoining under a new id brings new ones.
        let hands = (&vault, external_signer.as_ref());
        let credentials = trust::renew_expired(vault.load()?, hands, &parts.state, &node, &tuning).await?;
        let trust = LiveTrust::new(credentials)?;
        let state = parts.state.clone();
        let endpoint = Endpoint::bind(node.listen_addr, trust.clone())?;
        let asked = state.clone();
        trust.set_standing(move |who| standing(&asked, who));
        let asked = state.clone();
        trust.set_predecessors(move |cluster| {
            asked.view(machine::read::predecessors).is_ok_and(|before| before.contains(&cluster))
        });
        let (events, incoming) = mpsc::channel(1024);
        let peers = PeerNet::new(endpoint.clone(), events);
        peers.set_peers(node.members.clone());
        let outside =
            Arc::new(Outside::new(endpoint.clone(), peers.clone(), node.node, tuning.snapshot_rate));
        let shell = Arc::new(Shell::start(parts, outside.clone())?);
        let local = Arc::new(Local {
            shell,
            cluster: node.cluster,
            me: node.node,
            name: node.name.clone(),
            addr: node.advertise_addr.clone(),
            client_url: door.url(),
            trust,
            spared: Mutex::default(),
            password_checks: Semaphore::new(limits::MAX_PASSWORD_CHECKS),
            counts: Mutex::default(),
            dates: Mutex::default(),
            copies: Copies::new(dir.join("copies"))?,
            keyring: vault.keyring(),
            vault: Arc::new(vault),
            disk: Arc::new(Disk::new(dir.path(), &tuning)),
            attempts: Attempts::default(),
            leaf_validity: tuning.leaf_validity,
            external_signer,
            scrubs: Scrubs::default(),
            transfers: outside.transfers(),
        });
        outside.connect(&local);
        let kept_outside = |trusted: crate::types::Trusted| trusted.issuing().key.is_none();
        if local.external_signer.is_none() && state.view(machine::read::trusted).is_ok_and(kept_outside) {
            tracing::warn!(
                "the cluster's signing key is kept outside and this member has no --external-signer: it can't \
                 renew its certificate, and nobody can join by it"
            );
        }
        let served = Arc::new(Semaphore::new(limits::MAX_SERVED_REQUESTS));
        let tasks = vec![
            tokio::spawn(serve::pump(local.clone(), incoming)),
            tokio::spawn(serve::accept(local.clone(), endpoint.clone(), peers, served.clone())),
            tokio::spawn(serve::forget_partial(local.shell.incoming(), 0)),
            tokio::spawn(serve::notice_removal(local.clone(), endpoint.clone())),
            tokio::spawn(serve::announce_address(local.clone())),
            tokio::spawn(super::trust::keep(local.clone(), endpoint.clone())),
            tokio::spawn(super::trust::evict(local.clone(), endpoint.clone())),
            tokio::spawn(super::trust::keep_sealed(local.clone())),
            tokio::spawn(super::points::keep_schedules(local.clone())),
            tokio::spawn(super::dates::keep(local.clone())),
            tokio::spawn(super::disk::keep(local.clone())),
            tokio::spawn(super::trust::vouch(local.clone(), outside.clone())),
            tokio::spawn(repair::remember_members(dir.path().to_path_buf(), node, outside.known())),
            tokio::spawn(repair::guard(local.clone(), dir.path().to_path_buf())),
            tokio::spawn(super::scrub::keep(local.clone(), dir.path().to_path_buf(), tuning)),
        ];
        Ok(Self { local, endpoint, served, tasks, dir, client_listener: Mutex::new(door.listener) })
    }

    /// The handle through which this process uses the cluster.
    pub fn handle(&self) -> Handle {
        Handle::local(self.local.clone())
    }

    /// What the node's own tests look into.
    #[cfg(test)]
    pub(super) fn inside(&self) -> &Arc<Local> {
        &self.local
    }

    /// This member's id.
    pub fn id(&self) -> NodeId {
        self.local.me
    }

    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        self.local.cluster
    }

    /// Where others reach this member.
    pub fn addr(&self) -> &str {
        &self.local.addr
    }

    /// Where HTTP clients reach this member, `https://host:port`; empty where there is no such
    /// door.
    pub fn client_url(&self) -> &str {
        &self.local.client_url
    }

    /// The socket for HTTP clients, bound since before the node started; once, then `None`. What
    /// is served there is the caller's affair, under [`trust`](Self::trust).
    pub fn client_listener(&self) -> Option<TcpListener> {
        self.client_listener.lock().take()
    }

    /// What this member proves itself with and believes in: as it is and as it becomes.
    pub fn trust(&self) -> LiveTrust {
        self.local.trust.clone()
    }

    /// This member's name.
    pub fn name(&self) -> &str {
        &self.local.name
    }

    /// Where everything is kept.
    pub fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Role, term and leader, as they change. A manager starts its duties when this says that it
    /// leads and is ready, and passes the term along as a fencing token: a later leader's is higher.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.local.shell.leadership()
    }

    /// Syncs to disk, bytes and groups of the raft log since the start, for measurements.
    pub fn log_stats(&self) -> log::Stats {
        self.local.shell.log_stats()
    }

    /// Waits until the node has stopped by itself: its disk failed, or it was removed.
    pub async fn stopped(&self) -> Error {
        let mut ended = self.local.shell.ended();
        let error = ended.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        if let Some(damage) = repair::examined(&self.local).await {
            repair::note(self.dir.path(), &damage);
            // What failed in the background is not said by RocksDB; what was found is.
            return Error::Stopped(damage.to_string());
        }
        error.unwrap_or(Error::Stopped("the node has ended".into()))
    }

    /// How far the reading of this member's disk has come, which finds what has rotted.
    pub fn scrub_status(&self) -> ScrubStatus {
        self.local.scrubs.status()
    }

    /// Whether it has stopped for damage on its disk: the next [`open`](Self::open) gets the data from the other
    /// members.
    pub fn is_damaged(&self) -> bool {
        let ended = self.local.shell.ended();
        let told = matches!(&*ended.borrow(), Some(Error::Stopped(why)) if StorageFailed::tells_damage(why));
        told || repair::noted(self.dir.path()).is_some()
    }

    /// Stops cleanly: leadership moves to another member, who waits is answered, the state is
    /// flushed, connections are closed.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the node had failed before.
    pub async fn shutdown(mut self) -> Result<(), Error> {
        let stopped = self.local.shell.stop().await;
        let drained = async {
            while self.served.available_permits() < limits::MAX_SERVED_REQUESTS {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // Whoever does not take the answer by then hears that the connection broke.
        let _ = tokio::time::timeout(DRAIN_PATIENCE, drained).await;
        self.endpoint.close().await;
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            // What it was in the middle of keeps the state open.
            let _ = task.await;
        }
        // The socket lives a little longer; it lets nobody in, and keeps nothing open.
        self.local.trust.set_standing(|_| Standing::Removed);
        self.local.trust.set_predecessors(|_| false);
        stopped
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        // After a shutdown nobody hears it any more.
        self.local.shell.fail(Error::NotDone(NotDone::ShuttingDown));
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.local.me)
            .field("name", &self.local.name)
            .finish_non_exhaustive()
    }
}

/// The authority of a new cluster: the root that was brought, or one that is made now.
pub(super) fn founding(
    config: &Config,
    cluster: ClusterId,
    keyring: &Keyring,
) -> Result<Authority, StartError> {
    let external = config.external_signer.is_some();
    let Some(own) = &config.own_root else {
        if external {
            let why = "it signs under a root of yours; give that with --ca-cert";
            return Err(Refusal::invalid("external signer", why).into());
        }
        return Ok(authority_of(&RootKey::generate(cluster, SystemTime::now()), keyring)?);
    };
    let why = match (&own.key, external) {
        (Some(_), true) => {
            "give the signing key (--ca-key) or what signs in its place (--external-signer), not both"
        }
        (None, false) => {
            "give the signing key with --ca-key, or what signs in its place with --external-signer"
        }
        _ => return Ok(authority_of_own(own, keyring)?),
    };
    Err(Refusal::invalid("root", why).into())
}

/// Who is let in once its chain is verified. A member that has no state yet goes by that alone.
fn standing(state: &State, who: &pki::Identity) -> Standing {
    let known = state.view(|view| {
        if machine::read::holds_state(view)? {
            machine::read::standing(view, who.node).map(Some)
        } else {
            Ok(None)
        }
    });
    match known {
        Ok(Some(standing)) => standing,
        Ok(None) => Standing::Known(who.role),
        // What can't be read lets nobody in; the node is about to stop.
        Err(_) => Standing::Unknown,
    }
}

pub(super) fn checked(config: &Config) -> Result<String, StartError> {
    check_name(&config.name)?;
    config.tuning.check()?;
    Ok(advertised(config.listen_addr, config.advertise_addr.as_deref())?)
}

fn in_use(addr: SocketAddr, error: &std::io::Error) -> StartError {
    let why = format!("{addr} can't be listened on: {error}; choose another, or stop what uses it");
    StartError::Refused(Refusal::invalid("listen address", why))
}

/// The names in a member's certificate for those who check them: the hosts at which it is reached,
/// and this machine's own names for itself.
pub(super) fn hosts_of(addr: &str, client_url: &str) -> Vec<String> {
    let client = client_url.strip_prefix("https://").unwrap_or(client_url);
    let own = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    host_of(addr).into_iter().chain(host_of(client)).chain(own).collect()
}

/// The socket for HTTP clients and what they are told of it.
pub(super) struct Door {
    listener: Option<TcpListener>,
    pub(super) place: Option<(SocketAddr, String)>,
}

impl Door {
    /// The door of a new member, taken before anything is made. Where a member is in the directory
    /// already, that is the thing to say.
    pub(super) fn of(config: &Config, addr: &str) -> Result<Self, StartError> {
        Self::bind(config.client_addr, config.advertise_client_addr.as_deref(), addr).or_else(|busy| {
            if DataDir::holds_member(&config.data_dir) {
                DataDir::take(&config.data_dir, true)?.expect_vacant()?;
            }
            Err(busy)
        })
    }

    /// Takes the address, before anything is made that a busy one would leave behind.
    fn bind(listen: Option<SocketAddr>, advertise: Option<&str>, addr: &str) -> Result<Self, StartError> {
        let Some(listen) = listen else {
            if advertise.is_some() {
                let why = "there is no door for HTTP clients that it could lead to; give its address too";
                return Err(Refusal::invalid("advertise-etcd-addr", why).into());
            }
            return Ok(Self { listener: None, place: None });
        };
        let (listener, bound) = TcpListener::bind(listen)
            .and_then(|listener| listener.local_addr().map(|bound| (listener, bound)))
            .map_err(|error| door_in_use(listen, &error))?;
        let place = Some((bound, advertised_client(bound, advertise, addr)?));
        Ok(Self { listener: Some(listener), place })
    }

    /// The door of a member that starts again. Where its host was the member's own and that has
    /// changed, it changes too.
    fn again(node: &Remembered, addr_before: &str, overrides: &Overrides) -> Result<Self, StartError> {
        let old = node.client.as_ref();
        let listen = overrides.client_addr.unwrap_or(old.map(|(listen, _)| *listen));
        let given = overrides.advertise_client_addr.as_deref();
        let moved = overrides.client_addr.is_some_and(|listen| listen != old.map(|(listen, _)| *listen));
        let followed =
            |told: &str| host_of(told) == host_of(addr_before) && addr_before != node.advertise_addr;
        let kept = old.map(|(_, told)| told.as_str()).filter(|told| !moved && !followed(told));
        Self::bind(listen, given.or(kept), &node.advertise_addr)
    }

    pub(super) fn url(&self) -> String {
        client_url(self.place.as_ref())
    }
}

fn door_in_use(addr: SocketAddr, error: &std::io::Error) -> StartError {
    let why = match error.kind() {
        std::io::ErrorKind::AddrInUse => "it is in use: another process listens there".to_owned(),
        std::io::ErrorKind::AddrNotAvailable => "this machine does not have that address".to_owned(),
        _ => error.to_string(),
    };
    let advice = "stop that one, or choose another address with --etcd-addr IP:PORT (`--etcd-addr off` \
                  for no etcd API)";
    StartError::Refused(Refusal::invalid(format!("etcd address {addr}"), format!("{why}; {advice}")))
}

/// Where a member is, as its operator says.
struct Place {
    name: String,
    listen_addr: SocketAddr,
    advertise_addr: String,
    client: Option<(SocketAddr, String)>,
}

/// The host part of `host:port`, for the certificate.
pub(super) fn host_of(addr: &str) -> Option<String> {
    addr.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']).to_owned())
}

pub(super) fn log_options(tuning: &Tuning) -> log::Options {
    log::Options { segment_bytes: tuning.log_segment_bytes, ..log::Options::default() }
}

pub(super) fn state_options(tuning: &Tuning) -> StateOptions {
    StateOptions { block_cache_bytes: tuning.block_cache_bytes, ..StateOptions::default() }
}

pub(super) fn log_files(dir: &Path) -> Result<FolderFiles, StorageFailed> {
    let path = dir.join("log");
    let failed = |error| StorageFailed::io(path.display().to_string(), "opening the folder", &error);
    FolderFiles::open(&path).map_err(failed)
}

/// The join tokens that a new cluster has.
pub(super) fn first_tokens(keyring: &Keyring) -> Vec<(String, TokenRecord)> {
    let token = |role| {
        let secret = Secret::generate(&mut rand::rng()).to_text();
        let secret = keyring.seal(TOKEN_SECRET, secret.as_bytes());
        let label = "made with the cluster".into();
        let record = TokenRecord { role, secret, label, created: now(), expires: i64::MAX, uses: None };
        (token_id(role), record)
    };
    vec![token(Role::Manager), token(Role::Worker)]
}

/// Writes the state and the log of a new cluster's first member.
fn make_first(
    dir: &DataDir,
    tuning: &Tuning,
    cluster: ClusterId,
    record: &MemberRecord,
    (authority, keyring): (Authority, &Keyring),
    credentials: &Credentials,
) -> Result<(), StartError> {
    let wanted = Wanted {
        node: record.id,
        role: Role::Manager,
        name: record.name.clone(),
        hosts: Vec::new(),
        token: String::new(),
        renewal: false,
    };
    let public_key = NodeKey::from_der(&credentials.key)?.public();
    let node = record_of(&credentials.chain[0], &public_key, &wanted, authority.digest)?;
    let genesis = Genesis { cluster, member: record.clone(), authority, node, tokens: first_tokens(keyring) };
    let state = State::open(&dir.join("state"), state_options(tuning))?;
    Machine::create(&state, &genesis)?;
    let conf = ConfState { voters: vec![record.id], ..ConfState::default() };
    let boundary = SnapshotMeta { index: 1, term: 1, conf };
    let hard = HardState { term: 1, vote: NodeId(0), commit: 1 };
    let identity = log::Identity { cluster, node: record.id };
    Log::create(log_files(dir.path())?, log_options(tuning), identity, boundary, hard)?;
    Ok(())
}

async fn ask_to_join(
    token: &JoinToken,
    endpoints: &[String],
    request: JoinRequest,
) -> Result<Joined, StartError> {
    match ask(token, endpoints, Call::Join(request)).await? {
        Reply::Joined(joined) => Ok(joined),
        other => Err(Refusal::Malformed { what: format!("a join was answered {other:?}") }.into()),
    }
}

/// Writes what a joiner was given: credentials, an empty log, and last who it is.
fn take_in(
    dir: &DataDir,
    tuning: &Tuning,
    key: &NodeKey,
    joined: Joined,
    place: Place,
) -> Result<(Remembered, Vault), StartError> {
    let der = |all: &[Bytes]| all.iter().map(|one| one.to_vec()).collect();
    let credentials = Credentials {
        chain: der(&joined.chain),
        key: key.der().to_vec(),
        roots: der(&joined.roots),
        ..Default::default()
    };
    credentials.check()?;
    let vault = Vault::create(dir.path(), joined.keys, &credentials.key)?;
    save_credentials(dir, &vault, &credentials)?;
    let identity = log::Identity { cluster: joined.cluster, node: joined.node };
    Log::create(
        log_files(dir.path())?,
        log_options(tuning),
        identity,
        SnapshotMeta::default(),
        HardState::default(),
    )?;
    let addr_of = |member: &Member| (member.record.id, member.record.addr.clone());
    let remembered = Remembered {
        cluster: joined.cluster,
        node: joined.node,
        name: place.name,
        listen_addr: place.listen_addr,
        advertise_addr: place.advertise_addr,
        client: place.client,
        members: joined.members.iter().map(addr_of).collect(),
    };
    dir.remember(&remembered)?;
    Ok((remembered, vault))
}

pub(super) fn save_credentials(
    dir: &DataDir,
    vault: &Vault,
    credentials: &Credentials,
) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt;
    let path = dir.join("cert");
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
    made.map_err(|error| StorageFailed::io(path.display().to_string(), "making the folder", &error))?;
    Ok(vault.save(credentials)?)
}

/// The credentials of a member on this machine, from its data directory, and the address at which
/// it is reached.
///
/// # Errors
/// [`StartError`]: the directory holds no member or can't be read.
pub fn credentials_of(data_dir: &Path) -> Result<(Credentials, String), StartError> {
    credentials_unlocked(data_dir, None)
}

/// As [`credentials_of`], of a member whose disk may be locked.
///
/// # Errors
/// As there, and [`StartError::Locked`] without the unlock key or with another one.
pub fn credentials_unlocked(
    data_dir: &Path,
    unlock: Option<&UnlockKey>,
) -> Result<(Credentials, String), StartError> {
    let wrong = |why: String| StartError::DataDir { dir: data_dir.display().to_string(), why };
    let remembered = super::config::recall_from(data_dir).map_err(wrong)?;
    let credentials = Vault::open(data_dir, unlock)?.load()?;
    Ok((credentials, remembered.advertise_addr))
}

/// Opens the state and the log. What is damaged, or ends before what this member acknowledged, may not be
/// used any more: the member asks the others to take it in again under a new id.
async fn open_parts(
    dir: &DataDir,
    node: Remembered,
    tuning: &Tuning,
    credentials: Credentials,
    vault: Vault,
) -> Result<(Parts, Remembered, Vault), StartError> {
    match open_disk(dir, &node, tuning) {
        Ok(parts) => Ok((parts, node, vault)),
        Err(StartError::Storage(damage)) if damage.is_damage() => {
            repair::say(dir, &damage);
            Box::pin(rejoin(dir, node, tuning, credentials, damage)).await
        }
        Err(other) => Err(other),
    }
}

fn open_disk(dir: &DataDir, node: &Remembered, tuning: &Tuning) -> Result<Parts, StartError> {
    if let Some(damage) = repair::noted(dir.path()) {
        return Err(damage.into());
    }
    let state = State::open(&dir.join("state"), state_options(tuning))?;
    let applied = Machine::open(state.clone())?.map(|machine| machine.applied());
    let identity = log::Identity { cluster: node.cluster, node: node.node };
    let (log, writer) = match Log::open(log_files(dir.path())?, log_options(tuning), identity, applied)? {
        Opened::Ready { log, writer, .. } => (log, writer),
        Opened::Behind { marker, end } => {
            let why = format!(
                "it ends with entry {} of term {}, before what this member acknowledged: entry {} of term {}",
                end.index, end.term, marker.index, marker.term
            );
            return Err(StorageFailed::damaged(dir.join("log").display().to_string(), why).into());
        }
    };
    let identity = Identity { me: node.node, boot: random(), run: log.run(), seed: random() };
    let folder = dir.path().to_path_buf();
    Ok(Parts { identity, log, writer, state, folder, bounds: tuning.bounds })
}

async fn rejoin(
    dir: &DataDir,
    node: Remembered,
    tuning: &Tuning,
    credentials: Credentials,
    damage: StorageFailed,
) -> Result<(Parts, Remembered, Vault), StartError> {
    let others = node.members.iter().filter(|(id, addr)| *id != node.node && *addr != node.advertise_addr);
    let endpoints: Vec<String> = others.map(|(_, addr)| addr.clone()).collect();
    if endpoints.is_empty() {
        return Err(repair::alone(damage));
    }
    let key = NodeKey::generate();
    let ask = || async {
        let call = Call::Rejoin {
            request: key.request().into(),
            name: node.name.clone(),
            addr: node.advertise_addr.clone(),
            client_url: client_url(node.client.as_ref()),
        };
        let handle = Handle::connect(&endpoints, credentials.clone()).await?.with_patience(repair::PATIENCE);
        match handle.call(call).await? {
            (_, Reply::Joined(joined)) => Ok(joined),
            (_, other) => Err(Refusal::Malformed { what: format!("a rejoin was answered {other:?}") }.into()),
        }
    };
    let joined = repair::insist(ask).await?;
    repair::set_aside(dir, &damage)?;
    dir.clear()?;
    let place = Place {
        name: node.name,
        listen_addr: node.listen_addr,
        advertise_addr: node.advertise_addr,
        client: node.client,
    };
    let (remembered, vault) = take_in(dir, tuning, &key, joined, place)?;
    tracing::warn!(old = %node.node, new = %remembered.node, "rejoined under a new id; the state comes from the others");
    let credentials = vault.load()?;
    open_parts(dir, remembered, tuning, credentials, vault).await
}

fn client_url(place: Option<&(SocketAddr, String)>) -> String {
    place.map_or(String::new(), |(_, told)| format!("https://{told}"))
}

/// How long requests of the node itself may take.
pub(super) const OWN_PATIENCE: Duration = limits::REQUEST_DEADLINE;
