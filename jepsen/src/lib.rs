//! Real `raft-kv` processes, real faults, and checkers of the history their clients saw.
//!
//! [`cluster`] runs the members · [`workload`]s use them and write down every operation in a
//! [`history`] · a [`nemesis`] breaks things meanwhile · each [`checker`] holds the whole history to one
//! claim · [`run`] is the order of it. A checker takes values and no cluster: it is tested on
//! histories that are wrong on purpose.

pub mod checker;
pub mod cluster;
pub mod disk;
pub mod history;
pub mod nemesis;
pub mod network;
pub mod run;
pub mod workload;
