//! What the cluster's trust rests on: its roots, the nodes that its authority knows, those that it
//! refuses, and join tokens; each under a key of its own, so that none grows with another.
//!
//! Nothing here is checked cryptographically and no secret is opened; that is `pki`'s. Each change is
//! one entry of the log, decided again where it is applied, so that a deposed leader changes nothing.

use bytes::Bytes;

use super::command::Answer;
use super::draft::Draft;
use super::format::{damaged, decode, load};
use super::stop::Stop;
use super::store::{Read, Table};
use crate::error::{Refusal, StorageFailed};
use crate::types::{NodeId, NodeRecord, Revocation, Standing, TokenRecord, TrustChange, Trusted};

mod nodes;
mod restore;
mod rotation;
mod sealing;
mod tokens;

pub use nodes::let_in;
pub(super) use nodes::{LetIn, admit, goes_on, managers_left, member_left};
pub use restore::predecessors;
pub(super) use restore::restore;
pub use rotation::{Verdict, verdict};
pub(super) use sealing::check_key;
#[cfg(test)]
pub use sealing::secrets;
pub use sealing::{SealStep, seal_step, sealing};

const TRUSTED: &[u8] = b"trusted";
const TOKENS: &[u8] = b"token/";
const NODES: &[u8] = b"node/";
const REVOKED: &[u8] = b"revoked/";
/// When nodes' certificates and revocations end, in this order: what is behind is tidied up.
const ENDS: &[u8] = b"ends/";

/// Just behind every key that begins with `prefix`, which ends in a slash.
fn behind(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    *end.last_mut().expect("no prefix is empty") += 1;
    end
}

/// The key of what is believed.
pub fn trusted_key() -> Bytes {
    Bytes::from_static(TRUSTED)
}

/// The key of a token's record.
pub fn token_key(id: &str) -> Bytes {
    [TOKENS, id.as_bytes()].concat().into()
}

/// The key of a node's record.
pub fn node_key(id: NodeId) -> Bytes {
    [NODES, &id.0.to_be_bytes()].concat().into()
}

fn revoked_key(id: NodeId) -> Bytes {
    [REVOKED, &id.0.to_be_bytes()].concat().into()
}

/// The key under which something that concerns `id` ends at `at`.
pub fn ends_key(at: i64, id: NodeId) -> Bytes {
    [ENDS, &at.max(0).to_be_bytes(), &id.0.to_be_bytes()].concat().into()
}

/// What is believed.
pub fn trusted(view: &dyn Read) -> Result<Trusted, StorageFailed> {
    let trusted: Option<Trusted> = load(view, Table::Trust, TRUSTED)?;
    match trusted {
        Some(trusted) if !trusted.roots.is_empty() => Ok(trusted),
        _ => Err(damaged(Table::Trust, "the root is missing")),
    }
}

/// The token with that id.
pub fn token(view: &dyn Read, id: &str) -> Result<Option<TokenRecord>, StorageFailed> {
    load(view, Table::Trust, &token_key(id))
}

/// Every token, by id.
pub fn tokens(view: &dyn Read) -> Result<Vec<(String, TokenRecord)>, StorageFailed> {
    view.scan(Table::Trust, TOKENS, Some(&behind(TOKENS)))
        .map(|pair| {
            let (key, value) = pair?;
            let id = String::from_utf8(key[TOKENS.len()..].to_vec())
                .map_err(|_| damaged(Table::Trust, "a token's id is not a text"))?;
            Ok((id, decode(Table::Trust, value)?))
        })
        .collect()
}

/// What the authority knows of a node.
pub fn node(view: &dyn Read, id: NodeId) -> Result<Option<NodeRecord>, StorageFailed> {
    load(view, Table::Trust, &node_key(id))
}

/// Every node that has a certificate, by id.
pub fn nodes(view: &dyn Read) -> Result<Vec<NodeRecord>, StorageFailed> {
    view.scan(Table::Trust, NODES, Some(&behind(NODES))).map(|pair| decode(Table::Trust, pair?.1)).collect()
}

/// Why and until when a node is refused.
pub fn revocation(view: &dyn Read, id: NodeId) -> Result<Option<Revocation>, StorageFailed> {
    load(view, Table::Trust, &revoked_key(id))
}

/// Whether a node whose chain is good may be let in, and as what. It is asked in every handshake.
pub fn standing(view: &dyn Read, id: NodeId) -> Result<Standing, StorageFailed> {
    if revocation(view, id)?.is_some() {
        return Ok(Standing::Removed);
    }
    if super::members::is_member(view, id)? {
        return Ok(Standing::Known(crate::types::Role::Manager));
    }
    Ok(node(view, id)?.map_or(Standing::Unknown, |node| Standing::Known(node.role)))
}

/// Carries a change out.
pub fn change(draft: &mut Draft, change: &TrustChange) -> Result<Answer, Stop> {
    for secret in sealing::secrets_of(change) {
        check_key(draft, secret)?;
    }
    draft.let_in.forget();
    match change {
        TrustChange::Rotate { id, authority, deadline, stolen, now } => {
            rotation::rotate(draft, *id, authority, *deadline, *stolen, *now)
        }
        TrustChange::Reissue { id } => rotation::reissue(draft, *id),
        TrustChange::Abort { deadline, now } => rotation::abort(draft, *deadline, *now),
        TrustChange::Settle { id, tokens, now } => rotation::settle(draft, *id, tokens, *now),
        TrustChange::Issue { node, renewal, now } => nodes::issue(draft, node, *renewal, *now),
        TrustChange::Verified { nodes } => nodes::verified(draft, nodes),
        TrustChange::Failed { id, error } => nodes::failed(draft, *id, error),
        TrustChange::TokenCreate { id, token, now } => tokens::create(draft, id, token, *now),
        TrustChange::TokenRotate { id, secret, now } => tokens::rotate(draft, id, secret, *now),
        TrustChange::TokenRevoke { id } => tokens::revoke(draft, id),
        TrustChange::NodeRemove { id, now } => nodes::remove(draft, *id, *now),
        TrustChange::NodeRole { id, role } => nodes::set_role(draft, *id, *role),
        TrustChange::Readmit { id, until } => nodes::readmit(draft, *id, *until),
        TrustChange::Tidy { now } => nodes::tidy(draft, *now),
        TrustChange::KeyNext { id, key, now } => sealing::next(draft, *id, key, *now),
        TrustChange::KeyStored { id, node } => sealing::stored(draft, *id, *node),
        TrustChange::KeyActivate { id } => sealing::activate(draft, *id),
        TrustChange::Reseal { items } => sealing::reseal(draft, items),
        TrustChange::KeySettle { id } => sealing::settle(draft, *id),
        TrustChange::Unlock { key, version } => sealing::unlock(draft, key, *version),
    }?;
    draft.trust_changed = true;
    Ok(Answer::Done)
}

fn put_trusted(draft: &mut Draft, mut trusted: Trusted) {
    trusted.epoch += 1;
    assert!(!trusted.roots.is_empty(), "never zero trusted roots");
    draft.overlay.put(Table::Trust, trusted_key(), &trusted);
}

/// Refuses what is out of its bounds.
pub fn validate(change: &TrustChange) -> Result<(), Refusal> {
    match change {
        TrustChange::Rotate { authority, .. } => rotation::validate(authority),
        TrustChange::Settle { tokens, .. } if tokens.len() > crate::limits::MAX_JOIN_TOKENS => {
            Err(Refusal::invalid("tokens", "there are more than a cluster can have"))
        }
        TrustChange::Issue { node, .. } => nodes::validate(node),
        TrustChange::Verified { nodes } if nodes.len() > crate::limits::MAX_VERIFIED_PER_STEP => {
            Err(Refusal::invalid("nodes", "there are too many for one step"))
        }
        TrustChange::Failed { error, .. } if error.len() > crate::limits::MAX_NODE_ERROR_BYTES => {
            Err(Refusal::invalid("error", "it is too long"))
        }
        TrustChange::TokenCreate { id, token, .. } => tokens::validate(id, token),
        TrustChange::TokenRotate { secret, .. } if secret.0.len() > crate::limits::MAX_SECRET_BYTES => {
            Err(Refusal::invalid("token secret", "it is too long"))
        }
        TrustChange::KeyNext { .. } | TrustChange::Reseal { .. } | TrustChange::Unlock { .. } => {
            sealing::validate(change)
        }
        _ => Ok(()),
    }
}

/// About how many bytes a change takes in a log entry; never far too few.
pub fn size(change: &TrustChange) -> usize {
    match change {
        TrustChange::Rotate { authority, .. } => {
            let via: usize = authority.via.iter().map(Bytes::len).sum();
            let other = authority.key.as_ref().map_or(0, |key| key.0.len());
            authority.root.len() + via + other + authority.cross.as_ref().map_or(0, Bytes::len) + 128
        }
        TrustChange::Settle { tokens, .. } => tokens.iter().map(|(id, new)| id.len() + new.0.len() + 8).sum(),
        TrustChange::Issue { node, .. } => node.name.len() + node.token.len() + 256,
        TrustChange::Verified { nodes } => nodes.len() * 40,
        TrustChange::Failed { error, .. } => error.len(),
        TrustChange::TokenCreate { id, token, .. } => {
            id.len() + token.label.len() + token.secret.0.len() + 64
        }
        TrustChange::TokenRotate { id, secret, .. } => id.len() + secret.0.len(),
        TrustChange::TokenRevoke { id } => id.len(),
        TrustChange::KeyNext { key, .. } => key.0.len(),
        TrustChange::Unlock { key, .. } => key.as_ref().map_or(0, |key| key.0.len()),
        TrustChange::Reseal { items } => {
            items.iter().map(|item| item.old.0.len() + item.new.0.len() + 256).sum()
        }
        TrustChange::KeyStored { .. }
        | TrustChange::KeyActivate { .. }
        | TrustChange::KeySettle { .. }
        | TrustChange::Reissue { .. }
        | TrustChange::Abort { .. }
        | TrustChange::NodeRemove { .. }
        | TrustChange::NodeRole { .. }
        | TrustChange::Readmit { .. }
        | TrustChange::Tidy { .. } => 0,
    }
}
