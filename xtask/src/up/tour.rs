//! The tour: a cluster comes up, is written, read and watched, loses its leader to SIGKILL, loses
//! nothing, and is whole again. Every step says what it did, what it measured, and its verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::cluster::{Cluster, word};
use super::command::{Binary, text};
use super::fleet::Fleet;
use super::process::Running;
use super::{LOOK, interrupted, wait_for};

/// Acknowledged writes before the leader is killed.
const WRITES: usize = 30;
/// Longest the cluster may be without a leader before the step fails. The aim is far lower
/// (benches/README.md); this leaves room for a machine that does other things.
const FAILOVER_LIMIT: Duration = Duration::from_secs(5);
/// Longest that a returned member may take to be level with the others.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(30);
/// Longest that events may take to arrive.
const WATCH_LIMIT: Duration = Duration::from_secs(10);

/// What the tour has learnt on its way.
struct Tour {
    // Before the cluster, so that workers end first.
    fleet: Fleet,
    cluster: Cluster,
    dir: PathBuf,
    /// Where this tour's keys begin.
    prefix: String,
    /// Keys whose writes were acknowledged, with their values.
    written: BTreeMap<String, String>,
    /// Keys whose writes were tried.
    tried: BTreeSet<String>,
    watch: Option<Running>,
    leader: usize,
    /// The revision of the first write.
    first: u64,
}

type Step = (&'static str, fn(&mut Tour) -> Result<String, String>);

const STEPS: &[Step] = &[
    ("three members: one made by `init`, two by `join --token`", Tour::begin),
    ("write a key through one member", Tour::write),
    ("read it from every other member", Tour::read_elsewhere),
    ("watch a prefix on a member that does not lead", Tour::watch),
    ("write more, each acknowledged by a quorum's disks", Tour::write_more),
    ("kill -9 the leader; the others elect and serve", Tour::kill_leader),
    ("nothing acknowledged is lost", Tour::nothing_lost),
    ("the killed member returns and catches up", Tour::bring_back),
    ("a client of etcd's, through the etcd API", Tour::etcd_client),
    ("the watcher saw every change once, in order", Tour::watch_is_whole),
];

/// The steps of the example orchestrator, on the same members.
const WORK: &[Step] = &[
    ("three workers join the managers of the example orchestrator", |tour| tour.fleet.begin(&tour.cluster)),
    ("deploy a Compose file of 6 tasks", |tour| tour.fleet.deploy(&tour.cluster)),
    ("scale to 9", |tour| tour.fleet.scale(&tour.cluster)),
    ("kill -9 a worker; its tasks move", |tour| tour.fleet.kill_worker(&tour.cluster)),
    ("kill -9 the leading manager; all goes on", Tour::kill_manager),
    ("deploy a bad release", |tour| tour.fleet.bad_deploy(&tour.cluster)),
    ("roll it back", |tour| tour.fleet.roll_back(&tour.cluster)),
    ("replace the root of all certificates", |tour| tour.fleet.rotate(&tour.cluster)),
];

/// Runs the tour. With `check` it stops the members and gives a verdict; otherwise the cluster stays
/// until Ctrl-C.
pub fn run(binary: &Path, dir: &Path, check: bool) -> Result<(), String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
    // Both are built together, and lie side by side.
    let program = Some(binary.with_file_name("orchestrator")).filter(|path| path.is_file());
    let mut tour = Tour {
        fleet: Fleet::new(program.clone(), dir.to_owned()),
        cluster: Cluster::prepare(binary, dir, false)?,
        dir: dir.to_owned(),
        prefix: format!("tour/{}/", now.as_secs()),
        written: BTreeMap::new(),
        tried: BTreeSet::new(),
        watch: None,
        leader: 0,
        first: 0,
    };
    let known = tour.cluster.existed();
    tour.cluster.managers = program.filter(|_| !known).map(|path| Binary { path });
    let steps: Vec<&Step> = match tour.cluster.managers {
        Some(_) => STEPS.iter().chain(WORK).collect(),
        None => STEPS.iter().collect(),
    };
    println!("up: a tour of three raft-kv processes on this machine, data in {}", dir.display());
    let passed = tour.walk(&steps);
    let whole = passed == steps.len();
    // The watcher goes first: it would only lose its member.
    tour.watch = None;
    if !check && !interrupted() {
        tour.stay(whole);
    }
    tour.fleet.stop();
    let stopped = show("stop all members cleanly", || {
        tour.cluster.stop().map(|()| "all of them said goodbye".to_owned())
    });
    let total = steps.len() + 1;
    let passed = passed + usize::from(stopped);
    let name = if check { "up --check" } else { "up" };
    println!("\n{name}: {passed} of {total} steps passed");
    if passed == total { Ok(()) } else { Err(format!("the members' logs are {}/*.log", dir.display())) }
}

/// Carries out one step and tells of it.
fn show(name: &str, work: impl FnOnce() -> Result<String, String>) -> bool {
    let started = Instant::now();
    let outcome = work();
    let seconds = started.elapsed().as_secs_f64();
    match &outcome {
        Ok(detail) => println!("  ✓ {name}\n      {detail} ({seconds:.2} s)"),
        Err(why) => println!("  ✗ {name}\n      {why} ({seconds:.2} s)"),
    }
    outcome.is_ok()
}

impl Tour {
    /// Walks until a step fails: each rests on those before. Returns how many passed.
    fn walk(&mut self, steps: &[&Step]) -> usize {
        steps.iter().take_while(|(name, work)| show(name, || work(self))).count()
    }

    fn kill_manager(&mut self) -> Result<String, String> {
        self.leader = self.find_leader()?;
        self.fleet.kill_manager(&mut self.cluster, self.leader)
    }

    fn begin(&mut self) -> Result<String, String> {
        self.cluster.start(3)?;
        let list: Vec<String> = self
            .cluster
            .members()
            .iter()
            .map(|member| format!("{} on {}", member.name, member.addr))
            .collect();
        Ok(list.join(", "))
    }

    fn write(&mut self) -> Result<String, String> {
        let endpoint = self.url(0);
        let answer = self.put(&[&endpoint], "first", "written through n1")?;
        self.first = answer["revision"].as_u64().ok_or_else(|| format!("no revision in {answer}"))?;
        Ok(format!("put through n1: revision {}", self.first))
    }

    fn read_elsewhere(&mut self) -> Result<String, String> {
        let key = format!("{}first", self.prefix);
        let mut seen = vec![];
        for index in 1..self.cluster.members().len() {
            let answer = self.cluster.call(&[&self.url(index)], &["get", &key])?;
            let value = word(&answer["kvs"][0], "value")?;
            if value != self.written[&key] {
                return Err(format!("{} answers {value:?}", self.name(index)));
            }
            seen.push(format!("{} answers {value:?}", self.name(index)));
        }
        Ok(seen.join(", "))
    }

    fn watch(&mut self) -> Result<String, String> {
        self.leader = self.find_leader()?;
        let follower = (self.leader + 1) % self.cluster.members().len();
        let (out, log) = self.watch_files();
        fs::write(&out, "").map_err(|error| format!("{}: {error}", out.display()))?;
        let prefix = self.prefix.clone();
        let url = self.url(follower);
        // From the first write on, which is long done.
        let first = self.first.to_string();
        let words = ["watch", &prefix, "--prefix", "--from-revision", &first];
        let command = self.cluster.binary.as_client(&self.cluster.credentials(), &[&url], &words);
        self.watch = Some(Running::spawn(&command, &out, &log, false)?);
        let count = self.await_events(1)?;
        Ok(format!(
            "on {}; {count} event of the past has arrived, the leader is {}",
            self.name(follower),
            self.name(self.leader)
        ))
    }

    fn write_more(&mut self) -> Result<String, String> {
        let started = Instant::now();
        for number in 0..WRITES {
            let endpoint = self.url(number % self.cluster.members().len());
            self.put(&[&endpoint], &format!("key-{number:03}"), &format!("value {number}"))?;
        }
        let each = started.elapsed().as_secs_f64() * 1000.0 / WRITES as f64;
        let count = self.await_events(1 + WRITES)?;
        Ok(format!(
            "{WRITES} puts, {each:.1} ms each including a process and a TLS handshake; the watcher has {count} events"
        ))
    }

    fn kill_leader(&mut self) -> Result<String, String> {
        self.leader = self.find_leader()?;
        let leader = self.leader;
        let others: Vec<String> =
            self.cluster.endpoints(Some(leader)).into_iter().map(str::to_owned).collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        self.cluster.kill(leader)?;
        let killed = Instant::now();
        let mut number = 0;
        let served = wait_for("a write after the leader's death", FAILOVER_LIMIT, || {
            number += 1;
            Ok(self.put(&others, &format!("after-{number:03}"), "written without the old leader").ok())
        });
        let gap = killed.elapsed();
        served?;
        if gap > FAILOVER_LIMIT {
            return Err(format!("the next write succeeded only after {:.2} s", gap.as_secs_f64()));
        }
        let new = self.find_leader()?;
        Ok(format!(
            "{} is dead; a write succeeded {:.0} ms later (try {number}), {} leads",
            self.name(leader),
            gap.as_secs_f64() * 1000.0,
            self.name(new)
        ))
    }

    fn nothing_lost(&mut self) -> Result<String, String> {
        let mut asked = vec![];
        for index in (0..self.cluster.members().len()).filter(|index| *index != self.leader) {
            self.compare(index)?;
            asked.push(self.name(index));
        }
        Ok(format!("{} keys on {} are as acknowledged", self.written.len(), asked.join(" and ")))
    }

    fn bring_back(&mut self) -> Result<String, String> {
        let started = Instant::now();
        let (back, other) = (self.leader, (self.leader + 1) % self.cluster.members().len());
        self.cluster.restart(back)?;
        let served = started.elapsed();
        let target = self.revision(other)?;
        wait_for("the member is level with the others", CATCH_UP_LIMIT, || {
            Ok(self.revision(back).ok().filter(|revision| *revision >= target))
        })?;
        let level = started.elapsed();
        self.compare(back)?;
        Ok(format!(
            "{} served after {:.0} ms and was level (revision {target}) after {:.0} ms",
            self.name(back),
            served.as_secs_f64() * 1000.0,
            level.as_secs_f64() * 1000.0
        ))
    }

    /// With etcd's own program where this machine has it, else with curl.
    fn etcd_client(&mut self) -> Result<String, String> {
        let endpoints = self.cluster.etcd_endpoints().join(",");
        let (credentials, probe) = (self.cluster.credentials(), self.cluster.members()[0].etcd_url.clone());
        let ask = |program: &str, words: &[&str]| {
            let mut command = Command::new(program);
            command.args(words).env("ETCDCTL_API", "3");
            command.arg("--cacert").arg(&credentials.cacert).arg("--cert").arg(&credentials.cert);
            text(command.arg("--key").arg(&credentials.key))
        };
        if is_there("etcdctl") {
            // Not among the keys that the watcher is judged by.
            let (key, value) = (format!("etcdctl/{}", self.prefix), "through etcdctl");
            let put = ask("etcdctl", &["put", &key, value, "--endpoints", &endpoints])?;
            let got = ask("etcdctl", &["get", &key, "--print-value-only", "--endpoints", &endpoints])?;
            return match got.trim() == value {
                true => Ok(format!("etcdctl put: {}, etcdctl get: {value:?}", put.trim())),
                false => Err(format!("etcdctl got {:?}, written was {value:?}", got.trim())),
            };
        }
        if is_there("curl") {
            let url = format!("{probe}/version");
            let answer = ask("curl", &["--silent", "--show-error", "--fail", &url])?;
            return Ok(format!("no etcdctl here; curl {url} says {}", answer.trim()));
        }
        Ok("skipped: neither etcdctl nor curl is on this machine".to_owned())
    }

    fn watch_is_whole(&mut self) -> Result<String, String> {
        let endpoint = self.url(self.leader);
        self.put(&[&endpoint], "last", "the end")?;
        let last = format!("{}last", self.prefix);
        let (out, _) = self.watch_files();
        let events = wait_for("the last event", WATCH_LIMIT, || {
            let events = read_events(&out)?;
            Ok(events.iter().any(|event| event.key == last).then_some(events))
        })?;
        judge_events(&events, &self.written, &self.tried)?;
        Ok(format!(
            "{} events, revisions {} to {}",
            events.len(),
            events[0].revision,
            events[events.len() - 1].revision
        ))
    }

    /// The cluster stays until Ctrl-C, and says how to talk to it.
    fn stay(&mut self, whole: bool) {
        let credentials = self.cluster.credentials();
        if !whole && self.cluster.members().is_empty() {
            return;
        }
        println!("\nThe cluster is up. To talk to it from another terminal:\n");
        println!("  export RAFT_KV_ENDPOINTS={}", self.cluster.endpoints(None).join(","));
        println!("  export RAFT_KV_CACERT={}", credentials.cacert.display());
        println!("  export RAFT_KV_CERT={}", credentials.cert.display());
        println!("  export RAFT_KV_KEY={}", credentials.key.display());
        println!("  alias raft-kv={}", self.cluster.binary.path.display());
        println!(
            "  raft-kv put greeting hello\n  raft-kv get greeting\n  raft-kv watch --prefix ''\n  raft-kv member ls\n"
        );
        println!("  export ETCDCTL_API=3 ETCDCTL_ENDPOINTS={}", self.cluster.etcd_endpoints().join(","));
        println!(
            "  export ETCDCTL_CACERT={} ETCDCTL_CERT={} ETCDCTL_KEY={}",
            credentials.cacert.display(),
            credentials.cert.display(),
            credentials.key.display()
        );
        println!("  etcdctl put greeting hello\n");
        if let Some(program) = self.fleet.program.as_ref().filter(|_| self.cluster.managers.is_some()) {
            println!("  export ORCHESTRATOR_DATA_DIR={}", self.cluster.members()[0].data_dir.display());
            println!("  alias orchestrator={}", program.display());
            println!(
                "  orchestrator ps; orchestrator scale web=3; orchestrator rollback; orchestrator nodes\n"
            );
        }
        println!("Ctrl-C stops it.");
        let mut told = BTreeSet::new();
        while !interrupted() {
            for fallen in self.cluster.fallen() {
                if told.insert(fallen.clone()) {
                    println!("  ✗ {fallen}");
                }
            }
            thread::sleep(LOOK * 5);
        }
        println!();
    }

    fn put(&mut self, endpoints: &[&str], name: &str, value: &str) -> Result<Value, String> {
        let key = format!("{}{name}", self.prefix);
        self.tried.insert(key.clone());
        let answer = self.cluster.call(endpoints, &["put", &key, value])?;
        self.written.insert(key, value.to_owned());
        Ok(answer)
    }

    /// What a member answers for all keys of the tour, against what was acknowledged.
    fn compare(&self, index: usize) -> Result<(), String> {
        let answer = self.cluster.call(&[&self.url(index)], &["get", &self.prefix, "--prefix"])?;
        let kvs = answer["kvs"].as_array().ok_or("no kvs in the answer")?;
        let got: BTreeMap<&str, &str> =
            kvs.iter().filter_map(|kv| Some((kv["key"].as_str()?, kv["value"].as_str()?))).collect();
        match self.written.iter().find(|(key, value)| got.get(key.as_str()) != Some(&value.as_str())) {
            None => Ok(()),
            Some((key, value)) => {
                Err(format!("{} lost {key}: {value:?}, it has {:?}", self.name(index), got.get(key.as_str())))
            }
        }
    }

    /// Which member leads; waits a little where none does.
    fn find_leader(&self) -> Result<usize, String> {
        let live: Vec<usize> = (0..self.cluster.members().len())
            .filter(|index| self.cluster.members()[*index].process.is_some())
            .collect();
        wait_for("a leader", FAILOVER_LIMIT, || {
            for index in &live {
                let Ok(info) = self.cluster.call(&[&self.url(*index)], &["info"]) else { continue };
                let leads = |member: &super::record::MemberRecord| {
                    Some(member.id.as_str()) == info["leader"].as_str()
                };
                // A member may name a leader that has just died; only one that runs counts.
                if let Some(found) =
                    self.cluster.members().iter().position(leads).filter(|found| live.contains(found))
                {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        })
    }

    fn revision(&self, index: usize) -> Result<u64, String> {
        let info = self.cluster.call(&[&self.url(index)], &["info"])?;
        info["revision"].as_u64().ok_or_else(|| format!("no revision in {info}"))
    }

    fn await_events(&mut self, count: usize) -> Result<usize, String> {
        let (out, log) = self.watch_files();
        let watch = self.watch.as_mut().ok_or("no watcher")?;
        wait_for(&format!("{count} events"), WATCH_LIMIT, || {
            let seen = read_events(&out)?.len();
            match watch.ended() {
                Some(status) => Err(format!(
                    "the watcher ended ({status}): {}",
                    fs::read_to_string(&log).unwrap_or_default().trim()
                )),
                None => Ok((seen >= count).then_some(seen)),
            }
        })
    }

    fn watch_files(&self) -> (PathBuf, PathBuf) {
        (self.dir.join("watch.out"), self.dir.join("watch.log"))
    }

    fn url(&self, index: usize) -> String {
        self.cluster.members()[index].url.clone()
    }

    fn name(&self, index: usize) -> String {
        self.cluster.members()[index].name.clone()
    }
}

/// Whether a program of this name can be started.
fn is_there(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| folder.join(program).is_file())
}

/// One event as the watcher printed it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Event {
    key: String,
    value: String,
    revision: u64,
}

fn read_events(out: &Path) -> Result<Vec<Event>, String> {
    let text = fs::read_to_string(out).map_err(|error| format!("{}: {error}", out.display()))?;
    Ok(events_in(&text))
}

/// The events of a watcher's output; the last line may not be whole yet.
fn events_in(text: &str) -> Vec<Event> {
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|event| {
            Some(Event {
                key: event["key"].as_str()?.to_owned(),
                value: event["value"].as_str().unwrap_or_default().to_owned(),
                revision: event["mod_revision"].as_u64()?,
            })
        })
        .collect()
}

/// Every acknowledged write is among the events exactly once with its value, nothing is there that
/// nobody tried, and revisions rise.
fn judge_events(
    events: &[Event],
    written: &BTreeMap<String, String>,
    tried: &BTreeSet<String>,
) -> Result<(), String> {
    if let Some(pair) = events.windows(2).find(|pair| pair[0].revision >= pair[1].revision) {
        return Err(format!("revision {} came after {}", pair[1].revision, pair[0].revision));
    }
    if let Some(event) = events.iter().find(|event| !tried.contains(&event.key)) {
        return Err(format!("an event of {} that nobody wrote", event.key));
    }
    for (key, value) in written {
        let seen: Vec<&Event> = events.iter().filter(|event| event.key == *key).collect();
        match seen.as_slice() {
            [one] if one.value == *value => {}
            [one] => return Err(format!("the event of {key} says {:?}, written was {value:?}", one.value)),
            other => return Err(format!("{key} has {} events instead of one", other.len())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events as `key=value@revision`, against the keys written (`k`) and only tried (`?k`).
    #[track_caller]
    fn check(events: &str, keys: &str, expect: Result<(), &str>) {
        let events: Vec<Event> = events
            .split_whitespace()
            .map(|event| {
                let (key, rest) = event.split_once('=').unwrap();
                let (value, revision) = rest.split_once('@').unwrap();
                Event { key: key.to_owned(), value: value.to_owned(), revision: revision.parse().unwrap() }
            })
            .collect();
        let tried = keys.split_whitespace().map(|key| key.trim_start_matches('?').to_owned()).collect();
        let written = keys.split_whitespace().filter(|key| !key.starts_with('?'));
        let written = written.map(|key| (key.to_owned(), "v".to_owned())).collect();
        match (judge_events(&events, &written, &tried), expect) {
            (Ok(()), Ok(())) => {}
            (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
            (got, expect) => panic!("got {got:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn a_watch_is_judged() {
        check("a=v@2 b=v@3", "a b", Ok(()));
        // An unanswered write may or may not have been done.
        check("a=v@2", "a ?b", Ok(()));
        check("a=v@2 b=v@3", "a ?b", Ok(()));
        check("a=v@2", "a b", Err("0 events"));
        check("a=v@2 a=v@3", "a", Err("2 events"));
        check("a=v@3 b=v@2", "a b", Err("after"));
        check("a=w@2", "a", Err("says"));
        check("a=v@2 x=v@3", "a", Err("nobody wrote"));
    }

    #[test]
    fn a_line_that_is_not_whole_is_no_event_yet() {
        let line = "{\"type\":\"put\",\"key\":\"a\",\"value\":\"v\",\"mod_revision\":2}";
        assert_eq!(events_in(&format!("{line}\n{line}")).len(), 1);
        assert_eq!(events_in("noise\n"), []);
    }
}
