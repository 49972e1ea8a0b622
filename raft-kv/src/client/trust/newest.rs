//! What gives trust away is given to the newest certificate of a node alone.
//!
//! Who has a stolen root's key makes himself a certificate with a member's id, and passes for it until the root
//! has been replaced. He must not get anything meanwhile that outlives the root: no certificate of the new one,
//! no token, no key. A record has the key of what its node was given last; nobody else has that one.

use super::super::api::Call;
use super::super::local::Local;
use super::super::node::OWN_PATIENCE;
use super::authority::now;
use crate::error::{Error, NotDone, Refusal};
use crate::machine;
use crate::net::RequestStream;
use crate::types::TrustCall;

/// For so many seconds after it was made a node may not have taken its newest certificate into use yet.
const HAND_OVER: i64 = 10;

/// Whether the answer, or what is done for it, lets somebody in or opens a secret. A new call does not compile
/// until it says so.
pub(in crate::client) fn gives_trust(call: &Call) -> bool {
    match call {
        Call::JoinToken(_) | Call::IssueCertificate { .. } | Call::Backup { keys: true } => true,
        Call::Trust(call) => match call {
            TrustCall::Rotate { .. }
            | TrustCall::Abort
            | TrustCall::TokenCreate { .. }
            | TrustCall::TokenRotate(_)
            | TrustCall::TokenRevoke(_)
            | TrustCall::Token(_)
            | TrustCall::NodeRemove(_)
            | TrustCall::NodePromote(_)
            | TrustCall::NodeDemote(_)
            | TrustCall::NodeReadmit(_)
            | TrustCall::Autolock(_)
            | TrustCall::UnlockKey
            | TrustCall::UnlockKeyRotate
            | TrustCall::Keys => true,
            // A renewal looks at the key itself.
            TrustCall::Status
            | TrustCall::Tokens
            | TrustCall::Renew { .. }
            | TrustCall::Follow
            | TrustCall::Vouch(_)
            | TrustCall::LockStatus => false,
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
        | Call::Transfer(_)
        | Call::Watch(_)
        | Call::Join(_)
        | Call::Auth(_)
        | Call::AuthQuery(_)
        | Call::Authenticate { .. }
        | Call::Alarm(_)
        | Call::HashKv(_)
        | Call::MemberUpdate(_)
        | Call::RaiseRevision(_)
        | Call::Enrol(_)
        | Call::Points(_)
        | Call::Quota(_)
        | Call::Backup { keys: false }
        | Call::Dates { .. }
        | Call::Readmit(_)
        // It is looked at where it is served.
        | Call::Rejoin { .. } => false,
    }
}

impl Local {
    /// Refuses who asks with another certificate than the newest of its node.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`]; [`NotDone::Busy`] while the newest was made a moment ago.
    pub(in crate::client) async fn asks_with_newest(&self, stream: &RequestStream) -> Result<(), Error> {
        let Some(identity) = stream.identity else { return Ok(()) };
        self.barrier(OWN_PATIENCE).await?;
        let Some(record) = self.read(|view| machine::read::node(view, identity.node))? else {
            let why = "the cluster has no record of the certificate that this is asked with".into();
            return Err(Refusal::BadCertificate { why }.into());
        };
        if stream.key() == Some(record.key) || crate::planted!(GiveToAnyKey) {
            return Ok(());
        }
        if record.issued > now() - HAND_OVER {
            return Err(Error::NotDone(NotDone::Busy));
        }
        tracing::warn!(node = %identity.node, "somebody asks for trust with a certificate that is not the newest of its node");
        let why = "this is given to the newest certificate of a node alone, and this one is older, or was not made by \
                   the cluster; use the newest"
            .into();
        Err(Refusal::BadCertificate { why }.into())
    }
}
