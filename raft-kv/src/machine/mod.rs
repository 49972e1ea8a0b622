//! What every member computes from the log: the multi-version key space, transactions, leases,
//! compaction, members and tokens.
//!
//! Pure: no clock, no chance, no hash order. The same entries give the same bytes on every member.

pub mod command;
pub mod store;

pub use command::{Answer, Command, Outcome, Proposal};
pub use store::{Batch, Read, Store, Table};
