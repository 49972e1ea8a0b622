//! The first state of a new cluster, as `init` writes it before raft ever runs.
//!
//! It must stay what the log can't say: everything after it comes from entries.

use bytes::Bytes;

use super::command::TokenRecord;
use crate::types::{ClusterId, MemberRecord};

/// What a new cluster starts from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Genesis {
    /// The cluster's id; not 0.
    pub cluster: ClusterId,
    /// The first member, which is the only voter; its id is not 0.
    pub member: MemberRecord,
    /// The root certificate, DER.
    pub root_cert: Bytes,
    /// The root's private key, PKCS#8 DER.
    pub root_key: Bytes,
    /// The first join tokens, each under its id.
    pub tokens: Vec<(String, TokenRecord)>,
}
