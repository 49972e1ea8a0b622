//! The part of the tour that the cluster is for: workers and their tasks under the example orchestrator, whose
//! managers are the cluster's members. Each step says what is seen; nothing is believed that was only asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::cluster::Cluster;
use super::command::{call, text};
use super::process::Running;
use super::wait_for;

const WORKERS: usize = 3;
/// Longest wait for what the managers bring about; a busy machine is no failure.
const LIMIT: Duration = Duration::from_secs(60);

/// The workers, and how the example is asked.
pub struct Fleet {
    /// The example's program; without it there is no such part.
    pub program: Option<PathBuf>,
    dir: PathBuf,
    workers: Vec<Option<Running>>,
}

/// A task that should run and does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Task {
    id: String,
    node: String,
    command: String,
}

impl Fleet {
    /// No worker runs yet.
    pub fn new(program: Option<PathBuf>, dir: PathBuf) -> Self {
        Self { program, dir, workers: vec![] }
    }

    /// Three workers join by token.
    pub fn begin(&mut self, cluster: &Cluster) -> Result<String, String> {
        let answer = self.ask(cluster, 0, &["token", "worker"])?;
        let token = answer[0]["token"].as_str().ok_or("no token")?.to_owned();
        for number in 0..WORKERS {
            self.workers.push(None);
            self.start(cluster, number, &token)?;
        }
        let names = wait_for("all workers are ready", LIMIT, || {
            let nodes = self.ask(cluster, 0, &["nodes"]).unwrap_or_default();
            let ready = nodes.iter().filter(|node| node["state"] == "ready");
            let names: Vec<String> = ready
                .filter_map(|node| Some(node["name"].as_str()?.to_owned()))
                .filter(|name| !name.is_empty())
                .collect();
            Ok((names.len() == WORKERS).then_some(names))
        })?;
        Ok(format!("{} have certificates of their own and a session", names.join(", ")))
    }

    /// A Compose file becomes tasks.
    pub fn deploy(&mut self, cluster: &Cluster) -> Result<String, String> {
        let point = self.deploy_web(cluster, "exec sleep 100000", 6)?;
        let tasks = self.running(cluster, 0, 6, |_| true)?;
        Ok(format!("rollback point {point}, then one transaction; tasks run: {}", spread(&tasks)))
    }

    /// More tasks of the same.
    pub fn scale(&mut self, cluster: &Cluster) -> Result<String, String> {
        let before = self.running(cluster, 0, 6, |_| true)?;
        self.ask(cluster, 1, &["scale", "web=9"])?;
        let tasks = self.running(cluster, 2, 9, |tasks| before.is_subset(tasks))?;
        Ok(format!("6 stayed as they were, 3 were added: {}", spread(&tasks)))
    }

    /// What a worker that is gone had goes to the others.
    pub fn kill_worker(&mut self, cluster: &Cluster) -> Result<String, String> {
        let before = self.running(cluster, 0, 9, |_| true)?;
        self.workers[0].take().ok_or("w1 does not run")?.kill()?;
        let after = self.running(cluster, 0, 9, |tasks| tasks.iter().all(|task| task.node != "w1"))?;
        let same = before.intersection(&after).count();
        self.start(cluster, 0, "")?;
        Ok(format!("w1 is dead; {same} tasks went on, {} were made anew: {}", 9 - same, spread(&after)))
    }

    /// The loop goes on at another manager, and no task notices.
    pub fn kill_manager(&mut self, cluster: &mut Cluster, leader: usize) -> Result<String, String> {
        let other = (leader + 1) % cluster.members().len();
        let before = self.running(cluster, other, 9, |_| true)?;
        let name = cluster.members()[leader].name.clone();
        cluster.kill(leader)?;
        wait_for("the others take a command", LIMIT, || {
            Ok(self.ask(cluster, other, &["scale", "web=10"]).ok().map(drop))
        })?;
        let after = self.running(cluster, other, 10, |tasks| before.is_subset(tasks))?;
        cluster.restart(leader)?;
        Ok(format!(
            "{name} is dead and {} decides; 9 tasks never stopped, one was added: {}",
            cluster.members()[other].name,
            spread(&after)
        ))
    }

    /// A deployment whose tasks fail stops at the first of them.
    pub fn bad_deploy(&mut self, cluster: &Cluster) -> Result<String, String> {
        self.deploy_web(cluster, "echo this release is broken; exit 3", 10)?;
        let failed = wait_for("a task of the bad release fails", LIMIT, || {
            let rows = self.ask(cluster, 0, &["ps"]).unwrap_or_default();
            Ok(rows.iter().any(|row| row["state"] == "failed" && row["exit_code"] == 3).then_some(()))
        });
        failed?;
        let tasks = self.running(cluster, 0, 9, |_| true)?;
        Ok(format!(
            "its first task ended with exit code 3; the update stopped there, 9 of before still run: {}",
            spread(&tasks)
        ))
    }

    /// All services as they were before it; one call.
    pub fn roll_back(&mut self, cluster: &Cluster) -> Result<String, String> {
        let before = self.running(cluster, 0, 9, |_| true)?;
        let answer = self.ask(cluster, 1, &["rollback"])?;
        let tasks = self.running(cluster, 0, 10, |tasks| before.is_subset(tasks))?;
        Ok(format!(
            "point {} put {} keys back; 9 tasks never stopped, the failed place runs the release of before: {}",
            answer[0]["point"],
            answer[0]["keys"],
            spread(&tasks)
        ))
    }

    /// Managers and workers change over to a new root while all runs.
    pub fn rotate(&mut self, cluster: &Cluster) -> Result<String, String> {
        let before = self.running(cluster, 0, 10, |_| true)?;
        let data_dir = &cluster.members()[0].data_dir;
        let as_member = |words: &[&str]| cluster.binary.as_node(data_dir, words);
        let old = call(&mut as_member(&["ca", "status"]))?["roots"].clone();
        text(&mut as_member(&["ca", "rotate", "--detach"]))?;
        // The tour's own client has its certificate in files, which nobody renews by himself.
        wait_for("the client's certificate is renewed", LIMIT, || {
            Ok(cluster.call(&cluster.endpoints(None), &["cert", "renew"]).ok().map(drop))
        })?;
        let mut last = Value::Null;
        wait_for("the new root is the only one", LIMIT, || {
            last = call(&mut as_member(&["ca", "status"])).unwrap_or_default();
            let alone = last["roots"].as_array().is_some_and(|roots| roots.len() == 1);
            Ok((alone && last["roots"] != old && last["rotation"].is_null()).then_some(()))
        })
        .map_err(|why| format!("{why}; late are {}", last["late"]))?;
        self.ask(cluster, 2, &["scale", "web=11"])?;
        let tasks = self.running(cluster, 1, 11, |tasks| before.is_subset(tasks))?;
        Ok(format!(
            "every manager and worker has a new certificate; 10 tasks never stopped, another was added: {}",
            spread(&tasks)
        ))
    }

    /// Ends the workers; their tasks end with them.
    pub fn stop(&mut self) {
        self.workers.clear();
    }

    fn deploy_web(&self, cluster: &Cluster, line: &str, replicas: usize) -> Result<String, String> {
        let file = self.dir.join("compose.yaml");
        let yaml = format!(
            "services:\n  web:\n    command: {line}\n    deploy:\n      replicas: {replicas}\n      \
             placement: {{constraints: [node.role == worker]}}\n      \
             restart_policy: {{condition: any, delay: 500ms}}\n      \
             update_config: {{order: stop-first, parallelism: 1, monitor: 2s, failure_action: pause}}\n"
        );
        fs::write(&file, yaml).map_err(|error| format!("{}: {error}", file.display()))?;
        let answer = self.ask(cluster, 0, &["deploy", &file.display().to_string()])?;
        Ok(answer[0]["point"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until exactly `count` tasks run and `fits` says that they are the ones.
    fn running(
        &self,
        cluster: &Cluster,
        manager: usize,
        count: usize,
        fits: impl Fn(&BTreeSet<Task>) -> bool,
    ) -> Result<BTreeSet<Task>, String> {
        let mut last = String::new();
        let found = wait_for(&format!("{count} tasks run"), LIMIT, || {
            let rows = self.ask(cluster, manager, &["ps"]);
            last = format!("{rows:?}");
            let Ok(rows) = rows else { return Ok(None) };
            let tasks: BTreeSet<Task> = rows.iter().filter_map(running).collect();
            Ok((tasks.len() == count && fits(&tasks)).then_some(tasks))
        });
        found.map_err(|why| format!("{why}; last seen: {last}"))
    }

    fn ask(&self, cluster: &Cluster, manager: usize, words: &[&str]) -> Result<Vec<Value>, String> {
        let mut command = Command::new(self.program.as_ref().ok_or("there is no orchestrator")?);
        command.args(words).arg("--data-dir").arg(&cluster.members()[manager].data_dir);
        let wrong = |error| format!("{words:?}: {error}");
        text(&mut command)?.lines().map(|line| serde_json::from_str(line).map_err(wrong)).collect()
    }

    fn start(&mut self, cluster: &Cluster, number: usize, token: &str) -> Result<(), String> {
        let name = format!("w{}", number + 1);
        let members = cluster.members();
        let authority: Vec<&str> = members.iter().map(|member| member.addr.as_str()).collect();
        let entries = members.iter().map(|member| member.etcd_url.trim_start_matches("https://"));
        let mut command = Command::new(self.program.as_ref().ok_or("there is no orchestrator")?);
        command.arg("worker").arg("--data-dir").arg(self.dir.join(&name));
        command.arg("--authority").arg(authority.join(","));
        command.arg("--entry").arg(entries.collect::<Vec<_>>().join(","));
        if !token.is_empty() {
            command.args(["--join", token]);
        }
        let file = |kind: &str| self.dir.join(format!("{name}.{kind}"));
        self.workers[number] = Some(Running::spawn(&command, &file("out"), &file("log"), false)?);
        Ok(())
    }
}

fn running(row: &Value) -> Option<Task> {
    let is = |name: &str, value: &str| row[name].as_str() == Some(value);
    let word = |name: &str| row[name].as_str().map(str::to_owned);
    (is("state", "running") && is("desired", "running")).then_some(())?;
    Some(Task { id: word("id")?, node: word("node")?, command: row["command"].to_string() })
}

/// How many tasks each worker has.
fn spread(tasks: &BTreeSet<Task>) -> String {
    let mut each: BTreeMap<&str, usize> = BTreeMap::new();
    tasks.iter().for_each(|task| *each.entry(&task.node).or_default() += 1);
    each.iter().map(|(node, count)| format!("{node} {count}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_should_run_and_does_counts() {
        let row = |id: &str, node: &str, desired: &str, state: &str| json!({"id": id, "node": node, "desired": desired, "state": state, "command": ["x"]});
        let rows = [
            row("a", "w1", "running", "running"),
            row("b", "w2", "shutdown", "running"),
            row("c", "w2", "running", "failed"),
            row("d", "w1", "running", "running"),
            row("e", "w2", "running", "running"),
        ];
        let tasks: BTreeSet<Task> = rows.iter().filter_map(running).collect();
        assert_eq!(spread(&tasks), "w1 2, w2 1");
    }
}
