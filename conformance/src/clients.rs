//! Unmodified clients of etcd against real members. Each runs as its own program, with nothing but
//! an endpoint and the three certificate files, on a cluster of its own.

pub mod bugs;
pub mod etcdctl;
pub mod rust;
pub mod scripts;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::server::{Etcd, Place, RaftKv, Server};

/// Members that a client meets.
pub const MEMBERS: usize = 3;

/// What a client is run against, and where its own packages are.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The raft-kv binary; without it one member of Debian's etcd, to prove the scripts themselves.
    pub binary: Option<PathBuf>,
    /// Where packages from registries are kept between runs.
    pub tools: PathBuf,
}

impl Setting {
    /// A fresh cluster.
    ///
    /// # Errors
    /// It does not start.
    pub async fn cluster(&self) -> Result<Server, String> {
        match &self.binary {
            Some(binary) => Ok(Server::RaftKv(Box::new(RaftKv::start(binary, MEMBERS).await?))),
            None => {
                let server = Server::Etcd(Etcd::start(None)?);
                crate::side::Side::connect(server.place(), 0).await?;
                Ok(server)
            }
        }
    }
}

/// The place as the scripts are told of it.
pub(crate) fn told(command: &mut Command, place: &Place) {
    command.env("ENDPOINTS", place.addrs.join(","));
    for name in ["CA", "CERT", "KEY", "KILL"] {
        command.env_remove(name);
    }
    if let Some(files) = &place.files {
        command.env("CA", &files.ca).env("CERT", &files.cert).env("KEY", &files.key);
    }
}

/// The folder of this crate's scripts.
pub(crate) fn scripts_dir() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    Path::new(&manifest).join("clients")
}
