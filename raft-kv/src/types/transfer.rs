//! Snapshots on their way between members, as callers see them. Nothing here decides anything.

use super::NodeId;
use crate::codec::wire_struct;

/// One snapshot on its way, as others see it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TransferStatus {
    /// The other side.
    pub member: NodeId,
    /// Bytes of the snapshot.
    pub bytes: u64,
    /// Bytes of it that are at the receiver.
    pub done: u64,
    /// Bytes that passed per second, on average since the transfer began.
    pub rate: u64,
}
wire_struct!(TransferStatus { member, bytes, done, rate });

impl TransferStatus {
    /// How much of it is done, in whole percent.
    pub fn percent(&self) -> u64 {
        (self.done.min(self.bytes).saturating_mul(100)).checked_div(self.bytes).unwrap_or(100)
    }
}

/// What one member has sent and received, and what it is at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TransferCounts {
    /// Checkpoints made to be sent since the start.
    pub made: u64,
    /// Bytes of snapshots sent since the start.
    pub sent: u64,
    /// Bytes of snapshots received since the start.
    pub received: u64,
    /// Bytes that a receiver had already from a transfer that broke, and that were not sent again.
    pub spared: u64,
    /// Those on their way from this member.
    pub sending: Vec<TransferStatus>,
    /// That on its way to this member.
    pub receiving: Vec<TransferStatus>,
}
wire_struct!(TransferCounts { made, sent, received, spared, sending, receiving });
