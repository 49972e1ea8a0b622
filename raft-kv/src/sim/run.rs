//! One seed: a cluster forms, serves clients through faults, heals, and is judged.
//!
//! A run in which too little happened is a failure too: it would have shown nothing.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::afterlife::Legacy;
use super::checks::history::{Operation, Outcome};
use super::checks::{Verdict, Violation, promises, witness};
use super::cluster::{Cluster, ClusterOptions, Happening, HostId};
use super::faults::{Alarm, Nemesis};
use super::judge::Judge;
use super::member::{Speed, Stop};
use super::network::NetworkOptions;
use super::operator::{self, Operator};
use super::scheduler::stream;
use super::surveyor::PointHabits;
use super::workload::{Bell, Habits, Workload};
use crate::limits;
use crate::machine::{self, Store};
use crate::node::ask::{Ticket, What};
use crate::node::replica::Bounds;
use crate::planted::{self, Bug};
use crate::storage::log;
use crate::types::PutRequest;

/// What a run is to be like.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Options {
    /// How long faults go on, in cluster time.
    pub faults: Duration,
    /// How often faults come, as a factor; 0 for none.
    pub intensity: f64,
    /// A bug to plant.
    pub bug: Option<Bug>,
    /// Keep the trace as text.
    pub text: bool,
    /// Whether it is about the cluster's roots more than about anything else.
    pub rotate: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { faults: Duration::from_secs(30), intensity: 1.0, bug: None, text: false, rotate: false }
    }
}

/// Why a run failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The property that did not hold.
    pub check: String,
    /// What was seen.
    pub detail: String,
    /// When, in cluster time.
    pub at: Duration,
}

/// What came of a run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Cluster time.
    pub simulated: Duration,
    /// Events taken.
    pub events: u64,
    /// Requests made.
    pub requests: u64,
    /// Requests done or answered.
    pub ok: u64,
    /// Requests whose outcome stayed unknown.
    pub unknown: u64,
    /// Terms that had a leader.
    pub elections: u64,
    /// Batches handed to watchers.
    pub watched: u64,
    /// How often each fault happened, and each thing that shows that faults mattered.
    pub counts: BTreeMap<String, u64>,
    /// A number for everything that happened, in its order.
    pub trace_hash: u64,
    /// The trace as text, where asked for.
    pub trace: Vec<String>,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
}

/// How long the cluster may take to form.
const FORMING: Duration = Duration::from_secs(40);
/// After faults have ended a write must succeed within five of the longest election timeouts.
const RECOVERY: Duration = Duration::from_millis(5 * 1500);
/// After faults have ended all members must be back within this.
const WHOLE_AGAIN: Duration = Duration::from_secs(60);
/// How long clients go on after the cluster is whole again.
const AFTERGLOW: Duration = Duration::from_secs(3);
/// How long it is quiet at the end: every lease ends by then.
const QUIET: Duration = Duration::from_secs(12);
/// How often it is looked who lets whom in.
const PROBE: Duration = Duration::from_millis(200);
/// What a lease may last beyond its time: a change of leader gives it its full time again.
const LEASE_SLACK: Duration = Duration::from_secs(4);

thread_local! {
    static LAST_PANIC: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
}

/// Panics of runs are kept for their reports and not printed, from now on and in all threads.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        let words = info.payload().downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| info.payload().downcast_ref::<&str>().copied());
        let text = words.unwrap_or("a panic without words");
        LAST_PANIC.with(|last| *last.borrow_mut() = Some(format!("{place}: {text}")));
    }));
}

/// Runs one seed. The same seed and options give the same report.
pub fn run(seed: u64, options: &Options) -> Report {
    planted::with(options.bug, || {
        let mut world = World::new(seed, options);
        let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
        let failure = match ran {
            Ok(Ok(())) => None,
            Ok(Err(violation)) => Some(violation),
            Err(payload) => {
                let said = payload.downcast_ref::<String>().cloned();
                let said = said.or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string));
                let said = LAST_PANIC.with(|last| last.borrow_mut().take()).or(said);
                Some(Violation::new("no panic", said.unwrap_or_default()))
            }
        };
        world.report(failure)
    })
}

/// A cluster with clients, watchers, faults and checks.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) options: Options,
    pub(super) cluster: Cluster,
    pub(super) workload: Workload,
    pub(super) nemesis: Nemesis,
    pub(super) operator: Operator,
    pub(super) judge: Judge,
    pub(super) legacy: Legacy,
    bells: Vec<Bell>,
    alarms: BTreeMap<u64, Alarm>,
    next_alarm: u64,
    happened: Vec<Happening>,
    stops: BTreeMap<&'static str, u64>,
    healthy: bool,
}

const FIRST_ALARM: u64 = 1 << 32;

fn setting(seed: u64, text: bool) -> (ClusterOptions, Habits, PointHabits, f64) {
    let mut random = stream(seed, "setting");
    let ms = |random: &mut ChaCha8Rng, least: u64, most: u64| {
        Duration::from_millis(random.random_range(least..most))
    };
    let network = NetworkOptions { most_delay: ms(&mut random, 1, 20), ..NetworkOptions::default() };
    let hosts = if random.random_bool(0.75) { 3 } else { 5 };
    let bounds = Bounds {
        flush_bytes: random.random_range(500..20_000),
        flush_after: ms(&mut random, 500, 8000),
        keep_for_followers: random.random_range(0..100),
        keep_at_most: random.random_range(100..400),
        ..Bounds::default()
    };
    let log = log::Options {
        segment_bytes: 4096 * random.random_range(1..6),
        spare_segments: random.random_range(0..3),
        cache_bytes: random.random_range(0..20_000),
    };
    let ring_bytes = random.random_range(0..6000);
    let mut weights = [12, 6, 3, 3, 2, 5, 2, 4, 1, 1];
    for weight in &mut weights {
        *weight *= [0, 1, 1, 1, 3][random.random_range(0..5)];
    }
    weights[0] += 4;
    weights[1] += 3;
    let habits = Habits {
        clients: random.random_range(3..12),
        watchers: random.random_range(2..6),
        think: ms(&mut random, 80, 600),
        padding: [0, 100, 2000][random.random_range(0..3)],
        weights,
        named: if random.random_bool(0.5) { 0.3 } else { 0.0 },
        serializable: if random.random_bool(0.5) { 0.3 } else { 0.0 },
    };
    let drift = if random.random_bool(0.5) { 0.05 } else { 0.0 };
    let points = PointHabits::of(seed);
    let step_keys = points.step_keys;
    let options = ClusterOptions { hosts, network, log, bounds, ring_bytes, step_keys, text };
    (options, habits, points, drift)
}

impl World {
    fn new(seed: u64, options: &Options) -> Self {
        let (setting, habits, points, drift) = setting(seed, options.text);
        let hosts = setting.hosts;
        let calm = setting.network;
        let mut cluster = Cluster::new(seed, setting);
        let mut random = stream(seed, "clocks");
        for host in 0..cluster.hosts().len() {
            let clock = 1.0 + (random.random::<f64>() * 2.0 - 1.0) * drift;
            cluster.set_speed(host, Speed { clock, ..Speed::default() });
        }
        let workload = Workload::new(seed, habits, points, hosts, 1.0 + drift);
        let bells = workload.bells();
        Self {
            seed,
            options: *options,
            cluster,
            workload,
            nemesis: Nemesis::new(seed, calm, options.intensity),
            operator: Operator::new(seed, options.rotate),
            judge: Judge::default(),
            legacy: Legacy::new(seed),
            bells,
            alarms: BTreeMap::new(),
            next_alarm: FIRST_ALARM,
            happened: Vec::new(),
            stops: BTreeMap::new(),
            healthy: false,
        }
    }

    fn run(&mut self) -> Verdict {
        for (place, _) in self.bells.clone().iter().enumerate() {
            self.cluster.timer(Duration::from_millis(300 + 10 * place as u64), place as u64);
        }
        self.alarm(Duration::ZERO, Alarm::Probe);
        self.form()?;
        let ends = self.cluster.now() + self.options.faults;
        self.nemesis.ends_at(ends);
        self.alarm(Duration::ZERO, Alarm::Next);
        self.alarm(Duration::ZERO, Alarm::Operator);
        let (backup, loss) = self.legacy.draw(self.options.faults);
        backup.into_iter().for_each(|delay| self.alarm(delay, Alarm::Backup));
        loss.into_iter().for_each(|delay| self.alarm(delay, Alarm::Lose));
        self.run_until(ends, |_| false)?;
        self.heal()?;
        self.finish()?;
        self.legacy.go_on(self.seed, &self.cluster, &self.judge.changes)
    }

    fn form(&mut self) -> Verdict {
        let hosts = self.cluster.hosts().len();
        let formed = self.run_until(FORMING, |world| world.cluster.voters() == hosts)?;
        if formed { Ok(()) } else { stuck("the cluster did not form") }
    }

    /// All faults end: the cluster must serve soon, and be whole again a while after.
    fn heal(&mut self) -> Verdict {
        for host in self.nemesis.end(&mut self.cluster) {
            self.cluster.restart(host, Duration::from_millis(100));
        }
        self.operator.end();
        self.healthy = true;
        let since = self.cluster.now();
        self.writes_succeed(since)?;
        let hosts = self.cluster.hosts().len();
        let whole = self.run_until(since + WHOLE_AGAIN, |world| world.cluster.voters() == hosts)?;
        if !whole {
            return stuck("not all members came back after the faults had ended");
        }
        self.rotations_end(since)?;
        let until = self.cluster.now() + AFTERGLOW;
        self.run_until(until, |_| false).map(drop)
    }

    /// Every rotation ends, but for one that nobody may be late for: then only nodes that are gone are.
    fn rotations_end(&mut self, since: Duration) -> Verdict {
        let over = |world: &Self| {
            let hosts = 0..world.cluster.hosts().len();
            let back = hosts.clone().all(|host| !world.cluster.is_stranded(host));
            back && world.cluster.leader().is_some_and(|leader| world.waits_for_the_lost(leader))
        };
        if self.run_until(since + WHOLE_AGAIN, over)? {
            return Ok(());
        }
        let seen: Vec<_> = (0..self.cluster.hosts().len())
            .map(|host| (self.cluster.trusted(host), self.cluster.is_stranded(host)))
            .collect();
        let verdict = self.cluster.leader().map(|leader| self.verdict(leader));
        Err(Violation::new("every rotation ends", format!("{verdict:?}, {seen:?}")))
    }

    fn verdict(&self, host: HostId) -> machine::Verdict {
        let now = self.cluster.wall(host);
        let store = self.cluster.hosts()[host].store();
        store.view(|view| machine::read::verdict(view, now)).expect("memory does not fail")
    }

    /// Whether there is no rotation, or one that only nodes are late for that nobody hears of again.
    fn waits_for_the_lost(&self, leader: HostId) -> bool {
        match self.verdict(leader) {
            machine::Verdict::Stable => true,
            machine::Verdict::Wait { late, stuck: false } => {
                let Some(trusted) = self.cluster.trusted(leader) else { return false };
                let far = trusted.rotation.is_some_and(|it| it.deadline > self.cluster.wall(leader) + 1000);
                far && late.iter().all(|id| self.cluster.hosts().iter().all(|host| host.id() != *id))
            }
            _ => false,
        }
    }

    /// A write at some member succeeds in time, with as many tries as a caller would make.
    fn writes_succeed(&mut self, since: Duration) -> Verdict {
        let mut tries: Vec<Ticket> = Vec::new();
        while self.cluster.now() < since + RECOVERY {
            let next = self.cluster.now() + Duration::from_millis(200);
            for host in 0..self.cluster.hosts().len() {
                let request = PutRequest { ignore_value: true, key: "probe".into(), ..PutRequest::default() };
                let command = crate::machine::command::Command::Put(request);
                tries.extend(self.cluster.ask(host, What::Command { command, once: None }, RECOVERY));
            }
            // The key does not exist, so the machine refuses: through the log, but without a trace.
            let answered = self.run_until_answered(next, &tries)?;
            if answered {
                return Ok(());
            }
        }
        stuck("no request went through the log in time after the faults had ended")
    }

    fn finish(&mut self) -> Verdict {
        let healed = self.cluster.now();
        self.workload.be_quiet();
        self.run_until(healed + QUIET, |_| false)?;
        self.run_until(healed + QUIET + Duration::from_secs(20), |world| world.has_converged())?;
        let rotten = self.cluster.hosts().iter().position(|host| host.is_rotten());
        if let Some(host) = rotten {
            let detail = format!("m{host} has run on with a damaged state");
            return Err(Violation::new("damage is found", detail));
        }
        self.judge.at_end(&self.cluster)?;
        let (head, slowest) = (self.judge.changes.head(), self.workload.slowest_watcher());
        if slowest < head {
            return stuck(&format!("a watcher is at revision {slowest}, the store at {head}"));
        }
        let waiting = self.workload.waiting();
        if waiting > 0 {
            return stuck(&format!("{waiting} requests were never answered"));
        }
        let living = self.cluster.read(0, |view| {
            machine::read::leases(view).map_err(|failed| crate::error::Error::Stopped(failed.to_string()))
        });
        let living: Vec<_> = living.unwrap_or_default().into_iter().map(|(id, _)| id).collect();
        self.workload.leases.at_end(&living, healed, LEASE_SLACK, self.cluster.now())?;
        witness::check(&self.workload.history, &self.judge.changes, &self.judge.points)
    }

    fn has_converged(&self) -> bool {
        let indexes: Vec<_> =
            self.cluster.hosts().iter().map(|host| host.applied().map(|at| at.index)).collect();
        let same = indexes.iter().all(|index| index.is_some() && *index == indexes[0]);
        same && self.workload.slowest_watcher() >= self.judge.changes.head() && self.workload.waiting() == 0
    }

    fn alarm(&mut self, delay: Duration, alarm: Alarm) {
        self.alarms.insert(self.next_alarm, alarm);
        self.cluster.timer(delay, self.next_alarm);
        self.next_alarm += 1;
    }

    /// Moves on until `done` or until a time; says whether it was done.
    fn run_until(&mut self, until: Duration, done: impl Fn(&Self) -> bool) -> Result<bool, Violation> {
        let mut looked = Duration::ZERO;
        while self.cluster.next_at().is_some_and(|at| at <= until) {
            self.step()?;
            // Not after every event: it is not cheap.
            if self.cluster.now() > looked + Duration::from_millis(20) {
                looked = self.cluster.now();
                if done(self) {
                    return Ok(true);
                }
            }
        }
        Ok(done(self))
    }

    fn run_until_answered(&mut self, until: Duration, tries: &[Ticket]) -> Result<bool, Violation> {
        while self.cluster.next_at().is_some_and(|at| at <= until) {
            self.cluster.step(&mut self.happened);
            let through = self.happened.iter().any(|happening| match happening {
                Happening::Answer(_, ticket, Err(crate::error::Error::Refused(_))) => tries.contains(ticket),
                _ => false,
            });
            self.take_in()?;
            if through {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn step(&mut self) -> Verdict {
        self.cluster.step(&mut self.happened);
        self.take_in()
    }

    fn take_in(&mut self) -> Verdict {
        while !self.happened.is_empty() {
            for happening in std::mem::take(&mut self.happened) {
                self.judge.judge(&self.cluster, &happening)?;
                self.ends_of_leases()?;
                self.react(happening)?;
            }
        }
        Ok(())
    }

    fn ends_of_leases(&mut self) -> Verdict {
        for (id, by_clock) in std::mem::take(&mut self.judge.ended) {
            if by_clock && !self.workload.revoked.contains(&id) {
                self.workload.leases.expired(id, self.cluster.now())?;
            } else {
                self.workload.leases.ended(id);
            }
        }
        Ok(())
    }

    fn react(&mut self, happening: Happening) -> Verdict {
        match happening {
            Happening::Answer(host, ticket, result) => {
                self.workload.answered(&mut self.cluster, host, ticket, result)
            }
            Happening::Watched(key, batch) => self.workload.watched(key, &batch, &self.judge.changes),
            Happening::Timer(token) => self.ring(token),
            Happening::Stopped(host, why) => self.stopped(host, &why),
            Happening::Half(host) => {
                self.workload.peek(&self.cluster, host)?;
                if !self.healthy
                    && let Some(micros) = self.workload.surveyor.crashes()
                {
                    self.alarm(Duration::from_micros(micros), Alarm::Kill(host));
                }
                Ok(())
            }
            Happening::Condemned(host) => self.workload.look_at_damage(&self.cluster, host),
            Happening::Trusted(host) => {
                if let Some((delay, alarm)) = self.operator.step(&self.cluster, host) {
                    self.alarm(delay, alarm);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn ring(&mut self, token: u64) -> Verdict {
        if let Some(alarm) = self.alarms.remove(&token) {
            match alarm {
                Alarm::Probe => {
                    self.alarm(PROBE, Alarm::Probe);
                    return self.judge.probe(&mut self.cluster);
                }
                Alarm::Operator => {
                    self.alarm(operator::LOOK, Alarm::Operator);
                    self.operator.look(&mut self.cluster, &mut self.nemesis);
                    return Ok(());
                }
                Alarm::Backup | Alarm::Lose => {
                    let done = match alarm {
                        Alarm::Backup => self.legacy.back_up(&self.cluster),
                        _ => self.legacy.lose(&self.cluster),
                    };
                    if !done {
                        self.alarm(Duration::from_millis(200), alarm);
                    }
                    return Ok(());
                }
                _ => {}
            }
            for (delay, alarm) in self.nemesis.ring(&mut self.cluster, alarm) {
                self.alarm(delay, alarm);
            }
        } else if let Some(bell) = self.bells.get(token as usize) {
            let again = self.workload.ring(&mut self.cluster, *bell, &self.judge.changes)?;
            if let Some(delay) = again {
                self.cluster.timer(delay, token);
            }
        }
        Ok(())
    }

    fn stopped(&mut self, host: HostId, why: &Stop) -> Verdict {
        let kind = match why {
            Stop::Crashed => "stopped: crashed",
            Stop::Clean => "stopped: cleanly",
            Stop::Storage(_) => "stopped: its disk failed",
            Stop::Behind => "stopped: it had lost a part of its log",
            Stop::Older(_) => "stopped: its disk was an older copy",
            Stop::Removed => "stopped: it was removed",
        };
        *self.stops.entry(kind).or_default() += 1;
        let full = self.cluster.hosts()[host].is_short();
        let excused = full || self.cluster.hosts()[host].is_hurt() || self.nemesis.excuses(host);
        promises::ended(host, why, excused)?;
        self.workload.stopped(host);
        for (delay, alarm) in self.nemesis.stopped(&mut self.cluster, host, why) {
            self.alarm(delay, alarm);
        }
        Ok(())
    }

    fn ok(&self) -> u64 {
        self.workload.history.iter().filter(|operation| operation.is_ok()).count() as u64
    }

    /// Whether nearly nothing happened, as it does where faults leave no leader in office: such a run
    /// shows nothing, and few may be so.
    fn is_idle(&self) -> bool {
        let (ok, requests) = (self.ok(), self.workload.history.len() as u64);
        let told: i64 = self.workload.ends().iter().sum();
        ok < 10 || ok * 10 < requests || self.judge.changes.head() < 5 || told < 5
    }

    fn report(&self, failure: Option<Violation>) -> Report {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for (fault, count) in &self.nemesis.counts {
            counts.insert(format!("fault: {fault:?}"), *count);
        }
        for (fault, count) in self.faults_that_mattered() {
            counts.insert(format!("mattered: {fault:?}"), count);
        }
        for (stop, count) in &self.stops {
            counts.insert((*stop).to_owned(), *count);
        }
        for (what, count) in &self.legacy.counts {
            counts.insert((*what).to_owned(), *count);
        }
        for (what, count) in &self.operator.counts {
            counts.insert((*what).to_owned(), *count);
        }
        for (what, count) in &self.workload.surveyor.counts {
            counts.insert((*what).to_owned(), *count);
        }
        for (what, count) in
            self.mattered().into_iter().chain(self.rotated()).chain(self.rolled_back()).chain(self.of_space())
        {
            *counts.entry(what.to_owned()).or_default() += count;
        }
        counts.insert("runs in which too little happened".to_owned(), u64::from(self.is_idle()));
        counts.retain(|_, count| *count > 0);
        let at = self.cluster.now();
        let unknown = |operation: &&Operation| operation.outcome == Outcome::Unknown;
        Report {
            seed: self.seed,
            simulated: at,
            events: self.cluster.events(),
            requests: self.workload.history.len() as u64,
            ok: self.ok(),
            unknown: self.workload.history.iter().filter(unknown).count() as u64,
            elections: self.judge.elections.count(),
            watched: self.workload.handed,
            counts,
            trace_hash: self.cluster.trace().hash(),
            trace: self.cluster.trace().lines().to_vec(),
            failure: failure.map(|violation| {
                let mut detail = violation.detail;
                if let Some((end, _)) = detail.char_indices().nth(2000) {
                    detail.truncate(end);
                }
                Failure { check: violation.check.to_owned(), detail, at }
            }),
        }
    }
}

fn stuck(what: &str) -> Verdict {
    Err(Violation::new("the cluster makes progress", what))
}

const _: () =
    assert!(RECOVERY.as_millis() == 5 * limits::TICK.as_millis() * limits::ELECTION_TICKS_MAX as u128);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_runs_twice_the_same() {
        let options = Options { faults: Duration::from_secs(10), ..Options::default() };
        let (one, two) = (run(1, &options), run(1, &options));
        assert_eq!(one.failure, None);
        assert_eq!(one, two);
    }

    #[test]
    fn rollbacks_are_whole_while_things_go_wrong() {
        let options = Options { faults: Duration::from_secs(15), ..Options::default() };
        let seeds = (0..).filter(|seed| {
            let habits = PointHabits::of(*seed);
            habits.share > 0.1 && habits.crash > 0.05 && habits.step_keys < 4
        });
        let reports: Vec<Report> = seeds.take(4).map(|seed| run(seed, &options)).collect();
        reports.iter().for_each(|report| assert_eq!(report.failure, None, "seed {}", report.seed));
        let count = |what: &str| reports.iter().filter_map(|report| report.counts.get(what)).sum::<u64>();
        for what in [
            "rollbacks done",
            "rollbacks undone",
            "rollbacks interrupted by a crash",
            "reads while a rollback was half done",
            "pages of differences after the first",
        ] {
            assert!(count(what) > 0, "no {what}");
        }
    }

    #[test]
    fn roots_are_replaced_while_things_go_wrong() {
        let options = Options { faults: Duration::from_secs(15), rotate: true, ..Options::default() };
        let reports: Vec<Report> = (0..4).map(|seed| run(seed, &options)).collect();
        reports.iter().for_each(|report| assert_eq!(report.failure, None, "seed {}", report.seed));
        let settled = |report: &Report| report.counts.get("rotations settled").copied().unwrap_or(0);
        assert!(reports.iter().map(settled).sum::<u64>() > 2);
    }
}
