//! Requests at which Debian's etcd 3.4 ends its process, or that it takes where etcd of today refuses
//! them, found by these sequences. They go to raft-kv alone, which has to refuse them and live.

use etcd_api::authpb::Permission;
use etcd_api::etcdserverpb::request_op::Request;
use etcd_api::etcdserverpb::{RangeRequest, TxnRequest};

use crate::ask::Ask;

/// Why etcd must not be sent this, if so.
pub fn fatal(ask: &Ask) -> Option<&'static str> {
    match ask {
        Ask::Range(range) if sorts_by_nothing(range) => Some("a sort that there is not"),
        Ask::Txn(txn) if any_range(txn, sorts_by_nothing) => Some("a sort that there is not"),
        Ask::RoleGrantPermission(grant) if grant.perm.as_ref().is_some_and(is_on_no_key) => {
            Some("a permission on no key")
        }
        Ask::RoleGrantPermission(grant) if grant.perm.is_none() => Some("a grant without a permission"),
        Ask::Alarm(alarm) if !(0..=2).contains(&alarm.action) => Some("an alarm action that there is not"),
        _ => None,
    }
}

fn sorts_by_nothing(range: &RangeRequest) -> bool {
    !(0..=4).contains(&range.sort_target) || !(0..=2).contains(&range.sort_order)
}

fn is_on_no_key(permission: &Permission) -> bool {
    let end = permission.range_end.as_ref();
    !end.is_empty() && end != b"\0" && end <= permission.key.as_ref()
}

fn any_range(txn: &TxnRequest, is: fn(&RangeRequest) -> bool) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
        Some(Request::RequestRange(range)) => is(range),
        Some(Request::RequestTxn(inner)) => any_range(inner, is),
        _ => false,
    })
}
