//! Honest members under drops, delays, duplicates, reordering, partitions, crashes, slow disks,
//! membership changes, transfers and snapshots.

use std::collections::BTreeSet;

use super::cluster::{Cluster, Letter};
use super::{Chance, voters};
use crate::raft::{Input, Role};
use crate::types::{ConfChange, ConfProposal, MemberRecord, NodeId};

/// What a run did, so that a run that did nothing is noticed.
#[derive(Default, Debug)]
struct Did {
    committed: usize,
    reads: usize,
    crashes: usize,
    installs: usize,
    changes: usize,
    leaders: u64,
    cuts: usize,
}

fn run(seed: u64, steps: usize) -> Did {
    let mut chance = Chance::new(seed);
    let size = 3 + chance.below(3);
    let ids: Vec<u64> = (1..=size).collect();
    let mut cluster = Cluster::new(seed, &voters(&ids));
    let mut did = Did::default();
    let mut post: Vec<(u64, Letter)> = Vec::new();
    let mut cut_off: BTreeSet<NodeId> = BTreeSet::new();
    let mut next_id = size + 1;
    // Each run has its own weather.
    let (drops, doubles, delay) = (chance.below(20), chance.below(10), 1 + chance.below(12));
    let faults = chance.below(3);
    for now in 0..steps as u64 {
        let everyone: Vec<NodeId> = cluster.members.keys().copied().collect();
        let alive = cluster.alive();
        let some = *chance.pick(&everyone);
        match chance.below(100) {
            0..45 => {
                let live = *chance.pick(&everyone);
                cluster.step(live, Input::Tick);
            }
            45..65 => {
                let writes = cluster.members[&some].writes.len() as u64;
                cluster.sync(some, chance.below(writes + 1) as usize);
            }
            65..75 => {
                let member = &cluster.members[&some];
                let index = member.applied + chance.below(member.handed + 1 - member.applied);
                cluster.apply(some, index);
            }
            75..83 => {
                let at = cluster.leader().unwrap_or(some);
                cluster.propose(at, &format!("{seed}.{now}"));
            }
            83..87 => cluster.read(cluster.leader().filter(|_| chance.hits(80)).unwrap_or(some)),
            87..89 => cluster.checkpoint(),
            89..91 if chance.hits(30) => {
                cluster.step(some, Input::Transfer { to: chance.hits(50).then_some(everyone[0]) })
            }
            91..93 if chance.hits(30) => {
                let change = change(&mut chance, &everyone, &mut next_id);
                if let ConfChange::AddLearner(record) = &change {
                    cluster.add_blank(record.id);
                }
                let at = cluster.leader().unwrap_or(some);
                let proposal = ConfProposal { change, request: None };
                cluster.step(at, Input::ProposeConf { proposal });
            }
            93..95 if faults > 0 && chance.hits(30) => {
                if alive.contains(&some) {
                    let applied = cluster.members[&some].applied;
                    cluster.crash(some, applied.saturating_sub(chance.below(20)));
                    did.crashes += 1;
                } else {
                    cluster.start(some);
                }
            }
            95..97 if !alive.contains(&some) => cluster.start(some),
            97 if faults > 1 && chance.hits(20) => {
                cut_off = everyone.iter().filter(|_| chance.hits(40)).copied().collect();
            }
            98 if chance.hits(10) => cut_off.clear(),
            99 if chance.hits(30) => {
                let applied = cluster.members[&some].applied;
                if applied > 1 {
                    let meta = cluster.meta(applied);
                    cluster.step(some, Input::Cut(meta));
                    did.cuts += 1;
                }
            }
            _ => {}
        }
        for letter in std::mem::take(&mut cluster.post) {
            let parted = cut_off.contains(&letter.from) != cut_off.contains(&letter.to);
            let lost = parted || chance.hits(drops);
            if lost {
                let to = letter.to;
                if letter.message.is_snapshot() {
                    cluster.step(letter.from, Input::SnapshotSent { to, ok: false });
                } else if chance.hits(30) {
                    cluster.step(letter.from, Input::Unreachable(to));
                }
                continue;
            }
            if chance.hits(doubles) && !letter.message.is_snapshot() {
                post.push((now + chance.below(delay * 4), letter.clone()));
            }
            post.push((now + chance.below(delay), letter));
        }
        let (due, later) = post.into_iter().partition(|(at, _)| *at <= now);
        post = later;
        let due: Vec<(u64, Letter)> = due;
        for (_, letter) in due {
            cluster.deliver(letter);
        }
    }
    // A snapshot under way must end one way or the other, as every transfer does.
    cluster.post.extend(post.into_iter().map(|(_, letter)| letter));
    heal(&mut cluster);
    did.committed = cluster.chosen.len();
    did.reads = cluster.reads.len();
    did.installs = cluster.installs;
    did.changes = cluster.told.iter().filter(|line| line.contains(" promote ")).count();
    did.leaders = cluster.leader().map_or(0, |id| cluster.core(id).status().term);
    did
}

fn change(chance: &mut Chance, everyone: &[NodeId], next_id: &mut u64) -> ConfChange {
    match chance.below(4) {
        0 if everyone.len() < 9 => {
            let id = NodeId(*next_id);
            *next_id += 1;
            ConfChange::AddLearner(MemberRecord { id, ..Default::default() })
        }
        1 | 2 => ConfChange::Promote(*chance.pick(everyone)),
        _ => ConfChange::Remove(*chance.pick(everyone)),
    }
}

/// With all faults gone, the group elects, commits and agrees.
fn heal(cluster: &mut Cluster) {
    for id in cluster.members.keys().copied().collect::<Vec<_>>() {
        if cluster.members[&id].core.is_none() {
            cluster.start(id);
        }
    }
    let ready = |cluster: &Cluster| {
        let leads = |id: &NodeId| {
            let status = cluster.core(*id).status();
            status.role == Role::Leader && status.conf.voters.contains(id)
        };
        cluster.alive().into_iter().find(leads)
    };
    for _ in 0..40 {
        cluster.ticks(30, &|_| false);
        if ready(cluster).is_some() {
            break;
        }
    }
    let leader = ready(cluster).expect("a leader after the faults have ended");
    let before = cluster.chosen.len();
    cluster.propose(leader, "the last");
    cluster.ticks(120, &|_| false);
    let leader = ready(cluster).expect("a leader still");
    assert!(cluster.chosen.len() > before, "no progress after the faults have ended");
    let status = cluster.core(leader).status();
    for id in status.conf.voters.iter().chain(&status.conf.learners) {
        assert_eq!(cluster.members[id].applied, status.commit, "{id} does not catch up");
    }
}

#[test]
fn honest_clusters_keep_every_promise() {
    let mut sum = Did::default();
    for seed in 0..150 {
        let did = run(seed, 2500);
        sum.committed += did.committed;
        sum.reads += did.reads;
        sum.crashes += did.crashes;
        sum.installs += did.installs;
        sum.changes += did.changes;
        sum.cuts += did.cuts;
        sum.leaders = sum.leaders.max(did.leaders);
    }
    println!("{sum:?}");
    assert!(sum.committed > 5_000 && sum.reads > 500 && sum.crashes > 300, "{sum:?}");
    assert!(sum.installs > 100 && sum.changes > 50 && sum.cuts > 300, "{sum:?}");
}

#[test]
fn one_seed_is_one_run() {
    let told = |seed| {
        let mut cluster = Cluster::new(seed, &voters(&[1, 2, 3]));
        cluster.ticks(200, &|letter| letter.message.term().is_multiple_of(3));
        cluster.told
    };
    assert_eq!(told(7), told(7));
    assert_ne!(told(7), told(8));
}
