//! The first state of a new cluster, as `init` writes it before raft ever runs.
//!
//! It must stay what the log can't say: everything after it comes from entries.

use crate::types::{Authority, ClusterId, MemberRecord, NodeRecord, TokenRecord};

/// What a new cluster starts from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Genesis {
    /// The cluster's id; not 0.
    pub cluster: ClusterId,
    /// The first member, which is the only voter; its id is not 0.
    pub member: MemberRecord,
    /// The root and how certificates are signed under it.
    pub authority: Authority,
    /// The first member's certificate.
    pub node: NodeRecord,
    /// The first join tokens, each under its id.
    pub tokens: Vec<(String, TokenRecord)>,
}
