//! Rollback points by the log: a naive model is told every change of points in the log's order, and must
//! give every member's answer, every list at its index, and what each rollback was about.
//!
//! What a rollback does to keys is judged by [`super::witness`], with what is noted here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use time::OffsetDateTime;

use super::history::{Asked, Operation, Outcome};
use super::{Verdict, violation};
use crate::codec::Wire;
use crate::error::Refusal;
use crate::limits::MAX_UNDO_POINTS;
use crate::machine::command::Command;
use crate::machine::{self, Answer};
use crate::types::{
    Index, LeaseId, OnceId, PointChange, PointList, PointOrigin, PointReply, PointSchedule, RequestId,
    Revision, RollbackPoint, RolledBack, ScheduleStatus, UNDO_PREFIX, undo_name,
};

const CHECK: &str = "rollback points";

/// A rollback that was done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rolled {
    /// By which entry.
    pub index: Index,
    /// As it was asked for.
    pub change: PointChange,
    /// What it was answered.
    pub done: RolledBack,
    /// The leases that lived then.
    pub living: BTreeSet<LeaseId>,
}

impl Rolled {
    /// Whether it takes another one back.
    pub fn is_undo(&self) -> bool {
        matches!(&self.change, PointChange::Rollback { point, .. } if point.starts_with(UNDO_PREFIX))
    }
}

struct Asks {
    index: Index,
    once: Option<OnceId>,
    change: PointChange,
    outcome: Option<machine::Outcome>,
}

type Told = (Revision, Result<Answer, Refusal>);

/// All points and schedules, as they must be after each entry.
#[derive(Default)]
pub struct Points {
    asked: BTreeMap<RequestId, Asks>,
    kept: BTreeMap<OnceId, Told>,
    front: Index,
    points: BTreeMap<String, RollbackPoint>,
    schedules: BTreeMap<String, ScheduleStatus>,
    lists: BTreeMap<Index, PointList>,
    /// Rollbacks, in order; those among them that changed nothing.
    pub rolled: Vec<Rolled>,
}

impl Points {
    /// An entry was committed for the first time: what is asked in it, if it is about points.
    pub fn committed(&mut self, index: Index, proposal: &machine::Proposal) {
        if let Command::Point(change) = &proposal.command {
            let asks = Asks { index, once: proposal.once, change: change.clone(), outcome: None };
            self.asked.insert(proposal.request, asks);
        }
    }

    /// A member has applied entries up to `at`, with these outcomes.
    pub fn applied(
        &mut self,
        at: Index,
        outcomes: &[machine::Outcome],
        living: Option<&Vec<LeaseId>>,
    ) -> Verdict {
        for outcome in outcomes {
            let Some(asks) = self.asked.get_mut(&outcome.request) else { continue };
            match &asks.outcome {
                None => asks.outcome = Some(outcome.clone()),
                Some(known) if known == outcome => continue,
                Some(known) => {
                    let detail = format!("{known:?} at one member, {outcome:?} at another");
                    return violation("equal states", detail);
                }
            }
            if asks.index <= self.front {
                return violation(CHECK, format!("{outcome:?} was not seen when others applied it"));
            }
            let (index, once, change) = (asks.index, asks.once, asks.change.clone());
            self.told(index, once, change, outcome, living)?;
        }
        self.front = self.front.max(at);
        Ok(())
    }

    fn told(
        &mut self,
        index: Index,
        once: Option<OnceId>,
        change: PointChange,
        outcome: &machine::Outcome,
        living: Option<&Vec<LeaseId>>,
    ) -> Verdict {
        if let Some(once) = once {
            let told = (outcome.revision, outcome.result.clone());
            match self.kept.get(&once) {
                Some(kept) if *kept == told => return Ok(()),
                _ if matches!(outcome.result, Err(Refusal::OnceOvertaken { .. })) => return Ok(()),
                Some(kept) => {
                    return violation(CHECK, format!("{change:?} was answered {kept:?}, repeated {told:?}"));
                }
                None => drop(self.kept.insert(once, told)),
            }
        }
        let right = self.carry_out(&change, outcome);
        let same = match (&right, &outcome.result) {
            (Ok(right), Ok(Answer::Point(told))) => right == told,
            (Err(()), Err(_)) => true,
            // Whether an older revision can be read is judged where it is read.
            // Whether there is room is judged by what takes it.
            (Ok(_), Err(Refusal::Alarmed { .. })) => matches!(change, PointChange::Create { .. }),
            (Ok(_), Err(Refusal::Compacted { .. } | Refusal::FutureRevision { .. })) => {
                matches!(change, PointChange::Create { at: Some(_), .. })
            }
            _ => false,
        };
        if !same {
            return violation(CHECK, format!("{change:?} was told {outcome:?}, should be {right:?}"));
        }
        if let Ok(Answer::Point(reply)) = &outcome.result {
            self.take_on(&change, reply, outcome.revision);
            if let PointReply::RolledBack(done) = reply {
                let living = living.into_iter().flatten().copied().collect();
                self.rolled.push(Rolled { index, change, done: done.clone(), living });
            }
            self.lists.insert(index, self.list());
        }
        Ok(())
    }

    /// What the change should be answered; of a rollback its numbers are taken as they were told.
    fn carry_out(&self, change: &PointChange, outcome: &machine::Outcome) -> Result<PointReply, ()> {
        match change {
            PointChange::Create { name, at, expires, author, comment, now } => {
                if self.points.contains_key(name) {
                    return Err(());
                }
                Ok(PointReply::Created(RollbackPoint {
                    name: name.clone(),
                    revision: at.unwrap_or(outcome.revision),
                    created: *now,
                    expires: *expires,
                    author: author.clone(),
                    comment: comment.clone(),
                    origin: PointOrigin::Asked,
                }))
            }
            PointChange::Remove { name } => self.points.get(name).cloned().map(PointReply::Removed).ok_or(()),
            PointChange::SetSchedule(_) | PointChange::Tidy { .. } => Ok(PointReply::Done),
            PointChange::RemoveSchedule { name } => {
                if self.schedules.contains_key(name) {
                    Ok(PointReply::Done)
                } else {
                    Err(())
                }
            }
            PointChange::Rollback { point, .. } => {
                let to = self.points.get(point).ok_or(())?.revision;
                let Ok(Answer::Point(PointReply::RolledBack(told))) = &outcome.result else { return Err(()) };
                let undo = (told.events > 0).then(|| undo_name(outcome.revision));
                Ok(PointReply::RolledBack(RolledBack {
                    to,
                    revision: outcome.revision,
                    undo,
                    ..told.clone()
                }))
            }
        }
    }

    fn take_on(&mut self, change: &PointChange, reply: &PointReply, revision: Revision) {
        match (change, reply) {
            (_, PointReply::Created(point)) => {
                self.points.insert(point.name.clone(), point.clone());
            }
            (_, PointReply::Removed(point)) => {
                self.points.remove(&point.name);
            }
            (PointChange::SetSchedule(schedule), _) => {
                let last = self.schedules.get(&schedule.name).and_then(|before| before.last);
                let status = ScheduleStatus { schedule: schedule.clone(), last };
                self.schedules.insert(schedule.name.clone(), status);
            }
            (PointChange::RemoveSchedule { name }, _) => {
                self.schedules.remove(name);
            }
            (PointChange::Tidy { now }, _) => self.tidy(*now, revision),
            (PointChange::Rollback { point, author, now, .. }, PointReply::RolledBack(done))
                if done.events > 0 =>
            {
                let origin = PointOrigin::Rollback { to: point.clone(), revision: done.revision };
                self.undo(done.revision, author, *now, origin);
            }
            _ => {}
        }
    }

    fn undo(&mut self, made: Revision, author: &str, now: i64, origin: PointOrigin) {
        let point = RollbackPoint {
            name: undo_name(made),
            revision: made - 1,
            created: now,
            expires: None,
            author: author.to_owned(),
            comment: String::new(),
            origin,
        };
        self.points.insert(point.name.clone(), point);
        let mut undoes: Vec<(Revision, String)> = Vec::new();
        for point in self.points.values() {
            if let PointOrigin::Rollback { revision, .. } = point.origin {
                undoes.push((revision, point.name.clone()));
            }
        }
        undoes.sort();
        let too_many = undoes.len().saturating_sub(MAX_UNDO_POINTS);
        for (_, name) in &undoes[..too_many] {
            self.points.remove(name);
        }
    }

    fn tidy(&mut self, now: i64, revision: Revision) {
        self.points.retain(|_, point| point.expires.is_none_or(|expires| expires > now));
        for status in self.schedules.values_mut() {
            let PointSchedule { name, every, keep } = status.schedule.clone();
            let every = every as i64 * 1000;
            let due = status.last.is_none_or(|last| now >= last + every || last > now + every);
            if !due {
                continue;
            }
            status.last = Some(now);
            let point = RollbackPoint {
                name: format!("{name}-{}", stamp(now)),
                revision,
                created: now,
                expires: None,
                author: String::new(),
                comment: String::new(),
                origin: PointOrigin::Schedule { name: name.clone() },
            };
            self.points.entry(point.name.clone()).or_insert(point);
            let ours = PointOrigin::Schedule { name };
            let mut made: Vec<_> = self.points.values().filter(|point| point.origin == ours).collect();
            made.sort_by_key(|point| (point.revision, point.created, &point.name));
            let too_many = made.len().saturating_sub(keep as usize);
            let old: Vec<String> = made[..too_many].iter().map(|point| point.name.clone()).collect();
            old.iter().for_each(|name| drop(self.points.remove(name)));
        }
    }

    fn list(&self) -> PointList {
        let points = self.points.values().cloned().collect();
        PointList { points, schedules: self.schedules.values().cloned().collect() }
    }

    /// All points and schedules after the entry.
    pub fn at(&self, index: Index) -> PointList {
        self.lists.range(..=index).next_back().map(|(_, list)| list.clone()).unwrap_or_default()
    }

    /// The rollback that made a revision.
    pub fn made(&self, revision: Revision) -> Option<&Rolled> {
        let at = self.rolled.partition_point(|rolled| rolled.done.revision < revision);
        self.rolled[at..]
            .iter()
            .take_while(|rolled| rolled.done.revision == revision)
            .find(|rolled| rolled.done.events > 0)
    }

    /// Every list is that of its index, and of an index that is new enough.
    pub fn judge_lists(&self, history: &[Operation]) -> Verdict {
        let mut indexes: BTreeMap<Bytes, Index> = BTreeMap::new();
        for asks in self.asked.values() {
            // Of one that was sent again the first.
            let first = indexes.entry(asks.change.to_bytes()).or_insert(asks.index);
            *first = asks.index.min(*first);
        }
        let mut told: Vec<(Duration, Index)> = Vec::new();
        for operation in history {
            if let (Asked::Command(Command::Point(change)), Outcome::Done(..)) =
                (&operation.asked, &operation.outcome)
                && let Some((returned, index)) = operation.returned.zip(indexes.get(&change.to_bytes()))
            {
                told.push((returned, *index));
            }
        }
        for operation in history {
            let Outcome::Listed { index, list, .. } = &operation.outcome else { continue };
            let right = self.at(*index);
            if right != *list {
                return violation(
                    CHECK,
                    format!("at entry {index} {list:?} was listed, should be {right:?}"),
                );
            }
            let newest = told.iter().filter(|(returned, _)| *returned < operation.invoked);
            let newest = newest.map(|(_, index)| *index).max().unwrap_or_default();
            if newest > *index {
                let detail = format!("{operation:?} is older than entry {newest}, answered before it began");
                return violation(CHECK, detail);
            }
        }
        Ok(())
    }
}

fn stamp(millis: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(millis.div_euclid(1000)).expect("a time of a run");
    let (date, month) = (at.date(), u8::from(at.month()));
    format!(
        "{:04}{month:02}{:02}T{:02}{:02}{:02}Z",
        date.year(),
        date.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    fn create(name: &str) -> PointChange {
        let (author, comment) = (String::new(), String::new());
        PointChange::Create { name: name.into(), at: None, expires: None, author, comment, now: 1000 }
    }

    fn created(name: &str, revision: Revision) -> Result<Answer, Refusal> {
        let point = RollbackPoint {
            name: name.into(),
            revision,
            created: 1000,
            expires: None,
            author: String::new(),
            comment: String::new(),
            origin: PointOrigin::Asked,
        };
        Ok(Answer::Point(PointReply::Created(point)))
    }

    fn roll_back(point: &str) -> PointChange {
        PointChange::Rollback { point: point.into(), prefix: None, author: String::new(), now: 2000 }
    }

    fn rolled_back(
        to: Revision,
        revision: Revision,
        events: u64,
        undo: Option<&str>,
    ) -> Result<Answer, Refusal> {
        let undo = undo.map(str::to_owned);
        let done = RolledBack { to, revision, compared: events, events, undo };
        Ok(Answer::Point(PointReply::RolledBack(done)))
    }

    /// Tells of changes, each in an entry of its own from the tenth on, with the revision after it.
    fn told(changes: &[(PointChange, Revision, Result<Answer, Refusal>)]) -> Result<Points, String> {
        let mut points = Points::default();
        for (place, (change, revision, result)) in changes.iter().enumerate() {
            let request = RequestId { origin: NodeId(1), boot: 1, seq: place as u64 };
            let command = Command::Point(change.clone());
            points.committed(10 + place as Index, &machine::Proposal { request, once: None, command });
            let outcome = machine::Outcome { request, revision: *revision, result: result.clone() };
            let seen = points.applied(10 + place as Index, std::slice::from_ref(&outcome), None);
            seen.map_err(|violation| violation.detail)?;
            // Every other member says the same.
            let again = points.applied(10 + place as Index, &[outcome], None);
            again.map_err(|violation| violation.detail)?;
        }
        Ok(points)
    }

    fn taken() -> Result<Answer, Refusal> {
        Err(Refusal::invalid("point name", "it is taken"))
    }

    #[test]
    fn good_histories_pass() {
        let points = told(&[
            (create("a"), 5, created("a", 5)),
            (create("a"), 6, taken()),
            (roll_back("a"), 9, rolled_back(5, 9, 2, Some("before-rollback-9"))),
            (roll_back("a"), 9, rolled_back(5, 9, 0, None)),
            (roll_back("before-rollback-9"), 10, rolled_back(8, 10, 2, Some("before-rollback-10"))),
            (PointChange::Tidy { now: 1 }, 10, Ok(Answer::Point(PointReply::Done))),
        ])
        .unwrap();
        assert_eq!(points.rolled.len(), 3);
        assert!(points.made(9).is_some_and(|rolled| !rolled.is_undo()) && points.made(8).is_none());
        assert!(points.made(10).is_some_and(Rolled::is_undo));
        let names = |index| points.at(index).points.into_iter().map(|point| point.name).collect::<Vec<_>>();
        assert_eq!(names(9), Vec::<String>::new());
        assert_eq!(names(11), ["a"]);
        assert_eq!(names(99), ["a", "before-rollback-10", "before-rollback-9"]);
    }

    #[test]
    fn bad_histories_are_found() {
        let a = || (create("a"), 5, created("a", 5));
        for (why, bad) in [
            ("another revision", vec![(create("a"), 5, created("a", 4))]),
            ("a name twice", vec![a(), (create("a"), 6, created("a", 6))]),
            ("refused without a reason", vec![(create("a"), 5, taken())]),
            ("an unknown point", vec![(roll_back("b"), 6, rolled_back(5, 6, 1, Some("before-rollback-6")))]),
            (
                "to another revision",
                vec![a(), (roll_back("a"), 9, rolled_back(4, 9, 1, Some("before-rollback-9")))],
            ),
            ("no way back", vec![a(), (roll_back("a"), 9, rolled_back(5, 9, 1, None))]),
            (
                "a schedule that is not there",
                vec![(
                    PointChange::RemoveSchedule { name: "s".into() },
                    5,
                    Ok(Answer::Point(PointReply::Done)),
                )],
            ),
        ] {
            assert!(told(&bad).is_err(), "{why}");
        }
    }

    #[test]
    fn lists_are_those_of_their_index_and_new_enough() {
        let points = told(&[(create("a"), 5, created("a", 5))]).unwrap();
        let ms = Duration::from_millis;
        let made = Operation {
            invoked: ms(0),
            returned: Some(ms(5)),
            asked: Asked::Command(Command::Point(create("a"))),
            outcome: Outcome::Done(5, created("a", 5).unwrap()),
        };
        let listed = |index, list| Operation {
            invoked: ms(6),
            returned: Some(ms(7)),
            asked: Asked::Points,
            outcome: Outcome::Listed { revision: 5, index, list },
        };
        points.judge_lists(&[made.clone(), listed(10, points.at(10))]).unwrap();
        assert!(
            points.judge_lists(&[made.clone(), listed(10, PointList::default())]).is_err(),
            "one is missing"
        );
        assert!(points.judge_lists(&[made, listed(9, PointList::default())]).is_err(), "it is old");
    }

    #[test]
    fn schedules_make_points_and_keep_the_newest() {
        let schedule = PointSchedule { name: "s".into(), every: 60, keep: 2 };
        let done = || Ok(Answer::Point(PointReply::Done));
        let tidy = |minutes: i64| (PointChange::Tidy { now: minutes * 60_000 }, 5 + minutes, done());
        let changes = [(PointChange::SetSchedule(schedule), 5, done()), tidy(1), tidy(1), tidy(2), tidy(3)];
        let points = told(&changes).unwrap();
        let names: Vec<_> =
            points.at(99).points.into_iter().map(|point| (point.name, point.revision)).collect();
        let right = [("s-19700101T000200Z", 7), ("s-19700101T000300Z", 8)];
        assert_eq!(names, right.map(|(name, revision)| (name.to_owned(), revision)));
    }
}
