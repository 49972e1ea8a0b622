//! Requests out of bounds: each is refused with what, why and what to do, and changes nothing.

mod process;

use process::Member;
use raft_kv::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

#[test]
fn a_request_out_of_bounds_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let one = Member::first(folder.path());
    one.ask(&["put", "k", "v"]).json();
    let before = one.revision();

    let long_key = "k".repeat(MAX_KEY_BYTES + 1);
    let key_limit = format!("the key has {} bytes, the limit is {MAX_KEY_BYTES}", MAX_KEY_BYTES + 1);
    one.ask(&["put", &long_key, "v"]).refused(1, &[&key_limit, "use a shorter key"]);
    one.ask(&["del", &long_key]).refused(1, &[&key_limit]);
    let long_value = vec![b'v'; MAX_VALUE_BYTES + 1];
    let value_limit = format!("the value has {} bytes, the limit is {MAX_VALUE_BYTES}", MAX_VALUE_BYTES + 1);
    one.ask_reading(&["put", "k", "-"], &long_value).refused(1, &[&value_limit, "split it"]);
    let huge = vec![b'v'; 16 * 1024 * 1024];
    one.ask_reading(&["put", "k", "-"], &huge).refused(1, &["the value has 16777216 bytes"]);

    one.ask(&["put", "", "v"]).refused(1, &["the key is empty"]);
    one.ask(&["get", ""]).refused(1, &["the key is empty"]);
    one.ask(&["get", "k", "--rev", "99999999"]).refused(1, &["is in the future"]);
    one.ask(&["watch", "k", "--from-revision", "-5"]).refused(1, &["the revision is -5"]);
    one.ask(&["compact", "99999999"]).refused(1, &["is in the future"]);
    one.ask(&["lease", "grant", "9999999999999"]).refused(1, &["ttl", "it must be from"]);
    one.ask(&["put", "k", "v", "--lease", "7b"]).refused(6, &["lease 7b does not exist"]);
    one.ask(&["put", "none", "--ignore-value"]).refused(6, &["the key does not exist"]);
    let twice = b"then\nput a 1\nput a 2\n";
    one.ask_reading(&["txn"], twice).refused(1, &["changes the key", "twice"]);
    let many = format!("then\n{}", "get k\n".repeat(129));
    one.ask_reading(&["txn"], many.as_bytes()).refused(1, &["129", "the limit is 128"]);
    one.ask_reading(&["txn"], b"then\nfrobnicate k\n").refused(2, &["line 2", "unknown operation"]);
    one.ask(&["member", "promote", "0000000000000001"]).refused(6, &["no member has the id or name"]);

    assert_eq!(one.revision(), before, "a refused request changed something");
    assert_eq!(one.ask(&["get", "k"]).json()["kvs"][0]["value"], "v");
}
