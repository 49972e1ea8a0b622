//! Roots, nodes and tokens against a naive model: whatever is asked for in whatever order, the machine
//! and the model refuse the same and hold the same.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// Nodes beside the members, and the members: voters all three.
const NODES: [u64; 6] = [7, 8, 9, 20, 21, 22];
const VOTERS: [u64; 3] = [7, 8, 9];
const TOKENS: [&str; 4] = ["t1", "t2", "t3", "t4"];
/// Sequences tried, and their longest.
const CASES: u32 = 200;
const LONGEST: usize = 60;

/// What decides a step: its kind, and numbers to choose with.
type Dice = (u8, u8, u8, u8);

fn root(number: u8) -> RootDigest {
    RootDigest([number; 32])
}

/// Where rotation tests begin: three voters, each with a certificate of the first root.
pub fn three_voters() -> Bench {
    let mut bench = Bench::new();
    for id in [8, 9] {
        let node = NodeRecord { ends: 1000, ..NodeRecord::new(NodeId(id), Role::Manager, "", root(1)) };
        bench.ask(Command::Trust(TrustChange::Issue { node, renewal: false, now: 0 })).unwrap();
        let (name, addr) = (format!("n{id}"), format!("n{id}:1"));
        let record = MemberRecord { id: NodeId(id), name, addr, ..Default::default() };
        let voters = (7..=id).map(NodeId).collect();
        let after = ConfState { voters, ..ConfState::default() };
        bench.payload(Payload::Config { change: ConfChange::AddLearner(record), request: None, after });
    }
    bench
}

impl Bench {
    pub fn change(&mut self, change: TrustChange) -> Result<Answer, Refusal> {
        self.ask(Command::Trust(change))
    }

    pub fn trusted(&self) -> Trusted {
        self.view(read::trusted).unwrap()
    }

    pub fn verdict(&self, now: i64) -> Verdict {
        self.view(|view| read::verdict(view, now)).unwrap()
    }

    /// Everything in the table, its private records too.
    fn held(&self) -> usize {
        self.view(|view| view.scan(store::Table::Trust, b"", None).count())
    }
}

#[derive(Clone, PartialEq, Debug)]
struct Node {
    role: Role,
    issuer: u8,
    verified: Option<u8>,
    ends: i64,
    token: String,
    readmit: i64,
}

/// A rotation as far as it decides anything.
#[derive(Clone, Debug)]
struct Moving {
    id: u64,
    reissuing: bool,
    target: u8,
    deadline: i64,
    stolen: bool,
    aborting: bool,
}

/// What the machine should hold, kept in the plainest way.
#[derive(Clone)]
struct Model {
    epoch: u64,
    roots: Vec<u8>,
    moving: Option<Moving>,
    distrusted: BTreeMap<u8, i64>,
    nodes: BTreeMap<u64, Node>,
    revoked: BTreeMap<u64, i64>,
    tokens: BTreeMap<String, TokenRecord>,
}

const NINETY_ONE_DAYS: i64 = 91 * 24 * 3600;

impl Model {
    fn new() -> Self {
        let (role, token) = (Role::Manager, String::new());
        let node = Node { role, issuer: 1, verified: None, ends: 1000, token, readmit: 0 };
        Self {
            epoch: 1,
            roots: vec![1],
            moving: None,
            distrusted: BTreeMap::new(),
            nodes: VOTERS.map(|id| (id, node.clone())).into(),
            revoked: BTreeMap::new(),
            tokens: [("t1".to_owned(), super::token(Role::Manager))].into(),
        }
    }

    fn issuing(&self) -> u8 {
        self.moving.as_ref().filter(|it| it.reissuing).map_or(self.roots[0], |it| it.target)
    }

    /// Who has not been seen with a certificate of the target.
    fn late(&self, moving: &Moving, now: i64) -> Vec<u64> {
        let moved = |node: &Node| {
            let seen = node.verified == Some(moving.target) || moving.aborting && node.verified.is_none();
            node.issuer == moving.target && seen
        };
        let counts = |id: &u64, node: &Node| node.ends > now || VOTERS.contains(id);
        let late = self.nodes.iter().filter(|(id, node)| counts(id, node) && !moved(node));
        late.map(|(id, _)| *id).collect()
    }

    fn may_settle(&self, now: i64) -> bool {
        let Some(moving) = self.moving.as_ref().filter(|moving| moving.reissuing) else { return false };
        let late = self.late(moving, now);
        let moved = VOTERS.iter().filter(|id| !late.contains(id) && self.nodes.contains_key(id)).count();
        moved >= 2 && (late.is_empty() || moving.stolen || now >= moving.deadline)
    }

    fn tidy(&mut self, now: i64) {
        self.nodes.retain(|id, node| node.ends >= now || VOTERS.contains(id));
        self.revoked.retain(|_, until| *until >= now);
    }

    /// Whether a use of the token could be taken.
    fn take(&mut self, id: &str, role: Role, now: i64) -> bool {
        let fits = |it: &&mut TokenRecord| it.role == role && it.expires > now && it.uses != Some(0);
        let token = self.tokens.get_mut(id).filter(fits);
        let Some(token) = token else { return false };
        token.uses = token.uses.map(|uses| uses - 1);
        true
    }

    /// Whether it was done. What was not done may have left a half-done model behind.
    fn change(&mut self, change: &TrustChange) -> bool {
        match change {
            TrustChange::Rotate { id, authority, deadline, stolen, now } => {
                let (number, deadline, stolen) = (authority.digest.0[0], *deadline, *stolen);
                let distrusted = self.distrusted.get(&number).is_some_and(|until| until > now);
                if self.roots.contains(&number) || distrusted || self.roots.len() >= 4 || *id <= self.epoch {
                    return false;
                }
                self.epoch += 1;
                self.roots.push(number);
                let (id, target) = (*id, number);
                self.moving =
                    Some(Moving { id, reissuing: false, target, deadline, stolen, aborting: false });
                true
            }
            TrustChange::Reissue { id } => {
                let Some(moving) = self.moving.as_mut().filter(|moving| moving.id == *id) else {
                    return false;
                };
                self.epoch += u64::from(!moving.reissuing);
                moving.reissuing = true;
                true
            }
            TrustChange::Abort { deadline, .. } => {
                let (deadline, target) = (*deadline, self.roots[0]);
                let Some(moving) = self.moving.as_mut().filter(|moving| !moving.aborting) else {
                    return false;
                };
                let id = moving.id + 1;
                self.epoch += 1;
                *moving = Moving { id, reissuing: true, target, deadline, stolen: false, aborting: true };
                true
            }
            TrustChange::Settle { id, tokens, now } => self.settle(*id, tokens, *now),
            TrustChange::Issue { node, renewal, now } => self.issue(node, *renewal, *now),
            TrustChange::Verified { nodes } => {
                for (id, root) in nodes {
                    if let Some(node) = self.nodes.get_mut(&id.0).filter(|node| node.issuer == root.0[0]) {
                        node.verified = Some(root.0[0]);
                    }
                }
                true
            }
            TrustChange::TokenCreate { id, token, now } => {
                if self.tokens.contains_key(id) {
                    return false;
                }
                self.tokens.retain(|_, token| token.expires > *now && token.uses != Some(0));
                self.tokens.insert(id.clone(), token.clone());
                true
            }
            TrustChange::TokenRotate { id, secret, now } => self.tokens.get_mut(id).is_some_and(|token| {
                *token = TokenRecord { secret: secret.clone(), created: *now, ..token.clone() };
                true
            }),
            TrustChange::TokenRevoke { id } => self.tokens.remove(id).is_some(),
            TrustChange::NodeRemove { id, now } => {
                self.tidy(*now);
                if VOTERS.contains(&id.0) {
                    return false;
                }
                let gone = self.nodes.remove(&id.0);
                gone.map(|node| self.revoked.insert(id.0, node.ends)).is_some()
            }
            TrustChange::NodeRole { id, role } if !VOTERS.contains(&id.0) => {
                self.nodes.get_mut(&id.0).map(|node| node.role = *role).is_some()
            }
            TrustChange::Readmit { id, until } => {
                self.nodes.get_mut(&id.0).map(|node| node.readmit = *until).is_some()
            }
            TrustChange::Tidy { now } => {
                self.tidy(*now);
                true
            }
            _ => false,
        }
    }

    fn settle(&mut self, id: u64, new: &[(String, Sealed)], now: i64) -> bool {
        let Some(moving) = self.moving.clone().filter(|moving| moving.id == id) else { return false };
        if !self.may_settle(now) {
            return false;
        }
        self.moving = None;
        self.epoch += 1;
        self.distrusted.retain(|_, until| *until > now);
        if moving.aborting {
            let crossed = self.roots.iter().filter(|root| **root != moving.target);
            self.distrusted.extend(crossed.map(|root| (*root, now + NINETY_ONE_DAYS)));
        } else {
            self.tokens.retain(|id, _| new.iter().any(|(named, _)| named == id));
            for (id, secret) in new {
                if let Some(token) = self.tokens.get_mut(id) {
                    (token.secret, token.created) = (secret.clone(), now);
                }
            }
        }
        self.roots = vec![moving.target];
        true
    }

    fn issue(&mut self, node: &NodeRecord, renewal: bool, now: i64) -> bool {
        let (id, issuer) = (node.id.0, node.issuer.0[0]);
        if issuer != self.issuing() || self.revoked.contains_key(&id) {
            return false;
        }
        self.tidy(now);
        let known = self.nodes.get(&id).cloned();
        let fits = match &known {
            Some(known) => renewal && known.role == node.role,
            None => !renewal || VOTERS.contains(&id),
        };
        let came_with = known.as_ref().map(|known| known.token.clone());
        let pays = !node.token.is_empty();
        let shut_out = |known: &Node| !self.roots.contains(&known.issuer) && known.readmit <= now;
        if !fits || pays && known.as_ref().is_some_and(shut_out) {
            return false;
        }
        if pays && !self.take(&node.token, node.role, now) {
            return false;
        }
        // What it was seen with under another root says nothing about this certificate.
        let verified = known.as_ref().and_then(|known| match known.issuer == issuer {
            true => known.verified,
            false => Some(known.issuer),
        });
        let token = came_with.unwrap_or(node.token.clone());
        let node = Node { role: node.role, issuer, verified, ends: node.ends, token, readmit: 0 };
        self.nodes.insert(id, node);
        true
    }

    /// The same as the machine holds, in the machine's words.
    fn compare(&self, bench: &Bench) -> Result<(), TestCaseError> {
        let trusted = bench.trusted();
        let roots: Vec<u8> = trusted.roots.iter().map(|root| root.digest.0[0]).collect();
        prop_assert!(!roots.is_empty(), "never zero roots");
        prop_assert_eq!(&roots, &self.roots);
        prop_assert_eq!(trusted.epoch, self.epoch);
        let moving = trusted.rotation.as_ref().map(|it| (it.id, it.target.0[0], it.aborting));
        prop_assert_eq!(moving, self.moving.as_ref().map(|it| (it.id, it.target, it.aborting)));
        let distrusted: BTreeMap<u8, i64> =
            trusted.distrusted.iter().map(|(key, at)| (key.0[0], *at)).collect();
        prop_assert_eq!(&distrusted, &self.distrusted);
        let number = |root: &RootDigest| root.0[0];
        let nodes = bench.view(read::nodes).unwrap().into_iter().map(|it| {
            let (issuer, verified) = (number(&it.issuer), it.verified.as_ref().map(number));
            let NodeRecord { role, ends, token, readmit, .. } = it;
            (it.id.0, Node { role, issuer, verified, ends, token, readmit })
        });
        prop_assert_eq!(nodes.collect::<BTreeMap<_, _>>(), self.nodes.clone());
        let tokens: BTreeMap<_, _> = bench.view(read::tokens).unwrap().into_iter().collect();
        prop_assert_eq!(&tokens, &self.tokens);
        for id in NODES {
            let revoked = bench.view(|view| read::revocation(view, NodeId(id))).unwrap();
            prop_assert_eq!(revoked.map(|it| it.until), self.revoked.get(&id).copied());
            let standing = match (self.revoked.contains_key(&id), self.nodes.get(&id)) {
                (true, _) => Standing::Removed,
                (_, Some(node)) => Standing::Known(node.role),
                (_, None) => Standing::Unknown,
            };
            prop_assert_eq!(bench.view(|view| read::standing(view, NodeId(id))).unwrap(), standing);
        }
        Ok(())
    }
}

/// What somebody could ask for now; wrong things too.
fn draw(model: &Model, (kind, a, b, c): Dice, now: i64) -> TrustChange {
    let pick = |of: u8, from: usize| usize::from(of) % from;
    let id = NodeId(NODES[pick(a, NODES.len())]);
    let role =
        if VOTERS.contains(&id.0) { Role::Manager } else { [Role::Client, Role::Worker][pick(b / 8, 8) / 7] };
    let token = TOKENS[pick(b, TOKENS.len())].to_owned();
    let meant = model.moving.as_ref().map_or(1, |moving| moving.id);
    let meant = if c % 8 == 0 { meant + 1 } else { meant };
    let secret = Sealed(format!("s{a}{b}{c}").into());
    match kind % 32 {
        0 | 1 => TrustChange::Rotate {
            // Sometimes it looked before the last change.
            id: model.epoch + u64::from(c % 16 != 1),
            authority: authority(1 + a % 12),
            deadline: now + i64::from(b % 32),
            stolen: c % 4 == 0,
            now,
        },
        2..=4 => TrustChange::Reissue { id: meant },
        5 => TrustChange::Abort { deadline: now + i64::from(b % 32), now },
        6..=9 => {
            let named = TOKENS.iter().enumerate().filter(|(at, _)| a & (1 << at) != 0);
            let tokens = named.map(|(_, id)| ((*id).to_owned(), secret.clone())).collect();
            TrustChange::Settle { id: meant, tokens, now }
        }
        10..=17 => {
            let issuer = if c % 16 == 0 { root(1 + b % 12) } else { root(model.issuing()) };
            let record = NodeRecord::new(id, role, "", issuer);
            let token = if c % 4 == 1 { token } else { String::new() };
            let ends = now + 1 + i64::from(b % 64) * if VOTERS.contains(&id.0) { 100 } else { 1 };
            let renewal = model.nodes.contains_key(&id.0) ^ (c % 8 == 2);
            TrustChange::Issue { node: NodeRecord { token, ends, ..record }, renewal, now }
        }
        18..=24 => {
            let seen = |id: &u64| model.nodes.get(id).map(|node| (NodeId(*id), root(node.issuer)));
            let mut nodes: Vec<_> = NODES.iter().filter_map(seen).collect();
            nodes.retain(|(id, _)| c % 4 == 0 || id.0 % 3 == u64::from(a % 3));
            if c % 8 == 3 {
                nodes.push((id, root(1 + b % 12)));
            }
            TrustChange::Verified { nodes }
        }
        25 => {
            let uses = [None, Some(1), Some(2)][pick(a, 3)];
            let expires = if b % 2 == 0 { i64::MAX } else { now + i64::from(b % 16) };
            let role = [Role::Client, Role::Worker, Role::Manager][pick(c, 3)];
            let token_record = TokenRecord { role, secret, expires, uses, ..super::token(role) };
            TrustChange::TokenCreate { id: token, token: token_record, now }
        }
        26 => TrustChange::TokenRotate { id: token, secret, now },
        27 => TrustChange::TokenRevoke { id: token },
        28 => TrustChange::NodeRemove { id, now },
        29 => TrustChange::NodeRole { id, role: [Role::Client, Role::Worker][pick(b, 2)] },
        30 => TrustChange::Readmit { id, until: now + i64::from(b) },
        _ => TrustChange::Tidy { now },
    }
}

fn check(dice: &[Dice]) -> Result<(), TestCaseError> {
    let (mut bench, mut model, mut now) = (three_voters(), Model::new(), 1);
    for dice in dice {
        now += i64::from(dice.3 % 4);
        let change = draw(&model, *dice, now);
        let mut next = model.clone();
        let done = next.change(&change);
        let told = bench.change(change.clone());
        prop_assert_eq!(told.is_ok(), done, "{:?} at {} was told {:?}", change, now, told);
        if done {
            model = next;
        }
        model.compare(&bench)?;
    }
    Ok(())
}

/// Sequences that are the same in every run, against the model; panics where one differs.
pub fn sequences() {
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let rng = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let dice = prop::collection::vec(any::<Dice>(), 1..LONGEST);
    if let Err(failed) = runner.run(&dice, |dice| check(&dice)) {
        panic!("{failed}");
    }
}

#[test]
fn random_changes_leave_what_the_model_holds() {
    sequences();
}

proptest! {
    #![proptest_config(Config { cases: 64, ..Config::default() })]
    #[test]
    fn other_random_changes_too(dice in prop::collection::vec(any::<Dice>(), 1..LONGEST)) {
        check(&dice)?;
    }
}

fn begin(bench: &mut Bench, number: u8, stolen: bool, deadline: i64) {
    let id = u64::from(number);
    let rotate = TrustChange::Rotate { id, authority: authority(number), deadline, stolen, now: 10 };
    bench.change(rotate).unwrap();
    assert_eq!(bench.verdict(10), Verdict::Reissue { id });
    bench.change(TrustChange::Reissue { id }).unwrap();
}

fn renew(bench: &mut Bench, id: u64, number: u8) {
    let node = NodeRecord { ends: 1000, ..NodeRecord::new(NodeId(id), Role::Manager, "", root(number)) };
    bench.change(TrustChange::Issue { node, renewal: true, now: 11 }).unwrap();
}

fn seen(bench: &mut Bench, id: u64, number: u8) {
    bench.change(TrustChange::Verified { nodes: vec![(NodeId(id), root(number))] }).unwrap();
}

fn waits_for(bench: &Bench, now: i64, late: &[u64], stuck: bool) {
    let late = late.iter().copied().map(NodeId).collect();
    assert_eq!(bench.verdict(now), Verdict::Wait { late, stuck });
}

/// Whether it settles: who moved, whether the key was stolen, whether the deadline has passed.
#[track_caller]
fn settles(moved: &[u64], stolen: bool, now: i64, expect: bool) {
    let mut bench = three_voters();
    begin(&mut bench, 2, stolen, 50);
    for id in moved {
        renew(&mut bench, *id, 2);
        seen(&mut bench, *id, 2);
    }
    let told = bench.change(TrustChange::Settle { id: 2, tokens: Vec::new(), now });
    assert_eq!(told.is_ok(), expect, "{moved:?} moved, stolen: {stolen}, at {now}: {told:?}");
}

#[test]
fn a_rotation_settles_with_all_or_with_a_quorum_in_need() {
    settles(&[7, 8, 9], false, 20, true);
    settles(&[7, 8], false, 20, false);
    settles(&[7, 8], false, 50, true);
    settles(&[7, 8], true, 20, true);
    settles(&[7], true, 20, false);
    settles(&[7], false, 5000, false);
    settles(&[], true, 5000, false);
}

#[test]
fn who_is_late_and_stuck_is_named() {
    let mut bench = three_voters();
    begin(&mut bench, 2, false, 50);
    waits_for(&bench, 20, &[7, 8, 9], false);
    renew(&mut bench, 7, 2);
    waits_for(&bench, 20, &[7, 8, 9], false);
    seen(&mut bench, 7, 2);
    waits_for(&bench, 20, &[8, 9], false);
    waits_for(&bench, 50, &[8, 9], true);
    renew(&mut bench, 8, 2);
    seen(&mut bench, 8, 2);
    waits_for(&bench, 49, &[9], false);
    assert_eq!(bench.verdict(50), Verdict::Settle { id: 2, late: vec![NodeId(9)] });
}

/// A node that had moved and is led back counts only once it was seen with its third certificate: a
/// crash may have cost it that one, and the second is refused after the settle.
pub fn led_back() {
    let mut bench = three_voters();
    // Seen with the first root, as every member was after an earlier rotation.
    [7, 8, 9].iter().for_each(|id| seen(&mut bench, *id, 1));
    begin(&mut bench, 2, false, 50);
    renew(&mut bench, 9, 2);
    bench.change(TrustChange::Abort { deadline: 60, now: 20 }).unwrap();
    waits_for(&bench, 20, &[9], false);
    renew(&mut bench, 9, 1);
    waits_for(&bench, 20, &[9], false);
    seen(&mut bench, 9, 1);
    assert_eq!(bench.verdict(20), Verdict::Settle { id: 3, late: Vec::new() });
}

#[test]
fn who_is_led_back_proves_it() {
    led_back();
}

#[test]
fn a_rotation_that_was_overtaken_is_not_begun() {
    let mut bench = three_voters();
    let stale = bench.trusted().epoch + 1;
    begin(&mut bench, 2, false, 50);
    [7, 8, 9].iter().for_each(|id| renew(&mut bench, *id, 2));
    [7, 8, 9].iter().for_each(|id| seen(&mut bench, *id, 2));
    bench.change(TrustChange::Settle { id: 2, tokens: Vec::new(), now: 20 }).unwrap();
    let rotate =
        |id| TrustChange::Rotate { id, authority: authority(3), deadline: 90, stolen: false, now: 20 };
    bench.change(rotate(stale)).expect_err("it was made for the root before");
    let current = bench.trusted().epoch + 1;
    bench.change(rotate(current)).unwrap();
}

#[test]
fn who_never_left_proves_nothing() {
    let mut bench = three_voters();
    begin(&mut bench, 2, false, 50);
    bench.change(TrustChange::Abort { deadline: 60, now: 20 }).unwrap();
    assert_eq!(bench.verdict(20), Verdict::Settle { id: 3, late: Vec::new() });
    bench.change(TrustChange::Settle { id: 3, tokens: Vec::new(), now: 20 }).unwrap();
    assert!(bench.view(|view| read::token(view, "t1")).unwrap().is_some(), "an abort leaves tokens alone");
    assert_eq!(bench.trusted().distrusted, [(KeyDigest([2; 32]), 20 + NINETY_ONE_DAYS)]);
}

#[test]
fn a_hundred_thousand_joins_and_removals_leave_the_state_bounded() {
    const ROUNDS: u64 = 1000;
    const EACH: u64 = 100;
    const LIFE: i64 = 10;
    let mut bench = three_voters();
    let (mut most, before) = (0, bench.held());
    for round in 0..ROUNDS {
        let now = 10 + round as i64;
        let node = |at: u64| {
            let id = NodeId(100 + round * EACH + at);
            NodeRecord { ends: now + LIFE, ..NodeRecord::new(id, Role::Client, "c", root(1)) }
        };
        let join = |at| Command::Trust(TrustChange::Issue { node: node(at), renewal: false, now });
        let leave = |at| Command::Trust(TrustChange::NodeRemove { id: node(at).id, now });
        // A few are forgotten by their owners and never removed.
        let commands = (0..EACH).map(join).chain((0..EACH - 3).map(leave)).map(|it| (None, it)).collect();
        let told = bench.entries(&[commands]);
        assert!(told.outcomes.iter().all(|outcome| outcome.result.is_ok()), "round {round}");
        most = most.max(bench.held());
    }
    // Each leaves at most a record or a revocation, and its place in the order of ends, for its life.
    let bound = before + 1 + 2 * (LIFE as usize + 2) * EACH as usize;
    assert!(most <= bound, "{most} records at most, of {} joins; {bound} are explained", ROUNDS * EACH);
    for step in 0..=(bound / 64) as i64 {
        bench.change(TrustChange::Tidy { now: 5000 + step }).unwrap();
    }
    // Nothing but the count of nodes and the order of their ends has come, or gone.
    let left = bench.held();
    assert!(left <= before + 1, "{left} records at the end, {before} before");
}
