//! What members do about their disks' room, as `client/disk` does: each says when its own disk is short and
//! when there is room again, and the leader ends the alarms of who is silent for long.
//!
//! And how often clients set a quota. It must never touch an alarm of another kind.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::cluster::{Cluster, HostId};
use super::scheduler::stream;
use crate::error::Error;
use crate::limits::{DISK_LOOK, DISK_LOOK_CLOSELY, DISK_SILENCE};
use crate::machine::command::Command;
use crate::machine::{self, Read};
use crate::node::ask::What;
use crate::types::{AlarmKind, AlarmRequest, NodeId};

/// The longest that a change of an alarm may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What clients do about the quota.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SpaceHabits {
    /// Part of the requests that set or end the quota.
    pub share: f64,
}

impl SpaceHabits {
    /// In one run of two nobody touches the quota.
    pub(super) fn of(seed: u64) -> Self {
        let mut random = stream(seed, "space");
        Self { share: if random.random_bool(0.5) { random.random_range(0.005..0.05) } else { 0.0 } }
    }
}

/// Decides about quotas and alarms, for clients and for members.
pub(super) struct Steward {
    random: ChaCha8Rng,
    habits: SpaceHabits,
    /// Since when the leader has not heard of a member whose alarm is raised.
    silent: BTreeMap<(HostId, NodeId), Duration>,
}

impl Steward {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: stream(seed, "steward"), habits: SpaceHabits::of(seed), silent: BTreeMap::new() }
    }

    /// The quota that a client sets now, if it does: above or below what is there, or none.
    pub(super) fn quota(&mut self, cluster: &Cluster, host: HostId) -> Option<Command> {
        if self.habits.share == 0.0 || !self.random.random_bool(self.habits.share) {
            return None;
        }
        let used = own(cluster, host, machine::read::usage)?.bytes;
        let bytes = match self.random.random_range(0..10) {
            0..=2 => Some(used * self.random.random_range(30..100) / 100),
            3..=5 => Some(used + self.random.random_range(0..200)),
            _ => None,
        };
        Some(Command::Quota { bytes: bytes.map(|bytes| bytes.max(1)) })
    }

    /// A member looks at its disk; says when it looks again.
    pub(super) fn look(&mut self, cluster: &mut Cluster, host: HostId) -> Duration {
        self.end_alarms_of_silent(cluster, host);
        let member = &cluster.hosts()[host];
        let (id, free, reserve) = (member.id(), member.free(), cluster.disk_reserve());
        let Some(raised) = short(cluster, host) else { return DISK_LOOK };
        let raised = raised.contains(&id);
        let enough = if raised { reserve + reserve / 4 } else { reserve };
        let change = match (free < enough, raised) {
            (true, false) => Some(AlarmRequest::Raise(id, AlarmKind::DiskShort)),
            (false, true) => Some(AlarmRequest::End(id, AlarmKind::DiskShort)),
            _ => None,
        };
        if let Some(change) = change {
            // Nobody waits for the answer: it looks again.
            cluster.ask(host, What::Command { command: Command::Alarm(change), once: None }, PATIENCE);
        }
        if free < reserve.saturating_mul(4) { DISK_LOOK_CLOSELY } else { DISK_LOOK }
    }

    fn end_alarms_of_silent(&mut self, cluster: &mut Cluster, host: HostId) {
        let member = &cluster.hosts()[host];
        let (me, now) = (member.id(), cluster.now());
        let status = member.replica().map(|replica| replica.status());
        let Some(status) = status.filter(|status| status.leader == Some(me)) else {
            return self.silent.retain(|(at, _), _| *at != host);
        };
        let raised = short(cluster, host).unwrap_or_default();
        self.silent.retain(|(at, id), _| *at != host || raised.contains(id));
        for id in raised.into_iter().filter(|id| *id != me) {
            let last = self.silent.entry((host, id)).or_insert(now);
            if status.progress.get(&id).is_some_and(|progress| progress.recent_active) {
                *last = now;
            } else if now - *last >= DISK_SILENCE {
                let command = Command::Alarm(AlarmRequest::End(id, AlarmKind::DiskShort));
                cluster.ask(host, What::Command { command, once: None }, PATIENCE);
            }
        }
    }
}

fn short(cluster: &Cluster, host: HostId) -> Option<Vec<NodeId>> {
    let alarms = own(cluster, host, machine::read::alarms)?.into_iter();
    Some(alarms.filter(|(_, kind)| *kind == AlarmKind::DiskShort).map(|(id, _)| id).collect())
}

fn own<R>(
    cluster: &Cluster,
    host: HostId,
    read: impl FnOnce(&dyn Read) -> Result<R, crate::error::StorageFailed>,
) -> Option<R> {
    if !cluster.hosts()[host].runs() {
        return None;
    }
    cluster.read(host, |view| read(view).map_err(|failed| Error::Stopped(failed.to_string()))).ok()
}
