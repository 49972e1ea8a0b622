//! What goes wrong: crashes, power cuts, pauses, partitions, failing and lying disks, members
//! that come and go. Each seed turns on some of it, at rates of its own.
//!
//! It must leave a cluster that can heal: of what is lost for good there is never more than a
//! minority, as the product promises no more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::cluster::{Cluster, HostId};
use super::disk::{DiskImage, SimDisk};
use super::image::OldImage;
use super::member::{Speed, Stop};
use super::network::NetworkOptions;
use super::scheduler::{span, stream};
use crate::node::ask::What;
use crate::storage::files::{File, Files};
use crate::types::{ConfChange, NodeId};

/// One kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// A process is killed.
    Kill,
    /// A machine loses power.
    PowerCut,
    /// A machine loses power in the middle of a write to its log.
    PowerCutInWrite,
    /// All machines lose power at once.
    PowerCutAll,
    /// Several processes are killed, one after the other.
    KillSome,
    /// The leader is killed.
    KillLeader,
    /// A process is frozen.
    Pause,
    /// The leader is frozen.
    PauseLeader,
    /// A process is asked to stop.
    CleanStop,
    /// The leader is cut off.
    IsolateLeader,
    /// A member is cut off.
    Isolate,
    /// The members are split into two sides.
    Split,
    /// Two sides that only one member can reach.
    Bridge,
    /// A link is cut in one direction.
    OneWay,
    /// A member is cut off again and again.
    Flap,
    /// Frames are lost, come twice and overtake each other.
    BadLinks,
    /// A disk is slow.
    SlowDisk,
    /// A state machine is slow.
    SlowApply,
    /// A sync fails, and what it should have synced is lost.
    SyncError,
    /// A write fails.
    WriteError,
    /// A disk is full.
    DiskFull,
    /// A disk is nearly full.
    DiskShort,
    /// A bit of the log or its marker flips, for good.
    BitFlip,
    /// A block of the state rots.
    Rot,
    /// A file of the state is lost.
    LostTable,
    /// The log's files come back as they were a while ago.
    OldLog,
    /// The whole disk, state and all, comes back as it was a while ago.
    OldImage,
    /// A member is removed; its machine joins again.
    Remove,
    /// Leadership is handed over.
    Transfer,
    /// Somebody sets a machine's clock, ahead or back.
    ClockStep,
}

const ALL: [Fault; 30] = [
    Fault::Kill,
    Fault::PowerCut,
    Fault::PowerCutInWrite,
    Fault::PowerCutAll,
    Fault::KillSome,
    Fault::KillLeader,
    Fault::Pause,
    Fault::PauseLeader,
    Fault::CleanStop,
    Fault::IsolateLeader,
    Fault::Isolate,
    Fault::Split,
    Fault::Bridge,
    Fault::OneWay,
    Fault::Flap,
    Fault::BadLinks,
    Fault::SlowDisk,
    Fault::SlowApply,
    Fault::SyncError,
    Fault::WriteError,
    Fault::DiskFull,
    Fault::DiskShort,
    Fault::BitFlip,
    Fault::Rot,
    Fault::LostTable,
    Fault::OldLog,
    Fault::Remove,
    Fault::Transfer,
    Fault::ClockStep,
    // Last: what a seed drew for those before stays.
    Fault::OldImage,
];

/// The most seconds that a clock is set ahead, or back: rotations still end in time.
const STEP: i64 = 20;

/// How long nothing else goes wrong after an old image was put back.
const QUIET: Duration = Duration::from_secs(4);

/// What a nemesis timer is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Alarm {
    /// The next fault.
    Next,
    /// Links are made whole, machines fast.
    Mend,
    /// A flapping member comes and goes.
    Flap(HostId, u32),
    /// A log falls back to its old image.
    OldLog(HostId),
    /// A disk falls back to its old image.
    OldImage(HostId),
    /// A process that is down starts again.
    Restart(HostId),
    /// A process is killed.
    Kill(HostId),
    /// There is room on a disk again.
    Room(HostId),
    /// A backup is made.
    Backup,
    /// It is noted what all machines would be left with if they ended now.
    Lose,
    /// People look after the cluster's roots.
    Operator,
    /// It is looked who lets whom in.
    Probe,
}

/// Chooses faults and carries them out.
pub(super) struct Nemesis {
    random: ChaCha8Rng,
    weights: Vec<(Fault, u32)>,
    /// The longest pause between two faults.
    pause: Duration,
    calm: NetworkOptions,
    /// Machines whose disk failed on order: their process may stop for that.
    excused: BTreeSet<HostId>,
    /// Machines that lose their power when their process stops for a failed sync.
    cycled: BTreeSet<HostId>,
    /// Of whose log each is: a member that has another id since then would refuse it, as it should.
    images: BTreeMap<HostId, (NodeId, DiskImage)>,
    whole: BTreeMap<HostId, OldImage>,
    /// Until when nothing else goes wrong: who could tell that an image is old must be there.
    quiet: Duration,
    over: bool,
    ends: Duration,
    removed_at: Duration,
    /// Until when a process stays down once it ends.
    held: BTreeMap<HostId, Duration>,
    pub(super) counts: BTreeMap<Fault, u64>,
    /// Each fault that was carried out: from when, and until when it went on by itself.
    pub(super) spans: Vec<(Fault, Duration, Duration)>,
}

impl Nemesis {
    pub(super) fn new(seed: u64, calm: NetworkOptions, intensity: f64) -> Self {
        let mut random = stream(seed, "faults");
        // Damage and removal both take members away for good: one of them is enough for a run.
        let damage = random.random_bool(0.5);
        let mut weights = Vec::new();
        for fault in ALL {
            let weight = random.random_range(1..10);
            let fits = match fault {
                Fault::BitFlip | Fault::OldLog | Fault::Rot | Fault::LostTable | Fault::OldImage => damage,
                Fault::Remove => !damage,
                _ => true,
            };
            if random.random_bool(0.5) && fits && intensity > 0.0 {
                weights.push((fault, weight));
            }
        }
        let pause = Duration::from_millis(random.random_range(300..6000)).div_f64(intensity.max(0.01));
        Self {
            random,
            weights,
            pause,
            calm,
            excused: BTreeSet::new(),
            cycled: BTreeSet::new(),
            images: BTreeMap::new(),
            whole: BTreeMap::new(),
            quiet: Duration::ZERO,
            over: false,
            ends: Duration::MAX,
            removed_at: Duration::ZERO,
            held: BTreeMap::new(),
            counts: BTreeMap::new(),
            spans: Vec::new(),
        }
    }

    /// When the last fault has to be over.
    pub(super) fn ends_at(&mut self, ends: Duration) {
        self.ends = ends;
    }

    /// A machine's process is not started before that time once it ends.
    pub(super) fn hold(&mut self, host: HostId, until: Duration) {
        self.held.insert(host, until);
    }

    /// Whether a disk of this machine failed on order since it was last asked.
    pub(super) fn excuses(&mut self, host: HostId) -> bool {
        self.excused.remove(&host)
    }

    /// No more faults: everything is made whole. Returns what is to be started again.
    pub(super) fn end(&mut self, cluster: &mut Cluster) -> Vec<HostId> {
        self.over = true;
        self.mend(cluster);
        for host in 0..cluster.hosts().len() {
            cluster.set_room(host, u64::MAX);
            cluster.step_clock(host, 0);
            let disk = cluster.hosts()[host].disk();
            disk.fail_syncs(0);
            disk.fail_writes(0);
        }
        (0..cluster.hosts().len())
            .filter(|host| cluster.hosts()[*host].is_member() && !cluster.hosts()[*host].runs())
            .collect()
    }

    fn mend(&mut self, cluster: &mut Cluster) {
        cluster.network().heal();
        let calm = self.calm;
        cluster.network().set_options(calm);
        for host in 0..cluster.hosts().len() {
            cluster.set_speed(host, Speed::default());
        }
    }

    /// A process ended: when it starts again, if it does.
    pub(super) fn stopped(
        &mut self,
        cluster: &mut Cluster,
        host: HostId,
        why: &Stop,
    ) -> Vec<(Duration, Alarm)> {
        let failed_sync = self.cycled.remove(&host);
        if failed_sync && matches!(why, Stop::Storage(_)) {
            cluster.power_cycle(host);
        }
        match why {
            Stop::Removed => {
                cluster.join(host);
                Vec::new()
            }
            Stop::Behind | Stop::Older(_) => Vec::new(),
            _ if !cluster.hosts()[host].is_member() => Vec::new(),
            _ => {
                let most = if self.over { Duration::from_millis(300) } else { Duration::from_secs(5) };
                let pause = span(&mut self.random, Duration::from_millis(20), most);
                let held = self.held.remove(&host).filter(|_| !self.over);
                let held = held.map_or(Duration::ZERO, |until| until.saturating_sub(cluster.now()));
                vec![(pause.max(held), Alarm::Restart(host))]
            }
        }
    }

    /// A timer rang; returns which are to ring next.
    pub(super) fn ring(&mut self, cluster: &mut Cluster, alarm: Alarm) -> Vec<(Duration, Alarm)> {
        match alarm {
            Alarm::Restart(host) => {
                cluster.restart(host, Duration::ZERO);
                Vec::new()
            }
            Alarm::Room(host) => {
                cluster.set_room(host, u64::MAX);
                Vec::new()
            }
            _ if self.over => Vec::new(),
            Alarm::Operator | Alarm::Probe | Alarm::Backup | Alarm::Lose => Vec::new(),
            later if cluster.now() < self.quiet => vec![(self.quiet - cluster.now(), later)],
            Alarm::OldImage(host) => {
                self.put_back(cluster, host);
                Vec::new()
            }
            Alarm::Kill(host) => {
                let power = self.random.random_bool(0.5);
                cluster.crash(host, power);
                Vec::new()
            }
            Alarm::Mend => {
                self.mend(cluster);
                Vec::new()
            }
            Alarm::OldLog(host) => {
                let image = self.images.remove(&host);
                let same = |(id, _): &(NodeId, DiskImage)| *id == cluster.hosts()[host].id();
                if let Some((_, image)) = image.filter(same).filter(|_| !Self::weak(cluster, None)) {
                    cluster.hurt(host);
                    cluster.restore_log(host, &image);
                }
                Vec::new()
            }
            Alarm::Flap(host, left) => {
                if left % 2 == 0 {
                    self.isolate(cluster, host);
                } else {
                    cluster.network().heal();
                }
                let pause = Duration::from_millis(self.random.random_range(20..1500));
                if left == 0 {
                    vec![(pause, Alarm::Mend)]
                } else {
                    vec![(pause, Alarm::Flap(host, left - 1))]
                }
            }
            Alarm::Next => {
                let mut next = self.fault(cluster);
                let pause = span(&mut self.random, Duration::from_millis(10), self.pause);
                next.push((pause, Alarm::Next));
                next
            }
        }
    }

    /// Puts an old image back, with everybody there who knows better.
    fn put_back(&mut self, cluster: &mut Cluster, host: HostId) {
        let Some(image) = self.whole.remove(&host) else { return };
        let restart = self.random.random_bool(0.6);
        if Self::weak(cluster, None) || !cluster.put_back(host, &image, restart) {
            return;
        }
        self.mend(cluster);
        self.quiet = cluster.now() + QUIET;
        cluster.restart(host, Duration::from_millis(20));
    }

    fn pick(&mut self) -> Option<Fault> {
        let total: u32 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut at = self.random.random_range(0..total.max(1));
        for (fault, weight) in &self.weights {
            if at < *weight {
                return Some(*fault);
            }
            at -= weight;
        }
        None
    }

    /// Carries one fault out.
    fn fault(&mut self, cluster: &mut Cluster) -> Vec<(Duration, Alarm)> {
        let Some(fault) = self.pick() else { return Vec::new() };
        let running: Vec<HostId> =
            (0..cluster.hosts().len()).filter(|host| cluster.hosts()[*host].runs()).collect();
        if running.is_empty() {
            return Vec::new();
        }
        let host = running[self.random.random_range(0..running.len())];
        let leader = cluster.leader().unwrap_or(host);
        let mend =
            vec![(span(&mut self.random, Duration::from_millis(50), Duration::from_secs(7)), Alarm::Mend)];
        let mut next = Vec::new();
        match fault {
            Fault::Kill => cluster.crash(host, false),
            Fault::KillLeader => cluster.crash(leader, self.random.random_bool(0.5)),
            Fault::PowerCut => cluster.crash(host, true),
            Fault::PowerCutAll => running.iter().for_each(|host| cluster.crash(*host, true)),
            Fault::KillSome => {
                for host in running {
                    if self.random.random_bool(0.6) {
                        cluster.crash(host, self.random.random_bool(0.5));
                    }
                }
            }
            Fault::PowerCutInWrite => {
                let operations = self.random.random_range(0..6);
                cluster.hosts()[host].disk().cut_power_after(operations);
            }
            Fault::Pause => self.pause(cluster, host),
            Fault::PauseLeader => self.pause(cluster, leader),
            Fault::CleanStop => cluster.stop(host),
            Fault::IsolateLeader
            | Fault::Isolate
            | Fault::Split
            | Fault::Bridge
            | Fault::OneWay
            | Fault::BadLinks => {
                self.links(cluster, fault, host, leader);
                next = mend;
            }
            Fault::Flap => {
                let times = self.random.random_range(2..8);
                next.push((Duration::ZERO, Alarm::Flap(host, times)));
            }
            Fault::SlowDisk | Fault::SlowApply => {
                self.slow(cluster, fault, host);
                next = mend;
            }
            Fault::DiskFull | Fault::DiskShort => {
                let used = cluster.hosts()[host].disk().used();
                let spare = if fault == Fault::DiskFull { 0 } else { cluster.disk_reserve() };
                cluster.set_room(host, used + self.random.random_range(0..=spare));
                let most = Duration::from_secs(9);
                next.push((span(&mut self.random, Duration::from_millis(50), most), Alarm::Room(host)));
            }
            Fault::Rot | Fault::LostTable => {
                // What a leader has goes to others.
                let host = if self.random.random_bool(0.5) { leader } else { host };
                if Self::weak(cluster, None) || !cluster.rot(host, fault == Fault::LostTable) {
                    return Vec::new();
                }
            }
            Fault::SyncError | Fault::WriteError | Fault::BitFlip | Fault::OldLog => {
                if !self.disk(cluster, fault, host) {
                    return Vec::new();
                }
                if fault == Fault::OldLog {
                    next.push((
                        Duration::from_millis(self.random.random_range(100..3000)),
                        Alarm::OldLog(host),
                    ));
                }
            }
            Fault::Remove => {
                if !self.remove(cluster, host) {
                    return Vec::new();
                }
            }
            Fault::Transfer => self.transfer(cluster, host),
            Fault::OldImage => {
                if self.whole.contains_key(&host) || Self::weak(cluster, None) {
                    return Vec::new();
                }
                self.whole.insert(host, cluster.image_of(host));
                // Then a later run may be recorded, too.
                if self.random.random_bool(0.7) {
                    cluster.crash(host, false);
                }
                let pause = Duration::from_millis(self.random.random_range(200..8000));
                next.push((pause, Alarm::OldImage(host)));
            }
            Fault::ClockStep => {
                let host = if self.random.random_bool(0.5) { leader } else { host };
                cluster.step_clock(host, self.random.random_range(-STEP..=STEP));
            }
        }
        *self.counts.entry(fault).or_default() += 1;
        let lasts = next.iter().map(|(delay, _)| *delay).max().unwrap_or_default();
        self.spans.push((fault, cluster.now(), cluster.now() + lasts));
        next
    }

    fn pause(&mut self, cluster: &mut Cluster, host: HostId) {
        let most = Duration::from_secs(5).min(self.ends.saturating_sub(cluster.now()));
        let time = span(&mut self.random, Duration::from_millis(1), most);
        cluster.pause(host, time);
    }

    fn ids(cluster: &Cluster) -> Vec<NodeId> {
        cluster.hosts().iter().filter(|host| host.is_member()).map(|host| host.id()).collect()
    }

    fn isolate(&mut self, cluster: &mut Cluster, host: HostId) {
        let (all, one) = (Self::ids(cluster), cluster.hosts()[host].id());
        cluster.network().split(&[one], &all);
    }

    fn links(&mut self, cluster: &mut Cluster, fault: Fault, host: HostId, leader: HostId) {
        let mut ids = Self::ids(cluster);
        ids.shuffle(&mut self.random);
        let cut = self.random.random_range(0..=ids.len());
        match fault {
            Fault::IsolateLeader => self.isolate(cluster, leader),
            Fault::Isolate => self.isolate(cluster, host),
            Fault::Split => cluster.network().split(&ids[..cut], &ids[cut..]),
            Fault::Bridge if ids.len() > 2 => {
                let middle = 1 + (ids.len() - 1) / 2;
                cluster.network().split(&ids[1..middle], &ids[middle..]);
            }
            Fault::OneWay => {
                let from = cluster.hosts()[if self.random.random_bool(0.5) { host } else { leader }].id();
                for to in ids.into_iter().filter(|id| *id != from) {
                    if self.random.random_bool(0.7) {
                        cluster.network().cut(from, to);
                    }
                }
            }
            _ => {
                let mut chance = |most: f64| self.random.random::<f64>() * most;
                let options = NetworkOptions {
                    loss: chance(0.2),
                    duplicates: chance(0.2),
                    reorder: chance(0.3),
                    slow: chance(0.1),
                    ..self.calm
                };
                cluster.network().set_options(options);
            }
        }
    }

    fn slow(&mut self, cluster: &mut Cluster, fault: Fault, host: HostId) {
        let time = Duration::from_millis(self.random.random_range(20..1000));
        let speed = match fault {
            Fault::SlowDisk => Speed { sync: time, ..Speed::default() },
            _ => Speed { apply: time, ..Speed::default() },
        };
        cluster.set_speed(host, speed);
    }

    /// Whether some machine is not a full voter with a sound disk and a good certificate, or could be
    /// shut out by a rotation that is under way.
    fn weak(cluster: &Cluster, but: Option<HostId>) -> bool {
        cluster.may_shut_out() || Self::unsound(cluster, but)
    }

    /// Whether some machine but that one is not a full voter with a sound disk and a good certificate.
    pub(super) fn unsound(cluster: &Cluster, but: Option<HostId>) -> bool {
        let conf = cluster.leader().and_then(|leader| cluster.hosts()[leader].applied()).map(|at| at.conf);
        let Some(conf) = conf else { return true };
        let sound = |host: &HostId| {
            let member = &cluster.hosts()[*host];
            let sound = member.is_member() && !member.is_hurt() && conf.voters.contains(&member.id());
            sound && !cluster.is_stranded(*host)
        };
        !conf.voters_outgoing.is_empty()
            || conf.voters.len() < 3
            || !(0..cluster.hosts().len()).filter(|host| Some(*host) != but).all(|host| sound(&host))
    }

    fn disk(&mut self, cluster: &mut Cluster, fault: Fault, host: HostId) -> bool {
        match fault {
            Fault::WriteError => cluster.hosts()[host].disk().fail_writes(1),
            // The pages of a failed sync look clean and are lost with the power, which goes at once.
            Fault::SyncError => {
                cluster.hosts()[host].disk().fail_syncs(1);
                self.cycled.insert(host);
            }
            // These lose what was promised: only a minority may, and its member is lost with it.
            _ if Self::weak(cluster, Some(host)) => return false,
            Fault::OldLog => {
                let member = &cluster.hosts()[host];
                self.images.insert(host, (member.id(), member.disk().image()));
                return true;
            }
            _ => {
                let flips = if self.random.random_bool(0.7) { 1 } else { self.random.random_range(2..20) };
                // The log and its marker are each other's witness: only one of them is hit, and of
                // that only once in a run, else nothing is left that could tell.
                if cluster.hosts()[host].is_hurt() {
                    return false;
                }
                let marker = self.random.random_bool(0.2);
                for _ in 0..flips {
                    if !self.flip(cluster.hosts()[host].disk(), marker) {
                        return false;
                    }
                }
                cluster.hurt(host);
                if self.random.random_bool(0.7) {
                    cluster.crash(host, true);
                }
            }
        }
        self.excused.insert(host);
        true
    }

    /// Flips a bit of the log or its marker where something was written.
    fn flip(&mut self, disk: &SimDisk, marker: bool) -> bool {
        let fits = |name: &String| if marker { name == "marker" } else { name.starts_with("segment") };
        let mut names: Vec<String> = disk.list().unwrap_or_default().into_iter().filter(fits).collect();
        names.sort();
        if names.is_empty() {
            return false;
        }
        let newest = self.random.random_bool(0.5);
        let at = if newest { names.len() - 1 } else { self.random.random_range(0..names.len()) };
        let name = &names[at];
        let used = disk.open(name).and_then(|file| {
            let mut bytes = vec![0; file.len()? as usize];
            file.read_at(0, &mut bytes)?;
            Ok(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1))
        });
        let used = used.unwrap_or(0);
        if used > 0 {
            // The end of the newest file is what was promised last.
            let from = if newest { used.saturating_sub(100) } else { 0 };
            disk.flip_at(name, self.random.random_range(from * 8..used * 8));
        }
        used > 0
    }

    fn remove(&mut self, cluster: &mut Cluster, host: HostId) -> bool {
        let now = cluster.now();
        if Self::weak(cluster, None) || now < self.removed_at + Duration::from_secs(12) {
            return false;
        }
        self.removed_at = now;
        let victim = self.random.random_range(0..cluster.hosts().len());
        let change = ConfChange::Remove(cluster.hosts()[victim].id());
        // Nobody waits for the answer.
        cluster.ask(host, What::Conf(change), Duration::from_secs(5)).is_some()
    }

    fn transfer(&mut self, cluster: &mut Cluster, host: HostId) {
        let to = self.random.random_range(0..cluster.hosts().len());
        let to = self.random.random_bool(0.7).then(|| cluster.hosts()[to].id());
        // Nobody waits for the answer.
        let _ = cluster.ask(host, What::Transfer { to }, Duration::from_secs(3));
    }
}
