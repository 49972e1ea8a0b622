//! The folder of an archive, for the one that writes to it: which files are there, the next one, and those that go.
//!
//! A file has its name only once it is whole on the disk. It must never remove a file without having read what then
//! takes its place.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::LOCK;
use super::catalog::{Catalog, Entry};
use super::plan::{ArchiveEvent, ArchivePlan, FullReason};
use crate::client::api::BackupInfo;
use crate::client::backup::changes::milliseconds;
use crate::client::backup::contents::{BackupSummary, verify_backup};
use crate::client::backup::create::{Part, summary_of};
use crate::client::config::StartError;
use crate::error::{Refusal, StorageFailed};
use crate::pki::BackupKey;
use crate::planted;
use crate::types::{ClusterId, Header, Revision};

/// The file that the next changes follow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Tail {
    pub(super) entry: Entry,
    /// Its SHA-256.
    pub(super) digest: Bytes,
}

/// A folder that nobody else writes to.
pub(super) struct Archive {
    pub(super) folder: PathBuf,
    pub(super) catalog: Catalog,
    /// The date of the last revision, in milliseconds: none is before the last one's, whatever clocks do.
    dated: i64,
    /// Full backups that were read and can be relied on, and such that can't.
    checked: Option<(Entry, bool)>,
    _lock: File,
}

fn refused(folder: &Path, why: impl Into<String>) -> StartError {
    Refusal::invalid(format!("archive {}", folder.display()), why).into()
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> StartError {
    let file = path.display().to_string();
    move |error| {
        let next = "look after the disk; the archiver goes on by itself".into();
        StorageFailed { file, why: format!("{action} failed: {error}"), next }.into()
    }
}

fn sync(folder: &Path) -> Result<(), StartError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder, "syncing it"))
}

impl Archive {
    pub(super) fn open(folder: &Path) -> Result<Self, StartError> {
        if !folder.exists() {
            DirBuilder::new()
                .mode(0o700)
                .create(folder)
                .map_err(|error| refused(folder, format!("the folder can't be made: {error}")))?;
            let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
            sync(parent.unwrap_or(Path::new(".")))?;
        }
        let path = folder.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(|error| refused(folder, format!("{LOCK} can't be opened: {error}")))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(refused(folder, "another process archives into it")),
            Err(TryLockError::Error(error)) => {
                return Err(refused(folder, format!("it can't be locked: {error}")));
            }
        }
        let mut archive = Self {
            folder: folder.to_owned(),
            catalog: Catalog::default(),
            dated: 0,
            checked: None,
            _lock: lock,
        };
        archive.look()?;
        Ok(archive)
    }

    /// What is there, in place of what was believed.
    pub(super) fn look(&mut self) -> Result<(), StartError> {
        self.catalog = Catalog::read(&self.folder).map_err(failed(&self.folder, "listing it"))?;
        let last = self.catalog.changes.iter().map(|changes| changes.made.saturating_mul(1000)).max();
        self.dated = self.dated.max(last.unwrap_or_default());
        Ok(())
    }

    pub(super) fn now(&self) -> i64 {
        self.dated.max(milliseconds())
    }

    /// The date of a revision that was there at `at`: not before that of the one before.
    pub(super) fn date(&mut self, at: i64) -> i64 {
        self.dated = self.dated.max(at);
        self.dated
    }

    /// `entry` as that which the next changes follow, all of it read.
    pub(super) async fn tail(
        &self,
        entry: Entry,
        key: Option<&BackupKey>,
        cluster: ClusterId,
    ) -> Result<Tail, StartError> {
        let (file, key) = (Catalog::file(&self.folder, entry), key.cloned());
        let read = tokio::task::spawn_blocking(move || verify_backup(&file, key.as_ref()));
        let found = read.await.expect("reading a backup does not panic")?;
        if found.info.cluster != cluster {
            let why = format!(
                "it is of cluster {}, and this is {cluster}; give another folder",
                found.info.cluster
            );
            return Err(refused(&self.folder, why));
        }
        let said = Entry { to: found.info.revision, since: found.info.since, made: found.info.made };
        if said != entry {
            let why = "its head says otherwise than its name";
            return Err(StorageFailed::damaged(entry.name(), why).into());
        }
        Ok(Tail { entry, digest: found.digest })
    }

    /// Closes a file with what has waited.
    pub(super) async fn close(
        &mut self,
        tail: &mut Tail,
        (to, blocks): (Revision, Vec<Bytes>),
        (header, key): (&Header, Option<&BackupKey>),
        say: &mut impl FnMut(&ArchiveEvent),
    ) -> Result<(), StartError> {
        let info = BackupInfo {
            cluster: header.cluster,
            member: header.member,
            term: header.term,
            revision: to,
            since: tail.entry.to,
            // All that comes behind it is dated later.
            made: self.dated / 1000,
            version: env!("CARGO_PKG_VERSION").into(),
            follows: tail.digest.clone(),
            ..BackupInfo::default()
        };
        let (folder, key) = (self.folder.clone(), key.cloned());
        let write = move || write_changes(&folder, info, key.as_ref(), blocks);
        let (entry, backup) =
            tokio::task::spawn_blocking(write).await.expect("writing a file does not panic")?;
        self.catalog.add(entry);
        *tail = Tail { entry, digest: backup.digest.clone() };
        say(&ArchiveEvent::Changes { file: Catalog::file(&self.folder, entry), backup });
        Ok(())
    }

    /// Removes what is older than what is kept, if the backup that everything then begins with can be relied on.
    pub(super) async fn prune(
        &mut self,
        plan: &ArchivePlan,
        say: &mut impl FnMut(&ArchiveEvent),
    ) -> Result<(), StartError> {
        let Some(keep) = plan.keep else { return Ok(()) };
        let since = self.now() / 1000 - i64::try_from(keep.as_secs()).unwrap_or(i64::MAX);
        let Some((kept, needless)) = self.catalog.needless(since) else { return Ok(()) };
        if self.checked.is_none_or(|(checked, _)| checked != kept) {
            let (file, key) = (Catalog::file(&self.folder, kept), plan.key.clone());
            let read = tokio::task::spawn_blocking(move || verify_backup(&file, key.as_ref()));
            let read = read.await.expect("reading a backup does not panic");
            self.checked = Some((kept, read.is_ok()));
            if let Err(error) = read {
                let why = format!("nothing is removed, because what would be left is not whole: {error}");
                say(&ArchiveEvent::Failed { why });
            }
        }
        if self.checked != Some((kept, true)) {
            return Ok(());
        }
        for entry in &needless {
            let file = Catalog::file(&self.folder, *entry);
            fs::remove_file(&file).map_err(failed(&file, "removing it"))?;
            self.catalog.remove(*entry);
            crate::crash_point!(ArchivePruning);
        }
        sync(&self.folder)?;
        say(&ArchiveEvent::Removed { files: needless.len(), from: kept.to });
        Ok(())
    }

    /// Gives a full backup its name, which says what is in it.
    pub(super) fn name_full(
        &mut self,
        (part, backup): (Part, BackupSummary),
        reason: FullReason,
        say: &mut impl FnMut(&ArchiveEvent),
    ) -> Result<Tail, StartError> {
        let entry = Entry { to: backup.info.revision, since: 0, made: backup.info.made };
        part.named(Catalog::file(&self.folder, entry)).finish(true)?;
        crate::crash_point!(ArchiveFullNamed);
        self.catalog.add(entry);
        let digest = backup.digest.clone();
        say(&ArchiveEvent::Full { file: Catalog::file(&self.folder, entry), backup, reason });
        Ok(Tail { entry, digest })
    }

    /// Whether it is time for a full backup, and there is anything new for it.
    pub(super) fn full_is_due(&self, plan: &ArchivePlan, revision: Revision) -> bool {
        let now = self.now() / 1000;
        let every = i64::try_from(plan.full_every.as_secs()).unwrap_or(i64::MAX);
        let newest = self.catalog.newest_full();
        newest.is_none_or(|full| full.to < revision && now >= full.made.saturating_add(every))
    }
}

/// A file that has not its name yet. Where it can't be made, that is the disk's fault here.
pub(super) fn taken(folder: &Path, name: &str) -> Result<Part, StartError> {
    Part::take(&folder.join(name), true).map_err(|error| match error {
        StartError::Refused(refusal) => {
            let next =
                "make room on the disk, or look after the folder; the archiver goes on by itself".into();
            StorageFailed { file: folder.display().to_string(), why: refusal.to_string(), next }.into()
        }
        other => other,
    })
}

/// Writes a file of changes; it has its name once it is whole on the disk.
fn write_changes(
    folder: &Path,
    info: BackupInfo,
    key: Option<&BackupKey>,
    blocks: impl IntoIterator<Item = Bytes>,
) -> Result<(Entry, BackupSummary), StartError> {
    let entry = Entry { to: info.revision, since: info.since, made: info.made };
    let file = Catalog::file(folder, entry);
    let part = taken(folder, "changes")?;
    crate::crash_point!(ArchiveChangesBegun);
    if planted!(ArchiveRenamesEarly) {
        let _ = fs::rename(folder.join("changes.part"), &file);
    }
    let (part, written) = part.write(&info, key, blocks.into_iter().chain([Bytes::new()]))?;
    crate::crash_point!(ArchiveChangesWritten);
    if !planted!(ArchiveRenamesEarly) {
        part.named(file).finish(true)?;
    }
    crate::crash_point!(ArchiveChangesNamed);
    Ok((entry, summary_of(info, key, written)))
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// Whether a write of changes that ends in the middle leaves nothing that looks whole.
    fn cut_off() -> bool {
        let folder = tempfile::tempdir().unwrap();
        let info = BackupInfo { since: 1, revision: 2, made: 3, ..BackupInfo::default() };
        let blocks = (0..2).map(|number| {
            assert!(number == 0, "here it is cut off");
            Bytes::from(vec![0; 1 << 20])
        });
        let ended = catch_unwind(AssertUnwindSafe(|| write_changes(folder.path(), info, None, blocks)));
        assert!(ended.is_err());
        Catalog::read(folder.path()).unwrap().is_empty()
    }

    #[test]
    fn what_is_not_whole_has_no_name() {
        assert!(cut_off());
    }

    #[cfg(feature = "sim")]
    #[test]
    fn a_name_that_comes_too_early_is_found() {
        use crate::planted::{Bug, with};
        assert!(!with(Some(Bug::ArchiveRenamesEarly), cut_off));
    }
}
