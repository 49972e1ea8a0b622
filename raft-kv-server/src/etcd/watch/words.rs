//! What requests and batches of a watch are in the crate's words and in etcd's.

use bytes::Bytes;
use etcd_api::etcdserverpb::watch_create_request::FilterType;
use etcd_api::etcdserverpb::{WatchCreateRequest, WatchResponse};
use etcd_api::mvccpb;
use raft_kv::error::{AuthRefusal, Error, Refusal};
use raft_kv::types::{Change, Event, EventKind, Header, KeyRange, KeyValue, WatchBatch, WatchRequest};
use tonic::Status;

use crate::etcd::{convert, status};

/// The watcher's number in answers that are for no watcher, or for all.
pub(super) const NO_WATCHER: i64 = -1;
/// Bytes that a key in an event takes besides key and value.
const EVENT_OVERHEAD: usize = 48;
pub(super) const DUPLICATE: &str = "mvcc: duplicate watch ID provided on the WatchStream";
/// The text of a start below 0, which is as far from being readable as can be.
pub(super) const NEGATIVE: &str = "etcdserver: mvcc: required revision has been compacted";
pub(super) const EMPTY: &str = "mvcc: watcher range is empty";

/// What a watcher asks for. The empty key is the smallest there can be; filters of other numbers
/// are passed over, as etcd does.
pub(super) fn request(create: &WatchCreateRequest) -> WatchRequest {
    let key = if create.key.is_empty() { Bytes::from_static(b"\0") } else { create.key.clone() };
    let filters = |kind: FilterType| create.filters.contains(&(kind as i32));
    WatchRequest {
        range: KeyRange { key, end: create.range_end.clone() },
        start_revision: create.start_revision,
        no_put: filters(FilterType::Noput),
        no_delete: filters(FilterType::Nodelete),
        prev_kv: create.prev_kv,
        progress_notify: create.progress_notify,
    }
}

/// About the bytes that a batch is sent in.
pub(super) fn bytes(batch: &WatchBatch) -> usize {
    let kv = |kv: &KeyValue| kv.key.len() + kv.value.len() + EVENT_OVERHEAD;
    let event = |event: &Event| kv(&event.kv) + event.prev.as_ref().map_or(0, kv);
    match batch {
        WatchBatch::Changes(changes) => changes.iter().flat_map(|change| &change.events).map(event).sum(),
        WatchBatch::Part(change) => change.events.iter().map(event).sum(),
        WatchBatch::Progress(_) | WatchBatch::Compacted(_) => 0,
    }
}

/// The events of whole revisions, in order.
pub(super) fn events(changes: Vec<Change>) -> Vec<mvccpb::Event> {
    changes.into_iter().flat_map(|change| change.events).map(event).collect()
}

fn event(event: Event) -> mvccpb::Event {
    let kind = match event.kind {
        EventKind::Put => mvccpb::event::EventType::Put,
        EventKind::Delete => mvccpb::event::EventType::Delete,
    };
    mvccpb::Event {
        r#type: kind as i32,
        kv: Some(convert::key_value(event.kv)),
        prev_kv: event.prev.map(convert::key_value),
    }
}

/// An answer that says nothing yet but whose it is.
pub(super) fn answer(header: Header, watch_id: i64) -> WatchResponse {
    WatchResponse { header: convert::header(header), watch_id, ..WatchResponse::default() }
}

/// The answer to a watcher that can't be.
pub(super) fn refused(header: Header, why: String) -> WatchResponse {
    WatchResponse { created: true, canceled: true, cancel_reason: why, ..answer(header, NO_WATCHER) }
}

/// Why a watcher can't be, or may be no more, in etcd's text. What is about users carries the
/// code in front, which clients compare with as a whole.
pub(super) fn reason(error: Error) -> String {
    match error {
        Error::Refused(Refusal::EmptyRange) => EMPTY.into(),
        Error::Refused(Refusal::NegativeRevision { .. }) => NEGATIVE.into(),
        Error::Refused(Refusal::Auth(why)) => {
            let why = match why {
                AuthRefusal::InvalidToken | AuthRefusal::OldRevision | AuthRefusal::NoUser => why,
                _ => AuthRefusal::Denied,
            };
            reason_of(&status::status(why.into()))
        }
        other => status::status(other).message().to_owned(),
    }
}

/// A status as the text that Go's gRPC makes of it: clients compare it as a whole.
pub(super) fn reason_of(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}
