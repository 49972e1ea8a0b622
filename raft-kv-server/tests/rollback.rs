//! Rollback points from the command line, with real processes: look, go back, undo; and what is refused says what
//! to do.

mod process;

use process::{Ended, Member, raft_kv, until};
use serde_json::Value;

fn lines(ended: &Ended) -> Vec<Value> {
    ended.done();
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn value(member: &Member, key: &str) -> Option<String> {
    let answer = member.ask(&["get", key]);
    (answer.code == Some(0)).then(|| answer.json()["kvs"][0]["value"].as_str().unwrap().to_owned())
}

fn names(member: &Member) -> Vec<String> {
    let list = member.ask(&["rollback-point", "ls"]).json();
    list["points"]
        .as_array()
        .unwrap()
        .iter()
        .map(|point| point["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_mistake_is_looked_at_taken_back_and_taken_back_again() {
    let folder = tempfile::tempdir().unwrap();
    let member = Member::first(folder.path());
    for (key, text) in [("app/a", "1"), ("app/b", "1"), ("other", "1")] {
        member.ask(&["put", key, text]).json();
    }
    let made = member.ask(&["rollback-point", "create", "v1", "--comment", "before v2"]).json();
    assert_eq!((&made["name"], &made["author"]), (&"v1".into(), &"one".into()), "{made}");
    let at = made["revision"].as_i64().unwrap();
    member.ask(&["put", "app/a", "2"]).json();
    member.ask(&["del", "app/b"]).json();
    member.ask(&["put", "app/c", "2"]).json();
    member.ask(&["put", "other", "2"]).json();
    let current = member.revision();
    member.ask(&["compact", &current.to_string()]).json();

    // The point is still readable, and what differs is shown by key.
    let old = member.ask(&["get", "app/b", "--rev", &at.to_string()]).json();
    assert_eq!(old["kvs"][0]["value"], "1");
    let by_name = member.ask(&["get", "app/b", "--point", "v1"]).json();
    assert_eq!(by_name["kvs"], old["kvs"]);
    member.ask(&["get", "app/b", "--point", "v2"]).refused(6, &["v2", "rollback-point ls"]);
    let shown = member.ask(&["rollback-point", "show", "v1"]).json();
    assert_eq!(shown["changed_since"]["changed"], 2, "{shown}");
    let diff = lines(&member.ask(&["rollback", "diff", "v1", "--prefix", "app/"]));
    let changes: Vec<_> = diff.iter().filter_map(|line| line["change"].as_str()).collect();
    assert_eq!(changes, ["changed", "deleted", "created"]);
    assert_eq!((&diff[0]["then"], &diff[0]["now"]), (&"1".into(), &"2".into()));
    let counts = diff.last().unwrap();
    assert_eq!((&counts["from"], &counts["to"]), (&at.into(), &current.into()));
    let stat = lines(&member.ask(&["rollback", "diff", "v1", "--stat"]));
    assert_eq!((stat.len(), &stat[0]["changed"], &stat[0]["created"]), (1, &2.into(), &1.into()));

    // A dry run shows the same and does nothing.
    let dry = lines(&member.ask(&["rollback", "to", "v1", "--prefix", "app/", "--dry-run"]));
    assert_eq!(dry, diff);
    assert_eq!(member.revision(), current);

    let done = member.ask(&["rollback", "to", "v1", "--prefix", "app/"]).json();
    assert_eq!((&done["events"], &done["revision"]), (&3.into(), &(current + 1).into()), "{done}");
    assert_eq!(
        ["app/a", "app/b", "app/c", "other"].map(|key| value(&member, key)),
        [Some("1".into()), Some("1".into()), None, Some("2".into())]
    );
    let undo = done["undo"].as_str().unwrap();
    assert_eq!(names(&member), [undo, "v1"]);
    let people = raft_kv(&["rollback", "to", undo, "--data-dir", member.data_dir.to_str().unwrap()]);
    people.done();
    assert!(people.stdout.contains("raft-kv rollback to before-rollback-"), "{people:?}");
    assert_eq!(value(&member, "app/c").as_deref(), Some("2"));

    member.ask(&["rollback-point", "rm", "v1"]).json();
    member.ask(&["rollback", "to", "v1"]).refused(1, &["v1", "rollback-point ls"]);
    member.ask(&["rollback-point", "show", "v1"]).refused(6, &["v1"]);
}

#[test]
fn schedules_are_kept_by_the_cluster_and_bad_words_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let member = Member::first(folder.path());
    member.ask(&["put", "k", "v"]).json();
    let set = member.ask(&["rollback-point", "schedule", "hourly", "--keep", "24"]).json();
    assert_eq!((&set["every"], &set["keep"]), (&3600.into(), &24.into()));
    until("the first is made", || {
        let names = names(&member);
        (names.len() == 1 && names[0].starts_with("hourly-")).then_some(())
    });
    let list = member.ask(&["rollback-point", "ls"]).json();
    assert_eq!(list["schedules"][0]["name"], "hourly");
    member.ask(&["rollback-point", "unschedule", "hourly"]).json();
    assert_eq!(member.ask(&["rollback-point", "ls"]).json()["schedules"], serde_json::json!([]));

    for (words, code, part) in [
        (&["schedule", "often", "--keep", "2"][..], 2, "--every"),
        (&["schedule", "often", "--every", "1s", "--keep", "2"], 1, "interval"),
        (&["unschedule", "never"], 1, "never"),
        (&["rm", "never"], 1, "never"),
        (&["create", "two words"], 1, "spaces"),
        (&["create", "before-rollback-7"], 1, "choose another"),
        (&["create", "x", "--rev", "999999"], 1, "revision"),
    ] {
        member.ask(&[&["rollback-point"], words].concat()).refused(code, &[part]);
    }
    assert_eq!(names(&member).len(), 1, "nothing was made");
}
