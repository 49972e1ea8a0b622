//! What clients asked and were told, with times.

use std::time::Duration;

use crate::error::Refusal;
use crate::machine::Answer;
use crate::machine::command::Command;
use crate::types::{
    Index, LeaseId, PointDiffPage, PointDiffRequest, PointList, RangeRequest, RangeResponse, Revision,
};

/// What a client asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// A change.
    Command(Command),
    /// A read.
    Range(RangeRequest),
    /// The renewal of a lease.
    KeepAlive(LeaseId),
    /// All rollback points.
    Points,
    /// A page of what differs from a rollback point.
    Diff(PointDiffRequest),
}

/// What it was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing yet, or nothing ever: it may have been done.
    Unknown,
    /// A change was done, at the latest in this revision.
    Done(Revision, Answer),
    /// What a read found; the revision of the state it was read from.
    Read(Revision, RangeResponse),
    /// The points and schedules after an entry, at the revision.
    Listed {
        /// The store's revision.
        revision: Revision,
        /// The entry.
        index: Index,
        /// What was listed.
        list: PointList,
    },
    /// A page of a difference, read after an entry, and the leases that lived there.
    Page {
        /// The entry.
        index: Index,
        /// The page.
        page: PointDiffPage,
        /// The leases.
        living: Vec<LeaseId>,
    },
    /// A lease was renewed.
    Renewed,
    /// Refused: certainly not done.
    Refused(Refusal),
    /// Certainly not done.
    NotDone,
}

/// One request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// When it was asked.
    pub invoked: Duration,
    /// When it was told.
    pub returned: Option<Duration>,
    /// What was asked.
    pub asked: Asked,
    /// What it was told.
    pub outcome: Outcome,
}

impl Operation {
    /// A request of which nothing is known yet.
    pub fn new(asked: Asked, invoked: Duration) -> Self {
        Self { invoked, returned: None, asked, outcome: Outcome::Unknown }
    }

    /// Whether it was done or answered.
    pub fn is_ok(&self) -> bool {
        use Outcome::{Done, Listed, Page, Read, Renewed};
        matches!(self.outcome, Done(..) | Read(..) | Listed { .. } | Page { .. } | Renewed)
    }

    /// Whether the answer is to be the newest at the time: all but reads that may be old.
    pub fn is_linearizable(&self) -> bool {
        !matches!(&self.asked, Asked::Range(request) if request.serializable)
    }
}
