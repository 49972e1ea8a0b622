//! The etcd v3 API: one file for each service. A service maps messages to the crate's handle and
//! back; it must never hold logic of its own about keys, leases or users.

pub mod auth;
pub mod cluster;
pub mod convert;
pub mod deadline;
pub mod election;
mod health;
pub mod kv;
mod large;
pub mod lease;
pub mod lock;
pub mod maintenance;
mod recipe;
pub mod rollback;
pub mod room;
pub mod status;
pub mod watch;

use deadline::Deadlines;
use etcd_api::etcdserverpb::auth_server::AuthServer;
use etcd_api::etcdserverpb::cluster_server::ClusterServer;
use etcd_api::etcdserverpb::kv_server::KvServer;
use etcd_api::etcdserverpb::lease_server::LeaseServer;
use etcd_api::etcdserverpb::maintenance_server::MaintenanceServer;
use etcd_api::etcdserverpb::watch_server::WatchServer;
use etcd_api::raftkv::rollback_server::RollbackServer;
use etcd_api::v3electionpb::election_server::ElectionServer;
use etcd_api::v3lockpb::lock_server::LockServer;
use raft_kv::client::Handle;
use raft_kv::limits::{MAX_ANSWERS_BYTES, MAX_DOOR_MESSAGE_BYTES};
use raft_kv::raft::Leadership;
use raft_kv::raft::Role as Part;
use raft_kv::types::{ClusterId, NodeId, Role};
use room::{Room, Rooms};
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
    macro_rules! sized {
        ($server:ident, $service:expr) => {
            $server::new($service)
                .max_decoding_message_size(MAX_DOOR_MESSAGE_BYTES)
                .max_encoding_message_size(usize::MAX)
        };
    }
    macro_rules! bounded {
        ($server:ident, $service:expr) => {
            Deadlines::new(Rooms(sized!($server, $service)))
        };
    }
    let kv = sized!(KvServer, kv::KvService::new(etcd.clone()));
    Routes::new(health::service(etcd.own_handle()))
        .add_service(Deadlines::new(Rooms(large::LargeRanges::new(kv, etcd.clone()))))
        .add_service(bounded!(WatchServer, watch::WatchService::new(etcd.clone())))
        .add_service(bounded!(LeaseServer, lease::LeaseService::new(etcd.clone())))
        .add_service(bounded!(ClusterServer, cluster::ClusterService::new(etcd.clone())))
        .add_service(bounded!(MaintenanceServer, maintenance::MaintenanceService::new(etcd.clone())))
        .add_service(bounded!(AuthServer, auth::AuthService::new(etcd.clone())))
        .add_service(bounded!(LockServer, lock::LockService::new(etcd.clone())))
        .add_service(bounded!(RollbackServer, rollback::RollbackService::new(etcd.clone())))
        .add_service(bounded!(ElectionServer, election::ElectionService::new(etcd)))
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
    room: Room,
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

/// The node whose certificate a connection showed; the listener puts it beside [`Certificate`]. What the
/// node asks for changes nothing once it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Via(pub NodeId);

/// By what a request says who sends it.
#[derive(Clone, Debug, Default)]
pub struct Who {
    token: Option<String>,
    certificate: Option<Certificate>,
    via: Option<Via>,
}

impl Who {
    /// Who sent `request`.
    pub fn asks<T>(request: &Request<T>) -> Self {
        let text = |name: &str| {
            let value = request.metadata().get(name).and_then(|value| value.to_str().ok());
            value.filter(|text| !text.is_empty())
        };
        let token = text("token").or_else(|| text("authorization")).map(str::to_owned);
        let (certificate, via) = (request.extensions().get().cloned(), request.extensions().get().copied());
        Self { token, certificate, via }
    }
}

impl Etcd {
    /// The services of the member behind `handle`.
    pub fn new(handle: Handle, cluster: ClusterId, member: NodeId) -> Self {
        Self { handle, cluster, member, leadership: None, room: Room::of(MAX_ANSWERS_BYTES) }
    }

    /// The same with other room for answers that are being sent.
    #[must_use]
    pub fn with_room(mut self, room: Room) -> Self {
        self.room = room;
        self
    }

    /// Room for answers that are being sent: one for all services, and for all that are made of
    /// clones of this.
    pub fn room(&self) -> &Room {
        &self.room
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
    /// `Unauthenticated` for a token that is not valid, and `Unavailable` where the caller wants a
    /// member with a leader (`hasleader`) and there is none.
    #[allow(clippy::result_large_err)]
    pub fn handle_of<T>(&self, request: &Request<T>) -> Result<Handle, Status> {
        let wants_leader = request.metadata().get("hasleader").is_some_and(|value| value == "true");
        if wants_leader && !self.has_leader() {
            return Err(Status::unavailable(status::text::NO_LEADER));
        }
        self.handle_for(&Who::asks(request))
    }

    /// The handle that acts for somebody, by the users and roles as they are now.
    ///
    /// # Errors
    /// `Unauthenticated` for a token that is not valid.
    #[allow(clippy::result_large_err)]
    pub fn handle_for(&self, who: &Who) -> Result<Handle, Status> {
        let Who { token, certificate, via } = who;
        let handle = via.iter().fold(self.handle.clone(), |handle, via| handle.on_node(via.0));
        // A member's own certificate may do everything, as it may between members.
        if token.is_none() && certificate.as_ref().is_some_and(|found| found.role == Role::Manager) {
            return Ok(handle);
        }
        let name = certificate.as_ref().map(|found| found.name.as_str());
        let caller = self.handle.caller(token.as_deref(), name).map_err(status::status)?;
        Ok(handle.acting_as(caller))
    }

    /// Whether this member knows a leader; it counts as knowing one where nobody told.
    fn has_leader(&self) -> bool {
        self.leadership.as_ref().is_none_or(|leadership| leadership.borrow().leader.is_some())
    }

    /// Refuses what a learner does not answer: everything but its own old state.
    #[allow(clippy::result_large_err)]
    pub fn learner_may(&self, serializable: bool) -> Result<(), Status> {
        let learns = |told: &tokio::sync::watch::Receiver<Leadership>| told.borrow().role == Part::Learner;
        if !serializable && self.leadership.as_ref().is_some_and(learns) {
            return Err(Status::failed_precondition(status::text::LEARNER));
        }
        Ok(())
    }
}
