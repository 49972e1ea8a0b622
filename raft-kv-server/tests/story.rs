//! Three members in three processes: made, joined, written, read, watched; the leader killed, the
//! cluster still there, nothing lost; the killed one back.

mod process;

use process::{Ended, Member, Running, command, raft_kv, until};
use serde_json::Value;

/// Runs a client command with a client's certificate, at any of `endpoints`.
fn ask(files: &Value, endpoints: &[&str], words: &[&str]) -> Ended {
    raft_kv(&client_words(files, endpoints, words))
}

fn client_words(files: &Value, endpoints: &[&str], words: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    all.extend(["--json".to_owned(), "--endpoints".to_owned(), endpoints.join(",")]);
    for name in ["cacert", "cert", "key"] {
        all.extend([format!("--{name}"), files[name].as_str().expect("a path").to_owned()]);
    }
    all
}

fn voters(member: &Member) -> usize {
    let ended = member.ask(&["member", "ls"]);
    let Ok(answer) = serde_json::from_str::<Value>(&ended.stdout) else { return 0 };
    let list = answer["members"].as_array().cloned().unwrap_or_default();
    list.iter().filter(|member| member["role"] == "voter").count()
}

#[test]
fn three_members_serve_and_go_on_without_their_leader() {
    let folder = tempfile::tempdir().unwrap();
    let one = Member::first(folder.path());
    let two = one.joined_by("two", folder.path());
    let three = one.joined_by("three", folder.path());
    until("three voters", || (voters(&one) == 3).then_some(()));
    assert_eq!(two.cluster, one.cluster);

    let out = folder.path().join("client");
    let files = one.ask(&["cert", "issue", "tester", "--out", out.to_str().unwrap()]).json();
    let mut members = vec![one, two, three];
    let endpoints: Vec<String> = members.iter().map(|member| member.addr.clone()).collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();

    // Any bytes in, the same bytes out, at every member.
    let put = ask(&files, &endpoints, &["put", "--hex", "6bff", "00fe"]).json();
    let first = put["revision"].as_i64().unwrap();
    for member in &members {
        let answer = member.ask(&["get", "--escaped", "k\\xff"]).json();
        assert_eq!(answer["kvs"][0]["key_base64"], "a/8=");
        assert_eq!(answer["kvs"][0]["value_base64"], "AP4=");
        assert_eq!(answer["kvs"][0]["mod_revision"], first);
    }

    // A watch from before sees what is and what comes, across the loss of the leader.
    let from = first.to_string();
    let words = ["watch", "", "--prefix", "--from-revision", &from, "--events", "12"];
    let mut watch = Running::start(command(&client_words(&files, &endpoints, &words)));
    assert_eq!(watch.next_json().unwrap()["key_base64"], "a/8=");

    for number in 0..10 {
        ask(&files, &endpoints, &["put", &format!("n/{number}"), "before"]).json();
    }
    let leader = members[1].ask(&["info"]).json()["leader"].as_str().unwrap().to_owned();
    let at = members.iter().position(|member| member.id == leader).expect("the leader is one of them");
    let mut lost = members.remove(at);
    lost.running.kill();
    let answer = until("a write without the old leader", || {
        let ended = ask(&files, &endpoints, &["put", "after", "the loss"]);
        (ended.code == Some(0)).then(|| ended.json())
    });
    let last = answer["revision"].as_i64().unwrap();
    for member in &members {
        let answer = member.ask(&["get", "n/", "--prefix"]).json();
        assert_eq!(answer["count"], 10, "an acknowledged write is lost");
    }
    let mut revisions = vec![];
    while let Some(event) = watch.next_json() {
        assert_eq!(event["type"], "put");
        revisions.push(event["revision"].as_i64().unwrap());
    }
    assert!(revisions.is_sorted(), "{revisions:?}");
    assert_eq!(revisions.len(), 11);
    assert_eq!(watch.ended().code, Some(0));

    // The killed one returns as who it was and catches up from its own log and the others.
    let back = Member::again(&lost.data_dir);
    assert_eq!(back.id, lost.id);
    until("the killed member catches up", || {
        let answer = back.ask(&["get", "after", "--serializable"]);
        (answer.code == Some(0)).then_some(())
    });
    assert!(back.revision() >= last);

    // A clean stop says nothing and succeeds.
    members.push(back);
    for member in members {
        member.running.terminate();
        let ended = member.running.ended();
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

#[test]
fn every_command_answers_on_one_member() {
    let folder = tempfile::tempdir().unwrap();
    let one = Member::first(folder.path());
    let empty = one.revision();
    assert_eq!(one.ask(&["put", "a", "1"]).json()["revision"], empty + 1);
    one.ask_reading(&["put", "b", "-"], b"line\n").json();
    let answer = one.ask(&["get", "a", "z", "--limit", "1"]).json();
    assert_eq!((answer["count"].as_i64(), answer["more"].as_bool()), (Some(2), Some(true)));
    assert_eq!(answer["kvs"][0]["value"], "1");
    assert_eq!(one.ask(&["get", "b"]).json()["kvs"][0]["value"], "line\n");
    one.ask(&["get", "missing"]).refused(6, &["missing", "does not exist"]);

    let text = b"if\n version a = 1\nthen\n put a 2 --prev-kv\n get a\nelse\n get b\n";
    let answer = one.ask_reading(&["txn"], text).json();
    assert_eq!(answer["succeeded"], true);
    assert_eq!(answer["responses"][0]["put"]["prev"]["value"], "1");
    assert_eq!(answer["responses"][1]["get"]["kvs"][0]["value"], "2");

    let lease = one.ask(&["lease", "grant", "600"]).json();
    let id = lease["id"].as_str().unwrap();
    one.ask(&["put", "leased", "v", "--lease", id]).json();
    assert_eq!(one.ask(&["lease", "ttl", id, "--keys"]).json()["keys"][0]["key"], "leased");
    assert_eq!(one.ask(&["lease", "keep-alive", id, "--once"]).json()["granted_ttl"], 600);
    assert_eq!(one.ask(&["lease", "ls"]).json()["leases"][0]["id"], id);
    one.ask(&["lease", "revoke", id]).json();
    one.ask(&["get", "leased"]).refused(6, &["does not exist"]);
    one.ask(&["lease", "ttl", id]).refused(6, &["does not exist or has ended"]);

    assert_eq!(one.ask(&["del", "a", "--prev-kv"]).json()["prevs"][0]["value"], "2");
    assert_eq!(one.ask(&["del", "a"]).json()["deleted"], 0);
    let now = one.revision();
    one.ask(&["compact", &now.to_string()]).json();
    one.ask(&["get", "b", "--rev", "1"]).refused(1, &["has been compacted"]);
    let from = ["watch", "b", "--from-revision", "1"];
    let ended = one.ask(&from);
    assert_eq!(ended.code, Some(1), "{ended:?}");

    let info = one.ask(&["info"]).json();
    assert_eq!(
        (&info["member"], &info["leader"]),
        (&Value::from(one.id.clone()), &Value::from(one.id.clone()))
    );
    let add = one.ask(&["member", "add", "two", "--addr", "127.0.0.1:9"]).json();
    assert!(add["command"].as_str().unwrap().contains("--advertise-addr 127.0.0.1:9"), "{add}");
    one.ask(&["member", "add", "one", "--addr", "127.0.0.1:9"]).refused(1, &["one", "belongs to member"]);
    one.ask(&["member", "rm", "nobody"]).refused(6, &["nobody", "member ls"]);
}
