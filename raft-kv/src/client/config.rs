//! How a node is started, what can keep it from starting, and the file in which it remembers who
//! it is.

use std::fs::{self, File, TryLockError};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::disk::FreeSpace;
use super::enrol::Readmission;
use super::recover::is_unfinished;
use super::repair::REPORT_FILE;
use super::spare::{self, SPARE_FILE};
use super::trust::signer::ExternalSigner;
use super::trust::unlock::Unlocking;
use super::trust::vault::KEYRING_FILE;
use crate::error::{Error, Refusal, StorageFailed};
use crate::limits;
use crate::net::write_private;
use crate::node::replica::Bounds;
use crate::types::{ClusterId, NodeId, OwnRoot};

/// The layout of a data directory that this version writes and reads.
const FORMAT: u32 = 1;
/// The file that says whose data directory it is.
pub(super) const NODE_FILE: &str = "node";
/// The file that says that a restore was begun and has not come to its end.
pub(super) const RESTORING_FILE: &str = "restoring";
/// The file that a running process holds locked.
pub(super) const LOCK_FILE: &str = "lock";

/// What a new node needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything is kept; made if it does not exist. Nobody else may use it.
    pub data_dir: PathBuf,
    /// For people; unique in the cluster; at most [`limits::MAX_NAME_BYTES`].
    pub name: String,
    /// The UDP address to listen on, for peers, joiners and clients.
    pub listen_addr: SocketAddr,
    /// `host:port` under which others reach it; needed where the listen address names no one
    /// address and the machine has several.
    pub advertise_addr: Option<String>,
    /// The TCP address at which a server in this process serves HTTP clients over TLS: bound when
    /// the node starts, handed over by [`Node::client_listener`](super::Node::client_listener).
    /// Port 0 takes a free one. `None` for no such door.
    pub client_addr: Option<SocketAddr>,
    /// `host:port` under which HTTP clients reach it; the host of the advertised address where
    /// this says nothing.
    pub advertise_client_addr: Option<String>,
    /// The root that a new cluster rests on, as [`read_own_root`](super::read_own_root) reads it; the
    /// cluster makes one where this says nothing. Not for joining.
    pub own_root: Option<OwnRoot>,
    /// What signs where the cluster's signing key is kept outside. Not remembered: give it at each start.
    pub external_signer: Option<ExternalSigner>,
    /// Sizes; the default suits.
    pub tuning: Tuning,
}

/// Sizes that rarely need to change.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Bytes of a segment of the raft log.
    pub log_segment_bytes: u64,
    /// Bytes of RocksDB's block cache.
    pub block_cache_bytes: usize,
    /// How long certificates that this member makes are valid; at least a second.
    pub leaf_validity: Duration,
    /// Bytes of the disk that are kept free for what must go on when it is short: at most a tenth of it,
    /// at least two segments of the log. With fewer free the member has nothing written that takes space.
    pub disk_reserve_bytes: u64,
    /// Where the member learns how much is free.
    pub free_space: FreeSpace,
    /// How fast the disk is read again to find what has rotted, in bytes a second; faster where it would not
    /// come round in time. 0 for never.
    pub scrub_bytes_per_second: u64,
    /// How often all of it is read again.
    pub scrub_every: Duration,
    /// Bytes per second at which snapshots leave this member, all of them together; 0 for as fast as
    /// it goes. Not remembered: give it at each start. At least [`limits::MIN_SNAPSHOT_RATE`].
    pub snapshot_rate: u64,
    /// When the state is flushed, and how much of the log is kept for others.
    pub bounds: Bounds,
}

impl Tuning {
    /// Refuses what can't be kept to.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        if (1..limits::MIN_SNAPSHOT_RATE).contains(&self.snapshot_rate) {
            let why = format!(
                "{} bytes per second are too few; give 0 for no bound, or at least {}",
                self.snapshot_rate,
                limits::MIN_SNAPSHOT_RATE
            );
            return Err(Refusal::invalid("snapshot rate", why));
        }
        Ok(())
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            log_segment_bytes: limits::LOG_SEGMENT_BYTES,
            block_cache_bytes: 64 * 1024 * 1024,
            leaf_validity: crate::pki::LEAF_VALIDITY,
            disk_reserve_bytes: limits::DISK_RESERVE_BYTES,
            free_space: FreeSpace::OfDisk,
            scrub_bytes_per_second: limits::SCRUB_BYTES_PER_SECOND,
            scrub_every: limits::SCRUB_EVERY,
            snapshot_rate: 0,
            bounds: Bounds::default(),
        }
    }
}

/// What may differ from the remembered configuration when a node is started again.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Another address to listen on.
    pub listen_addr: Option<SocketAddr>,
    /// Another address to be reached at.
    pub advertise_addr: Option<String>,
    /// Another address for HTTP clients, or none from now on.
    pub client_addr: Option<Option<SocketAddr>>,
    /// Another address at which HTTP clients reach it.
    pub advertise_client_addr: Option<String>,
    /// What it does where its disk is locked.
    pub unlocking: Unlocking,
    /// Brings it back first, where its certificate is not believed any more.
    pub readmission: Option<Readmission>,
    /// See [`Config::external_signer`].
    pub external_signer: Option<ExternalSigner>,
}

/// Why a node did not start. Nothing was changed in its data directory.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration, the token or the certificate is at fault.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The data directory can't be used as it is.
    #[error("data directory {dir}: {why}")]
    DataDir {
        /// Which.
        dir: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The disk is locked: the cluster's unlock key is needed.
    #[error(
        "data directory {dir} is locked{}; `raft-kv run` waits there until `raft-kv unlock --data-dir DIR` hands it \
         the unlock key, other commands take it from RAFT_KV_UNLOCK_KEY",
        if *.wrong { ", and that is not its unlock key" } else { "" }
    )]
    Locked {
        /// Which.
        dir: String,
        /// Whether a key was given that does not open it.
        wrong: bool,
    },
    /// The disk failed, or holds what was never written.
    #[error("{0}")]
    Storage(#[from] StorageFailed),
    /// The cluster did not take the node in, or the address can't be used.
    #[error("{0}")]
    Cluster(Error),
}

impl From<Error> for StartError {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => Self::Refused(refusal),
            other => Self::Cluster(other),
        }
    }
}

/// What a node remembers of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remembered {
    pub(super) cluster: ClusterId,
    pub(super) node: NodeId,
    pub(super) name: String,
    pub(super) listen_addr: SocketAddr,
    pub(super) advertise_addr: String,
    /// Where HTTP clients are served, and the `host:port` that they are told.
    pub(super) client: Option<(SocketAddr, String)>,
    /// Members to reach until the state names them: (id, address).
    pub(super) members: Vec<(NodeId, String)>,
}

/// A data directory that this process alone uses.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    _lock: Option<File>,
}

/// How often it is tried to lock a directory, and the pause between: a child that the process which had
/// it last has just forked holds the lock, too, until its own program begins.
const LOCK_TRIES: usize = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

fn lock(file: &File) -> Result<(), String> {
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(format!("it can't be locked: {error}")),
        }
    }
    Err("another process uses it; stop that one first, or give this one its own".into())
}

impl DataDir {
    /// Takes the directory, making it if it does not exist.
    pub(super) fn take(path: &Path, make: bool) -> Result<Self, StartError> {
        if is_unfinished(path) {
            return Err(StartError::DataDir { dir: path.display().to_string(), why: cut_short(path) });
        }
        Self::take_as_it_is(path, make)
    }

    /// Takes the directory of a member that does not run, also where a recovery was cut short.
    pub(super) fn take_to_recover(path: &Path) -> Result<Self, StartError> {
        Self::take_as_it_is(path, false)
    }

    fn take_as_it_is(path: &Path, make: bool) -> Result<Self, StartError> {
        let wrong = |why: String| StartError::DataDir { dir: path.display().to_string(), why };
        let here = Self::holds_member(path) || is_unfinished(path);
        if make {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|error| {
                wrong(format!("it can't be made: {error}; choose a folder that this user may write"))
            })?;
        } else if !here && fs::metadata(path).is_ok_and(|meta| meta.is_dir()) {
            // Unreadable is told apart from empty below.
            fs::read_dir(path).map_err(|error| wrong(format!("it can't be read: {error}; {RIGHTS}")))?;
            if path.join(RESTORING_FILE).exists() {
                return Err(wrong(
                    "a restore into it was cut short and it holds no member; run `raft-kv backup restore` with it again"
                        .into(),
                ));
            }
            return Err(wrong("it holds no member; make one with `raft-kv init` or `raft-kv join`".into()));
        } else if !path.exists() {
            return Err(wrong(
                "it does not exist; make a member with `raft-kv init` or `raft-kv join`".into(),
            ));
        }
        let file =
            File::options().create(true).truncate(false).write(true).mode(0o600).open(path.join(LOCK_FILE));
        let file = file.map_err(|error| wrong(format!("its lock can't be opened: {error}; {RIGHTS}")))?;
        lock(&file).map_err(wrong)?;
        if make {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))
                .map_err(|error| wrong(format!("its mode can't be set to 0700: {error}; {RIGHTS}")))?;
        }
        Ok(Self { path: path.to_path_buf(), _lock: Some(file) })
    }

    /// A directory that is only looked at. Nothing is made; while this lives, no member can start there.
    pub(super) fn look(path: &Path) -> Result<Self, StartError> {
        let wrong = |why: String| StartError::DataDir { dir: path.display().to_string(), why };
        fs::read_dir(path).map_err(|error| wrong(format!("it can't be read: {error}; {RIGHTS}")))?;
        let parts = [NODE_FILE, SPARE_FILE, KEYRING_FILE, "log", "state"];
        if !parts.iter().any(|name| path.join(name).exists()) {
            return Err(wrong("it holds no member".into()));
        }
        // Without the file nobody runs there.
        let file = File::open(path.join(LOCK_FILE)).ok();
        file.as_ref().map_or(Ok(()), lock).map_err(wrong)?;
        Ok(Self { path: path.to_path_buf(), _lock: file })
    }

    /// Whether a member was made in `path`.
    pub(super) fn holds_member(path: &Path) -> bool {
        let copied =
            || spare::read(path).is_some_and(|copies| copies.iter().any(|(name, _)| name == NODE_FILE));
        path.join(NODE_FILE).exists() || copied()
    }

    /// A folder or file within.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn wrong(&self, why: impl Into<String>) -> StartError {
        StartError::DataDir { dir: self.path.display().to_string(), why: why.into() }
    }

    /// Refuses a directory that holds a member; clears what a start that was cut short left.
    pub(super) fn expect_vacant(&self) -> Result<(), StartError> {
        if Self::holds_member(&self.path) {
            spare::mend(&self.path);
            let node = self.recall()?;
            let why = format!(
                "it holds member {} ({}) of cluster {}; start that one with `raft-kv run`, or choose an empty folder",
                node.node, node.name, node.cluster
            );
            return Err(self.wrong(why));
        }
        self.clear()
    }

    /// Refuses a directory in which others than its owner may look at anything. What RocksDB writes lies
    /// in folders that nobody else may enter; everything else is looked at itself.
    pub(super) fn check_modes(&self) -> Result<(), StartError> {
        self.check_mode(&self.path)?;
        for entry in self.entries(&self.path)? {
            self.check_mode(&entry)?;
            if ["cert", "log"].iter().any(|name| entry == self.join(name)) && entry.is_dir() {
                for file in self.entries(&entry)? {
                    self.check_mode(&file)?;
                }
            }
        }
        Ok(())
    }

    fn entries(&self, folder: &Path) -> Result<Vec<PathBuf>, StartError> {
        let listed =
            fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        listed.map_err(|error| self.wrong(format!("{} can't be read: {error}; {RIGHTS}", folder.display())))
    }

    fn check_mode(&self, path: &Path) -> Result<(), StartError> {
        let Ok(meta) = fs::metadata(path) else {
            // A link to nowhere shows nothing; whoever needs it says what is missing.
            return Ok(());
        };
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 == 0 {
            return Ok(());
        }
        let (what, wanted) = if meta.is_dir() { ("folder", "700") } else { ("file", "600") };
        Err(self.wrong(format!(
            "others than its owner may look at the {what} {0} (mode {mode:04o}); run: chmod {wanted} {0}",
            path.display()
        )))
    }

    /// Removes everything but the lock.
    pub(super) fn clear(&self) -> Result<(), StartError> {
        // First of all what says that a member is here: cut short, this leaves an empty place. Its copy even
        // before it, which would bring it back.
        for name in [SPARE_FILE, NODE_FILE, KEYRING_FILE, REPORT_FILE] {
            match fs::remove_file(self.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(self.wrong(format!("its file `{name}` can't be removed: {error}; {RIGHTS}")));
                }
                _ => {}
            }
        }
        for name in [
            "log",
            "state",
            "state.old",
            "recovering",
            "recovered",
            "checkpoints",
            "incoming",
            "copies",
            "cert",
        ] {
            match fs::remove_dir_all(self.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(self.wrong(format!("{name} can't be removed: {error}; {RIGHTS}")));
                }
                _ => {}
            }
        }
        self.restored()
    }

    /// No restore is under way any more.
    fn restored(&self) -> Result<(), StartError> {
        match fs::remove_file(self.join(RESTORING_FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(self.wrong(format!("its file `{RESTORING_FILE}` can't be removed: {error}; {RIGHTS}")))
            }
            _ => Ok(()),
        }
    }

    /// Who the node is.
    pub(super) fn recall(&self) -> Result<Remembered, StartError> {
        let text = fs::read_to_string(self.join(NODE_FILE))
            .map_err(|error| self.wrong(format!("its file `node` can't be read: {error}; {RIGHTS}")))?;
        parse(&text).map_err(|why| self.wrong(why))
    }

    /// Remembers who the node is: the last step of making one.
    pub(super) fn remember(&self, node: &Remembered) -> Result<(), StartError> {
        remember_in(&self.path, node)?;
        self.restored()
    }
}

/// Writes into `dir` who the node is, and its second copy.
pub(super) fn remember_in(dir: &Path, node: &Remembered) -> Result<(), StorageFailed> {
    write_private(&dir.join(NODE_FILE), format(node).as_bytes())?;
    spare::refresh(dir)
}

fn cut_short(dir: &Path) -> String {
    let dir = dir.display();
    format!("a recovery here was cut short; complete it with `raft-kv recover --data-dir {dir} --yes`")
}

const RIGHTS: &str = "check its owner and mode, or run as the user it belongs to";

/// Who the node is whose data directory this is, without taking it.
pub(super) fn recall_from(dir: &Path) -> Result<Remembered, String> {
    if is_unfinished(dir) {
        return Err(cut_short(dir));
    }
    let text = fs::read_to_string(dir.join(NODE_FILE));
    parse(&text.map_err(|error| {
        format!("its file `node` can't be read: {error}; is it a member's data directory?")
    })?)
}

fn format(node: &Remembered) -> String {
    let mut text = format!(
        "format = {FORMAT}\ncluster = {}\nnode = {}\nname = {}\nlisten = {}\nadvertise = {}\n",
        node.cluster, node.node, node.name, node.listen_addr, node.advertise_addr
    );
    if let Some((listen, advertise)) = &node.client {
        text.push_str(&format!("client = {listen} {advertise}\n"));
    }
    for (id, addr) in &node.members {
        text.push_str(&format!("member = {id} {addr}\n"));
    }
    let checksum = crc32c::crc32c(text.as_bytes());
    text.push_str(&format!("{CHECKSUM}{checksum:08x}\n"));
    text
}

/// The front of the last line.
const CHECKSUM: &str = "checksum = ";

/// Whether a node file is as it was written, by this version or a newer one.
pub(super) fn node_is_whole(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    match text.rfind(CHECKSUM) {
        Some(_) => check_sum(text).is_ok(),
        None => parse(text).is_err_and(|why| why.contains("newer version")),
    }
}

fn check_sum(text: &str) -> Result<(), String> {
    let Some(at) = text.rfind(CHECKSUM) else { return Ok(()) };
    let right = format!("{CHECKSUM}{:08x}\n", crc32c::crc32c(&text.as_bytes()[..at]));
    if text[at..] == right { Ok(()) } else { Err(format!("its file `node` is damaged; {DAMAGED}")) }
}

fn parse(text: &str) -> Result<Remembered, String> {
    check_sum(text)?;
    let all = || text.lines().filter_map(|line| line.split_once(" = "));
    let field = |name: &str| {
        all()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
            .ok_or(format!("its file `node` has no `{name}`; {DAMAGED}"))
    };
    let format: u32 = field("format")?
        .parse()
        .map_err(|_| format!("its file `node` has no number for `format`; {DAMAGED}"))?;
    if format != FORMAT {
        return Err(format!(
            "it was written in format {format} by a newer version, this one reads format {FORMAT}; start it with that version"
        ));
    }
    let bad = |name: &str| format!("its file `node` has a `{name}` that can't be read; {DAMAGED}");
    let client = all().find(|(key, _)| *key == "client").map(|(_, value)| {
        let (listen, advertise) = value.split_once(' ').ok_or_else(|| bad("client"))?;
        Ok::<_, String>((listen.parse().map_err(|_| bad("client"))?, advertise.to_owned()))
    });
    let mut members = Vec::new();
    for (_, value) in all().filter(|(key, _)| *key == "member") {
        let (id, addr) = value.split_once(' ').ok_or_else(|| bad("member"))?;
        members.push((id.parse().map_err(|_| bad("member"))?, addr.to_owned()));
    }
    let node = Remembered {
        cluster: field("cluster")?.parse().map_err(|_| bad("cluster"))?,
        node: field("node")?.parse().map_err(|_| bad("node"))?,
        name: field("name")?.to_owned(),
        listen_addr: field("listen")?.parse().map_err(|_| bad("listen"))?,
        advertise_addr: field("advertise")?.to_owned(),
        client: client.transpose()?,
        members,
    };
    field("checksum").map(|_| node)
}

const DAMAGED: &str = "remove this member from the cluster, empty the directory and let it join anew";

/// Checks a name before anything is made.
pub(super) fn check_name(name: &str) -> Result<(), Refusal> {
    let fit = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > limits::MAX_NAME_BYTES || !name.chars().all(fit) {
        let why = format!("{name:?}: give 1 to {} letters, digits, `-`, `_` or `.`", limits::MAX_NAME_BYTES);
        return Err(Refusal::invalid("name", why));
    }
    Ok(())
}

/// The address that others are told: the given one, the one listened on, or the machine's only one.
pub(super) fn advertised(listen: SocketAddr, advertise: Option<&str>) -> Result<String, Refusal> {
    if let Some(addr) = advertise {
        return check_addr(addr).map(|()| addr.to_owned());
    }
    if !listen.ip().is_unspecified() {
        return Ok(listen.to_string());
    }
    let found: Vec<String> = machine_addresses(listen).iter().map(ToString::to_string).collect();
    if let [only] = &machine_addresses(listen)[..] {
        return Ok(SocketAddr::new(*only, listen.port()).to_string());
    }
    let why = if found.is_empty() {
        "this machine has no address that others could dial".to_owned()
    } else {
        format!("this machine has several: {}", found.join(", "))
    };
    Err(Refusal::invalid(
        "advertise address",
        format!(
            "listening on {listen} names no single address, and {why}; say which one others dial with \
             --advertise-addr HOST:PORT"
        ),
    ))
}

/// Where HTTP clients are told to go: the given address, the one listened on, or the port that is
/// listened on at the host that `addr` names.
pub(super) fn advertised_client(
    listen: SocketAddr,
    advertise: Option<&str>,
    addr: &str,
) -> Result<String, Refusal> {
    if let Some(given) = advertise {
        return check_addr(given).map(|()| given.to_owned());
    }
    if !listen.ip().is_unspecified() {
        return Ok(listen.to_string());
    }
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    Ok(format!("{host}:{}", listen.port()))
}

pub(super) fn check_addr(addr: &str) -> Result<(), Refusal> {
    let port = addr
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
        .and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(port) if port != 0 && addr.len() <= limits::MAX_ADDR_BYTES => Ok(()),
        _ => Err(Refusal::invalid(
            "advertise address",
            format!("{addr:?} is not HOST:PORT with a port from 1 to 65535"),
        )),
    }
}

/// Checks where HTTP clients are sent: nowhere, or `https://host:port`.
pub(super) fn check_client_url(url: &str) -> Result<(), Refusal> {
    match url.strip_prefix("https://") {
        Some(addr) => check_addr(addr),
        None if url.is_empty() => Ok(()),
        None => Err(Refusal::invalid("client URL", format!("{url:?} is not https://HOST:PORT"))),
    }
}

/// The addresses of this machine that others may reach, of the family listened on.
fn machine_addresses(listen: SocketAddr) -> Vec<IpAddr> {
    let Ok(interfaces) = if_addrs::get_if_addrs() else {
        return Vec::new();
    };
    let outward = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        // An IPv6 socket on any address may serve both families; link-local ones are of no use.
        IpAddr::V6(ip) => listen.is_ipv6() && !ip.is_loopback() && (ip.segments()[0] & 0xffc0) != 0xfe80,
    };
    interfaces.iter().map(if_addrs::Interface::ip).filter(outward).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Remembered {
        Remembered {
            cluster: ClusterId(7),
            node: NodeId(9),
            name: "m1".into(),
            listen_addr: "127.0.0.1:2380".parse().unwrap(),
            advertise_addr: "host:2380".into(),
            client: Some(("0.0.0.0:2379".parse().unwrap(), "host:2379".into())),
            members: vec![(NodeId(9), "host:2380".into()), (NodeId(10), "other:1".into())],
        }
    }

    #[test]
    fn the_node_file_reads_back() {
        assert_eq!(parse(&format(&sample())).unwrap(), sample());
        let without = Remembered { client: None, ..sample() };
        assert_eq!(parse(&format(&without)).unwrap(), without);
    }

    #[test]
    fn a_newer_format_is_named() {
        let text = format(&sample()).replace("format = 1", "format = 2");
        assert!(parse(&text).unwrap_err().contains("damaged") && !node_is_whole(text.as_bytes()));
        let text = &text[..text.rfind(CHECKSUM).unwrap()];
        assert!(node_is_whole(text.as_bytes()));
        let why = parse(text).unwrap_err();
        assert!(why.contains("format 2") && why.contains("newer version"), "{why}");
    }

    #[test]
    fn damage_is_named() {
        for field in ["cluster", "node", "listen", "format", "advertise", "name"] {
            let text: String = format(&sample())
                .lines()
                .filter(|line| !line.starts_with(field) && !line.starts_with(CHECKSUM))
                .map(|l| format!("{l}\n"))
                .collect();
            assert!(parse(&text).unwrap_err().contains(field), "{field}");
        }
    }

    #[test]
    fn every_flipped_bit_of_the_node_file_is_noticed() {
        let text = format(&sample());
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let parsed = String::from_utf8(bytes.clone()).map(|text| parse(&text).is_ok());
            assert!(!parsed.unwrap_or(false) && !node_is_whole(&bytes), "bit {bit}");
        }
    }

    #[test]
    fn addresses_must_be_told() {
        let check = |listen: &str, advertise: Option<&str>, expect: Result<&str, &str>| {
            let got = advertised(listen.parse().unwrap(), advertise);
            match expect {
                Ok(addr) => assert_eq!(got.unwrap(), addr),
                Err(part) => assert!(got.unwrap_err().to_string().contains(part)),
            }
        };
        check("127.0.0.1:5", None, Ok("127.0.0.1:5"));
        check("0.0.0.0:5", Some("a.example:9"), Ok("a.example:9"));
        check("127.0.0.1:5", Some("nohost"), Err("HOST:PORT"));
        check("127.0.0.1:5", Some("h:0"), Err("HOST:PORT"));
        check("127.0.0.1:5", Some(":80"), Err("HOST:PORT"));
    }
}
