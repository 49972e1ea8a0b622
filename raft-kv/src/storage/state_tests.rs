//! What the store on RocksDB promises, and what a damaged, full or crashed disk does to it.

use std::collections::BTreeMap;
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::check::check_files;
use super::*;

pub(crate) fn small() -> StateOptions {
    StateOptions { block_cache_bytes: 1 << 20, write_buffer_bytes: 1 << 20, background_jobs: 2 }
}

pub(crate) fn put(table: Table, key: &str, value: &str) -> (Table, Bytes, Option<Bytes>) {
    (table, Bytes::copy_from_slice(key.as_bytes()), Some(Bytes::copy_from_slice(value.as_bytes())))
}

pub(crate) fn remove(table: Table, key: &str) -> (Table, Bytes, Option<Bytes>) {
    (table, Bytes::copy_from_slice(key.as_bytes()), None)
}

pub(crate) fn write(state: &State, writes: Vec<(Table, Bytes, Option<Bytes>)>) {
    state.write(Batch { writes }).expect("the disk is sound");
}

pub(crate) fn get(state: &State, table: Table, key: &str) -> Option<String> {
    let value = state.view(|read| read.get(table, key.as_bytes())).expect("the disk is sound");
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

fn keys(read: &dyn Read, table: Table, from: &str, to: Option<&str>) -> Vec<String> {
    let pairs = read.scan(table, from.as_bytes(), to.map(str::as_bytes));
    pairs.map(|pair| String::from_utf8(pair.expect("the disk is sound").0.to_vec()).unwrap()).collect()
}

fn check_scan(from: &str, to: Option<&str>, expect: &[&str]) {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), small()).unwrap();
    write(&state, ["d", "a", "c", "b", "bb"].map(|key| put(Table::Live, key, "1")).into());
    // Half of it on disk, a neighbour table filled, one key removed again.
    state.flush().unwrap();
    write(&state, vec![put(Table::Past, "b", "1"), put(Table::Live, "e", "1"), remove(Table::Live, "c")]);
    assert_eq!(state.view(|read| keys(read, Table::Live, from, to)), expect);
}

#[test]
fn scans_are_in_order_and_within_bounds() {
    check_scan("", None, &["a", "b", "bb", "d", "e"]);
    check_scan("b", None, &["b", "bb", "d", "e"]);
    check_scan("b", Some("d"), &["b", "bb"]);
    check_scan("aa", Some("c"), &["b", "bb"]);
    check_scan("d", Some("b"), &[]);
    check_scan("b", Some("b"), &[]);
    check_scan("x", None, &[]);
    check_scan("", Some(""), &[]);
}

#[test]
fn the_later_write_of_a_batch_wins() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), small()).unwrap();
    write(&state, vec![put(Table::Live, "a", "1"), remove(Table::Live, "a"), put(Table::Live, "a", "2")]);
    write(&state, vec![put(Table::Live, "b", "1"), remove(Table::Live, "b")]);
    assert_eq!(get(&state, Table::Live, "a"), Some("2".into()));
    assert_eq!(get(&state, Table::Live, "b"), None);
}

#[test]
fn a_view_is_frozen_for_gets_and_scans() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), small()).unwrap();
    write(&state, vec![put(Table::Live, "a", "1"), put(Table::Meta, "at", "1")]);
    state.view(|read| {
        write(
            &state,
            vec![put(Table::Live, "a", "2"), put(Table::Live, "b", "2"), put(Table::Meta, "at", "2")],
        );
        state.flush().unwrap();
        assert_eq!(read.get(Table::Live, b"a").unwrap().unwrap(), "1");
        assert_eq!(read.get(Table::Meta, b"at").unwrap().unwrap(), "1");
        assert_eq!(keys(read, Table::Live, "", None), ["a"]);
    });
    assert_eq!(get(&state, Table::Meta, "at"), Some("2".into()));
}

/// Not a test by itself: the process that [`crash`] starts and that dies without closing.
#[test]
fn process_that_crashes() {
    let Ok(order) = std::env::var("RAFT_KV_TEST_CRASH") else { return };
    let mut words = order.split(',');
    let (dir, flushed, batches) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let flushed: u32 = flushed.parse().unwrap();
    let state = State::open(Path::new(dir), small()).unwrap();
    let filler = "x".repeat(2000);
    for number in 1..=batches.parse().unwrap() {
        let key = format!("{number:06}");
        let tables = [Table::Live, Table::Past, Table::Log];
        let mut writes: Vec<_> = tables.map(|table| put(table, &key, &filler)).into();
        writes.push(put(Table::Meta, "applied", &number.to_string()));
        write(&state, writes);
        if number == flushed {
            state.flush().unwrap();
        }
    }
    std::process::abort();
}

/// Writes batches in another process, flushes after number `flushed`, crashes after `batches`;
/// returns the number of the batch that the store fell back to.
fn crash(flushed: u32, batches: u32) -> u32 {
    let dir = TempDir::new().unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "storage::state::tests::process_that_crashes", "--nocapture"])
        .env("RAFT_KV_TEST_CRASH", format!("{},{flushed},{batches}", dir.path().display()))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success(), "it was to crash");
    let state = State::open(dir.path(), small()).unwrap();
    let applied = get(&state, Table::Meta, "applied").map_or(0, |text| text.parse().unwrap());
    let expect: Vec<String> = (1..=applied).map(|number| format!("{number:06}")).collect();
    for table in [Table::Live, Table::Past, Table::Log] {
        assert_eq!(
            state.view(|read| keys(read, table, "", None)),
            expect,
            "{table:?} is not at batch {applied}"
        );
    }
    applied
}

#[test]
fn a_crash_falls_back_to_the_last_flush() {
    assert_eq!(crash(0, 3), 0);
    assert_eq!(crash(2, 3), 2);
    assert_eq!(crash(3, 3), 3);
}

#[test]
fn a_crash_leaves_a_prefix_of_the_batches_in_all_tables() {
    // Far more than the write buffers hold, so RocksDB flushes by itself.
    let applied = crash(10, 1500);
    assert!((10..=1500).contains(&applied));
    assert!(applied > 10, "nothing was flushed in the background");
}

#[test]
fn a_clean_close_keeps_everything() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), small()).unwrap();
    write(&state, vec![put(Table::Live, "a", "1")]);
    drop(state);
    assert_eq!(get(&State::open(dir.path(), small()).unwrap(), Table::Live, "a"), Some("1".into()));
}

#[test]
fn a_directory_in_use_is_named_with_its_lock() {
    let dir = TempDir::new().unwrap();
    let _state = State::open(dir.path(), small()).unwrap();
    let failure = State::open(dir.path(), small()).err().expect("it is in use");
    assert!(failure.file.ends_with("LOCK"), "{failure}");
    assert!(failure.why.contains("in use"), "{failure}");
    assert!(failure.next.contains("stop the other process"), "{failure}");
}

#[test]
fn directories_are_their_owners_alone() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data/state");
    let _state = State::open(&data, small()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    assert_eq!(mode(&dir.path().join("data")), 0o700);
    assert_eq!(mode(&generation_folder(&data, 1)), 0o700);
}

/// Fills a store, damages its folder, and expects what opening or reading then says.
fn check_damage(damage: impl FnOnce(&Path), expect: &str) {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), small()).unwrap();
    for number in 0..100 {
        write(&state, vec![put(Table::Live, &format!("{number:06}"), &number.to_string().repeat(100))]);
    }
    drop(state);
    damage(&generation_folder(dir.path(), 1));
    let read = State::open(dir.path(), small()).and_then(|state| {
        let first = state.view(|read| read.scan(Table::Live, b"", None).collect::<Result<Vec<_>, _>>());
        if first.is_err() {
            // The first failure is final.
            assert_eq!(
                state.write(Batch { writes: vec![put(Table::Live, "a", "1")] }),
                first.clone().map(drop)
            );
            assert_eq!(state.flush(), first.clone().map(drop));
            assert_eq!(state.view(|read| read.get(Table::Meta, b"a")), first.clone().map(|_| None));
        }
        first
    });
    let failure = read.expect_err("damage must be noticed");
    assert!(failure.to_string().contains(expect), "{failure}");
    assert!(failure.file.contains("db-00000001"), "{failure}");
}

fn files(folder: &Path, like: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.file_name().unwrap().to_str().unwrap().contains(like)).collect()
}

fn tables(state: &State) -> Vec<PathBuf> {
    let (folder, tables) = state.tables().unwrap();
    tables.into_iter().map(|table| folder.join(table)).collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// Changes a value where it lies on disk, and reads it.
#[cfg(feature = "sim")]
fn read_a_changed_value() -> Result<Option<Bytes>, StorageFailed> {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), small()).unwrap();
    write(&state, vec![put(Table::Live, "a", "a value that nothing compresses")]);
    state.flush().unwrap();
    drop(state);
    for path in files(&generation_folder(dir.path(), 1), ".sst") {
        let bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(7).position(|part| part == b"a value") {
            flip(&path, at);
        }
    }
    let state = State::open(dir.path(), small()).unwrap();
    let read = || state.view(|read| read.get(Table::Live, b"a"));
    let first = read();
    assert_eq!(first.is_err(), state.failure().is_some_and(|failure| failure.is_damage()));
    // Also where the next look would not meet the damage itself.
    first.and_then(|_| read())
}

#[cfg(feature = "sim")]
#[test]
fn a_changed_block_is_never_served() {
    use crate::planted::{self, Bug};
    assert!(read_a_changed_value().is_err());
    let served = planted::with(Some(Bug::SkipBlockChecksums), read_a_changed_value);
    assert_ne!(served.unwrap().unwrap(), "a value that nothing compresses");
}

#[cfg(feature = "sim")]
#[test]
fn nothing_is_read_from_a_condemned_state() {
    use crate::planted::{self, Bug};
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), small()).unwrap();
    write(&state, vec![put(Table::Live, "a", "1")]);
    state.condemn(StorageFailed::damaged("a table", "it has rotted"));
    let read = || state.view(|read| read.get(Table::Live, b"a"));
    assert!(read().unwrap_err().is_damage());
    assert!(state.view(|read| read.scan(Table::Live, b"", None).next().unwrap()).is_err());
    assert!(state.write(Batch { writes: vec![put(Table::Live, "b", "1")] }).is_err());
    assert!(planted::with(Some(Bug::ServeDamaged), read).is_ok(), "with the bug it is");
}

#[test]
fn damage_is_noticed() {
    let untrusted = "can't be trusted";
    check_damage(|folder| files(folder, ".sst").iter().for_each(|path| flip(path, 20)), untrusted);
    check_damage(
        |folder| files(folder, ".sst").iter().for_each(|path| fs::remove_file(path).unwrap()),
        untrusted,
    );
    check_damage(
        |folder| files(folder, ".sst").iter().for_each(|path| fs::write(path, b"").unwrap()),
        untrusted,
    );
    check_damage(|folder| fs::remove_file(folder.join("CURRENT")).unwrap(), untrusted);
    check_damage(|folder| files(folder, "MANIFEST").iter().for_each(|path| flip(path, 20)), untrusted);
    check_damage(
        |folder| fs::remove_dir_all(folder).and_then(|()| fs::create_dir(folder)).unwrap(),
        untrusted,
    );
}

#[test]
fn a_newer_versions_directory_is_refused() {
    let newer = |folder: &Path| {
        let mut options = rocksdb::Options::default();
        options.create_missing_column_families(true);
        let names = Table::ALL.map(Table::name).into_iter().chain(["frobs"]);
        drop(DB::open_cf(&options, folder, names).unwrap());
    };
    check_damage(newer, "written by a newer version");
}

#[test]
fn a_failing_disk_is_final() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), small()).unwrap();
    write(&state, vec![put(Table::Live, "a", "1")]);
    // No new file can be made any more.
    fs::rename(generation_folder(dir.path(), 1), dir.path().join("elsewhere")).unwrap();
    let failure = state.flush().expect_err("the folder is gone");
    assert!(failure.why.contains("flushing"), "{failure}");
    fs::rename(dir.path().join("elsewhere"), generation_folder(dir.path(), 1)).unwrap();
    assert_eq!(state.flush(), Err(failure.clone()));
    assert_eq!(state.write(Batch { writes: vec![put(Table::Live, "a", "1")] }), Err(failure.clone()));
    assert_eq!(state.view(|read| read.get(Table::Live, b"a")), Err(failure));
}

#[test]
fn a_failure_in_the_background_surfaces() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), small()).unwrap();
    fs::rename(generation_folder(dir.path(), 1), dir.path().join("elsewhere")).unwrap();
    let filler = "x".repeat(64 * 1024);
    let writes = |number: u32| Batch { writes: vec![put(Table::Live, &number.to_string(), &filler)] };
    // RocksDB starts flushing by itself after a few; the failure shows at a later write.
    let failed = (0..10_000).find_map(|number| state.write(writes(number)).err());
    let failure = failed.expect("writes must stop when nothing can be flushed");
    assert_eq!(state.view(|read| read.get(Table::Live, b"0")), Err(failure));
}

/// Nobody reads the key that has rotted: compaction does, and may carry it no further.
#[test]
fn compaction_that_meets_rot_is_final_and_the_place_is_found() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), small()).unwrap();
    for key in 0..50_u64 {
        // Nothing to compress: most of the table is values.
        let word =
            |at: u64| (at + key).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(at | 1);
        let filler: String = (0..500).map(|at| format!("{:016x}", word(at))).collect();
        write(&state, vec![put(Table::Live, &format!("{key}"), &filler)]);
    }
    state.flush().unwrap();
    let large = |path: &PathBuf| fs::metadata(path).unwrap().len() > 100_000;
    // One table alone is not compacted before it is asked for.
    let rotten = tables(&state).into_iter().find(large).expect("the values lie in some table");
    // What was just written may lie in the cache, and is carried on from there as it was.
    drop(state);
    flip(&rotten, 20_000);
    let state = State::open(dir.path(), small()).unwrap();
    let failure = state.rewrite(Table::Live).expect_err("the block can't be read");
    assert_eq!(state.failure(), Some(failure.clone()));
    assert_eq!(state.view(|read| read.get(Table::Live, b"1")), Err(failure.clone()), "nothing is served");
    assert_eq!(state.write(Batch { writes: vec![put(Table::Live, "a", "1")] }), Err(failure));
    let found = check_files(&tables(&state), &mut |_| true).unwrap();
    let name = rotten.file_name().unwrap().to_str().unwrap();
    assert!(format!("{found:?}").contains(name), "{name}: {found:?}");
}

#[test]
fn statistics_follow_the_data() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path(), small()).unwrap();
    for number in 0..1000 {
        write(&state, vec![put(Table::Live, &format!("{number:06}"), "x")]);
    }
    assert_eq!(state.stats().live_keys, 1000);
    assert!(state.stats().write_buffers > 0);
    state.flush().unwrap();
    assert!(state.stats().disk > 0 && state.stats().live_data > 0, "{:?}", state.stats());
}

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(u8, u8, Option<u8>)>),
    Flush,
    Reopen,
    Scan(u8, u8, Option<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let writes = prop::collection::vec((0u8..9, 0u8..12, prop::option::of(any::<u8>())), 0..6);
    let step = prop_oneof![
        6 => writes.prop_map(Step::Write),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        4 => (0u8..9, 0u8..13, prop::option::of(0u8..13)).prop_map(|(table, from, to)| Step::Scan(table, from, to)),
    ];
    prop::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The store equals an ordered map, whatever is flushed or reopened in between.
    #[test]
    fn equals_an_ordered_map(steps in steps()) {
        let dir = TempDir::new().unwrap();
        let mut state = State::open(dir.path(), small()).unwrap();
        let mut model: BTreeMap<(u8, u8), u8> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Write(writes) => {
                    let batch = writes.iter().map(|(table, key, value)| {
                        (Table::ALL[*table as usize], Bytes::from(vec![*key]), value.map(|value| Bytes::from(vec![value])))
                    });
                    write(&state, batch.collect());
                    for (table, key, value) in writes {
                        match value {
                            Some(value) => model.insert((table, key), value),
                            None => model.remove(&(table, key)),
                        };
                    }
                }
                Step::Flush => state.flush().unwrap(),
                Step::Reopen => {
                    drop(state);
                    state = State::open(dir.path(), small()).unwrap();
                }
                Step::Scan(table, from, to) => {
                    let to = to.map(|to| vec![to]);
                    let found: Vec<(u8, u8)> = state.view(|read| {
                        let pairs = read.scan(Table::ALL[table as usize], &[from], to.as_deref());
                        pairs.map(|pair| pair.unwrap()).map(|(key, value)| (key[0], value[0])).collect()
                    });
                    let end = to.map_or(u8::MAX, |to| to[0]);
                    let expect: Vec<(u8, u8)> = model.iter()
                        .filter(|((of, key), _)| *of == table && *key >= from && *key < end)
                        .map(|((_, key), value)| (*key, *value)).collect();
                    prop_assert_eq!(found, expect);
                }
            }
        }
        for ((table, key), value) in &model {
            let found = state.view(|read| read.get(Table::ALL[*table as usize], &[*key])).unwrap();
            prop_assert_eq!(found, Some(Bytes::from(vec![*value])));
        }
    }
}
