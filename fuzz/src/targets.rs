//! What every fuzz target does with its bytes, and the seeds they start from. Included by the targets
//! in `fuzz_targets/` and by the plain test `raft-kv/tests/fuzz_corpus.rs`, which replays the corpora.
//!
//! A target panics when a property is broken, and on nothing else.

#[path = "typed.rs"]
pub mod typed;

use std::fmt::Debug;

use bytes::Bytes;
use raft_kv::client::api::{Answered, Call, Reply};
use raft_kv::codec::Wire;
use raft_kv::error::{Error, NotDone};
use raft_kv::machine::{Command, Genesis, Machine, MemoryStore, Proposal, Store, read, validate};
use raft_kv::node::wire::PeerFrame;
use raft_kv::pki::JoinToken;
use raft_kv::types::{
    Authority, ClusterId, Committed, Compare, CompareOp, CompareTarget, ConfState, DeleteRequest, Entry,
    EntryKind, HardState, Header, KeyRange, MemberRecord, NodeId, NodeRecord, OnceId, Payload, PutRequest,
    RangeRequest, RequestId, Role, RootDigest, SnapshotMeta, TxnOp, TxnRequest,
};

/// One target: its name, which is also its corpus's, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("proposals", proposals),
    ("machine", machine),
    ("log_values", log_values),
    ("peer_frame", peer_frame),
    ("call", call),
    ("token", token),
    ("certificate", certificate),
    ("typed", typed::typed),
];

/// Bytes that decode are the bytes that their value encodes to: nothing has two forms, and nothing is
/// lost on the way.
fn one_form<T: Wire + Debug>(bytes: &[u8]) -> Option<T> {
    let value = T::from_bytes(Bytes::copy_from_slice(bytes)).ok()?;
    assert_eq!(value.to_bytes(), bytes, "{value:?} has another form");
    Some(value)
}

/// A log entry's proposals: decoded, and each judged.
pub fn proposals(bytes: &[u8]) {
    for proposal in one_form::<Vec<Proposal>>(bytes).unwrap_or_default() {
        let _ = validate(&proposal.command);
    }
}

/// What the log and snapshots keep besides proposals; the first byte chooses.
pub fn log_values(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind {
        0 => drop(one_form::<Entry>(bytes)),
        1 => drop(one_form::<HardState>(bytes)),
        2 => drop(one_form::<ConfState>(bytes)),
        3 => drop(one_form::<SnapshotMeta>(bytes)),
        4 => drop(one_form::<MemberRecord>(bytes)),
        _ => {}
    }
}

/// A request from a client or a joiner, or an answer to one; the first byte chooses.
pub fn call(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind {
        0 => {
            if let Some(Call::Command { command, .. }) = one_form::<Call>(bytes) {
                let _ = validate(&command);
            }
        }
        _ => drop(one_form::<Answered>(bytes)),
    }
}

/// A join token as somebody typed it.
pub fn token(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(token) = text.parse::<JoinToken>()
    {
        assert_eq!(token.to_string().parse().as_ref(), Ok(&token));
    }
}

/// A certificate request of a joiner, and a certificate that somebody presents.
pub fn certificate(bytes: &[u8]) {
    let _ = raft_kv::pki::request_key(bytes);
    let _ = raft_kv::pki::Identity::from_cert(bytes);
    let _ = raft_kv::pki::validity_of(bytes);
}

/// A frame from another member: decoded, and asked what the transport asks of it.
pub fn peer_frame(bytes: &[u8]) {
    let Ok(frame) = PeerFrame::from_bytes(Bytes::copy_from_slice(bytes)) else { return };
    // Not one form as above: a snapshot's lists of members are put in order on their way through.
    let _: Option<PeerFrame> = one_form(&frame.to_bytes());
    let _ = frame.urgent();
    if let PeerFrame::Raft(message) = frame {
        let _ = (message.from(), message.to(), message.term(), message.kind(), message.entry_count());
        let _ = (message.is_heartbeat(), message.is_snapshot(), message.snapshot_meta());
    }
}

/// Whatever proposals a leader may have let into the log, two members that apply them end up alike and
/// still answer.
pub fn machine(bytes: &[u8]) {
    let Some(list) = one_form::<Vec<Proposal>>(bytes) else { return };
    let run = || {
        let store = MemoryStore::new();
        Machine::create(&store, &genesis()).expect("memory does not fail");
        let mut machine = Machine::open(store).expect("memory does not fail").expect("was just made");
        let payload = Payload::Proposals(Bytes::copy_from_slice(bytes));
        let entry = Committed { index: machine.applied().index + 1, term: 2, payload };
        let before = machine.revision();
        let applied = machine.apply(vec![entry]).expect("memory does not fail");
        assert_eq!(applied.outcomes.len(), list.len(), "one outcome for each proposal");
        assert!(machine.revision() - before <= list.len() as i64, "one request, one revision at most");
        assert!(machine.revision() >= before && machine.compacted() <= machine.revision());
        for (position, change) in applied.changes.iter().enumerate() {
            assert_eq!(change.revision, before + 1 + position as i64, "revisions have no gaps");
        }
        while machine.collect().expect("memory does not fail") {}
        let hash = machine.store().view(read::hash).expect("memory does not fail");
        (applied, hash)
    };
    assert_eq!(run(), run(), "two members differ");
}

fn genesis() -> Genesis {
    Genesis {
        cluster: ClusterId(7),
        member: MemberRecord {
            id: NodeId(1),
            name: "n1".to_owned(),
            addr: "127.0.0.1:1".to_owned(),
            ..Default::default()
        },
        authority: Authority::default(),
        node: NodeRecord::new(NodeId(1), Role::Manager, "one", RootDigest::default()),
        tokens: vec![],
    }
}

/// Where a fuzzer and the replay begin: target, and bytes.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = vec![];
    for list in lists() {
        seeds.push(("proposals", list.clone()));
        seeds.push(("machine", list));
    }
    let conf =
        ConfState { voters: vec![NodeId(1), NodeId(2)], learners: vec![NodeId(3)], ..ConfState::default() };
    let entry = Entry {
        index: 9,
        term: 3,
        kind: EntryKind::Normal,
        data: Bytes::from_static(b"data"),
        context: Bytes::from_static(b"context"),
    };
    for kind in 1..=10 {
        let entries = if kind == 1 { vec![entry.clone()] } else { vec![] };
        let snapshot = (kind == 9).then(|| SnapshotMeta { index: 9, term: 3, conf: conf.clone() });
        seeds.push(("peer_frame", raft_message(kind, &entries, snapshot)));
    }
    let forward = PeerFrame::Forward { term: 3, proposals: vec![] };
    let others = [
        forward,
        PeerFrame::Declined { requests: vec![], why: Error::NotDone(NotDone::NoLeader) },
        PeerFrame::Transfer { to: None },
    ];
    seeds.extend(others.map(|frame| ("peer_frame", frame.to_bytes().to_vec())));
    let values = [
        entry.to_bytes(),
        HardState { term: 3, vote: NodeId(2), commit: 8 }.to_bytes(),
        conf.to_bytes(),
        SnapshotMeta { index: 9, term: 3, conf }.to_bytes(),
        genesis().member.to_bytes(),
    ];
    let range = RangeRequest { range: KeyRange::prefix(&b"k"[..]), limit: 3, ..RangeRequest::default() };
    let calls = [Call::Range(range), Call::Members, Call::LeaseKeepAlive(7), Call::JoinToken(Role::Manager)];
    seeds.extend(calls.map(|call| ("call", [&[0][..], &call.to_bytes()].concat())));
    let answers: [Answered; 2] =
        [Ok((Header::default(), Reply::Done)), Err(Error::NotDone(NotDone::NoLeader))];
    seeds.extend(answers.map(|answer| ("call", [&[1][..], &answer.to_bytes()].concat())));
    // The same ones each time: a corpus does not change by itself.
    let text = |digit: &str| format!("RAFTKV-1-{}-{}", digit.repeat(52), digit.repeat(40));
    seeds.extend(["a", "2"].map(|digit| ("token", text(digit).into_bytes())));
    seeds.extend(certificates().map(|der| ("certificate", der)));
    for (kind, value) in values.into_iter().enumerate() {
        seeds.push(("log_values", [&[kind as u8][..], &value].concat()));
    }
    // Behind all others: their files in the corpora keep their names.
    seeds.extend(typed::seeds().into_iter().map(|bytes| ("typed", bytes)));
    seeds
}

/// A certificate request and a certificate, made once and kept.
fn certificates() -> [Vec<u8>; 2] {
    [include_bytes!("request.der").to_vec(), include_bytes!("leaf.der").to_vec()]
}

/// A frame with one of raft's own messages, by hand: outside of the core nobody can make one.
fn raft_message(kind: u8, entries: &[Entry], snapshot: Option<SnapshotMeta>) -> Vec<u8> {
    let mut bytes = vec![1, kind];
    // From, to, term, index, log term, commit, commit term, reject hint.
    for number in [1u64, 2, 3, 8, 3, 7, 0, 0] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(false.to_bytes());
    bytes.extend(Bytes::from_static(b"context").to_bytes());
    bytes.extend(entries.to_vec().to_bytes());
    bytes.extend(snapshot.to_bytes());
    bytes
}

fn lists() -> Vec<Vec<u8>> {
    let put = |key: &'static [u8], value: &'static [u8]| PutRequest {
        key: Bytes::from_static(key),
        value: Bytes::from_static(value),
        ..PutRequest::default()
    };
    let delete = DeleteRequest { range: KeyRange::all(), prev_kv: true };
    let nested = TxnRequest {
        compares: vec![Compare {
            range: KeyRange::key(&b"a"[..]),
            op: CompareOp::Equal,
            target: CompareTarget::Version(1),
        }],
        success: vec![TxnOp::Put(put(b"b", b"2")), TxnOp::Range(RangeRequest::default())],
        failure: vec![TxnOp::Txn(TxnRequest {
            success: vec![TxnOp::Delete(delete.clone())],
            ..TxnRequest::default()
        })],
    };
    let leased = PutRequest { lease: 5, prev_kv: true, ..put(b"c", b"3") };
    let lists = [
        vec![],
        vec![Command::Noop],
        vec![Command::Put(put(b"a", b"1"))],
        vec![Command::Put(put(b"a", b"1")), Command::Txn(nested), Command::Delete(delete)],
        vec![
            Command::LeaseGrant { id: 5, ttl: 10 },
            Command::Put(leased),
            Command::LeaseExpire { ids: vec![5], term: 2 },
            Command::Compact { revision: 2 },
            Command::LeaseRevoke { id: 5 },
        ],
    ];
    let proposal = |(seq, command)| Proposal {
        request: RequestId { origin: NodeId(1), boot: 2, seq },
        once: (seq % 2 == 1).then_some(OnceId { client: 3, seq }),
        command,
    };
    lists.map(|list| (0..).zip(list).map(proposal).collect::<Vec<_>>().to_bytes().to_vec()).to_vec()
}
