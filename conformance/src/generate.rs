//! Random requests from a seed: a small universe of keys with prefixes, so that requests meet; odd
//! and invalid ones on purpose. The same seed and the same answers give the same requests.

mod auth;
mod txn;
mod watch;

use etcd_api::etcdserverpb::*;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::ask::{Ask, Step};

const KEYS: &[&[u8]] = &[
    b"a",
    b"a/",
    b"a/1",
    b"a/2",
    b"a/3",
    b"a/3/x",
    b"a/b",
    b"b",
    b"b/1",
    b"b/2",
    b"c",
    b"k0",
    b"k1",
    b"k2",
    b"k3",
    b"\0",
    b"a\0",
    b"\xff",
    b"\xff\xff",
    b"zz",
];
const ENDS: &[&[u8]] = &[b"\0", b"a0", b"b", b"b0", b"l", b"\xff", b"\xff\xff\xff", b"a/4", b"A"];
const LEASES: &[i64] = &[1, 2, 3, 7, 77, -5, i64::MAX, i64::MIN, 0x7fff_0000];
const TTLS: &[i64] = &[1000, 5000, 100_000, 600, 9_000_000_000, 9_000_000_001, i64::MAX];
const SHORT_TTLS: &[i64] = &[0, 1, 2, 3, -1, 59, i64::MIN];

/// What the answers have told so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// The store's revision.
    pub revision: i64,
    /// The last successful compaction.
    pub compacted: i64,
}

/// Makes one sequence.
#[derive(Debug)]
pub struct Generator {
    random: ChaCha8Rng,
    known: Known,
    /// Requests until a raised alarm is taken back.
    alarm: Option<(i32, usize)>,
    streams: usize,
    auth: Option<auth::Stage>,
}

impl Generator {
    /// The sequence of `seed`; with `auth` it is about users.
    pub fn new(seed: u64, auth: bool) -> Self {
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self {
            random,
            known: Known::default(),
            alarm: None,
            streams: 0,
            auth: auth.then(auth::Stage::default),
        }
    }

    /// The next step, knowing what etcd has said.
    pub fn next(&mut self, known: Known) -> Step {
        self.known = known;
        if self.auth.is_some() {
            return self.auth_step();
        }
        let ask = match self.alarm {
            Some((alarm, 0)) => {
                self.alarm = None;
                Ask::Alarm(AlarmRequest { action: 2, member_id: 1, alarm })
            }
            Some((alarm, left)) => {
                self.alarm = Some((alarm, left - 1));
                self.ask()
            }
            None => {
                if self.one_in(400) {
                    return self.watch_step(None);
                }
                self.ask()
            }
        };
        Step::Ask { user: None, ask }
    }

    /// The steps that end the sequence.
    pub fn last(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        if let Some((alarm, _)) = self.alarm.take() {
            let ask = Ask::Alarm(AlarmRequest { action: 2, member_id: 1, alarm });
            steps.push(Step::Ask { user: None, ask });
        }
        if self.auth.is_some() {
            steps.extend(self.auth_end());
        } else {
            steps.push(Step::Open { user: None, requests: self.creates(8) });
        }
        steps.push(Step::Collect);
        steps
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.random.random_range(0..n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        *from.choose(&mut self.random).expect("the list is not empty")
    }

    fn number(&mut self, below: i64) -> i64 {
        self.random.random_range(0..below)
    }

    fn key(&mut self) -> Vec<u8> {
        match self.number(40) {
            0 => Vec::new(),
            1 => format!("r/{}", self.number(1000)).into_bytes(),
            2..=20 => self.pick(&KEYS[..8]).to_vec(),
            _ => self.pick(KEYS).to_vec(),
        }
    }

    fn good_key(&mut self) -> Vec<u8> {
        self.pick(KEYS).to_vec()
    }

    fn range(&mut self) -> (Vec<u8>, Vec<u8>) {
        let key = self.key();
        let end = match self.number(20) {
            0..=7 => Vec::new(),
            8..=10 => b"\0".to_vec(),
            11..=14 => prefix_end(&key),
            15 => self.key(),
            16 => key.clone(),
            17 => [&key[..], b"\0"].concat(),
            _ => self.pick(ENDS).to_vec(),
        };
        let key = if end == b"\0" && self.one_in(3) { b"\0".to_vec() } else { key };
        (key, end)
    }

    fn value(&mut self) -> Vec<u8> {
        match self.number(12) {
            0 => Vec::new(),
            1 => vec![b'x'; 300],
            2 => b"\xff\0\xfe".to_vec(),
            _ => format!("v{}", self.number(5)).into_bytes(),
        }
    }

    /// A revision: mostly one that can be read.
    fn revision(&mut self) -> i64 {
        let Known { revision, compacted } = self.known;
        match self.number(16) {
            0..=5 => compacted + self.number((revision - compacted).max(0) + 1),
            6 => compacted,
            7 => compacted - 1,
            8 => revision,
            9 => revision + 1,
            10 => revision + 2 + self.number(100),
            11 => -1,
            12 => 1,
            13 => i64::MAX,
            _ => (revision - self.number(10)).max(0),
        }
    }

    fn range_request(&mut self) -> RangeRequest {
        let (key, range_end) = self.range();
        let mut request = RangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() };
        if self.one_in(3) {
            request.limit = self.pick(&[1, 2, 3, 5, 10, 1000, -1, i64::MAX, i64::MIN]);
        }
        if self.one_in(3) {
            request.revision = self.revision();
        }
        if self.one_in(3) {
            request.sort_order = self.pick(&[0, 1, 2, 1, 2, 0, 1, 2, 3, -1]);
            request.sort_target = self.pick(&[0, 1, 2, 3, 4, 1, 2, 3, 4, 5, -1, 99]);
        }
        request.serializable = self.one_in(4);
        request.keys_only = self.one_in(6);
        request.count_only = self.one_in(8);
        if self.one_in(4) {
            for field in 0..4 {
                if !self.one_in(3) {
                    continue;
                }
                let revision = self.revision();
                match field {
                    0 => request.min_mod_revision = revision,
                    1 => request.max_mod_revision = revision,
                    2 => request.min_create_revision = revision,
                    _ => request.max_create_revision = revision,
                }
            }
        }
        request
    }

    fn put_request(&mut self) -> PutRequest {
        let mut request =
            PutRequest { key: self.key().into(), value: self.value().into(), ..Default::default() };
        if self.one_in(3) {
            request.lease = self.pick(LEASES);
        }
        request.prev_kv = self.one_in(3);
        if self.one_in(8) {
            request.ignore_value = true;
            if !self.one_in(4) {
                request.value = Default::default();
            }
        }
        if self.one_in(8) {
            request.ignore_lease = true;
            if !self.one_in(4) {
                request.lease = 0;
            }
        }
        if self.one_in(1500) {
            let bytes = self.pick(&[1_570_000, 1_573_000, 1_700_000, 3_000_000]);
            request.value = vec![b'b'; bytes].into();
        }
        request
    }

    fn delete_request(&mut self) -> DeleteRangeRequest {
        let (key, range_end) = self.range();
        // A few whole sweeps keep the universe small without emptying it all the time.
        let range_end = if range_end == b"\0" && !self.one_in(6) { Vec::new() } else { range_end };
        DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: self.one_in(3) }
    }

    fn ask(&mut self) -> Ask {
        match self.number(1000) {
            0..=299 => Ask::Range(self.range_request()),
            300..=579 => Ask::Put(self.put_request()),
            580..=679 => Ask::Delete(self.delete_request()),
            680..=869 => Ask::Txn(self.txn()),
            870..=884 => {
                let revision =
                    if self.one_in(2) { self.known.revision - self.number(40) } else { self.revision() };
                // Nothing would be left to read.
                let revision =
                    if revision == i64::MAX || !self.one_in(6) { revision } else { self.known.revision };
                Ask::Compact(CompactionRequest { revision, physical: self.one_in(3) })
            }
            885..=974 => self.lease_ask(),
            975..=979 => Ask::Status(StatusRequest {}),
            980..=983 => Ask::MemberList(MemberListRequest { linearizable: self.one_in(2) }),
            984..=987 => self.member_ask(),
            988 => Ask::MoveLeader(MoveLeaderRequest { target_id: self.pick(&[0, 1, 99, u64::MAX]) }),
            989 => Ask::Defragment(DefragmentRequest {}),
            _ => self.alarm_ask(),
        }
    }

    fn lease_ask(&mut self) -> Ask {
        let id = self.pick(LEASES);
        match self.number(20) {
            0..=5 => Ask::Grant(LeaseGrantRequest { id, ttl: self.pick(TTLS) }),
            6..=7 => {
                let id = if self.one_in(2) { 0 } else { self.pick(&[501, 502, -503, 1]) };
                let ttl = if self.one_in(2) { self.pick(SHORT_TTLS) } else { self.pick(TTLS) };
                Ask::GrantBriefly(LeaseGrantRequest { id, ttl })
            }
            8..=10 => Ask::Revoke(LeaseRevokeRequest { id: if self.one_in(10) { 0 } else { id } }),
            11..=14 => {
                let id = if self.one_in(10) { 0 } else { id };
                Ask::TimeToLive(LeaseTimeToLiveRequest { id, keys: self.one_in(2) })
            }
            15..=16 => Ask::Leases(LeaseLeasesRequest {}),
            _ => {
                let count = 1 + self.number(3);
                let ids = (0..count).map(|_| LeaseKeepAliveRequest { id: self.pick(LEASES) });
                Ask::KeepAlive(ids.collect())
            }
        }
    }

    fn member_ask(&mut self) -> Ask {
        let id = self.pick(&[0, 99, u64::MAX]);
        let urls: &[&str] =
            self.pick(&[&[][..], &["x"][..], &["http://"][..], &["127.0.0.1:1"][..], &["http://a:1/x"][..]]);
        let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
        match self.number(4) {
            0 => Ask::MemberAdd(MemberAddRequest { peer_ur_ls: urls, is_learner: self.one_in(2) }),
            1 => Ask::MemberRemove(MemberRemoveRequest { id }),
            2 => Ask::MemberUpdate(MemberUpdateRequest { id, peer_ur_ls: urls }),
            _ => Ask::MemberPromote(MemberPromoteRequest { id }),
        }
    }

    fn alarm_ask(&mut self) -> Ask {
        let alarm = self.pick(&[0, 1, 2, 1]);
        let action = self.pick(&[0, 0, 0, 1, 2, 9]);
        if action == 1 && alarm != 0 {
            if self.alarm.is_some() {
                return Ask::Alarm(AlarmRequest { action: 0, member_id: 0, alarm: 0 });
            }
            self.alarm = Some((alarm, 15));
            return Ask::Alarm(AlarmRequest { action, member_id: 1, alarm });
        }
        let action = if action == 1 { 0 } else { action };
        Ask::Alarm(AlarmRequest { action, member_id: self.pick(&[0, 1, 99]), alarm })
    }
}

/// The end of the range of all keys that begin with `key`.
fn prefix_end(key: &[u8]) -> Vec<u8> {
    let mut end = key.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    b"\0".to_vec()
}
