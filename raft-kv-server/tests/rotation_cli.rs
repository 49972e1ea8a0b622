//! The root replaced from the command line: three members, a client that is kept current, one that is not,
//! and one that holds everything up. What is settled is refused afterwards, with the way out.

mod process;

use std::path::{Path, PathBuf};

use process::{Ended, Member, Running, command, raft_kv, until};
use serde_json::Value;

/// A client with its files in a folder, asking every member.
struct Client {
    dir: PathBuf,
    endpoints: String,
}

impl Client {
    fn issued(members: &[Member], name: &str, folder: &Path) -> Self {
        let dir = folder.join(name);
        members[0].ask(&["cert", "issue", name, "--out", dir.to_str().unwrap()]).json();
        let endpoints: Vec<&str> = members.iter().map(|member| member.addr.as_str()).collect();
        Self { dir, endpoints: endpoints.join(",") }
    }

    /// The same files as they are now, somewhere else.
    fn copied(&self, dir: PathBuf) -> Self {
        std::fs::create_dir(&dir).unwrap();
        for name in ["cacert.pem", "cert.pem", "key.pem"] {
            std::fs::copy(self.dir.join(name), dir.join(name)).unwrap();
        }
        Self { dir, endpoints: self.endpoints.clone() }
    }

    fn words(&self, words: &[&str]) -> Vec<String> {
        let file = |name: &str| self.dir.join(name).to_str().unwrap().to_owned();
        let mut all: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        all.extend(["--json", "--endpoints", &self.endpoints].map(String::from));
        all.extend(["--cacert".into(), file("cacert.pem"), "--cert".into(), file("cert.pem")]);
        all.extend(["--key".into(), file("key.pem")]);
        all
    }

    fn ask(&self, words: &[&str]) -> Ended {
        raft_kv(&self.words(words))
    }

    fn start(&self, words: &[&str]) -> Running {
        Running::start(command(&self.words(words)))
    }
}

fn three(folder: &Path) -> Vec<Member> {
    let one = Member::first(folder);
    let (two, three) = (one.joined_by("two", folder), one.joined_by("three", folder));
    until("three voters", || {
        let ended = one.ask(&["member", "ls"]);
        let answer: Value = serde_json::from_str(&ended.stdout).ok()?;
        let members = answer["members"].as_array()?;
        (members.iter().filter(|member| member["role"] == "voter").count() == 3).then_some(())
    });
    vec![one, two, three]
}

fn lines(ended: &Ended) -> Vec<Value> {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn root(member: &Member) -> String {
    member.ask(&["ca", "show"]).json()["roots"][0]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn a_client_that_is_kept_current_notices_nothing_of_another_root() {
    let folder = tempfile::tempdir().unwrap();
    let members = three(folder.path());
    let client = Client::issued(&members, "kept", folder.path());
    // One that only has what was issued.
    let outdated = client.copied(folder.path().join("outdated"));
    let old = root(&members[0]);
    let mut renewing = client.start(&["cert", "renew", "--watch"]);
    assert_eq!(renewing.next_json().unwrap()["root"].as_str(), Some(&old[..]));
    let from = client.ask(&["put", "n", "0"]).json()["revision"].to_string();
    let mut watch = client.start(&["watch", "n", "--from-revision", &from, "--events", "4"]);
    assert_eq!(watch.next_json().unwrap()["value"], "0");

    let progress = lines(&members[1].ask(&["ca", "rotate"]));
    let last = progress.last().unwrap();
    let new = root(&members[2]);
    assert_ne!(old, new);
    assert_eq!((last["phase"].as_str(), last["target"].as_str()), (Some("settled"), Some(&new[..])));

    // The files are the new ones, and nothing but the new root is believed by them.
    let renewed = loop {
        let Some(line) = renewing.next_json() else { panic!("{:?}", renewing.ended()) };
        if line["roots"] == 1 && line["root"].as_str() == Some(&new[..]) {
            break line;
        }
    };
    assert!(renewed["renewed"].as_u64().unwrap() >= 1, "{renewed}");
    for value in ["1", "2"] {
        client.ask(&["put", "n", value]).json();
    }
    // Renewing by hand goes on from there.
    client.ask(&["cert", "renew"]).json();
    client.ask(&["put", "n", "3"]).json();
    for value in ["1", "2", "3"] {
        assert_eq!(watch.next_json().unwrap()["value"], value);
    }
    let ended = watch.ended();
    assert_eq!(ended.code, Some(0), "{ended:?}");

    let status = members[0].ask(&["ca", "status"]).json();
    assert_eq!((&status["phase"], &status["rotation"]), (&Value::from("stable"), &Value::Null));
    let nodes = status["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 4, "{status}");
    assert!(nodes.iter().all(|node| node["issuer"].as_str() == Some(&new[..])), "{status}");
    let shown = members[0].ask(&["ca", "show"]).json();
    assert!(shown["roots"][0]["pem"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----"), "{shown}");
    assert_eq!(shown["roots"].as_array().unwrap().len(), 1);

    // Who holds only the old files hears why nobody lets it in, and what to run.
    let ended = outdated.ask(&["get", "n"]);
    ended.refused(1, &["root was replaced", "raft-kv cert"]);
    outdated.ask(&["cert", "renew"]).refused(1, &["root was replaced", "raft-kv cert"]);
    renewing.terminate();
    renewing.ended();
}

#[test]
fn who_is_late_is_named_and_a_rotation_can_be_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let members = three(folder.path());
    let sleeper = Client::issued(&members, "sleeper", folder.path());
    let old = root(&members[0]);

    let begun = lines(&members[0].ask(&["ca", "rotate", "--detach"]));
    assert_eq!(begun.len(), 1, "{begun:?}");
    let status = until("the members have moved", || {
        let status = members[1].ask(&["ca", "status"]).json();
        let late = status["late"].as_array()?;
        let sleeps = |name: &Value| name.as_str().is_some_and(|name| name.contains("sleeper"));
        (late.len() == 1 && sleeps(&late[0])).then_some(status)
    });
    assert_eq!(status["phase"], "reissue");
    assert_eq!(status["roots"].as_array().unwrap().len(), 2);
    let late = |node: &Value| node["late"] == true;
    let nodes = status["nodes"].as_array().unwrap();
    assert_eq!(nodes.iter().filter(|node| late(node)).count(), 1, "{status}");

    let aborted = lines(&members[2].ask(&["ca", "abort"]));
    assert_eq!(aborted.last().unwrap()["target"].as_str(), Some(&old[..]), "{aborted:?}");
    assert_eq!(root(&members[0]), old);
    members[0].ask(&["ca", "abort"]).refused(1, &["no root is being replaced"]);
    // Whoever slept through it has not lost anything.
    sleeper.ask(&["put", "k", "v"]).json();

    // With a deadline it is left behind, and told so.
    let progress = lines(&members[0].ask(&["ca", "rotate", "--deadline", "2s"]));
    assert_eq!(progress.last().unwrap()["phase"], "settled");
    sleeper.ask(&["get", "k"]).refused(1, &["root was replaced", "raft-kv cert"]);
    // And its renewal can't make it come back.
    sleeper.ask(&["cert", "renew", "--watch"]).refused(1, &["root was replaced"]);
}
