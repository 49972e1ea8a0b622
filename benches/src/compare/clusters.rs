//! Three members of one server as real processes on loopback, with TLS both ways and their data on
//! the disk that is meant. What was started is ended when the cluster is dropped.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use etcd_api::etcdserverpb::MemberAddRequest;
use etcd_api::etcdserverpb::cluster_client::ClusterClient;
use raft_kv::types::Role;
use raft_kv_jepsen::cluster::Cluster as Members;
use raft_kv_server::foreign::{Place, channel, tls_config};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use rustls::ClientConfig;

use crate::host;

/// Members of each cluster.
pub const MEMBERS: usize = 3;

/// A server that is measured.
pub trait Cluster {
    /// Its name in tables.
    fn name(&self) -> String;
    /// Where clients reach its members.
    fn endpoints(&self) -> &[Place];
    /// How clients reach them.
    fn tls(&self) -> Arc<ClientConfig>;
    /// The members' processes.
    fn pids(&self) -> Vec<u32>;

    /// Lets the members run, or stops them where they are, so that they take nothing from others.
    ///
    /// # Errors
    /// A member that has ended.
    fn run(&self, runs: bool) -> Result<(), String> {
        let signal = if runs { Signal::CONT } else { Signal::STOP };
        for id in self.pids() {
            let pid = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or("no process id")?;
            kill_process(pid, signal).map_err(|error| format!("{} {id}: {error}", self.name()))?;
        }
        Ok(())
    }

    /// Processor time of all members so far.
    fn processor_time(&self) -> Duration {
        self.pids().into_iter().map(host::processor_time_of).sum()
    }

    /// Resident memory of each member, in bytes.
    fn resident(&self) -> Vec<u64> {
        self.pids().into_iter().map(|pid| host::resident_bytes(pid).unwrap_or(0)).collect()
    }

    /// Has one more member with an empty data directory join, and says where clients reach it, as soon as its process
    /// runs; what it still lacks is its own affair.
    fn join(&mut self) -> impl Future<Output = Result<Place, String>>
    where
        Self: Sized;
}

/// Debian's etcd.
pub struct Etcd {
    name: String,
    dir: PathBuf,
    /// `name=url` of each member, for its peers.
    members: Vec<String>,
    children: Vec<Child>,
    endpoints: Vec<Place>,
    tls: Arc<ClientConfig>,
}

fn free_url() -> Result<String, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    Ok(format!("https://{}", listener.local_addr().map_err(|error| error.to_string())?))
}

/// A member of a cluster of `members` with its data in `dir`.
fn launch(
    dir: &Path,
    number: usize,
    (client, peer): (&str, &str),
    members: &[String],
    state: &str,
) -> Result<Child, String> {
    let file = |name: &str| dir.join(name);
    let mut command = Command::new("etcd");
    command.arg("--name").arg(format!("n{number}")).arg("--data-dir").arg(file(&format!("n{number}")));
    command.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
    command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
    command.args(["--initial-cluster", &members.join(","), "--initial-cluster-state", state]);
    // As much room as ours has.
    command.args(["--quota-backend-bytes", "8589934592", "--log-level", "warn"]);
    for (side, asks) in [("", "--client-cert-auth"), ("peer-", "--peer-client-cert-auth")] {
        command.arg(asks).arg(format!("--{side}trusted-ca-file")).arg(file("ca.pem"));
        command.arg(format!("--{side}cert-file")).arg(file("both.pem"));
        command.arg(format!("--{side}key-file")).arg(file("both-key.pem"));
    }
    let log = File::create(file(&format!("n{number}.log"))).map_err(|error| error.to_string())?;
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
    child.map_err(|error| format!("etcd: {error}; install Debian's etcd-server"))
}

impl Etcd {
    /// Starts three members with their data in `dir`, which must be empty.
    ///
    /// # Errors
    /// What can't be started or written.
    pub fn start(name: &str, dir: &Path) -> Result<Self, String> {
        fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        certificates(dir)?;
        let urls =
            (0..MEMBERS).map(|_| Ok((free_url()?, free_url()?))).collect::<Result<Vec<_>, String>>()?;
        let members: Vec<String> =
            urls.iter().enumerate().map(|(n, (_, peer))| format!("n{n}={peer}")).collect();
        let file = |name: &str| dir.join(name);
        let mut children = Vec::new();
        for (n, (client, peer)) in urls.iter().enumerate() {
            children.push(launch(dir, n, (client, peer), &members, "new")?);
        }
        let endpoints =
            urls.iter().map(|(client, _)| Place::parse(client, true)).collect::<Result<_, _>>()?;
        let (cert, key) = (file("both.pem"), file("both-key.pem"));
        let tls = tls_config(&file("ca.pem"), Some((&cert, &key)))?;
        Ok(Self { name: name.to_owned(), dir: dir.to_owned(), members, children, endpoints, tls })
    }
}

impl Cluster for Etcd {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn endpoints(&self) -> &[Place] {
        &self.endpoints
    }

    fn tls(&self) -> Arc<ClientConfig> {
        self.tls.clone()
    }

    fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    async fn join(&mut self) -> Result<Place, String> {
        let (client, peer, number) = (free_url()?, free_url()?, self.members.len());
        let channel = channel(&self.endpoints, 0, Some(self.tls.clone()));
        let add = MemberAddRequest { peer_ur_ls: vec![peer.clone()], ..MemberAddRequest::default() };
        let added = ClusterClient::new(channel).member_add(add).await;
        added.map_err(|status| format!("member add: {status}"))?;
        self.members.push(format!("n{number}={peer}"));
        let child = launch(&self.dir, number, (&client, &peer), &self.members, "existing")?;
        self.children.push(child);
        Place::parse(&client, true)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A root, and one certificate for servers, peers and clients, as ours has them: P-256.
fn certificates(dir: &Path) -> Result<(), String> {
    let make = || -> Result<[(&str, String); 3], rcgen::Error> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "root");
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &root)?;
        Ok([("ca.pem", root.pem()), ("both.pem", leaf.pem()), ("both-key.pem", key.serialize_pem())])
    };
    for (name, text) in make().map_err(|error| error.to_string())? {
        fs::write(dir.join(name), text).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

/// Ours.
pub struct RaftKv {
    members: Members,
    endpoints: Vec<Place>,
    tls: Arc<ClientConfig>,
}

impl RaftKv {
    /// Starts three members of `binary` with their data in `dir`, which must be empty.
    ///
    /// # Errors
    /// What can't be started.
    pub async fn start(binary: &Path, dir: &Path) -> Result<Self, String> {
        let members = Members::start_with_etcd(binary, dir, MEMBERS).await?;
        let out = dir.join("certificate");
        let mut issue = Command::new(binary);
        issue.args(["cert", "issue", "bench"]).arg("--out").arg(&out);
        issue.arg("--data-dir").arg(&members.members()[0].data_dir);
        let issued = issue.output().map_err(|error| error.to_string())?;
        if !issued.status.success() {
            return Err(format!("cert issue: {}", String::from_utf8_lossy(&issued.stderr)));
        }
        let file = |name: &str| -> PathBuf { out.join(name) };
        let tls = tls_config(&file("cacert.pem"), Some((&file("cert.pem"), &file("key.pem"))))?;
        let endpoints = members
            .members()
            .iter()
            .map(|member| Place::parse(&member.etcd_addr, true))
            .collect::<Result<_, _>>()?;
        Ok(Self { members, endpoints, tls })
    }
}

impl Cluster for RaftKv {
    fn name(&self) -> String {
        "raft-kv".to_owned()
    }

    fn endpoints(&self) -> &[Place] {
        &self.endpoints
    }

    fn tls(&self) -> Arc<ClientConfig> {
        self.tls.clone()
    }

    fn pids(&self) -> Vec<u32> {
        self.members.members().iter().filter_map(raft_kv_jepsen::cluster::Member::pid).collect()
    }

    async fn join(&mut self) -> Result<Place, String> {
        let handle = self.members.connect(&[0]).await?;
        let token = handle.join_token(Role::Manager).await.map_err(|error| error.to_string())?;
        // It waits until the process says where it is.
        let joined = tokio::task::block_in_place(|| self.members.join(&token))?;
        Place::parse(&self.members.members()[joined].etcd_addr, true)
    }
}
