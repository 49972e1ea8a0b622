//! A model of an archiver: whatever it makes, is killed at, or removes, every revision and every moment that the
//! archive has not named as a gap is led to, by files that are there and follow on each other.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[test]
fn names_sort_and_read_back_and_nothing_else_does() {
    let full = Entry { to: 7, since: 0, made: 1_795_341_600 };
    let changes = Entry { to: 1_000_000_007, since: 7, made: 1_795_341_601 };
    assert_eq!(full.name(), "full-00000000000000000007-20261122T100000Z.rkb");
    for entry in [full, changes, Entry { made: LAST, ..full }] {
        assert_eq!(Entry::parse(&entry.name()), Some(entry));
    }
    for foreign in [
        "full-7-20261122T100000Z.rkb",
        "full-00000000000000000000-20261122T100000Z.rkb",
        "changes-00000000000000000007-00000000000000000007-20261122T100000Z.rkb",
        "full-00000000000000000007-20261322T100000Z.rkb",
        "full-00000000000000000007-2026112\u{e4}100000Z.rkb",
        "full.part",
        "archive.lock",
        "",
    ] {
        assert_eq!(Entry::parse(foreign), None, "{foreign}");
    }
}

#[test]
fn what_is_asked_for_is_told_from_what_is_not_there() {
    let full = |to, made| Entry { to, since: 0, made };
    let changes = |since, to, made| Entry { to, since, made };
    // A gap behind 20.
    let catalog = Catalog::of([full(10, 100), changes(10, 15, 110), changes(15, 20, 120), full(40, 200)]);
    let check = |to: RestoreTo, expect: Result<(Revision, usize), &str>| {
        let found = catalog.path_to(to).map(|lead| (lead.full.to, lead.changes.len()));
        match (found, expect) {
            (Ok(found), Ok(expect)) => assert_eq!(found, expect, "{to:?}"),
            (Err(refusal), Err(part)) => assert!(refusal.to_string().contains(part), "{to:?}: {refusal}"),
            (found, _) => panic!("{to:?}: {found:?}"),
        }
    };
    check(RestoreTo::Revision(9), Err("begins with revision 10"));
    check(RestoreTo::Revision(10), Ok((10, 0)));
    check(RestoreTo::Revision(11), Ok((10, 1)));
    check(RestoreTo::Revision(16), Ok((10, 2)));
    check(RestoreTo::Revision(20), Ok((10, 2)));
    check(RestoreTo::Revision(21), Err("up to 20, and goes on from 40"));
    check(RestoreTo::Revision(40), Ok((40, 0)));
    check(RestoreTo::Revision(41), Err("up to 40; 41"));
    check(RestoreTo::End, Ok((40, 0)));
    check(RestoreTo::Time(99_999), Err("what is asked for is older"));
    check(RestoreTo::Time(100_000), Ok((10, 1)));
    check(RestoreTo::Time(110_500), Ok((10, 2)));
    check(RestoreTo::Time(120_900), Ok((10, 2)));
    check(RestoreTo::Time(121_000), Err("is a gap"));
    check(RestoreTo::Time(200_000), Ok((40, 0)));
    check(RestoreTo::Time(i64::MAX), Ok((40, 0)));
    assert_eq!(catalog.gaps(), [(changes(15, 20, 120), full(40, 200))]);
    assert_eq!(Catalog::default().path_to(RestoreTo::End).unwrap_err().to_string(), {
        Refusal::invalid("archive", "there is no full backup in it").to_string()
    });
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// So many revisions are committed.
    Commit(i64),
    /// All that was committed is put into a file.
    Close,
    /// A full backup is made, while changes go on.
    Full,
    /// The cluster compacts at its newest revision.
    Compact,
    /// The archiver is killed and another one goes on.
    Restart,
    /// What is older than so many seconds goes; killed after so many files.
    Prune(i64, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..5i64).prop_map(Step::Commit),
        6 => Just(Step::Close),
        2 => Just(Step::Full),
        1 => Just(Step::Compact),
        1 => Just(Step::Restart),
        1 => (0..40i64, 0..6usize).prop_map(|(keep, files)| Step::Prune(keep, files)),
    ]
}

/// A cluster and what an archiver does with it, by the decisions of the catalog alone.
#[derive(Default)]
struct World {
    clock: i64,
    revision: Revision,
    compacted: Revision,
    catalog: Catalog,
    tail: Option<Entry>,
    /// When each revision was archived, in milliseconds.
    dated: BTreeMap<Revision, i64>,
    /// A moment that went although it was to be kept, with what was there.
    lost: Option<(i64, Revision)>,
    missing: BTreeSet<Revision>,
}

impl World {
    fn full(&mut self) {
        let full = Entry { to: self.revision, since: 0, made: self.clock };
        self.catalog.add(full);
        self.tail.get_or_insert(full);
    }

    /// As the archiver: the first choice, or what is behind it where history is gone.
    fn settle(&mut self) {
        while let Some(tail) = self.tail {
            if tail.to + 1 >= self.compacted || tail.to == self.revision {
                return;
            }
            self.tail = self.catalog.behind(tail);
            let next = self.tail.map_or(self.revision, |next| next.to);
            self.missing.extend(tail.to + 1..next);
        }
        self.full();
    }

    fn step(&mut self, step: Step) {
        self.clock += 1;
        match step {
            Step::Commit(many) => self.revision += many,
            Step::Close => {
                self.settle();
                let since = self.tail.unwrap().next() - 1;
                if since < self.revision {
                    let changes = Entry { to: self.revision, since, made: self.clock };
                    self.dated.extend((since + 1..=self.revision).map(|at| (at, self.clock * 1000)));
                    self.catalog.add(changes);
                    self.tail = Some(changes);
                }
            }
            Step::Full => {
                self.settle();
                self.full();
            }
            Step::Compact => self.compacted = self.revision,
            Step::Restart => {
                let names: Vec<_> =
                    self.catalog.fulls.iter().chain(&self.catalog.changes).map(|it| it.name()).collect();
                self.catalog = Catalog::of(names.iter().map(|name| Entry::parse(name).unwrap()));
                self.tail = self.catalog.last();
                self.settle();
            }
            Step::Prune(keep, files) => {
                let since = self.clock - keep;
                let before = self.moments(since);
                if let Some((_, needless)) = self.catalog.needless(since) {
                    needless.into_iter().take(files).for_each(|entry| self.catalog.remove(entry));
                }
                self.lost = before.difference(&self.moments(since)).next().copied();
            }
        }
    }

    /// Moments since then that can be gone back to, each with the revision that its files reach.
    fn moments(&self, since: i64) -> BTreeSet<(i64, Revision)> {
        let led = |at: i64| {
            let lead = self.catalog.path_to(RestoreTo::Time(at * 1000)).ok()?;
            Some((at, lead.changes.last().map_or(lead.full.to, |last| last.to.max(lead.full.to))))
        };
        (since.max(0)..=self.clock).filter_map(led).collect()
    }

    /// Every revision and moment that should be there is.
    fn check(&self) -> Result<(), String> {
        let Some(first) = self.catalog.fulls.first() else { return Ok(()) };
        let last = self.catalog.changes.last().into_iter().chain(self.catalog.fulls.last()).max().unwrap();
        for to in first.to..=last.to {
            let lead = self.catalog.path_to(RestoreTo::Revision(to));
            // What waits for its file is in none, though a full backup may have been there before it.
            if self.missing.contains(&to) || self.tail.is_some_and(|tail| tail.to < to) {
                continue;
            }
            let lead = lead.map_err(|refusal| format!("revision {to}: {refusal}"))?;
            let mut reached = lead.full.to;
            for changes in &lead.changes {
                if changes.since > reached {
                    return Err(format!("{changes:?} does not follow on {reached}"));
                }
                reached = reached.max(changes.to);
            }
            if lead.full.to > to || reached < to {
                return Err(format!("revision {to} is led to by {lead:?}"));
            }
        }
        if let Some(lost) = self.lost {
            return Err(format!("{lost:?} was to be kept"));
        }
        for at in first.made..=self.clock {
            let Ok(lead) = self.catalog.path_to(RestoreTo::Time(at * 1000)) else { continue };
            let reached = lead.changes.last().map_or(lead.full.to, |last| last.to.max(lead.full.to));
            let expect = self.dated.iter().filter(|(_, dated)| **dated <= at * 1000).map(|(at, _)| *at).max();
            if lead.full.made > at || expect.is_some_and(|expect| reached < expect) {
                return Err(format!("second {at}, revision {expect:?}: {lead:?}"));
            }
        }
        Ok(())
    }
}

fn run(steps: &[Step]) -> Result<(), String> {
    let mut world = World { revision: 1, ..World::default() };
    for (number, step) in steps.iter().enumerate() {
        world.step(*step);
        world.check().map_err(|why| format!("after step {number}, {step:?}: {why}"))?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_revision_and_moment_of_an_archive_is_led_to(steps in prop::collection::vec(step(), 1..60)) {
        run(&steps).map_err(TestCaseError::fail)?;
    }
}

#[cfg(feature = "sim")]
#[test]
fn planted_bugs_are_found_by_the_model() {
    use Step::{Close, Commit, Full, Prune};

    use crate::planted::{Bug, with};
    let steps = [Full, Commit(3), Close, Commit(2), Close, Full, Commit(1), Close, Prune(30, 9), Close];
    assert_eq!(run(&steps), Ok(()));
    for bug in [Bug::ArchiveSkipsRevision, Bug::ArchiveForgetsChain] {
        assert!(with(Some(bug), || run(&steps)).is_err(), "{bug:?}");
    }
}
