//! What every implementation of [`Files`] must do, as one suite that runs on all of them.

use std::io::ErrorKind;

use super::{File, Files};

/// Runs the suite; `make` gives a new empty folder each time. Panics where a rule is broken.
pub fn files_conformance<F: Files>(mut make: impl FnMut() -> F) {
    created_files_are_zeros(&make());
    reads_and_writes_are_positioned(&make());
    names_follow_renames_and_removes(&make());
    wrong_names_are_errors(&make());
    handles_outlive_their_names(&make());
}

fn names<F: Files>(files: &F) -> Vec<String> {
    let mut names = files.list().expect("lists");
    names.sort();
    names
}

fn content<T: File>(file: &T) -> Vec<u8> {
    let mut bytes = vec![7; file.len().expect("has a length") as usize];
    file.read_at(0, &mut bytes).expect("reads");
    bytes
}

fn created_files_are_zeros<F: Files>(files: &F) {
    assert!(names(files).is_empty());
    for (name, len) in [("none", 0), ("one", 1), ("some", 70_000)] {
        let file = files.create(name, len).expect("creates");
        assert_eq!(content(&file), vec![0; len as usize]);
        file.sync().expect("syncs");
    }
    files.sync_folder().expect("syncs");
    assert_eq!(names(files), ["none", "one", "some"]);
    assert!(!files.describe().is_empty());
}

fn reads_and_writes_are_positioned<F: Files>(files: &F) {
    let file = files.create("a", 2000).expect("creates");
    file.write_at(500, &[1; 600]).expect("writes");
    file.write_at(1000, &[2; 10]).expect("writes");
    file.write_at(1999, &[3]).expect("writes");
    file.write_at(0, &[]).expect("writes nothing");
    let mut expected = vec![0; 2000];
    expected[500..1100].fill(1);
    expected[1000..1010].fill(2);
    expected[1999] = 3;
    assert_eq!(content(&file), expected);
    let second = files.open("a").expect("opens a second time");
    assert_eq!(content(&second), expected, "writes are seen before any sync, by every handle");
    second.write_at(3, &[9]).expect("writes");
    second.sync().expect("syncs");
    expected[3] = 9;
    assert_eq!(content(&file), expected);
    let mut middle = [0; 4];
    file.read_at(998, &mut middle).expect("reads");
    assert_eq!(middle, [1, 1, 2, 2]);
    let mut beyond = [0; 10];
    let error = file.read_at(1995, &mut beyond).expect_err("never less than asked for");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    file.write_at(1998, &[4; 4]).expect("a write past the end grows the file");
    assert_eq!(file.len().expect("has a length"), 2002);
}

fn names_follow_renames_and_removes<F: Files>(files: &F) {
    files.create("a", 10).expect("creates").write_at(0, b"a").expect("writes");
    files.create("b", 20).expect("creates").write_at(0, b"b").expect("writes");
    files.rename("a", "c").expect("renames");
    assert_eq!(names(files), ["b", "c"]);
    files.rename("c", "b").expect("replaces");
    assert_eq!(names(files), ["b"]);
    assert_eq!(content(&files.open("b").expect("opens"))[0], b'a');
    files.remove("b").expect("removes");
    files.sync_folder().expect("syncs");
    assert!(names(files).is_empty());
}

fn wrong_names_are_errors<F: Files>(files: &F) {
    let not_found = |kind: ErrorKind| assert_eq!(kind, ErrorKind::NotFound);
    not_found(files.open("a").err().expect("nothing to open").kind());
    not_found(files.rename("a", "b").expect_err("nothing to rename").kind());
    not_found(files.remove("a").expect_err("nothing to remove").kind());
    files.create("a", 10).expect("creates");
    assert_eq!(files.create("a", 10).err().expect("exists").kind(), ErrorKind::AlreadyExists);
}

fn handles_outlive_their_names<F: Files>(files: &F) {
    let file = files.create("a", 10).expect("creates");
    files.rename("a", "b").expect("renames");
    file.write_at(0, b"x").expect("writes");
    assert_eq!(content(&files.open("b").expect("opens"))[0], b'x');
    files.remove("b").expect("removes");
    file.write_at(1, b"y").expect("writes");
    assert_eq!(content(&file)[..2], *b"xy");
}
