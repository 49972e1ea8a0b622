//! Maintenance at this node's door: alarms, checksums, members' records, whole copies.

use std::time::Duration;

use super::api::{Answered, Reply};
use super::auth::{Asker, on_behalf};
use super::local::{Local, WHOLE};
use crate::machine;
use crate::machine::command::Command;
use crate::node::ask::What;
use crate::types::{AlarmRequest, Header, MemberRecord, Revision};

impl Local {
    /// Raises, ends or lists alarms; answers those there are after it.
    pub(super) async fn alarm(&self, asker: &Asker, request: AlarmRequest, patience: Duration) -> Answered {
        let only = match request {
            AlarmRequest::List(only) => {
                self.barrier(patience).await?;
                only
            }
            AlarmRequest::Raise(..) | AlarmRequest::End(..) => {
                let command = on_behalf(asker, Command::Alarm(request));
                self.apply(What::Command { command, once: None }, patience).await?;
                None
            }
        };
        let mut alarms = self.read(machine::read::alarms)?;
        alarms.retain(|(_, kind)| only.is_none_or(|only| only == *kind));
        Ok((self.now()?, Reply::Alarms(alarms)))
    }

    /// This member's checksum over its key space.
    pub(super) async fn hash_kv(&self, revision: Revision, patience: Duration) -> Answered {
        let shell = self.shell.clone();
        let read = move || {
            shell.read(|view| {
                let current = machine::read::current_revision(view)?;
                Ok(machine::read::hash_kv(view, revision)?.map(|hash| (current, hash)))
            })
        };
        // It reads everything, which takes as long as it takes; only its turn must come in time.
        let (current, hash) = WHOLE.run(patience, read).await???;
        Ok((self.header(current), Reply::Hash(hash)))
    }

    /// Changes a member's name or address; answers the members.
    pub(super) async fn member_update(
        &self,
        asker: &Asker,
        record: MemberRecord,
        patience: Duration,
    ) -> Answered {
        let command = on_behalf(asker, Command::MemberUpdate(record));
        let (revision, term, answer) = self.apply(What::Command { command, once: None }, patience).await?;
        let machine::Answer::Members(members) = answer else {
            unreachable!("a change of a member answers the members");
        };
        Ok((Header { term, ..self.header(revision) }, Reply::Members(members)))
    }
}
