//! What a token is good for: its role, its time, its uses, its secret; and who comes back with one.

use proptest::prelude::*;

use super::*;

const LIFE: i64 = 1000;

fn create(id: &str, role: Role, expires: i64, uses: Option<u64>, now: i64) -> Command {
    let token = TokenRecord { expires, uses, created: now, ..token(role) };
    Command::Trust(TrustChange::TokenCreate { id: id.into(), token, now })
}

fn issue_under(root: u8, id: u64, role: Role, token: &str, now: i64, renewal: bool) -> Command {
    let record = NodeRecord::new(NodeId(id), role, format!("n{id}"), RootDigest([root; 32]));
    let node = NodeRecord { ends: now + LIFE, issued: now, token: token.into(), ..record };
    Command::Trust(TrustChange::Issue { node, renewal, now })
}

fn enrol(id: u64, role: Role, token: &str, now: i64) -> Command {
    issue_under(1, id, role, token, now, false)
}

fn stored(bench: &Bench, id: &str) -> Option<TokenRecord> {
    bench.view(|view| read::token(view, id)).unwrap()
}

/// The one door: whether it is refused, and what the refusal names.
#[track_caller]
fn check(bench: &mut Bench, command: Command, expect: Result<(), &str>) {
    match (bench.ask(command), expect) {
        (Ok(_), Ok(())) => {}
        (Err(refusal), Err(part)) => assert!(refusal.to_string().contains(part), "{refusal}"),
        (got, expect) => panic!("{got:?}, not {expect:?}"),
    }
}

/// Each use counts, and the last is the last.
pub fn uses() {
    let mut bench = Bench::new();
    check(&mut bench, create("t", Role::Worker, 100, Some(2), 1), Ok(()));
    // What is refused takes no use.
    check(&mut bench, enrol(2, Role::Client, "t", 2), Err("for another role"));
    check(&mut bench, enrol(2, Role::Worker, "t", 2), Ok(()));
    check(&mut bench, enrol(2, Role::Worker, "t", 2), Err("another node has that id"));
    check(&mut bench, enrol(3, Role::Worker, "t", 3), Ok(()));
    bench.reopen();
    check(&mut bench, enrol(4, Role::Worker, "t", 4), Err("as often as it may be"));
    assert_eq!(bench.view(|view| read::node(view, NodeId(4))).unwrap(), None);
    assert_eq!(stored(&bench, "t").unwrap().uses, Some(0));
    // Renewing needs none, coming back one more.
    check(&mut bench, issue_under(1, 2, Role::Worker, "", 5, true), Ok(()));
    check(&mut bench, issue_under(1, 2, Role::Worker, "t", 5, true), Err("as often as it may be"));
}

/// Another secret, and everything else as it was.
pub fn rotation() {
    let mut bench = Bench::new();
    check(&mut bench, create("t", Role::Worker, 100, Some(2), 1), Ok(()));
    let before = stored(&bench, "t").unwrap();
    let secret = Sealed(bytes("another"));
    let rotate =
        |id: &str| Command::Trust(TrustChange::TokenRotate { id: id.into(), secret: secret.clone(), now: 9 });
    check(&mut bench, rotate("t"), Ok(()));
    let expect = TokenRecord { secret: secret.clone(), created: 9, ..before };
    assert_eq!(stored(&bench, "t"), Some(expect));
    check(&mut bench, rotate("none"), Err("no token has the id"));
}

/// A node that a rotation went on without comes back only if somebody says so.
pub fn shut_out() {
    let mut bench = Bench::new();
    check(&mut bench, create("t", Role::Worker, i64::MAX, None, 1), Ok(()));
    check(&mut bench, enrol(2, Role::Worker, "t", 2), Ok(()));
    let (authority, now) = (authority(2), 20);
    let rotate = TrustChange::Rotate { id: 5, authority, deadline: 30, stolen: false, now };
    check(&mut bench, Command::Trust(rotate), Ok(()));
    check(&mut bench, Command::Trust(TrustChange::Reissue { id: 5 }), Ok(()));
    check(&mut bench, issue_under(2, VOTER.0, Role::Manager, "", 21, true), Ok(()));
    let nodes = vec![(VOTER, RootDigest([2; 32]))];
    check(&mut bench, Command::Trust(TrustChange::Verified { nodes }), Ok(()));
    let tokens = vec![("t".into(), Sealed(bytes("another")))];
    check(&mut bench, Command::Trust(TrustChange::Settle { id: 5, tokens, now: 31 }), Ok(()));

    let back = |now| issue_under(2, 2, Role::Worker, "t", now, true);
    check(&mut bench, back(32), Err("raft-kv node readmit 0000000000000002"));
    check(&mut bench, Command::Trust(TrustChange::Readmit { id: NodeId(2), until: 50 }), Ok(()));
    check(&mut bench, back(50), Err("without this node"));
    check(&mut bench, back(49), Ok(()));
    // Once it is back, a token is enough again.
    check(&mut bench, back(60), Ok(()));
    assert_eq!(bench.view(|view| read::node(view, NodeId(2))).unwrap().unwrap().issuer, RootDigest([2; 32]));
}

#[test]
fn a_token_is_good_for_so_many_nodes() {
    uses();
}

#[test]
fn a_rotated_token_has_another_secret() {
    rotation();
}

#[test]
fn who_was_shut_out_needs_more_than_a_token() {
    shut_out();
}

#[test]
fn a_token_is_good_until_it_expires_or_is_revoked() {
    let mut bench = Bench::new();
    check(&mut bench, create("t", Role::Client, 10, None, 1), Ok(()));
    check(&mut bench, create("t", Role::Client, 10, None, 1), Err("already"));
    check(&mut bench, enrol(2, Role::Client, "t", 9), Ok(()));
    check(&mut bench, enrol(3, Role::Client, "t", 10), Err("expired"));
    check(&mut bench, Command::Trust(TrustChange::TokenRevoke { id: "t".into() }), Ok(()));
    check(&mut bench, enrol(3, Role::Client, "t", 9), Err("revoked"));
    check(&mut bench, create("default-worker", Role::Worker, 10, None, 1), Ok(()));
    check(
        &mut bench,
        Command::Trust(TrustChange::TokenRevoke { id: "default-worker".into() }),
        Err("token rotate"),
    );
}

#[test]
fn what_can_not_be_used_any_more_makes_room() {
    let mut bench = Bench::new();
    let all = crate::limits::MAX_JOIN_TOKENS;
    for number in 1..all {
        check(&mut bench, create(&format!("t-{number}"), Role::Client, 10, Some(1), 1), Ok(()));
    }
    check(&mut bench, create("more", Role::Client, 10, None, 1), Err("revoke those"));
    check(&mut bench, enrol(2, Role::Client, "t-5", 2), Ok(()));
    check(&mut bench, create("more", Role::Client, 10, None, 3), Ok(()));
    assert_eq!(stored(&bench, "t-5"), None);
    check(&mut bench, create("later", Role::Client, 30, None, 20), Ok(()));
    assert_eq!(bench.view(read::tokens).unwrap().len(), 2);
}

#[test]
fn a_label_is_for_people_to_read() {
    for (label, good) in [("build farm \u{e4}", true), ("two\nlines", false), ("\u{1b}[31m", false)] {
        let token = TokenRecord { label: label.into(), ..token(Role::Client) };
        let change = TrustChange::TokenCreate { id: "t".into(), token, now: 1 };
        assert_eq!(validate(&Command::Trust(change)).is_ok(), good, "{label:?}");
    }
}

proptest! {
    #[test]
    fn no_order_of_uses_and_rotations_lets_in_more_than_it_may(
        uses in 1u64..5, steps in prop::collection::vec((0u8..3, 0i64..20), 1..30), expires in 1i64..20,
    ) {
        let mut bench = Bench::new();
        bench.ask(create("t", Role::Worker, expires, Some(uses), 0)).unwrap();
        let mut left = uses;
        for (number, (what, now)) in steps.into_iter().enumerate() {
            let id = 100 + number as u64;
            match what {
                0 => {
                    let secret = Sealed(bytes(&format!("s{number}")));
                    bench.ask(Command::Trust(TrustChange::TokenRotate { id: "t".into(), secret, now })).unwrap();
                }
                1 => prop_assert!(bench.ask(enrol(id, Role::Client, "t", now)).is_err()),
                _ => {
                    let good = left > 0 && now < expires;
                    prop_assert_eq!(bench.ask(enrol(id, Role::Worker, "t", now)).is_ok(), good);
                    left -= u64::from(good);
                }
            }
            prop_assert_eq!(stored(&bench, "t").unwrap().uses, Some(left));
        }
    }
}
