//! Rotations against everything at once: members that are off or cut off, leaders that are lost at each
//! step or act late, a second rotation on top, aborts, stolen keys, deadlines. Certificates are symbols;
//! each member goes by what it has applied, which may be old.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Worlds that every test run looks at.
pub const SEEDS: u64 = 200;
const STEPS: usize = 120;

/// A certificate: the root it rests on, and who certified that root's key for those who do not know it.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Leaf {
    root: RootDigest,
    crossed_by: Option<RootDigest>,
}

struct Member {
    id: NodeId,
    /// It runs and is reached.
    up: bool,
    /// What it has applied.
    view: Trusted,
    leaf: Leaf,
    /// A rotation settled without it.
    shut_out: bool,
}

struct World {
    bench: Bench,
    members: Vec<Member>,
    random: StdRng,
    now: i64,
    roots: u8,
    /// Every root there ever was, and by which one its key was certified.
    crossed: Vec<Leaf>,
    settled: usize,
}

fn digest(number: u8) -> RootDigest {
    RootDigest([number; 32])
}

fn signer(root: RootDigest) -> KeyDigest {
    KeyDigest(root.0)
}

/// Whether somebody who believes `view` takes a certificate.
fn accepts(view: &Trusted, leaf: Leaf) -> bool {
    let believed = |root: RootDigest| view.roots.iter().any(|known| known.digest == root);
    let given_up = view.distrusted.iter().any(|(key, _)| *key == signer(leaf.root));
    believed(leaf.root) || leaf.crossed_by.is_some_and(|by| believed(by) && !given_up)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut bench = Bench::new();
        let mut ids = vec![VOTER];
        for number in 0..random.random_range(2..5) {
            let id = NodeId(20 + number);
            let record = NodeRecord::new(id, Role::Manager, format!("m{number}"), digest(1));
            bench.ask(Command::Trust(TrustChange::Issue { node: record, renewal: false, now: 1 })).unwrap();
            let member = MemberRecord {
                id,
                name: format!("m{number}"),
                addr: format!("h{number}:1"),
                ..Default::default()
            };
            let after = ConfState { voters: ids.clone(), learners: vec![id], ..ConfState::default() };
            bench.payload(Payload::Config { change: ConfChange::AddLearner(member), request: None, after });
            ids.push(id);
            let after = ConfState { voters: ids.clone(), ..ConfState::default() };
            bench.payload(Payload::Config { change: ConfChange::Promote(id), request: None, after });
        }
        // A client that never comes back.
        let node = NodeRecord { ends: 5000, ..NodeRecord::new(NodeId(90), Role::Client, "gone", digest(1)) };
        bench.ask(Command::Trust(TrustChange::Issue { node, renewal: false, now: 1 })).unwrap();
        let view = bench.view(read::trusted).unwrap();
        let leaf = Leaf { root: digest(1), crossed_by: None };
        let member = |id| Member { id, up: true, view: view.clone(), leaf, shut_out: false };
        let members = ids.into_iter().map(member).collect();
        Self { bench, members, random, now: 10, roots: 1, crossed: vec![leaf], settled: 0 }
    }

    fn trusted(&self) -> Trusted {
        self.bench.view(read::trusted).unwrap()
    }

    fn propose(&mut self, change: TrustChange) -> bool {
        self.bench.ask(Command::Trust(change)).is_ok()
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn cross_of(&self, root: RootDigest) -> Option<RootDigest> {
        self.crossed.iter().find(|leaf| leaf.root == root).and_then(|leaf| leaf.crossed_by)
    }

    fn rotate(&mut self) {
        self.roots += 1;
        let trusted = self.trusted();
        let (now, stolen) = (self.now, self.random.random_range(0..4) == 0);
        let id = trusted.rotation.as_ref().map_or(trusted.epoch, |it| it.id).max(trusted.epoch) + 1;
        let deadline = now + self.random.random_range(5..200);
        let authority = authority(self.roots);
        // Where it is refused nobody keeps what was made for it.
        if self.propose(TrustChange::Rotate { id, authority, deadline, stolen, now }) {
            self.crossed.push(Leaf { root: digest(self.roots), crossed_by: Some(trusted.in_force().digest) });
        }
    }

    /// What a member does by itself: it renews by what it has applied.
    fn renew(&mut self, at: usize) {
        let member = &self.members[at];
        let (wanted, view, back) = (member.view.issuing().digest, &member.view, member.shut_out);
        let introducing = view.rotation.as_ref().is_some_and(|it| it.phase == Phase::Introduce);
        let id = member.id;
        // What it was given last may never have arrived.
        let record = self.bench.view(|view| read::node(view, id)).unwrap();
        let given = record.is_some_and(|record| record.issuer == wanted);
        if given && member.leaf.root == wanted && !back || introducing {
            return;
        }
        let record = NodeRecord::new(id, Role::Manager, "m", wanted);
        let issued = self.propose(TrustChange::Issue { node: record, renewal: true, now: self.now });
        // The answer may be lost; it asks again.
        if issued && self.chance(85) {
            let crossed_by = self.cross_of(wanted);
            let member = &mut self.members[at];
            member.leaf = Leaf { root: wanted, crossed_by };
            member.shut_out = false;
        }
    }

    /// What the leader does, whoever it is, on what is applied; a deposed one may come late with it.
    fn drive(&mut self) {
        let now = self.now;
        let verdict = self.bench.view(|view| read::verdict(view, now)).unwrap();
        match verdict {
            Verdict::Stable => {}
            Verdict::Reissue { id } => drop(self.propose(TrustChange::Reissue { id })),
            Verdict::Settle { id, .. } => self.settle(id),
            Verdict::Wait { late, .. } => {
                assert!(!late.is_empty(), "it waits and names nobody");
                let rotation = self.trusted().rotation.expect("one is under way");
                if self.chance(5) {
                    self.settle(rotation.id);
                }
            }
        }
    }

    fn settle(&mut self, id: u64) {
        let (before, now) = (self.trusted(), self.now);
        let tokens = vec![("t1".to_owned(), Sealed(Bytes::from(vec![self.roots, self.settled as u8])))];
        let quorum = |target| {
            let moved = self.members.iter().filter(|member| member.leaf.root == target).count();
            moved > self.members.len() / 2
        };
        let target = before.rotation.as_ref().map(|it| it.target);
        let moved = target.is_some_and(quorum);
        let secret = |world: &Self| world.bench.view(|view| read::token(view, "t1")).unwrap().unwrap().secret;
        let old = secret(self);
        if !self.propose(TrustChange::Settle { id, tokens, now }) {
            return;
        }
        self.settled += 1;
        let rotation = before.rotation.expect("one was under way");
        assert!(moved, "it settled before a quorum had moved");
        let all = self.members.iter().all(|member| member.leaf.root == rotation.target);
        assert!(
            all || rotation.stolen || now >= rotation.deadline,
            "it settled without somebody, and too early"
        );
        assert_eq!(self.trusted().roots.len(), 1, "only the target is believed");
        assert!(rotation.aborting || secret(self) != old, "tokens have new secrets");
        for member in &mut self.members {
            member.shut_out |= member.leaf.root != rotation.target;
        }
    }

    fn step(&mut self) {
        self.now += self.random.random_range(0..4);
        for at in 0..self.members.len() {
            if self.chance(4) {
                self.members[at].up ^= true;
            }
            if !self.members[at].up {
                continue;
            }
            if self.chance(60) {
                self.members[at].view = self.trusted();
            }
            if self.chance(40) {
                self.renew(at);
            }
        }
        let seen: Vec<_> = self.seen();
        for (id, root) in seen {
            if self.chance(40) {
                self.propose(TrustChange::Verified { nodes: vec![(id, root)] });
            }
        }
        match self.random.random_range(0..100) {
            0..6 => self.rotate(),
            6..8 => {
                let deadline = self.now + 50;
                self.propose(TrustChange::Abort { deadline, now: self.now });
            }
            8..60 => self.drive(),
            _ => {}
        }
        self.check();
    }

    /// Whom listeners verify now: they let the other in and know its root.
    fn seen(&self) -> Vec<(NodeId, RootDigest)> {
        let up = || self.members.iter().filter(|member| member.up);
        let sees = |by: &Member, other: &Member| {
            by.id != other.id && by.view.roots.iter().any(|root| root.digest == other.leaf.root)
        };
        up().flat_map(|by| up().filter(move |other| sees(by, other)))
            .map(|it| (it.id, it.leaf.root))
            .collect()
    }

    fn check(&self) {
        let now = self.trusted();
        assert!(!now.roots.is_empty(), "never zero trusted roots");
        let alive: Vec<_> = self.members.iter().filter(|member| member.up && !member.shut_out).collect();
        for one in &alive {
            for other in &alive {
                let taken = accepts(&one.view, other.leaf);
                assert!(taken, "{} refuses {}: {:?} by {:?}", one.id, other.id, other.leaf, one.view);
            }
        }
        if now.rotation.is_none() {
            // Whatever is made with a key that was given up opens nothing any more.
            for leaf in self.crossed.iter().filter(|leaf| leaf.root != now.in_force().digest) {
                assert!(!accepts(&now, *leaf), "{leaf:?} is taken by {now:?}");
            }
        }
    }
}

/// One world from one seed; panics where a promise is broken.
pub fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    // All come back, nobody begins another one: it ends.
    for member in &mut world.members {
        member.up = true;
    }
    for _ in 0..400 {
        world.now += 1;
        for at in 0..world.members.len() {
            world.members[at].view = world.trusted();
            world.renew(at);
        }
        for (id, root) in world.seen() {
            world.propose(TrustChange::Verified { nodes: vec![(id, root)] });
        }
        world.drive();
        world.check();
        if world.trusted().rotation.is_none() && world.members.iter().all(|member| !member.shut_out) {
            return;
        }
    }
    panic!("a rotation never ends, or somebody does not come back: {:?}", world.trusted());
}

#[test]
fn rotations_keep_their_promises_whatever_happens() {
    // More: ROTATION_SEEDS=20000 cargo test -p raft-kv --lib rotations_keep
    let seeds = std::env::var("ROTATION_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    for seed in 0..seeds {
        let run = std::panic::catch_unwind(|| run(seed));
        assert!(run.is_ok(), "seed {seed}");
    }
}
