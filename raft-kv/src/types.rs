//! The words of the project as types: identities, revisions, keys, log entries, requests and
//! answers. Nothing here does anything.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

mod auth;
mod kv;
mod log;
mod member;
mod points;
mod quota;
mod sealing;
mod transfer;
mod trust;

pub use auth::*;
pub use kv::*;
pub use log::*;
pub use member::*;
pub use points::*;
pub use quota::*;
pub use sealing::*;
pub use transfer::*;
pub use trust::*;

/// A store revision: 1 when empty, one more for every request that changes anything.
pub type Revision = i64;
/// A lease's id; positive.
pub type LeaseId = i64;
/// A raft term.
pub type Term = u64;
/// A raft log index.
pub type Index = u64;

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                u64::from_str_radix(text, 16).map(Self)
            }
        }
        impl $crate::codec::Wire for $name {
            fn encode(&self, out: &mut bytes::BytesMut) {
                self.0.encode(out);
            }
            fn decode(input: &mut $crate::codec::Reader) -> Result<Self, $crate::codec::Malformed> {
                u64::decode(input).map(Self)
            }
        }
    };
}

hex_id! {
    /// A node's id and, for a member, its raft id: random, never 0, never used twice. Shown as
    /// 16 hexadecimal digits.
    NodeId
}
hex_id! {
    /// A cluster's id: random at `init`, never 0. Shown as 16 hexadecimal digits.
    ClusterId
}

/// Names one request of one process run for ever: no two requests share it, retries included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RequestId {
    /// The node whose caller waits for the answer.
    pub origin: NodeId,
    /// Drawn at random by each process run of that node.
    pub boot: u64,
    /// Counts up within that run.
    pub seq: u64,
}
crate::codec::wire_struct!(RequestId { origin, boot, seq });

/// A caller's own name for a request, so that a repeated one is answered and not done again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OnceId {
    /// Drawn at random by the caller.
    pub client: u64,
    /// Counts up from 1 with each new request of that client; one request at a time.
    pub seq: u64,
}
crate::codec::wire_struct!(OnceId { client, seq });

/// Where an answer comes from and how new it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// The cluster that answered.
    pub cluster: ClusterId,
    /// The member that answered.
    pub member: NodeId,
    /// The store's current revision at the time of the answer.
    pub revision: Revision,
    /// The raft term at the time of the answer.
    pub term: Term,
}
crate::codec::wire_struct!(Header { cluster, member, revision, term });

/// Bytes for people: printable ASCII as it is, the rest as `\xNN`.
pub fn readable(bytes: &Bytes) -> String {
    bytes.escape_ascii().to_string()
}
