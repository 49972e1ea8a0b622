//! What the leader checks before it proposes a membership change, and when it makes a learner a
//! voter by itself.
//!
//! A change that the group would not survive is refused before it gets into the log.

use std::time::Duration;

use crate::error::{Error, NotDone, Refusal};
use crate::limits;
use crate::raft::Status;
use crate::types::{ConfChange, Index, Member, MemberRecord, MemberRole, NodeId};

/// A learner whose log ends this close to what is committed has caught up.
pub const CAUGHT_UP_WITHIN: Index = 256;

/// A voter that has not been heard of for so long does not answer.
pub const SILENCE: Duration = Duration::from_secs(2);

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::raft::{Progress, Role, Sending};
    use crate::types::ConfState;

    const ME: NodeId = NodeId(1);

    fn record(id: u64) -> MemberRecord {
        MemberRecord {
            id: NodeId(id),
            name: format!("m{id}"),
            addr: format!("h{id}:1"),
            ..Default::default()
        }
    }

    fn members(voters: &[u64], learners: &[u64]) -> Vec<Member> {
        let all = |ids: &[u64], role| {
            let member = move |id: &u64| Member { record: record(*id), role };
            ids.iter().map(member).collect::<Vec<_>>()
        };
        [all(voters, MemberRole::Voter), all(learners, MemberRole::Learner)].concat()
    }

    /// The leader's view: who answers, and how far it is.
    fn status(commit: Index, others: &[(u64, bool, Index)]) -> Status {
        let progress: BTreeMap<_, _> = others
            .iter()
            .map(|&(id, recent_active, matched)| {
                (NodeId(id), Progress { matched, recent_active, sending: Sending::Replicate })
            })
            .collect();
        Status {
            id: ME,
            role: Role::Leader,
            term: 2,
            leader: Some(ME),
            commit,
            handed: commit,
            applied: commit,
            first_index: 1,
            last_index: commit,
            persisted: commit,
            transfer_to: None,
            conf: ConfState::default(),
            progress,
        }
    }

    #[test]
    fn removals_that_the_group_survives() {
        let check = |id: u64, voters: &[u64], learners: &[u64], alive: &[u64], expect: Result<(), &str>| {
            let others: Vec<_> = voters.iter().map(|voter| (*voter, alive.contains(voter), 9)).collect();
            let change = ConfChange::Remove(NodeId(id));
            let got = self::check(&change, &members(voters, learners), &status(9, &others), ME);
            match (&got, expect) {
                (Ok(()), Ok(())) => {}
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                _ => panic!("{id} of {voters:?} with {alive:?}: {got:?}"),
            }
        };
        check(3, &[1, 2, 3], &[], &[2, 3], Ok(()));
        check(3, &[1, 2, 3], &[], &[2], Ok(()));
        check(3, &[1, 2, 3], &[], &[3], Err("no majority"));
        check(2, &[1, 2], &[], &[], Ok(()));
        check(1, &[1], &[], &[], Err("last voter"));
        check(1, &[1], &[2], &[2], Err("last voter"));
        check(2, &[1], &[2], &[], Ok(()));
        check(1, &[1, 2, 3], &[], &[2, 3], Err("leadership moved"));
        check(1, &[1, 2, 3], &[], &[2], Err("no majority"));
        check(9, &[1, 2, 3], &[], &[2, 3], Err("no member has the id"));
        check(5, &[1, 2, 3, 4, 5], &[], &[2], Err("only 2 of the 4"));
    }

    #[test]
    fn only_who_has_caught_up_is_promoted() {
        let check = |active: bool, matched: Index, expect: bool| {
            let all = members(&[1], &[2]);
            let status = status(1_000, &[(2, active, matched)]);
            let change = ConfChange::Promote(NodeId(2));
            assert_eq!(to_promote(&all, &status), expect.then_some(NodeId(2)), "{active} {matched}");
            assert_eq!(self::check(&change, &all, &status, ME).is_ok(), expect);
        };
        check(true, 1_000, true);
        check(true, 1_000 - CAUGHT_UP_WITHIN, true);
        check(true, 999 - CAUGHT_UP_WITHIN, false);
        check(true, 0, false);
        check(false, 1_000, false);
        let none = status(10, &[]);
        assert_eq!(to_promote(&members(&[1], &[2]), &none), None);
        // A young log: nothing acknowledged is not caught up.
        assert_eq!(to_promote(&members(&[1], &[2]), &status(5, &[(2, true, 0)])), None);
        let voter = self::check(&ConfChange::Promote(ME), &members(&[1], &[]), &none, ME);
        assert!(voter.unwrap_err().to_string().contains("voter already"));
    }

    #[test]
    fn names_and_addresses_belong_to_one() {
        let check = |id: u64, name: &str, addr: &str, expect: Option<&str>| {
            let record =
                MemberRecord { id: NodeId(id), name: name.into(), addr: addr.into(), ..Default::default() };
            let got =
                self::check(&ConfChange::AddLearner(record), &members(&[1, 2], &[3]), &status(1, &[]), ME);
            let text = got.err().map(|error| error.to_string());
            assert_eq!(text.is_some(), expect.is_some(), "{text:?}");
            assert!(text.unwrap_or_default().contains(expect.unwrap_or_default()));
        };
        check(4, "m4", "h4:1", None);
        check(4, "m3", "h4:1", Some("name"));
        check(4, "m4", "h1:1", Some("address"));
        // The same node again, after a join that was cut short.
        check(3, "m3", "h3:1", None);
        let full: Vec<u64> = (1..=limits::MAX_MEMBERS as u64).collect();
        let got = self::check(&ConfChange::AddLearner(record(99)), &members(&full, &[]), &status(1, &[]), ME);
        assert_eq!(got, Err(Refusal::TooManyMembers { max: limits::MAX_MEMBERS as u64 }.into()));
        assert!(self::check(&ConfChange::LeaveJoint, &members(&[1], &[]), &status(1, &[]), ME).is_err());
    }
}
