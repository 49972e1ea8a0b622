//! The archiver: follows the cluster and closes a file whenever it is large or old enough; makes full backups
//! between, and where a revision is gone before it was archived; removes what nobody needs any more.
//!
//! A file has its name only once it is whole on the disk, and nothing is remembered but what files say: whatever
//! fails, it begins anew from the folder. It must never go on behind a revision that is not in a file.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until};

use super::LOCK;
use super::catalog::{Catalog, Entry};
use crate::client::api::BackupInfo;
use crate::client::backup::changes::{Gathered, Kept, Taken, framed, milliseconds, one_key};
use crate::client::backup::contents::{BackupSummary, verify_backup};
use crate::client::backup::create::{Part, summary_of};
use crate::client::config::StartError;
use crate::client::handle::Handle;
use crate::error::{Refusal, StorageFailed};
use crate::pki::BackupKey;
use crate::planted;
use crate::types::{Change, ClusterId, Header, KeyRange, Revision, WatchRequest};

/// After a failure it is tried again so soon, and each time later, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How an archive is kept.
#[derive(Clone, Debug)]
pub struct ArchivePlan {
    /// The key that everything is encrypted with, if with one.
    pub key: Option<BackupKey>,
    /// A revision is in a file at the latest so long after it was committed. Also how often it says how far it is.
    pub every: Duration,
    /// A file is closed when it has so many bytes, before compression: what is lost at most with the cluster, and
    /// held in memory.
    pub every_bytes: u64,
    /// A full backup is made so long after the last one, if anything has changed.
    pub full_every: Duration,
    /// What is older is removed, from one full backup to the next; `None` keeps everything.
    pub keep: Option<Duration>,
}

impl Default for ArchivePlan {
    fn default() -> Self {
        Self {
            key: None,
            every: Duration::from_secs(10),
            every_bytes: 16 * 1024 * 1024,
            full_every: Duration::from_secs(24 * 60 * 60),
            keep: None,
        }
    }
}

/// Why a full backup was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FullReason {
    /// The archive begins.
    First,
    /// It was time.
    Due,
    /// What came before it can't be had any more: [`ArchiveEvent::Gap`] said so.
    Gap,
}

/// How far an archive is behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArchiveStatus {
    /// The last revision that is in a file.
    pub archived: Revision,
    /// The cluster's.
    pub revision: Revision,
    /// For how long the oldest revision that is in none has waited here; zero where there is none.
    pub behind: Duration,
}

/// What an archiver has done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ArchiveEvent {
    /// A full backup is there.
    Full {
        /// Where.
        file: PathBuf,
        /// What of.
        backup: BackupSummary,
        /// Why.
        reason: FullReason,
    },
    /// A file of changes is there.
    Changes {
        /// Where.
        file: PathBuf,
        /// What of.
        backup: BackupSummary,
    },
    /// What comes next can't be had any more: the archive has a gap here, and goes on with a full backup behind it.
    Gap {
        /// The last revision before it.
        after: Revision,
        /// Why.
        why: String,
    },
    /// Files that were older than what is kept are gone.
    Removed {
        /// How many.
        files: usize,
        /// The revision that the archive begins with now.
        from: Revision,
    },
    /// How far it is, as often as files are closed.
    Status(ArchiveStatus),
    /// Something failed; it is tried again by itself.
    Failed {
        /// What, and why.
        why: String,
    },
}

/// The file that the next changes follow.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Tail {
    entry: Entry,
    /// Its SHA-256.
    digest: Bytes,
}

/// Changes that are in no file yet.
#[derive(Default)]
struct Waiting {
    blocks: Vec<Bytes>,
    bytes: u64,
    to: Revision,
    /// When the first of them came.
    since: Option<Instant>,
}

impl Waiting {
    fn add(&mut self, change: Change, at: i64) {
        self.to = change.revision;
        let block = framed(&Kept { at, change });
        self.bytes += block.len() as u64;
        self.blocks.push(block);
        self.since.get_or_insert_with(Instant::now);
    }
}

/// When revisions were there that were committed before anybody looked.
struct Known(VecDeque<(Revision, i64)>);

impl Known {
    /// A time at which it was there: the member's word where there is one, else now.
    fn at(&mut self, revision: Revision) -> i64 {
        while self.0.front().is_some_and(|(known, _)| *known < revision) {
            self.0.pop_front();
        }
        let now = milliseconds();
        self.0.front().map_or(now, |(_, at)| now.min(*at))
    }
}

/// A folder that nobody else writes to.
struct Archive {
    folder: PathBuf,
    catalog: Catalog,
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
    fn open(folder: &Path) -> Result<Self, StartError> {
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
    fn look(&mut self) -> Result<(), StartError> {
        self.catalog = Catalog::read(&self.folder).map_err(failed(&self.folder, "listing it"))?;
        let last = self.catalog.changes.iter().map(|changes| changes.made.saturating_mul(1000)).max();
        self.dated = self.dated.max(last.unwrap_or_default());
        Ok(())
    }

    fn now(&self) -> i64 {
        self.dated.max(milliseconds())
    }

    /// The date of a revision that was there at `at`: not before that of the one before.
    fn date(&mut self, at: i64) -> i64 {
        self.dated = self.dated.max(at);
        self.dated
    }

    /// `entry` as that which the next changes follow, all of it read.
    async fn tail(
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
    async fn close(
        &mut self,
        tail: &mut Tail,
        waiting: Waiting,
        (header, key): (&Header, Option<&BackupKey>),
        say: &mut impl FnMut(&ArchiveEvent),
    ) -> Result<(), StartError> {
        let info = BackupInfo {
            cluster: header.cluster,
            member: header.member,
            term: header.term,
            revision: waiting.to,
            since: tail.entry.to,
            // All that comes behind it is dated later.
            made: self.dated / 1000,
            version: env!("CARGO_PKG_VERSION").into(),
            follows: tail.digest.clone(),
            ..BackupInfo::default()
        };
        let (folder, key, blocks) = (self.folder.clone(), key.cloned(), waiting.blocks);
        let write = move || write_changes(&folder, info, key.as_ref(), blocks);
        let (entry, backup) =
            tokio::task::spawn_blocking(write).await.expect("writing a file does not panic")?;
        self.catalog.add(entry);
        *tail = Tail { entry, digest: backup.digest.clone() };
        say(&ArchiveEvent::Changes { file: Catalog::file(&self.folder, entry), backup });
        Ok(())
    }

    /// Removes what is older than what is kept, if the backup that everything then begins with can be relied on.
    async fn prune(
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
}

/// A file that has not its name yet. Where it can't be made, that is the disk's fault here.
fn taken(folder: &Path, name: &str) -> Result<Part, StartError> {
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

/// Why it does not go on for now.
enum Pause {
    Stopped,
    /// What comes after the tail is gone, or takes too much.
    Gap {
        why: String,
        whole: bool,
    },
}

impl Handle {
    /// Keeps an archive of the cluster in `folder`, which is made if it is not there, until `stop` is ready: a full
    /// backup, then files of what was committed since. Goes on where the files end. [`restore`](crate::client::restore)
    /// and [`verify_archive`](crate::client::verify_archive) read it. Nobody else may archive into the folder meanwhile.
    /// What is done goes to `say`. For who may make backups: [`backup`](Self::backup).
    ///
    /// What fails on the way, the disk or the cluster, is said and tried again, for ever.
    ///
    /// # Errors
    /// [`StartError::Refused`]: the folder can't be used or is another cluster's archive, it is in use, the key is
    /// another one, or it may not be made; [`StartError`] too where the cluster can't be reached at the start.
    pub async fn archive(
        &self,
        folder: &Path,
        plan: &ArchivePlan,
        stop: impl Future<Output = ()>,
        mut say: impl FnMut(&ArchiveEvent),
    ) -> Result<(), StartError> {
        let mut stop = std::pin::pin!(stop);
        let mut archive = Archive::open(folder)?;
        let (mut pause, mut begun) = (PAUSE, false);
        loop {
            let before = archive.catalog.last();
            match self.keep(&mut archive, plan, &mut begun, stop.as_mut(), &mut say).await {
                Ok(()) => return Ok(()),
                Err(error @ StartError::Refused(_)) => return Err(error),
                Err(error) if !begun => return Err(error),
                Err(error) => say(&ArchiveEvent::Failed { why: error.to_string() }),
            }
            pause = if archive.catalog.last() == before { (pause * 2).min(LONGEST_PAUSE) } else { PAUSE };
            tokio::select! {
                () = stop.as_mut() => return Ok(()),
                () = sleep(pause) => {}
            }
            if let Err(error) = archive.look() {
                say(&ArchiveEvent::Failed { why: error.to_string() });
            }
        }
    }

    /// Until it is stopped, or something fails.
    async fn keep<S: Future<Output = ()>>(
        &self,
        archive: &mut Archive,
        plan: &ArchivePlan,
        begun: &mut bool,
        mut stop: Pin<&mut S>,
        say: &mut impl FnMut(&ArchiveEvent),
    ) -> Result<(), StartError> {
        let (header, _) = self.range(one_key()).await?;
        let mut choices: VecDeque<Entry> = archive.catalog.last().into_iter().collect();
        let mut reason = FullReason::First;
        loop {
            let tail = match choices.pop_front() {
                Some(entry) => match archive.tail(entry, plan.key.as_ref(), header.cluster).await {
                    Ok(tail) => tail,
                    Err(StartError::Storage(failed)) => {
                        // Nothing is built on what can't be read.
                        say(&ArchiveEvent::Failed { why: failed.to_string() });
                        let why = "nothing is built on a file that is not whole".into();
                        say(&ArchiveEvent::Gap { after: entry.to, why });
                        reason = FullReason::Gap;
                        choices.extend(archive.catalog.behind(entry));
                        continue;
                    }
                    Err(error) => return Err(error),
                },
                None => self.full(archive, plan, reason, say).await?,
            };
            *begun = true;
            let mut tail = tail;
            match self.follow(archive, plan, &mut tail, stop.as_mut(), say).await? {
                Pause::Stopped => return Ok(()),
                Pause::Gap { why, whole } => {
                    let next = archive.catalog.behind(tail.entry).filter(|_| !whole);
                    say(&ArchiveEvent::Gap { after: tail.entry.to, why });
                    reason = FullReason::Gap;
                    choices.extend(next);
                }
            }
        }
    }

    /// When the revisions from one to the other were there, as far as a member knows.
    async fn known(&self, from: Revision, to: Revision) -> Result<Known, StartError> {
        let (mut known, mut reached) = (VecDeque::new(), from);
        while reached < to {
            let dates = self.revision_dates(reached).await?;
            let Some((last, _)) = dates.last() else { break };
            reached = *last;
            known.extend(dates);
        }
        Ok(Known(known))
    }

    /// Makes a full backup, which the next changes may follow.
    async fn full(
        &self,
        archive: &mut Archive,
        plan: &ArchivePlan,
        reason: FullReason,
        say: &mut impl FnMut(&ArchiveEvent),
    ) -> Result<Tail, StartError> {
        let clock = archive.now();
        let written = self.write_full(&archive.folder, plan.key.as_ref(), clock).await?;
        archive.name_full(written, reason, say)
    }

    async fn write_full(
        &self,
        folder: &Path,
        key: Option<&BackupKey>,
        clock: i64,
    ) -> Result<(Part, BackupSummary), StartError> {
        let part = taken(folder, "full")?;
        // By the clock that changes are dated with, and not before all of it was there.
        let date = |info: &mut BackupInfo| info.made = clock.max(milliseconds()) / 1000 + 1;
        let written = self.backup_into(part, key, date).await?;
        crate::crash_point!(ArchiveFullWritten);
        Ok(written)
    }

    /// Archives what is committed behind `tail`.
    async fn follow<S: Future<Output = ()>>(
        &self,
        archive: &mut Archive,
        plan: &ArchivePlan,
        tail: &mut Tail,
        mut stop: Pin<&mut S>,
        say: &mut impl FnMut(&ArchiveEvent),
    ) -> Result<Pause, StartError> {
        archive.prune(plan, say).await?;
        // A full backup may have taken a while.
        let (header, _) = self.range(one_key()).await?;
        let mut known = self.known(tail.entry.to, header.revision).await?;
        let start_revision = tail.entry.next();
        let request = WatchRequest { range: KeyRange::all(), start_revision, ..WatchRequest::default() };
        let mut watch = self.watch(request).await?;
        let (mut gathered, mut waiting) = (Gathered::default(), Waiting::default());
        let by = (&header, plan.key.as_ref());
        let mut tick = interval_at(Instant::now() + plan.every / 2, plan.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let folder = archive.folder.clone();
        let mut making: Option<Making<'_>> = None;
        let mut retry = Instant::now();
        loop {
            let due = waiting.since.map(|since| since + plan.every);
            let found = tokio::select! {
                () = stop.as_mut() => {
                    if !waiting.blocks.is_empty() {
                        archive.close(tail, waiting, by, say).await?;
                    }
                    return Ok(Pause::Stopped);
                }
                batch = watch.next() => Found::Batch(batch),
                () = at(due) => Found::Due,
                full = made(&mut making) => Found::Full(full),
                _ = tick.tick() => Found::Tick,
            };
            let outcome = match found {
                Found::Batch(batch) => match batch.map(|batch| gathered.take(batch)) {
                    Ok(Taken::Whole(changes)) => {
                        for change in changes {
                            let at = archive.date(known.at(change.revision));
                            waiting.add(change, at);
                            if waiting.bytes >= plan.every_bytes {
                                archive.close(tail, std::mem::take(&mut waiting), by, say).await?;
                            }
                        }
                        continue;
                    }
                    Ok(Taken::Gone) => {
                        Ok(gap("what came after it was compacted before it was archived", false))
                    }
                    Ok(Taken::TooLarge) => {
                        Ok(gap("the next revision has more changes than a file may have", true))
                    }
                    Err(error) => Err(error.into()),
                },
                Found::Due => {
                    archive.close(tail, std::mem::take(&mut waiting), by, say).await?;
                    continue;
                }
                Found::Full(full) => {
                    making = None;
                    match full {
                        Ok(written) => {
                            // So that it stands on what leads to it, as soon as it is there.
                            if !waiting.blocks.is_empty() {
                                archive.close(tail, std::mem::take(&mut waiting), by, say).await?;
                            }
                            archive.name_full(written, FullReason::Due, say)?;
                        }
                        Err(error) => {
                            say(&ArchiveEvent::Failed { why: format!("no full backup: {error}") });
                            retry = Instant::now() + LONGEST_PAUSE;
                        }
                    }
                    continue;
                }
                Found::Tick => match self.range(one_key()).await {
                    Ok((now, _)) => {
                        let behind = waiting.since.map_or(Duration::ZERO, |since| since.elapsed());
                        let (archived, revision) = (tail.entry.to, now.revision.max(waiting.to));
                        say(&ArchiveEvent::Status(ArchiveStatus { archived, revision, behind }));
                        if making.is_none() && Instant::now() >= retry && archive.full_is_due(plan, revision)
                        {
                            let clock = archive.now();
                            making = Some(Box::pin(self.write_full(&folder, plan.key.as_ref(), clock)));
                        }
                        archive.prune(plan, say).await?;
                        continue;
                    }
                    Err(error) => Err(error.into()),
                },
            };
            // What has come is kept, whatever became of the rest.
            if !waiting.blocks.is_empty() {
                archive.close(tail, waiting, by, say).await?;
            }
            return outcome;
        }
    }
}

/// A full backup under way.
type Making<'a> = Pin<Box<dyn Future<Output = Result<(Part, BackupSummary), StartError>> + Send + 'a>>;

enum Found {
    Batch(Result<Option<crate::types::WatchBatch>, crate::error::Error>),
    Due,
    Full(Result<(Part, BackupSummary), StartError>),
    Tick,
}

fn gap(why: &str, whole: bool) -> Pause {
    Pause::Gap { why: why.into(), whole }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

async fn made(making: &mut Option<Making<'_>>) -> Result<(Part, BackupSummary), StartError> {
    match making {
        Some(making) => making.await,
        None => std::future::pending().await,
    }
}

impl Archive {
    fn name_full(
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
    fn full_is_due(&self, plan: &ArchivePlan, revision: Revision) -> bool {
        let now = self.now() / 1000;
        let every = i64::try_from(plan.full_every.as_secs()).unwrap_or(i64::MAX);
        let newest = self.catalog.newest_full();
        newest.is_none_or(|full| full.to < revision && now >= full.made.saturating_add(every))
    }
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
