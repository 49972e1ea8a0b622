//! Taking nodes out of the cluster and letting them come back.
//!
//! Whether a node is a member decides by which way it goes: members by a change of the group, which
//! refuses their certificates as it is applied, all others by a record. Nothing is decided here that
//! `machine` does not decide again where it is applied.

use std::sync::Arc;
use std::time::Duration;

use super::super::api::{Call, Reply};
use super::super::handle::Handle;
use super::super::local::Local;
use super::authority::now;
use crate::error::{Error, Refusal};
use crate::machine;
use crate::net::Endpoint;
use crate::types::{
    CaStatus, ConfChange, Header, Member, MemberRole, NodeId, NodeRecord, Revocation, TrustCall, TrustChange,
    TrustReply,
};

/// For how long a node may come back once it was let.
const READMISSION: i64 = 24 * 3600;

/// Ends what a node has open as soon as its removal is applied here: on QUIC, and behind every other
/// door, which looks through its connections when it is told. Runs until the node ends; nothing that
/// takes time may be waited for in it.
pub(in crate::client) async fn evict(local: Arc<Local>, endpoint: Endpoint) {
    let mut changes = local.shell.trust_changes();
    while changes.changed().await.is_ok() {
        local.trust.note_change();
        local.recheck(&endpoint);
    }
}

/// What a state knows of a node.
struct Known {
    member: Option<Member>,
    record: Option<NodeRecord>,
    revoked: Option<Revocation>,
}

impl Known {
    /// Why there is nothing to be done with a node that is neither a member nor recorded.
    fn missing(&self, id: NodeId) -> Error {
        match &self.revoked {
            Some(revoked) => {
                let why = format!(
                    "{id} was removed ({} {}); a node that was removed joins anew with a token, under a new id",
                    revoked.role, revoked.name
                );
                Refusal::invalid("node id", why).into()
            }
            None => {
                let why = format!("no node has the id {id}; `raft-kv node ls` lists them");
                Refusal::invalid("node id", why).into()
            }
        }
    }
}

fn unfit(id: NodeId, why: impl Into<String>) -> Error {
    Refusal::MemberUnfit { id, why: why.into() }.into()
}

impl Local {
    fn known(&self, id: NodeId) -> Result<Known, Error> {
        self.read(|view| {
            let mut members = machine::read::members(view)?.into_iter();
            Ok(Known {
                member: members.find(|member| member.record.id == id),
                record: machine::read::node(view, id)?,
                revoked: machine::read::revocation(view, id)?,
            })
        })
    }

    /// Takes a node out, whatever its role.
    pub(super) async fn node_remove(&self, id: NodeId, patience: Duration) -> Result<TrustReply, Error> {
        let known = self.known(id)?;
        if known.member.is_some() {
            self.conf(ConfChange::Remove(id), patience).await?;
        } else if known.record.is_some() {
            self.propose_trust(TrustChange::NodeRemove { id, now: now() }).await?;
        } else {
            return Err(known.missing(id));
        }
        tracing::info!(node = %id, "a node was removed");
        Ok(TrustReply::Done)
    }

    /// Makes a learner a voter.
    pub(super) async fn node_promote(&self, id: NodeId, patience: Duration) -> Result<TrustReply, Error> {
        let known = self.known(id)?;
        match (&known.member, &known.record) {
            (Some(member), _) if member.role == MemberRole::Voter => {
                Err(unfit(id, "is a manager that votes already"))
            }
            (Some(_), _) => {
                self.conf(ConfChange::Promote(id), patience).await?;
                Ok(TrustReply::Done)
            }
            // Its certificate must not become a manager's by itself: it would let whoever copied it
            // speak as a member.
            (None, Some(record)) => Err(unfit(
                id,
                format!(
                    "has a {} certificate, and becomes a manager by joining as one: `raft-kv member add NAME \
                     --addr HOST:PORT` prints the command for its machine; then take this id out with `raft-kv \
                     node rm {id}`",
                    record.role
                ),
            )),
            (None, None) => Err(known.missing(id)),
        }
    }

    /// Takes a manager out of the group; its certificate is refused from then on.
    pub(super) async fn node_demote(&self, id: NodeId, patience: Duration) -> Result<TrustReply, Error> {
        let known = self.known(id)?;
        match (&known.member, &known.record) {
            (Some(_), _) => {
                self.conf(ConfChange::Remove(id), patience).await?;
                tracing::info!(node = %id, "a manager was demoted");
                Ok(TrustReply::Done)
            }
            (None, Some(record)) => Err(unfit(
                id,
                format!("is no manager but a {}; `raft-kv node rm {id}` takes it out", record.role),
            )),
            (None, None) => Err(known.missing(id)),
        }
    }

    /// Lets a node come back with a token, keeping its id and data.
    pub(super) async fn node_readmit(&self, id: NodeId) -> Result<TrustReply, Error> {
        let known = self.known(id)?;
        if known.record.is_none() {
            return Err(known.missing(id));
        }
        self.propose_trust(TrustChange::Readmit { id, until: now() + READMISSION }).await?;
        tracing::info!(node = %id, "a node may come back with a token");
        Ok(TrustReply::Done)
    }
}

impl Handle {
    /// Every node that has a certificate, and what is believed.
    ///
    /// # Errors
    /// See [`Error`]; [`Refusal::NotAllowed`] for who may not ask.
    pub async fn nodes(&self) -> Result<(Header, CaStatus), Error> {
        match self.call(Call::Trust(TrustCall::Status)).await? {
            (header, Reply::Trust(TrustReply::Status(status))) => Ok((header, status)),
            (_, other) => Err(unexpected(&other)),
        }
    }

    /// Takes a node out, whatever its role: its certificate is refused from then on, by every
    /// listener of every member, and its connections end.
    ///
    /// # Errors
    /// See [`Error`]; the refusal of a change of the group for a member.
    pub async fn node_remove(&self, id: NodeId) -> Result<Header, Error> {
        self.node_change(TrustCall::NodeRemove(id)).await
    }

    /// Makes a learner a voter.
    ///
    /// # Errors
    /// As [`node_remove`](Self::node_remove); [`Refusal::MemberUnfit`] for any other node, with what to
    /// do instead.
    pub async fn node_promote(&self, id: NodeId) -> Result<Header, Error> {
        self.node_change(TrustCall::NodePromote(id)).await
    }

    /// Takes a manager out of the group, as [`node_remove`](Self::node_remove) does.
    ///
    /// # Errors
    /// As there; [`Refusal::MemberUnfit`] for a node that is no manager.
    pub async fn node_demote(&self, id: NodeId) -> Result<Header, Error> {
        self.node_change(TrustCall::NodeDemote(id)).await
    }

    /// Lets a node whose certificate is not believed any more come back with a token, for a day. A node
    /// that was removed can't.
    ///
    /// # Errors
    /// See [`Error`]; [`Refusal::Invalid`] for an id that no node has.
    pub async fn node_readmit(&self, id: NodeId) -> Result<Header, Error> {
        self.node_change(TrustCall::NodeReadmit(id)).await
    }

    async fn node_change(&self, call: TrustCall) -> Result<Header, Error> {
        match self.call(Call::Trust(call)).await? {
            (header, Reply::Trust(TrustReply::Done)) => Ok(header),
            (_, other) => Err(unexpected(&other)),
        }
    }
}

fn unexpected(reply: &Reply) -> Error {
    let what = format!("the answer is of another kind than the question ({reply:?})");
    Refusal::Malformed { what: what.chars().take(200).collect() }.into()
}
