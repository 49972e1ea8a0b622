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
