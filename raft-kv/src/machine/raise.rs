//! Raising the revision, for a store that takes the place of another: whoever watched or listed
//! the other one must never take this one's history for the rest of what they know.
//!
//! The new revision has no events, and everything below it counts as compacted. So a watch or a
//! paged list that goes on from an older revision is told so and starts anew. Rollback points would keep
//! older revisions readable: they go too. It must never lower
//! the revision, nor leave an older one readable.

use super::command::Answer;
use super::draft::Draft;
use super::format::meta;
use super::points;
use super::stop::Stop;
use super::store::Table;
use crate::planted;
use crate::types::Revision;

/// Makes the revision at least `to` and forgets all history. [`validate`](super::validate()) has
/// passed.
pub fn raise(draft: &mut Draft, to: Revision) -> Result<Answer, Stop> {
    draft.revision = draft.revision.max(to);
    if planted!(RaiseUncompacted) {
        return Ok(Answer::Done);
    }
    points::forget_all(draft)?;
    draft.used.forget_peak();
    draft.compacted = draft.revision;
    draft.overlay.put(Table::Meta, meta::COMPACTED, &draft.compacted);
    Ok(Answer::Done)
}
