//! The replacement of the root: stable → introduce → reissue → settle.
//!
//! From the first entry to the last the old root and the new one are both believed; the last one
//! leaves the new one alone. There is always at least one believed root, and a rotation never
//! settles before a quorum of the voters was seen with certificates of its target.

use std::collections::BTreeSet;

use super::super::draft::Draft;
use super::super::stop::Stop;
use super::super::store::{Read, Table};
use super::{nodes, put_trusted, token_key, tokens, trusted};
use crate::error::{Refusal, StorageFailed};
use crate::limits::{MAX_BELIEVED_ROOTS, MAX_CERTIFICATE_BYTES, MAX_DISTRUSTED, MAX_INTERMEDIATES};
use crate::types::{Authority, ConfState, NodeId, Phase, Rotation, Sealed, TokenRecord, Trusted};

/// For how long after a root was given up one of its certificates could still be valid: cross
/// certificates are made for no longer.
const DISTRUST: i64 = 91 * 24 * 3600;

/// What the leader should do about a rotation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing is under way.
    Stable,
    /// Both roots are believed by a quorum: certificates of the new one may be made.
    Reissue {
        /// Which rotation.
        id: u64,
    },
    /// Somebody must still move.
    Wait {
        /// Who.
        late: Vec<NodeId>,
        /// Whether the deadline has passed and there is still no quorum: it is stuck.
        stuck: bool,
    },
    /// It may settle. Whoever is late is shut out.
    Settle {
        /// Which rotation.
        id: u64,
        /// Who is late.
        late: Vec<NodeId>,
    },
}

fn refuse(why: impl Into<String>) -> Stop {
    Refusal::invalid("rotation", why).into()
}

pub(super) fn validate(authority: &Authority) -> Result<(), Refusal> {
    let mut certificates = authority.via.iter().chain([&authority.root]).chain(authority.cross.as_ref());
    if authority.via.len() > MAX_INTERMEDIATES || certificates.any(|cert| cert.len() > MAX_CERTIFICATE_BYTES)
    {
        return Err(Refusal::invalid("root", "its certificates are too many or too large"));
    }
    Ok(())
}

pub(super) fn rotate(
    draft: &mut Draft,
    id: u64,
    authority: &Authority,
    deadline: i64,
    stolen: bool,
    now: i64,
) -> Result<(), Stop> {
    let mut trusted = trusted(draft.view())?;
    if trusted.roots.iter().any(|root| root.digest == authority.digest || root.signer == authority.signer) {
        return Err(refuse("that root, or its key, is believed already; give another, or abort"));
    }
    trusted.distrusted.retain(|(_, until)| *until > now);
    if trusted.distrusted.iter().any(|(key, _)| *key == authority.signer) {
        return Err(refuse("that root's key was given up lately; give another"));
    }
    if trusted.roots.len() >= MAX_BELIEVED_ROOTS || trusted.distrusted.len() >= MAX_DISTRUSTED {
        return Err(refuse("too many were begun in a row; let one settle, or abort"));
    }
    // A number is made from the epoch that was looked at: where that has passed, the new root may be
    // certified by one that is not in force any more, and who believes only the one in force now would
    // not take its certificates.
    let overtaken = id <= trusted.epoch && !crate::planted!(RotateOvertaken);
    if overtaken || authority.cross.is_none() {
        return Err(refuse("another one was begun meanwhile; look at it and begin again"));
    }
    let cross = authority.cross.clone().filter(|_| !crate::planted!(ForgetCross));
    trusted.roots.push(Authority { cross, ..authority.clone() });
    let (phase, target) = (Phase::Introduce, authority.digest);
    let started = now;
    trusted.rotation = Some(Rotation { id, phase, target, started, deadline, stolen, aborting: false });
    put_trusted(draft, trusted);
    Ok(())
}

fn under_way(trusted: &mut Trusted) -> Result<&mut Rotation, Stop> {
    trusted.rotation.as_mut().ok_or_else(|| refuse("no root is being replaced"))
}

fn meant(trusted: &mut Trusted, id: u64) -> Result<&mut Rotation, Stop> {
    let rotation = under_way(trusted)?;
    if rotation.id == id { Ok(rotation) } else { Err(refuse("another one was begun meanwhile")) }
}

pub(super) fn reissue(draft: &mut Draft, id: u64) -> Result<(), Stop> {
    let mut trusted = trusted(draft.view())?;
    let rotation = meant(&mut trusted, id)?;
    if rotation.phase == Phase::Introduce {
        rotation.phase = Phase::Reissue;
        put_trusted(draft, trusted);
    }
    Ok(())
}

pub(super) fn abort(draft: &mut Draft, deadline: i64, now: i64) -> Result<(), Stop> {
    let mut trusted = trusted(draft.view())?;
    let back = trusted.in_force().digest;
    let rotation = under_way(&mut trusted)?;
    if rotation.aborting {
        return Err(refuse("it is being aborted already"));
    }
    // A number of its own: a leader that has not heard of it may not settle the old one.
    let id = rotation.id + 1;
    let (phase, started) = (Phase::Reissue, now);
    *rotation = Rotation { id, phase, target: back, started, deadline, stolen: false, aborting: true };
    put_trusted(draft, trusted);
    Ok(())
}

pub(super) fn settle(draft: &mut Draft, id: u64, new: &[(String, Sealed)], now: i64) -> Result<(), Stop> {
    let mut trusted = trusted(draft.view())?;
    let (target, aborting) = {
        let rotation = meant(&mut trusted, id)?;
        (rotation.target, rotation.aborting)
    };
    match judge(draft.view(), &trusted, &draft.conf, now)? {
        Verdict::Settle { .. } => {}
        _ if crate::planted!(SettleEarly) => {}
        _ => return Err(refuse("somebody must still be waited for")),
    }
    let (kept, given_up): (Vec<_>, Vec<_>) =
        std::mem::take(&mut trusted.roots).into_iter().partition(|root| root.digest == target);
    trusted.roots = if crate::planted!(KeepOldRoot) { [kept, given_up.clone()].concat() } else { kept };
    trusted.rotation = None;
    trusted.distrusted.retain(|(_, until)| *until > now);
    // One that was introduced has a certificate of the root that stays: its key may not lead there.
    let crossed = given_up.iter().filter(|_| aborting).map(|root| (root.signer, now + DISTRUST));
    if !crate::planted!(ForgetDistrust) {
        trusted.distrusted.extend(crossed);
    }
    put_trusted(draft, trusted);
    if aborting {
        return Ok(());
    }
    // What the old root's tokens pinned is not believed any more.
    for (token, record) in tokens(draft.view())? {
        match new.iter().find(|(id, _)| *id == token) {
            Some((_, secret)) => {
                let record = TokenRecord { secret: secret.clone(), created: now, ..record };
                draft.overlay.put(Table::Trust, token_key(&token), &record);
            }
            None => draft.overlay.remove(Table::Trust, token_key(&token)),
        }
    }
    Ok(())
}

/// What is to be done now about the rotation that is under way, by the leader's clock.
pub fn verdict(view: &dyn Read, now: i64) -> Result<Verdict, StorageFailed> {
    judge(view, &trusted(view)?, &super::super::read::applied(view)?.conf, now)
}

fn judge(view: &dyn Read, trusted: &Trusted, conf: &ConfState, now: i64) -> Result<Verdict, StorageFailed> {
    let Some(rotation) = &trusted.rotation else { return Ok(Verdict::Stable) };
    if rotation.phase == Phase::Introduce {
        return Ok(Verdict::Reissue { id: rotation.id });
    }
    let behind = nodes::behind(view, rotation.target, rotation.aborting, now)?;
    let late: Vec<NodeId> = behind.iter().map(|record| record.id).collect();
    let moved = |voters: &[NodeId]| {
        let behind: BTreeSet<_> = late.iter().collect();
        let known = |id: &&NodeId| super::node(view, **id).is_ok_and(|node| node.is_some());
        let moved = voters.iter().filter(|id| !behind.contains(id)).filter(known).count();
        voters.is_empty() || moved > voters.len() / 2
    };
    let quorum = moved(&conf.voters) && moved(&conf.voters_outgoing);
    let due = now >= rotation.deadline;
    if quorum && (late.is_empty() || rotation.stolen || due) {
        return Ok(Verdict::Settle { id: rotation.id, late });
    }
    Ok(Verdict::Wait { late, stuck: due && !quorum })
}
