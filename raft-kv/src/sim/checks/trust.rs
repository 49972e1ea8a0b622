//! Replacing the root shuts nobody out who need not be, and leaves nothing of the old one: never zero
//! roots, one history of what is believed, settling only with a quorum and after all or in need, no
//! member refused by another for long, nothing given up accepted again, serial numbers used once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::{Verdict, violation};
use crate::sim::trust::{Believed, Leaf, Why};
use crate::types::{ConfState, Index, KeyDigest, NodeId, NodeRecord, RootDigest, Rotation, Trusted};

/// How long a live member may be refused by another one, and an end may keep a connection that its
/// state does not believe any more.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// What happened to rotations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Roots introduced.
    pub introduced: u64,
    /// Of them on top of others.
    pub on_top: u64,
    /// Rotations that settled, and how many of them led back.
    pub settled: u64,
    /// Led back.
    pub aborted: u64,
    /// Settled without who was late.
    pub in_need: u64,
    /// Members that were late.
    pub shut_out: u64,
    /// Looks at a rotation that named who is late.
    pub waited: u64,
    /// Looks at a rotation whose deadline had passed without a quorum.
    pub stuck: u64,
}

/// A member as it stands in handshakes.
#[derive(Clone, Debug)]
pub struct Standpoint {
    /// Its id.
    pub id: NodeId,
    /// Whether it runs, and is not frozen.
    pub up: bool,
    /// What it shows.
    pub leaf: Leaf,
    /// What it goes by.
    pub believed: Believed,
    /// What its state says, if it has one.
    pub state: Option<Believed>,
    /// Where its state is.
    pub applied: Index,
}

/// What has been believed, and who refuses whom.
#[derive(Debug, Default)]
pub struct Trust {
    /// What was believed at each epoch.
    epochs: BTreeMap<u64, Trusted>,
    /// Roots that a rotation gave up: from which epoch on, by which root it was certified, its key.
    given_up: BTreeMap<RootDigest, (u64, Option<RootDigest>, KeyDigest)>,
    /// Who a settle left behind.
    shut_out: BTreeSet<NodeId>,
    serials: BTreeMap<Bytes, (NodeId, RootDigest)>,
    /// When proposals to settle were made, by rotation.
    settling: BTreeMap<u64, Vec<i64>>,
    /// From which entry on a node is known.
    known_at: BTreeMap<NodeId, Index>,
    refused: BTreeMap<(NodeId, NodeId), Duration>,
    doubted: BTreeMap<(NodeId, NodeId, bool), Duration>,
    /// Since when each member's state has been as it is, as far as somebody could act on it.
    changed: BTreeMap<NodeId, (u64, Duration)>,
    /// What happened.
    pub counts: Counts,
}

fn moved(record: &NodeRecord, target: RootDigest, aborting: bool) -> bool {
    record.issuer == target && (record.verified == Some(target) || aborting && record.verified.is_none())
}

impl Trust {
    /// Somebody decided, at that time by its clock, that a rotation may settle.
    pub fn settles(&mut self, rotation: u64, now: i64) {
        self.settling.entry(rotation).or_default().push(now);
    }

    /// A member's state believes this, knows these nodes and has these members.
    pub fn holds(&mut self, at: Index, trusted: &Trusted, nodes: &[NodeRecord], conf: &ConfState) -> Verdict {
        if trusted.roots.is_empty() {
            return violation("never zero trusted roots", format!("none at epoch {}", trusted.epoch));
        }
        for node in nodes {
            self.known_at.entry(node.id).and_modify(|known| *known = at.min(*known)).or_insert(at);
            let holder = (node.id, node.issuer);
            let first = *self.serials.entry(node.serial.clone()).or_insert(holder);
            if first != holder {
                return violation("serials are unique", format!("{first:?} and {holder:?} have one"));
            }
        }
        match self.epochs.get(&trusted.epoch) {
            // Data keys may be replaced without a new epoch.
            Some(known)
                if (&known.rotation, &known.distrusted) != (&trusted.rotation, &trusted.distrusted) =>
            {
                let detail = format!("at epoch {}: {known:?}, and {trusted:?}", trusted.epoch);
                violation("members believe the same", detail)
            }
            Some(_) => Ok(()),
            None => self.news(at, trusted, nodes, conf),
        }
    }

    fn news(&mut self, at: Index, trusted: &Trusted, nodes: &[NodeRecord], conf: &ConfState) -> Verdict {
        let before = self.epochs.range(..trusted.epoch).next_back().map(|(_, before)| before.clone());
        let newest = self.epochs.range(trusted.epoch..).next().is_none();
        self.epochs.insert(trusted.epoch, trusted.clone());
        // What lies between two known states was given up by the earlier of them.
        let Some(before) = before.filter(|_| newest) else { return Ok(()) };
        let kept = |root: &RootDigest| trusted.roots.iter().any(|known| known.digest == *root);
        for root in before.roots.iter().filter(|root| !kept(&root.digest)) {
            let cross = root.cross.as_ref().and_then(|by| Some(RootDigest(by.as_ref().try_into().ok()?)));
            self.given_up.insert(root.digest, (trusted.epoch, cross, root.signer));
        }
        let begun =
            trusted.roots.iter().filter(|root| before.roots.iter().all(|it| it.digest != root.digest));
        self.counts.introduced += begun.count() as u64;
        self.counts.on_top +=
            u64::from(before.rotation.is_some() && trusted.roots.len() > before.roots.len());
        if trusted.epoch != before.epoch + 1 {
            // Several steps were applied in one: who was left behind in between can't be told any more.
            let root = Some(trusted.in_force().digest);
            let late = nodes.iter().filter(|it| Some(it.issuer) != root || it.verified != root);
            self.shut_out.extend(late.map(|node| node.id));
            return Ok(());
        }
        match &before.rotation {
            Some(ended) if trusted.rotation.is_none() => self.settled(at, ended, trusted, nodes, conf),
            _ => Ok(()),
        }
    }

    fn settled(
        &mut self,
        at: Index,
        ended: &Rotation,
        after: &Trusted,
        nodes: &[NodeRecord],
        conf: &ConfState,
    ) -> Verdict {
        self.counts.settled += 1;
        self.counts.aborted += u64::from(ended.aborting);
        let roots: Vec<_> = after.roots.iter().map(|root| root.digest).collect();
        if roots != [ended.target] {
            let detail = format!("after {ended:?} these are: {roots:?}");
            return violation("after settling only the target is believed", detail);
        }
        let late: Vec<_> = nodes.iter().filter(|it| !moved(it, ended.target, ended.aborting)).collect();
        let quorum = |voters: &[NodeId]| {
            let stands =
                |id: &&NodeId| nodes.iter().any(|it| it.id == **id) && late.iter().all(|it| it.id != **id);
            voters.is_empty() || voters.iter().filter(stands).count() > voters.len() / 2
        };
        if !quorum(&conf.voters) || !quorum(&conf.voters_outgoing) {
            let detail = format!("{ended:?} settled while {late:?} had not moved, of {conf:?}");
            return violation("nothing settles before a quorum has moved", detail);
        }
        let times = self.settling.get(&ended.id).cloned().unwrap_or_default();
        let latest = times.iter().copied().max().unwrap_or(i64::MAX);
        // No client is waited for whose certificate has ended; and who is new here may have come after it.
        let member = |id: NodeId| conf.voters.contains(&id) || conf.learners.contains(&id);
        let counts = |it: &&&NodeRecord| (it.ends > latest || member(it.id)) && self.known_at[&it.id] < at;
        let awaited: Vec<_> = late.iter().filter(counts).map(|it| it.id).collect();
        if !awaited.is_empty() && !ended.stolen && latest < ended.deadline {
            let detail = format!("{ended:?} settled at {latest} without {awaited:?}");
            return violation("nobody is shut out before the deadline", detail);
        }
        self.counts.in_need += u64::from(!awaited.is_empty());
        self.counts.shut_out += late.iter().filter(|it| conf.voters.contains(&it.id)).count() as u64;
        self.shut_out.extend(late.iter().map(|it| it.id));
        Ok(())
    }

    /// What the leader was told of a rotation that waits.
    pub fn waits(&mut self, late: &[NodeId], stuck: bool, known: impl Fn(NodeId) -> bool) -> Verdict {
        self.counts.waited += 1;
        self.counts.stuck += u64::from(stuck);
        if late.is_empty() || !late.iter().all(|id| known(*id)) {
            return violation("who is late is named", format!("{late:?}, stuck: {stuck}"));
        }
        Ok(())
    }

    /// How each member stands now; `cut` says whether two of them can't reach each other, `refusal` why
    /// the second does not get through to the first.
    pub fn stand(
        &mut self,
        now: Duration,
        members: &[Standpoint],
        cut: impl Fn(NodeId, NodeId) -> bool,
        refusal: impl Fn(usize, usize) -> Option<Why>,
    ) -> Verdict {
        self.let_back(members);
        for (at, one) in members.iter().enumerate() {
            self.forged(now, one)?;
            for (place, other) in members.iter().enumerate().filter(|(place, _)| *place != at) {
                let ends = (one.id, other.id);
                let excused = !one.up
                    || !other.up
                    || cut(one.id, other.id)
                    || cut(other.id, one.id)
                    || self.shut_out.contains(&one.id)
                    || self.shut_out.contains(&other.id);
                let why = if excused { None } else { refusal(at, place) };
                let news = self.known_at.get(&one.id).is_none_or(|known| other.applied < *known);
                match why {
                    None | Some(Why::Removed) => drop(self.refused.remove(&ends)),
                    Some(Why::Unknown) if news => drop(self.refused.remove(&ends)),
                    Some(why) => {
                        let since = *self.refused.entry(ends).or_insert(now);
                        if now - since > PATIENCE {
                            let detail = format!("{why:?} since {since:?}: {one:?} dials {other:?}");
                            return violation("no live member is refused by another for long", detail);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Who was shut out and has good papers again is judged as before.
    fn let_back(&mut self, members: &[Standpoint]) {
        let Some((_, trusted)) = self.epochs.iter().next_back() else { return };
        let target = trusted.issuing();
        let back = |id: &NodeId| {
            members
                .iter()
                .any(|it| it.id == *id && it.leaf.root == target.digest && it.believed.epoch >= trusted.epoch)
        };
        self.shut_out.retain(|id| !back(id));
    }

    /// Nothing that rests on a root that was given up gets through to who knows of that.
    fn forged(&mut self, now: Duration, member: &Standpoint) -> Verdict {
        let Some(state) = &member.state else { return Ok(()) };
        let changed = self.changed.entry(member.id).or_insert((state.epoch, now));
        if changed.0 != state.epoch || !member.up {
            *changed = (state.epoch, now);
        }
        let acted = now - changed.1 > PATIENCE;
        for (root, (epoch, cross, signer)) in &self.given_up {
            if state.epoch < *epoch {
                continue;
            }
            let forged = Leaf { node: member.id, root: *root, signer: *signer, serial: 0, cross: *cross };
            if state.accepts(&forged) || acted && member.believed.accepts(&forged) {
                let detail = format!("{member:?} accepts {forged:?}, given up at epoch {epoch}");
                return violation("nothing of a root that was given up is accepted", detail);
            }
        }
        Ok(())
    }

    /// What an open connection rests on: `judged` is the end that looks at `shown`.
    pub fn open(
        &mut self,
        now: Duration,
        ends: (NodeId, NodeId),
        dialled: bool,
        judged: Option<&Standpoint>,
        shown: &Leaf,
    ) -> Verdict {
        let key = (ends.0, ends.1, dialled);
        // Whose state has fallen back goes by what it has on disk.
        let newer = |it: &&Believed| judged.is_some_and(|judged| it.epoch >= judged.believed.epoch);
        let state = judged.filter(|it| it.up).and_then(|it| it.state.as_ref()).filter(newer);
        if state.is_none_or(|state| state.accepts(shown)) {
            self.doubted.remove(&key);
            return Ok(());
        }
        let since = *self.doubted.entry(key).or_insert(now);
        if now - since > PATIENCE {
            let detail = format!("{ends:?} since {since:?} though {judged:?} does not believe {shown:?}");
            return violation("connections that rest on a root that was given up are closed", detail);
        }
        Ok(())
    }

    /// Connections that are not open any more are not doubted.
    pub fn only_open(&mut self, open: &BTreeSet<(NodeId, NodeId)>) {
        self.doubted.retain(|(from, to, _), _| open.contains(&(*from, *to)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::trust::authority;
    use crate::types::{Phase, Role};

    fn trusted(epoch: u64, roots: &[u64], rotation: Option<(u64, bool)>) -> Trusted {
        let all: Vec<_> =
            roots.iter().map(|root| authority(*root, Some(authority(1, None).digest))).collect();
        let target = all.last().expect("one").digest;
        let rotation = rotation.map(|(id, stolen)| Rotation {
            id,
            phase: Phase::Reissue,
            target,
            started: 0,
            deadline: 100,
            stolen,
            aborting: false,
        });
        Trusted { epoch, roots: all, rotation, distrusted: Vec::new() }
    }

    fn record(id: u64, root: u64) -> NodeRecord {
        let root = authority(root, None).digest;
        let serial = Bytes::copy_from_slice(&[id as u8, root.0[7]]);
        NodeRecord { serial, verified: Some(root), ..NodeRecord::new(NodeId(id), Role::Manager, "", root) }
    }

    fn conf() -> ConfState {
        ConfState { voters: [1, 2, 3].map(NodeId).into(), ..ConfState::default() }
    }

    /// Three members, of which some have moved when a rotation settles at a time.
    fn check(moved: &[u64], stolen: bool, now: i64, good: bool) {
        let mut trust = Trust::default();
        let nodes: Vec<_> = [1, 2, 3].map(|id| record(id, if moved.contains(&id) { 2 } else { 1 })).into();
        trust.holds(1, &trusted(1, &[1, 2], Some((1, stolen))), &nodes, &conf()).unwrap();
        trust.settles(1, now);
        let verdict = trust.holds(2, &trusted(2, &[2], None), &nodes, &conf());
        assert_eq!(verdict.is_ok(), good, "{moved:?} {stolen} {now}: {verdict:?}");
    }

    #[test]
    fn settling_with_all_or_with_a_quorum_in_need() {
        check(&[1, 2, 3], false, 10, true);
        check(&[1, 2], false, 10, false);
        check(&[1, 2], true, 10, true);
        check(&[1, 2], false, 100, true);
        check(&[1], true, 100, false);
    }

    #[test]
    fn a_root_that_stays_and_no_root_are_seen() {
        let mut trust = Trust::default();
        trust.holds(1, &trusted(1, &[1, 2], Some((1, false))), &[], &ConfState::default()).unwrap();
        assert!(trust.holds(2, &trusted(2, &[1, 2], None), &[], &ConfState::default()).is_err());
        let mut trust = Trust::default();
        assert!(trust.holds(1, &Trusted::default(), &[], &conf()).is_err());
    }

    #[test]
    fn one_serial_number_has_one_holder() {
        let mut trust = Trust::default();
        let (one, other) = (record(1, 1), NodeRecord { serial: record(1, 1).serial, ..record(2, 1) });
        assert!(trust.holds(1, &trusted(1, &[1], None), &[one.clone(), one.clone()], &conf()).is_ok());
        assert!(trust.holds(2, &trusted(1, &[1], None), &[one, other], &conf()).is_err());
    }

    fn member(id: u64, root: u64, believes: &[u64]) -> Standpoint {
        let leaf = Leaf::of(&authority(root, None), NodeId(id), id);
        let roots = believes.iter().map(|root| authority(*root, None).digest).collect();
        let believed = Believed { epoch: 2, roots, distrusted: Vec::new() };
        Standpoint { id: NodeId(id), up: true, leaf, state: Some(believed.clone()), believed, applied: 9 }
    }

    #[test]
    fn a_member_is_refused_for_a_second_and_not_longer() {
        let mut trust = Trust::default();
        let members = [member(1, 1, &[1]), member(2, 1, &[1])];
        let mut at =
            |ms, why| trust.stand(Duration::from_millis(ms), &members, |_, _| false, |_, _| why).is_ok();
        assert!(at(0, Some(Why::Dialler)) && at(900, Some(Why::Dialler)) && at(950, None));
        assert!(
            at(1200, Some(Why::Dialler)) && at(2000, Some(Why::Dialler)) && !at(2300, Some(Why::Dialler))
        );
    }

    #[test]
    fn what_was_given_up_is_accepted_by_nobody() {
        let mut trust = Trust::default();
        let nodes = [1, 2, 3].map(|id| record(id, 2));
        trust.holds(1, &trusted(1, &[1, 2], Some((1, false))), &nodes, &conf()).unwrap();
        trust.settles(1, 10);
        trust.holds(2, &trusted(2, &[2], None), &nodes, &conf()).unwrap();
        let mut stand = |believes: &[u64]| {
            let members = [member(1, 2, believes)];
            trust.stand(Duration::ZERO, &members, |_, _| false, |_, _| None).is_ok()
        };
        assert!(stand(&[2]) && !stand(&[2, 1]));
    }

    #[test]
    fn a_connection_that_nobody_would_make_again_is_closed_in_time() {
        let mut trust = Trust::default();
        let (one, shown) = (member(1, 2, &[2]), member(2, 1, &[1]).leaf);
        let mut at = |ms, judged| {
            trust.open(Duration::from_millis(ms), (NodeId(1), NodeId(2)), true, judged, &shown).is_ok()
        };
        assert!(at(0, Some(&one)) && at(1000, Some(&one)) && !at(1001, Some(&one)) && at(1002, None));
    }
}
