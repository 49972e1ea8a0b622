//! The cluster's authority at this member: certificates are made here, what is believed is put in
//! force here, and rotations are driven from here. What is decided is decided in `machine/trust`;
//! what certificates say, in `pki`.

pub(super) mod attempts;
pub(super) mod authority;
mod calls;
mod enrol;
mod keeper;
mod newest;
mod nodes;
pub(super) mod own;
mod renew;
mod rotation;
pub(super) mod sealing;
pub(super) mod signer;
mod tokens;
pub(super) mod unlock;
pub(super) mod vault;
mod vouch;

pub(super) use authority::Wanted;
pub(super) use keeper::{due, keep, renew_expired};
pub(super) use newest::gives_trust;
pub(super) use nodes::evict;
pub(super) use renew::{Turns, follow};
pub(super) use sealing::keep_sealed;
pub(super) use tokens::Presented;
pub(super) use vouch::vouch;
