//! Hands everything that happens in a cluster to the checks.

use super::checks::changes::Changes;
use super::checks::commits::Commits;
use super::checks::elections::Elections;
use super::checks::logs::Logs;
use super::checks::points::Points;
use super::checks::space::Space;
use super::checks::states::States;
use super::checks::trust::{Standpoint, Trust};
use super::checks::{Verdict, Violation, promises};
use super::cluster::{COMPARE_EVERY, Cluster, Happening, HostId};
use super::trust::Believed;
use crate::codec::Wire;
use crate::machine::command::Command;
use crate::machine::{self, LeaseChange, Proposal, Store};
use crate::raft::{Leadership, LogView};
use crate::sim::Promise;
use crate::types::{Change, Committed, LeaseId, NodeId, Payload, SnapshotMeta, Term, TrustChange};

/// What all checks have seen.
#[derive(Default)]
pub(super) struct Judge {
    pub(super) elections: Elections,
    pub(super) changes: Changes,
    logs: Logs,
    commits: Commits,
    states: States,
    /// Leases that a leader's committed decision ends.
    expiring: Vec<LeaseId>,
    /// Ends of leases, for the check on leases: which, and whether by the clock.
    pub(super) ended: Vec<(LeaseId, bool)>,
    promised: Vec<Promise>,
    pub(super) trust: Trust,
    pub(super) points: Points,
    pub(super) space: Space,
    halves: u64,
}

impl Judge {
    /// Judges what happened in one step, apart from what clients and watchers saw.
    pub(super) fn judge(&mut self, cluster: &Cluster, happening: &Happening) -> Verdict {
        match happening {
            Happening::Started(host) => self.started(cluster, *host),
            Happening::Stopped(host, _) => {
                self.promised.resize(cluster.hosts().len(), Promise::default());
                self.promised[*host] = cluster.hosts()[*host].promise();
                Ok(())
            }
            Happening::Joined(host) => {
                self.promised.resize(cluster.hosts().len(), Promise::default());
                self.promised[*host] = Promise::default();
                Ok(())
            }
            Happening::OldPromise(id) => promises::old(*id),
            Happening::Leadership(host, leadership) => self.leadership(cluster, *host, leadership),
            Happening::Voted { voter, term, candidate } => self.elections.voted(*voter, *term, *candidate),
            Happening::Wrote(host) => self.scan(cluster, *host),
            Happening::Committed(host, entries) => self.committed(cluster, *host, entries),
            Happening::Applied { host, at, revision, changes, leases, outcomes, living, .. } => {
                self.points.applied(at.index, outcomes, living.as_ref())?;
                self.space.applied(at.index, outcomes, changes)?;
                self.applied(cluster, *host, at, *revision)?;
                self.changed(cluster, changes, leases)
            }
            Happening::Trusted(host) => self.trusted(cluster, *host),
            Happening::Half(host) => {
                // It reads all keys: not at every step.
                self.halves += 1;
                if self.halves.is_multiple_of(8) { self.checksum(cluster, *host) } else { Ok(()) }
            }
            Happening::Condemned(_)
            | Happening::Answer(..)
            | Happening::Watched(..)
            | Happening::Timer(_) => Ok(()),
        }
    }

    fn started(&mut self, cluster: &Cluster, host: HostId) -> Verdict {
        self.states.started(host);
        self.logs.forget(host);
        self.scan(cluster, host)?;
        let promised = self.promised.get(host).copied().unwrap_or_default();
        match cluster.hosts()[host].log_end() {
            // A disk that was put back as it was earlier has lost some: the roll call has to notice.
            Some(_) if cluster.hosts()[host].later.is_some() => Ok(()),
            Some(end) => promises::kept(host, promised, end),
            None => Ok(()),
        }
    }

    fn scan(&mut self, cluster: &Cluster, host: HostId) -> Verdict {
        let Some(replica) = cluster.hosts()[host].replica() else { return Ok(()) };
        match self.logs.scan(host, replica.log()) {
            Ok(verdict) => verdict,
            // A damaged disk may fail to read; its member finds that out by itself.
            Err(_) if cluster.hosts()[host].is_hurt() => Ok(()),
            Err(failed) => Err(Violation::new("healthy disks work", failed.to_string())),
        }
    }

    fn leadership(&mut self, cluster: &Cluster, host: HostId, leadership: &Leadership) -> Verdict {
        let id = cluster.hosts()[host].id();
        if leadership.leader != Some(id) {
            return Ok(());
        }
        self.elections.leads(leadership.term, id)?;
        self.complete(cluster, host, leadership.term)
    }

    fn complete(&self, cluster: &Cluster, host: HostId, term: Term) -> Verdict {
        let Some(replica) = cluster.hosts()[host].replica() else { return Ok(()) };
        let log = replica.log();
        self.commits.leader(term, log.last_index(), |index| log.term(index).ok().flatten())
    }

    fn committed(&mut self, cluster: &Cluster, host: HostId, entries: &[Committed]) -> Verdict {
        let Some(replica) = cluster.hosts()[host].replica() else { return Ok(()) };
        let by = replica.leadership().term;
        let mut news = false;
        for entry in entries {
            if self.commits.committed(entry, by)? {
                news = true;
                self.note_asked(entry);
            }
        }
        if !news {
            return Ok(());
        }
        for (host, member) in cluster.hosts().iter().enumerate() {
            let leads = member.replica().map(|replica| replica.leadership());
            if let Some(leadership) = leads.filter(|it| it.leader == Some(member.id()) && it.term > by) {
                self.complete(cluster, host, leadership.term)?;
            }
        }
        Ok(())
    }

    fn note_asked(&mut self, entry: &Committed) {
        let bytes = match &entry.payload {
            Payload::Proposals(bytes) => bytes,
            Payload::Config { change, after, .. } => {
                return self.space.configured(entry.index, change, after);
            }
        };
        let proposals = Vec::<Proposal>::from_bytes(bytes.clone()).unwrap_or_default();
        for proposal in proposals {
            self.points.committed(entry.index, &proposal);
            self.space.committed(entry.index, &proposal);
            match proposal.command {
                Command::LeaseExpire { ids, .. } => self.expiring.extend(ids),
                Command::Trust(TrustChange::Settle { id, now, .. }) => self.trust.settles(id, now),
                _ => {}
            }
        }
    }

    fn trusted(&mut self, cluster: &Cluster, host: HostId) -> Verdict {
        let member = &cluster.hosts()[host];
        let (Some(at), Some(trusted)) = (member.applied(), cluster.trusted(host)) else { return Ok(()) };
        let nodes = member.store().view(machine::read::nodes).map_err(broken)?;
        self.trust.holds(at.index, &trusted, &nodes, &at.conf)
    }

    /// Looks who lets whom in now.
    pub(super) fn probe(&mut self, cluster: &mut Cluster) -> Verdict {
        let now = cluster.now();
        let (mut places, mut members): (Vec<HostId>, Vec<Standpoint>) = (Vec::new(), Vec::new());
        for (host, member) in cluster.hosts().iter().enumerate() {
            // Who was removed and has not heard of it yet is refused, and shall be.
            let removed = cluster.hosts().iter().any(|other| other.removed.contains(&member.id()));
            let Some(papers) = member.papers().filter(|_| member.is_member() && !removed) else { continue };
            let state = cluster.trusted(host).map(|trusted| Believed::of(&trusted, cluster.wall(host)));
            members.push(Standpoint {
                id: member.id(),
                up: member.runs() && !member.is_paused(now),
                leaf: papers.leaf,
                believed: papers.believed.clone(),
                state,
                applied: member.applied().unwrap_or_default().index,
            });
            places.push(host);
        }
        let cut: Vec<(NodeId, NodeId)> = {
            let ids: Vec<NodeId> = members.iter().map(|member| member.id).collect();
            let all = ids.iter().flat_map(|one| ids.iter().map(|other| (*one, *other))).collect::<Vec<_>>();
            let network = cluster.network();
            all.into_iter().filter(|(one, other)| network.is_cut(*one, *other)).collect()
        };
        let cluster = &*cluster;
        self.trust.stand(
            now,
            &members,
            |one, other| cut.contains(&(one, other)),
            |one, other| cluster.refusal(places[one], places[other]),
        )?;
        let open: Vec<_> = cluster.links().collect();
        self.trust.only_open(&open.iter().map(|(ends, _)| *ends).collect());
        for (ends, shown) in open {
            let end = |id: NodeId| members.iter().find(|member| member.id == id);
            self.trust.open(now, ends, true, end(ends.0), &shown.1)?;
            self.trust.open(now, ends, false, end(ends.1), &shown.0)?;
        }
        self.waits(cluster)
    }

    fn waits(&mut self, cluster: &Cluster) -> Verdict {
        let Some(leader) = cluster.leader() else { return Ok(()) };
        let (store, now) = (cluster.hosts()[leader].store(), cluster.wall(leader));
        match store.view(|view| machine::read::verdict(view, now)).map_err(broken)? {
            machine::Verdict::Wait { late, stuck } => {
                let known =
                    |id| store.view(|view| machine::read::node(view, id)).is_ok_and(|it| it.is_some());
                self.trust.waits(&late, stuck, known)
            }
            _ => Ok(()),
        }
    }

    fn applied(&mut self, cluster: &Cluster, host: HostId, at: &SnapshotMeta, revision: i64) -> Verdict {
        self.states.applied(host, at.index, revision)?;
        // One that met damage where it published has ended at once, and forgotten what was not flushed.
        let ended = !cluster.hosts()[host].runs();
        if at.index.is_multiple_of(COMPARE_EVERY) && !ended {
            let hash = cluster.state_hash(host);
            let hash = hash.map_err(|failed| Violation::new("healthy disks work", failed.to_string()))?;
            self.states.hash(host, at.index, hash)?;
            let look =
                |view: &dyn machine::Read| Ok((machine::read::usage(view)?, machine::read::recount(view)?));
            let (noted, found) = cluster.hosts()[host].store().view(look).map_err(broken)?;
            if noted != found {
                let detail =
                    format!("m{host} has noted {noted:?} after entry {}, there is {found:?}", at.index);
                return Err(Violation::new("live bytes are counted", detail));
            }
            self.checksum(cluster, host)?;
        }
        Ok(())
    }

    /// What a member says of its keys to whoever compares members: it must not show what is half done.
    fn checksum(&mut self, cluster: &Cluster, host: HostId) -> Verdict {
        let sum =
            cluster.hosts()[host].store().view(|view| machine::read::hash_kv(view, 0)).map_err(broken)?;
        let sum = sum.map_err(|refusal| Violation::new("equal states", refusal.to_string()))?;
        self.states.sum(host, (sum.revision, sum.compacted), sum.hash)
    }

    fn changed(&mut self, cluster: &Cluster, changes: &[Change], leases: &[LeaseChange]) -> Verdict {
        for change in changes {
            self.changes.made(change, cluster.now())?;
        }
        for lease in leases {
            if let LeaseChange::Ended { id } = lease {
                self.ended.push((*id, self.expiring.contains(id)));
            }
        }
        Ok(())
    }

    /// At the end all members have applied the same and hold the same.
    pub(super) fn at_end(&mut self, cluster: &Cluster) -> Verdict {
        let mut first = None;
        for (host, member) in cluster.hosts().iter().enumerate() {
            let at = member.applied().map(|at| at.index);
            let hash = cluster.state_hash(host).ok();
            let (index, sum) = *first.get_or_insert((at, hash));
            if (index, sum) != (at, hash) {
                let detail =
                    format!("m0 has applied {index:?} with hash {sum:x?}, m{host} {at:?} with {hash:x?}");
                return Err(Violation::new("members converge", detail));
            }
        }
        Ok(())
    }
}

fn broken(failed: crate::error::StorageFailed) -> Violation {
    Violation::new("healthy disks work", failed.to_string())
}
