//! Snapshots: what arrives is what was sent, or it is refused.

use std::fs;
use std::path::Path;

use super::*;

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    all.sort();
    all
}

fn snapshot() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, len) in [("000001.sst", 700_000), ("CURRENT", 16), ("empty", 0), ("exact", 256 * 1024)] {
        let content: Vec<u8> = (0..len).map(|n: u32| (n % 251) as u8).collect();
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

/// Sends `from` and receives it into `into`, within `max` bytes.
async fn transfer(
    from: &Path,
    into: &Path,
    max: u64,
    rate: Option<u64>,
) -> (Result<(), BulkError>, Result<(), BulkError>) {
    let ours = Authority::new(CLUSTER);
    let (one, two) = (ours.manager(1), ours.manager(2));
    let to = addr(&two);
    let receive = async {
        let Some(Accepted::Bulk(bulk)) = two.accept().await else { panic!("no snapshot") };
        let incoming = bulk.incoming().await.unwrap();
        assert_eq!((incoming.from, &incoming.header[..]), (NodeId(1), &b"index 7"[..]));
        incoming.receive_into(into, max).await
    };
    tokio::join!(one.send_snapshot(NodeId(2), &to, "index 7".into(), from, rate), receive)
}

#[test]
fn a_folder_arrives_as_it_was() {
    run(async {
        let (from, into) = (snapshot(), tempfile::tempdir().unwrap());
        let into = into.path().join("fresh");
        let (sent, received) = transfer(from.path(), &into, 10_000_000, None).await;
        received.unwrap();
        sent.unwrap();
        assert_eq!(files(from.path()), files(&into));
    });
}

#[test]
fn a_rate_is_kept() {
    run(async {
        let (from, into) = (snapshot(), tempfile::tempdir().unwrap());
        let since = std::time::Instant::now();
        let (sent, _) = transfer(from.path(), into.path(), 10_000_000, Some(3_000_000)).await;
        sent.unwrap();
        assert!(since.elapsed() > Duration::from_millis(300), "{:?}", since.elapsed());
    });
}

#[test]
fn what_does_not_fit_is_refused_and_both_sides_know() {
    run(async {
        let (from, into) = (snapshot(), tempfile::tempdir().unwrap());
        let (sent, received) = transfer(from.path(), into.path(), 1000, None).await;
        assert!(received.unwrap_err().to_string().contains("more than fit"));
        assert!(sent.unwrap_err().to_string().contains("more than fit"));
        assert!(files(into.path()).is_empty());
        // A file that is there already is not overwritten.
        fs::write(into.path().join("CURRENT"), "mine").unwrap();
        let (sent, received) = transfer(from.path(), into.path(), 10_000_000, None).await;
        assert!(matches!(received, Err(BulkError::Storage(_))));
        assert!(sent.unwrap_err().to_string().contains("the receiver's disk"));
        assert_eq!(fs::read(into.path().join("CURRENT")).unwrap(), b"mine");
    });
}

#[test]
fn a_folder_that_holds_more_than_files_is_not_sent() {
    run(async {
        let from = tempfile::tempdir().unwrap();
        fs::create_dir(from.path().join("folder")).unwrap();
        let ours = Authority::new(CLUSTER);
        let one = ours.manager(1);
        let sent = one.send_snapshot(NodeId(2), "127.0.0.1:1", Bytes::new(), from.path(), None);
        assert!(matches!(sent.await, Err(BulkError::Storage(_))));
    });
}

/// What a receiver makes of `frames` that a member sends it by hand.
async fn by_hand(frames: Vec<Bytes>, into: &Path) -> Result<(), BulkError> {
    let ours = Authority::new(CLUSTER);
    let (one, two) = (ours.manager(1), ours.manager(2));
    let to = addr(&two);
    let send = async {
        let held = one.dial(Purpose::Bulk, &to, Some(NodeId(2))).await.unwrap();
        let (mut send, mut recv) = held.connection.open_bi().await.unwrap();
        let _ = super::super::frame::write_frames(&mut send, frames).await;
        let _ = send.finish();
        let _ = recv.read_to_end(10_000).await;
    };
    let receive = async {
        let Some(Accepted::Bulk(bulk)) = two.accept().await else { panic!("no snapshot") };
        bulk.incoming().await?.receive_into(into, 1000).await
    };
    tokio::join!(send, receive).1
}

/// A transfer of one file; `bend` may change its frames.
async fn bent(name: &str, bend: impl FnOnce(&mut Vec<Bytes>), into: &Path) -> Result<(), BulkError> {
    let mut frames = super::super::bulk::frames_of(name, b"hundred bytes, nearly");
    bend(&mut frames);
    by_hand(frames, into).await
}

async fn flipped(into: &Path) -> Result<(), BulkError> {
    let flip = |frames: &mut Vec<Bytes>| {
        let mut chunk = frames[2].to_vec();
        *chunk.last_mut().unwrap() ^= 4;
        frames[2] = chunk.into();
    };
    bent("file", flip, into).await
}

#[test]
fn what_is_wrong_on_the_way_is_detected() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let into = |name: &str| dir.path().join(name);
        bent("file", |_| {}, &into("good")).await.unwrap();
        let check = |result: Result<(), BulkError>, expect: &str| {
            let text = result.unwrap_err().to_string();
            assert!(text.contains(expect), "{text:?} does not say {expect:?}");
        };
        check(flipped(&into("flip")).await, "checksum");
        check(bent("file", |frames| drop(frames.pop()), &into("short")).await, "connection broke");
        check(bent("file", |frames| frames[2] = "abcd".into(), &into("empty")).await, "length");
        for name in ["../escape", "/etc/passwd", ".hidden", "", "a/b", "a\0b", "..", &"x".repeat(300)] {
            check(bent(name, |_| {}, &into("name")).await, "not plain");
        }
        check(bent("file", |frames| frames[0] = "junk".into(), &into("junk")).await, "can't be read");
        assert!(!dir.path().join("escape").exists());
    });
}

#[cfg(feature = "sim")]
#[test]
fn skipping_checksums_is_noticed() {
    use crate::planted::{Bug, with};
    let dir = tempfile::tempdir().unwrap();
    let into = dir.path().join("flip");
    with(Some(Bug::SkipChunkChecksum), || run(flipped(&into))).unwrap();
    assert_ne!(fs::read(into.join("file")).unwrap(), b"hundred bytes, nearly");
}
