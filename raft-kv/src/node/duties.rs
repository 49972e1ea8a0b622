//! What time and finished work bring about: deadlines, leadership, reads that may be served,
//! promotions, flushes, cuts of the log, and the end.

use std::collections::BTreeMap;
use std::time::Duration;

use super::apply::{Report, Work};
use super::ask::Told;
use super::leases::Asked;
use super::membership;
use super::reads::{LeaseCaller, Reader};
use super::replica::{Effects, Replica};
use super::wire::PeerFrame;
use crate::error::{Error, NotDone, Refusal, StorageFailed, Unknown};
use crate::machine::Outcome;
use crate::planted;
use crate::raft::{self, Leadership, LogView, Output};
use crate::types::{ConfChange, ConfProposal, LeaseId, LeaseStatus, SnapshotMeta};

/// A lease call that the leader has not answered for this long is asked anew.
const LEASE_PATIENCE: Duration = Duration::from_millis(500);
/// The log waits for a follower that was heard of so lately.
const USEFUL: Duration = Duration::from_secs(10);
/// How long a clean stop waits for leadership to move and for callers to be answered.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

impl<L: LogView> Replica<L> {
    /// Lets raft take an input in and sorts what comes out.
    pub(super) fn step(
        &mut self,
        now: Duration,
        input: raft::Input<L::Proof>,
        out: &mut Effects<L::Write>,
    ) -> Result<(), StorageFailed> {
        let output = self.core.step(input)?;
        self.sort_out(now, output, out);
        Ok(())
    }

    fn sort_out(&mut self, now: Duration, output: Output<L::Write>, out: &mut Effects<L::Write>) {
        if let Some(leadership) = output.leadership {
            self.leadership_changed(now, leadership, out);
        }
        for (to, message) in output.messages {
            self.roll.promises(message.promise());
            if message.is_snapshot() {
                self.sending.insert(to);
                out.snapshots.push((to, message));
            } else {
                out.frames.push((to, PeerFrame::Raft(message)));
            }
        }
        if let Some(meta) = output.install {
            out.apply.push(Work::Install(meta));
            if !planted!(CutBeforeInstall) {
                self.held.push_back(Vec::new());
            }
        }
        match self.held.back_mut() {
            Some(held) => held.extend(output.writes),
            None => out.writes.extend(output.writes),
        }
        if !output.committed.is_empty() {
            self.apply_lag += output.committed.iter().map(super::apply::size_of_entry).sum::<usize>();
            out.apply.push(Work::Entries(output.committed));
        }
        for (context, index) in output.reads {
            for (from, context) in self.reads.confirm(self.me, context, index) {
                out.frames.push((from, PeerFrame::ReadConfirmed { context, index: Some(index) }));
            }
        }
        for context in output.reads_refused {
            self.reads.refused(context);
        }
        self.not_accepted(output.refused, out);
        if let Some(refused) = output.conf_refused {
            self.decline(refused.proposal.request, refused.reason, out);
        }
        if !output.want_snapshot.is_empty() && !self.making_checkpoint {
            self.making_checkpoint = true;
            out.make_checkpoint = true;
        }
    }

    fn leadership_changed(&mut self, now: Duration, leadership: Leadership, out: &mut Effects<L::Write>) {
        let led = self.leads();
        let leader_before = self.leadership.leader;
        let moved = leader_before != leadership.leader || self.leadership.term != leadership.term;
        self.leadership = leadership;
        if moved {
            for (from, context) in self.reads.leader_changed() {
                out.frames.push((from, PeerFrame::ReadConfirmed { context, index: None }));
            }
            // Their members ask the new leader, or this one in its new term.
            let forwarded: Vec<_> = self.forwarded.drain(..).collect();
            for proposal in forwarded {
                self.decline(Some(proposal.request), Error::NotDone(NotDone::NotLeader), out);
            }
            self.lost.leader_changed();
            let calls = std::mem::take(&mut self.lease_calls);
            self.lease_retries.extend(calls.into_values().map(|(call, _)| call));
            for reader in std::mem::take(&mut self.ending) {
                self.reads.add(reader);
            }
        }
        if self.leads() && (!led || moved) {
            self.leases.lead(now);
        } else if !self.leads() && led {
            self.leases.follow();
        }
        if planted!(RetryTooEarly) && moved {
            self.waiting.term_applied(self.leadership.term);
        }
        if self.leadership.leader.is_some() && moved {
            self.waiting.wake();
        }
        if self.leadership.leader.is_some() && self.leadership.leader != leader_before {
            for (ticket, _, to) in std::mem::take(&mut self.transfers) {
                let there = to.is_none() || to == self.leadership.leader;
                let told = if there { Ok(Told::Done) } else { Err(Error::NotDone(NotDone::NotLeader)) };
                out.answers.push((ticket, told));
            }
        }
        out.leadership = Some(leadership);
    }

    /// Raft forgets every second whom it has heard of, and hears of them again: here it is remembered.
    fn note_heard(&mut self, now: Duration) {
        if !self.leads() {
            (self.led_since, self.heard) = (None, BTreeMap::new());
            return;
        }
        self.led_since.get_or_insert(now);
        let active = self.core.status().progress.into_iter().filter(|(_, progress)| progress.recent_active);
        self.heard.extend(active.map(|(id, _)| (id, now)));
    }

    pub(super) fn tick(&mut self, now: Duration, out: &mut Effects<L::Write>) -> Result<(), StorageFailed> {
        self.call_roll(now, out);
        // Raft's clock stands still until the roll call is over: nobody stands for election before.
        if !self.roll.is_mute() {
            self.step(now, raft::Input::Tick, out)?;
        }
        if self.leadership.leader.is_none() && self.applied.conf.voters == [self.me] && !self.roll.is_mute() {
            self.step(now, raft::Input::Campaign, out)?;
        }
        self.note_heard(now);
        let no_leader = self.leadership.leader.is_none();
        for (ticket, error) in self.waiting.tick(now, no_leader) {
            out.answers.push((ticket, Err(error)));
        }
        self.close_lost(now, out);
        self.late_readers(now, no_leader, out);
        self.reads.tick(now, self.leadership.leader);
        // A call or its answer may be lost on the way; to renew twice is to renew once.
        let late = |asked: Duration| now.saturating_sub(asked) >= LEASE_PATIENCE;
        let retries = &mut self.lease_retries;
        self.lease_calls.retain(|_, (call, asked)| {
            if late(*asked) {
                retries.push(*call);
            }
            !late(*asked)
        });
        for (ticket, id, renew) in std::mem::take(&mut self.lease_retries) {
            if self.barriers.contains_key(&ticket) {
                self.ask_lease(now, ticket, id, renew, out);
            }
        }
        if self.leads() && self.leadership.ready && self.stopping.is_none() {
            self.promote(now, out)?;
        }
        if self.stopping.is_some() {
            self.hand_over(now, out)?;
        }
        let waited = now.saturating_sub(self.flushed_at) >= self.bounds.flush_after;
        let due = self.unflushed >= self.bounds.flush_bytes || (waited && self.unflushed > 0);
        if !self.flushing && (due || self.flush_soon) {
            self.flush_soon = false;
            self.flushing = true;
            out.flush = true;
        }
        Ok(())
    }

    fn late_readers(&mut self, now: Duration, no_leader: bool, out: &mut Effects<L::Write>) {
        let late: Vec<_> = self
            .barriers
            .iter()
            .filter(|(_, deadline)| **deadline <= now)
            .map(|(ticket, _)| *ticket)
            .collect();
        if late.is_empty() && self.transfers.is_empty() {
            return;
        }
        let why = if no_leader { NotDone::NoLeader } else { NotDone::Deadline };
        for ticket in &late {
            self.barriers.remove(ticket);
            out.answers.push((*ticket, Err(Error::NotDone(why.clone()))));
        }
        let barriers = &self.barriers;
        let gone = |ticket| !barriers.contains_key(&ticket);
        self.reads.forget(gone);
        self.lease_calls.retain(|_, ((ticket, ..), _)| barriers.contains_key(ticket));
        let (late, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.transfers).into_iter().partition(|(_, deadline, _)| *deadline <= now);
        self.transfers = waiting;
        for (ticket, ..) in late {
            out.answers.push((ticket, Err(Error::Unknown(Unknown::Deadline))));
        }
    }

    fn promote(&mut self, now: Duration, out: &mut Effects<L::Write>) -> Result<(), StorageFailed> {
        let status = self.core.status();
        if let Some(id) = membership::to_promote(&self.members, &status) {
            let proposal = ConfProposal { change: ConfChange::Promote(id), request: None };
            self.step(now, raft::Input::ProposeConf { proposal }, out)?;
        }
        Ok(())
    }

    /// Apply finished a piece of work.
    pub(super) fn applied(
        &mut self,
        now: Duration,
        report: Report,
        out: &mut Effects<L::Write>,
    ) -> Result<(), StorageFailed> {
        let newer_term = report.applied.term > self.applied.term;
        self.applied = report.applied.clone();
        self.revision = report.revision;
        self.apply_lag = self.apply_lag.saturating_sub(report.bytes);
        self.unflushed += report.bytes;
        for outcome in report.outcomes {
            self.answer(outcome, out);
        }
        if report.installed {
            for ticket in self.waiting.skipped(self.applied.term) {
                out.answers.push((ticket, Err(Error::Unknown(Unknown::Overtaken))));
            }
            let held = self.held.pop_front();
            assert!(held.is_some() || planted!(CutBeforeInstall), "writes are held from each install on");
            out.writes.extend(held.unwrap_or_default());
        }
        if newer_term {
            self.waiting.term_applied(self.applied.term);
        }
        self.retry_closed();
        match report.all_leases {
            Some(leases) => self.leases.reset(leases, now),
            None => self.leases.applied(&report.leases, now),
        }
        if let Some(runs) = report.runs {
            // Known again as soon as this member starts: see docs/repair.md.
            self.flush_soon = true;
            self.runs_recorded(runs, out);
        }
        if let Some(members) = report.members {
            // A commit index alone is not synced. Members that forgot, all at once, that a change was
            // committed would go by the old configuration, and wait for one who may be gone for good.
            self.flush_soon = true;
            self.members = members.clone();
            self.forget_runs();
            out.members = Some(members);
        }
        if report.forget_log {
            (self.forget_to, self.forget_again) = (self.applied.index, false);
            self.flush_soon = true;
        }
        self.step(now, raft::Input::Applied(self.applied.index), out)
    }

    fn answer(&mut self, outcome: Outcome, out: &mut Effects<L::Write>) {
        let Some(ticket) = self.waiting.finish(&outcome.request) else {
            return;
        };
        let (revision, term) = (outcome.revision, self.applied.term);
        let result = outcome.result.map(|answer| Told::Applied { revision, term, answer });
        out.answers.push((ticket, result.map_err(Error::Refused)));
    }

    /// Starts a round of confirmations for the reads that wait.
    pub(super) fn confirm_reads(
        &mut self,
        now: Duration,
        out: &mut Effects<L::Write>,
    ) -> Result<(), StorageFailed> {
        let Some(leader) = self.leadership.leader else {
            return Ok(());
        };
        if !self.leads() {
            if let Some(context) = self.reads.start(leader, now) {
                out.frames.push((leader, PeerFrame::ReadIndex { context }));
            }
        } else if self.leadership.ready
            && let Some(context) = self.reads.start(leader, now)
        {
            if planted!(ReadUnconfirmed) {
                let index = self.applied.index;
                for (from, context) in self.reads.confirm(self.me, context, index) {
                    out.frames.push((from, PeerFrame::ReadConfirmed { context, index: Some(index) }));
                }
                return Ok(());
            }
            self.step(now, raft::Input::Read { context }, out)?;
        }
        Ok(())
    }

    /// Serves the reads whose index is applied.
    pub(super) fn serve_reads(&mut self, now: Duration, out: &mut Effects<L::Write>) {
        let mut readers = std::mem::take(&mut self.ending);
        readers.extend(self.reads.ready(self.applied.index));
        for reader in readers {
            match reader {
                Reader::Local(ticket) => {
                    if self.barriers.remove(&ticket).is_some() {
                        out.answers.push((ticket, Ok(Told::MayRead)));
                    }
                }
                Reader::Lease { to, id, renew } => self.serve_lease(now, to, id, renew, out),
                Reader::Remote { .. } => unreachable!("other members wait at their own"),
            }
        }
    }

    fn serve_lease(
        &mut self,
        now: Duration,
        to: LeaseCaller,
        id: LeaseId,
        renew: bool,
        out: &mut Effects<L::Write>,
    ) {
        let result = if self.leads() {
            match self.leases.ask(id, renew, now) {
                Asked::Status(status) => Ok(status),
                Asked::Gone if renew => Err(Error::Refused(Refusal::LeaseNotFound { id })),
                Asked::Gone => Ok(LeaseStatus { id, ttl: -1, granted_ttl: 0, keys: Vec::new() }),
                Asked::Ending => {
                    self.ending.push(Reader::Lease { to, id, renew });
                    return;
                }
            }
        } else {
            Err(Error::NotDone(NotDone::NotLeader))
        };
        self.reply_lease(to, id, renew, result, out);
    }

    fn reply_lease(
        &mut self,
        to: LeaseCaller,
        id: LeaseId,
        renew: bool,
        result: Result<LeaseStatus, Error>,
        out: &mut Effects<L::Write>,
    ) {
        match to {
            LeaseCaller::Remote(from, request) => {
                out.frames.push((from, PeerFrame::LeaseReply { request, result }));
            }
            LeaseCaller::Local(ticket) if result == Err(Error::NotDone(NotDone::NotLeader)) => {
                self.lease_retries.push((ticket, id, renew));
            }
            LeaseCaller::Local(ticket) => {
                if self.barriers.remove(&ticket).is_some() {
                    out.answers.push((ticket, result.map(Told::Lease)));
                }
            }
        }
    }

    /// The state covers the log up to here: forget what no follower within reach needs.
    pub(super) fn flushed(
        &mut self,
        now: Duration,
        meta: &SnapshotMeta,
        out: &mut Effects<L::Write>,
    ) -> Result<(), StorageFailed> {
        self.flushing = false;
        self.unflushed = 0;
        self.flushed_at = now;
        let status = self.core.status();
        let meta = if planted!(CutUnflushed) { &self.applied.clone() } else { meta };
        let mut keep_from = meta.index.saturating_sub(self.bounds.keep_for_followers);
        // What was sealed with a key that was given up is kept for nobody who might come.
        keep_from = keep_from.max(self.forget_to.min(meta.index));
        // Raft forgets from time to time whom it has heard of.
        let lately = |id| self.heard.get(id).is_some_and(|heard| now.saturating_sub(*heard) < USEFUL);
        for (id, progress) in &status.progress {
            if progress.recent_active || lately(id) {
                keep_from = keep_from.min(progress.matched);
            }
        }
        let wanted = !self.sending.is_empty() || now < self.checkpoint_until;
        if let Some(checkpoint) = self.checkpoint.as_ref().filter(|_| wanted) {
            keep_from = keep_from.min(checkpoint.index);
        }
        let within = self.core.log().first_within(self.bounds.keep_at_most_bytes).saturating_sub(1);
        let most = meta.index.saturating_sub(self.bounds.keep_at_most).max(within.min(meta.index));
        let cut = keep_from.max(most);
        if cut >= self.core.log().first_index() {
            // The configuration at the cut is the state's matter; the log keeps the newest known.
            let term = self.core.log().term(cut)?.expect("a flushed entry that is not cut is in the log");
            let boundary = SnapshotMeta { index: cut, term, conf: meta.conf.clone() };
            let forgets = self.forget_to > 0 && cut >= self.forget_to;
            let last = self.core.log().last_index();
            let cut_at = if forgets { raft::Input::Forget(boundary) } else { raft::Input::Cut(boundary) };
            self.step(now, cut_at, out)?;
            if forgets {
                // What came meanwhile lies in the same files: they go with the next cut behind it.
                self.forget_again = !self.forget_again && cut < last;
                self.forget_to = if self.forget_again { last } else { 0 };
                self.flush_soon |= self.forget_again;
            }
            out.cut = Some(cut);
        }
        Ok(())
    }

    /// The process wants to stop: hand leadership over, answer who waits, then go.
    pub(super) fn stop(&mut self, now: Duration, out: &mut Effects<L::Write>) -> Result<(), StorageFailed> {
        if self.stopping.is_none() {
            self.stopping = Some(now);
            self.hand_over(now, out)?;
        }
        Ok(())
    }

    /// Moves leadership away, unless that is under way already. A transfer may fail, and a member
    /// may win an election while it waits for its callers: it is tried with every tick.
    fn hand_over(&mut self, now: Duration, out: &mut Effects<L::Write>) -> Result<(), StorageFailed> {
        if self.leads() && self.applied.conf.voters.len() > 1 && self.core.status().transfer_to.is_none() {
            self.step(now, raft::Input::Transfer { to: None }, out)?;
        }
        Ok(())
    }

    pub(super) fn check_stop(&mut self, now: Duration, out: &mut Effects<L::Write>) {
        let Some(since) = self.stopping else {
            return;
        };
        let alone = self.applied.conf.voters.len() <= 1;
        let quiet = self.waiting.is_empty() && self.barriers.is_empty();
        if ((!self.leads() || alone) && quiet) || now.saturating_sub(since) >= STOP_PATIENCE {
            for (ticket, error) in self.waiting.stop() {
                out.answers.push((ticket, Err(error)));
            }
            for ticket in std::mem::take(&mut self.barriers).into_keys() {
                out.answers.push((ticket, Err(Error::NotDone(NotDone::ShuttingDown))));
            }
            out.stopped = true;
        }
    }
}

/// A lease call that waits to be asked again.
pub(super) type LeaseRetry = (super::ask::Ticket, LeaseId, bool);
