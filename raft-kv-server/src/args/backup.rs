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
    Restore(Box<BackupRestoreArgs>),
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
    /// Only what has happened to keys since that backup, with the same key
    #[arg(long, value_name = "BACKUP")]
    pub since: Option<PathBuf>,
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
    /// Changes since the backup, as `raft-kv backup create --since` wrote them; may be given several times, in order
    #[arg(long, value_name = "FILE")]
    pub then: Vec<PathBuf>,
    /// With --then: only what was backed up by this time, as 2026-11-22T10:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_moment, conflicts_with = "to_revision")]
    pub to: Option<i64>,
    /// With --then: only up to this revision of the old cluster
    #[arg(long, value_name = "REVISION")]
    pub to_revision: Option<Revision>,
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

/// A moment as people write it (RFC 3339, seconds and even minutes may be left out), in seconds since 1970.
pub fn parse_moment(text: &str) -> Result<i64, String> {
    use time::format_description::well_known::Rfc3339;
    let bare = text.strip_suffix('Z').unwrap_or(text);
    let full = match bare.len() {
        10 => format!("{bare}T00:00:00Z"),
        16 => format!("{bare}:00Z"),
        _ => text.to_owned(),
    };
    let at = time::OffsetDateTime::parse(&full, &Rfc3339);
    at.map(time::OffsetDateTime::unix_timestamp).map_err(|_| {
        "give it in UTC as 2026-11-22T10:00Z, or with an offset as 2026-11-22T11:00:00+01:00".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        for (text, expect) in [
            ("1970-01-02", Some(86_400)),
            ("1970-01-01T00:01Z", Some(60)),
            ("1970-01-01T00:01:05Z", Some(65)),
            ("1970-01-01T01:00:05+01:00", Some(5)),
            ("yesterday", None),
            ("2026-13-01", None),
            ("", None),
        ] {
            assert_eq!(parse_moment(text).ok(), expect, "{text}");
        }
    }
}
