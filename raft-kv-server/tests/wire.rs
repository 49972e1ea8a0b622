//! What is on the wire, and who gets in by it, with real processes: relays keep every byte between members
//! and between clients and members, and none of it says anything; no port takes plain text or a
//! certificate that the cluster did not make; and no log, metric or answer tells a secret.

mod process;
mod wire_parts;

use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use etcd_api::etcdserverpb::auth_client::AuthClient;
use etcd_api::etcdserverpb::kv_client::KvClient;
use etcd_api::etcdserverpb::maintenance_client::MaintenanceClient;
use etcd_api::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthUserAddRequest, AuthUserChangePasswordRequest,
    AuthUserGrantRoleRequest, AuthenticateRequest, PutRequest, RangeRequest, SnapshotRequest,
};
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use process::{Running, command, until};
use raft_kv::client::credentials_unlocked;
use raft_kv::machine::{Store, read};
use raft_kv::pki::UnlockKey;
use raft_kv::storage::state::{State, StateOptions};
use serde_json::Value;
use wire_parts::capture::{Capture, Flow, Kind, Way};
use wire_parts::scan::{Secrets, forms};
use wire_parts::story::{Hidden, KEY, PASSWORDS, Story, VALUE, blocking, gather, word};
use wire_parts::{framing, knocks};

/// Keys are written, read, watched and deleted by the command line.
fn use_keys(story: &mut Story) {
    let large = VALUE.repeat(200_000 / VALUE.len());
    let other = format!("{KEY}/large");
    // Watched for as long as the rest goes on.
    let mut watch = command(&["watch", KEY, "--prefix", "--json", "--data-dir"]);
    watch.arg(&story.members[1].member.data_dir).env("RUST_LOG", "trace");
    let mut watch = Running::start(watch);
    for member in [0, 1] {
        story.with_files(member, "tester", &["put", KEY, VALUE], &[]);
        story.with_files(member, "tester", &["put", &other, "-"], large.as_bytes());
        let got = story.with_files(member, "tester", &["get", KEY, "--prefix"], &[]);
        assert_eq!(got["count"], 2, "{got}");
        let txn = format!("if\nvalue {KEY} = {VALUE}\nthen\nput {KEY} {VALUE}2\nelse\nget {KEY}\n");
        story.with_files(member, "tester", &["txn"], txn.as_bytes());
    }
    let lease = word(&story.with_files(0, "tester", &["lease", "grant", "60"], &[]), "id");
    story.with_files(0, "tester", &["put", KEY, VALUE, "--lease", &lease], &[]);
    until("the watch has seen it", || {
        watch.next_json().expect("it goes on").to_string().contains(VALUE).then_some(())
    });
    watch.terminate();
    story.note(&["watch"], true, &watch.ended());
    story.with_files(1, "worker", &["cert", "renew"], &[]);
}

/// The same by etcd's protocols, with users and passwords.
fn use_etcd(story: &mut Story) {
    let own = story.credentials(1);
    let door = story.members[1].door.addr;
    let shown = knocks::Shown::from(&own);
    let tokens = blocking(async {
        let connect = {
            let shown = shown.clone();
            tower::service_fn(move |_: http::Uri| {
                let shown = shown.clone();
                async move { knocks::knock(door, Some(&shown), "h2").await.map(TokioIo::new) }
            })
        };
        let endpoint = tonic::transport::Endpoint::from_static("http://raft-kv");
        let channel = endpoint.connect_with_connector(connect).await.unwrap();
        let mut kv = KvClient::new(channel.clone());
        let put = || PutRequest { key: KEY.into(), value: VALUE.repeat(500).into(), ..Default::default() };
        kv.put(put()).await.unwrap();
        kv.range(RangeRequest { key: KEY.into(), ..Default::default() }).await.unwrap();
        let mut backup = MaintenanceClient::new(channel.clone()).snapshot(SnapshotRequest {}).await.unwrap();
        while backup.get_mut().message().await.unwrap().is_some() {}
        let mut auth = AuthClient::new(channel);
        for (name, password) in [("root", PASSWORDS[0]), ("alice", PASSWORDS[1])] {
            let add =
                AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() };
            auth.user_add(add).await.unwrap();
        }
        let other = AuthUserChangePasswordRequest {
            name: "alice".into(),
            password: PASSWORDS[2].into(),
            ..Default::default()
        };
        auth.user_change_password(other).await.unwrap();
        auth.role_add(AuthRoleAddRequest { name: "root".into() }).await.unwrap();
        let grant = AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
        auth.user_grant_role(grant).await.unwrap();
        auth.auth_enable(AuthEnableRequest {}).await.unwrap();
        let login = AuthenticateRequest { name: "root".into(), password: PASSWORDS[0].into() };
        let grpc = auth.authenticate(login).await.unwrap().into_inner().token;
        let mut request = tonic::Request::new(put());
        request.metadata_mut().insert("token", grpc.parse().unwrap());
        kv.put(request).await.unwrap();
        let wrong = AuthenticateRequest { name: "root".into(), password: PASSWORDS[1].into() };
        auth.authenticate(wrong).await.unwrap_err();
        // And in JSON.
        let post = |path: &str, token: &str, body: Value| {
            let request = Request::post(path).header("host", "raft-kv").header("authorization", token);
            request.body(Full::from(body.to_string())).unwrap()
        };
        let login = serde_json::json!({ "name": "alice", "password": PASSWORDS[2] });
        let (code, body) =
            knocks::ask(door, Some(&shown), post("/v3/auth/authenticate", "", login)).await.unwrap();
        assert_eq!(code, StatusCode::OK, "{body}");
        let json = word(&serde_json::from_str(&body).unwrap(), "token");
        let put = serde_json::json!({ "key": STANDARD.encode(KEY), "value": STANDARD.encode(VALUE) });
        let (code, body) = knocks::ask(door, Some(&shown), post("/v3/kv/put", &grpc, put)).await.unwrap();
        assert_eq!(code, StatusCode::OK, "{body}");
        [grpc, json]
    });
    for token in tokens {
        // What is in front of the last part is the same for all.
        story.secrets.add("a user's token", &token[token.len().saturating_sub(24)..]);
    }
    for member in &story.members {
        let (code, page) =
            blocking(knocks::ask(member.door.addr, Some(&shown), knocks::page("/metrics"))).unwrap();
        assert!(code == StatusCode::OK && page.len() > 1000, "{page}");
        story.printed.push(("metrics".into(), page));
    }
}

/// The root, the tokens and the keys are replaced.
fn replace(story: &mut Story) {
    story.ask(0, &["ca", "rotate", "--detach"], false);
    // It waits for those two.
    until("the new root alone is believed", || {
        for name in ["tester", "worker"] {
            story.with_files(1, name, &["cert", "renew"], &[]);
        }
        story.ask(0, &["ca", "status"], false)["rotation"].is_null().then_some(())
    });
    for words in [["ca", "show"], ["token", "ls"], ["node", "ls"]] {
        story.ask(0, &words, false);
    }
    for words in [["join-token", "manager"], ["token", "rotate"]] {
        let words = if words[1] == "rotate" { vec!["token", "rotate", "worker"] } else { words.to_vec() };
        let token = word(&story.ask(1, &words, true), "token");
        story.secrets.add_token("a later token", &token);
    }
    story.note_keys();
    let first = word(&story.ask(0, &["autolock", "on"], true), "unlock_key");
    story.unlock = Some(first.clone());
    until("both are locked", || {
        let key = first.parse::<UnlockKey>().unwrap();
        story
            .members
            .iter()
            .all(|it| credentials_unlocked(&it.member.data_dir, Some(&key)).is_ok())
            .then_some(())
    });
    let second = word(&story.ask(1, &["unlock-key", "rotate"], true), "unlock_key");
    story.unlock = Some(second.clone());
    for key in [first, second] {
        story.secrets.add("an unlock key (text)", &key[16..]);
        story.secrets.add("an unlock key (bytes)", key.parse::<UnlockKey>().unwrap().as_bytes());
    }
    until("both have the second key", || {
        let key = story.unlock.as_ref()?.parse::<UnlockKey>().unwrap();
        story
            .members
            .iter()
            .all(|it| credentials_unlocked(&it.member.data_dir, Some(&key)).is_ok())
            .then_some(())
    });
    for words in [&["member", "ls"][..], &["info"], &["autolock", "status"], &["lease", "ls"]] {
        story.ask(1, words, false);
    }
    story.ask(0, &["unlock-key", "show"], true);
    story.with_files(0, "tester", &["cert", "renew"], &[]);
    story.note_keys();
}

/// Ends the members and takes down what only their disks and they themselves knew.
fn end(story: &mut Story) {
    let ring = story.note_data_keys();
    let mut dirs = Vec::new();
    for Hidden { member, .. } in std::mem::take(&mut story.members) {
        member.running.terminate();
        dirs.push(member.data_dir.clone());
        let ended = member.running.ended();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr.lines().last().unwrap_or_default());
        assert!(ended.stderr.contains("TRACE"), "nothing is left out of the log");
        story.printed.push(("the log of a member".into(), ended.stderr));
        story.printed.push(("the output of a member".into(), ended.stdout));
    }
    let roots = State::open(&dirs[0].join("state"), StateOptions::default()).unwrap().view(|view| {
        let roots = read::trusted(view).unwrap().roots;
        roots.into_iter().map(|root| ring.open("ca key", &root.key.unwrap()).unwrap()).collect::<Vec<_>>()
    });
    assert!(!roots.is_empty());
    for key in roots {
        story.secrets.add_key("the second root's key", &key);
    }
}

#[test]
fn nothing_is_told_on_the_wire_or_in_what_is_printed() {
    let mut story = Story::new();
    gather(&mut story);
    use_keys(&mut story);
    use_etcd(&mut story);
    replace(&mut story);
    end(&mut story);

    // On the wire: framing, hellos, and what nobody can read.
    let scanner = story.secrets.scanner();
    let flows = story.capture.flows();
    for relay in ["quic of one", "quic of two", "door of two"] {
        assert!(story.capture.volume(relay) > 30_000, "{relay}: {}", story.capture.volume(relay));
    }
    for flow in &flows {
        framing::check(flow).unwrap_or_else(|why| panic!("{}: {why}", flow.relay));
        framing::unreadable(flow).unwrap_or_else(|why| panic!("{}: {why}", flow.relay));
        for way in [Way::There, Way::Back] {
            assert_eq!(scanner.find(&flow.stream(way)), None, "by {}", flow.relay);
        }
    }

    // Printed: keys and values are nobody's secret there, the answers that show a secret have it.
    let scanner = story.secrets.only(|what| what != "a key" && what != "a value").scanner();
    for (what, text) in &story.printed {
        if let Some(found) = scanner.find(text.as_bytes()) {
            panic!("{found} is in {what}");
        }
    }
    for (what, text) in story.shown.iter().filter(|(what, _)| !what.contains("watch")) {
        assert!(scanner.find(text.as_bytes()).is_some(), "{what} shows nothing: the search does not find");
    }
    eprintln!("{} secrets, {} flows, {} texts", story.secrets.len(), flows.len(), story.printed.len());
}

#[test]
fn the_capture_finds_each_secret_that_is_sent_in_clear() {
    let capture = Capture::new();
    let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let by_tcp = capture.relay(Kind::Tcp, "tcp", tcp.local_addr().unwrap());
    let by_udp = capture.relay(Kind::Udp, "udp", udp.local_addr().unwrap());
    let mut secrets = Secrets::default();
    for (what, secret) in [("a key", KEY), ("a value", VALUE), ("a password", PASSWORDS[0])] {
        secrets.add(what, secret);
    }
    secrets.add_token("a token", &format!("RAFTKV-1-x-{}", "abcdefgh234567".repeat(4)));
    let scanner = secrets.scanner();
    let mut expect = 0;
    for (what, secret) in secrets.iter() {
        for (form, clear) in forms(secret) {
            let message = [b"some bytes before ", &clear[..], b" and after"].concat();
            TcpStream::connect(by_tcp.addr).unwrap().write_all(&message).unwrap();
            UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&message, by_udp.addr).unwrap();
            expect += 2;
            until(&format!("{what}, {form}, has gone through"), || {
                let flows = capture.flows();
                let found = |flow: &&Flow| scanner.find(&flow.stream(Way::There)).is_some();
                (flows.iter().filter(found).count() == expect).then_some(())
            });
        }
    }
    for flow in capture.flows() {
        framing::check(&flow).expect_err("it is no TLS");
    }
}
