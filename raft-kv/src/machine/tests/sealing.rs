//! Data keys: whatever is asked for in whatever order, every secret can be opened with keys that a
//! quorum has on disk.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use super::users::sealed;
use super::*;

pub const SEEDS: u64 = 60;

fn with_key(key: DataKeyId, text: &str) -> Sealed {
    Sealed([&Sealed::head(key)[..], text.as_bytes()].concat().into())
}

fn learner(id: u64) -> Command {
    let name = format!("m{id}");
    let record = MemberRecord { id: NodeId(id), addr: format!("{name}:1"), name, ..Default::default() };
    Command::Trust(TrustChange::Issue {
        node: NodeRecord::new(NodeId(id), Role::Manager, record.name.clone(), RootDigest([1; 32])),
        renewal: false,
        now: 1,
    })
}

impl Bench {
    fn trust(&mut self, change: TrustChange) -> Result<Answer, Refusal> {
        self.ask(Command::Trust(change))
    }

    fn sealing(&self) -> Sealing {
        self.view(read::sealing).unwrap()
    }

    fn step(&self, now: i64) -> SealStep {
        self.view(|view| read::seal_step(view, now, 100)).unwrap()
    }

    fn next_key(&mut self) -> Result<Answer, Refusal> {
        let active = self.sealing().active;
        self.trust(TrustChange::KeyNext { id: active + 1, key: with_key(active, "next"), now: 10 })
    }

    /// What the leader does, until there is nothing to be done.
    fn drive(&mut self) {
        loop {
            let change = match self.step(i64::MAX) {
                SealStep::Settled | SealStep::Wait { .. } => return,
                SealStep::Activate(id) => TrustChange::KeyActivate { id },
                SealStep::Settle(id) => TrustChange::KeySettle { id },
                SealStep::Again(_) => {
                    self.next_key().unwrap();
                    continue;
                }
                SealStep::Reseal(secrets) => {
                    let active = self.sealing().active;
                    let anew = |(place, old): (SecretPlace, Sealed)| {
                        let new = Sealed([&Sealed::head(active)[..], &old.0[12..]].concat().into());
                        Resealed { place, old, new }
                    };
                    TrustChange::Reseal { items: secrets.into_iter().map(anew).collect() }
                }
            };
            self.trust(change).unwrap();
        }
    }
}

#[test]
fn a_key_is_replaced_step_by_step_and_every_secret_is_sealed_anew() {
    let mut bench = Bench::new();
    let user = AuthChange::UserAdd { name: "u".into(), password: Some(PasswordHash::Sealed(sealed("h"))) };
    bench.ask(Command::Auth(user)).unwrap();
    let secret = TokenRecord { secret: sealed("t"), ..token(Role::Worker) };
    bench.trust(TrustChange::TokenCreate { id: "t2".into(), token: secret, now: 1 }).unwrap();
    bench.trust(TrustChange::Unlock { key: Some(sealed("unlock")), version: 0 }).unwrap();
    assert!(bench.trust(TrustChange::Unlock { key: None, version: 0 }).is_err(), "of another version");
    assert_eq!(bench.step(0), SealStep::Again(2), "another lock, another data key");

    bench.next_key().unwrap();
    assert_eq!(bench.step(10), SealStep::Wait { late: vec![VOTER] });
    assert!(bench.trust(TrustChange::KeyActivate { id: 2 }).is_err(), "on nobody's disk");
    bench.trust(TrustChange::KeyStored { id: 2, node: NodeId(99) }).unwrap();
    assert!(bench.trust(TrustChange::KeyActivate { id: 2 }).is_err(), "a stranger does not count");
    bench.trust(TrustChange::KeyStored { id: 2, node: VOTER }).unwrap();
    assert_eq!(bench.step(10), SealStep::Activate(2));
    bench.trust(TrustChange::KeyActivate { id: 2 }).unwrap();
    assert!(bench.trust(TrustChange::KeySettle { id: 2 }).is_err(), "something is sealed with the old one");
    // Another replacement meanwhile comes after it.
    bench.next_key().unwrap();
    assert!(bench.sealing().again && bench.sealing().next.is_none());
    // What is changed while it is sealed anew stays changed.
    let SealStep::Reseal(secrets) = bench.step(10) else { panic!("{:?}", bench.step(10)) };
    assert_eq!(secrets.len(), 3);
    bench.trust(TrustChange::TokenRotate { id: "t2".into(), secret: with_key(2, "new"), now: 1 }).unwrap();
    let items = secrets.into_iter().map(|(place, old)| Resealed { place, old, new: with_key(2, "anew") });
    bench.trust(TrustChange::Reseal { items: items.collect() }).unwrap();
    let kept = bench.view(|view| read::token(view, "t2")).unwrap().unwrap();
    assert_eq!(kept.secret, with_key(2, "new"));
    let applied = bench.run(Command::Trust(TrustChange::KeySettle { id: 2 }));
    assert!(applied.outcomes[0].result.is_ok() && applied.forget_log);
    let late = AuthChange::UserAdd { name: "v".into(), password: Some(PasswordHash::Sealed(sealed("h"))) };
    assert!(bench.ask(Command::Auth(late)).is_err(), "sealed with a key that was given up");
    assert_eq!(bench.step(10), SealStep::Again(3));
}

#[test]
fn unsealed_or_too_many_is_refused() {
    let mut bench = Bench::new();
    let clear = Sealed(bytes("clear"));
    assert!(bench.trust(TrustChange::KeyNext { id: 2, key: clear.clone(), now: 1 }).is_err());
    assert!(bench.trust(TrustChange::Unlock { key: Some(clear), version: 0 }).is_err());
    assert!(bench.trust(TrustChange::KeyNext { id: 3, key: sealed("k"), now: 1 }).is_err());
    assert!(bench.trust(TrustChange::KeyNext { id: 2, key: with_key(2, "k"), now: 1 }).is_err());
    let item = Resealed { place: SecretPlace::TokenKey, old: sealed("a"), new: sealed("b") };
    let items = vec![item; crate::limits::MAX_RESEALED_PER_STEP + 1];
    assert!(bench.trust(TrustChange::Reseal { items }).is_err());
    assert!(bench.trust(TrustChange::KeyActivate { id: 1 }).is_err());
    assert!(bench.trust(TrustChange::KeySettle { id: 1 }).is_err());
}

/// A run of random requests: after each, every secret can be opened by whoever has what a quorum of
/// the voters has on disk.
pub fn run(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut bench = Bench::new();
    // What is on each voter's disk. This bench has one voter.
    let mut disks: BTreeMap<NodeId, BTreeSet<DataKeyId>> = BTreeMap::from([(VOTER, BTreeSet::from([1]))]);
    for step in 0..60 {
        let sealing = bench.sealing();
        let key = (1..=sealing.active + 1).choose(&mut random).unwrap();
        let _ = match random.random_range(0..9) {
            0 => bench.next_key(),
            1 => {
                let password = Some(PasswordHash::Sealed(with_key(key, "h")));
                bench.ask(Command::Auth(AuthChange::UserAdd { name: format!("u{step}"), password }))
            }
            2 => {
                bench.trust(TrustChange::TokenRotate { id: "t1".into(), secret: with_key(key, "s"), now: 1 })
            }
            3 => bench.trust(TrustChange::KeyActivate { id: sealing.active + 1 }),
            4 => bench.trust(TrustChange::KeySettle { id: sealing.active }),
            5 => {
                let unlock = random.random_bool(0.7).then(|| with_key(key, "u"));
                bench.trust(TrustChange::Unlock { key: unlock, version: sealing.version })
            }
            6 => bench.trust(TrustChange::KeyStored { id: key, node: NodeId(50) }),
            7 => {
                bench.drive();
                bench.ask(learner(100 + step))
            }
            _ => {
                if let Some(next) = &sealing.next {
                    disks.get_mut(&VOTER).unwrap().insert(next.id);
                    bench.trust(TrustChange::KeyStored { id: next.id, node: VOTER }).unwrap();
                }
                Ok(Answer::Done)
            }
        };
        // A member gives up what the state does not need any more.
        let sealing = bench.sealing();
        let disk = disks.get_mut(&VOTER).unwrap();
        disk.retain(|id| *id >= sealing.old.unwrap_or(sealing.active));
        let secrets = bench.view(crate::machine::trust::secrets).unwrap();
        for (place, secret) in secrets.iter().filter(|(_, secret)| secret.key().is_some()) {
            assert!(disk.contains(&secret.key().unwrap()), "{place:?} can't be opened by {disk:?}");
        }
        assert!(disk.contains(&sealing.active), "what seals now is on no disk");
    }
}

#[test]
fn every_secret_can_be_opened_at_a_quorum() {
    (0..SEEDS).for_each(run);
}
