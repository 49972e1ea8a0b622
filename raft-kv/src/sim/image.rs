//! The fault "an old image of a whole disk is put back": log, marker and state of one member as they were a
//! while ago, right about an earlier time. The roll call must notice, as long as somebody is there who knows.
//!
//! It must put nothing back that nobody could notice: where every member that saw the later promises has been
//! started since, none is left to tell.

use super::cluster::{Cluster, HostId};
use super::disk::DiskImage;
use super::rot::Rot;
use crate::machine::{self, MemoryStore, Store};
use crate::types::{Index, NodeId, Term};

/// A member's disk as it was.
pub(super) struct OldImage {
    id: NodeId,
    disk: DiskImage,
    store: MemoryStore,
    rot: Rot,
    lives: Vec<u64>,
}

/// What the others know of a member whose disk was put back.
#[derive(Clone, Debug)]
pub(super) struct Later {
    /// Its newest run, and its last promise.
    run: u64,
    promised: (Term, Index),
    lives: Vec<u64>,
}

impl Cluster {
    fn lives_but(&self, host: HostId) -> Vec<u64> {
        let others = self.hosts().iter().enumerate().filter(|(other, _)| *other != host);
        others.map(|(_, other)| other.life).collect()
    }

    /// The member's disk as it is seen now.
    pub(super) fn image_of(&self, host: HostId) -> OldImage {
        let member = &self.hosts()[host];
        OldImage {
            id: member.id,
            disk: member.disk.image(),
            store: member.store.snapshot(),
            rot: member.rot.copy(),
            lives: self.lives_but(host),
        }
    }

    /// Puts an image back if the others can tell that it is old, and starts the member from it. With
    /// `restart` the others are stopped and started first, so that only what is recorded is left.
    pub(super) fn put_back(&mut self, host: HostId, image: &OldImage, restart: bool) -> bool {
        let now = self.now();
        let others: Vec<HostId> = (0..self.hosts().len()).filter(|other| *other != host).collect();
        let ready = |other: &HostId| self.hosts()[*other].runs() && !self.hosts()[*other].is_paused(now);
        if self.hosts()[host].id != image.id || !others.iter().all(ready) {
            return false;
        }
        let recorded = |other: &HostId| {
            let runs = self.hosts()[*other].store.view(machine::read::runs).unwrap_or_default();
            runs.iter().find(|(id, _)| *id == image.id).map_or(0, |(_, run)| run.number)
        };
        let run = others.iter().map(recorded).min().unwrap_or(0);
        let seen = others.iter().filter_map(|other| self.hosts()[*other].replica());
        let promised = seen.map(|replica| replica.promise_of(image.id)).max().unwrap_or_default();
        let later = match restart {
            true => Later { run, promised: (0, 0), lives: Vec::new() },
            false if self.lives_but(host) != image.lives => return false,
            false => Later { run, promised, lives: image.lives.clone() },
        };
        if restart {
            for other in others {
                self.stop(other);
            }
        }
        self.crash(host, true);
        let member = &mut self.hosts_mut()[host];
        member.hurt = true;
        member.disk = member.disk.restore(&image.disk);
        member.store.replace(&image.store);
        member.rot.replace(&image.rot);
        member.later = Some(later);
        true
    }

    /// Whether the member began from an old image that the others could tell by, and has not been turned away.
    pub(super) fn runs_old_image(&self, id: NodeId) -> bool {
        let Some(host) = self.running(id) else { return false };
        let member = &self.hosts()[host];
        let (Some(later), Some(replica)) = (&member.later, member.replica()) else { return false };
        let known = later.lives.is_empty() || later.lives == self.lives_but(host);
        let (run, begun) = replica.began();
        known && (run < later.run || begun < later.promised)
    }
}
