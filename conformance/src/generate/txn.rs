//! Transactions: every compare, nesting to depth 3, keys given twice, more operations than allowed.

use etcd_api::etcdserverpb::compare::TargetUnion;
use etcd_api::etcdserverpb::request_op::Request;
use etcd_api::etcdserverpb::{Compare, RequestOp, TxnRequest};

use super::Generator;

const DEPTH: usize = 3;

impl Generator {
    /// One transaction.
    pub(super) fn txn(&mut self) -> TxnRequest {
        if self.one_in(150) {
            return self.wide_txn();
        }
        self.txn_at(1)
    }

    fn txn_at(&mut self, depth: usize) -> TxnRequest {
        let (compares, success, failure) = (self.number(4), self.number(4), self.number(3));
        TxnRequest {
            compare: (0..compares).map(|_| self.compare()).collect(),
            success: (0..success).map(|_| self.op(depth)).collect(),
            failure: (0..failure).map(|_| self.op(depth)).collect(),
        }
    }

    /// At the limit, or above it.
    fn wide_txn(&mut self) -> TxnRequest {
        let count = self.pick(&[127, 128, 129, 130, 100]);
        let mut txn = TxnRequest::default();
        match self.number(4) {
            0 => txn.compare = (0..count).map(|_| self.compare()).collect(),
            1 => txn.success = (0..count).map(|n| self.distinct_put(n)).collect(),
            2 => txn.failure = (0..count).map(|n| self.distinct_put(n)).collect(),
            _ => {
                // A nested one may use what its parent left.
                let inner = TxnRequest {
                    success: (0..count - 10).map(|n| self.distinct_put(n)).collect(),
                    ..Default::default()
                };
                txn.success = (200..200 + self.number(20)).map(|n| self.distinct_put(n)).collect();
                txn.success.push(RequestOp { request: Some(Request::RequestTxn(inner)) });
            }
        }
        txn
    }

    fn distinct_put(&mut self, n: i64) -> RequestOp {
        let mut put = self.put_request();
        put.key = format!("w/{n}").into();
        (put.lease, put.ignore_lease, put.ignore_value) = (0, false, false);
        put.value.truncate(300);
        RequestOp { request: Some(Request::RequestPut(put)) }
    }

    fn op(&mut self, depth: usize) -> RequestOp {
        let request = match self.number(20) {
            0 if self.one_in(3) => None,
            0..=6 => Some(Request::RequestRange(self.inner_range())),
            7..=13 => {
                let mut put = self.put_request();
                put.value.truncate(300);
                Some(Request::RequestPut(put))
            }
            14..=16 => Some(Request::RequestDeleteRange(self.delete_request())),
            _ if depth < DEPTH => Some(Request::RequestTxn(self.txn_at(depth + 1))),
            _ => Some(Request::RequestRange(self.inner_range())),
        };
        RequestOp { request }
    }

    fn inner_range(&mut self) -> etcd_api::etcdserverpb::RangeRequest {
        let mut range = self.range_request();
        // Most of them can be served, or no transaction would ever be done.
        if range.revision != 0 && !self.one_in(6) {
            let Some(span) = Some(self.known.revision - self.known.compacted).filter(|span| *span > 0) else {
                range.revision = 0;
                return range;
            };
            range.revision = self.known.compacted + self.number(span + 1);
        }
        range
    }

    fn compare(&mut self) -> Compare {
        let key = if self.one_in(30) { self.key() } else { self.good_key() };
        let mut compare = Compare {
            key: key.into(),
            result: self.pick(&[0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 0, 0, 9]),
            ..Default::default()
        };
        let value = match self.number(4) {
            0 => 0,
            1 => self.number(4),
            _ => self.revision(),
        };
        let union = match self.number(5) {
            0 => TargetUnion::Version(self.number(4)),
            1 => TargetUnion::CreateRevision(value),
            2 => TargetUnion::ModRevision(value),
            3 => TargetUnion::Value(self.value().into()),
            _ => TargetUnion::Lease(if self.one_in(2) { 0 } else { self.number(8) }),
        };
        compare.target = match &union {
            TargetUnion::Version(_) => 0,
            TargetUnion::CreateRevision(_) => 1,
            TargetUnion::ModRevision(_) => 2,
            TargetUnion::Value(_) => 3,
            TargetUnion::Lease(_) => 4,
        };
        if self.one_in(25) {
            // The union is missing, or another one.
            compare.target = self.pick(&[0, 1, 2, 3, 4, 8]);
        }
        compare.target_union = if self.one_in(12) { None } else { Some(union) };
        if self.one_in(4) {
            let (_, end) = self.range();
            compare.range_end = end.into();
        }
        compare
    }
}
