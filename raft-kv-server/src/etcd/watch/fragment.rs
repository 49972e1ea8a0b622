//! Large answers in parts, for clients that ask for it: never fewer events than one to a part,
//! and all parts but the last are marked.

use etcd_api::etcdserverpb::WatchResponse;
use etcd_api::mvccpb::Event;
use prost::Message;
use raft_kv::limits;

/// An answer below this is sent whole, in bytes: what etcd lets a gRPC message have.
pub(super) const WHOLE_BELOW: usize = limits::MAX_REQUEST_BYTES + 512 * 1024;

/// The parts of `whole`, each encoded in less than `limit` bytes unless it is a single event.
/// One part alone where the whole is below the limit.
pub(super) fn parts(mut whole: WatchResponse, limit: usize) -> impl Iterator<Item = WatchResponse> {
    let mut events = std::mem::take(&mut whole.events).into_iter().peekable();
    // The mark is counted in: which part is the last is not known before.
    let empty = WatchResponse { fragment: true, ..whole.clone() }.encoded_len();
    let mut ended = false;
    std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let mut part = WatchResponse { events: Vec::new(), ..whole.clone() };
        let mut bytes = empty;
        while let Some(event) = events.next_if(|event| part_is_free(&part, bytes, event, limit)) {
            bytes += event_bytes(&event);
            part.events.push(event);
        }
        part.fragment = events.peek().is_some();
        ended = !part.fragment;
        Some(part)
    })
}

fn part_is_free(part: &WatchResponse, bytes: usize, event: &Event, limit: usize) -> bool {
    part.events.is_empty() || bytes + event_bytes(event) < limit
}

/// What an event adds to an answer: tag, length and itself.
fn event_bytes(event: &Event) -> usize {
    let len = event.encoded_len();
    1 + prost::length_delimiter_len(len) + len
}

#[cfg(test)]
mod tests {
    use etcd_api::mvccpb::KeyValue;

    use super::*;

    /// The number of events in each part, of events with values of these sizes.
    fn check(values: &[usize], limit: usize, expect: &[usize]) {
        let event = |(number, len): (usize, &usize)| Event {
            kv: Some(KeyValue {
                mod_revision: number as i64 + 1,
                value: vec![0; *len].into(),
                ..KeyValue::default()
            }),
            ..Event::default()
        };
        let events: Vec<Event> = values.iter().enumerate().map(event).collect();
        let whole = WatchResponse { watch_id: 7, events: events.clone(), ..WatchResponse::default() };
        let parts: Vec<WatchResponse> = parts(whole, limit).collect();
        assert_eq!(parts.iter().map(|part| part.events.len()).collect::<Vec<_>>(), expect, "{values:?}");
        let marks: Vec<bool> = parts.iter().map(|part| part.fragment).collect();
        let due: Vec<bool> = (1..=parts.len()).map(|number| number < parts.len()).collect();
        assert_eq!(marks, due, "all but the last are marked");
        for part in &parts {
            assert!(part.encoded_len() < limit || part.events.len() == 1, "{}", part.encoded_len());
            assert_eq!(part.watch_id, 7);
        }
        let together: Vec<Event> = parts.into_iter().flat_map(|part| part.events).collect();
        assert_eq!(together, events, "nothing is lost or moved");
    }

    #[test]
    fn parts_are_small_and_together_the_whole() {
        check(&[], 100, &[0]);
        check(&[10], 100, &[1]);
        check(&[1000], 100, &[1]);
        check(&[10, 10, 10], 1000, &[3]);
        check(&[400, 400, 400], 1000, &[2, 1]);
        check(&[900, 900, 10, 10], 1000, &[1, 3]);
        check(&[10, 5000, 10], 1000, &[1, 1, 1]);
        check(&[400; 10], 1000, &[2; 5]);
    }
}
