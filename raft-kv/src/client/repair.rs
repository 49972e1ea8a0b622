//! What a member does about damage on its disk: it says where it is, stops, and comes back as an empty
//! learner under a new id, taken in by the others.
//!
//! Under its old id it could have promised something that it does not know any more. It must never throw
//! anything away before the others have taken it in, and never where there are no others.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::check::DAMAGED_FOLDER;
use super::config::{DataDir, Remembered, StartError, remember_in};
use super::local::Local;
use crate::error::{Error, StorageFailed};
use crate::net::write_private;
use crate::storage::check::{Harm, Problem, check_files, check_log, locate};
use crate::types::NodeId;

/// The file that tells the next start of damage that was found while the member ran.
pub(super) const REPORT_FILE: &str = "damage";
/// What is kept of a damaged member.
const KEPT: [&str; 2] = ["log", "state"];
/// How often it is looked whether a read has found damage.
const WATCH: Duration = Duration::from_millis(250);
/// How long the others may take to take it in: a lost answer can't be asked for again.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How long it is looked for damage after a failure that does not say where it is.
const EXAMINATION: Duration = Duration::from_secs(30);
/// Pauses between two tries to be taken in.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

/// Tells the next start, which then does not trust what is on the disk.
pub(super) fn note(dir: &Path, damage: &StorageFailed) {
    let path = dir.join(REPORT_FILE);
    if path.exists() {
        return;
    }
    let text = format!("{}\n{}\n", damage.file, damage.why);
    if let Err(error) = write_private(&path, text.as_bytes()) {
        tracing::error!(%error, "damage can't be noted; the next start may not know of it");
    }
}

/// What was noted and is not repaired yet.
pub(super) fn noted(dir: &Path) -> Option<StorageFailed> {
    let text = match fs::read(dir.join(REPORT_FILE)) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(_) => String::new(),
    };
    let (file, why) = text.split_once('\n').unwrap_or(("", ""));
    let file = if file.is_empty() { dir.display().to_string() } else { file.to_owned() };
    let why = if why.is_empty() { "damage was found while it ran" } else { why.trim_end() };
    Some(StorageFailed::damaged(file, why))
}

/// Says what is damaged: what made the start fail, and where that is, as far as it can be told.
pub(super) fn say(dir: &DataDir, damage: &StorageFailed) {
    tracing::error!(
        file = damage.file,
        why = damage.why,
        "damage found on this disk; nothing of it is served"
    );
    let mut places = locate(&dir.join("state"));
    places.extend(
        check_log(&dir.join("log"), false, &mut |_| true).map(|(problems, _)| problems).unwrap_or_default(),
    );
    for Problem { file, offset, what, .. } in
        places.into_iter().filter(|problem| problem.harm == Harm::Damage)
    {
        tracing::error!(file, offset, what, "damaged");
    }
}

/// What is said of damage where there is nobody to get the data from.
pub(super) fn alone(damage: StorageFailed) -> StartError {
    let next = "this member knows of no other one in its cluster, so nothing was changed: put the file back if \
                there is a copy of it, or restore a backup into a new data directory; `raft-kv check --data-dir DIR` \
                lists what is damaged";
    StartError::Storage(StorageFailed { next: next.into(), ..damage })
}

/// Asks until the others take this member in. Ends with what is no matter of time.
pub(super) async fn insist<T, F>(mut ask: impl FnMut() -> F) -> Result<T, StartError>
where
    F: Future<Output = Result<T, StartError>>,
{
    let [mut pause, longest] = PAUSES;
    loop {
        match ask().await {
            Err(StartError::Cluster(error @ (Error::NotDone(_) | Error::Unknown(_)))) => {
                tracing::warn!(
                    %error,
                    "the others have not taken this member in; nothing on its disk is changed, and it asks again. \
                     They need a majority without it: start them, or use `raft-kv recover` on one that is left"
                );
            }
            ended => return ended,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// Puts the damaged log and state aside, for people to look at; what an earlier repair put there goes.
pub(super) fn set_aside(dir: &DataDir, damage: &StorageFailed) -> Result<(), StartError> {
    let aside = dir.join(DAMAGED_FOLDER);
    let failed = |action: &'static str| {
        let aside = aside.display().to_string();
        move |error: std::io::Error| StorageFailed::io(aside, action, &error)
    };
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("removing it")(error).into());
        }
        _ => {}
    }
    fs::DirBuilder::new().mode(0o700).create(&aside).map_err(failed("making the folder"))?;
    for name in KEPT {
        match fs::rename(dir.join(name), aside.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("moving what is damaged there")(error).into());
            }
            _ => {}
        }
    }
    write_private(&aside.join("report"), format!("{}\n{}\n", damage.file, damage.why).as_bytes())?;
    Ok(())
}

/// Keeps the members' addresses in the file `node`: a member whose state is damaged finds the others by
/// them. Runs until the node ends.
pub(super) async fn remember_members(
    dir: PathBuf,
    mut node: Remembered,
    mut members: watch::Receiver<Vec<(NodeId, String)>>,
) {
    loop {
        let now = members.borrow_and_update().clone();
        if !now.is_empty() && now != node.members {
            node.members = now;
            let (dir, node) = (dir.clone(), node.clone());
            match tokio::task::spawn_blocking(move || remember_in(&dir, &node)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "the members' addresses can't be remembered"),
                Err(_) => return,
            }
        }
        if members.changed().await.is_err() {
            return;
        }
    }
}

/// Ends the node as soon as a read has found damage: nothing more is served then, and the next start
/// repairs it. Runs until the node ends.
pub(super) async fn guard(local: Arc<Local>, dir: PathBuf) {
    loop {
        if let Some(damage) = damage_of(&local) {
            tracing::error!(
                file = damage.file,
                why = damage.why,
                "damage found on this disk; nothing more is served"
            );
            note(&dir, &damage);
            local.shell.fail(Error::Stopped(damage.to_string()));
            return;
        }
        tokio::time::sleep(WATCH).await;
    }
}

/// The damage behind a failure of this member's state. RocksDB's own work in the background tells only that
/// it failed: then the tables are read, for as long as [`EXAMINATION`].
pub(super) async fn examined(local: &Local) -> Option<StorageFailed> {
    if let Some(older) = older(local) {
        return Some(older);
    }
    let failure = local.shell.state().failure()?;
    if failure.is_damage() {
        return Some(failure);
    }
    let (_, tables) = local.shell.state().tables().ok()?;
    let end = Instant::now() + EXAMINATION;
    let look = move || check_files(&tables, &mut |_| Instant::now() < end).ok();
    let found = tokio::task::spawn_blocking(look).await.ok().flatten()?;
    found.into_iter().next().map(StorageFailed::from)
}

/// The damage that a read of this member's state has met.
pub(super) fn damage_of(local: &Local) -> Option<StorageFailed> {
    older(local).or_else(|| local.shell.state().failure().filter(StorageFailed::is_damage))
}

/// That this member's directory was put back as it was earlier. What is in it is right, and it has the same
/// end as damage: under its id it could promise what contradicts what it has promised since.
fn older(local: &Local) -> Option<StorageFailed> {
    local.shell.older()
}
