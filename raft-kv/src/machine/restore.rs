//! A copy of a state becomes the first state of another cluster, with one member.
//!
//! Keys, leases, users and whoever is refused come along; members, points, alarms and join tokens do not. The
//! revision and the term go above anything that the cluster of the copy can have handed out: history is
//! given up as by [`raise`](super::raise), so that whoever goes on from an older revision is told
//! *compacted* and starts anew. It must never let in anybody whom the copy refuses, nor a member of before.

use std::collections::BTreeSet;

use super::auth;
use super::draft::Draft;
use super::format::{STORE, load_meta, member_key, members_end, meta};
use super::read;
use super::stop::{Settled, Stop, settle};
use super::store::{Store, Table};
use super::{Applied, Drafted, Machine, alarm, points, raise, runs, trust};
use crate::error::{Refusal, StorageFailed};
use crate::limits::MAX_RAISED_REVISION;
use crate::planted;
use crate::types::{
    Authority, Change, ClusterId, ConfState, DataKeyId, Event, EventKind, MemberRecord, NodeId, NodeRecord,
    Revision, Sealed, SnapshotMeta, TokenRecord,
};

/// Terms that the cluster of the copy may have gone on for: a leader's fencing token stays the highest.
const TERMS: u64 = 1 << 20;
/// Changes of users and roles that it may have made since.
const AUTH_CHANGES: u64 = 1 << 20;

/// What the cluster is to be.
#[derive(Clone, Debug)]
pub struct Restore {
    /// Its id; not 0, and not that of the copy.
    pub cluster: ClusterId,
    /// Its one member.
    pub member: MemberRecord,
    /// That member's certificate.
    pub node: NodeRecord,
    /// Its join tokens; those of the copy are gone.
    pub tokens: Vec<(String, TokenRecord)>,
    /// What signs users' tokens from here on: those of the copy's cluster have ended.
    pub token_key: Sealed,
    /// A root and a data key in place of those of the copy, whose secrets nobody can open; none where they
    /// are kept.
    pub fresh: Option<(Authority, DataKeyId)>,
    /// Nodes that were removed since the copy was made.
    pub without: Vec<NodeId>,
    /// By how much the revision is raised.
    pub raise: Revision,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// Where the log begins.
    pub applied: SnapshotMeta,
    /// The revision, of which nothing older can be read.
    pub revision: Revision,
    /// That of the copy.
    pub before: Revision,
    /// The cluster of the copy.
    pub predecessor: ClusterId,
}

/// What can't follow on a state, or not be what was done: damage of what was kept.
fn unfit(why: impl Into<String>) -> Stop {
    Stop::Failed(StorageFailed::damaged("changes", why))
}

impl<S: Store> Machine<S> {
    /// Does the next revision again, from its events as watchers had them: the state is then as it was at it,
    /// as far as keys go. A key whose lease is not there is without one. Nothing is flushed.
    ///
    /// # Errors
    /// [`StorageFailed`] where it is not the next revision, or would not be what it was.
    pub fn replay(&mut self, change: &Change) -> Result<(), StorageFailed> {
        let drafted = self.store.view(|view| {
            let redone = settle((|| {
                let mut draft = self.new_draft(view);
                if points::half(view)? || change.revision != draft.next() || change.events.is_empty() {
                    return Err(unfit(format!(
                        "revision {} does not follow on {}",
                        change.revision, draft.revision
                    )));
                }
                for event in &change.events {
                    again(&mut draft, event)?;
                }
                draft.seal();
                Ok(Drafted::of(draft, self.applied.index, self.applied.term, Vec::new()))
            })())?;
            Ok::<_, StorageFailed>(redone.expect("nothing is refused here"))
        })?;
        let mut done = Applied { last: self.applied.index, ..Applied::default() };
        self.take_on(drafted, &mut done)
    }
}

fn again(draft: &mut Draft, event: &Event) -> Result<(), Stop> {
    let Event { kind, kv, .. } = event;
    let before = draft.live(&kv.key)?;
    match (kind, before) {
        (EventKind::Delete, Some(before)) => {
            draft.delete(kv.key.clone(), before)?;
            Ok(())
        }
        (EventKind::Delete, None) => Err(unfit("a key is removed that is not there")),
        (EventKind::Put, before) => {
            let lease = if read::lease(draft.view(), kv.lease)?.is_some() { kv.lease } else { 0 };
            draft.put(kv.key.clone(), kv.value.clone(), lease, before)?;
            let made = draft.live(&kv.key)?.map(|now| (now.create_revision, now.mod_revision, now.version));
            match made == Some((kv.create_revision, kv.mod_revision, kv.version)) {
                true => Ok(()),
                false => Err(unfit("a key would get other revisions than it had")),
            }
        }
    }
}

/// Refuses a raise that leaves too little room, or lowers the revision.
pub fn check_raise(revision: Revision, raise: Revision) -> Result<Revision, Refusal> {
    let to = revision.checked_add(raise).filter(|to| raise > 0 && *to <= MAX_RAISED_REVISION);
    to.ok_or_else(|| {
        let most = MAX_RAISED_REVISION.saturating_sub(revision);
        Refusal::invalid("raise of the revision", format!("{raise} is not from 1 to {most}"))
    })
}

impl<S: Store> Machine<S> {
    /// Makes of a copy in `store` the first state of another cluster, and flushes it. Not to be used where
    /// anything runs on the store. After a crash in between the store is of no use: the copy has to be
    /// brought again.
    pub fn restore(store: &S, plan: &Restore) -> Settled<Restored> {
        let Some(machine) = Self::open(store.clone())? else {
            return Err(StorageFailed::damaged(STORE, "the copy holds no state"));
        };
        let drafted = store.view(|view| {
            settle((|| {
                if points::half(view)? {
                    let why = "it was made in the midst of a rollback; make another";
                    return Err(Stop::Refused(Refusal::invalid("copy", why)));
                }
                let before = machine.revision;
                check_raise(before, plan.raise)?;
                let mut draft = machine.new_draft(view);
                reborn(&mut draft, plan)?;
                if !planted!(RestoreKeepsRevision) {
                    raise::raise(&mut draft, before + plan.raise)?;
                }
                let SnapshotMeta { index, term, .. } = machine.applied();
                let restored = Restored {
                    applied: SnapshotMeta { index, term: term + TERMS, conf: draft.conf.clone() },
                    revision: draft.revision,
                    before,
                    predecessor: machine.cluster,
                };
                Ok((Drafted::of(draft, index, term + TERMS, Vec::new()).batch, restored))
            })())
        })?;
        match drafted {
            Err(refusal) => Ok(Err(refusal)),
            Ok((batch, restored)) => {
                store.write(batch)?;
                store.flush()?;
                Ok(Ok(restored))
            }
        }
    }
}

fn reborn(draft: &mut Draft, plan: &Restore) -> Result<(), Stop> {
    let old: ClusterId = load_meta(draft.view(), meta::CLUSTER)?;
    assert!(plan.cluster.0 != 0 && plan.cluster != old && plan.member.id.0 != 0, "a new cluster has an id");
    draft.overlay.put(Table::Meta, bytes::Bytes::from_static(meta::CLUSTER), &plan.cluster);
    let members: BTreeSet<NodeId> = read::members(draft.view())?.iter().map(|it| it.record.id).collect();
    let (from, to) = (member_key(NodeId(0)), members_end());
    let keys: Vec<_> = draft
        .view()
        .scan(Table::Members, &from, Some(&to))
        .map(|pair| pair.map(|(key, _)| key))
        .collect::<Result<_, StorageFailed>>()?;
    keys.into_iter().for_each(|key| draft.overlay.remove(Table::Members, key));
    for (id, _) in alarm::alarms(draft.view())? {
        alarm::forget(draft, id)?;
    }
    for (id, _) in runs::runs(draft.view())? {
        runs::forget(draft, id)?;
    }
    draft.conf = ConfState { voters: vec![plan.member.id], ..ConfState::default() };
    let gone = members.iter().chain(&plan.without).copied().collect();
    trust::restore(draft, old, plan, &gone)?;
    draft.overlay.put(Table::Members, member_key(plan.member.id), &plan.member);
    users(draft, plan)?;
    Ok(())
}

/// Users keep their names and roles. Where nobody can open what their passwords are sealed with they have none,
/// and prove themselves by certificate until they are given one.
fn users(draft: &mut Draft, plan: &Restore) -> Result<(), StorageFailed> {
    let mut status = auth::status(draft.view())?;
    status.revision += AUTH_CHANGES;
    if !status.token_key.0.is_empty() {
        status.token_key = plan.token_key.clone();
    }
    if plan.fresh.is_some() {
        for (name, mut record) in auth::users(draft.view())? {
            record.password = None;
            draft.overlay.put(Table::Trust, auth::user_key(&name), &record);
        }
    }
    draft.overlay.put(Table::Trust, auth::status_key(), &status);
    Ok(())
}
