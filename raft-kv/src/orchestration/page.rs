//! Listings in pages, all of one revision.

use bytes::Bytes;

use super::draft::read_keys;
use super::store::Store;
use crate::codec::{Wire, wire_struct};
use crate::error::{Error, Refusal};
use crate::limits::{MAX_LISTED_AT_ONCE, MAX_ORCHESTRATION_READ_KEYS};
use crate::types::{KeyRange, KeyValue, RangeRequest, Revision};

/// Which part of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// [`Listed::next`] of the page before; `None` for the first.
    pub after: Option<Bytes>,
    /// At most so many; at least 1.
    pub limit: usize,
}

impl Page {
    /// All there is, in one answer that is held whole.
    pub fn all() -> Self {
        Self { after: None, limit: usize::MAX }
    }

    /// The first `limit`.
    pub fn first(limit: usize) -> Self {
        Self { after: None, limit }
    }
}

/// A page of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed<T> {
    /// In the order of their ids (tasks of a service: by slot, then id).
    pub items: Vec<T>,
    /// As of which revision: that of all pages that follow each other.
    pub revision: Revision,
    /// What the next page is asked for with; `None` where this is the last.
    pub next: Option<Bytes>,
}

/// Where a listing goes on.
struct Cursor {
    revision: Revision,
    after: Bytes,
}
wire_struct!(Cursor { revision, after });

/// Keys of one page.
pub struct Keys {
    pub kvs: Vec<KeyValue>,
    pub revision: Revision,
    pub next: Option<Bytes>,
}

/// The keys of a page of `range`.
pub async fn keys<S: Store>(store: &S, range: KeyRange, page: Page, keys_only: bool) -> Result<Keys, Error> {
    let mut from = range.key.clone();
    let mut revision = 0;
    if page.limit == 0 {
        return Err(Refusal::invalid("page", "its limit is 0; give at least 1").into());
    }
    if let Some(after) = page.after {
        let cursor = Cursor::from_bytes(after).ok();
        let cursor = cursor.filter(|cursor| cursor.revision > 0 && range.contains(&cursor.after));
        let Some(cursor) = cursor else {
            let why = "it does not go on from where a page of this listing ended; begin with the first page";
            return Err(Refusal::invalid("page", why).into());
        };
        revision = cursor.revision;
        from = behind(&cursor.after);
    }
    let mut kvs: Vec<KeyValue> = Vec::new();
    loop {
        let wanted = (page.limit - kvs.len()).min(MAX_LISTED_AT_ONCE);
        let request = RangeRequest {
            range: KeyRange { key: from.clone(), end: range.end.clone() },
            limit: wanted as i64,
            revision,
            keys_only,
            ..Default::default()
        };
        let (header, found) = store.range(request).await?;
        if revision == 0 {
            revision = header.revision;
        }
        let more = found.more || found.kvs.len() > wanted;
        kvs.extend(found.kvs.into_iter().take(wanted));
        let Some(last) = kvs.last().filter(|_| more) else {
            return Ok(Keys { kvs, revision, next: None });
        };
        if kvs.len() >= page.limit {
            let next = Cursor { revision, after: last.key.clone() }.to_bytes();
            return Ok(Keys { kvs, revision, next: Some(next) });
        }
        from = behind(&last.key);
    }
}

/// Many keys as of one revision.
pub async fn read_all<S: Store>(
    store: &S,
    keys: &[Bytes],
    revision: Revision,
) -> Result<Vec<Option<KeyValue>>, Error> {
    let mut all = Vec::with_capacity(keys.len());
    for keys in keys.chunks(MAX_ORCHESTRATION_READ_KEYS) {
        all.extend(read_keys(store, keys, revision, false).await?.1);
    }
    Ok(all)
}

fn behind(key: &Bytes) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    next.into()
}
