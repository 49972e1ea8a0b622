//! All keys of a store at one revision, in order, a page at a time: of the foreign one and of
//! ours. Memory is bounded by a page, whose length follows the size of the values.

use std::collections::VecDeque;

use bytes::Bytes;
use etcd_api::etcdserverpb;
use raft_kv::client::Handle;
use raft_kv::error::{Error, Refusal};
use raft_kv::types::{KeyRange, RangeRequest, Revision};
use raft_kv_server::foreign::Foreign;
use tonic::{Code, Status};

use super::MARKER;
use crate::failure::{Failure, Kind};

/// Bytes that a page should have.
const PAGE_BYTES: usize = 2 * 1024 * 1024;
/// Keys of the first page: as many of the largest values are no burden yet.
const FIRST_LIMIT: i64 = 16;
/// Keys of a page, at most.
const MAX_LIMIT: i64 = 4096;

/// What counts of a key: the rest belongs to the store that holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// Its lease, or 0.
    pub lease: i64,
}

/// Whose keys are read.
#[derive(Clone)]
pub enum Store {
    /// The foreign cluster's.
    Foreign(Foreign),
    /// Ours.
    Own(Handle),
}

/// Why a page did not come.
#[derive(Debug)]
pub enum ReadError {
    /// The revision is no longer kept there: begin again at a newer one.
    Compacted,
    /// Something that another revision does not help.
    Failed(Failure),
}

impl From<Status> for ReadError {
    fn from(status: Status) -> Self {
        if status.code() == Code::OutOfRange && status.message().contains("has been compacted") {
            return Self::Compacted;
        }
        Self::Failed(source_failure(&status))
    }
}

impl From<Error> for ReadError {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(Refusal::Compacted { .. }) => Self::Compacted,
            error => Self::Failed(error.into()),
        }
    }
}

/// What the source said, as this program's failure.
pub fn source_failure(status: &Status) -> Failure {
    let kind = if raft_kv_server::foreign::is_passing(status) { Kind::NotDone } else { Kind::Refused };
    let code = format!("{:?}", status.code());
    Failure::new(kind, format!("the source says: {} ({code})", status.message()))
}

/// Reads keys in order. The record of the move itself is left out.
pub struct Reader {
    store: Store,
    revision: Revision,
    /// Where the next page begins; `None` behind the last.
    next: Option<Bytes>,
    limit: i64,
    read: VecDeque<Item>,
}

impl Reader {
    /// All keys of `store` at `revision`.
    pub fn new(store: Store, revision: Revision) -> Self {
        let next = Some(Bytes::from_static(b"\0"));
        Self { store, revision, next, limit: FIRST_LIMIT, read: VecDeque::new() }
    }

    /// The next key, which stays the next.
    pub async fn peek(&mut self) -> Result<Option<&Item>, ReadError> {
        while self.read.is_empty() {
            let Some(from) = self.next.take() else { return Ok(None) };
            // Put back first: a page that did not come is asked for again.
            self.next = Some(from.clone());
            let (items, more) = loop {
                match page(&self.store, self.revision, from.clone(), self.limit).await? {
                    Some(found) => break found,
                    // These values are far larger than those of the page before.
                    None => self.limit = (self.limit / 8).max(1),
                }
            };
            self.next = items.last().filter(|_| more).map(|last| [&last.key[..], b"\0"].concat().into());
            let bytes: usize = items.iter().map(|item| item.key.len() + item.value.len() + 32).sum();
            let fitting = (PAGE_BYTES * items.len()).checked_div(bytes).unwrap_or(0);
            self.limit =
                i64::try_from(fitting).unwrap_or(MAX_LIMIT).clamp(1, (self.limit * 4).min(MAX_LIMIT));
            self.read.extend(items.into_iter().filter(|item| item.key != MARKER));
        }
        Ok(self.read.front())
    }

    /// Takes the next key.
    pub fn take(&mut self) -> Option<Item> {
        self.read.pop_front()
    }
}

/// Whether the answer had more bytes than are taken here, as tonic says it.
fn is_too_large(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("message length too large")
}

/// At most `limit` keys from `from` on; `None` where fewer have to be asked for.
async fn page(
    store: &Store,
    revision: Revision,
    from: Bytes,
    limit: i64,
) -> Result<Option<(Vec<Item>, bool)>, ReadError> {
    let end = Bytes::from_static(b"\0");
    match store {
        Store::Foreign(foreign) => {
            let request = etcdserverpb::RangeRequest {
                key: from,
                range_end: end,
                limit,
                revision,
                ..Default::default()
            };
            let answer = match foreign.range(request).await {
                Err(status) if limit > 1 && is_too_large(&status) => return Ok(None),
                answer => answer?,
            };
            let item =
                |kv: etcd_api::mvccpb::KeyValue| Item { key: kv.key, value: kv.value, lease: kv.lease };
            Ok(Some((answer.kvs.into_iter().map(item).collect(), answer.more)))
        }
        Store::Own(handle) => {
            let range = KeyRange::span(from, end);
            let request = RangeRequest { range, limit, revision, ..RangeRequest::default() };
            let answer = match super::patiently(|| handle.range(request.clone())).await {
                Err(Error::Refused(Refusal::AnswerTooLarge { .. })) if limit > 1 => return Ok(None),
                answer => answer?.1,
            };
            let item = |kv: raft_kv::types::KeyValue| Item { key: kv.key, value: kv.value, lease: kv.lease };
            Ok(Some((answer.kvs.into_iter().map(item).collect(), answer.more)))
        }
    }
}
