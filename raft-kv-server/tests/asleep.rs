//! Nodes that slept through replacements of the root: what they are told, what brings them back, and that they
//! are the same nodes after. And that the end of a certificate is seen before it comes.

mod process;

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use process::{Ended, Member, free_address, raft_kv, until};
use raft_kv::net::read_credentials_in;
use raft_kv::pki::Identity;
use serde_json::Value;

fn path(folder: &Path) -> &str {
    folder.to_str().unwrap()
}

/// A command with the certificate in `folder`, asked of `member`.
fn with_files(member: &Member, folder: &Path, words: &[&str]) -> Ended {
    raft_kv(&[words, &["--json", "--endpoints", &member.addr, "--cert-dir", path(folder)]].concat())
}

fn identity(folder: &Path) -> Identity {
    Identity::from_cert(&read_credentials_in(folder).unwrap().chain[0]).unwrap()
}

fn token(member: &Member, role: &str) -> String {
    member.ask(&["join-token", role]).json()["token"].as_str().unwrap().to_owned()
}

fn enrol(member: &Member, role: &str, out: &Path) {
    let token = token(member, role);
    let at = ["--endpoints", &member.addr, "--name", role, "--out", path(out), "--json"];
    raft_kv(&[&["enrol", "--token", &token], &at[..]].concat()).json();
}

/// What is known of a node.
fn node(member: &Member, id: &str) -> Value {
    member.ask(&["node", "inspect", id]).json()
}

/// A rotation that waits for sleepers no longer than a second.
fn rotate(member: &Member) {
    member.ask(&["ca", "rotate", "--deadline", "1s"]).done();
}

#[test]
fn a_client_and_a_worker_that_slept_through_two_rotations_come_back_as_who_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = vec![Member::first(folder.path())];
    members.push(members[0].joined_by("two", folder.path()));
    until("both vote", || {
        let listed = members[0].ask(&["member", "ls"]).json();
        let all = listed["members"].as_array().unwrap().clone();
        (all.len() == 2 && all.iter().all(|member| member["role"] == "voter")).then_some(())
    });
    let created = members[0].ask(&["token", "create", "client"]).json();
    assert_eq!(created["role"], "client");
    let sleepers = ["client", "worker"].map(|role| {
        let out = folder.path().join(role);
        if role == "client" {
            let token = created["token"].as_str().unwrap();
            let at = ["--endpoints", &members[0].addr, "--name", role, "--out", path(&out), "--json"];
            raft_kv(&[&["enrol", "--token", token], &at[..]].concat()).json();
        } else {
            enrol(&members[0], role, &out);
        }
        (role, out)
    });
    with_files(&members[1], &sleepers[0].1, &["put", "k", "v"]).json();
    rotate(&members[0]);
    rotate(&members[1]);

    for (role, files) in &sleepers {
        let (before, id) = (identity(files), identity(files).node.to_string());
        assert_eq!(node(&members[0], &id)["shut_out"], true);
        assert_eq!(node(&members[0], &id)["late"], false, "nothing waits for it any more");
        // Whatever it asks, it hears what has happened and what to run.
        for words in [&["ca", "status"][..], &["cert", "renew"]] {
            let told = with_files(&members[1], files, words);
            told.refused(1, &["root was replaced", "raft-kv cert renew --token TOKEN"]);
            let others = members.iter().filter(|member| told.stderr.contains(&member.addr));
            assert_eq!(others.count(), 0, "{told:?}");
        }
        let files_before = fs::read(files.join("cert.pem")).unwrap();
        let token = match *role {
            "client" => {
                let create = ["token", "create", "client", "--uses", "2"];
                members[0].ask(&create).json()["token"].as_str().unwrap().to_owned()
            }
            role => token(&members[0], role),
        };
        // A token alone does not bring back who was shut out; the refusal says who must do what.
        let again = ["cert", "renew", "--token", &token];
        with_files(&members[1], files, &again).refused(1, &["node readmit", &id]);
        assert_eq!(fs::read(files.join("cert.pem")).unwrap(), files_before, "nothing was changed");
        members[1].ask(&["node", "readmit", &id]).json();
        with_files(&members[1], files, &again).json();
        let after = identity(files);
        assert_eq!((after.node, after.role), (before.node, before.role));
        assert_eq!(node(&members[0], &id)["shut_out"], false);
        let allowed = if *role == "client" { &["get", "k"][..] } else { &["ca", "status"] };
        with_files(&members[0], files, allowed).json();
    }
    assert_eq!(with_files(&members[0], &sleepers[0].1, &["get", "k"]).json()["kvs"][0]["value"], "v");
}

/// The value of a metric without labels.
fn metric(member: &Member, name: &str) -> i64 {
    let page = member.metrics();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = line.unwrap_or_else(|| panic!("no {name} in {page}"));
    value.parse::<f64>().unwrap() as i64
}

#[test]
fn who_is_late_and_when_certificates_end_is_in_metrics_info_and_warnings() {
    let folder = tempfile::tempdir().unwrap();
    let (listen, validity) = (free_address(), 30);
    let lasting = format!("{validity}s");
    let words = ["init", "--name", "one", "--cert-validity", &lasting, "--listen-addr", &listen];
    let words = [&words[..], &["--etcd-addr", "127.0.0.1:0"]].concat();
    let member =
        Member::start(&words, &folder.path().join("one")).unwrap_or_else(|ended| panic!("{ended:?}"));
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;

    // A member renews its own in time: the end in metrics and info moves on.
    let first = metric(&member, "raft_kv_certificate_expires_seconds");
    assert!((now() - 5..=now() + validity + 5).contains(&first), "{first}");
    let out = folder.path().join("client");
    member.ask(&["cert", "issue", "client", "--out", path(&out)]).json();
    member.ask(&["put", "k", "v"]).json();
    let renewed = until("it is renewed", || {
        let ends = metric(&member, "raft_kv_certificate_expires_seconds");
        (ends > first).then_some(ends)
    });
    let info = member.ask(&["info"]).json();
    assert!(info["certificate_ends"].as_i64().unwrap() >= renewed, "{info}");

    // Nobody looks after this client's: it is warned while it still works, and told when it does not any more.
    let warned = until("it is warned", || {
        let ended = with_files(&member, &out, &["get", "k"]);
        (ended.code == Some(0) && ended.stderr.contains("certificate ends in")).then_some(ended)
    });
    assert!(warned.stderr.contains("raft-kv cert renew"), "{warned:?}");
    let told = until("it has ended", || {
        let ended = with_files(&member, &out, &["get", "k"]);
        (ended.code != Some(0)).then_some(ended)
    });
    told.refused(1, &["raft-kv cert"]);

    // A rotation shows in metrics as long as it waits for somebody.
    let late = folder.path().join("late");
    member.ask(&["cert", "issue", "late", "--out", path(&late)]).json();
    assert_eq!(metric(&member, "raft_kv_ca_rotation_phase"), 0);
    member.ask(&["ca", "rotate", "--deadline", "1h", "--detach"]).done();
    until("it waits", || {
        let (phase, late) =
            (metric(&member, "raft_kv_ca_rotation_phase"), metric(&member, "raft_kv_ca_late_nodes"));
        (phase == 2 && late >= 1).then_some(())
    });
    member.ask(&["ca", "abort"]).done();
    until("nothing is waited for", || (metric(&member, "raft_kv_ca_rotation_phase") == 0).then_some(()));
}
