//! The roll call: before a member votes, stands for election or acknowledges, the others look whether what
//! it starts from is the newest that they know of it.
//!
//! A directory put back as it was earlier is whole and right about an earlier time; only the others can tell.
//! What they know: the newest run of each member, in the replicated state and in memory, and the last promise
//! that each has seen of it, in memory. It must never let a member promise anything before the call is over,
//! never wait for those who do not answer longer than [`GRACE`] once enough have, and never take what a
//! member did in this very run for proof against it. docs/repair.md has the argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::replica::{Effects, Replica};
use super::wire::PeerFrame;
use crate::limits;
use crate::planted;
use crate::raft::LogView;
use crate::types::{ConfState, Index, NodeId, Older, Run, Term};

/// How long it is waited for the words of the rest, once those of enough are there.
const GRACE: Duration = limits::TICK.saturating_mul(10);
/// How often a run that is not recorded yet is told to the leader, and proposed by it.
const TELL_AGAIN: Duration = limits::TICK.saturating_mul(10);

/// How often the others are told what was promised, where that has changed.
const TELL_HELD: Duration = limits::TICK.saturating_mul(20);

/// What this member knows of everybody's runs, its own included.
pub(super) struct Roll {
    run: Run,
    began: (Term, Index),
    /// The call is over: it may promise.
    answered: bool,
    /// It is an older copy of itself, and may never promise.
    older: Option<Older>,
    words: BTreeSet<NodeId>,
    leader_spoke: bool,
    /// Who votes by the word of one who has applied more than this member, and how far that one was.
    newer: Option<(Index, ConfState)>,
    enough_since: Option<Duration>,
    /// Who was told in this tick.
    told: BTreeSet<NodeId>,
    told_leader: Option<Duration>,
    /// The newest run that each has told, and that the state has.
    heard: BTreeMap<NodeId, Run>,
    recorded: BTreeMap<NodeId, Run>,
    /// The last promise of each: the term, and what it acknowledged in it.
    promised: BTreeMap<NodeId, (Term, Index)>,
    /// The last promise of this member, and what the others were told of it and when.
    own: (Term, Index),
    held: ((Term, Index), Duration),
    /// To be proposed, and when that was done last.
    due: BTreeMap<NodeId, Run>,
    proposed: BTreeMap<NodeId, (Run, Duration)>,
}

impl Roll {
    pub(super) fn new(me: NodeId, run: Run, conf: &ConfState) -> Self {
        Self {
            run,
            began: (0, 0),
            // Where it alone votes there is nobody to ask.
            answered: run.number == 0 || (conf.voters == [me] && conf.voters_outgoing.is_empty()),
            older: None,
            words: BTreeSet::new(),
            leader_spoke: false,
            newer: None,
            enough_since: None,
            told: BTreeSet::new(),
            told_leader: None,
            heard: BTreeMap::new(),
            recorded: BTreeMap::new(),
            promised: BTreeMap::new(),
            own: (0, 0),
            held: ((0, 0), Duration::ZERO),
            due: BTreeMap::new(),
            proposed: BTreeMap::new(),
        }
    }

    /// What the state says at the start.
    pub(super) fn begin(&mut self, recorded: Vec<(NodeId, Run)>, began: (Term, Index)) {
        self.began = began;
        self.recorded = recorded.into_iter().collect();
    }

    /// Whether this member may promise nothing: then raft's messages are not for it, nor is its clock.
    pub(super) fn is_mute(&self) -> bool {
        !self.answered || self.older.is_some()
    }

    /// A peer's message shows that it has this on its disk.
    pub(super) fn note_promise(&mut self, from: NodeId, promise: (Term, Index)) {
        let last = self.promised.entry(from).or_default();
        *last = (*last).max(promise);
    }

    /// This member promises this.
    pub(super) fn promises(&mut self, promise: Option<(Term, Index)>) {
        self.own = self.own.max(promise.unwrap_or_default());
    }

    /// What shows that the member that tells this is an older copy of itself.
    fn judge(&self, from: NodeId, run: Run, end: Option<(Term, Index)>) -> Option<Older> {
        let newest = self.heard.get(&from).max(self.recorded.get(&from)).copied().unwrap_or_default();
        let later = run.number < newest.number || (run.number == newest.number && run.boot != newest.boot);
        if later && !planted!(IgnoreRun) {
            return Some(Older::Run { newest: newest.number });
        }
        let (term, index) = self.promised.get(&from).copied().unwrap_or_default();
        (end.is_some_and(|end| end < (term, index)) && !planted!(IgnorePromised))
            .then_some(Older::Promised { term, index })
    }

    /// Another member says who votes.
    pub(super) fn note_conf(&mut self, conf: ConfState, applied: Index, own: Index) {
        let newest = self.newer.as_ref().map_or(own, |(index, _)| *index);
        if !self.answered && applied > newest {
            self.newer = Some((applied, conf));
        }
    }

    /// Who votes, as far as this member knows by itself (`own`) or from those who have applied more.
    fn voters(&self, own: &ConfState) -> ConfState {
        self.newer.as_ref().map_or_else(|| own.clone(), |(_, conf)| conf.clone())
    }

    fn settle(&mut self, now: Duration, me: NodeId, own: &ConfState) {
        if self.answered {
            return;
        }
        let conf = self.voters(own);
        let has = |id: &NodeId| *id == me || self.words.contains(id);
        let most = |ids: &[NodeId]| ids.iter().filter(|id| has(id)).count() > ids.len() / 2;
        let most = most(&conf.voters) && (conf.voters_outgoing.is_empty() || most(&conf.voters_outgoing));
        if !self.leader_spoke && !most {
            return;
        }
        let all = conf.voters.iter().chain(&conf.voters_outgoing).all(has);
        let since = *self.enough_since.get_or_insert(now);
        self.answered = all || now.saturating_sub(since) >= GRACE;
    }
}

impl<L: LogView> Replica<L> {
    /// The last promise of another member that this one has seen, for checks.
    pub fn promise_of(&self, id: NodeId) -> (Term, Index) {
        self.roll.promised.get(&id).copied().unwrap_or_default()
    }

    /// The number of this run, and the term and the log's last entry that it began with, for checks.
    pub fn began(&self) -> (u64, (Term, Index)) {
        (self.roll.run.number, self.roll.began)
    }

    /// Tells those who can say something about it that this member runs, until that is recorded.
    pub(super) fn call_roll(&mut self, now: Duration, out: &mut Effects<L::Write>) {
        if self.roll.run.number == 0 {
            return;
        }
        self.roll.told.clear();
        self.roll.settle(now, self.me, &self.applied.conf);
        if self.roll.is_mute() {
            let conf = self.roll.voters(&self.applied.conf);
            for id in conf.voters.iter().chain(&conf.voters_outgoing) {
                self.tell_run(*id, out);
            }
            return;
        }
        self.tell_held(now, out);
        let recorded = self.roll.recorded.get(&self.me).is_some_and(|run| run.number >= self.roll.run.number);
        if recorded || self.members.len() < 2 {
            return;
        }
        let again = self.roll.told_leader.is_none_or(|at| now.saturating_sub(at) >= TELL_AGAIN);
        match self.leadership.leader {
            Some(leader) if leader == self.me => self.note_due(now, self.me, self.roll.run),
            Some(leader) if again => {
                self.roll.told_leader = Some(now);
                self.tell_run(leader, out);
            }
            _ => {}
        }
    }

    /// Tells everybody what this member has promised, so that not only its leader knows, which may forget.
    fn tell_held(&mut self, now: Duration, out: &mut Effects<L::Write>) {
        if now.saturating_sub(self.roll.held.1) < TELL_HELD {
            return;
        }
        if self.leads() {
            let status = self.core.status();
            self.roll.promises(Some((status.term, status.persisted)));
        }
        let (term, index) = self.roll.own;
        if self.roll.held.0 != self.roll.own {
            self.roll.held = (self.roll.own, now);
            let others = self.members.iter().map(|member| member.record.id).filter(|id| *id != self.me);
            out.frames.extend(others.map(|id| (id, PeerFrame::Held { term, index })));
        }
    }

    fn tell_run(&mut self, to: NodeId, out: &mut Effects<L::Write>) {
        if to == self.me || self.roll.older.is_some() || !self.roll.told.insert(to) {
            return;
        }
        let end = self.roll.is_mute().then_some(self.roll.began);
        out.frames.push((to, PeerFrame::Runs { run: self.roll.run, end }));
    }

    /// Whether raft's messages are for this member. Who sends one while they are not is asked, too: a member
    /// that has just joined knows nobody else.
    pub(super) fn hears(&mut self, from: NodeId, out: &mut Effects<L::Write>) -> bool {
        if self.roll.is_mute() {
            self.tell_run(from, out);
        }
        !self.roll.is_mute()
    }

    /// A member says that it runs. The entry that records it goes into the leader's log before any that it
    /// could acknowledge from now on.
    pub(super) fn take_run(
        &mut self,
        now: Duration,
        from: NodeId,
        run: Run,
        end: Option<(Term, Index)>,
        out: &mut Effects<L::Write>,
    ) {
        let older = self.roll.judge(from, run, end);
        let leads = self.leads() && self.leadership.ready && self.applied.term == self.leadership.term;
        let (conf, applied) = (self.applied.conf.clone(), self.applied.index);
        out.frames.push((from, PeerFrame::RunHeard { run, older, leads, conf, applied }));
        if older.is_some() {
            return;
        }
        let known = self.roll.heard.entry(from).or_default();
        *known = (*known).max(run);
        if self.leads() {
            self.note_due(now, from, run);
        }
    }

    /// What another member says to this one's run.
    pub(super) fn take_word(
        &mut self,
        now: Duration,
        from: NodeId,
        (run, older, leads): (Run, Option<Older>, bool),
        out: &mut Effects<L::Write>,
    ) {
        if run != self.roll.run {
            return;
        }
        match older {
            // By what it has promised since it was let in nobody may judge what it began with.
            Some(Older::Promised { .. }) if self.roll.answered => {}
            Some(older) => self.is_older(older, out),
            None => {
                self.roll.words.insert(from);
                self.roll.leader_spoke |= leads;
                self.roll.settle(now, self.me, &self.applied.conf);
            }
        }
    }

    /// The state says which runs were seen.
    pub(super) fn runs_recorded(&mut self, runs: Vec<(NodeId, Run)>, out: &mut Effects<L::Write>) {
        self.roll.recorded = runs.into_iter().collect();
        let own = self.roll.recorded.get(&self.me).copied().unwrap_or_default();
        let later = own.number > self.roll.run.number
            || (own.number == self.roll.run.number && own.boot != self.roll.run.boot);
        if self.roll.run.number > 0 && later && !planted!(IgnoreRun) {
            self.is_older(Older::Run { newest: own.number }, out);
        }
    }

    /// Members came or went: of those who are gone nothing is remembered.
    pub(super) fn forget_runs(&mut self) {
        let known: BTreeSet<NodeId> = self.members.iter().map(|member| member.record.id).collect();
        self.roll.heard.retain(|id, _| known.contains(id));
        self.roll.promised.retain(|id, _| known.contains(id));
        self.roll.proposed.retain(|id, _| known.contains(id));
    }

    fn is_older(&mut self, older: Older, out: &mut Effects<L::Write>) {
        self.roll.older = Some(older);
        out.older = Some(older);
    }

    fn note_due(&mut self, now: Duration, id: NodeId, run: Run) {
        let recorded = self.roll.recorded.get(&id).is_some_and(|known| known.number >= run.number);
        let lately = self
            .roll
            .proposed
            .get(&id)
            .is_some_and(|(known, at)| *known == run && now.saturating_sub(*at) < TELL_AGAIN);
        if !recorded && !lately && self.members.iter().any(|member| member.record.id == id) {
            self.roll.due.insert(id, run);
        }
    }

    /// What the leader has to record.
    pub(super) fn due_runs(&mut self, now: Duration) -> Vec<(NodeId, Run)> {
        let due = std::mem::take(&mut self.roll.due);
        self.roll.proposed.extend(due.iter().map(|(id, run)| (*id, (*run, now))));
        due.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    fn run(number: u64, boot: u64) -> Run {
        Run { number, boot }
    }

    fn conf(voters: &[u64]) -> ConfState {
        ConfState { voters: voters.iter().copied().map(NodeId).collect(), ..ConfState::default() }
    }

    fn roll(voters: &[u64]) -> Roll {
        Roll::new(ME, run(5, 50), &conf(voters))
    }

    /// What is said of a member that tells `run` and `end`, by one who heard of run 7 with boot 70 and saw it
    /// acknowledge entry 10 in term 3.
    fn judged(told: Run, end: Option<(Term, Index)>) -> Option<Older> {
        let mut roll = roll(&[1, 2, 3]);
        roll.heard.insert(OTHER, run(4, 40));
        roll.recorded.insert(OTHER, run(7, 70));
        for promise in [(2, 90), (3, 0), (3, 10), (3, 9)] {
            roll.note_promise(OTHER, promise);
        }
        roll.judge(OTHER, told, end)
    }

    #[test]
    fn an_older_copy_is_told_from_a_later_start() {
        let later = Some(Older::Run { newest: 7 });
        let promised = Some(Older::Promised { term: 3, index: 10 });
        for (told, end, expect) in [
            (run(8, 1), Some((3, 10)), None),
            (run(8, 1), Some((4, 2)), None), // a later leader has replaced the tail
            (run(7, 70), Some((3, 12)), None),
            (run(6, 60), Some((9, 99)), later),
            (run(7, 71), Some((9, 99)), later), // a second start from one copy
            (run(6, 60), None, later),
            (run(8, 1), Some((3, 9)), promised),
            (run(8, 1), Some((2, 99)), promised),
            (run(8, 1), None, None), // it was let in, and promises in this run
        ] {
            assert_eq!(judged(told, end), expect, "{told:?} {end:?}");
        }
    }

    #[test]
    fn nobody_promises_before_enough_have_spoken_or_waits_for_the_rest_for_ever() {
        let check = |voters: &[u64], words: &[u64], leader: bool, expect: [bool; 2]| {
            let mut roll = roll(voters);
            roll.words.extend(words.iter().copied().map(NodeId));
            roll.leader_spoke = leader;
            let answers = [Duration::from_secs(1), Duration::from_secs(1) + GRACE].map(|now| {
                roll.settle(now, ME, &conf(voters));
                !roll.is_mute()
            });
            assert_eq!(answers, expect, "{voters:?} {words:?} {leader}");
        };
        check(&[1], &[], false, [true, true]);
        check(&[1, 2, 3], &[], false, [false, false]);
        check(&[1, 2, 3], &[2], false, [false, true]);
        check(&[1, 2, 3], &[2, 3], false, [true, true]);
        check(&[1, 2, 3, 4, 5], &[2], false, [false, false]);
        check(&[1, 2, 3, 4, 5], &[2], true, [false, true]);
        // A learner's own word is none; who has just joined knows of nobody and needs a leader's.
        check(&[2, 3], &[2], false, [false, false]);
        check(&[2, 3], &[2, 3], false, [true, true]);
        check(&[], &[2, 3], false, [false, false]);
        check(&[], &[2], true, [true, true]);
    }

    #[test]
    fn who_slept_through_a_change_waits_for_nobody_who_votes_no_more() {
        let mut roll = roll(&[1, 9]);
        roll.words.insert(NodeId(2));
        let settle = |roll: &mut Roll| {
            roll.settle(Duration::from_secs(1), ME, &conf(&[1, 9]));
            roll.settle(Duration::from_secs(1) + GRACE, ME, &conf(&[1, 9]));
            !roll.is_mute()
        };
        roll.note_conf(conf(&[1, 2, 3]), 40, 50);
        assert!(!settle(&mut roll), "what is older than one's own says nothing");
        roll.note_conf(conf(&[1, 2, 3]), 51, 50);
        roll.note_conf(conf(&[1, 9]), 51, 50);
        assert!(settle(&mut roll));
    }

    #[cfg(feature = "sim")]
    #[test]
    fn planted_bugs_are_found_here() {
        use crate::planted::{Bug, with};
        for (bug, told, end) in
            [(Bug::IgnoreRun, run(6, 60), Some((9, 99))), (Bug::IgnorePromised, run(8, 1), Some((3, 9)))]
        {
            assert!(judged(told, end).is_some());
            assert_eq!(with(Some(bug), || judged(told, end)), None, "{bug:?}");
        }
    }
}
