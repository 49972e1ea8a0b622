//! The JSON gateway, over services that record what reaches them and answer what they are told: what
//! comes in, what goes out, what is refused; and, request by request, the same as Debian's etcd.

mod gateway_parts;

use std::time::Duration;

use axum::body::Body;
use gateway_parts::{Etcd, Fakes, Told, ask, ask_with, pieces};
use http_body_util::BodyExt;
use raft_kv_server::etcd::Certificate;
use serde_json::{Value, json};
use tonic::{Code, Status};

/// A fake told `told` is asked at `path` with `body`: the gRPC call that reached it (None: nothing
/// did), and the answer.
async fn check(path: &str, body: &str, told: Told, reached: Option<(&str, Value)>, expect: (u16, Value)) {
    let fakes = Fakes::told(told);
    let answer = ask(&fakes, path, body).await;
    let met = fakes.met();
    let reached: Vec<_> = reached.into_iter().map(|(call, message)| (call.to_owned(), message)).collect();
    assert_eq!(met, reached, "{path} {body}");
    assert_eq!((answer.status, answer.json()), expect, "{path} {body}");
}

fn refusal(code: i32, text: &str) -> Value {
    json!({"error": text, "message": text, "code": code})
}

#[tokio::test]
async fn every_path_reaches_its_call_and_brings_its_answer() {
    let header = json!({"header": {"cluster_id": "18446744073709551615", "revision": "-7"}});
    let paths = [
        ("kv/range", "range"),
        ("kv/put", "put"),
        ("kv/deleterange", "delete_range"),
        ("kv/txn", "txn"),
        ("kv/compaction", "compact"),
        ("lease/grant", "lease_grant"),
        ("lease/revoke", "lease_revoke"),
        ("lease/timetolive", "lease_time_to_live"),
        ("lease/leases", "lease_leases"),
        ("kv/lease/revoke", "lease_revoke"),
        ("kv/lease/timetolive", "lease_time_to_live"),
        ("kv/lease/leases", "lease_leases"),
        ("cluster/member/add", "member_add"),
        ("cluster/member/remove", "member_remove"),
        ("cluster/member/update", "member_update"),
        ("cluster/member/list", "member_list"),
        ("cluster/member/promote", "member_promote"),
        ("maintenance/alarm", "alarm"),
        ("maintenance/status", "status"),
        ("maintenance/defragment", "defragment"),
        ("maintenance/hash", "hash"),
        ("maintenance/hashkv", "hash_kv"),
        ("maintenance/transfer-leadership", "move_leader"),
        ("maintenance/downgrade", "downgrade"),
        ("auth/enable", "auth_enable"),
        ("auth/disable", "auth_disable"),
        ("auth/status", "auth_status"),
        ("auth/authenticate", "authenticate"),
        ("auth/user/add", "user_add"),
        ("auth/user/get", "user_get"),
        ("auth/user/list", "user_list"),
        ("auth/user/delete", "user_delete"),
        ("auth/user/changepw", "user_change_password"),
        ("auth/user/grant", "user_grant_role"),
        ("auth/user/revoke", "user_revoke_role"),
        ("auth/role/add", "role_add"),
        ("auth/role/get", "role_get"),
        ("auth/role/list", "role_list"),
        ("auth/role/delete", "role_delete"),
        ("auth/role/grant", "role_grant_permission"),
        ("auth/role/revoke", "role_revoke_permission"),
        ("lock/lock", "lock"),
        ("lock/unlock", "unlock"),
        ("election/campaign", "campaign"),
        ("election/proclaim", "proclaim"),
        ("election/leader", "leader"),
        ("election/resign", "resign"),
    ];
    for prefix in ["/v3", "/v3beta"] {
        for (path, call) in paths {
            for body in ["", "{}", " \n", "null", "{\"unknown\": [1, {\"a\": null}]} trailing"] {
                let path = format!("{prefix}/{path}");
                let reached = Some((call, json!({})));
                check(&path, body, Told::Answer(header.clone()), reached, (200, header.clone())).await;
            }
        }
        for (path, call) in [("maintenance/snapshot", "snapshot"), ("election/observe", "observe")] {
            let told = Told::Stream(vec![Ok(header.clone())]);
            let path = format!("{prefix}/{path}");
            check(&path, "", told, Some((call, json!({}))), (200, json!({ "result": header }))).await;
        }
    }
}

#[tokio::test]
async fn messages_are_read_as_etcd_reads_them() {
    let taken = [
        (
            "kv/range",
            r#"{"key":"a2V5","limit":5,"revision":"6"}"#,
            json!({"key":"a2V5","limit":"5","revision":"6"}),
        ),
        ("kv/range", r#"{"key":"a2V5","rangeEnd":"eg=="}"#, json!({"key":"a2V5","range_end":"eg=="})),
        (
            "kv/range",
            r#"{"key":"-_8=","sort_target":"CREATE"}"#,
            json!({"key":"+/8=","sort_target":"CREATE"}),
        ),
        (
            "kv/range",
            r#"{"key":"+/8","sort_target":2,"sort_order":0}"#,
            json!({"key":"+/8=","sort_target":"CREATE"}),
        ),
        ("kv/range", r#"{"key":"a2V5","limit":null,"sort_order":null}"#, json!({"key":"a2V5"})),
        ("kv/range", r#"{"key":null,"limit":-1}"#, json!({"limit":"-1"})),
        ("kv/range", r#"{"key":"bnVsbA==","KEY":"eg=="}"#, json!({"key":"bnVsbA=="})),
        ("kv/txn", r#"{"success":null,"compare":[{"value":""}]}"#, json!({"compare":[{"value":""}]})),
        (
            "kv/txn",
            r#"{"compare":[{"key":"YQ==","result":"NOT_EQUAL","target":"MOD","mod_revision":"3"},{"target":4,"result":1}],
                "success":[{"requestPut":{"key":"YQ==","value":"Yg=="}},{"request_range":null},{}],
                "failure":[{"request_txn":{"success":[{"request_delete_range":{"key":"YQ==","prev_kv":true}}]}}]}"#,
            json!({
                "compare":[
                    {"result":"NOT_EQUAL","target":"MOD","key":"YQ==","mod_revision":"3"},
                    {"result":"GREATER","target":"LEASE"},
                ],
                "success":[{"request_put":{"key":"YQ==","value":"Yg=="}},{},{}],
                "failure":[{"request_txn":{"success":[{"request_delete_range":{"key":"YQ==","prev_kv":true}}]}}],
            }),
        ),
        ("lease/grant", r#"{"TTL":"100","ID":77}"#, json!({"TTL":"100","ID":"77"})),
        (
            "auth/role/grant",
            r#"{"name":"r","perm":{"permType":2,"key":"YQ==","range_end":"Yg=="}}"#,
            json!({"name":"r","perm":{"permType":"READWRITE","key":"YQ==","range_end":"Yg=="}}),
        ),
    ];
    for (path, body, message) in taken {
        let fakes = Fakes::told(Told::Answer(json!({})));
        let answer = ask(&fakes, &format!("/v3/{path}"), body).await;
        assert_eq!(answer.status, 200, "{path} {body}: {}", answer.text());
        assert_eq!(fakes.met()[0].1, message, "{path} {body}");
    }
}

#[tokio::test]
async fn what_is_no_message_is_refused_and_reaches_nobody() {
    let deep = format!("{}{}", r#"{"success":[{"request_txn":"#.repeat(200), "}]}".repeat(200));
    let many = format!("{{\"success\":[{}{{}}]}}", "{},".repeat(70_000));
    let long = format!("{{\"key\":\"{}\"}}", "A".repeat(3 * 1024 * 1024));
    let bodies = [
        "[]",
        "\"x\"",
        "5",
        "garbage",
        "{",
        r#"{"key":"a2V5""#,
        r#"{"key":5}"#,
        r#"{"key":"!!"}"#,
        r#"{"key":["YQ=="]}"#,
        r#"{"key":"a2 V5"}"#,
        r#"{"key":"a2V5x"}"#,
        r#"{"limit":"x"}"#,
        r#"{"limit":1.5}"#,
        r#"{"limit":1e2}"#,
        r#"{"limit":""}"#,
        r#"{"limit":"99999999999999999999"}"#,
        r#"{"limit":true}"#,
        r#"{"serializable":"true"}"#,
        r#"{"serializable":1}"#,
        r#"{"sort_order":"descend"}"#,
        r#"{"sort_order":"2"}"#,
        r#"{"sort_order":1.5}"#,
        r#"{"sort_order":99}"#,
        r#"{"sort_order":true}"#,
        "{\"key\":\"\u{0}\"}",
        r#"{"key":null,"limit":"x"}"#,
    ];
    for body in bodies {
        let fakes = Fakes::told(Told::Answer(json!({})));
        let answer = ask(&fakes, "/v3/kv/range", body).await;
        let json = answer.json();
        assert_eq!((answer.status, &json["code"]), (400, &json!(3)), "{body}: {json}");
        assert_eq!(json["error"], json["message"]);
        assert!(json["error"].as_str().is_some_and(|text| !text.is_empty()));
        assert_eq!(fakes.met(), [], "{body}");
    }
    let too_large = refusal(3, "etcdserver: request is too large");
    for body in [&many, &long] {
        check("/v3/kv/txn", body, Told::Answer(json!({})), None, (400, too_large.clone())).await;
    }
    for body in [
        deep.as_str(),
        r#"{"success":[null]}"#,
        r#"{"success":{"0":1}}"#,
        r#"{"success":[{"request_range":"x"}]}"#,
    ] {
        let answer = ask(&Fakes::told(Told::Answer(json!({}))), "/v3/kv/txn", body).await;
        assert_eq!((answer.status, &answer.json()["code"]), (400, &json!(3)));
    }
}

#[tokio::test]
async fn a_refusal_has_the_http_status_of_its_code() {
    let codes = [
        (Code::Cancelled, 408),
        (Code::Unknown, 500),
        (Code::InvalidArgument, 400),
        (Code::DeadlineExceeded, 504),
        (Code::NotFound, 404),
        (Code::AlreadyExists, 409),
        (Code::PermissionDenied, 403),
        (Code::ResourceExhausted, 429),
        (Code::FailedPrecondition, 412),
        (Code::Aborted, 409),
        (Code::OutOfRange, 400),
        (Code::Unimplemented, 501),
        (Code::Internal, 500),
        (Code::Unavailable, 503),
        (Code::DataLoss, 500),
        (Code::Unauthenticated, 401),
    ];
    for (code, http) in codes {
        let status = Status::new(code, "etcdserver: \"so\"");
        let told = Told::Refuse(status.clone());
        let expect = (http, refusal(code as i32, "etcdserver: \"so\""));
        check("/v3/kv/put", "{}", told, Some(("put", json!({}))), expect).await;
        for told in [Told::Refuse(status.clone()), Told::Stream(vec![Err(status.clone())])] {
            let answer = ask(&Fakes::told(told), "/v3/maintenance/snapshot", "{}").await;
            let error = &answer.json()["error"];
            assert_eq!((answer.status, &error["grpc_code"]), (http, &json!(code as i32)));
            assert_eq!(
                (&error["http_code"], &error["message"]),
                (&json!(http), &json!("etcdserver: \"so\""))
            );
        }
    }
    let broken = Status::unavailable("etcdserver: no leader");
    let told = Told::Stream(vec![Ok(json!({"remaining_bytes":"1"})), Err(broken)]);
    let answer = ask(&Fakes::told(told), "/v3/maintenance/snapshot", "{}").await;
    let error = r#"{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader","http_status":"Service Unavailable"}}"#;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.text(), format!("{{\"result\":{{\"remaining_bytes\":\"1\"}}}}\n{error}"));
}

#[tokio::test]
async fn paths_and_methods_that_are_none_are_told_so() {
    let fakes = Fakes::told(Told::Answer(json!({})));
    for path in ["/v3/kv/nothing", "/v3/", "/v3/nothing", "/v3/kv/range/", "/v3beta/x", "/v3/kv/lease/grant"]
    {
        let answer = ask(&fakes, path, "{}").await;
        assert_eq!((answer.status, answer.text()), (404, "Not Found\n".to_owned()), "{path}");
    }
    for method in ["GET", "PUT", "DELETE"] {
        let request =
            http::Request::builder().method(method).uri("/v3/kv/range").body(Body::empty()).unwrap();
        let answer = ask_with(&fakes, request).await;
        assert_eq!((answer.status, answer.text()), (405, "Method Not Allowed\n".to_owned()), "{method}");
    }
    assert_eq!(fakes.met(), []);
}

#[tokio::test]
async fn the_caller_reaches_the_service() {
    let post = |path: &str| http::Request::post(path.to_owned());
    for path in ["/v3/kv/range", "/v3/watch", "/v3/maintenance/snapshot", "/v3/lease/keepalive"] {
        let fakes = Fakes::told(Told::Answer(json!({})));
        let certificate = Certificate { name: "patroni".to_owned(), role: raft_kv::types::Role::Client };
        let request = post(path)
            .header("Authorization", "token.1")
            .header("Grpc-Metadata-HasLeader", "true")
            .header("token", "not metadata")
            .extension(certificate)
            .body(Body::from("{}"))
            .unwrap();
        ask_with(&fakes, request).await;
        let heard = fakes.heard();
        assert_eq!(heard["authorization"], "token.1", "{path}");
        assert_eq!((heard["hasleader"].as_str(), heard.get("token")), ("true", None), "{path}");
        assert_eq!(heard["certificate"], "patroni", "{path}");
    }
    let late = Fakes::told(Told::Never);
    let request = post("/v3/kv/range").header("Grpc-Timeout", "1m").body(Body::from("{}")).unwrap();
    let answer = ask_with(&late, request).await;
    assert_eq!((answer.status, answer.json()), (504, refusal(4, "context deadline exceeded")));
    for wrong in ["bad", "", "1", "999999999S", "-1S"] {
        let request = post("/v3/kv/range").header("Grpc-Timeout", wrong).body(Body::from("{}")).unwrap();
        let answer = ask_with(&late, request).await;
        assert_eq!(
            (answer.status, answer.json()),
            (400, refusal(3, &format!("invalid grpc-timeout: {wrong}")))
        );
    }
}

#[tokio::test]
async fn streams_both_ways_are_cut_into_messages() {
    let cases = [
        (vec![r#"{"ID":77}"#], vec!["77"]),
        (vec![r#"{"ID":77}{"ID":"78"}"#, "\n ", r#"{"I"#, r#"D":79} "#], vec!["77", "78", "79"]),
        // What can't be read ends the requests; what came before it was taken.
        (vec![r#"{"ID":77}garbage{"ID":78}"#], vec!["77"]),
        (vec![r#"{"ID":77}{"ID":"#], vec!["77"]),
        (vec![r#"{"ID":77,"x":"}\"{"}{"ID":78}"#], vec!["77", "78"]),
        (vec![], vec![]),
        (vec![" "], vec![]),
    ];
    for (body, ids) in cases {
        let fakes = Fakes::told(Told::Echo);
        let request = http::Request::post("/v3/lease/keepalive").body(pieces(&body)).unwrap();
        let answer = ask_with(&fakes, request).await;
        let lines: String = ids.iter().map(|id| format!("{{\"result\":{{\"ID\":\"{id}\"}}}}\n")).collect();
        assert_eq!((answer.status, answer.text()), (200, lines), "{body:?}");
    }
    for (path, body) in [
        ("lease/keepalive", "garbage"),
        ("lease/keepalive", r#"{"ID":"x"}"#),
        ("watch", "[]"),
        ("watch", "{"),
    ] {
        let fakes = Fakes::told(Told::Echo);
        let answer = ask(&fakes, &format!("/v3/{path}"), body).await;
        assert_eq!((answer.status, &answer.json()["code"]), (500, &json!(2)), "{path} {body}");
        assert_eq!(fakes.met(), []);
    }
    let endless = format!("{{\"x\":\"{}", "A".repeat(4 * 1024 * 1024));
    let answer = ask(&Fakes::told(Told::Echo), "/v3/watch", &endless).await;
    assert_eq!((answer.status, answer.json()), (400, refusal(3, "etcdserver: request is too large")));
}

#[tokio::test]
async fn a_watch_goes_on_after_its_request_and_ends_with_its_client() {
    let fakes = Fakes::told(Told::Echo);
    let request = http::Request::post("/v3/watch")
        .body(pieces(&[r#"{"create_request":{"watch_id":7}}"#, r#"{"cancel_request":{"watch_id":8}}"#]))
        .unwrap();
    let response = gateway_parts::respond(&fakes, request).await;
    assert_eq!(response.headers()["content-type"], "application/json");
    let mut body = response.into_body();
    for id in ["7", "8"] {
        // One frame each: nothing waits for the next.
        let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await.expect("an event came");
        let data = frame.expect("open").expect("whole").into_data().expect("no trailers");
        assert_eq!(data, format!("{{\"result\":{{\"watch_id\":\"{id}\"}}}}\n"));
    }
    assert!(!fakes.is_over(), "the watch ended with its request");
    drop(body);
    tokio::time::timeout(Duration::from_secs(10), fakes.over()).await.expect("its client is gone");
}

#[tokio::test]
async fn a_stream_is_read_no_further_than_its_client() {
    let told = Told::Endless;
    let fakes = Fakes::told(told);
    let request = http::Request::post("/v3/maintenance/snapshot").body(Body::empty()).unwrap();
    let mut body = gateway_parts::respond(&fakes, request).await.into_body();
    for taken in 1..=5 {
        body.frame().await.expect("endless").expect("whole");
        assert!(fakes.made() <= taken + 1, "{} made, {taken} taken", fakes.made());
    }
}

/// The same request goes to Debian's etcd and, with etcd's answer as the services', to the gateway:
/// status and JSON must be the same.
#[tokio::test]
async fn every_answer_looks_like_etcds() {
    let etcd = Etcd::start().await;
    let mut compared = 0;
    for (path, body) in gateway_parts::requests() {
        let theirs = etcd.ask(&path, body).await;
        let told = Told::from_etcd(&theirs);
        let fakes = Fakes::told(told);
        let ours = ask(&fakes, &path, body).await;
        assert_eq!(ours.status, theirs.status, "{path} {body}: {} / {}", ours.text(), theirs.text());
        assert_eq!(ours.content_type, theirs.content_type, "{path} {body}");
        if theirs.is_parse_error() {
            // Go's words for what is wrong with the JSON are Go's own.
            assert_eq!(ours.json()["code"], theirs.json()["code"], "{path} {body}");
            assert_eq!(fakes.met(), [], "{path} {body}");
        } else if theirs.content_type == "application/json" {
            assert_eq!(ours.lines(), theirs.lines(), "{path} {body}");
        } else {
            assert_eq!(ours.text(), theirs.text(), "{path} {body}");
        }
        compared += 1;
    }
    assert!(compared > 90, "only {compared} compared");
}
