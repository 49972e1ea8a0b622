//! The words of `check`.

use std::path::PathBuf;

use clap::Args;

/// `check`.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The data directory of a member that does not run
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Where the unlock key is, `-` for standard input [env: RAFT_KV_UNLOCK_KEY, the key itself]
    #[arg(long, value_name = "FILE")]
    pub unlock_key_file: Option<PathBuf>,
}
