//! How a machine without a member gets one: it asks members that run to take it in under a new id,
//! as the product's `join` and its rejoin after a lost log do. Nothing is changed on its disk
//! before the cluster has said yes.

use std::time::Duration;

use rand::Rng;

use super::cluster::{Cluster, Event, Happening, HostId};
use super::scheduler::stream;
use crate::error::Error;
use crate::node::ask::{Ticket, Told, What};
use crate::types::{ConfChange, MemberRecord, NodeId};

/// How long the asked member may take.
const PATIENCE: Duration = Duration::from_secs(7);
/// Pause before the next try.
const PAUSE: Duration = Duration::from_millis(700);

/// What was asked for a machine.
pub(super) struct Join {
    ticket: Ticket,
    step: Step,
}

enum Step {
    /// The member that the others still know under the machine's name goes.
    Remove,
    /// The new one comes.
    Add(MemberRecord),
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
        let (step, change) = match known {
            Some(id) => (Step::Remove, ConfChange::Remove(id)),
            None => {
                let record = self.record(host);
                (Step::Add(record.clone()), ConfChange::AddLearner(record))
            }
        };
        match self.ask(door, What::Conf(change), PATIENCE) {
            Some(ticket) => {
                self.joining.insert(host, Join { ticket, step });
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
            (Step::Add(record), Ok(_)) => self.take_in(host, record.id),
            (Step::Remove, Ok(_)) => self.scheduler.after(Duration::from_millis(50), Event::Join(host)),
            (_, Err(_)) => self.scheduler.after(PAUSE, Event::Join(host)),
        }
        true
    }

    fn take_in(&mut self, host: HostId, id: NodeId) {
        let random = stream(self.seed, &format!("disk {host} {id}"));
        let (cluster, options) = (self.id, self.options.log);
        self.hosts[host].join(cluster, id, random, options);
        self.place.insert(id, host);
        self.counts.joins += 1;
        self.trace.line(self.scheduler.now(), || format!("m{host} joins as {id}"));
        self.happened.push(Happening::Joined(host));
        let life = self.hosts[host].life;
        self.scheduler.after(Duration::from_millis(20), Event::Start(host, life));
    }
}
