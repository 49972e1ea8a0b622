//! The door that a manager process links: one handle, local or over QUIC.

pub mod api;
