//! The words of `backup`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use raft_kv::types::{NodeId, Revision};

use super::{ConnectArgs, PlaceArgs, SignerArgs, parse_time};

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
    /// Keep a folder filled with full backups and what was committed since, until it is stopped
    Archive(BackupArchiveArgs),
    /// Read a backup or an archive through, offline, and say what it is of
    Verify(BackupVerifyArgs),
    /// Make the first member of a new cluster from a backup or an archive, offline; `raft-kv run` then starts it
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

/// `backup archive`.
#[derive(Args, Debug)]
pub struct BackupArchiveArgs {
    /// The folder; made if it is not there. What is in it is gone on with
    pub dir: PathBuf,
    /// How the archive is kept.
    #[command(flatten)]
    pub keeping: KeepingArgs,
    /// Encrypt everything with the key in this file, as `raft-kv backup key` makes one, `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Write how far it is into this file, for Prometheus's node exporter
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// How an archive is kept.
#[derive(Args, Debug)]
pub struct KeepingArgs {
    /// Close a file so long after a change at the latest
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "10s")]
    pub every: u64,
    /// Close a file when so many bytes of changes are in it; that much is held in memory
    #[arg(long, value_name = "BYTES", default_value_t = 16 * 1024 * 1024, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub every_bytes: u64,
    /// Make a full backup so often, if anything has changed
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "24h")]
    pub full_every: u64,
    /// Remove what is older, whole chains at a time [default: nothing is removed]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub keep: Option<u64>,
}

/// `backup verify`.
#[derive(Args, Debug)]
pub struct BackupVerifyArgs {
    /// The backup, or what `etcdctl snapshot save` wrote, or the folder of an archive
    pub file: PathBuf,
    /// The key that it was made with, `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// `backup restore`.
#[derive(Args, Debug)]
pub struct BackupRestoreArgs {
    /// The backup, or what `etcdctl snapshot save` wrote, or the folder of an archive
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
    /// With --then or an archive: only what was there by this time, as 2026-11-22T10:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_moment, conflicts_with = "to_revision")]
    pub to: Option<i64>,
    /// With --then or an archive: only up to this revision of the old cluster
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

/// A moment as people write it (RFC 3339, seconds and even minutes may be left out), in milliseconds since 1970.
pub fn parse_moment(text: &str) -> Result<i64, String> {
    use time::format_description::well_known::Rfc3339;
    let bare = text.strip_suffix('Z').unwrap_or(text);
    let full = match bare.len() {
        10 => format!("{bare}T00:00:00Z"),
        16 => format!("{bare}:00Z"),
        _ => text.to_owned(),
    };
    let at = time::OffsetDateTime::parse(&full, &Rfc3339);
    let milliseconds = |at: time::OffsetDateTime| at.unix_timestamp() * 1000 + i64::from(at.millisecond());
    at.map(milliseconds).map_err(|_| {
        "give it in UTC as 2026-11-22T10:00Z, or with an offset as 2026-11-22T11:00:00+01:00".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        for (text, expect) in [
            ("1970-01-02", Some(86_400_000)),
            ("1970-01-01T00:01Z", Some(60_000)),
            ("1970-01-01T00:01:05Z", Some(65_000)),
            ("1970-01-01T00:01:05.25Z", Some(65_250)),
            ("1970-01-01T01:00:05+01:00", Some(5000)),
            ("yesterday", None),
            ("2026-13-01", None),
            ("", None),
        ] {
            assert_eq!(parse_moment(text).ok(), expect, "{text}");
        }
    }
}
