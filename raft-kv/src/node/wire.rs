//! What members send each other: raft's messages, and requests handed on to the leader.
//!
//! Every frame comes from a verified member; whatever it claims beyond that is checked where it
//! is used. Tags are on the wire between versions: they never change meaning.

use crate::codec::wire_enum;
use crate::error::Error;
use crate::machine::Proposal;
use crate::raft::{self, PeerMessage, ReadContext};
use crate::types::{
    ConfProposal, ConfState, Index, LeaseId, LeaseStatus, NodeId, Older, RequestId, Run, Term,
};

/// One frame from member to member.
#[derive(Clone, Debug)]
pub enum PeerFrame {
    /// Raft's own.
    Raft(PeerMessage),
    /// Requests of the sender's callers, to be proposed in `term` or not at all: so the sender
    /// knows that none of them can come later once it applied an entry of a newer term.
    Forward {
        /// The receiver's term as leader.
        term: Term,
        /// All with the sender as origin.
        proposals: Vec<Proposal>,
    },
    /// A membership change of the sender's caller, under the same rule.
    ForwardConf {
        /// The receiver's term as leader.
        term: Term,
        /// With the sender as origin.
        proposal: ConfProposal,
    },
    /// These forwarded requests were not proposed.
    Declined {
        /// Which.
        requests: Vec<RequestId>,
        /// Why.
        why: Error,
    },
    /// Asks the leader which index a linearizable read has to wait for.
    ReadIndex {
        /// Never used before.
        context: ReadContext,
    },
    /// The answer; `None` if the receiver must ask anew.
    ReadConfirmed {
        /// As asked.
        context: ReadContext,
        /// Reads may be served once this is applied.
        index: Option<Index>,
    },
    /// Renews a lease, or asks what it has left.
    LeaseCall {
        /// Who waits.
        request: RequestId,
        /// Which lease.
        id: LeaseId,
        /// Give it its full time again.
        renew: bool,
    },
    /// The answer.
    LeaseReply {
        /// As asked.
        request: RequestId,
        /// What the lease has left.
        result: Result<LeaseStatus, Error>,
    },
    /// Asks the leader to hand over.
    Transfer {
        /// To whom; the most caught-up voter otherwise.
        to: Option<NodeId>,
    },
    /// A member that has started asks whether what it began with is the newest that is known of it.
    Runs {
        /// Its run.
        run: Run,
        /// Its term and its log's last entry, as long as it has promised nothing in this run.
        end: Option<(Term, Index)>,
    },
    /// The answer.
    RunHeard {
        /// As asked.
        run: Run,
        /// What shows that it is an older copy of itself.
        older: Option<Older>,
        /// Whether the answer comes from a leader that has applied all that came before its term.
        leads: bool,
        /// Who votes, as far as the sender has applied, and how far that is: the one who asks may have
        /// slept through changes, and must not wait for who is no voter any more.
        conf: ConfState,
        /// See `conf`.
        applied: Index,
    },
    /// What the sender has promised last, for the others to remember: see [`Older::Promised`].
    Held {
        /// The term.
        term: Term,
        /// Up to where it holds its leader's log, or its own as leader.
        index: Index,
    },
    /// The sender's requests of this run up to a number, that the leader has not proposed yet, are not to be
    /// proposed any more: some may have been lost on the way.
    Close {
        /// The receiver's term as leader.
        term: Term,
        /// The sender's run.
        boot: u64,
        /// The number.
        up_to: u64,
    },
    /// The answer: what was proposed of them stands in the log up to here.
    Closed {
        /// As asked.
        term: Term,
        /// As asked.
        boot: u64,
        /// As asked.
        up_to: u64,
        /// The leader's last entry.
        index: Index,
    },
}
wire_enum!(PeerFrame {
    1 => Raft(message), 2 => Forward { term, proposals }, 3 => ForwardConf { term, proposal },
    4 => Declined { requests, why }, 5 => ReadIndex { context }, 6 => ReadConfirmed { context, index },
    7 => LeaseCall { request, id, renew }, 8 => LeaseReply { request, result }, 9 => Transfer { to },
    10 => Runs { run, end }, 11 => RunHeard { run, older, leads, conf, applied },
    12 => Held { term, index }, 13 => Close { term, boot, up_to }, 14 => Closed { term, boot, up_to, index },
});

impl PeerFrame {
    /// Whether it must not wait behind bulk: everything but entries.
    pub fn urgent(&self) -> bool {
        match self {
            Self::Raft(message) => message.priority() == raft::Priority::Urgent,
            // Behind what it closes, which may be on its way still.
            Self::Forward { .. } | Self::ForwardConf { .. } | Self::Close { .. } => false,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::codec::Wire;
    use crate::error::{NotDone, Refusal, Unknown};
    use crate::machine::command::Command;
    use crate::types::{ConfChange, MemberRecord, OnceId, PutRequest, SnapshotMeta};

    fn heard(older: Option<Older>, leads: bool) -> PeerFrame {
        let conf = ConfState { voters: vec![NodeId(1), NodeId(2)], ..ConfState::default() };
        PeerFrame::RunHeard { run: Run::default(), older, leads, conf, applied: 7 }
    }

    fn every_frame() -> Vec<PeerFrame> {
        let (one, two) = (NodeId(1), NodeId(2));
        let request = RequestId { origin: one, boot: 2, seq: u64::MAX };
        let put =
            PutRequest { key: "k".into(), value: "v".into(), lease: 3, prev_kv: true, ..Default::default() };
        let once = Some(OnceId { client: 4, seq: 5 });
        let record = MemberRecord { id: two, name: "m2".into(), addr: "h:1".into(), ..Default::default() };
        let context = ReadContext { node: one, boot: 2, counter: 3 };
        let conf = ConfState { voters: vec![one], learners: vec![two], ..ConfState::default() };
        let status = LeaseStatus { id: 1, ttl: 2, granted_ttl: 3, keys: vec!["k".into()] };
        let conf_of = |change| ConfProposal { change, request: Some(request) };
        let declined = |why| PeerFrame::Declined { requests: vec![request; 2], why };
        vec![
            PeerFrame::Raft(PeerMessage::snapshot(one, two, 7, &SnapshotMeta { index: 9, term: 7, conf })),
            PeerFrame::Forward { term: 1, proposals: vec![] },
            PeerFrame::Forward {
                term: 1,
                proposals: vec![
                    Proposal { request, once, command: Command::Put(put) },
                    Proposal { request, once: None, command: Command::Noop },
                ],
            },
            PeerFrame::ForwardConf { term: 1, proposal: conf_of(ConfChange::AddLearner(record)) },
            PeerFrame::ForwardConf { term: 1, proposal: conf_of(ConfChange::Promote(two)) },
            PeerFrame::ForwardConf { term: 1, proposal: conf_of(ConfChange::Remove(two)) },
            declined(Error::NotDone(NotDone::Busy)),
            declined(Error::Refused(Refusal::EmptyKey)),
            declined(Error::Unknown(Unknown::Overtaken)),
            declined(Error::Stopped("disk".into())),
            PeerFrame::ReadIndex { context },
            PeerFrame::ReadConfirmed { context, index: Some(6) },
            PeerFrame::ReadConfirmed { context, index: None },
            PeerFrame::LeaseCall { request, id: -1, renew: true },
            PeerFrame::LeaseReply { request, result: Ok(status) },
            PeerFrame::LeaseReply { request, result: Err(Error::NotDone(NotDone::NotLeader)) },
            PeerFrame::Transfer { to: Some(two) },
            PeerFrame::Transfer { to: None },
            PeerFrame::Runs { run: Run { number: 3, boot: 4 }, end: Some((5, 6)) },
            PeerFrame::Runs { run: Run { number: 3, boot: 4 }, end: None },
            PeerFrame::Held { term: 1, index: 2 },
            PeerFrame::Close { term: 1, boot: 2, up_to: 3 },
            PeerFrame::Closed { term: 1, boot: 2, up_to: 3, index: 4 },
            heard(None, true),
            heard(Some(Older::Run { newest: 7 }), false),
            heard(Some(Older::Promised { term: 8, index: 9 }), false),
        ]
    }

    #[test]
    fn every_frame_reads_back_and_no_part_of_one_does() {
        for frame in every_frame() {
            let bytes = frame.to_bytes();
            let again = PeerFrame::from_bytes(bytes.clone()).unwrap();
            assert_eq!(format!("{again:?}"), format!("{frame:?}"));
            assert_eq!(again.to_bytes(), bytes);
            for len in 0..bytes.len() {
                assert!(PeerFrame::from_bytes(bytes.slice(..len)).is_err(), "{len} bytes of {frame:?}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(PeerFrame::from_bytes(longer.into()).is_err(), "more than {frame:?}");
        }
    }

    #[test]
    fn requests_travel_behind_bulk_and_answers_do_not() {
        for frame in every_frame() {
            let bulk = matches!(
                frame,
                PeerFrame::Raft(_)
                    | PeerFrame::Forward { .. }
                    | PeerFrame::ForwardConf { .. }
                    | PeerFrame::Close { .. }
            );
            assert_eq!(frame.urgent(), !bulk, "{frame:?}");
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), tag in 0..16u8) {
            let tagged = [&[tag], &bytes[..]].concat();
            let _ = PeerFrame::from_bytes(Bytes::from(bytes));
            let _ = PeerFrame::from_bytes(Bytes::from(tagged));
        }

        #[test]
        fn a_frame_with_a_wrong_byte_never_panics(which in any::<usize>(), at in any::<usize>(), byte in any::<u8>()) {
            let frames = every_frame();
            let mut bytes = frames[which % frames.len()].to_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(frame) = PeerFrame::from_bytes(Bytes::from(bytes)) {
                let _ = frame.urgent();
                // What was read has one form.
                let once = frame.to_bytes();
                prop_assert_eq!(PeerFrame::from_bytes(once.clone()).unwrap().to_bytes(), once);
            }
        }
    }
}
