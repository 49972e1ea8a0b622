//! The crate's types as etcd's messages, and back. Total: what a message can say and the crate
//! can't is a typed refusal.

use etcd_api::etcdserverpb::ResponseHeader;
use etcd_api::mvccpb;
use raft_kv::types::{Header, KeyValue};

/// The header of an answer.
pub fn header(header: Header) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        cluster_id: header.cluster.0,
        member_id: header.member.0,
        revision: header.revision,
        raft_term: header.term,
    })
}

/// A key at a revision.
pub fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}
