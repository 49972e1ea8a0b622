//! What is wrong in a member's data directory while the member does not run: every class of file, each with
//! what is wrong in it. It changes nothing, and keeps a member from starting while it looks.

use std::fs;
use std::path::Path;

use super::config::{DataDir, NODE_FILE, Remembered, StartError};
use super::recover::place;
use super::repair::REPORT_FILE;
use super::spare::{self, SPARE_FILE};
use super::trust::vault::{KEYRING_FILE, Vault};
use crate::error::StorageFailed;
use crate::pki::{Credentials, Identity, UnlockKey};
use crate::storage::check::{Cut, Harm, Problem, StateFound, check_log, check_state};
use crate::storage::log::LogFound;

/// The folder into which a repair puts what it replaces.
pub(super) const DAMAGED_FOLDER: &str = "damaged";
/// Names in a data directory, and what is said of those that should hold nothing while no member runs.
const KNOWN: [&str; 7] = ["cert", "log", "state", "lock", NODE_FILE, KEYRING_FILE, SPARE_FILE];
/// What is said of a recovery that was decided and not completed.
const CUT_SHORT: &str = "a recovery was decided and cut short, and the member does not start before it is completed: \
                         `raft-kv recover --data-dir DIR --yes` does that";
const EMPTY: [&str; 3] = ["checkpoints", "incoming", "copies"];

/// What [`check`] found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckReport {
    /// Everything that is wrong, the worst first.
    pub problems: Vec<Problem>,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
    /// What the raft log holds, where it can be followed.
    pub log: Option<LogFound>,
    /// What the state holds, where it is whole.
    pub state: Option<StateFound>,
}

impl CheckReport {
    /// Whether anything is damaged, though another copy may have it. What is only left over is not.
    pub fn is_damaged(&self) -> bool {
        self.problems.iter().any(|problem| problem.harm > Harm::Note)
    }

    fn damage(&mut self, file: &Path, what: impl Into<String>) {
        self.problems.push(Problem::damage(file, None, what));
    }
}

/// Looks at every file in `data_dir`, which no process may be using. Reads all of it: it takes as long as the
/// disk does. What is locked is looked at with `unlock` alone.
///
/// # Errors
/// [`StartError::DataDir`]: no member's, in use, or unreadable. Damage is no error but in the report.
pub fn check(data_dir: &Path, unlock: Option<&UnlockKey>) -> Result<CheckReport, StartError> {
    let dir = DataDir::look(data_dir)?;
    let mut report = CheckReport::default();
    check_names(data_dir, &mut report);
    if place::is_unfinished(data_dir) {
        // Some parts are in their place and some are not: neither the old member is whole nor the new one.
        report.problems.push(Problem::spare(&data_dir.join(place::DECIDED), None, CUT_SHORT));
        report.unseen.push(format!("{}: what is in it: {CUT_SHORT}", data_dir.display()));
        return Ok(report);
    }
    if let Err(wrong) = dir.check_modes() {
        report.damage(data_dir, text_of(wrong));
    }
    check_copies(data_dir, &mut report);
    let node = match dir.recall() {
        Ok(node) => Some(node),
        Err(wrong) => {
            report.damage(&data_dir.join(NODE_FILE), text_of(wrong));
            None
        }
    };
    let identity = check_secrets(data_dir, unlock, &mut report);
    if let (Some(node), Some(identity)) = (&node, identity)
        && (identity.cluster, identity.node) != (node.cluster, node.node)
    {
        let what = format!(
            "it says member {} of cluster {}, the certificate says {} of {}",
            node.node, node.cluster, identity.node, identity.cluster
        );
        report.damage(&data_dir.join(NODE_FILE), what);
    }
    let mut all = |_| true;
    let stopped = |cut: Cut, name: &str| match cut {
        Cut::Stopped => unreachable!("it is never told to stop"),
        Cut::Failed(error) => Problem::unreadable(&data_dir.join(name), &error),
    };
    match check_log(&data_dir.join("log"), false, &mut all) {
        Ok((problems, found)) => {
            report.problems.extend(problems);
            report.log = found;
        }
        Err(cut) => report.problems.push(stopped(cut, "log")),
    }
    // A member that has joined and was not sent the state yet has none.
    if data_dir.join("state").exists() || report.log.is_none_or(|log| log.boundary > 0) {
        match check_state(&data_dir.join("state"), &mut all) {
            Ok((problems, found)) => {
                report.problems.extend(problems);
                report.state = found;
            }
            Err(cut) => report.problems.push(stopped(cut, "state")),
        }
    }
    compare(data_dir, node.as_ref(), &mut report);
    report.problems.sort_by_key(|problem| std::cmp::Reverse(problem.harm));
    Ok(report)
}

/// What an error says, without the directory that the report names anyway.
fn text_of(error: StartError) -> String {
    match error {
        StartError::DataDir { why, .. } => why,
        StartError::Storage(StorageFailed { why, .. }) => why,
        other => other.to_string(),
    }
}

fn check_names(dir: &Path, report: &mut CheckReport) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let holds_any = || fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some());
        if name == DAMAGED_FOLDER {
            report
                .problems
                .push(Problem::note(&path, "what a repair has replaced; look at it, then remove it"));
        } else if EMPTY.contains(&name) {
            if holds_any() {
                report.problems.push(Problem::note(&path, "left over; the next start empties it"));
            }
        } else if name == REPORT_FILE {
            let told = super::repair::noted(dir).map(|noted| format!("{}: {}", noted.file, noted.why));
            report.damage(
                &path,
                format!(
                    "found while the member ran: {}; the next start gets the data from the others",
                    told.unwrap_or_default()
                ),
            );
        } else if let Some(epoch) = place::epoch_of(name) {
            let what = format!(
                "what the member was in epoch {epoch}, before a recovery began the next one; once it is of no more \
                 use, remove it"
            );
            report.problems.push(Problem::note(&path, what));
        } else if name == place::BUILDING || name == place::DECIDED {
            let what = "left over of a recovery; it is not read, and the next one removes it";
            if !place::is_unfinished(dir) {
                report.problems.push(Problem::note(&path, what));
            }
        } else if !KNOWN.contains(&name) {
            report.problems.push(Problem::note(&path, "it is not raft-kv's, or left over; it is not read"));
        }
    }
}

/// Whether each small file and its second copy are equal.
fn check_copies(dir: &Path, report: &mut CheckReport) {
    let file = dir.join(SPARE_FILE);
    let Some(copies) = spare::read(dir) else {
        let what =
            "it is missing or damaged; the files that it copies are there, and the next start writes it";
        return report.problems.push(Problem::spare(&file, None, what));
    };
    let wrong = spare::wrong(dir, &copies);
    for (name, copy) in &copies {
        let first = spare::first(dir, name);
        if first.as_ref() == Some(copy) {
            continue;
        }
        let path = dir.join(name);
        let offset = first.as_ref().and_then(|first| {
            let at = first.iter().zip(copy.iter()).position(|(a, b)| a != b);
            at.or_else(|| (first.len() != copy.len()).then_some(first.len().min(copy.len())))
        });
        let what = match (&first, wrong.contains(&name.as_str())) {
            (None, _) => "it is missing; its second copy is whole, and the next start uses that",
            (_, true) => "it is damaged; its second copy is whole, and the next start uses that",
            (_, false) => "its second copy differs from it: a crash came between the two, or one is damaged",
        };
        report.problems.push(Problem::spare(&path, offset.map(|at| at as u64), what));
    }
}

/// Looks at keyring, certificate and key. Gives whom the certificate names.
fn check_secrets(dir: &Path, unlock: Option<&UnlockKey>, report: &mut CheckReport) -> Option<Identity> {
    let identity = certificate(dir, report);
    match Vault::open(dir, unlock) {
        Ok(vault) => {
            if let Err(wrong) = vault.look(identity.is_some()) {
                report.problems.push(wrong);
            }
        }
        Err(StartError::Locked { wrong, .. }) => {
            let why =
                if wrong { "that is not its unlock key" } else { "it is locked; give RAFT_KV_UNLOCK_KEY" };
            report.unseen.push(format!("{}: what is in it: {why}", dir.join(KEYRING_FILE).display()));
        }
        Err(other) => report.damage(&dir.join(KEYRING_FILE), text_of(other)),
    }
    identity
}

/// Whether the certificate can be read and is believed by the roots beside it. One that has expired is not
/// damaged.
fn certificate(dir: &Path, report: &mut CheckReport) -> Option<Identity> {
    let (cacert, cert) = (spare::first(dir, spare::CACERT), spare::first(dir, spare::CERT));
    let chain = cert.as_ref().and_then(|text| pem::parse_many(text).ok()).unwrap_or_default();
    let chain: Vec<Vec<u8>> = chain.into_iter().map(pem::Pem::into_contents).collect();
    let credentials = Credentials { chain, ..Credentials::default() };
    let identity = match credentials.identity() {
        Ok(identity) => identity,
        Err(refusal) => {
            report.damage(&dir.join(spare::CERT), refusal.to_string());
            return None;
        }
    };
    let outdated = credentials.check_date(std::time::SystemTime::now(), "the member renews it").is_err();
    if !outdated && !spare::believed(cacert.as_ref(), cert.as_ref()) {
        let what = "the roots in cert/cacert.pem do not believe this certificate: one of the two is damaged";
        report.damage(&dir.join(spare::CERT), what);
    }
    Some(identity)
}

/// Whether log, state and identity belong together.
fn compare(dir: &Path, node: Option<&Remembered>, report: &mut CheckReport) {
    let (log_dir, state_dir) = (dir.join("log"), dir.join("state"));
    if let Some(log) = report.log {
        if let Some(node) = node
            && (log.identity.cluster, log.identity.node) != (node.cluster, node.node)
        {
            let what =
                format!("it belongs to member {} of cluster {}", log.identity.node, log.identity.cluster);
            report.damage(&log_dir, what);
        }
        let applied = report.state.as_ref().map(|state| state.applied.index);
        if let Some(applied) = applied.filter(|applied| *applied < log.boundary) {
            let what = format!(
                "the state ends with entry {applied}, the log begins behind {}: those between are gone",
                log.boundary
            );
            report.damage(&state_dir, what);
        }
    }
    let cluster = report.state.as_ref().map(|state| state.cluster);
    if let (Some(found), Some(node)) = (cluster, node)
        && found != node.cluster
    {
        report.damage(&state_dir, format!("it belongs to cluster {found}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of one entry in a data directory.
    fn said_of(name: &str) -> Vec<Problem> {
        let dir = tempfile::tempdir().unwrap();
        if name == REPORT_FILE {
            fs::write(dir.path().join(name), "/d/log/segment-1\nits end is missing\n").unwrap();
        } else {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let mut report = CheckReport::default();
        check_names(dir.path(), &mut report);
        report.problems
    }

    #[test]
    fn every_name_in_a_data_directory_is_known() {
        let check = |name: &str, expect: Option<(Harm, &str)>| {
            let said = said_of(name);
            match (expect, said.as_slice()) {
                (None, []) => {}
                (Some((harm, part)), [problem]) => {
                    assert!(problem.harm == harm && problem.what.contains(part), "{name}: {problem:?}");
                }
                _ => panic!("{name}: {said:?}"),
            }
        };
        check("log", None);
        check("incoming", None);
        check("epoch-7", Some((Harm::Note, "epoch 7")));
        check("epoch-7-2", Some((Harm::Note, "epoch 7")));
        check("epoch-7-1", Some((Harm::Note, "not raft-kv's")));
        check("epoch-x", Some((Harm::Note, "not raft-kv's")));
        check("recovering", Some((Harm::Note, "left over of a recovery")));
        check("recovered", Some((Harm::Note, "left over of a recovery")));
        check("damaged", Some((Harm::Note, "replaced")));
        check("damage", Some((Harm::Damage, "its end is missing")));
        check("notes.txt", Some((Harm::Note, "not raft-kv's")));
    }

    #[test]
    fn a_recovery_that_was_cut_short_is_said_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("recovered")).unwrap();
        fs::write(dir.path().join("recovered/report"), "").unwrap();
        let mut report = CheckReport::default();
        check_names(dir.path(), &mut report);
        assert_eq!(report.problems, Vec::new(), "it is no left-over");
        assert!(place::is_unfinished(dir.path()));
    }
}
