//! What may be stepped into raft, and what may not.
//!
//! raft trusts its peers: it panics on a commit index beyond its log, a term of 0, a snapshot with
//! an odd configuration and more. A peer may be wrong; it must never stop another member. So this
//! total function stands before every message, and each rule says which disaster it prevents. It
//! must let pass all that an honest member sends.

use raft::eraftpb::{Message, MessageType};
use raft::{CAMPAIGN_TRANSFER, StateRole};

use super::adapter::{conf_from_raft, entry_from_raft, is_in};
use super::change;
use crate::limits::{MAX_ENTRY_BYTES, MAX_MEMBERS, MAX_PEER_CONTEXT_BYTES, MAX_RAFT_NUMBER};
use crate::types::{ConfState, Index, NodeId, Term};

/// Why a message was not let in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum Refused {
    /// It claims another sender than the one whose connection it came on.
    #[error("it speaks for another node than its sender")]
    FalseSender,
    /// It is for another member.
    #[error("it is for another member")]
    WrongReceiver,
    /// A kind that members never send each other.
    #[error("members never send this kind of message")]
    NotForPeers,
    /// A number out of range: term 0, or a term or index that none can have reached.
    #[error("a term or index is out of range")]
    OutOfRange,
    /// Fields that do not belong to the kind, or contradict each other.
    #[error("its fields contradict each other")]
    Inconsistent,
    /// Entries with a gap, out of order in terms, too large, or an unreadable membership change.
    #[error("its entries are not a piece of a log")]
    BadEntries,
    /// A snapshot that no member can have made.
    #[error("its snapshot can't have been made by a member")]
    BadSnapshot,
    /// It speaks of entries that this log does not have: the sender is wrong, or this member has
    /// forgotten what it once acknowledged.
    #[error("it speaks of entries this member never had")]
    BeyondLog,
    /// A second leader of one term.
    #[error("it claims leadership of a term that has another leader")]
    SecondLeader,
    /// An answer from a node that is not in the group; a member just removed may send one.
    #[error("it is an answer from outside the group")]
    Stranger,
    /// It comes at the wrong time; honest members send such when messages are late.
    #[error("it comes at the wrong time")]
    NotNow,
}

impl Refused {
    /// Whether it shows a member (this one or the sender) to be faulty; else it is only late.
    pub fn is_fault(self) -> bool {
        !matches!(self, Self::Stranger | Self::NotNow)
    }
}

/// What the rules need to know of this member.
pub(super) struct View<'a> {
    pub(super) id: NodeId,
    pub(super) term: Term,
    pub(super) role: StateRole,
    pub(super) leader: u64,
    pub(super) committed: Index,
    pub(super) last_index: Index,
    pub(super) is_member: &'a dyn Fn(u64) -> bool,
    pub(super) term_at: &'a dyn Fn(Index) -> Option<Term>,
    /// It waits for its first snapshot and knows no configuration.
    pub(super) blank: bool,
    /// Entries or a snapshot are not on disk yet: it could not lead.
    pub(super) unpersisted: bool,
    /// A snapshot is being installed.
    pub(super) installing: bool,
}

/// Whether `message` from the verified `sender` may be stepped.
pub(super) fn vet(sender: NodeId, message: &Message, view: &View<'_>) -> Result<(), Refused> {
    envelope(sender, message, view)?;
    shape(message)?;
    match message.get_msg_type() {
        MessageType::MsgAppend => append(message, view),
        MessageType::MsgHeartbeat => heartbeat(message, view),
        MessageType::MsgSnapshot => snapshot(message, view),
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => vote(message),
        MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
            vote_response(message, view)
        }
        MessageType::MsgAppendResponse => append_response(message, view),
        MessageType::MsgHeartbeatResponse => member(message, view),
        MessageType::MsgTimeoutNow => timeout_now(message, view),
        _ => Err(Refused::NotForPeers),
    }
}

fn ensure(holds: bool, otherwise: Refused) -> Result<(), Refused> {
    if holds { Ok(()) } else { Err(otherwise) }
}

fn envelope(sender: NodeId, message: &Message, view: &View<'_>) -> Result<(), Refused> {
    ensure(sender.0 != 0 && sender != view.id && message.get_from() == sender.0, Refused::FalseSender)?;
    ensure(message.get_to() == view.id.0, Refused::WrongReceiver)?;
    // raft takes a message of term 0 for one of its own; and it adds to numbers unchecked.
    let term = message.get_term();
    ensure((1..=MAX_RAFT_NUMBER).contains(&term), Refused::OutOfRange)?;
    let numbers = [
        message.get_index(),
        message.get_log_term(),
        message.get_commit(),
        message.get_commit_term(),
        message.get_reject_hint(),
    ];
    ensure(numbers.iter().all(|number| *number <= MAX_RAFT_NUMBER), Refused::OutOfRange)
}

/// Fields are set only where the kind has a use for them.
fn shape(message: &Message) -> Result<(), Refused> {
    use MessageType::*;
    let kind = message.get_msg_type();
    let votes = matches!(
        kind,
        MsgRequestVote | MsgRequestPreVote | MsgRequestVoteResponse | MsgRequestPreVoteResponse
    );
    let context = message.get_context().len();
    let plain = message.get_request_snapshot() == 0
        && message.get_priority() == 0
        && message.get_deprecated_priority() == 0
        && (kind == MsgAppend || message.get_entries().is_empty())
        && (kind == MsgSnapshot || !message.has_snapshot())
        && (votes || message.get_commit_term() == 0)
        && (kind == MsgAppendResponse || message.get_reject_hint() == 0)
        && match kind {
            MsgHeartbeat | MsgHeartbeatResponse => context <= MAX_PEER_CONTEXT_BYTES,
            MsgRequestVote => context == 0 || message.get_context() == CAMPAIGN_TRANSFER,
            _ => context == 0,
        };
    ensure(plain, Refused::Inconsistent)
}

/// Index 0, and it alone, has term 0.
fn is_position(index: Index, term: Term) -> bool {
    (index == 0) == (term == 0)
}

fn from_leader(message: &Message, view: &View<'_>) -> Result<(), Refused> {
    let same_term = message.get_term() == view.term;
    let other_leads = view.leader != 0 && view.leader != message.get_from();
    ensure(!(same_term && other_leads), Refused::SecondLeader)
}

fn append(message: &Message, view: &View<'_>) -> Result<(), Refused> {
    let (index, log_term) = (message.get_index(), message.get_log_term());
    ensure(is_position(index, log_term) && log_term <= message.get_term(), Refused::Inconsistent)?;
    let mut expected = index;
    let mut term = log_term.max(1);
    for raw in message.get_entries() {
        expected += 1;
        let in_order = raw.get_index() == expected
            && (term..=message.get_term()).contains(&raw.get_term())
            && raw.data.len() + raw.context.len() <= MAX_ENTRY_BYTES;
        ensure(in_order && !raw.get_sync_log(), Refused::BadEntries)?;
        term = raw.get_term();
        match raw.get_entry_type() {
            raft::eraftpb::EntryType::EntryNormal => {}
            raft::eraftpb::EntryType::EntryConfChangeV2 => {
                let readable = change::of_entry(&entry_from_raft(raw)).is_ok();
                ensure(readable, Refused::BadEntries)?;
            }
            raft::eraftpb::EntryType::EntryConfChange => return Err(Refused::BadEntries),
        }
    }
    from_leader(message, view)?;
    // Without the configuration at the log's start, a later "make it a voter" would make this
    // member its own majority. Its first configuration comes in a snapshot; an append that does
    // not join its empty log is let in, so that the leader learns where it stands.
    ensure(!view.blank || index > view.last_index, Refused::NotNow)?;
    // Nothing committed may be contradicted.
    if message.get_term() >= view.term {
        for raw in message.get_entries() {
            if raw.get_index() > view.committed {
                break;
            }
            let known = (view.term_at)(raw.get_index());
            let agrees = known.is_none_or(|known| known == raw.get_term());
            ensure(agrees, Refused::BadEntries)?;
        }
    }
    Ok(())
}

fn heartbeat(message: &Message, view: &View<'_>) -> Result<(), Refused> {
    ensure(message.get_index() == 0 && message.get_log_term() == 0, Refused::Inconsistent)?;
    from_leader(message, view)?;
    // A leader names only what this member has acknowledged; raft panics on more.
    let current = message.get_term() >= view.term;
    ensure(!current || message.get_commit() <= view.last_index, Refused::BeyondLog)
}

fn snapshot(message: &Message, view: &View<'_>) -> Result<(), Refused> {
    let raw = message.get_snapshot();
    let (index, term) = (raw.get_metadata().get_index(), raw.get_metadata().get_term());
    ensure(message.get_index() == 0 && message.get_log_term() == 0, Refused::Inconsistent)?;
    let possible = (1..=MAX_RAFT_NUMBER).contains(&index)
        && (1..=message.get_term()).contains(&term)
        && raw.get_data().is_empty();
    ensure(possible, Refused::BadSnapshot)?;
    // raft stops on a configuration it can't take up, and assumes that this member is in it.
    let conf = conf_from_raft(raw.get_metadata().get_conf_state());
    ensure(is_sound(&conf) && is_in(&conf, view.id), Refused::BadSnapshot)?;
    from_leader(message, view)?;
    // Nothing committed may be contradicted.
    let contradicts = index <= view.committed && (view.term_at)(index).is_some_and(|known| known != term);
    ensure(!contradicts, Refused::BadSnapshot)
}

/// Whether a member can have been in this configuration.
pub(super) fn is_sound(conf: &ConfState) -> bool {
    let ascending = |ids: &[NodeId]| {
        ids.first().is_none_or(|first| first.0 != 0) && ids.windows(2).all(|pair| pair[0] < pair[1])
    };
    let lists = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next];
    let joint = !conf.voters_outgoing.is_empty();
    lists.iter().all(|list| ascending(list) && list.len() <= 2 * MAX_MEMBERS)
        && !conf.voters.is_empty()
        && conf.learners.iter().all(|id| {
            !conf.voters.contains(id)
                && !conf.voters_outgoing.contains(id)
                && !conf.learners_next.contains(id)
        })
        && conf.learners_next.iter().all(|id| conf.voters_outgoing.contains(id) && !conf.voters.contains(id))
        && (joint || (conf.learners_next.is_empty() && !conf.auto_leave))
}

fn vote(message: &Message) -> Result<(), Refused> {
    let (index, log_term) = (message.get_index(), message.get_log_term());
    let (commit, commit_term) = (message.get_commit(), message.get_commit_term());
    // A candidate asks for a term above all that are in its log.
    let possible = is_position(index, log_term)
        && is_position(commit, commit_term)
        && log_term < message.get_term()
        && commit <= index
        && commit_term <= log_term
        && !message.get_reject();
    ensure(possible, Refused::Inconsistent)
}

fn vote_response(message: &Message, view: &View<'_>) -> Result<(), Refused> {
    member(message, view)?;
    let possible = is_position(message.get_commit(), message.get_commit_term())
        && message.get_commit_term() <= message.get_term()
        && message.get_index() == 0
        && message.get_log_term() == 0;
    ensure(possible, Refused::Inconsistent)?;
    // raft asserts that a new leader has its whole log on disk. Our own requests go out only
    // then, so nobody has a vote to give before.
    ensure(message.get_reject() || !view.unpersisted, Refused::NotNow)
}

fn append_response(message: &Message, view: &View<'_>) -> Result<(), Refused> {
    member(message, view)?;
    // Counted for the commit index, and where the next append starts.
    let counts = view.role == StateRole::Leader && message.get_term() == view.term;
    ensure(!counts || message.get_index() <= view.last_index, Refused::BeyondLog)
}

fn timeout_now(message: &Message, view: &View<'_>) -> Result<(), Refused> {
    let empty = message.get_index() == 0 && message.get_log_term() == 0 && message.get_commit() == 0;
    ensure(empty && !message.get_reject(), Refused::Inconsistent)?;
    // It forces an election past every safeguard against disruption: from the leader alone.
    let from_leader = view.role == StateRole::Follower
        && message.get_term() == view.term
        && message.get_from() == view.leader;
    ensure(from_leader && !view.installing && !view.unpersisted, Refused::NotNow)
}

fn member(message: &Message, view: &View<'_>) -> Result<(), Refused> {
    ensure((view.is_member)(message.get_from()), Refused::Stranger)
}
