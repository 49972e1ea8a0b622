//! Members on a network whose every move is decided from outside, with the properties of raft
//! checked at each step: one leader a term, one entry for an index and term, one committed entry
//! an index, no linearizable read older than what was committed when it was asked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::log::{Done, Write};
use super::{Image, MemLog};
use crate::codec::Wire;
use crate::raft::{Core, Input, Options, Output, PeerMessage, ReadContext, Refused, Role};
use crate::types::{Committed, ConfState, Entry, Index, NodeId, Payload, SnapshotMeta, Term};

/// A member with its disk and its state machine.
pub(super) struct Member {
    pub(super) core: Option<Core<MemLog>>,
    pub(super) disk: Image,
    pub(super) writes: VecDeque<Write>,
    pub(super) handed: Index,
    pub(super) applied: Index,
    seed: u64,
}

/// A message under way.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) message: PeerMessage,
}

#[derive(Default)]
pub(super) struct Cluster {
    pub(super) members: BTreeMap<NodeId, Member>,
    pub(super) post: Vec<Letter>,
    /// What was handed out at each index by whoever came first.
    pub(super) chosen: BTreeMap<Index, Committed>,
    /// The configuration from each index on.
    confs: BTreeMap<Index, (Term, ConfState)>,
    leaders: BTreeMap<Term, NodeId>,
    written: BTreeMap<(Index, Term), Entry>,
    floors: BTreeMap<ReadContext, Index>,
    pub(super) reads: Vec<(ReadContext, Index)>,
    pub(super) reads_refused: Vec<ReadContext>,
    pub(super) refused: usize,
    pub(super) conf_refused: usize,
    pub(super) installs: usize,
    pub(super) vetted: BTreeMap<Refused, usize>,
    pub(super) wanted: BTreeSet<NodeId>,
    /// What happened, one line each.
    pub(super) told: Vec<String>,
    counter: u64,
    seed: u64,
}

impl Cluster {
    /// Members of `conf`, all with an empty log that begins behind index 1.
    pub(super) fn new(seed: u64, conf: &ConfState) -> Self {
        let mut new = Self { seed, ..Default::default() };
        new.confs.insert(1, (1, conf.clone()));
        let boundary = SnapshotMeta { index: 1, term: 1, conf: conf.clone() };
        let mut ids: Vec<_> = conf.voters.clone();
        ids.extend(conf.learners.iter().chain(&conf.voters_outgoing));
        for id in ids {
            let mut disk = Image { boundary: boundary.clone(), ..Image::default() };
            disk.hard.term = 1;
            disk.hard.commit = 1;
            new.add(id, disk);
        }
        new
    }

    /// A member that waits for its first snapshot.
    pub(super) fn add_blank(&mut self, id: NodeId) {
        self.add(id, Image::default());
    }

    fn add(&mut self, id: NodeId, disk: Image) {
        if self.members.contains_key(&id) {
            return;
        }
        let at = disk.boundary.index;
        let seed = self.seed ^ id.0;
        let writes = VecDeque::new();
        self.members.insert(id, Member { core: None, disk, writes, handed: at, applied: at, seed });
        self.start(id);
    }

    /// The configuration at `index`, with its term.
    pub(super) fn meta(&self, index: Index) -> SnapshotMeta {
        let (_, (_, conf)) = self.confs.range(..=index).next_back().expect("the first is at 1");
        let term = self.chosen.get(&index).map_or(1, |entry| entry.term);
        SnapshotMeta { index, term, conf: conf.clone() }
    }

    /// Starts a member from its disk and applied state.
    pub(super) fn start(&mut self, id: NodeId) {
        let (applied, meta) = {
            let member = &self.members[&id];
            let blank = member.applied == 0;
            let meta = if blank { SnapshotMeta::default() } else { self.meta(member.applied) };
            (member.applied, meta)
        };
        let member = self.members.get_mut(&id).expect("known");
        // A crash between the installation of a snapshot and the log's note of it.
        if applied > 0 && member.disk.term(applied) != Some(meta.term) {
            let hard = member.disk.hard;
            member.disk = Image { hard, boundary: meta.clone(), entries: Vec::new() };
        }
        let log = MemLog::new(member.disk.clone());
        let options = Options { id, seed: member.seed, applied, conf: meta.conf };
        member.handed = applied;
        member.seed += 1;
        member.core = Some(Core::new(options, log).expect("disk and state agree"));
        self.told.push(format!("{} starts at {applied}", id.0));
    }

    /// Ends a member; what was not synced is lost, and applied state back to `applied`.
    pub(super) fn crash(&mut self, id: NodeId, applied: Index) {
        let member = self.members.get_mut(&id).expect("known");
        member.core = None;
        member.writes.clear();
        let least = member.disk.boundary.index;
        member.applied = applied.clamp(least.min(member.applied), member.applied);
        self.told.push(format!("{} crashes", id.0));
    }

    pub(super) fn alive(&self) -> Vec<NodeId> {
        self.members.iter().filter(|(_, member)| member.core.is_some()).map(|(id, _)| *id).collect()
    }

    pub(super) fn core(&self, id: NodeId) -> &Core<MemLog> {
        self.members[&id].core.as_ref().expect("alive")
    }

    /// The leader of the highest term among the living.
    pub(super) fn leader(&self) -> Option<NodeId> {
        let leads = |id: &NodeId| self.core(*id).status().role == Role::Leader;
        self.alive().into_iter().filter(leads).max_by_key(|id| self.core(*id).status().term)
    }

    /// Gives `id` one input and takes in what comes out, checking all properties.
    pub(super) fn step(&mut self, id: NodeId, input: Input<Done>) {
        let Some(core) = self.members.get_mut(&id).and_then(|member| member.core.as_mut()) else {
            return;
        };
        let out = core.step(input).expect("the log can be read");
        self.take(id, out);
    }

    fn take(&mut self, id: NodeId, out: Output<Write>) {
        for (to, message) in out.messages {
            let back = PeerMessage::from_bytes(message.to_bytes()).expect("its own form is read");
            assert_eq!(back, message);
            assert!(message.to_bytes().len() <= crate::limits::MAX_FRAME_BYTES);
            self.post.push(Letter { from: id, to, message });
        }
        for (sender, refused) in out.vetted {
            assert!(!refused.is_fault(), "{id} refused honest {sender}: {refused}");
            *self.vetted.entry(refused).or_default() += 1;
        }
        for write in &out.writes {
            for entry in write.entries() {
                let known = self.written.entry((entry.index, entry.term)).or_insert(entry.clone());
                assert_eq!(known, entry, "two entries at one index of one term");
            }
        }
        if let Some(meta) = &out.install {
            let member = self.members.get_mut(&id).expect("known");
            assert!(meta.index >= member.handed);
            member.handed = meta.index;
            member.applied = meta.index;
            self.installs += 1;
            self.told.push(format!("{} installs {}", id.0, meta.index));
            assert_eq!(*meta, self.meta(meta.index));
        }
        for entry in out.committed {
            self.commit(id, entry);
        }
        let member = self.members.get_mut(&id).expect("known");
        member.writes.extend(out.writes);
        if let Some(now) = out.leadership {
            if now.role == Role::Leader {
                let first = *self.leaders.entry(now.term).or_insert(id);
                assert_eq!(first, id, "two leaders in term {}", now.term);
            }
            let leader = now.leader.map_or("nobody".into(), |id| id.0.to_string());
            let ready = if now.ready { ", ready" } else { "" };
            self.told.push(format!("{} {:?} term {} of {leader}{ready}", id.0, now.role, now.term));
        }
        for (context, index) in out.reads {
            let floor = self.floors[&context];
            assert!(index >= floor, "a read at {index} missed what was committed at {floor}");
            self.reads.push((context, index));
            self.told.push(format!("{} read at {index}", id.0));
        }
        for context in out.reads_refused {
            self.reads_refused.push(context);
            self.told.push(format!("{} refuses a read", id.0));
        }
        self.refused += out.refused.len();
        if let Some(refused) = out.conf_refused {
            self.conf_refused += 1;
            self.told.push(format!("{} refuses: {}", id.0, refused.reason));
        }
        if !out.want_snapshot.is_empty() {
            self.wanted.insert(id);
        }
        if out.install.is_some() {
            let applied = self.members[&id].applied;
            self.step(id, Input::Applied(applied));
        }
    }

    fn commit(&mut self, id: NodeId, entry: Committed) {
        let member = self.members.get_mut(&id).expect("known");
        assert_eq!(entry.index, member.handed + 1, "handed out in order, once");
        member.handed = entry.index;
        match &entry.payload {
            Payload::Config { after, change, .. } => {
                self.confs.insert(entry.index, (entry.term, after.clone()));
                self.told.push(format!("{} commits {}: {}", id.0, entry.index, short(change)));
            }
            Payload::Proposals(data) => self.told.push(format!(
                "{} commits {}: {:?}",
                id.0,
                entry.index,
                String::from_utf8_lossy(data)
            )),
        }
        let first = self.chosen.entry(entry.index).or_insert(entry.clone());
        assert_eq!(*first, entry, "two committed entries at one index");
    }

    /// Completes the first `count` writes of `id` with one sync.
    pub(super) fn sync(&mut self, id: NodeId, count: usize) {
        let member = self.members.get_mut(&id).expect("known");
        let mut last = None;
        for write in member.writes.drain(..count.min(member.writes.len())) {
            member.disk.apply(&write);
            last = Some(Done(write.number));
        }
        if let Some(done) = last {
            self.step(id, Input::Durable(done));
        }
    }

    /// The state machine of `id` catches up to `index`.
    pub(super) fn apply(&mut self, id: NodeId, index: Index) {
        let member = self.members.get_mut(&id).expect("known");
        if member.core.is_some() && index > member.applied && index <= member.handed {
            member.applied = index;
            self.step(id, Input::Applied(index));
        }
    }

    /// Asks `id` for a linearizable read.
    pub(super) fn read(&mut self, id: NodeId) {
        self.counter += 1;
        let context = ReadContext { node: id, boot: 1, counter: self.counter };
        let floor = self.chosen.keys().next_back().copied().unwrap_or(1);
        self.floors.insert(context, floor);
        self.step(id, Input::Read { context });
    }

    pub(super) fn propose(&mut self, id: NodeId, text: &str) {
        let entries = vec![Bytes::copy_from_slice(text.as_bytes())];
        self.step(id, Input::Propose { entries });
    }

    /// Hands over one message, reporting a snapshot's arrival to its sender.
    pub(super) fn deliver(&mut self, letter: Letter) {
        let Letter { from, to, message } = letter;
        let snapshot = message.is_snapshot();
        let ok = self.members.get(&to).is_some_and(|member| member.core.is_some());
        self.step(to, Input::Messages(vec![(from, message)]));
        if snapshot {
            self.step(from, Input::SnapshotSent { to, ok });
        }
    }

    /// Answers wishes for a snapshot with one of the state just applied.
    pub(super) fn checkpoint(&mut self) {
        for id in std::mem::take(&mut self.wanted) {
            let applied = self.members[&id].applied;
            if applied > 0 {
                let meta = self.meta(applied);
                self.step(id, Input::SnapshotMade(meta));
            }
        }
    }

    /// Syncs, applies and delivers until nothing moves; `lost` eats messages.
    pub(super) fn settle(&mut self, lost: &dyn Fn(&Letter) -> bool) {
        loop {
            for id in self.alive() {
                self.sync(id, usize::MAX);
                let handed = self.members[&id].handed;
                self.apply(id, handed);
            }
            self.checkpoint();
            let post = std::mem::take(&mut self.post);
            if post.is_empty() && self.members.values().all(|member| member.writes.is_empty()) {
                return;
            }
            for letter in post {
                if !lost(&letter) {
                    self.deliver(letter);
                } else if letter.message.is_snapshot() {
                    let to = letter.to;
                    self.step(letter.from, Input::SnapshotSent { to, ok: false });
                }
            }
        }
    }

    /// Ticks everyone and settles, `count` times.
    pub(super) fn ticks(&mut self, count: usize, lost: &dyn Fn(&Letter) -> bool) {
        for _ in 0..count {
            for id in self.alive() {
                self.step(id, Input::Tick);
            }
            self.settle(lost);
        }
    }
}

fn short(change: &crate::types::ConfChange) -> String {
    use crate::types::ConfChange::*;
    match change {
        AddLearner(record) => format!("add learner {}", record.id.0),
        Promote(id) => format!("promote {}", id.0),
        Remove(id) => format!("remove {}", id.0),
        LeaveJoint => "leave joint".into(),
    }
}
