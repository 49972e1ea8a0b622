//! The step: one input in, everything it causes out.
//!
//! Invariants: a message that promises something is released only with the proof that the disk
//! has it; writes go out in order and are numbered without gaps; configurations are in force in
//! raft before they are handed out; nothing is handed out twice. It must never panic on what a
//! peer sends, and never do anything after a storage failure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{Entry as RaftEntry, Message, MessageType};
use raft::{Config, ProgressState, RawNode, ReadOnlyOption, SnapshotStatus, StateRole};

use super::adapter::{Adapter, conf_from_raft, entry_from_raft, hard_from_raft, snapshot_from_raft};
use super::change;
use super::elections::Elections;
use super::message::split;
use super::vet::{View, is_sound, vet};
use super::{
    ConfRefused, Input, Leadership, LogView, Options, Output, PeerMessage, Progress, Proof, ReadContext,
    Refused, Role, Sending, Status, drain,
};
use crate::codec::Wire;
use crate::error::{Error, NotDone, StorageFailed};
use crate::limits;
use crate::planted;
use crate::types::{
    Committed, ConfChange, ConfProposal, ConfState, Entry, EntryKind, HardState, Index, NodeId, Payload,
    SnapshotMeta, Term,
};

/// A write that the disk does not have yet.
struct Outstanding {
    number: u64,
    /// The last of raft's `Ready`s that is on disk once this is.
    ready: u64,
    /// It holds entries or a snapshot.
    log: bool,
    /// It holds a new term or vote.
    vote: bool,
    /// What may be said once it is on disk.
    held: Vec<(NodeId, PeerMessage)>,
}

/// One member's consensus.
pub struct Core<L: LogView> {
    raw: RawNode<Adapter<L>>,
    elections: Elections,
    /// What the log was last given.
    hard: HardState,
    writes: u64,
    outstanding: VecDeque<Outstanding>,
    /// Reads raft has not confirmed yet, of the current leadership.
    reads: BTreeSet<ReadContext>,
    handed: Index,
    confirmed: Index,
    conf: ConfState,
    told: Leadership,
    /// A campaign was asked for and waits until it is possible.
    campaign: bool,
}

impl<L: LogView> Core<L> {
    /// Starts from what the log and the state machine have.
    ///
    /// # Errors
    /// Where log and state can't belong together: the state must end within the log, boundary
    /// included. (A crash during an installation is repaired before.)
    ///
    /// # Panics
    /// With id 0, or a configuration no member can have been in.
    pub fn new(options: Options, log: L) -> Result<Self, StorageFailed> {
        let Options { id, seed, applied, conf } = options;
        assert!(id.0 != 0, "a member's id is never 0");
        assert!(conf == ConfState::default() || is_sound(&conf), "odd configuration: {conf:?}");
        let hard = check_start(&log, applied)?;
        let config = Config {
            id: id.0,
            election_tick: limits::ELECTION_TICKS,
            heartbeat_tick: limits::HEARTBEAT_TICKS,
            min_election_tick: limits::ELECTION_TICKS,
            max_election_tick: limits::ELECTION_TICKS_MAX,
            applied,
            max_size_per_msg: limits::MAX_APPEND_BYTES,
            max_inflight_msgs: limits::MAX_INFLIGHT_APPENDS,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            skip_bcast_commit: false,
            batch_append: true,
            priority: 0,
            max_uncommitted_size: limits::MAX_UNCOMMITTED_BYTES,
            max_committed_size_per_ready: limits::MAX_COMMITTED_BYTES,
        };
        let adapter = Adapter::new(log, hard, conf.clone());
        let raw = RawNode::new(&config, adapter, &drain::logger()).expect("settings and start were checked");
        let told = Leadership { term: hard.term, role: Role::Follower, leader: None, ready: false };
        let mut core = Self {
            raw,
            elections: Elections::new(seed, id),
            hard,
            writes: 0,
            outstanding: VecDeque::new(),
            reads: BTreeSet::new(),
            handed: applied,
            confirmed: applied,
            conf,
            told,
            campaign: false,
        };
        core.elections.settle(&mut core.raw, false);
        core.told = core.leadership();
        core.fail()?;
        Ok(core)
    }

    /// Takes one input and hands back all that it causes.
    ///
    /// # Errors
    /// When the log can't be read; then, and for ever after, nothing else is handed back.
    pub fn step(&mut self, input: Input<L::Proof>) -> Result<Output<L::Write>, StorageFailed> {
        self.fail()?;
        let mut out = Output::default();
        let leading = self.leading();
        let begun = self.take(input, &mut out)?;
        self.drain(&mut out)?;
        while self.confirm() {
            self.drain(&mut out)?;
        }
        if self.campaign && self.try_campaign() {
            self.drain(&mut out)?;
        }
        self.elections.settle(&mut self.raw, begun);
        if leading != self.leading() {
            // raft has forgotten them, and a late answer must not confirm them.
            out.reads_refused.extend(std::mem::take(&mut self.reads));
        }
        out.want_snapshot = self.raw.store().take_wanted();
        let now = self.leadership();
        if now != self.told {
            self.told = now;
            out.leadership = Some(now);
        }
        self.fail()?;
        Ok(out)
    }

    /// The log.
    pub fn log(&self) -> &L {
        &self.raw.store().log
    }

    /// The core's state now.
    pub fn status(&self) -> Status {
        let raft = &self.raw.raft;
        let mut progress = BTreeMap::new();
        if raft.state == StateRole::Leader {
            for (id, peer) in raft.prs().iter().filter(|(id, _)| **id != raft.id) {
                let sending = match peer.state {
                    ProgressState::Probe => Sending::Probe,
                    ProgressState::Replicate => Sending::Replicate,
                    ProgressState::Snapshot => Sending::Snapshot,
                };
                let known = Progress { matched: peer.matched, recent_active: peer.recent_active, sending };
                progress.insert(NodeId(*id), known);
            }
        }
        let now = self.leadership();
        Status {
            id: NodeId(raft.id),
            role: now.role,
            term: now.term,
            leader: now.leader,
            commit: raft.raft_log.committed,
            handed: self.handed,
            applied: raft.raft_log.applied,
            first_index: self.log().first_index(),
            last_index: raft.raft_log.last_index(),
            persisted: raft.raft_log.persisted,
            transfer_to: raft.lead_transferee.map(NodeId),
            conf: self.conf.clone(),
            progress,
        }
    }

    fn fail(&self) -> Result<(), StorageFailed> {
        self.raw.store().failure().map_or(Ok(()), Err)
    }

    fn leading(&self) -> (Term, bool) {
        (self.raw.raft.term, self.raw.raft.state == StateRole::Leader)
    }

    /// Who leads, as [`Output::leadership`] last said.
    pub fn leadership(&self) -> Leadership {
        let raft = &self.raw.raft;
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate => Role::Candidate,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Follower if raft.promotable() => Role::Follower,
            StateRole::Follower => Role::Learner,
        };
        let leader = Some(NodeId(raft.leader_id)).filter(|id| id.0 != 0);
        let ready = raft.state == StateRole::Leader
            && raft.raft_log.term(self.handed).is_ok_and(|term| term == raft.term);
        Leadership { term: raft.term, role, leader, ready }
    }

    /// Hands one input to raft; says whether an election was begun by the clock.
    fn take(&mut self, input: Input<L::Proof>, out: &mut Output<L::Write>) -> Result<bool, StorageFailed> {
        match input {
            Input::Tick => return Ok(self.tick()),
            Input::Messages(messages) => self.messages(messages, out)?,
            Input::Propose { entries } => self.propose(entries, out),
            Input::ProposeConf { proposal } => self.propose_conf(proposal, out),
            Input::Read { context } => self.read(context, out),
            Input::Durable(proof) => self.durable(proof.number(), out),
            Input::Applied(index) => {
                assert!(index <= self.handed, "applied {index}, handed out {}", self.handed);
                self.confirmed = self.confirmed.max(index);
            }
            Input::Transfer { to } => self.transfer(to),
            Input::Campaign => self.campaign = true,
            Input::Unreachable(id) => self.raw.report_unreachable(id.0),
            Input::SnapshotSent { to, ok } => {
                let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                self.raw.report_snapshot(to.0, status);
            }
            Input::SnapshotMade(meta) => {
                assert!(meta.index <= self.handed, "a snapshot of what was never handed out");
                self.raw.mut_store().offer(meta);
            }
            Input::Cut(meta) => self.cut(&meta, false, out),
            Input::Forget(meta) => self.cut(&meta, true, out),
        }
        Ok(false)
    }

    fn tick(&mut self) -> bool {
        let leads = self.raw.raft.state == StateRole::Leader;
        self.doubt_leader();
        if !leads && !self.may_campaign() {
            // Time passes all the same: others must not be refused a vote for longer.
            self.raw.raft.election_elapsed += 1;
            return false;
        }
        let acted = self.raw.tick();
        acted && !leads
    }

    /// A member without a vote never stands for election, so raft lets it believe in a leader that
    /// it has not heard of for long. It must not: perhaps it was removed. The next heartbeat says
    /// who leads.
    fn doubt_leader(&mut self) {
        let raft = &mut self.raw.raft;
        let silent = raft.election_elapsed >= limits::ELECTION_TICKS_MAX;
        if silent && raft.state == StateRole::Follower && !raft.promotable() {
            raft.leader_id = raft::INVALID_ID;
        }
    }

    /// raft panics when it stands for election while the state machine is behind the log's start,
    /// or when it wins (by its own vote alone, say) with a log that is not on disk.
    fn may_campaign(&self) -> bool {
        !self.installing() && !self.unpersisted()
    }

    fn installing(&self) -> bool {
        self.raw.raft.raft_log.applied + 1 < self.raw.raft.raft_log.first_index()
    }

    fn unpersisted(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        log.persisted != log.last_index() || self.outstanding.iter().any(|write| write.log)
    }

    fn try_campaign(&mut self) -> bool {
        let follows = self.raw.raft.state == StateRole::Follower;
        if !follows || self.raw.raft.leader_id != 0 {
            self.campaign = false;
            return false;
        }
        if !self.raw.raft.promotable() || !self.may_campaign() {
            return false;
        }
        // raft itself declines, without an error, while membership changes wait to be applied.
        let done = self.raw.campaign().is_ok() && self.raw.raft.state != StateRole::Follower;
        self.campaign = !done;
        done
    }

    fn messages(
        &mut self,
        messages: Vec<(NodeId, PeerMessage)>,
        out: &mut Output<L::Write>,
    ) -> Result<(), StorageFailed> {
        for (sender, PeerMessage(message)) in messages {
            let verdict = self.vet(sender, &message);
            if let Err(refused) = verdict
                && !planted!(SkipVetting)
            {
                tracing::debug!(%sender, %refused, "peer message refused");
                out.vetted.push((sender, refused));
                continue;
            }
            let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            // What raft still declines (an answer to nothing) needs no answer.
            let _ = self.raw.step(message);
            // The next message must meet a log that begins behind the snapshot.
            if snapshot {
                self.drain(out)?;
            }
        }
        Ok(())
    }

    fn vet(&self, sender: NodeId, message: &Message) -> Result<(), Refused> {
        let raft = &self.raw.raft;
        let view = View {
            id: NodeId(raft.id),
            term: raft.term,
            role: raft.state,
            leader: raft.leader_id,
            committed: raft.raft_log.committed,
            last_index: raft.raft_log.last_index(),
            is_member: &|id| raft.prs().get(id).is_some(),
            term_at: &|index| raft.raft_log.term(index).ok().filter(|term| *term != 0),
            blank: self.conf.voters.is_empty(),
            unpersisted: self.unpersisted(),
            installing: self.installing(),
        };
        vet(sender, message, &view)
    }

    fn propose(&mut self, entries: Vec<Bytes>, out: &mut Output<L::Write>) {
        let fits = entries.iter().all(|entry| entry.len() <= limits::MAX_ENTRY_BYTES);
        if entries.is_empty() {
            return;
        }
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.set_from(self.raw.raft.id);
        let raws: Vec<RaftEntry> =
            entries.iter().map(|data| RaftEntry { data: data.clone(), ..Default::default() }).collect();
        message.set_entries(raws.into());
        let leads = self.raw.raft.state == StateRole::Leader;
        if !leads || !fits || self.raw.step(message).is_err() {
            out.refused = entries;
        }
    }

    fn propose_conf(&mut self, proposal: ConfProposal, out: &mut Output<L::Write>) {
        if let Err(reason) = self.try_propose_conf(&proposal) {
            out.conf_refused = Some(ConfRefused { proposal, reason });
        }
    }

    fn try_propose_conf(&mut self, proposal: &ConfProposal) -> Result<(), Error> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return Err(Error::NotDone(NotDone::NotLeader));
        }
        let joint = !self.conf.voters_outgoing.is_empty();
        if raft.has_pending_conf() || (joint && proposal.change != ConfChange::LeaveJoint) {
            return Err(Error::NotDone(NotDone::ChangeUnderWay));
        }
        change::fits(&proposal.change, &self.conf)?;
        let raw = change::to_raft(&proposal.change);
        debug_assert!(raw.compute_size() < 1024);
        self.raw
            .propose_conf_change(proposal.to_bytes().to_vec(), raw)
            .map_err(|_| Error::NotDone(NotDone::Busy))
    }

    fn read(&mut self, context: ReadContext, out: &mut Output<L::Write>) {
        let raft = &self.raw.raft;
        let may = raft.state == StateRole::Leader
            && raft.commit_to_current_term()
            && self.reads.len() < limits::MAX_PENDING_READS;
        if may {
            self.reads.insert(context);
            self.raw.read_index(context.encoded());
        } else {
            out.reads_refused.push(context);
        }
    }

    fn transfer(&mut self, to: Option<NodeId>) {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return;
        }
        let to = to.or_else(|| {
            let others = raft.prs().iter().filter(|(id, peer)| {
                **id != raft.id && peer.recent_active && self.conf.voters.contains(&NodeId(**id))
            });
            others.max_by_key(|(id, peer)| (peer.matched, **id)).map(|(id, _)| NodeId(*id))
        });
        if let Some(to) = to.filter(|to| self.conf.voters.contains(to)) {
            self.raw.transfer_leader(to.0);
        }
    }

    fn cut(&mut self, meta: &SnapshotMeta, forget: bool, out: &mut Output<L::Write>) {
        let applied = self.raw.raft.raft_log.applied;
        let log = &mut self.raw.mut_store().log;
        if meta.index < log.first_index() || meta.index > applied {
            return;
        }
        self.writes += 1;
        out.writes.push(match forget {
            true => log.stage_forget(self.writes, meta),
            false => log.stage_cut(self.writes, meta),
        });
        self.outstanding.push_back(Outstanding {
            number: self.writes,
            ready: 0,
            log: false,
            vote: false,
            held: Vec::new(),
        });
    }

    /// Takes in that writes up to `number` are on disk, and says what waited for it.
    fn durable(&mut self, number: u64, out: &mut Output<L::Write>) {
        assert!(number <= self.writes, "write {number} was never staged");
        let mut ready = 0;
        while self.outstanding.front().is_some_and(|write| write.number <= number) {
            let write = self.outstanding.pop_front().expect("it was just looked at");
            ready = ready.max(write.ready);
            out.messages.extend(write.held);
        }
        if ready != 0 {
            self.raw.on_persist_ready(ready);
        }
    }

    /// Tells raft how far the state machine is; says whether that was news.
    fn confirm(&mut self) -> bool {
        let log = &self.raw.raft.raft_log;
        // A snapshot may be installed before the log's own note of it is on disk.
        let index = self.confirmed.min(log.committed).min(log.persisted);
        let news = index > log.applied;
        if news {
            self.raw.advance_apply_to(index);
        }
        news
    }

    /// Carries out everything raft has ready.
    fn drain(&mut self, out: &mut Output<L::Write>) -> Result<(), StorageFailed> {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            let number = ready.number();
            let at_once = ready.take_messages();
            let promises = ready.take_persisted_messages();
            for state in ready.take_read_states() {
                let context = ReadContext::decoded(&state.request_ctx);
                let asked = context.filter(|context| self.reads.remove(context));
                out.reads.extend(asked.map(|context| (context, state.index)));
            }
            let entries: Vec<Entry> = ready.entries().iter().map(entry_from_raft).collect();
            let snapshot = (!ready.snapshot().is_empty()).then(|| snapshot_from_raft(ready.snapshot()));
            let committed = ready.take_committed_entries();
            if let Some(meta) = snapshot {
                self.stage_snapshot(meta, out);
            }
            if !entries.is_empty() || self.hard_moved() {
                self.stage(&entries, out);
            }
            self.raw.advance_append_async(ready);
            self.await_disk(number);
            self.release(at_once, false, out);
            self.release(promises, true, out);
            for raw in &committed {
                self.hand_out(&entry_from_raft(raw), out)?;
            }
            self.fail()?;
        }
        Ok(())
    }

    fn hard_now(&self) -> HardState {
        let mut hard = hard_from_raft(&self.raw.raft.hard_state());
        if planted!(ForgetVote) {
            hard.vote = NodeId(0);
        }
        hard
    }

    /// Whether there is a new term or vote to write. A new commit index alone waits for the next
    /// write: it is known again soon enough after a crash.
    fn hard_moved(&self) -> bool {
        let now = self.hard_now();
        (now.term, now.vote) != (self.hard.term, self.hard.vote)
    }

    fn stage_snapshot(&mut self, meta: SnapshotMeta, out: &mut Output<L::Write>) {
        let hard = self.hard_now();
        let vote = self.hard_moved();
        self.hard = hard;
        self.writes += 1;
        let number = self.writes;
        out.writes.push(self.raw.mut_store().log.stage_snapshot(number, hard, &meta));
        self.await_write(true, vote);
        self.handed = meta.index;
        self.conf = meta.conf.clone();
        // A newer one takes the place of one that the shell has not begun with.
        out.committed.retain(|entry| entry.index > meta.index);
        out.install = Some(meta);
    }

    fn stage(&mut self, entries: &[Entry], out: &mut Output<L::Write>) {
        let hard = self.hard_now();
        let vote = self.hard_moved();
        let news = (hard != self.hard).then_some(hard);
        self.hard = hard;
        self.writes += 1;
        let number = self.writes;
        out.writes.push(self.raw.mut_store().log.stage(number, news, entries));
        self.await_write(!entries.is_empty(), vote);
    }

    fn await_write(&mut self, log: bool, vote: bool) {
        let number = self.writes;
        self.outstanding.push_back(Outstanding { number, ready: 0, log, vote, held: Vec::new() });
    }

    /// A `Ready` is on disk once the last write before it is.
    fn await_disk(&mut self, ready: u64) {
        match self.outstanding.back_mut() {
            Some(write) => write.ready = ready,
            None => self.raw.on_persist_ready(ready),
        }
    }

    /// Lets messages go, or holds them back until the disk has what they rest on. A leader's
    /// entries may overtake its own disk; its term may not: after a crash it could lead the same
    /// term again with other entries.
    fn release(&mut self, messages: Vec<Message>, promise: bool, out: &mut Output<L::Write>) {
        if messages.is_empty() {
            return;
        }
        let messages = messages
            .into_iter()
            .flat_map(split)
            .map(|message| (NodeId(message.get_to()), PeerMessage(message)));
        let rests_on = if promise {
            self.outstanding.back_mut()
        } else {
            self.outstanding.iter_mut().rev().find(|write| write.vote)
        };
        match rests_on {
            Some(write) if !planted!(SendBeforeDurable) => write.held.extend(messages),
            _ => out.messages.extend(messages),
        }
    }

    fn hand_out(&mut self, entry: &Entry, out: &mut Output<L::Write>) -> Result<(), StorageFailed> {
        assert_eq!(entry.index, self.handed + 1, "committed entries come without gaps");
        let payload = match entry.kind {
            EntryKind::Normal => Payload::Proposals(entry.data.clone()),
            EntryKind::Config => {
                let ConfProposal { change, request } = change::of_entry(entry).map_err(|error| {
                    let why = format!("entry {}: {error}", entry.index);
                    self.raw.store().keep(StorageFailed::damaged("raft log", why))
                })?;
                self.change(&change);
                Payload::Config { change, request, after: self.conf.clone() }
            }
        };
        self.handed = entry.index;
        out.committed.push(Committed { index: entry.index, term: entry.term, payload });
        Ok(())
    }

    /// Puts a committed membership change into force. One that does not fit changes nothing: on
    /// every member alike, for all have the same configuration here.
    fn change(&mut self, change: &ConfChange) {
        assert!(!self.conf.voters.is_empty(), "a blank member takes in no entries");
        match self.raw.apply_conf_change(&change::to_raft(change)) {
            Ok(raw) => self.conf = conf_from_raft(&raw),
            Err(error) => tracing::error!(?change, %error, "membership change without effect"),
        }
        // raft would go on leading, and panic on the next commit.
        if !self.raw.raft.promotable() && self.raw.raft.state != StateRole::Follower {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
    }
}

/// The hard state to start from, where log and state belong together.
fn check_start<L: LogView>(log: &L, applied: Index) -> Result<HardState, StorageFailed> {
    let (mut hard, boundary) = log.start();
    let last = log.last_index();
    let damaged = |why: String| Err(StorageFailed::damaged("raft log", why));
    if applied < boundary.index {
        return damaged(format!("the state ends at {applied}, before the log's start at {}", boundary.index));
    }
    if applied > last || hard.commit > last {
        let known = applied.max(hard.commit);
        return damaged(format!("it ends at {last}, yet {known} was committed"));
    }
    // The commit index on disk may lag; a term never lies below the last entry's.
    hard.commit = hard.commit.max(applied).max(boundary.index);
    let last_term = log.term(last)?.unwrap_or(0);
    if hard.term < last_term {
        hard.term = last_term;
        hard.vote = NodeId(0);
    }
    Ok(hard)
}
