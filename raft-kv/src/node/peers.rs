//! Frames from other members: raft's messages go to the core in one piece, requests of their
//! callers are taken in if this member leads, answers go to our callers.
//!
//! The sender is verified by its certificate; it speaks for nobody else.

use std::time::Duration;

use super::ask::{self, Told, What};
use super::reads::{LeaseCaller, Reader};
use super::replica::{Effects, Replica};
use super::wire::PeerFrame;
use crate::error::{Error, NotDone, StorageFailed};
use crate::limits;
use crate::machine::Proposal;
use crate::raft::{self, LogView};
use crate::types::{ConfProposal, LeaseId, LeaseStatus, NodeId, RequestId, Term};

impl<L: LogView> Replica<L> {
    pub(super) fn frames(
        &mut self,
        now: Duration,
        frames: Vec<(NodeId, PeerFrame)>,
        out: &mut Effects<L::Write>,
    ) -> Result<(), StorageFailed> {
        let mut messages = Vec::new();
        for (from, frame) in frames {
            if from == self.me {
                // Only a copy of this member's own data directory can sign as it does.
                tracing::warn!("dropped a frame from a node that has this member's id");
                continue;
            }
            match frame {
                PeerFrame::Raft(message) if self.hears(from, out) => {
                    if let Some(promise) = message.promise() {
                        self.roll.note_promise(from, promise);
                    }
                    messages.push((from, message));
                }
                PeerFrame::Raft(_) => {}
                PeerFrame::Held { term, index } => self.roll.note_promise(from, (term, index)),
                PeerFrame::Runs { run, end } => self.take_run(now, from, run, end, out),
                PeerFrame::RunHeard { run, older, leads, conf, applied } => {
                    self.roll.note_conf(conf, applied, self.applied.index);
                    self.take_word(now, from, (run, older, leads), out)
                }
                PeerFrame::Forward { term, proposals } => self.take_forwarded(from, term, proposals, out),
                PeerFrame::ForwardConf { term, proposal } => {
                    self.take_conf(now, from, term, proposal, out)?
                }
                PeerFrame::Declined { requests, why } => {
                    for request in requests {
                        self.decline_ours(&request, &why, out);
                    }
                }
                PeerFrame::ReadIndex { context } => {
                    if self.leads() {
                        self.reads.add(Reader::Remote { from, context });
                    } else {
                        out.frames.push((from, PeerFrame::ReadConfirmed { context, index: None }));
                    }
                }
                PeerFrame::ReadConfirmed { context, index: Some(index) } => {
                    for (to, context) in self.reads.confirm(from, context, index) {
                        out.frames.push((to, PeerFrame::ReadConfirmed { context, index: Some(index) }));
                    }
                }
                PeerFrame::ReadConfirmed { .. } => {} // asked anew with a later tick
                PeerFrame::LeaseCall { request, id, renew } => {
                    self.take_lease_call(from, request, id, renew, out)
                }
                PeerFrame::LeaseReply { request, result } => self.lease_reply(&request, result, out),
                PeerFrame::Close { term, boot, up_to } => self.take_close(from, (term, boot, up_to)),
                PeerFrame::Closed { term, boot, up_to, index } => {
                    self.take_closed((term, boot, up_to), index);
                }
                PeerFrame::Transfer { to } => {
                    if self.leads() {
                        self.step(now, raft::Input::Transfer { to }, out)?;
                    }
                }
            }
        }
        if !messages.is_empty() {
            self.step(now, raft::Input::Messages(messages), out)?;
        }
        Ok(())
    }

    fn take_forwarded(
        &mut self,
        from: NodeId,
        term: Term,
        proposals: Vec<Proposal>,
        out: &mut Effects<L::Write>,
    ) {
        let accepting = self.leads() && self.leadership.term == term && self.stopping.is_none();
        let queued: usize = self.forwarded.len() + proposals.len();
        let why = if !accepting {
            NotDone::NotLeader
        } else if queued > limits::MAX_WAITING_REQUESTS || self.apply_lag > limits::MAX_APPLY_LAG_BYTES {
            NotDone::Busy
        } else {
            self.queue_forwarded(from, proposals, out);
            return;
        };
        let requests = proposals.into_iter().map(|proposal| proposal.request).collect();
        out.frames.push((from, PeerFrame::Declined { requests, why: Error::NotDone(why) }));
    }

    fn queue_forwarded(&mut self, from: NodeId, proposals: Vec<Proposal>, out: &mut Effects<L::Write>) {
        for proposal in proposals {
            // A member speaks for its own callers only, and within the same bounds as ours.
            let speaks_for_itself = proposal.request.origin == from;
            match ask::admit_command(&proposal.command) {
                // It came too late, and is tried again under another number.
                Ok(()) if self.lost.is_closed(&proposal.request) => {}
                Ok(()) if speaks_for_itself => self.forwarded.push_back(proposal),
                Ok(()) => tracing::warn!(%from, "dropped a request that claims another origin"),
                Err(refusal) => {
                    let requests = vec![proposal.request];
                    out.frames.push((from, PeerFrame::Declined { requests, why: Error::Refused(refusal) }));
                }
            }
        }
    }

    fn take_conf(
        &mut self,
        now: Duration,
        from: NodeId,
        term: Term,
        proposal: ConfProposal,
        out: &mut Effects<L::Write>,
    ) -> Result<(), StorageFailed> {
        if proposal.request.is_none_or(|request| request.origin != from) {
            tracing::warn!(%from, "dropped a membership change that claims another origin");
            return Ok(());
        }
        if !self.leads() || self.leadership.term != term || self.stopping.is_some() {
            self.decline(proposal.request, Error::NotDone(NotDone::NotLeader), out);
            return Ok(());
        }
        if proposal.request.is_some_and(|request| self.lost.is_closed(&request)) {
            return Ok(()); // too late, and tried again under another number
        }
        if let Err(error) = ask::admit(&What::Conf(proposal.change.clone())) {
            self.decline(proposal.request, error, out);
            return Ok(());
        }
        self.propose_conf(now, proposal, out)
    }

    fn decline_ours(&mut self, request: &RequestId, why: &Error, out: &mut Effects<L::Write>) {
        if request.origin == self.me {
            self.decline(Some(*request), why.clone(), out);
        }
    }

    fn take_lease_call(
        &mut self,
        from: NodeId,
        request: RequestId,
        id: LeaseId,
        renew: bool,
        out: &mut Effects<L::Write>,
    ) {
        let busy = self.reads.len() > limits::MAX_WAITING_REQUESTS;
        if request.origin == from && self.leads() && !busy {
            self.reads.add(Reader::Lease { to: LeaseCaller::Remote(from, request), id, renew });
        } else {
            let result = Err(Error::NotDone(if busy { NotDone::Busy } else { NotDone::NotLeader }));
            out.frames.push((from, PeerFrame::LeaseReply { request, result }));
        }
    }

    fn lease_reply(
        &mut self,
        request: &RequestId,
        result: Result<LeaseStatus, Error>,
        out: &mut Effects<L::Write>,
    ) {
        if request.boot != self.boot || request.origin != self.me {
            return;
        }
        let Some(((ticket, id, renew), _)) = self.lease_calls.remove(&request.seq) else {
            return;
        };
        match result {
            // The leader moved: asked again with the next tick, until the caller's time is up.
            Err(Error::NotDone(NotDone::NotLeader)) => {
                self.lease_retries.push((ticket, id, renew));
            }
            result => {
                if self.barriers.remove(&ticket).is_some() {
                    out.answers.push((ticket, result.map(Told::Lease)));
                }
            }
        }
    }
}
