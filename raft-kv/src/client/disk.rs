//! How much of a member's disk is free, and the alarm that it raises while that is too little.
//!
//! Every member looks after its own disk: it raises [`AlarmKind::DiskShort`] for itself well before
//! nothing can be written any more, and ends it when there is room again, with a gap between the two so
//! that it does not go back and forth. It must never touch an alarm that somebody raised by hand. The
//! leader ends that of a member that is silent: who is off fills no disk, and says so again when it is back.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::config::Tuning;
use super::local::Local;
use super::node::OWN_PATIENCE;
use crate::error::{Error, Refusal};
use crate::limits::{DISK_LOOK, DISK_LOOK_CLOSELY, DISK_SILENCE};
use crate::machine;
use crate::machine::command::Command;
use crate::node::ask::What;
use crate::types::{AlarmKind, AlarmRequest, NodeId};

/// Where a member learns how many bytes of its disk are free.
#[derive(Clone, Default)]
pub enum FreeSpace {
    /// From the file system that its data directory is on.
    #[default]
    OfDisk,
    /// From the program that links it, which knows of a bound that the file system does not.
    Told(Arc<dyn Fn() -> u64 + Send + Sync>),
}

impl fmt::Debug for FreeSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OfDisk => "OfDisk",
            Self::Told(_) => "Told",
        })
    }
}

/// The disk of a data directory.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    source: FreeSpace,
    reserve: u64,
    least: u64,
    /// Bytes that were free at the last look; 0 before the first.
    free: AtomicU64,
}

/// What one look found, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Look {
    free: u64,
    reserve: u64,
}

impl Look {
    /// Whether the alarm is to be raised now, where it is `raised` or not.
    fn short(self, raised: bool) -> bool {
        // A quarter more than the reserve ends it: what is written meanwhile is not to raise it again.
        let enough = if raised { self.reserve.saturating_add(self.reserve / 4) } else { self.reserve };
        self.free < enough
    }

    /// How long until the next look.
    fn pause(self) -> Duration {
        if self.free < self.reserve.saturating_mul(4) { DISK_LOOK_CLOSELY } else { DISK_LOOK }
    }
}

impl Disk {
    pub(super) fn new(folder: &Path, tuning: &Tuning) -> Self {
        Self {
            folder: folder.to_owned(),
            source: tuning.free_space.clone(),
            reserve: tuning.disk_reserve_bytes,
            least: tuning.log_segment_bytes.saturating_mul(2),
            free: AtomicU64::new(0),
        }
    }

    /// Bytes that were free at the last look.
    pub(super) fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// Whether `bytes` more fit, and the reserve stays; what is needed and what is free where not. Looks at the
    /// disk: call it where that may take a while.
    pub(super) fn has_room(&self, bytes: u64) -> Result<(), Refusal> {
        // A disk that can't be asked refuses nothing: writing will tell.
        let Ok(Look { free, reserve }) = self.look() else { return Ok(()) };
        // The reserve is for what a member needs to go on; the log needs its part of that meanwhile.
        let needed = bytes.saturating_add(reserve.min(self.least));
        if needed > free { Err(Refusal::NoRoom { needed, free }) } else { Ok(()) }
    }

    fn look(&self) -> io::Result<Look> {
        let (free, total) = match &self.source {
            FreeSpace::Told(free) => (free(), u64::MAX),
            FreeSpace::OfDisk => {
                let found = rustix::fs::statvfs(&self.folder)?;
                (found.f_bavail.saturating_mul(found.f_frsize), found.f_blocks.saturating_mul(found.f_frsize))
            }
        };
        self.free.store(free, Ordering::Relaxed);
        Ok(Look { free, reserve: reserve(self.reserve, total, self.least) })
    }
}

/// What is kept free of a disk with `total` bytes.
fn reserve(wanted: u64, total: u64, least: u64) -> u64 {
    wanted.min(total / 10).max(least)
}

/// Looks after this member's disk, and as the leader after the alarms of silent members. Runs until the
/// node ends.
pub(super) async fn keep(local: Arc<Local>) {
    let mut heard = Heard::default();
    let mut pause = DISK_LOOK_CLOSELY;
    loop {
        tokio::time::sleep(pause).await;
        let disk = local.disk.clone();
        // A file system that hangs must not hang the others' work with it.
        let look = tokio::task::spawn_blocking(move || disk.look()).await.expect("a look does not panic");
        pause = match look {
            Ok(look) => {
                match local.say_whether_short(look).await {
                    Err(Error::Stopped(_)) => return,
                    Err(error) => tracing::debug!(%error, "the state of the disk: said again"),
                    Ok(()) => {}
                }
                look.pause()
            }
            Err(error) => {
                tracing::warn!(%error, folder = %local.disk.folder.display(), "can't see how much is free");
                DISK_LOOK
            }
        };
        if let Err(error) = local.end_alarms_of_silent(&mut heard).await {
            tracing::debug!(%error, "alarms of silent members: tried again");
        }
    }
}

impl Local {
    fn disk_alarms(&self) -> Result<Vec<NodeId>, Error> {
        let alarms = self.read(machine::read::alarms)?.into_iter();
        Ok(alarms.filter(|(_, kind)| *kind == AlarmKind::DiskShort).map(|(id, _)| id).collect())
    }

    async fn change_disk_alarm(&self, request: AlarmRequest) -> Result<(), Error> {
        let what = What::Command { command: Command::Alarm(request), once: None };
        self.apply(what, OWN_PATIENCE).await.map(drop)
    }

    /// Raises or ends this member's alarm, where that changes anything.
    async fn say_whether_short(&self, look: Look) -> Result<(), Error> {
        let raised = self.disk_alarms()?.contains(&self.me);
        let short = look.short(raised);
        if short == raised {
            return Ok(());
        }
        let folder = self.disk.folder.display();
        let (free, reserve) = (look.free, look.reserve);
        if short {
            tracing::error!(
                %folder, free, reserve,
                "the disk is nearly full: nothing that takes space is done until there is room on it"
            );
            self.change_disk_alarm(AlarmRequest::Raise(self.me, AlarmKind::DiskShort)).await
        } else {
            tracing::info!(%folder, free, reserve, "there is room on the disk again");
            self.change_disk_alarm(AlarmRequest::End(self.me, AlarmKind::DiskShort)).await
        }
    }

    /// As the leader: ends the alarms of members that have not been heard of for long.
    async fn end_alarms_of_silent(&self, heard: &mut Heard) -> Result<(), Error> {
        if !self.leads() {
            *heard = Heard::default();
            return Ok(());
        }
        let raised = self.disk_alarms()?;
        if raised.iter().all(|id| *id == self.me) {
            *heard = Heard::default();
            return Ok(());
        }
        let (status, _) = self.shell.status().await?;
        let active = status.progress.iter().filter(|(_, progress)| progress.recent_active);
        let active: Vec<NodeId> = active.map(|(id, _)| *id).chain([self.me]).collect();
        for id in heard.silent(Instant::now(), &raised, &active) {
            tracing::warn!(member = %id, "its disk was short and it is silent: its alarm is ended until it says so again");
            self.change_disk_alarm(AlarmRequest::End(id, AlarmKind::DiskShort)).await?;
        }
        Ok(())
    }
}

/// When members whose alarm is raised were last heard of.
#[derive(Default)]
struct Heard(BTreeMap<NodeId, Instant>);

impl Heard {
    /// Those of `raised` that were not among the `active` for long. Who is new here counts as just heard.
    fn silent(&mut self, now: Instant, raised: &[NodeId], active: &[NodeId]) -> Vec<NodeId> {
        self.0.retain(|id, _| raised.contains(id));
        let mut silent = Vec::new();
        for id in raised {
            let last = self.0.entry(*id).or_insert(now);
            if active.contains(id) {
                *last = now;
            } else if now.saturating_duration_since(*last) >= DISK_SILENCE {
                silent.push(*id);
            }
        }
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_suits_the_disk() {
        let check = |wanted, total, least, expect| assert_eq!(reserve(wanted, total, least), expect);
        check(256, 10_000, 32, 256);
        check(256, 1_000, 32, 100);
        check(256, 100, 32, 32);
        check(256, u64::MAX, 32, 256);
    }

    #[test]
    fn the_alarm_stays_until_there_is_more_than_just_enough() {
        let check =
            |free, raised, expect| assert_eq!(Look { free, reserve: 100 }.short(raised), expect, "{free}");
        check(100, false, false);
        check(99, false, true);
        check(124, true, true);
        check(125, true, false);
        check(0, true, true);
        // Between the two it stays as it is.
        check(110, false, false);
        check(110, true, true);
    }

    #[test]
    fn it_looks_closely_where_little_is_free() {
        assert_eq!(Look { free: 399, reserve: 100 }.pause(), DISK_LOOK_CLOSELY);
        assert_eq!(Look { free: 400, reserve: 100 }.pause(), DISK_LOOK);
    }

    #[test]
    fn a_look_finds_what_the_file_system_says() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path(), &Tuning::default());
        assert_eq!(disk.free(), 0);
        let look = disk.look().unwrap();
        assert_eq!(disk.free(), look.free);
        assert!(look.reserve >= disk.least);
        let missing = Disk::new(&dir.path().join("none"), &Tuning::default());
        assert_eq!(missing.look().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn who_is_silent_for_long_stops_nothing_any_more() {
        let start = Instant::now();
        let at = |tenths: u32| start + DISK_SILENCE / 10 * tenths;
        let (one, two) = (NodeId(1), NodeId(2));
        let mut heard = Heard::default();
        assert_eq!(heard.silent(at(0), &[one, two], &[two]), []);
        assert_eq!(heard.silent(at(9), &[one, two], &[two]), []);
        assert_eq!(heard.silent(at(10), &[one, two], &[two]), [one]);
        assert_eq!(heard.silent(at(19), &[one, two], &[one]), []);
        // The other's alarm was ended and raised again meanwhile: its time begins anew.
        assert_eq!(heard.silent(at(20), &[one], &[]), []);
        assert_eq!(heard.silent(at(21), &[one, two], &[]), []);
        assert_eq!(heard.silent(at(29), &[one, two], &[]), [one]);
        assert_eq!(heard.silent(at(31), &[two], &[]), [two]);
    }

    #[test]
    fn a_snapshot_is_refused_where_it_would_fill_the_disk() {
        let disk = |free: u64| {
            let free_space = FreeSpace::Told(Arc::new(move || free));
            let tuning = Tuning { free_space, log_segment_bytes: 100, ..Tuning::default() };
            Disk::new(Path::new("."), &tuning)
        };
        assert_eq!(disk(1200).has_room(1000), Ok(()));
        assert_eq!(disk(1199).has_room(1000), Err(Refusal::NoRoom { needed: 1200, free: 1199 }));
        assert!(disk(u64::MAX - 1).has_room(u64::MAX).is_err());
    }
}
