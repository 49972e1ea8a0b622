//! A worker's end of its session: dials the entries it was given in turn, keeps what it was told and the
//! token of it, says that it is there, and repeats its reports until they are acknowledged.
//!
//! It decides nothing about tasks: what is to run is the orchestrator's. It must never apply an update to
//! another state than the one it is for.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_api::raftkv::manager_says::Says as Answer;
use etcd_api::raftkv::worker_client::WorkerClient as Stub;
use etcd_api::raftkv::worker_says::Says;
use etcd_api::raftkv::{
    ManagerSays, WorkerDescription, WorkerEndedWhy, WorkerHeartbeat, WorkerOpen, WorkerReport, WorkerSays,
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use raft_kv::orchestration::session::{Assigned, Needed, Update};
use raft_kv::orchestration::{ObjectKey, TaskStatus};
use raft_kv::pki::{Credentials, TLS_NAME};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::orchestrator::convert;

/// How long a connection and the first answer may take.
const CONNECT: Duration = Duration::from_secs(5);
/// The first pause before another entry is dialled; it doubles up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Without a word for so many heartbeats a connection is given up.
const MISSED: u32 = 3;
/// Statuses of one report.
const REPORTS: usize = 100;
/// Largest message that is taken, in bytes.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// A worker's end of its session. Drive [`next`](Self::next); everything else happens within.
#[derive(Debug)]
pub struct WorkerClient {
    tls: Arc<ClientConfig>,
    entries: Vec<String>,
    entry: usize,
    pause: Duration,
    description: WorkerDescription,
    token: Bytes,
    tasks: BTreeMap<String, Assigned>,
    objects: BTreeMap<ObjectKey, Needed>,
    changes: Changes,
    reporter: Reporter,
    line: Option<Line>,
    number: u64,
}

/// What [`next`](WorkerClient::next) changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Everything was sent anew.
    pub complete: bool,
    /// Ids of tasks that are new or changed.
    pub tasks: Vec<String>,
    /// Ids of tasks that are not this node's any more.
    pub removed: Vec<String>,
    /// Objects that are new, changed or gone.
    pub objects: Vec<ObjectKey>,
}

/// Why there is no session any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Ended {
    /// Another worker with the same certificate has opened one.
    #[error("another worker opened a session with this node's certificate; let one of them join anew")]
    Taken,
    /// The managers do not understand this worker.
    #[error("the managers refuse what this worker says; their versions differ")]
    Mistake,
}

/// Says what became of tasks. Clones are of the same worker.
#[derive(Clone, Debug, Default)]
pub struct Reporter(Arc<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// The newest of each task that no manager has acknowledged.
    statuses: Mutex<BTreeMap<String, TaskStatus>>,
    more: Notify,
}

impl Reporter {
    /// Reports `status` of task `id`, again and again until it is stored. A later one replaces it.
    pub fn report(&self, id: impl Into<String>, status: TaskStatus) {
        self.0.statuses.lock().insert(id.into(), status);
        self.0.more.notify_one();
    }

    /// How many wait for their acknowledgement.
    pub fn waiting(&self) -> usize {
        self.0.statuses.lock().len()
    }
}

#[derive(Debug)]
struct Line {
    says: mpsc::Sender<WorkerSays>,
    hears: Streaming<ManagerSays>,
    beat: Duration,
    beat_at: Instant,
    heard: Instant,
    flying: Option<(u64, Vec<(String, TaskStatus)>)>,
}

enum Heard {
    Nothing,
    Whole,
    Broken,
    Over(Ended),
}

impl WorkerClient {
    /// A worker that shows `credentials` and dials `entries` (`HOST:PORT`) in turn. Nothing is dialled yet.
    ///
    /// # Errors
    /// What is wrong with the credentials.
    pub fn new(
        entries: Vec<String>,
        credentials: &Credentials,
        name: impl Into<String>,
        description: Bytes,
    ) -> Result<Self, String> {
        if entries.is_empty() {
            return Err("there is no entry to dial".into());
        }
        Ok(Self {
            tls: config(credentials).map_err(|error| error.to_string())?,
            entry: rand::random_range(0..entries.len()),
            entries,
            pause: PAUSE,
            description: WorkerDescription { name: name.into(), description },
            token: Bytes::new(),
            tasks: BTreeMap::new(),
            objects: BTreeMap::new(),
            changes: Changes::default(),
            reporter: Reporter::default(),
            line: None,
            number: 0,
        })
    }

    /// The node's tasks, by id.
    pub fn tasks(&self) -> &BTreeMap<String, Assigned> {
        &self.tasks
    }

    /// The objects that they need.
    pub fn objects(&self) -> &BTreeMap<ObjectKey, Needed> {
        &self.objects
    }

    /// What says what became of them; it goes out as [`next`](Self::next) is driven.
    pub fn reporter(&self) -> Reporter {
        self.reporter.clone()
    }

    /// The entry that serves it, where one does.
    pub fn entry(&self) -> Option<&str> {
        self.line.is_some().then(|| self.entries[self.entry].as_str())
    }

    /// Dials these from the next connection on; an empty list changes nothing.
    pub fn set_entries(&mut self, entries: Vec<String>) {
        if !entries.is_empty() {
            (self.entries, self.entry) = (entries, 0);
        }
    }

    /// Shows another certificate from the next connection on, and connects anew.
    ///
    /// # Errors
    /// What is wrong with the credentials.
    pub fn renew(&mut self, credentials: &Credentials) -> Result<(), String> {
        self.tls = config(credentials).map_err(|error| error.to_string())?;
        self.hang_up();
        Ok(())
    }

    /// Waits until tasks or objects changed, over as many connections as that takes. A wait that is
    /// dropped loses nothing.
    ///
    /// # Errors
    /// [`Ended`] where it is not to try again.
    pub async fn next(&mut self) -> Result<Changes, Ended> {
        loop {
            if self.line.is_none() {
                match self.dial().await {
                    Ok(line) => self.line = Some(line),
                    Err(error) => {
                        tracing::debug!(entry = self.entries[self.entry], %error, "could not open a session");
                        self.give_way().await;
                        continue;
                    }
                }
            }
            match self.hear().await {
                Heard::Nothing => {}
                Heard::Whole => {
                    self.pause = PAUSE;
                    return Ok(std::mem::take(&mut self.changes));
                }
                Heard::Broken => {
                    self.hang_up();
                    self.give_way().await;
                }
                Heard::Over(ended) => {
                    self.hang_up();
                    return Err(ended);
                }
            }
        }
    }

    /// The next entry's turn, after a pause that grows, by chance so that not all come at once.
    async fn give_way(&mut self) {
        self.entry = (self.entry + 1) % self.entries.len();
        let pause = self.pause.mul_f64(rand::random_range(0.5..1.5));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        sleep(pause).await;
    }

    fn hang_up(&mut self) {
        let Some(Line { flying: Some((_, statuses)), .. }) = self.line.take() else { return };
        let mut waiting = self.reporter.0.statuses.lock();
        for (id, status) in statuses {
            waiting.entry(id).or_insert(status);
        }
    }

    async fn dial(&self) -> Result<Line, String> {
        let connecting = connect(self.entries[self.entry].clone(), self.tls.clone());
        let within = |_| "nobody answers".to_owned();
        let channel =
            timeout(CONNECT, connecting).await.map_err(within)?.map_err(|error| error.to_string())?;
        let (says, said) = mpsc::channel(16);
        let open = WorkerOpen { resume: self.token.clone(), description: Some(self.description.clone()) };
        says.try_send(WorkerSays { says: Some(Says::Open(open)) }).expect("there is room for the first");
        let mut stub = Stub::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let asked = timeout(CONNECT, stub.session(ReceiverStream::new(said))).await.map_err(within)?;
        let hears = asked.map_err(|status| status.message().to_owned())?.into_inner();
        let now = Instant::now();
        let beat = CONNECT;
        Ok(Line { says, hears, beat, beat_at: now + beat, heard: now, flying: None })
    }

    /// One thing that happens on the line.
    async fn hear(&mut self) -> Heard {
        let Some(line) = &mut self.line else { return Heard::Broken };
        if line.flying.is_none() && !fly(line, &self.reporter, &mut self.number) {
            return Heard::Broken;
        }
        let given_up = line.heard + line.beat * MISSED;
        tokio::select! {
            message = line.hears.message() => {
                line.heard = Instant::now();
                match message {
                    Ok(Some(ManagerSays { says: Some(says) })) => self.take(says),
                    Ok(Some(ManagerSays { says: None })) => Heard::Nothing,
                    Ok(None) | Err(_) => Heard::Broken,
                }
            }
            () = sleep_until(line.beat_at) => {
                line.beat_at = Instant::now() + line.beat;
                let said = line.says.try_send(WorkerSays { says: Some(Says::Heartbeat(WorkerHeartbeat {})) });
                if said.is_ok() { Heard::Nothing } else { Heard::Broken }
            }
            () = self.reporter.0.more.notified(), if line.flying.is_none() => Heard::Nothing,
            () = sleep_until(given_up) => Heard::Broken,
        }
    }

    fn take(&mut self, says: Answer) -> Heard {
        let Some(line) = &mut self.line else { return Heard::Broken };
        match says {
            Answer::Beat(beat) => {
                line.beat = Duration::from_millis(beat.milliseconds.max(1).into());
                line.beat_at = line.beat_at.min(Instant::now() + line.beat);
                Heard::Nothing
            }
            Answer::Acknowledged(acknowledged) => {
                // Taken, old or not this node's: none of them is to be repeated.
                if line.flying.as_ref().is_some_and(|(number, _)| *number == acknowledged.number) {
                    line.flying = None;
                }
                Heard::Nothing
            }
            Answer::Ended(ended) => match ended.why() {
                WorkerEndedWhy::WorkerEndedTaken => Heard::Over(Ended::Taken),
                WorkerEndedWhy::WorkerEndedMistake => Heard::Over(Ended::Mistake),
                WorkerEndedWhy::WorkerEndedAgain | WorkerEndedWhy::WorkerEndedSilent => Heard::Broken,
            },
            Answer::Update(update) => match convert::to_update(update) {
                Some(update) => self.apply(update),
                None => Heard::Over(Ended::Mistake),
            },
        }
    }

    fn apply(&mut self, update: Update) -> Heard {
        if update.applies_to.is_empty() {
            self.tasks.clear();
            self.objects.clear();
            self.changes = Changes { complete: true, ..Changes::default() };
        } else if update.applies_to != self.token {
            // One was missed: the session goes on from what there is.
            return Heard::Broken;
        }
        let news = !update.is_empty() || update.applies_to.is_empty();
        self.token = update.results_in;
        for id in update.removed {
            self.tasks.remove(&id);
            self.changes.removed.push(id);
        }
        for key in update.removed_objects {
            self.objects.remove(&key);
            self.changes.objects.push(key);
        }
        for object in update.objects {
            self.changes.objects.push(object.key.clone());
            self.objects.insert(object.key.clone(), object);
        }
        for task in update.tasks {
            self.changes.tasks.push(task.id.clone());
            self.tasks.insert(task.id.clone(), task);
        }
        if update.more {
            return Heard::Nothing;
        }
        self.pause = PAUSE;
        if news || self.changes != Changes::default() { Heard::Whole } else { Heard::Nothing }
    }
}

/// Sends what waits; whether the line is whole.
fn fly(line: &mut Line, reporter: &Reporter, number: &mut u64) -> bool {
    let mut waiting = reporter.0.statuses.lock();
    if waiting.is_empty() {
        return true;
    }
    let ids: Vec<String> = waiting.keys().take(REPORTS).cloned().collect();
    let statuses: Vec<(String, TaskStatus)> = ids.iter().filter_map(|id| waiting.remove_entry(id)).collect();
    *number += 1;
    let sent = statuses.iter().map(|(id, status)| convert::status(id.clone(), status.clone())).collect();
    let report = WorkerReport { number: *number, statuses: sent };
    line.flying = Some((*number, statuses));
    line.says.try_send(WorkerSays { says: Some(Says::Report(report)) }).is_ok()
}

/// A connection to a member's door that shows `credentials`.
///
/// # Errors
/// Why there is none.
pub async fn channel(entry: &str, credentials: &Credentials) -> Result<Channel, String> {
    let tls = config(credentials).map_err(|error| error.to_string())?;
    connect(entry.to_owned(), tls).await.map_err(|error| error.to_string())
}

fn config(own: &Credentials) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for root in &own.roots {
        roots.add(CertificateDer::from(root.clone()))?;
    }
    let chain = own.chain.iter().cloned().map(CertificateDer::from).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.key.clone()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

async fn connect(entry: String, tls: Arc<ClientConfig>) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: http::Uri| {
        let (entry, tls) = (entry.clone(), tls.clone());
        async move {
            let stream = TcpStream::connect(&entry).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(TLS_NAME).map_err(io::Error::other)?;
            TlsConnector::from(tls).connect(name, stream).await.map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://raft-kv").connect_with_connector(connector).await
}
