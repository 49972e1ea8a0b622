//! Keys, values and log entries to measure with.

use bytes::Bytes;
use raft_kv::codec::Wire;
use raft_kv::machine::{Command, Genesis, Proposal};
use raft_kv::types::{
    Authority, ClusterId, Committed, Entry, EntryKind, Index, MemberRecord, NodeId, NodeRecord, Payload,
    PutRequest, RequestId, Role, RootDigest,
};
use rand::RngCore;

/// Bytes of a value, in everything that is measured.
pub const VALUE_BYTES: usize = 256;

/// A value that does not compress.
pub fn value() -> Bytes {
    let mut value = vec![0; VALUE_BYTES];
    rand::rng().fill_bytes(&mut value);
    value.into()
}

/// A put of such a value.
pub fn put(key: impl Into<Bytes>) -> PutRequest {
    PutRequest { key: key.into(), value: value(), ..PutRequest::default() }
}

/// A log entry's payload: `count` puts of keys from `from` on.
pub fn proposals(from: u64, count: u64) -> Bytes {
    let proposal = |number| Proposal {
        request: RequestId { origin: NodeId(1), boot: 1, seq: number },
        once: None,
        command: Command::Put(put(format!("key/{number:012}"))),
    };
    (from..from + count).map(proposal).collect::<Vec<_>>().to_bytes()
}

/// The same as a committed entry.
pub fn committed(index: Index, from: u64, count: u64) -> Committed {
    Committed { index, term: 1, payload: Payload::Proposals(proposals(from, count)) }
}

/// An entry of the raft log with so many bytes of data.
pub fn entry(index: Index, bytes: usize) -> Entry {
    let data = Bytes::from(vec![7; bytes]);
    Entry { index, term: 1, kind: EntryKind::Normal, data, context: Bytes::new() }
}

/// The beginning of a store, with one member.
pub fn genesis() -> Genesis {
    Genesis {
        cluster: ClusterId(1),
        member: MemberRecord {
            id: NodeId(1),
            name: "n1".into(),
            addr: "127.0.0.1:1".into(),
            ..Default::default()
        },
        authority: Authority::default(),
        node: NodeRecord::new(NodeId(1), Role::Manager, "one", RootDigest::default()),
        tokens: Vec::new(),
    }
}
