//! What the binary says without a cluster: its help, as reviewed in `help.txt`, and mistakes on
//! the command line.

mod process;

use process::{raft_kv, raft_kv_reading};

const COMMANDS: &[&[&str]] = &[
    &[],
    &["init"],
    &["join"],
    &["run"],
    &["recover"],
    &["info"],
    &["member"],
    &["member", "ls"],
    &["member", "add"],
    &["member", "promote"],
    &["member", "rm"],
    &["node"],
    &["node", "ls"],
    &["node", "inspect"],
    &["node", "rm"],
    &["node", "promote"],
    &["node", "demote"],
    &["node", "readmit"],
    &["token"],
    &["token", "ls"],
    &["token", "create"],
    &["token", "rotate"],
    &["token", "revoke"],
    &["join-token"],
    &["enrol"],
    &["put"],
    &["get"],
    &["del"],
    &["watch"],
    &["txn"],
    &["lease"],
    &["lease", "grant"],
    &["lease", "revoke"],
    &["lease", "keep-alive"],
    &["lease", "ttl"],
    &["lease", "ls"],
    &["compact"],
    &["check"],
    &["cert"],
    &["cert", "issue"],
    &["cert", "renew"],
    &["ca"],
    &["ca", "rotate"],
    &["ca", "status"],
    &["ca", "abort"],
    &["ca", "show"],
    &["rollback-point"],
    &["rollback-point", "create"],
    &["rollback-point", "ls"],
    &["rollback-point", "show"],
    &["rollback-point", "rm"],
    &["rollback-point", "schedule"],
    &["rollback-point", "unschedule"],
    &["rollback"],
    &["rollback", "diff"],
    &["rollback", "to"],
    &["backup"],
    &["backup", "create"],
    &["backup", "archive"],
    &["backup", "verify"],
    &["backup", "restore"],
    &["backup", "key"],
    &["transfer"],
    &["autolock"],
    &["unlock"],
    &["unlock-key"],
    &["unlock-key", "show"],
    &["unlock-key", "rotate"],
    &["import"],
    &["mirror"],
    &["help", "put"],
];

#[test]
fn the_help_is_the_one_that_was_reviewed() {
    let mut all = String::new();
    for words in COMMANDS {
        let mut line = words.to_vec();
        if !matches!(words.first(), Some(&"help")) {
            line.push("-h");
        }
        let ended = raft_kv(&line);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{line:?}");
        all.push_str(&format!("$ raft-kv {}\n{}\n", line.join(" "), ended.stdout.trim_end()));
    }
    let reviewed = include_str!("help.txt");
    if all != reviewed {
        let new = concat!(env!("CARGO_TARGET_TMPDIR"), "/help.txt");
        std::fs::write(new, &all).unwrap();
        let first = all.lines().zip(reviewed.lines()).find(|(new, old)| new != old);
        panic!("the help has changed, first {first:?}; if it is right, copy {new} to tests/help.txt");
    }
}

#[test]
fn a_mistake_is_named_in_the_form_that_was_asked_for() {
    for (words, part) in [
        (&["get"][..], "<KEY>"),
        (&["frobnicate"], "frobnicate"),
        (&["get", "k"], "--endpoints (or RAFT_KV_ENDPOINTS), --cert-dir"),
        (&["get", "k", "--data-dir", "d", "--key", "k"], "cannot be used with"),
        (&["put", "k"], "<VALUE"),
        (&["put", "--hex", "6", "00"], "KEY: not hexadecimal"),
        (&["put", "--base64", "AA==", "?"], "VALUE: not base64"),
        (
            &["get", "k", "--endpoints", "http://h:1", "--cacert", "a", "--cert", "b", "--key", "c"],
            "plain HTTP",
        ),
        (&["watch", "k", "--events", "0"], "--events"),
        (&["lease", "revoke", "xyz"], "hexadecimal digits"),
        (&["ca", "rotate", "--cert", "f"], "--key"),
        (&["ca", "rotate", "--cert", "f", "--key", "k", "--cacert", "c"], "are the new root's"),
        (&["ca", "rotate", "--deadline", "soon"], "90s"),
        (&["cert", "renew", "--data-dir", "d"], "--cert-dir"),
        (&["cert", "issue", "n", "--out", "d", "--role", "manager"], "manager"),
        (&["init", "--data-dir", "d", "--listen-addr", "nowhere"], "nowhere"),
        (&["join", "--data-dir", "d", "--token", "t"], "<ENDPOINT>"),
        (&["join", "--data-dir", "d", "--token", "t", "h"], "no port"),
    ] {
        let ended = raft_kv(words);
        ended.refused(2, &[part]);
        assert_eq!(ended.stdout, "", "{words:?}");
        let json = raft_kv(&[words, &["--json"]].concat());
        json.refused(2, &[]);
        let error: serde_json::Value = serde_json::from_str(json.stderr.trim()).unwrap();
        assert_eq!(error["error"]["kind"], "usage", "{error}");
        assert_eq!(error["error"]["retry"], false, "{error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(part), "{error}");
    }
    raft_kv_reading(&["txn"], b"then\nput").refused(2, &["line 2"]);
    raft_kv(&["txn", "--file", "no/such/file"]).refused(2, &["no/such/file", "can't be opened"]);
}
