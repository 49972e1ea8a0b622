//! The cluster's authority at this member: certificates are made here, what is believed is put in
//! force here, and rotations are driven from here. What is decided is decided in `machine/trust`;
//! what certificates say, in `pki`.

pub(super) mod authority;
mod calls;
mod keeper;
pub(super) mod own;
mod rotation;
pub(super) mod signer;

pub(super) use authority::Wanted;
pub(super) use keeper::keep;
