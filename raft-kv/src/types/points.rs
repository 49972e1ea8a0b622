//! Rollback points, the difference to one, and going back to one: what is asked and what is told.
//!
//! A point is a name for a revision that stays readable. Times are milliseconds since 1970 and come
//! from whoever proposes: the machine has no clock.

use bytes::Bytes;

use super::{KeyRange, KeyValue, Revision};
use crate::codec::{wire_enum, wire_struct};

/// How the name of a point begins that was made by a rollback, just before it. Nobody else may use
/// it.
pub const UNDO_PREFIX: &str = "before-rollback-";

/// The name of the point that the rollback which made `revision` can be undone with.
pub fn undo_name(revision: Revision) -> String {
    format!("{UNDO_PREFIX}{revision}")
}

/// A change of rollback points, or a rollback to one. Tags are on disk: they never change meaning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PointChange {
    /// Makes a point. Takes constant time for the current revision; for an older one the time of
    /// looking through what changed since.
    Create {
        /// Its name; no other point has it.
        name: String,
        /// The revision that it names; the current one for `None`. An older one must still be
        /// readable.
        at: Option<Revision>,
        /// When it is removed by itself, in milliseconds since 1970; never for `None`.
        expires: Option<i64>,
        /// Who made it, for people.
        author: String,
        /// What for, for people.
        comment: String,
        /// The proposer's time, in milliseconds since 1970.
        now: i64,
    },
    /// Removes a point: what only it could see goes with a later step of compaction.
    Remove {
        /// Its name.
        name: String,
    },
    /// Makes points by a schedule from now on, the first at once; replaces one of the same name.
    SetSchedule(PointSchedule),
    /// Ends a schedule. The points that it made stay, and are not counted by it any more.
    RemoveSchedule {
        /// Its name.
        name: String,
    },
    /// Removes points that have expired and makes those that schedules are due. The leader proposes
    /// it; a second one at the same time does nothing.
    Tidy {
        /// The leader's time, in milliseconds since 1970.
        now: i64,
    },
    /// Puts the keys back as they were at a point, in one new revision whose events are exactly the
    /// differences. Users, members, certificates and tokens stay as they are.
    Rollback {
        /// The point's name.
        point: String,
        /// Only keys that begin with this; all keys for `None`.
        prefix: Option<Bytes>,
        /// Who asked, for people; it becomes the author of the point to undo it with.
        author: String,
        /// The proposer's time, in milliseconds since 1970.
        now: i64,
    },
}
wire_enum!(PointChange {
    1 => Create { name, at, expires, author, comment, now }, 2 => Remove { name },
    3 => SetSchedule(schedule), 4 => RemoveSchedule { name }, 5 => Tidy { now },
    6 => Rollback { point, prefix, author, now },
});

impl PointChange {
    /// Fills in who asks and when: that is for the member to say that is asked, not for the asker.
    pub fn stamp(&mut self, who: &str, millis: i64) {
        match self {
            Self::Create { author, now, .. } | Self::Rollback { author, now, .. } => {
                (*author, *now) = (who.to_owned(), millis);
            }
            Self::Tidy { now } => *now = millis,
            Self::Remove { .. } | Self::SetSchedule(_) | Self::RemoveSchedule { .. } => {}
        }
    }
}

/// The keys that a rollback or a difference is about.
pub fn point_range(prefix: Option<&Bytes>) -> KeyRange {
    prefix.map_or_else(KeyRange::all, |prefix| KeyRange::prefix(prefix.clone()))
}

/// A named revision. As long as it exists, reads at its revision are answered, whatever is compacted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RollbackPoint {
    /// Its name; no other point has it.
    pub name: String,
    /// What it names.
    pub revision: Revision,
    /// When it was made, in milliseconds since 1970, by the clock of who proposed it.
    pub created: i64,
    /// When it is removed by itself, in milliseconds since 1970; never for `None`.
    pub expires: Option<i64>,
    /// Who made it, for people.
    pub author: String,
    /// What for, for people.
    pub comment: String,
    /// How it came to be.
    pub origin: PointOrigin,
}
wire_struct!(RollbackPoint { name, revision, created, expires, author, comment, origin });

/// How a point came to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PointOrigin {
    /// Somebody asked for it. It stays until it is removed or expires.
    Asked,
    /// A schedule made it, and removes it once there are enough newer ones.
    Schedule {
        /// The schedule's name.
        name: String,
    },
    /// A rollback made it, just before it began: rolling back to it is the undo. So many of these are
    /// kept as [`MAX_UNDO_POINTS`](crate::limits::MAX_UNDO_POINTS) says.
    Rollback {
        /// The point that was rolled back to.
        to: String,
        /// The revision that the rollback made.
        revision: Revision,
    },
}
wire_enum!(PointOrigin { 1 => Asked, 2 => Schedule { name }, 3 => Rollback { to, revision } });

/// Makes a point every so often and keeps the newest.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PointSchedule {
    /// Its name; the points' names begin with it and go on with the time, as in
    /// `hourly-20261122T100000Z`.
    pub name: String,
    /// Seconds from one point to the next.
    pub every: u64,
    /// How many of its points are kept.
    pub keep: u32,
}
wire_struct!(PointSchedule { name, every, keep });

/// A schedule and when it last made a point.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScheduleStatus {
    /// What was asked for.
    pub schedule: PointSchedule,
    /// When it last made a point, in milliseconds since 1970; `None` before the first.
    pub last: Option<i64>,
}
wire_struct!(ScheduleStatus { schedule, last });

/// What a [`PointChange`] is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PointReply {
    /// The point that was made.
    Created(RollbackPoint),
    /// The point that was removed.
    Removed(RollbackPoint),
    /// What a rollback did.
    RolledBack(RolledBack),
    /// To anything else.
    Done,
}
wire_enum!(PointReply { 1 => Created(point), 2 => Removed(point), 3 => RolledBack(done), 4 => Done });

/// What a rollback did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RolledBack {
    /// The revision whose keys are back.
    pub to: Revision,
    /// The revision that it made; the current one, made by somebody else, where nothing differed.
    pub revision: Revision,
    /// Keys that were compared: those changed since the point.
    pub compared: u64,
    /// Events: keys that differed. 0 where the keys were as at the point already; then no revision
    /// and no point was made.
    pub events: u64,
    /// The point to undo it with, where anything differed.
    pub undo: Option<String>,
}
wire_struct!(RolledBack { to, revision, compared, events, undo });

/// Asks what differs between a point and now, a page at a time, by key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PointDiffRequest {
    /// The point's name.
    pub point: String,
    /// Only keys that begin with this; all keys for `None`.
    pub prefix: Option<Bytes>,
    /// Compare with this revision; with the current one for 0. For the pages after the first give
    /// the revision of the first, so that all are about one state.
    pub revision: Revision,
    /// Go on behind this key: [`PointDiffPage::next`] of the page before; from the start for `None`.
    pub after: Option<Bytes>,
    /// Differences in the page, at most; as many as fit for 0.
    pub limit: u64,
    /// Count only: no keys and values in the answer.
    pub count_only: bool,
}
wire_struct!(PointDiffRequest { point, prefix, revision, after, limit, count_only });

/// One page of the difference between a point and a later revision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PointDiffPage {
    /// The revision that the point names.
    pub from: Revision,
    /// The later revision.
    pub to: Revision,
    /// Keys that differ, ascending. May be empty although more follow.
    pub differences: Vec<Difference>,
    /// What was counted in this page; the sum over all pages is the whole.
    pub counts: DiffCounts,
    /// Where the next page goes on; `None` after the last.
    pub next: Option<Bytes>,
}
wire_struct!(PointDiffPage { from, to, differences, counts, next });

/// A key that is not as it was at a point. A rollback to the point makes exactly one event of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Difference {
    /// The key.
    pub key: Bytes,
    /// As it was at the point; `None` where it did not exist.
    pub then: Option<KeyValue>,
    /// As it is now; `None` where it does not exist.
    pub now: Option<KeyValue>,
}
wire_struct!(Difference { key, then, now });

/// A question about rollback points.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PointCall {
    /// All points and schedules, by name.
    List,
    /// One page of what differs between a point and now.
    Diff(PointDiffRequest),
}
wire_enum!(PointCall { 1 => List, 2 => Diff(request) });

/// What a [`PointCall`] is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PointsReply {
    /// To a list.
    List(PointList),
    /// To a difference.
    Diff(PointDiffPage),
}
wire_enum!(PointsReply { 1 => List(list), 2 => Diff(page) });

/// All points and schedules.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PointList {
    /// By name.
    pub points: Vec<RollbackPoint>,
    /// By name.
    pub schedules: Vec<ScheduleStatus>,
}
wire_struct!(PointList { points, schedules });

/// How many keys changed since a point, by what happened to them since.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiffCounts {
    /// Keys that did not exist at the point and do now: a rollback removes them.
    pub created: u64,
    /// Keys that have another value or lease: a rollback puts the old one.
    pub changed: u64,
    /// Keys that existed at the point and do not now: a rollback puts them again.
    pub deleted: u64,
    /// Keys that were compared; more than differ where some were changed back.
    pub compared: u64,
}
wire_struct!(DiffCounts { created, changed, deleted, compared });

impl DiffCounts {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            created: self.created + other.created,
            changed: self.changed + other.changed,
            deleted: self.deleted + other.deleted,
            compared: self.compared + other.compared,
        }
    }

    /// How many keys differ.
    pub fn differing(self) -> u64 {
        self.created + self.changed + self.deleted
    }
}
