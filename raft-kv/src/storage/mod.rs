//! The disk: the raft log, the state on RocksDB, checkpoints.

pub mod files;
pub mod log;
