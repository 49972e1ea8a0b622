//! The state's folder: which tables there must be, and whether they are whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Cut, Harm, Pace, Problem, manifest, sst};
use crate::error::StorageFailed;
use crate::machine::{self, Read};
use crate::storage::checkpoint::look_into;
use crate::storage::rocks;
use crate::types::{ClusterId, Member, Revision, SnapshotMeta};

/// What a sound state holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StateFound {
    /// Whose it is.
    pub cluster: ClusterId,
    /// The last entry in it.
    pub applied: SnapshotMeta,
    /// Its revision.
    pub revision: Revision,
    /// A checksum over all of it: equal on members that have applied the same.
    pub hash: u64,
    /// The members.
    pub members: Vec<Member>,
}

/// Checks the state in `dir`, which nobody uses, and reads all of it; what is in it only where nothing is
/// wrong and a state is there.
pub fn check_state(dir: &Path, mut pace: Pace<'_>) -> Result<(Vec<Problem>, Option<StateFound>), Cut> {
    let mut problems = Vec::new();
    let Some(folder) = newest(dir, &mut problems)? else {
        problems.push(Problem::damage(dir, None, "it holds no state"));
        return Ok((problems, None));
    };
    let manifest = check_manifest(&folder, &mut pace)?;
    let sound = manifest.is_none();
    problems.extend(manifest);
    // What RocksDB makes of a damaged manifest is nothing to go by.
    let live = if sound { Some(rocks::live_tables(&folder)) } else { None };
    let (live, failed) = match live {
        Some(Ok(live)) => (Some(live), None),
        Some(Err(failed)) => (None, Some(failed)),
        None => (None, None),
    };
    let tables = match live {
        Some(live) => missing_or_left(&folder, live, &mut problems)?,
        None => tables_in(&folder)?,
    };
    problems.extend(check_files(&tables, &mut pace)?);
    let damaged = |problems: &[Problem]| problems.iter().any(|problem| problem.harm == Harm::Damage);
    if let Some(failed) = failed.filter(|_| !damaged(&problems)) {
        problems.push(told(&failed));
    }
    if damaged(&problems) {
        return Ok((problems, None));
    }
    let found = look_into(&folder, read).and_then(|found| found);
    match found {
        Ok(found) => Ok((problems, found)),
        Err(failed) => {
            problems.push(told(&failed));
            Ok((problems, None))
        }
    }
}

/// The problems of table files. One that has gone meanwhile was not needed any more.
pub fn check_files(tables: &[PathBuf], mut pace: Pace<'_>) -> Result<Vec<Problem>, Cut> {
    let mut problems = Vec::new();
    for table in tables {
        match sst::check(table, &mut pace) {
            Ok(problem) => problems.extend(problem),
            Err(Cut::Stopped) => return Err(Cut::Stopped),
            Err(Cut::Failed(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(Cut::Failed(error)) => problems.push(Problem::unreadable(table, &error)),
        }
    }
    Ok(problems)
}

/// The problems of tables' ends alone: what was cut short shows there. It reads next to nothing. A table
/// that has gone meanwhile was not needed any more.
pub fn check_ends(tables: &[PathBuf]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for table in tables {
        match sst::check_end(table) {
            Ok(problem) => problems.extend(problem),
            Err(Cut::Failed(error)) if error.kind() != std::io::ErrorKind::NotFound => {
                problems.push(Problem::unreadable(table, &error));
            }
            Err(_) => {}
        }
    }
    problems
}

/// Where a state that can't be opened is damaged, as far as that shows without reading all of it.
pub fn locate(dir: &Path) -> Vec<Problem> {
    let mut problems = Vec::new();
    let Ok(Some(folder)) = newest(dir, &mut Vec::new()) else { return problems };
    if let Ok(problem) = check_manifest(&folder, &mut |_| true) {
        problems.extend(problem);
    }
    problems.extend(check_ends(&tables_in(&folder).unwrap_or_default()));
    problems
}

/// The first problem of what leads to the tables in `folder`.
pub(in crate::storage) fn check_manifest(folder: &Path, mut pace: Pace<'_>) -> Result<Option<Problem>, Cut> {
    let path = match manifest::current(folder) {
        Ok(path) => path,
        Err(problem) => return Ok(Some(problem)),
    };
    match manifest::check(&path, &mut pace) {
        Err(Cut::Failed(error)) => Ok(Some(Problem::unreadable(&path, &error))),
        checked => checked,
    }
}

/// What a failure of RocksDB says, as a problem.
fn told(failed: &StorageFailed) -> Problem {
    let (file, offset) = rocks::place_in(&failed.why).unwrap_or((failed.file.clone(), None));
    Problem { file, offset, what: failed.why.clone(), harm: Harm::Damage }
}

fn read(view: &dyn Read) -> Result<Option<StateFound>, StorageFailed> {
    if !machine::read::holds_state(view)? {
        return Ok(None);
    }
    Ok(Some(StateFound {
        cluster: machine::read::cluster(view)?,
        applied: machine::read::applied(view)?,
        revision: machine::read::current_revision(view)?,
        hash: machine::read::hash(view)?,
        members: machine::read::members(view)?,
    }))
}

/// The folder that counts; what lies beside it is named.
fn newest(dir: &Path, problems: &mut Vec<Problem>) -> Result<Option<PathBuf>, Cut> {
    let mut folders = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match name.strip_prefix("db-").and_then(|number| number.parse::<u64>().ok()) {
            Some(number) => folders.push((number, path)),
            None => problems.push(Problem::note(&path, "left over; it is not read")),
        }
    }
    folders.sort();
    let newest = folders.pop();
    let older = folders.iter().map(|(_, path)| Problem::note(path, "left over; the next start removes it"));
    problems.extend(older);
    Ok(newest.map(|(_, path)| path))
}

fn tables_in(folder: &Path) -> Result<Vec<PathBuf>, Cut> {
    let mut tables = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sst") {
            tables.push(path);
        }
    }
    tables.sort();
    Ok(tables)
}

/// The tables that must be there and are; what is missing, has another length or is left over is named.
fn missing_or_left(
    folder: &Path,
    mut live: BTreeMap<String, u64>,
    problems: &mut Vec<Problem>,
) -> Result<Vec<PathBuf>, Cut> {
    let mut tables = Vec::new();
    for path in tables_in(folder)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(length) = live.remove(name) else {
            problems.push(Problem::note(&path, "left over; the next start removes it"));
            continue;
        };
        let found = fs::metadata(&path)?.len();
        if found != length {
            let what = format!("it has {found} bytes, it was written with {length}");
            problems.push(Problem::damage(&path, found.min(length), what));
        } else {
            tables.push(path);
        }
    }
    problems.extend(live.keys().map(|name| Problem::damage(&folder.join(name), None, "it is missing")));
    Ok(tables)
}
