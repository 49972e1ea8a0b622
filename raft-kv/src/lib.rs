//! raft-kv: a Raft consensus engine and multi-version key-value store in one handle.
//!
//! A manager process links this crate, calls [`client::Node::init`] once, [`client::Node::join`]
//! on its peers with the token that the first one gives, and from then on has a replicated store
//! with etcd's semantics on every manager: no other process, no PKI, no plaintext.
//!
//! ```no_run
//! # #[cfg(feature = "node")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use raft_kv::client::{Config, Node, Tuning};
//! use raft_kv::types::{PutRequest, Role};
//!
//! let config = Config {
//!     data_dir: "manager-1".into(),
//!     name: "manager-1".into(),
//!     listen_addr: "192.0.2.1:2380".parse()?,
//!     advertise_addr: None,
//!     client_addr: None,
//!     advertise_client_addr: None,
//!     own_root: None,
//!     external_signer: None,
//!     tuning: Tuning::default(),
//! };
//! let node = Node::init(config).await?;
//! println!("let others join with {}", node.handle().join_token(Role::Manager).await?);
//!
//! let put = PutRequest { key: "services/web".into(), value: "replicas=3".into(), ..Default::default() };
//! let (header, _) = node.handle().put(put).await?;
//! println!("written at revision {}", header.revision);
//! node.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! * [`client`]: the door. [`client::Node`] is a member in this process, [`client::Handle`] is how
//!   it, or a member elsewhere, is used; [`client::Node::leadership`] says when to run a leader's
//!   duties, with the term as fencing token.
//! * [`types`] and [`error`]: requests, answers, and errors that say what to do next: refused,
//!   certainly not done, or unknown.
//! * `sim` (feature `sim`): a cluster in one thread from one seed, over disks, networks and clocks
//!   that fail.
//!
//! Without the default feature `node` the crate is its pure core: no RocksDB, no sockets.
// The layers, each importing only from those above it in this list. ARCHITECTURE.md has the map;
// `cargo xtask check` holds it.

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
pub mod client;
// 5 typed
pub mod orchestration;
#[cfg(feature = "sim")]
pub mod sim;
