//! The leader's duty on nodes, as this member comes to lead and ceases to.

use std::time::Duration;

use raft_kv::client::Handle;
use raft_kv::orchestration::session::{Settings, keep_nodes};
use raft_kv::orchestration::{Fence, Orchestrator, SystemClock};
use raft_kv::raft::{Leadership, Role};
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
        let fence = Fence::take(&handle, term).await?;
        keep_nodes(Orchestrator::new(handle, SystemClock).fenced(fence), settings).await
    };
    let Err(error) = ended.await;
    tracing::debug!(%error, "the duty on nodes ended");
}
