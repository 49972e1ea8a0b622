//! How a machine without a member gets one: it asks members that run to take it in under a new id,
//! as the product's `join` and its rejoin after a lost log do. Nothing is changed on its disk
//! before the cluster has said yes.

use std::time::Duration;

use rand::{Rng, RngCore};

use super::cluster::{Cluster, Event, Happening, HostId};
use super::scheduler::stream;
use super::trust::{Believed, Leaf, Papers};
use crate::error::Error;
use crate::machine::command::Command;
use crate::node::ask::{Ticket, Told, What};
use crate::types::{ConfChange, MemberRecord, Role, TrustChange};

/// How long the asked member may take.
const PATIENCE: Duration = Duration::from_secs(7);
/// Pause before the next try.
const PAUSE: Duration = Duration::from_millis(700);

/// What was asked for a machine.
pub(super) struct Join {
    ticket: Ticket,
    door: HostId,
    step: Step,
}

enum Step {
    /// The member that the others still know under the machine's name goes.
    Remove,
    /// The new one gets a certificate.
    Issue(MemberRecord, Leaf),
    /// The new one comes, with its certificate and roots.
    Add(MemberRecord, Papers),
}

impl Cluster {
    /// Asks a member that runs to take the machine's new member in; its old one goes first.
    pub(super) fn look_for_door(&mut self, host: HostId) {
        if self.hosts[host].member || self.joining.contains_key(&host) {
            return;
        }
        let doors: Vec<HostId> = (0..self.hosts.len())
            .filter(|door| self.hosts[*door].replica().is_some_and(|replica| !replica.members().is_empty()))
            .collect();
        if doors.is_empty() {
            return self.scheduler.after(PAUSE, Event::Join(host));
        }
        let door = doors[self.chances.joins.random_range(0..doors.len())];
        let name = self.hosts[host].name.clone();
        let members = self.hosts[door].replica().expect("it runs").members();
        let known = members.iter().find(|member| member.record.name == name).map(|member| member.record.id);
        let (step, what) = match (known, self.trusted(door)) {
            (Some(id), _) => (Step::Remove, What::Conf(ConfChange::Remove(id))),
            (None, Some(trusted)) => {
                let record = self.record(host);
                let leaf = Leaf::of(trusted.issuing(), record.id, self.chances.trust.next_u64());
                let now = self.wall(door);
                let node = leaf.record(Role::Manager, &record.name, now);
                let change = TrustChange::Issue { node, renewal: false, now };
                let what = What::Command { command: Command::Trust(change), once: None };
                (Step::Issue(record, leaf), what)
            }
            (None, None) => return self.scheduler.after(PAUSE, Event::Join(host)),
        };
        self.take_step(host, door, step, what);
    }

    fn take_step(&mut self, host: HostId, door: HostId, step: Step, what: What) {
        match self.ask(door, what, PATIENCE) {
            Some(ticket) => {
                self.joining.insert(host, Join { ticket, door, step });
            }
            None => self.scheduler.after(PAUSE, Event::Join(host)),
        }
    }

    /// Takes an answer in if it is to one of the questions above.
    pub(super) fn join_answered(&mut self, ticket: Ticket, result: &Result<Told, Error>) -> bool {
        let found = self.joining.iter().find(|(_, join)| join.ticket == ticket);
        let Some(host) = found.map(|(host, _)| *host) else { return false };
        let join = self.joining.remove(&host).expect("just found");
        match (join.step, result) {
            (Step::Issue(record, leaf), Ok(_)) => {
                // Known before it is a member: whoever is one may be dialled and must be let in.
                let trusted = self.trusted(join.door).expect("it has just applied");
                let papers = Papers { leaf, believed: Believed::of(&trusted, self.wall(join.door)) };
                let what = What::Conf(ConfChange::AddLearner(record.clone()));
                self.take_step(host, join.door, Step::Add(record, papers), what);
            }
            (Step::Add(_, papers), Ok(_)) => self.take_in(host, papers),
            (Step::Remove, Ok(_)) => self.scheduler.after(Duration::from_millis(50), Event::Join(host)),
            (step, Err(_)) => {
                if let Step::Add(record, _) = step {
                    // Nobody has its certificate. Where it is a member after all this is refused.
                    let now = self.wall(join.door);
                    self.tell(join.door, TrustChange::NodeRemove { id: record.id, now });
                }
                self.scheduler.after(PAUSE, Event::Join(host));
            }
        }
        true
    }

    fn take_in(&mut self, host: HostId, papers: Papers) {
        let id = papers.leaf.node;
        let random = stream(self.seed, &format!("disk {host} {id}"));
        let (cluster, options) = (self.id, self.options.log);
        self.hosts[host].join(cluster, id, random, options);
        self.hosts[host].papers = Some(papers);
        self.place.insert(id, host);
        self.counts.joins += 1;
        self.trace.line(self.scheduler.now(), || format!("m{host} joins as {id}"));
        self.happened.push(Happening::Joined(host));
        let life = self.hosts[host].life;
        self.scheduler.after(Duration::from_millis(20), Event::Start(host, life));
    }
}
