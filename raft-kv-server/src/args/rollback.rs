//! The words of `rollback-point` and `rollback`.

use std::ffi::OsString;

use clap::{Args, Subcommand};

use super::{ConnectArgs, parse_time};
use crate::bytes_arg::Form;

/// `rollback-point`.
#[derive(Args, Debug)]
pub struct PointArgs {
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: PointCommand,
}

/// The commands of `rollback-point`.
#[derive(Subcommand, Debug)]
pub enum PointCommand {
    /// Name the store as it is now, or was at a revision, so that it stays readable and can be gone back to
    Create {
        /// Its name: one word, no other point's
        name: String,
        /// An older revision that can still be read [default: now]
        #[arg(long, value_name = "REVISION")]
        rev: Option<i64>,
        /// Remove it by itself after this time: seconds, or a number with s, m, h or d [default: never]
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        expires: Option<u64>,
        /// What it is for
        #[arg(long, default_value = "")]
        comment: String,
    },
    /// List the points and the schedules
    #[command(visible_alias = "list")]
    Ls,
    /// Show a point, and how much has changed since
    Show {
        /// Its name
        name: String,
    },
    /// Remove a point
    #[command(visible_alias = "remove")]
    Rm {
        /// Its name
        name: String,
    },
    /// Have points made by the cluster, again and again; replaces a schedule of that name
    Schedule {
        /// Its name; `hourly`, `daily` and `weekly` say how often themselves
        name: String,
        /// From one point to the next: seconds, or a number with s, m, h or d
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        every: Option<u64>,
        /// How many of its points are kept, the newest
        #[arg(long, value_name = "N")]
        keep: u32,
    },
    /// End a schedule; its points stay
    Unschedule {
        /// Its name
        name: String,
    },
}

/// `rollback`.
#[derive(Args, Debug)]
pub struct RollbackArgs {
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: RollbackCommand,
}

/// The commands of `rollback`.
#[derive(Subcommand, Debug)]
pub enum RollbackCommand {
    /// Show what differs between a point and now: one line for each key
    Diff {
        /// The point's name
        point: String,
        /// Which keys.
        #[command(flatten)]
        keys: PrefixArgs,
        /// Count only
        #[arg(long)]
        stat: bool,
    },
    /// Put the keys back as they were at a point: one new revision, while the cluster serves
    To {
        /// The point's name
        point: String,
        /// Which keys.
        #[command(flatten)]
        keys: PrefixArgs,
        /// Show what it would do, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// Which keys are meant.
#[derive(Args, Debug, Clone)]
pub struct PrefixArgs {
    /// Only keys that begin with this [default: all]
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<OsString>,
    /// How bytes are given.
    #[command(flatten)]
    pub form: Form,
}
