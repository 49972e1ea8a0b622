//! What people do with the cluster's roots: they replace them, sometimes because a key was stolen, take
//! that back, begin again on top of it, lose clients, leave members off through all of it, and bring
//! back who was shut out. And leaders crash at each step of it.
//!
//! It must leave a cluster that can heal: nobody may be shut out while another member may be lost.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::cluster::{Cluster, HostId};
use super::faults::{Alarm, Nemesis};
use super::scheduler::stream;

/// How often it is looked.
pub(super) const LOOK: Duration = Duration::from_millis(500);
/// Seconds, for a rotation that nobody may be late for.
const NEVER: i64 = 1 << 40;

/// Decides, and counts what it did.
pub(super) struct Operator {
    random: ChaCha8Rng,
    /// Chance that something is done at a look.
    chance: f64,
    /// Chance that a leader crashes at a step of a rotation.
    crash: f64,
    roots: u64,
    lost: u32,
    over: bool,
    /// Since when members are seen that the others do not let in.
    stranded: BTreeMap<HostId, Duration>,
    /// The newest epoch at which a leader was considered.
    considered: u64,
    pub(super) counts: BTreeMap<&'static str, u64>,
}

impl Operator {
    /// In one run of four nobody touches the roots, unless it is `always` about them.
    pub(super) fn new(seed: u64, always: bool) -> Self {
        let mut random = stream(seed, "operator");
        let busy = random.random_range(0.03..0.25);
        let at_all = always || random.random_bool(0.75);
        let chance = if always { busy * 2.0 } else { busy };
        Self {
            chance: if at_all { chance } else { 0.0 },
            crash: [0.0, 0.1, 0.4][random.random_range(0..3)],
            roots: 1,
            lost: 0,
            over: false,
            stranded: BTreeMap::new(),
            considered: 0,
            counts: BTreeMap::new(),
            random,
        }
    }

    /// Nothing new from now on: what was begun is ended, and who was shut out comes back.
    pub(super) fn end(&mut self) {
        self.over = true;
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Looks, and does something or not.
    pub(super) fn look(&mut self, cluster: &mut Cluster, nemesis: &mut Nemesis) {
        self.bring_back(cluster);
        if self.over || !self.random.random_bool(self.chance) {
            return;
        }
        let running: Vec<HostId> =
            (0..cluster.hosts().len()).filter(|host| cluster.hosts()[*host].runs()).collect();
        if running.is_empty() {
            return;
        }
        let host = running[self.random.random_range(0..running.len())];
        let Some(trusted) = cluster.trusted(host) else { return };
        let rotating = trusted.rotation.is_some();
        match self.random.random_range(0..20) {
            0..=2 if self.lost < 3 => {
                let life = if self.random.random_bool(0.5) { self.random.random_range(3..20) } else { NEVER };
                self.lost += 1;
                cluster.lose_client(host, life);
                self.count("clients lost");
            }
            3..=5 => self.hold(cluster, nemesis, host),
            6..=9 if rotating => {
                let deadline = self.deadline(cluster);
                cluster.abort_rotation(host, deadline);
                self.count("rotations taken back by somebody");
            }
            kind => {
                // On top of a rotation rather seldom.
                if rotating && kind > 14 {
                    return;
                }
                let deadline = self.deadline(cluster);
                let stolen = deadline != NEVER && self.random.random_bool(0.25);
                self.roots += 1;
                cluster.rotate(host, self.roots, deadline, stolen);
                self.count("rotations asked for");
            }
        }
    }

    fn deadline(&mut self, cluster: &Cluster) -> i64 {
        match self.random.random_bool(0.5) {
            _ if Nemesis::unsound(cluster, None) => NEVER,
            true => self.random.random_range(1..4),
            false => self.random.random_range(4..25),
        }
    }

    /// A member is off for so long that rotations end without it.
    fn hold(&mut self, cluster: &mut Cluster, nemesis: &mut Nemesis, host: HostId) {
        if (0..cluster.hosts().len()).all(|host| cluster.hosts()[host].runs())
            && !Nemesis::unsound(cluster, None)
        {
            let time = Duration::from_millis(self.random.random_range(2000..15_000));
            nemesis.hold(host, cluster.now() + time);
            cluster.crash(host, self.random.random_bool(0.5));
            self.count("members off for long");
        }
    }

    /// Who has been shut out for a while gets a new certificate.
    fn bring_back(&mut self, cluster: &mut Cluster) {
        let now = cluster.now();
        for host in 0..cluster.hosts().len() {
            if !cluster.is_stranded(host) {
                self.stranded.remove(&host);
                continue;
            }
            let since = *self.stranded.entry(host).or_insert(now);
            let patience = Duration::from_millis(self.random.random_range(2500..8000));
            let Some(door) = cluster.leader().filter(|_| self.over || now - since > patience) else {
                continue;
            };
            let (back, id) = (cluster.hosts()[host].id(), cluster.hosts()[door].id());
            if !cluster.network().is_cut(back, id) && !cluster.network().is_cut(id, back) {
                cluster.readmit(host, door);
            }
        }
    }

    /// What is believed changed at a member: if it leads, it or another one may crash right after.
    pub(super) fn step(&mut self, cluster: &Cluster, host: HostId) -> Option<(Duration, Alarm)> {
        if self.over || cluster.leader() != Some(host) {
            return None;
        }
        let epoch = cluster.trusted(host)?.epoch;
        if epoch <= self.considered || !self.random.random_bool(self.crash) {
            return None;
        }
        self.considered = epoch;
        let delay = Duration::from_micros(self.random.random_range(0..30_000));
        if self.random.random_bool(0.3) {
            // Another one, while it is about to take its new certificate.
            self.count("members that crashed at a step of a rotation");
            let other = self.random.random_range(0..cluster.hosts().len());
            return Some((delay, Alarm::Kill(other)));
        }
        self.count("leaders that crashed at a step of a rotation");
        Some((delay, Alarm::Kill(host)))
    }
}
