//! Users, roles and permissions at this node's door: who a caller is, tokens, and the calls that
//! change and show them. What is allowed is decided in `machine/auth` alone.
//!
//! Reads are asked for on the view that serves them; writes on the state there is now, so that a
//! refusal costs no log entry, and again where they are applied.

use std::time::{Duration, SystemTime};

use rand::RngCore;
use zeroize::Zeroizing;

use super::api::{Answered, Call, Reply};
use super::local::Local;
use super::token::{Claims, Token, end_of_one_made, sign};
use super::trust::sealing::{TOKEN_KEY, password_of};
use crate::error::{AuthRefusal, Error, NotDone, Refusal};
use crate::limits::{MAX_BCRYPT_COST, MAX_PASSWORD_BYTES, TOKEN_KEY_BYTES};
use crate::machine::auth::{Asked, AuthStatus, authorize, status, still_authorized, user};
use crate::machine::command::Command;
use crate::machine::{self, Read, Settled};
use crate::node::ask::What;
use crate::types::{
    AlarmRequest, AuthChange, AuthQuery, Caller, DeleteRequest, KeyRange, NodeId, PasswordHash, PointCall,
    QuotaCall, Sealed, TrustCall,
};

/// What a check of a password costs; each step doubles it.
const BCRYPT_COST: u32 = 10;
/// The hash of a password that nobody knows: unknown users cost as much as known ones.
const NOBODYS_PASSWORD: &str = "$2b$10$Wm4f9QOzUuQTnfWl7BvZUeTSGvFnS0xJ3uXAnSYlR1i3NdbCNGxxK";

/// The bcrypt hash of a password, as users are stored with. It takes about 50 ms: not for an async
/// thread.
///
/// # Errors
/// [`Refusal::Invalid`] for a password of more than [`MAX_PASSWORD_BYTES`].
pub fn hash_password(password: &str) -> Result<String, Refusal> {
    if password.len() > MAX_PASSWORD_BYTES {
        let why = format!("it has more than {MAX_PASSWORD_BYTES} bytes, and bcrypt looks at no more");
        return Err(Refusal::invalid("password", why));
    }
    Ok(bcrypt::hash(password, BCRYPT_COST).expect("the cost is in bounds and the system draws a salt"))
}

/// Whether it has the form of a bcrypt hash, of a cost that can be borne.
fn check_hash(hash: &str) -> Result<(), Refusal> {
    let bytes = hash.as_bytes();
    let letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"./".contains(byte);
    let cost = hash.get(4..6).and_then(|cost| cost.parse::<u32>().ok()).unwrap_or(0);
    let fits = bytes.len() == 60
        && bytes.starts_with(b"$2")
        && b"abxy".contains(&bytes[2])
        && bytes[3] == b'$'
        && bytes[6] == b'$'
        && bytes[7..].iter().all(letter);
    if !fits || !(4..=MAX_BCRYPT_COST).contains(&cost) {
        let why = format!("it is not a bcrypt hash of a cost from 4 to {MAX_BCRYPT_COST}");
        return Err(Refusal::invalid("password's hash", why));
    }
    Ok(())
}

/// Where a call is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    /// On this member's state as it is: the call is asked for again where it is applied, or says
    /// nothing of the keys.
    Door,
    /// On a state that holds everything answered before.
    Fresh,
    /// On the view that serves it.
    Served,
}

/// What a call asks for. A new call does not compile until it says so.
fn asked(call: &Call) -> (Asked<'_>, Where) {
    use Where::{Door, Fresh, Served};
    match call {
        Call::Range(request) => (Asked::Range(&request.range), Served),
        Call::ReadTxn(request) => (Asked::ReadTxn(request), Served),
        Call::LeaseTimeToLive { id, keys: true } => (Asked::LeaseKeys(*id), Served),
        Call::Command { command, .. } => (Asked::Command(command), Door),
        Call::Compact { .. } => (Asked::Everything, Door),
        Call::LeaseKeepAlive(_) | Call::LeaseTimeToLive { keys: false, .. } => (Asked::Named, Door),
        // It answers without a leader too.
        Call::Info | Call::Dates { .. } => (Asked::Named, Door),
        Call::Leases | Call::Members | Call::Alarm(AlarmRequest::List(_)) => (Asked::Named, Fresh),
        Call::RaiseRevision(_) | Call::MemberPromote(_) | Call::MemberRemove(_) | Call::Transfer(_) => {
            (Asked::Root, Fresh)
        }
        Call::Trust(TrustCall::Renew { .. } | TrustCall::Follow) => (Asked::Open, Door),
        Call::Trust(_) | Call::JoinToken(_) | Call::IssueCertificate { .. } => (Asked::Trust, Fresh),
        // With the keys it opens everything that is sealed.
        Call::Backup { keys } => (if *keys { Asked::Trust } else { Asked::Root }, Fresh),
        Call::Auth(_)
        | Call::Enrol(_)
        | Call::Readmit(_)
        | Call::Alarm(AlarmRequest::Raise(..) | AlarmRequest::End(..))
        | Call::HashKv(_)
        | Call::MemberUpdate(_)
        | Call::Join(_)
        | Call::Rejoin { .. } => (Asked::Root, Door),
        Call::AuthQuery(AuthQuery::Status) | Call::Authenticate { .. } => (Asked::Open, Door),
        Call::AuthQuery(AuthQuery::User(name)) => (Asked::User(name), Fresh),
        Call::AuthQuery(AuthQuery::Role(role)) => (Asked::Role(role), Fresh),
        Call::AuthQuery(AuthQuery::Users | AuthQuery::Roles) => (Asked::Root, Fresh),
        Call::Watch(request) => (Asked::Watch(&request.range), Door),
        // Sums; no keys.
        Call::Quota(QuotaCall::Show) => (Asked::Named, Fresh),
        Call::Quota(QuotaCall::Set(_)) => (Asked::Root, Door),
        // Names and times; no keys.
        Call::Points(PointCall::List) => (Asked::Named, Fresh),
        // Asked for with its range on the view that serves it.
        Call::Points(PointCall::Diff(_)) => (Asked::Open, Served),
    }
}

/// Reads for a caller, if it may, on the one view that serves it.
pub(super) fn serve<R>(
    view: &dyn Read,
    caller: &Caller,
    asked: &Asked,
    linearizable: bool,
    read: impl FnOnce() -> Settled<R>,
) -> Settled<R> {
    if let Err(refusal) = authorize(view, caller, asked)? {
        return Ok(Err(refusal));
    }
    if linearizable && let Err(refusal) = machine::read::check_read(view)? {
        return Ok(Err(refusal));
    }
    read()
}

/// Who makes a call.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    /// As far as the store's permissions go.
    pub(super) caller: Caller,
    /// The node whose certificate it came with; `None` for a call of this process's own.
    pub(super) node: Option<NodeId>,
}

impl Asker {
    /// This member itself.
    pub(super) const OWN: Self = Self { caller: Caller::Full, node: None };
}

/// The command as the log has it: with its caller, unless that one may do everything, and with the
/// node that it came from, if over the network.
pub(super) fn on_behalf(asker: &Asker, command: Command) -> Command {
    let command = match &asker.caller {
        Caller::Full => command,
        caller => Command::As { caller: caller.clone(), command: Box::new(command) },
    };
    match asker.node {
        Some(node) => Command::From { node, command: Box::new(command) },
        None => command,
    }
}

impl Local {
    /// The caller that is meant, once this member knows its users and roles.
    pub(super) async fn settle_caller(&self, caller: &Caller, patience: Duration) -> Result<Caller, Error> {
        let Caller::Bearer { token } = caller else {
            return Ok(caller.clone());
        };
        self.barrier(patience).await?;
        match self.bearer(token)? {
            Caller::Bearer { .. } => Err(AuthRefusal::InvalidToken.into()),
            known => Ok(known),
        }
    }

    /// Refuses a call that its caller may not make, as far as it is decided before it is served.
    pub(super) async fn admit(&self, asker: &Asker, call: &Call, patience: Duration) -> Result<(), Error> {
        let (asked, place) = asked(call);
        let caller = &asker.caller;
        if let (Some(_), Call::Command { command, .. }) = (asker.node, call)
            && let Err(refusal) = super::reserved::check(command)
        {
            // What is wrong with a request by itself is said first, as etcd does.
            machine::validate(command)?;
            return Err(refusal.into());
        }
        // What is no command of the log is not asked for again: it is decided on all there is.
        if let Some(node) = asker.node.filter(|_| place == Where::Fresh) {
            self.barrier(patience).await?;
            self.read(|view| machine::read::let_in(view, node))??;
        }
        if *caller == Caller::Full || asked == Asked::Open || place == Where::Served {
            return Ok(());
        }
        if place == Where::Fresh {
            self.barrier(patience).await?;
        }
        // Certificates and tokens are not everybody's, whether permissions count or not.
        if !self.shell.auth_counts() && asked != Asked::Trust {
            return Ok(());
        }
        let refused = self.read(|view| match call {
            // One stream renews for hours: users and roles that changed meanwhile must not end it.
            Call::LeaseKeepAlive(_) => still_authorized(view, caller, &asked),
            _ => authorize(view, caller, &asked),
        })?;
        let refused = refused.err();
        match (refused, call) {
            (None, _) => Ok(()),
            // What is wrong with a request by itself is said first, as etcd does.
            (Some(refusal), Call::Command { command, .. }) => {
                machine::validate(command)?;
                Err(refusal.into())
            }
            (Some(refusal), _) => Err(refusal.into()),
        }
    }

    /// Refuses to follow keys for a caller that may not read them now.
    pub(super) fn may_watch(&self, caller: &Caller, range: &KeyRange) -> Result<(), Error> {
        let caller = match caller {
            Caller::Bearer { token } => &self.bearer(token)?,
            known => known,
        };
        Ok(self.read(|view| still_authorized(view, caller, &Asked::Watch(range)))??)
    }

    /// Refuses to go on reading keys to a caller that may not read them now.
    pub(super) fn still_may_read(&self, caller: &Caller, range: &KeyRange) -> Result<(), Error> {
        if *caller == Caller::Full || !self.shell.auth_counts() {
            return Ok(());
        }
        Ok(self.read(|view| still_authorized(view, caller, &Asked::Range(range)))??)
    }

    /// Refuses a caller that may not write these keys now.
    pub(super) fn may_write(&self, caller: &Caller, range: &KeyRange) -> Result<(), Error> {
        let delete = Command::Delete(DeleteRequest { range: range.clone(), prev_kv: false });
        Ok(self.read(|view| still_authorized(view, caller, &Asked::Command(&delete)))??)
    }

    /// Refuses a caller that is nobody's name while permissions count. It is not waited for others,
    /// so that it can be asked without a leader.
    pub(super) async fn may_look(&self, caller: &Caller, patience: Duration) -> Result<(), Error> {
        let caller = self.settle_caller(caller, patience).await?;
        Ok(self.read(|view| still_authorized(view, &caller, &Asked::Named))??)
    }

    /// Refuses a caller that has not the role root now. It is not waited for others, so that it can
    /// be asked without a leader.
    pub(super) async fn may_manage(&self, caller: &Caller, patience: Duration) -> Result<(), Error> {
        let caller = self.settle_caller(caller, patience).await?;
        Ok(self.read(|view| still_authorized(view, &caller, &Asked::Root))??)
    }

    /// Nothing goes into the log in clear.
    fn seal_secrets(&self, change: &mut AuthChange) -> Result<(), Refusal> {
        match change {
            AuthChange::Enable { token_key } => {
                let mut drawn = Zeroizing::new([0; TOKEN_KEY_BYTES]);
                rand::rng().fill_bytes(drawn.as_mut());
                *token_key = self.keyring.seal(TOKEN_KEY, drawn.as_ref());
            }
            AuthChange::UserAdd { name, password } | AuthChange::UserPassword { name, password } => {
                match password {
                    Some(PasswordHash::Clear(hash)) => {
                        check_hash(hash)?;
                        let sealed = self.keyring.seal(&password_of(name), hash.as_bytes());
                        *password = Some(PasswordHash::Sealed(sealed));
                    }
                    Some(PasswordHash::Sealed(_)) => {
                        return Err(Refusal::invalid("password's hash", "hand it over in clear"));
                    }
                    None => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The hash that a user's record has sealed.
    fn hash_of(&self, name: &str, sealed: Option<Sealed>) -> Result<Option<String>, Error> {
        let Some(sealed) = sealed else { return Ok(None) };
        let hash = self.keyring.open(&password_of(name), &sealed)?;
        let damaged = |_| Refusal::invalid("password", "it is stored damaged; set it anew");
        Ok(Some(String::from_utf8(hash).map_err(damaged)?))
    }

    /// The key that signs tokens; none that signs anything where there is none.
    fn token_key(&self, status: &AuthStatus) -> Result<Vec<u8>, Error> {
        Ok(self.keyring.open(TOKEN_KEY, &status.token_key)?)
    }

    /// Changes users, roles or permissions.
    pub(super) async fn auth_change(
        &self,
        asker: &Asker,
        mut change: AuthChange,
        patience: Duration,
    ) -> Answered {
        self.seal_secrets(&mut change)?;
        let command = on_behalf(asker, Command::Auth(change));
        let (revision, ..) = self.apply(What::Command { command, once: None }, patience).await?;
        Ok((self.header(revision), Reply::Done))
    }

    /// Answers about users and roles.
    pub(super) async fn auth_query(&self, query: AuthQuery, patience: Duration) -> Answered {
        self.barrier(patience).await?;
        let view = self.read(|view| machine::auth::query(view, &query))??;
        Ok((self.now()?, Reply::Auth(view)))
    }

    /// Checks a password; answers a token that every member knows at once.
    pub(super) async fn authenticate(&self, name: String, password: String, patience: Duration) -> Answered {
        self.barrier(patience).await?;
        let (status, user) = self.read(|view| Ok((status(view)?, user(view, &name)?)))?;
        if !status.enabled {
            return Err(AuthRefusal::NotEnabled.into());
        }
        let password_revision = user.as_ref().map_or(0, |user| user.password_revision);
        let hash = self.hash_of(&name, user.and_then(|user| user.password))?;
        if !self.check_password(password, hash, patience).await? {
            return Err(AuthRefusal::Failed.into());
        }
        // Should the password have changed meanwhile, the token has ended before it is used.
        let (revision, ends) = (status.revision, end_of_one_made(SystemTime::now()));
        let token =
            sign(&self.token_key(&status)?, &Claims { user: name, password_revision, revision, ends });
        Ok((self.now()?, Reply::Token(token.into())))
    }

    /// Whether it is the password with that hash; never where there is none. A few at a time, and
    /// aside: each takes tens of milliseconds of a processor.
    async fn check_password(
        &self,
        password: String,
        hash: Option<String>,
        patience: Duration,
    ) -> Result<bool, Error> {
        let turn = tokio::time::timeout(patience, self.password_checks.acquire());
        let _turn = turn.await.map_err(|_| Error::NotDone(NotDone::Busy))?.expect("it is never closed");
        let check = move || {
            let known = hash.is_some();
            let hash = hash.as_deref().unwrap_or(NOBODYS_PASSWORD);
            bcrypt::verify(password, hash).unwrap_or(false) && known
        };
        Ok(tokio::task::spawn_blocking(check).await.expect("checking a password does not panic"))
    }

    /// Who a caller from outside is: by its token if it has one, else by its certificate's name. A
    /// name that is no user's proves nothing, as if no name were given.
    ///
    /// # Errors
    /// [`AuthRefusal::InvalidToken`].
    pub(super) fn caller(&self, token: Option<&str>, certificate: Option<&str>) -> Result<Caller, Error> {
        if let Some(token) = token.filter(|token| !token.is_empty()) {
            return self.bearer(token.strip_prefix("Bearer ").unwrap_or(token));
        }
        if !self.shell.auth_counts() {
            return Ok(Caller::Anonymous);
        }
        let named = self.read(|view| {
            let status = status(view)?;
            Ok(match certificate {
                Some(name) if status.enabled && user(view, name)?.is_some() => {
                    Some(Caller::User { name: name.to_owned(), revision: status.revision })
                }
                _ => None,
            })
        })?;
        Ok(named.unwrap_or(Caller::Anonymous))
    }

    /// Who holds a token.
    fn bearer(&self, text: &str) -> Result<Caller, Error> {
        let invalid = || Error::from(AuthRefusal::InvalidToken);
        let token = Token::read(text);
        let claims = token.as_ref().map(|token| &token.claims);
        let (status, held) = self.read(|view| {
            let status: AuthStatus = status(view)?;
            let held = match claims {
                Some(claims) if status.enabled => user(view, &claims.user)?,
                _ => None,
            };
            Ok((status, held))
        })?;
        if claims.is_some_and(|claims| claims.revision > status.revision) {
            // It may be of users that this member has not heard of yet.
            return Ok(Caller::Bearer { token: text.to_owned() });
        }
        if !status.enabled {
            return Ok(Caller::Anonymous);
        }
        let token = token.ok_or_else(invalid)?;
        let is_held = held.is_some_and(|user| {
            user.password.is_some() && user.password_revision == token.claims.password_revision
        });
        if !is_held || !token.is_valid(&self.token_key(&status)?, SystemTime::now()) {
            return Err(invalid());
        }
        Ok(Caller::User { name: token.claims.user, revision: status.revision })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_checked_by_its_hash_and_nobodys_costs_as_much() {
        let hash = hash_password("secret").unwrap();
        assert!(bcrypt::verify("secret", &hash).unwrap());
        assert!(!bcrypt::verify("Secret", &hash).unwrap());
        let parts = |hash: &str| hash.parse::<bcrypt::HashParts>().unwrap().get_cost();
        assert_eq!(parts(&hash), parts(NOBODYS_PASSWORD));
        // It is read to its end, not given up at the first letter.
        assert!(!bcrypt::verify("secret", NOBODYS_PASSWORD).unwrap());
        check_hash(&hash).unwrap();
        let dear = hash.replace("$10$", "$31$");
        for bad in ["", "secret", &hash[1..], &hash.replace("$10$", "$xx$"), &dear] {
            assert!(check_hash(bad).is_err(), "{bad}");
        }
        let change = AuthChange::UserAdd { name: "u".into(), password: Some(hash.into()) };
        assert!(machine::validate(&Command::Auth(change)).is_err(), "in clear it never comes into the log");
        assert!(hash_password(&"x".repeat(MAX_PASSWORD_BYTES)).is_ok());
        assert!(hash_password(&"x".repeat(MAX_PASSWORD_BYTES + 1)).is_err());
    }
}
