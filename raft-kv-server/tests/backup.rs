//! Backups by the real binary: made while members serve, looked through, made another cluster; and processes
//! killed in the middle of each.

mod process;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use process::{DEADLINE, Ended, Member, Running, command, free_address, metrics_for, raft_kv, until};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A key for backups, in `folder`.
fn key_in(folder: &Path) -> PathBuf {
    let key = folder.join("backup.key");
    raft_kv(&["backup", "key", text(&key)]).done();
    key
}

fn verify(file: &Path, more: &[&str]) -> Ended {
    raft_kv(&[&["backup", "verify", text(file), "--json"], more].concat())
}

fn restore_words<'a>(file: &'a Path, dir: &'a Path, listen: &'a str) -> Vec<&'a str> {
    let place = ["--name", "new", "--listen-addr", listen, "--etcd-addr", "127.0.0.1:0", "--json"];
    [&["backup", "restore", text(file), "--data-dir", text(dir)], &place[..]].concat()
}

fn value(member: &Member, key: &str) -> String {
    member.ask(&["get", key]).json()["kvs"][0]["value"].as_str().unwrap().to_owned()
}

/// A store with some text that can't be compressed.
fn filled(member: &Member, many: usize) {
    for number in 0..many {
        let letter = |at: u32| {
            let mixed = at.wrapping_add(number as u32 * 100_000).wrapping_mul(2_654_435_761);
            char::from(b'0' + ((mixed ^ mixed >> 15).wrapping_mul(2_246_822_519) >> 26) as u8)
        };
        let noise: String = (0..100_000u32).map(letter).collect();
        member.ask(&["put", &format!("noise/{number}"), &noise]).done();
    }
}

#[test]
fn a_cluster_is_lost_and_comes_back_from_its_backup() {
    let folder = tempfile::tempdir().unwrap();
    let (file, key) = (folder.path().join("nightly"), key_in(folder.path()));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&key).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    raft_kv(&["backup", "key", text(&key)]).refused(1, &["exists"]);
    let mut first = Member::first(folder.path());
    let mut second = first.joined_by("two", folder.path());
    for (key, value) in [("a", "1"), ("b", "2")] {
        first.ask(&["put", key, value]).done();
    }
    let certs = folder.path().join("certs");
    first.ask(&["cert", "issue", "kept", "--out", text(&certs)]).done();
    let old_token = first.token();
    // From any member.
    let made = second.ask(&["backup", "create", text(&file), "--key-file", text(&key)]).json();
    assert_eq!(
        (&made["encrypted"], &made["keys"], &made["cluster"]),
        (&true.into(), &true.into(), &first.cluster.clone().into())
    );
    let revision = made["revision"].as_i64().unwrap();
    assert_eq!(made["member"], second.id.clone());
    first.ask(&["backup", "create", text(&file)]).refused(1, &["--force"]);
    first.ask(&["put", "after", "it"]).done();
    let mut checked = verify(&file, &["--key-file", text(&key)]).json();
    checked["member"] = made["member"].clone();
    assert_eq!(checked, made);
    verify(&file, &[]).refused(1, &["encrypted", "key"]);
    let other = folder.path().join("other.key");
    raft_kv(&["backup", "key", text(&other)]).done();
    verify(&file, &["--key-file", text(&other)]).refused(1, &["another key"]);
    verify(&key, &[]).refused(1, &["backup", "raft-kv"]);
    verify(&folder.path().join("none"), &[]).refused(1, &["can't be opened"]);

    // All members are lost.
    first.running.kill();
    second.running.kill();
    let (dir, listen) = (folder.path().join("new"), free_address());
    let mut words = restore_words(&file, &dir, &listen);
    words.extend(["--key-file", text(&key)]);
    let restored = raft_kv(&words).json();
    assert_eq!(
        (&restored["kept_root"], &restored["revision"]),
        (&true.into(), &(revision + 1_000_000_000).into())
    );
    raft_kv(&words).refused(1, &["holds member"]);
    let new = Member::again(&dir);
    assert_eq!(
        (new.id.clone(), new.cluster.clone()),
        (restored["member"].as_str().unwrap().into(), restored["cluster"].as_str().unwrap().into())
    );
    assert_ne!(new.cluster, first.cluster);
    assert_eq!((value(&new, "a"), value(&new, "b")), ("1".into(), "2".into()));
    new.ask(&["get", "after"]).refused(6, &[]);
    let put = new.ask(&["put", "after", "that"]).json();
    assert_eq!(put["revision"].as_i64().unwrap(), revision + 1_000_000_001);
    // A client of before, with the files that it had.
    let reach = ["--endpoints", &new.addr, "--cert-dir", text(&certs), "--json"];
    let found = raft_kv(&[&["get", "a"][..], &reach].concat()).json();
    assert_eq!(found["kvs"][0]["value"], "1");
    let old = raft_kv(&[&["get", "a", "--rev", "2"][..], &reach].concat());
    old.refused(1, &["compacted"]);
    // At the etcd door too, which lets no member of the old cluster in.
    let door = new.etcd_url.strip_prefix("https://").unwrap();
    let kept = raft_kv::net::read_credentials_in(&certs).unwrap();
    assert!(metrics_for(&kept, door).contains("200 OK"));
    let old_member = raft_kv::client::credentials_of(&first.data_dir).unwrap().0;
    assert!(!metrics_for(&old_member, door).contains("200 OK"));
    // Others join with a new token; the old one and the old members are nobody here.
    let joining = free_address();
    let late = folder.path().join("late");
    let join = [
        "join",
        "--name",
        "late",
        "--listen-addr",
        &joining,
        "--etcd-addr",
        "off",
        "--data-dir",
        text(&late),
    ];
    raft_kv(&[&join[..], &["--token", &old_token, &new.addr]].concat()).refused(1, &[]);
    let third = new.joined_by("three", folder.path());
    until("it has the state", || (third.ask(&["get", "after"]).code == Some(0)).then_some(()));
    let members = new.ask(&["member", "ls"]).json();
    assert_eq!(members["members"].as_array().unwrap().len(), 2, "{members}");
}

#[test]
fn a_mistake_is_gone_back_before_with_the_changes_since_a_backup() {
    let folder = tempfile::tempdir().unwrap();
    let first = Member::first(folder.path());
    let [full, one, two] = ["full", "part-1", "part-2"].map(|name| folder.path().join(name));
    first.ask(&["put", "a", "1"]).done();
    first.ask(&["backup", "create", text(&full)]).done();
    first.ask(&["put", "a", "2"]).done();
    let good = first.ask(&["put", "b", "2"]).json()["revision"].as_i64().unwrap();
    first.ask(&["backup", "create", text(&one), "--since", text(&full)]).done();
    first.ask(&["del", "a"]).done();
    let made = first.ask(&["backup", "create", text(&two), "--since", text(&one)]).json();
    assert_eq!((&made["since"], &made["revision"]), (&good.into(), &(good + 1).into()));
    assert_eq!(verify(&two, &[]).json(), made);
    let then = ["--then", text(&one), "--then", text(&two)];
    let restored = |name: &str, more: &[&str]| {
        let (dir, listen) = (folder.path().join(name), free_address());
        let words = [&restore_words(&full, &dir, &listen)[..], &then, more].concat();
        (raft_kv(&words), dir)
    };
    let (ended, dir) = restored("before", &["--to-revision", &good.to_string()]);
    assert_eq!(ended.json()["from_revision"], good);
    let new = Member::again(&dir);
    assert_eq!((value(&new, "a"), value(&new, "b")), ("2".into(), "2".into()));
    let (ended, dir) = restored("all", &["--to", "2999-01-01"]);
    assert_eq!(ended.json()["from_revision"], good + 1);
    Member::again(&dir).ask(&["get", "a"]).refused(6, &[]);
    restored("early", &["--to", "1999-01-01T10:00Z"]).0.refused(1, &["newer than"]);
    restored("late", &["--to-revision", "999"]).0.refused(1, &["not to 999"]);
    restored("when", &["--to", "tomorrow"]).0.refused(2, &["2026-11-22T10:00Z"]);
}

#[test]
fn a_backup_without_a_key_has_no_secret_and_brings_a_new_root() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plain");
    let first = Member::first(folder.path());
    first.ask(&["put", "a", "1"]).done();
    let certs = folder.path().join("certs");
    first.ask(&["cert", "issue", "client", "--out", text(&certs)]).done();
    let reach = ["--endpoints", &first.addr, "--cert-dir", text(&certs)];
    // A client makes it from afar.
    raft_kv(&[&["backup", "create", text(&file)][..], &reach].concat()).done();
    let made = verify(&file, &[]).json();
    assert_eq!((&made["encrypted"], &made["keys"]), (&false.into(), &false.into()));
    let key = key_in(folder.path());
    let secret = folder.path().join("secret");
    raft_kv(&[&["backup", "create", text(&secret), "--key-file", text(&key)][..], &reach].concat())
        .refused(1, &["client"]);
    assert!(!secret.exists());
    let (dir, listen) = (folder.path().join("new"), free_address());
    let people: Vec<&str> =
        restore_words(&file, &dir, &listen).into_iter().filter(|word| *word != "--json").collect();
    let said = raft_kv(&people);
    said.done();
    for part in ["the root and the join tokens are new", "raft-kv run --data-dir"] {
        assert!(said.stdout.contains(part), "{said:?}");
    }
    let new = Member::again(&dir);
    assert_eq!(value(&new, "a"), "1");
    let reach = ["--endpoints", &new.addr, "--cert-dir", text(&certs)];
    raft_kv(&[&["get", "a"][..], &reach].concat()).refused(1, &["root"]);
}

#[test]
fn damage_is_found_and_never_restored() {
    let folder = tempfile::tempdir().unwrap();
    let first = Member::first(folder.path());
    filled(&first, 4);
    let key = key_in(folder.path());
    let bent = folder.path().join("bent");
    for more in [&[][..], &["--key-file", text(&key)]] {
        let file = folder.path().join("backup");
        first.ask(&[&["backup", "create", text(&file), "--force"], more].concat()).done();
        let whole = fs::read(&file).unwrap();
        for at in [60, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            for damaged in [&bytes[..], &whole[..at]] {
                fs::write(&bent, damaged).unwrap();
                verify(&bent, more).refused(5, &["damaged at byte"]);
                let (dir, listen) = (folder.path().join("new"), free_address());
                let words = [&restore_words(&bent, &dir, &listen)[..], more].concat();
                raft_kv(&words).refused(5, &["damaged at byte"]);
                raft_kv(&["run", "--data-dir", text(&dir)]).refused(1, &["holds no member"]);
            }
        }
        // Whole, with something behind it.
        fs::write(&bent, [&whole[..], &[0; 512]].concat()).unwrap();
        verify(&bent, more).refused(5, &["behind its end"]);
    }
}

/// Starts a command and kills it as soon as `path` is there, or it has ended by itself.
fn killed_at(words: &[&str], path: &Path) {
    killed_when(words, path, || path.exists());
}

fn killed_when(words: &[&str], path: &Path, now: impl Fn() -> bool) {
    let mut running = Running::start(command(words));
    let end = Instant::now() + DEADLINE;
    while !now() && running.runs() {
        assert!(Instant::now() < end, "{} never comes", path.display());
        thread::sleep(Duration::from_micros(200));
    }
    if running.runs() {
        running.kill();
    }
}

#[test]
fn a_killed_create_leaves_nothing_that_looks_whole() {
    let folder = tempfile::tempdir().unwrap();
    let first = Member::first(folder.path());
    filled(&first, 8);
    let (file, part) = (folder.path().join("backup"), folder.path().join("backup.part"));
    let words = ["backup", "create", text(&file), "--data-dir", text(&first.data_dir)];
    // Before anything has come, and in the middle.
    for bytes in [0, 1, 0, 300_000] {
        let _ = fs::remove_file(&part);
        killed_when(&words, &part, || fs::metadata(&part).is_ok_and(|meta| meta.len() >= bytes));
        if file.exists() {
            verify(&file, &[]).done();
            fs::remove_file(&file).unwrap();
        } else {
            // Whole only where it was about to get its name.
            let code = verify(&part, &[]).code.unwrap();
            assert!([0, 1, 5].contains(&code), "{code}");
        }
    }
    // What is left is in nobody's way, on either side.
    until("the member has turns again", || (raft_kv(&words).code == Some(0)).then_some(()));
    verify(&file, &[]).done();
    assert!(!part.exists());
}

#[test]
fn a_killed_restore_says_what_to_do_and_is_done_again() {
    let folder = tempfile::tempdir().unwrap();
    let first = Member::first(folder.path());
    filled(&first, 3);
    let (file, key) = (folder.path().join("backup"), key_in(folder.path()));
    first.ask(&["backup", "create", text(&file), "--key-file", text(&key)]).done();
    let points =
        ["restoring", "state", "state/db-00000001/CURRENT", "log", "log/marker", "keyring", "cert", "node"];
    for point in points {
        let (dir, listen) = (folder.path().join("new"), free_address());
        let mut words = restore_words(&file, &dir, &listen);
        words.extend(["--key-file", text(&key)]);
        killed_at(&words, &dir.join(point));
        if !dir.join("node").exists() {
            let ended = raft_kv(&["run", "--data-dir", text(&dir)]);
            ended.refused(1, &["cut short", "raft-kv backup restore"]);
            raft_kv(&words).done();
        }
        let new = Member::again(&dir);
        assert_eq!(new.revision(), 1_000_000_004, "killed at {point}");
        assert!(!dir.join("restoring").exists());
        drop(new);
        fs::remove_dir_all(&dir).unwrap();
    }
}
