//! Room, by the log: a naive model is told every command in the log's order and every change of keys. What
//! takes the live keys over the quota in force is refused and never done; what takes nothing is never
//! refused for want of room; while a voter's disk is short, nothing takes space.
//!
//! Live bytes are counted from the events alone, never asked of the store.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{Verdict, violation};
use crate::error::Refusal;
use crate::machine::command::Command;
use crate::machine::{Answer, Outcome, Proposal};
use crate::types::{
    AlarmKind, AlarmRequest, Change, ConfChange, ConfState, EventKind, Index, NodeId, OnceId, PointChange,
    PointReply, RequestId, Revision, TxnOp, TxnRequest,
};

const CHECK: &str = "room";

struct Asks {
    index: Index,
    once: Option<OnceId>,
    command: Command,
}

/// What was refused for want of room, and what was done while there was none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpaceCounts {
    /// Quotas set.
    pub quotas: u64,
    /// Quotas set below what there was.
    pub below: u64,
    /// Refused by the quota.
    pub over: u64,
    /// Refused while a disk was short.
    pub short: u64,
    /// Changes of keys that were done with more than the quota there.
    pub shrunk: u64,
    /// Alarms that members raised for their disks.
    pub raised: u64,
    /// Alarms that were ended.
    pub ended: u64,
}

/// Live keys, the quota and the alarms, as they must be after each entry.
#[derive(Default)]
pub struct Space {
    asked: BTreeMap<RequestId, Asks>,
    confs: BTreeMap<Index, (ConfChange, ConfState)>,
    named: BTreeSet<OnceId>,
    front: Index,
    revision: Revision,
    /// Bytes of the value of each live key.
    values: BTreeMap<Bytes, usize>,
    live: u64,
    quota: Option<u64>,
    alarms: BTreeSet<(NodeId, AlarmKind)>,
    conf: ConfState,
    /// What was seen.
    pub counts: SpaceCounts,
}

impl Space {
    /// An entry was committed for the first time: what is asked in it.
    pub fn committed(&mut self, index: Index, proposal: &Proposal) {
        let Proposal { request, once, command, .. } = proposal;
        self.asked.insert(*request, Asks { index, once: *once, command: command.clone() });
    }

    /// A change of the configuration was committed for the first time.
    pub fn configured(&mut self, index: Index, change: &ConfChange, after: &ConfState) {
        self.confs.insert(index, (change.clone(), after.clone()));
    }

    /// Whether a voter says that its disk is short.
    pub fn is_short(&self) -> bool {
        let votes = |id| self.conf.voters.contains(id) || self.conf.voters_outgoing.contains(id);
        self.alarms.iter().any(|(id, kind)| *kind == AlarmKind::DiskShort && votes(id))
    }

    /// A member has applied entries up to `at`, with these outcomes and changes.
    pub fn applied(&mut self, at: Index, outcomes: &[Outcome], changes: &[Change]) -> Verdict {
        let mut changes = changes.iter().filter(|change| change.revision > self.revision).peekable();
        let mut news = Vec::new();
        while let Some(change) = changes.next_if(|_| true) {
            news.push(change.clone());
        }
        let mut news = news.into_iter().peekable();
        for outcome in outcomes {
            let Some(asks) = self.asked.get(&outcome.request).filter(|asks| asks.index > self.front) else {
                continue;
            };
            self.configure(asks.index - 1);
            let asks = self.asked.remove(&outcome.request).expect("it is there");
            let before = self.live;
            let mut made = None;
            while let Some(change) = news.next_if(|change| change.revision <= outcome.revision) {
                made = Some(change.revision);
                self.count(&change);
            }
            // What was done before is answered as it was then.
            if asks.once.is_none_or(|once| self.named.insert(once)) {
                self.judge(&asks.command, outcome, before, made)?;
            }
        }
        if at > self.front {
            self.configure(at);
            self.front = at;
        }
        Ok(())
    }

    fn configure(&mut self, to: Index) {
        while let Some(entry) = self.confs.first_entry().filter(|entry| *entry.key() <= to) {
            let (change, after) = entry.remove();
            if let ConfChange::Remove(id) = change {
                self.alarms.retain(|(member, _)| *member != id);
            }
            self.conf = after;
        }
    }

    fn count(&mut self, change: &Change) {
        self.revision = change.revision;
        for event in &change.events {
            let key = &event.kv.key;
            let before = match event.kind {
                EventKind::Put => self.values.insert(key.clone(), event.kv.value.len()),
                EventKind::Delete => self.values.remove(key),
            };
            self.live -= before.map_or(0, |value| key.len() + value) as u64;
            if event.kind == EventKind::Put {
                self.live += (key.len() + event.kv.value.len()) as u64;
            }
        }
    }

    fn judge(
        &mut self,
        command: &Command,
        outcome: &Outcome,
        before: u64,
        made: Option<Revision>,
    ) -> Verdict {
        match &outcome.result {
            Ok(answer) => {
                self.done(command, answer, before, made)?;
                self.take_on(command, before);
                Ok(())
            }
            Err(refusal) => self.refused(command, refusal),
        }
    }

    fn done(&mut self, command: &Command, answer: &Answer, before: u64, made: Option<Revision>) -> Verdict {
        let short = self.is_short();
        let rolls_up = matches!(answer, Answer::Point(PointReply::RolledBack(_))) && self.live > before;
        if short && (takes_space(command) || rolls_up) {
            let detail = format!("{command:?} was done while {:?} are raised", self.alarms);
            return violation(CHECK, detail);
        }
        let Some(quota) = self.quota else { return Ok(()) };
        let grown = made.is_some() && self.live > before && self.live > quota;
        let leased = matches!(command, Command::LeaseGrant { .. }) && self.live >= quota;
        if grown || leased {
            let detail = format!("{command:?} took {before} live bytes to {} of {quota}", self.live);
            return violation(CHECK, detail);
        }
        self.counts.shrunk += u64::from(made.is_some() && before > quota);
        Ok(())
    }

    fn take_on(&mut self, command: &Command, live: u64) {
        match command {
            Command::Quota { bytes } => {
                self.quota = *bytes;
                self.counts.quotas += 1;
                self.counts.below += u64::from(bytes.is_some_and(|bytes| bytes < live));
            }
            Command::Alarm(AlarmRequest::Raise(id, kind)) => {
                self.counts.raised += u64::from(self.alarms.insert((*id, *kind)));
            }
            Command::Alarm(AlarmRequest::End(id, kind)) => {
                self.counts.ended += u64::from(self.alarms.remove(&(*id, *kind)));
            }
            _ => {}
        }
    }

    fn refused(&mut self, command: &Command, refusal: &Refusal) -> Verdict {
        let true_word = match refusal {
            Refusal::QuotaExceeded { live, quota } => {
                self.counts.over += 1;
                (*live, Some(*quota)) == (self.live, self.quota) && self.has_no_room(command)
            }
            Refusal::Alarmed { kind: AlarmKind::DiskShort } => {
                self.counts.short += 1;
                let grows = matches!(command, Command::Point(PointChange::Rollback { .. }));
                self.is_short() && (takes_space(command) || grows)
            }
            _ => true,
        };
        if true_word {
            return Ok(());
        }
        let (live, quota) = (self.live, self.quota);
        violation(
            CHECK,
            format!(
                "{command:?} was refused ({refusal}) with {live} live bytes of {quota:?}, alarms {:?}",
                self.alarms
            ),
        )
    }

    /// Whether the command may be refused by the quota; for a put exactly.
    fn has_no_room(&self, command: &Command) -> bool {
        let Some(quota) = self.quota else { return false };
        match command {
            Command::Put(put) if !put.ignore_value => {
                let before = self.values.get(&put.key).map_or(0, |value| put.key.len() + value);
                let after = put.key.len() + put.value.len();
                after > before && self.live - before as u64 + after as u64 > quota
            }
            Command::LeaseGrant { .. } => self.live >= quota,
            Command::Point(PointChange::Rollback { .. }) => true,
            command => takes_space(command),
        }
    }
}

/// Whether it may leave more than there was.
fn takes_space(command: &Command) -> bool {
    fn puts(request: &TxnRequest) -> bool {
        request.success.iter().chain(&request.failure).any(|op| match op {
            TxnOp::Put(_) => true,
            TxnOp::Txn(nested) => puts(nested),
            _ => false,
        })
    }
    match command {
        Command::Put(_) | Command::LeaseGrant { .. } | Command::Point(PointChange::Create { .. }) => true,
        Command::Txn(request) => puts(request),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DeleteRequest, Event, KeyRange, KeyValue, PutRequest, PutResponse};

    /// One entry after another, each with one command.
    #[derive(Default)]
    struct Log {
        space: Space,
        index: Index,
    }

    impl Log {
        fn one(
            &mut self,
            command: Command,
            result: Result<Answer, Refusal>,
            events: &[(&'static str, Option<usize>)],
        ) -> Verdict {
            self.index += 1;
            let request = RequestId { origin: NodeId(1), boot: 1, seq: self.index };
            self.space.asked.insert(request, Asks { index: self.index, once: None, command });
            let revision = self.space.revision + i64::from(!events.is_empty());
            let event = |(key, value): &(&'static str, Option<usize>)| {
                let kv = KeyValue {
                    key: (*key).into(),
                    value: vec![b'v'; value.unwrap_or(0)].into(),
                    ..KeyValue::default()
                };
                let kind = if value.is_some() { EventKind::Put } else { EventKind::Delete };
                Event { kind, kv, prev: None }
            };
            let change = Change { revision, events: events.iter().map(event).collect() };
            let changes = if events.is_empty() { Vec::new() } else { vec![change] };
            self.space.applied(self.index, &[Outcome { request, revision, result }], &changes)
        }

        fn put(&mut self, bytes: usize) -> Verdict {
            let answer = Ok(Answer::Put(PutResponse::default()));
            self.one(a_put(bytes), answer, &[("k", Some(bytes))])
        }
    }

    fn a_put(bytes: usize) -> Command {
        Command::Put(PutRequest { key: "k".into(), value: vec![b'v'; bytes].into(), ..PutRequest::default() })
    }

    fn quota(bytes: u64) -> Command {
        Command::Quota { bytes: Some(bytes) }
    }

    #[test]
    fn nothing_grows_over_the_quota_and_everything_shrinks() {
        let mut log = Log::default();
        log.put(20).unwrap();
        log.one(quota(11), Ok(Answer::Done), &[]).unwrap();
        log.put(15).unwrap();
        assert_eq!((log.space.live, log.space.counts.below, log.space.counts.shrunk), (16, 1, 1));
        assert!(log.put(17).is_err(), "over the quota and more than before");
        let delete = Command::Delete(DeleteRequest { range: KeyRange::key("k"), prev_kv: false });
        let refusal = Refusal::QuotaExceeded { live: log.space.live, quota: 11 };
        log.one(a_put(30), Err(refusal.clone()), &[]).unwrap();
        assert!(log.one(a_put(3), Err(refusal.clone()), &[]).is_err(), "there is room for it");
        assert!(log.one(delete, Err(refusal), &[]).is_err(), "a delete is never refused");
        let wrong = Refusal::QuotaExceeded { live: 3, quota: 11 };
        assert!(log.one(a_put(30), Err(wrong), &[]).is_err(), "live bytes are told as they are");
        let grant = Command::LeaseGrant { id: 7, ttl: 3 };
        assert!(log.one(grant, Ok(Answer::Done), &[]).is_err(), "a lease while there is no room");
    }

    #[test]
    fn a_short_disk_of_a_voter_stops_what_takes_space() {
        let mut log = Log::default();
        let conf = ConfState { voters: vec![NodeId(4)], ..ConfState::default() };
        log.space.configured(1, &ConfChange::LeaveJoint, &conf);
        log.index = 1;
        let raise = |id| Command::Alarm(AlarmRequest::Raise(NodeId(id), AlarmKind::DiskShort));
        let alarmed = || Err(Refusal::Alarmed { kind: AlarmKind::DiskShort });
        log.one(raise(5), Ok(Answer::Done), &[]).unwrap();
        log.put(3).unwrap();
        assert!(log.one(a_put(3), alarmed(), &[]).is_err(), "who does not vote stops nobody");
        log.one(raise(4), Ok(Answer::Done), &[]).unwrap();
        log.one(a_put(3), alarmed(), &[]).unwrap();
        assert!(log.put(2).is_err(), "it shrinks, but may take space");
        log.one(quota(1), Ok(Answer::Done), &[]).unwrap();
        assert!(log.one(quota(2), alarmed(), &[]).is_err(), "a quota takes no space");
        log.space.configured(log.index + 1, &ConfChange::Remove(NodeId(4)), &conf);
        log.index += 1;
        assert!(log.one(a_put(3), alarmed(), &[]).is_err(), "its alarm has gone with it");
        assert_eq!(log.space.counts.short, 4);
    }
}
