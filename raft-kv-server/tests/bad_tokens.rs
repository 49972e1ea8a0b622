//! Tokens that do not let a node in: it ends with a message, and its directory can be used again.

mod process;

use std::path::Path;

use process::{Ended, Member, free_address};

fn join(token: &str, endpoint: &str, data_dir: &Path) -> Ended {
    let listen = free_address();
    let words =
        ["join", "--name", "two", "--listen-addr", &listen, "--etcd-addr", "off", "--token", token, endpoint];
    match Member::start(&words, data_dir) {
        Ok(member) => panic!("member {} joined with a bad token", member.id),
        Err(ended) => ended,
    }
}

#[test]
fn a_bad_token_is_named_and_the_good_one_still_works() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    let ours = Member::first(&a);
    let theirs = Member::first(&b);
    let good = ours.token();
    let data_dir = folder.path().join("two");

    for not_a_token in ["", "hello", "SWMTKN-1-a-b", &good[..good.len() - 7], &format!("{good}a")] {
        join(not_a_token, &ours.addr, &data_dir).refused(1, &["the join token is not valid"]);
    }
    // A wrong letter anywhere: the checksum in the token tells.
    let last = good.chars().last().unwrap();
    let damaged = format!("{}{}", &good[..good.len() - 1], if last == 'a' { 'b' } else { 'a' });
    join(&damaged, &ours.addr, &data_dir).refused(1, &["the join token is not valid"]);
    // A token of another cluster pins another root: nobody here can prove it.
    let foreign = join(&theirs.token(), &ours.addr, &data_dir);
    assert!(matches!(foreign.code, Some(1 | 3)), "{foreign:?}");
    assert!(foreign.stderr.contains("root") || foreign.stderr.contains("token"), "{foreign:?}");

    let members = ours.ask(&["member", "ls"]).json();
    assert_eq!(members["members"].as_array().unwrap().len(), 1, "a refused joiner became a member");
    let listen = free_address();
    let words = [
        "join",
        "--name",
        "two",
        "--listen-addr",
        &listen,
        "--etcd-addr",
        "off",
        "--token",
        &good,
        &ours.addr,
    ];
    let joined = Member::start(&words, &data_dir).unwrap_or_else(|ended| panic!("{ended:?}"));
    assert_eq!(joined.cluster, ours.cluster);
}
