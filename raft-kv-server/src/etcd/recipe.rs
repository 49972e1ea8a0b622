//! What locks and elections share: a key of one's own under a prefix, tied to a lease, and the wait
//! until every older key of that prefix is gone.

use std::time::Duration;

use bytes::Bytes;
use raft_kv::client::Handle;
use raft_kv::error::{AuthRefusal, Error, Refusal};
use raft_kv::types::{
    Compare, CompareOp, CompareTarget, DeleteRequest, EventKind, Header, KeyRange, KeyValue, LeaseId,
    PutRequest, RangeRequest, Revision, SortOrder, SortTarget, TxnOp, TxnOpResponse, TxnRequest, WatchBatch,
    WatchRequest,
};
use tokio::sync::watch;
use tonic::{Request, Status};

use super::{Etcd, Who, status};

/// Seconds of a lease that is granted to a caller who has none; nobody renews it for them.
const LEASE_TTL: i64 = 60;

/// etcd runs these recipes through a client of its own and passes on the text of what fails, but
/// not its code.
pub(super) fn failed(error: Error) -> Status {
    Status::unknown(status::status(error).message())
}

/// Pause before users and roles are looked up again: where this member has not heard of the change
/// yet, that takes a heartbeat at most.
const PAUSE: Duration = Duration::from_millis(5);
/// How often they are looked up again: they change all the time, or this member hears of nothing.
const LOOKS: usize = 200;

/// Asks with the users and roles there are now. That these changed between the look and the answer
/// is nothing that whoever waits could do anything about: it is asked again.
pub(super) async fn at_present<R: Clone, T, Asked>(
    handle: &Handle,
    request: R,
    ask: impl Fn(Handle, R) -> Asked,
) -> Result<T, Status>
where
    Asked: Future<Output = Result<T, Error>>,
{
    let mut looks = 0;
    loop {
        looks += 1;
        match ask(handle.renewed().map_err(failed)?, request.clone()).await {
            Err(Error::Refused(Refusal::Auth(AuthRefusal::OldRevision))) if looks < LOOKS => {
                tokio::time::sleep(PAUSE).await;
            }
            done => return done.map_err(failed),
        }
    }
}

/// The lease to use: the caller's, or a new one.
pub(super) async fn lease(handle: &Handle, lease: LeaseId) -> Result<LeaseId, Status> {
    if lease != 0 {
        return Ok(lease);
    }
    Ok(handle.lease_grant(0, LEASE_TTL).await.map_err(failed)?.1)
}

/// Who waits for a lock or a leader, for as long as that takes: users, roles and the token may
/// change meanwhile.
pub(super) struct Waiting {
    etcd: Etcd,
    who: Who,
    changes: watch::Receiver<u64>,
}

impl Waiting {
    /// Whoever sent `request`, from before its first check on.
    pub(super) fn of<T>(etcd: &Etcd, request: &Request<T>) -> Self {
        Self { etcd: etcd.clone(), who: Who::asks(request), changes: etcd.own_handle().auth_changes() }
    }

    /// What comes of `work`, or why it ends early: the caller may not read the keys under `prefix`
    /// any more or, where it `writes`, not write them.
    pub(super) async fn for_as_long_as_allowed<W>(
        mut self,
        prefix: &Bytes,
        writes: Option<&Bytes>,
        work: impl Future<Output = Result<W, Status>>,
    ) -> Result<W, Status> {
        let (read, written) = (KeyRange::prefix(prefix.clone()), writes.cloned().map(KeyRange::key));
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                Ok(()) = self.changes.changed() => self.check(&read, written.as_ref()).await?,
                done = &mut work => {
                    // It may have met the change before this did: what it says of that is etcd's
                    // text without its code.
                    if done.is_err() {
                        self.check(&read, written.as_ref()).await?;
                    }
                    return done;
                }
            }
        }
    }

    async fn check(&self, read: &KeyRange, written: Option<&KeyRange>) -> Result<(), Status> {
        // Whoever was nobody before may be a user now, and the other way round.
        let handle = self.etcd.handle_for(&self.who)?.settled().await.map_err(status::status)?;
        handle.may_watch(read).map_err(status::status)?;
        written.map_or(Ok(()), |key| handle.may_write(key)).map_err(status::status)
    }
}

/// All keys that take part: those under `name/`.
pub(super) fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// A key of one's own among those that wait. Dropping it before [`keep`](Self::keep) gives it up:
/// the caller went away while it waited.
pub(super) struct Place {
    handle: Handle,
    pub(super) key: Bytes,
    pub(super) created: Revision,
    pub(super) header: Header,
    /// The key as it was, where it was there already.
    pub(super) before: Option<KeyValue>,
    kept: bool,
}

/// Where a key's create revision is this one.
pub(super) fn created_at(key: &Bytes, revision: Revision) -> Compare {
    let (range, target) = (KeyRange::key(key.clone()), CompareTarget::Create(revision));
    Compare { range, op: CompareOp::Equal, target }
}

impl Place {
    /// Puts the lease's key under the prefix unless it is there. A caller who goes away before the
    /// answer is there leaves no key either: the place is made by a task of its own, and given up
    /// where nobody takes it.
    pub(super) async fn take(
        handle: &Handle,
        prefix: &Bytes,
        lease: LeaseId,
        value: Bytes,
    ) -> Result<Self, Status> {
        let put = Self::put(handle.clone(), prefix.clone(), lease, value);
        // It ends early only with the process.
        tokio::spawn(put).await.unwrap_or_else(|_| Err(Status::unavailable("etcdserver: server stopped")))
    }

    async fn put(handle: Handle, prefix: Bytes, lease: LeaseId, value: Bytes) -> Result<Self, Status> {
        let key = Bytes::from([prefix.as_ref(), format!("{lease:x}").as_bytes()].concat());
        let own = RangeRequest { range: KeyRange::key(key.clone()), ..RangeRequest::default() };
        let put = PutRequest { key: key.clone(), value, lease, ..PutRequest::default() };
        let request = TxnRequest {
            compares: vec![created_at(&key, 0)],
            success: vec![TxnOp::Put(put)],
            failure: vec![TxnOp::Range(own)],
        };
        let (header, mut response) =
            at_present(&handle, request, |now, request| async move { now.txn(request).await }).await?;
        let before = match response.responses.pop() {
            Some(TxnOpResponse::Range(range)) => range.kvs.into_iter().next(),
            _ => None,
        };
        let created = before.as_ref().map_or(header.revision, |kv| kv.create_revision);
        Ok(Self { handle, key, created, header, before, kept: false })
    }

    /// Waits until no key of the prefix is older; answers whether one's own is still there then,
    /// and the header of that answer.
    pub(super) async fn first(&self, prefix: &Bytes) -> Result<(Header, bool), Status> {
        while let (header, Some(older)) = self.last_before(prefix).await? {
            let request = WatchRequest {
                range: KeyRange::key(older),
                start_revision: header.revision + 1,
                no_put: true,
                ..WatchRequest::default()
            };
            let mut watch =
                at_present(&self.handle, request, |now, request| async move { now.watch(request).await })
                    .await?;
            loop {
                match watch.next().await.map_err(failed)? {
                    Some(WatchBatch::Changes(changes)) => {
                        let mut events = changes.iter().flat_map(|change| &change.events);
                        if events.any(|event| event.kind == EventKind::Delete) {
                            break;
                        }
                    }
                    Some(WatchBatch::Part(change)) => {
                        if change.events.iter().any(|event| event.kind == EventKind::Delete) {
                            break;
                        }
                    }
                    Some(WatchBatch::Progress(_)) => {}
                    // What happened since is compacted away: look again.
                    Some(WatchBatch::Compacted(_)) | None => break,
                }
            }
        }
        let own = RangeRequest { range: KeyRange::key(self.key.clone()), ..RangeRequest::default() };
        let (header, found) =
            at_present(&self.handle, own, |now, own| async move { now.range(own).await }).await?;
        Ok((header, found.kvs.first().is_some_and(|kv| kv.create_revision == self.created)))
    }

    /// The newest key of the prefix that is older than one's own.
    async fn last_before(&self, prefix: &Bytes) -> Result<(Header, Option<Bytes>), Status> {
        let request = RangeRequest {
            range: KeyRange::prefix(prefix.clone()),
            limit: 1,
            sort_order: SortOrder::Descend,
            sort_target: SortTarget::Create,
            max_create_revision: self.created - 1,
            keys_only: true,
            ..RangeRequest::default()
        };
        let (header, response) =
            at_present(&self.handle, request, |now, request| async move { now.range(request).await }).await?;
        Ok((header, response.kvs.into_iter().next().map(|kv| kv.key)))
    }

    /// It is not given up when this goes.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A key that was there before belongs to another call of the same caller.
        if self.kept || self.before.is_some() {
            return;
        }
        let (handle, key, created) = (self.handle.clone(), self.key.clone(), self.created);
        tokio::spawn(async move {
            let delete = DeleteRequest { range: KeyRange::key(key.clone()), prev_kv: false };
            let request = TxnRequest {
                compares: vec![created_at(&key, created)],
                success: vec![TxnOp::Delete(delete)],
                failure: Vec::new(),
            };
            // Where it fails the lease's end does the same.
            let _ = at_present(&handle, request, |now, request| async move { now.txn(request).await }).await;
        });
    }
}
