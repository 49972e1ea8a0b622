//! A cluster of real `raft-kv` processes on loopback: starts them, knows them, ends them.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::command::{Binary, Credentials, call};
use super::process::Running;
use super::record::{MemberRecord, Record};
use super::{STOP_PATIENCE, wait_for};

/// A member that does not serve after this has failed to start.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Learners are promoted by themselves, once they have caught up.
const PROMOTION_LIMIT: Duration = Duration::from_secs(60);
/// How often workers say that they are there. Three without a word are a worker's end: a tour should not have to
/// wait long for it, and a busy machine should not look like it.
const HEARTBEAT_MS: &str = "3000";
/// Lines of a member's log that are shown when it fails.
const LOG_TAIL: usize = 15;

/// The cluster and its processes. Dropping it ends them.
pub struct Cluster {
    /// The binary that all members run.
    pub binary: Binary,
    /// The example orchestrator, where its managers are to be the members.
    pub managers: Option<Binary>,
    dir: PathBuf,
    detached: bool,
    record: Record,
    running: Vec<Option<Running>>,
}

impl Cluster {
    /// Takes the directory: absent or empty for a new cluster, or one that `up` made and nothing uses.
    pub fn prepare(binary: &Path, dir: &Path, detached: bool) -> Result<Self, String> {
        if !binary.is_file() {
            return Err(format!("there is no binary {}", binary.display()));
        }
        let record = Record::read(dir)?.unwrap_or_default();
        if let Some(process) = record.processes().iter().find(|process| process.lives()) {
            return Err(format!(
                "a cluster runs in {0} (process {1}); `cargo xtask down --dir {0}` ends it",
                dir.display(),
                process.pid
            ));
        }
        fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        record.write(dir)?;
        let running = record.members.iter().map(|_| None).collect();
        Ok(Self {
            binary: Binary { path: binary.to_owned() },
            managers: None,
            dir: dir.to_owned(),
            detached,
            record,
            running,
        })
    }

    /// Starts `nodes` members, or those that were there before, until all of them vote and a client's
    /// certificate is made.
    pub fn start(&mut self, nodes: u64) -> Result<(), String> {
        if self.existed() {
            if self.record.members.len() as u64 != nodes {
                return Err(format!("{} holds {} members", self.dir.display(), self.record.members.len()));
            }
            return self.restart_all();
        }
        eprintln!("up: n1 makes the cluster");
        self.init()?;
        if nodes > 1 {
            let token = self.token()?;
            for _ in 1..nodes {
                let name = self.join(&token)?;
                eprintln!("up: {name} has joined");
            }
        }
        self.await_voters()?;
        self.issue_client()?;
        Ok(())
    }

    /// Whether the directory held a cluster before.
    pub fn existed(&self) -> bool {
        !self.record.members.is_empty() && self.credentials().key.exists()
    }

    /// Starts every member that was there before.
    pub fn restart_all(&mut self) -> Result<(), String> {
        // All at once: none of them serves before a quorum is there.
        for index in 0..self.record.members.len() {
            self.spawn_existing(index)?;
        }
        for index in 0..self.record.members.len() {
            self.await_serving(index)?;
        }
        self.await_voters()
    }

    /// Starts the first member, which makes the cluster.
    pub fn init(&mut self) -> Result<(), String> {
        self.spawn_new(&["init"]).map(drop)
    }

    /// A token with which another manager may join.
    pub fn token(&self) -> Result<String, String> {
        let answer =
            call(&mut self.binary.as_node(&self.record.members[0].data_dir, &["join-token", "manager"]))?;
        word(&answer, "token")
    }

    /// Starts one more member; returns its name.
    pub fn join(&mut self, token: &str) -> Result<String, String> {
        let seed = self.record.members[0].addr.clone();
        self.spawn_new(&["join", &seed, "--token", token])
    }

    /// Waits until every member votes.
    pub fn await_voters(&self) -> Result<(), String> {
        let wanted = self.record.members.len();
        let mut last = String::new();
        wait_for("all members vote", PROMOTION_LIMIT, || {
            let answer = call(&mut self.binary.as_node(&self.record.members[0].data_dir, &["member", "ls"]));
            last = format!("{answer:?}");
            Ok(answer.ok().filter(|answer| voters(answer) == wanted).map(drop))
        })
        .map_err(|why| format!("{why}; the last answer was {last}"))
    }

    /// Makes the certificate of a client with full rights.
    pub fn issue_client(&self) -> Result<(), String> {
        let out = self.dir.join("client");
        let mut command = self.binary.as_node(&self.record.members[0].data_dir, &["cert", "issue", "admin"]);
        call(command.arg("--out").arg(&out))?;
        let credentials = self.credentials();
        match [&credentials.cacert, &credentials.cert, &credentials.key]
            .into_iter()
            .find(|path| !path.exists())
        {
            None => Ok(()),
            Some(path) => Err(format!("cert issue did not write {}", path.display())),
        }
    }

    /// The client's certificate.
    pub fn credentials(&self) -> Credentials {
        let file = |name: &str| self.dir.join("client").join(name);
        Credentials { cacert: file("cacert.pem"), cert: file("cert.pem"), key: file("key.pem") }
    }

    /// The members, as recorded.
    pub fn members(&self) -> &[MemberRecord] {
        &self.record.members
    }

    /// The endpoints of all members but `without`.
    pub fn endpoints(&self, without: Option<usize>) -> Vec<&str> {
        let members = self.record.members.iter().enumerate();
        members.filter(|(index, _)| Some(*index) != without).map(|(_, member)| member.url.as_str()).collect()
    }

    /// Where etcd's clients reach the members.
    pub fn etcd_endpoints(&self) -> Vec<&str> {
        self.record.members.iter().map(|member| member.etcd_url.as_str()).collect()
    }

    /// A client's call to the given endpoints.
    pub fn call(&self, endpoints: &[&str], words: &[&str]) -> Result<Value, String> {
        call(&mut self.binary.as_client(&self.credentials(), endpoints, words))
    }

    /// Kills a member's process, as a crash does.
    pub fn kill(&mut self, index: usize) -> Result<(), String> {
        let mut running = self.running[index].take().ok_or("the member does not run")?;
        running.kill()?;
        self.record.members[index].process = None;
        self.record.write(&self.dir)
    }

    /// Starts a member that was there before.
    pub fn restart(&mut self, index: usize) -> Result<(), String> {
        self.spawn_existing(index)?;
        self.await_serving(index)
    }

    /// Names the members whose process has ended by itself.
    pub fn fallen(&mut self) -> Vec<String> {
        let members = self.record.members.iter().zip(&mut self.running);
        members
            .filter_map(|(member, running)| {
                let status = running.as_mut()?.ended()?;
                Some(format!("{} ended by itself ({status})", member.name))
            })
            .collect()
    }

    /// Stops all members; an error names those that did not stop cleanly.
    pub fn stop(&mut self) -> Result<(), String> {
        let mut wrong = vec![];
        for running in self.running.iter_mut().flatten() {
            running.ask_to_stop()?;
        }
        for (member, running) in self.record.members.iter_mut().zip(&mut self.running) {
            let Some(mut running) = running.take() else { continue };
            match running.wait(STOP_PATIENCE) {
                Ok(status) if status.success() => {}
                Ok(status) => wrong.push(format!("{}: {status}", member.name)),
                Err(why) => wrong.push(format!("{}: {why}", member.name)),
            }
            member.process = None;
        }
        self.record.write(&self.dir)?;
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }

    /// Lets the processes go on after this one.
    pub fn leave(mut self) {
        self.running.iter_mut().flatten().for_each(Running::stay);
    }

    /// The cluster as one JSON object, for scripts.
    pub fn describe(&self) -> Value {
        let credentials = self.credentials();
        let members: Vec<Value> = self
            .record
            .members
            .iter()
            .map(|member| {
                let mut value = member.value();
                if let Some(fields) = value.as_object_mut() {
                    fields.remove("start_time");
                }
                value
            })
            .collect();
        json!({
            "members": members,
            "cacert": credentials.cacert,
            "cert": credentials.cert,
            "key": credentials.key,
        })
    }

    /// Starts a member that is new, and waits until it serves; returns its name.
    fn spawn_new(&mut self, words: &[&str]) -> Result<String, String> {
        let name = format!("n{}", self.record.members.len() + 1);
        let addr = format!("127.0.0.1:{}", free_port()?);
        let data_dir = self.dir.join(&name);
        let command = self.new_member(words, &name, &addr, &data_dir)?;
        self.record.members.push(MemberRecord {
            id: String::new(),
            name: name.clone(),
            addr,
            url: String::new(),
            etcd_url: String::new(),
            data_dir,
            process: None,
        });
        self.running.push(None);
        let index = self.running.len() - 1;
        self.launch(index, &command)?;
        self.await_serving(index)?;
        Ok(name)
    }

    /// The command that starts a new member: `init`, or `join SEED --token TOKEN`; or a manager of the example.
    fn new_member(
        &self,
        words: &[&str],
        name: &str,
        addr: &str,
        data_dir: &Path,
    ) -> Result<std::process::Command, String> {
        let Some(managers) = &self.managers else {
            let mut command = self.binary.command(words);
            command.arg("--data-dir").arg(data_dir);
            command.args(["--name", name, "--listen-addr", addr, "--etcd-addr", "127.0.0.1:0", "--json"]);
            return Ok(command);
        };
        // Workers keep the addresses that they were given: they must hold over a restart.
        let etcd = format!("127.0.0.1:{}", free_port()?);
        let mut command = managers.command(["manager", "--heartbeat", HEARTBEAT_MS, "--data-dir"]);
        command.arg(data_dir).args(["--name", name, "--listen", addr, "--etcd", &etcd]);
        if let ["join", seed, "--token", token] = words {
            command.args(["--join", token, seed]);
        }
        Ok(command)
    }

    fn spawn_existing(&mut self, index: usize) -> Result<(), String> {
        let data_dir = &self.record.members[index].data_dir;
        let mut command = match &self.managers {
            None => self.binary.command(["run", "--json", "--data-dir"]),
            Some(managers) => managers.command(["manager", "--heartbeat", HEARTBEAT_MS, "--data-dir"]),
        };
        command.arg(data_dir);
        self.launch(index, &command)
    }

    fn launch(&mut self, index: usize, command: &std::process::Command) -> Result<(), String> {
        let (out, log) = self.files(index);
        // What an earlier process of this member said is no answer of this one.
        fs::write(&out, "").map_err(|error| format!("{}: {error}", out.display()))?;
        let running = Running::spawn(command, &out, &log, self.detached)?;
        self.record.members[index].process = Some(running.identity());
        self.running[index] = Some(running);
        self.record.write(&self.dir)
    }

    /// Waits for the line with which a member says that it serves.
    fn await_serving(&mut self, index: usize) -> Result<(), String> {
        let (out, log) = self.files(index);
        let name = self.record.members[index].name.clone();
        let running = self.running[index].as_mut().ok_or("the member was not started")?;
        let served = wait_for(&format!("{name} serves"), START_LIMIT, || {
            if let Some(line) = fs::read_to_string(&out).ok().as_deref().and_then(serving_line) {
                return Ok(Some(line));
            }
            match running.ended() {
                Some(status) => Err(format!("{name} ended before it served ({status})")),
                None => Ok(None),
            }
        });
        let line = served.map_err(|why| format!("{why}{}", tail(&log)))?;
        let member = &mut self.record.members[index];
        member.id = word(&line, "id")?;
        member.addr = word(&line, "addr")?;
        member.url = word(&line, "client_url")?;
        member.etcd_url = word(&line, "etcd_url")?;
        self.record.write(&self.dir)
    }

    fn files(&self, index: usize) -> (PathBuf, PathBuf) {
        let name = &self.record.members[index].name;
        (self.dir.join(format!("{name}.out")), self.dir.join(format!("{name}.log")))
    }
}

/// The field of an answer, as text.
pub fn word(answer: &Value, name: &str) -> Result<String, String> {
    answer[name].as_str().map(str::to_owned).ok_or_else(|| format!("no {name:?} in the answer {answer}"))
}

fn serving_line(out: &str) -> Option<Value> {
    // A line that is still being written has no end yet.
    let whole = out.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|value| value["event"] == "serving")
}

fn voters(answer: &Value) -> usize {
    let members = answer["members"].as_array().map(Vec::as_slice).unwrap_or_default();
    members.iter().filter(|member| member["role"] == "voter").count()
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LOG_TAIL);
    format!("\n{} ends with:\n  {}", log.display(), lines[from..].join("\n  "))
}

/// A port of loopback that neither UDP nor TCP uses now.
fn free_port() -> Result<u16, String> {
    for _ in 0..100 {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).map_err(|error| format!("no free port: {error}"))?;
        let port = socket.local_addr().map_err(|error| error.to_string())?.port();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err("no port of 127.0.0.1 is free for both UDP and TCP".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serving_line_is_found_once_it_is_whole() {
        let line = "{\"event\":\"serving\",\"id\":\"0a\"}";
        assert_eq!(serving_line(line), None);
        assert_eq!(serving_line(&format!("text\n{{\"event\":\"other\"}}\n{line}\n")).unwrap()["id"], "0a");
    }

    #[test]
    fn only_voters_count() {
        let answer = json!({"members": [{"role": "voter"}, {"role": "learner"}, {"role": "voter"}]});
        assert_eq!(voters(&answer), 2);
        assert_eq!(voters(&json!({})), 0);
    }

    #[test]
    fn a_free_port_can_be_bound() {
        // Another process may take it in between; not again and again.
        let bound = (0..20).any(|_| UdpSocket::bind(("127.0.0.1", free_port().unwrap())).is_ok());
        assert!(bound);
    }
}
