//! A Raft consensus engine and multi-version key-value store in one handle.
// The layers, each importing only from those above it in this list (ARCHITECTURE.md has the map,
// `cargo xtask check` holds it).

// 0 words
pub mod codec;
pub mod error;
pub mod limits;
#[doc(hidden)]
pub mod planted;
pub mod types;
// 1 pure
pub mod machine;
pub mod pki;
pub mod raft;
pub mod watch;
// 2 edges
#[cfg(feature = "net")]
pub mod net;
pub mod storage;
// 3 loop
pub mod node;
// 4 doors
#[cfg(feature = "node")]
pub mod client;
#[cfg(feature = "sim")]
pub mod sim;
