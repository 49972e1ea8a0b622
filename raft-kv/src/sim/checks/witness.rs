//! Linearizability by the revision witness: the store claims an order of all requests by their
//! revisions. That order must respect real time, and a naive model that carries the requests out
//! in it must give every answer and every event.
//!
//! So no acknowledged write is lost or done twice, no read is stale, nothing that was refused or
//! said to be not done was done, and what is unknown was done once or not at all.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::changes::{Changes, FIRST};
use super::history::{Asked, Operation, Outcome};
use super::model::{Model, difference, values};
use super::points::{Points, Rolled};
use super::{Verdict, Violation, violation};
use crate::machine::Answer;
use crate::machine::command::Command;
use crate::types::{
    Change, DiffCounts, Difference, EventKind, KeyRange, PointChange, PointReply, Revision, TxnOpResponse,
    TxnResponse, point_range,
};

const CHECK: &str = "linearizability";

/// Judges all requests against the changes that were made.
pub fn check(history: &[Operation], changes: &Changes, points: &Points) -> Verdict {
    real_time(history)?;
    let writers = writers(history, changes, points)?;
    let states = replay(history, changes, points, &writers)?;
    differences(history, points, &states)?;
    points.judge_lists(history)
}

/// A request that began after another had been answered must not come before it.
fn real_time(history: &[Operation]) -> Verdict {
    let mut moments: Vec<(Duration, bool, usize)> = Vec::new();
    for (place, operation) in history.iter().enumerate() {
        if let Some((returned, _)) = operation.returned.zip(revision(operation)) {
            // At one moment what returns comes first: it was over when the other began.
            moments.push((returned, false, place));
            moments.push((operation.invoked, true, place));
        }
    }
    moments.sort_unstable();
    let mut newest: (Revision, usize) = (0, 0);
    let mut floor: BTreeMap<usize, (Revision, usize)> = BTreeMap::new();
    for (_, begins, place) in moments {
        let operation = &history[place];
        let at = revision(operation).expect("only those with a revision are here");
        if begins {
            floor.insert(place, newest);
            continue;
        }
        let (before, other) = floor.get(&place).copied().unwrap_or_default();
        let late = at < before || (at == before && before > 0 && wrote(operation) == Some(true));
        if late && operation.is_linearizable() {
            return violation(
                CHECK,
                format!(
                    "{operation:?} is at revision {at}, but began after {:?} had been answered",
                    history[other]
                ),
            );
        }
        if at > newest.0 {
            newest = (at, place);
        }
    }
    Ok(())
}

fn revision(operation: &Operation) -> Option<Revision> {
    match operation.outcome {
        Outcome::Done(revision, _) | Outcome::Read(revision, _) | Outcome::Listed { revision, .. } => {
            Some(revision)
        }
        Outcome::Page { ref page, .. } if matches!(&operation.asked, Asked::Diff(asked) if asked.revision == 0) => {
            Some(page.to)
        }
        _ => None,
    }
}

fn txn_wrote(response: &TxnResponse) -> bool {
    response.responses.iter().any(|response| match response {
        TxnOpResponse::Range(_) => false,
        TxnOpResponse::Put(_) => true,
        TxnOpResponse::Delete(response) => response.deleted > 0,
        TxnOpResponse::Txn(response) => txn_wrote(response),
    })
}

/// Whether an answered request made a revision; `None` where its answer does not tell.
fn wrote(operation: &Operation) -> Option<bool> {
    let Outcome::Done(_, answer) = &operation.outcome else { return Some(false) };
    match answer {
        Answer::Put(_) => Some(true),
        Answer::Delete(response) => Some(response.deleted > 0),
        Answer::Txn(response) => Some(txn_wrote(response)),
        Answer::Point(PointReply::RolledBack(done)) => Some(done.events > 0),
        _ if matches!(operation.asked, Asked::Command(Command::LeaseRevoke { .. })) => None,
        _ => Some(false),
    }
}

/// Which request made which revision, by what they were told and by the values, which are unique.
fn writers(
    history: &[Operation],
    changes: &Changes,
    points: &Points,
) -> Result<BTreeMap<Revision, usize>, Violation> {
    let mut writers = BTreeMap::new();
    let mut authors: BTreeMap<Bytes, usize> = BTreeMap::new();
    for (place, operation) in history.iter().enumerate() {
        if let Asked::Command(command) = &operation.asked {
            authors.extend(values(command).into_iter().map(|value| (value, place)));
        }
        if wrote(operation) == Some(true) {
            let at = revision(operation).expect("it was done");
            if let Some(other) = writers.insert(at, place) {
                return fail(format!("{operation:?} and {:?} are both told revision {at}", history[other]));
            }
            if changes.get(at).is_none() {
                return fail(format!(
                    "{operation:?} was acknowledged and is lost: revision {at} was never made"
                ));
            }
        }
    }
    let mut done: BTreeMap<usize, Revision> =
        writers.iter().map(|(revision, place)| (*place, *revision)).collect();
    // What a rollback puts back somebody else has written before.
    for change in changes.iter().filter(|change| points.made(change.revision).is_none()) {
        let put = change.events.iter().find(|event| event.kind == EventKind::Put);
        let Some(event) = put else { continue };
        let Some(&place) = authors.get(&event.kv.value) else {
            return fail(format!("nobody asked for {change:?}"));
        };
        let operation = &history[place];
        let told = matches!(operation.outcome, Outcome::Refused(_) | Outcome::NotDone);
        if told {
            return fail(format!("{operation:?} was said not to be done, and made {change:?}"));
        }
        match done.insert(place, change.revision) {
            Some(before) if before != change.revision => {
                return fail(format!("{operation:?} was done at revision {before} and again as {change:?}"));
            }
            _ => {}
        }
        if changes.time(change.revision).is_some_and(|time| time < operation.invoked) {
            return fail(format!("{change:?} was made before {operation:?} asked for it"));
        }
        match writers.insert(change.revision, place) {
            Some(other) if other != place => {
                return fail(format!(
                    "{:?} was told the revision of {operation:?}, {change:?}",
                    history[other]
                ));
            }
            _ => {}
        }
    }
    Ok(writers)
}

fn fail<T>(detail: String) -> Result<T, Violation> {
    Err(Violation::new(CHECK, detail))
}

/// Carries everything out on the model, revision by revision.
/// Gives the states before the first revision and after each.
fn replay(
    history: &[Operation],
    changes: &Changes,
    points: &Points,
    writers: &BTreeMap<Revision, usize>,
) -> Result<Vec<Model>, Violation> {
    let mut reads: BTreeMap<Revision, Vec<usize>> = BTreeMap::new();
    for (place, operation) in history.iter().enumerate() {
        if let Some(at) = state_of(operation) {
            if at > changes.head() {
                return fail(format!("{operation:?} is of a revision that was never made"));
            }
            reads.entry(at).or_default().push(place);
        }
    }
    let mut deletes = Deletes::new(history);
    let mut model = Model::default();
    judge_reads(history, &model, reads.remove(&(FIRST - 1)), FIRST - 1)?;
    let mut states = vec![model.clone()];
    for change in changes.iter() {
        let at = change.revision;
        match (points.made(at), writers.get(&at)) {
            (Some(rolled), place) => {
                roll_back(rolled, &states, &mut model, change)?;
                let asked = place.map(|place| &history[*place].asked);
                if asked.is_some_and(|asked| *asked != Asked::Command(Command::Point(rolled.change.clone())))
                {
                    return fail(format!("{asked:?} was told the revision of {rolled:?}"));
                }
            }
            (None, Some(place)) => write(&history[*place], &mut model, change)?,
            (None, None) => {
                deletes.explain(history, &mut model, change, changes.time(at).unwrap_or_default())?;
            }
        }
        judge_reads(history, &model, reads.remove(&at), at)?;
        states.push(model.clone());
    }
    for rolled in points.rolled.iter().filter(|rolled| rolled.done.events == 0) {
        let mut model = state(&states, rolled.done.revision)?.clone();
        let events = model.roll_back(state(&states, rolled.done.to)?, &range(rolled), &rolled.living, 1);
        if !events.is_empty() {
            return fail(format!("{rolled:?} should have made {events:?}"));
        }
    }
    Ok(states)
}

/// The state after a revision; before the first it is empty.
fn state(states: &[Model], revision: Revision) -> Result<&Model, Violation> {
    let at = usize::try_from((revision - (FIRST - 1)).max(0)).ok();
    match at.and_then(|at| states.get(at)) {
        Some(state) => Ok(state),
        None => fail(format!("revision {revision} was never made")),
    }
}

fn range(rolled: &Rolled) -> KeyRange {
    let PointChange::Rollback { prefix, .. } = &rolled.change else { unreachable!("it rolled back") };
    point_range(prefix.as_ref())
}

/// A rollback made the change: exactly the differences, one event each, and it was told so.
fn roll_back(rolled: &Rolled, states: &[Model], model: &mut Model, change: &Change) -> Verdict {
    let then = state(states, rolled.done.to)?;
    let events = model.roll_back(then, &range(rolled), &rolled.living, change.revision);
    if events != change.events {
        return fail(format!("{rolled:?} made {change:?}, should have made {events:?}"));
    }
    if rolled.done.events != events.len() as u64 || rolled.done.compared < rolled.done.events {
        return fail(format!("{rolled:?} has made {} events", events.len()));
    }
    Ok(())
}

/// Every page of a difference is what a rollback would do.
fn differences(history: &[Operation], points: &Points, states: &[Model]) -> Verdict {
    for operation in history {
        let (Asked::Diff(asked), Outcome::Page { index, page, living }) =
            (&operation.asked, &operation.outcome)
        else {
            continue;
        };
        let list = points.at(*index);
        let named = list.points.iter().find(|point| point.name == asked.point);
        let of = named.map(|point| point.revision);
        if of != Some(page.from) || (asked.revision > 0 && page.to != asked.revision) {
            return fail(format!("{operation:?} is of a point at {of:?}"));
        }
        let living = living.iter().copied().collect();
        let (then, now) = (state(states, page.from)?, state(states, page.to)?);
        let mut right = difference(then, now, &point_range(asked.prefix.as_ref()), &living);
        right.retain(|it| asked.after.as_ref().is_none_or(|after| it.key > *after));
        right.retain(|it| page.next.as_ref().is_none_or(|next| it.key <= *next));
        let many = |of: fn(&Difference) -> bool| right.iter().filter(|it| of(it)).count() as u64;
        let counts = DiffCounts {
            created: many(|it| it.then.is_none()),
            changed: many(|it| it.then.is_some() && it.now.is_some()),
            deleted: many(|it| it.now.is_none()),
            compared: page.counts.compared,
        };
        if asked.count_only {
            right.clear();
        }
        let fits = asked.limit == 0 || counts.differing() <= asked.limit;
        if page.differences != right || page.counts != counts || counts.compared < counts.differing() || !fits
        {
            return fail(format!("{operation:?} should be {right:?}, {counts:?}"));
        }
    }
    Ok(())
}

/// The revision of the state that an answer without a change of its own tells of.
fn state_of(operation: &Operation) -> Option<Revision> {
    match (&operation.outcome, &operation.asked) {
        (Outcome::Read(_, _), Asked::Range(request)) if request.revision > 0 => Some(request.revision),
        (Outcome::Read(at, _), _) => Some(*at),
        (Outcome::Done(at, _), _) if wrote(operation) == Some(false) => Some(*at),
        _ => None,
    }
}

fn write(operation: &Operation, model: &mut Model, change: &Change) -> Verdict {
    let Asked::Command(command) = &operation.asked else {
        return fail(format!("{operation:?} is no change, and made {change:?}"));
    };
    let Some((events, answer)) = model.command(command, change.revision) else {
        return fail(format!("{operation:?} does not change keys, and made {change:?}"));
    };
    if events != change.events {
        return fail(format!("{operation:?} made {change:?}, and should have made {events:?}"));
    }
    match &operation.outcome {
        Outcome::Done(_, told) if *told != answer => fail(format!(
            "{operation:?} should have been answered {answer:?} at revision {}",
            change.revision
        )),
        _ => Ok(()),
    }
}

fn judge_reads(history: &[Operation], model: &Model, places: Option<Vec<usize>>, at: Revision) -> Verdict {
    for place in places.unwrap_or_default() {
        let operation = &history[place];
        match (&operation.asked, &operation.outcome) {
            (Asked::Range(request), Outcome::Read(_, told)) => {
                let right = model.range(request);
                if right != *told {
                    return fail(format!("{operation:?} at revision {at} should have found {right:?}"));
                }
            }
            (Asked::Command(command), Outcome::Done(_, told)) => {
                let Some((events, right)) = model.clone().command(command, at + 1) else { continue };
                if !events.is_empty() || right != *told {
                    return fail(format!(
                        "{operation:?} at revision {at} should have made {events:?}, {right:?}"
                    ));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removals that nobody was told of: an unknown delete, or the end of a lease.
struct Deletes {
    unknown: Vec<usize>,
}

impl Deletes {
    fn new(history: &[Operation]) -> Self {
        let unknown = |operation: &Operation| {
            let deletes = matches!(operation.asked, Asked::Command(Command::Delete(_)));
            deletes && operation.outcome == Outcome::Unknown
        };
        Self { unknown: (0..history.len()).filter(|place| unknown(&history[*place])).collect() }
    }

    fn explain(
        &mut self,
        history: &[Operation],
        model: &mut Model,
        change: &Change,
        time: Duration,
    ) -> Verdict {
        let Some(first) = change.events.first() else { return Ok(()) };
        let lease = model.get(&first.kv.key).map_or(0, |kv| kv.lease);
        let mut after = model.clone();
        let events = after.command(&Command::LeaseRevoke { id: lease }, change.revision);
        if lease != 0 && events.is_some_and(|(events, _)| events == change.events) {
            *model = after;
            return Ok(());
        }
        let matching = self.unknown.iter().position(|place| {
            let operation = &history[*place];
            let Asked::Command(command) = &operation.asked else { return false };
            let made = model.clone().command(command, change.revision);
            operation.invoked <= time && made.is_some_and(|(events, _)| events == change.events)
        });
        let Some(matching) = matching else {
            return fail(format!("nobody asked for {change:?}"));
        };
        self.unknown.remove(matching);
        for event in &change.events {
            model.remove(&event.kv.key, change.revision);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use crate::types::{DeleteRequest, PutRequest, PutResponse, RangeRequest, RolledBack};

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn put(value: &'static str, times: (u64, Option<u64>), outcome: Outcome) -> Operation {
        let request = PutRequest { key: "k".into(), value: value.into(), ..PutRequest::default() };
        let asked = Asked::Command(Command::Put(request));
        Operation { invoked: MS(times.0), returned: times.1.map(MS), asked, outcome }
    }

    fn done(revision: Revision) -> Outcome {
        Outcome::Done(revision, Answer::Put(PutResponse::default()))
    }

    fn read(changes: &Changes, times: (u64, u64), at: Revision) -> Operation {
        let request = RangeRequest { range: KeyRange::key("k"), ..RangeRequest::default() };
        let mut model = Model::default();
        for change in changes.iter().filter(|change| change.revision <= at) {
            let kv = &change.events[0].kv;
            let put = PutRequest { key: kv.key.clone(), value: kv.value.clone(), ..PutRequest::default() };
            model.command(&Command::Put(put), change.revision);
        }
        let outcome = Outcome::Read(at, model.range(&request));
        Operation { invoked: MS(times.0), returned: Some(MS(times.1)), asked: Asked::Range(request), outcome }
    }

    /// The changes that puts of these values make, one a revision.
    fn made(values: &[&'static str]) -> Changes {
        let mut changes = Changes::default();
        let mut model = Model::default();
        for (place, value) in values.iter().enumerate() {
            let revision = FIRST + place as Revision;
            let request = PutRequest { key: "k".into(), value: (*value).into(), ..PutRequest::default() };
            let (events, _) = model.command(&Command::Put(request), revision).unwrap();
            changes.made(&Change { revision, events }, MS(1000)).unwrap();
        }
        changes
    }

    fn check(history: &[Operation], changes: &Changes) -> Verdict {
        super::check(history, changes, &Points::default())
    }

    #[test]
    fn good_histories_pass() {
        let changes = made(&["a", "b"]);
        let (a, b) = (put("a", (0, Some(5)), done(2)), put("b", (6, None), Outcome::Unknown));
        check(&[a.clone(), b.clone()], &changes).unwrap();
        check(&[a.clone(), b.clone(), read(&changes, (7, 9), 2), read(&changes, (10, 12), 3)], &changes)
            .unwrap();
        let lost = put("c", (7, None), Outcome::Unknown);
        let refused = put("d", (7, Some(8)), Outcome::NotDone);
        check(&[a, b, lost, refused], &changes).unwrap();
    }

    /// Puts of "a" and "b", a point at the first of them, and a rollback to it at revision 4, told as
    /// `done`; where `lost`, another value came back.
    fn rolled_back(done: RolledBack, lost: bool) -> Verdict {
        let mut changes = made(&["a", "b"]);
        let (mut model, mut states) = (Model::default(), vec![Model::default()]);
        for change in changes.iter() {
            let kv = &change.events[0].kv;
            let put = PutRequest { key: kv.key.clone(), value: kv.value.clone(), ..PutRequest::default() };
            model.command(&Command::Put(put), change.revision).unwrap();
            states.push(model.clone());
        }
        let mut events = model.roll_back(&states[1], &KeyRange::all(), &BTreeSet::new(), 4);
        if lost {
            events[0].kv.value = "b".into();
        }
        changes.made(&Change { revision: 4, events }, MS(20)).unwrap();
        let change = PointChange::Rollback { point: "p".into(), prefix: None, author: String::new(), now: 1 };
        let answer = Answer::Point(PointReply::RolledBack(done.clone()));
        let asked = Asked::Command(Command::Point(change.clone()));
        let outcome = Outcome::Done(4, answer);
        let operation = Operation { invoked: MS(9), returned: Some(MS(30)), asked, outcome };
        let (a, b) =
            (put("a", (0, Some(5)), super::tests::done(2)), put("b", (6, Some(8)), super::tests::done(3)));
        let rolled = Rolled { index: 9, change, done, living: BTreeSet::new() };
        let mut points = Points::default();
        points.rolled.push(rolled);
        super::check(&[a, b, operation], &changes, &points)
    }

    #[test]
    fn rollbacks_put_back_what_was_there() {
        let done = RolledBack { to: 2, revision: 4, compared: 1, events: 1, undo: Some("u".into()) };
        rolled_back(done.clone(), false).unwrap();
        assert!(rolled_back(done.clone(), true).is_err(), "another value came back");
        let miscounted = RolledBack { compared: 2, events: 2, ..done.clone() };
        assert!(rolled_back(miscounted, false).is_err(), "another number of events was told");
        assert!(rolled_back(RolledBack { to: 3, ..done }, false).is_err(), "of another revision");
    }

    #[test]
    fn bad_histories_are_found() {
        let changes = made(&["a", "b"]);
        let a = put("a", (0, Some(5)), done(2));
        let b = |outcome| put("b", (6, Some(8)), outcome);
        let wrong_answer = {
            let mut read = read(&changes, (10, 12), 3);
            if let Outcome::Read(_, response) = &mut read.outcome {
                response.count = 2;
            }
            read
        };
        let deleted = DeleteRequest { range: KeyRange::key("k"), prev_kv: false };
        let delete = Operation::new(Asked::Command(Command::Delete(deleted)), MS(20));
        for (why, bad) in [
            ("a stale read", vec![a.clone(), b(done(3)), read(&changes, (10, 12), 2)]),
            ("a wrong answer", vec![a.clone(), b(done(3)), wrong_answer]),
            ("an acknowledged write is lost", vec![a.clone(), b(done(3)), put("c", (9, Some(10)), done(4))]),
            ("two writes, one revision", vec![a.clone(), b(done(2))]),
            ("another's revision", vec![put("a", (0, Some(5)), done(3)), b(done(2))]),
            ("done though refused", vec![a.clone(), b(Outcome::NotDone)]),
            ("a write goes back in time", vec![put("a", (9, Some(12)), done(2)), b(done(3))]),
            ("nobody asked for it", vec![a.clone(), delete.clone()]),
            ("a read of the future", vec![a.clone(), b(done(3)), read(&changes, (10, 12), 9)]),
        ] {
            assert!(check(&bad, &changes).is_err(), "{why}");
        }
        let twice = made(&["a", "a"]);
        assert!(check(&[put("a", (0, None), Outcome::Unknown)], &twice).is_err(), "done twice");
    }
}
