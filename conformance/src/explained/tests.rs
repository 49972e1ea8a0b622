//! Each entry against a pair of answers as the two servers gave it, and against pairs that miss it
//! by one thing.

use etcd_api::authpb::Permission;
use etcd_api::etcdserverpb::request_op::Request;
use etcd_api::etcdserverpb::response_op::Response;
use etcd_api::etcdserverpb::*;
use etcd_api::mvccpb::KeyValue;

use super::{Alarms, Case, explain, table};
use crate::ask::{Answer, Ask};

const REVISION: i64 = 20;

/// What both said to `ask`, asked as `user` (authorisation is on if there is one).
#[derive(Clone)]
struct Said {
    ask: Ask,
    user: Option<&'static str>,
    alarms: Alarms,
    etcd: Answer,
    ours: Answer,
}

impl Said {
    fn new(ask: Ask, etcd: Answer, ours: Answer) -> Self {
        Self { ask, user: None, alarms: Alarms::default(), etcd, ours }
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut changed = self.clone();
        change(&mut changed);
        changed
    }

    fn name(&self) -> Option<&'static str> {
        explain(&Case {
            ask: Some(&self.ask),
            user: self.user,
            auth: self.user.is_some(),
            revision: REVISION,
            compacted: 5,
            alarms: self.alarms,
            requests: &[],
            answers: Some((&self.etcd, &self.ours)),
            lines: None,
        })
    }
}

/// The one door: `real` is explained by `name`, and nothing that is changed is.
fn check(name: &str, real: &Said, misses: &[fn(&mut Said)]) {
    assert_eq!(real.name(), Some(name));
    for (at, miss) in misses.iter().enumerate() {
        let missed = real.with(miss);
        assert_eq!(missed.name(), None, "{name}, miss {at}: {:?} {:?}", missed.etcd, missed.ours);
    }
}

fn refused(code: i32, text: &str) -> Answer {
    Answer::Refused { code, text: text.to_owned() }
}

fn header() -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: 1, member_id: 1, revision: REVISION, raft_term: 1 })
}

fn invalid_token() -> Answer {
    refused(16, "etcdserver: invalid auth token")
}

fn denied() -> Answer {
    refused(7, "etcdserver: permission denied")
}

fn no_space() -> Answer {
    refused(8, "etcdserver: mvcc: database space exceeded")
}

#[test]
fn the_document_holds_the_same_table() {
    let document = include_str!("../../../docs/etcd-differences.md");
    assert!(document.contains(&table()), "docs/etcd-differences.md has to hold:\n{}", table());
}

#[test]
fn every_entry_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<_> = super::EXPLAINED.iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), super::EXPLAINED.len());
}

#[test]
fn auth_status() {
    let status = AuthStatusResponse { header: header(), enabled: false, auth_revision: 1 };
    let etcd = refused(12, "unknown method AuthStatus for service etcdserverpb.Auth");
    let real = Said::new(Ask::AuthStatus(AuthStatusRequest {}), etcd, Answer::AuthStatus(status));
    check(
        "auth-status",
        &real,
        &[
            |said| said.etcd = refused(12, "unknown method"),
            |said| said.etcd = refused(2, "unknown method AuthStatus for service etcdserverpb.Auth"),
            |said| said.ours = invalid_token(),
            |said| said.ours = refused(13, "etcdserver: internal"),
            |said| said.user = Some("u0"),
            |said| said.ask = Ask::Status(StatusRequest {}),
            |said| {
                let Answer::AuthStatus(status) = &mut said.ours else { unreachable!() };
                status.enabled = true;
            },
            |said| {
                let Answer::AuthStatus(status) = &mut said.ours else { unreachable!() };
                status.header.as_mut().unwrap().revision -= 1;
            },
        ],
    );
    let stale = real.with(|said| (said.user, said.ours) = (Some("u0"), invalid_token()));
    check("auth-status", &stale, &[|said| said.user = Some("root"), |said| said.ours = denied()]);
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn put(key: &'static str) -> RequestOp {
    op(Request::RequestPut(PutRequest { key: key.into(), ..Default::default() }))
}

#[test]
fn bad_token() {
    let txn = TxnRequest { success: vec![put("a"), put("a")], ..Default::default() };
    let duplicate = refused(3, "etcdserver: duplicate key given in txn request");
    let real = Said::new(Ask::Txn(txn), duplicate, invalid_token()).with(|said| said.user = Some("u0"));
    check(
        "bad-token",
        &real,
        &[
            |said| said.user = None,
            |said| said.user = Some("root"),
            |said| said.ask = Ask::Txn(TxnRequest { success: vec![put("a")], ..Default::default() }),
            |said| said.ask = Ask::Put(PutRequest::default()),
            |said| said.etcd = refused(3, "etcdserver: key is not provided"),
            |said| said.etcd = denied(),
            |said| said.ours = denied(),
            |said| said.ours = refused(16, "etcdserver: invalid token"),
        ],
    );
}

fn permission(perm_type: i32, key: &'static str, range_end: &'static str) -> Permission {
    Permission { perm_type, key: key.into(), range_end: range_end.into() }
}

fn role(perm: Vec<Permission>) -> Answer {
    Answer::RoleGet(AuthRoleGetResponse { header: header(), perm })
}

fn perms(answer: &mut Answer) -> &mut Vec<Permission> {
    match answer {
        Answer::RoleGet(role) => &mut role.perm,
        other => panic!("not a role: {other:?}"),
    }
}

#[test]
fn role_root() {
    let ask = Ask::RoleGet(AuthRoleGetRequest { role: "root".into() });
    let real = Said::new(ask, role(vec![]), role(vec![permission(2, "", "\0")]));
    assert_eq!(
        real.with(|said| perms(&mut said.etcd).push(permission(0, "a", ""))).name(),
        Some("role-root")
    );
    check(
        "role-root",
        &real,
        &[
            |said| said.ask = Ask::RoleGet(AuthRoleGetRequest { role: "r0".into() }),
            |said| perms(&mut said.ours)[0].perm_type = 0,
            |said| perms(&mut said.ours)[0].range_end = "b".into(),
            |said| perms(&mut said.ours).push(permission(2, "a", "")),
            |said| *perms(&mut said.ours) = vec![permission(2, "a", "")],
            |said| said.etcd = refused(9, "etcdserver: role name not found"),
            |said| said.ours = denied(),
            |said| {
                let Answer::RoleGet(role) = &mut said.ours else { unreachable!() };
                role.header.as_mut().unwrap().revision += 1;
            },
        ],
    );
}

#[test]
fn permission_order() {
    let (one, two) = (permission(2, "a/3", "a/3\0"), permission(1, "a/3", ""));
    let ask = Ask::RoleGet(AuthRoleGetRequest { role: "r0".into() });
    let real = Said::new(ask, role(vec![one.clone(), two.clone()]), role(vec![two, one]));
    check(
        "permission-order",
        &real,
        &[
            |said| perms(&mut said.ours)[0].perm_type = 0,
            |said| perms(&mut said.ours)[0].range_end = "b".into(),
            |said| perms(&mut said.ours).truncate(1),
            |said| perms(&mut said.etcd)[1] = permission(2, "a/3", "a/3\0"),
            |said| {
                // The same in both, but not in the order of their keys.
                perms(&mut said.etcd).push(permission(0, "b", ""));
                perms(&mut said.ours).insert(0, permission(0, "b", ""));
            },
        ],
    );
}

#[test]
fn alarm_first() {
    let ask = Ask::Grant(LeaseGrantRequest { ttl: 9_000_000_001, id: 3 });
    let real = Said::new(ask, no_space(), refused(11, "etcdserver: too large lease TTL"))
        .with(|said| said.alarms.no_space = true);
    check(
        "alarm-first",
        &real,
        &[
            |said| said.alarms = Alarms { no_space: false, corrupt: true },
            |said| said.ask = Ask::Grant(LeaseGrantRequest { ttl: 9_000_000_000, id: 3 }),
            |said| said.ours = refused(11, "etcdserver: mvcc: required revision has been compacted"),
            |said| said.ours = no_space(),
            |said| said.etcd = refused(8, "etcdserver: too many requests"),
            |said| said.etcd = Answer::Grant(LeaseGrantResponse::default()),
            |said| said.etcd = refused(15, "etcdserver: corrupt cluster"),
        ],
    );
    let corrupt = real.with(|said| {
        said.alarms = Alarms { no_space: false, corrupt: true };
        said.etcd = refused(15, "etcdserver: corrupt cluster");
    });
    check("alarm-first", &corrupt, &[|said| said.alarms = Alarms { no_space: true, corrupt: false }]);
}

fn kv(key: &'static str, value: &'static str, mod_revision: i64) -> KeyValue {
    KeyValue { key: key.into(), value: value.into(), mod_revision, version: 1, ..Default::default() }
}

fn found(kvs: Vec<KeyValue>, count: i64) -> RangeResponse {
    RangeResponse { header: header(), more: count > kvs.len() as i64, kvs, count }
}

fn range(answer: &mut Answer) -> &mut RangeResponse {
    match answer {
        Answer::Range(range) => range,
        other => panic!("not a range: {other:?}"),
    }
}

#[test]
fn corrupt_reads() {
    let ask = Ask::Range(RangeRequest { key: "a".into(), ..Default::default() });
    let etcd = Answer::Range(found(vec![kv("a", "v", 3)], 1));
    let real = Said::new(ask, etcd, refused(15, "etcdserver: corrupt cluster"))
        .with(|said| said.alarms.corrupt = true);
    check(
        "corrupt-reads",
        &real,
        &[
            |said| said.alarms = Alarms { no_space: true, corrupt: false },
            |said| said.ask = Ask::Range(RangeRequest { serializable: true, ..Default::default() }),
            |said| said.ask = Ask::Put(PutRequest::default()),
            |said| said.ours = refused(15, "etcdserver: corrupt"),
            |said| said.ours = refused(8, "etcdserver: corrupt cluster"),
            |said| said.etcd = denied(),
            |said| said.etcd = refused(15, "etcdserver: something else"),
            |said| range(&mut said.etcd).header.as_mut().unwrap().revision += 1,
        ],
    );
    let read =
        TxnRequest { success: vec![op(Request::RequestRange(Default::default()))], ..Default::default() };
    let txn = real.with(|said| {
        said.ask = Ask::Txn(read);
        said.etcd = Answer::Txn(TxnResponse { header: header(), ..Default::default() });
    });
    check(
        "corrupt-reads",
        &txn,
        &[
            |said| said.ask = Ask::Txn(TxnRequest { failure: vec![put("a")], ..Default::default() }),
            |said| said.etcd = Answer::Txn(TxnResponse::default()),
            |said| said.etcd = Answer::Range(RangeResponse { header: header(), ..Default::default() }),
        ],
    );
}

#[test]
fn ties() {
    let asked = RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        sort_order: 2,
        sort_target: 4,
        ..Default::default()
    };
    let (one, two, low) = (kv("k1", "v4", 134), kv("z", "v4", 161), kv("a", "v1", 3));
    let etcd = found(vec![two.clone(), one.clone(), low.clone()], 3);
    let ours = found(vec![one, two, low], 3);
    let real = Said::new(Ask::Range(asked.clone()), Answer::Range(etcd.clone()), Answer::Range(ours.clone()));
    check(
        "ties",
        &real,
        &[
            |said| range(&mut said.ours).count = 4,
            |said| range(&mut said.ours).more = true,
            |said| range(&mut said.ours).kvs[0].lease = 7,
            |said| range(&mut said.ours).kvs[0].version = 9,
            |said| range(&mut said.ours).kvs[0].key = "other".into(),
            |said| range(&mut said.ours).kvs[1] = kv("k1", "v4", 134),
            |said| range(&mut said.ours).kvs.swap(0, 2),
            |said| drop(range(&mut said.ours).kvs.pop()),
            |said| range(&mut said.ours).header.as_mut().unwrap().revision += 1,
            |said| {
                let Ask::Range(asked) = &mut said.ask else { unreachable!() };
                asked.sort_target = 0;
            },
        ],
    );
    // The limit cuts through keys that are equal: which of them are left is free, the others are not.
    let cut = real.with(|said| {
        *range(&mut said.etcd) = found(vec![kv("b", "v9", 1), kv("c", "v4", 2)], 9);
        *range(&mut said.ours) = found(vec![kv("b", "v9", 1), kv("d", "v4", 5)], 9);
    });
    check(
        "ties",
        &cut,
        &[
            |said| range(&mut said.ours).kvs[0] = kv("e", "v9", 1),
            |said| range(&mut said.ours).kvs[1] = kv("d", "v3", 5),
            |said| range(&mut said.ours).kvs[1] = kv("b", "v4", 5),
            |said| {
                let Ask::Range(asked) = &mut said.ask else { unreachable!() };
                asked.range_end = "d".into();
            },
        ],
    );
    let txn = |range: RangeResponse| {
        let response = Some(Response::ResponseRange(range));
        let responses = vec![ResponseOp { response }];
        Answer::Txn(TxnResponse { header: header(), succeeded: true, responses })
    };
    let ask = Ask::Txn(TxnRequest { success: vec![op(Request::RequestRange(asked))], ..Default::default() });
    let within = Said::new(ask, txn(etcd), txn(ours));
    check(
        "ties",
        &within,
        &[
            |said| {
                let Answer::Txn(txn) = &mut said.ours else { unreachable!() };
                txn.succeeded = false;
            },
            |said| {
                let Answer::Txn(txn) = &mut said.ours else { unreachable!() };
                txn.responses.push(ResponseOp { response: None });
            },
            |said| {
                let Answer::Txn(txn) = &mut said.ours else { unreachable!() };
                let Some(Response::ResponseRange(range)) = &mut txn.responses[0].response else {
                    unreachable!()
                };
                range.kvs[0].value = "v5".into();
            },
        ],
    );
}

#[test]
fn no_key() {
    let nothing = RangeRequest { key: "a/3".into(), range_end: "a/3".into(), ..Default::default() };
    let real = Said::new(Ask::Range(nothing), denied(), Answer::Range(found(vec![], 0)))
        .with(|said| said.user = Some("u0"));
    check(
        "no-key",
        &real,
        &[
            |said| said.user = Some("root"),
            |said| said.user = None,
            |said| {
                let Ask::Range(asked) = &mut said.ask else { unreachable!() };
                asked.range_end = "b".into();
            },
            |said| range(&mut said.ours).count = 1,
            |said| range(&mut said.ours).kvs.push(kv("a", "v", 1)),
            |said| range(&mut said.ours).more = true,
            |said| range(&mut said.ours).header.as_mut().unwrap().revision += 1,
            |said| said.ours = refused(3, "etcdserver: key is not provided"),
            |said| said.etcd = refused(7, "etcdserver: permission not given"),
            |said| said.etcd = invalid_token(),
        ],
    );
    let future = refused(11, "etcdserver: mvcc: required revision is a future revision");
    assert_eq!(real.with(|said| said.ours = future).name(), Some("no-key"));
    let delete = DeleteRangeRequest { key: "b".into(), range_end: "a".into(), ..Default::default() };
    let deleted =
        |deleted| Answer::Delete(DeleteRangeResponse { header: header(), deleted, ..Default::default() });
    let delete = real.with(|said| (said.ask, said.ours) = (Ask::Delete(delete), deleted(0)));
    check(
        "no-key",
        &delete,
        &[
            |said| {
                let Answer::Delete(response) = &mut said.ours else { unreachable!() };
                response.deleted = 1;
            },
            |said| {
                let Answer::Delete(response) = &mut said.ours else { unreachable!() };
                response.header.as_mut().unwrap().revision += 1;
            },
        ],
    );
}

#[test]
fn seconds() {
    let left = |ttl| {
        let keys = vec!["a".into()];
        Answer::TimeToLive(LeaseTimeToLiveResponse { header: header(), id: 7, ttl, granted_ttl: 60, keys })
    };
    let ask = Ask::TimeToLive(LeaseTimeToLiveRequest { id: 7, keys: true });
    let real = Said::new(ask, left(20), left(18));
    fn lease(said: &mut Said) -> &mut LeaseTimeToLiveResponse {
        match &mut said.ours {
            Answer::TimeToLive(left) => left,
            other => panic!("not a lease: {other:?}"),
        }
    }
    check(
        "seconds",
        &real,
        &[
            |said| lease(said).ttl = 17,
            |said| lease(said).granted_ttl = 61,
            |said| lease(said).keys.clear(),
            |said| lease(said).id = 8,
            |said| lease(said).header = None,
            |said| lease(said).header.as_mut().unwrap().revision += 1,
            |said| {
                let Answer::TimeToLive(etcd) = &mut said.etcd else { unreachable!() };
                etcd.ttl = 1;
                lease(said).ttl = -1;
            },
        ],
    );
}

#[test]
fn alarm_header() {
    let alarms = |header| {
        let alarms = vec![AlarmMember { member_id: 1, alarm: 1 }];
        Answer::Alarm(AlarmResponse { header, alarms })
    };
    let real = Said::new(Ask::Alarm(AlarmRequest::default()), alarms(None), alarms(header()));
    fn ours(said: &mut Said) -> &mut AlarmResponse {
        match &mut said.ours {
            Answer::Alarm(alarms) => alarms,
            other => panic!("not alarms: {other:?}"),
        }
    }
    check(
        "alarm-header",
        &real,
        &[
            |said| ours(said).alarms.clear(),
            |said| ours(said).alarms[0].alarm = 2,
            |said| ours(said).header.as_mut().unwrap().revision += 1,
            |said| ours(said).header.as_mut().unwrap().member_id = 0,
            |said| {
                std::mem::swap(&mut said.etcd, &mut said.ours);
            },
            |said| said.ours = no_space(),
        ],
    );
}

#[test]
fn no_password() {
    let ask = Ask::Authenticate(AuthenticateRequest { name: "u1".into(), password: "p-u1".into() });
    let etcd = refused(2, "auth: authentication failed, password was given for no password user");
    let ours = refused(3, "etcdserver: authentication failed, invalid user ID or password");
    let real = Said::new(ask, etcd, ours);
    check(
        "no-password",
        &real,
        &[
            |said| said.ask = Ask::AuthDisable(AuthDisableRequest {}),
            |said| said.etcd = refused(2, "auth: authentication failed"),
            |said| said.etcd = refused(9, "etcdserver: authentication is not enabled"),
            |said| said.ours = refused(3, "etcdserver: user name is empty"),
            |said| said.ours = refused(16, "etcdserver: authentication failed, invalid user ID or password"),
            |said| said.ours = Answer::Authenticate(AuthenticateResponse::default()),
        ],
    );
}

mod streams;
