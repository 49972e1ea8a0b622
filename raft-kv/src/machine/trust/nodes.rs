//! The nodes that the authority knows, and those that it refuses.
//!
//! A node is let in because it is known, not because nothing is known against it: whoever holds a
//! stolen root's key can make a certificate, and not a record. A record ends with its newest
//! certificate, a revocation with the last one that the node was given.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::draft::Draft;
use super::super::stop::{Stop, settle};
use super::super::store::{Read, Table};
use super::{ENDS, ends_key, node, node_key, nodes, revocation, revoked_key, tokens, trusted};
use crate::error::{Refusal, StorageFailed};
use crate::limits::{MAX_NAME_BYTES, MAX_NODES, MAX_TIDIED_PER_STEP};
use crate::machine::format::load;
use crate::types::{NodeId, NodeRecord, Revocation, Role, RootDigest};

/// How many nodes there are; counting them each time would cost as much as they are.
const COUNT: &[u8] = b"nodes";

fn not_found(id: NodeId) -> Stop {
    Refusal::invalid("node id", format!("no node has the id {id}; `raft-kv node ls` lists them")).into()
}

pub(super) fn validate(node: &NodeRecord) -> Result<(), Refusal> {
    let NodeRecord { id, name, serial, token, error, .. } = node;
    if *id == NodeId(0) {
        return Err(Refusal::invalid("node id", "it is 0, which names nobody"));
    }
    if name.len() > MAX_NAME_BYTES || serial.len() > 20 || token.len() > MAX_NAME_BYTES || !error.is_empty() {
        return Err(Refusal::invalid("node", "a field of it is too long"));
    }
    Ok(())
}

fn count(view: &dyn Read) -> Result<u64, StorageFailed> {
    Ok(load(view, Table::Trust, COUNT)?.unwrap_or(0))
}

pub(super) fn put(draft: &mut Draft, record: &NodeRecord) -> Result<(), StorageFailed> {
    match node(draft.view(), record.id)? {
        Some(old) => draft.overlay.remove(Table::Trust, ends_key(old.ends, old.id)),
        None => {
            let count = count(draft.view())? + 1;
            draft.overlay.put(Table::Trust, Bytes::from_static(COUNT), &count);
        }
    }
    draft.overlay.put(Table::Trust, node_key(record.id), record);
    draft.overlay.put(Table::Trust, ends_key(record.ends, record.id), &());
    Ok(())
}

pub(super) fn forget(draft: &mut Draft, record: &NodeRecord) -> Result<(), StorageFailed> {
    let count = count(draft.view())?.saturating_sub(1);
    draft.overlay.put(Table::Trust, Bytes::from_static(COUNT), &count);
    draft.overlay.remove(Table::Trust, node_key(record.id));
    draft.overlay.remove(Table::Trust, ends_key(record.ends, record.id));
    Ok(())
}

/// Records that a certificate is handed out.
pub(super) fn issue(draft: &mut Draft, new: &NodeRecord, renewal: bool, now: i64) -> Result<(), Stop> {
    if trusted(draft.view())?.issuing().digest != new.issuer {
        let why = "the root was replaced while it was made; ask again".into();
        return Err(Refusal::BadCertificate { why }.into());
    }
    if revocation(draft.view(), new.id)?.is_some() {
        let why = "this node was removed from the cluster; let it join anew".into();
        return Err(Refusal::BadCertificate { why }.into());
    }
    tidy(draft, now)?;
    let known = node(draft.view(), new.id)?;
    match &known {
        Some(known) if !renewal || known.role != new.role => {
            let why = "another node has that id, or its role has changed meanwhile; ask again".into();
            return Err(Refusal::BadCertificate { why }.into());
        }
        None if renewal && !super::super::members::is_member(draft.view(), new.id)? => {
            let why =
                "the cluster does not know this node (any more); let it join anew: `raft-kv enrol`".into();
            return Err(Refusal::BadCertificate { why }.into());
        }
        None if count(draft.view())? >= MAX_NODES => {
            let why = format!("there are {MAX_NODES} already; `raft-kv node rm` those that are gone");
            return Err(Refusal::invalid("nodes", why).into());
        }
        _ => {}
    }
    // A known node that comes with a token needs it: its certificate is not believed.
    if !new.token.is_empty() {
        if let Some(known) = known.as_ref().filter(|_| renewal) {
            may_come_back(draft.view(), known, now)?;
        }
        tokens::take(draft, &new.token, new.role, now)?;
    }
    // What it was seen with under another root says nothing of this certificate: a crash may cost the
    // node this one, and it shows the one before it again.
    let verified = known.as_ref().and_then(|known| match known.issuer == new.issuer {
        false if !crate::planted!(KeepVerified) => Some(known.issuer),
        _ => known.verified,
    });
    let token = known.map_or(new.token.clone(), |known| known.token);
    put(draft, &NodeRecord { verified, token, error: String::new(), readmit: 0, ..new.clone() })?;
    Ok(())
}

/// Refuses a node that was shut out and not let back in. A certificate that ended under a root that is
/// still believed needs a token and no more. One whose root is not believed any more was late when a
/// rotation settled, because its deadline was over or the old key was stolen: then somebody chose to go on
/// without that node, the tokens of today may be known to who holds that machine, and somebody has to
/// choose again that this node, and not the token alone, comes back.
fn may_come_back(view: &dyn Read, known: &NodeRecord, now: i64) -> Result<(), Stop> {
    let believed = trusted(view)?.roots.iter().any(|root| root.digest == known.issuer);
    if believed || known.readmit > now || crate::planted!(SkipReadmission) {
        return Ok(());
    }
    let why = format!(
        "the root was replaced without this node; let it come back with `raft-kv node readmit {}` on a member, \
         then ask again",
        known.id
    );
    Err(Refusal::BadCertificate { why }.into())
}

/// Records what listeners saw. What they saw before a removal or another issue counts for nothing.
pub(super) fn verified(draft: &mut Draft, seen: &[(NodeId, RootDigest)]) -> Result<(), Stop> {
    for (id, root) in seen {
        if let Some(record) = node(draft.view(), *id)?
            && record.issuer == *root
            && record.verified != Some(*root)
        {
            put(draft, &NodeRecord { verified: Some(*root), ..record })?;
        }
    }
    Ok(())
}

pub(super) fn failed(draft: &mut Draft, id: NodeId, error: &str) -> Result<(), Stop> {
    let record = node(draft.view(), id)?.ok_or_else(|| not_found(id))?;
    Ok(put(draft, &NodeRecord { error: error.into(), ..record })?)
}

/// Takes a node out that is no member.
pub(super) fn remove(draft: &mut Draft, id: NodeId, now: i64) -> Result<(), Stop> {
    if super::super::members::is_member(draft.view(), id)? {
        let why = "is a member; `raft-kv member rm` takes it out of the group";
        return Err(Refusal::MemberUnfit { id, why: why.into() }.into());
    }
    tidy(draft, now)?;
    let record = node(draft.view(), id)?.ok_or_else(|| not_found(id))?;
    revoke(draft, &record)?;
    Ok(())
}

pub(super) fn revoke(draft: &mut Draft, record: &NodeRecord) -> Result<(), StorageFailed> {
    forget(draft, record)?;
    draft.revoked = true;
    let revoked = Revocation { until: record.ends, role: record.role, name: record.name.clone() };
    if crate::planted!(ForgetRevocation) {
        return Ok(());
    }
    draft.overlay.put(Table::Trust, revoked_key(record.id), &revoked);
    draft.overlay.put(Table::Trust, ends_key(revoked.until, record.id), &());
    Ok(())
}

/// What is known of the nodes that commands came from while a batch is applied: one look at the store
/// for each. Forgotten at each change of what is believed.
#[derive(Default)]
pub struct LetIn(BTreeMap<NodeId, Result<(), Refusal>>);

impl LetIn {
    /// Roots, nodes or members may have changed.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

/// Refuses a command of a node that is not let in (any more) at its place in the log.
pub fn admit(draft: &mut Draft, id: NodeId) -> Result<(), Stop> {
    if crate::planted!(SkipApplyNode) {
        return Ok(());
    }
    let known = match draft.let_in.0.get(&id) {
        Some(known) => known.clone(),
        None => {
            let known = settle(let_in(draft.view(), id))?;
            draft.let_in.0.insert(id, known.clone());
            known
        }
    };
    Ok(known?)
}

/// Whether a node is known, and under a root that is believed: who may change anything.
pub fn let_in(view: &dyn Read, id: NodeId) -> Result<(), Stop> {
    let bad = |why: &str| Err(Refusal::BadCertificate { why: why.into() }.into());
    match node(view, id)? {
        // What was removed has no record: there is no need to look for its revocation.
        Some(record) => match trusted(view)?.roots.iter().any(|root| root.digest == record.issuer) {
            true => Ok(()),
            false => bad("the root that this node's certificate rests on was replaced; renew it"),
        },
        None if super::super::members::is_member(view, id)? => Ok(()),
        None => bad("this node was removed from the cluster, or was never in it; let it join anew"),
    }
}

/// A member has left the group: its certificate is refused from here on.
pub(in crate::machine) fn member_left(
    draft: &mut Draft,
    id: NodeId,
    name: &str,
) -> Result<(), StorageFailed> {
    draft.trust_changed = true;
    match node(draft.view(), id)? {
        Some(record) => revoke(draft, &record),
        None => {
            let revoked = Revocation { until: i64::MAX, role: Role::Manager, name: name.into() };
            draft.revoked = true;
            draft.overlay.put(Table::Trust, revoked_key(id), &revoked);
            Ok(())
        }
    }
}

/// Every manager that is left was not let in as a member, or not yet: none of them is let in any more.
pub(in crate::machine) fn managers_left(draft: &mut Draft) -> Result<(), StorageFailed> {
    draft.trust_changed = true;
    for record in nodes(draft.view())?.into_iter().filter(|record| record.role == Role::Manager) {
        revoke(draft, &record)?;
    }
    Ok(())
}

/// The one member of a new epoch is known by this certificate.
pub(in crate::machine) fn goes_on(draft: &mut Draft, record: &NodeRecord) -> Result<(), StorageFailed> {
    draft.trust_changed = true;
    put(draft, record)
}

pub(super) fn set_role(draft: &mut Draft, id: NodeId, role: Role) -> Result<(), Stop> {
    let record = node(draft.view(), id)?.ok_or_else(|| not_found(id))?;
    if super::super::members::is_member(draft.view(), id)? {
        let why = "is a member, and a member is a manager; demote it by taking it out of the group";
        return Err(Refusal::MemberUnfit { id, why: why.into() }.into());
    }
    Ok(put(draft, &NodeRecord { role, ..record })?)
}

pub(super) fn readmit(draft: &mut Draft, id: NodeId, until: i64) -> Result<(), Stop> {
    let record = node(draft.view(), id)?.ok_or_else(|| not_found(id))?;
    Ok(put(draft, &NodeRecord { readmit: until, ..record })?)
}

/// Removes a bounded number of records that ended before `now`. A member's record stays.
pub(super) fn tidy(draft: &mut Draft, now: i64) -> Result<(), Stop> {
    let mut ended = Vec::new();
    for pair in draft.view().scan(Table::Trust, ENDS, Some(&ends_key(now, NodeId(0)))) {
        let (key, _) = pair?;
        let id: [u8; 8] = key[key.len() - 8..].try_into().expect("keys have an id at their end");
        ended.push((key, NodeId(u64::from_be_bytes(id))));
        if ended.len() == MAX_TIDIED_PER_STEP {
            break;
        }
    }
    for (key, id) in ended {
        if super::super::members::is_member(draft.view(), id)? {
            // It may renew: it is looked at again with its next certificate.
            draft.overlay.remove(Table::Trust, key);
            continue;
        }
        if let Some(record) = node(draft.view(), id)?.filter(|record| record.ends < now) {
            forget(draft, &record)?;
        }
        if revocation(draft.view(), id)?.is_some_and(|revoked| revoked.until < now) {
            draft.overlay.remove(Table::Trust, revoked_key(id));
        }
        draft.overlay.remove(Table::Trust, key);
    }
    Ok(())
}

/// Every node whose newest certificate is valid at `now` and that has not been seen with one of
/// `target`.
pub(super) fn behind(
    view: &dyn Read,
    target: RootDigest,
    aborting: bool,
    now: i64,
) -> Result<Vec<NodeRecord>, StorageFailed> {
    let moved = |record: &NodeRecord| match record.verified {
        Some(verified) => verified == target,
        // Going back, who never left has not to prove it.
        None => aborting && record.issuer == target,
    };
    let member = |id| super::super::members::is_member(view, id);
    let mut behind = Vec::new();
    for record in nodes(view)? {
        if (!moved(&record) || record.issuer != target) && (record.ends > now || member(record.id)?) {
            behind.push(record);
        }
    }
    Ok(behind)
}
