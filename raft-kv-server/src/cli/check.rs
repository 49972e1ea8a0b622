//! `check`: what is wrong in the data directory of a member that does not run. It only shows what the
//! crate finds, with what there is to do about it.

use raft_kv::client::{CheckReport, check};
use raft_kv::storage::check::{Harm, Problem};
use serde_json::{Value, json};

use crate::args::CheckArgs;
use crate::cli::lock::given_key;
use crate::failure::{Failure, Kind};
use crate::output::Output;

/// `raft-kv check`.
pub fn run(args: &CheckArgs, output: &mut Output) -> Result<(), Failure> {
    let unlock = given_key(args.unlock_key_file.as_deref())?;
    let report = check(&args.data_dir, unlock.as_ref())?;
    output.answer(|| as_json(&report), || as_text(&report))?;
    let damaged = report.problems.iter().filter(|problem| problem.harm > Harm::Note).count();
    if damaged == 0 {
        return Ok(());
    }
    let lost = report.problems.iter().any(|problem| problem.harm == Harm::Damage);
    let next = if lost {
        "start the member: it gets its data from the others; where there are none, restore a backup"
    } else {
        "start the member: it mends what has a second copy"
    };
    Err(Failure::new(Kind::Stopped, format!("damage found in {damaged} places; {next}")))
}

fn word(harm: Harm) -> &'static str {
    match harm {
        Harm::Damage => "damage",
        Harm::Spare => "spare",
        Harm::Note => "note",
    }
}

fn problem_json(problem: &Problem) -> Value {
    json!({
        "file": problem.file,
        "offset": problem.offset,
        "what": problem.what,
        "harm": word(problem.harm),
        "next": next(problem.harm),
    })
}

/// What is to be done.
fn next(harm: Harm) -> &'static str {
    match harm {
        Harm::Damage => "the next start gets the data from the other members",
        Harm::Spare => "the next start makes it good from another copy on this disk",
        Harm::Note => "nothing has to be done",
    }
}

fn as_json(report: &CheckReport) -> Value {
    let log = report.log.map(|log| {
        json!({
            "cluster": log.identity.cluster.to_string(),
            "member": log.identity.node.to_string(),
            "boundary": log.boundary,
            "last_term": log.end.term,
            "last_index": log.end.index,
            "term": log.term,
            "whole": log.whole,
        })
    });
    let state = report.state.as_ref().map(|state| {
        json!({
            "cluster": state.cluster.to_string(),
            "applied": state.applied.index,
            "applied_term": state.applied.term,
            "revision": state.revision,
            "checksum": format!("{:016x}", state.hash),
            "members": state.members.len(),
        })
    });
    json!({
        "damaged": report.is_damaged(),
        "problems": report.problems.iter().map(problem_json).collect::<Vec<_>>(),
        "unseen": report.unseen,
        "log": log,
        "state": state,
    })
}

fn as_text(report: &CheckReport) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        text.push_str(&format!("{:<7} {problem}; {}\n", word(problem.harm), next(problem.harm)));
    }
    for unseen in &report.unseen {
        text.push_str(&format!("unseen  {unseen}\n"));
    }
    if let Some(log) = &report.log {
        let (end, boundary) = (log.end.index, log.boundary);
        text.push_str(&format!("log     entries {} to {end}, term {}\n", boundary + 1, log.term));
    }
    if let Some(state) = &report.state {
        text.push_str(&format!(
            "state   applied {}, revision {}, checksum {:016x}\n",
            state.applied.index, state.revision, state.hash
        ));
    }
    if !report.is_damaged() {
        text.push_str("nothing is damaged\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_report_is_complete_in_both_forms() {
        let clean = CheckReport::default();
        assert_eq!(as_text(&clean), "nothing is damaged\n");
        let file = Path::new("log/segment");
        let report = CheckReport {
            problems: vec![
                Problem::damage(file, 64, "the record that begins here is damaged"),
                Problem::note(Path::new("x"), "left over"),
            ],
            unseen: vec!["keyring: it is locked".into()],
            ..CheckReport::default()
        };
        assert_eq!(
            as_text(&report),
            "damage  log/segment: at offset 64: the record that begins here is damaged; the next start gets the data \
             from the other members\nnote    x: left over; nothing has to be done\nunseen  keyring: it is locked\n"
        );
        let json = as_json(&report);
        assert_eq!((&json["damaged"], &json["problems"][0]["offset"]), (&json!(true), &json!(64)));
        assert_eq!(json["problems"][1]["harm"], "note");
        assert_eq!(json["problems"][1]["offset"], Value::Null);
    }
}
