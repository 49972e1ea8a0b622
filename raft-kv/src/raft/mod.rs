//! Consensus: a pure step round tikv's `RawNode`. No I/O, no clock, no chance of its own.

pub mod log_view;

pub use log_view::{LogView, Proof};
