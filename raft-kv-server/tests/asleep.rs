//! Who slept while the root was replaced, with real processes: what it hears when it wakes, and that the cure it is
//! told works and leaves it its id. And that the end of a certificate is seen long before it comes.

mod process;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use process::{Ended, Member, command, free_address, metrics, raft_kv, run, until};
use raft_kv::client::credentials_of;
use serde_json::Value;

/// A client's or worker's three files, and the member that it asks.
struct Sleeper {
    folder: PathBuf,
    id: String,
}

impl Sleeper {
    fn enrolled(member: &Member, role: &str, name: &str, folder: &Path) -> Self {
        let token = text(&member.ask(&["token", "create", role]).json(), "token");
        let folder = folder.join(name);
        let out = folder.to_str().unwrap();
        let words = ["enrol", "--token", &token, "--endpoints", &member.addr, "--name", name, "--out", out];
        raft_kv(&words).done();
        // A worker has no name in the cluster's list.
        let id = until("it is listed", || {
            let nodes = member.ask(&["node", "ls"]).json();
            let found = nodes["nodes"].as_array()?.iter().find(|node| node["name"] == name)?;
            Some(text(found, "id"))
        });
        Self { folder, id }
    }

    fn ask(&self, member: &Member, words: &[&str]) -> Ended {
        let at = ["--json", "--endpoints", &member.addr, "--cert-dir", self.folder.to_str().unwrap()];
        raft_kv(&[words, &at[..]].concat())
    }
}

/// A member whose log is read while it runs; it is killed at the end.
struct Logged {
    child: Child,
    lines: Receiver<String>,
}

impl Logged {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary is built");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (send, lines) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Self { child, lines }
    }

    /// Waits for a line with `what` in it; it has all of `parts`.
    fn says(&mut self, what: &str, parts: &[&str]) -> String {
        let end = Instant::now() + process::DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("it does not say {what:?}"));
            if line.contains(what) {
                parts.iter().for_each(|part| assert!(line.contains(part), "no {part:?} in {line}"));
                return line;
            }
        }
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}")).to_owned()
}

fn cluster(folder: &Path) -> Vec<Member> {
    let one = Member::first(folder);
    let (two, three) = (one.joined_by("two", folder), one.joined_by("three", folder));
    until("all vote", || {
        let listed = one.ask(&["member", "ls"]).json();
        let voters = listed["members"].as_array()?.iter().filter(|member| member["role"] == "voter").count();
        (voters == 3).then_some(())
    });
    vec![one, two, three]
}

fn gauge(page: &str, name: &str) -> i64 {
    let found = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {name} in {page}")).trim().parse().unwrap()
}

fn rotating(member: &Member) -> (i64, i64) {
    let page = member.metrics();
    (gauge(&page, "raft_kv_ca_rotation_phase"), gauge(&page, "raft_kv_ca_late_nodes"))
}

/// Whether a member has a key itself.
fn has(member: &Member, key: &str) -> Option<()> {
    (member.ask(&["get", key, "--serializable"]).code == Some(0)).then_some(())
}

/// Does what it is told, step by step, until it is served again, under the id that it had.
fn comes_back(sleeper: &Sleeper, member: &Member, role: &str) {
    let token = text(&member.ask(&["token", "create", role, "--uses", "1"]).json(), "token");
    let renew = ["cert", "renew", "--token", &token];
    let readmit = format!("raft-kv node readmit {}", sleeper.id);
    assert_eq!(member.ask(&["node", "inspect", &sleeper.id]).json()["shut_out"], true);
    sleeper.ask(member, &renew).refused(1, &["replaced without this node", &readmit]);
    member.ask(&["node", "readmit", &sleeper.id]).json();
    assert_eq!(sleeper.ask(member, &renew).json()["renewed"], 1);
    let node = member.ask(&["node", "inspect", &sleeper.id]).json();
    assert_eq!((text(&node, "id"), &node["late"]), (sleeper.id.clone(), &Value::Bool(false)), "{node}");
    // By itself from here on.
    assert_eq!(sleeper.ask(member, &["cert", "renew"]).json()["renewed"], 1);
}

#[test]
fn who_sleeps_through_new_roots_is_named_then_told_what_to_run_and_comes_back_by_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = cluster(folder.path());
    let sleeper = |role: &str, name: &str| Sleeper::enrolled(&members[0], role, name, folder.path());
    let (napper, client) = (sleeper("client", "napper"), sleeper("client", "client"));
    let worker = sleeper("worker", "worker");
    members[0].ask(&["put", "k", "v"]).json();
    let mut third = members.pop().unwrap();
    until("it is there too", || has(&third, "k"));
    third.running.kill();

    // Whoever looks sees that it waits, and for how many.
    assert_eq!(rotating(&members[0]), (0, 0));
    members[0].ask(&["ca", "rotate", "--detach"]).done();
    for member in &members {
        until("the metrics tell", || (rotating(member) == (2, 4)).then_some(()));
    }
    members[1].ask(&["ca", "abort"]).done();
    until("the metrics tell its end", || (rotating(&members[0]) == (0, 0)).then_some(()));

    let rotated = |late: &[&Sleeper]| {
        let progress = members[0].ask(&["ca", "rotate", "--deadline", "1s"]);
        progress.done();
        assert!(progress.stdout.contains(&third.id), "it names who is late: {progress:?}");
        late.iter().for_each(|sleeper| assert!(progress.stdout.contains(&sleeper.id), "{progress:?}"));
    };
    let told = ["root was replaced", "raft-kv cert renew --token TOKEN"];
    rotated(&[&napper, &client, &worker]);
    // Its certificate would be good for months.
    for words in [&["get", "k"][..], &["cert", "renew"]] {
        napper.ask(&members[0], words).refused(1, &told);
    }
    comes_back(&napper, &members[0], "client");
    napper.ask(&members[1], &["put", "napper", "1"]).json();

    rotated(&[&napper, &client, &worker]);
    for sleeper in [&client, &worker] {
        for words in [&["get", "k"][..], &["cert", "renew"], &["cert", "renew", "--watch"]] {
            sleeper.ask(&members[1], words).refused(1, &told);
        }
    }
    comes_back(&client, &members[1], "client");
    client.ask(&members[0], &["put", "client", "1"]).json();
    comes_back(&worker, &members[0], "worker");
    worker.ask(&members[0], &["get", "k"]).refused(1, &["worker"]);

    // A member that starts says that it is shut out, and its cure works too.
    let mut words = command(&["get", "k", "--json", "--endpoints", &members[0].addr]);
    words.arg("--data-dir").arg(&third.data_dir);
    run(words, &[]).refused(1, &["root was replaced", "raft-kv run --token TOKEN"]);
    let dir = third.data_dir.clone();
    let mut run = command(&["run", "--json", "--data-dir", dir.to_str().unwrap()]);
    run.env("RUST_LOG", "warn");
    let mut woken = Logged::start(run);
    woken.says("do not accept each other", &["root was replaced", "raft-kv run --token TOKEN"]);
    drop(woken);
    let token = members[0].token();
    let back = |token: &str| Member::start(&["run", "--token", token], &dir);
    let ended = back(&token).map(|member| member.id).unwrap_err();
    ended.refused(1, &[&format!("raft-kv node readmit {}", third.id)]);
    members[1].ask(&["node", "readmit", "three"]).json();
    let again = back(&token).unwrap_or_else(|ended| panic!("{ended:?}"));
    assert_eq!(again.id, third.id);
    for key in ["k", "napper", "client"] {
        until("it has what was written", || has(&again, key));
    }
    again.ask(&["put", "after", "1"]).json();
}

#[test]
fn the_end_of_a_certificate_is_in_metrics_info_and_warnings() {
    let folder = tempfile::tempdir().unwrap();
    let (listen, validity) = (free_address(), 30);
    let lasting = format!("{validity}s");
    let words = ["init", "--name", "one", "--cert-validity", &lasting, "--listen-addr", &listen];
    let words = [&words[..], &["--etcd-addr", "127.0.0.1:0"]].concat();
    let member =
        Member::start(&words, &folder.path().join("one")).unwrap_or_else(|ended| panic!("{ended:?}"));
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;

    // A member renews its own in time: the end in metrics and info moves on.
    let first = gauge(&member.metrics(), "raft_kv_certificate_expires_seconds");
    assert!((now() - 5..=now() + validity + 5).contains(&first), "{first}");
    let out = folder.path().join("client");
    member.ask(&["cert", "issue", "client", "--out", out.to_str().unwrap()]).json();
    let id = text(&member.ask(&["node", "inspect", "client"]).json(), "id");
    let unattended = Sleeper { folder: out, id };
    member.ask(&["put", "k", "v"]).json();
    let renewed = until("it is renewed", || {
        let ends = gauge(&member.metrics(), "raft_kv_certificate_expires_seconds");
        (ends > first).then_some(ends)
    });
    let info = member.ask(&["info"]).json();
    assert!(info["certificate_ends"].as_i64().unwrap() >= renewed, "{info}");

    // Nobody looks after this client's: it is warned while it still works, and told when it does not any more.
    let warned = until("it is warned", || {
        let ended = unattended.ask(&member, &["get", "k"]);
        (ended.code == Some(0) && ended.stderr.contains("certificate ends in")).then_some(ended)
    });
    assert!(warned.stderr.contains("raft-kv cert renew"), "{warned:?}");
    let told = until("it has ended", || {
        let ended = unattended.ask(&member, &["get", "k"]);
        (ended.code != Some(0)).then_some(ended)
    });
    told.refused(1, &["it expired on", "raft-kv enrol", "raft-kv cert issue"]);
    // Its record ends with its certificate, to the second: its id is nobody's, and it enrols anew.
    let credentials = raft_kv::net::read_credentials_in(&unattended.folder).unwrap();
    let ended = raft_kv::pki::validity_of(&credentials.chain[0]).unwrap().1 + Duration::from_secs(2);
    until("its last second is over", || (SystemTime::now() > ended).then_some(()));
    let token = text(&member.ask(&["token", "create", "client"]).json(), "token");
    let refused = unattended.ask(&member, &["cert", "renew", "--token", &token]);
    refused.refused(1, &["does not know this node", "raft-kv enrol"]);
    let again = Sleeper::enrolled(&member, "client", "client", &folder.path().join("again"));
    assert_ne!(again.id, unattended.id);
    again.ask(&member, &["get", "k"]).json();
}

/// As docs/examples/signer.sh, to the second; and it refuses while there is a file `sealed` beside its key.
const SIGNER: &str = r#"#!/bin/sh
set -eu
cert=$1
key=$2
[ ! -e "$(dirname "$key")/sealed" ] || { echo "the vault is sealed" >&2; exit 7; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
request=$(cat)
text() { printf '%s' "$request" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
at() { date -u -d "@$(printf '%s' "$request" | sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p")" +%Y%m%d%H%M%SZ; }
printf '%b' "$(text csr_pem)" >"$work/request.pem"
: >"$work/index.txt"
cat >"$work/ca.conf" <<END
[ca]
default_ca = this
[this]
certificate = $cert
private_key = $key
database = $work/index.txt
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = any
[any]
commonName = optional
organizationalUnitName = optional
organizationName = optional
serialNumber = optional
END
cat >"$work/extensions" <<END
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = $(text extended_key_usage)
subjectAltName = $(text subject_alt_names)
END
openssl ca -batch -notext -config "$work/ca.conf" -in "$work/request.pem" -subj "$(text text)" -preserveDN \
    -startdate "$(at not_before)" -enddate "$(at not_after)" -extfile "$work/extensions"
"#;

/// A root whose signing key stays outside the cluster.
struct Outside {
    folder: PathBuf,
}

impl Outside {
    fn new(folder: &Path) -> Self {
        let example = format!("{}/../docs/examples/own-root.sh", env!("CARGO_MANIFEST_DIR"));
        std::fs::create_dir(folder).unwrap();
        let made = Command::new(example).arg(folder).output().expect("the example runs");
        assert!(made.status.success(), "{made:?}");
        let script = folder.join("signer.sh");
        std::fs::write(&script, SIGNER).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
        Self { folder: folder.to_owned() }
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    /// The words that give a member this signer.
    fn words(&self) -> Vec<String> {
        let mut words = vec!["--external-signer".to_owned(), self.file("signer.sh")];
        for name in ["signing.pem", "signing.key"] {
            words.extend(["--external-signer-arg".to_owned(), self.file(name)]);
        }
        words
    }

    fn sealed(&self, sealed: bool) {
        let file = self.folder.join("sealed");
        if sealed { std::fs::write(file, "").unwrap() } else { std::fs::remove_file(file).unwrap() }
    }
}

fn ends(data_dir: &Path) -> SystemTime {
    let (own, _) = credentials_of(data_dir).unwrap();
    raft_kv::pki::validity_of(&own.chain[0]).unwrap().1
}

fn asked(data_dir: &Path, words: &[&str]) -> Ended {
    raft_kv(&[words, &["--json", "--data-dir", data_dir.to_str().unwrap()]].concat())
}

fn with<'a>(words: &[&'a str], more: &'a [String]) -> Vec<&'a str> {
    words.iter().copied().chain(more.iter().map(String::as_str)).collect()
}

#[test]
fn an_end_is_seen_before_it_comes_and_a_cluster_that_was_off_past_it_comes_back_by_its_signer() {
    let folder = tempfile::tempdir().unwrap();
    let outside = Outside::new(&folder.path().join("ca"));
    let (signer, chain) = (outside.words(), outside.file("chain.pem"));
    let (listen, one) = (free_address(), folder.path().join("one"));
    // Whoever listens by UDP there does not by TCP.
    let door = free_address();
    let place = ["--name", "one", "--listen-addr", &listen, "--etcd-addr", &door, "--cert-validity", "24s"];
    let mut init = command(&with(&["init", "--json", "--ca-cert", &chain], &signer));
    init.args(place).arg("--data-dir").arg(&one);
    let mut log = Logged::start(init);
    until("it serves", || (asked(&one, &["put", "k", "v"]).code == Some(0)).then_some(()));
    let token = text(&asked(&one, &["join-token", "manager"]).json(), "token");
    let (at, two) = (free_address(), folder.path().join("two"));
    let words =
        ["join", "--name", "two", "--listen-addr", &at, "--etcd-addr", "off", "--cert-validity", "24s"];
    let more = [&signer[..], &["--token".into(), token, listen]].concat();
    let mut second = Member::start(&with(&words, &more), &two).unwrap_or_else(|ended| panic!("{ended:?}"));
    until("both vote", || {
        let listed = second.ask(&["member", "ls"]).json();
        listed["members"].as_array()?.iter().all(|member| member["role"] == "voter").then_some(())
    });

    let info = asked(&one, &["info"]).json();
    assert_eq!(info["certificate_ends_soon"], false, "{info}");
    let page = metrics(&one, &door);
    assert_eq!(Some(gauge(&page, "raft_kv_certificate_expires_seconds")), info["certificate_ends"].as_i64());
    outside.sealed(true);
    log.says("the vault is sealed", &[]);
    log.says("ends soon and could not be renewed", &["WARN", "external signer", "exit status: 7"]);
    let info = asked(&one, &["info"]).json();
    assert_eq!(info["certificate_ends_soon"], true, "{info}");
    let id = text(&info, "member");
    let node = asked(&one, &["node", "inspect", &id]).json();
    assert!(text(&node, "error").contains("external signer"), "{node}");

    drop(log);
    second.running.kill();
    let until_both = ends(&one).max(ends(&two));
    until("both certificates have ended", || (SystemTime::now() > until_both).then_some(()));
    let run =
        |dir: &Path, more: &[String]| Member::start(&with(&["run", "--cert-validity", "1h"], more), dir);
    let refused = |more: &[String]| run(&one, more).map(|member| member.id).unwrap_err();
    refused(&[]).refused(1, &["it expired on", "--external-signer", "raft-kv run --token TOKEN"]);
    refused(&signer).refused(1, &["external signer"]);
    outside.sealed(false);
    let again = [&one, &two].map(|dir| run(dir, &signer).unwrap_or_else(|ended| panic!("{ended:?}")));
    assert_eq!((&again[0].id, &again[1].id), (&id, &second.id));
    until("it has what was written", || has(&again[0], "k"));
    until("it takes more", || (again[1].ask(&["put", "after", "1"]).code == Some(0)).then_some(()));
    assert!(ends(&one) > until_both && ends(&two) > until_both);
    let info = again[0].ask(&["info"]).json();
    assert_eq!(info["certificate_ends_soon"], false, "{info}");
}
