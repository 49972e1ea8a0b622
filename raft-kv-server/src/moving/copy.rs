//! One pass over both stores that makes ours what the source is at one revision. What is the same
//! already is left alone, so a pass that was cut short is simply made again.

use std::cmp::Ordering;
use std::sync::Arc;

use etcd_api::etcdserverpb::RangeRequest;
use raft_kv::limits::MAX_TXN_OPS;
use raft_kv::types::Revision;
use tokio::task::JoinSet;

use super::Moving;
use super::leases::Leases;
use super::reader::{ReadError, Reader, Store};
use super::target::{BATCH_BYTES, Target, Write};
use crate::failure::Failure;

/// Transactions under way at once.
const AT_ONCE: usize = 8;

/// Makes the target what the source is at `revision`.
pub async fn copy(moving: &mut Moving, revision: Revision) -> Result<(), ReadError> {
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..RangeRequest::default() };
    let total = moving.source.range(RangeRequest { count_only: true, revision, ..all }).await?.count;
    let total = u64::try_from(total).unwrap_or(0);
    let now = moving.target.revision().await.map_err(ReadError::Failed)?;
    let mut source = Reader::new(Store::Foreign(moving.source.clone()), revision);
    let mut target = Reader::new(Store::Own(moving.target.handle().clone()), now);
    let mut batches = Batches::new(&moving.target, &moving.leases);
    let mut done = 0;
    loop {
        let write = {
            let theirs = source.peek().await?;
            let ours = target.peek().await?;
            let order = match (theirs, ours) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(theirs), Some(ours)) => theirs.key.cmp(&ours.key),
            };
            match order {
                Ordering::Less => source.take().map(Write::Put),
                Ordering::Greater => target.take().map(|item| Write::Delete(item.key)),
                Ordering::Equal => {
                    let ours = target.take();
                    source.take().filter(|theirs| ours.as_ref() != Some(theirs)).map(Write::Put)
                }
            }
        };
        // What only ours has is no part of the total.
        done += u64::from(!matches!(write, Some(Write::Delete(_))));
        moving.progress.count("copy", done, Some(total));
        if let Some(write) = write {
            batches.add(write).await.map_err(ReadError::Failed)?;
        }
    }
    batches.finish().await.map_err(ReadError::Failed)?;
    moving.progress.done();
    Ok(())
}

/// Writes gathered into transactions, several of them under way at once.
struct Batches {
    target: Target,
    leases: Arc<Leases>,
    waiting: Vec<Write>,
    bytes: usize,
    sent: JoinSet<Result<(), Failure>>,
}

impl Batches {
    fn new(target: &Target, leases: &Arc<Leases>) -> Self {
        let (target, leases) = (target.clone(), leases.clone());
        Self { target, leases, waiting: Vec::new(), bytes: 0, sent: JoinSet::new() }
    }

    async fn add(&mut self, write: Write) -> Result<(), Failure> {
        if self.waiting.len() >= MAX_TXN_OPS || self.bytes + write.size() > BATCH_BYTES {
            self.send().await?;
        }
        self.bytes += write.size();
        self.waiting.push(write);
        Ok(())
    }

    async fn send(&mut self) -> Result<(), Failure> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        while self.sent.len() >= AT_ONCE {
            self.join().await?;
        }
        self.bytes = 0;
        let writes = std::mem::take(&mut self.waiting);
        let (target, leases) = (self.target.clone(), self.leases.clone());
        self.sent.spawn(async move { target.write(&writes, &leases).await });
        Ok(())
    }

    async fn join(&mut self) -> Result<(), Failure> {
        self.sent.join_next().await.map_or(Ok(()), |sent| sent.expect("a write does not panic"))
    }

    async fn finish(mut self) -> Result<(), Failure> {
        self.send().await?;
        while !self.sent.is_empty() {
            self.join().await?;
        }
        Ok(())
    }
}
