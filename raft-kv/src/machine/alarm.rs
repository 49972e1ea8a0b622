//! Alarms: what is wrong with a member, known to all, and what may not be done meanwhile.
//!
//! While space is short, nothing that needs more of it is taken; what frees it is. While a state is
//! corrupt, nothing that reads or changes keys is believed; ending the alarm always works.

use bytes::Bytes;

use super::command::{Answer, Command};
use super::draft::Draft;
use super::format::{damaged, load, member_key, tagged};
use super::stop::{Settled, Stop, settle};
use super::store::{Read, Table};
use crate::codec::Wire;
use crate::error::{Refusal, StorageFailed};
use crate::planted;
use crate::types::{AlarmKind, AlarmRequest, MemberRecord, NodeId, TxnOp, TxnRequest};

/// Which tag alarms have in [`Table::Members`], behind members and removed ones.
const TAG: u8 = 2;

fn key(member: NodeId, kind: AlarmKind) -> Bytes {
    [&tagged(TAG, member.0)[..], &kind.to_bytes()].concat().into()
}

/// The alarms there are, by member and kind.
pub fn alarms(view: &dyn Read) -> Result<Vec<(NodeId, AlarmKind)>, StorageFailed> {
    view.scan(Table::Members, &tagged(TAG, 0), Some(&tagged(TAG + 1, 0)))
        .map(|pair| {
            let (key, _) = pair?;
            let bad = || damaged(Table::Members, "an alarm's key can't be read");
            let (id, kind) = key.get(1..9).zip(key.get(9..)).ok_or_else(bad)?;
            let id = NodeId(u64::from_be_bytes(id.try_into().expect("eight bytes were cut out")));
            let kind = AlarmKind::from_bytes(Bytes::copy_from_slice(kind)).map_err(|_| bad())?;
            Ok((id, kind))
        })
        .collect()
}

/// Raises or ends an alarm of a member. Ending what is not raised is no mistake.
pub fn change(draft: &mut Draft, request: &AlarmRequest) -> Result<Answer, Stop> {
    match *request {
        AlarmRequest::List(_) => {
            return Err(Refusal::invalid("alarm", "a list is read, not written to the log").into());
        }
        AlarmRequest::Raise(id, kind) => {
            if load::<MemberRecord>(draft.view(), Table::Members, &member_key(id))?.is_none() {
                return Err(Refusal::MemberNotFound { id }.into());
            }
            draft.overlay.put(Table::Members, key(id, kind), &());
        }
        AlarmRequest::End(id, kind) => draft.overlay.remove(Table::Members, key(id, kind)),
    }
    draft.alarms = None;
    Ok(Answer::Done)
}

/// Ends the alarms of a member that is one no more.
pub fn forget(draft: &mut Draft, id: NodeId) {
    for kind in [AlarmKind::NoSpace, AlarmKind::Corrupt] {
        draft.overlay.remove(Table::Members, key(id, kind));
    }
    draft.alarms = None;
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
        Command::Txn(request) => puts(request),
        Command::Delete(_)
        | Command::Compact { .. }
        | Command::LeaseRevoke { .. }
        | Command::LeaseExpire { .. }
        | Command::MemberUpdate(_)
        | Command::TokenSet { .. }
        | Command::Noop
        | Command::Auth(_)
        | Command::Alarm(_)
        | Command::As { .. } => false,
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
        | Command::LeaseGrant { .. }
        | Command::LeaseRevoke { .. }
        | Command::LeaseExpire { .. } => true,
        Command::MemberUpdate(_)
        | Command::TokenSet { .. }
        | Command::Noop
        | Command::Auth(_)
        | Command::Alarm(_)
        | Command::As { .. } => false,
    }
}
