//! The etcd v3 API: one file for each service. A service maps messages to the crate's handle and
//! back; it must never hold logic of its own about keys, leases or users.

pub mod convert;
mod health;
pub mod status;
pub mod watch;

use raft_kv::client::Handle;
use raft_kv::raft::Leadership;
use raft_kv::types::{Caller, ClusterId, NodeId, Role};
use tonic::service::Routes;
use tonic::{Request, Status};

/// Every service, one line each. Call it within a tokio runtime.
pub fn routes(etcd: Etcd) -> Routes {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(etcd_api::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let readable = "the descriptors that were built in can be read";
    Routes::new(health::service(etcd.own_handle()))
        .add_service(reflection().build_v1().expect(readable))
        .add_service(reflection().build_v1alpha().expect(readable))
}

/// What every service works on.
#[derive(Clone, Debug)]
pub struct Etcd {
    handle: Handle,
    cluster: ClusterId,
    member: NodeId,
    leadership: Option<tokio::sync::watch::Receiver<Leadership>>,
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
        Self { handle, cluster, member, leadership: None }
    }

    /// The same, knowing who leads as it changes.
    #[must_use]
    pub fn with_leadership(mut self, leadership: tokio::sync::watch::Receiver<Leadership>) -> Self {
        self.leadership = Some(leadership);
        self
    }

    /// Role, term and leader as this member sees them, where it was told.
    pub fn leadership(&self) -> Option<tokio::sync::watch::Receiver<Leadership>> {
        self.leadership.clone()
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
    /// `Unauthenticated` for a token that is not valid.
    #[allow(clippy::result_large_err)]
    pub fn handle_of<T>(&self, request: &Request<T>) -> Result<Handle, Status> {
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
