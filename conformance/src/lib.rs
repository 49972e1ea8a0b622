//! Is it etcd? The same random requests to Debian's etcd and to raft-kv with every answer compared,
//! and unmodified etcd clients against real members. Starts processes and ends only those; must
//! never be linked into the server.

pub mod ask;
pub mod clients;
pub mod compare;
pub mod differential;
pub mod explained;
pub mod fatal;
pub mod generate;
pub mod overlooked;
pub mod pair;
pub mod server;
pub mod shown;
pub mod shrink;
pub mod side;
pub mod watches;
