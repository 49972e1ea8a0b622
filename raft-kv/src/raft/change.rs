//! Membership changes: what fits the configuration in force, and our words as raft's.
//!
//! raft's own encoding of a change is written for raft's check at the proposal and never read
//! back: a committed change is rebuilt from our [`ConfProposal`] beside it.

use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};

use super::adapter::is_in;
use crate::codec::{Malformed, Wire, malformed};
use crate::error::Refusal;
use crate::limits::MAX_MEMBERS;
use crate::types::{ConfChange, ConfProposal, ConfState, Entry, EntryKind, NodeId};

/// Whether `change` makes sense on top of `conf`.
pub(super) fn fits(change: &ConfChange, conf: &ConfState) -> Result<(), Refusal> {
    let unfit = |id: NodeId, why: &str| Err(Refusal::MemberUnfit { id, why: why.into() });
    let votes = |id: &NodeId| conf.voters.contains(id) || conf.voters_outgoing.contains(id);
    match change {
        ConfChange::AddLearner(record) if record.id == NodeId(0) => {
            Err(Refusal::invalid("member id", "it is 0; draw one at random"))
        }
        ConfChange::AddLearner(record) if votes(&record.id) => {
            unfit(record.id, "votes already and can't become a learner; remove it and add it under a new id")
        }
        ConfChange::AddLearner(record) => {
            let members = conf.voters.len() + conf.learners.len();
            if !is_in(conf, record.id) && members >= MAX_MEMBERS {
                return Err(Refusal::TooManyMembers { max: MAX_MEMBERS as u64 });
            }
            Ok(())
        }
        ConfChange::Promote(id) if !is_in(conf, *id) => Err(Refusal::MemberNotFound { id: *id }),
        ConfChange::Promote(id) if !conf.learners.contains(id) => {
            unfit(*id, "is no learner; it votes already")
        }
        ConfChange::Promote(_) => Ok(()),
        ConfChange::Remove(id) if !is_in(conf, *id) => Err(Refusal::MemberNotFound { id: *id }),
        ConfChange::Remove(id) if conf.voters == [*id] => {
            Err(Refusal::MemberNeeded { id: *id, why: "it is the only voter; add another first".into() })
        }
        ConfChange::Remove(_) => Ok(()),
        ConfChange::LeaveJoint if conf.voters_outgoing.is_empty() => {
            Err(Refusal::invalid("membership change", "no joint change is under way"))
        }
        ConfChange::LeaveJoint => Ok(()),
    }
}

/// `change` in raft's words. One change at a time needs no joint configuration.
pub(super) fn to_raft(change: &ConfChange) -> ConfChangeV2 {
    let (id, kind) = match change {
        ConfChange::AddLearner(record) => (record.id, ConfChangeType::AddLearnerNode),
        ConfChange::Promote(id) => (*id, ConfChangeType::AddNode),
        ConfChange::Remove(id) => (*id, ConfChangeType::RemoveNode),
        ConfChange::LeaveJoint => return ConfChangeV2::default(),
    };
    let mut single = ConfChangeSingle::default();
    single.set_node_id(id.0);
    single.set_change_type(kind);
    let mut all = ConfChangeV2::default();
    all.set_changes(vec![single].into());
    all
}

/// What a configuration entry asks: our side of it, or the end of a joint change where raft made
/// the entry itself.
pub(super) fn of_entry(entry: &Entry) -> Result<ConfProposal, Malformed> {
    if entry.kind != EntryKind::Config {
        return malformed("a membership change is no configuration entry");
    }
    if entry.context.is_empty() {
        return Ok(ConfProposal { change: ConfChange::LeaveJoint, request: None });
    }
    ConfProposal::from_bytes(entry.context.clone())
}
