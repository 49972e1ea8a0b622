//! `recover` as its operator meets it: what is said before and after, exit codes, what refuses it, and
//! SIGKILL wherever it happens to be.

mod process;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use process::{DEADLINE, Ended, Member, Running, command, free_address, metrics, raft_kv, run, until};
use serde_json::Value;

fn recover(data_dir: &Path, words: &[&str]) -> Ended {
    let mut command = command(&["--json", "recover", "--data-dir"]);
    command.arg(data_dir).args(words);
    run(command, &[])
}

fn copy(from: &Path, to: &Path) {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

fn voters(member: &Member) -> usize {
    let answer = member.ask(&["member", "ls"]).json();
    let members = answer["members"].as_array().cloned().unwrap_or_default();
    members.iter().filter(|member| member["role"] == "voter").count()
}

const KEYS: usize = 20;

/// Three members, all killed; the directory of the first, and the others'.
fn lost(folder: &Path) -> (PathBuf, [PathBuf; 2]) {
    let mut one = Member::first(folder);
    let mut two = one.joined_by("two", folder);
    let mut three = one.joined_by("three", folder);
    until("all vote", || (voters(&one) == 3).then_some(()));
    for number in 0..KEYS {
        one.ask(&["put", &format!("k{number}"), "v"]).json();
    }
    for member in [&mut two, &mut three, &mut one] {
        member.running.kill();
    }
    (one.data_dir.clone(), [two.data_dir.clone(), three.data_dir.clone()])
}

fn status(answer: &Value) -> &str {
    answer["status"].as_str().expect("a status")
}

fn serves(data_dir: &Path, id: &Value) -> Member {
    let member = Member::again(data_dir);
    assert_eq!(member.id, id.as_str().expect("an id"));
    let count = member.ask(&["get", "k", "--prefix", "--count-only"]).json();
    assert_eq!(count["count"], KEYS, "{count}");
    member
}

#[test]
fn what_is_said_before_and_after_and_who_may_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, others) = lost(folder.path());
    let before = fs::read(dir.join("node")).unwrap();
    let possible = recover(&dir, &["--dry-run"]).json();
    assert_eq!(status(&possible), "possible");
    assert_eq!(possible["old"]["others"].as_array().unwrap().len(), 2);
    assert_eq!((&possible["old"]["epoch"], &possible["new"]), (&Value::from(1), &Value::Null));
    let durable = possible["old"]["last_durable"].as_u64().unwrap();
    let committed = possible["old"]["last_committed"].as_u64().unwrap();
    let applied = possible["old"]["applied"].as_u64().unwrap();
    assert!(applied <= committed && committed <= durable, "{possible}");
    assert_eq!(possible["old"]["uncertain"], durable - committed);
    // Without a word it does nothing, and says so with its code too.
    let hesitant = recover(&dir, &[]);
    hesitant.refused(1, &["nothing was changed", "--yes"]);
    assert_eq!(serde_json::from_str::<Value>(hesitant.stdout.trim()).unwrap(), possible);
    let text = raft_kv(&["recover", "--data-dir", dir.to_str().unwrap(), "--dry-run"]);
    for part in
        ["would begin epoch 2", "last durable entry", "last known committed", "two clusters of one name"]
    {
        assert!(text.stdout.contains(part), "{text:?}");
    }
    assert_eq!(fs::read(dir.join("node")).unwrap(), before);
    recover(&dir, &["--yes", "--margin", "0"]).refused(1, &["go up"]);
    recover(&dir, &["--yes", "--dry-run"]).refused(2, &["cannot be used with"]);
    recover(folder.path(), &["--yes"]).refused(1, &["it holds no member"]);

    let done = recover(&dir, &["--yes"]).json();
    assert_eq!((status(&done), &done["new"]["epoch"]), ("done", &Value::from(2)));
    assert_ne!(done["new"]["id"], done["old"]["id"]);
    let aside = PathBuf::from(done["new"]["set_aside"].as_str().unwrap());
    assert!(aside.starts_with(&dir) && aside.join("log").join("marker").exists());
    let member = serves(&dir, &done["new"]["id"]);
    assert!(member.revision() >= done["new"]["kept_revision"].as_i64().unwrap() + 1_000_000_000);
    recover(&dir, &["--yes"]).refused(1, &["another process uses it"]);

    // Its certificate opens the etcd door no more.
    let door = member.etcd_url.strip_prefix("https://").unwrap().to_owned();
    assert!(metrics(&dir, &door).contains("200 OK"));
    let old = others[0].clone();
    let page = std::panic::catch_unwind(move || metrics(&old, &door));
    assert!(page.is_err() || page.is_ok_and(|page| !page.contains("200 OK")), "an old member is let in");

    // One of the lost ones is started again: it hears that it is over, ends and says what to do.
    let alone = Member::start(&["run"], &others[0]).unwrap_or_else(|ended| panic!("{ended:?}"));
    alone
        .running
        .ended()
        .refused(5, &["was removed", "keep its data directory aside", "join anew with a token"]);
    // Neither its id nor a token lets it in with what it has.
    let token = member.token();
    let words = ["run", "--token", &token, "--endpoints", &member.addr];
    match Member::start(&words, &others[0]) {
        Err(ended) => assert_eq!(ended.code, Some(1), "{ended:?}"),
        Ok(still) => still.running.ended().refused(5, &["was removed"]),
    }
    // Its directory is kept aside, and it comes back empty.
    let kept = others[0].with_extension("epoch-1");
    fs::rename(&others[0], &kept).unwrap();
    let two = member.joined_by("two", folder.path());
    until("it votes", || (voters(&member) == 2).then_some(()));
    assert_eq!(two.ask(&["get", "k0"]).json()["kvs"][0]["value"], "v");
    assert!(kept.join("node").exists());
}

#[test]
fn killed_at_any_moment_it_is_as_before_or_completed_by_the_same_call() {
    let folder = tempfile::tempdir().unwrap();
    let (image, _) = lost(folder.path());
    // How long it takes where nobody stops it.
    let whole = folder.path().join("whole");
    copy(&image, &whole);
    let began = Instant::now();
    assert_eq!(status(&recover(&whole, &["--yes"]).json()), "done");
    let takes = began.elapsed();
    let sights =
        ["recovering", "recovering/state", "recovering/log/marker", "recovered", "epoch-1", "epoch-1/node"];
    let waits = (0..8).map(|part| Moment::After(takes * part / 8));
    for (number, moment) in sights.into_iter().map(Moment::Sight).chain(waits).enumerate() {
        let dir = folder.path().join(format!("killed-{number}"));
        copy(&image, &dir);
        killed(&dir, &moment);
        let decided = dir.join("recovered/report").exists();
        if decided {
            let refused = Member::start(&["run"], &dir).err().expect("it does not run half done");
            refused.refused(1, &["raft-kv recover"]);
            recover(&dir, &[]).refused(1, &["nothing was changed"]);
            let listen = free_address();
            let init = ["init", "--listen-addr", &listen, "--etcd-addr", "127.0.0.1:0"];
            Member::start(&init, &dir)
                .err()
                .expect("nothing is made over it")
                .refused(1, &["raft-kv recover"]);
        }
        let answer = recover(&dir, &["--yes"]).json();
        // It may have come to its end before it was killed.
        let expect = if decided { &["done"][..] } else { &["done", "alone"] };
        assert!(expect.contains(&status(&answer)), "{moment:?}: {answer}");
        if number % 3 == 0 && status(&answer) == "done" {
            serves(&dir, &answer["new"]["id"]).running.kill();
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}

/// When it is killed.
#[derive(Debug)]
enum Moment {
    /// As soon as this is in the directory.
    Sight(&'static str),
    After(Duration),
}

/// Begins a recovery in `dir` and kills it, unless it ends before.
fn killed(dir: &Path, moment: &Moment) {
    let mut command = command(&["--json", "recover", "--yes", "--data-dir"]);
    command.arg(dir).stderr(Stdio::null());
    let began = Instant::now();
    let mut running = Running::start(command);
    loop {
        let now = match moment {
            Moment::Sight(name) => dir.join(name).exists(),
            Moment::After(wait) => began.elapsed() >= *wait,
        };
        if now || !running.runs() {
            return running.kill();
        }
        assert!(began.elapsed() < DEADLINE, "it does not end");
        std::thread::yield_now();
    }
}

#[test]
fn a_locked_directory_needs_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let mut one = Member::first(folder.path());
    let mut two = one.joined_by("two", folder.path());
    until("both vote", || (voters(&one) == 2).then_some(()));
    let key = one.ask(&["autolock", "on"]).json()["unlock_key"].as_str().unwrap().to_owned();
    until("their disks are locked", || {
        let mut ask = command(&["--json", "autolock", "status", "--data-dir"]);
        ask.arg(&one.data_dir).env("RAFT_KV_UNLOCK_KEY", &key);
        let settled = run(ask, &[]).json()["settled"] == true;
        let locked = [&one, &two].iter().all(|member| !member.data_dir.join("cert/key.pem").exists());
        (settled && locked).then_some(())
    });
    two.running.kill();
    one.running.kill();
    let dir = one.data_dir.clone();
    for words in [&["--yes"][..], &["--dry-run"]] {
        recover(&dir, words).refused(1, &["is locked"]);
    }
    let mut locked = command(&["--json", "recover", "--yes", "--unlock-key-file", "-", "--data-dir"]);
    locked.arg(&dir);
    let done = run(locked, key.as_bytes()).json();
    assert_eq!(status(&done), "done");
    assert!(!dir.join("cert/key.pem").exists(), "its key lies in clear nowhere");
    let mut start = command(&["run"]);
    start.env("RAFT_KV_UNLOCK_KEY", &key);
    let member = Member::started(start, &dir).unwrap_or_else(|ended| panic!("{ended:?}"));
    assert_eq!(member.id, done["new"]["id"].as_str().unwrap());
}

/// The example of docs/external-roots.md: the cluster has no signing key.
#[test]
fn where_the_signing_key_is_kept_outside_the_signer_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let example = |name: &str| format!("{}/../docs/examples/{name}", env!("CARGO_MANIFEST_DIR"));
    let ca = folder.path().join("ca");
    fs::create_dir(&ca).unwrap();
    let made = std::process::Command::new(example("own-root.sh")).arg(&ca).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let file = |name: &str| ca.join(name).to_str().unwrap().to_owned();
    let mut signer = vec!["--external-signer".to_owned(), example("signer.sh")];
    for name in ["signing.pem", "signing.key"] {
        signer.extend(["--external-signer-arg".to_owned(), file(name)]);
    }
    let start = |words: &[&str], name: &str| {
        let listen = free_address();
        let (chain, mut all) = (file("chain.pem"), words.to_vec());
        all.extend(["--name", name, "--listen-addr", &listen, "--etcd-addr", "127.0.0.1:0"]);
        all.extend(signer.iter().map(String::as_str));
        if words[0] == "init" {
            all.extend(["--ca-cert", &chain]);
        }
        Member::start(&all, &folder.path().join(name)).unwrap_or_else(|ended| panic!("{ended:?}"))
    };
    let mut one = start(&["init"], "one");
    let token = one.token();
    let mut two = start(&["join", "--token", &token, &one.addr], "two");
    until("both vote", || (voters(&one) == 2).then_some(()));
    two.running.kill();
    one.running.kill();
    let dir = one.data_dir.clone();
    recover(&dir, &["--yes"]).refused(1, &["--external-signer"]);
    assert_eq!(status(&recover(&dir, &["--dry-run"]).json()), "possible", "nothing was changed");
    let mut words = vec!["--yes"];
    words.extend(signer.iter().map(String::as_str));
    let done = recover(&dir, &words).json();
    assert_eq!(Member::again(&dir).id, done["new"]["id"].as_str().unwrap());
}
