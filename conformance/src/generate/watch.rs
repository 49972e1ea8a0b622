//! Watches: streams on which they are opened and cancelled, with numbers of all kinds: chosen by the
//! server, by the client, taken, freed, at the ends of what a number can be, never given.

use etcd_api::etcdserverpb::watch_request::RequestUnion;
use etcd_api::etcdserverpb::{WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest};

use super::Generator;
use crate::ask::Step;

/// Numbers that meet: those that the server gives first, and some that it never reaches.
const MEETING: &[i64] = &[1, 2, 3, 5, 100, 101, -9, i64::MAX, i64::MIN, i64::MAX - 1, -2];
/// Numbers that no watch ever has.
const NEVER: &[i64] = &[55, -7, 1 << 40, i64::MIN + 1];

impl Generator {
    /// Opens watches, or closes those that are open.
    pub(super) fn watch_step(&mut self, user: Option<String>) -> Step {
        if self.streams >= 2 || (self.streams > 0 && self.one_in(2)) {
            self.streams = 0;
            return Step::Collect;
        }
        self.streams += 1;
        let count = 4 + self.number(8) as usize;
        Step::Open { user, requests: self.creates(count) }
    }

    /// What is sent on one stream. A number whose watch has ended by compaction is free again on
    /// raft-kv and taken on etcd: on one stream watches either begin at revisions that are gone, or
    /// numbers are used again.
    pub(super) fn creates(&mut self, count: usize) -> Vec<WatchRequest> {
        let again = self.one_in(2);
        let mut requests = Vec::new();
        let mut fresh = 1000;
        for at in 0..count {
            let union = match self.number(20) {
                0..=1 => self.cancel(again),
                2 if at > 0 => RequestUnion::ProgressRequest(WatchProgressRequest {}),
                3 if again && at + 2 < count => {
                    // Ended and opened anew, another way.
                    let watch_id = self.pick(MEETING);
                    requests.push(create(self.watch(watch_id, true)));
                    requests.push(cancel(watch_id));
                    RequestUnion::CreateRequest(self.watch(watch_id, true))
                }
                4..=9 => {
                    fresh += 1;
                    let watch_id = if again { self.pick(MEETING) } else { fresh };
                    RequestUnion::CreateRequest(self.watch(watch_id, again))
                }
                _ => RequestUnion::CreateRequest(self.watch(0, again)),
            };
            requests.push(WatchRequest { request_union: Some(union) });
        }
        requests
    }

    fn cancel(&mut self, again: bool) -> RequestUnion {
        let watch_id = match self.number(8) {
            0 => self.pick(NEVER),
            1..=3 => self.number(4),
            _ if again => self.pick(MEETING),
            _ => 1001 + self.number(3),
        };
        RequestUnion::CancelRequest(WatchCancelRequest { watch_id })
    }

    fn watch(&mut self, watch_id: i64, is_there: bool) -> WatchCreateRequest {
        let (key, range_end) = self.range();
        let (key, range_end) = (key.into(), range_end.into());
        let mut watch = WatchCreateRequest { key, range_end, watch_id, ..Default::default() };
        watch.start_revision = match self.number(12) {
            0..=2 => 0,
            3..=5 => self.known.revision + self.number(30),
            6 => self.pick(&[i64::MAX, i64::MAX - 1, self.known.revision + 100_000]),
            7 => 1,
            // Below 0 etcd 3.4 begins at 0 where etcd of today refuses: the watch service's own tests.
            _ => self.revision().max(0),
        };
        if is_there && watch.start_revision > 0 {
            watch.start_revision = watch.start_revision.max(self.known.compacted);
        }
        if self.one_in(3) {
            watch.filters = match self.number(6) {
                0 => vec![0],
                1 => vec![1],
                2 => vec![0, 1],
                3 => vec![0, 0],
                4 => vec![-1, 1],
                _ => vec![7],
            };
        }
        watch.prev_kv = self.one_in(2);
        watch.fragment = self.one_in(3);
        watch.progress_notify = self.one_in(4);
        watch
    }
}

fn create(watch: WatchCreateRequest) -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(watch)) }
}

fn cancel(watch_id: i64) -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })) }
}
