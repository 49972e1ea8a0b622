//! What a worker is told and what bounds it.

use std::time::Duration;

use bytes::Bytes;

use super::super::words::{Labels, Object, ObjectKey, Task, TaskState};

/// A task as its node sees it: nothing of who made it, when, or at which revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assigned {
    /// Unique, never given again.
    pub id: String,
    /// The id of the service it is of.
    pub service: String,
    /// Which of the service's places it fills.
    pub slot: u64,
    /// What managers list it by.
    pub labels: Labels,
    /// What to run, in the orchestrator's own form.
    pub spec: Bytes,
    /// Where a manager wants it.
    pub desired: TaskState,
    /// Where the node itself last said it is, as of when this was read: what was reported since may be
    /// missing, and a report alone sends nothing. A node that has lost its memory does not run again
    /// what has ended.
    pub reported: TaskState,
    /// Which objects it needs; they come along.
    pub refs: Vec<ObjectKey>,
}

impl Assigned {
    pub(super) fn of(task: Task) -> Self {
        let Task { id, service, slot, labels, refs, spec, desired, status, .. } = task;
        Self { id, service, slot, labels, spec, desired, reported: status.state, refs }
    }

    pub(super) fn weight(&self) -> usize {
        let labels: usize = self.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        let refs: usize = self.refs.iter().map(|key| key.kind.len() + key.id.len()).sum();
        128 + self.id.len() + self.service.len() + self.spec.len() + labels + refs
    }
}

/// An object as a worker sees it that needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Needed {
    /// Which.
    pub key: ObjectKey,
    /// Its name.
    pub name: String,
    /// What should be, in the orchestrator's own form.
    pub spec: Bytes,
}

impl Needed {
    pub(super) fn of(object: Object) -> Self {
        Self { key: object.key, name: object.name, spec: object.spec }
    }

    pub(super) fn weight(&self) -> usize {
        128 + self.key.kind.len() + self.key.id.len() + self.name.len() + self.spec.len()
    }
}

/// What changed for a worker since the update before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Update {
    /// The token of the state it changes; empty: it replaces all that the worker has. A worker that has
    /// another token than this has missed one and opens its session again.
    pub applies_to: Bytes,
    /// The token of the state that comes of it. It opens a session again anywhere.
    pub results_in: Bytes,
    /// More follows at once; what is referenced may come with it.
    pub more: bool,
    /// New or changed.
    pub tasks: Vec<Assigned>,
    /// Ids of those that are the node's no more.
    pub removed: Vec<String>,
    /// New or changed.
    pub objects: Vec<Needed>,
    /// Those that no task of the node needs any more, or that are no more.
    pub removed_objects: Vec<ObjectKey>,
}

impl Update {
    /// Whether it says nothing but a newer token.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
            && self.removed.is_empty()
            && self.objects.is_empty()
            && self.removed_objects.is_empty()
    }
}

/// The bounds of sessions.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often a worker says that it is there, about.
    pub heartbeat: Duration,
    /// How far from that it is told to be off, in percent either way, so that not all come at once.
    pub jitter: u64,
    /// After so many missed heartbeats it is taken to be gone.
    pub missed: u32,
    /// What changes within this time is sent together.
    pub gather: Duration,
    /// A session to which nothing happened gets a newer token after this: history that is as old as the
    /// token can be compacted. Far less than the time between two compactions.
    pub refresh: Duration,
    /// Pause after a read that failed.
    pub again: Duration,
    /// Tasks and objects of one update.
    pub max_items: usize,
    /// Bytes of one update, about; one task or object alone can be larger.
    pub max_bytes: usize,
    /// Sessions of one member.
    pub max_sessions: usize,
    /// Statuses of one report.
    pub max_reports: usize,
    /// Bytes of a status' message and of its error, of a name, each.
    pub max_text: usize,
    /// Bytes of a node's description.
    pub max_description: usize,
    /// What runs on a node that is down for longer than this is given up.
    pub orphan_after: Duration,
    /// How often the leader looks whether one is.
    pub tick: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(5),
            jitter: 10,
            missed: 3,
            gather: Duration::from_millis(50),
            refresh: Duration::from_secs(60),
            again: Duration::from_millis(200),
            max_items: 200,
            max_bytes: 512 * 1024,
            max_sessions: 10_000,
            max_reports: 100,
            max_text: 4 * 1024,
            max_description: 64 * 1024,
            orphan_after: Duration::from_secs(24 * 3600),
            tick: Duration::from_secs(1),
        }
    }
}

impl Settings {
    /// For how long a worker is waited for, in whole seconds.
    pub fn ttl(&self) -> i64 {
        let time = self.heartbeat * self.missed;
        i64::try_from(time.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(crate::limits::MIN_LEASE_TTL)
    }

    /// A heartbeat's time by chance.
    pub fn beat(&self, chance: u64) -> Duration {
        let span = self.jitter.min(50) * 2;
        let percent = 100 - span / 2 + if span == 0 { 0 } else { chance % (span + 1) };
        self.heartbeat.mul_f64(f64::from(u32::try_from(percent).unwrap_or(100)) / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_stay_near_their_time() {
        let settings = Settings::default();
        assert_eq!(settings.ttl(), 15);
        for chance in [0, 1, 7, 20, 21, u64::MAX] {
            let beat = settings.beat(chance);
            assert!((4500..=5500).contains(&beat.as_millis()), "{beat:?}");
        }
    }
}
