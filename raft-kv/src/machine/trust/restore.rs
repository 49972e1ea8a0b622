//! What a copy of a state knows of trust, as the first state of another cluster has it.
//!
//! Who is refused stays refused, members of before are refused from here on, and every join token is another.
//! Clients and workers keep their certificates where the root is kept: they name the cluster of before, which
//! is remembered for them alone.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::super::draft::Draft;
use super::super::format::load;
use super::super::restore::Restore;
use super::super::store::{Read, Table};
use super::{REVOKED, behind, nodes, put_trusted, sealing, token_key, tokens, trusted};
use crate::error::StorageFailed;
use crate::limits::MAX_PREDECESSORS;
use crate::planted;
use crate::types::{ClusterId, NodeId, NodeRecord, Role, Trusted};

const PREDECESSORS: &[u8] = b"predecessors";

/// The clusters that this one was restored from, the newest last: certificates of their clients and workers
/// count where their root is believed.
pub fn predecessors(view: &dyn Read) -> Result<Vec<ClusterId>, StorageFailed> {
    Ok(load(view, Table::Trust, PREDECESSORS)?.unwrap_or_default())
}

/// Takes on the trust of another cluster; `gone` are its members and who was removed since.
pub fn restore(
    draft: &mut Draft,
    old: ClusterId,
    plan: &Restore,
    gone: &BTreeSet<NodeId>,
) -> Result<(), StorageFailed> {
    for (id, _) in tokens(draft.view())? {
        draft.overlay.remove(Table::Trust, token_key(&id));
    }
    for (id, token) in &plan.tokens {
        draft.overlay.put(Table::Trust, token_key(id), token);
    }
    refuse(draft, plan, gone)?;
    nodes::put(draft, &plan.node)?;
    let mut before = predecessors(draft.view())?;
    let believed = trusted(draft.view())?;
    match &plan.fresh {
        Some((authority, _)) => {
            before.clear();
            put_trusted(draft, Trusted { roots: vec![authority.clone()], rotation: None, ..believed });
        }
        None => {
            before.push(old);
            let first = before.len().saturating_sub(MAX_PREDECESSORS);
            before.drain(..first);
            put_trusted(draft, believed);
        }
    }
    draft.overlay.put(Table::Trust, Bytes::from_static(PREDECESSORS), &before);
    sealing::restore(draft, plan.fresh.as_ref().map(|(_, key)| *key))
}

/// Keeps the clients and workers that the copy knows, and refuses everybody else by name.
fn refuse(draft: &mut Draft, plan: &Restore, gone: &BTreeSet<NodeId>) -> Result<(), StorageFailed> {
    let known = nodes(draft.view())?;
    let is_gone = |node: &NodeRecord| node.role == Role::Manager || gone.contains(&node.id);
    for node in &known {
        if is_gone(node) {
            nodes::revoke(draft, node)?;
        } else if plan.fresh.is_some() {
            // Its certificate rests on a root that is not believed any more.
            nodes::forget(draft, node)?;
        }
    }
    for id in gone.iter().filter(|id| !known.iter().any(|node| node.id == **id)) {
        nodes::member_left(draft, *id, "")?;
    }
    if planted!(RestoreForgetsRevocations) {
        let all: Vec<Bytes> = draft
            .view()
            .scan(Table::Trust, REVOKED, Some(&behind(REVOKED)))
            .map(|pair| pair.map(|(key, _)| key))
            .collect::<Result<_, StorageFailed>>()?;
        all.into_iter().for_each(|key| draft.overlay.remove(Table::Trust, key));
    }
    Ok(())
}
