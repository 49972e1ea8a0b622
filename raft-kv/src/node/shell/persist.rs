//! The thread that persists: all writes that wait become one group commit.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::decide::stopped;
use super::{ToDecide, drain};
use crate::storage::files::FolderFiles;
use crate::storage::log::{LogWrite, LogWriter, Stats};

/// Groups taken into one commit, at most.
const MOST_GROUPS: usize = 1024;
/// How long the thread sleeps when nothing comes.
const IDLE: Duration = Duration::from_secs(1);

pub(super) struct Persist {
    pub(super) writer: LogWriter<FolderFiles>,
    pub(super) back: Sender<ToDecide>,
    pub(super) stats: Arc<Mutex<Stats>>,
}

impl Persist {
    pub(super) fn run(mut self, inbox: &Receiver<Vec<LogWrite>>) {
        while let Some(groups) = drain(inbox, Instant::now() + IDLE, MOST_GROUPS) {
            let writes: Vec<_> = groups.into_iter().flatten().collect();
            let result = if writes.is_empty() {
                self.writer.prepare().map(|()| None)
            } else {
                self.writer.write_all(writes).map(Some)
            };
            *self.stats.lock() = self.writer.stats();
            match result {
                Ok(Some(proof)) => {
                    // The loop may have ended meanwhile; then nobody promises anything any more.
                    let _ = self.back.send(ToDecide::Durable(proof));
                }
                Ok(None) => {}
                Err(failed) => {
                    let _ = self.back.send(ToDecide::Failed(stopped(&failed)));
                    return;
                }
            }
        }
    }
}
