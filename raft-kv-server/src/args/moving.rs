//! The words of `import` and `mirror`.

use std::path::PathBuf;

use clap::Args;
use raft_kv::types::Revision;

use super::ConnectArgs;

/// `import`, and what `mirror` shares with it.
#[derive(Args, Debug)]
pub struct MoveArgs {
    /// The etcd to leave, as http://HOST:PORT or https://HOST:PORT, separated by commas
    #[arg(long, value_name = "LIST")]
    pub from: String,
    /// Its root certificates (PEM), for https
    #[arg(long, value_name = "FILE")]
    pub from_cacert: Option<PathBuf>,
    /// The certificate to show it (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["from_key", "from_cacert"])]
    pub from_cert: Option<PathBuf>,
    /// The private key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "from_cert")]
    pub from_key: Option<PathBuf>,
    /// A user there who may read all keys
    #[arg(long, value_name = "NAME:PASSWORD", env = "RAFT_KV_FROM_USER", hide_env_values = true)]
    pub from_user: Option<String>,
    /// How far above the source's revision this cluster's goes at the end
    #[arg(long, value_name = "REVISIONS", default_value = "1000000000", allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(0..=1 << 60))]
    pub margin: Revision,
    /// Make a cluster that is not empty what the source is; all else in it is removed
    #[arg(long)]
    pub overwrite: bool,
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `mirror`.
#[derive(Args, Debug)]
pub struct MirrorArgs {
    /// What to copy, and from where.
    #[command(flatten)]
    pub moving: MoveArgs,
    /// End as soon as this cluster is level with the source
    #[arg(long)]
    pub until_level: bool,
}
