//! Measurements of raft-kv: what the programs in `bin/` and the criterion benches share.
//!
//! Every number is printed with what it depends on: the disk's own speed, the load of the machine,
//! its kernel. A program that measures never decides whether a number is good.

pub mod compare;
pub mod data;
pub mod fleet;
pub mod fleet_worker;
pub mod host;
pub mod load;
pub mod members;
pub mod memory_log;
