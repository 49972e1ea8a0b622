//! What lies on members' disks: no secret in clear, whoever looks; and the lock on it: members that
//! wait for their key, other keys, keys replaced while a member is away.

mod process;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use process::{Ended, Member, Running, command, free_address, raft_kv_reading, run, until};
use raft_kv::client::{Handle, credentials_unlocked, hash_password};
use raft_kv::machine::{Read, Store, Table, auth, read};
use raft_kv::pki::{Keyring, UnlockKey};
use raft_kv::storage::state::{State, StateOptions};
use raft_kv::types::{AuthChange, Sealed};
use serde_json::Value;

const KEY: &str = "RAFT_KV_UNLOCK_KEY";

/// A client command with the member's own certificate, whose key may be locked.
fn ask(member: &Member, unlock: &str, words: &[&str]) -> Ended {
    until("it is done, or refused", || {
        let mut command = command(words);
        command.arg("--json").arg("--data-dir").arg(&member.data_dir).env(KEY, unlock);
        let ended = run(command, &[]);
        // Not done, as it says, is tried again: the machine may be busy.
        (ended.code != Some(3)).then_some(ended)
    })
}

fn word(answer: &Value, name: &str) -> String {
    answer[name].as_str().unwrap_or_else(|| panic!("no {name} in {answer}")).to_owned()
}

/// Runs the member in `data_dir` with `key`.
fn start(data_dir: &Path, key: &str) -> Result<Member, Ended> {
    let file = data_dir.with_extension("key");
    fs::write(&file, key).unwrap();
    Member::start(&["run", "--unlock-key-file", file.to_str().unwrap()], data_dir)
}

fn again(data_dir: &Path, key: &str) -> Member {
    start(data_dir, key).unwrap_or_else(|ended| panic!("{ended:?}"))
}

fn stop(member: Member) -> PathBuf {
    member.running.terminate();
    let data_dir = member.data_dir.clone();
    let ended = member.running.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    data_dir
}

fn voters(member: &Member) -> Option<()> {
    let answer: Value = serde_json::from_str(&member.ask(&["member", "ls"]).stdout).ok()?;
    let voter = |member: &&Value| member["role"] == "voter";
    (answer["members"].as_array()?.iter().filter(voter).count() == 3).then_some(())
}

fn three(folder: &Path) -> Vec<Member> {
    let one = Member::first(folder);
    let (two, three) = (one.joined_by("two", folder), one.joined_by("three", folder));
    until("three voters", || voters(&one));
    vec![one, two, three]
}

/// A handle with the certificate of the member in `data_dir`.
fn with_handle<R>(data_dir: &Path, key: &UnlockKey, ask: impl AsyncFnOnce(Handle) -> R) -> R {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (credentials, addr) = credentials_unlocked(data_dir, Some(key)).unwrap();
        ask(Handle::connect(&[addr], credentials).await.unwrap()).await
    })
}

/// Every file below `folder`.
fn files(folder: &Path, all: &mut Vec<PathBuf>) {
    // Of a member that runs, folders come and go.
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() { files(&path, all) } else { all.push(path) }
    }
}

/// What is in a file, without its empty pages: files of the log are mostly those.
fn content(file: &Path) -> Vec<u8> {
    // It may have gone since it was listed.
    let bytes = fs::read(file).unwrap_or_default();
    bytes.chunks(4096).filter(|page| **page != [0; 4096][..page.len()]).flatten().copied().collect()
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    assert!(part.len() >= 16, "short parts are found by chance");
    bytes.windows(part.len()).any(|window| window == part)
}

/// Whether a file in `dir` has something sealed with a data key before `newest`.
fn has_old(dir: &Path, newest: u64) -> bool {
    let mut all = Vec::new();
    files(dir, &mut all);
    all.iter().any(|file| {
        let bytes = content(file);
        (1..newest).any(|key| {
            let head = Sealed::head(key);
            let begins = |at: &usize| bytes[*at..].starts_with(&head);
            bytes
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte == head[0])
                .map(|(at, _)| at)
                .any(|at| begins(&at))
        })
    })
}

/// All that the state in `data_dir` says, behind compression.
fn state(data_dir: &Path) -> State {
    State::open(&data_dir.join("state"), StateOptions::default()).unwrap()
}

/// Every secret in the state, opened, by what it is.
fn opened(view: &dyn Read, ring: &Keyring) -> Vec<(String, Vec<u8>)> {
    let open = |what: &str, sealed: &Sealed| (what.to_owned(), ring.open(what, sealed).unwrap());
    let mut all = Vec::new();
    for root in read::trusted(view).unwrap().roots {
        all.push(open("ca key", &root.key.unwrap()));
    }
    for (_, token) in read::tokens(view).unwrap() {
        all.push(open("token secret", &token.secret));
    }
    all.push(open("token key", &auth::status(view).unwrap().token_key));
    let user = auth::user(view, "root").unwrap().unwrap();
    all.push(open("password of root", &user.password.unwrap()));
    all
}

#[test]
fn no_secret_lies_in_clear_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let members = three(folder.path());
    let plain = "this is no secret: it shows that the search finds what is there";
    members[0].ask(&["put", "k", plain]).json();
    let first_tokens: Vec<String> =
        ["manager", "worker"].map(|role| word(&members[1].ask(&["join-token", role]).json(), "token")).into();
    let hash = hash_password("a password").unwrap();
    let any = UnlockKey::generate();
    with_handle(&members[2].data_dir, &any, async |handle| {
        let add = |name: &str| AuthChange::UserAdd { name: name.into(), password: Some(hash.clone().into()) };
        let grant = AuthChange::UserGrant { name: "root".into(), role: "root".into() };
        let enable = AuthChange::Enable { token_key: Sealed::default() };
        for change in [add("root"), add("alice"), grant, enable] {
            handle.auth_change(change).await.unwrap();
        }
        handle.authenticate("root", "a password").await.unwrap();
        handle.authenticate("root", "another").await.unwrap_err();
    });
    let before = with_handle(&members[0].data_dir, &any, async |handle| keys(&handle).await);
    let locked = members[1].ask(&["autolock", "on"]).json();
    assert_eq!(
        (&locked["autolock"], &locked["settled"], &locked["data_key"]),
        (&true.into(), &true.into(), &2.into())
    );
    let first_key = word(&locked, "unlock_key");
    let rotated = until("every member is locked", || {
        let ended = ask(&members[0], &first_key, &["unlock-key", "rotate"]);
        (ended.code == Some(0)).then(|| ended.json())
    });
    assert_eq!((&rotated["settled"], &rotated["data_key"]), (&true.into(), &3.into()));
    let key = word(&rotated, "unlock_key");
    assert_ne!(key, first_key);
    let unlock: UnlockKey = key.parse().unwrap();
    // Every member has carried it out: its certificate's key opens with the newest unlock key alone.
    for member in &members {
        until("locked with the newest key", || credentials_unlocked(&member.data_dir, Some(&unlock)).ok());
    }
    let after = with_handle(&members[2].data_dir, &unlock, async |handle| {
        handle.authenticate("root", "a password").await.unwrap();
        keys(&handle).await
    });
    let node_keys: Vec<Vec<u8>> = members
        .iter()
        .map(|member| credentials_unlocked(&member.data_dir, Some(&unlock)).unwrap().0.key)
        .collect();
    assert_eq!(word(&ask(&members[1], &key, &["join-token", "manager"]).json(), "token"), first_tokens[0]);
    // What was sealed with the keys before is gone from every file, log and snapshots included.
    let all: Vec<PathBuf> = members.iter().map(|member| member.data_dir.clone()).collect();
    until("nothing is left of the keys before", || all.iter().all(|dir| !has_old(dir, 3)).then_some(()));
    // The log forgot the first one with the keys.
    ask(&members[0], &key, &["put", "k", plain]).json();
    let dirs: Vec<PathBuf> = members.into_iter().map(stop).collect();
    assert!(dirs.iter().all(|dir| !has_old(dir, 3)));

    let ring = Keyring::from_keys(after.clone(), 3).unwrap();
    let mut secrets: Vec<(String, Vec<u8>)> = state(&dirs[0]).view(|view| opened(view, &ring));
    assert_eq!(secrets.len(), 5);
    let scalar = scalar_of(&secrets[0].1);
    secrets.push(("the root's scalar".into(), scalar));
    secrets.push(("a password's hash".into(), hash.into_bytes()));
    for token in &first_tokens {
        secrets.push(("a token".into(), token.rsplit('-').next().unwrap().as_bytes()[..32].to_vec()));
    }
    for text in [&first_key, &key] {
        let parsed: UnlockKey = text.parse().unwrap();
        secrets.push(("an unlock key".into(), parsed.as_bytes().to_vec()));
        secrets.push(("an unlock key's text".into(), text.as_bytes()[16..].to_vec()));
    }
    secrets.extend(before.iter().chain(&after).map(|key| (format!("data key {}", key.id), key.key.to_vec())));
    secrets.extend(node_keys.into_iter().map(|key| ("a node's key".to_owned(), scalar_of(&key))));

    let mut found = false;
    for dir in &dirs {
        let mut all = Vec::new();
        files(dir, &mut all);
        assert!(all.len() > 10, "log, state and certificates are there");
        for file in &all {
            let bytes = content(file);
            found |= has(&bytes, plain.as_bytes());
            for (what, secret) in &secrets {
                assert!(!has(&bytes, secret), "{what} lies in {}", file.display());
            }
        }
        state(dir).view(|view| {
            for pair in Table::ALL.into_iter().flat_map(|table| view.scan(table, b"", None)) {
                let (_, value) = pair.unwrap();
                for (what, secret) in &secrets {
                    assert!(!has(&value, secret), "{what} lies in the state of {}", dir.display());
                }
            }
        });
    }
    assert!(found, "the search finds what is there");
}

/// The private scalar in a P-256 key in PKCS #8: 32 bytes behind the marks of an EC key.
fn scalar_of(der: &[u8]) -> Vec<u8> {
    let at = der.windows(5).position(|part| part == [0x02, 0x01, 0x01, 0x04, 0x20]).expect("an EC key");
    der[at + 5..at + 37].to_vec()
}

async fn keys(handle: &Handle) -> Vec<raft_kv::types::DataKey> {
    use raft_kv::client::api::{Call, Reply};
    use raft_kv::types::{TrustCall, TrustReply};
    match handle.call(Call::Trust(TrustCall::Keys)).await.unwrap() {
        (_, Reply::Trust(TrustReply::Keys(keys))) => keys.keys,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_locked_member_waits_for_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let one = Member::first(folder.path());
    one.ask(&["put", "k", "v"]).json();
    assert_eq!(one.ask(&["autolock"]).json()["autolock"], false);
    one.ask(&["unlock-key", "rotate"]).refused(1, &["autolock is off", "autolock on"]);
    assert_eq!(one.ask(&["unlock-key", "show"]).json()["unlock_key"], Value::Null);
    let key = word(&one.ask(&["autolock", "on"]).json(), "unlock_key");
    // Without the key not even the certificate can be used.
    until("it is locked", || one.ask(&["autolock"]).stderr.contains("is locked").then_some(()));
    one.ask(&["autolock"]).refused(1, &["is locked", KEY]);
    assert_eq!(word(&ask(&one, &key, &["autolock", "on"]).json(), "unlock_key"), key, "it stays");
    assert_eq!(word(&ask(&one, &key, &["unlock-key", "show"]).json(), "unlock_key"), key);
    let data_dir = stop(one);

    let mut words = command(&["run", "--json", "--data-dir"]);
    words.arg(&data_dir);
    let mut waiting = Running::start(words);
    assert_eq!(waiting.next_json().unwrap()["event"], "locked");
    let unlock = ["unlock", "--json", "--data-dir", data_dir.to_str().unwrap()];
    let other = UnlockKey::generate().to_text();
    until("it listens", || {
        let ended = raft_kv_reading(&unlock, other.as_bytes());
        (!ended.stderr.contains("no member waits")).then_some(ended)
    })
    .refused(1, &["not its unlock key"]);
    raft_kv_reading(&unlock, &key.as_bytes()[..40]).refused(1, &["mistyped"]);
    raft_kv_reading(&unlock, b"").refused(1, &["RAFTKV-UNLOCK-1-"]);
    assert!(waiting.runs());
    assert_eq!(raft_kv_reading(&unlock, key.as_bytes()).json()["unlocked"], true);
    assert_eq!(waiting.next_json().unwrap()["event"], "serving");
    raft_kv_reading(&unlock, key.as_bytes()).refused(1, &["no member waits"]);
    waiting.terminate();
    assert_eq!(waiting.ended().code, Some(0));

    // A key that is given at once, and another one.
    start(&data_dir, &other).map(|_| ()).unwrap_err().refused(1, &["is locked", "not its unlock key"]);
    let one = again(&data_dir, &key);
    assert_eq!(ask(&one, &key, &["get", "k"]).json()["kvs"][0]["value"], "v");
    assert_eq!(ask(&one, &key, &["autolock", "off"]).json()["autolock"], false);
    until("it is unlocked", || (one.ask(&["get", "k"]).code == Some(0)).then_some(()));
    let data_dir = stop(one);
    let one = Member::again(&data_dir);
    assert_eq!(one.ask(&["get", "k"]).json()["kvs"][0]["value"], "v");
}

#[test]
fn a_member_that_was_away_catches_up_with_keys() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = three(folder.path());
    let away = stop(members.pop().unwrap());
    let first = word(&members[0].ask(&["autolock", "on"]).json(), "unlock_key");
    let settled = || {
        let status = ask(&members[0], &first, &["autolock"]);
        (status.code == Some(0) && status.json()["settled"] == true).then_some(())
    };
    until("settled without who is away", settled);
    // It starts once more as it was stopped, and locks itself.
    let third = Member::again(&away);
    let unlock: UnlockKey = first.parse().unwrap();
    until("the third is locked", || {
        let pem = away.join("cert").join("key.pem");
        (!pem.exists() && credentials_unlocked(&away, Some(&unlock)).is_ok()).then_some(())
    });
    assert_eq!(
        word(&ask(&third, &first, &["join-token", "manager"]).json(), "token"),
        word(&ask(&members[0], &first, &["join-token", "manager"]).json(), "token")
    );
    // Away again while the unlock key changes: its old key opens it once more.
    let away = stop(third);
    let second = word(&ask(&members[1], &first, &["unlock-key", "rotate"]).json(), "unlock_key");
    let newest: UnlockKey = second.parse().unwrap();
    for member in &members {
        until("locked with the newest key", || credentials_unlocked(&member.data_dir, Some(&newest)).ok());
    }
    until("settled", || {
        let status = ask(&members[0], &second, &["autolock"]);
        (status.code == Some(0) && status.json()["settled"] == true).then_some(())
    });
    start(&away, &second).map(|_| ()).unwrap_err().refused(1, &["not its unlock key"]);
    let third = again(&away, &first);
    until("locked with the newest key", || credentials_unlocked(&away, Some(&newest)).ok());
    // With another member it is a quorum that can open everything.
    let mut members = members.into_iter();
    let gone = members.next().unwrap();
    let second_member = members.next().unwrap();
    let gone = stop(gone);
    let token = until("a quorum of two", || {
        let ended = ask(&third, &second, &["join-token", "worker"]);
        (ended.code == Some(0)).then(|| word(&ended.json(), "token"))
    });
    assert!(token.starts_with("RAFTKV-1-"));
    // Who joins now is locked from the start.
    let dir = folder.path().join("four");
    let manager = word(&ask(&third, &second, &["join-token", "manager"]).json(), "token");
    let first_member = again(&gone, &second);
    let listen = free_address();
    let words = [
        "join",
        "--name",
        "four",
        "--listen-addr",
        &listen,
        "--etcd-addr",
        "off",
        "--token",
        &manager,
        &second_member.addr,
    ];
    let four = Member::start(&words, &dir).unwrap_or_else(|ended| panic!("{ended:?}"));
    assert!(!dir.join("cert").join("key.pem").exists());
    let four = stop(four);
    assert!(raft_kv::client::is_locked(&four).unwrap());
    again(&four, &second);
    drop(first_member);
}

/// Members that are killed at any moment while keys change: every secret can be opened afterwards, by
/// all of them, and each starts with the key before or the key after.
#[test]
fn members_killed_while_keys_change_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = three(folder.path());
    let any = UnlockKey::generate();
    let hash = hash_password("a password").unwrap();
    let users = raft_kv::limits::MAX_RESEALED_PER_STEP + 20;
    with_handle(&members[0].data_dir, &any, async |handle| {
        for number in 0..users {
            let name = format!("user{number}");
            let password = Some(hash.clone().into());
            handle.auth_change(AuthChange::UserAdd { name, password }).await.unwrap();
        }
        let root = AuthChange::UserAdd { name: "root".into(), password: Some(hash.clone().into()) };
        let grant = AuthChange::UserGrant { name: "root".into(), role: "root".into() };
        for change in [root, grant, AuthChange::Enable { token_key: Sealed::default() }] {
            handle.auth_change(change).await.unwrap();
        }
    });
    let token = word(&ask(&members[0], "", &["join-token", "manager"]).json(), "token");
    let mut keys = vec![word(&ask(&members[0], "", &["autolock", "on"]).json(), "unlock_key")];
    for round in 0..6 {
        let unlock: UnlockKey = keys.last().unwrap().parse().unwrap();
        for member in &members {
            until("locked with the newest key", || {
                credentials_unlocked(&member.data_dir, Some(&unlock)).ok()
            });
        }
        // One that stays is asked, another is killed a step later each time.
        let (asked, killed) = (round % 3, (round + 1 + round / 3) % 3);
        let mut rotate = command(&["unlock-key", "rotate", "--json", "--data-dir"]);
        rotate.arg(&members[asked].data_dir).env(KEY, keys.last().unwrap());
        let mut rotating = Running::start(rotate);
        // It is locked anew, has the next key, seals with it, gives the old one up: killed behind each.
        let keyring = || fs::read(members[killed].data_dir.join("keyring")).ok();
        let (mut seen, mut changes) = (keyring(), 0);
        while changes < round % 5 && rotating.runs() {
            let now = keyring();
            changes += usize::from(now.is_some() && now != seen);
            seen = now.or(seen);
            std::thread::yield_now();
        }
        members[killed].running.kill();
        let rotated = rotating.next_json();
        assert!(rotating.ended().code.is_some());
        let shown = rotated.map(|answer| word(&answer, "unlock_key"));
        // Where the answer was lost, somebody who stayed says what the key is.
        let stayed = &members[asked];
        let newest = shown.unwrap_or_else(|| {
            let known = keys.last().unwrap().clone();
            until("the key", || {
                let ended = ask(stayed, &known, &["unlock-key", "show"]);
                (ended.code == Some(0)).then(|| word(&ended.json(), "unlock_key"))
            })
        });
        let dir = members[killed].data_dir.clone();
        let back = match start(&dir, &newest) {
            Ok(back) => back,
            Err(_) => again(&dir, keys.last().unwrap()),
        };
        members[killed] = back;
        keys.push(newest);
        let newest = keys.last().unwrap();
        until("settled", || {
            let ended = ask(&members[killed], newest, &["autolock"]);
            (ended.code == Some(0) && ended.json()["settled"] == true).then_some(())
        });
    }
    let newest = keys.last().unwrap();
    let unlock: UnlockKey = newest.parse().unwrap();
    for member in &mut members {
        assert!(member.running.runs(), "it was started again and goes on");
        assert_eq!(word(&ask(member, newest, &["join-token", "manager"]).json(), "token"), token);
        let last = format!("user{}", users - 1);
        with_handle(&member.data_dir, &unlock, async |handle| {
            for name in ["root", "user0", &last] {
                handle.authenticate(name, "a password").await.unwrap();
            }
        });
    }
}

#[test]
fn files_that_others_may_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = stop(Member::first(folder.path()));
    for (name, good) in [
        ("node", 0o600),
        ("keyring", 0o600),
        ("cert", 0o700),
        ("cert/key.pem", 0o600),
        ("state", 0o700),
        (".", 0o700),
    ] {
        let path = data_dir.join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(good | 0o044)).unwrap();
        let ended = Member::start(&["run"], &data_dir).map(|_| ()).unwrap_err();
        ended.refused(1, &["others than its owner", &format!("chmod {good:o} {}", data_dir.display()), name]);
        fs::set_permissions(&path, fs::Permissions::from_mode(good)).unwrap();
    }
    let file = data_dir.join("keyring");
    let good = fs::read(&file).unwrap();
    // With its second copy it is made good.
    fs::write(&file, b"").unwrap();
    stop(Member::again(&data_dir));
    assert_eq!(fs::read(&file).unwrap(), good);
    fs::remove_file(data_dir.join("spare")).unwrap();
    for bad in [&good[..good.len() - 1], &good[..3], b""] {
        fs::write(&file, bad).unwrap();
        Member::start(&["run"], &data_dir).map(|_| ()).unwrap_err().refused(1, &["keyring", "damaged"]);
    }
    let mut bent = good.clone();
    *bent.last_mut().unwrap() ^= 1;
    fs::write(&file, &bent).unwrap();
    Member::start(&["run"], &data_dir).map(|_| ()).unwrap_err().refused(1, &["keyring", "damaged"]);
    fs::write(&file, &good).unwrap();
    Member::again(&data_dir);
}
