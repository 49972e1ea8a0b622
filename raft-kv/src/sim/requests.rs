//! What clients ask for: keys, some of them hot, changes, transactions and ranges, drawn at random.

use bytes::Bytes;
use rand::Rng;

use super::cluster::Cluster;
use super::workload::Workload;
use crate::machine::command::Command;
use crate::types::{
    Compare, CompareOp, CompareTarget, DeleteRequest, KeyRange, LeaseId, PutRequest, RangeRequest, TxnOp,
    TxnRequest,
};

/// Keys that clients use.
pub(super) const KEYS: u64 = 8;

impl Workload {
    pub(super) fn some_lease(&mut self, client: usize) -> Option<LeaseId> {
        let leases = &self.clients[client].leases;
        (!leases.is_empty()).then(|| leases[self.random.random_range(0..leases.len())])
    }

    pub(super) fn key(&mut self) -> Bytes {
        // Some keys are hot.
        let key = self.random.random_range(0..KEYS).min(self.random.random_range(0..KEYS));
        format!("k{key}").into()
    }

    pub(super) fn keys(&mut self) -> KeyRange {
        match self.random.random_range(0..4) {
            0 => KeyRange::prefix(Bytes::from_static(b"k")),
            1 => {
                let (a, b) = (self.key(), self.key());
                if a < b { KeyRange::span(a, b) } else { KeyRange::all() }
            }
            _ => KeyRange::key(self.key()),
        }
    }

    pub(super) fn put(&mut self, key: Bytes, lease: LeaseId) -> PutRequest {
        self.values += 1;
        let prev_kv = self.random.random_bool(0.3);
        let mut value = format!("v{}", self.values);
        if self.habits.padding > 0 && self.random.random_bool(0.3) {
            let padding = self.random.random_range(0..self.habits.padding);
            value.extend(std::iter::repeat_n('.', padding));
        }
        PutRequest { key, value: value.into(), lease, prev_kv, ..PutRequest::default() }
    }

    pub(super) fn range(&mut self) -> RangeRequest {
        let old = self.random.random_bool(0.25) && self.newest > 2;
        let revision =
            if old { self.random.random_range((self.newest - 40).max(1)..=self.newest) } else { 0 };
        let range = if self.random.random_bool(0.6) { KeyRange::key(self.key()) } else { self.keys() };
        RangeRequest {
            range,
            revision,
            limit: if self.random.random_bool(0.2) { self.random.random_range(1..5) } else { 0 },
            keys_only: self.random.random_bool(0.1),
            count_only: self.random.random_bool(0.1),
            serializable: self.random.random_bool(self.habits.serializable),
            ..RangeRequest::default()
        }
    }

    pub(super) fn command(&mut self, cluster: &Cluster, client: usize, kind: usize) -> Option<Command> {
        let now = cluster.now();
        Some(match kind {
            4 => {
                let range =
                    if self.random.random_bool(0.9) { KeyRange::key(self.key()) } else { self.keys() };
                Command::Delete(DeleteRequest { range, prev_kv: self.random.random_bool(0.5) })
            }
            5 => Command::Txn(self.txn()),
            6 => {
                self.clients[client].made += 1;
                let id = (client as i64 + 1) << 32 | self.clients[client].made;
                let ttl = self.random.random_range(2..6);
                self.clients[client].leases.push(id);
                let leases = &mut self.clients[client].leases;
                if leases.len() > 3 {
                    leases.remove(0);
                }
                self.leases.asked_for(id, ttl, now);
                Command::LeaseGrant { id, ttl }
            }
            8 => {
                let id = self.some_lease(client)?;
                self.clients[client].leases.retain(|lease| *lease != id);
                self.revoked.push(id);
                Command::LeaseRevoke { id }
            }
            9 => {
                let revision = self.newest - self.random.random_range(0..30);
                if revision < 2 {
                    return None;
                }
                self.compacted = self.compacted.max(revision);
                Command::Compact { revision }
            }
            _ => {
                let lease = if self.random.random_bool(0.2) { self.some_lease(client) } else { None };
                let key = self.key();
                Command::Put(self.put(key, lease.unwrap_or(0)))
            }
        })
    }

    pub(super) fn compare(&mut self, key: &Bytes) -> Compare {
        let known = self.known.get(key).cloned().unwrap_or_default();
        let target = match self.random.random_range(0..5) {
            0 => CompareTarget::Version(known.version),
            1 => CompareTarget::Create(known.create_revision),
            2 => CompareTarget::Value(known.value),
            3 => CompareTarget::Lease(known.lease),
            _ => CompareTarget::Mod(known.mod_revision),
        };
        let op = match self.random.random_range(0..10) {
            0 => CompareOp::NotEqual,
            1 => CompareOp::Less,
            2 => CompareOp::Greater,
            _ => CompareOp::Equal,
        };
        Compare { range: KeyRange::key(key.clone()), op, target }
    }

    /// Compare and set, sometimes with a transaction inside that looks at what the outer one wrote.
    pub(super) fn txn(&mut self) -> TxnRequest {
        let (key, other) = (self.key(), self.key());
        let put = self.put(key.clone(), 0);
        let range = |key: &Bytes| {
            TxnOp::Range(RangeRequest { range: KeyRange::key(key.clone()), ..RangeRequest::default() })
        };
        let mut success = vec![TxnOp::Put(put.clone()), range(&key)];
        if key != other && self.random.random_bool(0.4) {
            let target = CompareTarget::Value(put.value.clone());
            let compares = vec![Compare { range: KeyRange::key(key.clone()), op: CompareOp::Equal, target }];
            let inner = self.put(other.clone(), 0);
            success.push(TxnOp::Txn(TxnRequest {
                compares,
                success: vec![TxnOp::Put(inner)],
                failure: vec![range(&other)],
            }));
        }
        let failure = if key != other && self.random.random_bool(0.2) {
            vec![TxnOp::Put(self.put(other, 0))]
        } else {
            vec![range(&key)]
        };
        TxnRequest { compares: vec![self.compare(&key)], success, failure }
    }
}
