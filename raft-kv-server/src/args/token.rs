//! The words of `token`, `join-token` and `enrol`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{ConnectArgs, parse_time};

/// `token`.
#[derive(Args, Debug)]
pub struct TokenArgs {
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// The commands of `token`. A token is given by its id.
#[derive(Subcommand, Debug)]
pub enum TokenCommand {
    /// List the join tokens, without their secrets
    #[command(visible_alias = "list")]
    Ls,
    /// Make a join token and print it
    Create {
        /// What it makes of a node
        role: TokenRole,
        /// For people: whom it is for
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        label: String,
        /// How long it is good for: seconds, or a number with s, m, h or d [default: for ever]
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        expires: Option<u64>,
        /// For how many nodes it is good [default: any number]
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
        uses: Option<u64>,
    },
    /// Give a token a new secret and print it; the old one stops working at once
    Rotate {
        /// Its id; or `manager` or `worker`
        token: String,
    },
    /// Remove a token
    #[command(visible_alias = "rm")]
    Revoke {
        /// Its id
        token: String,
    },
}

/// The roles that a token can give.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenRole {
    /// A member of the raft group
    Manager,
    /// A process or tool that uses the store
    Client,
    /// A node that runs tasks
    Worker,
}

/// `join-token`.
#[derive(Args, Debug)]
pub struct JoinTokenArgs {
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// `manager` or `worker`, or the id of a token that was made
    #[arg(value_name = "manager|worker|TOKEN")]
    pub token: String,
}

/// `enrol`.
#[derive(Args, Debug)]
pub struct EnrolArgs {
    /// A join token for clients or workers, as `raft-kv join-token` prints it
    #[arg(long)]
    pub token: String,
    /// Members to ask, as HOST:PORT, separated by commas
    #[arg(long, value_name = "LIST")]
    pub endpoints: String,
    /// Its name; a client acts as the user of that name
    #[arg(long)]
    pub name: String,
    /// Where cacert.pem, cert.pem and key.pem are written
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}
