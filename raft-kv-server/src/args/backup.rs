//! The words of `backup`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use raft_kv::types::{NodeId, Revision};

use super::{ConnectArgs, PlaceArgs, SignerArgs};

/// `backup`.
#[derive(Args, Debug)]
pub struct BackupArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: BackupCommand,
}

/// The commands of `backup`.
#[derive(Subcommand, Debug)]
pub enum BackupCommand {
    /// Write a backup of the cluster, while it serves, into a file
    Create(BackupCreateArgs),
    /// Read a backup through, offline, and say what it is of
    Verify(BackupVerifyArgs),
    /// Make the first member of a new cluster from a backup, offline; `raft-kv run` then starts it
    Restore(BackupRestoreArgs),
    /// Make a key to encrypt backups with
    Key {
        /// Where it is written; must not exist
        file: PathBuf,
    },
}

/// `backup create`.
#[derive(Args, Debug)]
pub struct BackupCreateArgs {
    /// Where it is written
    pub file: PathBuf,
    /// Encrypt it with the key in this file, as `raft-kv backup key` makes one, `-` for standard input; it then has
    /// what opens the cluster's secrets, and a restored cluster keeps its root
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Replace a file that is there
    #[arg(long)]
    pub force: bool,
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `backup verify`.
#[derive(Args, Debug)]
pub struct BackupVerifyArgs {
    /// The backup, or what `etcdctl snapshot save` wrote
    pub file: PathBuf,
    /// The key that it was made with, `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// `backup restore`.
#[derive(Args, Debug)]
pub struct BackupRestoreArgs {
    /// The backup, or what `etcdctl snapshot save` wrote
    pub file: PathBuf,
    /// Where the new member keeps its data; must be empty or missing
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The key that it was made with, `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Raise the revision by so much: more than the writes since the backup [default: 1000000000]
    #[arg(long, value_name = "N")]
    pub raise_revision: Option<Revision>,
    /// A node that was removed after the backup was made, by its id; may be given several times
    #[arg(long, value_name = "ID")]
    pub without: Vec<NodeId>,
    /// Where the secrets are not in the backup: a root of your own (PEM), as for `raft-kv init` [default: one is made]
    #[arg(long, value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,
    /// The signing certificate's private key (PEM, PKCS #8); else --external-signer has it
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,
    /// Where it will listen.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// What signs.
    #[command(flatten)]
    pub signer: SignerArgs,
}
