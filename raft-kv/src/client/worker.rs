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
            | TrustCall::NodeReadmit(_)
            | TrustCall::Vouch(_)
            | TrustCall::LockStatus
            | TrustCall::Autolock(_)
            | TrustCall::UnlockKey
            | TrustCall::UnlockKeyRotate
            | TrustCall::Keys => false,
        },
        Call::Points(_)
        | Call::Quota(_)
        | Call::Backup { .. }
        | Call::Dates { .. }
        | Call::Range(_)
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
            TrustReply::Tokens(_)
            | TrustReply::Token { .. }
            | TrustReply::Vouched(_)
            | TrustReply::Lock(_)
            | TrustReply::Keys(_) => false,
        },
        Reply::Points(_) | Reply::Usage(_) | Reply::Backup(_) => false,
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
        | Reply::Alarms(_)
        | Reply::Dates(_) => false,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Wire;
    use crate::error::NotDone;
    use crate::types::{ClusterId, Header, MemberRecord, NodeRecord, RootDigest};

    const SECRET: &str = "manager-3.internal:2380";

    fn worker() -> Option<Identity> {
        Some(Identity { cluster: ClusterId(1), node: NodeId(5), role: Role::Worker })
    }

    fn header() -> Header {
        Header { cluster: ClusterId(1), member: NodeId(2), revision: 3, term: 4 }
    }

    #[test]
    fn no_error_to_a_worker_has_a_text_of_others() {
        let text = || SECRET.to_owned();
        let id = NodeId(0x1122_3344_5566_7788);
        let refusals = [
            Refusal::BadToken { why: text() },
            Refusal::BadCertificate { why: text() },
            Refusal::NotAllowed { role: text() },
            Refusal::Invalid { field: text(), why: text() },
            Refusal::Malformed { what: text() },
            Refusal::MemberNotFound { id },
            Refusal::MemberTaken { field: text(), value: text(), owner: id },
            Refusal::MemberNeeded { id, why: text() },
            Refusal::MemberUnfit { id, why: text() },
            Refusal::TooManyOps { list: text(), len: 1, max: 1 },
            Refusal::DuplicateKey { key: text() },
            Refusal::LeaseOutOfBounds { field: text(), value: 1, min: 1, max: 1 },
        ];
        let others = [Error::Stopped(text()), Error::NotDone(NotDone::Unreachable(text()))];
        for error in refusals.into_iter().map(Error::Refused).chain(others) {
            let bytes = told(worker(), &Err(error.clone())).to_bytes();
            for secret in [SECRET.as_bytes(), &id.0.to_be_bytes(), &id.0.to_le_bytes()] {
                assert!(!bytes.windows(secret.len()).any(|part| part == secret), "{error:?}");
            }
            assert_eq!(told(None, &Err(error.clone())), Err(error));
        }
    }

    /// Whether any answer that names another node gets through.
    fn leaks() -> bool {
        let record = |id| NodeRecord::new(NodeId(id), Role::Manager, SECRET, RootDigest::default());
        let status = CaStatus { nodes: vec![record(5), record(6)], ..CaStatus::default() };
        let late = CaStatus { late: vec![NodeId(6)], ..CaStatus::default() };
        let member = MemberRecord { addr: SECRET.into(), ..MemberRecord::default() };
        let member = crate::types::Member { record: member, role: crate::types::MemberRole::Voter };
        let replies = [
            Reply::Trust(TrustReply::Status(status)),
            Reply::Trust(TrustReply::Status(late)),
            Reply::Trust(TrustReply::Tokens(Vec::new())),
            Reply::Members(vec![member]),
            Reply::Info(Box::default()),
            Reply::Token(SECRET.into()),
        ];
        replies.into_iter().any(|reply| told(worker(), &Ok((header(), reply))).is_ok())
    }

    #[test]
    fn a_worker_gets_its_own_record_and_certificate() {
        assert!(!leaks());
        let own = NodeRecord::new(NodeId(5), Role::Worker, "w", RootDigest::default());
        let status = CaStatus { nodes: vec![own], late: vec![NodeId(5)], ..CaStatus::default() };
        let issuing = RootDigest::default();
        for reply in [
            TrustReply::Status(status),
            TrustReply::Certificate { chain: Vec::new(), roots: Vec::new(), issuing },
            TrustReply::Done,
        ] {
            let answered = Ok((header(), Reply::Trust(reply)));
            assert_eq!(told(worker(), &answered), answered);
        }
    }

    #[cfg(feature = "sim")]
    #[test]
    fn telling_workers_everything_is_noticed() {
        assert!(crate::planted::with(Some(crate::planted::Bug::TellWorkers), leaks));
    }
}
