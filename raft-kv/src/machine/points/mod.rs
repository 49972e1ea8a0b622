//! Rollback points: named revisions that stay readable, what differs from one now, and going back.
//!
//! A point must keep every version that its revision can see, and none besides: [`pinned`] is the one
//! rule for it, which compaction, reads and checksums ask. What was changed since a point is found
//! in [`segments`], by key, at a cost of what changed and not of what is stored.

mod diff;
mod growth;
mod records;
mod rollback;
mod schedule;
mod segments;

pub use diff::diff;
pub use growth::growth;
pub use records::{list, pin_exists, pinned, pins, point, schedules};
pub use rollback::{begun, half, keys_of_lease, step};
pub use schedule::due;
pub use segments::{changed_key, sweep, sweep_waits};

use bytes::Bytes;

use super::command::Answer;
use super::draft::Draft;
use super::stop::Stop;
use super::validate::{key_len, text};
use crate::error::Refusal;
use crate::limits::{
    MAX_POINT_COMMENT_BYTES, MAX_POINT_NAME_BYTES, MAX_POINT_TIME, MAX_SCHEDULE_KEEP, MAX_SCHEDULE_SECONDS,
    MIN_SCHEDULE_SECONDS,
};
use crate::types::{PointChange, PointReply, PointSchedule, Revision, UNDO_PREFIX};

/// Carries out a change that fits one batch. Those that [go alone](super::Command::goes_alone) are
/// carried out by [`step`].
pub fn change(draft: &mut Draft, change: &PointChange) -> Result<Answer, Stop> {
    let reply = match change {
        PointChange::Create { .. } => PointReply::Created(records::create(draft, change)?),
        PointChange::Remove { name } => PointReply::Removed(records::remove(draft, name)?),
        PointChange::SetSchedule(schedule) => schedule::set(draft, schedule)?,
        PointChange::RemoveSchedule { name } => schedule::remove(draft, name)?,
        PointChange::Tidy { now } => schedule::tidy(draft, *now)?,
        PointChange::Rollback { .. } => {
            let why = "a rollback stands with other commands in one entry; it must go alone";
            return Err(Refusal::invalid("command", why).into());
        }
    };
    Ok(Answer::Point(reply))
}

/// History is given up: no point is left.
pub fn forget_all(draft: &mut Draft) -> Result<(), Stop> {
    for point in list(draft.view())? {
        records::remove(draft, &point.name)?;
    }
    Ok(())
}

/// Later revisions than `last` may be told otherwise elsewhere: no point shows one.
pub fn forget_after(draft: &mut Draft, last: Revision) -> Result<(), Stop> {
    for point in list(draft.view())?.into_iter().filter(|point| point.revision > last) {
        records::remove(draft, &point.name)?;
    }
    Ok(())
}

/// Refuses what is out of its bounds, whatever points there are.
pub fn validate(change: &PointChange) -> Result<(), Refusal> {
    match change {
        PointChange::Create { name, at, expires, author, comment, now } => {
            point_name("point name", name)?;
            if name.starts_with(UNDO_PREFIX) {
                let why =
                    format!("names that begin with {UNDO_PREFIX:?} are given by rollbacks; choose another");
                return Err(Refusal::invalid("point name", why));
            }
            if at.is_some_and(|at| at <= 0) {
                return Err(Refusal::invalid(
                    "revision",
                    "it is not positive; leave it out for the current one",
                ));
            }
            person(author)?;
            if comment.len() > MAX_POINT_COMMENT_BYTES || comment.chars().any(char::is_control) {
                let why = format!("it has control characters or more than {MAX_POINT_COMMENT_BYTES} bytes");
                return Err(Refusal::invalid("comment", why));
            }
            time("time", *now)?;
            match expires {
                Some(expires) if expires <= now => Err(Refusal::invalid("expiry", "it is not in the future")),
                Some(expires) => time("expiry", *expires),
                None => Ok(()),
            }
        }
        PointChange::SetSchedule(PointSchedule { name, every, keep }) => {
            point_name("schedule name", name)?;
            if !(MIN_SCHEDULE_SECONDS..=MAX_SCHEDULE_SECONDS).contains(every) {
                let why =
                    format!("{every} seconds are not from {MIN_SCHEDULE_SECONDS} to {MAX_SCHEDULE_SECONDS}");
                return Err(Refusal::invalid("interval", why));
            }
            if !(1..=MAX_SCHEDULE_KEEP).contains(keep) {
                let why = format!("{keep} is not from 1 to {MAX_SCHEDULE_KEEP}");
                return Err(Refusal::invalid("number of points to keep", why));
            }
            Ok(())
        }
        PointChange::Tidy { now } => time("time", *now),
        PointChange::Rollback { prefix, author, now, .. } => {
            key_len(prefix.as_ref().map_or(b"", |prefix| prefix))?;
            person(author)?;
            time("time", *now)
        }
        // An unknown name is answered from the state.
        PointChange::Remove { .. } | PointChange::RemoveSchedule { .. } => Ok(()),
    }
}

/// About how many bytes a change takes in a log entry; never far too few.
pub fn size(change: &PointChange) -> usize {
    match change {
        PointChange::Create { name, author, comment, .. } => name.len() + author.len() + comment.len(),
        PointChange::Remove { name } | PointChange::RemoveSchedule { name } => name.len(),
        PointChange::SetSchedule(schedule) => schedule.name.len(),
        PointChange::Tidy { .. } => 0,
        PointChange::Rollback { point, prefix, author, .. } => {
            point.len() + prefix.as_ref().map_or(0, Bytes::len) + author.len()
        }
    }
}

/// One word, so that it can stand on a command line and in a table.
fn point_name(field: &str, name: &str) -> Result<(), Refusal> {
    text(field, name, MAX_POINT_NAME_BYTES)?;
    if name.chars().any(char::is_whitespace) {
        return Err(Refusal::invalid(field, "it has spaces; leave them out"));
    }
    Ok(())
}

fn person(author: &str) -> Result<(), Refusal> {
    if author.is_empty() { Ok(()) } else { text("author", author, MAX_POINT_NAME_BYTES) }
}

fn time(field: &str, millis: i64) -> Result<(), Refusal> {
    if (0..=MAX_POINT_TIME).contains(&millis) {
        return Ok(());
    }
    Err(Refusal::invalid(field, "it is before 1970 or after 2500; it is given in milliseconds since 1970"))
}
