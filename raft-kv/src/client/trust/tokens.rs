//! Join tokens: made, listed and replaced for those who may, and looked up for those who come with one.
//!
//! Who comes with a wrong one learns nothing: every token is compared, each in constant time, and only
//! who has the secret of one hears what is wrong with it. A secret is never logged.

use std::net::IpAddr;
use std::time::Instant;

use super::super::api::{Call, Reply};
use super::super::handle::Handle;
use super::super::local::{Local, random};
use super::super::node::OWN_PATIENCE;
use super::attempts::Failure;
use super::authority::{TOKEN_SECRET, now};
use crate::error::{Error, Refusal};
use crate::machine;
use crate::pki::{JoinToken, Secret};
use crate::types::{Header, Hidden, Role, Sealed, TokenRecord, TrustCall, TrustChange, TrustReply};

/// A token that somebody came with and that was good when it was looked at.
#[derive(Clone, Debug)]
pub(in crate::client) struct Presented {
    /// Its id.
    pub(in crate::client) id: String,
    /// What it makes of a node.
    pub(in crate::client) role: Role,
    secret: Secret,
}

fn bad(why: impl Into<String>) -> Error {
    Refusal::BadToken { why: why.into() }.into()
}

/// What everybody hears whose secret is that of no token.
fn unknown() -> Error {
    bad("the cluster does not know it (any more); `raft-kv join-token` on a member prints the valid one")
}

/// Why a token whose secret is right is of no use.
fn unusable(record: &TokenRecord, now: i64) -> Option<(Failure, &'static str)> {
    if record.expires <= now {
        return Some((Failure::Expired, "it has expired; ask for another"));
    }
    if record.uses == Some(0) {
        return Some((Failure::UsedUp, "it has been used as often as it may be; ask for another"));
    }
    None
}

impl Local {
    /// The token that somebody came with, if it is good for a node of a role of which `unfit` says nothing.
    /// Failures are counted, and slow down where they come from.
    pub(in crate::client) async fn presented(
        &self,
        from: IpAddr,
        secret: &Hidden,
        unfit: impl FnOnce(Role) -> Option<String>,
    ) -> Result<Presented, Error> {
        self.attempts.admit(from, Instant::now())?;
        let failed = |why, error| {
            self.attempts.failed(from, why, Instant::now());
            tracing::info!(reason = ?why, "somebody was not let in");
            error
        };
        let Some(secret) = Secret::from_text(&secret.0) else {
            return Err(failed(Failure::Malformed, unknown()));
        };
        // A token that was rotated before this was asked is not good any more.
        self.barrier(OWN_PATIENCE).await?;
        // Others from there may have failed meanwhile.
        self.attempts.admit(from, Instant::now())?;
        let Some((id, record)) = self.token_of_secret(&secret)? else {
            return Err(failed(Failure::Unknown, unknown()));
        };
        if let Some((failure, why)) = unusable(&record, now()) {
            return Err(failed(failure, bad(why)));
        }
        if let Some(why) = unfit(record.role) {
            return Err(failed(Failure::Role, bad(why)));
        }
        Ok(Presented { id, role: record.role, secret })
    }

    /// Notes that who came with a good token proved not to be who it says.
    pub(in crate::client) fn unproven(&self, from: IpAddr) {
        self.attempts.failed(from, Failure::Proof, Instant::now());
    }

    /// Notes that what came can't be read.
    pub(in crate::client) fn unreadable(&self, from: IpAddr) {
        self.attempts.failed(from, Failure::Malformed, Instant::now());
    }

    /// Refuses a token that was rotated or revoked while a certificate was made for who came with it: where
    /// that was done before the log knew of the certificate, nobody may get it.
    pub(in crate::client) fn still_valid(&self, presented: &Presented) -> Result<(), Error> {
        let record = self.read(|view| machine::read::token(view, &presented.id))?.ok_or_else(unknown)?;
        if self.secret_of(&record)? == presented.secret { Ok(()) } else { Err(unknown()) }
    }

    /// The token with that secret, if there is one.
    fn token_of_secret(&self, secret: &Secret) -> Result<Option<(String, TokenRecord)>, Error> {
        let tokens = self.read(machine::read::tokens)?;
        // Every token is looked at: how long it takes tells nothing.
        let mut matching = None;
        for (id, record) in tokens {
            match self.secret_of(&record) {
                Ok(own) if own == *secret => matching = Some((id, record)),
                Ok(_) => {}
                // Who comes must not hear of it, nor may it keep others out.
                Err(error) => tracing::error!(token = id, %error, "a token can't be opened"),
            }
        }
        Ok(matching)
    }

    /// The secret of a token.
    fn secret_of(&self, record: &TokenRecord) -> Result<Secret, Error> {
        let text = self.keyring.open(TOKEN_SECRET, &record.secret)?;
        let text = String::from_utf8(text).ok().and_then(|text| Secret::from_text(&text));
        text.ok_or_else(|| bad("it is stored damaged; rotate it"))
    }

    /// The text of the token with that id.
    pub(in crate::client) fn token_text(&self, id: &str) -> Result<JoinToken, Error> {
        let (root, record) =
            self.read(|view| Ok((machine::read::trusted(view)?, machine::read::token(view, id)?)))?;
        let why = || format!("no token has the id {id:?}; `raft-kv token ls` lists them");
        let record = record.ok_or_else(|| Refusal::invalid("token id", why()))?;
        Ok(JoinToken { root: root.in_force().digest, secret: self.secret_of(&record)? })
    }

    /// A token's id and text.
    pub(super) fn with_text(&self, id: String) -> Result<TrustReply, Error> {
        let text = self.token_text(&id)?.to_string().into();
        Ok(TrustReply::Token { id, text })
    }

    /// Lists the tokens, without their secrets.
    pub(super) fn token_list(&self) -> Result<TrustReply, Error> {
        let mut tokens = self.read(machine::read::tokens)?;
        for (_, record) in &mut tokens {
            record.secret = Sealed::default();
        }
        Ok(TrustReply::Tokens(tokens))
    }

    /// Makes a token: good for `ttl` seconds and `uses` nodes, each 0 for no end.
    pub(super) async fn token_create(
        &self,
        role: Role,
        label: String,
        ttl: u64,
        uses: u64,
    ) -> Result<TrustReply, Error> {
        let now = now();
        let too_long = || Refusal::invalid("ttl", format!("{ttl} s is too long; give 0 for no end"));
        let expires = match ttl {
            0 => i64::MAX,
            _ => i64::try_from(ttl).ok().and_then(|ttl| now.checked_add(ttl)).ok_or_else(too_long)?,
        };
        // Short enough to be typed; the log refuses one that there is already.
        let id = format!("{role}-{:08x}", random::<u64>() as u32);
        let uses = Some(uses).filter(|uses| *uses > 0);
        let token = TokenRecord { role, secret: self.fresh_secret(), label, created: now, expires, uses };
        self.propose_trust(TrustChange::TokenCreate { id: id.clone(), token, now }).await?;
        tracing::info!(token = id, %role, "a join token was made");
        self.with_text(id)
    }

    /// Gives a token another secret.
    pub(super) async fn token_rotate(&self, id: String) -> Result<TrustReply, Error> {
        let change = TrustChange::TokenRotate { id: id.clone(), secret: self.fresh_secret(), now: now() };
        self.propose_trust(change).await?;
        tracing::info!(token = id, "a join token was rotated");
        self.with_text(id)
    }

    /// Removes a token.
    pub(super) async fn token_revoke(&self, id: String) -> Result<TrustReply, Error> {
        self.propose_trust(TrustChange::TokenRevoke { id: id.clone() }).await?;
        tracing::info!(token = id, "a join token was revoked");
        Ok(TrustReply::Done)
    }

    fn fresh_secret(&self) -> Sealed {
        self.keyring.seal(TOKEN_SECRET, Secret::generate(&mut rand::rng()).to_text().as_bytes())
    }
}

impl Handle {
    /// The join tokens by id, without their secrets.
    ///
    /// # Errors
    /// See [`Error`]; [`Refusal::NotAllowed`] for who may not ask.
    pub async fn tokens(&self) -> Result<Vec<(String, TokenRecord)>, Error> {
        match self.call(Call::Trust(TrustCall::Tokens)).await? {
            (_, Reply::Trust(TrustReply::Tokens(tokens))) => Ok(tokens),
            (_, other) => Err(unexpected(&other)),
        }
    }

    /// Makes a join token for nodes of `role`, good for `ttl` seconds and `uses` nodes, each 0 for no end.
    /// `label` is for people, at most [`MAX_NAME_BYTES`](crate::limits::MAX_NAME_BYTES). Answers its id and
    /// its text. A use is taken when a node is given its certificate, and stays taken if it fails after that.
    ///
    /// # Errors
    /// See [`Error`]; [`Refusal::Invalid`] for a label or time out of bounds, and where there are
    /// [`MAX_JOIN_TOKENS`](crate::limits::MAX_JOIN_TOKENS).
    pub async fn token_create(
        &self,
        role: Role,
        label: &str,
        ttl: u64,
        uses: u64,
    ) -> Result<(String, String), Error> {
        let label = label.to_owned();
        self.token_call(TrustCall::TokenCreate { role, label, ttl, uses }).await
    }

    /// Gives a token a new secret: the old one is refused once this is answered, on every member. Answers
    /// its id and its new text. What is left of its time and uses stays.
    ///
    /// # Errors
    /// See [`Error`]; [`Refusal::Invalid`] for an id that no token has.
    pub async fn token_rotate(&self, id: &str) -> Result<(String, String), Error> {
        self.token_call(TrustCall::TokenRotate(id.into())).await
    }

    /// The text of the token with that id.
    ///
    /// # Errors
    /// As [`token_rotate`](Self::token_rotate).
    pub async fn token_text(&self, id: &str) -> Result<String, Error> {
        Ok(self.token_call(TrustCall::Token(id.into())).await?.1)
    }

    /// Removes a token; those that every cluster has can only be rotated.
    ///
    /// # Errors
    /// As [`token_rotate`](Self::token_rotate).
    pub async fn token_revoke(&self, id: &str) -> Result<Header, Error> {
        match self.call(Call::Trust(TrustCall::TokenRevoke(id.into()))).await? {
            (header, Reply::Trust(TrustReply::Done)) => Ok(header),
            (_, other) => Err(unexpected(&other)),
        }
    }

    async fn token_call(&self, call: TrustCall) -> Result<(String, String), Error> {
        match self.call(Call::Trust(call)).await? {
            (_, Reply::Trust(TrustReply::Token { id, text })) => Ok((id, text.0)),
            (_, other) => Err(unexpected(&other)),
        }
    }
}

fn unexpected(reply: &Reply) -> Error {
    let what = format!("the answer is of another kind than the question ({reply:?})");
    Refusal::Malformed { what: what.chars().take(200).collect() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_right_token_is_told() {
        let record = |expires, uses| TokenRecord {
            role: Role::Worker,
            secret: Sealed::default(),
            label: String::new(),
            created: 0,
            expires,
            uses,
        };
        for (expires, uses, expect) in [
            (i64::MAX, None, None),
            (11, Some(1), None),
            (10, None, Some(Failure::Expired)),
            (10, Some(0), Some(Failure::Expired)),
            (11, Some(0), Some(Failure::UsedUp)),
        ] {
            let found = unusable(&record(expires, uses), 10).map(|(failure, _)| failure);
            assert_eq!(found, expect, "{expires} {uses:?}");
        }
    }

    #[test]
    fn nothing_shows_a_secret() {
        let secret = Secret::generate(&mut rand::rng());
        let text = secret.to_text();
        let presented = Presented { id: "t".into(), role: Role::Worker, secret };
        let hidden = Hidden::from(text.clone());
        let reply = TrustReply::Token { id: "t".into(), text: hidden.clone() };
        assert!(!format!("{presented:?} {hidden:?} {reply:?}").contains(&text));
    }
}
