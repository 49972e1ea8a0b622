//! Calls on the node in this process: writes go through the loop, linearizable reads wait for a
//! confirmed index and are then served from the node's own state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rand::RngCore;
use tokio::sync::Semaphore;

use super::api::{Answered, Call, Info, Reply};
use super::auth::{Asker, on_behalf, serve};
use super::dates::Dates;
use super::disk::Disk;
use super::points::{ROLLBACK_PATIENCE, millis};
use super::scrub::Scrubs;
use super::snapshot::Copies;
use super::trust::attempts::Attempts;
use super::trust::authority::{Issued, Wanted};
use super::trust::signer::Signer;
use super::trust::vault::Vault;
use super::watch::Watch;
use super::watch_set::WatchSet;
use crate::error::{Error, NotDone, Refusal, StorageFailed, Unknown};
use crate::limits;
use crate::machine::auth::Asked;
use crate::machine::command::Command;
use crate::machine::count::Counts;
use crate::machine::{self, Read};
use crate::net::{LiveTrust, Transfers};
use crate::node::ask::{Told, What};
use crate::node::shell::Shell;
use crate::pki::{self, JoinToken, Keyring};
use crate::types::{
    AlarmKind, Caller, ClusterId, ConfChange, Header, LeaseStatus, Member, MemberRole, NodeId, PointChange,
    Revision, Role, TransferCounts, TrustCall, TxnOp, TxnRequest, WatchRequest,
};

/// How often a quiet watcher that asked for it hears how far it is.
const WATCH_PROGRESS: Duration = Duration::from_secs(600);

/// The node in this process, as its callers see it.
pub(super) struct Local {
    pub(super) shell: Arc<Shell>,
    pub(super) cluster: ClusterId,
    pub(super) me: NodeId,
    pub(super) name: String,
    pub(super) addr: String,
    /// Where HTTP clients reach it; empty where they don't.
    pub(super) client_url: String,
    pub(super) trust: LiveTrust,
    /// Members that are being taken in under a new id, and how often: their connections outlive their old one
    /// until they have it.
    pub(super) spared: Mutex<BTreeMap<NodeId, usize>>,
    /// Turns to check a password.
    pub(super) password_checks: Semaphore,
    /// Counts of ranges that were answered lately.
    pub(super) counts: Mutex<Counts>,
    /// Whole copies of the state that are being sent.
    pub(super) copies: Copies,
    /// What the cluster's secrets are sealed with.
    pub(super) keyring: Keyring,
    /// What of them lies on this member's disk.
    pub(super) vault: Arc<Vault>,
    /// The disk of its data directory.
    pub(super) disk: Arc<Disk>,
    /// Joins that failed here.
    pub(super) attempts: Attempts,
    /// How long certificates made here are valid.
    pub(super) leaf_validity: Duration,
    /// What signs where the cluster's signing key is kept outside.
    pub(super) external_signer: Option<Signer>,
    /// How far the reading of the disk has come.
    pub(super) scrubs: Scrubs,
    /// When its revisions were there.
    pub(super) dates: Mutex<Dates>,
    /// Snapshots to and from this member.
    pub(super) transfers: Arc<Transfers>,
}

/// The id of a token in the state: one for each role.
pub(super) fn token_id(role: Role) -> String {
    format!("default-{role}")
}

impl Local {
    pub(super) fn header(&self, revision: Revision) -> Header {
        let term = self.shell.leadership().borrow().term;
        Header { cluster: self.cluster, member: self.me, revision, term }
    }

    pub(super) fn read<R>(
        &self,
        read: impl FnOnce(&dyn Read) -> Result<R, StorageFailed>,
    ) -> Result<R, Error> {
        self.shell.read(read)
    }

    /// The header of an answer given now.
    pub(super) fn now(&self) -> Result<Header, Error> {
        Ok(self.header(self.read(machine::read::current_revision)?))
    }

    /// Waits until this member's state holds everything that was answered before the call.
    pub(super) async fn barrier(&self, patience: Duration) -> Result<(), Error> {
        match self.shell.ask(What::Barrier, patience).await? {
            Told::MayRead => Ok(()),
            other => unreachable!("a barrier is told {other:?}"),
        }
    }

    /// Carries a call out for `caller`, if it may.
    pub(super) async fn call_as(&self, asker: &Asker, call: Call, patience: Duration) -> Answered {
        let caller = self.settle_caller(&asker.caller, patience).await?;
        let asker = &Asker { caller, node: asker.node };
        self.admit(asker, &call, patience).await?;
        self.carry_out(asker, call, patience).await
    }

    /// Follows keys for `caller`, if it may.
    pub(super) async fn watch_as(
        &self,
        caller: &Caller,
        request: WatchRequest,
        patience: Duration,
    ) -> Result<Watch, Error> {
        // A member that has just joined has no state yet, nor one that takes a snapshot in: a caller who
        // can wait need not hear of that.
        if matches!(self.now(), Err(Error::NotDone(NotDone::NoState))) {
            self.barrier(patience).await?;
        }
        let caller = &self.settle_caller(caller, patience).await?;
        self.may_watch(caller, &request.range)?;
        self.watch(request)
    }

    /// A set of watchers for `caller`, empty at first.
    pub(super) fn watch_set(self: &Arc<Self>, caller: Caller) -> Result<WatchSet, Error> {
        // A member that has just joined does not know yet what came before.
        self.now()?;
        let set = self.shell.watches().set(self.shell.state().clone());
        Ok(WatchSet::new(set, self.clone(), caller))
    }

    /// Carries a call of this member itself out.
    pub(super) async fn call(&self, call: Call, patience: Duration) -> Answered {
        self.carry_out(&Asker::OWN, call, patience).await
    }

    /// Carries a call out that [`admit`](Self::admit) has let through. Watches and joins come by
    /// their own ways.
    async fn carry_out(&self, asker: &Asker, call: Call, patience: Duration) -> Answered {
        let caller = &asker.caller;
        match call {
            Call::Range(request) => self.range(caller, request, patience).await,
            Call::ReadTxn(request) => self.read_txn(caller, request, patience).await,
            Call::Command { command, once } => self.command(asker, command, once, patience).await,
            Call::Compact { revision, physical } => self.compact(asker, revision, physical, patience).await,
            Call::LeaseKeepAlive(id) => {
                self.lease(caller, What::Lease { id, renew: true }, false, patience).await
            }
            Call::LeaseTimeToLive { id, keys } => {
                self.lease(caller, What::Lease { id, renew: false }, keys, patience).await
            }
            Call::Leases => {
                self.barrier(patience).await?;
                Ok((self.now()?, Reply::Leases(self.read(machine::read::leases)?)))
            }
            Call::Members => {
                self.barrier(patience).await?;
                Ok((self.now()?, Reply::Members(self.read(machine::read::members)?)))
            }
            Call::MemberPromote(id) => self.conf(ConfChange::Promote(id), patience).await,
            Call::MemberRemove(id) => self.conf(ConfChange::Remove(id), patience).await,
            Call::Info => self.info().await,
            Call::Dates { since } => self.dates_since(since),
            Call::JoinToken(role) => {
                self.barrier(patience).await?;
                Ok((self.now()?, Reply::Token(self.token(role)?.to_string().into())))
            }
            Call::IssueCertificate { name, role, request } => {
                self.barrier(patience).await?;
                super::config::check_name(&name)?;
                if role != Role::Client {
                    let why = format!("{role} certificates are not issued by name; give the role client");
                    return Err(Refusal::invalid("role", why).into());
                }
                let (node, token) = (NodeId(random()), String::new());
                let wanted = Wanted { node, role, name, hosts: Vec::new(), token, renewal: false };
                let Issued { chain, roots, .. } = self.issue_request(&wanted, &request).await?;
                Ok((self.now()?, Reply::Certificate { chain, roots }))
            }
            Call::Transfer(to) => {
                self.shell.ask(What::Transfer { to }, patience).await?;
                Ok((self.now()?, Reply::Done))
            }
            Call::Auth(change) => self.auth_change(asker, change, patience).await,
            Call::AuthQuery(query) => self.auth_query(query, patience).await,
            Call::Authenticate { name, password } => self.authenticate(name, password, patience).await,
            Call::Alarm(request) => self.alarm(asker, request, patience).await,
            Call::HashKv(revision) => self.hash_kv(revision, patience).await,
            Call::MemberUpdate(record) => self.member_update(asker, record, patience).await,
            Call::Quota(call) => self.quota(asker, call, patience).await,
            Call::RaiseRevision(to) => self.raise_revision(asker, to, patience).await,
            // Nobody else may have them, whatever it may do otherwise.
            Call::Trust(TrustCall::Keys | TrustCall::Vouch(_)) if asker.caller != Caller::Full => {
                Err(Refusal::NotAllowed { role: "client".into() }.into())
            }
            // Who asks may be cut off from a quorum for want of it.
            Call::Trust(TrustCall::Vouch(id)) => Ok((self.now()?, Reply::Trust(self.vouched(id)?))),
            Call::Points(call) => self.points(caller, call, patience).await,
            Call::Trust(call) => self.trust_call(call, patience).await,
            Call::Backup { .. }
            | Call::Watch(_)
            | Call::Join(_)
            | Call::Rejoin { .. }
            | Call::Enrol(_)
            | Call::Readmit(_) => {
                Err(Refusal::invalid("call", "it is a stream of its own; use `watch` or `join`").into())
            }
        }
    }

    async fn read_txn(&self, caller: &Caller, request: TxnRequest, patience: Duration) -> Answered {
        machine::validate::validate_txn(&request)?;
        if !request.is_read_only() {
            return Err(Refusal::invalid("transaction", "it writes, so it must be sent as a command").into());
        }
        let serializable = |op: &TxnOp| matches!(op, TxnOp::Range(range) if range.serializable);
        let linearizable = !request.success.iter().chain(&request.failure).all(serializable);
        if linearizable {
            self.barrier(patience).await?;
        }
        let (shell, caller) = (self.shell.clone(), caller.clone());
        let read = move || {
            shell.read(|view| {
                serve(view, &caller, &Asked::ReadTxn(&request), linearizable, || {
                    machine::read::txn_read_only(view, &request)
                })
            })
        };
        let (revision, response) = RANGES.run(patience, read).await???;
        Ok((self.header(revision), Reply::Txn(response)))
    }

    async fn command(
        &self,
        asker: &Asker,
        mut command: Command,
        once: Option<crate::types::OnceId>,
        mut patience: Duration,
    ) -> Answered {
        match &mut command {
            Command::Point(change) if !matches!(change, PointChange::Tidy { .. }) => {
                change.stamp(&self.author(asker)?, millis());
                if matches!(change, PointChange::Rollback { .. }) {
                    patience = patience.max(ROLLBACK_PATIENCE);
                }
            }
            Command::LeaseGrant { id, .. } if *id == 0 => *id = random::<u64>() as i64 & i64::MAX | 1,
            Command::Put(_)
            | Command::Delete(_)
            | Command::Txn(_)
            | Command::LeaseGrant { .. }
            | Command::LeaseRevoke { .. }
            | Command::Noop => {}
            _ => return Err(Refusal::invalid("command", "it is not for callers").into()),
        }
        // A repeat is answered from what was kept, whatever room there is now.
        if once.is_none() {
            patience = self.has_room(&command, patience).await?;
        }
        let command = on_behalf(asker, command);
        let (revision, term, answer) = self.apply(What::Command { command, once }, patience).await?;
        let header = Header { term, ..self.header(revision) };
        Ok((header, Reply::Command(answer)))
    }

    pub(super) async fn apply(
        &self,
        what: What,
        patience: Duration,
    ) -> Result<(Revision, crate::types::Term, machine::Answer), Error> {
        match self.shell.ask(what, patience).await? {
            Told::Applied { revision, term, answer } => Ok((revision, term, answer)),
            other => unreachable!("an entry is told {other:?}"),
        }
    }

    async fn compact(
        &self,
        asker: &Asker,
        revision: Revision,
        physical: bool,
        patience: Duration,
    ) -> Answered {
        let command = on_behalf(asker, Command::Compact { revision });
        let what = What::Command { command, once: None };
        let (at, ..) = self.apply(what, patience).await?;
        if physical {
            let mut collected = self.shell.collected();
            let done = collected.wait_for(|done| *done >= revision);
            match tokio::time::timeout(patience, done).await {
                Ok(Ok(_)) => {}
                // It is compacted; only what it frees is not all gone here.
                Ok(Err(_)) => return Err(Error::Unknown(Unknown::ShuttingDown)),
                Err(_) => return Err(Error::Unknown(Unknown::Deadline)),
            }
        }
        Ok((self.header(at), Reply::Done))
    }

    async fn raise_revision(&self, asker: &Asker, to: Revision, patience: Duration) -> Answered {
        let command = on_behalf(asker, Command::RaiseRevision { to });
        let what = What::Command { command, once: None };
        let (at, ..) = self.apply(what, patience).await?;
        Ok((self.header(at), Reply::Done))
    }

    async fn lease(&self, caller: &Caller, what: What, keys: bool, patience: Duration) -> Answered {
        let What::Lease { id, renew } = what else { unreachable!("it is about a lease") };
        // Of before the renewal: nobody may see one succeed at a revision that ended the lease.
        let before = renew.then(|| self.now()).transpose()?;
        let status = match self.shell.ask(what, patience).await? {
            Told::Lease(status) => status,
            other => unreachable!("a lease is told {other:?}"),
        };
        let keys = if keys {
            self.barrier(patience).await?;
            self.read(|view| {
                serve(view, caller, &Asked::LeaseKeys(id), false, || {
                    machine::read::lease_keys(view, id).map(Ok)
                })
            })??
        } else {
            Vec::new()
        };
        let header = before.map_or_else(|| self.now(), Ok)?;
        Ok((header, Reply::Lease(LeaseStatus { keys, ..status })))
    }

    pub(super) async fn conf(&self, change: ConfChange, patience: Duration) -> Answered {
        self.barrier(patience).await?;
        self.read(|view| machine::read::admit_change(view, &change))??;
        let (revision, term, answer) = self.apply(What::Conf(change), patience).await?;
        let machine::Answer::Members(members) = answer else {
            unreachable!("a membership change answers the members");
        };
        Ok((Header { term, ..self.header(revision) }, Reply::Members(members)))
    }

    async fn info(&self) -> Answered {
        let (status, _) = self.shell.status().await?;
        let (revision, compacted, members, root) = self.read(|view| {
            let root = machine::read::trusted(view)?.in_force().digest;
            let read = machine::read::current_revision(view)?;
            Ok((read, machine::read::compacted(view)?, machine::read::members(view)?, root))
        })?;
        let (usage, alarms, epoch) = self.read(|view| {
            Ok((machine::read::usage(view)?, machine::read::alarms(view)?, machine::read::epoch(view)?))
        })?;
        let disk_short = alarms.into_iter().filter(|(_, kind)| *kind == AlarmKind::DiskShort);
        let learner = |member: &Member| member.record.id == self.me && member.role == MemberRole::Learner;
        let leaf = self.trust.credentials().chain.first().cloned().unwrap_or_default();
        let (from, ends) = pki::validity_of(&leaf)?;
        let stats = self.shell.log_stats();
        let info = Info {
            cluster: self.cluster,
            member: self.me,
            name: self.name.clone(),
            addr: self.addr.clone(),
            leader: status.leader,
            term: status.term,
            learner: members.iter().any(learner),
            committed: status.commit,
            applied: status.applied,
            revision,
            compacted: compacted.max(0),
            state_bytes: self.shell.state().stats().disk,
            version: env!("CARGO_PKG_VERSION").into(),
            root_digest: root.to_string(),
            certificate_ends: ends
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs() as i64),
            watchers: self.shell.watches().len() as u64,
            syncs: (stats.fsyncs, stats.writes),
            certificate_ends_soon: pki::ends_soon(from, ends, SystemTime::now()),
            usage,
            disk_free: self.disk.free(),
            disk_short: disk_short.map(|(member, _)| member).collect(),
            snapshots: self.snapshots(),
            scrub: self.scrubs.status(),
            log_first: status.first_index,
            epoch,
        };
        Ok((self.header(revision), Reply::Info(Box::new(info))))
    }

    /// Snapshots to and from this member.
    pub(super) fn snapshots(&self) -> TransferCounts {
        TransferCounts { made: self.shell.checkpoints_made(), ..self.transfers.counts() }
    }

    /// The join token of a role.
    pub(super) fn token(&self, role: Role) -> Result<JoinToken, Error> {
        self.token_text(&token_id(role))
    }

    /// Follows keys.
    pub(super) fn watch(&self, request: WatchRequest) -> Result<Watch, Error> {
        // A member that has just joined does not know yet what came before.
        self.now()?;
        let notify = request.progress_notify.then_some(WATCH_PROGRESS);
        let subscription = self.shell.watches().subscribe(request, self.shell.state().clone())?;
        Ok(Watch::local(subscription, self.shell.ended(), notify))
    }

    /// Adds a learner to the group.
    pub(super) async fn add_learner(
        self: &Arc<Self>,
        record: crate::types::MemberRecord,
        patience: Duration,
    ) -> Result<Vec<Member>, Error> {
        match self.conf(ConfChange::AddLearner(record), patience).await? {
            (_, Reply::Members(members)) => Ok(members),
            (_, other) => unreachable!("a membership change answers {other:?}"),
        }
    }
}

/// A random number that is not 0.
pub(super) fn random<T: From<u64>>() -> T {
    loop {
        let number = rand::rng().next_u64();
        if number != 0 {
            return T::from(number);
        }
    }
}

/// Turns of readings that are done aside. The threads for them are the process's, and so are the
/// turns.
pub(super) struct Turns(Semaphore);

/// Of ranges.
pub(super) static RANGES: Turns = Turns::new(limits::MAX_RANGE_READS);
/// Of what reads the whole store.
pub(super) static WHOLE: Turns = Turns::new(limits::MAX_WHOLE_READS);

impl Turns {
    const fn new(at_once: usize) -> Self {
        Self(Semaphore::const_new(at_once))
    }

    /// Does blocking work on another thread, in its turn. Whoever goes away meanwhile keeps its turn
    /// until the work is over.
    ///
    /// # Errors
    /// [`NotDone::Busy`] where no turn came in time.
    pub(super) async fn run<R: Send + 'static>(
        &'static self,
        patience: Duration,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, Error> {
        let turn = tokio::time::timeout(patience, self.0.acquire()).await;
        let turn = turn.map_err(|_| Error::NotDone(NotDone::Busy))?.expect("it is never closed");
        let work = move || {
            let _turn = turn;
            work()
        };
        Ok(tokio::task::spawn_blocking(work).await.expect("reading does not panic"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// However many ask, no more threads than turns are taken, and whoever gives up while it reads
    /// has not given its thread back.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_more_is_read_at_once_than_there_are_turns() {
        static TURNS: Turns = Turns::new(3);
        static NOW: AtomicUsize = AtomicUsize::new(0);
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let read = move || {
            let now = NOW.fetch_add(1, Ordering::SeqCst) + 1;
            assert!(now <= 3, "{now} at once");
            let _ = gate.lock().recv();
            NOW.fetch_sub(1, Ordering::SeqCst);
        };
        let patience = Duration::from_secs(20);
        let ask = |patience| tokio::spawn(TURNS.run(patience, read.clone()));
        let first: Vec<_> = (0..3).map(|_| ask(patience)).collect();
        while NOW.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
        first.iter().for_each(tokio::task::JoinHandle::abort);
        let busy = ask(Duration::from_millis(20)).await.unwrap();
        assert!(matches!(busy, Err(Error::NotDone(NotDone::Busy))), "{busy:?}");
        let rest: Vec<_> = (0..20).map(|_| ask(patience)).collect();
        drop(open);
        for one in rest {
            one.await.unwrap().unwrap();
        }
    }
}
