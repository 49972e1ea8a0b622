//! Opening by the table in `open.rs`, failing disks, limits of memory and space.

use bytes::Bytes;

use super::super::*;
use super::model::*;
use crate::planted::{self, Bug};
use crate::raft::{LogView, Proof};
use crate::sim::disk::SimDisk;
use crate::types::*;

fn entry(index: Index, term: Term, size: usize) -> Entry {
    Entry {
        index,
        term,
        kind: EntryKind::Normal,
        data: Bytes::from(vec![index as u8; size]),
        context: Bytes::new(),
    }
}

/// A log with entries 2..=6 of term 2, and a vote in term 3.
fn healthy(seed: u64) -> SimDisk {
    let disk = disk(seed);
    let hard = HardState { term: 1, vote: NodeId(0), commit: 1 };
    let (mut log, mut writer) =
        Log::create(disk.clone(), OPTIONS, IDENTITY, boundary(1, 1), hard).expect("makes");
    let entries: Vec<_> = (2..=6).map(|index| entry(index, 2, 50)).collect();
    let write = log.stage(1, Some(HardState { term: 2, vote: NodeId(5), commit: 1 }), &entries);
    writer.write(write).expect("writes");
    let write = log.stage(2, Some(HardState { term: 3, vote: NodeId(7), commit: 4 }), &[]);
    writer.write(write).expect("writes");
    disk.restart()
}

fn open(disk: &SimDisk, state: Option<SnapshotMeta>) -> Result<Opened<SimDisk>, crate::error::StorageFailed> {
    Log::open(disk.restart(), OPTIONS, IDENTITY, state)
}

#[derive(Debug, PartialEq)]
enum Answer {
    /// Boundary, last index, restarted.
    Ready(Index, Index, bool),
    Behind,
    Damaged(&'static str),
}

#[track_caller]
fn check(disk: &SimDisk, state: Option<SnapshotMeta>, expect: Answer) {
    match (open(disk, state), expect) {
        (Ok(Opened::Ready { log, restarted, .. }), Answer::Ready(first, last, again)) => {
            assert_eq!((log.first_index() - 1, log.last_index(), restarted), (first, last, again));
            let (hard, _) = log.start();
            assert_eq!((hard.term, hard.vote), (3, NodeId(7)), "the vote is never lost");
        }
        (Ok(Opened::Behind { .. }), Answer::Behind) => {}
        (Err(failed), Answer::Damaged(why)) => assert!(failed.why.contains(why), "{failed}"),
        (other, expect) => panic!("{other:?} instead of {expect:?}"),
    }
}

#[test]
fn opening_follows_the_table() {
    check(&healthy(1), Some(boundary(1, 1)), Answer::Ready(1, 6, false));
    check(&healthy(1), Some(boundary(6, 2)), Answer::Ready(1, 6, false));
    check(&healthy(1), None, Answer::Damaged("gone"));
    check(&healthy(1), Some(boundary(7, 2)), Answer::Ready(7, 7, true));
    check(&healthy(1), Some(boundary(4, 3)), Answer::Ready(4, 4, true));
    check(&healthy(1), Some(boundary(4, 1)), Answer::Damaged("came later"));
    let disk = healthy(1);
    check(&disk, Some(boundary(9, 3)), Answer::Ready(9, 9, true));
    check(&disk, Some(boundary(9, 3)), Answer::Ready(9, 9, false));
    check(&disk, Some(boundary(6, 2)), Answer::Damaged("gone"));
}

/// A healthy log whose last segment is the one of an earlier time.
fn behind() -> SimDisk {
    let disk = disk(1);
    let hard = HardState { term: 1, vote: NodeId(0), commit: 1 };
    let (mut log, mut writer) =
        Log::create(disk.clone(), OPTIONS, IDENTITY, boundary(1, 1), hard).expect("makes");
    let image = disk.image();
    let entries: Vec<_> = (2..=6).map(|index| entry(index, 3, 50)).collect();
    let write = log.stage(1, Some(HardState { term: 3, vote: NodeId(7), commit: 1 }), &entries);
    writer.write(write).expect("writes");
    disk.restore_files(&image, |name| name.starts_with("segment"))
}

#[test]
fn a_log_before_its_marker_may_not_go_on_unless_the_state_is_past_it() {
    check(&behind(), Some(boundary(1, 1)), Answer::Behind);
    check(&behind(), Some(boundary(5, 3)), Answer::Behind);
    check(&behind(), Some(boundary(6, 3)), Answer::Ready(6, 6, true));
    let disk = behind();
    match open(&disk, Some(boundary(1, 1))).expect("opens") {
        Opened::Behind { marker, end } => {
            assert_eq!(marker, Position { term: 3, index: 6 });
            assert_eq!(end, Position { term: 1, index: 1 });
        }
        Opened::Ready { .. } => panic!("must not"),
    }
    // Planted: the marker is ignored, and entry 6 is forgotten.
    planted::with(Some(Bug::IgnoreMarker), || {
        assert!(matches!(open(&behind(), Some(boundary(1, 1))), Ok(Opened::Ready { .. })));
    });
}

/// Simulator, seed 1004: the newest slot rotted together with the log's last record, the older slot
/// counted, and an acknowledged entry was gone without a word.
#[test]
fn a_rotten_copy_of_the_marker_does_not_excuse_a_log_that_lost_its_end() {
    for slot in [0, 4096] {
        let disk = behind();
        disk.flip_at("marker", (slot + 40) * 8);
        check(&disk, Some(boundary(1, 1)), Answer::Behind);
    }
}

#[test]
fn a_log_with_no_segment_is_behind_and_one_without_marker_damaged() {
    let disk = healthy(1);
    let empty = super::model::disk(2).image();
    let gone = disk.restore_files(&empty, |name| name.starts_with("segment"));
    check(&gone, Some(boundary(1, 1)), Answer::Behind);
    check(&gone, Some(boundary(8, 3)), Answer::Ready(8, 8, true));
    check(&gone, Some(boundary(8, 3)), Answer::Ready(8, 8, false));
    let disk = healthy(1);
    let gone = disk.restore_files(&empty, |name| name == "marker");
    assert_eq!(Log::find(&gone), Ok(None));
    check(&gone, Some(boundary(1, 1)), Answer::Damaged("it is missing"));
    assert_eq!(Log::find(&healthy(1)), Ok(Some(IDENTITY)));
}

#[test]
fn a_restart_behind_the_state_survives_crashes_on_the_way() {
    for operations in 0..30 {
        for seed in 0..10 {
            for start in [healthy(seed), behind()] {
                start.cut_power_after(operations);
                let _ = Log::open(start.clone(), OPTIONS, IDENTITY, Some(boundary(9, 3)));
                let disk = start.crash();
                match Log::open(disk.clone(), OPTIONS, IDENTITY, Some(boundary(9, 3))) {
                    Ok(Opened::Ready { log, .. }) => assert_eq!(log.last_index(), 9),
                    other => panic!("operation {operations}, seed {seed}: {other:?}"),
                }
                check(&disk.crash(), Some(boundary(9, 3)), Answer::Ready(9, 9, false));
            }
        }
    }
}

#[test]
fn another_members_log_is_named() {
    let disk = healthy(1);
    let other = Identity { node: NodeId(0xbb), ..IDENTITY };
    let failed = Log::open(disk, OPTIONS, other, Some(boundary(1, 1))).expect_err("another node's");
    assert!(failed.why.contains("belongs to node 00000000000000a1 of cluster 00000000000000c1"), "{failed}");
}

#[test]
fn after_one_failure_the_writer_refuses_everything() {
    for fault in [SimDisk::fail_syncs as fn(&SimDisk, u32), SimDisk::fail_writes] {
        let mut runner = Runner::new(disk(1)).expect("a healthy disk");
        runner.run(&Op::Append(vec![10])).expect("stages").expect("equal");
        fault(&runner.disk, 1);
        let first = runner.run(&Op::Write(1)).expect_err("the disk failed");
        runner.run(&Op::Append(vec![10])).expect("stages").expect("equal");
        let second = runner.run(&Op::Write(1)).expect_err("and nobody tries again");
        assert_eq!(first, second);
        assert_eq!(runner.writer.prepare(), Err(first));
        assert!(!runner.writer.wants_prepare());
    }
}

#[test]
fn a_sync_tried_again_is_found() {
    let lost = |seed| {
        let mut runner = Runner::new(disk(seed)).expect("a healthy disk");
        runner.run(&Op::Append(vec![10])).expect("stages").expect("equal");
        runner.disk.fail_syncs(1);
        let written = runner.run(&Op::Write(1)).is_ok();
        !matches!(runner.crash(), Ok(Ok(()))) && written
    };
    assert!(!(0..20).any(lost));
    assert!(planted::with(Some(Bug::RetrySync), || (0..20).any(lost)));
}

#[test]
fn a_full_disk_is_an_error_that_names_the_file() {
    let mut runner = Runner::new(disk(1)).expect("a healthy disk");
    runner.disk.set_space(runner.disk.used());
    let failed = loop {
        runner.run(&Op::Append(vec![500])).expect("stages").expect("equal");
        if let Err(failed) = runner.run(&Op::Write(1)) {
            break failed;
        }
    };
    assert!(failed.file.contains("spare-") && failed.why.contains("making it"), "{failed}");
    runner.disk.set_space(u64::MAX);
    runner.crash().expect("opens").expect("nothing durable is lost");
}

#[test]
fn memory_is_bounded_but_holds_all_that_is_not_durable() {
    let mut runner = Runner::new(disk(1)).expect("a healthy disk");
    for _ in 0..20 {
        runner.run(&Op::Append(vec![400])).expect("stages").expect("equal");
    }
    assert!(runner.log.cached_bytes() > 20 * 400, "nothing is on disk yet");
    runner.run(&Op::Write(20)).expect("writes").expect("equal");
    runner.run(&Op::Append(vec![1])).expect("stages").expect("equal");
    assert!(runner.log.cached_bytes() <= OPTIONS.cache_bytes);
}

#[test]
fn segments_are_recycled_and_few() {
    let mut runner = Runner::new(disk(1)).expect("a healthy disk");
    for _ in 0..60 {
        for op in [Op::Append(vec![900, 900]), Op::Write(1), Op::Prepare, Op::Commit(255), Op::Cut(255)] {
            runner.run(&op).expect("a healthy disk").expect("equal");
        }
        assert!(runner.disk.used() <= 8192 + 6 * 4096, "{}", runner.disk.used());
    }
    // Oversized segments are not kept.
    for op in [Op::Append(vec![6000, 6000]), Op::Write(1), Op::Commit(255), Op::Cut(255), Op::Write(1)] {
        runner.run(&op).expect("a healthy disk").expect("equal");
    }
    for op in [Op::Append(vec![10; 5]), Op::Write(1), Op::Append(vec![3000]), Op::Write(1), Op::Commit(255)] {
        runner.run(&op).expect("a healthy disk").expect("equal");
    }
    runner.run(&Op::Cut(255)).expect("cuts").expect("equal");
    runner.run(&Op::Write(1)).expect("cuts").expect("equal");
    runner.crash().expect("opens").expect("equal");
    assert!(runner.disk.used() <= 8192 + 6 * 4096, "{}", runner.disk.used());
}

#[test]
fn one_group_is_one_sync_of_log_and_marker() {
    let mut runner = Runner::new(disk(1)).expect("a healthy disk");
    let before = runner.writer.stats();
    for _ in 0..10 {
        runner.run(&Op::Append(vec![20])).expect("stages").expect("equal");
    }
    runner.run(&Op::Write(10)).expect("writes").expect("equal");
    let after = runner.writer.stats();
    assert_eq!(after.fsyncs - before.fsyncs, 2);
    assert_eq!((after.batches - before.batches, after.writes - before.writes), (1, 10));
    runner.run(&Op::Commit(3)).expect("stages").expect("equal");
    let write = runner.staged.pop().expect("staged");
    let proof = runner.writer.write(write).expect("writes");
    assert!(proof.number() > 0);
    assert_eq!(runner.writer.stats().fsyncs, after.fsyncs);
}

#[test]
fn one_seed_gives_one_disk() {
    let run = || {
        let mut runner = Runner::new(disk(5)).expect("a healthy disk");
        for round in 0..30_u8 {
            for op in
                [Op::Append(vec![300, 20]), Op::Write(1), Op::Append(vec![700]), Op::Crash, Op::Vote(round)]
            {
                runner.run(&op).expect("a healthy disk").expect("equal");
            }
        }
        (view(&runner.log), runner.disk.counts())
    };
    assert_eq!(run(), run());
}

fn contents(disk: &SimDisk) -> Vec<(String, Vec<u8>)> {
    use crate::storage::files::{File, Files};
    let mut names = disk.list().expect("lists");
    names.sort();
    let read = |name: String| {
        let file = disk.open(&name).expect("opens");
        let mut bytes = vec![0; file.len().expect("has a length") as usize];
        file.read_at(0, &mut bytes).expect("reads");
        (name, bytes)
    };
    names.into_iter().map(read).collect()
}

/// What a look finds: the last entry, the last committed index, the entries behind the state, behind.
type Seen = ((Term, Index), Index, Vec<Index>, bool);

#[track_caller]
fn look(disk: &SimDisk, state: SnapshotMeta, expect: Result<Seen, &str>) {
    let disk = disk.restart();
    let before = contents(&disk);
    match (Log::look(disk.clone(), OPTIONS, IDENTITY, &state), expect) {
        (Ok(looked), Ok((last, committed, entries, behind))) => {
            assert_eq!((looked.last.term, looked.last.index), last);
            assert_eq!((looked.hard.commit, looked.behind), (committed, behind));
            let mut found = Vec::new();
            loop {
                // Small, so that there are several parts.
                let part = looked.entries(state.index + 1 + found.len() as u64, 100).expect("reads");
                if part.is_empty() {
                    break;
                }
                found.extend(part.iter().map(|entry| entry.index));
            }
            assert_eq!(found, entries);
        }
        (Err(failed), Err(why)) => assert!(failed.why.contains(why), "{failed}"),
        (other, expect) => panic!("{other:?} instead of {expect:?}"),
    }
    assert!(contents(&disk) == before, "a look changes nothing");
}

#[test]
fn a_look_finds_what_opening_does_and_changes_nothing() {
    look(&healthy(1), boundary(1, 1), Ok(((2, 6), 4, vec![2, 3, 4, 5, 6], false)));
    look(&healthy(1), boundary(5, 2), Ok(((2, 6), 5, vec![6], false)));
    look(&healthy(1), boundary(6, 2), Ok(((2, 6), 6, vec![], false)));
    look(&healthy(1), boundary(7, 2), Ok(((2, 7), 7, vec![], false)));
    look(&healthy(1), boundary(4, 3), Ok(((3, 4), 4, vec![], false)));
    look(&healthy(1), boundary(4, 1), Err("came later"));
    look(&healthy(1), SnapshotMeta::default(), Err("gone"));
    look(&behind(), boundary(1, 1), Ok(((1, 1), 1, vec![], true)));
    look(&behind(), boundary(6, 3), Ok(((3, 6), 6, vec![], false)));
}
