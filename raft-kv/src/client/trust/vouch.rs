//! Members' word for a member that one of them has not heard of.
//!
//! A member that was off may find the group led by one that joined meanwhile. It can't know that one by its own
//! state, and gets no newer state but from it. So it asks the members that it does know. It must never take the
//! stranger's own word, nor that of anybody whose certificate would not be let in here.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::super::api::{Call, Reply};
use super::super::local::Local;
use super::super::remote::read_answer;
use super::super::world::Outside;
use crate::codec::Wire;
use crate::error::{Error, Refusal};
use crate::machine;
use crate::types::{MemberRecord, NodeId, TrustCall, TrustReply};

/// How long a member is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two rounds: whoever has a good chain and no record must not keep everybody busy.
const PAUSE: Duration = Duration::from_millis(200);

/// Asks about whoever waits to be let in. Runs until the node ends.
pub(in crate::client) async fn vouch(local: Arc<Local>, outside: Arc<Outside>) {
    loop {
        for id in local.trust.strangers().await {
            if let Some((record, by)) = local.word_for(id, &outside).await {
                tracing::info!(member = %id, name = record.name, %by, "a member not heard of yet is vouched for");
                local.trust.vouch(id);
                outside.acquaint(record);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Local {
    /// What this member has applied of another one.
    pub(in crate::client) fn vouched(&self, id: NodeId) -> Result<TrustReply, Error> {
        let members = self.read(machine::read::members)?;
        let found = members.into_iter().map(|member| member.record).find(|record| record.id == id);
        Ok(TrustReply::Vouched(found))
    }

    /// The first word for a stranger, and who gave it.
    async fn word_for(&self, id: NodeId, outside: &Arc<Outside>) -> Option<(MemberRecord, NodeId)> {
        let members = self.read(machine::read::members).ok()?;
        let mut asked = JoinSet::new();
        for member in members.into_iter().map(|member| member.record) {
            if member.id != self.me && member.id != id {
                let outside = outside.clone();
                asked.spawn(async move { (ask(&outside, &member, id).await, member.id) });
            }
        }
        while let Some(answered) = asked.join_next().await {
            match answered {
                Ok((Ok(Some(record)), by)) if record.id == id => return Some((record, by)),
                Ok((Err(error), by)) => tracing::debug!(%by, %error, "asked about a member not heard of"),
                _ => {}
            }
        }
        None
    }
}

/// Asks that member, and nobody else who may be at its address: one of an epoch that is over would vouch for its own.
async fn ask(outside: &Outside, member: &MemberRecord, id: NodeId) -> Result<Option<MemberRecord>, Error> {
    let asking = async {
        let dialer = outside.dialer(&member.addr, member.id).await?;
        match read_answer(dialer.call(Call::Trust(TrustCall::Vouch(id)).to_bytes()).await?)? {
            (_, Reply::Trust(TrustReply::Vouched(record))) => Ok(record),
            (_, other) => Err(Refusal::Malformed { what: format!("{other:?} for a word") }.into()),
        }
    };
    let late = |_| Error::NotDone(crate::error::NotDone::Deadline);
    tokio::time::timeout(PATIENCE, asking).await.map_err(late)?
}
