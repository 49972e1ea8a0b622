//! Tasks and state of an orchestrator: a typed layer on transactions of keys.
//!
//! An orchestrator's managers keep what should be ([`Object`]s: services, networks, secrets, whatever
//! kinds they have) and what is done about it ([`Task`]s) here; its workers get their own tasks and say
//! what became of them. Each call is one transaction, one revision: an object and all its indexes
//! change together or not at all. The machine below knows nothing of it.
//!
//! Everything is generic over a [`Store`] and a [`Clock`]: a [`Handle`](crate::client::Handle) and the
//! system's clock in a manager's process, or a simulated client on simulated time. It must never
//! read a clock, draw a number or wait by any other way than these two.

mod draft;
mod fence;
#[cfg(feature = "node")]
mod handle;
mod layout;
mod nodes;
mod objects;
mod orchestrator;
mod page;
mod rules;
#[cfg(any(feature = "node", feature = "sim"))]
pub mod session;
mod store;
mod stored;
mod tasks;
#[cfg(all(test, feature = "sim"))]
mod tests;
mod words;

pub use fence::Fence;
#[cfg(feature = "node")]
pub use handle::SystemClock;
pub use objects::ObjectBy;
pub use orchestrator::{Change, Changed, Orchestrator};
pub use page::{Listed, Page};
pub use store::{Clock, Events, Store};
pub use tasks::{Reported, TaskBy};
pub use words::{
    Availability, Labels, NodeRecord, NodeState, Object, ObjectKey, Task, TaskState, TaskStatus, Time,
};
