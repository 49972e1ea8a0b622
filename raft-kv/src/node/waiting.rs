//! Callers whose request goes through the log: who waits, under which attempt, until when.
//!
//! An attempt is proposed in one term or never. So once an entry of a later term has been
//! applied here and the attempt had no outcome, it was certainly not done and is tried again
//! under a new request id. So it is within a term once its leader has closed the attempt (see
//! `lost`). Only where outcomes were skipped (a snapshot was installed) or time ran
//! out with an attempt under way is the caller told that the outcome is unknown.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::ask::{Ask, Ticket, What};
use crate::error::{Error, NotDone, Unknown};
use crate::limits;
use crate::machine::Proposal;
use crate::planted;
use crate::types::{ConfProposal, NodeId, RequestId, Term};

#[derive(Debug)]
struct Waiter {
    deadline: Duration,
    what: What,
    bytes: usize,
    attempt: Option<UnderWay>,
}

/// An attempt that was proposed or handed on.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    /// Its request's number.
    seq: u64,
    /// The term it belongs to.
    term: Term,
    /// When it was made.
    since: Duration,
}

/// What an attempt puts into the log.
#[derive(Debug)]
pub enum Attempt {
    /// A command.
    Proposal(Proposal),
    /// A membership change.
    Conf(ConfProposal),
}

/// The callers that wait for an entry.
#[derive(Debug)]
pub struct Waiting {
    me: NodeId,
    boot: u64,
    next_seq: u64,
    waiters: BTreeMap<Ticket, Waiter>,
    /// Number of the attempt under way → its caller.
    attempts: BTreeMap<u64, Ticket>,
    deadlines: BTreeSet<(Duration, Ticket)>,
    /// Callers without an attempt, in the order they came.
    queue: VecDeque<Ticket>,
    /// Callers whose attempt was declined: queued again with the next tick.
    later: Vec<Ticket>,
    bytes: usize,
}

impl Waiting {
    /// Nobody waits. `boot` is unique to this run of the process.
    pub fn new(me: NodeId, boot: u64) -> Self {
        Self {
            me,
            boot,
            next_seq: 1,
            waiters: BTreeMap::new(),
            attempts: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            queue: VecDeque::new(),
            later: Vec::new(),
            bytes: 0,
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Whether somebody waits to be proposed.
    pub fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes a caller in, or refuses it where too many wait.
    pub fn add(&mut self, ask: Ask) -> Result<(), Error> {
        let bytes = match &ask.what {
            What::Command { command, .. } => command.size(),
            _ => 256,
        };
        if self.waiters.len() >= limits::MAX_WAITING_REQUESTS
            || self.bytes + bytes > limits::MAX_WAITING_BYTES
        {
            return Err(Error::NotDone(NotDone::Busy));
        }
        self.bytes += bytes;
        self.deadlines.insert((ask.deadline, ask.ticket));
        self.queue.push_back(ask.ticket);
        let waiter = Waiter { deadline: ask.deadline, what: ask.what, bytes, attempt: None };
        let before = self.waiters.insert(ask.ticket, waiter);
        assert!(before.is_none(), "a ticket names one caller");
        Ok(())
    }

    /// The next caller's attempt, to be proposed in `term`, if its size still fits `room`.
    pub fn next_attempt(&mut self, now: Duration, term: Term, room: usize) -> Option<(Attempt, usize)> {
        let ticket = loop {
            let ticket = *self.queue.front()?;
            if self.waiters.contains_key(&ticket) {
                break ticket;
            }
            self.queue.pop_front();
        };
        let waiter = self.waiters.get_mut(&ticket).expect("looked up above");
        if waiter.bytes > room {
            return None;
        }
        self.queue.pop_front();
        let seq = self.next_seq;
        self.next_seq += 1;
        waiter.attempt = Some(UnderWay { seq, term, since: now });
        self.attempts.insert(seq, ticket);
        let request = RequestId { origin: self.me, boot: self.boot, seq };
        let attempt = match &waiter.what {
            What::Command { command, once } => {
                Attempt::Proposal(Proposal { request, once: *once, command: command.clone() })
            }
            What::Conf(change) => {
                Attempt::Conf(ConfProposal { change: change.clone(), request: Some(request) })
            }
            other => unreachable!("{other:?} does not go through the log"),
        };
        Some((attempt, waiter.bytes))
    }

    fn ours(&self, request: &RequestId) -> Option<Ticket> {
        if request.origin != self.me || request.boot != self.boot {
            return None;
        }
        self.attempts.get(&request.seq).copied()
    }

    fn remove(&mut self, ticket: Ticket) {
        if let Some(waiter) = self.waiters.remove(&ticket) {
            self.deadlines.remove(&(waiter.deadline, ticket));
            self.bytes -= waiter.bytes;
            if let Some(attempt) = waiter.attempt {
                self.attempts.remove(&attempt.seq);
            }
        }
    }

    /// The caller whose attempt this is, taken out: it is answered now.
    pub fn finish(&mut self, request: &RequestId) -> Option<Ticket> {
        let ticket = self.ours(request)?;
        self.remove(ticket);
        Some(ticket)
    }

    /// The attempt was not proposed: the caller is tried again with the next tick.
    pub fn declined(&mut self, request: &RequestId) {
        if let Some(ticket) = self.ours(request) {
            self.attempts.remove(&request.seq);
            self.waiters.get_mut(&ticket).expect("an attempt has its caller").attempt = None;
            self.later.push(ticket);
        }
    }

    /// A leader is known: declined callers need not wait for the tick.
    pub fn wake(&mut self) {
        self.queue.extend(self.later.drain(..));
    }

    /// An entry of `term` was applied and all outcomes up to it were seen: attempts of earlier
    /// terms are certainly not done and are tried again.
    pub fn term_applied(&mut self, term: Term) {
        self.again_where(|attempt| attempt.term < term);
    }

    /// The youngest of the attempts of `term` that were made at `then` or before.
    pub fn oldest(&self, term: Term, then: Duration) -> Option<u64> {
        let attempts = self.attempts.values().map(|ticket| self.under_way(ticket));
        let old = attempts.take_while(|attempt| attempt.since <= then);
        old.filter(|attempt| attempt.term == term).last().map(|attempt| attempt.seq)
    }

    /// The leader of `term` takes no request up to number `up_to` any more, and the outcomes of all that it
    /// had taken were seen: the others are certainly not done and are tried again.
    pub fn closed(&mut self, term: Term, up_to: u64) {
        self.again_where(|attempt| attempt.term == term && attempt.seq <= up_to);
    }

    fn again_where(&mut self, which: impl Fn(&UnderWay) -> bool) {
        for (seq, ticket) in self.attempts_where(which) {
            self.attempts.remove(&seq);
            self.waiters.get_mut(&ticket).expect("an attempt has its caller").attempt = None;
            self.queue.push_back(ticket);
        }
    }

    /// Entries up to one of `term` were skipped by a snapshot: what became of attempts up to that
    /// term is unknown. Those callers, taken out.
    pub fn skipped(&mut self, term: Term) -> Vec<Ticket> {
        let tickets: Vec<_> = self
            .attempts_where(|attempt| attempt.term <= term)
            .into_iter()
            .map(|(_, ticket)| ticket)
            .collect();
        for &ticket in &tickets {
            self.remove(ticket);
        }
        tickets
    }

    fn under_way(&self, ticket: &Ticket) -> UnderWay {
        self.waiters[ticket].attempt.expect("listed under its attempt")
    }

    fn attempts_where(&self, which: impl Fn(&UnderWay) -> bool) -> Vec<(u64, Ticket)> {
        self.attempts
            .iter()
            .filter(|(_, ticket)| which(&self.under_way(ticket)))
            .map(|(seq, ticket)| (*seq, *ticket))
            .collect()
    }

    /// A tick passed: declined callers queue again, late ones are taken out with what they are
    /// told; `no_leader` says why one without an attempt waited in vain.
    pub fn tick(&mut self, now: Duration, no_leader: bool) -> Vec<(Ticket, Error)> {
        self.wake();
        let mut late = Vec::new();
        while let Some(&(deadline, ticket)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            let under_way = self.waiters[&ticket].attempt.is_some();
            self.remove(ticket);
            let error = match (under_way, no_leader) {
                (true, _) if planted!(UnknownAsNotDone) => Error::NotDone(NotDone::Deadline),
                (true, _) => Error::Unknown(Unknown::Deadline),
                (false, true) => Error::NotDone(NotDone::NoLeader),
                (false, false) => Error::NotDone(NotDone::Deadline),
            };
            late.push((ticket, error));
        }
        if !late.is_empty() {
            // Without a leader nobody takes them out at the front.
            self.queue.retain(|ticket| self.waiters.contains_key(ticket));
        }
        late
    }

    /// Everybody, taken out, with what they are told when the node stops.
    pub fn stop(&mut self) -> Vec<(Ticket, Error)> {
        let told = |waiter: &Waiter| match waiter.attempt {
            Some(_) => Error::Unknown(Unknown::ShuttingDown),
            None => Error::NotDone(NotDone::ShuttingDown),
        };
        let all: Vec<_> = self.waiters.iter().map(|(ticket, waiter)| (*ticket, told(waiter))).collect();
        for (ticket, _) in &all {
            self.remove(*ticket);
        }
        self.queue.clear();
        self.later.clear();
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::machine::command::Command;

    const ME: NodeId = NodeId(1);
    const BOOT: u64 = 7;

    fn ask(ticket: Ticket, deadline: u64) -> Ask {
        let what = What::Command { command: Command::Noop, once: None };
        Ask { ticket, deadline: Duration::from_secs(deadline), what }
    }

    fn request(attempt: Attempt) -> RequestId {
        match attempt {
            Attempt::Proposal(proposal) => proposal.request,
            Attempt::Conf(proposal) => proposal.request.unwrap(),
        }
    }

    fn attempt(waiting: &mut Waiting, term: Term) -> RequestId {
        request(waiting.next_attempt(Duration::ZERO, term, usize::MAX).unwrap().0)
    }

    #[derive(Clone, Debug)]
    enum Event {
        Add(u64),
        Propose(Term),
        Applied(usize),
        Declined(usize),
        TermApplied(Term),
        Closed(Term, u64),
        Skipped(Term),
        Tick(u64),
        Stop,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0..20u64).prop_map(Event::Add),
            4 => (1..6u64).prop_map(Event::Propose),
            3 => any::<usize>().prop_map(Event::Applied),
            2 => any::<usize>().prop_map(Event::Declined),
            1 => (1..7u64).prop_map(Event::TermApplied),
            1 => (1..7u64, 0..20u64).prop_map(|(term, seq)| Event::Closed(term, seq)),
            1 => (1..7u64).prop_map(Event::Skipped),
            1 => (0..20u64).prop_map(Event::Tick),
            1 => Just(Event::Stop),
        ]
    }

    proptest! {
        /// In whatever order things happen, old attempts and strangers' included: each caller is
        /// answered exactly once, has one attempt at a time, and hears "not done" only while none
        /// is under way.
        #[test]
        fn each_caller_is_answered_once(events in prop::collection::vec(event(), 0..80)) {
            let mut waiting = Waiting::new(ME, BOOT);
            let (mut asked, mut answered) = (0, BTreeSet::new());
            let mut attempts: Vec<RequestId> = Vec::new();
            let mut open: BTreeMap<u64, Term> = BTreeMap::new();
            let mut answer = |ticket: Ticket| assert!(answered.insert(ticket), "{ticket} is answered twice");
            for event in events {
                match event {
                    Event::Add(deadline) => {
                        asked += 1;
                        waiting.add(ask(asked, deadline)).unwrap();
                    }
                    Event::Propose(term) => while let Some((made, _)) = waiting.next_attempt(Duration::ZERO, term, usize::MAX) {
                        let made = request(made);
                        assert!(open.insert(made.seq, term).is_none(), "a request id used twice");
                        attempts.push(made);
                    },
                    Event::Applied(which) if !attempts.is_empty() => {
                        let request = attempts[which % attempts.len()];
                        let expect = open.remove(&request.seq).is_some();
                        let ticket = waiting.finish(&request);
                        assert_eq!(ticket.is_some(), expect);
                        ticket.into_iter().for_each(&mut answer);
                        let stranger = RequestId { boot: BOOT + 1, ..request };
                        assert_eq!(waiting.finish(&stranger), None);
                    }
                    Event::Declined(which) if !attempts.is_empty() => {
                        let request = attempts[which % attempts.len()];
                        waiting.declined(&RequestId { origin: NodeId(2), ..request });
                        waiting.declined(&request);
                        waiting.declined(&request);
                        open.remove(&request.seq);
                    }
                    Event::Applied(_) | Event::Declined(_) => {}
                    Event::TermApplied(term) => {
                        waiting.term_applied(term);
                        open.retain(|_, attempt| *attempt >= term);
                    }
                    Event::Closed(term, up_to) => {
                        waiting.closed(term, up_to);
                        open.retain(|seq, attempt| *attempt != term || *seq > up_to);
                    }
                    Event::Skipped(term) => {
                        let told = waiting.skipped(term);
                        let before = open.len();
                        open.retain(|_, attempt| *attempt > term);
                        assert_eq!(told.len(), before - open.len());
                        told.into_iter().for_each(&mut answer);
                    }
                    Event::Tick(now) => {
                        let told = waiting.tick(Duration::from_secs(now), false);
                        check_told(&told, &mut open, &waiting);
                        told.into_iter().for_each(|(ticket, _)| answer(ticket));
                        assert!(waiting.queue.len() <= waiting.len(), "the queue holds who is gone");
                    }
                    Event::Stop => {
                        let told = waiting.stop();
                        check_told(&told, &mut open, &waiting);
                        told.into_iter().for_each(|(ticket, _)| answer(ticket));
                        assert!(waiting.is_empty());
                    }
                }
                assert_eq!(waiting.attempts.len(), open.len());
                assert_eq!(waiting.deadlines.len(), waiting.len());
            }
            waiting.stop().into_iter().for_each(|(ticket, _)| answer(ticket));
            assert_eq!(answered.len() as u64, asked);
            assert_eq!((waiting.bytes, waiting.attempts.len(), waiting.deadlines.len()), (0, 0, 0));
        }
    }

    /// Those whose attempt was under way are told "unknown", the others "not done".
    fn check_told(told: &[(Ticket, Error)], open: &mut BTreeMap<u64, Term>, waiting: &Waiting) {
        let unknown = told.iter().filter(|(_, error)| matches!(error, Error::Unknown(_))).count();
        let not_done = told.iter().filter(|(_, error)| matches!(error, Error::NotDone(_))).count();
        assert_eq!(unknown + not_done, told.len());
        let before = open.len();
        open.retain(|seq, _| waiting.attempts.contains_key(seq));
        assert_eq!(before - open.len(), unknown);
    }

    #[test]
    fn what_a_late_caller_is_told() {
        let check = |proposed: bool, no_leader: bool, expect: Error| {
            let mut waiting = Waiting::new(ME, BOOT);
            waiting.add(ask(1, 5)).unwrap();
            if proposed {
                attempt(&mut waiting, 3);
            }
            assert_eq!(waiting.tick(Duration::from_millis(4_999), no_leader), vec![]);
            assert_eq!(waiting.tick(Duration::from_secs(5), no_leader), vec![(1, expect)]);
        };
        check(false, false, Error::NotDone(NotDone::Deadline));
        check(false, true, Error::NotDone(NotDone::NoLeader));
        check(true, true, Error::Unknown(Unknown::Deadline));
        check(true, false, Error::Unknown(Unknown::Deadline));
    }

    #[test]
    fn a_later_term_brings_a_new_attempt_under_a_new_id() {
        let mut waiting = Waiting::new(ME, BOOT);
        waiting.add(ask(1, 5)).unwrap();
        let first = attempt(&mut waiting, 3);
        waiting.term_applied(3);
        assert!(!waiting.has_queued(), "its own term says nothing");
        waiting.term_applied(4);
        let second = attempt(&mut waiting, 4);
        assert_ne!(first, second);
        assert_eq!((waiting.finish(&first), waiting.finish(&second)), (None, Some(1)));
    }

    #[test]
    fn what_the_leader_has_closed_is_tried_again_and_nothing_else() {
        let mut waiting = Waiting::new(ME, BOOT);
        (1..=3).for_each(|ticket| waiting.add(ask(ticket, 50)).unwrap());
        let mut made = |second| {
            let (attempt, _) = waiting.next_attempt(Duration::from_secs(second), 3, usize::MAX).unwrap();
            request(attempt).seq
        };
        let [first, second, third] = [1, 2, 3].map(&mut made);
        let oldest = |waiting: &Waiting, term, then| waiting.oldest(term, Duration::from_secs(then));
        assert_eq!(oldest(&waiting, 3, 0), None);
        assert_eq!(oldest(&waiting, 3, 2), Some(second));
        assert_eq!(oldest(&waiting, 3, 9), Some(third));
        assert_eq!(oldest(&waiting, 4, 9), None, "another term's are the later term's matter");
        waiting.closed(4, third);
        assert!(!waiting.has_queued());
        waiting.closed(3, second);
        let again = [attempt(&mut waiting, 3), attempt(&mut waiting, 3)].map(|request| request.seq);
        assert!(again[0] > third && again[1] > third);
        let of = |seq| RequestId { origin: ME, boot: BOOT, seq };
        assert_eq!((waiting.finish(&of(first)), waiting.finish(&of(second))), (None, None));
        assert_eq!((waiting.finish(&of(third)), waiting.finish(&of(again[0]))), (Some(3), Some(1)));
    }

    #[test]
    fn a_declined_caller_waits_for_the_tick_and_keeps_its_place() {
        let mut waiting = Waiting::new(ME, BOOT);
        waiting.add(ask(1, 5)).unwrap();
        let first = attempt(&mut waiting, 3);
        waiting.declined(&first);
        assert!(waiting.next_attempt(Duration::ZERO, 3, usize::MAX).is_none());
        waiting.tick(Duration::ZERO, false);
        let second = attempt(&mut waiting, 3);
        assert_eq!(waiting.finish(&second), Some(1));
    }

    #[test]
    fn too_many_are_told_so() {
        let mut waiting = Waiting::new(ME, BOOT);
        let most = limits::MAX_WAITING_REQUESTS as u64;
        (1..=most).for_each(|ticket| waiting.add(ask(ticket, 5)).unwrap());
        assert_eq!(waiting.add(ask(most + 1, 5)), Err(Error::NotDone(NotDone::Busy)));
        assert_eq!(waiting.len() as u64, most);
    }
}
