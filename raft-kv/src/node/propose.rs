//! Propose: what waits is gathered into log entries at the leader, or handed on to it.

use std::time::Duration;

use bytes::Bytes;

use super::membership;
use super::replica::{Effects, Replica};
use super::waiting::Attempt;
use super::wire::PeerFrame;
use crate::codec::Wire;
use crate::error::{Error, NotDone, Refusal, StorageFailed};
use crate::limits;
use crate::machine::command::Command;
use crate::machine::{Answer, Proposal};
use crate::planted;
use crate::raft::{self, LogView};
use crate::types::{ConfChange, ConfProposal, NodeId, PutResponse, RequestId};

use super::ask::Told;

/// What the next caller in line wants of the log.
enum Next {
    Proposal(Proposal, usize),
    Conf(ConfProposal),
}

impl<L: LogView> Replica<L> {
    /// Gathers what waits into entries, or hands it on to the leader.
    pub(super) fn propose(
        &mut self,
        now: Duration,
        out: &mut Effects<L::Write>,
    ) -> Result<(), StorageFailed> {
        match self.leadership.leader {
            Some(_) if self.leads() => self.propose_as_leader(now, out),
            Some(leader) => {
                self.hand_on(now, leader, out);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn propose_as_leader(&mut self, now: Duration, out: &mut Effects<L::Write>) -> Result<(), StorageFailed> {
        let term = self.leadership.term;
        let mut gathered = Gathered::default();
        let ids = self.leases.expire(now);
        if !ids.is_empty() {
            gathered.push(self.internal(Command::LeaseExpire { ids, term }), 0);
        }
        for (id, run) in self.due_runs(now) {
            gathered.push(self.internal(Command::Seen { id, run }), 0);
        }
        let mut confs = Vec::new();
        loop {
            match self.next_in_line(now, gathered.room()) {
                Some(Next::Proposal(proposal, size)) => {
                    self.maybe_answer_early(&proposal, out);
                    gathered.push(proposal, size);
                }
                Some(Next::Conf(proposal)) => confs.push(proposal),
                None if gathered.batch.is_empty() => break,
                None => gathered.close(),
            }
        }
        if !gathered.entries.is_empty() {
            self.step(now, raft::Input::Propose { entries: gathered.entries }, out)?;
        }
        for proposal in confs {
            self.propose_conf(now, proposal, out)?;
        }
        Ok(())
    }

    /// The next request whose size fits, other members' first: they have waited longer.
    fn next_in_line(&mut self, now: Duration, room: usize) -> Option<Next> {
        if let Some(proposal) = self.forwarded.front() {
            let size = proposal.command.size();
            if size > room {
                return None;
            }
            return self.forwarded.pop_front().map(|proposal| Next::Proposal(proposal, size));
        }
        match self.waiting.next_attempt(now, self.leadership.term, room)? {
            (Attempt::Proposal(proposal), size) => Some(Next::Proposal(proposal, size)),
            (Attempt::Conf(proposal), _) => Some(Next::Conf(proposal)),
        }
    }

    pub(super) fn propose_conf(
        &mut self,
        now: Duration,
        proposal: ConfProposal,
        out: &mut Effects<L::Write>,
    ) -> Result<(), StorageFailed> {
        let mut status = self.core.status();
        let lately = |at: &Duration| now.saturating_sub(*at) < membership::SILENCE;
        for (id, _) in self.heard.iter().filter(|(_, at)| lately(at)) {
            status.progress.entry(*id).and_modify(|progress| progress.recent_active = true);
        }
        let checked = if self.leadership.ready {
            let checked = membership::check(&proposal.change, &self.members, &status, self.me);
            match checked {
                // Who has just begun to lead has not heard of everybody yet.
                Err(Error::Refused(Refusal::MemberNeeded { .. }))
                    if self.led_since.as_ref().is_none_or(lately) =>
                {
                    Err(Error::NotDone(NotDone::ChangeUnderWay))
                }
                checked => checked,
            }
        } else {
            Err(Error::NotDone(NotDone::ChangeUnderWay))
        };
        if let Err(error) = checked {
            if proposal.change == ConfChange::Remove(self.me) && error == Error::NotDone(NotDone::NotLeader) {
                self.step(now, raft::Input::Transfer { to: None }, out)?;
            }
            self.decline(proposal.request, error, out);
            return Ok(());
        }
        self.step(now, raft::Input::ProposeConf { proposal }, out)
    }

    /// Tells whoever waits for a request that it was not proposed.
    pub(super) fn decline(&mut self, request: Option<RequestId>, error: Error, out: &mut Effects<L::Write>) {
        let Some(request) = request else {
            return;
        };
        if request.origin != self.me {
            out.frames.push((request.origin, PeerFrame::Declined { requests: vec![request], why: error }));
        } else if matches!(error, Error::NotDone(_)) {
            self.waiting.declined(&request);
        } else if let Some(ticket) = self.waiting.finish(&request) {
            out.answers.push((ticket, Err(error)));
        }
    }

    /// Sends the callers' requests to the leader, to be proposed in its present term or never.
    fn hand_on(&mut self, now: Duration, leader: NodeId, out: &mut Effects<L::Write>) {
        let term = self.leadership.term;
        let mut proposals = Vec::new();
        let mut room = limits::MAX_ENTRY_BATCH_BYTES;
        loop {
            let fits = if proposals.is_empty() { usize::MAX } else { room };
            match self.waiting.next_attempt(now, term, fits) {
                Some((Attempt::Proposal(proposal), size))
                    if proposals.len() < limits::MAX_ENTRY_BATCH_REQUESTS =>
                {
                    room = room.saturating_sub(size);
                    proposals.push(proposal);
                }
                Some((Attempt::Proposal(proposal), size)) => {
                    let full = std::mem::replace(&mut proposals, vec![proposal]);
                    out.frames.push((leader, PeerFrame::Forward { term, proposals: full }));
                    room = limits::MAX_ENTRY_BATCH_BYTES.saturating_sub(size);
                }
                Some((Attempt::Conf(proposal), _)) => {
                    out.frames.push((leader, PeerFrame::ForwardConf { term, proposal }));
                }
                None if proposals.is_empty() => break,
                None => {
                    let full = std::mem::take(&mut proposals);
                    out.frames.push((leader, PeerFrame::Forward { term, proposals: full }));
                    room = limits::MAX_ENTRY_BATCH_BYTES;
                }
            }
        }
    }

    /// A proposal that no caller waits for.
    pub(super) fn internal(&mut self, command: Command) -> Proposal {
        // Numbers of callers' attempts count up from 1; these count down, so they never meet.
        self.internal_seq += 1;
        let seq = u64::MAX - self.internal_seq;
        Proposal { request: RequestId { origin: self.me, boot: self.boot, seq }, once: None, command }
    }

    /// Takes proposals back that raft did not accept: leadership is moving, or too much is
    /// uncommitted.
    pub(super) fn not_accepted(&mut self, entries: Vec<Bytes>, out: &mut Effects<L::Write>) {
        for entry in entries {
            let proposals = Vec::<Proposal>::from_bytes(entry).expect("encoded by this member just now");
            for proposal in proposals {
                self.decline(Some(proposal.request), Error::NotDone(NotDone::NotLeader), out);
            }
        }
    }

    /// The planted bug that answers a put when it is proposed.
    fn maybe_answer_early(&mut self, proposal: &Proposal, out: &mut Effects<L::Write>) {
        if planted!(AnswerBeforeQuorum)
            && matches!(proposal.command, Command::Put(_))
            && let Some(ticket) = self.waiting.finish(&proposal.request)
        {
            let answer = Answer::Put(PutResponse::default());
            let (revision, term) = (self.revision + 1, self.leadership.term);
            out.answers.push((ticket, Ok(Told::Applied { revision, term, answer })));
        }
    }
}

/// Proposals on their way into entries.
#[derive(Default)]
struct Gathered {
    entries: Vec<Bytes>,
    batch: Vec<Proposal>,
    used: usize,
}

impl Gathered {
    /// Bytes that still fit into the entry being gathered; anything fits into an empty one.
    fn room(&self) -> usize {
        if self.batch.is_empty() {
            usize::MAX
        } else {
            limits::MAX_ENTRY_BATCH_BYTES.saturating_sub(self.used)
        }
    }

    fn push(&mut self, proposal: Proposal, size: usize) {
        let alone = proposal.command.goes_alone();
        if alone && !self.batch.is_empty() {
            self.close();
        }
        self.used += size;
        self.batch.push(proposal);
        if alone || self.batch.len() >= limits::MAX_ENTRY_BATCH_REQUESTS {
            self.close();
        }
    }

    fn close(&mut self) {
        self.used = 0;
        self.entries.push(std::mem::take(&mut self.batch).to_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PointChange;

    #[test]
    fn what_goes_alone_has_an_entry_of_its_own() {
        let rollback =
            PointChange::Rollback { point: "p".into(), prefix: None, author: String::new(), now: 1 };
        let mut gathered = Gathered::default();
        let commands = [Command::Noop, Command::Noop, Command::Point(rollback), Command::Noop];
        for command in commands {
            gathered.push(Proposal { request: RequestId::default(), once: None, command }, 64);
        }
        gathered.close();
        let entries = gathered.entries.into_iter().map(|entry| Vec::<Proposal>::from_bytes(entry).unwrap());
        assert_eq!(entries.map(|entry| entry.len()).collect::<Vec<_>>(), [2, 1, 1]);
    }
}
