//! The door that a manager process links: a member in this process ([`Node`]), and one handle
//! ([`Handle`]) for it and for members elsewhere.

pub mod api;
mod config;
mod handle;
mod local;
mod node;
mod remote;
mod serve;
mod watch;
mod world;

pub use config::{Config, Overrides, StartError, Tuning};
pub use handle::Handle;
pub use node::{Node, credentials_of};
pub use watch::Watch;
