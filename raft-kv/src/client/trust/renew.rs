//! Renewals for clients and workers, and the stream that tells them when to come.
//!
//! Who asks is who the certificate of its connection names, and it must be the holder of the newest
//! certificate that the node was given: with a stolen root's key anybody can make a certificate in a
//! node's name, and nobody the node's key. Role and name come from the record alone.

use std::time::Duration;

use tokio::sync::Semaphore;

use super::super::api::{Answered, Reply};
use super::super::local::Local;
use super::super::node::OWN_PATIENCE;
use super::super::worker;
use super::authority::{Issued, Wanted, roots_of};
use crate::codec::Wire;
use crate::error::{Error, NotDone, Refusal};
use crate::limits::{MAX_FOLLOWS_PER_CONNECTION, MAX_NODE_ERROR_BYTES};
use crate::machine;
use crate::net::RequestStream;
use crate::pki;
use crate::types::{KeyDigest, NodeRecord, Role, TrustChange, TrustReply};

/// Changes that come this close to each other are told as one: nodes come and go far more often than
/// roots do.
const GATHER: Duration = Duration::from_millis(20);

/// What one connection may have under way.
#[derive(Debug)]
pub(in crate::client) struct Turns {
    follows: Semaphore,
    renewals: Semaphore,
}

impl Turns {
    pub(in crate::client) fn new() -> Self {
        Self { follows: Semaphore::new(MAX_FOLLOWS_PER_CONNECTION), renewals: Semaphore::new(1) }
    }
}

fn bad<T>(why: &str) -> Result<T, Error> {
    Err(Refusal::BadCertificate { why: why.into() }.into())
}

impl Local {
    /// A new certificate for the node whose connection `stream` came by.
    pub(in crate::client) async fn renew(
        &self,
        stream: &RequestStream,
        turns: &Turns,
        request: &[u8],
    ) -> Answered {
        let Ok(_turn) = turns.renewals.try_acquire() else { return Err(Error::NotDone(NotDone::Busy)) };
        let (Some(identity), Some(shown)) = (stream.identity, stream.key()) else {
            return Err(Refusal::NotAllowed { role: "joiner's missing".into() }.into());
        };
        pki::request_key(request)?;
        self.barrier(OWN_PATIENCE).await?;
        let (member, record) = self.read(|view| {
            let members = machine::read::members(view)?;
            let member = members.iter().any(|member| member.record.id == identity.node);
            Ok((member, machine::read::node(view, identity.node)?))
        })?;
        if member {
            return bad("a member looks after its own certificate, as long as it runs");
        }
        let Some(record) = record else {
            return bad("the cluster does not know this node (any more); let it join anew: `raft-kv enrol`");
        };
        match self.renewed(&record, shown, request).await {
            Ok(Issued { chain, roots, root }) => {
                let reply = TrustReply::Certificate { chain, roots, issuing: root };
                Ok((self.now()?, Reply::Trust(reply)))
            }
            Err(error) => {
                self.note_failure(&record, &error).await;
                Err(error)
            }
        }
    }

    async fn renewed(&self, record: &NodeRecord, shown: KeyDigest, request: &[u8]) -> Result<Issued, Error> {
        let key = &pki::request_key(request)?;
        // The answer to an earlier request with the same key may have been lost.
        let repeated = record.key == KeyDigest::of(key);
        if record.key != shown && !repeated && !crate::planted!(RenewAnyKey) {
            return bad(
                "this node was given a newer certificate than the one it asks with; use that one, or get another \
                 with `raft-kv cert issue` or a token",
            );
        }
        let named = !record.name.is_empty() || record.role != Role::Client;
        let name = if named { record.name.clone() } else { record.id.to_string() };
        let (hosts, token) = (Vec::new(), String::new());
        let wanted = Wanted { node: record.id, role: record.role, name, hosts, token, renewal: true };
        self.issue_request(&wanted, request).await
    }

    /// Tells the log why a node has no new certificate, once for each reason.
    async fn note_failure(&self, record: &NodeRecord, error: &Error) {
        let Error::Refused(refusal) = error else { return };
        let mut text = refusal.to_string();
        while text.len() > MAX_NODE_ERROR_BYTES {
            text.pop();
        }
        if text != record.error {
            // Nobody waits for it; the next failure tells it too.
            let _ = self.propose_trust(TrustChange::Failed { id: record.id, error: text }).await;
        }
    }

    /// What is believed and where leaves come from, as who follows is told.
    fn told(&self) -> Result<TrustReply, Error> {
        let trusted = self.read(machine::read::trusted)?;
        let (roots, issuing) = (roots_of(&trusted), trusted.issuing().digest);
        Ok(TrustReply::Certificate { chain: Vec::new(), roots, issuing })
    }
}

/// Tells what is believed, now and each time that it has changed, until nobody listens or the member
/// ends.
pub(in crate::client) async fn follow(local: &Local, mut stream: RequestStream, turns: &Turns) {
    let turn = turns.follows.try_acquire();
    let mut changes = local.shell.trust_changes();
    let mut ended = local.shell.ended();
    let begun = async {
        turn.as_ref().map_err(|_| Error::NotDone(NotDone::Busy))?;
        // Whoever follows must not be led back to what was believed before.
        local.barrier(OWN_PATIENCE).await
    };
    let mut begun = begun.await;
    let (mut last, stopped) = (None, stream.stopped());
    tokio::pin!(stopped);
    loop {
        changes.mark_unchanged();
        let told = std::mem::replace(&mut begun, Ok(())).and_then(|()| Ok((local.now()?, local.told()?)));
        let answered: Answered = match told {
            Ok((_, told)) if last.as_ref() == Some(&told) => {
                tokio::select! {
                    () = &mut stopped => return,
                    _ = ended.wait_for(Option::is_some) => return stream.finish(),
                    changed = changes.changed() => if changed.is_err() { return stream.finish() },
                }
                tokio::time::sleep(GATHER).await;
                continue;
            }
            Ok((header, told)) => {
                last = Some(told.clone());
                Ok((header, Reply::Trust(told)))
            }
            Err(error) => Err(error),
        };
        let last_one = answered.is_err();
        let told = worker::told(stream.identity, &answered);
        if stream.send(told.to_bytes()).await.is_err() {
            return;
        }
        if last_one {
            stream.finish();
            let _ = tokio::time::timeout(OWN_PATIENCE, stopped).await;
            return;
        }
    }
}
