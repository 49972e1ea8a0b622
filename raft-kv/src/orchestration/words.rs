//! The nouns of an orchestrator's store and their stored form. Fields are only ever added at the end.

use bytes::Bytes;

use crate::codec::{wire_enum, wire_struct};
use crate::types::{NodeId, Revision};

/// Milliseconds since 1970, by the clock of whoever wrote it.
pub type Time = u64;

/// Names and values that people give; sorted by name, no name twice.
pub type Labels = Vec<(String, String)>;

/// Which object: its kind (`service`, `network`, `secret`, …) and id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectKey {
    /// The orchestrator's word for it.
    pub kind: String,
    /// Unique in its kind, never given to another object.
    pub id: String,
}
wire_struct!(ObjectKey { kind, id });

/// Something that should be: a service, a network, a secret, of any kind that the orchestrator has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    /// Which.
    pub key: ObjectKey,
    /// Unique in its kind; may be given to another object once this one is deleted.
    pub name: String,
    /// What it can be listed by.
    pub labels: Labels,
    /// Other objects that it needs; it can be listed by them, and they can't be deleted before it.
    pub refs: Vec<ObjectKey>,
    /// What should be, in the orchestrator's own form.
    pub spec: Bytes,
    /// What is, in the orchestrator's own form. Changed by itself, without the version check of the rest.
    pub status: Bytes,
    /// The revision that last changed anything of it but the status; 0 for one that is not stored yet.
    /// Not part of the stored bytes.
    pub version: Revision,
    /// When it was made.
    pub created: Time,
    /// When it was last changed.
    pub updated: Time,
}

/// Where a task is, or should be. Numbers are SwarmKit's; a task's observed state never goes back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TaskState {
    /// Made.
    New,
    /// Waits for a node.
    Pending,
    /// Has a node; from here on only that node says what is.
    Assigned,
    /// The node has taken it.
    Accepted,
    /// The node gets what it needs.
    Preparing,
    /// It could start.
    Ready,
    /// It starts.
    Starting,
    /// It runs.
    Running,
    /// It ended well.
    Complete,
    /// It was told to end and did.
    Shutdown,
    /// It ended with an error.
    Failed,
    /// The node would not have it.
    Rejected,
    /// It is to be removed; desired only.
    Remove,
    /// Its node was gone for too long.
    Orphaned,
}
wire_enum!(TaskState {
    0 => New, 1 => Pending, 2 => Assigned, 3 => Accepted, 4 => Preparing, 5 => Ready, 6 => Starting,
    7 => Running, 8 => Complete, 9 => Shutdown, 10 => Failed, 11 => Rejected, 12 => Remove, 13 => Orphaned,
});

impl TaskState {
    /// All, in their order.
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// SwarmKit's number.
    pub fn number(self) -> u32 {
        match self {
            Self::New => 0,
            Self::Pending => 64,
            Self::Assigned => 192,
            Self::Accepted => 256,
            Self::Preparing => 320,
            Self::Ready => 384,
            Self::Starting => 448,
            Self::Running => 512,
            Self::Complete => 576,
            Self::Shutdown => 640,
            Self::Failed => 704,
            Self::Rejected => 768,
            Self::Remove => 800,
            Self::Orphaned => 832,
        }
    }

    /// The state of that number.
    pub fn of_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.number() == number)
    }

    /// The word on command lines and in labels, in small letters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }

    /// Whether nothing of it runs any more, nor will.
    pub fn is_final(self) -> bool {
        self >= Self::Complete
    }
}

/// What became of a task, as its node (or, up to `Assigned`, a manager) last said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TaskStatus {
    /// Where it is.
    pub state: TaskState,
    /// For people.
    pub message: String,
    /// What went wrong; empty for nothing.
    pub error: String,
    /// How its process ended, where one did.
    pub exit_code: Option<u32>,
    /// When that was so, by the clock of who says it.
    pub at: Time,
}
wire_struct!(TaskStatus { state, message, error, exit_code, at });

/// One piece of work on one node: made once, run at most once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Task {
    /// Unique, never given again.
    pub id: String,
    /// The id of the service it is of.
    pub service: String,
    /// Which of the service's places it fills; tasks that replace each other have the same.
    pub slot: u64,
    /// Where it runs; set once, never changed.
    pub node: Option<NodeId>,
    /// What it can be listed by.
    pub labels: Labels,
    /// What its node needs to see to run it (secrets, configs): sent along with it.
    pub refs: Vec<ObjectKey>,
    /// What to run, in the orchestrator's own form.
    pub spec: Bytes,
    /// Where a manager wants it.
    pub desired: TaskState,
    /// Where it is. Stored beside the rest, so that a report writes one small key.
    pub status: TaskStatus,
    /// The revision that last changed anything of it but the status; 0 for one that is not stored yet.
    /// Not part of the stored bytes.
    pub version: Revision,
    /// When it was made.
    pub created: Time,
    /// When a manager last changed it.
    pub updated: Time,
}

/// Whether a node may be given work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Availability {
    /// It may.
    Active,
    /// What it has goes on; nothing new.
    Pause,
    /// What it has is to end.
    Drain,
}
wire_enum!(Availability { 0 => Active, 1 => Pause, 2 => Drain });

/// Whether a node is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeState {
    /// It was never there yet.
    Unknown,
    /// It has a session.
    Ready,
    /// Its heartbeats have stopped.
    Down,
}
wire_enum!(NodeState { 0 => Unknown, 1 => Ready, 2 => Down });

/// A worker, as the orchestrator sees it. Its certificate's record is elsewhere (docs/trust.md).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeRecord {
    /// Its certificate's id.
    pub id: NodeId,
    /// What it calls itself.
    pub name: String,
    /// What managers list and place by; set by managers.
    pub labels: Labels,
    /// Set by managers.
    pub availability: Availability,
    /// What it says of itself (platform, resources), in the orchestrator's own form.
    pub description: Bytes,
    /// Whether it is there.
    pub state: NodeState,
    /// Since when.
    pub since: Time,
    /// The revision that last changed it. Not part of the stored bytes.
    pub version: Revision,
}
