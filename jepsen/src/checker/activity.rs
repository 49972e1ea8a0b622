//! The claim: enough happened for the others to mean something. A run in which clients did little,
//! faults did not come, or nobody was served while a minority was away, is red.

use super::Verdict;
use crate::history::{Event, Function, Kind};
use crate::nemesis::Fault;

/// What a run must have seen at least.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Of each of these so many were done, over the whole run.
    pub done: Vec<(Function, usize)>,
    /// Operations done in each fault that leaves a quorum.
    pub during: usize,
    /// Operations done after each fault, before the next.
    pub after: usize,
    /// Faults that came at least once.
    pub faults: Vec<Fault>,
}

/// Holds the history to the plan.
pub fn check(history: &[Event], plan: &Plan) -> Verdict {
    let mut breaches = Vec::new();
    let count = |f: Function| history.iter().filter(|e| e.f == f && e.kind == Kind::Ok).count();
    for &(f, least) in &plan.done {
        let done = count(f);
        if done < least {
            breaches.push(format!("{f:?}: {done} done, at least {least} were to be"));
        }
    }
    let mut faults = 0;
    for &fault in &plan.faults {
        if !history.iter().any(|e| e.f == Function::Heal && e.value.as_deref() == Some(fault.name())) {
            breaches.push(format!("the fault {} never came to its end", fault.name()));
        }
    }
    let marks: Vec<usize> =
        (0..history.len()).filter(|&at| matches!(history[at].f, Function::Break | Function::Heal)).collect();
    for (number, &at) in marks.iter().enumerate() {
        let end = marks.get(number + 1).copied().unwrap_or(history.len());
        let done = history[at..end].iter().filter(|event| event.is_operation_done()).count();
        let fault = history[at].value.as_deref().unwrap_or("?");
        let least = if history[at].f == Function::Heal {
            plan.after
        } else {
            faults += 1;
            let quorum = Fault::ALL.iter().any(|known| known.name() == fault && known.leaves_quorum());
            if quorum { plan.during } else { 0 }
        };
        if done < least {
            let when = if history[at].f == Function::Heal { "after" } else { "during" };
            breaches.push(format!(
                "event {at}: {done} operations done {when} the fault {fault}, at least {least} were to be"
            ));
        }
    }
    let operations = history.iter().filter(|event| event.is_operation_done()).count();
    let anew = history.iter().filter(|e| e.f == Function::Watch && e.kind == Kind::Invoke).count();
    let mut terms: Vec<u64> = history.iter().filter_map(|event| event.term).collect();
    terms.sort_unstable();
    terms.dedup();
    let checked =
        format!("{operations} operations, {faults} faults, {} terms, {anew} starts of a watch", terms.len());
    Verdict { claim: "enough happened", checked, breaches }
}

#[cfg(test)]
mod tests {
    use super::super::history;
    use super::*;

    fn check(lines: &[&str], breach: Option<&str>) {
        let plan = Plan { done: vec![(Function::Read, 2)], during: 1, after: 1, faults: vec![Fault::Kill] };
        let breaches = super::check(&history(lines), &plan).breaches;
        match breach {
            None => assert!(breaches.is_empty(), "{breaches:?}"),
            Some(part) => assert!(breaches.iter().any(|b| b.contains(part)), "{part}: {breaches:?}"),
        }
    }

    const DONE: &str = r#""process":1,"type":"ok","f":"read","revision":1"#;
    const FAILED: &str = r#""process":1,"type":"fail","f":"read""#;
    const BREAK: &str = r#""process":-1,"type":"info","f":"break","value":"kill""#;
    const HEAL: &str = r#""process":-1,"type":"info","f":"heal","value":"kill""#;

    #[test]
    fn too_little_is_red() {
        check(&[BREAK, DONE, HEAL, DONE], None);
        check(&[BREAK, DONE, HEAL, FAILED], Some("after the fault kill"));
        check(&[BREAK, FAILED, HEAL, DONE, DONE], Some("during the fault kill"));
        check(&[DONE, DONE], Some("never came"));
        check(&[BREAK, DONE, HEAL], Some("Read: 1 done"));
    }

    #[test]
    fn nobody_is_served_without_a_quorum() {
        let (broken, healed) = (BREAK.replace("kill", "kill-all"), HEAL.replace("kill", "kill-all"));
        check(&[BREAK, DONE, HEAL, DONE, &broken, FAILED, &healed, DONE], None);
    }
}
