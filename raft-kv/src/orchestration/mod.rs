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
//!
//! docs/orchestration.md says more: the keys, the rules, the costs, and how a bad deployment is taken back.
//!
//! ```no_run
//! # #[cfg(feature = "node")]
//! # async fn example(node: raft_kv::client::Node) -> Result<(), raft_kv::error::Error> {
//! use raft_kv::orchestration::{
//!     Change, Fence, Labels, Object, ObjectKey, Orchestrator, Page, SystemClock, Task, TaskBy, TaskState, TaskStatus,
//! };
//! use raft_kv::types::NodeId;
//!
//! // A leader's: once a later leader has taken its own fence, everything that this one writes is refused.
//! let fence = Fence::take(&node.handle(), 7).await?;
//! let orchestrator = Orchestrator::new(node.handle(), SystemClock).fenced(fence);
//!
//! let web = Object {
//!     key: ObjectKey { kind: "service".into(), id: "1".into() },
//!     name: "web".into(),
//!     labels: Labels::from([("tier".into(), "front".into())]),
//!     refs: Vec::new(),
//!     spec: "image: web:1".into(),
//!     status: "".into(),
//!     version: 0,
//!     created: 0,
//!     updated: 0,
//! };
//! let web = orchestrator.create(web).await?;
//! // Refused with `VersionConflict` if somebody else changed it since.
//! let web = orchestrator.update(Object { spec: "image: web:2".into(), ..web }).await?;
//!
//! let new = TaskStatus { state: TaskState::New, message: "".into(), error: "".into(), exit_code: None, at: 0 };
//! let task = Task {
//!     id: String::new(), // one is drawn
//!     service: web.key.id,
//!     slot: 1,
//!     node: None,
//!     labels: Labels::new(),
//!     refs: Vec::new(),
//!     spec: web.spec,
//!     desired: TaskState::Running,
//!     status: new,
//!     version: 0,
//!     created: 0,
//!     updated: 0,
//! };
//! // One revision: the task, and of those of its slot that have ended only the newest five stay.
//! orchestrator.batch(vec![Change::CreateTask(task, Some(5))]).await?;
//! for task in orchestrator.tasks(TaskBy::Service("1".into()), Page::all()).await?.items {
//!     orchestrator.assign(&task.id, NodeId(5)).await?;
//! }
//! # Ok(())
//! # }
//! ```

mod alerts;
mod draft;
mod fence;
#[cfg(feature = "node")]
mod handle;
mod layout;
#[cfg(any(feature = "node", feature = "sim"))]
mod leadership;
#[cfg(all(test, feature = "node"))]
mod node_tests;
mod nodes;
mod objects;
mod orchestrator;
mod page;
#[cfg(any(feature = "node", feature = "sim"))]
mod queue;
mod rules;
#[cfg(any(feature = "node", feature = "sim"))]
pub mod session;
mod store;
mod stored;
mod tasks;
#[cfg(all(test, feature = "sim"))]
mod tests;
mod words;

pub use alerts::{Alert, AlertKind, Alerts, MAX_ALERT_TEXT_BYTES, MAX_ALERTS, MAX_SUBJECT_BYTES};
pub use fence::Fence;
#[cfg(feature = "node")]
pub use handle::SystemClock;
#[cfg(any(feature = "node", feature = "sim"))]
pub use leadership::{Duty, on_leadership};
pub use objects::ObjectBy;
pub use orchestrator::{Change, Changed, Orchestrator};
pub use page::{Listed, Page};
#[cfg(any(feature = "node", feature = "sim"))]
pub use queue::{Look, Queue};
pub use store::{Clock, Events, Store};
pub use tasks::{Reported, TaskBy};
pub use words::{
    Availability, Labels, NodeRecord, NodeState, Object, ObjectKey, Task, TaskState, TaskStatus, Time,
};
