//! What a run has counted: what was done, and what shows that faults made a difference.

use std::collections::BTreeMap;
use std::time::Duration;

use super::checks::history::{Operation, Outcome};
use super::checks::points::Rolled;
use super::faults::Fault;
use super::run::World;
use crate::error::Refusal;

/// What a fault does may show for so long after it: a process is down, nobody leads.
const AFTERMATH: Duration = Duration::from_millis(1500);
/// A request that takes longer was delayed; without faults none does.
const DELAYED: Duration = Duration::from_millis(300);

/// How many faults of each kind changed or delayed what came of a request that they overlapped.
fn mattering(spans: &[(Fault, Duration, Duration)], history: &[Operation]) -> BTreeMap<Fault, u64> {
    let hit = |operation: &&Operation| match operation.outcome {
        Outcome::Unknown | Outcome::NotDone => true,
        Outcome::Refused(Refusal::Alarmed { .. }) => true,
        _ => operation.returned.is_some_and(|returned| returned - operation.invoked > DELAYED),
    };
    let hit: Vec<(Duration, Duration)> = history
        .iter()
        .filter(hit)
        .map(|operation| (operation.invoked, operation.returned.unwrap_or(Duration::MAX)))
        .collect();
    let mut matter = BTreeMap::new();
    for (fault, from, to) in spans {
        let overlaps = |(began, ended): &(Duration, Duration)| *began <= *to + AFTERMATH && ended >= from;
        if hit.iter().any(overlaps) {
            *matter.entry(*fault).or_default() += 1;
        }
    }
    matter
}

impl World {
    /// How many faults of each kind mattered.
    pub(super) fn faults_that_mattered(&self) -> BTreeMap<Fault, u64> {
        mattering(&self.nemesis.spans, &self.workload.history)
    }

    /// What happened to the cluster's roots.
    pub(super) fn rotated(&self) -> Vec<(&'static str, u64)> {
        let (cluster, trust) = (self.cluster.counts(), self.judge.trust.counts);
        vec![
            ("roots introduced", trust.introduced),
            ("roots introduced on top of others", trust.on_top),
            ("rotations settled", trust.settled),
            ("rotations led back", trust.aborted),
            ("rotations settled without who was late", trust.in_need),
            ("members shut out", trust.shut_out),
            ("rotations seen waiting", trust.waited),
            ("rotations seen stuck", trust.stuck),
            ("certificates taken", cluster.issued),
            ("handshakes refused", cluster.refused),
            ("connections closed", cluster.closed),
            ("members readmitted", cluster.readmitted),
        ]
    }

    /// What was done and refused for want of room.
    pub(super) fn of_space(&self) -> Vec<(&'static str, u64)> {
        let counts = self.judge.space.counts;
        vec![
            ("quotas set", counts.quotas),
            ("quotas set below what there was", counts.below),
            ("refused by the quota", counts.over),
            ("refused while a disk was short", counts.short),
            ("changes done above the quota", counts.shrunk),
            ("members that found their state damaged", self.cluster.counts().condemned),
            ("starts that damage ended", self.cluster.counts().damaged_starts),
            ("damaged snapshots not taken", self.cluster.counts().damaged_snapshots),
            ("alarms raised for a disk", counts.raised),
            ("alarms ended for a disk", counts.ended),
        ]
    }

    /// What happened to rollback points.
    pub(super) fn rolled_back(&self) -> Vec<(&'static str, u64)> {
        let (cluster, all) = (self.cluster.counts(), &self.judge.points.rolled);
        let many = |of: fn(&Rolled) -> bool| all.iter().filter(|rolled| of(rolled)).count() as u64;
        vec![
            ("rollbacks done", many(|it| it.done.events > 0)),
            ("rollbacks undone", many(|it| it.done.events > 0 && it.is_undo())),
            ("rollbacks of nothing", many(|it| it.done.events == 0)),
            ("keys rolled back", all.iter().map(|rolled| rolled.done.events).sum()),
            ("rollbacks seen half done", cluster.half),
            ("rollbacks interrupted by a crash", cluster.half_ends),
            ("starts with a rollback half done", cluster.half_starts),
            ("checkpoints with a rollback half done", cluster.half_checkpoints),
            ("snapshots installed over a rollback half done", cluster.half_installs),
        ]
    }

    /// What shows that faults made a difference.
    pub(super) fn mattered(&self) -> Vec<(&'static str, u64)> {
        let (cluster, network) = (self.cluster.counts(), self.cluster.network_counts());
        let disk = |of: fn(&super::disk::DiskCounts) -> u64| {
            self.cluster.hosts().iter().map(|host| of(&host.disk().counts())).sum::<u64>()
        };
        let (renewals, expiries) = self.workload.leases.counts();
        vec![
            ("frames sent", network.sent),
            ("frames lost", network.lost),
            ("frames lost at a cut", network.cut),
            ("frames that came twice", network.duplicated),
            ("frames that overtook", network.reordered),
            ("sectors lost in a crash", disk(|counts| counts.sectors_lost)),
            ("files torn in a crash", disk(|counts| counts.torn)),
            ("names lost in a crash", disk(|counts| counts.names_lost)),
            ("syncs that failed", disk(|counts| counts.syncs_failed)),
            ("writes that failed", disk(|counts| counts.writes_failed)),
            ("refused for lack of space", disk(|counts| counts.full)),
            ("bits flipped", disk(|counts| counts.flips)),
            ("batches of state lost in a crash", cluster.batches_lost),
            ("snapshots sent", cluster.snapshots_sent),
            ("snapshots lost", cluster.snapshots_lost),
            ("snapshots installed", cluster.snapshots_installed),
            ("logs cut", cluster.cuts),
            ("members joined", cluster.joins),
            ("history read for watchers", cluster.watch_reads),
            ("watches resumed", self.workload.resumed),
            ("leases granted and renewed", renewals),
            ("leases expired", expiries),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::checks::history::Asked;

    #[test]
    fn a_fault_matters_where_a_request_shows_it() {
        let ms = Duration::from_millis;
        let check = |(began, ended), outcome, expect: u64| {
            let mut operation = Operation::new(Asked::Points, ms(began));
            (operation.returned, operation.outcome) = (Some(ms(ended)), outcome);
            let matter = mattering(&[(Fault::Kill, ms(10_000), ms(11_000))], &[operation]);
            assert_eq!(matter.get(&Fault::Kill).copied().unwrap_or(0), expect, "{began} {ended}");
        };
        check((10_500, 10_600), Outcome::Renewed, 0);
        check((10_500, 10_900), Outcome::Renewed, 1);
        check((10_500, 10_501), Outcome::NotDone, 1);
        check((9_000, 9_900), Outcome::NotDone, 0);
        check((9_000, 10_100), Outcome::Unknown, 1);
        check((12_400, 12_410), Outcome::NotDone, 1);
        check((12_600, 12_610), Outcome::NotDone, 0);
        check((10_500, 10_501), Outcome::Refused(Refusal::EmptyKey), 0);
    }
}
