//! Maintenance at this node's door: alarms, checksums, members' records, whole copies.

use std::time::Duration;

use super::api::{Answered, Reply};
use super::local::{Local, run};
use crate::error::Refusal;
use crate::machine;
use crate::types::{AlarmRequest, MemberRecord, Revision};

impl Local {
    /// Raises, ends or lists alarms.
    pub(super) async fn alarm(&self, _request: AlarmRequest, _patience: Duration) -> Answered {
        Err(Refusal::invalid("call", "not built yet").into())
    }

    /// This member's checksum over its key space.
    pub(super) async fn hash_kv(&self, revision: Revision, _patience: Duration) -> Answered {
        let shell = self.shell.clone();
        let read = move || {
            shell.read(|view| {
                let current = machine::read::current_revision(view)?;
                Ok(machine::read::hash_kv(view, revision)?.map(|hash| (current, hash)))
            })
        };
        // It reads everything, which takes as long as it takes.
        let (current, hash) = run(true, read).await??;
        Ok((self.header(current), Reply::Hash(hash)))
    }

    /// Changes a member's name or address.
    pub(super) async fn member_update(&self, _record: MemberRecord, _patience: Duration) -> Answered {
        Err(Refusal::invalid("call", "not built yet").into())
    }
}
