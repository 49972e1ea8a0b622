//! A worker: a certificate of its own, a session with whichever manager answers, and the processes that it is
//! told to run. It knows its entries and its tasks, nothing else of the cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use raft_kv::client::{Handle, enrol};
use raft_kv::error::Error;
use raft_kv::net::{read_credentials_in, write_credentials};
use raft_kv_server::worker_client::{Changes, WorkerClient};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::unbounded_channel;

use crate::process::Processes;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Pause before managers that do not answer are asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// Where a worker is and how it comes to be.
pub struct Place {
    pub data_dir: PathBuf,
    pub name: String,
    /// Only needed the first time.
    pub token: Option<String>,
    /// Where managers take joiners and renew certificates (QUIC).
    pub join: Vec<String>,
    /// Where managers serve sessions (the door of the etcd API and of workers).
    pub entries: Vec<String>,
}

/// Runs a worker until a signal.
pub async fn run(place: Place) -> Result<(), Failure> {
    let mut stop = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let certificate = place.data_dir.join("certificate");
    enrol_once(&place, &certificate).await?;
    let (says, mut said) = unbounded_channel();
    let mut processes = Processes::open(&place.data_dir.join("tasks"), says)?;
    // Keeps the certificate current: renews it in time, and follows a rotation of the root.
    let keeper = tokio::select! {
        keeper = connected(&place.join, &certificate) => keeper?,
        _ = stop.0.recv() => return Ok(()),
        _ = stop.1.recv() => return Ok(()),
    };
    let mut renewals = keeper.renewals().ok_or("a certificate in files is kept current")?;
    let credentials = read_credentials_in(&certificate)?;
    let mut client = WorkerClient::new(place.entries, &credentials, place.name.clone(), Bytes::new())?;
    let reporter = client.reporter();
    println!("{{\"event\":\"working\",\"name\":\"{}\"}}", place.name);
    loop {
        tokio::select! {
            changes = client.next() => obey(&mut processes, &client, changes?)?,
            Some((id, status)) = said.recv() => reporter.report(id, status),
            Ok(()) = renewals.changed() => {
                renewals.mark_unchanged();
                client.renew(&read_credentials_in(&certificate)?)?;
            }
            _ = stop.0.recv() => return Ok(()),
            _ = stop.1.recv() => return Ok(()),
        }
    }
}

/// Waits for as long as no manager answers: a worker is not started again for that.
async fn connected(endpoints: &[String], certificate: &Path) -> Result<Handle, Error> {
    loop {
        match Handle::connect_renewing(endpoints, certificate).await {
            Err(error @ (Error::NotDone(_) | Error::Unknown(_))) => {
                tracing::info!(%error, "no manager answers");
                tokio::time::sleep(AGAIN).await;
            }
            other => return other,
        }
    }
}

async fn enrol_once(place: &Place, certificate: &Path) -> Result<(), Failure> {
    if certificate.join("key.pem").exists() {
        return Ok(());
    }
    let token = place.token.as_deref().ok_or("a new worker needs --join TOKEN")?;
    let credentials = enrol(token, &place.join, &place.name).await?;
    fs::create_dir_all(certificate)?;
    Ok(write_credentials(certificate, &credentials)?)
}

/// Does what the managers want now.
fn obey(processes: &mut Processes, client: &WorkerClient, changes: Changes) -> Result<(), Failure> {
    let mut gone = changes.removed;
    if changes.complete {
        gone.extend(processes.known_ids()?.into_iter().filter(|id| !client.tasks().contains_key(id)));
    }
    gone.iter().for_each(|id| processes.forget(id));
    for task in changes.tasks.iter().filter_map(|id| client.tasks().get(id)) {
        if !task.reported.is_final() {
            processes.told(&task.id, task.slot, &task.spec, task.desired);
        }
    }
    Ok(())
}
