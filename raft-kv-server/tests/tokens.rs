//! Join tokens with real processes: made, listed, used up, rotated; clients that enrol; members that come
//! back; and that whoever guesses waits. No token is in anything but the answer that was asked for it.

mod process;

use std::path::{Path, PathBuf};

use process::{Ended, Member, free_address, raft_kv, until};
use raft_kv::client::credentials_of;
use serde_json::Value;

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}")).to_owned()
}

/// Runs a printed command line as a shell does, with this binary and other paths.
fn paste(command: &str, replaced: &[(&str, &str)]) -> Vec<String> {
    let mut words = Vec::new();
    for word in command.split(' ').skip(1) {
        let word = word.trim_matches('"').replace("$(hostname)", "host");
        let other = replaced.iter().find(|(from, _)| *from == word).map(|(_, to)| (*to).to_owned());
        words.push(other.unwrap_or(word));
    }
    words
}

fn enrol(member: &Member, token: &str, name: &str, out: &Path) -> Ended {
    let out = out.to_str().unwrap();
    let at = ["--endpoints", &member.addr, "--name", name, "--out", out, "--json"];
    raft_kv(&[&["enrol", "--token", token], &at[..]].concat())
}

fn join(member: &Member, token: &str, data_dir: &Path) -> Result<Member, Ended> {
    let listen = free_address();
    let words = ["join", "--name", "two", "--listen-addr", &listen, "--etcd-addr", "off", "--token", token];
    Member::start(&[&words[..], &[&member.addr]].concat(), data_dir)
}

/// A command with the three files in `folder`.
fn with_files(member: &Member, folder: &Path, words: &[&str]) -> Ended {
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (cacert, cert, key) = (file("cacert.pem"), file("cert.pem"), file("key.pem"));
    let at = ["--json", "--endpoints", &member.addr, "--cacert", &cacert, "--cert", &cert, "--key", &key];
    raft_kv(&[words, &at[..]].concat())
}

fn listed(member: &Member, id: &str) -> Option<Value> {
    let tokens = member.ask(&["token", "ls"]).json();
    tokens["tokens"].as_array().unwrap().iter().find(|token| token["id"] == id).cloned()
}

/// Ends a member and looks for tokens in all that it printed.
fn ended_without(member: Member, tokens: &[String]) {
    let page = member.metrics();
    let listed = member.ask(&["token", "ls"]).stdout;
    let nodes = member.ask(&["node", "ls"]).stdout;
    member.running.terminate();
    let ended = member.running.ended();
    assert!(!tokens.is_empty());
    for token in tokens {
        let secret = token.rsplit_once('-').unwrap().1;
        for (what, printed) in [
            ("log", &ended.stderr),
            ("output", &ended.stdout),
            ("metrics", &page),
            ("ls", &listed),
            ("nodes", &nodes),
        ] {
            assert!(!printed.contains(&secret[..20]), "a secret is in the {what}");
        }
    }
}

#[test]
fn each_command_does_what_it_says_and_its_line_can_be_pasted() {
    let folder = tempfile::tempdir().unwrap();
    let one = Member::first(folder.path());
    let mut seen = Vec::new();
    for (role, id) in [("manager", "default-manager"), ("worker", "default-worker")] {
        let token = listed(&one, id).unwrap();
        assert_eq!((token["role"].as_str(), token["expires"].is_null()), (Some(role), true), "{token}");
        let answer = one.ask(&["join-token", role]).json();
        assert_eq!((text(&answer, "id"), text(&answer, "role")), (id.to_owned(), role.to_owned()));
        seen.push(text(&answer, "token"));
        // For people it is the line and nothing else.
        let dir = one.data_dir.to_str().unwrap();
        let line = raft_kv(&["join-token", role, "--data-dir", dir]);
        assert_eq!(line.stdout.trim_end(), text(&answer, "command"));
    }
    let words = ["token", "create", "client", "--label", "build farm", "--expires", "2h", "--uses", "3"];
    let made = one.ask(&words).json();
    let id = text(&made, "id");
    seen.push(text(&made, "token"));
    let token = listed(&one, &id).unwrap();
    assert_eq!((&token["label"], &token["uses_left"]), (&"build farm".into(), &3.into()), "{token}");
    assert_eq!(token["expires"].as_i64().unwrap() - token["created"].as_i64().unwrap(), 7200);
    assert_eq!(text(&one.ask(&["join-token", &id]).json(), "token"), seen[2]);

    // The line for managers joins one, the line for clients enrols one.
    let two = folder.path().join("two");
    let listen = free_address();
    let line = text(&one.ask(&["join-token", "manager"]).json(), "command");
    let mut words = paste(&line, &[]);
    let at = words.iter().position(|word| word == "--data-dir").unwrap();
    words.drain(at..at + 2);
    words.extend(["--name", "two", "--listen-addr", &listen, "--etcd-addr", "off"].map(String::from));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let two = Member::start(&words, &two).unwrap_or_else(|ended| panic!("{ended:?}"));
    assert_eq!(two.cluster, one.cluster);
    let out = folder.path().join("client");
    let line = text(&one.ask(&["join-token", &id]).json(), "command");
    let words = paste(&line, &[("./raft-kv-cert", out.to_str().unwrap())]);
    assert_eq!(raft_kv(&words).code, Some(0), "{words:?}");
    with_files(&one, &out, &["put", "k", "v"]).json();
    assert_eq!(listed(&one, &id).unwrap()["uses_left"], 2);
    let node = one.ask(&["node", "inspect", "client-host"]).json();
    assert_eq!((text(&node, "role"), text(&node, "token")), ("client".into(), id.clone()));

    let rotated = one.ask(&["token", "rotate", &id]).json();
    assert_ne!(text(&rotated, "token"), seen[2]);
    seen.push(text(&rotated, "token"));
    assert_eq!(one.ask(&["token", "revoke", &id]).json()["revoked"], true);
    assert_eq!(listed(&one, &id), None);
    one.ask(&["token", "revoke", &id]).refused(6, &["token ls"]);
    one.ask(&["join-token", "nobody"]).refused(6, &["token ls"]);
    one.ask(&["token", "revoke", "worker"]).refused(1, &["token rotate"]);
    one.ask(&["token", "create", "client", "--label", "a\nb"]).refused(1, &["label"]);
    ended_without(one, &seen);
}

#[test]
fn a_token_that_is_wrong_in_any_way_lets_nobody_in() {
    let folder = tempfile::tempdir().unwrap();
    let one = Member::first(folder.path());
    let (two, out) = (folder.path().join("two"), folder.path().join("out"));
    let token = |words: &[&str]| text(&one.ask(words).json(), "token");
    let joined = |token: &str| match join(&one, token, &two) {
        Ok(member) => panic!("member {} joined", member.id),
        Err(ended) => ended,
    };
    let (manager, worker) = (token(&["join-token", "manager"]), token(&["join-token", "worker"]));
    joined(&worker).refused(1, &["for the role worker"]);
    enrol(&one, &manager, "c", &out).refused(1, &["raft-kv join"]);
    let client = token(&["token", "create", "client", "--uses", "1"]);
    joined(&client).refused(1, &["for the role client"]);
    for name in ["root", "", "a/b"] {
        enrol(&one, &client, name, &out).refused(1, &["name"]);
    }
    // None of that was a use.
    enrol(&one, &client, "c", &out).json();
    enrol(&one, &client, "d", &out).refused(1, &["as often as it may be"]);
    let short = token(&["token", "create", "worker", "--expires", "1s"]);
    let late = until("the token expires", || {
        let ended = enrol(&one, &short, "w", &folder.path().join("w"));
        (ended.code != Some(0)).then_some(ended)
    });
    late.refused(1, &["has expired"]);
    // A rotated one does not work from the next moment on; whoever has it learns nothing.
    let new = token(&["token", "rotate", "worker"]);
    enrol(&one, &worker, "w", &out).refused(1, &["does not know it"]);
    let files = folder.path().join("worker");
    enrol(&one, &new, "w", &files).json();
    let status = with_files(&one, &files, &["cert", "renew"]);
    assert_eq!(status.code, Some(0), "{status:?}");
    with_files(&one, &files, &["get", "k"]).refused(1, &["worker"]);
    let members = one.ask(&["member", "ls"]).json();
    assert_eq!(members["members"].as_array().unwrap().len(), 1, "nobody joined");
    ended_without(one, &[manager, worker, client, short, new]);
}

#[test]
fn whoever_guesses_waits_and_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let one = Member::first(folder.path());
    let out = folder.path().join("out");
    let old = text(&one.ask(&["join-token", "worker"]).json(), "token");
    let good = text(&one.ask(&["token", "rotate", "worker"]).json(), "token");
    let mut tries = 0;
    let waiting = until("it has to wait", || {
        tries += 1;
        let ended = enrol(&one, &old, "w", &out);
        (ended.code != Some(1)).then_some(ended)
    });
    assert!(tries > 5, "{tries}: {waiting:?}");
    waiting.refused(3, &["too many wrong tokens", "try again in"]);
    assert!(!out.join("key.pem").exists());
    let page = one.metrics();
    let count = |reason: &str| {
        let line = format!("raft_kv_join_failures_total{{reason=\"{reason}\"}} ");
        let found = page.lines().find_map(|found| found.strip_prefix(&line)).map(str::to_owned);
        found.unwrap_or_else(|| panic!("no {reason} in {page}")).parse::<u64>().unwrap()
    };
    assert_eq!(count("unknown"), tries - 1);
    assert_eq!((count("limited"), count("expired")), (1, 0));
    // It is forgiven with time.
    until("it is let in", || (enrol(&one, &good, "w", &out).code == Some(0)).then_some(()));
    ended_without(one, &[old, good]);
}

/// Three members whose certificates last `validity`, and the folder of the third.
fn three(folder: &Path, validity: &str) -> (Vec<Member>, PathBuf) {
    let start = |name: &str, more: &[&str]| {
        let listen = free_address();
        let place = ["--name", name, "--listen-addr", &listen, "--etcd-addr", "127.0.0.1:0"];
        let words = [more, &place[..], &["--cert-validity", validity]].concat();
        Member::start(&words, &folder.join(name)).unwrap_or_else(|ended| panic!("{ended:?}"))
    };
    let one = start("one", &["init"]);
    let (token, addr) = (one.token(), one.addr.clone());
    let two = start("two", &["join", "--token", &token, &addr]);
    let third = start("three", &["join", "--token", &token, &addr]);
    until("all vote", || {
        let members = one.ask(&["member", "ls"]).json();
        let voters = members["members"].as_array().unwrap().iter().filter(|it| it["role"] == "voter").count();
        (voters == 3).then_some(())
    });
    let dir = third.data_dir.clone();
    (vec![one, two, third], dir)
}

/// Brings a member back with a token.
fn back(dir: &Path, token: &str, more: &[&str]) -> Result<Member, Ended> {
    Member::start(&[&["run", "--token", token], more].concat(), dir)
}

fn certificate(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("cert").join("cert.pem")).unwrap()
}

#[test]
fn a_member_whose_certificate_ended_comes_back_with_its_id_and_data() {
    let folder = tempfile::tempdir().unwrap();
    let (mut members, dir) = three(folder.path(), "15s");
    members[0].ask(&["put", "before", "1"]).json();
    let mut third = members.pop().unwrap();
    until("it is there too", || {
        (third.ask(&["get", "before", "--serializable"]).json()["count"] == 1).then_some(())
    });
    third.running.kill();
    let ends = || {
        let (own, _) = credentials_of(&dir).unwrap();
        raft_kv::pki::validity_of(&own.chain[0]).unwrap().1
    };
    let ended = ends();
    until("its certificate ends", || (std::time::SystemTime::now() > ended).then_some(()));
    members[0].ask(&["put", "while", "2"]).json();
    let token = text(&members[0].ask(&["token", "create", "manager", "--uses", "1"]).json(), "token");
    let wrong = text(&members[0].ask(&["join-token", "worker"]).json(), "token");
    let before = certificate(&dir);
    back(&dir, &wrong, &[]).map(|member| member.id).unwrap_err().refused(1, &["for the role worker"]);
    assert_eq!(certificate(&dir), before, "a refusal changes nothing");
    let again = back(&dir, &token, &["--cert-validity", "1h"]).unwrap_or_else(|ended| panic!("{ended:?}"));
    assert_eq!(again.id, third.id);
    assert_eq!(again.ask(&["get", "before"]).json()["count"], 1);
    assert_eq!(again.ask(&["get", "while"]).json()["count"], 1);
    assert!(ends() > ended);
    again.ask(&["put", "after", "3"]).json();
    let listed = members[0].ask(&["member", "ls"]).json();
    assert_eq!(listed["members"].as_array().unwrap().len(), 3);
    // Where it is let in anyway, the token that is used up is not asked for.
    again.running.terminate();
    assert_eq!(again.running.ended().code, Some(0));
    let once_more = back(&dir, &token, &[]).unwrap_or_else(|ended| panic!("{ended:?}"));
    assert_eq!(once_more.id, third.id);
    ended_without(once_more, &[token, wrong]);
}

#[test]
fn a_member_that_a_stolen_root_was_replaced_without_comes_back_when_it_is_let() {
    let folder = tempfile::tempdir().unwrap();
    let (mut members, dir) = three(folder.path(), "1h");
    members[0].ask(&["put", "before", "1"]).json();
    let mut third = members.pop().unwrap();
    third.running.kill();
    let stolen = members[0].token();
    let rotated = members[0].ask(&["ca", "rotate", "--stolen"]);
    assert_eq!(rotated.code, Some(0), "{rotated:?}");
    let token = members[0].token();
    assert_ne!(token, stolen);
    let endpoints = ["--endpoints", &members[1].addr];
    let refused = |token: &str| back(&dir, token, &endpoints).map(|member| member.id).unwrap_err();
    // The old token pins a root that nobody proves any more.
    let old = refused(&stolen);
    assert!(matches!(old.code, Some(1 | 3)), "{old:?}");
    refused(&token).refused(1, &["raft-kv node readmit", &third.id]);
    members[1].ask(&["node", "readmit", &third.id]).json();
    let again = back(&dir, &token, &endpoints).unwrap_or_else(|ended| panic!("{ended:?}"));
    assert_eq!(again.id, third.id);
    assert_eq!(again.ask(&["get", "before"]).json()["count"], 1);
    again.ask(&["put", "after", "2"]).json();
    let node = members[0].ask(&["node", "inspect", &third.id]).json();
    assert_eq!(node["readmit"], 0, "once: {node}");
    ended_without(again, &[stolen, token]);
}

#[test]
fn files_of_before_come_back_by_their_key_and_by_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let one = Member::first(folder.path());
    let token = text(&one.ask(&["token", "create", "client"]).json(), "token");
    let (own, other) = (folder.path().join("own"), folder.path().join("other"));
    enrol(&one, &token, "own", &own).json();
    enrol(&one, &token, "other", &other).json();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let endpoints = [one.addr.clone()];
    let again = |files: &Path| runtime.block_on(raft_kv::client::readmit_in(files, &token, &endpoints));
    let before = one.ask(&["node", "inspect", "own"]).json();
    again(&own).unwrap();
    let after = one.ask(&["node", "inspect", "own"]).json();
    assert_eq!(before["id"], after["id"]);
    assert_ne!(before["serial"], after["serial"]);
    let words = ["cert", "renew", "--token", &token];
    assert_eq!(with_files(&one, &own, &words).json()["renewed"], 1);
    let last = one.ask(&["node", "inspect", "own"]).json();
    assert!(last["id"] == after["id"] && last["serial"] != after["serial"], "{last}");
    with_files(&one, &own, &["put", "k", "v"]).json();
    // Another node's certificate, and one that was removed.
    let read = |files: &Path| raft_kv::net::read_credentials_in(files).unwrap();
    let mixed = raft_kv::pki::Credentials { key: read(&own).key, ..read(&other) };
    let refused = runtime.block_on(raft_kv::client::readmit(&mixed, &token, &endpoints)).unwrap_err();
    assert!(refused.to_string().contains("does not have the key"), "{refused}");
    one.ask(&["node", "rm", "other"]).json();
    let refused = again(&other).unwrap_err();
    assert!(refused.to_string().contains("was removed"), "{refused}");
    ended_without(one, &[token]);
}
