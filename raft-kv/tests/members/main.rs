//! Members in one process over real QUIC and RocksDB. `RUST_LOG=info` shows what a run did.

#![cfg(feature = "node")]

mod backup;
mod permissions;
mod ranges;
mod recovery;
mod renewing;
mod rollback;
mod rotation;
mod serving;
mod support;
