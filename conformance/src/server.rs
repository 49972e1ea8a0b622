//! Servers as processes: Debian's etcd, and raft-kv. Each is ended by its own handle when dropped,
//! also when the stack unwinds.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use raft_kv_jepsen::cluster::Cluster;
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// A server that does not answer after this has failed to start.
const START_LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// The three files that a client needs.
#[derive(Clone, Debug)]
pub struct Files {
    /// The root.
    pub ca: PathBuf,
    /// The client's chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Where a server can be reached.
#[derive(Clone, Debug)]
pub struct Place {
    /// `host:port` of every member.
    pub addrs: Vec<String>,
    /// TLS, if the server has it.
    pub files: Option<Files>,
}

impl Place {
    /// A connection to a member.
    ///
    /// # Errors
    /// A file can't be read, or nobody answers.
    pub async fn connect(&self, member: usize) -> Result<Channel, String> {
        let scheme = if self.files.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{}", self.addrs[member]))
            .map_err(|error| error.to_string())?
            .connect_timeout(Duration::from_secs(2));
        let endpoint = match &self.files {
            None => endpoint,
            Some(files) => {
                let read = |path: &Path| fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
                let config = ClientTlsConfig::new()
                    .ca_certificate(Certificate::from_pem(read(&files.ca)?))
                    .identity(Identity::from_pem(read(&files.cert)?, read(&files.key)?));
                endpoint.tls_config(config).map_err(|error| error.to_string())?
            }
        };
        let began = Instant::now();
        loop {
            match endpoint.connect().await {
                Ok(channel) => return Ok(channel),
                Err(error) if began.elapsed() > START_LIMIT => return Err(format!("{:?}", error)),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

/// A running server.
#[derive(Debug)]
pub enum Server {
    /// One etcd.
    Etcd(Etcd),
    /// A cluster of raft-kv.
    RaftKv(Box<RaftKv>),
}

impl Server {
    /// Where it can be reached.
    pub fn place(&self) -> &Place {
        match self {
            Self::Etcd(etcd) => &etcd.place,
            Self::RaftKv(cluster) => &cluster.place,
        }
    }

    /// How it ended, if it did: what answers at its address is then another's server.
    pub fn fallen(&mut self) -> Option<String> {
        match self {
            Self::Etcd(etcd) => {
                let status = etcd.child.try_wait().ok().flatten()?;
                Some(format!("etcd ended by itself ({status}): {}", self.log()))
            }
            Self::RaftKv(cluster) => cluster.cluster.fallen().into_iter().next(),
        }
    }

    /// Its log's end.
    pub fn log(&self) -> String {
        match self {
            Self::Etcd(etcd) => fs::read_to_string(etcd.dir.path().join("log")).unwrap_or_default(),
            Self::RaftKv(cluster) => {
                fs::read_to_string(cluster.dir.path().join("cluster/n1.log")).unwrap_or_default()
            }
        }
    }
}

/// Where fast servers put their data: memory if the machine has such a folder.
///
/// # Errors
/// No folder can be made.
pub fn scratch(prefix: &str) -> Result<TempDir, String> {
    let memory = Path::new("/dev/shm");
    let builder = tempfile::Builder::new().prefix(prefix).to_owned();
    let made = if memory.is_dir() { builder.tempdir_in(memory) } else { builder.tempdir() };
    made.map_err(|error| error.to_string())
}

/// One member of Debian's etcd.
#[derive(Debug)]
pub struct Etcd {
    child: Child,
    place: Place,
    dir: TempDir,
}

impl Etcd {
    /// Starts one, without data. With `files` it speaks TLS and asks clients for certificates.
    ///
    /// # Errors
    /// There is no `etcd`, or it does not start.
    pub fn start(files: Option<Files>) -> Result<Self, String> {
        let dir = scratch("conformance-etcd-")?;
        let (client, peer) = (free_port()?, free_port()?);
        let scheme = if files.is_some() { "https" } else { "http" };
        let (client_url, peer_url) =
            (format!("{scheme}://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let log = File::create(dir.path().join("log")).map_err(|error| error.to_string())?;
        let mut command = Command::new("etcd");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD_") {
                command.env_remove(name);
            }
        }
        command.arg("--data-dir").arg(dir.path().join("data"));
        command.args(["--name", "n1", "--bcrypt-cost", "4", "--logger", "zap", "--log-level", "error"]);
        command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
        command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
        command.arg("--initial-cluster").arg(format!("n1={peer_url}"));
        if let Some(files) = &files {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&files.ca);
            command.arg("--cert-file").arg(&files.cert).arg("--key-file").arg(&files.key);
        }
        let second = log.try_clone().map_err(|error| error.to_string())?;
        let child = command.stdin(Stdio::null()).stdout(second).stderr(log).spawn();
        let child = child.map_err(|error| format!("etcd (Debian's etcd-server): {error}"))?;
        Ok(Self { child, place: Place { addrs: vec![format!("127.0.0.1:{client}")], files }, dir })
    }

    /// What its clients show, where that is not the server's own certificate.
    pub fn use_client_files(&mut self, files: Option<Files>) {
        self.place.files = files;
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A raft-kv cluster with its door for etcd's clients.
#[derive(Debug)]
pub struct RaftKv {
    /// The processes.
    pub cluster: Cluster,
    /// Where the doors are.
    pub place: Place,
    /// Holds the data; removed at the end.
    pub dir: TempDir,
}

impl RaftKv {
    /// Starts `nodes` members in memory and issues one client certificate, named `root`.
    ///
    /// # Errors
    /// A member does not start.
    pub async fn start(binary: &Path, nodes: usize) -> Result<Self, String> {
        let dir = scratch("conformance-raft-kv-")?;
        let cluster = Cluster::start_with_etcd(binary, &dir.path().join("cluster"), nodes).await?;
        let addrs = cluster.members().iter().map(|member| member.etcd_addr.clone()).collect();
        let files = issue(binary, &cluster, dir.path(), "root")?;
        Ok(Self { cluster, place: Place { addrs, files: Some(files) }, dir })
    }

    /// A member's own certificate, which another server on this machine may show as well.
    pub fn member_files(&self) -> Files {
        let dir = self.cluster.members()[0].data_dir.join("cert");
        Files { ca: dir.join("cacert.pem"), cert: dir.join("cert.pem"), key: dir.join("key.pem") }
    }

    /// A client certificate named `name`.
    ///
    /// # Errors
    /// The command fails.
    pub fn issue(&self, binary: &Path, name: &str) -> Result<Files, String> {
        issue(binary, &self.cluster, self.dir.path(), name)
    }
}

fn issue(binary: &Path, cluster: &Cluster, dir: &Path, name: &str) -> Result<Files, String> {
    let out = dir.join(format!("cert-{name}"));
    let mut command = Command::new(binary);
    command.args(["cert", "--data-dir"]).arg(&cluster.members()[0].data_dir);
    command.args(["issue", name, "--out"]).arg(&out);
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(Files { ca: out.join("cacert.pem"), cert: out.join("cert.pem"), key: out.join("key.pem") })
}

/// A port that was free a moment ago.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16, String> {
    /// What was handed out and may not be bound yet.
    static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    for _ in 0..1000 {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        let port = listener.local_addr().map_err(|error| error.to_string())?.port();
        if TAKEN.lock().insert(port) {
            return Ok(port);
        }
    }
    Err("no port is free".to_owned())
}
