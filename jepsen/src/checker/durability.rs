//! The claim: what was acknowledged is there. Once all is healed, each member's answer holds every
//! element whose addition was done, and none that nobody added or whose addition was certainly not
//! done.

use std::collections::{BTreeMap, BTreeSet};

use super::Verdict;
use crate::history::{Event, Function, Kind, operations};

/// Holds the history to the claim.
pub fn check(history: &[Event]) -> Verdict {
    let claim = "nothing acknowledged is lost";
    let operations = match operations(history) {
        Ok(operations) => operations,
        Err(why) => return Verdict { claim, checked: "nothing".into(), breaches: vec![why] },
    };
    let added: BTreeMap<&str, Kind> = operations
        .iter()
        .filter(|operation| operation.invoke.f == Function::Add)
        .filter_map(|operation| Some((operation.invoke.key.as_deref()?, operation.outcome())))
        .collect();
    let acknowledged: BTreeSet<&str> =
        added.iter().filter(|(_, kind)| **kind == Kind::Ok).map(|(key, _)| *key).collect();
    let mut breaches = Vec::new();
    let mut reads = 0;
    for read in operations.iter().filter_map(|operation| operation.done()) {
        if read.f != Function::FinalRead {
            continue;
        }
        reads += 1;
        let node = read.node.as_deref().unwrap_or("?");
        let held: BTreeSet<&str> = read.elements.iter().map(String::as_str).collect();
        let mut say = |elements: Vec<&str>, what: &str| {
            if let Some(first) = elements.first() {
                breaches.push(format!("{node}: {} elements {what}, {first} the first", elements.len()));
            }
        };
        say(acknowledged.difference(&held).copied().collect(), "were acknowledged and are lost");
        let of =
            |kind: Option<Kind>| held.iter().copied().filter(|key| added.get(key).copied() == kind).collect();
        say(of(Some(Kind::Fail)), "are there that were certainly not added");
        say(of(None), "are there that nobody added");
        if held.len() < read.elements.len() {
            breaches.push(format!("{node}: an element is listed twice"));
        }
    }
    if !added.is_empty() && reads == 0 {
        breaches.push("nobody was asked for the elements at the end".to_owned());
    }
    let checked = format!("{} acknowledged elements in {reads} final reads", acknowledged.len());
    Verdict { claim, checked, breaches }
}

#[cfg(test)]
mod tests {
    use super::super::expect;

    #[test]
    fn a_final_read_holds_what_was_acknowledged_and_nothing_made_up() {
        let check = |elements: &str, breach: Option<&str>| {
            let read = format!(
                r#""process":9,"type":"ok","f":"final-read","node":"n1","revision":4,"elements":[{elements}]"#
            );
            let lines = [
                r#""process":1,"type":"invoke","f":"add","key":"done","value":"done""#,
                r#""process":1,"type":"ok","f":"add","key":"done","value":"done","revision":2"#,
                r#""process":2,"type":"invoke","f":"add","key":"unknown","value":"unknown""#,
                r#""process":2,"type":"info","f":"add","key":"unknown","value":"unknown""#,
                r#""process":3,"type":"invoke","f":"add","key":"failed","value":"failed""#,
                r#""process":3,"type":"fail","f":"add","key":"failed","value":"failed""#,
                r#""process":9,"type":"invoke","f":"final-read""#,
                &read,
            ];
            expect(super::check, &lines, breach);
        };
        check(r#""done""#, None);
        check(r#""done","unknown""#, None);
        check("", Some("are lost, done the first"));
        check(r#""done","failed""#, Some("certainly not added"));
        check(r#""done","other""#, Some("nobody added"));
        check(r#""done","done""#, Some("twice"));
    }

    #[test]
    fn a_run_without_a_final_read_proves_nothing() {
        let lines = [
            r#""process":1,"type":"invoke","f":"add","key":"a","value":"a""#,
            r#""process":1,"type":"ok","f":"add","key":"a","value":"a","revision":2"#,
        ];
        expect(super::check, &lines, Some("nobody was asked"));
    }
}
