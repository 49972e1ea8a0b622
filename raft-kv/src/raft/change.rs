//! Membership changes: what fits the configuration in force, and our words as raft's.
//!
//! raft's own encoding of a change is written for raft's check at the proposal and never read
//! back: a committed change is rebuilt from our [`ConfProposal`] beside it.

use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};

use super::adapter::is_in;
use crate::codec::{Malformed, Wire, malformed};
use crate::error::Refusal;
use crate::limits::MAX_MEMBERS;
use crate::types::{Committed, ConfChange, ConfProposal, ConfState, Entry, EntryKind, NodeId, Payload};

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

/// An entry as the state machine takes it, with the configuration followed: for who carries entries out
/// where no consensus runs. One change at a time is all there is (joint changes end at once), and what does
/// not fit changes nothing, as in the core.
pub fn committed(entry: &Entry, conf: &mut ConfState) -> Result<Committed, Malformed> {
    let payload = match entry.kind {
        EntryKind::Normal => Payload::Proposals(entry.data.clone()),
        EntryKind::Config => {
            let ConfProposal { change, request } = of_entry(entry)?;
            if fits(&change, conf).is_ok() {
                *conf = after(&change, conf);
            }
            Payload::Config { change, request, after: conf.clone() }
        }
    };
    Ok(Committed { index: entry.index, term: entry.term, payload })
}

/// What `change`, which fits, makes of `conf`.
fn after(change: &ConfChange, conf: &ConfState) -> ConfState {
    let mut after = conf.clone();
    let without = |all: &mut Vec<NodeId>, id: NodeId| all.retain(|other| *other != id);
    let with = |all: &mut Vec<NodeId>, id: NodeId| {
        if let Err(at) = all.binary_search(&id) {
            all.insert(at, id);
        }
    };
    match change {
        ConfChange::AddLearner(record) => with(&mut after.learners, record.id),
        ConfChange::Promote(id) => {
            without(&mut after.learners, *id);
            with(&mut after.voters, *id);
        }
        ConfChange::Remove(id) => {
            without(&mut after.learners, *id);
            without(&mut after.voters, *id);
        }
        ConfChange::LeaveJoint => {
            after.voters_outgoing.clear();
            for id in std::mem::take(&mut after.learners_next) {
                with(&mut after.learners, id);
            }
            after.auto_leave = false;
        }
    }
    after
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use raft::{Changer, ProgressTracker};

    use super::super::adapter::conf_from_raft;
    use super::*;
    use crate::codec::Wire;
    use crate::types::MemberRecord;

    fn change() -> impl Strategy<Value = ConfChange> {
        (0..3u8, 1..6u64).prop_map(|(kind, id)| match kind {
            0 => ConfChange::AddLearner(MemberRecord { id: NodeId(id), ..MemberRecord::default() }),
            1 => ConfChange::Promote(NodeId(id)),
            _ => ConfChange::Remove(NodeId(id)),
        })
    }

    fn entry(index: u64, change: &ConfChange) -> Entry {
        let proposal = ConfProposal { change: change.clone(), request: None };
        let (kind, context) = (EntryKind::Config, proposal.to_bytes());
        Entry { index, term: 1, kind, data: bytes::Bytes::new(), context }
    }

    proptest! {
        /// Who carries entries out by hand ends with the configuration that raft has.
        #[test]
        fn the_configuration_is_followed_as_raft_does(changes in proptest::collection::vec(change(), 0..40)) {
            let mut tracker = ProgressTracker::new(16);
            let take = |tracker: &mut ProgressTracker, change: &ConfChange| {
                let raw = to_raft(change);
                let (conf, changes) = Changer::new(tracker).simple(raw.get_changes()).unwrap();
                tracker.apply_conf(conf, changes, 1);
            };
            take(&mut tracker, &ConfChange::Promote(NodeId(1)));
            let mut conf = ConfState { voters: vec![NodeId(1)], ..ConfState::default() };
            for (index, change) in changes.iter().enumerate() {
                let fits = fits(change, &conf).is_ok();
                let done = committed(&entry(index as u64 + 1, change), &mut conf).unwrap();
                if fits {
                    take(&mut tracker, change);
                }
                let raw = conf_from_raft(&tracker.conf().to_conf_state());
                prop_assert_eq!(&conf, &raw);
                let expect = Payload::Config { change: change.clone(), request: None, after: raw };
                prop_assert_eq!(done.payload, expect);
            }
        }
    }
}
