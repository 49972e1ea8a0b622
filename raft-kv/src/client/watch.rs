//! A watch as its caller holds it: local or over QUIC.

use std::time::Duration;

use tokio::sync::watch;

use super::api::{Answered, Reply};
use crate::codec::Wire;
use crate::error::{Error, NotDone, Refusal};
use crate::net::ResponseStream;
use crate::node::shell::Subscription;
use crate::types::WatchBatch;

/// Why the node ended, once it has.
pub(super) type Ended = watch::Receiver<Option<Error>>;

enum Source {
    Local(Box<Subscription>, Ended, Option<Duration>),
    Remote(Box<ResponseStream>),
}

/// Follows keys until it is dropped.
pub struct Watch {
    source: Source,
    ended: bool,
}

impl Watch {
    pub(super) fn local(subscription: Subscription, ended: Ended, notify: Option<Duration>) -> Self {
        Self { source: Source::Local(Box::new(subscription), ended, notify), ended: false }
    }

    pub(super) fn remote(stream: ResponseStream) -> Self {
        Self { source: Source::Remote(Box::new(stream)), ended: false }
    }

    /// The next batch: whole revisions in order, none missing, none twice. `None` after a
    /// [`WatchBatch::Compacted`]. May be dropped and called again.
    ///
    /// # Errors
    /// The connection broke or the node stopped: watch again from the last revision + 1, at any
    /// member.
    pub async fn next(&mut self) -> Result<Option<WatchBatch>, Error> {
        if self.ended {
            return Ok(None);
        }
        let batch = match &mut self.source {
            Source::Local(subscription, ended, notify) => tokio::select! {
                batch = next_local(subscription, *notify) => batch?,
                why = over(ended) => return Err(why),
            },
            Source::Remote(stream) => next_remote(stream).await?,
        };
        self.ended = matches!(batch, None | Some(WatchBatch::Compacted(_)));
        Ok(batch)
    }
}

/// Waits until the node has ended; says why.
pub(super) async fn over(ended: &mut Ended) -> Error {
    let why = ended.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
    why.unwrap_or(Error::NotDone(NotDone::ShuttingDown))
}

async fn next_local(
    subscription: &mut Subscription,
    notify: Option<Duration>,
) -> Result<Option<WatchBatch>, Error> {
    let Some(every) = notify else {
        return subscription.next().await;
    };
    loop {
        match tokio::time::timeout(every, subscription.next()).await {
            Ok(batch) => return batch,
            Err(_) => {
                if let Some(revision) = subscription.progress() {
                    return Ok(Some(WatchBatch::Progress(revision)));
                }
            }
        }
    }
}

async fn next_remote(stream: &mut ResponseStream) -> Result<Option<WatchBatch>, Error> {
    let Some(frame) = stream.next().await? else {
        return Ok(None);
    };
    let answered =
        Answered::from_bytes(frame).map_err(|error| Refusal::Malformed { what: error.to_string() })?;
    match answered? {
        (_, Reply::Watch(batch)) => Ok(Some(batch)),
        (_, other) => Err(Refusal::Malformed { what: format!("a watch was answered {other:?}") }.into()),
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("ended", &self.ended).finish_non_exhaustive()
    }
}
