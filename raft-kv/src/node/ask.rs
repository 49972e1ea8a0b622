//! What callers ask of the loop and what they are told, and the bounds checked on the way in.

use std::time::Duration;

use crate::error::{Error, Refusal};
use crate::limits;
use crate::machine::command::Command;
use crate::machine::{Answer, validate};
use crate::types::{ConfChange, LeaseId, LeaseStatus, NodeId, OnceId, Revision, Term};

/// Names a caller of this process until it is answered.
pub type Ticket = u64;

/// A request of a local caller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Under which the answer comes back.
    pub ticket: Ticket,
    /// When the caller gives up, on the loop's clock.
    pub deadline: Duration,
    /// What is asked.
    pub what: What,
}

/// See [`Ask`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// A change of the store.
    Command {
        /// Which.
        command: Command,
        /// The caller's own name for it.
        once: Option<OnceId>,
    },
    /// A membership change.
    Conf(ConfChange),
    /// Says when a linearizable read may be served from this member's own state.
    Barrier,
    /// Renews a lease or asks what it has left.
    Lease {
        /// Which.
        id: LeaseId,
        /// Give it its full time again.
        renew: bool,
    },
    /// Moves leadership.
    Transfer {
        /// To whom; the most caught-up voter otherwise.
        to: Option<NodeId>,
    },
}

/// What a caller is told when its request succeeded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// The command was applied.
    Applied {
        /// The revision right after it.
        revision: Revision,
        /// The term it was applied in.
        term: Term,
        /// What the state machine answered.
        answer: Answer,
    },
    /// The read may be served now.
    MayRead,
    /// What the lease has left.
    Lease(LeaseStatus),
    /// Done.
    Done,
}

/// Checks a command's bounds: a local caller's, or one that another member hands on.
pub fn admit_command(command: &Command) -> Result<(), Refusal> {
    if matches!(command.asked().1, Command::LeaseExpire { .. }) {
        // Only a leader's own loop decides that a lease is over.
        return Err(Refusal::invalid("command", "leases are revoked, not expired, by callers"));
    }
    if matches!(command.asked().1, Command::Seen { .. }) {
        return Err(Refusal::invalid("command", "only a leader records which members run"));
    }
    validate::validate(command)?;
    let len = command.size();
    if len > limits::MAX_REQUEST_BYTES {
        return Err(Refusal::RequestTooLarge { len: len as u64, max: limits::MAX_REQUEST_BYTES as u64 });
    }
    Ok(())
}

/// Checks a request's bounds before anything is done for it.
pub fn admit(what: &What) -> Result<(), Error> {
    match what {
        What::Command { command, .. } => admit_command(command).map_err(Error::Refused),
        What::Conf(ConfChange::AddLearner(record)) => {
            validate::validate(&Command::MemberUpdate(record.clone())).map_err(Error::Refused)
        }
        What::Conf(ConfChange::LeaveJoint) => {
            Err(Refusal::invalid("change", "raft ends joint changes by itself").into())
        }
        What::Conf(_) | What::Barrier | What::Lease { .. } | What::Transfer { .. } => Ok(()),
    }
}
