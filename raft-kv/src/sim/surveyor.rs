//! What clients do with rollback points: they make them, now and for older revisions, remove and list them,
//! set schedules, look what differs, page by page, read below the compaction, roll back and undo it; and the
//! leader's look for what is due.
//!
//! It draws and remembers what clients were told; it never looks into a member's state by itself.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::scheduler::stream;
use crate::types::{
    KeyRange, PointChange, PointDiffPage, PointDiffRequest, PointList, PointReply, PointSchedule,
    RangeRequest, Revision, UNDO_PREFIX,
};

/// How often clients turn to rollback points, and how rollbacks are cut.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PointHabits {
    /// Part of the requests that are about points.
    pub share: f64,
    /// Chance that a member crashes when it is seen with a rollback half done.
    pub crash: f64,
    /// Keys that one step of a rollback looks at.
    pub step_keys: usize,
}

impl PointHabits {
    /// In one run of four nobody uses points.
    pub(super) fn of(seed: u64) -> Self {
        let mut random = stream(seed, "points");
        let share = if random.random_bool(0.75) { random.random_range(0.03..0.25) } else { 0.0 };
        Self {
            share,
            crash: [0.0, 0.02, 0.1][random.random_range(0..3)],
            step_keys: [1, 1, 2, 3, crate::limits::ROLLBACK_STEP_KEYS][random.random_range(0..5)],
        }
    }
}

/// What is to be asked.
pub(super) enum Wish {
    Change(PointChange),
    List,
    Diff(PointDiffRequest),
    Read(RangeRequest),
}

/// Draws, and knows what clients were told of points.
pub(super) struct Surveyor {
    random: ChaCha8Rng,
    pub(super) habits: PointHabits,
    made: u64,
    known: BTreeMap<String, Revision>,
    schedules: BTreeSet<String>,
    pages: Vec<PointDiffRequest>,
    pub(super) counts: BTreeMap<&'static str, u64>,
}

impl Surveyor {
    pub(super) fn new(seed: u64, habits: PointHabits) -> Self {
        Self {
            random: stream(seed, "surveyor"),
            habits,
            made: 0,
            known: BTreeMap::new(),
            schedules: BTreeSet::new(),
            pages: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Whether anybody uses points at all.
    pub(super) fn is_busy(&self) -> bool {
        self.habits.share > 0.0
    }

    /// Whether the next request is about points.
    pub(super) fn wants(&mut self) -> bool {
        self.is_busy() && self.random.random_bool(self.habits.share)
    }

    /// Whether a member that has a rollback half done crashes, and after how many microseconds.
    pub(super) fn crashes(&mut self) -> Option<u64> {
        let crashes = self.is_busy() && self.random.random_bool(self.habits.crash);
        crashes.then(|| self.random.random_range(0..10_000))
    }

    /// Whether somebody looks at a member that has a rollback half done.
    pub(super) fn looks(&mut self) -> bool {
        self.random.random_bool(0.15)
    }

    fn some_point(&mut self, undo: bool) -> Option<(String, Revision)> {
        let points: Vec<_> =
            self.known.iter().filter(|(name, _)| !undo || name.starts_with(UNDO_PREFIX)).collect();
        let at = (!points.is_empty()).then(|| self.random.random_range(0..points.len()))?;
        Some((points[at].0.clone(), *points[at].1))
    }

    fn prefix(&mut self) -> Option<Bytes> {
        match self.random.random_range(0..4) {
            0 => Some(Bytes::from_static(b"k")),
            1 => Some(format!("k{}", self.random.random_range(0..8)).into()),
            _ => None,
        }
    }

    /// Something about points, where `newest` is the newest revision that is known; `millis` is the time.
    pub(super) fn draw(&mut self, newest: Revision, millis: i64) -> Option<Wish> {
        if let Some(page) = self.pages.pop().filter(|_| self.random.random_bool(0.8)) {
            return Some(Wish::Diff(page));
        }
        Some(match self.random.random_range(0..100) {
            0..25 => {
                let older = newest > 2 && self.random.random_bool(0.35);
                let at = older.then(|| self.random.random_range((newest - 40).max(1)..=newest));
                let expires = self.random.random_bool(0.3);
                let expires = expires.then(|| millis + self.random.random_range(1_000..1_000_000));
                Wish::Change(self.create(at, expires, millis))
            }
            25..35 => Wish::Change(PointChange::Remove { name: self.name()? }),
            35..42 => Wish::List,
            42..56 => {
                let (point, prefix) = (self.name()?, self.prefix());
                let limit = if self.random.random_bool(0.6) { self.random.random_range(1..4) } else { 0 };
                let count_only = self.random.random_bool(0.3);
                Wish::Diff(PointDiffRequest {
                    point,
                    prefix,
                    limit,
                    count_only,
                    ..PointDiffRequest::default()
                })
            }
            56..68 => {
                let (_, revision) = self.some_point(false)?;
                Wish::Read(RangeRequest {
                    range: KeyRange::all(),
                    revision,
                    serializable: self.random.random_bool(0.3),
                    ..RangeRequest::default()
                })
            }
            68..73 => Wish::Change(self.schedule()),
            kind => {
                let (point, _) = self.some_point(kind > 92).or_else(|| self.some_point(false))?;
                let prefix = self.prefix();
                Wish::Change(PointChange::Rollback { point, prefix, author: "client".into(), now: millis })
            }
        })
    }

    fn name(&mut self) -> Option<String> {
        if self.random.random_bool(0.05) {
            return Some("nobody".to_owned());
        }
        self.some_point(false).map(|(name, _)| name)
    }

    fn create(&mut self, at: Option<Revision>, expires: Option<i64>, now: i64) -> PointChange {
        // Sometimes a name that is taken.
        self.made += u64::from(!self.random.random_bool(0.05));
        let name = format!("p{}", self.made);
        PointChange::Create { name, at, expires, author: "client".into(), comment: String::new(), now }
    }

    fn schedule(&mut self) -> PointChange {
        let name = format!("s{}", self.random.random_range(0..2));
        if self.schedules.contains(&name) && self.random.random_bool(0.4) {
            self.schedules.remove(&name);
            return PointChange::RemoveSchedule { name };
        }
        self.schedules.insert(name.clone());
        let (every, keep) = (self.random.random_range(60..600), self.random.random_range(1..4));
        PointChange::SetSchedule(PointSchedule { name, every, keep })
    }

    /// A change was done.
    pub(super) fn told(&mut self, change: &PointChange, reply: &PointReply) {
        match reply {
            PointReply::Created(point) => {
                self.known.insert(point.name.clone(), point.revision);
                self.count("rollback points made");
                if matches!(change, PointChange::Create { at: Some(_), .. }) {
                    self.count("rollback points made of older revisions");
                }
            }
            PointReply::Removed(point) => {
                self.known.remove(&point.name);
                self.count("rollback points removed");
            }
            PointReply::RolledBack(done) => {
                if let Some(undo) = &done.undo {
                    self.known.insert(undo.clone(), done.revision - 1);
                }
            }
            PointReply::Done => {}
        }
    }

    /// Points were listed.
    pub(super) fn listed(&mut self, list: &PointList) {
        self.known = list.points.iter().map(|point| (point.name.clone(), point.revision)).collect();
        self.schedules = list.schedules.iter().map(|status| status.schedule.name.clone()).collect();
        self.count("lists of rollback points");
    }

    /// A page was read.
    pub(super) fn paged(&mut self, asked: &PointDiffRequest, page: &PointDiffPage) {
        self.count("pages of differences");
        if asked.after.is_some() {
            self.count("pages of differences after the first");
        }
        if let Some(next) = &page.next {
            self.pages.push(PointDiffRequest {
                revision: page.to,
                after: Some(next.clone()),
                ..asked.clone()
            });
        }
    }
}
