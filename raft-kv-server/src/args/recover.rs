//! The words of `recover`.

use std::path::PathBuf;

use clap::Args;

use super::SignerArgs;

/// `recover`.
#[derive(Args, Debug)]
pub struct RecoverArgs {
    /// Where the member that is left keeps its data; it must not run
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Do it; without this it only says what it would do
    #[arg(long)]
    pub yes: bool,
    /// Only say what it would do, and end with 0
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// By how much the revision goes up: more than the lost members can have made without this one
    #[arg(long, value_name = "N", default_value_t = raft_kv::limits::RECOVERY_REVISIONS)]
    pub margin: i64,
    /// Where the log is damaged: go on with the state alone; what only the log has is lost
    #[arg(long)]
    pub without_log: bool,
    /// Where the unlock key is, `-` for standard input [env: RAFT_KV_UNLOCK_KEY, the key itself]
    #[arg(long, value_name = "FILE")]
    pub unlock_key_file: Option<PathBuf>,
    /// What signs.
    #[command(flatten)]
    pub signer: SignerArgs,
}
