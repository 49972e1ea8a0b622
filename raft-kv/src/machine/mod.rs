//! What every member computes from the log: the multi-version key space, transactions, leases,
//! compaction, members and tokens.
//!
//! Pure: no clock, no chance, no hash order. The same entries give the same bytes on every member.
//! [`Machine`] is the only writer of its store; [`read`] is for everyone else.

mod alarm;
pub mod auth;
pub mod command;
mod compact;
#[cfg(any(test, feature = "sim"))]
pub mod conformance;
pub mod count;
mod draft;
mod epoch;
mod format;
mod genesis;
mod hash;
mod history;
mod kv;
mod lease;
mod members;
#[cfg(any(test, feature = "sim"))]
mod memory;
mod once;
mod overlap;
mod overlay;
mod points;
mod quota;
mod raise;
mod range;
pub mod read;
mod restore;
mod runs;
mod stop;
pub mod store;
#[cfg(test)]
pub(crate) mod tests;
mod trust;
mod txn;
pub mod validate;
mod values;
mod versions;

pub use command::{Answer, Command, Outcome, Proposal};
pub use draft::LeaseChange;
pub use epoch::NewEpoch;
pub use genesis::Genesis;
#[cfg(any(test, feature = "sim"))]
pub use memory::MemoryStore;
pub use restore::{Restore, Restored, check_raise};
pub use stop::Settled;
pub use store::{Batch, Read, Store, Table};
pub use trust::{SealStep, Verdict};
pub use validate::{validate, validate_range};

use std::sync::Arc;

use bytes::Bytes;

use crate::codec::Wire;
use crate::error::{Refusal, StorageFailed};
use crate::limits::{DEFAULT_QUOTA_BYTES, ROLLBACK_STEP_KEYS};
use crate::planted::crash::{self, Point};
use crate::types::{
    Caller, Change, ClusterId, Committed, ConfState, Index, Payload, Revision, SnapshotMeta, Term, Trusted,
    Usage,
};
use compact::Collected;
use draft::Draft;
use format::{FORMAT, member_key, meta};
use overlay::Overlay;
use quota::Used;
use range::Budget;
use stop::{Stop, settle};

/// The state machine over its store.
///
/// Invariant: what is held here is what the store's `Meta` says; both change in the same batch.
#[derive(Debug)]
pub struct Machine<S: Store> {
    store: S,
    applied: SnapshotMeta,
    revision: Revision,
    compacted: Revision,
    cluster: ClusterId,
    /// The revisions that rollback points name, ascending.
    pins: Arc<Vec<Revision>>,
    /// What the live keys take.
    used: Used,
    /// What they may take, in bytes.
    quota: Option<u64>,
    /// Keys that one step of a rollback looks at.
    step_keys: usize,
}

/// What came of a batch of entries, to be published now that it is stored.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    /// One for each proposal, in order; membership changes that someone waits for included.
    pub outcomes: Vec<Outcome>,
    /// The revisions made, ascending; every event with what was before.
    pub changes: Vec<Change>,
    /// Whether members or their records changed.
    pub members_changed: bool,
    /// Leases that began or ended, in order.
    pub leases: Vec<LeaseChange>,
    /// Revisions that rollbacks of more events made than are held at once: `changes` lacks them, and
    /// what is owed of them has to be read from the store.
    pub large: Vec<Revision>,
    /// Whether the revision was raised past some that were never made: `changes` has a gap then,
    /// and what is owed has to be read from the store.
    pub raised: bool,
    /// The revision of users and roles, if they changed.
    pub auth_changed: Option<u64>,
    /// Whether what is believed changed: roots, nodes, tokens.
    pub trust_changed: bool,
    /// Whether alarms were raised or ended.
    pub alarms_changed: bool,
    /// Whether another run of a member was seen, or one was forgotten.
    pub runs_changed: bool,
    /// Whether the log up to here should be given up soon: it has what was sealed with a key that is.
    pub forget_log: bool,
    /// The last applied index.
    pub last: Index,
}

impl<S: Store> Machine<S> {
    /// Writes the first state of a new cluster to an empty store and flushes it: index 1 of term
    /// 1 is applied, the first member is the only voter, the revision is 1.
    ///
    /// # Panics
    /// If the store holds a state already, or the genesis names no cluster or member.
    pub fn create(store: &S, genesis: &Genesis) -> Result<(), StorageFailed> {
        assert!(genesis.cluster.0 != 0 && genesis.member.id.0 != 0, "a cluster and its member have ids");
        let held = store.view(|view| view.get(Table::Meta, meta::FORMAT))?;
        assert!(held.is_none(), "a new cluster starts on an empty store");
        let conf = ConfState { voters: vec![genesis.member.id], ..ConfState::default() };
        let applied = SnapshotMeta { index: 1, term: 1, conf };
        let roots = vec![genesis.authority.clone()];
        let trusted = Trusted { epoch: 1, roots, ..Trusted::default() };
        let node = &genesis.node;
        let meta = |key: &'static [u8], value: Bytes| (Table::Meta, Bytes::from_static(key), Some(value));
        let mut writes = vec![
            meta(meta::FORMAT, FORMAT.to_bytes()),
            meta(meta::APPLIED, applied.to_bytes()),
            meta(meta::REVISION, 1i64.to_bytes()),
            meta(meta::COMPACTED, compact::NEVER.to_bytes()),
            meta(meta::COLLECTED, Collected::default().to_bytes()),
            meta(meta::CLUSTER, genesis.cluster.to_bytes()),
            meta(meta::USED, Used::default().to_bytes()),
            meta(meta::QUOTA, Some(DEFAULT_QUOTA_BYTES).to_bytes()),
            (Table::Members, member_key(genesis.member.id), Some(genesis.member.to_bytes())),
            (Table::Trust, trust::trusted_key(), Some(trusted.to_bytes())),
            (Table::Trust, trust::node_key(node.id), Some(node.to_bytes())),
            (Table::Trust, trust::ends_key(node.ends, node.id), Some(().to_bytes())),
        ];
        for (id, token) in &genesis.tokens {
            writes.push((Table::Trust, trust::token_key(id), Some(token.to_bytes())));
        }
        store.write(Batch { writes })?;
        store.flush()
    }

    /// The machine on what the store holds; `None` for a store that holds nothing yet. A store
    /// of a newer format than this version's is not touched.
    pub fn open(store: S) -> Result<Option<Self>, StorageFailed> {
        let held = store.view(|view| -> Result<_, StorageFailed> {
            if !read::holds_known(view)? {
                return Ok(None);
            }
            Ok(Some((
                read::applied(view)?,
                read::current_revision(view)?,
                read::compacted(view)?,
                read::cluster(view)?,
                points::pins(view)?,
                quota::held(view)?,
            )))
        })?;
        Ok(held.map(|(applied, revision, compacted, cluster, pins, (used, quota))| Self {
            store,
            applied,
            revision,
            compacted,
            cluster,
            pins: Arc::new(pins),
            used,
            quota,
            step_keys: ROLLBACK_STEP_KEYS,
        }))
    }

    /// The same machine, with steps of a rollback that look at so many keys: members of one cluster
    /// have the same.
    #[must_use]
    pub fn with_steps(mut self, keys: usize) -> Self {
        self.step_keys = keys;
        self
    }

    /// The store, for views.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The last applied entry and the configuration there.
    pub fn applied(&self) -> SnapshotMeta {
        self.applied.clone()
    }

    /// The current revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The oldest revision that can be read; -1 before the first compaction.
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// What the live keys take, and what they may.
    pub fn usage(&self) -> Usage {
        self.used.usage(self.quota)
    }

    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Applies entries in order, in batches on the store that also say what is applied. Most share
    /// one batch; an entry whose command [goes alone](Command::goes_alone) has its own, as many as it
    /// takes, and only the last of them says that it is applied: a crash in between goes on there when
    /// the entry comes again. Nothing may be published before this has returned.
    ///
    /// # Panics
    /// If the entries do not follow directly on what is applied, or one holds no proposals: both
    /// can only come from a bug here or in raft.
    pub fn apply(&mut self, entries: Vec<Committed>) -> Result<Applied, StorageFailed> {
        let mut work = self.begin(entries);
        while self.advance(&mut work)? {}
        Ok(work.done)
    }

    /// Begins to [`apply`](Self::apply) entries; nothing is written before [`advance`](Self::advance).
    pub fn begin(&self, entries: Vec<Committed>) -> Applying {
        let done = Applied { last: self.applied.index, ..Applied::default() };
        Applying { rest: entries.into_iter(), alone: None, done }
    }

    /// Writes the next batch of entries that were begun; whether there are more. Nothing else may be
    /// applied, removed or put in the state's place before the last.
    pub fn advance(&mut self, work: &mut Applying) -> Result<bool, StorageFailed> {
        let Some(alone) = work.alone.take() else {
            let (drafted, alone) = self.store.view(|view| self.draft(view, &mut work.rest))?;
            if drafted.applied.index != self.applied.index {
                self.take_on(drafted, &mut work.done)?;
            }
            if alone.is_some() {
                crate::crash_point!(RollbackBegins);
            }
            work.alone = alone;
            return Ok(work.alone.is_some());
        };
        match self.store.view(|view| self.step(view, &alone))? {
            Step::More(batch) => {
                crate::crash_point!(RollbackStepDrafted);
                self.store.write(batch)?;
                crate::crash_point!(RollbackStepWritten);
                if crash::is_due(Point::RollbackStepFlushed) {
                    self.store.flush()?;
                }
                crate::crash_point!(RollbackStepFlushed);
                work.alone = Some(alone);
            }
            Step::Last(drafted) => {
                crate::crash_point!(RollbackLastDrafted);
                self.take_on(*drafted, &mut work.done)?;
                crate::crash_point!(RollbackDone);
            }
        }
        Ok(true)
    }

    /// Writes a batch and, now that it is stored, adds what it did.
    fn take_on(&mut self, drafted: Drafted, all: &mut Applied) -> Result<(), StorageFailed> {
        let Drafted { batch, applied, revision, compacted, pins, used, quota, revoked, done } = drafted;
        self.store.write(batch)?;
        if revoked && !crate::planted!(RevokeInMemory) {
            // Until the log is replayed a member goes by its state: it must not let in whom it had
            // turned away before it crashed.
            self.store.flush()?;
        }
        let made = done.changes.len() + done.large.len();
        all.raised |= revision != self.revision + made as Revision;
        all.large.extend(done.large);
        all.outcomes.extend(done.outcomes);
        all.changes.extend(done.changes);
        all.members_changed |= done.members_changed;
        all.leases.extend(done.leases);
        all.auth_changed = done.auth_changed.or(all.auth_changed);
        all.trust_changed |= done.trust_changed;
        all.alarms_changed |= done.alarms_changed;
        all.runs_changed |= done.runs_changed;
        all.forget_log |= done.forget_log;
        all.last = applied.index;
        self.applied = applied;
        self.revision = revision;
        self.compacted = compacted;
        self.pins = pins;
        self.used = used;
        self.quota = quota;
        Ok(())
    }

    /// Removes up to [`limits::COMPACT_STEP_KEYS`](crate::limits::COMPACT_STEP_KEYS) versions
    /// that compaction made unreadable; whether there are more. Changes nothing that can be read.
    pub fn collect(&mut self) -> Result<bool, StorageFailed> {
        match self.store.view(|view| compact::step(view, self.compacted))? {
            Some((batch, more)) => self.store.write(batch).map(|()| more),
            None => Ok(false),
        }
    }

    fn new_draft<'a>(&self, view: &'a dyn Read) -> Draft<'a> {
        let revisions = (self.revision, self.compacted);
        let (conf, room) = (self.applied.conf.clone(), (self.used, self.quota));
        let mut draft = Draft::new(Overlay::new(view), revisions, conf, self.pins.clone(), room);
        draft.step_keys = self.step_keys;
        draft
    }

    /// Drafts entries up to one that needs batches of its own, if there is such a one.
    fn draft(
        &self,
        view: &dyn Read,
        entries: &mut dyn Iterator<Item = Committed>,
    ) -> Result<(Drafted, Option<Alone>), StorageFailed> {
        let mut draft = self.new_draft(view);
        let mut outcomes = Vec::new();
        let mut alone = None;
        let (mut index, mut term) = (self.applied.index, self.applied.term);
        for entry in entries {
            assert_eq!(entry.index, index + 1, "entries follow directly on what is applied");
            assert!(entry.term >= term, "terms never fall along the log");
            let place = (entry.index, entry.term);
            alone = apply_entry(&mut draft, entry, &mut outcomes)?;
            if alone.is_some() {
                break;
            }
            (index, term) = place;
        }
        Ok((Drafted::of(draft, index, term, outcomes), alone))
    }

    /// The next step of an entry that has batches of its own.
    fn step(&self, view: &dyn Read, alone: &Alone) -> Result<Step, StorageFailed> {
        let mut draft = self.new_draft(view);
        Ok(match apply_alone(&mut draft, alone)? {
            None => Step::More(draft.overlay.into_batch()),
            Some(outcome) => {
                let drafted = Drafted::of(draft, alone.index, alone.term, vec![outcome]);
                Step::Last(Box::new(drafted))
            }
        })
    }
}

/// Entries on their way into the store, batch by batch.
#[derive(Debug)]
pub struct Applying {
    rest: std::vec::IntoIter<Committed>,
    alone: Option<Alone>,
    done: Applied,
}

impl Applying {
    /// What came of the entries that are in the store so far.
    pub fn done(&self) -> &Applied {
        &self.done
    }

    /// What came of all of them, once [`Machine::advance`] has said that there are no more.
    pub fn into_done(self) -> Applied {
        debug_assert!(self.alone.is_none() && self.rest.len() == 0, "some are not in the store yet");
        self.done
    }
}

/// An entry whose one command needs batches of its own.
#[derive(Debug)]
struct Alone {
    index: Index,
    term: Term,
    proposal: Proposal,
}

/// A step of such an entry.
enum Step {
    More(Batch),
    Last(Box<Drafted>),
}

/// A batch that ends with whole entries, and what is so once it is stored.
struct Drafted {
    batch: Batch,
    applied: SnapshotMeta,
    revision: Revision,
    compacted: Revision,
    pins: Arc<Vec<Revision>>,
    used: Used,
    quota: Option<u64>,
    revoked: bool,
    done: Applied,
}

impl Drafted {
    fn of(mut draft: Draft, index: Index, term: Term, outcomes: Vec<Outcome>) -> Self {
        let applied = SnapshotMeta { index, term, conf: draft.conf };
        draft.overlay.put(Table::Meta, meta::APPLIED, &applied);
        draft.overlay.put(Table::Meta, meta::REVISION, &draft.revision);
        draft.overlay.put(Table::Meta, meta::USED, &draft.used);
        Self {
            applied,
            revision: draft.revision,
            compacted: draft.compacted,
            pins: draft.pins,
            used: draft.used,
            quota: draft.quota,
            revoked: draft.revoked,
            done: Applied {
                outcomes,
                changes: draft.changes,
                members_changed: draft.members_changed,
                leases: draft.leases,
                large: draft.large,
                raised: false,
                auth_changed: draft.auth_changed,
                trust_changed: draft.trust_changed,
                alarms_changed: draft.alarms_changed,
                runs_changed: draft.runs_changed,
                forget_log: draft.forget_log,
                last: index,
            },
            batch: draft.overlay.into_batch(),
        }
    }
}

/// Applies an entry, or gives it back where its command needs batches of its own.
fn apply_entry(
    draft: &mut Draft,
    entry: Committed,
    outcomes: &mut Vec<Outcome>,
) -> Result<Option<Alone>, StorageFailed> {
    match entry.payload {
        Payload::Proposals(data) if data.is_empty() => {}
        Payload::Proposals(data) => {
            let mut proposals = Vec::<Proposal>::from_bytes(data)
                .unwrap_or_else(|error| panic!("entry {} is no list of proposals: {error}", entry.index));
            if proposals.len() == 1 && proposals[0].command.goes_alone() {
                let proposal = proposals.remove(0);
                return Ok(Some(Alone { index: entry.index, term: entry.term, proposal }));
            }
            for proposal in proposals {
                outcomes.push(apply_proposal(draft, &proposal, entry.term)?);
            }
        }
        Payload::Config { change, request, after } => {
            draft.overlay.begin();
            draft.let_in.forget();
            // Whose alarms count depends on who votes.
            (draft.alarms, draft.alarms_changed) = (None, true);
            let result = settle(members::config(draft, &change, after))?;
            if let Some(request) = request {
                outcomes.push(Outcome { request, revision: draft.revision, result });
            }
        }
    }
    Ok(None)
}

fn apply_proposal(draft: &mut Draft, proposal: &Proposal, term: Term) -> Result<Outcome, StorageFailed> {
    if let Some(outcome) = answered_before(draft, proposal)? {
        return Ok(outcome);
    }
    draft.overlay.begin();
    let (_, command) = proposal.command.asked();
    let result = settle(apply_command(draft, command, term).and_then(|answer| {
        if proposal.once.is_some() {
            once::check_answer(&answer)?;
        }
        Ok(answer)
    }))?;
    conclude(draft, proposal, result)
}

/// One step of an entry that has batches of its own; its outcome with the last. Who asks is looked at
/// in the first step: nothing that this depends on can change before the last.
fn apply_alone(draft: &mut Draft, alone: &Alone) -> Result<Option<Outcome>, StorageFailed> {
    let Alone { index, proposal, .. } = alone;
    let first = points::begun(draft.view())?.is_none();
    if first && let Some(outcome) = answered_before(draft, proposal)? {
        return Ok(Some(outcome));
    }
    draft.overlay.begin();
    let (_, command) = proposal.command.asked();
    let Command::Point(change) = command else { unreachable!("no other command goes alone") };
    let step = |draft: &mut Draft| {
        if first {
            validate(command)?;
            alarm::check(draft, command)?;
            quota::check_rollback(draft, change)?;
        }
        draft.points_touched = true;
        points::step(draft, change, *index)
    };
    let result = match settle(step(draft))? {
        Ok(None) => return Ok(None),
        Ok(Some(answer)) => Ok(answer),
        Err(refusal) => Err(refusal),
    };
    assert!(first || result.is_ok(), "what has begun is not refused");
    conclude(draft, proposal, result).map(Some)
}

/// What a proposal is told without being carried out: who asks may not, or it was done already.
fn answered_before(draft: &mut Draft, proposal: &Proposal) -> Result<Option<Outcome>, StorageFailed> {
    let Proposal { request, once, command } = proposal;
    let (node, command) = command.came_from();
    let refused = |draft: &Draft, refusal| {
        Ok(Some(Outcome { request: *request, revision: draft.revision, result: Err(refusal) }))
    };
    if let Some(node) = node
        && let Err(refusal) = settle(trust::admit(draft, node))?
    {
        return refused(draft, refusal);
    }
    let (caller, command) = command.on_behalf();
    // Before a kept answer is given: what a caller may not do it may not be told either. Such a
    // refusal is not kept; it may have come too late to be the answer.
    if let Some(caller) = caller
        && let Err(refusal) = settle(auth::admit(draft, caller, command))?
    {
        return refused(draft, refusal);
    }
    if let Some(once) = *once
        && let Some((revision, result)) = once::repeated(draft, once, owner(caller))?
    {
        return Ok(Some(Outcome { request: *request, revision, result }));
    }
    Ok(None)
}

/// Keeps what a command did, or takes it back.
fn conclude(
    draft: &mut Draft,
    proposal: &Proposal,
    result: Result<Answer, Refusal>,
) -> Result<Outcome, StorageFailed> {
    match &result {
        Ok(_) => draft.seal(),
        Err(_) => draft.take_back()?,
    }
    draft.points_touched = false;
    let owner = owner(proposal.command.asked().0);
    if let Some(once) = proposal.once {
        once::keep(draft, once, owner, draft.revision, &result)?;
    }
    Ok(Outcome { request: proposal.request, revision: draft.revision, result })
}

/// Carries out a command. Where it stops, the caller takes back what it did.
fn apply_command(draft: &mut Draft, command: &Command, term: Term) -> Result<Answer, Stop> {
    validate(command).map_err(|refusal: Refusal| Stop::Refused(refusal))?;
    alarm::check(draft, command)?;
    let answer = carry_out(draft, command, term)?;
    quota::check(draft, command)?;
    Ok(answer)
}

fn carry_out(draft: &mut Draft, command: &Command, term: Term) -> Result<Answer, Stop> {
    let budget = &mut Budget::new();
    match command {
        Command::Put(request) => {
            kv::check_put(draft, request)?;
            Ok(Answer::Put(kv::put(draft, request, budget)?))
        }
        Command::Delete(request) => Ok(Answer::Delete(kv::delete(draft, request, budget)?)),
        Command::Txn(request) => Ok(Answer::Txn(txn::txn(draft, request, budget)?)),
        Command::Compact { revision } => compact::compact(draft, *revision),
        Command::LeaseGrant { id, ttl } => lease::grant(draft, *id, *ttl),
        Command::LeaseRevoke { id } => lease::revoke(draft, *id),
        Command::LeaseExpire { ids, term: decided } => lease::expire(draft, ids, *decided, term),
        Command::MemberUpdate(record) => members::update(draft, record),
        Command::Trust(change) => trust::change(draft, change),
        Command::Noop => Ok(Answer::Done),
        Command::Seen { id, run } => runs::seen(draft, *id, *run),
        Command::RaiseRevision { to } => {
            draft.points_touched = true;
            raise::raise(draft, *to)
        }
        Command::Point(change) => {
            draft.points_touched = true;
            points::change(draft, change)
        }
        Command::Auth(change) => auth::change(draft, change),
        Command::Alarm(request) => alarm::change(draft, request),
        Command::Quota { bytes } => Ok(quota::set(draft, *bytes)),
        Command::As { .. } | Command::From { .. } => {
            Err(Refusal::invalid("command", "it is asked by a caller for another caller").into())
        }
    }
}

/// In whose name answers are kept.
fn owner(caller: Option<&Caller>) -> &str {
    match caller {
        Some(Caller::User { name, .. }) => name,
        Some(Caller::Full | Caller::Anonymous | Caller::Bearer { .. }) | None => "",
    }
}
