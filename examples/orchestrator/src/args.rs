//! The words of the command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::{lead, worker};

/// A small orchestrator of processes on raft-kv.
#[derive(Parser, Debug)]
#[command(name = "orchestrator")]
pub struct Args {
    #[command(subcommand)]
    pub words: Words,
}

#[derive(Subcommand, Debug)]
pub enum Words {
    /// Run a manager: the first makes the cluster, others join it; one that was there before goes on
    Manager(ManagerWords),
    /// Run a worker
    Worker(WorkerWords),
    /// Make the services those of a Compose file (version 3), behind a new rollback point
    Deploy {
        file: PathBuf,
        #[command(flatten)]
        at: At,
    },
    /// List the tasks
    Ps {
        #[command(flatten)]
        at: At,
    },
    /// Change how many tasks a service has: SERVICE=N
    Scale {
        service: String,
        #[command(flatten)]
        at: At,
    },
    /// Put all services back as they were at a point; before the newest deployment where none is named
    Rollback {
        point: Option<String>,
        #[command(flatten)]
        at: At,
    },
    /// List the workers
    Nodes {
        #[command(flatten)]
        at: At,
    },
    /// Change a worker's labels or availability
    Node {
        /// Id, the beginning of it, or name
        node: String,
        /// NAME=VALUE, any number of times
        #[arg(long)]
        label: Vec<String>,
        #[arg(long)]
        availability: Option<Availability>,
        #[command(flatten)]
        at: At,
    },
    /// Print a token with which a manager or a worker may join
    Token {
        role: TokenRole,
        #[command(flatten)]
        at: At,
    },
}

/// Which manager is asked: one of this machine.
#[derive(clap::Args, Debug)]
pub struct At {
    /// The manager's folder
    #[arg(long, env = "ORCHESTRATOR_DATA_DIR")]
    pub data_dir: PathBuf,
}

#[derive(clap::Args, Debug)]
pub struct ManagerWords {
    /// Where everything is kept
    #[arg(long)]
    data_dir: PathBuf,
    /// Unique among managers; the folder's name where none is given
    #[arg(long)]
    name: Option<String>,
    /// UDP address for other managers, joiners and clients
    #[arg(long, alias = "listen-addr", default_value = "127.0.0.1:2380")]
    listen: SocketAddr,
    /// TCP address for workers' sessions and etcd's clients
    #[arg(long, alias = "etcd-addr", default_value = "127.0.0.1:2379")]
    etcd: SocketAddr,
    /// How often workers say that they are there, in milliseconds; after three that are missed one is down
    #[arg(long, default_value_t = 5000)]
    heartbeat: u64,
    /// The token of another manager's cluster, and that manager's address
    #[arg(long, num_args = 2, value_names = ["TOKEN", "ADDR"])]
    join: Option<Vec<String>>,
}

#[derive(clap::Args, Debug)]
pub struct WorkerWords {
    /// Where its certificate and its tasks' files are kept
    #[arg(long)]
    data_dir: PathBuf,
    /// What it calls itself; the folder's name where none is given
    #[arg(long)]
    name: Option<String>,
    /// The token with which a new worker joins
    #[arg(long, value_name = "TOKEN")]
    join: Option<String>,
    /// Addresses of managers for joining and renewing (their --listen)
    #[arg(long, required = true, value_delimiter = ',')]
    authority: Vec<String>,
    /// Addresses of managers for the session (their --etcd)
    #[arg(long, required = true, value_delimiter = ',')]
    entry: Vec<String>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenRole {
    Manager,
    Worker,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Availability {
    Active,
    Pause,
    Drain,
}

impl Availability {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        }
    }
}

impl ManagerWords {
    pub fn place(self) -> lead::Place {
        let join = self.join.and_then(|words| <[String; 2]>::try_from(words).ok());
        lead::Place {
            name: self.name.unwrap_or_else(|| name_of(&self.data_dir)),
            data_dir: self.data_dir,
            listen: self.listen,
            etcd: self.etcd,
            heartbeat: std::time::Duration::from_millis(self.heartbeat),
            join: join.map(|[token, addr]| (token, addr)),
        }
    }
}

impl WorkerWords {
    pub fn place(self) -> worker::Place {
        worker::Place {
            name: self.name.unwrap_or_else(|| name_of(&self.data_dir)),
            data_dir: self.data_dir,
            token: self.join,
            join: self.authority,
            entries: self.entry,
        }
    }
}

fn name_of(data_dir: &std::path::Path) -> String {
    data_dir.file_name().map_or_else(|| "node".into(), |name| name.to_string_lossy().into_owned())
}
