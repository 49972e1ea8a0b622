//! The services of an orchestrator's workers and managers. Thin: what a worker may see and say is the
//! crate's `orchestration`; here are messages, and who is at the other end.

pub mod convert;
pub mod keeper;
pub mod worker;
