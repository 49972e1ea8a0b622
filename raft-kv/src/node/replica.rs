//! One member's decisions: everything between the callers, the peers, the log and the state.
//!
//! Pure: inputs and the time come in as values, effects go out as values. It must never answer
//! before an entry was applied, serve a read without a confirmed index, or let an expiry of a
//! deposed leader through. [`Replica::turn`] calls the stages in the order the data flows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::apply::{Report, Work};
use super::ask::{Ask, Ticket, Told};
use super::leases::Leases;
use super::lost::Lost;
use super::reads::{Reader, Reads};
use super::roll::Roll;
use super::waiting::Waiting;
use super::wire::PeerFrame;
use crate::error::{Error, StorageFailed};
use crate::limits;
use crate::machine::Proposal;
use crate::raft::{self, Core, Leadership, LogView, PeerMessage};
use crate::types::{Index, Member, NodeId, Older, Revision, Run, SnapshotMeta};

/// What comes in.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a report is moved once, and most others come in lists")]
pub enum Input<P> {
    /// [`limits::TICK`] passed.
    Tick,
    /// Frames from verified members. A raft snapshot message comes here only once its files are
    /// complete on this member's disk.
    Frames(Vec<(NodeId, PeerFrame)>),
    /// Requests of local callers.
    Asks(Vec<Ask>),
    /// A write is on disk.
    Durable(P),
    /// Apply finished a piece of work.
    Applied(Report),
    /// The connection to a member broke or its queue overflowed.
    Unreachable(NodeId),
    /// A checkpoint is ready to be sent to members that are too far behind.
    CheckpointMade(SnapshotMeta),
    /// A snapshot's transfer ended.
    SnapshotSent {
        /// To whom.
        to: NodeId,
        /// Whether it arrived whole.
        ok: bool,
    },
    /// All that was applied up to here survives a crash without the log.
    Flushed(SnapshotMeta),
    /// The process wants to stop.
    Stop,
}

/// What goes out, in the order it is to be carried out: frames first, then writes.
#[derive(Debug)]
pub struct Effects<W> {
    /// Frames to members.
    pub frames: Vec<(NodeId, PeerFrame)>,
    /// Snapshots to be sent from the newest checkpoint: to whom, with which raft message.
    pub snapshots: Vec<(NodeId, PeerMessage)>,
    /// Writes for the log, in order.
    pub writes: Vec<W>,
    /// Work for apply, in order.
    pub apply: Vec<Work>,
    /// Answers to local callers.
    pub answers: Vec<(Ticket, Result<Told, Error>)>,
    /// A checkpoint of the state is wanted.
    pub make_checkpoint: bool,
    /// The state is to be flushed.
    pub flush: bool,
    /// The log was cut up to here; checkpoints before it are of no use.
    pub cut: Option<Index>,
    /// Role, term or leader changed.
    pub leadership: Option<Leadership>,
    /// The members changed.
    pub members: Option<Vec<Member>>,
    /// This member's directory is an older copy of itself: it may promise nothing, and ends.
    pub older: Option<Older>,
    /// Nothing keeps the process from stopping any more.
    pub stopped: bool,
}

impl<W> Default for Effects<W> {
    fn default() -> Self {
        Self {
            frames: Vec::new(),
            snapshots: Vec::new(),
            writes: Vec::new(),
            apply: Vec::new(),
            answers: Vec::new(),
            make_checkpoint: false,
            flush: false,
            cut: None,
            leadership: None,
            members: None,
            older: None,
            stopped: false,
        }
    }
}

/// When the state is flushed and how much log is kept behind it. Tests and the simulator make
/// these small; the product takes the default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Log that the state has not flushed yet, in bytes, before a flush is asked for.
    pub flush_bytes: usize,
    /// Time after which unflushed entries are flushed all the same.
    pub flush_after: Duration,
    /// Entries kept behind the flushed state for followers that are a little behind.
    pub keep_for_followers: Index,
    /// Entries kept at most for a follower that is far behind but answers.
    pub keep_at_most: Index,
    /// Bytes of entries kept at most, whoever needs them.
    pub keep_at_most_bytes: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            flush_bytes: 64 * 1024 * 1024,
            flush_after: Duration::from_secs(60),
            keep_for_followers: 5_000,
            keep_at_most: 200_000,
            keep_at_most_bytes: 2 * 1024 * 1024 * 1024,
        }
    }
}

/// Who a replica is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its id.
    pub me: NodeId,
    /// Unique to this run of the process.
    pub boot: u64,
    /// The log's number for this run; 0 where it doesn't count them, and then nobody is asked.
    pub run: u64,
    /// Its chance: election timeouts and lease ids come from it.
    pub seed: u64,
}

/// See the module.
pub struct Replica<L: LogView> {
    pub(super) core: Core<L>,
    pub(super) bounds: Bounds,
    pub(super) me: NodeId,
    pub(super) boot: u64,
    pub(super) leadership: Leadership,
    pub(super) waiting: Waiting,
    /// Requests of other members' callers, to be proposed.
    pub(super) forwarded: VecDeque<Proposal>,
    pub(super) reads: Reads,
    /// Callers of reads and leases, with their deadlines.
    pub(super) barriers: BTreeMap<Ticket, Duration>,
    /// Renewals that wait until an expiry under way is applied.
    pub(super) ending: Vec<Reader>,
    /// Lease calls handed on to the leader: number → caller, and when that was.
    pub(super) lease_calls: BTreeMap<u64, (super::duties::LeaseRetry, Duration)>,
    pub(super) next_lease_call: u64,
    /// Lease calls to be asked again with the next tick.
    pub(super) lease_retries: Vec<super::duties::LeaseRetry>,
    /// Callers that wait for leadership to move: their deadline and to whom it shall go.
    pub(super) transfers: Vec<(Ticket, Duration, Option<NodeId>)>,
    pub(super) leases: Leases,
    pub(super) members: Vec<Member>,
    pub(super) applied: SnapshotMeta,
    pub(super) revision: Revision,
    /// For each snapshot that apply has not installed yet, oldest first: its write and those
    /// behind it. The log must not forget what came before a state that is not in place.
    pub(super) held: VecDeque<Vec<L::Write>>,
    /// Bytes of entries that apply has been handed and has not reported.
    pub(super) apply_lag: usize,
    pub(super) unflushed: usize,
    pub(super) flushed_at: Duration,
    pub(super) flushing: bool,
    /// The configuration changed since the last flush began.
    pub(super) flush_soon: bool,
    /// The log up to here is kept for nobody who is not there.
    pub(super) forget_to: Index,
    /// Since when this member leads, by its ticks; and when it last heard of each other voter since then.
    pub(super) led_since: Option<Duration>,
    pub(super) heard: BTreeMap<NodeId, Duration>,
    /// That was done once already; this is for what came meanwhile.
    pub(super) forget_again: bool,
    pub(super) checkpoint: Option<SnapshotMeta>,
    pub(super) making_checkpoint: bool,
    pub(super) sending: BTreeSet<NodeId>,
    /// The checkpoint is kept until then for those whose transfer broke.
    pub(super) checkpoint_until: Duration,
    pub(super) stopping: Option<Duration>,
    pub(super) internal_seq: u64,
    pub(super) roll: Roll,
    pub(super) lost: Lost,
}

impl<L: LogView> Replica<L> {
    /// Starts from a log and from what apply found in the state.
    pub fn new(identity: &Identity, log: L, start: Report) -> Result<Self, StorageFailed> {
        let options = raft::Options {
            id: identity.me,
            seed: identity.seed,
            applied: start.applied.index,
            conf: start.applied.conf.clone(),
        };
        let run = Run { number: identity.run, boot: identity.boot };
        let mut roll = Roll::new(identity.me, run, &start.applied.conf);
        let core = Core::new(options, log)?;
        let status = core.status();
        roll.begin(start.runs.unwrap_or_default(), (status.term, status.last_index));
        let mut leases = Leases::default();
        leases.reset(start.all_leases.unwrap_or_default(), Duration::ZERO);
        Ok(Self {
            leadership: core.leadership(),
            core,
            bounds: Bounds::default(),
            me: identity.me,
            boot: identity.boot,
            waiting: Waiting::new(identity.me, identity.boot),
            forwarded: VecDeque::new(),
            reads: Reads::new(identity.me, identity.boot),
            barriers: BTreeMap::new(),
            ending: Vec::new(),
            lease_calls: BTreeMap::new(),
            next_lease_call: 1,
            lease_retries: Vec::new(),
            transfers: Vec::new(),
            leases,
            members: start.members.unwrap_or_default(),
            applied: start.applied,
            revision: start.revision,
            held: VecDeque::new(),
            apply_lag: 0,
            unflushed: 0,
            flushed_at: Duration::ZERO,
            flushing: false,
            flush_soon: false,
            forget_to: 0,
            led_since: None,
            heard: BTreeMap::new(),
            forget_again: false,
            checkpoint: None,
            making_checkpoint: false,
            sending: BTreeSet::new(),
            checkpoint_until: Duration::ZERO,
            stopping: None,
            internal_seq: 0,
            roll,
            lost: Lost::default(),
        })
    }

    /// The same replica with other bounds.
    #[must_use]
    pub fn with_bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    /// Role, term and leader as last seen.
    pub fn leadership(&self) -> &Leadership {
        &self.leadership
    }

    /// Raft's view of itself.
    pub fn status(&self) -> raft::Status {
        self.core.status()
    }

    /// The members as last applied.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The log, for checks.
    pub fn log(&self) -> &L {
        self.core.log()
    }

    pub(super) fn leads(&self) -> bool {
        self.leadership.leader == Some(self.me)
    }

    /// Takes all inputs in and calls the stages in the order the data flows.
    pub fn turn(
        &mut self,
        now: Duration,
        inputs: Vec<Input<L::Proof>>,
    ) -> Result<Effects<L::Write>, StorageFailed> {
        let mut out = Effects::default();
        for input in inputs {
            self.take_in(now, input, &mut out)?;
        }
        self.propose(now, &mut out)?;
        self.answer_closes(&mut out);
        self.confirm_reads(now, &mut out)?;
        self.serve_reads(now, &mut out);
        self.check_stop(now, &mut out);
        Ok(out)
    }

    fn take_in(
        &mut self,
        now: Duration,
        input: Input<L::Proof>,
        out: &mut Effects<L::Write>,
    ) -> Result<(), StorageFailed> {
        match input {
            Input::Tick => self.tick(now, out),
            Input::Frames(frames) => self.frames(now, frames, out),
            Input::Asks(asks) => {
                for ask in asks {
                    self.ask(now, ask, out);
                }
                Ok(())
            }
            Input::Durable(proof) => self.step(now, raft::Input::Durable(proof), out),
            Input::Applied(report) => self.applied(now, report, out),
            Input::Unreachable(id) => self.step(now, raft::Input::Unreachable(id), out),
            Input::CheckpointMade(meta) => {
                self.making_checkpoint = false;
                self.checkpoint = Some(meta.clone());
                self.step(now, raft::Input::SnapshotMade(meta), out)
            }
            Input::SnapshotSent { to, ok } => {
                self.sending.remove(&to);
                if !ok {
                    self.checkpoint_until = now + limits::CHECKPOINT_KEPT;
                }
                self.step(now, raft::Input::SnapshotSent { to, ok }, out)
            }
            Input::Flushed(meta) => self.flushed(now, &meta, out),
            Input::Stop => self.stop(now, out),
        }
    }
}
