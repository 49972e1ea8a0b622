//! The words of the commands about the lock on members' disks. A key is never one of them: what is
//! on a command line can be seen by every user of the machine.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::ConnectArgs;

/// `autolock`.
#[derive(Args, Debug)]
pub struct AutolockArgs {
    /// What to do
    #[arg(default_value = "status")]
    pub what: Autolock,
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// What `autolock` does.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Autolock {
    /// Lock members' disks, and print the key that unlocks them
    On,
    /// Unlock them
    Off,
    /// Show whether they are locked
    Status,
}

/// `unlock`.
#[derive(Args, Debug)]
pub struct UnlockArgs {
    /// The data directory of the member that waits
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
}

/// `unlock-key`.
#[derive(Args, Debug)]
pub struct UnlockKeyArgs {
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: UnlockKeyCommand,
}

/// The commands of `unlock-key`.
#[derive(Subcommand, Debug, Clone, Copy)]
pub enum UnlockKeyCommand {
    /// Print it
    Show,
    /// Give the cluster another one, and print that
    Rotate,
}
