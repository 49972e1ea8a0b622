//! Every byte that anything rests on, changed one at a time: it is found, at its place. What is sound is
//! never called damaged.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rand::{RngCore, SeedableRng};
use tempfile::TempDir;

use super::*;
use crate::machine::store::{Batch, Store, Table};
use crate::storage::state::tests::small;
use crate::storage::state::{State, generation_folder};

fn all(_: u64) -> bool {
    true
}

/// A closed state of several tables with compressed, plain, small and large values.
fn state(values: usize) -> TempDir {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), small()).unwrap();
    let mut chance = rand::rngs::StdRng::seed_from_u64(7);
    for table in [Table::Live, Table::Values, Table::Past] {
        let mut writes = Vec::new();
        for number in 0..values {
            let mut value = vec![b'x'; number % 700];
            if number % 2 == 0 {
                chance.fill_bytes(&mut value);
            }
            writes.push((table, Bytes::from(format!("key-{number:06}")), Some(value.into())));
        }
        state.write(Batch { writes }).unwrap();
    }
    state.flush().unwrap();
    state.rewrite(Table::Values).unwrap();
    dir
}

fn folder(dir: &TempDir) -> PathBuf {
    generation_folder(dir.path(), 1)
}

fn files(folder: &Path, with: &str) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = paths.filter(|path| path.to_string_lossy().contains(with)).collect();
    found.sort();
    assert!(!found.is_empty(), "no {with} in {}", folder.display());
    found
}

/// Changes the byte at `at` of `path` while `run` runs.
fn flipped<R>(path: &Path, at: usize, bit: u8, run: impl FnOnce() -> R) -> R {
    let whole = fs::read(path).unwrap();
    let mut bytes = whole.clone();
    bytes[at] ^= 1 << bit;
    fs::write(path, bytes).unwrap();
    let result = run();
    fs::write(path, whole).unwrap();
    result
}

fn problems(dir: &Path) -> Vec<Problem> {
    let (problems, found) = check_state(dir, &mut all).unwrap();
    assert!(found.is_none() || !problems.iter().any(|problem| problem.harm == Harm::Damage));
    problems
}

#[test]
fn sound_tables_of_every_size_are_sound() {
    for values in [1, 10, 3000] {
        let dir = state(values);
        let tables = files(&folder(&dir), ".sst");
        assert_eq!(check_files(&tables, &mut all).unwrap(), []);
        let harm = |problem: &Problem| problem.harm;
        assert!(problems(dir.path()).iter().map(harm).all(|harm| harm == Harm::Note));
    }
}

#[test]
fn every_byte_of_a_table_counts() {
    let dir = state(12);
    for table in files(&folder(&dir), ".sst") {
        let len = fs::metadata(&table).unwrap().len() as usize;
        assert!(len > 1000, "blocks of several kinds");
        for at in 0..len {
            let found = flipped(&table, at, (at % 8) as u8, || {
                check_files(std::slice::from_ref(&table), &mut all).unwrap()
            });
            let [problem] = &found[..] else { panic!("byte {at} of {len}: {found:?}") };
            assert_eq!(problem.file, table.display().to_string());
            assert!(problem.offset.unwrap() <= at as u64, "byte {at}: {problem}");
        }
    }
}

#[test]
fn a_damaged_block_is_named_by_its_place() {
    let dir = state(3000);
    let table = files(&folder(&dir), ".sst").into_iter().max_by_key(|path| fs::metadata(path).unwrap().len());
    let table = table.unwrap();
    let len = fs::metadata(&table).unwrap().len() as usize;
    for at in [0, len / 3, len / 2, len - 60, len - 1] {
        let found = flipped(&table, at, 3, || check_files(std::slice::from_ref(&table), &mut all).unwrap());
        let offset = found[0].offset.unwrap() as usize;
        // A block of data has 4 KiB, an index or filter 16, before they are compressed.
        assert!(offset <= at && at - offset < 20 * 1024, "byte {at}: {}", found[0]);
    }
}

#[test]
fn a_block_in_anothers_place_is_noticed() {
    let dir = state(3000);
    let tables = files(&folder(&dir), ".sst");
    let [one, other] = [&tables[0], &tables[1]].map(|path| fs::read(path).unwrap());
    assert_ne!(one, other);
    // The first block of another file, with its own right checksum.
    let len = one.len().min(other.len()) - 100;
    fs::write(&tables[0], [&other[..len], &one[len..]].concat()).unwrap();
    assert_eq!(check_files(&tables[..1], &mut all).unwrap()[0].offset, Some(0));
}

#[test]
fn every_byte_of_the_manifest_counts() {
    let dir = state(10);
    let manifest = &files(&folder(&dir), "MANIFEST")[0];
    for at in 0..fs::metadata(manifest).unwrap().len() as usize {
        let found = flipped(manifest, at, (at % 8) as u8, || {
            super::state::check_manifest(&folder(&dir), &mut all).unwrap()
        });
        let problem = found.unwrap_or_else(|| panic!("byte {at}"));
        assert!(problem.offset.unwrap() <= at as u64 && problem.file.contains("MANIFEST"), "{problem}");
    }
    let found = flipped(manifest, 100, 0, || problems(dir.path()));
    assert!(found.iter().any(|problem| problem.harm == Harm::Damage));
}

#[test]
fn every_byte_of_current_counts() {
    let dir = state(1);
    let current = folder(&dir).join("CURRENT");
    for at in 0..fs::metadata(&current).unwrap().len() as usize {
        let found = flipped(&current, at, (at % 7) as u8, || problems(dir.path()));
        assert!(found[0].file.ends_with("CURRENT"), "byte {at}: {found:?}");
    }
}

#[test]
fn what_is_missing_cut_short_or_left_over_is_named() {
    let dir = state(10);
    let table = files(&folder(&dir), ".sst")[0].clone();
    let whole = fs::read(&table).unwrap();
    let check = |harm: Harm, part: &str| {
        let found = problems(dir.path());
        let named = found.iter().find(|problem| problem.harm == harm && problem.what.contains(part));
        assert!(named.is_some(), "{part}: {found:?}");
    };
    fs::write(&table, &whole[..whole.len() - 1]).unwrap();
    check(Harm::Damage, "footer");
    fs::remove_file(&table).unwrap();
    check(Harm::Damage, "No such file");
    fs::write(&table, &whole).unwrap();
    assert!(problems(dir.path()).iter().all(|problem| problem.harm == Harm::Note));
    fs::write(table.with_file_name("999999.sst"), b"").unwrap();
    fs::create_dir(dir.path().join("db-00000000")).unwrap();
    check(Harm::Note, "next start removes it");
    fs::remove_dir_all(folder(&dir)).unwrap();
    fs::remove_dir_all(dir.path().join("db-00000000")).unwrap();
    check(Harm::Damage, "holds no state");
}

#[test]
fn whoever_is_told_to_stop_stops() {
    let dir = state(10);
    let mut left = 3;
    let mut pace = |_| {
        left -= 1;
        left > 0
    };
    assert!(matches!(check_state(dir.path(), &mut pace), Err(Cut::Stopped)));
}
