//! The quota on live bytes: what the newest keys and values take, and what they may.

use crate::codec::{wire_enum, wire_struct};

/// What the live keys take, and what they may: the newest version of each key counts, and no older
/// one. Every member has the same at the same revision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Bytes of all live keys and their values.
    pub bytes: u64,
    /// Live keys.
    pub keys: u64,
    /// What `bytes` may become, in bytes; no bound for `None`.
    pub quota: Option<u64>,
}
wire_struct!(Usage { bytes, keys, quota });

/// Asks about the quota, or sets it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum QuotaCall {
    /// What is used, and the quota.
    Show,
    /// Sets the quota, in bytes; none for `None`.
    Set(Option<u64>),
}
wire_enum!(QuotaCall { 1 => Show, 2 => Set(quota) });

/// Whether there is room for what takes space, as a member last applied it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Room {
    /// What is used, and the quota.
    pub usage: Usage,
    /// Whether an alarm forbids what takes space: one raised by hand, or a voter whose disk is short.
    pub short: bool,
}
