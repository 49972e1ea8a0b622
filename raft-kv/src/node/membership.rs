//! What the leader checks before it proposes a membership change, and when it makes a learner a
//! voter by itself.
//!
//! A change that the group would not survive is refused before it gets into the log.

use crate::error::{Error, NotDone, Refusal};
use crate::limits;
use crate::raft::Status;
use crate::types::{ConfChange, Index, Member, MemberRecord, MemberRole, NodeId};

/// A learner whose log ends this close to what is committed has caught up.
pub const CAUGHT_UP_WITHIN: Index = 256;

/// Checks `change` against the members and their state as the leader sees them.
pub fn check(change: &ConfChange, members: &[Member], status: &Status, me: NodeId) -> Result<(), Error> {
    let find = |id: NodeId| members.iter().find(|member| member.record.id == id);
    match change {
        ConfChange::AddLearner(record) => check_record(record, members).map_err(Error::Refused),
        ConfChange::Promote(id) => {
            let member = find(*id).ok_or(Refusal::MemberNotFound { id: *id })?;
            if member.role == MemberRole::Voter {
                return Err(Refusal::MemberUnfit { id: *id, why: "is a voter already".into() }.into());
            }
            if !caught_up(status, *id) {
                let why = "has not caught up yet; it is promoted by itself as soon as it has".into();
                return Err(Refusal::MemberUnfit { id: *id, why }.into());
            }
            Ok(())
        }
        ConfChange::Remove(id) => {
            let member = find(*id).ok_or(Refusal::MemberNotFound { id: *id })?;
            if member.role == MemberRole::Learner {
                return Ok(());
            }
            check_removal(*id, members, status, me)
        }
        ConfChange::LeaveJoint => Err(Refusal::invalid("change", "raft ends joint changes by itself").into()),
    }
}

fn check_record(record: &MemberRecord, members: &[Member]) -> Result<(), Refusal> {
    for member in members.iter().filter(|member| member.record.id != record.id) {
        let owner = member.record.id;
        if member.record.name == record.name {
            return Err(Refusal::MemberTaken { field: "name".into(), value: record.name.clone(), owner });
        }
        if member.record.addr == record.addr {
            return Err(Refusal::MemberTaken { field: "address".into(), value: record.addr.clone(), owner });
        }
    }
    let known = members.iter().any(|member| member.record.id == record.id);
    if !known && members.len() >= limits::MAX_MEMBERS {
        return Err(Refusal::TooManyMembers { max: limits::MAX_MEMBERS as u64 });
    }
    Ok(())
}

fn check_removal(id: NodeId, members: &[Member], status: &Status, me: NodeId) -> Result<(), Error> {
    let voters = members.iter().filter(|member| member.role == MemberRole::Voter);
    let others: Vec<NodeId> = voters.map(|member| member.record.id).filter(|voter| *voter != id).collect();
    if others.is_empty() {
        let why = "it is the last voter; add another member first, or stop the process".into();
        return Err(Refusal::MemberNeeded { id, why }.into());
    }
    let active = others.iter().filter(|voter| **voter == me || is_active(status, **voter)).count();
    if active < others.len() / 2 + 1 {
        let why = format!(
            "only {active} of the {} other voters answer, which is no majority; bring them back first",
            others.len()
        );
        return Err(Refusal::MemberNeeded { id, why }.into());
    }
    if id == me {
        // The leader hands over first; the caller's node asks the next leader by itself.
        return Err(Error::NotDone(NotDone::NotLeader));
    }
    Ok(())
}

fn is_active(status: &Status, id: NodeId) -> bool {
    status.progress.get(&id).is_some_and(|progress| progress.recent_active)
}

/// Whether the follower's log ends close to what is committed.
pub fn caught_up(status: &Status, id: NodeId) -> bool {
    let close = |matched: Index| matched > 0 && matched + CAUGHT_UP_WITHIN >= status.commit;
    status.progress.get(&id).is_some_and(|progress| progress.recent_active && close(progress.matched))
}

/// The learner to be made a voter now, if any has caught up.
pub fn to_promote(members: &[Member], status: &Status) -> Option<NodeId> {
    let learners = members.iter().filter(|member| member.role == MemberRole::Learner);
    learners.map(|member| member.record.id).find(|id| caught_up(status, *id))
}
