//! What the clients do: one file a shape. Each client is one process of the history with a handle of
//! its own, and does one thing at a time.

pub mod append;
pub mod register;
pub mod set;
pub mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use raft_kv::client::Handle;
use raft_kv::error::Error;
use raft_kv::types::Header;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::{sleep, timeout};

use crate::cluster::Directory;
use crate::history::{Event, Kind, Recorder};

/// How long one operation may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Milliseconds that a client thinks between two operations.
const THINK: std::ops::Range<u64> = 2..12;

/// What all clients of a run share. Clones are the same run.
#[derive(Clone)]
pub struct Stage {
    /// How to reach the members.
    pub directory: Directory,
    /// Where everything is written down.
    pub recorder: Recorder,
    /// Set when the clients shall end.
    pub over: Arc<AtomicBool>,
    /// Every choice of a client comes from this and its number.
    pub seed: u64,
    processes: Arc<AtomicI64>,
}

impl Stage {
    /// A stage on which nobody has acted yet.
    pub fn new(directory: Directory, recorder: Recorder, seed: u64) -> Self {
        Self { directory, recorder, over: Arc::default(), seed, processes: Arc::default() }
    }

    /// Whether the clients shall end.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// A number that no process of the history had before.
    pub fn process(&self) -> i64 {
        self.processes.fetch_add(1, Ordering::Relaxed)
    }

    /// A client whose first choice of member is `home`; every other client knows no other member.
    pub fn client(&self, home: usize, only: bool) -> Client {
        let process = self.process();
        let chance = ChaCha8Rng::seed_from_u64(self.seed ^ ((process as u64 + 1) << 32));
        Client { stage: self.clone(), process, home, only, handle: None, chance }
    }
}

/// One client.
pub struct Client {
    stage: Stage,
    process: i64,
    home: usize,
    only: bool,
    handle: Option<Handle>,
    chance: ChaCha8Rng,
}

impl Client {
    /// Its choices.
    pub fn chance(&mut self) -> &mut ChaCha8Rng {
        &mut self.chance
    }

    /// Its number in the history now.
    pub fn process(&self) -> i64 {
        self.process
    }

    /// Whether it shall end.
    pub fn is_over(&self) -> bool {
        self.stage.is_over()
    }

    /// Thinks for a moment.
    pub async fn think(&mut self) {
        let pause = self.chance.random_range(THINK);
        sleep(Duration::from_millis(pause)).await;
    }

    /// The handle it uses until the next error; `None` while nobody answers.
    pub async fn handle(&mut self) -> Option<Handle> {
        if self.handle.is_none() {
            let members = if self.only { vec![self.home] } else { self.stage.directory.all_from(self.home) };
            let connected = timeout(PATIENCE, self.stage.directory.connect(&members)).await;
            self.handle = connected.ok()?.ok().map(|handle| handle.with_patience(PATIENCE));
        }
        self.handle.clone()
    }

    /// Does one operation between two events of the history; `answer` fills in what came back.
    /// Returns the event of its end, if it was done.
    pub async fn operate<T>(
        &mut self,
        invoke: Event,
        operation: impl AsyncFnOnce(Handle) -> Result<(Header, T), Error>,
        answer: impl FnOnce(&mut Event, T),
    ) -> Option<Event> {
        let Some(handle) = self.handle().await else {
            sleep(Duration::from_millis(50)).await;
            return None;
        };
        let home = self.stage.directory.name(self.home).to_owned();
        let invoke = Event { process: self.process, node: Some(home), ..invoke };
        self.stage.recorder.record(invoke.clone());
        let mut end = Event { kind: Kind::Ok, ..invoke };
        match operation(handle).await {
            Ok((header, value)) => {
                let member = self.stage.directory.find(header.member);
                end.node = member.map(|index| self.stage.directory.name(index).to_owned());
                (end.revision, end.term) = (Some(header.revision), Some(header.term));
                answer(&mut end, value);
            }
            Err(error) => {
                end.kind = kind_of(&error);
                end.error = Some(error.to_string());
                // The next operation looks for a member again.
                self.handle = None;
            }
        }
        self.stage.recorder.record(end.clone());
        match end.kind {
            Kind::Ok => return Some(end),
            // It may still be done: from now on somebody else acts.
            Kind::Info => self.process = self.stage.process(),
            _ => {}
        }
        None
    }
}

/// What an error says of the outcome.
fn kind_of(error: &Error) -> Kind {
    match error {
        Error::Refused(_) | Error::NotDone(_) => Kind::Fail,
        Error::Unknown(_) | Error::Stopped(_) => Kind::Info,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_kv::error::{NotDone, Refusal, Unknown};

    #[test]
    fn an_error_says_what_is_known_of_the_outcome() {
        let check = |error: Error, expect: Kind| assert_eq!(kind_of(&error), expect);
        check(Refusal::EmptyKey.into(), Kind::Fail);
        check(Error::NotDone(NotDone::Busy), Kind::Fail);
        check(Error::Unknown(Unknown::Deadline), Kind::Info);
        check(Error::Stopped("disk".into()), Kind::Info);
    }
}
