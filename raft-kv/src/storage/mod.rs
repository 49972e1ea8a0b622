//! The disk: the raft log, the state on RocksDB, checkpoints.

#[cfg(feature = "node")]
pub mod check;
#[cfg(feature = "node")]
pub mod checkpoint;
pub mod files;
pub mod log;
#[cfg(feature = "node")]
pub mod rocks;
#[cfg(feature = "node")]
pub mod scrub;
#[cfg(feature = "node")]
pub mod state;
