//! Users, roles and permissions: etcd's rules one by one, others' security bugs by name, and every
//! request tree against a naive look at each key.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::error::AuthRefusal;
use crate::limits::MAX_AUTH_NAME_BYTES;
use crate::machine::auth::{Asked, authorize, still_authorized};

const HASH: &str = "$2b$04$......................K6LxGZFnNZUnFDHWVFwL3W6KBEdHCZW";

/// As if it were sealed with the first key.
pub fn sealed(text: &str) -> Sealed {
    Sealed([&Sealed::head(1)[..], text.as_bytes()].concat().into())
}

fn hash() -> Option<PasswordHash> {
    Some(PasswordHash::Sealed(sealed(HASH)))
}

fn enable() -> AuthChange {
    AuthChange::Enable { token_key: sealed("key") }
}

fn user_add(name: &str) -> AuthChange {
    AuthChange::UserAdd { name: name.into(), password: None }
}

fn user_grant(name: &str, role: &str) -> AuthChange {
    AuthChange::UserGrant { name: name.into(), role: role.into() }
}

fn role_add(role: &str) -> AuthChange {
    AuthChange::RoleAdd { role: role.into() }
}

fn role_grant(role: &str, kind: PermissionKind, range: KeyRange) -> AuthChange {
    AuthChange::RoleGrant { role: role.into(), permission: Permission { kind, range } }
}

impl Bench {
    fn auth(&mut self, change: AuthChange) -> Result<Answer, Refusal> {
        self.ask(Command::Auth(change))
    }

    fn auth_ok(&mut self, changes: impl IntoIterator<Item = AuthChange>) {
        for change in changes {
            assert_eq!(self.auth(change.clone()), Ok(Answer::Done), "{change:?}");
        }
    }

    fn revision_of_auth(&self) -> u64 {
        self.view(auth::status).unwrap().revision
    }

    fn user(&self, name: &str) -> Caller {
        Caller::User { name: name.into(), revision: self.revision_of_auth() }
    }

    fn ask_as(&mut self, name: &str, command: Command) -> Result<Answer, Refusal> {
        let caller = self.user(name);
        self.ask(Command::As { caller, command: Box::new(command) })
    }

    fn may(&self, name: &str, asked: &Asked) -> Result<(), Refusal> {
        self.view(|view| authorize(view, &self.user(name), asked)).unwrap()
    }

    /// Permissions count; `user` has a role with these permissions.
    fn with_permissions(permissions: &[(PermissionKind, KeyRange)]) -> Self {
        let mut bench = Self::new();
        bench.auth_ok([user_add("root"), user_grant("root", "root"), user_add("user"), role_add("r")]);
        bench.auth_ok([user_grant("user", "r")]);
        for (kind, range) in permissions {
            bench.auth_ok([role_grant("r", *kind, range.clone())]);
        }
        bench.auth_ok([enable()]);
        bench
    }
}

fn check(result: Result<Answer, Refusal>, expect: AuthRefusal) {
    assert_eq!(result, Err(Refusal::Auth(expect)));
}

fn key(text: &str) -> KeyRange {
    KeyRange::key(bytes(text))
}

fn span(from: &str, to: &str) -> KeyRange {
    KeyRange::span(bytes(from), bytes(to))
}

fn txn(success: Vec<TxnOp>) -> Command {
    Command::Txn(TxnRequest { success, ..TxnRequest::default() })
}

fn read(range: KeyRange) -> TxnOp {
    TxnOp::Range(RangeRequest { range, ..RangeRequest::default() })
}

fn write(key: &str) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes("v"), ..PutRequest::default() }
}

#[test]
fn a_change_of_users_and_roles_follows_etcds_rules() {
    use AuthChange::*;
    let mut bench = Bench::new();
    let b = &mut bench;
    let (root, role) = (|| String::from("root"), || String::from("r"));
    assert_eq!(b.revision_of_auth(), 1);
    check(b.auth(enable()), AuthRefusal::RootMissing);
    check(b.auth(user_add("")), AuthRefusal::UserEmpty);
    check(b.auth(role_add("")), AuthRefusal::RoleEmpty);
    b.auth_ok([user_add("root")]);
    check(b.auth(user_add("root")), AuthRefusal::UserExists);
    check(b.auth(enable()), AuthRefusal::RootRoleMissing);
    // The role root needs no record.
    b.auth_ok([user_grant("root", "root"), user_grant("root", "root"), role_add("r")]);
    assert_eq!(b.revision_of_auth(), 4, "a repeated grant changes nothing");
    check(b.auth(role_add("r")), AuthRefusal::RoleExists);
    check(b.auth(user_grant("nobody", "r")), AuthRefusal::UserNotFound);
    check(b.auth(user_grant("root", "none")), AuthRefusal::RoleNotFound);
    check(b.auth(UserRevoke { name: root(), role: role() }), AuthRefusal::RoleNotGranted);
    check(b.auth(UserRevoke { name: "x".into(), role: role() }), AuthRefusal::UserNotFound);
    check(b.auth(UserDelete { name: "x".into() }), AuthRefusal::UserNotFound);
    check(b.auth(UserPassword { name: "x".into(), password: None }), AuthRefusal::UserNotFound);
    check(b.auth(RoleDelete { role: "x".into() }), AuthRefusal::RoleNotFound);
    check(b.auth(role_grant("x", PermissionKind::Read, key("k"))), AuthRefusal::RoleNotFound);
    check(b.auth(RoleRevoke { role: role(), range: key("k") }), AuthRefusal::PermissionNotGranted);
    for nothing in [span("b", "a"), span("a", "a"), span("", "b"), key("")] {
        check(b.auth(role_grant("r", PermissionKind::Read, nothing)), AuthRefusal::RootNeeded);
    }
    b.auth_ok([
        role_grant("r", PermissionKind::Read, span("b", "c")),
        role_grant("r", PermissionKind::Write, key("b")),
        role_grant("r", PermissionKind::Read, key("a")),
        role_grant("r", PermissionKind::ReadWrite, span("b", "c")),
    ]);
    let view = b.view(|view| auth::query(view, &AuthQuery::Role("r".into()))).unwrap().unwrap();
    let AuthView::Permissions(held) = view else { panic!("{view:?}") };
    let held: Vec<_> = held.into_iter().map(|one| (one.kind, one.range)).collect();
    let expect = [
        (PermissionKind::Read, key("a")),
        (PermissionKind::Write, key("b")),
        (PermissionKind::ReadWrite, span("b", "c")),
    ];
    assert_eq!(held, expect, "by range; the same range again replaces the kind");
    b.auth_ok([user_add("z"), user_add("a"), user_grant("a", "r"), enable(), enable()]);
    check(b.auth(UserDelete { name: root() }), AuthRefusal::RootNeeded);
    check(b.auth(UserRevoke { name: root(), role: root() }), AuthRefusal::RootNeeded);
    check(b.auth(RoleDelete { role: root() }), AuthRefusal::RootNeeded);
    let ask = |b: &Bench, query: AuthQuery| b.view(|view| auth::query(view, &query)).unwrap();
    let names = |names: &[&str]| Ok(AuthView::Names(names.iter().map(ToString::to_string).collect()));
    assert_eq!(ask(b, AuthQuery::Users), names(&["a", "root", "z"]));
    assert_eq!(ask(b, AuthQuery::Roles), names(&["r"]));
    assert_eq!(ask(b, AuthQuery::User("a".into())), names(&["r"]));
    b.auth_ok([RoleDelete { role: role() }]);
    assert_eq!(ask(b, AuthQuery::User("a".into())), names(&[]), "a role goes from its users too");
    assert_eq!(ask(b, AuthQuery::Role("r".into())), Err(Refusal::Auth(AuthRefusal::RoleNotFound)));
    assert_eq!(ask(b, AuthQuery::User("x".into())), Err(Refusal::Auth(AuthRefusal::UserNotFound)));
    b.auth_ok([Disable, Disable, UserDelete { name: root() }]);
    let revision = b.revision_of_auth();
    assert_eq!(ask(b, AuthQuery::Status), Ok(AuthView::Status { enabled: false, revision }));
    b.reopen();
    assert_eq!(ask(b, AuthQuery::Users), names(&["a", "z"]));
}

#[test]
pub fn a_password_is_a_hash_and_a_user_without_one_stays_so() {
    let mut bench = Bench::new();
    let long = "x".repeat(MAX_AUTH_NAME_BYTES + 1);
    let clear = PasswordHash::Clear(HASH.to_owned());
    let unsealed = PasswordHash::Sealed(Sealed(bytes(HASH)));
    for bad in [clear, unsealed, PasswordHash::Sealed(sealed(&"x".repeat(300)))] {
        let change = AuthChange::UserAdd { name: "u".into(), password: Some(bad) };
        assert!(matches!(bench.auth(change), Err(Refusal::Invalid { .. })));
    }
    assert!(matches!(bench.auth(user_add(&long)), Err(Refusal::Invalid { .. })));
    let short = AuthChange::Enable { token_key: Sealed(bytes("short")) };
    assert!(matches!(bench.auth(short), Err(Refusal::Invalid { .. })));
    let password = |name: &str| AuthChange::UserPassword { name: name.into(), password: hash() };
    bench.auth_ok([AuthChange::UserAdd { name: "p".into(), password: hash() }, user_add("c")]);
    bench.auth_ok([password("p"), password("c")]);
    let user = |name| bench.view(|view| auth::user(view, name)).unwrap().unwrap();
    assert_eq!((user("p").password, user("c").password), (Some(sealed(HASH)), None));
    assert_eq!((user("p").password_revision, user("c").password_revision), (4, 5));
}

#[test]
fn who_is_not_a_user_may_do_nothing_while_permissions_count() {
    let mut bench = Bench::with_permissions(&[(PermissionKind::ReadWrite, key("k"))]);
    let anonymous = |command| Command::As { caller: Caller::Anonymous, command: Box::new(command) };
    check(bench.ask(anonymous(put("k", "v"))), AuthRefusal::NoUser);
    check(bench.ask(anonymous(Command::Noop)), AuthRefusal::NoUser);
    check(bench.ask_as("stranger", put("k", "v")), AuthRefusal::Denied);
    check(bench.ask_as("stranger", Command::Noop), AuthRefusal::Denied);
    assert!(bench.ask_as("user", put("k", "v")).is_ok());
    check(bench.ask_as("user", put("l", "v")), AuthRefusal::Denied);
    assert!(bench.ask_as("root", put("l", "v")).is_ok());
    assert!(bench.ask(put("l", "v")).is_ok(), "the member itself may do everything");
    bench.auth_ok([AuthChange::Disable]);
    assert!(bench.ask(anonymous(put("l", "v"))).is_ok());
    assert!(bench.ask_as("stranger", put("l", "v")).is_ok());
}

#[test]
fn a_command_checked_against_older_users_and_roles_is_refused() {
    let mut bench = Bench::with_permissions(&[(PermissionKind::ReadWrite, key("k"))]);
    let old = bench.user("user");
    let by_old = |command| (None, Command::As { caller: old.clone(), command: Box::new(command) });
    let revoke = Command::Auth(AuthChange::RoleRevoke { role: "r".into(), range: key("k") });
    // All in one batch: what is known of a caller is forgotten in the middle of it.
    let applied = bench.entries(&[vec![by_old(put("k", "1")), (None, revoke)], vec![by_old(put("k", "2"))]]);
    let results: Vec<_> = applied.outcomes.into_iter().map(|outcome| outcome.result.err()).collect();
    assert_eq!(results, [None, None, Some(Refusal::Auth(AuthRefusal::OldRevision))]);
    assert_eq!(applied.auth_changed, Some(bench.revision_of_auth()));
    assert_eq!(bench.get("k", 0).unwrap().value, "1");
    check(bench.ask_as("user", put("k", "3")), AuthRefusal::Denied);
    let range = key("k");
    let watch = |bench: &Bench| {
        bench.view(|view| still_authorized(view, &old, &Asked::Watch(&range))).unwrap().is_ok()
    };
    assert!(!watch(&bench));
    bench.auth_ok([role_grant("r", PermissionKind::Read, key("k"))]);
    assert!(watch(&bench), "a watcher is asked by what counts now");
}

#[test]
fn a_caller_within_a_caller_and_what_is_not_for_callers_are_refused() {
    let mut bench = Bench::with_permissions(&[]);
    let twice = Command::As { caller: Caller::Full, command: Box::new(put("k", "v")) };
    assert!(bench.ask(Command::As { caller: Caller::Full, command: Box::new(twice.clone()) }).is_err());
    check(bench.ask_as("user", twice.clone()), AuthRefusal::Denied);
    assert!(validate(&Command::As { caller: Caller::Full, command: Box::new(twice) }).is_err());
    let bearer = Caller::Bearer { token: "t".into() };
    check(
        bench.ask(Command::As { caller: bearer, command: Box::new(put("k", "v")) }),
        AuthRefusal::InvalidToken,
    );
    let expire = Command::LeaseExpire { ids: vec![1], term: 1 };
    check(bench.ask_as("user", expire), AuthRefusal::Denied);
    for command in [
        Command::Trust(TrustChange::TokenRevoke { id: "t1".into() }),
        Command::Auth(user_add("x")),
        Command::Auth(AuthChange::Disable),
        Command::Alarm(AlarmRequest::Raise(VOTER, AlarmKind::Corrupt)),
        Command::MemberUpdate(genesis().member),
        Command::Compact { revision: 1 },
    ] {
        check(bench.ask_as("user", command), AuthRefusal::Denied);
    }
}

#[test]
fn a_kept_answer_is_told_to_nobody_else() {
    let all = (PermissionKind::ReadWrite, KeyRange::all());
    let mut bench = Bench::with_permissions(&[all]);
    let command = Command::Put(PutRequest { prev_kv: true, ..write("k") });
    let by = |bench: &Bench, name: &str| Command::As {
        caller: bench.user(name),
        command: Box::new(command.clone()),
    };
    let (user, root) = (by(&bench, "user"), by(&bench, "root"));
    let first = bench.once(1, 1, user.clone());
    assert!(first.is_ok());
    assert_eq!(bench.once(1, 1, user.clone()), first);
    check(bench.once(1, 1, root), AuthRefusal::Denied);
    check(bench.once(1, 1, command.clone()), AuthRefusal::Denied);
    bench.auth_ok([AuthChange::RoleRevoke { role: "r".into(), range: KeyRange::all() }]);
    check(bench.once(1, 1, user), AuthRefusal::OldRevision);
    let again = by(&bench, "user");
    check(bench.once(1, 1, again), AuthRefusal::Denied);
}

/// A rollback reads and writes all that it may touch; points are everybody's.
pub fn rollback_of_some_keys() {
    let read_write = (PermissionKind::ReadWrite, KeyRange::prefix("mine/"));
    let mut bench = Bench::with_permissions(&[read_write, (PermissionKind::Read, KeyRange::prefix("ours/"))]);
    bench.put("mine/k", "1").unwrap();
    bench.ask(points::create("p", None, 1)).unwrap();
    bench.put("mine/k", "2").unwrap();
    let back = |prefix: Option<&str>| points::rollback("p", prefix.map(bytes), 2);
    for refused in [back(None), back(Some("")), back(Some("min")), back(Some("ours/")), back(Some("theirs/"))]
    {
        check(bench.ask_as("user", refused), AuthRefusal::Denied);
    }
    for refused in [
        points::create("q", None, 1),
        Command::Point(PointChange::Remove { name: "p".into() }),
        Command::Point(PointChange::Tidy { now: 1 }),
    ] {
        check(bench.ask_as("user", refused), AuthRefusal::Denied);
    }
    assert!(bench.ask_as("user", back(Some("mine/k"))).is_ok());
    assert_eq!(bench.get("mine/k", 0).unwrap().value, "1");
    assert!(bench.ask_as("root", back(None)).is_ok());
}

#[test]
fn who_rolls_keys_back_may_read_and_write_them() {
    rollback_of_some_keys();
}

#[test]
fn cve_2026_33343_a_nested_transaction_is_no_way_round() {
    let mut bench = Bench::with_permissions(&[(PermissionKind::ReadWrite, key("mine"))]);
    bench.put("secret", "s").unwrap();
    let inner = |op: TxnOp| TxnOp::Txn(TxnRequest { failure: vec![op], ..TxnRequest::default() });
    let range = KeyRange::key(bytes("secret"));
    for op in [
        read(range.clone()),
        TxnOp::Put(write("secret")),
        TxnOp::Delete(DeleteRequest { range, prev_kv: false }),
    ] {
        check(bench.ask_as("user", txn(vec![op.clone()])), AuthRefusal::Denied);
        check(bench.ask_as("user", txn(vec![inner(op.clone())])), AuthRefusal::Denied);
        check(bench.ask_as("user", txn(vec![inner(inner(op))])), AuthRefusal::Denied);
    }
    let compare =
        Compare { range: key("secret"), op: CompareOp::Equal, target: CompareTarget::Value(bytes("s")) };
    let nested = TxnRequest { compares: vec![compare], ..TxnRequest::default() };
    check(bench.ask_as("user", txn(vec![TxnOp::Txn(nested)])), AuthRefusal::Denied);
    assert!(bench.ask_as("user", txn(vec![inner(TxnOp::Put(write("mine")))])).is_ok());
}

#[test]
fn cve_2026_44283_prev_kv_and_leases_in_a_transaction_are_asked_for() {
    let mut bench = Bench::with_permissions(&[(PermissionKind::Write, key("mine"))]);
    bench.ask(Command::LeaseGrant { id: 1, ttl: 60 }).unwrap();
    bench.ask(Command::LeaseGrant { id: 2, ttl: 60 }).unwrap();
    bench.ask(put_leased("theirs", 1)).unwrap();
    let put = |change: fn(&mut PutRequest)| {
        let mut request = write("mine");
        change(&mut request);
        request
    };
    let refused = [put(|request| request.prev_kv = true), put(|request| request.lease = 1)];
    for request in refused {
        check(bench.ask_as("user", Command::Put(request.clone())), AuthRefusal::Denied);
        check(bench.ask_as("user", txn(vec![TxnOp::Put(request)])), AuthRefusal::Denied);
    }
    let delete = |prev_kv| DeleteRequest { range: key("mine"), prev_kv };
    check(bench.ask_as("user", Command::Delete(delete(true))), AuthRefusal::Denied);
    check(bench.ask_as("user", txn(vec![TxnOp::Delete(delete(true))])), AuthRefusal::Denied);
    assert!(bench.ask_as("user", txn(vec![TxnOp::Put(put(|request| request.lease = 2))])).is_ok());
    check(bench.ask_as("user", Command::LeaseRevoke { id: 1 }), AuthRefusal::Denied);
    assert_eq!(bench.may("user", &Asked::LeaseKeys(2)), Err(Refusal::Auth(AuthRefusal::Denied)));
    assert!(bench.ask_as("user", Command::LeaseRevoke { id: 2 }).is_ok());
}

#[test]
fn cve_2026_33413_maintenance_and_leases_need_a_name() {
    let bench = Bench::with_permissions(&[]);
    let anonymous = |asked: &Asked| bench.view(|view| authorize(view, &Caller::Anonymous, asked)).unwrap();
    let range = KeyRange::all();
    for asked in [Asked::Named, Asked::Root, Asked::Range(&range), Asked::LeaseKeys(1), Asked::User("user")] {
        assert_eq!(anonymous(&asked), Err(Refusal::Auth(AuthRefusal::NoUser)), "{asked:?}");
    }
    assert_eq!(anonymous(&Asked::Open), Ok(()));
    assert_eq!(bench.may("user", &Asked::Named), Ok(()));
    assert_eq!(bench.may("root", &Asked::Root), Ok(()));
    assert_eq!(bench.may("user", &Asked::User("user")), Ok(()));
    assert_eq!(bench.may("user", &Asked::Role("r")), Ok(()));
    for asked in [Asked::Root, Asked::User("root"), Asked::Role("root"), Asked::Range(&range)] {
        assert_eq!(bench.may("user", &asked), Err(Refusal::Auth(AuthRefusal::Denied)), "{asked:?}");
    }
}

#[test]
fn ghsa_xg4h_a_watch_of_one_key_stays_one_key() {
    let bench = Bench::with_permissions(&[(PermissionKind::Read, key("k"))]);
    let may = |range: &KeyRange| bench.may("user", &Asked::Watch(range)).is_ok();
    assert!(may(&key("k")));
    for more in [span("k", "\0"), span("k", "l"), span("k", "k\0\0"), KeyRange::prefix("k"), key("ka")] {
        assert!(!may(&more), "{more:?}");
    }
}

#[test]
fn all_of_it_is_needed_to_compact() {
    let half = (PermissionKind::Read, KeyRange::all());
    let mut bench = Bench::with_permissions(&[half]);
    bench.put("k", "1").unwrap();
    check(bench.ask_as("user", Command::Compact { revision: 2 }), AuthRefusal::Denied);
    bench.auth_ok([role_grant("r", PermissionKind::Write, KeyRange::all())]);
    check(bench.ask_as("user", Command::Compact { revision: 2 }), AuthRefusal::Denied);
    bench.auth_ok([role_grant("r", PermissionKind::ReadWrite, KeyRange::all())]);
    assert!(bench.ask_as("user", Command::Compact { revision: 2 }).is_ok());
}

/// Texts of one to `longest` letters: every place where two ranges with ends from the shorter of
/// them can differ.
fn universe(longest: usize) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut from = 0;
    for _ in 0..longest {
        let to = all.len();
        for at in from..to {
            for letter in ['\0', 'a', 'b'] {
                all.push(format!("{}{letter}", all[at]));
            }
        }
        from = to;
    }
    all.split_off(1)
}

struct Draw {
    random: StdRng,
    texts: Vec<String>,
}

impl Draw {
    fn text(&mut self) -> String {
        self.texts[self.random.random_range(0..self.texts.len())].clone()
    }

    fn range(&mut self) -> KeyRange {
        let key = self.text();
        match self.random.random_range(0..4) {
            0 => KeyRange::key(key),
            1 => KeyRange::span(key, "\0"),
            2 => KeyRange::span(key, self.text()),
            _ => span("a", "b\0"),
        }
    }

    fn permission(&mut self) -> Permission {
        use PermissionKind::{Read, ReadWrite, Write};
        loop {
            let range = self.range();
            if range.is_single() || range.end.as_ref() == b"\0" || range.key < range.end {
                return Permission { kind: [Read, Write, ReadWrite][self.random.random_range(0..3)], range };
            }
        }
    }

    fn put(&mut self) -> PutRequest {
        let lease = [0, 0, 1, 2, 3][self.random.random_range(0..5)];
        PutRequest { lease, prev_kv: self.random.random_bool(0.3), ..write(&self.text()) }
    }

    fn delete(&mut self) -> DeleteRequest {
        DeleteRequest { range: self.range(), prev_kv: self.random.random_bool(0.3) }
    }

    fn txn(&mut self, depth: usize) -> TxnRequest {
        let mut request = TxnRequest::default();
        if self.random.random_bool(0.3) {
            let (op, target) = (CompareOp::Equal, CompareTarget::Version(0));
            request.compares.push(Compare { range: self.range(), op, target });
        }
        for _ in 0..self.random.random_range(0..3) {
            let op = match self.random.random_range(0..if depth == 0 { 3 } else { 5 }) {
                0 => TxnOp::Range(RangeRequest { range: self.range(), ..Default::default() }),
                1 => TxnOp::Put(self.put()),
                2 => TxnOp::Delete(self.delete()),
                _ => TxnOp::Txn(self.txn(depth - 1)),
            };
            let ops = if self.random.random_bool(0.5) { &mut request.success } else { &mut request.failure };
            ops.push(op);
        }
        request
    }

    fn command(&mut self) -> Command {
        match self.random.random_range(0..8) {
            0 => Command::Put(self.put()),
            1 => Command::Delete(self.delete()),
            2 => Command::LeaseRevoke { id: self.random.random_range(1..4) },
            3 => Command::Compact { revision: 0 },
            _ => Command::Txn(self.txn(3)),
        }
    }
}

/// A naive look: every key of the universe that a request touches, and how.
struct Touched<'a> {
    universe: &'a [String],
    leases: &'a [(LeaseId, String)],
    all: Vec<(bool, String)>,
}

impl Touched<'_> {
    fn range(&mut self, writes: bool, range: &KeyRange) {
        let within = self.universe.iter().filter(|key| range.contains(key.as_bytes()));
        self.all.extend(within.map(|key| (writes, key.clone())));
    }

    fn lease(&mut self, id: LeaseId) {
        let keys = self.leases.iter().filter(|(lease, _)| *lease == id);
        self.all.extend(keys.map(|(_, key)| (true, key.clone())));
    }

    fn put(&mut self, request: &PutRequest) {
        let key = KeyRange::key(request.key.clone());
        self.range(true, &key);
        if request.prev_kv {
            self.range(false, &key);
        }
        self.lease(request.lease);
    }

    fn delete(&mut self, request: &DeleteRequest) {
        self.range(true, &request.range);
        if request.prev_kv {
            self.range(false, &request.range);
        }
    }

    fn txn(&mut self, request: &TxnRequest) {
        request.compares.iter().for_each(|compare| self.range(false, &compare.range));
        for op in request.success.iter().chain(&request.failure) {
            match op {
                TxnOp::Range(request) => self.range(false, &request.range),
                TxnOp::Put(request) => self.put(request),
                TxnOp::Delete(request) => self.delete(request),
                TxnOp::Txn(request) => self.txn(request),
            }
        }
    }

    fn command(&mut self, command: &Command) {
        match command {
            Command::Put(request) => self.put(request),
            Command::Delete(request) => self.delete(request),
            Command::Txn(request) => self.txn(request),
            Command::LeaseRevoke { id } => self.lease(*id),
            Command::Compact { .. } => {
                self.range(true, &KeyRange::all());
                self.range(false, &KeyRange::all());
            }
            other => panic!("{other:?} is not drawn"),
        }
    }
}

/// Random roles and requests from one seed: a request is taken where it is applied exactly if
/// every key and field that it touches is allowed.
pub fn run(seed: u64) {
    let universe = universe(3);
    let mut draw = Draw { random: StdRng::seed_from_u64(seed), texts: self::universe(2) };
    let permissions: Vec<_> = (0..draw.random.random_range(0..6)).map(|_| draw.permission()).collect();
    let mut bench = Bench::with_permissions(&[]);
    bench.auth_ok([role_add("s"), user_grant("user", "s")]);
    for permission in &permissions {
        let role = if draw.random.random_bool(0.5) { "r" } else { "s" };
        bench.auth_ok([AuthChange::RoleGrant { role: role.into(), permission: permission.clone() }]);
    }
    // As the roles have it: the same range again replaces the kind.
    let held: Vec<Permission> = ["r", "s"]
        .into_iter()
        .flat_map(|role| match bench.view(|view| auth::query(view, &AuthQuery::Role(role.into()))) {
            Ok(Ok(AuthView::Permissions(held))) => held,
            other => panic!("{other:?}"),
        })
        .collect();
    let allowed = |writes: bool, key: &String| {
        let unfit = if writes { PermissionKind::Read } else { PermissionKind::Write };
        held.iter().any(|one| one.kind != unfit && one.range.contains(key.as_bytes()))
    };
    let mut leases = Vec::new();
    for id in 1..3 {
        bench.ask(Command::LeaseGrant { id, ttl: 60 }).unwrap();
        for _ in 0..id - draw.random.random_range(0..2) {
            let key = draw.text();
            bench.ask(put_leased(&key, id)).unwrap();
            leases.retain(|(_, held)| *held != key);
            leases.push((id, key));
        }
    }
    let before = bench.hash_of_keys();
    for _ in 0..20 {
        let command = draw.command();
        let mut touched = Touched { universe: &universe, leases: &leases, all: Vec::new() };
        touched.command(&command);
        let expect = touched.all.iter().all(|(writes, key)| allowed(*writes, key));
        let door = bench.may("user", &Asked::Command(&command));
        if let Command::Txn(request) = &command {
            assert_eq!(bench.may("user", &Asked::ReadTxn(request)), door);
        }
        // The outcome where it is applied, which may also be refused for other reasons.
        let caller = bench.user("user");
        let as_user = Command::As { caller, command: Box::new(command.clone()) };
        let store = bench.machine.store().snapshot();
        let mut aside = Bench { machine: Machine::open(store).unwrap().unwrap(), term: 1 };
        let denied = aside.ask(as_user) == Err(Refusal::Auth(AuthRefusal::Denied));
        assert_eq!((door.is_ok(), !denied), (expect, expect), "{command:?} with {held:?} and {leases:?}");
        assert!(!denied || aside.hash_of_keys() == before, "what is refused changes nothing");
    }
}

impl Bench {
    fn hash_of_keys(&self) -> u64 {
        self.hash() >> 32
    }
}

pub const SEEDS: u64 = 400;

#[test]
fn a_request_is_allowed_exactly_if_all_it_touches_is() {
    for seed in 0..SEEDS {
        run(seed);
    }
}
