//! Damage on a member's disk: found in every class of file, made good from a second copy or from the other
//! members, never served, and never the reason to throw anything away that nobody else has.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use raft_kv::client::{
    Handle, Node, Overrides, RestorePlan, StartError, Tuning, check, credentials_of, restore,
};
use raft_kv::error::Error;
use raft_kv::storage::check::Harm;
use raft_kv::types::{KeyRange, RangeRequest};

use crate::support::{cluster, config, eventually, put, tuning, value, voters};

/// Changes one bit of the file.
fn flip(path: &Path, at: u64, bit: u8) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, at).unwrap();
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

/// All files below `dir`, but those that nothing is read from, or that a repair has put aside.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let unread = ["lock", "LOCK", "LOG", "IDENTITY"].contains(&name)
            || ["LOG.", "OPTIONS-", "spare-"].iter().any(|front| name.starts_with(front));
        if path.is_dir() {
            found.extend(if name == "damaged" { Vec::new() } else { files(&path) });
        } else if !unread && len(&path) > 0 {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn named(dir: &Path, part: &str) -> PathBuf {
    let all = files(dir).into_iter().filter(|path| path.to_str().unwrap().contains(part));
    all.max_by_key(|path| len(path)).unwrap_or_else(|| panic!("no {part}"))
}

/// The oldest segment of the log: others may be made ready ahead, and hold nothing.
fn segment(dir: &Path) -> PathBuf {
    let mut all = files(dir).into_iter().filter(|path| path.to_str().unwrap().contains("segment-"));
    all.next().expect("a log has one")
}

/// The same data for each test: on disk as tables, and behind them in the log.
async fn fill(node: &Node) {
    eventually("it leads", || async { node.handle().get("x").await.ok() }).await;
    for number in 0..50 {
        node.handle().put(put(&format!("key-{number:03}"), &"v".repeat(200))).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_is_found_in_every_file_that_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::init(config(folder.path(), "a")).await.unwrap();
    fill(&node).await;
    let dir = folder.path().join("a");
    let in_use = check(&dir, None).unwrap_err().to_string();
    assert!(in_use.contains("another process uses it"), "{in_use}");
    node.shutdown().await.unwrap();
    let clean = check(&dir, None).unwrap();
    assert!(!clean.is_damaged() && clean.unseen.is_empty(), "{clean:?}");
    let (log, state) = (clean.log.unwrap(), clean.state.clone().unwrap());
    assert!(log.whole && log.end.index >= state.applied.index && state.revision == 51, "{clean:?}");
    let all = files(&dir);
    for class in
        ["marker", "segment-", ".sst", "MANIFEST", "CURRENT", "cacert.pem", "cert.pem", "key.pem", "keyring"]
    {
        assert!(all.iter().any(|path| path.to_str().unwrap().contains(class)), "no {class} in {all:?}");
    }
    assert!(all.contains(&dir.join("node")) && all.contains(&dir.join("spare")));
    let ahead = |path: &&PathBuf| path.to_str().unwrap().contains("segment-") && **path != segment(&dir);
    for path in all.iter().filter(|path| !ahead(path)) {
        // Of a segment counts what was written: its header and the first records at least.
        let end = if path.to_str().unwrap().contains("segment-") { 400 } else { len(path) };
        for step in 0..8 {
            let at = (end - 1) * step / 7;
            flip(path, at, 2);
            let report = check(&dir, None).unwrap();
            let name = path.display().to_string();
            let found =
                report.problems.iter().find(|problem| problem.file == name && problem.harm > Harm::Note);
            let found = found.unwrap_or_else(|| panic!("{name} at {at}: {report:?}"));
            assert!(found.offset.is_none_or(|offset| offset <= at), "{at}: {found}");
            flip(path, at, 2);
        }
    }
    assert_eq!(check(&dir, None).unwrap(), clean, "nothing was changed by looking");
}

/// What is done to a stopped member, and whether it keeps its id.
type Damage = (&'static str, fn(&Path), bool);

fn break_file(dir: &Path, part: &str) {
    let path = named(dir, part);
    flip(&path, len(&path) / 2, 5);
}

const DAMAGES: [Damage; 11] = [
    ("the manifest", |dir| break_file(dir, "MANIFEST"), false),
    ("CURRENT", |dir| break_file(dir, "CURRENT"), false),
    ("a record of the log", |dir| flip(&segment(dir), 80, 1), false),
    ("all copies of the marker", |dir| fs::write(dir.join("log/marker"), [0; 8192]).unwrap(), false),
    ("a table's end", |dir| flip(&named(dir, ".sst"), len(&named(dir, ".sst")) - 2, 1), false),
    ("the state", |dir| fs::remove_dir_all(dir.join("state")).unwrap(), false),
    ("who it is", |dir| break_file(dir, "/node"), true),
    ("the keyring", |dir| break_file(dir, "keyring"), true),
    ("the certificate", |dir| break_file(dir, "/cert.pem"), true),
    ("the roots", |dir| fs::remove_file(dir.join("cert/cacert.pem")).unwrap(), true),
    ("the key", |dir| break_file(dir, "key.pem"), true),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_member_comes_back_whole_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = cluster(folder.path(), &["a", "b", "c"]).await;
    fill(&nodes[0]).await;
    // The one that made the cluster: it has heard of the others only since.
    let mut member = nodes.remove(0);
    let dir = folder.path().join("a");
    for (what, damage, keeps_id) in DAMAGES {
        nodes[0].handle().put(put("last", what)).await.unwrap();
        let id = member.id();
        member.shutdown().await.unwrap();
        assert!(!check(&dir, None).unwrap().is_damaged(), "before {what}");
        damage(&dir);
        let found = check(&dir, None).unwrap();
        assert!(found.is_damaged(), "{what}: {found:?}");
        member = Node::open(&dir, Overrides::default(), tuning())
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(member.id() == id, keeps_id, "{what}");
        assert_eq!(dir.join("damaged/report").exists(), dir.join("damaged").exists());
        eventually("all vote", || async { (voters(&nodes[0].handle()).await == 3).then_some(()) }).await;
        eventually("it has caught up", || async {
            let found = member.handle().get("last").await.ok().flatten();
            found.filter(|kv| kv.value == what)
        })
        .await;
    }
    let hash = |node: &Node| {
        let handle = node.handle();
        async move { handle.hash_kv(0).await.unwrap().1 }
    };
    assert_eq!(hash(&member).await, hash(&nodes[0]).await);
    assert_eq!(value(&member.handle(), "key-049").await, Some("v".repeat(200)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_member_is_never_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::init(config(folder.path(), "a")).await.unwrap();
    fill(&node).await;
    node.shutdown().await.unwrap();
    let dir = folder.path().join("a");
    let current = named(&dir, "CURRENT");
    let whole = fs::read(&current).unwrap();
    fs::write(&current, "nonsense").unwrap();
    for _ in 0..2 {
        let StartError::Storage(failed) = Node::open(&dir, Overrides::default(), tuning()).await.unwrap_err()
        else {
            panic!("the disk is at fault")
        };
        assert!(failed.next.contains("no other one") && failed.next.contains("restore a backup"), "{failed}");
    }
    fs::write(&current, whole).unwrap();
    let node = Node::open(&dir, Overrides::default(), tuning()).await.unwrap();
    eventually("it leads", || async { node.handle().get("x").await.ok() }).await;
    assert_eq!(value(&node.handle(), "key-049").await, Some("v".repeat(200)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_majority_waits_and_nothing_is_wiped() {
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = cluster(folder.path(), &["a", "b", "c"]).await;
    fill(&nodes[0]).await;
    let ids: Vec<_> = nodes.iter().map(Node::id).collect();
    for node in nodes.drain(1..) {
        node.shutdown().await.unwrap();
    }
    let (b, c) = (folder.path().join("b"), folder.path().join("c"));
    let (broken, whole) = (named(&b, "CURRENT"), fs::read(named(&b, "CURRENT")).unwrap());
    fs::write(&broken, "nonsense").unwrap();
    fs::write(named(&c, "CURRENT"), "nonsense").unwrap();
    let before = (files(&b), files(&c));
    let opening = |dir: &Path| {
        let dir = dir.to_owned();
        async move { Node::open(&dir, Overrides::default(), tuning()).await }
    };
    let both = async { tokio::join!(opening(&b), opening(&c)) };
    assert!(
        tokio::time::timeout(Duration::from_secs(4), both).await.is_err(),
        "there is no quorum to take them in"
    );
    assert_eq!((files(&b), files(&c)), before);
    // With one of them whole again there is one, and the other comes back by itself.
    fs::write(&broken, whole).unwrap();
    let (b, c) = tokio::join!(opening(&b), opening(&c));
    let (b, c) = (b.unwrap(), c.unwrap());
    assert!(b.id() == ids[1] && c.id() != ids[2]);
    eventually("all vote", || async { (voters(&nodes[0].handle()).await == 3).then_some(()) }).await;
    assert_eq!(value(&c.handle(), "key-049").await, Some("v".repeat(200)));
}

/// What rots while the member runs.
type Rot = (&'static str, fn(&Path));

const ROTS: [Rot; 3] = [
    ("a block of a table", |dir| flip(&named(dir, ".sst"), len(&named(dir, ".sst")) / 2, 4)),
    ("a record of the log", |dir| flip(&segment(dir), 80, 1)),
    ("a table that is cut short", |dir| {
        let path = named(dir, ".sst");
        fs::File::options().write(true).open(&path).unwrap().set_len(len(&path) - 9).unwrap();
    }),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rots_while_a_member_runs_is_found_and_never_served() {
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = cluster(folder.path(), &["a", "b", "c"]).await;
    fill(&nodes[0]).await;
    let quick = Tuning { scrub_every: Duration::from_millis(300), ..tuning() };
    let dir = folder.path().join("c");
    nodes.pop().unwrap().shutdown().await.unwrap();
    let mut member = Node::open(&dir, Overrides::default(), quick.clone()).await.unwrap();
    for (what, rot) in ROTS {
        eventually("it was read twice and is sound", || async {
            (member.scrub_status().rounds > 1).then_some(())
        })
        .await;
        let status = member.scrub_status();
        assert!(status.problems == 0 && status.bytes > 0 && status.ended > 0, "{what}: {status:?}");
        let id = member.id();
        rot(&dir);
        let Error::Stopped(why) = member.stopped().await else { panic!("{what}: it stops") };
        assert!(why.contains("offset") && member.is_damaged(), "{what}: {why}");
        let range = KeyRange::prefix("key-001");
        let request = RangeRequest { range, serializable: true, ..RangeRequest::default() };
        assert!(member.handle().range(request).await.is_err(), "{what}: nothing more is served");
        assert!(member.shutdown().await.is_err());
        assert!(dir.join("damage").exists(), "the next start is told");
        member = Node::open(&dir, Overrides::default(), quick.clone()).await.unwrap();
        assert!(member.id() != id && !dir.join("damage").exists(), "{what}");
        eventually("all vote", || async { (voters(&nodes[0].handle()).await == 3).then_some(()) }).await;
        assert_eq!(value(&member.handle(), "key-049").await, Some("v".repeat(200)), "{what}");
        // With its state in files again.
        member.shutdown().await.unwrap();
        member = Node::open(&dir, Overrides::default(), quick.clone()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_that_a_backup_has_carried_along_is_not_restored() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("a");
    let node = Node::init(config(folder.path(), "a")).await.unwrap();
    fill(&node).await;
    node.shutdown().await.unwrap();
    let node = Node::open(&dir, Overrides::default(), tuning()).await.unwrap();
    eventually("it leads", || async { node.handle().get("x").await.ok() }).await;
    let (sound, rotten) = (folder.path().join("sound"), folder.path().join("rotten"));
    node.handle().backup(&sound, None, false).await.unwrap();
    // The first block has values. Files are copied as they are: nobody reads it on the way.
    flip(&named(&dir, ".sst"), 10, 4);
    node.handle().backup(&rotten, None, false).await.unwrap();
    let place = config(folder.path(), "new");
    let refused = restore(place.clone(), &rotten, &RestorePlan::default()).await.unwrap_err().to_string();
    assert!(refused.contains("damaged") && refused.contains("another backup"), "{refused}");
    let left: Vec<_> = fs::read_dir(&place.data_dir).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
    restore(place, &sound, &RestorePlan::default()).await.unwrap();
}

/// People ask with the certificate in its data directory while it comes back: its own connection is spared
/// until it has its new id, whatever else ends meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_comes_back_while_others_ask_with_its_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = cluster(folder.path(), &["a", "b", "c"]).await;
    fill(&nodes[0]).await;
    let member = nodes.pop().unwrap();
    let (dir, id) = (folder.path().join("c"), member.id());
    member.shutdown().await.unwrap();
    let (own, _) = credentials_of(&dir).unwrap();
    let asking: Vec<_> = nodes
        .iter()
        .cycle()
        .take(8)
        .map(|node| {
            let (addr, own) = (node.addr().to_owned(), own.clone());
            tokio::spawn(async move {
                let handle = Handle::connect(&[addr], own).await.unwrap();
                // Until its certificate is one of nobody.
                while handle.get("key-001").await.is_ok() {}
            })
        })
        .collect();
    flip(&segment(&dir), 80, 1);
    let member = Node::open(&dir, Overrides::default(), tuning()).await.unwrap();
    assert_ne!(member.id(), id);
    eventually("all vote", || async { (voters(&nodes[0].handle()).await == 3).then_some(()) }).await;
    assert_eq!(value(&member.handle(), "key-049").await, Some("v".repeat(200)));
    for asking in asking {
        asking.await.unwrap();
    }
}
