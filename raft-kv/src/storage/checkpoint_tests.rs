//! Checkpoints and their exchange for the state, with cuts at each step.

use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::machine::store::{Batch, Store, Table};
use crate::storage::state::generation_folder;
use crate::storage::state::tests::{get, put, small, write};

/// Two members: `ours` holds "old", `theirs` holds "new"; a checkpoint of the latter.
struct Members {
    dir: TempDir,
    ours: State,
    received: PathBuf,
}

fn members() -> Members {
    let dir = TempDir::new().unwrap();
    let ours = State::open(&dir.path().join("ours"), small()).unwrap();
    write(&ours, vec![put(Table::Live, "a", "old"), put(Table::Meta, "applied", "1")]);
    let theirs = State::open(&dir.path().join("theirs"), small()).unwrap();
    write(&theirs, vec![put(Table::Live, "a", "new"), put(Table::Meta, "applied", "9")]);
    let received = dir.path().join("received");
    theirs.checkpoint(&received).unwrap();
    // What follows does not reach the checkpoint.
    write(&theirs, vec![put(Table::Live, "a", "newer"), put(Table::Meta, "applied", "10")]);
    theirs.flush().unwrap();
    Members { dir, ours, received }
}

fn contents(state: &State) -> (Option<String>, Option<String>) {
    (get(state, Table::Live, "a"), get(state, Table::Meta, "applied"))
}

fn expect(value: &str, applied: &str) -> (Option<String>, Option<String>) {
    (Some(value.into()), Some(applied.into()))
}

fn folders(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_can_be_looked_into() {
    let members = members();
    let before = folders(&members.received);
    let applied = look_into(&members.received, |read| read.get(Table::Meta, b"applied")).unwrap();
    assert_eq!(applied.unwrap().unwrap(), "9");
    assert_eq!(before, folders(&members.received));
    let failure = look_into(&members.dir.path().join("none"), |_| ()).unwrap_err();
    assert!(failure.file.ends_with("none"), "{failure}");
}

#[test]
fn a_checkpoint_takes_the_place_of_the_state() {
    let members = members();
    let handle = members.ours.clone();
    members.ours.replace(&members.received).unwrap();
    assert_eq!(contents(&handle), expect("new", "9"));
    assert!(!members.received.exists());
    assert_eq!(folders(&members.dir.path().join("ours")), ["db-00000002"]);
    // Writes and flushes go to the new one, and it is what the next open finds.
    write(&handle, vec![put(Table::Meta, "applied", "11")]);
    handle.flush().unwrap();
    drop((handle, members.ours));
    let reopened = State::open(&members.dir.path().join("ours"), small()).unwrap();
    assert_eq!(contents(&reopened), expect("new", "11"));
}

#[test]
fn an_open_view_finishes_on_the_old_state() {
    let members = members();
    for number in 0..1000 {
        write(&members.ours, vec![put(Table::Past, &format!("{number:04}"), "old")]);
    }
    let old = generation_folder(&members.dir.path().join("ours"), 1);
    members.ours.view(|read| {
        let mut pairs = read.scan(Table::Past, b"", None);
        assert!(pairs.next().is_some());
        members.ours.replace(&members.received).unwrap();
        assert_eq!(contents(&members.ours), expect("new", "9"));
        assert_eq!(read.get(Table::Live, b"a").unwrap().unwrap(), "old");
        assert_eq!(pairs.filter(Result::is_ok).count(), 999);
        assert!(old.exists());
    });
    assert!(!old.exists());
}

#[test]
fn a_damaged_checkpoint_displaces_nothing() {
    let members = members();
    fs::remove_file(members.received.join("CURRENT")).unwrap();
    members.ours.replace(&members.received).unwrap_err();
    assert_eq!(contents(&members.ours), expect("old", "1"));
    members.ours.write(Batch { writes: vec![put(Table::Meta, "applied", "2")] }).unwrap();
    drop(members.ours);
    let reopened = State::open(&members.dir.path().join("ours"), small()).unwrap();
    assert_eq!(contents(&reopened), expect("old", "2"));
}

/// Copies a folder as a crash would leave it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Opens the data directory as it is after the exchange was cut off behind `step`, and again.
fn check_cut(step: impl FnOnce(&Path, &Path), expect: (Option<String>, Option<String>)) {
    let members = members();
    members.ours.flush().unwrap();
    let ours = members.dir.path().join("cut");
    copy(&members.dir.path().join("ours"), &ours);
    step(&ours, &members.received);
    for _ in 0..2 {
        let state = State::open(&ours, small()).unwrap();
        assert_eq!(contents(&state), expect);
        drop(state);
        assert_eq!(folders(&ours).len(), 1, "{:?}", folders(&ours));
    }
}

#[test]
fn a_cut_exchange_leaves_the_old_or_the_new_state() {
    check_cut(|_, _| (), expect("old", "1"));
    // Opened once, not yet moved.
    check_cut(|_, received| drop(Setup::new(small()).open(received, false).unwrap()), expect("old", "1"));
    // Moved; the old one is still there, whole or half removed.
    let moved = |ours: &Path, received: &Path| drop(install(received, ours, 2).unwrap());
    check_cut(moved, expect("new", "9"));
    check_cut(
        |ours, received| {
            moved(ours, received);
            fs::remove_file(generation_folder(ours, 1).join("CURRENT")).unwrap();
        },
        expect("new", "9"),
    );
    // Moved, and opened once before the crash.
    check_cut(
        |ours, received| {
            moved(ours, received);
            drop(State::open(ours, small()).unwrap());
        },
        expect("new", "9"),
    );
}

#[test]
fn a_cut_first_start_begins_anew() {
    let dir = TempDir::new().unwrap();
    let unfinished = dir.path().join("unfinished");
    drop(Setup::new(small()).open(&unfinished, true).unwrap());
    fs::remove_file(unfinished.join("CURRENT")).unwrap();
    let state = State::open(dir.path(), small()).unwrap();
    assert_eq!(get(&state, Table::Live, "a"), None);
    assert_eq!(folders(dir.path()), ["db-00000001"]);
}
