//! How the directory of a new epoch takes the place of the old one, whatever is killed when.
//!
//! `recovering/` is built and means nothing; renamed to `recovered/` it is decided. From then on each part is moved:
//! the old one aside, the new one in its place. A part that is still in `recovered/` was not moved, so whoever
//! goes on knows what is left. No member runs here meanwhile. Nothing old is ever removed.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::super::config::{DataDir, StartError};
use super::super::spare::SPARE_FILE;
use super::super::trust::vault::KEYRING_FILE;
use super::{Recovery, Told};
use crate::codec::Wire;
use crate::error::StorageFailed;
use crate::net::write_private;

/// Where the new epoch is built.
pub(in crate::client) const BUILDING: &str = "recovering";
/// Its name once it is decided.
pub(in crate::client) const DECIDED: &str = "recovered";
/// What is said of it; there until everything is in its place.
const REPORT: &str = "report";
/// The parts of a member's directory. The second copies move first, which would bring the others back; who it
/// is moves last.
const PARTS: [&str; 6] = [SPARE_FILE, "log", "state", "cert", KEYRING_FILE, "node"];

fn failed(path: &Path, action: &str) -> impl Fn(std::io::Error) -> StorageFailed {
    move |error| StorageFailed::io(path.display().to_string(), action, &error)
}

/// Whether a recovery in `dir` was decided and not completed: nothing else may use it then.
pub(in crate::client) fn is_unfinished(dir: &Path) -> bool {
    dir.join(DECIDED).join(REPORT).exists()
}

/// Which epoch the content of a folder of that name was before a recovery began the next one.
pub(in crate::client) fn epoch_of(name: &str) -> Option<u64> {
    let mut numbers = name.strip_prefix("epoch-")?.split('-').map(str::parse);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(epoch)), None | Some(Ok(2u64..)), None) => Some(epoch),
        _ => None,
    }
}

/// The recovery that was decided and not completed.
pub(super) fn unfinished(dir: &DataDir) -> Result<Option<Recovery>, StartError> {
    if !is_unfinished(dir.path()) {
        return Ok(None);
    }
    let path = dir.join(DECIDED).join(REPORT);
    let report = fs::read(&path).map_err(failed(&path, "reading it"))?;
    let recovery = Recovery::from_bytes(report.into())
        .map_err(|error| StorageFailed::damaged(path.display().to_string(), error.to_string()))?;
    Ok(Some(recovery))
}

/// An empty folder to build in; what an attempt before left there is removed.
pub(super) fn begin(dir: &DataDir) -> Result<PathBuf, StorageFailed> {
    for left in [BUILDING, DECIDED] {
        remove(&dir.join(left))?;
    }
    let fresh = dir.join(BUILDING);
    make_folder(&fresh)?;
    Ok(fresh)
}

fn remove(path: &Path) -> Result<(), StorageFailed> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(path, "removing it")(error)),
        _ => Ok(()),
    }
}

/// Makes a folder for its owner alone, if there is none.
pub(super) fn make_folder(path: &Path) -> Result<(), StorageFailed> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(failed(path, "making the folder"))
}

/// A name for what the epoch had that is not taken.
pub(super) fn free_name(dir: &DataDir, epoch: u64) -> String {
    let first = format!("epoch-{epoch}");
    let others = (2u64..).map(|number| format!("epoch-{epoch}-{number}"));
    std::iter::once(first)
        .chain(others)
        .find(|name| !dir.join(name).exists())
        .expect("there is always another number")
}

/// Decides for what was built: the one step after which there is no way back.
pub(super) fn decide(dir: &DataDir, recovery: &Recovery) -> Result<(), StorageFailed> {
    let fresh = dir.join(BUILDING);
    write_private(&fresh.join(REPORT), &recovery.to_bytes())?;
    sync(&fresh)?;
    rename(&fresh, &dir.join(DECIDED))?;
    sync(dir.path())
}

/// Puts every part in its place.
pub(super) fn finish(dir: &DataDir, recovery: &Recovery, step: &mut Told<'_>) -> Result<(), StartError> {
    let (decided, aside) = (dir.join(DECIDED), dir.join(&recovery.set_aside));
    make_folder(&aside)?;
    for part in PARTS {
        let (new, place) = (decided.join(part), dir.join(part));
        if !new.exists() {
            continue;
        }
        if place.exists() {
            rename(&place, &aside.join(part))?;
            sync(&aside)?;
            sync(dir.path())?;
            step(&format!("{part} aside"))?;
        }
        rename(&new, &place)?;
        sync(dir.path())?;
        sync(&decided)?;
        step(&format!("{part} in place"))?;
    }
    let report = decided.join(REPORT);
    fs::remove_file(&report).map_err(failed(&report, "removing it"))?;
    sync(&decided)?;
    step("finished")?;
    remove(&decided)?;
    Ok(sync(dir.path())?)
}

fn rename(from: &Path, to: &Path) -> Result<(), StorageFailed> {
    fs::rename(from, to).map_err(failed(from, "moving it"))
}

fn sync(folder: &Path) -> Result<(), StorageFailed> {
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder, "syncing it"))
}
