//! How people speak with a manager of the example: one line of JSON each way over a socket in the manager's
//! own folder, which only its owner can open. Writes go through the manager's process, whose typed layer
//! keeps the rules; from elsewhere the keys below `_rk/` can't be written at all.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use raft_kv::error::Error;
use raft_kv::orchestration::{Availability, NodeRecord, NodeState};
use raft_kv::types::Role;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

use crate::state::{self, Layer};

/// Bytes of a command.
const MAX_COMMAND: u64 = 4 * 1024 * 1024;

/// What can be asked of a manager.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    Deploy { compose: String },
    Ps,
    Scale { service: String, replicas: u64 },
    Rollback { point: Option<String> },
    Nodes,
    Node { node: String, labels: Vec<(String, String)>, availability: Option<String> },
    Token { worker: bool },
}

/// Serves commands until it is dropped.
pub async fn serve(dir: &Path, layer: Layer) -> io::Result<()> {
    let (_folder, path) = socket(dir)?;
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let layer = layer.clone();
        tokio::spawn(async move {
            if let Err(error) = one(stream, &layer).await {
                tracing::debug!(%error, "a command broke off");
            }
        });
    }
}

async fn one(stream: tokio::net::UnixStream, layer: &Layer) -> io::Result<()> {
    let (reads, mut writes) = stream.into_split();
    let mut line = String::new();
    tokio::io::BufReader::new(reads.take(MAX_COMMAND)).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(command) => carry_out(layer, command).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let answer = match answer {
        Ok(value) => json!({ "ok": value }),
        Err(why) => json!({ "error": why }),
    };
    writes.write_all(format!("{answer}\n").as_bytes()).await
}

async fn carry_out(layer: &Layer, command: Command) -> Result<Value, Error> {
    match command {
        Command::Deploy { compose } => Ok(json!({ "point": state::deploy(layer, &compose).await? })),
        Command::Scale { service, replicas } => {
            state::scale(layer, &service, replicas).await?;
            Ok(json!({ "service": service, "replicas": replicas }))
        }
        Command::Rollback { point } => {
            let (point, keys) = state::roll_back(layer.store(), point).await?;
            Ok(json!({ "point": point, "keys": keys }))
        }
        Command::Ps => ps(layer).await,
        Command::Nodes => Ok(state::nodes(layer).await?.iter().map(node_value).collect()),
        Command::Node { node, labels, availability } => {
            let mut record = state::node_named(layer, &node).await?;
            for (name, value) in labels {
                record.labels.retain(|(given, _)| *given != name);
                record.labels.push((name, value));
            }
            record.labels.sort();
            record.availability = match availability.as_deref() {
                None => record.availability,
                Some("pause") => Availability::Pause,
                Some("drain") => Availability::Drain,
                Some(_) => Availability::Active,
            };
            Ok(node_value(&layer.update_node(record).await?))
        }
        Command::Token { worker } => {
            let role = if worker { Role::Worker } else { Role::Manager };
            Ok(json!({ "token": layer.store().join_token(role).await? }))
        }
    }
}

async fn ps(layer: &Layer) -> Result<Value, Error> {
    let services = state::services(layer).await?;
    let nodes = state::nodes(layer).await?;
    let mut rows = Vec::new();
    for task in state::tasks(layer).await? {
        let service = services.get(&task.service);
        let node = nodes.iter().find(|node| Some(node.id) == task.node);
        let run: Value = serde_json::from_slice(&task.spec).unwrap_or_default();
        rows.push(json!({
            "id": task.id,
            "service": service.map_or(task.service.as_str(), |(object, _)| object.name.as_str()),
            "slot": task.slot,
            "node": node.map(|node| node.name.as_str()),
            "desired": task.desired.as_str(),
            "state": task.status.state.as_str(),
            "error": task.status.error,
            "exit_code": task.status.exit_code,
            "command": run["command"],
            "environment": run["environment"],
        }));
    }
    let key = |row: &Value| (row["service"].to_string(), row["slot"].as_u64(), row["state"].to_string());
    rows.sort_by_key(key);
    Ok(rows.into())
}

fn node_value(node: &NodeRecord) -> Value {
    let state = match node.state {
        NodeState::Unknown => "unknown",
        NodeState::Ready => "ready",
        NodeState::Down => "down",
    };
    let availability = match node.availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    };
    let labels: serde_json::Map<_, _> =
        node.labels.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
    json!({
        "id": node.id.to_string(), "name": node.name, "state": state,
        "availability": availability, "labels": labels,
    })
}

/// Asks the manager whose folder is `dir`.
pub fn ask(dir: &Path, command: &Command) -> Result<Value, String> {
    let asked = || {
        let (_folder, path) = socket(dir)?;
        let mut stream = UnixStream::connect(path)?;
        writeln!(stream, "{}", serde_json::to_string(command)?)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok::<Value, io::Error>(serde_json::from_str(&line)?)
    };
    let answer = asked().map_err(|error| format!("no manager answers in {}: {error}", dir.display()))?;
    match answer["error"].as_str() {
        Some(why) => Err(why.to_owned()),
        None => Ok(answer["ok"].clone()),
    }
}

/// The socket, by way of its open folder: the path of a socket may not be long, that of a folder may.
fn socket(dir: &Path) -> io::Result<(File, PathBuf)> {
    let folder = File::open(dir)?;
    let path = format!("/proc/self/fd/{}/orchestrator.sock", folder.as_raw_fd());
    Ok((folder, path.into()))
}
