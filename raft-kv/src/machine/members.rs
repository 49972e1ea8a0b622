//! The members' records beside raft's configuration.
//!
//! Raft decides who is a member: a committed change can't be refused here any more, so
//! [`admit`] must have passed before it is proposed. An id that was removed never comes back.

use std::collections::BTreeSet;

use super::command::Answer;
use super::draft::Draft;
use super::format::{decode, load, load_meta, member_key, members_end, meta};
use super::stop::Stop;
use super::store::{Read, Table};
use super::{alarm, runs, trust};
use crate::error::{Refusal, StorageFailed};
use crate::limits::MAX_MEMBERS;
use crate::types::{ConfChange, ConfState, Member, MemberRecord, MemberRole, NodeId, SnapshotMeta};

/// Everyone the configuration names, in whatever part.
fn ids(conf: &ConfState) -> BTreeSet<NodeId> {
    [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next]
        .into_iter()
        .flatten()
        .copied()
        .collect()
}

/// The records as they are stored, by id.
pub fn records(view: &dyn Read) -> Result<Vec<MemberRecord>, StorageFailed> {
    let (from, to) = (member_key(NodeId(0)), members_end());
    view.scan(Table::Members, &from, Some(&to)).map(|pair| decode(Table::Members, pair?.1)).collect()
}

/// The members of `conf`, by id.
pub fn list(view: &dyn Read, conf: &ConfState) -> Result<Vec<Member>, StorageFailed> {
    let role = |id: NodeId| {
        let votes = conf.voters.contains(&id) || conf.voters_outgoing.contains(&id);
        if votes { MemberRole::Voter } else { MemberRole::Learner }
    };
    let members = records(view)?;
    Ok(members.into_iter().map(|record| Member { role: role(record.id), record }).collect())
}

/// Whether the group names it.
pub fn is_member(view: &dyn Read, id: NodeId) -> Result<bool, StorageFailed> {
    Ok(view.get(Table::Members, &member_key(id))?.is_some())
}

/// Whether the id belonged to a node that was removed and whose certificate may still be valid.
pub fn removed(view: &dyn Read, id: NodeId) -> Result<bool, StorageFailed> {
    Ok(trust::revocation(view, id)?.is_some())
}

/// Takes on the configuration `after` that raft has made of `change`.
pub fn config(draft: &mut Draft, change: &ConfChange, after: ConfState) -> Result<Answer, Stop> {
    if let ConfChange::AddLearner(record) = change {
        draft.overlay.put(Table::Members, member_key(record.id), record);
    }
    draft.conf = after;
    let present = ids(&draft.conf);
    for record in records(draft.view())? {
        if !present.contains(&record.id) {
            draft.overlay.remove(Table::Members, member_key(record.id));
            trust::member_left(draft, record.id, &record.name)?;
            alarm::forget(draft, record.id)?;
            runs::forget(draft, record.id)?;
        }
    }
    draft.members_changed = true;
    Ok(Answer::Members(list(draft.view(), &draft.conf)?))
}

/// Changes a member's name or address.
pub fn update(draft: &mut Draft, record: &MemberRecord) -> Result<Answer, Stop> {
    if load::<MemberRecord>(draft.view(), Table::Members, &member_key(record.id))?.is_none() {
        return Err(Refusal::MemberNotFound { id: record.id }.into());
    }
    check_free(draft.view(), record)?;
    draft.overlay.put(Table::Members, member_key(record.id), record);
    draft.members_changed = true;
    Ok(Answer::Members(list(draft.view(), &draft.conf)?))
}

/// Refuses a name or an address that another member has.
fn check_free(view: &dyn Read, record: &MemberRecord) -> Result<(), Stop> {
    for other in records(view)?.into_iter().filter(|other| other.id != record.id) {
        let taken = |field: &str, value: &str| Refusal::MemberTaken {
            field: field.into(),
            value: value.into(),
            owner: other.id,
        };
        if other.name == record.name {
            return Err(taken("name", &record.name).into());
        }
        if other.addr == record.addr {
            return Err(taken("address", &record.addr).into());
        }
    }
    Ok(())
}

/// Refuses a membership change that the records do not allow. To be asked before it is
/// proposed, on a state that contains every earlier change.
pub fn admit(view: &dyn Read, change: &ConfChange) -> Result<(), Stop> {
    let applied: SnapshotMeta = load_meta(view, meta::APPLIED)?;
    let conf = applied.conf;
    let known = ids(&conf);
    match change {
        ConfChange::AddLearner(record) => {
            super::validate::member(record)?;
            if removed(view, record.id)? {
                let why =
                    "was removed, and an id is never used again; empty its data directory and join anew";
                return Err(Refusal::MemberUnfit { id: record.id, why: why.into() }.into());
            }
            if conf.voters.contains(&record.id) || conf.voters_outgoing.contains(&record.id) {
                let why = "is a voter already; use `raft-kv member update` to change its record";
                return Err(Refusal::MemberUnfit { id: record.id, why: why.into() }.into());
            }
            if !known.contains(&record.id) && known.len() >= MAX_MEMBERS {
                return Err(Refusal::TooManyMembers { max: MAX_MEMBERS as u64 }.into());
            }
            check_free(view, record)
        }
        ConfChange::Promote(id) | ConfChange::Remove(id) if !known.contains(id) => {
            Err(Refusal::MemberNotFound { id: *id }.into())
        }
        ConfChange::Promote(id) if !conf.learners.contains(id) => {
            let why = "is not a learner; only a learner can be promoted";
            Err(Refusal::MemberUnfit { id: *id, why: why.into() }.into())
        }
        ConfChange::Remove(id) if conf.voters.as_slice() == [*id] => {
            let why = "it is the only voter; promote another member first";
            Err(Refusal::MemberNeeded { id: *id, why: why.into() }.into())
        }
        ConfChange::Promote(_) | ConfChange::Remove(_) | ConfChange::LeaveJoint => Ok(()),
    }
}
