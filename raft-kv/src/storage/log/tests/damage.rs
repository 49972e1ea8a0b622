//! Damage to what was synced: it is refused, or it changes nothing.

use super::super::format::{SEGMENT_HEADER_BYTES, SegmentHeader, take_record};
use super::super::*;
use super::model::*;
use crate::planted::{self, Bug};
use crate::sim::disk::SimDisk;
use crate::storage::files::{File, Files};

/// A small log in two segments with one spare, cut once.
fn small() -> (SimDisk, Model, crate::types::SnapshotMeta) {
    let mut runner = Runner::new(disk(3)).expect("a healthy disk");
    use Op::*;
    for op in [
        Append(vec![900, 900]),
        Vote(1),
        Write(1),
        Append(vec![900, 900, 900]),
        Write(1),
        Commit(3),
        Cut(2),
        Vote(2),
        Vote(3),
        Write(1),
    ] {
        runner.run(&op).expect("a healthy disk").expect("equal");
    }
    (runner.disk.restart(), runner.model.clone(), runner.state.clone())
}

// What opening and reading gives: none where it is refused.
fn read(disk: &SimDisk, state: &crate::types::SnapshotMeta) -> Option<Model> {
    let opened = Log::open(disk.clone(), OPTIONS, IDENTITY, Some(state.clone()));
    match opened {
        Ok(Opened::Ready { log, .. }) => Some(view(&log)),
        Ok(Opened::Behind { .. }) | Err(_) => None,
    }
}

#[test]
fn every_flipped_bit_is_refused_or_harmless() {
    let (disk, model, state) = small();
    let image = disk.image();
    let (mut refused, mut harmless) = (0, 0);
    let len = |name: &String| disk.open(name).expect("opens").len().expect("has a length");
    let files: Vec<_> = disk.list().expect("lists").into_iter().map(|name| (len(&name), name)).collect();
    for (len, name) in files {
        for bit in 0..len * 8 {
            // In a zero or spare byte one bit stands for the other seven.
            if bit % 8 != (bit / 8) % 8 && (name.starts_with("spare") || bit / 8 > 3200) {
                continue;
            }
            let disk = disk.restore(&image);
            disk.flip_at(&name, bit);
            match read(&disk, &state) {
                None => refused += 1,
                Some(seen) => {
                    assert_eq!(
                        (seen.entries, seen.boundary, seen.hard.term, seen.hard.vote),
                        (model.entries.clone(), model.boundary.clone(), model.hard.term, model.hard.vote),
                        "{name} bit {bit}"
                    );
                    harmless += 1;
                }
            }
        }
    }
    assert!(refused > 10_000 && harmless > 1000, "refused {refused}, harmless {harmless}");
}

#[test]
fn damage_below_the_marker_names_file_and_offset() {
    let (disk, _, state) = small();
    let name = disk.list().expect("lists").into_iter().find(|name| name.starts_with("segment")).expect("one");
    disk.flip_at(&name, 8 * 100);
    let failed = Log::open(disk, OPTIONS, IDENTITY, Some(state)).expect_err("damaged");
    assert!(failed.file.ends_with(&name) && failed.why.contains("offset 64"), "{failed}");
}

#[test]
fn a_missing_segment_or_marker_slot_is_refused_or_harmless() {
    let (disk, model, state) = small();
    let image = disk.image();
    let empty = super::model::disk(9).image();
    for gone in disk.list().expect("lists") {
        let disk = disk.restore(&image).restore_files(&empty, |name| name == gone);
        let seen = read(&disk, &state);
        assert_eq!(seen.is_none(), !gone.starts_with("spare"), "{gone}: {seen:?}");
        assert!(seen.is_none_or(|seen| seen.entries == model.entries));
    }
}

#[test]
fn entries_read_back_are_checked_again() {
    let (disk, model, state) = small();
    let Ok(Opened::Ready { log, .. }) = Log::open(disk.clone(), OPTIONS, IDENTITY, Some(state)) else {
        panic!("a healthy log");
    };
    use crate::raft::LogView;
    let first = &model.entries[0];
    log.entries(first.index, first.index + 1, 0).expect("reads");
    for name in disk.list().expect("lists").iter().filter(|name| name.starts_with("segment")) {
        let len = disk.open(name).expect("opens").len().expect("has a length");
        for byte in (SEGMENT_HEADER_BYTES as u64..len).step_by(64) {
            disk.flip_at(name, byte * 8);
        }
    }
    let failed = log.entries(first.index, first.index + 1, 0).expect_err("damaged");
    assert!(failed.why.contains("damaged"), "{failed}");
}

// The last segment's records as (offset, size).
fn records(disk: &SimDisk, name: &str) -> Vec<(u64, usize)> {
    let file = disk.open(name).expect("opens");
    let mut bytes = vec![0; file.len().expect("has a length") as usize];
    file.read_at(0, &mut bytes).expect("reads");
    let salt = SegmentHeader::decode(&bytes).expect("a header").salt;
    let bytes = bytes::Bytes::from(bytes);
    let mut at = SEGMENT_HEADER_BYTES;
    let mut found = Vec::new();
    while let Some(record) = take_record(&bytes, at, salt) {
        found.push((at as u64, record.size()));
        at += record.size();
    }
    found
}

// The two last records are votes of one size: the first is put in the second's place, as a disk
// that misdirects writes or loses one would leave them.
fn swapped() -> bool {
    let (disk, model, state) = small();
    let name =
        disk.list().expect("lists").into_iter().rfind(|name| name.starts_with("segment")).expect("one");
    let votes = records(&disk, &name);
    let [.., (first, size), (second, other)] = votes[..] else { panic!("two votes") };
    assert_eq!(size, other);
    let mut bytes = vec![0; size];
    disk.open(&name).expect("opens").read_at(first, &mut bytes).expect("reads");
    disk.plant(&name, second, &bytes);
    match read(&disk, &state) {
        None => false,
        Some(seen) => {
            assert_eq!(seen.entries, model.entries);
            true
        }
    }
}

#[test]
fn a_record_in_anothers_place_is_refused() {
    assert!(!swapped());
    assert!(planted::with(Some(Bug::SkipChainCheck), swapped), "without the chain nobody sees it");
}
