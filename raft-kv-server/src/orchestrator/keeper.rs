//! The leader's duty on nodes, as this member comes to lead and ceases to. In a cluster without workers it must write
//! nothing: its revisions are those of its users alone.

use std::time::Duration;

use raft_kv::client::Handle;
use raft_kv::error::{Error, NotDone};
use raft_kv::limits::ORCHESTRATION_PREFIX;
use raft_kv::orchestration::session::{Settings, keep_nodes};
use raft_kv::orchestration::{Fence, Orchestrator, SystemClock};
use raft_kv::raft::{Leadership, Role};
use raft_kv::types::{KeyRange, RangeRequest, WatchBatch, WatchRequest};
use tokio::sync::watch;

/// Pause after a duty that ended by itself.
const AGAIN: Duration = Duration::from_millis(500);

/// Runs [`keep_nodes`] whenever this member leads, for as long as it is driven.
pub async fn keep(handle: Handle, settings: Settings, mut leadership: watch::Receiver<Leadership>) {
    loop {
        let now = *leadership.borrow_and_update();
        if now.role == Role::Leader {
            let duty = on_duty(handle.clone(), settings.clone(), now.term);
            tokio::select! {
                () = duty => tokio::time::sleep(AGAIN).await,
                changed = leadership.changed() => if changed.is_err() { return },
            }
        } else if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Until it fails: another leads, or the store does not answer.
async fn on_duty(handle: Handle, settings: Settings, term: u64) {
    let ended = async {
        until_there_is_a_node(&handle).await?;
        let fence = Fence::take(&handle, term).await?;
        keep_nodes(Orchestrator::new(handle, SystemClock).fenced(fence), settings).await
    };
    let Err(error) = ended.await;
    tracing::debug!(%error, "the duty on nodes ended");
}

/// Until a worker has ever been here.
async fn until_there_is_a_node(handle: &Handle) -> Result<(), Error> {
    let range = KeyRange::prefix(format!("{ORCHESTRATION_PREFIX}w/"));
    let count = RangeRequest { range: range.clone(), count_only: true, ..RangeRequest::default() };
    let (header, found) = handle.range(count).await?;
    if found.count > 0 {
        return Ok(());
    }
    let start_revision = header.revision + 1;
    let mut watch = handle.watch(WatchRequest { range, start_revision, ..WatchRequest::default() }).await?;
    loop {
        match watch.next().await? {
            Some(WatchBatch::Changes(_) | WatchBatch::Part(_)) => return Ok(()),
            Some(WatchBatch::Progress(_)) => {}
            // What came meanwhile is looked at anew.
            Some(WatchBatch::Compacted(_)) | None => return Err(Error::NotDone(NotDone::Busy)),
        }
    }
}
