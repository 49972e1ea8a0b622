//! The words of `node`.

use clap::{Args, Subcommand};

use super::ConnectArgs;

/// `node`.
#[derive(Args, Debug)]
pub struct NodeArgs {
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// The commands of `node`. A node is given by its id, the beginning of it, or its name.
#[derive(Subcommand, Debug)]
pub enum NodeCommand {
    /// List every node that has a certificate: managers, clients, workers
    #[command(visible_alias = "list")]
    Ls,
    /// Show what is known of one node
    Inspect {
        /// Id, the beginning of it, or name
        node: String,
    },
    /// Take a node out: its certificate is refused everywhere, its connections end
    #[command(visible_alias = "remove")]
    Rm {
        /// Id, the beginning of it, or name
        node: String,
    },
    /// Make a manager that only learns a voter
    Promote {
        /// Id, the beginning of it, or name
        node: String,
    },
    /// Take a manager out of the group; its certificate is refused everywhere
    Demote {
        /// Id, the beginning of it, or name
        node: String,
    },
    /// Let a node whose certificate is not believed any more come back with a token, for a day
    Readmit {
        /// Id, the beginning of it, or name
        node: String,
    },
}
