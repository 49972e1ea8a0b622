//! The handle: one set of methods for callers in the process and for callers over QUIC.
//!
//! Every method says by its error whether the request was refused, certainly not done, or has an
//! unknown outcome; nothing that might have been done is ever sent twice.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::api::{Answered, Call, Info, Reply};
use super::auth::Asker;
use super::local::Local;
use super::ranges::RangeStream;
use super::remote::Remote;
use super::renewing::Renewals;
use super::snapshot::Snapshot;
use super::watch::Watch;
use super::watch_set::WatchSet;
use crate::error::{Error, Refusal};
use crate::limits;
use crate::machine::Answer;
use crate::machine::command::Command;
use crate::machine::read::RangeMeasure;
use crate::net::read_credentials_in;
use crate::pki::Credentials;
use crate::types::{
    AlarmKind, AlarmRequest, AuthChange, AuthQuery, AuthView, CaStatus, Caller, DeleteRequest,
    DeleteResponse, Header, KeyRange, LeaseId, LeaseStatus, Member, MemberRecord, NodeId, OnceId, PutRequest,
    PutResponse, RangeRequest, RangeResponse, Revision, Role, Rotation, StateHash, TrustCall, TrustReply,
    TxnRequest, TxnResponse, WatchRequest,
};

/// What to do where a certificate has expired.
pub(super) const RENEW: &str = "get a new one: `raft-kv enrol` with a token, or `raft-kv cert issue NAME --out DIR \
    --data-dir D` on a machine that runs a member; and `raft-kv cert renew --watch` keeps it current from then on";

#[derive(Clone)]
pub(super) enum Door {
    Local(Arc<Local>),
    Remote(Arc<Remote>),
}

/// A door to the cluster. Clones share one connection or one node.
#[derive(Clone)]
pub struct Handle {
    door: Door,
    patience: Duration,
    caller: Caller,
    /// The node whose certificate its calls come with.
    node: Option<NodeId>,
}

/// What a method says when the other side answers something else: a bug there, or a newer version.
pub(super) fn unexpected(reply: &Reply) -> Error {
    let what = format!("the answer is of another kind than the question ({reply:?})");
    Error::Refused(Refusal::Malformed { what: what.chars().take(200).collect() })
}

/// A method that needs the member in this process.
fn not_here(what: &str) -> Error {
    Refusal::invalid("handle", format!("{what} only by a handle in the member's own process")).into()
}

macro_rules! expect {
    ($answered:expr, $pattern:pat => $value:expr) => {
        match $answered? {
            (header, $pattern) => {
                let value = $value;
                Ok((header, value))
            }
            (_, other) => Err(unexpected(&other)),
        }
    };
}

impl Handle {
    pub(super) fn local(local: Arc<Local>) -> Self {
        Self {
            door: Door::Local(local),
            patience: limits::REQUEST_DEADLINE,
            caller: Caller::Full,
            node: None,
        }
    }

    /// Connects to the first of `endpoints` (`https://host:port` or `host:port`) that answers; the
    /// others are used when it does not any more.
    ///
    /// # Errors
    /// [`Error::Refused`] where a certificate or an endpoint is not accepted, [`Error::NotDone`]
    /// where nobody answers.
    pub async fn connect(endpoints: &[String], credentials: Credentials) -> Result<Self, Error> {
        credentials.check_date(SystemTime::now(), RENEW)?;
        let remote = Remote::connect(endpoints, credentials).await?;
        Ok(Self {
            door: Door::Remote(Arc::new(remote)),
            patience: limits::REQUEST_DEADLINE,
            caller: Caller::Full,
            node: None,
        })
    }

    /// As [`connect`](Self::connect) with the certificate in `dir` (`cacert.pem`, `cert.pem`, `key.pem`),
    /// which is kept current for as long as the handle or a clone lives: renewed at a random point between
    /// 50 and 80 % of its life, and at once where the cluster's root is replaced. The files change all at
    /// once ([`replace_credentials`](crate::net::replace_credentials)); calls go on meanwhile, watches too.
    /// A certificate that another process has put there is taken as well.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), and [`Refusal::Invalid`] for files that can't be read.
    pub async fn connect_renewing(endpoints: &[String], dir: &Path) -> Result<Self, Error> {
        let credentials = read_credentials_in(dir)?;
        credentials.check_date(SystemTime::now(), RENEW)?;
        let remote = Arc::new(Remote::connect(endpoints, credentials).await?);
        super::renewing::start(&remote, dir.to_owned())?;
        Ok(Self {
            door: Door::Remote(remote),
            patience: limits::REQUEST_DEADLINE,
            caller: Caller::Full,
            node: None,
        })
    }

    /// How the certificate is doing, of a handle made by [`connect_renewing`](Self::connect_renewing).
    pub fn renewals(&self) -> Option<tokio::sync::watch::Receiver<Renewals>> {
        match &self.door {
            Door::Local(_) => None,
            Door::Remote(remote) => remote.renewals(),
        }
    }

    /// Asks the cluster's authority. `Renew` and `Follow` come by their own ways:
    /// [`connect_renewing`](Self::connect_renewing).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn trust(&self, call: TrustCall) -> Result<(Header, TrustReply), Error> {
        expect!(self.call(Call::Trust(call)).await, Reply::Trust(reply) => reply)
    }

    /// The cluster's authority: roots, nodes, how far a rotation is and who is late.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn ca_status(&self) -> Result<CaStatus, Error> {
        match self.trust(TrustCall::Status).await? {
            (_, TrustReply::Status(status)) => Ok(status),
            (_, other) => Err(unexpected(&Reply::Trust(other))),
        }
    }

    /// The rotation that is under way as this member knows it, and how many nodes are late, without waiting
    /// for anybody. Only for a handle in the member's own process.
    ///
    /// # Errors
    /// [`NotDone::NoState`](crate::error::NotDone::NoState), [`Error::Stopped`].
    pub fn rotation_here(&self) -> Result<Option<(Rotation, usize)>, Error> {
        match &self.door {
            Door::Local(local) => local.rotation_here(),
            Door::Remote(_) => Err(not_here("a rotation is looked up")),
        }
    }

    /// Joins that failed at the member in this process since its start, by reason. Only for a handle in the
    /// member's own process; elsewhere there is none.
    pub fn join_failures(&self) -> Vec<(&'static str, u64)> {
        match &self.door {
            Door::Local(local) => local.attempts.counts(),
            Door::Remote(_) => Vec::new(),
        }
    }

    /// Snapshots to and from the member in this process, also while it has no state yet. Only for a handle
    /// in the member's own process; elsewhere there is none, and [`info`](Self::info) says it.
    pub fn snapshots_here(&self) -> Option<crate::types::TransferCounts> {
        match &self.door {
            Door::Local(local) => Some(local.snapshots()),
            Door::Remote(_) => None,
        }
    }

    /// The same door with another patience: how long a request may take, at most
    /// (a day is the longest). A member elsewhere answers within its own
    /// [`limits::REQUEST_DEADLINE`].
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience.min(limits::MAX_PATIENCE);
        self
    }

    /// The same door on behalf of somebody else: what that caller may not do is refused. Counts
    /// for a handle in the member's own process; elsewhere the member decides by the certificate.
    #[must_use]
    pub fn acting_as(mut self, caller: Caller) -> Self {
        self.caller = caller;
        self
    }

    /// The same door for calls that came with the certificate of a node: none of them changes
    /// anything once that node is removed. Counts as [`acting_as`](Self::acting_as) does.
    #[must_use]
    pub fn on_node(mut self, node: NodeId) -> Self {
        self.node = Some(node);
        self
    }

    /// Where its calls go.
    pub(super) fn door(&self) -> &Door {
        &self.door
    }

    /// The node whose certificate its calls come with, if not this process's own.
    pub(super) fn node(&self) -> Option<NodeId> {
        self.node
    }

    /// Whom the handle acts for.
    pub(super) fn acts_for(&self) -> &Caller {
        &self.caller
    }

    /// The same door for a caller that was let in before and goes on for long: by the users and
    /// roles as they are now, of which a handle that is older may make no call any more.
    ///
    /// # Errors
    /// [`NotDone::NoState`](crate::error::NotDone::NoState), [`Error::Stopped`].
    pub fn renewed(&self) -> Result<Self, Error> {
        match (&self.door, &self.caller) {
            (Door::Local(local), Caller::User { name, .. }) => {
                let revision = local.read(crate::machine::auth::status)?.revision;
                Ok(self.clone().acting_as(Caller::User { name: name.clone(), revision }))
            }
            _ => Ok(self.clone()),
        }
    }

    /// The same door for a caller of whom this member may not have heard yet: waits until it has.
    ///
    /// # Errors
    /// [`AuthRefusal::InvalidToken`](crate::error::AuthRefusal::InvalidToken), and see [`Error`].
    pub async fn settled(&self) -> Result<Self, Error> {
        match &self.door {
            Door::Local(local) => {
                let caller = local.settle_caller(&self.caller, self.patience).await?;
                Ok(self.clone().acting_as(caller))
            }
            Door::Remote(_) => Ok(self.clone()),
        }
    }

    /// Who a caller from outside is: by its token if it has one, else by its certificate's name.
    /// Only for a handle in the member's own process.
    ///
    /// # Errors
    /// [`AuthRefusal::InvalidToken`](crate::error::AuthRefusal::InvalidToken).
    pub fn caller(&self, token: Option<&str>, certificate: Option<&str>) -> Result<Caller, Error> {
        match &self.door {
            Door::Local(local) => local.caller(token, certificate),
            Door::Remote(_) => Ok(Caller::Full),
        }
    }

    /// Role, term and leader of the member in this process, as they change; `None` for a member
    /// elsewhere.
    pub fn leadership(&self) -> Option<tokio::sync::watch::Receiver<crate::raft::Leadership>> {
        match &self.door {
            Door::Local(local) => Some(local.shell.leadership()),
            Door::Remote(_) => None,
        }
    }

    /// The revision of users and roles, each time that they or whether they count have changed
    /// here: who serves a watch then asks [`may_watch`](Self::may_watch) again. Elsewhere the member
    /// does so itself, and this never changes.
    pub fn auth_changes(&self) -> tokio::sync::watch::Receiver<u64> {
        match &self.door {
            Door::Local(local) => local.shell.auth_changes(),
            Door::Remote(_) => tokio::sync::watch::channel(0).1,
        }
    }

    /// Whether the caller that this handle acts for may follow these keys now, by the users and
    /// roles of this member's state. Nothing is waited for.
    ///
    /// # Errors
    /// [`Refusal::Auth`] if not.
    pub fn may_watch(&self, range: &KeyRange) -> Result<(), Error> {
        match &self.door {
            Door::Local(local) => local.may_watch(&self.caller, range),
            Door::Remote(_) => Ok(()),
        }
    }

    /// The same for writing these keys.
    ///
    /// # Errors
    /// [`Refusal::Auth`] if not.
    pub fn may_write(&self, range: &KeyRange) -> Result<(), Error> {
        match &self.door {
            Door::Local(local) => local.may_write(&self.caller, range),
            Door::Remote(_) => Ok(()),
        }
    }

    /// Refuses where the caller that this handle acts for has not the role root: to be asked before
    /// what is no [`Call`], such as a copy of the whole state. Elsewhere the member asks it itself.
    ///
    /// # Errors
    /// [`Refusal::Auth`] if not, and see [`Error`].
    pub async fn may_manage(&self) -> Result<(), Error> {
        match &self.door {
            Door::Local(local) => local.may_manage(&self.caller, self.patience).await,
            Door::Remote(_) => Ok(()),
        }
    }

    /// Changes users, roles or permissions.
    ///
    /// # Errors
    /// [`Refusal::Auth`], and see [`Error`].
    pub async fn auth_change(&self, change: AuthChange) -> Result<Header, Error> {
        Ok(self.call(Call::Auth(change)).await?.0)
    }

    /// Answers about users and roles.
    ///
    /// # Errors
    /// [`Refusal::Auth`], and see [`Error`].
    pub async fn auth_query(&self, query: AuthQuery) -> Result<(Header, AuthView), Error> {
        expect!(self.call(Call::AuthQuery(query)).await, Reply::Auth(view) => view)
    }

    /// A token for a user with a password; every member knows it at once.
    ///
    /// # Errors
    /// [`AuthRefusal::Failed`](crate::error::AuthRefusal::Failed), and see [`Error`].
    pub async fn authenticate(&self, name: &str, password: &str) -> Result<(Header, String), Error> {
        let call = Call::Authenticate { name: name.into(), password: password.into() };
        expect!(self.call(call).await, Reply::Token(token) => token.0)
    }

    /// Raises, ends or lists alarms; answers those there are after it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn alarm(&self, request: AlarmRequest) -> Result<(Header, Vec<(NodeId, AlarmKind)>), Error> {
        expect!(self.call(Call::Alarm(request)).await, Reply::Alarms(alarms) => alarms)
    }

    /// The answering member's checksum over its key space, at a revision; 0 for now.
    ///
    /// # Errors
    /// [`Refusal::Compacted`], [`Refusal::FutureRevision`], and see [`Error`].
    pub async fn hash_kv(&self, revision: Revision) -> Result<(Header, StateHash), Error> {
        expect!(self.call(Call::HashKv(revision)).await, Reply::Hash(hash) => hash)
    }

    /// Changes a member's name or address.
    ///
    /// # Errors
    /// [`Refusal::MemberNotFound`], [`Refusal::MemberTaken`], and see [`Error`].
    pub async fn member_update(&self, record: MemberRecord) -> Result<(Header, Vec<Member>), Error> {
        expect!(self.call(Call::MemberUpdate(record)).await, Reply::Members(members) => members)
    }

    /// Makes a call and waits for its one answer. The methods below are this with types.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn call(&self, call: Call) -> Answered {
        match &self.door {
            Door::Local(local) => {
                let asker = Asker { caller: self.caller.clone(), node: self.node };
                local.call_as(&asker, call, self.patience).await
            }
            Door::Remote(remote) => remote.call(call, self.patience).await,
        }
    }

    /// Reads keys; linearizable unless the request says otherwise.
    ///
    /// # Errors
    /// [`Refusal::Compacted`], [`Refusal::FutureRevision`], and see [`Error`].
    pub async fn range(&self, request: RangeRequest) -> Result<(Header, RangeResponse), Error> {
        expect!(self.call(Call::Range(request)).await, Reply::Range(response) => response)
    }

    /// Reads a range of any size part by part, as of one revision, in the order of the keys. Use
    /// [`range`](Self::range) where the answer is small, or sorted or filtered.
    ///
    /// ```no_run
    /// # async fn example(handle: raft_kv::client::Handle) -> Result<(), raft_kv::error::Error> {
    /// use raft_kv::types::{KeyRange, RangeRequest};
    ///
    /// let request = RangeRequest { range: KeyRange::all(), ..RangeRequest::default() };
    /// let mut stream = handle.range_stream(request).await?;
    /// while let Some(chunk) = stream.next().await? {
    ///     println!("{} keys", chunk.response.kvs.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Refusal::Compacted`], [`Refusal::FutureRevision`], [`Refusal::Invalid`] for a sort or a
    /// filter, and see [`Error`].
    pub async fn range_stream(&self, request: RangeRequest) -> Result<RangeStream, Error> {
        match &self.door {
            Door::Local(local) => local.range_stream_as(&self.caller, request, self.patience).await,
            Door::Remote(_) => RangeStream::remote(self.clone(), request).await,
        }
    }

    /// Sums what `weigh` says of each key that the answer to a range has, given the key with a
    /// blank value and the value's length in bytes; no value is read. Only for a handle in the
    /// member's own process.
    ///
    /// # Errors
    /// As [`range_stream`](Self::range_stream).
    pub async fn range_measure(
        &self,
        request: RangeRequest,
        weigh: fn(&crate::types::KeyValue, u64) -> u64,
    ) -> Result<(Header, RangeMeasure), Error> {
        match &self.door {
            Door::Local(local) => local.range_measure_as(&self.caller, request, weigh, self.patience).await,
            Door::Remote(_) => Err(not_here("a range is measured")),
        }
    }

    /// A whole copy of the member's state as a stream of bytes: see [`Snapshot`]. For root alone,
    /// and for a handle in the member's own process.
    ///
    /// # Errors
    /// [`NotDone::Busy`](crate::error::NotDone::Busy) where others are under way, and see [`Error`].
    pub async fn snapshot(&self) -> Result<(Header, Snapshot), Error> {
        match &self.door {
            Door::Local(local) => local.snapshot_as(&self.caller, self.patience).await,
            Door::Remote(_) => Err(not_here("a copy is made")),
        }
    }

    /// The members as this member knows them, without waiting for anybody: it answers without a
    /// leader, and may be old. Only for a handle in the member's own process.
    ///
    /// # Errors
    /// [`Refusal::Auth`], [`NotDone::NoState`](crate::error::NotDone::NoState), [`Error::Stopped`].
    pub async fn members_here(&self) -> Result<(Header, Vec<Member>), Error> {
        match &self.door {
            Door::Local(local) => {
                local.may_look(&self.caller, self.patience).await?;
                Ok((local.now()?, local.read(crate::machine::read::members)?))
            }
            Door::Remote(_) => Err(not_here("members are looked up")),
        }
    }

    /// The header of an answer given now, without waiting for anybody. Only for a handle in the
    /// member's own process.
    ///
    /// # Errors
    /// [`NotDone::NoState`](crate::error::NotDone::NoState), [`Error::Stopped`].
    pub fn header_here(&self) -> Result<Header, Error> {
        match &self.door {
            Door::Local(local) => local.now(),
            Door::Remote(_) => Err(not_here("a header is made")),
        }
    }

    /// The alarms that this member knows of, without waiting for anybody. Only for a handle in the
    /// member's own process.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn alarms_here(&self) -> Result<Vec<(NodeId, AlarmKind)>, Error> {
        match &self.door {
            Door::Local(local) => local.read(crate::machine::read::alarms),
            Door::Remote(_) => Err(not_here("alarms are looked up")),
        }
    }

    /// One key's value and revisions, or `None`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<crate::types::KeyValue>, Error> {
        let range = crate::types::KeyRange::key(key);
        let (_, response) = self.range(RangeRequest { range, ..RangeRequest::default() }).await?;
        Ok(response.kvs.into_iter().next())
    }

    pub(super) async fn command(&self, command: Command) -> Result<(Header, Answer), Error> {
        let call = Call::Command { command, once: None };
        expect!(self.call(call).await, Reply::Command(answer) => answer)
    }

    /// Does a command at most once per name: a repeat with the same [`OnceId`] is answered from
    /// memory. Use it where an unknown outcome must be resolved by asking again.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn once(&self, id: OnceId, command: Command) -> Result<(Header, Answer), Error> {
        let call = Call::Command { command, once: Some(id) };
        expect!(self.call(call).await, Reply::Command(answer) => answer)
    }

    /// Writes a key.
    ///
    /// # Errors
    /// [`Refusal::LeaseNotFound`], [`Refusal::KeyNotFound`] with `ignore_value` or
    /// `ignore_lease`, bounds, and see [`Error`].
    pub async fn put(&self, request: PutRequest) -> Result<(Header, PutResponse), Error> {
        match self.command(Command::Put(request)).await? {
            (header, Answer::Put(response)) => Ok((header, response)),
            (_, other) => Err(unexpected(&Reply::Command(other))),
        }
    }

    /// Removes keys.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, request: DeleteRequest) -> Result<(Header, DeleteResponse), Error> {
        match self.command(Command::Delete(request)).await? {
            (header, Answer::Delete(response)) => Ok((header, response)),
            (_, other) => Err(unexpected(&Reply::Command(other))),
        }
    }

    /// Runs a transaction; one that only reads costs no log entry.
    ///
    /// # Errors
    /// [`Refusal::DuplicateKey`], bounds, and see [`Error`].
    pub async fn txn(&self, request: TxnRequest) -> Result<(Header, TxnResponse), Error> {
        if request.is_read_only() {
            return expect!(self.call(Call::ReadTxn(request)).await, Reply::Txn(response) => response);
        }
        match self.command(Command::Txn(request)).await? {
            (header, Answer::Txn(response)) => Ok((header, response)),
            (_, other) => Err(unexpected(&Reply::Command(other))),
        }
    }

    /// Forgets versions that were superseded before `revision`; `physical` waits until this
    /// member has removed them from its store.
    ///
    /// # Errors
    /// [`Refusal::Compacted`], [`Refusal::FutureRevision`], and see [`Error`].
    pub async fn compact(&self, revision: Revision, physical: bool) -> Result<Header, Error> {
        Ok(self.call(Call::Compact { revision, physical }).await?.0)
    }

    /// Makes the store's revision at least `to`, without events, and forgets all history: who
    /// watches or lists on from an older revision is told that it is compacted. For a cluster that
    /// takes the place of another whose clients have seen revisions up to `to`.
    ///
    /// # Errors
    /// Bounds, and see [`Error`].
    pub async fn raise_revision(&self, to: Revision) -> Result<Header, Error> {
        Ok(self.call(Call::RaiseRevision(to)).await?.0)
    }

    /// Grants a lease of `ttl` seconds; `id` 0 has one chosen. Answers its id and granted seconds.
    ///
    /// # Errors
    /// [`Refusal::LeaseExists`], [`Refusal::LeaseOutOfBounds`], and see [`Error`].
    pub async fn lease_grant(&self, id: LeaseId, ttl: i64) -> Result<(Header, LeaseId, i64), Error> {
        match self.command(Command::LeaseGrant { id, ttl }).await? {
            (header, Answer::Lease { id, ttl }) => Ok((header, id, ttl)),
            (_, other) => Err(unexpected(&Reply::Command(other))),
        }
    }

    /// Ends a lease and removes its keys, in one revision.
    ///
    /// # Errors
    /// [`Refusal::LeaseNotFound`], and see [`Error`].
    pub async fn lease_revoke(&self, id: LeaseId) -> Result<Header, Error> {
        Ok(self.command(Command::LeaseRevoke { id }).await?.0)
    }

    /// Gives a lease its full time again.
    ///
    /// # Errors
    /// [`Refusal::LeaseNotFound`], and see [`Error`].
    pub async fn lease_keep_alive(&self, id: LeaseId) -> Result<(Header, LeaseStatus), Error> {
        expect!(self.call(Call::LeaseKeepAlive(id)).await, Reply::Lease(status) => status)
    }

    /// What a lease has left; `ttl` -1 where it does not exist.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lease_time_to_live(&self, id: LeaseId, keys: bool) -> Result<(Header, LeaseStatus), Error> {
        expect!(self.call(Call::LeaseTimeToLive { id, keys }).await, Reply::Lease(status) => status)
    }

    /// All leases: their ids and granted seconds.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn leases(&self) -> Result<(Header, Vec<(LeaseId, i64)>), Error> {
        expect!(self.call(Call::Leases).await, Reply::Leases(leases) => leases)
    }

    /// Follows keys.
    ///
    /// # Errors
    /// [`Refusal::EmptyRange`], [`Refusal::NegativeRevision`], and see [`Error`].
    pub async fn watch(&self, request: WatchRequest) -> Result<Watch, Error> {
        match &self.door {
            Door::Local(local) => local.watch_as(&self.caller, request, self.patience).await,
            Door::Remote(remote) => Watch::remote(remote.clone(), request, self.patience).await,
        }
    }

    /// Many watches with one consumer, which costs one task for all of them. Only for a handle in
    /// the member's own process; elsewhere open one [`watch`](Self::watch) each.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] for a handle to a member elsewhere, and see [`Error`].
    pub fn watch_set(&self) -> Result<WatchSet, Error> {
        match &self.door {
            Door::Local(local) => local.watch_set(self.caller.clone()),
            Door::Remote(_) => {
                Err(Refusal::invalid("watch set", "the member is elsewhere; open one watch each").into())
            }
        }
    }

    /// The members.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn members(&self) -> Result<(Header, Vec<Member>), Error> {
        expect!(self.call(Call::Members).await, Reply::Members(members) => members)
    }

    /// Makes a learner a voter; learners that have caught up become voters by themselves.
    ///
    /// # Errors
    /// [`Refusal::MemberNotFound`], [`Refusal::MemberUnfit`], and see [`Error`].
    pub async fn member_promote(&self, id: NodeId) -> Result<(Header, Vec<Member>), Error> {
        expect!(self.call(Call::MemberPromote(id)).await, Reply::Members(members) => members)
    }

    /// Takes a member out for good.
    ///
    /// # Errors
    /// [`Refusal::MemberNotFound`], [`Refusal::MemberNeeded`], and see [`Error`].
    pub async fn member_remove(&self, id: NodeId) -> Result<(Header, Vec<Member>), Error> {
        expect!(self.call(Call::MemberRemove(id)).await, Reply::Members(members) => members)
    }

    /// The answering member and what it knows of the cluster.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn info(&self) -> Result<(Header, Info), Error> {
        expect!(self.call(Call::Info).await, Reply::Info(info) => *info)
    }

    /// The token with which a node of that role joins.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn join_token(&self, role: Role) -> Result<String, Error> {
        match self.call(Call::JoinToken(role)).await? {
            (_, Reply::Token(token)) => Ok(token.0),
            (_, other) => Err(unexpected(&other)),
        }
    }

    /// A certificate for the key that signed `request` (DER): the chain, leaf first, and the
    /// roots to trust.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`], and see [`Error`].
    pub async fn issue_certificate(
        &self,
        name: &str,
        role: Role,
        request: Bytes,
    ) -> Result<(Vec<Bytes>, Vec<Bytes>), Error> {
        match self.call(Call::IssueCertificate { name: name.into(), role, request }).await? {
            (_, Reply::Certificate { chain, roots }) => Ok((chain, roots)),
            (_, other) => Err(unexpected(&other)),
        }
    }

    /// Moves leadership to a voter, or to the most caught-up one.
    ///
    /// # Errors
    /// [`Refusal::MemberUnfit`], and see [`Error`].
    pub async fn transfer(&self, to: Option<NodeId>) -> Result<Header, Error> {
        Ok(self.call(Call::Transfer(to)).await?.0)
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.door {
            Door::Local(_) => "Handle(local)",
            Door::Remote(_) => "Handle(remote)",
        })
    }
}
