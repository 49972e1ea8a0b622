//! A small cluster behind relays, of which all that is printed and all that is secret is kept.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use raft_kv::client::api::{Call, Reply};
use raft_kv::client::{Handle, credentials_unlocked};
use raft_kv::pki::{Credentials, Keyring, RootKey, UnlockKey};
use raft_kv::types::{ClusterId, TrustCall, TrustReply};
use serde_json::Value;

use super::capture::{Capture, Kind, Relay};
use super::scan::Secrets;
use crate::process::{self, Ended, Member, command, free_address, run, until};

const UNLOCK: &str = "RAFT_KV_UNLOCK_KEY";
pub const KEY: &str = "marked-key-8f41c2";
pub const VALUE: &str = "marked-value-53d09b";
pub const PASSWORDS: [&str; 3] =
    ["marked-password-1-e7a2", "marked-password-2-19cb", "marked-password-3-77de"];

pub fn word(answer: &Value, name: &str) -> String {
    answer[name].as_str().unwrap_or_else(|| panic!("no {name} in {answer}")).to_owned()
}

fn free_tcp() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub fn blocking<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(process::DEADLINE, work).await.expect("in time") })
}

/// A member behind two relays, which it tells everybody to use.
pub struct Hidden {
    pub member: Member,
    pub quic: Relay,
    pub door: Relay,
}

/// What printed something, and what.
pub type Printed = Vec<(String, String)>;

/// A cluster behind relays, all that was printed, and all that is secret.
pub struct Story {
    pub folder: tempfile::TempDir,
    pub capture: Capture,
    pub members: Vec<Hidden>,
    pub unlock: Option<String>,
    pub printed: Printed,
    /// The answers whose purpose is to show a secret.
    pub shown: Printed,
    pub secrets: Secrets,
    /// The cluster's root, key included.
    pub root: Option<RootKey>,
}

impl Story {
    pub fn new() -> Self {
        let mut secrets = Secrets::default();
        secrets.add("a key", KEY);
        secrets.add("a value", VALUE);
        for password in PASSWORDS {
            secrets.add("a password", password);
        }
        Self {
            folder: tempfile::tempdir().unwrap(),
            capture: Capture::new(),
            members: Vec::new(),
            unlock: None,
            printed: Vec::new(),
            shown: Vec::new(),
            secrets,
            root: None,
        }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a member behind relays, with all logs there are.
    fn start(&mut self, name: &str, quic: &'static str, door: &'static str, words: &[&str]) {
        let (listen, etcd) = (free_address(), free_tcp().to_string());
        let quic = self.capture.relay(Kind::Udp, quic, listen.parse().unwrap());
        let door = self.capture.relay(Kind::Tcp, door, etcd.parse().unwrap());
        let mut command = command(&[words[0]]);
        command.args(["--name", name, "--listen-addr", &listen, "--etcd-addr", &etcd]);
        command.args(["--advertise-addr", &quic.addr.to_string()]);
        command.args(["--advertise-etcd-addr", &door.addr.to_string()]).args(&words[1..]);
        command.env("RUST_LOG", "trace");
        let member = Member::started(command, &self.at(name)).unwrap_or_else(|ended| panic!("{ended:?}"));
        assert_eq!(
            (&member.addr, &member.etcd_url),
            (&quic.addr.to_string(), &format!("https://{}", door.addr))
        );
        self.members.push(Hidden { member, quic, door });
    }

    pub fn note(&mut self, words: &[&str], shows: bool, ended: &Ended) {
        let what = words.iter().filter(|word| word.len() < 24).copied().collect::<Vec<_>>().join(" ");
        let to = if shows { &mut self.shown } else { &mut self.printed };
        to.push((format!("the answer of {what}"), ended.stdout.clone()));
        self.printed.push((format!("the log of {what}"), ended.stderr.clone()));
    }

    pub fn run(&mut self, words: &[&str], more: &[&str], shows: bool, input: &[u8]) -> Ended {
        let mut command = command(words);
        command.arg("--json").args(more).env("RUST_LOG", "trace");
        if let Some(key) = &self.unlock {
            command.env(UNLOCK, key);
        }
        let ended = run(command, input);
        self.note(words, shows, &ended);
        ended
    }

    /// Asks a member by its relay, with its own certificate.
    pub fn ask(&mut self, member: usize, words: &[&str], shows: bool) -> Value {
        let at = self.members[member].member.data_dir.to_str().unwrap().to_owned();
        let mut last = None;
        until("it is done", || {
            let ended = self.run(words, &["--data-dir", &at], shows, &[]);
            let done = ended.code != Some(3);
            last = Some(ended);
            done.then_some(())
        });
        last.expect("it was asked").json()
    }

    /// Asks a member by its relay, with the three files in a folder.
    pub fn with_files(&mut self, member: usize, folder: &str, words: &[&str], input: &[u8]) -> Value {
        let addr = self.members[member].quic.addr.to_string();
        let file = |name: &str| self.at(folder).join(name).to_str().unwrap().to_owned();
        let (cacert, cert, key) = (file("cacert.pem"), file("cert.pem"), file("key.pem"));
        let at = ["--endpoints", &addr, "--cacert", &cacert, "--cert", &cert, "--key", &key];
        self.run(words, &at, false, input).json()
    }

    pub fn credentials(&self, member: usize) -> Credentials {
        let unlock = self.unlock.as_ref().map(|key| key.parse::<UnlockKey>().unwrap());
        credentials_unlocked(&self.members[member].member.data_dir, unlock.as_ref()).unwrap().0
    }

    /// Takes down each private key that is in use now.
    pub fn note_keys(&mut self) {
        for member in 0..self.members.len() {
            let key = self.credentials(member).key;
            self.secrets.add_key("a member's private key", &key);
        }
        for folder in ["tester", "worker"] {
            let own = raft_kv::net::read_credentials_in(&self.at(folder)).unwrap();
            self.secrets.add_key("a client's private key", &own.key);
        }
    }

    /// Takes down the data keys; a member is told them.
    pub fn note_data_keys(&mut self) -> Keyring {
        let (own, addr) = (self.credentials(0), self.members[0].quic.addr.to_string());
        let keys = blocking(async {
            let handle = Handle::connect(&[addr], own).await.unwrap();
            match handle.call(Call::Trust(TrustCall::Keys)).await.unwrap() {
                (_, Reply::Trust(TrustReply::Keys(keys))) => keys.keys,
                other => panic!("{other:?}"),
            }
        });
        for key in &keys {
            self.secrets.add("a data key", *key.key);
        }
        let active = keys.iter().map(|key| key.id).max().expect("one at least");
        Keyring::from_keys(keys, active).unwrap()
    }
}

/// A root of the test's own, so that its key is known.
fn own_root(folder: &Path) -> (RootKey, [String; 2]) {
    let root = RootKey::generate(ClusterId(0xc1), SystemTime::now());
    let pem = Credentials {
        chain: vec![root.cert_der().to_vec()],
        key: root.key_der().to_vec(),
        roots: vec![root.cert_der().to_vec()],
        ..Default::default()
    }
    .to_pem();
    let files = [("root.pem", pem.cacert), ("root.key", pem.key)].map(|(name, text)| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    });
    (root, files)
}

/// Members join by relays, a client and a worker get their certificates.
pub fn gather(story: &mut Story) {
    let (root, [cert, key]) = own_root(story.folder.path());
    story.secrets.add_key("the first root's key", root.key_der());
    story.root = Some(root);
    story.start("one", "quic of one", "door of one", &["init", "--ca-cert", &cert, "--ca-key", &key]);
    let token = word(&story.ask(0, &["join-token", "manager"], true), "token");
    let addr = story.members[0].quic.addr.to_string();
    story.start("two", "quic of two", "door of two", &["join", "--token", &token, &addr]);
    story.secrets.add_token("a manager's token", &token);
    for (role, name) in [("client", "tester"), ("worker", "worker")] {
        let words = ["token", "create", role, "--label", "marked"];
        let token = word(&story.ask(1, &words, true), "token");
        story.secrets.add_token(&format!("a {role}'s token"), &token);
        let (addr, out) = (story.members[1].quic.addr.to_string(), story.at(name));
        let more = ["--token", &token, "--endpoints", &addr, "--name", name, "--out", out.to_str().unwrap()];
        story.run(&["enrol"], &more, false, &[]).json();
    }
    story.note_keys();
    story.note_data_keys();
}
