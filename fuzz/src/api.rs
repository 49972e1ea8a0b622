//! The fuzz targets of the etcd API: for each service whatever bytes somebody sends as its messages,
//! and for the gateway whatever JSON. Included by the targets in `fuzz_targets/` and by the plain test
//! `raft-kv-server/tests/fuzz_api.rs`, which replays the corpora with the server's conversions.
//!
//! A target panics when a property is broken, and on nothing else: a message that is read has one
//! meaning, which its bytes and its JSON both keep; the cutting of a stream does not depend on where
//! its pieces end.

use std::fmt::Debug;

use etcd_api::{etcdserverpb as pb, v3electionpb as election, v3lockpb as lock};
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::json::{self, Bounds, Refused, Splitter};

/// One target: its name, which is also its corpus's, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("api_kv", |bytes| choose(KV, bytes)),
    ("api_watch", |bytes| choose(WATCH, bytes)),
    ("api_lease", |bytes| choose(LEASE, bytes)),
    ("api_cluster", |bytes| choose(CLUSTER, bytes)),
    ("api_maintenance", |bytes| choose(MAINTENANCE, bytes)),
    ("api_auth", |bytes| choose(AUTH, bytes)),
    ("api_lock", |bytes| choose(LOCK, bytes)),
    ("api_election", |bytes| choose(ELECTION, bytes)),
    ("gateway", gateway),
];

/// What is read of one request; small, so that the bounds are met.
pub const BOUNDS: Bounds = Bounds { bytes: 4096, values: 512 };

/// A kind of message: its name, and what reads it from protobuf and from JSON.
pub type Kind = (&'static str, fn(&[u8]), fn(&[u8]));

macro_rules! kinds {
    ($name:ident: $($message:path),* $(,)?) => {
        /// The service's requests; an input's first byte chooses.
        pub const $name: &[Kind] = &[$((stringify!($message), binary::<$message>, text::<$message>)),*];
    };
}

kinds!(KV: pb::RangeRequest, pb::PutRequest, pb::DeleteRangeRequest, pb::TxnRequest, pb::CompactionRequest);
kinds!(WATCH: pb::WatchRequest);
kinds!(LEASE: pb::LeaseGrantRequest, pb::LeaseRevokeRequest, pb::LeaseKeepAliveRequest,
    pb::LeaseTimeToLiveRequest, pb::LeaseLeasesRequest);
kinds!(CLUSTER: pb::MemberAddRequest, pb::MemberRemoveRequest, pb::MemberUpdateRequest,
    pb::MemberListRequest, pb::MemberPromoteRequest);
kinds!(MAINTENANCE: pb::AlarmRequest, pb::StatusRequest, pb::DefragmentRequest, pb::HashRequest,
    pb::HashKvRequest, pb::SnapshotRequest, pb::MoveLeaderRequest, pb::DowngradeRequest);
kinds!(AUTH: pb::AuthEnableRequest, pb::AuthDisableRequest, pb::AuthStatusRequest, pb::AuthenticateRequest,
    pb::AuthUserAddRequest, pb::AuthUserGetRequest, pb::AuthUserListRequest, pb::AuthUserDeleteRequest,
    pb::AuthUserChangePasswordRequest, pb::AuthUserGrantRoleRequest, pb::AuthUserRevokeRoleRequest,
    pb::AuthRoleAddRequest, pb::AuthRoleGetRequest, pb::AuthRoleListRequest, pb::AuthRoleDeleteRequest,
    pb::AuthRoleGrantPermissionRequest, pb::AuthRoleRevokePermissionRequest);
kinds!(LOCK: lock::LockRequest, lock::UnlockRequest);
kinds!(ELECTION: election::CampaignRequest, election::ProclaimRequest, election::LeaderRequest,
    election::ResignRequest);

/// All services' kinds, by their targets' names.
pub const SERVICES: &[(&str, &[Kind])] = &[
    ("api_kv", KV),
    ("api_watch", WATCH),
    ("api_lease", LEASE),
    ("api_cluster", CLUSTER),
    ("api_maintenance", MAINTENANCE),
    ("api_auth", AUTH),
    ("api_lock", LOCK),
    ("api_election", ELECTION),
];

fn choose(kinds: &[Kind], bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let (_, binary, text) = kinds[usize::from(first & 0x7f) % kinds.len()];
    // The highest bit says which form.
    if first & 0x80 == 0 { binary(rest) } else { text(rest) }
}

trait Api: Message + Default + Serialize + DeserializeOwned + PartialEq + Debug {}
impl<T: Message + Default + Serialize + DeserializeOwned + PartialEq + Debug> Api for T {}

/// As gRPC brings it.
fn binary<T: Api>(bytes: &[u8]) {
    let Ok(message) = T::decode(bytes) else { return };
    keeps(&message);
}

/// As the gateway brings it.
fn text<T: Api>(bytes: &[u8]) {
    match json::decode::<T>(bytes, BOUNDS) {
        Ok(message) => keeps(&message),
        Err(Refused::Wrong(why)) => assert!(!why.is_empty(), "refused without a reason"),
        Err(Refused::TooLarge) => {}
    }
}

fn keeps<T: Api>(message: &T) {
    let again = T::decode(message.encode_to_vec().as_slice());
    assert_eq!(again.as_ref(), Ok(message), "its bytes mean something else");
    // Numbers without a name have no JSON form; that is an error and no panic.
    if let Ok(text) = json::encode(message) {
        let bounds = Bounds { bytes: usize::MAX, values: usize::MAX };
        let again = json::decode::<T>(&text, bounds);
        let too_deep = matches!(&again, Err(Refused::Wrong(why)) if why.contains("recursion limit"));
        assert!(too_deep || again.as_ref() == Ok(message), "its JSON means something else: {again:?}");
    }
}

/// A streamed request body: cut into the same objects wherever its pieces end, each in bounds and
/// readable as a watch request or refused.
pub fn gateway(bytes: &[u8]) {
    let Some((first, body)) = bytes.split_first() else { return };
    let whole = cut(body, body.len());
    let pieces = cut(body, usize::from(*first) + 1);
    let same = whole == pieces || body.len() > BOUNDS.bytes;
    assert!(same, "in pieces of {}: {pieces:?}, whole: {whole:?}", usize::from(*first) + 1);
    for object in whole.0 {
        assert!(object.len() <= BOUNDS.bytes && object.first() == Some(&b'{'));
        text::<pb::WatchRequest>(&object);
        text::<pb::TxnRequest>(&object);
    }
}

/// The objects, and whether the body ends between two of them.
fn cut(body: &[u8], piece: usize) -> (Vec<Vec<u8>>, Result<bool, Refused>) {
    let mut splitter = Splitter::new(BOUNDS);
    let mut objects = vec![];
    for piece in body.chunks(piece.max(1)) {
        splitter.push(piece);
        loop {
            match splitter.next_object() {
                Ok(Some(object)) => objects.push(object.to_vec()),
                Ok(None) => break,
                Err(why) => return (objects, Err(why)),
            }
        }
    }
    (objects, Ok(splitter.is_between()))
}

/// Where a fuzzer and the replay begin: target, and bytes.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = vec![];
    for (target, kinds) in SERVICES {
        let bodies = JSON.iter().filter(|(of, _, _)| of == target);
        for (_, kind, body) in bodies {
            let place = kinds.iter().position(|(name, _, _)| name.ends_with(&format!("::{kind}")));
            let place = u8::try_from(place.unwrap_or_else(|| panic!("{target} has no {kind}"))).expect("few");
            seeds.push((*target, [&[place | 0x80], body.as_bytes()].concat()));
            seeds.push((*target, [vec![place], binary_of(kind, body)].concat()));
        }
        // Every message with nothing in it.
        for place in 0..u8::try_from(kinds.len()).expect("few") {
            seeds.push((*target, vec![place]));
            seeds.push((*target, vec![place | 0x80, b'{', b'}']));
        }
    }
    let streams = [
        r#"{"create_request":{"key":"YQ=="}}"#,
        r#"{"create_request":{"key":"YQ=="}} {"progress_request":{}}
{"cancel_request":{"watch_id":"5"}}"#,
        r#"{"a":"}\"{","b":[{}]}{"success":[null]}garbage"#,
        r#" [1]"#,
        r#"{"compare":null,"success":[{"request_put":{"key":null}}]}"#,
        r#"{"unclosed":{"#,
    ];
    for (size, stream) in (0u8..).step_by(3).zip(streams) {
        seeds.push(("gateway", [&[size], stream.as_bytes()].concat()));
    }
    seeds
}

/// The same message as bytes: found by the kind's name, as the generated types have no common list.
fn binary_of(kind: &str, body: &str) -> Vec<u8> {
    macro_rules! one_of {
        ($($message:path),* $(,)?) => {
            $(if stringify!($message).ends_with(&format!("::{kind}")) {
                let message: $message = json::decode(body.as_bytes(), BOUNDS).expect("a seed is a message");
                return message.encode_to_vec();
            })*
        };
    }
    one_of!(
        pb::RangeRequest,
        pb::PutRequest,
        pb::DeleteRangeRequest,
        pb::TxnRequest,
        pb::CompactionRequest,
        pb::WatchRequest,
        pb::LeaseGrantRequest,
        pb::LeaseKeepAliveRequest,
        pb::LeaseTimeToLiveRequest,
        pb::MemberAddRequest,
        pb::MemberRemoveRequest,
        pb::MemberUpdateRequest,
        pb::AlarmRequest,
        pb::HashKvRequest,
        pb::MoveLeaderRequest,
        pb::DowngradeRequest,
        pb::AuthenticateRequest,
        pb::AuthUserAddRequest,
        pb::AuthUserGrantRoleRequest,
        pb::AuthRoleGrantPermissionRequest,
        pb::AuthRoleRevokePermissionRequest,
        lock::LockRequest,
        lock::UnlockRequest,
        election::CampaignRequest,
        election::ProclaimRequest,
        election::LeaderRequest,
        election::ResignRequest,
    );
    panic!("no {kind}")
}

/// Target, message, and the message as JSON.
const JSON: &[(&str, &str, &str)] = &[
    (
        "api_kv",
        "RangeRequest",
        r#"{"key":"YQ==","range_end":"Yg==","limit":"5","revision":"9","sort_order":"DESCEND"}"#,
    ),
    (
        "api_kv",
        "RangeRequest",
        r#"{"key":"AA==","range_end":"AA==","sort_target":"VALUE","min_mod_revision":"-1"}"#,
    ),
    (
        "api_kv",
        "RangeRequest",
        r#"{"key":"YQ==","range_end":"AA==","count_only":true,"keys_only":true,"limit":"-1"}"#,
    ),
    ("api_kv", "PutRequest", r#"{"key":"YQ==","value":"Yg==","lease":"77","prev_kv":true}"#),
    (
        "api_kv",
        "PutRequest",
        r#"{"key":"","ignore_value":true,"ignore_lease":true,"lease":"-9223372036854775808"}"#,
    ),
    ("api_kv", "DeleteRangeRequest", r#"{"key":"Yg==","range_end":"YQ==","prev_kv":true}"#),
    (
        "api_kv",
        "TxnRequest",
        r#"{"compare":[{"key":"YQ==","target":"VALUE","value":"Yg=="},{"key":"YQ==","target":"LEASE"}],
        "success":[{"request_put":{"key":"YQ=="}},{"request_range":{"key":"YQ=="}},{}],
        "failure":[{"request_txn":{"compare":[{"target":"MOD","mod_revision":"3","range_end":"AA=="}],
        "success":[{"request_delete_range":{"key":"YQ==","range_end":"AA=="}}]}}]}"#,
    ),
    (
        "api_kv",
        "TxnRequest",
        r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}"#,
    ),
    ("api_kv", "CompactionRequest", r#"{"revision":"9","physical":true}"#),
    (
        "api_watch",
        "WatchRequest",
        r#"{"create_request":{"key":"YQ==","range_end":"AA==","start_revision":"-3","filters":["NOPUT",1],"watch_id":"7","fragment":true}}"#,
    ),
    ("api_watch", "WatchRequest", r#"{"cancel_request":{"watch_id":"-1"}}"#),
    ("api_watch", "WatchRequest", r#"{"progress_request":{}}"#),
    ("api_lease", "LeaseGrantRequest", r#"{"TTL":"9000000001","ID":"-5"}"#),
    ("api_lease", "LeaseKeepAliveRequest", r#"{"ID":"77"}"#),
    ("api_lease", "LeaseTimeToLiveRequest", r#"{"ID":"77","keys":true}"#),
    ("api_cluster", "MemberAddRequest", r#"{"peerURLs":["http://127.0.0.1:1",""],"isLearner":true}"#),
    ("api_cluster", "MemberRemoveRequest", r#"{"ID":"18446744073709551615"}"#),
    ("api_cluster", "MemberUpdateRequest", r#"{"ID":"1","peerURLs":["not a url"]}"#),
    ("api_maintenance", "AlarmRequest", r#"{"action":"DEACTIVATE","memberID":"1","alarm":"CORRUPT"}"#),
    ("api_maintenance", "HashKvRequest", r#"{"revision":"-1"}"#),
    ("api_maintenance", "MoveLeaderRequest", r#"{"targetID":"2"}"#),
    ("api_maintenance", "DowngradeRequest", r#"{"action":"CANCEL","version":"3.4.0"}"#),
    ("api_auth", "AuthenticateRequest", r#"{"name":"root","password":"secret"}"#),
    ("api_auth", "AuthUserAddRequest", r#"{"name":"u","options":{"no_password":true},"hashedPassword":"x"}"#),
    ("api_auth", "AuthUserGrantRoleRequest", r#"{"user":"u","role":"r"}"#),
    (
        "api_auth",
        "AuthRoleGrantPermissionRequest",
        r#"{"name":"r","perm":{"permType":"READWRITE","key":"YQ==","range_end":"AA=="}}"#,
    ),
    ("api_auth", "AuthRoleRevokePermissionRequest", r#"{"role":"r","key":"YQ==","range_end":"Yg=="}"#),
    ("api_lock", "LockRequest", r#"{"name":"bQ==","lease":"77"}"#),
    ("api_lock", "UnlockRequest", r#"{"key":"bQ=="}"#),
    ("api_election", "CampaignRequest", r#"{"name":"ZQ==","lease":"77","value":"dg=="}"#),
    (
        "api_election",
        "ProclaimRequest",
        r#"{"leader":{"name":"ZQ==","key":"ZQ==","rev":"7","lease":"77"},"value":"dg=="}"#,
    ),
    ("api_election", "LeaderRequest", r#"{"name":"ZQ=="}"#),
    ("api_election", "ResignRequest", r#"{"leader":{"rev":"-7"}}"#),
];
