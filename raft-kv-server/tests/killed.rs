//! Members killed at named places, as `kill -9` would there: what the crash leaves is put right by the next start,
//! and by nobody else. Each place must really be reached.

mod process;

use std::fs;
use std::path::Path;

use process::{Member, Running, command, until};
use raft_kv::client::{Handle, credentials_of};
use raft_kv::planted::crash::{Point, VARIABLE};
use raft_kv::types::{DeleteRequest, KeyRange, PutRequest, RangeRequest, Revision};

/// Keys that change: three steps of a rollback.
const KEYS: usize = 2_500;

fn with_handle<R>(member: &Member, ask: impl AsyncFnOnce(Handle) -> R) -> R {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (credentials, addr) = credentials_of(&member.data_dir).unwrap();
        ask(Handle::connect(&[addr], credentials).await.unwrap()).await
    })
}

/// Every key with its value, as of a revision.
fn keys(member: &Member, revision: Revision) -> Vec<(Vec<u8>, Vec<u8>)> {
    with_handle(member, async |handle| {
        let range = KeyRange::span(&b"\0"[..], &b"\0"[..]);
        let mut stream =
            handle.range_stream(RangeRequest { range, revision, ..RangeRequest::default() }).await.unwrap();
        let mut all = Vec::new();
        while let Some(chunk) = stream.next().await.unwrap() {
            all.extend(chunk.response.kvs.into_iter().map(|kv| (kv.key.to_vec(), kv.value.to_vec())));
        }
        all
    })
}

/// Changes [`KEYS`] keys: some made, some overwritten, some deleted.
fn change(member: &Member, value: &'static str) {
    with_handle(member, async |handle| {
        let put = |key: String| {
            let handle = handle.clone();
            async move {
                handle.put(PutRequest { key: key.into(), value: value.into(), ..Default::default() }).await
            }
        };
        for chunk in (0..KEYS).collect::<Vec<_>>().chunks(100) {
            let puts = chunk.iter().map(|number| put(format!("key-{number:05}")));
            for done in futures_util::future::join_all(puts).await {
                done.unwrap();
            }
        }
        put(format!("only-{value}")).await.unwrap();
        let range = KeyRange::prefix("key-0001");
        handle.delete(DeleteRequest { range, prev_kv: false }).await.unwrap();
    });
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// `run` on `data_dir` by a member that dies at a place.
fn doomed(data_dir: &Path, place: &str) -> Member {
    let mut command = command(&["run"]);
    command.env(VARIABLE, place);
    Member::started(command, data_dir).unwrap_or_else(|ended| panic!("{place}: {ended:?}"))
}

/// Waits until a member has died by a signal.
fn died(running: Running, place: &str) {
    let ended = running.ended();
    assert_eq!(ended.code, None, "{place}: {ended:?}");
}

#[test]
fn a_rollback_that_a_crash_cut_off_is_done_by_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let member = Member::first(folder.path());
    change(&member, "first");
    let at = member.ask(&["rollback-point", "create", "v1"]).json()["revision"].as_i64().unwrap();
    change(&member, "second");
    let before = member.revision();
    let (then, now) = (keys(&member, at), keys(&member, before));
    assert_ne!(then, now);
    let kept = member.data_dir.clone();
    member.running.terminate();
    member.running.ended();

    let places = Point::ALL.iter().filter(|(name, _)| name.starts_with("rollback-"));
    let mut places: Vec<String> = places.map(|(name, _)| (*name).to_owned()).collect();
    assert!(places.len() >= 7, "{places:?}");
    places.push("rollback-step-flushed:1".into());
    for place in &places {
        let data_dir = folder.path().join(place.replace(':', "-"));
        copy(&kept, &data_dir);
        let member = doomed(&data_dir, place);
        let mut asking = command(&["rollback", "to", "v1", "--json", "--data-dir"]);
        asking.arg(&data_dir);
        let asking = Running::start(asking);
        died(member.running, place);
        drop(asking);

        let member = Member::again(&data_dir);
        until(place, || (member.revision() == before + 1).then_some(()));
        assert_eq!(keys(&member, before + 1), then, "{place}");
        assert_eq!(keys(&member, before), now, "{place}: history");
        let undo = format!("before-rollback-{}", before + 1);
        member.ask(&["rollback", "to", &undo]).json();
        assert_eq!(keys(&member, 0), now, "{place}: the undo");
        drop(member);
        fs::remove_dir_all(&data_dir).unwrap();
    }
}
