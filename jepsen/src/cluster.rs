//! Members as real processes on loopback, each with its own data directory.
//!
//! Only processes started here are ever signalled: each through the handle of a child that has not
//! been waited for, so that its id can't be another's. Dropping the cluster ends them, also when the
//! stack unwinds.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft_kv::client::{Handle, credentials_of};
use raft_kv::pki::{Credentials, NodeKey};
use raft_kv::types::{MemberRole, Role};
use rustix::process::{Pid, Signal, kill_process};

use crate::disk::Disk;
use crate::network::{Network, PORT};

/// A member that does not serve after this has failed to start.
const START_LIMIT: Duration = Duration::from_secs(60);
/// A member that has not ended this long after it was asked to is killed.
const STOP_LIMIT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(5);
/// Lines of a member's log that are shown when it fails.
const LOG_TAIL: usize = 15;

/// One member.
#[derive(Debug)]
pub struct Member {
    /// `n1`, `n2` …
    pub name: String,
    /// Where its data is.
    pub data_dir: PathBuf,
    /// `host:port` for peers and clients.
    pub addr: String,
    /// `host:port` for etcd's clients.
    pub etcd_addr: String,
    /// Its id in the cluster, hexadecimal.
    pub id: String,
    child: Option<Child>,
    /// A disk of its own, where the run cuts the power.
    disk: Option<Disk>,
}

impl Member {
    /// Its process, if one was started and not ended from here.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether a process was started for it that was not ended from here.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    fn signal(&mut self, signal: Signal) -> Result<(), String> {
        let name = &self.name;
        let child = self.child.as_mut().ok_or_else(|| format!("{name} does not run"))?;
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!("{name} has ended by itself ({status})"));
        }
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or("no process id")?;
        kill_process(pid, signal).map_err(|error| format!("{name}: {error}"))
    }
}

/// The cluster. Dropping it ends its processes.
#[derive(Debug)]
pub struct Cluster {
    binary: PathBuf,
    dir: PathBuf,
    members: Vec<Member>,
    /// Whether members open the door for etcd's clients.
    etcd: bool,
    /// Whether each member has a disk of its own.
    disks: bool,
    /// Where each member has a namespace of its own.
    network: Option<Network>,
    /// A client's own, once there is one: a member's would go with the member's id.
    credentials: Option<Credentials>,
}

/// What members have of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// A disk, whose power can be cut.
    pub disks: bool,
    /// A network namespace, whose directions can be cut; the process is inside (see
    /// [`network::enter`](crate::network::enter)).
    pub network: bool,
}

impl Cluster {
    /// Makes a cluster of `nodes` members in `dir`, which must be empty; returns when all of them
    /// vote.
    ///
    /// # Errors
    /// A member that does not start, with the end of its log.
    pub async fn start(binary: &Path, dir: &Path, nodes: usize) -> Result<Self, String> {
        Self::start_cluster(binary, dir, nodes, false, Place::default()).await
    }

    /// The same with what members need of their own for the faults to come.
    ///
    /// # Errors
    /// See [`start`](Self::start); what the machine lacks.
    pub async fn start_in(binary: &Path, dir: &Path, nodes: usize, place: Place) -> Result<Self, String> {
        Self::start_cluster(binary, dir, nodes, false, place).await
    }

    /// The same with every member's door for etcd's clients open, each on a port of its own.
    ///
    /// # Errors
    /// See [`start`](Self::start).
    pub async fn start_with_etcd(binary: &Path, dir: &Path, nodes: usize) -> Result<Self, String> {
        Self::start_cluster(binary, dir, nodes, true, Place::default()).await
    }

    async fn start_cluster(
        binary: &Path,
        dir: &Path,
        nodes: usize,
        etcd: bool,
        place: Place,
    ) -> Result<Self, String> {
        if !binary.is_file() {
            return Err(format!("there is no binary {}; build raft-kv-server first", binary.display()));
        }
        fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let network = place.network.then(Network::new).transpose()?;
        let mut cluster = Self {
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            members: Vec::new(),
            etcd,
            disks: place.disks,
            network,
            credentials: None,
        };
        cluster.add(&["init"])?;
        let handle = cluster.connect(&[0]).await?;
        if nodes > 1 {
            let token = handle.join_token(Role::Manager).await.map_err(|error| error.to_string())?;
            for _ in 1..nodes {
                cluster.join(&token)?;
            }
        }
        cluster.await_voters(&handle).await?;
        let key = NodeKey::generate();
        let issued = handle.issue_certificate("jepsen", Role::Client, key.request().into()).await;
        let (chain, roots) = issued.map_err(|error| error.to_string())?;
        let der = |all: &[Bytes]| all.iter().map(|one| one.to_vec()).collect();
        cluster.credentials = Some(Credentials {
            chain: der(&chain),
            key: key.der().to_vec(),
            roots: der(&roots),
            ..Credentials::default()
        });
        Ok(cluster)
    }

    /// Starts one more member; returns its place. It is a learner until it has caught up.
    ///
    /// # Errors
    /// See [`start`](Self::start).
    pub fn join(&mut self, token: &str) -> Result<usize, String> {
        let seed = self.members[0].addr.clone();
        self.add(&["join", &seed, "--token", token])
    }

    /// Waits until every member votes.
    ///
    /// # Errors
    /// Not within a minute.
    pub async fn await_voters(&self, handle: &Handle) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let answer = handle.members().await;
            let members = answer.as_ref().map(|(_, members)| members.as_slice()).unwrap_or_default();
            let voters = members.iter().filter(|member| member.role == MemberRole::Voter).count();
            if voters == self.members.len() {
                return Ok(());
            }
            if began.elapsed() > START_LIMIT {
                return Err(format!("{voters} of {} members vote: {answer:?}", self.members.len()));
            }
            tokio::time::sleep(LOOK * 4).await;
        }
    }

    /// The members.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// What the cluster's clients need: a certificate, and every member's name, id and address.
    ///
    /// # Errors
    /// The first member's certificate can't be read.
    pub fn directory(&self) -> Result<Directory, String> {
        let credentials = match &self.credentials {
            Some(credentials) => credentials.clone(),
            None => credentials_of(&self.members[0].data_dir).map_err(|error| error.to_string())?.0,
        };
        let members = self.members.iter();
        let members = members.map(|m| (m.name.clone(), m.id.clone(), m.addr.clone())).collect();
        Ok(Directory { credentials, members })
    }

    /// A handle on these members, the first one first.
    ///
    /// # Errors
    /// None of them answers.
    pub async fn connect(&self, members: &[usize]) -> Result<Handle, String> {
        self.directory()?.connect(members).await
    }

    /// SIGKILL, as a crash of the process.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self, index: usize) -> Result<(), String> {
        let member = &mut self.members[index];
        member.signal(Signal::KILL)?;
        let mut child = member.child.take().ok_or("the member does not run")?;
        child.wait().map(drop).map_err(|error| error.to_string())
    }

    /// Cuts the power of members, all at once: what their disks were not told to keep is gone.
    ///
    /// # Errors
    /// One has no disk of its own, or has ended before.
    pub fn cut_power(&mut self, members: &[usize]) -> Result<(), String> {
        for &index in members {
            let member = &mut self.members[index];
            if let Some(Ok(Some(status))) = member.child.as_mut().map(Child::try_wait) {
                return Err(format!("{} has ended by itself ({status})", member.name));
            }
            member.disk.as_ref().ok_or_else(|| format!("{} has no disk of its own", member.name))?.cut()?;
        }
        for &index in members {
            // It may have met the end of its disk and gone first.
            if let Some(mut child) = self.members[index].child.take() {
                let _ = child.kill();
                child.wait().map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// Gives the disks of members their power again; what runs on them is not started.
    ///
    /// # Errors
    /// One is still in use, or can't be read any more.
    pub fn give_power(&mut self, members: &[usize]) -> Result<(), String> {
        members
            .iter()
            .filter_map(|&index| self.members.get_mut(index)?.disk.as_mut().map(Disk::again))
            .collect::<Vec<_>>()
            .into_iter()
            .collect()
    }

    /// The network between the members.
    ///
    /// # Errors
    /// They share the machine's.
    pub fn network(&mut self) -> Result<&mut Network, String> {
        self.network.as_mut().ok_or_else(|| "the members have no network of their own".to_owned())
    }

    /// SIGSTOP: the process stands still and its sockets stay open.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&mut self, index: usize) -> Result<(), String> {
        self.members[index].signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&mut self, index: usize) -> Result<(), String> {
        self.members[index].signal(Signal::CONT)
    }

    /// SIGTERM, and waits for the clean end.
    ///
    /// # Errors
    /// It does not run, or does not end by itself, or not with success.
    pub fn stop(&mut self, index: usize) -> Result<ExitStatus, String> {
        let member = &mut self.members[index];
        member.signal(Signal::TERM)?;
        let mut child = member.child.take().ok_or("the member does not run")?;
        let began = Instant::now();
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(status),
                Ok(Some(status)) => return Err(format!("{} stopped with {status}", member.name)),
                Ok(None) if began.elapsed() < STOP_LIMIT => std::thread::sleep(LOOK),
                _ => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!("{} did not stop in {} s", member.name, STOP_LIMIT.as_secs()));
                }
            }
        }
    }

    /// Starts members again from their data, all at once, and waits until they serve.
    ///
    /// # Errors
    /// One does not serve, with the end of its log.
    pub fn restart(&mut self, members: &[usize]) -> Result<(), String> {
        for &index in members {
            let mut command = self.command(index, &["run"]);
            command.arg("--data-dir").arg(&self.members[index].data_dir).arg("--json");
            self.launch(index, command)?;
        }
        members.iter().try_for_each(|&index| self.await_serving(index))
    }

    /// Members whose process has ended without being told to, with how.
    pub fn fallen(&mut self) -> Vec<String> {
        let mut fallen = Vec::new();
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            let ended = member.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                let (name, tail) = (&self.members[index].name, self.tail(index));
                fallen.push(format!("{name} ended by itself ({status}){tail}"));
            }
        }
        fallen
    }

    fn command(&self, index: usize, words: &[&str]) -> Command {
        let mut command = match &self.network {
            Some(network) => network.command(index, self.binary.as_os_str()),
            None => Command::new(&self.binary),
        };
        command.args(words).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("RAFT_KV_") {
                command.env_remove(name);
            }
        }
        command
    }

    fn add(&mut self, words: &[&str]) -> Result<usize, String> {
        let name = format!("n{}", self.members.len() + 1);
        let addr = match &mut self.network {
            Some(network) => format!("{}:{PORT}", network.add()?),
            None => free_addr()?.to_string(),
        };
        let etcd_addr = if self.etcd { free_tcp_addr()?.to_string() } else { "off".to_owned() };
        let disk = self.disks.then(|| {
            Disk::new(&self.dir.join(format!("{name}.ext4")), &self.dir.join(format!("{name}-disk")))
        });
        let disk = disk.transpose()?;
        let data_dir = disk.as_ref().map_or(self.dir.as_path(), Disk::path).join(&name);
        let mut command = self.command(self.members.len(), words);
        command.arg("--data-dir").arg(&data_dir);
        command.args(["--name", &name, "--listen-addr", &addr, "--json"]);
        command.args(["--etcd-addr", &etcd_addr]);
        let index = self.members.len();
        self.members.push(Member { name, data_dir, addr, etcd_addr, id: String::new(), child: None, disk });
        self.launch(index, command)?;
        self.await_serving(index)?;
        Ok(index)
    }

    fn launch(&mut self, index: usize, mut command: Command) -> Result<(), String> {
        if self.members[index].runs() {
            return Err(format!("{} runs already", self.members[index].name));
        }
        let (out, log) = self.files(index);
        // What an earlier process said is no answer of this one; its log is kept.
        let out = File::create(&out).map_err(|error| format!("{}: {error}", out.display()))?;
        let log = File::options().create(true).append(true).open(&log);
        let log = log.map_err(|error| format!("the log of {}: {error}", self.members[index].name))?;
        let child = command.stdout(out).stderr(log).spawn();
        let child = child.map_err(|error| format!("{}: {error}", self.binary.display()))?;
        self.members[index].child = Some(child);
        Ok(())
    }

    /// Waits until a member that was started serves under another id than `old`: it was taken in again.
    ///
    /// # Errors
    /// It does not within a minute.
    pub fn await_new_id(&mut self, index: usize, old: &str) -> Result<(), String> {
        let began = Instant::now();
        let (out, _) = self.files(index);
        loop {
            let said = fs::read_to_string(&out).unwrap_or_default();
            let ids = said.lines().filter_map(|line| serving_id(&format!("{line}\n")));
            if let Some(id) = ids.rev().find(|id| id != old) {
                self.members[index].id = id;
                return Ok(());
            }
            if began.elapsed() > START_LIMIT {
                return Err(format!(
                    "{} still has its id {old}{}",
                    self.members[index].name,
                    self.tail(index)
                ));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn await_serving(&mut self, index: usize) -> Result<(), String> {
        let began = Instant::now();
        let (out, _) = self.files(index);
        loop {
            let said = fs::read_to_string(&out).unwrap_or_default();
            if let Some(id) = serving_id(&said) {
                self.members[index].id = id;
                return Ok(());
            }
            let name = format!("{} ", self.members[index].name);
            if let Some(fallen) = self.fallen().into_iter().find(|line| line.starts_with(&name)) {
                return Err(fallen);
            }
            if began.elapsed() > START_LIMIT {
                let (name, tail) = (&self.members[index].name, self.tail(index));
                return Err(format!("{name} does not serve in {} s{tail}", START_LIMIT.as_secs()));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn files(&self, index: usize) -> (PathBuf, PathBuf) {
        let name = &self.members[index].name;
        (self.dir.join(format!("{name}.out")), self.dir.join(format!("{name}.log")))
    }

    fn tail(&self, index: usize) -> String {
        let (_, log) = self.files(index);
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(LOG_TAIL);
        format!("; {} ends with:\n  {}", log.display(), lines[from..].join("\n  "))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.members.iter_mut().filter_map(|member| member.child.as_mut()) {
            let _ = child.kill();
        }
        for child in self.members.iter_mut().filter_map(|member| member.child.as_mut()) {
            let _ = child.wait();
        }
    }
}

/// How clients find and recognise the members; does not change while a cluster runs.
#[derive(Clone, Debug)]
pub struct Directory {
    credentials: Credentials,
    /// (name, id in hexadecimal, `host:port`).
    members: Vec<(String, String, String)>,
}

impl Directory {
    /// How many members there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// A member's name by its place.
    pub fn name(&self, index: usize) -> &str {
        &self.members[index].0
    }

    /// A member's place by its id.
    pub fn find(&self, id: raft_kv::types::NodeId) -> Option<usize> {
        let id = id.to_string();
        self.members.iter().position(|(_, known, _)| *known == id)
    }

    /// Every member, beginning with `first`.
    pub fn all_from(&self, first: usize) -> Vec<usize> {
        (0..self.len()).map(|step| (first + step) % self.len()).collect()
    }

    /// A handle on these members, the first one first.
    ///
    /// # Errors
    /// None of them answers.
    pub async fn connect(&self, members: &[usize]) -> Result<Handle, String> {
        let endpoints: Vec<String> = members.iter().map(|&index| self.members[index].2.clone()).collect();
        Handle::connect(&endpoints, self.credentials.clone()).await.map_err(|error| error.to_string())
    }
}

/// The id in the line with which a member says that it serves, once that line is whole.
fn serving_id(said: &str) -> Option<String> {
    let whole = said.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let mut values = whole.filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let serving = values.find(|value| value["event"] == "serving")?;
    serving["id"].as_str().map(str::to_owned)
}

fn free_addr() -> Result<SocketAddr, String> {
    UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).map_err(|error| error.to_string())
}

fn free_tcp_addr() -> Result<SocketAddr, String> {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serving_line_is_read_once_it_is_whole() {
        let check = |said: &str, expect: Option<&str>| assert_eq!(serving_id(said).as_deref(), expect);
        check("", None);
        check("{\"event\":\"serving\",\"id\":\"0a\"}", None);
        check("{\"event\":\"other\"}\n{\"event\":\"serving\",\"id\":\"0a\"}\n", Some("0a"));
    }

    fn asleep(dir: &Path) -> Cluster {
        let mut command = Command::new("sleep");
        command.arg("60");
        let mut cluster = Cluster {
            binary: "sleep".into(),
            dir: dir.to_owned(),
            members: Vec::new(),
            etcd: false,
            disks: false,
            network: None,
            credentials: None,
        };
        let (name, data_dir) = ("n1".to_owned(), dir.join("n1"));
        cluster.members.push(Member {
            name,
            data_dir,
            addr: String::new(),
            etcd_addr: String::new(),
            id: String::new(),
            child: None,
            disk: None,
        });
        cluster.launch(0, command).unwrap();
        cluster
    }

    fn lives(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn a_dropped_cluster_leaves_no_process_behind_not_even_a_paused_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = asleep(dir.path());
        let pid = cluster.members()[0].pid().unwrap();
        cluster.pause(0).unwrap();
        assert!(lives(pid));
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _cluster = cluster;
            panic!("a run that fails");
        }));
        assert!(unwound.is_err() && !lives(pid));
    }

    #[test]
    fn who_was_killed_is_not_signalled_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = asleep(dir.path());
        cluster.kill(0).unwrap();
        assert!(cluster.kill(0).unwrap_err().contains("does not run"));
        assert!(cluster.fallen().is_empty());
    }
}
