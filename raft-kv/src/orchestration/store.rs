//! What tasks and state need of the world: a store of keys and a clock, as traits, so that the same
//! code runs in a manager's process and in the simulator.

use std::time::Duration;

use super::words::Time;
use crate::error::Error;
use crate::types::{
    Header, LeaseId, RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchBatch, WatchRequest,
};

/// A store of keys with etcd's semantics. Errors are those of the handle: refused, certainly not
/// done, or unknown.
pub trait Store: Clone + Send + Sync + 'static {
    /// What [`watch`](Self::watch) gives.
    type Watch: Events;

    /// Reads keys.
    fn range(
        &self,
        request: RangeRequest,
    ) -> impl Future<Output = Result<(Header, RangeResponse), Error>> + Send;

    /// Compares and writes, all or nothing, at one revision.
    fn txn(&self, request: TxnRequest) -> impl Future<Output = Result<(Header, TxnResponse), Error>> + Send;

    /// Follows keys.
    fn watch(&self, request: WatchRequest) -> impl Future<Output = Result<Self::Watch, Error>> + Send;

    /// A lease of `ttl` seconds, with an id that the store chooses.
    fn lease_grant(&self, ttl: i64) -> impl Future<Output = Result<LeaseId, Error>> + Send;

    /// Starts the lease's time anew.
    fn lease_keep_alive(&self, id: LeaseId) -> impl Future<Output = Result<(), Error>> + Send;

    /// Ends the lease and its keys.
    fn lease_revoke(&self, id: LeaseId) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Keys that are followed.
pub trait Events: Send + 'static {
    /// The next events; `None` where the watch has ended, as it does behind
    /// [`WatchBatch::Compacted`]. Cancelling the wait loses nothing.
    fn next(&mut self) -> impl Future<Output = Result<Option<WatchBatch>, Error>> + Send;
}

/// Time and chance.
pub trait Clock: Clone + Send + Sync + 'static {
    /// The time of day.
    fn now(&self) -> Time;

    /// Waits.
    fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send;

    /// 64 bits that nobody can guess; in the simulator, of the run's seed.
    fn random(&self) -> u64;
}
