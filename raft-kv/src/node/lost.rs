//! Requests that were lost on their way to the leader: a connection broke, or a queue was full.
//!
//! The sender can't tell a lost request from a slow one, and may try it again only once it knows that
//! the first attempt is never proposed. So it asks the leader to close its old requests: the leader
//! proposes none of them any more and says where its log ends. Once the sender has applied that much, a
//! closed request without an outcome was certainly not done. Nothing is remembered longer than a term.

use std::collections::BTreeMap;
use std::time::Duration;

use super::replica::{Effects, Replica};
use super::wire::PeerFrame;
use crate::planted;
use crate::raft::LogView;
use crate::types::{Index, NodeId, RequestId, Term};

/// A request handed on that has no outcome after this long may be lost; also the time between two
/// questions.
const PATIENCE: Duration = Duration::from_secs(1);
/// Runs of members whose requests a leader closes in one term. More are not answered.
const MAX_RUNS: usize = 1024;

/// A question to close requests, or its answer: term, run, number.
type Close = (Term, u64, u64);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// When the leader was asked last.
    asked: Option<Duration>,
    /// It has closed these; what it had proposed is applied with this index.
    answered: Option<(Close, Index)>,
    /// As leader: what is closed of each run of a member.
    closed: BTreeMap<(NodeId, u64), u64>,
    /// As leader: who waits for an answer, until this turn's requests are proposed.
    asking: Vec<(NodeId, Close)>,
}

impl Lost {
    /// Another term: what the last one's leader had closed is over, its successor takes nothing of that term.
    pub fn leader_changed(&mut self) {
        self.asked = None;
        self.closed.clear();
        self.asking.clear();
    }

    /// Whether the request came after its sender had given it up.
    pub fn is_closed(&self, request: &RequestId) -> bool {
        let closed = self.closed.get(&(request.origin, request.boot));
        closed.is_some_and(|up_to| request.seq <= *up_to) && !planted!(ProposeClosed)
    }
}

impl<L: LogView> Replica<L> {
    /// A tick passed: asks the leader to close what was handed on long ago.
    pub(super) fn close_lost(&mut self, now: Duration, out: &mut Effects<L::Write>) {
        let term = self.leadership.term;
        let Some(leader) = self.leadership.leader.filter(|leader| *leader != self.me) else {
            return;
        };
        let lately = self.lost.asked.is_some_and(|asked| now.saturating_sub(asked) < PATIENCE);
        if lately || now < PATIENCE {
            return;
        }
        if let Some(up_to) = self.waiting.oldest(term, now - PATIENCE) {
            self.lost.asked = Some(now);
            out.frames.push((leader, PeerFrame::Close { term, boot: self.boot, up_to }));
        }
    }

    /// A member gives its old requests up.
    pub(super) fn take_close(&mut self, from: NodeId, close: Close) {
        let (term, boot, up_to) = close;
        let known = self.lost.closed.contains_key(&(from, boot));
        let room = known || self.lost.closed.len() < MAX_RUNS;
        if !self.leads() || self.leadership.term != term || !room {
            return; // asked again, of whoever leads then
        }
        let closed = self.lost.closed.entry((from, boot)).or_default();
        *closed = up_to.max(*closed);
        self.lost.asking.push((from, close));
    }

    /// What came before a question is in the log by now, or declined.
    pub(super) fn answer_closes(&mut self, out: &mut Effects<L::Write>) {
        if self.lost.asking.is_empty() {
            return;
        }
        assert!(self.forwarded.is_empty(), "a leader proposes what it was handed within the turn");
        let index = self.core.status().last_index;
        for (to, (term, boot, up_to)) in std::mem::take(&mut self.lost.asking) {
            out.frames.push((to, PeerFrame::Closed { term, boot, up_to, index }));
        }
    }

    /// The leader has closed this member's old requests.
    pub(super) fn take_closed(&mut self, close: Close, index: Index) {
        if close.0 == self.leadership.term && close.1 == self.boot {
            self.lost.answered = Some((close, index));
            self.retry_closed();
        }
    }

    /// Tries again what was closed, once all that the leader had taken of it has its outcome.
    pub(super) fn retry_closed(&mut self) {
        if let Some(((term, _, up_to), index)) = self.lost.answered
            && self.applied.index >= index
        {
            self.lost.answered = None;
            self.waiting.closed(term, up_to);
        }
    }
}
