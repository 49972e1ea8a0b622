//! The newest run of each member's log that the group has seen: a directory that comes back with an older
//! one is an older copy of itself.
//!
//! Each opening of a log has a number above all before it (docs/disk.md), and the leader records it when it
//! hears of it. A record never goes back, and goes with its member.

use super::command::Answer;
use super::draft::Draft;
use super::format::{load, member_key};
use super::stop::Stop;
use super::store::{Read, Table};
use crate::error::{Refusal, StorageFailed};
use crate::types::{MemberRecord, NodeId, Run};

/// The one record of all runs in [`Table::Members`], behind members and alarms.
const KEY: &[u8] = &[3];

/// The newest run seen of each member, by id.
pub fn runs(view: &dyn Read) -> Result<Vec<(NodeId, Run)>, StorageFailed> {
    Ok(load(view, Table::Members, KEY)?.unwrap_or_default())
}

fn store(draft: &mut Draft, runs: &[(NodeId, Run)]) {
    match runs {
        [] => draft.overlay.remove(Table::Members, KEY),
        some => draft.overlay.put(Table::Members, KEY, &some.to_vec()),
    }
    draft.runs_changed = true;
}

/// Records that a member runs; a run that is not above the recorded one changes nothing.
pub fn seen(draft: &mut Draft, id: NodeId, run: Run) -> Result<Answer, Stop> {
    if load::<MemberRecord>(draft.view(), Table::Members, &member_key(id))?.is_none() {
        return Err(Refusal::MemberNotFound { id }.into());
    }
    let mut runs = runs(draft.view())?;
    match runs.binary_search_by_key(&id, |(id, _)| *id) {
        Ok(at) if runs[at].1.number >= run.number => return Ok(Answer::Done),
        Ok(at) => runs[at].1 = run,
        Err(at) => runs.insert(at, (id, run)),
    }
    store(draft, &runs);
    Ok(Answer::Done)
}

/// Forgets a member that is one no more.
pub fn forget(draft: &mut Draft, id: NodeId) -> Result<(), StorageFailed> {
    let mut runs = runs(draft.view())?;
    let before = runs.len();
    runs.retain(|(member, _)| *member != id);
    if runs.len() != before {
        store(draft, &runs);
    }
    Ok(())
}
