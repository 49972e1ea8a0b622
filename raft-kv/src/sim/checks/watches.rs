//! Watches: ordered, each event once, revisions whole, without a gap, progress notes true,
//! over crashes too when the watcher resumes behind what it has.

use super::changes::Changes;
use super::{Verdict, violation};
use crate::types::{Change, Event, EventKind, Revision, WatchBatch, WatchRequest};

/// One watcher's place.
#[derive(Debug)]
pub struct Watching {
    request: WatchRequest,
    /// Everything up to here was handed over.
    done: Revision,
    /// What was handed over of a revision that comes in parts.
    parts: Option<Change>,
}

impl Watching {
    /// A watcher that asked for everything behind `done`.
    pub fn new(request: WatchRequest, done: Revision) -> Self {
        Self { request, done, parts: None }
    }

    /// Everything up to here was handed over.
    pub fn done(&self) -> Revision {
        self.done
    }

    /// It goes on at another member, or anew: what it has of a revision that came in parts is void.
    pub fn resumed(&mut self) {
        self.parts = None;
    }

    fn wants(&self, event: &Event) -> bool {
        let filtered = match event.kind {
            EventKind::Put => self.request.no_put,
            EventKind::Delete => self.request.no_delete,
        };
        !filtered && self.request.range.contains(&event.kv.key)
    }

    /// Events of the revision that this watcher is owed.
    fn owed(&self, change: &Change) -> Vec<Event> {
        change.events.iter().filter(|event| self.wants(event)).cloned().collect()
    }

    /// The first revision behind what it has that it is owed something of, up to `to`.
    fn next_owed(&self, changes: &Changes, to: Revision) -> Option<Revision> {
        (self.done + 1..=to)
            .find(|revision| changes.get(*revision).is_some_and(|change| !self.owed(change).is_empty()))
    }

    /// It was handed a batch. `compacted` is the highest revision anybody asked to compact at.
    pub fn handed(&mut self, changes: &Changes, batch: &WatchBatch, compacted: Revision) -> Verdict {
        match batch {
            WatchBatch::Part(part) => match &mut self.parts {
                Some(parts) if parts.revision == part.revision => {
                    parts.events.extend(part.events.iter().cloned());
                    return Ok(());
                }
                Some(parts) => {
                    let why =
                        format!("a part of {} comes before the rest of {}", part.revision, parts.revision);
                    return violation("watch", why);
                }
                none => {
                    *none = Some(part.clone());
                    return Ok(());
                }
            },
            WatchBatch::Changes(handed) => {
                let rest = handed.first().map(|first| first.revision);
                let mut handed = handed.clone();
                if let Some(mut parts) = self.parts.take() {
                    if rest == Some(parts.revision) {
                        parts.events.extend(handed.remove(0).events);
                    }
                    handed.insert(0, parts);
                }
                return handed.iter().try_for_each(|change| self.change(changes, change, compacted));
            }
            WatchBatch::Progress(_) => {
                if let Some(parts) = self.parts.take() {
                    self.change(changes, &parts, compacted)?;
                }
            }
            WatchBatch::Compacted(_) => {}
        }
        match batch {
            WatchBatch::Changes(_) | WatchBatch::Part(_) => unreachable!("they were dealt with"),
            WatchBatch::Progress(revision) => match self.next_owed(changes, *revision) {
                None => {
                    self.done = self.done.max(*revision);
                    Ok(())
                }
                Some(owed) => violation(
                    "watch",
                    format!("progress up to {revision} is told, but revision {owed} was not handed over"),
                ),
            },
            WatchBatch::Compacted(revision) if *revision <= compacted => Ok(()),
            WatchBatch::Compacted(revision) => violation(
                "watch",
                format!("told that {revision} is compacted, but nobody compacted beyond {compacted}"),
            ),
        }
    }

    fn change(&mut self, changes: &Changes, handed: &Change, compacted: Revision) -> Verdict {
        let revision = handed.revision;
        if revision <= self.done {
            return violation("watch", format!("revision {revision} comes after {}", self.done));
        }
        if let Some(owed) = self.next_owed(changes, revision - 1) {
            return violation("watch", format!("revision {revision} comes, but {owed} was left out"));
        }
        let Some(change) = changes.get(revision) else {
            return violation("watch", format!("revision {revision} comes, but nobody has made it"));
        };
        let mut owed = self.owed(change);
        for (event, handed) in owed.iter_mut().zip(&handed.events) {
            // At and below the mark of a compaction, what was before is not known any more.
            if !self.request.prev_kv || (handed.prev.is_none() && revision <= compacted) {
                event.prev = None;
            }
        }
        if owed != handed.events {
            return violation(
                "watch",
                format!("revision {revision} is {:?}, but should be {owed:?}", handed.events),
            );
        }
        self.done = revision;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::checks::changes::tests::change;
    use crate::types::KeyRange;

    fn check(batches: &[WatchBatch]) -> Verdict {
        let mut changes = Changes::default();
        for (revision, keys) in [(2, &["a"][..]), (3, &["b"]), (4, &["a", "b"]), (5, &["a"])] {
            changes.made(&change(revision, keys), std::time::Duration::ZERO).unwrap();
        }
        let request = WatchRequest { range: KeyRange::key("a"), ..WatchRequest::default() };
        let mut watching = Watching::new(request, 1);
        batches.iter().try_for_each(|batch| watching.handed(&changes, batch, 3))
    }

    fn handed(revisions: &[Revision]) -> WatchBatch {
        WatchBatch::Changes(revisions.iter().map(|revision| change(*revision, &["a"])).collect())
    }

    #[test]
    fn good_histories_pass() {
        check(&[handed(&[2]), handed(&[4, 5])]).unwrap();
        check(&[handed(&[2]), WatchBatch::Progress(3), handed(&[4])]).unwrap();
        check(&[WatchBatch::Compacted(3)]).unwrap();
    }

    #[test]
    fn parts_are_void_where_it_goes_on_elsewhere() {
        let mut changes = Changes::default();
        changes.made(&change(2, &["a", "b"]), std::time::Duration::ZERO).unwrap();
        let part = |key| WatchBatch::Part(change(2, &[key]));
        let request = WatchRequest { range: KeyRange::all(), ..WatchRequest::default() };
        let mut watching = Watching::new(request, 1);
        watching.handed(&changes, &part("a"), -1).unwrap();
        watching.resumed();
        watching.handed(&changes, &part("a"), -1).unwrap();
        watching.handed(&changes, &WatchBatch::Changes(vec![change(2, &["b"])]), -1).unwrap();
        assert_eq!(watching.done(), 2);
    }

    #[test]
    fn bad_histories_are_found() {
        let torn = WatchBatch::Changes(vec![change(2, &["a", "b"])]);
        for bad in [
            vec![handed(&[4])],
            vec![handed(&[2, 2])],
            vec![handed(&[2, 5])],
            vec![handed(&[4, 2])],
            vec![torn],
            vec![handed(&[2]), WatchBatch::Progress(4)],
            vec![handed(&[2, 4, 5, 6])],
            vec![WatchBatch::Compacted(4)],
        ] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }
}
