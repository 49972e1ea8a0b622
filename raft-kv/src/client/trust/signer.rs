//! The external signer: a command of the operator's that has the signing key, where the cluster has not.
//!
//! It runs without a shell, gets one JSON document, and answers with a certificate in PEM. It is never
//! believed: whatever it answers is compared with what was asked for before anything is done with it.
//! It runs for a bounded time, answers a bounded number of bytes, and is ended with all that it started.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::sync::{Semaphore, oneshot};

use crate::error::Refusal;
use crate::limits::{MAX_SIGNER_ANSWER_BYTES, MAX_SIGNER_RUNS, SIGNER_DEADLINE};
use crate::pki::{self, Subject};
use crate::types::{Authority, Role};

/// Bytes of what the command writes to its standard error that are put in the log.
const MAX_LOGGED: usize = 8 * 1024;
/// How often it is looked whether the command has ended.
const PAUSE: Duration = Duration::from_millis(5);

/// A command that signs in the place of a key which is kept outside the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExternalSigner {
    /// The program, and its arguments one by one: no shell sees them. The program is looked for in
    /// `PATH` if it has no `/`.
    pub command: Vec<String>,
}

/// An external signer in use. Clones share its turns.
#[derive(Clone, Debug)]
pub(in crate::client) struct Signer {
    command: Arc<Vec<String>>,
    turns: Arc<Semaphore>,
    deadline: Duration,
}

/// A leaf that is to be signed.
pub(in crate::client) struct LeafRequest<'a> {
    pub(in crate::client) subject: &'a Subject,
    /// SPKI in DER.
    pub(in crate::client) public_key: &'a [u8],
    /// The request (CSR in DER) of whoever holds the key.
    pub(in crate::client) request: &'a [u8],
    pub(in crate::client) from: SystemTime,
    pub(in crate::client) until: SystemTime,
}

fn refused(why: impl Into<String>) -> Refusal {
    Refusal::invalid("external signer", why)
}

fn pem(tag: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(tag, der), config)
}

/// An object in JSON, in one line; the values are in JSON already.
fn object(fields: &[(&str, String)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

/// A text in JSON, in ASCII.
fn quoted(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            ' '..='~' => json.push(c),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    json.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    json + "\""
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Signer {
    /// The signer that `given` describes.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if there is no program in it.
    pub(in crate::client) fn new(given: &ExternalSigner) -> Result<Self, Refusal> {
        if given.command.first().is_none_or(String::is_empty) {
            return Err(refused("its command is empty; give a program"));
        }
        let command = Arc::new(given.command.clone());
        let turns = Arc::new(Semaphore::new(MAX_SIGNER_RUNS));
        Ok(Self { command, turns, deadline: SIGNER_DEADLINE })
    }

    /// A leaf under `authority`, DER, that says what was asked for; its signature is for the caller to
    /// verify.
    pub(in crate::client) async fn leaf(
        &self,
        authority: &Authority,
        wanted: &LeafRequest<'_>,
    ) -> Result<Bytes, Refusal> {
        let LeafRequest { subject, public_key, from, until, .. } = *wanted;
        let mut fields = subject_fields(subject);
        let names = pki::names_of(&subject.hosts);
        let alternative: Vec<String> = names.iter().map(|name| openssl_name(name)).collect();
        let usages = if subject.role == Role::Manager { "clientAuth,serverAuth" } else { "clientAuth" };
        let written: String = fields.iter().map(|(field, value)| format!("/{field}={value}")).collect();
        fields.push(("text", written));
        let fields: Vec<_> = fields.iter().map(|(field, value)| (*field, quoted(value))).collect();
        let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
        let document = object(&[
            ("version", "1".into()),
            ("kind", quoted("leaf")),
            ("csr_pem", quoted(&pem("CERTIFICATE REQUEST", wanted.request))),
            ("public_key_pem", quoted(&pem("PUBLIC KEY", public_key))),
            ("issuer_pem", quoted(&pem("CERTIFICATE", signing_of(authority)))),
            ("subject", object(&fields)),
            ("hosts", format!("[{}]", names.join(","))),
            ("subject_alt_names", quoted(&alternative.join(","))),
            ("extended_key_usage", quoted(usages)),
            ("not_before", seconds(from).to_string()),
            ("not_after", seconds(until).to_string()),
            ("cluster", quoted(&subject.cluster.to_string())),
            ("node", quoted(&subject.node.to_string())),
            ("role", quoted(subject.role.as_str())),
        ]);
        let answer = self.ask(document.into_bytes()).await?;
        let [leaf] = <[Bytes; 1]>::try_from(answer_certificates(&answer)?)
            .map_err(|_| refused("it answered several certificates instead of one"))?;
        let now = SystemTime::now();
        pki::check_signed(&leaf, subject, public_key, (from, until), now)
            .map_err(|refusal| refused(format!("what it answered is not used: {refusal}")))?;
        Ok(leaf)
    }

    /// A certificate by the root in force of the authority whose request (CSR in DER) and whose
    /// certificate are given; with what leads to that root. To be vetted by the caller.
    pub(in crate::client) async fn cross(
        &self,
        in_force: &Authority,
        request: &[u8],
        other: &[u8],
        until: SystemTime,
    ) -> Result<Bytes, Refusal> {
        let from = SystemTime::now().checked_sub(pki::BACK_DATE).unwrap_or(SystemTime::UNIX_EPOCH);
        let document = object(&[
            ("version", "1".into()),
            ("kind", quoted("cross")),
            ("csr_pem", quoted(&pem("CERTIFICATE REQUEST", request))),
            ("certificate_pem", quoted(&pem("CERTIFICATE", other))),
            ("issuer_pem", quoted(&pem("CERTIFICATE", signing_of(in_force)))),
            ("not_before", seconds(from).to_string()),
            ("not_after", seconds(until).to_string()),
        ]);
        let answer = self.ask(document.into_bytes()).await?;
        Ok(answer_certificates(&answer)?.concat().into())
    }

    /// Runs the command; what it wrote to its standard output.
    async fn ask(&self, document: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        let turn = self.turns.clone().acquire_owned().await.expect("never closed");
        let (command, deadline) = (self.command.clone(), self.deadline);
        let (answer, mut answered) = oneshot::channel();
        let given_up = Arc::new(AtomicBool::new(false));
        let guard = GiveUp(given_up.clone());
        let run = move || {
            let done = run(&command, document, deadline, &given_up);
            drop(turn);
            let _ = answer.send(done);
        };
        let started = thread::Builder::new().name("signer".into()).spawn(run);
        started.map_err(|error| refused(format!("it can't be started: {error}")))?;
        let done = (&mut answered).await.map_err(|_| refused("it can't be watched"))?;
        drop(guard);
        done
    }
}

/// Whoever waited for the answer does not any more: the command is ended.
struct GiveUp(Arc<AtomicBool>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn signing_of(authority: &Authority) -> &[u8] {
    authority.via.first().unwrap_or(&authority.root)
}

/// The subject as `openssl` names its fields, in the order of the cluster's own certificates.
fn subject_fields(subject: &Subject) -> Vec<(&'static str, String)> {
    let id = subject.node.to_string();
    let mut fields = if subject.role == Role::Client {
        vec![("CN", subject.name.clone()), ("serialNumber", id)]
    } else {
        vec![("CN", id)]
    };
    fields.push(("OU", subject.role.as_str().to_owned()));
    fields.push(("O", subject.cluster.to_string()));
    fields
}

fn openssl_name(name: &str) -> String {
    let kind = if name.parse::<std::net::IpAddr>().is_ok() { "IP" } else { "DNS" };
    format!("{kind}:{name}")
}

fn answer_certificates(answer: &[u8]) -> Result<Vec<Bytes>, Refusal> {
    let text = std::str::from_utf8(answer).map_err(|_| refused("its answer is not text"))?;
    let blocks = pem::parse_many(text).map_err(|_| refused("its answer is not PEM"))?;
    if blocks.is_empty() || blocks.iter().any(|block| block.tag() != "CERTIFICATE") {
        return Err(refused("its answer does not hold a certificate in PEM"));
    }
    Ok(blocks.into_iter().map(|block| block.into_contents().into()).collect())
}

/// A started command; dropped, it is ended with all that it has started, and nothing is left of it.
struct Running(Child);

impl Running {
    /// Whether the command itself has ended. It is not waited for yet: until then its id is its own.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(Pid::from_child(&self.0)), options), Ok(None))
    }

    fn end(&mut self) -> std::io::Result<std::process::ExitStatus> {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        self.0.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

fn start(command: &[String]) -> Result<Running, Refusal> {
    let (program, arguments) = command.split_first().expect("checked when it was given");
    let mut started = Command::new(program);
    started.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own: it is ended as a whole, and signals to the member are not for it.
    started.process_group(0);
    for (name, _) in std::env::vars_os() {
        // What this process is configured by may be secret.
        if name.to_string_lossy().starts_with("RAFT_KV") {
            started.env_remove(name);
        }
    }
    let child = started.spawn().map_err(|error| refused(format!("{program:?} can't be started: {error}")))?;
    Ok(Running(child))
}

fn run(
    command: &[String],
    document: Vec<u8>,
    deadline: Duration,
    given_up: &AtomicBool,
) -> Result<Vec<u8>, Refusal> {
    let until = Instant::now() + deadline;
    let mut running = start(command)?;
    let (mut stdin, stdout, stderr) =
        (running.0.stdin.take(), running.0.stdout.take(), running.0.stderr.take());
    let (stdout, stderr) = (stdout.expect("piped"), stderr.expect("piped"));
    // It may end without reading.
    let writer = thread::spawn(move || stdin.take().map(|mut stdin| stdin.write_all(&document)));
    let too_large = Arc::new(AtomicBool::new(false));
    let overflow = too_large.clone();
    let reader = thread::spawn(move || {
        let mut answer = Vec::new();
        let read = stdout.take(MAX_SIGNER_ANSWER_BYTES as u64 + 1).read_to_end(&mut answer);
        overflow.store(answer.len() > MAX_SIGNER_ANSWER_BYTES, Ordering::Relaxed);
        read.map(|_| answer)
    });
    let logger = thread::spawn(move || log(stderr));
    let why = loop {
        if running.has_ended() {
            break None;
        }
        if too_large.load(Ordering::Relaxed) {
            break Some(format!("it answered more than {MAX_SIGNER_ANSWER_BYTES} bytes"));
        }
        if Instant::now() >= until {
            break Some(format!("it did not answer within {} s and was ended", deadline.as_secs_f32()));
        }
        if given_up.load(Ordering::Relaxed) {
            break Some("nobody waits for its answer any more".into());
        }
        thread::sleep(PAUSE);
    };
    let status = running.end().map_err(|error| refused(format!("it can't be waited for: {error}")))?;
    // All ends of the pipes are closed now.
    let answer = reader.join().expect("it does not panic");
    let (_, _) = (writer.join(), logger.join());
    if let Some(why) = why {
        return Err(refused(why));
    }
    // One that writes on is ended by its own closed pipe: that is not the reason.
    if too_large.load(Ordering::Relaxed) {
        return Err(refused(format!("it answered more than {MAX_SIGNER_ANSWER_BYTES} bytes")));
    }
    if !status.success() {
        return Err(refused(format!("it failed ({status}); what it says is in this member's log")));
    }
    answer.map_err(|error| refused(format!("its answer can't be read: {error}")))
}

/// Puts the beginning of what it says in the log, and reads the rest so that it is not held up.
fn log(mut stderr: impl Read) {
    let mut said = Vec::new();
    let _ = (&mut stderr).take(MAX_LOGGED as u64).read_to_end(&mut said);
    for line in String::from_utf8_lossy(&said).lines().filter(|line| !line.trim().is_empty()) {
        tracing::warn!("external signer: {}", line.escape_debug());
    }
    let _ = std::io::copy(&mut stderr, &mut std::io::sink());
}

#[cfg(test)]
#[path = "signer_tests.rs"]
mod tests;
