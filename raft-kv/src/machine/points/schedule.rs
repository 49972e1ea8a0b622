//! Points that come and go by time: schedules and expiries. The leader says what time it is, in an
//! entry; what is due by it is decided here, so that two leaders who say the same do it once.

use time::OffsetDateTime;

use super::records::{self, has_room, list, schedule_key, schedules};
use crate::error::{Refusal, StorageFailed};
use crate::limits::MAX_SCHEDULES;
use crate::machine::draft::Draft;
use crate::machine::format::load;
use crate::machine::stop::Stop;
use crate::machine::store::{Read, Table};
use crate::types::{PointOrigin, PointReply, PointSchedule, RollbackPoint, ScheduleStatus};

/// Whether a [`Tidy`](crate::types::PointChange::Tidy) at this time would change anything.
pub fn due(view: &dyn Read, now: i64) -> Result<bool, StorageFailed> {
    let expired = list(view)?.iter().any(|point| has_expired(point, now));
    Ok(expired || schedules(view)?.iter().any(|status| is_due(status, now)))
}

fn has_expired(point: &RollbackPoint, now: i64) -> bool {
    point.expires.is_some_and(|expires| expires <= now)
}

fn is_due(status: &ScheduleStatus, now: i64) -> bool {
    let Some(last) = status.last else { return true };
    let every = i64::try_from(status.schedule.every).unwrap_or(i64::MAX).saturating_mul(1000);
    // A clock that was far ahead and is not any more must not stop a schedule for long.
    now >= last.saturating_add(every) || last > now.saturating_add(every)
}

/// Sets a schedule; one of the same name goes on from its last point.
pub(super) fn set(draft: &mut Draft, schedule: &PointSchedule) -> Result<PointReply, Stop> {
    let before: Option<ScheduleStatus> = load(draft.view(), Table::Points, &schedule_key(&schedule.name))?;
    if before.is_none() && schedules(draft.view())?.len() >= MAX_SCHEDULES {
        let why = format!("there are {MAX_SCHEDULES}, which is the limit; remove one first");
        return Err(Refusal::invalid("schedules", why).into());
    }
    let status = ScheduleStatus { schedule: schedule.clone(), last: before.and_then(|before| before.last) };
    draft.overlay.put(Table::Points, schedule_key(&schedule.name), &status);
    Ok(PointReply::Done)
}

/// Ends a schedule.
pub(super) fn remove(draft: &mut Draft, name: &str) -> Result<PointReply, Stop> {
    if load::<ScheduleStatus>(draft.view(), Table::Points, &schedule_key(name))?.is_none() {
        let why =
            format!("no schedule has the name {name:?}; `raft-kv rollback-point schedule ls` lists them");
        return Err(Refusal::invalid("schedule", why).into());
    }
    draft.overlay.remove(Table::Points, schedule_key(name));
    Ok(PointReply::Done)
}

/// Removes what has expired and makes what is due.
pub(super) fn tidy(draft: &mut Draft, now: i64) -> Result<PointReply, Stop> {
    for point in list(draft.view())?.iter().filter(|point| has_expired(point, now)) {
        records::remove(draft, &point.name)?;
    }
    for status in schedules(draft.view())?.into_iter().filter(|status| is_due(status, now)) {
        run(draft, status.schedule, now)?;
    }
    Ok(PointReply::Done)
}

/// Makes a schedule's next point and removes those that it keeps no more. Where the name is taken or
/// there is no room, this one is left out: the next is due in its time.
fn run(draft: &mut Draft, schedule: PointSchedule, now: i64) -> Result<(), Stop> {
    let name = format!("{}-{}", schedule.name, stamp(now));
    if records::point(draft.view(), &name)?.is_none() && has_room(draft.view())? {
        let point = RollbackPoint {
            name,
            revision: draft.revision,
            created: now,
            expires: None,
            author: String::new(),
            comment: String::new(),
            origin: PointOrigin::Schedule { name: schedule.name.clone() },
        };
        records::put(draft, &point);
    }
    let ours = |point: &RollbackPoint| matches!(&point.origin, PointOrigin::Schedule { name } if *name == schedule.name);
    let mut made: Vec<RollbackPoint> = list(draft.view())?.into_iter().filter(ours).collect();
    made.sort_by(|one, other| {
        (one.revision, one.created, &one.name).cmp(&(other.revision, other.created, &other.name))
    });
    let too_many = made.len().saturating_sub(schedule.keep as usize);
    for point in made.into_iter().take(too_many) {
        records::remove(draft, &point.name)?;
    }
    let key = schedule_key(&schedule.name);
    draft.overlay.put(Table::Points, key, &ScheduleStatus { schedule, last: Some(now) });
    Ok(())
}

/// A time for people, in a word: `20261122T100000Z`.
fn stamp(millis: i64) -> String {
    let Ok(at) = OffsetDateTime::from_unix_timestamp(millis / 1000) else { return millis.to_string() };
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    format!("{year:04}{:02}{day:02}T{hour:02}{minute:02}{second:02}Z", u8::from(month))
}
