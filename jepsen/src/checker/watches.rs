//! The claim: a watcher of everything is told every revision once, in order, with nothing missing,
//! however often it had to start anew; and all are told the same, which is what was acknowledged.

use std::collections::BTreeMap;

use super::Verdict;
use crate::history::{Event, Function, Kind, operations};

/// The first revision that a write can have: an empty store is at 1.
const FIRST: i64 = 2;

/// revision → key → value.
type Told<'a> = BTreeMap<i64, BTreeMap<&'a str, &'a str>>;

/// Holds the history to the claim.
pub fn check(history: &[Event]) -> Verdict {
    let claim = "watchers are told everything once";
    let mut breaches = Vec::new();
    let mut watchers: BTreeMap<i64, Vec<&Event>> = BTreeMap::new();
    for event in history.iter().filter(|event| event.f == Function::Watch) {
        let told = watchers.entry(event.process).or_default();
        if event.kind == Kind::Ok {
            told.push(event);
        }
    }
    let told: BTreeMap<i64, Told> = watchers
        .iter()
        .map(|(process, events)| (*process, in_order(*process, events, &mut breaches)))
        .collect();
    let acknowledged = acknowledged(history, &mut breaches);
    for (process, told) in &told {
        compare(*process, told, &acknowledged, &mut breaches);
    }
    for ((one, left), (other, right)) in told.iter().zip(told.iter().skip(1)) {
        let differs = left.iter().find(|(revision, keys)| right.get(revision).is_some_and(|k| k != *keys));
        if let Some((revision, _)) = differs {
            breaches.push(format!("watchers {one} and {other} were told different things of {revision}"));
        }
    }
    let revisions: usize = told.values().map(BTreeMap::len).sum();
    let checked = format!("{revisions} revisions told to {} watchers", told.len());
    Verdict { claim, checked, breaches }
}

/// What one watcher was told; breaches where a revision is missing, late or told twice.
fn in_order<'a>(process: i64, events: &[&'a Event], breaches: &mut Vec<String>) -> Told<'a> {
    let mut told = Told::new();
    let mut last = FIRST - 1;
    for event in events {
        let revision = event.revision.unwrap_or(0);
        let key = event.key.as_deref().unwrap_or_default();
        let at = format!("event {}: watcher {process}", event.index);
        if revision > last + 1 {
            breaches.push(format!("{at} was told {revision} after {last}: revisions are missing"));
        } else if revision < last {
            breaches.push(format!("{at} was told {revision} after {last}: told twice, or out of order"));
        }
        last = last.max(revision);
        let value = event.value.as_deref().unwrap_or_default();
        if told.entry(revision).or_default().insert(key, value).is_some() {
            breaches.push(format!("{at} was told {key} of {revision} twice"));
        }
    }
    told
}

/// The writes that were done: revision → (key, value).
fn acknowledged<'a>(history: &'a [Event], breaches: &mut Vec<String>) -> BTreeMap<i64, (&'a str, &'a str)> {
    let operations = operations(history).unwrap_or_else(|why| {
        breaches.push(why);
        Vec::new()
    });
    let done = operations.iter().filter(|operation| operation.writes()).filter_map(|operation| {
        let end = operation.done().filter(|end| end.swapped != Some(false))?;
        Some((end.revision?, (operation.invoke.key.as_deref()?, operation.invoke.value.as_deref()?)))
    });
    done.collect()
}

fn compare(process: i64, told: &Told, done: &BTreeMap<i64, (&str, &str)>, breaches: &mut Vec<String>) {
    let missing = done.iter().filter(|(revision, (key, value))| {
        told.get(revision).is_none_or(|keys| keys.get(key) != Some(value))
    });
    let missing: Vec<_> = missing.collect();
    if let Some((revision, (key, _))) = missing.first() {
        let count = missing.len();
        breaches.push(format!(
            "watcher {process} was not told of {count} acknowledged writes, {key} at {revision} the first"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::super::expect;

    fn told(process: i64, key: &str, revision: i64) -> String {
        format!(
            r#""process":{process},"type":"ok","f":"watch","key":"{key}","value":"v{revision}","revision":{revision}"#
        )
    }

    const WRITE: [&str; 2] = [
        r#""process":1,"type":"invoke","f":"write","key":"a","value":"v3""#,
        r#""process":1,"type":"ok","f":"write","key":"a","value":"v3","revision":3"#,
    ];
    const ANEW: &str = r#""process":8,"type":"info","f":"watch","error":"connection lost""#;

    fn check(revisions: &[(&str, i64)], breach: Option<&str>) {
        let lines: Vec<String> = revisions.iter().map(|(key, revision)| told(8, key, *revision)).collect();
        let mut lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        lines.insert(lines.len().min(1), ANEW);
        expect(super::check, &[&lines[..], &WRITE].concat(), breach);
    }

    #[test]
    fn every_revision_once_in_order() {
        check(&[("a", 2), ("a", 3)], None);
        check(&[("a", 2), ("b", 2), ("a", 3)], None);
        check(&[("a", 3)], Some("are missing"));
        check(&[("a", 2), ("a", 4), ("a", 3)], Some("out of order"));
        check(&[("a", 2), ("a", 2), ("a", 3)], Some("a of 2 twice"));
        check(&[("a", 2), ("a", 3), ("a", 2)], Some("told twice"));
    }

    #[test]
    fn what_was_acknowledged_was_told() {
        check(&[("a", 2)], Some("not told of 1 acknowledged"));
        check(&[("a", 2), ("b", 3)], Some("not told of 1 acknowledged"));
        check(&[], Some("not told of 1 acknowledged"));
    }

    #[test]
    fn all_are_told_the_same() {
        let (one, other) = (told(8, "a", 2), told(9, "b", 2));
        expect(super::check, &[&one, &other], Some("different things of 2"));
    }
}
