//! The words of `put`, `get`, `del`, `watch` and `txn`. A transaction's operations are made of the
//! same parts, without connection.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use raft_kv::types::{LeaseId, Revision, SortOrder, SortTarget};

use super::{ConnectArgs, parse_lease};
use crate::bytes_arg::Form;

/// Which keys.
#[derive(Args, Debug, Clone)]
pub struct RangeArgs {
    /// The key, or the first of several
    pub key: OsString,
    /// The end of the range, not included
    #[arg(conflicts_with_all = ["prefix", "from_key"])]
    pub end: Option<OsString>,
    /// All keys that start with KEY; all there are for an empty one
    #[arg(long, conflicts_with = "from_key")]
    pub prefix: bool,
    /// All keys from KEY on
    #[arg(long)]
    pub from_key: bool,
}

/// `put`.
#[derive(Args, Debug)]
pub struct PutCommand {
    /// What to write.
    #[command(flatten)]
    pub put: PutArgs,
    /// How keys and values are written.
    #[command(flatten)]
    pub form: Form,
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// What to write.
#[derive(Args, Debug, Clone)]
pub struct PutArgs {
    /// The key
    pub key: OsString,
    /// The value; - reads it from standard input
    #[arg(
        required_unless_present = "ignore_value",
        conflicts_with = "ignore_value",
        allow_negative_numbers = true
    )]
    pub value: Option<OsString>,
    /// The lease that the key ends with, in hexadecimal
    #[arg(long, value_name = "ID", value_parser = parse_lease, default_value = "0", hide_default_value = true)]
    pub lease: LeaseId,
    /// Also answer what the key was before
    #[arg(long)]
    pub prev_kv: bool,
    /// Keep the value the key has
    #[arg(long)]
    pub ignore_value: bool,
    /// Keep the lease the key has
    #[arg(long)]
    pub ignore_lease: bool,
}

/// `get`.
#[derive(Args, Debug)]
pub struct GetCommand {
    /// What to read.
    #[command(flatten)]
    pub get: GetArgs,
    /// Read what was there at this rollback point
    #[arg(long, conflicts_with = "rev")]
    pub point: Option<String>,
    /// Write the bytes of the values as they are, and nothing else
    #[arg(long, conflicts_with_all = ["json", "keys_only", "count_only"])]
    pub raw: bool,
    /// How keys and values are written.
    #[command(flatten)]
    pub form: Form,
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// What to read.
#[derive(Args, Debug, Clone)]
pub struct GetArgs {
    /// Which keys.
    #[command(flatten)]
    pub range: RangeArgs,
    /// At most so many; 0 for all
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub limit: i64,
    /// As of this revision; 0 for now
    #[arg(
        long,
        value_name = "REVISION",
        default_value_t = 0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub rev: Revision,
    /// Leave the values out
    #[arg(long)]
    pub keys_only: bool,
    /// Answer only how many there are
    #[arg(long)]
    pub count_only: bool,
    /// Sort by
    #[arg(long, value_enum)]
    pub sort_by: Option<SortBy>,
    /// Smallest or largest first
    #[arg(long, value_enum)]
    pub order: Option<Order>,
    /// Let the member answer from its own state, which may be old
    #[arg(long)]
    pub serializable: bool,
}

/// What a range is sorted by.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortBy {
    /// The key
    Key,
    /// How often it was put since it was made
    Version,
    /// The revision that made it
    Create,
    /// The revision that last changed it
    Mod,
    /// The value
    Value,
}

impl From<SortBy> for SortTarget {
    fn from(by: SortBy) -> Self {
        match by {
            SortBy::Key => Self::Key,
            SortBy::Version => Self::Version,
            SortBy::Create => Self::Create,
            SortBy::Mod => Self::Mod,
            SortBy::Value => Self::Value,
        }
    }
}

/// Which way a range is sorted.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Smallest first
    #[value(alias = "ascend")]
    Asc,
    /// Largest first
    #[value(alias = "descend")]
    Desc,
}

impl From<Order> for SortOrder {
    fn from(order: Order) -> Self {
        match order {
            Order::Asc => Self::Ascend,
            Order::Desc => Self::Descend,
        }
    }
}

/// `del`.
#[derive(Args, Debug)]
pub struct DeleteCommand {
    /// What to remove.
    #[command(flatten)]
    pub delete: DeleteArgs,
    /// How keys and values are written.
    #[command(flatten)]
    pub form: Form,
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// What to remove.
#[derive(Args, Debug, Clone)]
pub struct DeleteArgs {
    /// Which keys.
    #[command(flatten)]
    pub range: RangeArgs,
    /// Also answer what the keys were before
    #[arg(long)]
    pub prev_kv: bool,
}

/// `watch`.
#[derive(Args, Debug)]
pub struct WatchCommand {
    /// Which keys.
    #[command(flatten)]
    pub range: RangeArgs,
    /// Start with the changes of this revision; 0 for what comes from now on
    #[arg(
        long,
        value_name = "REVISION",
        default_value_t = 0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pub from_revision: Revision,
    /// Also say what keys were before
    #[arg(long)]
    pub prev_kv: bool,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub events: Option<u64>,
    /// How keys and values are written.
    #[command(flatten)]
    pub form: Form,
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `txn`.
#[derive(Args, Debug)]
#[command(after_help = TXN_HELP)]
pub struct TxnCommand {
    /// Read the transaction from this file and not from standard input
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// The form of a transaction, for people.
pub const TXN_HELP: &str = r#"The transaction, as text (or as JSON, see docs/cli.md):

  if
    version jobs/7 = 0               # version, create, mod, value or lease; = != < >
    value config/mode != "read only"
  then
    put jobs/7 "a value\x00" --lease 1f
    del tmp/ --prefix
  else
    get jobs/7

All of `if` must hold for `then`, else `else` is done; each block may be missing. Words in double
quotes take the escapes \xNN \n \r \t \0 \\ \". Operations take the options of `raft-kv put`, `get`
and `del`. `txn` … `end` on lines of their own hold a transaction within."#;
