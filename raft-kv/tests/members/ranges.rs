//! Large ranges as a cluster serves them: streamed and in pages, while others write, from a
//! member in the process and from one elsewhere.

use raft_kv::client::{Handle, RangeChunk, credentials_of};
use raft_kv::error::{Error, Refusal};
use raft_kv::types::{DeleteRequest, KeyRange, KeyValue, RangeRequest, SortOrder, TxnOp, TxnRequest};

use crate::support::{cluster, eventually, put};

const KEYS: usize = 2000;

fn key_of(number: usize) -> String {
    format!("pods/{number:06}")
}

/// Values from nothing to many KiB: small ones lie in the record, large ones apart.
fn value_of(number: usize) -> String {
    number.to_string().repeat(if number.is_multiple_of(100) { 20_000 } else { number % 40 })
}

async fn fill(handle: &Handle) {
    for from in (0..KEYS).step_by(100) {
        let puts = (from..from + 100).map(|number| TxnOp::Put(put(&key_of(number), &value_of(number))));
        handle.txn(TxnRequest { success: puts.collect(), ..TxnRequest::default() }).await.unwrap();
    }
}

fn pods() -> RangeRequest {
    RangeRequest { range: KeyRange::prefix("pods/"), ..RangeRequest::default() }
}

async fn both_doors(name: &str) -> (tempfile::TempDir, raft_kv::client::Node, [Handle; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let node = cluster(dir.path(), &[name]).await.remove(0);
    let (credentials, addr) = credentials_of(&dir.path().join(name)).unwrap();
    let remote = Handle::connect(&[addr], credentials).await.unwrap();
    let doors = [node.handle(), remote];
    fill(&doors[0]).await;
    (dir, node, doors)
}

/// All parts; between them every key that has not come yet is changed or removed.
async fn collect(handle: &Handle, request: RangeRequest, disturb: bool) -> Vec<RangeChunk> {
    let mut stream = handle.range_stream(request).await.unwrap();
    let mut chunks: Vec<RangeChunk> = Vec::new();
    while let Some(chunk) = stream.next().await.unwrap() {
        if disturb && chunks.len() < 3 {
            handle.put(put(&key_of(KEYS - 1 - chunks.len()), "later")).await.unwrap();
            handle.put(put(&format!("pods/new{}", chunks.len()), "later")).await.unwrap();
            let range = KeyRange::key(key_of(KEYS - 10 - chunks.len()));
            handle.delete(DeleteRequest { range, ..DeleteRequest::default() }).await.unwrap();
        }
        chunks.push(chunk);
    }
    assert!(stream.next().await.unwrap().is_none(), "an ended stream stays ended");
    let (last, before) = chunks.split_last().unwrap();
    assert!(last.last && before.iter().all(|chunk| !chunk.last && !chunk.response.more));
    chunks
}

fn keys(chunks: Vec<RangeChunk>) -> Vec<KeyValue> {
    chunks.into_iter().flat_map(|chunk| chunk.response.kvs).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_of_one_revision_and_comes_in_bounded_parts() {
    let (_dir, node, doors) = both_doors("stream").await;
    for handle in &doors {
        let (header, whole) = handle.range(pods()).await.unwrap();
        let chunks = collect(handle, pods(), true).await;
        assert_eq!(chunks[0].response.kvs.len(), 10);
        assert_eq!(chunks[1].response.kvs.len(), 20);
        let largest = 1 << 20;
        for chunk in &chunks {
            let bytes: usize = chunk.response.kvs.iter().map(|kv| kv.value.len()).sum();
            assert!(bytes < 2 * largest, "{bytes}");
            assert_eq!(chunk.header.revision, header.revision);
        }
        let last = chunks.last().unwrap().response.clone();
        assert_eq!((last.count, last.more), (whole.count, false));
        assert_eq!(keys(chunks), whole.kvs, "as of the start, whatever was written since");

        let limited = RangeRequest { limit: 25, keys_only: true, ..pods() };
        let (_, page) = handle.range(limited.clone()).await.unwrap();
        let chunks = collect(handle, limited, false).await;
        let last = chunks.last().unwrap().response.clone();
        assert_eq!((last.more, last.count), (true, page.count));
        assert_eq!(keys(chunks), page.kvs);
        for (request, expect) in [
            (RangeRequest { count_only: true, ..pods() }, page.count),
            (RangeRequest { range: KeyRange::key(key_of(7)), ..pods() }, 1),
            (RangeRequest { range: KeyRange::key("none"), ..pods() }, 0),
            (RangeRequest { limit: -3, serializable: true, ..pods() }, page.count),
        ] {
            let chunks = collect(handle, request.clone(), false).await;
            assert_eq!(chunks.last().unwrap().response.count, expect, "{request:?}");
            let sent = if request.count_only { 0 } else { expect };
            assert_eq!(keys(chunks).len() as i64, sent);
        }
    }
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_refused_or_ends_where_it_can_not_go_on() {
    let (_dir, node, doors) = both_doors("refused").await;
    for handle in &doors {
        let sorted = RangeRequest { sort_order: SortOrder::Descend, ..pods() };
        let filtered = RangeRequest { min_mod_revision: 3, ..pods() };
        for request in [sorted, filtered] {
            let refused = handle.range_stream(request).await.err();
            let field = matches!(&refused, Some(Error::Refused(Refusal::Invalid { field, .. })) if field == "sort or filter");
            assert!(field, "{refused:?}");
        }
        let future = handle.range_stream(RangeRequest { revision: 1 << 40, ..pods() }).await.err();
        assert!(matches!(future, Some(Error::Refused(Refusal::FutureRevision { .. }))), "{future:?}");
        let mut stream = handle.range_stream(pods()).await.unwrap();
        let first = stream.next().await.unwrap().unwrap();
        handle.put(put("other", "v")).await.unwrap();
        handle.compact(first.header.revision + 1, false).await.unwrap();
        let ended = stream.next().await.err();
        assert!(matches!(ended, Some(Error::Refused(Refusal::Compacted { .. }))), "{ended:?}");
        let old = handle.range_stream(RangeRequest { revision: 1, ..pods() }).await.err();
        assert!(matches!(old, Some(Error::Refused(Refusal::Compacted { .. }))), "{old:?}");
    }
    node.shutdown().await.unwrap();
}

/// Parts grow over small values until one would have more than any answer may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_where_values_become_large() {
    let (_dir, node, doors) = both_doors("large").await;
    const LARGE: usize = 900 * 1024;
    for number in 0..80 {
        doors[0].put(put(&format!("mixed/1/{number:03}"), &"x".repeat(LARGE))).await.unwrap();
    }
    for number in 0..200 {
        doors[0].put(put(&format!("mixed/0/{number:03}"), "x")).await.unwrap();
    }
    for handle in &doors {
        let request = RangeRequest { range: KeyRange::prefix("mixed/"), ..RangeRequest::default() };
        let refused = handle.range(request.clone()).await.err();
        assert!(matches!(refused, Some(Error::Refused(Refusal::AnswerTooLarge { .. }))), "{refused:?}");
        let found = keys(collect(handle, request, false).await);
        let bytes: usize = found.iter().map(|kv| kv.value.len()).sum();
        assert_eq!((found.len(), bytes), (280, 80 * LARGE + 200));
        assert!(found.is_sorted_by(|a, b| a.key < b.key));
    }
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_count_what_is_left_while_others_write() {
    let (_dir, node, doors) = both_doors("pages").await;
    for handle in &doors {
        let (_, whole) = handle.range(RangeRequest { keys_only: true, ..pods() }).await.unwrap();
        let mut request = RangeRequest { limit: 300, keys_only: true, ..pods() };
        let mut found = Vec::new();
        loop {
            let (header, page) = handle.range(request.clone()).await.unwrap();
            assert_eq!(page.count + found.len() as i64, whole.count);
            found.extend(page.kvs);
            let newer = RangeRequest { count_only: true, ..pods() };
            let before = handle.range(newer.clone()).await.unwrap().1.count;
            handle.put(put(&format!("pods/x{}", found.len()), "later")).await.unwrap();
            handle.put(put(&key_of(5), "again")).await.unwrap();
            handle.put(put("elsewhere", "later")).await.unwrap();
            let after = handle.range(newer).await.unwrap().1.count;
            assert!(after == before + 1 || after == before, "{before} {after}");
            if !page.more {
                break;
            }
            request.revision = if request.revision > 0 { request.revision } else { header.revision };
            let mut next = found[found.len() - 1].key.to_vec();
            next.push(0);
            request.range = KeyRange::span(next, request.range.end.clone());
        }
        assert_eq!(found, whole.kvs);
        // With nothing to go by: as many as there are.
        let filtered = RangeRequest { min_mod_revision: 1, keys_only: true, ..pods() };
        let (_, scanned) = handle.range(filtered).await.unwrap();
        let (_, counted) = handle.range(RangeRequest { count_only: true, ..pods() }).await.unwrap();
        assert_eq!(scanned.kvs.len() as i64, counted.count);
    }
    node.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_have_one_checksum() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a", "b", "c"]).await;
    let handle = nodes[0].handle();
    fill(&handle).await;
    fill(&handle).await;
    // One member has certainly removed what the others may still have.
    handle.compact(30, true).await.unwrap();
    let revision = handle.put(put("last", "v")).await.unwrap().0.revision;
    let mut found = Vec::new();
    for node in &nodes {
        let hash = eventually("the last write and the mark are there", || async {
            let (_, hash) = node.handle().hash_kv(revision).await.ok()?;
            (hash.compacted == 30).then_some(hash)
        });
        found.push(hash.await);
    }
    assert!(found.iter().all(|hash| *hash == found[0]), "{found:?}");
    let (_, older) = handle.hash_kv(revision - 1).await.unwrap();
    assert_ne!(older.hash, found[0].hash);
    let refused = handle.hash_kv(29).await.err();
    assert!(matches!(refused, Some(Error::Refused(Refusal::Compacted { .. }))), "{refused:?}");
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}
