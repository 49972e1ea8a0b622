//! Our cluster, as a move writes to it: transactions that land at most once and only while the
//! move is this run's. It must never write without looking at the move's record.

use std::time::Instant;

use bytes::Bytes;
use raft_kv::client::Handle;
use raft_kv::error::{Error, Refusal};
use raft_kv::limits::MAX_TXN_OPS;
use raft_kv::types::{
    Compare, CompareOp, CompareTarget, DeleteRequest, KeyRange, PutRequest, RangeRequest, Revision, TxnOp,
    TxnRequest,
};

use super::leases::Leases;
use super::{MARKER, PATIENCE, PAUSE, patiently};
use crate::failure::{Failure, Kind};

/// Keys and values of one transaction, in bytes; one larger operation goes alone.
pub const BATCH_BYTES: usize = 1024 * 1024;
/// The first word of the record.
const FORMAT: &str = "raft-kv-moving-1";

/// One write of a move.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    /// A key as the source has it.
    Put(super::reader::Item),
    /// A key that the source does not have.
    Delete(Bytes),
}

impl Write {
    /// What it adds to a request, in bytes.
    pub fn size(&self) -> usize {
        64 + match self {
            Self::Put(item) => item.key.len() + item.value.len(),
            Self::Delete(key) => key.len(),
        }
    }

    fn op(&self) -> TxnOp {
        match self {
            Self::Put(item) => TxnOp::Put(PutRequest {
                key: item.key.clone(),
                value: item.value.clone(),
                lease: item.lease,
                ..PutRequest::default()
            }),
            Self::Delete(key) => {
                TxnOp::Delete(DeleteRequest { range: KeyRange::key(key.clone()), prev_kv: false })
            }
        }
    }
}

/// Our cluster with the move's record as this run left it.
#[derive(Clone)]
pub struct Target {
    handle: Handle,
    source_cluster: u64,
    run: u64,
    record: Bytes,
}

fn marker_is(record: &Bytes) -> Compare {
    let target = CompareTarget::Value(record.clone());
    Compare { range: KeyRange::key(MARKER), op: CompareOp::Equal, target }
}

impl Target {
    /// Begins a move into an empty cluster, or takes over the one that is under way.
    pub async fn begin(handle: Handle, source_cluster: u64, overwrite: bool) -> Result<Self, Failure> {
        let found = patiently(|| handle.get(MARKER)).await?.map(|kv| kv.value);
        let guard = match &found {
            Some(record) => {
                let text = String::from_utf8_lossy(record).into_owned();
                let mut words = text.split(' ');
                let (format, cluster) = (words.next(), words.next());
                if format != Some(FORMAT) || cluster != Some(&format!("{source_cluster:x}")) {
                    return Err(Failure::new(
                        Kind::Refused,
                        format!(
                            "a move from another cluster is under way here ({text}), this one is {source_cluster:x}; \
                             finish that one, or take an empty cluster"
                        ),
                    ));
                }
                vec![marker_is(record)]
            }
            None if overwrite => {
                vec![Compare {
                    range: KeyRange::key(MARKER),
                    op: CompareOp::Equal,
                    target: CompareTarget::Version(0),
                }]
            }
            None => {
                let (_, leases) = patiently(|| handle.leases()).await?;
                if !leases.is_empty() {
                    return Err(not_empty(&format!("{} leases", leases.len())));
                }
                // True of no key at all, and of none else: a key there has a version.
                let op = CompareOp::Equal;
                vec![Compare { range: KeyRange::all(), op, target: CompareTarget::Version(0) }]
            }
        };
        let run = u64::from_be_bytes(random_bytes());
        let mut target = Self { handle, source_cluster, run, record: Bytes::new() };
        let record = target.record_at(0);
        if !target.land(guard, vec![put_record(&record)], &record, None).await? {
            return Err(not_empty("keys"));
        }
        target.record = record;
        Ok(target)
    }

    /// The handle, for reading.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    fn record_at(&self, revision: Revision) -> Bytes {
        format!("{FORMAT} {:x} {:016x} {revision}", self.source_cluster, self.run).into()
    }

    /// The store's revision now.
    pub async fn revision(&self) -> Result<Revision, Failure> {
        let range = KeyRange::key(MARKER);
        let request = RangeRequest { range, count_only: true, ..RangeRequest::default() };
        Ok(patiently(|| self.handle.range(request.clone())).await?.0.revision)
    }

    /// Writes that may land in any order and more than once. At most [`MAX_TXN_OPS`].
    pub async fn write(&self, writes: &[Write], leases: &Leases) -> Result<(), Failure> {
        let ops: Vec<TxnOp> = writes.iter().map(Write::op).collect();
        if self.land(vec![marker_is(&self.record)], ops, &self.record, Some(leases)).await? {
            return Ok(());
        }
        Err(taken_over())
    }

    /// What the source did in `revision`, as one step where it fits into one transaction.
    pub async fn follow(
        &mut self,
        revision: Revision,
        writes: &[Write],
        leases: &Leases,
    ) -> Result<(), Failure> {
        let next = self.record_at(revision);
        let bytes: usize = writes.iter().map(Write::size).sum();
        if writes.len() < MAX_TXN_OPS && bytes <= BATCH_BYTES {
            let mut ops: Vec<TxnOp> = writes.iter().map(Write::op).collect();
            ops.push(put_record(&next));
            if !self.land(vec![marker_is(&self.record)], ops, &next, Some(leases)).await? {
                return Err(taken_over());
            }
            self.record = next;
            return Ok(());
        }
        // No room for the record. A part that lands twice changes nothing: none comes between.
        let mut rest = writes;
        while !rest.is_empty() {
            let (mut count, mut size) = (0, 0);
            while count < rest.len().min(MAX_TXN_OPS)
                && (count == 0 || size + rest[count].size() <= BATCH_BYTES + BATCH_BYTES / 4)
            {
                size += rest[count].size();
                count += 1;
            }
            self.write(&rest[..count], leases).await?;
            rest = &rest[count..];
        }
        self.reach(revision).await
    }

    /// Notes that ours is what the source was at `revision`.
    pub async fn reach(&mut self, revision: Revision) -> Result<(), Failure> {
        let next = self.record_at(revision);
        if !self.land(vec![marker_is(&self.record)], vec![put_record(&next)], &next, None).await? {
            return Err(taken_over());
        }
        self.record = next;
        Ok(())
    }

    /// Takes the record away: the move is done.
    pub async fn end(&self) -> Result<(), Failure> {
        let delete = TxnOp::Delete(DeleteRequest { range: KeyRange::key(MARKER), prev_kv: false });
        let request = TxnRequest {
            compares: vec![marker_is(&self.record)],
            success: vec![delete],
            failure: Vec::new(),
        };
        patiently(|| self.handle.txn(request.clone())).await?;
        match patiently(|| self.handle.get(MARKER)).await? {
            None => Ok(()),
            Some(_) => Err(taken_over()),
        }
    }

    /// Does `ops` if `compares` hold, or if the record shows `after` already: then an earlier
    /// attempt has done it. Says whether it is done.
    async fn land(
        &self,
        compares: Vec<Compare>,
        ops: Vec<TxnOp>,
        after: &Bytes,
        leases: Option<&Leases>,
    ) -> Result<bool, Failure> {
        let request = TxnRequest { compares, success: ops, failure: Vec::new() };
        let until = Instant::now() + PATIENCE;
        loop {
            match self.handle.txn(request.clone()).await {
                Ok((_, answer)) if answer.succeeded => return Ok(true),
                Ok(_) => {
                    let found = patiently(|| self.handle.get(MARKER)).await?;
                    return Ok(found.is_some_and(|kv| kv.value == *after) && *after != self.record);
                }
                Err(Error::Refused(Refusal::LeaseNotFound { id })) if leases.is_some() => {
                    leases.expect("just looked").ensure(id).await?;
                }
                Err(Error::NotDone(_) | Error::Unknown(_)) if Instant::now() < until => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn put_record(record: &Bytes) -> TxnOp {
    let key = Bytes::from_static(MARKER);
    TxnOp::Put(PutRequest { key, value: record.clone(), ..PutRequest::default() })
}

fn not_empty(what: &str) -> Failure {
    Failure::new(
        Kind::Refused,
        format!(
            "this cluster already holds {what}, and a move wants an empty one; \
             --overwrite makes it what the source is and removes all else"
        ),
    )
}

fn taken_over() -> Failure {
    Failure::new(Kind::Refused, "another import or mirror has taken this move over")
}

fn random_bytes() -> [u8; 8] {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has random bytes");
    bytes
}
