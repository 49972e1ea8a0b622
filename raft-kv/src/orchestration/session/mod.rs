//! Sessions of workers: each worker's own tasks and what they reference, complete at first, then what
//! changes, and what it says of them.
//!
//! A session is served by whichever member the worker dialled, and goes on at any other: the worker
//! keeps a sealed [token](Update::results_in) of what it has, and what it had is read from history. Of
//! other nodes, of managers and of how much there is it must never say anything: not by ids, revisions
//! or counts, and what is not there is refused like what is not the node's.
//!
//! docs/workers.md is the protocol.

mod dispatcher;
mod hub;
mod nodes;
mod opened;
mod place;
mod reports;
mod stored;
mod view;
mod words;

#[cfg(test)]
pub(super) mod tests;

pub use dispatcher::Dispatcher;
pub use nodes::keep_nodes;
pub use opened::{Session, Voice};
pub use place::TOKEN_BYTES;
pub use words::{Assigned, Needed, Settings, Update};
