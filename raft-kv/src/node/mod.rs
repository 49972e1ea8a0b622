//! The loop that every member runs: admit → propose → persist ∥ send → apply → publish.
//!
//! [`replica`] is the part that decides: values in, values out, no I/O; the simulator drives the
//! very same code. [`apply`] feeds the state machine. The async shell round them is `shell`.

mod admit;
pub mod apply;
pub mod ask;
mod duties;
pub mod leases;
mod lost;
pub mod membership;
mod peers;
mod propose;
pub mod reads;
pub mod replica;
mod roll;
#[cfg(test)]
mod tests;
pub mod waiting;
pub mod wire;

#[cfg(feature = "node")]
pub mod shell;
