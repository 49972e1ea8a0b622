//! A Compose file, version 3, as the services that it asks for. What this example has no meaning for
//! (images, networks, volumes) is ignored as Compose does; what it would have to get wrong is refused. It
//! must never touch the store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What Swarm takes for a file that says nothing.
const DELAY_MS: u64 = 5_000;
const MONITOR_MS: u64 = 5_000;

/// What should be of one service: the spec of the object, and its only form on the disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Service {
    /// What each of its tasks runs; a task whose spec is another is replaced.
    pub run: Run,
    /// How many.
    pub replicas: u64,
    /// Where; all must hold.
    pub constraints: Vec<Constraint>,
    /// What follows when a task ends by itself.
    pub restart: Restart,
    /// How tasks of another spec are replaced.
    pub update: Update,
    /// The rollback point made just before the deployment that last changed it.
    pub point: String,
}

/// The spec of a task: a program, its words and its environment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Run {
    pub command: Vec<String>,
    pub environment: BTreeMap<String, String>,
}

/// `subject == value`, or `!=`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Constraint {
    pub subject: String,
    pub equal: bool,
    pub value: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    None,
    OnFailure,
    Any,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Restart {
    pub condition: Condition,
    pub delay_ms: u64,
    /// How many failures of one spec in one slot are answered with another try; without end for `None`.
    pub max_attempts: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    StopFirst,
    StartFirst,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureAction {
    Pause,
    Continue,
    Rollback,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Update {
    pub order: Order,
    /// Slots that change at once; 0 for all.
    pub parallelism: usize,
    pub failure_action: FailureAction,
    /// A task that fails within this time of its making is a failed update.
    pub monitor_ms: u64,
}

#[derive(Deserialize)]
struct File {
    services: BTreeMap<String, Asked>,
}

#[derive(Deserialize)]
struct Asked {
    command: Words,
    #[serde(default)]
    environment: Environment,
    #[serde(default)]
    deploy: Deploy,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    List(Vec<String>),
    Line(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Environment {
    Map(BTreeMap<String, Scalar>),
    List(Vec<String>),
}

impl Default for Environment {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Truth(bool),
    Whole(i64),
    Real(f64),
    Nothing(()),
}

#[derive(Deserialize, Default)]
struct Deploy {
    mode: Option<String>,
    replicas: Option<u64>,
    #[serde(default)]
    placement: Placement,
    #[serde(default)]
    restart_policy: AskedRestart,
    #[serde(default)]
    update_config: AskedUpdate,
}

#[derive(Deserialize, Default)]
struct Placement {
    #[serde(default)]
    constraints: Vec<String>,
}

#[derive(Deserialize, Default)]
struct AskedRestart {
    condition: Option<Condition>,
    delay: Option<String>,
    max_attempts: Option<usize>,
}

#[derive(Deserialize, Default)]
struct AskedUpdate {
    order: Option<Order>,
    parallelism: Option<usize>,
    failure_action: Option<FailureAction>,
    monitor: Option<String>,
}

/// The services of a file by name, deployed behind the rollback point `point`.
pub fn parse(text: &str, point: &str) -> Result<BTreeMap<String, Service>, String> {
    let file: File = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
    let service = |(name, asked): (String, Asked)| match asked.service(point) {
        Ok(service) => Ok((name, service)),
        Err(why) => Err(format!("service {name}: {why}")),
    };
    file.services.into_iter().map(service).collect()
}

impl Asked {
    fn service(self, point: &str) -> Result<Service, String> {
        let Deploy { mode, replicas, placement, restart_policy, update_config } = self.deploy;
        if let Some(mode) = mode.filter(|mode| mode != "replicated") {
            return Err(format!("mode {mode:?} is none of this example's; it has \"replicated\""));
        }
        let command = match self.command {
            Words::List(words) => words,
            Words::Line(line) => vec!["sh".into(), "-c".into(), line],
        };
        if command.is_empty() {
            return Err("the command is empty".into());
        }
        let constraints =
            placement.constraints.iter().map(|text| constraint(text)).collect::<Result<_, _>>()?;
        let time = |given: Option<String>, usual| given.map_or(Ok(usual), |text| milliseconds(&text));
        Ok(Service {
            run: Run { command, environment: self.environment.pairs()? },
            replicas: replicas.unwrap_or(1),
            constraints,
            restart: Restart {
                condition: restart_policy.condition.unwrap_or(Condition::Any),
                delay_ms: time(restart_policy.delay, DELAY_MS)?,
                max_attempts: restart_policy.max_attempts,
            },
            update: Update {
                order: update_config.order.unwrap_or(Order::StopFirst),
                parallelism: update_config.parallelism.unwrap_or(1),
                failure_action: update_config.failure_action.unwrap_or(FailureAction::Pause),
                monitor_ms: time(update_config.monitor, MONITOR_MS)?,
            },
            point: point.to_owned(),
        })
    }
}

impl Environment {
    fn pairs(self) -> Result<BTreeMap<String, String>, String> {
        let pair = |line: String| match line.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(format!("environment {line:?} has no value; write NAME=VALUE")),
        };
        match self {
            Self::Map(map) => Ok(map.into_iter().map(|(name, value)| (name, value.text())).collect()),
            Self::List(lines) => lines.into_iter().map(pair).collect(),
        }
    }
}

impl Scalar {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Truth(value) => value.to_string(),
            Self::Whole(value) => value.to_string(),
            Self::Real(value) => value.to_string(),
            Self::Nothing(()) => String::new(),
        }
    }
}

fn constraint(text: &str) -> Result<Constraint, String> {
    let wrong = || {
        format!(
            "constraint {text:?}: write node.labels.NAME, node.role, node.hostname or node.id, == or !=, and a value"
        )
    };
    let (at, equal) = match (text.find("=="), text.find("!=")) {
        (Some(at), _) => (at, true),
        (None, Some(at)) => (at, false),
        (None, None) => return Err(wrong()),
    };
    let (subject, value) = (text[..at].trim(), text[at + 2..].trim());
    let known =
        ["node.role", "node.hostname", "node.id"].contains(&subject) || subject.starts_with("node.labels.");
    if !known || value.is_empty() {
        return Err(wrong());
    }
    Ok(Constraint { subject: subject.to_owned(), equal, value: value.to_owned() })
}

/// A duration of Compose's (`1m30s`, `500ms`) in milliseconds.
fn milliseconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no time; write 500ms, 10s, 1m30s");
    let (mut total, mut rest) = (0_u64, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let each = match &rest[..unit] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        total = number.checked_mul(each).and_then(|time| total.checked_add(time)).ok_or_else(wrong)?;
        rest = &rest[unit..];
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "
version: '3.8'
services:
  web:
    image: ignored
    command: [sleep, '1000']
    environment: {PORT: 80, DEBUG: true, EMPTY: }
    deploy:
      replicas: 3
      placement: {constraints: [node.labels.disk == ssd, 'node.role!=manager']}
      restart_policy: {condition: on-failure, delay: 1m0s500ms, max_attempts: 2}
      update_config: {order: start-first, parallelism: 2, failure_action: rollback, monitor: 3s}
  plain:
    command: echo hello; sleep 5
    environment: [A=b=c]
";

    #[test]
    fn a_file_is_read_with_what_swarm_takes_for_granted() {
        let services = parse(WHOLE, "p").unwrap();
        let web = &services["web"];
        assert_eq!(web.run.command, ["sleep", "1000"]);
        let pairs: Vec<_> =
            web.run.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(pairs, ["DEBUG=true", "EMPTY=", "PORT=80"]);
        assert_eq!((web.replicas, web.constraints.len(), web.constraints[1].equal), (3, 2, false));
        let restart = Restart { condition: Condition::OnFailure, delay_ms: 60_500, max_attempts: Some(2) };
        assert_eq!(web.restart, restart);
        let update = Update {
            order: Order::StartFirst,
            parallelism: 2,
            failure_action: FailureAction::Rollback,
            monitor_ms: 3_000,
        };
        assert_eq!(web.update, update);
        let plain = &services["plain"];
        assert_eq!(plain.run.command, ["sh", "-c", "echo hello; sleep 5"]);
        assert_eq!(plain.run.environment["A"], "b=c");
        assert_eq!((plain.replicas, plain.restart.condition), (1, Condition::Any));
        assert_eq!((plain.update.order, plain.update.parallelism), (Order::StopFirst, 1));
        let stored = serde_json::to_vec(web).unwrap();
        assert_eq!(&serde_json::from_slice::<Service>(&stored).unwrap(), web);
    }

    /// One service of `yaml` is refused, and `part` says why.
    #[track_caller]
    fn refused(yaml: &str, part: &str) {
        let why = parse(&format!("services: {{a: {yaml}}}"), "p").unwrap_err();
        assert!(why.contains(part), "{why}");
    }

    #[test]
    fn what_would_be_got_wrong_is_refused() {
        refused("{image: x}", "command");
        refused("{command: []}", "empty");
        refused("{command: x, environment: [A]}", "NAME=VALUE");
        refused("{command: x, deploy: {mode: global}}", "replicated");
        refused("{command: x, deploy: {restart_policy: {condition: never}}}", "never");
        refused("{command: x, deploy: {restart_policy: {delay: '5'}}}", "no time");
        refused("{command: x, deploy: {restart_policy: {delay: ''}}}", "no time");
        refused("{command: x, deploy: {restart_policy: {delay: 99999999999999999h}}}", "no time");
        refused("{command: x, deploy: {placement: {constraints: [a == b]}}}", "constraint");
        refused("{command: x, deploy: {placement: {constraints: [node.role = b]}}}", "constraint");
    }
}
