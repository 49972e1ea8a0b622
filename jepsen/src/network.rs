//! A network of the run's own: each member in a network namespace with its own address, all on one
//! bridge, in a namespace that nobody else sees. Any direction between two members can be cut: packets
//! go to a neighbour who is not there, silently, as on a broken wire.
//!
//! Nothing of the machine's own network is touched: [`enter`] moves the whole process into a new
//! namespace before anything else is done.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// The members' port; each has an address of its own.
pub const PORT: u16 = 2380;
/// The address that no network card has.
const NOBODY: &str = "02:00:00:00:00:01";
/// Said to the process that runs inside.
const INSIDE: &str = "JEPSEN_INSIDE";

/// Starts this program anew inside namespaces of its own, unless it runs in them already: network, and
/// mounts, so that disks go with the run.
///
/// # Errors
/// The machine can't.
pub fn enter() -> Result<(), String> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--net", "--mount", "--"]).arg(program).args(std::env::args_os().skip(1));
    // It returns only where it fails.
    Err(lacks(&format!("unshare: {}", unshare.env(INSIDE, "1").exec())))
}

fn lacks(why: &str) -> String {
    format!(
        "{why}; faults of the network need root's rights, namespaces and iproute2 (leave them out with --nemesis)"
    )
}

/// The network. Dropping it takes the members' namespaces away.
#[derive(Debug)]
pub struct Network {
    tag: u32,
    members: usize,
    cut: BTreeSet<(usize, usize)>,
}

impl Network {
    /// A bridge, and nobody at it but this process.
    ///
    /// # Errors
    /// What the machine lacks. The process is not inside (see [`enter`]).
    pub fn new() -> Result<Self, String> {
        if std::env::var_os(INSIDE).is_none() {
            return Err("the network is made inside a namespace of the run's own only".to_owned());
        }
        ip("link set lo up")?;
        ip("link add switch type bridge")?;
        ip("address add 10.77.0.254/24 dev switch")?;
        ip("link set switch up")?;
        Ok(Self { tag: std::process::id(), members: 0, cut: BTreeSet::new() })
    }

    fn name(&self, member: usize) -> String {
        format!("jepsen-{}-{member}", self.tag)
    }

    fn address(member: usize) -> String {
        format!("10.77.0.{}", member + 1)
    }

    /// Makes the next member's namespace; returns its address.
    ///
    /// # Errors
    /// What the machine lacks.
    pub fn add(&mut self) -> Result<String, String> {
        let (member, name) = (self.members, self.name(self.members));
        ip(&format!("netns add {name}"))?;
        self.members += 1;
        ip(&format!("link add wire{member} type veth peer name wire netns {name}"))?;
        ip(&format!("link set wire{member} master switch up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} address add {}/24 dev wire", Self::address(member)))?;
        ip(&format!("-n {name} link set wire up"))?;
        Ok(Self::address(member))
    }

    /// A command that runs `program` at a member's place.
    pub fn command(&self, member: usize, program: &OsStr) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name(member))).arg("--").arg(program);
        command
    }

    /// Nothing that `from` sends to `to` arrives any more.
    ///
    /// # Errors
    /// The kernel would not.
    pub fn cut(&mut self, from: usize, to: usize) -> Result<(), String> {
        let (name, address) = (self.name(from), Self::address(to));
        ip(&format!("-n {name} neigh replace {address} lladdr {NOBODY} nud permanent dev wire"))?;
        self.cut.insert((from, to));
        Ok(())
    }

    /// Everybody reaches everybody.
    ///
    /// # Errors
    /// The kernel would not.
    pub fn heal(&mut self) -> Result<(), String> {
        while let Some((from, to)) = self.cut.pop_first() {
            ip(&format!("-n {} neigh del {} dev wire", self.name(from), Self::address(to)))?;
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for member in 0..self.members {
            let _ = ip(&format!("netns del {}", self.name(member)));
        }
    }
}

fn ip(words: &str) -> Result<(), String> {
    let ended = Command::new("ip").args(words.split_whitespace()).stdin(Stdio::null()).output();
    let ended = ended.map_err(|error| lacks(&format!("ip: {error}")))?;
    if ended.status.success() {
        return Ok(());
    }
    Err(lacks(&format!("ip {words}: {}", String::from_utf8_lossy(&ended.stderr).trim())))
}
