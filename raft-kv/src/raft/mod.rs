//! Consensus: a pure step round tikv's `RawNode`. No I/O, no clock, no chance of its own.
//!
//! [`Core`] takes one [`Input`] at a time and answers with everything it causes. What a peer sends
//! passes [`vet`] first. No promise to a peer leaves before the log's [`Proof`] that the disk has
//! what it promises.

mod adapter;
mod change;
mod core;
mod drain;
mod elections;
pub mod log_view;
mod message;
#[cfg(test)]
pub(crate) mod tests;
pub mod vet;
mod words;

pub use change::committed;
pub use core::Core;
pub use log_view::{LogView, Proof};
pub use message::{PeerMessage, Priority};
pub use vet::Refused;
pub use words::{
    ConfRefused, Input, Leadership, Options, Output, Progress, ReadContext, Role, Sending, Status,
};
