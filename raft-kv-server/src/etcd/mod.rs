//! The etcd v3 API: one file for each service. A service maps messages to the crate's handle and
//! back; it must never hold logic of its own about keys, leases or users.

pub mod convert;
pub mod kv;
pub mod status;

use raft_kv::client::Handle;
use raft_kv::raft::{Leadership, Role as RaftRole};
use raft_kv::types::{Caller, ClusterId, NodeId, Role};
use tokio::sync::watch;
use tonic::{Request, Status};

/// What every service works on.
#[derive(Clone, Debug)]
pub struct Etcd {
    handle: Handle,
    cluster: ClusterId,
    member: NodeId,
    /// Whether there is a leader and whether this member votes; unknown without.
    leadership: Option<watch::Receiver<Leadership>>,
}

/// Who is at the other end of a TLS connection; the listener puts it into each request's
/// extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The name in it, which acts as user where no token is given.
    pub name: String,
    /// Its role; a worker may not use this door at all.
    pub role: Role,
}

impl Etcd {
    /// The services of the member behind `handle`.
    pub fn new(handle: Handle, cluster: ClusterId, member: NodeId) -> Self {
        let leadership = handle.leadership();
        Self { handle, cluster, member, leadership }
    }

    /// The same with another word on who leads: what `Node::leadership` gives is what it has from
    /// a handle in the member's own process anyway.
    #[must_use]
    pub fn with_leadership(mut self, leadership: watch::Receiver<Leadership>) -> Self {
        self.leadership = Some(leadership);
        self
    }

    /// Who leads, as far as this member knows; `None` for a member elsewhere.
    pub fn leadership(&self) -> Option<watch::Receiver<Leadership>> {
        self.leadership.clone()
    }

    /// Refuses a request that asks for a leader (`hasleader: true` in its metadata) where none is
    /// known.
    ///
    /// # Errors
    /// `Unavailable`, "etcdserver: no leader".
    #[allow(clippy::result_large_err)]
    pub fn require_leader<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let asks = request.metadata().get("hasleader").is_some_and(|value| value.as_bytes() == b"true");
        let leaderless = |receiver: &watch::Receiver<Leadership>| receiver.borrow().leader.is_none();
        if asks && self.leadership.as_ref().is_some_and(leaderless) {
            return Err(status::NO_LEADER.into());
        }
        Ok(())
    }

    /// Refuses what a member without a vote does not answer.
    ///
    /// # Errors
    /// `FailedPrecondition`, "etcdserver: rpc not supported for learner".
    #[allow(clippy::result_large_err)]
    pub fn require_voter(&self) -> Result<(), Status> {
        let learns = |receiver: &watch::Receiver<Leadership>| receiver.borrow().role == RaftRole::Learner;
        if self.leadership.as_ref().is_some_and(learns) {
            return Err(status::NOT_FOR_LEARNERS.into());
        }
        Ok(())
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The member that answers.
    pub fn member(&self) -> NodeId {
        self.member
    }

    /// The handle with the member's own rights: for what no caller asked.
    pub fn own_handle(&self) -> &Handle {
        &self.handle
    }

    /// The handle that acts for whoever sent `request`: by the token in its metadata (`token`, or
    /// `authorization` as the gateway's callers send it), else by its certificate's name.
    ///
    /// # Errors
    /// At a learner; where it asks for a leader and there is none; `Unauthenticated` for a token
    /// that is not valid.
    #[allow(clippy::result_large_err)]
    pub fn handle_of<T>(&self, request: &Request<T>) -> Result<Handle, Status> {
        self.require_voter()?;
        self.learners_handle_of(request)
    }

    /// The same for the few things that a learner answers, too: serializable ranges, its status, a
    /// snapshot.
    ///
    /// # Errors
    /// Where it asks for a leader and there is none; `Unauthenticated` for a token that is not
    /// valid.
    #[allow(clippy::result_large_err)]
    pub fn learners_handle_of<T>(&self, request: &Request<T>) -> Result<Handle, Status> {
        self.require_leader(request)?;
        let text = |name: &str| request.metadata().get(name).and_then(|value| value.to_str().ok());
        let token = text("token").or_else(|| text("authorization"));
        let certificate = request.extensions().get::<Certificate>().map(|found| found.name.as_str());
        let caller = self.handle.caller(token, certificate).map_err(status::status)?;
        Ok(self.handle.clone().acting_as(caller))
    }

    /// The same for one whose caller is known.
    pub fn handle_as(&self, caller: Caller) -> Handle {
        self.handle.clone().acting_as(caller)
    }
}
