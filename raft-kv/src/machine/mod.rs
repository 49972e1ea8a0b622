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
mod raise;
mod range;
pub mod read;
mod stop;
pub mod store;
#[cfg(test)]
mod tests;
mod trust;
mod txn;
pub mod validate;
mod values;
mod versions;

pub use command::{Answer, Command, Outcome, Proposal};
pub use draft::LeaseChange;
pub use genesis::Genesis;
#[cfg(any(test, feature = "sim"))]
pub use memory::MemoryStore;
pub use stop::Settled;
pub use store::{Batch, Read, Store, Table};
pub use trust::{SealStep, Verdict};
pub use validate::{validate, validate_range};

use bytes::Bytes;

use crate::codec::Wire;
use crate::error::{Refusal, StorageFailed};
use crate::types::{
    Caller, Change, ClusterId, Committed, ConfState, Index, Payload, Revision, SnapshotMeta, Term, Trusted,
};
use compact::Collected;
use draft::Draft;
use format::{FORMAT, STORE, load, member_key, meta};
use overlay::Overlay;
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
    /// Whether the revision was raised past some that were never made: `changes` has a gap then,
    /// and what is owed has to be read from the store.
    pub raised: bool,
    /// The revision of users and roles, if they changed.
    pub auth_changed: Option<u64>,
    /// Whether what is believed changed: roots, nodes, tokens.
    pub trust_changed: bool,
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
            let Some(found) = load::<u32>(view, Table::Meta, meta::FORMAT)? else { return Ok(None) };
            if found != FORMAT {
                return Err(StorageFailed {
                    file: STORE.into(),
                    why: format!("it has format {found}, this version knows format {FORMAT}"),
                    next: "run the version of raft-kv that wrote it, or a newer one".into(),
                });
            }
            Ok(Some((
                read::applied(view)?,
                read::current_revision(view)?,
                read::compacted(view)?,
                read::cluster(view)?,
            )))
        })?;
        Ok(held.map(|(applied, revision, compacted, cluster)| Self {
            store,
            applied,
            revision,
            compacted,
            cluster,
        }))
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

    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Applies entries, all in one batch on the store that also says that they are applied.
    /// Nothing may be published before this has returned.
    ///
    /// # Panics
    /// If the entries do not follow directly on what is applied, or one holds no proposals: both
    /// can only come from a bug here or in raft.
    pub fn apply(&mut self, entries: Vec<Committed>) -> Result<Applied, StorageFailed> {
        let Some(last) = entries.last() else {
            return Ok(Applied { last: self.applied.index, ..Applied::default() });
        };
        let (index, term) = (last.index, last.term);
        let (batch, draft, outcomes) = self.store.view(|view| self.draft(view, entries))?;
        self.store.write(batch)?;
        if draft.revoked && !crate::planted!(RevokeInMemory) {
            // Until the log is replayed a member goes by its state: it must not let in whom it had
            // turned away before it crashed.
            self.store.flush()?;
        }
        let raised = draft.revision != self.revision + draft.changes.len() as Revision;
        self.applied = SnapshotMeta { index, term, conf: draft.conf };
        self.revision = draft.revision;
        self.compacted = draft.compacted;
        Ok(Applied {
            outcomes,
            changes: draft.changes,
            members_changed: draft.members_changed,
            leases: draft.leases,
            raised,
            auth_changed: draft.auth_changed,
            trust_changed: draft.trust_changed,
            forget_log: draft.forget_log,
            last: index,
        })
    }

    /// Removes up to [`limits::COMPACT_STEP_KEYS`](crate::limits::COMPACT_STEP_KEYS) versions
    /// that compaction made unreadable; whether there are more. Changes nothing that can be read.
    pub fn collect(&mut self) -> Result<bool, StorageFailed> {
        match self.store.view(|view| compact::step(view, self.compacted))? {
            Some((batch, more)) => self.store.write(batch).map(|()| more),
            None => Ok(false),
        }
    }

    fn draft(
        &self,
        view: &dyn Read,
        entries: Vec<Committed>,
    ) -> Result<(Batch, Published, Vec<Outcome>), StorageFailed> {
        let mut draft =
            Draft::new(Overlay::new(view), self.revision, self.compacted, self.applied.conf.clone());
        let mut outcomes = Vec::new();
        let (mut index, mut term) = (self.applied.index, self.applied.term);
        for entry in entries {
            assert_eq!(entry.index, index + 1, "entries follow directly on what is applied");
            assert!(entry.term >= term, "terms never fall along the log");
            (index, term) = (entry.index, entry.term);
            apply_entry(&mut draft, entry, &mut outcomes)?;
        }
        let applied = SnapshotMeta { index, term, conf: draft.conf.clone() };
        draft.overlay.put(Table::Meta, meta::APPLIED, &applied);
        draft.overlay.put(Table::Meta, meta::REVISION, &draft.revision);
        let published = Published {
            conf: draft.conf,
            revision: draft.revision,
            compacted: draft.compacted,
            changes: draft.changes,
            leases: draft.leases,
            members_changed: draft.members_changed,
            auth_changed: draft.auth_changed,
            trust_changed: draft.trust_changed,
            revoked: draft.revoked,
            forget_log: draft.forget_log,
        };
        Ok((draft.overlay.into_batch(), published, outcomes))
    }
}

/// What remains of a draft once its writes are a batch.
struct Published {
    conf: ConfState,
    revision: Revision,
    compacted: Revision,
    changes: Vec<Change>,
    leases: Vec<LeaseChange>,
    members_changed: bool,
    auth_changed: Option<u64>,
    trust_changed: bool,
    revoked: bool,
    forget_log: bool,
}

fn apply_entry(
    draft: &mut Draft,
    entry: Committed,
    outcomes: &mut Vec<Outcome>,
) -> Result<(), StorageFailed> {
    match entry.payload {
        Payload::Proposals(data) if data.is_empty() => Ok(()),
        Payload::Proposals(data) => {
            let proposals = Vec::<Proposal>::from_bytes(data)
                .unwrap_or_else(|error| panic!("entry {} is no list of proposals: {error}", entry.index));
            for proposal in proposals {
                outcomes.push(apply_proposal(draft, proposal, entry.term)?);
            }
            Ok(())
        }
        Payload::Config { change, request, after } => {
            draft.overlay.begin();
            draft.let_in.forget();
            let result = settle(members::config(draft, &change, after))?;
            if let Some(request) = request {
                outcomes.push(Outcome { request, revision: draft.revision, result });
            }
            Ok(())
        }
    }
}

fn apply_proposal(draft: &mut Draft, proposal: Proposal, term: Term) -> Result<Outcome, StorageFailed> {
    let Proposal { request, once, command } = proposal;
    let (node, command) = command.came_from();
    if let Some(node) = node
        && let Err(refusal) = settle(trust::admit(draft, node))?
    {
        return Ok(Outcome { request, revision: draft.revision, result: Err(refusal) });
    }
    let (caller, command) = command.on_behalf();
    // Before a kept answer is given: what a caller may not do it may not be told either. Such a
    // refusal is not kept; it may have come too late to be the answer.
    if let Some(caller) = caller
        && let Err(refusal) = settle(auth::admit(draft, caller, command))?
    {
        return Ok(Outcome { request, revision: draft.revision, result: Err(refusal) });
    }
    let owner = owner(caller);
    if let Some(once) = once
        && let Some((revision, result)) = once::repeated(draft, once, owner)?
    {
        return Ok(Outcome { request, revision, result });
    }
    draft.overlay.begin();
    let result = settle(apply_command(draft, command, term).and_then(|answer| {
        if once.is_some() {
            once::check_answer(&answer)?;
        }
        Ok(answer)
    }))?;
    match &result {
        Ok(_) => draft.seal(),
        Err(_) => draft.take_back(),
    }
    if let Some(once) = once {
        once::keep(draft, once, owner, draft.revision, &result)?;
    }
    Ok(Outcome { request, revision: draft.revision, result })
}

/// Carries out a command. Where it stops, the caller takes back what it did.
fn apply_command(draft: &mut Draft, command: &Command, term: Term) -> Result<Answer, Stop> {
    validate(command).map_err(|refusal: Refusal| Stop::Refused(refusal))?;
    alarm::check(draft, command)?;
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
        Command::RaiseRevision { to } => raise::raise(draft, *to),
        Command::Auth(change) => auth::change(draft, change),
        Command::Alarm(request) => alarm::change(draft, request),
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
