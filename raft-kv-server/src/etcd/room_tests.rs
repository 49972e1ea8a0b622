//! The budget by itself.

use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;

use super::*;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

#[tokio::test]
async fn what_is_held_is_counted_until_the_last_clone_goes() {
    let room = Room::of(MIB);
    assert!(!room.take(4 * KIB).await.is_some(), "small answers are not counted");
    let held = room.take(100 * KIB + 1).await;
    assert_eq!(room.free(), MIB - 101 * KIB);
    let held = room.shrink(held, 10 * KIB);
    assert_eq!(room.free(), MIB - 10 * KIB);
    let clone = held.clone();
    drop(held);
    assert_eq!(room.free(), MIB - 10 * KIB);
    drop(clone);
    assert_eq!(room.free(), MIB);
    assert_eq!(room.free(), MIB);
    let larger = room.take(7 * MIB).await;
    assert_eq!(room.free(), 0, "one larger than all goes alone");
    drop(room.shrink(larger, 1));
    assert_eq!(room.free(), MIB);
}

#[tokio::test]
async fn an_answer_without_room_is_not_held_while_it_waits() {
    let room = Room::of(MIB);
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let ask = || async {
        asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(vec![0; 600 * KIB])
    };
    let (_, first) = room.answer(Vec::len, ask).await.unwrap();
    let refused = room.answer(Vec::len, ask).await.unwrap_err();
    assert_eq!(refused, Error::NotDone(NotDone::Busy));
    let waits = room.answer(Vec::len, ask);
    let (second, ()) = tokio::join!(waits, async {
        tokio::task::yield_now().await;
        drop(first);
    });
    second.unwrap();
    assert_eq!(asked.into_inner(), 4, "the last one was asked again when there was room");
    // One that grows between is not let in on too little.
    let size = std::sync::atomic::AtomicUsize::new(600 * KIB);
    let all = room.take(MIB).await;
    let grows = room.answer(Vec::len, || async {
        Ok(vec![0; size.fetch_add(100 * KIB, std::sync::atomic::Ordering::Relaxed)])
    });
    let (grown, ()) = tokio::join!(grows, async {
        tokio::task::yield_now().await;
        drop(all);
    });
    assert_eq!(grown.unwrap_err(), Error::NotDone(NotDone::Busy));
    assert_eq!(room.free(), MIB);
}

#[tokio::test]
async fn a_body_keeps_its_room_until_it_is_asked_for_more() {
    let room = Room::of(MIB);
    let mut whole = bytes(vec![7; 100 * KIB].into(), Some(room.sending(room.take(100 * KIB).await)));
    assert_eq!(http_body::Body::size_hint(&whole).exact(), Some(100 * KIB as u64));
    let first = whole.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!((first.len(), room.free()), (SLICE, MIB - 100 * KIB));
    assert!(!http_body::Body::is_end_stream(&whole));
    whole.frame().await.unwrap().unwrap();
    drop(whole);
    assert_eq!(room.free(), MIB);

    let parts: Vec<_> =
        [300, 200].map(|kib| room.try_take(kib * KIB).map(|held| (kib, held)).unwrap()).into();
    let mut paced = room.paced(stream::iter(parts));
    let sending = paced.sending();
    assert_eq!(paced.next().await, Some(300));
    assert_eq!(paced.next().await, Some(200));
    assert_eq!(room.free(), MIB - 500 * KIB, "another one looks after them");
    let mut sent = body(http_body_util::Empty::new(), Some(sending));
    assert!(sent.frame().await.is_none());
    assert_eq!(room.free(), MIB, "who asks for more has sent what it was given");
}

#[tokio::test]
async fn a_stream_without_a_body_gives_room_back_at_the_next_question() {
    let room = Room::of(MIB);
    let mut paced = room.paced(stream::iter([(1, room.take(300 * KIB).await), (2, Held::default())]));
    assert_eq!(paced.next().await, Some(1));
    assert_eq!(room.free(), MIB - 300 * KIB);
    assert_eq!(paced.next().await, Some(2));
    assert_eq!(room.free(), MIB);
}

/// Nobody reads it, and somebody else waits.
#[tokio::test]
async fn what_nobody_reads_is_ended_where_others_wait() {
    let room = Room::of(MIB).with_stall(Duration::from_millis(40));
    let mut stalled = bytes(vec![7; MIB].into(), Some(room.sending(room.take(MIB).await)));
    stalled.frame().await.unwrap().unwrap();
    let other = tokio::time::timeout(Duration::from_secs(20), room.take(MIB)).await.expect("it gets room");
    assert!(stalled.frame().await.unwrap().is_err());
    drop((stalled, other));
    assert_eq!(room.free(), MIB);
}
