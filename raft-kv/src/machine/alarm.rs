//! Alarms: what is wrong with a member, known to all, and what may not be done meanwhile.
//!
//! While space is short, nothing that needs more of it is taken; what frees it is. While a state is
//! corrupt, nothing that reads or changes keys is believed; ending the alarm always works.

use super::command::{Answer, Command};
use super::draft::Draft;
use super::format::{load, member_key};
use super::stop::{Settled, Stop, settle};
use super::store::{Read, Table};
use crate::error::{Refusal, StorageFailed};
use crate::planted;
use crate::types::{AlarmKind, AlarmRequest, MemberRecord, NodeId, PointChange, TxnOp, TxnRequest};

/// The one record of all alarms in [`Table::Members`], behind members and removed ones: a read asks
/// for it with one look. At most two for each member.
const KEY: &[u8] = &[2];

/// The alarms there are, by member and kind.
pub fn alarms(view: &dyn Read) -> Result<Vec<(NodeId, AlarmKind)>, StorageFailed> {
    Ok(load(view, Table::Members, KEY)?.unwrap_or_default())
}

fn store(draft: &mut Draft, alarms: &[(NodeId, AlarmKind)]) {
    match alarms {
        [] => draft.overlay.remove(Table::Members, KEY),
        some => draft.overlay.put(Table::Members, KEY, &some.to_vec()),
    }
    draft.alarms = None;
}

/// Raises or ends an alarm of a member. Ending what is not raised is no mistake.
pub fn change(draft: &mut Draft, request: &AlarmRequest) -> Result<Answer, Stop> {
    let mut alarms = alarms(draft.view())?;
    match *request {
        AlarmRequest::List(_) => {
            return Err(Refusal::invalid("alarm", "a list is read, not written to the log").into());
        }
        AlarmRequest::Raise(id, kind) => {
            if load::<MemberRecord>(draft.view(), Table::Members, &member_key(id))?.is_none() {
                return Err(Refusal::MemberNotFound { id }.into());
            }
            if let Err(at) = alarms.binary_search(&(id, kind)) {
                alarms.insert(at, (id, kind));
            }
        }
        AlarmRequest::End(id, kind) => alarms.retain(|alarm| *alarm != (id, kind)),
    }
    store(draft, &alarms);
    Ok(Answer::Done)
}

/// Ends the alarms of a member that is one no more.
pub fn forget(draft: &mut Draft, id: NodeId) -> Result<(), StorageFailed> {
    let mut alarms = alarms(draft.view())?;
    alarms.retain(|(member, _)| *member != id);
    store(draft, &alarms);
    Ok(())
}

/// Refuses a command that an alarm forbids.
pub fn check(draft: &mut Draft, command: &Command) -> Result<(), Stop> {
    let raised = match draft.alarms {
        Some(raised) => raised,
        None => *draft.alarms.insert(Raised::of(draft.view())?),
    };
    let forbidden = (raised.corrupt && touches_keys(command)).then_some(AlarmKind::Corrupt).or_else(|| {
        (raised.no_space && needs_space(command) && !planted!(IgnoreNoSpace)).then_some(AlarmKind::NoSpace)
    });
    match forbidden {
        Some(kind) => Err(Refusal::Alarmed { kind }.into()),
        None => Ok(()),
    }
}

/// Refuses a linearizable read while a state is corrupt.
pub fn check_read(view: &dyn Read) -> Settled<()> {
    let check = || match Raised::of(view)?.corrupt {
        true => Err(Refusal::Alarmed { kind: AlarmKind::Corrupt }.into()),
        false => Ok(()),
    };
    settle(check())
}

/// Which kinds are raised, for whatever member.
#[derive(Clone, Copy, Default)]
pub struct Raised {
    no_space: bool,
    corrupt: bool,
}

impl Raised {
    fn of(view: &dyn Read) -> Result<Self, StorageFailed> {
        let alarms = alarms(view)?;
        let any = |kind| alarms.iter().any(|(_, raised)| *raised == kind);
        Ok(Self { no_space: any(AlarmKind::NoSpace), corrupt: any(AlarmKind::Corrupt) })
    }
}

fn needs_space(command: &Command) -> bool {
    match command {
        Command::Put(_) | Command::LeaseGrant { .. } => true,
        // What a new point pins can't be freed; a rollback may well free.
        Command::Point(change) => matches!(change, PointChange::Create { .. }),
        Command::Txn(request) => puts(request),
        Command::Delete(_)
        | Command::Compact { .. }
        | Command::RaiseRevision { .. }
        | Command::LeaseRevoke { .. }
        | Command::LeaseExpire { .. }
        | Command::MemberUpdate(_)
        | Command::Trust(_)
        | Command::Noop
        | Command::Auth(_)
        | Command::Alarm(_)
        | Command::As { .. }
        | Command::From { .. } => false,
    }
}

/// Whether a put stands anywhere in it, taken or not.
fn puts(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|op| match op {
        TxnOp::Put(_) => true,
        TxnOp::Txn(nested) => puts(nested),
        TxnOp::Range(_) | TxnOp::Delete(_) => false,
    })
}

fn touches_keys(command: &Command) -> bool {
    match command {
        Command::Put(_)
        | Command::Delete(_)
        | Command::Txn(_)
        | Command::Compact { .. }
        | Command::RaiseRevision { .. }
        | Command::Point(_)
        | Command::LeaseGrant { .. }
        | Command::LeaseRevoke { .. }
        | Command::LeaseExpire { .. } => true,
        Command::MemberUpdate(_)
        | Command::Trust(_)
        | Command::Noop
        | Command::Auth(_)
        | Command::Alarm(_)
        | Command::As { .. }
        | Command::From { .. } => false,
    }
}
