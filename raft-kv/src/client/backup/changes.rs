//! What happened to keys since a backup, in a file of the same form: incremental backups. A restore does the
//! revisions again on top of that backup, all or up to one, and so goes back to a point between two backups.
//!
//! A revision is whole in one file, and none between the first and the last is missing. Users, leases and nodes
//! are those of the full backup.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::time::SystemTime;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::mpsc;

use super::container::{Fault, Opener};
use super::contents::BackupSummary;
use super::create::{Part, summary_of};
use crate::client::api::BackupInfo;
use crate::client::config::StartError;
use crate::client::handle::Handle;
use crate::client::trust::authority::now;
use crate::codec::{Wire, wire_struct};
use crate::error::Refusal;
use crate::pki::BackupKey;
use crate::types::{Change, KeyRange, Revision, WatchBatch, WatchRequest};

/// Blocks that wait to be written.
const WAITING: usize = 4;
/// A revision that takes more is not kept this way: rollbacks of very many keys make such.
const MAX_REVISION_BYTES: usize = 256 * 1024 * 1024;

/// A revision as a file has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::client) struct Kept {
    /// When it was there at the latest, in milliseconds since 1970.
    pub(in crate::client) at: i64,
    /// What it changed.
    pub(in crate::client) change: Change,
}
wire_struct!(Kept { at, change });

fn refused(file: &Path, why: impl Into<String>) -> StartError {
    Refusal::invalid(format!("backup {}", file.display()), why).into()
}

fn open(file: &Path, key: Option<&BackupKey>) -> Result<Opener<BufReader<File>>, StartError> {
    let input = File::open(file).map_err(|error| refused(file, format!("it can't be opened: {error}")))?;
    Opener::new(BufReader::new(input), key).map_err(|fault| fault.about(&file.display().to_string()))
}

impl Handle {
    /// Writes into `file` what has happened to keys since the backup in `base`, which is a full one or such a file
    /// itself; otherwise as [`backup`](Self::backup). For who may read all keys.
    ///
    /// # Errors
    /// As there; [`StartError::Refused`] too where `base` is of another cluster, or the cluster has compacted what
    /// has happened since: then a full backup is needed.
    pub async fn backup_since(
        &self,
        base: &Path,
        file: &Path,
        key: Option<&BackupKey>,
        force: bool,
    ) -> Result<BackupSummary, StartError> {
        let since = open(base, key)?.info().clone();
        let part = Part::take(file, force)?;
        // Linearizable: everything answered before is in it.
        let (header, _) = self.range(one_key()).await?;
        if header.cluster != since.cluster || header.revision < since.revision {
            return Err(refused(
                base,
                "it is not of this cluster; a restored cluster begins with a full backup",
            ));
        }
        let info = BackupInfo {
            cluster: header.cluster,
            member: header.member,
            revision: header.revision,
            term: header.term,
            made: now(),
            version: env!("CARGO_PKG_VERSION").into(),
            since: since.revision,
            ..BackupInfo::default()
        };
        let (blocks, mut waiting) = mpsc::channel(WAITING);
        let (about, owned) = (info.clone(), key.cloned());
        let writer = tokio::task::spawn_blocking(move || {
            part.write(&about, owned.as_ref(), std::iter::from_fn(|| waiting.blocking_recv()))
        });
        let sent = self.changes(&info, base, &blocks).await;
        if sent.is_ok() {
            let _ = blocks.send(Bytes::new()).await;
        }
        drop(blocks);
        let written = writer.await.expect("writing a file does not panic");
        sent?;
        let (part, written) = written?;
        part.finish(force)?;
        Ok(summary_of(info, key, written))
    }

    async fn changes(
        &self,
        info: &BackupInfo,
        base: &Path,
        blocks: &mpsc::Sender<Bytes>,
    ) -> Result<(), StartError> {
        let (mut at, range) = (info.since, KeyRange::all());
        if at == info.revision {
            return Ok(());
        }
        let request = WatchRequest { range, start_revision: at + 1, ..WatchRequest::default() };
        let mut watch = self.watch(request).await?;
        let (mut gathered, made) = (Gathered::default(), milliseconds());
        while at < info.revision {
            let whole = match gathered.take(watch.next().await?) {
                Taken::Whole(whole) => whole,
                Taken::Gone => {
                    return Err(refused(base, "what has happened since was compacted; make a full backup"));
                }
                Taken::TooLarge => {
                    return Err(refused(base, "a revision since has too many changes; make a full backup"));
                }
            };
            for change in whole.into_iter().filter(|change| change.revision <= info.revision) {
                at = change.revision;
                if blocks.send(framed(&Kept { at: made, change })).await.is_err() {
                    // The writer says itself why it ended.
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// A revision as it is written.
pub(super) fn framed(kept: &Kept) -> Bytes {
    let kept = kept.to_bytes();
    let mut block = BytesMut::with_capacity(4 + kept.len());
    block.put_u32_le(u32::try_from(kept.len()).expect("a revision is bounded"));
    block.put_slice(&kept);
    block.freeze()
}

/// Milliseconds since 1970.
pub(super) fn milliseconds() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Puts revisions together that come in parts.
#[derive(Default)]
pub(super) struct Gathered {
    partial: Option<Change>,
    /// Bytes of it.
    bytes: usize,
}

/// What came.
pub(super) enum Taken {
    /// Whole revisions, in order; none too.
    Whole(Vec<Change>),
    /// History in between is gone, or the watch ended.
    Gone,
    /// A revision takes more than is kept this way.
    TooLarge,
}

impl Gathered {
    pub(super) fn take(&mut self, batch: Option<WatchBatch>) -> Taken {
        let mut whole = Vec::new();
        match batch {
            Some(WatchBatch::Changes(changes)) => {
                for change in changes {
                    match self.partial.take_if(|partial| partial.revision == change.revision) {
                        Some(mut begun) => {
                            begun.events.extend(change.events);
                            whole.push(begun);
                        }
                        None => whole.push(change),
                    }
                }
            }
            Some(WatchBatch::Part(change)) => {
                self.bytes = if self.partial.is_some() { self.bytes } else { 0 } + change.to_bytes().len();
                if self.bytes > MAX_REVISION_BYTES {
                    return Taken::TooLarge;
                }
                match &mut self.partial {
                    Some(begun) => begun.events.extend(change.events),
                    None => self.partial = Some(change),
                }
            }
            Some(WatchBatch::Progress(_)) => whole.extend(self.partial.take()),
            Some(WatchBatch::Compacted(_)) | None => return Taken::Gone,
        }
        Taken::Whole(whole)
    }
}

/// Of any key: what counts is the header.
pub(super) fn one_key() -> crate::types::RangeRequest {
    crate::types::RangeRequest {
        range: KeyRange::key("raft-kv"),
        count_only: true,
        ..crate::types::RangeRequest::default()
    }
}

/// Reads all of an incremental backup; each revision goes to `take`.
///
/// # Errors
/// As [`read_all`](super::contents::read_all), and what `take` says.
pub(in crate::client) fn read_changes(
    file: &Path,
    key: Option<&BackupKey>,
    mut take: impl FnMut(&BackupInfo, Kept) -> Result<(), StartError>,
) -> Result<BackupSummary, StartError> {
    let shown = file.display().to_string();
    let mut opener = open(file, key)?;
    let (info, encrypted) = (opener.info().clone(), opener.encrypted());
    let damaged = |why: &str| Fault::Damaged { offset: 0, why: why.into() }.about(&shown);
    if info.since == 0 {
        return Err(refused(file, "it is a full backup, not the changes since one"));
    }
    let mut at = info.since;
    while at < info.revision {
        let Some(frame) = frame(&mut opener) else {
            return Err(match opener.fault() {
                Some(fault) => fault.about(&shown),
                None => damaged("its content ends before the revision that it goes to"),
            });
        };
        let kept = Kept::from_bytes(frame).map_err(|_| damaged("a revision in it can't be read"))?;
        if kept.change.revision != at + 1 {
            return Err(damaged("a revision is missing in it"));
        }
        at += 1;
        take(&info, kept)?;
    }
    let totals = opener.finish().map_err(|fault| fault.about(&shown))?;
    Ok(BackupSummary { info, encrypted, file_bytes: totals.file, digest: totals.digest })
}

fn frame(opener: &mut impl Read) -> Option<Bytes> {
    let mut len = [0; 4];
    opener.read_exact(&mut len).ok()?;
    let len = u32::from_le_bytes(len) as usize;
    if len > 2 * MAX_REVISION_BYTES {
        return None;
    }
    // No more is taken than there is, whatever it says.
    let mut frame = Vec::new();
    opener.take(len as u64).read_to_end(&mut frame).ok()?;
    (frame.len() == len).then(|| frame.into())
}

/// Up to where a restore goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RestoreTo {
    /// As far as the files go.
    #[default]
    End,
    /// This revision.
    Revision(Revision),
    /// What was there at this time, in milliseconds since 1970: nothing that came later, and all of what was known by
    /// then to whoever made the backup.
    Time(i64),
}

impl RestoreTo {
    /// Whether a revision is done again.
    pub(super) fn takes(self, kept: &Kept) -> bool {
        match self {
            Self::End => true,
            Self::Revision(to) => kept.change.revision <= to,
            Self::Time(to) => kept.at <= to,
        }
    }

    /// Refuses a backup that is newer than what is asked for.
    pub(super) fn check_base(self, file: &Path, info: &BackupInfo) -> Result<(), StartError> {
        let newer = match self {
            Self::End => false,
            Self::Revision(to) => info.revision > to,
            Self::Time(to) => info.made.saturating_mul(1000) > to,
        };
        if newer {
            Err(refused(file, "it is newer than what is asked for; give an older one"))
        } else {
            Ok(())
        }
    }

    /// Refuses what the files do not reach.
    pub(super) fn check_reached(self, file: &Path, revision: Revision) -> Result<(), StartError> {
        match self {
            Self::Revision(to) if revision < to => {
                let why =
                    format!("it and the changes that were given go to revision {revision}, not to {to}");
                Err(refused(file, why))
            }
            _ => Ok(()),
        }
    }
}

/// Refuses changes from an archive that were made behind another file than `before`, by its digest; empty where there
/// is none.
pub(super) fn check_chain(file: &Path, info: &BackupInfo, before: &Bytes) -> Result<(), StartError> {
    if info.follows.is_empty() || before.is_empty() || info.follows == *before {
        return Ok(());
    }
    let why = "it was made behind another file than the one before; something in the archive was exchanged";
    Err(Fault::Damaged { offset: 0, why: why.into() }.about(&file.display().to_string()))
}

/// Refuses changes that don't follow on what was restored so far.
pub(super) fn check_follows(
    file: &Path,
    info: &BackupInfo,
    base: &BackupInfo,
    reached: Revision,
) -> Result<(), StartError> {
    let why = if info.cluster != base.cluster {
        "it is of another cluster".to_owned()
    } else if info.since > reached {
        format!(
            "it goes on from revision {}, and those before it go to {reached}; one is missing",
            info.since
        )
    } else {
        return Ok(());
    };
    Err(refused(file, why))
}
