//! Alarms: what is wrong with a member, known to all, and what may not be done meanwhile.
//!
//! While space is short, nothing that needs more of it is taken; what frees it is. Space is short while
//! somebody says so by hand (as etcd's alarm), or while a voter says that its disk is: members raise and
//! end that alarm themselves, and neither kind ends the other. While a state is corrupt, nothing that
//! reads or changes keys is believed; ending an alarm always works.

use super::command::{Answer, Command};
use super::draft::Draft;
use super::format::{load, load_meta, member_key, meta};
use super::stop::{Settled, Stop, settle};
use super::store::{Read, Table};
use crate::error::{Refusal, StorageFailed};
use crate::planted;
use crate::types::{
    AlarmKind, AlarmRequest, ConfState, MemberRecord, NodeId, PointChange, SnapshotMeta, TxnOp, TxnRequest,
};

/// The one record of all alarms in [`Table::Members`], behind members and removed ones: a read asks
/// for it with one look. At most three for each member.
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
    (draft.alarms, draft.alarms_changed) = (None, true);
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
        None => *draft.alarms.insert(Raised::of(draft.view(), &draft.conf)?),
    };
    let forbidden = if raised.corrupt && touches_keys(command) {
        Some(AlarmKind::Corrupt)
    } else {
        raised.short().filter(|_| needs_space(command))
    };
    match forbidden {
        Some(kind) => Err(Refusal::Alarmed { kind }.into()),
        None => Ok(()),
    }
}

/// Refuses a rollback that makes the state larger while a disk is short.
pub fn check_growth(draft: &Draft) -> Result<(), Stop> {
    match draft.alarms.is_some_and(|raised| raised.disk_short) {
        true => Err(Refusal::Alarmed { kind: AlarmKind::DiskShort }.into()),
        false => Ok(()),
    }
}

/// Whether an alarm forbids what needs space.
pub fn short(view: &dyn Read) -> Result<bool, StorageFailed> {
    let applied: SnapshotMeta = load_meta(view, meta::APPLIED)?;
    Ok(Raised::of(view, &applied.conf)?.short().is_some())
}

/// Refuses a linearizable read while a state is corrupt.
pub fn check_read(view: &dyn Read) -> Settled<()> {
    let check = || match alarms(view)?.iter().any(|(_, kind)| *kind == AlarmKind::Corrupt) {
        true => Err(Refusal::Alarmed { kind: AlarmKind::Corrupt }.into()),
        false => Ok(()),
    };
    settle(check())
}

/// Which kinds are raised: for whatever member, or for a voter, as the kind has it.
#[derive(Clone, Copy, Default)]
pub struct Raised {
    no_space: bool,
    corrupt: bool,
    disk_short: bool,
}

impl Raised {
    fn of(view: &dyn Read, conf: &ConfState) -> Result<Self, StorageFailed> {
        let alarms = alarms(view)?;
        let any = |kind| alarms.iter().any(|(_, raised)| *raised == kind);
        // Who only learns is not waited for: its disk is its own matter.
        let votes = |id| conf.voters.contains(id) || conf.voters_outgoing.contains(id);
        Ok(Self {
            no_space: any(AlarmKind::NoSpace),
            corrupt: any(AlarmKind::Corrupt),
            disk_short: alarms.iter().any(|(id, kind)| *kind == AlarmKind::DiskShort && votes(id)),
        })
    }

    /// Why nothing that needs space is taken, if that is so.
    fn short(&self) -> Option<AlarmKind> {
        if self.no_space && !planted!(IgnoreNoSpace) {
            return Some(AlarmKind::NoSpace);
        }
        (self.disk_short && !planted!(IgnoreDiskShort)).then_some(AlarmKind::DiskShort)
    }
}

/// Whether it may take space that later requests do not give back by themselves.
pub fn needs_space(command: &Command) -> bool {
    match command {
        Command::Put(_) | Command::LeaseGrant { .. } => true,
        // What a new point pins can't be freed; a rollback may well free.
        Command::Point(change) => matches!(change, PointChange::Create { .. }),
        Command::Txn(request) => puts(request),
        Command::Delete(_)
        | Command::Compact { .. }
        | Command::Seen { .. }
        | Command::RaiseRevision { .. }
        | Command::LeaseRevoke { .. }
        | Command::LeaseExpire { .. }
        | Command::MemberUpdate(_)
        | Command::Trust(_)
        | Command::Noop
        | Command::Auth(_)
        | Command::Alarm(_)
        | Command::Quota { .. }
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
        | Command::Seen { .. }
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
        | Command::Quota { .. }
        | Command::As { .. }
        | Command::From { .. } => false,
    }
}
