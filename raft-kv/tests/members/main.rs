//! Members in one process over real QUIC and RocksDB. `RUST_LOG=info` shows what a run did.

#![cfg(feature = "node")]

mod archive;
mod backup;
mod permissions;
mod quota;
mod ranges;
mod recover;
mod recovery;
mod renewing;
mod repair;
mod rollback;
mod rotation;
mod serving;
mod snapshots;
mod support;
