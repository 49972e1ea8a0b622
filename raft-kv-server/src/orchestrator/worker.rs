//! The sessions of workers over gRPC. Who speaks is what its certificate says and nothing else; what it is
//! told when something is refused says nothing of others, of managers or of the cluster.

use std::time::Duration;

use etcd_api::raftkv::manager_says::Says as Answer;
use etcd_api::raftkv::worker_says::Says;
use etcd_api::raftkv::worker_server::{Worker, WorkerServer};
use etcd_api::raftkv::{
    ManagerSays, WorkerAcknowledged, WorkerBeat, WorkerDescription, WorkerEnded, WorkerEndedWhy, WorkerOpen,
    WorkerReport, WorkerSays,
};
use raft_kv::client::Handle;
use raft_kv::error::Error;
use raft_kv::orchestration::session::{self, Dispatcher, Settings, TOKEN_BYTES, Voice};
use raft_kv::orchestration::{Orchestrator, SystemClock};
use raft_kv::types::{NodeId, Role};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use crate::etcd::{Certificate, Via};

/// Largest message of a worker, in bytes.
pub const MAX_WORKER_MESSAGE: usize = 1024 * 1024;
/// Messages of one session in a second; more of them wait.
const MAX_MESSAGES_PER_SECOND: u32 = 100;
/// Messages that wait for a worker to read them.
const WAITING: usize = 2;
/// How long a worker may take for its first message.
const OPENING: Duration = Duration::from_secs(10);

/// How long a worker may take to read what was sent.
const READING: Duration = Duration::from_secs(30);

type Sessions = Dispatcher<Handle, SystemClock>;
type Answers = mpsc::Sender<Result<ManagerSays, Status>>;

/// The service of one member.
#[derive(Clone, Debug)]
pub struct WorkerService {
    dispatcher: Sessions,
}

impl WorkerService {
    /// The service over `handle`, which has the member's own rights.
    pub fn new(handle: Handle, settings: Settings) -> Self {
        Self { dispatcher: Dispatcher::new(Orchestrator::new(handle, SystemClock), settings) }
    }

    /// Wakes sessions, for as long as it is driven.
    pub async fn run(self) {
        match self.dispatcher.run().await {}
    }

    /// The service as it is routed.
    pub fn server(self) -> WorkerServer<Self> {
        WorkerServer::new(self)
            .max_decoding_message_size(MAX_WORKER_MESSAGE)
            .max_encoding_message_size(usize::MAX)
    }
}

/// The only refusal of whoever is no worker, and of a worker that asks for anything else.
pub fn refused() -> Status {
    Status::permission_denied("not for this certificate")
}

#[tonic::async_trait]
impl Worker for WorkerService {
    type SessionStream = ReceiverStream<Result<ManagerSays, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<WorkerSays>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let is_worker =
            request.extensions().get::<Certificate>().is_some_and(|shown| shown.role == Role::Worker);
        let Some(Via(node)) = request.extensions().get::<Via>().copied().filter(|_| is_worker) else {
            return Err(refused());
        };
        let (answers, stream) = mpsc::channel(WAITING);
        tokio::spawn(serve(self.dispatcher.clone(), node, request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// One session, until its end, of which the worker is told.
async fn serve(dispatcher: Sessions, node: NodeId, said: Streaming<WorkerSays>, answers: Answers) {
    let why = match converse(&dispatcher, node, said, &answers).await {
        Ok(()) => return,
        Err(End::Why(why)) => why,
        Err(End::Failed(error)) => {
            tracing::debug!(%node, %error, "a worker's session ended");
            convert::why(&error)
        }
    };
    let ended = Answer::Ended(WorkerEnded { why: why.into() });
    // Whoever does not read is not waited for.
    let _ = answers.try_send(Ok(ManagerSays { says: Some(ended) }));
}

enum End {
    Why(WorkerEndedWhy),
    Failed(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// `Ok` where the worker is gone.
async fn converse(
    dispatcher: &Sessions,
    node: NodeId,
    mut said: Streaming<WorkerSays>,
    answers: &Answers,
) -> Result<(), End> {
    let mistake = || End::Why(WorkerEndedWhy::WorkerEndedMistake);
    let open = match timeout(OPENING, said.message()).await {
        Ok(Ok(Some(WorkerSays { says: Some(Says::Open(open)) }))) => open,
        Ok(Ok(_)) => return Err(mistake()),
        Ok(Err(_)) => return Err(mistake()),
        Err(_) => return Err(End::Why(WorkerEndedWhy::WorkerEndedSilent)),
    };
    let WorkerOpen { resume, description } = open;
    // What is no token at all is as good as none.
    let resume = Some(resume).filter(|token| token.len() == TOKEN_BYTES);
    let session = dispatcher.open(node, resume).await?;
    let voice = session.voice();
    if let Some(WorkerDescription { name, description }) = description {
        voice.describe(name, description).await?;
    }
    let beat = dispatcher.settings().beat(u64::from(node.0 as u32));
    if !say(answers, beat_of(beat)).await {
        return Ok(());
    }
    let patience = dispatcher.settings().heartbeat * dispatcher.settings().missed;
    let mut until = Instant::now() + patience;
    let mut pace = Pace::begun();
    let mut next = Box::pin(updated(session));
    loop {
        tokio::select! {
            (session, update) = &mut next => {
                if !say(answers, Answer::Update(convert::update(update?))).await {
                    return Ok(());
                }
                next.set(updated(session));
            }
            message = said.message() => {
                let Ok(message) = message else { return Err(mistake()) };
                let Some(WorkerSays { says }) = message else { return Ok(()) };
                until = Instant::now() + patience;
                pace.keep().await;
                let answer = match says {
                    Some(Says::Heartbeat(_)) => Some(beat_of(voice.heartbeat().await?)),
                    Some(Says::Report(report)) => Some(reported(&voice, report).await?),
                    Some(Says::Describe(WorkerDescription { name, description })) => {
                        voice.describe(name, description).await?;
                        None
                    }
                    Some(Says::Open(_)) | None => return Err(mistake()),
                };
                if let Some(answer) = answer
                    && !say(answers, answer).await
                {
                    return Ok(());
                }
            }
            () = sleep_until(until) => return Err(End::Why(WorkerEndedWhy::WorkerEndedSilent)),
            () = answers.closed() => return Ok(()),
        }
    }
}

type Session = session::Session<Handle, SystemClock>;

async fn updated(mut session: Session) -> (Session, Result<session::Update, Error>) {
    let update = session.next().await;
    (session, update)
}

fn beat_of(beat: Duration) -> Answer {
    Answer::Beat(WorkerBeat { milliseconds: u32::try_from(beat.as_millis()).unwrap_or(u32::MAX) })
}

async fn reported(voice: &Voice<Handle, SystemClock>, report: WorkerReport) -> Result<Answer, End> {
    let WorkerReport { number, statuses } = report;
    let statuses: Option<Vec<_>> = statuses.into_iter().map(convert::to_status).collect();
    let statuses = statuses.ok_or(End::Why(WorkerEndedWhy::WorkerEndedMistake))?;
    let reported = voice.report(statuses).await?;
    let reported = reported.into_iter().map(|one| convert::reported(one).into()).collect();
    Ok(Answer::Acknowledged(WorkerAcknowledged { number, reported }))
}

/// Whether somebody is there to read it, and does.
async fn say(answers: &Answers, says: Answer) -> bool {
    let said = timeout(READING, answers.send(Ok(ManagerSays { says: Some(says) }))).await;
    said.is_ok_and(|said| said.is_ok())
}

/// How fast a worker may speak.
struct Pace {
    second: Instant,
    said: u32,
}

impl Pace {
    fn begun() -> Self {
        Self { second: Instant::now(), said: 0 }
    }

    /// Waits where it was too much in this second.
    async fn keep(&mut self) {
        self.said += 1;
        let end = self.second + Duration::from_secs(1);
        if self.said > MAX_MESSAGES_PER_SECOND {
            sleep_until(end).await;
        }
        if Instant::now() >= end {
            *self = Self::begun();
        }
    }
}
