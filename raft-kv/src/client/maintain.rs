//! Maintenance at this node's door: alarms, checksums, members' records, whole copies.

use std::time::Duration;

use super::api::Answered;
use super::local::Local;
use crate::error::Refusal;
use crate::types::{AlarmRequest, MemberRecord, Revision};

impl Local {
    /// Raises, ends or lists alarms.
    pub(super) async fn alarm(&self, _request: AlarmRequest, _patience: Duration) -> Answered {
        Err(Refusal::invalid("call", "not built yet").into())
    }

    /// This member's checksum over its key space.
    pub(super) async fn hash_kv(&self, _revision: Revision, _patience: Duration) -> Answered {
        Err(Refusal::invalid("call", "not built yet").into())
    }

    /// Changes a member's name or address.
    pub(super) async fn member_update(&self, _record: MemberRecord, _patience: Duration) -> Answered {
        Err(Refusal::invalid("call", "not built yet").into())
    }
}
