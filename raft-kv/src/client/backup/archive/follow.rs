//! The archiver: follows the cluster and closes a file whenever it is large or old enough; makes full backups
//! between, and where a revision is gone before it was archived; removes what nobody needs any more.
//!
//! A file has its name only once it is whole on the disk, and nothing is remembered but what files say: whatever
//! fails, it begins anew from the folder. It must never go on behind a revision that is not in a file.

use std::collections::VecDeque;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until};

use super::catalog::Entry;
use super::folder::{Archive, Tail, taken};
use super::plan::{ArchiveEvent, ArchivePlan, ArchiveStatus, FullReason};
use crate::client::api::BackupInfo;
use crate::client::backup::changes::{Gathered, Kept, Taken, framed, milliseconds, one_key};
use crate::client::backup::contents::BackupSummary;
use crate::client::backup::create::Part;
use crate::client::config::StartError;
use crate::client::handle::Handle;
use crate::pki::BackupKey;
use crate::types::{Change, Header, KeyRange, Revision, WatchBatch, WatchRequest};

/// After a failure it is tried again so soon, and each time later, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Files are not closed more often than so, unless they are full.
const SHORTEST: Duration = Duration::from_millis(10);

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
            let mut tail = match choices.pop_front() {
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
                None => tokio::select! {
                    () = stop.as_mut() => return Ok(()),
                    full = self.full(archive, plan, reason, say) => full?,
                },
            };
            *begun = true;
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
        let written = self.write_full(&archive.folder, plan.key.as_ref()).await?;
        archive.name_full(written, reason, say)
    }

    async fn write_full(
        &self,
        folder: &Path,
        key: Option<&BackupKey>,
    ) -> Result<(Part, BackupSummary), StartError> {
        let part = taken(folder, "full")?;
        // By the clock that changes are dated with, and not before all of it was there.
        let date = |info: &mut BackupInfo| info.made = milliseconds() / 1000 + 1;
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
        let known = self.known(tail.entry.to, header.revision).await?;
        let start_revision = tail.entry.next();
        let request = WatchRequest { range: KeyRange::all(), start_revision, ..WatchRequest::default() };
        let mut watch = self.watch(request).await?;
        let every = plan.every.max(SHORTEST);
        let mut tick = interval_at(Instant::now() + every / 2, every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let folder = archive.folder.clone();
        let (mut making, mut retry): (Option<Making<'_>>, _) = (None, Instant::now());
        let (gathered, waiting) = (Gathered::default(), Waiting::default());
        let mut work = Work { archive, plan, tail, header, gathered, waiting, known, say };
        let ended = loop {
            let due = work.waiting.since.map(|since| since + every);
            let paused = tokio::select! {
                () = stop.as_mut() => Some(Pause::Stopped),
                batch = watch.next() => match batch {
                    Ok(batch) => work.take(batch).await?,
                    Err(error) => break Err(error.into()),
                },
                () = at(due) => {
                    work.close().await?;
                    None
                }
                full = made(&mut making) => {
                    making = None;
                    if !work.full(full).await? {
                        retry = Instant::now() + LONGEST_PAUSE;
                    }
                    None
                }
                _ = tick.tick() => {
                    let revision = match self.range(one_key()).await {
                        Ok((now, _)) => now.revision,
                        Err(error) => break Err(error.into()),
                    };
                    let due = work.look(revision).await?;
                    if due && making.is_none() && Instant::now() >= retry {
                        making = Some(Box::pin(self.write_full(&folder, plan.key.as_ref())));
                    }
                    None
                }
            };
            if let Some(pause) = paused {
                break Ok(pause);
            }
        };
        // What has come is kept, whatever became of the rest.
        work.close().await?;
        ended
    }
}

/// What is under way between the cluster and the folder.
struct Work<'a, F> {
    archive: &'a mut Archive,
    plan: &'a ArchivePlan,
    tail: &'a mut Tail,
    header: Header,
    gathered: Gathered,
    waiting: Waiting,
    known: Known,
    say: &'a mut F,
}

impl<F: FnMut(&ArchiveEvent)> Work<'_, F> {
    /// Closes a file with what waits, if anything does.
    async fn close(&mut self) -> Result<(), StartError> {
        let Waiting { blocks, to, .. } = std::mem::take(&mut self.waiting);
        if blocks.is_empty() {
            return Ok(());
        }
        let by = (&self.header, self.plan.key.as_ref());
        self.archive.close(self.tail, (to, blocks), by, self.say).await
    }

    /// Takes what the cluster has committed.
    async fn take(&mut self, batch: Option<WatchBatch>) -> Result<Option<Pause>, StartError> {
        let changes = match self.gathered.take(batch) {
            Taken::Whole(changes) => changes,
            Taken::Gone => {
                return Ok(Some(gap("what came after it was compacted before it was archived", false)));
            }
            Taken::TooLarge => {
                return Ok(Some(gap("the next revision has more changes than a file may have", true)));
            }
        };
        for change in changes {
            let at = self.archive.date(self.known.at(change.revision));
            self.waiting.add(change, at);
            if self.waiting.bytes >= self.plan.every_bytes {
                self.close().await?;
            }
        }
        Ok(None)
    }

    /// Takes a full backup that was due; says whether there is one.
    async fn full(&mut self, full: Result<(Part, BackupSummary), StartError>) -> Result<bool, StartError> {
        match full {
            Ok(written) => {
                // What leads to it is there before it is.
                self.close().await?;
                self.archive.name_full(written, FullReason::Due, self.say)?;
                Ok(true)
            }
            Err(error) => {
                (self.say)(&ArchiveEvent::Failed { why: format!("no full backup: {error}") });
                Ok(false)
            }
        }
    }

    /// Says how far it is, and removes what is too old; tells whether a full backup is due.
    async fn look(&mut self, revision: Revision) -> Result<bool, StartError> {
        let behind = self.waiting.since.map_or(Duration::ZERO, |since| since.elapsed());
        let (archived, revision) = (self.tail.entry.to, revision.max(self.waiting.to));
        (self.say)(&ArchiveEvent::Status(ArchiveStatus { archived, revision, behind }));
        self.archive.prune(self.plan, self.say).await?;
        Ok(self.archive.full_is_due(self.plan, revision))
    }
}

/// A full backup under way.
type Making<'a> = Pin<Box<dyn Future<Output = Result<(Part, BackupSummary), StartError>> + Send + 'a>>;

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
