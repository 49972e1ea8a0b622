//! What a worker is served over QUIC: its own certificate and its own record, and nothing that names a
//! manager.
//!
//! Both lists are exhaustive: a new call or a new answer does not compile until it says here whether a
//! worker may have it. Everything that is sent to a worker goes through [`told`].

use super::api::{Answered, Call, Reply};
use super::local::Local;
use super::trust::authority::{now, roots_of};
use crate::error::{Error, Refusal};
use crate::machine;
use crate::net::RequestStream;
use crate::pki::Identity;
use crate::types::{CaStatus, NodeId, Role, TrustCall, TrustReply};

/// Whether it is a worker who asks.
pub(super) fn is_one(asker: Option<Identity>) -> bool {
    asker.is_some_and(|identity| identity.role == Role::Worker)
}

fn not_allowed() -> Error {
    Refusal::NotAllowed { role: Role::Worker.to_string() }.into()
}

/// Refuses a call that a worker may not make.
pub(super) fn admit(asker: Option<Identity>, call: Call) -> Result<Call, Error> {
    if is_one(asker) && !may(&call) { Err(not_allowed()) } else { Ok(call) }
}

fn may(call: &Call) -> bool {
    match call {
        Call::Trust(call) => match call {
            TrustCall::Status | TrustCall::Renew { .. } | TrustCall::Follow => true,
            TrustCall::Rotate { .. }
            | TrustCall::Abort
            | TrustCall::Tokens
            | TrustCall::TokenCreate { .. }
            | TrustCall::TokenRotate(_)
            | TrustCall::TokenRevoke(_)
            | TrustCall::Token(_)
            | TrustCall::NodeRemove(_)
            | TrustCall::NodePromote(_)
            | TrustCall::NodeDemote(_)
            | TrustCall::NodeReadmit(_) => false,
        },
        Call::Range(_)
        | Call::Command { .. }
        | Call::ReadTxn(_)
        | Call::Compact { .. }
        | Call::LeaseKeepAlive(_)
        | Call::LeaseTimeToLive { .. }
        | Call::Leases
        | Call::Members
        | Call::MemberPromote(_)
        | Call::MemberRemove(_)
        | Call::Info
        | Call::JoinToken(_)
        | Call::IssueCertificate { .. }
        | Call::Transfer(_)
        | Call::Watch(_)
        | Call::Join(_)
        | Call::Rejoin { .. }
        | Call::Auth(_)
        | Call::AuthQuery(_)
        | Call::Authenticate { .. }
        | Call::Alarm(_)
        | Call::HashKv(_)
        | Call::MemberUpdate(_)
        | Call::RaiseRevision(_)
        | Call::Enrol(_)
        | Call::Readmit(_) => false,
    }
}

/// The answer as its asker may have it: a worker's names no manager but the one that answers, by the
/// id that its certificate shows too.
pub(super) fn told(asker: Option<Identity>, answered: &Answered) -> Answered {
    let Some(worker) = asker.filter(|_| is_one(asker)) else { return answered.clone() };
    match answered {
        Ok((_, reply)) if !fits(worker.node, reply) && !crate::planted!(TellWorkers) => Err(not_allowed()),
        Ok(_) => answered.clone(),
        Err(error) => Err(error.clone().for_worker()),
    }
}

fn fits(worker: NodeId, reply: &Reply) -> bool {
    match reply {
        Reply::Done => true,
        Reply::Trust(reply) => match reply {
            TrustReply::Certificate { .. } | TrustReply::Done => true,
            TrustReply::Status(status) => {
                status.nodes.iter().all(|node| node.id == worker)
                    && status.late.iter().all(|node| *node == worker)
            }
            TrustReply::Tokens(_) | TrustReply::Token { .. } => false,
        },
        Reply::Range(_)
        | Reply::Command(_)
        | Reply::Txn(_)
        | Reply::Lease(_)
        | Reply::Leases(_)
        | Reply::Members(_)
        | Reply::Info(_)
        | Reply::Token(_)
        | Reply::Certificate { .. }
        | Reply::Watch(_)
        | Reply::Joined(_)
        | Reply::Auth(_)
        | Reply::Hash(_)
        | Reply::Alarms(_) => false,
    }
}

impl Local {
    /// What the authority knows of the node that asks, and of no other.
    pub(super) async fn own_status(&self, stream: &RequestStream) -> Answered {
        let node = stream.identity.ok_or_else(not_allowed)?.node;
        self.barrier(super::node::OWN_PATIENCE).await?;
        let (trusted, record) =
            self.read(|view| Ok((machine::read::trusted(view)?, machine::read::node(view, node)?)))?;
        let moved = |target| record.as_ref().is_some_and(|record| record.issuer == target);
        let late = trusted.rotation.as_ref().is_some_and(|rotation| !moved(rotation.target));
        let status = CaStatus {
            epoch: trusted.epoch,
            roots: roots_of(&trusted),
            digests: trusted.roots.iter().map(|root| root.digest).collect(),
            external: trusted.issuing().key.is_none(),
            rotation: trusted.rotation,
            nodes: record.into_iter().collect(),
            late: late.then_some(node).into_iter().collect(),
            now: now(),
        };
        Ok((self.now()?, Reply::Trust(TrustReply::Status(status))))
    }
}
