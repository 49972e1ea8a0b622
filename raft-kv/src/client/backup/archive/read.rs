//! An archive read: looked through as a whole, and as what leads to a revision or a time. It changes nothing, and may
//! run beside the archiver.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::catalog::{Catalog, Entry};
use crate::client::backup::RestorePlan;
use crate::client::backup::contents::verify_backup;
use crate::client::config::StartError;
use crate::error::{Refusal, StorageFailed};
use crate::pki::BackupKey;
use crate::types::{ClusterId, Revision};

/// An archive that is whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArchiveSummary {
    /// The cluster that it is of.
    pub cluster: ClusterId,
    /// Full backups in it.
    pub fulls: u64,
    /// Files of changes in it.
    pub changes: u64,
    /// Bytes of all of them.
    pub file_bytes: u64,
    /// The first revision that can be restored.
    pub from: Revision,
    /// The last one.
    pub to: Revision,
    /// When it begins, in seconds since 1970.
    pub begins: i64,
    /// The date of the last of it.
    pub ends: i64,
    /// Where nothing in between can be restored.
    pub gaps: Vec<ArchiveGap>,
}

/// Revisions that an archive knows to be missing: what happened was compacted before it was archived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArchiveGap {
    /// The last revision before.
    pub after: Revision,
    /// Its date, in seconds since 1970.
    pub after_made: i64,
    /// The first revision behind.
    pub before: Revision,
    /// Its date.
    pub before_made: i64,
}

fn refused(folder: &Path, why: impl Into<String>) -> StartError {
    Refusal::invalid(format!("archive {}", folder.display()), why).into()
}

fn read(folder: &Path) -> Result<Catalog, StartError> {
    let catalog =
        Catalog::read(folder).map_err(|error| refused(folder, format!("it can't be read: {error}")))?;
    if catalog.is_empty() {
        return Err(refused(folder, "there is no file of an archive in it"));
    }
    Ok(catalog)
}

fn damaged(folder: &Path, entry: Entry, why: impl std::fmt::Display) -> StartError {
    StorageFailed {
        file: Catalog::file(folder, entry).display().to_string(),
        why: format!("the archive is damaged: {why}"),
        next: "what comes before this file can be restored, and what comes behind the next full backup; the archiver \
               makes one at its next start if this is the last file"
            .into(),
    }
    .into()
}

/// Reads and checks every file of the archive in `folder`, that each goes on where the one before ends, and that
/// nothing is missing between them. Changes nothing; the archiver may run. What it removes meanwhile is no error.
///
/// # Errors
/// [`StartError::Refused`] for what is no archive, and for a missing or wrong key; [`StartError::Storage`] for the
/// first file that is damaged, missing or exchanged.
pub fn verify_archive(folder: &Path, key: Option<&BackupKey>) -> Result<ArchiveSummary, StartError> {
    loop {
        let catalog = read(folder)?;
        let found = verified(folder, &catalog, key);
        // Each time it has removed something, which ends.
        if found.is_ok() || !catalog.lacks(&read(folder)?) {
            return found;
        }
    }
}

fn verified(folder: &Path, catalog: &Catalog, key: Option<&BackupKey>) -> Result<ArchiveSummary, StartError> {
    let Some(first) = catalog.fulls.first().copied() else {
        return Err(refused(folder, "there is no full backup in it, and changes alone can't be restored"));
    };
    let mut cluster = None;
    let mut file_bytes = 0;
    // The digest of each full backup, by its revision.
    let mut starts: BTreeMap<Revision, Vec<Bytes>> = BTreeMap::new();
    let mut look = |entry: Entry| {
        let found = verify_backup(&Catalog::file(folder, entry), key)?;
        let info = &found.info;
        if (Entry { to: info.revision, since: info.since, made: info.made }) != entry {
            return Err(damaged(folder, entry, "its head says otherwise than its name"));
        }
        if *cluster.get_or_insert(info.cluster) != info.cluster {
            return Err(damaged(folder, entry, format!("it is of another cluster, {}", info.cluster)));
        }
        file_bytes += found.file_bytes;
        Ok::<_, StartError>(found)
    };
    for entry in &catalog.fulls {
        starts.entry(entry.to).or_default().push(look(*entry)?.digest);
    }
    let mut before: Option<(Entry, Bytes)> = None;
    for entry in &catalog.changes {
        let found = look(*entry)?;
        let follows = &found.info.follows;
        let begins = starts.get(&entry.since).is_some_and(|all| all.contains(follows));
        let goes_on = match &before {
            Some((before, digest)) => before.to == entry.since && digest == follows,
            // Those before it are not kept any more.
            None => entry.since <= first.to,
        };
        if !begins && !goes_on {
            let last = before.as_ref().map_or(0, |(before, _)| before.to);
            let why = if last < entry.since {
                format!("the changes of revisions {} to {} are missing before it", last + 1, entry.since)
            } else {
                "it was made behind another file than the one before it".to_owned()
            };
            return Err(damaged(folder, *entry, why));
        }
        before = Some((*entry, found.digest));
    }
    let last = catalog.changes.last().into_iter().chain(catalog.fulls.last()).max().copied().unwrap_or(first);
    let gap = |(after, before): (Entry, Entry)| ArchiveGap {
        after: after.to,
        after_made: after.made,
        before: before.to,
        before_made: before.made,
    };
    Ok(ArchiveSummary {
        cluster: cluster.expect("there is a file"),
        fulls: catalog.fulls.len() as u64,
        changes: catalog.changes.len() as u64,
        file_bytes,
        from: first.to,
        to: last.to,
        begins: first.made,
        ends: last.made,
        gaps: catalog.gaps().into_iter().map(gap).collect(),
    })
}

/// What of the archive in `folder` leads to where `plan` goes: the full backup, and the plan with the changes on
/// top; none where it is no folder.
///
/// # Errors
/// [`StartError::Refused`]: it is no archive, or does not lead there.
pub(in crate::client::backup) fn lead(
    folder: &Path,
    plan: &RestorePlan,
) -> Result<Option<(PathBuf, RestorePlan)>, StartError> {
    if !folder.is_dir() {
        return Ok(None);
    }
    if !plan.changes.is_empty() {
        return Err(refused(folder, "an archive has its own changes; give no others"));
    }
    let lead = read(folder)?.path_to(plan.to).map_err(StartError::Refused)?;
    let changes = lead.changes.iter().map(|changes| Catalog::file(folder, *changes)).collect();
    Ok(Some((Catalog::file(folder, lead.full), RestorePlan { changes, ..plan.clone() })))
}
