//! Answers to those who come with a token and no certificate that is believed: clients and workers that
//! ask for their first one, and nodes that come back under the id they had.
//!
//! Nothing that they say of themselves counts but their key and, for a new client, its name. No answer
//! names a member.

use std::net::IpAddr;

use super::super::api::{Answered, Reply};
use super::super::config::check_name;
use super::super::local::{Local, random};
use super::super::node::hosts_of;
use super::authority::{Issued, Wanted, now};
use super::tokens::Presented;
use crate::error::{Error, Refusal};
use crate::machine;
use crate::pki::{self, Identity};
use crate::types::{
    EnrolRequest, KeyDigest, NodeId, NodeRecord, ReadmitRequest, Role, TrustChange, TrustReply,
};

/// The user that may do everything once permissions count.
const ROOT_USER: &str = "root";

fn bad<T>(why: impl Into<String>) -> Result<T, Error> {
    Err(Refusal::BadCertificate { why: why.into() }.into())
}

impl Local {
    /// A first certificate for a client or worker, for a token of that role.
    pub(in crate::client) async fn enrol(&self, from: IpAddr, request: EnrolRequest) -> Answered {
        let manager = "it is for the role manager: `raft-kv join` uses it; enrolling needs one for the role client \
                       or worker";
        let unfit = |role| (role == Role::Manager).then(|| manager.to_owned());
        let token = self.presented(from, &request.secret, unfit).await?;
        let EnrolRequest { request, name, .. } = request;
        check_name(&name)?;
        if token.role == Role::Client {
            self.check_free_user(&name)?;
        }
        pki::request_key(&request)?;
        let (node, role, hosts) = (NodeId(random()), token.role, Vec::new());
        let wanted = Wanted { node, role, name, hosts, token: token.id.clone(), renewal: false };
        let issued = self.issue_request(&wanted, &request).await?;
        self.still_welcome(node, &token).await?;
        tracing::info!(%node, %role, token = token.id, "a node was enrolled");
        self.certificate(issued)
    }

    /// Refuses a new client the name of a user, as which it would act: who may give that away issues the
    /// certificate itself.
    fn check_free_user(&self, name: &str) -> Result<(), Error> {
        let taken = self.read(|view| machine::auth::user(view, name))?.is_some();
        if taken || name == ROOT_USER {
            let why = format!(
                "{name:?} is a user's, and a client acts as the user of its name; choose another, or get the \
                 certificate with `raft-kv cert issue` from who may make it"
            );
            return Err(Refusal::invalid("name", why).into());
        }
        Ok(())
    }

    /// Takes a node out again for which a token was used that was rotated or revoked meanwhile.
    pub(in crate::client) async fn still_welcome(
        &self,
        node: NodeId,
        token: &Presented,
    ) -> Result<(), Error> {
        let valid = self.still_valid(token);
        if valid.is_err() {
            // Nobody has its certificate.
            self.propose_trust(TrustChange::NodeRemove { id: node, now: now() }).await?;
        }
        valid
    }

    fn certificate(&self, issued: Issued) -> Answered {
        let Issued { chain, roots, root } = issued;
        let reply = TrustReply::Certificate { chain, roots, issuing: root };
        Ok((self.now()?, Reply::Trust(reply)))
    }

    /// Another certificate for a node whose own is not believed any more, under its id.
    ///
    /// The token says that its owner is welcome, the proof that it is that node, and the record which key
    /// proves it: a certificate by itself proves nothing, since anybody can make one with a stolen root's key.
    /// Whether the node needs to be let back in besides is decided where it is applied.
    pub(in crate::client) async fn readmit(&self, from: IpAddr, request: ReadmitRequest) -> Answered {
        let token = self.presented(from, &request.secret, |_| None).await?;
        let record = match self.proven(&request) {
            Ok(record) => record,
            Err(error) => {
                self.unproven(from);
                return Err(error);
            }
        };
        if record.role != token.role {
            let why = format!(
                "it is for the role {}, and this node needs one for the role {}",
                token.role, record.role
            );
            return Err(Refusal::BadToken { why }.into());
        }
        pki::request_key(&request.request)?;
        let member = self.read(machine::read::members)?.into_iter().find(|it| it.record.id == record.id);
        let hosts = member.map_or_else(Vec::new, |it| hosts_of(&it.record.addr, &it.record.client_url));
        let named = !record.name.is_empty() || record.role != Role::Client;
        let name = if named { record.name.clone() } else { record.id.to_string() };
        let (node, role, id) = (record.id, record.role, token.id.clone());
        let wanted = Wanted { node, role, name, hosts, token: id, renewal: true };
        // A rotation of the token between here and there does not take the node out: it is known already, and
        // by its own key.
        let issued = self.issue_request(&wanted, &request.request).await?;
        self.still_valid(&token)?;
        tracing::info!(%node, %role, token = token.id, "a node came back");
        self.certificate(issued)
    }

    /// What is known of the node that proves to be the one of an old certificate.
    fn proven(&self, request: &ReadmitRequest) -> Result<NodeRecord, Error> {
        let Identity { cluster, node, .. } = Identity::from_cert(&request.old)?;
        let succeeds = || self.read(|view| Ok(machine::read::predecessors(view)?.contains(&cluster)));
        if cluster != self.cluster && !succeeds()? {
            return bad("the old certificate is of another cluster");
        }
        let proven = pki::proven_key(&request.old, &request.request, &request.proof)?;
        let next = KeyDigest::of(&pki::request_key(&request.request)?);
        let (record, revoked) =
            self.read(|view| Ok((machine::read::node(view, node)?, machine::read::revocation(view, node)?)))?;
        if revoked.is_some() {
            return bad("this node was removed from the cluster; let it join anew");
        }
        let Some(record) = record else {
            return bad("the cluster does not know this node (any more); let it join anew: `raft-kv enrol`");
        };
        // The answer to an earlier request with the same new key may have been lost.
        if record.key != proven && record.key != next {
            return bad("this node was given a newer certificate, with another key, than the one it shows");
        }
        Ok(record)
    }
}
