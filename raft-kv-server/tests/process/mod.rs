//! Real processes of the built binary: commands that run to their end, and members that are
//! killed, by their own process id, when the test ends. Waits have deadlines; nothing sleeps for
//! a fixed time.

#![allow(dead_code)] // Each test file uses its part.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use raft_kv::client::credentials_of;
use raft_kv::pki::{Credentials, TLS_NAME};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::Value;

/// How long any one thing may take before the test fails: a loaded machine is slow.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The answer of a command that must have succeeded.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(self.stdout.trim()).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// That a command has succeeded, whatever it says.
    #[track_caller]
    pub fn done(&self) {
        assert_eq!(self.code, Some(0), "{self:?}");
    }

    /// The one door for bad input: the exit code, and what the message must name.
    #[track_caller]
    pub fn refused(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in {self:?}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:?}");
    }
}

/// The binary with `words`, and nothing of this process's own configuration.
pub fn command<S: AsRef<std::ffi::OsStr>>(words: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_raft-kv"));
    command.args(words);
    for name in [
        "RAFT_KV_ENDPOINTS",
        "RAFT_KV_CACERT",
        "RAFT_KV_CERT",
        "RAFT_KV_CERT_DIR",
        "RAFT_KV_KEY",
        "RAFT_KV_UNLOCK_KEY",
        "RUST_LOG",
    ] {
        command.env_remove(name);
    }
    command
}

/// Runs a command to its end.
pub fn raft_kv<S: AsRef<std::ffi::OsStr>>(words: &[S]) -> Ended {
    run(command(words), &[])
}

/// Runs a command that reads `input` to its end.
pub fn raft_kv_reading<S: AsRef<std::ffi::OsStr>>(words: &[S], input: &[u8]) -> Ended {
    run(command(words), input)
}

/// Runs `command` to its end, with `input`.
pub fn run(mut command: Command, input: &[u8]) -> Ended {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Guard(command.spawn().expect("the binary is built"));
    let mut stdin = child.0.stdin.take().expect("piped");
    let input = input.to_vec();
    // The command may end without reading; its own thread lets both sides go on.
    let writer = thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let stdout = collect(child.0.stdout.take().expect("piped"));
    let stderr = collect(child.0.stderr.take().expect("piped"));
    let code = child.wait();
    writer.join().expect("no panic");
    Ended { code, stdout: stdout.join().expect("no panic"), stderr: stderr.join().expect("no panic") }
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A child that does not outlive the test.
struct Guard(Child);

impl Guard {
    /// Its exit code; it is killed at the deadline.
    fn wait(&mut self) -> Option<i32> {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.0.try_wait().expect("our own child") {
                return status.code();
            }
            assert!(Instant::now() < until, "process {} does not end", self.0.id());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that prints lines for as long as it runs: a member, or a watch.
pub struct Running {
    child: Guard,
    lines: Receiver<String>,
    stderr: Option<thread::JoinHandle<String>>,
}

impl Running {
    /// Starts it.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Guard(command.spawn().expect("the binary is built"));
        let stdout = BufReader::new(child.0.stdout.take().expect("piped"));
        let stderr = Some(collect(child.0.stderr.take().expect("piped")));
        let (send, lines) = channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines, stderr }
    }

    /// Its next line, as JSON; `None` when it has closed its output.
    pub fn next_json(&mut self) -> Option<Value> {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("process {} prints nothing", self.child.0.id()),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let pid = self.child.0.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill is there");
        assert!(sent.success());
    }

    /// Sends SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        self.child.0.kill().expect("our own child");
        self.child.wait();
    }

    /// Waits for its end.
    pub fn ended(mut self) -> Ended {
        let code = self.child.wait();
        let stdout: Vec<String> = self.lines.iter().collect();
        let stderr = self.stderr.take().expect("taken once").join().expect("no panic");
        Ended { code, stdout: stdout.join("\n"), stderr }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.0.try_wait().expect("our own child").is_none()
    }
}

/// A member in its own process.
pub struct Member {
    pub running: Running,
    pub data_dir: PathBuf,
    pub id: String,
    pub addr: String,
    pub etcd_url: String,
    pub cluster: String,
}

impl Member {
    /// Starts a member and waits until it serves, or says how it ended.
    pub fn start(words: &[&str], data_dir: &Path) -> Result<Self, Ended> {
        Self::started(command(words), data_dir)
    }

    /// The same with a command that is prepared.
    pub fn started(mut command: Command, data_dir: &Path) -> Result<Self, Ended> {
        command.arg("--data-dir").arg(data_dir).arg("--json");
        let mut running = Running::start(command);
        let Some(line) = running.next_json() else { return Err(running.ended()) };
        assert_eq!(line["event"], "serving", "{line}");
        let word =
            |name: &str| line[name].as_str().unwrap_or_else(|| panic!("no {name} in {line}")).to_owned();
        assert_eq!(word("client_url"), format!("https://{}", word("addr")));
        let (id, addr, cluster) = (word("id"), word("addr"), word("cluster"));
        let etcd_url = word("etcd_url");
        Ok(Self { running, data_dir: data_dir.to_owned(), id, addr, etcd_url, cluster })
    }

    /// Makes a cluster of one, in `folder`.
    pub fn first(folder: &Path) -> Self {
        Self::start(
            &["init", "--name", "one", "--listen-addr", &free_address(), "--etcd-addr", "127.0.0.1:0"],
            &folder.join("one"),
        )
        .unwrap_or_else(|ended| panic!("{ended:?}"))
    }

    /// Joins this member's cluster with a new one.
    pub fn joined_by(&self, name: &str, folder: &Path) -> Self {
        let token = self.token();
        let listen = free_address();
        let mut words = vec!["join", "--name", name, "--listen-addr", &listen, "--etcd-addr", "127.0.0.1:0"];
        words.extend(["--token", &token, &self.addr]);
        Self::start(&words, &folder.join(name)).unwrap_or_else(|ended| panic!("{ended:?}"))
    }

    /// Starts a member that was made before.
    pub fn again(data_dir: &Path) -> Self {
        Self::start(&["run"], data_dir).unwrap_or_else(|ended| panic!("{ended:?}"))
    }

    /// The token that joins a member.
    pub fn token(&self) -> String {
        self.ask(&["join-token", "manager"]).json()["token"].as_str().expect("a token").to_owned()
    }

    /// Runs a client command with this member's certificate.
    pub fn ask(&self, words: &[&str]) -> Ended {
        self.ask_reading(words, &[])
    }

    /// As [`Member::ask`], with input.
    pub fn ask_reading(&self, words: &[&str], input: &[u8]) -> Ended {
        let mut command = command(words);
        command.arg("--json").arg("--data-dir").arg(&self.data_dir);
        run(command, input)
    }

    /// The page of metrics at its door.
    pub fn metrics(&self) -> String {
        metrics(&self.data_dir, self.etcd_url.strip_prefix("https://").unwrap())
    }

    /// The store's revision.
    pub fn revision(&self) -> i64 {
        let answer = self.ask(&["get", "", "--prefix", "--count-only"]).json();
        answer["revision"].as_i64().expect("a revision")
    }
}

/// The page of metrics at the door of a member with its data in `data_dir`.
pub fn metrics(data_dir: &Path, door: &str) -> String {
    metrics_for(&credentials_of(data_dir).unwrap().0, door)
}

/// The same for whoever has these credentials; empty where they are not let in.
pub fn metrics_for(own: &Credentials, door: &str) -> String {
    let der = |all: &[Vec<u8>]| all.iter().cloned().map(CertificateDer::from).collect::<Vec<_>>();
    let mut roots = rustls::RootCertStore::empty();
    der(&own.roots).into_iter().for_each(|root| roots.add(root).unwrap());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.key.clone()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(der(&own.chain), key)
        .unwrap();
    let name = ServerName::try_from(TLS_NAME).unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(door).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, socket);
    let mut page = Vec::new();
    let request = b"GET /metrics HTTP/1.1\r\nHost: raft-kv\r\nConnection: close\r\n\r\n";
    if stream.write_all(request).is_err() {
        return String::new();
    }
    // How the other side closes is its own affair.
    let _ = stream.read_to_end(&mut page);
    String::from_utf8_lossy(&page).into_owned()
}

/// A loopback address that nobody listens on now.
pub fn free_address() -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback has a free port");
    socket.local_addr().expect("it is bound").to_string()
}

/// Asks again and again until `look` finds something.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(50));
    }
}
