//! Snapshots: what arrives is what was sent, or it is refused.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

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

/// What one transfer came to: both sides' answers, the bytes that were sent, and those that were spared.
struct Outcome {
    sent: Result<(), BulkError>,
    received: Result<(), BulkError>,
    bytes: u64,
    spared: u64,
}

/// Sends `from` and receives it into `into`, within `max` bytes.
async fn transfer(from: &Path, into: &Path, max: u64, rate: u64) -> Outcome {
    let ours = Authority::new(CLUSTER);
    let (one, two) = (ours.manager(1), ours.manager(2));
    let (to, transfers, pace) = (addr(&two), Arc::new(Transfers::default()), Pace::new(rate));
    let (out, arriving) = (transfers.send(NodeId(2)), transfers.receive(NodeId(1)));
    let receive = async {
        let Some(Accepted::Bulk(bulk)) = two.accept().await else { panic!("no snapshot") };
        let incoming = bulk.incoming().await.unwrap();
        assert_eq!((incoming.from, &incoming.header[..]), (NodeId(1), &b"index 7"[..]));
        incoming.receive_into(into, max, &arriving).await
    };
    let send = one.send_snapshot(NodeId(2), &to, "index 7".into(), from, (&pace, &out));
    let (sent, received) = tokio::join!(send, receive);
    let (bytes, spared, _) = out.so_far();
    if sent.is_ok() {
        assert_eq!((arriving.so_far().0, arriving.so_far().1), (bytes, spared), "both sides count the same");
    }
    Outcome { sent, received, bytes, spared }
}

#[test]
fn a_folder_arrives_as_it_was() {
    run(async {
        let (from, into) = (snapshot(), tempfile::tempdir().unwrap());
        let into = into.path().join("fresh");
        let first = transfer(from.path(), &into, 10_000_000, 0).await;
        first.received.unwrap();
        first.sent.unwrap();
        assert_eq!(files(from.path()), files(&into));
        let all: u64 = files(from.path()).iter().map(|(_, content)| content.len() as u64).sum();
        assert_eq!((first.bytes, first.spared), (all, 0));
        // Whole, but the receiver ended before it was installed: nothing comes twice.
        let again = transfer(from.path(), &into, 10_000_000, 0).await;
        again.received.unwrap();
        again.sent.unwrap();
        assert_eq!(files(from.path()), files(&into));
        assert_eq!((again.bytes, again.spared), (0, all));
    });
}

#[test]
fn a_rate_is_kept() {
    run(async {
        let (from, into) = (snapshot(), tempfile::tempdir().unwrap());
        let since = std::time::Instant::now();
        transfer(from.path(), into.path(), 10_000_000, 3_000_000).await.sent.unwrap();
        assert!(since.elapsed() > Duration::from_millis(300), "{:?}", since.elapsed());
    });
}

#[test]
fn a_rate_is_for_all_receivers_together() {
    run(async {
        let pace = Pace::new(1_000_000);
        let since = std::time::Instant::now();
        let pay = || async {
            for _ in 0..10 {
                pace.pay(10_000).await;
            }
        };
        tokio::join!(pay(), pay(), pay());
        assert!(since.elapsed() >= Duration::from_millis(290), "{:?}", since.elapsed());
    });
}

/// What a receiver may have in its folder before a try.
#[derive(Debug, Clone)]
enum Left {
    Nothing,
    /// The file's beginning, in percent.
    Part(usize),
    /// The same with a bit that is another, at so many percent of it.
    Bent(usize, usize),
    /// More than the file has.
    Longer,
    /// What a copy of another member has under that name.
    Other(Vec<u8>),
}

fn left() -> impl Strategy<Value = Left> {
    prop_oneof![
        Just(Left::Nothing),
        (0..=100usize).prop_map(Left::Part),
        (1..=100usize, 0..100usize).prop_map(|(part, at)| Left::Bent(part, at)),
        Just(Left::Longer),
        prop::collection::vec(any::<u8>(), 1..2000).prop_map(Left::Other),
    ]
}

/// Puts what is left of `content` at `path`; says how much of it is right.
fn leave(left: &Left, content: &[u8], path: &Path) -> usize {
    let part = |percent: usize| content[..content.len() * percent / 100].to_vec();
    let (bytes, right) = match left {
        Left::Nothing => return 0,
        Left::Part(percent) => (part(*percent), true),
        Left::Bent(percent, at) => {
            let mut bytes = part(*percent);
            let place = bytes.len() * at / 100;
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= 16;
            }
            (bytes, false)
        }
        Left::Longer => ([content, b"more"].concat(), false),
        Left::Other(bytes) => (bytes.clone(), content.starts_with(bytes)),
    };
    fs::write(path, &bytes).unwrap();
    if right { bytes.len() } else { 0 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// The property: whatever is left from before, what is called whole is the sender's, byte for
    /// byte, and what was right is not sent again.
    #[test]
    fn what_is_whole_is_the_senders_whatever_was_left(
        left in prop::collection::vec((0..40_000usize, left()), 1..5),
        extra in any::<bool>(),
    ) {
        run(async {
            let (from, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (mut all, mut right) = (0, 0);
            for (number, (len, left)) in left.iter().enumerate() {
                let name = format!("{number}.sst");
                let content: Vec<u8> = (0..*len).map(|at| (at * 7 + at / 256 + number) as u8).collect();
                fs::write(from.path().join(&name), &content).unwrap();
                all += content.len();
                right += leave(left, &content, &into.path().join(&name));
            }
            if extra {
                fs::write(into.path().join("77.sst"), "of another copy").unwrap();
            }
            let outcome = transfer(from.path(), into.path(), 10_000_000, 0).await;
            outcome.sent.unwrap();
            outcome.received.unwrap();
            assert_eq!(files(from.path()), files(into.path()));
            assert_eq!((outcome.bytes, outcome.spared), ((all - right) as u64, right as u64));
        });
    }
}

/// A transfer in tries that break after so many bytes each; what arrived is never sent again.
#[test]
fn a_transfer_that_breaks_goes_on_where_it_was() {
    run(async {
        let (from, into) = (snapshot(), tempfile::tempdir().unwrap());
        let all: u64 = files(from.path()).iter().map(|(_, content)| content.len() as u64).sum();
        let ours = Authority::new(CLUSTER);
        let (mut tries, mut passed) = (0, 0);
        loop {
            tries += 1;
            let (one, two) = (ours.manager(1), ours.manager(2));
            let (to, transfers, pace) = (addr(&two), Arc::new(Transfers::default()), Pace::new(2_000_000));
            let (out, arriving) = (transfers.send(NodeId(2)), transfers.receive(NodeId(1)));
            let receive = async {
                let Some(Accepted::Bulk(bulk)) = two.accept().await else { panic!("no snapshot") };
                bulk.incoming().await.unwrap().receive_into(into.path(), all, &arriving).await
            };
            let broken = async {
                while arriving.so_far().0 < 200_000 {
                    tokio::task::yield_now().await;
                }
            };
            let send = one.send_snapshot(NodeId(2), &to, Bytes::new(), from.path(), (&pace, &out));
            let both = async { tokio::join!(send, receive) };
            let ended = tokio::select! {
                biased;
                (sent, received) = both => { sent.unwrap(); received.unwrap(); true }
                () = broken => false,
            };
            passed += arriving.so_far().0;
            if ended {
                break;
            }
        }
        assert_eq!(files(from.path()), files(into.path()));
        // A chunk that is not on disk when it breaks comes again.
        let chunks = tries * limits::BULK_CHUNK_BYTES as u64;
        assert!(tries > 1 && passed >= all && passed < all + chunks, "{tries} tries, {passed} of {all}");
    });
}

#[test]
fn what_does_not_fit_is_refused_and_both_sides_know() {
    run(async {
        let (from, into) = (snapshot(), tempfile::tempdir().unwrap());
        let Outcome { sent, received, .. } = transfer(from.path(), into.path(), 1000, 0).await;
        assert!(received.unwrap_err().to_string().contains("more than fit"));
        assert!(sent.unwrap_err().to_string().contains("more than fit"));
        assert!(files(into.path()).is_empty());
        // What can't be written.
        fs::create_dir(into.path().join("CURRENT")).unwrap();
        let Outcome { sent, received, .. } = transfer(from.path(), into.path(), 10_000_000, 0).await;
        assert!(matches!(received, Err(BulkError::Storage(_))));
        assert!(sent.unwrap_err().to_string().contains("the receiver's disk"));
    });
}

#[test]
fn a_folder_that_holds_more_than_files_is_not_sent() {
    run(async {
        let from = tempfile::tempdir().unwrap();
        fs::create_dir(from.path().join("folder")).unwrap();
        let ours = Authority::new(CLUSTER);
        let one = ours.manager(1);
        let (transfers, pace) = (Arc::new(Transfers::default()), Pace::new(0));
        let out = transfers.send(NodeId(2));
        let sent = one.send_snapshot(NodeId(2), "127.0.0.1:1", Bytes::new(), from.path(), (&pace, &out));
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
    let arriving = Arc::new(Transfers::default()).receive(NodeId(1));
    let receive = async {
        let Some(Accepted::Bulk(bulk)) = two.accept().await else { panic!("no snapshot") };
        bulk.incoming().await?.receive_into(into, 1000, &arriving).await
    };
    tokio::join!(send, receive).1
}

/// A transfer of one file; `bend` may change its frames.
async fn bent(name: &str, bend: impl FnOnce(&mut Vec<Bytes>), into: &Path) -> Result<(), BulkError> {
    let mut frames = super::super::bulk::frames_of(name, 0, b"hundred bytes, nearly");
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
        check(bent("file", |frames| drop(frames.drain(2..)), &into("shorter")).await, "connection broke");
        check(bent("file", |frames| frames[2] = "abcd".into(), &into("empty")).await, "length");
        check(bent("file", |frames| other_digest(frames), &into("digest")).await, "a file's checksum");
        let beyond =
            |frames: &mut Vec<Bytes>| *frames = super::super::bulk::frames_of("file", 5, b"some bytes");
        check(bent("file", beyond, &into("beyond")).await, "goes on where nothing was offered");
        for name in ["../escape", "/etc/passwd", ".hidden", "", "a/b", "a\0b", "..", &"x".repeat(300)] {
            check(bent(name, |_| {}, &into("name")).await, "not plain");
        }
        check(bent("file", |frames| frames[0] = "junk".into(), &into("junk")).await, "can't be read");
        assert!(!dir.path().join("escape").exists());
    });
}

fn other_digest(frames: &mut [Bytes]) {
    let mut end = frames[3].to_vec();
    *end.last_mut().unwrap() ^= 4;
    frames[3] = end.into();
}

#[cfg(feature = "sim")]
#[test]
fn a_missing_check_is_noticed() {
    use crate::planted::{Bug, with};
    let dir = tempfile::tempdir().unwrap();
    // The second check finds what the first one let pass.
    let passed = with(Some(Bug::SkipChunkChecksum), || run(flipped(&dir.path().join("flip"))));
    assert!(passed.unwrap_err().to_string().contains("a file's checksum"));
    let into = dir.path().join("digest");
    with(Some(Bug::InstallUnverified), || run(bent("file", |frames| other_digest(frames), &into))).unwrap();
    // What is there from another copy is taken for the sender's; the whole is refused, for ever.
    let (from, into) = (snapshot(), tempfile::tempdir().unwrap());
    fs::write(into.path().join("CURRENT"), "MANIFEST-00").unwrap();
    let outcome =
        with(Some(Bug::ResumeWithoutCheck), || run(transfer(from.path(), into.path(), 10_000_000, 0)));
    assert!(outcome.received.unwrap_err().to_string().contains("a file's checksum"));
}
