//! What lies in an archive's folder, by its files' names, and what follows from that: where to go on, what leads
//! to a revision or a time, what is no longer needed. Pure: it reads no file and no clock.
//!
//! Changes form runs in which each file goes on where the one before ends; full backups are entries into them. It
//! must never call a file needless without which something that is kept could not be restored.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use crate::client::backup::RestoreTo;
use crate::error::Refusal;
use crate::planted;
use crate::types::Revision;

/// What every file's name ends with.
const SUFFIX: &str = ".rkb";

/// A file of an archive, as its name says. Ordered as they were made: by where they end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Entry {
    /// The revision that it goes to.
    pub(super) to: Revision,
    /// The revision that it has the changes since; 0 for a full backup.
    pub(super) since: Revision,
    /// A full backup: when all of it was there, at the latest. Changes: the date of the last one. In seconds since
    /// 1970.
    pub(super) made: i64,
}

impl Entry {
    pub(super) fn is_full(self) -> bool {
        self.since == 0
    }

    /// The first revision that it does not lead to: with it the next file begins.
    pub(super) fn next(self) -> Revision {
        self.to + 1 + Revision::from(planted!(ArchiveSkipsRevision))
    }

    /// Its name. Names sort by revision.
    pub(super) fn name(self) -> String {
        let Self { to, since, made } = self;
        let made = moment(made);
        if self.is_full() {
            format!("full-{to:020}-{made}{SUFFIX}")
        } else {
            format!("changes-{since:020}-{to:020}-{made}{SUFFIX}")
        }
    }

    /// The file of that name; none for whatever else lies there.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let words: Vec<&str> = name.strip_suffix(SUFFIX)?.split('-').collect();
        let entry = match words[..] {
            ["full", to, made] => Self { to: number(to)?, since: 0, made: seconds(made)? },
            ["changes", since, to, made] => {
                Self { to: number(to)?, since: number(since)?, made: seconds(made)? }
            }
            _ => return None,
        };
        (entry.name() == name && entry.to > entry.since).then_some(entry)
    }
}

fn number(text: &str) -> Option<Revision> {
    text.parse().ok().filter(|number| *number > 0)
}

/// A time as names have it: 20261122T100000Z.
fn moment(seconds: i64) -> String {
    let at =
        OffsetDateTime::from_unix_timestamp(seconds.clamp(0, LAST)).expect("it is within what can be said");
    let (date, time) = (at.date(), at.time());
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// The end of the year 9999.
const LAST: i64 = 253_402_300_799;

fn seconds(text: &str) -> Option<i64> {
    let part = |from: usize, to: usize| text.get(from..to)?.parse::<u16>().ok();
    let small = |from: usize, to: usize| u8::try_from(part(from, to)?).ok();
    let month = time::Month::try_from(small(4, 6)?).ok()?;
    let date = time::Date::from_calendar_date(part(0, 4)?.into(), month, small(6, 8)?).ok()?;
    let time = time::Time::from_hms(small(9, 11)?, small(11, 13)?, small(13, 15)?).ok()?;
    Some(date.with_time(time).assume_utc().unix_timestamp())
}

/// What leads to a revision or a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Lead {
    pub(super) full: Entry,
    pub(super) changes: Vec<Entry>,
}

/// The files of an archive, oldest first.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Catalog {
    pub(super) fulls: Vec<Entry>,
    pub(super) changes: Vec<Entry>,
}

impl Catalog {
    pub(super) fn of(entries: impl IntoIterator<Item = Entry>) -> Self {
        let (mut fulls, mut changes): (Vec<_>, Vec<_>) = entries.into_iter().partition(|it| it.is_full());
        fulls.sort();
        changes.sort();
        Self { fulls, changes }
    }

    /// The files in `folder` by their names; what else lies there is left alone.
    pub(super) fn read(folder: &Path) -> std::io::Result<Self> {
        let mut entries = Vec::new();
        for file in std::fs::read_dir(folder)? {
            entries.extend(file?.file_name().to_str().and_then(Entry::parse));
        }
        Ok(Self::of(entries))
    }

    /// Whether something of it is not in `now`.
    pub(super) fn lacks(&self, now: &Self) -> bool {
        let gone = |own: &[Entry], now: &[Entry]| own.iter().any(|entry| now.binary_search(entry).is_err());
        gone(&self.fulls, &now.fulls) || gone(&self.changes, &now.changes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fulls.is_empty() && self.changes.is_empty()
    }

    pub(super) fn add(&mut self, entry: Entry) {
        let list = if entry.is_full() { &mut self.fulls } else { &mut self.changes };
        // One of the same name took its place.
        if let Err(at) = list.binary_search(&entry) {
            list.insert(at, entry);
        }
    }

    pub(super) fn remove(&mut self, entry: Entry) {
        self.fulls.retain(|it| *it != entry);
        self.changes.retain(|it| *it != entry);
    }

    /// The file after which the next changes come, the first choice: the last changes; where there are none the
    /// first full backup.
    pub(super) fn last(&self) -> Option<Entry> {
        self.changes.last().or(self.fulls.first()).copied()
    }

    /// The next choice, where the cluster has no longer what comes after `last`: the first full backup behind it.
    pub(super) fn behind(&self, last: Entry) -> Option<Entry> {
        self.fulls.iter().find(|full| full.to > last.to).copied()
    }

    /// The newest full backup.
    pub(super) fn newest_full(&self) -> Option<Entry> {
        self.fulls.last().copied()
    }

    /// The changes that lead on from a full backup, without a gap.
    pub(super) fn run(&self, full: Entry) -> Vec<Entry> {
        let mut reached = full.to;
        let mut run = Vec::new();
        for changes in self.changes.iter().filter(|changes| changes.to > full.to) {
            if changes.since > reached {
                break;
            }
            reached = reached.max(changes.to);
            run.push(*changes);
        }
        run
    }

    /// Revisions of which nothing in between can be restored, each as the last before and the first behind it, with
    /// their times.
    pub(super) fn gaps(&self) -> Vec<(Entry, Entry)> {
        let mut gaps = Vec::new();
        let mut end: Option<Entry> = None;
        for full in &self.fulls {
            if let Some(before) = end.filter(|end| end.to < full.to) {
                gaps.push((before, *full));
            } else if end.is_some() {
                continue;
            }
            end = Some(self.run(*full).last().copied().unwrap_or(*full));
        }
        gaps
    }

    /// What leads there.
    ///
    /// # Errors
    /// [`Refusal`]: it is before the first full backup, behind the end, or in a gap.
    pub(super) fn path_to(&self, to: RestoreTo) -> Result<Lead, Refusal> {
        let refused = |why: String| Err(Refusal::invalid("archive", why));
        let within = |full: &&Entry| match to {
            RestoreTo::End => true,
            RestoreTo::Revision(to) => full.to <= to,
            RestoreTo::Time(to) => full.made.saturating_mul(1000) <= to,
        };
        let Some(full) = self.fulls.iter().rev().find(within).copied() else {
            return match self.fulls.first() {
                None => refused("there is no full backup in it".into()),
                Some(first) => refused(format!(
                    "it begins with revision {}, made at {}; what is asked for is older",
                    first.to,
                    moment(first.made)
                )),
            };
        };
        let run = self.run(full);
        let end = run.last().copied().unwrap_or(full);
        let next = self.fulls.iter().find(|next| next.to > end.to);
        match (to, next) {
            (RestoreTo::Revision(to), _) if to > end.to => {
                let next = next.map_or(String::new(), |next| format!(", and goes on from {}", next.to));
                return refused(format!("it has all revisions up to {}{next}; {to} is not in it", end.to));
            }
            (RestoreTo::Time(to), Some(next)) if to >= end.made.saturating_add(1).saturating_mul(1000) => {
                return refused(format!(
                    "from {} to {} is a gap in it: what happened then was compacted before it was archived; \
                     ask for one of the two, or for a revision up to {}",
                    moment(end.made),
                    moment(next.made),
                    end.to
                ));
            }
            _ => {}
        }
        let mut changes = Vec::new();
        let mut before = full;
        for next in run {
            let needed = match to {
                RestoreTo::End => true,
                RestoreTo::Revision(to) => before.to < to,
                RestoreTo::Time(to) => before.made.saturating_mul(1000) <= to,
            };
            if !needed {
                break;
            }
            changes.push(next);
            before = next;
        }
        Ok(Lead { full, changes })
    }

    /// The full backup from which on all is kept, where everything that happened after `since` is to be kept, and
    /// the files that are then needless, in the order in which they may go: whatever goes first, what is left can
    /// be restored.
    pub(super) fn needless(&self, since: i64) -> Option<(Entry, Vec<Entry>)> {
        let since = if planted!(ArchiveForgetsChain) { i64::MAX } else { since };
        let kept = self.fulls.iter().rev().find(|full| full.made <= since).copied()?;
        let fulls = self.fulls.iter().filter(|full| **full < kept);
        let changes = self.changes.iter().filter(|changes| changes.to <= kept.to);
        let needless: Vec<_> = fulls.chain(changes).copied().collect();
        (!needless.is_empty()).then_some((kept, needless))
    }

    pub(super) fn file(folder: &Path, entry: Entry) -> PathBuf {
        folder.join(entry.name())
    }
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
