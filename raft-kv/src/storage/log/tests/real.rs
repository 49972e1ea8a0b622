//! The same log in a real folder.

use bytes::Bytes;

use super::super::*;
use super::model::{IDENTITY, boundary, view};
use crate::raft::LogView;
use crate::storage::files::FolderFiles;
use crate::types::*;

#[test]
fn a_log_in_a_real_folder_comes_back() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let options = Options { segment_bytes: 64 * 1024, spare_segments: 2, cache_bytes: 10_000 };
    let files = || FolderFiles::open(scratch.path().join("log")).expect("opens");
    let hard = HardState { term: 1, vote: NodeId(0), commit: 0 };
    let (mut log, mut writer) = Log::create(files(), options, IDENTITY, boundary(0, 0), hard).expect("makes");
    let mut number = 0;
    for index in 1..=400_u64 {
        let entry = Entry {
            index,
            term: 1,
            kind: EntryKind::Normal,
            data: Bytes::from(vec![index as u8; 500]),
            context: Bytes::new(),
        };
        number += 1;
        writer.write(log.stage(number, Some(HardState { commit: index, ..hard }), &[entry])).expect("writes");
        if index % 100 == 0 {
            number += 1;
            writer.write(log.stage_cut(number, &boundary(index - 50, 1))).expect("cuts");
        }
    }
    let before = view(&log);
    drop((log, writer));
    match Log::open(files(), options, IDENTITY, Some(boundary(350, 1))).expect("opens") {
        Opened::Ready { log, .. } => assert_eq!(view(&log), before),
        Opened::Behind { .. } => panic!("nothing was lost"),
    }
    assert_eq!(before.boundary.index, 350);
}

#[test]
fn what_is_forgotten_leaves_the_disk() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folder = scratch.path().join("log");
    let options = Options { segment_bytes: 64 * 1024, spare_segments: 2, cache_bytes: 10_000 };
    let files = || FolderFiles::open(folder.clone()).expect("opens");
    let hard = HardState { term: 1, vote: NodeId(0), commit: 0 };
    let (mut log, mut writer) = Log::create(files(), options, IDENTITY, boundary(0, 0), hard).expect("makes");
    let entry = |index, text: &'static str| Entry {
        index,
        term: 1,
        kind: EntryKind::Normal,
        data: Bytes::from_static(text.as_bytes()),
        context: Bytes::new(),
    };
    let lies = |text: &str| {
        let mut all = std::fs::read_dir(&folder).expect("lists").map(|file| file.expect("lists").path());
        all.any(|file| {
            let bytes = std::fs::read(file).expect("reads");
            bytes.windows(text.len()).any(|part| part == text.as_bytes())
        })
    };
    let commit = |commit| Some(HardState { commit, ..hard });
    writer.write(log.stage(1, commit(1), &[entry(1, "sealed with an old key")])).expect("writes");
    // Of a cut alone the bytes stay.
    writer.write(log.stage(2, commit(2), &[entry(2, "so is this one")])).expect("writes");
    writer.write(log.stage_cut(3, &boundary(1, 1))).expect("cuts");
    assert!(lies("sealed with an old key"));
    // What comes meanwhile keeps its file, until it is cut too.
    writer.write(log.stage(4, commit(3), &[entry(3, "this one is not")])).expect("writes");
    writer.write(log.stage_forget(5, &boundary(2, 1))).expect("cuts");
    writer.write(log.stage(6, commit(4), &[entry(4, "nor is the last")])).expect("writes");
    assert!(lies("this one is not") && lies("sealed with an old key"));
    writer.write(log.stage_forget(7, &boundary(3, 1))).expect("cuts");
    assert!(!lies("sealed with an old key") && !lies("so is this one") && lies("nor is the last"));
    let before = view(&log);
    drop((log, writer));
    match Log::open(files(), options, IDENTITY, Some(boundary(3, 1))).expect("opens") {
        Opened::Ready { log, .. } => assert_eq!(view(&log), before),
        Opened::Behind { .. } => panic!("nothing was lost"),
    }
}
