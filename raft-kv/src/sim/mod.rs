//! A cluster in one thread from one seed, and the modelled world below it.
//!
//! [`Cluster`] runs the product's own consensus core, raft log, state machine and watch hub over
//! a modelled disk, network and clock, one event at a time: an hour of cluster time takes seconds,
//! and a seed replays any failure. Managers that build on the store can test their logic on it.
//! [`run`] adds clients, faults and checks, and is what `cargo xtask sim` calls.
//! `docs/simulation.md` says what is modelled and what is checked.

mod afterlife;
mod bugs;
pub mod checks;
mod cluster;
pub mod disk;
mod faults;
mod feed;
mod image;
mod join;
mod judge;
mod member;
mod network;
mod operator;
mod process;
mod reads;
mod requests;
mod rot;
mod run;
mod scheduler;
mod serve;
mod steward;
mod surveyor;
mod tally;
mod trust;
mod workload;

pub use bugs::{FOUND_BY_SIMULATION, bug_named, is_about_roots};
pub use cluster::{COMPARE_EVERY, Cluster, ClusterCounts, ClusterOptions, Happening, HostId, WatchKey};
pub use member::{Host, Promise, Speed, Stop};
pub use network::{Network, NetworkCounts, NetworkOptions};
pub use run::{Failure, Options, Report, quiet_panics, run};
pub use scheduler::{Trace, stream};
pub use trust::{Believed, Leaf, Papers, Why, authority};
