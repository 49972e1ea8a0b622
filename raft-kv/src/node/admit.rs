//! Admit: a caller's request comes in, is checked against its bounds, and waits for its stage.

use std::time::Duration;

use super::ask::{self, Ask, Ticket, Told, What};
use super::reads::{LeaseCaller, Reader};
use super::replica::{Effects, Replica};
use super::wire::PeerFrame;
use crate::error::{Error, NotDone, Refusal};
use crate::limits;
use crate::planted;
use crate::raft::{self, LogView};
use crate::types::{LeaseId, NodeId, RequestId};

impl<L: LogView> Replica<L> {
    pub(super) fn ask(&mut self, now: Duration, ask: Ask, out: &mut Effects<L::Write>) {
        let Ask { ticket, deadline, what } = ask;
        if self.stopping.is_some() {
            out.answers.push((ticket, Err(Error::NotDone(NotDone::ShuttingDown))));
            return;
        }
        if let Err(error) = ask::admit(&what) {
            out.answers.push((ticket, Err(error)));
            return;
        }
        let waiting = self.barriers.len() + self.transfers.len();
        if self.apply_lag > limits::MAX_APPLY_LAG_BYTES || waiting >= limits::MAX_WAITING_REQUESTS {
            out.answers.push((ticket, Err(Error::NotDone(NotDone::Busy))));
            return;
        }
        match what {
            What::Command { .. } | What::Conf(_) => {
                if let Err(error) = self.waiting.add(Ask { ticket, deadline, what }) {
                    out.answers.push((ticket, Err(error)));
                }
            }
            What::Barrier => {
                self.barriers.insert(ticket, deadline);
                self.reads.add(Reader::Local(ticket));
            }
            What::Lease { id, renew } => {
                self.barriers.insert(ticket, deadline);
                self.ask_lease(now, ticket, id, renew, out);
            }
            What::Transfer { to } => self.ask_transfer(now, ticket, deadline, to, out),
        }
    }

    pub(super) fn ask_lease(
        &mut self,
        now: Duration,
        ticket: Ticket,
        id: LeaseId,
        renew: bool,
        out: &mut Effects<L::Write>,
    ) {
        match self.leadership.leader {
            Some(leader) if leader != self.me => {
                let seq = self.next_lease_call;
                self.next_lease_call += 1;
                self.lease_calls.insert(seq, ((ticket, id, renew), now));
                let request = RequestId { origin: self.me, boot: self.boot, seq };
                out.frames.push((leader, PeerFrame::LeaseCall { request, id, renew }));
            }
            Some(_) if planted!(RenewUnconfirmed) => {
                self.ending.push(Reader::Lease { to: LeaseCaller::Local(ticket), id, renew });
            }
            _ => self.reads.add(Reader::Lease { to: LeaseCaller::Local(ticket), id, renew }),
        }
    }

    fn ask_transfer(
        &mut self,
        now: Duration,
        ticket: Ticket,
        deadline: Duration,
        to: Option<NodeId>,
        out: &mut Effects<L::Write>,
    ) {
        let voter = |id: NodeId| self.applied.conf.voters.contains(&id);
        if let Some(id) = to.filter(|id| !voter(*id)) {
            let why = "is no voter, so it can't lead; choose a voter".into();
            out.answers.push((ticket, Err(Refusal::MemberUnfit { id, why }.into())));
            return;
        }
        match self.leadership.leader {
            None => out.answers.push((ticket, Err(Error::NotDone(NotDone::NoLeader)))),
            Some(leader) if Some(leader) == to => out.answers.push((ticket, Ok(Told::Done))),
            Some(leader) if leader != self.me => {
                out.frames.push((leader, PeerFrame::Transfer { to }));
                self.transfers.push((ticket, deadline, to));
            }
            Some(_) => {
                self.transfers.push((ticket, deadline, to));
                // A failing log shows at the next step as well; nothing is lost by looking there.
                let _ = self.step(now, raft::Input::Transfer { to }, out);
            }
        }
    }
}
