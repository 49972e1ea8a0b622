//! What a run has counted: what was done, and what shows that faults made a difference.

use super::checks::points::Rolled;
use super::run::World;

impl World {
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
