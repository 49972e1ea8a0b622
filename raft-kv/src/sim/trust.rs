//! Certificates in the simulator: who shows what, who believes it, and what a member does to keep both
//! current.
//!
//! A certificate is what can be said of it: whose it is, on which root it rests, its serial number, and
//! by which other root its signer is certified too. What members propose and when they may is the
//! product's own state machine; this file takes the place of `client/trust` and of TLS.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use rand::{Rng, RngCore};

use super::cluster::{Cluster, Event, Happening, HostId};
use super::scheduler::span;
use crate::error::{Error, StorageFailed};
use crate::machine::command::Command;
use crate::machine::{self, Read, Store, Verdict};
use crate::node::ask::{Ticket, Told, What};
use crate::types::{
    Authority, KeyDigest, NodeId, NodeRecord, Phase, Role, RootDigest, Sealed, Standing, TrustChange, Trusted,
};

/// How often a member looks while a rotation is under way, and otherwise.
const ROTATING: Duration = Duration::from_millis(100);
const QUIET: Duration = Duration::from_secs(1);
/// How much longer connections live that rest on a root that is not believed any more.
const GRACE: Duration = Duration::from_millis(400);
/// The longest usual time until a new certificate is on a disk.
const SAVING: Duration = Duration::from_millis(60);
/// The longest a change of trust may take.
const PATIENCE: Duration = Duration::from_secs(7);
/// Seconds since 1970 when a run begins.
const EPOCH: i64 = 1_700_000_000;
/// When certificates of members end: after the run.
pub(super) const NINETY_DAYS: i64 = 90 * 24 * 3600;

/// A certificate and what is shown behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Whose.
    pub node: NodeId,
    /// The root it rests on.
    pub root: RootDigest,
    /// The key that signed it.
    pub signer: KeyDigest,
    /// Its serial number.
    pub serial: u64,
    /// The other root that has certified its signer.
    pub cross: Option<RootDigest>,
}

impl Leaf {
    /// What `authority` makes.
    pub fn of(authority: &Authority, node: NodeId, serial: u64) -> Self {
        let cross = authority.cross.as_ref().map(|cross| {
            RootDigest(cross.as_ref().try_into().expect("a cross certificate names the root that made it"))
        });
        Self { node, root: authority.digest, signer: authority.signer, serial, cross }
    }

    pub(super) fn record(&self, role: Role, name: &str, now: i64) -> NodeRecord {
        let serial = Bytes::copy_from_slice(&self.serial.to_be_bytes());
        let ends = now + NINETY_DAYS;
        NodeRecord { serial, issued: now, ends, ..NodeRecord::new(self.node, role, name, self.root) }
    }
}

/// A root of the simulator, certified by another one where that is named.
pub fn authority(number: u64, cross: Option<RootDigest>) -> Authority {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&number.to_be_bytes());
    Authority {
        digest: RootDigest(digest),
        signer: KeyDigest(digest),
        root: Bytes::copy_from_slice(&digest),
        cross: cross.map(|by| Bytes::copy_from_slice(&by.0)),
        ..Authority::default()
    }
}

/// What a member goes by in handshakes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Believed {
    /// The state it is from.
    pub epoch: u64,
    /// The believed roots.
    pub roots: Vec<RootDigest>,
    /// Keys that may not lead to them.
    pub distrusted: Vec<KeyDigest>,
}

impl Believed {
    /// What a state says.
    pub fn of(trusted: &Trusted, now: i64) -> Self {
        let distrusted = trusted.distrusted.iter().filter(|(_, until)| *until > now);
        Self {
            epoch: trusted.epoch,
            roots: trusted.roots.iter().map(|root| root.digest).collect(),
            distrusted: distrusted.map(|(key, _)| *key).collect(),
        }
    }

    /// Whether a chain leads to a believed root.
    pub fn accepts(&self, leaf: &Leaf) -> bool {
        let leads = |root: &RootDigest| self.roots.contains(root);
        !self.distrusted.contains(&leaf.signer)
            && (leads(&leaf.root) || leaf.cross.as_ref().is_some_and(leads))
    }
}

/// What a member has on disk beside its log and state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Papers {
    /// Its certificate.
    pub leaf: Leaf,
    /// What it believes.
    pub believed: Believed,
}

/// A connection: what each end was shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// By the end that dialled, and by the other.
    pub(super) shown: (Leaf, Leaf),
}

/// Why a handshake fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// The chain of the one that answers leads nowhere.
    Answerer,
    /// The chain of the one that dials leads nowhere.
    Dialler,
    /// The one that dials is not known (yet).
    Unknown,
    /// The one that dials was removed.
    Removed,
}

/// What a member has asked the log for, for its certificate's or the rotation's sake.
enum Kept {
    /// A certificate for itself: it is taken once it is recorded.
    Leaf(Leaf),
    /// What it saw.
    Report,
    /// The next step of a rotation.
    Drive,
    /// A certificate and roots for a member that others do not let in.
    Readmission(HostId, Leaf),
}

/// Certificates' part of a cluster.
#[derive(Default)]
pub(super) struct Trusts {
    pub(super) links: BTreeMap<(NodeId, NodeId), Link>,
    kept: BTreeMap<Ticket, (HostId, u64, Kept)>,
    /// Certificates on their way to a disk: of which run of a machine's process.
    saving: BTreeMap<HostId, u64>,
    /// Whether a look is due, of which run of each machine's process, and when.
    looks: BTreeMap<HostId, (u64, Duration)>,
    pub(super) refused: u64,
    pub(super) closed: u64,
    pub(super) issued: u64,
    pub(super) readmitted: u64,
    /// When somebody last asked for a rotation.
    pub(super) rotated: Option<Duration>,
}

impl Cluster {
    /// The time by a machine's clock, in seconds since 1970.
    pub fn wall(&self, host: HostId) -> i64 {
        let member = &self.hosts[host];
        EPOCH + self.now().mul_f64(member.speed.clock).as_secs() as i64 + member.step
    }

    /// The time that a member says when it asks something about rollback points, in milliseconds since
    /// 1970: sixty times as fast as all else, and ahead by more from member to member.
    pub fn millis(&self, host: HostId) -> i64 {
        let since = self.now().mul_f64(60.0 * self.hosts[host].speed.clock).as_millis() as i64;
        (EPOCH + 60 * self.hosts[host].step) * 1000 + since + 4_000 * host as i64
    }

    /// What a member believes by its own state, if it has one.
    pub fn trusted(&self, host: HostId) -> Option<Trusted> {
        self.read(host, |view| {
            machine::read::trusted(view).map_err(|failed| Error::Stopped(failed.to_string()))
        })
        .ok()
    }

    /// Connections that are open: who dialled whom, and what each showed.
    pub fn links(&self) -> impl Iterator<Item = ((NodeId, NodeId), (Leaf, Leaf))> + '_ {
        self.trusts.links.iter().map(|(ends, link)| (*ends, link.shown))
    }

    /// Why a handshake between two members would fail now.
    pub fn refusal(&self, dialler: HostId, answerer: HostId) -> Option<Why> {
        match self.refusal_alone(dialler, answerer) {
            Some(Why::Unknown) if self.is_vouched_for(dialler, answerer) => None,
            refusal => refusal,
        }
    }

    /// The same, by what the one that answers knows itself.
    fn refusal_alone(&self, dialler: HostId, answerer: HostId) -> Option<Why> {
        let (Some(from), Some(to)) = (&self.hosts[dialler].papers, &self.hosts[answerer].papers) else {
            return Some(Why::Unknown);
        };
        if !from.believed.accepts(&to.leaf) {
            return Some(Why::Answerer);
        }
        if !to.believed.accepts(&from.leaf) {
            return Some(Why::Dialler);
        }
        let known = self.hosts[answerer].store.view(|view| standing(view, from.leaf.node));
        match known.expect("memory does not fail") {
            Standing::Known(Role::Manager) => None,
            Standing::Known(_) | Standing::Unknown => Some(Why::Unknown),
            Standing::Removed => Some(Why::Removed),
        }
    }

    /// Whether a member that the asking one knows, and reaches, has the stranger for a member.
    fn is_vouched_for(&self, stranger: HostId, asking: HostId) -> bool {
        let stranger = self.hosts[stranger].papers.as_ref().map(|papers| papers.leaf.node);
        let Some(stranger) = stranger.filter(|_| !crate::planted!(IgnoreWord)) else { return false };
        // A member that has just joined has no state, and knows of nobody.
        let members = |host: HostId| {
            let members = self.hosts[host].store.view(machine::read::members);
            members.unwrap_or_default().into_iter().map(|member| member.record.id)
        };
        let own = self.hosts[asking].id;
        let asked = members(asking).filter(|id| *id != stranger && *id != own);
        asked.filter_map(|id| self.running(id)).any(|host| {
            let id = self.hosts[host].id;
            let reached = !self.network.is_cut(own, id) && !self.network.is_cut(id, own);
            reached && self.refusal_alone(asking, host).is_none() && members(host).any(|it| it == stranger)
        })
    }

    /// Whether what was sent arrives over a connection, which is made if there is none.
    pub(super) fn connected(&mut self, from: NodeId, to: NodeId) -> bool {
        let (Some(dialler), Some(answerer)) = (self.place.get(&from).copied(), self.running(to)) else {
            return false;
        };
        let open = self.trusts.links.get(&(from, to)).map(|link| link.shown.0.serial);
        let shows = self.hosts[dialler].papers.as_ref().filter(|papers| papers.leaf.node == from);
        let Some(leaf) = shows.map(|papers| papers.leaf) else {
            // A last message of one whose machine has got another member since.
            return open.is_some();
        };
        if open == Some(leaf.serial) {
            return true;
        }
        match self.refusal(dialler, answerer) {
            None => {
                let other = self.hosts[answerer].papers.as_ref().expect("it was accepted").leaf;
                // What a process sent before it ended may arrive after that.
                if self.running(from).is_some() {
                    self.trusts.links.insert((from, to), Link { shown: (leaf, other) });
                }
                true
            }
            // With a newer certificate it dials anew, and goes on with what it has until that is done.
            Some(_) if open.is_some() => true,
            Some(why) => {
                self.trusts.refused += 1;
                self.trace.line(self.scheduler.now(), || {
                    format!("m{answerer} and m{dialler}: no handshake, {why:?}")
                });
                let delay = Duration::from_millis(self.chances.trust.random_range(1..100));
                self.scheduler.after(delay, Event::Unreachable { at: from, peer: to });
                false
            }
        }
    }

    /// A process has ended, and all its connections with it.
    pub(super) fn disconnect(&mut self, host: HostId) {
        let id = self.hosts[host].id;
        self.trusts.links.retain(|(from, to), _| *from != id && *to != id);
    }

    /// A member is to look at its certificate and its roots soon.
    pub(super) fn look_soon(&mut self, host: HostId) {
        let delay = span(&mut self.chances.trust, Duration::from_micros(100), Duration::from_millis(20));
        self.look_after(host, delay);
    }

    fn look_after(&mut self, host: HostId, delay: Duration) {
        let (life, at) = (self.hosts[host].life, self.now() + delay);
        let due = self.trusts.looks.get(&host).filter(|(of, _)| *of == life);
        if due.is_none_or(|(_, due)| at < *due) {
            self.trusts.looks.insert(host, (life, at));
            self.scheduler.at(at, Event::Keep(host, life));
        }
    }

    /// A member looks after its certificate and what it believes, and the leader drives rotations.
    pub(super) fn keep(&mut self, host: HostId) {
        let life = self.hosts[host].life;
        // An earlier look has been put in the place of this one.
        if self.trusts.looks.get(&host).is_some_and(|(of, at)| *of == life && *at > self.now()) {
            return;
        }
        self.trusts.looks.remove(&host);
        let rotating = self.look(host);
        let most = if rotating { ROTATING } else { QUIET };
        let delay = most / 2 + span(&mut self.chances.trust, Duration::ZERO, most / 2);
        self.look_after(host, delay);
    }

    fn look(&mut self, host: HostId) -> bool {
        let (Some(trusted), Some(papers)) = (self.trusted(host), self.hosts[host].papers.clone()) else {
            return false;
        };
        // A state of before the last stop says what was believed then.
        if trusted.epoch < papers.believed.epoch {
            return true;
        }
        self.believe(host, &trusted);
        let moved = self.renew(host, &trusted, &papers.leaf);
        if trusted.rotation.is_some() {
            self.report(host, &trusted);
            self.drive(host);
        }
        trusted.rotation.is_some() || !moved
    }

    fn believe(&mut self, host: HostId, trusted: &Trusted) {
        let believed = Believed::of(trusted, self.wall(host));
        let papers = self.hosts[host].papers.as_mut().expect("it was just looked at");
        if papers.believed != believed {
            papers.believed = believed;
            let life = self.hosts[host].life;
            self.scheduler.after(GRACE, Event::Recheck(host, life));
        }
    }

    /// Ends connections whose other end is not believed any more.
    pub(super) fn recheck(&mut self, host: HostId) {
        let id = self.hosts[host].id;
        let Some(papers) = &self.hosts[host].papers else { return };
        let before = self.trusts.links.len();
        let believed = &papers.believed;
        self.trusts.links.retain(|(from, to), link| {
            (*from != id || believed.accepts(&link.shown.1)) && (*to != id || believed.accepts(&link.shown.0))
        });
        self.trusts.closed += (before - self.trusts.links.len()) as u64;
    }

    /// Whether the member's certificate is what it should be; asks for another one if not.
    fn renew(&mut self, host: HostId, trusted: &Trusted, leaf: &Leaf) -> bool {
        let id = self.hosts[host].id;
        let record = self.record_of(host, id);
        let serial = leaf.serial.to_be_bytes();
        let newest = record
            .is_some_and(|record| record.issuer == trusted.issuing().digest && record.serial == serial[..]);
        let introducing = trusted.rotation.as_ref().is_some_and(|it| it.phase == Phase::Introduce);
        let saving = self.trusts.saving.get(&host) == Some(&self.hosts[host].life);
        if newest || introducing || saving || self.asked(host, |kept| matches!(kept, Kept::Leaf(_))) {
            return newest || introducing;
        }
        let leaf = Leaf::of(trusted.issuing(), id, self.chances.trust.next_u64());
        let node = leaf.record(Role::Manager, &self.hosts[host].name, self.wall(host));
        self.propose(
            host,
            TrustChange::Issue { node, renewal: true, now: self.wall(host) },
            Kept::Leaf(leaf),
        );
        false
    }

    fn record_of(&self, host: HostId, id: NodeId) -> Option<NodeRecord> {
        let read =
            |view: &dyn Read| machine::read::node(view, id).map_err(|it| Error::Stopped(it.to_string()));
        self.read(host, read).ok().flatten()
    }

    /// Tells the log whose newest certificates were seen. An older one of the same root proves nothing: a
    /// crash may have cost its owner the newest.
    fn report(&mut self, host: HostId, trusted: &Trusted) {
        let id = self.hosts[host].id;
        let mut seen: BTreeSet<(NodeId, RootDigest, u64)> = BTreeSet::new();
        for ((from, to), link) in &self.trusts.links {
            let other = if *from == id { link.shown.1 } else { link.shown.0 };
            if *from == id || *to == id {
                seen.insert((other.node, other.root, other.serial));
            }
        }
        let conf = self.hosts[host].applied().map(|at| at.conf).unwrap_or_default();
        let alone = conf.voters.len() + conf.learners.len() == 1;
        let own = self.hosts[host].papers.as_ref().map(|papers| papers.leaf);
        seen.extend(own.filter(|_| alone).map(|leaf| (id, leaf.root, leaf.serial)));
        let news = |(id, root, serial): &(NodeId, RootDigest, u64)| {
            let believed = trusted.roots.iter().any(|known| known.digest == *root);
            let record = self.record_of(host, *id).filter(|it| it.issuer == *root);
            let newest =
                |it: &NodeRecord| it.serial == serial.to_be_bytes()[..] || crate::planted!(VerifyByRoot);
            believed && record.is_some_and(|it| it.verified != Some(*root) && newest(&it))
        };
        let nodes: BTreeSet<_> = seen.into_iter().filter(news).map(|(id, root, _)| (id, root)).collect();
        if !nodes.is_empty() && !self.asked(host, |kept| matches!(kept, Kept::Report)) {
            let nodes = nodes.into_iter().collect();
            self.propose(host, TrustChange::Verified { nodes }, Kept::Report);
        }
    }

    /// What the leader does for the rotation that is under way.
    fn drive(&mut self, host: HostId) {
        let leadership = self.hosts[host].replica().map(|replica| replica.leadership());
        let leads = leadership.is_some_and(|it| it.leader == Some(self.hosts[host].id) && it.ready);
        if !leads || self.asked(host, |kept| matches!(kept, Kept::Drive)) {
            return;
        }
        let now = self.wall(host);
        let next = self.hosts[host].store.view(|view| machine::read::verdict(view, now));
        let change = match next.expect("memory does not fail") {
            Verdict::Stable | Verdict::Wait { .. } => {
                // So that a bug in what is asked for meets what is in place against it.
                let rotation = self.trusted(host).and_then(|trusted| trusted.rotation);
                let Some(rotation) = rotation.filter(|_| crate::planted!(SettleEarly)) else { return };
                TrustChange::Settle { id: rotation.id, tokens: self.new_tokens(host), now }
            }
            Verdict::Reissue { id } => TrustChange::Reissue { id },
            Verdict::Settle { id, .. } => TrustChange::Settle { id, tokens: self.new_tokens(host), now },
        };
        self.propose(host, change, Kept::Drive);
    }

    fn new_tokens(&mut self, host: HostId) -> Vec<(String, Sealed)> {
        let tokens = self.hosts[host].store.view(machine::read::tokens).expect("memory does not fail");
        let mut secret = || Sealed(format!("{:x}", self.chances.trust.next_u64()).into());
        tokens.into_iter().map(|(id, _)| (id, secret())).collect()
    }

    fn asked(&self, host: HostId, which: impl Fn(&Kept) -> bool) -> bool {
        self.trusts.kept.values().any(|(at, _, kept)| *at == host && which(kept))
    }

    fn propose(&mut self, host: HostId, change: TrustChange, kept: Kept) {
        self.trace.line(self.scheduler.now(), || format!("m{host} asks for {change:?}"));
        let what = What::Command { command: Command::Trust(change), once: None };
        if let Some(ticket) = self.ask(host, what, PATIENCE) {
            self.trusts.kept.insert(ticket, (host, self.hosts[host].life, kept));
        }
    }

    /// Takes an answer in if it is to one of the questions above.
    pub(super) fn trust_answered(&mut self, ticket: Ticket, result: &Result<Told, Error>) -> bool {
        let Some((host, life, kept)) = self.trusts.kept.remove(&ticket) else { return false };
        match kept {
            Kept::Leaf(leaf) if result.is_ok() => {
                let most = SAVING.max(self.hosts[host].speed.sync);
                let delay = span(&mut self.chances.trust, Duration::from_micros(50), most);
                self.trusts.saving.insert(host, life);
                self.scheduler.after(delay, Event::Leaf(host, life, leaf));
            }
            Kept::Readmission(back, leaf) if result.is_ok() => self.readmitted(host, back, leaf),
            _ => {}
        }
        true
    }

    /// A member's new certificate is on its disk.
    pub(super) fn take_leaf(&mut self, host: HostId, leaf: Leaf) {
        let papers = self.hosts[host].papers.as_mut().expect("a member has papers");
        papers.leaf = leaf;
        self.trusts.saving.remove(&host);
        self.trusts.issued += 1;
        self.trace.line(self.scheduler.now(), || {
            format!("m{host} has certificate {:x} of {}", leaf.serial, leaf.root)
        });
        self.look_soon(host);
    }

    // ---- what people do ----

    /// Whether a member's certificate is not believed where the cluster is led.
    pub fn is_stranded(&self, host: HostId) -> bool {
        let leader = self.leader().filter(|leader| *leader != host);
        let trusted = leader.and_then(|leader| Some(Believed::of(&self.trusted(leader)?, self.wall(leader))));
        let papers = self.hosts[host].papers.as_ref().filter(|_| self.hosts[host].member);
        match (trusted, papers) {
            (Some(believed), Some(papers)) => !believed.accepts(&papers.leaf),
            _ => false,
        }
    }

    /// Whether a rotation that is under way, or was asked for a moment ago, could settle without somebody.
    pub fn may_shut_out(&self) -> bool {
        let lately =
            self.trusts.rotated.is_some_and(|at| self.now() < at + PATIENCE + Duration::from_secs(3));
        let rotates = |host| self.trusted(host).is_some_and(|trusted| trusted.rotation.is_some());
        lately || (0..self.hosts.len()).any(rotates)
    }

    /// Gives a stranded member a certificate and roots, through another one that runs.
    pub fn readmit(&mut self, back: HostId, door: HostId) {
        let (id, name) = (self.hosts[back].id, self.hosts[back].name.clone());
        let asked = self.asked(door, |kept| matches!(kept, Kept::Readmission(host, _) if *host == back));
        let Some(trusted) = self.trusted(door).filter(|_| !asked) else { return };
        let (leaf, now) = (Leaf::of(trusted.issuing(), id, self.chances.trust.next_u64()), self.wall(door));
        let node = leaf.record(Role::Manager, &name, now);
        self.propose(door, TrustChange::Issue { node, renewal: true, now }, Kept::Readmission(back, leaf));
    }

    fn readmitted(&mut self, door: HostId, back: HostId, leaf: Leaf) {
        let Some(trusted) = self.trusted(door) else { return };
        let believed = Believed::of(&trusted, self.wall(door));
        let member = &mut self.hosts[back];
        if member.member && member.id == leaf.node {
            member.papers = Some(Papers { leaf, believed });
            // It starts with them: whatever was open before is not.
            self.disconnect(back);
            self.trusts.readmitted += 1;
            self.trace.line(self.scheduler.now(), || format!("m{back} is readmitted by m{door}"));
        }
    }

    /// Asks a member to replace the root; nobody waits for the answer. `number` names the new one.
    pub fn rotate(&mut self, host: HostId, number: u64, deadline: i64, stolen: bool) {
        let Some(trusted) = self.trusted(host) else { return };
        let authority = authority(number, Some(trusted.in_force().digest));
        let id = trusted.rotation.as_ref().map_or(0, |rotation| rotation.id).max(trusted.epoch) + 1;
        let now = self.wall(host);
        let deadline = now.saturating_add(deadline);
        self.trusts.rotated = Some(self.now());
        self.tell(host, TrustChange::Rotate { id, authority, deadline, stolen, now });
    }

    /// Asks a member to lead a rotation back.
    pub fn abort_rotation(&mut self, host: HostId, deadline: i64) {
        let now = self.wall(host);
        self.trusts.rotated = Some(self.now());
        self.tell(host, TrustChange::Abort { deadline: now.saturating_add(deadline), now });
    }

    /// Asks a member for a certificate for a client that nobody hears of again.
    pub fn lose_client(&mut self, host: HostId, life: i64) {
        let Some(trusted) = self.trusted(host) else { return };
        let (id, now) = (NodeId(self.chances.trust.next_u64() | 1), self.wall(host));
        let leaf = Leaf::of(trusted.issuing(), id, self.chances.trust.next_u64());
        let node = NodeRecord { ends: now + life, ..leaf.record(Role::Client, "lost", now) };
        self.tell(host, TrustChange::Issue { node, renewal: false, now });
    }

    pub(super) fn tell(&mut self, host: HostId, change: TrustChange) {
        self.trace.line(self.scheduler.now(), || format!("m{host} is told to ask for {change:?}"));
        let what = What::Command { command: Command::Trust(change), once: None };
        // Nobody waits for the answer.
        let _ = self.ask(host, what, PATIENCE);
    }

    /// What is believed has changed in a member's state.
    pub(super) fn trust_changed(&mut self, host: HostId) {
        if self.options.text {
            let trusted = self.trusted(host);
            let (epoch, rotation) = (trusted.as_ref().map(|it| it.epoch), trusted.and_then(|it| it.rotation));
            let nodes = self.hosts[host].store.view(machine::read::nodes).unwrap_or_default();
            let known = |it: &NodeRecord| (it.id, it.issuer.0[7], it.verified.map(|by| by.0[7]));
            let nodes: Vec<_> = nodes.iter().map(known).collect();
            self.trace.line(self.scheduler.now(), || {
                format!("m{host} knows {nodes:?} at epoch {epoch:?}, {rotation:?}")
            });
        }
        self.happened.push(Happening::Trusted(host));
        self.look_soon(host);
    }
}

/// Who is let in once its chain is verified. A member that has no state yet goes by that alone.
fn standing(view: &dyn Read, id: NodeId) -> Result<Standing, StorageFailed> {
    match machine::read::holds_state(view)? {
        true => machine::read::standing(view, id),
        false => Ok(Standing::Known(Role::Manager)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(1);

    fn believed(roots: &[u64], distrusted: &[u64]) -> Believed {
        let roots = roots.iter().map(|root| authority(*root, None).digest).collect();
        let distrusted = distrusted.iter().map(|root| authority(*root, None).signer).collect();
        Believed { epoch: 1, roots, distrusted }
    }

    fn check(believed: &Believed, root: u64, cross: Option<u64>, expect: bool) {
        let cross = cross.map(|by| authority(by, None).digest);
        let leaf = Leaf::of(&authority(root, cross), NODE, 1);
        assert_eq!(believed.accepts(&leaf), expect, "{believed:?} {leaf:?}");
    }

    #[test]
    fn a_chain_leads_to_a_believed_root_or_nowhere() {
        check(&believed(&[1], &[]), 1, None, true);
        check(&believed(&[1], &[]), 2, None, false);
        check(&believed(&[1], &[]), 2, Some(1), true);
        check(&believed(&[2], &[]), 2, Some(1), true);
        check(&believed(&[2], &[]), 1, None, false);
        check(&believed(&[1], &[2]), 2, Some(1), false);
    }
}
