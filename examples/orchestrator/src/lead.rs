//! A manager: one member of the cluster in this process, the doors of raft-kv's server, and, while this
//! member leads, the loop that makes what should be so.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use raft_kv::client::{Config, Node, Overrides, Tuning};
use raft_kv::error::Error;
use raft_kv::orchestration::session::Settings;
use raft_kv::orchestration::{Clock, Fence, Orchestrator, SystemClock};
use raft_kv::raft::{Leadership, Role};
use raft_kv::types::{KeyRange, WatchRequest};
use raft_kv_server::door::Door;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::control;
use crate::schedule::reconcile;
use crate::state::{self, Layer};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Delays of restarts and updates are looked at as often.
const TICK: Duration = Duration::from_millis(250);
/// Pause after a round that failed.
const AGAIN: Duration = Duration::from_millis(200);

/// Where a manager is and how it comes to be.
pub struct Place {
    pub data_dir: PathBuf,
    pub name: String,
    pub listen: SocketAddr,
    pub etcd: SocketAddr,
    /// How often workers say that they are there.
    pub heartbeat: Duration,
    /// A token and the address of another manager; none for the first, and for one that was there before.
    pub join: Option<(String, String)>,
}

/// Runs a manager until a signal.
pub async fn run(place: Place) -> Result<(), Failure> {
    let mut stop = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let data_dir = place.data_dir.clone();
    let workers = Settings { heartbeat: place.heartbeat, ..Settings::default() };
    let node = start(place).await?;
    let listener = node.client_listener().ok_or("the member has no door for workers")?;
    let door = Door::open_with(listener, &node, workers)?;
    let layer = Orchestrator::new(node.handle(), SystemClock);
    let commands = tokio::spawn({
        let (dir, layer) = (data_dir.clone(), layer.clone());
        async move { control::serve(&dir, layer).await }
    });
    let duties = tokio::spawn(lead(node.leadership(), layer));
    announce(&node, &data_dir);
    let stopped = tokio::select! {
        error = node.stopped() => Some(error),
        _ = stop.0.recv() => None,
        _ = stop.1.recv() => None,
    };
    commands.abort();
    duties.abort();
    if let Some(error) = stopped {
        return Err(error.into());
    }
    door.close().await;
    Ok(node.shutdown().await?)
}

async fn start(place: Place) -> Result<Node, Failure> {
    // The file by which a data directory says whose it is.
    if place.data_dir.join("node").exists() {
        return Ok(Node::open(&place.data_dir, Overrides::default(), Tuning::default()).await?);
    }
    let config = Config {
        data_dir: place.data_dir,
        name: place.name,
        listen_addr: place.listen,
        advertise_addr: None,
        client_addr: Some(place.etcd),
        advertise_client_addr: None,
        own_root: None,
        external_signer: None,
        tuning: Tuning::default(),
    };
    match place.join {
        Some((token, addr)) => Ok(Node::join(config, &token, &[addr]).await?),
        None => Ok(Node::init(config).await?),
    }
}

/// One line, the same that `raft-kv init --json` prints: programs that start members read it.
fn announce(node: &Node, data_dir: &Path) {
    let line = json!({
        "event": "serving",
        "id": node.id().to_string(),
        "name": node.name(),
        "addr": node.addr(),
        "client_url": format!("https://{}", node.addr()),
        "etcd_url": node.client_url(),
        "data_dir": data_dir,
    });
    println!("{line}");
}

/// While this member leads: looks at everything, does what follows, waits for a change or a tick. Everything is
/// read each time, which suits an example; `Queue` says what has changed to one that has much.
async fn manage(layer: &Layer) -> Result<(), Error> {
    let range = KeyRange::prefix("_rk/");
    let mut watch = layer.store().watch(WatchRequest { range, ..WatchRequest::default() }).await?;
    loop {
        let services = state::services(layer).await?;
        let services = services.into_iter().map(|(id, (_, service))| (id, service)).collect();
        let (tasks, nodes) = (state::tasks(layer).await?, state::nodes(layer).await?);
        let changes = reconcile(&services, &tasks, &nodes, layer.clock().now());
        state::apply(layer, changes).await?;
        tokio::select! {
            batch = watch.next() => if batch?.is_none() { return Ok(()) },
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Starts and stops [`manage`] with this member's leadership. All it writes is fenced by the term: what an old
/// leader still wants to write when another has begun is refused.
async fn lead(mut leadership: tokio::sync::watch::Receiver<Leadership>, layer: Layer) {
    loop {
        let now = *leadership.borrow_and_update();
        let duty = async {
            if !(now.role == Role::Leader && now.ready) {
                return std::future::pending().await;
            }
            let fence = Fence::take(layer.store(), now.term).await?;
            manage(&layer.fenced(fence)).await
        };
        tokio::select! {
            ended = duty => {
                if let Err(error) = ended {
                    tracing::info!(%error, "the round is begun again");
                }
                tokio::time::sleep(AGAIN).await;
            }
            changed = leadership.changed() => if changed.is_err() { return },
        }
    }
}
