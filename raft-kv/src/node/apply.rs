//! Apply: committed entries go through the state machine, in order, many in one batch, and what
//! they did comes out for the loop and for watchers.
//!
//! Nothing is answered and no watcher sees anything before the batch is in the store.

use crate::error::StorageFailed;
use crate::limits::ROLLBACK_STEP_KEYS;
use crate::machine::{self, Applying, LeaseChange, Machine, Outcome, Store};
use crate::types::{Change, Committed, LeaseId, Member, NodeId, Revision, Room, Run, SnapshotMeta};

/// What the loop hands to apply, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Work {
    /// Committed entries.
    Entries(Vec<Committed>),
    /// A received snapshot takes the place of the whole state.
    Install(SnapshotMeta),
}

/// What the loop is told back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Where the state is now.
    pub applied: SnapshotMeta,
    /// The store's revision now.
    pub revision: Revision,
    /// Whether a snapshot was installed by this work.
    pub installed: bool,
    /// Revisions whose events are to be read from the store: see [`machine::Applied::large`].
    pub large: Vec<Revision>,
    /// Whether the revision was raised: see [`machine::Applied::raised`].
    pub raised: bool,
    /// Outcomes of requests that this member's callers wait for.
    pub outcomes: Vec<Outcome>,
    /// What happened to leases.
    pub leases: Vec<LeaseChange>,
    /// All leases, where the whole state is new.
    pub all_leases: Option<Vec<(LeaseId, i64)>>,
    /// All members, where they changed.
    pub members: Option<Vec<Member>>,
    /// The newest run seen of each member, where it changed or the whole state is new.
    pub runs: Option<Vec<(NodeId, Run)>>,
    /// The revision of users and roles and whether they count, where they changed or the whole
    /// state is new.
    pub auth: Option<(u64, bool)>,
    /// Whether what is believed changed, or the whole state is new.
    pub trust: bool,
    /// Whether the log up to here is to be given up: see [`machine::Applied::forget_log`].
    pub forget_log: bool,
    /// Whether there is room for what takes space.
    pub room: Room,
    /// Bytes of entries applied.
    pub bytes: usize,
}

/// The state machine and its store, and whose callers it answers.
#[derive(Debug)]
pub struct Applier<S: Store> {
    store: S,
    machine: Option<Machine<S>>,
    /// Whether an alarm forbids what takes space.
    short: bool,
    me: NodeId,
    boot: u64,
    step_keys: usize,
}

/// Committed entries on their way through the state machine.
#[derive(Debug)]
pub struct Under {
    work: Applying,
    bytes: usize,
}

impl Under {
    /// What came of the entries that are in the store so far.
    pub fn done(&self) -> &machine::Applied {
        self.work.done()
    }
}

impl<S: Store> Applier<S> {
    /// Opens the state in `store`, which may be empty at a member that just joined.
    pub fn open(store: S, me: NodeId, boot: u64) -> Result<Self, StorageFailed> {
        let machine = Machine::open(store.clone())?;
        let short = machine.is_some() && store.view(machine::read::short)?;
        Ok(Self { store, machine, short, me, boot, step_keys: ROLLBACK_STEP_KEYS })
    }

    /// The same, with steps of a rollback that look at so many keys: members of one cluster have the
    /// same.
    #[must_use]
    pub fn with_steps(mut self, keys: usize) -> Self {
        self.step_keys = keys;
        self.machine = self.machine.map(|machine| machine.with_steps(keys));
        self
    }

    /// What the loop has to know at start.
    pub fn start(&self) -> Result<Report, StorageFailed> {
        self.whole_state(false)
    }

    /// The store, for reading.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Where the state is; nowhere at a member that just joined.
    pub fn applied(&self) -> SnapshotMeta {
        self.machine.as_ref().map(Machine::applied).unwrap_or_default()
    }

    fn whole_state(&self, installed: bool) -> Result<Report, StorageFailed> {
        let Some(machine) = &self.machine else {
            return Ok(Report::default());
        };
        let (leases, members) =
            self.store.view(|view| (machine::read::leases(view), machine::read::members(view)));
        Ok(Report {
            applied: machine.applied(),
            revision: machine.revision(),
            installed,
            all_leases: Some(leases?),
            members: Some(members?),
            runs: Some(self.store.view(machine::read::runs)?),
            auth: Some(self.auth()?),
            room: self.room(machine),
            trust: true,
            forget_log: false,
            ..Report::default()
        })
    }

    fn room(&self, machine: &Machine<S>) -> Room {
        Room { usage: machine.usage(), short: self.short }
    }

    fn auth(&self) -> Result<(u64, bool), StorageFailed> {
        let status = self.store.view(machine::auth::status)?;
        Ok((status.revision, status.enabled))
    }

    /// Applies committed entries. Returns the report and what watchers are owed.
    pub fn entries(&mut self, entries: Vec<Committed>) -> Result<(Report, Vec<Change>), StorageFailed> {
        let mut under = self.begin(entries);
        while self.advance(&mut under)? {}
        self.finish(under)
    }

    /// Begins to apply committed entries; nothing is written before [`advance`](Self::advance).
    pub fn begin(&self, entries: Vec<Committed>) -> Under {
        let machine = self.machine.as_ref().expect("entries come after a state");
        Under { bytes: entries.iter().map(size_of_entry).sum(), work: machine.begin(entries) }
    }

    /// Writes the next batch; whether there are more. Nothing else may be done here before the last.
    pub fn advance(&mut self, under: &mut Under) -> Result<bool, StorageFailed> {
        self.machine.as_mut().expect("they were begun on a state").advance(&mut under.work)
    }

    /// After the last batch: the report and what watchers are owed.
    pub fn finish(&mut self, under: Under) -> Result<(Report, Vec<Change>), StorageFailed> {
        let Under { work, bytes } = under;
        let applied = work.into_done();
        let members =
            if applied.members_changed { Some(self.store.view(machine::read::members)?) } else { None };
        let auth = if applied.auth_changed.is_some() { Some(self.auth()?) } else { None };
        let runs = if applied.runs_changed { Some(self.store.view(machine::read::runs)?) } else { None };
        if applied.alarms_changed {
            self.short = self.store.view(machine::read::short)?;
        }
        let (trust, forget_log) = (applied.trust_changed, applied.forget_log);
        let machine = self.machine.as_ref().expect("it has just applied");
        let (me, boot) = (self.me, self.boot);
        let ours = |outcome: &Outcome| outcome.request.origin == me && outcome.request.boot == boot;
        let report = Report {
            applied: machine.applied(),
            revision: machine.revision(),
            outcomes: applied.outcomes.into_iter().filter(ours).collect(),
            leases: applied.leases,
            large: applied.large,
            raised: applied.raised,
            members,
            runs,
            auth,
            trust,
            forget_log,
            room: self.room(machine),
            bytes,
            ..Report::default()
        };
        Ok((report, applied.changes))
    }

    /// The store was replaced by a received snapshot that ends at `meta`.
    pub fn installed(&mut self, meta: &SnapshotMeta) -> Result<Report, StorageFailed> {
        let machine = Machine::open(self.store.clone())?;
        self.machine = machine.map(|machine| machine.with_steps(self.step_keys));
        self.short = self.store.view(machine::read::short)?;
        let at = self.applied();
        if at.index != meta.index || at.term != meta.term {
            return Err(StorageFailed::damaged(
                "received snapshot",
                format!(
                    "it ends at entry {} of term {}, {} of {} was announced",
                    at.index, at.term, meta.index, meta.term
                ),
            ));
        }
        self.whole_state(true)
    }

    /// The oldest revision that can be read; `None` where there is no state yet.
    pub fn compacted(&self) -> Option<Revision> {
        self.machine.as_ref().map(Machine::compacted)
    }

    /// Removes a bounded number of versions that compaction gave up; says whether there are more.
    pub fn collect(&mut self) -> Result<bool, StorageFailed> {
        self.machine.as_mut().map_or(Ok(false), Machine::collect)
    }
}

pub(super) fn size_of_entry(entry: &Committed) -> usize {
    match &entry.payload {
        crate::types::Payload::Proposals(bytes) => bytes.len() + 32,
        crate::types::Payload::Config { .. } => 256,
    }
}
