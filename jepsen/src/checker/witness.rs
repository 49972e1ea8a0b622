//! The claim: the clients' operations are linearizable, and the revisions they were told are the
//! witness.
//!
//! Revisions name the order that the store says it worked in. Checking a given order is easy where
//! finding one is hard: each write has a revision of its own; an operation that began after another
//! had ended has no lower one; and replaying the writes in this order gives every read what it saw.
//! A write with an unknown outcome takes the revision at which somebody saw it, or counts as not
//! done.

use std::collections::BTreeMap;

use super::Verdict;
use crate::history::{Event, Function, Kind, Operation, operations};
use crate::workload::append;

/// Holds the history to the claim.
pub fn check(history: &[Event]) -> Verdict {
    let claim = "linearizable, by the revisions told";
    let operations = match operations(history) {
        Ok(operations) => operations,
        Err(why) => return Verdict { claim, checked: "nothing".into(), breaches: vec![why] },
    };
    let mut witness = Witness::default();
    witness.gather(&operations);
    witness.resolve(history, &operations);
    witness.real_time(history, &operations);
    let reads = witness.replay(&operations);
    let unresolved = operations.iter().filter(|op| op.writes() && op.outcome() == Kind::Info).count();
    let checked = format!(
        "{} writes and {reads} reads; of {unresolved} writes with an unknown outcome {} were seen",
        witness.by_revision.len(),
        witness.resolved.len()
    );
    Verdict { claim, checked, breaches: witness.breaches }
}

#[derive(Default)]
struct Witness<'a> {
    /// (key, revision) → value.
    versions: BTreeMap<(&'a str, i64), &'a str>,
    /// revision → the index at which the write began.
    by_revision: BTreeMap<i64, u64>,
    /// value → the operation that writes it.
    writers: BTreeMap<&'a str, usize>,
    /// Operations of unknown outcome that were seen → their revision.
    resolved: BTreeMap<usize, i64>,
    breaches: Vec<String>,
}

/// Whether an operation that was done changed the store.
fn changed(end: &Event) -> bool {
    match end.f {
        Function::Write | Function::Add => true,
        Function::Cas => end.swapped == Some(true),
        _ => false,
    }
}

/// Whether what was done reads one key; a compare-and-set that does not write does.
fn reads(end: &Event) -> bool {
    end.f == Function::Read || end.swapped == Some(false)
}

fn words(event: &Event) -> (&str, &str) {
    (event.key.as_deref().unwrap_or_default(), event.value.as_deref().unwrap_or_default())
}

impl<'a> Witness<'a> {
    fn breach(&mut self, at: &Event, why: impl std::fmt::Display) {
        self.breaches.push(format!("event {} ({:?} of process {}): {why}", at.index, at.f, at.process));
    }

    fn insert(&mut self, invoke: &'a Event, at: &Event, revision: i64) {
        let (key, value) = words(invoke);
        if let Some(other) = self.by_revision.insert(revision, invoke.index) {
            self.breach(at, format_args!("revision {revision} belongs to the write begun at event {other}"));
        }
        self.versions.insert((key, revision), value);
    }

    /// The writes whose revision was told.
    fn gather(&mut self, operations: &[Operation<'a>]) {
        for (number, operation) in operations.iter().enumerate().filter(|(_, op)| op.writes()) {
            let (_, value) = words(operation.invoke);
            if self.writers.insert(value, number).is_some() {
                self.breach(operation.invoke, "a value is written twice: the workload is at fault");
            }
            if let Some(end) = operation.done().filter(|end| changed(end)) {
                match end.revision {
                    Some(revision) => self.insert(operation.invoke, end, revision),
                    None => self.breach(end, "a write was done without a revision"),
                }
            }
        }
    }

    /// Whatever was seen was written, where it was said to be; this tells what became of writes of
    /// unknown outcome.
    fn resolve(&mut self, history: &'a [Event], operations: &[Operation<'a>]) {
        // Lists are written over and over: `cycles` looks at them.
        let list = |event: &Event| event.key.as_deref().is_some_and(|key| key.starts_with(append::PREFIX));
        let seen = history.iter().filter(|event| event.kind == Kind::Ok && !list(event));
        for event in seen.filter(|event| reads(event) || event.f == Function::Watch) {
            let (Some(value), Some(found_at)) = (event.value.as_deref(), event.found_at) else { continue };
            let Some(&writer) = self.writers.get(value) else {
                self.breach(event, format_args!("{value:?} was written by nobody"));
                continue;
            };
            let operation = &operations[writer];
            if operation.invoke.key != event.key {
                self.breach(event, format_args!("{value:?} was written to another key"));
            } else if operation.invoke.index > event.index {
                self.breach(event, format_args!("{value:?} was seen before anybody wrote it"));
            } else {
                self.place(event, writer, operation, found_at);
            }
        }
    }

    fn place(&mut self, event: &Event, writer: usize, operation: &Operation<'a>, found_at: i64) {
        let told = match operation.end.filter(|end| end.kind != Kind::Info) {
            Some(end) if end.kind == Kind::Ok && changed(end) => end.revision,
            Some(_) => {
                self.breach(event, format_args!("the write of {:?} was certainly not done", event.value));
                return;
            }
            None => self.resolved.get(&writer).copied(),
        };
        match told {
            Some(revision) if revision == found_at => {}
            Some(revision) => {
                let why = format!("the write of {:?} has revision {revision}, not {found_at}", event.value);
                self.breach(event, why);
            }
            None => {
                self.resolved.insert(writer, found_at);
                self.insert(operation.invoke, event, found_at);
            }
        }
    }

    /// No operation lies behind one that had ended before it began.
    fn real_time(&mut self, history: &[Event], operations: &[Operation<'a>]) {
        let numbers: BTreeMap<u64, usize> =
            (0..).zip(operations).map(|(n, op)| (op.invoke.index, n)).collect();
        let (mut floor, mut floors) = (0, vec![0; operations.len()]);
        for event in history {
            if let Some(&number) = numbers.get(&event.index) {
                floors[number] = floor;
            } else if event.kind == Kind::Ok && event.f != Function::Watch {
                floor = floor.max(event.revision.unwrap_or(0));
            }
        }
        for (number, operation) in operations.iter().enumerate() {
            let floor = floors[number];
            let (revision, writes) = match (operation.done(), self.resolved.get(&number)) {
                (Some(end), _) => (end.revision.unwrap_or(0), changed(end)),
                (None, Some(revision)) => (*revision, true),
                (None, None) => continue,
            };
            if revision < floor || (writes && revision == floor) {
                let why = format!("it has revision {revision}; {floor} had been told before it began");
                self.breach(operation.end.unwrap_or(operation.invoke), why);
            }
        }
    }

    /// Every read saw the newest version at its revision. Returns how many there were.
    fn replay(&mut self, operations: &[Operation<'a>]) -> usize {
        let mut count = 0;
        for end in operations.iter().filter_map(Operation::done) {
            let (key, value) = words(end);
            let revision = end.revision.unwrap_or(0);
            if reads(end) {
                count += 1;
                let newest = self.newest(key, revision);
                let found = end.found_at.map(|at| (at, value));
                if newest != found {
                    self.breach(end, format_args!("{key} at {revision} is {newest:?}, read was {found:?}"));
                }
                if end.swapped.is_some() && end.value.is_some() && end.value == end.expected {
                    self.breach(end, "it found what it expected and did not write");
                }
            } else if end.swapped == Some(true) {
                let before = self.newest(key, revision - 1).map(|(_, value)| value);
                if before != end.expected.as_deref() {
                    self.breach(end, format_args!("it wrote where {before:?} was"));
                }
            }
        }
        count
    }

    fn newest(&self, key: &'a str, revision: i64) -> Option<(i64, &'a str)> {
        let (&(_, at), &value) = self.versions.range((key, i64::MIN)..=(key, revision)).next_back()?;
        Some((at, value))
    }
}

#[cfg(test)]
mod tests {
    use super::super::expect;

    fn check(lines: &[&str], breach: Option<&str>) {
        expect(super::check, lines, breach);
    }

    const W1: [&str; 2] = [
        r#""process":1,"type":"invoke","f":"write","key":"a","value":"x""#,
        r#""process":1,"type":"ok","f":"write","key":"a","value":"x","revision":2"#,
    ];
    const READ: &str = r#""process":2,"type":"invoke","f":"read","key":"a""#;

    fn after_w1(rest: &[&str], breach: Option<&str>) {
        check(&[&W1, rest].concat(), breach);
    }

    #[test]
    fn a_read_sees_the_newest_write() {
        let good = r#""process":2,"type":"ok","f":"read","key":"a","value":"x","found_at":2,"revision":2"#;
        after_w1(&[READ, good], None);
    }

    #[test]
    fn a_lost_write_is_found() {
        after_w1(
            &[READ, r#""process":2,"type":"ok","f":"read","key":"a","revision":2"#],
            Some("read was None"),
        );
    }

    #[test]
    fn a_read_from_the_past_is_found() {
        // Its own revision fits what it saw, and lies before a write that had ended.
        after_w1(
            &[READ, r#""process":2,"type":"ok","f":"read","key":"a","revision":1"#],
            Some("had been told"),
        );
    }

    #[test]
    fn a_read_beside_a_write_may_see_either() {
        let read = r#""process":2,"type":"ok","f":"read","key":"a","revision":1"#;
        check(&[READ, W1[0], W1[1], read], None);
    }

    #[test]
    fn one_revision_for_two_writes_is_found() {
        after_w1(
            &[
                r#""process":2,"type":"invoke","f":"write","key":"b","value":"y""#,
                r#""process":2,"type":"ok","f":"write","key":"b","value":"y","revision":2"#,
            ],
            Some("belongs to the write"),
        );
    }

    #[test]
    fn a_write_behind_an_ended_one_is_found() {
        after_w1(
            &[
                r#""process":2,"type":"invoke","f":"write","key":"b","value":"y""#,
                r#""process":2,"type":"ok","f":"write","key":"b","value":"y","revision":1"#,
            ],
            Some("had been told"),
        );
    }

    const UNKNOWN: [&str; 2] = [
        r#""process":3,"type":"invoke","f":"write","key":"a","value":"z""#,
        r#""process":3,"type":"info","f":"write","key":"a","value":"z""#,
    ];

    #[test]
    fn an_unknown_write_may_be_done_late_or_never_but_once_and_not_early() {
        let read = |found: i64, revision: i64| {
            format!(
                r#""process":2,"type":"ok","f":"read","key":"a","value":"z","found_at":{found},"revision":{revision}"#
            )
        };
        let never = r#""process":2,"type":"ok","f":"read","key":"a","value":"x","found_at":2,"revision":2"#;
        after_w1(&[UNKNOWN[0], UNKNOWN[1], READ, never], None);
        after_w1(&[UNKNOWN[0], UNKNOWN[1], READ, &read(3, 3)], None);
        after_w1(&[UNKNOWN[0], UNKNOWN[1], READ, never, READ, &read(3, 3)], None);
        // Twice, at two revisions.
        after_w1(&[UNKNOWN[0], UNKNOWN[1], READ, &read(3, 3), READ, &read(4, 4)], Some("has revision 3"));
        // At a revision that had been told before it began.
        after_w1(&[UNKNOWN[0], UNKNOWN[1], READ, &read(1, 2)], Some("had been told"));
        // Seen, and forgotten again.
        let forgotten =
            r#""process":2,"type":"ok","f":"read","key":"a","value":"x","found_at":2,"revision":4"#;
        after_w1(&[UNKNOWN[0], UNKNOWN[1], READ, &read(3, 3), READ, forgotten], Some("read was"));
        // Nobody but a watcher saw it.
        let watched =
            r#""process":9,"type":"ok","f":"watch","key":"a","value":"z","found_at":3,"revision":3"#;
        after_w1(&[UNKNOWN[0], UNKNOWN[1], watched, READ, forgotten], Some("read was"));
    }

    #[test]
    fn what_was_not_done_is_not_seen() {
        let failed = r#""process":3,"type":"fail","f":"write","key":"a","value":"z""#;
        let read = r#""process":2,"type":"ok","f":"read","key":"a","value":"z","found_at":3,"revision":3"#;
        after_w1(&[UNKNOWN[0], failed, READ, read], Some("certainly not done"));
        let foreign = r#""process":2,"type":"ok","f":"read","key":"a","value":"?","found_at":3,"revision":3"#;
        after_w1(&[READ, foreign], Some("by nobody"));
    }

    #[test]
    fn a_compare_and_set_writes_exactly_where_it_found_what_it_expected() {
        let begin = r#""process":2,"type":"invoke","f":"cas","key":"a","value":"y","expected":"x""#;
        let swapped = r#""process":2,"type":"ok","f":"cas","key":"a","value":"y","expected":"x","swapped":true,"revision":3"#;
        after_w1(&[begin, swapped], None);
        let odd = r#""process":2,"type":"ok","f":"cas","key":"a","value":"x","found_at":2,"expected":"x","swapped":false,"revision":2"#;
        after_w1(&[begin, odd], Some("did not write"));
        check(&[begin, swapped], Some("it wrote where None was"));
    }

    #[test]
    fn what_processes_can_not_do_is_refused() {
        check(&[W1[1]], Some("has begun nothing"));
    }
}
