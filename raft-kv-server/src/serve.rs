//! `init`, `join`, `run`: one member in the foreground, until a signal or until it stops itself.
//! The first signal stops it cleanly, a second one at once. Standard output carries one line, when
//! the member serves; everything else goes to standard error.

use std::path::Path;
use std::time::Duration;

use raft_kv::client::{
    Config, ExternalSigner, Node, Overrides, Readmission, StartError, Tuning, Unlocking, is_locked,
    read_own_root,
};
use raft_kv::limits::MAX_NAME_BYTES;
use raft_kv::types::Role;
use raft_kv_server::door::Door;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::again::Again;
use crate::args::{InitArgs, JoinArgs, PlaceArgs, RunArgs, SignerArgs};
use crate::cli::lock;
use crate::connect::{parse_endpoint, parse_endpoints};
use crate::failure::{Failure, Kind};
use crate::output::{Output, shell_word};

/// The exit code after a second signal: nothing was flushed on purpose, as after a crash.
const EXIT_AT_ONCE: i32 = 130;

/// Makes a cluster and runs its first member.
pub async fn init(args: InitArgs, output: &mut Output) -> Result<(), Failure> {
    let own_root = args.ca_cert.as_deref();
    let own_root = own_root.map(|cert| read_own_root(cert, args.ca_key.as_deref(), None)).transpose();
    let own_root = own_root.map_err(StartError::Refused)?;
    let again = Again::run(&args.data_dir, output.json(), &args.signer);
    let config = Config { own_root, ..config(&args.data_dir, args.place, args.signer) };
    let mut signals = Signals::new()?;
    let Some(started) = signals.unless_stopped(Node::init(config)).await else { return Ok(()) };
    serve(started?, true, &again, signals, output).await
}

/// Joins a cluster and runs the new member.
pub async fn join(args: JoinArgs, output: &mut Output) -> Result<(), Failure> {
    let endpoints =
        args.endpoints.iter().map(|given| parse_endpoint(given)).collect::<Result<Vec<_>, _>>()?;
    let again = Again::run(&args.data_dir, output.json(), &args.signer);
    let config = config(&args.data_dir, args.place, args.signer);
    let mut signals = Signals::new()?;
    let joining = Node::join(config, args.token.trim(), &endpoints);
    let Some(started) = signals.unless_stopped(joining).await else { return Ok(()) };
    serve(started?, false, &again, signals, output).await
}

/// Runs a member that was made before.
pub async fn run(args: RunArgs, output: &mut Output) -> Result<(), Failure> {
    let endpoints = args.endpoints.as_deref().map(parse_endpoints).transpose()?.unwrap_or_default();
    let readmission = args.token.map(|token| Readmission { token: token.trim().to_owned(), endpoints });
    let overrides = Overrides {
        listen_addr: args.listen_addr,
        advertise_addr: args.advertise_addr,
        client_addr: args.etcd_addr.map(Into::into),
        advertise_client_addr: args.advertise_etcd_addr,
        unlocking: unlocking(&args.data_dir, args.unlock_key_file.as_deref(), output)?,
        readmission,
        external_signer: signer(args.signer),
    };
    let mut signals = Signals::new()?;
    let tuning = Tuning {
        scrub_bytes_per_second: args.scrub_rate.saturating_mul(1024 * 1024),
        scrub_every: Duration::from_secs(args.scrub_every),
        ..tuning(args.cert_validity, args.snapshot_rate)
    };
    let opening = Node::open(&args.data_dir, overrides, tuning);
    let Some(started) = signals.unless_stopped(opening).await else { return Ok(()) };
    serve(started?, false, &Again::same(), signals, output).await
}

/// What is done where the member's disk is locked: the key that is given is tried, and without one it
/// waits for `raft-kv unlock`, and says so.
fn unlocking(data_dir: &Path, file: Option<&Path>, output: &mut Output) -> Result<Unlocking, Failure> {
    if let Some(key) = lock::given_key(file)? {
        return Ok(Unlocking::With(key));
    }
    // What else is wrong with the directory is said by who opens it.
    if is_locked(data_dir).unwrap_or(false) {
        let data_dir = data_dir.to_string_lossy();
        output.answer(
            || json!({ "event": "locked", "data_dir": data_dir }),
            || {
                format!(
                    "locked: waiting for the unlock key; run `raft-kv unlock --data-dir {}`",
                    shell_word(&data_dir)
                )
            },
        )?;
    }
    Ok(Unlocking::Wait)
}

/// What signs where the cluster's key is kept outside.
pub fn signer(args: SignerArgs) -> Option<ExternalSigner> {
    let program = args.external_signer?;
    Some(ExternalSigner { command: std::iter::once(program).chain(args.external_signer_arg).collect() })
}

/// A member as the command line describes it.
pub fn config(data_dir: &Path, place: PlaceArgs, args: SignerArgs) -> Config {
    Config {
        data_dir: data_dir.to_owned(),
        name: place.name.unwrap_or_else(machine_name),
        listen_addr: place.listen_addr,
        advertise_addr: place.advertise_addr,
        client_addr: place.etcd_addr.into(),
        advertise_client_addr: place.advertise_etcd_addr,
        own_root: None,
        external_signer: signer(args),
        tuning: tuning(place.cert_validity, place.snapshot_rate),
    }
}

fn tuning(cert_validity: Option<u64>, snapshot_rate: Option<u64>) -> Tuning {
    let usual = Tuning::default();
    let leaf_validity = cert_validity.map_or(usual.leaf_validity, Duration::from_secs);
    Tuning { leaf_validity, snapshot_rate: snapshot_rate.unwrap_or(usual.snapshot_rate), ..usual }
}

/// Takes as many file descriptors as the system grants: each connection is one, and what shells
/// begin with (often 1024) is meant for other programs.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "could not raise the limit of open files; connections may be turned away");
    }
}

/// Says that the member serves, and waits for its end.
async fn serve(
    node: Node,
    is_first: bool,
    again: &Again,
    mut signals: Signals,
    output: &mut Output,
) -> Result<(), Failure> {
    let door = match node.client_listener() {
        Some(listener) => Some(Door::open(listener, &node).map_err(|error| {
            Failure::new(Kind::Stopped, format!("the etcd door can't be opened: {error}"))
        })?),
        None => None,
    };
    raise_descriptors();
    announce(&node, output)?;
    if is_first && !output.json() {
        advise(&node, output).await?;
    }
    let stopped = tokio::select! {
        error = node.stopped() => Some(error),
        () = signals.next() => None,
    };
    if let Some(error) = stopped {
        if node.is_damaged() {
            return Err(again.start(&error.to_string()));
        }
        // Who asked for this end, by removing the member through itself, still gets the answer.
        if let Some(door) = door {
            door.close().await;
        }
        // Whatever the error is called, for this process it is the end.
        return Err(Failure::new(Kind::Stopped, error.to_string()));
    }
    tracing::info!("stopping: moving leadership away and flushing; a second signal stops at once");
    tokio::select! {
        ended = stop(door, node) => ended,
        () = signals.next() => {
            tracing::warn!("stopped at once; the data is safe, the next start replays the log");
            leave(EXIT_AT_ONCE);
        }
    }
}

/// Ends a member's process without the system's farewells: a thread of RocksDB's that is still at work
/// would find its locks destroyed by them, and abort in place of the exit code. What was acknowledged
/// is on disk, and all output is flushed as it is written.
pub fn leave(code: i32) -> ! {
    signal_hook::low_level::exit(code)
}

/// Nobody new is let in, who waits is answered, then the member stops.
async fn stop(door: Option<Door>, node: Node) -> Result<(), Failure> {
    if let Some(door) = door {
        door.close().await;
    }
    Ok(node.shutdown().await?)
}

/// The line that says where the member can be reached.
fn announce(node: &Node, output: &mut Output) -> Result<(), Failure> {
    let data_dir = node.data_dir();
    let data_dir = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let data_dir = data_dir.to_string_lossy();
    output.answer(
        || {
            json!({
                "event": "serving",
                "id": node.id().to_string(),
                "name": node.name(),
                "addr": node.addr(),
                "client_url": format!("https://{}", node.addr()),
                "etcd_url": node.client_url(),
                "cluster": node.cluster().to_string(),
                "data_dir": data_dir,
            })
        },
        || {
            let etcd = match node.client_url() {
                "" => String::new(),
                url => format!(", etcd API at {url}"),
            };
            format!(
                "serving: member {} ({}) of cluster {} at {}{etcd}, data in {data_dir}",
                node.name(),
                node.id(),
                node.cluster(),
                node.addr(),
            )
        },
    )
}

/// How the next members come.
async fn advise(node: &Node, output: &mut Output) -> Result<(), Failure> {
    match node.handle().join_token(Role::Manager).await {
        Ok(token) => {
            let command = join_command(&token, None, &[node.addr().to_owned()]);
            output.bytes(format!("To add a member, run on its machine:\n  {command}\n").as_bytes())
        }
        Err(error) => {
            tracing::warn!(
                "no join token yet ({error}); `raft-kv join-token manager --data-dir DIR` prints it"
            );
            Ok(())
        }
    }
}

/// The command that joins a member, to be pasted on its machine. `place` is its name and address
/// where they are known.
pub fn join_command(token: &str, place: Option<(&str, &str)>, endpoints: &[String]) -> String {
    let mut command = format!("raft-kv join --data-dir ./raft-kv-data --token {}", shell_word(token));
    if let Some((name, addr)) = place {
        command.push_str(&format!(" --name {}", shell_word(name)));
        if let Some((_, port)) = addr.rsplit_once(':').filter(|(_, port)| *port != "2380") {
            command.push_str(&format!(" --listen-addr 0.0.0.0:{port}"));
        }
        command.push_str(&format!(" --advertise-addr {}", shell_word(addr)));
    }
    for endpoint in endpoints {
        command.push(' ');
        command.push_str(&shell_word(endpoint));
    }
    command
}

/// The machine's name as a member's name, or `member` where it has none.
fn machine_name() -> String {
    member_name(&std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default())
}

/// `hostname` with what a member's name can't have replaced.
fn member_name(hostname: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = hostname.trim().chars().take(MAX_NAME_BYTES).map(fit).collect();
    if name.is_empty() { "member".to_owned() } else { name }
}

/// SIGINT and SIGTERM, watched from before the start so that none is missed.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Watched from now on.
    pub fn new() -> Result<Self, Failure> {
        let watch = |kind| {
            signal(kind)
                .map_err(|error| Failure::new(Kind::Stopped, format!("can't watch for signals: {error}")))
        };
        Ok(Self { interrupt: watch(SignalKind::interrupt())?, terminate: watch(SignalKind::terminate())? })
    }

    /// Waits for one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// What `starting` gives, or nothing if a signal comes first.
    async fn unless_stopped<T>(&mut self, starting: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            started = starting => Some(started),
            () = self.next() => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_join_command_can_be_pasted() {
        let endpoints = ["a:1".to_owned(), "[::1]:2".to_owned()];
        for (place, expect) in [
            (None, "raft-kv join --data-dir ./raft-kv-data --token T-1 a:1 '[::1]:2'"),
            (
                Some(("my node", "h:2380")),
                "raft-kv join --data-dir ./raft-kv-data --token T-1 --name 'my node' --advertise-addr h:2380 a:1 '[::1]:2'",
            ),
            (
                Some(("n", "h:99")),
                "raft-kv join --data-dir ./raft-kv-data --token T-1 --name n --listen-addr 0.0.0.0:99 --advertise-addr h:99 a:1 '[::1]:2'",
            ),
        ] {
            assert_eq!(join_command("T-1", place, &endpoints), expect);
        }
    }

    #[test]
    fn a_hostname_becomes_a_member_name() {
        for (hostname, expect) in
            [("node-1.example\n", "node-1.example"), ("", "member"), ("n\u{e4}me 1", "n-me-1")]
        {
            assert_eq!(member_name(hostname), expect);
        }
        assert_eq!(member_name(&"h".repeat(1000)).len(), MAX_NAME_BYTES);
    }
}
