//! What clients read of a member's state, and what must hold of it at once: a point's revision is readable,
//! what is half done is not seen, and who knows of damage answers nothing.

use bytes::Bytes;

use super::checks::history::{Asked, Outcome};
use super::checks::{Verdict, Violation, violation};
use super::cluster::{Cluster, HostId};
use super::requests::KEYS;
use super::workload::Workload;
use crate::error::{Error, Refusal, StorageFailed};
use crate::machine::{self, Read};
use crate::types::{KeyRange, KeyValue, PointDiffRequest, PointList, RangeRequest, RangeResponse, Revision};

impl Workload {
    pub(super) fn read(&mut self, cluster: &Cluster, host: HostId, place: usize) -> Verdict {
        let condemned = cluster.hosts()[host].is_condemned();
        let outcome = match self.history[place].asked.clone() {
            Asked::Range(request) => self.read_range(cluster, host, &request)?,
            Asked::Points => self.read_points(cluster, host),
            Asked::Diff(request) => self.read_difference(cluster, host, &request)?,
            Asked::Command(_) | Asked::KeepAlive(_) => unreachable!("it reads"),
        };
        self.settle(cluster, place, outcome);
        if condemned && self.history[place].is_ok() {
            let detail = format!("m{host} knows of damage, and answers {:?}", self.history[place]);
            return violation("damage is never served", detail);
        }
        Ok(())
    }

    pub(super) fn read_points(&mut self, cluster: &Cluster, host: HostId) -> Outcome {
        let found = whole(cluster, host, |view| {
            let (points, schedules) = (machine::read::points(view)?, machine::read::schedules(view)?);
            let (applied, revision) = (machine::read::applied(view)?, machine::read::current_revision(view)?);
            Ok((revision, applied.index, PointList { points, schedules }))
        });
        let Some((revision, index, list)) = found else { return Outcome::NotDone };
        self.surveyor.listed(&list);
        Outcome::Listed { revision, index, list }
    }

    pub(super) fn read_difference(
        &mut self,
        cluster: &Cluster,
        host: HostId,
        request: &PointDiffRequest,
    ) -> Result<Outcome, Violation> {
        let found = whole(cluster, host, |view| {
            let (page, named) =
                (machine::read::point_diff(view, request)?, machine::read::point(view, &request.point)?);
            Ok((page, named, machine::read::applied(view)?, machine::read::leases(view)?))
        });
        Ok(match found {
            Some((Ok(page), _, applied, leases)) => {
                self.surveyor.paged(request, &page);
                let living = leases.into_iter().map(|(id, _)| id).collect();
                Outcome::Page { index: applied.index, page, living }
            }
            Some((Err(refusal), Some(point), ..)) if request.revision == 0 => {
                let detail = format!("what differs from {point:?} was refused: {refusal}");
                return Err(Violation::new("rollback points are readable", detail));
            }
            Some((Err(refusal), ..)) => Outcome::Refused(refusal),
            None => Outcome::NotDone,
        })
    }

    pub(super) fn read_range(
        &mut self,
        cluster: &Cluster,
        host: HostId,
        request: &RangeRequest,
    ) -> Result<Outcome, Violation> {
        let found = cluster.read(host, |view| Ok(machine::read::range(view, request)));
        if let Ok(Ok(read)) = &found {
            self.note_points(cluster, host, request, read)?;
        }
        let outcome = match found {
            Ok(Ok(Ok((revision, response)))) => {
                if request.revision == 0
                    && request.range.is_single()
                    && !request.keys_only
                    && !request.count_only
                {
                    self.note(&request.range.key, response.kvs.first());
                }
                Outcome::Read(revision, response)
            }
            Ok(Ok(Err(refusal))) => Outcome::Refused(refusal),
            Ok(Err(_)) | Err(_) => Outcome::NotDone,
        };
        Ok(outcome)
    }

    /// A point's revision can be read, whatever is compacted.
    pub(super) fn note_points(
        &mut self,
        cluster: &Cluster,
        host: HostId,
        request: &RangeRequest,
        read: &Result<(Revision, RangeResponse), Refusal>,
    ) -> Verdict {
        let state = whole(cluster, host, |view| {
            let (half, compacted) = (machine::read::half_done(view)?, machine::read::compacted(view)?);
            let below = request.revision > 0 && request.revision < compacted;
            let named =
                below && machine::read::points(view)?.iter().any(|point| point.revision == request.revision);
            Ok((half, compacted, named))
        });
        let Some((half, compacted, named)) = state else { return Ok(()) };
        if half {
            self.surveyor.count("reads while a rollback was half done");
        }
        if request.revision <= 0 || request.revision >= compacted {
            return Ok(());
        }
        match read {
            Ok(_) if named => {
                self.surveyor.count("reads at points below the compaction");
                Ok(())
            }
            Err(Refusal::Compacted { .. }) if !named => Ok(()),
            _ => {
                let detail =
                    format!("{request:?} below {compacted}, a point there: {named}, was told {read:?}");
                violation("rollback points are readable", detail)
            }
        }
    }

    /// Looks at a member that has a rollback half done: it must seem not to have begun.
    pub(super) fn peek(&mut self, cluster: &Cluster, host: HostId) -> Verdict {
        if !self.surveyor.looks() {
            return Ok(());
        }
        let request = RangeRequest { range: KeyRange::all(), serializable: true, ..RangeRequest::default() };
        let place = self.begin(cluster, Asked::Range(request.clone()));
        self.read(cluster, host, place)?;
        let Outcome::Read(revision, response) = &self.history[place].outcome else { return Ok(()) };
        let (revision, kvs) = (*revision, &response.kvs);
        let found = whole(cluster, host, |view| {
            let leases = machine::read::leases(view)?;
            let keys: Result<Vec<_>, StorageFailed> =
                leases.iter().map(|(id, _)| Ok((*id, machine::read::lease_keys(view, *id)?))).collect();
            Ok((keys?, machine::read::history(view, revision + 1, revision + 1, usize::MAX)?))
        });
        let Some((leases, later)) = found else { return Ok(()) };
        for (id, keys) in leases {
            let right: Vec<_> = kvs.iter().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect();
            if keys != right {
                let detail = format!("m{host} at {revision}: lease {id} ends {keys:?}, should end {right:?}");
                return violation("a rollback is whole", detail);
            }
        }
        match later {
            Ok(changes) if changes.is_empty() => Ok(()),
            other => violation("a rollback is whole", format!("m{host} at {revision} tells {other:?}")),
        }
    }

    /// Somebody reads at a member that has found its state damaged.
    pub(super) fn look_at_damage(&mut self, cluster: &Cluster, host: HostId) -> Verdict {
        for key in 0..KEYS {
            let range = KeyRange::key(format!("k{key}"));
            let request = RangeRequest { range, serializable: true, ..RangeRequest::default() };
            let place = self.begin(cluster, Asked::Range(request));
            self.read(cluster, host, place)?;
        }
        Ok(())
    }

    pub(super) fn note(&mut self, key: &Bytes, kv: Option<&KeyValue>) {
        match kv {
            Some(kv) => self.known.insert(key.clone(), kv.clone()),
            None => self.known.remove(key),
        };
    }
}

/// Reads a member's state; `None` where it has none.
fn whole<R>(
    cluster: &Cluster,
    host: HostId,
    read: impl FnOnce(&dyn Read) -> Result<R, StorageFailed>,
) -> Option<R> {
    let read = |view: &dyn Read| read(view).map_err(|failed| Error::Stopped(failed.to_string()));
    cluster.read(host, read).ok()
}
