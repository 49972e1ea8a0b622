//! The command line as types. Everything that can be typed is here; what is done with it is in
//! `serve` and `cli`. Only forms are checked here: bounds are the cluster's to check, so that
//! every door refuses alike.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use raft_kv::types::{LeaseId, Revision};

mod backup;
mod ca;
mod check;
mod kv;
mod lock;
mod moving;
mod node;
mod quota;
mod recover;
mod rollback;
mod token;

pub use backup::*;
pub use ca::*;
pub use check::*;
pub use kv::*;
pub use lock::*;
pub use moving::*;
pub use node::*;
pub use quota::*;
pub use recover::*;
pub use rollback::*;
pub use token::*;

/// A replicated key-value store: run a member of a cluster, or talk to one
#[derive(Parser, Debug)]
#[command(name = "raft-kv", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Answer in JSON, errors too
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused; nothing was changed
  2  the command line is not understood
  3  not done; safe to repeat after a pause
  4  outcome unknown; look before you repeat
  5  the node stopped, or its disk failed
  6  a key, lease or member that does not exist";

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a new cluster and run its first member
    Init(InitArgs),
    /// Join a cluster with a token and run this member
    Join(JoinArgs),
    /// Run the member whose data is in a directory
    Run(RunArgs),
    /// Go on with the one member that is left where most are lost for good
    Recover(RecoverArgs),
    /// Say what is damaged in the data directory of a member that does not run; exits with 5 if anything is
    Check(CheckArgs),
    /// Show a member and what it knows of the cluster
    Info(InfoArgs),
    /// List, add, promote and remove members
    Member(MemberArgs),
    /// Every node that has a certificate: list, show, take out, let come back
    Node(NodeArgs),
    /// Join tokens: list, make, rotate, revoke
    Token(TokenArgs),
    /// Print the command line that joins or enrols a node, token included
    JoinToken(JoinTokenArgs),
    /// Get a client or worker its first certificate, with a token
    Enrol(EnrolArgs),
    /// Write a key
    Put(PutCommand),
    /// Read keys
    Get(GetCommand),
    /// Remove keys
    Del(DeleteCommand),
    /// Follow keys: one line for each change
    Watch(WatchCommand),
    /// Compare, then do one of two lists of operations, as one step
    Txn(TxnCommand),
    /// Leases: keys that end by themselves
    Lease(LeaseArgs),
    /// Forget old versions of keys
    Compact(CompactArgs),
    /// Certificates for clients
    Cert(CertArgs),
    /// The cluster's root, and its replacement while it serves
    Ca(CaArgs),
    /// Names for revisions that stay readable and can be gone back to
    RollbackPoint(PointArgs),
    /// Show what has changed since a rollback point, or put it back
    Rollback(RollbackArgs),
    /// How many bytes of keys and values there may be: show, set
    Quota(QuotaArgs),
    /// Copies of the whole cluster in files: make, check, and make a new cluster from one
    Backup(BackupArgs),
    /// Move leadership to another member
    Transfer(TransferArgs),
    /// Lock what members keep on their disks, or show whether it is
    Autolock(AutolockArgs),
    /// Hand the unlock key, read from standard input, to a member on this machine that waits for it
    Unlock(UnlockArgs),
    /// The key that unlocks members after a start
    UnlockKey(UnlockKeyArgs),
    /// Copy the keys and leases of a running etcd into this cluster
    Import(MoveArgs),
    /// Copy a running etcd and follow it until the cut-over
    Mirror(MirrorArgs),
}

/// How to reach the cluster: endpoints with a client's certificate, or a member on this machine.
#[derive(Args, Debug, Default, Clone)]
#[command(next_help_heading = "Connection")]
pub struct ConnectArgs {
    /// Whom to ask, as whom.
    #[command(flatten)]
    pub reach: ReachArgs,
    /// The certificate in files of its own.
    #[command(flatten)]
    pub pair: PairArgs,
}

/// Whom to ask, and where the client's files are.
#[derive(Args, Debug, Default, Clone)]
#[command(next_help_heading = "Connection")]
pub struct ReachArgs {
    /// Members to ask, as HOST:PORT or https://HOST:PORT, separated by commas [env: RAFT_KV_ENDPOINTS]
    #[arg(long, global = true, value_name = "LIST")]
    pub endpoints: Option<String>,
    /// The folder of the client's cacert.pem, cert.pem and key.pem [env: RAFT_KV_CERT_DIR]
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "data_dir")]
    pub cert_dir: Option<PathBuf>,
    /// The cluster's root certificates (PEM) [env: RAFT_KV_CACERT]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "data_dir")]
    pub cacert: Option<PathBuf>,
    /// Instead of all these: the data directory of a member on this machine
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// A client's certificate and key, where they are not in a folder under their usual names.
#[derive(Args, Debug, Default, Clone)]
#[command(next_help_heading = "Connection")]
pub struct PairArgs {
    /// The client's certificate (PEM) [env: RAFT_KV_CERT]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "data_dir")]
    pub cert: Option<PathBuf>,
    /// The private key of the certificate (PEM) [env: RAFT_KV_KEY]
    #[arg(long = "key", global = true, value_name = "FILE", conflicts_with = "data_dir")]
    pub client_key: Option<PathBuf>,
}

/// Where a member listens and how others reach it.
#[derive(Args, Debug, Clone)]
pub struct PlaceArgs {
    /// A name for people, unique in the cluster [default: the machine's name]
    #[arg(long)]
    pub name: Option<String>,
    /// The address to listen on
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:2380")]
    pub listen_addr: SocketAddr,
    /// Where the other members and clients reach this one; needed where the machine has several addresses
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_addr: Option<String>,
    /// Where the etcd API listens (TCP), or `off`
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:2379")]
    pub etcd_addr: EtcdAddr,
    /// Where etcd's clients reach it [default: the host of --advertise-addr]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_etcd_addr: Option<String>,
    /// Bytes per second at which snapshots leave this member for others, all of them together [default: 0, no bound]
    #[arg(long, value_name = "BYTES")]
    pub snapshot_rate: Option<u64>,
    /// How long certificates that this member makes are valid
    #[arg(long, value_name = "TIME", value_parser = parse_time, hide = true)]
    pub cert_validity: Option<u64>,
}

/// What signs certificates where the cluster's signing key is kept outside.
#[derive(Args, Debug, Clone, Default)]
pub struct SignerArgs {
    /// A program that signs certificates where the cluster's signing key is kept outside; not remembered
    #[arg(long, value_name = "PROGRAM")]
    pub external_signer: Option<String>,
    /// An argument of that program; may be given several times
    #[arg(long, value_name = "ARG", requires = "external_signer", allow_hyphen_values = true)]
    pub external_signer_arg: Vec<String>,
}

/// Where the etcd API listens, if it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtcdAddr {
    /// Nowhere.
    Off,
    /// On this address.
    At(SocketAddr),
}

impl std::str::FromStr for EtcdAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            _ => text.parse().map(Self::At).map_err(|_| "give IP:PORT, or `off`".into()),
        }
    }
}

impl From<EtcdAddr> for Option<SocketAddr> {
    fn from(given: EtcdAddr) -> Self {
        match given {
            EtcdAddr::Off => None,
            EtcdAddr::At(addr) => Some(addr),
        }
    }
}

/// `init`.
#[derive(Args, Debug)]
pub struct InitArgs {
    /// Where the member keeps its data; must be empty or missing
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// A root of your own (PEM): the signing certificate, each one's issuer, the root last [default: one is made]
    #[arg(long, value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,
    /// The signing certificate's private key (PEM, PKCS #8); else --external-signer has it
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,
    /// Where it listens.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// What signs.
    #[command(flatten)]
    pub signer: SignerArgs,
}

/// `join`.
#[derive(Args, Debug)]
pub struct JoinArgs {
    /// Where the member keeps its data; must be empty or missing
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The join token, as `raft-kv join-token manager` prints it
    #[arg(long)]
    pub token: String,
    /// Where it listens.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// What signs.
    #[command(flatten)]
    pub signer: SignerArgs,
    /// Members of the cluster, as HOST:PORT
    #[arg(required = true, value_name = "ENDPOINT")]
    pub endpoints: Vec<String>,
}

/// `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Where the member keeps its data
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Listen here from now on
    #[arg(long, value_name = "IP:PORT")]
    pub listen_addr: Option<SocketAddr>,
    /// Tell the others to reach this member here from now on
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_addr: Option<String>,
    /// Serve the etcd API here from now on (TCP), or `off`
    #[arg(long, value_name = "IP:PORT")]
    pub etcd_addr: Option<EtcdAddr>,
    /// Tell etcd's clients to reach it here from now on
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_etcd_addr: Option<String>,
    /// Where the unlock key is, `-` for standard input [env: RAFT_KV_UNLOCK_KEY, the key itself]
    #[arg(long, value_name = "FILE")]
    pub unlock_key_file: Option<PathBuf>,
    /// How fast the disk is read again to find what has rotted, in MiB a second; 0 for never
    #[arg(long, value_name = "MIB", default_value = "16")]
    pub scrub_rate: u64,
    /// How often all of it is read again
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "24h")]
    pub scrub_every: u64,
    /// Bring the member back, with its id and data, where its certificate is not believed any more: a join
    /// token for managers
    #[arg(long)]
    pub token: Option<String>,
    /// With --token: members to ask, as HOST:PORT, separated by commas [default: those it knew]
    #[arg(long, value_name = "LIST", requires = "token")]
    pub endpoints: Option<String>,
    /// Bytes per second at which snapshots leave this member for others, all of them together [default: 0, no bound]
    #[arg(long, value_name = "BYTES")]
    pub snapshot_rate: Option<u64>,
    /// How long certificates that this member makes are valid
    #[arg(long, value_name = "TIME", value_parser = parse_time, hide = true)]
    pub cert_validity: Option<u64>,
    /// What signs.
    #[command(flatten)]
    pub signer: SignerArgs,
}

/// `info`.
#[derive(Args, Debug)]
pub struct InfoArgs {
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `member`.
#[derive(Args, Debug)]
pub struct MemberArgs {
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: MemberCommand,
}

/// The commands of `member`. A member is given by its id or its name.
#[derive(Subcommand, Debug)]
pub enum MemberCommand {
    /// List the members
    #[command(visible_alias = "list")]
    Ls,
    /// Check that a member may join, and print the command to run on its machine
    Add {
        /// Its name
        name: String,
        /// Where the others will reach it
        #[arg(long, value_name = "HOST:PORT")]
        addr: String,
    },
    /// Make a learner a voter
    Promote {
        /// Id or name
        member: String,
    },
    /// Take a member out for good
    #[command(visible_alias = "remove")]
    Rm {
        /// Id or name
        member: String,
    },
}

/// `lease`.
#[derive(Args, Debug)]
pub struct LeaseArgs {
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: LeaseCommand,
}

/// The commands of `lease`. Ids are hexadecimal.
#[derive(Subcommand, Debug)]
pub enum LeaseCommand {
    /// Make a lease that ends after TTL seconds unless it is kept alive
    Grant {
        /// Seconds
        #[arg(allow_negative_numbers = true)]
        ttl: i64,
        /// Its id [default: chosen by the cluster]
        #[arg(long, value_parser = parse_lease, default_value = "0", hide_default_value = true)]
        id: LeaseId,
    },
    /// End a lease now and remove its keys
    Revoke {
        /// Which
        #[arg(value_parser = parse_lease)]
        id: LeaseId,
    },
    /// Give a lease its full time again, until stopped
    KeepAlive {
        /// Which
        #[arg(value_parser = parse_lease)]
        id: LeaseId,
        /// Once, and end
        #[arg(long)]
        once: bool,
    },
    /// Show what a lease has left
    Ttl {
        /// Which
        #[arg(value_parser = parse_lease)]
        id: LeaseId,
        /// Also list its keys
        #[arg(long)]
        keys: bool,
    },
    /// List the leases
    #[command(visible_alias = "list")]
    Ls,
}

/// `compact`.
#[derive(Args, Debug)]
pub struct CompactArgs {
    /// The oldest revision that stays readable
    #[arg(allow_negative_numbers = true)]
    pub revision: Revision,
    /// Answer only when the old versions are gone from the member's disk
    #[arg(long)]
    pub physical: bool,
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `cert`.
#[derive(Args, Debug)]
pub struct CertArgs {
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: CertCommand,
}

/// The commands of `cert`.
#[derive(Subcommand, Debug)]
pub enum CertCommand {
    /// Make a key here, have the cluster sign a certificate for it, and write both
    Issue {
        /// The name that goes into the certificate
        name: String,
        /// What it may do
        #[arg(long, value_enum, default_value = "client")]
        role: CertRole,
        /// Where cacert.pem, cert.pem and key.pem are written
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Replace a client's certificate by a new one, its three files all at once
    Renew {
        /// Keep it current until stopped: in time, and at once when the cluster's root is replaced
        #[arg(long)]
        watch: bool,
        /// First come back, with the same id, where the certificate is not believed any more: a join token of
        /// its role
        #[arg(long)]
        token: Option<String>,
    },
}

/// The roles that a certificate can be issued for; managers come by `join`.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertRole {
    /// A process or tool that uses the store
    Client,
    /// A node that runs tasks
    Worker,
}

/// `transfer`.
#[derive(Args, Debug)]
pub struct TransferArgs {
    /// Id or name [default: the member that is best caught up]
    pub member: Option<String>,
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// A lease's id: hexadecimal, as it is shown.
pub fn parse_lease(text: &str) -> Result<LeaseId, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    match LeaseId::from_str_radix(digits, 16) {
        Ok(id) if !digits.starts_with(['+', '-']) => Ok(id),
        _ => Err("a lease's id is up to 16 hexadecimal digits, as `raft-kv lease ls` shows it".into()),
    }
}
