//! The world of a manager's process: a [`Handle`] as store, and the system's clock.

use std::time::{Duration, SystemTime};

use super::store::{Clock, Events, Store};
use super::words::Time;
use crate::client::{Handle, Watch};
use crate::error::{Error, Refusal};
use crate::types::{
    Header, LeaseId, RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchBatch, WatchRequest,
};

impl Store for Handle {
    type Watch = Watch;

    async fn range(&self, request: RangeRequest) -> Result<(Header, RangeResponse), Error> {
        Handle::range(self, request).await
    }

    async fn txn(&self, request: TxnRequest) -> Result<(Header, TxnResponse), Error> {
        Handle::txn(self, request).await
    }

    async fn watch(&self, request: WatchRequest) -> Result<Watch, Error> {
        Handle::watch(self, request).await
    }

    async fn lease_grant(&self, ttl: i64) -> Result<LeaseId, Error> {
        Handle::lease_grant(self, 0, ttl).await.map(|(_, id, _)| id)
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), Error> {
        let (_, status) = Handle::lease_keep_alive(self, id).await?;
        if status.ttl < 0 { Err(Refusal::LeaseNotFound { id }.into()) } else { Ok(()) }
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        Handle::lease_revoke(self, id).await.map(drop)
    }
}

impl Events for Watch {
    async fn next(&mut self) -> Result<Option<WatchBatch>, Error> {
        Watch::next(self).await
    }
}

/// The system's clock and generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Time {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Time::try_from(since.as_millis()).unwrap_or(Time::MAX)
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}
