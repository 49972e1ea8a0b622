//! An archive that a running archiver keeps: what it has leads to every revision and moment, whatever ended it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use raft_kv::client::{
    ArchiveEvent, ArchivePlan, FullReason, Handle, RestorePlan, RestoreTo, RestoredCluster, StartError,
    restore, verify_archive,
};
use raft_kv::pki::BackupKey;
use raft_kv::types::Revision;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::backup::{all, open, replayed, writer};
use crate::support::{cluster, config, put};

/// So long anything may take.
const DEADLINE: Duration = Duration::from_secs(60);

fn plan(key: Option<&BackupKey>) -> ArchivePlan {
    ArchivePlan { key: key.cloned(), every: Duration::from_millis(100), ..ArchivePlan::default() }
}

fn milliseconds() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// An archiver in a task of its own.
struct Archiver {
    stop: oneshot::Sender<()>,
    events: mpsc::UnboundedReceiver<ArchiveEvent>,
    task: JoinHandle<Result<(), StartError>>,
}

impl Archiver {
    fn start(handle: &Handle, folder: &Path, plan: ArchivePlan) -> Self {
        let (handle, folder) = (handle.clone(), folder.to_owned());
        let (stop, stopped) = oneshot::channel::<()>();
        let (say, events) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            let told = |event: &ArchiveEvent| drop(say.send(event.clone()));
            handle.archive(&folder, &plan, stopped, told).await
        });
        Self { stop, events, task }
    }

    /// Waits for an event.
    async fn until<T>(&mut self, what: &str, mut look: impl FnMut(&ArchiveEvent) -> Option<T>) -> T {
        let mut seen = Vec::new();
        let found = timeout(DEADLINE, async {
            loop {
                let event = self.events.recv().await.unwrap_or_else(|| panic!("it ended: {seen:?}"));
                if let Some(found) = look(&event) {
                    return found;
                }
                seen.push(event);
            }
        });
        found.await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
    }

    async fn full(&mut self, why: FullReason) {
        self.until("a full backup", |event| {
            matches!(event, ArchiveEvent::Full { reason, .. } if *reason == why).then_some(())
        })
        .await;
    }

    /// How one ended that can't go on.
    async fn refused(mut self) -> String {
        match timeout(DEADLINE, &mut self.task).await.expect("it ends").unwrap() {
            Err(StartError::Refused(refusal)) => refusal.to_string(),
            other => panic!("{other:?}"),
        }
    }

    async fn archived(&mut self, revision: Revision) {
        self.until("it is archived", |event| match event {
            ArchiveEvent::Changes { backup, .. } | ArchiveEvent::Full { backup, .. } => {
                (backup.info.revision >= revision).then_some(())
            }
            ArchiveEvent::Status(status) => (status.archived >= revision).then_some(()),
            _ => None,
        })
        .await;
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        timeout(DEADLINE, self.task).await.expect("it stops").unwrap().unwrap();
    }

    /// As a crash does: wherever it is.
    async fn abort(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn restored(
    dir: &Path,
    name: &str,
    folder: &Path,
    to: RestoreTo,
    key: Option<&BackupKey>,
) -> Result<(RestoredCluster, PathBuf), StartError> {
    let place = config(dir, name);
    let plan = RestorePlan { key: key.cloned(), to, ..RestorePlan::default() };
    Ok((restore(place.clone(), folder, &plan).await?, place.data_dir))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_revision_of_an_archive_is_the_replay_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a", "b", "c"]).await;
    let (folder, key) = (dir.path().join("archive"), BackupKey::generate());
    let plan = ArchivePlan { every_bytes: 4096, full_every: Duration::from_secs(1), ..plan(Some(&key)) };
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..3u64).map(|number| writer(nodes[number as usize].handle(), number, stop.clone())).collect();
    // By one member after the other; wherever each is cut off, the next goes on.
    for node in [&nodes[0], &nodes[1], &nodes[2], &nodes[0]] {
        let mut archiver = Archiver::start(&node.handle(), &folder, plan.clone());
        let mut changes = 0;
        archiver
            .until("it writes", |event| {
                changes += i32::from(matches!(event, ArchiveEvent::Changes { .. }));
                (changes == 5).then_some(())
            })
            .await;
        archiver.abort().await;
    }
    let mut archiver = Archiver::start(&nodes[1].handle(), &folder, plan.clone());
    archiver.full(FullReason::Due).await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let handle = nodes[0].handle();
    let last = handle.put(put("last", "1")).await.unwrap().0.revision;
    archiver.archived(last).await;
    archiver.stop().await;
    let found = verify_archive(&folder, Some(&key)).unwrap();
    assert_eq!((found.to, found.cluster), (last, nodes[0].cluster()));
    assert!(found.gaps.is_empty() && found.fulls >= 2 && found.changes >= 20, "{found:?}");
    let span = last - found.from;
    for at in [found.from, found.from + 1, found.from + span / 3, found.from + span / 2, last - 1, last] {
        let name = format!("at-{at}");
        let to = RestoreTo::Revision(at);
        let (made, data_dir) = restored(dir.path(), &name, &folder, to, Some(&key)).await.unwrap();
        assert_eq!((made.from, made.revision), (at, at + 1_000_000_000));
        let node = open(&data_dir).await;
        assert_eq!(all(&node.handle()).await, replayed(&handle, at).await, "revision {at}");
        node.shutdown().await.unwrap();
    }
    let out = restored(dir.path(), "out", &folder, RestoreTo::Revision(last + 1), Some(&key)).await;
    assert!(out.unwrap_err().to_string().contains(&format!("up to {last}")));
    let old = restored(dir.path(), "old", &folder, RestoreTo::Revision(found.from - 1), Some(&key)).await;
    assert!(old.unwrap_err().to_string().contains("older"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moment_is_told_from_the_next_write() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a"]).await;
    let (handle, folder) = (nodes[0].handle(), dir.path().join("archive"));
    // Everything in one file: what tells moments apart is in it.
    let plan = ArchivePlan { every: Duration::from_secs(1), ..plan(None) };
    let mut archiver = Archiver::start(&handle, &folder, plan.clone());
    let first = archiver
        .until("it begins", |event| match event {
            ArchiveEvent::Full { backup, .. } => Some(backup.info.clone()),
            _ => None,
        })
        .await;
    let mut moments = Vec::new();
    for number in 0..4 {
        let revision = handle.put(put("k", &number.to_string())).await.unwrap().0.revision;
        archiver.archived(revision).await;
        moments.push((milliseconds(), revision));
        // Not before the clock has gone on.
        crate::support::eventually("a millisecond is over", || async {
            (milliseconds() > moments.last().unwrap().0).then_some(())
        })
        .await;
    }
    archiver.stop().await;
    // While nobody archives: the member knows when it was.
    for number in 4..7 {
        let revision = handle.put(put("k", &number.to_string())).await.unwrap().0.revision;
        crate::support::eventually("the member has seen it", || async {
            (!handle.revision_dates(revision - 1).await.unwrap().is_empty()).then_some(())
        })
        .await;
        moments.push((milliseconds(), revision));
        crate::support::eventually("a millisecond is over", || async {
            (milliseconds() > moments.last().unwrap().0).then_some(())
        })
        .await;
    }
    let mut archiver = Archiver::start(&handle, &folder, plan);
    archiver.archived(moments.last().unwrap().1).await;
    archiver.stop().await;
    for (at, revision) in moments.into_iter().filter(|(at, _)| *at >= first.made * 1000) {
        let name = format!("at-{revision}");
        let (made, _) = restored(dir.path(), &name, &folder, RestoreTo::Time(at), None).await.unwrap();
        assert_eq!(made.from, revision);
    }
    let early = RestoreTo::Time(first.made * 1000 - 1);
    let refused = restored(dir.path(), "early", &folder, early, None).await.unwrap_err().to_string();
    assert!(refused.contains("older"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_compacted_before_it_was_archived_is_a_gap_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a"]).await;
    let (handle, folder) = (nodes[0].handle(), dir.path().join("archive"));
    let write = |value: &'static str| async { handle.put(put("k", value)).await.unwrap().0.revision };
    let mut archiver = Archiver::start(&handle, &folder, plan(None));
    let before = write("1").await;
    archiver.archived(before).await;
    archiver.stop().await;
    for value in ["2", "3"] {
        write(value).await;
    }
    let compacted = write("4").await;
    handle.compact(compacted, true).await.unwrap();
    let mut archiver = Archiver::start(&handle, &folder, plan(None));
    let after = archiver
        .until("the gap is said", |event| match event {
            ArchiveEvent::Gap { after, .. } => Some(*after),
            _ => None,
        })
        .await;
    assert_eq!(after, before);
    archiver.full(FullReason::Gap).await;
    let last = write("5").await;
    archiver.archived(last).await;
    archiver.stop().await;
    let found = verify_archive(&folder, None).unwrap();
    assert_eq!((found.gaps.len(), found.gaps[0].after, found.gaps[0].before), (1, before, compacted));
    for at in [before, compacted, last] {
        let name = format!("at-{at}");
        let (made, _) = restored(dir.path(), &name, &folder, RestoreTo::Revision(at), None).await.unwrap();
        assert_eq!(made.from, at);
    }
    let within = restored(dir.path(), "within", &folder, RestoreTo::Revision(before + 1), None).await;
    assert!(within.unwrap_err().to_string().contains("goes on from"));
    // A new archiver goes on behind it, and makes no other full backup for it.
    let mut archiver = Archiver::start(&handle, &folder, plan(None));
    let next = write("6").await;
    archiver.archived(next).await;
    archiver.stop().await;
    assert_eq!(verify_archive(&folder, None).unwrap().fulls, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_to_an_archive_is_found_and_nothing_is_built_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a", "b"]).await;
    let (handle, folder) = (nodes[0].handle(), dir.path().join("archive"));
    let mut archiver = Archiver::start(&handle, &folder, plan(None));
    archiver.full(FullReason::First).await;
    // Two archivers in one folder would write over each other.
    let second = Archiver::start(&nodes[1].handle(), &folder, plan(None)).refused().await;
    assert!(second.contains("another process"), "{second}");
    let mut files = Vec::new();
    for number in 0..4 {
        let revision = handle.put(put("k", &number.to_string())).await.unwrap().0.revision;
        let file = archiver.until("a file is closed", |event| match event {
            ArchiveEvent::Changes { backup, file } => {
                (backup.info.revision >= revision).then(|| (file.clone(), revision))
            }
            _ => None,
        });
        files.push(file.await);
    }
    archiver.stop().await;
    verify_archive(&folder, None).unwrap();
    let whole = fs::read(&files[1].0).unwrap();
    let check = |part: &str| {
        let found = verify_archive(&folder, None).unwrap_err();
        assert!(
            matches!(found, StartError::Storage(_)) && found.to_string().contains(part),
            "{part}: {found}"
        );
    };
    let mut bent = whole.clone();
    let middle = bent.len() / 2;
    bent[middle] ^= 1;
    fs::write(&files[1].0, &bent).unwrap();
    check("at byte");
    let to = RestoreTo::Revision(files[1].1);
    let refused = restored(dir.path(), "bent", &folder, to, None).await.unwrap_err().to_string();
    assert!(refused.contains("damaged"), "{refused}");
    // What comes before it is not harmed.
    let to = RestoreTo::Revision(files[0].1);
    assert_eq!(restored(dir.path(), "before", &folder, to, None).await.unwrap().0.from, files[0].1);
    fs::remove_file(&files[1].0).unwrap();
    check("are missing before it");
    // One that says the same and is another.
    fs::write(&files[1].0, fs::read(&files[2].0).unwrap()).unwrap();
    check("otherwise than its name");
    fs::write(&files[1].0, &whole).unwrap();
    verify_archive(&folder, None).unwrap();
    // The last one: a new run begins behind it.
    let last = fs::read(&files[3].0).unwrap();
    fs::write(&files[3].0, &last[..last.len() - 1]).unwrap();
    let mut archiver = Archiver::start(&handle, &folder, plan(None));
    archiver.full(FullReason::Gap).await;
    archiver.stop().await;
    check("at byte");
    fs::write(&files[3].0, &last).unwrap();
    verify_archive(&folder, None).unwrap();
    // Of another cluster, and with another key.
    let other = tempfile::tempdir().unwrap();
    let foreign = cluster(other.path(), &["x"]).await;
    let refused = Archiver::start(&foreign[0].handle(), &folder, plan(None)).refused().await;
    assert!(refused.contains("of cluster"), "{refused}");
    let secret = other.path().join("secret");
    let key = BackupKey::generate();
    let mut archiver = Archiver::start(&foreign[0].handle(), &secret, plan(Some(&key)));
    let revision = foreign[0].handle().put(put("k", "v")).await.unwrap().0.revision;
    archiver.archived(revision).await;
    archiver.stop().await;
    for wrong in [None, Some(BackupKey::generate())] {
        let refused = verify_archive(&secret, wrong.as_ref()).unwrap_err();
        assert!(matches!(refused, StartError::Refused(_)), "{refused}");
        let refused = Archiver::start(&foreign[0].handle(), &secret, plan(wrong.as_ref())).refused().await;
        assert!(refused.contains("key"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_older_than_is_kept_goes_as_whole_chains() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = cluster(dir.path(), &["a"]).await;
    let (handle, folder) = (nodes[0].handle(), dir.path().join("archive"));
    let (full_every, keep) = (Duration::from_secs(1), Some(Duration::from_secs(1)));
    let mut archiver = Archiver::start(&handle, &folder, ArchivePlan { full_every, keep, ..plan(None) });
    let stop = Arc::new(AtomicBool::new(false));
    let writing = writer(handle.clone(), 0, stop.clone());
    let mut removed = 0;
    let from = archiver
        .until("chains are removed", |event| match event {
            ArchiveEvent::Removed { files, from } => {
                assert!(*files > 0);
                removed += 1;
                (removed == 2).then_some(*from)
            }
            _ => None,
        })
        .await;
    stop.store(true, Ordering::Relaxed);
    writing.await.unwrap();
    let last = handle.put(put("last", "1")).await.unwrap().0.revision;
    archiver.archived(last).await;
    archiver.stop().await;
    let found = verify_archive(&folder, None).unwrap();
    assert!(found.from >= from && found.to == last && found.gaps.is_empty(), "{found:?}");
    for at in [found.from, (found.from + last) / 2, last] {
        let name = format!("at-{at}");
        let (made, data_dir) =
            restored(dir.path(), &name, &folder, RestoreTo::Revision(at), None).await.unwrap();
        assert_eq!(made.from, at);
        let node = open(&data_dir).await;
        assert_eq!(all(&node.handle()).await, replayed(&handle, at).await, "revision {at}");
        node.shutdown().await.unwrap();
    }
}
